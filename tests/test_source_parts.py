"""The source layer inside one process: clocks, names, the log, sizes, decoding, and what FFmpeg never gives back."""

import contextlib
import os
import pickle
import subprocess
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cameras
import numpy
import pytest
from harness import descriptors, eventually

import cuframes
from cuframes import Disconnected, EncodedPacket, PacketFlags, Picture, SourceError, Timeout, open_source
from cuframes.color import presentation

av = pytest.importorskip("av")

from cuframes.media.sources import Acceleration, StreamInfo, connection, nvdec, source, urls  # noqa: E402
from cuframes.media.sources.clock import ContinuousClock, Thinner  # noqa: E402
from cuframes.media.sources.limiter import Limiter  # noqa: E402

TICKS = Fraction(1, 90_000)
STEP = 3600  # ticks of 25 fps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def packet(pts, dts, duration=STEP, base=TICKS):
    made = av.Packet(b"x")
    made.pts, made.dts, made.time_base = pts, dts, base
    made.duration = duration
    return made


def placed(stamps, clock=None, **more):
    """(pts, dts) in ticks, after the clock has placed them one after the other."""
    clock = clock or ContinuousClock()
    found = []
    for pts, dts in stamps:
        one = packet(pts, dts)
        clock.place(one, **({"length": None, "passed": None, "may_jump": True} | more))
        found.append((one.pts, one.dts))
    return found


def steps(stamps):
    return {b - a for a, b in pairwise(dts for _, dts in stamps)}


# ---- the clock


@pytest.mark.parametrize(
    "jump",
    [
        pytest.param(-(2**33), id="33 bits are over"),
        pytest.param(-90_000 * 3600, id="back"),
        pytest.param(90_000 * 36_000, id="forward"),
        pytest.param(-90_000 * 2, id="a little back"),
    ],
)
def test_the_clock_goes_on_over_a_jump(jump):
    before = [(2**33 - 90_000 + n * STEP, 2**33 - 90_000 + n * STEP) for n in range(10)]
    after = [(before[-1][0] + STEP + jump + n * STEP, before[-1][1] + STEP + jump + n * STEP) for n in range(10)]
    found = placed(before + after)
    assert steps(found) == {STEP}
    assert all(pts == dts for pts, dts in found)


def test_the_clock_keeps_what_is_right():
    negative = [(-7200 + n * STEP, -14_400 + n * STEP) for n in range(10)]
    assert placed(negative) == negative
    slow = [(n * 90_000 * 30, n * 90_000 * 30) for n in range(5)]  # a picture every half minute
    assert placed(slow, may_jump=False) == slow


def test_a_live_jump_is_as_long_as_it_took():
    found = placed([(0, 0), (STEP, STEP), (90_000 * 9999, 90_000 * 9999)], passed=2.0)
    assert found[-1] == (STEP + 180_000, STEP + 180_000)


def test_packets_out_of_order_do_not_shift_the_clock():
    found = placed([(0, 0), (STEP, STEP), (STEP, STEP), (STEP - 900, STEP - 900), (4 * STEP, 4 * STEP)])
    decoding = [dts for _, dts in found]
    assert decoding == sorted(set(decoding))
    assert found[-1] == (4 * STEP, 4 * STEP)


def test_a_restart_goes_on_after_the_time_that_passed():
    clock = ContinuousClock()
    placed([(n * STEP, n * STEP) for n in range(5)], clock)
    clock.restart(3.0)
    found = placed([(777_000, 777_000), (777_000 + STEP, 777_000 + STEP)], clock)
    assert [dts for _, dts in found] == [4 * STEP + 270_000, 5 * STEP + 270_000]


def test_missing_timestamps_are_counted():
    found = placed([(None, None)] * 5, length=Fraction(1, 50))
    assert [dts for _, dts in found] == [n * STEP for n in range(5)]


def test_missing_decoding_times_are_completed():
    """As FFmpeg gives the first packets of Matroska with B-frames."""
    first = [(0, None), (4 * STEP, None), (2 * STEP, 0), (STEP, STEP), (3 * STEP, 2 * STEP)]
    clock = ContinuousClock()
    found = placed(first, clock, depth=2)
    assert [dts for _, dts in found] == [n * STEP for n in range(-2, 3)]
    clock.restart()
    again = placed(first, clock, depth=2)
    assert [pts for pts, _ in again] == [pts + 5 * STEP for pts, _ in first]
    assert [dts for _, dts in again] == [n * STEP for n in range(3, 8)]


