"""The socket, spoken byte by byte: what a plain version 3 program sees, and what mistakes bring."""

import array
import asyncio
import mmap
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy
import pytest
from harness import eventually

import cuframes
from cuframes import Publisher, Subscriber
from cuframes.session import wire

HELLO, WELCOME, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, EVENT, SHUTDOWN, PING, PONG, ERROR = (
    1, 2, 3, 4, 16, 32, 48, 240, 241, 254,
)  # fmt: skip


class Plain:
    """A client written from the protocol alone."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(path))
        self.descriptors = array.array("i")

    def send(self, kind, payload=b""):
        self.sock.sendall(struct.pack("<II", kind, len(payload)) + payload)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part, ancillary, _, _ = self.sock.recvmsg(count - len(data), socket.CMSG_LEN(16))
            for _, _, raw in ancillary:
                self.descriptors.frombytes(raw)
            if not part:
                raise EOFError
            data += part
        return data

    def read(self):
        kind, length = struct.unpack("<II", self.exactly(8))
        return kind, self.exactly(length)

    def hello(self, name=b"plain", version=3, device=-1, mode=0, reserved=bytes(12)):
        self.send(HELLO, struct.pack("<II", version, len(name)) + name + struct.pack("<iI", device, mode) + reserved)

    def join(self, **options):
        self.hello(**options)
        kind, payload = self.read()
        assert kind == WELCOME
        assert struct.unpack_from("<i", payload) == (0,)
        self.send(SUBSCRIBE)
        kind, answer = self.read()
        assert kind == SUBSCRIBED
        result, bit, seq, reserved = struct.unpack("<iIQ12s", answer)
        assert result == 0
        return payload, bit, seq, reserved

    def ended(self):
        """Everything up to the end of the connection."""
        messages = []
        try:
            while True:
                messages.append(self.read())
        except (EOFError, ConnectionResetError):
            return messages

    def error(self):
        """Code and text of the ERROR that ends the connection."""
        kind, payload = self.ended()[-1]
        assert kind == ERROR
        code, length = struct.unpack_from("<iI", payload)
        assert len(payload) == 8 + length
        return code, payload[8:].decode()


@pytest.fixture
def publisher(key):
    with Publisher(key, 60, 40, "nv12", ring_size=4) as publisher:
        yield publisher


@pytest.fixture
def plain(publisher, key, runtime_dir):
    def connect():
        clients.append(Plain(runtime_dir / f"{key}.sock"))
        return clients[-1]

    clients = []
    yield connect
    for client in clients:
        client.sock.close()
        for fd in client.descriptors:
            os.close(fd)


def test_plain_version_3_client_sees_exactly_version_3(publisher, plain, key):
    publisher.publish(bytes(3600), pts_ns=5)
    client = plain()
    payload, bit, seq, reserved = client.join()
    result, version, ring_size, ownership, meta, length = struct.unpack_from("<iIII64sI", payload)
    assert (result, version, ring_size, ownership) == (0, 3, 4, 0)
    assert struct.unpack_from("<IiiiiIQ", meta) == (0, 60, 40, 64, 64, 12, 64 * 60)
    assert meta[32:] == bytes(32)
    path = f"/cuframes-{key}"
    assert payload[84 : 84 + length].decode() == path
    assert payload[84 + length :] == bytes(12)
    assert (bit, seq, reserved) == (1, 1, bytes(12))
    assert not client.descriptors
    # What it then reads in the segment, at the offsets of version 3.
    with open(f"/dev/shm{path}", "rb") as file:
        raw = file.read()
    assert len(raw) == 8448
    assert struct.unpack_from("<II", raw) == (0xCC7C1DCC, 3)
    assert struct.unpack_from("<QQQQQ", raw, 24) == (os.getpid(), 4, 0, 0, 32)
    assert raw[64:128] == meta
    assert struct.unpack_from("<QQQ", raw, 192) == (1, 0b10, 0)
    slot = 256 + 192 * 1
    assert struct.unpack_from("<QqQQ", raw, slot) == (1, 5, 0, 64 * 60)
    assert struct.unpack_from("<Q", raw, 256 + 192 * 2) == (2**64 - 1,)
    state, pid = struct.unpack_from("<QQ", raw, 3328 + 128 * bit)
    assert (state, pid) == (2, os.getpid())
    assert raw[3328 + 128 * bit + 32 :].startswith(b"plain\0")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_versions_are_answered_in_kind(plain, version):
    client = plain()
    client.hello(version=version)
    _, payload = client.read()
    assert struct.unpack_from("<iI", payload) == (0, version)


def test_descriptors_for_those_who_ask(publisher, plain):
    publisher.publish(bytes(range(200)) * 18)
    client = plain()
    features = struct.pack("<IQ", 1 | 2 | 4 | 16 | 256, 0)
    payload, _, _, reserved = client.join(reserved=features)
    (length,) = struct.unpack_from("<I", payload, 80)
    granted, packets_length, _ = struct.unpack_from("<III", payload, 84 + length)
    assert (granted, packets_length) == (1 | 2 | 4 | 16 | 256, 0)
    assert struct.unpack_from("<Q", reserved) == (1,)
    control, pool = client.descriptors
    assert os.fstat(control).st_size == 8448
    assert os.fstat(pool).st_size == 4 * 4096
    pixels = mmap.mmap(pool, 0, prot=mmap.PROT_READ)
    assert pixels[4096 : 4096 + 60] == bytes(range(60))
    pixels.close()


def test_pool_cannot_be_written_or_resized_by_a_subscriber(plain):
    client = plain()
    client.join(reserved=struct.pack("<IQ", 0x1FF, 0))
    pool = client.descriptors[1]
    for attempt in (
        lambda: mmap.mmap(pool, 4096),
        lambda: os.ftruncate(pool, 0),
        lambda: os.ftruncate(pool, 1 << 20),
        lambda: os.pwrite(pool, b"x", 0),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_ping(plain):
    client = plain()
    client.send(PING, b"abc")
    assert client.read() == (PONG, b"abc")
    client.join()
    client.send(PING)
    assert client.read() == (PONG, b"")


def test_unsubscribe_gives_the_place_back(publisher, plain):
    client = plain()
    client.join()
    assert [s.name for s in publisher.subscribers] == ["plain"]
    client.send(UNSUBSCRIBE)
    assert client.ended() == []
    assert publisher.subscribers == ()


def test_shutdown_is_announced(publisher, plain):
    client = plain()
    client.join()
    publisher.close()
    assert client.ended() == [(SHUTDOWN, b"")]


def test_event_fd_is_fed_at_every_frame(publisher, plain):
    client = plain()
    client.join()
    client.send(EVENT)
    assert client.read() == (EVENT, b"")
    (fd,) = client.descriptors
    for _ in range(3):
        publisher.publish(bytes(3600))
    assert os.eventfd_read(fd) == 3
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (struct.pack("<II", HELLO, 5000), 1, "announces 5000 bytes"),
        (struct.pack("<II", HELLO, 2**32 - 1), 1, "the limit is 4096"),
        (struct.pack("<II", HELLO, 4) + b"abcd", 1, "too short"),
        (struct.pack("<II", HELLO, 8) + struct.pack("<II", 3, 2**31), 1, "does not match its name"),
        (struct.pack("<IIII", HELLO, 28, 3, 0) + bytes(20), 1, "has 0 bytes, not 1 to 31"),
        (struct.pack("<IIII", HELLO, 29, 3, 1) + b"\xff" + bytes(20), 1, "not UTF-8"),
        (struct.pack("<IIII", HELLO, 29, 3, 1) + b"\0" + bytes(20), 1, "empty"),
        (struct.pack("<II", SUBSCRIBE, 0), 2, "makes no sense now"),
        (struct.pack("<II", EVENT, 0), 2, "makes no sense now"),
        (struct.pack("<II", 77, 0), 2, "message type 77"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1, "announces"),
    ],
)
def test_malformed_messages_end_their_own_connection_only(publisher, plain, key, raw, code, said):
    with Subscriber(key) as bystander:
        client = plain()
        client.sock.sendall(raw)
        got, text = client.error()
        assert got == code
        assert said in text
        publisher.publish(bytes(3600))
        assert bystander.next(1).seq == 1


def test_noise_on_the_socket(publisher, plain, key):
    noise = random.Random(1)
    with Subscriber(key) as bystander:
        for _ in range(60):
            client = plain()
            client.sock.sendall(noise.randbytes(noise.randrange(1, 300)))
            client.sock.close()
        publisher.publish(bytes(3600))
        assert bystander.next(5).seq == 1
        eventually(lambda: len(publisher.subscribers) == 1)


def test_a_message_may_come_in_pieces(plain):
    client = plain()
    whole = wire.Hello(3, "slow", -1, False).pack()
    for byte in whole:
        client.sock.sendall(bytes([byte]))
    assert client.read()[0] == WELCOME


def test_messages_may_come_together(plain):
    client = plain()
    client.sock.sendall(wire.Hello(3, "fast", -1, False).pack() + wire.pack(wire.MessageType.SUBSCRIBE_REQ))
    assert [client.read()[0], client.read()[0]] == [WELCOME, SUBSCRIBED]


def test_handshake_deadline(publisher, plain, key):
    with Subscriber(key) as active:
        client = plain()
        client.sock.sendall(b"\1")
        code, text = client.error()
        assert code == 3
        assert "2 s" in text
        # It is about the handshake: who has subscribed may be silent as long as it likes.
        time.sleep(0.1)
        publisher.publish(bytes(3600))
        assert active.next(1).seq == 1


@pytest.mark.parametrize("version", [0, 4, 2**32 - 1])
def test_unknown_version_is_refused(plain, version):
    client = plain()
    client.hello(version=version)
    (kind, payload), (last, _) = client.ended()
    assert (kind, last) == (WELCOME, ERROR)
    assert struct.unpack_from("<iI", payload) == (-4, 3)


def test_name_in_use(publisher, plain, key):
    with Subscriber(key, name="detector"):
        client = plain()
        client.hello(name=b"detector")
        assert client.error() == (5, "a subscriber named 'detector' is connected; choose another name")
        with pytest.raises(cuframes.AlreadyExists, match="choose another name"):
            Subscriber(key, name="detector")
    eventually(lambda: not publisher.subscribers)
    Subscriber(key, name="detector").close()


def test_31_subscribers_and_no_more(publisher, key):
    subscribers = [Subscriber(key) for _ in range(31)]
    assert [s.bit for s in publisher.subscribers] == list(range(1, 32))
    with pytest.raises(cuframes.CuframesError, match="31 subscribers"):
        Subscriber(key)
    publisher.publish(bytes(3600))
    assert {s.next(5).seq for s in subscribers} == {1}
    subscribers.pop(6).close()
    eventually(lambda: len(publisher.subscribers) == 30)
    with Subscriber(key):
        assert 7 in [s.bit for s in publisher.subscribers]
    for subscriber in subscribers:
        subscriber.close()


def test_foreign_uid_is_refused_and_group_members_are_not(runtime_dir, key):
    if os.getuid() != 0:
        pytest.skip("changing the uid needs root")
    child = f"""
