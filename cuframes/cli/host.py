"""``cuframes ls``, ``info`` and ``gc``: what is on this host. None of them writes to a ring."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cuframes.cli import EXIT_STALE
from cuframes.listing import PublisherInfo, collect_garbage, find_publisher, list_publishers

__all__ = ["gc", "info", "ls"]


def _print(table: Table) -> None:
    """A table as wide as it has to be when nobody looks at it through a terminal."""
    Console(width=None if sys.stdout.isatty() else 300).print(table)


def _as_json(info: PublisherInfo) -> dict[str, Any]:
    return info._asdict() | {"subscribers": [subscriber._asdict() for subscriber in info.subscribers]}


def _state(info: PublisherInfo) -> str:
    if not info.alive:
        return "stale"
    return "closing" if info.closing else "live"


def ls(json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False) -> None:
    """List the publishers of this host."""
    found = list_publishers()
    if json_:
        print(json.dumps([_as_json(info) for info in found], indent=2))
        return
    if not found:
        print("no publishers on this host")
        return
    table = Table(
        "key", "state", "pid", "video", "memory", "frames", "dropped", "subscribers", box=None, pad_edge=False
    )
    for info in found:
        video = f"{info.format} {info.width}x{info.height}"
        numbers = map(str, (info.published, info.dropped, len(info.subscribers)))
        table.add_row(info.key, _state(info), str(info.pid), video, info.memory, *numbers)
    _print(table)


def info(
    key: Annotated[str, typer.Argument(help="Publisher to look at.")],
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Show one publisher and its subscribers. Exit status 4: its process is gone."""
    found = find_publisher(key)
    if json_:
        print(json.dumps(_as_json(found), indent=2))
    else:
        print(f"{found.key}: {_state(found)}, pid {found.pid}")
        video = f"{found.format} {found.width}x{found.height}"
        print(f"  {video}, {found.memory} memory, {found.ring_size} slots, {found.policy}")
        print(f"  {found.published} frames published, {found.dropped} dropped, newest sequence number {found.seq}")
        table = Table("subscriber", "pid", "bit", "received", "lost", "skipped", "held", box=None, pad_edge=False)
        for subscriber in found.subscribers:
            table.add_row(subscriber.name, *map(str, subscriber[1:]))
        if found.subscribers:
            _print(table)
        else:
            print("  no subscribers")
    if not found.alive:
        raise typer.Exit(EXIT_STALE)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Remove segments and sockets whose owner is dead. Running publishers are not touched."""
    paths = [str(path) for path in collect_garbage(dry_run=dry_run)]
    if json_:
        print(json.dumps({"dry_run": dry_run, "removed": paths}))
        return
    for path in paths:
        print(f"{'would remove' if dry_run else 'removed'} {path}")
    if not paths:
        print("nothing to remove")
