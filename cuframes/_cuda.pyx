"""The CUDA driver calls of the hot path: events, waits and copies, as function pointers, without the GIL.

Setting up (contexts, memory, handles) is cuda-python's work, in ``cuframes.memory.cuda``; it hands the addresses of the
driver's functions to :func:`load`. Nothing here synchronises the host, except what says so.
"""

from libc.stdint cimport uintptr_t
from libc.string cimport memset

from cuframes.errors import DeviceError

cdef cf_cuda_calls calls
cdef bint loaded = False


def load(dict functions):
    """Set the driver's functions: name to address. ``cuCtxRecordEvent`` may be missing."""
    global loaded
    cdef uintptr_t address
    calls.event_record = <int (*)(void*, void*) noexcept nogil><void*><uintptr_t>functions["cuEventRecord"]
    calls.stream_wait_event = \
        <int (*)(void*, void*, unsigned int) noexcept nogil><void*><uintptr_t>functions["cuStreamWaitEvent"]
    calls.event_query = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuEventQuery"]
    calls.event_synchronize = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuEventSynchronize"]
    calls.event_create = <int (*)(void**, unsigned int) noexcept nogil><void*><uintptr_t>functions["cuEventCreate"]
    calls.event_destroy = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuEventDestroy"]
    address = functions.get("cuCtxRecordEvent") or 0
    calls.ctx_record_event = <int (*)(void*, void*) noexcept nogil><void*>address
    calls.ctx_get_current = <int (*)(void**) noexcept nogil><void*><uintptr_t>functions["cuCtxGetCurrent"]
    calls.ctx_set_current = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuCtxSetCurrent"]
    calls.ctx_push = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuCtxPushCurrent"]
    calls.ctx_pop = <int (*)(void**) noexcept nogil><void*><uintptr_t>functions["cuCtxPopCurrent"]
    calls.memcpy_2d_async = \
        <int (*)(const cf_cuda_memcpy2d*, void*) noexcept nogil><void*><uintptr_t>functions["cuMemcpy2DAsync"]
    calls.stream_synchronize = <int (*)(void*) noexcept nogil><void*><uintptr_t>functions["cuStreamSynchronize"]
    calls.pointer_get_attribute = \
        <int (*)(void*, int, uintptr_t) noexcept nogil><void*><uintptr_t>functions["cuPointerGetAttribute"]
    calls.get_error_name = \
        <int (*)(int, const char**) noexcept nogil><void*><uintptr_t>functions["cuGetErrorName"]
    calls.get_error_string = \
        <int (*)(int, const char**) noexcept nogil><void*><uintptr_t>functions["cuGetErrorString"]
    loaded = True


cdef int check_driver(int result, str what) except -1:
    """Raise DeviceError with the driver's own name and text for a result."""
    cdef const char* name = NULL
    cdef const char* text = NULL
    if result == CF_CUDA_SUCCESS:
        return 0
    calls.get_error_name(result, &name)
    calls.get_error_string(result, &text)
    label = (<bytes>name).decode() if name != NULL else f"error {result}"
    meaning = (<bytes>text).decode() if text != NULL else "unknown to this driver"
    raise DeviceError(f"{what}: {label} ({meaning})")


cdef void* stream_of(object stream) except? NULL:
    """The driver's handle of a stream: None (the legacy default stream), an int, or an object of CUDA Python, CuPy or
    PyTorch."""
    cdef uintptr_t handle
    if stream is None:
        handle = CF_CUDA_STREAM_LEGACY
    elif isinstance(stream, int):
        handle = stream
    elif hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        handle = int((protocol() if callable(protocol) else protocol)[1])
    elif hasattr(stream, "cuda_stream"):
        handle = stream.cuda_stream
    elif hasattr(stream, "ptr"):
        handle = stream.ptr
    else:
        raise TypeError(f"stream must be None, an int, or a CUDA stream object, not {type(stream).__name__}")
    # 0 means the default stream of whichever context is current; say which one is meant.
    return <void*>(handle or <uintptr_t>CF_CUDA_STREAM_LEGACY)


def stream_handle(stream):
    """:func:`stream_of` for Python: an int."""
    return <uintptr_t>stream_of(stream)


