"""The suite does not depend on who started it."""

import signal
import subprocess
import sys
from pathlib import Path

SHOW = """
import dispositions, os, signal, subprocess, sys
dispositions.reset()
ignored = "[signal.getsignal(n) == signal.SIG_IGN for n in (1, 2, 3, 15)]"
code = f"import signal; print({ignored}, signal.pthread_sigmask(0, ()))"
subprocess.run([sys.executable, "-c", code], check=True)
subprocess.run(["grep", "SigIgn", "/proc/self/status"], check=True)
"""


def test_inherited_signals_are_given_back():
    """As under nohup, in a background job and beneath supervisors that block SIGTERM."""

    def inherit():
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1))

    environment = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], preexec_fn=inherit, restore_signals=False, capture_output=True, text=True,
        timeout=60, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    python, program = done.stdout.splitlines()
    assert python == "[False, False, False, False] set()"
    ignored = int(program.split()[1], 16)
    assert not ignored & sum(1 << number - 1 for number in (1, 2, 3, 13, 15))
