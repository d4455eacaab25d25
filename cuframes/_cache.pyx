"""The framecache slot for Python: its writer, a reader, and frames.

The algorithm is C (``_cache.h``) and runs without the GIL wherever it waits or copies much.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close

from cuframes._frame cimport FrameLayout
from cuframes._mapped cimport Borrowed_make, Mapping
from cuframes._shm cimport cf_exchange_u32, cf_load_acquire, cf_now_ns, cf_store_release_u32
from cuframes._source cimport Rows, Source, cf_copy_rows, copy_frame, is_part, plain_rows, source_of
from cuframes._status cimport *
from cuframes._views cimport check_unmasked

import time

import numpy

from cuframes.errors import Disconnected, ProtocolError
from cuframes.lifetime import refusal


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


MAGIC = CF_CACHE_MAGIC
VERSION = CF_CACHE_VERSION
HEADER_BYTES = sizeof(cf_cache_header)
DEFAULT_DEPTH = CF_CACHE_DEFAULT_DEPTH
MIN_DEPTH = CF_CACHE_MIN_DEPTH
START_NEXT = CF_CACHE_NEXT
START_LATEST = CF_CACHE_LATEST
START_OLDEST = CF_CACHE_OLDEST

cdef Py_ssize_t LARGE = 64 * 1024  # copies from here on are made without the GIL; getting it back can take a while
cdef int LAPS = 3  # torn copies in one call, before it looks at its deadline
# The semaphore only says "look": a few tokens are enough for C clients that wait, and a slot that none reads must not
# collect millions for the next one to drain.
cdef int TOKENS = 4


def slot_size(uint32_t frame_size, uint32_t depth):
    """Bytes of a slot's file."""
    return cf_cache_size(frame_size, depth)


def format_slot(Mapping mapping not None, *, uint32_t width, uint32_t height, uint32_t fps_num, uint32_t fps_den,
                uint32_t pixel_format, uint32_t frame_size, uint32_t depth, bytes source_type not None,
                bytes slot_id not None):
    """Write the header of a new slot; `mapping` is writable, zero-filled, and nobody else sees it yet."""
    cdef cf_cache_header* h = <cf_cache_header*>mapping.address
    if len(source_type) > 31 or not 0 < len(slot_id) < 64 or mapping.size < <Py_ssize_t>sizeof(cf_cache_header):
        raise ValueError("source_type has at most 31 bytes, slot_id 1 to 63")
    h.width, h.height = width, height
    h.fps_num, h.fps_den = fps_num, fps_den
    h.pixel_format = pixel_format
    h.source_type[:len(source_type)] = source_type
    h.slot_id[:len(slot_id)] = slot_id
    cf_cache_format(h, frame_size, depth)


def describe_slot(Mapping mapping not None):
    """A snapshot of a slot's header as a dict, for reports. Values are as found."""
    cdef cf_cache_header* h = <cf_cache_header*>mapping.address
    if mapping.size < <Py_ssize_t>sizeof(cf_cache_header):
        raise ProtocolError(f"a framecache slot has at least {sizeof(cf_cache_header)} bytes, this one {mapping.size}")
    return {
        "magic": h.magic,
        "version": h.version,
        "width": h.width,
        "height": h.height,
        "fps_num": h.fps_num,
        "fps_den": h.fps_den,
        "pixel_format": h.pixel_format,
        "frame_size": h.frame_size,
        "ring_depth": h.ring_depth,
        "write_cursor": cf_load_acquire(&h.write_cursor),
        "dropped_frames": cf_load_acquire(&h.dropped_frames),
        "source_type": (<bytes>h.source_type[:32]).split(b"\0")[0].decode("utf-8", "replace"),
        "slot_id": (<bytes>h.slot_id[:64]).split(b"\0")[0].decode("utf-8", "replace"),
        "writer_pid": cf_load_acquire(&h.writer_pid),
    }


