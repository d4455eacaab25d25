"""``cuframes pipe``: frames to standard output, for ffmpeg or ffplay."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, BinaryIO

import typer

from cuframes.cli import EXIT_STALE, fail, stop_on_signals
from cuframes.cli.stdout import check_stdout, discard_stdout
from cuframes.color import Color, color_of
from cuframes.errors import Disconnected, Timeout
from cuframes.formats import FORMATS
from cuframes.framecache import SlotReader
from cuframes.media import pictures
from cuframes.media.streams import check_reader
from cuframes.rates import UNKNOWN_RATE, nearest
from cuframes.rates import rate as exact_rate
from cuframes.subscriber import Subscriber

__all__ = ["pipe"]

SECOND_NS = 1_000_000_000
MEASURED_FRAMES = 5  # at least, and over at least a second
MEASURED_SECONDS = 10  # for timestamps that stand still
LOOK_SECONDS = 0.2  # while no frame comes, look this often whether the reader has gone
# Formats that YUV4MPEG2 has: the colour space in its header, FFmpeg's name of the planar format, and ours that are
# written in it.
Y4M_PLANAR = {
    "420": ("yuv420p", "nv12 nv21 i420"),
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
# Where chroma samples are: decoders of video give them between the rows, at the left; JPEG has them in the middle.
SITED_420 = {"tv": "420mpeg2", "pc": "420jpeg"}
Y4M_RANGES = {"tv": "LIMITED", "pc": "FULL"}
Y4M_FIELDS = {"tt": "t", "tb": "t", "bb": "b", "bt": "b"}


def pipe(
    key: Annotated[str, typer.Argument(help="Key of the publisher, or with --slot the name of a framecache slot.")],
    slot: Annotated[bool, typer.Option("--slot", help="KEY is the name of a framecache slot.")] = False,
    format: Annotated[
        str, typer.Option(metavar="y4m|raw", help="y4m: with a header; raw: pixels in the publisher's own format.")
    ] = "y4m",
    fps: Annotated[
        float | None,
        typer.Option(min=0.1, help="Rate for the y4m header; default: the publisher's, or measured for a second."),
    ] = None,
    matrix: Annotated[
        str | None,
        typer.Option(
            help="Colour matrix to convert to for y4m, which cannot name it: bt601, bt709, … Default: bt709 for HD, "
            "bt601 for SD, as players assume."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
) -> None:
    """Write frames to standard output until the publisher ends, the reader closes the pipe, or a signal arrives.

    With --slot, until the slot is removed (exit status 4).
    """
    if format not in ("y4m", "raw"):
        raise ValueError(f"--format must be y4m or raw, not {format!r}")
    check_stdout("frames", "cuframes pipe KEY | ffplay -")
    stop_on_signals()
    out = sys.stdout.buffer
    rate = exact_rate(fps) if fps else None
    wanted = None if matrix is None else color_of({"matrix": matrix}).matrix
    copier = Copier(out, format, rate, wanted, frames)
    try:
        if slot:
            _pipe_slot(key, copier)
            return
        with Subscriber(key, mode="ordered", start="latest") as joined, contextlib.suppress(Disconnected):
            copier.copy(joined, joined.next, joined.frame_rate)
    except BrokenPipeError:  # the reader has closed it
        discard_stdout()


def _pipe_slot(slot_id: str, copier: "Copier") -> None:
    with SlotReader(slot_id, start="latest", connect_timeout=0) as reader:
        if reader.format not in FORMATS:
            raise ValueError(
                f"the pixel format of the slot {slot_id!r} is {reader.format}, so it cannot be piped; read it with "
                "SlotReader"
            )
        try:
            copier.copy(reader, reader.read, reader.fps)
        except Disconnected:
            fail(EXIT_STALE, f"the slot {slot_id!r} was removed")


class Copier:
    """Writes the frames of a subscriber or of a slot to a pipe.

    Parameters
    ----------
    out : binary file
    format : {"y4m", "raw"}
    rate : Fraction, optional
        For the header.
    matrix : str, optional
        The colour matrix to convert to.
    frames : int, optional
        Stop after this many.
    """

    def __init__(
        self, out: BinaryIO, format: str, rate: Fraction | None, matrix: str | None, frames: int | None
    ) -> None:
        self._out = out
        self._y4m = format == "y4m"
        self._rate = rate
        self._color = Color(matrix=matrix)
        self._frames = frames

    def copy(self, source: Any, take: Callable[[float], Any], nominal: Fraction | None) -> None:
        """Write a source's frames, until that many are written or an exception ends it."""
        if self._y4m:
            usual = Color().assumed(source.width, source.height).matrix
            self._color = self._color._replace(matrix=self._color.matrix or usual)
            rate = self._rate or nominal or _measure(lambda: self._wait(take))
            self._out.write(_header(source, rate))
            self._out.flush()
        written = 0
        while self._frames is None or written < self._frames:
            with self._wait(take) as frame:
                self._write(frame)
            self._out.flush()
            written += 1

    def _wait(self, take: Callable[[float], Any]) -> Any:
        """Wait for the next frame, for as long as the pipe has a reader."""
        while True:
            try:
                return take(LOOK_SECONDS)
            except Timeout:
                check_reader(self._out.fileno())

    def _write(self, frame: Any) -> None:
        if not self._y4m:
            for plane in frame.planes:
                self._out.write(pictures.rows(plane).tobytes())
            return
        _, format = Y4M.get(frame.format, Y4M_OTHERS)
        planar = pictures.reformat(pictures.to_video(frame), frame.width, frame.height, format, self._color)
        sample = 2 if planar.format.name.endswith("le") else 1
        self._out.write(b"FRAME\n")
        for plane in planar.planes:
            lines = memoryview(plane).cast("B")
            for row in range(plane.height):
                at = row * plane.line_size
                self._out.write(lines[at : at + plane.width * sample])


