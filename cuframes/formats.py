"""Pixel formats: which planes a frame has, and where they lie in its memory.

A format has FFmpeg's ``pix_fmt`` name, if FFmpeg has the format. GStreamer's and V4L2's names of the same bytes are
accepted too. The rows of a plane are padded to a pitch. The planes of a frame follow each other without a gap.
"""

import difflib
import math
import operator
from typing import Any, NamedTuple

__all__ = [
    "ALIASES",
    "FORMATS",
    "FULL_RANGE",
    "FrameShape",
    "PixelFormat",
    "PlaneShape",
    "pixel_format",
    "whole_number",
]


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
    packed_422 : bool
        Two pixels share their chroma within the only plane.
    """

    name: str
    code: int
    itemsize: int
    planes: tuple[tuple[int, int, int], ...]
    packed_422: bool = False

    @property
    def divisors(self) -> tuple[int, int]:
        """Width and height of a frame must be multiples of these."""
        wide = 2 if self.packed_422 else max(p[0] for p in self.planes)
        return wide, max(p[1] for p in self.planes)

    @property
    def bits_per_pixel(self) -> int:
        """Averaged over the planes, without padding, and rounded down (v210 has 21 1/3)."""
        return int(sum(8 * self.itemsize * parts / (wide * high) for wide, high, parts in self.planes))


_ONE = (1, 1, 1)
_420 = (_ONE, (2, 2, 1), (2, 2, 1))
_422 = (_ONE, (2, 1, 1), (2, 1, 1))
_440 = (_ONE, (1, 2, 1), (1, 2, 1))
_444 = (_ONE, _ONE, _ONE)
_4444 = (*_444, _ONE)
_SEMI_420 = (_ONE, (2, 2, 2))
_SEMI_422 = (_ONE, (2, 1, 2))
_SEMI_444 = (_ONE, (1, 1, 2))

# The numbers are in other programs' segments: none ever changes its meaning, and new ones are added at the end.
FORMATS = {
    f.name: f
    for f in (
        PixelFormat("nv12", 0, 1, _SEMI_420),
        PixelFormat("p010", 1, 2, _SEMI_420),
        PixelFormat("i420", 2, 1, _420),
        PixelFormat("gray8", 3, 1, (_ONE,)),
        PixelFormat("gray16", 4, 2, (_ONE,)),
        PixelFormat("rgb24", 5, 1, ((1, 1, 3),)),
        PixelFormat("bgr24", 6, 1, ((1, 1, 3),)),
        PixelFormat("rgba", 7, 1, ((1, 1, 4),)),
        PixelFormat("bgra", 8, 1, ((1, 1, 4),)),
        PixelFormat("uyvy422", 9, 1, ((1, 1, 2),), packed_422=True),
        PixelFormat("yuyv422", 10, 1, ((1, 1, 2),), packed_422=True),
        PixelFormat("rgbp", 11, 1, _444),
        PixelFormat("nv21", 12, 1, _SEMI_420),
        PixelFormat("nv16", 13, 1, _SEMI_422),
        PixelFormat("nv24", 14, 1, _SEMI_444),
        PixelFormat("p016le", 15, 2, _SEMI_420),
        PixelFormat("p210le", 16, 2, _SEMI_422),
        PixelFormat("yuv422p", 17, 1, _422),
        PixelFormat("yuv440p", 18, 1, _440),
        PixelFormat("yuv444p", 19, 1, _444),
        PixelFormat("yuv420p10le", 20, 2, _420),
        PixelFormat("yuv422p10le", 21, 2, _422),
        PixelFormat("yuv444p10le", 22, 2, _444),
        PixelFormat("yuv420p12le", 23, 2, _420),
        PixelFormat("yuv422p12le", 24, 2, _422),
        PixelFormat("yuv444p12le", 25, 2, _444),
        PixelFormat("yuv444p16le", 26, 2, _444),
        PixelFormat("yuva444p10le", 27, 2, _4444),
        PixelFormat("yuva444p12le", 28, 2, _4444),
        PixelFormat("gbrp", 29, 1, _444),
        PixelFormat("gbrp10le", 30, 2, _444),
        PixelFormat("gbrp12le", 31, 2, _444),
        PixelFormat("gbrap", 32, 1, _4444),
        PixelFormat("gray10le", 33, 2, (_ONE,)),
        PixelFormat("gray12le", 34, 2, (_ONE,)),
        PixelFormat("rgb0", 35, 1, ((1, 1, 4),)),
        PixelFormat("bgr0", 36, 1, ((1, 1, 4),)),
        PixelFormat("0rgb", 37, 1, ((1, 1, 4),)),
        PixelFormat("0bgr", 38, 1, ((1, 1, 4),)),
        PixelFormat("argb", 39, 1, ((1, 1, 4),)),
        PixelFormat("abgr", 40, 1, ((1, 1, 4),)),
        PixelFormat("yvyu422", 41, 1, ((1, 1, 2),), packed_422=True),
        # Rows of whole blocks, 48 pixels in 128 bytes. A sample is 10 bits of a 32-bit word, so no integer type has it;
        # the bytes are what capture cards, files and PyAV's packets give. Words: numpy.asarray(plane).view("<u4").
        PixelFormat("v210", 42, 1, ((48, 1, 128),), packed_422=True),
    )
}

# FFmpeg's names of these formats in full range (all values from 0 to 255, as JPEG decoders and some cameras give). The
# samples lie in the same places. A frame does not carry its range: a subscriber has to know it from elsewhere.
FULL_RANGE = {"yuvj420p": "i420", "yuvj422p": "yuv422p", "yuvj440p": "yuv440p", "yuvj444p": "yuv444p"}
_FFMPEG = {"yuv420p": "i420", "gray": "gray8", "gray16le": "gray16", "p010le": "p010"}
_GSTREAMER = {
    "I420": "i420",
    "Y42B": "yuv422p",
    "Y444": "yuv444p",
    "I420_10LE": "yuv420p10le",
    "I422_10LE": "yuv422p10le",
    "Y444_10LE": "yuv444p10le",
    "I420_12LE": "yuv420p12le",
    "I422_12LE": "yuv422p12le",
    "Y444_12LE": "yuv444p12le",
    "Y444_16LE": "yuv444p16le",
    "A444_10LE": "yuva444p10le",
    "A444_12LE": "yuva444p12le",
    "NV12": "nv12",
    "NV21": "nv21",
    "NV16": "nv16",
    "NV24": "nv24",
    "P010_10LE": "p010",
    "P016_LE": "p016le",
    "UYVY": "uyvy422",
    "YUY2": "yuyv422",
    "YVYU": "yvyu422",
    "GRAY8": "gray8",
    "GRAY10_LE16": "gray10le",
    "GRAY16_LE": "gray16",
    "RGB": "rgb24",
    "BGR": "bgr24",
    "RGBA": "rgba",
    "BGRA": "bgra",
    "ARGB": "argb",
    "ABGR": "abgr",
    "RGBx": "rgb0",
    "BGRx": "bgr0",
    "xRGB": "0rgb",
    "xBGR": "0bgr",
    "RGBP": "rgbp",
    "GBR": "gbrp",
    "GBR_10LE": "gbrp10le",
    "GBR_12LE": "gbrp12le",
    "GBRA": "gbrap",
}
# Where V4L2's four characters differ from GStreamer's name. Spaces at their end are left out. Those of 32-bit RGB
# (XR24, which is DRM's name too) name a word, so they read backwards.
_V4L2 = {
    "YU12": "i420",
    "422P": "yuv422p",
    "YUYV": "yuyv422",
    "P010": "p010",
    "GREY": "gray8",
    "Y10": "gray10le",
    "Y12": "gray12le",
    "Y16": "gray16",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "AB24": "rgba",
    "AR24": "bgra",
    "BA24": "argb",
    "RA24": "abgr",
    "XB24": "rgb0",
    "XR24": "bgr0",
    "BX24": "0rgb",
    "RX24": "0bgr",
}
# FFmpeg takes a name without its byte order too, and means the machine's.
_NATIVE = {name.removesuffix("le"): name for name in FORMATS if name.endswith("le")}

# Other names for the same formats; the right-hand side is the name used here.
ALIASES = _FFMPEG | _NATIVE | FULL_RANGE | _GSTREAMER | _V4L2
_BY_CODE = {f.code: f for f in FORMATS.values()}
_BY_NAME = FORMATS | {alias: FORMATS[name] for alias, name in ALIASES.items()}
# Names that look like one of ours, and have the planes or components in another order.
_NOT_OURS = {"YV12": "i420", "NV61": "nv16", "NV42": "nv24", "VYUY": "uyvy422"}

MAX_SIDE = 32768


def pixel_format(name: str | int) -> PixelFormat:
    """Look up a format by FFmpeg's, GStreamer's or V4L2's name (or by its code in a segment).

    Raises
    ------
    ValueError
        There is no such format; the message lists similar names.
    TypeError
        `name` is neither a str nor an integer.
    """
    if not isinstance(name, str):
        code = whole_number(name, "a pixel format that is not a name")
        if code not in _BY_CODE:
            raise ValueError(f"unknown pixel format {code}; a newer cuframes may know it, update this one")
        return _BY_CODE[code]
    found = _BY_NAME.get(name) or _BY_NAME.get(name.rstrip(" "))  # V4L2 has "Y16 ", since it needs four characters
    if found is None:
        raise ValueError(f"unknown pixel format {name!r}{_similar(name)}; list(cuframes.formats.FORMATS) has them all")
    return found


def _similar(name: str) -> str:
    """What the caller may have meant, for an error message."""
    if name in _NOT_OURS:
        return f", which is {_NOT_OURS[name]} with U and V exchanged: swap them and use that"
    # Without regard to case, which is all that is wrong with "Nv12".
    known: dict[str, str] = {}
    for candidate in _BY_NAME:
        known.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(name.lower(), known, n=4)
    return f"; close to it are {', '.join(known[match] for match in close)}" if close else ""


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
        up to `align`. Planes whose rows are as long as the first plane's get its pitch, so that the frame is one array.
    align : int
        Bytes.

    Attributes
    ----------
    planes : tuple of PlaneShape
    nbytes : int
        Bytes of the frame with padding.
    array_shape : tuple of int
        The shape of the whole frame as one array without padding, as in OpenCV and FFmpeg: the shape of a single plane;
        (planes, height, width) if the planes are equal (planar RGB, 4:4:4); otherwise the planes below one another in
        rows of `width` samples: (height x 3/2, width) for 4:2:0, (height x 2, width) for 4:2:2.
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
                remedy = "; crop or scale the picture, or use yuv444p or rgb24, say" if value % multiple else ""
                raise ValueError(f"{what} must be 1 to {MAX_SIDE}{even}, not {value}{remedy}")
        self.format = format
        self.width = width
        self.height = height
        # A row ends with a whole element; only v210's can go on beyond the picture.
        shapes = [_shape(-(-width // wide), height // high, parts) for wide, high, parts in format.planes]
        row_bytes = [math.prod(shape[1:]) * format.itemsize for shape in shapes]
        alike = row_bytes.count(row_bytes[0]) == len(row_bytes)
        self.pitch_y = pitch_y or _align(row_bytes[0], align)
        self.pitch_uv = pitch_uv or (self.pitch_y if alike else _align(row_bytes[-1], align))
        pitches = [self.pitch_y] + [self.pitch_uv] * (len(shapes) - 1)
        if any(pitch < least for pitch, least in zip(pitches, row_bytes, strict=True)):
            raise ValueError(f"a pitch of {self.pitch_y} and {self.pitch_uv} bytes is too small for width {width}")
        if self.pitch_y % format.itemsize or self.pitch_uv % format.itemsize:
            raise ValueError(f"a pitch of {format.name} must be a multiple of {format.itemsize} bytes")
        planes = []
        offset = 0
        for shape, pitch in zip(shapes, pitches, strict=True):
            planes.append(PlaneShape(offset, shape, (pitch, *_strides(shape[1:], format.itemsize))))
            offset += pitch * shape[0]
        self.planes = tuple(planes)
        self.nbytes = offset
        self.matrix = None
        if len(planes) == 1:
            self.array_shape = shapes[0]
            self.matrix = planes[0]
            return
        samples = sum(math.prod(shape) for shape in shapes)
        equal = shapes.count(shapes[0]) == len(shapes)
        self.array_shape = (len(shapes), height, width) if equal else (samples // width, width)
        # One pitch serves all rows, or there is no padding at all.
        if pitches == row_bytes or (alike and self.pitch_y == self.pitch_uv):
            outer = (self.pitch_y * height,) if equal else ()
            self.matrix = PlaneShape(0, self.array_shape, (*outer, self.pitch_y, format.itemsize))

    @property
    def meta(self) -> tuple[int, int, int, int, int, int, int]:
        """The values of ``frame_meta``, in its order."""
        fmt = self.format
        return (fmt.code, self.width, self.height, self.pitch_y, self.pitch_uv, fmt.bits_per_pixel, self.nbytes)

    def __repr__(self) -> str:
        return f"<FrameShape {self.format.name} {self.width}x{self.height}, {self.nbytes} bytes>"


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def _shape(columns: int, rows: int, parts: int) -> tuple[int, ...]:
    if parts == 1:
        return (rows, columns)
    if parts > 4:  # a block of pixels, whose components are not whole samples
        return (rows, columns * parts)
    return (rows, columns, parts)


def _strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Of the elements of a row, which have no gaps."""
    return tuple(math.prod(shape[axis:]) * itemsize for axis in range(1, len(shape) + 1))
