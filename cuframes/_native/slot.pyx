"""The framecache slot for Python: its writer, its reader, and the frames.

The algorithm is in C (``slot_ring.h``). It runs without the GIL wherever it waits or copies much.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp
from posix.fcntl cimport O_CREAT, O_EXCL

from cuframes._native.arrays cimport FrameRows, Rows, cf_copy_rows, check_unmasked, copy_frame, is_short_frame
from cuframes._native.arrays cimport plain_rows, pts_of, rows_of
from cuframes._native.control cimport presentation_values, store_presentation
from cuframes._native.layout cimport MAX_PLANES, FrameLayout
from cuframes._native.mapping cimport Borrowed_make, Mapping, check_whole
from cuframes._shm cimport cf_presentation, cf_load_acquire, cf_load_seq_cst_u32, cf_low_half, cf_now_ns
from cuframes._native.ring_end cimport Descriptor, ReaderEnd, RingEnd, cf_gate_is_shut
from cuframes._native.status cimport *

import logging
import os
import time

import numpy

from cuframes.color import Presentation
from cuframes.errors import Disconnected, ProtocolError, printable, refusal
from cuframes.picturing import functions


log = logging.getLogger("cuframes")


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "<semaphore.h>":
    ctypedef struct sem_t:
        pass
    sem_t* SEM_FAILED
    sem_t* sem_open(const char* name, int flags, ...)
    int sem_close(sem_t* semaphore)


cdef extern from "cuframes/copy.h" nogil:
    void cf_copy_racing(char* dst, const char* src, size_t size)


MAGIC = CF_CACHE_MAGIC
VERSION = CF_CACHE_VERSION
HEADER_BYTES = sizeof(cf_cache_header)
SEMAPHORE_BYTES = sizeof(cf_semaphore)
DEFAULT_DEPTH = CF_CACHE_DEFAULT_DEPTH
MIN_DEPTH = CF_CACHE_MIN_DEPTH
MAX_SOURCE_TYPE = sizeof((<cf_cache_header*>NULL).source_type) - 1
MAX_SLOT_ID = sizeof((<cf_cache_header*>NULL).slot_id) - 1
START_NEXT = CF_CACHE_NEXT
START_LATEST = CF_CACHE_LATEST
START_OLDEST = CF_CACHE_OLDEST

cdef Py_ssize_t LARGE = 64 * 1024  # copies of at least this size release the GIL; getting it back can take a while
cdef int LAPS = 3  # torn copies in one call before the deadline is checked
# The semaphore only tells a waiting C client to look, so a few tokens are enough. A slot without readers must not
# accumulate millions of tokens, which its next reader would have to drain.
cdef uint32_t TOKENS = 4
cdef int SEMAPHORES = 8  # of one slot that a writer posts: the present one, and those that somebody has removed


def slot_size(uint32_t frame_size, uint32_t depth):
    """Size of a slot's file in bytes."""
    return cf_cache_size(frame_size, depth)


def create_semaphore(str name not None, unsigned int mode):
    """Create a POSIX semaphore with the value 0. Raises FileExistsError, PermissionError or another OSError."""
    cdef sem_t* made = sem_open(os.fsencode(name), O_CREAT | O_EXCL, mode, <unsigned int>0)
    if made == SEM_FAILED:
        raise OSError(errno, os.strerror(errno), name)
    sem_close(made)


def format_slot(Mapping mapping not None, *, uint32_t width, uint32_t height, uint32_t fps_num, uint32_t fps_den,
                uint32_t pixel_format, uint32_t frame_size, uint32_t depth, bytes source_type not None,
                bytes slot_id not None):
    """Write the header of a new slot. `mapping` is writable, zero-filled, and not yet visible to others."""
    cdef cf_cache_header* h = <cf_cache_header*>mapping.address
    if mapping.size < <Py_ssize_t>sizeof(cf_cache_header):
        raise ValueError("the mapping is too small for the header of a slot")
    if len(source_type) > MAX_SOURCE_TYPE or not 0 < len(slot_id) <= MAX_SLOT_ID:
        raise ValueError(f"source_type must have at most {MAX_SOURCE_TYPE} bytes, and slot_id 1 to {MAX_SLOT_ID}")
    h.width, h.height = width, height
    h.fps_num, h.fps_den = fps_num, fps_den
    h.pixel_format = pixel_format
    h.source_type[:len(source_type)] = source_type
    h.slot_id[:len(slot_id)] = slot_id
    cf_cache_format(h, frame_size, depth)


