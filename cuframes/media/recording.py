"""Packets to a file without re-encoding."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import av

from cuframes._native.status import monotonic_ns
from cuframes.errors import Disconnected, PacketOverrun, Timeout
from cuframes.media.files import FORMATS, BadKeyframe, FileReport, PacketFile, WriteFailed
from cuframes.media.muxing import Parameters
from cuframes.packets import Packet, PacketReader

__all__ = ["Recording", "backlog", "check_suffix"]

log = logging.getLogger("cuframes")


def backlog(reader: PacketReader, seconds: float) -> list[Packet]:
    """The packets already in the ring, beginning at the newest keyframe that is at least `seconds` old.

    Parameters
    ----------
    reader : PacketReader
        A reader just opened with ``start="oldest"``. It continues after these packets.
    seconds : float
        If the ring does not go back this far, all its packets are returned.
    """
    packets: list[Packet] = []
    with contextlib.suppress(Timeout, Disconnected):
        while True:
            with contextlib.suppress(PacketOverrun):
                packets.append(reader.next(0))
    since_ns = monotonic_ns() - int(seconds * 1e9)
    keys = [at for at, packet in enumerate(packets) if packet.keyframe]
    first = max((at for at in keys if packets[at].published_ns <= since_ns), default=keys[0] if keys else 0)
    return packets[first:]


class Recording:
    """Write packets to an MP4, MOV, MKV or TS file without encoding them again.

    Parameters
    ----------
    path : Path or str
        Created with the first keyframe. Packets before that cannot be decoded, and are skipped.
    reader : PacketReader
        The source of the packets, which also knows their codec.
    overwrite : bool
        Replace existing files.
    finished : callable, optional
        Called with a ``FileReport`` for every file that is complete.

    Attributes
    ----------
    paths : list of Path
        The files so far.
    packets, bytes : int
        What is in them.
    lost : int
        Packets that were overwritten in the ring before they were read.
    unwritten : int
        Packets that were read and could not be written.

    Raises
    ------
    FileExistsError, ValueError
    FileNotFoundError
        There is no folder for the file.

    Notes
    -----
    Timestamps begin at zero and grow. A gap in the stream is a gap in the file. If the publisher is restarted, the
    timestamps continue by the real time that has passed. If the codec parameters change, a new file is begun:
    ``name-2.mp4`` and so on.

    If the file cannot be written (the disk is full, or the file was removed), :meth:`write` raises an OSError that
    names the file. What had been written before can be played.
    """

    def __init__(
        self,
        path: Path | str,
        reader: PacketReader,
        *,
        overwrite: bool = False,
        finished: Callable[[FileReport], object] | None = None,
    ) -> None:
        self._begin(reader, finished)
        self._path = Path(path)
        check_suffix(self._path)
        self._overwrite = overwrite
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"{self._path}: there is no folder {str(self._path.parent)!r}; make it first")
        self._check_free(self._path)

    def _begin(self, reader: PacketReader, finished: Callable[[FileReport], object] | None) -> None:
        self._reader = reader
        self._finished = finished or (lambda report: None)
        self._file: Any = None
        self._duration_ns = self._past_ns = 0
        self._past_packets = self._past_bytes = 0
        self.paths: list[Path] = []
        self.lost = self._given = 0
        self._refused = False  # a packet was, and that was logged

    def _check_free(self, path: Path) -> None:
        if path.exists() and not self._overwrite:
            raise FileExistsError(f"{path} already exists; choose another name, or overwrite it")

    def follow(self, reader: PacketReader) -> None:
        """Continue with the packets of the next publisher."""
        self._reader = reader
        if self._file is not None:
            self._file.restart()

    def write(self, packet: Packet) -> None:
        """Add one packet. Add packets in the order in which they were read.

        Raises
        ------
        OSError
            The file cannot be written.
        FileExistsError, ValueError
        """
        if not packet.keyframe and not self._given:
            return
        before = self.packets
        self._given += 1
        self.lost += packet.lost
        try:
            if packet.keyframe:
                parameters = Parameters(self._reader, packet)
                if self._file is None or self._file.parameters != parameters or self._due(packet):
                    self._end_file()
                    self._begin_file(parameters, packet)
            if self._file is not None:
                self._put(packet)
        except Exception:
            raise
        except BaseException:  # a signal's, which ends the recording, and not what cannot be written
            self._given -= self.packets == before
            raise

    def look(self) -> None:
        """Notice what happened to the file, while no packet comes. Raises what :meth:`write` raises."""
        if self._file is not None:
            self._guarded(self._file.look)

    def _due(self, packet: Packet) -> bool:
        """Whether the file ends before this keyframe."""
        return False

    def _open(self, parameters: Parameters, first: Packet) -> Any:
        """What the packets from `first` on are written to."""
        number = len(self.paths) + 1
        path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
        self._check_free(path)
        file = PacketFile(path, parameters, first, overwrite=self._overwrite)
        self.paths.append(path)
        return file

    def _put(self, packet: Packet) -> None:
        try:
            self._guarded(self._file.write, packet)
        except OSError:
            raise
        except av.FFmpegError as problem:
            if not self.packets:
                raise
            if not self._refused:
                self._refused = True
                reason = problem.strerror or problem
                log.warning("packet %d is left out, as others will be that are damaged: %s", packet.seq, reason)

    def _begin_file(self, parameters: Parameters, first: Packet) -> None:
        try:
            self._file = self._open(parameters, first)
        except BadKeyframe as problem:
            if not self._past_packets:
                raise
            log.warning("%s; recording goes on with the next one", problem)

    def _end_file(self) -> None:
        if self._file is not None:
            self._guarded(self._file.close)
            self._account()

    def _guarded(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a method of the file, which may end it."""
        try:
            call(*arguments)
        except WriteFailed:
            self._account()
            raise

    def _account(self) -> None:
        """Count what is in the file that has ended."""
        file, self._file = self._file, None
        self._past_packets += file.packets
        self._past_bytes += file.bytes
        self._past_ns += file.duration_ns
        self._duration_ns = file.duration_ns
        if file.packets:
            self._finished(file.report())
        elif self.paths:
            self.paths.pop()

    @property
    def packets(self) -> int:
        """How many packets were written."""
        return self._past_packets + (self._file.packets if self._file is not None else 0)

    @property
    def unwritten(self) -> int:
        """How many packets were read, and are in no file."""
        return self._given - self.packets

    @property
    def bytes(self) -> int:
        """How many bytes the written packets have."""
        return self._past_bytes + (self._file.bytes if self._file is not None else 0)

    @property
    def duration_ns(self) -> int:
        """Time from the first to the last packet of the current file, in nanoseconds."""
        return self._duration_ns if self._file is None else int(self._file.duration_ns)

    @property
    def total_ns(self) -> int:
        """The duration of all files together, in nanoseconds."""
        return self._past_ns + (int(self._file.duration_ns) if self._file is not None else 0)

    def close(self) -> None:
        """Finish the file. It may be called twice.

        Raises
        ------
        OSError
            The last packets could not be written.
        """
        self._end_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_suffix(path: Path) -> None:
    """Raise ValueError unless there is a format for the end of the name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a recording must be a {', '.join(FORMATS)} file, not {path.name!r}")
