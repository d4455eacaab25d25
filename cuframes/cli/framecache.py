"""``cuframes framecache``: the service, and the commands for slots."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from cuframes._native.slot import DEFAULT_DEPTH
from cuframes.cli import EXIT_ERROR, fail, pixels, stop_on_signals
from cuframes.cli.host import print_table
from cuframes.cli.shapes import parse_size
from cuframes.cli.watch import Meter, follow
from cuframes.framecache import Client, SlotFrame, SlotReader, SlotReaderStats, create_slot, list_slots, remove_slot
from cuframes.framecache.client import DEFAULT_PORT, DEFAULT_URL
from cuframes.framecache.slots import age_us

__all__ = ["app"]

TOKEN_VARIABLE = "CUFRAMES_FRAMECACHE_TOKEN"

app = typer.Typer(
    help="Slots of raw frames in host memory, written once and read by any number of processes, and the service that "
    "manages them.",
    no_args_is_help=True,
)

SlotId = Annotated[str, typer.Argument(help="Name of the slot.")]
Url = Annotated[str, typer.Option(envvar="CUFRAMES_FRAMECACHE_URL", help="Address of the service.", show_default=True)]
Local = Annotated[bool, typer.Option("--local", help="Use the slots' files directly, without the service.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help=f"File with the bearer token; default: ${TOKEN_VARIABLE}."),
]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def _token(path: Path | None) -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None if path is None else path.read_text().strip()


def _client(url: str, token_file: Path | None) -> Client:
    return Client(url, token=_token(token_file))


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Addresses other than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = DEFAULT_PORT,
    token_file: TokenFile = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name to accept in the Host header; can be repeated.")
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Limit for all slots together, in GB; default: the free memory.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Members of this group may read and write new slots.")] = None,
    log_format: Annotated[str, typer.Option(metavar="json|text", help="Format of the log.")] = "json",
    log_level: Annotated[
        str, typer.Option(metavar="debug|info|warning|error", help="Level of the log; debug: every request.")
    ] = "info",
) -> None:
    """Run the service until SIGTERM or SIGINT. Slots stay, and the service adopts them when it starts again."""
    if log_format not in ("json", "text"):
        raise ValueError(f"--log-format must be json or text, not {log_format!r}")
    if log_level not in ("debug", "info", "warning", "error"):
        raise ValueError(f"--log-level must be debug, info, warning or error, not {log_level!r}")
    try:
        from cuframes.framecache import service
    except ImportError as missing:
        fail(EXIT_ERROR, f"the service needs {missing.name}; install it with: pip install 'cuframes[framecache]'")
    stop_on_signals()
    max_bytes = None if max_gb is None else int(max_gb * 1e9)
    numeric = int(group) if group is not None and group.isdigit() else group
    service.serve(
        lambda: service.Registry(max_bytes=max_bytes, group=numeric),
        host=host,
        port=port,
        token=_token(token_file),
        allow_hosts=tuple(allow_host or ()),
        log_format=log_format,
        log_level=log_level,
    )


@app.command()
def ls(url: Url = DEFAULT_URL, token_file: TokenFile = None, local: Local = False, json_: Json = False) -> None:
    """List the slots."""
    found = list_slots() if local else _client(url, token_file).list()
    if json_:
        print(json.dumps([slot._asdict() for slot in found], indent=2))
        return
    if not found:
        print("no slots")
        return
    columns = ("slot", "video", "fps", "measured", "last frame", "frames", "dropped", "writer", "ring")
    table = Table(*columns, box=None, pad_edge=False)
    for slot in found:
        table.add_row(
            slot.slot_id,
            escape(f"{slot.pixel_format} {slot.width}x{slot.height}"),
            f"{slot.fps_num / max(slot.fps_den, 1):.5g}",
            "-" if slot.fps is None else f"{slot.fps:.2f}",
            "-" if slot.last_frame_age_s is None else f"{slot.last_frame_age_s:.1f} s ago",
            str(slot.write_cursor),
            str(slot.dropped_frames),
            "none" if slot.writer_pid is None else f"pid {slot.writer_pid or 'unknown'}",
            f"{slot.ring_depth} frames, {slot.size / 1e6:.0f} MB",
        )
    print_table(table)


@app.command()
def create(
    slot_id: SlotId,
    size: Annotated[str, typer.Option(help="Size of the frames: WIDTHxHEIGHT.")],
    fps: Annotated[str, typer.Option(help="Nominal rate: 25, 59.94, 60000/1001.")] = "25",
    format: Annotated[str, typer.Option(help="Pixel format, by its FFmpeg, GStreamer or V4L2 name.")] = "uyvy422",
    ring_depth: Annotated[int, typer.Option(help="Number of frames that the slot holds.")] = DEFAULT_DEPTH,
    source_type: Annotated[str, typer.Option(help="Kind of source, shown to people: sdi, srt, …")] = "",
    group: Annotated[
        str | None, typer.Option(help="With --local: members of this group may read and write the slot.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    local: Local = False,
    json_: Json = False,
) -> None:
    """Create a slot."""
    width, height = parse_size(size) or (0, 0)
    options: dict[str, Any] = {"fps": fps, "ring_depth": ring_depth, "source_type": source_type}
    if local:
        made = create_slot(slot_id, width, height, format, **options, group=group)
    elif group is not None:
        raise ValueError("--group needs --local; for slots of the service, give --group to cuframes framecache serve")
    else:
        made = _client(url, token_file).create(slot_id, width, height, format, **options)
    print(json.dumps(made._asdict(), indent=2) if json_ else f"{slot_id}: {made.size} bytes, {ring_depth} frames")


@app.command()
def rm(slot_id: SlotId, url: Url = DEFAULT_URL, token_file: TokenFile = None, local: Local = False) -> None:
    """Remove a slot. Its readers can read the remaining frames, and are then disconnected."""
    if local:
        remove_slot(slot_id)
    else:
        _client(url, token_file).remove(slot_id)


class SlotMeter(Meter):
    """Counts a slot's frames, and measures their latency: from capture until the frame is read."""

    @staticmethod
    def next(reader: Any, timeout: float) -> Any:
        """The next frame."""
        return reader.read(timeout)

    def take(self, frame: SlotFrame) -> None:
        """Count one frame, and check its stamp."""
        age = age_us(frame.wall_us)
        self.count(age * 1000 if age else None)  # 0: captured by a clock that is ahead of this one
        if self.verify and pixels.read_stamp(frame) != frame.pts_us:
            self.torn += 1

    def report(self, reader: Any, *, final: bool = False) -> dict[str, Any]:
        """Figures so far."""
        counts: SlotReaderStats = reader.stats()
        words = {"read": counts.read, "dropped": counts.dropped}  # the slot format's
        return {"slot_id": reader.slot_id} | self.figures(final) | counts._asdict() | words

    @staticmethod
    def words(report: dict[str, Any]) -> tuple[str, str]:
        """A report's rate and counts, for people."""
        torn = f", torn {report['torn']}" if "torn" in report else ""
        counts = ", ".join(f"{name} {report[name]}" for name in SlotReaderStats._fields)
        return f"{report['fps']:.2f} fps", counts + torn


@app.command()
def watch(
    slot_id: SlotId,
    mode: Annotated[
        Literal["ordered", "newest"], typer.Option(help="Read all frames in order, or the newest.")
    ] = "ordered",
    start: Annotated[Literal["next", "latest", "oldest"], typer.Option(help="First frame to read.")] = "next",
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between reports.")] = 1.0,
    verify: Annotated[bool, typer.Option(help="Check every frame's stamp, from publish --slot --stamp.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object per report; the last has final: true.")
    ] = False,
) -> None:
    """Read a slot and print frames per second, lost and skipped frames, and latency since capture."""
    stop_on_signals()
    with SlotReader(slot_id, start=start, mode=mode, connect_timeout=0) as reader:
        follow(reader, SlotMeter(verify), seconds, interval, json_)
