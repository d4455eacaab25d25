"""Real processes with deadlines, for tests."""

import _socket
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cuframes.host import lifetime

WORKERS = Path(__file__).parent / "workers"
PROGRAMS = Path(__file__).parent / "c"


class Worker:
    """A script of tests/workers, or a program, in a process of its own. It prints JSON lines; the first says that it is
    ready.
    """

    def __init__(self, script, *arguments, wait_ready=True):
        program = [script] if isinstance(script, Path) else [sys.executable, "-W", "error", str(WORKERS / script)]
        command = [*program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if wait_ready:
            assert self.read() == "ready"

    def read(self):
        line = self.process.stdout.readline()
        assert line, f"the worker ended with status {self.process.wait()}"
        return json.loads(line)

    def tell(self, word=""):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def signal(self, number):
        """Send a signal; a process that is to stop has stopped when this returns."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            eventually(lambda: has_stopped(self.process.pid))

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def result(self, timeout=60):
        """Its last line, once it has ended well."""
        watchdog = threading.Timer(timeout, self.process.kill)
        watchdog.start()
        try:
            # Not communicate(): readline() may hold lines that it would not see.
            lines = self.process.stdout.read().splitlines()
            assert self.process.wait() == 0
        finally:
            watchdog.cancel()
        return json.loads(lines[-1])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        if not self.process.stdout.closed:
            self.process.communicate()


def eventually(condition, timeout=10.0):
    """Wait for something that another process or thread is about to bring about."""
    end, looks = time.monotonic() + timeout, 0
    while not (value := condition()):
        looks += 1  # a whole machine may stand still for seconds, and then those others have had no time either
        assert time.monotonic() < end or looks < 50, "it did not happen in time"
        time.sleep(0.002)
    return value


def has_stopped(pid):
    """Whether all threads of a process have. On a busy machine the last one runs on for a while after the signal."""
    states = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            states.append(task.read_text().rpartition(")")[2].split()[0])
    return bool(states) and all(state in "TtZX" for state in states)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def descriptors_and_targets():
    """This process's descriptors, each with what it refers to."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of listdir
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return found


def no_more_descriptors_than(before, where):
    """Wait until this process has as many descriptors as in ``descriptors_and_targets()`` before; other threads close
    some. The error says `where`, and what the others refer to.
    """
    with contextlib.suppress(AssertionError):
        eventually(lambda: gc.collect() >= 0 and len(descriptors_and_targets()) <= len(before))
    left = descriptors_and_targets()
    new = {number: target for number, target in left.items() if before.get(number) != target}
    assert len(left) == len(before), (where, new, set(before) - set(left), threading.enumerate())


def patch_sockets(patch, **methods):
    """Give the sockets that the library makes from now on these methods."""
    make, kind = lifetime.open_socket, type("Socket", (_socket.socket,), methods)

    def open_socket():
        return kind(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, make().detach())

    patch.setattr(lifetime, "open_socket", open_socket)


def python_path(directory):
    """An environment in which modules of `directory` come before all others."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(directory), *([before] if before else [])])}


def in_namespace(script, shm_bytes):
    """Run Python with a /dev/shm of its own size, or skip the test where the kernel does not let us."""
    code = textwrap.dedent(script)
    mount = f"mount -t tmpfs -o size={shm_bytes} tmpfs /dev/shm && exec {sys.executable} -c '{code}'"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
    probe = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True
    )
    if probe.returncode:
        pytest.skip("mount namespaces are not available here")
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def compile_program(name, folder, *options):
    """A program of tests/c, compiled; its path."""
    out = folder / name
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([*command, str(PROGRAMS / f"{name}.c"), "-pthread", "-o", str(out)], check=True, timeout=120)
    return out


class Service:
    """``cuframes framecache serve`` on a free port, in a process of its own."""

    def __init__(self, *options, port=0, **environment):
        command = [sys.executable, "-W", "error", "-m", "cuframes", "framecache", "serve", "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, *map(str, options)], stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.log = []
        while not self.log or self.log[-1].get("event") != "listening":
            line = self.process.stderr.readline()
            assert line, f"the service ended with status {self.process.wait()}: {self.log}"
            self.log.append(json.loads(line))
        self.port = self.log[-1]["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self._drain = threading.Thread(target=self._read, daemon=True)
        self._drain.start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def events(self, name):
        return [entry for entry in self.log if entry["event"] == name]

    def stop(self, number=signal.SIGTERM, timeout=20):
        """Its exit status after a signal."""
        self.process.send_signal(number)
        status = self.process.wait(timeout)
        self._drain.join(timeout)
        self.process.stderr.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
