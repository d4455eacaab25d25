from typing import Protocol, TypeVar

from cuframes._native.ring_end import RingEnd

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

class Poller(Protocol[T_contra]):
    number: int
    def fileno(self) -> int: ...
    def add(self, receiver: T_contra, ring: RingEnd) -> bool: ...

def allow_waitv(allowed: bool) -> None: ...
def wait_rings(
    receivers: list[T], rings: list[RingEnd | None], timeout: float | None, poller: Poller[T]
) -> list[T]: ...
