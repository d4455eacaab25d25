"""Random sequences of operations against a model of what the ring promises."""

import itertools
import os

import numpy
import pytest
from harness import eventually
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import cuframes
from cuframes import Publisher, Subscriber

_numbers = itertools.count()
SHAPE = (8, 64)


class Ring(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.key = f"h{os.getpid()}-{next(_numbers)}"
        self.publisher = Publisher(self.key, SHAPE[1], SHAPE[0], "gray8", ring_size=3)
        self.published = 0
        self.dropped = 0
        self.subscribers = []  # [subscriber, frame number joined at, last frame number, frames held]

    @precondition(lambda self: len(self.subscribers) < 4)
    @rule(mode=st.sampled_from(["newest", "ordered"]), max_held=st.integers(1, 3))
    def join(self, mode, max_held):
        self.subscribers.append(
            [Subscriber(self.key, mode=mode, max_held=max_held), self.published, self.published, []]
        )

    @rule(count=st.integers(1, 5))
    def publish(self, count):
        for _ in range(count):
            held = {frame.seq % 3 for entry in self.subscribers for frame in entry[3]}
            try:
                self.publisher.publish(numpy.full(SHAPE, (self.published + 1) % 251, numpy.uint8))
            except cuframes.FrameDropped:
                assert len(held) == 3
                self.dropped += 1
            else:
                assert len(held) < 3
                self.published += 1

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data())
    def take(self, data):
        entry = data.draw(st.sampled_from(self.subscribers))
        subscriber, joined, last, held = entry
        try:
            frame = subscriber.next(0)
        except cuframes.TooManyHeld:
            assert len(held) == subscriber._max_held
        except cuframes.Timeout:
            assert last == self.published
        else:
            missed = frame.frame_no - last - 1
            assert missed >= 0
            assert (frame.lost, frame.skipped) == ((missed, 0) if subscriber.mode == "ordered" else (0, missed))
            if subscriber.mode == "newest":
                assert frame.frame_no == self.published
            entry[2] = frame.frame_no
            held.append(frame)
            stats = subscriber.stats()
            assert stats.received + stats.lost + stats.skipped == frame.frame_no - joined

    @precondition(lambda self: any(entry[3] for entry in self.subscribers))
    @rule(data=st.data())
    def release(self, data):
        entry = data.draw(st.sampled_from([e for e in self.subscribers if e[3]]))
        entry[3].pop(data.draw(st.integers(0, len(entry[3]) - 1))).release()

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data())
    def leave(self, data):
        entry = data.draw(st.sampled_from(self.subscribers))
        self.subscribers.remove(entry)
        entry[0].close()
        entry[3].clear()
        eventually(lambda: len(self.publisher.subscribers) == len(self.subscribers))

    @invariant()
    def held_frames_are_whole(self):
        for *_, held in self.subscribers:
            for frame in held:
                assert frame.valid
                assert (numpy.asarray(frame) == frame.frame_no % 251).all()

    @invariant()
    def counters_agree(self):
        assert self.publisher.stats()[:2] == (self.published, self.dropped)
        assert [s.held for s in self.publisher.subscribers] == [
            len(entry[3]) for entry in sorted(self.subscribers, key=lambda e: e[0]._connection.place.bit)
        ]

    def teardown(self):
        self.publisher.close()
        for subscriber, *_ in self.subscribers:
            subscriber.close()


Ring.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRing = pytest.mark.timeout(300)(Ring.TestCase)
