"""Processes that share video and check it, to be killed, stopped and fooled; forked, so that there can be many."""

import asyncio
import contextlib
import ctypes
import faulthandler
import mmap
import os
import re
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy

from cuframes import (
    CuframesError,
    FrameDropped,
    NoCodecParameters,
    PacketOverrun,
    PacketReader,
    Publisher,
    Subscriber,
    Timeout,
    wait_any,
)
from cuframes.framecache import SlotReader, SlotWriter
from stress.rounds import Round, die_with_parent, eventually

__all__ = [
    "HEIGHT",
    "WIDTH",
    "Actor",
    "guest",
    "is_torn",
    "loop",
    "packet_guest",
    "packet_reader",
    "pattern",
    "publisher",
    "slot_guest",
    "slot_reader",
    "slot_writer",
    "subscriber",
    "waiter",
]

WIDTH, HEIGHT = 96, 32
_NOISE = numpy.random.default_rng(13).integers(0, 256, WIDTH * HEIGHT + 251, numpy.uint8)


def pattern(number: int, size: int = WIDTH * HEIGHT) -> numpy.ndarray:
    """The bytes of frame or packet `number`: no other's within a long time has many of them at the same places."""
    begin = number * 37 % 251
    return _NOISE[begin : begin + size]


def is_torn(data: object, number: int) -> bool:
    """Whether any byte is wrong."""
    packet = isinstance(data, bytes | memoryview)
    found = numpy.frombuffer(data, numpy.uint8) if packet else numpy.asarray(data).reshape(-1)
    return not numpy.array_equal(found, pattern(number, found.size))


class Board(ctypes.Structure):
    """What an actor and its director tell each other, in shared memory: it survives any kind of death."""

    _fields_ = (
        ("progress", ctypes.c_uint64),  # frames that were published, or taken and found whole
        ("torn", ctypes.c_uint64),
        ("errors", ctypes.c_uint64),  # that are documented
        ("descriptors", ctypes.c_uint64),
        ("stop", ctypes.c_uint64),  # for the actor: come to an orderly end
        ("note", ctypes.c_char * 3000),  # an exception that is not documented
    )

    def count(self, torn: bool) -> None:
        """One more was taken."""
        self.torn += torn
        self.progress += 1
        if self.progress % 64 == 1:
            self.descriptors = len(os.listdir("/proc/self/fd"))


class Actor:
    """A forked process that plays a role: ``role(board, *arguments)``, until ``board.stop``."""

    def __init__(self, game: Round, role: Callable[..., None], *arguments: object) -> None:
        self.game = game
        self.role = role
        self.arguments = arguments
        self.board = Board.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self.pid = 0
        self.start()

    def start(self) -> None:
        """Start it; again, perhaps."""
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            die_with_parent()
            stack = open(self._stack(os.getpid()), "w")  # noqa: SIM115  # until the end
            faulthandler.enable(stack)
            faulthandler.register(signal.SIGUSR1, stack)
            self.role(self.board, *self.arguments)
            status = 0
        except BaseException:
            self.board.note = traceback.format_exc().encode()[-2999:]
        finally:
            os._exit(status)

    def _stack(self, pid: int) -> Path:
        return self.game.folder / f"stack-{pid}"

    def __str__(self) -> str:
        return " ".join(map(str, (self.role.__name__, *self.arguments)))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if not self.over():
            os.kill(self.pid, number)

    def over(self) -> bool:
        """Whether it has ended."""
        if self.pid and self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return not self.pid or self.status is not None

    def where(self) -> str:
        """What it is doing: its stacks."""
        path = self._stack(self.pid)
        before = path.stat().st_size if path.exists() else 0
        self.signal(signal.SIGUSR1)
        eventually(lambda: self.over() or (path.exists() and path.stat().st_size > before), 2)
        time.sleep(0.1)
        return path.read_text()[before:] if path.exists() else ""

    def kill(self) -> None:
        """SIGKILL, and its death. What it died of before that, it is asked about first."""
        if self.over():
            self._judge()
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._stack(self.pid).unlink(missing_ok=True)
        self.pid = 0

    def moves(self, steps: int = 3) -> bool:
        """Whether it makes progress, in time."""
        before = self.board.progress
        return bool(eventually(lambda: self.over() or self.board.progress >= before + steps)) and not self.over()

    def end(self) -> None:
        """Have it end in order, and say what was wrong with it. What hangs tells where, and is killed."""
        if not self.pid:
            return
        self.board.stop = 1
        if eventually(self.over):
            self._judge()
            self.pid = 0
            return
        self.signal(signal.SIGABRT)  # faulthandler writes down the stacks
        eventually(self.over, 2)
        stack = self._stack(self.pid)
        said = stack.read_text() if stack.exists() else ""
        self.game.fault(f"{self.role.__name__} did not end{_innermost(said)}", f"{self}\n{said}")
        self.kill()

    def _judge(self) -> None:
        """Say how it ended, if that was not in order."""
        stack = self._stack(self.pid)
        said = stack.read_text() if stack.exists() else ""
        stack.unlink(missing_ok=True)
        assert self.status is not None
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            if number != signal.SIGABRT or "AddressSanitizer" in said:
                name = signal.Signals(number).name
                self.game.fault(f"{self.role.__name__} died by {name}{_innermost(said)}", f"{self}\n{said}")
        elif self.status:
            note = self.board.note.decode(errors="replace")
            last = note.strip().splitlines()[-1] if note else f"status {self.status}"
            self.game.fault(f"{self.role.__name__}: {last}", f"{self}\n{note}")


def _innermost(said: str) -> str:
    places = re.findall(r'File "[^"]*/cuframes/([^"]*)", line \d+ in (\w+)', said)
    return f" in {places[0][0]}:{places[0][1]}" if places else ""


