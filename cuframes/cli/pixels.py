"""Pixels for the commands: save a picture, stamp a number into a frame and read it back."""

from pathlib import Path
from typing import Any

import numpy

from cuframes.formats import FrameShape, pixel_format
from cuframes.host.files import naming
from cuframes.media.pictures import convert, picture, rows
from cuframes.memory.driver import upload_columns

__all__ = ["check_stampable", "convert", "read_stamp", "save_picture", "stamp"]

STAMP_BYTES = 8


def save_picture(frame: Any, path: Path) -> None:
    """Save a frame as PNG or JPEG, upright, by the name's suffix.

    Raises
    ------
    ValueError
        The suffix is not .png, .jpg or .jpeg.
    """
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"a picture must be a .png or .jpg file, not {path.name!r}")
    encoded = picture(frame, kind)
    with naming(path):
        path.write_bytes(encoded)


def check_stampable(format: str, width: int, height: int) -> None:
    """Raise ValueError when a frame is too narrow for a stamp in every row."""
    shape = FrameShape(pixel_format(format), width, height)
    for plane in shape.planes:
        if plane.shape[1] * plane.strides[1] < STAMP_BYTES:
            raise ValueError(f"a stamp needs {STAMP_BYTES} bytes in every row; {format} at width {width} has fewer")


def stamp(planes: Any, number: int) -> None:
    """Write a number into the first 8 bytes of every row, so that a torn frame is detected."""
    raw = numpy.frombuffer(number.to_bytes(STAMP_BYTES, "little"), numpy.uint8)
    for plane in planes:
        if isinstance(plane, numpy.ndarray) or plane.device == "cpu":
            rows(plane)[:, :STAMP_BYTES] = raw
        else:
            upload_columns(plane, numpy.tile(raw, (plane.shape[0], 1)))


def read_stamp(frame: Any) -> int | None:
    """The number stamped into a frame, or None if its rows have different numbers: the frame is torn."""
    found = None
    for plane in frame.planes:
        numbers = rows(plane)[:, :STAMP_BYTES].copy().view("<u8")
        if found is None:
            found = numbers[0, 0]
        if not (numbers == found).all():
            return None
    return None if found is None else int(found)
