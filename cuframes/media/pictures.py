"""Frames as pictures, through PyAV: as arrays, images, PyAV's frames, PNG, JPEG and v210; and PyAV's as ours."""

import functools
import math
from fractions import Fraction
from typing import Any

import av
import numpy
from numpy.lib.stride_tricks import as_strided

from cuframes._native.views import Plane
from cuframes.codecs import NANOSECOND
from cuframes.color import Color, is_gray, is_rgb, presentation
from cuframes.formats import FORMATS, FrameShape, pixel_format, whole_number
from cuframes.media.scaling import color_of_video, converted, ffmpeg_format, reformat, tag
from cuframes.rates import nearest

__all__ = [
    "color_as",
    "color_of_video",
    "convert",
    "converted",
    "decoded_format",
    "encode",
    "ffmpeg_format",
    "picture",
    "presentation_of",
    "preview",
    "reformat",
    "rotation_of",
    "rows",
    "to_image",
    "to_ndarray",
    "to_video",
    "upright",
    "video_rows",
]

# FFmpeg's planar RGB has its planes in the order G, B, R.
GBR_OF_RGB = (2, 0, 1)
ENCODERS = {"png": ("png", "rgb24"), "jpeg": ("mjpeg", "yuvj420p"), "v210": ("v210", "yuv422p10le")}
JPEG = Color("pc", "smpte170m")  # what every JPEG file is
PREVIEW_WIDTH = 960
# Formats of which PyAV makes a frame without a copy.
BORROWED = {name for name in FORMATS if name in ("nv12", "p010", "p016le", "i420") or name.startswith(("yuv4", "gray"))}
PAGE, SPARE = 4096, 256
FASTEST = 1000  # frames per second; a stream that claims more has a wrong clock
MAX_SIDE = 32768


def rows(plane: Any) -> Any:
    """A plane as an array of its bytes, (rows, bytes per row), without a copy in host memory."""
    on_host = isinstance(plane, numpy.ndarray) or plane.device == "cpu"
    samples = numpy.asarray(plane) if on_host else plane.copy_to_host()
    flat = as_strided(samples, (len(samples), samples[0].size), (samples.strides[0], samples.itemsize))
    return flat.view(numpy.uint8)


def video_rows(plane: Any, row_bytes: int) -> Any:
    """Like :func:`rows`, for a plane of a PyAV frame."""
    return numpy.frombuffer(plane, numpy.uint8).reshape(-1, plane.line_size)[:, :row_bytes]


# ---- ours to PyAV's ------------------------------------------------------------------------------------------------


def to_video(frame: Any) -> Any:
    """Copy a frame into a new PyAV frame, with its pts and what its publisher has said about its colours."""
    if frame.format is None:
        raise ValueError("the frame's pixel format is unknown, so no picture can be made of it")
    planes = frame.planes
    if frame.format == "v210":
        video = _unpack_v210(frame)
    else:
        video = av.VideoFrame(frame.width, frame.height, ffmpeg_format(frame.format))
        order = GBR_OF_RGB if frame.format == "rgbp" else range(len(planes))
        for index, plane in zip(order, planes, strict=True):
            source = rows(plane)
            video_rows(video.planes[index], source.shape[1])[: len(source)] = source
    tag(video, frame.color)
    if -(2**63) < frame.pts_ns < 2**63:  # a slot's may be larger
        video.pts, video.time_base = frame.pts_ns, NANOSECOND
    return video


def _borrowed(frame: Any) -> Any:
    """A PyAV frame over the memory of a frame in the ring, which holds its slot; a copy where that cannot be.

    FFmpeg may read some bytes more than the last row has. They must be in the same page, which ends behind the slot.
    """
    wrap = getattr(av.VideoFrame, "from_dlpack", None)  # since PyAV 17
    planes = frame.planes
    if wrap is None or frame.format not in BORROWED or not all(isinstance(plane, Plane) for plane in planes):
        return to_video(frame)
    if planes[0].device != "cpu" or -sum(plane.pitch * len(plane) for plane in planes) % PAGE < SPARE:
        return to_video(frame)
    try:
        video = wrap(planes, format=ffmpeg_format(frame.format), width=frame.width, height=frame.height)
    except (BufferError, NotImplementedError, TypeError, ValueError):  # of this version of PyAV
        return to_video(frame)
    tag(video, frame.color)
    return video


def _unpack_v210(frame: Any) -> Any:
    """In NumPy, since FFmpeg's decoder leaves pictures of fewer than 4 rows empty."""
    words = rows(frame.planes[0]).view("<u4")
    # Three samples of 10 bits in a word, the lowest first: U Y V, Y U Y, V Y U, Y V Y.
    samples = numpy.stack([words & 1023, words >> 10 & 1023, words >> 20 & 1023], axis=2).astype("<u2")
    samples = samples.reshape(frame.height, -1)
    video = av.VideoFrame(frame.width, frame.height, ffmpeg_format("v210"))
    for plane, found in zip(video.planes, (samples[:, 1::2], samples[:, ::4], samples[:, 2::4]), strict=True):
        wanted = numpy.ascontiguousarray(found[:, : plane.width]).view(numpy.uint8)
        video_rows(plane, 2 * plane.width)[: frame.height] = wanted
    return video


