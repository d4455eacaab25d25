"""How things end: close() against everything else that can be going on, with a publisher that answers and one that does
not.
"""

import asyncio
import contextlib
import errno
import gc
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy
import pytest
from harness import Worker, descriptors, descriptors_and_targets, eventually, no_more_descriptors_than
from interruption import forget_unstarted_threads, interrupt

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber, wait_any
from cuframes.framecache import SlotReader, SlotWriter, remove_slot
from cuframes.host.keylock import KeyLock
from cuframes.session import client, wire

FRAME = numpy.zeros((48, 64), numpy.uint8)
ENDS = 20  # seconds in which something must have ended; it takes milliseconds


class Frames:
    """A publisher of frames, and how to subscribe to it."""

    def __init__(self, key):
        self.key = key
        self.begin()

    def begin(self):
        self.writer = Publisher(self.key, 64, 48, "gray8")

    def reader(self, **options):
        return Subscriber(self.key, mode="ordered", **options)

    def write(self):
        self.writer.publish(FRAME)

    def take(self, reader, timeout):
        return reader.next(timeout)

    def end(self):
        self.writer.close()

    def left(self):
        return len(self.writer.subscribers)


class Packets(Frames):
    def begin(self):
        self.writer = PacketPublisher(self.key, "h264")

    def reader(self, **options):
        return PacketReader(self.key, "next", **options)

    def write(self):
        self.writer.publish_packet(b"x", pts_ns=0, keyframe=True)

    def left(self):
        return 0


class Slots(Packets):
    def begin(self):
        self.writer = SlotWriter(self.key, 64, 48, "gray8", ring_depth=4)

    def reader(self, **options):
        return SlotReader(self.key, **options)

    def write(self):
        self.writer.write(FRAME)

    def take(self, reader, timeout):
        return reader.read(timeout)

    def end(self):
        self.writer.close()
        remove_slot(self.key)


@pytest.fixture(params=[Frames, Packets, Slots])
def ring(request, key, slots):
    made = request.param(key)
    yield made
    made.end()


def in_thread(function):
    """Run it in a thread; a list that will have what it returned, or raised."""
    results = []

    def run():
        try:
            results.append(function())
        except Exception as problem:
            results.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def joined(thread):
    thread.join(ENDS)
    assert not thread.is_alive(), "it has not ended"


# ---- close() against what is going on


@pytest.mark.parametrize("closer", ["task", "thread"])
def test_async_for_ends_when_it_is_closed(ring, closer):
    async def main():
        reader = ring.reader()

        async def loop():
            return [item async for item in reader]

        task = asyncio.create_task(loop())
        await asyncio.sleep(0.05)  # it waits now
        if closer == "task":
            reader.close()
        else:
            await asyncio.to_thread(reader.close)
        return await asyncio.wait_for(task, ENDS)

    assert asyncio.run(main()) == []


def test_a_poll_ends_when_it_is_closed(ring):
    reader = ring.reader()
    poller = select.poll()
    poller.register(reader.fileno(), select.POLLIN)
    while poller.poll(0):
        with pytest.raises(cuframes.Timeout):
            (reader.next if hasattr(reader, "next") else reader.read)(0)
    thread, results = in_thread(lambda: poller.poll(ENDS * 1000))
    time.sleep(0.05)
    reader.close()
    joined(thread)
    assert results[0]
    with pytest.raises(ValueError, match="closed"):
        reader.fileno()


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_a_loop_that_reconnects_stays_closed(ring, kind):
    """It used to come back to life when the next publisher did, and could then never be closed."""
    reader = ring.reader(reconnect=True)
    after = []

    async def loop():
        async for _ in reader:
            after.append(reader._closed)

    def iterate():
        for _ in reader:
            after.append(reader._closed)

    thread, _ = in_thread(iterate if kind == "thread" else lambda: asyncio.run(loop()))
    ring.end()
    time.sleep(0.1)  # it looks for the next one now
    reader.close()
    ring.begin()
    for _ in range(10):
        ring.write()
        time.sleep(0.01)
    joined(thread)
    assert not any(after)
    assert ring.left() == 0


