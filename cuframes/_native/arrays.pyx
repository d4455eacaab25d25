"""Array-likes as rows of planes: finds the bytes of a frame that is to be published. ``device_arrays`` does the same
for arrays on a GPU.

An array is checked completely here, before a slot of the ring is claimed. :func:`look` is the only function that
interprets a ``Py_buffer``. Checking copies nothing, except for arrays whose rows are not contiguous; afterwards
:func:`copy_frame` copies the rows into a slot.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_STRIDES, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uintptr_t

from cuframes._native.layout cimport FrameLayout, Geometry, cf_copier
from cuframes._shm cimport cf_now_ns

from cuframes.codecs import nanoseconds
from cuframes.formats import ALIASES


cdef extern from "cuframes/copy.h" nogil:
    enum:
        CF_COPY_LARGE
    bint cf_copier_choose(const cf_copier* c)
    void cf_copier_note(cf_copier* c, bint past, int64_t took_ns)
    void cf_gather(char* out, const char* src, int ndim, const Py_ssize_t* extent, const Py_ssize_t* step,
                   size_t item_bytes)


cdef Py_ssize_t LARGE = 64 * 1024  # copies of at least this size release the GIL; getting it back can take a while


# ---- the contents of a buffer ---------------------------------------------------------------------------------------

cdef inline int sample_bytes(const Py_buffer* b) noexcept:
    """1 or 2 for integers of this many bytes in native byte order; 0 for anything else."""
    cdef const char* f = b.format
    cdef bint swapped = False
    cdef int found = 0
    if f == NULL:  # means "B"
        return b.itemsize == 1
    if f[0] in (c"@", c"=", c"<", c"|", c">", c"!"):
        swapped = f[0] in (c">", c"!")
        f += 1
    if f[0] in (c"B", c"b", c"c"):
        found = 1
    elif f[0] in (c"H", c"h") and not swapped:
        found = 2
    return found if found == b.itemsize and f[1] == 0 else 0  # ctypes uses "B" for a union of any size


cdef inline int look(const Py_buffer* b, Strided* found) noexcept:
    """Describe a buffer that was requested with PyBUF_STRIDES | PyBUF_FORMAT. Returns 0, or the code of a problem.

    Exporters may omit what follows from the rest: ctypes omits the strides, others the shape if there is one dimension.
    """
    cdef Py_ssize_t step = b.itemsize
    cdef int i
    found.item_bytes = sample_bytes(b)
    if not found.item_bytes:
        return NO_SAMPLES
    if not 0 <= b.ndim <= MAX_NDIM or (b.ndim > 1 and b.shape == NULL):
        return NO_SHAPE
    found.address = <const char*>b.buf
    found.ndim = b.ndim
    for i in range(b.ndim - 1, -1, -1):
        if b.suboffsets != NULL and b.suboffsets[i] >= 0:
            return INDIRECT
        found.extent[i] = b.len // b.itemsize if b.shape == NULL else b.shape[i]
        if found.extent[i] < 0:
            return NO_SHAPE
        found.step[i] = step if b.strides == NULL else b.strides[i]
        step *= found.extent[i]
    return 0


cdef wrong_buffer(FrameLayout layout, const Py_buffer* b, int problem):
    """The exception for a problem that :func:`look` found."""
    if problem == NO_SAMPLES:
        form = "B" if b.format == NULL else (<bytes>b.format).decode("utf-8", "replace")
        return wrong_sample(layout, f"format {form!r}, {b.itemsize} bytes each")
    if problem == INDIRECT:
        return BufferError("the array's rows are reached through pointers (suboffsets); copy it first (numpy.array)")
    return ValueError(f"a frame has 1 to 3 dimensions, not {b.ndim}")


cdef wrong_sample(FrameLayout layout, str found):
    want = f"uint{8 * layout.item_bytes}"
    return TypeError(f"{layout.format} samples are {want}, but the array has elements of {found}; convert it first "
                     f"(.astype({want!r}))")


cdef inline bint rows_contiguous(const Strided* a) noexcept:
    """Whether each row (all dimensions but the first) is contiguous in C order."""
    cdef Py_ssize_t expected = a.item_bytes
    cdef int i
    for i in range(a.ndim - 1, 0, -1):
        if a.step[i] != expected and a.extent[i] != 1:
            return False
        expected *= a.extent[i]
    return True


cdef inline Py_ssize_t row_bytes(const Strided* a) noexcept:
    cdef Py_ssize_t total = a.item_bytes
    cdef int i
    for i in range(1, a.ndim):
        total *= a.extent[i]
    return total


cdef inline Py_ssize_t pitch(const Strided* a) noexcept:
    """Bytes from one row to the next. For a single row, the bytes of that row."""
    return a.step[0] if a.extent[0] > 1 else row_bytes(a)


cdef inline bint contiguous(const Strided* a) noexcept:
    return rows_contiguous(a) and (a.ndim == 0 or pitch(a) == row_bytes(a))


cdef inline bint has_shape(const Strided* a, int ndim, const Py_ssize_t* extent) noexcept:
    cdef int i
    if a.ndim != ndim:
        return False
    for i in range(ndim):
        if a.extent[i] != extent[i]:
            return False
    return True


cdef bint is_short_frame(object src, Py_ssize_t frame_bytes) except -1:
    """Whether `src` is plain bytes that are not a whole frame."""
    cdef Py_buffer buffer
    cdef Strided found
    cdef bint part
    if not PyObject_CheckBuffer(src) or hasattr(src, "planes"):
        return False
    check_unmasked(src)
    PyObject_GetBuffer(src, &buffer, PyBUF_STRIDES | PyBUF_FORMAT)
    part = look(&buffer, &found) == 0 and found.item_bytes == 1 and found.ndim == 1 and contiguous(&found)
    part = part and found.extent[0] != frame_bytes
    PyBuffer_Release(&buffer)
    return part


# ---- the location of arrays -----------------------------------------------------------------------------------------

cdef int check_unmasked(object array) except -1:
    """Refuse NumPy's masked arrays: their buffer contains the masked elements as if there were no mask."""
    if hasattr(array, "mask") and hasattr(array, "filled"):
        raise TypeError("a masked array has no pixels where it is masked; fill them (array.filled(0)), or ignore the "
                        "mask (array.data)")
    return 0


