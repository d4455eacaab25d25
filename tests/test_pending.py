"""GPU frames that were released while the GPU may still read them, and everything else that goes wrong on a GPU.

Over the driver made for tests (see ``test_fake_driver.py``), which says when the GPU is done, refuses what it is told
to, has graph captures, and ends the process at a destroyed stream's use or a call in a forked child.
"""

import asyncio
import ctypes
import gc
import logging
import os
import select
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path

import numpy
import pytest
from harness import descriptors, eventually

import cuframes
from cuframes import Publisher, Subscriber, wait_any
from cuframes.memory import cuda, driver

FAKE = bool(os.environ.get("CUFRAMES_TEST_FAKE_DRIVER"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not FAKE, reason="turns knobs of the driver made for tests")]
INVALID_HANDLE = 400
OUT_OF_MEMORY = 2


@pytest.fixture
def fake():
    fake = ctypes.CDLL("libcuda.so.1")
    yield fake
    fake.fake_busy(0)
    fake.fake_fail(b"", 0)
    fake.fake_fail_step(0)
    fake.fake_lost(0)
    fake.fake_slow_copies(0)


@pytest.fixture
def publisher(key):
    with Publisher(key, 64, 48, "gray8", ring_size=4, memory="cuda") as publisher:
        yield publisher


