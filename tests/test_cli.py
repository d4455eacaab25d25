"""The command, as a user types it."""

import contextlib
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Worker, eventually, python_path

from cuframes import Publisher
from cuframes.formats import FORMATS
from cuframes.session.listing import collect_garbage, list_publishers

av = pytest.importorskip("av")
pytest.importorskip("typer")


def command(*arguments):
    return [sys.executable, "-m", "cuframes", *map(str, arguments)]


def run(*arguments, expect=0, timeout=60, **options):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == expect, done.stderr
    if expect:
        # One line with cause and remedy; usage errors come from the option parser.
        assert "Traceback" not in done.stderr
        assert expect == 2 or done.stderr.startswith("cuframes: ") or not done.stderr
    return done


@pytest.fixture
def published(key, clip):
    """The clip, published in a loop by the real command."""
    child = subprocess.Popen(command("publish", key, "--source", clip, "--loop"), stderr=subprocess.PIPE, text=True)
    assert "publishing" in child.stderr.readline()
    yield key
    child.send_signal(signal.SIGTERM)
    _, rest = child.communicate(timeout=20)
    assert "frames published" in rest
    assert child.returncode == 143


def test_help_names_every_command():
    out = run("--help").stdout
    for name in ("demo", "publish", "watch", "ls", "info", "snapshot", "pipe", "record", "gc"):
        assert name in out
    assert run("--version").stdout.strip()


def test_info_says_what_the_pictures_look_like(key):
    said = {"color": "bt709", "sample_aspect_ratio": (64, 45), "field_order": "tt", "frame_rate": 59.94, "rotation": 90}
    with Publisher(key, 64, 48, "gray8", memory="host", **said):
        found = json.loads(run("info", key, "--json").stdout)
        assert (found["color_matrix"], found["color_range"]) == ("bt709", None)
        assert (found["sample_aspect_ratio"], found["frame_rate"], found["rotation"]) == ("64:45", "60000/1001", 90)
        line = "bt709, bt709, bt709, fps 60000/1001, aspect 64:45, fields tt, to be turned by 90 degrees"
        assert line in run("info", key).stdout
    with Publisher(key, 64, 48, "gray8", memory="host"):
        assert json.loads(run("info", key, "--json").stdout)["frame_rate"] is None


def test_ls_does_not_cut_keys(key):
    long = f"{key}-{'x' * (60 - len(key))}"
    with Publisher(long, 64, 48, "gray8", memory="host"):
        leader, follower = pty.openpty()
        with os.fdopen(leader, "rb") as screen:
            environment = os.environ | {"COLUMNS": "80"}
            done = subprocess.run(command("ls"), stdout=follower, env=environment, timeout=60, check=False)
            os.close(follower)
            assert done.returncode == 0
            shown = b""
            with contextlib.suppress(OSError):  # the other side is closed
                while part := screen.read1():
                    shown += part
    assert long in shown.decode()


def test_a_line_of_json_is_written_in_one_piece():
    """A signal between the line and its end left two reports in one line."""
    from cuframes.cli.stdout import print_json

    class File:
        written = ()

        def write(self, text):
            self.written += (text,)

        def flush(self):
            pass

    file = File()
    print_json({"a": 1}, file)
    assert file.written == ('{"a": 1}\n',)


def test_errors_name_the_options_of_the_command(key):
    with Publisher(key, 64, 48, "gray8", memory="host"):
        assert "start it with --packets" in run("watch", key, "--packets", expect=1).stderr
    assert "cuframes framecache ls" in run("ls").stderr
    assert run("watch", key, "--packets", "--wait", "predictive", expect=2).stderr.count("--wait predictive") == 1


