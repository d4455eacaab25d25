"""How a publisher begins and ends: every step of its start failing, its thread failing, closing from anywhere."""

import _socket
import contextlib
import errno
import gc
import logging
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from harness import descriptors, eventually, patch_sockets

import cuframes
import cuframes.publisher
from cuframes import PacketPublisher, Publisher, Subscriber
from cuframes.session.server import Server

SHM = Path("/dev/shm")


def run(script, *arguments, timeout=60):
    """Run Python code in a process of its own: its standard output and error."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


class Saboteur:
    """Lets the first `good` calls of what a start is made of through, and fails the next."""

    CALLS = (
        (
            os,
            "open",
            "dup",
            "eventfd",
            "memfd_create",
            "posix_fallocate",
            "fchmod",
            "pread",
            "pwrite",
            "lstat",
            "fstat",
        ),
        (os, "mkdir", "unlink", "chmod", "chown", "fchown", "stat", "close"),
        (cuframes.host.files.fcntl, "fcntl"),
        (cuframes.host.segment, "Mapping"),
        (cuframes.publisher, "FrameWriter", "Welcome", "FrameLayout"),
        (cuframes.packets, "PacketWriter"),
        (cuframes.host.keylock, "Descriptor"),
        (cuframes.host.segment, "Descriptor"),
        (cuframes.host.files, "Descriptor"),
        (cuframes.host.lifetime, "open_socket"),
        (cuframes.session.server.selectors.EpollSelector, "__init__", "register"),
        (threading.Thread, "start"),
        (cuframes.host.lifetime, "register"),
    )
    # What gives back must work for anything to be given back.
    SPARED = ("close", "unlink")

    def __init__(self, patch, problem):
        self.good = 0
        self.calls = 0
        self.failed = None
        self._problem = problem
        self._thread = threading.get_ident()
        patch_sockets(patch, **{name: self._wrap(name, getattr(_socket.socket, name)) for name in ("bind", "listen")})
        for place, *names in self.CALLS:
            for name in names:
                if name not in self.SPARED:
                    patch.setattr(place, name, self._wrapped(name, getattr(place, name)))

    def _wrapped(self, name, real):
        if name == "Descriptor":
            names = ("open", "dup", "memfd", "eventfd")
            return SimpleNamespace(**{name: self._wrap(name, getattr(real, name)) for name in names})
        return self._wrap(name, real)

    def _wrap(self, name, real):
        def call(*arguments, **keywords):
            if self.active and threading.get_ident() == self._thread:
                self.calls += 1
                if self.calls == self.good + 1:
                    self.failed = name
                    raise type(self._problem)(
                        *self._problem.args
                    )  # a new one, since it keeps the frames that it has seen
            return real(*arguments, **keywords)

        return call

    active = False


@pytest.mark.parametrize("problem", [OSError(errno.EMFILE, "no more"), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["frames", "packets"])
def test_a_start_that_fails_at_any_step_leaves_nothing(key, runtime_dir, monkeypatch, kind, problem):
    def start():
        if kind == "frames":
            return Publisher(key, 64, 48, "gray8", group=os.getgid())
        return PacketPublisher(key, 27, group=os.getgid())

    start().close()  # what is made once and kept: caches, imports
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    failed = []
    with pytest.MonkeyPatch.context() as patch:
        saboteur = Saboteur(patch, problem)
        for saboteur.good in range(200):
            saboteur.calls, saboteur.failed, saboteur.active = 0, None, True
            try:
                publisher = start()
            except BaseException:  # not always the problem itself: "no directory for sockets", say
                publisher = None
            saboteur.active = False
            if publisher is not None:
                publisher.close()
            if saboteur.failed is None:
                break
            failed.append(saboteur.failed)
            gc.collect()
            eventually(lambda: threading.active_count() == threads)
            where = (failed, saboteur.good)
            assert descriptors() == before, where
            assert not list(runtime_dir.iterdir()), where
            assert not list(SHM.glob(f"cuframes-{key}*")), where
    assert len(failed) > (20 if kind == "packets" else 40)
    start().close()


def test_a_start_that_cannot_listen_leaks_no_descriptor(key, runtime_dir):
    (runtime_dir / f"{key}.sock").write_text("not a socket")
    before = descriptors()
    for _ in range(3):
        with pytest.raises(FileExistsError):
            Publisher(key, 64, 48, "gray8")
    assert descriptors() == before


@pytest.mark.parametrize("version", ["0.2.0rc1", "1.2", "0.2.0.dev3+g12ab", "2!1.0"])
def test_any_version_will_do(key, monkeypatch, version):
    monkeypatch.setattr(cuframes.publisher, "__version__", version)
    with Publisher(key, 64, 48, "gray8"):
        pass


def test_collected_on_its_own_session_thread(key):
    out, error = run(
        """
        import gc, logging, os, sys, threading, time
        import cuframes
        gc.disable()
        class Collect(logging.Handler):
            def emit(self, record):
                if "joined" in record.getMessage():
                    gc.collect()
        log = logging.getLogger("cuframes")
        log.addHandler(Collect()); log.setLevel(logging.INFO)
        publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
        cycle = [publisher]; cycle.append(cycle)
        before = len(os.listdir("/proc/self/fd"))
        del publisher, cycle
        try:
            cuframes.Subscriber(sys.argv[1], connect_timeout=0).close()
        except cuframes.CuframesError:
            pass
        end = time.monotonic() + 20
        while threading.active_count() > 1 and time.monotonic() < end:
            time.sleep(0.01)
        print(threading.active_count(), os.path.exists(f"/dev/shm/cuframes-{sys.argv[1]}"))
        cuframes.Publisher(sys.argv[1], 64, 48, "gray8").close()
        print(len(os.listdir("/proc/self/fd")) < before)
        """,
        key,
    )
    assert error == ""
    assert out.split() == ["1", "False", "True"]


def test_one_failing_step_of_a_close_does_not_keep_the_others(key, runtime_dir, monkeypatch):
    monkeypatch.setattr(Server, "close", lambda self: 1 / 0)
    publisher = Publisher(key, 64, 48, "gray8")
    server, before = publisher._server, descriptors()
    with pytest.raises(ZeroDivisionError):
        publisher.close()
    assert not (SHM / f"cuframes-{key}").exists()
    assert not (runtime_dir / f"{key}.lock").exists()
    assert descriptors() < before
    monkeypatch.undo()
    server.close()


def quiet_threads():
    # Python lists a thread whose start was interrupted for ever, though it never ran.
    return [t for t in threading.enumerate() if t.name.startswith("cuframes:") and t.is_alive()]


def test_close_against_every_other_call(key):
    """From other threads: each call works, or says that it is closed; nothing else is raised, and nothing is left."""
    before, problems = descriptors(), []
    pixels = bytes(64 * 48)

    def attempt(call, stop):
        while not stop.is_set():
            try:
                call()
            except (ValueError, cuframes.AlreadyExists, cuframes.NoPacketRing) as problem:
                if isinstance(problem, ValueError) and "closed" not in str(problem):
                    problems.append(repr(problem))
            except BaseException as problem:
                problems.append(repr(problem))

    for _ in range(8):
        publisher, stop = Publisher(key, 64, 48, "gray8"), threading.Event()
        calls = [
            lambda p=publisher: p.publish(pixels),
            lambda p=publisher: (p.stats(), p.subscribers, repr(p)),
            lambda p=publisher: p.enable_packets(27),
            lambda p=publisher: p.publish_packet(b"x", pts_ns=None),
        ]
        threads = [threading.Thread(target=attempt, args=(call, stop)) for call in calls]
        closers = [threading.Thread(target=publisher.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        for thread in closers:
            thread.start()
        for thread in closers:
            thread.join(20)
            assert not thread.is_alive()
        assert not (SHM / f"cuframes-{key}").exists()
        stop.set()
        for thread in threads:
            thread.join(20)
        assert publisher.stats().published >= 0
        del publisher, calls, threads, closers
    assert not problems
    gc.collect()
    assert descriptors() == before
    assert not quiet_threads()


def test_close_in_a_signal_handler(key):
    publisher = Publisher(key, 640, 480, "gray8")
    pixels = bytes(640 * 480)
    before = signal.signal(signal.SIGALRM, lambda *_: publisher.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(ValueError, match="closed"):
            while True:
                publisher.publish(pixels)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (SHM / f"cuframes-{key}").exists()


def test_close_while_a_log_handler_holds_the_session_thread_up(key):
    """A handler's lock is held by whoever closes, and wanted by the session thread."""
    handler, entered = logging.Handler(), threading.Event()
    handler.filter = lambda record: entered.set() or True
    handler.emit = lambda record: None
    log = logging.getLogger("cuframes")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def join():
        with contextlib.suppress(cuframes.CuframesError):
            Subscriber(key, connect_timeout=0).close()

    try:
        publisher = Publisher(key, 64, 48, "gray8")
        with handler.lock:
            joining = threading.Thread(target=join)
            joining.start()
            assert entered.wait(20)
            publisher.close()
        joining.join(20)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    eventually(lambda: not quiet_threads())
    Publisher(key, 64, 48, "gray8").close()


