"""One connection that packets are pushed over: a process of its own.

FFmpeg may wait for a peer for as long as it likes, and PyAV holds the interpreter's lock while an output is opened and
closed. So each connection has a process, which :mod:`cuframes.media.pushing` can end at any time. Standard input has
the request, one line of JSON; when it ends, the connection is to be closed. Standard output has a line for every state.
"""

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import sys
import time
from typing import Any, Literal

import av
import av.logging

from cuframes.errors import CuframesError, Disconnected, NoPacketRing, NotFound, PacketOverrun, Timeout
from cuframes.media.destinations import shown
from cuframes.media.muxing import DamagedPacket, Muxer, Parameters
from cuframes.packets import Packet, PacketReader

__all__: list[str] = []

BEAT_SECONDS = 0.2
PR_SET_PDEATHSIG = 1
# What no other attempt can cure.
FINAL = tuple(
    getattr(av.error, name)
    for name in (
        "ProtocolNotFoundError", "MuxerNotFoundError", "OptionNotFoundError", "ArgumentError", "PatchWelcomeError",
        "EncoderNotFoundError", "BSFNotFoundError", "BugError",
    )
    if hasattr(av.error, name)
)  # fmt: skip


class _Log(logging.Handler):
    """What PyAV warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


_log = _Log()


class _Stopped(Exception):
    """The other side wants no more."""


def _tell(state: str, **more: Any) -> None:
    line = json.dumps({"state": state, **more}) + "\n"
    try:
        os.write(1, line.encode())
    except OSError:
        raise _Stopped from None


class _Connection:
    """Packets of a key on their way to one peer."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._packets = self._bytes = self._lost = 0
        self._beat_at = 0.0
        self._muxer: Muxer | None = None
        self._parameters: Parameters | None = None

    def run(self) -> None:
        """Push until the publisher has ended for good, the stream changes, or nobody wants it any more."""
        request = self._request
        with self._join("keyframe", request["connect_timeout"]) as reader:
            self._open(Parameters(reader, self._next_keyframe(reader)))
        # Opening may have taken a while: begin with what is new.
        reader = self._join("keyframe", request["reconnect"])
        while True:
            with reader:
                if self._follow(reader):
                    return
            reader = self._join("oldest", request["reconnect"])
            assert self._muxer is not None
            self._muxer.timeline.restart()

    def _join(self, start: Literal["keyframe", "oldest"], seconds: float) -> PacketReader:
        end = time.monotonic() + seconds
        while True:
            self._beat()
            left = max(0.0, end - time.monotonic())
            try:
                return PacketReader(self._request["key"], start, connect_timeout=min(left, BEAT_SECONDS))
            except (NotFound, NoPacketRing, Disconnected, Timeout):
                if not left:
                    raise

    def _next_keyframe(self, reader: PacketReader) -> Packet:
        while (packet := self._next(reader)) is not None:
            if packet.keyframe:
                return packet
        raise Disconnected(f"the publisher of {self._request['key']!r} has ended, and sent no keyframe")

    def _next(self, reader: PacketReader) -> Packet | None:
        """The next packet; None if the publisher has ended."""
        while True:
            self._beat()
            try:
                return reader.next(BEAT_SECONDS)
            except Timeout:
                continue
            except PacketOverrun as overrun:
                self._lost += overrun.lost
            except Disconnected:
                return None

    def _open(self, parameters: Parameters) -> None:
        _tell("opening")
        request = self._request
        try:
            self._muxer = Muxer(request["url"], request["format"], parameters, request["options"])
            self._muxer.begin()
        except FINAL as problem:
            _tell("refused", error=_reason(problem), kind=type(problem).__name__)
            raise _Stopped from None
        if _log.texts:  # about options that FFmpeg does not know
            raise ValueError(_log.texts[-1])
        self._parameters = parameters
        _tell("open")

    def _follow(self, reader: PacketReader) -> bool:
        """Push one publisher's packets; whether the stream has changed."""
        assert self._muxer is not None
        begun = False
        while (packet := self._next(reader)) is not None:
            if packet.keyframe and Parameters(reader, packet) != self._parameters:
                _tell("changed")
                return True
            begun = begun or packet.keyframe
            if begun:
                refusing = self._muxer.refusing
                try:
                    self._muxer.mux(packet)
                except DamagedPacket:
                    if refusing:  # a single one is left out
                        raise
                    continue
                self._packets += 1
                self._bytes += len(packet.data)
        return False

    def _beat(self) -> None:
        """Show that this process is not waiting for its peer, and find out whether it is to stop."""
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            _tell("live" if self._muxer is not None else "waiting", **self._counts())
        if select.select([0], [], [], 0)[0]:  # nothing comes there but the end
            raise _Stopped

    def _counts(self) -> dict[str, int]:
        return {"packets": self._packets, "bytes": self._bytes, "lost": self._lost}

    def close(self) -> None:
        """Say good-bye to the peer."""
        muxer, self._muxer = self._muxer, None
        if muxer is not None:
            with contextlib.suppress(av.FFmpegError):  # it may be what has failed
                muxer.close()
        _tell("counts", **self._counts())


def _reason(problem: av.FFmpegError) -> str:
    """The error, and what FFmpeg has logged about it."""
    reason = problem.strerror or str(problem)
    log: Any = problem.log
    logged = log[2].splitlines() if log else []
    return f"{reason} ({shown(logged[0].strip())})" if logged else reason


def main() -> None:
    """Do what the request on standard input says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    request = json.loads(sys.stdin.readline())
    # FFmpeg's own lines are part of the errors, and not printed.
    av.logging.set_level(av.logging.ERROR)
    logging.getLogger("libav").propagate = False
    logging.getLogger("libav").addHandler(logging.NullHandler())
    logging.getLogger("av").propagate = False
    logging.getLogger("av").addHandler(_log)
    connection = _Connection(request)
    try:
        try:
            connection.run()
        finally:
            connection.close()
    except _Stopped:
        pass
    except (NotFound, NoPacketRing, Disconnected, Timeout) as problem:
        with contextlib.suppress(_Stopped):
            _tell("ended", error=str(problem))
    except av.FFmpegError as problem:
        with contextlib.suppress(_Stopped):
            _tell("failed", error=_reason(problem))
    except DamagedPacket as problem:
        with contextlib.suppress(_Stopped):
            _tell("failed", error=str(problem))
    except (CuframesError, OSError, ValueError) as problem:
        with contextlib.suppress(_Stopped):
            _tell("refused", error=str(problem), kind=type(problem).__name__)


if __name__ == "__main__":
    main()
