"""What others put beside a publisher's files, other users, containers, and cleaners."""

import _socket
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from harness import Worker, eventually, patch_sockets

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes._native import messages
from cuframes.framecache import SlotReader, SlotWriter, remove_slot
from cuframes.host import lifetime
from cuframes.host import names as cuframes_names
from cuframes.host.files import lock
from cuframes.host.keylock import KeyLock, cleaning
from cuframes.host.segment import reserve
from cuframes.session import client, server, wire
from cuframes.session.listing import collect_garbage, find_packet_ring, find_publisher, list_publishers

SHM = Path("/dev/shm")
STRANGER = 65534

as_root = pytest.mark.skipif(os.getuid() != 0, reason="other users' files need root")


def run(script, *arguments, timeout=60, **environment):
    """Run Python code in a process of its own; its output. A hang or a signal is a failure."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | environment)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@contextlib.contextmanager
def container(script, *arguments):
    """Run Python code with a /dev/shm of its own, or skip the test where the kernel does not let us."""
    unshare = ["unshare", *([] if os.getuid() == 0 else ["--map-root-user"]), "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not available here")
    shell = 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"'
    command = [*unshare, "sh", "-c", shell, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def open_to_all():
    """A directory that other users can get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


class TestForeignFiles:
    """Anybody may put anything into /dev/shm. Nobody is stopped, held up or killed by it."""

    @pytest.mark.parametrize("kind", ["fifo", "link", "loop", "socket", "directory", "nothing", "absurd"])
    def test_under_our_prefix(self, key, runtime_dir, kind):
        path = SHM / f"cuframes-{key}"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind in ("link", "loop"):
            path.symlink_to("/etc/passwd" if kind == "link" else path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        elif kind == "directory":
            path.mkdir()
        elif kind == "absurd":
            path.write_bytes(b"\xff" * 9000)
            os.truncate(path, 1 << 40)
        try:
            out = run(
                """
                import sys
                import cuframes
                from cuframes.session.listing import collect_garbage, find_packet_ring, find_publisher
                key = sys.argv[1]
                print([info.key for info in cuframes.list_publishers() if info.key == key], end=" ")
                print([path for path in collect_garbage() if key in str(path)], end=" ")
                print(find_packet_ring(key), end=" ")
                for attempt in (lambda: find_publisher(key), lambda: cuframes.Publisher(key, 64, 48, "gray8").close()):
                    try:
                        attempt()
                        print("worked", end=" ")
                    except cuframes.CuframesError as problem:
                        print(type(problem).__name__, end=" ")
                """,
                key,
            )
            expected = "NotFound worked" if kind == "nothing" else "ProtocolError ProtocolError"
            assert out.strip() == f"[] [] None {expected}"
            assert kind == "nothing" or os.path.lexists(path)
            assert not list(runtime_dir.iterdir())
        finally:
            if kind == "directory":
                path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def test_a_file_that_is_cut_off_while_it_is_looked_at(self, key):
        script = """
        import os, struct, sys
        fd = os.open(f"/dev/shm/cuframes-{sys.argv[1]}", os.O_RDWR | os.O_CREAT)
        header = struct.pack("<II", 0xCC7C1DCC, 3).ljust(8448, b"\\0")
        packets = struct.pack("<IIII", 0xCC7C1DCD, 2, 64, 4096).ljust(16384, b"\\0")
        print("ready", flush=True)
        while True:
            for raw in (header, packets):
                os.pwrite(fd, raw, 0)
                os.ftruncate(fd, 0)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), key]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as stranger:
            try:
                stranger.stdout.readline()
                run(
                    """
                    import sys, time
                    import cuframes
                    from cuframes.session.listing import find_packet_ring, find_publisher
                    end = time.monotonic() + 3
                    while time.monotonic() < end:
                        cuframes.list_publishers()
                        find_packet_ring(sys.argv[1])
                        try:
                            find_publisher(sys.argv[1])
                        except cuframes.CuframesError:
                            pass
                    """,
                    key,
                )
            finally:
                stranger.kill()
        (SHM / f"cuframes-{key}").unlink()

    @pytest.mark.parametrize("suffix", [".lock", ".sock"])
    @pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
    def test_in_the_runtime_directory(self, key, runtime_dir, suffix, kind):
        path = runtime_dir / f"{key}{suffix}"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(runtime_dir / "elsewhere")
        else:
            path.mkdir()
        run(
            """
            import sys
            import cuframes
            from cuframes.session.listing import collect_garbage
            collect_garbage()
            cuframes.list_publishers()
            try:
                cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
            except (cuframes.ProtocolError, FileExistsError):
                sys.exit(0)
            sys.exit(1)
            """,
            key,
        )
        assert os.path.lexists(path)
        assert not (runtime_dir / "elsewhere").exists()

    def test_one_that_cannot_be_removed_does_not_stop_gc(self, key, monkeypatch):
        with Worker("producer.py", key) as worker:
            worker.kill()
        other = SHM / f"cuframes-{key}-a"  # comes first
        other.touch()

        def refuse(path, *arguments, **keywords):
            if Path(path) == other:
                raise PermissionError(errno.EPERM, "sticky")
            return real(path, *arguments, **keywords)

        real = os.unlink
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            removed = collect_garbage()
        assert SHM / f"cuframes-{key}" in removed
        assert other not in removed
        other.unlink()

    def test_names_that_are_no_keys_are_passed_over(self, key, runtime_dir):
        for name in (f"{key}\n\x1b[31m", "x" * 100, f"{key}.é"):
            (SHM / f"cuframes-{name}").touch()
        try:
            assert not [path for path in collect_garbage() if key in path.name]
            assert not [info for info in list_publishers() if key in info.key]
        finally:
            for name in (f"{key}\n\x1b[31m", "x" * 100, f"{key}.é"):
                (SHM / f"cuframes-{name}").unlink()

    def test_what_a_segment_says_is_printed_as_text(self, key):
        with Publisher(key, 64, 48, "gray8"), Subscriber(key, name="seen"):
            with open(SHM / f"cuframes-{key}", "r+b") as file:
                raw = file.read()
                file.seek(raw.index(b"seen\0"))
                file.write(b"[/red]\x1b[2J\n\0")
            done = subprocess.run(
                [sys.executable, "-m", "cuframes", "info", key], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0
            assert "[/red]\ufffd[2J\ufffd" in done.stdout


class TestDirectories:
    """Who owns the place where sockets are."""

    def test_one_that_cuframes_did_not_make_is_left_as_it_is(self, key, runtime_dir, caplog):
        runtime_dir.chmod(0o700)
        before = runtime_dir.stat()
        with Publisher(key, 64, 48, "gray8", group=os.getgid() + 1 if os.getuid() == 0 else os.getgid()):
            after = runtime_dir.stat()
        assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)
        if os.getuid() == 0:
            assert "chmod o+x" in caplog.text

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    def test_what_is_made_has_the_promised_mode(self, key, tmp_path, monkeypatch, umask):
        directory = tmp_path / "made"
        monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(directory))
        before = os.umask(umask)
        try:
            with Publisher(key, 64, 48, "gray8") as publisher:
                publisher.enable_packets(27)
                modes = {stat.S_IMODE(path.stat().st_mode) for path in [*directory.iterdir(), *SHM.glob(f"*{key}*")]}
                assert modes == {0o600}
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            with Publisher(key, 64, 48, "gray8", group=os.getgid()) as publisher:
                publisher.enable_packets(27)
                assert stat.S_IMODE((directory / f"{key}.sock").stat().st_mode) == 0o660
                assert stat.S_IMODE((SHM / f"cuframes-{key}").stat().st_mode) == 0o660
                assert stat.S_IMODE((SHM / f"cuframes-{key}-packets").stat().st_mode) == 0o640
                assert stat.S_IMODE(directory.stat().st_mode) == 0o711
        finally:
            os.umask(before)

    def test_one_that_everybody_may_write_is_refused(self, key, runtime_dir):
        with Publisher(key, 64, 48, "gray8"):
            runtime_dir.chmod(0o777)
            with pytest.raises(PermissionError, match=r"world-writable.*chmod o-w or \+t"):
                Subscriber(key, connect_timeout=0)
        with pytest.raises(PermissionError, match="world-writable"):
            Publisher(key, 64, 48, "gray8")
        runtime_dir.chmod(0o1777)
        with Publisher(key, 64, 48, "gray8"), Subscriber(key):
            pass

    @as_root
    def test_a_strangers_link_is_not_followed(self, key, tmp_path, monkeypatch):
        (tmp_path / "there").mkdir()
        link = tmp_path / "link"
        link.symlink_to("there")
        monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(link))
        with Publisher(key, 64, 48, "gray8"), Subscriber(key):
            os.lchown(link, STRANGER, STRANGER)
            with pytest.raises(PermissionError, match=f"a link created by uid {STRANGER}"):
                Subscriber(key, connect_timeout=0)
        with pytest.raises(PermissionError, match=f"a link created by uid {STRANGER}"):
            Publisher(key, 64, 48, "gray8")

    @as_root
    def test_a_stranger_who_poses_as_a_publisher_is_refused(self, key, open_to_all, monkeypatch):
        open_to_all.chmod(0o1777)
        monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(open_to_all))
        script = """
        import os, socket, sys
        os.setgroups([]); os.setgid(65534); os.setuid(65534); os.umask(0)
        sock = socket.socket(socket.AF_UNIX); sock.bind(sys.argv[1]); sock.listen()
        print("ready", flush=True)
        sys.stdin.read()
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(open_to_all / f"{key}.sock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
            stranger.stdout.readline()
            with pytest.raises(PermissionError, match=f"uid {STRANGER} listens on"):
                Subscriber(key, connect_timeout=0)
            with pytest.raises(cuframes.NotFound):
                find_publisher(key)

    @as_root
    def test_two_groups_of_one_user_in_one_directory(self, key, open_to_all, monkeypatch):
        monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(open_to_all / "made"))
        script = """
        import os, sys
        from cuframes import Subscriber
        os.setgroups([int(sys.argv[2])]); os.setgid(65534); os.setuid(65534)
        try:
            Subscriber(sys.argv[1], connect_timeout=0).close()
            print("joined")
        except PermissionError:
            print("refused")
        """
        with Publisher(f"{key}-c", 64, 48, "gray8"), Publisher(f"{key}-a", 64, 48, "gray8", group=4711):
            assert run(script, f"{key}-a", 4711).strip() == "joined"
            with Publisher(f"{key}-b", 64, 48, "gray8", group=4712):
                assert run(script, f"{key}-b", 4712).strip() == "joined"
                assert run(script, f"{key}-a", 4711).strip() == "joined"
                assert run(script, f"{key}-b", 4711).strip() == "refused"
                assert run(script, f"{key}-c", 4711).strip() == "refused"

    @as_root
    def test_an_ordinary_user_where_root_has_published(self, key):
        """/run/cuframes is root's; for the user it is as if it were not there."""
        script = """
        import os, sys, threading, time
        import cuframes
        for name in ("CUFRAMES_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
            os.environ.pop(name, None)
        cuframes.Publisher("root", 64, 48, "gray8", memory="host").close()
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            cuframes.Subscriber("x", connect_timeout=0)
        except cuframes.NotFound:
            print("nobody")
        publishers = []
        def start():
            publishers.append(cuframes.Publisher("x", 64, 48, "gray8", memory="host"))
        threading.Timer(0.3, start).start()
        subscriber = cuframes.Subscriber("x", connect_timeout=30, reconnect=True)
        print("joined")
        while not publishers: time.sleep(0.01)
        publishers.pop().close()
        threading.Timer(0.3, start).start()
        while not publishers: time.sleep(0.01)
        threading.Timer(0.5, lambda: publishers[0].publish(bytes(64 * 48))).start()
        print(subscriber.next(30).seq)
        subscriber.close()
        publishers.pop().close()
        """
        hidden = [Path(place) for place in ("/run", "/dev/shm", "/tmp")]
        if any(place in Path(sys.executable).parents for place in hidden):
            pytest.skip(f"this Python is in a directory that the test hides: {sys.executable}")
        mount = " && ".join(f"mount -t tmpfs -o mode=1777 tmpfs {place}" for place in hidden)
        command = [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{mount} && exec "$0" -c "$1"',
            sys.executable,
            textwrap.dedent(script),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/")
        if "mount" in done.stderr:
            pytest.skip("mount namespaces are not available here")
        assert done.stdout.split() == ["nobody", "joined", "1"], done.stderr

    @pytest.mark.parametrize(
        ("group", "error"),
        [(-1, ValueError), (2**40, ValueError), (2**32 - 1, ValueError), (True, TypeError), (1.0, TypeError)],
    )
    def test_groups_that_are_none(self, key, runtime_dir, group, error):
        with pytest.raises(error, match="group"):
            Publisher(key, 64, 48, "gray8", group=group)
        with pytest.raises(error, match="group"):
            PacketPublisher(key, 27, group=group)
        assert not list(runtime_dir.iterdir())

    def test_a_subscriber_without_a_session_finds_the_publisher_of_one(self, monkeypatch):
        monkeypatch.delenv("CUFRAMES_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        with_session = cuframes_names.runtime_dirs()
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert cuframes_names.runtime_dirs() == with_session


PUBLISH = """
import sys
import cuframes
try:
    publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
except cuframes.AlreadyExists as problem:
    print("refused", flush=True)
    sys.exit()
print("started", flush=True)
sys.stdin.readline()
publisher.publish(bytes(64 * 48))
sys.stdin.readline()
publisher.close()
print("closed", flush=True)
"""


class TestOneKeyOnePublisher:
    """What is in the runtime directory belongs to whoever holds the key's lock there."""

    def test_containers_that_share_the_runtime_directory_only(self, key, runtime_dir):
        with container(PUBLISH, key) as first:
            assert first.stdout.readline() == "started\n"
            with container(PUBLISH, key) as second:
                assert second.stdout.readline() == "refused\n"
                second.wait(20)
            with pytest.raises(cuframes.AlreadyExists, match=r"is running \(pid \d+, .*\.lock is locked\)"):
                Publisher(key, 64, 48, "gray8")
            assert not [path for path in collect_garbage() if key in path.name]
            # Also seen from here, without a common /dev/shm.
            info = find_publisher(key)
            assert (info.alive, info.named, info.width) == (True, False, 64)
            assert key in [found.key for found in list_publishers()]
            with Subscriber(key) as subscriber:
                first.stdin.write("\n")
                first.stdin.flush()
                assert subscriber.next(20).seq == 1
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == "closed\n"
        assert not list(runtime_dir.iterdir())
        with Publisher(key, 64, 48, "gray8"):
            pass

    def test_packets_alone(self, key, runtime_dir):
        with PacketPublisher(key, 27):
            (SHM / f"cuframes-{key}-packets").unlink()
            with pytest.raises(cuframes.AlreadyExists):
                PacketPublisher(key, 27)
            with Publisher(key, 64, 48, "gray8") as publisher, pytest.raises(cuframes.AlreadyExists):
                publisher.enable_packets(27)
        assert not list(runtime_dir.iterdir())

    def test_a_killed_publisher_leaves_a_lock_that_is_free(self, key, runtime_dir):
        for _ in range(2):
            with Worker("producer.py", key) as worker:
                assert (runtime_dir / f"{key}.lock").exists()
                worker.kill()
        (SHM / f"cuframes-{key}").unlink()
        assert (runtime_dir / f"{key}.lock") in collect_garbage(dry_run=True)
        removed = collect_garbage()
        assert {runtime_dir / f"{key}.lock", runtime_dir / f"{key}.sock"} <= set(removed)
        assert not list(runtime_dir.iterdir())

    def test_a_socket_of_an_older_version_is_not_taken_over(self, key, runtime_dir):
        with socket.socket(socket.AF_UNIX) as older:
            older.bind(str(runtime_dir / f"{key}.sock"))
            older.listen()
            with pytest.raises(cuframes.AlreadyExists, match="another process listens on"):
                Publisher(key, 64, 48, "gray8")
            assert (runtime_dir / f"{key}.sock").exists()
            assert not [path for path in collect_garbage() if key in path.name]

    def test_close_leaves_another_socket_alone(self, key, runtime_dir):
        publisher = Publisher(key, 64, 48, "gray8")
        path = runtime_dir / f"{key}.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(runtime_dir / "other"))
            os.replace(runtime_dir / "other", path)
            publisher.close()
            assert path.exists()

    def test_a_lock_that_is_only_being_cleaned_up_is_waited_for(self, key, runtime_dir):

        started = threading.Event()

        def start():
            with Publisher(key, 64, 48, "gray8"):
                started.set()

        with cleaning(runtime_dir, key) as free:
            assert free
            thread = threading.Thread(target=start)
            thread.start()
            assert not started.wait(0.2)
        assert started.wait(20)
        thread.join(20)

    def test_starts_that_race_with_each_other_and_gc(self, key, runtime_dir):
        script = """
        import os, socket, sys, time
        import cuframes
        key, directory = sys.argv[1], os.environ["CUFRAMES_RUNTIME_DIR"]
        damaged = 0
        for _ in range(150):
            try:
                publisher = cuframes.Publisher(key, 64, 48, "gray8", ring_size=2)
            except cuframes.AlreadyExists:
                continue
            time.sleep(0.0005)
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(f"{directory}/{key}.sock")
                os.stat(f"/dev/shm/cuframes-{key}")
            except OSError as problem:
                print(problem, flush=True)
            publisher.close()
        """
        names = [f"{key}-a", f"{key}-b", f"{key}-b"]
        command = [sys.executable, "-c", textwrap.dedent(script)]
        starters = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in names]
        end = time.monotonic() + 120
        while any(starter.poll() is None for starter in starters) and time.monotonic() < end:
            collect_garbage()
        assert [(starter.communicate(timeout=60)[0], starter.returncode) for starter in starters] == [("", 0)] * 3
        assert not list(runtime_dir.iterdir())


class TestCleaners:
    """tmpfiles, logind's RemoveIPC, somebody's rm: noticed, and put right as far as possible."""

    def test_packets_alone_are_seen_to_by_who_publishes(self, key, runtime_dir, caplog):
        lock = runtime_dir / f"{key}-packets.lock"
        with PacketPublisher(key, 27) as publisher:
            lock.unlink()
            (SHM / f"cuframes-{key}-packets").unlink()
            eventually(lambda: publisher.publish_packet(b"x", pts_ns=None) and lock.exists())
            assert "was removed by another process" in caplog.text
        assert not list(runtime_dir.iterdir())

    @pytest.mark.parametrize("what", ["socket", "lock", "both", "directory"])
    def test_what_was_removed_from_the_runtime_directory_comes_back(self, key, tmp_path, monkeypatch, what):
        directory = tmp_path / "made"
        monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(directory))
        lock, sock = directory / f"{key}.lock", directory / f"{key}.sock"
        with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key, name="early") as early:
            for path in {"socket": [sock], "lock": [lock]}.get(what, [sock, lock]):
                path.unlink()
            if what == "directory":
                directory.rmdir()
            eventually(lambda: sock.exists() and lock.exists())
            with Subscriber(key, name="late", connect_timeout=20) as late:
                publisher.publish(bytes(64 * 48))
                assert early.next(20).seq == late.next(20).seq == 1
            with pytest.raises(cuframes.AlreadyExists):
                Publisher(key, 64, 48, "gray8")
        assert not list(directory.iterdir())

    def test_a_removed_segment_is_reported_and_subscribers_join_all_the_same(self, key, caplog):
        with Publisher(key, 64, 48, "gray8") as publisher:
            publisher.enable_packets(27)
            assert find_publisher(key).named
            (SHM / f"cuframes-{key}").unlink()
            (SHM / f"cuframes-{key}-packets").unlink()
            eventually(lambda: caplog.text.count("was removed by another process") == 2)
            info = find_publisher(key)
            assert (info.alive, info.named, info.pid) == (True, False, os.getpid())
            done = subprocess.run(
                [sys.executable, "-m", "cuframes", "info", key], capture_output=True, text=True, timeout=60
            )
            assert "its segment is not in /dev/shm" in done.stdout
            listed = subprocess.run(
                [sys.executable, "-m", "cuframes", "ls", "--json"], capture_output=True, text=True, timeout=60
            )
            assert [(each["named"]) for each in json.loads(listed.stdout) if each["key"] == key] == [False]
            with Subscriber(key) as subscriber, subscriber.packets() as packets:
                publisher.publish(bytes(64 * 48))
                assert subscriber.next(20).seq == 1
                publisher.publish_packet(b"x", pts_ns=None, keyframe=True)
                assert packets.next(20).seq == 1
            with pytest.raises(cuframes.AlreadyExists):
                Publisher(key, 64, 48, "gray8")

    def test_what_another_has_put_there_is_not_touched(self, key, runtime_dir, caplog):
        sock = runtime_dir / f"{key}.sock"
        with Publisher(key, 64, 48, "gray8"):
            sock.unlink()
            sock.write_text("mine")
            eventually(lambda: "cannot be created again" in caplog.text)
        assert sock.read_text() == "mine"

    def test_a_lock_that_another_has_taken_meanwhile_is_his(self, key, runtime_dir):
        first = KeyLock(runtime_dir, key)
        (runtime_dir / f"{key}.lock").unlink()
        second = KeyLock(runtime_dir, key)
        assert not first.look()
        first.close()
        assert second.look()
        assert (runtime_dir / f"{key}.lock").exists()
        second.close()
        assert not list(runtime_dir.iterdir())