cdef cf_cache_header read_header(Mapping mapping) except *:
    """A copy of a slot's header, for checks: the header itself may be changed by others at any time."""
    cdef cf_cache_header copy
    if mapping.size < <Py_ssize_t>sizeof(cf_cache_header):
        raise ProtocolError(f"a framecache slot has at least {sizeof(cf_cache_header)} bytes, but this file has "
                            f"{mapping.size}")
    cf_copy_racing(<char*>&copy, mapping.address, sizeof(copy))
    return copy


def measure_slot(bytes header not None, uint64_t size):
    """Number of bytes that a slot occupies, computed from the first bytes of its file of `size` bytes.

    Raises
    ------
    ProtocolError
        The file is not a slot of this version, or its header does not fit the file.
    """
    cdef cf_cache_header copy
    cdef cf_cache_shape shape
    if size < sizeof(copy) or len(header) != sizeof(copy):
        raise ProtocolError(f"this is not a framecache slot: a slot has at least {sizeof(copy)} bytes, but this file "
                            f"has {size}")
    cf_copy_racing(<char*>&copy, header, sizeof(copy))
    if cf_cache_measure(&copy, size, &shape) != CF_OK:
        raise wrong_header(copy, size)
    return cf_cache_size(shape.frame_size, shape.depth)


def describe_slot(Mapping mapping not None):
    """A snapshot of a slot's header as a dict, for reports. ``frame_size``, ``ring_depth`` and ``size`` (bytes of the
    slot) are consistent and fit the mapping; the other values are not checked.

    Raises
    ------
    ProtocolError
        The mapping is not (or no longer) a slot, or the header does not fit the mapping.
    """
    cdef cf_cache_header h = read_header(mapping)
    cdef cf_cache_shape shape
    cdef bytes source_type = h.source_type[:sizeof(h.source_type)]
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
        # Loaded atomically, since the copy of the header may contain torn values.
        "write_cursor": cf_load_acquire(&(<cf_cache_header*>mapping.address).write_cursor),
        "dropped_frames": cf_load_acquire(&(<cf_cache_header*>mapping.address).dropped_frames),
        "source_type": printable(source_type.split(b"\0")[0].decode("utf-8", "replace")),
        "writer_pid": cf_load_acquire(&(<cf_cache_header*>mapping.address).writer_pid),
        "presentation": presentation_values(&h.presentation),
    }


cdef uint64_t microseconds_of(object value) except? 0:
    """A caller's timestamp in the form that the slot format stores: unsigned, 64 bits."""
    if value is True or value is False:
        raise TypeError(f"a time in microseconds must be an int, not {value}")
    try:
        return PyNumber_Index(value)
    except OverflowError:
        raise ValueError(f"a time in microseconds must be 0 to 2**64 - 1, not {value}") from None


cdef corrupt(Mapping mapping):
    """The exception for a slot that cf_cache_measure refused."""
    check_whole(mapping.cut)
    return wrong_header(read_header(mapping), mapping.size)


cdef wrong_header(cf_cache_header found, uint64_t size):
    if found.magic == CF_CACHE_MAGIC and found.version != CF_CACHE_VERSION:
        return ProtocolError(f"the slot has version {found.version} of the framecache format; this library reads "
                             f"version {VERSION}")
    return ProtocolError(f"this is not a framecache slot, or it is truncated: magic {found.magic:#x}, version "
                         f"{found.version}, {found.ring_depth} entries for {found.frame_size} bytes, file of {size}")


