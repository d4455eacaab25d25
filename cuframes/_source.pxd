from cuframes._cuda cimport Device
from cuframes._frame cimport FrameLayout


cdef extern from "_copy.h" nogil:
    void cf_copy_rows(char* dst, Py_ssize_t dst_pitch, const char* src, Py_ssize_t src_pitch, size_t row_bytes,
                      size_t rows, bint past)


cdef struct Rows:
    const char* address
    Py_ssize_t pitch
    bint on_gpu


# An array-like as found: where it is and how it lies there. `keep` holds it in place.
cdef class Array:
    cdef const char* address
    cdef int ndim
    cdef Py_ssize_t[4] extent
    cdef Py_ssize_t[4] step
    cdef int item_bytes
    cdef bint on_gpu
    cdef object keep

    cdef bint rows_contiguous(self) noexcept
    cdef bint contiguous(self) noexcept
    cdef Py_ssize_t nbytes(self) noexcept


cdef class Source:
    cdef FrameLayout layout
    cdef Device gpu
    cdef void* stream
    cdef Rows[3] rows
    cdef list keep
    cdef bint on_gpu

    cdef Array find(self, object array)
    cdef Array with_contiguous_rows(self, Array found, object array)
    cdef int plane(self, int i, object array) except -1
    cdef int frame(self, object array) except -1
    cdef int video(self, object src) except -1


cdef bint plain_rows(FrameLayout layout, object src, Py_buffer* buffer, Rows* rows) except -1
cdef Source source_of(FrameLayout layout, Device gpu, void* stream, object src)
cdef void copy_frame(FrameLayout layout, const Rows* rows, char* target) noexcept
