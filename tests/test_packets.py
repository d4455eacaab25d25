"""The packet ring, as its users see it."""

import asyncio
import contextlib
import gc
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
from harness import Worker, descriptors, eventually, in_namespace

import cuframes
from cuframes import PacketFlags, PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes.session.listing import collect_garbage

SHM = Path("/dev/shm")
SMALL = {"slots": 4, "data_size": 64, "max_packet_size": 48}


def numbered(publisher, count, *, keys=(), size=8):
    """Publish packets that contain their own number."""
    for _ in range(count):
        number = publisher.packets_published + 1
        publisher.publish_packet(bytes([number % 256]) * size, pts_ns=number, keyframe=number in keys)


def numbers(reader):
    """What can be read now."""
    found = []
    while True:
        try:
            found.append(reader.next(0).seq)
        except cuframes.Timeout:
            return found


@pytest.fixture
def publisher(key):
    with PacketPublisher(key, "h264") as publisher:
        yield publisher


def test_what_goes_in_comes_out(publisher, key):
    with PacketReader(key, "next") as reader:
        sent = [
            (b"first", {"pts_ns": 1_000, "dts_ns": -500, "keyframe": True}),
            (bytearray(b"second"), {"pts_ns": 2_000}),
            (memoryview(b"third"), {"pts_ns": None, "dts_ns": 7, "flags": PacketFlags.CORRUPT}),
            (numpy.arange(10, dtype=numpy.uint8), {"pts_ns": 2**62, "flags": 8}),
            (b"", {"pts_ns": 0, "flags": PacketFlags.KEY}),
        ]
        for number, (data, times) in enumerate(sent, 1):
            assert publisher.publish_packet(data, **times) == number
        for number, (data, times) in enumerate(sent, 1):
            packet = reader.next(0)
            assert packet.seq == number
            assert packet.data == bytes(data)
            assert type(packet.data) is bytes
            assert (packet.pts_ns, packet.dts_ns) == (times["pts_ns"], times.get("dts_ns"))
            assert packet.keyframe == (number in (1, 5))
            assert packet.flags == times.get("flags", 0) | times.get("keyframe", 0)
            assert (packet.lost, packet.valid) == (0, True)
            assert 0 <= cuframes.monotonic_ns() - packet.published_ns < 10**10
        assert reader.stats() == (5, 0)
        assert reader.codec == "h264"
        assert reader.codec_id == 27


def test_several_at_once(key):
    with PacketPublisher(key, "h264", **SMALL) as publisher, PacketReader(key, "next") as reader:
        assert publisher.publish_packets([(b"a", 1, None, PacketFlags.KEY), (b"b", 2, 0, 0)]) == 2
        assert publisher.publish_packets(iter([])) == 2
        with pytest.raises(cuframes.PacketOversized):
            publisher.publish_packets((bytes(size), size, None, 0) for size in (1, 2, 49, 3))
        found = [reader.next(0) for _ in range(4)]
        assert [(p.data, p.pts_ns, p.dts_ns, p.keyframe) for p in found[:2]] == [
            (b"a", 1, None, True),
            (b"b", 2, 0, False),
        ]
        assert [p.pts_ns for p in found[2:]] == [1, 2]
        with pytest.raises(cuframes.Timeout):
            reader.next(0)


def test_packets_can_be_pickled_and_shown(publisher, key):
    publisher.publish_packet(b"abc", pts_ns=1, keyframe=True)
    with PacketReader(key) as reader:
        packet = pickle.loads(pickle.dumps(reader.next(0)))
    assert (packet.seq, packet.data, packet.pts_ns, packet.dts_ns, packet.keyframe) == (1, b"abc", 1, None, True)
    assert packet.valid
    assert "keyframe" in repr(packet)


def test_where_reading_starts(publisher, key):
    numbered(publisher, 20, keys=(3, 9, 15))
    with PacketReader(key) as newest, PacketReader(key, "oldest") as oldest, PacketReader(key, "next") as live:
        numbered(publisher, 2)
        assert numbers(newest) == list(range(15, 23))
        assert numbers(oldest) == list(range(3, 23))
        assert numbers(live) == [21, 22]


