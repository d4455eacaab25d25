"""One end of a ring: counting the calls that use it, closing it, and its state in a forked child."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.fcntl cimport O_CLOEXEC
from posix.unistd cimport close as c_close

import _socket
import os

from cuframes._native.status cimport CF_BUSY, CF_OK, check
from cuframes._shm cimport cf_event_signal, cf_exchange_u32, cf_fetch_and, cf_fetch_or, cf_futex_wake_all
from cuframes._shm cimport cf_sleep_ns, cf_store_release_u32


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    int PyErr_CheckSignals() except -1


cdef extern from "<fcntl.h>" nogil:
    enum:
        AT_FDCWD
    int openat(int directory, const char* path, int flags, ...)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_UNIX
        SCM_RIGHTS
        SOCK_CLOEXEC
        SOCK_NONBLOCK
        SOCK_STREAM
        SOL_SOCKET
    int c_socket "socket"(int family, int kind, int protocol)
    int accept4(int fd, void* address, void* length, int flags)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)


# ---- forks ----------------------------------------------------------------------------------------------------------

# A forked child inherits our objects but not our place in the ring, since its pins would be the parent's. Each object
# remembers the generation in which it was created. The handler below runs in the child of every fork, also in C code.
cdef int fork_generation = 0


# Descriptors that tell others that this process is alive: owner locks, and both ends of connections. If a child kept
# them open, its dead parent would look alive. Bit n stands for descriptor n.
cdef int OWNED = 1 << 20
cdef uint64_t[16384] owned

# Another thread may fork at any moment, also between the opening of a descriptor and the setting of its bit. So both
# are done under this lock, which a fork takes as well. Whoever holds it must not wait for the GIL: the thread that
# forks may have it.
cdef pthread_mutex_t forking
pthread_mutex_init(&forking, NULL)


cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&forking)


cdef void after_fork() noexcept nogil:
    pthread_mutex_unlock(&forking)


cdef void in_forked_child() noexcept nogil:
    global fork_generation
    cdef int word, bit
    after_fork()
    fork_generation += 1
    for word in range(OWNED // 64):
        if owned[word]:
            for bit in range(64):
                if owned[word] >> bit & 1:
                    c_close(word * 64 + bit)
    memset(owned, 0, sizeof(owned))


cpdef int own(int fd) except? -1:
    """Have this descriptor closed in every forked child, also after a fork() in C code. Returns the descriptor.

    A child that is forked between the opening and this call keeps it. What other threads could fork meanwhile is opened
    owned: :meth:`Descriptor.open`, :func:`open_socket`, :func:`accept`.
    """
    if 0 <= fd < OWNED:
        cf_fetch_or(&owned[fd // 64], <uint64_t>1 << (fd % 64))
    return fd


cpdef bint disown(int fd) noexcept nogil:
    """Undo :func:`own`, before the descriptor is closed. False: this is a forked child, where it is closed already."""
    if not 0 <= fd < OWNED:
        return fd >= 0
    return bool(cf_fetch_and(&owned[fd // 64], ~(<uint64_t>1 << (fd % 64))) >> (fd % 64) & 1)


cdef int noted(int fd) noexcept nogil:
    """A descriptor that was just opened, with its bit set; or the errno, negative. The caller holds the lock."""
    if fd < 0:
        return -errno
    if fd < OWNED:
        cf_fetch_or(&owned[fd // 64], <uint64_t>1 << (fd % 64))
    return fd


cdef int open_owned(int directory, const char* path, int flags, int mode) noexcept nogil:
    """openat(2), owned. Returns the descriptor, or an errno, negative."""
    cdef int fd
    pthread_mutex_lock(&forking)
    fd = noted(openat(directory, path, flags | O_CLOEXEC, mode))
    pthread_mutex_unlock(&forking)
    return fd


cdef int socket_owned(int listening) noexcept nogil:
    """The same for a new socket, or, if `listening` is not -1, a connection to that one."""
    cdef int fd
    pthread_mutex_lock(&forking)
    if listening < 0:
        fd = noted(c_socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))
    else:
        fd = noted(accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK))
    pthread_mutex_unlock(&forking)
    return fd


cdef void close_owned(int fd) noexcept nogil:
    """Close an owned descriptor, unless it is closed: by a fork, or by another thread."""
    pthread_mutex_lock(&forking)
    if disown(fd):
        c_close(fd)
    pthread_mutex_unlock(&forking)


cdef object socket_of(int fd):
    """An owned descriptor as a non-blocking socket object."""
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    try:
        # Not socket.socket, whose constructor is Python code, where a signal handler can raise.
        return _socket.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd)
    except BaseException:
        close_owned(fd)
        raise


def open_socket():
    """A Unix stream socket, non-blocking, closed on exec, and owned (:func:`own`). :func:`close_socket` closes it."""
    cdef int fd
    with nogil:
        fd = socket_owned(-1)
    return socket_of(fd)


def accept(sock):
    """The next connection to a listening socket, as from :func:`open_socket`. Does not wait: raises BlockingIOError."""
    cdef int fd = -EINTR, listening = sock.fileno()
    if listening < 0:
        raise ValueError("the socket is closed")
    while fd == -EINTR:
        PyErr_CheckSignals()
        with nogil:
            fd = socket_owned(listening)
    return socket_of(fd)


def close_socket(sock):
    """Close a socket whose descriptor is owned: one call, as with :class:`Descriptor`. In a forked child that has
    happened, and the number may be another's by now.
    """
    cdef int fd = _socket.socket.detach(sock)  # the method of socket.socket is Python code
    if fd >= 0:
        with nogil:
            close_owned(fd)


cdef class Descriptor:
    """An open descriptor. It is closed once: by :meth:`close`, or when this object is collected.

    A signal handler can raise between any two calls of Python code, so a number that is returned to Python code may
    never arrive where it is to be stored, and one that is taken out to be closed may never be closed. Here getting,
    storing and closing are one call. The rule: what has to be closed is a number in no variable of Python code.
    """

    def __cinit__(self):
        self.fd = -1

    @staticmethod
    def open(path, int flags, int mode=0o777, *, dir_fd=None, bint owned=False):
        """As ``os.open``. `owned`: see :func:`own`."""
        cdef Descriptor made = Descriptor.__new__(Descriptor)
        cdef bytes raw
        cdef const char* name
        cdef int directory = AT_FDCWD if dir_fd is None else dir_fd, fd = -EINTR
        if not owned:
            where = {} if dir_fd is None else {"dir_fd": dir_fd}
            made.fd = os.open(path, flags | os.O_CLOEXEC, mode, **where)
            return made
        raw = os.fsencode(path)
        if b"\0" in raw:
            raise ValueError("embedded null byte")
        name = raw
        while fd == -EINTR:
            PyErr_CheckSignals()
            with nogil:
                fd = open_owned(directory, name, flags, mode)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), os.fspath(path))
        made.fd, made.owned = fd, True
        return made

    @staticmethod
    def dup(int fd):
        """A duplicate of `fd`, closed on exec."""
        cdef Descriptor made = Descriptor.__new__(Descriptor)
        made.fd = os.dup(fd)
        return made

    @staticmethod
    def memfd(str name not None, unsigned int flags):
        """As ``os.memfd_create``."""
        cdef Descriptor made = Descriptor.__new__(Descriptor)
        made.fd = os.memfd_create(name, flags | os.MFD_CLOEXEC)
        return made

    @staticmethod
    def eventfd():
        """An eventfd, closed on exec, non-blocking."""
        cdef Descriptor made = Descriptor.__new__(Descriptor)
        made.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return made

    @staticmethod
    def receive(socket, Py_ssize_t limit, Py_ssize_t space, int flags, list arrived not None):
        """As ``socket.recvmsg``: (data, flags). Descriptors that come along are appended to `arrived`."""
        cdef Descriptor made
        data, ancillary, answer, _ = socket.recvmsg(limit, space, flags)
        for level, kind, raw in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                for fd in memoryview(raw)[:len(raw) - len(raw) % sizeof(int)].cast("i"):
                    made = Descriptor.__new__(Descriptor)
                    made.fd = fd
                    arrived.append(made)
        return data, answer

    cpdef int fileno(self) except -1:
        """Its number, for as long as this object is not closed."""
        if self.fd < 0:
            raise ValueError("the descriptor is closed")
        return self.fd

    @property
    def closed(self):
        """Whether it is closed, or was handed over."""
        return self.fd < 0

    cdef int release(self) noexcept:
        """Its number, which is the caller's to close from now on. -1: it is closed, perhaps by a fork."""
        cdef int fd = self.fd
        self.fd = -1
        return fd if not self.owned or fd < 0 or disown(fd) else -1

    cpdef close(self):
        """Close it. Closing twice is fine."""
        self.shut()

    cdef void shut(self) noexcept:
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0 and self.owned:
            close_owned(fd)
        elif fd >= 0:
            c_close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        self.shut()