@pytest.mark.parametrize("kind", ["Publisher(sys.argv[1], 64, 48, 'gray8')", "PacketPublisher(sys.argv[1], 27)"])
def test_close_in_a_child_that_c_code_has_forked(key, kind):
    """No Python hook runs in it; still nothing of the parent's is touched."""
    out, error = run(
        f"""
        import ctypes, os, sys
        import cuframes
        publisher = cuframes.{kind}
        if ctypes.PyDLL(None).fork() == 0:
            publisher.close()
            publisher.close()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        places = os.environ["CUFRAMES_RUNTIME_DIR"], "/dev/shm"
        print(sum(sys.argv[1] in name for place in places for name in os.listdir(place)))
        publisher.close()
        """,
        key,
    )
    assert error == ""
    assert out.split() == ["0", "3" if kind.startswith("Publisher") else "2"]


class TestSessionThread:
    """It fails closed."""

    def test_a_connection_that_cannot_be_served_does_not_touch_the_others(self, key, runtime_dir, monkeypatch):
        with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher, Subscriber(key) as subscriber:
            publisher.publish(bytes([1]) * (64 * 48))
            held = subscriber.next(5)

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")  # of max_user_watches

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(publisher._server._selector, "register", full)
                with pytest.raises(cuframes.CuframesError):
                    Subscriber(key, connect_timeout=0)
            for _ in range(8):
                publisher.publish(bytes([7]) * (64 * 48))
            assert numpy.asarray(held).max() == 1
            assert len(publisher.subscribers) == 1
            held.release()
            Subscriber(key, connect_timeout=5).close()

    def test_any_other_failure_ends_the_publisher_for_everybody(self, key, monkeypatch):
        publisher = Publisher(key, 64, 48, "gray8", ring_size=4)
        with Subscriber(key, mode="ordered") as subscriber:
            publisher.publish(bytes([1]) * (64 * 48))
            publisher.publish(bytes([2]) * (64 * 48))
            held = subscriber.next(5)
            monkeypatch.setattr(Server, "_end_slow_handshakes", lambda self: 1 / 0)
            eventually(lambda: not publisher._server._thread.is_alive())
            with pytest.raises(cuframes.CuframesError, match="has failed and shares nothing any more"):
                for _ in range(8):
                    publisher.publish(bytes([7]) * (64 * 48))
            assert numpy.asarray(held).max() == 1
            assert subscriber.next(5).seq == 2
            with pytest.raises(cuframes.Disconnected):
                subscriber.next(5)
        before = descriptors()
        publisher.close()
        assert descriptors() < before
        monkeypatch.undo()
        Publisher(key, 64, 48, "gray8").close()

    def test_an_event_made_blocking_and_full_does_not_stop_the_writer(self, key):
        with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
            fd = subscriber.fileno() and next(peer.event_fd for peer in publisher._server._peers if peer.event_fd >= 0)
            os.set_blocking(fd, True)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(fd, 2**64 - 2)
            done = threading.Event()

            def publish():
                publisher.publish(bytes(64 * 48))
                done.set()

            threading.Thread(target=publish, daemon=True).start()
            assert done.wait(20)
            eventually(lambda: not publisher.subscribers)

    def test_who_was_killed_asleep_is_not_woken_for_ever(self, key):
        with Publisher(key, 64, 48, "gray8") as publisher:
            script = "import cuframes, sys; cuframes.Subscriber(sys.argv[1]).next(60)"
            child = subprocess.Popen([sys.executable, "-c", script, key])
            with open(SHM / f"cuframes-{key}", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as raw:

                def waiters():
                    return int.from_bytes(raw[216:220], "little")

                eventually(waiters, 30)
                for _ in range(1000):  # asleep, not between two sleeps
                    child.send_signal(signal.SIGSTOP)
                    if waiters():
                        break
                    child.send_signal(signal.SIGCONT)
                child.kill()
                child.wait()
                eventually(lambda: not publisher.subscribers)
                assert waiters() == 0
