"""The subscriber, which joins a publisher, takes its frames, and survives its end."""

import contextlib
import os
import select
import time
from fractions import Fraction
from typing import Any, Literal, NamedTuple

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
from cuframes.color import Presentation, Presented
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
    """Counters of one subscriber, summed over all its connections.

    ``received`` frames were taken. ``lost`` frames were overwritten before they were taken (mode ``ordered``).
    ``skipped`` frames were passed over (mode ``newest``). These three add up to the frames published from joining up to
    the last frame taken. ``held`` frames are held now. ``overwritten`` frames changed while they were held, which can
    only happen with a publisher that does not honour pins.
    """

    received: int
    lost: int
    skipped: int
    held: int
    overwritten: int

    def plus(self, other: tuple[int, ...]) -> "SubscriberStats":
        """The sum of these and other counters."""
        return SubscriberStats(*(a + b for a, b in zip(self, other, strict=True)))


class Subscriber(Receiver[Frame, FrameReader, SubscriberStats], Presented):
    """Receive a publisher's frames in place.

    Parameters
    ----------
    key : str
    name : str, optional
        At most 31 bytes, unique among the publisher's subscribers. ``cuframes info`` shows it. Default: the program's
        name, the pid and a random part.
    mode : {"newest", "ordered"}
        ``newest`` takes the newest frame at every call. ``ordered`` takes frames one by one, unless they were
        overwritten.
    start : {"next", "latest", "oldest"}
        The first frame: the next one published after joining, the newest existing one, or the oldest existing one.
    device : int, optional
        For device memory: ordinal of the GPU in this process. It must be the GPU that the frames are on. By default
        that GPU is found by its UUID.
    stream : int or stream object, optional
        For device memory: the CUDA stream that waits for each frame. Default: the legacy default stream. Views taken by
        DLPack are also ordered on the consumer's stream. A stream object is kept alive. If you pass a bare handle, its
        stream must outlive the frames.
    wait : {"block", "spin", "predictive"}
        How to wait for a frame.

        - ``block``: sleep until a frame comes.
        - ``spin``: poll all the time. Uses a whole core, for the lowest latency.
        - ``predictive``: for a source with a steady rate. Sleep until just before the next frame is expected, then
          poll. Polls for about 2 % of the frame interval (4 % if the frame is late), and behaves like ``block`` while
          the source is irregular.
    max_held : int, optional
        Number of frames that may be held at a time. Default: half the ring, at least 1.
    connect_timeout : float, optional
        Seconds to wait for the publisher to appear and to answer; None waits for ever. A running publisher gets at
        least 0.2 s to answer.
    reconnect : bool
        When the publisher ends, wait for the next publisher of this key instead of raising :class:`Disconnected`. Its
        frames have a new ``epoch``.

    Raises
    ------
    NotFound
        No publisher appeared in time.
    AlreadyExists
        Another subscriber has this name.
    CuframesError
        The publisher refused, because 31 subscribers are connected.
    Timeout
        The publisher is running but did not answer in time, because it is stopped or overloaded.
    ProtocolError, DeviceError, PermissionError, ValueError, TypeError

    Notes
    -----
    Iterating yields frames until the publisher ends or the subscriber is closed. ``async for`` does the same without
    blocking the event loop. Only one thread at a time may take frames; any thread may release them. The subscriber
    keeps its place in the ring until it is closed and all its frames, and all arrays made from them, are gone. After a
    fork the subscriber works in the parent only.
    """

    _what = "subscriber"

    def __init__(
        self,
        key: str,
        *,
        name: str | None = None,
        mode: Literal["newest", "ordered"] = "newest",
        start: Literal["next", "latest", "oldest"] = "next",
        device: int | None = None,
        stream: Any = None,
        wait: Literal["block", "spin", "predictive"] = "block",
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
        self._device = None if device is None else whole_number(device, "device")
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
            raise ProtocolError(
                f"the publisher announces {welcome.ring_size} slots and subscriber bit {place.bit}; allowed are "
                f"{MIN_RING} to {MAX_RING} slots and bits 1 to {MAX_SUBSCRIBERS}"
            )
        layout, frame_bytes, uuid = _unpack_meta(welcome.meta)
        header = _open_header(connection)
        found = describe(header)
        pool = connection.descriptors[1].fileno() if len(connection.descriptors) > 1 else None
        if welcome.features & HOST_MEMORY:
            if pool is None:
                raise ProtocolError("the publisher sent no descriptor of its frames")
            if self._device is not None:
                raise DeviceError(f"the publisher's frames are in host memory; leave device={self._device} out")
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
            layout,
            ring=(place.bit, held, self.mode == "ordered", WAITS[self.wait], pins, wakes, strict),
            position=(last, known),
            stream=self._stream,
        )

    def _installing(self, ring: FrameReader) -> None:
        self._layout: FrameLayout = ring.layout

    @property
    def format(self) -> str:
        """Name of the frames' pixel format, as in ``cuframes.formats.FORMATS``."""
        return self._layout.shape.format.name

    @property
    def width(self) -> int:
        """Pixels."""
        return self._layout.shape.width

    @property
    def height(self) -> int:
        """Pixels."""
        return self._layout.shape.height

    @property
    def _presentation(self) -> Presentation:
        return self._layout.presentation

    @property
    def frame_rate(self) -> Fraction | None:
        """Nominal frames per second, as the publisher has said. None: not said."""
        return self._presentation.frame_rate

    def next(self, timeout: float | None = None) -> Frame:
        """Take the next frame. Waits without the GIL.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. 0 checks once without waiting; None waits without a limit.

        Raises
        ------
        Timeout
            No frame came in time.
        Disconnected
            The publisher ended, and its last frames have been taken. Never raised with ``reconnect=True``.
        TooManyHeld
            ``max_held`` frames are held already; release one first.
        SegmentTruncated
            Another process truncated the control segment. Held frames stay valid.
        ValueError
            The subscriber is closed.
        """
        ring = self._ring
        if ring is not None and not self.reconnect:  # the shortest way to a frame
            return take(ring, timeout, _warm_up)
        return self._next(self._take, timeout)

    def __next__(self) -> Frame:
        ring = self._ring
        if ring is not None:  # the shortest way; the base class handles all other cases
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
        """A descriptor for ``select``, ``poll`` and event loops. It is readable when ``next(timeout=0)`` would return a
        frame or raise an error other than :class:`Timeout`.

        The descriptor stays readable until ``next(timeout=0)`` has raised :class:`Timeout`. :meth:`close` closes it.
        From the first call on, the publisher makes one system call per frame for this subscriber. The first call waits
        up to 0.2 s for the publisher's answer; the descriptor is valid even if no answer comes. If the answer was lost,
        because this process has too many files open (the log says so), another call asks again.

        Raises
        ------
        Disconnected
            The publisher has ended and cannot answer. Its last frames can still be taken with :meth:`next`.
        ValueError
            The subscriber is closed.
        """
        fd = self._pollable()
        ring = self._joined()
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._must_look():
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

    def _must_look(self) -> bool:
        ring = self._ring
        if ring is None or ring.connection.event_fd >= 0:
            return False
        with contextlib.suppress(ValueError):  # closed meanwhile
            ring.inside(ring.connection.request_event)  # again, if its answer was lost
        return bool(ring.connection.event_fd < 0)

    def _leave(self, ring: FrameReader) -> None:
        # Unregister before closing: if another process has the file open too, closing would leave it in the epoll.
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
            # Make it readable for good: threads may be polling it, and event loops may have a duplicate of it.
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

    def packets(
        self,
        start: Literal["keyframe", "oldest", "next", "latest", "live"] = "keyframe",
        *,
        connect_timeout: float | None = 1.0,
    ) -> PacketReader:
        """A reader of the encoded packets beside these frames, if the publisher shares packets.

        Parameters
        ----------
        start : {"keyframe", "oldest", "next", "latest"}
            See :class:`PacketReader`. The packets and the frame of one picture have the same ``pts_ns``.
        connect_timeout : float, optional
            Seconds to wait for the publisher to share packets, and to answer; None waits for ever. A publisher that has
            just started accepts subscribers a moment before it shares packets.

        Returns
        -------
        PacketReader
            It is independent of this subscriber, and must be closed separately.

        Raises
        ------
        NoPacketRing
            The publisher shares no packets, or does not share them yet.
        NotFound, Timeout
            The publisher has ended, or does not answer.
        """
        return PacketReader(
            self.key,
            start,
            connect_timeout=connect_timeout,
            reconnect=self.reconnect,
            wait="spin" if self.wait == "spin" else "block",
        )

    def close(self) -> None:
        """Stop taking frames. Held frames, and arrays made from them, stay valid.

        The place in the ring is given up when the last of them is gone and the GPU has finished with it. Wakes every
        thread and task that waits on this subscriber: :meth:`next` raises ValueError, and loops end. Waits for calls in
        progress, which end at once, but not for the GPU. It may be called twice, and from anywhere.
        """
        super().close()

    def _forget(self) -> None:
        super()._forget()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.mode
        return f"<Subscriber {self.key!r}, {self.format} {self.width}x{self.height}, {state}, name {self.name!r}>"


