from typing import Any, Protocol

from cuframes._cuda import Device

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

class _Connection(Protocol):
    def fileno(self) -> int: ...
    def heard(self) -> bool: ...
    def close(self) -> None: ...

class Mapping:
    size: int
    writable: bool
    def __init__(self, fd: int, size: int, *, writable: bool = False, populate: bool = False) -> None: ...

def monotonic_ns() -> int: ...
def layout_rows() -> list[tuple[str, str | None, int, int]]: ...
def describe(mapping: Mapping) -> dict[str, Any]: ...
def meta_bytes(mapping: Mapping) -> bytes: ...
def handles(mapping: Mapping) -> list[tuple[bytes, int, bytes]]: ...

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

class FrameWriter:
    def __init__(
        self,
        header: Mapping,
        slots: Slots,
        *,
        meta: tuple[int, int, int, int, int, int, int],
        policy: int,
        ext_flags: int,
        epoch: int,
        version: tuple[int, ...],
        pid: int,
        exports: tuple[Any, ...] | None = None,
    ) -> None: ...
    def join(self, name: bytes, pid: int) -> tuple[int, int, int] | None: ...
    def leave(self, bit: int) -> None: ...
    def feed(self, bit: int, fd: int) -> None: ...
    def close(self) -> None: ...
    @property
    def counters(self) -> tuple[int, int, int]: ...

class FrameReader:
    epoch: int
    def __init__(
        self,
        header: Mapping,
        slots: Slots,
        connection: _Connection,
        *,
        ring: tuple[int, int, bool, bool, bool, bool],
        position: tuple[int, int | None],
        stream: Any = None,
    ) -> None: ...
    def set_event(self, fd: int) -> None: ...
    def close(self) -> None: ...
    @property
    def counters(self) -> tuple[int, int, int, int, int]: ...

class Owner: ...
class Hold(Owner): ...
