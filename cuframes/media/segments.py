"""Recording without an end: a file after the other, old ones removed, going on when the disk has room again."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cuframes.media.files import FileReport, PacketFile, WriteFailed, wall_ns
from cuframes.media.muxing import Parameters
from cuframes.media.patterns import Pattern
from cuframes.media.recording import Recording, check_suffix
from cuframes.packets import Packet, PacketReader

__all__ = ["Retention", "SegmentedRecording"]

SECOND_NS = 1_000_000_000
LOOK_SECONDS = 5.0  # between two looks at the age and size of all files
RETRY_SECONDS = (1.0, 10.0)  # after a failure: the first wait, which doubles, and the longest one
ROOM_BYTES = 64 << 10  # do not try again with less


class Retention:
    """Removes the oldest files of a pattern: those that it names, and nothing else.

    Parameters
    ----------
    pattern : Pattern
        Its file name must have a time, so that other files are not taken for its own.
    keep_s : float, optional
        Remove files that were last written more than this many seconds ago.
    max_size : int, optional
        Remove the oldest files until all of them together have at most this many bytes.

    Raises
    ------
    ValueError

    Notes
    -----
    Files that a recorder is writing are locked, and stay.
    """

    def __init__(self, pattern: Pattern, keep_s: float | None = None, max_size: int | None = None) -> None:
        if (keep_s is not None or max_size is not None) and not pattern.dated:
            raise ValueError(
                "old files are removed by their names, so the file name must have a time in it, such as %Y%m%d-%H%M%S"
            )
        self._pattern = pattern
        self._keep_s = keep_s
        self._max_size = max_size
        self.removed = 0

    def apply(self, newest: Path | None = None) -> None:
        """Remove what is too old or too much, except for the newest file."""
        if self._keep_s is None and self._max_size is None:
            return
        files = self._pattern.files()
        total = sum(file.size for file in files)
        for file in files:
            if file.path == newest:
                continue
            old = self._keep_s is not None and time.time_ns() - file.changed_ns > self._keep_s * SECOND_NS
            if (old or (self._max_size is not None and total > self._max_size)) and _remove(file.path):
                total -= file.size
                self.removed += 1
                self._pattern.remove_empty_folders(file.path)


def _remove(path: Path) -> bool:
    """Remove a file unless somebody is writing it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


