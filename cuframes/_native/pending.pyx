"""GPU frames that were released while the GPU may still read them: ``pending.h`` for Python.

The GIL: events are recorded and queried, and frames given back, without it. The table keeps references to Python
objects, so that readers and streams stay alive as long as needed. :func:`collect` drops these references, with the GIL.
Every release calls it. When a closed subscriber waits for it, the reaper asks Python's main thread to call it.
"""

from cpython.ref cimport PyObject, Py_INCREF, Py_XDECREF
from libc.stdlib cimport calloc, free
from libc.stdint cimport uint32_t, uint64_t

from cuframes._native.cuda cimport Device, cf_gpu
from cuframes._native.frame_ring cimport cf_reader
from cuframes._shm cimport CF_MAX_RING

import atexit
import logging

log = logging.getLogger("cuframes")


cdef extern from "Python.h":
    int Py_AddPendingCall(int (*function)(void*) noexcept, void* argument) nogil


cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)


cdef extern from "cuframes/pending.h" nogil:
    ctypedef struct cf_pending:
        cf_gpu gpu
        cf_reader* ring
        uint32_t mask

    void cf_pending_join(cf_pending* p)
    void cf_pending_leave(cf_pending* p)
    int cf_pending_defer(cf_pending* p, uint32_t k, uint64_t seq, void** streams, int count, bint stream_unknown,
                         void** keep, void** old)
    void cf_pending_look(cf_pending* p, bint may_block)
    bint cf_pending_outlive(cf_pending* p, void* what)
    void cf_pending_stay(cf_pending* p)
    void* cf_pending_kept(cf_pending* p, uint32_t k)
    void* cf_pending_collect(int* call)
    bint cf_pending_ready()
    void cf_pending_set_notify(int (*notify)() noexcept nogil)
    void cf_pending_forked() noexcept
    uint32_t cf_load_seq_cst_u32(const uint32_t* p)


cdef class Pending:
    """The pending frames of one reader. :meth:`end` must be called before the reader's memory is freed."""

    def __dealloc__(self):
        free(self.table)

    cdef int defer(self, uint32_t slot, uint64_t seq, void** streams, int count, bint stream_unknown,
                   object keep) noexcept:
        """Give a frame back when the work of the streams that used it is over, which may be at once. `keep` keeps the
        streams alive. Returns 0, or the driver's error if an event could not be recorded. Recording is then repeated
        until it succeeds.
        """
        cdef void* kept = <void*>keep
        cdef void* old = NULL
        cdef int result
        Py_INCREF(keep)
        with nogil:
            result = cf_pending_defer(<cf_pending*>self.table, slot, seq, streams, count, stream_unknown, &kept, &old)
        Py_XDECREF(<PyObject*>kept)
        Py_XDECREF(<PyObject*>old)
        return result

    cdef void reap(self) noexcept nogil:
        """Give back the frames whose work is over."""
        cf_pending_look(<cf_pending*>self.table, False)

    cdef bint any(self) noexcept nogil:
        """Whether a frame is pending."""
        return cf_load_seq_cst_u32(&(<cf_pending*>self.table).mask) != 0

    cdef bint outlive(self, object what) noexcept:
        """To be called when the reader is closed. If frames are pending, returns true; when no frame is held any more,
        the connection is ended and `what` is called. `what` keeps the reader alive until then. Returns false if no
        frame is pending.
        """
        cdef bint kept
        cdef void* raw = <void*>what
        Py_INCREF(what)
        with nogil:
            kept = cf_pending_outlive(<cf_pending*>self.table, raw)
        if not kept:
            Py_XDECREF(<PyObject*>raw)
        return kept

    cdef void stay(self) noexcept nogil:
        """The caller is about to close the connection: do not use its descriptor any more."""
        cf_pending_stay(<cf_pending*>self.table)

    cdef void end(self, bint inherited) noexcept:
        """The reader is being deallocated. In a forked child (`inherited`), makes no driver call."""
        cdef uint32_t k
        if not inherited:
            with nogil:  # it may wait for the GPU, which may wait for a callback that needs the GIL
                cf_pending_leave(<cf_pending*>self.table)
            for k in range(<uint32_t>CF_MAX_RING):
                Py_XDECREF(<PyObject*>cf_pending_kept(<cf_pending*>self.table, k))


cdef Pending pending_of(cf_reader* ring, Device device):
    cdef cf_pending* p = <cf_pending*>calloc(1, sizeof(cf_pending))
    cdef Pending pending
    if p == NULL:
        raise MemoryError()
    pending = Pending.__new__(Pending)
    pending.table = p
    p.gpu = device.gpu
    p.ring = ring
    with nogil:
        cf_pending_join(p)
    return pending


cdef void collect() noexcept:
    """Drop the references that pending frames no longer need. Closed readers that waited for them end here."""
    cdef int call = 0
    cdef void* raw
    while cf_pending_ready():
        with nogil:
            raw = cf_pending_collect(&call)
        if raw == NULL:
            return
        try:
            thing = <object>raw
            Py_XDECREF(<PyObject*>raw)
            if call:
                thing()
            thing = None
        except Exception:
            log.exception("finishing a closed subscriber failed")


cdef int collect_now(void* unused) noexcept:
    collect()
    return 0


cdef int ask_for_collection() noexcept nogil:
    return Py_AddPendingCall(collect_now, NULL)


def python_ends():
    """The interpreter is about to end: stop collecting, since the process ends as well."""
    with nogil:
        cf_pending_set_notify(NULL)


cf_pending_set_notify(ask_for_collection)
atexit.register(python_ends)
pthread_atfork(NULL, NULL, cf_pending_forked)