cdef uint64_t microseconds_of(object value) except? 0:
    """A timestamp that a caller gave, as the format has it: unsigned, 64 bits."""
    if value is True or value is False:
        raise TypeError(f"a time in microseconds is an int, not {value}")
    try:
        return PyNumber_Index(value)
    except OverflowError:
        raise ValueError(f"a time in microseconds is 0 to 2**64 - 1, not {value}") from None


cdef corrupt(Mapping mapping):
    found = describe_slot(mapping)
    if found["magic"] == MAGIC and found["version"] != VERSION:
        return ProtocolError(f"the slot has version {found['version']} of the framecache format; this library reads "
                             f"version {VERSION}")
    return ProtocolError(f"this is no framecache slot, or a truncated one: magic {found['magic']:#x}, version "
                         f"{found['version']}, {found['ring_depth']} entries for {found['frame_size']} bytes, file of "
                         f"{mapping.size}")


cdef class CacheWriter:
    """The writer's end of a slot. `mapping` is writable; `fd` holds the writer's lock and stays open as long as this is
    used. `layout` is None for pixel formats that are not known, whose frames are bytes.
    """

    def __cinit__(self, Mapping mapping not None, int fd, FrameLayout layout, uint64_t pid, semaphore):
        self.mapping = mapping
        self.layout = layout
        self.semaphore = semaphore
        self.generation = current_generation()
        self.closed = True
        if cf_cache_writer_init(&self.ring, mapping.address, mapping.size, fd, pid) != CF_OK:
            raise corrupt(mapping)
        self.closed = False

    cdef int begin(self, char** pixels) except -1:
        cdef int status
        if self.closed:
            raise ValueError("the writer is closed")
        check_generation(self.generation)
        status = cf_cache_begin(&self.ring, pixels)
        if status == CF_ENDED:
            raise Disconnected("the slot was removed; create it again to go on")
        return check(status, "another thread is writing a frame here; a slot has one writer")

    cdef uint64_t commit(self, Py_ssize_t size, object pts_us, object wall_us) except? 0:
        """Publish what was written since begin; returns its number. Times were checked before."""
        cdef uint64_t wall = time.time_ns() // 1000 if wall_us is None else wall_us
        cdef uint64_t pts = cf_now_ns() // 1000 if pts_us is None else pts_us
        cdef uint64_t seq = self.ring.cursor
        cf_cache_commit(&self.ring, <uint32_t>size, pts, wall)
        if self.semaphore.value < TOKENS:
            self.semaphore.release()
        return seq

    def write(self, src, pts_us, wall_us):
        """Copy a frame in and publish it; the copy runs without the GIL. Errors change nothing."""
        cdef Py_buffer buffer
        cdef Rows[3] rows
        cdef Source source
        cdef char* pixels
        if pts_us is not None:
            microseconds_of(pts_us)
        if wall_us is not None:
            microseconds_of(wall_us)
        if self.layout is not None and plain_rows(self.layout, src, &buffer, rows):
            try:
                self.begin(&pixels)
                copy_frame(self.layout, rows, pixels)
            finally:
                PyBuffer_Release(&buffer)
            return self.commit(self.layout.tight_bytes, pts_us, wall_us)
        if self.layout is None or is_part(src, self.layout.tight_bytes):
            check_unmasked(src)
            PyObject_GetBuffer(src, &buffer, PyBUF_C_CONTIGUOUS)
            try:
                return self.write_bytes(&buffer, pts_us, wall_us)
            finally:
                PyBuffer_Release(&buffer)
        source = source_of(self.layout, None, NULL, src)
        self.begin(&pixels)
        copy_frame(self.layout, source.rows, pixels)
        return self.commit(self.layout.tight_bytes, pts_us, wall_us)

    cdef object write_bytes(self, Py_buffer* buffer, object pts_us, object wall_us):
        """A frame of another size than the format's, as it is."""
        cdef Py_ssize_t size = buffer.len
        cdef char* pixels
        if size > <Py_ssize_t>self.ring.shape.frame_size:
            raise ValueError(f"the frame has {size} bytes, more than the slot's {self.ring.shape.frame_size}")
        self.begin(&pixels)
        with nogil:
            cf_copy_rows(pixels, size, <const char*>buffer.buf, size, size, 1, False)
        return self.commit(size, pts_us, wall_us)

    def drop(self, uint64_t count):
        """Count frames that the source lost."""
        check_generation(self.generation)
        cf_cache_drop(&self.ring, count)

    @property
    def cursor(self):
        """Number of the next frame."""
        return self.ring.cursor

    def close(self):
        """Write no more."""
        if not self.closed and not is_inherited(self.generation):
            cf_cache_writer_leave(&self.ring)
        self.closed = True


