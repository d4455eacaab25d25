"""What all public classes have in common."""

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
