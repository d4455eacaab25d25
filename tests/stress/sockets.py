"""Garbage on the sockets: from peers to a publisher, and from something that only pretends to be one.

What must hold: honest subscribers are served; a subscriber gets an exception that is documented, in time; no descriptor
is left.
"""

import array
import contextlib
import fcntl
import os
import random
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from cuframes import CuframesError, FrameDropped, PacketReader, Publisher, Subscriber, Timeout
from cuframes.session import wire
from cuframes.session.wire import MessageType
from stress.actors import HEIGHT, WIDTH, is_torn, pattern
from stress.rounds import PATIENCE, Round, Scenario
from stress.scribbles import value

FEATURES = 1 | 2 | 4 | 16 | 256  # pins, futex, host memory, owner lock, descriptors
FLOOD = 250  # descriptors in one message; the kernel passes 253 at most


def socket_of(key: str) -> Path:
    """Where a publisher of `key` listens."""
    return Path(os.environ["CUFRAMES_RUNTIME_DIR"]) / f"{key}.sock"


def send(sock: socket.socket, data: bytes, descriptors: list[int] = ()) -> None:
    """Send, without waiting for anybody."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError):
        sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def hello(chance: random.Random) -> bytes:
    """A sound HELLO_REQ."""
    return wire.Hello(3, f"hostile-{chance.getrandbits(40):x}", -1, False, FEATURES).pack()


def message(chance: random.Random) -> bytes:
    """Something that a peer might send: sound, mutated, half, or anything."""
    kind = chance.choice(list(MessageType))
    sound = chance.choice((hello(chance), wire.pack(MessageType.SUBSCRIBE_REQ), wire.pack(MessageType.EVENT_FD),
                           wire.pack(kind, chance.randbytes(chance.randrange(40)))))  # fmt: skip
    raw = bytearray(sound)
    way = chance.randrange(5)
    if way == 0:
        new = value(chance)
        at = chance.randrange(len(raw))
        raw[at : at + len(new)] = new
    elif way == 1:
        raw = raw[: chance.randrange(len(raw))]
    elif way == 2:
        raw = bytearray(chance.randbytes(chance.choice((1, 8, 100, 4096, 70000))))
    return bytes(raw)


# ---- to a publisher


def hostile_peer(chance: random.Random, key: str) -> socket.socket | None:
    """Connect, and misbehave."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(1)
    try:
        sock.connect(str(socket_of(key)))
    except OSError:
        sock.close()
        return None
    if chance.random() < 0.6:
        send(sock, hello(chance))
        if chance.random() < 0.7:
            send(sock, wire.pack(MessageType.SUBSCRIBE_REQ))
    for _ in range(chance.choice((0, 1, 3, 20))):
        if chance.random() < 0.1:
            with open("/dev/null") as null:
                send(sock, message(chance), [null.fileno()] * chance.choice((1, 4, FLOOD)))
        else:
            send(sock, message(chance))
    if chance.random() < 0.15:
        for _ in range(2000):  # and never read an answer
            send(sock, wire.pack(MessageType.PING, b"x" * 100))
    return sock


def to_publisher(game: Round) -> None:
    """Hostile peers of a publisher, which has an honest subscriber too."""
    chance, key = game.random, game.key
    with contextlib.ExitStack() as stack:
        publisher = stack.enter_context(Publisher(key, WIDTH, HEIGHT, "gray8"))
        publisher.enable_packets("h264")
        honest = stack.enter_context(Subscriber(key, mode="ordered"))
        peers = []
        for number in range(1, 30):
            peers.append(hostile_peer(chance, key))
            if chance.random() < 0.3 and (peer := peers.pop(chance.randrange(len(peers)))):
                peer.close()
            with contextlib.suppress(FrameDropped):
                publisher.publish(pattern(number).reshape(HEIGHT, WIDTH), pts_ns=number)
                with honest.next(PATIENCE) as frame:
                    if frame.pts_ns != number or is_torn(frame, number):
                        game.fault("an honest subscriber gets a wrong frame")
        for peer in filter(None, peers):
            peer.close()
        with Subscriber(key, start="latest", connect_timeout=PATIENCE) as late:
            publisher.publish(pattern(99).reshape(HEIGHT, WIDTH), pts_ns=99)
            late.next(PATIENCE).release()
        with PacketReader(key, connect_timeout=PATIENCE):
            pass


# ---- to a subscriber


