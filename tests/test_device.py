"""Device memory, as far as the driver's interface shows it: handshake, lifetime, refusals, crashes.

Runs on a GPU, and without one over a driver made for it (``test_fake_driver.py``), in which case streams and events are
immediate. What needs a GPU's real concurrency is in ``test_gpu.py``.
"""

import ctypes
import gc
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import weakref
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
from harness import Worker, descriptors, eventually
from test_memory import Conformance

import cuframes
from cuframes import Publisher, Subscriber
from cuframes.formats import FORMATS, FrameShape
from cuframes.memory import cuda, driver
from cuframes.session import wire
from cuframes.session.listing import collect_garbage, find_publisher

FAKE = bool(os.environ.get("CUFRAMES_TEST_FAKE_DRIVER"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not driver.has_gpu(), reason="there is no GPU here"),
]
MEMORIES = ("cuda", "cuda-ipc")
fake_only = pytest.mark.skipif(not FAKE, reason="turns knobs of the driver made for tests")


def gray(value):
    return numpy.full((48, 64), value % 251, numpy.uint8)


def free_bytes():
    with driver.current(driver.gpu()) as bindings:
        return driver.call(bindings.cuMemGetInfo)[0]


@pytest.fixture(params=MEMORIES)
def memory(request):
    return request.param


@pytest.fixture
def publisher(key, memory):
    with Publisher(key, 64, 48, "gray8", ring_size=4, memory=memory) as publisher:
        assert publisher.memory == memory
        yield publisher


def publish_gray(publisher, value):
    """Upload as fast as it goes: a GPU that is a ring behind drops frames, which is tried again."""
    while True:
        try:
            return publisher.publish(gray(value))
        except cuframes.FrameDropped:
            time.sleep(0.0005)


