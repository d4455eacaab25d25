"""Publishing and taking, as one process sees it: order, loss, pins, policies."""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
from harness import eventually

import cuframes
from cuframes import Publisher, Subscriber
from cuframes._native.control import PINS


def gray(value, shape=(48, 64)):
    return numpy.full(shape, value % 251, numpy.uint8)


@pytest.fixture
def publisher(key):
    with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher:
        yield publisher


def publish(publisher, count, first=1):
    return [publisher.publish(gray(n), pts_ns=n) for n in range(first, first + count)]


def test_first_sequence_number_is_one(publisher):
    assert publish(publisher, 3) == [1, 2, 3]


def test_ordered_takes_every_frame(publisher, key):
    with Subscriber(key, mode="ordered", max_held=4) as subscriber:
        publish(publisher, 3)
        frames = [subscriber.next(1) for _ in range(3)]
        assert [(f.seq, f.frame_no, f.pts_ns, f.lost) for f in frames] == [(1, 1, 1, 0), (2, 2, 2, 0), (3, 3, 3, 0)]
        assert [int(numpy.asarray(f)[0, 0]) for f in frames] == [1, 2, 3]


def test_newest_jumps_and_counts_what_it_skipped(publisher, key):
    with Subscriber(key, mode="newest") as subscriber:
        publish(publisher, 3)
        with subscriber.next(1) as frame:
            assert (frame.frame_no, frame.skipped, frame.lost) == (3, 2, 0)
        assert subscriber.stats()[:3] == (1, 0, 2)


def test_ordered_counts_exactly_what_it_lost(publisher, key):
    with Subscriber(key, mode="ordered") as subscriber:
        publish(publisher, 11)
        taken = []
        with pytest.raises(cuframes.Timeout):
            while True:
                with subscriber.next(0) as frame:
                    taken.append((frame.frame_no, frame.lost))
        assert taken == [(8, 7), (9, 0), (10, 0), (11, 0)]
        assert subscriber.stats()[:3] == (4, 7, 0)


def test_loss_before_the_first_frame_counts_from_joining(publisher, key):
    publish(publisher, 5)
    with Subscriber(key, mode="ordered") as subscriber:
        publish(publisher, 6, first=6)
        with subscriber.next(1) as frame:
            assert (frame.frame_no, frame.lost) == (8, 2)


@pytest.mark.parametrize(
    ("start", "mode", "expected"),
    [
        ("next", "ordered", None),
        ("next", "newest", None),
        ("latest", "ordered", 6),
        ("latest", "newest", 6),
        ("oldest", "ordered", 3),
        ("oldest", "newest", 6),
    ],
)
def test_start(publisher, key, start, mode, expected):
    publish(publisher, 6)
    with Subscriber(key, mode=mode, start=start) as subscriber:
        if expected is None:
            with pytest.raises(cuframes.Timeout):
                subscriber.next(0)
            publish(publisher, 1, first=7)
            expected = 7
        with subscriber.next(0) as frame:
            assert (frame.frame_no, frame.lost, frame.skipped) == (expected, 0, 0)


def test_start_before_the_first_frame(publisher, key):
    with Subscriber(key, start="oldest", mode="ordered") as a, Subscriber(key, start="latest", mode="ordered") as b:
        publish(publisher, 1)
        assert a.next(1).seq == b.next(1).seq == 1


def test_held_frame_is_never_overwritten(publisher, key):
    with Subscriber(key, mode="ordered") as subscriber:
        publish(publisher, 1)
        frame = subscriber.next(1)
        seqs = publish(publisher, 50, first=2)
        assert frame.valid
        assert (numpy.asarray(frame) == 1).all()
        assert all(seq % 4 != frame.seq % 4 for seq in seqs)
        assert publisher.stats().published == 51
        # The numbers that fell on the held slot are gaps in seq, not lost frames.
        frame.release()
        numbers = [subscriber.next(0).frame_no for _ in range(2)]
        assert subscriber.stats().lost + subscriber.stats().received == 51 - (51 - numbers[-1])


