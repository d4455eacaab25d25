"""Frames: what a subscriber takes, what a publisher fills, and copying an array-like into the ring."""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from libc.stdint cimport int64_t

from cuframes._core cimport FrameReader, FrameWriter, Hold
from cuframes._ring cimport cf_copy_rows, cf_reader_valid
from cuframes._views cimport Plane, View

import operator

from cuframes.errors import Overwritten
from cuframes.formats import ALIASES


cdef int fill_geometry(Geometry* g, object plane, int item_bytes) except -1:
    cdef int i
    g.offset = plane.offset
    g.ndim = len(plane.shape)
    for i in range(g.ndim):
        g.extent[i] = plane.shape[i]
        g.step[i] = plane.strides[i]
    g.rows = g.extent[0]
    g.row_bytes = g.extent[1] * (g.extent[2] if g.ndim == 3 else 1) * item_bytes
    return 0


cdef class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` in a form that costs nothing per frame."""

    def __cinit__(self, shape):
        cdef int i
        self.shape = shape
        self.format = shape.format.name
        self.planes = len(shape.planes)
        self.item_bytes = shape.format.itemsize
        self.nbytes = shape.nbytes
        for i in range(self.planes):
            fill_geometry(&self.plane[i], shape.planes[i], self.item_bytes)
            self.tight_bytes += self.plane[i].row_bytes * self.plane[i].rows
        self.matrix.ndim = 0
        if shape.matrix is not None:
            fill_geometry(&self.matrix, shape.matrix, self.item_bytes)


cdef int aim(View view, FrameLayout layout, char* address, bint readonly, object owner) except -1:
    """Make `view` the frame at `address` as one array."""
    cdef Geometry* g = &layout.matrix
    return view.set(address, g.ndim, g.extent, g.step, layout.item_bytes, readonly, owner)


cdef tuple planes_of(FrameLayout layout, char* address, bint readonly, object owner):
    cdef Plane plane
    cdef int i
    planes = []
    for i in range(layout.planes):
        plane = Plane.__new__(Plane)
        plane.set(address + layout.plane[i].offset, layout.plane[i].ndim, layout.plane[i].extent, layout.plane[i].step,
                  layout.item_bytes, readonly, owner)
        planes.append(plane)
    return tuple(planes)


cdef class Frame(View):
    """A frame in the ring, read-only, in place.

    It cannot be overwritten while this object, one of its planes, or any array or tensor made from them lives.
    ``release`` (or leaving a ``with`` block) gives it up early; the slot goes back when the last array of it has died
    as well.
    """

    @property
    def seq(self):
        """Sequence number: unique in one publisher's life, growing, with gaps where slots were held."""
        return self.taken.seq

    @property
    def frame_no(self):
        """Dense number of this frame, from 1: its distance to another frame's counts the frames between them."""
        return self.taken.frame_no

    @property
    def epoch(self):
        """Random number of the publisher's incarnation; ``seq`` and ``frame_no`` start anew with it."""
        return self.reader.epoch

    @property
    def pts_ns(self):
        """Presentation time in nanoseconds, as the publisher gave it (CLOCK_MONOTONIC at publish when it gave none)."""
        return self.taken.pts_ns

    @property
    def published_ns(self):
        """When it was published: CLOCK_MONOTONIC of this host, nanoseconds. 0 if the publisher does not say."""
        return self.taken.published_ns

    @property
    def lost(self):
        """Frames overwritten between the previously taken one and this (mode ``ordered``)."""
        return self.taken.lost

    @property
    def skipped(self):
        """Frames passed over between the previously taken one and this (mode ``newest``)."""
        return self.taken.skipped

    @property
    def format(self):
        """Pixel format, FFmpeg's name."""
        return self.layout.format

    @property
    def width(self):
        """Pixels."""
        return self.layout.shape.width

    @property
    def height(self):
        """Pixels."""
        return self.layout.shape.height

    @property
    def device(self):
        """``"cpu"``: the frame is in host memory."""
        return "cpu"

    @property
    def planes(self):
        """The planes, zero copy, as a tuple of :class:`Plane`."""
        self.check_held()
        if self.cached_planes is None:
            self.cached_planes = planes_of(self.layout, self.address, self.readonly, self.owner)
        return self.cached_planes

    @property
    def valid(self):
        """Whether the slot still holds this frame. Always true while it is held, if the publisher honours pins."""
        return cf_reader_valid(&self.reader.ring, self.taken.slot, self.taken.seq)

    def check_held(self):
        if self.owner is None:
            raise ValueError("the frame was released; take views before that, or keep the frame")

    def release(self, stream=None):
        """Give the frame up. Arrays made from it stay good and keep its slot until they die. Does not block.

        Raises
        ------
        Overwritten
            If the publisher does not honour pins and has overwritten the frame meanwhile.
        """
        if stream is not None:
            raise ValueError("host memory has no stream; pass stream=None")
        if self.owner is None:
            return
        whole = self.reader.ring.pins or self.valid
        self.owner = None  # our reference to the hold; arrays have their own
        self.cached_planes = None
        if not whole:
            raise Overwritten("the frame was overwritten while it was held: discard what was read from it")

    def __enter__(self):
        self.check_held()
        return self

    def __exit__(self, *exc):
        self.release()

    def __repr__(self):
        return (f"<Frame {self.format} {self.width}x{self.height}, seq {self.seq}, pts {self.pts_ns} ns"
                f"{', released' if self.owner is None else ''}>")


def take(FrameReader reader not None, FrameLayout layout not None, timeout):
    """The reader's next frame, read-only. Blocks without the GIL; errors are those of ``Subscriber.next``."""
    cdef Hold hold = reader.take(timeout)
    cdef Frame frame = Frame.__new__(Frame)
    frame.layout = layout
    frame.reader = reader
    frame.taken = hold.taken
    aim(frame, layout, reader.slot_address(hold.taken.slot), True, hold)
    return frame


@cython.no_gc_clear  # it may have to give its slot back to the writer when it goes
cdef class WritableFrame(View):
    """A slot of the ring, to be filled in place by the publisher.

    A context manager: the frame is published on a clean exit and abandoned when the block raises. Write to it inside
    the block only; afterwards subscribers read the same memory.

    Attributes
    ----------
    pts_ns : int or None
        Presentation time in nanoseconds; None means the time of publishing (CLOCK_MONOTONIC).
    seq : int or None
        Sequence number, once published.
    """

    def __cinit__(self, FrameWriter writer not None, FrameLayout layout not None, timeout):
        self.writer = writer
        self.layout = layout
        self.timeout = timeout

    def __enter__(self):
        if self.seq is not None or self.owner is not None:
            raise ValueError("a writable frame is used once; call acquire() again")
        self.writer.begin(self.timeout)
        self.begun = True
        aim(self, self.layout, self.writer.begun(), False, self.writer)
        return self

    def __exit__(self, exc_type, exc, traceback):
        cdef Plane plane
        self.owner = None
        for plane in self.cached_planes or ():
            plane.owner = None  # a plane kept beyond the block must not reach a published frame
        self.cached_planes = None
        try:
            if exc_type is None:
                pts_ns = None if self.pts_ns is None else as_int64(self.pts_ns)
                self.begun = False
                self.seq = self.writer.commit(pts_ns, self.layout.nbytes)
        finally:
            self.give_up()

    cdef void give_up(self) noexcept:
        if self.begun:
            self.begun = False
            self.writer.abandon()

    def __dealloc__(self):
        self.give_up()  # entered by hand and never left

    def copy_from(self, src):
        """Copy a whole frame in: what ``Publisher.publish`` takes."""
        if self.owner is None:
            raise ValueError("a writable frame is valid inside its with block only")
        copy(source_of(self.layout, src), self.address)

    @property
    def planes(self):
        """The planes as a tuple of writable :class:`Plane`: ``frame.planes[0][...] = luma``."""
        if self.owner is None:
            raise ValueError("a writable frame is valid inside its with block only")
        if self.cached_planes is None:
            self.cached_planes = planes_of(self.layout, self.address, False, self.owner)
        return self.cached_planes

    @property
    def format(self):
        """Pixel format, FFmpeg's name."""
        return self.layout.format

    @property
    def width(self):
        """Pixels."""
        return self.layout.shape.width

    @property
    def height(self):
        """Pixels."""
        return self.layout.shape.height

    def __repr__(self):
        return f"<WritableFrame {self.format} {self.width}x{self.height}>"


# ---- copying an array-like in ----------------------------------------------------------------------------------------

cdef struct Rows:
    const char* address
    Py_ssize_t pitch


cdef class Source:
    """Where the rows of each plane of an array-like are. Holds its buffers until it is dropped."""

    cdef FrameLayout layout
    cdef Rows[3] rows
    cdef Py_buffer[3] buffers
    cdef int count

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.buffers[i])

    cdef Py_buffer* buffer(self, object array) except NULL:
        """A strided buffer of `array` whose samples have our size, and whose rows are contiguous."""
        cdef Py_buffer* b = &self.buffers[self.count]
        if not PyObject_CheckBuffer(array):
            import numpy
            array = numpy.asarray(array)
        PyObject_GetBuffer(array, b, PyBUF_STRIDES | PyBUF_FORMAT)
        self.count += 1
        sample = (<bytes>b.format).lstrip(b"<=@|") if b.format != NULL else b"B"
        if sample not in ((b"B", b"b", b"c") if self.layout.item_bytes == 1 else (b"H", b"h")):
            raise TypeError(f"{self.layout.format} samples are uint{8 * self.layout.item_bytes}, "
                            f"the array has elements of format {sample.decode()!r}, {b.itemsize} bytes each")
        return b

    cdef int plane(self, int i, object array) except -1:
        """Plane i from an array of the plane's own shape."""
        cdef Py_buffer* b = self.buffer(array)
        shape = tuple([b.shape[axis] for axis in range(b.ndim)])
        wanted = self.layout.shape.planes[i].shape
        if shape != wanted:
            raise ValueError(f"plane {i} of {self.layout.format} has shape {wanted}, not {shape}")
        if not rows_contiguous(b):
            PyBuffer_Release(b)
            self.count -= 1
            import numpy
            b = self.buffer(numpy.ascontiguousarray(array))
        self.rows[i].address = <const char*>b.buf
        self.rows[i].pitch = b.strides[0]
        return 0

    cdef int frame(self, object array) except -1:
        """All planes from one array: the frame's array_shape, or its bytes without padding."""
        cdef Py_buffer* b = self.buffer(array)
        cdef FrameLayout layout = self.layout
        cdef const char* address
        cdef Py_ssize_t pitch
        shape = tuple([b.shape[axis] for axis in range(b.ndim)])
        flat = b.ndim == 1 and b.len == layout.tight_bytes
        if not flat and shape != layout.shape.array_shape:
            raise ValueError(
                f"a {layout.format} frame of {layout.shape.width}x{layout.shape.height} is an array of shape "
                f"{layout.shape.array_shape}, {layout.tight_bytes} bytes, or {layout.planes} planes; not {shape}")
        # One pitch for the whole array serves when every plane has rows of that length (all but i420).
        one_pitch = layout.planes == 1 or layout.plane[1].row_bytes == layout.plane[0].row_bytes
        strided = not flat and one_pitch and b.ndim == layout.plane[0].ndim and rows_contiguous(b)
        if not strided and not is_contiguous(b):
            PyBuffer_Release(b)
            self.count -= 1
            import numpy
            b = self.buffer(numpy.ascontiguousarray(array))
        address = <const char*>b.buf
        for i in range(layout.planes):
            pitch = b.strides[0] if strided else layout.plane[i].row_bytes
            self.rows[i].address = address
            self.rows[i].pitch = pitch
            address += pitch * layout.plane[i].rows
        return 0

    cdef int video_planes(self, object src) except -1:
        """From an object with planes: PyAV's VideoFrame (flat planes with a line_size), or a frame of ours."""
        cdef Py_buffer* b
        name = getattr(src.format, "name", src.format)
        mine = self.layout.shape
        if ALIASES.get(name, name) != self.layout.format or (src.width, src.height) != (mine.width, mine.height):
            raise ValueError(f"this publisher shares {self.layout.format} {mine.width}x{mine.height}, the frame is "
                             f"{name} {src.width}x{src.height}; convert it first (PyAV: frame.reformat)")
        for i in range(self.layout.planes):
            plane = src.planes[i]
            pitch = getattr(plane, "line_size", None)
            if pitch is None:
                self.plane(i, plane)
                continue
            b = &self.buffers[self.count]
            PyObject_GetBuffer(plane, b, PyBUF_STRIDES)
            self.count += 1
            if b.len < pitch * (self.layout.plane[i].rows - 1) + self.layout.plane[i].row_bytes:
                rows = self.layout.plane[i].rows
                raise ValueError(f"plane {i} has {b.len} bytes, too few for {rows} rows of {pitch}")
            self.rows[i].address = <const char*>b.buf
            self.rows[i].pitch = pitch
        return 0


cdef bint rows_contiguous(const Py_buffer* b) noexcept:
    cdef Py_ssize_t expected = b.itemsize
    cdef int i
    for i in range(b.ndim - 1, 0, -1):
        if b.strides[i] != expected:
            return False
        expected *= b.shape[i]
    return True


cdef bint is_contiguous(const Py_buffer* b) noexcept:
    return rows_contiguous(b) and (b.ndim < 2 or b.strides[0] * b.shape[0] == b.len)


cdef Source source_of(FrameLayout layout, object src):
    """Find the rows of an array-like, or raise; nothing is copied yet."""
    cdef Source source = Source.__new__(Source)
    cdef int i
    source.layout = layout
    if hasattr(src, "planes") and hasattr(src, "format"):
        source.video_planes(src)
    elif isinstance(src, (tuple, list)):
        if len(src) != layout.planes:
            raise ValueError(f"{layout.format} has {layout.planes} planes, not {len(src)}")
        for i in range(layout.planes):
            source.plane(i, src[i])
    else:
        source.frame(src)
    return source


cdef void copy(Source source, char* target) noexcept:
    cdef FrameLayout layout = source.layout
    cdef int i
    with nogil:
        for i in range(layout.planes):
            cf_copy_rows(target + layout.plane[i].offset, layout.plane[i].step[0], source.rows[i].address,
                         source.rows[i].pitch, layout.plane[i].row_bytes, layout.plane[i].rows)


def publish(FrameWriter writer not None, FrameLayout layout not None, src, pts_ns, timeout):
    """Copy `src` into a slot and publish it; the copy runs without the GIL.

    Everything that can be wrong with the arguments is found before a slot is taken.
    """
    cdef Source source = source_of(layout, src)
    if pts_ns is not None:
        pts_ns = as_int64(pts_ns)
    writer.begin(timeout)
    copy(source, writer.begun())
    return writer.commit(pts_ns, layout.nbytes)


cdef int64_t as_int64(object value) except? -1:
    return operator.index(value)