cdef class Buffer:
    """Keeps an object's buffer exported."""

    cdef Py_buffer view

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef class Array:
    @property
    def shape(self):
        return tuple([self.at.extent[i] for i in range(self.at.ndim)])


cdef Array host_array(FrameLayout layout, object source):
    """An array in host memory, through the buffer protocol."""
    cdef Buffer keep = Buffer.__new__(Buffer)
    cdef Array array = Array.__new__(Array)
    cdef int problem
    PyObject_GetBuffer(source, &keep.view, PyBUF_STRIDES | PyBUF_FORMAT)
    problem = look(&keep.view, &array.at)
    if problem:
        raise wrong_buffer(layout, &keep.view, problem)
    array.keep = keep
    return array


cdef Array gathered(Array scattered):
    """A contiguous copy of a host array."""
    cdef Array array = Array.__new__(Array)
    cdef Strided* a = &array.at
    cdef Strided* s = &scattered.at
    cdef Py_ssize_t step = s.item_bytes
    cdef char* out
    cdef int i
    a[0] = s[0]
    for i in range(a.ndim - 1, -1, -1):
        a.step[i] = step
        step *= a.extent[i]
    array.keep = PyBytes_FromStringAndSize(NULL, step)
    out = PyBytes_AsString(array.keep)
    if step < LARGE:
        cf_gather(out, s.address, s.ndim, s.extent, s.step, s.item_bytes)
    else:
        with nogil:
            cf_gather(out, s.address, s.ndim, s.extent, s.step, s.item_bytes)
    a.address = out
    return array


