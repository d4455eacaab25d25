"""Waiting for several subscribers and packet readers at once."""

import contextlib
import itertools
import os
import select
import threading
from collections.abc import Iterable

from cuframes._any import wait_rings
from cuframes.packets import PacketReader
from cuframes.subscriber import Subscriber

__all__ = ["wait_any"]


def wait_any(
    receivers: Iterable[Subscriber | PacketReader], timeout: float | None = None
) -> list[Subscriber | PacketReader]:
    """Wait until one of several subscribers or packet readers has something, with one thread for all of them.

    Parameters
    ----------
    receivers : iterable of Subscriber and PacketReader
    timeout : float, optional
        Seconds; 0 looks once, None waits as long as it takes.

    Returns
    -------
    list
        Those whose ``next(timeout=0)`` has something to give, or to raise: their publisher ended. In the order given;
        empty when the time is up. (Another thread, or a writer just taking the slot, can make ``next`` raise
        :class:`Timeout` all the same.)

    Raises
    ------
    ValueError, TypeError
        One of them is closed, or something else; or there is none.

    Notes
    -----
    Waits without the GIL. Up to 16, and up to 128 with packet readers among them, are waited for with ``futex_waitv``
    (Linux 5.16), for which publishers pay no more than for one sleeping subscriber. More of them, or on an older
    kernel, are waited for through eventfds: publishers then pay one system call per frame and such a subscriber, and a
    packet reader gets a thread.
    """
    waiting = list(receivers)
    if not waiting:
        raise ValueError("wait_any needs at least one subscriber or packet reader")
    return wait_rings(waiting, timeout, _poller)


class _Poller(threading.local):
    """A thread's epoll of the eventfds of everything that it has waited for. It is made when it is first needed.

    What is closed disappears from it by itself. What is not waited for any more can only end a sleep for nothing, and
    the next look at the rings says so.
    """

    _numbers = itertools.count(1)
    number = 0  # rings remember it, to know whether they were added

    def fileno(self) -> int:
        if not self.number:
            self._epoll, self.number = select.epoll(), next(self._numbers)
        return self._epoll.fileno()

    def add(self, receiver: Subscriber | PacketReader) -> None:
        # Edge-triggered: it is never read, since the ring itself says whether something is there.
        with contextlib.suppress(FileExistsError):  # another thread has waited for it meanwhile
            self._epoll.register(receiver._event_descriptor(), select.EPOLLIN | select.EPOLLET)

    def forget(self) -> None:
        """In a forked child: the epoll is the parent's."""
        if self.number:
            self._epoll.close()
            self.number = 0


_poller = _Poller()
os.register_at_fork(after_in_child=_poller.forget)
