"""What needs a real GPU: ordering between processes, read-only mappings, other libraries, NVDEC."""

import contextlib
import gc
import json
import random
import subprocess
import sys
import threading
import time

import numpy
import pytest
from harness import Worker, eventually
from test_device import FAKE, free_bytes, gray

from cuframes import DeviceError, FrameDropped, PacketReader, Publisher, Subscriber, wait_any
from cuframes.memory import driver
from cuframes.session.listing import collect_garbage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(FAKE or not driver.has_gpu(), reason="there is no GPU here"),
    pytest.mark.timeout(300),
]
FRAMES = 2000


@pytest.fixture(params=["cuda", "cuda-ipc"])
def memory(request):
    return request.param


def test_frames_written_and_verified_by_kernels(key, memory):
    """1 publisher, 4 subscribers of which 2 are slow, 2000 frames of 1080p: none torn, none stale."""
    forms = [
        ("--by", "dlpack"),
        ("--by", "interface", "--mode", "newest"),
        ("--by", "torch", "--delay-us", "2000"),
        ("--by", "dlpack", "--delay-us", "1000", "--mode", "newest"),
    ]
    with Worker("gpu_producer.py", key, memory, FRAMES, 200) as producer, contextlib.ExitStack() as stack:
        consumers = [stack.enter_context(Worker("gpu_consumer.py", key, *form)) for form in forms]
        producer.tell()
        time.sleep(0.5)
        producer.tell()
        made = producer.result(200)
        assert made["published"] == FRAMES
        for consumer in consumers:
            seen = consumer.result(100)
            assert seen["torn"] == 0, seen
            assert seen["received"] + seen["lost"] + seen["skipped"] == seen["last"]
            assert seen["received"] > 100
        print({"memory": memory, **made})


def test_writing_through_a_subscribers_mapping_fails(key):
    with Publisher(key, 64, 48, "gray8", memory="cuda") as publisher:
        with Worker("device_consumer.py", key, "--write") as worker:
            publisher.publish(gray(7))
            assert worker.read() == {"read_only": True, "device": "cuda:0"}
            code = f"""
import cupy, cuframes
with cuframes.Subscriber({key!r}, start="latest") as subscriber:
    try:
        view = cupy.asarray(subscriber.next(5).planes[0])
        view.fill(9)
        cupy.cuda.Device().synchronize()
        print("written")
    except Exception as problem:
        print("refused", type(problem).__name__, flush=True)
        import os; os._exit(0)
"""
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
            assert done.stdout.startswith("refused"), done.stdout + done.stderr
        with Subscriber(key, start="latest") as subscriber:
            assert (subscriber.next(5).copy_to_host() == 7).all()


def test_killed_while_kernels_run(key, memory):
    """Subscribers, then the publisher: the others go on, and the device memory comes back."""
    chance = random.Random(5)
    gc.collect()
    with Publisher(f"{key}-w", 64, 48, "gray8", memory=memory):
        pass
    before = free_bytes()
    with Worker("gpu_producer.py", key, memory, 1_000_000, 100) as producer:
        with Worker("gpu_consumer.py", key) as bystander:
            producer.tell()
            for _ in range(5):
                with Worker("gpu_consumer.py", key, "--delay-us", 3000) as victim:
                    time.sleep(0.2 + chance.random() * 0.1)
                    victim.kill()
            producer.kill()
            seen = bystander.result(60)
            assert seen["torn"] == 0
            assert seen["received"] > 50
    eventually(lambda: free_bytes() >= before - (8 << 20), 30)
    with Publisher(key, 1920, 1080, "nv12", memory=memory) as successor:
        assert successor.publish(bytes(1920 * 1620)) == 1
    collect_garbage([key])


