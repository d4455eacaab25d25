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

__all__ = ["Closing", "close_owned", "own", "register", "settled", "unregister"]


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
    _reader = "cuframes.Subscriber"  # what to open elsewhere

    def close(self) -> None:
        """Close it. It may be called twice."""
        raise NotImplementedError

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
        # if somebody keeps the object longer.
        try:
            if not self._closed:
                self.close()
        except Exception:
            pass


def own(fd: int) -> int:
    """Have a descriptor closed in every forked child, also after a fork() in C. Returns the descriptor.

    For descriptors that show other processes that this one is alive: owner locks, and both ends of connections. A child
    that kept them would make its dead parent look alive. :func:`close_owned` closes such a descriptor.
    """
    return ring_end.own(fd)


def close_owned(thing: int | socket.socket) -> None:
    """Close a descriptor or socket that was passed to :func:`own`. In a forked child it is closed already, and its
    number may have been reused.
    """
    if isinstance(thing, int):
        if ring_end.disown(thing):
            os.close(thing)
    elif thing.fileno() < 0 or ring_end.disown(thing.fileno()):
        thing.close()
    elif ring_end.is_forked():
        thing.detach()  # else another thread closes it just now


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
        _busy.add(me)
        try:
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
    for thing in _still_open():
        with contextlib.suppress(Exception):  # one that fails must not keep the others open
            thing.close()


def _forget_all() -> None:
    # The rings themselves know that they were inherited, and owned descriptors are closed (ring_end.pyx). What is left
    # is to say so, and to close the rest.
    for thing in _still_open():
        with contextlib.suppress(Exception):
            thing._forget()
    _open.clear()


os.register_at_fork(after_in_child=_forget_all)