import os, sys
from cuframes import Subscriber  # now: the interpreter's own files may be out of reach afterwards
os.setgroups([4711] if sys.argv[1] == "member" else [])
os.setgid(65534); os.setuid(65534)
try:
    Subscriber({key!r}, connect_timeout=0).close()
    print("joined")
except PermissionError as problem:
    print("refused:", problem)
"""

    def attempt(who):
        env = os.environ | {"CUFRAMES_RUNTIME_DIR": str(directory)}
        done = subprocess.run([sys.executable, "-c", child, who], capture_output=True, text=True, env=env, timeout=60)
        return done.stdout.strip() or done.stderr

    with tempfile.TemporaryDirectory(dir="/tmp") as above, pytest.MonkeyPatch.context() as patch:
        os.chmod(above, 0o755)
        directory = f"{above}/made"  # by the first publisher, so that the mode is ours to change
        patch.setenv("CUFRAMES_RUNTIME_DIR", directory)
        with Publisher(key, 64, 48, "gray8"):
            assert attempt("nobody").startswith("refused: ")
            os.chmod(directory, 0o755)
            os.chmod(f"{directory}/{key}.sock", 0o666)  # the file mode alone does not decide
            assert "uid 65534 may not subscribe" in attempt("nobody")
        os.chmod(directory, 0o700)
        with Publisher(key, 64, 48, "gray8", group=4711):
            assert attempt("member") == "joined"
            assert attempt("nobody").startswith("refused: ")
            assert os.stat(f"/dev/shm/cuframes-{key}").st_mode & 0o777 == 0o660


def test_fileno_is_readable_while_there_is_something_to_take(publisher, key):
    publisher.publish(bytes(3600))
    with Subscriber(key, mode="ordered", start="oldest") as subscriber:
        poller = select.poll()
        poller.register(subscriber, select.POLLIN)
        assert poller.poll(0)
        assert subscriber.next(0).seq == 1
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0)
        assert not poller.poll(0)
        publisher.publish(bytes(3600))
        publisher.publish(bytes(3600))
        assert poller.poll(1000)
        assert [subscriber.next(0).seq, subscriber.next(0).seq] == [2, 3]
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0)
        assert not poller.poll(0)
        publisher.close()
        assert poller.poll(1000)
        with pytest.raises(cuframes.Disconnected):
            subscriber.next(0)


def test_async_iteration(publisher, key):
    async def consume(subscriber):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        async def produce():
            for n in range(1, 6):
                await asyncio.sleep(0.02)
                publisher.publish(numpy.full((60, 60), n, numpy.uint8))
            await asyncio.sleep(0.02)
            await asyncio.to_thread(publisher.close)

        tasks = [asyncio.create_task(tick()), asyncio.create_task(produce())]
        taken = [frame.frame_no async for frame in subscriber]
        for task in tasks:
            task.cancel()
        return taken, ticks

    with Subscriber(key, mode="ordered") as subscriber:
        taken, ticks = asyncio.run(asyncio.wait_for(consume(subscriber), 30))
    assert taken == [1, 2, 3, 4, 5]
    assert ticks > 5


def test_publisher_of_another_kind_is_named(runtime_dir, key):
    """A server that answers with nonsense, or not at all."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(runtime_dir / f"{key}.sock"))
    listener.listen()
    answers = [
        wire.pack(wire.MessageType.HELLO_RESP, b"short"),
        wire.pack(wire.MessageType.EVENT_FD),
        struct.pack("<II", 2, 99999),
        wire.Welcome(0, version=2).pack(),
        wire.error(wire.ErrorCode.RESOURCES, "no more today"),
    ]

    def serve():
        for answer in answers:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.recv(1)
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    for said in ("malformed", "instead of HELLO_RESP", "99999 bytes", "speaks protocol version 2", "no more today"):
        with pytest.raises(cuframes.CuframesError, match=said):
            Subscriber(key, connect_timeout=5)
    thread.join(10)
    listener.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ring_size": 400}, "400 slots"),
        ({"meta": struct.pack("<IiiiiIQ", 99, 60, 40, 64, 64, 12, 3840) + bytes(32)}, "does not support"),
        ({"meta": struct.pack("<IiiiiIQ", 0, 60, 40, 64, 64, 12, 10) + bytes(32)}, "10 bytes"),
        ({"meta": struct.pack("<IiiiiIQ", 0, 60, 40, 8, 64, 12, 3840) + bytes(32)}, "pitch"),
        ({"meta": struct.pack("<IiiiiIQ", 0, 60, 40, 64, 64, 12, 1 << 40) + bytes(32)}, "the pool has 16384 bytes"),
    ],
)
def test_announced_figures_are_checked_before_use(publisher, key, change, said):
    publisher._server._welcome = publisher._server._welcome._replace(**change)
    with pytest.raises(cuframes.ProtocolError, match=said):
        Subscriber(key)
    eventually(lambda: not publisher.subscribers)
