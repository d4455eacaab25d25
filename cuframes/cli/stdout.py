"""Standard output that frames or packets are written to."""

import errno
import os
import sys

__all__ = ["check_stdout", "discard_stdout"]


def check_stdout(what: str, example: str) -> None:
    """Refuse a standard output that is closed, or that is a terminal.

    Parameters
    ----------
    what : str
        What is to be written: ``"frames"`` or ``"packets"``.
    example : str
        A command line that writes them to a pipe.

    Raises
    ------
    OSError
        Standard output is closed.
    ValueError
        It is a terminal.
    """
    if sys.__stdout__ is None:
        raise OSError(errno.EBADF, "there is no standard output to write to")
    if sys.stdout.isatty():
        raise ValueError(f"{what} cannot be shown on a terminal; pipe them: {example}")


def discard_stdout() -> None:
    """Write to nowhere from now on: the reader has gone, and the interpreter's own flush at exit must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