class TestScarcity:
    """Somebody else has used it up."""

    def test_out_of_descriptors_is_said_to_who_knocks(self, key):
        script = """
        import os, resource, sys, time
        import cuframes
        publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
        print("ready", flush=True)
        sys.stdin.readline()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, hard))
        taken = []
        try:
            while True: taken.append(os.dup(0))
        except OSError:
            pass
        print("full", flush=True)
        sys.stdin.readline()
        for fd in taken: os.close(fd)
        print("free", flush=True)
        sys.stdin.readline()
        """
        command = [sys.executable, "-c", textwrap.dedent(script), key]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as publisher:
            assert publisher.stdout.readline() == "ready\n"
            with Subscriber(key, name="early"):
                publisher.stdin.write("\n")
                publisher.stdin.flush()
                assert publisher.stdout.readline() == "full\n"
                for _ in range(3):
                    with pytest.raises(cuframes.CuframesError, match="out of descriptors; try again"):
                        Subscriber(key, connect_timeout=0)
                    time.sleep(0.3)
                publisher.stdin.write("\n")
                publisher.stdin.flush()
                assert publisher.stdout.readline() == "free\n"

                def joins():
                    with contextlib.suppress(cuframes.CuframesError):
                        Subscriber(key, connect_timeout=0).close()
                        return True

                eventually(joins)
                eventually(lambda: [each.name for each in find_publisher(key).subscribers] == ["early"])
            publisher.stdin.close()

    def test_a_timer_does_not_keep_memory_from_being_reserved(self, tmp_path, monkeypatch):
        """Before Linux 6.11 a signal undid a reservation that was under way."""
        sizes = []

        def allocate(fd, start, size):
            assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            assert start == sum(sizes)
            sizes.append(size)

        monkeypatch.setattr(os, "posix_fallocate", allocate)
        with open(tmp_path / "file", "wb") as file:
            reserve(file.fileno(), (300 << 20) + 5, "it")
        assert sum(sizes) == (300 << 20) + 5
        assert len(sizes) > 3  # signals are looked at in between
        assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_key_that_a_killed_publisher_has_just_left_is_waited_for(runtime_dir, key):
    """A child that it was just starting has a copy of its lock, until it runs its program."""
    path = runtime_dir / f"{key}.lock"
    heir = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    assert lock(heir, 0, 1)
    timer = threading.Timer(0.05, os.close, (heir,))
    timer.start()
    Publisher(key, 64, 48, "gray8").close()
    timer.join()


