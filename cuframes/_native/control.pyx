"""The control segment of a frame ring, for code that only reads it: constants, layout, reports."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from cuframes._native.mapping cimport Mapping, check_whole
from cuframes._shm cimport *

from cuframes.errors import ProtocolError


def layout_rows():
    """(type, field or None, offset, size) of every structure in shm.h and its fields, as the compiler laid them out."""
    cdef const cf_layout_row* row = cf_layout
    rows = []
    while row.type != NULL:
        field = None if row.field == NULL else (<bytes>row.field).decode()
        rows.append(((<bytes>row.type).decode(), field, row.offset, row.size))
        row += 1
    return rows


HEADER_BYTES = sizeof(cf_frame_header)
FRAME_MAGIC = CF_FRAME_MAGIC
MIN_RING = CF_MIN_RING
MAX_RING = CF_MAX_RING
MAX_SUBSCRIBERS = CF_MAX_SUBSCRIBERS - 1  # bit 0 is never assigned
MAX_KEY = CF_MAX_KEY_LEN
MAX_NAME = CF_MAX_NAME_LEN
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
        raise ProtocolError(f"a control segment has {sizeof(cf_frame_header)} bytes, but this one has {mapping.size}")
    return <cf_frame_header*>mapping.address


cdef int store_presentation(cf_presentation* to, tuple values) except -1:
    """Store the values of a ``cuframes.color.Presentation``."""
    cdef cf_presentation new
    (new.range, new.matrix, new.primaries, new.transfer, new.field_order, new.rotation, new.aspect_num, new.aspect_den,
     new.rate_den, new.rate_num) = values
    to[0] = new
    return 0


cdef tuple presentation_values(const cf_presentation* found):
    """The values that ``Presentation.of_stored`` takes. They are not checked."""
    return (found.range, found.matrix, found.primaries, found.transfer, found.field_order, found.rotation,
            found.aspect_num, found.aspect_den, found.rate_den, found.rate_num)


def describe(source not None):
    """A snapshot of a control segment as a dict, for reports. Only reads the segment, and needs no place in the ring.

    `source` is a :class:`Mapping`, or the first bytes of a segment. (Reading instead of mapping is for segments that
    may be truncated at any time.) The values are not checked: a caller that depends on one must check it.

    Raises
    ------
    SegmentTruncated
        The mapped segment was truncated.
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
        raise ProtocolError(f"a control segment has {sizeof(copy)} bytes, but this one has {len(source)}")
    cdef uint64_t bitmap = cf_load_acquire(&h.subscriber_bitmap)
    subscribers = []
    for bit in range(1, CF_MAX_SUBSCRIBERS):
        s = &h.subscribers[<int>bit]
        if bitmap >> bit & 1:
            name = <bytes>s.consumer_name[:sizeof(s.consumer_name)]
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
        "presentation": presentation_values(&h.meta.presentation),
        "device_uuid": bytes(h.meta.device_uuid[:sizeof(h.meta.device_uuid)]),
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
    """What a version 3 subscriber opens for each slot: (memory handle, offset in that memory, event handle).

    The values are not checked. `ring_size` comes from the handshake, since the segment may contain any value.
    """
    cdef cf_frame_header* h = header_of(mapping)
    found = [
        (
            bytes(h.slots[<int>k].mem_handle[:sizeof(h.slots[0].mem_handle)]),
            h.slots[<int>k].base_offset,
            bytes(h.slot_event_handles[<int>k][:sizeof(h.slot_event_handles[0])]),
        )
        for k in range(min(ring_size, <int>CF_MAX_RING))
    ]
    check_whole(mapping.cut)
    return found


def meta_bytes(Mapping mapping not None):
    """The bytes of ``frame_meta``, in the form in which the handshake sends them."""
    cdef cf_frame_header* h = header_of(mapping)
    return (<char*>&h.meta)[:sizeof(cf_frame_meta)]


def describe_meta(bytes meta not None):
    """(format, width, height, pitch_y, pitch_uv, bytes of a frame, UUID of the GPU, values of the presentation) of
    ``frame_meta``, not checked.
    """
    cdef cf_frame_meta m
    if len(meta) != sizeof(m):
        raise ProtocolError(f"frame_meta has {sizeof(m)} bytes, not {len(meta)}")
    memcpy(&m, <const char*>meta, sizeof(m))
    uuid = bytes(m.device_uuid[:sizeof(m.device_uuid)])
    looks = presentation_values(&m.presentation)
    return m.format, m.width, m.height, m.pitch_y, m.pitch_uv, m.frame_size_bytes, uuid, looks
