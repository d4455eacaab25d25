"""Array-likes as rows of planes: where the bytes of a frame to be published are, on the host or on a GPU.

Everything that can be wrong with an array is found here, before a slot of the ring is taken. Nothing is copied while
looking, except for arrays whose rows are not contiguous; :func:`copy_frame` then copies the rows into a slot.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.buffer cimport PyBuffer_Release
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uintptr_t

from cuframes._cuda cimport CF_CUDA_STREAM_LEGACY, Device, check_driver
from cuframes._dlpack cimport PyCapsule_GetPointer, PyCapsule_SetName, cf_dl_managed, cf_dl_tensor
from cuframes._frame cimport FrameLayout, Geometry, cf_copier
from cuframes._shm cimport cf_now_ns

from cuframes.formats import ALIASES


cdef extern from "_copy.h" nogil:
    enum:
        CF_COPY_LARGE
    bint cf_copier_choose(const cf_copier* c)
    void cf_copier_note(cf_copier* c, bint past, int64_t took_ns)


cdef int DL_CUDA = 2
cdef int DL_CUDA_MANAGED = 13


cdef class Buffer:
    """Keeps an object's buffer."""

    cdef Py_buffer view

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef class Tensor:
    """Keeps a consumed DLPack tensor."""

    cdef cf_dl_managed* managed

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)


cdef class Array:
    cdef bint rows_contiguous(self) noexcept:
        cdef Py_ssize_t expected = self.item_bytes
        cdef int i
        for i in range(self.ndim - 1, 0, -1):
            if self.step[i] != expected:
                return False
            expected *= self.extent[i]
        return True

    cdef Py_ssize_t nbytes(self) noexcept:
        cdef Py_ssize_t total = self.item_bytes
        cdef int i
        for i in range(self.ndim):
            total *= self.extent[i]
        return total

    cdef bint contiguous(self) noexcept:
        return self.rows_contiguous() and (self.ndim < 1 or self.step[0] * self.extent[0] == self.nbytes())

    @property
    def shape(self):
        return tuple([self.extent[i] for i in range(self.ndim)])


cdef wrong_sample(FrameLayout layout, str found):
    return TypeError(f"{layout.format} samples are uint{8 * layout.item_bytes}, the array has elements of {found}")


cdef Array host_array(FrameLayout layout, object source):
    """From the buffer protocol."""
    cdef Buffer keep = Buffer.__new__(Buffer)
    cdef Array array = Array.__new__(Array)
    cdef Py_buffer* b = &keep.view
    cdef int i
    PyObject_GetBuffer(source, b, PyBUF_STRIDES | PyBUF_FORMAT)
    sample = (<bytes>b.format).lstrip(b"<=@|") if b.format != NULL else b"B"
    if sample not in ((b"B", b"b", b"c") if layout.item_bytes == 1 else (b"H", b"h")):
        raise wrong_sample(layout, f"format {sample.decode()!r}, {b.itemsize} bytes each")
    if b.ndim > 4:
        raise ValueError(f"a frame has at most 3 dimensions, not {b.ndim}")
    array.address = <const char*>b.buf
    array.ndim = b.ndim
    for i in range(b.ndim):
        array.extent[i] = b.shape[i]
        array.step[i] = b.strides[i]
    array.item_bytes = layout.item_bytes
    array.keep = keep
    return array


