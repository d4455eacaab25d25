"""Waiting for several subscribers, packet readers and slot readers at once."""

import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

from cuframes._core import FrameReader
from cuframes._native.ring_end import RingEnd
from cuframes._native.wait_any import wait_rings
from cuframes.errors import Timeout
from cuframes.framecache import SlotReader
from cuframes.host.steps import POLL_SECONDS, deadline_after
from cuframes.packets import PacketReader
from cuframes.subscriber import Subscriber

__all__ = ["wait_any"]

Waitable: TypeAlias = Subscriber | PacketReader | SlotReader


def wait_any(receivers: Iterable[Waitable], timeout: float | None = None) -> list[Waitable]:
    """Wait until one of several subscribers or readers has something, with one thread for all of them.

    Parameters
    ----------
    receivers : iterable of Subscriber, PacketReader and framecache.SlotReader
    timeout : float, optional
        Seconds; 0 looks once, None waits as long as it takes.

    Returns
    -------
    list
        Those whose ``next(timeout=0)`` has something to give, or to raise: their publisher ended, or they are closed,
        perhaps meanwhile. In the order given; empty when the time is up. (Another thread can make ``next`` raise
        :class:`Timeout` all the same.)

    Raises
    ------
    ValueError, TypeError
        The list is empty, or all of it is closed, or something in it is none of these.

    Notes
    -----
    Waits without the GIL. A publisher that is stopped, or dies, delays nobody else. A receiver with ``reconnect=True``
    is returned once when its publisher ends; its ``next(timeout=0)`` raises Timeout then, and from there on
    ``wait_any`` itself looks for the next publisher.

    Up to 16, and up to 128 with packet or slot readers among them, are waited for with ``futex_waitv`` (Linux 5.16),
    for which publishers pay no more than for one sleeping subscriber. More of them, or on an older kernel, are waited
    for through eventfds: publishers then pay one system call per frame and such a subscriber, and a packet or slot
    reader gets a thread. A slot whose writer is a C program that wakes nobody is looked at every millisecond.
    """
    waiting = list(receivers)
    if not waiting:
        raise ValueError("wait_any needs at least one subscriber or reader")
    deadline = deadline_after(timeout)
    found = _wait(waiting, timeout)
    if len(found) == len(waiting) and all(receiver._ring is None for receiver in found):
        raise ValueError("every receiver in the list is closed")
    ready = [receiver for receiver in found if not _is_lost(receiver)]
    return ready if ready or not found else _wait_rejoining(waiting, found, deadline)


def _wait(receivers: list[Waitable], timeout: float | None) -> list[Waitable]:
    """Those whose ring has something, or its end to tell."""
    # An attribute rather than a method: with many receivers, asking them is what a call costs.
    rings: list[Any] = [getattr(receiver, "_ring", receiver) for receiver in receivers]
    return wait_rings(receivers, rings, timeout, _poller)


def _is_lost(receiver: Waitable) -> bool:
    """Whether its publisher has ended, as its ``next`` has found, and there is not yet another one."""
    ring: Any = receiver._ring
    return ring is not None and receiver._is_lost(ring)


def _wait_rejoining(waiting: list[Waitable], lost: list[Waitable], deadline: float | None) -> list[Waitable]:
    """The same, while some have no publisher: look for theirs in between."""
    while True:
        for receiver in lost:
            try:
                receiver._look_again()
            except Timeout:
                pass
            except Exception:  # closed, refused, …: as its next() will say
                return [receiver]
        left = POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))
        there = [receiver for receiver in waiting if not _is_lost(receiver)]
        lost = [receiver for receiver in waiting if receiver not in there]
        found = []
        if there:
            found = [receiver for receiver in _wait(there, left) if not _is_lost(receiver)]
        else:
            time.sleep(left)
        if found or (deadline is not None and time.monotonic() >= deadline):
            return found


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

    def add(self, receiver: Waitable, ring: RingEnd) -> bool:
        """Whether the ring's eventfd is in the epoll; it is not as long as its publisher has not sent it."""
        with contextlib.suppress(ValueError):  # closed meanwhile, as the ring will say
            if not isinstance(ring, FrameReader):
                self._register(receiver.fileno())
                return True
            # Its own news ends the sleep too: the answer, and the end.
            self._register(ring.connection.fileno())
            ring.connection.request_event()
            if ring.connection.event_fd < 0:
                return False
            self._register(ring.connection.event_fd)
        return True

    def _register(self, fd: int) -> None:
        # Edge-triggered: it is never read, since the ring itself says whether something is there.
        with contextlib.suppress(FileExistsError):  # another thread has waited for it meanwhile
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def forget(self) -> None:
        """In a forked child: the epoll is the parent's."""
        if self.number:
            self._epoll.close()
            self.number = 0


_poller = _Poller()
os.register_at_fork(after_in_child=_poller.forget)
