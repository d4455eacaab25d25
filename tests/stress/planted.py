"""Faults that are there on purpose, to see that each is found; played only when named (tests/test_stress.py)."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

from stress.actors import Actor, Board
from stress.rounds import Round, Scenario

_kept = []


def well(game: Round) -> None:
    """Nothing is wrong."""


def wrong(game: Round) -> None:
    """Something was noticed."""
    game.fault(f"frame {game.number} is torn", "the details")


def raises(game: Round) -> None:
    """An exception that nobody expects."""
    raise KeyError(game.number)


def dies(game: Round) -> None:
    """As by a wrong pointer."""
    if game.number:
        os.kill(os.getpid(), signal.SIGSEGV)


def hangs(game: Round) -> None:
    """For ever."""
    time.sleep(1000)


def leaks(game: Round) -> None:
    """A descriptor, a thread and a file."""
    _kept.append(socket.socket())
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    Path(f"/dev/shm/cuframes-{game.key}").touch()


def sleeper(board: Board) -> None:
    """Pays no heed."""
    time.sleep(1000)


def dead(board: Board) -> None:
    """Is killed by a signal."""
    os.kill(os.getpid(), signal.SIGBUS)


def actors(game: Round) -> None:
    """Processes that are started by one."""
    for role in (sleeper, dead):
        Actor(game, role).end()


SCENARIOS = tuple(
    Scenario(f"planted-{function.__name__}", function.__doc__ or "", function, deadline=deadline)
    for function, deadline in ((well, 9), (wrong, 9), (raises, 9), (dies, 9), (hangs, 1), (leaks, 30), (actors, 30))
)