class TestOneProcess:
    """A subscriber in the publisher's process uses its pool as it is."""

    def test_a_frame_arrives(self, publisher, key):
        with Subscriber(key, mode="ordered") as subscriber:
            publisher.publish(gray(7), pts_ns=5)
            with subscriber.next(5) as frame:
                assert (frame.device, frame.pts_ns) == (f"cuda:{driver.gpu().ordinal}", 5)
                assert (frame.copy_to_host() == 7).all()
                assert (frame.planes[0].copy_to_host() == 7).all()

    @pytest.mark.parametrize("name", FORMATS)
    def test_every_format_arrives_as_it_was_sent(self, key, memory, name):
        shape = FrameShape(FORMATS[name], 60, 40)
        dtype = numpy.uint8 if FORMATS[name].itemsize == 1 else numpy.uint16
        planes = [numpy.arange(numpy.prod(p.shape)).astype(dtype).reshape(p.shape) for p in shape.planes]
        with Publisher(key, 60, 40, name, memory=memory) as publisher, Subscriber(key) as subscriber:
            publisher.publish(planes)
            with subscriber.next(5) as frame:
                for sent, plane in zip(planes, frame.planes, strict=True):
                    assert plane.dtype == str(dtype.__name__)
                    assert (plane.copy_to_host() == sent).all()
                if shape.matrix is not None:
                    assert frame.copy_to_host().shape == shape.array_shape

    def test_a_device_frame_is_copied_on_the_device(self, publisher, key):
        with Publisher(f"{key}-b", 64, 48, "gray8", memory="cuda") as second, Subscriber(key) as subscriber:
            publisher.publish(gray(3))
            with Subscriber(f"{key}-b") as reader:
                frame = subscriber.next(5)
                second.publish(frame)
                second.publish([frame.planes[0]])
                second.publish(Interface(frame))
                assert (reader.next(5).copy_to_host() == 3).all()

    def test_host_publisher_refuses_a_device_array(self, publisher, key):
        with Publisher(f"{key}-h", 64, 48, "gray8", memory="host") as host, Subscriber(key) as subscriber:
            publisher.publish(gray(3))
            frame = subscriber.next(5)
            for source in (frame, frame.planes[0], Interface(frame)):
                with pytest.raises(TypeError, match="this publisher shares host memory"):
                    host.publish(source)
            assert host.stats().published == 0

    def test_acquire_writes_in_place(self, publisher, key):
        with Subscriber(key) as subscriber:
            with publisher.acquire() as slot:
                assert slot.slot == 1
                assert not slot.planes[0].readonly
                slot.copy_from(gray(9))
            assert (subscriber.next(5).copy_to_host() == 9).all()
            with pytest.raises(ZeroDivisionError), publisher.acquire() as slot:
                1 / 0  # noqa: B018
            assert publisher.stats().published == 1
            with publisher.acquire(slot=1) as slot:
                slot.copy_from(gray(10))
            assert (slot.seq % 4, slot.slot) == (1, 1)
            with pytest.raises(ValueError, match="slot must be 0 to 3"):
                publisher.acquire(slot=4)

    def test_views_of_the_host_are_refused_with_a_remedy(self, publisher, key):
        with Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            frame = subscriber.next(5)
            for use in (memoryview, numpy.asarray, lambda p: p[0, 0]):
                with pytest.raises((BufferError, TypeError), match="copy_to_host"):
                    use(frame.planes[0])
            assert not hasattr(frame.planes[0], "__array_interface__")

    def test_copies_to_the_host_at_every_width(self, key, memory):
        picture = (numpy.arange(176 * 216) % 251).astype("u1").reshape(216, 176)  # i420, whose chroma is padded
        looks = {"color": "bt709", "rotation": 90, "frame_rate": 25}
        with Publisher(key, 176, 144, "i420", memory=memory, **looks) as publisher, Subscriber(key) as subscriber:
            publisher.publish(picture)
            frame = subscriber.next(5)
            assert (frame.shape, frame.ndim) == ((216, 176), 2)
            assert (frame.copy_to_host() == picture).all()
            assert frame.tobytes() == picture.tobytes()
            with pytest.raises((BufferError, TypeError), match="copy_to_host"):
                numpy.asarray(frame)
            assert (frame.color.matrix, frame.rotation, subscriber.frame_rate) == ("bt709", 90, 25)
            if importlib.util.find_spec("av"):
                assert frame.to_ndarray("i420").tobytes() == picture.tobytes()
                assert frame.to_ndarray().shape == (144, 176, 3)

    def test_cuda_array_interface(self, publisher, key):
        with Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            plane = subscriber.next(5).planes[0]
            interface = plane.__cuda_array_interface__
            assert interface["version"] == 3
            assert (interface["shape"], interface["strides"], interface["typestr"]) == ((48, 64), (64, 1), "|u1")
            assert interface["data"][1] is True
            assert interface["stream"] == 1

    def test_host_frames_have_no_cuda_array_interface(self, key):
        with Publisher(key, 64, 48, "gray8", memory="host") as publisher, Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            assert not hasattr(subscriber.next(5).planes[0], "__cuda_array_interface__")

    def test_dlpack(self, publisher, key):
        with Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            plane = subscriber.next(5).planes[0]
            assert plane.__dlpack_device__() == (2, driver.gpu().ordinal)
            for stream in (None, 1, 2, -1, numpy.int64(1), numpy.int8(-1)):
                assert '"dltensor"' in repr(plane.__dlpack__(stream=stream))
            assert '"dltensor_versioned"' in repr(plane.__dlpack__(stream=1, max_version=(1, 1)))
            for stream, error in ((0, ValueError), (-2, ValueError), ("1", TypeError), (True, TypeError)):
                with pytest.raises(error):
                    plane.__dlpack__(stream=stream)
            with pytest.raises(BufferError, match="copy_to_host"):
                plane.__dlpack__(dl_device=(1, 0))
            with pytest.raises(BufferError, match="exported as a copy"):
                plane.__dlpack__(copy=True)

    def test_an_export_keeps_the_frame_held(self, publisher, key):
        with Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            with subscriber.next(5) as frame:
                capsule = frame.__dlpack__()
            del frame
            gc.collect()
            assert subscriber.stats().held == 1
            seqs = [publish_gray(publisher, n) for n in range(2, 20)]
            assert all(seq % 4 != 1 for seq in seqs)
            del capsule
            eventually(lambda: subscriber.stats().held == 0)

    def test_a_reader_in_a_reference_cycle_is_collected(self, publisher, key):
        """It has events to destroy, and must still find its device when the collector takes it apart."""
        subscriber = Subscriber(key)
        for number in range(3):
            publisher.publish(gray(number))
            subscriber.next(5).release()
        cycle = [subscriber._ring, subscriber]
        cycle.append(cycle)
        del subscriber, cycle
        gc.collect()
        eventually(lambda: not publisher.subscribers)

    def test_streams(self, publisher, key):
        class Torch:
            cuda_stream = 1

        class Cupy:
            ptr = 0

        class Core:
            def __cuda_stream__(self):
                return (0, 2)

        for stream in (None, 0, 1, 2, Torch(), Cupy(), Core()):
            publisher.publish(gray(1), stream=stream)
            with Subscriber(key, start="latest", stream=stream) as subscriber:
                subscriber.next(5).release(stream=stream)
        with pytest.raises(TypeError, match="stream must be"):
            publisher.publish(gray(1), stream="main")

    def test_epoch_and_reconnect(self, key, memory):
        with Publisher(key, 64, 48, "gray8", memory=memory) as first:
            subscriber = Subscriber(key, mode="ordered", reconnect=True)
            first.publish(gray(1))
            before = subscriber.next(5)
        with Publisher(key, 64, 48, "gray8", memory=memory, ring_size=2) as second:
            with pytest.raises(cuframes.Timeout):
                subscriber.next(0.3)
            second.publish(gray(2))
            assert (subscriber.next(5).copy_to_host() == 2).all()
            assert (before.copy_to_host() == 1).all()
            subscriber.close()


