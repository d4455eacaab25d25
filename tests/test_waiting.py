"""Waiting for several rings, and for a frame that is due."""

import asyncio
import contextlib
import mmap
import os
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import Worker, compile_program, eventually

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber, framecache, wait_any, waiting
from cuframes._native import wait_any as native
from cuframes._native.control import FUTEX, layout_rows
from cuframes.framecache import SlotReader, SlotWriter, remove_slot
from cuframes.session.listing import collect_garbage

HERE = Path(__file__).parent
FRAME = bytes(64 * 48)


@pytest.fixture(params=["futex_waitv", "descriptors"])
def way(request):
    """Both ways of waiting: for few, and for many or on an older kernel."""
    native.allow_waitv(request.param == "futex_waitv")
    yield request.param
    native.allow_waitv(True)


def drain(receivers):
    """Bring descriptors to rest: they are readable until next() has found nothing."""
    for receiver in receivers:
        with pytest.raises(cuframes.Timeout):
            receiver.next(0)


def test_whoever_has_something_is_found(key, way):
    with (
        Publisher(f"{key}-a", 64, 48, "gray8") as a,
        Publisher(f"{key}-b", 64, 48, "gray8") as b,
        PacketPublisher(f"{key}-c", "h264") as c,
        Subscriber(f"{key}-a") as first,
        Subscriber(f"{key}-b") as second,
        PacketReader(f"{key}-c") as third,
    ):
        everybody = [first, second, third]
        wait_any(everybody, 0)
        drain(everybody)
        assert wait_any(everybody, 0) == []
        assert wait_any(everybody, 0.05) == []
        b.publish(FRAME)
        assert wait_any(everybody, 10) == [second]
        assert second.next(0).seq == 1
        c.publish_packet(b"", pts_ns=0, keyframe=True)
        a.publish(FRAME)
        eventually(
            lambda: wait_any(everybody, 10) == [first, third] or (second in wait_any(everybody, 0) and drain([second]))
        )
        assert (first.next(0).seq, third.next(0).seq) == (1, 1)
        drain(everybody)
        b.close()
        eventually(lambda: second in wait_any(everybody, 10))
        with pytest.raises(cuframes.Disconnected):
            second.next(0)


def test_a_wait_ends_when_a_frame_comes(key, way):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        wait_any([subscriber], 0)
        drain([subscriber])
        timer = threading.Timer(0.1, publisher.publish, (FRAME,))
        timer.start()
        assert wait_any([subscriber]) == [subscriber]
        assert subscriber.next(0).seq == 1
        timer.join()


@pytest.mark.parametrize("count", [10, 20])  # few, and many
def test_nothing_is_missed_by_who_takes_one_at_a_time(key, way, count):
    with contextlib.ExitStack() as stack:
        # They wait for a reader that a busy machine keeps waiting, as the next ones do.
        publishers = [
            stack.enter_context(Publisher(f"{key}-{n}", 64, 48, "gray8", policy="strict_wait")) for n in range(count)
        ]
        subscribers = [stack.enter_context(Subscriber(f"{key}-{n}", mode="ordered")) for n in range(count)]

        def publish():
            for n in range(400):
                publishers[n * 7 % count].publish(FRAME, pts_ns=n)
                if n % 3 == 0:
                    time.sleep(0.0005)

        thread = threading.Thread(target=publish)
        thread.start()
        found = []
        while len(found) < 400:
            ready = wait_any(subscribers, 20)
            assert ready
            for subscriber in ready:
                with contextlib.suppress(cuframes.Timeout), subscriber.next(0) as frame:
                    assert frame.lost == 0
                    found.append(frame.pts_ns)
        thread.join()
        assert sorted(found) == list(range(400))
        assert wait_any(subscribers, 0.05) == []


