"""Benchmarks of frames in host memory, compared with a floor in C and with the ways that Python programs use instead.

    python bench/host.py [--json FILE] [--markdown FILE] [--plot FILE] [--quick] [CASE ...]
    python bench/host.py --compare BEFORE.json AFTER.json

Cases: latency ping calls fanout streams idle steady small (all of them when none is named). Needs gcc. The extra
``bench`` installs the peers; a peer that is not installed is left out.
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
from measure import Child, Floor, alternate, conditions, percentiles
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
from report import Result, compare, markdown, plot

import cuframes


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
    stamp = block[:8].view(numpy.int64)
    due = time.monotonic()
    for _ in range(count):
        due += 1 / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        stamp[0] = time.monotonic_ns()
        peer.send(block)
    time.sleep(0.05)
    os.sched_setaffinity(0, cores)
    return peer.stop(block)[count // 10 :]


def latency(quick: bool) -> Result:
    """Latency from just before sending a block until the other process has a view of it, in microseconds."""
    result: Result = {}
    cores = sorted(os.sched_getaffinity(0))
    for size, rate, count, pin in (
        (64, 2000, 2000, False),
        (64, 2000, 2000, True),
        (65_536, 200, 300, False),
        (3_110_400, 60, 90, False),
        (12_441_600, 60, 60, False),
    ):
        rounds, count = (1, 20) if quick else (3, count)
        floor = Floor("floor_host")
        found: dict[str, list[Result]] = {}
        for _ in range(rounds):
            for kind in PEERS:
                name = f"{kind.name} (copied {kind.copies})"
                try:
                    found.setdefault(name, []).append(percentiles(send_all(kind(), size, rate, count, pin=pin)))
                except ImportError:
                    found.pop(name, None)
            pinned = (cores[0], cores[-1]) if pin else ()
            found.setdefault("floor (C)", []).append(floor(rate, count, size, *pinned))
        result[f"{size} bytes at {rate} Hz{', a core each' if pin else ''}"] = {
            name: {key: round(statistics.median(r[key] for r in each), 2) for key in each[0] if key != "n"}
            for name, each in found.items()
        }
    return result


def calls(quick: bool) -> Result:
    """The cost of the calls alone, in one process, for a small frame: medians over batches, in nanoseconds."""
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
import sys, time, json, cuframes

def main():
    late = {}
    with cuframes.Subscriber(sys.argv[1], mode="ordered") as subscriber:
        print('"ready"', flush=True)
        for frame in subscriber:
            late[frame.seq] = time.monotonic_ns() - frame.pts_ns
            frame.release()
    return late

print(json.dumps(main()))
"""


def wake_sleepers(count: int, work_us: int, times: int) -> Result:
    """One round of fanout."""
    key, block, took = f"bench-{os.getpid()}-{count}", bytes(64), []
    with cuframes.Publisher(key, 64, 1, "gray8", memory="host") as publisher:
        children = [Child(SLEEPER, key) for _ in range(count)]
        for _ in range(times):
            time.sleep(0.015)  # until all of them sleep again
            begin = time.monotonic_ns()
            publisher.publish(block, pts_ns=begin)
            took.append(time.monotonic_ns() - begin)
            while time.monotonic_ns() < begin + 1000 * work_us:
                pass
        time.sleep(0.05)
    late = [child.result() for child in children]
    result = percentiles(took, "publish")
    if late:
        slowest = [max(each[seq] for each in late) for seq in late[0] if all(seq in each for each in late)]
        result |= percentiles(slowest, "slowest")
    return result


def fanout(quick: bool) -> Result:
    """A small frame for several sleeping processes: the cost of publishing, and the time until the last process has the
    frame. One publisher goes back to sleep; another works for 3 ms after each frame, as a decoder does.
    """
    result: Result = {}
    floor, times = Floor("floor_host"), 20 if quick else 120
    for count in (1, 2) if quick else (0, 1, 2, 4, 8, 16, 31):
        for work_us in (0, 3000):
            name = f"{count} asleep, publisher {'works' if work_us else 'sleeps'}"
            both = alternate(
                1 if quick else 3,
                cuframes=lambda count=count, work_us=work_us: wake_sleepers(count, work_us, times),
                floor=lambda count=count, work_us=work_us: floor("wake", count, times, work_us),
            )
            result[name] = both["cuframes"]
            result[f"{name}, floor (C)"] = both["floor"]
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


