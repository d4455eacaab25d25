"""Framecache slots: files as the format has them, writing and reading them."""

import asyncio
import copy
import ctypes
import errno
import fcntl
import gc
import itertools
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import posix_ipc
import pytest
from harness import Worker, compile_program, descriptors, eventually, in_namespace

import cuframes
from cuframes import AlreadyExists, Disconnected, NotFound, ProtocolError, Timeout
from cuframes.formats import FORMATS, FrameShape
from cuframes.framecache import SlotReader, SlotWriter, create_slot, find_slot, list_slots, remove_slot
from cuframes.framecache.parameters import CODES
from cuframes.framecache.slots import semaphore_name, semaphore_path, slots_dir
from cuframes.host.files import lock

ENTRY = struct.Struct("<QQII")


def numbered(number, width=64, height=48):
    """A UYVY frame of which every 8 bytes are a number."""
    return numpy.full(width * height // 4, number, "<u8").view(numpy.uint8).reshape(height, width, 2)


@pytest.fixture
def slot(slot_id):
    """A small slot with a writer."""
    with SlotWriter(slot_id, 64, 48, ring_depth=8) as writer:
        yield writer


# ---- the file


def test_the_file_is_as_the_format_has_it(slots, slot_id):
    with SlotWriter(slot_id, 64, 48, fps=(60000, 1001), source_type="sdi", ring_depth=5) as writer:
        for number in range(7):
            writer.write(numbered(number), pts_us=number * 10, wall_us=number + 1_000_000)
        writer.drop(3)
        raw = (slots / slot_id).read_bytes()
    frame_size = 64 * 48 * 2
    assert len(raw) == 4096 + 5 * (24 + frame_size)
    header = struct.unpack_from("<10I2Q", raw)
    assert header == (0x46524D43, 1, 64, 48, 60000, 1001, 0, frame_size, 5, 1, 7, 3)
    assert raw[56:88].rstrip(b"\0") == b"sdi"
    assert raw[88:152].rstrip(b"\0") == slot_id.encode()
    for number in range(2, 7):
        at = 4096 + number % 5 * (24 + frame_size)
        assert ENTRY.unpack_from(raw, at) == (number * 10, number + 1_000_000, frame_size, 0)
        assert raw[at + 24 : at + 24 + frame_size] == numbered(number).tobytes()


def test_the_flag_for_the_futex_is_there_while_a_writer_of_ours_is(slots, slot_id):
    def flag():
        return struct.unpack_from("<I", (slots / slot_id).read_bytes(), 36)[0]

    create_slot(slot_id, 64, 48, ring_depth=2)
    assert flag() == 0
    with SlotWriter(slot_id):
        assert flag() == 1
    assert flag() == 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_pixel_format(slots, slot_id, name):
    shape = FrameShape(FORMATS[name], 64, 48, align=1)
    rng = numpy.random.default_rng(1)
    image = rng.integers(0, 255, shape.array_shape).astype(f"u{FORMATS[name].itemsize}")
    with SlotWriter(slot_id, 64, 48, name, ring_depth=4) as writer, SlotReader(slot_id) as reader:
        writer.write(image)
        frame = reader.read(5)
        assert frame.data.shape == shape.array_shape
        assert frame.data.dtype == image.dtype
        assert (frame.data == image).all()
        assert (frame.format, frame.width, frame.height) == (name, 64, 48)
        assert b"".join(plane.tobytes() for plane in frame.planes) == image.tobytes()
        assert bytes(memoryview(frame.data).cast("B")) == image.tobytes()
        assert (numpy.from_dlpack(frame.data) == image).all()
        writer.write(list(frame.planes))
        assert (reader.read(5, copy=False).data == image).all()
        assert struct.unpack_from("<I", (slots / slot_id).read_bytes(), 24)[0] == CODES[name]
    assert CODES["uyvy422"] == 0


def test_video_frames_and_arrays_with_gaps(slot):
    av = pytest.importorskip("av")
    with SlotReader(slot.slot_id) as reader:
        wide = numpy.zeros((48, 80, 2), numpy.uint8)
        wide[:, :64] = numbered(3)
        slot.write(wide[:, :64])
        assert (reader.read(5).data == numbered(3)).all()
        video = av.VideoFrame(64, 48, "uyvy422")
        rows = numpy.frombuffer(video.planes[0], numpy.uint8).reshape(48, -1)
        rows[:, :128] = numbered(4).reshape(48, 128)
        slot.write(video)
        assert (reader.read(5).data == numbered(4)).all()
        slot.write(numbered(5).tobytes())
        assert (numpy.asarray(reader.read(5)) == numbered(5)).all()


def test_smaller_frames_keep_their_size_and_larger_ones_are_refused(slot):
    with SlotReader(slot.slot_id) as reader:
        slot.write(b"twelve bytes")
        frame = reader.read(5)
        assert frame.data.tobytes() == b"twelve bytes"
        with pytest.raises(ValueError, match="not a whole picture"):
            frame.planes  # noqa: B018
        for wrong in (b"x" * (64 * 48 * 2 + 1), numpy.zeros((48, 65, 2), numpy.uint8)):
            with pytest.raises(ValueError, match=r"more than|shape"):
                slot.write(wrong)
        with pytest.raises(TypeError):
            slot.write(numpy.zeros((48, 64, 2), float))
        with pytest.raises(ValueError, match="microseconds"):
            slot.write(numbered(1), pts_us=-1)
        assert slot.write(numbered(1)) == 1


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "a" * 64, "ä", "a b", "a\0b", "a\n", "registry.json", "%2e"]
)
def test_names_that_are_no_slot_ids(slots, name):
    for call in (lambda: create_slot(name, 64, 48), lambda: SlotReader(name), lambda: remove_slot(name)):
        with pytest.raises(ValueError, match=r"slot_id|registry"):
            call()
    assert not slots.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"width": 0}, "width"),
        ({"width": 63}, "multiple of 2"),
        ({"width": 10**9}, "width"),
        ({"format": "yv12"}, "unknown pixel format"),
        ({"ring_depth": 1}, "ring_depth"),
        ({"ring_depth": 10**6}, "ring_depth"),
        ({"fps": 0}, "a frame rate must be"),
        ({"fps": "fast"}, "a frame rate must be"),
        ({"fps": (1, 0)}, "a frame rate must be"),
        ({"source_type": "x" * 32}, "source_type"),
    ],
)
def test_parameters_that_make_no_slot(slots, slot_id, change, error):
    arguments = {"width": 64, "height": 48} | change
    with pytest.raises(ValueError, match=error):
        create_slot(slot_id, **arguments)
    assert not slots.exists()


def test_a_slot_is_created_once_and_removed_once(slots, slot_id):
    made = create_slot(slot_id, 64, 48, fps=59.94, ring_depth=4)
    assert find_slot(slot_id) == made
    assert list_slots() == [made]
    assert made.size == (slots / slot_id).stat().st_size
    assert (made.parameters.fps_num, made.parameters.fps_den) == (60000, 1001)
    assert Path(f"/dev/shm/sem.{semaphore_name(slot_id)[1:]}").exists()
    with pytest.raises(AlreadyExists):
        create_slot(slot_id, 64, 48)
    with pytest.raises(AlreadyExists, match="height is 48, not 50"):
        SlotWriter(slot_id, 64, 50, fps=59.94, ring_depth=4)
    remove_slot(slot_id)
    with pytest.raises(NotFound):
        remove_slot(slot_id)
    with pytest.raises(NotFound):
        find_slot(slot_id)
    with pytest.raises(NotFound):
        SlotWriter(slot_id)
    assert not Path(f"/dev/shm/sem.{semaphore_name(slot_id)[1:]}").exists()


