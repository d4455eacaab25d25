"""Files of packets: written by FFmpeg, playable at any moment, and what is in them when a disk is full."""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

import av

from cuframes._native.status import monotonic_ns
from cuframes.errors import CuframesError
from cuframes.media.muxing import Muxer, Parameters
from cuframes.packets import Packet

__all__ = ["FORMATS", "BadKeyframe", "FileReport", "PacketFile", "WriteFailed", "wall_ns"]

# A fragment for every keyframe makes an MP4 readable after a crash; on close it becomes a plain one. Its index is
# written late, since only then an edit list can say that the first picture is shown at zero although B-frames begin
# before it.
MP4 = {"movflags": "hybrid_fragmented+frag_keyframe+delay_moov", "flush_packets": "1"}
# By the end of a name: FFmpeg's name of the format, and its options.
FORMATS = {
    ".mp4": ("mp4", MP4),
    ".mov": ("mov", MP4),
    ".mkv": ("matroska", {"flush_packets": "1"}),
    ".ts": ("mpegts", {"flush_packets": "1", "max_delay": "0"}),  # otherwise its clock begins at 1.4 s
}
FULL = (errno.ENOSPC, errno.EDQUOT)


def wall_ns(packet: Packet) -> int:
    """When a packet was published, in nanoseconds since 1970."""
    return time.time_ns() - (monotonic_ns() - packet.published_ns)


class WriteFailed(OSError):
    """A file could not be written, or not to its end.

    What had reached the file before stays, and can be played. ``path`` is the file; ``lost`` of the packets that it was
    given are not in it.
    """

    def __init__(self, problem: OSError, path: Path, lost: int = 0) -> None:
        reason = problem.strerror or str(problem)
        super().__init__(problem.errno, reason, str(path))
        self.path = path
        self.lost = lost

    @property
    def full(self) -> bool:
        """Whether the disk, or the quota, is full."""
        return self.errno in FULL

    def __str__(self) -> str:
        return f"{self.path}: {self.strerror}"


class BadKeyframe(CuframesError, ValueError):
    """FFmpeg cannot begin a file with this keyframe: it is damaged, or such a file cannot hold its codec."""


class FileReport(NamedTuple):
    """What is in a file: ``begun_ns`` is the time of its first packet in nanoseconds since 1970, ``bytes`` are those of
    the packets.
    """

    path: Path
    begun_ns: int
    duration_ns: int
    packets: int
    bytes: int


class PacketFile:
    """A file that packets are written to.

    Parameters
    ----------
    path : Path
        Its suffix selects the format.
    parameters : Parameters
    first : Packet
        The keyframe that will be written first.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    FileExistsError
    BadKeyframe
    WriteFailed
        Any other reason for which the file cannot be made.

    Notes
    -----
    The file is locked (``flock``) for as long as it is written. FFmpeg writes to it by its descriptor, so its name may
    contain whatever the file system allows.
    """

    def __init__(self, path: Path, parameters: Parameters, first: Packet, *, overwrite: bool = False) -> None:
        self.path = path
        self.begun_ns = wall_ns(first)
        self.packets = self.bytes = 0
        self._size = self._safe_packets = self._safe_bytes = self._safe_ns = 0
        self._ended_ns: int | None = None
        format, options = FORMATS[path.suffix.lower()]
        self._buffers = format != "mpegts"  # a fragment or cluster, until the next one begins
        self._fd = -1
        try:
            self._fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if overwrite else os.O_EXCL), mode=0o666
            )
            self._lock()
            self._muxer: Muxer | None = Muxer(f"file:/proc/self/fd/{self._fd}", format, parameters, options)
            self._muxer.begin()
        except FileExistsError:
            raise
        except OSError as problem:
            self._discard()
            raise WriteFailed(problem, path) from None
        except (av.FFmpegError, IndexError) as problem:  # the latter: it found no stream at all
            self._discard()
            reason = getattr(problem, "strerror", None) or "there is no video in it"
            raise BadKeyframe(f"{path}: a file cannot begin with this keyframe: {reason}") from None
        except BaseException:
            self._discard()
            raise
        self._timeline = self._muxer.timeline
        self.parameters = parameters

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            self._fd = -1
            raise FileExistsError(f"another process is recording to {self.path}") from None
        except OSError:  # a file system without locks
            pass

    @property
    def duration_ns(self) -> int:
        """Time from the first to the last picture."""
        return self._timeline.end_ns if self._ended_ns is None else self._ended_ns

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._size

    @property
    def safe_packets(self) -> int:
        """How many packets have reached the file, and could be played if the process ended now."""
        return self._safe_packets

    def restart(self) -> None:
        """The next packet has a different clock."""
        self._timeline.restart()

    def due(self, packet: Packet, segment_ns: int) -> bool:
        """Whether a file of this length ends before `packet`."""
        assert self._muxer is not None
        return self._muxer.where_ns(packet) + self._timeline.step_ns // 2 >= segment_ns

    def write(self, packet: Packet) -> None:
        """Add one packet.

        Raises
        ------
        WriteFailed
            The file is finished; it has what reached it before.
        av.FFmpegError
            The packet is damaged, and left out.
        """
        assert self._muxer is not None
        before = self.packets, self.bytes, self.duration_ns
        self.packets += 1
        self.bytes += len(packet.data)
        try:
            self._muxer.mux(packet)
            self.look()
        except WriteFailed:
            raise
        except OSError as problem:
            self._give_up(problem)
        except av.FFmpegError:  # about this packet; the file goes on
            self.packets, self.bytes, _ = before
            raise
        size = os.fstat(self._fd).st_size
        if size > self._size:
            self._size = size
            safe = before if self._buffers else (self.packets, self.bytes, self.duration_ns)
            self._safe_packets, self._safe_bytes, self._safe_ns = safe

    def look(self) -> None:
        """Find out whether the file still has a name.

        Raises
        ------
        WriteFailed
        """
        if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
            self._size = self._safe_packets = self._safe_bytes = self._safe_ns = 0
            self._give_up(FileNotFoundError(errno.ENOENT, "the file was removed while it was being recorded"))

    def close(self) -> None:
        """Finish the file. It may be called twice.

        Raises
        ------
        WriteFailed
            The file lacks the last packets.
        """
        if self._muxer is None:
            return
        self.look()
        try:
            self._muxer.close()
        except OSError as problem:
            self._give_up(problem)
        self._muxer = None
        self._end()

    def report(self) -> FileReport:
        """What is in the file."""
        return FileReport(self.path, self.begun_ns, self.duration_ns, self.packets, self.bytes)

    def _give_up(self, problem: OSError) -> None:
        """End the file with what has reached it whole. FFmpeg writes nothing more to a file after an error."""
        lost = self.packets - self._safe_packets
        self.packets, self.bytes, self._ended_ns = self._safe_packets, self._safe_bytes, self._safe_ns
        muxer, self._muxer = self._muxer, None
        if muxer is not None:
            with contextlib.suppress(OSError, ValueError):
                muxer.close()
        if self.packets:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self._end()
        else:
            self._discard()
        raise WriteFailed(problem, self.path, lost) from None

    def _discard(self) -> None:
        """Remove the file, in which nothing can be played."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                self.path.unlink()
        self._end()

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