def test_thinning_is_even():
    thinner = Thinner(10)
    taken = [n for n in range(100) if thinner.wants(n * 40_000_000)]  # of 25 fps
    assert len(taken) == 40
    assert {b - a for a, b in pairwise(taken)} == {2, 3}
    thinner = Thinner("30000/1001")
    stamps = [n * 1001 * 1_000_000_000 // 60_000 for n in range(200)]
    assert [n for n, pts_ns in enumerate(stamps) if thinner.wants(pts_ns)] == list(range(0, 200, 2))
    faster = Thinner(60)
    assert all(faster.wants(n * 40_000_000) for n in range(50))


# ---- names and the log


def test_what_a_name_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2026:01.ts").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    kinds = {
        name: urls.find(name).kind.value
        for name in (
            "rtsp://u:p@h/x", "udp://h:1", "tcp://h:1", "rtmp://h/x", "http://h/x", "http://h/x.mp4",
            "v.mp4", "file:v.mp4", "file:///v.mp4", "2026:01.ts", "fifo", "/dev/video0", "concat:a|b", "testsrc",
        )
    }  # fmt: skip
    assert [kinds[name] for name in list(kinds)[:4]] == ["stream"] * 4
    assert kinds["http://h/x"] == kinds["http://h/x.mp4"] == "download"
    assert {
        kinds[name] for name in ("v.mp4", "file:v.mp4", "file:///v.mp4", "2026:01.ts", "concat:a|b", "testsrc")
    } == {"file"}
    assert (kinds["fifo"], kinds["/dev/video0"]) == ("pipe", "stream")
    assert urls.find("/dev/video0").format == "v4l2"
    assert urls.find("2026:01.ts").url == "file:2026:01.ts"
    assert urls.find("-").url == "pipe:0"
    assert urls.find("http://h/x.mp4").is_file
    assert not urls.find("http://h/live").is_file


def test_passwords_are_not_shown():
    with open_source("rtsp://admin:s3cret@camera/1") as camera:
        assert camera.url == "rtsp://admin:***@camera/1"
        assert "s3cret" not in repr(camera)
    assert urls.hide_password("srt://h:1?passphrase=s3cret&latency=9") == "srt://h:1?passphrase=***&latency=9"
    assert urls.hide_password("rtsp://u:p@s@h/x: refused") == "rtsp://u:***@h/x: refused"


def test_rtsp_over_udp_takes_turns_with_tcp(monkeypatch):
    """A firewall that stops UDP says nothing, and FFmpeg's own time-out comes too late."""
    asked = []

    def silent(url, options, **more):
        asked.append(options.get("rtsp_transport"))
        raise av.error.ExitError(1, "nothing")

    monkeypatch.setattr(av, "open", silent)
    monkeypatch.setattr(source, "FIRST_PAUSE", 0.001)
    for options, expected in (({}, [None, "tcp", None]), ({"rtsp_transport": "udp"}, ["udp"] * 3)):
        asked.clear()
        with open_source("rtsp://127.0.0.1:1/x", options=options) as video:
            while len(asked) < 3:
                with contextlib.suppress(Timeout):
                    video.next(0.01)
        assert asked[:3] == expected


