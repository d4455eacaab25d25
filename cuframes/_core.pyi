from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import RingEnd
from cuframes._native.slot_table import SlotTable

T = TypeVar("T")

class _Connection(Protocol):
    def fileno(self) -> int: ...
    @property
    def event_fd(self) -> int: ...
    def read_messages(self) -> bool: ...
    def close_event(self) -> None: ...
    def forget(self) -> None: ...

BLOCK: int
SPIN: int
PREDICT: int

class FrameWriter(RingEnd):
    def __init__(
        self,
        header: Mapping,
        slots: SlotTable,
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
    def remove(self, bit: int) -> None: ...
    def feed(self, bit: int, fd: int) -> None: ...
    def fail(self, reason: str) -> None: ...
    @property
    def counters(self) -> tuple[int, int, int]: ...

class FrameReader(RingEnd):
    epoch: int
    connection: Any
    layout: Any
    def __init__(
        self,
        header: Mapping,
        slots: SlotTable,
        connection: _Connection,
        layout: Any,
        *,
        ring: tuple[int, int, bool, int, bool, bool, bool],
        position: tuple[int, int | None],
        stream: Any = None,
    ) -> None: ...
    def given_back(self) -> None: ...
    def read_messages(self) -> bool: ...
    def inside(self, function: Callable[[], T]) -> T: ...
    def set_event(self, fd: int) -> None: ...
    @property
    def abandoned(self) -> bool: ...
    @property
    def over(self) -> bool: ...
    @property
    def counters(self) -> tuple[int, int, int, int, int]: ...

class Owner: ...
class Hold(Owner): ...