def publish(publisher):
    """A frame of whatever is there; the slot that was free is soon free again."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with publisher.acquire() as slot:
                pass
            return slot.seq
        except cuframes.FrameDropped:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def held(publisher):
    return [subscriber.held for subscriber in publisher.subscribers]


def run(code, timeout=60, **environment):
    """A script in a process of its own, which has to end well and in time."""
    env = os.environ | environment
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, env=env, check=False
    )


class Stream:
    """A stream of the driver, destroyed with the object: what CuPy has."""

    def __init__(self, fake, blocking=False):
        handle = ctypes.c_void_p()
        assert fake.cuStreamCreate(ctypes.byref(handle), 0 if blocking else 1) == 0
        self.fake = fake
        self.ptr = handle.value

    def begin_capture(self):
        assert self.fake.cuStreamBeginCapture(ctypes.c_void_p(self.ptr), 0) == 0

    def end_capture(self):
        graph = ctypes.c_void_p()
        return self.fake.cuStreamEndCapture(ctypes.c_void_p(self.ptr), ctypes.byref(graph))

    def __del__(self):
        self.fake.cuStreamDestroy(ctypes.c_void_p(self.ptr))


@pytest.fixture
def cupy_with(monkeypatch):
    """Make a stream the current one of CuPy."""

    def current(stream):
        module = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: ref(), Stream=Stream))
        ref = weakref.ref(stream)
        monkeypatch.setitem(sys.modules, "cupy", module)

    return current


class TestWaiting:
    """Whatever a subscriber waits in, or if it does nothing, its frames go back when the GPU is done."""

    def fill(self, publisher, subscriber, fake):
        fake.fake_busy(1)
        for _ in range(4):
            publish(publisher)
            subscriber.next(5).release()
        assert held(publisher) == [4]
        with pytest.raises(cuframes.FrameDropped), publisher.acquire():
            pass

    def test_doing_nothing(self, publisher, key, fake):
        with Subscriber(key, mode="ordered", max_held=4) as subscriber:
            self.fill(publisher, subscriber, fake)
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])

    @pytest.mark.parametrize("way", ["next", "for", "wait_any", "async", "fileno"])
    def test_every_way_to_wait(self, publisher, key, fake, way):
        async def once(subscriber):
            async for frame in subscriber:
                return frame.seq
            return None

        def wait(subscriber):
            if way == "next":
                return subscriber.next(10).seq
            if way == "for":
                return next(iter(subscriber)).seq
            if way == "wait_any":
                assert wait_any([subscriber], 10) == [subscriber]
            elif way == "async":
                return asyncio.run(asyncio.wait_for(once(subscriber), 10))
            else:
                poll = select.poll()
                poll.register(subscriber.fileno(), select.POLLIN)
                while True:  # it may say so without a frame, once
                    assert poll.poll(10_000)
                    try:
                        return subscriber.next(0).seq
                    except cuframes.Timeout:
                        pass
            return subscriber.next(0).seq

        got = []
        with Subscriber(key, mode="ordered", max_held=4) as subscriber:
            self.fill(publisher, subscriber, fake)
            thread = threading.Thread(target=lambda: got.append(wait(subscriber)))
            thread.start()
            time.sleep(0.1)
            fake.fake_busy(0)
            seq = publish(publisher)
            thread.join(20)
        assert got == [seq]

    def test_three_sleepers_with_every_default(self, publisher, key, fake):
        subscribers = [Subscriber(key, name=name) for name in "abc"]
        fake.fake_busy(1)
        for taker in reversed(subscribers):
            publish(publisher)
            taker.next(5).release()
        publish(publisher)
        for subscriber in subscribers:
            subscriber.next(5).release()
        assert held(publisher) == [2, 2, 2]
        fake.fake_busy(0)
        got = []
        threads = [threading.Thread(target=lambda s=s: got.extend(wait_any([s], 10))) for s in subscribers]
        for thread in threads:
            thread.start()
        publish(publisher)
        for thread in threads:
            thread.join(20)
        assert len(got) == 3
        for subscriber in subscribers:
            subscriber.close()

    def test_a_strict_writer_is_woken(self, key, fake):
        with (
            Publisher(key, 64, 48, "gray8", ring_size=2, memory="cuda", policy="strict_wait") as publisher,
            Subscriber(key, mode="ordered", max_held=2) as subscriber,
        ):
            fake.fake_busy(1)
            for _ in range(2):
                publish(publisher)
                subscriber.next(5).release()
            threading.Timer(0.2, fake.fake_busy, [0]).start()
            with publisher.acquire(timeout=10):
                pass

    def test_nothing_polls_fast_and_an_idle_process_not_at_all(self, publisher, key, fake):
        with Subscriber(key, mode="ordered", max_held=1) as subscriber:
            publish(publisher)
            fake.fake_busy(1)
            subscriber.next(5).release()
            before = fake.fake_queries()
            with pytest.raises(cuframes.Timeout):
                subscriber.next(1)
            assert 10 < fake.fake_queries() - before < 4000  # the reaper, and next(); at 10 kHz it would be 10 000
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])
            time.sleep(0.05)
            before = fake.fake_queries()
            time.sleep(0.3)
            assert fake.fake_queries() == before


class TestClosing:
    """Neither close() nor a release waits for the GPU; the place is given up when it is done."""

    def test_close_hands_over(self, publisher, key, fake):
        fds = descriptors()
        subscriber = Subscriber(key)
        publish(publisher)
        fake.fake_busy(1)
        subscriber.next(5).release()
        subscriber.close()
        del subscriber
        gc.collect()
        time.sleep(0.1)
        assert held(publisher) == [1]
        fake.fake_busy(0)
        eventually(lambda: not publisher.subscribers)
        eventually(lambda: descriptors() <= fds)

    def test_a_frame_released_after_close(self, publisher, key, fake):
        fds = descriptors()
        subscriber = Subscriber(key)
        publish(publisher)
        frame = subscriber.next(5)
        subscriber.close()
        fake.fake_busy(1)
        frame.release()
        del frame, subscriber
        time.sleep(0.1)
        assert held(publisher) == [1]
        fake.fake_busy(0)
        eventually(lambda: not publisher.subscribers)
        eventually(lambda: descriptors() <= fds)

    def test_some_frames_pending_and_some_held(self, publisher, key, fake):
        subscriber = Subscriber(key, mode="ordered", max_held=3)
        for _ in range(3):
            publish(publisher)
        first, second, third = (subscriber.next(5) for _ in range(3))
        fake.fake_busy(1)
        first.release()
        subscriber.close()
        second.release()
        fake.fake_busy(0)
        eventually(lambda: held(publisher) == [1])
        time.sleep(0.1)
        assert held(publisher) == [1]
        third.release()
        eventually(lambda: not publisher.subscribers)

    def test_memory_stays_until_the_gpu_is_done(self, key):
        """In a process of its own: the mapping, the events and the socket go with the last pending frame."""
        code = f"""