def test_a_reader_waits_for_the_first_keyframe(publisher, key):
    numbered(publisher, 3)
    with PacketReader(key) as reader, PacketReader(key, "oldest") as oldest:
        numbered(publisher, 2)
        assert numbers(reader) == numbers(oldest) == []
        numbered(publisher, 3, keys=(7,))
        assert numbers(reader) == numbers(oldest) == [7, 8]
        assert reader.stats() == (2, 0)  # what lies before the first packet is not lost


def test_a_packet_over_the_limit_changes_nothing(key):
    with PacketPublisher(key, "h264", **SMALL) as publisher, PacketReader(key, "next") as reader:
        publisher.publish_packet(b"a", pts_ns=1)
        with pytest.raises(
            cuframes.PacketOversized, match=r"49 bytes, more than the ring's limit of 48.*max_packet_size"
        ):
            publisher.publish_packet(bytes(49), pts_ns=2)
        assert publisher.publish_packet(bytes(48), pts_ns=3) == 2
        assert numbers(reader) == [1, 2]


def test_an_overrun_is_reported_once_with_its_number_and_goes_on_at_the_newest_keyframe(key):
    with PacketPublisher(key, "h264", slots=8, data_size=4096) as publisher, PacketReader(key, "next") as reader:
        numbered(publisher, 2)
        assert numbers(reader) == [1, 2]
        numbered(publisher, 20, keys=(4, 16, 19))
        with pytest.raises(cuframes.PacketOverrun, match="16 packets were overwritten") as caught:
            reader.next(0)
        assert caught.value.lost == 16
        packet = reader.next(0)
        assert (packet.seq, packet.lost, packet.flags) == (19, 16, PacketFlags.KEY | PacketFlags.DISCONTINUITY)
        assert numbers(reader) == [20, 21, 22]
        assert reader.stats() == (6, 16)
    assert pickle.loads(pickle.dumps(caught.value)).lost == 16


def test_loops_go_on_after_an_overrun(key):
    with PacketPublisher(key, "h264", slots=8, data_size=4096) as publisher, PacketReader(key, "next") as reader:
        numbered(publisher, 20, keys=(19,))
        publisher.close()
        found = list(reader)
    assert [packet.seq for packet in found] == [19, 20]
    assert [packet.lost for packet in found] == [18, 0]
    assert found[0].flags & PacketFlags.DISCONTINUITY


def test_an_overrun_waits_for_a_keyframe_that_is_whole(key):
    with PacketPublisher(key, "h264", slots=4, data_size=4096) as publisher, PacketReader(key, "next") as reader:
        numbered(publisher, 10, keys=(3,))
        with pytest.raises(cuframes.Timeout):
            reader.next(0)
        numbered(publisher, 2, keys=(11,))
        with pytest.raises(cuframes.PacketOverrun) as caught:
            reader.next(0)
        assert caught.value.lost == 10
        assert numbers(reader) == [11, 12]


def test_a_stream_that_never_had_a_keyframe_goes_on_at_its_newest_packet(key):
    with PacketPublisher(key, "h264", slots=4, data_size=4096) as publisher, PacketReader(key, "next") as reader:
        numbered(publisher, 10)
        with pytest.raises(cuframes.PacketOverrun) as caught:
            reader.next(0)
        assert caught.value.lost == 9
        assert numbers(reader) == [10]


def test_large_packets_lap_the_data_before_the_slots(key):
    with PacketPublisher(key, "h264", slots=64, data_size=100, max_packet_size=40) as publisher:
        with PacketReader(key, "next") as reader:
            numbered(publisher, 4, keys=(3,), size=40)  # the data of 1 and 2 are gone, their slots are not
            with pytest.raises(cuframes.PacketOverrun) as caught:
                reader.next(0)
            assert caught.value.lost == 2
            packet = reader.next(0)
            assert (packet.seq, packet.data) == (3, b"\3" * 40)  # it runs over the end of the data
            assert reader.next(0).data == b"\4" * 40


def test_a_view_without_a_copy_knows_when_it_was_overwritten(key):
    with PacketPublisher(key, "h264", slots=64, data_size=100, max_packet_size=40) as publisher:
        with PacketReader(key, "next") as reader:
            numbered(publisher, 1, size=40)
            packet = reader.next(0, copy=False)
            assert isinstance(packet.data, memoryview)
            assert packet.data.readonly
            assert packet.data == b"\1" * 40
            assert packet.valid
            numbered(publisher, 2, size=40)
            assert not packet.valid
            assert reader.next(0, copy=False).data == b"\2" * 40
            wrapped = reader.next(0, copy=False)
            assert wrapped.data == b"\3" * 40
            numbered(publisher, 3, size=40)
            assert wrapped.valid  # it ran over the end, and was copied
        del reader
        gc.collect()
        assert len(packet.data) == 40
        assert bytes(packet.data)  # still mapped