cdef tuple device_of(object array):
    """(DLPack device type, ordinal) of an array that reports its device, otherwise None."""
    ask = getattr(array, "__dlpack_device__", None)
    if ask is None:
        return None
    kind, ordinal = ask()
    return int(kind), int(ordinal)


# How a whole frame lies in an array.
cdef enum:
    MISFIT     # it is not a whole frame
    SCATTERED  # the shape is right, but the rows are not contiguous
    TIGHT      # without padding
    PITCHED    # with one pitch for all planes, which may be negative


cdef inline int fit(FrameLayout layout, const Strided* a) noexcept:
    if a.ndim == 1:  # the frame's samples, or its bytes
        if a.item_bytes > layout.item_bytes or a.extent[0] != layout.tight_bytes // a.item_bytes:
            return MISFIT
    elif a.item_bytes != layout.item_bytes or not has_shape(a, layout.array_ndim, layout.array_extent):
        return MISFIT
    if contiguous(a):
        return TIGHT
    return PITCHED if a.ndim == layout.plane[0].ndim and layout.one_pitch and rows_contiguous(a) else SCATTERED


cdef inline void lay_out(FrameLayout layout, const Strided* a, int how, bint on_gpu, Rows* rows) noexcept:
    """Set `rows` for planes that lie below one another in one array, TIGHT or PITCHED."""
    cdef const char* address = a.address
    cdef int i
    for i in range(layout.planes):
        rows[i].address = address
        rows[i].pitch = a.step[0] if how == PITCHED else layout.plane[i].row_bytes
        rows[i].on_gpu = on_gpu
        address += rows[i].pitch * layout.plane[i].rows


cdef bint plain_rows(FrameLayout layout, object src, Py_buffer* buffer, Rows* rows) except -1:
    """Find the rows in the usual case, without creating an object: a host array of the frame's shape, or its bytes.

    True: the caller must release `buffer`. False: the caller must use :func:`rows_of`, which handles all cases and
    reports errors. The fast path serves only the type that :func:`rows_of` last found to be a plain buffer (not a
    video frame, not on a GPU).
    """
    cdef Strided found
    cdef int how
    if layout.plain_type is not type(src):
        return False
    PyObject_GetBuffer(src, buffer, PyBUF_STRIDES | PyBUF_FORMAT)
    how = MISFIT if look(buffer, &found) else fit(layout, &found)
    if how < TIGHT:
        PyBuffer_Release(buffer)
        return False
    lay_out(layout, &found, how, False, rows)
    return True


