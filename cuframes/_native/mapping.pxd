from libc.stdint cimport uint32_t

from cuframes._shm cimport cf_fence_acquire, cf_load_relaxed_u32


cdef class Mapping:
    cdef char* address
    cdef void* guard  # NULL if the file cannot be truncated
    cdef const uint32_t* cut  # atomic; not 0 once the file was truncated
    cdef readonly Py_ssize_t size
    cdef readonly bint writable
    cdef void cut_off(self) noexcept


# Whether the mapping was cut: then bytes just read from it may be zeros of our own, and bytes just written may have
# reached nobody. To be asked after touching a mapping, before a step that depends on the bytes that were read.
# PAIRS WITH: guard.h, the mark
cdef inline bint is_cut(const uint32_t* cut) noexcept nogil:
    cf_fence_acquire()
    return cf_load_relaxed_u32(cut) != 0


cdef int refuse_cut() except -1


# Raises SegmentTruncated if the mapping was cut. Every call that touches a mapping ends with this check. It takes the
# mark instead of the mapping, for which Cython would count a reference.
cdef inline int check_whole(const uint32_t* cut) except -1:
    return refuse_cut() if is_cut(cut) else 0


cdef class Borrowed:
    cdef object keeper
    cdef const char* address
    cdef Py_ssize_t size
    cdef bint readonly


cdef Borrowed Borrowed_make(object keeper, const char* address, Py_ssize_t size, bint readonly)
