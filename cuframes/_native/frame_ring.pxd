# The declarations of frame_ring.h.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cuframes._shm cimport cf_frame_header
from cuframes._native.ring_end cimport cf_gate


cdef extern from "cuframes/frame_ring.h" nogil:
    enum:
        CF_BLOCK
        CF_SPIN
        CF_PREDICT
        CF_NEWEST
        CF_ORDERED

    ctypedef struct cf_writer:
        cf_gate gate
        uint32_t ring_size
        uint32_t policy
        uint64_t seq
        uint64_t frames
        uint64_t dropped

    void cf_writer_init(cf_writer* w, cf_frame_header* shared, uint32_t ring_size, uint32_t policy)
    int cf_writer_begin(cf_writer* w, int wanted, int64_t deadline)
    uint32_t cf_writer_slot(const cf_writer* w)
    uint64_t cf_writer_commit(cf_writer* w, int64_t now_ns, int64_t pts_ns, uint64_t written_bytes)
    bint cf_writer_has_no_sleepers(const cf_writer* w)
    void cf_writer_abandon(cf_writer* w)
    void cf_writer_drop(cf_writer* w)
    int cf_writer_join(cf_writer* w, const char* name, uint64_t pid, uint32_t* bit, uint64_t* seq, uint64_t* frame_no)
    void cf_writer_leave(cf_writer* w, uint32_t bit)
    void cf_writer_feed(cf_writer* w, uint32_t bit, int fd)
    void cf_writer_shutdown(cf_writer* w)

    ctypedef struct cf_reader:
        cf_frame_header* shared
        cf_gate gate
        uint32_t ring_size
        uint32_t bit
        uint32_t max_held
        int mode
        int wait
        bint pins
        bint wakes
        bint strict
        bint counted
        int sock
        int event_fd
        uint32_t gone
        uint32_t held
        uint64_t last_seq
        uint64_t last_frame_no
        uint64_t received
        uint64_t lost
        uint64_t skipped
        uint64_t overwritten

    ctypedef struct cf_taken:
        uint64_t seq
        uint64_t frame_no
        int64_t pts_ns
        int64_t published_ns
        uint64_t written_bytes
        uint64_t lost
        uint64_t skipped
        uint32_t slot

    int cf_reader_now(cf_reader* r, cf_taken* t)
    int cf_reader_next(cf_reader* r, int64_t deadline, cf_taken* t)
    bint cf_reader_valid(const cf_reader* r, uint32_t k, uint64_t seq)
    int cf_reader_release(cf_reader* r, uint32_t k, uint64_t seq)
    uint64_t cf_reader_pick(const cf_reader* r)
    void cf_reader_hangup(cf_reader* r)
    uint32_t cf_reader_held(const cf_reader* r)
