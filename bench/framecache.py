"""Benchmark of a framecache slot (1080p59.94 UYVY, one writer, four readers), compared with shared memory by hand.

    python bench/framecache.py [--seconds 60] [--readers 4] [--json FILE] [--quick]

Needs gcc. The writer and every reader are separate processes that do nothing but hand frames over. The floor is memcpy:
the cost of copying every frame in once, and out once for each reader.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import posix_ipc
from measure import Child, Floor, conditions

from cuframes.framecache import SlotWriter, create_slot, remove_slot

WIDTH, HEIGHT, FPS = 1920, 1080, (60000, 1001)
FRAME_BYTES = WIDTH * HEIGHT * 2

# Each program says that it is ready, does its work, and prints its figures: CPU seconds of its work, and latencies from
# the moment before a frame is written until it is in hand.
COMMON = """
import json, sys, time, numpy
def begin():
    print('"ready"', flush=True)
    return time.process_time()
def percentiles(took):
    p50, p99, most = numpy.percentile(took, [50, 99, 100]) / 1000
    return {"p50_us": round(float(p50)), "p99_us": round(float(p99)), "max_us": round(float(most))}
def ticks(seconds, rate):
    "The moments of a steady source; sleeps until each."
    start = time.monotonic_ns() + 200_000_000
    for n in range(int(seconds * rate)):
        due = start + int(n * 1e9 / rate)
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        yield n
"""
SLOT_WRITER = (
    COMMON
    + """