cdef class CacheWriter(RingEnd):
    """The writer's end of a slot. It closes what it is given.

    Parameters
    ----------
    mapping : Mapping
        The slot, writable.
    lock : Descriptor
        The open file that holds the writer's lock, owned. This object closes it, which releases the lock.
    layout : FrameLayout or None
        None if the pixel format is unknown; frames are then plain bytes.
    pid : int
    semaphore : Mapping
        The semaphore's file, writable.
    semaphore_path : str
        For log messages.

    Raises
    ------
    ProtocolError
        The mapping is not a slot, or its entries are too small for its pictures. `lock` then stays open.
    """

    def __cinit__(self, Mapping mapping not None, Descriptor lock not None, FrameLayout layout,
                  uint64_t pid, Mapping semaphore not None,
                  str semaphore_path not None):
        self.mapping = mapping
        self.layout = layout
        self.semaphores = ()
        self.add_semaphore(semaphore)
        self.semaphore_path = semaphore_path
        if cf_cache_measure(mapping.address, mapping.size, &self.ring.shape) != CF_OK:
            raise corrupt(mapping)
        # Checked here once: writing a picture does not look at frame_size again.
        if layout is not None and layout.tight_bytes > <Py_ssize_t>self.ring.shape.frame_size:
            raise ProtocolError(
                f"the slot is damaged: a {layout.format} frame of {layout.shape.width}x{layout.shape.height} has "
                f"{layout.tight_bytes} bytes, but the slot's entries have room for {self.ring.shape.frame_size}; "
                "remove the slot and create it again")
        self.gate, self.what, self.cut = &self.ring.gate, "writer", mapping.cut
        self.word = cf_low_half(&(<cf_cache_header*>mapping.address).write_cursor)
        if cf_cache_writer_init(&self.ring, mapping.address, mapping.size, lock.fileno(), pid) != CF_OK:
            raise corrupt(mapping)
        check_whole(mapping.cut)
        self.lock = lock

    cdef int begin(self, char** pixels) except -1:
        """Begin a frame, which cf_cache_end ends. To be called inside the gate only."""
        cdef int status = cf_cache_begin(&self.ring, pixels)
        if status == CF_ENDED:
            raise Disconnected("the slot was removed; create it again to continue")
        return check(status, "another thread is writing a frame; only one thread at a time may write to a slot")

    cdef uint64_t commit(self, Py_ssize_t size, object pts_us, object wall_us) except? 0:
        """Publish the begun frame and return its number. The caller has checked the times, and is inside the gate."""
        cdef uint64_t wall = time.time_ns() // 1000 if wall_us is None else wall_us
        cdef uint64_t pts = cf_now_ns() // 1000 if pts_us is None else pts_us
        cdef uint64_t seq = self.ring.cursor
        if cf_gate_is_shut(&self.ring.gate):
            raise ValueError("the writer was closed before this frame was published")
        cf_cache_commit(&self.ring, <uint32_t>size, pts, wall)
        check_whole(self.mapping.cut)
        self.post_semaphores()
        return seq

    cdef int post_semaphores(self) except -1:
        """Wake C programs. Our own readers do not use the semaphore, so writing goes on without it."""
        cdef Mapping semaphore
        cdef bint newest = True
        with cython.critical_section(self):
            semaphores = self.semaphores
        for semaphore in semaphores:
            posted = cf_semaphore_post(<cf_semaphore*>semaphore.address, TOKENS)
            if newest and not posted and not self.semaphore_lost:
                self.semaphore_lost = True
                log.warning("the semaphore %s was truncated or overwritten, so C programs that wait on it are not "
                            "woken; frames are still written. Remove the semaphore: this writer then makes it again",
                            self.semaphore_path)
            newest = False
        return 0

    def add_semaphore(self, Mapping semaphore not None):
        """Post this semaphore too, which has the name by now. Those before it are still posted, up to a number of them:
        programs may be waiting on them.
        """
        if semaphore.size < <Py_ssize_t>sizeof(cf_semaphore):
            raise ValueError(f"a semaphore has {sizeof(cf_semaphore)} bytes, not {semaphore.size}")
        with cython.critical_section(self):
            self.semaphores = (semaphore, *self.semaphores[:SEMAPHORES - 1])
            self.semaphore_lost = False

    def write(self, src, pts_us, wall_us):
        """Copy a frame into the slot and publish it. The copy runs without the GIL. A failure publishes nothing."""
        cdef Py_buffer buffer
        cdef Rows[MAX_PLANES] rows
        cdef FrameRows source
        if pts_us is not None:
            pts_us = microseconds_of(pts_us)
        if wall_us is not None:
            wall_us = microseconds_of(wall_us)
        if self.layout is not None and plain_rows(self.layout, src, &buffer, rows):
            try:
                return self.write_rows(rows, pts_us, wall_us)
            finally:
                PyBuffer_Release(&buffer)
        if self.layout is None or is_short_frame(src, self.layout.tight_bytes):
            check_unmasked(src)
            PyObject_GetBuffer(src, &buffer, PyBUF_STRIDES)
            try:
                # Check the strides instead of requesting contiguous bytes: not every exporter honours that request.
                if not PyBuffer_IsContiguous(&buffer, c"C"):
                    raise BufferError("the slot's pixel format is unknown, so a frame must be contiguous bytes, but "
                                      "this array has gaps; pass a contiguous copy (numpy.ascontiguousarray)")
                return self.write_bytes(&buffer, pts_us, wall_us)
            finally:
                PyBuffer_Release(&buffer)
        source = rows_of(self.layout, src)
        if pts_us is None:
            pts_ns = pts_of(src)
            pts_us = None if pts_ns is None else max(0, pts_ns) // 1000
        return self.write_rows(source.rows, pts_us, wall_us)

    cdef object write_rows(self, const Rows* rows, object pts_us, object wall_us):
        """Write a whole picture."""
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
        """Write plain bytes as a frame, for frames that are not a whole picture."""
        cdef Py_ssize_t size = buffer.len
        cdef char* pixels
        if size > <Py_ssize_t>self.ring.shape.frame_size:
            raise ValueError(f"the frame has {size} bytes, more than the slot's limit of {self.ring.shape.frame_size}")
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
        """Add to the count of frames that the source lost."""
        self.enter()
        cf_cache_drop(&self.ring, count)
        self.leave()
        check_whole(self.mapping.cut)

    @property
    def presentation(self):
        """What the slot says about its pictures. Readers see a new value with the next frame."""
        cdef cf_presentation copy
        self.enter()
        cf_copy_racing(<char*>&copy, <char*>&(<cf_cache_header*>self.mapping.address).presentation, sizeof(copy))
        self.leave()
        check_whole(self.mapping.cut)
        return Presentation.of_stored(presentation_values(&copy))

    @presentation.setter
    def presentation(self, looks):
        cdef cf_presentation new
        store_presentation(&new, looks.stored)
        self.enter()
        cf_copy_racing(<char*>&(<cf_cache_header*>self.mapping.address).presentation, <char*>&new, sizeof(new))
        self.leave()
        check_whole(self.mapping.cut)

    @property
    def cursor(self):
        """Number that the next frame will have."""
        return self.ring.cursor

    cdef void finish(self) noexcept:
        """Leave the slot. A caller may still be filling a frame in place: that frame cannot be published, and from here
        on the caller's writes go to memory outside of the slot.
        """
        cf_cache_writer_leave(&self.ring)
        # If the mapping cannot be replaced, such a caller may still write to the slot, so we keep the lock.
        if not cf_load_seq_cst_u32(&self.ring.busy) or cf_cache_revoke(&self.ring):
            self.lock.close()