pthread_atfork(before_fork, after_fork, in_forked_child)


def is_forked():
    """Whether this process was forked from one that had loaded this library."""
    return fork_generation != 0


cdef int current_generation() noexcept nogil:
    return fork_generation


cdef bint is_inherited(int generation) noexcept nogil:
    """Whether an object of this generation was created before a fork, in the parent process."""
    return generation != fork_generation


cdef int check_generation(int generation) except -1:
    if generation != fork_generation:
        raise RuntimeError("this object belongs to the parent process; create a new one after the fork")
    return 0


# ---- closing: gate.h explains the rule -------------------------------------------------------------------------------

cdef extern from "cuframes/gate.h" nogil:
    int cf_gate_enter(cf_gate* gate, bint* last)
    bint cf_gate_leave(cf_gate* gate)
    bint cf_gate_hand_on(cf_gate* gate)
    bint cf_gate_wait(cf_gate* gate)
    bint cf_gate_wait_done(cf_gate* gate)


cdef extern from *:
    """
    static _Thread_local int cf_inside; /* number of calls of this thread that are inside the gate of any ring */
    """
    int cf_inside


# At interpreter exit every ring is closed, although daemon threads may be using it. An exception in such a thread would
# help nobody: it would print a traceback, or a loop would log it and try again. So these threads wait for the end.
cdef unsigned long exiting_thread = 0
cdef int64_t EXIT_NS = 1_000_000_000  # at most this long, since another exit handler may be waiting for the thread