def test_a_subscriber_that_makes_its_event_block_does_not_stop_the_session_thread(key, monkeypatch):
    """It can undo at any moment what the publisher has just set."""
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        subscriber.fileno()
        eventually(lambda: subscriber._event_fd >= 0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "set_blocking", lambda *_: None)
            fcntl.fcntl(subscriber._ring.connection.event_fd, fcntl.F_SETFL, 0)
            eventually(lambda: publisher.subscribers == ())
        Subscriber(key, connect_timeout=20).close()


def test_the_reason_that_a_stranger_gives_does_not_move_the_cursor():
    code, text = wire.error_text(wire.error(4, "\x1b[2J\x1b]0;mine\x07 no\n")[messages.HEADER_BYTES :])
    assert (code, text.isprintable(), text[1:4]) == (4, True, "[2J")


def test_a_subscriber_that_comes_and_goes_all_the_time_does_not_fill_the_log(key, caplog, monkeypatch):
    monkeypatch.setattr(server, "LOG_LINES", 5)
    monkeypatch.setattr(server, "LOG_SECONDS", 1.0)
    caplog.set_level("INFO", "cuframes")
    with Publisher(key, 64, 48, "gray8") as publisher:
        for _ in range(20):
            Subscriber(key).close()
        eventually(lambda: publisher.subscribers == ())
        assert eventually(lambda: [text for text in caplog.messages if "left out of the log" in text])
        assert len(caplog.messages) < 20


