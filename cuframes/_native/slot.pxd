# The declarations of slot_ring.h, and a slot's two ends for Python.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cuframes._native.arrays cimport Rows
from cuframes._native.layout cimport FrameLayout
from cuframes._native.mapping cimport Mapping
from cuframes._shm cimport cf_presentation
from cuframes._native.ring_end cimport Descriptor, ReaderEnd, RingEnd, cf_gate


cdef extern from "cuframes/shm.h" nogil:
    const uint32_t CF_CACHE_MAGIC
    const uint32_t CF_CACHE_VERSION
    const uint32_t CF_CACHE_DEFAULT_DEPTH
    const uint32_t CF_CACHE_MIN_DEPTH

    ctypedef struct cf_cache_header:
        uint32_t magic
        uint32_t version
        uint32_t width
        uint32_t height
        uint32_t fps_num
        uint32_t fps_den
        uint32_t pixel_format
        uint32_t frame_size
        uint32_t ring_depth
        uint32_t futex
        uint64_t write_cursor
        uint64_t dropped_frames
        char[32] source_type
        char[64] slot_id
        uint64_t writer_pid
        cf_presentation presentation

    ctypedef struct cf_semaphore:
        uint64_t data


cdef extern from "cuframes/slot_ring.h" nogil:
    enum:
        CF_CACHE_NEXT
        CF_CACHE_LATEST
        CF_CACHE_OLDEST

    ctypedef struct cf_cache_shape:
        uint64_t stride
        uint32_t frame_size
        uint32_t depth

    ctypedef struct cf_cache_writer:
        cf_cache_shape shape
        int fd
        cf_gate gate
        uint32_t busy
        uint64_t cursor

    ctypedef struct cf_cache_reader:
        cf_gate gate
        cf_cache_shape shape
        bint newest
        bint unlocked
        int fd
        int event_fd
        uint64_t received
        uint64_t dropped
        uint64_t lapped

    ctypedef struct cf_cache_frame:
        uint64_t seq
        uint64_t pts_us
        uint64_t wall_us
        uint32_t size
        const char* pixels

    int cf_cache_measure(const void* segment, uint64_t size, cf_cache_shape* s)
    uint64_t cf_cache_size(uint32_t frame_size, uint32_t depth)
    void cf_cache_format(cf_cache_header* h, uint32_t frame_size, uint32_t depth)

    int cf_cache_writer_init(cf_cache_writer* w, void* segment, uint64_t size, int fd, uint64_t pid)
    int cf_cache_begin(cf_cache_writer* w, char** pixels)
    void cf_cache_end(cf_cache_writer* w)
    void cf_cache_commit(cf_cache_writer* w, uint32_t size, uint64_t pts_us, uint64_t wall_us)
    void cf_cache_drop(cf_cache_writer* w, uint64_t count)
    void cf_cache_writer_leave(cf_cache_writer* w)
    bint cf_cache_revoke(cf_cache_writer* w)
    bint cf_semaphore_post(cf_semaphore* s, uint32_t enough)

    int cf_cache_reader_init(cf_cache_reader* r, const void* segment, uint64_t size, int fd, int start)
    uint64_t cf_cache_cursor(const cf_cache_reader* r)
    int cf_cache_look(const cf_cache_reader* r, uint64_t seq, cf_cache_frame* f)
    int cf_cache_find(cf_cache_reader* r, cf_cache_frame* f)
    bint cf_cache_whole(const cf_cache_reader* r, uint64_t seq)
    bint cf_cache_read(const cf_cache_reader* r, const cf_cache_frame* f, char* out)
    uint64_t cf_cache_advance(cf_cache_reader* r, const cf_cache_frame* f)
    void cf_cache_resync(cf_cache_reader* r)
    int cf_cache_check(cf_cache_reader* r)
    int cf_cache_wait(cf_cache_reader* r, int64_t deadline)
    void cf_cache_watch(const cf_cache_reader* r, int event_fd)


cdef class CacheWriter(RingEnd):
    cdef cf_cache_writer ring
    cdef Mapping mapping
    cdef FrameLayout layout
    cdef tuple semaphores  # of Mapping; the newest first
    cdef str semaphore_path
    cdef bint semaphore_lost  # and the warning was logged
    cdef Descriptor lock

    cdef int begin(self, char** pixels) except -1
    cdef uint64_t commit(self, Py_ssize_t size, object pts_us, object wall_us) except? 0
    cdef int post_semaphores(self) except -1
    cdef object write_rows(self, const Rows* rows, object pts_us, object wall_us)
    cdef object write_bytes(self, Py_buffer* buffer, object pts_us, object wall_us)


cdef class CacheRing(ReaderEnd):
    cdef cf_cache_reader ring
    cdef Mapping mapping
    cdef FrameLayout layout
    cdef cf_presentation seen  # from which `looks` was made
    cdef object looks

    cdef object looks_now(self)
    cdef SlotFrame take(self, int64_t deadline, bint copy, object out)
    cdef SlotFrame read(self, const cf_cache_frame* found, bint copy, object out)
    cdef int refuse(self, int status) except -1


cdef class SlotFrame:
    cdef cf_cache_frame found
    cdef CacheRing ring
    cdef FrameLayout layout
    cdef readonly object data
    cdef readonly uint64_t dropped
    cdef bint newest
    cdef bint into  # data is the caller's buffer, of whatever shape
    cdef object looks  # a Presentation
    cdef object array  # data as an array, once it was asked for

    cdef object as_array(self)


cdef class WritableSlotFrame:
    cdef CacheWriter writer
    cdef char* pixels
    cdef bint begun
    cdef readonly object data
    cdef readonly object seq
    cdef public object pts_us
    cdef public object wall_us

    cdef int check_begun(self) except -1
    cdef bint end(self) noexcept
    cdef void give_up(self) noexcept