def to_ndarray(frame: Any, format: str, width: int | None, height: int | None) -> Any:
    """``Frame.to_ndarray``."""
    name = pixel_format(format).name
    width, height = _size(frame, width, height)
    shape = _packed(name, width, height)
    borrowed = _borrowed(frame)
    video = convert(borrowed, width, height, format)
    if video is borrowed:  # there was nothing to convert, so it may be the ring's memory
        video = to_video(frame)
    if name == "v210":
        return numpy.frombuffer(bytearray(video), numpy.uint8).reshape(shape.array_shape)
    dtype = f"u{shape.format.itemsize}"
    if len(shape.planes) == 1 and video.planes[0].line_size == shape.planes[0].strides[0]:
        samples = numpy.frombuffer(video.planes[0], dtype, shape.nbytes // shape.format.itemsize)
        return samples.reshape(shape.array_shape)  # keeps the new frame's memory, which nobody else has
    array = numpy.empty(shape.nbytes, numpy.uint8)
    order = GBR_OF_RGB if name == "rgbp" else range(len(shape.planes))
    for index, plane in zip(order, shape.planes, strict=True):
        row_bytes = plane.strides[0]
        into = array[plane.offset : plane.offset + plane.shape[0] * row_bytes].reshape(plane.shape[0], row_bytes)
        into[...] = video_rows(video.planes[index], row_bytes)[: plane.shape[0]]
    return array.view(dtype).reshape(shape.array_shape)


@functools.lru_cache(maxsize=64)
def _packed(format: str, width: int, height: int) -> FrameShape:
    return FrameShape(FORMATS[format], width, height, align=1)


def _size(frame: Any, width: int | None, height: int | None) -> tuple[int, int]:
    if frame.width is None or frame.height is None:
        raise ValueError("the frame's pixel format is unknown, so no picture can be made of it")
    if width is not None:
        width = whole_number(width, "width", 1, MAX_SIDE)
    if height is not None:
        height = whole_number(height, "height", 1, MAX_SIDE)
    if width is None:
        width = frame.width if height is None else max(1, round(frame.width * height / frame.height))
    if height is None:
        height = max(1, round(frame.height * width / frame.width))
    return width, height


def to_image(frame: Any) -> Any:
    """``Frame.to_image``."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("to_image() needs Pillow, which is not installed: pip install pillow") from None
    gray = is_gray(frame.format or "")
    alpha = frame.format in ("rgba", "bgra", "argb", "abgr", "gbrap", "yuva444p10le", "yuva444p12le")
    return Image.fromarray(to_ndarray(frame, "gray8" if gray else "rgba" if alpha else "rgb24", None, None))


def upright(video: Any, rotation: int | None) -> Any:
    """A PyAV frame, turned clockwise by `rotation` degrees. The turned frame is RGB."""
    if not rotation:
        return video
    rgb = reformat(video, video.width, video.height, "rgb24")
    pixels = video_rows(rgb.planes[0], 3 * rgb.width).reshape(rgb.height, -1, 3)
    turned = numpy.rot90(pixels, -rotation // 90)
    new = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(turned), "rgb24")
    tag(new, color_of_video(rgb))
    return new


def picture(frame: Any, kind: str, width: int | None = None, height: int = MAX_SIDE) -> bytes:
    """A frame as a PNG or JPEG file, upright.

    Parameters
    ----------
    kind : {"png", "jpeg"}
    width, height : int, optional
        The largest size, for a screen: with square samples. Otherwise the samples are those of the frame, and the
        file says their aspect.
    """
    video = to_video(frame)
    turned = frame.rotation in (90, 270)
    aspect = frame.sample_aspect_ratio
    if width is not None:
        wide, high = (float(video.width * (aspect or 1)), video.height)[:: -1 if turned else 1]
        shrink = min(1, width / wide, height / high)
        wide, high = (max(2, round(side * shrink / 2) * 2) for side in (wide, high))
        video = reformat(video, *(high, wide) if turned else (wide, high), video.format.name)
        aspect = None
    elif turned and aspect is not None:
        aspect = 1 / aspect
    return encode(upright(video, frame.rotation), kind, aspect)


def preview(frame: Any) -> bytes | None:
    """``Frame._repr_png_``."""
    try:
        return picture(frame, "png", PREVIEW_WIDTH)
    except ValueError:  # released, or not a picture; a notebook shows the repr then
        return None


def encode(video: Any, kind: str, sample_aspect_ratio: Fraction | None = None) -> bytes:
    """Encode a PyAV frame: ``"png"``, ``"jpeg"``, or ``"v210"``, whose bytes are a frame without padding."""
    codec, format = ENCODERS[kind]
    samples = reformat(video, video.width, video.height, format, JPEG if kind == "jpeg" else None)
    if samples is not video:  # which is the caller's
        samples.pts = 0
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = samples.width, samples.height, format
    encoder.time_base = Fraction(1, 25)
    encoder.color_range = samples.color_range
    if sample_aspect_ratio:
        encoder.sample_aspect_ratio = sample_aspect_ratio
    packets = [*encoder.encode(samples), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


# ---- PyAV's to ours ------------------------------------------------------------------------------------------------


def convert(frame: Any, width: int, height: int, format: str, color: Color | None = None) -> Any:
    """Convert a decoded frame to a size and a format that ``Publisher.publish`` takes.

    Parameters
    ----------
    frame : av.VideoFrame
        A frame on a GPU is returned as it is: the GPU decodes only when nothing needs converting.
    format : str
        Pixel format, by any of its names. A full-range name (``yuvj420p``) makes the range full. Otherwise range and
        matrix stay what they are, if both formats have them.
    color : Color, optional
        Convert to this range and matrix: those of the publisher, when the colours of a stream change.
    """
    wanted = ffmpeg_format(format)
    if frame.format.name == "cuda":
        return frame
    frame = reformat(frame, width, height, wanted, color)
    return encode(frame, "v210") if pixel_format(format).name == "v210" else frame


def presentation_of(
    stream: Any, frame: Any = None, format: str | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What PyAV knows about the pictures of a stream, as the keyword arguments of :class:`cuframes.Publisher`.

    Parameters
    ----------
    stream : av.VideoStream
    frame : av.VideoFrame, optional
        A decoded frame, as it came from the decoder. It knows more than the stream: the rotation.
    format : str, optional
        The pixel format that will be published, when :func:`convert` makes it from the decoder's. Default: the
        decoder's.
    size : (int, int), optional
        Width and height that will be published. A matrix that is not said and that players would take for another one
        at this size is then said.

    Returns
    -------
    dict
        ``color``, ``sample_aspect_ratio``, ``field_order``, ``rotation``, ``frame_rate``, all of the picture before any
        scaling or turning. Values that are not known, or not possible, are None.
    """
    context = stream.codec_context
    rates = (stream.average_rate, stream.guessed_rate)
    rate = next((known for known in rates if known and 0 < known <= FASTEST), None)
    found: dict[str, Any] = {
        "color": color_as(color_of_video(context), frame or context, format, size),
        "sample_aspect_ratio": stream.sample_aspect_ratio or context.sample_aspect_ratio,
        "field_order": getattr(context, "field_order", None),
        "rotation": rotation_of(frame) or None,
        "frame_rate": None if rate is None else nearest(rate),
    }
    for name, value in found.items():
        try:
            found[name] = getattr(presentation(**{name: value}), name)
        except (ValueError, TypeError):  # FFmpeg passes on what a file says, which can be anything
            found[name] = None
    return found


def color_as(said: Color, video: Any, format: str | None, size: tuple[int, int] | None = None) -> Color:
    """The colours of a stream's pictures once :func:`convert` has given them a pixel format.

    Parameters
    ----------
    said : Color
        What the stream says. A frame's own word counts more.
    video : av.VideoFrame or av.VideoCodecContext
        One of its frames, or the decoder.
    format : str or None
        The pixel format; None: the decoder's.
    size : (int, int), optional
        The width and height that they get. A matrix that nobody said and that follows from the size is said then, if
        the other size would stand for another one.
    """
    said = Color(*(one or other for one, other in zip(color_of_video(video), said, strict=True)))
    was = decoded_format(video)
    if was is not None and was.startswith("yuvj"):
        said = said._replace(range="pc")
    if was is not None and format is not None and ffmpeg_format(format) != was:
        after = converted(said, was, video.width, video.height, format)
        said = Color(after.range, after.matrix, said.primaries, said.transfer)
    if said.matrix is None and size is not None:
        assumed = Color().assumed(video.width, video.height).matrix
        if assumed != Color().assumed(*size).matrix and not is_rgb(format or was or ""):
            said = said._replace(matrix=assumed)
    return said


def rotation_of(frame: Any) -> int:
    """Degrees (0, 90, 180, 270) by which a PyAV frame must be turned clockwise to be upright; PyAV counts the other way
    round.
    """
    angle = getattr(frame, "rotation", None)
    if angle is None:  # a decoder, or PyAV 14
        matrix = getattr(frame, "side_data", {}).get("DISPLAYMATRIX")
        right, down = (1, 0) if matrix is None else numpy.frombuffer(matrix, "i4")[:2]
        angle = -math.degrees(math.atan2(down, right))
    return -round(angle / 90) * 90 % 360


def decoded_format(video: Any) -> str | None:
    """FFmpeg's name of the samples' format, also of a frame on a GPU."""
    name: str | None = video.format.name if isinstance(video, av.VideoFrame) else video.pix_fmt
    return getattr(getattr(video, "sw_format", None), "name", None) if name == "cuda" else name
