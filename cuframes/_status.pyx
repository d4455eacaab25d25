"""What the wrappers of all rings share: status codes as exceptions, deadlines, and the memory of a fork."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t

from cuframes._shm cimport cf_now_ns

from cuframes.errors import (
    Disconnected,
    FrameDropped,
    Overwritten,
    PacketOverrun,
    PacketOversized,
    ProtocolError,
    Timeout,
    TooManyHeld,
)


cdef extern from "<pthread.h>" nogil:
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)


# A forked child inherits our objects but not our place in the ring: its pins would be the parent's. Objects remember
# the generation they were made in; the handler runs in the child of any fork, also one made by C code.
cdef int fork_generation = 0


cdef void in_forked_child() noexcept nogil:
    global fork_generation
    fork_generation += 1


pthread_atfork(NULL, NULL, in_forked_child)


cdef int current_generation() noexcept nogil:
    return fork_generation


cdef bint is_inherited(int generation) noexcept nogil:
    """Whether an object of that generation came through a fork."""
    return generation != fork_generation


cdef int check_generation(int generation) except -1:
    if generation != fork_generation:
        raise RuntimeError("this object belongs to the parent process; open a new one after the fork")
    return 0


cdef int check(int status, object context=None) except -1:
    """The one place that turns a CF_* status into an exception."""
    if status == CF_OK:
        return 0
    if status == CF_TIMED_OUT:
        raise Timeout(context or "nothing arrived in time")
    if status == CF_ENDED:
        raise Disconnected("the publisher is gone and everything that it left has been taken")
    if status == CF_HELD:
        raise FrameDropped(
            "every slot of the ring is held by subscribers; let them release frames sooner, or use a larger ring_size"
        )
    if status == CF_TOO_MANY:
        raise TooManyHeld(context)
    if status == CF_OVERWRITTEN:
        raise Overwritten("the frame was overwritten while it was held: discard what was read from it")
    if status == CF_BUSY:
        raise RuntimeError(context)
    if status == CF_CLOSED:
        raise ValueError(context or "it is closed")
    if status == CF_NO_BIT:
        raise Disconnected("the ring has 31 subscribers and no place for another")
    if status == CF_OVERSIZED:
        raise PacketOversized(context)
    if status == CF_OVERRUN:
        raise PacketOverrun(context)
    if status == CF_CORRUPT:
        raise ProtocolError(context)
    raise SystemError(f"unknown ring status {status}")


cdef int64_t nanoseconds_of(object value) except? -1:
    """A timestamp that a caller gave: an int, since a float of seconds would be off by nine orders of magnitude."""
    if value is True or value is False:
        raise TypeError(f"a time in nanoseconds is an int, not {value}")
    try:
        return PyNumber_Index(value)
    except OverflowError:
        raise ValueError(f"a time in nanoseconds has 64 bits; {value} is beyond that") from None


cdef int64_t deadline_after(object timeout) except? -1:
    """CLOCK_MONOTONIC nanoseconds at which a wait of `timeout` seconds ends; None never ends."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds = timeout
    if seconds == 0:
        return 0  # over already, without looking at the clock
    if not seconds >= 0:
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)