def test_a_lock_that_a_reader_has_taken_does_not_keep_a_dead_ring(key):
    """Whoever may read a file may lock it, for reading."""
    path = SHM / f"cuframes-{key}-packets"
    with Worker("packet_producer.py", key, "--delay", 0.01) as producer:
        with open(path, "rb") as reader:
            shared = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            waiting = threading.Thread(target=fcntl.fcntl, args=(reader, fcntl.F_OFD_SETLKW, shared), daemon=True)
            waiting.start()  # until its owner is gone
            producer.kill()
            waiting.join(10)
            assert not waiting.is_alive()
            with PacketPublisher(key, 27):
                assert find_packet_ring(key).pid == os.getpid()


@contextlib.contextmanager
def silent(path):
    """Somebody who listens and says nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield


def test_a_publisher_that_does_not_answer_is_not_said_to_be_absent(key, runtime_dir, caplog):
    with contextlib.ExitStack() as there:
        for number in range(8):
            there.enter_context(silent(runtime_dir / f"{key}-{number}.sock"))
        with pytest.raises(cuframes.Timeout, match="does not answer"):
            find_publisher(f"{key}-0")
        assert not [found for found in list_publishers() if found.key.startswith(key)]
        assert len([text for text in caplog.messages if text.startswith(key) and "does not answer" in text]) == 8


def test_publishers_are_asked_also_if_no_thread_can_be_started(key, runtime_dir, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with contextlib.ExitStack() as there:
        for number in range(2):
            there.enter_context(silent(runtime_dir / f"{key}-{number}.sock"))
        there.enter_context(Publisher(key, 64, 48, "gray8"))
        (SHM / f"cuframes-{key}").unlink()  # so that it is found by its socket
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert key in [found.key for found in list_publishers()]


def test_directories_may_be_relative(key, tmp_path, monkeypatch, caplog):
    """As daemons do. The files were thought to be lost, and were made again where the program was by then."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", "run")
    monkeypatch.setenv("CUFRAMES_FRAMECACHE_DIR", "slots")
    monkeypatch.chdir(tmp_path)
    with Publisher(key, 64, 48, "gray8") as publisher, SlotWriter(key, 64, 48, "gray8", ring_depth=3) as writer:
        monkeypatch.chdir(elsewhere)
        with Subscriber(key, reconnect=True) as subscriber, SlotReader(key) as reader:
            assert publisher._segment.look()
            assert publisher._server._listener.look() is None
            publisher.publish(bytes(64 * 48))
            writer.write(bytes(64 * 48))
            assert subscriber.next(10).seq == 1
            assert reader.next(10).seq == 0
            assert writer.info().write_cursor == 1
    remove_slot(key)
    assert not list(elsewhere.iterdir())
    assert not list((tmp_path / "run").iterdir())
    assert not caplog.messages


