"""``cuframes ls``, ``info`` and ``gc``: the publishers of this host. None of these commands writes to a ring."""

import json
import sys
import time
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from cuframes.cli import EXIT_STALE
from cuframes.codecs import codec_name
from cuframes.color import Presentation
from cuframes.errors import NotFound, printable
from cuframes.host.names import runtime_dirs
from cuframes.session.listing import (
    PacketRingInfo,
    PublisherInfo,
    collect_garbage,
    find_packet_ring,
    find_publisher,
    list_packet_rings,
    list_publishers,
)
from cuframes.session.status import SourceStatus, find_status, list_statuses

__all__ = ["gc", "info", "ls", "print_table"]


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal, or up to 300 columns if the output is not a terminal. Its first column,
    of names, is never cut.
    """
    first = table.columns[0]
    first.min_width = max(len(str(cell)) for cell in [first.header, *first.cells])
    Console(width=None if sys.stdout.isatty() else 300, markup=False, emoji=False).print(table)


def _as_json(info: PublisherInfo, packets: PacketRingInfo | None, source: SourceStatus | None = None) -> dict[str, Any]:
    subscribers = [subscriber._asdict() for subscriber in info.subscribers]
    beside = {"packets": packets and _packets_as_json(packets), "source": source and _source_as_json(source)}
    said = info._asdict()
    del said["presentation"]
    return said | info.presentation.named | {"subscribers": subscribers} | beside


def _looks(presentation: Presentation) -> str:
    """What a publisher says about its pictures, in a line."""
    color = presentation.color
    said = [part for part in (color.range, color.matrix, color.primaries, color.transfer) if part]
    named = presentation.named
    for word, name in (("fps", "frame_rate"), ("aspect", "sample_aspect_ratio"), ("fields", "field_order")):
        if named[name] is not None:
            said.append(f"{word} {named[name]}")
    if presentation.rotation:
        said.append(f"to be turned by {presentation.rotation} degrees")
    return ", ".join(said)


def _source_as_json(source: SourceStatus) -> dict[str, Any]:
    said = source._asdict()
    del said["key"]
    return said


def _source_in_words(source: SourceStatus) -> str:
    """What a source does, since when, and why."""
    said = f"source {source.source}: {source.state}"
    if source.state != "live":
        seconds = max(0.0, time.time() - source.since)
        said += f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(source.since))} ({seconds:.0f} s)"
    if source.state in ("opening", "reconnecting"):
        said += f", attempt {source.attempt}"
    return said if source.error is None else f"{said}, last error: {source.error}"


def _packets_as_json(packets: PacketRingInfo) -> dict[str, Any]:
    return packets._asdict() | {"codec": codec_name(packets.codec_id)}


def _codec(packets: PacketRingInfo | None) -> str:
    return "-" if packets is None else codec_name(packets.codec_id) or f"codec {packets.codec_id}"


def _state(info: PublisherInfo | PacketRingInfo, source: SourceStatus | None = None) -> str:
    """A publisher's state; one whose source is not live does what the source does."""
    if not info.alive:
        return "stale"
    return "closing" if info.closing else "live" if source is None else source.state


def ls(json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False) -> None:
    """List the publishers of this host."""
    found = list_publishers()
    packets = {ring.key: ring for ring in list_packet_rings()}
    sources = {status.key: status for status in list_statuses()}
    if json_:
        listed = [_as_json(info, packets.pop(info.key, None), sources.pop(info.key, None)) for info in found]
        listed += [{"key": key, "packets": _packets_as_json(packets[key])} for key in packets]
        listed += [{"key": key, "source": _source_as_json(sources[key])} for key in sources]
        print(json.dumps(listed, indent=2))
        return
    if not found and not packets and not sources:
        places = ", ".join(map(str, runtime_dirs()))
        print(f"no publishers in {places}; see cuframes framecache ls for slots", file=sys.stderr)
        return
    columns = ("key", "state", "pid", "video", "memory", "frames", "dropped", "subscribers", "packets")
    table = Table(*columns, box=None, pad_edge=False)
    for info in found:
        video = f"{info.format} {info.width}x{info.height}"
        numbers = map(str, (info.published, info.dropped, len(info.subscribers)))
        codec = _codec(packets.pop(info.key, None))
        state = _state(info, sources.pop(info.key, None))
        table.add_row(info.key, state, str(info.pid), video, info.memory, *numbers, codec)
    for ring in packets.values():
        table.add_row(ring.key, _state(ring), str(ring.pid), *"-----", _codec(ring))
    for source in sources.values():  # that have not given a picture yet
        table.add_row(source.key, source.state, str(source.pid), *"------")
    print_table(table)


