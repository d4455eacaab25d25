"""Segments: who owns a name, what dead owners leave, and what a full /dev/shm does."""

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
from pathlib import Path

import numpy
import pytest
from harness import Worker, eventually, in_namespace

import cuframes
from cuframes import PacketPublisher, Publisher, Subscriber
from cuframes.host.segment import inspect, is_owned, lock_owner, open_segment
from cuframes.session.listing import collect_garbage, find_publisher

SHM = Path("/dev/shm")


def header(version=3, flags=16, pid=0, magic=0xCC7C1DCC, size=8448):
    """A control segment as some other program might have left it."""
    raw = bytearray(size)
    struct.pack_into("<IIIIIIQQ", raw, 0, magic, version, 0, 1, 0, flags, pid, 8)
    return bytes(raw)


def dead_pid():
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_second_publisher_is_told_who_has_the_key(key):
    with Publisher(key, 64, 48, "gray8") as first, Subscriber(key) as subscriber:
        with pytest.raises(cuframes.AlreadyExists, match=f"a publisher of '{key}' is running .pid {os.getpid()}"):
            Publisher(key, 64, 48, "gray8")
        first.publish(bytes(64 * 48))
        assert subscriber.next(1).seq == 1


@pytest.mark.parametrize(
    "left",
    [
        b"",  # killed between creating and sizing
        bytes(8448),  # killed before the magic was written
        header(),
        header(version=2, flags=0, pid=dead_pid()),  # another version without a lock
    ],
)
def test_what_a_dead_publisher_left_is_taken_over(key, left):
    (SHM / f"cuframes-{key}").write_bytes(left)
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        publisher.publish(bytes(64 * 48))
        assert subscriber.next(1).seq == 1


def test_a_living_publisher_without_a_lock_keeps_its_key(key):
    path = SHM / f"cuframes-{key}"
    path.write_bytes(header(flags=0, pid=os.getpid()))
    with pytest.raises(cuframes.AlreadyExists, match="is running"):
        Publisher(key, 64, 48, "gray8")
    assert find_publisher(key).alive
    assert path not in collect_garbage([key])
    path.unlink()


@pytest.mark.parametrize("foreign", [header(magic=0x12345678), b"something else entirely"])
def test_foreign_files_are_not_touched(key, foreign):
    path = SHM / f"cuframes-{key}"
    path.write_bytes(foreign)
    with pytest.raises(cuframes.ProtocolError, match="is not a frame ring of version 3 or a packet ring; remove"):
        Publisher(key, 64, 48, "gray8")
    with pytest.raises(cuframes.ProtocolError):
        find_publisher(key)
    assert path not in collect_garbage([key])
    assert path.read_bytes() == foreign
    path.unlink()


def test_subscriber_refuses_a_segment_of_another_version(key):
    with Publisher(key, 64, 48, "gray8"):
        with open(SHM / f"cuframes-{key}", "r+b") as file:
            file.seek(4)
            file.write(struct.pack("<I", 7))
        with pytest.raises(cuframes.ProtocolError, match=r"protocol version 7; this library reads .* version 3"):
            Subscriber(key)


def test_a_killed_publisher_leaves_nothing_that_the_next_does_not_take_over(key):
    for _ in range(5):
        with Worker("producer.py", key) as worker:
            worker.kill()
        assert not find_publisher(key).alive
    with Publisher(key, 64, 48, "gray8"):
        assert find_publisher(key).alive


def test_gc_removes_what_dead_publishers_left_and_nothing_else(key, runtime_dir):
    with Worker("producer.py", f"{key}-dead") as worker, Publisher(f"{key}-live", 64, 48, "gray8"):
        worker.kill()
        both = [f"{key}-dead", f"{key}-live"]
        expected = {SHM / f"cuframes-{key}-dead", runtime_dir / f"{key}-dead.sock"}
        assert expected <= set(collect_garbage(both, dry_run=True))
        assert all(path.exists() for path in expected)
        assert expected <= set(collect_garbage(both))
        assert not any(path.exists() for path in expected)
        assert find_publisher(f"{key}-live").alive
        assert (runtime_dir / f"{key}-live.sock").exists()


def test_close_removes_the_segment_and_the_socket(key, runtime_dir):
    publisher = Publisher(key, 64, 48, "gray8")
    publisher.close()
    publisher.close()
    assert not (SHM / f"cuframes-{key}").exists()
    assert not list(runtime_dir.iterdir())


def test_close_leaves_a_successors_segment_alone(key, runtime_dir):
    publisher = PacketPublisher(key, 27)  # which has no thread that would repair this
    ring, lock = SHM / f"cuframes-{key}-packets", runtime_dir / f"{key}-packets.lock"
    ring.unlink()  # somebody cleaned up by hand
    lock.unlink()
    with PacketPublisher(key, 27):
        publisher.close()
        assert ring.exists()
        assert lock.exists()


