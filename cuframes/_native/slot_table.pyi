from collections.abc import Callable
from typing import Any

from cuframes._native.cuda import Device
from cuframes._native.mapping import Mapping

class SlotTable:
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
        staging: Callable[[], tuple[int, int]] | None = None,
    ) -> None: ...
    @property
    def addresses(self) -> list[int]: ...
    @staticmethod
    def of_mapping(mapping: Mapping, stride: int, count: int) -> SlotTable: ...
