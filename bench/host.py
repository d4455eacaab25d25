"""Benchmarks of frames in host memory, beside a floor in C and what Python programs use instead.

    python bench/host.py [--json FILE] [--markdown FILE] [--plot FILE] [--quick] [CASE ...]
    python bench/host.py --compare BEFORE.json AFTER.json

Cases: latency ping calls fanout streams idle steady small (all of them when none is named). Needs gcc; the peers are in
the extra ``bench``, and those that are not installed are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
from measure import Child, Floor, conditions, percentiles
from peers import (
    FRAMES,
    PEERS,
    SPAWN,
    STAMP,
    CuframesBlock,
    CuframesSpin,
    Iceoryx,
    IceoryxEvent,
    IceoryxPoll,
    Peer,
    RawSemaphore,
    RawSpin,
)

import cuframes

Result = dict[str, Any]


def send_all(peer: Peer, size: int, rate_hz: float, count: int, *, pin: bool = False) -> list[int]:
    """Latencies of `count` blocks, sent at a steady rate, in nanoseconds; with `pin`, sender and receiver on a core
    each.
    """
    peer.start(size)
    cores = sorted(os.sched_getaffinity(0))
    if pin:
        peer.pin(cores[-1])
        os.sched_setaffinity(0, {cores[0]})
    block = numpy.zeros(size, numpy.uint8)
    due = time.monotonic()
    for _ in range(count):
        due += 1 / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        STAMP.pack_into(block, 0, time.monotonic_ns())
        peer.send(block)
    time.sleep(0.05)
    os.sched_setaffinity(0, cores)
    return peer.stop(block)[count // 10 :]


def latency(quick: bool) -> Result:
    """From the moment before sending until a view of the block is in the other process's hand."""
    result: Result = {}
    for size, rate, count in ((64, 2000, 2000), (65_536, 200, 300), (3_110_400, 60, 90), (12_441_600, 60, 60)):
        rounds, count = (1, 20) if quick else (3, count)
        floor = Floor("floor_host")
        found: dict[str, list[Result]] = {}
        for _ in range(rounds):
            for kind in PEERS:
                try:
                    found.setdefault(kind.name, []).append(percentiles(send_all(kind(), size, rate, count)))
                except ImportError:
                    found.pop(kind.name, None)
            found.setdefault("floor (C)", []).append(floor(rate, count, size))
        result[f"{size} bytes at {rate} Hz"] = {
            name: {key: round(statistics.median(r[key] for r in each), 2) for key in each[0] if key != "n"}
            for name, each in found.items()
        }
    return result


def calls(quick: bool) -> Result:
    """What the calls cost alone, in one process, for a small frame: medians over batches, in nanoseconds."""
    rounds, batch = (5, 50) if quick else (400, 100)
    key = f"bench-{os.getpid()}"
    block = numpy.zeros((48, 64), numpy.uint8)
    with (
        cuframes.Publisher(key, 64, 48, "gray8", memory="host") as publisher,
        cuframes.Subscriber(key, mode="ordered") as subscriber,
    ):

        def ours() -> None:
            publisher.publish(block)
            with subscriber.next() as frame:
                numpy.asarray(frame)

        def no_view() -> None:
            publisher.publish(block)
            subscriber.next().release()

        buffer = bytearray(64)
        cases: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "publish": lambda: publisher.publish(block),
            "publish, next, release": no_view,
            "publish, next, view, release": ours,
            "view of a bytearray": lambda: numpy.asarray(buffer),
        }
        try:
            node, service, _ = Iceoryx.service(key)
        except ImportError:
            node = None
        if node is not None:
            sender = service.publisher_builder().initial_max_slice_len(block.size).create()
            receiver = service.subscriber_builder().create()
            flat = block.reshape(-1)

            def iceoryx() -> None:
                sample = sender.loan_slice_uninit(flat.size)
                numpy.asarray(sample.payload().as_memory_view())[:] = flat
                sample.assume_init().send()
                received = receiver.receive()
                numpy.asarray(received.payload().as_memory_view())
                received.delete()

            cases["iceoryx2: loan, send, receive, view"] = iceoryx
        took: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, call in cases.items():
                begin = time.perf_counter_ns()
                for _ in range(batch):
                    call()
                took[name].append((time.perf_counter_ns() - begin) / batch)
    medians = {name: statistics.median(values) for name, values in took.items()}
    nothing = medians.pop("nothing")
    return {name: round(value - nothing) for name, value in medians.items()}


