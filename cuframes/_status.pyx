"""What the wrappers of all rings share: status codes as exceptions, deadlines, closing, and forks."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t

from cuframes._shm cimport cf_event_signal, cf_futex_wake_all, cf_now_ns

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


# ---- closing: the rule is in _gate.h ------------------------------------------------------------------------------

cdef extern from "_gate.h" nogil:
    int cf_gate_enter(cf_gate* gate, bint* last)
    bint cf_gate_leave(cf_gate* gate)
    bint cf_gate_hand_on(cf_gate* gate)
    bint cf_gate_wait(cf_gate* gate)
    bint cf_gate_wait_done(cf_gate* gate)


cdef extern from *:
    """
    static _Thread_local int cf_inside; /* calls of this thread that are inside a ring, whichever */
    """
    int cf_inside


cdef bint enter(cf_gate* gate, bint* last) noexcept nogil:
    """Whether the caller may use the end of a ring; :func:`leave` follows. False: the end is closed, and `last` says
    whether the caller has to finish the close.
    """
    global cf_inside
    if cf_gate_enter(gate, last) != CF_OK:
        return False
    cf_inside += 1
    return True


cdef bint leave(cf_gate* gate) noexcept nogil:
    """True: the caller was the last one inside, and finishes a close that did not wait for it."""
    global cf_inside
    cf_inside -= 1
    return cf_gate_leave(gate)


cdef int shut(cf_gate* gate, const uint32_t* word, int event_fd) noexcept nogil:
    """Close the gate. Wakes those who sleep inside, on the futex `word` or on `event_fd` (or -1), and waits until they
    have gone. FINISH: the caller finishes the close, and says so with cf_gate_done. FINISHED_LATER: the last call inside
    does. SHUT_BEFORE: it was closed before.
    """
    if not cf_gate_shut(gate):
        # Another thread closes: nothing shall be left when we return.
        while not cf_inside and not cf_gate_wait_done(gate):
            pass
        return SHUT_BEFORE
    cf_futex_wake_all(word)
    cf_event_signal(event_fd)
    if cf_inside:  # a signal handler, or a destructor: the call that would have to leave may be our own
        return FINISHED_LATER if cf_gate_hand_on(gate) else FINISH
    while not cf_gate_wait(gate):
        cf_futex_wake_all(word)
        cf_event_signal(event_fd)
    return FINISH


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
    if not seconds >= 0 or isinstance(timeout, bool):
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)