def test_extradata(key):
    with PacketPublisher(key, "hevc") as publisher, PacketReader(key, "next") as reader:
        with pytest.raises(cuframes.NoCodecParameters, match=r"have no extradata.*set_extradata"):
            _ = reader.extradata
        publisher.set_extradata(b"one")
        assert reader.extradata == b"one"
        publisher.publish_packet(b"", pts_ns=0)
        publisher.set_extradata(bytearray(b"two and more"))
        publisher.publish_packet(b"", pts_ns=1)
        assert reader.extradata == b"one"  # until a keyframe comes
        publisher.publish_packet(b"", pts_ns=2, keyframe=True)
        assert reader.extradata == b"two and more"
        publisher.set_extradata(bytes(4096))
        with pytest.raises(ValueError, match="extradata must have at most 4096 bytes, not 4097"):
            publisher.set_extradata(bytes(4097))
    with pytest.raises(ValueError, match="4097"):
        PacketPublisher(key, "hevc", extradata=bytes(4097))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"codec": "no such codec"}, ValueError, "knows no codec"),
        ({"codec": 0}, ValueError, "AVCodecID"),
        ({"codec": None}, TypeError, "codec must be a name"),
        ({"slots": 0}, ValueError, "slots must be 1 to 1024"),
        ({"slots": 1025}, ValueError, "slots must be 1 to 1024"),
        ({"data_size": 0}, ValueError, "data_size"),
        ({"data_size": 2**32}, ValueError, "data_size"),
        ({"max_packet_size": 0}, ValueError, "max_packet_size"),
        ({"extradata": "text"}, TypeError, "bytes"),
        ({"group": "no such group"}, ValueError, "no group"),
    ],
)
def test_bad_arguments(key, arguments, error, message):
    with pytest.raises(error, match=message):
        PacketPublisher(key, arguments.pop("codec", "h264"), **arguments)


def test_bad_packets(publisher, key):
    for data, more, error in [
        ("text", {}, TypeError),
        (b"", {"flags": 16}, ValueError),
        (b"", {"pts_ns": 1.5}, TypeError),
        (b"", {"pts_ns": 2**63}, ValueError),
        (numpy.zeros((4, 4))[:, ::2], {}, (ValueError, BufferError)),
    ]:
        with pytest.raises(error):
            publisher.publish_packet(data, **{"pts_ns": 0} | more)
    assert publisher.packets_published == 0
    publisher.close()
    with pytest.raises(ValueError, match="closed"):
        publisher.publish_packet(b"", pts_ns=0)


def test_full_dev_shm_is_an_error_that_says_how_much(key):
    done = in_namespace(
        f"""
        import os, cuframes
        try:
            cuframes.PacketPublisher("{key}", "h264")
        except cuframes.OutOfSharedMemory as problem:
            print(problem)
        print(os.listdir("/dev/shm"))
        """,
        shm_bytes=1 << 20,
    )
    assert done.stderr == ""
    said, left = done.stdout.splitlines()
    assert said.startswith(f"the packet ring /cuframes-{key}-packets needs 8396864 bytes of shared memory; ")
    assert left == "[]"


def test_one_publisher_per_key(publisher, key):
    with pytest.raises(cuframes.AlreadyExists, match=f"is running .pid {os.getpid()}"):
        PacketPublisher(key, "h264")


def test_nobody_there(key):
    with pytest.raises(cuframes.NotFound, match="no publisher"):
        PacketReader(key, connect_timeout=0)
    with Publisher(key, 64, 48, "gray8"), pytest.raises(cuframes.NoPacketRing, match="enable_packets"):
        PacketReader(key, connect_timeout=0)
    with pytest.raises(ValueError, match="start must be one of"):
        PacketReader(key, "newest")
    with pytest.raises(ValueError, match="block or spin"):
        PacketReader(key, wait="busy")


def test_a_reader_may_come_first(key):
    made = []
    thread = threading.Thread(target=lambda: made.append(PacketReader(key, "oldest", connect_timeout=10)))
    thread.start()
    time.sleep(0.05)
    with PacketPublisher(key, "h264") as publisher:
        publisher.publish_packet(b"", pts_ns=0, keyframe=True)
        thread.join(10)
        assert made[0].next(5).seq == 1
        made[0].close()


