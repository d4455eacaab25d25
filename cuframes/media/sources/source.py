"""A source that can be left alone: it opens a file, camera or stream, and opens it again when it fails."""

import logging
import os
import queue
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

from cuframes._native.status import monotonic_ns
from cuframes.errors import Disconnected, SourceError, Timeout
from cuframes.formats import whole_number
from cuframes.host.steps import deadline_after
from cuframes.media.sources.clock import ContinuousClock, Thinner
from cuframes.media.sources.connection import GRACE_SECONDS, Connection, Ended, Opened, Refused, Request, stuck
from cuframes.media.sources.items import Acceleration, EncodedPacket, Picture, StreamInfo
from cuframes.media.sources.limiter import Limiter
from cuframes.media.sources.urls import TEST_PICTURE, Kind, find
from cuframes.rates import Rate, rate

__all__ = ["Source", "SourceState", "open_source"]

log = logging.getLogger("cuframes")

TIMEOUT = 10.0
LONGEST_TIMEOUT = 1e6  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; each pause is twice the one before
JITTER = 0.2  # of a pause, so that many sources do not all come back at once
HEALTHY_SECONDS = 60.0  # after this time without a problem, the next pause is the first again
STALLED_SECONDS = 1.5  # a live source without a picture for longer than this, and than three pictures, has stalled
STOPPED_SECONDS = 0.25  # a wait that ends this much too late was that of a stopped process (or a very busy machine)
STUCK_SECONDS = 5.0  # how often to look whether they are still stuck
MAX_STUCK = 8  # threads that FFmpeg does not give back; with this many, nothing is opened
SECOND_NS = 1_000_000_000


class SourceState(NamedTuple):
    """Where a source stands.

    ``name`` is ``"opening"``, ``"live"``, ``"stalled"`` (open, but nothing comes), ``"reconnecting"`` or ``"ended"``.
    ``since`` is when that began, in seconds of the clock (``time.time()``). ``attempt`` counts the attempts to open it
    since it was live last. ``error`` is the newest problem, and stays until the source has been live for a minute.
    """

    name: Literal["opening", "live", "stalled", "reconnecting", "ended"]
    since: float
    attempt: int
    error: str | None


