# The declarations of status.h, and status codes as exceptions.
from libc.stdint cimport int64_t


cdef extern from "cuframes/status.h" nogil:
    enum:
        CF_OK
        CF_EMPTY
        CF_HELD
        CF_TIMED_OUT
        CF_AGAIN
        CF_WARM_UP
        CF_SOCKET
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
