"""Frame memory as arrays of other libraries, without a copy: buffer protocol, DLPack, and the array interfaces of
NumPy and CUDA.

A :class:`View` is an address with a shape and an owner, which is the hold on the ring's slot. Every exported array
keeps the owner alive, so the slot goes back when the last one is gone, even if the frame was released earlier.
"""

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

from cuframes._core cimport Owner
from cuframes._native.arrays cimport cf_copy_rows, check_unmasked
from cuframes._native.cuda cimport CF_CUDA_STREAM_LEGACY, check_driver
from cuframes._native.dlpack cimport *

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
    # A consumer may call the deleter on a thread without the GIL, and even after the interpreter has ended.
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object>context)


cdef void delete_legacy(cf_dl_managed* managed) noexcept:
    drop_context(managed.context)
    free(managed)


cdef void delete_versioned(cf_dl_versioned* managed) noexcept:
    drop_context(managed.context)
    free(managed)


# A capsule that was never consumed still has its original name. A consumer renames it and calls the deleter itself.
cdef void drop_legacy(PyObject* capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        delete_legacy(<cf_dl_managed*>PyCapsule_GetPointer(capsule, "dltensor"))


cdef void drop_versioned(PyObject* capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        delete_versioned(<cf_dl_versioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned"))


cdef void* dlpack_stream(object stream) except? NULL:
    """The stream of a DLPack consumer on a GPU, by the rules of the array API standard. NULL: the consumer asks for no
    ordering.
    """
    if stream is None:
        return <void*>CF_CUDA_STREAM_LEGACY
    if not isinstance(stream, Integral) or isinstance(stream, bool):
        raise TypeError(f"a DLPack stream is None or an int, not {stream!r}")
    if stream == -1:
        return NULL
    if stream <= 0:
        raise ValueError(f"stream={stream} is ambiguous or invalid in DLPack; pass 1 (legacy default), 2 (per-thread "
                         "default), -1 (no ordering) or a handle")
    return <void*><uintptr_t>int(stream)


cdef class View:
    """The memory of one frame or plane, as an array of unsigned integers.

    For host memory, ``numpy.asarray``, ``memoryview``, ``torch.from_dlpack`` and similar functions make an array
    without a copy. For GPU memory, ``torch.from_dlpack``, ``cupy.from_dlpack``, ``cupy.asarray`` and Numba do so, and
    their work is ordered after the frame's own. The views of a subscriber are read-only. The slot stays held as long as
    any such array is alive.
    """

    cdef int set(self, char* address, int axes, const Py_ssize_t* extent, const Py_ssize_t* step, int item_bytes,
                 bint readonly, Owner owner) except -1:
        cdef int i
        self.address = address
        self.axes = axes
        for i in range(axes):
            self.extent[i] = extent[i]
            self.step[i] = step[i]
        self.item_bytes = item_bytes
        self.readonly = readonly
        self.owner = owner
        self.gpu = owner.memory().device
        return 0

    cdef void drop(self) noexcept:
        """Release this view's claim on the memory and refuse further exports. Earlier exports keep the memory."""
        with cython.critical_section(self):
            self.dropped = True
            self.disown()

    cdef void disown(self) noexcept:
        """Drop the owner when no exported buffer is alive and no array interface was used. (The consumers of an array
        interface keep this view alive, not the owner.)
        """
        if self.dropped and not self.buffers and not self.lent:
            self.owner = None

    cdef Owner share(self):
        """The owner, as a reference for an export. Safe against another thread that drops the view meanwhile."""
        self.check_exportable()
        return self.share_held()

    cdef Owner share_held(self):
        """The same, also for a frame whose planes are not one array."""
        cdef Owner owner
        with cython.critical_section(self):
            self.check_held()
            owner = self.owner
        if owner is None:
            raise ValueError("the frame has no memory yet: a writable frame is valid inside its with block only")
        return owner

    cdef int lend(self) except -1:
        """Note that an array interface is about to be handed out."""
        with cython.critical_section(self):
            self.check_exportable()
            self.lent = True
        return 0

    cdef Py_ssize_t size(self) noexcept:
        """Total bytes of the elements."""
        cdef Py_ssize_t total = self.item_bytes if self.axes else 0
        cdef int i
        for i in range(self.axes):
            total *= self.extent[i]
        return total

    cdef bint dense(self, bint fortran) noexcept:
        """Whether the elements lie without gaps: in C order, or in Fortran order if `fortran`."""
        cdef Py_ssize_t expected = self.item_bytes
        cdef int i, axis
        for i in range(self.axes):
            axis = i if fortran else self.axes - 1 - i
            if self.step[axis] != expected and self.extent[axis] != 1:
                return False
            expected *= self.extent[axis]
        return True

    cdef int check_held(self) except -1:
        if self.dropped:
            raise ValueError("the frame was released; take views before the release, or keep the frame")
        return 0

    cdef int check_exportable(self) except -1:
        self.check_held()
        if self.axes == 0:
            raise BufferError("at this width the frame has padding between its planes, so its memory is not one array; "
                              "use frame.planes, or a copy: frame.to_ndarray(), frame.copy_to_host()")
        return 0

    cdef int check_host(self, object error) except -1:
        if self.gpu is not None:
            raise error(f"the frame is in device memory (cuda:{self.gpu.ordinal}): use torch.from_dlpack, cupy.asarray "
                        "or similar, or copy_to_host()")
        return 0

    @property
    def shape(self):
        """Elements along each axis: (rows, columns) or (rows, columns, components)."""
        return self.full_shape()

    @property
    def ndim(self):
        """Number of axes."""
        return len(self.full_shape())

    @property
    def strides(self):
        """Bytes from one element to the next along each axis. The first one is the pitch. Empty if the frame's planes
        do not lie in memory as one array.
        """
        return tuple([self.step[i] for i in range(self.axes)])

    @property
    def dtype(self):
        """NumPy's name for the element type: ``"uint8"`` or ``"uint16"``."""
        return "uint8" if self.item_bytes == 1 else "uint16"

    @property
    def nbytes(self):
        """Total bytes of the elements, without the padding of rows."""
        total = self.item_bytes
        for extent in self.full_shape():
            total *= extent
        return total

    @property
    def device(self):
        """``"cpu"`` or ``"cuda:N"``, where N is the number of the GPU in this process."""
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
        if self.axes == 0 and not self.dropped:
            raise AttributeError("the planes of this frame are not one array; numpy.asarray(frame) is a copy")
        self.lend()
        return self._interface()

    @property
    def __cuda_array_interface__(self):
        # A consumer makes its own stream wait for the stream named here, but does not report which stream that is. The
        # frame therefore goes back after all work of the context.
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
        if self.axes or not self.readonly:
            return numpy.array(memoryview(self), dtype=dtype, copy=copy)
        if copy is False:
            raise ValueError("at this width the frame has padding between its planes, so an array of it is a copy; "
                             "leave copy=False out, or use frame.planes or frame.to_ndarray()")
        return numpy.asarray(self.packed(), dtype)

    cdef object as_array(self):
        """As ``numpy.asarray`` makes it."""
        import numpy
        self.check_host(TypeError)
        # To write to a copy would be in vain, so that what is writable is never copied.
        return numpy.asarray(memoryview(self)) if self.axes or not self.readonly else self.packed()

    def __getitem__(self, index):
        return self.as_array()[index]

    def __setitem__(self, index, value):
        import numpy
        self.check_host(TypeError)
        check_unmasked(value)
        numpy.asarray(memoryview(self))[index] = value

    def __bool__(self):
        """Always True, also after the release: the truth value does not depend on pixels."""
        return True

    def __len__(self):
        self.check_held()
        return self.full_shape()[0]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self.check_host(BufferError)
        if flags & PyBUF_WRITABLE and self.readonly:
            raise BufferError("the frame is read-only, since other subscribers see the same memory; copy it first "
                              "(numpy.array)")
        rows_first, columns_first = self.dense(False), self.dense(True)
        if ((flags & PyBUF_STRIDES != PyBUF_STRIDES and not rows_first)
                or (flags & PyBUF_C_CONTIGUOUS == PyBUF_C_CONTIGUOUS and not rows_first)
                or (flags & PyBUF_F_CONTIGUOUS == PyBUF_F_CONTIGUOUS and not columns_first)
                or (flags & PyBUF_ANY_CONTIGUOUS == PyBUF_ANY_CONTIGUOUS and not (rows_first or columns_first))):
            raise BufferError("rows are padded to the pitch; use a consumer that accepts strides, or make a copy "
                              "(numpy.array)")
        with cython.critical_section(self):
            self.check_exportable()
            self.buffers += 1
        buffer.buf = self.address
        buffer.obj = self
        buffer.len = self.size()
        buffer.itemsize = self.item_bytes
        buffer.readonly = self.readonly
        buffer.ndim = self.axes if flags & PyBUF_ND else 0  # like NumPy: no dimensions without a shape
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = FORMAT_U8 if self.item_bytes == 1 else FORMAT_U16
        buffer.shape = self.extent if flags & PyBUF_ND else NULL
        buffer.strides = self.step if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        # May run on any thread: the one on which the last array of this buffer is destroyed.
        with cython.critical_section(self):
            self.buffers -= 1
            self.disown()

    def is_contiguous(self):
        """Whether the rows are contiguous, without padding."""
        return self.axes > 0 and self.dense(False)

    def copy_to_host(self):
        """A copy as a NumPy array without padding, in the frame's :attr:`shape`, for host and GPU memory alike and for
        every width. For a frame on a GPU, waits for the copy.
        """
        self.check_held()
        return self.packed()

    def tobytes(self):
        """The samples without padding, copied, in the order of :meth:`copy_to_host`."""
        return self.copy_to_host().tobytes()

    cdef tuple full_shape(self):
        return tuple([self.extent[i] for i in range(self.axes)])

    cdef object packed(self):
        """A copy without padding, as a NumPy array in host memory."""
        import numpy
        if self.gpu is None:
            return numpy.array(memoryview(self))
        cdef Py_ssize_t rows = self.extent[0], pitch = self.step[0]
        if self.axes == 3 and self.step[1] != self.extent[2] * self.item_bytes:
            rows, pitch = rows * self.extent[1], self.step[1]  # three planes below one another, with padded rows
        array = numpy.empty(self.full_shape(), self.dtype)
        cdef uintptr_t target = array.ctypes.data
        self.pack(<char*>target, self.address, pitch, self.size() // rows, rows)
        return array

    cdef int pack(self, char* target, char* source, Py_ssize_t pitch, Py_ssize_t row_bytes, Py_ssize_t rows) except -1:
        """Copy rows to host memory, without their padding."""
        cdef void* stream = <void*>CF_CUDA_STREAM_LEGACY
        cdef Owner owner = self.share_held()
        cdef int result
        if self.gpu is None:
            with nogil:
                cf_copy_rows(target, row_bytes, source, pitch, row_bytes, rows, False)
            return 0
        owner.use(stream)
        with nogil:  # the driver may return only when the copy is done
            result = self.gpu.copy(target, row_bytes, False, source, pitch, True, row_bytes, rows, stream)
        check_driver(result, "copying the frame to the host failed")
        self.gpu.synchronize_stream(<uintptr_t>stream)
        return 0

    def __reduce__(self):
        copy = "copy_to_host()" if self.gpu is not None else "numpy.array(it)"
        raise refusal(self, f"open cuframes.Subscriber(key) in the other process, or send a copy: {copy}")

    def __dlpack_device__(self):
        """(1, 0) in host memory, (2, N) on a GPU."""
        return HOST_DEVICE if self.gpu is None else (DL_CUDA, self.gpu.ordinal)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over the same memory.

        On a GPU, `stream` is the consumer's stream: None or 1 for the legacy default stream, 2 for the per-thread
        default stream, -1 for no ordering, otherwise a handle. The stream is made to wait for the frame, and the frame
        goes back after all work that the stream has queued when the tensor is destroyed. In host memory `stream` must
        be None.

        A consumer that asks for version 1.0 or later gets a versioned capsule, which is flagged read-only for a
        subscriber's frame. The older kind of capsule has no such flag. Since a subscriber's memory is mapped read-only,
        writing through an unflagged capsule ends the process (or, on a GPU, its context).
        """
        # In this order: everything that can fail, then the capsule, and last the reference that its deleter drops.
        cdef Owner owner = self.share()
        device = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != device:
            raise BufferError(f"the frame is in the memory of DLPack device {device}, and a view does not copy it to "
                              f"{dl_device}; use copy_to_host()")
        if copy:
            raise BufferError("a view cannot be exported as a copy; copy the resulting array, or use copy_to_host()")
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
        tensor.ndim = self.axes
        tensor.type_code = 1
        tensor.type_bits = 8 * self.item_bytes
        tensor.type_lanes = 1
        tensor.shape = export.shape
        tensor.strides = export.strides
        tensor.byte_offset = 0
        for i in range(self.axes):
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
