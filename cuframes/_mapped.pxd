from cuframes._cuda cimport Device
from cuframes._shm cimport cf_frame_header


cdef cf_frame_header* header_of(Mapping mapping) except NULL


cdef class Mapping:
    cdef char* address
    cdef readonly Py_ssize_t size
    cdef readonly bint writable


cdef class Borrowed:
    cdef object keeper
    cdef const char* address
    cdef Py_ssize_t size
    cdef bint readonly


cdef Borrowed Borrowed_make(object keeper, const char* address, Py_ssize_t size, bint readonly)


cdef class Slots:
    cdef char* address[16]
    cdef void* event[16]
    cdef void* ring_event
    cdef readonly int count
    cdef readonly Device device
    cdef object owner
