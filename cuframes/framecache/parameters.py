"""The parameters of a slot, and which values are valid."""

import re
from typing import NamedTuple

from cuframes._native.slot import DEFAULT_DEPTH, MAX_SLOT_ID, MAX_SOURCE_TYPE, MIN_DEPTH, slot_size
from cuframes.formats import FORMATS, FrameShape, pixel_format, whole_number

__all__ = ["SlotParameters", "check_slot_id"]

# The codes of pixel formats in a slot's header. Code 0 is defined by the slot format, the others by this library. From
# 12 on they are the codes of a publisher's segment.
_FIRST = "uyvy422 yuyv422 nv12 p010 i420 gray8 gray16 rgb24 bgr24 rgba bgra rgbp".split()  # noqa: SIM905
CODES = {name: code for code, name in enumerate(_FIRST)} | {
    f.name: f.code for f in FORMATS.values() if f.code >= len(_FIRST)
}
NAMES = {code: name for name, code in CODES.items()}
REGISTRY = "registry.json"  # the service's list of slots, in the same directory
MAX_DEPTH = 4096
MAX_FPS_PART = 10_000_000

SLOT_ID = f"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_SLOT_ID - 1}}}"
_SLOT_ID = re.compile(SLOT_ID, re.ASCII)


def is_slot_id(name: str) -> bool:
    """Whether a file of this name can be a slot."""
    return bool(_SLOT_ID.fullmatch(name)) and name != REGISTRY


def check_slot_id(slot_id: str) -> str:
    """Return `slot_id`, or raise before it becomes part of a path.

    Raises
    ------
    ValueError
        It is not 1 to 63 characters of ``A-Z a-z 0-9 . _ -``, or begins with a dot, or is ``registry.json`` (the
        service's own file).
    """
    if not isinstance(slot_id, str):
        raise TypeError(f"slot_id must be a str, not {type(slot_id).__name__}")
    if not _SLOT_ID.fullmatch(slot_id):
        raise ValueError(
            f"slot_id must be 1 to {MAX_SLOT_ID} characters of A-Z a-z 0-9 . _ - and must not begin with a dot; it is "
            f"{slot_id!r}"
        )
    if slot_id == REGISTRY:
        raise ValueError(f"{REGISTRY!r} is reserved for the service; choose another slot_id")
    return slot_id


class SlotParameters(NamedTuple):
    """Parameters that a slot is created with. ``pixel_format`` is a name of ``cuframes.formats.FORMATS``;
    ``ring_depth`` is in frames.
    """

    slot_id: str
    width: int
    height: int
    fps_num: int
    fps_den: int
    pixel_format: str
    source_type: str = ""
    ring_depth: int = DEFAULT_DEPTH

    def checked(self) -> "SlotParameters":
        """Return a copy with the aliases of pixel formats resolved. Raises ValueError or TypeError for a value that is
        not valid.
        """
        check_slot_id(self.slot_id)
        format = pixel_format(self.pixel_format)
        shape = FrameShape(format, self.width, self.height, align=1)
        frame_size = shape.nbytes
        if frame_size >= 2**32:
            raise ValueError(f"a frame of {frame_size} bytes is too large: a slot stores the frame's size in 32 bits")
        ring_depth = whole_number(self.ring_depth, "ring_depth", MIN_DEPTH, MAX_DEPTH)
        fps_num = whole_number(self.fps_num, "fps_num", 1, MAX_FPS_PART)
        fps_den = whole_number(self.fps_den, "fps_den", 1, MAX_FPS_PART)
        if not isinstance(self.source_type, str) or "\0" in self.source_type:
            raise ValueError(f"source_type must be text without NUL, not {self.source_type!r}")
        if len(self.source_type.encode()) > MAX_SOURCE_TYPE:
            raise ValueError(f"source_type must be at most {MAX_SOURCE_TYPE} bytes of UTF-8, not {self.source_type!r}")
        return SlotParameters(
            self.slot_id, shape.width, shape.height, fps_num, fps_den, format.name, self.source_type, ring_depth
        )

    @property
    def frame_size(self) -> int:
        """Bytes of a frame."""
        return FrameShape(FORMATS[self.pixel_format], self.width, self.height, align=1).nbytes

    @property
    def size(self) -> int:
        """Bytes of the slot's file."""
        return slot_size(self.frame_size, self.ring_depth)
