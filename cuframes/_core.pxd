from libc.stdint cimport int64_t, uint32_t, uint64_t

from cuframes._native.cuda cimport Device
from cuframes._native.mapping cimport Mapping
from cuframes._native.pending cimport Pending
from cuframes._native.frame_ring cimport cf_reader, cf_taken, cf_writer
from cuframes._native.ring_end cimport RingEnd
from cuframes._native.slot_table cimport SlotTable
from cuframes._shm cimport cf_frame_header


# Keeps a frame's memory alive. On a GPU it also records the streams on which that memory is used.
cdef class Owner:
    cdef void* stream[4]
    cdef int streams
    cdef bint stream_unknown
    cdef tuple keepers  # a linked list (earlier ones, newest) of objects that keep the streams alive

    cdef int use(self, void* stream) except -1
    cdef void follow(self, void* stream, int ordinal, object keeper) noexcept
    cdef SlotTable memory(self)


cdef class FrameWriter(RingEnd):
    cdef cf_writer ring
    cdef Mapping header
    cdef SlotTable slots
    cdef uint32_t unfollowed  # bits of slots that the GPU may still be writing although their event does not cover it
    cdef int64_t deadline  # of the begun frame
    cdef list sources
    cdef char* staging_base
    cdef Py_ssize_t staging_stride
    cdef str failure

    cdef int check_usable(self) except -1
    cdef int announce(self, tuple exports) except -1
    cdef int begin(self, object timeout, int wanted, void* stream) except -1
    cdef int order(self, void* stream) except -1
    cdef int slot(self) noexcept nogil
    cdef char* begun(self) noexcept nogil
    cdef uint64_t commit(self, object pts_ns, uint64_t written_bytes, void* stream) except? 0
    cdef void abandon(self, void* stream) noexcept
    cdef char* staging(self) except? NULL
    cdef void drop(self) noexcept
    cdef void keep_source(self, object source)
    cdef void drop_finished_sources(self)


cdef class WriteLease(Owner):
    cdef FrameWriter writer
    cdef void* publish_stream

    cdef int gather(self) except -1


cdef class FrameReader(RingEnd):
    cdef cf_reader ring
    cdef Mapping header
    cdef SlotTable slots
    cdef void* stream
    cdef readonly object connection
    cdef readonly object layout
    cdef readonly uint64_t epoch
    cdef object stream_keeper
    cdef Pending pending  # None in host memory
    cdef bint warned

    cdef bint take(self, Hold hold, int64_t deadline) except -1
    cdef bint take_inside(self, Hold hold, int64_t deadline) except -1
    cdef bint is_pending(self) noexcept
    cdef int wait(self, int64_t deadline, cf_taken* taken) noexcept nogil
    cdef void defer(self, Hold hold) noexcept
    cdef void reap(self) noexcept nogil
    cdef void hang_up_if_idle(self) noexcept


cdef class Hold(Owner):
    cdef FrameReader reader
    cdef cf_taken taken
    cdef bint live

    cdef int unpin(self) noexcept
