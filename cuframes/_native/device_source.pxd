from cuframes._native.cuda cimport Device
from cuframes._native.layout cimport FrameLayout
from cuframes._native.source cimport Source


cdef class DeviceSource(Source):
    cdef Device gpu
    cdef void* stream


cdef Source device_source_of(FrameLayout layout, Device gpu, void* stream, object src)
