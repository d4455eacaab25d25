"""Interpreter exit, garbage collection and fork."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(script, *arguments, expect=0):
    """Run Python code in a process of its own; returns its output. Nothing may appear on standard error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == expect
    return done.stdout.split()


SETUP = """
import os, sys, gc
import cuframes, numpy
publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
subscriber = cuframes.Subscriber(sys.argv[1], mode="ordered")
publisher.publish(bytes(64 * 48))
frame = subscriber.next(1)
array = numpy.asarray(frame)
"""


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "publisher.close()",
        "subscriber.close()",
        "del frame, array; subscriber.close(); publisher.close()",
        "subscriber.fileno()",
        "del publisher, subscriber; gc.collect()",
        "tensor = numpy.from_dlpack(frame); capsule = frame.__dlpack__()",
        "global_list = [frame]; global_list.append(global_list)",
        "slot = publisher.acquire(); slot.__enter__()",
        "import threading; threading.Thread(target=lambda: list(subscriber), daemon=True).start()",
        "sys.modules['kept'] = type(sys)('kept'); sys.modules['kept'].array = array",
    ],
)
def test_exit_is_silent_and_leaves_nothing(key, ending):
    run(SETUP + ending, key)
    assert not Path(f"/dev/shm/cuframes-{key}").exists()


def test_what_another_module_keeps_dies_in_silence(key):
    """At interpreter exit, after the names of this library's modules."""
    script = """
    import sys, types
    kept = sys.modules["kept"] = types.ModuleType("kept")
    import cuframes
    kept.publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
    kept.publisher.close()
    kept.modules, sys.kept = sys.modules, kept
    """
    run(script, key)


def test_garbage_collection_closes(key):
    out = run(
        SETUP
        + """
del frame, array, subscriber
gc.collect()
import time
while publisher.subscribers: time.sleep(0.01)
print("left")
del publisher
gc.collect()
print(os.path.exists(f"/dev/shm/cuframes-{sys.argv[1]}"))
""",
        key,
    )
    assert out == ["left", "False"]


@pytest.mark.parametrize(
    "members",
    [
        "[frame]",
        "[frame, subscriber]",
        "[subscriber, frame, array]",
        "[frame.planes[0], subscriber._ring]",
        "[publisher, subscriber, frame]",
        "[slot := publisher.acquire(), slot.__enter__(), publisher._writer]",
        "[frame.__dlpack__(), subscriber]",
    ],
)
def test_a_reference_cycle_is_collected_and_gives_everything_back(key, members):
    out = run(
        SETUP
        + f"""
import time
cycle = {members}
cycle.append(cycle)
probe = cuframes.Subscriber(sys.argv[1], name="probe")
slot = None
del cycle, frame, array, subscriber
gc.collect()
while len(publisher.subscribers) > 1: time.sleep(0.01)
print([s.name for s in publisher.subscribers], publisher.publish(bytes(64 * 48)) > 1)
""",
        key,
    )
    assert out == ["['probe']", "True"]


FORK = (
    SETUP
    + """
pid = os.fork()
if pid == 0:
    for attempt in (lambda: publisher.publish(bytes(64 * 48)), lambda: publisher.acquire().__enter__(),
                    lambda: subscriber.next(0)):
        try:
            attempt()
            print("worked")
        except (RuntimeError, ValueError) as problem:
            print("refused")
    sys.stdout.flush()
    if sys.argv[2] == "drop":
        del frame, array
        subscriber.close(); publisher.close()
        del subscriber, publisher
        gc.collect()
    if sys.argv[2] == "exit":
        sys.exit(0)
    os._exit(0)
os.waitpid(pid, 0)
print(publisher.subscribers[0].held, frame.valid)
for n in range(20): publisher.publish(bytes([7]) * (64 * 48))
print(int(array.max()), os.path.exists(f"/dev/shm/cuframes-{sys.argv[1]}"))
frame.release()
print(subscriber.next(1).seq > 1)
"""
)


@pytest.mark.parametrize("ending", ["drop", "exit", "leave"])
def test_fork(key, ending):
    script = FORK
    if sys.version_info >= (3, 12):  # it warns about threads, which is the point of the test
        script = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORK
    assert run(script, key, ending) == ["refused"] * 3 + ["1", "True", "0", "True", "True"]


@pytest.mark.parametrize("closed_before", [False, True])
def test_a_forked_child_does_not_make_its_dead_parent_look_alive(key, closed_before):
    script = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
import os, sys, time
import cuframes
# What is closed and still referred to must not keep the child from forgetting the rest.
old = [cuframes.Publisher(f"{sys.argv[1]}-{n}", 64, 48, "gray8") for n in range(4)] if sys.argv[2] == "True" else []
old += [cuframes.Subscriber(publisher.key) for publisher in old] + [cuframes.PacketPublisher(p.key, 27) for p in old]
for each in old: each.close()
publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
if os.fork() == 0:
    os.close(1); os.close(2)
    time.sleep(30)
    os._exit(0)
os._exit(0)
"""
    run(script, key, str(closed_before))
    from cuframes import Publisher

    with Publisher(key, 64, 48, "gray8"):
        pass


def test_new_objects_work_in_a_forked_child(key):
    out = run(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        + SETUP
        + """
pid = os.fork()
if pid == 0:
    other = cuframes.Subscriber(sys.argv[1], start="latest")
    print(other.next(1).seq, flush=True)
    other.close()
    os._exit(0)