def test_beside_frames(key):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        with pytest.raises(cuframes.NoPacketRing, match="enable_packets"):
            publisher.publish_packet(b"", pts_ns=0)
        with pytest.raises(cuframes.NoPacketRing, match="enable_packets"):
            subscriber.packets()
        publisher.enable_packets("h264", extradata=b"extra")
        with pytest.raises(cuframes.AlreadyExists):
            publisher.enable_packets("h264")
        publisher.publish_packet(b"key", pts_ns=40, keyframe=True)
        publisher.publish(numpy.zeros((48, 64), numpy.uint8), pts_ns=40)
        with subscriber.packets() as reader:
            assert reader.next(1).pts_ns == subscriber.next(1).pts_ns == 40
            assert reader.extradata == b"extra"
            assert publisher.packets.packets_published == 1
            publisher.close()
            with pytest.raises(cuframes.Disconnected):
                reader.next(5)
    assert not list(SHM.glob(f"cuframes-{key}*"))


def test_packets_travel_over_the_socket(key):
    """Where no /dev/shm is common, as between containers, the descriptor is enough."""
    with Publisher(key, 64, 48, "gray8") as publisher:
        publisher.enable_packets("h264")
        publisher.publish_packet(b"key", pts_ns=40, keyframe=True)
        (SHM / f"cuframes-{key}-packets").rename(SHM / f"cuframes-{key}-elsewhere")
        try:
            with PacketReader(key) as reader:
                assert reader.next(1).data == b"key"
                with pytest.raises(cuframes.Timeout):
                    reader.next(0.25)  # it asks for the owner's lock, and finds it
        finally:
            (SHM / f"cuframes-{key}-elsewhere").rename(SHM / f"cuframes-{key}-packets")


def test_waiting_and_the_end(publisher, key):
    with PacketReader(key) as reader:
        start = time.monotonic()
        with pytest.raises(cuframes.Timeout, match="no packet arrived"):
            reader.next(0.15)
        assert time.monotonic() - start >= 0.15
        publisher.publish_packet(b"last", pts_ns=1, keyframe=True)
        publisher.close()
        assert reader.next().data == b"last"
        with pytest.raises(cuframes.Disconnected):
            reader.next()
        assert list(reader) == []
    with pytest.raises(ValueError, match="closed"):
        reader.next(0)
    assert reader.stats() == (1, 0)
    assert list(reader) == []


@pytest.mark.parametrize("wait", ["block", "spin"])
def test_closing_ends_a_wait(publisher, key, wait):
    reader = PacketReader(key, wait=wait)
    caught = []

    def take():
        while not caught:
            try:
                reader.next()
            except ValueError as problem:
                caught.append(str(problem))
            except RuntimeError:  # it may be the one that comes second
                pass

    thread = threading.Thread(target=take)
    thread.start()
    with pytest.raises(RuntimeError, match="another thread"):
        while True:
            with pytest.raises(cuframes.Timeout):
                reader.next(0)
    reader.close()
    thread.join(10)
    assert caught == ["the reader is closed"]


def test_closing_ends_a_loop(publisher, key):
    reader = PacketReader(key)
    found = []
    thread = threading.Thread(target=lambda: found.append(list(reader)))
    thread.start()
    time.sleep(0.05)
    reader.close()
    thread.join(10)
    assert found == [[]]


def test_a_descriptor_to_poll(publisher, key):
    before = descriptors()
    with PacketReader(key, "oldest") as reader:
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        assert reader.fileno() == reader.fileno()

        def drained():
            with pytest.raises(cuframes.Timeout):
                reader.next(0)
            return not poller.poll(0)

        eventually(drained)
        publisher.publish_packet(b"", pts_ns=0, keyframe=True)
        assert poller.poll(10_000)
        assert reader.next(0).seq == 1
        eventually(drained)
        publisher.close()
        assert poller.poll(10_000)
        with pytest.raises(cuframes.Disconnected):
            reader.next(0)
        assert poller.poll(0)
    eventually(lambda: descriptors() < before)  # the publisher's are gone as well
    with pytest.raises(ValueError, match="closed"):
        reader.fileno()