class SegmentedRecording(Recording):
    """Write packets to one file after the other, cut at keyframes. No packet is in two files, and none is missing.

    Parameters
    ----------
    pattern : Pattern
        The files' names, by the time of their first packet. If a name is taken, ``-2``, ``-3``, … is added to it.
        Folders are made.
    reader : PacketReader
    segment_s : float
        A new file begins with the first keyframe that is at least this many seconds after the file's beginning.
    retention : Retention, optional
    finished, told : callable, optional
        Called with a ``FileReport`` for every file that is complete, and with a line of text for every failure and its
        end.

    Raises
    ------
    ValueError

    Notes
    -----
    If a file cannot be written, :meth:`write` goes on with the next one, as soon as that is possible, and counts in
    ``unwritten`` what could not be written meanwhile. It raises an OSError only if there never was a file, for another
    reason than a full disk.
    """

    def __init__(
        self,
        pattern: Pattern,
        reader: PacketReader,
        segment_s: float,
        *,
        retention: Retention | None = None,
        finished: Callable[[FileReport], object] | None = None,
        told: Callable[[str], object] | None = None,
    ) -> None:
        self._begin(reader, finished)
        check_suffix(Path(pattern.path(0).name))
        self._pattern = pattern
        self._segment_ns = int(segment_s * SECOND_NS)
        self._retention = retention or Retention(pattern)
        self._told = told or (lambda text: None)
        self._began = False  # a file could be made
        self._next_look = 0.0
        self._number: tuple[Path, int] | None = None  # the newest name, and how many files have it
        self._pause: _Pause | None = None
        self._reported = 0  # how much of what is unwritten was told
        self._wait_s = RETRY_SECONDS[0]
        self._gop_bytes = self._since_keyframe = 0

    def write(self, packet: Packet) -> None:
        """Add one packet.

        Raises
        ------
        OSError
            The first file cannot be made.
        ValueError
            The codec cannot be recorded.
        """
        if packet.keyframe:
            self._gop_bytes, self._since_keyframe = self._since_keyframe, 0
        self._since_keyframe += len(packet.data)
        if self._pause is not None and self._file is None and not (packet.keyframe and self._may_try(self._pause)):
            self._given += 1
            self.lost += packet.lost
            self._apply_retention()  # which may make room
            return
        try:
            super().write(packet)
        except WriteFailed as problem:
            if not self._began and not problem.full:
                raise
            self._stop(problem)
        if self._file is not None:
            self._go_on()
        if packet.keyframe:
            self._apply_retention()

    def look(self) -> None:
        """Notice what happened to the files, while no packet comes. Raises nothing."""
        try:
            super().look()
        except WriteFailed as problem:
            self._stop(problem)
        self._apply_retention()

    def close(self) -> None:
        """Finish the file. It may be called twice. Raises nothing."""
        began, self._began = self._began, False
        try:
            super().close()
        except WriteFailed as problem:
            self._told(f"{problem}; its last {problem.lost} packets are lost")
        if began:
            self._apply_retention(now=True)

    def _due(self, packet: Packet) -> bool:
        return bool(self._file.due(packet, self._segment_ns))

    def _open(self, parameters: Parameters, first: Packet) -> PacketFile:
        begun_ns = wall_ns(first)
        plain = self._pattern.path(begun_ns)
        number = self._number[1] + 1 if self._number is not None and self._number[0] == plain else 1
        while True:
            path = plain if number == 1 else plain.with_stem(f"{plain.stem}-{number}")
            try:
                file = _make(path, parameters, first)
            except FileExistsError:
                number += 1
            else:
                file.begun_ns = begun_ns
                self._number = plain, number
                self._began = True
                self._next_look = 0.0
                self.paths.append(path)
                return file

    def _apply_retention(self, now: bool = False) -> None:
        begun = time.monotonic()
        if now or begun >= self._next_look:
            self._retention.apply(self.paths[-1] if self.paths else None)
            took = time.monotonic() - begun
            self._next_look = begun + max(LOOK_SECONDS, 100 * took)  # with very many files, less often

    # ---- what cannot be written

    def _stop(self, problem: WriteFailed) -> None:
        """Wait for better times."""
        if self._pause is None:
            self._told(f"{problem}; recording goes on when it can be written again")
            self._pause = _Pause(time.monotonic())
        self._pause.full = problem.full
        self._pause.folder = problem.path.parent
        self._pause.again_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, RETRY_SECONDS[1])

    def _may_try(self, pause: "_Pause") -> bool:
        if time.monotonic() < pause.again_at:
            return False
        if not pause.full:
            return True
        try:
            disk = os.statvfs(pause.folder)
        except OSError:
            return True  # what is wrong shows when the file is made
        return disk.f_bavail * disk.f_frsize >= max(ROOM_BYTES, 2 * self._gop_bytes)

    def _go_on(self) -> None:
        """The file is being written. Once something has reached it, all is well."""
        pause = self._pause
        if pause is not None and self._file.safe_packets:
            self._pause = None
            lost, seconds = self.unwritten - self._reported, time.monotonic() - pause.since
            self._reported = self.unwritten
            self._told(f"{self._file.path}: recording goes on; {lost} packets in {seconds:.1f} s were lost")
        if self._file.duration_ns > RETRY_SECONDS[1] * SECOND_NS:
            self._wait_s = RETRY_SECONDS[0]


@dataclass
class _Pause:
    """Since when nothing can be written, and why."""

    since: float
    full: bool = False
    again_at: float = 0.0
    folder: Path = Path()


def _make(path: Path, parameters: Parameters, first: Packet) -> PacketFile:
    """A file, and its folders; FileExistsError if the file is there."""
    for _ in range(3):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise WriteFailed(problem, path.parent) from None
        try:
            return PacketFile(path, parameters, first)
        except WriteFailed as problem:
            if problem.errno != errno.ENOENT:
                raise
            failed = problem  # somebody has just removed the folder, which was empty
    raise failed
