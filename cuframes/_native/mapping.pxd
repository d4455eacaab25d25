from libc.stdint cimport uint32_t

from cuframes._shm cimport cf_fence_acquire, cf_load_relaxed_u32


cdef class Mapping:
    cdef char* address
    cdef void* guard  # NULL where nobody can shrink the file
    cdef const uint32_t* cut  # atomic; not 0 when somebody has
    cdef readonly Py_ssize_t size
    cdef readonly bint writable
    cdef void cut_off(self) noexcept


# Whether what was just read there was zeros of our own making, and what was written reached nobody. To be asked after
# touching a mapping, and before another step that depends on what was read. PAIRS WITH: guard.h, the mark
cdef inline bint is_cut(const uint32_t* cut) noexcept nogil:
    cf_fence_acquire()
    return cf_load_relaxed_u32(cut) != 0


cdef int refuse_cut() except -1


# The same as an exception, SegmentTruncated: what every call that touches a mapping ends with. It takes the mark rather
# than the mapping, since Cython would count a reference to that.
cdef inline int check_whole(const uint32_t* cut) except -1:
    return refuse_cut() if is_cut(cut) else 0


cdef class Borrowed:
    cdef object keeper
    cdef const char* address
    cdef Py_ssize_t size
    cdef bint readonly


cdef Borrowed Borrowed_make(object keeper, const char* address, Py_ssize_t size, bint readonly)