@pytest.mark.parametrize("wait", ["block", "spin", "predictive"])
def test_closing_in_a_signal_handler(key, wait):
    """The handler runs inside the call that close() would have to wait for."""
    with Publisher(key, 64, 48, "gray8") as publisher:
        subscriber = Subscriber(key, wait=wait)
        before = signal.signal(signal.SIGUSR1, lambda *_: subscriber.close())
        try:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(ValueError, match="closed"):
                subscriber.next(ENDS)
            timer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        eventually(lambda: publisher.subscribers == ())
        assert subscriber.stats().received == 0


def test_a_signal_handler_that_interrupts_a_close_closes_once_more(key):
    """The close that is interrupted cannot go on before the handler returns, so the handler must not wait for it."""
    script = """
    import os, signal, sys
    import cuframes
    from cuframes.session import client
    publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
    subscriber = cuframes.Subscriber(sys.argv[1])
    handled = []
    def close_again(*_):
        subscriber.close()
        handled.append(True)
    signal.signal(signal.SIGUSR1, close_again)
    close = client.Connection.close
    def interrupted(connection):
        signal.raise_signal(signal.SIGUSR1)
        close(connection)
    client.Connection.close = interrupted
    subscriber.close()
    publisher.close()
    print(handled)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), key], capture_output=True, text=True, timeout=ENDS
    )
    assert done.stdout.strip() == "[True]", done.stderr


def publisher_with_packets(key):
    publisher = Publisher(key, 64, 48, "gray8")
    publisher.enable_packets("h264")
    return publisher


@pytest.mark.parametrize("finish", ["close", "collect"])
@pytest.mark.parametrize(
    ("start", "stride"), [(publisher_with_packets, 11), (lambda key: PacketPublisher(key, "h264"), 3)]
)
def test_a_close_that_is_interrupted_is_finished(key, runtime_dir, start, stride, finish):
    """By itself, the next close(), or the destructor: wherever a signal handler raises, nothing is left."""
    for _ in range(2):
        start(key).close()  # what is made once and kept
    gc.collect()
    before, at, where = descriptors(), 1 - stride, ""
    while where is not None:
        at += stride
        publisher = start(key)
        _, where = interrupt(publisher.close, at)
        if finish == "close":
            publisher.close()
        del publisher
        left = [*runtime_dir.iterdir(), *Path("/dev/shm").glob(f"cuframes-{key}*")]
        assert not left, (at, where)
        assert descriptors() == before, (at, where)
    assert at > 100


def make_key_lock(key):
    KeyLock(Path(os.environ["CUFRAMES_RUNTIME_DIR"]), f"{key}-other").close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # sockets: Python's own objects own them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("opening", "stride"),
    [
        (lambda key: PacketReader(key).close(), 5),
        (lambda key: Subscriber(key).close(), 7),
        (lambda key: SlotWriter(key).close(), 7),
        (make_key_lock, 1),
    ],
    ids=["PacketReader", "Subscriber", "SlotWriter", "KeyLock"],
)
def test_a_constructor_that_is_interrupted_leaves_no_descriptor(key, slots, opening, stride):
    """Wherever a signal handler raises: each descriptor has an owner from the moment it is there."""
    with publisher_with_packets(key) as publisher:
        SlotWriter(key, 64, 48, "gray8", ring_depth=2).close()
        opening(key)
        eventually(lambda: not publisher.subscribers)
        time.sleep(0.05)  # the publisher's thread hangs up
        before, at, where = descriptors_and_targets(), 1 - stride, ""
        while where is not None:
            at += stride
            _, where = interrupt(lambda: opening(key), at)
            no_more_descriptors_than(before, (at, where))
    assert at > 40


@pytest.mark.parametrize(
    "opening",
    [lambda key: PacketReader(key), lambda key: Subscriber(key), lambda key: SlotReader(key)],
    ids=["PacketReader", "Subscriber", "SlotReader"],
)
def test_a_fileno_that_is_interrupted_loses_and_closes_nothing(key, slots, opening):
    """Neither do the close() after it, and a close() that is interrupted and called again."""
    with publisher_with_packets(key) as publisher:
        SlotWriter(key, 64, 48, "gray8", ring_depth=2).close()
        threads = threading.active_count()
        with opening(key) as reader:
            reader.fileno()
        eventually(lambda: not publisher.subscribers and threading.active_count() <= threads)
        time.sleep(0.05)
        before, at, where = descriptors_and_targets(), 0, ""
        while where is not None:
            at += 3
            reader = opening(key)
            _, where = interrupt(reader.fileno, at)
            os.fstat(reader.fileno())
            interrupt(reader.close, 5 * at)
            reader.close()
            del reader
            no_more_descriptors_than(before, (at, where))
    assert at > 10
    forget_unstarted_threads()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # sockets: Python's own objects own them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_publisher_that_is_interrupted_while_it_starts_leaves_no_thread(key):
    Publisher(key, 64, 48, "gray8").close()
    gc.collect()
    before, at, where = descriptors_and_targets(), 0, ""
    while where is not None:
        at += 61
        _, where = interrupt(lambda: Publisher(key, 64, 48, "gray8").close(), at)
        no_more_descriptors_than(before, (at, where))
        assert f"cuframes:{key}" not in [t.name for t in threading.enumerate() if t.is_alive()], (at, where)
    Publisher(key, 64, 48, "gray8").close()
    assert at > 200
    forget_unstarted_threads()


def test_threads_that_share_a_reader_all_go_on_with_the_next_publisher(ring):
    reader = ring.reader(reconnect=True)

    def take():
        while True:
            try:
                ring.take(reader, 0.001)
            except cuframes.Timeout:
                pass
            except RuntimeError as problem:
                if "another thread" not in str(problem):  # one at a time
                    raise

    threads = [in_thread(take) for _ in range(3)]
    for _ in range(10):
        ring.write()
        ring.end()
        ring.begin()
        time.sleep(0.01)
    assert [results for _, results in threads] == [[], [], []]
    reader.close()
    for thread, results in threads:
        joined(thread)
        assert isinstance(results[0], ValueError)


def test_a_subscriber_that_is_faster_than_the_end_of_its_publisher_keeps_its_name(key):
    """It rejoined while the ending publisher still answered, and was told that its own name was in use."""
    publisher = Publisher(key, 64, 48, "gray8", memory="host")
    with Subscriber(key, start="latest", reconnect=True) as subscriber:
        publisher._writer.close()  # the first step of close()
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0.5)
        publisher.close()
        with Publisher(key, 64, 48, "gray8", memory="host") as publisher:
            publisher.publish(bytes(64 * 48))
            assert subscriber.next(ENDS).seq == 1


def test_what_was_received_is_counted_once_when_joining_is_interrupted_by_close(ring, monkeypatch):
    reader = ring.reader(reconnect=True)
    ring.write()
    next(reader)
    received = reader.stats()
    leave = reader._leave

    def interrupted(ended):
        leave(ended)
        reader.close()

    monkeypatch.setattr(reader, "_leave", interrupted)
    ring.end()
    ring.begin()
    with pytest.raises(ValueError, match="closed"):
        ring.take(reader, ENDS)
    assert reader.stats() == received
    eventually(lambda: ring.left() == 0)


def test_packets_that_are_enabled_while_the_publisher_is_closed(key, monkeypatch):
    publisher = Publisher(key, 64, 48, "gray8")
    enable = PacketPublisher.__init__

    def interrupted(packets, *args, **options):
        enable(packets, *args, **options)
        publisher.close()

    monkeypatch.setattr(PacketPublisher, "__init__", interrupted)
    with pytest.raises(ValueError, match="closed"):
        publisher.enable_packets("h264")
    with pytest.raises(cuframes.NotFound):
        PacketReader(key, connect_timeout=0)


def test_closing_in_many_threads_at_once(ring):
    for _ in range(20):
        reader = ring.reader()
        waiting, results = in_thread(lambda reader=reader: next(reader, "ended"))
        before = descriptors()
        closers = [in_thread(reader.close) for _ in range(4)]
        for thread, outcome in closers:
            joined(thread)
            assert outcome == [None]
        joined(waiting)
        assert results == ["ended"]
        assert descriptors() <= before
    eventually(lambda: ring.left() == 0)


def test_closing_while_others_ask_for_descriptors_and_counters(ring):
    """Every call either works or says that the reader is closed."""
    for _ in range(10):
        reader = ring.reader()
        stop = threading.Event()

        def ask(reader=reader, stop=stop):
            while not stop.is_set():
                reader.stats()
                reader.fileno()

        threads = [in_thread(ask) for _ in range(2)]
        ring.write()
        reader.close()
        for thread, results in threads:
            joined(thread)
            assert isinstance(results[0], ValueError), results
        stop.set()


def test_wait_any_serves_the_others_when_one_is_closed(key):
    publishers = [Publisher(f"{key}-{i}", 64, 48, "gray8") for i in range(3)]
    subscribers = [Subscriber(f"{key}-{i}") for i in range(3)]
    thread, results = in_thread(lambda: wait_any(subscribers, ENDS))
    time.sleep(0.05)
    subscribers[1].close()
    joined(thread)
    assert results == [[subscribers[1]]]
    publishers[2].publish(FRAME)
    assert wait_any(subscribers, ENDS) == subscribers[1:]
    with pytest.raises(ValueError, match="closed"):
        subscribers[1].next(0)
    for thing in (*subscribers, *publishers):
        thing.close()
    with pytest.raises(ValueError, match="closed"):
        wait_any(subscribers, 0)


def test_a_publisher_that_waits_for_its_subscribers_can_be_closed(key):
    publisher = Publisher(key, 64, 48, "gray8", ring_size=2, policy="strict_wait")
    with Subscriber(key, mode="ordered") as subscriber:
        for _ in range(2):
            publisher.publish(FRAME)
        thread, results = in_thread(lambda: publisher.publish(FRAME))
        time.sleep(0.05)
        publisher.close()
        joined(thread)
        assert isinstance(results[0], ValueError)
        for number in (1, 2):
            with subscriber.next(0) as frame:
                assert frame.frame_no == number
        with pytest.raises(cuframes.Disconnected):
            subscriber.next(ENDS)


def test_closing_a_publisher_that_publishes(key):
    """publish() either publishes or says that the publisher is closed, and nothing is torn."""
    for _ in range(10):
        publisher = Publisher(key, 640, 480, "gray8")
        packets = PacketPublisher(key, "h264")

        def write(publisher=publisher, packets=packets):
            try:
                while True:
                    publisher.publish(numpy.full((480, 640), publisher.stats().published % 251, numpy.uint8))
                    packets.publish_packet(b"x" * 300_000, pts_ns=0, keyframe=True)
            except ValueError:
                return publisher.stats().published

        with Subscriber(key, mode="ordered", start="oldest") as subscriber:
            thread, results = in_thread(write)
            subscriber.next(ENDS).release()
            publisher.close()
            packets.close()
            joined(thread)
            last = [numpy.asarray(frame).max() == numpy.asarray(frame).min() for frame in subscriber]
            assert all(last)
        assert isinstance(results[0], int), results


def test_a_frame_begun_before_close_is_not_published(key):
    publisher = Publisher(key, 64, 48, "gray8")
    with Subscriber(key) as subscriber:
        with pytest.raises(ValueError, match="closed"):
            with publisher.acquire():
                publisher.close()
        with pytest.raises(cuframes.Disconnected):
            subscriber.next(ENDS)
        assert subscriber.stats().received == 0


def test_a_reader_that_is_dropped_with_a_packet_ahead_frees_its_ring(key):
    with PacketPublisher(key, "h264") as publisher:
        for _ in range(3):
            publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
        before = descriptors()
        reader = PacketReader(key, "oldest")
        held = reader.next(0, copy=False)
        del reader
        assert descriptors() == before
        assert bytes(held.data) == b"x"


def test_joining_keeps_nothing_of_its_caller(key):
    """An exception that was kept for later held the frames it had gone through, until a garbage collection."""
    import weakref

    class Local:
        pass

    def join():
        local = Local()
        with PacketReader(key) as reader:  # which asks for a socket first, and finds none
            assert reader.next(0).seq == 1
        return weakref.ref(local)

    with PacketPublisher(key, "h264") as publisher:
        publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
        gc.disable()
        try:
            assert join()() is None
        finally:
            gc.enable()


def test_one_that_cannot_be_closed_at_exit_does_not_keep_the_others_open(key):
    script = f"""
        import cuframes
        from cuframes.host import lifetime
        class Stubborn(lifetime.Closing):
            def close(self):
                raise RuntimeError("never")
        publishers = [cuframes.Publisher("{key}-%d" % i, 64, 48, "gray8", memory="host") for i in range(3)]
        stubborn = [Stubborn() for _ in range(20)]
        for one in stubborn:
            lifetime.register(one)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(Path("/dev/shm").glob(f"cuframes-{key}*")) == []


