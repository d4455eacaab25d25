"""Files in shared memory that are not what they should be, looked at and opened by everybody who does.

What must hold: an answer, or an exception that is documented; nobody dies, hangs or leaves anything.
"""

import contextlib
import io
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import typer

from cuframes import (
    CuframesError,
    PacketOverrun,
    PacketPublisher,
    PacketReader,
    Publisher,
    Timeout,
    list_packet_rings,
    list_publishers,
)
from cuframes.cli import host
from cuframes.framecache import SlotReader, SlotWriter, create_slot, find_slot, list_slots, remove_slot
from cuframes.session.listing import collect_garbage, find_packet_ring, find_publisher
from stress.actors import HEIGHT, WIDTH, pattern
from stress.rounds import Round, Scenario
from stress.scribbles import value

PIXELS = pattern(1).reshape(HEIGHT, WIDTH)
_templates: dict[str, bytes] = {}


def templates(key: str) -> dict[str, bytes]:
    """The bytes of a frame ring's control segment, a packet ring and a slot, all sound; made once."""
    if not _templates:
        with (
            Publisher(key, WIDTH, HEIGHT, "gray8") as publisher,
            SlotWriter(key, WIDTH, HEIGHT, "gray8", ring_depth=4) as slot,
        ):
            publisher.enable_packets("h264", slots=8, data_size=9999, extradata=b"extradata")
            for number in range(20):
                publisher.publish(PIXELS)
                publisher.publish_packet(PIXELS, pts_ns=number, keyframe=number % 4 == 0)
                slot.write(PIXELS)
            _templates["frames"] = Path(f"/dev/shm/cuframes-{key}").read_bytes()
            _templates["packets"] = Path(f"/dev/shm/cuframes-{key}-packets").read_bytes()
            _templates["slot"] = _slot(key).read_bytes()
        remove_slot(key)
    return _templates


def _slot(key: str) -> Path:
    return Path(os.environ["CUFRAMES_FRAMECACHE_DIR"]) / key


def mutated(chance: random.Random, sound: bytes, header: int) -> bytes:
    """A few wrong numbers, mostly in the header; perhaps the wrong size."""
    raw = bytearray(sound)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 10))):
        new = value(chance)
        limit = header if chance.random() < 0.8 else len(raw)
        at = chance.randrange(0, limit - 8) // len(new) * len(new)
        raw[at : at + len(new)] = new
    if chance.random() < 0.3:
        size = chance.choice((0, 1, 3, 4, 63, 64, 100, 4095, 4096, 4159, 4160, 4224, 8447, 8448, len(raw) - 1))
        raw = raw[:size]
    if chance.random() < 0.1:
        raw += bytes(chance.choice((1, 4096, 1 << 20)))
    return bytes(raw)


