"""``cuframes record``: packets to a file, without encoding."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cuframes.cli import Stopped, stop_on_signals
from cuframes.errors import Disconnected, NoPacketRing, NotFound, PacketOverrun, Timeout
from cuframes.media.recording import Recording, backlog
from cuframes.packets import PacketReader

__all__ = ["record"]

SECOND_NS = 1_000_000_000


def record(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    out: Annotated[Path, typer.Argument(help="File to write: .mp4, .mov, .mkv or .ts.")],
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    pre: Annotated[float, typer.Option(min=0, help="Include up to this many seconds from before the start.")] = 0.0,
    reconnect: Annotated[
        float, typer.Option(min=0, help="When the publisher ends, wait this many seconds for it to come back.")
    ] = 5.0,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    connect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the publisher.")] = 5.0,
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Record a publisher's encoded packets without encoding them again. The recording begins with a keyframe and goes
    on until the publisher ends or SIGTERM arrives.
    """
    stop_on_signals()
    reader = PacketReader(key, "oldest" if pre else "keyframe", connect_timeout=connect_timeout)
    with Recording(out, reader, overwrite=overwrite) as recording, contextlib.suppress(Stopped):
        if not json_:
            print(f"recording {reader.codec} of {key} to {out}", file=sys.stderr)
        for packet in backlog(reader, pre) if pre else ():
            recording.write(packet)
        end = time.monotonic() + (1e9 if seconds is None else seconds)
        # The publisher ended and did not come back in time. One that is found meanwhile may be about to end.
        with contextlib.suppress(NotFound, NoPacketRing, Disconnected, Timeout):
            while _copy(reader, recording, end) == "ended":
                timeout = min(reconnect, max(0.0, end - time.monotonic()))
                reader = PacketReader(key, "oldest", connect_timeout=timeout)
                recording.follow(reader)
    report = {
        "key": key,
        "paths": [str(path) for path in recording.paths],
        "packets": recording.packets,
        "bytes": recording.bytes,
        "lost": recording.lost,
        "duration_s": round(recording.duration_ns / SECOND_NS, 3),
    }
    if json_:
        print(json.dumps(report))
    else:
        where = ", ".join(map(str, recording.paths)) or "nothing, since no keyframe came"
        print(f"{where}: {recording.packets} packets, {recording.bytes} bytes, {recording.lost} lost", file=sys.stderr)


def _copy(reader: PacketReader, recording: Recording, end: float) -> str:
    """Record one publisher's packets; return why the recording stopped."""
    with reader:
        while (left := end - time.monotonic()) > 0:
            try:
                recording.write(reader.next(left))
            except (Timeout, PacketOverrun):  # the latter is counted by the recording
                continue
            except Disconnected:
                return "ended"
    return "time is up"