def test_exit_is_silent_with_threads_in_every_wait(key, slots):
    script = f"""
        import threading, time, numpy, cuframes
        from cuframes.framecache import SlotReader, SlotWriter
        publisher = cuframes.Publisher("{key}", 64, 48, "gray8", memory="host")
        publisher.enable_packets("h264")
        writer = SlotWriter("{key}", 64, 48, "gray8", ring_depth=4)
        subscribers = [cuframes.Subscriber("{key}", wait=wait, max_held=4) for wait in ("block", "spin", "predictive")]
        def loop(items):
            for item in items:
                array = numpy.asarray(item) if hasattr(item, "planes") else item
        def wait():
            while True:
                cuframes.wait_any(subscribers, 1)
        def publish():
            while True:
                publisher.publish(bytes(64 * 48))
                publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
                writer.write(bytes(64 * 48))
                time.sleep(0.001)
        loops = [*subscribers, cuframes.PacketReader("{key}"), SlotReader("{key}")]
        for target, arguments in [(loop, (items,)) for items in loops] + [(wait, ()), (publish, ())]:
            threading.Thread(target=target, args=arguments, daemon=True).start()
        time.sleep(0.2)
    """
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert "Exception ignored" not in done.stderr
        assert "Fatal" not in done.stderr
        assert list(Path("/dev/shm").glob(f"cuframes-{key}*")) == []
    remove_slot(key)