def publish_unwritten(publisher):
    with publisher.acquire() as slot:
        pass
    return slot.seq


class Interface:
    """Only the CUDA array interface of a view."""

    def __init__(self, view):
        self.view = view
        self.__cuda_array_interface__ = view.__cuda_array_interface__


class TestForeignArrays:
    """What is given to a publisher of device memory; the host's side is in test_foreign_arrays.py."""

    @pytest.mark.skipif(driver.has_gpu() and driver.count() < 2, reason="there is one GPU only")
    def test_another_gpus_array_is_refused(self, key):
        with driver.current(driver.gpu(1)) as bindings:
            address = int(driver.call(bindings.cuMemAlloc, 48 * 64))
        with Publisher(key, 64, 48, "gray8", memory="cuda", device=0) as publisher:
            with pytest.raises(
                ValueError, match="the array is on cuda:1, but the publisher is on cuda:0; copy the array there first"
            ):
                publisher.publish(DeviceArray(address))
            assert publisher.stats().published == 0
            publish_gray(publisher, 1)
        with driver.current(driver.gpu(1)) as bindings:
            driver.call(bindings.cuMemFree, address)

    @pytest.mark.parametrize(
        ("change", "error", "said"),
        [
            ({"typestr": ">u2"}, TypeError, "type '>u2'"),
            ({"typestr": "|b1"}, TypeError, "convert it first"),
            ({"mask": gray(0)}, TypeError, "mask"),
            ({"shape": (48, 63)}, ValueError, "shape"),
            ({"shape": ()}, ValueError, "dimensions"),
            ({"strides": (64,)}, ValueError, "dimensions"),
            ({"strides": (-64, 1)}, ValueError, "must be contiguous"),
            ({"strides": (0, 1)}, ValueError, "must be contiguous"),
            ({"strides": (1, 48)}, ValueError, "must be contiguous"),
        ],
    )
    def test_what_cannot_be_copied_is_refused_before_a_slot_is_taken(self, publisher, change, error, said):
        source = DeviceArray(0x1000)
        source.__cuda_array_interface__ |= change
        for src in (source, [source]):
            with pytest.raises(error, match=said):
                publisher.publish(src)
        assert publisher.stats()[:2] == (0, 0)
        publish_gray(publisher, 1)

    def test_planes_of_the_host_and_of_the_device_together(self, key, memory):
        luma, chroma = gray(3), numpy.arange(24 * 32 * 2).astype(numpy.uint8).reshape(24, 32, 2)
        with Publisher(key, 64, 48, "nv12", memory=memory) as publisher, Subscriber(key) as subscriber:
            publisher.publish([luma, chroma])
            on_the_device = subscriber.next(5).planes[0]
            for turned in (chroma[::-1], numpy.broadcast_to(chroma[0], chroma.shape)):
                publisher.publish([Interface(on_the_device), turned])
                with subscriber.next(5) as frame:
                    assert (frame.planes[0].copy_to_host() == luma).all()
                    assert (frame.planes[1].copy_to_host() == turned).all()

    @pytest.mark.parametrize("second", [None, BufferError])
    def test_a_producers_own_reason_is_what_is_raised(self, publisher, second):
        second = second and second("the second")

        class Producer:
            def __init__(self, first):
                self.first = first

            def __dlpack_device__(self):
                return 2, driver.gpu().ordinal

            def __dlpack__(self, stream=None):
                raise self.first if stream is not None else second

        for reason in (BufferError("it requires grad"), RuntimeError("captured"), ValueError("no such stream")):
            with pytest.raises(type(reason), match=str(reason)):
                publisher.publish(Producer(reason))
        if second is not None:
            with pytest.raises(NotImplementedError, match="no streams here") as caught:
                publisher.publish(Producer(NotImplementedError("no streams here")))
            assert caught.value.__context__ is second
        assert publisher.stats()[:2] == (0, 0)