def test_two_threads_wait_for_the_same_ones(key, way):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        found = []
        threads = [threading.Thread(target=lambda: found.append(wait_any([subscriber], 20))) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert found == []
        publisher.publish(FRAME)
        for thread in threads:
            thread.join()
        assert found == [[subscriber], [subscriber]]
        assert wait_any([subscriber], 0) == [subscriber]  # nobody has taken it


def test_the_next_publisher_is_waited_for(key, way):
    with Publisher(key, 64, 48, "gray8") as publisher:
        subscriber = Subscriber(key, reconnect=True)
        assert wait_any([subscriber], 0.01) == []
        publisher.close()
        assert wait_any([subscriber], 20) == [subscriber]
    with subscriber, Publisher(key, 64, 48, "gray8") as publisher:
        with pytest.raises(cuframes.Timeout):
            subscriber.next(1)  # joins it
        timer = threading.Timer(0.1, publisher.publish, (FRAME,))
        timer.start()
        assert wait_any([subscriber], 20) == [subscriber]
        assert subscriber.next(0).seq == 1
        timer.join()


def test_a_publisher_that_is_gone_is_found(key, way):
    with Worker("producer.py", f"{key}-a", "--delay", 10) as killed, Publisher(f"{key}-b", 64, 48, "gray8"):
        with Subscriber(f"{key}-a", start="next") as subscriber, Subscriber(f"{key}-b") as other:
            killed.kill()
            eventually(lambda: wait_any([subscriber, other], 20) == [subscriber] and ended(subscriber))
            assert wait_any([other], 0.01) == []
    collect_garbage([f"{key}-a"])


def test_a_publisher_that_is_gone_cannot_be_asked_for_a_descriptor(key):
    with Worker("producer.py", key, "--delay", 10) as killed, Subscriber(key) as subscriber:
        killed.kill()
        with pytest.raises(cuframes.Disconnected):
            subscriber.fileno()

        async def read():
            return [frame async for frame in subscriber]

        assert asyncio.run(read()) == []
    collect_garbage([key])


def ended(subscriber):
    try:
        subscriber.next(0)
    except cuframes.Disconnected:
        return True
    except cuframes.Timeout:
        pass
    return False


def test_a_forked_child_waits_for_subscribers_of_its_own(key, way):
    def polled():  # an edge wakes one of those who share an epoll, so the child must have its own
        return Path(f"/proc/self/fdinfo/{waiting._poller.fileno()}").read_text().count("tfd:")

    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        assert wait_any([subscriber], 0) == []
        before = polled()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with Subscriber(key) as own:
                    with pytest.raises(RuntimeError, match="parent"):
                        wait_any([subscriber], 0)
                    status = 0 if wait_any([own], 20) == [own] else 2
            finally:
                os._exit(status)
        eventually(lambda: len(publisher.subscribers) == 2)
        time.sleep(0.1)  # it may already be waiting
        assert polled() == before
        publisher.publish(FRAME)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert wait_any([subscriber], 20) == [subscriber]
        assert subscriber.next(0).seq == 1
        assert wait_any([subscriber], 0.01) == []


def test_waiting_leaves_no_descriptor_behind(key, way):
    def once():
        with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
            wait_any([subscriber], 0)
            publisher.publish(FRAME)
            assert wait_any([subscriber], 20) == [subscriber]

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        once()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_killed_publisher_ends_a_wait_while_another_is_busy(key):
    with (
        Worker("producer.py", f"{key}-a", "--delay", 0.0005) as busy,
        Worker("packet_producer.py", f"{key}-b") as killed,
    ):
        with Subscriber(f"{key}-a") as noise, PacketReader(f"{key}-b", "next") as reader:
            killed.kill()
            ended = False
            end = time.monotonic() + 20
            while not ended and time.monotonic() < end:
                for receiver in wait_any([noise, reader], 5):
                    try:
                        receiver.next(0)
                    except cuframes.Timeout:
                        pass
                    except cuframes.PacketOverrun:
                        pass
                    except cuframes.Disconnected:
                        ended = receiver is reader
            assert ended
        busy.kill()
    collect_garbage([f"{key}-a", f"{key}-b"])


def test_what_was_read_ahead_is_there(key):
    with PacketPublisher(key, "h264") as publisher:
        publisher.publish_packet(b"", pts_ns=0, keyframe=True)
        with PacketReader(key) as reader:
            assert wait_any([reader]) == [reader]
            reader.next(0)
            assert wait_any([reader], 0) == []


def test_a_reader_that_looks_for_a_keyframe_does_not_keep_everybody_awake(key):
    with PacketPublisher(key, "h264", slots=4, data_size=4096) as publisher, PacketReader(key, "next") as reader:
        publisher.publish_packet(b"", pts_ns=0, keyframe=True)
        for _ in range(10):
            publisher.publish_packet(b"", pts_ns=0)
        assert wait_any([reader], 0) == [reader]
        drain([reader])
        assert wait_any([reader], 0.01) == []


def test_slots_are_waited_for_beside_rings(key, slots, slot_id, way):
    with (
        SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer,
        Publisher(key, 64, 48, "gray8") as publisher,
        SlotReader(slot_id) as slot,
        Subscriber(key) as subscriber,
    ):
        both = [slot, subscriber]
        wait_any(both, 0)
        drain(both)
        assert wait_any(both, 0.05) == []
        threading.Timer(0.05, writer.write, (FRAME,)).start()
        assert wait_any(both, 10) == [slot]
        assert slot.next(0).seq == 0
        publisher.publish(FRAME)
        assert wait_any(both, 10) == [subscriber]
        drain([slot])
        remove_slot(slot_id)
        assert slot in eventually(lambda: [found for found in wait_any(both, 1) if found is slot])
        with pytest.raises(cuframes.Disconnected):
            slot.next(0)
        slot.close()
        subscriber.close()
        with pytest.raises(ValueError, match="every receiver in the list is closed"):
            wait_any(both, 0)


def test_a_slot_whose_writer_wakes_nobody_is_looked_at(slots, slot_id, way, tmp_path):
    framecache.create_slot(slot_id, 64, 48, "gray8", ring_depth=4)
    with SlotReader(slot_id) as slot, open(slots / slot_id, "r+b") as file, mmap.mmap(file.fileno(), 0) as raw:
        # What a writer in C does, as far as a sleeper sees it: the cursor grows, and that is all.
        [at] = [row[2] for row in layout_rows() if row[:2] == ("cf_cache_header", "write_cursor")]
        entry = struct.pack("QQI", 5, 6, 64 * 48)
        raw[4096 : 4096 + len(entry)] = entry
        timer = threading.Timer(0.05, raw.__setitem__, (slice(at, at + 8), struct.pack("Q", 1)))
        timer.start()
        assert wait_any([slot], 10) == [slot]
        assert slot.next(0).pts_us == 5
        timer.join()
    remove_slot(slot_id)


def test_bad_arguments(key):
    with pytest.raises(ValueError, match="at least one"):
        wait_any([])
    with Publisher(key, 64, 48, "gray8"):
        subscriber = Subscriber(key)
        subscriber.close()
        with pytest.raises(ValueError, match="closed"):
            wait_any([subscriber])
    for other in (1, None):
        with pytest.raises(TypeError, match=f"not {type(other).__name__}"):
            wait_any([other])


def test_more_than_one_call_can_wait_for(key):
    with Publisher(key, 64, 48, "gray8") as publisher, PacketPublisher(key, "h264") as packets:
        readers = [PacketReader(key, "next") for _ in range(140)]
        with Subscriber(key) as subscriber:
            everybody = [*readers, subscriber]
            wait_any(everybody, 0)
            drain(everybody)
            packets.publish_packet(b"", pts_ns=0)
            publisher.publish(FRAME)
            eventually(lambda: len(wait_any(everybody, 10)) == 141)
        for reader in readers:
            reader.close()


@pytest.mark.parametrize("wait", [lambda s: s.next(30), lambda s: wait_any([s], 30)[0].next(0)], ids=["next", "any"])
def test_a_publisher_that_wakes_nobody_is_looked_at(key, wait):
    with Publisher(key, 64, 48, "gray8") as publisher:
        welcome = publisher._server._welcome
        publisher._server._welcome = welcome._replace(features=welcome.features & ~FUTEX)
        with Subscriber(key) as subscriber:
            found = []
            thread = threading.Thread(target=lambda: found.append(wait(subscriber).seq))
            thread.start()
            for _ in range(20):  # nothing of ours is written where such a publisher has no such field
                time.sleep(0.005)
                assert Path(f"/dev/shm/cuframes-{key}").read_bytes()[216:220] == bytes(4)
            publisher.publish(FRAME)
            thread.join(30)
            assert found == [1]


# ---- a frame that is due


def test_predictive_waiting_takes_every_frame(key):
    with (
        Publisher(key, 64, 48, "gray8", policy="strict_wait") as publisher,
        Subscriber(key, mode="ordered", wait="predictive") as subscriber,
    ):
        found = []
        thread = threading.Thread(target=lambda: found.extend(frame.frame_no for frame in subscriber))
        thread.start()
        for number in range(60):
            publisher.publish(FRAME)
            time.sleep(0.01 if number < 40 else (0.001, 0.03)[number % 2])  # steady, then not
        publisher.close()
        thread.join(20)
    assert found == list(range(1, 61))


@pytest.mark.parametrize("wait", ["predictive", "spin"])
def test_a_frame_is_warmed_up_for_and_that_holds_nothing(key, monkeypatch, wait):
    warmed, found = [], []
    monkeypatch.setattr("cuframes.subscriber._warm_up", lambda frame: warmed.append((frame.width, frame.seq)))
    with (
        Publisher(key, 64, 48, "gray8", policy="strict_wait") as publisher,
        Subscriber(key, mode="ordered", wait=wait) as subscriber,
    ):
        thread = threading.Thread(target=lambda: found.extend(frame.frame_no for frame in subscriber))
        thread.start()
        begin = time.monotonic()
        while not warmed and (waited := time.monotonic() - begin) < 60:
            publisher.publish(FRAME)
            time.sleep(0.05 if waited < 10 else 0.5)  # a busy machine is steady only by comparison
        for _ in range(20):  # more than the ring holds
            publisher.publish(FRAME)
            time.sleep(0.01)
        published = publisher.stats().published
        publisher.close()
        thread.join(20)
    if not warmed and wait == "predictive":
        pytest.skip("no frame came at steady intervals: this machine is too busy")
    assert warmed[0] == (64, 0)  # of the right shape, and no frame of the ring
    assert found == list(range(1, published + 1))
    assert subscriber.stats().held == 0


def test_what_is_done_with_a_frame_that_came_during_the_warm_up_is_not_lateness(tmp_path):
    program = compile_program("warm_up", tmp_path, f"-I{cuframes.get_include()}")
    assert subprocess.run([program], timeout=30, check=False).returncode == 0


@pytest.fixture(scope="module")
def pace(tmp_path_factory):
    """Runs the predictor on made-up timestamps: (interval, jitter, how far off) -> windows."""
    out = tmp_path_factory.mktemp("pace") / "pace"
    subprocess.run(
        ["gcc", "-std=c11", f"-I{cuframes.get_include()}", str(HERE / "c" / "pace.c"), "-o", str(out)], check=True
    )

    def run(*arguments):
        lines = subprocess.check_output([out, *map(str, arguments)], text=True).splitlines()
        return [tuple(map(int, line.split())) for line in lines]

    return run


def test_a_steady_source_is_predicted(pace):
    windows = pace(20_000_000, 20_000, 0)[10:]
    assert all(begin <= due <= end for begin, due, end in windows)
    assert all(end - begin < 20_000_000 // 32 for begin, _, end in windows)


def test_lost_frames_do_not_disturb_the_prediction(pace):
    assert all(begin <= due <= end for begin, due, end in pace(20_000_000, 0, 3)[10:])


def test_an_irregular_source_is_not_predicted(pace):
    assert all(end == 0 for _, _, end in pace(20_000_000, 8_000_000, 0)[10:])


def test_a_new_rate_is_learnt(pace):
    windows = pace(20_000_000, 0, 0, 40_000_000)
    assert all(begin <= due <= end for begin, due, end in windows[-10:])


@pytest.mark.parametrize("kind", ["frames", "packets", "slot"])
def test_a_ring_that_another_call_has_joined_is_not_joined_again(key, slots, slot_id, kind):
    """Its items came twice, and a second handshake was left half-way."""

    def source():
        if kind == "slot":
            return SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4)
        return Publisher(key, 64, 48, "gray8") if kind == "frames" else PacketPublisher(key, "h264")

    def end(it):
        it.close()
        if kind == "slot":
            remove_slot(slot_id)

    readers = {"frames": Subscriber, "packets": PacketReader, "slot": SlotReader}
    first = source()
    with readers[kind](slot_id if kind == "slot" else key, reconnect=True) as receiver:
        end(first)
        with pytest.raises(cuframes.Timeout):
            receiver.next(0)
        second = source()
        wait_any([receiver, receiver], 1)
        if kind == "packets":
            second.publish_packet(b"x", pts_ns=0, keyframe=True)
        else:
            second.write(FRAME) if kind == "slot" else second.publish(FRAME)
        receiver.next(5)
        receiver._look_again()
        with pytest.raises(cuframes.Timeout):
            receiver.next(0)
        end(second)
        with pytest.raises(cuframes.Timeout):
            receiver.next(0.3)


def test_a_receiver_that_is_not_in_a_list_is_a_type_error(key):
    with Publisher(key, 64, 48, "gray8"), Subscriber(key) as subscriber:
        with pytest.raises(TypeError, match=r"wait_any\(\[receiver\]\)"):
            cuframes.wait_any(subscriber, 0)