@as_root
@pytest.mark.parametrize("left", ["socket", "lock"])
def test_what_another_user_has_left_in_a_sticky_directory_is_named(key, open_to_all, left):
    open_to_all.chmod(0o1777)
    path = open_to_all / f"{key}.{'sock' if left == 'socket' else 'lock'}"
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    else:
        path.touch()
    path.chmod(0o666)
    script = """
    import os, sys
    from cuframes import Publisher
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        Publisher(sys.argv[1], 64, 48, "gray8", memory="host")
    except PermissionError as problem:
        print(problem)
    """
    said = run(script, key, CUFRAMES_RUNTIME_DIR=str(open_to_all))
    assert str(path) in said
    assert "another user" in said
    assert path.exists()


def test_what_replaces_a_new_socket_is_not_touched(key, runtime_dir, tmp_path, monkeypatch):
    """Somebody who may write to the directory puts a link there before owner and mode are set."""
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o400)

    def swapped(sock, path):
        _socket.socket.bind(sock, path)
        if os.fsdecode(path).endswith(".sock"):
            os.unlink(path)
            os.symlink(secret, path)

    patch_sockets(monkeypatch, bind=swapped)
    with pytest.raises(FileExistsError, match="was replaced while it was made"):
        Publisher(key, 64, 48, "gray8", group=os.getgid())
    assert stat.S_IMODE(secret.stat().st_mode) == 0o400
    (runtime_dir / f"{key}.sock").unlink()


