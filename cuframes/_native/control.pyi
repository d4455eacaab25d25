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

def layout_rows() -> list[tuple[str, str | None, int, int]]: ...
def describe(source: Mapping | bytes) -> dict[str, Any]: ...
def meta_bytes(mapping: Mapping) -> bytes: ...
def describe_meta(meta: bytes) -> tuple[int, int, int, int, int, int, bytes]: ...
def handles(mapping: Mapping, ring_size: int) -> list[tuple[bytes, int, bytes]]: ...
