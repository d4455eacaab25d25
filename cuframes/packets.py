"""Encoded packets: publishing them, beside frames or alone, and reading them in other processes."""

import os
import time
from collections.abc import Iterable
from enum import IntFlag
from typing import Any, Literal, NamedTuple

from cuframes._native.packets import (
    EXTRADATA_MAX,
    MAX_SLOTS,
    START_KEYFRAME,
    START_LATEST,
    START_NEXT,
    START_OLDEST,
    Packet,
    PacketRing,
    PacketWriter,
    segment_size,
)
from cuframes._native.ring_end import Descriptor
from cuframes.codecs import codec_id, codec_name
from cuframes.errors import (
    Disconnected,
    NoCodecParameters,
    NoPacketRing,
    NotFound,
    ProtocolError,
    SegmentTruncated,
)
from cuframes.formats import whole_number
from cuframes.host import lifetime
from cuframes.host.names import check_key, group_id, packets_name, runtime_dir
from cuframes.host.receiver import WatchedReceiver
from cuframes.host.segment import OwnedSegment, inspect, open_entrusted, segment_path
from cuframes.host.steps import InTheWay, Steps, bare
from cuframes.session import client

__all__ = ["Packet", "PacketFlags", "PacketPublisher", "PacketReader", "PacketReaderStats"]

STARTS = {
    "keyframe": START_KEYFRAME,
    "oldest": START_OLDEST,
    "next": START_NEXT,
    "latest": START_LATEST,
    "live": START_NEXT,  # another name for it
}
DATA_SIZE = 8 << 20
MAX_PACKET_SIZE = 2 << 20
LOOK_SECONDS = 0.5
KEY = 1


class PacketFlags(IntFlag):
    """Flags of a packet."""

    KEY = KEY
    CORRUPT = 2
    DISCONTINUITY = 4
    LAST_IN_ACCESS_UNIT = 8