def take_streams(count: int, fps: int, seconds: float, lost: list[int]) -> Result:
    """One round of streams; how many frames both receivers lost goes into `lost`."""
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
    receiving = sum(cpu for _, cpu, _ in found)
    lost += [each for _, _, each in found]
    return {
        "published": published,
        "received_share": round(sum(received for received, _, _ in found) / 2 / published, 3),
        "publishing_percent_of_a_core": round(100 * mine / seconds, 2),
        "each_receiver_percent_of_a_core": round(50 * receiving / seconds, 2),
        "all_percent_of_a_core": round(100 * (mine + receiving) / seconds, 2),
    }


def streams(quick: bool) -> Result:
    """Cameras at 25 fps from one process. Two other processes take all cameras, with one thread each: CPU of all three
    processes.
    """
    counts, seconds = ((4, 20), 0.5) if quick else ((8, 64), 4.0)
    lost: list[int] = []  # in any round; a median would hide it
    cases = {f"{count} streams": lambda count=count: take_streams(count, 25, seconds, lost) for count in counts}
    return {**alternate(1 if quick else 3, **cases), "lost in all rounds": sum(lost)}


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


def take_steady(fps: int, wait: str, pin: bool, count: int) -> Result:
    """One round of steady."""
    key, block, cores = f"bench-{os.getpid()}", bytes(64), sorted(os.sched_getaffinity(0))
    with cuframes.Publisher(key, 64, 1, "gray8", memory="host") as publisher:
        child = Child(STEADY, key, wait, cores[-1] if pin else -1)
        os.sched_setaffinity(0, cores[:1] if pin else cores)
        due = time.monotonic()
        for _ in range(count):
            due += 1 / fps
            time.sleep(max(0.0, due - time.monotonic()))
            publisher.publish(block, pts_ns=time.monotonic_ns())
        os.sched_setaffinity(0, cores)
    sent, published, cpu = child.result()
    begin = len(sent) // 4  # a predictor has to see some first
    return {
        **percentiles(sent[begin:], "sent"),
        **percentiles(published[begin:], "published"),
        "percent_of_a_core": round(100 * cpu, 2),
    }


def steady(quick: bool) -> Result:
    """A steady source, 64 bytes: the subscriber's CPU, and the latency from the call of publish ("sent") and from the
    moment at which the frame can be seen ("published"). In between the publisher, which has just woken up, is at work.
    """
    cases = {
        f"{fps} fps, {wait}{', a core each' if pin else ''}": lambda fps=fps, wait=wait, pin=pin: take_steady(
            fps, wait, pin, 20 if quick else 5 * fps
        )
        for fps, pin in ((50, False), (50, True), (60, False))
        for wait in ("block", "spin", "predictive")
    }
    return alternate(1 if quick else 3, **cases)


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
    """100 publishers in one process that publish nothing, and a process that waits for all of them: CPU of both."""
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
        last = not STAMP.unpack_from(answer)[0]
        del answer  # also the last one: the peer's memory cannot be unmapped under it
        if last:
            break
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
    """64 bytes there and back, as fast as possible: half of a round trip, in microseconds."""
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
    """Joining, importing, and memory."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        before, after = (json.loads(path.read_text()) for path in options.compare)
        print(compare(before, after))
        return
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; the cases are {', '.join(CASES)}")
    pinning = "none" if len(os.sched_getaffinity(0)) == os.cpu_count() else sorted(os.sched_getaffinity(0))
    packages = ("numpy", "iceoryx2", "pyshmem", "pyzmq")
    result: Result = {"conditions": conditions(*packages, pinning=pinning, frames=list(FRAMES))}
    for name in options.cases or CASES:
        result[name] = CASES[name](options.quick)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    if options.markdown:
        options.markdown.write_text(markdown(result, CASES))
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
