"""The packet ring for Python: its writer, its reader, and the packets.

The algorithm is in C (``packet_ring.h``). It runs without the GIL wherever it waits or copies much.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cuframes._native.mapping cimport Borrowed_make, Mapping, check_whole
from cuframes._shm cimport cf_load_acquire, cf_load_seq_cst_u32, cf_low_half
from cuframes._native.ring_end cimport Descriptor, ReaderEnd, RingEnd, cf_gate_is_shut
from cuframes._native.status cimport *

from cuframes.errors import ProtocolError
from cuframes.errors import refusal


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


# The header and the first slot, in whose flags a publisher declares that it holds the owner lock.
cdef struct packet_look:
    cf_packet_header header
    cf_packet_slot slot


EXTRADATA_MAX = CF_PKT_EXTRADATA_MAX
MAX_SLOTS = CF_PKT_MAX_SLOTS
PACKET_MAGIC = CF_PACKET_MAGIC
PACKET_HEADER_BYTES = sizeof(cf_packet_header)
PACKET_LOOK_BYTES = sizeof(packet_look)
START_KEYFRAME = CF_START_KEYFRAME
START_OLDEST = CF_START_OLDEST
START_NEXT = CF_START_NEXT
START_LATEST = CF_START_LATEST

cdef uint32_t ALL_FLAGS = 2 * CF_PKT_LAST_IN_ACCESS_UNIT - 1
# Copies of at least this size are made without the GIL. (Getting the GIL back can take a whole switch interval.)
cdef Py_ssize_t LARGE = 256 * 1024


def segment_size(uint32_t slots, uint32_t data_size):
    """Size of a packet ring's segment in bytes."""
    return cf_packet_segment_size(slots, data_size)


def describe_packets(bytes raw not None, Py_ssize_t size):
    """A snapshot of a packet ring's header as a dict, for reports. The values are not checked.

    `raw` is the first PACKET_LOOK_BYTES of a file of `size` bytes. They are read rather than mapped, since the file may
    be truncated at any time.
    """
    cdef packet_look copy
    cdef cf_packet_header* h = &copy.header
    cdef cf_packet_reader ring
    if len(raw) < <Py_ssize_t>sizeof(copy):
        raise ProtocolError(f"a packet ring has at least {sizeof(copy)} bytes, but this one has {len(raw)}")
    memcpy(&copy, <const char*>raw, sizeof(copy))
    return {
        "magic": h.magic,
        "proto_version": h.proto_version,
        "slots": h.ring_slots,
        "data_size": h.data_size,
        "codec_id": h.codec_id,
        "extradata_size": h.codec_extradata_size,
        "producer_pid": h.producer_pid,
        "seq": cf_load_acquire(&h.global_seq),
        "keyframe": cf_load_acquire(&h.last_keyframe_seq),
        "bytes": cf_load_acquire(&h.write_offset),
        "shutdown": bool(cf_load_acquire(&h.shutdown_flag)),
        "locks": cf_packet_reader_init(&ring, h, size, -1) == CF_OK and ring.locks,
    }


