"""What is on this host: publishers seen from outside, without joining, and what dead ones left behind."""

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cuframes._mapped import DROP_OLDEST, HOST_MEMORY, STRICT_WAIT, VMM_MEMORY
from cuframes.errors import NotFound, ProtocolError
from cuframes.formats import pixel_format
from cuframes.names import (
    PACKETS_SUFFIX,
    SEGMENT_DIR,
    SEGMENT_PREFIX,
    check_key,
    packets_name,
    runtime_dirs,
    segment_name,
)
from cuframes.publisher import SubscriberInfo
from cuframes.segment import SegmentState, inspect, is_socket, open_segment, remove_dead

__all__ = [
    "PacketRingInfo",
    "PublisherInfo",
    "collect_garbage",
    "find_packet_ring",
    "find_publisher",
    "list_packet_rings",
    "list_publishers",
]

POLICY_NAMES = {DROP_OLDEST: "drop_oldest", STRICT_WAIT: "strict_wait"}


class PublisherInfo(NamedTuple):
    """A publisher as its control segment shows it.

    ``alive`` is False when its process is gone and nobody has taken the key over; ``closing`` when it has announced its
    end. Pids are those of the publisher's own namespace.
    """

    key: str
    alive: bool
    closing: bool
    pid: int
    format: str
    width: int
    height: int
    memory: str
    policy: str
    ring_size: int
    seq: int
    published: int
    dropped: int
    subscribers: tuple[SubscriberInfo, ...]


class PacketRingInfo(NamedTuple):
    """A packet ring as its segment shows it.

    ``codec_id`` is FFmpeg's AVCodecID, ``keyframe`` the number of the newest keyframe, ``bytes`` counts what was ever
    published.
    """

    key: str
    alive: bool
    closing: bool
    pid: int
    codec_id: int
    slots: int
    data_size: int
    extradata_size: int
    seq: int
    keyframe: int
    bytes: int


def list_publishers() -> list[PublisherInfo]:
    """Every frame ring on this host that we may read, by key. Reads only; joins nothing."""
    return [_info(name, state) for name, state in _segments() if state.kind == "frames"]


def list_packet_rings() -> list[PacketRingInfo]:
    """Every packet ring on this host that we may read, beside frames or alone, by key."""
    return [_packet_info(name, state) for name, state in _segments() if state.kind == "packets"]


def find_packet_ring(key: str) -> PacketRingInfo | None:
    """The packet ring of a key, or None."""
    name = packets_name(key).removeprefix(f"/{SEGMENT_PREFIX}")
    return next((_packet_info(found, state) for found, state in _segments(name) if state.kind == "packets"), None)


def find_publisher(key: str) -> PublisherInfo:
    """One publisher.

    Raises
    ------
    NotFound, ProtocolError, PermissionError
    """
    try:
        fd = open_segment(segment_name(key), writable=False)
    except NotFound:
        raise NotFound(f"no publisher of {key!r} on this host; see cuframes ls") from None
    try:
        state = inspect(fd)
    finally:
        os.close(fd)
    if state.state == "foreign" or state.kind == "packets":
        raise ProtocolError(f"{SEGMENT_DIR / segment_name(key)[1:]} is not a frame ring of version 3; remove that file")
    if state.header is None:
        raise NotFound(f"the publisher of {key!r} has not finished starting, or died doing so; see cuframes gc")
    return _info(key, state)


def _segments(wanted: str = "*") -> Iterator[tuple[str, SegmentState]]:
    """Name without the prefix, and state, of every segment. (A key may end like the name of a packet ring.)"""
    for path in sorted(SEGMENT_DIR.glob(f"{SEGMENT_PREFIX}{wanted}")):
        try:
            fd = open_segment(f"/{path.name}", writable=False)
        except (ValueError, NotFound, PermissionError):
            continue
        try:
            yield path.name.removeprefix(SEGMENT_PREFIX), inspect(fd)
        finally:
            os.close(fd)


def _info(key: str, state: SegmentState) -> PublisherInfo:
    header = state.header
    assert header is not None
    try:
        format_name = pixel_format(header["format"]).name
    except ValueError:
        format_name = f"unknown ({header['format']})"
    return PublisherInfo(
        key=key,
        alive=state.state == "alive",
        closing=header["shutdown"],
        pid=header["producer_pid"],
        format=format_name,
        width=header["width"],
        height=header["height"],
        memory=_memory(header),
        policy=POLICY_NAMES.get(header["policy"], "unknown"),
        ring_size=header["ring_size"],
        seq=header["global_seq"],
        published=header["frames_published"],
        dropped=header["frames_dropped"],
        subscribers=tuple(SubscriberInfo(**entry) for entry in header["subscribers"]),
    )


def _packet_info(name: str, state: SegmentState) -> PacketRingInfo:
    header = state.header
    assert header is not None
    return PacketRingInfo(
        key=name.removesuffix(PACKETS_SUFFIX),
        alive=state.state == "alive",
        closing=header["shutdown"],
        pid=header["producer_pid"],
        codec_id=header["codec_id"],
        slots=header["slots"],
        data_size=header["data_size"],
        extradata_size=header["extradata_size"],
        seq=header["seq"],
        keyframe=header["keyframe"],
        bytes=header["bytes"],
    )


def _memory(header: dict[str, Any]) -> str:
    if header["ext_flags"] & HOST_MEMORY:
        return "host"
    if header["ownership_mode"] == 1:
        return "cuda-external"
    return "cuda" if header["ext_flags"] & VMM_MEMORY else "cuda-ipc"


def collect_garbage(keys: Iterable[str] | None = None, *, dry_run: bool = False) -> list[Path]:
    """Remove segments and sockets whose owner is dead; returns their paths. With `dry_run` only says which.

    With `keys`, those of these keys only.

    Never touches what a living publisher owns: a segment is removed under its owner lock, a socket only when nobody
    listens on it.
    """
    removed = []
    chosen = None if keys is None else {check_key(key) for key in keys}
    for name, state in list(_segments()):
        if chosen is not None and name not in chosen and name.removesuffix(PACKETS_SUFFIX) not in chosen:
            continue
        if state.state == "dead" and (dry_run or remove_dead(f"/{SEGMENT_PREFIX}{name}")):
            removed.append(SEGMENT_DIR / f"{SEGMENT_PREFIX}{name}")
    for directory in runtime_dirs():
        try:
            sockets = sorted(path for path in directory.glob("*.sock") if is_socket(path))
        except PermissionError:
            continue
        for path in sockets:
            if (chosen is None or path.stem in chosen) and _abandoned(path):
                if not dry_run:
                    path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _abandoned(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer too: somebody listens
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
