"""close() against every call, at a random moment: from a thread, a task or a signal handler.

What must hold: the call ends in time, with what it was for or with an exception that is documented; frames that are
out stay whole; afterwards nothing is joined, and no thread, descriptor or file is left (which is looked at after every
round of every scenario).
"""

import asyncio
import contextlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy

from cuframes import (
    AlreadyExists,
    CuframesError,
    Disconnected,
    FrameDropped,
    NoCodecParameters,
    NoPacketRing,
    NotFound,
    PacketOverrun,
    PacketPublisher,
    PacketReader,
    Publisher,
    Subscriber,
    Timeout,
    TooManyHeld,
    wait_any,
)
from cuframes.framecache import SlotReader, SlotWriter, remove_slot
from stress.actors import HEIGHT, WIDTH, is_torn, pattern
from stress.rounds import PATIENCE, Round, Scenario, eventually

# What a call may end with, besides what it was for and ValueError "... is closed".
EXPECTED = (
    AlreadyExists,
    Disconnected,
    FrameDropped,
    NoCodecParameters,
    NoPacketRing,
    NotFound,
    PacketOverrun,
    Timeout,
    TooManyHeld,
)


class Stage:
    """A publisher of frames and packets, and a slot; somebody keeps them busy, or there is silence, or they come and
    go.
    """

    def __init__(self, game: Round) -> None:
        self.game = game
        self.number = 0
        self.publisher: Publisher | None = None
        self.slot: SlotWriter | None = None
        self.pause = game.random.choice((0.0001, 0.001, 0.01, None))  # between frames; None: silence
        self.comes_and_goes = game.random.random() < 0.3
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def open(self) -> None:
        """Begin to publish."""
        self.publisher = Publisher(self.game.key, WIDTH, HEIGHT, "gray8")
        self.publisher.enable_packets("h264", slots=16, data_size=5 * WIDTH * HEIGHT)
        self.slot = SlotWriter(self.game.key, WIDTH, HEIGHT, "gray8", ring_depth=4)

    def publish(self) -> None:
        """One of everything."""
        self.number += 1
        pixels = pattern(self.number).reshape(HEIGHT, WIDTH)
        with contextlib.suppress(FrameDropped):
            self.publisher.publish(pixels, pts_ns=self.number)
        self.publisher.publish_packet(pixels, pts_ns=self.number, keyframe=self.number % 4 == 0)
        self.slot.write(pixels, pts_us=self.number)

    def _play(self) -> None:
        while not self._stop.is_set():
            if self.pause is not None:
                self.publish()
            if self.comes_and_goes and self.number % 8 == 7:
                self.close()
                time.sleep(0.002)
                self.open()
            time.sleep(self.pause or 0.01)

    def close(self) -> None:
        """End it all."""
        self.publisher.close()
        self.slot.close()
        remove_slot(self.game.key)

    def __enter__(self) -> "Stage":
        self.open()
        for _ in range(6):
            self.publish()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.halt()
        with contextlib.suppress(CuframesError):
            self.close()

    def halt(self) -> None:
        """Publish no more by itself."""
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.game.give_up("the publishing thread did not end", _stack(self._thread))


# ---- who is closed, and what is done with it meanwhile: name -> function of the thing and of `held`


def _take(thing: Any, held: list, timeout: float | None) -> None:
    held.append(thing.next(timeout))
    del held[:-2]


def _for(thing: Any, held: list) -> None:
    for each in thing:
        held.append(each)
        del held[:-2]
        each = None


async def _async_for(thing: Any, held: list) -> None:
    async for each in thing:
        held.append(each)
        del held[:-2]
        each = None


def _wait_any(thing: Any, timeout: float | None) -> None:
    for ready in wait_any([thing], timeout):
        with contextlib.suppress(Timeout):
            ready.next(0)


def _packets(thing: Subscriber) -> None:
    thing.packets().close()


def _acquire(thing: Any) -> None:
    with thing.acquire() as frame:
        target = frame.data if isinstance(thing, SlotWriter) else numpy.asarray(frame)
        target[...] = 7


def _descriptor(thing: PacketPublisher) -> None:
    thing.descriptor().close()


