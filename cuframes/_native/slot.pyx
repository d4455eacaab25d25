"""The framecache slot for Python: its writer, a reader, and frames.

The algorithm is C (``slot_ring.h``) and runs without the GIL wherever it waits or copies much.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as c_close

from cuframes._native.layout cimport MAX_PLANES, FrameLayout
from cuframes._native.mapping cimport Borrowed_make, Mapping, check_whole
from cuframes._shm cimport cf_exchange_u32, cf_load_acquire, cf_load_seq_cst_u32, cf_low_half
from cuframes._shm cimport cf_now_ns, cf_store_release_u32
from cuframes._native.source cimport Rows, Source, cf_copy_rows, check_unmasked, copy_frame, is_part
from cuframes._native.source cimport plain_rows, source_of
from cuframes._native.status cimport *

import logging
import os
import time

import numpy

from cuframes.errors import Disconnected, ProtocolError, refusal


log = logging.getLogger("cuframes")


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "cuframes/copy.h" nogil:
    void cf_copy_racing(char* dst, const char* src, size_t size)


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


cdef cf_cache_header read_header(Mapping mapping) except *:
    """A copy of a slot's header. Others may write it at any time, so what is looked at is this."""
    cdef cf_cache_header copy
    if mapping.size < <Py_ssize_t>sizeof(cf_cache_header):
        raise ProtocolError(f"a framecache slot has at least {sizeof(cf_cache_header)} bytes, this one {mapping.size}")
    cf_copy_racing(<char*>&copy, mapping.address, sizeof(copy))
    return copy


def measure_slot(bytes header not None, uint64_t size):
    """Bytes that a slot takes, by the first bytes of its file of `size` bytes.

    Raises
    ------
    ProtocolError
        It is no slot of this version, or its header does not fit the file.
    """
    cdef cf_cache_header copy
    cdef cf_cache_shape shape
    if size < sizeof(copy) or len(header) != sizeof(copy):
        raise ProtocolError(f"this is no framecache slot, which has at least {sizeof(copy)} bytes: it has {size}")
    cf_copy_racing(<char*>&copy, header, sizeof(copy))
    if cf_cache_measure(&copy, size, &shape) != CF_OK:
        raise wrong_header(copy, size)
    return cf_cache_size(shape.frame_size, shape.depth)


def describe_slot(Mapping mapping not None):
    """A snapshot of a slot's header as a dict, for reports. ``frame_size``, ``ring_depth`` and ``size`` (bytes of the
    slot) are consistent and fit the mapping; the other values are as found.

    Raises
    ------
    ProtocolError
        It is no slot, not any more, or does not fit the mapping.
    """
    cdef cf_cache_header h = read_header(mapping)
    cdef cf_cache_shape shape
    check_whole(mapping.cut)
    if cf_cache_measure(&h, mapping.size, &shape) != CF_OK:
        raise wrong_header(h, mapping.size)
    return {
        "width": h.width,
        "height": h.height,
        "fps_num": h.fps_num,
        "fps_den": h.fps_den,
        "pixel_format": h.pixel_format,
        "frame_size": shape.frame_size,
        "ring_depth": shape.depth,
        "size": cf_cache_size(shape.frame_size, shape.depth),
        # Whole even where a copy of bytes could be torn.
        "write_cursor": cf_load_acquire(&(<cf_cache_header*>mapping.address).write_cursor),
        "dropped_frames": cf_load_acquire(&(<cf_cache_header*>mapping.address).dropped_frames),
        "source_type": printable((<bytes>h.source_type[:32]).split(b"\0")[0]),
        "writer_pid": cf_load_acquire(&(<cf_cache_header*>mapping.address).writer_pid),
    }


cdef str printable(bytes text):
    """Text for people to see, of which nothing moves a cursor or begins a line."""
    return "".join([c if c.isprintable() else "\ufffd" for c in text.decode("utf-8", "replace")])


