"""``cuframes record``: packets to files or to standard output, without encoding."""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from cuframes.cli import EXIT_ERROR, Stopped, fail, stop_on_signals
from cuframes.cli.packets import open_reader
from cuframes.cli.stdout import check_stdout, discard_stdout, print_json
from cuframes.cli.units import parse_bytes, parse_duration
from cuframes.errors import CuframesError, Disconnected, NoPacketRing, NotFound, PacketOverrun, Timeout
from cuframes.media.files import FileReport, WriteFailed
from cuframes.media.patterns import Pattern
from cuframes.media.recording import Recording, backlog
from cuframes.media.segments import Retention, SegmentedRecording
from cuframes.media.streams import STREAM_FORMATS, StreamRecording
from cuframes.packets import PacketReader

__all__ = ["record"]

SECOND_NS = 1_000_000_000
LOOK_SECONDS = 0.2  # while no packet comes, look this often whether the output is still there


def record(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    out: Annotated[
        str,
        typer.Argument(
            help="File to write: .mp4, .mov, .mkv or .ts. With --segment a pattern for strftime, in local time unless "
            "--utc is given. - is standard output."
        ),
    ],
    segment: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Begin a new file, at a keyframe, after this time: 600 (seconds), 10min, 1h."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --segment: remove files last written longer ago than this, as in 7d."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --segment: remove the oldest files beyond this sum, as in 500G."),
    ] = None,
    utc: Annotated[
        bool | None,
        typer.Option(
            "--utc/--local",
            help="OUT is a pattern of UTC or local time, also without --segment.",
            show_default="local with --segment",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    pre: Annotated[float, typer.Option(min=0, help="Include up to this many seconds from before the start.")] = 0.0,
    reconnect: Annotated[
        float, typer.Option(min=0, help="When the publisher ends, wait this many seconds for it to come back.")
    ] = 5.0,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    format_name: Annotated[
        str | None, typer.Option(metavar="mpegts|nut|mkv", help="Format of standard output.", show_default="mpegts")
    ] = None,
    connect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the publisher.")] = 5.0,
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Report as JSON: a line when recording begins, one for each finished segment, one at the end.",
        ),
    ] = False,
) -> None:
    """Record a publisher's encoded packets without encoding them again. The recording begins with a keyframe and goes
    on until the publisher ends or a signal arrives.

    cuframes record cam0 'rec/%Y-%m-%d/%H-%M-%S.mkv' --segment 10min --keep 7d --max-size 500G

    cuframes record cam0 - | ffplay -
    """
    target = _Target(out, segment, keep, max_size, utc, overwrite, format_name, json_)
    stop_on_signals()
    reader = open_reader(key, "oldest" if pre else "keyframe", connect_timeout)
    problem: BaseException | None = None
    with reader:
        try:
            recording = target.recording(reader)
        except FileExistsError:
            fail(EXIT_ERROR, f"{out} already exists; choose another name, or replace it with --overwrite")
        try:
            with recording:
                target.ready(key, reader)
                _run(key, reader, recording, pre, seconds, reconnect)
        except BrokenPipeError as gone:
            if out != "-":
                problem = gone
            elif not json_:
                target.quiet = True
        except (Stopped, CuframesError, OSError) as caught:
            problem = caught
    if out == "-":
        discard_stdout()
    target.report(key, recording)
    if isinstance(problem, WriteFailed):
        fail(EXIT_ERROR, f"{problem}; {_kept(recording)}")
    if isinstance(problem, Exception):
        raise problem
    if recording.damage and not recording.packets:
        fail(EXIT_ERROR, f"nothing was recorded: {recording.damage}")
    if problem is not None:
        raise problem


def _kept(recording: Recording) -> str:
    if not recording.packets:
        return "nothing was recorded"
    return f"what was written before can be played: {recording.packets} packets"


def _run(
    key: str, reader: PacketReader, recording: Recording, pre: float, seconds: float | None, reconnect: float
) -> None:
    """Record until the publisher has ended for good, or the time is up."""
    end = time.monotonic() + (1e9 if seconds is None else seconds)
    for packet in backlog(reader, pre) if pre else ():
        recording.write(packet)
    while _copy(reader, recording, end) == "ended":
        left = max(0.0, end - time.monotonic())
        try:
            # One that is found may be about to end as well.
            reader = PacketReader(key, "oldest", connect_timeout=min(reconnect, left))
        except (NotFound, NoPacketRing, Disconnected, Timeout):  # it did not come back
            return
        recording.follow(reader)


def _copy(reader: PacketReader, recording: Recording, end: float) -> str:
    """Record one publisher's packets; return why the recording stopped."""
    with reader:
        while (left := end - time.monotonic()) > 0:
            try:
                packet = reader.next(min(left, LOOK_SECONDS))
            except Timeout:
                recording.look()
            except PacketOverrun:  # counted by the recording
                continue
            except Disconnected:
                return "ended"
            else:
                recording.write(packet)
    return "time is up"


