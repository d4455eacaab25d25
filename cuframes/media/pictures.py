"""Frames as pictures, through PyAV: FFmpeg's names of the pixel formats, PyAV's frames, PNG and JPEG."""

from fractions import Fraction
from typing import Any

import av
import numpy
from numpy.lib.stride_tricks import as_strided

__all__ = ["GBR_OF_RGB", "encode", "ffmpeg_format", "rows", "to_video", "video_rows"]

FFMPEG_NAMES = {"i420": "yuv420p", "gray8": "gray", "gray16": "gray16le", "p010": "p010le", "rgbp": "gbrp"}
# FFmpeg's planar RGB has its planes in the order G, B, R.
GBR_OF_RGB = (2, 0, 1)
ENCODERS = {"png": ("png", "rgb24"), "jpeg": ("mjpeg", "yuvj420p")}


def ffmpeg_format(name: str) -> str:
    """FFmpeg's name of a pixel format."""
    return FFMPEG_NAMES.get(name, name)


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
    video = av.VideoFrame(frame.width, frame.height, ffmpeg_format(frame.format))
    order = GBR_OF_RGB if frame.format == "rgbp" else range(len(planes))
    for index, plane in zip(order, planes, strict=True):
        source = rows(plane)
        video_rows(video.planes[index], source.shape[1])[: len(source)] = source
    return video


def encode(video: Any, kind: str) -> bytes:
    """Encode a PyAV frame as a picture: ``"png"`` or ``"jpeg"``."""
    codec, format = ENCODERS[kind]
    picture = video.reformat(format=format)
    picture.pts = 0
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, format
    encoder.time_base = Fraction(1, 25)
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
