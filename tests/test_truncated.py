"""Shared memory that somebody cuts off while it is in use ends the call, not the process."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from harness import Worker, compile_program

import cuframes
from cuframes import (
    CuframesError,
    Disconnected,
    PacketPublisher,
    ProtocolError,
    Publisher,
    SegmentTruncated,
    Subscriber,
    framecache,
)
from cuframes._native.control import layout_rows
from cuframes.framecache import SlotReader, SlotWriter

SHM = Path("/dev/shm")
CUT = "SegmentTruncated"


def cut(path, how="to nothing"):
    size = path.stat().st_size
    os.truncate(path, size // 8192 * 4096 if how == "to half" else 0)
    if how == "and back":
        os.truncate(path, size)


def stopped(victim):
    """Its result, at the latest when it is told to stop."""
    with contextlib.suppress(BrokenPipeError):
        victim.tell()
    return victim.result()


def script(code, **environment):
    """A Python program, run: (return code, standard output, standard error)."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_it_is_a_protocol_error():
    assert issubclass(SegmentTruncated, ProtocolError)
    assert "was truncated" in str(SegmentTruncated())


# ---- frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["publisher", "acquiring"])
def test_a_publisher_says_so_and_gives_everything_back(key, role):
    with Worker("victim.py", role, key) as victim, Subscriber(key) as subscriber:
        subscriber.next(10).release()
        cut(SHM / f"cuframes-{key}")
        result = victim.result()
        assert result["failed"] == result["again"] == CUT
        assert result["left"] == 0
        with pytest.raises((SegmentTruncated, Disconnected)):
            while True:
                subscriber.next(10).release()
    assert not (SHM / f"cuframes-{key}").exists()
    with Publisher(key, 64, 48, "gray8"), Subscriber(key):  # the key is free, and its next segment is whole
        pass


def test_a_publisher_whose_session_thread_touches_it_first_goes_on_until_it_publishes(key):
    with Worker("victim.py", "idle", key) as victim:
        with Subscriber(key):
            cut(SHM / f"cuframes-{key}")
            with pytest.raises(CuframesError):
                Subscriber(key, name="second", connect_timeout=0)
        result = stopped(victim)
        assert result == {"again": CUT, "threads": 2, "left": 0}


@pytest.mark.parametrize("wait", ["block", "spin", "predictive"])
def test_a_subscriber_says_so_and_what_it_holds_stays(key, wait):
    with Worker("victim.py", "idle", key), Worker("victim.py", "subscriber", key, "--wait", wait) as victim:
        cut(SHM / f"cuframes-{key}")
        result = victim.result()
        assert result == {
            "failed": CUT, "again": CUT, "pixels": 7, "released": None, "valid": False, "received": True, "left": 0,
        }  # fmt: skip
    (SHM / f"cuframes-{key}").unlink()  # its publisher was killed


def test_a_subscriber_that_never_waits_says_so(key):
    with Worker("victim.py", "idle", key) as publisher, Worker("victim.py", "polling", key) as victim:
        cut(SHM / f"cuframes-{key}")
        assert victim.result() == {"failed": CUT, "again": CUT, "left": 0}
        stopped(publisher)


def test_wait_any_names_the_one_that_was_cut_and_serves_the_others(key):
    with Worker("victim.py", "idle", key) as publisher, Worker("victim.py", "any_of_two", key) as victim:
        cut(SHM / f"cuframes-{key}")
        result = victim.result()
        assert result == {"failed": CUT, "taken": True, "later": True, "alone": True, "left": 0}
        stopped(publisher)


def test_a_reconnecting_subscriber_joins_the_next_publisher(key):
    with Publisher(key, 64, 48, "gray8") as publisher, Subscriber(key, reconnect=True) as subscriber:
        os.truncate(f"/dev/shm/cuframes-{key}", 0)
        with pytest.raises(SegmentTruncated):
            subscriber.next(5)
        publisher.close()
        with Publisher(key, 64, 48, "gray8") as publisher:
            timer = threading.Timer(0.2, publisher.publish, (bytes(48 * 64),))
            timer.start()
            assert subscriber.next(20).frame_no == 1
            timer.join()


