"""The frame ring for Python: mapped segments, the writer's and the reader's end, and the hold on a taken frame.

The algorithm is C (``_ring.h``) and runs without the GIL. This module owns its structures, turns its status codes into
exceptions in one place, and ties lifetimes together: a :class:`Hold` keeps its :class:`FrameReader`, a reader keeps its
mappings, so memory is unmapped when the last frame of it is gone.
"""

cimport cython
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from cuframes._ring cimport *
from cuframes._shm cimport *

import os

from cuframes.errors import (
    Disconnected,
    FrameDropped,
    Overwritten,
    ProtocolError,
    Timeout,
    TooManyHeld,
)


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_POPULATE
    void* MAP_FAILED
    void* c_mmap "mmap"(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int c_munmap "munmap"(void* address, size_t size)


cdef extern from "<pthread.h>" nogil:
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


# A forked child inherits our objects but not our place in the ring: its pins would be the parent's. Objects remember
# the generation they were made in; the handler runs in the child of any fork, also one made by C code.
cdef int fork_generation = 0


cdef void in_forked_child() noexcept nogil:
    global fork_generation
    fork_generation += 1


pthread_atfork(NULL, NULL, in_forked_child)


cdef int check_generation(int generation) except -1:
    if generation != fork_generation:
        raise RuntimeError(
            "this object belongs to the parent process; open a new Publisher or Subscriber after the fork"
        )
    return 0


cdef int check(int status, object context=None) except -1:
    """The one place that turns a CF_* status into an exception."""
    if status == CF_OK:
        return 0
    if status == CF_TIMED_OUT:
        raise Timeout(context or "no frame arrived in time")
    if status == CF_ENDED:
        raise Disconnected("the publisher is gone and every frame it left has been taken")
    if status == CF_HELD:
        raise FrameDropped(
            "every slot of the ring is held by subscribers; let them release frames sooner, or use a larger ring_size"
        )
    if status == CF_TOO_MANY:
        raise TooManyHeld(context)
    if status == CF_OVERWRITTEN:
        raise Overwritten("the frame was overwritten while it was held: discard what was read from it")
    if status == CF_BUSY:
        raise RuntimeError(context)
    if status == CF_CLOSED:
        raise ValueError("the subscriber is closed")
    if status == CF_NO_BIT:
        raise Disconnected("the ring has 31 subscribers and no place for another")
    raise SystemError(f"unknown ring status {status}")


cdef int64_t deadline_after(object timeout) except? -1:
    """CLOCK_MONOTONIC nanoseconds at which a wait of `timeout` seconds ends; None never ends."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)


cdef class Mapping:
    """Bytes of a descriptor, mapped shared. The descriptor may be closed afterwards; nothing is duplicated.

    Parameters
    ----------
    fd : int
    size : int
        Bytes to map; the caller has checked that the file is that long.
    writable : bool
    populate : bool
        Touch every page now, so that the first frames do not pay for it.
    """

    def __cinit__(self, int fd, Py_ssize_t size, *, bint writable=False, bint populate=False):
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        cdef int flags = MAP_SHARED | (MAP_POPULATE if populate else 0)
        cdef void* address
        with nogil:
            address = c_mmap(NULL, <size_t>size, protection, flags, fd, 0)
        if address == MAP_FAILED:
            raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
        self.address = <char*>address
        self.size = size
        self.writable = writable

    def __dealloc__(self):
        if self.address != NULL:
            c_munmap(self.address, <size_t>self.size)


def monotonic_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
    return cf_now_ns()


def layout_rows():
    """(type, field or None, offset, size) of everything in _shm.h, as the compiler laid it out."""
    cdef const cf_layout_row* row = cf_layout
    rows = []
    while row.type != NULL:
        field = None if row.field == NULL else (<bytes>row.field).decode()
        rows.append(((<bytes>row.type).decode(), field, row.offset, row.size))
        row += 1
    return rows


HEADER_BYTES = sizeof(cf_frame_header)
FRAME_MAGIC = CF_FRAME_MAGIC
STRICT_WAIT = CF_POLICY_STRICT_WAIT
DROP_OLDEST = CF_POLICY_DROP_OLDEST
# ext_flags and handshake features
PINS = CF_EXT_PINS
FUTEX = CF_EXT_FUTEX
HOST_MEMORY = CF_EXT_HOST_MEMORY
VMM_MEMORY = CF_EXT_VMM_MEMORY
OWNER_LOCK = CF_EXT_OWNER_LOCK
PASS_FD = CF_EXT_PASS_FD


cdef cf_frame_header* header_of(Mapping mapping) except NULL:
    if mapping.size < <Py_ssize_t>sizeof(cf_frame_header):
        raise ProtocolError(f"a control segment has {sizeof(cf_frame_header)} bytes, this one {mapping.size}")
    return <cf_frame_header*>mapping.address


def describe(Mapping mapping not None):
    """A snapshot of a control segment as a dict, for reports. Reads only; needs no place in the ring.

    Values are as found: a caller that depends on one checks it.
    """
    cdef cf_frame_header* h = header_of(mapping)
    cdef cf_subscriber* s
    cdef uint64_t bitmap = cf_load_acquire(&h.subscriber_bitmap)
    subscribers = []
    for bit in range(1, CF_MAX_SUBSCRIBERS):
        s = &h.subscribers[<int>bit]
        if bitmap >> bit & 1:
            name = <bytes>s.consumer_name[:32]
            subscribers.append({
                "name": name.split(b"\0")[0].decode("utf-8", "replace"),
                "pid": s.consumer_pid,
                "bit": bit,
                "received": cf_load_acquire(&s.received),
                "lost": cf_load_acquire(&s.lost),
                "skipped": cf_load_acquire(&s.skipped),
                "held": cf_load_acquire(&s.held),
            })
    return {
        "magic": h.magic,
        "proto_version": h.proto_version,
        "lib_version": (h.lib_version_major, h.lib_version_minor, h.lib_version_patch),
        "ext_flags": h.ext_flags,
        "producer_pid": h.producer_pid,
        "ring_size": h.ring_size,
        "ownership_mode": h.ownership_mode,
        "policy": h.policy,
        "format": h.meta.format,
        "width": h.meta.width,
        "height": h.meta.height,
        "pitch_y": h.meta.pitch_y,
        "pitch_uv": h.meta.pitch_uv,
        "frame_bytes": h.meta.frame_size_bytes,
        "epoch": h.epoch,
        "global_seq": cf_load_acquire(&h.global_seq),
        "shutdown": bool(cf_load_acquire(&h.shutdown_flag)),
        "frames_published": cf_load_acquire(&h.frames_published),
        "frames_dropped": cf_load_acquire(&h.frames_dropped),
        "subscribers": subscribers,
    }


def meta_bytes(Mapping mapping not None):
    """The 64 bytes of frame_meta, as the handshake sends them."""
    cdef cf_frame_header* h = header_of(mapping)
    return (<char*>&h.meta)[:sizeof(cf_frame_meta)]


cdef class FrameWriter:
    """The publisher's end of a frame ring.

    One frame is written at a time. `header` and `pool` stay mapped as long as this object lives.

    Parameters
    ----------
    header : Mapping
        The control segment, writable, zero-filled; it is initialised here.
    pool : Mapping or None
        Slot k begins at ``k * stride``.
    meta : tuple
        (format code, width, height, pitch_y, pitch_uv, bits per pixel, frame bytes)
    """

    def __cinit__(self, Mapping header not None, Mapping pool, Py_ssize_t stride, *, tuple meta, uint32_t ring_size,
                  uint32_t policy, uint32_t ext_flags, uint64_t epoch, tuple version, uint64_t pid):
        cdef cf_frame_header* h = header_of(header)
        if not CF_MIN_RING <= ring_size <= CF_MAX_RING:
            raise ValueError(f"ring_size must be {CF_MIN_RING} to {CF_MAX_RING}, not {ring_size}")
        self.header = header
        self.pool = pool
        self.stride = stride
        self.generation = fork_generation
        h.proto_version = CF_PROTOCOL_V3
        h.lib_version_major, h.lib_version_minor, h.lib_version_patch = version
        h.ext_flags = ext_flags
        h.producer_pid = pid
        h.ring_size = ring_size
        h.policy = policy
        h.max_subscribers = CF_MAX_SUBSCRIBERS
        (h.meta.format, h.meta.width, h.meta.height, h.meta.pitch_y, h.meta.pitch_uv, h.meta.bits_per_pixel,
         h.meta.frame_size_bytes) = meta
        h.epoch = epoch
        cf_writer_init(&self.ring, h, ring_size, policy)

    cdef int begin(self, object timeout) except -1:
        """Take a slot for writing, or raise FrameDropped (drop_oldest) or Timeout (strict_wait)."""
        cdef int64_t deadline = deadline_after(timeout)
        cdef int status
        if self.closed:
            raise ValueError("the publisher is closed")
        check_generation(self.generation)
        while True:
            with nogil:
                status = cf_writer_begin(&self.ring, deadline)
            if status != CF_AGAIN:
                break
            PyErr_CheckSignals()
        if status == CF_TIMED_OUT:
            check(status, "a subscriber did not release the oldest frame in time (policy strict_wait)")
        return check(status, "another frame of this publisher is being written; a publisher is one writer")

    cdef char* begun(self) noexcept nogil:
        return self.pool.address + cf_writer_slot(&self.ring) * self.stride

    cdef uint64_t commit(self, object pts_ns, uint64_t written_bytes) except? 0:
        cdef int64_t pts = cf_now_ns() if pts_ns is None else pts_ns
        cdef uint64_t seq
        with nogil:
            seq = cf_writer_commit(&self.ring, pts, written_bytes)
        return seq

    cdef void abandon(self) noexcept nogil:
        cf_writer_abandon(&self.ring)

    def join(self, bytes name not None, uint64_t pid):
        """Admit a subscriber: (bit, newest seq, its frame_no), or None when all 31 places are taken."""
        cdef uint32_t bit
        cdef uint64_t seq, frame_no
        cdef const char* raw = name
        cdef int status
        with nogil:
            status = cf_writer_join(&self.ring, raw, pid, &bit, &seq, &frame_no)
        if status == CF_NO_BIT:
            return None
        check(status)
        return bit, seq, frame_no

    def leave(self, uint32_t bit):
        """Forget a subscriber: its pins, what it owed, its event."""
        with nogil:
            cf_writer_leave(&self.ring, bit)

    def feed(self, uint32_t bit, int fd):
        """Add 1 to this eventfd at every publish, until the subscriber leaves. The caller closes it after that."""
        with nogil:
            cf_writer_feed(&self.ring, bit, fd)

    def close(self):
        """Tell every subscriber that nothing will come. Frames they hold stay as they are."""
        self.closed = True
        if self.generation == fork_generation:
            cf_writer_shutdown(&self.ring)

    @property
    def counters(self):
        """(newest seq, frames published, frames dropped), from this process's own memory."""
        return self.ring.seq, self.ring.frames, self.ring.dropped


cdef class FrameReader:
    """A subscriber's end of a frame ring, for one connection.

    Parameters
    ----------
    header : Mapping
        The control segment, writable (pins and counters are written there).
    pool : Mapping or None
        The frames, read-only. Slot k begins at ``k * stride``.
    connection
        Whatever keeps the place in the ring: its ``fileno()`` is watched while waiting, ``heard()`` is called when it
        has something to say (true: the publisher is gone), ``close()`` when the reader is closed and its last frame
        released.
    ring : tuple
        (ring size, bit, max_held, ordered, spin, pins, strict)
    position : tuple
        (last seq, its frame_no or None when what lies before the first frame is not to be counted)
    """

    def __cinit__(self, Mapping header not None, Mapping pool, Py_ssize_t stride, connection, *, tuple ring,
                  tuple position):
        self.ring.shared = header_of(header)
        self.header = header
        self.pool = pool
        self.stride = stride
        self.connection = connection
        self.epoch = self.ring.shared.epoch
        self.generation = fork_generation
        (self.ring.ring_size, self.ring.bit, self.ring.max_held, ordered, self.ring.spin, self.ring.pins,
         self.ring.strict) = ring
        self.ring.mode = CF_ORDERED if ordered else CF_NEWEST
        self.ring.last_seq, last_frame_no = position
        self.ring.counted = last_frame_no is not None
        self.ring.last_frame_no = last_frame_no or 0
        self.ring.sock = connection.fileno()
        self.ring.event_fd = -1
        if not CF_MIN_RING <= self.ring.ring_size <= CF_MAX_RING or not 1 <= self.ring.bit < CF_MAX_SUBSCRIBERS:
            raise ProtocolError(f"a ring of {self.ring.ring_size} slots and bit {self.ring.bit} are out of range")
        if pool is not None and pool.size < stride * self.ring.ring_size:
            raise ProtocolError(f"{self.ring.ring_size} frames of {stride} bytes do not fit a pool of {pool.size}")

    cdef char* slot_address(self, unsigned int k) noexcept nogil:
        return self.pool.address + k * self.stride

    cdef Hold take(self, object timeout):
        """Take the next frame, waiting without the GIL."""
        cdef int64_t deadline = 0 if timeout == 0 else deadline_after(timeout)
        cdef Hold hold = Hold.__new__(Hold)
        cdef int status
        check_generation(self.generation)
        while True:
            with nogil:
                status = cf_reader_next(&self.ring, deadline, &hold.taken)
            if status == CF_OK:
                hold.reader = self
                hold.live = True
                return hold
            if status == CF_PEER:
                if self.connection.heard():
                    cf_reader_hangup(&self.ring)
            elif status != CF_AGAIN:
                break
            PyErr_CheckSignals()
        if status == CF_TOO_MANY:
            check(status, f"this subscriber holds {cf_reader_held(&self.ring)} of at most {self.ring.max_held} frames; "
                          "release frames, and arrays or tensors made from them, or raise max_held")
        check(status, "another thread is taking a frame from this subscriber" if status == CF_BUSY else None)

    def set_event(self, int fd):
        """Tell the reader which eventfd the publisher feeds for it, so that it is drained when nothing is left."""
        self.ring.event_fd = fd

    def close(self):
        """Take no more frames. The connection ends when the last held frame is released."""
        if self.closing:
            return
        self.closing = True
        if self.generation == fork_generation:
            cf_reader_close(&self.ring)
        if cf_reader_held(&self.ring) == 0:
            self.connection.close()

    @property
    def counters(self):
        """(received, lost, skipped, held, overwritten)"""
        return (self.ring.received, self.ring.lost, self.ring.skipped, cf_reader_held(&self.ring),
                self.ring.overwritten)


@cython.no_gc  # it takes part in no cycle, and must find its reader intact when it goes
cdef class Hold:
    """A place in the ring that cannot be overwritten while this object lives.

    Frames, planes and everything exported from them keep a reference to it, so "the last array of this frame died" is
    its deallocation. That may happen on any thread, or at interpreter exit, and must therefore not raise.
    """

    cdef int give_back(self) noexcept:
        """Release the slot, once. The status says whether the frame was whole."""
        cdef int status = CF_OK
        if not self.live:
            return status
        self.live = False
        cdef FrameReader reader = self.reader
        if reader.generation != fork_generation:
            return status
        status = cf_reader_release(&reader.ring, self.taken.slot, self.taken.seq)
        if reader.closing and cf_reader_held(&reader.ring) == 0:
            reader.connection.close()
        return status

    def __dealloc__(self):
        self.give_back()
