"""Several real processes: wholeness, exact counts, and crashes at any moment."""

import contextlib
import signal
import threading
import time

import numpy
import pytest
from harness import Worker, eventually

import cuframes
from cuframes import FrameDropped, Publisher, Subscriber
from cuframes.session.listing import collect_garbage, find_publisher

FRAMES = 2000
SIZE = (1280, 720)


def publish_colours(publisher, count, delay=0.0, timeout=None):
    """Frames of one colour each, that of their dense number."""
    array = numpy.empty((publisher.height, publisher.width), numpy.uint8)
    published = 0
    while published < count:
        array.fill((published + 1) % 251)
        with contextlib.suppress(FrameDropped):
            publisher.publish(array, timeout=timeout)
            published += 1
        if delay:
            time.sleep(delay)


@pytest.mark.timeout(300)
def test_strict_wait_delivers_every_frame_to_every_subscriber(key):
    with Publisher(key, *SIZE, "gray8", policy="strict_wait") as publisher, contextlib.ExitStack() as stack:
        delays = (0, 0, 0.002, 0.003)
        workers = [stack.enter_context(Worker("consumer.py", key, "--delay", delay)) for delay in delays]
        publish_colours(publisher, FRAMES, timeout=60)
        publisher.close()
        for worker in workers:
            result = worker.result()
            assert (result["received"], result["lost"], result["torn"]) == (FRAMES, 0, 0)
            assert (result["first"], result["last"], result["growing"]) == (1, FRAMES, True)


@pytest.mark.timeout(300)
def test_drop_oldest_never_waits_and_counts_exactly(key):
    with Publisher(key, *SIZE, "gray8") as publisher, contextlib.ExitStack() as stack:
        forms = [("ordered", 0), ("newest", 0), ("ordered", 0.02), ("newest", 0.02)]
        workers = [
            stack.enter_context(Worker("consumer.py", key, "--mode", mode, "--delay", delay)) for mode, delay in forms
        ]
        publish_colours(publisher, FRAMES, delay=0.0005)
        assert publisher.stats()[:2] == (FRAMES, 0)  # four readers with one frame each cannot hold eight slots
        publisher.close()
        for worker in workers:
            result = worker.result()
            assert result["torn"] == 0
            assert result["growing"]
            assert result["received"] + result["lost"] + result["skipped"] == result["last"]
            assert result["received"] > 50


def test_stopped_subscriber_keeps_its_frame_and_holds_nobody_up(key):
    with Publisher(key, 320, 240, "gray8") as publisher, Worker("consumer.py", key, "--hold-first") as worker:
        publish_colours(publisher, 1)
        assert worker.read() == "holding"
        worker.signal(signal.SIGSTOP)
        with Subscriber(key, mode="ordered") as bystander:
            array = numpy.empty((240, 320), numpy.uint8)
            for number in range(2, 402):
                array.fill(number % 251)
                publisher.publish(array)
                with bystander.next(10) as frame:
                    assert (frame.frame_no, frame.lost) == (number, 0)
            assert next(s for s in publisher.subscribers if s.held).held == 1
        worker.signal(signal.SIGCONT)
        worker.tell()
        publisher.close()
        result = worker.result()
        assert result["first_whole"]
        assert result["torn"] == 0
        assert result["received"] + result["lost"] == 401


@pytest.mark.timeout(300)
def test_200_subscribers_killed_in_a_row(key):
    with Publisher(key, 320, 240, "gray8") as publisher, Worker("consumer.py", key) as bystander:
        stop = threading.Event()

        def produce():
            number = 0
            array = numpy.empty((240, 320), numpy.uint8)
            while not stop.is_set():
                array.fill((number + 1) % 251)
                publisher.publish(array)
                number += 1
                time.sleep(0.001)

        thread = threading.Thread(target=produce)
        thread.start()
        with Worker("kill_children.py", key, 200, 7) as killer:
            assert killer.result(timeout=240) == "done"
        # Their places and their holds are back.
        eventually(lambda: len(publisher.subscribers) == 1)
        stop.set()
        thread.join()
        assert publisher.stats().dropped == 0
        published = publisher.stats().published
        publisher.close()
        result = bystander.result()
        assert result["torn"] == 0
        assert result["received"] + result["lost"] == result["last"] == published
    # And nothing is left of them in the ring: every slot can be written again.
    with Publisher(key, 320, 240, "gray8", ring_size=2) as publisher:
        publish_colours(publisher, 10)


def test_killed_reader_frees_the_slots_it_held(key):
    with Publisher(key, 64, 48, "gray8", ring_size=2) as publisher, Subscriber(key, max_held=1) as other:
        with Worker("consumer.py", key, "--hold-first") as worker:
            publish_colours(publisher, 1)
            assert worker.read() == "holding"
            kept = other.next(5)
            publish_colours(publisher, 1)
            other_slot = publisher.publish(numpy.zeros((48, 64), numpy.uint8))
            assert other_slot % 2 != kept.seq % 2
            worker.kill()
        eventually(lambda: len(publisher.subscribers) == 1)
        kept.release()
        seqs = {publisher.publish(numpy.zeros((48, 64), numpy.uint8)) % 2 for _ in range(4)}
        assert seqs == {0, 1}


@pytest.mark.parametrize("wait", ["block", "spin"])
def test_killed_publisher_is_noticed(key, wait):
    with Worker("producer.py", key) as worker, Subscriber(key, mode="ordered", wait=wait) as subscriber:
        kept = subscriber.next(5)
        noticed = []

        def drain():
            with contextlib.suppress(cuframes.Disconnected):
                while True:
                    subscriber.next(30).release()
            noticed.append(time.monotonic())

        thread = threading.Thread(target=drain)
        thread.start()
        time.sleep(0.1)
        worker.kill()
        killed = time.monotonic()
        thread.join(20)
        assert noticed
        # A slice of waiting is 0.1 s and 0.2 s are promised; a loaded machine gets more, but far less than a timeout.
        assert noticed[0] - killed < 5
        assert (numpy.asarray(kept) == kept.frame_no % 251).all()
    collect_garbage([key])


@pytest.mark.timeout(300)
def test_publisher_killed_at_random_moments(key):
    """Whatever it was doing: the next publisher of the key starts, and subscribers with reconnect go on."""
    import random

    chance = random.Random(3)
    with contextlib.ExitStack() as stack:
        workers = [Worker("producer.py", key, "--delay", 0)]
        subscriber = stack.enter_context(Subscriber(key, mode="ordered", reconnect=True))
        epochs = set()
        for _ in range(15):
            end = time.monotonic() + chance.random() * 0.05
            while time.monotonic() < end:
                with subscriber.next(30) as frame:
                    epochs.add(frame.epoch)
                    assert (numpy.asarray(frame) == frame.frame_no % 251).all()
            workers[-1].kill()
            workers.append(Worker("producer.py", key, "--delay", 0))
        with subscriber.next(30) as frame:
            epochs.add(frame.epoch)
        workers[-1].kill()
        assert len(epochs) > 5
    assert not find_publisher(key).alive
    removed = [str(path) for path in collect_garbage([key])]
    assert f"/dev/shm/cuframes-{key}" in removed


def test_many_subscribers_see_every_frame_whole(key):
    with Publisher(key, 320, 240, "gray8") as publisher, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker("consumer.py", key, "--mode", "newest")) for _ in range(12)]
        publish_colours(publisher, 300, delay=0.002)
        publisher.close()
        for worker in workers:
            result = worker.result()
            assert (result["torn"], result["received"] + result["skipped"]) == (0, result["last"])