def test_a_loop_of_links_in_place_of_the_directory_does_not_end_a_publisher(key, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(directory))
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        directory.rename(tmp_path / "away")
        directory.symlink_to(directory)
        time.sleep(1.2)  # it looks every half second
        publisher.publish(bytes(64 * 48))
        assert subscriber.next(10).seq == 1
        directory.unlink()
        (tmp_path / "away").rename(directory)


@as_root
def test_a_directory_that_a_stranger_made_in_place_of_ours_is_not_used(key, open_to_all, monkeypatch, caplog):
    directory = open_to_all / "run"
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(directory))
    with Publisher(key, 64, 48, "gray8") as publisher:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
        directory.mkdir()
        os.chown(directory, STRANGER, STRANGER)
        assert eventually(lambda: "cannot be created again" in caplog.text)
        publisher.publish(bytes(64 * 48))
        assert not list(directory.iterdir())


def test_a_publisher_of_another_container_is_alive_whatever_a_dead_one_has_left_here(key):
    with Worker("producer.py", key, "--delay", 0.01) as dead:
        dead.kill()
    assert not find_publisher(key).alive
    with container(PUBLISH, key) as other:
        assert other.stdout.readline().strip() == "started"
        found = find_publisher(key)
        assert (found.alive, found.named) == (True, False)
        assert [info.alive for info in list_publishers() if info.key == key] == [True]
    collect_garbage([key])