import ctypes, gc, os, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
def left():
    gc.collect()
    return fake.fake_mappings(), fake.fake_events(), len(os.listdir("/proc/self/fd"))
with cuframes.Subscriber({key!r}, start="latest") as subscriber:
    subscriber.next(5)
before = left()
subscriber = cuframes.Subscriber({key!r}, start="latest")
fake.fake_busy(1)
subscriber.next(5).release()
subscriber.close()
del subscriber
time.sleep(0.1)
assert left()[0] > before[0], "unmapped while the GPU reads it"
fake.fake_busy(0)
deadline = time.monotonic() + 20
while left() != before:
    assert time.monotonic() < deadline, (left(), before)
    time.sleep(0.01)
print("done")
"""
        with Publisher(key, 64, 48, "gray8", memory="cuda") as publisher:
            publish(publisher)
            done = run(code)
            assert done.stdout == "done\n", done.stderr
            eventually(lambda: not publisher.subscribers)

    def test_the_gpu_may_need_python_to_go_on(self, publisher, key, fake):
        """A host callback that needs the GIL, while one thread closes and another releases."""
        code = f"""
import ctypes, threading, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
subscriber = cuframes.Subscriber({key!r}, mode="ordered", start="oldest", max_held=4)
first, second = subscriber.next(5), subscriber.next(5)
fake.fake_busy(1)
first.release()
closing = threading.Thread(target=subscriber.close)
closing.start()
time.sleep(0.2)
def callback():
    for _ in range(100): time.sleep(0.001)
    fake.fake_busy(0)
threading.Thread(target=callback).start()
second.release()
closing.join()
print("done")
"""
        publish(publisher)
        publish(publisher)
        done = run(code)
        assert done.stdout == "done\n", done.stderr
        eventually(lambda: not publisher.subscribers)

    @pytest.mark.parametrize("what", ["subscriber.close()", "kept = subscriber.next(5)", "pass"])
    def test_the_process_may_end_while_frames_are_pending(self, publisher, key, what):
        code = f"""
import ctypes, cuframes
fake = ctypes.CDLL("libcuda.so.1")
subscriber = cuframes.Subscriber({key!r}, mode="ordered", start="oldest", max_held=2)
fake.fake_busy(1)
subscriber.next(5).release()
{what}
"""
        publish(publisher)
        publish(publisher)
        done = run(code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        eventually(lambda: not publisher.subscribers)

    def test_a_forked_child_makes_no_call_of_the_driver(self, key):
        code = f"""
import warnings; warnings.simplefilter("ignore")
import ctypes, gc, os, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
publisher = cuframes.Publisher({key!r}, 64, 48, "gray8", memory="cuda")
subscriber = cuframes.Subscriber({key!r}, mode="ordered", max_held=3)
for _ in range(3): publisher.publish(bytes(64 * 48))
fake.fake_busy(1)
subscriber.next(5).release()
frame = subscriber.next(5)
closed = cuframes.Subscriber({key!r}, start="latest")
closed.next(5).release()
closed.close()
writable = publisher.acquire()
writable.__enter__()
time.sleep(0.05)
child = os.fork()
if child == 0:
    try:
        subscriber.stats()
    except RuntimeError:
        pass
    subscriber.close()
    frame.release()
    try:
        writable.__exit__(None, None, None)
    except RuntimeError:
        pass
    del writable, frame, subscriber, closed, publisher
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
fake.fake_busy(0)
writable.__exit__(None, None, None)
deadline = time.monotonic() + 20
while [s.held for s in publisher.subscribers] != [1]:
    assert time.monotonic() < deadline, publisher.subscribers
    time.sleep(0.01)