SLEEPER = """
import sys, time, cuframes
subscriber = cuframes.Subscriber(sys.argv[1])
print('"ready"', flush=True)
for frame in subscriber: frame.release()
print("0")
"""


def fanout(quick: bool) -> Result:
    """What publishing a small frame costs the publisher while so many processes sleep on it, in microseconds."""
    result: Result = {}
    block, floor, times = bytes(64), Floor("floor_host"), 50 if quick else 400
    for count in (1, 2) if quick else (0, 1, 2, 4, 8, 16, 31):
        key = f"bench-{os.getpid()}-{count}"
        with cuframes.Publisher(key, 64, 1, "gray8", memory="host") as publisher:
            children = [Child(SLEEPER, key) for _ in range(count)]
            took = []
            for _ in range(times):
                time.sleep(0.01)  # until all of them sleep again
                begin = time.perf_counter_ns()
                publisher.publish(block)
                took.append(time.perf_counter_ns() - begin)
        for child in children:
            child.result()
        result[f"{count} subscribers asleep"] = percentiles(took)
        result[f"floor (C): one futex broadcast to {count} asleep"] = floor("wake", count, times)
    return result


STREAMS = """
import sys, time, json, cuframes
key, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
subscribers = [cuframes.Subscriber(f"{key}-{n}", mode="ordered") for n in range(count)]
print('"ready"', flush=True)
received, begin, end = 0, time.process_time(), time.monotonic() + seconds
while time.monotonic() < end:
    for subscriber in cuframes.wait_any(subscribers, 0.1):
        try:
            subscriber.next(0).release()
            received += 1
        except cuframes.Timeout:
            pass
print(json.dumps([received, time.process_time() - begin, sum(s.stats().lost for s in subscribers)]))
"""


def streams(quick: bool) -> Result:
    """64 cameras at 25 fps from one process; two others take all of them, with one thread each: CPU of all three."""
    count, fps, seconds = (4, 25, 0.5) if quick else (64, 25, 5.0)
    key = f"bench-{os.getpid()}"
    publishers = [cuframes.Publisher(f"{key}-{n}", 64, 48, "gray8", memory="host") for n in range(count)]
    children = [Child(STREAMS, key, count, seconds) for _ in range(2)]
    block = bytes(64 * 48)
    published, begin, due = 0, time.process_time(), time.monotonic()
    end = due + seconds
    while time.monotonic() < end:
        for publisher in publishers:
            due += 1 / (fps * count)
            time.sleep(max(0.0, due - time.monotonic()))
            publisher.publish(block)
            published += 1
    mine = time.process_time() - begin
    found = [child.result() for child in children]
    for publisher in publishers:
        publisher.close()
    return {
        "streams": count,
        "published": published,
        "received": [received for received, _, _ in found],
        "lost": [lost for _, _, lost in found],
        "publishing_percent_of_a_core": round(100 * mine / seconds, 2),
        "receiving_percent_of_a_core": [round(100 * cpu / seconds, 2) for _, cpu, _ in found],
        "all_percent_of_a_core": round(100 * (mine + sum(cpu for _, cpu, _ in found)) / seconds, 2),
    }


STEADY = """
import os, sys, time, json, cuframes
key, wait, core = sys.argv[1], sys.argv[2], int(sys.argv[3])
if core >= 0: os.sched_setaffinity(0, {core})

def main():
    with cuframes.Subscriber(key, mode="ordered", wait=wait) as subscriber:
        print('"ready"', flush=True)
        begin, cpu = time.monotonic(), time.process_time()
        sent, published = [], []
        for frame in subscriber:
            now = time.monotonic_ns()
            sent.append(now - frame.pts_ns)
            published.append(now - frame.published_ns)
        return sent, published, (time.process_time() - cpu) / (time.monotonic() - begin)

print(json.dumps(main()))
"""


