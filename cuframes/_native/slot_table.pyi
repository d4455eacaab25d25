from collections.abc import Callable
from typing import Any, Self

from cuframes._native.cuda import Device
from cuframes._native.mapping import Mapping

class SlotTable:
    """The slots of a ring: one address per slot, and on a GPU one event per slot.

    Parameters
    ----------
    addresses : list of int
    owner
        An object that keeps the memory (and the events) alive.
    device : Device or None
        None for host memory.
    events : list of int
        The driver's event of each slot, for device memory.
    ring_event : int
        The event that is recorded for every frame, in any slot. Only for a publisher.
    staging : callable
        Called once, returns (address, bytes per slot) of pinned host memory for uploads. Only for a publisher.
    """

    count: int
    device: Device | None
    def __new__(
        cls,
        addresses: list[int],
        owner: Any,
        *,
        device: Device | None = None,
        events: list[int] | None = None,
        ring_event: int = 0,
        staging: Callable[[], tuple[int, int]] | None = None,
    ) -> Self: ...
    @property
    def addresses(self) -> list[int]:
        """The address of each slot."""
    @staticmethod
    def of_mapping(mapping: Mapping, stride: int, count: int) -> SlotTable:
        """A table of slots that follow each other in one mapping."""
