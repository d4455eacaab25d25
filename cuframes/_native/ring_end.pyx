"""One end of a ring: who uses it, how it is closed, and what becomes of it in a forked child."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close as c_close

from cuframes._native.status cimport CF_BUSY, CF_OK, check
from cuframes._shm cimport cf_event_signal, cf_exchange_u32, cf_fetch_and, cf_fetch_or, cf_futex_wake_all
from cuframes._shm cimport cf_sleep_ns, cf_store_release_u32


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()


cdef extern from "<pthread.h>" nogil:
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)


# ---- forks ----------------------------------------------------------------------------------------------------------

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


# ---- closing: the rule is in gate.h ----------------------------------------------------------------------------------

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


def is_exiting():
    """Whether everything is closed, by another thread than the caller's."""
    return exiting_thread != 0 and PyThread_get_thread_ident() != exiting_thread


cdef void wait_for_exit() noexcept:
    if not exiting_thread or cf_inside or PyThread_get_thread_ident() == exiting_thread:
        return
    with nogil:
        cf_sleep_ns(EXIT_NS)


cpdef int pause_at_exit() except -1:
    """See above; for those who find something closed without a gate. Returns at once, but at exit."""
    wait_for_exit()
    return 0


cdef enum:
    CLOSED_BEFORE
    FINISHED_LATER  # by the last call inside
    FINISH          # now, by the caller


cdef int shut(cf_gate* gate, const uint32_t* word, int event_fd) noexcept nogil:
    """Close the gate. Wakes those who sleep inside, on the futex `word` or on `event_fd` (or -1), and waits until they
    have gone.
    """
    global cf_inside
    if not cf_gate_shut(gate):
        # Another thread closes: nothing shall be left when we return.
        while not cf_inside and not cf_gate_wait_done(gate):
            pass
        return CLOSED_BEFORE
    cf_futex_wake_all(word)
    cf_event_signal(event_fd)
    if cf_inside:  # a signal handler, or a destructor: the call that would have to leave may be our own
        if cf_gate_hand_on(gate):
            return FINISHED_LATER
    while not cf_gate_wait(gate):
        cf_futex_wake_all(word)
        cf_event_signal(event_fd)
    cf_inside += 1  # until it is finished
    return FINISH


cdef class RingEnd:
    """One end of a ring. Every call that uses it is between :meth:`enter` and :meth:`leave`.

    A subclass sets ``gate``, the futex ``word`` that those inside sleep on, the mark ``cut`` of its mapping, and
    ``what`` it is for its users, and says in :meth:`finish` what ends with it.
    """

    def __cinit__(self, *args, **kwargs):
        self.generation = current_generation()

    cdef int enter(self) except -1:
        """The caller is about to use the ring; :meth:`leave` follows. Raises ValueError when it is closed."""
        global cf_inside
        cdef bint last
        check_generation(self.generation)
        if cf_gate_enter(self.gate, &last) != CF_OK:
            if last:
                cf_inside += 1  # until it is finished
                self.finish_close()
            else:
                wait_for_exit()
            raise ValueError(f"the {self.what} is closed")
        cf_inside += 1
        return 0

    cdef void leave(self) noexcept:
        global cf_inside
        if cf_gate_leave(self.gate):
            self.finish_close()  # which did not wait for us
            return
        cf_inside -= 1
        if exiting_thread:  # whatever this call has found, its publisher's end say, has nobody to tell
            wait_for_exit()

    cdef void finish_close(self) noexcept:
        # Until now it counted as inside: a signal handler that closes once more must not wait for what it has
        # interrupted.
        global cf_inside
        self.finish()
        cf_gate_done(self.gate)
        cf_inside -= 1

    cdef void finish(self) noexcept:
        """It is closed and nobody is inside: give back what calls have used."""

    cdef void forget(self) noexcept:
        """In a forked child: close our own descriptors, and leave the ring as it is."""

    cdef int event(self) except? -1:
        """An eventfd that calls inside sleep on, or -1."""
        return -1

    cdef bint has_ahead(self) noexcept:
        """Whether the next thing was read already, so that the ring need not have it any more."""
        return False

    def close(self):
        """Close it, wake those inside, and wait until they have gone; see gate.h.

        Returns
        -------
        bool
            Whether this call closed it, rather than an earlier one.
        """
        cdef int status, event_fd = self.event()
        if is_inherited(self.generation):
            if cf_gate_shut(self.gate):
                self.forget()
            return False
        with nogil:
            status = shut(self.gate, self.word, event_fd)
        if status == FINISH:
            self.finish_close()
        return status != CLOSED_BEFORE

    @property
    def closed(self):
        """Whether close() has begun."""
        return bool(cf_gate_is_shut(self.gate))


cdef class ReaderEnd(RingEnd):
    """A reader's end of a ring that it only maps: packets, slots.

    A subclass also sets ``fd``, the file, and ``polled``, where its C structure has the eventfd.
    """

    def __cinit__(self, *args, **kwargs):
        self.fd = self.event_fd = -1

    def __dealloc__(self):
        self.close_descriptors()

    cdef void close_descriptors(self) noexcept:
        if self.fd >= 0:
            c_close(self.fd)
        if self.event_fd >= 0:
            c_close(self.event_fd)
            self.polled[0] = -1
        self.fd = self.event_fd = -1

    cdef void finish(self) noexcept:
        """What was mapped stays as long as something read lies in it."""
        self.close_descriptors()

    cdef void forget(self) noexcept:
        self.close_descriptors()

    cdef int event(self) except? -1:
        return self.event_fd

    cdef int begin_take(self) except -1:
        """Enter as the one thread that takes; :meth:`end_take` follows."""
        self.enter()
        if cf_exchange_u32(&self.busy, 1):
            self.leave()
            check(CF_BUSY, f"another thread is taking from this {self.what}")
        return 0

    cdef void end_take(self) noexcept:
        cf_store_release_u32(&self.busy, 0)
        self.leave()

    def set_event(self, int fd):
        """Tell the reader which eventfd :meth:`watch` feeds, so that it is drained when nothing is left. The descriptor
        becomes the reader's.
        """
        try:
            self.enter()
        except ValueError:
            c_close(fd)
            return
        if self.event_fd >= 0:
            c_close(fd)
        else:
            self.event_fd = self.polled[0] = fd
        self.leave()

    def watch(self, int fd):
        """Feed an eventfd whenever there is something to take, until the end. For a thread of its own."""
        self.enter()
        with nogil:
            self.feed(fd)
        self.leave()

    cdef void feed(self, int fd) noexcept nogil:
        """The same in C, inside."""