_readable_fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # nobody reads it


def _ever_readable() -> int:
    """A descriptor that is always readable. It is made early, since no descriptor may be left when it is needed."""
    global _readable_fd
    try:
        intact = os.readlink(f"/proc/self/fd/{_readable_fd}") == "anon_inode:[eventfd]"
    except OSError:
        intact = False
    if not intact:  # a program that became a daemon has closed all descriptors
        _readable_fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    return _readable_fd


def _warm_up(frame: Frame) -> None:
    """Use an empty frame as a caller would, just before a frame is due, and from time to time while spinning.

    After some milliseconds of sleeping or spinning, the code and data for making a frame and running Python are no
    longer in the processor's caches. Fetching them takes longer than the frame's way through the ring.
    """
    _ = frame.pts_ns, time.monotonic_ns()


def _unpack_meta(meta: bytes) -> tuple[FrameLayout, int, bytes]:
    """Geometry and looks, bytes of a frame, and UUID of the GPU, from ``frame_meta``."""
    code, width, height, pitch_y, pitch_uv, frame_bytes, uuid, looks = describe_meta(meta)
    try:
        shape = FrameShape(pixel_format(code), width, height, pitch_y, pitch_uv)
    except ValueError as problem:
        raise ProtocolError(f"this library does not support the publisher's frames: {problem}") from None
    if shape.nbytes > frame_bytes:
        raise ProtocolError(f"the publisher's frames have {frame_bytes} bytes, but {shape} needs {shape.nbytes}")
    return FrameLayout(shape, Presentation.of_stored(looks)), frame_bytes, uuid


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
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not 0 < len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"name must be 1 to {MAX_NAME} printable bytes, not {name!r}")
    return name
