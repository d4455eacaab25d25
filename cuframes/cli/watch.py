"""``cuframes watch``: join and report."""

import contextlib
import time
from collections import deque
from typing import Annotated, Any, Literal

import numpy
import typer

from cuframes._native.status import monotonic_ns
from cuframes.cli import Stopped, pixels, stop_on_signals
from cuframes.cli.stdout import print_json
from cuframes.errors import Disconnected, PacketOverrun, Timeout
from cuframes.packets import PacketReader
from cuframes.subscriber import Subscriber

__all__ = ["Meter", "follow", "watch"]

LATENCIES_KEPT = 100_000


class Meter:
    """Counts frames, and measures their latency: from publishing until the frame is taken."""

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.received = self.torn = 0
        self._latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._began = self._mark = time.monotonic()
        self._at_mark = 0

    @staticmethod
    def next(subscriber: Subscriber, timeout: float) -> Any:
        """The next frame."""
        return subscriber.next(timeout)

    def take(self, frame: Any) -> None:
        """Count one frame, check its stamp, and release it."""
        with frame:
            self.count(monotonic_ns() - frame.published_ns if frame.published_ns else None)
            if self.verify and pixels.read_stamp(frame) != frame.pts_ns:
                self.torn += 1

    def count(self, latency_ns: int | None) -> None:
        """One more frame."""
        self.received += 1
        if latency_ns is not None:
            self._latencies.append(latency_ns)

    def report(self, subscriber: Subscriber, *, final: bool = False) -> dict[str, Any]:
        """Figures so far."""
        stats = subscriber.stats()
        counts = {"received": stats.received, "lost": stats.lost, "skipped": stats.skipped}
        return {"name": subscriber.name, "mode": subscriber.mode} | self.figures(final) | counts

    def figures(self, final: bool) -> dict[str, Any]:
        """The figures that frames and slots have in common. ``fps`` is measured since the last report, and over the
        whole time in the final report.
        """
        now = time.monotonic()
        since, count = (self._began, self.received) if final else (self._mark, self.received - self._at_mark)
        self._mark, self._at_mark = now, self.received
        p50, p99 = percentiles(self._latencies)
        return {
            "fps": round(count / (now - since), 2) if now > since else 0.0,
            "latency_p50_us": p50,
            "latency_p99_us": p99,
        } | ({"torn": self.torn} if self.verify else {})

    @staticmethod
    def words(report: dict[str, Any]) -> tuple[str, str]:
        """A report's rate and counts, for people."""
        torn = f", torn {report['torn']}" if "torn" in report else ""
        counts = f"received {report['received']}, lost {report['lost']}, skipped {report['skipped']}{torn}"
        return f"{report['fps']:.1f} fps", counts


class PacketMeter:
    """Counts packets, and measures their latency: from publishing until the packet is taken.

    Packets that were in the ring before are counted as backlog: they say nothing about rates and latency.
    """

    def __init__(self) -> None:
        self.received = self.keyframes = self.bytes = self.backlog = 0
        self._latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._began = self._mark = time.monotonic()
        self._at_mark = (0, 0)

    @staticmethod
    def next(reader: PacketReader, timeout: float) -> Any:
        """The next packet."""
        return reader.next(timeout)

    def take(self, packet: Any) -> None:
        """Count one packet."""
        self.received += 1
        self.keyframes += packet.keyframe
        if packet.published_ns <= self._began * 1e9:
            self.backlog += 1
            return
        self._latencies.append(monotonic_ns() - packet.published_ns)
        self.bytes += len(packet.data)

    def report(self, reader: PacketReader, *, final: bool = False) -> dict[str, Any]:
        """Figures so far. Rates are measured since the last report, and over the whole time in the final report."""
        now = time.monotonic()
        since, count, size = (self._began, 0, 0) if final else (self._mark, *self._at_mark)
        new = self.received - self.backlog
        self._mark, self._at_mark = now, (new, self.bytes)
        p50, p99 = percentiles(self._latencies)
        elapsed = max(now - since, 1e-9)
        return {
            "codec": reader.codec,
            "packets_per_s": round((new - count) / elapsed, 2),
            "mbit_per_s": round((self.bytes - size) * 8e-6 / elapsed, 3),
            "received": self.received,
            "backlog": self.backlog,
            "keyframes": self.keyframes,
            "lost": reader.stats().lost,
            "latency_p50_us": p50,
            "latency_p99_us": p99,
        }

    @staticmethod
    def words(report: dict[str, Any]) -> tuple[str, str]:
        """A report's rates and counts, for people."""
        rate = f"{report['packets_per_s']:.1f} packets/s, {report['mbit_per_s']:.2f} Mbit/s"
        of_these = f"{report['keyframes']} keyframes, {report['backlog']} from before"
        return rate, f"received {report['received']} ({of_these}), lost {report['lost']}"


def percentiles(latencies: deque[int]) -> tuple[float | None, float | None]:
    """p50 and p99 of nanoseconds, in microseconds."""
    if not latencies:
        return None, None
    p50, p99 = numpy.percentile(latencies, [50, 99]) / 1000
    return round(float(p50), 1), round(float(p99), 1)


def watch(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    mode: Annotated[
        Literal["newest", "ordered"], typer.Option(help="Take the newest frame, or all in order.")
    ] = "newest",
    wait: Annotated[
        Literal["block", "spin", "predictive"],
        typer.Option(help="Sleep while waiting, use a whole core, or poll just before the next frame is due."),
    ] = "block",
    name: Annotated[str | None, typer.Option(help="Name of this subscriber.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between reports.")] = 1.0,
    packets: Annotated[bool, typer.Option("--packets", help="Read the encoded packets instead of the frames.")] = False,
    verify: Annotated[bool, typer.Option(help="Check every frame's stamp, from publish --stamp.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object per report; the last has final: true.")
    ] = False,
) -> None:
    """Join a publisher and print frames per second, latency, and the number of lost and skipped frames."""
    stop_on_signals()
    if packets:
        if wait == "predictive":
            raise ValueError("--wait predictive is for frames; with --packets use block or spin")
        with PacketReader(key, wait=wait) as reader:
            follow(reader, PacketMeter(), seconds, interval, json_)
        return
    with Subscriber(key, mode=mode, wait=wait, name=name) as subscriber:
        follow(subscriber, Meter(verify), seconds, interval, json_)


def follow(source: Any, meter: Any, seconds: float | None, interval: float, json_: bool) -> None:
    """Take frames or packets and report, until the publisher ends, the time is up, or a signal arrives."""
    with contextlib.suppress(Stopped, Disconnected):
        end = time.monotonic() + (1e9 if seconds is None else seconds)
        due = time.monotonic() + interval
        while (now := time.monotonic()) < end:
            if now >= due:
                _show(meter, meter.report(source), json_)
                due = max(due + interval, now)
            with contextlib.suppress(Timeout, PacketOverrun):
                meter.take(meter.next(source, min(due, end) - now if due > now else 0))
    _show(meter, meter.report(source, final=True) | {"final": True}, json_)


def _show(meter: Any, report: dict[str, Any], json_: bool) -> None:
    if json_:
        print_json(report)
        return
    p50, p99 = report["latency_p50_us"], report["latency_p99_us"]
    latency = "-" if p50 is None else f"{p50:.0f} / {p99:.0f}"
    total = "total: " if report.get("final") else ""
    rate, counts = meter.words(report)
    print(f"{total}{rate}, latency p50 / p99 {latency} us, {counts}", flush=True)
