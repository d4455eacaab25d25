from cuframes._native.cuda cimport Device
from cuframes._shm cimport CF_MAX_RING


cdef class SlotTable:
    cdef char* address[CF_MAX_RING]
    cdef void* event[CF_MAX_RING]
    cdef void* ring_event
    cdef readonly int count
    cdef readonly Device device
    cdef object owner
    cdef object staging