def steady(quick: bool) -> Result:
    """A steady source, 64 bytes: the subscriber's CPU, and latency from the call of publish ("sent") and from when the
    frame can be seen ("published"); between the two the publisher, which has just woken up, is at work.
    """
    result: Result = {}
    block, cores = bytes(64), sorted(os.sched_getaffinity(0))
    for fps, pin in ((50, False), (50, True), (60, False)):
        for wait in ("block", "spin", "predictive"):
            key = f"bench-{os.getpid()}"
            with cuframes.Publisher(key, 64, 1, "gray8", memory="host") as publisher:
                child = Child(STEADY, key, wait, cores[-1] if pin else -1)
                os.sched_setaffinity(0, cores[:1] if pin else cores)
                due = time.monotonic()
                for _ in range(20 if quick else 10 * fps):
                    due += 1 / fps
                    time.sleep(max(0.0, due - time.monotonic()))
                    publisher.publish(block, pts_ns=time.monotonic_ns())
                os.sched_setaffinity(0, cores)
            sent, published, cpu = child.result()
            begin = len(sent) // 4  # a predictor has to see some first
            result[f"{fps} fps, {wait}{', a core each' if pin else ''}"] = {
                "sent": percentiles(sent[begin:]),
                "published": percentiles(published[begin:]),
                "percent_of_a_core": round(100 * cpu, 2),
            }
    return result


IDLE = """
import sys, time, json, cuframes
key, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
subscribers = [cuframes.Subscriber(f"{key}-{n}", mode="ordered") for n in range(count)]
print('"ready"', flush=True)
begin = time.process_time()
found = cuframes.wait_any(subscribers, seconds)
print(json.dumps([len(found), time.process_time() - begin]))
"""


def idle(quick: bool) -> Result:
    """100 publishers in one process that publish nothing, and one that waits for all of them: CPU of both."""
    count, seconds = (4, 0.5) if quick else (100, 5.0)
    key = f"bench-{os.getpid()}"
    publishers = [cuframes.Publisher(f"{key}-{n}", 64, 48, "gray8", memory="host") for n in range(count)]
    child = Child(IDLE, key, count, seconds)
    begin = time.process_time()
    found, cpu = child.result()
    mine = time.process_time() - begin
    for publisher in publishers:
        publisher.close()
    assert not found
    return {
        "streams": count,
        "publishers_percent_of_a_core": round(100 * mine / seconds, 2),
        "waiting_percent_of_a_core": round(100 * cpu / seconds, 2),
    }


def echo(kind: type[Peer], there: str, back: str, size: int, ready: Any, extra: tuple[Any, ...]) -> None:
    """The other process of a ping: sends what it gets, until a stamp is 0."""
    answers = kind()
    answers.address, answers.size = back, size
    their = answers.open()
    blocks = kind.receive(there, size, lambda: ready.send(their), *extra)
    for block in blocks:
        answer = numpy.array(block)
        del block
        answers.send(answer)
        if not STAMP.unpack_from(answer)[0]:
            break
    blocks.close()
    ready.recv()  # the other end has let go
    answers.close()


