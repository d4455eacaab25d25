"""What all public classes have in common."""

import pytest

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes.framecache import Client, SlotReader, SlotWriter, remove_slot


def test_reprs_begin_with_the_class_and_the_key(key, slot_id):
    with Publisher(key, 64, 48, "gray8", memory="host") as publisher, Subscriber(key, name="detector") as subscriber:
        assert repr(publisher) == f"<Publisher {key!r}, gray8 64x48, host>"
        assert repr(subscriber) == f"<Subscriber {key!r}, gray8 64x48, newest, name 'detector'>"
        with publisher.acquire() as writable:
            assert repr(writable) == "<WritableFrame gray8 64x48>"
            writable.planes[0][...] = 1
            writable.pts_ns = 40
        with subscriber.next(1) as frame:
            assert repr(frame) == "<Frame gray8 64x48, seq 1, pts 40 ns>"
            assert repr(frame.planes[0]) == "<Plane (48, 64) uint8, pitch 64, read-only>"
        assert repr(frame) == "<Frame gray8 64x48, seq 1, pts 40 ns, released>"
        publisher.enable_packets("h264")
        with subscriber.packets("next") as reader:
            publisher.publish_packet(b"abc", pts_ns=40, dts_ns=40, keyframe=True)
            assert repr(reader.next(1)) == "<Packet 3 bytes, seq 1, pts 40 ns, dts 40 ns, keyframe>"
    assert repr(publisher) == f"<Publisher {key!r}, gray8 64x48, closed>"
    with PacketPublisher(key, "h264") as publisher, PacketReader(key) as reader:
        assert repr(publisher).startswith(f"<PacketPublisher {key!r}, ")
        assert repr(reader).startswith(f"<PacketReader {key!r}, ")
    with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer, SlotReader(slot_id) as reader:
        assert repr(writer) == f"<SlotWriter {slot_id!r}, gray8 64x48, 0 frames>"
        assert repr(reader) == f"<SlotReader {slot_id!r}, gray8 64x48>"
        with writer.acquire() as writable:
            assert repr(writable) == "<WritableSlotFrame gray8 64x48>"
            writable.pts_us = 40
        assert repr(reader.next(1)) == "<SlotFrame gray8 64x48, 3072 bytes, seq 0, pts 40 us>"
    remove_slot(slot_id)
    assert repr(Client("http://localhost:1", token="secret")) == "<Client http://localhost:1>"


def test_what_is_closed_says_so(key, slot_id):
    with Publisher(key, 64, 48, "gray8", memory="host", ring_size=4, policy="strict_wait") as publisher:
        assert (publisher.ring_size, publisher.policy, publisher.closed) == (4, "strict_wait", False)
        publisher.enable_packets("h264")
        with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer:
            ends = [publisher, Subscriber(key), PacketReader(key), writer, SlotReader(slot_id), publisher.packets]
            assert not any(end.closed for end in ends)
            for end in ends:
                end.close()
            assert all(end.closed for end in ends)
    remove_slot(slot_id)


def test_publishers_are_found_and_cleaned_up_by_public_names(key):
    with pytest.raises(cuframes.NotFound):
        cuframes.find_publisher(key)
    with Publisher(key, 64, 48, "gray8", memory="host"):
        assert cuframes.find_publisher(key).key == key
        assert cuframes.collect_garbage([key]) == []
        with pytest.raises(cuframes.AlreadyExists, match=f"a publisher of '{key}' is running"):
            Publisher(key, 64, 48, "gray8", memory="host")
    with PacketPublisher(key, "h264"), pytest.raises(cuframes.AlreadyExists, match=f"publisher of packets of '{key}'"):
        PacketPublisher(key, "h264")


def test_a_slot_takes_nanoseconds_or_microseconds(slot_id):
    with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer, SlotReader(slot_id, start="oldest") as reader:
        writer.write(bytes(3072), pts_ns=40_001_999)
        writer.write(bytes(3072), pts_us=41)
        assert [(reader.next(1).pts_ns, reader.next(1).pts_us)] == [(40_001_000, 41)]
        with pytest.raises(ValueError, match="give one of them"):
            writer.write(bytes(3072), pts_ns=1, pts_us=1)
    remove_slot(slot_id)