def begin_exit():
    """The interpreter is about to end. The calling thread closes everything that is still open."""
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
    """Wait as described above, for code that finds an object closed without a gate. Returns at once if the interpreter
    is not ending.
    """
    wait_for_exit()
    return 0


cdef enum:
    CLOSED_BEFORE   # by an earlier close()
    FINISHED_LATER  # the last call inside will finish the close
    FINISH          # the caller must finish the close now


cdef int shut(cf_gate* gate, const uint32_t* word, int event_fd) noexcept nogil:
    """Shut the gate. Wakes the calls that sleep inside, on the futex `word` or on `event_fd` (-1: none), and waits
    until they have left.
    """
    global cf_inside
    if not cf_gate_shut(gate):
        # Another thread is closing. Wait for it, so that the close is complete when we return.
        while not cf_inside and not cf_gate_wait_done(gate):
            pass
        return CLOSED_BEFORE
    cf_futex_wake_all(word)
    cf_event_signal(event_fd)
    if cf_inside:  # in a signal handler or a destructor: we might wait for a call of our own thread to leave
        if cf_gate_hand_on(gate):
            return FINISHED_LATER
    while not cf_gate_wait(gate):
        cf_futex_wake_all(word)
        cf_event_signal(event_fd)
    cf_inside += 1  # until it is finished
    return FINISH