cdef class FrameRows:
    """The rows of each plane of a frame that is to be published. Keeps the memory of the rows alive."""

    cdef int read(self, object src) except -1:
        """Find the rows of an array-like, which must match `layout`."""
        self.keep = []
        if hasattr(src, "planes") and hasattr(src, "format"):
            return self.video(src)
        if isinstance(src, (tuple, list)):
            return self.all_planes(src)
        return self.frame(src)

    cdef Array find(self, object array):
        """An array-like as an Array, in whichever memory it is."""
        check_unmasked(array)
        where = device_of(array)
        by_interface = where is None and getattr(array, "__cuda_array_interface__", None) is not None
        if by_interface or (where is not None and where[0] in (DL_CUDA, DL_CUDA_MANAGED)):
            return self.find_on_device(array, where)
        return host_array(self.layout, array if PyObject_CheckBuffer(array) else numpy_array(array, where))

    cdef Array find_on_device(self, object array, tuple where):
        """An array in device memory. `where` is its DLPack device, or None if it has only the CUDA array interface."""
        raise TypeError("the array is in device memory, but this publisher shares host memory; copy the array to the "
                        "host first (.cpu(), .get()), or publish with memory='cuda'")

    cdef Array with_contiguous_rows(self, Array found):
        """A copy of a host array with contiguous rows. `found` itself is not changed."""
        if found.on_gpu:
            raise ValueError("the rows of a device array must be contiguous; make the array contiguous first "
                             "(.contiguous(), cupy.ascontiguousarray)")
        return gathered(found)

    cdef int add(self, Array found) except -1:
        """Note that rows of this array belong to the frame."""
        self.keep.append(found)
        if found.on_gpu:
            self.on_gpu = True
        else:
            self.on_host = True
        return 0

    cdef int plane(self, int i, object array) except -1:
        """Plane i from an array of the plane's own shape."""
        cdef Array found = self.find(array)
        cdef Geometry* g = &self.layout.plane[i]
        if found.at.item_bytes != self.layout.item_bytes:
            raise wrong_sample(self.layout, f"uint{8 * found.at.item_bytes}")
        if not has_shape(&found.at, g.ndim, g.extent):
            raise ValueError(f"plane {i} of {self.layout.format} has shape {self.layout.shape.planes[i].shape}, "
                             f"not {found.shape}")
        if not rows_contiguous(&found.at) or (found.on_gpu and pitch(&found.at) < g.row_bytes):
            found = self.with_contiguous_rows(found)
        self.rows[i].address = found.at.address
        self.rows[i].pitch = pitch(&found.at)
        self.rows[i].on_gpu = found.on_gpu
        return self.add(found)

    cdef int frame(self, object array) except -1:
        """All planes from one array: of the frame's array_shape, or flat with the frame's samples or bytes, unpadded.
        """
        cdef FrameLayout layout = self.layout
        cdef Array found = self.find(array)
        cdef int how = fit(layout, &found.at)
        if how == MISFIT:
            if found.at.item_bytes != layout.item_bytes and (found.at.ndim != 1 or layout.item_bytes == 1):
                raise wrong_sample(layout, f"uint{8 * found.at.item_bytes}")
            raise ValueError(
                f"a frame in {layout.format} of {layout.shape.width}x{layout.shape.height} is an array of shape "
                f"{layout.shape.array_shape}, {layout.tight_bytes} bytes, or {layout.planes} planes, "
                f"not an array of shape {found.shape}")
        if how == SCATTERED or (found.on_gpu and how == PITCHED and found.at.step[0] < layout.plane[0].row_bytes):
            found = self.with_contiguous_rows(found)
            how = TIGHT
        lay_out(layout, &found.at, how, found.on_gpu, self.rows)
        if not found.on_gpu and PyObject_CheckBuffer(array):
            layout.plain_type = type(array)
        return self.add(found)

    cdef int video(self, object src) except -1:
        """All planes of an object that has ``planes``: PyAV's VideoFrame, or a cuframes frame."""
        layout = self.layout
        mine = layout.shape
        name = getattr(src.format, "name", src.format)
        if name == "cuda":  # PyAV, decoded on the GPU: sw_format is the format of the samples
            name = getattr(getattr(src, "sw_format", None), "name", name)
        planes = src.planes
        if layout.format == "rgbp" and name == "gbrp":  # FFmpeg's planar RGB, whose planes are G, B, R
            planes, name = (planes[2], planes[0], planes[1]), "rgbp"
        if ALIASES.get(name, name) != layout.format or (src.width, src.height) != (mine.width, mine.height):
            remedy = "frame.reformat"
            if layout.format == "v210":  # which FFmpeg has as a codec, not as a format of frames
                remedy += " to yuv422p10le, then the encoder v210, whose packet is a frame"
            raise ValueError(f"this publisher shares {layout.format} {mine.width}x{mine.height}, but the frame is "
                             f"{name} {src.width}x{src.height}; convert it first (PyAV: {remedy})")
        return self.all_planes(planes)

    cdef int all_planes(self, object planes) except -1:
        cdef int i
        if len(planes) != self.layout.planes:
            raise ValueError(f"{self.layout.format} has {self.layout.planes} planes, not {len(planes)}")
        for i in range(self.layout.planes):
            plane = planes[i]
            if hasattr(plane, "line_size") and (device_of(plane) or (DL_HOST, 0))[0] == DL_HOST:
                self.lines(i, plane)
            else:
                self.plane(i, plane)
        return 0

    cdef int lines(self, int i, object plane) except -1:
        """Plane i from a plane of PyAV: bytes, for any size of sample, in rows of `line_size`.

        A negative line_size means that the picture is upside down in memory: its first row is the last in the buffer.
        """
        cdef Geometry* g = &self.layout.plane[i]
        cdef Array found = host_bytes(plane)
        cdef Py_ssize_t pitch = plane.line_size, size = found.at.extent[0], others = g.rows - 1, first = 0
        if pitch < 0:
            first = -pitch * others
            top = getattr(plane, "buffer_ptr", None)  # where PyAV says that the first row is
            if top is not None and top != <uintptr_t>found.at.address + first:
                # In older versions the buffer of such a plane begins at the first row and extends beyond the frame.
                raise ValueError(f"plane {i} has a negative line size ({pitch}), and this version of PyAV does not "
                                 "report where its rows are; update PyAV")
        if abs(pitch) < g.row_bytes or size < abs(pitch) * others + g.row_bytes:
            raise ValueError(f"plane {i} has {size} bytes in lines of {pitch} bytes, too few for {g.rows} rows of "
                             f"{g.row_bytes} bytes")
        self.rows[i].address = found.at.address + first
        self.rows[i].pitch = pitch
        self.rows[i].on_gpu = False
        return self.add(found)

    cdef int part_from(self, const char* target) except -1:
        """Move rows that overlap the frame at `target`, the destination of the copy, to a temporary copy."""
        cdef Array found
        cdef Geometry* g
        cdef Rows* rows
        cdef const char* low
        cdef const char* high
        cdef int i
        for i in range(self.layout.planes):
            g, rows = &self.layout.plane[i], &self.rows[i]
            low = high = rows.address
            if rows.pitch < 0:
                low += rows.pitch * (g.rows - 1)
            else:
                high += rows.pitch * (g.rows - 1)
            if rows.on_gpu or low >= target + self.layout.nbytes or high + g.row_bytes <= target:
                continue
            found = Array.__new__(Array)
            found.at.address = rows.address
            found.at.ndim, found.at.item_bytes = 2, 1
            found.at.extent[0], found.at.step[0] = g.rows, rows.pitch
            found.at.extent[1], found.at.step[1] = g.row_bytes, 1
            found = gathered(found)
            rows.address, rows.pitch = found.at.address, g.row_bytes
            self.add(found)
        return 0


