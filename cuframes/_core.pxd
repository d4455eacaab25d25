from libc.stdint cimport int64_t, uint64_t

from cuframes._ring cimport cf_reader, cf_taken, cf_writer
from cuframes._shm cimport cf_frame_header


cdef int check(int status, object context=*) except -1
cdef int64_t deadline_after(object timeout) except? -1


cdef class Mapping:
    cdef char* address
    cdef readonly Py_ssize_t size
    cdef readonly bint writable


cdef class FrameWriter:
    cdef cf_writer ring
    cdef Mapping header
    cdef Mapping pool
    cdef Py_ssize_t stride
    cdef int generation
    cdef bint closed

    cdef int begin(self, object timeout) except -1
    cdef char* begun(self) noexcept nogil
    cdef uint64_t commit(self, object pts_ns, uint64_t written_bytes) except? 0
    cdef void abandon(self) noexcept nogil


cdef class FrameReader:
    cdef cf_reader ring
    cdef Mapping header
    cdef Mapping pool
    cdef Py_ssize_t stride
    cdef object connection
    cdef readonly uint64_t epoch
    cdef int generation
    cdef bint closing

    cdef Hold take(self, object timeout)
    cdef char* slot_address(self, unsigned int k) noexcept nogil


cdef class Hold:
    cdef FrameReader reader
    cdef cf_taken taken
    cdef bint live

    cdef int give_back(self) noexcept
