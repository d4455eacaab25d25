"""The ``cuframes`` command. Each subcommand has a module; ``app`` puts them together."""

import os
import signal
import sys
from typing import Any, NoReturn

__all__ = ["EXIT_ERROR", "EXIT_NOT_FOUND", "EXIT_STALE", "EXIT_USAGE", "Stopped", "main"]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_STALE = 4
EXIT_INTERRUPTED = 128 + signal.SIGINT


class Stopped(BaseException):
    """SIGINT or SIGTERM (``number``) ended a command that runs until it is stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_on_signals() -> None:
    """From here on SIGINT and SIGTERM raise :class:`Stopped`, so that ``with`` blocks clean up."""

    def stop(number: int, _: Any) -> NoReturn:
        raise Stopped(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


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
    print("cuframes:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def main() -> NoReturn:
    """Entry point. An error is one line with cause and remedy; the exit status tells scripts the kind of error."""
    open_standard_files()
    # While modules are imported there is nothing to clean up, and a KeyboardInterrupt could come up anywhere in them:
    # as a traceback, or swallowed. Whoever started us may have SIGINT ignored, and is obeyed.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        import av  # noqa: F401
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as missing:
        fail(EXIT_ERROR, f"the command line needs {missing.name}; install it with: pip install 'cuframes[cli]'")
    from cuframes.cli.app import app
    from cuframes.errors import CuframesError, NotFound

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except Stopped:
        sys.exit(0)
    except KeyboardInterrupt:  # before the command has begun; from there on it is the option parser's
        sys.exit(EXIT_INTERRUPTED)
    except NotFound as problem:
        fail(EXIT_NOT_FOUND, problem)
    except (CuframesError, OSError) as problem:
        fail(EXIT_ERROR, problem)
    except (ValueError, TypeError) as problem:
        fail(EXIT_USAGE, problem)
    sys.exit(0)
