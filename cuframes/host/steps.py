"""Waiting for what may take a while, without blocking.

An attempt (to join a publisher, to open a slot) is a generator that is run step by step: it yields a :class:`Pause`
whenever it has to wait, and returns what it was for. :func:`run` does so for a thread; an event loop can do it between
other things.
"""

import errno
import select
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

from cuframes.errors import Disconnected, NoPacketRing, NotFound, Timeout, Unavailable

__all__ = [
    "ANSWER_SECONDS",
    "PASSING",
    "POLL_SECONDS",
    "Expired",
    "InTheWay",
    "Pause",
    "Steps",
    "bare",
    "deadline_after",
    "repeat",
    "run",
]

POLL_SECONDS = 0.02  # how often a publisher that is not there yet is looked for, and close() is
# However short the caller's time is, a publisher that is there gets this long to answer.
ANSWER_SECONDS = 0.2

T = TypeVar("T")


class Pause(NamedTuple):
    """Why a generator waits: until `fd` is readable, or, when that is -1, for the next look. `problem` is what to raise
    when there is no time for that.
    """

    fd: int
    problem: Exception


Steps = Generator[Pause, None, T]


def deadline_after(timeout: float | None) -> float | None:
    """``time.monotonic()`` at which a wait of `timeout` seconds ends; None never ends.

    Raises
    ------
    ValueError, TypeError
        `timeout` is negative, or no number of seconds.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not timeout >= 0:
        raise ValueError(f"a timeout is None or seconds >= 0, not {timeout!r}")
    return time.monotonic() + timeout


class Expired(Exception):
    """The steps were not over in time. They can be gone on with."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = problem


def run(
    steps: Steps[T], deadline: float | None, closed: Callable[[], bool] = lambda: False, *, grace: float = 0.0
) -> T:
    """What the steps return, waiting for it in this thread. Signals are answered in between.

    However early the deadline is, a publisher that is there has `grace` seconds to answer.

    Raises
    ------
    Expired
        The deadline has passed.
    ValueError
        `closed()` has turned true.
    """
    begun = time.monotonic()
    try:
        while True:
            pause = next(steps)
            if closed():
                raise ValueError("it was closed meanwhile")
            now = time.monotonic()
            end = deadline
            if end is not None and pause.fd >= 0:
                end = max(end, begun + grace)
            if end is not None and now >= end:
                raise Expired(pause.problem)
            wait(pause, POLL_SECONDS if end is None else min(POLL_SECONDS, end - now))
    except StopIteration as done:
        result: T = done.value
        return result


def wait(pause: Pause, seconds: float) -> None:
    """Sleep until there may be something for the next step to do."""
    if pause.fd < 0:
        time.sleep(seconds)
        return
    poller = select.poll()  # not select.select: descriptors beyond 1023 are usual with many cameras
    poller.register(pause.fd, select.POLLIN)
    poller.poll(seconds * 1000)


class InTheWay(Exception):
    """An attempt failed for what somebody has put in the place of what is waited for. It can be removed, so waiting
    goes on; when time is up, `problem` is raised.
    """

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = bare(problem)


def bare(problem: Exception) -> Exception:
    """The exception without the frames that it went through: kept, it would keep them and all that they refer to."""
    problem.__traceback__ = problem.__context__ = problem.__cause__ = None
    return problem


PASSING: tuple[type[Exception], ...] = (NotFound, NoPacketRing, Disconnected, Unavailable, Timeout)


def repeat(attempt: Callable[[], Steps[T]], passing: tuple[type[Exception], ...] = PASSING) -> Steps[T]:
    """The first attempt that succeeds; after a failure that may pass, another one follows.

    When time is up in the middle of an attempt, the reason is why the one before it failed.
    """
    problem: Exception | None = None
    while True:
        steps = attempt()
        try:
            while True:
                pause = next(steps)
                yield Pause(pause.fd, problem or pause.problem)
        except StopIteration as done:
            result: T = done.value
            return result
        except passing as caught:
            if not (isinstance(problem, Unavailable) and isinstance(caught, Timeout)):  # it has said why
                problem = bare(caught)
        except InTheWay as caught:
            problem = caught.problem
        except OSError as caught:
            if caught.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            problem = bare(caught)  # out of descriptors or memory: others may give some back
        finally:
            steps.close()
        yield Pause(-1, problem)
