"""Waiting for several subscribers, packet readers and slot readers at once."""

import contextlib
import errno
import itertools
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar

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
W = TypeVar("W", bound=Waitable)


def wait_any(receivers: Iterable[W], timeout: float | None = None) -> list[W]:
    """Wait, with one thread, until at least one of several subscribers or readers is ready.

    A receiver is ready when its ``next(timeout=0)`` would return something or raise an error other than
    :class:`Timeout`.

    Parameters
    ----------
    receivers : iterable of Subscriber, PacketReader and framecache.SlotReader
    timeout : float, optional
        Seconds to wait. 0 checks once without waiting; None waits without a limit.

    Returns
    -------
    list
        The receivers that are ready, in the order given; empty if the time is up. A receiver is also ready when its
        publisher has ended, or when it is closed, even during the wait. (If another thread takes from a receiver,
        its ``next`` can still raise :class:`Timeout`.)

    Raises
    ------
    ValueError, TypeError
        The list is empty, all receivers in it are closed, or one element is not a subscriber or reader.

    Notes
    -----
    Waits without the GIL. A publisher that is stopped, or dies, does not delay the others. A receiver with
    ``reconnect=True`` is returned once when its publisher ends; its ``next(timeout=0)`` then raises Timeout. From then
    on, ``wait_any`` itself looks for the next publisher.

    Up to 16 receivers (up to 128 if there are packet or slot readers among them) are waited for with ``futex_waitv``
    (Linux 5.16), which costs a publisher no more than one sleeping subscriber. More receivers, and all receivers on an
    older kernel, are waited for through eventfds. A publisher then makes one system call per frame for each such
    subscriber, and each packet or slot reader gets a thread. A slot whose writer is a C program that wakes no reader is
    polled every millisecond.
    """
    if isinstance(receivers, (Subscriber, PacketReader, SlotReader)):
        raise TypeError("wait_any takes a list of subscribers and readers; write wait_any([receiver])")
    waiting = list(receivers)
    if not waiting:
        raise ValueError("wait_any needs at least one subscriber or reader")
    deadline = deadline_after(timeout)
    found = _wait(waiting, timeout)
    if len(found) == len(waiting) and all(receiver._ring is None for receiver in found):
        raise ValueError("every receiver in the list is closed")
    ready = [receiver for receiver in found if not _is_lost(receiver)]
    return ready if ready or not found else _wait_rejoining(waiting, found, deadline)


def _wait(receivers: list[W], timeout: float | None) -> list[W]:
    """The receivers whose ring has something to take, or has ended."""
    # An attribute rather than a method: with many receivers, asking them is what a call costs.
    rings: list[Any] = [getattr(receiver, "_ring", False) for receiver in receivers]
    return wait_rings(receivers, rings, timeout, _poller)


def _is_lost(receiver: Waitable) -> bool:
    """Whether its ``next`` has found that the publisher ended, and no other publisher has been joined yet."""
    ring: Any = receiver._ring
    return ring is not None and receiver._is_lost(ring)


def _wait_rejoining(waiting: list[W], lost: list[W], deadline: float | None) -> list[W]:
    """Like :func:`_wait`, while some receivers have no publisher: look for their next publishers in between."""
    while True:
        for receiver in lost:
            try:
                receiver._look_again()
            except Timeout:
                pass
            except Exception:  # closed, refused, …: its next() will raise it
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
    """A thread's epoll of the eventfds of all receivers that it has waited for. It is made when it is first needed.

    Closed descriptors disappear from it by themselves. A receiver that is no longer waited for can only cause a
    needless wake-up, after which the rings are checked again.
    """

    _numbers = itertools.count(1)
    number = 0  # rings remember it, to know whether they were added

    def fileno(self) -> int:
        if not self.number:
            self._epoll, self.number = select.epoll(), next(self._numbers)
        return self._epoll.fileno()

    def add(self, receiver: Waitable, ring: RingEnd) -> bool:
        """Add the ring's eventfd to the epoll. False: its publisher has not sent the eventfd yet."""
        with contextlib.suppress(ValueError):  # closed meanwhile; the check of the rings finds that
            if not isinstance(ring, FrameReader):
                self._register(receiver.fileno())
                return True
            # A message on the connection also ends the sleep: the publisher's answer, or its end.
            self._register(ring.connection.fileno())
            ring.connection.request_event()
            if ring.connection.event_fd < 0:
                return False
            self._register(ring.connection.event_fd)
        return True

    def _register(self, fd: int) -> None:
        # Edge-triggered, since the descriptor is never read: the ring itself says whether something is there.
        try:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        except OSError as problem:  # another thread has waited for it meanwhile, or closed it: the rings are checked
            if problem.errno not in (errno.EEXIST, errno.EBADF):
                raise

    def forget(self) -> None:
        """In a forked child: close the copy of the parent's epoll."""
        if self.number:
            self._epoll.close()
            self.number = 0


_poller = _Poller()
os.register_at_fork(after_in_child=_poller.forget)
