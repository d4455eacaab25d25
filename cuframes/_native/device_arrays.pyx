"""Arrays on a GPU as rows of planes: DLPack and the CUDA array interface, ordered before the copy that follows."""

from cpython.object cimport PyObject
from libc.stdint cimport uintptr_t

from cuframes._native.arrays cimport DL_CUDA, MAX_NDIM, Array, FrameRows, wrong_sample
from cuframes._native.cuda cimport CF_CUDA_STREAM_LEGACY, Device, check_driver
from cuframes._native.dlpack cimport PyCapsule_GetPointer, PyCapsule_SetName, cf_dl_managed, cf_dl_tensor
from cuframes._native.layout cimport FrameLayout


cdef class Tensor:
    """Keeps a consumed DLPack tensor."""

    cdef cf_dl_managed* managed

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)


cdef Tensor consume(object capsule):
    """Take over a DLPack capsule. From now on it is our duty to call its deleter."""
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef void* managed = PyCapsule_GetPointer(<PyObject*>capsule, "dltensor")
    PyCapsule_SetName(<PyObject*>capsule, "used_dltensor")
    tensor.managed = <cf_dl_managed*>managed
    return tensor


cdef Array dlpack_array(FrameLayout layout, Device gpu, void* stream, object source):
    """An array on a GPU, through DLPack, ordered before the next work of `stream`."""
    cdef Array array = Array.__new__(Array)
    cdef Tensor keep
    cdef cf_dl_tensor* t
    cdef Py_ssize_t expected
    cdef int i
    try:
        capsule = source.__dlpack__(stream=<uintptr_t>stream)
    except (TypeError, NotImplementedError) as reason:
        # A producer without support for streams (PyAV) works on the legacy default stream, like a stream of None.
        try:
            capsule = source.__dlpack__()
        except Exception:
            raise reason  # the second exception is attached as its context
        order(gpu, <void*>CF_CUDA_STREAM_LEGACY, stream)
    keep = consume(capsule)
    t = &keep.managed.tensor
    if (t.type_code not in (0, 1)) or t.type_bits != 8 * layout.item_bytes or t.type_lanes != 1:
        raise wrong_sample(layout, f"DLPack type ({t.type_code}, {t.type_bits}, {t.type_lanes})")
    if not 1 <= t.ndim <= MAX_NDIM:
        raise ValueError(f"a frame has 1 to 3 dimensions, not {t.ndim}")
    check_device(gpu, t.device.device_id)
    array.at.address = <const char*>t.data + t.byte_offset
    array.at.ndim = t.ndim
    array.at.item_bytes = layout.item_bytes
    expected = layout.item_bytes
    for i in range(t.ndim - 1, -1, -1):
        array.at.extent[i] = t.shape[i]
        array.at.step[i] = expected if t.strides == NULL else t.strides[i] * layout.item_bytes
        expected *= array.at.extent[i]
    array.on_gpu = True
    array.keep = keep
    return array


cdef Array interface_array(FrameLayout layout, Device gpu, void* stream, object source):
    """An array on a GPU, through the CUDA array interface version 2 or 3, ordered before the next work of `stream`."""
    cdef Array array = Array.__new__(Array)
    cdef Py_ssize_t expected = layout.item_bytes
    cdef uintptr_t theirs
    cdef int i
    interface = source.__cuda_array_interface__
    if interface["typestr"] not in (("|u1", "|i1", "<u1") if layout.item_bytes == 1 else ("<u2", "<i2")):
        raise wrong_sample(layout, f"type {interface['typestr']!r}")
    if interface.get("mask") is not None:
        raise TypeError("a masked array has no pixels where it is masked; publish an array without a mask")
    shape, strides = interface["shape"], interface.get("strides")
    if not 1 <= len(shape) <= MAX_NDIM or (strides is not None and len(strides) != len(shape)):
        raise ValueError(f"a frame has 1 to 3 dimensions, not {len(shape)}")
    array.at.address = <const char*><uintptr_t>interface["data"][0]
    check_device(gpu, gpu.ordinal_of(<uintptr_t>array.at.address))
    array.at.ndim = len(shape)
    array.at.item_bytes = layout.item_bytes
    for i in range(array.at.ndim - 1, -1, -1):
        array.at.extent[i] = shape[i]
        array.at.step[i] = expected if strides is None else strides[i]
        expected *= array.at.extent[i]
    array.on_gpu = True
    array.keep = source
    theirs = interface.get("stream") or CF_CUDA_STREAM_LEGACY
    order(gpu, <void*>theirs, stream)
    return array


cdef int check_device(Device gpu, int ordinal) except -1:
    """Raise if an array is on another GPU. An `ordinal` of -1 means that its GPU is unknown, and is accepted."""
    if ordinal >= 0 and ordinal != gpu.ordinal:
        raise ValueError(f"the array is on cuda:{ordinal}, but the publisher is on cuda:{gpu.ordinal}; copy the array "
                         "there first")
    return 0


cdef int order(Device gpu, void* first, void* second) except -1:
    """Make stream `second` wait for the work that stream `first` has queued."""
    if first != second:
        check_driver(gpu.wait_for(second, first), "ordering two streams failed")
    return 0


cdef class DeviceFrameRows(FrameRows):
    """The rows of each plane of a frame that is copied on `stream` of a GPU, from arrays in host or device memory."""

    cdef Array find_on_device(self, object array, tuple where):
        if where is None:
            return interface_array(self.layout, self.gpu, self.stream, array)
        check_device(self.gpu, where[1])
        return dlpack_array(self.layout, self.gpu, self.stream, array)


cdef FrameRows device_rows_of(FrameLayout layout, Device gpu, void* stream, object src):
    """Find the rows of an array-like in host or device memory, or raise. The rows are not copied yet."""
    cdef DeviceFrameRows source = DeviceFrameRows.__new__(DeviceFrameRows)
    source.layout = layout
    source.gpu = gpu
    source.stream = stream
    source.read(src)
    return source


def dlpack_pointer(buffer):
    """Device address of a DLPack tensor. The caller must keep the tensor alive."""
    cdef Tensor keep = consume(buffer.__dlpack__(stream=-1))
    if keep.managed.tensor.device.device_type != DL_CUDA:
        raise TypeError("the buffer is not in device memory")
    return <uintptr_t>keep.managed.tensor.data + keep.managed.tensor.byte_offset
