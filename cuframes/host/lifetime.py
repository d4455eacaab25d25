"""What happens to publishers and subscribers at interpreter exit, in a forked child, and when they are copied."""

import atexit
import contextlib
import functools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar, cast

from cuframes._native import ring_end
from cuframes.errors import refusal

__all__ = [
    "Closing",
    "Ending",
    "accept",
    "close_owned",
    "make_all",
    "open_socket",
    "own",
    "register",
    "settled",
    "unregister",
]


CLOSE_SECONDS = 5.0  # how long a second close() waits for the first
EXIT_SECONDS = 1.0  # how long the interpreter's exit waits for other threads


class Closable(Protocol):
    """An object with a part in a ring."""

    def close(self) -> None:
        """Give up the part in the ring."""

    def _forget(self) -> None:
        """In a forked child: close inherited descriptors, without freeing anything that belongs to the parent."""


class Closing:
    """Base of objects that are closed by ``close()``, by ``with``, or by garbage collection at the latest."""

    _closed = True  # until everything in __init__ has worked
    _over = True  # nothing is left to release; after an interrupted close(), the next one continues
    _reader = "cuframes.Subscriber"  # what to open elsewhere

    def close(self) -> None:
        """Close it. It may be called twice."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        key = getattr(self, "key", getattr(self, "slot_id", None))
        raise refusal(self, f"open {self._reader}({key!r}) in the other process")

    def __del__(self) -> None:
        # It has no caller to tell, and at interpreter exit little is left to work with: not even this module's names,
        # if another object keeps this one longer.
        try:
            if not self._over:
                self.close()
        except Exception:
            pass


class Ending:
    """The steps of a close, each of which is completed.

    The rule: a close that is interrupted continues, and raises the exception afterwards. A signal handler's exception
    can arrive between any two lines, also here. Therefore every step can be repeated, and is removed from the list only
    when it is complete. Remaining steps are completed by the next close(), by the destructor, or at exit.

    Parameters
    ----------
    *steps : callable
        Called in this order. All are called, whatever the others raise.
    """

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self._guard = threading.RLock()
        self._closer: int | None = None

    def insert(self, step: Callable[[], object]) -> None:
        """Make this first."""
        self._steps.insert(0, step)

    def make(self) -> bool:
        """Make the steps that are not made yet, then raise the first exception. Waits for another thread that is at it,
        for 5 s at most; within itself (in a signal handler, or a destructor) it returns at once.

        Returns
        -------
        bool
            Whether all are made.
        """
        me, mine = threading.get_ident(), False
        end = time.monotonic() + CLOSE_SECONDS
        try:
            while self._steps and not mine:
                with self._guard:
                    if self._closer is None:
                        mine, self._closer = True, me
                if not mine:
                    if self._closer == me or time.monotonic() >= end:
                        return False
                    time.sleep(0.001)
            if mine:
                make_all(self._steps)
            return not self._steps
        finally:
            if mine:
                self._closer = None


def make_all(steps: list[Callable[[], object]]) -> None:
    """Call steps that can be repeated, in order, whatever the others raise; then raise the first exception. A step that
    is interrupted is called once more. Completed steps are removed from the list.
    """
    left = steps[::-1]
    problem = failed = None
    while left:
        try:
            while left:
                left[-1]()
                if left[-1] in steps:
                    steps.remove(left[-1])
                left.pop()
        except BaseException as caught:
            problem = problem or caught
            if left and left[-1] is failed:  # a second time, so it was not a signal: the others' turn
                left.pop()
            elif left:
                failed = left[-1]
    try:
        if problem is not None:
            raise problem
    finally:
        del problem  # which refers to this frame


# Sockets tell others that this process lives, as owner locks do (Descriptor). A child that kept them would make its
# dead parent look alive. So they are owned: closed in every forked child, also one of a fork() in C.


def open_socket() -> socket.SocketType:
    """A new Unix socket, non-blocking and owned. :func:`close_owned` closes it."""
    return ring_end.open_socket()


def accept(sock: socket.SocketType) -> socket.SocketType:
    """The next connection to a listening socket, non-blocking and owned. Raises BlockingIOError if there is none."""
    return ring_end.accept(sock)


def own(sock: socket.SocketType) -> None:
    """Have a socket owned that exists already. A child that another thread has forked meanwhile keeps it."""
    ring_end.own(sock.fileno())


def close_owned(sock: socket.SocketType) -> None:
    """Close a socket that was owned. In a forked child that has happened, and the number may be another's by now."""
    ring_end.close_socket(sock)


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def register(thing: Closable) -> None:
    """Close `thing` at interpreter exit, if it still exists, and make it harmless in a forked child."""
    _open.add(thing)


def unregister(thing: Closable) -> None:
    """Undo :func:`register`, for an object that is closed."""
    _open.discard(thing)


def _still_open() -> list[Closable]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread registers one just now
            return list(_open)


Method = TypeVar("Method", bound=Callable[..., Any])
_busy: set[int] = set()  # threads that are in a settled method


def settled(method: Method) -> Method:
    """A method that opens or closes something with files: the interpreter's exit waits until it is over, for a second
    at most. It does not begin any more once everything is being closed, and what it has opened meanwhile is closed.
    """

    @functools.wraps(method)
    def whole(self: Any, *arguments: Any, **options: Any) -> Any:
        me = threading.get_ident()
        if me in _busy:  # a publisher opens its packet ring, say
            return method(self, *arguments, **options)
        ring_end.pause_at_exit()
        try:
            _busy.add(me)
            result = method(self, *arguments, **options)
            if ring_end.is_exiting():
                self.close()
            return result
        finally:
            _busy.discard(me)
            ring_end.pause_at_exit()

    return cast(Method, whole)


@atexit.register
def _close_all() -> None:
    ring_end.begin_exit()
    end, me = time.monotonic() + EXIT_SECONDS, threading.get_ident()
    while _busy - {me} and time.monotonic() < end:
        time.sleep(0.001)
    with contextlib.suppress(Exception):
        Ending(*(thing.close for thing in _still_open())).make()  # one that fails must not keep the others open


def _forget_all() -> None:
    # The rings themselves know that they were inherited, and owned descriptors are closed (ring_end.pyx). What is left
    # is to say so, and to close the rest.
    for thing in _still_open():
        with contextlib.suppress(Exception):
            thing._forget()
    _open.clear()
    _busy.clear()  # the parent's threads, which this process's exit would wait for


os.register_at_fork(after_in_child=_forget_all)
