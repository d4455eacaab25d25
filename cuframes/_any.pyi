from cuframes._core import FrameReader
from cuframes._packets import PacketRing

MOST: int

def wait_rings(rings: list[FrameReader | PacketRing], timeout: float | None) -> list[int] | None: ...