def test_repeated_lines_are_counted(caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("cuframes.media.sources.limiter.time.monotonic", lambda: now[0])
    limiter = Limiter("cam")
    for _ in range(5000):
        limiter.warning("damaged", "bad")
        now[0] += 0.01
    limiter.warning("other", "else")
    limiter.flush()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "cam: bad"
    assert len(said) <= 5
    assert "cam: else" in said
    assert sum(int(line.split("(")[1].split()[0]) for line in said if "more in" in line) == 4999


# ---- decoding


def test_a_loop_has_growing_timestamps(clip):
    with open_source(clip, loop=True, realtime=False) as video:
        stamps = [video.next(30).pts_ns for _ in range(300)]
    assert {round((b - a) / 1e6) for a, b in pairwise(stamps)} == {40}


def test_pictures_know_when_their_packet_came(clip):
    with open_source(clip, realtime=False, packets=True) as video:
        items = list(video)
    packets = {item.pts_ns: item for item in items if isinstance(item, EncodedPacket)}
    pictures = [item for item in items if isinstance(item, Picture)]
    assert len(packets) == len(pictures) == 132
    assert all(packets[picture.pts_ns].arrived_ns == picture.arrived_ns for picture in pictures)
    assert pictures[0].stream.codec == "h264"
    assert pictures[0].stream.rate == 25


def test_damage_is_survived_and_counted(clip, tmp_path, caplog):
    """Real H.264 with a stretch of noise in the middle, and a packet that the decoder refuses."""
    with av.open(clip) as original, av.open(str(tmp_path / "clip.ts"), "w") as target:
        stream = target.add_stream_from_template(original.streams.video[0])
        for one in original.demux(video=0):
            if one.dts is not None:
                one.stream = stream
                target.mux(one)
    raw = bytearray((tmp_path / "clip.ts").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 40_000] = os.urandom(40_000)
    (tmp_path / "damaged.ts").write_bytes(raw)
    with open_source(str(tmp_path / "damaged.ts"), realtime=False) as video:
        stamps = [picture.pts_ns for picture in video]
    assert 80 < len(stamps) <= 132
    assert stamps == sorted(set(stamps))


def test_what_the_decoder_refuses_is_left_out(clip, monkeypatch, caplog):
    decode = connection.decode
    count = [0]

    def refuse(context, one):
        count[0] += 1
        if 50 <= count[0] < 60:
            raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
        return decode(context, one)

    monkeypatch.setattr(connection, "decode", refuse)
    with open_source(clip, realtime=False) as video:
        assert len(list(video)) >= 100
        assert video.damaged == 10
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "Invalid data" in lines[0]
    assert "9 more" in lines[1]


def test_timeouts_and_ends(clip):
    video = open_source(clip, fps=1)
    assert video.next(30).pts_ns == 0
    with pytest.raises(Timeout):
        video.next(0.01)
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.next()
    assert list(video) == []
    with open_source(clip, realtime=False) as video:
        for _ in range(132):
            video.next(30)
        with pytest.raises(Disconnected):
            video.next(30)
    with pytest.raises(SourceError, match="No such file"):
        next(open_source("/no/such"))
    with pytest.raises(ValueError, match="reconnect"):
        open_source("x", reconnect="perhaps")


def test_closing_from_another_thread_ends_the_wait():
    with cameras.TcpCamera(cameras.silence) as camera:
        video = open_source(camera.url)
        closing = threading.Timer(0.3, video.close)
        closing.start()
        assert list(video) == []
        closing.join()
    assert video.state.name == "ended"


def test_a_source_whose_end_was_not_liked_has_ended(clip):
    def refuse(state):
        assert state.name != "ended"

    with open_source(clip, realtime=False) as video:
        video.on_state = refuse
        with pytest.raises(AssertionError):
            for _ in range(200):
                video.next(30)
        with pytest.raises(ValueError, match="closed"):
            video.next(30)


def test_the_first_packet_after_a_reconnect_is_a_discontinuity(folder):
    data = cameras.stream(folder)
    with cameras.TcpCamera(cameras.play(data, 0.5, cameras.reset), cameras.play(data, 1, cameras.silence)) as camera:
        with open_source(camera.url, packets=True) as video:
            states = []
            video.on_state = lambda state: states.append(state.name)
            packets = []
            while sum(bool(one.flags & PacketFlags.DISCONTINUITY) for one in packets) == 0:
                item = video.next(30)
                if isinstance(item, EncodedPacket):
                    packets.append(item)
            assert packets[-1].keyframe
            assert packets[-1].dts_ns > packets[-2].dts_ns
            while not isinstance(video.next(30), Picture):
                pass
    assert states[:3] == ["live", "reconnecting", "live"]


def test_reconnecting_leaves_nothing_behind(folder, monkeypatch):
    """Descriptors, threads and queued pictures after many connections that fail in every way."""
    data = cameras.stream(folder)
    monkeypatch.setattr(source, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(source, "LONGEST_PAUSE", 0.001)
    ways = [cameras.play(data[:40_000], 0.05, cameras.reset), cameras.reset, cameras.play(b"nonsense" * 999, 0.01)]
    before = descriptors()
    with cameras.TcpCamera(*(ways * 20)) as camera:
        with open_source(camera.url, packets=True) as video:
            while camera.connections < 40:
                with contextlib.suppress(Timeout):
                    video.next(0.1)
            assert video.stuck == 0
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("cuframes:tcp")])
    assert descriptors() == before


