"""Rounds of a scenario, in a process that may hang or die without taking the others along.

A scenario is a function of one :class:`Round`. Each round has random numbers of its own, made of the seed, the scenario
and the round's number, so that one round can be run again. A child process plays rounds until its time is over; the
parent reads its report, kills it when a round takes too long, and starts another one behind that round.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import cuframes

__all__ = ["Fault", "Outcome", "Round", "Scenario", "Skip", "die_with_parent", "eventually", "play", "watch"]

SHM = Path("/dev/shm")
PATIENCE = 10.0  # seconds for what somebody else is about to do, on a machine that has other things to do


class Scenario(NamedTuple):
    """One kind of trouble.

    ``share`` is its part of the time, ``deadline`` the seconds after which a round hangs. ``asan``: run it on extension
    modules built with the address sanitizer.
    """

    name: str
    text: str
    function: Callable[["Round"], None]
    share: float = 1.0
    deadline: float = 60.0
    asan: bool = False


class Fault(NamedTuple):
    """What should not have been. ``kind`` is the same for faults of one cause; ``round`` is where it was seen."""

    kind: str
    detail: str
    round: int


class Outcome(NamedTuple):
    """What became of a scenario. ``skipped`` says why it could not run."""

    rounds: int
    faults: list[Fault]
    skipped: str = ""


class Skip(Exception):
    """This scenario cannot run here; the reason."""


class Round:
    """One round: random numbers, a key of its own, and somewhere to say what went wrong."""

    def __init__(self, scenario: Scenario, seed: int, number: int, folder: Path, report: Callable[..., None]) -> None:
        self.number = number
        self.random = random.Random(f"{seed} {scenario.name} {number}")
        self.key = f"s{os.getpid()}-{number}"
        self.folder = folder  # of the whole run: compiled programs
        self._report = report

    def fault(self, kind: str, detail: str = "") -> None:
        """Something is wrong. The round goes on."""
        self._report(fault=_same(kind), detail=detail, round=self.number)

    def give_up(self, kind: str, detail: str = "") -> NoReturn:
        """Something is so wrong that this process is good for nothing any more."""
        self.fault(kind, detail)
        self._report(end=self.number)
        os._exit(0)


def eventually(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """What `condition` gives once that is true, or after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return value