class Source:
    """Pictures and packets of a file, camera or stream. Use :func:`open_source`, which describes the parameters.

    Iterate it, or call :meth:`next`. Close it, or use it as a context manager. One thread at a time may iterate; any
    thread may close it.

    Attributes
    ----------
    url : str
        As given, without its password.
    on_state : callable or None
        Called with each new :class:`SourceState`, in the thread that iterates.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        packets: bool = False,
        timeout: float = TIMEOUT,
        reconnect: Literal["auto", "always", "never"] = "auto",
        fps: Rate | None = None,
        realtime: bool | None = None,
        loop: bool = False,
        threads: int = 0,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        video_stream: int = 0,
        acceleration: Acceleration | None = None,
        via: Literal["ffmpeg"] | None = None,
        size: tuple[int, int] = (1280, 720),
    ) -> None:
        if reconnect not in ("auto", "always", "never"):
            raise ValueError(f"reconnect must be auto, always or never, not {reconnect!r}")
        url = os.fspath(url)
        if not isinstance(url, str):
            raise TypeError(f"a source is a str or a path, not {type(url).__name__}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
        if not 0 < timeout < LONGEST_TIMEOUT:
            raise ValueError(f"timeout must be above 0 s and below {LONGEST_TIMEOUT:.0e} s, not {timeout!r}")
        if via not in (None, "ffmpeg"):
            raise ValueError(f"via must be 'ffmpeg' or None, not {via!r}")
        options = dict(options or {})
        for name, value in options.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"options must have names and values of type str, not {name!r}: {value!r}")
        threads = whole_number(threads, "threads", 0, 64)
        video_stream = whole_number(video_stream, "video_stream", 0, 2**15)
        self._fps = None if fps is None else rate(fps)
        place = find(url, format, via, size=f"{size[0]}x{size[1]}", fps=str(self._fps or 25))
        self.url = place.shown
        self.on_state: Callable[[SourceState], object] | None = None
        self._reconnect = reconnect
        self._timeout = timeout
        self._realtime = realtime
        self._request = Request(place, options, timeout, threads, video_stream, acceleration, packets, loop)
        self._limiter = Limiter(place.shown)
        self._clock = ContinuousClock()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._closed = False
        self._state = SourceState("opening", time.time(), 1, None)
        self._deadline = 0.0  # when the connection is given up
        self._quiet_at = 0.0  # when it has stalled
        self._retry_at = 0.0
        self._was_live = False
        self._live_at: float | None = None
        self._pauses = 0
        self._newest_ns: int | None = None  # arrival of the newest picture or packet
        self._stream: StreamInfo | None = None
        self._damaged = self._dropped = 0
        self._held: Picture | None = None  # a file's picture that is not due yet
        self._thinner: Thinner | None = None
        self._over_tcp = False
        self._count = 0
        self._start: tuple[float, int] | None = None

    # ---- what it gives

    def next(self, timeout: float | None = None) -> Picture | EncodedPacket:
        """The next picture, or packet if packets were asked for.

        Opens the source, waits for it, and opens it again after a failure.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; None waits without a limit. This is no deadline of the source, which goes on.

        Raises
        ------
        Timeout
        Disconnected
            The file, or a live source with ``reconnect="never"``, has ended without a problem.
        SourceError
            It cannot be opened, or has ended because of a problem, and is not opened again.
        ValueError
            The source is closed.
        """
        deadline = deadline_after(timeout)
        while True:
            if self._closed:
                raise ValueError("the source is closed")
            if self._held is not None:
                return self._play(deadline)
            item = self._step(deadline)
            if isinstance(item, EncodedPacket):
                return item
            if isinstance(item, Picture) and (picture := self._timed(item)) is not None:
                self._held = picture

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Picture | EncodedPacket:
        try:
            return self.next()
        except Disconnected:
            raise StopIteration from None
        except ValueError:
            if self._closed:
                raise StopIteration from None
            raise

    @property
    def state(self) -> SourceState:
        """Where it stands now."""
        return self._state

    @property
    def stream(self) -> StreamInfo | None:
        """The newest connection's stream; None before the source was opened."""
        return self._stream

    @property
    def damaged(self) -> int:
        """Packets that the decoder refused."""
        return self._damaged + (self._connection.damaged if self._connection is not None else 0)

    @property
    def dropped(self) -> int:
        """Pictures of a live source that were not taken in time."""
        return self._dropped + (self._connection.dropped if self._connection is not None else 0)

    @property
    def stuck(self) -> int:
        """Threads of this process that were given up, since FFmpeg does not return from a call."""
        return stuck()

    def close(self) -> None:
        """Close the source, whatever it is doing. A waiting ``next`` raises ValueError, iteration ends."""
        self._closed = True
        self._items.put(None)
        self._leave()
        self._limiter.flush()
        if self._state.name != "ended":
            self._become("ended", self._state.error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        connection = self.__dict__.get("_connection")
        if connection is not None:
            connection.abandon()

    def __reduce__(self) -> Any:
        raise TypeError("a source cannot be copied or pickled; open it in the other process: cuframes.open_source(url)")

    def __repr__(self) -> str:
        return f"<Source {self.url!r}, {self._state.name}>"

    # ---- the state machine

    def _step(self, deadline: float | None) -> Picture | EncodedPacket | None:
        """Wait for one thing to happen. Returns what the consumer gets, if it is that."""
        now = time.monotonic()
        connection = self._connection
        if connection is None and now >= self._retry_at:
            self._connect(now)
            return None
        until = self._retry_at if connection is None else min(self._deadline, self._quiet_at)
        wake = max(now, until if deadline is None else min(until, deadline))
        try:
            arrived = self._items.get(timeout=wake - now)
        except queue.Empty:
            now = time.monotonic()
            if now - wake > STOPPED_SECONDS:  # this process was stopped: the source was not silent meanwhile
                self._deadline += now - wake
                self._quiet_at += now - wake
            if connection is not None and now >= self._deadline:
                self._fail(SourceError(f"{self.url}: nothing came within {self._timeout:g} s"), overdue=True)
            elif connection is not None and now >= self._quiet_at:
                self._quiet_at = self._deadline
                self._become("stalled", self._state.error)
            elif deadline is not None and now >= deadline:
                raise Timeout(f"{self.url}: nothing came in this time; it is {self._state.name}") from None
            return None
        if arrived is None or arrived[0] is not connection or connection is None:  # of one that was given up
            return None
        item: Opened | Ended | Picture | EncodedPacket = arrived[1]
        if isinstance(item, Opened):
            self._stream = item.stream
            if not self._was_live or self._state.name != "live":
                self._expect(opened=True)
        elif isinstance(item, Ended):
            self._fail(item.problem)
        else:
            connection.taken(item)
            self._newest_ns = item.arrived_ns
            if isinstance(item, Picture):
                self._live(item)
            return item
        return None

    def _connect(self, now: float) -> None:
        if stuck() >= MAX_STUCK:
            self._retry_at = now + STUCK_SECONDS
            self._limiter.warning("stuck", f"FFmpeg does not return from {MAX_STUCK} attempts; waiting for it")
            return
        again = None
        if self._was_live and self._newest_ns is not None:
            again = (monotonic_ns() - self._newest_ns) / SECOND_NS
        try:
            self._connection = Connection(self._attempt(), self._clock, self._items, self._limiter, again)
        except RuntimeError as problem:  # the machine, or the container, has no room for another thread now
            self._fail(SourceError(f"{self.url}: {problem}"))
            return
        self._deadline = now + self._timeout + GRACE_SECONDS
        self._quiet_at = self._deadline
        if self._closed:  # by another thread, just now
            self._leave()

    def _attempt(self) -> Request:
        """What to open this time. RTSP over UDP is tried in turn with TCP, which goes through what stops UDP."""
        request = self._request
        if not self._over_tcp or "rtsp_transport" in request.options:
            return request
        return request._replace(options=request.options | {"rtsp_transport": "tcp"})

    def _expect(self, *, opened: bool = False) -> None:
        """Something came, so the next thing is waited for from now on."""
        now = time.monotonic()
        self._deadline = now + self._timeout + (GRACE_SECONDS if opened else 0.0)
        stream = self._stream
        if stream is not None and stream.live:
            pictures = 3 / float(stream.rate) if stream.rate else 0.0
            self._quiet_at = min(self._deadline, now + max(STALLED_SECONDS, pictures))
        else:
            self._quiet_at = self._deadline

    def _live(self, picture: Picture) -> None:
        self._expect()
        now = time.monotonic()
        if self._live_at is None:
            self._live_at = now
        if now - self._live_at >= HEALTHY_SECONDS and (self._pauses or self._state.error):
            self._pauses = 0
            self._state = self._state._replace(error=None)
        if self._state.name != "live":
            if self._state.name == "reconnecting":
                self._limiter.warning("live", f"live again after {time.time() - self._state.since:.0f} s")
            self._was_live = True
            self._become("live", self._state.error)

    def _fail(self, problem: Exception | None, *, overdue: bool = False) -> None:
        """The connection is over; `overdue`: it should have said so itself."""
        if self._closed:  # by another thread, just now
            return
        opened, place = self._stream, self._request.place
        self._leave(overdue=overdue)
        if problem is not None and not isinstance(problem, SourceError):
            log.error("%s: an unexpected error", self.url, exc_info=problem)
            problem = SourceError(f"{self.url}: {problem!r}")
        if not self._comes_back(problem):
            self._closed = True  # whatever on_state raises
            self._become("ended", str(problem) if problem else None)
            if problem is not None:
                raise problem
            if opened is not None and place.kind is Kind.STREAM:
                raise SourceError(f"{self.url}: the stream has ended")
            raise Disconnected(f"{self.url} has ended")
        if self._live_at is None and place.url.startswith("rtsp:"):
            self._over_tcp = not self._over_tcp
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._pauses)
        pause = min(LONGEST_PAUSE, pause * random.uniform(1 - JITTER, 1 + JITTER))
        self._pauses += 1
        self._live_at = None
        self._retry_at = time.monotonic() + pause
        why = str(problem) if problem else f"{self.url}: the stream has ended"
        said = why.removeprefix(f"{self.url}: ").replace(f"cannot open {self.url!r}", "cannot open it")
        self._limiter.warning("reconnecting", f"{said}; trying again in {pause:.1f} s")
        self._become("reconnecting" if self._was_live else "opening", why)

    def _comes_back(self, problem: Exception | None) -> bool:
        if isinstance(problem, Refused) and not self._was_live:
            return False
        if self._reconnect != "auto":
            return self._reconnect == "always"
        if self._request.place.kind is Kind.DOWNLOAD:  # before it was opened once, only its name says what it is
            return not self._request.place.is_file if self._stream is None else self._stream.live
        return self._request.place.kind is Kind.STREAM

    def _leave(self, *, overdue: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(overdue=overdue)
            self._damaged += connection.damaged
            self._dropped += connection.dropped

    def _become(self, name: Any, error: str | None) -> None:
        before = self._state
        attempt = 1 if name in ("live", "stalled") else before.attempt + (name != "ended" and before.name != "live")
        since = before.since if name == before.name else time.time()
        self._state = SourceState(name, since, attempt, error)
        if self.on_state is not None:
            self.on_state(self._state)

    # ---- the pace

    def _timed(self, picture: Picture) -> Picture | None:
        """The picture with the pts that it is played at; None if it is left out."""
        if self._fps is None or self.url == TEST_PICTURE:
            return picture
        if picture.stream.live:
            if self._thinner is None:
                self._thinner = Thinner(self._fps)
            return picture if self._thinner.wants(picture.pts_ns) else None
        picture = picture._replace(pts_ns=int(self._count * SECOND_NS / self._fps))
        self._count += 1
        return picture

    def _play(self, deadline: float | None) -> Picture:
        """The picture that is held, once it is due."""
        picture = self._held
        assert picture is not None
        realtime = not picture.stream.live if self._realtime is None else self._realtime
        if realtime and not picture.stream.live:
            if self._start is None:
                self._start = time.monotonic(), picture.pts_ns
            due = self._start[0] + (picture.pts_ns - self._start[1]) / SECOND_NS
            while not self._closed and (now := time.monotonic()) < due:
                if deadline is not None and now >= deadline:
                    raise Timeout(f"{self.url}: the next picture is not due yet")
                self._wait(min(due, due if deadline is None else deadline) - now)
        self._held = None
        if self._connection is not None:
            self._expect()
        return picture

    def _wait(self, seconds: float) -> None:
        """Sleep, but not longer than the source is open."""
        while seconds > 0 and not self._closed:
            step = min(seconds, 0.2)
            time.sleep(step)
            seconds -= step


def open_source(
    url: str | os.PathLike[str],
    *,
    packets: bool = False,
    timeout: float = TIMEOUT,
    reconnect: Literal["auto", "always", "never"] = "auto",
    fps: Rate | None = None,
    realtime: bool | None = None,
    loop: bool = False,
    threads: int = 0,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    video_stream: int = 0,
    acceleration: Acceleration | None = None,
    via: Literal["ffmpeg"] | None = None,
) -> Source:
    """Decode a file, camera or stream; what fails is opened again.

    Parameters
    ----------
    url : str or path
        Anything that FFmpeg can open: a path, a URL, a device, ``-`` for standard input, or ``testsrc``.
    packets : bool
        Also give the encoded packets, as :class:`EncodedPacket`, each before its picture.
    timeout : float
        Seconds that opening may take, and that an open source may be silent, before it has failed.
    reconnect : {"auto", "always", "never"}
        Whether a source that has failed or ended is opened again: after 0.5 s, then after twice as long, up to 30 s.
        ``auto`` does so with live sources, and not with files and pipes.
    fps : number, str or Fraction, optional
        Of a live source, take only this many pictures per second. Play a file at this rate, whatever its own is.
    realtime : bool, optional
        Give a file's pictures at their own pace, or as fast as they can be decoded. Default: at their own pace.
    loop : bool
        Begin again at the end of a file. Timestamps grow on.
    threads : int
        Threads of the decoder; 0: as many as there are cores. Live sources use them within a picture, files across
        pictures, which is faster and comes later.
    format : str, optional
        Name of FFmpeg's demuxer, if it cannot be found out: ``v4l2``, ``mjpeg``, ``h264``, …
    options : mapping, optional
        Options of FFmpeg's demuxer and protocol, such as ``{"rtsp_transport": "tcp"}``.
    video_stream : int
        Which of several video streams, from 0.
    acceleration : Acceleration, optional
        Decode on a GPU.
    via : {"ffmpeg"}, optional
        Read the source with the command ``ffmpeg``, which knows more protocols than PyAV's wheels. Default: only where
        it has to be: ``srt://``, ``rist://``.

    Returns
    -------
    Source
        Nothing has been opened yet; :meth:`Source.next` does that, and iterating.

    Raises
    ------
    SourceError, ValueError, TypeError
    """
    return Source(
        url,
        packets=packets,
        timeout=timeout,
        reconnect=reconnect,
        fps=fps,
        realtime=realtime,
        loop=loop,
        threads=threads,
        format=format,
        options=options,
        video_stream=video_stream,
        acceleration=acceleration,
        via=via,
    )
