"""The ``cuframes`` command. Each subcommand has a module; ``app`` puts them together."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from cuframes.cli.hints import in_options

__all__ = ["EXIT_ERROR", "EXIT_NOT_FOUND", "EXIT_STALE", "EXIT_USAGE", "Stopped", "main"]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_STALE = 4
EXIT_SIGNAL = 128  # plus the signal's number


class Stopped(BaseException):
    """SIGINT or SIGTERM (``number``) ended a command.

    A command that runs until it is stopped catches it around its loop, closes what it has opened, and prints its
    summary. The exit status is then 130 or 143, as :func:`main` remembers the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_stopped_by: int | None = None


def _stop(number: int, _: Any) -> None:
    """Only the first signal raises. One that comes meanwhile (a second Ctrl-C, `docker stop` after it) must not
    interrupt what the first one has begun to close."""
    global _stopped_by
    if _stopped_by is None:
        _stopped_by = number
        raise Stopped(number)


def stop_on_signals() -> None:
    """From here on SIGINT and SIGTERM raise :class:`Stopped`, so that ``with`` blocks clean up."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def open_standard_files() -> None:
    """Open what whoever started us has closed of standard input, output and error.

    The next file to be opened, such as a recording, would get the number, and what libraries print would be written to
    it. And Python prints to standard output what is meant for an error output that it does not have.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def fail(status: int, message: object) -> NoReturn:
    """End with one line on standard error."""
    _complain(message)
    sys.exit(status)


def _complain(message: object) -> None:
    print("cuframes:", in_options(" ".join(str(message).split())), file=sys.stderr)


def main() -> NoReturn:
    """Entry point. An error is one line with cause and remedy; the exit status tells scripts the kind of error."""
    open_standard_files()
    # While modules are imported there is nothing to clean up, and an exception could come up anywhere in them: as a
    # traceback, or swallowed. Whoever started us may have SIGINT ignored, and is obeyed.
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    for number in numbers:
        signal.signal(number, lambda number, _: os._exit(EXIT_SIGNAL + number))
    try:
        import av  # noqa: F401
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as missing:
        fail(EXIT_ERROR, f"the command line needs {missing.name}; install it with: pip install 'cuframes[cli]'")
    from cuframes.cli.app import app

    status: int | str | None = 0
    try:
        for number in numbers:
            signal.signal(number, _stop)
        status = _run(app)
    except Stopped:
        pass
    _leave(status if _stopped_by is None else EXIT_SIGNAL + _stopped_by)


def _run(app: Callable[[], object]) -> int | str | None:
    """Run a command; its exit status."""
    import av

    from cuframes.errors import CuframesError, NotFound

    try:
        app()
    except SystemExit as ended:
        return ended.code
    except NotFound as problem:
        _complain(problem)
        return EXIT_NOT_FOUND
    except (CuframesError, OSError, av.FFmpegError) as problem:
        _complain(problem)
        return EXIT_ERROR
    except (ValueError, TypeError) as problem:
        _complain(problem)
        return EXIT_USAGE
    return 0


def _leave(status: int | str | None) -> NoReturn:
    """End the process, and wait for nobody."""
    if _stopped_by is not None:
        # The interpreter gives handlers up before it ends, and one more signal would then decide the exit status.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _flush_at_once()
    connection = sys.modules.get("cuframes.media.sources.connection")
    if connection is not None and connection.stuck():
        # Threads that FFmpeg does not give back would come back into an interpreter that is being taken down.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)


def _flush_at_once() -> None:
    """Write what standard output still holds, unless its reader does not read: a full pipe must not keep us."""
    with contextlib.suppress(OSError, ValueError):
        fd = sys.stdout.fileno()
        before = os.get_blocking(fd)
        os.set_blocking(fd, False)
        try:
            sys.stdout.flush()
        except BlockingIOError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        finally:
            os.set_blocking(fd, before)
