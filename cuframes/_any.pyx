"""Waiting for the first of several subscribers and packet readers."""

from libc.stdint cimport int64_t, uint32_t

from cuframes._core cimport FrameReader
from cuframes._packets cimport PacketRing, cf_packet_reader
from cuframes._ring cimport cf_reader
from cuframes._status cimport *


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "_any.h" nogil:
    enum:
        CF_ANY_MAX
    ctypedef struct cf_any:
        cf_reader* frames
        cf_packet_reader* packets
    int cf_any_wait(const cf_any* rings, uint32_t count, int* ready, int64_t deadline)


MOST = CF_ANY_MAX


def wait_rings(list rings not None, timeout):
    """Indices of the rings (FrameReader, PacketRing; at most MOST) that have something; empty after `timeout` seconds.

    None where the kernel has no futex_waitv.
    """
    cdef cf_any[CF_ANY_MAX] any
    cdef int[CF_ANY_MAX] ready
    cdef int64_t deadline = deadline_after(timeout)
    cdef uint32_t i, count = len(rings)
    cdef int status = CF_AGAIN
    for i in range(count):
        ring = rings[i]
        any[i].frames = NULL
        any[i].packets = NULL
        if isinstance(ring, FrameReader):
            any[i].frames = &(<FrameReader>ring).ring
            check_generation((<FrameReader>ring).generation)
        else:
            any[i].packets = &(<PacketRing?>ring).ring
            check_generation((<PacketRing>ring).generation)
            if (<PacketRing>ring).ahead is not None:
                deadline = 0  # it has been read already, so there is nothing to wait for
    while status == CF_AGAIN:
        with nogil:
            status = cf_any_wait(any, count, ready, deadline)
        PyErr_CheckSignals()
    if status == CF_NO_WAITV:
        return None
    packets_ahead = [any[i].packets != NULL and (<PacketRing>rings[i]).ahead is not None for i in range(count)]
    return [i for i in range(count) if ready[i] or packets_ahead[i]]
