from typing import Protocol, TypeVar

from cuframes._core import FrameReader
from cuframes._native.packets import PacketRing

_T = TypeVar("_T")
_T_contra = TypeVar("_T_contra", contravariant=True)

class _Poller(Protocol[_T_contra]):
    number: int
    def fileno(self) -> int: ...
    def add(self, receiver: _T_contra, ring: FrameReader | PacketRing) -> bool: ...

def allow_waitv(allowed: bool) -> None:
    """Whether futex_waitv may be used; tests say no, to wait as on an older kernel."""

def wait_rings(
    receivers: list[_T], rings: list[FrameReader | PacketRing | None], timeout: float | None, poller: _Poller[_T]
) -> list[_T]:
    """Those of the receivers whose ring has something; empty after `timeout` seconds. A ring is a FrameReader or a
    PacketRing, or None where the receiver is closed; nothing else is known of receivers here.

    Sleeps with futex_waitv, or on the poller's epoll: its ``fileno()`` gives that, ``number`` tells it from others, and
    ``add(receiver, ring)`` is called for receivers that are new to it, until it says that it has the publisher's
    eventfd. It waits for no publisher: until one answers, the connection itself is in the epoll.
    """
