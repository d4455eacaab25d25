"""Kill storms: processes of every role are killed and stopped at random, and started again.

What must hold: no frame is torn; who was left alone goes on getting frames; afterwards no slot is pinned for the dead,
no descriptor is left in the living, and no file in shared memory.
"""

import signal
import struct
import time
import urllib.error
import urllib.request
from pathlib import Path

from harness import Service

from cuframes.framecache import remove_slot
from cuframes.session.listing import collect_garbage
from stress.actors import Actor, loop, packet_reader, publisher, slot_reader, slot_writer, subscriber, waiter
from stress.rounds import PATIENCE, Round, Scenario, eventually

STORM_SECONDS = 1.2
SLACK = 8  # descriptors that come and go: a listing's, one that is just being passed


def storm(game: Round, victims: list[Actor]) -> None:
    """Kill and stop `victims` at random, and start them again."""
    chance = game.random
    end = time.monotonic() + STORM_SECONDS
    while time.monotonic() < end:
        victim = chance.choice(victims)
        time.sleep(chance.random() ** 3 * 0.1)
        if chance.random() < 0.4:
            victim.signal(signal.SIGSTOP)
            time.sleep(chance.random() ** 2 * 0.15)
            if chance.random() < 0.6:
                victim.signal(signal.SIGCONT)
                continue
        victim.kill()
        time.sleep(chance.choice((0, 0, 0.02)))
        victim.start()
    for victim in victims:
        victim.signal(signal.SIGCONT)


def survive(game: Round, survivors: list[Actor]) -> None:
    """Everybody who was left alone gets frames."""
    for actor in survivors:
        if not actor.moves() and not actor.over():
            others = "\n".join(f"{other}:\n{other.where()}" for other in survivors if other is not actor)
            game.fault(f"{actor.role.__name__} gets nothing", f"{actor}:\n{actor.where()}\nbeside\n{others}")


def judge(game: Round, actors: list[Actor]) -> None:
    """End everybody, the publishers last, and see what they have seen."""
    for actor in reversed(actors):
        actor.end()
        if actor.board.torn:
            game.fault(f"{actor.role.__name__}: torn frames", f"{actor}: {actor.board.torn} of {actor.board.progress}")


def any_receiver(game: Round) -> Actor:
    """Somebody who takes frames or packets, in any way."""
    chance = game.random
    kind = chance.randrange(6)
    if kind < 3:
        mode, wait = chance.choice(("newest", "ordered")), chance.choice(("block", "block", "spin", "predictive"))
        return Actor(game, subscriber, game.key, mode, wait, chance.randrange(2))
    if kind == 3:
        return Actor(game, packet_reader, game.key, chance.choice(("block", "block", "spin")), chance.random() < 0.5)
    return Actor(game, waiter if kind == 4 else loop, game.key)


def header(key: str) -> tuple[int, int]:
    """Who has a place in the frame ring of `key`, and who has pinned a slot: bits."""
    raw = Path(f"/dev/shm/cuframes-{key}").read_bytes()
    pins = 0
    for slot in range(16):
        pins |= struct.unpack_from("<Q", raw, 256 + 192 * slot + 128)[0]
    return struct.unpack_from("<Q", raw, 200)[0], pins


def receivers(game: Round) -> None:
    """Only those who receive are killed; the publisher lives, and its ring is looked at."""
    chance = game.random
    policy = chance.choice(("drop_oldest", "drop_oldest", "strict_wait"))
    source = Actor(game, publisher, game.key, chance.randint(6, 16), policy)
    if not source.moves(80):
        game.fault("the publisher does not begin")
    before = source.board.descriptors
    survivors = [source, *(any_receiver(game) for _ in range(2))]
    victims = [any_receiver(game) for _ in range(chance.randint(1, 4))]
    storm(game, victims)
    survive(game, survivors)
    for victim in victims:
        victim.kill()
    frames = [actor for actor in survivors if actor.role in (subscriber, waiter, loop)]
    if not eventually(lambda: header(game.key)[0].bit_count() == len(frames)):
        game.fault("dead subscribers have places in the ring", f"{header(game.key)[0]:#x}, {len(frames)} live")
    survive(game, survivors)
    judge(game, [actor for actor in survivors if actor is not source])
    if not eventually(lambda: not any(header(game.key))):
        game.fault("slots are pinned for the dead", f"places and pins {header(game.key)}")
    if source.moves(80) and not eventually(lambda: source.moves(64) and source.board.descriptors <= before):
        game.fault("the publisher's descriptors grow", f"{before}, then {source.board.descriptors}")
    judge(game, [source])


