"""The publisher: owns a key, its segment and pool, and admits subscribers."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

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
from cuframes.errors import AlreadyExists, CuframesError, NoPacketRing, SegmentTruncated
from cuframes.formats import FrameShape, pixel_format, whole_number
from cuframes.host import lifetime
from cuframes.host.names import check_key, group_id, packets_name, runtime_dir, segment_name, socket_path
from cuframes.host.segment import OwnedSegment
from cuframes.memory import Pool, create_external, create_pool
from cuframes.packets import DATA_SIZE, MAX_PACKET_SIZE, PacketPublisher
from cuframes.session.listing import SubscriberInfo
from cuframes.session.server import Server
from cuframes.session.wire import Welcome

__all__ = ["Publisher", "PublisherStats"]

POLICIES = {"drop_oldest": DROP_OLDEST, "strict_wait": STRICT_WAIT}


class PublisherStats(NamedTuple):
    """Counters of one publisher.

    ``published`` and ``dropped`` count frames; ``dropped`` are those for which no slot was free. ``seq`` is the newest
    sequence number, ``subscribers`` how many are connected.
    """

    published: int
    dropped: int
    seq: int
    subscribers: int


class Publisher(lifetime.Closing):
    """Share frames under a key.

    Parameters
    ----------
    key : str
        1 to 63 characters of ``A-Z a-z 0-9 _ -``; one living publisher per key and host.
    width, height : int
        Pixels. Both even for 4:2:0 formats, the width even for 4:2:2.
    format : str
        ``nv12 p010 i420 gray8 gray16 rgb24 bgr24 rgba bgra uyvy422 yuyv422 rgbp``.
    ring_size : int
        Slots, 2 to 16. The memory of all of them is reserved now.
    memory : {"auto", "host", "cuda", "cuda-ipc"}
        Where frames live. ``cuda``: on a GPU, mapped read-only by subscribers (falls back to ``cuda-ipc`` where the
        device cannot, see :attr:`memory`). ``cuda-ipc``: on a GPU, by the handles that plain version 3 programs know.
        ``auto``: ``cuda`` where there is a GPU, else ``host``.
    device : int, optional
        Which GPU, as this process counts them; default: that of the current CUDA context, else 0.
    policy : {"drop_oldest", "strict_wait"}
        ``drop_oldest`` never waits: it takes the oldest slot that no subscriber is reading, and drops the new frame
        when there is none. ``strict_wait`` waits until every subscriber has released the oldest frame.
    group : str or int, optional
        Members of this group may subscribe too. Default: our own user and root.

    Raises
    ------
    AlreadyExists
        Another publisher has this key. What a dead one left is taken over.
    OutOfSharedMemory, DeviceError, PermissionError, ValueError, TypeError

    Notes
    -----
    One thread at a time may write. The publisher runs one thread of its own for the socket. Close it, or use it as a
    context manager; it also closes at interpreter exit. After a fork it is usable in the parent only.
    """

    def __init__(
        self,
        key: str,
        width: int,
        height: int,
        format: str = "nv12",
        *,
        ring_size: int = 8,
        memory: str = "auto",
        device: int | None = None,
        policy: str = "drop_oldest",
        group: str | int | None = None,
    ) -> None:
        ring_size = whole_number(ring_size, "ring_size", MIN_RING, MAX_RING)
        shape = FrameShape(pixel_format(format), width, height)
        self._open(key, shape, policy, group, lambda: create_pool(memory, device, key, shape.nbytes, ring_size))

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
        policy: str = "drop_oldest",
        group: str | int | None = None,
    ) -> Self:
        """Share device buffers that the caller owns, one per slot: a decoder's pool, say.

        Parameters
        ----------
        key, width, height, format, device, policy, group
            As for :class:`Publisher`.
        buffers : sequence
            2 to 16 device buffers: arrays (CUDA array interface, DLPack) or addresses, each with room for a frame. They
            may be parts of one allocation. The publisher keeps references; they must stay allocated until it is closed.
        pitch : int, optional
            Bytes between rows of each plane; default: rows rounded up to 64 bytes.

        Raises
        ------
        DeviceError
            Memory that cannot be shared: managed, stream-ordered (``cuMemAllocAsync``), virtual-memory mapped.
        ValueError
            A buffer is too small, or there are too few or too many.

        Notes
        -----
        ``acquire()`` picks a buffer that nobody reads, and says which (``frame.slot``); ``acquire(slot=3)`` asks for
        one in particular.
        """
        if not MIN_RING <= len(buffers) <= MAX_RING:
            raise ValueError(f"buffers must be {MIN_RING} to {MAX_RING}, not {len(buffers)}")
        pitch = None if pitch is None else whole_number(pitch, "pitch", 1, 2**31 - 1)
        shape = FrameShape(pixel_format(format), width, height, pitch, pitch)
        publisher = cls.__new__(cls)
        publisher._open(key, shape, policy, group, lambda: create_external(buffers, device, shape.nbytes))
        return publisher

    @lifetime.settled
    def _open(
        self, key: str, shape: FrameShape, policy: str, group: str | int | None, create: Callable[[], Pool]
    ) -> None:
        check_key(key)
        if policy not in POLICIES:
            raise ValueError(f"policy must be 'drop_oldest' or 'strict_wait', not {policy!r}")
        self._group = group_id(group)
        self.key = key
        self._layout = FrameLayout(shape)
        self._pid = os.getpid()
        self._guard = threading.RLock()  # for closing and enable_packets(); a signal handler may close in between
        self._packets: PacketPublisher | None = None
        self._final: PublisherStats | None = None
        self._inherited = False
        directory = runtime_dir(self._group)
        path = socket_path(directory, key)
        with contextlib.ExitStack() as made:  # each step undoes itself when a later one fails, and in close()
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
            with contextlib.ExitStack() as handed:  # the server's, once it is there
                descriptors = [handed.enter_context(self._segment.descriptor(writable=True))]
                for fd in pool.descriptors():
                    descriptors.append(handed.enter_context(Descriptor.dup(fd)))
                self._server = Server(path, writer, welcome, descriptors, self._group, [self._segment])
                handed.pop_all()
            made.callback(self._server.close)
            self._writer: FrameWriter | None = writer
            self._forgets = [self._server.forget, pool.close, self._segment.forget]
            lifetime.register(self)
            self._ending = lifetime.Ending(writer.close, self._server.close, pool.close, self._segment.close)
            self._closed = self._over = False  # from here on close() undoes it
            made.pop_all()

    @property
    def format(self) -> str:
        """Pixel format, FFmpeg's name."""
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
    def memory(self) -> str:
        """Where the frames are: ``"host"``, ``"cuda"``, ``"cuda-ipc"`` or ``"cuda-external"``."""
        return self._memory

    def publish(self, src: Any, *, pts_ns: int | None = None, stream: Any = None, timeout: float | None = None) -> int:
        """Copy a frame in and publish it.

        Parameters
        ----------
        src : array-like
            The frame as one array (``(height * 3 // 2, width)`` for 4:2:0, ``(3, height, width)`` for ``rgbp``, else
            ``(height, width[, components])``), as a list or tuple of its planes, as its bytes without padding, or
            anything with planes and a format: a PyAV ``VideoFrame``, a :class:`Frame`. Samples are uint8, or uint16 for
            ``p010`` and ``gray16``. Rows may be padded, and lie in any order and direction.
            Device memory takes arrays of its GPU (CUDA array interface, DLPack, PyAV's frames decoded there), copied on
            `stream`, and host arrays, uploaded through pinned memory; the host waits for neither.
        pts_ns : int, optional
            Presentation time in nanoseconds; default: CLOCK_MONOTONIC at publish.
        stream : int or stream object, optional
            For device memory: the CUDA stream to copy on and to publish after (CUDA Python, CuPy, PyTorch, or a
            handle); default: the legacy default stream.
        timeout : float, optional
            Seconds to wait for a slot under ``strict_wait``; None waits as long as it takes. ``drop_oldest`` never
            waits.

        Returns
        -------
        int
            The frame's sequence number.

        Raises
        ------
        FrameDropped
            Every slot is held (``drop_oldest``).
        Timeout
            The oldest slot did not become free in time (``strict_wait``).
        SegmentTruncated
            Somebody cut the control segment off. Close this publisher, and open a new one.
        ValueError, TypeError, BufferError
            `src` does not fit; nothing was published. ValueError also when the publisher is closed.
        CuframesError
            Its session thread has failed, so the publisher has ended for everybody; open a new one.
        """
        writer = self._writer
        if writer is None:
            raise self._refusal()
        return publish(writer, self._layout, src, pts_ns, stream, timeout)

    def acquire(self, *, stream: Any = None, timeout: float | None = None, slot: int | None = None) -> WritableFrame:
        """A slot to write in place, as a context manager.

        It is published when the ``with`` block ends cleanly and given up when it raises. Entering the block raises what
        :meth:`publish` raises. In device memory the frame is published after the work that `stream`, and streams that
        took the planes by DLPack, have queued by the end of the block.

        Parameters
        ----------
        stream, timeout
            As for :meth:`publish`.
        slot : int, optional
            This slot rather than the next that is free; numbers of the slots between are left out of ``seq``.
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

        Subscribers find them with :meth:`Subscriber.packets`.

        Raises
        ------
        AlreadyExists
            They are shared already, here or by another publisher of this key.
        OutOfSharedMemory, ValueError, TypeError
        """
        with self._guard:
            self._open_writer()
            if self._packets is not None:
                raise AlreadyExists(f"the publisher of {self.key!r} shares packets already")
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
            Before :meth:`enable_packets`.
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
        """Who is connected, with the counters they keep themselves."""
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
        """Counters so far; those of the end once it is closed."""
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
        """End the stream: subscribers drain what is valid, then get :class:`Disconnected`. Frames they hold stay whole.

        Does not wait for subscribers. Closing twice is fine, also from another thread, which then waits until it is
        closed (for 5 s at most), or in a signal handler or destructor. In a forked child it gives up what was inherited
        and touches nothing of the parent's.
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
        # Whoever still uses the memory has a reference of its own; ours would keep it for as long as this object lives.
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
        return f"<Publisher {self.key!r} {self.format} {self.width}x{self.height}, {state}>"


def _release(version: str) -> tuple[int, ...]:
    """Three numbers of a version, whatever stands behind or between them: 0.2.0rc1 is (0, 2, 0)."""
    numbers = [int(found.group()) if (found := re.match(r"\d+", part)) else 0 for part in version.split(".")]
    return (*numbers, 0, 0, 0)[:3]
