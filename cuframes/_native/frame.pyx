"""Frames: those that a subscriber takes, those that a publisher fills, and the copy of an array-like into the ring."""

cimport cython
from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport int64_t, uintptr_t

from cuframes._core cimport FrameReader, FrameWriter, Hold, Owner, WriteLease
from cuframes._native.arrays cimport FrameRows, Rows, cf_copy_rows, copy_frame, plain_rows, pts_of, rows_of
from cuframes._native.cuda cimport Device, check_driver, stream_of
from cuframes._native.device_arrays cimport device_rows_of
from cuframes._native.frame_ring cimport cf_reader_valid
from cuframes._native.layout cimport MAX_PLANES, FrameLayout, Geometry
from cuframes._native.ring_end cimport is_inherited
from cuframes._native.status cimport deadline_after, nanoseconds_of
from cuframes._native.views cimport Plane, View

from cuframes.errors import FrameDropped, Overwritten
from cuframes.picturing import functions


cdef int set_view(View view, FrameLayout layout, char* address, bint readonly, Owner owner) except -1:
    """Make `view` show the frame at `address` as one array."""
    cdef Geometry* g = &layout.matrix
    return view.set(address, g.ndim, g.extent, g.step, layout.item_bytes, readonly, owner)


cdef tuple planes_of(FrameLayout layout, char* address, bint readonly, Owner owner):
    cdef Plane plane
    cdef int i
    planes = []
    for i in range(layout.planes):
        plane = Plane.__new__(Plane)
        plane.set(address + layout.plane[i].offset, layout.plane[i].ndim, layout.plane[i].extent, layout.plane[i].step,
                  layout.item_bytes, readonly, owner)
        planes.append(plane)
    return tuple(planes)


cdef class FrameView(View):
    """A whole frame in a slot of the ring: the common part of :class:`Frame` and :class:`WritableFrame`."""

    @property
    def format(self):
        """Name of the pixel format, as in ``cuframes.formats.FORMATS``."""
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
    def color(self):
        """The samples' :class:`Color`: range, matrix, primaries and transfer, as far as the publisher has said them."""
        return self.layout.presentation.color

    @property
    def sample_aspect_ratio(self):
        """Width of a sample to its height, a Fraction. None: not said, which players take for 1."""
        return self.layout.presentation.sample_aspect_ratio

    @property
    def field_order(self):
        """``"progressive"``, or interlaced ``"tt"`` (top first), ``"bb"``, ``"tb"``, ``"bt"``. None: not said."""
        return self.layout.presentation.field_order

    @property
    def rotation(self):
        """Degrees (0, 90, 180, 270) by which the picture must be turned clockwise to be upright. None: not said."""
        return self.layout.presentation.rotation

    @property
    def planes(self):
        """The planes as a tuple of :class:`Plane`, without a copy. Those of a frame that is being written are writable:
        ``frame.planes[0][...] = luma``.
        """
        cdef tuple planes
        with cython.critical_section(self):
            self.check_usable()
            if self.cached_planes is None:
                self.cached_planes = planes_of(self.layout, self.address, self.readonly, self.owner)
            planes = self.cached_planes
        return planes

    cdef tuple full_shape(self):
        return View.full_shape(self) if self.axes else self.layout.shape.array_shape

    cdef object packed(self):
        if self.axes:
            return View.packed(self)
        import numpy
        cdef Geometry* g
        cdef int i
        array = numpy.empty(self.layout.shape.array_shape, self.dtype)
        cdef uintptr_t target = array.ctypes.data
        for i in range(self.layout.planes):
            g = &self.layout.plane[i]
            self.pack(<char*>target, self.address + g.offset, g.step[0], g.row_bytes, g.rows)
            target += g.row_bytes * g.rows
        return array

    cdef int check_usable(self) except -1:
        """Raise ValueError if the frame was released, or is not being written."""
        raise NotImplementedError