class FakePublisher:
    """Listens where a publisher of `key` would, and answers as it likes."""

    def __init__(self, chance: random.Random, key: str) -> None:
        self.chance = chance
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(socket_of(key)))
        os.chmod(socket_of(key), 0o600)
        self.listener.listen(8)
        self.listener.settimeout(0.05)
        self.path = socket_of(key)
        self.stop = False
        self.peers: list[socket.socket] = []
        self.header = self._memfd(8448, struct.pack("<II", 0xCC7C1DCC, 3))
        self.pool = self._memfd(4 * 4096, b"", fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def _memfd(self, size: int, begin: bytes, seals: int = 0) -> int:
        fd = os.memfd_create("fake", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        os.pwrite(fd, begin, 0)
        if seals and self.chance.random() < 0.9:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    def serve(self) -> None:
        """Until told to stop."""
        while not self.stop:
            try:
                sock, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.peers.append(sock)
            sock.settimeout(0.2)
            with contextlib.suppress(OSError):
                self.answer(sock)

    def answer(self, sock: socket.socket) -> None:
        """One connection: sound answers, of which some are not."""
        chance = self.chance
        if chance.random() < 0.7:
            sock.recv(4096)
        meta = struct.pack("<IiiiiIQ", 3, 64, 32, 64, 64, 8, 2048).ljust(64, b"\0")
        path = f"/cuframes-{chance.getrandbits(32):x}"
        features, packets = FEATURES, chance.choice(("", "/cuframes-x-packets"))
        welcome = wire.Welcome(0, 3, 4, 0, meta, path, features, packets).pack()
        place = wire.Subscribed(0, 1, 0, 0).pack()
        descriptors = [self.header, self.pool]
        way = chance.randrange(10)
        if way == 0:
            descriptors = chance.choice(([], [self.header], [self.pool, self.header], [self.header] * FLOOD))
        elif way == 1:
            os.truncate(self.header, chance.choice((0, 100, 4096)))
        elif way in (2, 3, 4):
            welcome = self.damage(welcome)
        elif way == 5:
            place = self.damage(place)
        elif way == 6:
            welcome = message(chance)
        send(sock, welcome, descriptors)
        if chance.random() < 0.8:
            with contextlib.suppress(TimeoutError):
                sock.recv(4096)
            send(sock, place)
            for _ in range(chance.randrange(4)):
                descriptors = [self.pool] * chance.choice((0, 1, 1, 2, FLOOD))
                send(sock, chance.choice((message(chance), wire.pack(MessageType.EVENT_FD))), descriptors)
        if chance.random() < 0.4:
            sock.close()

    def damage(self, raw: bytes) -> bytes:
        """A few wrong bytes, or half of it."""
        damaged = bytearray(raw)
        new = value(self.chance)
        at = self.chance.randrange(len(damaged) - 8)
        damaged[at : at + len(new)] = new
        return bytes(damaged[: self.chance.choice((len(damaged), len(damaged), 7, 8, 9, len(damaged) - 1))])

    def close(self) -> None:
        """Leave nothing."""
        self.stop = True
        self.thread.join()
        for sock in (self.listener, *self.peers):
            sock.close()
        os.close(self.header)
        os.close(self.pool)
        self.path.unlink(missing_ok=True)


def use(key: str) -> None:
    """What a subscriber does, for a moment."""
    with Subscriber(key, connect_timeout=0.3) as subscriber:
        for call in (lambda: subscriber.next(0.05), subscriber.fileno, subscriber.stats, lambda: subscriber.next(0)):
            with contextlib.suppress(Timeout):
                call()


def read(key: str) -> None:
    """What a reader of packets does."""
    with PacketReader(key, connect_timeout=0.3) as reader:
        reader.next(0.05)


def from_publisher(game: Round) -> None:
    """Subscribers of something that only pretends."""
    fake = FakePublisher(game.random, game.key)
    try:
        for name, function in (("Subscriber", use), ("PacketReader", read)):
            _in_time(game, name, function)
    finally:
        fake.close()


def _in_time(game: Round, name: str, function: Callable[[str], None]) -> None:
    begin = time.monotonic()
    try:
        function(game.key)
    except (CuframesError, PermissionError):
        pass
    except Exception as problem:
        where = traceback.extract_tb(problem.__traceback__)[-1]
        kind = f"{name} raises {type(problem).__name__}: {problem} ({Path(where.filename).name}:{where.name})"
        game.fault(kind, traceback.format_exc())
    if time.monotonic() - begin > PATIENCE:
        game.fault(f"{name} of a fake publisher waits for too long", f"{time.monotonic() - begin:.1f} s")


SCENARIOS = (
    Scenario("sockets-peers", "garbage, half messages and descriptor floods to a publisher", to_publisher, 0.6, 60),
    Scenario("sockets-fake", "the same from a fake publisher to subscribers", from_publisher, 0.6, 30),
    Scenario("sockets-fake-asan", "the same, extension modules under ASan", from_publisher, 0.4, 60, asan=True),
)
