"""What subscribers and packet readers have in common: iterating, waiting in an event loop, and reconnecting."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from cuframes.errors import Disconnected, Timeout
from cuframes.session.client import POLL_SECONDS

if TYPE_CHECKING:
    import asyncio

__all__ = ["Receiver"]

T = TypeVar("T")

TURN_SECONDS = 0.2  # how long close() and signals wait for somebody who is connecting


class Receiver(Generic[T]):
    """Takes one thing after the other from the publisher of a key, which may end, and come back.

    Subclasses say how to take, how to join the next publisher, and what to poll.
    """

    key: str
    reconnect: bool
    _closed: bool = True
    _what = "receiver"

    def _take(self, timeout: float | None) -> T:
        """The next thing, within `timeout` seconds. Raises Timeout, and Disconnected when the publisher has ended."""
        raise NotImplementedError

    def _join_next(self, timeout: float) -> None:
        """Leave the publisher that ended, and join the next one. Raises FileNotFoundError when none came in time."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor to poll."""
        raise NotImplementedError

    def close(self) -> None:
        """Take no more."""
        raise NotImplementedError

    def _take_reconnecting(self, take: Callable[[float | None], T], timeout: float | None) -> T:
        """What `take` gives, after joining the next publisher as often as that needs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._rejoin(left):
                raise Timeout(f"no publisher of {self.key!r} came back in time")
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
            ready: asyncio.Future[None] = loop.create_future()
            fd = self.fileno()
            loop.add_reader(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():  # it is cancelled when the iteration is
        ready.set_result(None)
