"""Pixel formats: which planes a frame has, and where they lie in its memory.

A format has FFmpeg's ``pix_fmt`` name, if FFmpeg has the format. The rows of a plane are padded to a pitch. The planes
of a frame follow each other without a gap.
"""

import operator
from typing import Any, NamedTuple

__all__ = ["FORMATS", "FrameShape", "PixelFormat", "PlaneShape", "pixel_format", "whole_number"]


class PlaneShape(NamedTuple):
    """Geometry of one plane. ``offset`` and ``strides`` are in bytes, ``shape`` is in elements."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class PixelFormat(NamedTuple):
    """A pixel format.

    Attributes
    ----------
    name : str
    code : int
        The format's number in ``frame_meta.format``.
    itemsize : int
        Bytes per sample.
    planes : tuple
        (horizontal divisor, vertical divisor, components per element) of each plane.
    bits_per_pixel : int
        Average over the planes, without padding.
    """

    name: str
    code: int
    itemsize: int
    planes: tuple[tuple[int, int, int], ...]
    bits_per_pixel: int

    @property
    def divisors(self) -> tuple[int, int]:
        """Width and height of a frame must be multiples of these."""
        # A packed 4:2:2 element holds half a pixel pair, so its width must be even although nothing is divided.
        wide = 2 if self.name in ("uyvy422", "yuyv422") else max(p[0] for p in self.planes)
        return wide, max(p[1] for p in self.planes)


FORMATS = {
    f.name: f
    for f in (
        PixelFormat("nv12", 0, 1, ((1, 1, 1), (2, 2, 2)), 12),
        PixelFormat("p010", 1, 2, ((1, 1, 1), (2, 2, 2)), 24),
        PixelFormat("i420", 2, 1, ((1, 1, 1), (2, 2, 1), (2, 2, 1)), 12),
        PixelFormat("gray8", 3, 1, ((1, 1, 1),), 8),
        PixelFormat("gray16", 4, 2, ((1, 1, 1),), 16),
        PixelFormat("rgb24", 5, 1, ((1, 1, 3),), 24),
        PixelFormat("bgr24", 6, 1, ((1, 1, 3),), 24),
        PixelFormat("rgba", 7, 1, ((1, 1, 4),), 32),
        PixelFormat("bgra", 8, 1, ((1, 1, 4),), 32),
        PixelFormat("uyvy422", 9, 1, ((1, 1, 2),), 16),
        PixelFormat("yuyv422", 10, 1, ((1, 1, 2),), 16),
        PixelFormat("rgbp", 11, 1, ((1, 1, 1), (1, 1, 1), (1, 1, 1)), 24),
    )
}

# Other names for the same formats; the right-hand side is the name used here.
ALIASES = {"yuv420p": "i420", "gray": "gray8", "gray16le": "gray16", "p010le": "p010"}
_BY_CODE = {f.code: f for f in FORMATS.values()}

MAX_SIDE = 32768


def pixel_format(name: str | int) -> PixelFormat:
    """Look up a format by name (or by its code in a segment).

    Raises
    ------
    ValueError
        There is no such format; the message lists all formats.
    """
    found = _BY_CODE.get(name) if isinstance(name, int) else FORMATS.get(ALIASES.get(name, name))
    if found is None:
        raise ValueError(f"unknown pixel format {name!r}; the known formats are {', '.join(FORMATS)}")
    return found


def whole_number(value: Any, what: str, least: int | None = None, most: int | None = None) -> int:
    """Convert a caller's size or count to an int. Any integer type is accepted, for example NumPy's.

    Raises
    ------
    TypeError
        The value is not an integer, or is a bool, which must be a mistake.
    ValueError
        The value is outside the limits.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, not {value!r}")
    if (least is not None and number < least) or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{what} must be {limits}, not {number}")
    return number


