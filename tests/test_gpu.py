"""What needs a real GPU: ordering between processes, read-only mappings, other libraries, NVDEC."""

import contextlib
import gc
import json
import random
import subprocess
import sys
import time

import numpy
import pytest
from harness import Worker, eventually
from test_device import FAKE, free_bytes, gray

from cuframes import FrameDropped, PacketReader, Publisher, Subscriber
from cuframes.listing import collect_garbage
from cuframes.memory import driver

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
    report = json.loads(out)
    assert (count, report["decoder"], report["memory"], report["dropped"]) == (132, "nvdec", "cuda", 0)


def test_frames_decoded_by_nvdec_have_the_pts_of_their_packets(key, clip):
    """The source is read once; what the decoder was probed with is passed on as well."""
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "cuframes", "publish", key, "--source", clip, "--packets", "--memory", "cuda"]
    child = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    with PacketReader(key, "oldest", connect_timeout=60) as reader, Subscriber(key, mode="ordered") as subscriber:
        frames = [frame.pts_ns for frame in subscriber]
        packets = list(reader)
    report = json.loads(child.communicate(timeout=60)[0])
    assert child.returncode == 0
    assert (report["decoder"], report["packets"]) == ("nvdec", 132)
    assert [packet.seq for packet in packets] == list(range(1, 133))
    assert packets[0].keyframe
    assert len(frames) > 60
    assert set(frames) <= {packet.pts_ns for packet in packets}
