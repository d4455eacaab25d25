"""From a frame to an array, an image or PyAV's frame in one call; and back with its pts."""

import concurrent.futures
import io
import multiprocessing
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy
import pytest

from cuframes import Publisher, Subscriber
from cuframes.formats import FORMATS, FrameShape
from cuframes.framecache import SlotReader, SlotWriter, remove_slot

av = pytest.importorskip("av")

from cuframes.cli import pipe  # noqa: E402
from cuframes.media.pictures import convert, picture, presentation_of  # noqa: E402
from cuframes.rates import rate  # noqa: E402

# Padded rows, so that three planes are not one array; without padding; padded, and one array all the same.
SIZES = [(176, 144), (720, 480), (854, 480), (1280, 720), (2, 2)]
NV12 = numpy.zeros((72, 64), numpy.uint8)


def pattern(format, width, height):
    """A frame's samples, all different from their neighbours, as one array."""
    shape = FrameShape(FORMATS[format], width, height, align=1)
    count = numpy.prod(shape.array_shape)
    return (numpy.arange(count) * 7 % 251).astype(f"u{shape.format.itemsize}").reshape(shape.array_shape)


@pytest.fixture
def taken(key):
    """``taken(format, width, height)`` is a frame of a subscriber, with what the publisher says."""
    ends = []

    def take(format="nv12", width=64, height=48, src=None, pts_ns=None, **looks):
        publisher = Publisher(key, width, height, format, memory="host", **looks)
        ends.append(publisher)
        subscriber = Subscriber(key)
        ends.append(subscriber)
        publisher.publish(pattern(format, width, height) if src is None else src, pts_ns=pts_ns)
        frame = subscriber.next(5)
        ends.append(frame)
        return frame

    yield take
    for end in reversed(ends):
        end.release() if hasattr(end, "release") else end.close()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("format", ["i420", "yuv422p", "yuv420p10le", "nv12", "rgbp", "rgb24", "gray8"])
def test_one_array_at_every_width(taken, format, size):
    expected = pattern(format, *size)
    frame = taken(format, *size)
    for array in (numpy.asarray(frame), numpy.array(frame), frame.copy_to_host(), numpy.array(frame, copy=True)):
        assert array.dtype == expected.dtype
        assert (array == expected).all()
    assert frame.shape == expected.shape
    assert frame.ndim == expected.ndim
    assert frame.nbytes == expected.nbytes
    assert len(frame) == len(expected)
    assert frame.tobytes() == expected.tobytes()
    assert (frame[1:, 1] == expected[1:, 1]).all()
    assert frame.copy_to_host().flags.writeable
    for plane in frame.planes:
        assert plane.ndim == len(plane.shape)
        assert plane.tobytes() == numpy.asarray(plane).tobytes()


def test_an_array_that_must_not_be_a_copy(taken):
    frame = taken("i420", 176, 144)
    assert not frame.is_contiguous()
    if numpy.lib.NumpyVersion(numpy.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match=r"planes or frame\.to_ndarray\(\)"):
            numpy.array(frame, copy=False)
    with pytest.raises(ValueError, match=r"planes or frame\.to_ndarray\(\)"):
        frame.__array__(copy=False)
    for export in (memoryview, numpy.from_dlpack):
        with pytest.raises(BufferError, match=r"to_ndarray\(\)"):
            export(frame)
    assert not hasattr(frame, "__array_interface__")


def test_writes_to_a_frame_never_go_to_a_copy(key):
    with Publisher(key, 176, 144, "i420", memory="host") as publisher, publisher.acquire() as frame:
        with pytest.raises(BufferError, match=r"use frame\.planes"):
            numpy.asarray(frame)
        with pytest.raises(BufferError, match=r"use frame\.planes"):
            frame[0] = 1
        with pytest.raises(BufferError, match=r"use frame\.planes"):
            frame[0]
        frame.planes[0][...] = 7
        assert (frame.copy_to_host()[:144] == 7).all()


@pytest.mark.parametrize("size", [(176, 144), (256, 144)])
@pytest.mark.parametrize("use", [lambda f: f.copy_to_host(), numpy.asarray, memoryview, lambda f: f.tobytes()])
def test_a_frame_that_was_not_entered_has_no_memory(key, size, use):
    with Publisher(key, *size, "i420", memory="host") as publisher:
        frame = publisher.acquire()
        with pytest.raises((ValueError, BufferError)):
            use(frame)
        with frame:
            frame.planes[0][...] = 1
        with pytest.raises((ValueError, BufferError)):
            use(frame)


@pytest.mark.parametrize("use", [lambda f: f.copy_to_host(), numpy.asarray, len, lambda f: f.tobytes()])
def test_a_released_frame_is_refused(taken, use):
    frame = taken("i420", 176, 144)
    frame.release()
    with pytest.raises(ValueError, match="released"):
        use(frame)


