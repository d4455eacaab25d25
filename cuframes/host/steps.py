"""Operations that may have to wait, written as generators so that they never block.

An attempt (to join a publisher, to open a slot) is a generator that is run step by step. It yields a :class:`Pause`
whenever it has to wait, and finally returns its result. :func:`run` runs it in a thread; an event loop can run it
between other tasks.
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

POLL_SECONDS = 0.02  # how often to look for a publisher that is not running yet, and for a close()
# A running publisher gets at least this long to answer, however short the caller's timeout is.
ANSWER_SECONDS = 0.2

T = TypeVar("T")


class Pause(NamedTuple):
    """Why a generator waits: until `fd` is readable, or, if `fd` is -1, until the next look. `problem` is the error to
    raise if the time is up.
    """

    fd: int
    problem: Exception


Steps = Generator[Pause, None, T]


def deadline_after(timeout: float | None) -> float | None:
    """``time.monotonic()`` at which a wait of `timeout` seconds ends; None never ends.

    Raises
    ------
    ValueError, TypeError
        `timeout` is negative, or not a number of seconds.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not timeout >= 0:
        raise ValueError(f"a timeout is None or seconds >= 0, not {timeout!r}")
    return time.monotonic() + float(timeout)  # a sum with NumPy's float32 is as coarse as that


class Expired(Exception):
    """The steps did not finish in time. They can be continued."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = problem


def run(
    steps: Steps[T], deadline: float | None, closed: Callable[[], bool] = lambda: False, *, grace: float = 0.0
) -> T:
    """Run the steps in this thread and return their result. Signals are handled in between.

    A running publisher gets at least `grace` seconds to answer, however early the deadline is.

    Raises
    ------
    Expired
        The deadline has passed.
    ValueError
        `closed()` has become true.
    """
    begun = time.monotonic()
    try:
        while True:
            pause = next(steps)
            if closed():
                raise ValueError("closed while waiting")
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
    """The exception without its traceback, so that keeping it does not keep the frames of its traceback alive."""
    problem.__traceback__ = problem.__context__ = problem.__cause__ = None
    return problem


PASSING: tuple[type[Exception], ...] = (NotFound, NoPacketRing, Disconnected, Unavailable, Timeout)


def repeat(attempt: Callable[[], Steps[T]], passing: tuple[type[Exception], ...] = PASSING) -> Steps[T]:
    """The result of the first attempt that succeeds; a temporary failure is followed by another attempt.

    If the time is up during an attempt, the reason given is why the attempt before it failed.
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