os.waitpid(pid, 0)
print(len(publisher.subscribers))
""",
        key,
    )
    assert out[0] == "1"


def test_import_needs_neither_numpy_nor_asyncio():
    out = run("import sys, cuframes; print(*[m in sys.modules for m in ('numpy', 'asyncio', 'av', 'typer')])")
    assert out == ["False"] * 4


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_a_forked_child_is_told_so_by_every_call(key, slots, fork):
    """Also where C code has forked, and no Python hook ran; and closing there leaves the parent's descriptors alone."""
    script = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
import ctypes, os, select, sys
import cuframes
from cuframes.framecache import SlotReader, SlotWriter
key = sys.argv[1]
publisher = cuframes.Publisher(key, 64, 48, "gray8")
publisher.enable_packets("h264")
writer = SlotWriter(key, 64, 48, "gray8", ring_depth=2)
readers = cuframes.Subscriber(key), cuframes.PacketReader(key), SlotReader(key)
descriptors = [reader.fileno() for reader in readers]
readable = lambda: select.select(descriptors, [], [], 0.1)[0]
while readable():  # until the threads behind them sleep
    for reader in readers:
        try:
            reader.next(0)
        except cuframes.Timeout:
            pass
calls = [publisher.stats, lambda: publisher.subscribers, readers[2].info]
for reader in readers:
    calls += [reader.stats, reader.fileno]
if FORK() == 0:
    for number, call in enumerate(calls):
        try:
            call()
            print("worked", number)
        except RuntimeError as problem:
            assert "parent process" in str(problem)
    for thing in (publisher, *readers, writer):
        repr(thing)
        thing.close()
    sys.stdout.flush()
    os._exit(0)
os.wait()
print(readable(), publisher.stats().subscribers)
for thing in (*readers, writer, publisher):
    thing.close()
"""
    assert run(script.replace("FORK", fork), key) == ["[]", "1"]


FORKED_MEANWHILE = """
import os, sys, threading, warnings
import cuframes
warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads is the point
key, over = sys.argv[1], False
publisher = cuframes.Publisher(key, 64, 48, "gray8", ring_size=2)
subscriber = cuframes.Subscriber(key)

def open_and_close():
    while not over:
        OPENING.close()

thread = threading.Thread(target=open_and_close)
thread.start()
kept = 0
for _ in range(300):
    pid = os.fork()
    if pid == 0:
        names = []
        for number in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:  # of the directory itself
                pass
        os._exit(any(name.startswith("socket:") or ".lock" in name for name in names))
    kept += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
over = True
thread.join()
print(kept)
"""


@pytest.mark.parametrize(
    "opening", ["cuframes.Publisher(key + 'x', 64, 48, 'gray8', ring_size=2)", "cuframes.Subscriber(key)"]
)
def test_a_child_forked_while_another_thread_opens_keeps_no_sign_of_life(key, opening):
    """Lock files, and both ends of connections. One that was open, and not yet noted as to be closed, was kept."""
    assert run(FORKED_MEANWHILE.replace("OPENING", opening), key) == ["0"]


def test_a_program_whose_main_thread_has_ended_can_begin_and_list(key, slots):
    """Threads go on after the end of the main thread, and may be the first to use this library."""
    script = """
        import sys, threading

        def work():
            threading.main_thread().join()
            import cuframes
            from cuframes.framecache import SlotReader, SlotWriter
            from cuframes.session.listing import list_publishers

            publisher = cuframes.Publisher(sys.argv[1], 64, 48, "gray8")
            subscriber = cuframes.Subscriber(sys.argv[1])
            publisher.publish(bytes(64 * 48))
            print(subscriber.next(10).seq)
            with SlotWriter(sys.argv[1], 64, 48, ring_depth=3), SlotReader(sys.argv[1]) as reader:
                print(reader.fileno() >= 0)
            print(sys.argv[1] in [found.key for found in list_publishers()])

        threading.Thread(target=work).start()
        """
    assert run(script, key) == ["1", "True", "True"]


FORKED_AMID = """
import ctypes, logging, os, signal, sys, threading, time, warnings
import cuframes
from cuframes.host import lifetime
logging.basicConfig()
warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads is the point
publisher, packets = cuframes.Publisher(sys.argv[1], 64, 48, "gray8"), cuframes.PacketPublisher(sys.argv[1] + "x", 27)
there = threading.Event()

class Opening:
    @lifetime.settled
    def open(self):
        with publisher._guard:  # as enable_packets() does
            there.set()
            time.sleep(60)

threading.Thread(target=Opening().open, daemon=True).start()
there.wait()
packets._next_look = 0.0
pid = FORK()
if pid == 0:
    signal.alarm(20)
    try:
        ATTEMPT
    except RuntimeError as problem:
        os._exit("parent process" not in str(problem))
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stdout.flush()
packets.close()
publisher._guard = threading.RLock()
publisher.close()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("fork", "attempt"),
    [
        ("os.fork", "publisher.enable_packets('h264')"),
        ("ctypes.PyDLL(None).fork", "publisher.enable_packets('h264')"),
        ("ctypes.PyDLL(None).fork", "packets.publish_packet(b'x', pts_ns=0)"),
        ("os.fork", "assert not lifetime._busy; publisher.acquire()"),
    ],
)
def test_a_child_does_not_wait_for_its_parents_threads_nor_look_after_its_files(key, fork, attempt):
    assert run(FORKED_AMID.replace("FORK", fork).replace("ATTEMPT", attempt), key) == ["0"]