cdef class PacketWriter(RingEnd):
    """The publisher's end of a packet ring. `mapping` is writable, zero-filled, and :func:`segment_size` bytes long."""

    def __cinit__(self, Mapping mapping not None, *, uint32_t slots, uint32_t data_size, uint32_t max_packet,
                  uint32_t codec_id, uint64_t pid, bytes extradata not None):
        self.mapping = mapping
        self.gate, self.what, self.cut = &self.ring.gate, "publisher", mapping.cut
        self.word = cf_low_half(&(<cf_packet_header*>mapping.address).global_seq)
        cf_packet_writer_init(&self.ring, mapping.address, slots, data_size, max_packet, codec_id, pid)
        cf_packet_writer_extradata(&self.ring, extradata, <uint32_t>len(extradata))
        cf_packet_writer_open(&self.ring)
        check_whole(mapping.cut)

    def put(self, data, pts_ns, dts_ns, uint32_t flags):
        """Publish one packet and return its sequence number. Never waits for a reader."""
        self.enter()
        try:
            seq = self.write(data, pts_ns, dts_ns, flags)
            cf_packet_writer_wake(&self.ring)
            return seq
        finally:
            self.leave()

    def put_all(self, packets):
        """Publish several packets, given as (data, pts_ns, dts_ns, flags), and wake the readers once at the end."""
        cdef uint64_t before = self.ring.seq
        try:
            for data, pts_ns, dts_ns, flags in packets:
                self.enter()  # for each packet, so that close() need not wait for a slow iterable
                try:
                    self.write(data, pts_ns, dts_ns, flags)
                finally:
                    self.leave()
        finally:
            if self.ring.seq != before:
                cf_packet_writer_wake(&self.ring)
        return self.ring.seq

    cdef uint64_t write(self, object data, object pts_ns, object dts_ns, uint32_t flags) except? 0:
        cdef Py_buffer view
        cdef int64_t pts = CF_NO_TIME if pts_ns is None else nanoseconds_of(pts_ns)
        cdef int64_t dts = CF_NO_TIME if dts_ns is None else nanoseconds_of(dts_ns)
        cdef Py_ssize_t size
        cdef uint64_t seq = 0
        cdef int status
        if flags & ~ALL_FLAGS:
            raise ValueError(f"flags {flags:#x} are unknown; combine members of cuframes.PacketFlags")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        size = view.len
        with cython.critical_section(self):  # without a GIL: only one thread changes the extradata
            if cf_load_seq_cst_u32(&self.ring.busy):  # before the extradata are changed
                status = CF_BUSY
            else:
                if self.next_extradata is not None and flags & CF_PKT_KEY and size <= <Py_ssize_t>self.ring.max_packet:
                    cf_packet_writer_extradata(&self.ring, self.next_extradata, <uint32_t>len(self.next_extradata))
                    self.next_extradata = None
                if size < LARGE:
                    status = cf_packet_writer_put(&self.ring, <const char*>view.buf, size, pts, dts, flags)
                else:
                    with nogil:
                        status = cf_packet_writer_put(&self.ring, <const char*>view.buf, size, pts, dts, flags)
                seq = self.ring.seq
        PyBuffer_Release(&view)
        check_whole(self.mapping.cut)
        if status == CF_OVERSIZED:
            check(status, f"the packet has {size} bytes, more than the ring's limit of {self.ring.max_packet}; publish "
                          "smaller packets, or give max_packet_size (and data_size)")
        check(status, "another thread is publishing a packet; only one thread at a time may use a publisher")
        return seq

    def set_extradata(self, bytes extradata not None):
        """Change the extradata: at once if no packet has been published yet, otherwise with the next keyframe."""
        self.enter()
        try:
            with cython.critical_section(self):
                if self.ring.seq:
                    self.next_extradata = extradata
                else:
                    cf_packet_writer_extradata(&self.ring, extradata, <uint32_t>len(extradata))
            check_whole(self.mapping.cut)
        finally:
            self.leave()

    cdef void finish(self) noexcept:
        """Tell every reader that no more packets will come."""
        cf_packet_writer_shutdown(&self.ring)

    @property
    def counters(self):
        """(packets, bytes) published."""
        return self.ring.seq, self.ring.offset