# ---- whoever does not answer


@pytest.fixture
def stopped(key):
    """A publisher that has been stopped, with a subscriber that it still knows."""
    with Worker("producer.py", key, "--delay", 0.01) as worker:
        worker.signal(signal.SIGSTOP)
        yield worker
        worker.signal(signal.SIGCONT)
        worker.kill()
    cuframes.session.listing.collect_garbage()


def test_nobody_waits_for_a_stopped_publisher_longer_than_he_said(stopped, key):
    for call in (lambda: Subscriber(key, connect_timeout=0.3), lambda: PacketReader(key, connect_timeout=0.3)):
        begin = time.monotonic()
        with pytest.raises(cuframes.Timeout, match="does not answer"):
            call()
        assert time.monotonic() - begin < 1.5  # its answer would be waited for for 2 s


def test_a_reconnecting_subscriber_goes_on_waiting_for_a_stopped_publisher(key):
    with Publisher(key, 64, 48, "gray8") as first:
        subscriber = Subscriber(key, reconnect=True)
        first.close()
    with subscriber, Worker("producer.py", key, "--delay", 0.01) as worker:
        worker.signal(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0.3)
        assert time.monotonic() - begin < 1.5
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0)

        async def take():
            beats = 0

            async def beat():
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0.005)

            heart = asyncio.create_task(beat())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(subscriber), 0.5)
            worker.signal(signal.SIGCONT)
            frame = await asyncio.wait_for(anext(subscriber), ENDS)
            heart.cancel()
            return beats, frame.frame_no

        beats, number = asyncio.run(take())
        assert number >= 1
        assert beats > 10  # 100, if nothing else ran on this machine
        worker.kill()
    cuframes.session.listing.collect_garbage()


