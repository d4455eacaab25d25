"""The publishers on this host, examined without joining, and the files that dead publishers left behind."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cuframes._native.control import DROP_OLDEST, HOST_MEMORY, STRICT_WAIT, VMM_MEMORY
from cuframes._native.ring_end import pause_at_exit
from cuframes.color import Presentation
from cuframes.errors import NotFound, ProtocolError, Timeout
from cuframes.formats import pixel_format
from cuframes.host.files import OUT_OF_RESOURCES, may_unlink
from cuframes.host.keylock import cleaning, lock_path
from cuframes.host.names import (
    PACKETS_SUFFIX,
    SEGMENT_DIR,
    SEGMENT_PREFIX,
    check_directory,
    check_key,
    is_name,
    packets_name,
    runtime_dirs,
    segment_name,
)
from cuframes.host.segment import SegmentState, inspect, open_segment, remove_dead
from cuframes.session.asking import ask_for_segment
from cuframes.session.listener import is_abandoned, is_socket
from cuframes.session.status import SUFFIX as STATUS_SUFFIX
from cuframes.session.status import is_dead_status

__all__ = [
    "PacketRingInfo",
    "PublisherInfo",
    "SubscriberInfo",
    "collect_garbage",
    "find_packet_ring",
    "find_publisher",
    "list_packet_rings",
    "list_publishers",
]

log = logging.getLogger("cuframes")

ASKING_THREADS = 32
POLICY_NAMES = {DROP_OLDEST: "drop_oldest", STRICT_WAIT: "strict_wait"}


class SubscriberInfo(NamedTuple):
    """A connected subscriber, as it reports itself in the control segment."""

    name: str
    pid: int
    bit: int
    received: int
    lost: int
    skipped: int
    held: int


class PublisherInfo(NamedTuple):
    """A publisher as its control segment shows it.

    ``alive`` is False if the publisher's process has ended and no other publisher has taken over the key. ``closing``
    is True if the publisher has announced its end. Pids are those of the publisher's own pid namespace. ``named`` is
    False if the segment is not in this process's /dev/shm, because it was removed or the publisher is in another
    container; the information then comes from the publisher's socket. ``presentation`` is what the publisher says about
    colours, geometry and rate.
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
    named: bool = True
    presentation: Presentation = Presentation()


class PacketRingInfo(NamedTuple):
    """A packet ring as its segment shows it.

    ``codec_id`` is FFmpeg's AVCodecID. ``keyframe`` is the sequence number of the newest keyframe. ``bytes`` is the
    total number of bytes published.
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
    """All frame rings on this host that this process may read, sorted by key. Does not join them.

    A publisher that is found only by its socket, and does not answer, is left out with a warning in the log.
    """
    found = {name: _info(name, state) for name, state in _segments() if state.kind == "frames"}
    alive = {name for name, info in found.items() if info.alive}  # a dead one may live on in another container
    asked = set().union(*(_names(directory, suffix=".sock") for directory in runtime_dirs())) - alive
    found |= {info.key: info for info in _ask_all(asked)}
    return [found[key] for key in sorted(found)]


def list_packet_rings() -> list[PacketRingInfo]:
    """All packet rings on this host that this process may read, beside frames or alone, sorted by key."""
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
    Timeout
        The segment is not in this process's /dev/shm, and the publisher does not answer.
    """
    try:
        file = open_segment(segment_name(key), writable=False)
    except NotFound:
        if info := _ask(key):
            return info
        raise NotFound(f"no publisher of {key!r} on this host; see cuframes ls") from None
    with file:
        state = inspect(file.fileno())
    if state.state != "alive" and (info := _ask(key)):  # it lives in another container
        return info
    if state.kind == "packets":
        raise NotFound(f"{key!r} is a packet ring, not a publisher of frames; see cuframes ls")
    if state.state == "foreign":
        raise ProtocolError(f"{SEGMENT_DIR / segment_name(key)[1:]} is not a frame ring of version 3; remove this file")
    if state.header is None:
        raise NotFound(f"the publisher of {key!r} has not finished starting, or died while starting; see cuframes gc")
    return _info(key, state)


def _ask(key: str) -> PublisherInfo | None:
    """A publisher whose segment is not in our /dev/shm: it was removed, or is in another container's.

    Raises
    ------
    Timeout
        The publisher is running, and does not answer.
    """
    silent = None
    for directory in runtime_dirs():
        try:
            file = ask_for_segment(directory / f"{key}.sock")
        except Timeout as problem:
            silent = problem
            continue
        if file is None:
            continue
        with file:
            state = inspect(file.fileno())
        if state.kind == "frames":
            return _info(key, state)._replace(named=False)
    if silent is not None:
        raise silent
    return None