cdef class RingEnd:
    """One end of a ring. Every call that uses it runs between :meth:`enter` and :meth:`leave`.

    A subclass sets ``gate``, the futex ``word`` on which calls inside sleep, the mark ``cut`` of its mapping, and
    ``what`` (its name in error messages). Its :meth:`finish` releases what belongs to the end.
    """

    def __cinit__(self, *args, **kwargs):
        self.generation = current_generation()

    cdef int enter(self) except -1:
        """To be called before using the ring; :meth:`leave` must follow. Raises ValueError if this end is closed."""
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
            self.finish_close()  # for the close() that did not wait for us
            return
        cf_inside -= 1
        if exiting_thread:  # what this call has found, for example that its publisher has ended, would only be printed
            wait_for_exit()

    cdef void finish_close(self) noexcept:
        # The thread counts as inside until the end of this function: a signal handler that calls close() again must not
        # wait for the close that it has interrupted.
        global cf_inside
        self.finish()
        cf_gate_done(self.gate)
        cf_inside -= 1

    cdef void finish(self) noexcept:
        """Release the resources of this end. It is closed, and no call is inside."""

    cdef void forget(self) noexcept:
        """In a forked child: close our own descriptors and do not touch the ring."""

    cdef int event(self) except? -1:
        """The eventfd on which calls inside sleep, or -1."""
        return -1

    cdef bint has_ahead(self) noexcept:
        """Whether the next packet was already read, so that it can be taken even if the ring no longer has it."""
        return False

    def close(self):
        """Close this end, wake the calls inside, and wait until they have left; see gate.h.

        Returns
        -------
        bool
            True if this call closed it, False if an earlier one did.
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

    def check_process(self):
        """Raise RuntimeError in a forked child: this end is the parent's. Calls that enter the gate do so anyway."""
        check_generation(self.generation)

    @property
    def inherited(self):
        """Whether this is a forked child, and this end the parent's."""
        return is_inherited(self.generation)

    @property
    def closed(self):
        """Whether close() has begun."""
        return bool(cf_gate_is_shut(self.gate))


cdef class ReaderEnd(RingEnd):
    """A reader's end of a ring of packets or of a slot: it only maps the ring's file.

    A subclass also sets ``fd`` (the file) and ``polled`` (the address of the eventfd in its C structure).
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
        """Close the descriptors. The mapping stays as long as packets or frames refer to it."""
        self.close_descriptors()

    cdef void forget(self) noexcept:
        self.close_descriptors()

    cdef int event(self) except? -1:
        return self.event_fd

    cdef int begin_take(self) except -1:
        """Enter as the only thread that takes; :meth:`end_take` must follow."""
        self.enter()
        if cf_exchange_u32(&self.busy, 1):
            self.leave()
            check(CF_BUSY, f"another thread is taking from this {self.what}")
        return 0

    cdef void end_take(self) noexcept:
        cf_store_release_u32(&self.busy, 0)
        self.leave()

    def set_event(self, Descriptor event not None):
        """Set the eventfd that :meth:`watch` signals. The reader drains it when nothing is left, and closes it. If this
        end is closed, or has an eventfd, the new one is closed.
        """
        try:
            self.enter()
        except ValueError:
            event.close()
            return
        if self.event_fd >= 0:
            event.close()
        else:
            self.event_fd = self.polled[0] = event.release()
        self.leave()

    def watch(self, int fd):
        """Signal an eventfd whenever there is something to take, until the ring ends or this end is closed. Runs in a
        thread of its own.
        """
        self.enter()
        with nogil:
            self.feed(fd)
        self.leave()

    cdef void feed(self, int fd) noexcept nogil:
        """The C part of :meth:`watch`, to be called inside the gate."""
