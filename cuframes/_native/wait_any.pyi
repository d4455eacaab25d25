from typing import Any, Protocol

from cuframes.packets import PacketReader
from cuframes.subscriber import Subscriber

class Poller(Protocol):
    number: int
    def fileno(self) -> int: ...
    def add(self, receiver: Subscriber | PacketReader, ring: Any) -> bool: ...

def allow_waitv(allowed: bool) -> None: ...
def wait_rings(
    receivers: list[Subscriber | PacketReader], timeout: float | None, poller: Poller
) -> list[Subscriber | PacketReader]: ...
