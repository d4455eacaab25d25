"""Waiting for the first of several rings. They may be frame rings, packet rings and framecache slots."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cuframes._core cimport FrameReader
from cuframes._native.mapping cimport is_cut
from cuframes._native.packets cimport PacketRing, cf_packet_reader
from cuframes._native.slot cimport CacheRing, cf_cache_reader
from cuframes._native.frame_ring cimport cf_reader, cf_reader_hangup
from cuframes._shm cimport cf_now_ns
from cuframes._native.ring_end cimport RingEnd
from cuframes._native.status cimport *


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "cuframes/wait_any.h" nogil:
    enum:
        CF_ANY_MAX
        CF_ANY_CONNECTION
    ctypedef struct cf_any:
        cf_reader* frames
        cf_packet_reader* packets
        cf_cache_reader* slots
    int cf_any_wait(const cf_any* rings, uint32_t count, int epoll, bint unanswered, int* ready, int64_t deadline)


cdef uint32_t MAX_FUTEX_RINGS = 16  # up to this many, queueing on every ring is cheaper than every publisher's write()
cdef bint waitv_works = True  # until the kernel reports that it does not have it


def allow_waitv(bint allowed):
    """Set whether futex_waitv may be used. Tests disable it, to wait as on an older kernel."""
    global waitv_works
    waitv_works = allowed


def wait_rings(list receivers not None, list rings not None, timeout, poller):
    """The receivers whose ring has something to take, or an empty list after `timeout` seconds. A ring is a
    FrameReader, a PacketRing or a CacheRing, or None if the receiver is closed. Of the receivers, only their rings are
    used here.

    Sleeps with futex_waitv, or on the poller's epoll. ``poller.fileno()`` is the epoll, and ``poller.number`` its
    unique number. ``poller.add(receiver, ring)`` is called for a receiver that the poller does not know yet, until it
    returns true: it then has the publisher's eventfd. Nothing waits for a publisher's answer: until it comes, the
    connection itself is in the epoll.
    """
    cdef int64_t deadline = deadline_after(timeout)
    cdef uint32_t i, count = len(receivers)
    cdef list inside = []  # rings whose gate we have entered, so that they stay valid while we wait
    cdef cf_any* any = <cf_any*>malloc(count * (sizeof(cf_any) + sizeof(int)))
    cdef int* ready = <int*>(any + count)
    if any == NULL:
        raise MemoryError()
    try:
        for i in range(count):
            ready[i] = False
            inside.append(enter_ring(rings[i], receivers[i], &any[i]))
        wait_inside(receivers, inside, any, ready, deadline, poller)
        found = []
        for i in range(count):
            if ready[i] or ring_cut(inside[i]) or has_ahead(inside[i]):
                found.append(receivers[i])
        return found
    finally:
        for ring in inside:
            if ring is not None:
                (<RingEnd>ring).leave()
        free(any)


cdef int wait_inside(list receivers, list rings, cf_any* any, int* ready, int64_t deadline, object poller) except -1:
    """Mark the rings that are ready. They stay valid meanwhile, since the caller has entered their gates."""
    global waitv_works
    cdef uint32_t i, count = len(rings), most = MAX_FUTEX_RINGS
    cdef int status = CF_AGAIN, epoll = -1
    cdef uint64_t number = 0
    cdef bint asking
    cdef list unanswered = []
    for i in range(count):
        if any[i].frames == NULL:
            most = CF_ANY_MAX  # each of these would need a thread to feed a descriptor
        if has_ahead(rings[i]):
            deadline = 0  # its next packet has been read already, so there is nothing to wait for
    while status == CF_AGAIN:
        if epoll < 0 and (count > most or not waitv_works):
            epoll, number = poller.fileno(), poller.number
            for i in range(count):
                listen(poller, number, receivers[i], rings[i], unanswered)
        asking = bool(unanswered)
        with nogil:
            status = cf_any_wait(any, count, epoll, asking, ready, deadline)
        PyErr_CheckSignals()
        if status == CF_NO_WAITV:
            waitv_works = False
            status = CF_AGAIN
        if status == CF_OK and not read_connections(count, any, rings, ready) and cf_now_ns() < deadline:
            status = CF_AGAIN
        if status == CF_AGAIN and any_cut(rings):
            break
        if asking:
            unanswered = listen_again(poller, number, unanswered)
    return 0


cdef bint read_connections(uint32_t count, cf_any* any, list rings, int* ready) except -1:
    """Read the connections that have messages, which may be the end or something irrelevant. Returns whether any ring
    is ready.
    """
    cdef bint found = False
    cdef uint32_t i
    for i in range(count):
        if ready[i] == CF_ANY_CONNECTION:
            ready[i] = (<FrameReader>rings[i]).connection.read_messages()
            if ready[i]:
                cf_reader_hangup(any[i].frames)
        found = found or ready[i]
    return found


cdef bint ring_cut(RingEnd ring) noexcept:
    """Whether the ring's file was truncated. Its receiver then counts as ready, so that it can raise."""
    return ring is not None and is_cut(ring.cut)


cdef bint has_ahead(RingEnd ring) noexcept:
    return ring is not None and ring.has_ahead()


cdef bint any_cut(list rings):
    for ring in rings:
        if ring_cut(ring):
            return True
    return False


cdef object enter_ring(object ring, object receiver, cf_any* any):
    """Enter the ring and set `any` to its C structure. Returns the ring, or None if it is closed. (The receiver's
    ``next()`` then raises.)
    """
    any.frames = NULL
    any.packets = NULL
    any.slots = NULL
    if isinstance(ring, FrameReader):
        any.frames = &(<FrameReader>ring).ring
    elif isinstance(ring, PacketRing):
        any.packets = &(<PacketRing>ring).ring
    elif isinstance(ring, CacheRing):
        any.slots = &(<CacheRing>ring).ring
    elif ring is not None:
        raise TypeError("wait_any accepts Subscriber, PacketReader and framecache.SlotReader, not "
                        f"{type(receiver).__name__}")
    if ring is not None:
        try:
            (<RingEnd>ring).enter()
        except ValueError:
            any.frames, any.packets, any.slots = NULL, NULL, NULL
            ring = None
    return ring


cdef int listen(object poller, uint64_t number, object receiver, RingEnd ring, list unanswered) except -1:
    """Add the receiver to the poller, unless the poller has its ring already."""
    if ring is not None and ring.polled_by != number:
        if poller.add(receiver, ring):
            ring.polled_by = number
        else:
            unanswered.append((receiver, ring))
    return 0


cdef list listen_again(object poller, uint64_t number, list unanswered):
    """Read the answers of publishers. Returns the receivers whose publisher has not answered yet."""
    cdef list left = []
    for receiver, ring in unanswered:
        if (<FrameReader>ring).connection.read_messages():
            cf_reader_hangup(&(<FrameReader>ring).ring)
        else:
            listen(poller, number, receiver, ring, left)
    return left