def test_async(key):
    async def read(reader):
        return [packet.seq async for packet in reader]

    async def main():
        with PacketPublisher(key, "h264") as publisher:
            readers = [PacketReader(key, "next") for _ in range(3)]
            tasks = [asyncio.create_task(read(reader)) for reader in readers]
            for _ in range(50):
                numbered(publisher, 1)
                await asyncio.sleep(0.001)
            publisher.close()
            found = await asyncio.wait_for(asyncio.gather(*tasks), 20)
            for reader in readers:
                reader.close()
            return found

    assert asyncio.run(main()) == [list(range(1, 51))] * 3


def test_a_publisher_that_is_closing_is_not_joined_again(key):
    with PacketPublisher(key, "h264") as publisher:
        publisher.publish_packet(b"", pts_ns=0, keyframe=True)
        with open(SHM / f"cuframes-{key}-packets", "r+b") as file:
            file.seek(56)
            file.write(b"\1")  # as close() does, a moment before the name is gone
        with pytest.raises(cuframes.NotFound):
            PacketReader(key, connect_timeout=0)


def test_reconnecting(key):
    first = PacketPublisher(key, "h264")
    numbered(first, 3, keys=(1,))
    with PacketReader(key, reconnect=True) as reader:
        assert numbers(reader) == [1, 2, 3]
        first.close()
        with pytest.raises(cuframes.Timeout, match="came back"):
            reader.next(0.05)
        with PacketPublisher(key, "hevc") as second:
            numbered(second, 4, keys=(2, 4))
            packet = reader.next(5)
            # From the oldest keyframe on: it may have begun while nobody was there.
            assert (packet.seq, packet.lost, packet.flags) == (2, 0, PacketFlags.KEY | PacketFlags.DISCONTINUITY)
            assert numbers(reader) == [3, 4]
            assert reader.codec == "hevc"
            assert reader.stats() == (6, 0)


def test_reconnecting_in_an_event_loop(key):
    async def main():
        found = []
        with PacketReader(key, "next", reconnect=True) as reader:
            async for packet in reader:
                found.append(packet.seq)
                if len(found) == 2:
                    break
        return found

    def publish():
        first.publish_packet(b"", pts_ns=0, keyframe=True)
        first.close()
        second = PacketPublisher(key, "h264")
        second.publish_packet(b"", pts_ns=0, keyframe=True)
        return second

    first = PacketPublisher(key, "h264")
    made = []
    timer = threading.Timer(0.2, lambda: made.append(publish()))
    timer.start()
    assert asyncio.run(asyncio.wait_for(main(), 20)) == [1, 1]
    timer.join()
    made[0].close()


def test_a_killed_publisher_is_noticed_and_its_place_taken(key):
    with Worker("packet_producer.py", key, "--delay", 0.001) as producer:
        with PacketReader(key) as reader, PacketReader(key, reconnect=True) as patient:
            for _ in range(20):
                assert reader.next(5).valid
            with pytest.raises(cuframes.AlreadyExists):
                PacketPublisher(key, "h264")
            producer.kill()
            with pytest.raises(cuframes.Disconnected):
                while True:
                    with contextlib.suppress(cuframes.PacketOverrun):  # on a busy machine
                        reader.next(5)
            with pytest.raises(cuframes.NotFound):
                PacketReader(key, connect_timeout=0)
            with PacketPublisher(key, "h264") as successor:
                successor.publish_packet(b"new", pts_ns=0, keyframe=True)
                packet = None
                while packet is None or packet.data != b"new":
                    with contextlib.suppress(cuframes.PacketOverrun):
                        packet = patient.next(5)
                assert packet.flags & PacketFlags.DISCONTINUITY


def test_gc_removes_what_a_killed_publisher_left(key):
    path = SHM / f"cuframes-{key}-packets"
    with Worker("packet_producer.py", key) as producer:
        assert path not in collect_garbage([key])
        producer.kill()
    assert path in eventually(lambda: collect_garbage([key], dry_run=True))
    assert path in collect_garbage([key])
    assert not path.exists()


def test_a_writer_that_knows_no_lock_lives_as_long_as_its_process(key):
    path = SHM / f"cuframes-{key}-packets"
    child = subprocess.Popen(["sleep", "60"])
    raw = segment()
    struct.pack_into("<Q", raw, 24, child.pid)
    path.write_bytes(raw)
    with PacketReader(key, "next") as reader:
        with pytest.raises(cuframes.Timeout):
            reader.next(0.2)
        child.kill()
        child.wait()
        with pytest.raises(cuframes.Disconnected):
            reader.next(5)
    assert path in collect_garbage([key])


