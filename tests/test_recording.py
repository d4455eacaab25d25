"""Packets of real video: shared, recorded, and compared with their source byte for byte."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from harness import eventually, python_path

import cuframes
from cuframes import PacketFlags, PacketPublisher, PacketReader, Subscriber

av = pytest.importorskip("av")
pytest.importorskip("typer")

from recorded import Source, command, finish, lines, probe, probe_packets, relative, start_recording, steady  # noqa: E402

from cuframes.codecs import codec_id, codec_name, parameter_sets_filter  # noqa: E402
from cuframes.media.recording import Recording, backlog  # noqa: E402
from cuframes.media.timeline import Timeline  # noqa: E402

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("h264", ".mkv"), ("hevc", ".mp4"), ("hevc", ".mkv")])
def test_three_recordings_are_identical_to_the_source(key, encoded, tmp_path, codec, suffix):
    source = Source(encoded(codec, ".mp4"))
    assert any(pts != dts for _, pts, dts, _ in source.packets)  # B-frames
    paths = [tmp_path / f"{number}{suffix}" for number in range(3)]
    with source.publisher(key) as publisher:
        children = []
        for number, path in enumerate(paths):
            source.publish(publisher, 30 * number, 30 * (number + 1) if number < 2 else 90)
            children.append(start_recording(key, path, "--reconnect", 0))
        source.publish(publisher, 90)
    for child in children:
        assert " 0 lost" in finish(child)
    keyframes = [at for at, packet in enumerate(source.packets) if packet[3]]
    for number, path in enumerate(paths):
        begin = max(at for at in keyframes if at < 30 * (number + 1))
        expected = relative(source.packets[begin:])
        found, frames = probe(path)
        assert [packet[0] for packet in found] == [packet[0] for packet in expected]
        assert found[0][3]
        assert [packet[1] for packet in found] == [packet[1] for packet in expected]
        if suffix == ".mp4":  # Matroska has no dts
            assert [packet[2] for packet in found] == [packet[2] for packet in expected]
        assert frames == len(expected)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("container", [".mp4", ".ts"])
def test_transport_streams(key, encoded, tmp_path, codec, container):
    source = Source(encoded(codec, container))
    with source.publisher(key) as publisher, PacketReader(key, "oldest") as reader:
        source.publish(publisher)
        with Recording(tmp_path / "out.ts", reader) as ts, Recording(tmp_path / "out.mp4", reader) as mp4:
            publisher.close()
            for packet in reader:
                ts.write(packet)
                mp4.write(packet)
    for path in (tmp_path / "out.ts", tmp_path / "out.mp4"):
        found, frames = probe(path)
        assert frames == len(source.packets)
        assert [packet[1] for packet in found] == [packet[1] for packet in relative(source.packets)]


def test_parameter_sets_are_repeated_where_the_stream_lacks_them(key, encoded):
    # As from an RTSP camera: start codes, parameter sets beside the stream only.
    path = encoded("h264", ".nut")
    source = Source(path)
    assert source.extradata.startswith(b"\0\0\0\1")
    assert not source.packets[0][0].startswith(source.extradata)
    child = subprocess.Popen(
        command("publish", key, "--source", path, "--packets", "--fps", 0, "--loop", "--seconds", 30),
        stderr=subprocess.DEVNULL,
    )
    try:
        with PacketReader(key, connect_timeout=20) as reader:
            packet = reader.next(10)
            assert packet.data.startswith(source.extradata)
            decoder = av.CodecContext.create(reader.codec, "r")  # knows nothing but the packets
            frames = []
            while len(frames) < 20:
                frames += decoder.decode(av.Packet(packet.data))
                packet = reader.next(10)
    finally:
        child.terminate()
        child.wait(20)
    with av.open(encoded("h264", ".mp4")) as container:
        assert parameter_sets_filter(container.streams.video[0]) is None  # MP4 has them in its extradata


def test_frames_and_packets_have_the_same_pts(key, encoded):
    child = subprocess.Popen(
        command("publish", key, "--source", encoded("h264", ".mp4"), "--packets", "--loop", "--memory", "host"),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with PacketReader(key, "oldest", connect_timeout=20) as reader, Subscriber(key, mode="ordered") as subscriber:
            frames = [subscriber.next(10).pts_ns for _ in range(110)]
            packets = [reader.next(10) for _ in range(110)]
            assert [p.seq for p in packets] == list(range(1, 111))
            decoding = [p.dts_ns for p in packets]
            assert decoding == sorted(set(decoding))  # also where the file begins again
            known = {p.pts_ns for p in packets}
            assert len(known.intersection(frames)) > 80
            steps = {round((b - a) / 1e6) for a, b in pairwise(frames)}
            assert 40 in steps
            assert all(step > 0 and step % 40 == 0 for step in steps)  # also where the file begins again
            listed = json.loads(subprocess.check_output(command("ls", "--json")))
            mine = next(entry for entry in listed if entry["key"] == key)
            assert mine["packets"]["codec"] == "h264"
            assert mine["packets"]["seq"] >= 110
            shown = subprocess.check_output(command("info", key), text=True)
            assert "packets of h264 published" in shown
            watched = subprocess.check_output(command("watch", key, "--packets", "--seconds", 1, "--json"), text=True)
            report = json.loads(watched.splitlines()[-1])
            assert report["codec"] == "h264"
            assert report["received"] > 10
            assert report["lost"] == 0
    finally:
        child.send_signal(signal.SIGTERM)
        _, rest = child.communicate(timeout=20)
    assert child.returncode == 143
    assert "packets published" in rest


def test_pre_begins_before_the_event(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        source.publish(publisher, 0, 60)
        time.sleep(3)
        later = time.monotonic()
        source.publish(publisher, 60)
        with PacketReader(key, "oldest") as reader:
            short = backlog(reader, time.monotonic() - later + 1.5)  # between the two
        child = start_recording(key, tmp_path / "long.mp4", "--pre", 1000, "--reconnect", 0)
    finish(child)
    begin = max(at for at, packet in enumerate(source.packets[:60]) if packet[3])
    assert [p.data for p in short] == [p[0] for p in source.packets[begin:]]
    assert [p[0] for p in probe(tmp_path / "long.mp4")[0]] == [p[0] for p in source.packets]


def test_a_recording_survives_a_gap(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key, slots=16) as publisher, PacketReader(key, "next") as reader:
        with Recording(tmp_path / "out.mp4", reader) as recording:
            source.publish(publisher, 0, 12)
            for _ in range(12):
                recording.write(reader.next(0))
            source.publish(publisher, 12, 72)
            publisher.close()
            for packet in reader:
                recording.write(packet)
        assert recording.lost == 48
    found, frames = probe(tmp_path / "out.mp4")
    expected = relative(source.packets)
    assert [packet[:2] for packet in found] == [packet[:2] for packet in expected[:12] + expected[60:72]]
    assert frames == 24


def test_a_recording_survives_a_publisher_restart(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    first = source.publisher(key)
    child = start_recording(key, tmp_path / "out.mp4", "--reconnect", 4)
    source.publish(first, 0, 24)
    first.close()
    time.sleep(0.6)
    with source.publisher(key) as second:
        source.publish(second, 0, 24)
        eventually(lambda: len(probe_packets(tmp_path / "out.mp4")) > 24, timeout=20)
    assert "48 packets" in finish(child)
    found, frames = probe(tmp_path / "out.mp4")
    assert frames == 48
    assert [packet[0] for packet in found] == 2 * [packet[0] for packet in source.packets[:24]]
    decoding = [packet[2] for packet in found]
    assert decoding == sorted(set(decoding))
    assert 500 < decoding[24] - decoding[23] < 20_000  # as long as nobody was there


def test_other_codec_parameters_begin_another_file(key, encoded, tmp_path):
    first, second = Source(encoded("h264", ".mp4")), Source(encoded("hevc", ".mp4"))
    with first.publisher(key) as publisher:
        reader = PacketReader(key, "next", reconnect=True)
        first.publish(publisher, 0, 24)
        recording = Recording(tmp_path / "out.mp4", reader)
        for _ in range(24):
            recording.write(reader.next(0))
    with second.publisher(key) as publisher:
        second.publish(publisher, 0, 24)
        for _ in range(24):
            recording.write(reader.next(5))
    recording.close()
    reader.close()
    assert recording.paths == [tmp_path / "out.mp4", tmp_path / "out-2.mp4"]
    for path, source in zip(recording.paths, (first, second), strict=True):
        found, frames = probe(path)
        assert frames == 24
        assert [packet[0] for packet in found] == [packet[0] for packet in source.packets[:24]]


def test_a_killed_recorder_leaves_a_file_that_plays(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        child = start_recording(key, tmp_path / "out.mp4")
        source.publish(publisher)
        eventually(lambda: (tmp_path / "out.mp4").exists() and (tmp_path / "out.mp4").stat().st_size > 2_000)
        child.kill()
        child.communicate()
    frames = 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        with contextlib.suppress(av.error.InvalidDataError):  # the last packet may be cut off
            for _ in container.decode(video=0):
                frames += 1
    assert frames >= 12


class Packet:
    def __init__(self, seq, pts_ns, dts_ns=None, published_ns=0):
        self.seq, self.pts_ns, self.dts_ns, self.published_ns = seq, pts_ns, dts_ns, published_ns


def test_timeline():
    timeline = Timeline()
    assert timeline.place(Packet(5, 1080, 1000, 10)) == (0, -80)
    assert timeline.place(Packet(6, 1200, 1040, 50)) == (120, -40)
    assert timeline.place(Packet(9, 1320, 1160, 170)) == (240, 80)  # a gap stays
    assert timeline.place(Packet(10, 80, 0, 210)) == (200, 120)  # the camera's clock began anew
    assert timeline.place(Packet(1, 10**18, 10**18, 1210)) == (1120, 1120)  # another publisher's: the time that passed
    assert timeline.place(Packet(2, None, None, 1250))[1] > 1120
    timeline.restart()
    assert timeline.place(Packet(8, 7, 7, 1250))[1] > 1120
    assert Timeline().place(Packet(1, None, 40)) == (0, 0)


def test_a_name_may_be_anything(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    names = [
        "2026-01-31T12:00:00+01:00.mkv",
        "cam0:1.mp4",
        "file:x.ts",
        "pipe:1.mp4",
        "a%d.mp4",
        "über maß 映像.mov",
        "A.MP4",
    ]
    with source.publisher(key) as publisher:
        source.publish(publisher)
        for name in names:
            with PacketReader(key, "oldest") as reader, Recording(tmp_path / name, reader) as recording:
                for packet in backlog(reader, 1000):
                    recording.write(packet)
            assert recording.packets == len(source.packets)
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    for name in names:
        with open(tmp_path / name, "rb") as file:
            assert probe_packets(file)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_packets_without_dts_keep_their_times(key, encoded, tmp_path, codec, suffix):
    """A publisher need not give dts, and B-frames are not a clock that jumps back."""
    source = Source(encoded(codec, ".mp4"))
    source.packets = [(data, pts, None, keyframe) for data, pts, _, keyframe in source.packets]
    with source.publisher(key) as publisher, PacketReader(key, "oldest") as reader:
        for data, pts, _, keyframe in source.packets:
            publisher.publish_packet(data, pts_ns=pts, keyframe=keyframe)
        with Recording(tmp_path / f"out{suffix}", reader) as recording:
            for _ in source.packets:
                recording.write(reader.next(0))
    found, frames = probe(tmp_path / f"out{suffix}")
    assert [packet[1] for packet in found] == [packet[1] for packet in relative(source.packets)]
    assert frames == len(source.packets)
    assert recording.duration_ns == (len(source.packets) - 1) * 40_000_000


def test_timeline_without_dts():
    def times(timeline, given):
        return [timeline.place(Packet(seq, pts * 1_000_000)) for seq, pts in enumerate(given, 1)]

    order = [0, 120, 40, 80, 240, 160, 200]
    for depth in (1, 2, 4, 16):
        placed = times(Timeline(depth), order)
        assert [pts // 1_000_000 for pts, _ in placed] == order
        decoding = [dts for _, dts in placed]
        assert decoding == sorted(set(decoding))
        assert all(dts <= pts for pts, dts in placed)
    placed = times(Timeline(0), [0, 40, 80])
    assert [dts for _, dts in placed] == [0, 40_000_000, 80_000_000]
    unannounced = times(Timeline(0), order * 3)  # nothing says that pictures are reordered: learnt from the first
    assert all(dts <= pts for pts, dts in unannounced)
    timeline = Timeline(2)
    times(timeline, order)
    back = [timeline.place(Packet(9 + n, pts * 1_000_000 - 10**12, None, 10**9)) for n, pts in enumerate(order)]
    decoding = [dts for _, dts in back]
    assert decoding == sorted(set(decoding))
    assert [(pts - back[0][0]) // 1_000_000 for pts, _ in back] == order  # another clock, the same distances
    assert back[0][1] >= 200_000_000


def test_a_publisher_of_another_size_begins_another_file(key, encoded, clip, tmp_path):
    first = Source(encoded("h264", ".mp4"))
    second = Source(str(clip))
    child = None
    with first.publisher(key) as publisher:
        child = start_recording(key, tmp_path / "out.mkv", "--reconnect", 10)
        first.publish(publisher, 0, 24)
        eventually(lambda: len(probe_packets(tmp_path / "out.mkv")) >= 12, timeout=20)
    with second.publisher(key, data_size=16 << 20, max_packet_size=4 << 20) as publisher:
        second.publish(publisher, 0, 24)
        eventually(lambda: (tmp_path / "out-2.mkv").exists(), timeout=20)
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        _, rest = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM, rest
    sizes = []
    for path in (tmp_path / "out.mkv", tmp_path / "out-2.mkv"):
        with av.open(str(path)) as container:
            sizes.append((container.streams.video[0].width, sum(1 for _ in container.decode(video=0))))
    assert sizes == [(320, 24), (1280, 24)]


def test_a_camera_that_changes_its_parameter_sets_begins_another_file(key, encoded, tmp_path):
    """H.264 with start codes, in which nothing but the keyframes tells of another picture size."""
    small = Source(encoded("h264", ".ts"))
    with av.open(str(encoded("h264", ".mp4"))) as container, av.open(str(tmp_path / "big.ts"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"x264-params": "keyint=12:bframes=0:scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number, frame in zip(range(24), container.decode(video=0), strict=False):
            frame = frame.reformat(width=640, height=360)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    big = Source(str(tmp_path / "big.ts"))
    with PacketPublisher(key, "h264", slots=256) as publisher, PacketReader(key, "next") as reader:
        small.publish(publisher, 0, 24)
        big.publish(publisher, shift_ns=SECOND_NS)
        with Recording(tmp_path / "out.mp4", reader) as recording:
            for _ in range(24 + len(big.packets)):
                recording.write(reader.next(0))
    assert [path.name for path in recording.paths] == ["out.mp4", "out-2.mp4"]
    widths = []
    for path in recording.paths:
        with av.open(str(path)) as container:
            widths.append({frame.width for frame in container.decode(video=0)})
    assert widths == [{320}, {640}]


@pytest.mark.parametrize(("codec", "format"), [("mjpeg", "yuvj420p"), ("mpeg2video", "yuv420p")])
def test_pictures_of_another_size_begin_another_file(key, tmp_path, codec, format):
    sizes = [(320, 240), (320, 240), (640, 360)]
    with PacketPublisher(key, codec, slots=64) as publisher, PacketReader(key, "next") as reader:
        for number, (width, height) in enumerate(sizes):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, format
            encoder.time_base = Fraction(1, 25)
            frame = av.VideoFrame(width, height, format)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            for packet in (*encoder.encode(frame), *encoder.encode(None)):
                publisher.publish_packet(packet, pts_ns=number * 40_000_000, keyframe=True)
        with Recording(tmp_path / "out.mkv", reader) as recording:
            for _ in sizes:
                recording.write(reader.next(0))
    assert [path.name for path in recording.paths] == ["out.mkv", "out-2.mkv"]
    found = []
    for path in recording.paths:
        with av.open(str(path)) as container:
            found += [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert found == sizes


# ---- how recordings end


@pytest.mark.parametrize("attempt", range(3))
def test_without_reconnecting_a_recording_ends_with_the_publisher(key, encoded, tmp_path, attempt):
    source = Source(encoded("h264", ".mp4"))
    child = subprocess.Popen(
        command("record", key, "out.mp4", "--pre", 100, "--reconnect", 0, "--json", "--connect-timeout", 30),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    with source.publisher(key) as publisher:
        source.publish(publisher)
        assert json.loads(child.stdout.readline())["event"] == "ready"
    out, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
    report = lines(out)[-1]
    assert (report["event"], report["packets"], report["lost"]) == ("end", len(source.packets), 0)
    assert probe(tmp_path / "out.mp4")[1] == len(source.packets)


def test_what_stands_in_the_way_of_the_next_publisher_is_an_error_after_the_report(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        child = subprocess.Popen(
            command("record", key, "out.mp4", "--reconnect", 2, "--json"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert json.loads(child.stdout.readline())["event"] == "ready"
        source.publish(publisher)
        path = next(Path("/dev/shm").glob(f"cuframes-{key}*"))
    path.write_bytes(b"this is no packet ring" * 1000)
    try:
        out, errors = child.communicate(timeout=30)
    finally:
        path.unlink()
    assert child.returncode == 1
    assert str(path) in errors
    assert errors.count("\n") == 1
    assert lines(out)[-1]["event"] == "end"
    assert lines(out)[-1]["packets"] == len(source.packets)
    assert probe(tmp_path / "out.mp4")[1] == len(source.packets)


# ---- standard output


@pytest.mark.parametrize("format", [None, "mpegts", "nut", "mkv"])
def test_packets_on_standard_output(key, encoded, tmp_path, format):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        source.publish(publisher)
        options = [] if format is None else ["--format-name", format]
        child = subprocess.Popen(
            command("record", key, "-", "--pre", 100, "--reconnect", 0, "--json", *options),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun = child.stderr.readline()
    out, errors = child.communicate(timeout=30)
    assert child.returncode == 0
    assert [json.loads(line)["event"] for line in (begun, *errors.splitlines())] == ["ready", "end"]
    (tmp_path / "out").write_bytes(out)
    found, frames = probe(tmp_path / "out")
    assert frames == len(source.packets)
    assert [packet[1] for packet in found] == [packet[1] for packet in relative(source.packets)]
    with av.open(str(tmp_path / "out")) as container:
        assert container.format.name.split(",")[0] == {"nut": "nut", "mkv": "matroska"}.get(format, "mpegts")


def test_a_closed_pipe_ends_a_recording_quietly(key, encoded):
    source = Source(encoded("h264", ".mp4"))
    with steady(source, key):
        child = subprocess.Popen(command("record", key, "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout.read(1000)
        child.stdout.close()
        errors = child.stderr.read()
        assert child.wait(30) == 0
        child.stderr.close()
    assert errors.splitlines() == [f"recording h264 of {key} to standard output".encode()]


def test_standard_output_that_does_not_wait(key, encoded, tmp_path):
    """A pipe that another program has made non-blocking."""
    source = Source(encoded("h264", ".mp4"))
    out, write = os.pipe()
    os.set_blocking(write, False)
    with source.publisher(key) as publisher, open(out, "rb") as stream:
        for turn in range(5):
            source.publish(publisher, shift_ns=turn * 4_000_000_000)
        child = subprocess.Popen(
            command("record", key, "-", "--pre", 100, "--reconnect", 0), stdout=write, stderr=subprocess.PIPE
        )
        os.close(write)
        assert child.stderr.readline().startswith(b"recording")
        publisher.close()
        eventually(lambda: select.select([stream], [], [], 0)[0], timeout=30)
        (tmp_path / "out.ts").write_bytes(stream.read())
        assert child.wait(30) == 0
        child.stderr.close()
    assert probe(tmp_path / "out.ts")[1] == 5 * len(source.packets)


def test_a_full_disk_behind_standard_output(key, encoded):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher, open("/dev/full", "wb") as full:
        source.publish(publisher)
        done = subprocess.run(
            command("record", key, "-", "--pre", 100), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "cuframes: standard output: No space left on device; nothing was recorded" in done.stderr


def test_a_closed_pipe_is_noticed_while_no_packet_comes(key, encoded):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        source.publish(publisher)
        child = subprocess.Popen(
            command("record", key, "-", "--pre", 9), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdout.read(1000)
        child.stdout.close()
        assert child.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_recording_whose_reader_does_not_read(key, encoded, number):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        for _ in range(6):
            source.publish(publisher)
        child = subprocess.Popen(
            command("record", key, "-", "--pre", 100), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Nothing is read, and a keyframe is larger than the pipe.
        fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)
        eventually(lambda: select.select([child.stdout], [], [], 0)[0], timeout=30)
        child.send_signal(number)
        assert child.wait(20) == 128 + number
        errors = child.stderr.read()
        for pipe in (child.stdout, child.stderr):
            pipe.close()
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("record", "KEY", "out.avi"), 2, "a recording must be a .mp4, .mov, .mkv, .ts file"),
        (("record", "KEY", "no/folder/out.mp4"), 1, "no/folder/out.mp4: there is no folder 'no/folder'; make it"),
        (
            ("record", "KEY", "there.mp4"),
            1,
            "there.mp4 already exists; choose another name, or replace it with --overwrite",
        ),
        (("record", "nobody", "out.mp4", "--connect-timeout", "0"), 3, "no publisher of 'nobody'"),
        (("publish", "x", "--source", "testsrc", "--packets"), 2, "not encoded"),
        (("publish", "x", "--source", "CLIP", "--packets", "--fps", "50"), 2, "leave it out"),
    ],
)
def test_what_cannot_be_done_is_said(key, clip, tmp_path, arguments, status, message):
    (tmp_path / "there.mp4").write_bytes(b"something")
    replaced = [{"KEY": key, "CLIP": clip}.get(word, word) for word in arguments]
    with PacketPublisher(key, "h264"):
        done = subprocess.run(command(*replaced), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["there.mp4"]
    assert (tmp_path / "there.mp4").read_bytes() == b"something"


@pytest.mark.parametrize("arguments", [("record", "KEY", "out.mp4"), ("push", "KEY", "udp://127.0.0.1:9")])
def test_a_publisher_without_packets(key, tmp_path, arguments):
    words = [word.replace("KEY", key) for word in arguments]
    with cuframes.Publisher(key, 64, 64, "nv12", memory="host"):
        done = subprocess.run(
            command(*words, "--connect-timeout", 0), capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
    assert done.returncode == 1
    assert f"shares no packets; start it with `cuframes publish {key} --packets" in done.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("out", ["x.mp4", "%S.mkv", "-"])
def test_a_stream_without_a_whole_keyframe_is_an_error_at_the_end(key, encoded, tmp_path, out):
    source = Source(encoded("h264", ".ts")).damage(*range(0, 96, 12))
    options = ("--segment", 1) if "%" in out else ()
    with source.publisher(key) as publisher:
        source.publish(publisher)
        child = subprocess.Popen(
            command("record", key, out, "--pre", 60, "--reconnect", 0, "--json", *options),
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        told = child.stderr if out == "-" else child.stdout
        assert '"ready"' in told.readline()
        assert "damaged" in child.stderr.readline()
    stdout, errors = child.communicate(timeout=20)
    assert child.returncode == 1
    assert "nothing was recorded: a keyframe is damaged" in errors.splitlines()[-1]
    report = json.loads((errors if out == "-" else stdout).splitlines()[-2 if out == "-" else -1])
    assert (report["event"], report["packets"], report["unwritten"]) == ("end", 0, 96)
    assert not list(tmp_path.iterdir())


def test_codec_names():
    assert (codec_id("h264"), codec_id("libx264"), codec_id("hevc"), codec_id(27)) == (27, 27, 173, 27)
    assert (codec_name(27), codec_name(173)) == ("h264", "hevc")
    assert codec_name(codec_id("mjpeg")) == "mjpeg"
    assert codec_name(codec_id("av1")) == "av1"
    assert codec_name(0x7FFFFFFF) is None


def test_codec_names_without_ffmpeg(tmp_path):
    (tmp_path / "av.py").write_text("raise ImportError('not here')\n")
    program = (
        "import cuframes\nfrom cuframes.codecs import codec_id, codec_name\n"
        "assert codec_id('hevc') == 173 and codec_name(27) == 'h264' and codec_name(7) is None\n"
        "try: codec_id('mjpeg')\nexcept ValueError as problem: print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=python_path(tmp_path)
    )
    assert done.stderr == ""
    assert "pip install 'cuframes[cli]', or give its AVCodecID" in done.stdout


def test_flags_of_a_damaged_source(key):
    with PacketPublisher(key, "h264") as publisher, PacketReader(key) as reader:
        publisher.publish_packet(b"", pts_ns=0, keyframe=True, flags=PacketFlags.CORRUPT | PacketFlags.DISCONTINUITY)
        assert cuframes.PacketFlags(reader.next(0).flags) == PacketFlags(7)


def test_the_example_records_around_events(key, clip, tmp_path):
    """One publisher, a detector on its frames, and its packets on disk."""
    child = subprocess.Popen(
        command("publish", key, "--source", clip, "--packets", "--loop", "--size", "320x180", "--memory", "host"),
        stderr=subprocess.DEVNULL,
    )
    example = Path(__file__).parent.parent / "examples" / "record_events.py"
    with contextlib.ExitStack() as stack:
        stack.callback(child.wait, 20)
        stack.callback(child.terminate)
        with PacketReader(key, connect_timeout=20) as reader:
            reader.next(10)
        detector = subprocess.Popen([sys.executable, example, key, tmp_path, "--threshold", "0.001"])
        stack.callback(detector.wait, 20)
        stack.callback(detector.kill)
        eventually(lambda: [path for path in tmp_path.glob("*.mp4") if path.stat().st_size], timeout=60)
        time.sleep(1)
        detector.send_signal(signal.SIGINT)
        assert detector.wait(20) == 0
    for path in tmp_path.glob("*.mp4"):
        found, frames = probe(path)
        assert found[0][3]
        assert frames == len(found) > 10