def _header(source: Any, rate: Fraction) -> bytes:
    """The header of YUV4MPEG2. It has no words for matrix, primaries, transfer and rotation."""
    colour, planar = Y4M.get(source.format, Y4M_OTHERS)
    range_ = pictures.converted(source.color, source.format, source.width, source.height, planar).range or "tv"
    if colour == "420":
        colour = SITED_420[range_]
    field = Y4M_FIELDS.get(source.field_order, "p")
    aspect = source.sample_aspect_ratio or Fraction(1)
    words = (
        f"YUV4MPEG2 W{source.width} H{source.height} F{rate.numerator}:{rate.denominator} I{field}",
        f"A{aspect.numerator}:{aspect.denominator} C{colour} XCOLORRANGE={Y4M_RANGES[range_]}\n",
    )
    return " ".join(words).encode()


def _measure(take: Callable[[], Any]) -> Fraction:
    """Frames per second, from the timestamps of at least a second: the standard rate that is nearest.

    A line is laid through the timestamps, since those of cameras are early and late by turns.
    """
    seen: list[tuple[int, int]] = []
    end = time.monotonic() + MEASURED_SECONDS
    while True:
        with take() as frame:
            if seen and frame.pts_ns < seen[-1][1]:  # the source began again
                seen = []
            seen.append((frame.frame_no, frame.pts_ns))
        enough = len(seen) >= MEASURED_FRAMES
        if enough and seen[-1][1] - seen[0][1] >= SECOND_NS:
            break
        if enough and time.monotonic() >= end:
            break
    return _rate(seen)


def _rate(seen: list[tuple[int, int]]) -> Fraction:
    """The rate of frames with these numbers and times: a whole number if the times leave room for one, which 29.97 and
    30 need; otherwise the nearest standard rate.
    """
    numbers, times = [n - seen[0][0] for n, _ in seen], [ns - seen[0][1] for _, ns in seen]
    middle, late = sum(numbers) / len(seen), sum(times) / len(seen)
    spread = sum((n - middle) ** 2 for n in numbers)
    step = sum((n - middle) * (ns - late) for n, ns in zip(numbers, times, strict=True)) / spread
    if step <= 0:
        return UNKNOWN_RATE
    jitter = sum((ns - late - step * (n - middle)) ** 2 for n, ns in zip(numbers, times, strict=True))
    unsure = 2 * math.sqrt(jitter / (len(seen) - 2) / spread) / step  # two standard errors, of the step
    measured = SECOND_NS / step
    whole = round(measured)
    return Fraction(whole) if whole and abs(whole - measured) <= unsure * measured else nearest(measured)