cdef class PacketRing(ReaderEnd):
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

    def __cinit__(self, Descriptor file not None, Py_ssize_t size, *, int start, bint spin, bint rejoined):
        cdef int fd = file.fileno()
        self.rejoined = rejoined
        self.mapping = Mapping(fd, size)
        self.gate, self.what, self.polled = &self.ring.gate, "reader", &self.ring.event_fd
        self.cut = self.mapping.cut
        self.word = cf_low_half(&(<cf_packet_header*>self.mapping.address).global_seq)
        if cf_packet_reader_init(&self.ring, self.mapping.address, size, fd) != CF_OK:
            raw = PyBytes_FromStringAndSize(self.mapping.address, min(size, PACKET_LOOK_BYTES))
            check_whole(self.mapping.cut)
            found = describe_packets(raw, size)
            raise ProtocolError(
                f"this is not a packet ring of version 2, or it is truncated: magic {found['magic']:#x}, version "
                f"{found['proto_version']}, {found['slots']} slots, {found['data_size']} bytes of data, file of {size}"
            )
        self.ring.spin = spin
        self.begin(start)
        check_whole(self.mapping.cut)
        self.fd = file.release()

    cdef int begin(self, int start) except -1:
        """Choose the first packet and read it at once, before it can be overwritten."""
        cdef cf_packet found
        cf_packets_start(&self.ring, start)
        while start != CF_START_NEXT and cf_packets_find(&self.ring, &found) == CF_OK:
            self.ahead = self.read(&found, True)
            if self.ahead is not None:
                break
            cf_packets_start(&self.ring, start)
        return 0

    cdef Packet take(self, int64_t deadline, bint copy, bint skip):
        """The next packet. Waits for it without the GIL.

        If packets were lost before it, raises PacketOverrun first, once; not if `skip` is true.
        """
        cdef cf_packet found
        cdef Packet packet
        cdef int status
        self.begin_take()
        try:
            if cf_gate_is_shut(&self.ring.gate):
                self.refuse(CF_CLOSED)
            packet, self.ahead = self.ahead, None
            while packet is None:
                status = cf_packets_find(&self.ring, &found)  # fast, so it keeps the GIL
                while status == CF_EMPTY or status == CF_AGAIN:
                    PyErr_CheckSignals()
                    with nogil:
                        status = cf_packets_next(&self.ring, deadline, &found)
                    check_whole(self.mapping.cut)
                if status != CF_OK:
                    self.refuse(status)
                packet = self.read(&found, copy)
                if packet is not None and packet.lost and not skip:
                    self.ahead = packet
                    check(CF_OVERRUN, packet.lost)
            return packet
        finally:
            self.end_take()

    cdef int refuse(self, int status) except -1:
        if status == CF_CUT:
            self.mapping.cut_off()
        if status == CF_CORRUPT:
            check(status, "the packet ring is damaged: it contains lengths that exceed its size; restart its publisher")
        check(status, "no packet arrived within the timeout" if status == CF_TIMED_OUT else "the reader is closed")

    cdef Packet read(self, const cf_packet* found, bint copy):
        """The packet that was found, or None if it was overwritten before the copy was complete."""
        cdef Packet packet = Packet.__new__(Packet)
        cdef const char* there = NULL
        cdef bint whole
        cdef char* out
        if not copy:
            there = cf_packet_bytes(&self.ring, found)
        if there != NULL:
            packet.ring = self
            packet.data = memoryview(Borrowed_make(self, there, found.size, True))
        else:
            packet.data = PyBytes_FromStringAndSize(NULL, found.size)
            out = PyBytes_AsString(packet.data)
            if found.size < LARGE:
                whole = cf_packet_read(&self.ring, found, out)
            else:
                with nogil:
                    whole = cf_packet_read(&self.ring, found, out)
            if not whole:
                cf_packets_resync(&self.ring)
                return None
        packet.found = found[0]
        packet.lost = cf_packets_advance(&self.ring, found)
        if packet.lost or self.rejoined:
            packet.found.flags |= CF_PKT_DISCONTINUITY
            self.rejoined = False
        return packet

    def next(self, timeout, bint copy, bint skip):
        """See :meth:`take`; `timeout` is in seconds or None."""
        return self.take(deadline_after(timeout), copy, skip)

    @property
    def codec_id(self):
        """The codec, as FFmpeg's AVCodecID."""
        return (<cf_packet_header*>self.mapping.address).codec_id

    @property
    def extradata(self):
        """The codec's extradata, or b"" if there are none.

        Raises
        ------
        ProtocolError
            The ring announces more extradata than it has room for, or was truncated (SegmentTruncated).
        """
        cdef char[CF_PKT_EXTRADATA_MAX] out
        cdef uint32_t size
        self.enter()
        with nogil:
            size = cf_packets_extradata(&self.ring, out)
        self.leave()
        check_whole(self.mapping.cut)
        if size > <uint32_t>CF_PKT_EXTRADATA_MAX:
            raise ProtocolError(f"the packet ring announces {size} bytes of extradata; the limit is {EXTRADATA_MAX}")
        return PyBytes_FromStringAndSize(out, size)

    cdef bint has_ahead(self) noexcept:
        return self.ahead is not None

    cdef void feed(self, int fd) noexcept nogil:
        cf_packets_watch(&self.ring, fd)

    cdef void finish(self) noexcept:
        if self.ahead is not None:  # read, and never taken
            self.ring.received -= 1
        self.ahead = None
        self.close_descriptors()

    cdef void close_descriptors(self) noexcept:
        ReaderEnd.close_descriptors(self)
        self.ring.fd = -1

    @property
    def abandoned(self):
        """Whether the publisher is gone. Some of its packets may not have been taken yet."""
        self.enter()
        try:
            return bool(cf_packets_abandoned(&self.ring))
        finally:
            self.leave()

    @property
    def over(self):
        """Whether the publisher is gone and all its packets have been taken. Only a guess while another thread takes a
        packet.
        """
        cdef cf_packet_header* h = <cf_packet_header*>self.mapping.address
        if self.ahead is not None or cf_load_acquire(&h.global_seq) > self.ring.seen:
            return False
        self.enter()
        try:
            return bool(cf_load_acquire(&h.shutdown_flag)) or cf_packets_check(&self.ring) == CF_ENDED
        finally:
            self.leave()

    @property
    def counters(self):
        """(received, lost). A packet that was read ahead counts when it is taken."""
        return self.ring.received - (self.ahead is not None), self.ring.lost