class PacketPublisher(lifetime.Closing):
    """Share encoded packets under a key, without frames. To share them beside frames, use
    :meth:`Publisher.enable_packets`.

    Parameters
    ----------
    key : str
        As for :class:`Publisher`. A host has one living publisher of packets per key.
    codec : str or int
        FFmpeg's name of the codec (``h264``, ``hevc``, …), or its AVCodecID.
    extradata : bytes-like, optional
        The codec's extradata, as FFmpeg provides them (``codec_context.extradata``), at most 4096 bytes.
    slots : int
        Number of packets that the ring can hold, 1 to 1024.
    data_size : int
        Number of bytes that the ring can hold; they are reserved immediately. A packet is overwritten as soon as either
        limit is reached: 8 MiB are 16 s of a 4 Mbit/s stream, 64 slots are 2.5 s of a stream with 25 packets per
        second.
    max_packet_size : int
        Bytes; larger packets are refused.
    group : str or int, optional
        Members of this group may read too. Default: only this process's user and root.

    Raises
    ------
    AlreadyExists
        Another living publisher shares packets under this key. (The ring of a dead publisher is replaced.)
    OutOfSharedMemory, PermissionError, ValueError, TypeError

    Notes
    -----
    Publishing never waits. Slow readers lose the oldest packets, and are told how many. Only one thread at a time may
    publish. Close the publisher, or use it as a context manager. After a fork it works in the parent only.
    """

    _reader = "cuframes.PacketReader"

    @lifetime.settled
    def __init__(
        self,
        key: str,
        codec: str | int,
        *,
        extradata: Any = None,
        slots: int = 64,
        data_size: int = DATA_SIZE,
        max_packet_size: int = MAX_PACKET_SIZE,
        group: str | int | None = None,
    ) -> None:
        check_key(key)
        slots = whole_number(slots, "slots", 1, MAX_SLOTS)
        data_size = whole_number(data_size, "data_size", 1, 2**32 - 1)
        max_packet_size = whole_number(max_packet_size, "max_packet_size", 1)
        self.key = key
        self.codec_id = codec_id(codec)
        self._pid = os.getpid()
        self._next_look: float | None = time.monotonic() + LOOK_SECONDS
        gid, size, extra = group_id(group), segment_size(slots, data_size), _check_extradata(extradata)
        # Readers map it read-only, so members of the group need no more.
        self._segment = OwnedSegment(
            runtime_dir(gid), packets_name(key), size, what="packet ring", gid=gid, group_mode=0o640
        )
        try:
            assert self._segment.mapping is not None
            self._writer = PacketWriter(
                self._segment.mapping,
                slots=slots,
                data_size=data_size,
                max_packet=min(max_packet_size, data_size),
                codec_id=self.codec_id,
                pid=os.getpid(),
                extradata=extra,
            )
            self._ending = lifetime.Ending(self._writer.close, self._segment.close)
            lifetime.register(self)
        except BaseException:
            self._segment.close()
            raise
        self._closed = self._over = False

    def publish_packet(
        self, data: Any, *, pts_ns: int | None, dts_ns: int | None = None, keyframe: bool = False, flags: int = 0
    ) -> int:
        """Copy one packet in and publish it. Never waits.

        Parameters
        ----------
        data : bytes-like
            One packet, as FFmpeg's demuxers and encoders produce them: bytes, a contiguous buffer, or a PyAV packet.
        pts_ns, dts_ns : int or None
            Presentation and decoding time in nanoseconds; None if not known.
        keyframe : bool
            Whether decoding can begin at this packet. Readers join at keyframes, and continue at a keyframe after a
            loss.
        flags : int
            Additional :class:`PacketFlags`.

        Returns
        -------
        int
            The packet's sequence number: 1, 2, 3, …

        Raises
        ------
        PacketOversized
            The packet is larger than ``max_packet_size``; nothing was published.
        SegmentTruncated
            Another process truncated the packet ring. Close this publisher, and open a new one.
        ValueError, TypeError
        """
        if self._next_look is not None and time.monotonic() >= self._next_look:
            self._look()
        return self._writer.put(data, pts_ns, dts_ns, flags | KEY if keyframe else flags)

    def publish_packets(self, packets: Iterable[tuple[Any, int | None, int | None, int]]) -> int:
        """Publish several packets and wake the readers once. This is faster for many small packets.

        Parameters
        ----------
        packets : iterable of tuple
            ``(data, pts_ns, dts_ns, flags)`` as for :meth:`publish_packet`. Keyframes have ``PacketFlags.KEY``.

        Returns
        -------
        int
            The sequence number of the last packet.

        Raises
        ------
        PacketOversized, ValueError, TypeError
            A packet is invalid. The packets before it were published.
        """
        if self._next_look is not None and time.monotonic() >= self._next_look:
            self._look()
        return self._writer.put_all(packets)

    def _look(self) -> None:
        """Restore the ring's files if they were removed. A publisher of packets alone has no thread for this, so the
        publishing call does it; beside frames, the session thread does."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        if os.getpid() == self._pid:  # else the files are the parent's, and the descriptors closed: the ring says so
            self._segment.look()

    def _owned(self) -> OwnedSegment:
        """The ring's segment, for the session thread, which restores its files from now on."""
        self._next_look = None
        return self._segment

    def set_extradata(self, extradata: Any) -> None:
        """Change the extradata: at once before the first packet, later together with the next keyframe."""
        self._writer.set_extradata(_check_extradata(extradata))

    @property
    def packets_published(self) -> int:
        """Number of packets published so far, which equals the newest sequence number."""
        return self._writer.counters[0]

    def descriptor(self) -> Descriptor:
        """The segment, open for reading, for another process."""
        return self._segment.descriptor(writable=False)

    @lifetime.settled
    def close(self) -> None:
        """End the stream. Readers get the remaining packets, then :class:`Disconnected`. It may be called twice."""
        if os.getpid() != self._pid:  # forked by C code, that tells no Python hooks
            self._forget()
            return
        self._closed = True
        if self._ending.make():
            lifetime.unregister(self)
            self._over = True

    def _forget(self) -> None:
        self._closed = self._over = True
        self._segment.forget()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.packets_published} packets"
        return f"<PacketPublisher {self.key!r}, codec {self.codec_id}, {state}>"


class PacketReaderStats(NamedTuple):
    """Counters of one packet reader; with ``reconnect=True``, summed over all publishers.

    ``received`` packets were read. ``lost`` packets were overwritten before they were read. After the first packet,
    every sequence number is counted in one of the two.
    """

    received: int
    lost: int

    def plus(self, other: tuple[int, ...]) -> "PacketReaderStats":
        """The sum of these and other counters."""
        return PacketReaderStats(self.received + other[0], self.lost + other[1])


