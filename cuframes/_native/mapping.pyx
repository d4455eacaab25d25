"""Files mapped into this process. Other processes may truncate them at any time."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t

import os

from cuframes.errors import SegmentTruncated


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_POPULATE
    void* MAP_FAILED
    void* c_mmap "mmap"(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int c_munmap "munmap"(void* address, size_t size)


cdef extern from "cuframes/guard.h" nogil:
    ctypedef struct cf_guard:
        uint32_t cut
    bint cf_guard_needed(int fd)
    int cf_guard_install()
    cf_guard* cf_guard_watch(void* start, size_t size, int protection)
    void cf_guard_cut(cf_guard* g)
    void cf_guard_unmap(cf_guard* g)


cdef uint32_t NEVER = 0  # the mark of mappings whose file cannot be truncated


cdef class Mapping:
    """A shared mapping of a file. The descriptor is not duplicated, and may be closed afterwards.

    Parameters
    ----------
    fd : int
    size : int
        Number of bytes to map. The caller has checked that the file has at least this many bytes.
    writable : bool
    populate : bool
        Touch every page now, so that the first frames do not cause page faults.
    guarded : bool
        Survive the truncation of the file: the mapping then contains zeros, and :func:`check_whole` raises
        SegmentTruncated. Costs nothing if the file is sealed against shrinking. Pass False for a file that is about to
        be sealed.

    Notes
    -----
    The first mapping that needs a guard installs a handler of SIGBUS, once per process; see guard.h. With
    CUFRAMES_SIGBUS_GUARD=0 in the environment no mapping is guarded, and touching a truncated file ends the process
    with SIGBUS.
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
        """Mark the mapping as cut, since its file was found to be too short. Calls raise SegmentTruncated from now on.
        """
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
    """Bytes of a mapping as a buffer. It keeps the mapping alive."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*>self.address, self.size, self.readonly, flags)


cdef Borrowed Borrowed_make(object keeper, const char* address, Py_ssize_t size, bint readonly):
    cdef Borrowed borrowed = Borrowed.__new__(Borrowed)
    borrowed.keeper = keeper
    borrowed.address = address
    borrowed.size = size
    borrowed.readonly = readonly
    return borrowed
