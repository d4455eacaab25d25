from cuframes._native.layout cimport MAX_PLANES, FrameLayout


cdef extern from "cuframes/copy.h" nogil:
    void cf_copy_rows(char* dst, Py_ssize_t dst_pitch, const char* src, Py_ssize_t src_pitch, size_t row_bytes,
                      size_t rows, bint past)


cdef enum:
    MAX_NDIM = 4
    # problems of a buffer
    NO_SAMPLES = 1  # its elements are not uint8 or uint16
    NO_SHAPE        # too many dimensions, or no shape given
    INDIRECT        # its rows are reached through pointers
    # DLPack's device types
    DL_HOST = 1
    DL_CUDA = 2
    DL_CUDA_HOST = 3
    DL_CUDA_MANAGED = 13


cdef struct Rows:
    const char* address
    Py_ssize_t pitch
    bint on_gpu


# Elements in memory: along axis i they are `step[i]` bytes apart. Steps may be negative or 0.
cdef struct Strided:
    const char* address
    int ndim
    int item_bytes
    Py_ssize_t[4] extent
    Py_ssize_t[4] step


# An array-like as it was found: its address and memory layout. `keep` keeps the memory alive.
cdef class Array:
    cdef Strided at
    cdef bint on_gpu
    cdef object keep


cdef class FrameRows:
    cdef FrameLayout layout
    cdef Rows[MAX_PLANES] rows
    cdef list keep
    cdef bint on_gpu
    cdef bint on_host

    cdef int read(self, object src) except -1
    cdef Array find(self, object array)
    cdef Array find_on_device(self, object array, tuple where)
    cdef Array with_contiguous_rows(self, Array found)
    cdef int add(self, Array found) except -1
    cdef int plane(self, int i, object array) except -1
    cdef int frame(self, object array) except -1
    cdef int video(self, object src) except -1
    cdef int all_planes(self, object planes) except -1
    cdef int lines(self, int i, object plane) except -1
    cdef int part_from(self, const char* target) except -1


cdef int check_unmasked(object array) except -1
cdef wrong_sample(FrameLayout layout, str found)
cdef bint is_short_frame(object src, Py_ssize_t frame_bytes) except -1
cdef bint plain_rows(FrameLayout layout, object src, Py_buffer* buffer, Rows* rows) except -1
cdef FrameRows rows_of(FrameLayout layout, object src)
cdef object pts_of(object src)
cdef void copy_frame(FrameLayout layout, const Rows* rows, char* target) noexcept
