"""``cuframes watch``: join and report."""

import contextlib
import json
import sys
import time
from collections import deque
from typing import Annotated, Any

import numpy
import typer

from cuframes._mapped import monotonic_ns
from cuframes.cli import Stopped, pixels, stop_on_signals
from cuframes.errors import Disconnected, Timeout
from cuframes.subscriber import Subscriber

__all__ = ["watch"]

LATENCIES_KEPT = 100_000


class Meter:
    """Counts frames and their latency: from the moment of publishing until they are in hand."""

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.received = self.torn = 0
        self._latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)
        self._began = self._mark = time.monotonic()
        self._at_mark = 0

    def take(self, frame: Any) -> None:
        """Look at one frame."""
        if frame.published_ns:
            self._latencies.append(monotonic_ns() - frame.published_ns)
        self.received += 1
        if self.verify and pixels.read_stamp(frame) != frame.pts_ns:
            self.torn += 1

    def report(self, subscriber: Subscriber, *, final: bool = False) -> dict[str, Any]:
        """Figures so far; ``fps`` is that of the time since the last report (of all the time, in the final one)."""
        now = time.monotonic()
        since, count = (self._began, self.received) if final else (self._mark, self.received - self._at_mark)
        self._mark, self._at_mark = now, self.received
        p50, p99 = numpy.percentile(self._latencies, [50, 99]) / 1000 if self._latencies else (None, None)
        stats = subscriber.stats()
        report = {
            "name": subscriber.name,
            "mode": subscriber.mode,
            "fps": round(count / (now - since), 2) if now > since else 0.0,
            "received": stats.received,
            "lost": stats.lost,
            "skipped": stats.skipped,
            "latency_p50_us": None if p50 is None else round(float(p50), 1),
            "latency_p99_us": None if p99 is None else round(float(p99), 1),
        }
        if self.verify:
            report["torn"] = self.torn
        return report


def watch(
    key: Annotated[str, typer.Argument(help="Publisher to join.")],
    mode: Annotated[str, typer.Option(help="newest or ordered.")] = "newest",
    wait: Annotated[str, typer.Option(help="block or spin.")] = "block",
    name: Annotated[str | None, typer.Option(help="Name to join under.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this long.")] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between reports.")] = 1.0,
    verify: Annotated[bool, typer.Option(help="Check the stamps of publish --stamp in every frame.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON object per report; the last has final: true.")
    ] = False,
) -> None:
    """Join a publisher and print frames per second, latency, and what was lost or skipped."""
    stop_on_signals()
    with Subscriber(key, mode=mode, wait=wait, name=name) as subscriber:
        meter = Meter(verify)
        with contextlib.suppress(Stopped, Disconnected):
            end = time.monotonic() + (1e9 if seconds is None else seconds)
            due = time.monotonic() + interval
            while (now := time.monotonic()) < end:
                if now >= due:
                    _show(meter.report(subscriber), json_)
                    due = max(due + interval, now)
                with contextlib.suppress(Timeout), subscriber.next(min(due, end) - now if due > now else 0) as frame:
                    meter.take(frame)
        _show(meter.report(subscriber, final=True) | {"final": True}, json_)


def _show(report: dict[str, Any], json_: bool) -> None:
    if json_:
        print(json.dumps(report), flush=True)
        return
    latency = (
        "-" if report["latency_p50_us"] is None else f"{report['latency_p50_us']:.0f} / {report['latency_p99_us']:.0f}"
    )
    torn = f", torn {report['torn']}" if "torn" in report else ""
    total = "in all: " if report.get("final") else ""
    print(
        f"{total}{report['fps']:.1f} fps, latency p50 / p99 {latency} us, received {report['received']}, "
        f"lost {report['lost']}, skipped {report['skipped']}{torn}",
        flush=True,
        file=sys.stdout,
    )
