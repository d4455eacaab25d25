from typing import Any, Protocol

from cuframes._mapped import Mapping, Slots

class _Connection(Protocol):
    def fileno(self) -> int: ...
    def heard(self) -> bool: ...
    def close(self) -> None: ...

BLOCK: int
SPIN: int
PREDICT: int

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
        ring: tuple[int, int, bool, int, bool, bool, bool],
        position: tuple[int, int | None],
        stream: Any = None,
    ) -> None: ...
    def set_event(self, fd: int) -> None: ...
    def given_back(self) -> None: ...
    def close(self) -> None: ...
    @property
    def counters(self) -> tuple[int, int, int, int, int]: ...

class Owner: ...
class Hold(Owner): ...