def test_other_libraries_see_the_frame_in_place(key, memory):
    cupy = pytest.importorskip("cupy")
    torch = pytest.importorskip("torch")
    planes = [numpy.arange(1080 * 1920).astype(numpy.uint8).reshape(1080, 1920)]
    planes.append(numpy.arange(540 * 1920).astype(numpy.uint8).reshape(540, 960, 2) ^ 0x5A)
    with Publisher(key, 1920, 1080, "nv12", memory=memory) as publisher, Subscriber(key) as subscriber:
        publisher.publish(planes)
        frame = subscriber.next(5)
        for sent, plane in zip(planes, frame.planes, strict=True):
            address = plane.__cuda_array_interface__["data"][0]
            tensor = torch.from_dlpack(plane)
            assert (tensor.cpu().numpy() == sent).all()
            assert (tensor.data_ptr(), tensor.device.type) == (address, "cuda")
            for array in (cupy.from_dlpack(plane), cupy.asarray(plane)):
                assert (array.get() == sent).all()
                assert array.data.ptr == address
        numba_cuda = pytest.importorskip("numba.cuda")
        assert (numba_cuda.as_cuda_array(frame.planes[0]).copy_to_host() == planes[0]).all()
        av = pytest.importorskip("av")
        with driver.current(driver.gpu()):
            video = av.VideoFrame.from_dlpack(frame.planes, format="nv12", current_ctx=True)
        assert (video.width, video.height) == (1920, 1080)
        # And back: what they make is published without a detour over the host.
        for source in (
            [torch.from_dlpack(p) for p in frame.planes],
            [cupy.asarray(p).copy() for p in frame.planes],
            torch.cat([torch.from_dlpack(p).reshape(-1, 1920) for p in frame.planes]),
            video,
        ):
            publisher.publish(source)
            with subscriber.next(5) as copy:
                assert (copy.planes[0].copy_to_host() == planes[0]).all()
                assert (copy.planes[1].copy_to_host() == planes[1]).all()


def test_a_tensor_that_outlives_its_frame_keeps_the_slot_until_its_stream_is_done(key, memory):
    torch = pytest.importorskip("torch")
    with Publisher(key, 1920, 1080, "nv12", memory=memory, ring_size=4) as publisher, Subscriber(key) as subscriber:
        publisher.publish(numpy.full((1620, 1920), 1, numpy.uint8))
        side = torch.cuda.Stream()
        int(torch.zeros(1620, 1920, dtype=torch.uint8, device="cuda").sum(dtype=torch.int64))  # loads the kernels
        torch.cuda._sleep(1000)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            tensor = torch.from_dlpack(subscriber.next(5))
            torch.cuda._sleep(int(2e8))  # about 0.1 s
            total = tensor.sum(dtype=torch.int64)
            del tensor
        assert subscriber.stats().held == 1
        for n in range(2, 10):
            with contextlib.suppress(FrameDropped):
                publisher.publish(numpy.full((1620, 1920), n, numpy.uint8))
        eventually(lambda: subscriber.stats().held == 0)
        assert int(total) == 1620 * 1920


SECOND = int(1.5e9)  # clock ticks that torch.cuda._sleep is given for about a second


def warm_up(torch):
    """Load the kernels: the first launch of each waits for the GPU."""
    int(torch.zeros(64, dtype=torch.uint8, device="cuda").sum(dtype=torch.int64))
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()