def round_trips(kind: type[Peer], count: int, size: int = 64) -> dict[str, Any]:
    """One way of a ping: half of the time until what was sent is back, sent again as soon as it is there."""
    there = kind()
    there.address, there.size = f"bench-{os.getpid()}-there-{time.monotonic_ns()}", size
    back = there.address.replace("there", "back")
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=echo, args=(kind, there.address, back, size, theirs, there.open()))
    child.start()
    if not ours.poll(30):
        raise RuntimeError(f"{kind.name}: the other process did not start")
    extra = ours.recv()
    block = numpy.ones(size, numpy.uint8)
    answers = kind.receive(back, size, lambda: there.send(block), *extra)
    took = []
    for answer in answers:
        if not STAMP.unpack_from(answer)[0]:
            break
        del answer
        began = time.monotonic_ns()
        if len(took) == count:
            STAMP.pack_into(block, 0, 0)
        there.send(block)
        took.append(began)
    answers.close()
    ours.send(None)
    child.join(20)
    there.close()
    return percentiles([(b - a) / 2 for a, b in pairwise(took[count // 10 :])])


def ping(quick: bool) -> Result:
    """64 bytes there and back, as fast as it goes: one way, in microseconds."""
    count = 200 if quick else 20_000
    result: Result = {}
    for kind in (CuframesSpin, CuframesBlock, IceoryxPoll, IceoryxEvent, RawSpin, RawSemaphore):
        if issubclass(kind, Iceoryx) and find_spec("iceoryx2") is None:
            continue
        rounds = [round_trips(kind, count) for _ in range(1 if quick else 3)]
        result[kind.name] = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    result["floor (C)"] = Floor("floor_host")("ping", count)
    return result


def small(quick: bool) -> Result:
    """Joining, importing, memory."""
    key = f"bench-{os.getpid()}"

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def interpreter(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return 1e3 * (time.perf_counter() - begin)

    many = 3 if quick else 20
    with cuframes.Publisher(key, 64, 48, "gray8", memory="host"):
        joins = []
        for _ in range(many * 10):
            begin = time.perf_counter_ns()
            subscriber = cuframes.Subscriber(key)
            joins.append(time.perf_counter_ns() - begin)
            subscriber.close()
        before = rss()
        subscribers = [cuframes.Subscriber(key) for _ in range(many)]
        per_subscriber = (rss() - before) / many
        for subscriber in subscribers:
            subscriber.close()
    before = rss()
    publishers = [cuframes.Publisher(f"{key}-{n}", 64, 48, "gray8", memory="host") for n in range(many)]
    per_publisher = (rss() - before) / many
    for publisher in publishers:
        publisher.close()
    rounds = [
        [interpreter(f"import {m}" if m else "") for m in ("", "numpy", "cuframes")] for _ in range(1 if quick else 15)
    ]
    nothing, array, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "join": percentiles(joins),
        "import_ms": round(ours - nothing, 1),
        "import_over_numpy": round((ours - nothing) / (array - nothing), 2),
        "kib_per_publisher_besides_its_pool": round(per_publisher / 1024),
        "kib_per_subscriber": round(per_subscriber / 1024),
    }


CASES: dict[str, Callable[[bool], Result]] = {
    case.__name__: case for case in (latency, ping, calls, fanout, streams, idle, steady, small)
}

# ---- reports


def flat(result: Any, path: str = "") -> dict[str, float]:
    """Every number of a result, by its path."""
    if isinstance(result, dict):
        parts = [flat(value, f"{path} / {name}" if path else str(name)) for name, value in result.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {path: float(result)} if isinstance(result, (int, float)) and not isinstance(result, bool) else {}


def markdown(result: Result) -> str:
    """One table per case, its conditions above."""
    lines = ["", ", ".join(f"{name} {value}" for name, value in result["conditions"].items()), ""]
    for case in CASES:
        if case in result:
            lines += [f"**{case}**: {CASES[case].__doc__}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {value:g} |" for name, value in flat(result[case]).items()] + [""]
    return "\n".join(lines)


def plot(result: Result, path: Path) -> None:
    """Latencies, p50 to p99, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(result["latency"]), figsize=(5 * len(result["latency"]), 5), squeeze=False)
    for axis, (title, peers) in zip(axes[0], result["latency"].items(), strict=True):
        named = {name: figures for name, figures in peers.items() if "p50_us" in figures}
        for at, (name, figures) in enumerate(named.items()):
            colour = "tab:blue" if name.startswith("cuframes") else "tab:gray"
            axis.plot([figures["p50_us"], figures["p99_us"]], [at, at], color=colour, marker="|")
            axis.plot(figures["p50_us"], at, color=colour, marker="o")
        axis.set_yticks(range(len(named)), list(named))
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("µs from sending to a view in hand, p50 (dot) to p99")
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(path)


def compare(before: Result, after: Result) -> str:
    """What changed between two results, figure by figure."""
    old, new = flat(before), flat(after)
    lines = ["| | before | after | after / before |", "|---|---|---|---|"]
    for name in (name for name in old if name in new and not name.startswith("conditions")):
        ratio = f"{new[name] / old[name]:.2f}" if old[name] else "-"
        lines.append(f"| {name} | {old[name]:g} | {new[name]:g} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        before, after = (json.loads(path.read_text()) for path in options.compare)
        print(compare(before, after))
        return
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    pinning = "none" if len(os.sched_getaffinity(0)) == os.cpu_count() else sorted(os.sched_getaffinity(0))
    packages = ("numpy", "iceoryx2", "pyshmem", "pyzmq")
    result: Result = {"conditions": conditions(*packages, pinning=pinning, frames=list(FRAMES))}
    for name in options.cases or CASES:
        result[name] = CASES[name](options.quick)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    if options.markdown:
        options.markdown.write_text(markdown(result))
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
