"""Waiting for the first of several subscribers and packet readers."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cuframes._core cimport FrameReader
from cuframes._mapped cimport is_cut
from cuframes._packets cimport PacketRing, cf_packet_reader
from cuframes._ring cimport cf_reader
from cuframes._status cimport *

from cuframes.errors import Disconnected


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "_any.h" nogil:
    enum:
        CF_ANY_MAX
    ctypedef struct cf_any:
        cf_reader* frames
        cf_packet_reader* packets
    int cf_any_wait(const cf_any* rings, uint32_t count, int epoll, int* ready, int64_t deadline)


cdef uint32_t FEW = 16  # up to here, queueing on every ring is cheaper than a write() in every publisher
cdef bint waitv_works = True  # until the kernel says that it has none


def allow_waitv(bint allowed):
    """Whether futex_waitv may be used; tests say no, to wait as on an older kernel."""
    global waitv_works
    waitv_works = allowed


def wait_rings(list receivers not None, timeout, poller):
    """Those of the receivers (Subscriber, PacketReader) that have something; empty after `timeout` seconds.

    Sleeps with futex_waitv, or on the poller's epoll: its ``fileno()`` gives that, ``number`` tells it from others, and
    ``add(receiver)`` is called for receivers that are new to it.
    """
    global waitv_works
    cdef int64_t deadline = deadline_after(timeout)
    cdef uint32_t i, count = len(receivers), most = FEW
    cdef int status = CF_AGAIN, epoll = -1
    cdef uint64_t number
    cdef list rings = []  # they stay while we wait, also if another thread closes their receivers
    cdef cf_any* any = <cf_any*>malloc(count * (sizeof(cf_any) + sizeof(int)))
    cdef int* ready = <int*>(any + count)
    if any == NULL:
        raise MemoryError()
    try:
        for i in range(count):
            ring = ring_of(receivers[i], &any[i])
            rings.append(ring)
            ready[i] = False
            if any[i].packets != NULL:
                most = CF_ANY_MAX  # a descriptor would take a thread for each of those
                if (<PacketRing>ring).ahead is not None:
                    deadline = 0  # it has been read already, so there is nothing to wait for
        while status == CF_AGAIN:
            if epoll < 0 and (count > most or not waitv_works):
                epoll, number = poller.fileno(), poller.number
                for i in range(count):
                    listen(poller, number, receivers[i], rings[i])
            with nogil:
                status = cf_any_wait(any, count, epoll, ready, deadline)
            PyErr_CheckSignals()
            if status == CF_NO_WAITV:
                waitv_works = False
                status = CF_AGAIN
            elif status == CF_AGAIN and any_cut(rings):
                break
        found = []
        for i in range(count):
            if ready[i] or ring_cut(rings[i]) or any[i].packets != NULL and (<PacketRing>rings[i]).ahead is not None:
                found.append(receivers[i])
        return found
    finally:
        free(any)


cdef bint ring_cut(object ring):
    """Whether the ring's memory was cut off, which its receiver is to say."""
    if isinstance(ring, FrameReader):
        return is_cut((<FrameReader>ring).header.cut)
    return is_cut((<PacketRing>ring).mapping.cut)


cdef bint any_cut(list rings):
    for ring in rings:
        if ring_cut(ring):
            return True
    return False


cdef object ring_of(object receiver, cf_any* any):
    """The receiver's ring, and where its memory is."""
    # An attribute rather than a method: with many receivers, asking them is what a call costs.
    ring = getattr(receiver, "_ring", receiver)
    any.frames = NULL
    any.packets = NULL
    if isinstance(ring, FrameReader):
        any.frames = &(<FrameReader>ring).ring
        check_generation((<FrameReader>ring).generation)
    elif isinstance(ring, PacketRing):
        any.packets = &(<PacketRing>ring).ring
        check_generation((<PacketRing>ring).generation)
    elif ring is None:
        raise ValueError(f"the {receiver._what} is closed")
    else:
        raise TypeError(f"wait_any waits for Subscriber and PacketReader, not {type(receiver).__name__}")
    return ring


cdef int listen(object poller, uint64_t number, object receiver, object ring) except -1:
    """Add the receiver to the poller, unless its ring is there already."""
    cdef FrameReader frames
    cdef PacketRing packets
    if isinstance(ring, PacketRing):
        packets = ring
        if packets.polled_by != number:
            poller.add(receiver)
            packets.polled_by = number
        return 0
    frames = ring
    if frames.polled_by != number:
        try:
            poller.add(receiver)
            frames.polled_by = number
        except Disconnected:
            pass  # as the next look at its connection will find
    return 0