def test_every_slot_held_drops_the_new_frame_and_says_so(publisher, key):
    with Subscriber(key, mode="ordered", max_held=4) as subscriber:
        publish(publisher, 4)
        frames = [subscriber.next(1) for _ in range(4)]
        with pytest.raises(cuframes.FrameDropped, match="every slot of the ring is held"):
            publisher.publish(gray(5))
        assert publisher.stats()[:2] == (4, 1)
        assert [int(numpy.asarray(f)[0, 0]) for f in frames] == [1, 2, 3, 4]
        frames.pop(0).release()
        assert publisher.publish(gray(5)) % 4 == 1
        assert subscriber.next(0).frame_no == 5


def test_max_held(publisher, key):
    with Subscriber(key, mode="ordered", max_held=2) as subscriber:
        publish(publisher, 3)
        kept = [subscriber.next(1), subscriber.next(1)]
        with pytest.raises(cuframes.TooManyHeld, match="holds 2 of at most 2 frames"):
            subscriber.next(0)
        kept.pop()
        assert subscriber.next(0).seq == 3


def test_default_max_held_is_half_the_ring(publisher, key):
    with Subscriber(key, mode="ordered") as subscriber:
        publish(publisher, 3)
        kept = [subscriber.next(1), subscriber.next(1)]
        with pytest.raises(cuframes.TooManyHeld):
            subscriber.next(0)
        del kept


def test_acquire_publishes_on_a_clean_exit(publisher, key):
    with Subscriber(key) as subscriber:
        with publisher.acquire() as slot:
            assert slot.planes[0].shape == (48, 64)
            slot.planes[0][...] = 9
            slot.pts_ns = 123
        assert slot.seq == 1
        with subscriber.next(1) as frame:
            assert (frame.pts_ns, int(numpy.asarray(frame).min())) == (123, 9)


def test_acquire_abandons_on_an_exception(publisher, key):
    with Subscriber(key, mode="ordered", start="oldest") as subscriber:
        publish(publisher, 4)
        with pytest.raises(ZeroDivisionError), publisher.acquire() as slot:
            slot.planes[0][...] = 99
            1 / 0  # noqa: B018
        assert slot.seq is None
        assert publisher.stats()[:2] == (4, 0)
        # The slot it had taken held frame 1: that one is gone, the rest is as it was.
        assert [subscriber.next(0).frame_no for _ in range(3)] == [2, 3, 4]
        assert publisher.publish(gray(5)) == 5


def test_newest_survives_an_abandoned_newest_slot(publisher, key):
    with (
        Subscriber(key, max_held=4, start="oldest", mode="ordered") as holder,
        Subscriber(key, start="oldest") as other,
    ):
        publish(publisher, 4)
        held = [holder.next(0) for _ in range(3)]
        with pytest.raises(ZeroDivisionError), publisher.acquire():  # can only be the slot of the newest frame
            1 / 0  # noqa: B018
        assert other.next(0).frame_no == 3
        del held


def test_one_frame_at_a_time(publisher):
    with publisher.acquire() as slot:
        with pytest.raises(RuntimeError, match="only one frame at a time"):
            publisher.publish(gray(1))
        slot.planes[0][...] = 3
    assert slot.seq == 1
    with pytest.raises(ValueError, match="used only once"):
        slot.__enter__()


def test_a_slot_that_was_entered_and_dropped_is_given_up(publisher):
    slot = publisher.acquire()
    slot.__enter__()
    del slot
    assert publisher.publish(gray(1)) == 1


def test_planes_kept_beyond_the_block_are_dead(publisher):
    with publisher.acquire() as slot:
        plane = slot.planes[0]
        plane[...] = 1
    with pytest.raises(ValueError, match="released"):
        plane[0, 0] = 2


def test_bad_pts_gives_the_slot_back(publisher):
    with pytest.raises(TypeError), publisher.acquire() as slot:
        slot.pts_ns = "soon"
    with pytest.raises(TypeError):
        publisher.publish(gray(1), pts_ns=1.5)
    assert publisher.publish(gray(1)) == 1