@pytest.mark.parametrize("call", ["made", "opened to a group"])
def test_what_replaces_a_new_directory_is_not_touched(key, tmp_path, monkeypatch, call):
    """Somebody who may write to its parent puts a link there before the mode is set."""
    private = tmp_path / "private"
    private.mkdir(0o750)
    directory = tmp_path / "run"
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(directory))
    real = {"made": (Path, "mkdir"), "opened to a group": (os, "access")}[call]
    function = getattr(*real)

    def swapped(path, *arguments, **options):
        answer = function(path, *arguments, **options)
        if path == directory and arguments != (os.X_OK,):  # the last one before the mode is set
            directory.rename(tmp_path / "away")
            directory.symlink_to(private)
        return answer

    monkeypatch.setattr(*real, swapped)
    with pytest.raises((PermissionError, NotADirectoryError)):
        Publisher(key, 64, 48, "gray8", group=os.getgid() + 1)
    assert stat.S_IMODE(private.stat().st_mode) == 0o750


def test_messages_of_unknown_types_end_a_connection(key):
    """They used to be passed over for as long as they came, whatever the timeout was."""
    ours, theirs = socket.socketpair()
    lifetime.own(ours)
    ours.setblocking(False)
    connection = client.Connection(ours, wire.Parser(), wire.Welcome(0), wire.Subscribed(0), [])
    theirs.sendall(wire.pack(wire.MessageType.PONG, b"") + messages.pack_message(77, b""))
    assert connection.read_messages()
    connection.forget()
    theirs.close()


def test_one_look_at_a_connection_ends_while_messages_keep_coming(key, monkeypatch):
    ours, theirs = socket.socketpair()
    lifetime.own(ours)
    connection = client.Connection(ours, wire.Parser(), wire.Welcome(0), wire.Subscribed(0), [])
    pong = wire.pack(wire.MessageType.PONG, b"")
    monkeypatch.setattr(wire, "receive", lambda *_: (pong, False))  # there is always one more
    assert not connection.read_messages()
    connection.forget()
    theirs.close()


