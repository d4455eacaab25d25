"""Threads that share a reader, a frame and its exports. Without a GIL they really run at the same time."""

import contextlib
import gc
import os
import random
import subprocess
import sys
import sysconfig
import threading
import time

import numpy
import pytest
from harness import descriptors, eventually

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes.framecache import SlotReader, SlotWriter

ROUNDS = 200 if getattr(sys, "_is_gil_enabled", lambda: True)() else 800
SECONDS = 60.0  # a deadline, for the slowest machine


def together(*functions):
    """Run each function in a thread of its own, and let them begin at once. Their exceptions are raised here."""
    ready, begun, problems = threading.Barrier(len(functions)), [], []

    def run(function):
        try:
            ready.wait(SECONDS)
            begun.append(function)
            for _ in range(100_000):  # the barrier wakes them one after the other
                if len(begun) == len(functions):
                    break
            function()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if problems:
        raise problems[0]


def only_busy(problem):
    """What a thread is told that takes or writes beside another one."""
    if "another " not in str(problem):
        raise problem


@pytest.fixture(autouse=True)
def switching():
    """Let threads alternate often where there is a GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def pair(key):
    with Publisher(key, 64, 48, "nv12", ring_size=4) as publisher, Subscriber(key, mode="ordered") as subscriber:
        yield publisher, subscriber


def test_no_module_of_the_library_needs_the_gil(slots, slot_id):
    """A module that does not say so turns the GIL on again, for the whole process."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python has a GIL")
    program = """if True:
        import sys, cuframes, cuframes.framecache as framecache
        framecache.SlotWriter(sys.argv[1], 64, 48, "gray").close()
        assert not sys._is_gil_enabled()
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    command = [sys.executable, "-W", "error", "-c", program]
    subprocess.run([*command, slot_id], env=environment, check=True, timeout=60)


def test_one_frame_is_exported_and_released_by_many(pair):
    publisher, subscriber = pair
    picture = numpy.empty((72, 64), numpy.uint8)
    for number in range(ROUNDS):
        picture[:] = number % 251
        publisher.publish(picture)
        frame = subscriber.next(5)
        kept = []

        def export(frame=frame, number=number, kept=kept):
            ways = [numpy.asarray, memoryview, numpy.from_dlpack, lambda f: numpy.asarray(f.planes[0]),
                    lambda f: f.planes[1], lambda f: numpy.from_dlpack(f.planes[1])]  # fmt: skip
            for way in random.sample(ways, len(ways)):
                try:
                    view = way(frame)
                    pixels = numpy.asarray(view)
                except (ValueError, BufferError, AttributeError, TypeError):
                    assert "released" in repr(frame)
                    return
                assert pixels.max() == pixels.min() == number % 251
                kept.append(view)

        def release(frame=frame):
            frame.release()
            frame.release()

        together(export, export, release)
        # What was made in time keeps the slot, and nothing else does.
        exported = bool(kept) and any(not isinstance(view, cuframes.Plane) for view in kept)
        if exported:
            assert subscriber.stats().held == 1
        kept.clear()
        del frame, export, release
        assert subscriber.stats().held == 0


def test_arrays_of_one_frame_die_on_many_threads(pair):
    publisher, subscriber = pair
    for _ in range(ROUNDS):
        publisher.publish(numpy.zeros((72, 64), numpy.uint8))
        frame = subscriber.next(5)
        piles = [[numpy.asarray(frame), numpy.from_dlpack(frame), memoryview(frame), frame.planes] for _ in range(3)]
        del frame
        together(*[pile.clear for pile in piles])
        assert subscriber.stats().held == 0


def test_planes_are_made_once(pair):
    publisher, subscriber = pair
    for _ in range(ROUNDS):
        publisher.publish(numpy.zeros((72, 64), numpy.uint8))
        with subscriber.next(5) as frame:
            seen = []
            together(*[lambda seen=seen, frame=frame: seen.append(frame.planes)] * 3)
            assert seen[0] is seen[1] is seen[2]


@pytest.mark.parametrize("mode", ["newest", "ordered"])
def test_threads_take_from_one_subscriber(key, mode):
    """Only one at a time may take; the others are told, and every frame is taken at most once."""
    taken, stop = [], threading.Event()
    with Publisher(key, 64, 48, "gray", ring_size=8) as publisher, Subscriber(key, mode=mode) as subscriber:

        def take():
            while not stop.is_set():
                try:
                    with subscriber.next(0.01) as frame:
                        assert (numpy.asarray(frame) == frame.pts_ns % 251).all()
                        taken.append(frame.seq)
                except cuframes.Timeout:
                    pass
                except RuntimeError as problem:
                    only_busy(problem)

        def publish():
            try:
                for number in range(ROUNDS * 4):
                    with contextlib.suppress(cuframes.FrameDropped):
                        publisher.publish(numpy.full((48, 64), number % 251, numpy.uint8), pts_ns=number)
            finally:
                stop.set()

        together(publish, take, take, take)
        assert len(set(taken)) == len(taken)
        received = subscriber.stats().received
        assert received == len(taken)
        assert subscriber.stats().held == 0


def test_many_write_one_reads(key):
    """Writers of one publisher are told that another one writes. No frame is mixed."""
    published = []
    with Publisher(key, 64, 48, "gray", ring_size=4) as publisher, Subscriber(key) as subscriber:

        def publish(value):
            picture = numpy.full((48, 64), value, numpy.uint8)
            for _ in range(ROUNDS):
                with contextlib.suppress(RuntimeError, cuframes.FrameDropped):
                    published.append(publisher.publish(picture, pts_ns=value))
            published.append(None)

        def read():
            while published.count(None) < 2:
                with contextlib.suppress(cuframes.Timeout), subscriber.next(0.01) as frame:
                    assert (numpy.asarray(frame) == frame.pts_ns).all()

        together(lambda: publish(1), lambda: publish(2), read)
        numbers = [seq for seq in published if seq is not None]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("copy", [True, False])
def test_threads_share_a_packet_reader(key, copy):
    taken, stop = [], threading.Event()
    with PacketPublisher(key, "h264", slots=16) as publisher:
        publisher.publish_packet(b"\0" * 100, pts_ns=0, keyframe=True)
        with PacketReader(key, start="oldest") as reader:

            def take():
                while not stop.is_set():
                    try:
                        packet = reader.next(0.01, copy=copy)
                        data = bytes(packet.data)
                        if packet.valid:
                            assert data == bytes([packet.pts_ns % 251]) * 100
                        taken.append(packet.seq)
                    except (cuframes.Timeout, cuframes.PacketOverrun):
                        pass
                    except RuntimeError as problem:
                        only_busy(problem)
                    reader.stats()

            def publish():
                try:
                    for number in range(1, ROUNDS * 4):
                        data = bytes([number % 251]) * 100
                        publisher.publish_packet(data, pts_ns=number, keyframe=number % 5 == 0)
                finally:
                    stop.set()

            together(publish, take, take)
            assert len(set(taken)) == len(taken)
            assert reader.stats().received == len(taken)


def test_extradata_change_beside_packets(key):
    with PacketPublisher(key, "h264", slots=16) as publisher:
        publisher.set_extradata(b"e" * 4000)
        publisher.publish_packet(b"p", pts_ns=0, keyframe=True)
        over = []

        def publish():
            for number in range(ROUNDS * 10):
                with contextlib.suppress(RuntimeError):
                    publisher.publish_packet(b"p" * 50, pts_ns=number, keyframe=True)
            over.append(True)

        def change():
            number = 0
            while len(over) < 2:
                number += 1
                publisher.set_extradata(bytes([number % 251]) * 4000)

        def read():
            with PacketReader(key) as reader:
                while len(over) < 2:
                    extradata = reader.extradata
                    assert len(extradata) == 4000
                    assert extradata == extradata[:1] * 4000

        together(publish, publish, change, read)


def test_threads_share_a_slot_reader_and_its_frames(slots, slot_id):
    taken, stop = [], threading.Event()
    with (
        SlotWriter(slot_id, 64, 48, "gray", fps=25) as writer,
        SlotReader(slot_id) as reader,
    ):

        def take():
            while not stop.is_set():
                try:
                    frame = reader.next(0.01)
                    assert len(set(numpy.asarray(frame).ravel())) == 1
                    taken.append(frame.seq)
                except cuframes.Timeout:
                    pass
                except RuntimeError as problem:
                    only_busy(problem)

        def write():
            try:
                for number in range(ROUNDS * 2):
                    writer.write(numpy.full((48, 64), number % 251, numpy.uint8))
            finally:
                stop.set()

        together(write, take, take)
        assert len(set(taken)) == len(taken)


def test_a_slot_frame_in_a_buffer_of_ones_own_is_one_array_for_all(slots, slot_id):
    with (
        SlotWriter(slot_id, 64, 48, "gray", fps=25) as writer,
        SlotReader(slot_id) as reader,
    ):
        for _ in range(ROUNDS):
            writer.write(numpy.full((48, 64), 7, numpy.uint8))
            frame = reader.next(5, out=bytearray(64 * 48))
            seen = []
            together(*[lambda frame=frame, seen=seen: seen.append(frame.__array__())] * 3)
            assert seen[0] is seen[1] is seen[2]
            assert seen[0].sum() == 7 * 64 * 48


def test_a_slot_frame_is_filled_by_many_while_its_block_ends(slots, slot_id):
    with SlotWriter(slot_id, 64, 48, "gray", fps=25) as writer:
        for _ in range(ROUNDS):
            with writer.acquire() as frame:

                def fill(frame=frame):
                    for number in range(20):
                        data = frame.data
                        if data is not None:
                            data[0, 0] = number
                        frame.pts_us = number * 1000
                        assert frame.pts_us is not None

                started = threading.Barrier(3)

                def begin(fill=fill, started=started):
                    started.wait(SECONDS)
                    fill()

                threads = [threading.Thread(target=begin) for _ in range(2)]
                for thread in threads:
                    thread.start()
                started.wait(SECONDS)
            for thread in threads:
                thread.join(SECONDS)


def test_close_beside_every_use(key):
    """Readers are closed while others take, ask and wait."""
    before = descriptors()
    with Publisher(key, 64, 48, "gray", ring_size=4) as publisher:
        publisher.enable_packets("h264")
        stop = threading.Event()

        def publish():
            number = 0
            while not stop.is_set():
                number += 1
                with contextlib.suppress(cuframes.FrameDropped):
                    publisher.publish(numpy.full((48, 64), number % 251, numpy.uint8), pts_ns=number)
                publisher.publish_packet(b"x" * 64, pts_ns=number, keyframe=True)
                time.sleep(0.0005)

        feeder = threading.Thread(target=publish, daemon=True)
        feeder.start()
        try:
            for number in range(ROUNDS // 10):
                subscriber, reader = Subscriber(key), PacketReader(key)

                def use(subscriber=subscriber, reader=reader):
                    for call in (
                        lambda: subscriber.next(5).release(),
                        lambda: numpy.asarray(subscriber.next(5)),
                        lambda: reader.next(5),
                        lambda: reader.next(5, copy=False),
                        lambda: cuframes.wait_any([subscriber, reader], timeout=5),
                        subscriber.stats,
                        reader.stats,
                        lambda: reader.fileno(),
                        lambda: subscriber.fileno(),
                        lambda: reader.extradata,
                    ):
                        with contextlib.suppress(ValueError, RuntimeError, cuframes.CuframesError):
                            call()

                def close(subscriber=subscriber, reader=reader, number=number):
                    time.sleep(number % 7 * 0.0005)
                    subscriber.close()
                    reader.close()

                together(use, use, close, close)
                del use, close, subscriber, reader
        finally:
            stop.set()
            feeder.join(SECONDS)
    gc.collect()
    eventually(lambda: descriptors() <= before + 1)
