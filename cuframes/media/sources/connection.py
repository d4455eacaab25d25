"""One attempt at a source: open, demux and decode in a thread of its own, until it ends.

FFmpeg's calls may block for long, some whatever time-outs they are given (resolving a name, a device, a pipe). So the
thread is a daemon that nobody has to wait for: its owner waits for what it delivers, and forgets it when that does not
come.
"""

import contextlib
import errno
import queue
import threading
import time
from collections.abc import Iterator
from copy import copy
from fractions import Fraction
from typing import Any, NamedTuple

import av

from cuframes._native.status import monotonic_ns
from cuframes.codecs import NANOSECOND, nanoseconds, parameter_sets_filter
from cuframes.color import presentation
from cuframes.errors import SourceError
from cuframes.media.pictures import presentation_of
from cuframes.media.sources import nvdec
from cuframes.media.sources.child import Remuxer
from cuframes.media.sources.clock import ContinuousClock
from cuframes.media.sources.items import Acceleration, EncodedPacket, Picture, StreamInfo
from cuframes.media.sources.limiter import Limiter
from cuframes.media.sources.urls import Kind, Place
from cuframes.packets import PacketFlags
from cuframes.rates import UNKNOWN_RATE

__all__ = ["GRACE_SECONDS", "Connection", "Ended", "Opened", "Request", "stuck"]

# What a consumer has not taken yet. Pictures are large. A source that is ahead by this many is not read on, but
# the newest picture of a live source is dropped.
PICTURES_AHEAD = 4
PACKETS_AHEAD = 512
PATIENCE_SECONDS = 0.5  # how long a live source waits for a consumer that is busy, before it drops pictures
CLOSE_SECONDS = 0.3  # how long close() waits for the thread
GRACE_SECONDS = 1.0  # how long after FFmpeg's own time-out its thread is given up
AGAIN_SECONDS = 0.01
DISCONTINUOUS = 0x0200  # AVFMT_TS_DISCONT: clocks of this format may jump
# Streams of these have no timestamps, and FFmpeg counts 25 pictures a second, however many come.
UNTIMED = ("mpjpeg", "mjpeg", "image2pipe", "jpeg_pipe", "png_pipe")
MICROSECOND = Fraction(1, 1_000_000)
LEAST_STEP_US = 5000  # between two pictures that came at once, as the first ones do
ARRIVALS_KEPT = 256
NOT_ENCODED = ("rawvideo", "wrapped_avframe", "bitpacked", "v210")

_left: list[tuple[threading.Thread, float]] = []  # threads that were not waited for, and when they are to be back


def stuck() -> int:
    """How many threads of closed sources are overdue: FFmpeg's own time-out has not ended them."""
    _left[:] = [(thread, due) for thread, due in _left if thread.is_alive()]
    now = time.monotonic()
    return sum(now >= due for _, due in _left)


class Request(NamedTuple):
    """What to open, and how."""

    place: Place
    options: dict[str, str]
    timeout: float
    threads: int
    video_stream: int
    acceleration: Acceleration | None
    packets: bool
    loop: bool


class Opened(NamedTuple):
    """The source is open."""

    stream: StreamInfo


class Ended(NamedTuple):
    """The connection is over: at the source's end, or because of a problem."""

    problem: Exception | None


class Refused(SourceError):
    """It makes no sense to try again with the same request."""