def put(game: Round, path: Path, sound: bytes, header: int) -> Callable[[], None]:
    """Something at `path`. What is returned changes it while it is in use."""
    chance = game.random
    kind = chance.random()
    if kind < 0.85:
        raw = mutated(chance, sound, header)
        path.write_bytes(raw)
        if kind < 0.3:
            return lambda: os.truncate(path, chance.choice((0, 100, 4096, len(raw) // 2)))
        return lambda: None
    strange = chance.choice(("fifo", "directory", "link", "loop", "socket", "device"))
    if strange == "fifo":
        os.mkfifo(path)
    elif strange == "directory":
        path.mkdir()
    elif strange == "link":
        path.symlink_to("/etc/passwd")
    elif strange == "loop":
        path.symlink_to(path.name)
    elif strange == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return lambda: None


def drop(path: Path) -> None:
    """Whatever it is."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def look(game: Round, name: str, function: Callable[[], object]) -> None:
    """Call it; what is documented may be raised."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function()
    except (CuframesError, PermissionError, FileExistsError, typer.Exit):
        pass
    except Exception as problem:
        where = traceback.extract_tb(problem.__traceback__)[-1]
        kind = f"{name} raises {type(problem).__name__}: {problem} ({Path(where.filename).name}:{where.name})"
        game.fault(kind, traceback.format_exc())


def _read_packets(key: str, start: str) -> None:
    with PacketReader(key, start, connect_timeout=0) as reader:
        _ = reader.extradata, reader.codec, repr(reader), reader.stats()
        for number in range(30):
            with contextlib.suppress(PacketOverrun):
                _ = bytes(reader.next(0, copy=number % 2 == 0).data)


def _read_slot(key: str, start: str) -> None:
    with SlotReader(key, start=start, connect_timeout=0) as reader:
        _ = repr(reader), reader.info(), reader.stats(), reader.fps
        for number in range(30):
            with contextlib.suppress(Timeout):
                reader.read(0, copy=number % 2 == 0).data.sum()


def _write_slot(key: str) -> None:
    with SlotWriter(key) as writer:
        for number in range(6):
            with contextlib.suppress(ValueError):  # another shape than the frame's
                writer.write(PIXELS)
            with contextlib.suppress(ValueError), writer.acquire() as frame:
                frame.data[...] = number
            with contextlib.suppress(ValueError):
                writer.write(b"x")
        writer.info()


def _publish(key: str) -> None:
    with Publisher(key, WIDTH, HEIGHT, "gray8") as publisher:
        publisher.publish(PIXELS)


def _publish_packets(key: str) -> None:
    with PacketPublisher(key, "h264", slots=4, data_size=4000) as publisher:
        publisher.publish_packet(b"x", pts_ns=1)


def rings(game: Round) -> None:
    """Segments of frame and packet rings."""
    sound, key, chance = templates(f"{game.key}-t"), game.key, game.random
    paths = [Path(f"/dev/shm/cuframes-{key}"), Path(f"/dev/shm/cuframes-{key}-packets")]
    changes = [put(game, paths[0], sound["frames"], 8448), put(game, paths[1], sound["packets"], 4160 + 8 * 64)]
    looks: list[tuple[str, Callable[[], object]]] = [
        ("list_publishers", list_publishers),
        ("list_packet_rings", list_packet_rings),
        ("find_publisher", lambda: find_publisher(key)),
        ("find_packet_ring", lambda: find_packet_ring(key)),
        ("ls", lambda: host.ls(json_=chance.random() < 0.5)),
        ("info", lambda: host.info(key, json_=chance.random() < 0.5)),
        ("gc, dry", lambda: collect_garbage([key], dry_run=True)),
        ("PacketReader", lambda: _read_packets(key, chance.choice(("keyframe", "oldest", "next")))),
    ]
    takes: list[tuple[str, Callable[[], object]]] = [
        ("gc", lambda: collect_garbage([key])),
        ("Publisher", lambda: _publish(key)),
        ("PacketPublisher", lambda: _publish_packets(key)),
    ]
    chance.shuffle(looks)
    chance.shuffle(takes)
    try:
        _look_while_it_changes(game, looks, changes)
        for name, function in takes:
            look(game, name, function)
    finally:
        for path in paths:
            drop(path)


def slots(game: Round) -> None:
    """Files in the slots' directory."""
    sound, key, chance = templates(f"{game.key}-t"), game.key, game.random
    path = _slot(key)
    path.parent.mkdir(exist_ok=True)
    change = put(game, path, sound["slot"], 160)
    looks: list[tuple[str, Callable[[], object]]] = [
        ("list_slots", list_slots),
        ("find_slot", lambda: find_slot(key)),
        ("SlotReader", lambda: _read_slot(key, chance.choice(("next", "latest", "oldest")))),
        ("SlotWriter", lambda: _write_slot(key)),
        ("create_slot", lambda: create_slot(key, WIDTH, HEIGHT, "gray8", ring_depth=4)),
    ]
    chance.shuffle(looks)
    try:
        _look_while_it_changes(game, looks, [change])
        look(game, "remove_slot", lambda: remove_slot(key))
    finally:
        drop(path)
        drop(Path(f"/dev/shm/sem.framecache-{key}-write"))


def _look_while_it_changes(
    game: Round, looks: list[tuple[str, Callable[[], object]]], changes: list[Callable[[], None]]
) -> None:
    delay = game.random.random() ** 2 * 0.01

    def change() -> None:
        time.sleep(delay)
        for one in changes:
            with contextlib.suppress(FileNotFoundError):
                one()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for name, function in looks:
            look(game, name, function)
    finally:
        changing.join()


SCENARIOS = (
    Scenario("segments-rings", "strange files as segments: ls, info, gc, readers, publishers", rings, 0.7, 10),
    Scenario("segments-slots", "strange files as slots: lists, readers, writers", slots, 0.7, 10),
    Scenario("segments-rings-asan", "the same, extension modules under ASan", rings, 0.5, 20, asan=True),
    Scenario("segments-slots-asan", "the same, extension modules under ASan", slots, 0.5, 20, asan=True),
)