def test_a_source_that_is_forgotten_ends_its_thread(clip):
    video = open_source(clip)
    video.next(30)
    mine = [thread for thread in threading.enumerate() if thread.name == f"cuframes:{clip}"]
    assert mine
    with pytest.raises(TypeError, match="open it in the other process"):
        pickle.dumps(video)
    del video
    eventually(lambda: not any(thread.is_alive() for thread in mine))


def test_a_source_that_is_closed_at_its_last_pictures_ends_its_thread(folder):
    """With threads the decoder gives many pictures at once when a file ends."""
    path = cameras.make(folder / "short.mp4", "-frames:v", "12")
    with open_source(str(path), threads=16, realtime=False) as video:
        video.next(30)
        room, thread = video._connection._rooms[Picture], video._connection._thread
        eventually(room.empty)
    eventually(lambda: not thread.is_alive())


def test_sources_that_are_closed_while_they_are_silent_do_not_stop_others(folder, monkeypatch):
    """Their threads come back by themselves, when FFmpeg's time-out is over."""
    monkeypatch.setattr(source, "MAX_STUCK", 2)
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.01)
    before = connection.stuck()
    with cameras.TcpCamera(cameras.silence) as camera:
        for number in range(3):
            with open_source(camera.url, timeout=60) as video:
                while camera.connections <= number:
                    with contextlib.suppress(Timeout):
                        video.next(0.01)
        assert connection.stuck() == before
        with open_source(str(cameras.make(folder / "other.mp4")), timeout=60) as video:
            video.next(20)


