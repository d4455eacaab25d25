# What _status.h declares, and what every ring's wrapper needs: exceptions, deadlines, and who was forked.
from libc.stdint cimport int64_t


cdef extern from "_status.h" nogil:
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


cdef int check(int status, object context=*) except -1
cdef int64_t nanoseconds_of(object value) except? -1
cdef int64_t deadline_after(object timeout) except? -1

cdef int current_generation() noexcept nogil
cdef bint is_inherited(int generation) noexcept nogil
cdef int check_generation(int generation) except -1