cdef class Frame(FrameView):
    """A frame in the ring, read-only, in place.

    The frame cannot be overwritten as long as this object, one of its planes, or an array or tensor made from either is
    alive. :meth:`release` (or leaving a ``with`` block) gives the frame up earlier; its slot goes back to the ring when
    the last array made from it is gone too.
    """

    @property
    def seq(self):
        """Sequence number: unique and growing for the life of one publisher, with gaps where held slots were passed
        over.
        """
        return self.taken.seq

    @property
    def frame_no(self):
        """Consecutive number of the frame, starting at 1 and without gaps. The difference between two numbers is how
        many frames apart they were published.
        """
        return self.taken.frame_no

    @property
    def epoch(self):
        """Random number of this run of the publisher. When it changes, ``seq`` and ``frame_no`` have started anew."""
        return self.reader.epoch

    @property
    def pts_ns(self):
        """Presentation time in nanoseconds, as the publisher gave it; otherwise CLOCK_MONOTONIC at publishing."""
        return self.taken.pts_ns

    @property
    def published_ns(self):
        """Time of publishing: CLOCK_MONOTONIC of this host, in nanoseconds. 0 if the publisher does not report it."""
        return self.taken.published_ns

    @property
    def lost(self):
        """Number of frames that were overwritten between the frame taken before and this one (mode ``ordered``)."""
        return self.taken.lost

    @property
    def skipped(self):
        """Number of frames that were passed over between the frame taken before and this one (mode ``newest``)."""
        return self.taken.skipped

    @property
    def valid(self):
        """Whether the slot still contains this frame. If the publisher honours pins, always true while the frame is
        held.
        """
        return cf_reader_valid(&self.reader.ring, self.taken.slot, self.taken.seq)

    def to_ndarray(self, format="rgb24", width=None, height=None):
        """A copy of the picture as a NumPy array, in another pixel format or size.

        The colours are right: the conversion uses the frame's :attr:`color`, and for what that leaves open what players
        assume. FFmpeg converts, without the GIL. A frame on a GPU is copied to the host first. Needs PyAV.

        Parameters
        ----------
        format : str
            Any pixel format of ``cuframes.formats``: ``"rgb24"``, ``"bgr24"`` (OpenCV), ``"gray8"``, ``"rgbp"`` (planes
            first), …
        width, height : int, optional
            Pixels; default: the frame's own. If only one is given, the other keeps the shape of the picture.

        Returns
        -------
        numpy.ndarray
            Of uint8 (uint16 for more than 8 bits), shape (height, width, 3) for RGB; in general ``array_shape`` of
            :class:`cuframes.formats.FrameShape`. It is the caller's own.

        Raises
        ------
        ImportError
            PyAV is not installed.
        ValueError
            The format or the size is not possible, or the frame was released.
        """
        return functions().to_ndarray(self, format, width, height)

    def to_image(self):
        """A copy of the picture as a ``PIL.Image``: RGB, RGBA if the format has alpha, L if it is gray. Neither rotated
        nor stretched: see :attr:`rotation` and :attr:`sample_aspect_ratio`. Needs PyAV and Pillow.

        Raises
        ------
        ImportError
            PyAV or Pillow is not installed.
        """
        return functions().to_image(self)

    def to_video_frame(self):
        """A copy as PyAV's ``VideoFrame``, in the same pixel format, with pts, time base and colour, for PyAV's filters
        and encoders.

        Raises
        ------
        ImportError
            PyAV is not installed.
        """
        return functions().to_video(self)

    def _repr_png_(self):
        """The picture for notebooks, upright and at most 960 pixels wide; None if there is none to show."""
        try:
            return functions().preview(self)
        except ImportError:  # without PyAV a notebook shows the repr
            return None

    cdef int check_usable(self) except -1:
        if self.dropped:
            raise ValueError("the frame was released; take views before the release, or keep the frame")
        return 0

    def release(self, stream=None):
        """Give the frame up, without blocking. Arrays made from it stay valid and keep its slot while they are alive.

        Parameters
        ----------
        stream : int or stream object, optional
            For a frame on a GPU: a stream whose work uses the frame in a way that cuframes cannot see, such as your own
            kernel that was given its raw address. The slot goes back when the work now queued on the stream is done.

        Raises
        ------
        Overwritten
            The publisher does not honour pins and has overwritten the frame while it was held.
        DeviceError
            A CUDA graph is being captured on `stream`. The frame stays held.
        """
        cdef void* handle
        if stream is not None and self.gpu is None:
            raise ValueError("host memory has no stream; pass stream=None")
        if self.dropped:
            return
        if stream is not None:
            handle = stream_of(stream)
            check_driver(self.gpu.usable(handle), "the frame cannot be released after this stream's work")
            self.share().follow(handle, self.gpu.ordinal, None if isinstance(stream, int) else stream)
        self.release_views()

    cdef int release_views(self) except -1:
        cdef bint whole, first
        whole = self.reader.ring.pins or cf_reader_valid(&self.reader.ring, self.taken.slot, self.taken.seq)
        with cython.critical_section(self):
            first = not self.dropped
            self.drop()  # our reference to the hold; planes and arrays have their own
            self.cached_planes = None
        if first and not whole:
            raise Overwritten("the frame was overwritten while it was held: discard what was read from it")
        return 0

    def __enter__(self):
        self.check_usable()
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.release_views()

    def __repr__(self):
        return (f"<Frame {self.format} {self.width}x{self.height}, seq {self.seq}, pts {self.pts_ns} ns"
                f"{', released' if self.dropped else ''}>")


