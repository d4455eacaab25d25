"""Packets to a pipe, as one stream without an end."""

import os
import select
from pathlib import Path

from cuframes.media.files import FileReport, WriteFailed, wall_ns
from cuframes.media.muxing import MPEGTS_OPTIONS, Muxer, Parameters
from cuframes.media.recording import Recording
from cuframes.packets import Packet, PacketReader

__all__ = ["STREAM_FORMATS", "StreamRecording", "check_reader"]

# By the name that the command line knows: FFmpeg's, and options. No packet waits for later ones.
STREAM_FORMATS = {
    "mpegts": ("mpegts", MPEGTS_OPTIONS),
    "nut": ("nut", {"flush_packets": "1"}),
    "mkv": ("matroska", {"flush_packets": "1", "cluster_time_limit": "1"}),
}


def check_reader(descriptor: int) -> None:
    """Raise BrokenPipeError if a pipe or socket has no reader any more."""
    watched = select.poll()
    watched.register(descriptor, 0)  # errors and hang-ups are reported anyway
    if watched.poll(0):
        raise BrokenPipeError


class StreamRecording(Recording):
    """Write packets to a descriptor, for a program that reads a stream.

    Parameters
    ----------
    descriptor : int
        It stays open. Writing waits for the reader; a signal handler that raises ends it at once.
    format : {"mpegts", "nut", "mkv"}
    reader : PacketReader

    Raises
    ------
    ValueError

    Notes
    -----
    If the codec parameters change, the stream goes on with a new head, from which MPEG-TS players go on as well.
    """

    def __init__(self, descriptor: int, format: str, reader: PacketReader) -> None:
        if format not in STREAM_FORMATS:
            raise ValueError(f"the format of a stream must be {', '.join(STREAM_FORMATS)}; not {format!r}")
        self._begin(reader, None)
        self._descriptor = descriptor
        self._format = format

    def _open(self, parameters: Parameters, first: Packet) -> "PacketStream":
        return PacketStream(self._descriptor, self._format, parameters, first)

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None and self._file is not None:
            self._file.abandon()  # its reader may have gone, or may not be reading
            self._account()
        self.close()

    def look(self) -> None:
        """Raise BrokenPipeError if nobody reads any more."""
        check_reader(self._descriptor)


class PacketStream:
    """A container that goes to a descriptor, from its head to its end."""

    def __init__(self, descriptor: int, format: str, parameters: Parameters, first: Packet) -> None:
        self.parameters = parameters
        self.begun_ns = wall_ns(first)
        self.packets = self.bytes = 0
        self._descriptor = descriptor
        self._pieces = _Pieces()
        name, options = STREAM_FORMATS[format]
        self._muxer = Muxer(self._pieces, name, parameters, options)

    @property
    def duration_ns(self) -> int:
        """Time from the first to the last picture."""
        return self._muxer.timeline.end_ns

    @property
    def refusing(self) -> bool:
        """Whether the newest packet was refused."""
        return self._muxer.refusing

    def restart(self) -> None:
        """The next packet has a different clock."""
        self._muxer.timeline.restart()

    def write(self, packet: Packet) -> None:
        """Write one packet, and wait until it is written."""
        self._muxer.mux(packet)
        self._pass_on()
        self.packets += 1
        self.bytes += len(packet.data)

    def close(self) -> None:
        """Write the end of the container. It may be called twice."""
        self._muxer.close()
        self._pass_on()

    def abandon(self) -> None:
        """Write nothing more."""
        self._muxer.close()
        self._pieces.take()

    def report(self) -> FileReport:
        """What was written."""
        return FileReport(Path("-"), self.begun_ns, self.duration_ns, self.packets, self.bytes)

    def _pass_on(self) -> None:
        left = memoryview(self._pieces.take())
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # whoever gave it to us does not wait for its reader; we do
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                raise
            except OSError as problem:
                raise WriteFailed(problem, Path("standard output")) from None


class _Pieces:
    """A file for FFmpeg to write to, in memory, that cannot be rewound.

    Its ``write`` is not a Python function: a signal handler could raise in one, and FFmpeg would not pass that on.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.write = self._pieces.append

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