@pytest.mark.parametrize("how", ["to half", "and back"])
def test_who_touches_no_missing_page_works_on(key, how):
    with Worker("victim.py", "publisher", key) as publisher, Worker("victim.py", "polling", key) as subscriber:
        cut(SHM / f"cuframes-{key}", how)
        time.sleep(0.3)
        results = []
        for victim in (subscriber, publisher):
            results.append(stopped(victim))
        assert all(result["failed"] in (None, CUT, "Disconnected") for result in results)
        assert all(result["left"] == 0 for result in results)


def test_cut_again_and_again_under_everybody(key):
    """What is cut and grows again all the time: nobody dies, whatever else is right."""
    segment = SHM / f"cuframes-{key}"
    with Worker("victim.py", "publisher", key) as publisher:
        with Worker("victim.py", "polling", key) as first, Worker("victim.py", "polling", key) as second:
            for _ in range(200):
                if segment.exists():
                    cut(segment, "and back")
                time.sleep(0.001)
            for victim in (first, second, publisher):
                assert stopped(victim)["left"] == 0


# ---- packets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["to nothing", "to half"])
def test_a_packet_publisher_says_so(key, how):
    with Worker("victim.py", "packets_writer", key) as victim:
        cut(SHM / f"cuframes-{key}-packets", how)
        assert victim.result() == {"failed": CUT, "again": CUT, "left": 0}


@pytest.mark.parametrize("wait", ["block", "spin"])
@pytest.mark.parametrize("how", ["to nothing", "to half"])
def test_a_packet_reader_says_so_and_delivers_no_zeros(key, how, wait):
    with Worker("victim.py", "packets_writer", key) as writer:
        with Worker("victim.py", "packets_reader", key, "--wait", wait) as victim:
            cut(SHM / f"cuframes-{key}-packets", how)
            result = victim.result()
            assert result["failed"] in (CUT, "Disconnected")  # the writer may have closed first
            assert result["bad"] == result["left"] == 0
        assert writer.result()["left"] == 0


def test_a_packet_reader_that_sleeps_says_so(key):
    with PacketPublisher(key, "h264") as publisher:
        publisher.publish_packet(b"x", pts_ns=0, keyframe=True)
        with Worker("victim.py", "packets_reader", key, "--wait", "block") as victim:
            cut(SHM / f"cuframes-{key}-packets", "to half")
            result = victim.result()
            assert result["failed"] == CUT
            assert result["again"] == [CUT, CUT] or result["again"] == [CUT, "NoCodecParameters"]


def test_a_view_of_a_packet_shows_zeros_and_is_not_valid(key):
    with Worker("victim.py", "packets_writer", key) as writer, Worker("victim.py", "packets_view", key) as victim:
        cut(SHM / f"cuframes-{key}-packets")
        writer.result()
        result = stopped(victim)
        assert result == {"before": True, "zeros": True, "valid": False, "again": CUT, "child": 0, "left": 0}


def test_readers_of_a_group_cannot_cut_the_packet_ring(key):
    with Publisher(key, 64, 48, "gray8", group=os.getgid()) as publisher:
        publisher.enable_packets("h264")
        assert (SHM / f"cuframes-{key}").stat().st_mode & 0o777 == 0o660
        assert (SHM / f"cuframes-{key}-packets").stat().st_mode & 0o777 == 0o640


# ---- slots -------------------------------------------------------------------------------------------------------


def test_a_slot_writer_says_so(slots, slot_id):
    with Worker("victim.py", "slot_writer", slot_id) as victim:
        cut(slots / slot_id)
        assert victim.result() == {"failed": CUT, "again": CUT, "drop": CUT, "left": 0}
    framecache.remove_slot(slot_id)


