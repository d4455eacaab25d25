"""Exports of frame memory without a copy: buffer protocol, DLPack, the array interfaces of NumPy and CUDA.

A :class:`View` is an address with a shape and an owner: the hold on the ring's slot. Everything that is exported from
it keeps the owner alive, and the slot goes back when the last export dies, whatever was released before.
"""

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

from cuframes._core cimport Owner
from cuframes._native.cuda cimport CF_CUDA_STREAM_LEGACY, check_driver
from cuframes._native.dlpack cimport *
from cuframes._native.source cimport check_unmasked

from numbers import Integral

from cuframes.errors import refusal


cdef extern from "Python.h":
    bint Py_IsInitialized() nogil


cdef tuple HOST_DEVICE = (1, 0)  # kDLCPU
cdef int DL_CUDA = 2  # kDLCUDA
cdef int DL_READ_ONLY = 1
cdef char* FORMAT_U8 = "B"
cdef char* FORMAT_U16 = "H"


cdef void drop_context(void* context) noexcept nogil:
    # Consumers may call a deleter on a thread without the GIL, and after the interpreter has ended.
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object>context)


cdef void delete_legacy(cf_dl_managed* managed) noexcept:
    drop_context(managed.context)
    free(managed)


cdef void delete_versioned(cf_dl_versioned* managed) noexcept:
    drop_context(managed.context)
    free(managed)


