"""``cuframes pipe``: frames to standard output, for ffmpeg or ffplay."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, BinaryIO

import typer

from cuframes.cli import EXIT_STALE, fail, stop_on_signals
from cuframes.errors import Disconnected, Timeout
from cuframes.formats import FORMATS
from cuframes.framecache import SlotReader
from cuframes.media import pictures
from cuframes.subscriber import Subscriber

__all__ = ["pipe"]

SECOND_NS = 1_000_000_000
LOOK_SECONDS = 0.2  # while no frame comes, look this often whether the reader has gone
# Formats that YUV4MPEG2 has: the colour space in its header, FFmpeg's name of the planar format, and ours that are
# written in it.
Y4M_PLANAR = {
    "420jpeg": ("yuv420p", "nv12 nv21 i420"),
    "420p10": ("yuv420p10le", "p010 yuv420p10le"),
    "420p12": ("yuv420p12le", "yuv420p12le"),
    "420p16": ("yuv420p16le", "p016le"),
    "422": ("yuv422p", "nv16 yuv422p uyvy422 yuyv422 yvyu422"),
    "422p10": ("yuv422p10le", "p210le yuv422p10le v210"),
    "422p12": ("yuv422p12le", "yuv422p12le"),
    "444p10": ("yuv444p10le", "yuv444p10le yuva444p10le gbrp10le"),
    "444p12": ("yuv444p12le", "yuv444p12le yuva444p12le gbrp12le"),
    "444p16": ("yuv444p16le", "yuv444p16le"),
    "mono": ("gray", "gray8"),
    "mono10": ("gray10le", "gray10le"),
    "mono12": ("gray12le", "gray12le"),
    "mono16": ("gray16le", "gray16"),
}
Y4M = {name: (colour, planar) for colour, (planar, names) in Y4M_PLANAR.items() for name in names.split()}
Y4M_OTHERS = ("444", "yuv444p")  # 8-bit RGB and YUV of other sampling


def pipe(
    key: Annotated[str, typer.Argument(help="Key of the publisher, or with --slot the name of a framecache slot.")],
    slot: Annotated[bool, typer.Option("--slot", help="KEY is the name of a framecache slot.")] = False,
    format: Annotated[
        str, typer.Option(help="Output format: y4m (with a header) or raw (pixels in the publisher's own format).")
    ] = "y4m",
    fps: Annotated[float | None, typer.Option(min=0.1, help="Rate for the y4m header; default: measured.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
) -> None:
    """Write frames to standard output until the publisher ends, the reader closes the pipe, or a signal arrives.

    With --slot, until the slot is removed (exit status 4).
    """
    if format not in ("y4m", "raw"):
        raise ValueError(f"--format must be y4m or raw, not {format!r}")
    if sys.__stdout__ is None:
        raise OSError(errno.EBADF, "there is no standard output to write to")
    if sys.stdout.isatty():
        raise ValueError("frames cannot be shown on a terminal; pipe them: cuframes pipe KEY | ffplay -")
    stop_on_signals()
    out = sys.stdout.buffer
    rate = Fraction(fps).limit_denominator(1001) if fps else None
    try:
        if slot:
            _pipe_slot(key, out, format, rate, frames)
            return
        with Subscriber(key, mode="ordered", start="latest") as joined, contextlib.suppress(Disconnected):
            _copy(joined, joined.next, out, format, rate, frames)
    except BrokenPipeError:  # the reader has closed it; the interpreter's own flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _pipe_slot(slot_id: str, out: BinaryIO, format: str, rate: Fraction | None, frames: int | None) -> None:
    with SlotReader(slot_id, start="latest", connect_timeout=0) as reader:
        if reader.format not in FORMATS:
            raise ValueError(
                f"the pixel format of the slot {slot_id!r} is {reader.format}, so it cannot be piped; read it with "
                "SlotReader"
            )
        try:
            _copy(reader, reader.read, out, format, rate or reader.fps, frames)
        except Disconnected:
            fail(EXIT_STALE, f"the slot {slot_id!r} was removed")


def _copy(
    source: Any, take: Callable[[float], Any], out: BinaryIO, format: str, rate: Fraction | None, frames: int | None
) -> None:
    """Write the frames of a subscriber or of a slot."""
    write = _raw if format == "raw" else _y4m
    if format == "y4m":
        colour = Y4M.get(source.format, Y4M_OTHERS)[0]
        if rate is None:
            rate = _measure(lambda: _wait(take, out))
        header = f"YUV4MPEG2 W{source.width} H{source.height} F{rate.numerator}:{rate.denominator} Ip A1:1"
        out.write(f"{header} C{colour}\n".encode())
        out.flush()
    written = 0
    while frames is None or written < frames:
        with _wait(take, out) as frame:
            write(out, frame)
        out.flush()
        written += 1


def _wait(take: Callable[[float], Any], out: BinaryIO) -> Any:
    """Wait for the next frame, for as long as the pipe has a reader."""
    while True:
        try:
            return take(LOOK_SECONDS)
        except Timeout:
            watched = select.poll()
            watched.register(out.fileno(), 0)  # errors and hang-ups are reported anyway
            if watched.poll(0):
                raise BrokenPipeError from None


def _measure(take: Callable[[], Any]) -> Fraction:
    """Frames per second, from the timestamps of two frames."""
    with take() as frame:
        first_no, first_ns = frame.frame_no, frame.pts_ns
    with take() as frame:
        between, elapsed_ns = frame.frame_no - first_no, frame.pts_ns - first_ns
    if elapsed_ns <= 0:
        return Fraction(25)
    return Fraction(between * SECOND_NS, elapsed_ns).limit_denominator(1001)


def _raw(out: BinaryIO, frame: Any) -> None:
    for plane in frame.planes:
        out.write(pictures.rows(plane).tobytes())


def _y4m(out: BinaryIO, frame: Any) -> None:
    _, format = Y4M.get(frame.format, Y4M_OTHERS)
    planar = pictures.reformat(pictures.to_video(frame), frame.width, frame.height, format)
    sample = 2 if planar.format.name.endswith("le") else 1
    out.write(b"FRAME\n")
    for plane in planar.planes:
        lines = memoryview(plane).cast("B")
        for row in range(plane.height):
            at = row * plane.line_size
            out.write(lines[at : at + plane.width * sample])
