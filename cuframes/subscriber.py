"""The subscriber: joins a publisher, takes frames, survives its end."""

import contextlib
import os
import select
import time
from typing import Any, NamedTuple

from cuframes._core import BLOCK, PREDICT, SPIN, FrameReader
from cuframes._native.control import (
    FRAME_MAGIC,
    FUTEX,
    HEADER_BYTES,
    HOST_MEMORY,
    MAX_NAME,
    MAX_RING,
    MAX_SUBSCRIBERS,
    MIN_RING,
    PINS,
    STRICT_WAIT,
    VMM_MEMORY,
    describe,
    describe_meta,
    handles,
)
from cuframes._native.frame import Frame, take
from cuframes._native.layout import FrameLayout
from cuframes._native.mapping import Mapping
from cuframes.errors import DeviceError, Disconnected, ProtocolError, SegmentTruncated
from cuframes.formats import FrameShape, pixel_format, whole_number
from cuframes.host.names import check_key, peer_credentials
from cuframes.host.receiver import Receiver
from cuframes.host.segment import open_entrusted
from cuframes.host.steps import ANSWER_SECONDS, Steps
from cuframes.memory import open_device, open_host
from cuframes.packets import PacketReader
from cuframes.session import client
from cuframes.session.wire import Hello

__all__ = ["Subscriber", "SubscriberStats"]

MODES = ("newest", "ordered")
STARTS = ("next", "latest", "oldest")
WAITS = {"block": BLOCK, "spin": SPIN, "predictive": PREDICT}


class SubscriberStats(NamedTuple):
    """Counters of one subscriber, over all connections.

    ``received`` frames were taken, ``lost`` were overwritten before they could be (mode ``ordered``), ``skipped`` were
    passed over (mode ``newest``); the three add up to what was published since joining and before the last frame taken.
    ``held`` are out now. ``overwritten`` counts frames that changed while held, which only a publisher without pins can
    cause.
    """

    received: int
    lost: int
    skipped: int
    held: int
    overwritten: int

    def plus(self, other: tuple[int, ...]) -> "SubscriberStats":
        """These and other counters together."""
        return SubscriberStats(*(a + b for a, b in zip(self, other, strict=True)))


