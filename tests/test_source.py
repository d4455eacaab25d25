"""Sources that fail, as cameras, networks and files do: `cuframes publish`, with real servers on loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import cameras
import pytest
from cameras import Publish, TcpCamera, garbage, play, reset, silence
from harness import eventually, has_stopped

from cuframes import AlreadyExists, Disconnected, PacketFlags, PacketReader, Subscriber, Timeout
from cuframes.session.listing import find_publisher
from cuframes.session.status import SourceStatus, StatusFile, find_status

pytest.importorskip("av")
pytest.importorskip("typer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


def frames_from(subscriber, count, timeout=30):
    return [subscriber.next(timeout).pts_ns for _ in range(count)]


def nothing_left(key, runtime_dir):
    return not list(Path("/dev/shm").glob(f"cuframes-{key}*")) and not list(runtime_dir.glob(f"{key}.*"))


def test_a_camera_that_reboots_is_joined_again(key, folder, runtime_dir):
    """RST in the middle of a packet, a while without an answer, and the same stream from its beginning."""
    data = cameras.stream(folder)
    with TcpCamera(play(data[: len(data) // 2 + 77], 2, reset), reset, play(data, 4, silence)) as camera:
        with Publish(key, camera.url, "--packets") as publish:
            assert publish.ready()["packets"]
            with Subscriber(key, mode="ordered") as subscriber, PacketReader(key, "oldest") as reader:
                packets = []
                while not any(packet.flags & PacketFlags.DISCONTINUITY for packet in packets[-1:]):
                    packets.append(reader.next(30))
                assert len(packets) > 20
                assert packets[-1].keyframe
                packets += [reader.next(30) for _ in range(20)]
                decoding = [packet.dts_ns for packet in packets]
                assert decoding == sorted(set(decoding))
                assert sum(bool(packet.flags & PacketFlags.DISCONTINUITY) for packet in packets) == 1
                seen = frames_from(subscriber, 60)  # the publisher is the same, so nobody had to join again
                assert all(a < b for a, b in pairwise(seen))
            state = publish.becomes("live")
            assert "Connection reset" in state.error or "end" in state.error
            status, report = publish.stop()
    assert status == 143
    assert report["published"] >= 60
    assert len(publish.errors) < 10
    assert "trying again in" in publish.errors[0]
    assert nothing_left(key, runtime_dir)


def test_a_frozen_server_stalls_and_comes_back(key, folder):
    needs = cameras.make(folder / "long.ts", "-bf", "2", seconds=30)
    port = cameras.free_port()
    url = f"http://127.0.0.1:{port}/live.ts"
    serve = ("-i", needs, "-c", "copy", "-f", "mpegts", "-listen", "1", url)
    with cameras.ffmpeg(*serve) as server, Publish(key, url, "--timeout", 3) as publish:
        publish.ready()
        with Subscriber(key) as subscriber:
            subscriber.next(30)
            server.freeze()
            assert publish.becomes("stalled")
            shown = subprocess.check_output([sys.executable, "-m", "cuframes", "ls"], text=True)
            assert "stalled" in shown or "reconnecting" in shown  # on a busy machine it takes a while
            state = publish.becomes("reconnecting")
            assert "nothing came within 3 s" in state.error
            shown = subprocess.check_output([sys.executable, "-m", "cuframes", "info", key], text=True)
            assert "reconnecting since" in shown
            assert "last error: " in shown
            listed = json.loads(subprocess.check_output([sys.executable, "-m", "cuframes", "ls", "--json"]))
            assert listed[0]["source"]["state"] == "reconnecting"
            server.close()
            with cameras.ffmpeg(*serve) as again:
                publish.becomes("live", timeout=60)
                with pytest.raises(Timeout):
                    while True:  # what was published before
                        subscriber.next(0)
                assert subscriber.next(30).frame_no > 10
                again.freeze()
                publish.becomes("stalled")
                status, _ = publish.stop()
    assert status == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "kind", ["nobody sends", "accepts and says nothing", "garbage", "refuses", "silent after frames"]
)
def test_a_signal_ends_it_in_every_state(key, folder, runtime_dir, kind, number):
    """Also when it comes twice. Each state is the right one before."""
    with TcpCamera(
        {"garbage": garbage, "silent after frames": play(cameras.stream(folder), 1, silence)}.get(kind, silence)
    ) as camera:
        url = camera.url
        if kind == "nobody sends":
            url = f"udp://127.0.0.1:{cameras.free_port(socket.SOCK_DGRAM)}"
        elif kind == "refuses":
            url = f"tcp://127.0.0.1:{cameras.free_port()}"
        with Publish(key, url, "--reconnect", "always", env={"PYTHONUNBUFFERED": "1"}) as publish:
            if kind == "silent after frames":
                publish.ready()
                publish.becomes("stalled")
            else:
                state = publish.becomes("opening", "reconnecting")
                assert state.source == url
                assert key in subprocess.check_output([sys.executable, "-m", "cuframes", "ls"], text=True)
            publish.process.send_signal(number)
            status, report = publish.stop(number)
    assert status == 128 + number
    assert report["published"] > 0 or kind != "silent after frames"
    assert not any("Traceback" in line for line in publish.errors)
    assert nothing_left(key, runtime_dir)


def test_garbage_after_frames_is_a_stall(key, folder):
    with TcpCamera(play(cameras.stream(folder), 2, garbage), play(cameras.stream(folder), 4, silence)) as camera:
        with Publish(key, camera.url, "--timeout", 2) as publish:
            publish.ready()
            state = publish.becomes("stalled", "reconnecting")
            eventually(lambda: camera.connections >= 2, 30)
            publish.becomes("live")
            status, report = publish.stop()
    assert status == 143
    assert report["published"] > 100 or report["not_taken"] or state
    assert len(publish.errors) < 10


def test_another_size_is_another_epoch(key, folder, tmp_path):
    """Subscribers that rejoin, and recorders, go on; the recording begins another file."""
    small, large = cameras.stream(folder), cameras.stream(folder, "640x368")
    out = tmp_path / "out.mkv"
    with TcpCamera(play(small, 4, reset), play(large, 4, silence)) as camera:
        with Publish(key, camera.url, "--packets") as publish:
            publish.ready()
            record = subprocess.Popen(
                [sys.executable, "-m", "cuframes", "record", key, str(out), "--json"], stdout=subprocess.PIPE, text=True
            )
            with Subscriber(key, mode="ordered", reconnect=True) as subscriber:
                sizes, stamps = [], []
                while len(sizes) < 20 or sizes[-20:] != [(640, 368)] * 20:
                    frame = subscriber.next(30)
                    sizes.append((frame.width, frame.height))
                    stamps.append(frame.pts_ns)
                assert sizes[0] == (320, 240)
                assert stamps == sorted(set(stamps))
            eventually(lambda: out.with_stem("out-2").exists(), 30)
            publish.stop()
            report = json.loads(record.communicate(timeout=30)[0].splitlines()[-1])
    assert report["paths"] == [str(out), str(out.with_stem("out-2"))]
    assert report["lost"] == 0


def test_a_new_size_in_mid_stream(key, folder):
    """Joined transport streams, of which the second has a larger picture, packets included."""
    data = cameras.stream(folder) + cameras.stream(folder, "640x368")
    (folder / "joined.ts").write_bytes(data)
    with Publish(key, folder / "joined.ts", "--packets", "--wait-for", 1) as publish:
        with Subscriber(key, mode="ordered", reconnect=True, connect_timeout=30) as subscriber:
            sizes = []
            while sizes[-1:] != [(640, 368)]:
                frame = subscriber.next(30)
                sizes.append((frame.width, frame.height))
            with PacketReader(key, "oldest") as reader:
                assert reader.next(10).keyframe
        status, report = publish.end()
    assert (status, report["published"]) == (0, 200)


def test_how_a_source_ends(key, folder):
    """A file with 0. A live stream that is not to come back with 1, and says why."""
    file = folder / "ends.ts"
    file.write_bytes(cameras.stream(folder))
    with Publish(key, file, "--fps", 0) as publish:
        assert publish.end()[0] == 0
    with (
        TcpCamera(play(cameras.stream(folder), 1)) as camera,
        Publish(key, camera.url, "--reconnect", "never") as publish,
    ):
        status, report = publish.end()
        assert status == 1
        assert report["published"] > 50
        assert publish.errors[-1] == f"cuframes: {camera.url}: the stream has ended"
    with TcpCamera(play(cameras.stream(folder), 1, reset)) as camera:
        with Publish(key, camera.url, "--reconnect", "never") as publish:
            assert publish.end()[0] == 1
            assert "Connection reset" in publish.errors[-1]
    with Publish(key, "nosuch://x") as publish:
        assert publish.end()[0] == 1
        assert "--via ffmpeg" in publish.errors[-1]


def test_seconds_hold_in_every_state(key):
    with TcpCamera(silence) as camera, Publish(key, camera.url, "--seconds", 1) as publish:
        assert publish.end(20) == (0, publish.lines[-1])
        assert publish.lines[-1]["published"] == 0


def test_standard_input(key, folder):
    data = cameras.stream(folder)
    with Publish(key, "-", stdin=subprocess.PIPE) as publish:
        writer = threading.Thread(
            target=lambda: (publish.process.stdin.write(data.decode("latin-1")), publish.process.stdin.close())
        )
        publish.process.stdin.reconfigure(encoding="latin-1", newline="")
        writer.start()
        status, report = publish.end()
        writer.join(10)
    assert (status, report["published"]) == (0, 100)


def test_a_publisher_that_was_stopped_goes_on(key, folder):
    """It was stopped for longer than its time-out: its source was not silent, the publisher was."""
    data = cameras.stream(folder)
    again = threading.Event()

    def act(sock, over):
        sock.sendall(data[: len(data) // 2])
        again.wait(60)
        play(data[len(data) // 2 :], 2)(sock, over)

    with TcpCamera(act) as camera:
        with Publish(key, camera.url, "--timeout", 4, "--reconnect", "never", "--wait-for", 1) as publish:
            with Subscriber(key, mode="ordered", connect_timeout=30) as subscriber:
                frames_from(subscriber, 10)
                publish.process.send_signal(signal.SIGSTOP)
                eventually(lambda: has_stopped(publish.process.pid))
                time.sleep(6)
                publish.process.send_signal(signal.SIGCONT)
                time.sleep(0.5)  # if it gives its source up, it does so now
                again.set()
                with contextlib.suppress(Disconnected):
                    while True:
                        newest = subscriber.next(30)
                assert newest.frame_no > 90
    assert camera.connections == 1


def test_fps_thins_a_live_source(key, folder):
    """Every fifth picture with its own time, and not the first ones more slowly."""
    with (
        TcpCamera(play(cameras.stream(folder), 4, silence)) as camera,
        Publish(key, camera.url, "--fps", 5, "--wait-for", 1),
    ):
        with Subscriber(key, mode="ordered", connect_timeout=30) as subscriber:
            stamps = frames_from(subscriber, 15)
    assert {round((b - a) / 1e6) for a, b in pairwise(stamps)} == {200}


def test_also_publishes_further_sizes_from_one_decode(key, folder):
    file = folder / "also.ts"
    file.write_bytes(cameras.stream(folder))
    small = f"{key}-s"
    also = ("--also", f"{small}:160x-2@5:bgr24", "--also", f"{key}-g:gray8")
    with Publish(key, file, "--wait-for", 1, *also) as publish:
        with Subscriber(key, connect_timeout=30), Subscriber(small, mode="ordered", connect_timeout=30) as subscriber:
            frame = subscriber.next(30)
            assert (frame.format, frame.width, frame.height) == ("bgr24", 160, 120)
            stamps = [frame.pts_ns, *frames_from(subscriber, 10)]
            assert {round((b - a) / 1e6) for a, b in pairwise(stamps)} == {200}
            frame.release()
        status, report = publish.end()
    assert status == 0
    assert [other["published"] for other in report["also"]] == [20, 100]
    assert [line["key"] for line in publish.lines[:-1]] == [key, small, f"{key}-g"]


def test_rtsp_camera_killed_restarted_and_frozen(key):
    port = cameras.free_port()
    url = f"rtsp://127.0.0.1:{port}/camera"
    with (
        cameras.rtsp_camera(port) as server,
        Publish(key, url, "--rtsp-transport", "tcp", "--timeout", 4, "--packets") as publish,
    ):
        publish.ready(60)
        with Subscriber(key, reconnect=True) as subscriber:
            subscriber.next(30)
            server.close()
            publish.becomes("reconnecting")
            with cameras.rtsp_camera(port) as second:
                publish.becomes("live", timeout=60)
                subscriber.next(30)
                second.freeze()
                publish.becomes("stalled", timeout=60)
                publish.becomes("reconnecting", timeout=60)
            with cameras.rtsp_camera(port, 640, 480) as third:
                eventually(lambda: subscriber.next(60).width == 640, 90)
                third.freeze()
                publish.becomes("stalled", timeout=60)
                status, _ = publish.stop()
    assert status == 143
    assert len(publish.errors) < 12


def test_udp_with_a_fifth_of_it_lost(key, folder):
    """Damaged pictures are left out or damaged, and the stream goes on."""
    port = cameras.free_port(socket.SOCK_DGRAM)
    with cameras.LossyRelay(port) as relay:
        sender = ("-stream_loop", "-1", "-i", cameras.make(folder / "udp.ts", "-bf", "2"), "-c", "copy", "-f", "mpegts")
        with cameras.ffmpeg(*sender, f"udp://127.0.0.1:{relay.port}?pkt_size=1316"):
            with Publish(key, f"udp://127.0.0.1:{port}", "--packets", "--timeout", 5) as publish:
                publish.ready(60)
                with Subscriber(key, mode="ordered") as subscriber:
                    stamps = frames_from(subscriber, 60)
                assert stamps == sorted(set(stamps))
                status, report = publish.stop()
        assert relay.lost > 10
    assert status == 143
    assert report["published"] >= 60
    assert report["delay_p50_us"] > 0
    assert len(publish.errors) < 10


def test_srt_through_ffmpeg(key, folder):
    """PyAV's wheels have no SRT; the ffmpeg command has, and dies with us."""
    cameras.needs_ffmpeg()
    if " srt\n" not in subprocess.check_output([cameras.FFMPEG, "-v", "error", "-protocols"], text=True).replace(
        "\t", " "
    ):
        pytest.skip("this ffmpeg has no SRT")
    port = cameras.free_port(socket.SOCK_DGRAM)
    sender = ("-stream_loop", "-1", "-i", cameras.make(folder / "srt.ts"), "-c", "copy", "-f", "mpegts")
    with cameras.ffmpeg(*sender, f"srt://127.0.0.1:{port}?mode=listener"):
        with Publish(key, f"srt://127.0.0.1:{port}", "--packets") as publish:
            publish.ready(60)
            with Subscriber(key) as subscriber, PacketReader(key) as reader:
                assert subscriber.next(30)
                assert reader.next(30).keyframe
            children = Path(f"/proc/{publish.process.pid}/task").glob("*/children")
            child = next(int(pid) for path in children for pid in path.read_text().split())
            publish.process.kill()
            publish.end()
            eventually(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())
    from cuframes.session.listing import collect_garbage

    collect_garbage([key])


