"""Exports of frame memory without a copy: buffer protocol, array interface, DLPack.

A :class:`View` is an address with a shape and an owner. Everything that is exported from it keeps the view alive, the
view keeps its owner alive, and the owner is the hold on the ring's slot: the slot goes back when the last export dies.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc


cdef extern from "_dlpack.h":
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


# Declared here because Cython's own declarations of capsules mark the destructor as throwing.
cdef extern from "Python.h":
    object PyCapsule_New(void* pointer, const char* name, void (*destructor)(PyObject*) noexcept)
    void* PyCapsule_GetPointer(PyObject* capsule, const char* name)
    bint PyCapsule_IsValid(PyObject* capsule, const char* name)
    bint Py_IsInitialized() nogil


cdef tuple HOST_DEVICE = (1, 0)  # kDLCPU
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


cdef class View:
    """Memory of one frame or plane, as an array of unsigned integers.

    ``numpy.asarray``, ``memoryview``, ``torch.from_dlpack`` and their like take it without a copy. Subscribers' views
    are read-only. The slot they lie in stays held while any such array lives.
    """

    cdef int set(self, char* address, int ndim, const Py_ssize_t* extent, const Py_ssize_t* step, int item_bytes,
                 bint readonly, object owner) except -1:
        cdef int i
        self.address = address
        self.ndim = ndim
        for i in range(ndim):
            self.extent[i] = extent[i]
            self.step[i] = step[i]
        self.item_bytes = item_bytes
        self.readonly = readonly
        self.owner = owner
        return 0

    cdef int check_exportable(self) except -1:
        if self.owner is None:
            raise ValueError("the frame was released; take views before that, or keep the frame")
        if self.ndim == 0:
            raise BufferError("this frame is not one array; use its planes")
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
        cdef Py_ssize_t total = self.item_bytes if self.ndim else 0
        for i in range(self.ndim):
            total *= self.extent[i]
        return total

    @property
    def __array_interface__(self):
        self.check_exportable()
        return {
            "version": 3,
            "shape": self.shape,
            "strides": self.strides,
            "typestr": "|u1" if self.item_bytes == 1 else "<u2",
            "data": (<size_t>self.address, bool(self.readonly)),
        }

    def __array__(self, dtype=None, copy=None):
        import numpy
        return numpy.array(memoryview(self), dtype=dtype, copy=copy)

    def __getitem__(self, index):
        import numpy
        return numpy.asarray(memoryview(self))[index]

    def __setitem__(self, index, value):
        import numpy
        numpy.asarray(memoryview(self))[index] = value

    def __len__(self):
        self.check_exportable()
        return self.extent[0]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self.check_exportable()
        if flags & PyBUF_WRITABLE and self.readonly:
            raise BufferError("the frame is read-only: other subscribers see the same memory")
        if flags & PyBUF_STRIDES != PyBUF_STRIDES and not self.is_contiguous():
            raise BufferError("rows are padded to the pitch; the consumer must accept strides")
        buffer.buf = self.address
        buffer.obj = self
        buffer.len = self.nbytes
        buffer.itemsize = self.item_bytes
        buffer.readonly = self.readonly
        buffer.ndim = self.ndim
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = FORMAT_U8 if self.item_bytes == 1 else FORMAT_U16
        buffer.shape = self.extent if flags & PyBUF_ND else NULL
        buffer.strides = self.step if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def is_contiguous(self):
        """Whether the rows follow each other without padding."""
        cdef Py_ssize_t expected = self.item_bytes
        for i in range(self.ndim - 1, -1, -1):
            if self.step[i] != expected:
                return False
            expected *= self.extent[i]
        return True

    def __dlpack_device__(self):
        """(1, 0): host memory."""
        return HOST_DEVICE

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over the same memory.

        A consumer that asks for version 1.0 or later gets a versioned capsule, flagged read-only for a subscriber's
        frame. The older capsule cannot say so: writing through it to a subscriber's frame ends the process, since the
        memory is mapped read-only.
        """
        # Whatever can fail comes first, then the capsule, and the reference that its deleter gives back last.
        self.check_exportable()
        if stream is not None:
            raise ValueError("host memory has no stream; pass stream=None")
        if dl_device is not None and tuple(dl_device) != HOST_DEVICE:
            raise BufferError(f"the frame is in host memory (1, 0) and is not copied to device {dl_device}")
        if copy:
            raise BufferError("views do not copy; copy the array that was made from one")
        cdef bint versioned = max_version is not None and max_version[0] >= 1
        cdef cf_dl_export* export = <cf_dl_export*>malloc(sizeof(cf_dl_export))
        if export == NULL:
            raise MemoryError()
        cdef cf_dl_tensor* tensor
        if versioned:
            export.managed.versioned.major = 1
            export.managed.versioned.minor = 0
            export.managed.versioned.flags = DL_READ_ONLY if self.readonly else 0
            export.managed.versioned.context = <void*>self
            export.managed.versioned.deleter = delete_versioned
            tensor = &export.managed.versioned.tensor
        else:
            export.managed.legacy.context = <void*>self
            export.managed.legacy.deleter = delete_legacy
            tensor = &export.managed.legacy.tensor
        tensor.data = self.address
        tensor.device.device_type = 1
        tensor.device.device_id = 0
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
        Py_INCREF(self)
        return capsule


cdef class Plane(View):
    """One plane of a frame: rows of samples, ``pitch`` bytes apart."""

    @property
    def pitch(self):
        """Bytes from one row to the next."""
        return self.step[0]

    def __repr__(self):
        return f"<Plane {self.shape} {self.dtype}, pitch {self.pitch}{', read-only' if self.readonly else ''}>"
