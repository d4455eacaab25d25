"""Packets pushed to real servers on loopback, and to servers that refuse, hang or break off."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cameras
import pytest
from harness import eventually, has_stopped

from cuframes import PacketPublisher

av = pytest.importorskip("av")
pytest.importorskip("typer")

from recorded import Source, command, lines, steady  # noqa: E402

from cuframes.media import pushing  # noqa: E402
from cuframes.media.destinations import destination, shown  # noqa: E402
from cuframes.media.pushing import Pusher, PushRefused, Repeats  # noqa: E402

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg to push to")


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def pushing_to(key, url, *options):
    """The command, which has begun."""
    child = subprocess.Popen(
        command("push", key, url, "--json", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert json.loads(child.stdout.readline())["event"] == "ready"
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            pipe.close()


def stop(child, number=signal.SIGTERM):
    """End it with a signal; what it said, and its errors."""
    child.send_signal(number)
    out, errors = child.communicate(timeout=30)
    assert child.returncode == 128 + number, errors
    return lines(out), errors


def connections_of(pid):
    """The processes of the connections of a push."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


RECEIVERS = {
    "tcp": (["-i", "tcp://127.0.0.1:{port}?listen"], "tcp://127.0.0.1:{port}"),
    "udp": (["-i", "udp://127.0.0.1:{port}?timeout=5000000"], "udp://127.0.0.1:{port}"),
    "rtmp": (["-listen", "1", "-i", "rtmp://127.0.0.1:{port}/live/cam"], "rtmp://127.0.0.1:{port}/live/cam"),
    "http": (["-listen", "1", "-i", "http://127.0.0.1:{port}/cam"], "http://127.0.0.1:{port}/cam"),
    "rtsp": (["-rtsp_flags", "listen", "-i", "rtsp://127.0.0.1:{port}/cam"], "rtsp://127.0.0.1:{port}/cam"),
}