def test_the_owner_lock_does_not_travel_with_the_descriptors(key):
    """A subscriber that outlives its publisher must not make it look alive."""
    with Worker("producer.py", key) as worker, Subscriber(key, mode="ordered") as subscriber:
        kept = subscriber.next(5)
        worker.kill()
        with open_segment(f"/cuframes-{key}", writable=False) as file:
            assert not is_owned(file.fileno())
        assert (numpy.asarray(kept) == kept.frame_no % 251).all()
    collect_garbage([key])


def test_gc_by_key_leaves_the_others_alone(key, runtime_dir):
    with Worker("producer.py", f"{key}-a") as one, Worker("producer.py", f"{key}-b") as other:
        one.kill()
        other.kill()
    left = {SHM / f"cuframes-{key}-a", runtime_dir / f"{key}-a.sock", runtime_dir / f"{key}-a.lock"}
    assert set(collect_garbage([f"{key}-a"])) == left
    assert (SHM / f"cuframes-{key}-b").exists()
    assert (runtime_dir / f"{key}-b.sock").exists()
    assert SHM / f"cuframes-{key}-b" in collect_garbage([f"{key}-b"])


def test_looking_needs_no_write_access(key):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key):
        publisher.publish(bytes(64 * 48))
        before = (SHM / f"cuframes-{key}").read_bytes()
        with open_segment(f"/cuframes-{key}", writable=False) as file:
            assert inspect(file.fileno()).state == "alive"
            with pytest.raises(PermissionError):
                mmap.mmap(file.fileno(), 8448)
        cuframes.list_publishers()
        find_publisher(key)
        assert (SHM / f"cuframes-{key}").read_bytes() == before


def test_lock_of_another_process_is_seen(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    ours = os.open(path, os.O_RDWR)
    theirs = os.open(path, os.O_RDWR)
    assert lock_owner(ours)
    assert lock_owner(ours)
    assert not lock_owner(theirs)
    assert is_owned(theirs)
    assert not is_owned(ours)
    os.close(ours)
    assert not is_owned(theirs)
    os.close(theirs)


def test_runtime_directory_problems(key, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(file / "below"))
    with pytest.raises(PermissionError, match="set CUFRAMES_RUNTIME_DIR to a directory that you can write"):
        Publisher(key, 64, 48, "gray8")
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(tmp_path / ("x" * 90)))
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        Publisher(key, 64, 48, "gray8")
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(tmp_path / "new" / "deep"))
    with Publisher(key, 64, 48, "gray8"):
        assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700
    (tmp_path / "new" / "deep" / f"{key}.sock").write_text("not a socket")
    with pytest.raises(FileExistsError, match="is not a socket"):
        Publisher(key, 64, 48, "gray8")
    assert not (SHM / f"cuframes-{key}").exists()


def test_full_dev_shm_is_an_error_that_says_how_much(key):
    done = in_namespace(
        f"""
        import os, cuframes
        filler = os.open("/dev/shm/filler", os.O_CREAT | os.O_WRONLY)
        try:
            while os.write(filler, bytes(4096)): pass
        except OSError:
            pass
        try:
            cuframes.Publisher("{key}", 64, 48, "gray8")
        except cuframes.OutOfSharedMemory as problem:
            print(problem.errno, problem)
        print(sorted(os.listdir("/dev/shm")))
        """,
        shm_bytes=65536,
    )
    assert done.stderr == ""
    said, left = done.stdout.splitlines()
    assert said.startswith(
        f"28 the control segment /cuframes-{key} needs 8448 bytes of shared memory; 0 bytes are free"
    )
    assert "--shm-size" in said
    assert left == "['filler']"


