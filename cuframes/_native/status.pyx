"""What the wrappers of all rings share: status codes as exceptions, deadlines, closing, and forks."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close as c_close

from cuframes._shm cimport cf_event_signal, cf_fetch_and, cf_fetch_or, cf_futex_wake_all, cf_now_ns, cf_sleep_ns

from cuframes.errors import (
    Disconnected,
    FrameDropped,
    Overwritten,
    PacketOverrun,
    PacketOversized,
    ProtocolError,
    SegmentTruncated,
    Timeout,
    TooManyHeld,
)


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()


cdef extern from "<pthread.h>" nogil:
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)


# A forked child inherits our objects but not our place in the ring: its pins would be the parent's. Objects remember
# the generation they were made in; the handler runs in the child of any fork, also one made by C code.
cdef int fork_generation = 0


# Descriptors that mean "this process is alive" to others: owner locks, and both ends of connections. A child that kept
# them would make its dead parent look alive. Bit n: descriptor n.
cdef int OWNED = 1 << 20
cdef uint64_t[16384] owned


cdef void in_forked_child() noexcept nogil:
    global fork_generation
    cdef int word, bit
    fork_generation += 1
    for word in range(OWNED // 64):
        if owned[word]:
            for bit in range(64):
                if owned[word] >> bit & 1:
                    c_close(word * 64 + bit)
    memset(owned, 0, sizeof(owned))


cpdef int own(int fd) except? -1:
    """Close this descriptor in every forked child, also of a fork() in C. Returns it."""
    if 0 <= fd < OWNED:
        cf_fetch_or(&owned[fd // 64], <uint64_t>1 << (fd % 64))
    return fd


cpdef bint disown(int fd) except? False:
    """The opposite, before it is closed. False: there is nothing to close, since this is a child."""
    if not 0 <= fd < OWNED:
        return fd >= 0
    return bool(cf_fetch_and(&owned[fd // 64], ~(<uint64_t>1 << (fd % 64))) >> (fd % 64) & 1)


pthread_atfork(NULL, NULL, in_forked_child)


def is_forked():
    """Whether this process is the child of one that had this library loaded."""
    return fork_generation != 0


cdef int current_generation() noexcept nogil:
    return fork_generation


cdef bint is_inherited(int generation) noexcept nogil:
    """Whether an object of that generation came through a fork."""
    return generation != fork_generation


cdef int check_generation(int generation) except -1:
    if generation != fork_generation:
        raise RuntimeError("this object belongs to the parent process; open a new one after the fork")
    return 0


# ---- closing: the rule is in gate.h ------------------------------------------------------------------------------

cdef extern from "cuframes/gate.h" nogil:
    int cf_gate_enter(cf_gate* gate, bint* last)
    bint cf_gate_leave(cf_gate* gate)
    bint cf_gate_hand_on(cf_gate* gate)
    bint cf_gate_wait(cf_gate* gate)
    bint cf_gate_wait_done(cf_gate* gate)


cdef extern from *:
    """
    static _Thread_local int cf_inside; /* calls of this thread that are inside a ring, whichever */
    """
    int cf_inside


# At interpreter exit everything is closed while daemon threads may be at it. They have nobody to tell that it is: an
# exception would only print a traceback, or begin another turn of a loop that logs it. So they wait for the end.
cdef unsigned long exiting_thread = 0
cdef int64_t EXIT_NS = 1_000_000_000  # for so long at most: perhaps another exit handler waits for the thread


def begin_exit():
    """The interpreter ends; this thread closes what is still open."""
    global exiting_thread
    exiting_thread = PyThread_get_thread_ident()


cdef void wait_for_exit() noexcept:
    if not exiting_thread or cf_inside or PyThread_get_thread_ident() == exiting_thread:
        return
    with nogil:
        cf_sleep_ns(EXIT_NS)


cpdef int pause_at_exit() except -1:
    """See above; for those who find something closed without a gate. Returns at once, but at exit."""
    wait_for_exit()
    return 0


cdef bint enter(cf_gate* gate, bint* last) noexcept:
    """Whether the caller may use the end of a ring; :func:`leave` follows. False: the end is closed, and `last` says
    whether the caller has to finish the close.
    """
    global cf_inside
    if cf_gate_enter(gate, last) != CF_OK:
        if last[0]:
            cf_inside += 1  # until finished()
        else:
            wait_for_exit()
        return False
    cf_inside += 1
    return True


cdef bint leave(cf_gate* gate) noexcept:
    """True: the caller was the last one inside, and finishes a close that did not wait for it."""
    global cf_inside
    if cf_gate_leave(gate):
        return True  # and stay inside, until finished()
    cf_inside -= 1
    if exiting_thread and cf_gate_is_shut(gate):
        wait_for_exit()
    return False


cdef void finished(cf_gate* gate) noexcept nogil:
    """The close is finished, by a caller that was told to. Until now it counted as inside: a signal handler that closes
    once more must not wait for what it has interrupted.
    """
    global cf_inside
    cf_gate_done(gate)
    cf_inside -= 1


cdef void shut_inherited(cf_gate* gate) noexcept nogil:
    """Shut the gate in a forked child, where nobody is inside; the caller finishes the close."""
    global cf_inside
    cf_gate_shut(gate)
    cf_inside += 1


cdef int shut(cf_gate* gate, const uint32_t* word, int event_fd) noexcept nogil:
    """Close the gate. Wakes those who sleep inside, on the futex `word` or on `event_fd` (or -1), and waits until they
    have gone. FINISH: the caller finishes the close, and says so with finished(). FINISHED_LATER: the last call inside
    does. SHUT_BEFORE: it was closed before.
    """
    global cf_inside
    if not cf_gate_shut(gate):
        # Another thread closes: nothing shall be left when we return.
        while not cf_inside and not cf_gate_wait_done(gate):
            pass
        return SHUT_BEFORE
    cf_futex_wake_all(word)
    cf_event_signal(event_fd)
    if cf_inside:  # a signal handler, or a destructor: the call that would have to leave may be our own
        if cf_gate_hand_on(gate):
            return FINISHED_LATER
    while not cf_gate_wait(gate):
        cf_futex_wake_all(word)
        cf_event_signal(event_fd)
    cf_inside += 1  # until finished()
    return FINISH


cdef int check(int status, object context=None) except -1:
    """The one place that turns a CF_* status into an exception."""
    if status == CF_OK:
        return 0
    if status == CF_TIMED_OUT:
        raise Timeout(context or "nothing arrived in time")
    if status == CF_ENDED:
        raise Disconnected("the publisher is gone and everything that it left has been taken")
    if status == CF_HELD:
        raise FrameDropped(
            "every slot of the ring is held by subscribers; let them release frames sooner, or use a larger ring_size"
        )
    if status == CF_TOO_MANY:
        raise TooManyHeld(context)
    if status == CF_OVERWRITTEN:
        raise Overwritten("the frame was overwritten while it was held: discard what was read from it")
    if status == CF_BUSY:
        raise RuntimeError(context)
    if status == CF_CLOSED:
        raise ValueError(context or "it is closed")
    if status == CF_NO_BIT:
        raise Disconnected("the ring has 31 subscribers and no place for another")
    if status == CF_OVERSIZED:
        raise PacketOversized(context)
    if status == CF_OVERRUN:
        raise PacketOverrun(context)
    if status == CF_CORRUPT:
        raise ProtocolError(context)
    if status == CF_CUT:
        raise SegmentTruncated()
    raise SystemError(f"unknown ring status {status}")


cdef int64_t nanoseconds_of(object value) except? -1:
    """A timestamp that a caller gave: an int, since a float of seconds would be off by nine orders of magnitude."""
    if value is True or value is False:
        raise TypeError(f"a time in nanoseconds is an int, not {value}")
    try:
        return PyNumber_Index(value)
    except OverflowError:
        raise ValueError(f"a time in nanoseconds has 64 bits; {value} is beyond that") from None


cdef int64_t deadline_after(object timeout) except? -1:
    """CLOCK_MONOTONIC nanoseconds at which a wait of `timeout` seconds ends; None never ends."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds = timeout
    if seconds == 0:
        return 0  # over already, without looking at the clock
    if not seconds >= 0 or isinstance(timeout, bool):
        raise ValueError(f"timeout must be None or seconds >= 0, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return cf_now_ns() + <int64_t>(seconds * 1e9)


def monotonic_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
    return cf_now_ns()
