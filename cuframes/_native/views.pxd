from cuframes._core cimport Owner
from cuframes._native.cuda cimport Device


cdef class View:
    cdef char* address
    cdef int axes  # 0: the frame's planes are not one array
    cdef Py_ssize_t[3] extent
    cdef Py_ssize_t[3] step
    cdef int item_bytes
    cdef readonly bint readonly
    cdef Owner owner
    cdef Device gpu
    cdef bint dropped
    cdef bint lent
    cdef Py_ssize_t buffers  # buffers that are exported and not yet released

    cdef int set(self, char* address, int axes, const Py_ssize_t* extent, const Py_ssize_t* step, int item_bytes,
                 bint readonly, Owner owner) except -1
    cdef void drop(self) noexcept
    cdef void disown(self) noexcept
    cdef Owner share(self)
    cdef Owner share_held(self)
    cdef int lend(self) except -1
    cdef bint dense(self, bint fortran) noexcept
    cdef Py_ssize_t size(self) noexcept
    cdef int check_exportable(self) except -1
    cdef int check_held(self) except -1
    cdef tuple full_shape(self)
    cdef object packed(self)
    cdef int pack(self, char* target, char* source, Py_ssize_t pitch, Py_ssize_t row_bytes, Py_ssize_t rows) except -1
    cdef object as_array(self)
    cdef int check_host(self, object error) except -1


cdef class Plane(View):
    pass