cdef object numpy_array(object array, object where):
    """An array-like without a buffer as a NumPy array, which has one."""
    import numpy
    if where is None or hasattr(array, "__array__") or hasattr(array, "__array_interface__"):
        return numpy.asarray(array)
    if where[0] not in (DL_HOST, DL_CUDA_HOST):
        raise TypeError(f"the array is on a device of DLPack type {where[0]}, which cuframes cannot read; copy it to "
                        "the host first")
    return numpy.from_dlpack(array)


cdef Array host_bytes(object plane):
    """A plane as flat bytes, for any size of sample."""
    cdef Buffer keep = Buffer.__new__(Buffer)
    cdef Array array = Array.__new__(Array)
    PyObject_GetBuffer(plane, &keep.view, PyBUF_SIMPLE)
    array.at.address = <const char*>keep.view.buf
    array.at.ndim = 1
    array.at.item_bytes = 1
    array.at.extent[0] = keep.view.len
    array.at.step[0] = 1
    array.keep = keep
    return array


cdef FrameRows rows_of(FrameLayout layout, object src):
    """Find the rows of an array-like in host memory, or raise. The rows are not copied yet."""
    cdef FrameRows source = FrameRows.__new__(FrameRows)
    source.layout = layout
    source.read(src)
    return source


cdef object pts_of(object src):
    """Presentation time in nanoseconds of a frame, one of ours or PyAV's; None if it has none."""
    if not (hasattr(src, "planes") and hasattr(src, "format")):
        return None
    if hasattr(src, "pts_ns"):
        pts_ns = src.pts_ns
    else:
        pts_ns = nanoseconds(getattr(src, "pts", None), getattr(src, "time_base", None))
    return pts_ns if pts_ns is not None and -2**63 <= pts_ns < 2**63 else None


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
