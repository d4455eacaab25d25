"""``cuframes framecache``, and ``publish`` and ``pipe`` with slots, as a user types them."""

import itertools
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction

import cameras
import numpy
import pytest
from harness import Service, eventually

from cuframes.framecache import SlotReader, SlotWriter, create_slot, find_slot, list_slots, remove_slot

av = pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("fastapi")
SlotMeter = pytest.importorskip("cuframes.cli.framecache").SlotMeter


def command(*arguments):
    return [sys.executable, "-m", "cuframes", *map(str, arguments)]


def run(*arguments, expect=0, **options):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    if expect:
        assert done.stderr.count("\n") == 1 or expect == 2
    return done


def written(slot_id, count):
    eventually(lambda: slot_id in {slot.slot_id for slot in list_slots()}, 30)
    return eventually(lambda: find_slot(slot_id).write_cursor >= count, 30)


@pytest.fixture
def filled(slot_id):
    """A slot with stamped frames of testsrc coming in: ``uyvy422``, 320x180, 50 fps."""
    arguments = ("--slot", "--source", "testsrc", "--size", "320x180", "--fps", 50, "--ring-depth", 40, "--stamp")
    child = subprocess.Popen(command("publish", slot_id, *arguments), stderr=subprocess.PIPE, text=True)
    written(slot_id, 3)
    yield slot_id
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=20)
    assert child.returncode in (143, 4), errors


def test_create_ls_and_rm_through_the_service(slots, slot_id):
    with Service() as service:
        url = ("--url", service.url)
        assert "no slots" in run("framecache", "ls", *url).stdout
        size = ("--size", "64x48", "--ring-depth", 4)
        made = run("framecache", "create", slot_id, *size, "--fps", "60000/1001", *url, "--json").stdout
        assert json.loads(made) == find_slot(slot_id)._asdict()
        assert json.loads(run("framecache", "ls", *url, "--json").stdout) == [json.loads(made)]
        table = run("framecache", "ls", *url).stdout
        assert slot_id in table
        assert "uyvy422 64x48" in table
        assert "59.94" in table
        conflict = run("framecache", "create", slot_id, "--size", "64x50", *url, expect=1).stderr
        assert "height is 48, not 50" in conflict
        assert "no slot" in run("framecache", "rm", "nothing", *url, expect=3).stderr
        run("framecache", "create", f"{slot_id}x", "--size", "63x48", *url, expect=2)
        run("framecache", "rm", slot_id, env=os.environ | {"CUFRAMES_FRAMECACHE_URL": service.url})
        assert list_slots() == []
    assert "cuframes framecache serve" in run("framecache", "ls", *url, expect=1).stderr