def fill_frame(publisher, value=1):
    """Publish; a slot that is still pending is waited for."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return publisher.publish(numpy.full((48, 64), value, numpy.uint8))
        except FrameDropped:
            assert time.monotonic() < deadline
            time.sleep(0.002)


def test_three_sleepers_whose_kernels_run(key, memory):
    """Every slot is pending, all subscribers sleep, and the ring goes on when the kernels are over."""
    torch = pytest.importorskip("torch")
    warm_up(torch)
    with Publisher(key, 64, 48, "gray8", memory=memory, ring_size=4) as publisher, contextlib.ExitStack() as stack:
        subscribers = [stack.enter_context(Subscriber(key, name=name)) for name in "abc"]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(SECOND)
        for taker in (*subscribers, None):
            fill_frame(publisher)
            for subscriber in subscribers if taker is None else [taker]:
                with torch.cuda.stream(side):
                    tensor = torch.from_dlpack(subscriber.next(5))
                    tensor.sum()
                    del tensor
        assert [s.held for s in publisher.subscribers] == [2, 2, 2]
        got = []
        threads = [threading.Thread(target=lambda s=s: got.extend(wait_any([s], 20))) for s in subscribers]
        for thread in threads:
            thread.start()
        fill_frame(publisher)
        for thread in threads:
            thread.join(30)
        assert len(got) == 3


def test_a_graph_capture_of_another_thread_is_not_disturbed(key, memory):
    cupy = pytest.importorskip("cupy")
    torch = pytest.importorskip("torch")
    warm_up(torch)
    with Publisher(key, 64, 48, "gray8", memory=memory) as publisher, Subscriber(key, mode="ordered") as subscriber:

        def frames(count):
            for _ in range(count):
                fill_frame(publisher)
                # Of the other pool than the stream that is captured: PyTorch hands its few streams out in turn.
                side = torch.cuda.Stream(priority=-1)
                with torch.cuda.stream(side):
                    tensor = torch.from_dlpack(subscriber.next(5))
                    torch.cuda._sleep(SECOND // 50)
                    del tensor
                assert subscriber.stats().held >= 1
                eventually(lambda: subscriber.stats().held == 0)

        frames(2)
        buffer = torch.zeros(64, device="cuda")
        array = cupy.zeros(64, numpy.float32)
        array += 1
        graph = torch.cuda.CUDAGraph()
        problems = []

        def work():
            try:
                frames(10)
            except BaseException as problem:
                problems.append(problem)

        for library in ("torch", "cupy"):
            thread = threading.Thread(target=work)
            if library == "torch":
                with torch.cuda.graph(graph):
                    buffer += 1
                    thread.start()
                    thread.join(60)
                graph.replay()
            else:
                with cupy.cuda.Stream(non_blocking=True) as stream:
                    stream.begin_capture()
                    cupy.add(array, 1, out=array)
                    thread.start()
                    thread.join(60)
                    stream.end_capture().launch(stream)
                    stream.synchronize()
            assert not problems
        torch.cuda.synchronize()
        assert float(buffer[0]) == 1
        assert float(array[0]) == 2


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_frame_in_a_captured_graph_is_refused(key, memory):
    torch = pytest.importorskip("torch")
    warm_up(torch)
    with Publisher(key, 64, 48, "gray8", memory=memory) as publisher, Subscriber(key) as subscriber:
        fill_frame(publisher, 7)
        frame = subscriber.next(5)
        side = torch.cuda.Stream()
        with pytest.raises(DeviceError, match="a CUDA graph is being captured"):
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side):
                torch.from_dlpack(frame)
        with torch.cuda.stream(side):
            # One that was made before, used in the graph, and dies in it, goes back after the capture.
            tensor = torch.from_dlpack(frame)
            out = torch.empty_like(tensor)
            side.synchronize()
            del frame
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side):
                out.copy_(tensor)
                del tensor
                time.sleep(0.05)
                held = [s.held for s in publisher.subscribers]
        assert held == [1]
        eventually(lambda: [s.held for s in publisher.subscribers] == [0])
        fill_frame(publisher, 8)
        assert (subscriber.next(5).copy_to_host() == 8).all()


@pytest.mark.parametrize("how", ["cupy", "handle"])
def test_a_stream_that_is_destroyed_before_the_array(key, memory, how):
    """The driver crashes when such a stream is used, so this is another process."""
    pytest.importorskip("cupy")
    code = f"""
import cupy, gc, time, cuframes
from cuframes.memory import driver
spin = cupy.RawKernel('extern "C" __global__ void spin(long long n)' + "{{ long long t = clock64();"
                      " while (clock64() - t < n); }}", "spin")
