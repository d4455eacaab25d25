"""Waiting for several subscribers and packet readers at once."""

import select
from collections.abc import Iterable
from typing import Any

from cuframes._any import MOST, wait_rings
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
    ValueError
        One of them is closed, or there is none.

    Notes
    -----
    Up to 128 are waited for with one system call (``futex_waitv``, Linux 5.16), without the GIL, and publishers pay
    nothing more than for one sleeping subscriber. More of them, or an older kernel, are waited for through their
    ``fileno()``.
    """
    waiting = list(receivers)
    if not waiting:
        raise ValueError("wait_any needs at least one subscriber or packet reader")
    rings = [receiver.ring() for receiver in waiting]
    if len(rings) <= MOST:
        found = wait_rings(rings, timeout)
        if found is not None:
            return [waiting[at] for at in found]
    return _poll(waiting, timeout)


def _poll(waiting: list[Any], timeout: float | None) -> list[Any]:
    poller = select.poll()
    by_descriptor = {receiver.fileno(): receiver for receiver in waiting}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.POLLIN)
    found = dict(poller.poll(None if timeout is None else timeout * 1000))
    return [receiver for descriptor, receiver in by_descriptor.items() if descriptor in found]
