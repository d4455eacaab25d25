# What status.h and gate.h declare, and what every ring's wrapper needs: exceptions, deadlines, closing, forks.
from libc.stdint cimport int64_t, uint32_t


cdef extern from "cuframes/status.h" nogil:
    enum:
        CF_OK
        CF_EMPTY
        CF_HELD
        CF_TIMED_OUT
        CF_AGAIN
        CF_SOON
        CF_PEER
        CF_ENDED
        CF_TOO_MANY
        CF_OVERWRITTEN
        CF_BUSY
        CF_CLOSED
        CF_NO_BIT
        CF_OVERSIZED
        CF_OVERRUN
        CF_CORRUPT
        CF_CUT
        CF_NO_WAITV


cdef extern from "cuframes/gate.h" nogil:
    ctypedef struct cf_gate:
        pass
    bint cf_gate_is_shut(const cf_gate* gate)
    bint cf_gate_is_empty(const cf_gate* gate)
    bint cf_gate_shut(cf_gate* gate)
    void cf_gate_done(cf_gate* gate)


cdef int check(int status, object context=*) except -1
cdef int64_t nanoseconds_of(object value) except? -1
cdef int64_t deadline_after(object timeout) except? -1

cpdef int pause_at_exit() except -1
cpdef int own(int fd) except? -1
cpdef bint disown(int fd) except? False

cdef bint enter(cf_gate* gate, bint* last) noexcept
cdef bint leave(cf_gate* gate) noexcept
cdef void finished(cf_gate* gate) noexcept nogil
cdef void shut_inherited(cf_gate* gate) noexcept nogil
cdef enum:
    SHUT_BEFORE
    FINISHED_LATER
    FINISH

cdef int shut(cf_gate* gate, const uint32_t* word, int event_fd) noexcept nogil

cdef int current_generation() noexcept nogil
cdef bint is_inherited(int generation) noexcept nogil
cdef int check_generation(int generation) except -1