def test_a_thread_that_cannot_be_started_is_tried_again(clip, monkeypatch):
    start, failed = threading.Thread.start, []

    def refuse(thread):
        if len(failed) < 2:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(source, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with open_source(clip, reconnect="always") as video:
        video.next(30)
        assert "can't start new thread" in video.state.error
    assert len(failed) == 2


def test_pauses_grow(monkeypatch):
    """0.5 s, then twice as long, with jitter, up to 30 s."""
    pauses = []
    port = cameras.free_port()
    with open_source(f"tcp://127.0.0.1:{port}") as video:
        video.on_state = lambda state: pauses.append(video._retry_at - source.time.monotonic())
        while len(pauses) < 9:
            with contextlib.suppress(Timeout):
                video.next(0.2)
            video._retry_at = min(video._retry_at, source.time.monotonic())
    del pauses[9:]  # the end
    for pause, expected in zip(pauses, (0.5, 1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert 0.79 * expected - 0.2 <= pause <= 1.21 * expected
    assert len({round(pause, 3) for pause in pauses}) > 5


def test_a_call_that_never_returns_is_given_up(monkeypatch):
    """As FFmpeg's calls that no time-out reaches: the thread is left alone, counted, and not repeated without end."""
    release = threading.Event()
    opened = []

    def never(*arguments, **options):
        opened.append(arguments)
        release.wait()
        raise av.error.ExitError(1, "too late")

    monkeypatch.setattr(av, "open", never)
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(source, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(source, "MAX_STUCK", 3)
    before = connection.stuck()
    try:
        with open_source("tcp://127.0.0.1:1", timeout=0.05, reconnect="always") as video:
            for _ in range(40):
                with contextlib.suppress(Timeout):
                    video.next(0.01)
                video._retry_at = 0.0 if video.stuck < 3 else video._retry_at
            assert video.stuck == 3
        assert len(opened) == 3
    finally:
        release.set()
    eventually(lambda: connection.stuck() == before)


def test_packets_of_a_failed_trial_on_the_gpu_come_once(clip, monkeypatch, caplog):
    """Whether NVDEC can decode a stream shows after demuxing some of it; then the CPU begins again at the beginning."""
    real = av.open
    monkeypatch.setattr(nvdec, "current", lambda gpu: contextlib.nullcontext())
    monkeypatch.setattr(nvdec, "gpu", lambda ordinal: None)
    monkeypatch.setattr("av.codec.hwaccel.HWAccel", lambda *arguments, **options: None)
    with open_source(clip, realtime=False, packets=True, acceleration=Acceleration(0, "nv12")) as video:
        items = list(video)
        assert video.stream.decoder == "cpu"
    assert "decoding on the CPU" in caplog.text
    seen = [item.data for item in items if isinstance(item, EncodedPacket)]
    assert sum(isinstance(item, Picture) for item in items) == 132
    with real(clip) as container:
        assert [(p.pts, p.dts) for p in seen] == [(p.pts, p.dts) for p in container.demux(video=0) if p.size]
    with pytest.raises(SourceError, match="cannot decode"):
        next(open_source(clip, acceleration=Acceleration(0, "nv12", required=True)))


@pytest.mark.parametrize("size", ["853x479", "1x1", "2x2", "8192x4320"])
def test_sizes(folder, size):
    """As raw video, since hardly a codec has the smallest one."""
    from cuframes.cli.shapes import Shaper

    least = size == "1x1"  # which the test picture cannot have
    raw = ("-vf", "scale=1:1" if least else "null", "-c:v", "rawvideo", "-pix_fmt", "yuv420p")
    picture = f"testsrc2=size={'320x240' if least else size}:rate=5"
    path = cameras.make(folder / f"{size}.nut", *raw, source=picture, seconds=0.4)
    shaper = Shaper("nv12")
    with open_source(str(path), realtime=False) as video:
        for picture in video:
            width, height = shaper.size_of(picture)
            frame = shaper.convert(picture, width, height)
            assert (frame.width, frame.height) == (width, height)
            assert width % 2 == height % 2 == 0
            wanted = [int(side) for side in size.split("x")]
            assert all(abs(a - b) <= 1 for a, b in zip(wanted, (width, height), strict=True))
            if size == "853x479":  # no pixel is moved
                mine = frame.to_ndarray()
                luma = numpy.frombuffer(picture.frame.planes[0], "u1").reshape(-1, picture.frame.planes[0].line_size)
                assert (mine[:height] == luma[:height, :width]).all()


# ---- sizes and turns


def picture_of(array, pixel=None):
    frame = av.VideoFrame.from_ndarray(array, "rgb24")
    said = presentation(sample_aspect_ratio=pixel)
    stream = StreamInfo("h264", 27, b"", frame.width, frame.height, Fraction(25), said, False, "cpu", True)
    return Picture(frame, 0, 0, stream)


@pytest.mark.parametrize("format", ["rgb24", "nv12", "uyvy422", "v210", "gray8", "rgbp"])
def test_fit(format, caplog):
    from cuframes.cli.shapes import Shaper, parse_size

    white = picture_of(numpy.full((90, 160, 3), 255, "u1"))
    grays = {}
    for fit in ("letterbox", "crop", "stretch"):
        shaper = Shaper(format, parse_size("96x96"), fit)
        assert shaper.size_of(white) == (96, 96)
        made = shaper.convert(white, 96, 96)
        if format == "v210":
            assert len(made) == 96 * 256
            continue
        grays[fit] = made.to_ndarray(format="gray") if format != "gray8" else made.to_ndarray()
    assert caplog.text.count("has another shape") == 3
    if grays:
        assert (grays["crop"] > 200).all()
        assert (grays["stretch"] > 200).all()
        rows = (grays["letterbox"] > 128).all(axis=1)
        assert rows.sum() == 54  # 96 x 9 / 16
        assert not rows[:20].any()
        assert not rows[-20:].any()
        assert (grays["letterbox"][~rows] < 30).all()


def test_sizes_that_keep_the_shape():
    from cuframes.cli.shapes import Shaper, Size, parse_size

    wide = picture_of(numpy.zeros((480, 640, 3), "u1"))
    assert Shaper("nv12", parse_size("321x-2", relative=True)).size_of(wide) == (320, 240)
    assert Shaper("rgb24", parse_size("-4x100", relative=True)).size_of(wide) == (132, 100)
    anamorphic = picture_of(numpy.zeros((576, 720, 3), "u1"), pixel=Fraction(64, 45))
    assert Shaper("nv12", Size(1024, -2)).size_of(anamorphic) == (1024, 576)
    small = Shaper("gray8", Size(16, -2))
    white = picture_of(numpy.full((90, 160, 3), 255, "u1"))
    assert small.size_of(white) == (16, 8)  # of 9
    assert (small.convert(white, 16, 8).to_ndarray() == 255).all()  # without bars
    small.fix(16, 8)
    assert (small.convert(white, 16, 8).to_ndarray() == 255).all()
    upright = picture_of(numpy.full((160, 90, 3), 255, "u1"))
    assert not (small.convert(upright, 16, 8).to_ndarray() == 255).all()
    with pytest.raises(ValueError, match="width must be 1 to 32768 and a multiple of 2 for nv12, not 641"):
        Shaper("nv12", Size(641, 480))
    for wrong in ("640", "x", "0x0", "-2x-2", "640x-2"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            parse_size(wrong)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_pictures_are_as_ffmpeg_shows_them(folder, degrees):
    from cuframes.cli.shapes import Shaper

    upright = cameras.make(folder / "upright.mp4", seconds=0.4)
    turned = folder / f"turned{degrees}.mp4"
    copy = ["-i", upright, "-c", "copy", "-metadata:s:v", f"rotate={degrees}", turned]
    subprocess.run([cameras.FFMPEG, "-y", "-nostdin", "-v", "error", *map(str, copy)], check=True)
    first = ["-i", str(turned), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    command = [cameras.FFMPEG, "-nostdin", "-v", "error", *first]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with open_source(str(turned), realtime=False) as video:
        picture = video.next(30)
    for rotate in ("auto", "keep"):
        shaper = Shaper("gray8", rotate=rotate)
        size = shaper.size_of(picture)
        mine = shaper.convert(picture, *size).to_ndarray()
        if rotate == "keep" or degrees == 180:
            assert size == (320, 240)
        else:
            assert size == (240, 320)
        same = abs(mine.astype(int).ravel() - numpy.frombuffer(shown, "u1")).mean() < 3
        assert same == (rotate == "auto")


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_motion_jpeg_gets_the_times_at_which_it_came(folder, kind):
    """It has no timestamps, and FFmpeg would count 25 pictures a second, however many come."""
    path = cameras.make(folder / "still.mjpeg", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", seconds=0.04)
    jpeg = path.read_bytes()
    head = b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)

    def serve(sock, over):
        if kind == "http":
            sock.recv(4096)
            sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n")
        while not over.wait(0.1):
            sock.sendall(head + jpeg + b"\r\n" if kind == "http" else jpeg)

    with cameras.TcpCamera(serve) as camera:
        url = camera.url.replace("tcp:", f"{kind}:")
        with open_source(url, format="mjpeg" if kind == "tcp" else None, packets=True) as video:
            items = [video.next(30) for _ in range(12)]
            assert video.stream.rate is None
    pictures = [item for item in items if isinstance(item, Picture)]
    packets = {item.pts_ns for item in items if isinstance(item, EncodedPacket)}
    assert {picture.pts_ns for picture in pictures} <= packets
    first = pictures[0]
    for number, picture in enumerate(pictures):
        late = (picture.pts_ns - first.pts_ns) - (picture.arrived_ns - first.arrived_ns)
        assert -10_000 < late <= number * 5_000_000 + 10_000  # those that came at once are 5 ms apart


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"url": None}, "expected str, bytes or os.PathLike object"),
        ({"url": b"clip.mp4"}, "a source is a str or a path, not bytes"),
        ({"timeout": "1"}, "timeout must be a number of seconds, not '1'"),
        ({"timeout": float("inf")}, "timeout must be above 0 s and below"),
        ({"via": "gstreamer"}, "via must be 'ffmpeg' or None, not 'gstreamer'"),
        ({"options": {"probesize": 32}}, "options must have names and values of type str, not 'probesize': 32"),
    ],
)
def test_wrong_arguments_are_refused_at_once(wrong, error):
    with pytest.raises((TypeError, ValueError), match=error):
        open_source(**{"url": "clip.mp4"} | wrong)


def test_a_path_is_a_source(clip):
    with open_source(Path(clip)) as video:
        assert video.next(30).frame.width == 1280


def test_everything_is_importable_from_the_package():
    assert cuframes.open_source is open_source
    assert issubclass(SourceError, OSError)