cdef Array dlpack_array(FrameLayout layout, Device gpu, void* stream, object source):
    """From DLPack, on a GPU, ordered before what `stream` does next."""
    cdef Tensor keep = Tensor.__new__(Tensor)
    cdef Array array = Array.__new__(Array)
    cdef cf_dl_tensor* t
    cdef Py_ssize_t expected
    cdef int i
    try:
        capsule = source.__dlpack__(stream=<uintptr_t>stream)
    except Exception:
        # A producer that knows no streams (PyAV) works on the legacy default one, which is what None means.
        capsule = source.__dlpack__()
        order(gpu, <void*>CF_CUDA_STREAM_LEGACY, stream)
    keep.managed = <cf_dl_managed*>PyCapsule_GetPointer(<PyObject*>capsule, "dltensor")
    PyCapsule_SetName(<PyObject*>capsule, "used_dltensor")
    t = &keep.managed.tensor
    if (t.type_code not in (0, 1)) or t.type_bits != 8 * layout.item_bytes or t.type_lanes != 1:
        raise wrong_sample(layout, f"DLPack type ({t.type_code}, {t.type_bits}, {t.type_lanes})")
    if not 1 <= t.ndim <= 4:
        raise ValueError(f"a frame has at most 3 dimensions, not {t.ndim}")
    array.address = <const char*>t.data + t.byte_offset
    array.ndim = t.ndim
    expected = layout.item_bytes
    for i in range(t.ndim - 1, -1, -1):
        array.extent[i] = t.shape[i]
        array.step[i] = expected if t.strides == NULL else t.strides[i] * layout.item_bytes
        expected *= array.extent[i]
    array.item_bytes = layout.item_bytes
    array.on_gpu = True
    array.keep = keep
    return array


cdef Array interface_array(FrameLayout layout, Device gpu, void* stream, object source):
    """From the CUDA array interface, version 2 or 3, ordered before what `stream` does next."""
    cdef Array array = Array.__new__(Array)
    cdef Py_ssize_t expected = layout.item_bytes
    cdef uintptr_t theirs
    interface = source.__cuda_array_interface__
    if interface["typestr"] not in (("|u1", "|i1", "<u1") if layout.item_bytes == 1 else ("<u2", "<i2")):
        raise wrong_sample(layout, f"type {interface['typestr']!r}")
    shape, strides = interface["shape"], interface.get("strides")
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"a frame has at most 3 dimensions, not {len(shape)}")
    array.address = <const char*><uintptr_t>interface["data"][0]
    array.ndim = len(shape)
    for i in range(array.ndim - 1, -1, -1):
        array.extent[<int>i] = shape[i]
        array.step[<int>i] = expected if strides is None else strides[i]
        expected *= array.extent[<int>i]
    array.item_bytes = layout.item_bytes
    array.on_gpu = True
    array.keep = source
    theirs = interface.get("stream") or CF_CUDA_STREAM_LEGACY
    order(gpu, <void*>theirs, stream)
    return array


cdef int order(Device gpu, void* first, void* second) except -1:
    """Make stream `second` wait for what stream `first` has queued."""
    if first != second:
        check_driver(gpu.wait_for(second, first), "ordering two streams failed")
    return 0


cdef tuple device_of(object array):
    """(DLPack device type, ordinal) of an array that says so, or None."""
    ask = getattr(array, "__dlpack_device__", None)
    if ask is None:
        return None
    kind, ordinal = ask()
    return int(kind), int(ordinal)


cdef void lay_out(FrameLayout layout, const char* address, bint strided, Py_ssize_t pitch, bint on_gpu,
                  Rows* rows) noexcept:
    """The planes below one another in one array: with one pitch, or each without padding."""
    cdef int i
    for i in range(layout.planes):
        rows[i].address = address
        rows[i].pitch = pitch if strided else layout.plane[i].row_bytes
        rows[i].on_gpu = on_gpu
        address += rows[i].pitch * layout.plane[i].rows


cdef bint plain_rows(FrameLayout layout, object src, Py_buffer* buffer, Rows* rows) except -1:
    """The usual case, without making an object: a host array of the frame's shape, or its bytes.

    True: `buffer` is the caller's to release. Anything else is for :func:`source_of`, which also says what is wrong.
    Types are remembered that it found to be buffers and nothing more (no video frames, nothing on a GPU).
    """
    cdef Py_ssize_t expected
    cdef bint fits, strided = False
    cdef char sample
    cdef int i
    if layout.plain_type is not type(src):
        return False
    PyObject_GetBuffer(src, buffer, PyBUF_STRIDES | PyBUF_FORMAT)
    sample = b"B" if buffer.format == NULL else buffer.format[0]
    fits = buffer.itemsize == layout.item_bytes and (buffer.format == NULL or buffer.format[1] == 0)
    fits = fits and (sample in (c"B", c"b", c"c") if layout.item_bytes == 1 else sample in (c"H", c"h"))
    if fits and buffer.ndim == 1:
        fits = buffer.len == layout.tight_bytes and buffer.strides[0] == buffer.itemsize
    elif fits:
        fits = buffer.ndim == layout.array_ndim
        expected = layout.item_bytes
        for i in range(buffer.ndim - 1, -1, -1):
            if not fits or buffer.shape[i] != layout.array_extent[i]:
                fits = False
                break
            if buffer.strides[i] != expected:
                fits = i == 0 and layout.one_pitch and buffer.ndim == layout.plane[0].ndim
                strided = fits
            expected *= buffer.shape[i]
    if not fits:
        PyBuffer_Release(buffer)
        return False
    lay_out(layout, <const char*>buffer.buf, strided, buffer.strides[0], False, rows)
    return True


