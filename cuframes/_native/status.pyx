"""Status codes as exceptions, timestamps and deadlines, for the wrappers of all rings."""

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
    """Raise the exception for a CF_* status, unless it is CF_OK."""
    if status == CF_OK:
        return 0
    if status == CF_TIMED_OUT:
        raise Timeout(context or "no frame arrived within the timeout")
    if status == CF_ENDED:
        raise Disconnected("the publisher is gone, and everything that it left has been taken")
    if status == CF_HELD:
        raise FrameDropped(
            "every slot of the ring is held by subscribers; have them release frames sooner, or use a larger ring_size"
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
        raise Disconnected("the ring already has 31 subscribers, the maximum; close one first")
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
    """A caller's timestamp. It must be an int: a float is probably seconds, wrong by nine orders of magnitude."""
    if value is True or value is False:
        raise TypeError(f"a time in nanoseconds must be an int, not {value}")
    try:
        return PyNumber_Index(value)
    except TypeError:
        raise TypeError(f"a time in nanoseconds must be an int, not {value!r}; of a PyAV frame it is "
                        "int(frame.pts * frame.time_base * 10**9)") from None
    except OverflowError:
        raise ValueError(f"a time in nanoseconds must fit into 64 bits, which {value} does not") from None


cdef int64_t deadline_after(object timeout) except? -1:
    """CLOCK_MONOTONIC nanoseconds at which a wait of `timeout` seconds ends. A timeout of None never ends."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds
    try:
        seconds = timeout
    except TypeError:
        raise TypeError(f"timeout must be None or seconds, not {timeout!r}") from None
    if seconds == 0:
        return 0  # already over, so the clock need not be read
    if not seconds >= 0 or isinstance(timeout, bool):
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)


def monotonic_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
    return cf_now_ns()