class DeviceArray:
    def __init__(self, address):
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (48, 64),
            "strides": None,
            "typestr": "|u1",
            "data": (address, False),
            "stream": 1,
        }


class TestCudaPool(Conformance):
    kind = "cuda"

    def create(self, frame_bytes, ring_size):
        return cuda.CudaPool.create(driver.gpu(), frame_bytes, ring_size)


class TestCudaIpcPool(Conformance):
    kind = "cuda-ipc"

    def create(self, frame_bytes, ring_size):
        return cuda.CudaIpcPool.create(driver.gpu(), frame_bytes, ring_size)

    def test_each_slot_has_blocks_of_its_own(self, pool):
        starts = sorted(pool.memory.addresses)
        assert all(b - a >= 2 << 20 for a, b in pairwise(starts))


class TestPending:
    """Frames go back when the GPU is done with them. The driver made for tests says when that is."""

    pytestmark = fake_only

    @pytest.fixture
    def gpu_busy(self):
        fake = ctypes.CDLL("libcuda.so.1")
        yield fake.fake_busy
        fake.fake_busy(0)

    def test_a_released_frame_waits_for_the_gpu(self, publisher, key, gpu_busy):
        with Subscriber(key, mode="ordered") as subscriber:
            publisher.publish(gray(1))
            frame = subscriber.next(5)
            gpu_busy(1)
            frame.release()
            assert subscriber.stats().held == 1
            seqs = [publish_unwritten(publisher) for n in range(8)]
            assert all(seq % 4 != 1 for seq in seqs)
            gpu_busy(0)
            eventually(lambda: subscriber.stats().held == 0)
            assert 1 in [publish_gray(publisher, n) % 4 for n in range(4)]

    def test_an_upload_is_never_waited_for(self, publisher, key, gpu_busy):
        gpu_busy(1)
        for number in range(4):
            publisher.publish(gray(number))
        with pytest.raises(cuframes.FrameDropped, match="the GPU is still copying the frame"):
            publisher.publish(gray(4))
        assert publisher.stats()[:2] == (4, 1)
        gpu_busy(0)
        assert publisher.publish(gray(5)) == 5

    def test_sources_live_until_they_have_been_read(self, publisher, key, gpu_busy):
        """Also when the GPU is more than a ring behind: a decoder must not reuse a surface still to be copied."""
        with Publisher(f"{key}-d", 64, 48, "gray8", memory="cuda") as origin, Subscriber(f"{key}-d") as subscriber:
            origin.publish(gray(1))
            frame = subscriber.next(5)
            gpu_busy(1)
            alive = []
            for _ in range(6):
                source = Interface(frame)
                alive.append(weakref.ref(source))
                publisher.publish(source)
            with publisher.acquire() as slot:
                for _ in range(2):
                    source = Interface(frame)
                    alive.append(weakref.ref(source))
                    slot.copy_from(source)
            del source
            gc.collect()
            kept = [ref() is not None for ref in alive]
            gpu_busy(0)  # before anything can fail: closing waits for the GPU
            publish_unwritten(publisher)
            gc.collect()
            assert all(kept)
            assert all(ref() is None for ref in alive)

    def test_a_tensor_that_dies_first_waits_for_its_stream(self, publisher, key, gpu_busy):
        with Subscriber(key, mode="ordered") as subscriber:
            publisher.publish(gray(1))
            frame = subscriber.next(5)
            capsule = frame.__dlpack__(stream=0x1234)
            gpu_busy(1)
            del frame
            del capsule
            assert subscriber.stats().held == 1
            gpu_busy(0)
            eventually(lambda: subscriber.stats().held == 0)

    def test_taking_waits_for_the_gpu_instead_of_refusing(self, publisher, key, gpu_busy):
        import threading

        with Subscriber(key, mode="ordered", max_held=1) as subscriber:
            publisher.publish(gray(1))
            publisher.publish(gray(2))
            gpu_busy(1)
            subscriber.next(5).release()
            with pytest.raises(cuframes.Timeout):
                subscriber.next(0.05)
            threading.Timer(0.1, gpu_busy, [0]).start()
            assert subscriber.next(10).frame_no == 2

    def test_a_frame_that_is_held_is_still_refused(self, publisher, key):
        with Subscriber(key, mode="ordered", max_held=1) as subscriber:
            publisher.publish(gray(1))
            publisher.publish(gray(2))
            kept = subscriber.next(5)
            with pytest.raises(cuframes.TooManyHeld):
                subscriber.next(0)
            del kept

    def test_a_stream_that_is_gone_is_no_reason_to_keep_the_frame(self, publisher, key):
        with Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            subscriber.next(5).release(stream=0xDEAD)
            eventually(lambda: subscriber.stats().held == 0)

    def test_driver_errors_have_name_and_text(self, publisher, key):
        with pytest.raises(cuframes.DeviceError, match=r"CUDA_ERROR_INVALID_HANDLE \(as the fake driver says\)"):
            publisher.publish(gray(1), stream=0xDEAD)
        assert publisher.publish(gray(1)) >= 1
        with Subscriber(key, stream=0xDEAD, start="latest") as subscriber:
            with pytest.raises(cuframes.DeviceError, match="waiting for the frame's event"):
                subscriber.next(5)
            assert subscriber.stats().held == 0

    def test_fallback_is_said(self, key, monkeypatch, caplog):
        monkeypatch.setenv("FAKE_CUDA_NO_VMM", "1")
        with Publisher(key, 64, 48, "gray8", memory="cuda") as publisher:
            assert publisher.memory == "cuda-ipc"
            assert find_publisher(key).memory == "cuda-ipc"
            assert "falls back to 'cuda-ipc': allocating" in caplog.text

    def test_no_events_or_mappings_are_left(self, key, memory):
        fake = ctypes.CDLL("libcuda.so.1")
        gc.collect()
        before = fake.fake_events(), fake.fake_mappings(), free_bytes()
        with Publisher(key, 64, 48, "gray8", memory=memory) as publisher, Subscriber(key) as subscriber:
            publisher.publish(gray(1))
            subscriber.next(5)
        del publisher, subscriber
        gc.collect()
        assert (fake.fake_events(), fake.fake_mappings(), free_bytes()) == before