# ---- the roles


def publisher(board: Board, key: str, ring_size: int, policy: str) -> None:
    """Publishes frames and, beside them, packets."""
    with Publisher(key, WIDTH, HEIGHT, "gray8", ring_size=ring_size, policy=policy) as mine:
        mine.enable_packets("h264", slots=16, data_size=5 * WIDTH * HEIGHT)
        number = int.from_bytes(os.urandom(3), "little")
        while not board.stop:
            number += 1
            pixels = pattern(number)
            with contextlib.suppress(FrameDropped, Timeout):
                if number % 2:
                    mine.publish(pixels.reshape(HEIGHT, WIDTH), pts_ns=number, timeout=0.2)
                else:
                    with mine.acquire(timeout=0.2) as frame:
                        numpy.asarray(frame)[:] = pixels.reshape(HEIGHT, WIDTH)
                        frame.pts_ns = number
                board.count(False)
            mine.publish_packet(pattern(number, number * 7 % pixels.size), pts_ns=number, keyframe=number % 4 == 0)
            time.sleep(number % 3 * 0.0004)


def subscriber(board: Board, key: str, mode: str, wait: str, hold: int) -> None:
    """Takes frames, of the next publisher too, and keeps some for a while."""
    with Subscriber(key, mode=mode, wait=wait, connect_timeout=None, reconnect=True, max_held=hold + 1) as mine:
        held: list = []
        while not board.stop:
            try:
                frame = mine.next(0.2)
            except Timeout:
                continue
            held.append(frame)
            board.count(is_torn(frame, frame.pts_ns))
            if len(held) > hold:
                oldest = held.pop(0)
                board.torn += is_torn(oldest, oldest.pts_ns)
                oldest.release()


def waiter(board: Board, key: str) -> None:
    """Takes frames and packets as wait_any finds them."""
    options = {"connect_timeout": None, "reconnect": True}
    with Subscriber(key, mode="ordered", **options) as frames, PacketReader(key, **options) as packets:
        while not board.stop:
            for ready in wait_any([frames, packets], 0.2):
                with contextlib.suppress(Timeout, PacketOverrun):
                    if ready is frames:
                        with frames.next(0) as frame:
                            board.count(is_torn(frame, frame.pts_ns))
                    else:
                        packet = packets.next(0)
                        board.count(is_torn(packet.data, packet.pts_ns))


def loop(board: Board, key: str) -> None:
    """Takes frames in an event loop."""

    async def take() -> None:
        with Subscriber(key, mode="ordered", connect_timeout=None, reconnect=True) as mine:
            async for frame in mine:
                with frame:
                    board.count(is_torn(frame, frame.pts_ns))
                if board.stop:
                    return

    asyncio.run(take())


def packet_reader(board: Board, key: str, wait: str, copy: bool) -> None:
    """Reads packets, of the next publisher too."""
    with PacketReader(key, wait=wait, connect_timeout=None, reconnect=True) as mine:
        while not board.stop:
            with contextlib.suppress(Timeout, PacketOverrun):
                packet = mine.next(0.2, copy=copy)
                torn = is_torn(packet.data, packet.pts_ns)
                board.count(torn and packet.valid)


def slot_writer(board: Board, slot_id: str, depth: int) -> None:
    """Writes a slot."""
    with SlotWriter(slot_id, WIDTH, HEIGHT, "gray8", ring_depth=depth) as mine:
        number = int.from_bytes(os.urandom(3), "little")
        while not board.stop:
            number += 1
            pixels = pattern(number).reshape(HEIGHT, WIDTH)
            if number % 2:
                mine.write(pixels, pts_us=number)
            else:
                with mine.acquire() as frame:
                    frame.data[...] = pixels
                    frame.pts_us = number
            board.count(False)
            time.sleep(number % 3 * 0.0004)


def slot_reader(board: Board, slot_id: str, mode: str, copy: bool) -> None:
    """Reads a slot."""
    with SlotReader(slot_id, mode=mode, connect_timeout=None, reconnect=True) as mine:
        while not board.stop:
            with contextlib.suppress(Timeout):
                frame = mine.read(0.2, copy=copy)
                torn = is_torn(frame.data, frame.pts_us)
                board.count(torn and frame.valid)


def guest(board: Board, key: str) -> None:
    """Takes frames and packets of a ring in which everything may be wrong; what is documented to happen may happen."""
    while not board.stop:
        with contextlib.suppress(CuframesError, PermissionError):
            with Subscriber(key, mode="ordered", connect_timeout=0.2) as frames:
                while not board.stop:
                    with contextlib.suppress(Timeout), frames.next(0.1) as frame:
                        numpy.asarray(frame).sum()
                        board.progress += 1
                    frames.stats()
        board.errors += 1
        time.sleep(0.01)


def packet_guest(board: Board, key: str) -> None:
    """The same for packets."""
    while not board.stop:
        with contextlib.suppress(CuframesError, PermissionError):
            with PacketReader(key, "oldest", connect_timeout=0.2) as packets:
                while not board.stop:
                    with contextlib.suppress(Timeout, PacketOverrun):
                        board.progress += len(packets.next(0.1).data) >= 0
                    with contextlib.suppress(NoCodecParameters):
                        _ = packets.extradata
        board.errors += 1
        time.sleep(0.01)


def slot_guest(board: Board, slot_id: str) -> None:
    """The same for a slot."""
    while not board.stop:
        with contextlib.suppress(CuframesError, PermissionError):
            with SlotReader(slot_id, start="oldest", connect_timeout=0.2) as mine:
                while not board.stop:
                    with contextlib.suppress(Timeout):
                        board.progress += mine.read(0.1).data.nbytes > 0
                    mine.info()
        board.errors += 1
        time.sleep(0.01)
