from typing import Any

from cuframes._native.mapping import Mapping

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

def layout_rows() -> list[tuple[str, str | None, int, int]]:
    """(type, field or None, offset, size) of everything in shm.h, as the compiler laid it out."""

def describe(source: Mapping | bytes) -> dict[str, Any]:
    """A snapshot of a control segment as a dict, for reports. Reads only; needs no place in the ring.

    `source` is a :class:`Mapping`, or the first bytes of a segment that may be cut off at any time: those are read, not
    mapped. Values are as found: a caller that depends on one checks it.

    Raises
    ------
    SegmentTruncated
        The mapped segment was cut off while it was looked at, or before.
    """

def meta_bytes(mapping: Mapping) -> bytes:
    """The 64 bytes of frame_meta, as the handshake sends them."""

def handles(mapping: Mapping, ring_size: int) -> list[tuple[bytes, int, bytes]]:
    """What a version 3 subscriber opens: (memory handle, offset in that memory, event handle) of each slot.

    Values are as found. How many there are is taken from the handshake: what the segment says may be anything.
    """
