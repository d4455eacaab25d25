from cuframes._native.cuda cimport Device


cdef class SlotTable:
    cdef char* address[16]
    cdef void* event[16]
    cdef void* ring_event
    cdef readonly int count
    cdef readonly Device device
    cdef object owner
    cdef object staging
