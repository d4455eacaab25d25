"""``cuframes publish --slot``: write the frames of a source to a framecache slot."""

import contextlib
import sys
import time
from typing import Any

from cuframes._native.slot import MAX_SOURCE_TYPE
from cuframes.cli import EXIT_STALE, Stopped, fail, pixels
from cuframes.cli.source import Source
from cuframes.errors import Disconnected, NotFound
from cuframes.framecache import SlotWriter, find_slot
from cuframes.media.pictures import presentation_of

__all__ = ["geometry", "publish"]


def geometry(slot_id: str, size: tuple[int, int] | None, format: str | None) -> tuple[tuple[int, int] | None, str]:
    """Size and format to convert to: those given, else the slot's, else the source's size and UYVY."""
    with contextlib.suppress(NotFound):
        there = find_slot(slot_id)
        size, format = size or (there.width, there.height), format or there.pixel_format
    return size, format or "uyvy422"


def publish(
    slot_id: str, video: Source, *, ring_depth: int | None, group: str | None, seconds: float | None, stamp: bool
) -> dict[str, Any]:
    """Write a source's frames until it ends, the time is up, or a signal arrives. Returns the figures to report."""
    if stamp:
        pixels.check_stampable(video.format, video.width, video.height)
    with _open_writer(slot_id, video, ring_depth, group) as writer:
        print(f"writing {writer} from {video.url}", file=sys.stderr)
        before = writer.frames_written
        _fill(writer, video, seconds, stamp)
        return {"slot_id": slot_id, "written": writer.frames_written - before, "write_cursor": writer.frames_written}


def _open_writer(slot_id: str, video: Source, ring_depth: int | None, group: str | None) -> SlotWriter:
    """Open a writer of the slot. A slot that does not exist is created with the source's rate."""
    looks = presentation_of(video.stream, format=video.format, size=(video.width, video.height))
    del looks["frame_rate"]  # the slot's is fps
    with contextlib.suppress(NotFound):
        find_slot(slot_id)
        return SlotWriter(slot_id, video.width, video.height, video.format, ring_depth=ring_depth, group=group, **looks)
    kind = video.url.partition("://")[0] if "://" in video.url else "testsrc" if video.url == "testsrc" else "file"
    return SlotWriter(
        slot_id,
        video.width,
        video.height,
        video.format,
        fps=video.rate,
        ring_depth=ring_depth,
        source_type=kind[:MAX_SOURCE_TYPE],
        group=group,
        **looks,
    )


def _fill(writer: SlotWriter, video: Source, seconds: float | None, stamp: bool) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    try:
        for frame, pts_ns in video.frames():
            if end is not None and time.monotonic() >= end:
                break
            _write(writer, frame, max(0, pts_ns) // 1000, stamp)
    except Stopped:
        pass
    except Disconnected:
        fail(EXIT_STALE, f"the slot {writer.slot_id!r} was removed")


def _write(writer: SlotWriter, frame: Any, pts_us: int, stamp: bool) -> None:
    if not stamp:
        writer.write(frame, pts_us=pts_us)
        return
    with writer.acquire() as entry:
        entry.copy_from(frame)
        pixels.stamp(entry.planes, pts_us)
        entry.pts_us = pts_us
