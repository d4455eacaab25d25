"""The stress program finds what it is made for: faults that were planted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def stress(*arguments):
    """Its exit status, and what it has printed."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-m", "stress", *arguments], capture_output=True, text=True, timeout=110, env=environment
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("wrong", ["frame N is torn"]),
        ("raises", ["KeyError in planted.py:raises: N"]),
        ("dies", ["died by SIGSEGV"]),
        ("hangs", ["hung for N s"]),
        ("leaks", ["descriptors left: socket:[N]", "threads left", "files left: /dev/shm/cuframes-KEY"]),
        ("actors", ["sleeper did not end", "dead died by SIGBUS"]),
    ],
)
def test_a_planted_fault_is_found(name, kinds):
    status, said = stress("0", "--only", f"planted-{name}", "--seed", "5", "--round", "1")
    assert status == 1, said
    for kind in kinds:
        kind = kind.replace("hung for N", "hung for 1")
        assert re.search(rf"^planted-{name}, \d+ x: {re.escape(kind)}", said, re.M), said
    assert f'make stress ARGS="0.2 --only planted-{name} --seed 5 --round 1"' in said


def test_where_nothing_is_wrong_nothing_is_found():
    status, said = stress("0.01", "--only", "planted-well")
    assert status == 0, said
    rounds, faults = re.search(r"\| planted-well \|.*\| (\d+) \| (\d+) \|", said).groups()
    assert int(rounds) > 0
    assert faults == "0"
    assert "seed" in said