@cython.no_gc_clear  # abandoning the frame needs the writer
cdef class WritableSlotFrame:
    """The slot's next entry, which the writer fills in place.

    Use it as a context manager: the frame is published when the block ends normally and abandoned when the block
    raises. A normal end raises ValueError if there is nothing to publish: the frame was never entered, its block has
    ended before, or its writer was closed.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, writable, in the shape of :attr:`SlotFrame.data`. At first they are those of an earlier frame.
        Write to them inside the block only; afterwards readers read the same memory.
    pts_us, wall_us : int or None
        Presentation time, and time of capture since 1970, in microseconds. None means now.
    seq : int or None
        Number of the frame; None until the frame is published.
    """

    def __cinit__(self, CacheWriter writer not None):
        self.writer = writer

    def __enter__(self):
        if self.pixels != NULL:
            raise ValueError("a writable frame can be used only once; call acquire() again")
        self.writer.enter()
        try:
            self.writer.begin(&self.pixels)
        finally:
            self.writer.leave()  # close() does not wait for the block; a frame that it overtakes cannot be published
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
            raise ValueError("this frame is not being written: its with block has already ended, or was never entered "
                             "(with writer.acquire() as frame)")
        # This call must now either publish the frame or give it up.
        try:
            with cython.critical_section(self):  # other threads that help to fill the frame may use its attributes
                data, self.data = self.data, None
                pts_us, wall_us = self.pts_us, self.wall_us
            size = data.nbytes
            pts_us = None if pts_us is None else microseconds_of(pts_us)
            wall_us = None if wall_us is None else microseconds_of(wall_us)
            self.writer.enter()  # raises if the writer was closed during the block
            try:
                self.seq = self.writer.commit(size, pts_us, wall_us)
            finally:
                self.writer.leave()
        finally:
            cf_cache_end(&self.writer.ring)

    def __reduce__(self):
        raise refusal(self, "read the slot with cuframes.framecache.SlotReader in the other process")

    def __repr__(self):
        cdef FrameLayout layout = self.writer.layout
        picture = "" if layout is None else f" {layout.format} {layout.shape.width}x{layout.shape.height}"
        return f"<WritableSlotFrame{picture}>"

    def copy_from(self, src):
        """Copy a whole frame into the slot. `src` is anything that :meth:`SlotWriter.write` accepts."""
        cdef FrameRows source
        self.check_begun()
        if self.writer.layout is None:
            raise ValueError("the slot's pixel format is unknown; write to frame.data instead")
        source = rows_of(self.writer.layout, src)
        self.check_begun()  # once more, since inspecting an array can run arbitrary code
        source.part_from(self.pixels)
        copy_frame(self.writer.layout, source.rows, self.pixels)

    cdef int check_begun(self) except -1:
        if not self.begun:
            raise ValueError("a writable frame is valid inside its with block only")
        return 0

    @property
    def planes(self):
        """The planes as a tuple of writable arrays: ``frame.planes[0][...] = luma``."""
        with cython.critical_section(self):
            data = self.data
        self.check_begun()
        return planes_of(data, self.writer.layout)

    cdef bint end(self) noexcept:
        """Whether the frame was begun. Only the first caller gets True, and must end the frame."""
        cdef bint begun
        with cython.critical_section(self):
            begun = self.begun
            self.begun = False
        return begun

    cdef void give_up(self) noexcept:
        if self.end():
            with cython.critical_section(self):
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
        raise ValueError("this frame is not a whole picture of a known pixel format; use frame.data")
    return tuple([
        numpy.ndarray(plane.shape, data.dtype, buffer=data, offset=plane.offset, strides=plane.strides)
        for plane in layout.shape.planes
    ])


