"""The CUDA driver calls of the hot path: events, waits and copies, as function pointers, without the GIL.

The setup (contexts, memory, handles) is done with cuda-python in ``cuframes.memory.cuda``, which passes the addresses
of the driver's functions to :func:`load`. No function here blocks the host, unless its docstring says so.
"""

from libc.stdint cimport uintptr_t
from libc.string cimport memset

import sys
from numbers import Integral

from cuframes.errors import DeviceError

cdef cf_cuda_calls calls
cdef bint loaded = False


def load(dict functions):
    """Set the driver's functions from a dict of name to address. ``cuCtxRecordEvent`` may be missing."""
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
    calls.stream_is_capturing = \
        <int (*)(void*, int*) noexcept nogil><void*><uintptr_t>functions["cuStreamIsCapturing"]
    calls.ctx_synchronize = <int (*)() noexcept nogil><void*><uintptr_t>functions["cuCtxSynchronize"]
    calls.exchange_capture_mode = \
        <int (*)(int*) noexcept nogil><void*><uintptr_t>functions["cuThreadExchangeStreamCaptureMode"]
    calls.pointer_get_attribute = \
        <int (*)(void*, int, uintptr_t) noexcept nogil><void*><uintptr_t>functions["cuPointerGetAttribute"]
    calls.get_error_name = \
        <int (*)(int, const char**) noexcept nogil><void*><uintptr_t>functions["cuGetErrorName"]
    calls.get_error_string = \
        <int (*)(int, const char**) noexcept nogil><void*><uintptr_t>functions["cuGetErrorString"]
    loaded = True


cdef str driver_error(int result):
    """The driver's own name and text for a result, with a remedy if one is known."""
    cdef const char* name = NULL
    cdef const char* text = NULL
    calls.get_error_name(result, &name)
    calls.get_error_string(result, &text)
    label = (<bytes>name).decode() if name != NULL else f"error {result}"
    meaning = (<bytes>text).decode() if text != NULL else "unknown to this driver"
    remedy = ""
    if cf_cuda_is_capture(result):
        # Captured work runs whenever the graph is launched, long after the frame went back, so it cannot be followed.
        remedy = ("; a CUDA graph is being captured: take, use and release frames outside of the capture, and copy "
                  "the graph's input into a buffer of your own")
    return f"{label} ({meaning}){remedy}"


cdef int check_driver(int result, str what) except -1:
    """Raise DeviceError with the driver's own name and text for a result."""
    if result == CF_CUDA_SUCCESS:
        return 0
    raise DeviceError(f"{what}: {driver_error(result)}")


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
    elif isinstance(stream, Integral):  # NumPy's
        handle = int(stream)
    else:
        raise TypeError(f"stream must be None, an int, or a CUDA stream object, not {type(stream).__name__}")
    # 0 means the default stream of whichever context is current; name the legacy default stream explicitly instead.
    return <void*>(handle or <uintptr_t>CF_CUDA_STREAM_LEGACY)


def stream_handle(stream):
    """:func:`stream_of` for Python: returns the handle as an int."""
    return <uintptr_t>stream_of(stream)


cdef object keeper_of(void* stream, int ordinal):
    """An object that keeps a stream alive which a library passed as a bare handle, or None if no such object is known.

    The driver does not check handles: using a stream after its destruction crashes the process. A handle may therefore
    be used later only if its stream is kept alive until then. PyTorch never destroys its own streams. (A stream of
    another library that PyTorch wraps has its handle as stream_id.) A CuPy stream lives as long as its Python object.
    """
    cdef uintptr_t handle = <uintptr_t>stream
    try:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            current = torch.cuda.current_stream(ordinal)
            if current.cuda_stream == handle and current.stream_id != handle:
                return current
        cupy = sys.modules.get("cupy")
        if cupy is not None:
            current = cupy.cuda.get_current_stream()
            if current.ptr == handle and isinstance(current, cupy.cuda.Stream):
                return current
    except Exception:  # these libraries may change in any way: then no keeper is known
        pass
    return None