cdef class Source:
    """The rows of each plane of a frame to be published. Keeps what they lie in until it is dropped."""

    cdef Array find(self, object array):
        """An array-like, wherever it is."""
        cdef Array found
        where = device_of(array)
        by_interface = where is None and getattr(array, "__cuda_array_interface__", None) is not None
        if by_interface or (where is not None and where[0] in (DL_CUDA, DL_CUDA_MANAGED)):
            if self.gpu is None:
                raise TypeError("the array is in device memory and this publisher shares host memory; copy it to the "
                                "host first (.cpu(), .get()), or publish with memory='cuda'")
            if where is not None and where[1] != self.gpu.ordinal:
                raise ValueError(f"the array is on cuda:{where[1]}, the publisher on cuda:{self.gpu.ordinal}; copy it "
                                 "there first")
            if by_interface:
                found = interface_array(self.layout, self.gpu, self.stream, array)
            else:
                found = dlpack_array(self.layout, self.gpu, self.stream, array)
            self.on_gpu = True
        elif PyObject_CheckBuffer(array):
            found = host_array(self.layout, array)
        else:
            import numpy
            found = host_array(self.layout, numpy.asarray(array))
        self.keep.append(found)
        return found

    cdef Array with_contiguous_rows(self, Array found, object array):
        """The same array, copied on the host if need be."""
        if found.on_gpu:
            raise ValueError("the rows of a device array must be contiguous; make it so first (.contiguous(), "
                             "cupy.ascontiguousarray)")
        import numpy
        return self.find(numpy.ascontiguousarray(array))

    cdef int plane(self, int i, object array) except -1:
        """Plane i from an array of the plane's own shape."""
        cdef Array found = self.find(array)
        wanted = self.layout.shape.planes[i].shape
        if found.shape != wanted:
            raise ValueError(f"plane {i} of {self.layout.format} has shape {wanted}, not {found.shape}")
        if not found.rows_contiguous():
            found = self.with_contiguous_rows(found, array)
        self.rows[i].address = found.address
        self.rows[i].pitch = found.step[0]
        self.rows[i].on_gpu = found.on_gpu
        return 0

    cdef int frame(self, object array) except -1:
        """All planes from one array: the frame's array_shape, or its bytes without padding."""
        cdef FrameLayout layout = self.layout
        cdef Array found = self.find(array)
        flat = found.ndim == 1 and found.nbytes() == layout.tight_bytes
        if not flat and found.shape != layout.shape.array_shape:
            raise ValueError(
                f"a {layout.format} frame of {layout.shape.width}x{layout.shape.height} is an array of shape "
                f"{layout.shape.array_shape}, {layout.tight_bytes} bytes, or {layout.planes} planes; "
                f"not {found.shape}")
        strided = not flat and layout.one_pitch and found.ndim == layout.plane[0].ndim and found.rows_contiguous()
        if not strided and not found.contiguous():
            found = self.with_contiguous_rows(found, array)
        lay_out(layout, found.address, strided, found.step[0], found.on_gpu, self.rows)
        if not found.on_gpu and PyObject_CheckBuffer(array):
            layout.plain_type = type(array)
        return 0

    cdef int video(self, object src) except -1:
        """From an object with planes: PyAV's VideoFrame, or a frame of ours."""
        cdef Array found
        cdef Py_ssize_t pitch
        cdef int i
        layout = self.layout
        mine = layout.shape
        name = getattr(src.format, "name", src.format)
        if name == "cuda":  # PyAV, decoded on the GPU: the format of the samples is beside it
            name = getattr(getattr(src, "sw_format", None), "name", name)
        if ALIASES.get(name, name) != layout.format or (src.width, src.height) != (mine.width, mine.height):
            raise ValueError(f"this publisher shares {layout.format} {mine.width}x{mine.height}, the frame is {name} "
                             f"{src.width}x{src.height}; convert it first (PyAV: frame.reformat)")
        for i in range(layout.planes):
            plane = src.planes[i]
            if not hasattr(plane, "line_size") or (device_of(plane) or (1, 0))[0] != 1:
                self.plane(i, plane)
                continue
            pitch = plane.line_size
            found = host_bytes(plane)
            rows = layout.plane[i].rows
            if found.extent[0] < pitch * (rows - 1) + layout.plane[i].row_bytes:
                raise ValueError(f"plane {i} has {found.extent[0]} bytes, too few for {rows} rows of {pitch}")
            self.keep.append(found)
            self.rows[i].address = found.address
            self.rows[i].pitch = pitch
            self.rows[i].on_gpu = False
        return 0