@pytest.mark.parametrize("how", ["to nothing", "to half"])
def test_a_slot_reader_says_so_and_delivers_no_zeros(slots, slot_id, how):
    with Worker("victim.py", "slot_writer", slot_id), Worker("victim.py", "slot_reader", slot_id) as victim:
        cut(slots / slot_id, how)
        result = victim.result()
        assert result["failed"] == result["again"] == CUT
        assert result["bad"] == result["left"] == 0
    framecache.remove_slot(slot_id)


def test_a_slot_that_was_seen_to_be_cut_off_stays_so(slots, slot_id):
    """Also for a reader that has touched nothing of what is missing: what lies before the cut is there all the same."""
    with SlotWriter(slot_id, 64, 48, "gray8", ring_depth=8) as writer, SlotReader(slot_id) as reader:
        for _ in range(8):
            writer.write(bytes(64 * 48))
            reader.next(5)
        [cursor] = [row[2] for row in layout_rows() if row[:2] == ("cf_cache_header", "write_cursor")]
        os.truncate(slots / slot_id, (slots / slot_id).stat().st_size // 2)
        with pytest.raises(cuframes.SegmentTruncated):
            reader.next(0.3)
        with open(slots / slot_id, "r+b") as file:  # another frame, before the cut
            os.pwrite(file.fileno(), struct.pack("Q", 9), cursor)
        with pytest.raises(cuframes.SegmentTruncated):
            reader.next(0.3)
    framecache.remove_slot(slot_id)


def test_a_view_of_a_slot_shows_zeros_and_is_not_valid(slots, slot_id):
    with Worker("victim.py", "slot_writer", slot_id), Worker("victim.py", "slot_view", slot_id) as victim:
        cut(slots / slot_id)
        assert stopped(victim) == {"before": True, "zeros": True, "valid": False, "again": CUT, "left": 0}
    framecache.remove_slot(slot_id)


# ---- who only looks ----------------------------------------------------------------------------------------------


def test_looking_at_what_is_cut_all_the_time(key, slots, slot_id):
    """Lists, descriptions and thumbnails, in a process that must not die."""
    framecache.create_slot(slot_id, 64, 48, "gray8", ring_depth=8)
    framecache.SlotWriter(slot_id).close()
    segment, packets = SHM / f"cuframes-{key}", SHM / f"cuframes-{key}-packets"
    over = threading.Event()

    def hostile(path, content):
        fd = os.open(path, os.O_RDWR)
        while not over.is_set():
            os.ftruncate(fd, 0)
            os.ftruncate(fd, len(content))
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, 4096)
        os.close(fd)

    with Publisher(key, 64, 48, "gray8") as publisher:
        publisher.enable_packets("h264", data_size=4096)
        images = [(path, path.read_bytes()) for path in (segment, packets, slots / slot_id)]
    for path, image in images[:2]:
        path.write_bytes(image)
    attackers = [threading.Thread(target=hostile, args=image) for image in images]
    for attacker in attackers:
        attacker.start()
    try:
        code = f"""
            import contextlib, time, cuframes
            from cuframes import framecache
            from cuframes.framecache.service.thumbnails import Thumbnails
            from cuframes.session.listing import find_publisher
            end = time.monotonic() + 3
            while time.monotonic() < end:
                cuframes.list_publishers(), cuframes.list_packet_rings(), framecache.list_slots()
                for call in (lambda: find_publisher("{key}"), lambda: Thumbnails().get("{slot_id}")):
                    with contextlib.suppress(cuframes.CuframesError):
                        call()
            print("alive")
        """
        status, out, err = script(code)
        assert not err
        assert (status, out) == (0, "alive")
    finally:
        over.set()
        for attacker in attackers:
            attacker.join()
        segment.unlink()
        packets.unlink()
        framecache.remove_slot(slot_id)


# ---- the handler -------------------------------------------------------------------------------------------------