cdef uint64_t microseconds_of(object value) except? 0:
    """A timestamp that a caller gave, as the format has it: unsigned, 64 bits."""
    if value is True or value is False:
        raise TypeError(f"a time in microseconds is an int, not {value}")
    try:
        return PyNumber_Index(value)
    except OverflowError:
        raise ValueError(f"a time in microseconds is 0 to 2**64 - 1, not {value}") from None


cdef corrupt(Mapping mapping):
    """What is wrong with a slot that cf_cache_measure refuses."""
    check_whole(mapping.cut)
    return wrong_header(read_header(mapping), mapping.size)


cdef wrong_header(cf_cache_header found, uint64_t size):
    if found.magic == CF_CACHE_MAGIC and found.version != CF_CACHE_VERSION:
        return ProtocolError(f"the slot has version {found.version} of the framecache format; this library reads "
                             f"version {VERSION}")
    return ProtocolError(f"this is no framecache slot, or a truncated one: magic {found.magic:#x}, version "
                         f"{found.version}, {found.ring_depth} entries for {found.frame_size} bytes, file of {size}")


cdef class CacheWriter:
    """The writer's end of a slot. Closes what it was given.

    Parameters
    ----------
    mapping : Mapping
        The slot, writable.
    fd : int
        Holds the writer's lock; it becomes ours, and the lock goes with it.
    layout : FrameLayout or None
        None for pixel formats that are not known, whose frames are bytes.
    pid : int
    semaphore : posix_ipc.Semaphore
        Becomes ours.

    Raises
    ------
    ProtocolError
        It is no slot, or its entries are too small for its pictures. `fd` and `semaphore` stay the caller's.
    """

    def __cinit__(self, Mapping mapping not None, int fd, FrameLayout layout, uint64_t pid, semaphore):
        self.fd = -1
        self.mapping = mapping
        self.layout = layout
        self.semaphore = semaphore
        self.generation = current_generation()
        if cf_cache_measure(mapping.address, mapping.size, &self.ring.shape) != CF_OK:
            raise corrupt(mapping)
        # Before the first byte: a picture is written without looking at frame_size again.
        if layout is not None and layout.tight_bytes > <Py_ssize_t>self.ring.shape.frame_size:
            raise ProtocolError(
                f"the slot is damaged: a {layout.format} frame of {layout.shape.width}x{layout.shape.height} has "
                f"{layout.tight_bytes} bytes, its entries have room for {self.ring.shape.frame_size}; remove it and "
                "create it anew")
        if cf_cache_writer_init(&self.ring, mapping.address, mapping.size, fd, pid) != CF_OK:
            raise corrupt(mapping)
        check_whole(mapping.cut)
        self.fd = own(fd)

    def __dealloc__(self):
        if self.fd >= 0 and disown(self.fd):
            c_close(self.fd)

    cdef int enter(self) except -1:
        """The caller is about to use the slot; :meth:`leave` follows. Raises ValueError when it is closed."""
        cdef bint last
        check_generation(self.generation)
        if not enter(&self.ring.gate, &last):
            if last:
                self.finish()
            raise ValueError("the writer is closed")
        return 0

    cdef void leave(self) noexcept:
        if leave(&self.ring.gate):
            self.finish()

    cdef int begin(self, char** pixels) except -1:
        """Begin a frame, until cf_cache_end. Inside only."""
        cdef int status = cf_cache_begin(&self.ring, pixels)
        if status == CF_ENDED:
            raise Disconnected("the slot was removed; create it again to go on")
        return check(status, "another thread is writing a frame here; a slot has one writer")

    cdef uint64_t commit(self, Py_ssize_t size, object pts_us, object wall_us) except? 0:
        """Publish what was written; returns its number. Times were checked before. Inside only."""
        cdef uint64_t wall = time.time_ns() // 1000 if wall_us is None else wall_us
        cdef uint64_t pts = cf_now_ns() // 1000 if pts_us is None else pts_us
        cdef uint64_t seq = self.ring.cursor
        if cf_gate_is_shut(&self.ring.gate):
            raise ValueError("the writer was closed before this frame was published")
        cf_cache_commit(&self.ring, <uint32_t>size, pts, wall)
        check_whole(self.mapping.cut)
        if self.semaphore is not None and self.semaphore.value < TOKENS:
            self.semaphore.release()
        return seq

    def write(self, src, pts_us, wall_us):
        """Copy a frame in and publish it; the copy runs without the GIL. Errors change nothing."""
        cdef Py_buffer buffer
        cdef Rows[MAX_PLANES] rows
        cdef Source source
        if pts_us is not None:
            pts_us = microseconds_of(pts_us)
        if wall_us is not None:
            wall_us = microseconds_of(wall_us)
        if self.layout is not None and plain_rows(self.layout, src, &buffer, rows):
            try:
                return self.write_rows(rows, pts_us, wall_us)
            finally:
                PyBuffer_Release(&buffer)
        if self.layout is None or is_part(src, self.layout.tight_bytes):
            check_unmasked(src)
            PyObject_GetBuffer(src, &buffer, PyBUF_STRIDES)
            try:
                # By its strides, not by what was asked for: not everybody refuses a request for contiguous bytes.
                if not PyBuffer_IsContiguous(&buffer, c"C"):
                    raise BufferError("the slot's pixel format is not known, so its frames are bytes, and these have "
                                      "gaps; give a copy without (numpy.ascontiguousarray)")
                return self.write_bytes(&buffer, pts_us, wall_us)
            finally:
                PyBuffer_Release(&buffer)
        source = source_of(self.layout, src)
        return self.write_rows(source.rows, pts_us, wall_us)

    cdef object write_rows(self, const Rows* rows, object pts_us, object wall_us):
        """A whole picture."""
        cdef char* pixels
        self.enter()
        try:
            self.begin(&pixels)
            try:
                copy_frame(self.layout, rows, pixels)
                return self.commit(self.layout.tight_bytes, pts_us, wall_us)
            finally:
                cf_cache_end(&self.ring)
        finally:
            self.leave()

    cdef object write_bytes(self, Py_buffer* buffer, object pts_us, object wall_us):
        """A frame of another size than the format's, as it is."""
        cdef Py_ssize_t size = buffer.len
        cdef char* pixels
        if size > <Py_ssize_t>self.ring.shape.frame_size:
            raise ValueError(f"the frame has {size} bytes, more than the slot's {self.ring.shape.frame_size}")
        self.enter()
        try:
            self.begin(&pixels)
            try:
                with nogil:
                    cf_copy_rows(pixels, size, <const char*>buffer.buf, size, size, 1, False)
                return self.commit(size, pts_us, wall_us)
            finally:
                cf_cache_end(&self.ring)
        finally:
            self.leave()

    def drop(self, uint64_t count):
        """Count frames that the source lost."""
        self.enter()
        cf_cache_drop(&self.ring, count)
        self.leave()
        check_whole(self.mapping.cut)

    @property
    def cursor(self):
        """Number of the next frame."""
        return self.ring.cursor

    @property
    def closed(self):
        """Whether close() has begun."""
        return bool(cf_gate_is_shut(&self.ring.gate))

    def close(self):
        """Write no more, and give up the lock.

        A frame that another thread is copying in is waited for. One that is being filled in place is not, and cannot be
        published any more: whoever fills it writes to memory that is not the slot's.
        """
        cdef const uint32_t* word = cf_low_half(&(<cf_cache_header*>self.mapping.address).write_cursor)
        cdef int status
        if is_inherited(self.generation):
            if cf_gate_shut(&self.ring.gate):
                self.semaphore.close()  # the lock is the parent's, and closed here since the fork
            return
        with nogil:
            status = shut(&self.ring.gate, word, -1)
        if status == FINISH:
            self.finish()

    cdef void finish(self) noexcept:
        """Nobody writes any more, but perhaps somebody fills a frame."""
        cf_cache_writer_leave(&self.ring)
        try:
            self.semaphore.close()
        except Exception:
            log.exception("closing the semaphore of a slot failed")
        # If the mapping cannot be taken away, whoever fills it may still write to the slot, and the lock stays with us.
        if not cf_load_seq_cst_u32(&self.ring.busy) or cf_cache_revoke(&self.ring):
            if disown(self.fd):
                c_close(self.fd)
            self.fd = -1
        finished(&self.ring.gate)


