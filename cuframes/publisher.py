"""The publisher, which owns a key, its segment and its pool, and admits subscribers."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Self

from cuframes._core import FrameWriter
from cuframes._native.control import (
    DROP_OLDEST,
    FUTEX,
    HEADER_BYTES,
    MAX_RING,
    MIN_RING,
    OWNER_LOCK,
    PINS,
    STRICT_WAIT,
    describe,
    meta_bytes,
)
from cuframes._native.frame import WritableFrame, publish
from cuframes._native.layout import FrameLayout
from cuframes._native.ring_end import Descriptor, pause_at_exit
from cuframes._version import __version__
from cuframes.color import ColorLike, Presentation, Presented, presentation
from cuframes.errors import AlreadyExists, CuframesError, NoPacketRing, SegmentTruncated
from cuframes.formats import FrameShape, pixel_format, whole_number
from cuframes.host import lifetime
from cuframes.host.names import check_key, group_id, packets_name, runtime_dir, segment_name, socket_path
from cuframes.host.segment import OwnedSegment
from cuframes.memory import Pool, create_external, create_pool
from cuframes.packets import DATA_SIZE, MAX_PACKET_SIZE, PacketPublisher
from cuframes.rates import Rate
from cuframes.session.listing import SubscriberInfo
from cuframes.session.server import Server
from cuframes.session.wire import Welcome

__all__ = ["Publisher", "PublisherStats"]

POLICIES = {"drop_oldest": DROP_OLDEST, "strict_wait": STRICT_WAIT}


class PublisherStats(NamedTuple):
    """Counters of one publisher.

    ``published`` counts frames, and ``dropped`` counts frames for which no slot was free. ``seq`` is the newest
    sequence number. ``subscribers`` is the number of connected subscribers.
    """

    published: int
    dropped: int
    seq: int
    subscribers: int


class Publisher(lifetime.Closing, Presented):
    """Share frames under a key.

    Parameters
    ----------
    key : str
        1 to 63 characters of ``A-Z a-z 0-9 _ -``. A host has one living publisher per key.
    width, height : int
        Pixels. Both must be even for 4:2:0 formats, the width for 4:2:2, the height for 4:4:0.
    format : str
        FFmpeg's name of a pixel format, or GStreamer's or V4L2's of the same bytes (``NV12``, ``YUYV``, ``P010_10LE``);
        ``cuframes.formats`` lists them.
    ring_size : int
        Number of slots, 2 to 16. The memory of all slots is reserved immediately.
    memory : {"auto", "host", "cuda", "cuda-ipc"}
        Where the frames are stored.

        - ``host``: in host memory.
        - ``cuda``: on a GPU, mapped read-only by subscribers. Falls back to ``cuda-ipc`` if the device does not support
          it; :attr:`memory` says which is used.
        - ``cuda-ipc``: on a GPU, shared by legacy IPC handles, which plain version 3 programs know.
        - ``auto``: ``cuda`` if there is a GPU, otherwise ``host``.
    device : int, optional
        Ordinal of the GPU in this process. Default: the GPU of the current CUDA context, or 0.
    policy : {"drop_oldest", "strict_wait"}
        ``drop_oldest`` never waits: it uses the oldest slot that no subscriber is reading, and drops the new frame if
        there is none. ``strict_wait`` waits until every subscriber has released the oldest frame.
    group : str or int, optional
        Members of this group may subscribe too. Default: only this process's user and root.
    color : Color, str or mapping, optional
        How the samples become colours: ``"bt709"``, ``"bt601"``, ``"bt2020"``, ``"srgb"``, or a :class:`Color` of
        range, matrix, primaries and transfer. Names are FFmpeg's; its codes and PyAV's enums are accepted too. A
        full-range name as `format` (``yuvj420p``) says that the range is ``"pc"``. What is left out is "not said", and
        players assume the usual (:meth:`Color.assumed`).
    sample_aspect_ratio : fraction, (int, int) or str, optional
        Width of a sample to its height: ``(64, 45)``, ``"64:45"``.
    field_order : {"progressive", "tt", "bb", "tb", "bt"}, optional
        How interlaced pictures are stored and shown; ``"tff"`` and ``"bff"`` are ``"tt"`` and ``"bb"``.
    rotation : {0, 90, 180, 270}, optional
        Degrees by which pictures must be turned clockwise to be upright.
    frame_rate : number, str or (int, int), optional
        Nominal frames per second: ``25``, ``59.94``, ``(60000, 1001)``.

    Raises
    ------
    AlreadyExists
        Another living publisher has this key. (The files of a dead publisher are replaced.)
    OutOfSharedMemory, DeviceError, PermissionError, ValueError, TypeError

    Notes
    -----
    Only one thread at a time may write. The publisher runs one thread of its own for the socket. Close the publisher,
    or use it as a context manager; it is also closed at interpreter exit. After a fork it works in the parent only.
    """

    def __init__(
        self,
        key: str,
        width: int,
        height: int,
        format: str = "nv12",
        *,
        ring_size: int = 8,
        memory: Literal["auto", "host", "cuda", "cuda-ipc"] = "auto",
        device: int | None = None,
        policy: Literal["drop_oldest", "strict_wait"] = "drop_oldest",
        group: str | int | None = None,
        color: ColorLike | None = None,
        sample_aspect_ratio: Fraction | tuple[int, int] | str | int | None = None,
        field_order: str | int | None = None,
        rotation: int | None = None,
        frame_rate: Rate | None = None,
    ) -> None:
        ring_size = whole_number(ring_size, "ring_size", MIN_RING, MAX_RING)
        shape = FrameShape(pixel_format(format), width, height)
        looks = presentation(color, sample_aspect_ratio, field_order, rotation, frame_rate, format=format)
        self._open(key, shape, looks, policy, group, lambda: create_pool(memory, device, key, shape.nbytes, ring_size))

    @classmethod
    def external(
        cls,
        key: str,
        buffers: Sequence[Any],
        width: int,
        height: int,
        format: str = "nv12",
        *,
        pitch: int | None = None,
        device: int | None = None,
        policy: Literal["drop_oldest", "strict_wait"] = "drop_oldest",
        group: str | int | None = None,
        color: ColorLike | None = None,
        sample_aspect_ratio: Fraction | tuple[int, int] | str | int | None = None,
        field_order: str | int | None = None,
        rotation: int | None = None,
        frame_rate: Rate | None = None,
    ) -> Self:
        """Share device buffers that the caller owns, one per slot: for example a decoder's pool.

        Parameters
        ----------
        key, width, height, format, device, policy, group, color, sample_aspect_ratio, field_order, rotation, frame_rate
            As for :class:`Publisher`.
        buffers : sequence
            2 to 16 device buffers: arrays (CUDA array interface, DLPack) or addresses. Each must have room for a frame.
            Buffers may be parts of one allocation. The publisher keeps references to them. They must stay allocated
            until the publisher is closed.
        pitch : int, optional
            Bytes from one row to the next in each plane. Default: the bytes of a row, rounded up to 64.

        Raises
        ------
        DeviceError
            A buffer cannot be shared: it is managed, stream-ordered (``cuMemAllocAsync``) or virtual-memory mapped.
        ValueError
            A buffer is too small, or there are too few or too many buffers.

        Notes
        -----
        ``acquire()`` picks a buffer that no subscriber is reading; ``frame.slot`` is its index. ``acquire(slot=3)``
        asks for a particular buffer.
        """
        if not MIN_RING <= len(buffers) <= MAX_RING:
            raise ValueError(f"the number of buffers must be {MIN_RING} to {MAX_RING}, not {len(buffers)}")
        pitch = None if pitch is None else whole_number(pitch, "pitch", 1, 2**31 - 1)
        shape = FrameShape(pixel_format(format), width, height, pitch, pitch)
        publisher = cls.__new__(cls)
        looks = presentation(color, sample_aspect_ratio, field_order, rotation, frame_rate, format=format)
        publisher._open(key, shape, looks, policy, group, lambda: create_external(buffers, device, shape.nbytes))
        return publisher

    @lifetime.settled
    def _open(
        self,
        key: str,
        shape: FrameShape,
        looks: Presentation,
        policy: str,
        group: str | int | None,
        create: Callable[[], Pool],
    ) -> None:
        check_key(key)
        if policy not in POLICIES:
            raise ValueError(f"policy must be 'drop_oldest' or 'strict_wait', not {policy!r}")
        self._policy = policy
        self._group = group_id(group)
        self.key = key
        self._layout = FrameLayout(shape, looks)
        self._pid = os.getpid()
        self._guard = threading.RLock()  # for closing and enable_packets(); a signal handler may close in between
        self._packets: PacketPublisher | None = None
        self._final: PublisherStats | None = None
        self._inherited = False
        directory = runtime_dir(self._group)
        path = socket_path(directory, key)
        with contextlib.ExitStack() as made:  # undoes each step when a later step fails, and in close()
            what = "control segment"
            self._segment = OwnedSegment(directory, segment_name(key), HEADER_BYTES, what=what, gid=self._group)
            made.callback(self._segment.close)
            header = self._segment.mapping
            assert header is not None
            pool = create()
            made.callback(pool.close)
            self._memory = pool.kind
            self._slots = pool.memory.count
            features = PINS | FUTEX | OWNER_LOCK | pool.features
            epoch = int.from_bytes(os.urandom(8), "little") | 1
            writer = FrameWriter(
                header,
                pool.memory,
                meta=shape.meta,
                policy=POLICIES[policy],
                ext_flags=features,
                epoch=epoch,
                version=_release(__version__),
                pid=os.getpid(),
                exports=pool.exports,
                presentation=looks.stored,
            )
            pool.share_in_process(epoch)
            welcome = Welcome(
                result=0,
                ring_size=self._slots,
                ownership=int(pool.kind == "cuda-external"),
                meta=meta_bytes(header),
                path=segment_name(key),
                features=features,
            )
            with contextlib.ExitStack() as handed:  # these belong to the server once it exists
                descriptors = [handed.enter_context(self._segment.descriptor(writable=True))]
                for fd in pool.descriptors():
                    descriptors.append(handed.enter_context(Descriptor.dup(fd)))
                self._server = Server(path, writer, welcome, descriptors, self._group, [self._segment])
                made.callback(self._server.close)
                handed.pop_all()
            self._server.start()
            self._writer: FrameWriter | None = writer
            self._forgets = [self._server.forget, pool.close, self._segment.forget]
            lifetime.register(self)
            self._ending = lifetime.Ending(writer.close, self._server.close, pool.close, self._segment.close)
            self._closed = self._over = False  # from here on close() undoes it
            made.pop_all()

    @property
    def format(self) -> str:
        """Name of the pixel format, as in ``cuframes.formats.FORMATS``."""
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
        """Nominal frames per second. None: not said."""
        return self._presentation.frame_rate

    @property
    def memory(self) -> str:
        """Where the frames are stored: ``"host"``, ``"cuda"``, ``"cuda-ipc"`` or ``"cuda-external"``."""
        return self._memory

    @property
    def ring_size(self) -> int:
        """Number of slots."""
        return self._slots

    @property
    def policy(self) -> str:
        """What happens when subscribers hold the slots: ``"drop_oldest"`` or ``"strict_wait"``."""
        return self._policy

    def publish(self, src: Any, *, pts_ns: int | None = None, stream: Any = None, timeout: float | None = None) -> int:
        """Copy a frame in and publish it.

        Parameters
        ----------
        src : array-like
            The frame, in one of these forms:

            - one array: ``(height * 3 // 2, width)`` for 4:2:0, ``(height * 2, width)`` for planar 4:2:2,
              ``(planes, height, width)`` for planar RGB and 4:4:4, otherwise ``(height, width[, components])``;
            - a list or tuple of its planes;
            - its bytes without padding;
            - an object with planes and a format, such as a PyAV ``VideoFrame`` or a :class:`Frame`. Its own colours are
              not looked at: subscribers take it to have those of this publisher.

            Samples are uint8, or uint16 if they have more than 8 bits; rows of ``v210`` are bytes. Rows may be padded,
            and may have any order and direction. A publisher in device memory also takes arrays of its GPU (CUDA array
            interface, DLPack, frames that PyAV decoded there) and copies them on `stream`. It uploads host arrays
            through pinned memory. In both cases the host does not wait.
        pts_ns : int, optional
            Presentation time in nanoseconds. Default: that of `src` if it is a frame of this library or of PyAV and has
            one, otherwise CLOCK_MONOTONIC at the time of publishing.
        stream : int or stream object, optional
            For device memory: the CUDA stream that makes the copy, and after whose work the frame is published (CUDA
            Python, CuPy, PyTorch, or a handle). Default: the legacy default stream.
        timeout : float, optional
            Seconds to wait for a slot under ``strict_wait``; None waits without a limit. ``drop_oldest`` never
            waits.

        Returns
        -------
        int
            The frame's sequence number.

        Raises
        ------
        FrameDropped
            Every slot is held by subscribers (``drop_oldest``).
        Timeout
            The oldest slot did not become free in time (``strict_wait``).
        SegmentTruncated
            Another process truncated the control segment. Close this publisher, and open a new one.
        ValueError, TypeError, BufferError
            `src` does not fit the format; nothing was published. ValueError also if the publisher is closed.
        CuframesError
            The publisher's session thread has failed, so the stream has ended for all subscribers; open a new one.
        """
        writer = self._writer
        if writer is None:
            raise self._refusal()
        return publish(writer, self._layout, src, pts_ns, stream, timeout)

    def acquire(self, *, stream: Any = None, timeout: float | None = None, slot: int | None = None) -> WritableFrame:
        """A slot to write in place, as a context manager.

        The frame is published when the ``with`` block ends normally, and abandoned when the block raises. Entering the
        block raises the same errors as :meth:`publish`. In device memory, the publication is ordered after the work
        that is queued at the end of the block on `stream`, and on the streams that took the planes by DLPack.

        Parameters
        ----------
        stream, timeout
            As for :meth:`publish`.
        slot : int, optional
            Use this slot instead of the next free one. ``seq`` skips the numbers of the slots in between.
        """
        writer = self._open_writer()
        wanted = -1 if slot is None else whole_number(slot, "slot", 0, self._slots - 1)
        return WritableFrame(writer, self._layout, stream, timeout, wanted)

    @lifetime.settled
    def enable_packets(
        self,
        codec: str | int,
        *,
        extradata: Any = None,
        slots: int = 64,
        data_size: int = DATA_SIZE,
        max_packet_size: int = MAX_PACKET_SIZE,
    ) -> None:
        """Share encoded packets beside the frames, from now on. See :class:`PacketPublisher` for the parameters.

        Subscribers read the packets with :meth:`Subscriber.packets`.

        Raises
        ------
        AlreadyExists
            Packets are already shared under this key, by this publisher or another one.
        OutOfSharedMemory, ValueError, TypeError
        """
        if os.getpid() != self._pid:  # a thread of the parent may hold the lock
            raise self._refusal()
        with self._guard:
            self._open_writer()
            if self._packets is not None:
                raise AlreadyExists(f"the publisher of {self.key!r} already shares packets; use its publish_packet()")
            packets = PacketPublisher(
                self.key,
                codec,
                extradata=extradata,
                slots=slots,
                data_size=data_size,
                max_packet_size=max_packet_size,
                group=self._group,
            )
            try:
                self._open_writer()  # a signal handler may have closed it meanwhile
                self._server.share_packets(packets_name(self.key), packets.descriptor(), packets._owned())
            except BaseException:
                packets.close()
                raise
            self._ending.insert(packets.close)
            self._packets = packets
            if self._closed:  # by a signal handler, just now
                packets.close()
                raise self._refusal()

    @property
    def packets(self) -> PacketPublisher | None:
        """The publisher of packets beside the frames, after :meth:`enable_packets`."""
        return self._packets

    def publish_packet(
        self, data: Any, *, pts_ns: int | None, dts_ns: int | None = None, keyframe: bool = False, flags: int = 0
    ) -> int:
        """Copy one encoded packet in and publish it: :meth:`PacketPublisher.publish_packet`.

        Raises
        ------
        NoPacketRing
            :meth:`enable_packets` has not been called.
        PacketOversized, ValueError, TypeError
        """
        packets = self._packets
        if packets is None:
            raise NoPacketRing("this publisher shares no packets yet; call enable_packets() first")
        return packets.publish_packet(data, pts_ns=pts_ns, dts_ns=dts_ns, keyframe=keyframe, flags=flags)

    def _open_writer(self) -> FrameWriter:
        writer = self._writer
        if writer is None:
            raise self._refusal()
        return writer

    def _refusal(self) -> Exception:
        if self._inherited or os.getpid() != self._pid:
            return RuntimeError("this publisher belongs to the parent process; open a new one after the fork")
        pause_at_exit()
        return ValueError("the publisher is closed")

    @property
    def subscribers(self) -> tuple[SubscriberInfo, ...]:
        """The connected subscribers, with the counters that they report."""
        if self._inherited or os.getpid() != self._pid:
            raise self._refusal()
        header = self._segment.mapping
        if self._closed or header is None:
            return ()
        try:
            found: Any = describe(header)["subscribers"]
        except SegmentTruncated:  # publish() says so; closing must go on
            return ()
        return tuple(SubscriberInfo(**entry) for entry in found)

    def stats(self) -> PublisherStats:
        """The current counters; after :meth:`close`, the final ones."""
        writer = self._writer
        if os.getpid() != self._pid:
            raise self._refusal()
        if writer is None:
            if self._final is None:
                raise self._refusal()
            return self._final
        seq, published, dropped = writer.counters
        return PublisherStats(published, dropped, seq, len(self.subscribers))

    @lifetime.settled
    def close(self) -> None:
        """End the stream. Subscribers take the remaining valid frames, then get :class:`Disconnected`. Frames that they
        hold stay intact.

        Does not wait for subscribers. It may be called twice, and in a signal handler or destructor. A second call from
        another thread waits until the publisher is closed (for 5 s at most). In a forked child it only closes
        inherited descriptors, and the parent's publisher is not affected.
        """
        if os.getpid() != self._pid:  # forked by C code, that tells no Python hooks
            self._forget()
            return
        with self._guard:
            if self._final is None:
                self._final = self._count()
            self._closed = True
            self._writer = None
        if not self._ending.make():
            return
        # Frames still in use have their own references to the memory; ours would keep it while this object lives.
        self._forgets = []
        self.__dict__.pop("_server", None)
        lifetime.unregister(self)
        self._over = True

    def _count(self) -> PublisherStats:
        writer = self._open_writer()
        try:
            return self.stats()
        except CuframesError:  # its segment was cut off, say
            seq, published, dropped = writer.counters
            return PublisherStats(published, dropped, seq, 0)

    def _forget(self) -> None:
        self._closed = self._over = True
        self._inherited = True
        self._writer = None
        forgets, self._forgets = self._forgets, []
        for forget in forgets:
            forget()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._memory
        return f"<Publisher {self.key!r}, {self.format} {self.width}x{self.height}, {state}>"


def _release(version: str) -> tuple[int, ...]:
    """The three numbers of a version, without suffixes: 0.2.0rc1 is (0, 2, 0)."""
    numbers = [int(found.group()) if (found := re.match(r"\d+", part)) else 0 for part in version.split(".")]
    return (*numbers, 0, 0, 0)[:3]
