"""What subscribers and readers have in common: iterating, waiting in an event loop, and reconnecting."""

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from cuframes import lifetime
from cuframes.errors import Disconnected, Timeout
from cuframes.session.client import POLL_SECONDS

if TYPE_CHECKING:
    import asyncio

__all__ = ["Receiver", "WatchedReceiver"]

T = TypeVar("T")

TURN_SECONDS = 0.2  # how long close() and signals wait for somebody who is connecting


class Receiver(lifetime.Closing, Generic[T]):
    """Takes one thing after the other from the publisher of a key, which may end, and come back.

    Subclasses say how to take, how to join the next publisher, and what to poll.
    """

    key: str
    reconnect: bool
    _what = "receiver"
    _source = "publisher of"

    def _take(self, timeout: float | None) -> T:
        """The next thing, within `timeout` seconds. Raises Timeout, and Disconnected when the publisher has ended."""
        raise NotImplementedError

    def _join_next(self, timeout: float) -> None:
        """Leave the publisher that ended, and join the next one. Raises FileNotFoundError when none came in time."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor to poll."""
        raise NotImplementedError

    def _take_reconnecting(self, take: Callable[[float | None], T], timeout: float | None) -> T:
        """What `take` gives, after joining the next publisher as often as that needs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._rejoin(left):
                raise Timeout(f"no {self._source} {self.key!r} came back in time")
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(Disconnected):
                return take(left)

    def _rejoin(self, timeout: float | None) -> bool:
        """Leave the publisher that ended and join the next; False when none came in time."""
        # The old one stays until there is a new one, so that a call that timed out here can be repeated.
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closed:
            left = TURN_SECONDS if deadline is None else min(TURN_SECONDS, max(0.0, deadline - time.monotonic()))
            try:
                self._join_next(left)
            except (FileNotFoundError, Disconnected):  # not there, or just going
                if deadline is not None and time.monotonic() >= deadline:
                    return False
            else:
                return True
        raise ValueError(f"the {self._what} is closed")

    def _take_iterating(self, timeout: float | None) -> T:
        """What a loop does for each of its turns."""
        try:
            return self._take(timeout)
        except Disconnected:
            if not self.reconnect:
                raise
        return self._take_reconnecting(self._take, timeout)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._take_iterating(None)
        except Disconnected:
            raise StopIteration from None
        except ValueError:
            if self._closed:  # perhaps by another thread, while we waited
                raise StopIteration from None
            raise

    async def _all(self) -> AsyncIterator[T]:
        import asyncio  # here, since it is a third of the import time and few need it

        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                yield self._take(0)
                continue
            except Timeout:
                pass
            except Disconnected:
                if not self.reconnect or self._closed:
                    return
                while not self._rejoin(0):
                    await asyncio.sleep(POLL_SECONDS)
                continue
            try:
                fd = self.fileno()
            except Disconnected:
                continue  # as the next turn will find
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._all()


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():  # it is cancelled when the iteration is
        ready.set_result(None)


class WatchedRing(Protocol):
    """A ring that a thread can watch."""

    @property
    def counters(self) -> tuple[int, ...]:
        """What was received, and what was not."""

    def set_event(self, fd: int) -> None:
        """Drain this eventfd when nothing is left."""

    def watch(self, fd: int) -> None:
        """Feed this eventfd, until the end."""

    def close(self) -> None:
        """Make the threads that wait in here return."""


class Counters(Protocol):
    """Counters of the rings that are behind us."""

    def plus(self, other: tuple[int, ...]) -> Self:
        """These and a ring's together."""


R = TypeVar("R", bound=WatchedRing)
C = TypeVar("C", bound=Counters)


class WatchedReceiver(Receiver[T], Generic[T, R, C]):
    """One whose publisher does not know it, and so cannot feed a descriptor: a thread that sleeps on the ring does."""

    _ring: R | None
    _past: C
    _event_fd = -1

    def _joined(self) -> R:
        """The ring that is joined now."""
        if self._ring is None:
            raise ValueError(f"the {self._what} is closed")
        return self._ring

    def _left(self, ring: R) -> None:
        """There is a new ring after this one."""
        ring.close()
        self._past = self._past.plus(ring.counters)
        self._watch()

    def stats(self) -> C:
        """Counters so far; those of the end once it is closed."""
        ring = self._ring
        return self._past if ring is None else self._past.plus(ring.counters)

    def close(self) -> None:
        """Take no more. A thread that waits here gets ValueError. Closing twice is fine."""
        ring = self._ring
        if self._closed or ring is None:
            return
        self._closed = True
        self._past = self.stats()
        self._ring = None  # a thread that waits still has it, and what was not copied does
        ring.close()
        ring.set_event(-1)
        self._forget()
        lifetime.unregister(self)

    def fileno(self) -> int:
        """A descriptor for ``select``, ``poll`` and event loops: readable when there may be something to take.

        It stays readable until a call with ``timeout=0`` has raised :class:`Timeout`. The first call starts a thread
        that sleeps on the ring.
        """
        if self._closed:
            raise ValueError(f"the {self._what} is closed")
        if self._event_fd < 0:
            self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._watch()
        return self._event_fd

    def _event_descriptor(self) -> int:
        """The eventfd that is written to whenever there is more to take; wait_any polls it too."""
        return self.fileno()

    def _watch(self) -> None:
        """Watch the ring that is joined now, if anybody polls."""
        if self._event_fd < 0:
            return
        os.eventfd_write(self._event_fd, 1)  # for what is there already
        ring = self._joined()
        ring.set_event(self._event_fd)
        # The thread has a descriptor of its own, and no reference to us: we may be closed, and collected, while it
        # sleeps.
        event = os.dup(self._event_fd)
        threading.Thread(target=_feed, args=(ring, event), name=f"cuframes:{self.key}", daemon=True).start()

    def _forget(self) -> None:
        self._closed = True
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1


def _feed(ring: WatchedRing, event: int) -> None:
    try:
        ring.watch(event)
    finally:
        os.close(event)