def test_default_pts_is_the_time_of_publishing(publisher, key):
    with Subscriber(key) as subscriber:
        before = cuframes.monotonic_ns()
        publisher.publish(gray(1))
        frame = subscriber.next(1)
        assert before <= frame.pts_ns <= frame.published_ns <= cuframes.monotonic_ns()


class TestStrictWait:
    @pytest.fixture
    def publisher(self, key):
        with Publisher(key, 64, 48, "gray8", ring_size=4, policy="strict_wait") as publisher:
            yield publisher

    def test_without_subscribers_nobody_is_waited_for(self, publisher):
        assert publish(publisher, 20)[-1] == 20

    def test_waits_for_the_slowest(self, publisher, key):
        with Subscriber(key, mode="ordered") as subscriber:
            publish(publisher, 4)
            with pytest.raises(cuframes.Timeout, match="strict_wait"):
                publisher.publish(gray(5), timeout=0.05)
            assert publisher.stats()[:2] == (4, 0)
            subscriber.next(0).release()
            assert publisher.publish(gray(5), timeout=0) == 5
            assert [subscriber.next(0).frame_no for _ in range(4)] == [2, 3, 4, 5]
            assert subscriber.stats()[:3] == (5, 0, 0)

    def test_a_release_wakes_the_publisher(self, publisher, key):
        with Subscriber(key, mode="ordered") as subscriber:
            publish(publisher, 4)
            frame = subscriber.next(0)
            done = []
            thread = threading.Thread(target=lambda: done.append(publisher.publish(gray(5), timeout=30)))
            thread.start()
            time.sleep(0.05)
            assert not done
            frame.release()
            thread.join(10)
            assert done == [5]

    def test_a_departure_wakes_the_publisher(self, publisher, key):
        subscriber = Subscriber(key, mode="ordered")
        publish(publisher, 4)
        done = []
        thread = threading.Thread(target=lambda: done.append(publisher.publish(gray(5), timeout=30)))
        thread.start()
        time.sleep(0.05)
        assert not done
        subscriber.close()
        thread.join(10)
        assert done == [5]

    def test_newest_acknowledges_what_it_passes_over(self, publisher, key):
        with Subscriber(key, mode="newest", start="oldest") as subscriber:
            for round in range(5):
                publish(publisher, 4, first=1 + 4 * round)
                with subscriber.next(0) as frame:
                    assert frame.frame_no == 4 * round + 4

    def test_a_newcomer_owes_nothing_for_old_frames(self, publisher, key):
        publish(publisher, 4)
        with Subscriber(key, mode="ordered") as subscriber:
            assert [publisher.publish(gray(n), timeout=0) for n in range(5, 9)] == [5, 6, 7, 8]
            with pytest.raises(cuframes.Timeout):
                publisher.publish(gray(9), timeout=0)
            assert subscriber.next(0).frame_no == 5

    def test_a_reused_bit_does_not_inherit_debts(self, publisher, key):
        first = Subscriber(key, mode="ordered")
        publish(publisher, 4)
        first.close()
        eventually(lambda: not publisher.subscribers)
        with Subscriber(key, mode="ordered"):
            assert [publisher.publish(gray(n), timeout=5) for n in range(5, 9)] == [5, 6, 7, 8]


def test_timeouts(publisher, key):
    with Subscriber(key) as subscriber:
        with pytest.raises(cuframes.Timeout) as caught:
            subscriber.next(0.01)
        assert isinstance(caught.value, TimeoutError)
        for bad in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                subscriber.next(bad)
        with pytest.raises(TypeError):
            subscriber.next("soon")


@pytest.mark.parametrize("wait", ["block", "spin"])
def test_waiting_does_not_hold_the_gil(publisher, key, wait):
    with Subscriber(key, wait=wait) as subscriber:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(subscriber.next(30)))
        thread.start()
        # Python code goes on running beside the waiting thread; had it kept the GIL, this would never end.
        for _ in range(50):
            time.sleep(0.002)
            sum(range(1000))
        assert not taken
        publish(publisher, 1)
        thread.join(10)
        assert taken[0].seq == 1