def test_a_file_through_ffmpeg(key, folder):
    cameras.needs_ffmpeg()
    (folder / "via.ts").write_bytes(cameras.stream(folder))
    with Publish(key, folder / "via.ts", "--via", "ffmpeg", "--fps", 0, "--packets") as publish:
        status, report = publish.end()
    assert (status, report["published"], report["packets"]) == (0, 100, 100)
    with Publish(key, folder / "not there.ts", "--via", "ffmpeg") as publish:
        assert publish.end()[0] == 1
    assert "No such file" in publish.errors[-1]


def test_the_remedies_where_srt_cannot_be_had(key, tmp_path):
    with Publish(key, "srt://127.0.0.1:1", env={"PATH": str(tmp_path)}) as publish:
        assert publish.end()[0] == 1
    assert "install ffmpeg" in publish.errors[-1]
    assert "--no-binary av" in publish.errors[-1]


def test_readiness_is_told_to_systemd(key, folder, tmp_path):
    file = folder / "notify.ts"
    file.write_bytes(cameras.stream(folder))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with Publish(key, file, "--fps", 0, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as publish:
            assert publish.end()[0] == 0
        said = []
        while "STOPPING=1" not in said:
            said.append(manager.recv(4096).decode())
    assert said.index("READY=1") < said.index("STOPPING=1")
    assert any(text.startswith("STATUS=") and "live" in text for text in said)


def test_a_file_with_a_colon_in_its_name(key, folder):
    for name in ("2026-01-31T12:00:00.ts", "cam:1.ts", "100%.ts", "über maß.ts"):
        (folder / name).write_bytes(cameras.stream(folder))
        done = subprocess.run(
            [sys.executable, "-m", "cuframes", "publish", key, "--source", name, "--fps", "0", "--json"],
            cwd=folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["published"] == 100


def test_two_of_one_key(key):
    with TcpCamera(silence) as camera, Publish(key, camera.url) as first:
        first.becomes("opening")
        with Publish(key, camera.url) as second:
            assert second.end()[0] == 1
        assert "another process publishes" in second.errors[-1]
        first.process.kill()
        first.end()
        assert first.source() is None  # the dead say nothing
        with Publish(key, camera.url) as third:
            third.becomes("opening")
            third.process.kill()
            third.end()
    from cuframes.session.listing import collect_garbage

    assert [path.name for path in collect_garbage([key])] == [f"{key}.status"]


def test_a_status_file_that_is_removed_comes_back(key, folder, runtime_dir):
    """Also while nothing changes."""
    data = cameras.stream(folder)
    with TcpCamera(play(data, 4, silence)) as camera, Publish(key, camera.url, "--timeout", 60) as publish:
        publish.ready()
        (runtime_dir / f"{key}.status").unlink()
        assert publish.becomes("live", "stalled").pid == publish.process.pid
        publish.becomes("stalled")
        (runtime_dir / f"{key}.status").unlink()
        assert publish.becomes("stalled").source == camera.url
        publish.stop()
    assert nothing_left(key, runtime_dir)


def test_a_status_that_could_not_be_written_is_written_later(key, runtime_dir):
    """The file was removed, and another process had one for a moment."""
    now = SourceStatus(key, os.getpid(), "rtsp://camera", "live", time.time(), 1, None)
    with StatusFile(key) as first:
        first.write(now)
        (runtime_dir / f"{key}.status").unlink()
        with StatusFile(key), pytest.raises(AlreadyExists):
            first.write(now)
        first.write(now)
        assert find_status(key) == now
    assert nothing_left(key, runtime_dir)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[" * 16_000,
        b'{"pid": 1}',
        b'{"pid": 1, "source": "x", "state": "live", "since": 1e999, "attempt": 1, "error": null}',
        b'{"pid": "x", "source": [], "state": {}, "since": "now", "attempt": [], "error": 1}',
        b"\xff" * 100,
    ],
)
def test_nonsense_in_a_status_file_is_no_status(key, runtime_dir, said):
    with StatusFile(key) as file:
        file.write(SourceStatus(key, 1, "\x1b[2J" + "x" * 10_000, "live", 5.0, 1, "e" * 10_000))
        found = find_status(key)
        assert found.source.startswith("\ufffd[2J")
        assert len(found.error) == 500
        path = runtime_dir / f"{key}.status"
        path.write_bytes(said)
        assert find_status(key) is None
        path.unlink()
        file.write(SourceStatus(key, 1, "again", "live", 5.0, 1, None))
        assert find_status(key).source == "again"
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", ["watch {}", "snapshot {} x.png", "record {} x.mp4", "pipe {}"])
def test_a_signal_ends_what_waits_for_a_publisher(key, tmp_path, words, number):
    program = "import os, signal, sys, threading, time; from cuframes.cli import main\n"
    command = [sys.executable, "-c", f"{program}main()", *words.format(key).split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True) as child:
        # It looks for the publisher's socket again and again: so it waits.
        eventually(lambda: "cuframes" in Path(f"/proc/{child.pid}/maps").read_text(), 30)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2)
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 128 + number
    assert errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [("--policy", "strict_wait"), ("--wait-for", 1)])