@pytest.mark.timeout(180)
def test_demo_on_a_real_clip(clip, tmp_path):
    out = run("demo", "--source", clip, "--subscribers", 4, "--seconds", 4, "--json", cwd=tmp_path, timeout=120).stdout
    summary = json.loads(out)
    assert summary["torn"] == 0
    assert summary["published"] > 50
    assert len(summary["subscribers"]) == 4
    for subscriber in summary["subscribers"]:
        assert subscriber["received"] + subscriber["lost"] + subscriber["skipped"] <= summary["published"]
        assert subscriber["received"] > 10
    ordered = [s for s in summary["subscribers"] if s["mode"] == "ordered"]
    assert all(s["received"] + s["lost"] == summary["published"] for s in ordered)
    assert 0 < summary["latency_p50_us"] <= summary["latency_p99_us"]
    picture = Path(tmp_path / summary["picture"])
    with av.open(str(picture)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (1280, 720)
        assert frame.to_ndarray(format="gray").std() > 10  # a picture of something


def test_demo_table(tmp_path):
    done = run("demo", "--subscribers", 2, "--seconds", 6, cwd=tmp_path)
    assert "subscriber-1" in done.stdout
    assert "0 torn" in done.stdout
    assert "What a subscriber saw: demo.png" in done.stdout


def test_demo_in_a_source_tree_uses_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH")
    (tmp_path / "cuframes").mkdir()
    (tmp_path / "cuframes" / "__init__.py").write_text("raise ImportError('a tree that was not built')")
    command = [sys.executable, "-P", "-m", "cuframes", "demo", "--subscribers", "1", "--seconds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_demo_says_what_is_wrong(tmp_path):
    done = run("demo", "--source", "/no/such/clip.mp4", "--json", cwd=tmp_path, expect=1)
    assert done.stderr == (
        "cuframes: cannot open '/no/such/clip.mp4': No such file or directory; give a file, a URL, or testsrc\n"
    )


@pytest.mark.parametrize("format", FORMATS)
def test_stamps_in_every_format_with_padded_rows(key, format):
    from cuframes import Subscriber
    from cuframes.cli import pixels
    from cuframes.media import pictures

    with Publisher(key, 60, 40, format) as publisher, Subscriber(key) as subscriber:
        with publisher.acquire() as slot:
            pixels.stamp(slot.planes, 0x0123456789ABCDEF)
        with subscriber.next(1) as frame:
            assert pixels.read_stamp(frame) == 0x0123456789ABCDEF
        with publisher.acquire() as slot:
            pixels.stamp(slot.planes, 5)
            pictures.rows(slot.planes[-1])[-1, 7] += 1
        with subscriber.next(1) as frame:
            assert pixels.read_stamp(frame) is None


def test_watch_verifies_stamps_and_finds_a_torn_frame(key):
    """The check must be able to fail: one frame is published with a wrong row."""
    import numpy

    from cuframes.cli import pixels

    with Publisher(key, 64, 48, "nv12", policy="strict_wait") as publisher:
        watcher = subprocess.Popen(
            command("watch", key, "--verify", "--json", "--mode", "ordered"), stdout=subprocess.PIPE, text=True
        )
        eventually(lambda: publisher.subscribers, 30)
        for number in range(1, 31):
            with publisher.acquire() as slot:
                pixels.stamp(slot.planes, number)
                slot.pts_ns = number
                if number == 7:
                    numpy.asarray(slot.planes[1])[3, 0, 0] += 1
                if number == 9:
                    pixels.stamp(slot.planes, number - 1)  # whole, but another frame's pixels
        publisher.close()
        out, _ = watcher.communicate(timeout=30)
    last = json.loads(out.splitlines()[-1])
    assert (last["final"], last["received"], last["torn"]) == (True, 30, 2)
    assert watcher.returncode == 0


def test_watch(published):
    lines = [json.loads(line) for line in run("watch", published, "--seconds", 1.2, "--json").stdout.splitlines()]
    assert lines[-1]["final"]
    assert lines[-1]["received"] > 5
    assert "latency p50 / p99" in run("watch", published, "--seconds", 0.5).stdout


def test_ls_info_and_exit_statuses(published):
    found = json.loads(run("ls", "--json").stdout)
    mine = next(p for p in found if p["key"] == published)
    assert (mine["format"], mine["width"], mine["height"], mine["alive"]) == ("i420", 1280, 720, True)
    assert published in run("ls").stdout
    assert "no subscribers" in run("info", published).stdout
    assert json.loads(run("info", published, "--json").stdout)["key"] == published
    run("info", "nobody-has-this", expect=3)
    run("watch", "a/b", expect=2)
    run("publish", published, "--source", "testsrc", expect=1)
    run("snapshot", published, "picture.gif", expect=2)
    run("publish", "x", expect=2)


def test_stale_publisher(key):
    with Worker("producer.py", key) as worker:
        worker.kill()
    assert "stale" in run("info", key, expect=4).stdout
    for words in (["snapshot", key, "x.png", "--timeout", 0], ["record", key, "x.mp4", "--connect-timeout", 0]):
        assert "has died" in run(*words, expect=4).stderr
    assert "stale" in run("ls").stdout
    assert f"would remove /dev/shm/cuframes-{key}" in run("gc", key, "--dry-run").stdout
    assert f"/dev/shm/cuframes-{key}" in json.loads(run("gc", key, "--json").stdout)["removed"]
    run("info", key, expect=3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_snapshot(published, tmp_path, suffix):
    out = tmp_path / f"now.{suffix}"
    assert "1280x720" in run("snapshot", published, out).stdout
    with av.open(str(out)) as container:
        assert next(container.decode(video=0)).width == 1280


@pytest.mark.parametrize(
    "format",
    [
        "nv12",
        "i420",
        "p010",
        "gray8",
        "gray16",
        "rgb24",
        "bgra",
        "uyvy422",
        "yuyv422",
        "rgbp",
        "v210",
        "I422_10LE",
        "XR24",
    ],
)
def test_formats_through_publish_snapshot_and_pipe(key, tmp_path, format):
    """What went in as FFmpeg's test picture comes out as the same picture, whatever the format between."""
    child = subprocess.Popen(
        command("publish", key, "--source", "testsrc", "--size", "320x240", "--format", format),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "publishing" in child.stderr.readline()
        report = json.loads(run("snapshot", key, tmp_path / "now.png", "--json").stdout)
        number = round(report["pts_ns"] * 25 / 1e9)
        with av.open(str(tmp_path / "now.png")) as container:
            seen = next(container.decode(video=0)).to_ndarray(format="gray").astype(float)
        with av.open("testsrc2=size=320x240", format="lavfi") as container:
            sent = next(itertools.islice(container.decode(video=0), number, None)).to_ndarray(format="gray")
        difference = abs(seen - sent.astype(float))
        assert difference.mean() < 2
        assert (difference < 40).mean() > 0.99
        done = subprocess.run(command("pipe", key, "--frames", 3), capture_output=True, timeout=60)
        assert done.returncode == 0
        (tmp_path / "out.y4m").write_bytes(done.stdout)
        with av.open(str(tmp_path / "out.y4m")) as container:
            frames = list(container.decode(video=0))
            assert len(frames) == 3
            assert container.streams.video[0].average_rate == 25
            assert frames[0].to_ndarray(format="gray").std() > 10
    finally:
        child.terminate()
        child.communicate(timeout=20)


def test_pipe_ends_with_its_reader_and_with_its_publisher(published, key, tmp_path):
    reader = subprocess.Popen(
        command("pipe", published, "--format", "raw"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert len(reader.stdout.read(1280 * 720 * 3 // 2)) == 1280 * 720 * 3 // 2
    reader.stdout.close()
    assert reader.wait(20) == 0
    assert reader.stderr.read() == b""
    reader.stderr.close()
    with Worker("producer.py", f"{key}-b") as worker:
        piped = subprocess.Popen(command("pipe", f"{key}-b", "--format", "raw"), stdout=subprocess.PIPE)
        assert len(piped.stdout.read(64 * 48 * 3)) == 64 * 48 * 3
        worker.kill()
        piped.stdout.read()
        assert piped.wait(20) == 0
        piped.stdout.close()
    collect_garbage([f"{key}-b"])


def test_pipe_refuses_a_terminal():
    ours, theirs = pty.openpty()
    done = subprocess.run(command("pipe", "any"), stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert "frames cannot be shown on a terminal" in done.stderr


def test_publish_plays_a_file_once_and_reports(key, clip):
    ready, report = map(json.loads, run("publish", key, "--source", clip, "--fps", 0, "--json").stdout.splitlines())
    assert (ready["event"], ready["key"], ready["width"], ready["height"]) == ("ready", key, 1280, 720)
    assert (report["published"], report["dropped"]) == (132, 0)
    assert not Path(f"/dev/shm/cuframes-{key}").exists()


def test_without_the_extra_the_command_says_how_to_get_it(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('No module', name='typer')")
    done = subprocess.run(command("ls"), capture_output=True, text=True, timeout=30, env=python_path(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "cuframes: the command line needs typer; install it with: pip install 'cuframes[cli]'\n"


@pytest.mark.parametrize("entry", ["-m cuframes", "-c from cuframes.__main__ import main; main()"])
def test_an_interrupt_while_modules_are_imported_is_quiet(entry, key):
    """Sent at many moments from the first import after that of the package, which has next to nothing to import."""
    option, _, rest = entry.partition(" ")
    statuses = []
    for moment in range(12):
        words = [sys.executable, "-X", "importtime", option, rest, "watch", key]  # waits, where it comes so far
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # Each module is announced when it is there.
        names = (line.split()[-1] for line in child.stderr)
        assert b"cuframes" in names
        next(name for name in names if not name.startswith(b"cuframes"))
        time.sleep(moment * 0.3 / 12)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert not [line for line in errors.splitlines() if not line.startswith(b"import time:")]
        statuses.append(child.returncode)
    assert set(statuses) == {130}


def test_demo_stops_on_sigint(tmp_path):
    child = subprocess.Popen(
        command("demo", "--seconds", 60, "--json"), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    eventually((tmp_path / "demo.png").exists, 60)  # frames are flowing, so everybody has begun
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert json.loads(out)["torn"] == 0


def test_commands_without_a_standard_output_say_so_in_a_line(published):
    for command, status, said in (("ls", 0, ""), (f"pipe {published}", 1, "no standard output to write to")):
        line = f"{sys.executable} -m cuframes {command} >&-"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_no_other_file_takes_the_number_of_a_standard_one_that_is_closed(key):
    """What libraries print was written to it: to a recording, say."""
    line = 'exec "$0" -m cuframes publish "$1" --source testsrc --size 320x240 --seconds 60 <&- >&- 2>&-'
    with subprocess.Popen(["sh", "-c", line, sys.executable, key]) as child:
        try:
            eventually(lambda: [found for found in list_publishers() if found.key == key], 30)
            for number in range(3):
                assert os.readlink(f"/proc/{child.pid}/fd/{number}") == "/dev/null"
        finally:
            child.terminate()
            assert child.wait(20) == 143


def test_an_error_is_not_printed_among_the_frames(key):
    line = f"{sys.executable} -m cuframes pipe {key} 2>&-"
    done = subprocess.run(line, shell=True, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stdout == b""


def test_a_file_that_cannot_be_written_is_named(published, tmp_path):
    full = tmp_path / "a.png"
    full.symlink_to("/dev/full")
    done = run("snapshot", published, full, expect=1)
    assert "No space left" in done.stderr
    assert str(full) in done.stderr


def test_a_demo_that_is_stopped_ends_at_once(tmp_path):
    command = [sys.executable, "-m", "cuframes", "demo", "--seconds", "60", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as demo:
        time.sleep(1.5)
        demo.terminate()
        _, errors = demo.communicate(timeout=30)
    assert "no reason given" not in errors
    assert "Traceback" not in errors
