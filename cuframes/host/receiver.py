"""What subscribers and readers share: iterating, waiting in an event loop, reconnecting, and closing."""

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from cuframes._native.ring_end import Descriptor, pause_at_exit
from cuframes.errors import Disconnected, NoPlace, ProtocolError, SegmentTruncated, Timeout
from cuframes.host import lifetime
from cuframes.host.steps import ANSWER_SECONDS, PASSING, POLL_SECONDS, Expired, Steps, deadline_after, repeat, run

if TYPE_CHECKING:
    import asyncio

__all__ = ["Receiver", "WatchedReceiver"]

JOINER_SECONDS = 1.0  # how long close() waits for a thread that is just joining; it looks every POLL_SECONDS


class Ring(Protocol):
    """A reader's end of a ring, for as long as one publisher lives."""

    @property
    def counters(self) -> tuple[int, ...]:
        """How many items were received, and how many were missed."""

    @property
    def abandoned(self) -> bool:
        """Whether the publisher has ended, even if it left something to take."""

    @property
    def over(self) -> bool:
        """Whether the publisher has ended, and everything that it left has been taken."""

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the parent of this process."""

    def check_process(self) -> None:
        """Raise RuntimeError if it does."""

    def close(self) -> bool:
        """Close the ring when no call is inside. Returns whether this call closed it. See gate.h."""


class Counters(Protocol):
    """Counters of earlier rings."""

    def plus(self, other: tuple[int, ...]) -> Self:
        """The sum of these counters and a ring's."""


T = TypeVar("T")
R = TypeVar("R", bound=Ring)
C = TypeVar("C", bound=Counters)