class FrameShape:
    """The memory layout of a frame: its planes, and the frame as one array.

    Parameters
    ----------
    format : PixelFormat
    width, height : int
        Pixels.
    pitch_y, pitch_uv : int, optional
        Bytes from one row to the next in the first plane, and in the other planes. Default: the bytes of a row, rounded
        up to `align`. The chroma plane of a semi-planar format gets the pitch of luma, so that the frame is one matrix.
    align : int
        Bytes.

    Attributes
    ----------
    planes : tuple of PlaneShape
    nbytes : int
        Bytes of the frame with padding.
    array_shape : tuple of int
        The shape of the whole frame as one array without padding, as in OpenCV and FFmpeg: (height x 3/2, width) for
        4:2:0, (3, height, width) for planar RGB, otherwise the shape of the single plane.
    matrix : PlaneShape or None
        The frame's memory as one array of that shape; None if the pitches do not allow it.
    """

    def __init__(
        self,
        format: PixelFormat,
        width: int,
        height: int,
        pitch_y: int | None = None,
        pitch_uv: int | None = None,
        align: int = 64,
    ) -> None:
        width, height = whole_number(width, "width"), whole_number(height, "height")
        for value, what, multiple in ((width, "width", format.divisors[0]), (height, "height", format.divisors[1])):
            if not 0 < value <= MAX_SIDE or value % multiple:
                even = "" if multiple == 1 else f" and a multiple of {multiple} for {format.name}"
                raise ValueError(f"{what} must be 1 to {MAX_SIDE}{even}, not {value}")
        self.format = format
        self.width = width
        self.height = height
        rows = [(width // wide * parts * format.itemsize, height // high) for wide, high, parts in format.planes]
        semi_planar = format.planes[1:] == ((2, 2, 2),)
        self.pitch_y = pitch_y or _align(rows[0][0], align)
        default_uv = self.pitch_y if semi_planar or len(rows) == 1 else _align(rows[-1][0], align)
        self.pitch_uv = pitch_uv or default_uv
        if self.pitch_y < rows[0][0] or (len(rows) > 1 and self.pitch_uv < rows[1][0]):
            raise ValueError(f"a pitch of {self.pitch_y} and {self.pitch_uv} bytes is too small for width {width}")
        if self.pitch_y % format.itemsize or self.pitch_uv % format.itemsize:
            raise ValueError(f"a pitch of {format.name} must be a multiple of {format.itemsize} bytes")
        planes = []
        offset = 0
        for index, ((_, row_count), (wide, _, parts)) in enumerate(zip(rows, format.planes, strict=True)):
            pitch = self.pitch_uv if index else self.pitch_y
            planes.append(PlaneShape(offset, *_array(row_count, width // wide, parts, pitch, format.itemsize)))
            offset += pitch * row_count
        self.planes = tuple(planes)
        self.nbytes = offset
        self.matrix = None
        if len(planes) == 1:
            self.array_shape = planes[0].shape
            self.matrix = planes[0]
        elif format.name == "rgbp":
            self.array_shape = (3, height, width)
            if self.pitch_y == self.pitch_uv:
                self.matrix = PlaneShape(0, self.array_shape, (self.pitch_y * height, self.pitch_y, format.itemsize))
        else:
            self.array_shape = (height * 3 // 2, width)
            whole = semi_planar or self.pitch_y == width == 2 * self.pitch_uv
            if whole and (self.pitch_y == self.pitch_uv or not semi_planar):
                self.matrix = PlaneShape(0, self.array_shape, (self.pitch_y, format.itemsize))

    @property
    def meta(self) -> tuple[int, int, int, int, int, int, int]:
        """The values of ``frame_meta``, in its order."""
        fmt = self.format
        return (fmt.code, self.width, self.height, self.pitch_y, self.pitch_uv, fmt.bits_per_pixel, self.nbytes)

    def __repr__(self) -> str:
        return f"<FrameShape {self.format.name} {self.width}x{self.height}, {self.nbytes} bytes>"


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def _array(rows: int, columns: int, parts: int, pitch: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if parts == 1:
        return (rows, columns), (pitch, itemsize)
    return (rows, columns, parts), (pitch, parts * itemsize, itemsize)