class _Target:
    """Where the packets go, as the options say, and what is printed about it."""

    def __init__(
        self,
        out: str,
        segment: str | None,
        keep: str | None,
        max_size: str | None,
        utc: bool | None,
        overwrite: bool,
        format_name: str | None,
        json_: bool,
    ) -> None:
        self.quiet = False
        self._out = out
        self._overwrite = overwrite
        self._json = json_
        self._stream = out == "-"
        self._format = (
            "mpegts" if format_name is None else {"ts": "mpegts", "matroska": "mkv"}.get(format_name, format_name)
        )
        # Standard output has nothing but the stream.
        self._reports: TextIO = sys.stderr if self._stream else sys.stdout
        self._segment_s: float | None = None
        if self._stream:
            if segment is not None or overwrite:
                option = "--overwrite" if segment is None else "--segment"
                raise ValueError(f"{option} is for files, and - is standard output")
            if self._format not in STREAM_FORMATS:
                raise ValueError(f"--format-name must be {', '.join(STREAM_FORMATS)}, not {format_name!r}")
            check_stdout("packets", "cuframes record KEY - | ffplay -")
        elif format_name is not None:
            raise ValueError("--format-name is for standard output (-); the end of a file's name selects its format")
        if segment is None:
            if keep is not None or max_size is not None:
                raise ValueError(f"{'--max-size' if keep is None else '--keep'} needs --segment")
            if utc is not None:
                self._out = str(Pattern(out, utc=utc).path(time.time_ns()))
        else:
            if overwrite:
                raise ValueError("--overwrite cannot be used with --segment, which never replaces a file")
            self._segment_s = parse_duration(segment, "--segment")
            self._pattern = Pattern(out, utc=bool(utc))
            self._retention = Retention(
                self._pattern,
                None if keep is None else parse_duration(keep, "--keep"),
                None if max_size is None else parse_bytes(max_size, "--max-size"),
            )

    def recording(self, reader: PacketReader) -> Recording:
        """A recording to it."""
        if self._stream:
            return StreamRecording(sys.stdout.fileno(), self._format, reader)
        if self._segment_s is None:
            return Recording(Path(self._out), reader, overwrite=self._overwrite)
        return SegmentedRecording(
            self._pattern,
            reader,
            self._segment_s,
            retention=self._retention,
            finished=self._finished,
            told=self._notice,
        )

    def ready(self, key: str, reader: PacketReader) -> None:
        """Say that recording begins."""
        if self._json:
            self._print(event="ready", pid=os.getpid(), key=key, codec=reader.codec, out=self._out)
        else:
            where = "standard output" if self._stream else self._out
            print(f"recording {reader.codec} of {key} to {where}", file=sys.stderr)

    def report(self, key: str, recording: Recording) -> None:
        """Say what was recorded."""
        if self.quiet:
            return
        if self._json:
            self._print(
                event="end",
                key=key,
                paths=[str(path) for path in recording.paths],
                packets=recording.packets,
                bytes=recording.bytes,
                lost=recording.lost,
                unwritten=recording.unwritten,
                duration_s=round(recording.total_ns / SECOND_NS, 3),
            )
            return
        paths = recording.paths
        nothing = "nothing, since no keyframe came" if not recording.packets + recording.unwritten else "nothing"
        where = "standard output" if self._stream and recording.packets else ", ".join(map(str, paths)) or nothing
        if len(paths) > 3:
            where = f"{paths[0]} … {paths[-1]} ({len(paths)} files)"
        unwritten = f", {recording.unwritten} not written" if recording.unwritten else ""
        print(
            f"{where}: {recording.packets} packets, {recording.bytes} bytes, {recording.lost} lost{unwritten}",
            file=sys.stderr,
        )

    def _finished(self, file: FileReport) -> None:
        seconds = round(file.duration_ns / SECOND_NS, 3)
        if self._json:
            begun = datetime.fromtimestamp(file.begun_ns / SECOND_NS, UTC).isoformat(timespec="milliseconds")
            self._print(
                event="segment",
                path=str(file.path),
                begun=begun,
                duration_s=seconds,
                packets=file.packets,
                bytes=file.bytes,
            )
        else:
            print(f"{file.path}: {seconds:.1f} s, {file.packets} packets, {file.bytes} bytes", file=sys.stderr)

    def _notice(self, text: str) -> None:
        print(f"cuframes: {text}", file=sys.stderr, flush=True)
        if self._json:
            self._print(event="notice", text=text)

    def _print(self, **report: Any) -> None:
        print_json(report, self._reports)