@pytest.mark.parametrize("format", FORMATS)
def test_to_ndarray_in_every_format(taken, format):
    frame = taken("rgb24", 48, 32)
    array = frame.to_ndarray(format)
    shape = FrameShape(FORMATS[format], 48, 32, align=1)
    assert array.shape == shape.array_shape
    assert array.dtype == f"u{shape.format.itemsize}"
    assert array.flags.writeable
    if format == "rgb24":
        assert (array == pattern("rgb24", 48, 32)).all()
    elif format == "rgbp":
        assert (array == pattern("rgb24", 48, 32).transpose(2, 0, 1)).all()
    elif format == "bgra":
        assert (array[:, :, 2::-1] == pattern("rgb24", 48, 32)).all()
    assert array.any()


def test_to_ndarray_in_another_size(taken):
    frame = taken("nv12", 64, 48, numpy.full((72, 64), 128, "u1"))
    assert frame.to_ndarray(width=32).shape == (24, 32, 3)
    assert frame.to_ndarray(height=96).shape == (96, 128, 3)
    assert frame.to_ndarray("gray8", 10, 20).shape == (20, 10)
    assert abs(frame.to_ndarray(width=7, height=5).astype(int) - 130).max() <= 1  # (128 - 16) * 255 / 219
    for arguments, message in (
        ({"width": 0}, "width must be 1 to"),
        ({"height": -3}, "height must be 1 to"),
        ({"format": "rgb25"}, "unknown pixel format 'rgb25'"),
        ({"format": "nv12", "width": 31, "height": 24}, "a multiple of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            frame.to_ndarray(**arguments)
    frame.release()
    with pytest.raises(ValueError, match="released"):
        frame.to_ndarray()


def test_the_array_is_the_callers_own(taken):
    frame = taken("rgb24", 64, 48)
    array = frame.to_ndarray()
    frame.release()
    array += 1
    assert (array == pattern("rgb24", 64, 48) + 1).all()


def test_to_image(taken):
    pytest.importorskip("PIL")
    image = taken("rgb24", 61, 37).to_image()
    assert (image.mode, image.size) == ("RGB", (61, 37))
    assert (numpy.asarray(image) == pattern("rgb24", 61, 37)).all()


@pytest.mark.parametrize(("format", "mode"), [("gray8", "L"), ("bgra", "RGBA"), ("i420", "RGB"), ("gray10le", "L")])
def test_modes_of_images(taken, format, mode):
    pytest.importorskip("PIL")
    assert taken(format, 64, 48).to_image().mode == mode


def test_to_video_frame(taken):
    frame = taken("i420", 60, 40, pts_ns=123_456_789, color=("pc", "bt709", "bt2020", "smpte2084"))
    video = frame.to_video_frame()
    assert (video.format.name, video.width, video.height) == ("yuv420p", 60, 40)
    assert video.pts * video.time_base == Fraction(123_456_789, 10**9)
    assert (video.color_range, video.colorspace) == (2, 1)
    if hasattr(video, "color_trc"):
        assert (video.color_primaries, video.color_trc) == (9, 16)
    assert (video.to_ndarray() == pattern("i420", 60, 40)).all()


def test_a_slots_frame(slot_id):
    with SlotWriter(slot_id, 64, 48, "rgb24", ring_depth=4) as writer, SlotReader(slot_id) as reader:
        writer.write(pattern("rgb24", 64, 48), pts_us=5)
        frame = reader.next(5)
        assert frame.ndim == 3
        assert frame.tobytes() == pattern("rgb24", 64, 48).tobytes()
        assert (frame.to_ndarray("bgr24")[:, :, ::-1] == pattern("rgb24", 64, 48)).all()
        assert frame.to_video_frame().pts * Fraction(1, 10**9) == Fraction(5, 10**6)
        assert frame._repr_png_().startswith(b"\x89PNG")
        writer.write(b"short")
        frame = reader.next(5)
        assert frame._repr_png_() is None
        with pytest.raises(ValueError, match="not a whole picture"):
            frame.to_ndarray()
        writer.write(pattern("rgb24", 64, 48), pts_us=2**64 - 1)  # more than FFmpeg's timestamps hold
        assert reader.next(5).to_video_frame().pts is None
    remove_slot(slot_id)


def test_what_is_missing_is_named(key):
    script = f"""
import sys
sys.modules[sys.argv[1]] = None
import cuframes, numpy
with cuframes.Publisher({key!r}, 64, 48, memory="host") as publisher, cuframes.Subscriber({key!r}) as subscriber:
    publisher.publish(numpy.zeros((72, 64), "u1"))
    with subscriber.next(5) as frame:
        if sys.argv[1] == "av":
            assert frame._repr_png_() is None
        try:
            frame.to_image()
        except ImportError as problem:
            print(problem)
"""
    for missing, message in (("av", "pip install 'cuframes[cli]'"), ("PIL", "pip install pillow")):
        done = subprocess.run(
            [sys.executable, "-c", script, missing], capture_output=True, text=True, timeout=60, check=False
        )
        assert message in done.stdout, done.stderr


def test_pictures_in_a_forked_child(taken):
    """The child has none of the threads that convert in its parent."""
    frame = taken("nv12", 1280, 720, numpy.full((1080, 1280), 128, "u1"))
    before = frame.to_ndarray(width=640)
    copy = frame.to_video_frame()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        child = multiprocessing.get_context("fork").Process(target=convert_in_child, args=(copy,))
        child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0
    assert (frame.to_ndarray(width=640) == before).all()


def convert_in_child(video):
    for _ in range(3):
        convert(video, 640, 360, "rgb24")


@pytest.mark.parametrize("size", [(1280, 720), (1024, 1024), (176, 144)], ids=str)
def test_conversions_on_many_threads(taken, size):
    """Each thread gets its own picture, and nobody another's."""
    frame = taken("i420", *size)
    expected = {width: frame.to_ndarray(width=width) for width in (64, 100, 320, size[0])}

    def work(width):
        return all((frame.to_ndarray(width=width) == expected[width]).all() for _ in range(10))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [*expected] * 4))


