from collections.abc import Iterable
from typing import Any, Self

from cuframes._native.mapping import Mapping

EXTRADATA_MAX: int
MAX_SLOTS: int
PACKET_MAGIC: int
PACKET_HEADER_BYTES: int
PACKET_LOOK_BYTES: int
START_KEYFRAME: int
START_OLDEST: int
START_LIVE: int

def segment_size(slots: int, data_size: int) -> int:
    """Bytes of a packet ring's segment."""

def describe_packets(raw: bytes, size: int) -> dict[str, Any]:
    """A snapshot of a packet ring's header as a dict, for reports. Values are as found.

    `raw` is the first PACKET_LOOK_BYTES of a file of `size` bytes: read, not mapped, as it may be cut off at any time.
    """

class PacketWriter:
    """The publisher's end of a packet ring. `mapping` is writable, zero-filled, and of :func:`segment_size`."""
    def __new__(
        cls,
        mapping: Mapping,
        *,
        slots: int,
        data_size: int,
        max_packet: int,
        codec_id: int,
        pid: int,
        extradata: bytes,
    ) -> Self: ...
    def put(self, data: Any, pts_ns: int | None, dts_ns: int | None, flags: int) -> int:
        """Publish one packet; returns its sequence number. Waits for nobody."""
    def put_all(self, packets: Iterable[tuple[Any, int | None, int | None, int]]) -> int:
        """Publish packets, given as (data, pts_ns, dts_ns, flags), and wake the readers once."""
    def set_extradata(self, extradata: bytes) -> None:
        """Change it now, when no packet is out, or with the next keyframe."""
    def close(self) -> None:
        """Tell every reader that nothing will come. A packet that another thread is publishing is waited for."""
    @property
    def counters(self) -> tuple[int, int]:
        """(packets, bytes) published."""

class PacketRing:
    """A reader's end of a packet ring, for as long as one publisher lives.

    Parameters
    ----------
    fd : int
        The segment, open for reading; it becomes ours.
    size : int
        Bytes of the file.
    start : int
        START_KEYFRAME, START_OLDEST or START_LIVE.
    spin : bool
        Burn a core while waiting.
    rejoined : bool
        There was a publisher before this one: the first packet is marked as a discontinuity.

    Raises
    ------
    ProtocolError
        The header does not fit the file.
    """
    def __new__(cls, fd: int, size: int, *, start: int, spin: bool, rejoined: bool) -> Self: ...
    def next(self, timeout: float | None, copy: bool, skip: bool) -> Packet:
        """See :meth:`take`; `timeout` is in seconds or None."""
    @property
    def codec_id(self) -> int:
        """FFmpeg's AVCodecID."""
    @property
    def extradata(self) -> bytes:
        """The codec's extradata, b"" when there are none.

        Raises
        ------
        ProtocolError
            The ring announces more than 4096 bytes, or was cut off (SegmentTruncated).
        """
    def set_event(self, fd: int) -> None:
        """Tell the reader which eventfd :meth:`watch` feeds, so that it is drained when nothing is left. The descriptor
        becomes the reader's.
        """
    def watch(self, fd: int) -> None:
        """Feed an eventfd whenever there is something to take, until the end. For a thread of its own."""
    def close(self) -> bool:
        """Take no more packets. Threads in :meth:`next` and :meth:`watch` return.

        Returns
        -------
        bool
            Whether this call closed it, rather than an earlier one.
        """
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    @property
    def abandoned(self) -> bool:
        """Whether the publisher is gone, whatever it left."""
    @property
    def over(self) -> bool:
        """Whether the publisher is gone, and everything that it left was taken. A guess while another thread takes."""
    @property
    def counters(self) -> tuple[int, int]:
        """(received, lost)"""

class Packet:
    """One encoded packet: ``(seq, pts_ns, dts_ns, flags, keyframe, data)``.

    Attributes
    ----------
    data : bytes or memoryview
        The packet. A memoryview with ``next(copy=False)``: read-only, of the ring itself. It may be overwritten at any
        time; look at :attr:`valid` after use.
    lost : int
        Packets that were overwritten between this and the one taken before.
    """
    @property
    def seq(self) -> int:
        """Number of the packet, from 1."""
    @property
    def pts_ns(self) -> int | None:
        """Presentation time in nanoseconds, or None."""
    @property
    def dts_ns(self) -> int | None:
        """Decoding time in nanoseconds, or None."""
    @property
    def flags(self) -> int:
        """Bits of :class:`cuframes.PacketFlags`, as an int."""
    @property
    def keyframe(self) -> bool:
        """Whether decoding can begin here."""
    @property
    def published_ns(self) -> int:
        """CLOCK_MONOTONIC at publish in nanoseconds; 0 from publishers that do not say."""
    @property
    def data(self) -> bytes | memoryview: ...
    @property
    def lost(self) -> int: ...
    @property
    def valid(self) -> bool:
        """Whether what was read from :attr:`data` so far is the packet. Always true of a copy."""
