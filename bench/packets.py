"""Benchmarks of the packet ring, compared with memcpy, ``multiprocessing.Pipe`` and a ZeroMQ ``ipc://`` socket.

    python bench/packets.py [--json FILE] [--quick]

Needs gcc. The ZeroMQ peer needs pyzmq, and is left out if it is not installed. Everything is measured in one run: the
cases in turn, several times over.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from measure import Child, Floor, alternate, conditions, percentiles

import cuframes

RING = {"slots": 1024, "data_size": 8 << 20}
SIZES = (64, 64 * 1024)
BATCH = 64  # packets that are written before they are read, in one process

# ---- one process: what a packet costs on its way in and out


def calls(size: int, rounds: int, batches: bool) -> dict[str, float]:
    """Median cost of publishing (one by one, or all at once) and of reading a packet, in nanoseconds."""
    key = f"bench-{os.getpid()}"
    data = bytes(size)
    into, out = [], []
    with cuframes.PacketPublisher(key, "h264", **RING) as publisher, cuframes.PacketReader(key, "next") as reader:
        clock, batch = time.perf_counter_ns, [(data, 0, None, 0)] * BATCH
        for _ in range(rounds):
            a = clock()
            if batches:
                publisher.publish_packets(batch)
            else:
                for _ in range(BATCH):
                    publisher.publish_packet(data, pts_ns=0)
            b = clock()
            for _ in zip(range(BATCH), reader, strict=False):
                pass
            c = clock()
            into.append((b - a) / BATCH)
            out.append((c - b) / BATCH)
        assert reader.stats() == (rounds * BATCH, 0)
    return {"in_ns": statistics.median(into), "out_ns": statistics.median(out)}


# ---- two processes: how many a second, one running after the other


RING_READER = """
import sys, time, json, cuframes
with cuframes.PacketReader(sys.argv[1], "next") as reader:
    print('"ready"', flush=True)
    packets = iter(reader)
    first = next(packets)
    begin = time.perf_counter()
    for packet in packets: pass
    took = time.perf_counter() - begin
    print(json.dumps([reader.stats().received, reader.stats().lost, took]))
"""
PIPE_READER = """
import sys, time, json
from multiprocessing.connection import Connection
with Connection(int(sys.argv[1])) as pipe:
    print('"ready"', flush=True)
    pipe.recv_bytes()
    begin = time.perf_counter()
    for count in range(int(sys.argv[2]) - 1): pipe.recv_bytes()
    print(json.dumps([int(sys.argv[2]), 0, time.perf_counter() - begin]))
"""
ZMQ_READER = """
import sys, time, json, zmq
socket = zmq.Context().socket(zmq.PULL)
socket.connect(sys.argv[1])
print('"ready"', flush=True)
socket.recv()
begin = time.perf_counter()
for count in range(int(sys.argv[2]) - 1): socket.recv()
print(json.dumps([int(sys.argv[2]), 0, time.perf_counter() - begin]))
"""


def rate(result: list[float]) -> dict[str, float]:
    received, lost, took = result
    return {"packets_per_s": received / took, "lost": lost / (received + lost)}


def ring_throughput(size: int, count: int) -> dict[str, float]:
    """In batches. The writer waits for nobody, so the reader may lose packets; they do not count."""
    key = f"bench-{os.getpid()}"
    data = bytes(size)
    batch = [(data, 0, None, int(n == 0)) for n in range(BATCH)]
    with cuframes.PacketPublisher(key, "h264", **RING) as publisher:
        child = Child(RING_READER, key)
        for _ in range(count // BATCH):
            publisher.publish_packets(batch)
    return rate(child.result())


def pipe_throughput(size: int, count: int) -> dict[str, float]:
    import multiprocessing
    import subprocess
    import sys

    data = bytes(size)
    read, write = multiprocessing.Pipe(duplex=False)
    command = [sys.executable, "-c", PIPE_READER, str(read.fileno()), str(count)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[read.fileno()])
    child.stdout.readline()
    for _ in range(count):
        write.send_bytes(data)
    return rate(json.loads(child.communicate()[0]))


def zmq_throughput(size: int, count: int) -> dict[str, float]:
    import zmq

    data = bytes(size)
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind(f"ipc://{folder}/socket")
        child = Child(ZMQ_READER, f"ipc://{folder}/socket", count)
        for _ in range(count):
            socket.send(data)
        return rate(child.result())


# ---- two processes: how long until a packet is in the other one's hand


RING_WAITER = """
import sys, json, cuframes
from time import monotonic_ns
with cuframes.PacketReader(sys.argv[1], "next", wait=sys.argv[2]) as reader:
    print('"ready"', flush=True)
    print(json.dumps([monotonic_ns() - packet.pts_ns for packet in reader]))