# ---- upright -------------------------------------------------------------------------------------------------------


def corners(png):
    """The bright corner of a picture."""
    with av.open(io.BytesIO(png)) as container:
        gray = next(container.decode(video=0)).to_ndarray(format="gray")
    height, width = gray.shape
    bright = {
        "top left": gray[: height // 2, : width // 2],
        "top right": gray[: height // 2, width // 2 :],
        "bottom left": gray[height // 2 :, : width // 2],
        "bottom right": gray[height // 2 :, width // 2 :],
    }
    return (width, height), max(bright, key=lambda name: bright[name].mean())


@pytest.mark.parametrize(
    ("rotation", "size", "corner"),
    [
        (None, (64, 48), "top left"),
        (90, (48, 64), "top right"),
        (180, (64, 48), "bottom right"),
        (270, (48, 64), "bottom left"),
    ],
)
def test_pictures_are_upright(taken, rotation, size, corner):
    src = numpy.zeros((48, 64), "u1")
    src[:24, :32] = 255
    frame = taken("gray8", 64, 48, src, rotation=rotation)
    assert corners(frame._repr_png_()) == (size, corner)
    assert corners(picture(frame, "jpeg", 32)) == ((32, 24) if size[0] == 64 else (32, 42), corner)
    assert frame.to_ndarray().shape == (48, 64, 3)  # as it is stored


def test_a_preview_is_not_larger_than_a_notebook(taken):
    frame = taken("nv12", 1920, 1080, numpy.zeros((1620, 1920), "u1"))
    assert corners(frame._repr_png_())[0] == (960, 540)


@pytest.mark.parametrize(("rotation", "size"), [(None, (512, 288)), (90, (288, 512))])
def test_previews_have_square_samples(taken, rotation, size, tmp_path):
    black = numpy.zeros((432, 360), "u1")
    frame = taken("nv12", 360, 288, black, sample_aspect_ratio="64:45", rotation=rotation)
    assert corners(frame._repr_png_())[0] == size
    with av.open(io.BytesIO(picture(frame, "png"))) as container:
        stored = container.streams.video[0]
        wanted = Fraction(45, 64) if rotation else Fraction(64, 45)
        assert abs(float(stored.sample_aspect_ratio) - float(wanted)) < 1e-3
        assert (stored.width, stored.height) == ((288, 360) if rotation else (360, 288))


def test_rotation_of_a_file(tmp_path):
    """FFmpeg's display matrix turns counter-clockwise, our degrees are clockwise."""
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this version of PyAV does not write rotations")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(-90)
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert presentation_of(container.streams.video[0], frame)["rotation"] == 90


# ---- pts -----------------------------------------------------------------------------------------------------------


def video(pts=None, time_base=None):
    frame = av.VideoFrame(64, 48, "nv12")
    if pts is not None:
        frame.pts, frame.time_base = pts, time_base
    return frame


def test_published_frames_keep_their_pts(key, slot_id):
    other = f"{key}b"
    with (
        Publisher(key, 64, 48, memory="host") as first,
        Subscriber(key) as from_first,
        Publisher(other, 64, 48, memory="host") as second,
        Subscriber(other) as from_second,
        SlotWriter(slot_id, 64, 48, "nv12", ring_depth=4) as writer,
        SlotReader(slot_id) as reader,
    ):
        first.publish(video(7, Fraction(1, 25)))
        frame = from_first.next(5)
        assert frame.pts_ns == 280_000_000
        second.publish(frame)
        assert from_second.next(5).pts_ns == 280_000_000
        second.publish(frame, pts_ns=5)
        assert from_second.next(5).pts_ns == 5
        writer.write(frame)
        slot_frame = reader.next(5)
        assert slot_frame.pts_us == 280_000
        writer.write(frame, pts_us=3)
        assert reader.next(5).pts_us == 3
        second.publish(slot_frame)
        assert from_second.next(5).pts_ns == 280_000_000
        writer.write(video(-3, Fraction(1)))
        assert reader.next(5).pts_us == 0  # a slot has no times before 0
        frame.release()
    remove_slot(slot_id)


@pytest.mark.parametrize("src", [NV12, video(), video(2**62, Fraction(1))], ids=["array", "no pts", "too late"])
def test_what_has_no_pts_gets_the_time_of_publishing(key, src):
    with Publisher(key, 64, 48, memory="host") as publisher, Subscriber(key) as subscriber:
        publisher.publish(src)
        with subscriber.next(5) as frame:
            assert frame.pts_ns == frame.published_ns


# ---- y4m -----------------------------------------------------------------------------------------------------------


class Source:
    """Frames with given times, for what ``pipe`` takes them from."""

    def __init__(self, frame, times):
        self.frame, self.times, self.number = frame, iter(times), 0

    def take(self, timeout):
        self.number += 1
        return Taken(self.number, next(self.times), self.frame)


class Taken:
    def __init__(self, frame_no, pts_ns, frame):
        self.frame_no, self.pts_ns, self.frame = frame_no, pts_ns, frame

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def __getattr__(self, name):
        return getattr(self.frame, name)


def header(frame, take=None, nominal=None, given=None):
    out = io.BytesIO()
    pipe.Copier(out, "y4m", given, None, 1).copy(frame, take or (lambda _: Taken(1, 0, frame)), nominal)
    return out.getvalue().partition(b"\n")[0].decode().split()


def test_y4m_header(taken):
    frame = taken("nv12", 720, 576, numpy.zeros((864, 720), "u1"), sample_aspect_ratio="64:45", field_order="tff")
    words = header(frame, nominal=rate(59.94))
    assert words == ["YUV4MPEG2", "W720", "H576", "F60000:1001", "It", "A64:45", "C420mpeg2", "XCOLORRANGE=LIMITED"]
    assert header(frame, nominal=rate(59.94), given=rate(29.97))[3] == "F30000:1001"


@pytest.mark.parametrize(
    ("format", "looks", "words"),
    [
        ("yuvj420p", {}, ["Ip", "A1:1", "C420jpeg", "XCOLORRANGE=FULL"]),
        ("uyvy422", {"field_order": "bb"}, ["Ib", "A1:1", "C422", "XCOLORRANGE=LIMITED"]),
        ("gray8", {}, ["Ip", "A1:1", "Cmono", "XCOLORRANGE=FULL"]),
        ("rgb24", {"color": "srgb"}, ["Ip", "A1:1", "C444", "XCOLORRANGE=LIMITED"]),
        ("p010", {"color": ("pc",)}, ["Ip", "A1:1", "C420p10", "XCOLORRANGE=FULL"]),
    ],
)
def test_words_of_the_y4m_header(taken, format, looks, words):
    src = pattern("i420" if format == "yuvj420p" else format, 64, 48)
    assert header(taken(format, 64, 48, src, **looks), nominal=Fraction(25))[4:] == words


@pytest.mark.parametrize(
    ("fps", "jitter_ms", "expected"),
    [
        (30, 10, "F30:1"),
        (25, 8, "F25:1"),
        (Fraction(30000, 1001), 0, "F30000:1001"),
        (120, 1, "F120:1"),
        (2, 30, "F2:1"),
    ],
)
def test_a_rate_is_measured_over_a_second_and_snapped(taken, fps, jitter_ms, expected):
    frame = taken("gray8", 64, 48)
    for seed in range(5):
        late = numpy.random.default_rng(seed).uniform(-jitter_ms, jitter_ms, 1000)
        times = [int(n * 10**9 / fps + late[n] * 10**6) for n in range(1000)]
        source = Source(frame, times)
        assert header(frame, source.take)[3] == expected
        assert source.number - 2 >= min(fps, 4)


def test_a_rate_of_times_that_jump_back(taken):
    frame = taken("gray8", 64, 48)
    times = [*range(10**10, 10**10 + 10**9, 10**8), *range(0, 10**10, 10**9 // 25)]
    assert header(frame, Source(frame, times).take)[3] == "F25:1"


def test_no_rate_in_times_that_stand_still(taken, monkeypatch):
    monkeypatch.setattr(pipe, "MEASURED_SECONDS", 0)
    frame = taken("gray8", 64, 48)
    assert header(frame, Source(frame, [5] * 100).take)[3] == "F25:1"
