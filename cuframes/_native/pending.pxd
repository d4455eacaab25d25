from libc.stdint cimport uint32_t, uint64_t

from cuframes._native.cuda cimport Device
from cuframes._native.frame_ring cimport cf_reader


cdef class Pending:
    cdef void* table

    cdef int defer(self, uint32_t slot, uint64_t seq, void** streams, int count, bint stream_unknown,
                   object keep) noexcept
    cdef void reap(self) noexcept nogil
    cdef bint any(self) noexcept nogil
    cdef bint outlive(self, object what) noexcept
    cdef void stay(self) noexcept nogil
    cdef void end(self, bint inherited) noexcept


cdef Pending pending_of(cf_reader* ring, Device device)
cdef void collect() noexcept
