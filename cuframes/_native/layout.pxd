cdef extern from "cuframes/copy.h" nogil:
    ctypedef struct cf_copier:
        pass


cdef enum:
    MAX_PLANES = 4


cdef struct Geometry:
    Py_ssize_t offset
    int ndim
    Py_ssize_t[3] extent
    Py_ssize_t[3] step
    Py_ssize_t row_bytes
    Py_ssize_t rows


cdef class FrameLayout:
    cdef readonly object shape
    cdef readonly object presentation
    cdef str format
    cdef int planes
    cdef int item_bytes
    cdef Geometry[MAX_PLANES] plane
    cdef Geometry matrix
    cdef Py_ssize_t nbytes
    cdef Py_ssize_t tight_bytes
    # The whole frame as one array: its extents, and whether the rows of all planes are of one length,
    # so that one pitch serves them (not in i420).
    cdef int array_ndim
    cdef Py_ssize_t[3] array_extent
    cdef bint one_pitch
    cdef cf_copier copier
    cdef object plain_type  # the type of the last array that was found to be a plain buffer