"""
PIPE_WAITER = """
import sys, json
from time import monotonic_ns
from multiprocessing.connection import Connection
took = []
with Connection(int(sys.argv[1])) as pipe:
    print('"ready"', flush=True)
    try:
        while True:
            data = pipe.recv_bytes()
            took.append(monotonic_ns() - int.from_bytes(data[:8], "little"))
    except EOFError:
        print(json.dumps(took))
"""
ZMQ_WAITER = """
import sys, json, zmq
from time import monotonic_ns
socket = zmq.Context().socket(zmq.PULL)
socket.connect(sys.argv[1])
print('"ready"', flush=True)
took = []
while data := socket.recv():
    took.append(monotonic_ns() - int.from_bytes(data[:8], "little"))
print(json.dumps(took))
"""
INTERVAL = 0.0005


def ring_latency(wait: str, size: int, count: int) -> dict[str, float]:
    key = f"bench-{os.getpid()}"
    data = bytes(size)
    with cuframes.PacketPublisher(key, "h264", **RING) as publisher:
        child = Child(RING_WAITER, key, wait)
        for _ in range(count):
            publisher.publish_packet(data, pts_ns=time.monotonic_ns())
            time.sleep(INTERVAL)
    return percentiles(child.result())


def pipe_latency(size: int, count: int) -> dict[str, float]:
    import multiprocessing
    import subprocess
    import sys

    rest = bytes(size - 8)
    read, write = multiprocessing.Pipe(duplex=False)
    command = [sys.executable, "-c", PIPE_WAITER, str(read.fileno())]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[read.fileno()])
    read.close()
    child.stdout.readline()
    for _ in range(count):
        write.send_bytes(time.monotonic_ns().to_bytes(8, "little") + rest)
        time.sleep(INTERVAL)
    write.close()
    return percentiles(json.loads(child.communicate()[0]))


def zmq_latency(size: int, count: int) -> dict[str, float]:
    import zmq

    rest = bytes(size - 8)
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind(f"ipc://{folder}/socket")
        child = Child(ZMQ_WAITER, f"ipc://{folder}/socket")
        for _ in range(count):
            socket.send(time.monotonic_ns().to_bytes(8, "little") + rest)
            time.sleep(INTERVAL)
        socket.send(b"")
        return percentiles(child.result())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    options = parser.parse_args()
    rounds = 1 if options.quick else 7
    few = 20 if options.quick else 1
    floor = Floor("floor_packets")
    zmq = find_spec("zmq") is not None
    result = {"conditions": conditions("pyzmq", ring=RING, latency_rate_hz=round(1 / INTERVAL), rounds=rounds)}
    for size in SIZES:
        count = (400_000 if size == 64 else 40_000) // few
        found = alternate(
            rounds,
            floor=lambda size=size: floor(size, RING["data_size"], BATCH, 2000 // few),
            cuframes=lambda size=size: calls(size, 2000 // few, False),
            cuframes_batches=lambda size=size: calls(size, 2000 // few, True),
        )
        bare = sum(found["floor"].values())
        for name in ("cuframes", "cuframes_batches"):
            found[name]["over_floor"] = round(sum(found[name].values()) / bare, 3)
        found["throughput"] = alternate(
            min(rounds, 3),
            cuframes=lambda size=size, count=count: ring_throughput(size, count),
            pipe=lambda size=size, count=count: pipe_throughput(size, count),
            **({"zmq": lambda size=size, count=count: zmq_throughput(size, count)} if zmq else {}),
        )
        found["latency"] = alternate(
            min(rounds, 5),
            cuframes_spin=lambda size=size: ring_latency("spin", size, 2000 // few),
            cuframes_block=lambda size=size: ring_latency("block", size, 2000 // few),
            pipe=lambda size=size: pipe_latency(size, 2000 // few),
            **({"zmq": lambda size=size: zmq_latency(size, 2000 // few)} if zmq else {}),
        )
        result[f"{size} bytes"] = found
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