cdef class Device:
    """A GPU and its primary context, which all frameworks in a process share.

    Calls return the driver's result. A call that names a default stream needs this context to be current. On a thread
    without a context, it is made current and stays so, as with the CUDA runtime. On a thread with another context, it
    is pushed for the call.
    """

    def __cinit__(self, int ordinal, bytes uuid not None, str name not None, uintptr_t context, keep):
        if not loaded:
            raise SystemError("the driver's functions are not loaded")
        self.ordinal = ordinal
        self.uuid = uuid
        self.name = name
        self.gpu.calls = &calls
        self.gpu.context = <void*>context
        self.keep = keep

    cdef int usable(self, void* stream) noexcept nogil:
        """0, or the driver's error if nothing can be queued on the stream because a graph is being captured."""
        return cf_gpu_usable(&self.gpu, stream)

    cdef int ordinal_of(self, uintptr_t pointer) noexcept nogil:
        """Number (in this process) of the GPU to which an address belongs; -1 if CUDA does not know the address."""
        cdef int ordinal = -1
        cdef bint pushed = cf_gpu_enter(&self.gpu)
        cdef int result = calls.pointer_get_attribute(&ordinal, CF_CUDA_POINTER_DEVICE_ORDINAL, pointer)
        cf_gpu_leave(&self.gpu, pushed)
        return ordinal if result == CF_CUDA_SUCCESS else -1

    cdef int record(self, void* event, void* stream) noexcept nogil:
        return cf_gpu_record(&self.gpu, event, stream)

    cdef int wait(self, void* stream, void* event) noexcept nogil:
        return cf_gpu_wait(&self.gpu, stream, event)

    cdef int wait_for(self, void* stream, void* other) noexcept nogil:
        """Make a stream wait for the work that another stream has queued so far."""
        cdef void* event
        cdef int result = cf_gpu_new_event(&self.gpu, &event)
        if result == CF_CUDA_SUCCESS:
            result = cf_gpu_record(&self.gpu, event, other)
            if result == CF_CUDA_SUCCESS:
                result = cf_gpu_wait(&self.gpu, stream, event)
            calls.event_destroy(event)  # the driver frees it when the work is done
        return result

    cdef int wait_for_all(self, void* stream) noexcept nogil:
        """Make a stream wait for all work that the context has queued so far. Before CUDA 12.5, blocks the host."""
        cdef void* event
        cdef int result = cf_gpu_new_event(&self.gpu, &event)
        if result == CF_CUDA_SUCCESS:
            result = cf_gpu_record_all(&self.gpu, event)
            if result == CF_CUDA_SUCCESS:
                result = cf_gpu_wait(&self.gpu, stream, event)
            calls.event_destroy(event)
        return self.drain() if result == CF_CUDA_NOT_SUPPORTED else result

    cdef bint finished(self, void* event) noexcept nogil:
        """Whether the recorded work is over. An error counts as over, since the driver will then never finish it."""
        return cf_gpu_query(&self.gpu, event) != CF_CUDA_NOT_READY

    cdef int synchronize(self, void* event) noexcept nogil:
        """Block the host until the recorded work is over."""
        return cf_gpu_synchronize(&self.gpu, event)

    cdef int drain(self) noexcept nogil:
        """Block the host until all work of the context is over. A last resort, since it ends graph captures."""
        return cf_gpu_drain(&self.gpu)

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
        cdef bint pushed = cf_gpu_enter(&self.gpu)
        cdef int mode = cf_gpu_relax(&self.gpu)
        cdef int result = calls.memcpy_2d_async(&c, stream)
        cf_gpu_restore(&self.gpu, mode)
        cf_gpu_leave(&self.gpu, pushed)
        return result

    def synchronize_stream(self, stream):
        """Block the host until a stream's work is over."""
        cdef void* handle = stream_of(stream)
        cdef int result, mode
        cdef bint pushed
        with nogil:
            pushed = cf_gpu_enter(&self.gpu)
            mode = cf_gpu_relax(&self.gpu)
            result = calls.stream_synchronize(handle)
            cf_gpu_restore(&self.gpu, mode)
            cf_gpu_leave(&self.gpu, pushed)
        check_driver(result, "waiting for a stream failed")

    @property
    def uuid_text(self):
        """The UUID in the form that nvidia-smi prints."""
        h = self.uuid.hex()
        return f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def __repr__(self):
        return f"<Device cuda:{self.ordinal} {self.name}, {self.uuid_text}>"