def test_gc_leaves_a_lock_that_was_made_while_it_looked(runtime_dir, key):
    """A cleaner removes the lock file that gc has locked, and a publisher starts."""
    path = runtime_dir / f"{key}.lock"
    path.touch(0o600)
    with cleaning(runtime_dir, key) as free:
        assert free
        path.unlink()
        publisher = Publisher(key, 64, 48, "gray8")
    assert path.exists()
    with publisher, pytest.raises(cuframes.AlreadyExists):
        Publisher(key, 64, 48, "gray8")


def test_a_packet_ring_is_not_called_something_to_remove(key):
    with PacketPublisher(key, 27), pytest.raises(cuframes.NotFound, match="is a packet ring, not a publisher"):
        find_publisher(f"{key}-packets")


@as_root
def test_a_dry_run_of_gc_says_what_gc_removes(key, open_to_all):
    """Of what other users have left where only they may remove it, and under a name that somebody is cleaning up."""
    open_to_all.chmod(0o1777)
    names = [f"{key}-{what}" for what in ("lock", "open-lock", "socket", "segment", "busy", "ours")]
    lock, open_lock, sock, segment, *_ = names
    for name, mode in ((lock, 0o600), (open_lock, 0o666)):
        (open_to_all / f"{name}.lock").touch()
        (open_to_all / f"{name}.lock").chmod(mode)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(open_to_all / f"{sock}.sock"))
    (open_to_all / f"{sock}.sock").chmod(0o666)
    (SHM / f"cuframes-{segment}").touch()
    (SHM / f"cuframes-{segment}").chmod(0o666)
    script = """
    import os, sys
    from pathlib import Path
    from cuframes.host.keylock import cleaning
    from cuframes.session.listing import collect_garbage
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    *names, busy, ours = sys.argv[1:]
    directory = Path(os.environ["CUFRAMES_RUNTIME_DIR"])
    (directory / f"{busy}.lock").touch()
    (directory / f"{ours}.lock").touch()
    with cleaning(directory, busy):
        before = sorted(os.listdir(directory))
        promised = collect_garbage([*names, busy, ours], dry_run=True)
        assert sorted(os.listdir(directory)) == before
        removed = collect_garbage([*names, busy, ours])
    print(promised == removed == [directory / f"{ours}.lock"], promised, removed)
    """
    try:
        assert run(script, *names, CUFRAMES_RUNTIME_DIR=str(open_to_all)).startswith("True")
    finally:
        (SHM / f"cuframes-{segment}").unlink()


def test_a_strangers_packet_ring_is_not_believed(key, open_to_all, monkeypatch):
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(open_to_all))
    script = """
    import os, sys
    from cuframes import PacketReader
    os.setgroups([4711]); os.setgid(65533); os.setuid(65533)
    PacketReader(sys.argv[1], connect_timeout=5).close()
    print("joined")
    """
    with PacketPublisher(key, 27):
        path = SHM / f"cuframes-{key}-packets"
        path.chmod(0o644)
        os.chown(path, STRANGER, STRANGER)
        with pytest.raises(PermissionError, match=f"belongs to uid {STRANGER}.*group="):
            PacketReader(key, connect_timeout=0)
        os.chown(path, STRANGER, 4711)  # as a publisher does with group=
        path.chmod(0o640)
        assert run(script, key).strip() == "joined"
        os.chown(open_to_all, STRANGER, STRANGER)  # whoever names it trusts its owner
        PacketReader(key, connect_timeout=0).close()
        os.chown(path, 0, 0)


@pytest.mark.parametrize("junk", ["bytes", "fifo", "strangers"])
def test_a_reconnecting_reader_waits_until_junk_is_gone(key, junk):
    path = SHM / f"cuframes-{key}-packets"
    publisher = PacketPublisher(key, 27)
    publisher.publish_packet(b"first", pts_ns=0, keyframe=True)
    with PacketReader(key, reconnect=True) as reader:
        assert reader.next(5).data == b"first"
        publisher.close()
        if junk == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(b"\xff" * 9000)
            if junk == "strangers" and os.getuid() == 0:
                os.chown(path, STRANGER, STRANGER)
        with pytest.raises(cuframes.Timeout, match=f"came back in time; .*{path.name}"):
            reader.next(0.2)
        with pytest.raises((cuframes.ProtocolError, PermissionError), match=path.name):
            PacketReader(key, connect_timeout=0.1)
        path.unlink()
        with PacketPublisher(key, 27) as publisher:
            publisher.publish_packet(b"second", pts_ns=0, keyframe=True)
            assert reader.next(5).data == b"second"