from cuframes.framecache import SlotWriter
slot_id, seconds, rate = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
frame = numpy.random.default_rng(0).integers(0, 255, (1080, 1920, 2), dtype=numpy.uint8)
took = []
with SlotWriter(slot_id) as writer:
    cpu = begin()
    sys.stdin.readline()
    for n in ticks(seconds, rate):
        now = time.monotonic_ns()
        writer.write(frame, pts_us=now // 1000)
        took.append(time.monotonic_ns() - now)
    print(json.dumps({"cpu_s": time.process_time() - cpu, "frames": len(took)} | percentiles(took)))
"""
)
SLOT_READER = (
    COMMON
    + """
from cuframes.framecache import SlotReader
slot_id, count, view = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "view"
out = None if view else numpy.full((1080, 1920, 2), 1, numpy.uint8)  # and its pages are there
took = []
with SlotReader(slot_id) as reader:
    cpu = begin()
    last = -1
    while last < count - 1:
        frame = reader.read(5, copy=not view, out=out)
        took.append(time.monotonic_ns() - frame.pts_us * 1000)
        assert frame.valid
        last = frame.seq
    stats = reader.stats()
    read, dropped, lapped = stats.read, stats.dropped, stats.lapped
    print(json.dumps({"cpu_s": time.process_time() - cpu, "read": read, "dropped": dropped, "lapped": lapped}
                     | percentiles(took)))
"""
)
HAND_WRITER = (
    COMMON
    + """
import mmap, posix_ipc
name, seconds, rate, readers = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
frame = numpy.random.default_rng(0).integers(0, 255, 1920 * 1080 * 2, dtype=numpy.uint8)
memory = mmap.mmap(posix_ipc.SharedMemory("/" + name).fd, 0)
there = numpy.frombuffer(memory, numpy.uint8, len(frame), 16)
stamp = numpy.frombuffer(memory, numpy.int64, 2)
semaphores = [posix_ipc.Semaphore(f"/{name}-{i}") for i in range(readers)]
took = []
cpu = begin()
sys.stdin.readline()
for n in ticks(seconds, rate):
    now = time.monotonic_ns()
    there[:] = frame
    stamp[:] = now, n
    for semaphore in semaphores:
        semaphore.release()
    took.append(time.monotonic_ns() - now)
print(json.dumps({"cpu_s": time.process_time() - cpu, "frames": len(took)} | percentiles(took)))
"""
)
HAND_READER = (
    COMMON
    + """
import mmap, posix_ipc
name, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = mmap.mmap(posix_ipc.SharedMemory("/" + name).fd, 0)
there = numpy.frombuffer(memory, numpy.uint8, 1920 * 1080 * 2, 16)
stamp = numpy.frombuffer(memory, numpy.int64, 2)
semaphore = posix_ipc.Semaphore(f"/{name}-{index}")
out = numpy.full(len(there), 1, numpy.uint8)
took, last, read, torn = [], -1, 0, 0
cpu = begin()
while last < count - 1:
    semaphore.acquire(5)
    sent, n = stamp.tolist()
    out[:] = there
    took.append(time.monotonic_ns() - sent)
    torn += int(stamp[1]) != n
    read, last = read + 1, n
print(json.dumps({"cpu_s": time.process_time() - cpu, "read": read, "dropped": count - read, "torn": torn}
                 | percentiles(took)))
"""
)


IDLE_READER = (
    COMMON
    + """
from cuframes import Timeout
from cuframes.framecache import SlotReader
slot_id, seconds = sys.argv[1], float(sys.argv[2])
with SlotReader(slot_id) as reader:
    cpu = begin()
    try:
        reader.read(seconds)
    except Timeout:
        print(json.dumps(round((time.process_time() - cpu) / seconds * 100, 2)))
"""
)


def waiting(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader costs that waits, in per cent of a core: its slot has a writer that sleeps, or none."""
    slot_id, seconds = f"bench-{os.getpid()}", min(options.seconds, 10.0)
    create_slot(slot_id, 64, 48)
    try:
        with SlotWriter(slot_id):
            with_writer = Child(IDLE_READER, slot_id, seconds).result()
        return {"with_a_writer": with_writer, "without": Child(IDLE_READER, slot_id, seconds).result()}
    finally:
        remove_slot(slot_id)


def run(writer: Child, readers: list[Child], seconds: float) -> dict[str, Any]:
    """Let the writer begin; the figures of all, when all have ended. CPU is in per cent of one core."""
    assert writer.process.stdin is not None
    writer.process.stdin.write("go\n")
    writer.process.stdin.flush()
    timeout = seconds + 60
    wrote = json.loads(writer.process.communicate(timeout=timeout)[0])
    read = [json.loads(reader.process.communicate(timeout=timeout)[0]) for reader in readers]
    return {
        "writer_cpu_percent": round(wrote["cpu_s"] / seconds * 100, 1),
        "reader_cpu_percent": [round(one["cpu_s"] / seconds * 100, 1) for one in read],
        "frames": wrote["frames"],
        "write_p50_us": wrote["p50_us"],
        "dropped": sum(one["dropped"] for one in read),
        "lapped": sum(one.get("lapped", 0) for one in read),
        "torn": sum(one.get("torn", 0) for one in read),
        "latency_p50_us": [one["p50_us"] for one in read],
        "latency_p99_us": [one["p99_us"] for one in read],
        "latency_max_us": [one["max_us"] for one in read],
    }


def slot(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """A slot; readers copy (into a buffer of their own) or look at it in place."""
    slot_id = f"bench-{os.getpid()}"
    rate = FPS[0] / FPS[1]
    create_slot(slot_id, WIDTH, HEIGHT, fps=FPS, ring_depth=options.ring_depth)
    try:
        count = int(options.seconds * rate)
        writer = Child(SLOT_WRITER, slot_id, options.seconds, rate)
        readers = [Child(SLOT_READER, slot_id, count, way) for _ in range(options.readers)]
        return run(writer, readers, options.seconds)
    finally:
        remove_slot(slot_id)


def by_hand(options: argparse.Namespace) -> dict[str, Any]:
    """Shared memory with room for one frame, and a semaphore for each reader."""
    name = f"bench-{os.getpid()}"
    rate = FPS[0] / FPS[1]
    memory = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, size=FRAME_BYTES + 16)
    semaphores = [posix_ipc.Semaphore(f"/{name}-{i}", posix_ipc.O_CREX) for i in range(options.readers)]
    try:
        count = int(options.seconds * rate)
        writer = Child(HAND_WRITER, name, options.seconds, rate, options.readers)
        readers = [Child(HAND_READER, name, count, i) for i in range(options.readers)]
        return run(writer, readers, options.seconds)
    finally:
        for semaphore in semaphores:
            semaphore.unlink()
            semaphore.close()
        memory.close_fd()
        memory.unlink()


def main() -> None:
    """Run everything once and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds to run each case")
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--ring-depth", type=int, default=120)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="run each case for 2 s, only to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.ring_depth = 2.0, 20
    floor = {"memcpy_us": Floor("floor_host")(60, 60, FRAME_BYTES)["memcpy_us"]}
    about = conditions(
        "numpy", case="1080p59.94 UYVY, copied in", readers=options.readers, seconds=options.seconds, pinned=False
    )
    cases = {
        "slot, readers copy": lambda: slot(options, "copy"),
        "slot, readers look in place": lambda: slot(options, "view"),
        "shared memory by hand, readers copy": lambda: by_hand(options),
        "a reader that waits, percent of a core": lambda: waiting(options),
    }
    print(json.dumps(about))
    results: dict[str, Any] = {"conditions": about, "memcpy": floor}
    print("memcpy of a frame:", json.dumps(floor))
    for name, case in cases.items():
        results[name] = case()
        time.sleep(0.5)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    sys.exit(main())