class Connection:
    """Reads a source in a thread of its own, and delivers ``(connection, item)`` to a queue.

    Parameters
    ----------
    request : Request
    clock : ContinuousClock
        Goes on from connection to connection.
    items : queue.SimpleQueue
        Gets an :class:`Opened`, then pictures and packets, and an :class:`Ended`. The consumer must call :meth:`taken`
        for every picture and packet.
    limiter : Limiter
        For lines about damaged data.
    again : float, optional
        This connection comes after one that failed: seconds since that one's last packet.
    """

    def __init__(
        self,
        request: Request,
        clock: ContinuousClock,
        items: "queue.SimpleQueue[Any]",
        limiter: Limiter,
        again: float | None = None,
    ) -> None:
        self.damaged = self.dropped = 0
        self._request = request
        self._clock = clock
        self._items = items
        self._limiter = limiter
        self._flags = 0 if again is None else int(PacketFlags.DISCONTINUITY)
        self._waiting_for_key = again is not None
        if again is not None:
            clock.restart(again)
        self._closed = False
        self._patience = PATIENCE_SECONDS
        self._remuxer: Remuxer | None = None
        self._arrivals: dict[int | None, int] = {}
        self._newest_ns = 0
        self._last_pts_ns: int | None = None
        self._rooms: dict[type, queue.SimpleQueue[None]] = {}
        for kind, count in ((Picture, PICTURES_AHEAD), (EncodedPacket, PACKETS_AHEAD)):
            self._rooms[kind] = queue.SimpleQueue()
            for _ in range(count):
                self._rooms[kind].put(None)
        self._thread = threading.Thread(target=self._run, name=f"cuframes:{request.place.shown}", daemon=True)
        self._thread.start()

    def taken(self, item: Any) -> None:
        """A picture or packet has left the queue."""
        self._rooms[type(item)].put(None)

    def abandon(self) -> None:
        """End it without waiting."""
        self._closed = True
        if self._remuxer is not None:
            self._remuxer.kill()
        for room in self._rooms.values():
            room.put(None)

    def close(self, *, overdue: bool = False) -> None:
        """End it. If FFmpeg does not return soon, its thread is left alone; if that is not `overdue`, it has the time
        that any wait of FFmpeg has, and counts as stuck after that.
        """
        self.abandon()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            now = time.monotonic()
            _left.append((self._thread, now if overdue else now + self._request.timeout + GRACE_SECONDS))

    # ---- the thread

    def _run(self) -> None:
        problem: Exception | None = None
        try:
            if self._request.place.via:
                problem = self._play_through_child()
            else:
                self._play(self._request.place.url)
        except Exception as caught:
            problem = caught
        if not self._closed:
            self._items.put((self, Ended(problem)))

    def _play_through_child(self) -> Exception | None:
        request = self._request
        problem: Exception | None = None
        with contextlib.closing(Remuxer(request.place, request.options, request.video_stream)) as remuxer:
            self._remuxer = remuxer
            if self._closed:  # just before
                return None
            try:
                self._play(remuxer.url)
            except SourceError as caught:
                problem = caught
            return remuxer.explain(problem)

    def _play(self, url: str) -> None:
        request = self._request
        announced = False
        while True:
            container, packets, ahead, decoder = self._open(url)
            with contextlib.closing(container):
                stream = container.streams.video[request.video_stream if not request.place.via else 0]
                info = describe(container, stream, request.place, decoder)
                if not announced:
                    self._items.put((self, Opened(info)))
                    announced = True
                repeat = parameter_sets_filter(stream) if request.packets and info.encoded else None
                begun = self._newest_ns
                for packet, frames in self._decoded(packets, ahead, info, stream, repeat):
                    del packet
                    for frame in frames:
                        self._deliver(self._picture(frame, info))
                    if self._closed:
                        return
            if not request.loop or self._newest_ns == begun or request.place.kind is not Kind.FILE:
                return
            self._clock.restart()

    def _open(self, url: str) -> tuple[Any, Iterator[Any], list[tuple[Any, list[Any]]], str]:
        """The container, its packets, those that a trial of the GPU's decoder has decoded, and the decoder's name."""
        request = self._request
        place = request.place
        wanted = request.acceleration
        if wanted is not None:
            clock = copy(self._clock)
            try:
                container, stream = nvdec.open_container(wanted, self._open_container, url, request.video_stream)
                packets = self._placed(container, stream, place)
                ahead = nvdec.first_pictures(packets, wanted.keep)
                return container, packets, ahead, "nvdec"
            except nvdec.CANNOT as problem:
                self._clock.__dict__.update(clock.__dict__)  # the trial's packets come again
                if wanted.required:
                    raise Refused(f"cuda:{wanted.ordinal} cannot decode {place.shown!r}: {problem}") from None
                self._limiter.warning("nvdec", f"decoding on the CPU, not on cuda:{wanted.ordinal}: {problem}")
        container = self._open_container(url)
        try:
            if not container.streams.video:
                raise Refused(f"{place.shown!r} has no video stream")
            index = 0 if place.via else request.video_stream
            if index >= len(container.streams.video):
                count = len(container.streams.video)
                raise Refused(f"{place.shown!r} has {count} video streams; there is no number {index}, they begin at 0")
            stream = container.streams.video[index]
            context = stream.codec_context
            if context is None:
                raise Refused(f"{place.shown!r}: there is no decoder for its video in PyAV's FFmpeg")
            live = is_live(container, place)
            # Frame threads hold back a picture each. With slices, a picture comes as soon as its packet is there.
            context.thread_type = "SLICE" if live else "AUTO"
            context.thread_count = request.threads
            if live and not context.has_b_frames:  # else some decoders would give pictures out of order
                context.flags |= av.codec.context.Flags.low_delay
            return container, self._placed(container, stream, place), [], "cpu"
        except BaseException:
            container.close()
            raise

    def _open_container(self, url: str, **more: Any) -> Any:
        request = self._request
        place = request.place
        options = {} if place.via else dict(request.options)
        format = "nut" if place.via else place.format
        began = time.monotonic()
        try:
            return av.open(url, format=format, options=options, timeout=(request.timeout, request.timeout), **more)
        except av.FFmpegError as problem:
            # Interrupted in the middle, some protocols say that the data are invalid.
            late = time.monotonic() - began >= request.timeout
            raise cannot_open(place, problem, request.timeout, late=late) from None
        except (ValueError, LookupError) as problem:  # an unknown format, say
            raise Refused(f"cannot open {place.shown!r}: {problem}") from None

    def _placed(self, container: Any, stream: Any, place: Place) -> Iterator[Any]:
        """Packets on the clock. The empty one at the end flushes the decoder."""
        live = is_live(container, place)
        untimed, came_us = is_untimed(container, place), 0
        may_jump = live or bool(container.format.flags & DISCONTINUOUS)
        rate = stream.average_rate or stream.guessed_rate
        length = 1 / Fraction(rate) if rate else None
        depth = reordering(stream.codec_context)
        before_ns: int | None = None
        demuxer = container.demux(stream)
        while not self._closed:
            try:
                packet = next(demuxer)
            except (StopIteration, IndexError):  # PyAV trips over streams that have come up meanwhile
                yield None
                return
            except av.error.BlockingIOError:
                time.sleep(AGAIN_SECONDS)
                demuxer = container.demux(stream)
                continue
            except av.FFmpegError as problem:
                raise SourceError(f"{place.shown}: {_reason(problem, self._request.timeout)}") from None
            if not packet.size:
                yield packet
                return
            now_ns = monotonic_ns()
            passed = (now_ns - before_ns) / 1e9 if live and before_ns is not None else None
            if untimed:
                packet.time_base, packet.duration = MICROSECOND, 0
                came_us = max(now_ns // 1000, came_us + LEAST_STEP_US)
                packet.pts = packet.dts = came_us
            bare = packet.pts is None and packet.dts is None
            self._clock.place(packet, length=length, passed=passed, may_jump=may_jump, depth=depth)
            if bare and not depth:
                packet.pts = packet.dts
            before_ns = self._newest_ns = now_ns
            self._arrivals[packet.pts] = now_ns
            if len(self._arrivals) > ARRIVALS_KEPT:
                self._arrivals.pop(next(iter(self._arrivals)))
            yield packet

    def _decoded(
        self, packets: Iterator[Any], ahead: list[tuple[Any, list[Any]]], info: StreamInfo, stream: Any, repeat: Any
    ) -> Iterator[tuple[Any, list[Any]]]:
        """Packets with their pictures. A packet is delivered before it is decoded."""
        for packet, frames in ahead:
            self._share(packet, info, repeat)
            yield packet, frames
        for packet in packets:
            if packet is not None and packet.size:
                self._share(packet, info, repeat)
            try:
                yield packet, decode(stream.codec_context, packet)
            except av.error.EOFError:
                return
            except av.FFmpegError as problem:
                self.damaged += 1
                self._limiter.warning("damaged", f"{problem.strerror or problem}; going on with the next packet")

    def _share(self, packet: Any, info: StreamInfo, repeat: Any) -> None:
        if not self._request.packets or not info.encoded:
            return
        # Behind a gap, what comes before the next keyframe cannot be decoded.
        if self._waiting_for_key and not packet.is_keyframe:
            return
        self._waiting_for_key = False
        flags = self._flags | (PacketFlags.CORRUPT if packet.is_corrupt else 0)
        self._flags = 0
        data = packet
        if repeat is not None:
            data = av.Packet(bytes(packet))  # a copy: the filter takes its packet over, and the decoder needs it too
            data.is_keyframe = packet.is_keyframe
            (data,) = repeat.filter(data)
        pts_ns, dts_ns = (nanoseconds(ticks, packet.time_base) for ticks in (packet.pts, packet.dts))
        self._deliver(EncodedPacket(data, pts_ns, dts_ns, packet.is_keyframe, flags, self._newest_ns, info))

    def _picture(self, frame: Any, info: StreamInfo) -> Picture:
        arrived_ns = self._arrivals.get(frame.pts, self._newest_ns)
        given = nanoseconds(frame.pts, frame.time_base)
        last = self._last_pts_ns
        if last is not None and (given is None or given <= last):
            given = last + int(1 / (info.rate or UNKNOWN_RATE) / NANOSECOND)
        self._last_pts_ns = pts_ns = 0 if given is None else given
        return Picture(frame, pts_ns, arrived_ns, info)

    def _deliver(self, item: Any) -> None:
        """Put an item into the queue when there is room for it. A live source drops a picture that finds none."""
        if self._closed:  # nobody makes room any more: abandon() ends one wait for it, and only one
            return
        room = self._rooms[type(item)]
        if isinstance(item, Picture) and item.stream.live:
            try:
                room.get(timeout=self._patience)
            except queue.Empty:
                self._patience = 0.0
                self.dropped += 1
                return
            self._patience = PATIENCE_SECONDS
        else:
            room.get()
        if not self._closed:
            self._items.put((self, item))


def decode(context: Any, packet: Any) -> list[Any]:
    """The pictures that a packet completes; those that are left, for None."""
    frames: list[Any] = context.decode(packet)
    return frames


def is_live(container: Any, place: Place) -> bool:
    """Whether the source comes at its own pace. A download whose length is known is a file."""
    if place.kind is Kind.DOWNLOAD:
        return (container.duration or 0) <= 0 and container.size <= 0
    return place.kind in (Kind.STREAM, Kind.PIPE)


def is_untimed(container: Any, place: Place) -> bool:
    """Whether only the arrival of a picture says its time."""
    return container.format.name in UNTIMED and place.kind is not Kind.PIPE and is_live(container, place)


def reordering(context: Any) -> int:
    """By how many pictures decoding order and presentation differ."""
    if not context.has_b_frames:
        return 0
    return int(getattr(context, "reorder_depth", 1) or 1)  # PyAV 14 only says that they do


def describe(container: Any, stream: Any, place: Place, decoder: str) -> StreamInfo:
    """The stream's parameters, independent of PyAV's objects."""
    context = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    said = presentation(**presentation_of(stream))
    if is_untimed(container, place):
        rate, said = None, said._replace(frame_rate=None)
    return StreamInfo(
        codec=getattr(context.codec, "canonical_name", context.codec.name),  # PyAV 14 has only the decoder's name
        codec_id=context.codec.id,
        extradata=bytes(context.extradata or b""),
        width=context.width,
        height=context.height,
        rate=Fraction(rate) if rate else None,
        presentation=said,
        live=is_live(container, place),
        decoder=decoder,
        encoded=context.name not in NOT_ENCODED,
    )


# These say that the same request fails again. What a server answers may change, but a password does not.
PERMANENT = (
    av.error.ProtocolNotFoundError,
    av.error.DemuxerNotFoundError,
    av.error.DecoderNotFoundError,
    av.error.OptionNotFoundError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPForbiddenError,
)


def cannot_open(place: Place, problem: Exception, timeout: float, *, late: bool) -> SourceError:
    """The error of an attempt to open a source, which may have been ended because it was `late`."""
    senseless = isinstance(problem, PERMANENT) or getattr(problem, "errno", None) == errno.EINVAL
    kind = Refused if senseless else SourceError
    remedy = ""
    if isinstance(problem, av.error.ProtocolNotFoundError):
        remedy = "; PyAV's FFmpeg has no such protocol: read it with the ffmpeg command (--via ffmpeg)"
    elif place.kind is Kind.FILE:
        remedy = "; give a file, a URL, or testsrc"
    if late:
        kind = SourceError
    return kind(f"cannot open {place.shown!r}: {_reason(problem, timeout, late=late)}{remedy}")


def _reason(problem: Exception, timeout: float, *, late: bool = False) -> str:
    if late or isinstance(problem, (av.error.ExitError, av.error.TimeoutError)):
        return f"nothing came within {timeout:g} s"
    return getattr(problem, "strerror", None) or str(problem)
