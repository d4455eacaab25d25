"""What the commands do to pixels: convert with PyAV, save a picture, stamp a number into a frame and read it back."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
from numpy.lib.stride_tricks import as_strided

from cuframes.formats import ALIASES, FrameShape, pixel_format
from cuframes.memory.driver import upload_columns

__all__ = ["convert", "ffmpeg_format", "read_stamp", "rows", "save_picture", "stamp", "to_video"]

STAMP_BYTES = 8
FFMPEG_NAMES = {"i420": "yuv420p", "gray8": "gray", "gray16": "gray16le", "p010": "p010le", "rgbp": "gbrp"}
# FFmpeg's planar RGB has its planes in the order G, B, R.
GBR_OF_RGB = (2, 0, 1)


def ffmpeg_format(name: str) -> str:
    """FFmpeg's name of a format of ours."""
    return FFMPEG_NAMES.get(name, name)


def rows(plane: Any) -> Any:
    """A plane as an array of its bytes, (rows, bytes per row), without a copy in host memory."""
    samples = numpy.asarray(plane) if plane.device == "cpu" else plane.copy_to_host()
    flat = as_strided(samples, (len(samples), samples[0].size), (samples.strides[0], samples.itemsize))
    return flat.view(numpy.uint8)


def _video_rows(plane: Any, row_bytes: int) -> Any:
    """The same of a plane of a PyAV frame."""
    return numpy.frombuffer(plane, numpy.uint8).reshape(-1, plane.line_size)[:, :row_bytes]


def convert(frame: Any, width: int, height: int, format: str) -> Any:
    """A decoded frame in the wanted size and format, as something ``Publisher.publish`` takes."""
    wanted = ffmpeg_format(format)
    if frame.format.name == "cuda":  # decoded on the GPU, which is asked for only when nothing needs converting
        return frame
    if (frame.format.name, frame.width, frame.height) != (wanted, width, height):
        frame = frame.reformat(width=width, height=height, format=wanted)
    if format == "rgbp":
        return [_video_rows(frame.planes[i], width)[:height] for i in GBR_OF_RGB]
    return frame


def to_video(frame: Any) -> Any:
    """A PyAV frame with a copy of the pixels of one of ours."""
    video = av.VideoFrame(frame.width, frame.height, ffmpeg_format(frame.format))
    order = GBR_OF_RGB if frame.format == "rgbp" else range(len(frame.planes))
    for index, plane in zip(order, frame.planes, strict=True):
        source = rows(plane)
        _video_rows(video.planes[index], source.shape[1])[: len(source)] = source
    return video


def save_picture(frame: Any, path: Path) -> None:
    """Save a frame as PNG or JPEG, by the name's suffix.

    Raises
    ------
    ValueError
        For another suffix.
    """
    encoders = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p"), ".jpeg": ("mjpeg", "yuvj420p")}
    if path.suffix.lower() not in encoders:
        raise ValueError(f"a picture is a .png or .jpg file, not {path.name!r}")
    codec, format = encoders[path.suffix.lower()]
    picture = to_video(frame).reformat(format=format)
    picture.pts = 0
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, format
    encoder.time_base = Fraction(1, 25)
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def check_stampable(format: str, width: int, height: int) -> None:
    """Raise ValueError when a frame is too narrow for a stamp in every row."""
    shape = FrameShape(pixel_format(ALIASES.get(format, format)), width, height)
    for plane in shape.planes:
        if plane.shape[1] * plane.strides[1] < STAMP_BYTES:
            raise ValueError(f"a stamp needs {STAMP_BYTES} bytes in every row; {format} at width {width} has fewer")


def stamp(planes: Any, number: int) -> None:
    """Write a number into the first 8 bytes of every row, so that a frame made of two is found out."""
    raw = numpy.frombuffer(number.to_bytes(STAMP_BYTES, "little"), numpy.uint8)
    for plane in planes:
        if plane.device == "cpu":
            rows(plane)[:, :STAMP_BYTES] = raw
        else:
            upload_columns(plane, numpy.tile(raw, (plane.shape[0], 1)))


def read_stamp(frame: Any) -> int | None:
    """The number stamped into a frame, or None when its rows disagree: the frame is torn."""
    found = None
    for plane in frame.planes:
        numbers = rows(plane)[:, :STAMP_BYTES].copy().view("<u8")
        if found is None:
            found = numbers[0, 0]
        if not (numbers == found).all():
            return None
    return None if found is None else int(found)