class PacketReader(WatchedReceiver[Packet, PacketRing, PacketReaderStats]):
    """Read the packets of a key, in order.

    Parameters
    ----------
    key : str
    start : {"keyframe", "oldest", "next", "latest"}
        The first packet. All packets after it follow.

        - ``keyframe``: the newest keyframe in the ring.
        - ``oldest``: the oldest keyframe in the ring, for the seconds before an event.
        - ``next`` (or ``live``): the next packet to be published.
        - ``latest``: the newest packet in the ring, keyframe or not.
    connect_timeout : float, optional
        Seconds to wait for a publisher to appear and to answer; None waits for ever. A running publisher gets at least
        0.2 s to answer.
    reconnect : bool
        When the publisher ends, wait for the next publisher of this key instead of raising :class:`Disconnected`. Its
        packets are read from the oldest keyframe on, and the first one is marked ``DISCONTINUITY``.
    wait : {"block", "spin"}
        ``block`` sleeps until a packet comes. ``spin`` polls all the time, which uses a whole core for the lowest
        latency.

    Raises
    ------
    NotFound
        There is no publisher of this key.
    NoPacketRing
        The publisher of this key shares no packets.
    Timeout
        The publisher is running but did not answer in time, because it is stopped or overloaded.
    ProtocolError, PermissionError, ValueError, TypeError

    Notes
    -----
    Reading leaves no trace in the ring, and the number of readers is not limited. A reader that is too slow loses
    packets: ``next`` then raises :class:`PacketOverrun` once, with the exact number of lost packets. The following
    packet is the newest keyframe; its ``lost`` is that number, and its flags include ``DISCONTINUITY``. Loops (``for``,
    ``async for``) continue at that keyframe without an exception. They end when the publisher ends or the reader is
    closed.
    """

    _what = "reader"
    _reader = "cuframes.PacketReader"

    def __init__(
        self,
        key: str,
        start: Literal["keyframe", "oldest", "next", "latest", "live"] = "keyframe",
        *,
        connect_timeout: float | None = 5.0,
        reconnect: bool = False,
        wait: Literal["block", "spin"] = "block",
    ) -> None:
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}; not {start!r}")
        if wait not in ("block", "spin"):
            raise ValueError(f"wait must be block or spin, not {wait!r}")
        super().__init__(check_key(key), reconnect, PacketReaderStats(0, 0))
        self._start = STARTS[start]
        self._spin = wait == "spin"
        self._join(connect_timeout)

    def _open(self, *, again: bool) -> Steps[PacketRing]:
        file = yield from _find(self.key)
        start = START_OLDEST if again else self._start
        try:
            return PacketRing(file, os.fstat(file.fileno()).st_size, start=start, spin=self._spin, rejoined=again)
        except BaseException:
            file.close()
            raise

    def _installing(self, ring: PacketRing) -> None:
        self._codec_id = ring.codec_id

    def next(self, timeout: float | None = None, *, copy: bool = True) -> Packet:
        """Read the next packet. Waits without the GIL.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. 0 checks once without waiting; None waits without a limit.
        copy : bool
            With False the bytes are not copied: ``packet.data`` is a read-only memoryview of the ring. Check
            ``packet.valid`` after using it: False means that the packet was overwritten, and that what was read must be
            discarded. (A packet that wraps around the end of the ring is copied anyway.)

        Raises
        ------
        Timeout
            No packet came in time.
        PacketOverrun
            Packets were overwritten before they were read. The next call continues at a keyframe.
        Disconnected
            The publisher ended, and its last packets have been read. Never raised with ``reconnect=True``.
        ProtocolError
            The ring is damaged.
        ValueError
            The reader is closed.
        """
        return self._next(lambda ring, left: ring.next(left, copy, False), timeout)

    def _take(self, ring: PacketRing, timeout: float | None) -> Packet:
        return ring.next(timeout, True, True)

    def __next__(self) -> Packet:
        ring = self._ring
        if ring is not None:  # the shortest way to a packet; the base class handles all other cases
            try:
                return ring.next(None, True, True)
            except (Disconnected, SegmentTruncated, ValueError):  # not suppress(): it would cost as much as the packet
                pass
        return super().__next__()

    @property
    def codec_id(self) -> int:
        """FFmpeg's AVCodecID of the stream."""
        return self._codec_id

    @property
    def codec(self) -> str | None:
        """FFmpeg's name of the codec; None if the FFmpeg in use (PyAV) does not know the codec."""
        return codec_name(self.codec_id)

    @property
    def extradata(self) -> bytes:
        """The codec's extradata, for ``codec_context.extradata``.

        Raises
        ------
        NoCodecParameters
            The publisher has set none. (Streams with parameter sets at every keyframe do not need any.)
        """
        extradata = self._joined().extradata
        if not extradata:
            raise NoCodecParameters(
                f"the packets of {self.key!r} have no extradata; the publisher must set them, with extradata= or with "
                "set_extradata()"
            )
        return extradata

    def __repr__(self) -> str:
        return f"<PacketReader {self.key!r}, codec {self.codec_id}{', closed' if self._closed else ''}>"


def _find(key: str) -> Steps[Descriptor]:
    """The packet ring of a living publisher: from its socket, or otherwise by name.

    Any user may create a file of that name. The reader then keeps waiting: see :class:`InTheWay`.
    """
    missing: Exception
    try:
        file = yield from client.fetch_packets(key)
        missing = NotFound(f"the publisher of {key!r} is closing")
    except (NotFound, NoPacketRing) as problem:
        missing = bare(problem)
        try:
            file = open_entrusted(packets_name(key), writable=False)
        except NotFound:
            raise missing from None
        except (ProtocolError, PermissionError) as found:
            raise InTheWay(found) from None
    state, kind, header = inspect(file.fileno())
    if state == "alive" and kind == "packets" and header is not None and not header["shutdown"]:
        return file
    file.close()
    if state == "foreign" or kind == "frames":
        path = segment_path(packets_name(key))
        raise InTheWay(ProtocolError(f"{path} is not a packet ring of version 2, or is truncated; remove it"))
    raise missing


def _check_extradata(extradata: Any) -> bytes:
    raw = b"" if extradata is None else bytes(memoryview(extradata))
    if len(raw) > EXTRADATA_MAX:
        raise ValueError(f"extradata must have at most {EXTRADATA_MAX} bytes, not {len(raw)}")
    return raw
