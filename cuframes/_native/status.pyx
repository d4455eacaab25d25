"""Status codes as exceptions, timestamps and deadlines: what the wrappers of all rings share."""

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
    SegmentTruncated,
    Timeout,
    TooManyHeld,
)


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
    if status == CF_CUT:
        raise SegmentTruncated()
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
    if not seconds >= 0 or isinstance(timeout, bool):
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)


def monotonic_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
    return cf_now_ns()
