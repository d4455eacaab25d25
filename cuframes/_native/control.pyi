from typing import Any

from cuframes._native.mapping import Mapping

HEADER_BYTES: int
FRAME_MAGIC: int
MIN_RING: int
MAX_RING: int
MAX_SUBSCRIBERS: int
MAX_KEY: int
MAX_NAME: int
DROP_OLDEST: int
STRICT_WAIT: int
PINS: int
FUTEX: int
HOST_MEMORY: int
VMM_MEMORY: int
OWNER_LOCK: int
PASS_FD: int

def layout_rows() -> list[tuple[str, str | None, int, int]]:
    """(type, field or None, offset, size) of every structure in shm.h and its fields, as the compiler laid them out."""

def describe(source: Mapping | bytes) -> dict[str, Any]:
    """A snapshot of a control segment as a dict, for reports. Only reads the segment, and needs no place in the ring.

    `source` is a :class:`Mapping`, or the first bytes of a segment. (Reading instead of mapping is for segments that
    may be truncated at any time.) The values are not checked: a caller that depends on one must check it.

    Raises
    ------
    SegmentTruncated
        The mapped segment was truncated.
    """

def meta_bytes(mapping: Mapping) -> bytes:
    """The bytes of ``frame_meta``, in the form in which the handshake sends them."""

def describe_meta(meta: bytes) -> tuple[int, int, int, int, int, int, bytes, tuple[int, ...]]:
    """(format, width, height, pitch_y, pitch_uv, bytes of a frame, UUID of the GPU, values of the presentation) of
    ``frame_meta``, not checked.
    """

def handles(mapping: Mapping, ring_size: int) -> list[tuple[bytes, int, bytes]]:
    """What a version 3 subscriber opens for each slot: (memory handle, offset in that memory, event handle).

    The values are not checked. `ring_size` comes from the handshake, since the segment may contain any value.
    """
