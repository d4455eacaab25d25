"""``cuframes pipe``: frames to standard output, for ffmpeg or ffplay."""

import contextlib
import os
import sys
from fractions import Fraction
from typing import Annotated, Any, BinaryIO

import typer

from cuframes.cli import Stopped, pixels, stop_on_signals
from cuframes.errors import Disconnected
from cuframes.subscriber import Subscriber

__all__ = ["pipe"]

NS = 1_000_000_000
# What YUV4MPEG2 can say: the colour space of its header, and FFmpeg's name of the planar format behind it.
Y4M = {
    "nv12": ("420jpeg", "yuv420p"),
    "i420": ("420jpeg", "yuv420p"),
    "p010": ("420p10", "yuv420p10le"),
    "gray8": ("mono", "gray"),
    "gray16": ("mono16", "gray16le"),
    "uyvy422": ("422", "yuv422p"),
    "yuyv422": ("422", "yuv422p"),
}
Y4M_RGB = ("444", "yuv444p")


def pipe(
    key: Annotated[str, typer.Argument(help="Publisher to join.")],
    format: Annotated[str, typer.Option(help="y4m (with a header) or raw (the publisher's own format).")] = "y4m",
    fps: Annotated[float | None, typer.Option(min=0.1, help="Rate for the y4m header; default: measured.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many.")] = None,
) -> None:
    """Write frames to standard output until the publisher ends or the reader closes the pipe."""
    if format not in ("y4m", "raw"):
        raise ValueError(f"--format is y4m or raw, not {format!r}")
    if sys.stdout.isatty():
        raise ValueError("frames are not for a terminal; pipe them: cuframes pipe KEY | ffplay -")
    stop_on_signals()
    out = sys.stdout.buffer
    with Subscriber(key, mode="ordered", start="latest") as subscriber, contextlib.suppress(Stopped, Disconnected):
        try:
            _copy(subscriber, out, format, fps, frames)
        except BrokenPipeError:  # the reader has had enough; the interpreter's own flush at exit must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _copy(subscriber: Subscriber, out: BinaryIO, format: str, fps: float | None, frames: int | None) -> None:
    write = _raw if format == "raw" else _y4m
    if format == "y4m":
        colour = Y4M.get(subscriber.format, Y4M_RGB)[0]
        rate = Fraction(fps).limit_denominator(1001) if fps else _measure(subscriber)
        header = f"YUV4MPEG2 W{subscriber.width} H{subscriber.height} F{rate.numerator}:{rate.denominator} Ip A1:1"
        out.write(f"{header} C{colour}\n".encode())
    written = 0
    while frames is None or written < frames:
        with subscriber.next() as frame:
            write(out, frame)
        out.flush()
        written += 1


def _measure(subscriber: Subscriber) -> Fraction:
    """Frames per second, from the timestamps of two frames."""
    with subscriber.next() as frame:
        first_no, first_ns = frame.frame_no, frame.pts_ns
    with subscriber.next() as frame:
        between, elapsed_ns = frame.frame_no - first_no, frame.pts_ns - first_ns
    if elapsed_ns <= 0:
        return Fraction(25)
    return Fraction(between * NS, elapsed_ns).limit_denominator(1001)


def _raw(out: BinaryIO, frame: Any) -> None:
    for plane in frame.planes:
        out.write(pixels.rows(plane).tobytes())


def _y4m(out: BinaryIO, frame: Any) -> None:
    planar = pixels.to_video(frame).reformat(format=Y4M.get(frame.format, Y4M_RGB)[1])
    sample = 2 if planar.format.name.endswith("le") else 1
    out.write(b"FRAME\n")
    for plane in planar.planes:
        lines = memoryview(plane).cast("B")
        for row in range(plane.height):
            at = row * plane.line_size
            out.write(lines[at : at + plane.width * sample])