cdef class WritableSlotFrame:
    """The slot's next entry, to be filled in place.

    A context manager: the frame is published on a clean exit and abandoned when the block raises.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, writable, in the shape of :attr:`SlotFrame.data`; what an earlier frame left is still there. Write
        to it inside the block only; afterwards readers read the same memory.
    pts_us, wall_us : int or None
        Presentation time, and time of capture since 1970, in microseconds; None means now.
    seq : int or None
        Number of the frame, once published.
    """

    def __cinit__(self, CacheWriter writer not None):
        self.writer = writer

    def __enter__(self):
        if self.pixels != NULL:
            raise ValueError("a writable frame is used once; call acquire() again")
        self.writer.begin(&self.pixels)
        self.begun = True
        size = self.writer.ring.shape.frame_size if self.writer.layout is None else self.writer.layout.tight_bytes
        self.data = shaped(Borrowed_make(self.writer, self.pixels, size, False), self.writer.layout)
        return self

    def __exit__(self, exc_type, exc, traceback):
        size = self.data.nbytes
        self.data = None
        try:
            if exc_type is None:
                if self.pts_us is not None:
                    microseconds_of(self.pts_us)
                if self.wall_us is not None:
                    microseconds_of(self.wall_us)
                self.begun = False
                self.seq = self.writer.commit(size, self.pts_us, self.wall_us)
        finally:
            self.give_up()

    def __reduce__(self):
        raise refusal(self, "read the slot with cuframes.framecache.SlotReader in the other process")

    def copy_from(self, src):
        """Copy a whole frame in: what :meth:`SlotWriter.write` takes."""
        cdef Source source
        self.check_begun()
        if self.writer.layout is None:
            raise ValueError("the slot's pixel format is not known; fill data")
        source = source_of(self.writer.layout, None, NULL, src)
        source.part_from(self.pixels)
        copy_frame(self.writer.layout, source.rows, self.pixels)

    def check_begun(self):
        if not self.begun:
            raise ValueError("a writable frame is valid inside its with block only")

    @property
    def planes(self):
        """The planes as a tuple of writable arrays: ``frame.planes[0][...] = luma``."""
        self.check_begun()
        return planes_of(self.data, self.writer.layout)

    cdef void give_up(self) noexcept:
        if self.begun:
            self.begun = False
            cf_cache_abandon(&self.writer.ring)

    def __dealloc__(self):
        self.give_up()  # entered by hand and never left


cdef object shaped(object flat, FrameLayout layout):
    """Bytes as an array of the format's own shape, without a copy."""
    if layout is None:
        return numpy.frombuffer(flat, numpy.uint8)
    samples = numpy.frombuffer(flat, numpy.uint8 if layout.item_bytes == 1 else numpy.uint16)
    return samples.reshape(layout.shape.array_shape)


cdef object planes_of(object data, FrameLayout layout):
    if layout is None or data.nbytes != layout.tight_bytes:
        raise ValueError("this frame is not a whole picture of a known pixel format; use its data")
    return tuple([
        numpy.ndarray(plane.shape, data.dtype, buffer=data, offset=plane.offset, strides=plane.strides)
        for plane in layout.shape.planes
    ])