cdef class CacheRing(ReaderEnd):
    """A reader's end of a slot.

    Parameters
    ----------
    file : Descriptor
        The slot, open for reading. This object takes it over.
    size : int
        Size of the file in bytes.
    start : int
        START_NEXT, START_LATEST or START_OLDEST.
    newest : bool
        Always take the newest frame, passing over older ones.

    Raises
    ------
    ProtocolError
        The file is not a slot of this version, or its header does not fit the file.
    """

    def __cinit__(self, Descriptor file not None, Py_ssize_t size, *, int start, bint newest):
        cdef int fd = file.fileno()
        self.mapping = Mapping(fd, size)
        self.gate, self.what, self.polled = &self.ring.gate, "reader", &self.ring.event_fd
        self.cut = self.mapping.cut
        self.word = cf_low_half(&(<cf_cache_header*>self.mapping.address).write_cursor)
        if cf_cache_reader_init(&self.ring, self.mapping.address, size, fd, start) != CF_OK:
            raise corrupt(self.mapping)
        self.ring.newest = newest
        check_whole(self.mapping.cut)
        self.fd = file.release()

    def set_layout(self, FrameLayout layout):
        """Set how the pixels of a whole frame lie in memory. None: frames are plain bytes."""
        self.layout = layout

    cdef object looks_now(self):
        """What the slot says about its pictures, now: the next writer may say something else."""
        cdef cf_presentation now
        cf_copy_racing(<char*>&now, <char*>&(<cf_cache_header*>self.mapping.address).presentation, sizeof(now))
        if self.looks is None or memcmp(&now, &self.seen, sizeof(now)):
            self.seen = now
            self.looks = Presentation.of_stored(presentation_values(&now))
        return self.looks

    @property
    def presentation(self):
        """What the slot says about its pictures."""
        self.enter()
        try:
            return self.looks_now()
        finally:
            self.leave()

    cdef SlotFrame take(self, int64_t deadline, bint copy, object out):
        """The next frame. Waits for it without the GIL."""
        cdef cf_cache_frame found
        cdef SlotFrame frame
        cdef int status, laps = 0
        self.begin_take()
        try:
            while True:
                if cf_gate_is_shut(&self.ring.gate):
                    self.refuse(CF_CLOSED)
                check_whole(self.mapping.cut)  # else frames before the point of truncation would still be found
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
            self.end_take()

    cdef int refuse(self, int status) except -1:
        if status == CF_CUT:
            self.mapping.cut_off()
        if status == CF_CORRUPT:
            check(status, "the slot is damaged: an entry announces more bytes than it has room for; remove the slot "
                          "and create it again")
        if status == CF_ENDED:
            raise Disconnected("the slot was removed, and all its frames have been read")
        check(status, "no frame arrived within the timeout" if status == CF_TIMED_OUT else "the reader is closed")

    cdef SlotFrame read(self, const cf_cache_frame* found, bint copy, object out):
        """The frame that was found, or None if it was overwritten before the copy was complete."""
        cdef SlotFrame frame = SlotFrame.__new__(SlotFrame)
        cdef Py_ssize_t size = found.size
        cdef Py_buffer buffer
        cdef bint whole
        whole_frame = self.layout is not None and size == self.layout.tight_bytes
        frame.layout = self.layout
        frame.looks = self.looks_now()
        if not copy:
            frame.ring = self
            flat = Borrowed_make(self, found.pixels, size, True)
            frame.data = shaped(flat, self.layout if whole_frame else None)
        else:
            if out is not None:
                frame.data, frame.into = out, True
            elif whole_frame:
                frame.data = numpy.empty(self.layout.shape.array_shape, f"u{self.layout.item_bytes}")
            else:
                frame.data = numpy.empty(size, numpy.uint8)
            PyObject_GetBuffer(frame.data, &buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
            try:
                if buffer.len != size:
                    raise ValueError(f"out has {buffer.len} bytes, but the frame has {size}; they must be equal")
                if size < LARGE:
                    whole = cf_cache_read(&self.ring, found, <char*>buffer.buf)
                else:
                    with nogil:
                        whole = cf_cache_read(&self.ring, found, <char*>buffer.buf)
            finally:
                PyBuffer_Release(&buffer)
            if not whole:
                cf_cache_resync(&self.ring)
                return None
        frame.found = found[0]
        frame.dropped = cf_cache_advance(&self.ring, found)
        frame.newest = self.ring.newest
        return frame

    def next(self, timeout, bint copy, out):
        """See :meth:`take`; `timeout` is in seconds or None."""
        return self.take(deadline_after(timeout), copy, out)

    def entry(self, uint64_t seq):
        """(pts_us, wall_us, size) of frame `seq`, or None if the slot does not contain that frame."""
        cdef cf_cache_frame found
        if cf_cache_look(&self.ring, seq, &found) != CF_OK:
            return None
        return found.pts_us, found.wall_us, found.size

    def describe(self):
        """See :func:`describe_slot`."""
        return describe_slot(self.mapping)

    def check(self):
        """(whether the slot still exists, whether a writer holds its lock)."""
        cdef cf_cache_reader probe
        self.enter()
        probe = self.ring
        status = cf_cache_check(&probe)
        self.leave()
        return status == CF_OK, not probe.unlocked

    cdef void feed(self, int fd) noexcept nogil:
        cf_cache_watch(&self.ring, fd)

    cdef void close_descriptors(self) noexcept:
        ReaderEnd.close_descriptors(self)
        self.ring.fd = -1

    @property
    def abandoned(self):
        """Whether the slot was removed. Some of its frames may not have been read yet."""
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
        """(received, lost, skipped, lapped)"""
        cdef uint64_t skipped = self.ring.dropped if self.ring.newest else 0
        return self.ring.received, self.ring.dropped - skipped, skipped, self.ring.lapped


cdef class SlotFrame:
    """One frame of a slot: ``(seq, pts_us, wall_us, data, dropped)``.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, of ``uint8`` (``uint16`` where samples have more than 8 bits), in the array shape that OpenCV and
        FFmpeg use for the format: (height, width, 2) for UYVY, (height x 3/2, width) for 4:2:0, (height, width, 3) for
        RGB. Flat bytes if the frame is smaller than a picture of the format, or if the format is unknown. With
        ``read(copy=False)`` it is a read-only view of the slot's own memory, which may be overwritten at any time;
        check :attr:`valid` after use. With ``next(out=buffer)`` it is that buffer.
    dropped : int
        Number of frames that were missed between the frame read before and this one: ``lost`` and ``skipped`` together.
        (``dropped`` is the slot format's own word.)

    Notes
    -----
    Like a :class:`cuframes.Frame`, the frame itself can be used as an array: the buffer protocol, NumPy's array
    interface and DLPack give :attr:`data`, in the picture's shape, without another copy.
    """

    @property
    def seq(self):
        """Number of the frame since the slot was created, starting at 0."""
        return self.found.seq

    @property
    def lost(self):
        """Number of frames between the frame read before and this one that were overwritten unread."""
        return 0 if self.newest else self.dropped

    @property
    def skipped(self):
        """Number of frames between the frame read before and this one that were passed over (mode ``newest``)."""
        return self.dropped if self.newest else 0

    @property
    def pts_ns(self):
        """Presentation time in nanoseconds. The slot stores microseconds."""
        return <object>self.found.pts_us * 1000  # as an int of Python: any 64 bits are possible

    @property
    def pts_us(self):
        """Presentation time in microseconds, as the writer gave it."""
        return self.found.pts_us

    @property
    def wall_us(self):
        """Time of capture in microseconds since 1970 (CLOCK_REALTIME), as the writer gave it."""
        return self.found.wall_us

    @property
    def shape(self):
        """Shape of the frame as an array."""
        return self.as_array().shape

    @property
    def format(self):
        """Name of the pixel format, as in ``cuframes.formats.FORMATS``. None if it is unknown."""
        return None if self.layout is None else self.layout.format

    @property
    def width(self):
        """Pixels. None if the format is unknown."""
        return None if self.layout is None else self.layout.shape.width

    @property
    def height(self):
        """Pixels. None if the format is unknown."""
        return None if self.layout is None else self.layout.shape.height

    @property
    def color(self):
        """The samples' :class:`Color`: range, matrix, primaries and transfer, as far as the writer has said them."""
        return self.looks.color

    @property
    def sample_aspect_ratio(self):
        """Width of a sample to its height, a Fraction. None: not said, which players take for 1."""
        return self.looks.sample_aspect_ratio

    @property
    def field_order(self):
        """``"progressive"``, or interlaced ``"tt"`` (top first), ``"bb"``, ``"tb"``, ``"bt"``. None: not said."""
        return self.looks.field_order

    @property
    def rotation(self):
        """Degrees (0, 90, 180, 270) by which the picture must be turned clockwise to be upright. None: not said."""
        return self.looks.rotation

    @property
    def planes(self):
        """The planes of the picture as a tuple of arrays over :attr:`data`, without a copy.

        Raises
        ------
        ValueError
            The frame is not a whole picture of its format, or the format is unknown.
        """
        return planes_of(self.as_array(), self.layout)

    @property
    def valid(self):
        """Whether everything read from :attr:`data` so far belongs to this frame. Always true for a copy."""
        return self.ring is None or cf_cache_whole(&self.ring.ring, self.found.seq)

    @property
    def ndim(self):
        """Number of axes of the frame as an array."""
        return self.as_array().ndim

    def tobytes(self):
        """The frame's bytes, copied."""
        return self.as_array().tobytes()

    def to_ndarray(self, format="rgb24", width=None, height=None):
        """A copy of the picture as a NumPy array, in another pixel format or size.

        The colours are right: the conversion uses the frame's :attr:`color`, and for what that leaves open what players
        assume. FFmpeg converts, without the GIL. Needs PyAV.

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
            The format or the size is not possible, or the frame is not a whole picture of a known format.
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

    cdef object as_array(self):
        """:attr:`data` as an array of the frame's shape: `out` may be any buffer with as many bytes."""
        with cython.critical_section(self):
            if self.array is None:
                whole = self.layout is not None and <Py_ssize_t>self.found.size == self.layout.tight_bytes
                self.array = shaped(self.data, self.layout if whole else None) if self.into else self.data
            array = self.array
        return array

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        """Does nothing, since a frame of a slot is never held. It allows the same code as for a :class:`Frame`."""

    def __reduce__(self):
        if self.ring is not None:
            raise refusal(self, "read it with copy=True, or copy its data and then check valid")
        shape = None if self.layout is None else self.layout.shape
        return _slot_frame, (
            self.seq, self.pts_us, self.wall_us, self.as_array(), self.dropped, shape, self.newest, self.looks)

    def __array__(self, dtype=None, copy=None):
        if copy is None:  # NumPy 1 does not have this argument
            return numpy.asarray(self.as_array(), dtype)
        return numpy.array(self.as_array(), dtype, copy=copy)

    @property
    def __array_interface__(self):
        return self.as_array().__array_interface__

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyObject_GetBuffer(self.as_array(), view, flags)

    def __dlpack__(self, **asked):
        return self.as_array().__dlpack__(**asked)

    def __dlpack_device__(self):
        return self.as_array().__dlpack_device__()

    def __repr__(self):
        picture = "" if self.layout is None else f"{self.format} {self.width}x{self.height}, "
        return (f"<SlotFrame {picture}{self.found.size} bytes, seq {self.seq}, pts {self.pts_us} us"
                f"{f', {self.dropped} dropped before it' if self.dropped else ''}>")


def _slot_frame(seq, pts_us, wall_us, data, dropped, shape, newest, looks):
    """A frame from its parts, for unpickling."""
    cdef SlotFrame frame = SlotFrame.__new__(SlotFrame)
    frame.found.seq = seq
    frame.found.pts_us = pts_us
    frame.found.wall_us = wall_us
    frame.found.size = data.nbytes
    frame.data = data
    frame.newest = newest
    frame.looks = looks
    frame.dropped = dropped
    frame.layout = None if shape is None else FrameLayout(shape)
    return frame
