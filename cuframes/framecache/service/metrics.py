"""Metrics for Prometheus, gathered from the slots at every scrape."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cuframes.framecache.service.registry import Registry

__all__ = ["Metrics"]

PREFIX = "cuframes_framecache"


class Metrics(Collector):
    """The service and its slots as Prometheus metrics."""

    def __init__(self, registry: Registry) -> None:
        self._slots = registry
        self._began = time.monotonic()
        self._collectors = CollectorRegistry()
        self._collectors.register(self)

    def text(self) -> bytes:
        """Exposition format, version 0.0.4."""
        return generate_latest(self._collectors)

    def describe(self) -> list[Metric]:
        """Nothing: otherwise registering would gather all metrics once."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        slots = self._slots.slots()
        summary = self._slots.summary(slots)
        yield GaugeMetricFamily(f"{PREFIX}_uptime_seconds", "Since the service began.", time.monotonic() - self._began)
        yield GaugeMetricFamily(f"{PREFIX}_slots", "Number of slots.", summary["slots"])
        yield GaugeMetricFamily(f"{PREFIX}_used_bytes", "Bytes used by slots.", summary["bytes_used"])
        yield GaugeMetricFamily(f"{PREFIX}_free_bytes", "Bytes available to new slots.", summary["bytes_free"])
        frames = CounterMetricFamily(f"{PREFIX}_frames", "Frames ever written to a slot.", labels=["slot_id"])
        dropped = CounterMetricFamily(f"{PREFIX}_dropped_frames", "Frames that the source lost.", labels=["slot_id"])
        fps = GaugeMetricFamily(f"{PREFIX}_fps", "Frames per second, over the last 2 s.", labels=["slot_id"])
        age = GaugeMetricFamily(f"{PREFIX}_last_frame_age_seconds", "Age of the newest frame.", labels=["slot_id"])
        writer = GaugeMetricFamily(f"{PREFIX}_writer", "1 if the slot has a writer, else 0.", labels=["slot_id"])
        for slot in slots:
            label = [slot.slot_id]
            frames.add_metric(label, slot.write_cursor)
            dropped.add_metric(label, slot.dropped_frames)
            writer.add_metric(label, slot.writer_pid is not None)
            if slot.fps is not None:
                fps.add_metric(label, slot.fps)
            if slot.last_frame_age_s is not None:
                age.add_metric(label, slot.last_frame_age_s)
        yield from (frames, dropped, fps, age, writer)