def everybody(game: Round) -> None:
    """The publisher is killed too; who receives reconnects."""
    chance = game.random
    source = Actor(game, publisher, game.key, chance.randint(6, 16), chance.choice(("drop_oldest", "strict_wait")))
    survivors = [any_receiver(game) for _ in range(chance.randint(2, 4))]
    bystanders = [any_receiver(game) for _ in range(chance.randint(0, 2))]
    survive(game, [source, *survivors])
    before = [actor.board.descriptors for actor in survivors]
    storm(game, [source, source, *bystanders])
    survive(game, [source, *survivors])
    for actor, count in zip(survivors, before, strict=True):
        if not actor.over() and actor.moves(128) and actor.board.descriptors > count + SLACK:
            game.fault(f"{actor.role.__name__}'s descriptors grow", f"{actor}: {count}, then {actor.board.descriptors}")
    judge(game, [source, *survivors, *bystanders])
    collect_garbage(keys=[game.key])


def slots(game: Round) -> None:
    """Writers and readers of a slot."""
    chance = game.random
    source = Actor(game, slot_writer, game.key, chance.choice((2, 3, 8)))
    survivors = [Actor(game, slot_reader, game.key, chance.choice(("ordered", "newest")), chance.random() < 0.7)
                 for _ in range(2)]  # fmt: skip
    victim = Actor(game, slot_reader, game.key, "ordered", True)
    survive(game, [source, *survivors])
    storm(game, [source, victim])
    survive(game, [source, *survivors])
    judge(game, [source, *survivors, victim])
    remove_slot(game.key)


def service(game: Round) -> None:
    """The HTTP service is killed and stopped while it is asked; slots, their writers and readers do not notice."""
    source = Actor(game, slot_writer, game.key, 8)
    reader = Actor(game, slot_reader, game.key, "ordered", True)
    survive(game, [source, reader])
    for _ in range(2):
        with Service() as serving:
            ask(game, serving.url)
            serving.process.send_signal(signal.SIGSTOP)
            time.sleep(game.random.random() * 0.2)
            serving.process.send_signal(signal.SIGCONT)
            ask(game, serving.url)
            serving.stop(game.random.choice((signal.SIGKILL, signal.SIGTERM)))
    survive(game, [source, reader])
    judge(game, [source, reader])
    remove_slot(game.key)


def ask(game: Round, url: str) -> None:
    """Ask the service about everything."""
    for path in ("health", "slots", f"slots/{game.key}", "metrics", f"slots/{game.key}/thumbnail.jpg"):
        try:
            with urllib.request.urlopen(f"{url}/{path}", timeout=PATIENCE) as answer:
                answer.read()
        except urllib.error.HTTPError as refusal:
            refusal.close()
            if refusal.code >= 500:
                game.fault(f"the service answers {refusal.code}", path)


SCENARIOS = (
    Scenario("kill-receivers", "subscribers and readers of every kind are killed and stopped", receivers, 1.5, 120),
    Scenario("kill-everybody", "publishers too; receivers reconnect", everybody, 1.5, 120),
    Scenario("kill-slots", "writers and readers of slots are killed and stopped", slots, 0.8, 120),
    Scenario("kill-service", "the HTTP service is killed and stopped while it is asked", service, 0.5, 120),
)