cdef class CacheRing:
    """A reader's end of a slot.

    Parameters
    ----------
    fd : int
        The slot, open for reading; it becomes ours.
    size : int
        Bytes of the file.
    start : int
        START_NEXT, START_LATEST or START_OLDEST.
    newest : bool
        Always go on with the newest frame.

    Raises
    ------
    ProtocolError
        It is no slot of this version, or its header does not fit the file.
    """

    def __cinit__(self, int fd, Py_ssize_t size, *, int start, bint newest):
        self.generation = current_generation()
        self.mapping = Mapping(fd, size)
        if cf_cache_reader_init(&self.ring, self.mapping.address, size, fd, start) != CF_OK:
            raise corrupt(self.mapping)
        self.ring.newest = newest
        self.fd = fd + 1

    def __dealloc__(self):
        if self.fd:
            c_close(self.fd - 1)

    def set_layout(self, FrameLayout layout):
        """How the pixels lie in a whole frame; None: frames are bytes."""
        self.layout = layout

    cdef SlotFrame take(self, int64_t deadline, bint copy, object out):
        """The next frame, waiting without the GIL."""
        cdef cf_cache_frame found
        cdef SlotFrame frame
        cdef int status, laps = 0
        check_generation(self.generation)
        if cf_exchange_u32(&self.busy, 1):
            check(CF_BUSY, "another thread is reading from this reader")
        try:
            while True:
                status = cf_cache_find(&self.ring, &found)
                if status == CF_OK:
                    frame = self.read(&found, copy, out)
                    if frame is not None:
                        return frame
                    laps += 1
                    if laps >= LAPS and cf_now_ns() >= deadline:
                        self.refuse(CF_TIMED_OUT)
                elif status == CF_CORRUPT:
                    self.refuse(status)
                PyErr_CheckSignals()
                with nogil:
                    status = cf_cache_wait(&self.ring, deadline)
                if status != CF_OK and status != CF_AGAIN:
                    self.refuse(status)
        finally:
            cf_store_release_u32(&self.busy, 0)

    cdef int refuse(self, int status) except -1:
        if status == CF_CORRUPT:
            check(status, "the slot is damaged: its file was cut off, or an entry announces more bytes than it has "
                          "room for; remove it and create it anew")
        if status == CF_ENDED:
            raise Disconnected("the slot was removed, and every frame that it had has been read")
        check(status, "no frame arrived in time" if status == CF_TIMED_OUT else "the reader is closed")

    cdef SlotFrame read(self, const cf_cache_frame* found, bint copy, object out):
        """What was found, as a frame; None when it was overwritten before the copy was made."""
        cdef SlotFrame frame = SlotFrame.__new__(SlotFrame)
        cdef Py_ssize_t size = found.size
        cdef Py_buffer buffer
        cdef bint whole
        whole_frame = self.layout is not None and size == self.layout.tight_bytes
        frame.layout = self.layout
        if not copy:
            frame.ring = self
            flat = Borrowed_make(self, found.pixels, size, True)
            frame.data = shaped(flat, self.layout if whole_frame else None)
        else:
            if out is not None:
                frame.data = out
            elif whole_frame:
                frame.data = numpy.empty(self.layout.shape.array_shape, f"u{self.layout.item_bytes}")
            else:
                frame.data = numpy.empty(size, numpy.uint8)
            PyObject_GetBuffer(frame.data, &buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
            try:
                if buffer.len != size:
                    raise ValueError(f"out has {buffer.len} bytes, the frame {size}")
                if size < LARGE:
                    whole = cf_cache_read(&self.ring, found, <char*>buffer.buf)
                else:
                    with nogil:
                        whole = cf_cache_read(&self.ring, found, <char*>buffer.buf)
            finally:
                PyBuffer_Release(&buffer)
            if not whole:
                cf_cache_lapped(&self.ring)
                return None
        frame.found = found[0]
        frame.dropped = cf_cache_took(&self.ring, found)
        return frame

    def next(self, timeout, bint copy, out):
        """See :meth:`take`; `timeout` is in seconds or None."""
        return self.take(deadline_after(timeout), copy, out)

    def entry(self, uint64_t seq):
        """(pts_us, wall_us, size) of frame `seq`; None when it is not there."""
        cdef cf_cache_frame found
        if cf_cache_look(&self.ring, seq, &found) != CF_OK:
            return None
        return found.pts_us, found.wall_us, found.size

    def describe(self):
        """See :func:`describe_slot`."""
        return describe_slot(self.mapping)

    def check(self):
        """(whether the slot is still there, whether a writer holds it)."""
        cdef cf_cache_reader probe = self.ring
        return cf_cache_check(&probe) == CF_OK, not probe.unlocked

    def set_event(self, int fd):
        """Tell the reader which eventfd :meth:`watch` feeds, so that it is drained when nothing is left."""
        self.ring.event_fd = fd

    def watch(self, int fd):
        """Feed an eventfd whenever there is something to read, until the end. For a thread of its own."""
        with nogil:
            cf_cache_watch(&self.ring, fd)

    def close(self):
        """Make threads in :meth:`next` and :meth:`watch` return."""
        if not is_inherited(self.generation):
            cf_cache_close(&self.ring)

    @property
    def counters(self):
        """(read, dropped, lapped)"""
        return self.ring.received, self.ring.dropped, self.ring.lapped


cdef class SlotFrame:
    """One frame of a slot: ``(seq, pts_us, wall_us, data, dropped)``.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, of ``uint8`` (``uint16`` for p010 and gray16), in the shape that one array of the format has, as in
        OpenCV and FFmpeg: (height, width, 2) for UYVY, (height x 3/2, width) for 4:2:0, (height, width, 3) for RGB.
        Flat bytes if the frame is smaller than the format's, or the format is not known. With ``read(copy=False)`` it
        is read-only and the slot's own memory, which may be overwritten at any time; look at :attr:`valid` after use.
    dropped : int
        Frames that were missed between this one and the one read before.
    """

    @property
    def seq(self):
        """Number of the frame in the slot's life, from 0."""
        return self.found.seq

    @property
    def pts_us(self):
        """Presentation time in microseconds, as the writer gave it."""
        return self.found.pts_us

    @property
    def wall_us(self):
        """When it was captured: microseconds since 1970 (CLOCK_REALTIME), as the writer gave it."""
        return self.found.wall_us

    @property
    def format(self):
        """Pixel format, FFmpeg's name; None when it is not known."""
        return None if self.layout is None else self.layout.format

    @property
    def width(self):
        """Pixels; None when the format is not known."""
        return None if self.layout is None else self.layout.shape.width

    @property
    def height(self):
        """Pixels; None when the format is not known."""
        return None if self.layout is None else self.layout.shape.height

    @property
    def planes(self):
        """The planes of the picture as a tuple of arrays over :attr:`data`, without a copy.

        Raises
        ------
        ValueError
            The frame is smaller than its format's, or the format is not known.
        """
        return planes_of(self.data, self.layout)

    @property
    def valid(self):
        """Whether what was read from :attr:`data` so far is the frame. Always true of a copy."""
        return self.ring is None or cf_cache_whole(&self.ring.ring, self.found.seq)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        """Nothing: a frame of a slot is never held. It lets code take this for a :class:`Frame`."""

    def __reduce__(self):
        if self.ring is not None:
            raise refusal(self, "read it with copy=True; or copy its data, and look at valid after that")
        shape = None if self.layout is None else self.layout.shape
        return _slot_frame, (self.seq, self.pts_us, self.wall_us, self.data, self.dropped, shape)

    def __array__(self, dtype=None, copy=None):
        if copy is None:  # as NumPy 1 has it, which knows no such argument
            return numpy.asarray(self.data, dtype)
        return numpy.array(self.data, dtype, copy=copy)

    def __repr__(self):
        return (f"<SlotFrame {self.seq}, {self.data.nbytes} bytes, pts_us={self.pts_us}"
                f"{f', {self.dropped} dropped before it' if self.dropped else ''}>")


def _slot_frame(seq, pts_us, wall_us, data, dropped, shape):
    """A frame out of its parts: how it is unpickled."""
    cdef SlotFrame frame = SlotFrame.__new__(SlotFrame)
    frame.found.seq = seq
    frame.found.pts_us = pts_us
    frame.found.wall_us = wall_us
    frame.data = data
    frame.dropped = dropped
    frame.layout = None if shape is None else FrameLayout(shape)
    return frame
