from collections.abc import Iterable
from typing import Any, Self

from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor, ReaderEnd, RingEnd

EXTRADATA_MAX: int
MAX_SLOTS: int
PACKET_MAGIC: int
PACKET_HEADER_BYTES: int
PACKET_LOOK_BYTES: int
START_KEYFRAME: int
START_OLDEST: int
START_NEXT: int
START_LATEST: int

def segment_size(slots: int, data_size: int) -> int:
    """Size of a packet ring's segment in bytes."""

def describe_packets(raw: bytes, size: int) -> dict[str, Any]:
    """A snapshot of a packet ring's header as a dict, for reports. The values are not checked.

    `raw` is the first PACKET_LOOK_BYTES of a file of `size` bytes. They are read rather than mapped, since the file may
    be truncated at any time.
    """

class PacketWriter(RingEnd):
    """The publisher's end of a packet ring. `mapping` is writable, zero-filled, and :func:`segment_size` bytes long."""
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
        """Publish one packet and return its sequence number. Never waits for a reader."""
    def put_all(self, packets: Iterable[tuple[Any, int | None, int | None, int]]) -> int:
        """Publish several packets, given as (data, pts_ns, dts_ns, flags), and wake the readers once at the end."""
    def set_extradata(self, extradata: bytes) -> None:
        """Change the extradata: at once if no packet has been published yet, otherwise with the next keyframe."""
    @property
    def counters(self) -> tuple[int, int]:
        """(packets, bytes) published."""

class PacketRing(ReaderEnd):
    """A reader's end of a packet ring, for the life of one publisher.

    Parameters
    ----------
    file : Descriptor
        The segment, open for reading. This object takes it over.
    size : int
        Size of the file in bytes.
    start : int
        START_KEYFRAME, START_OLDEST, START_NEXT or START_LATEST.
    spin : bool
        Wait by polling, which keeps one core busy.
    rejoined : bool
        The reader followed another publisher before: mark the first packet as a discontinuity.

    Raises
    ------
    ProtocolError
        The header does not fit the file.
    """
    def __new__(cls, file: Descriptor, size: int, *, start: int, spin: bool, rejoined: bool) -> Self: ...
    def next(self, timeout: float | None, copy: bool, skip: bool) -> Packet:
        """See :meth:`take`; `timeout` is in seconds or None."""
    @property
    def codec_id(self) -> int:
        """The codec, as FFmpeg's AVCodecID."""
    @property
    def extradata(self) -> bytes:
        """The codec's extradata, or b"" if there are none.

        Raises
        ------
        ProtocolError
            The ring announces more extradata than it has room for, or was truncated (SegmentTruncated).
        """
    @property
    def abandoned(self) -> bool:
        """Whether the publisher is gone. Some of its packets may not have been taken yet."""
    @property
    def over(self) -> bool:
        """Whether the publisher is gone and all its packets have been taken. Only a guess while another thread takes a
        packet.
        """
    @property
    def counters(self) -> tuple[int, int]:
        """(received, lost). A packet that was read ahead counts when it is taken."""

class Packet:
    """One encoded packet: ``(seq, pts_ns, dts_ns, flags, keyframe, data)``.

    Attributes
    ----------
    data : bytes or memoryview
        The bytes of the packet. With ``next(copy=False)``, a read-only memoryview of the ring itself, which may be
        overwritten at any time; check :attr:`valid` after use.
    lost : int
        Number of packets that were overwritten between the packet taken before and this one.
    """
    @property
    def seq(self) -> int:
        """Sequence number of the packet, starting at 1."""
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
        """Whether decoding can begin at this packet."""
    @property
    def published_ns(self) -> int:
        """Time of publishing: CLOCK_MONOTONIC, in nanoseconds. 0 if the publisher does not report it."""
    @property
    def data(self) -> bytes | memoryview: ...
    @property
    def lost(self) -> int: ...
    @property
    def valid(self) -> bool:
        """Whether everything read from :attr:`data` so far belongs to this packet. Always true for a copy."""