def test_a_signal_ends_what_waits_for_subscribers(key, options, number):
    with Publish(key, "testsrc", *options) as publish:
        publish.ready()
        if "strict_wait" in options:
            with Subscriber(key, mode="ordered", max_held=3) as subscriber:
                held = [subscriber.next(30) for _ in range(3)]
                eventually(lambda: find_publisher(key).published >= 8)  # it has no slot left
                status, report = publish.stop(number)
                del held
        else:
            status, report = publish.stop(number)
    assert status == 128 + number
    assert report["event"] == "ended"


def test_signals_that_come_on_and_on_do_not_change_the_exit_status(key):
    """The first one decides, also while the interpreter is being taken down."""
    with Publish(key, "testsrc", "--size", "320x240") as publish:
        publish.ready()
        publish.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 20
        while publish.process.poll() is None and time.monotonic() < deadline:
            publish.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        status, report = publish.end()
    assert status == 130
    assert report["event"] == "ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_full_pipe(key, folder, number):
    file = folder / "pipe.ts"
    file.write_bytes(cameras.stream(folder))
    with Publish(key, file, "--loop") as publish:
        publish.ready()
        read, write = os.pipe()
        child = subprocess.Popen([sys.executable, "-m", "cuframes", "pipe", key], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        os.read(read, 10)  # it has begun, and nobody reads on

        def blocked():
            return Path(f"/proc/{child.pid}/wchan").read_text().endswith("pipe_write") or waits_in_write(child.pid)

        eventually(blocked, 30)
        child.send_signal(number)
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
        os.close(read)
        assert child.returncode == 128 + number
        assert errors == b""
        publish.stop()


def waits_in_write(pid):
    """Whether the main thread is inside write(2), as the kernel says it."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "1"
    except OSError:
        return False