frame.release()
print("done")
"""
        done = run(code)
        assert done.stdout == "done\n", done.stderr


class TestCopies:
    def test_copying_to_the_host_leaves_the_interpreter_alone(self, publisher, key):
        code = f"""
import ctypes, threading, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
subscriber = cuframes.Subscriber({key!r}, start="latest")
frame = subscriber.next(5)
fake.fake_slow_copies(1)
fake.fake_busy(1)
threading.Timer(0.2, fake.fake_busy, [0]).start()
assert frame.copy_to_host().shape == (48, 64)
frame.release()
print("done")
"""
        publish(publisher)
        done = run(code)
        assert done.stdout == "done\n", done.stderr

    def test_freeing_device_memory_leaves_the_interpreter_alone(self, key):
        code = f"""
import ctypes, threading, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
publisher = cuframes.Publisher({key!r}, 64, 48, "gray8", memory="cuda-ipc")
publisher.close()
fake.fake_slow_copies(1)
fake.fake_busy(1)
threading.Timer(0.2, fake.fake_busy, [0]).start()
del publisher
print("done")
"""
        done = run(code)
        assert done.stdout == "done\n", done.stderr

    def test_an_upload_under_strict_wait_obeys_the_timeout(self, key, fake):
        frame = numpy.zeros((48, 64), numpy.uint8)
        with Publisher(key, 64, 48, "gray8", ring_size=2, memory="cuda", policy="strict_wait") as publisher:
            fake.fake_busy(1)
            publisher.publish(frame)
            publisher.publish(frame)
            for timeout in (0, 0.1):
                with pytest.raises(cuframes.Timeout, match="did not finish an earlier upload"):
                    publisher.publish(frame, timeout=timeout)
            threading.Timer(0.1, fake.fake_busy, [0]).start()
            assert publisher.publish(frame, timeout=10) == 3


class TestRefusals:
    """What the driver refuses is a named error where a caller can get it, and a frame never goes back early."""

    def test_a_failed_record_is_made_up_for_by_the_whole_context(self, publisher, key, fake):
        with Subscriber(key) as subscriber:
            publish(publisher)
            frame = subscriber.next(5)
            fake.fake_busy(1)
            fake.fake_fail(b"cuEventRecord", INVALID_HANDLE)
            frame.release()
            time.sleep(0.05)
            assert held(publisher) == [1]
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])

    @pytest.mark.parametrize("name", [b"cuCtxRecordEvent", b"cuEventCreate"])
    def test_what_cannot_be_recorded_is_recorded_later(self, publisher, key, fake, name, caplog):
        with Subscriber(key, mode="ordered", max_held=2) as subscriber:
            publish(publisher)
            publish(publisher)
            frames = [subscriber.next(5), subscriber.next(5)]
            interfaces = [frame.__cuda_array_interface__ for frame in frames]
            fake.fake_fail(name, OUT_OF_MEMORY)
            frames.clear()
            time.sleep(0.3)
            assert held(publisher) == [2]
            assert [r.levelno for r in caplog.records] == [logging.WARNING]
            assert "CUDA_ERROR_OUT_OF_MEMORY" in caplog.text
            fake.fake_busy(1)
            fake.fake_fail(b"", 0)
            time.sleep(0.3)
            assert held(publisher) == [2]
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])
        assert interfaces

    def test_a_lost_context_reads_nothing_any_more(self, publisher, key):
        code = f"""
import ctypes, cuframes
fake = ctypes.CDLL("libcuda.so.1")
subscriber = cuframes.Subscriber({key!r}, mode="ordered", start="oldest", max_held=4)
first, second = subscriber.next(5), subscriber.next(5)
fake.fake_busy(1)
first.release()
assert subscriber.stats().held == 2
fake.fake_lost(1)
second.release()
try:
    subscriber.next(5)
