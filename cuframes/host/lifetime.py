"""What happens to publishers and subscribers when the interpreter ends, in a forked child, and when they are copied."""

import atexit
import contextlib
import os
import socket
import weakref
from types import TracebackType
from typing import NoReturn, Protocol, Self

from cuframes._native import status
from cuframes.errors import refusal

__all__ = ["Closing", "close_owned", "own", "register", "unregister"]


class Closable(Protocol):
    """Something with a share in a ring."""

    def close(self) -> None:
        """Give it back."""

    def _forget(self) -> None:
        """In a forked child: close inherited descriptors, free nothing of the parent's."""


class Closing:
    """Base of what is closed by hand, by ``with``, or at last when it is collected."""

    _closed = True  # until everything in __init__ has worked
    _reader = "cuframes.Subscriber"  # what to open elsewhere

    def close(self) -> None:
        """Close it. Closing twice is fine."""
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
    """Have a descriptor closed in every forked child, also one of a fork() in C; returns it.

    For what tells others that this process lives: owner locks, and both ends of connections. A child that kept them
    would make its dead parent look alive. :func:`close_owned` closes it.
    """
    return status.own(fd)


def close_owned(thing: int | socket.socket) -> None:
    """Close a descriptor or socket that was owned. In a forked child that has happened, and the number may be
    another's by now.
    """
    if isinstance(thing, int):
        if status.disown(thing):
            os.close(thing)
    elif thing.fileno() < 0 or status.disown(thing.fileno()):
        thing.close()
    elif status.is_forked():
        thing.detach()  # else another thread closes it just now


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def register(thing: Closable) -> None:
    """Close `thing` at interpreter exit, if it is still there by then, and make it harmless in a forked child."""
    _open.add(thing)


def unregister(thing: Closable) -> None:
    """It is closed, and has nothing left to give back."""
    _open.discard(thing)


def _still_open() -> list[Closable]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread registers one just now
            return list(_open)


@atexit.register
def _close_all() -> None:
    status.begin_exit()
    for thing in _still_open():
        with contextlib.suppress(Exception):  # one that fails must not keep the others open
            thing.close()


def _forget_all() -> None:
    # The rings themselves know that they were inherited, and owned descriptors are closed (status.pyx). What is left is
    # to say so, and to close the rest.
    for thing in _still_open():
        with contextlib.suppress(Exception):
            thing._forget()
    _open.clear()


os.register_at_fork(after_in_child=_forget_all)
