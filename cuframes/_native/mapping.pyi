from typing import Any

from cuframes._native.cuda import Device

HEADER_BYTES: int
FRAME_MAGIC: int
DROP_OLDEST: int
STRICT_WAIT: int
PINS: int
FUTEX: int
HOST_MEMORY: int
VMM_MEMORY: int
OWNER_LOCK: int
PASS_FD: int

class Mapping:
    size: int
    writable: bool
    def __init__(
        self, fd: int, size: int, *, writable: bool = False, populate: bool = False, guarded: bool = True
    ) -> None: ...

def monotonic_ns() -> int: ...
def layout_rows() -> list[tuple[str, str | None, int, int]]: ...
def describe(source: Mapping | bytes) -> dict[str, Any]: ...
def meta_bytes(mapping: Mapping) -> bytes: ...
def handles(mapping: Mapping, ring_size: int) -> list[tuple[bytes, int, bytes]]: ...

class Slots:
    count: int
    device: Device | None
    def __init__(
        self,
        addresses: list[int],
        owner: Any,
        *,
        device: Device | None = None,
        events: list[int] | None = None,
        ring_event: int = 0,
    ) -> None: ...
    @property
    def addresses(self) -> list[int]: ...
    @staticmethod
    def of_mapping(mapping: Mapping, stride: int, count: int) -> Slots: ...