def test_a_forked_child_says_so(publisher, key):
    reader = PacketReader(key)
    code = os.fork()
    if code == 0:
        status = 1
        try:
            for call in (lambda: publisher.publish_packet(b"", pts_ns=0), lambda: reader.next(0)):
                try:
                    call()
                except (RuntimeError, ValueError):
                    pass
                else:
                    raise AssertionError
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 0
    publisher.publish_packet(b"", pts_ns=0, keyframe=True)
    assert reader.next(1).seq == 1
    reader.close()


def test_interpreter_exit_is_silent_and_clean(key):
    program = (
        "import cuframes, sys\n"
        "publisher = cuframes.PacketPublisher(sys.argv[1], 'h264')\n"
        "reader = cuframes.PacketReader(sys.argv[1])\n"
        "reader.fileno()\n"
        "publisher.publish_packet(b'x', pts_ns=0, keyframe=True)\n"
        "packet = reader.next(copy=False)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program, key], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- damaged segments


def segment(*, magic=0xCC7C1DCD, version=2, slots=4, data_size=64, extradata=0, seq=0, key=0, offset=0, size=None):
    """A packet ring as some other program might have left it."""
    raw = bytearray(4160 + 64 * 4 + 64 if size is None else size)
    struct.pack_into(
        "<6IQ4Q", raw, 0, magic, version, slots, data_size, 27, extradata, os.getpid(), seq, key, offset, 0
    )
    return raw


def slot(raw, number, *, seq, offset, size, flags=1):
    struct.pack_into("<QqqQII", raw, 4160 + 64 * number, seq, 0, 0, offset, size, flags)
    return raw


@pytest.fixture
def left(key):
    path = SHM / f"cuframes-{key}-packets"

    def write(raw):
        path.write_bytes(raw)
        return PacketReader(key, "oldest", connect_timeout=0)

    yield write
    path.unlink()


@pytest.mark.parametrize(
    "raw",
    [
        b"something else",
        segment(magic=1),
        segment(version=3),
        segment(slots=0),
        segment(slots=1025),
        segment(slots=2**32 - 1),
        segment(data_size=0),
        segment(data_size=2**32 - 1),
        segment(size=4160),
        segment(size=4160 + 64 * 4 + 63),
        segment()[:100],
    ],
)
def test_what_is_no_packet_ring_is_refused(left, raw):
    with pytest.raises(cuframes.ProtocolError, match="truncated"):
        left(raw)


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 0, "size": 65},
        {"offset": 0, "size": 2**32 - 1},
        {"offset": 60, "size": 8},  # more than was ever written
        {"offset": 65, "size": 1},
        {"offset": 2**64 - 1, "size": 8},
    ],
)
def test_absurd_lengths_are_an_error(left, wrong):
    with left(slot(segment(seq=1, key=1, offset=64), 1, seq=1, **wrong)) as reader:
        with pytest.raises(cuframes.ProtocolError, match="damaged"):
            reader.next(0)


@pytest.mark.parametrize("counters", [{"seq": 2**64 - 1}, {"seq": 5, "key": 2**63}, {"key": 7}, {"offset": 2**64 - 1}])
def test_absurd_counters_are_no_packet(left, counters):
    with left(segment(**counters)) as reader, pytest.raises(cuframes.Timeout):
        reader.next(0.01)


def test_absurd_extradata(left):
    with (
        left(segment(extradata=4097)) as reader,
        pytest.raises(cuframes.ProtocolError, match="4097 bytes of extradata"),
    ):
        _ = reader.extradata


def test_a_file_cut_off_while_somebody_waits_is_an_error(left, key):
    with left(segment()) as reader:
        os.truncate(SHM / f"cuframes-{key}-packets", 4160)
        with pytest.raises(cuframes.ProtocolError, match="truncated"):
            reader.next(5)


# ---- processes


