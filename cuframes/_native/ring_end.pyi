import os
import socket

def own(fd: int) -> int:
    """Have this descriptor closed in every forked child, also after a fork() in C code. Returns the descriptor.

    A child that is forked between the opening and this call keeps it. What other threads could fork meanwhile is opened
    owned: :meth:`Descriptor.open`, :func:`open_socket`, :func:`accept`.
    """

def disown(fd: int) -> bool:
    """Undo :func:`own`, before the descriptor is closed. False: this is a forked child, where it is closed already."""

def begin_exit() -> None:
    """The interpreter is about to end. The calling thread closes everything that is still open."""

def pause_at_exit() -> int:
    """Wait as described above, for code that finds an object closed without a gate. Returns at once if the interpreter
    is not ending.
    """

def is_exiting() -> bool:
    """Whether everything is closed, by another thread than the caller's."""

def is_forked() -> bool:
    """Whether this process was forked from one that had loaded this library."""

def open_socket() -> socket.SocketType:
    """A Unix stream socket, non-blocking, closed on exec, and owned (:func:`own`). :func:`close_socket` closes it."""

def accept(sock: socket.SocketType) -> socket.SocketType:
    """The next connection to a listening socket, as from :func:`open_socket`. Does not wait: raises BlockingIOError."""

def close_socket(sock: socket.SocketType) -> None:
    """Close a socket whose descriptor is owned: one call, as with :class:`Descriptor`. In a forked child that has
    happened, and the number may be another's by now.
    """

class Descriptor:
    """An open descriptor. It is closed once: by :meth:`close`, or when this object is collected.

    A signal handler can raise between any two calls of Python code, so a number that is returned to Python code may
    never arrive where it is to be stored, and one that is taken out to be closed may never be closed. Here getting,
    storing and closing are one call. The rule: what has to be closed is a number in no variable of Python code.
    """
    @staticmethod
    def open(
        path: str | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None, owned: bool = False
    ) -> Descriptor:
        """As ``os.open``. `owned`: see :func:`own`."""
    @staticmethod
    def dup(fd: int) -> Descriptor:
        """A duplicate of `fd`, closed on exec."""
    @staticmethod
    def memfd(name: str, flags: int) -> Descriptor:
        """As ``os.memfd_create``."""
    @staticmethod
    def eventfd() -> Descriptor:
        """An eventfd, closed on exec, non-blocking."""
    @staticmethod
    def receive(
        socket: socket.SocketType, limit: int, space: int, flags: int, arrived: list[Descriptor]
    ) -> tuple[bytes, int]:
        """As ``socket.recvmsg``: (data, flags). Descriptors that come along are appended to `arrived`."""
    def fileno(self) -> int:
        """Its number, for as long as this object is not closed."""
    @property
    def closed(self) -> bool:
        """Whether it is closed, or was handed over."""
    def close(self) -> None:
        """Close it. Closing twice is fine."""
    def __enter__(self) -> Descriptor: ...
    def __exit__(self, *exc: object) -> None: ...

class RingEnd:
    """One end of a ring. Every call that uses it runs between :meth:`enter` and :meth:`leave`.

    A subclass sets ``gate``, the futex ``word`` on which calls inside sleep, the mark ``cut`` of its mapping, and
    ``what`` (its name in error messages). Its :meth:`finish` releases what belongs to the end.
    """
    def check_process(self) -> None:
        """Raise RuntimeError in a forked child: this end is the parent's. Calls that enter the gate do so anyway."""
    @property
    def inherited(self) -> bool:
        """Whether this is a forked child, and this end the parent's."""
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    def close(self) -> bool:
        """Close this end, wake the calls inside, and wait until they have left; see gate.h.

        Returns
        -------
        bool
            True if this call closed it, False if an earlier one did.
        """

class ReaderEnd(RingEnd):
    """A reader's end of a ring of packets or of a slot: it only maps the ring's file.

    A subclass also sets ``fd`` (the file) and ``polled`` (the address of the eventfd in its C structure).
    """
    def set_event(self, event: Descriptor) -> None:
        """Set the eventfd that :meth:`watch` signals. The reader drains it when nothing is left, and closes it. If this
        end is closed, or has an eventfd, the new one is closed.
        """
    def watch(self, fd: int) -> None:
        """Signal an eventfd whenever there is something to take, until the ring ends or this end is closed. Runs in a
        thread of its own.
        """
