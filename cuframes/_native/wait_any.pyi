from typing import Protocol, TypeVar

from cuframes._native.ring_end import RingEnd

_T = TypeVar("_T")
_T_contra = TypeVar("_T_contra", contravariant=True)

class _Poller(Protocol[_T_contra]):
    number: int
    def fileno(self) -> int: ...
    def add(self, receiver: _T_contra, ring: RingEnd) -> bool: ...

def allow_waitv(allowed: bool) -> None:
    """Set whether futex_waitv may be used. Tests disable it, to wait as on an older kernel."""

def wait_rings(
    receivers: list[_T], rings: list[RingEnd | None], timeout: float | None, poller: _Poller[_T]
) -> list[_T]:
    """The receivers whose ring has something to take, or an empty list after `timeout` seconds. A ring is a
    FrameReader, a PacketRing or a CacheRing, or None if the receiver is closed. Of the receivers, only their rings are
    used here.

    Sleeps with futex_waitv, or on the poller's epoll. ``poller.fileno()`` is the epoll, and ``poller.number`` its
    unique number. ``poller.add(receiver, ring)`` is called for a receiver that the poller does not know yet, until it
    returns true: it then has the publisher's eventfd. Nothing waits for a publisher's answer: until it comes, the
    connection itself is in the epoll.
    """