class Subscriber(Receiver[Frame, FrameReader, SubscriberStats]):
    """Receive a publisher's frames in place.

    Parameters
    ----------
    key : str
    name : str, optional
        At most 31 bytes, unique among the publisher's subscribers; shown by ``cuframes info``. Default: program and
        pid.
    mode : {"newest", "ordered"}
        ``newest`` jumps to the newest frame at every call, ``ordered`` takes them one by one as long as they are there.
    start : {"next", "latest", "oldest"}
        The first frame: one published after joining, the newest already there, or the oldest still there.
    device : int, optional
        For device memory: the GPU, as this process counts them. It must be the one that the frames are on, which is
        found by its UUID when this is left out.
    stream : int or stream object, optional
        For device memory: the CUDA stream that is made to wait for each frame; default: the legacy default stream.
        Views taken by DLPack are ordered on the consumer's stream as well. An object is kept alive; the stream of a
        bare handle must outlive the frames.
    wait : {"block", "spin", "predictive"}
        Sleep until a frame comes; or burn a core for the last microseconds of latency; or, for a source with a steady
        rate, sleep until just before the next frame is due and look for it then, for 2 % of the time, or 4 % when it
        is late. While the source is irregular the last is like ``block``.
    max_held : int, optional
        Frames that may be out at a time; default: half the ring, at least 1.
    connect_timeout : float, optional
        Seconds to wait for the publisher to appear and to answer; None waits for ever. A publisher that is there gets
        0.2 s to answer, also when this is less.
    reconnect : bool
        When the publisher ends, wait for the next one of this key instead of raising :class:`Disconnected`. Its frames
        have a new ``epoch``.

    Raises
    ------
    NotFound
        No publisher appeared in time.
    AlreadyExists
        The name is in use.
    CuframesError
        The publisher refused: 31 subscribers are connected.
    Timeout
        A publisher is there, but did not answer in time: it is stopped, or overloaded.
    ProtocolError, DeviceError, PermissionError, ValueError, TypeError

    Notes
    -----
    Iterating yields frames until the publisher ends or the subscriber is closed; ``async for`` does the same without
    blocking the loop. One thread at a time may take frames; releasing them is fine anywhere. The place in the ring is
    kept until the subscriber is closed and the last frame it took, with every array made from it, is gone. After a fork
    it is usable in the parent only.
    """

    _what = "subscriber"

    def __init__(
        self,
        key: str,
        *,
        name: str | None = None,
        mode: str = "newest",
        start: str = "next",
        device: int | None = None,
        stream: Any = None,
        wait: str = "block",
        max_held: int | None = None,
        connect_timeout: float | None = 5.0,
        reconnect: bool = False,
    ) -> None:
        for value, allowed, what in ((mode, MODES, "mode"), (start, STARTS, "start"), (wait, WAITS, "wait")):
            if value not in allowed:
                raise ValueError(f"{what} must be one of {', '.join(allowed)}; not {value!r}")
        held = None if max_held is None else whole_number(max_held, "max_held", 1, 2**31 - 1)
        super().__init__(check_key(key), reconnect, SubscriberStats(0, 0, 0, 0, 0))
        self.name = _check_name(name) if name is not None else client.default_name()
        self.mode = mode
        self.wait = wait
        self._device = device
        self._stream = stream
        self._start = start
        self._max_held = held
        self._epoll: select.epoll | None = None  # of the ring's eventfd and its connection
        self._join(connect_timeout)

    def _open(self, *, again: bool) -> Steps[FrameReader]:
        device = -1 if self._device is None else self._device
        hello = Hello(3, self.name, device, self.mode == "ordered", client.FEATURES)
        connection = yield from client.join(self.key, hello)
        try:
            return self._open_ring(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            connection.close_descriptors()

    def _open_ring(self, connection: client.Connection) -> FrameReader:
        """Map what the publisher announced, after checking it."""
        welcome, place = connection.welcome, connection.place
        if not MIN_RING <= welcome.ring_size <= MAX_RING or not 1 <= place.bit <= MAX_SUBSCRIBERS:
            raise ProtocolError(f"the publisher announces {welcome.ring_size} slots and gives bit {place.bit}")
        shape, frame_bytes, uuid = _unpack_meta(welcome.meta)
        header = _open_header(connection)
        found = describe(header)
        pool = connection.descriptors[1].fileno() if len(connection.descriptors) > 1 else None
        if welcome.features & HOST_MEMORY:
            if pool is None:
                raise ProtocolError("the publisher sent no descriptor of its frames")
            if self._device is not None:
                raise DeviceError(f"the publisher's frames are in host memory; device={self._device} cannot be met")
            slots = open_host(pool, frame_bytes, welcome.ring_size)
        else:
            descriptor = pool if welcome.features & VMM_MEMORY else None
            opened = handles(header, welcome.ring_size)
            slots = open_device(uuid, self._device, found["epoch"], frame_bytes, opened, descriptor)

        pins = bool(welcome.features & PINS)
        last, frame_no = place.initial_seq, place.initial_frame_no if pins else place.initial_seq
        known: int | None = frame_no
        if self._start == "oldest":
            last, known = 0, None
        elif self._start == "latest" and last:
            last, known = last - 1, frame_no - 1
        held = self._max_held if self._max_held is not None else max(1, welcome.ring_size // 2)
        wakes, strict = bool(welcome.features & FUTEX), found["policy"] == STRICT_WAIT
        return FrameReader(
            header,
            slots,
            connection,
            FrameLayout(shape),
            ring=(place.bit, held, self.mode == "ordered", WAITS[self.wait], pins, wakes, strict),
            position=(last, known),
            stream=self._stream,
        )

    def _installing(self, ring: FrameReader) -> None:
        self._layout: FrameLayout = ring.layout

    @property
    def format(self) -> str:
        """Pixel format of the frames, FFmpeg's name."""
        return self._layout.shape.format.name

    @property
    def width(self) -> int:
        """Pixels."""
        return self._layout.shape.width

    @property
    def height(self) -> int:
        """Pixels."""
        return self._layout.shape.height

    def next(self, timeout: float | None = None) -> Frame:
        """The next frame. Waits without the GIL.

        Parameters
        ----------
        timeout : float, optional
            Seconds; 0 looks once, None waits as long as it takes.

        Raises
        ------
        Timeout
            No frame came in time.
        Disconnected
            The publisher ended and everything it left has been taken (never with ``reconnect=True``).
        TooManyHeld
            ``max_held`` frames are out.
        SegmentTruncated
            Somebody cut the control segment off. Frames that are held stay good.
        ValueError
            The subscriber is closed.
        """
        ring = self._ring
        if ring is not None and not self.reconnect:  # the shortest way to a frame
            return take(ring, timeout, _warm_up)
        return self._next(self._take, timeout)

    def __next__(self) -> Frame:
        ring = self._ring
        if ring is not None:  # the shortest way; whatever else there is to do, the base class does
            try:
                return take(ring, None, _warm_up)
            except (Disconnected, SegmentTruncated, ValueError):
                pass
        return super().__next__()

    def _take(self, ring: FrameReader, timeout: float | None) -> Frame:
        return take(ring, timeout, _warm_up)

    def _counted(self, ring: FrameReader) -> SubscriberStats:
        return super()._counted(ring)._replace(held=0)

    def fileno(self) -> int:
        """A descriptor for ``select``, ``poll`` and event loops: readable when ``next(timeout=0)`` has something to
        say.

        It stays readable until ``next(timeout=0)`` has raised :class:`Timeout`, and is closed by :meth:`close`. Asking
        for it makes the publisher pay one system call per frame for this subscriber. The first call waits up to 0.2 s
        for the publisher to answer; when it does not, the descriptor is good all the same.

        Raises
        ------
        Disconnected
            The publisher is gone, so it cannot be asked; frames that it left can still be taken.
        ValueError
            The subscriber is closed.
        """
        fd = self._pollable()
        ring = self._joined()
        deadline = time.monotonic() + ANSWER_SECONDS
        while ring.connection.event_fd < 0:
            if ring.read_messages():
                raise Disconnected("the publisher is gone")
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, 0.001))
        if self._closed:
            raise self._is_closed()
        return fd

    def _pollable(self) -> int:
        ring = self._joined()
        with self._changing:
            if self._epoll is None and not self._closed:
                self._epoll = select.epoll()
                self._watch(ring)
            if not self._closed and self._epoll is not None:
                return self._epoll.fileno()
        raise self._is_closed()  # without the lock: at exit this takes a while

    def _watch(self, ring: FrameReader) -> None:
        with self._changing:
            epoll = self._epoll
            if epoll is None:
                return

        def arrived(fd: int) -> None:
            with contextlib.suppress(OSError, ValueError):
                os.eventfd_write(fd, 1)  # for frames that are there already
                epoll.register(fd, select.EPOLLIN)
            ring.set_event(fd)

        def ask() -> None:
            epoll.register(ring.connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            ring.connection.request_event(arrived)

        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            ring.inside(ask)

    def _leave(self, ring: FrameReader) -> None:
        # Before they are closed: others may have them open too, and then they would stay in the epoll for good.
        epoll = self._epoll

        def unregister() -> None:
            for fd in (ring.connection.fileno(), ring.connection.event_fd):
                with contextlib.suppress(OSError, ValueError):
                    if epoll is not None:
                        epoll.unregister(fd)

        with contextlib.suppress(ValueError):  # closed meanwhile
            ring.inside(unregister)

    def _unwatch(self) -> None:
        with self._changing:
            epoll, self._epoll = self._epoll, None
        if epoll is not None:
            # For those who poll it just now, and event loops that have a copy of it: readable, and for good.
            try:
                with contextlib.suppress(OSError):  # no descriptor or memory left for that
                    epoll.register(_ever_readable(), select.EPOLLIN)
            finally:
                epoll.close()

    @property
    def _connection(self) -> client.Connection:
        connection: client.Connection = self._joined().connection
        return connection

    @property
    def _event_fd(self) -> int:
        """The eventfd to which the publisher adds 1 at every frame, or -1."""
        return self._connection.event_fd

    def packets(self, start: str = "keyframe", *, connect_timeout: float | None = 1.0) -> PacketReader:
        """The encoded packets beside these frames, if the publisher shares them.

        Parameters
        ----------
        start : {"keyframe", "oldest", "next", "latest"}
            See :class:`PacketReader`. Packets and frames of one picture have the same ``pts_ns``.
        connect_timeout : float, optional
            Seconds to wait for the publisher to share packets, and to answer; None waits for ever. One that has just
            started does so a moment after its first frames can be subscribed to.

        Returns
        -------
        PacketReader
            Independent of this subscriber: it is read, and closed, on its own.

        Raises
        ------
        NoPacketRing
            The publisher shares none (yet).
        NotFound, Timeout
            The publisher is gone, or does not answer.
        """
        return PacketReader(
            self.key,
            start,
            connect_timeout=connect_timeout,
            reconnect=self.reconnect,
            wait="spin" if self.wait == "spin" else "block",
        )

    def close(self) -> None:
        """Take no more frames. Those that are out, and arrays made from them, stay good; the place in the ring is given
        up with the last of them, when the GPU has done with it.

        Whoever waits here, in whichever thread or task, is woken: :meth:`next` raises ValueError, loops end. Waits for
        calls in progress, which end at once, and not for the GPU. Closing twice is fine, at any time and place.
        """
        super().close()

    def _forget(self) -> None:
        super()._forget()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.mode
        return f"<Subscriber {self.name!r} of {self.key!r}, {self.format} {self.width}x{self.height}, {state}>"


_readable_fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # nobody reads it


def _ever_readable() -> int:
    """A descriptor that is always readable. It cannot be made when it is needed: there may be none left by then."""
    global _readable_fd
    try:
        intact = os.readlink(f"/proc/self/fd/{_readable_fd}") == "anon_inode:[eventfd]"
    except OSError:
        intact = False
    if not intact:  # a program that became a daemon has closed all descriptors
        _readable_fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    return _readable_fd


def _warm_up(frame: Frame) -> None:
    """Use a frame of nothing as a caller would, just before one is due, or now and then while spinning.

    Who has slept for some milliseconds, or only spun, finds neither code nor data in the processor's caches; fetching
    what it takes to make a frame and to run a line of Python takes longer than the frame's own way through the ring.
    """
    _ = frame.pts_ns, time.monotonic_ns()


def _unpack_meta(meta: bytes) -> tuple[FrameShape, int, bytes]:
    """Geometry, bytes of a frame, and UUID of the GPU, from ``frame_meta``."""
    code, width, height, pitch_y, pitch_uv, frame_bytes, uuid = describe_meta(meta)
    try:
        shape = FrameShape(pixel_format(code), width, height, pitch_y, pitch_uv)
    except ValueError as problem:
        raise ProtocolError(f"the publisher shares frames that this library does not know: {problem}") from None
    if shape.nbytes > frame_bytes:
        raise ProtocolError(f"the publisher's frames have {frame_bytes} bytes, {shape} needs {shape.nbytes}")
    return shape, frame_bytes, uuid


def _open_header(connection: client.Connection) -> Mapping:
    """The control segment, by descriptor or, from a plain version 3 publisher, by name."""
    if connection.descriptors:
        return _map_header(connection.descriptors[0].fileno())
    peer = peer_credentials(connection.sock)[1]  # who answers was looked at
    with open_entrusted(connection.welcome.path, writable=True, entrusted=[peer]) as file:
        return _map_header(file.fileno())


def _map_header(fd: int) -> Mapping:
    size = os.fstat(fd).st_size
    if size < HEADER_BYTES:
        raise ProtocolError(f"the control segment has {size} bytes, not {HEADER_BYTES}")
    header = Mapping(fd, HEADER_BYTES, writable=True)
    found = describe(header)
    if found["magic"] != FRAME_MAGIC or found["proto_version"] != 3:
        raise ProtocolError(
            f"the control segment has magic {found['magic']:#x}, protocol version {found['proto_version']}; "
            f"this library reads {FRAME_MAGIC:#x}, version 3"
        )
    return header


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {type(name).__name__}")
    if not 0 < len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"name must be 1 to {MAX_NAME} printable bytes, not {name!r}")
    return name