def take(FrameReader reader not None, timeout, warm_up):
    """The reader's next frame, read-only. Waits without the GIL and raises what ``Subscriber.next`` raises.

    Calls ``warm_up`` with an empty frame: shortly before a frame is due when waiting predictively, and from time to
    time when spinning.
    """
    cdef int64_t deadline = deadline_after(timeout)
    cdef Hold hold = empty_hold(reader)
    while not reader.take(hold, deadline):
        warm_up(frame_of(empty_hold(reader)))
    return frame_of(hold)


cdef Hold empty_hold(FrameReader reader):
    cdef Hold hold = Hold.__new__(Hold)
    hold.reader = reader
    return hold


cdef Frame frame_of(Hold hold):
    cdef FrameReader reader = hold.reader
    cdef FrameLayout layout = reader.layout
    cdef Frame frame = Frame.__new__(Frame)
    frame.layout = layout
    frame.reader = reader
    frame.taken = hold.taken
    set_view(frame, layout, reader.slots.address[hold.taken.slot], True, hold)
    return frame


@cython.no_gc_clear  # its deallocation may have to give the slot back to the writer
cdef class WritableFrame(FrameView):
    """A slot of the ring that the publisher fills in place.

    Use it as a context manager: the frame is published when the block ends normally and abandoned when the block
    raises. Write to the frame inside the block only; afterwards subscribers read the same memory.

    Attributes
    ----------
    pts_ns : int or None
        Presentation time in nanoseconds; None means the time of publishing (CLOCK_MONOTONIC).
    seq : int or None
        Sequence number; None until the frame is published.
    slot : int or None
        Index of the slot; with :meth:`Publisher.external`, index of the buffer.

    On a GPU, write on the stream that was given to ``acquire``, or take the planes by DLPack on a stream of your own.
    The frame's event is recorded after the work of both.
    """

    def __cinit__(self, FrameWriter writer not None, FrameLayout layout not None, stream, timeout, int wanted=-1):
        self.writer = writer
        self.layout = layout
        self.stream = writer_stream(writer, stream)
        self.stream_keeper = stream
        self.timeout = timeout
        self.wanted = wanted

    def __enter__(self):
        if self.lease is not None:
            raise ValueError("a writable frame can be used only once; call acquire() again")
        self.writer.enter()
        try:
            self.writer.begin(self.timeout, self.wanted, self.stream)
        finally:
            self.writer.leave()  # close() does not wait for the block; a frame that it overtakes cannot be published
        self.begun = True
        try:
            self.slot = self.writer.slot()
            self.lease = WriteLease.__new__(WriteLease)
            self.lease.writer = self.writer
            self.lease.publish_stream = self.stream
            if self.writer.slots.device is not None:
                # A consumer of the array interface is told to order its work after this stream.
                self.lease.follow(self.stream, self.writer.slots.device.ordinal, self.stream_keeper or self.writer)
            set_view(self, self.layout, self.writer.begun(), False, self.lease)
        except BaseException:
            self.give_up()
            raise
        return self

    def __exit__(self, exc_type, exc, traceback):
        if not self.end():
            if exc_type is None:
                raise ValueError("this frame is not being written: its with block has already ended, or was never "
                                 "entered (with publisher.acquire() as frame)")
            return
        # The slot has been begun, and this call must now either publish or abandon it.
        try:
            self.drop_views()
            if exc_type is not None:
                self.abandon()
                return
            with cython.critical_section(self):  # other threads that help to fill the frame may set it
                pts_ns = self.pts_ns
            pts_ns = None if pts_ns is None else nanoseconds_of(pts_ns)
            self.writer.enter()  # raises if the writer was closed during the block
        except BaseException:
            self.abandon()
            raise
        try:
            try:
                self.lease.gather()
            except BaseException:
                self.abandon()
                raise
            self.seq = self.writer.commit(pts_ns, self.layout.nbytes, self.stream)
        finally:
            self.writer.leave()

    cdef int check_usable(self) except -1:
        if not self.begun:
            raise ValueError("a writable frame is valid inside its with block only")
        return 0

    cdef bint end(self) noexcept:
        """Whether the slot was begun. Only the first caller gets True, and must publish or abandon the slot."""
        cdef bint begun
        with cython.critical_section(self):
            begun = self.begun
            self.begun = False
        return begun

    cdef int drop_views(self) except -1:
        """Invalidate the views: one that is kept beyond the block must not reach a published frame."""
        cdef Plane plane
        cdef tuple planes
        with cython.critical_section(self):
            self.drop()
            planes, self.cached_planes = self.cached_planes, None
        for plane in planes or ():
            plane.drop()
        return 0

    cdef void abandon(self) noexcept:
        if not is_inherited(self.writer.generation):  # in a forked child the slot is the parent's
            self.writer.abandon(self.stream)

    cdef void give_up(self) noexcept:
        if self.end():
            self.abandon()

    def __dealloc__(self):
        if self.begun:  # entered by hand and never left
            self.abandon()

    def copy_from(self, src):
        """Copy a whole frame into the slot. `src` is anything that ``Publisher.publish`` accepts."""
        cdef FrameRows source
        self.check_usable()
        source = find_rows(self.writer, self.layout, self.stream, src)
        self.check_usable()  # once more, since inspecting an array can run arbitrary code
        source.part_from(self.address)
        fill(self.writer, source, self.address, self.stream)

    def __repr__(self):
        return f"<WritableFrame {self.format} {self.width}x{self.height}>"