PIXELS = pattern(1).reshape(HEIGHT, WIDTH)
COMMON: dict[str, Callable[[Any, list], object]] = {
    "for": _for,
    "async for": lambda thing, held: asyncio.run(_async_for(thing, held)),
    "fileno": lambda thing, held: thing.fileno(),
    "stats": lambda thing, held: thing.stats(),
    "repr": lambda thing, held: repr(thing),
    "next()": lambda thing, held: _take(thing, held, None),
    "next(0)": lambda thing, held: _take(thing, held, 0),
    "next(0.01)": lambda thing, held: _take(thing, held, 0.01),
}
ANY = {
    "wait_any": lambda thing, held: _wait_any(thing, None),
    "wait_any(0.01)": lambda thing, held: _wait_any(thing, 0.01),
}
CALLS: dict[str, dict[str, Callable[[Any, list], object]]] = {
    "Subscriber": COMMON | ANY | {"packets": lambda thing, held: _packets(thing)},
    "PacketReader": COMMON
    | ANY
    | {
        "next(copy=False)": lambda thing, held: bytes(thing.next(copy=False).data),
        "extradata": lambda thing, held: thing.extradata,
        "codec": lambda thing, held: thing.codec,
    },
    "SlotReader": {name: call for name, call in COMMON.items() if not name.startswith("next")}
    | {
        "read()": lambda thing, held: thing.read(),
        "read(0)": lambda thing, held: thing.read(0),
        "read(copy=False)": lambda thing, held: thing.read(copy=False).data.sum(),
        "info": lambda thing, held: thing.info(),
    },
    "Publisher": {
        "publish": lambda thing, held: thing.publish(PIXELS, pts_ns=1, timeout=0.05),
        "acquire": lambda thing, held: _acquire(thing),
        "publish_packet": lambda thing, held: thing.publish_packet(PIXELS, pts_ns=1, keyframe=True),
        "enable_packets": lambda thing, held: thing.enable_packets("h264"),
        "stats": lambda thing, held: thing.stats(),
        "subscribers": lambda thing, held: thing.subscribers,
        "repr": lambda thing, held: repr(thing),
    },
    "PacketPublisher": {
        "publish_packet": lambda thing, held: thing.publish_packet(PIXELS, pts_ns=1, keyframe=True),
        "publish_packets": lambda thing, held: thing.publish_packets([(PIXELS, 1, None, 1)] * 20),
        "set_extradata": lambda thing, held: thing.set_extradata(b"extradata"),
        "packets_published": lambda thing, held: thing.packets_published,
        "descriptor": lambda thing, held: _descriptor(thing),
        "repr": lambda thing, held: repr(thing),
    },
    "SlotWriter": {
        "write": lambda thing, held: thing.write(PIXELS),
        "acquire": lambda thing, held: _acquire(thing),
        "drop": lambda thing, held: thing.drop(),
        "info": lambda thing, held: thing.info(),
        "frames_written": lambda thing, held: thing.frames_written,
        "repr": lambda thing, held: repr(thing),
    },
}


@contextlib.contextmanager
def _subject(game: Round, kind: str) -> Iterator[tuple[Any, Stage | None]]:
    """Somebody to be closed, and who publishes for him."""
    chance, key = game.random, game.key
    reconnect = chance.random() < 0.5
    if kind == "Publisher":
        with contextlib.ExitStack() as stack:
            policy = chance.choice(("drop_oldest", "strict_wait"))
            thing = stack.enter_context(Publisher(key, WIDTH, HEIGHT, "gray8", ring_size=3, policy=policy))
            for _ in range(chance.randrange(3)):
                stack.enter_context(Subscriber(key))
            yield thing, None
    elif kind == "PacketPublisher":
        with PacketPublisher(key, "h264", slots=8, data_size=50_000) as thing:
            yield thing, None
    elif kind == "SlotWriter":
        try:
            with SlotWriter(key, WIDTH, HEIGHT, "gray8", ring_depth=3) as thing:
                yield thing, None
        finally:
            remove_slot(key)
    else:
        with Stage(game) as stage:
            if kind == "Subscriber":
                mode, wait = (
                    chance.choice(("newest", "ordered")),
                    chance.choice(("block", "block", "spin", "predictive")),
                )
                thing = Subscriber(key, mode=mode, wait=wait, reconnect=reconnect, max_held=4)
            elif kind == "PacketReader":
                thing = PacketReader(key, reconnect=reconnect, wait=chance.choice(("block", "block", "spin")))
            else:
                thing = SlotReader(key, reconnect=reconnect)
            with thing:
                yield thing, stage


