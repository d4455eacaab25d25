"""What the benchmarks share: their conditions, medians, and small C programs as floors."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy

import cuframes

HERE = Path(__file__).parent


def conditions(*packages: str, **more: Any) -> dict[str, Any]:
    """What the machine and the software were; printed with every figure."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cuframes": cuframes.__version__,
    }
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | more


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def percentiles(values_ns: Any, what: str = "") -> dict[str, Any]:
    """p50 and p99 of nanoseconds, in microseconds; of `what`, where there are several."""
    p50, p99 = numpy.percentile(values_ns, [50, 99]) / 1000
    if what:
        return {f"{what}_p50_us": round(float(p50), 2), f"{what}_p99_us": round(float(p99), 2)}
    return {"p50_us": round(float(p50), 2), "p99_us": round(float(p99), 2), "n": len(values_ns)}


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over several rounds."""
    return {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}


def alternate(rounds: int, **cases: Callable[[], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run the cases in turn, several times over, so that a noisy moment hits all of them; medians of each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(case())
    return {name: middle(results) for name, results in found.items()}


class Floor:
    """A C program of this directory, compiled once; calling it gives the JSON that it prints."""

    def __init__(self, name: str, *flags: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / name
        command = [
            "gcc",
            "-O3",
            "-std=gnu11",
            f"-I{cuframes.get_include()}",
            str(HERE / f"{name}.c"),
            "-o",
            str(self._program),
            *flags,
        ]
        subprocess.run(command, check=True)

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        done = subprocess.run([self._program, *map(str, arguments)], capture_output=True, check=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result


class Child:
    """A Python program in a process of its own, which prints one line of JSON when it is ready and one at its end."""

    def __init__(self, program: str, *arguments: Any) -> None:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError(f"the benchmark's child process ended with status {self.process.wait()}")

    def result(self) -> Any:
        """What it prints at its end."""
        return json.loads(self.process.communicate(timeout=120)[0])