class Receiver(lifetime.Closing, Generic[T, R, C]):
    """Takes frames or packets, one after the other, from the publisher of a key, which may end and come back.

    Subclasses define how to join, how to take, and what to poll. Any thread may call any method. ``_ring`` is None
    after :meth:`close`. Code that sets ``_ring`` checks ``_closed`` afterwards; close() sets ``_closed`` and then looks
    at ``_ring``. So no ring is left open, in either order.
    """

    key: str
    reconnect: bool
    _what = "receiver"
    _source = "publisher of"
    _ring: R | None = None
    _past: C

    def __init__(self, key: str, reconnect: bool, past: C) -> None:
        self.key = key
        self.reconnect = reconnect
        self._past = past
        self._prompt = False  # the last item of an asynchronous loop was there without waiting
        self._steps: Steps[R] | None = None  # joining the next publisher, as far as that has come
        self._renew_locks()

    def _renew_locks(self) -> None:
        # Reentrant, since a signal handler may find its own thread inside.
        self._changing = threading.RLock()  # of _ring and _past together
        self._joining = threading.RLock()  # by whoever runs the steps

    # ---- what subclasses say

    def _open(self, *, again: bool) -> Steps[R]:
        """Join a publisher; `again` if there was one before it."""
        raise NotImplementedError

    def _take(self, ring: R, timeout: float | None) -> T:
        """The ring's next item for a loop, within `timeout` seconds. Raises Timeout, and Disconnected at the end."""
        raise NotImplementedError

    def _installing(self, ring: R) -> None:
        """Called with a new ring before it is used: store what it says about the stream."""

    def _watch(self, ring: R) -> None:
        """If the descriptor is in use, let this new ring signal it too."""

    def _leave(self, ring: R) -> None:
        """Stop polling this ring, since another one follows."""

    def _must_look(self) -> bool:
        """Whether the descriptor does not signal new items yet, so that they must be looked for."""
        return False

    def _unwatch(self) -> None:
        """After close(): wake the threads that poll, and close the descriptor that they poll."""

    def _counted(self, ring: R) -> C:
        """The counters, including those of `ring`, which has ended."""
        return self._past.plus(ring.counters)

    def fileno(self) -> int:
        """A descriptor to poll."""
        raise NotImplementedError

    def _pollable(self) -> int:
        """Like :meth:`fileno`, without waiting."""
        return self.fileno()

    # ---- joining

    def _join(self, timeout: float | None) -> None:
        """Join the first publisher, at the end of a constructor. If it fails, nothing is left behind."""
        deadline = deadline_after(timeout)
        steps = repeat(lambda: self._open(again=False))
        try:
            ring = run(steps, deadline, grace=ANSWER_SECONDS)
        except Expired as over:
            raise over.problem from None
        finally:
            steps.close()
        try:
            self._installing(ring)
            self._ring = ring
            lifetime.register(self)
        except BaseException:
            ring.close()
            raise
        self._closed = self._over = False

    def _joined(self) -> R:
        """The current ring. Raises RuntimeError in a forked child, also after a fork() in C."""
        ring = self._ring
        if ring is None:
            raise self._is_closed()
        ring.check_process()
        return ring

    def _is_closed(self) -> ValueError:
        pause_at_exit()
        return ValueError(f"the {self._what} is closed")

    def _rejoin(self, ended: R, deadline: float | None) -> R:
        """The ring after `ended`: that of the next publisher, or one that another thread has joined meanwhile.

        Raises
        ------
        Timeout
            No publisher came in time. The next call continues the attempt.
        ValueError
            The receiver was closed meanwhile.
        """
        while (ring := self._ring) is ended and not self._closed:
            left = POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))
            if self._joining.acquire(timeout=left):
                try:
                    if self._ring is ended:
                        self._join_next(ended, deadline)
                except ValueError:
                    if not self._closed:  # else see below, without the lock
                        raise
                finally:
                    self._joining.release()
            elif deadline is not None and time.monotonic() >= deadline:
                raise self._late()
        if ring is None or self._closed:
            raise self._is_closed()
        return ring

    def _look_again(self) -> None:
        """Join the next publisher without waiting, if this one has ended and the next is running. Errors are those of
        :meth:`_rejoin`.
        """
        ring = self._joined()
        if self._is_lost(ring):  # else another thread, or the same call, has joined it meanwhile
            self._rejoin(ring, 0.0)

    def _is_lost(self, ring: R) -> bool:
        """Whether a call has found that the ring's publisher ended, and no other publisher has been joined yet."""
        try:
            return self._ring is ring and self._steps is not None and ring.over
        except ValueError:  # closed, or replaced, meanwhile
            return False

    def _late(self, problem: Exception | None = None) -> Timeout:
        seen = f"; {problem}" if isinstance(problem, (ProtocolError, PermissionError)) else ""
        return Timeout(f"no {self._source} {self.key!r} came back in time{seen}")

    def _join_next(self, ended: R, deadline: float | None) -> None:
        if self._steps is None:
            self._steps = repeat(lambda: self._open(again=True), (*PASSING, NoPlace))
        steps = self._steps
        try:
            ring: R | None = run(steps, deadline, lambda: self._closed)
        except Expired as over:
            raise self._late(over.problem) from None
        except BaseException:
            self._steps = None
            steps.close()
            raise
        self._steps = None
        if ring is None:  # close() has ended the steps, on this very thread
            raise self._is_closed()
        # The old one stayed until there was a new one, so that a call that timed out could be repeated.
        try:
            self._leave(ended)
            self._installing(ring)
            first = ended.close()
            with self._changing:
                if first:  # else close() has counted it
                    self._past = self._counted(ended)
                self._ring = ring
        except BaseException:
            ring.close()
            raise
        if self._closed:
            ring.close()
            raise self._is_closed()
        self._watch(ring)

    # ---- taking

    def _next(self, take: Callable[[R, float | None], T], timeout: float | None) -> T:
        """The result of `take`, after joining the next publisher as often as necessary."""
        ring = self._joined()
        deadline = deadline_after(timeout) if self.reconnect else None
        left = timeout
        while True:
            try:
                return take(ring, left)
            except (Disconnected, SegmentTruncated) as problem:
                if not self._may_rejoin(ring, problem):
                    raise
            except ValueError:
                if self._closed or not ring.closed:
                    raise
                # Another thread is joining the next publisher.
            ring = self._rejoin(ring, deadline)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())

    def _may_rejoin(self, ring: R, problem: Exception) -> bool:
        """Whether to wait for the next publisher, instead of raising the ring's error."""
        # A ring that was cut off is of no use any more, but as long as its publisher lives, there is none after it.
        return self.reconnect and (isinstance(problem, Disconnected) or ring.abandoned)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._next(self._take, None)
        except Disconnected:
            raise StopIteration from None
        except ValueError:
            if self._closed:  # perhaps by another thread, while we waited
                raise StopIteration from None
            raise

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """The next item. Never blocks the event loop, and loses nothing if it is cancelled."""
        import asyncio  # here, since it is a third of the import time and few need it

        if self._prompt:  # perhaps we are always behind; others shall run all the same
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # a timer that was due has woken its task; that runs now
        self._prompt = True
        while (ring := self._ring) is not None:
            try:
                return self._take(ring, 0)
            except Timeout:
                self._prompt = False
                with contextlib.suppress(Disconnected):  # as the next turn will find
                    await self._readable()
            except (Disconnected, SegmentTruncated) as problem:
                if not self._may_rejoin(ring, problem):
                    if isinstance(problem, Disconnected):
                        break
                    raise
                self._prompt = False
                await self._rejoined(ring)
            except ValueError:
                if not ring.closed:
                    raise
                if not self._closed:  # another thread is joining the next publisher
                    await self._rejoined(ring)
        raise StopAsyncIteration

    async def _readable(self) -> None:
        """Wait in the event loop until there may be something to take, or close() was called."""
        import asyncio

        try:
            # A duplicate, since close() may run at any time, and the number may then be another file's. It is made
            # under the lock that close() needs to close ours.
            number = self._pollable()
            with self._changing:
                if self._closed:
                    return
                file = Descriptor.dup(number)
        except ValueError:
            return  # closed, as the next turn will find
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        look = loop.call_later(POLL_SECONDS, _resolve, ready) if self._must_look() else None
        with file:
            try:
                loop.add_reader(file.fileno(), _resolve, ready)
                await ready
            finally:
                loop.remove_reader(file.fileno())
                if look is not None:
                    look.cancel()

    async def _rejoined(self, ended: R) -> None:
        """Wait in the event loop for the next publisher, or close()."""
        import asyncio

        seconds = POLL_SECONDS / 16
        while self._ring is ended:
            try:
                self._rejoin(ended, 0.0)
                return
            except Timeout:
                pass
            except ValueError:
                if self._closed:  # as the next turn will find
                    return
                raise
            await asyncio.sleep(seconds)  # short at first: publishers that are there answer at once
            seconds = min(2 * seconds, POLL_SECONDS)

    # ---- ends

    def stats(self) -> C:
        """The current counters; after :meth:`close`, the final ones."""
        ring = self._ring
        if ring is not None:
            ring.check_process()  # before the lock: a thread of the parent may have held it
        with self._changing:
            return self._past if self._ring is None else self._past.plus(self._ring.counters)

    def close(self) -> None:
        """Stop taking. Wakes every thread and task that waits here: :meth:`next` raises ValueError, and loops end.

        Waits for calls in progress, which end at once. It may be called twice, and from anywhere.
        """
        self._closed = True
        ring = self._ring
        if ring is not None and ring.inherited:  # forked by C code, that tells no Python hooks
            self._forget()
            return
        if ring is not None and ring.close():
            with self._changing:
                self._past = self._past.plus(ring.counters)
                self._ring = None
        if self._joining.acquire(timeout=JOINER_SECONDS):
            try:
                self._abandon_join()
            finally:
                self._joining.release()
        self._unwatch()
        lifetime.unregister(self)
        self._over = True

    def _abandon_join(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            with contextlib.suppress(ValueError):  # this is a signal handler, and they run right now: they will see
                steps.close()
        ring = self._ring
        if ring is not None:  # joined just before we looked
            ring.close()
            self._ring = None

    def _forget(self) -> None:
        """In a forked child: close inherited descriptors, without giving up anything that belongs to the parent."""
        self._closed = self._over = True
        self._renew_locks()  # a thread of the parent may have held them
        self._steps = None
        if self._ring is not None:
            self._ring.close()  # it stays, to say whose it is


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():  # it is cancelled when the waiting is
        ready.set_result(None)


class WatchedRing(Ring, Protocol):
    """A ring that a thread can watch."""

    def set_event(self, event: Descriptor) -> None:
        """Drain this eventfd when nothing is left to take. The ring owns it from now on."""

    def watch(self, fd: int) -> None:
        """Signal this eventfd for every new item, until the ring ends."""


W = TypeVar("W", bound=WatchedRing)


class WatchedReceiver(Receiver[T, W, C], Generic[T, W, C]):
    """A receiver that is unknown to its publisher. A thread that sleeps on the ring signals its descriptor."""

    _event: Descriptor | None = None  # made by the first fileno(); threads and rings have duplicates of it
    _watched: W | None = None  # the ring whose thread signals it

    def fileno(self) -> int:
        """A descriptor for ``select``, ``poll`` and event loops. It is readable when there may be something to take.

        The descriptor stays readable until a call with ``timeout=0`` has raised :class:`Timeout`. :meth:`close` closes
        it. The first call starts a thread that sleeps on the ring. Does not block.

        Raises
        ------
        ValueError
            The reader is closed.
        """
        ring = self._joined()
        with self._changing:
            if self._event is None and not self._closed:
                self._event = Descriptor.eventfd()
            self._watch(ring)
            if self._event is not None and not self._closed:
                return self._event.fileno()
        raise self._is_closed()  # without the lock: at exit this takes a while

    def _watch(self, ring: W) -> None:
        with self._changing:
            if self._event is None or self._event.closed or self._watched is ring:
                return
            try:
                self._start_watching(ring, self._event)
            except (OSError, ValueError):
                if not self._closed:  # else a signal handler has closed the descriptor just now
                    raise

    def _start_watching(self, ring: W, event: Descriptor) -> None:
        """If this is interrupted, the next call starts another thread, which does no harm."""
        os.eventfd_write(event.fileno(), 1)  # for what has come already
        # Ring and thread have descriptors of their own, and no reference to us: we may be closed, and collected, while
        # they still use them.
        signalled = [Descriptor.dup(event.fileno())]
        thread = threading.Thread(target=_feed, args=(ring, signalled), name=f"cuframes:{self.key}", daemon=True)
        try:
            thread.start()
        except BaseException:
            signalled.clear()  # threading keeps a thread that it was interrupted in starting, and its arguments
            raise
        ring.set_event(Descriptor.dup(event.fileno()))
        self._watched = ring

    def _unwatch(self) -> None:
        with self._changing:
            if self._event is not None and not self._event.closed:
                os.eventfd_write(self._event.fileno(), 1)  # for event loops that have a copy of it
                self._event.close()

    def _forget(self) -> None:
        super()._forget()
        if self._event is not None:
            self._event.close()


def _feed(ring: WatchedRing, signalled: list[Descriptor]) -> None:
    with contextlib.suppress(ValueError, IndexError), signalled.pop() as event:  # closed or given up before we began
        ring.watch(event.fileno())
