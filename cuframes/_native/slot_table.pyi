from collections.abc import Callable
from typing import Any, Self

from cuframes._native.cuda import Device
from cuframes._native.mapping import Mapping

class SlotTable:
    """Where the frames of a ring are: one address per slot, and on a GPU one event per slot.

    Parameters
    ----------
    addresses : list of int
    owner
        Whatever keeps the memory (and the events) there.
    device : Device or None
        None for host memory.
    events : list of int
        The driver's event of each slot, for device memory.
    ring_event : int
        The event that is recorded at every frame, whatever its slot; the publisher's side only.
    staging : callable
        Gives (address, bytes per slot) of pinned host memory for uploads, once; the publisher's side only.
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
        """Where each slot begins."""
    @staticmethod
    def of_mapping(mapping: Mapping, stride: int, count: int) -> SlotTable:
        """Slots that follow each other in one mapping."""