@cython.no_gc_clear  # giving up needs the writer
cdef class WritableSlotFrame:
    """The slot's next entry, to be filled in place.

    A context manager: the frame is published on a clean exit and abandoned when the block raises. Leaving it cleanly
    raises ValueError when there is nothing to publish: it was not entered, was left before, or its writer was closed.

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
        self.writer.enter()
        try:
            self.writer.begin(&self.pixels)
        finally:
            self.writer.leave()  # close() does not wait for the block: the frame can then not be published
        self.begun = True
        size = self.writer.ring.shape.frame_size if self.writer.layout is None else self.writer.layout.tight_bytes
        self.data = shaped(Borrowed_make(self.writer, self.pixels, size, False), self.writer.layout)
        return self

    def __exit__(self, exc_type, exc, traceback):
        cdef Py_ssize_t size
        if exc_type is not None:
            self.give_up()
            return
        if not self.end():
            raise ValueError("this frame is not being written: its with block was left already, or never entered")
        # From here on it is this call's to publish or to give up.
        try:
            size = self.data.nbytes
            self.data = None
            pts_us = None if self.pts_us is None else microseconds_of(self.pts_us)
            wall_us = None if self.wall_us is None else microseconds_of(self.wall_us)
            self.writer.enter()  # it may have been closed meanwhile
            try:
                self.seq = self.writer.commit(size, pts_us, wall_us)
            finally:
                self.writer.leave()
        finally:
            cf_cache_end(&self.writer.ring)

    def __reduce__(self):
        raise refusal(self, "read the slot with cuframes.framecache.SlotReader in the other process")

    def copy_from(self, src):
        """Copy a whole frame in: what :meth:`SlotWriter.write` takes."""
        cdef Source source
        self.check_begun()
        if self.writer.layout is None:
            raise ValueError("the slot's pixel format is not known; fill data")
        source = source_of(self.writer.layout, src)
        self.check_begun()  # looking at an array can run anybody's code
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

    cdef bint end(self) noexcept:
        """Whether the frame was begun. It is not any more for anybody else: whoever is told so ends it, once."""
        cdef bint begun
        with cython.critical_section(self):
            begun = self.begun
            self.begun = False
        return begun

    cdef void give_up(self) noexcept:
        if self.end():
            self.data = None
            cf_cache_end(&self.writer.ring)

    def __dealloc__(self):
        if self.begun:  # entered by hand and never left
            cf_cache_end(&self.writer.ring)


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
        self.fd = -1
        self.generation = current_generation()
        self.mapping = Mapping(fd, size)
        if cf_cache_reader_init(&self.ring, self.mapping.address, size, fd, start) != CF_OK:
            raise corrupt(self.mapping)
        self.ring.newest = newest
        check_whole(self.mapping.cut)
        self.fd = fd

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)
        if self.has_event:
            c_close(self.ring.event_fd)

    cdef int enter(self) except -1:
        """The caller is about to use the slot; :meth:`leave` follows. Raises ValueError when it is closed."""
        cdef bint last
        check_generation(self.generation)
        if not enter(&self.ring.gate, &last):
            if last:
                self.finish()
            raise ValueError("the reader is closed")
        return 0

    cdef void leave(self) noexcept:
        if leave(&self.ring.gate):
            self.finish()

    def set_layout(self, FrameLayout layout):
        """How the pixels lie in a whole frame; None: frames are bytes."""
        self.layout = layout

    cdef SlotFrame take(self, int64_t deadline, bint copy, object out):
        """The next frame, waiting without the GIL."""
        cdef cf_cache_frame found
        cdef SlotFrame frame
        cdef int status, laps = 0
        self.enter()
        if cf_exchange_u32(&self.busy, 1):
            self.leave()
            check(CF_BUSY, "another thread is reading from this reader")
        try:
            while True:
                if cf_gate_is_shut(&self.ring.gate):
                    self.refuse(CF_CLOSED)
                check_whole(self.mapping.cut)  # what lies before the cut would still be found
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
                check_whole(self.mapping.cut)
                if status != CF_OK and status != CF_AGAIN:
                    self.refuse(status)
        finally:
            cf_store_release_u32(&self.busy, 0)
            self.leave()

    cdef int refuse(self, int status) except -1:
        if status == CF_CUT:
            self.mapping.cut_off()
        if status == CF_CORRUPT:
            check(status, "the slot is damaged: an entry announces more bytes than it has room for; remove it and "
                          "create it anew")
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
        cdef cf_cache_reader probe
        self.enter()
        probe = self.ring
        status = cf_cache_check(&probe)
        self.leave()
        return status == CF_OK, not probe.unlocked

    def set_event(self, int fd):
        """Tell the reader which eventfd :meth:`watch` feeds, so that it is drained when nothing is left. The descriptor
        becomes the reader's.
        """
        try:
            self.enter()
        except ValueError:
            c_close(fd)
            return
        if self.has_event:
            c_close(fd)
        else:
            self.ring.event_fd = fd
            self.has_event = True
        self.leave()

    def watch(self, int fd):
        """Feed an eventfd whenever there is something to read, until the end. For a thread of its own."""
        self.enter()
        with nogil:
            cf_cache_watch(&self.ring, fd)
        self.leave()

    def close(self):
        """Read no more. Threads in :meth:`next` and :meth:`watch` return.

        Returns
        -------
        bool
            Whether this call closed it, rather than an earlier one.
        """
        cdef const uint32_t* word = cf_low_half(&(<cf_cache_header*>self.mapping.address).write_cursor)
        cdef int status
        if is_inherited(self.generation):
            if not cf_gate_is_shut(&self.ring.gate):
                shut_inherited(&self.ring.gate)
                self.finish()
            return False
        with nogil:
            status = shut(&self.ring.gate, word, self.ring.event_fd)
        if status == FINISH:
            self.finish()
        return status != SHUT_BEFORE

    cdef void finish(self) noexcept:
        """Nobody reads any more. The mapping stays as long as a frame lies in it."""
        if self.has_event:
            c_close(self.ring.event_fd)
        if self.fd >= 0:
            c_close(self.fd)
        self.fd = self.ring.fd = self.ring.event_fd = -1
        self.has_event = False
        finished(&self.ring.gate)

    @property
    def closed(self):
        """Whether close() has begun."""
        return bool(cf_gate_is_shut(&self.ring.gate))

    @property
    def abandoned(self):
        """Whether the slot was removed, whatever was in it."""
        self.enter()
        try:
            return os.fstat(self.fd).st_nlink == 0
        finally:
            self.leave()

    @property
    def over(self):
        """Whether the slot was removed."""
        return not self.check()[0]

    @property
    def counters(self):
        """(read, dropped, lapped)"""
        return self.ring.received, self.ring.dropped, self.ring.lapped


cdef class SlotFrame:
    """One frame of a slot: ``(seq, pts_us, wall_us, data, dropped)``.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, of ``uint8`` (``uint16`` where samples have more than 8 bits), in the shape that one array of the
        format has, as in OpenCV and FFmpeg: (height, width, 2) for UYVY, (height x 3/2, width) for 4:2:0, (height,
        width, 3) for RGB. Flat bytes if the frame is smaller than the format's, or the format is not known. With
        ``read(copy=False)`` it is read-only and the slot's own memory, which may be overwritten at any time; look at
        :attr:`valid` after use.
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