class TestOtherProcesses:
    def test_frames_arrive_whole(self, publisher, key):
        with (
            Worker("device_consumer.py", key) as ordered,
            Worker("device_consumer.py", key, "--mode", "newest") as newest,
        ):
            for number in range(1, 201):
                publish_gray(publisher, number)
            publisher.close()
            for worker in (ordered, newest):
                result = worker.result()
                assert result["torn"] == 0
                assert result["received"] + result["lost"] + result["skipped"] == 200

    def test_killed_subscribers_give_everything_back(self, publisher, key):
        for _ in range(5):
            with Worker("device_consumer.py", key, "--hold") as worker:
                publisher.publish(gray(publisher.stats().published + 1))
                assert worker.read() == "holding"
                worker.kill()
            eventually(lambda: not publisher.subscribers)
        seqs = {publish_gray(publisher, 1) % 4 for _ in range(8)}
        assert seqs == {0, 1, 2, 3}

    def test_a_held_frame_outlives_a_killed_publisher(self, key, memory):
        with Worker("device_producer.py", key, memory, 0.01) as producer:
            with Worker("device_consumer.py", key, "--hold") as consumer:
                assert consumer.read() == "holding"
                producer.kill()
                consumer.tell()
                assert consumer.read() is True
                assert consumer.result()["torn"] == 0
        with Publisher(key, 64, 48, "gray8", memory=memory):
            pass
        collect_garbage([key])

    def test_a_held_frame_outlives_a_closed_publisher(self, key, memory):
        publisher = Publisher(key, 64, 48, "gray8", memory=memory)
        with Worker("device_consumer.py", key, "--hold") as consumer:
            publisher.publish(gray(1))
            assert consumer.read() == "holding"
            publisher.close()
            del publisher
            gc.collect()
            consumer.tell()
            assert consumer.read() is True
            consumer.result()

    def test_subscribe_and_close_leaves_nothing(self, key, memory):
        """In the subscriber's process: no descriptor, no device memory, no host memory more than before."""
        rounds = 200 if FAKE else 10_000
        script = f"""
import gc, os, json, resource
import cuframes
from cuframes.memory import cuda, driver
def measure():
    gc.collect()
    with driver.current(driver.gpu()) as bindings:
        free = driver.call(bindings.cuMemGetInfo)[0]
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    return len(os.listdir("/proc/self/fd")), free, resident
def once():
    with cuframes.Subscriber({key!r}, start="latest") as subscriber:
        subscriber.next(5).planes[0].copy_to_host()
for _ in range(50): once()
before = measure()
for _ in range({rounds}): once()
after = measure()
print(json.dumps([before, after]))
"""
        with Publisher(key, 64, 48, "gray8", memory=memory) as publisher:
            publisher.publish(gray(1))
            fds = descriptors()
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=110)
            assert done.returncode == 0, done.stderr
            before, after = json.loads(done.stdout)
            assert after[0] == before[0]
            assert after[1] >= before[1] - (4 << 20)
            assert after[2] - before[2] < 8 << 20
            eventually(lambda: descriptors() <= fds)

    def test_devices_are_matched_by_uuid(self, key, memory, monkeypatch):
        if driver.count() < 2:
            pytest.skip("there is one GPU only")
        with Publisher(key, 64, 48, "gray8", memory=memory, device=1) as publisher:
            with pytest.raises(cuframes.DeviceError, match=r"the frames are on GPU-\S+ .cuda:1., device=0 is GPU-"):
                Subscriber(key, device=0)
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # there the same GPU is cuda:0
            with Worker("device_consumer.py", key, "--device", 0) as worker:
                publisher.publish(gray(1))
                publisher.close()
                assert worker.result() == {"torn": 0, "received": 1, "lost": 0, "skipped": 0}

    def test_a_subscriber_that_does_not_see_the_device_is_told(self, key, memory, monkeypatch):
        if driver.count() < 2:
            pytest.skip("there is one GPU only")
        with Publisher(key, 64, 48, "gray8", memory=memory, device=1):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
            code = f"import cuframes\ntry: cuframes.Subscriber({key!r})\nexcept cuframes.DeviceError as e: print(e)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
            assert "which this process does not see; it sees GPU-" in done.stdout

    def test_a_forked_child_is_refused(self, key, memory):
        code = f"""
import warnings; warnings.simplefilter("ignore")
import os, cuframes
publisher = cuframes.Publisher({key!r}, 64, 48, "gray8", memory={memory!r})
publisher.publish(bytes(64 * 48))
if os.fork() == 0:
    for attempt in (lambda: publisher.publish(bytes(64 * 48)), lambda: cuframes.Publisher({key!r} + "-c", 64, 48,
    memory={memory!r})):
        try:
            attempt()
        except (RuntimeError, cuframes.DeviceError) as problem:
            print("refused:", problem, flush=True)
    os._exit(0)
os.wait()
print(publisher.publish(bytes(64 * 48)))
publisher.close()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        lines = done.stdout.splitlines()
        assert [line.startswith("refused:") for line in lines] == [True, True, False], done.stdout + done.stderr
        assert lines[2] == "2"


def test_plain_version_3_client(key, runtime_dir):
    """What a C program that knows only version 3 reads: handles of every slot, by the published offsets."""
    with Publisher(key, 64, 48, "gray8", ring_size=4, memory="cuda-ipc") as publisher:
        publisher.publish(gray(1))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(runtime_dir / f"{key}.sock"))
        client.sendall(wire.Hello(3, "plain", 0, False).pack() + wire.pack(wire.MessageType.SUBSCRIBE_REQ))
        eventually(lambda: publisher.subscribers)
        raw = Path(f"/dev/shm/cuframes-{key}").read_bytes()
        handles = [raw[256 + 192 * k + 32 : 256 + 192 * k + 96] for k in range(4)]
        events = [raw[7424 + 64 * k : 7424 + 64 * k + 64] for k in range(4)]
        assert len(set(handles)) == 4
        assert all(map(any, handles))
        assert all(map(any, events))
        assert any(raw[128:192])
        assert struct.unpack_from("<Q", raw, 40) == (0,)
        client.close()


@pytest.fixture(scope="module")
def v3_client(tmp_path_factory):
    program = tmp_path_factory.mktemp("v3") / "v3_client"
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += [str(Path(__file__).parent / "c" / "v3_client.c"), "-o", str(program), "-ldl", "-lrt"]
    subprocess.run(command, check=True, timeout=60)
    return program


def test_a_c_program_of_version_3_reads_our_frames(key, runtime_dir, v3_client):
    """Over the socket, by handle, after the slot's event; the sequence number is the colour."""
    with Publisher(key, 64, 48, "gray8", ring_size=8, memory="cuda-ipc") as publisher:
        child = subprocess.Popen([v3_client, runtime_dir / f"{key}.sock", "50"], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        assert [s.name for s in publisher.subscribers] == ["plain-c"]
        while child.poll() is None:
            publish_gray(publisher, publisher.stats().seq + 1)
            time.sleep(0.001)
        assert child.stdout.read() == "ok 50\n"
        child.stdout.close()
        assert child.returncode == 0
        eventually(lambda: not publisher.subscribers)


def test_our_subscriber_joins_a_plain_version_3_publisher(key):
    """No features, no descriptors: by path, by handle, without pins."""
    with Publisher(key, 64, 48, "gray8", ring_size=4, memory="cuda-ipc") as publisher:
        publisher._server._welcome = publisher._server._welcome._replace(features=0)
        publisher._server._descriptors, kept = [], publisher._server._descriptors
        with open(f"/dev/shm/cuframes-{key}", "r+b") as file:
            file.seek(64 + 32)
            file.write(bytes(16))  # no UUID
        code = f"""
import cuframes
with cuframes.Subscriber({key!r}, mode="ordered", start="oldest", device=0) as subscriber:
    print((subscriber.next(5).copy_to_host() == 1).all(), flush=True)
    frame = subscriber.next(5)
    input()
    try:
        frame.release()
    except cuframes.Overwritten:
        print("overwritten")
"""
        publisher._server._welcome = publisher._server._welcome._replace(
            meta=publisher._server._welcome.meta[:32] + bytes(32)
        )
        publisher.publish(gray(1))
        publisher.publish(gray(2))
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "True\n"
        eventually(lambda: publisher.subscribers[0].held == 1)
        for n in range(8):
            publish_gray(publisher, n)
        out, _ = child.communicate("\n", timeout=30)
        assert out == "overwritten\n"
        publisher._server._descriptors = kept


class TestExternal:
    """The caller's buffers."""

    @pytest.fixture
    def allocate(self):
        with driver.current(driver.gpu()) as bindings:
            made = []

            def allocate(size, how="cuMemAlloc"):
                arguments = {"cuMemAlloc": (), "cuMemAllocManaged": (1,), "cuMemAllocAsync": (0,)}[how]
                made.append(driver.call(getattr(bindings, how), size, *arguments))
                return int(made[-1])

            yield allocate
            for address in made:
                driver.call(bindings.cuMemFree, address)

    def test_parts_of_one_allocation(self, key, allocate):
        base = allocate(4 * 8192)
        buffers = [base + 256 + 8192 * k for k in range(4)]
        with Publisher.external(key, buffers, 64, 48, "gray8") as publisher:
            assert publisher.memory == find_publisher(key).memory == "cuda-external"
            with Worker("device_consumer.py", key) as worker, Subscriber(key, mode="ordered") as here:
                for number in range(1, 9):
                    with publisher.acquire() as slot:
                        assert slot.__cuda_array_interface__["data"] == (buffers[slot.slot], False)
                        slot.copy_from(gray(number))
                    assert (here.next(5).copy_to_host() == number).all()
                publisher.close()
                result = worker.result()
                assert result["torn"] == 0
                assert result["received"] + result["lost"] == 8

    def test_pointers_are_announced(self, key, allocate):
        buffers = [allocate(8192) for _ in range(3)]
        with Publisher.external(key, list(numpy.array(buffers, numpy.uint64)), 64, 48, "gray8") as publisher:
            raw = Path(f"/dev/shm/cuframes-{key}").read_bytes()
            assert struct.unpack_from("<Q", raw, 40) == (1,)
            assert [struct.unpack_from("<Q", raw, 256 + 192 * k + 96)[0] for k in range(3)] == buffers
            assert publisher._server._welcome.ownership == 1

    @pytest.mark.parametrize(
        ("how", "said"),
        [("cuMemAllocManaged", "managed memory"), ("cuMemAllocAsync", "stream-ordered pool")],
    )
    def test_memory_that_cannot_be_shared_is_refused_by_name(self, key, allocate, how, said):
        buffers = [allocate(8192), allocate(8192, how)]
        with pytest.raises(cuframes.DeviceError, match=f"buffer 1 .*{said}"):
            Publisher.external(key, buffers, 64, 48, "gray8")

    def test_bad_buffers(self, key, allocate):
        with pytest.raises(ValueError, match="2 to 16"):
            Publisher.external(key, [allocate(8192)], 64, 48, "gray8")
        with pytest.raises(ValueError, match=r"buffer 1 has \d+ bytes up to the end of its allocation"):
            Publisher.external(key, [allocate(8192), allocate(64) + 32], 64, 48, "gray8")
        host = numpy.zeros(8192, numpy.uint8)
        with pytest.raises(cuframes.DeviceError, match=r"buffer 0 .*not GPU memory"):
            Publisher.external(key, [host.ctypes.data] * 2, 64, 48, "gray8")
        with pytest.raises(TypeError, match="device array or a device address"):
            Publisher.external(key, ["a", "b"], 64, 48, "gray8")


def test_auto_means_cuda_where_there_is_a_gpu(key):
    with Publisher(key, 64, 48, "gray8") as publisher:
        assert publisher.memory == "cuda"
        assert find_publisher(key).memory == "cuda"
    with pytest.raises(cuframes.DeviceError, match="there is no GPU cuda:99"):
        Publisher(key, 64, 48, "gray8", memory="cuda", device=99)
    for wrong in (True, 0.0, "0"):
        with pytest.raises(TypeError, match="device must be an int, not"):
            Publisher(key, 64, 48, "gray8", memory="cuda", device=wrong)
        with pytest.raises(TypeError, match="device must be an int, not"):
            Subscriber(key, device=wrong)
    with Publisher(key, 64, 48, "gray8", memory="host"):
        with pytest.raises(cuframes.DeviceError, match="host memory"):
            Subscriber(key, device=0)


def test_closing_gives_the_device_memory_back(key, memory):
    before = free_bytes()
    with Publisher(key, 1920, 1080, "rgba", memory=memory, ring_size=16) as publisher:
        publisher.publish(bytes(1920 * 1080 * 4))
        assert before - free_bytes() >= 16 * 1920 * 1080 * 4
    # Closing is enough; the object may live on.
    assert free_bytes() >= before - (4 << 20)


def test_demo_on_the_gpu(clip, tmp_path):
    pytest.importorskip("typer")
    command = [sys.executable, "-P", "-m", "cuframes", "demo", "--source", clip, "--seconds", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["torn"], summary["memory"]) == (0, "cuda")
    assert summary["received"] > 100
    assert FAKE or summary["decoder"] == "nvdec"
    assert (tmp_path / "demo.png").stat().st_size > 100_000