except cuframes.DeviceError as problem:
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(problem)
input()
"""
        for _ in range(3):
            publish(publisher)
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as child:
            eventually(lambda: publisher.subscribers and publisher.subscribers[0].received == 3)
            eventually(lambda: held(publisher) == [0])
            child.communicate("\n", timeout=30)
            assert child.returncode == 0

    def test_a_driver_that_cannot_record_a_context(self, publisher, key):
        """Before CUDA 12.5. The frame goes back when all work of the context is over."""
        code = f"""
import ctypes, time, cuframes
fake = ctypes.CDLL("libcuda.so.1")
subscriber = cuframes.Subscriber({key!r}, start="latest")
frame = subscriber.next(5)
frame.__cuda_array_interface__
fake.fake_busy(1)
frame.release()
del frame
time.sleep(0.1)
assert subscriber.stats().held == 1
fake.fake_busy(0)
deadline = time.monotonic() + 20
while subscriber.stats().held:
    assert time.monotonic() < deadline
    time.sleep(0.01)
with cuframes.Publisher({key!r} + "-w", 64, 48, "gray8", memory="cuda") as publisher:
    with publisher.acquire() as writable:
        writable.__cuda_array_interface__
print("done")
"""
        publish(publisher)
        done = run(code, FAKE_CUDA_OLD="1")
        assert done.stdout == "done\n", done.stderr

    def test_a_destroyed_stream_is_not_used(self, publisher, key, fake):
        """The driver would crash. What was queued on it is waited for nevertheless."""
        with Subscriber(key) as subscriber:
            publish(publisher)
            stream = Stream(fake)
            capsule = subscriber.next(5).__dlpack__(stream=stream.ptr)
            fake.fake_busy(1)
            del stream
            del capsule
            time.sleep(0.05)
            assert held(publisher) == [1]
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])
            with publisher.acquire() as writable:
                stream = Stream(fake)
                capsule = writable.__dlpack__(stream=stream.ptr)
                del stream
            del capsule

    def test_a_stream_object_is_kept_until_the_frame_is_gone(self, publisher, key, fake, cupy_with):
        stream = Stream(fake)
        ref = weakref.ref(stream)
        subscriber = Subscriber(key, stream=stream)
        publish(publisher)
        frame = subscriber.next(5)
        other = Stream(fake)
        cupy_with(other)
        capsule = frame.__dlpack__(stream=other.ptr)
        other = weakref.ref(other)
        subscriber.close()
        del stream, subscriber
        gc.collect()
        assert ref() is not None
        assert other() is not None
        del frame, capsule
        gc.collect()
        eventually(lambda: ref() is None and other() is None)

    def test_a_slot_that_could_not_be_recorded_is_waited_for(self, publisher, key, fake):
        """Else its next writer would write while this one does."""
        with (
            pytest.raises(cuframes.DeviceError, match="recording the frame's event failed"),
            publisher.acquire() as slot,
        ):
            assert slot.slot == 1
            fake.fake_fail(b"cuEventRecord", INVALID_HANDLE)
        assert publisher.stats().published == 0
        fake.fake_fail(b"cuCtxSynchronize", OUT_OF_MEMORY)
        with pytest.raises(cuframes.DeviceError, match="writes of an earlier frame"), publisher.acquire(slot=1):
            pass
        fake.fake_fail(b"", 0)
        with publisher.acquire(slot=1):
            pass


class TestCaptures:
    """CUDA graphs that are captured, by us or by somebody else, beside frames."""

    def test_somebody_elses_capture_is_not_disturbed(self, publisher, key, fake):
        with Subscriber(key, mode="ordered", max_held=4) as subscriber:
            for _ in range(3):
                publish(publisher)
            frames = [subscriber.next(5) for _ in range(3)]
            fake.fake_busy(1)
            frames.pop().release()
            stream = Stream(fake)
            stream.begin_capture()
            frames.pop().release()
            subscriber.stats()
            time.sleep(0.05)  # the reaper looks
            thread = threading.Thread(target=frames.pop().release)
            thread.start()
            thread.join()
            with pytest.raises(cuframes.Timeout):
                subscriber.next(0.01)
            assert held(publisher) == [3]
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])
            with Publisher(f"{key}-b", 64, 48, "gray8", memory="cuda-ipc") as second, Subscriber(f"{key}-b") as reader:
                second.publish(bytes(64 * 48))
                assert not reader.next(5).copy_to_host().any()
            del second, reader
            gc.collect()
            assert stream.end_capture() == 0

    def test_a_stream_that_is_captured_is_refused(self, publisher, key, fake):
        stream = Stream(fake)
        with Subscriber(key) as subscriber:
            publish(publisher)
            frame = subscriber.next(5)
            stream.begin_capture()
            with pytest.raises(cuframes.DeviceError, match="a CUDA graph is being captured"):
                frame.__dlpack__(stream=stream.ptr)
            with pytest.raises(cuframes.DeviceError, match="a CUDA graph is being captured"):
                frame.release(stream=stream)
            assert held(publisher) == [1]
            with pytest.raises(cuframes.DeviceError, match="a CUDA graph is being captured"):
                publisher.publish(bytes(64 * 48), stream=stream)
            assert stream.end_capture() == 0
            publisher.publish(bytes(64 * 48), stream=stream)
            frame.release(stream=stream)
            eventually(lambda: held(publisher) == [0])

    def test_the_default_stream_while_a_blocking_one_is_captured(self, publisher, key, fake):
        stream = Stream(fake, blocking=True)
        with Subscriber(key, mode="ordered", max_held=2) as subscriber:
            publish(publisher)
            publish(publisher)
            frame = subscriber.next(5)
            stream.begin_capture()
            with pytest.raises(cuframes.DeviceError, match=r"STREAM_CAPTURE_IMPLICIT.*a CUDA graph is being captured"):
                frame.copy_to_host()
            with pytest.raises(cuframes.DeviceError, match="a CUDA graph is being captured"):
                subscriber.next(5)
            frame.release()
            time.sleep(0.05)
            assert held(publisher) == [1]
            assert stream.end_capture() == 0
            eventually(lambda: held(publisher) == [0])

    def test_a_tensor_that_dies_in_a_capture_is_kept_until_its_end(self, publisher, key, fake, cupy_with, caplog):
        stream = Stream(fake)
        ref = weakref.ref(stream)
        cupy_with(stream)
        with Subscriber(key) as subscriber:
            publish(publisher)
            capsule = subscriber.next(5).__dlpack__(stream=stream.ptr)
            stream.begin_capture()
            del capsule
            time.sleep(0.05)
            assert held(publisher) == [1]
            assert caplog.text.count("a CUDA graph is being captured") == 1
            assert stream.end_capture() == 0
            fake.fake_busy(1)
            del stream
            assert ref() is not None  # an event is still to be recorded on it
            fake.fake_busy(0)
            eventually(lambda: held(publisher) == [0])
            publish(publisher)
            subscriber.next(5).release()  # a release drops what is not needed any more
            eventually(lambda: ref() is None)


class TestFailingConstructors:
    """Every call that makes or opens something fails once: nothing is left, also while the exception is kept."""

    def left(self, fake):
        with driver.current(driver.gpu()) as bindings:
            free = driver.call(bindings.cuMemGetInfo)[0]
        return fake.fake_events(), fake.fake_mappings(), free, descriptors()

    def fail_at_every_step(self, fake, make):
        gc.collect()
        before = self.left(fake)
        for step in range(1, 200):
            fake.fake_fail_step(step)
            try:
                made = make()
            except cuframes.DeviceError as problem:
                kept = problem
            else:
                kept = None
            if kept is not None:
                assert fake.fake_steps_left() == 0
                assert "CUDA_ERROR_OUT_OF_MEMORY" in str(kept)
                assert self.left(fake) == before, step
                continue
            assert step > 3
            fake.fake_fail_step(0)
            close = getattr(made, "close", None)
            if close is not None:
                close()
            del made, close
            gc.collect()
            assert self.left(fake) == before
            return
        raise AssertionError("it never worked")

    @pytest.mark.parametrize("kind", [cuda.CudaPool, cuda.CudaIpcPool])
    def test_pools(self, fake, kind):
        self.fail_at_every_step(fake, lambda: kind.create(driver.gpu(), 10_000, 4))

    def test_external(self, fake):
        with driver.current(driver.gpu()) as bindings:
            base = driver.call(bindings.cuMemAlloc, 4 << 20)
            buffers = [int(base), int(base) + (2 << 20)]
            self.fail_at_every_step(fake, lambda: cuda.ExternalPool.create(buffers, 10_000, driver.gpu()))
            driver.call(bindings.cuMemFree, base)

    def test_opening_a_descriptor(self, fake):
        pool = cuda.CudaPool.create(driver.gpu(), 10_000, 4)
        handles = [(bytes(64), 0, event) for event in pool.exports[3]]
        fd = pool.descriptors()[0]
        self.fail_at_every_step(fake, lambda: cuda.open_pool(driver.gpu(), 0, 10_000, handles, fd))
        pool.close()

    @pytest.mark.parametrize("memory", ["cuda", "cuda-ipc"])
    def test_a_subscriber_in_another_process(self, key, memory):
        code = f"""