def test_other_things_in_the_directory_are_refused_and_left_alone(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    whole = (slots / slot_id).read_bytes()
    (slots / "version-2").write_bytes(whole[:4] + b"\2" + whole[5:])
    (slots / "truncated").write_bytes(whole[:-1])
    (slots / "text").write_text("hello")
    (slots / "empty").touch()
    (slots / "folder").mkdir()
    (slots / "link").symlink_to(slots / slot_id)
    os.mkfifo(slots / "pipe")
    for name, message in {
        "version-2": "version 2",
        "truncated": "truncated",
        "text": "not a framecache slot|at least",
        "empty": "empty",
        "folder": "not a regular file",
        "link": "not a regular file",
        "pipe": "not a regular file",
    }.items():
        for attempt in (SlotReader, SlotWriter):
            with pytest.raises(ProtocolError, match=message):
                attempt(name)
    assert [slot.slot_id for slot in list_slots()] == [slot_id]


@pytest.mark.parametrize("content", [b"hello", b"x" * 8192, bytes(100)], ids=["text", "large", "few zeros"])
def test_a_file_that_is_no_slot_is_not_removed(slots, slot_id, content):
    create_slot(slot_id, 64, 48, ring_depth=2)
    (slots / "notes").write_bytes(content)
    with pytest.raises(NotFound, match=f"{slots}/notes is a file of {len(content)} bytes that.*by hand"):
        remove_slot("notes")
    assert (slots / "notes").read_bytes() == content


def test_a_damaged_or_unfinished_slot_is_removed(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    whole = (slots / slot_id).read_bytes()
    broken = (whole[:4], whole[:4] + bytes(5000), whole[:4] + b"\xff" * len(whole), whole[:-1])
    for content in (b"", bytes(4096), bytes(len(whole)), *broken):
        (slots / slot_id).write_bytes(content)
        with pytest.raises(ProtocolError):
            find_slot(slot_id)
        remove_slot(slot_id)
        assert not (slots / slot_id).exists()


def test_a_directory_that_is_a_link_is_not_followed(slots, slot_id, tmp_path):
    slots.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="a link or not a directory"):
        create_slot(slot_id, 64, 48)
    slots.unlink()


def test_a_slot_that_does_not_fit_says_what_is_needed_and_leaves_nothing():
    done = in_namespace(
        """
        import os
        from cuframes.framecache import create_slot, list_slots
        try:
            create_slot("big", 1920, 1080)
        except OSError as error:
            print(type(error).__name__, error.needed, error.free, os.listdir("/dev/shm/framecache"), list_slots())
        """,
        48 << 20,
    )
    assert done.stdout.split()[:2] == ["OutOfSharedMemory", str(4096 + 120 * (24 + 1920 * 1080 * 2))], done.stderr
    assert 40 << 20 < int(done.stdout.split()[2]) <= 48 << 20
    assert done.stdout.split()[3:] == ["[]", "[]"]


@pytest.mark.parametrize("left", range(5))
def test_a_file_system_without_inodes_is_named_as_that(left):
    """Memory may be free then. Files are a slots' directory, a slot, and a semaphore, which glibc makes and links."""
    done = in_namespace(
        f"""
        import os
        from cuframes import OutOfSharedMemory
        from cuframes.framecache import SlotWriter, create_slot, list_slots
        os.mkdir("/dev/shm/others")
        for number in range(os.statvfs("/dev/shm").f_ffree - {left}):
            open(f"/dev/shm/others/{{number}}", "w").close()
        for make in (create_slot, SlotWriter):
            try:
                make("a", 64, 48, ring_depth=4)
                print("made", end=" ")
            except OutOfSharedMemory as problem:
                print("no inodes left" in str(problem) and "nr_inodes=64" in str(problem), len(list_slots()), end=" ")
        """,
        f"{1 << 24},nr_inodes=64",
    )
    assert done.stdout.split() == (["made", "made"] if left == 4 else ["True", "0"] * 2), done.stderr


def test_a_sparse_slot_that_does_not_fit_is_refused_and_takes_no_memory():
    """ftruncate gives a file any size, and no memory. A writer would take it all, and then be killed."""
    done = in_namespace(
        """
        import os, struct
        from cuframes import OutOfSharedMemory
        from cuframes.framecache import SlotWriter, create_slot
        path = "/dev/shm/framecache/a"
        size = create_slot("a", 64, 48, ring_depth=4).size
        os.truncate(path, 4096)
        for depth in (4, 4096):
            with open(path, "r+b") as file:
                file.seek(32)
                file.write(struct.pack("<I", depth))
                file.truncate(4096 + depth * (24 + 6144))
            try:
                with SlotWriter("a") as writer:
                    writer.write(bytes(6144))
                print(os.stat(path).st_blocks * 512 >= size)
            except OutOfSharedMemory as problem:
                before = os.statvfs("/dev/shm").f_bfree
                print("is sparse" in str(problem), problem.needed > problem.free > 0, before * 4096 > 1 << 19)
        """,
        1 << 20,
    )
    assert done.stdout.split() == ["True"] * 4, done.stderr


# ---- one writer


def test_one_writer_at_a_time_and_the_next_one_goes_on(slot_id):
    with Worker("slot_writer.py", slot_id, "--count", 5, "--wait") as first:
        with pytest.raises(AlreadyExists, match=f"pid {first.process.pid}"):
            SlotWriter(slot_id)
        assert find_slot(slot_id).writer_pid == first.process.pid
        first.tell()
        assert first.read() == 5
        first.kill()
    assert find_slot(slot_id).writer_pid is None
    with SlotReader(slot_id, start="oldest") as reader, SlotWriter(slot_id) as second:
        assert second.write(numbered(5)) == 5
        assert [reader.read(5).seq for _ in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_writer_that_has_not_said_its_pid_is_named_as_well_as_can_be(slots, slot_id, monkeypatch):
    create_slot(slot_id, 64, 48, ring_depth=2)
    with open(slots / slot_id, "r+b") as holder:

        def moments():  # by the first one somebody is faster than we are
            assert lock(holder.fileno())
            yield

        monkeypatch.setattr("cuframes.framecache.writer.lock_attempts", moments)
        with pytest.raises(AlreadyExists, match=r"has a writer \(pid unknown\)"):
            SlotWriter(slot_id)
        poke(slots, slot_id, 152, 4711, code="Q")
        with pytest.raises(AlreadyExists, match=r"\(pid 4711\)"):
            SlotWriter(slot_id)


def test_a_lock_that_a_killed_writer_has_just_left_is_waited_for(slots, slot_id, monkeypatch):
    """A child that it was just starting has a copy of it, until it runs its program."""
    monkeypatch.setattr("cuframes.host.files.INHERITED_SECONDS", 30)
    create_slot(slot_id, 64, 48, ring_depth=2)
    heir = os.open(slots / slot_id, os.O_RDWR | os.O_CLOEXEC)
    assert lock(heir)
    timer = threading.Timer(0.05, os.close, (heir,))
    timer.start()
    SlotWriter(slot_id).close()
    timer.join()


@pytest.mark.parametrize("tries", [True, False])
def test_a_forked_child_neither_writes_nor_keeps_the_slot(slot_id, tries):
    writer = SlotWriter(slot_id, 64, 48, ring_depth=4)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if tries:
                writer.write(numbered(0))
        except RuntimeError:
            os.write(write_end, b"refused")
        else:
            os.write(write_end, b"written" if tries else b"begun")
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(read_end, 100) == (b"refused" if tries else b"begun")
        writer.close()
        with SlotWriter(slot_id) as after:  # the lock is not kept by the child
            assert after.write(numbered(0)) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_member_of_the_group_writes_a_slot_that_another_user_created(slots, slot_id):
    owner, member, group = 61001, 61002, 61003
    create_slot(slot_id, 64, 48, ring_depth=4, group=group)
    os.chown(slots, owner, group)
    os.chown(slots / slot_id, owner, group)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(member)
            with SlotWriter(slot_id, 64, 48, ring_depth=4) as writer:
                writer.write(numbered(0))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert find_slot(slot_id).write_cursor == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_is_not_ours_is_named_by_its_path(slots, slot_id):
    user, group = 61002, 61003
    create_slot(slot_id, 64, 48, ring_depth=4)

    def refusal(call, *arguments, **options):
        """What a user who is no more than a member of the group is told."""
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
                call(*arguments, **options)
            except PermissionError as problem:
                os.write(write_end, str(problem).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            return pipe.read().decode()

    path, semaphore = slots / slot_id, semaphore_path(slot_id)
    assert f"{slots} belongs to uid 0" in refusal(create_slot, "other", 64, 48)
    for call in (SlotReader, SlotWriter, find_slot):
        assert f"{path} belongs to another user" in refusal(call, slot_id)
    assert f"{path} belongs to uid 0" in refusal(remove_slot, slot_id)
    os.chown(path, 0, group)
    os.chmod(path, 0o660)
    assert f"{semaphore} belongs to uid 0, and this user may not use it" in refusal(SlotWriter, slot_id)
    os.chown(slots, user, group)
    assert f"{slots}/other cannot be given to group 61004" in refusal(create_slot, "other", 64, 48, group=61004)
    os.chmod(path, 0o600)
    assert f"{path} belongs to uid 0" in refusal(remove_slot, slot_id)
    assert list_slots()[0].slot_id == slot_id


@pytest.mark.parametrize("what", [OSError(errno.EMFILE, "no descriptors"), PermissionError(errno.EACCES, "no")])
def test_errors_of_the_kernel_name_the_slot(slots, slot_id, monkeypatch, what):
    create_slot(slot_id, 64, 48, ring_depth=2)
    real = os.open

    def by_descriptor(path, *arguments, **options):
        if "dir_fd" in options or str(path).startswith("/proc/self/fd"):
            raise what
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", by_descriptor)
    for call in (find_slot, SlotWriter, remove_slot):
        with pytest.raises(type(what), match=f"{slots}/{slot_id}"):
            call(slot_id)
    with pytest.raises(type(what), match=str(slots)):
        create_slot("other", 64, 48)


def test_a_killed_writer_leaves_whole_frames_only(slot_id):
    """Whatever it was doing: what readers get is whole, and the next writer goes on."""
    create_slot(slot_id, 640, 360, ring_depth=3)
    with Worker("slot_reader.py", slot_id) as reader:
        for _ in range(8):
            with Worker("slot_writer.py", slot_id, "--size", "640x360", "--depth", 3, "--delay", 0) as writer:
                time.sleep(0.02)
                writer.kill()
        with SlotWriter(slot_id) as last:
            last.write(numbered(last.frames_written, 640, 360), pts_us=last.frames_written)
        remove_slot(slot_id)
        result = reader.result()
    assert result["torn"] == result["late"] == 0
    assert result["read"] > 8


def test_frames_written_in_place(slot):
    with SlotReader(slot.slot_id) as reader:
        with slot.acquire() as frame:
            frame.planes[0][...] = numbered(9)
            frame.pts_us = 7
        assert frame.seq == 0
        with pytest.raises(ZeroDivisionError), slot.acquire() as frame:
            frame.data[...] = 1
            raise ZeroDivisionError
        with slot.acquire() as frame, pytest.raises(RuntimeError, match="another thread"):
            slot.write(numbered(1))
        assert frame.seq == 1
        first = reader.read(5)
        assert (first.data == numbered(9)).all()
        assert first.pts_us == 7
        assert reader.read(5).seq == 1
        with pytest.raises(Timeout):
            reader.read(0)


def test_a_writer_learns_that_its_slot_is_gone(slot):
    slot.write(numbered(0))
    remove_slot(slot.slot_id)
    with pytest.raises(Disconnected, match="removed"):
        slot.write(numbered(1))
    slot.close()
    with pytest.raises(ValueError, match="closed"):
        slot.write(numbered(1))


# ---- reading


@pytest.mark.parametrize(("start", "first"), [("next", 20), ("latest", 19), ("oldest", 13)])
def test_where_reading_begins(slot, start, first):
    for number in range(20):
        slot.write(numbered(number))
    with SlotReader(slot.slot_id, start=start) as reader:
        slot.write(numbered(20)) if start == "next" else None
        frame = reader.read(5)
        assert frame.seq == first
        assert frame.dropped == 0
        assert (frame.data == numbered(first)).all()


def test_what_a_slow_reader_missed_is_counted_exactly(slot):
    with SlotReader(slot.slot_id) as reader, SlotReader(slot.slot_id, mode="newest") as newest:
        for number in range(30):
            slot.write(numbered(number))
        frame = reader.read(5)
        # Frame 22 is in the entry that is being overwritten as soon as frame 30 is written.
        assert (frame.seq, frame.dropped) == (23, 23)
        assert [reader.read(5).seq for _ in range(6)] == [24, 25, 26, 27, 28, 29]
        assert reader.stats() == (7, 23, 0, 0)
        assert (newest.read(5).seq, newest.stats()) == (29, (1, 0, 29, 0))
        with pytest.raises(Timeout):
            newest.read(0)


def test_a_view_says_when_it_was_overwritten(slot):
    with SlotReader(slot.slot_id) as reader:
        for number in range(8):
            slot.write(numbered(number))
        frame = reader.read(5, copy=False)
        copied = reader.read(5)
        assert frame.seq == 1
        with pytest.raises(ValueError, match="read-only"):
            frame.data[0, 0] = 1
        assert frame.valid
        slot.write(numbered(8))  # now frame 9 may be under way, in the entry of frame 1
        assert not frame.valid
        assert copied.valid
        assert (copied.data == numbered(2)).all()
        with pytest.raises(ValueError, match="out="):
            reader.read(0, copy=False, out=bytearray(10))


def test_reading_into_the_callers_buffer(slot):
    mine = numpy.empty((48, 64, 2), numpy.uint8)
    with SlotReader(slot.slot_id) as reader:
        slot.write(numbered(0))
        with pytest.raises(ValueError, match="out has 5 bytes"):
            reader.read(5, out=bytearray(5))
        with pytest.raises((BufferError, ValueError)):
            reader.read(5, out=numpy.empty((48, 128, 2), numpy.uint8)[:, ::2])
        frame = reader.read(5, out=mine)
        assert frame.data is mine
        assert (mine == numbered(0)).all()
        assert reader.stats() == (1, 0, 0, 0)


def test_readers_see_the_end_of_a_removed_slot(slot):
    with SlotReader(slot.slot_id) as reader:
        slot.write(numbered(0))
        remove_slot(slot.slot_id)
        assert [frame.seq for frame in reader] == [0]
        with pytest.raises(Disconnected):
            reader.read(5)
    with pytest.raises(NotFound):
        SlotReader(slot.slot_id, connect_timeout=0)


def test_reconnecting_to_the_next_slot_of_the_name(slot_id):
    with SlotWriter(slot_id, 64, 48, ring_depth=4) as writer:
        reader = SlotReader(slot_id, reconnect=True)
        writer.write(numbered(0))
        assert reader.read(5).seq == 0
        remove_slot(slot_id)
    with pytest.raises(Timeout, match="no slot"):
        reader.read(0.3)
    with reader, SlotWriter(slot_id, 32, 16, "gray8", ring_depth=4) as writer:
        writer.write(numpy.full((16, 32), 5, numpy.uint8))
        frame = reader.read(5)
        assert frame.data.shape == (16, 32)
        assert (reader.format, reader.width) == ("gray8", 32)
        assert reader.stats() == (2, 0, 0, 0)


def test_a_reader_waits_for_its_slot(slot_id):
    late = threading.Timer(0.2, create_slot, (slot_id, 64, 48), {"ring_depth": 2})
    late.start()
    with SlotReader(slot_id, connect_timeout=10) as reader:
        assert reader.ring_depth == 2
    late.join()


def test_timeouts_and_closing_while_waiting(slot):
    reader = SlotReader(slot.slot_id)
    began = time.monotonic()
    with pytest.raises(Timeout):
        reader.read(0.15)
    assert time.monotonic() - began >= 0.15
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            reader.read(wrong)
    closer = threading.Timer(0.1, reader.close)
    closer.start()
    with pytest.raises(ValueError, match="closed"):
        reader.read()
    closer.join()
    assert reader.stats() == (0, 0, 0, 0)


def test_async_reading_and_polling(slot):
    async def read(count):
        with SlotReader(slot.slot_id) as reader:
            ready.set()
            return [frame.seq async for frame, _ in _zip(reader, count)]

    async def _zip(reader, count):
        taken = itertools.count(1)
        async for frame in reader:
            yield frame, None
            if next(taken) == count:
                return

    ready, enough = threading.Event(), threading.Event()

    def write():
        ready.wait(20)
        while not enough.is_set():  # a busy machine's reader misses some
            slot.write(numbered(slot.frames_written))
            time.sleep(0.001)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        seen = asyncio.run(asyncio.wait_for(read(40), 60))
    finally:
        enough.set()
        writing.join()
    assert len(seen) == 40
    assert seen == sorted(seen)
    with SlotReader(slot.slot_id) as reader:
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        with pytest.raises(Timeout):
            reader.read(0)
        last = slot.write(numbered(50))
        assert poller.poll(20_000)
        assert reader.read(0).seq == last


def test_no_descriptor_and_no_thread_is_left(slot):
    def once():
        with SlotReader(slot.slot_id) as reader:
            reader.fileno()
            slot.write(numbered(0))
            reader.read(5)

    once()
    eventually(lambda: threading.active_count() == 1)
    before = descriptors()
    for _ in range(50):
        once()
    eventually(lambda: threading.active_count() == 1)
    assert descriptors() == before


def test_a_reader_needs_no_more_than_read_access(slots, slot_id):
    if os.getuid() == 0 and subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode:
        pytest.skip("root may do everything, and user namespaces are not available here")
    create_slot(slot_id, 64, 48, ring_depth=2)
    (slots / slot_id).chmod(0o444)
    maps = subprocess.run(
        [sys.executable, "-c", f"""
from cuframes.framecache import SlotReader
reader = SlotReader({slot_id!r})
print([line.split()[1] for line in open("/proc/self/maps") if {slot_id!r} in line])
"""],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert maps.stdout.strip() == "['r--s']"


def test_damage_is_told(slots, slot):
    path = slots / slot.slot_id
    with SlotReader(slot.slot_id) as reader:
        slot.write(numbered(0))
        with open(path, "r+b") as file:
            file.seek(4096 + 16)
            file.write(struct.pack("<I", 64 * 48 * 2 + 1))
        with pytest.raises(ProtocolError, match="damaged"):
            reader.read(5)
    with SlotReader(slot.slot_id) as reader:
        os.truncate(path, 4096)
        with pytest.raises(ProtocolError, match="was truncated"):
            reader.read(5)


# ---- many processes


def test_eight_readers_get_every_frame_and_one_that_was_stopped_says_what_it_missed(slot_id):
    frames = 300
    create_slot(slot_id, 64, 48, ring_depth=16)
    readers = [Worker("slot_reader.py", slot_id, "--until", frames - 1) for _ in range(9)]
    try:
        with Worker("slot_writer.py", slot_id, "--depth", 16, "--count", frames, "--delay", 0.005, "--wait") as writer:
            writer.tell()
            eventually(lambda: find_slot(slot_id).write_cursor > 20)
            readers[8].signal(signal.SIGSTOP)
            assert writer.read() == frames
            readers[8].signal(signal.SIGCONT)
            results = [reader.result() for reader in readers]
    finally:
        for reader in readers:
            reader.__exit__()
    for result in results:
        assert result["torn"] == result["late"] == 0
        assert result["read"] + result["dropped"] == frames
        assert result["reported"] == result["dropped"]
        assert result["last"] == frames - 1
    # The ring is shorter than the time after which a reader looks by itself: one that is left asleep misses frames. On
    # a busy machine so does one that gets no processor.
    assert sum(result["read"] for result in results[:8]) > 8 * frames * 0.9
    assert results[8]["dropped"] >= frames - 16 - 200


@pytest.mark.parametrize(("depth", "copying"), [(2, True), (3, True), (3, False)])
def test_a_tiny_ring_at_full_speed_never_shows_a_torn_frame(slot_id, depth, copying):
    create_slot(slot_id, 640, 360, ring_depth=depth)
    options = ["--until", 4000] + ([] if copying else ["--without-copy"])
    readers = [
        Worker("slot_reader.py", slot_id, *options),
        Worker("slot_reader.py", slot_id, *options, "--mode", "newest"),
    ]
    try:
        arguments = ["--size", "640x360", "--depth", depth, "--delay", 0]
        with Worker("slot_writer.py", slot_id, *arguments):
            results = [reader.result(100) for reader in readers]
    finally:
        for reader in readers:
            reader.__exit__()
    for result in results:
        assert result["torn"] == result["late"] == 0
        assert result["read"] > 0
        assert result["read"] + result["dropped"] == result["last"] + 1
    assert sum(result["dropped"] for result in results) > 0


def test_a_killed_reader_disturbs_nobody(slot_id):
    with SlotWriter(slot_id, 64, 48, ring_depth=120) as writer, SlotReader(slot_id) as other:
        victims = [Worker("slot_reader.py", slot_id) for _ in range(3)]
        for number in range(60):
            writer.write(numbered(number))
            if number % 20 == 10:
                victims[number // 20].kill()
        assert [other.read(5).seq for _ in range(60)] == list(range(60))


# ---- programs in C


@pytest.fixture(scope="module")
def c_reader(tmp_path_factory):
    return compile_program("cache_reader", tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="module")
def c_writer(tmp_path_factory):
    return compile_program("cache_writer", tmp_path_factory.mktemp("c"))


def test_a_c_consumer_reads_our_slot(slots, slot_id, c_reader):
    frames = 200
    with Worker("slot_writer.py", slot_id, "--delay", 0.002, "--wait", "--count", 2 * frames) as writer:
        path, semaphore = slots / slot_id, semaphore_name(slot_id)
        readers = [Worker(c_reader, path, semaphore, frames) for _ in range(2)]
        slow = Worker(c_reader, path, semaphore, 10, 30_000)
        try:
            writer.tell()
            for reader in readers:
                result = reader.result()
                assert result["read"] == frames
            assert slow.result()["read"] == 10
        finally:
            for reader in (*readers, slow):
                reader.__exit__()


def test_a_c_consumer_of_a_short_ring_never_gets_a_torn_frame(slots, slot_id, c_reader):
    arguments = ["--size", "640x360", "--depth", 3, "--delay", 0]
    with Worker("slot_writer.py", slot_id, *arguments):
        with Worker(c_reader, slots / slot_id, semaphore_name(slot_id), 500) as reader:
            assert reader.result(100)["read"] == 500


def test_the_semaphore_is_a_hint_and_does_not_climb(slot):
    semaphore = posix_ipc.Semaphore(semaphore_name(slot.slot_id))
    try:
        with SlotReader(slot.slot_id) as reader:
            for number in range(1000):
                slot.write(numbered(number))
                reader.read(5)
            assert 1 <= semaphore.value <= 4  # and our reader took none
        while semaphore.value:
            semaphore.acquire(0)
        slot.write(numbered(0))
        assert semaphore.value == 1
    finally:
        semaphore.close()


def test_each_frame_wakes_one_of_those_who_wait_in_the_c_library(slot):
    """We post the semaphore ourselves; who waits on it does so in glibc's sem_wait."""
    waiting = "import posix_ipc, sys; posix_ipc.Semaphore(sys.argv[1]).acquire()"
    command = [sys.executable, "-c", waiting, semaphore_name(slot.slot_id)]
    path = semaphore_path(slot.slot_id)
    children = [subprocess.Popen(command) for _ in range(3)]
    try:
        for left in (3, 2, 1):
            eventually(lambda left=left: struct.unpack_from("<II", path.read_bytes()) == (0, left), 30)
            slot.write(numbered(0))
            eventually(lambda left=left: [child.poll() for child in children].count(0) == 4 - left, 30)
        assert struct.unpack_from("<II", path.read_bytes()) == (0, 0)
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("how", ["cut off", "and back", "overwritten", "of an unknown kind"])
def test_a_semaphore_that_a_neighbour_ruins_ends_no_writer(slots, slot_id, how):
    """Members of the slot's group may write it. The C library dies of what they can put there."""
    ruin = {
        "cut off": "os.truncate(path, 0)",
        "and back": "os.truncate(path, 0), os.truncate(path, 32)",
        "overwritten": "path.write_bytes(b'\\xff' * 32)",
        "of an unknown kind": "path.write_bytes(struct.pack('<IIII', 0, 5, 77, 0) + bytes(16))",
    }[how]
    code = f"""
import os, struct
from cuframes.framecache import SlotReader, SlotWriter
from cuframes.framecache.slots import semaphore_path
path = semaphore_path({slot_id!r})
with SlotWriter({slot_id!r}, 64, 48, ring_depth=8) as writer, SlotReader({slot_id!r}) as reader:
    writer.write(bytes(6144))
    {ruin}
    for _ in range(6):
        writer.write(bytes(6144))
    print([reader.read(20).seq for _ in range(7)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[0, 1, 2, 3, 4, 5, 6]"), done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{semaphore_path(slot_id)} was truncated or overwritten" in done.stderr


@pytest.mark.parametrize("filled", ["by a copy", "in place"])
def test_a_semaphore_that_a_cleaner_removes_is_made_again(slot, filled, caplog):
    def write():
        if filled == "by a copy":
            slot.write(numbered(0))
        else:
            with slot.acquire() as frame:
                frame.data[...] = 0

    path = semaphore_path(slot.slot_id)
    before = posix_ipc.Semaphore(semaphore_name(slot.slot_id))
    mode = path.stat().st_mode
    path.unlink()
    eventually(lambda: write() or path.exists())
    assert path.stat().st_mode == mode
    after = posix_ipc.Semaphore(semaphore_name(slot.slot_id))
    # Programs that waited before wait on the old one still.
    for semaphore in (before, after):
        while semaphore.value:
            semaphore.acquire(0)
    write()
    assert (before.value, after.value) == (1, 1)
    before.close()
    after.close()
    assert caplog.messages == [f"{path} was removed; it is there again"]


def test_a_semaphore_that_cannot_be_made_again_is_said_once(slot, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("cuframes.framecache.writer.LOOK_SECONDS", 0)
    slot._next_look = 0
    path = semaphore_path(slot.slot_id)
    path.unlink()
    path.symlink_to(tmp_path)
    for _ in range(5):
        slot.write(numbered(0))
    path.unlink()
    assert caplog.messages == [f"{path} was removed, and cannot be made again: {path} is not a semaphore; remove it"]


@pytest.mark.parametrize("depth", [120, 4])
def test_we_read_what_a_c_writer_writes(slots, slot_id, c_writer, depth):
    """It neither wakes a futex nor holds a lock, and its semaphore is left to others."""
    slots.mkdir()
    frames = 150
    with Worker(c_writer, slots / slot_id, semaphore_name(slot_id), 64, 48, depth, frames, 3000) as writer:
        readers = [Worker("slot_reader.py", slot_id, "--until", frames - 1) for _ in range(3)]
        try:
            writer.tell()
            assert writer.read() == "done"
            results = [reader.result() for reader in readers]
        finally:
            for reader in readers:
                reader.__exit__()
        found = find_slot(slot_id)
        assert (found.write_cursor, found.writer_pid, found.pixel_format) == (frames, None, "uyvy422")
        assert found.fps is not None
        semaphore = posix_ipc.Semaphore(semaphore_name(slot_id))
        assert semaphore.value == frames
        semaphore.close()
    for result in results:
        assert result["torn"] == result["late"] == 0
        assert result["read"] + result["dropped"] == frames
        assert result["read"] > frames / 3
    remove_slot(slot_id)


def write_raw(file, number, cursor):
    """What a writer in C does that knows nothing of us: an entry of a slot of depth 6, then the cursor."""
    file.seek(4096 + number % 6 * (24 + 64 * 48 * 2))
    file.write(ENTRY.pack(number, 0, 64 * 48 * 2, 0) + numbered(number).tobytes())
    file.flush()
    file.seek(40)
    file.write(struct.pack("<Q", cursor))
    file.flush()


def test_a_writer_in_c_after_ours_was_killed(slots, slot_id):
    """Ours leaves its flag for the futex behind; the next one does not know it. It is read all the same, and more often
    than a reader that sleeps looks whether its writer lives.
    """
    with Worker("slot_writer.py", slot_id, "--depth", 6, "--wait") as ours:
        ours.kill()
    path = slots / slot_id
    assert struct.unpack_from("<I", path.read_bytes(), 36)[0] == 1
    with Worker("slot_reader.py", slot_id, "--until", 99) as reader, open(path, "r+b") as file:
        for number in range(100):
            write_raw(file, number, number + 1)
            time.sleep(0.005)
        result = reader.result()
    assert result["torn"] == 0
    assert result["read"] > 30  # who looks every 0.1 s finds 5 of each 20
    assert find_slot(slot_id).fps is None  # it does not say when it captured them


def test_a_writer_that_begins_the_slot_anew_is_followed(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=6)
    with SlotReader(slot_id) as reader, open(slots / slot_id, "r+b") as file:
        for number in range(9):
            write_raw(file, number, number + 1)
        assert [reader.read(5).seq for _ in range(5)] == [4, 5, 6, 7, 8]
        write_raw(file, 5, 0)
        with pytest.raises(Timeout):
            reader.read(0)
        write_raw(file, 0, 1)
        frame = reader.read(5)
        assert (frame.seq, frame.dropped) == (0, 0)
        assert reader.stats() == (6, 4, 0, 0)


def test_a_slot_goes_by_the_name_of_its_file(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    with open(slots / slot_id, "r+b") as file:
        file.seek(88)
        file.write(b"another name\0")
    assert find_slot(slot_id).slot_id == slot_id
    assert [slot.slot_id for slot in list_slots()] == [slot_id]


def test_another_version_of_a_c_writer_is_refused_by_name(slots, slot_id, c_writer):
    slots.mkdir()
    with Worker(c_writer, slots / slot_id, semaphore_name(slot_id), 64, 48, 4, 1, 0, 2):
        with pytest.raises(ProtocolError, match="version 2 of the framecache format"):
            SlotReader(slot_id)
    (slots / slot_id).unlink()
    posix_ipc.unlink_semaphore(semaphore_name(slot_id))


def test_framecache_is_there_after_importing_cuframes_and_numpy_is_not():
    code = "import sys, cuframes; assert 'numpy' not in sys.modules; print(cuframes.framecache.SlotWriter.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "SlotWriter"
    assert "framecache" in dir(cuframes)


# ---- endings


def raw(slots, slot_id):
    return (slots / slot_id).read_bytes()


def cursor_of(slots, slot_id):
    return struct.unpack_from("<Q", raw(slots, slot_id), 40)[0]


def in_thread(call):
    """What `call` raised in another thread, or None."""
    raised = []

    def run():
        try:
            call()
        except BaseException as problem:
            raised.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_leaving_a_frame_that_was_not_entered_or_was_left_before_changes_nothing(slots, slot):
    for number in range(5):
        slot.write(numbered(number))
    before = raw(slots, slot.slot_id)
    never = slot.acquire()
    with pytest.raises(ValueError, match="not being written"):
        never.__exit__(None, None, None)
    assert isinstance(in_thread(lambda: never.__exit__(None, None, None)), ValueError)
    never.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert raw(slots, slot.slot_id) == before

    with slot.acquire() as frame:
        frame.data[...] = 1
    assert frame.seq == 5
    with pytest.raises(ValueError, match="not being written"):
        frame.__exit__(None, None, None)
    assert cursor_of(slots, slot.slot_id) == 6
    assert slot.write(numbered(6)) == 6

    entered = slot.acquire().__enter__()
    assert in_thread(lambda: entered.__exit__(None, None, None)) is None
    assert entered.seq == 7


def test_a_frame_whose_times_are_none_is_given_up(slot):
    with pytest.raises(ValueError, match="microseconds"), slot.acquire() as frame:
        frame.pts_us = -1
    assert slot.write(numbered(0)) == 0


def test_close_inside_a_frame_is_final_and_the_next_writer_has_the_slot_to_itself(slots, slot):
    for number in range(5):
        slot.write(numbered(number), pts_us=number)
    frame = slot.acquire()
    data = frame.__enter__().data
    slot.close()
    with SlotWriter(slot.slot_id) as after:
        for number in range(5, 20):
            after.write(numbered(number), pts_us=number)
        before = raw(slots, slot.slot_id)
        data[...] = 255  # into memory that is nobody else's
        with pytest.raises(ValueError, match="closed"):
            frame.__exit__(None, None, None)
        with pytest.raises(ValueError, match="closed"):
            slot.acquire()
        with pytest.raises(ValueError, match="closed"):
            slot.drop(1)
        data[...] = 254
        assert raw(slots, slot.slot_id) == before
        assert after.write(numbered(20)) == 20


def test_close_from_a_signal_handler_inside_a_frame(slots, slot):
    before = signal.signal(signal.SIGUSR1, lambda *_: slot.close())
    try:
        with pytest.raises(ValueError, match="closed"), slot.acquire():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    SlotWriter(slot.slot_id).close()


def test_close_waits_for_a_write_of_another_thread(slots, slot_id):
    """When it returns, the slot is free for the next writer, and nobody writes into it any more."""
    frame = numbered(1, 1920, 1080)
    refused = []
    for _ in range(15):
        writer = SlotWriter(slot_id, 1920, 1080, ring_depth=2)

        def write(writer=writer):
            while True:
                try:
                    writer.write(frame)
                except RuntimeError:  # the other thread is writing
                    pass
                except ValueError:
                    refused.append(1)
                    return

        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda writer=writer: writer.frames_written > 1)
        writer.close()
        with SlotWriter(slot_id) as after:
            assert after.frames_written == writer.frames_written == cursor_of(slots, slot_id)
        remove_slot(slot_id)
        for thread in threads:
            thread.join(20)
    assert len(refused) == 30


def test_two_threads_close_once(slot_id):
    SlotWriter(slot_id, 64, 48, ring_depth=2).close()
    before = descriptors()
    for _ in range(50):
        writer = SlotWriter(slot_id)
        threads = [threading.Thread(target=writer.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert descriptors() == before


def test_a_forked_child_does_not_publish_the_frame_that_its_parent_fills(slots, slot):
    with slot.acquire() as frame:
        child = os.fork()
        if child == 0:
            try:
                frame.__exit__(None, None, None)
            except RuntimeError:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert cursor_of(slots, slot.slot_id) == 0
    assert frame.seq == 0


def test_a_frame_that_dies_in_a_cycle_is_given_up(slot):
    frame = slot.acquire()
    cycle = [frame]
    frame.pts_us = cycle
    frame.__enter__()
    del frame
    cycle.append(cycle)
    cycle[0].pts_us = None
    del cycle
    gc.collect()
    assert slot.write(numbered(0)) == 0


STEPS = "attach info compare lock_owner Mapping open_semaphore layout_of CacheWriter".split()  # noqa: SIM905


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_constructor_that_fails_leaves_nothing(slots, slot_id, monkeypatch, step, is_there):
    import cuframes.framecache.writer as module

    if is_there:
        create_slot(slot_id, 64, 48, ring_depth=2)
    elif step == "lock_owner":
        pytest.skip("what is created is locked while it has no name")
    files = sorted(path.name for path in slots.iterdir()) if slots.exists() else []
    semaphores = sorted(path.name for path in Path("/dev/shm").glob(f"sem.framecache-{slot_id}*"))

    def fail(*_, **__):
        raise MemoryError(step)

    def attempt():
        with pytest.raises(MemoryError, match=step):
            SlotWriter(slot_id, 64, 48, ring_depth=2)
        gc.collect()

    with monkeypatch.context() as patched:
        patched.setattr(module, step, fail)
        attempt()
        before = descriptors()
        attempt()
        assert descriptors() == before
    assert sorted(path.name for path in slots.iterdir()) == files
    assert sorted(path.name for path in Path("/dev/shm").glob(f"sem.framecache-{slot_id}*")) == semaphores
    SlotWriter(slot_id, 64, 48, ring_depth=2).close()


def test_creating_that_fails_late_leaves_nothing(slots, slot_id, monkeypatch):
    import cuframes.framecache.slots as module

    for step in ("reserve", "format_slot", "ensure_semaphore"):

        def fail(*_, step=step, **__):
            raise MemoryError(step)

        with monkeypatch.context() as patched:
            patched.setattr(module, step, fail)
            before = descriptors()
            for call in (create_slot, SlotWriter):
                with pytest.raises(MemoryError, match=step):
                    call(slot_id, 64, 48, ring_depth=2)
            assert descriptors() == before
        assert not list(slots.iterdir())


# ---- headers that somebody else wrote


def poke(slots, slot_id, at, *values, code="I"):
    with open(slots / slot_id, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(f"<{len(values)}{code}", *values))


@pytest.mark.parametrize("size", [(2048, 2048), (32, 32), (16, 17)])
def test_a_picture_larger_than_its_entry_is_refused_before_the_first_byte(slots, slot_id, size):
    create_slot(slot_id, 16, 16, "gray8", ring_depth=2)
    poke(slots, slot_id, 8, *size)
    before = raw(slots, slot_id)
    with pytest.raises(ProtocolError, match=r"damaged.*room for 256"):
        SlotWriter(slot_id)
    assert raw(slots, slot_id) == before


def test_an_entry_larger_than_its_picture_is_written(slots, slot_id):
    """C writers may round the size of a frame up."""
    create_slot(slot_id, 16, 16, "gray8", ring_depth=2)
    poke(slots, slot_id, 8, 8, 8)
    with SlotWriter(slot_id) as writer, SlotReader(slot_id) as reader:
        writer.write(numpy.full((8, 8), 7, numpy.uint8))
        assert reader.read(5).data.shape == (8, 8)


def test_numbers_whose_product_is_beyond_64_bits_are_no_slot(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    os.truncate(slots / slot_id, 200 << 30)  # sparse
    poke(slots, slot_id, 28, 2**32 - 1, 2**32 - 1)
    for attempt in (SlotReader, SlotWriter, find_slot):
        with pytest.raises(ProtocolError, match="not a framecache slot"):
            attempt(slot_id)
    assert list_slots() == []


def test_a_header_that_changes_under_a_reader_ends_its_report_and_not_the_process(slots, slot):
    slot.write(numbered(0))
    with SlotReader(slot.slot_id, start="oldest") as reader:
        poke(slots, slot.slot_id, 28, 2**32 - 1, 2**32 - 1)
        with pytest.raises(ProtocolError):
            reader.info()
        assert (reader.read(5).data == numbered(0)).all()


def test_absurd_figures_are_shown_as_they_are(slots, slot):
    for number in range(4):
        slot.write(numbered(number), wall_us=number)
    poke(slots, slot.slot_id, 16, 2**32 - 1, 0)
    poke(slots, slot.slot_id, 40, 2**64 - 1, 2**64 - 1, code="Q")
    with open(slots / slot.slot_id, "r+b") as file:
        file.seek(56)
        file.write(b"\x1b[2Jx\ncuframes: ok\xff\x9b")
    found = find_slot(slot.slot_id)
    assert (found.fps_num, found.fps_den) == (2**32 - 1, 0)
    assert found.write_cursor == found.dropped_frames == 2**64 - 1
    assert found.source_type.isprintable()
    assert list_slots() == [found]


def test_a_clock_that_is_set_back_brings_no_dead_slot_to_life(slots, slot_id):
    """Times of capture that are still to come do not say that frames are coming."""
    with SlotWriter(slot_id, 64, 48, ring_depth=8) as writer:
        now = time.time_ns() // 1000
        for number in range(8):
            writer.write(numbered(number), wall_us=now + 3_600_000_000 + number * 40_000)
        dead = find_slot(slot_id)
        assert (dead.fps, dead.last_frame_age_s) == (None, None)
        # A card whose clock is a little ahead of ours is no sign of that.
        writer.write(numbered(8), wall_us=time.time_ns() // 1000 + 100_000)
        assert find_slot(slot_id).last_frame_age_s is not None


def test_bytes_for_an_unknown_format_have_no_gaps(slots, slot_id):
    """Also where an exporter grants a request for contiguous bytes that it cannot fulfil."""
    create_slot(slot_id, 60, 48, "gray8", ring_depth=4)
    poke(slots, slot_id, 24, 99)
    image = (numpy.arange(60 * 48) % 251).astype(numpy.uint8).reshape(48, 60)
    with (
        cuframes.Publisher(slot_id, 60, 48, "gray8", memory="host") as publisher,
        cuframes.Subscriber(slot_id) as subscriber,
        SlotWriter(slot_id) as writer,
        SlotReader(slot_id) as reader,
    ):
        publisher.publish(image)
        frame = subscriber.next(5)
        with pytest.raises(BufferError):
            writer.write(frame.planes[0])
        with pytest.raises(BufferError, match="ascontiguousarray"):
            writer.write(image[:, ::2])
        with pytest.raises(BufferError):
            writer.write(numpy.asfortranarray(image))
        writer.write(numpy.ascontiguousarray(frame.planes[0]))
        assert reader.read(5).data.tobytes() == image.tobytes()
        # ctypes leaves strides out of a buffer, whatever is asked for.
        writer.write((ctypes.c_ubyte * 5)(*b"hello"))
        assert reader.read(5).data.tobytes() == b"hello"


def test_ctypes_bytes_for_a_known_format(slot):
    with SlotReader(slot.slot_id) as reader:
        slot.write((ctypes.c_ubyte * 5)(*b"hello"))
        assert reader.read(5).data.tobytes() == b"hello"


# ---- neighbours


def test_nothing_in_the_directory_stops_those_who_look(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    whole = raw(slots, slot_id)
    (slots / "huge").write_bytes(whole)
    os.truncate(slots / "huge", (1 << 63) - 4096)
    (slots / "zeros").touch()
    os.truncate(slots / "zeros", (1 << 63) - 4096)
    os.mkfifo(slots / "pipe")
    (slots / "dangling").symlink_to("/nowhere")
    (slots / "folder").mkdir()
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(slots, os.O_RDONLY)
    server.bind(f"/proc/self/fd/{folder}/socket")
    leased = os.open(slots / "leased", os.O_RDWR | os.O_CREAT)
    os.write(leased, whole)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # whoever opens it has to wait, or to be told
    try:
        assert [slot.slot_id for slot in list_slots()] == ["huge", slot_id]
        for name in ("zeros", "pipe", "dangling", "folder", "socket", "leased"):
            for attempt in (find_slot, SlotReader, SlotWriter):
                with pytest.raises(ProtocolError):
                    attempt(name)
        with SlotWriter("huge") as writer, SlotReader("huge") as reader:
            writer.write(numbered(1))
            assert (reader.read(5).data == numbered(1)).all()
        for name in ("huge", "zeros"):
            remove_slot(name)
        for name, what in {
            "pipe": "FIFO",
            "dangling": "link",
            "socket": "socket",
            "folder": "directory",
            "leased": "leased",
        }.items():
            with pytest.raises(NotFound, match=rf"{slots / name} is a.* {what}.*by hand"):
                remove_slot(name)
            assert os.path.lexists(slots / name)
    finally:
        os.close(leased)
        os.close(folder)
        server.close()
        signal.signal(signal.SIGIO, before)


def mode_of(path):
    return os.stat(path).st_mode & 0o7777


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_modes_are_as_promised_under_any_umask(slots, slot_id, umask):
    before = os.umask(umask)
    try:
        create_slot(slot_id, 64, 48, ring_depth=2)
        create_slot(f"{slot_id}g", 64, 48, ring_depth=2, group=os.getgid())
        with SlotWriter(slot_id) as writer:
            writer.write(numbered(0))
    finally:
        os.umask(before)
    assert mode_of(slots_dir()) == 0o755
    for name, mode in ((slot_id, 0o600), (f"{slot_id}g", 0o660)):
        assert mode_of(slots / name) == mode
        assert mode_of(f"/dev/shm/sem.{semaphore_name(name)[1:]}") == mode


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_strangers_semaphore_is_refused(slots, slot_id):
    path = Path(f"/dev/shm/sem.{semaphore_name(slot_id)[1:]}")
    stranger, owner = 61001, 61002

    def squat(uid, mode=0o666):
        path.unlink(missing_ok=True)
        posix_ipc.Semaphore(semaphore_name(slot_id), posix_ipc.O_CREX, mode=0o600).close()
        os.chown(path, uid, uid)
        os.chmod(path, mode)

    squat(stranger)
    for call in (create_slot, SlotWriter):
        before = descriptors()
        with pytest.raises(PermissionError, match=f"belongs to uid {stranger}"):
            call(slot_id, 64, 48, ring_depth=2)
        assert descriptors() == before
        assert not list(slots.iterdir())
    path.unlink()
    create_slot(slot_id, 64, 48, ring_depth=2)
    os.chown(slots / slot_id, owner, owner)
    squat(stranger)
    with pytest.raises(PermissionError, match=f"belongs to uid {stranger}"):
        SlotWriter(slot_id)
    squat(owner)
    SlotWriter(slot_id).close()
    assert mode_of(path) == 0o600
    squat(0)
    SlotWriter(slot_id).close()
    assert path.stat().st_uid == owner
    # Strangers cannot keep a slot from being removed.
    squat(stranger)
    remove_slot(slot_id)
    assert not list(slots.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_strangers_slot_is_not_believed(slots, slot_id, monkeypatch):
    import cuframes.framecache.slots as module

    stranger = 61001
    create_slot(slot_id, 64, 48, ring_depth=2)

    def works():
        SlotReader(slot_id, connect_timeout=0).close()
        SlotWriter(slot_id).close()

    def is_refused():
        before = descriptors()
        for call in (lambda: SlotReader(slot_id, connect_timeout=0), lambda: SlotWriter(slot_id)):
            with pytest.raises(PermissionError, match=f"belongs to uid {stranger}.*group="):
                call()
        assert descriptors() == before
        assert slot_id in [slot.slot_id for slot in list_slots()]

    os.chown(slots / slot_id, stranger, stranger)
    works()  # only root can have put it there
    slots.chmod(0o1777)
    is_refused()
    os.chown(slots / slot_id, stranger, os.getgid())
    is_refused()
    os.chmod(slots / slot_id, 0o660)
    works()  # it is shared with us
    # A directory that anybody could have made.
    os.chown(slots, stranger, stranger)
    os.chown(slots / slot_id, stranger, stranger)
    slots.chmod(0o755)
    works()  # it is named
    monkeypatch.setattr(module, "slots_dir", lambda: slots)
    monkeypatch.delenv("CUFRAMES_FRAMECACHE_DIR")
    is_refused()
    os.chown(slots / slot_id, stranger, os.getgid())
    works()


def test_what_is_no_semaphore_is_refused(slots, slot_id, tmp_path):
    path = Path(f"/dev/shm/sem.{semaphore_name(slot_id)[1:]}")
    SlotWriter(slot_id, 64, 48, ring_depth=2).close()
    victim = tmp_path / "victim"
    victim.write_text("x" * 100)
    for make in (path.touch, lambda: os.mkfifo(path), lambda: path.symlink_to(victim), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(PermissionError, match="is not a semaphore"):
            SlotWriter(slot_id)
        if path.is_dir():
            path.rmdir()
            path.touch()
    assert victim.read_text() == "x" * 100
    path.unlink()
    SlotWriter(slot_id).close()
    assert path.exists()


def test_a_slot_that_is_there_needs_no_room(slot_id, monkeypatch):
    """Creating a semaphore takes room for a moment, even where there is one already."""
    create_slot(slot_id, 64, 48, ring_depth=4)

    def full(name, mode):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("cuframes.framecache.slots.create_semaphore", full)
    with SlotWriter(slot_id) as writer:
        assert writer.write(numbered(0)) == 0


def test_a_reader_speaks_as_the_others_do(slots, slot_id):
    """next, lost, skipped, pts_ns, shape, arrays; read, dropped and pts_us are the format's own words for the same."""
    with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer:
        with SlotReader(slot_id) as reader, SlotReader(slot_id, mode="newest") as newest:
            for number in range(6):
                writer.write(numpy.full((48, 64), number, numpy.uint8), pts_us=10 * number)
            frame = reader.next(5)
            assert (frame.seq, frame.lost, frame.skipped, frame.dropped, frame.pts_ns) == (3, 3, 0, 3, 30_000)
            assert (frame.shape, frame.width, frame.height, frame.format) == ((48, 64), 64, 48, "gray8")
            assert (reader.stats().received, reader.stats().lost, reader.stats().skipped) == (1, 3, 0)
            assert (reader.stats().read, reader.stats().dropped) == (1, 3)
            frame = newest.next(5, copy=False)
            assert (frame.seq, frame.lost, frame.skipped, frame.dropped) == (5, 0, 5, 5)
            assert (newest.stats().received, newest.stats().lost, newest.stats().skipped) == (1, 0, 5)
            for array in (numpy.asarray(frame), numpy.from_dlpack(frame), numpy.asarray(memoryview(frame))):
                assert (array == 5).all()
                assert array.__array_interface__["data"] == frame.data.__array_interface__["data"]
    remove_slot(slot_id)


def test_a_writer_that_runs_out_of_descriptors_leaves_no_slot(slots, slot_id):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    spare = [os.open("/", os.O_RDONLY) for _ in range(used)]  # no holes below the limit
    try:
        for room in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1 + room, limits[1]))
            try:
                SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4).close()
            except OSError:
                assert not (slots / slot_id).exists()
            else:
                break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            os.close(fd)
    if (slots / slot_id).exists():
        remove_slot(slot_id)


@pytest.mark.parametrize("format", ["gray8", "nv12", "gray16"])
def test_a_frame_in_the_callers_buffer_is_a_picture_all_the_same(slots, slot_id, format):
    shape = FrameShape(FORMATS[format], 64, 48, align=1)
    with SlotWriter(slot_id, 64, 48, format, ring_depth=4) as writer:
        with SlotReader(slot_id) as reader:
            size = shape.nbytes
            sent = bytes(range(256)) * (size // 256)
            arrays = numpy.zeros(size // 4, "f4"), numpy.zeros(size, "u1")
            for out in (bytearray(size), memoryview(bytearray(size)), *arrays):
                writer.write(sent)
                frame = reader.next(5, out=out)
                assert frame.data is out
                assert frame.shape == shape.array_shape
                assert len(frame.planes) == len(shape.planes)
                assert bytes(numpy.asarray(frame)) == bytes(memoryview(out).cast("B")) == sent
                again = pickle.loads(pickle.dumps(frame))
                assert (numpy.asarray(again) == numpy.asarray(frame)).all()
                assert f"{size} bytes" in repr(frame)
                assert numpy.from_dlpack(frame).shape == shape.array_shape
    remove_slot(slot_id)


def test_what_a_copied_frame_says(slots, slot_id):
    with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=4) as writer, SlotReader(slot_id, mode="newest") as reader:
        for _ in range(3):
            writer.write(bytes(64 * 48), pts_us=2**63)
        frame = reader.next(5)
        assert frame.pts_ns == 2**63 * 1000
        for same in (frame, pickle.loads(pickle.dumps(frame)), copy.copy(frame)):
            assert (same.lost, same.skipped, same.pts_us, repr(same)) == (0, 2, 2**63, repr(frame))
    remove_slot(slot_id)


def test_two_who_remove_a_slot_at_once(slots, slot_id):
    """One of them did; to the others there is none."""
    problems = []

    def remove():
        try:
            remove_slot(slot_id)
        except NotFound:
            pass
        except Exception as problem:
            problems.append(problem)

    for _ in range(60):
        create_slot(slot_id, 64, 48, "gray8", ring_depth=4)
        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
