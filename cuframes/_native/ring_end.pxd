# The declarations of gate.h, and the ends of rings.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "cuframes/gate.h" nogil:
    ctypedef struct cf_gate:
        pass
    bint cf_gate_is_shut(const cf_gate* gate)
    bint cf_gate_is_empty(const cf_gate* gate)
    bint cf_gate_shut(cf_gate* gate)
    void cf_gate_done(cf_gate* gate)


cpdef int pause_at_exit() except -1
cpdef int own(int fd) except? -1
cpdef bint disown(int fd) noexcept nogil

cdef int current_generation() noexcept nogil
cdef bint is_inherited(int generation) noexcept nogil
cdef int check_generation(int generation) except -1


cdef class Descriptor:
    cdef int fd  # or -1
    cdef bint owned

    cpdef int fileno(self) except -1
    cdef int release(self) noexcept
    cpdef close(self)
    cdef void shut(self) noexcept


cdef class RingEnd:
    cdef cf_gate* gate
    cdef const uint32_t* word
    cdef str what
    cdef int generation
    cdef const uint32_t* cut  # Mapping.cut
    cdef uint64_t polled_by  # number of the poller that the event descriptor was last added to (wait_any)

    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef void finish_close(self) noexcept
    cdef void finish(self) noexcept
    cdef void forget(self) noexcept
    cdef int event(self) except? -1
    cdef bint has_ahead(self) noexcept


cdef class ReaderEnd(RingEnd):
    cdef uint32_t busy
    cdef int fd  # owned; or -1
    cdef int event_fd  # owned; or -1
    cdef int* polled

    cdef void close_descriptors(self) noexcept
    cdef int begin_take(self) except -1
    cdef void end_take(self) noexcept
    cdef void feed(self, int fd) noexcept nogil