def test_wait_any_serves_the_others_when_one_publisher_is_stopped(stopped, key, monkeypatch):
    from cuframes._native import wait_any as native

    stopped.signal(signal.SIGCONT)
    bad = Subscriber(key)
    stopped.signal(signal.SIGSTOP)
    with Publisher(f"{key}-b", 64, 48, "gray8") as publisher, Subscriber(f"{key}-b") as good, bad:
        for allowed in (True, False):  # futex_waitv, and descriptors, for which the publisher would have to be asked
            native.allow_waitv(allowed)
            try:
                while wait_any([bad], 0):
                    bad.next(0).release()
                timer = threading.Timer(0.05, publisher.publish, (FRAME,))
                timer.start()
                assert wait_any([bad, good], ENDS) == [good]
                good.next(0).release()
                timer.join()
                assert wait_any([bad, good], 0.01) == []
            finally:
                native.allow_waitv(True)
        assert bad.fileno() >= 0
        stopped.signal(signal.SIGCONT)
        assert bad.next(ENDS).frame_no >= 1


def test_a_timeout_is_a_number_of_seconds(key):
    with Publisher(key, 64, 48, "gray8"), Subscriber(key) as subscriber:
        for timeout in (float("nan"), -1, True):
            with pytest.raises(ValueError, match="timeout"):
                Subscriber(key, connect_timeout=timeout)
            with pytest.raises(ValueError, match="timeout"):
                subscriber.next(timeout)
            with pytest.raises(ValueError, match="timeout"):
                wait_any([subscriber], timeout)