# A capsule that nobody consumed still has its first name; a consumer renames it and calls the deleter itself.
cdef void drop_legacy(PyObject* capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        delete_legacy(<cf_dl_managed*>PyCapsule_GetPointer(capsule, "dltensor"))


cdef void drop_versioned(PyObject* capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        delete_versioned(<cf_dl_versioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned"))


cdef void* dlpack_stream(object stream) except? NULL:
    """The stream of a DLPack consumer on a GPU, by the rules of the array API standard; NULL when it wants no
    ordering.
    """
    if stream is None:
        return <void*>CF_CUDA_STREAM_LEGACY
    if not isinstance(stream, Integral) or isinstance(stream, bool):
        raise TypeError(f"a DLPack stream is None or an int, not {stream!r}")
    if stream == -1:
        return NULL
    if stream <= 0:
        raise ValueError(f"a DLPack stream on CUDA is -1, 1, 2 or a handle; {stream} is not unambiguous")
    return <void*><uintptr_t>int(stream)


cdef class View:
    """Memory of one frame or plane, as an array of unsigned integers.

    In host memory ``numpy.asarray``, ``memoryview``, ``torch.from_dlpack`` and their like take it without a copy; on a
    GPU ``torch.from_dlpack``, ``cupy.from_dlpack``, ``cupy.asarray`` and Numba do, ordered after the frame's own work.
    Subscribers' views are read-only. The slot they lie in stays held while any such array lives.
    """

    cdef int set(self, char* address, int ndim, const Py_ssize_t* extent, const Py_ssize_t* step, int item_bytes,
                 bint readonly, Owner owner) except -1:
        cdef int i
        self.address = address
        self.ndim = ndim
        for i in range(ndim):
            self.extent[i] = extent[i]
            self.step[i] = step[i]
        self.item_bytes = item_bytes
        self.readonly = readonly
        self.owner = owner
        self.gpu = owner.memory().device
        return 0

    cdef void drop(self) noexcept:
        """Let go of the memory, and export it no more. What was exported before keeps it."""
        with cython.critical_section(self):
            self.dropped = True
            self.disown()

    cdef void disown(self) noexcept:
        """Give the owner up once nothing needs it here: no buffer, and nobody who used an array interface, since they
        keep this object and nothing else.
        """
        if self.dropped and not self.buffers and not self.lent:
            self.owner = None

    cdef Owner share(self):
        """The owner, for something that is being exported. Another thread may drop the view at the same time."""
        cdef Owner owner
        with cython.critical_section(self):
            self.check_exportable()
            owner = self.owner
        return owner

    cdef int lend(self) except -1:
        """An array interface is about to be given away."""
        with cython.critical_section(self):
            self.check_exportable()
            self.lent = True
        return 0

    cdef Py_ssize_t size(self) noexcept:
        """Bytes of the elements."""
        cdef Py_ssize_t total = self.item_bytes if self.ndim else 0
        cdef int i
        for i in range(self.ndim):
            total *= self.extent[i]
        return total

    cdef bint dense(self, bint fortran) noexcept:
        """Whether the elements lie without gaps, the last index fastest, or the first."""
        cdef Py_ssize_t expected = self.item_bytes
        cdef int i, axis
        for i in range(self.ndim):
            axis = i if fortran else self.ndim - 1 - i
            if self.step[axis] != expected and self.extent[axis] != 1:
                return False
            expected *= self.extent[axis]
        return True

    cdef int check_exportable(self) except -1:
        if self.dropped:
            raise ValueError("the frame was released; take views before that, or keep the frame")
        if self.ndim == 0:
            raise BufferError("this frame is not one array; use its planes")
        return 0

    cdef int check_host(self, object error) except -1:
        if self.gpu is not None:
            raise error(f"the frame is in device memory (cuda:{self.gpu.ordinal}): use torch.from_dlpack, cupy.asarray "
                        "or the like, or copy_to_host()")
        return 0

    @property
    def shape(self):
        """Elements along each axis: (rows, columns) or (rows, columns, components)."""
        return tuple([self.extent[i] for i in range(self.ndim)])

    @property
    def strides(self):
        """Bytes from one element to the next along each axis; the first is the pitch."""
        return tuple([self.step[i] for i in range(self.ndim)])

    @property
    def dtype(self):
        """NumPy's name of the element type: ``"uint8"`` or ``"uint16"``."""
        return "uint8" if self.item_bytes == 1 else "uint16"

    @property
    def nbytes(self):
        """Bytes of the elements, without the padding of rows."""
        return self.size()

    @property
    def device(self):
        """``"cpu"`` or ``"cuda:N"``, N as this process counts its GPUs."""
        return "cpu" if self.gpu is None else f"cuda:{self.gpu.ordinal}"

    def _interface(self):
        return {
            "version": 3,
            "shape": self.shape,
            "strides": self.strides,
            "typestr": "|u1" if self.item_bytes == 1 else "<u2",
            "data": (<uintptr_t>self.address, bool(self.readonly)),
        }

    @property
    def __array_interface__(self):
        self.check_host(AttributeError)
        self.lend()
        return self._interface()

    @property
    def __cuda_array_interface__(self):
        # Consumers make their stream wait for the one named here. Where they then work they do not say, so the frame
        # goes back after all work of the context.
        if self.gpu is None:
            raise AttributeError("the frame is in host memory")
        cdef Owner owner = self.share()
        stream = <uintptr_t>owner.stream[0] if owner.streams else <uintptr_t>CF_CUDA_STREAM_LEGACY
        owner.use(NULL)
        self.lend()
        return {**self._interface(), "stream": stream}

    def __array__(self, dtype=None, copy=None):
        import numpy
        self.check_host(TypeError)
        return numpy.array(memoryview(self), dtype=dtype, copy=copy)

    def __getitem__(self, index):
        import numpy
        self.check_host(TypeError)
        return numpy.asarray(memoryview(self))[index]

    def __setitem__(self, index, value):
        import numpy
        self.check_host(TypeError)
        check_unmasked(value)
        numpy.asarray(memoryview(self))[index] = value

    def __bool__(self):
        """True, also after the release: a frame is a frame."""
        return True

    def __len__(self):
        self.check_exportable()
        return self.extent[0]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self.check_host(BufferError)
        if flags & PyBUF_WRITABLE and self.readonly:
            raise BufferError("the frame is read-only: other subscribers see the same memory")
        rows_first, columns_first = self.dense(False), self.dense(True)
        if ((flags & PyBUF_STRIDES != PyBUF_STRIDES and not rows_first)
                or (flags & PyBUF_C_CONTIGUOUS == PyBUF_C_CONTIGUOUS and not rows_first)
                or (flags & PyBUF_F_CONTIGUOUS == PyBUF_F_CONTIGUOUS and not columns_first)
                or (flags & PyBUF_ANY_CONTIGUOUS == PyBUF_ANY_CONTIGUOUS and not (rows_first or columns_first))):
            raise BufferError("rows are padded to the pitch; the consumer must accept strides, or take a copy "
                              "(numpy.array)")
        with cython.critical_section(self):
            self.check_exportable()
            self.buffers += 1
        buffer.buf = self.address
        buffer.obj = self
        buffer.len = self.size()
        buffer.itemsize = self.item_bytes
        buffer.readonly = self.readonly
        buffer.ndim = self.ndim if flags & PyBUF_ND else 0  # as NumPy has it: no dimensions without a shape
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = FORMAT_U8 if self.item_bytes == 1 else FORMAT_U16
        buffer.shape = self.extent if flags & PyBUF_ND else NULL
        buffer.strides = self.step if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        # On whatever thread the last array of it dies.
        with cython.critical_section(self):
            self.buffers -= 1
            self.disown()

    def is_contiguous(self):
        """Whether the rows follow each other without padding."""
        return self.dense(False)

    def copy_to_host(self):
        """A copy as a NumPy array, whatever memory the frame is in. On a GPU it waits for the copy."""
        import numpy
        self.check_exportable()
        if self.gpu is None:
            return numpy.array(memoryview(self))
        cdef Py_ssize_t rows = self.extent[0], pitch = self.step[0]
        if self.ndim == 3 and self.step[1] != self.extent[2] * self.item_bytes:
            rows, pitch = rows * self.extent[1], self.step[1]  # three planes below one another, of rows with padding
        array = numpy.empty(self.shape, self.dtype)
        cdef uintptr_t target = array.ctypes.data
        cdef Py_ssize_t row_bytes = self.size() // rows
        cdef void* stream = <void*>CF_CUDA_STREAM_LEGACY
        cdef Owner owner = self.share()
        cdef int result
        owner.use(stream)
        with nogil:  # the driver returns when the copy is over
            result = self.gpu.copy(<char*>target, row_bytes, False, self.address, pitch, True, row_bytes, rows, stream)
        check_driver(result, "copying the frame to the host failed")
        self.gpu.synchronize_stream(<uintptr_t>stream)
        return array

    def __reduce__(self):
        copy = "copy_to_host()" if self.gpu is not None else "numpy.array(it)" if self.ndim else "numpy.array(plane)"
        raise refusal(self, f"open cuframes.Subscriber(key) in the other process; {copy} is a copy that can be sent")

    def __dlpack_device__(self):
        """(1, 0) in host memory, (2, N) on a GPU."""
        return HOST_DEVICE if self.gpu is None else (DL_CUDA, self.gpu.ordinal)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over the same memory.

        On a GPU `stream` is the consumer's: None or 1 the legacy default stream, 2 the per-thread one, -1 no ordering,
        otherwise a handle. It is made to wait for the frame, and the frame goes back after what it has queued by the
        time the tensor dies. In host memory it must be None.

        A consumer that asks for version 1.0 or later gets a versioned capsule, flagged read-only for a subscriber's
        frame. The older capsule cannot say so: writing through it to a subscriber's frame ends the process (or, on a
        GPU, its context), since the memory is mapped read-only.
        """
        # Whatever can fail comes first, then the capsule, and the reference that its deleter gives back last.
        cdef Owner owner = self.share()
        device = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != device:
            raise BufferError(f"the frame is in the memory of DLPack device {device} and is not copied to {dl_device}; "
                              "use copy_to_host()")
        if copy:
            raise BufferError("views do not copy; copy the array that was made from one, or use copy_to_host()")
        if self.gpu is not None:
            owner.use(dlpack_stream(stream))
        elif stream is not None:
            raise ValueError("host memory has no stream; pass stream=None")
        cdef bint versioned = max_version is not None and max_version[0] >= 1
        cdef cf_dl_export* export = <cf_dl_export*>malloc(sizeof(cf_dl_export))
        if export == NULL:
            raise MemoryError()
        cdef cf_dl_tensor* tensor
        if versioned:
            export.managed.versioned.major = 1
            export.managed.versioned.minor = 0
            export.managed.versioned.flags = DL_READ_ONLY if self.readonly else 0
            export.managed.versioned.context = <void*>owner
            export.managed.versioned.deleter = delete_versioned
            tensor = &export.managed.versioned.tensor
        else:
            export.managed.legacy.context = <void*>owner
            export.managed.legacy.deleter = delete_legacy
            tensor = &export.managed.legacy.tensor
        tensor.data = self.address
        tensor.device.device_type = device[0]
        tensor.device.device_id = device[1]
        tensor.ndim = self.ndim
        tensor.type_code = 1
        tensor.type_bits = 8 * self.item_bytes
        tensor.type_lanes = 1
        tensor.shape = export.shape
        tensor.strides = export.strides
        tensor.byte_offset = 0
        for i in range(self.ndim):
            export.shape[i] = self.extent[i]
            export.strides[i] = self.step[i] // self.item_bytes
        try:
            if versioned:
                capsule = PyCapsule_New(export, "dltensor_versioned", drop_versioned)
            else:
                capsule = PyCapsule_New(export, "dltensor", drop_legacy)
        except BaseException:
            free(export)
            raise
        Py_INCREF(owner)
        return capsule


cdef class Plane(View):
    """One plane of a frame: rows of samples, ``pitch`` bytes apart."""

    @property
    def pitch(self):
        """Bytes from one row to the next."""
        return self.step[0]

    def __repr__(self):
        return f"<Plane {self.shape} {self.dtype}, pitch {self.pitch}{', read-only' if self.readonly else ''}>"