import ctypes, gc, os, cuframes
fake = ctypes.CDLL("libcuda.so.1")
def left():
    return fake.fake_events(), fake.fake_mappings(), len(os.listdir("/proc/self/fd"))
cuframes.Subscriber({key!r}).close()
gc.collect()
before = left()
failed = 0
for step in range(1, 100):
    fake.fake_fail_step(step)
    try:
        subscriber = cuframes.Subscriber({key!r})
    except cuframes.DeviceError as problem:
        kept = problem
        assert left() == before, (step, left(), before)
        failed += 1
        continue
    fake.fake_fail_step(0)
    subscriber.close()
    break
print(failed > 4)
"""
        with Publisher(key, 64, 48, "gray8", ring_size=4, memory=memory):
            done = run(code)
            assert done.stdout == "True\n", done.stderr


class TestScribbledSegments:
    """What stands in the control segment may have been written by any subscriber."""

    SLOT, BASE_OFFSET, RING_SIZE = 192, 256 + 152, 24

    def scribble(self, key, offset, value):
        with Path(f"/dev/shm/cuframes-{key}").open("r+b") as file:
            file.seek(offset)
            file.write(value.to_bytes(8, "little"))

    @pytest.mark.parametrize("offset", [1 << 63, 2 << 20, (2 << 20) - 100])
    def test_an_offset_beyond_the_allocation(self, key, offset):
        with Publisher(key, 64, 48, "gray8", ring_size=4, memory="cuda-ipc") as publisher:
            self.scribble(key, self.BASE_OFFSET + self.SLOT, offset)
            code = f"import cuframes\ntry: cuframes.Subscriber({key!r})\nexcept cuframes.ProtocolError as e: print(e)"
            done = run(code)
            assert f"slot 1 begins at {offset} of an allocation of {2 << 20} bytes" in done.stdout, done.stderr
            eventually(lambda: not publisher.subscribers)

    def test_the_epoch_of_a_smaller_ring_of_this_process(self, key):
        with (
            Publisher(f"{key}-b", 64, 48, "gray8", ring_size=2, memory="cuda") as small,
            Publisher(key, 640, 480, "gray8", ring_size=4, memory="cuda") as publisher,
        ):
            with Subscriber(f"{key}-b") as subscriber:
                publish(small)
                epoch = subscriber.next(5).epoch
            raw = Path(f"/dev/shm/cuframes-{key}").read_bytes()
            small_raw = Path(f"/dev/shm/cuframes-{key}-b").read_bytes()
            (where,) = [i for i in range(0, len(small_raw), 8) if small_raw[i : i + 8] == epoch.to_bytes(8, "little")]
            assert raw[where : where + 8] != small_raw[where : where + 8]
            self.scribble(key, where, epoch)
            with Subscriber(key) as subscriber:
                publisher.publish(bytes([7]) * (640 * 480))
                assert (subscriber.next(5).copy_to_host() == 7).all()