spin((1,), (1,), (1,))
cupy.cuda.Device().synchronize()
with cuframes.Subscriber({key!r}, start="latest") as subscriber:
    frame = subscriber.next(5)
    if {how!r} == "cupy":
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            array = cupy.from_dlpack(frame)
            spin((1,), (1,), ({SECOND} // 2,))
        del stream
    else:
        with driver.current(driver.gpu()) as bindings:
            stream = driver.call(bindings.cuStreamCreate, 1)
            array = frame.__dlpack__(stream=int(stream))
            with cupy.cuda.ExternalStream(int(stream)):
                spin((1,), (1,), ({SECOND} // 2,))
            driver.call(bindings.cuStreamDestroy, stream)
    frame.release()
    del array
    gc.collect()
    held = subscriber.stats().held
    deadline = time.monotonic() + 20
    while subscriber.stats().held and time.monotonic() < deadline:
        time.sleep(0.01)
    print(held, subscriber.stats().held)
"""
    with Publisher(key, 64, 48, "gray8", memory=memory) as publisher:
        fill_frame(publisher)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout) == (0, "1 0\n"), done.stderr


def test_other_threads_run_while_a_frame_is_copied_to_the_host(key, memory):
    torch = pytest.importorskip("torch")
    warm_up(torch)
    with Publisher(key, 64, 48, "gray8", memory=memory) as publisher, Subscriber(key) as subscriber:
        fill_frame(publisher, 5)
        frame = subscriber.next(5)
        turns = []
        over = threading.Event()

        def count():
            while not over.wait(0.001):
                turns.append(time.monotonic())

        thread = threading.Thread(target=count)
        thread.start()
        with torch.cuda.stream(torch.cuda.default_stream()):
            torch.cuda._sleep(SECOND)
        begun = time.monotonic()
        assert (frame.copy_to_host() == 5).all()
        ended = time.monotonic()
        over.set()
        thread.join()
        assert ended - begun > 0.1, "the copy did not wait for the kernel, so this shows nothing"
        assert len([t for t in turns if begun < t < ended]) > 20


def test_a_host_callback_may_need_the_interpreter(key, memory):
    """The GPU goes on when Python has run, while one thread closes and another releases."""
    cupy = pytest.importorskip("cupy")
    with Publisher(key, 64, 48, "gray8", memory=memory) as publisher:
        subscriber = Subscriber(key, mode="ordered", max_held=4)
        for _ in range(2):
            fill_frame(publisher)
        first, second = subscriber.next(5), subscriber.next(5)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            arrays = [cupy.from_dlpack(first), cupy.from_dlpack(second)]
            called = []

            def callback(_):
                for _ in range(100):
                    time.sleep(0.001)
                called.append(True)

            stream.launch_host_func(callback, None)
            first.release()
            second.release()
            arrays.pop()
            closing = threading.Thread(target=subscriber.close)
            closing.start()
            arrays.pop()
            closing.join(30)
            assert not closing.is_alive()
            stream.synchronize()
        assert called
        del first, second, subscriber
        eventually(lambda: not publisher.subscribers)


def test_nvdec_frames_are_those_of_the_cpu_decoder(key, clip):
    av = pytest.importorskip("av")
    command = [
        sys.executable,
        "-P",
        "-m",
        "cuframes",
        "publish",
        key,
        "--source",
        clip,
        "--memory",
        "cuda",
        "--fps",
        "0",
    ]
    command += ["--policy", "strict_wait", "--wait-for", "1", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with Subscriber(key, mode="ordered", connect_timeout=60) as subscriber, av.open(clip) as container:
        count = 0
        for expected, frame in zip(container.decode(video=0), subscriber, strict=False):
            luma, chroma = (plane.copy_to_host() for plane in frame.planes)
            reference = expected.reformat(format="nv12").to_ndarray()
            assert (luma == reference[:720]).all(), f"frame {count}"
            assert (chroma.reshape(360, 1280) == reference[720:]).all(), f"frame {count}"
            assert frame.pts_ns == int(expected.pts * expected.time_base * 1_000_000_000)
            del frame
            count += 1
        for frame in subscriber:
            del frame
            count += 1
    out, _ = child.communicate(timeout=60)
    report = json.loads(out.splitlines()[-1])
    assert (count, report["decoder"], report["memory"], report["dropped"]) == (132, "nvdec", "cuda", 0)


def test_frames_decoded_by_nvdec_have_the_pts_of_their_packets(key, clip):
    """The source is read once; what the decoder was probed with is passed on as well."""
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "cuframes", "publish", key, "--source", clip, "--packets", "--memory", "cuda"]
    child = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    with PacketReader(key, "oldest", connect_timeout=60) as reader, Subscriber(key, mode="ordered") as subscriber:
        frames = [frame.pts_ns for frame in subscriber]
        packets = list(reader)
    report = json.loads(child.communicate(timeout=60)[0].splitlines()[-1])
    assert child.returncode == 0
    assert (report["decoder"], report["packets"]) == ("nvdec", 132)
    assert [packet.seq for packet in packets] == list(range(1, 133))
    assert packets[0].keyframe
    assert len(frames) > 60
    assert set(frames) <= {packet.pts_ns for packet in packets}