def _ask_all(keys: Iterable[str]) -> list[PublisherInfo]:
    """Ask the publishers of these keys, many at a time, since each may be silent for half a second.

    In plain threads: a ThreadPoolExecutor cannot be used, nor imported, once the main thread has ended, while other
    threads of the program go on. If no thread can be started, the caller asks them all.
    """
    left = sorted(keys, reverse=True)
    found: list[PublisherInfo] = []
    problems: list[Exception] = []

    def ask() -> None:
        while left and not problems:
            try:
                key = left.pop()
            except IndexError:  # another thread was faster
                return
            try:
                info = _ask_or_say(key)
            except Exception as problem:
                problems.append(problem)
                return
            if info is not None:
                found.append(info)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(min(len(left), ASKING_THREADS) - 1)]
    begun = []
    try:
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:  # there are too many, or the interpreter ends
                pause_at_exit()
                break
            begun.append(thread)
        ask()
        for thread in begun:
            thread.join()
    finally:
        left.clear()  # if this was interrupted
    if problems:
        raise problems[0]
    return found


def _ask_or_say(key: str) -> PublisherInfo | None:
    try:
        return _ask(key)
    except Timeout as problem:
        log.warning("%s is not listed: %s", key, problem)
        return None


def _segments(wanted: str | None = None) -> Iterator[tuple[str, SegmentState]]:
    """Name without the prefix, and state, of every segment, or of one. (A key may end like the name of a packet ring.)

    Files that cannot be opened, or are not segments, are skipped, since every user may create files there.
    """
    for name in sorted(_names(SEGMENT_DIR, SEGMENT_PREFIX)) if wanted is None else [wanted]:
        try:
            file = open_segment(f"/{SEGMENT_PREFIX}{name}", writable=False)
        except ProtocolError:
            continue
        except OSError as problem:
            if problem.errno in OUT_OF_RESOURCES:
                raise
            continue
        with file:
            state = inspect(file.fileno())
        yield name, state


def _names(directory: Path, prefix: str = "", suffix: str = "") -> set[str]:
    """The names (keys) of the publishers' files in a directory; empty if this user may not read it."""
    try:
        files = os.listdir(directory)
    except OSError as problem:
        if problem.errno in OUT_OF_RESOURCES:
            raise
        return set()
    names = {
        name[len(prefix) : len(name) - len(suffix)]
        for name in files
        if name.startswith(prefix) and name.endswith(suffix)
    }
    return {name for name in names if is_name(name)}


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
        presentation=Presentation.of_stored(header["presentation"]),
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
    """Remove segments, sockets and lock files whose owner is dead. Returns their paths.

    With `dry_run` nothing is removed, and the paths are those that would be removed now. With `keys` only files of
    these keys are removed.

    Files of a living publisher are never touched: a file is examined and removed while the lock of its name is held,
    and a living publisher never releases that lock. Files of other users, and files that cannot be read, are
    skipped. (A plain version 3 publisher of another pid namespace holds no lock, and looks like a dead one.)
    """
    directories = [directory for directory in runtime_dirs() if _is_ours(directory)]
    names = _names(SEGMENT_DIR, SEGMENT_PREFIX)
    for directory in directories:
        for suffix in (".lock", ".sock", STATUS_SUFFIX):
            names |= _names(directory, suffix=suffix)
    if keys is not None:
        names &= {name for key in keys for name in (check_key(key), key + PACKETS_SUFFIX)}
    return [path for name in sorted(names) for path in _collect(name, directories, dry_run)]


def _is_ours(directory: Path) -> bool:
    """Whether a runtime directory is safe, and this process may clean up in it."""
    try:
        check_directory(directory)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _collect(name: str, directories: list[Path], dry_run: bool) -> list[Path]:
    """What is garbage of a name. A dry run decides as the others do, under the same locks, and removes nothing."""
    found = []
    with contextlib.ExitStack() as held:
        for directory in directories:
            path = lock_path(directory, name)
            there = os.path.lexists(path)
            if not held.enter_context(cleaning(directory, name, dry_run=dry_run)):
                return []
            if there and may_unlink(path):
                found.append(path)
        for path in _dead(name, directories):
            with contextlib.suppress(OSError):  # another user's
                if not may_unlink(path):
                    continue
                if path.parent == SEGMENT_DIR:
                    if not remove_dead(f"/{SEGMENT_PREFIX}{name}", dry_run=dry_run):
                        continue
                elif not dry_run:
                    path.unlink(missing_ok=True)
                found.append(path)
    return sorted(found)


def _dead(name: str, directories: list[Path]) -> Iterator[Path]:
    """The segment, sockets and status files of a name whose owners are dead. The caller must hold the name's lock."""
    for _, state in _segments(name):
        if state.state == "dead":
            yield SEGMENT_DIR / f"{SEGMENT_PREFIX}{name}"
    for directory in directories:
        path = directory / f"{name}.sock"
        if is_socket(path) and is_abandoned(path):
            yield path
        path = directory / f"{name}{STATUS_SUFFIX}"
        if is_dead_status(path):
            yield path
