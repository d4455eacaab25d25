from cuframes._core cimport FrameReader, FrameWriter, WriteLease
from cuframes._ring cimport cf_taken
from cuframes._views cimport View


cdef struct Geometry:
    Py_ssize_t offset
    int ndim
    Py_ssize_t[3] extent
    Py_ssize_t[3] step
    Py_ssize_t row_bytes
    Py_ssize_t rows


cdef class FrameLayout:
    cdef readonly object shape
    cdef str format
    cdef int planes
    cdef int item_bytes
    cdef Geometry[3] plane
    cdef Geometry matrix
    cdef Py_ssize_t nbytes
    cdef Py_ssize_t tight_bytes


cdef class Frame(View):
    cdef FrameLayout layout
    cdef FrameReader reader
    cdef cf_taken taken
    cdef tuple cached_planes


cdef class WritableFrame(View):
    cdef FrameLayout layout
    cdef FrameWriter writer
    cdef tuple cached_planes
    cdef WriteLease lease
    cdef void* stream
    cdef object timeout
    cdef int wanted
    cdef bint begun
    cdef public object pts_ns
    cdef readonly object seq
    cdef readonly object slot

    cdef void give_up(self) noexcept