@cython.freelist(64)
@cython.no_gc  # its only reference cycle, of a ring and the packet ahead, ends when that packet is taken
cdef class Packet:
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
    def seq(self):
        """Sequence number of the packet, starting at 1."""
        return self.found.seq

    @property
    def pts_ns(self):
        """Presentation time in nanoseconds, or None."""
        return None if self.found.pts_ns == CF_NO_TIME else self.found.pts_ns

    @property
    def dts_ns(self):
        """Decoding time in nanoseconds, or None."""
        return None if self.found.dts_ns == CF_NO_TIME else self.found.dts_ns

    @property
    def flags(self):
        """Bits of :class:`cuframes.PacketFlags`, as an int."""
        return self.found.flags

    @property
    def keyframe(self):
        """Whether decoding can begin at this packet."""
        return bool(self.found.flags & CF_PKT_KEY)

    @property
    def published_ns(self):
        """Time of publishing: CLOCK_MONOTONIC, in nanoseconds. 0 if the publisher does not report it."""
        return self.found.published_ns

    @property
    def valid(self):
        """Whether everything read from :attr:`data` so far belongs to this packet. Always true for a copy."""
        return self.ring is None or cf_packet_whole(&self.ring.ring, &self.found)

    def __reduce__(self):
        if self.ring is not None:
            raise refusal(self, "take it with copy=True, or copy its data and then check valid")
        return _packet, (self.seq, self.found.pts_ns, self.found.dts_ns, self.found.published_ns, self.flags,
                         bytes(self.data), self.lost)

    def __repr__(self):
        return (f"<Packet {len(self.data)} bytes, seq {self.seq}, pts {self.pts_ns} ns, dts {self.dts_ns} ns"
                f"{', keyframe' if self.keyframe else ''}>")


def _packet(seq, pts_ns, dts_ns, published_ns, flags, data, lost):
    """A packet from its parts, for unpickling."""
    cdef Packet packet = Packet.__new__(Packet)
    packet.found.seq = seq
    packet.found.pts_ns = pts_ns
    packet.found.dts_ns = dts_ns
    packet.found.published_ns = published_ns
    packet.found.flags = flags
    packet.data = data
    packet.lost = lost
    return packet
