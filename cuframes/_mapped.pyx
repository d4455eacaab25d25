"""Mapped bytes: segments in this process's memory, where a ring's frames are, and reports on a control segment.

Nothing here takes part in a ring; ``_core`` does.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from cuframes._cuda cimport Device
from cuframes._shm cimport *

import os

from cuframes.errors import ProtocolError, SegmentTruncated


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_POPULATE
    void* MAP_FAILED
    void* c_mmap "mmap"(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int c_munmap "munmap"(void* address, size_t size)


cdef extern from "_guard.h" nogil:
    ctypedef struct cf_guard:
        uint32_t cut
    bint cf_guard_needed(int fd)
    int cf_guard_install()
    cf_guard* cf_guard_watch(void* start, size_t size, int protection)
    void cf_guard_cut(cf_guard* g)
    void cf_guard_unmap(cf_guard* g)


cdef uint32_t NEVER = 0  # the mark of mappings that nobody can cut


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
    guarded : bool
        Survive that somebody shrinks the file: what is mapped is zeros from then on, and :func:`check_whole` raises
        SegmentTruncated. Costs nothing where the file is sealed against it. False for a file that is about to be.

    Notes
    -----
    The first mapping that has to be guarded installs a handler of SIGBUS, once per process; see _guard.h. With
    CUFRAMES_SIGBUS_GUARD=0 in the environment nothing is guarded, and such a file ends the process with SIGBUS.
    """

    def __cinit__(self, int fd, Py_ssize_t size, *, bint writable=False, bint populate=False, bint guarded=True):
        cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
        cdef int flags = MAP_SHARED | (MAP_POPULATE if populate else 0)
        cdef void* address
        cdef int problem
        self.cut = &NEVER
        guarded = guarded and cf_guard_needed(fd) and os.environ.get("CUFRAMES_SIGBUS_GUARD") != "0"
        if guarded:
            problem = cf_guard_install()
            if problem:
                raise OSError(problem, f"cannot handle SIGBUS: {os.strerror(problem)}")
        with nogil:
            address = c_mmap(NULL, <size_t>size, protection, flags, fd, 0)
        if address == MAP_FAILED:
            raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
        self.address = <char*>address
        self.size = size
        self.writable = writable
        if guarded:
            self.guard = cf_guard_watch(address, <size_t>size, protection)
            if self.guard == NULL:
                raise MemoryError()
            self.cut = &(<cf_guard*>self.guard).cut

    cdef void cut_off(self) noexcept:
        """The file was found to be shorter than the mapping: every call raises SegmentTruncated from now on."""
        if self.guard != NULL:
            cf_guard_cut(<cf_guard*>self.guard)

    def __dealloc__(self):
        if self.guard != NULL:
            cf_guard_unmap(<cf_guard*>self.guard)
        elif self.address != NULL:
            c_munmap(self.address, <size_t>self.size)


cdef int refuse_cut() except -1:
    raise SegmentTruncated()


cdef class Borrowed:
    """Bytes of a mapping, as a buffer that keeps them mapped."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*>self.address, self.size, self.readonly, flags)


cdef Borrowed Borrowed_make(object keeper, const char* address, Py_ssize_t size, bint readonly):
    cdef Borrowed borrowed = Borrowed.__new__(Borrowed)
    borrowed.keeper = keeper
    borrowed.address = address
    borrowed.size = size
    borrowed.readonly = readonly
    return borrowed


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


def describe(source not None):
    """A snapshot of a control segment as a dict, for reports. Reads only; needs no place in the ring.

    `source` is a :class:`Mapping`, or the first bytes of a segment that may be cut off at any time: those are read, not
    mapped. Values are as found: a caller that depends on one checks it.

    Raises
    ------
    SegmentTruncated
        The mapped segment was cut off while it was looked at, or before.
    """
    cdef cf_frame_header copy
    cdef cf_frame_header* h = &copy
    cdef bytes raw
    cdef cf_subscriber* s
    if isinstance(source, Mapping):
        h = header_of(source)
    elif len(source) >= <Py_ssize_t>sizeof(copy):
        raw = source
        memcpy(&copy, <const char*>raw, sizeof(copy))
    else:
        raise ProtocolError(f"a control segment has {sizeof(copy)} bytes, this one {len(source)}")
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
    found = {
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
        "device_uuid": bytes(h.meta.device_uuid[:16]),
        "epoch": h.epoch,
        "global_seq": cf_load_acquire(&h.global_seq),
        "shutdown": bool(cf_load_acquire(&h.shutdown_flag)),
        "frames_published": cf_load_acquire(&h.frames_published),
        "frames_dropped": cf_load_acquire(&h.frames_dropped),
        "subscribers": subscribers,
    }
    if isinstance(source, Mapping):
        check_whole((<Mapping>source).cut)
    return found


def handles(Mapping mapping not None, int ring_size):
    """What a version 3 subscriber opens: (memory handle, offset in that memory, event handle) of each slot.

    Values are as found. How many there are is taken from the handshake: what the segment says may be anything.
    """
    cdef cf_frame_header* h = header_of(mapping)
    found = [
        (bytes(h.slots[<int>k].mem_handle[:64]), h.slots[<int>k].base_offset, bytes(h.slot_event_handles[<int>k][:64]))
        for k in range(min(ring_size, <int>CF_MAX_RING))
    ]
    check_whole(mapping.cut)
    return found


def meta_bytes(Mapping mapping not None):
    """The 64 bytes of frame_meta, as the handshake sends them."""
    cdef cf_frame_header* h = header_of(mapping)
    return (<char*>&h.meta)[:sizeof(cf_frame_meta)]


cdef class Slots:
    """Where the frames of a ring are: one address per slot, and on a GPU one event per slot.

    Parameters
    ----------
    addresses : list of int
    owner
        Whatever keeps the memory (and the events) there.
    device : Device or None
        None for host memory.
    events : list of int
        The driver's event of each slot, for device memory.
    ring_event : int
        The event that is recorded at every frame, whatever its slot; the publisher's side only.
    """

    def __cinit__(self, list addresses not None, owner, *, Device device=None, list events=None,
                  uintptr_t ring_event=0):
        cdef int k
        self.count = len(addresses)
        if not <int>CF_MIN_RING <= self.count <= <int>CF_MAX_RING:
            raise ValueError(f"a ring has {CF_MIN_RING} to {CF_MAX_RING} slots, not {self.count}")
        self.owner = owner
        self.device = device
        self.ring_event = <void*>ring_event
        for k in range(self.count):
            self.address[k] = <char*><uintptr_t>addresses[k]
            self.event[k] = <void*><uintptr_t>events[k] if events else NULL

    @property
    def addresses(self):
        """Where each slot begins."""
        return [<uintptr_t>self.address[k] for k in range(self.count)]

    @staticmethod
    def of_mapping(Mapping mapping not None, Py_ssize_t stride, int count):
        """Slots that follow each other in one mapping."""
        if mapping.size < stride * count:
            raise ProtocolError(f"{count} frames of {stride} bytes do not fit a pool of {mapping.size}")
        return Slots([<uintptr_t>mapping.address + k * stride for k in range(count)], mapping)