OURS = """
import ctypes, faulthandler, mmap, os, signal, cuframes
def ours():
    "A fault in a mapping that is guarded: it is survived."
    p = cuframes.Publisher(f"t{os.getpid()}", 64, 48, "gray8", memory="host")
    os.truncate(f"/dev/shm/cuframes-{p.key}", 0)
    try:
        p.publish(bytes(64 * 48))
    except cuframes.SegmentTruncated:
        print("survived", flush=True)
    p.close()
def foreign():
    "A fault in somebody else's mapping."
    fd = os.memfd_create("foreign")
    os.ftruncate(fd, 4096)
    there = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    there[0]
"""


def after(code):
    return script(OURS + textwrap.dedent(code))


def test_a_fault_elsewhere_still_ends_the_process():
    assert after("ours(); foreign()")[:2] == (-signal.SIGBUS, "survived")


def test_a_signal_that_is_sent_still_ends_the_process():
    assert after("ours(); os.kill(os.getpid(), signal.SIGBUS)")[:2] == (-signal.SIGBUS, "survived")


def test_an_ignored_signal_stays_ignored():
    code = "signal.signal(signal.SIGBUS, signal.SIG_IGN); ours(); os.kill(os.getpid(), signal.SIGBUS); ours()"
    assert after(code)[:2] == (0, "survived\nsurvived")


def test_an_earlier_python_handler_is_still_called():
    code = """
        signal.signal(signal.SIGBUS, lambda *_: print("called", flush=True))
        ours()
        os.kill(os.getpid(), signal.SIGBUS)
        ours()
    """
    assert after(code)[:2] == (0, "survived\ncalled\nsurvived")


def test_faulthandler_enabled_before():
    status, out, err = after("faulthandler.enable(); ours(); foreign()")
    assert (status, out) == (-signal.SIGBUS, "survived")
    assert err.count("Fatal Python error: Bus error") == 1
    assert "in foreign" in err


def test_faulthandler_enabled_after():
    """It is in front of ours then: what was foreign still is, and it reports what we would have survived."""
    status, out, err = after("ours(); faulthandler.enable(); foreign()")
    assert (status, out) == (-signal.SIGBUS, "survived")
    assert "Fatal Python error: Bus error" in err
    assert "in foreign" in err
    status, out, err = after("ours(); faulthandler.enable(); ours()")
    assert (status, out) == (-signal.SIGBUS, "survived")
    assert "in ours" in err


def test_faulthandler_disabled_again():
    """It puts back what was there before it, which is not us; the next mapping brings us back."""
    assert after("faulthandler.enable(); ours(); faulthandler.disable(); ours(); foreign()")[:2] == (
        -signal.SIGBUS,
        "survived\nsurvived",
    )


def test_nothing_is_installed_by_the_import_or_for_sealed_memory():
    code = """
        import ctypes
        from cuframes.host.segment import create_memfd
        from cuframes._native.mapping import Mapping
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("rest", ctypes.c_byte * 256)]
        def handler():
            action = Action()
            ctypes.CDLL(None).sigaction(signal.SIGBUS, None, ctypes.byref(action))
            return action.handler
        file, mapping = create_memfd("pool", 8192)
        Mapping(file.fileno(), 8192)
        print(handler())
        ours()
        print(handler() is None)
    """
    assert after(code)[:2] == (0, "None\nsurvived\nFalse")


def test_it_can_be_switched_off(key):
    assert script(OURS + "ours()", CUFRAMES_SIGBUS_GUARD="0")[:2] == (-signal.SIGBUS, "")


@pytest.mark.parametrize("options", [["-O2"], ["-O1", "-fsanitize=thread"], ["-O1", "-fsanitize=address,undefined"]])
def test_faults_on_several_threads_while_ranges_come_and_go(tmp_path, options):
    program = compile_program("guard_race", tmp_path, f"-I{cuframes.get_include()}", *options)
    done = subprocess.run([program, "storm", "10000"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_not_ours_goes_where_it_went_before(tmp_path):
    program = compile_program("guard_race", tmp_path, f"-I{cuframes.get_include()}", "-O2")
    done = subprocess.run([program, "chain"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "")
