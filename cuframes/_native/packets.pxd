# The declarations of packet_ring.h, and the ring's two ends for Python.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cuframes._native.mapping cimport Mapping
from cuframes._native.ring_end cimport ReaderEnd, RingEnd, cf_gate


cdef extern from "cuframes/packet_ring.h" nogil:
    const uint32_t CF_PACKET_MAGIC
    const int64_t CF_NO_TIME
    enum:
        CF_PKT_EXTRADATA_MAX
        CF_PKT_MAX_SLOTS
        CF_PKT_KEY
        CF_PKT_DISCONTINUITY
        CF_PKT_LAST_IN_ACCESS_UNIT
        CF_START_KEYFRAME
        CF_START_OLDEST
        CF_START_NEXT
        CF_START_LATEST

    ctypedef struct cf_packet_header:
        uint32_t magic
        uint32_t proto_version
        uint32_t ring_slots
        uint32_t data_size
        uint32_t codec_id
        uint32_t codec_extradata_size
        uint64_t producer_pid
        uint64_t global_seq
        uint64_t last_keyframe_seq
        uint64_t write_offset
        uint64_t shutdown_flag

    ctypedef struct cf_packet_slot:
        uint64_t seq

    ctypedef struct cf_packet_writer:
        cf_gate gate
        uint32_t busy
        uint32_t max_packet
        uint64_t seq
        uint64_t offset

    ctypedef struct cf_packet_reader:
        cf_gate gate
        uint32_t ring_slots
        uint32_t data_size
        uint64_t pid
        bint locks
        bint spin
        int fd
        int event_fd
        uint64_t seen
        uint64_t received
        uint64_t lost

    ctypedef struct cf_packet:
        uint64_t seq
        int64_t pts_ns
        int64_t dts_ns
        int64_t published_ns
        uint64_t offset
        uint32_t size
        uint32_t flags

    uint64_t cf_packet_segment_size(uint32_t ring_slots, uint32_t data_size)
    void cf_packet_writer_init(cf_packet_writer* w, void* segment, uint32_t ring_slots, uint32_t data_size,
                               uint32_t max_packet, uint32_t codec_id, uint64_t pid)
    void cf_packet_writer_open(cf_packet_writer* w)
    void cf_packet_writer_extradata(cf_packet_writer* w, const char* data, uint32_t size)
    int cf_packet_writer_put(cf_packet_writer* w, const char* data, uint64_t size, int64_t pts_ns, int64_t dts_ns,
                             uint32_t flags)
    void cf_packet_writer_wake(cf_packet_writer* w)
    void cf_packet_writer_shutdown(cf_packet_writer* w)

    int cf_packet_reader_init(cf_packet_reader* r, const void* segment, uint64_t size, int fd)
    void cf_packets_start(cf_packet_reader* r, int start)
    int cf_packets_find(cf_packet_reader* r, cf_packet* p)
    int cf_packets_next(cf_packet_reader* r, int64_t deadline, cf_packet* p)
    bint cf_packets_abandoned(const cf_packet_reader* r)
    int cf_packets_check(const cf_packet_reader* r)
    const char* cf_packet_bytes(const cf_packet_reader* r, const cf_packet* p)
    bint cf_packet_read(const cf_packet_reader* r, const cf_packet* p, char* out)
    bint cf_packet_whole(const cf_packet_reader* r, const cf_packet* p)
    uint64_t cf_packets_advance(cf_packet_reader* r, const cf_packet* p)
    void cf_packets_resync(cf_packet_reader* r)
    void cf_packets_watch(const cf_packet_reader* r, int event_fd)
    uint32_t cf_packets_extradata(const cf_packet_reader* r, char* out)


cdef class PacketWriter(RingEnd):
    cdef cf_packet_writer ring
    cdef Mapping mapping
    cdef bytes next_extradata

    cdef uint64_t write(self, object data, object pts_ns, object dts_ns, uint32_t flags) except? 0


cdef class PacketRing(ReaderEnd):
    cdef cf_packet_reader ring
    cdef Mapping mapping
    cdef Packet ahead
    cdef bint rejoined

    cdef int begin(self, int start) except -1
    cdef int refuse(self, int status) except -1
    cdef Packet take(self, int64_t deadline, bint copy, bint skip)
    cdef Packet read(self, const cf_packet* found, bint copy)


cdef class Packet:
    cdef cf_packet found
    cdef PacketRing ring
    cdef readonly object data
    cdef readonly uint64_t lost
