"""Benchmarks of the device path, each compared with its floor and with a peer measured in the same run.

    python bench/gpu.py [--json FILE]

Floor: the driver's own calls from C (``floor_cuda.c``). Peer: ``torch.multiprocessing``, handing over the same tensor.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import percentiles

import cuframes
from cuframes.memory import driver

HERE = Path(__file__).parent
SHAPE = (1620, 1920)  # 1080p NV12
SUBSCRIBER = """
import json, sys
import cupy, numpy, cuframes
key, wait, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
SOURCE = 'extern "C" __global__ void touch(const unsigned char *p, unsigned *out) { *out += *p; }'
kernel = cupy.RawKernel(SOURCE, "touch")
out = cupy.zeros(1, cupy.uint32)
stream = cupy.cuda.Stream(non_blocking=True)
with stream, cuframes.Subscriber(key, mode="ordered", wait=wait, stream=stream) as subscriber:
    taken, launched = [], []
    for frame in subscriber:
        now = cuframes.monotonic_ns()
        pointer = cupy.uintp(frame.planes[0].__cuda_array_interface__["data"][0])
        kernel((1,), (1,), (pointer, out))
        then = cuframes.monotonic_ns()
        taken.append(now - frame.published_ns)
        launched.append(then - frame.published_ns)
        frame.release(stream)
print(json.dumps([taken[100:], launched[100:]]))
"""


def floor():
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "floor"
        subprocess.run(["gcc", "-O2", str(HERE / "floor_cuda.c"), "-o", str(program), "-ldl"], check=True)
        rounds = [json.loads(subprocess.run([program], capture_output=True, check=True).stdout) for _ in range(3)]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def calls(memory, count=3000):
    """Publishing in place, taking, and releasing, one after the other in one process; medians in nanoseconds.

    The floor of publishing is two event records (the slot's and the ring's), that of taking one stream wait.
    """
    clock = time.perf_counter_ns
    publish, take, release, nothing = [], [], [], []
    gpu = driver.gpu()
    with (
        cuframes.Publisher(f"bench-{os.getpid()}", 1920, 1080, memory=memory) as publisher,
        cuframes.Subscriber(f"bench-{os.getpid()}", mode="ordered") as subscriber,
    ):
        for n in range(count):
            slot = publisher.acquire()
            a = clock()
            with slot:
                pass
            b = clock()
            frame = subscriber.next()
            c = clock()
            frame.release()
            d = clock()
            e = clock()
            publish.append(b - a)
            take.append(c - b)
            release.append(d - c)
            nothing.append(e - d)
            if n % 50 == 0:
                gpu.synchronize_stream(None)
    own = statistics.median(nothing)  # what looking at the clock costs
    return {
        "publish_ns": int(statistics.median(publish[100:]) - own),
        "next_ns": int(statistics.median(take[100:]) - own),
        "release_ns": int(statistics.median(release[100:]) - own),
    }


def latency(memory, wait, count=3000, interval=0.0005):
    """From publishing to the frame in the hand of another process, and to its kernel launched."""
    key = f"bench-{os.getpid()}-{memory}-{wait}"
    with cuframes.Publisher(key, 1920, 1080, memory=memory) as publisher:
        command = [sys.executable, "-c", SUBSCRIBER, key, wait, str(count)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while not publisher.subscribers:
            time.sleep(0.01)
        time.sleep(0.5)
        for _ in range(count):
            with publisher.acquire():
                pass
            time.sleep(interval)
    taken, launched = json.loads(child.communicate()[0])
    return {"in_hand": percentiles(taken), "kernel_launched": percentiles(launched)}


def torch_consumer(queue, answers):
    took = []
    while (item := queue.get()) is not None:
        sent, tensor = item
        took.append(time.monotonic_ns() - sent)
        answers.put(int(tensor.numel()))
        del tensor, item
    answers.put(took)


def torch_peer(count=1000):
    """``torch.multiprocessing`` handing one CUDA tensor of the same size over, again and again."""
    import torch
    import torch.multiprocessing as multiprocessing

    context = multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    child = context.Process(target=torch_consumer, args=(queue, answers))
    child.start()
    tensor = torch.zeros(SHAPE, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    for _ in range(count):
        queue.put((time.monotonic_ns(), tensor))
        answers.get()
    queue.put(None)
    took = answers.get()
    child.join()
    return percentiles(took[50:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = {
        "conditions": {
            "date": time.strftime("%Y-%m-%d"),
            "gpu": repr(driver.gpu()),
            "driver": driver.call(driver._driver().cuDriverGetVersion),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "cuframes": cuframes.__version__,
            "frame": "1920x1080 nv12, published in place (no copy), 2 kHz for latencies",
        },
        "floor_ns": floor(),
    }
    for memory in ("cuda", "cuda-ipc"):
        rounds = [calls(memory) for _ in range(5)]
        result[memory] = {
            "calls": {name: statistics.median(r[name] for r in rounds) for name in rounds[0]},
            "spin": latency(memory, "spin"),
            "block": latency(memory, "block"),
        }
    result["torch.multiprocessing"] = torch_peer()
    floor_publish = 2 * result["floor_ns"]["record_interprocess"]
    floor_next = result["floor_ns"]["wait"]
    for memory in ("cuda", "cuda-ipc"):
        c = result[memory]["calls"]
        c["publish_over_floor"] = round(c["publish_ns"] / floor_publish, 2)
        c["next_over_floor"] = round(c["next_ns"] / floor_next, 2)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