class Caller:
    """Makes one call again and again, until the thing is closed; then once more."""

    def __init__(self, game: Round, thing: Any, kind: str, name: str) -> None:
        self.game = game
        self.thing = thing
        self.kind = kind
        self.name = name
        self.closed = False
        self.held: list = []
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        """Call it, and see how it ends."""
        call = CALLS[self.kind][self.name]
        while True:
            last = self.closed
            try:
                call(self.thing, self.held)
            except EXPECTED:
                pass
            except ValueError as problem:
                if "closed" not in str(problem) or "I/O operation" in str(problem) or not self.thing._closed:
                    self._complain(problem)
            except RuntimeError as problem:
                if "another" not in str(problem):  # one thread at a time may take, or write; the other one is told
                    self._complain(problem)
            except Exception as problem:
                self._complain(problem)
            if last:
                return

    def _complain(self, problem: Exception) -> None:
        where = traceback.extract_tb(problem.__traceback__)[-1]
        kind = f"{self.kind}.{self.name} raises {type(problem).__name__}: {problem} ({where.name})"
        self.game.fault(kind, traceback.format_exc())


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""


def endings(game: Round) -> None:
    """One thing, one or two calls of it on other threads or here, and its end."""
    chance = game.random
    kind = chance.choice(list(CALLS))
    names = [chance.choice(list(CALLS[kind])) for _ in range(chance.choice((1, 1, 2)))]
    way = chance.choice(("thread", "thread", "signal", "task"))
    before = chance.random() ** 2 * 0.03
    sys.setswitchinterval(chance.choice((1e-6, 1e-4, 5e-3)))
    with _subject(game, kind) as (thing, stage):
        callers = [Caller(game, thing, kind, name) for name in names]
        if way == "signal":
            _close_by_signal(callers, thing, before)
        elif way == "task" and kind in ("Subscriber", "PacketReader", "SlotReader"):
            _close_by_task(game, callers, thing, before)
        else:
            for caller in callers:
                caller.thread.start()
            time.sleep(before)
            _close(game, thing, callers)
        for caller in callers:
            if caller.thread.ident:
                caller.thread.join(PATIENCE)
            if caller.thread.is_alive():
                game.give_up(f"{kind}.{caller.name} does not end after close()", _stack(caller.thread))
        if stage is not None:
            _afterwards(game, kind, stage, callers)


def _close(game: Round, thing: Any, callers: list[Caller]) -> None:
    closing = threading.Thread(target=thing.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    if closing.is_alive():
        stacks = "\n".join(f"{caller.name}:\n{_stack(caller.thread)}" for caller in callers)
        game.give_up(f"{type(thing).__name__}.close() does not end", f"{_stack(closing)}\n{stacks}")
    for caller in callers:
        caller.closed = True


def _close_by_signal(callers: list[Caller], thing: Any, before: float) -> None:
    """The first call is made here, and a signal handler closes what it is about."""

    def close(number: int, frame: object) -> None:
        thing.close()
        for caller in callers:
            caller.closed = True

    old = signal.signal(signal.SIGALRM, close)
    try:
        for caller in callers[1:]:
            caller.thread.start()
        signal.setitimer(signal.ITIMER_REAL, max(before, 1e-5))
        callers[0].run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _close_by_task(game: Round, callers: list[Caller], thing: Any, before: float) -> None:
    """Tasks of one loop iterate, and another one closes."""

    async def close() -> None:
        await asyncio.sleep(before)
        thing.close()

    async def iterate(held: list) -> None:
        with contextlib.suppress(*EXPECTED):
            await _async_for(thing, held)

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(iterate(caller.held)) for caller in callers]
        ending = asyncio.create_task(close())
        _, late = await asyncio.wait([*tasks, ending], timeout=PATIENCE)
        if late:
            raise TimeoutError
        for task in (*tasks, ending):
            if problem := task.exception():
                kind = f"async for over a {type(thing).__name__} raises {type(problem).__name__}: {problem}"
                game.fault(kind, "".join(traceback.format_exception(problem)))

    try:
        asyncio.run(all_of_them())
    except TimeoutError:
        game.fault(f"async for over a {type(thing).__name__} does not end after close()", "")


def _afterwards(game: Round, kind: str, stage: Stage, callers: list[Caller]) -> None:
    """Frames that are out are still whole, and when they are gone nothing is joined."""
    stage.halt()
    for _ in range(20):
        stage.publish()
    if kind == "Subscriber":
        for caller in callers:
            for frame in caller.held:
                if is_torn(frame, frame.pts_ns):
                    game.fault("a frame that is held changes after close()", caller.name)
            frame = None
            caller.held.clear()
        if not eventually(lambda: not stage.publisher.subscribers):
            game.fault("a closed subscriber is still joined", str(stage.publisher.subscribers))


SCENARIOS = (
    Scenario("endings", "close() against every call, from threads, tasks and signal handlers", endings, 2.5, 45),
    Scenario("endings-asan", "the same, extension modules under ASan", endings, 1, 60, asan=True),
)
