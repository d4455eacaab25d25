from cuframes._native.arrays cimport FrameRows
from cuframes._native.cuda cimport Device
from cuframes._native.layout cimport FrameLayout


cdef class DeviceFrameRows(FrameRows):
    cdef Device gpu
    cdef void* stream


cdef FrameRows device_rows_of(FrameLayout layout, Device gpu, void* stream, object src)