def info(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Show one publisher, its source and its subscribers. The exit status is 4 if the publisher's process is gone."""
    packets = find_packet_ring(key)
    source = find_status(key)
    try:
        found = find_publisher(key)
    except NotFound:
        if packets is None and source is None:
            raise
        if packets is None and source is not None:
            _source_alone(source, json_)
        elif packets is not None:
            _packets_alone(packets, json_)
        return
    if json_:
        print(json.dumps(_as_json(found, packets, source), indent=2))
    else:
        print(f"{found.key}: {_state(found, source)}, pid {found.pid}")
        if source is not None:
            print(f"  {_source_in_words(source)}")
        video = f"{found.format} {found.width}x{found.height}"
        print(f"  {video}, {found.memory} memory, {found.ring_size} slots, {found.policy}")
        if looks := _looks(found.presentation):
            print(f"  {looks}")
        print(f"  {found.published} frames published, {found.dropped} dropped, newest sequence number {found.seq}")
        if not found.named:
            print(
                "  its segment is not in /dev/shm: it was removed, or the publisher runs in another container; programs"
            )
            print("  that know only plain version 3 cannot join here")
        if packets is not None:
            print(f"  {_packets_in_words(packets)}")
        table = Table("subscriber", "pid", "bit", "received", "lost", "skipped", "held", box=None, pad_edge=False)
        for subscriber in found.subscribers:
            table.add_row(printable(subscriber.name), *map(str, subscriber[1:]))
        if found.subscribers:
            print_table(table)
        else:
            print("  no subscribers")
    if not found.alive:
        _stale(found.key, json_)


def _stale(key: str, json_: bool) -> NoReturn:
    if not json_:
        print(f"  its process is gone; to remove what it left: cuframes gc {key}")
    raise typer.Exit(EXIT_STALE)


def _packets_in_words(packets: PacketRingInfo) -> str:
    return (
        f"{packets.seq} packets of {_codec(packets)} published, {packets.bytes} bytes, newest keyframe "
        f"{packets.keyframe}; room for {packets.slots} packets and {packets.data_size} bytes"
    )


def _source_alone(source: SourceStatus, json_: bool) -> None:
    """A source that has not given a picture yet."""
    if json_:
        print(json.dumps({"key": source.key, "source": _source_as_json(source)}, indent=2))
    else:
        print(f"{source.key}: {source.state}, pid {source.pid}, no frames yet")
        print(f"  {_source_in_words(source)}")


def _packets_alone(packets: PacketRingInfo, json_: bool) -> None:
    if json_:
        print(json.dumps({"key": packets.key, "packets": _packets_as_json(packets)}, indent=2))
    else:
        print(f"{packets.key}: {_state(packets)}, pid {packets.pid}, packets only")
        print(f"  {_packets_in_words(packets)}")
    if not packets.alive:
        _stale(packets.key, json_)


def gc(
    keys: Annotated[list[str] | None, typer.Argument(help="Only these keys.", show_default="all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Remove segments and sockets whose owner is dead. Running publishers are not touched."""
    paths = [str(path) for path in collect_garbage(keys or None, dry_run=dry_run)]
    if json_:
        print(json.dumps({"dry_run": dry_run, "removed": paths}))
        return
    for path in paths:
        print(f"{'would remove' if dry_run else 'removed'} {path}")
    if not paths:
        print("nothing to remove")