# ---- copying an array-like into the ring ---------------------------------------------------------------------------

cdef FrameRows find_rows(FrameWriter writer, FrameLayout layout, void* stream, object src):
    """The rows of an array-like that is to be copied into the writer's memory (host or GPU)."""
    if writer.slots.device is None:
        return rows_of(layout, src)
    return device_rows_of(layout, writer.slots.device, stream, src)


cdef int fill(FrameWriter writer, FrameRows source, char* target, void* stream) except -1:
    """Copy the rows into the begun slot. On a GPU the copy is only queued."""
    cdef FrameLayout layout = source.layout
    cdef Device gpu = writer.slots.device
    cdef Geometry* g
    cdef int i, result = 0
    if gpu is None:
        copy_frame(layout, source.rows, target)
        return 0
    cdef char* staging = writer.staging() if source.on_host else NULL
    with nogil:
        for i in range(layout.planes):
            g = &layout.plane[i]
            if not source.rows[i].on_gpu:
                # By way of pinned memory, so that nobody waits for the GPU and the caller may reuse the array at once.
                cf_copy_rows(staging + g.offset, g.step[0], source.rows[i].address, source.rows[i].pitch, g.row_bytes,
                             g.rows, False)
                result = gpu.copy(target + g.offset, g.step[0], True, staging + g.offset, g.step[0], False, g.row_bytes,
                                  g.rows, stream)
            else:
                result = gpu.copy(target + g.offset, g.step[0], True, source.rows[i].address, source.rows[i].pitch,
                                  True, g.row_bytes, g.rows, stream)
            if result:
                break
    check_driver(result, "copying the frame into the ring failed")
    if source.on_gpu:
        writer.keep_source(source.keep)  # a decoder must not reuse its surface before the copy has read it
    return 0


def publish(FrameWriter writer not None, FrameLayout layout not None, src, pts_ns, stream, timeout):
    """Copy `src` into a slot and publish it. The copy runs without the GIL.

    The arguments are checked completely before a slot is claimed.
    """
    writer.enter()
    try:
        return publish_inside(writer, layout, src, pts_ns, stream, timeout)
    finally:
        writer.leave()


cdef object publish_inside(FrameWriter writer, FrameLayout layout, object src, object pts_ns, object stream,
                           object timeout):
    cdef Py_buffer buffer
    cdef Rows[MAX_PLANES] rows
    if writer.slots.device is None and stream is None and plain_rows(layout, src, &buffer, rows):
        try:
            if pts_ns is not None:
                pts_ns = nanoseconds_of(pts_ns)
            writer.begin(timeout, -1, NULL)
            copy_frame(layout, rows, writer.begun())
        finally:
            PyBuffer_Release(&buffer)
        return writer.commit(pts_ns, layout.nbytes, NULL)
    cdef void* handle = writer_stream(writer, stream)
    cdef FrameRows source = find_rows(writer, layout, handle, src)
    if pts_ns is None:
        pts_ns = pts_of(src)
    if pts_ns is not None:
        pts_ns = nanoseconds_of(pts_ns)
    writer.begin(timeout, -1, handle)
    try:
        fill(writer, source, writer.begun(), handle)
    except FrameDropped:
        writer.drop()
        raise
    except BaseException:
        writer.abandon(handle)
        raise
    return writer.commit(pts_ns, layout.nbytes, handle)


cdef void* writer_stream(FrameWriter writer, object stream) except? NULL:
    if writer.slots.device is not None:
        return stream_of(stream)
    if stream is not None:
        raise ValueError("stream= is for device memory, but this publisher shares host memory; omit it")
    return NULL
