"""A hostile process of the same user stores anything anywhere into the shared segments, while others use them.

A subscriber of the same user may break the protection of frames, so they may be torn. What must hold: nobody dies,
nobody hangs for ever, ``close()`` ends, and who reads goes on, or is told why not, once the publisher has published
again.
"""

import contextlib
import mmap
import os
import random
import time
from pathlib import Path

from cuframes.errors import NotFound
from cuframes.framecache import remove_slot
from cuframes.session.listing import collect_garbage
from stress.actors import Actor, Board, guest, packet_guest, publisher, slot_guest, slot_writer
from stress.rounds import Round, Scenario, eventually

SECONDS = 0.8
HEADER = 8448
INTERESTING = (0, 1, 2, 3, 7, 15, 16, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def value(chance: random.Random) -> bytes:
    """1 to 8 bytes: a number that may hurt, or any other."""
    size = chance.choice((1, 4, 4, 8, 8, 8))
    number = chance.choice(INTERESTING) if chance.random() < 0.7 else chance.getrandbits(64)
    return (number + chance.choice((0, 0, -1, 1)) & (1 << 8 * size) - 1).to_bytes(size, "little")


def scribbler(board: Board, path: Path, limit: int, seed: int, pause: float) -> None:
    """Stores anything into the first `limit` bytes of a file."""
    chance = random.Random(seed)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as segment:
        limit = min(limit, len(segment)) - 8
        while not board.stop:
            raw = value(chance)
            # Every other time where the counters and the first slot are.
            at = chance.randrange(0, chance.choice((limit, min(limit, 320)))) // len(raw) * len(raw)
            segment[at : at + len(raw)] = raw
            board.progress += 1
            time.sleep(pause)


def impostor(board: Board, path: Path, seed: int, pause: float) -> None:
    """Says that a frame with an absurd number is in its slot, and is the newest; pins nothing."""
    chance = random.Random(seed)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), HEADER) as segment:
        count = int.from_bytes(segment[32:40], "little")
        while not board.stop:
            seq = chance.choice((2**62, 2**63, 2**64 - 20)) + chance.randrange(16)
            at = 256 + 192 * (seq % count)
            segment[at : at + 8] = segment[192:200] = seq.to_bytes(8, "little")
            board.progress += 1
            time.sleep(pause)


def scribble(game: Round, source: Actor, guests: list[Actor], path: Path, limit: int) -> None:
    """Let it happen, and see who is still there."""
    chance = game.random
    seed, pause = chance.getrandbits(32), chance.choice((0, 0.0001, 0.01))
    if limit == HEADER and chance.random() < 0.4:
        vandal = Actor(game, impostor, path, seed, pause)
    else:
        vandal = Actor(game, scribbler, path, limit, seed, pause)
    time.sleep(SECONDS)
    vandal.end()
    # What a hostile subscriber has pinned stays pinned, so perhaps every frame is dropped from now on.
    before, counts = source.board.progress, [one.board.progress + one.board.errors for one in guests]
    publishes = bool(eventually(lambda: source.board.progress > before + 40, 3))
    for one, count in zip(guests, counts, strict=True):
        if publishes and not eventually(lambda one=one, count=count: one.board.progress + one.board.errors > count):
            game.fault(f"{one.role.__name__} gets neither frame nor error after scribbling")
    for actor in (*guests, source):
        actor.end()


def _begin(game: Round, source: Actor, guests: list[Actor]) -> None:
    for actor in (source, *guests):
        if not actor.moves():
            game.fault(f"{actor.role.__name__} does not begin")


def frames(game: Round) -> None:
    """The control segment of a frame ring."""
    policy = game.random.choice(("drop_oldest", "strict_wait"))
    source = Actor(game, publisher, game.key, game.random.randint(2, 8), policy)
    guests = [Actor(game, guest, game.key) for _ in range(2)]
    _begin(game, source, guests)
    scribble(game, source, guests, Path(f"/dev/shm/cuframes-{game.key}"), HEADER)
    _tidy(game)


def packets(game: Round) -> None:
    """A packet ring: its header, the slots, the data."""
    source = Actor(game, publisher, game.key, 4, "drop_oldest")
    guests = [Actor(game, packet_guest, game.key) for _ in range(2)]
    _begin(game, source, guests)
    limit = game.random.choice((64, 4160 + 16 * 64, 1 << 20))
    scribble(game, source, guests, Path(f"/dev/shm/cuframes-{game.key}-packets"), limit)
    _tidy(game)


def slots(game: Round) -> None:
    """A framecache slot: its header, the entries."""
    source = Actor(game, slot_writer, game.key, game.random.choice((2, 4)))
    guests = [Actor(game, slot_guest, game.key) for _ in range(2)]
    _begin(game, source, guests)
    path = Path(os.environ["CUFRAMES_FRAMECACHE_DIR"]) / game.key
    scribble(game, source, guests, path, game.random.choice((152, 4096 + 24, 1 << 20)))
    with contextlib.suppress(NotFound):  # without its magic number it is no slot
        remove_slot(game.key)
    path.unlink(missing_ok=True)
    Path(f"/dev/shm/sem.framecache-{game.key}-write").unlink(missing_ok=True)


def _tidy(game: Round) -> None:
    """A segment without its magic is nobody's any more."""
    collect_garbage([game.key])
    for path in Path("/dev/shm").glob(f"cuframes-{game.key}*"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


SCENARIOS = (
    Scenario("scribble-frames", "a hostile process writes anything into the control segment", frames),
    Scenario("scribble-packets", "the same, packet ring", packets, 0.6),
    Scenario("scribble-slots", "the same, slot", slots, 0.6),
)