def die_with_parent() -> None:
    """Be killed when the process that started us ends, however it does."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


# ---- the child


def play(scenario: Scenario, seed: int, first: int, seconds: float, folder: Path, report_fd: int, again: bool) -> None:
    """Play rounds from number `first` on (or that one `again` and again), for `seconds`; at least one."""

    def report(**line: Any) -> None:
        os.write(report_fd, (json.dumps(line) + "\n").encode())

    faulthandler.enable()
    die_with_parent()
    assert not scenario.asan or "/asan/" in cuframes.__file__, f"{cuframes.__file__} is not under the sanitizer"
    end, number = time.monotonic() + seconds, first
    while True:
        game = Round(scenario, seed, number, folder, report)
        report(begin=number)
        faulthandler.dump_traceback_later(scenario.deadline, exit=True)
        before = _what_we_have()
        try:
            scenario.function(game)
            _check_left(game, before)
        except Skip as reason:
            report(skip=str(reason))
            return
        except Exception as problem:
            where = traceback.extract_tb(problem.__traceback__)[-1]
            kind = f"{type(problem).__name__} in {Path(where.filename).name}:{where.name}: {problem}"
            game.fault(kind, traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        report(end=number)
        if time.monotonic() >= end:
            return
        number += not again


def _what_we_have() -> tuple[dict[str, str], int]:
    """Our descriptors and what they are; how many threads we have."""
    gc.collect()
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found, threading.active_count()


def _check_left(game: Round, before: tuple[dict[str, str], int]) -> None:
    """After a round nothing of it may be left: descriptors, threads, files in shared memory, sockets."""

    def more() -> tuple[list[str], list[str]]:
        now, threads = _what_we_have()
        left = [what for fd, what in now.items() if before[0].get(fd) != what]
        names = [thread.name for thread in threading.enumerate()] if threads > before[1] else []
        return left, names

    eventually(lambda: not any(more()))
    left, names = more()
    if left:
        game.fault(f"descriptors left: {', '.join(sorted({_same(what) for what in left}))}", "\n".join(left))
    if names:
        game.fault("threads left", "\n".join(names))
    if files := _files(game.key):
        game.fault(f"files left: {', '.join(sorted({_same(str(path)) for path in files}))}")
    _remove(files)


def _files(key: str) -> list[Path]:
    """The files with `key` in their names."""
    places = [SHM, Path(os.environ["CUFRAMES_RUNTIME_DIR"]), Path(os.environ["CUFRAMES_FRAMECACHE_DIR"])]
    return [path for place in places if place.exists() for path in place.iterdir() if key in path.name]


def _remove(files: list[Path]) -> None:
    for path in files:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _same(text: str) -> str:
    """The same words for the same cause: without keys, pids and other numbers."""
    text = re.sub(r"s\d+-\d+", "KEY", text)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:300]


# ---- the parent


def watch(scenario: Scenario, seed: int, first: int, seconds: float, folder: Path, again: bool) -> Outcome:
    """Have a scenario played, for `seconds`."""
    faults: list[Fault] = []
    rounds, number, end = 0, first, time.monotonic() + seconds
    while True:
        arguments = [seed, number, max(0.0, end - time.monotonic()), folder, int(again)]
        with tempfile.TemporaryFile("w+") as noise:
            lines, status = _one_child(scenario, arguments, noise, scenario.deadline + 2 * PATIENCE)
            noise.seek(0)
            said = noise.read()[-6000:]
        begun = False
        for line in lines:
            if "skip" in line:
                return Outcome(rounds, faults, line["skip"])
            if "fault" in line:
                faults.append(Fault(line["fault"], line["detail"], line["round"]))
            if "begin" in line:
                number, begun = line["begin"], True
            if "end" in line:
                rounds, begun = rounds + 1, False
        if begun or status not in (0, None):
            rounds += 1
            if status is not None and status < 0 and "Timeout (" not in said:
                kind = f"died by {signal.Signals(-status).name}"
            else:
                kind = f"hung for {scenario.deadline:.0f} s" if begun else f"ended with status {status}"
            faults.append(Fault(kind + _where(said), said, number))
        if time.monotonic() >= end:
            return Outcome(rounds, faults)
        number += not again


def _one_child(scenario: Scenario, arguments: list[Any], noise: Any, timeout: float) -> tuple[list[Any], int | None]:
    """Run a child to its end; what it reported, and its status: None if it had to be killed."""
    reading, writing = os.pipe()
    options = ["--child", scenario.name, str(writing), *map(str, arguments)]
    environment = os.environ | (asan_environment(arguments[3]) if scenario.asan else {})
    child = subprocess.Popen(
        [sys.executable, "-m", "stress", *options],
        pass_fds=(writing,),
        stdin=subprocess.DEVNULL,
        stdout=noise,
        stderr=noise,
        env=environment,
        start_new_session=True,  # so that whatever it leaves behind can be ended with it
    )
    os.close(writing)
    report, killed = b"", False
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], timeout)[0]:
            chunk = pipe.read(65536)
            if not chunk:
                break
            report += chunk
        else:
            killed = True
    if not killed:
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            killed = True
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # a group of our own making
    status = child.wait()
    _remove(_files(f"s{child.pid}-"))  # it could not clear up if it was killed or gave up
    lines = [json.loads(line) for line in report.splitlines() if line.endswith(b"}")]
    return lines, None if killed else status


def _where(said: str) -> str:
    """The innermost line of our own in the dump of a thread, to tell one hang from another."""
    dump = said[max(said.rfind("Timeout ("), said.rfind("Fatal Python error")) :] if "File" in said else ""
    places = re.findall(r'File "([^"]*/cuframes/[^"]*)", line (\d+) in (\w+)', dump)
    asan = re.search(r"AddressSanitizer: ([\w-]+)", said)
    reason = f" ({asan.group(1)})" if asan else ""
    return f"{reason} in {Path(places[0][0]).name}:{places[0][2]}" if places else reason


def asan_environment(folder: Path) -> dict[str, str]:
    """For a Python that loads extension modules built with the address sanitizer."""
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        "LD_PRELOAD": library.stdout.strip(),
        # Python itself leaks on exit by design; faulthandler and the sanitizer cannot both have SIGSEGV.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",  # so that the sanitizer sees every object
        "PYTHONPATH": os.pathsep.join([str(Path(folder) / "asan"), os.environ["PYTHONPATH"]]),
    }
