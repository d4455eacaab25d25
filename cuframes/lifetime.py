"""What happens to publishers and subscribers when the interpreter ends, in a forked child, and when they are copied."""

import atexit
import os
import weakref
from types import TracebackType
from typing import NoReturn, Protocol, Self

__all__ = ["Closing", "refusal", "register", "unregister"]


class Closable(Protocol):
    """Something with a share in a ring."""

    def close(self) -> None:
        """Give it back."""

    def _forget(self) -> None:
        """In a forked child: close inherited descriptors, free nothing of the parent's."""


def refusal(thing: object, remedy: str) -> TypeError:
    """What copying and pickling raise: a second object would give the same place in a ring back once more."""
    return TypeError(
        f"a {type(thing).__name__} cannot be copied or pickled, since it stands for this process's part in a ring; "
        f"{remedy}"
    )


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
        if not self._closed:
            self.close()


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def register(thing: Closable) -> None:
    """Close `thing` at interpreter exit, if it is still there by then, and make it harmless in a forked child."""
    _open.add(thing)


def unregister(thing: Closable) -> None:
    """It is closed, and has nothing left to give back."""
    _open.discard(thing)


@atexit.register
def _close_all() -> None:
    for thing in list(_open):
        thing.close()


def _forget_all() -> None:
    # The rings themselves know that they were inherited (_core, fork_generation). What is left are descriptors: a child
    # that kept a socket or an owner lock open would make its dead parent look alive.
    for thing in list(_open):
        thing._forget()
    _open.clear()


os.register_at_fork(after_in_child=_forget_all)