def test_two_threads_may_not_take_at_once(publisher, key):
    with Subscriber(key) as subscriber:

        def take():
            while True:
                with contextlib.suppress(RuntimeError):  # it may be the one that comes second
                    subscriber.next(30)
                    return

        thread = threading.Thread(target=take)
        thread.start()
        with pytest.raises(RuntimeError, match="another thread"):
            while True:
                with pytest.raises(cuframes.Timeout):
                    subscriber.next(0)
        publish(publisher, 1)
        thread.join(10)
        assert not thread.is_alive()


def test_close_wakes_a_waiting_thread(publisher, key):
    subscriber = Subscriber(key)
    caught = []

    def wait():
        try:
            subscriber.next()
        except ValueError as problem:
            caught.append(str(problem))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    subscriber.close()
    thread.join(10)
    assert caught == ["the subscriber is closed"]
    with pytest.raises(ValueError, match="closed"):
        subscriber.next()


def test_publisher_end_is_drained_first(publisher, key):
    with Subscriber(key, mode="ordered") as subscriber:
        publish(publisher, 3)
        publisher.close()
        assert [frame.frame_no for frame in subscriber] == [1, 2, 3]
        with pytest.raises(cuframes.Disconnected) as caught:
            subscriber.next()
        assert isinstance(caught.value, ConnectionError)
    with pytest.raises(ValueError, match="closed"):
        publisher.publish(gray(1))


def test_frames_outlive_publisher_and_subscriber(publisher, key):
    subscriber = Subscriber(key)
    publish(publisher, 1)
    pixels = numpy.asarray(subscriber.next(1))
    publisher.close()
    subscriber.close()
    assert (pixels == 1).all()


def test_a_closed_subscriber_keeps_its_place_while_frames_are_out(publisher, key):
    subscriber = Subscriber(key)
    publish(publisher, 1)
    pixels = numpy.asarray(subscriber.next(1).planes[0])
    subscriber.close()
    publish(publisher, 40, first=2)
    assert (pixels == 1).all()
    assert len(publisher.subscribers) == 1
    del pixels
    eventually(lambda: not publisher.subscribers)


def test_reconnect_to_the_next_publisher(key):
    with Publisher(key, 64, 48, "gray8") as first:
        subscriber = Subscriber(key, mode="ordered", reconnect=True)
        first.publish(gray(1))
        before = subscriber.next(1)
    with pytest.raises(cuframes.Timeout, match="came back"):
        subscriber.next(0.05)
    with Publisher(key, 32, 32, "gray8") as second:
        thread = threading.Thread(
            target=lambda: (eventually(lambda: second.subscribers), second.publish(gray(2, (32, 32))))
        )
        thread.start()
        after = subscriber.next(10)
        thread.join()
        assert (after.seq, after.width) == (1, 32)
        assert after.epoch != before.epoch
        assert (numpy.asarray(before) == 1).all()
        assert subscriber.stats()[:3] == (2, 0, 0)
        subscriber.close()


def mapped(key):
    return Path("/proc/self/maps").read_text().count(f"memfd:cuframes-{key}")


def test_close_unmaps_although_the_objects_live(key):
    publisher = Publisher(key, 64, 48, "gray8")
    subscriber = Subscriber(key)
    publish(publisher, 1)
    frame = subscriber.next(1)
    assert mapped(key) == 2
    publisher.close()
    assert mapped(key) == 1
    subscriber.close()
    assert (numpy.asarray(frame) == 1).all()
    del frame
    assert mapped(key) == 0
    assert publisher.stats() == (1, 0, 1, 1)
    assert publisher.subscribers == ()
    assert subscriber.stats()[:3] == (1, 0, 0)
    assert "closed" in repr(publisher) + repr(subscriber)