class TestHeldBytes:
    """The publisher believes nothing that a subscriber can have written."""

    def test_scribbled_control_segment(self, key):
        with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher:
            with Subscriber(key, mode="ordered") as subscriber:
                publisher.publish(bytes(64 * 48))
                with open(SHM / f"cuframes-{key}", "r+b") as file, mmap.mmap(file.fileno(), 8448) as raw:
                    kept = raw[:256]
                    raw[192:256] = b"\xee" * 64  # global_seq, bitmaps, counters
                    for k in range(4):
                        raw[256 + 192 * k : 256 + 192 * (k + 1)] = os.urandom(192)
                        raw[256 + 192 * k + 128] &= 0b11111101  # a pin of its own would be honoured
                    assert publisher.publish(bytes(64 * 48)) > 1
                    raw[192:200] = kept[192:200]
                with pytest.raises(cuframes.CuframesError):
                    for _ in range(10):
                        subscriber.next(0.01).release()
            # Fresh frames repair their own slots, and stray pins of nobody alive are ignored.
            with Subscriber(key, mode="ordered") as subscriber:
                numbers = []
                for value in range(20):
                    publisher.publish(numpy.full((48, 64), value, numpy.uint8))
                    with subscriber.next(1) as frame:
                        assert (numpy.asarray(frame) == value).all()
                        numbers.append(frame.frame_no)
                assert numbers == list(range(numbers[0], numbers[0] + 20))

    def test_header_sizes_are_the_publishers_own(self, key):
        with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher:
            with open(SHM / f"cuframes-{key}", "r+b") as file, mmap.mmap(file.fileno(), 8448) as raw:
                struct.pack_into("<Q", raw, 32, 2**40)  # ring_size
                struct.pack_into("<Q", raw, 48, 1)  # policy
                for _ in range(20):
                    publisher.publish(bytes(64 * 48))


def test_pool_pages_are_there_from_the_start(key):
    """No page fault, and no SIGBUS, while frames flow."""
    with Publisher(key, 640, 480, "rgb24", ring_size=4) as publisher:
        with publisher.acquire() as slot:
            array = numpy.asarray(slot.planes[0])
            libc = ctypes.CDLL(None, use_errno=True)
            pages = (ctypes.c_ubyte * 225)()
            assert libc.mincore(ctypes.c_void_p(array.ctypes.data), 225 * 4096, pages) == 0
            assert all(page & 1 for page in pages)
        fd = next(
            int(name)
            for name in os.listdir("/proc/self/fd")
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"/memfd:cuframes-{key}")
        )
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10


def test_descriptors_are_closed_on_exec(key):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key) as subscriber:
        subscriber.fileno()
        publisher.publish(bytes(64 * 48))
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue
            if "cuframes" in target or target.startswith(("socket:", "anon_inode:[event")):
                assert not os.get_inheritable(int(name)), target


def test_subscribers_of_a_dead_publisher_do_not_keep_its_memory_listed(key):
    with Worker("producer.py", key) as worker, Subscriber(key) as subscriber:
        frame = subscriber.next(5)
        worker.kill()
        with pytest.raises(cuframes.Disconnected):
            while True:
                subscriber.next(5).release()
        eventually(lambda: not find_publisher(key).alive)
        assert SHM / f"cuframes-{key}" in collect_garbage([key])
        assert (numpy.asarray(frame) == frame.frame_no % 251).all()


@pytest.mark.parametrize("kind", ["pipe", "path", "write-only"])
def test_a_descriptor_that_is_no_file_to_read_is_foreign(kind, tmp_path):
    """As a program sends it that only pretends to be a publisher."""
    file = tmp_path / "file"
    file.write_bytes(bytes(9000))
    fds = list(os.pipe()) if kind == "pipe" else [os.open(file, os.O_PATH if kind == "path" else os.O_WRONLY)]
    try:
        assert inspect(fds[0]).state == "foreign"
    finally:
        for fd in fds:
            os.close(fd)


def test_what_is_free_is_what_was_free_before(tmp_path):
    script = """
import copy, pickle
import cuframes
try:
    cuframes.framecache.create_slot("big", 640, 480, "gray8", ring_depth=120)
except cuframes.OutOfSharedMemory as problem:
    for same in (problem, pickle.loads(pickle.dumps(problem)), copy.copy(problem)):
        print(same.free, same.needed, str(same.free) in str(same))
"""
    done = in_namespace(script, 8 << 20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(8 << 20), str(4096 + 120 * (640 * 480 + 24)), "True"] * 3


def test_more_memory_than_there_is_is_refused_before_it_is_taken(key, monkeypatch):
    """A memfd has no limit of its own: the kernel would kill a process, perhaps another one."""
    from cuframes.host import segment

    available = segment.available_memory()
    assert available is None or available > 1 << 20
    with pytest.raises(cuframes.OutOfSharedMemory, match="bytes are available to this process"):
        cuframes.Publisher(key, 32768, 32768, "yuva444p12le", ring_size=16, memory="host")
    monkeypatch.setattr(segment, "available_memory", lambda: 100_000)
    with pytest.raises(cuframes.OutOfSharedMemory) as raised:
        cuframes.Publisher(key, 640, 480, "gray8", memory="host")
    assert raised.value.free == 100_000


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    from cuframes.host import segment

    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    files = dict.fromkeys((1, 2), (tmp_path, "memory.max", "memory.current"))
    monkeypatch.setattr(segment, "CGROUP_FILES", files)
    assert segment.available_memory() == 2_500_000
