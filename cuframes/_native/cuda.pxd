from libc.stdint cimport uintptr_t


cdef extern from "cuframes/cuda.h" nogil:
    enum:
        CF_CUDA_SUCCESS
        CF_CUDA_NOT_READY
        CF_CUDA_NOT_SUPPORTED
        CF_CUDA_EVENT_DISABLE_TIMING
        CF_CUDA_MEMORY_HOST
        CF_CUDA_MEMORY_DEVICE
        CF_CUDA_POINTER_DEVICE_ORDINAL
        CF_CUDA_STREAM_LEGACY
        CF_CUDA_STREAM_PER_THREAD

    ctypedef struct cf_cuda_memcpy2d:
        int src_type
        const void* src_host
        uintptr_t src_device
        size_t src_pitch
        int dst_type
        void* dst_host
        uintptr_t dst_device
        size_t dst_pitch
        size_t width_bytes
        size_t height

    ctypedef struct cf_cuda_calls:
        int (*event_record)(void* event, void* stream) noexcept nogil
        int (*stream_wait_event)(void* stream, void* event, unsigned int flags) noexcept nogil
        int (*event_query)(void* event) noexcept nogil
        int (*event_synchronize)(void* event) noexcept nogil
        int (*event_create)(void** event, unsigned int flags) noexcept nogil
        int (*event_destroy)(void* event) noexcept nogil
        int (*ctx_record_event)(void* context, void* event) noexcept nogil
        int (*ctx_get_current)(void** context) noexcept nogil
        int (*ctx_set_current)(void* context) noexcept nogil
        int (*ctx_push)(void* context) noexcept nogil
        int (*ctx_pop)(void** context) noexcept nogil
        int (*memcpy_2d_async)(const cf_cuda_memcpy2d* copy, void* stream) noexcept nogil
        int (*stream_synchronize)(void* stream) noexcept nogil
        int (*stream_is_capturing)(void* stream, int* status) noexcept nogil
        int (*ctx_synchronize)() noexcept nogil
        int (*exchange_capture_mode)(int* mode) noexcept nogil
        int (*pointer_get_attribute)(void* data, int attribute, uintptr_t pointer) noexcept nogil
        int (*get_error_name)(int error, const char** name) noexcept nogil
        int (*get_error_string)(int error, const char** text) noexcept nogil

    ctypedef struct cf_gpu:
        const cf_cuda_calls* calls
        void* context

    bint cf_cuda_is_capture(int result)
    bint cf_gpu_enter(const cf_gpu* gpu)
    void cf_gpu_leave(const cf_gpu* gpu, bint pushed)
    int cf_gpu_relax(const cf_gpu* gpu)
    void cf_gpu_restore(const cf_gpu* gpu, int mode)
    int cf_gpu_usable(const cf_gpu* gpu, void* stream)
    int cf_gpu_record(const cf_gpu* gpu, void* event, void* stream)
    int cf_gpu_record_all(const cf_gpu* gpu, void* event)
    int cf_gpu_drain(const cf_gpu* gpu)
    int cf_gpu_wait(const cf_gpu* gpu, void* stream, void* event)
    int cf_gpu_query(const cf_gpu* gpu, void* event)
    int cf_gpu_synchronize(const cf_gpu* gpu, void* event)
    int cf_gpu_new_event(const cf_gpu* gpu, void** event)


cdef void* stream_of(object stream) except? NULL
cdef object keeper_of(void* stream, int ordinal)
cdef str driver_error(int result)
cdef int check_driver(int result, str what) except -1


cdef class Device:
    cdef readonly int ordinal
    cdef readonly bytes uuid
    cdef readonly str name
    cdef readonly object keep
    cdef cf_gpu gpu

    cdef int ordinal_of(self, uintptr_t pointer) noexcept nogil
    cdef int usable(self, void* stream) noexcept nogil
    cdef int record(self, void* event, void* stream) noexcept nogil
    cdef int wait(self, void* stream, void* event) noexcept nogil
    cdef int wait_for_all(self, void* stream) noexcept nogil
    cdef int wait_for(self, void* stream, void* other) noexcept nogil
    cdef bint finished(self, void* event) noexcept nogil
    cdef int synchronize(self, void* event) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef int copy(self, char* dst, Py_ssize_t dst_pitch, bint to_device, const char* src, Py_ssize_t src_pitch,
                  bint from_device, size_t row_bytes, size_t rows, void* stream) noexcept nogil