def test_stats_and_subscribers(publisher, key):
    with Subscriber(key, name="detector", mode="ordered") as subscriber:
        publish(publisher, 2)
        frame = subscriber.next(1)
        (info,) = publisher.subscribers
        assert (info.name, info.bit, info.received, info.lost, info.held) == ("detector", 1, 1, 0, 1)
        assert publisher.stats() == (2, 0, 2, 1)
        frame.release()
        assert publisher.subscribers[0].held == 0
        (listed,) = [p for p in cuframes.list_publishers() if p.key == key]
        assert listed.subscribers[0].name == "detector"


def test_list_publishers(publisher, key):
    publish(publisher, 2)
    (info,) = [p for p in cuframes.list_publishers() if p.key == key]
    assert (info.alive, info.format, info.width, info.height, info.memory) == (True, "gray8", 64, 48, "host")
    assert (info.ring_size, info.published, info.seq, info.subscribers) == (4, 2, 2, ())


def test_no_growth_over_many_subscribers(publisher, key):
    from harness import descriptors

    def once():
        with Subscriber(key) as subscriber:
            subscriber.fileno()
            publish(publisher, 1)
            numpy.asarray(subscriber.next(1))

    once()
    eventually(lambda: not publisher.subscribers)
    before = descriptors()
    for _ in range(100):
        once()
    eventually(lambda: not publisher.subscribers)
    eventually(lambda: descriptors() <= before)


class TestPublisherWithoutPins:
    """A plain version 3 publisher overwrites what is being read; it must never pass for a good frame."""

    @pytest.fixture
    def subscriber(self, publisher, key):
        welcome = publisher._server._welcome
        publisher._server._welcome = welcome._replace(features=welcome.features & ~PINS)
        with Subscriber(key, mode="ordered", max_held=4) as subscriber:
            yield subscriber

    def test_a_frame_that_was_not_touched_is_good(self, publisher, subscriber):
        publish(publisher, 3)
        for n in (1, 2, 3):
            with subscriber.next(1) as frame:
                assert (frame.valid, frame.frame_no, frame.lost) == (True, n, 0)
        assert subscriber.stats() == (3, 0, 0, 0, 0)

    def test_an_overwritten_frame_raises_at_release(self, publisher, subscriber):
        publish(publisher, 1)
        frame = subscriber.next(1)
        publish(publisher, 4, first=2)
        assert not frame.valid
        with pytest.raises(cuframes.Overwritten, match="discard what was read"):
            frame.release()
        assert subscriber.stats().overwritten == 1
        assert subscriber.stats().held == 0

    def test_losses_count_from_sequence_numbers(self, publisher, subscriber):
        publish(publisher, 7)
        with subscriber.next(1) as frame:
            assert (frame.seq, frame.lost) == (4, 3)


@pytest.mark.timeout(15)
def test_a_sleeping_subscriber_is_woken_by_every_frame(publisher, key):
    """Without the wake it would look every 0.1 s, and 300 frames would take half a minute."""
    with Subscriber(key, mode="ordered") as subscriber:
        thread = threading.Thread(target=lambda: [subscriber.next(30).release() for _ in range(300)])
        thread.start()
        for n in range(300):
            eventually(lambda n=n: publisher.subscribers[0].received == n)
            publish(publisher, 1)
        thread.join()


@pytest.mark.skipif(not shutil.which("strace"), reason="counts system calls with strace")
def test_publishing_makes_no_system_call_when_nobody_sleeps(key):
    program = f"""
import cuframes, os, sys
publisher = cuframes.Publisher({key!r}, 64, 48, "gray8")
subscriber = cuframes.Subscriber({key!r})
frame = bytes(64 * 48)
publisher.publish(frame)
os.write(2, b"begin")
for _ in range(100):
    publisher.publish(frame)
    subscriber.next()
os.write(2, b"end")
"""
    command = ["strace", "-f", "-o", "/dev/stdout", sys.executable, "-c", program]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    begin, end = (next(i for i, line in enumerate(lines) if f'"{mark}"' in line) for mark in ("begin", "end"))
    assert end - begin == 1, lines[begin:end]