def test_two_threads_read_one_connection(key):
    """The answer to fileno() used to be taken by the thread in next()."""
    with Publisher(key, 64, 48, "gray8"):
        for _ in range(100):
            subscriber = Subscriber(key)

            def take(subscriber=subscriber):
                while True:
                    try:
                        subscriber.next(0)
                    except cuframes.Timeout:
                        pass
                    except ValueError:
                        return

            thread, _ = in_thread(take)
            assert subscriber.fileno() >= 0
            eventually(lambda subscriber=subscriber: subscriber._event_fd >= 0)
            subscriber.close()
            joined(thread)


def test_packets_of_a_publisher_that_has_just_started(key):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        timer = threading.Timer(0.1, publisher.enable_packets, ("h264",))
        timer.start()
        with subscriber.packets(connect_timeout=ENDS) as reader:
            timer.join()
            publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
            assert reader.next(ENDS).seq == 1


class Impostor:
    """A program that listens where the publisher of a key would."""

    def __init__(self, runtime_dir, key, serve):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(runtime_dir / f"{key}.sock"))
        self.listener.listen()
        self.thread = threading.Thread(target=self._run, args=(serve,))
        self.thread.start()

    def _run(self, serve):
        for act in serve:
            connection, _ = self.listener.accept()
            with connection:
                connection.recv(4096)
                with contextlib.suppress(OSError):
                    act(connection)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.thread.join(ENDS)
        self.listener.close()


def test_what_may_pass_is_tried_again(runtime_dir, key):
    """A publisher that has no connection left, one that dies in the handshake, and then one that is there."""
    made = []

    def become_real(connection):
        os.unlink(runtime_dir / f"{key}.sock")
        made.append(Publisher(key, 64, 48, "gray8"))

    busy = wire.Welcome(-wire.ErrorCode.RESOURCES).pack() + wire.error(wire.ErrorCode.RESOURCES, "too many connections")
    acts = [lambda c: c.sendall(busy), lambda c: c.sendall(wire.Welcome(0).pack()[:10]), become_real]
    with Impostor(runtime_dir, key, acts):
        Subscriber(key, connect_timeout=ENDS).close()
    made[0].close()


def test_a_publisher_that_floods_is_left(runtime_dir, key):
    before = descriptors()

    def flood(connection):
        message = struct.pack("<II", wire.MessageType.PONG, 0)
        fd = os.open("/dev/null", os.O_RDONLY)
        try:
            while True:
                socket.send_fds(connection, [message], [fd] * 4)
        finally:
            os.close(fd)

    with Impostor(runtime_dir, key, [flood]):
        with pytest.raises(cuframes.ProtocolError):
            Subscriber(key, connect_timeout=ENDS)
    assert descriptors() == before


