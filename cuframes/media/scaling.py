"""Conversion of PyAV's frames to another size and pixel format, with the right colours.

FFmpeg converts. It is always told the matrix and the range of both sides, and what comes out says what it is. A range
changes only if the target asks for it: a full-range format (``yuvj420p``), RGB, or gray, which are full range.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from cuframes.color import CODES, NAMES, Color, is_gray, is_rgb
from cuframes.formats import FULL_RANGE, pixel_format

__all__ = ["color_of_video", "converted", "ffmpeg_format", "reformat", "tag"]

# FFmpeg has v210 as a codec, which takes and gives these samples.
FFMPEG_NAMES = {
    "i420": "yuv420p",
    "gray8": "gray",
    "gray16": "gray16le",
    "p010": "p010le",
    "rgbp": "gbrp",
    "v210": "yuv422p10le",
}
VECTOR = 128  # pixels; rows of a multiple of it, and of half of it, are whole vectors of 64 bytes
# The matrices that FFmpeg's scaler has; for any other it is told the one that players assume.
SCALER = {
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 5,
    "smpte240m": 7,
    "bt2020nc": 9,
    "bt2020c": 9,
}
FILTER = {1: "bt709", 4: "fcc", 5: "smpte170m", 7: "smpte240m", 9: "bt2020"}  # the same, for FFmpeg's filter
UNSPECIFIED = 2
BILINEAR = 2
EXACT = BILINEAR | 0x40000  # with SWS_ACCURATE_RND (with SWS_FULL_CHR_H_INP, 10 bits come out wrong)
ATTRIBUTES = {"range": "color_range", "matrix": "colorspace", "primaries": "color_primaries", "transfer": "color_trc"}


def ffmpeg_format(name: str) -> str:
    """FFmpeg's name of a pixel format's samples; the format may be given by any of its names."""
    if name in FULL_RANGE:
        return name
    ours = pixel_format(name).name
    return FFMPEG_NAMES.get(ours, ours)


def color_of_video(video: Any) -> Color:
    """What a PyAV frame, or a decoder's context, says about its colours. (Frames of older versions of PyAV say only
    range and matrix.)
    """
    found = (getattr(video, attribute, UNSPECIFIED) for attribute in ATTRIBUTES.values())
    return Color(*(NAMES[what].get(code) for what, code in zip(ATTRIBUTES, found, strict=True)))


def tag(video: Any, color: Color) -> None:
    """Write colours into a PyAV frame."""
    for what, name in color._asdict().items():
        code = CODES[what][name] if name else 0 if what == "range" else UNSPECIFIED
        if hasattr(video, ATTRIBUTES[what]):
            setattr(video, ATTRIBUTES[what], code)


def converted(color: Color, was: str, width: int, height: int, format: str) -> Color:
    """The colours of a picture after its conversion.

    Parameters
    ----------
    color : Color
        What was said about it before.
    was : str
        The pixel format before.
    width, height : int
        Its size before.
    format : str
        The pixel format after.
    """
    before = color.assumed(width, height, was)
    if is_rgb(format):
        return before._replace(range="pc", matrix="gbr")
    matrix = color.matrix if color.matrix != "gbr" else None
    matrix = matrix or Color().assumed(width, height, "nv12").matrix
    if is_gray(format) or format in FULL_RANGE or is_full(was):
        return before._replace(range="pc", matrix=matrix)
    return before._replace(range="tv" if is_rgb(was) else before.range, matrix=matrix)


def is_full(format: str) -> bool:
    """Whether all samples of this format are full range, whatever is said: FFmpeg takes them so."""
    return is_gray(format) or format.startswith("yuvj")


def reformat(video: Any, width: int, height: int, format: str, to: Color | None = None) -> Any:
    """A PyAV frame in another size or format.

    FFmpeg writes whole vectors, also at the end of a row, where they can reach into the next one. The next row follows
    and is then right, unless another thread began with it: its first pixels are lost. So one thread does all rows
    unless they end with a whole vector.

    Parameters
    ----------
    video : av.VideoFrame
        Is not changed. It is returned if there is nothing to convert.
    format : str
        FFmpeg's name.
    to : Color, optional
        Range and matrix of the result, as far as the format leaves a choice; default: see :func:`converted`.
    """
    was = video.format.name
    said = color_of_video(video)
    before = said.assumed(video.width, video.height, was)
    after = converted(said, was, video.width, video.height, format)
    if to is not None and not is_rgb(format):
        after = after._replace(matrix=to.matrix if to.matrix in SCALER else after.matrix)
        if not is_full(format):
            after = after._replace(range=to.range or after.range)
    if (was, video.width, video.height) == (format, width, height) and before[:2] == after[:2]:
        return video
    source_range = "pc" if is_full(was) else before.range
    # A side that is RGB has no matrix of its own.
    target = SCALER.get(after.matrix or "") or SCALER.get(before.matrix or "") or _usual(width, height)
    source = SCALER.get(before.matrix or "") or target
    if is_rgb(format):
        target = source
    new = _scaled(video, (width, height, format), (source, target), (source_range, after.range))
    if new is video:  # FFmpeg found nothing to do
        return video
    tag(new, after if said.primaries or said.transfer else after._replace(primaries=None, transfer=None))
    return new


def _usual(width: int, height: int) -> int:
    return SCALER[Color().assumed(width, height).matrix or ""]


def _scaled(
    video: Any, shape: tuple[int, int, str], matrices: tuple[int, int], ranges: tuple[str | None, str | None]
) -> Any:
    width, height, format = shape
    source, target = matrices
    if not _honours_colors():
        return _filtered(video, shape, matrices, ranges)
    threads = {} if width % VECTOR == 0 else _one_thread()
    with _reformatter((video.format.name, video.width, video.height, *shape, matrices, ranges)) as reformatter:
        return reformatter.reformat(
            video,
            width,
            height,
            format,
            src_colorspace=source,
            dst_colorspace=target,
            src_color_range=CODES["range"][ranges[0] or "tv"],
            dst_color_range=CODES["range"][ranges[1] or "tv"],
            # From matrix to matrix FFmpeg goes by way of RGB, and rounding adds up.
            interpolation=BILINEAR if source == target else EXACT,
            **threads,
        )


# Reformatters that are not in use, by what they converted last. Setting one up takes longer than a small conversion.
_idle: dict[tuple[Any, ...], Any] = {}
MAX_IDLE = 8


@contextlib.contextmanager
def _reformatter(what: tuple[Any, ...]) -> Iterator[Any]:
    """A reformatter that nobody else uses meanwhile."""
    reformatter = _idle.pop(what, None) or VideoReformatter()
    yield reformatter
    _idle[what] = reformatter
    with contextlib.suppress(StopIteration, RuntimeError):  # another thread may take them at the same time
        while len(_idle) > MAX_IDLE:
            _idle.pop(next(iter(_idle)), None)


# They have threads, which a forked child does not have: to end them there would wait for ever.
os.register_at_fork(before=_idle.clear)


def _filtered(
    video: Any, shape: tuple[int, int, str], matrices: tuple[int, int], ranges: tuple[str | None, str | None]
) -> Any:
    """The same by FFmpeg's filter, for versions of PyAV whose own conversion does not do as it is told."""
    graph = av.filter.Graph()
    begin = graph.add_buffer(
        width=video.width,
        height=video.height,
        format=av.VideoFormat(video.format.name),
        time_base=video.time_base or Fraction(1),
    )
    colors = ":".join(
        f"{side}_color_matrix={FILTER[matrix]}:{side}_range={range_}"
        for side, matrix, range_ in zip(("in", "out"), matrices, ranges, strict=True)
    )
    flags = "bilinear" if matrices[0] == matrices[1] else "bilinear+accurate_rnd"
    scale = graph.add("scale", f"{shape[0]}:{shape[1]}:flags={flags}:{colors}")
    pixels = graph.add("format", f"pix_fmts={shape[2]}")
    end = graph.add("buffersink")
    for one, next_one in ((begin, scale), (scale, pixels), (pixels, end)):
        one.link_to(next_one)
    graph.configure()
    graph.push(video)
    new = graph.pull()
    new.pts, new.time_base = video.pts, video.time_base
    return new


@functools.cache
def _one_thread() -> dict[str, int]:
    """What makes PyAV convert in one thread; older ones do not take it, and have no other way."""
    try:
        av.VideoFrame(2, 2, "gray").reformat(format="rgb24", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


@functools.cache
def _honours_colors() -> bool:
    """Whether PyAV converts with the matrices and ranges that it is given. Versions before 17 ignore most of them."""
    red = av.VideoFrame(16, 16, "yuv444p")
    for plane, sample in zip(red.planes, (54, 99, 255), strict=True):  # of BT.709, full range
        plane.update(bytes([sample]) * plane.buffer_size)
    try:
        same = dict.fromkeys(("src_colorspace", "dst_colorspace"), SCALER["bt709"])
        rgb = red.reformat(format="rgb24", **same, src_color_range=2, dst_color_range=2)
    except (KeyError, TypeError, ValueError):
        return False
    r, g, b = bytes(rgb.planes[0])[:3]
    return r > 250 and g < 5 and b < 5
