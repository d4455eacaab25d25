"""Random sequences of operations on a packet ring, against a model of what it promises."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import cuframes
from cuframes import PacketFlags, PacketPublisher, PacketReader

_numbers = itertools.count()
SLOTS, DATA, LARGEST = 5, 100, 60


class Model:
    """The ring as a list of everything that was ever published."""

    def __init__(self):
        self.packets = []  # (bytes, keyframe)

    @property
    def newest(self):
        return len(self.packets)

    def whole(self, seq):
        """Whether packet `seq` is still there: its slot, and all of its bytes."""
        since = sum(len(data) for data, _ in self.packets[seq - 1 :])
        return 1 <= seq <= self.newest and seq > self.newest - SLOTS and since <= DATA

    def keyframes(self):
        return [seq for seq in range(1, self.newest + 1) if self.packets[seq - 1][1] and self.whole(seq)]


class Expectation:
    """What one reader is to be given."""

    def __init__(self, model, start):
        self.model = model
        self.start = start
        self.owed = start == "next"
        self.wanted = model.newest + 1
        self.scanning = not self.owed  # for the first keyframe that comes
        self.seeking = False  # for the newest keyframe
        self.ahead = None  # the first packet is read at once
        keys = model.keyframes()
        if keys and not self.owed:
            self.ahead = (keys[0] if start == "oldest" else keys[-1], 0)
            self.took(self.ahead[0])

    def took(self, seq):
        self.wanted, self.scanning, self.seeking, self.owed = seq + 1, False, False, True

    def next(self):
        """(seq, lost before it), or None when there is nothing."""
        if self.ahead:
            found, self.ahead = self.ahead, None
            return found
        while not self.seeking and self.model.whole(self.wanted):
            if self.model.packets[self.wanted - 1][1] or not self.scanning:
                self.took(self.wanted)
                return self.wanted - 1, 0
            self.wanted += 1
        if not self.seeking and self.wanted > self.model.newest:
            return None
        if not self.owed and not self.seeking and self.start == "oldest":
            # It has taken nothing and was overtaken: it begins anew at what is the oldest keyframe by now.
            keys = self.model.keyframes()
            if not keys:
                self.wanted = self.model.newest + 1
                return None
            self.took(keys[0])
            return keys[0], 0
        self.seeking = True
        ever = any(key for _, key in self.model.packets)
        keys = self.model.keyframes()[-1:] if ever or not self.owed else [self.model.newest]
        if not keys or keys[0] < self.wanted:
            return None
        lost = keys[0] - self.wanted if self.owed else 0
        self.took(keys[0])
        return keys[0], lost


class PacketRing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.key = f"p{os.getpid()}-{next(_numbers)}"
        self.publisher = PacketPublisher(self.key, "h264", slots=SLOTS, data_size=DATA, max_packet_size=LARGEST)
        self.model = Model()
        self.readers = []  # (reader, expectation)
        self.views = []  # (packet without a copy, its number)

    @rule(sizes=st.lists(st.integers(0, LARGEST + 1), min_size=1, max_size=6), key=st.integers(0, 3))
    def publish(self, sizes, key):
        for at, size in enumerate(sizes):
            data = bytes([(self.model.newest + 1) % 256]) * size
            if size > LARGEST:
                with pytest.raises(cuframes.PacketOversized):
                    self.publisher.publish_packet(data, pts_ns=0)
                continue
            self.model.packets.append((data, at == key))
            assert self.publisher.publish_packet(data, pts_ns=size, keyframe=at == key) == self.model.newest

    @precondition(lambda self: len(self.readers) < 4)
    @rule(start=st.sampled_from(["keyframe", "oldest", "next"]))
    def join(self, start):
        self.readers.append((PacketReader(self.key, start), Expectation(self.model, start)))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), copy=st.booleans())
    def take(self, data, copy):
        reader, expectation = data.draw(st.sampled_from(self.readers))
        expected = expectation.next()
        if expected is None:
            with pytest.raises(cuframes.Timeout):
                reader.next(0, copy=copy)
            return
        seq, lost = expected
        if lost:
            with pytest.raises(cuframes.PacketOverrun) as caught:
                reader.next(0, copy=copy)
            assert caught.value.lost == lost
        packet = reader.next(0, copy=copy)
        assert (packet.seq, packet.lost) == (seq, lost)
        assert bool(packet.flags & PacketFlags.DISCONTINUITY) == bool(lost)
        assert (packet.data, packet.keyframe) == self.model.packets[seq - 1]
        assert packet.pts_ns == len(packet.data)
        if isinstance(packet.data, memoryview):
            self.views.append((packet, seq))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data):
        entry = data.draw(st.sampled_from(self.readers))
        self.readers.remove(entry)
        entry[0].close()

    @invariant()
    def views_know_whether_they_are_whole(self):
        for packet, seq in self.views:
            assert packet.valid == self.model.whole(seq)
            if packet.valid:
                assert packet.data == self.model.packets[seq - 1][0]

    def teardown(self):
        self.publisher.close()
        for reader, _ in self.readers:
            reader.close()


PacketRing.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPacketRing = pytest.mark.timeout(300)(PacketRing.TestCase)