def test_descriptors_that_do_not_fit_are_named(key):
    """recvmsg says in a flag only that it had no number left for a descriptor."""
    import resource

    with Worker("producer.py", key) as worker:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = max(map(int, os.listdir("/proc/self/fd"))) + 1
        fill = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
            while True:  # leave one for the socket
                try:
                    fill.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            os.close(fill.pop())
            with pytest.raises(OSError, match="ulimit -n"):
                Subscriber(key, connect_timeout=0.1)
        finally:
            for fd in fill:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        Subscriber(key).close()
        worker.kill()
    cuframes.session.listing.collect_garbage()


# ---- the event loop


def test_other_tasks_run_while_a_loop_is_behind(ring):
    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        with ring.reader() as reader:
            for _ in range(3):
                ring.write()
            before, count = turns, 0
            async for _ in reader:
                count += 1
                if count == 3:
                    break
            task.cancel()
            return turns - before

    assert asyncio.run(main()) >= 2


def test_a_wait_that_timed_out_can_be_repeated(ring):
    """Nothing is lost, and the loop goes on."""

    async def main():
        with ring.reader() as reader:
            items = aiter(reader)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(items), 0.02)
                ring.write()
                await asyncio.wait_for(anext(items), ENDS)
            task = asyncio.create_task(anext(items))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stats = reader.stats()
            return stats[0], stats[1]

    assert asyncio.run(main()) == (3, 0)


# ---- numbers


def test_wait_any_sleeps_while_a_slot_is_being_refilled(key):
    with Publisher(key, 64, 48, "gray8", ring_size=2) as publisher:
        with Subscriber(key, mode="ordered") as holder, Subscriber(key, mode="ordered") as late:
            publisher.publish(FRAME)
            held = holder.next(0)
            late.next(0).release()
            publisher.publish(FRAME)  # late has not taken this one
            with publisher.acquire():  # the writer passes over the slot that is held, and takes that of the newest
                assert wait_any([late], 0.05) == []
            assert wait_any([late], ENDS) == [late]
            assert late.next(0).lost == 1
            held.release()


@pytest.mark.parametrize("mode", ["newest", "ordered"])
def test_a_number_that_somebody_wrote_does_not_stop_a_reader(key, mode, caplog):
    with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher, Subscriber(key, mode=mode) as subscriber:
        publisher.publish(FRAME)
        subscriber.next(0).release()
        with open(f"/dev/shm/cuframes-{key}", "r+b") as segment:
            for offset in (256, 192):  # the seq of slot 0, and global_seq
                segment.seek(offset)
                segment.write(struct.pack("<Q", 1 << 62))
            segment.flush()
        assert subscriber.next(0).seq == 1 << 62
        publisher.publish(FRAME)
        with pytest.raises(cuframes.Timeout):
            subscriber.next(0)  # that frame came before it was noticed
        publisher.publish(FRAME)
        assert subscriber.next(ENDS).frame_no == 3
        assert "went back" in caplog.text


def test_a_handshake_that_is_given_up_leaves_nothing(runtime_dir, key):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir / f"{key}.sock"))
        listener.listen()
        before = descriptors()
        steps = client.join(key, wire.Hello(3, "half", -1, False, client.FEATURES))
        assert next(steps).fd >= 0
        steps.close()
        assert descriptors() == before


@pytest.mark.parametrize("lacking", ["thread", "descriptor"])
def test_a_descriptor_that_could_not_be_had_can_be_asked_for_again(key, monkeypatch, lacking):
    def refuse(*_):
        raise RuntimeError("can't start new thread") if lacking == "thread" else OSError(errno.EMFILE, "no more")

    with PacketPublisher(key, "h264") as publisher, PacketReader(key, "next") as reader:
        before = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(*((threading.Thread, "start", refuse) if lacking == "thread" else (os, "dup", refuse)))
            with pytest.raises((RuntimeError, OSError)):
                reader.fileno()
        assert descriptors() <= before + 1  # the reader's own, with which the next call goes on
        fd = reader.fileno()
        with contextlib.suppress(cuframes.Timeout):
            reader.next(0)
        publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
        assert select.select([fd], [], [], 10)[0] == [fd]
        assert reader.next(0).data == b"x"


