"""Standard output, for frames and packets, and for reports as lines of JSON."""

import errno
import json
import os
import sys
from typing import Any, TextIO

__all__ = ["check_stdout", "discard_stdout", "print_json"]


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


def print_json(report: dict[str, Any], file: TextIO | None = None) -> None:
    """Print a report as a line of JSON, to standard output by default. A signal that ends the command never comes
    between the line and its end.
    """
    file = file or sys.stdout
    file.write(json.dumps(report) + "\n")  # print() writes the end of the line by itself
    file.flush()
