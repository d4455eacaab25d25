# The declarations of dlpack.h, and Python's capsule functions with destructors that cannot raise.
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "cuframes/dlpack.h":
    ctypedef struct cf_dl_device:
        int32_t device_type
        int32_t device_id

    ctypedef struct cf_dl_tensor:
        void* data
        cf_dl_device device
        int32_t ndim
        uint8_t type_code
        uint8_t type_bits
        uint16_t type_lanes
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

    ctypedef struct cf_dl_managed:
        cf_dl_tensor tensor
        void* context
        void (*deleter)(cf_dl_managed*) noexcept

    ctypedef struct cf_dl_versioned:
        uint32_t major
        uint32_t minor
        void* context
        void (*deleter)(cf_dl_versioned*) noexcept
        uint64_t flags
        cf_dl_tensor tensor

    ctypedef union cf_dl_either:
        cf_dl_managed legacy
        cf_dl_versioned versioned

    ctypedef struct cf_dl_export:
        cf_dl_either managed
        int64_t[3] shape
        int64_t[3] strides


cdef extern from "Python.h":
    object PyCapsule_New(void* pointer, const char* name, void (*destructor)(PyObject*) noexcept)
    void* PyCapsule_GetPointer(PyObject* capsule, const char* name) except NULL
    bint PyCapsule_IsValid(PyObject* capsule, const char* name)
    int PyCapsule_SetName(PyObject* capsule, const char* name) except -1