def test_an_async_loop_that_waits_for_the_next_publisher_ends_with_close(key):
    async def main():
        publisher = PacketPublisher(key, "h264")
        reader = PacketReader(key, reconnect=True)
        publisher.close()
        task = asyncio.create_task(anext(reader, "over"))
        await asyncio.sleep(0.01 * random.random())
        await asyncio.to_thread(reader.close)
        assert await asyncio.wait_for(task, 10) == "over"

    for _ in range(30):
        asyncio.run(main())


def test_a_daemon_thread_that_waits_for_its_publisher_prints_nothing_at_exit(key):
    script = f"""
        import threading, time
        import cuframes
        publisher = cuframes.Publisher("{key}", 64, 48, "gray8", memory="host")
        away = cuframes.Publisher("{key}-b", 64, 48, "gray8", memory="host")
        def loop(subscriber):
            while True:
                subscriber.next()
        for subscriber in (cuframes.Subscriber("{key}"), cuframes.Subscriber("{key}-b", reconnect=True)):
            threading.Thread(target=loop, args=(subscriber,), daemon=True).start()
        away.close()
        time.sleep(0.1)
    """
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["frames", "packets", "both"])
def test_publishers_that_a_daemon_thread_opens_at_exit_leave_nothing(key, runtime_dir, kind):
    script = f"""
        import threading, time
        import cuframes
        def loop():
            while True:
                if {kind!r} == "packets":
                    publisher = cuframes.PacketPublisher("{key}", 27)
                else:
                    publisher = cuframes.Publisher("{key}", 64, 48, "gray8", memory="host")
                    if {kind!r} == "both":
                        publisher.enable_packets(27)
                publisher.close()
        threading.Thread(target=loop, daemon=True).start()
        time.sleep(0.05)
    """
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not [path for path in (*runtime_dir.iterdir(), *Path("/dev/shm").iterdir()) if key in path.name]


def consumed(subscriber, wanted):
    """Take this many frames in an event loop, and wait for each in it."""

    async def main():
        count = 0
        async for frame in subscriber:
            frame.release()
            count += 1
            if count == wanted:
                return

    asyncio.run(asyncio.wait_for(main(), ENDS))


def test_a_publisher_without_descriptors_keeps_the_subscribers_that_wait_for_one(key, monkeypatch):
    """It used to hang up, so that their loops ended although it went on publishing."""
    make, lacking = os.eventfd, True

    def eventfd(*arguments):
        if lacking and threading.current_thread().name == f"cuframes:{key}":
            raise OSError(errno.EMFILE, "no more")
        return make(*arguments)

    monkeypatch.setattr(os, "eventfd", eventfd)
    with Publisher(key, 64, 48, "gray8", policy="strict_wait") as publisher:
        with Subscriber(key, mode="ordered") as subscriber:
            thread, results = in_thread(lambda: consumed(subscriber, 3))
            for _ in range(3):
                publisher.publish(FRAME, timeout=ENDS)
            joined(thread)
            assert results == [None]
            assert len(publisher.subscribers) == 1
            assert subscriber._event_fd < 0
            lacking = False
            eventually(lambda: subscriber.fileno() >= 0 and subscriber._event_fd >= 0)


def test_an_event_loop_asks_again_for_a_descriptor_that_was_lost(key, monkeypatch):
    """This process had no room for it. The loop then waited for ever, while frames came."""
    receive, losses = wire.receive, []

    def lossy(sock, limit, arrived):
        before = len(arrived)
        data, lost = receive(sock, limit, arrived)
        if len(arrived) > before and len(losses) < 2:
            losses.append(len(arrived))
            del arrived[before:]
            lost = True
        return data, lost

    with Publisher(key, 64, 48, "gray8", policy="strict_wait") as publisher:
        with Subscriber(key, mode="ordered") as subscriber:
            monkeypatch.setattr(wire, "receive", lossy)
            thread, results = in_thread(lambda: consumed(subscriber, 3))
            eventually(lambda: losses)
            for _ in range(3):
                publisher.publish(FRAME, timeout=ENDS)
            joined(thread)
            assert results == [None]
            eventually(lambda: subscriber.fileno() >= 0 and subscriber._event_fd >= 0)
            assert len(losses) == 2