cdef Array host_bytes(object plane):
    """A flat plane of bytes, whatever its samples are."""
    cdef Buffer keep = Buffer.__new__(Buffer)
    cdef Array array = Array.__new__(Array)
    PyObject_GetBuffer(plane, &keep.view, PyBUF_STRIDES)
    array.address = <const char*>keep.view.buf
    array.ndim = 1
    array.item_bytes = 1
    array.extent[0] = keep.view.len
    array.step[0] = 1
    array.keep = keep
    return array


cdef Source source_of(FrameLayout layout, Device gpu, void* stream, object src):
    """Find the rows of an array-like, or raise; nothing is copied yet."""
    cdef Source source = Source.__new__(Source)
    cdef int i
    source.layout = layout
    source.gpu = gpu
    source.stream = stream
    source.keep = []
    if hasattr(src, "planes") and hasattr(src, "format"):
        source.video(src)
    elif isinstance(src, (tuple, list)):
        if len(src) != layout.planes:
            raise ValueError(f"{layout.format} has {layout.planes} planes, not {len(src)}")
        for i in range(layout.planes):
            source.plane(i, src[i])
    else:
        source.frame(src)
    return source


cdef Py_ssize_t LARGE = 64 * 1024  # copies from here on are made without the GIL; getting it back can take a while


cdef void copy_planes(FrameLayout layout, const Rows* rows, char* target) noexcept nogil:
    cdef bint large = layout.tight_bytes >= CF_COPY_LARGE
    cdef bint past = large and cf_copier_choose(&layout.copier)
    cdef int64_t begin = cf_now_ns() if large else 0
    cdef Geometry* g
    cdef int i
    for i in range(layout.planes):
        g = &layout.plane[i]
        cf_copy_rows(target + g.offset, g.step[0], rows[i].address, rows[i].pitch, g.row_bytes, g.rows, past)
    if large:
        cf_copier_note(&layout.copier, past, cf_now_ns() - begin)


cdef void copy_frame(FrameLayout layout, const Rows* rows, char* target) noexcept:
    if layout.tight_bytes < LARGE:
        copy_planes(layout, rows, target)
    else:
        with nogil:
            copy_planes(layout, rows, target)


def dlpack_pointer(buffer):
    """Device address of a DLPack tensor; the caller keeps the tensor."""
    cdef Tensor keep = Tensor.__new__(Tensor)
    capsule = buffer.__dlpack__(stream=-1)
    keep.managed = <cf_dl_managed*>PyCapsule_GetPointer(<PyObject*>capsule, "dltensor")
    PyCapsule_SetName(<PyObject*>capsule, "used_dltensor")
    if keep.managed.tensor.device.device_type != DL_CUDA:
        raise TypeError("the buffer is not in device memory")
    return <uintptr_t>keep.managed.tensor.data + keep.managed.tensor.byte_offset