def test_the_same_without_a_service(slots, slot_id):
    run("framecache", "create", slot_id, "--size", "64x48", "--format", "nv12", "--ring-depth", 4, "--local")
    assert json.loads(run("framecache", "ls", "--local", "--json").stdout)[0]["pixel_format"] == "nv12"
    run("framecache", "rm", slot_id, "--local")
    assert "no slots" in run("framecache", "ls", "--local").stdout
    run("framecache", "rm", slot_id, "--local", expect=3)
    (slots / "notes").write_text("hello")
    assert "notes is a file of 5 bytes" in run("framecache", "rm", "notes", "--local", expect=3).stderr
    run("framecache", "create", "../x", "--size", "64x48", "--local", expect=2)
    run("framecache", "create", slot_id, "--size", "wide", "--local", expect=2)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_users_slot_is_refused_in_one_line_with_the_remedy(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=2)
    # Once as we are: where Python's modules are may be closed to that user.
    someone = """
import contextlib, io, os, sys
from cuframes.cli import main
asked = sys.argv[1:]
for sys.argv[1:] in (["framecache", "ls", "--local"], ["framecache", "rm", "nothing", "--local"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), \\
            contextlib.redirect_stderr(io.StringIO()):
        main()
os.setgroups([]), os.setgid(61001), os.setuid(61001)
sys.argv[1:] = asked
main()
"""

    def as_someone(*arguments):
        command = [sys.executable, "-c", someone, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    status, said = as_someone("framecache", "rm", slot_id, "--local")
    assert (status, said.count("\n")) == (1, 1)
    assert "belongs to uid 0" in said
    assert "remove it as that user" in said
    assert find_slot(slot_id)
    status, said = as_someone("framecache", "watch", slot_id)
    assert (status, said.count("\n")) == (1, 1)
    assert "another user" in said
    assert as_someone("framecache", "ls", "--local") == (0, "no slots\n")


def test_watch_reports_rate_drops_and_latency(filled):
    out = run("framecache", "watch", filled, "--seconds", 1.5, "--interval", 0.5, "--verify", "--json").stdout
    reports = [json.loads(line) for line in out.splitlines()]
    assert len(reports) >= 2
    last = reports[-1]
    assert last["final"]
    assert last["read"] > 10
    assert last["torn"] == last["lapped"] == 0
    assert last["fps"] > 5
    assert 0 < last["latency_p50_us"] <= last["latency_p99_us"]
    assert "fps" in run("framecache", "watch", filled, "--seconds", 0.3).stdout
    run("framecache", "watch", "nothing", expect=3)


def test_watch_shows_no_latency_of_frames_that_are_still_to_come(slots, slot_id):
    """The clock was set back since they were written, or their writer has another one."""
    with SlotWriter(slot_id, 64, 48, ring_depth=8) as writer, SlotReader(slot_id) as reader:
        meter = SlotMeter(verify=False)
        for ahead in (10**9, 10**10, 10**13):
            writer.write(bytes(6144), wall_us=time.time_ns() // 1000 + ahead)
            meter.take(reader.read(5))
        assert meter.received == 3
        assert meter.figures(final=True)["latency_p50_us"] is None


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_pictures_of_a_slots_size_are_written_as_they_are(slots, slot_id, tmp_path, there):
    """Also where their samples are not square, as in every PAL picture."""
    white = "color=white:size=72x58:rate=25"
    path = cameras.make(
        tmp_path / "pal.mkv", "-vf", "format=gray,setsar=64/45", "-c:v", "ffv1", source=white, seconds=1
    )
    if there:
        create_slot(slot_id, 72, 58, "gray8", ring_depth=2)
    said = run("publish", slot_id, "--slot", "--source", path, "--fps", 0, "--format", "gray8", "--ring-depth", 2)
    assert "black bars" not in said.stderr
    with SlotReader(slot_id, start="latest") as reader, reader.read(5) as frame:
        assert (numpy.asarray(frame) > 200).all()
        assert frame.sample_aspect_ratio == Fraction(64, 45)


def test_publish_fills_a_slot_from_a_real_file(slots, slot_id, clip):
    out = run("publish", slot_id, "--slot", "--source", clip, "--fps", 0, "--ring-depth", 140, "--json").stdout
    ready, report = map(json.loads, out.splitlines())
    assert (ready["event"], ready["slot_id"], ready["width"]) == ("ready", slot_id, 1280)
    assert (report["event"], report["slot_id"], report["written"]) == ("ended", slot_id, 132)
    assert report["write_cursor"] == 132
    slot = find_slot(slot_id)
    assert (slot.pixel_format, slot.width, slot.height, slot.writer_pid) == ("uyvy422", 1280, 720, None)
    assert slot.source_type == "file"
    with SlotReader(slot_id, start="oldest") as reader, av.open(clip) as container:
        for number, expected in enumerate(container.decode(video=0)):
            frame = reader.read(5)
            assert frame.seq == number
            assert frame.pts_us == int(expected.pts * expected.time_base * 1_000_000)
            if number % 40 == 0:
                wanted = expected.reformat(format="uyvy422")
                row_bytes = 1280 * 2
                raw = bytes(wanted.planes[0])
                assert frame.data[100].tobytes() == raw[100 * wanted.planes[0].line_size :][:row_bytes]


def test_publish_takes_a_slot_as_it_is(slots, slot_id):
    create_slot(slot_id, 160, 90, "gray8", fps=30, ring_depth=10, source_type="sdi")
    run("publish", slot_id, "--slot", "--source", "testsrc", "--seconds", 0.3)
    slot = find_slot(slot_id)
    assert (slot.width, slot.pixel_format, slot.source_type, slot.fps_num) == (160, "gray8", "sdi", 30)
    assert slot.write_cursor > 0
    wrong = run("publish", slot_id, "--slot", "--source", "testsrc", "--size", "64x48", expect=1).stderr
    assert "width is 160, not 64" in wrong
    run("publish", slot_id, "--slot", "--source", "testsrc", "--packets", expect=2)


def test_publish_to_a_slot_that_has_a_writer_or_goes_away(filled):
    assert "has a writer" in run("publish", filled, "--slot", "--source", "testsrc", expect=1).stderr
    other = f"{filled}b"
    child = subprocess.Popen(
        command("publish", other, "--slot", "--source", "testsrc", "--size", "64x48"), stderr=subprocess.PIPE, text=True
    )
    written(other, 2)
    remove_slot(other)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 4
    assert "was removed" in errors.splitlines()[-1]


def test_pipe_y4m_is_what_ffmpeg_reads(filled, tmp_path):
    out = tmp_path / "out.y4m"
    with open(out, "wb") as file:
        subprocess.run(command("pipe", filled, "--slot", "--frames", 8), stdout=file, timeout=60, check=True)
    assert out.read_bytes().startswith(b"YUV4MPEG2 W320 H180 F50:1 Ip A1:1 C422 XCOLORRANGE=LIMITED\n")
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 8
    assert {(frame.width, frame.height, frame.format.name) for frame in frames} == {(320, 180, "yuv422p")}


def test_pipe_raw_is_the_slots_own_bytes(filled):
    done = subprocess.run(
        command("pipe", filled, "--slot", "--format", "raw", "--frames", 4), capture_output=True, timeout=60, check=True
    )
    assert len(done.stdout) == 4 * 320 * 180 * 2
    stamps = [int.from_bytes(done.stdout[at : at + 8], "little") for at in range(0, len(done.stdout), 320 * 180 * 2)]
    assert [after - before for before, after in itertools.pairwise(stamps)] == [20_000] * 3


def test_each_end_of_a_pipe_has_its_own_status(filled):
    def piping():
        child = subprocess.Popen(
            command("pipe", filled, "--slot", "--format", "raw"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert len(child.stdout.read(1000)) == 1000
        return child

    def end(child):
        child.stdout.close()
        status = child.wait(timeout=20)
        with child.stderr:
            return status, child.stderr.read().decode()

    closed = piping()
    assert end(closed) == (0, "")

    stopped = piping()
    stopped.send_signal(signal.SIGTERM)
    while stopped.stdout.read(1 << 20):
        pass
    assert end(stopped) == (128 + signal.SIGTERM, "")

    gone = piping()
    remove_slot(filled)
    while gone.stdout.read(1 << 20):
        pass
    assert end(gone) == (4, f"cuframes: the slot '{filled}' was removed\n")
    run("pipe", filled, "--slot", "--format", "raw", expect=3)


def test_a_closed_pipe_is_noticed_while_no_frame_comes(slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=4)
    child = subprocess.Popen(command("pipe", slot_id, "--slot"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.read(9) == b"YUV4MPEG2"
    child.stdout.close()
    assert child.wait(timeout=20) == 0
    child.stderr.close()


def test_pipe_is_not_for_a_terminal(filled):
    ours, theirs = pty.openpty()
    done = subprocess.run(command("pipe", filled, "--slot"), stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2
    os.close(ours)
    os.close(theirs)


def test_serve_says_what_is_wrong(slots, tmp_path):
    with Service() as service:
        assert "in use" in run("framecache", "serve", "--port", service.port, expect=1).stderr.lower()
    assert "json or text" in run("framecache", "serve", "--log-format", "xml", expect=2).stderr
    run("framecache", "serve", "--token-file", tmp_path / "none", expect=2)
    run("framecache", "serve", "--group", "no-such-group", "--port", 0, expect=2)


def test_without_the_extra_the_service_says_what_to_install(slots, tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('no fastapi', name='fastapi')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    environment.pop("PYTHONSAFEPATH", None)
    done = run("framecache", "serve", "--port", 0, expect=1, env=environment, cwd=tmp_path)
    assert "pip install 'cuframes[framecache]'" in done.stderr
    # What needs no service does not need its libraries either.
    assert "no slots" in run("framecache", "ls", "--local", env=environment, cwd=tmp_path).stdout


def test_help_names_every_command():
    out = run("framecache", "--help").stdout
    for name in ("serve", "ls", "create", "rm", "watch"):
        assert name in out


def test_a_port_that_is_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("framecache", "serve", "--port", port, expect=1).stderr
    assert f"port {port} of 127.0.0.1 is in use" in said
    assert "--port" in said