@needs_ffmpeg
@pytest.mark.parametrize("kind", RECEIVERS)
def test_ffmpeg_receives_the_packets(key, encoded, tmp_path, kind):
    """Every one that was sent, from a keyframe on, unchanged."""
    source = Source(encoded("h264", ".mp4"))
    arguments, url = RECEIVERS[kind]
    port = free_port(socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    wanted = 40
    received = tmp_path / "received.h264"
    receiver = subprocess.Popen(
        ["ffmpeg", "-v", "error", "-y", "-probesize", "100000", "-analyzeduration", "1000000"]
        + [word.format(port=port) for word in arguments]
        + ["-map", "0:v", "-c", "copy", "-frames:v", str(wanted), "-bsf:v", "h264_mp4toannexb"]
        + ["-f", "h264", str(received)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with steady(source, key), pushing_to(key, url.format(port=port), "--timeout", 20) as child:
            assert receiver.wait(60) == 0
            told, errors = stop(child)
    finally:
        receiver.kill()
        receiver.wait()
    assert "Traceback" not in errors
    assert told[-1]["event"] == "end"
    assert told[-1]["packets"] >= wanted or told[-1]["connections"] > 1
    assert told[-1]["lost"] == 0
    with av.open(str(received), format="h264") as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == wanted
    assert packets[0].is_keyframe
    units = {nal for data, *_ in source.packets for nal in slices(data, 4)}
    assert all(unit in units for packet in packets for unit in annexb_slices(bytes(packet)))


def slices(data, size):
    """The pictures' NAL units of a packet with lengths."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + size], "big")
        unit = data[at + size : at + size + length]
        if 1 <= unit[0] & 31 <= 5:
            yield unit
        at += size + length


def annexb_slices(data):
    """The pictures' NAL units of a packet with start codes."""
    for unit in data.split(b"\0\0\1")[1:]:
        if 1 <= unit[0] & 31 <= 5:
            yield unit.removesuffix(b"\0")


@contextlib.contextmanager
def server(serve):
    """A TCP server that does `serve(connection)` for each connection; its port, and the connections so far."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                with contextlib.suppress(OSError):
                    serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join(20)


def silent(connection):
    """Neither read nor say anything."""


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "tcp", "http"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_push_to_a_server_that_is_silent(key, encoded, scheme, number):
    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, connections):
        with pushing_to(key, f"{scheme}://127.0.0.1:{port}/cam") as child:
            eventually(lambda: connections, timeout=30)
            processes = connections_of(child.pid)
            told, errors = stop(child, number)
    assert told[-1]["event"] == "end"
    assert "Traceback" not in errors
    assert processes
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_a_server_that_never_answers_is_left_after_the_timeout(key, encoded):
    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, connections):
        with pushing_to(key, f"rtmp://127.0.0.1:{port}/live/cam", "--timeout", 0.5) as child:
            failed = json.loads(child.stdout.readline())
            eventually(lambda: len(connections) >= 2, timeout=30)  # and tried again
            told, errors = stop(child)
    assert failed["event"] == "failed"
    assert failed["error"] == "the connection was not opened for 0.5 s"
    assert 0.5 <= failed["retry_s"] <= 0.8
    assert told[-1]["connections"] == 0
    assert errors.startswith(
        f"cuframes: rtmp://127.0.0.1:{port}/live/cam: the connection was not opened for 0.5 s; try"
    )


def test_a_server_that_takes_nothing_any_more_is_left_after_the_timeout(key, encoded):
    """As one that is frozen: the connection is there, and its buffers fill."""
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key, slots=1024) as publisher, server(silent) as (port, connections):
        source.publish(publisher, 0, 12)
        with pushing_to(key, f"tcp://127.0.0.1:{port}?send_buffer_size=4096", "--timeout", 1) as child:
            assert json.loads(child.stdout.readline())["event"] == "connected"
            ended = threading.Event()
            turn = iter(range(1, 10**6))

            def flood():
                while not ended.wait(0.02):
                    source.publish(publisher, shift_ns=next(turn) * 4_000_000_000)

            thread = threading.Thread(target=flood)
            thread.start()
            try:
                failed = json.loads(child.stdout.readline())
                again = json.loads(child.stdout.readline())
            finally:
                ended.set()
                thread.join()
            stop(child)
    assert failed["event"] == "failed"
    assert failed["error"] == "the connection took nothing for 1 s"
    assert again["event"] == "connected"
    assert len(connections) >= 2


def test_it_connects_again_and_begins_with_a_keyframe(key, encoded):
    """The server breaks off; what it gets on the next connection can be decoded by itself."""
    source = Source(encoded("h264", ".mp4"))
    received = []

    def serve(connection):
        data = b""
        while len(data) < 30_000 and (more := connection.recv(1 << 16)):
            data += more
        received.append(data)
        connection.close()

    with steady(source, key), server(serve) as (port, _):
        with pushing_to(key, f"tcp://127.0.0.1:{port}") as child:
            eventually(lambda: len(received) >= 3, timeout=60)
            told, _errors = stop(child)
    events = [line["event"] for line in told]
    assert events[:3] == ["connected", "failed", "connected"]
    assert told[-1]["connections"] >= 3
    for data in received[:3]:
        decoder_input = av.open(io.BytesIO(data), format="mpegts")
        first = next(packet for packet in decoder_input.demux(video=0) if packet.size)
        assert first.is_keyframe
        decoder_input.close()


def test_a_damaged_keyframe_is_no_reason_to_give_up(key, encoded):
    source = Source(encoded("h264", ".ts"))
    source.damage(*range(0, 96, 12))
    with steady(source, key), server(silent) as (port, _):
        with pushing_to(key, f"tcp://127.0.0.1:{port}") as child:
            for _ in range(2):
                event = json.loads(child.stdout.readline())
                assert event["event"] == "failed"
                assert "a keyframe is damaged" in event["error"]
            stop(child)


def test_it_waits_for_the_publisher_and_stays_connected(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    data = bytearray()

    def serve(connection):
        while more := connection.recv(1 << 16):
            data.extend(more)

    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(server(serve))
        with source.publisher(key) as publisher:
            source.publish(publisher, 0, 24)
            child = stack.enter_context(pushing_to(key, f"tcp://127.0.0.1:{port}", "--reconnect", 20))
            assert json.loads(child.stdout.readline())["event"] == "connected"
            eventually(lambda: len(data) > 1000, timeout=20)
        before = len(data)
        with source.publisher(key) as publisher:
            source.publish(publisher, 0, 24)
            eventually(lambda: len(data) > before + 1000, timeout=20)
            told, _ = stop(child)
    assert told[-1]["connections"] == 1
    (tmp_path / "out.ts").write_bytes(data)
    with av.open(str(tmp_path / "out.ts")) as container:
        times = [packet.dts for packet in container.demux(video=0) if packet.size]
    assert times == sorted(set(times))


def test_another_stream_gets_a_connection_of_its_own(key, encoded):
    first, second = Source(encoded("h264", ".mp4")), Source(encoded("hevc", ".mp4"))
    codecs = []

    def serve(connection):
        data = b""
        while more := connection.recv(1 << 16):
            data += more
            if len(data) > 8000 and len(codecs) < len(connections):
                with av.open(io.BytesIO(data), format="mpegts") as container:
                    codecs.append(container.streams.video[0].codec_context.name)

    with contextlib.ExitStack() as stack:
        port, connections = stack.enter_context(server(serve))
        with first.publisher(key) as publisher:
            first.publish(publisher)
            child = stack.enter_context(pushing_to(key, f"tcp://127.0.0.1:{port}", "--reconnect", 20))
            eventually(lambda: codecs == ["h264"], timeout=30)
        with second.publisher(key) as publisher:
            second.publish(publisher)
            eventually(lambda: codecs == ["h264", "hevc"], timeout=30)
            told, _ = stop(child)
    assert [line["event"] for line in told] == ["connected", "changed", "connected", "end"]


def test_it_ends_with_the_publisher(key, encoded):
    source = Source(encoded("h264", ".mp4"))

    def serve(connection):
        while connection.recv(1 << 16):
            pass

    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(server(serve))
        with source.publisher(key) as publisher:
            source.publish(publisher)
            child = stack.enter_context(pushing_to(key, f"tcp://127.0.0.1:{port}", "--reconnect", 0))
            assert json.loads(child.stdout.readline())["event"] == "connected"
            eventually(lambda: connections_of(child.pid))
        out, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
    assert lines(out)[-1]["event"] == "end"


def test_a_killed_push_leaves_no_process(key, encoded):
    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, connections):
        with pushing_to(key, f"rtsp://127.0.0.1:{port}/cam") as child:
            eventually(lambda: connections, timeout=30)
            processes = connections_of(child.pid)
            child.kill()
            child.wait()
            assert processes
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), timeout=20)


def test_a_stopped_connection_is_ended(key, encoded):
    """A process that does nothing any more is killed."""
    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, _):
        with pushing_to(key, f"tcp://127.0.0.1:{port}", "--timeout", 1) as child:
            assert json.loads(child.stdout.readline())["event"] == "connected"
            (pid,) = connections_of(child.pid)
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda: has_stopped(pid), timeout=20)
            assert json.loads(child.stdout.readline())["error"] == "the connection took nothing for 1 s"
            eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout=20)
            stop(child)


def test_a_process_that_cannot_be_started_is_tried_again(key, encoded, monkeypatch):
    start, told = subprocess.Popen, []

    def refuse(*arguments, **options):
        monkeypatch.setattr(subprocess, "Popen", start)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def tell(event):
        told.append(event)
        if event["event"] == "connected":
            raise KeyboardInterrupt

    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, _):
        monkeypatch.setattr(subprocess, "Popen", refuse)
        with Pusher(key, destination(f"tcp://127.0.0.1:{port}"), told=tell) as pusher, pytest.raises(KeyboardInterrupt):
            pusher.run()
    assert [event["event"] for event in told] == ["failed", "connected"]
    assert "could not be started: [Errno 11]" in told[0]["error"]


def test_refusals_are_told_without_passwords(key, encoded):
    def serve(connection):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    with steady(Source(encoded("h264", ".mp4")), key), server(serve) as (port, connections):
        with pushing_to(key, f"rtsp://user:secret@127.0.0.1:{port}/cam") as child:
            eventually(lambda: len(connections) >= 2, timeout=60)
            told, errors = stop(child)
    assert told[0]["event"] == "failed"
    assert "secret" not in errors
    assert f"rtsp://user:***@127.0.0.1:{port}/cam: " in errors
    assert "secret" not in json.dumps(told)


def test_webrtc_offers_the_stream(key, tmp_path):
    """As far as that goes without a WebRTC server: the offer arrives, and its refusal is reported."""
    if "whip" not in av.formats_available:
        pytest.skip("PyAV's FFmpeg cannot do WHIP")
    path = tmp_path / "baseline.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"profile": "baseline", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(48):
            frame = av.VideoFrame(320, 240, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    offers = []

    def serve(connection):
        offers.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    with steady(Source(str(path)), key), server(serve) as (port, _):
        with pushing_to(key, f"http://127.0.0.1:{port}/cam/whip") as child:
            failed = json.loads(child.stdout.readline())
            stop(child)
    assert failed["event"] == "failed"
    assert offers[0].startswith(b"POST /cam/whip")
    assert b"application/sdp" in offers[0]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["KEY", "ftp://x/y"], 2, "packets can be pushed to URLs of rtsp, rtsps, rtmp"),
        (["KEY", "cam.mp4"], 2, "packets can be pushed to URLs of rtsp"),
        (["KEY", "udp://127.0.0.1:9", "--format-name", "nonsense"], 2, "PyAV's FFmpeg has no format 'nonsense'"),
        (["KEY", "udp://127.0.0.1:9", "--option", "x"], 2, "--option must be NAME=VALUE"),
        (["KEY", "rtsp://127.0.0.1:9", "--rtsp-transport", "ip"], 2, "--rtsp-transport must be tcp or udp"),
        (["nobody", "udp://127.0.0.1:9", "--connect-timeout", "0"], 3, "no publisher of 'nobody'"),
    ],
)
def test_what_cannot_be_pushed_is_said(key, arguments, status, message):
    with PacketPublisher(key, "h264"):
        done = subprocess.run(
            command("push", *[word.replace("KEY", key) for word in arguments]),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_protocol_that_ffmpeg_lacks_has_a_remedy(key, encoded):
    with steady(Source(encoded("h264", ".mp4")), key):
        done = subprocess.run(command("push", key, "rist://127.0.0.1:9"), capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        pytest.skip("PyAV's FFmpeg can do it")
    assert done.returncode == 1
    assert "PyAV's FFmpeg cannot do rist; if the system's can, use: cuframes record KEY - | ffmpeg" in done.stderr


def test_a_format_that_cannot_hold_the_codec_ends_a_push(key, tmp_path):
    """The error has what FFmpeg says about it."""
    with av.open(str(tmp_path / "x.avi"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        frame = av.VideoFrame(320, 240, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    source = Source(str(tmp_path / "x.avi"))
    with source.publisher(key) as publisher, server(silent) as (port, _):
        source.publish(publisher)
        with pytest.raises(PushRefused, match=r"cannot be pushed to as flv: .*mjpeg"):
            with Pusher(key, destination(f"tcp://127.0.0.1:{port}", "flv")) as pusher:
                pusher.run(30)


def test_a_damaged_keyframe_does_not_end_a_push(key, tmp_path):
    """Its parameter sets are nonsense, so no connection can begin with it; the next one can."""
    source = Source(cameras.make(tmp_path / "source.ts", "-bf", "0"))
    source.extradata = None
    damaged = b"\0\0\0\1\x67\xff\xff\0\0\0\1\x65" + bytes(range(1, 250))

    def take(connection):
        while connection.recv(1 << 16):
            pass

    with source.publisher(key) as publisher, server(take) as (port, _):
        source.publish(publisher)
        with pushing_to(key, f"tcp://127.0.0.1:{port}", "--format-name", "matroska") as child:
            assert json.loads(child.stdout.readline())["event"] == "connected"
            publisher.publish_packet(damaged, pts_ns=10**11, dts_ns=10**11, keyframe=True)
            assert json.loads(child.stdout.readline())["event"] == "changed"
            failed = json.loads(child.stdout.readline())
            source.publish(publisher, shift_ns=2 * 10**11)
            while json.loads(child.stdout.readline())["event"] != "connected":
                pass
            stop(child)
    assert failed["event"] == "failed"
    assert "damaged" in failed["error"]


def test_a_server_that_is_never_there(key, encoded, monkeypatch):
    monkeypatch.setattr(pushing, "BACKOFF_SECONDS", (0.01, 0.02))
    events = []
    port = free_port()
    with steady(Source(encoded("h264", ".mp4")), key):
        with Pusher(key, destination(f"tcp://127.0.0.1:{port}"), told=events.append) as pusher:
            with pytest.raises(ConnectionError, match=f"tcp://127.0.0.1:{port} was never reached: Connection refused"):
                pusher.run(5)
    assert len(events) >= 1
    assert all(0.01 <= event["retry_s"] <= 0.1 for event in events)


def test_an_option_that_ffmpeg_does_not_know_is_refused(key, encoded):
    with steady(Source(encoded("h264", ".mp4")), key), server(silent) as (port, _):
        done = subprocess.run(
            command("push", key, f"tcp://127.0.0.1:{port}", "--option", "nonsense=1"),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Some options were not used: {'nonsense': '1'}" in done.stderr


def test_repeated_lines_are_counted(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(pushing.time, "monotonic", lambda: clock[0])
    written = []
    log = Repeats(written.append)
    for _ in range(50):
        log("refused")
        log("other")
        clock[0] += 0.5
    assert written == ["refused", "other"]
    clock[0] += 60
    log("refused")
    assert written[2:] == ["refused (49 more times in 85 s)"]


def test_urls_in_logs():
    assert shown("rtsp://user:pass@host/x") == "rtsp://user:***@host/x"
    assert shown("rtmp://host/app/key") == "rtmp://host/app/key"
    assert shown("rtsp://host/a\nb") == "rtsp://host/a\ufffdb"
    assert destination("udp://h:1").url == "udp://h:1?pkt_size=1316"
    assert destination("udp://h:1?ttl=2").url == "udp://h:1?ttl=2&pkt_size=1316"
    assert destination("https://h/whip").format == "whip"
    assert destination("https://h/x").format == "mpegts"


def test_the_process_of_a_connection_ends_with_its_input(key, encoded):
    source = Source(encoded("h264", ".mp4"))
    with steady(source, key), server(silent) as (port, _):
        child = subprocess.Popen(
            [sys.executable, "-m", "cuframes.media.push_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        request = {
            "key": key, "url": f"tcp://127.0.0.1:{port}", "format": "mpegts", "options": {},
            "connect_timeout": 5, "reconnect": 5,
        }  # fmt: skip
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        states = set()
        while "live" not in states:
            states.add(json.loads(child.stdout.readline())["state"])
        child.stdin.close()
        rest = child.stdout.read().splitlines()
        child.stdout.close()
        assert child.wait(20) == 0
    assert {"waiting", "opening", "open"} <= states
    assert json.loads(rest[-1])["state"] == "counts"
