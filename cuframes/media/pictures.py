"""Frames as pictures, through PyAV: FFmpeg's names of the pixel formats, PyAV's frames, PNG, JPEG and v210."""

import functools
from fractions import Fraction
from typing import Any

import av
import numpy
from numpy.lib.stride_tricks import as_strided

from cuframes.formats import FULL_RANGE, pixel_format

__all__ = ["encode", "ffmpeg_format", "reformat", "rows", "to_video", "video_rows"]

# FFmpeg has v210 as a codec, which takes and gives these samples.
FFMPEG_NAMES = {
    "i420": "yuv420p",
    "gray8": "gray",
    "gray16": "gray16le",
    "p010": "p010le",
    "rgbp": "gbrp",
    "v210": "yuv422p10le",
}
# FFmpeg's planar RGB has its planes in the order G, B, R.
GBR_OF_RGB = (2, 0, 1)
VECTOR = 128  # pixels; rows of a multiple of it, and of half of it, are whole vectors of 64 bytes
ENCODERS = {"png": ("png", "rgb24"), "jpeg": ("mjpeg", "yuvj420p"), "v210": ("v210", "yuv422p10le")}


def ffmpeg_format(name: str) -> str:
    """FFmpeg's name of a pixel format's samples; the format may be given by any of its names."""
    if name in FULL_RANGE:
        return name
    ours = pixel_format(name).name
    return FFMPEG_NAMES.get(ours, ours)


def reformat(video: Any, width: int, height: int, format: str) -> Any:
    """A PyAV frame in another size or format: PyAV's ``reformat``, without its race.

    FFmpeg writes whole vectors, also at the end of a row, where they can reach into the next one. The next row follows
    and is then right, unless another thread began with it: its first pixels are lost. So one thread does all rows
    unless they end with a whole vector.
    """
    threads = {} if width % VECTOR == 0 else _one_thread()
    return video.reformat(width=width, height=height, format=format, **threads)


@functools.cache
def _one_thread() -> dict[str, int]:
    """What makes PyAV convert in one thread; older ones do not take it, and have no other way."""
    try:
        av.VideoFrame(2, 2, "gray").reformat(format="rgb24", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def rows(plane: Any) -> Any:
    """A plane as an array of its bytes, (rows, bytes per row), without a copy in host memory."""
    on_host = isinstance(plane, numpy.ndarray) or plane.device == "cpu"
    samples = numpy.asarray(plane) if on_host else plane.copy_to_host()
    flat = as_strided(samples, (len(samples), samples[0].size), (samples.strides[0], samples.itemsize))
    return flat.view(numpy.uint8)


def video_rows(plane: Any, row_bytes: int) -> Any:
    """Like :func:`rows`, for a plane of a PyAV frame."""
    return numpy.frombuffer(plane, numpy.uint8).reshape(-1, plane.line_size)[:, :row_bytes]


def to_video(frame: Any) -> Any:
    """Copy a frame's pixels into a new PyAV frame."""
    planes = frame.planes
    if frame.format == "v210":
        return _unpack_v210(frame)
    video = av.VideoFrame(frame.width, frame.height, ffmpeg_format(frame.format))
    order = GBR_OF_RGB if frame.format == "rgbp" else range(len(planes))
    for index, plane in zip(order, planes, strict=True):
        source = rows(plane)
        video_rows(video.planes[index], source.shape[1])[: len(source)] = source
    return video


def encode(video: Any, kind: str) -> bytes:
    """Encode a PyAV frame: ``"png"``, ``"jpeg"``, or ``"v210"``, whose bytes are a frame without padding."""
    codec, format = ENCODERS[kind]
    picture = reformat(video, video.width, video.height, format)
    picture.pts = 0
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, format
    encoder.time_base = Fraction(1, 25)
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


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