cdef class Device:
    """A GPU and its primary context, which frameworks of one process share.

    Calls return the driver's result. A call that names a default stream needs the context to be current. On a thread
    without one it is made current and stays so, as the CUDA runtime does; over another one it is pushed for the call.
    """

    def __cinit__(self, int ordinal, bytes uuid not None, str name not None, uintptr_t context, keep):
        if not loaded:
            raise SystemError("the driver's functions are not loaded")
        self.ordinal = ordinal
        self.uuid = uuid
        self.name = name
        self.context = <void*>context
        self.keep = keep

    cdef int enter(self) noexcept nogil:
        cdef void* current = NULL
        calls.ctx_get_current(&current)
        if current == self.context:
            return 0
        if current == NULL:
            calls.ctx_set_current(self.context)
            return 0
        return calls.ctx_push(self.context) == CF_CUDA_SUCCESS

    cdef void leave(self, int entered) noexcept nogil:
        cdef void* popped
        if entered:
            calls.ctx_pop(&popped)

    cdef int ordinal_of(self, uintptr_t pointer) noexcept nogil:
        """The GPU on which an address is, as this process counts them; -1 if CUDA does not know the address."""
        cdef int ordinal = -1
        cdef int entered = self.enter()
        cdef int result = calls.pointer_get_attribute(&ordinal, CF_CUDA_POINTER_DEVICE_ORDINAL, pointer)
        self.leave(entered)
        return ordinal if result == CF_CUDA_SUCCESS else -1

    cdef int record(self, void* event, void* stream) noexcept nogil:
        cdef int entered = self.enter()
        cdef int result = calls.event_record(event, stream)
        self.leave(entered)
        return result

    cdef int record_everything(self, void* event) noexcept nogil:
        """Record all work of the context so far; on drivers that cannot, all work of its blocking streams."""
        cdef int result = CF_CUDA_NOT_SUPPORTED
        if calls.ctx_record_event != NULL:
            result = calls.ctx_record_event(self.context, event)
        if result != CF_CUDA_SUCCESS:
            result = self.record(event, <void*>CF_CUDA_STREAM_LEGACY)
        return result

    cdef int wait(self, void* stream, void* event) noexcept nogil:
        cdef int entered = self.enter()
        cdef int result = calls.stream_wait_event(stream, event, 0)
        self.leave(entered)
        return result

    cdef int finished(self, void* event) noexcept nogil:
        """Whether the recorded work is over. A driver that answers with an error will never finish it."""
        return calls.event_query(event) != CF_CUDA_NOT_READY

    cdef void synchronize(self, void* event) noexcept nogil:
        """Block the host until the recorded work is over."""
        calls.event_synchronize(event)

    cdef void* new_event(self) noexcept nogil:
        cdef void* event = NULL
        cdef int entered = self.enter()
        calls.event_create(&event, CF_CUDA_EVENT_DISABLE_TIMING)
        self.leave(entered)
        return event

    cdef void drop_event(self, void* event) noexcept nogil:
        calls.event_destroy(event)

    cdef int copy(self, char* dst, Py_ssize_t dst_pitch, bint to_device, const char* src, Py_ssize_t src_pitch,
                  bint from_device, size_t row_bytes, size_t rows, void* stream) noexcept nogil:
        """Queue a copy of rows."""
        cdef cf_cuda_memcpy2d c
        memset(&c, 0, sizeof(c))
        c.src_type = CF_CUDA_MEMORY_DEVICE if from_device else CF_CUDA_MEMORY_HOST
        c.src_host = src
        c.src_device = <uintptr_t>src
        c.src_pitch = <size_t>src_pitch
        c.dst_type = CF_CUDA_MEMORY_DEVICE if to_device else CF_CUDA_MEMORY_HOST
        c.dst_host = dst
        c.dst_device = <uintptr_t>dst
        c.dst_pitch = <size_t>dst_pitch
        c.width_bytes = row_bytes
        c.height = rows
        cdef int entered = self.enter()
        cdef int result = calls.memcpy_2d_async(&c, stream)
        self.leave(entered)
        return result

    def synchronize_stream(self, stream):
        """Block the host until a stream's work is over."""
        cdef void* handle = stream_of(stream)
        cdef int result
        with nogil:
            entered = self.enter()
            result = calls.stream_synchronize(handle)
            self.leave(entered)
        check_driver(result, "waiting for a stream failed")

    @property
    def uuid_text(self):
        """The UUID as nvidia-smi prints it."""
        h = self.uuid.hex()
        return f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def __repr__(self):
        return f"<Device cuda:{self.ordinal} {self.name}, {self.uuid_text}>"
