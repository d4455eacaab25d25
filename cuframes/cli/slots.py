"""``cuframes publish --slot``: write the frames of a source to a framecache slot."""

import contextlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from cuframes import rates
from cuframes._native.slot import MAX_SOURCE_TYPE
from cuframes.cli import EXIT_STALE, fail, pixels
from cuframes.cli.shapes import Shaper, Size
from cuframes.errors import Disconnected, NotFound
from cuframes.framecache import SlotWriter, find_slot
from cuframes.media.sources import EncodedPacket, Picture

__all__ = ["SlotOutput", "geometry", "words"]


def geometry(slot_id: str, format: str | None) -> tuple[Size | None, str]:
    """The size of a slot, if it is there; and the format to convert to: that given, else the slot's, else UYVY."""
    with contextlib.suppress(NotFound):
        there = find_slot(slot_id)
        return Size(there.width, there.height), format or there.pixel_format
    return None, format or "uyvy422"


def words(report: dict[str, Any]) -> str:
    """A report for people."""
    if "slot_id" in report:
        return f"{report['written']} frames written"
    beside = f" and {report['packets']} packets" if "packets" in report else ""
    delay = ""
    if "delay_p50_us" in report:
        delay = f", delay p50 / p99 {report['delay_p50_us']:.0f} / {report['delay_p99_us']:.0f} us from packet to frame"
    return f"{report['published']} frames{beside} published, {report['dropped']} dropped{delay}"


class SlotOutput:
    """A framecache slot. Its writer is opened with the first picture, whose size all others get.

    Parameters
    ----------
    slot_id : str
    shaper : Shaper
    source : str
        What a new slot says of its source.
    ring_depth, group
        As for :class:`SlotWriter`.
    stamp : bool
    """

    def __init__(
        self, slot_id: str, shaper: Shaper, *, source: str, ring_depth: int | None, group: str | None, stamp: bool
    ) -> None:
        self.on_ready: Callable[[Any, Picture], object] = lambda output, picture: None
        self._slot_id = slot_id
        self._shaper = shaper
        self._source = source
        self._ring_depth = ring_depth
        self._group = group
        self._stamp = stamp
        self._writer: SlotWriter | None = None
        self._before = self._after = 0
        self._size = Size(0, 0)

    def take(self, picture: Picture | EncodedPacket) -> None:
        """Write a picture."""
        assert isinstance(picture, Picture)
        writer = self._writer
        if writer is None:
            writer = self._open(picture)
        frame = self._shaper.convert(picture, *self._size)
        pts_us = max(0, picture.pts_ns) // 1000
        try:
            if not self._stamp:
                writer.write(frame, pts_us=pts_us)
                return
            with writer.acquire() as entry:
                entry.copy_from(frame)
                pixels.stamp(entry.planes, pts_us)
                entry.pts_us = pts_us
        except Disconnected:
            fail(EXIT_STALE, f"the slot {self._slot_id!r} was removed")

    def _open(self, picture: Picture) -> SlotWriter:
        """Open a writer of the slot. A slot that does not exist is created with the source's rate."""
        width, height = self._size = Size(*self._shaper.size_of(picture))
        if self._stamp:
            pixels.check_stampable(self._shaper.format, width, height)
        more: dict[str, Any] = {}
        try:
            find_slot(self._slot_id)
        except NotFound:
            scheme, colon, _ = self._source.partition("://")
            kind = scheme if colon else "testsrc" if self._source == "testsrc" else "file"
            more = {"fps": _nominal(picture.stream.rate), "source_type": kind[:MAX_SOURCE_TYPE]}
        said = self._shaper.presentation(picture, width, height)._asdict()
        said.pop("frame_rate")  # a slot has a rate of its own
        # The only place where a writer is made.
        self._writer = SlotWriter(
            self._slot_id,
            width,
            height,
            self._shaper.format,
            ring_depth=self._ring_depth,
            group=self._group,
            **more,
            **said,
        )
        self._before = self._after = self._writer.frames_written
        self._shaper.fix(width, height)
        self.on_ready(self, picture)
        return self._writer

    def wait(self) -> None:
        """Nobody has to join a slot."""

    def close(self) -> None:
        """Close the writer; the slot stays."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self._after = writer.frames_written

    def describe(self) -> dict[str, Any]:
        """What it writes."""
        return {"slot_id": self._slot_id, "format": self._shaper.format} | self._size._asdict()

    def report(self) -> dict[str, Any]:
        """The figures."""
        return {"slot_id": self._slot_id, "written": self._after - self._before, "write_cursor": self._after}

    def __str__(self) -> str:
        about = self.describe()
        return f"writing the slot {self._slot_id}: {about['format']} {about['width']}x{about['height']}"


def _nominal(rate: Fraction | None) -> Fraction:
    """The rate of a slot: a standard one if it is near, since files give an average."""
    return rates.nearest(rate) if rate else rates.UNKNOWN_RATE