@pytest.mark.timeout(180)
def test_small_rings_and_large_packets_between_processes(key):
    options = ["--slots", 32, "--largest", 20_000, "--data-size", 65_536, "--count", 150_000, "--wait"]
    readers = [("--start", "next"), ("--delay", 0.002), ("--wait", "spin", "--without-copy"), ("--start", "keyframe")]
    with Worker("packet_producer.py", key, *options) as producer:
        workers = [Worker("packet_consumer.py", key, *arguments) for arguments in readers]
        producer.tell()
        for worker in workers:  # however slow, and whoever has a core: nobody is to be measured by the clock
            assert [worker.read(), worker.read()] == ["begun", "more than 100"]
        producer.tell()
        published = producer.result(150)
        for arguments, worker in zip(readers, workers, strict=True):
            with worker:
                report = worker.result(150)
                assert report["torn"] == 0
                assert report["received"] > 100
                before_the_first = 0 if "keyframe" in arguments else report["first"] - 1
                went_by = report["last"] - report["first"] + 1 + before_the_first
                assert report["received"] + report["overrun"] == went_by
                # After the last packet that was taken there may have been no keyframe.
                assert report["lost"] == report["overrun"] + published - report["last"]


def test_a_stopped_reader_reports_exactly_what_it_missed(key):
    with PacketPublisher(key, "h264", slots=16, data_size=1 << 16) as publisher:
        with Worker("packet_consumer.py", key) as worker:
            publisher.publish_packet(b"", pts_ns=0, keyframe=True)
            assert worker.read() == "begun"
            worker.signal(signal.SIGSTOP)
            eventually(lambda: Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")")[1].split()[0] == "T")
            for number in range(2, 2000):
                publisher.publish_packet(b"", pts_ns=0, keyframe=number % 7 == 0)
            worker.signal(signal.SIGCONT)
            publisher.close()
            report = worker.result()
        newest_key = 1999 - 1999 % 7
        assert report["first"] == 1
        assert report["last"] == 1999
        assert report["lost"] == report["overrun"] == newest_key - 2
        assert report["received"] == 1999 - report["lost"]
        assert report["torn"] == 0


def test_where_a_reader_begins(key):
    with PacketPublisher(key, "h264") as publisher:
        with PacketReader(key, "latest") as early:
            numbered(publisher, 9, keys={1, 5})
            assert early.next(5).seq == 1  # nothing was there, so the first that came
        begins = {"oldest": 1, "keyframe": 5, "latest": 9}
        for start, seq in begins.items():
            with PacketReader(key, start) as reader:
                assert (reader.next(5).seq, reader.stats().lost) == (seq, 0)
        with PacketReader(key, "next") as reader, PacketReader(key, "live") as same:
            numbered(publisher, 1)
            assert reader.next(5).seq == same.next(5).seq == 10


def test_packets_before_a_keyframe_that_does_not_come_are_counted_as_lost(key):
    publisher = PacketPublisher(key, "h264", slots=8, data_size=4096)
    with PacketReader(key) as reader, PacketReader(key, reconnect=True) as patient:
        numbered(publisher, 1, keys={1})
        assert reader.next(5).seq == patient.next(5).seq == 1
        numbered(publisher, 20)
        publisher.close()
        with pytest.raises(cuframes.Disconnected):
            while True:
                reader.next(5)
        assert reader.stats() == (1, 20)
        with PacketPublisher(key, "h264") as successor:
            numbered(successor, 1, keys={1})
            assert patient.next(5).seq == 1
        assert patient.stats() == (2, 20)


def test_a_packet_counts_as_received_when_it_is_taken(key):
    with PacketPublisher(key, "h264", slots=4, data_size=4096) as publisher:
        numbered(publisher, 1, keys={1})
        with PacketReader(key) as reader:
            assert reader.stats() == (0, 0)  # though it was read when the reader was made
            assert reader.next(5).seq == 1
            numbered(publisher, 8, keys={8})
            with pytest.raises(cuframes.PacketOverrun):
                reader.next(5)
            assert reader.stats().received == 1
            assert reader.next(5).seq == 8
            assert reader.stats().received == 2
        never = PacketReader(key, "oldest")
        never.close()
        assert never.stats().received == 0


def test_the_oldest_that_was_overwritten_before_it_was_taken_is_followed_by_the_oldest_that_is_there(key):
    with PacketPublisher(key, 27, slots=64) as publisher, PacketReader(key, "oldest") as reader:
        for n in range(100):
            publisher.publish_packet(b"x", pts_ns=n, keyframe=n % 10 == 0)
        first = reader.next(1)
        assert (first.pts_ns, first.lost) == (40, 0)
        assert [reader.next(1).pts_ns for _ in range(59)] == list(range(41, 100))
