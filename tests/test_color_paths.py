"""Colours on every path: within 3 of what PyAV (FFmpeg) makes of the file itself."""

import io
import itertools
import subprocess
import sys
from fractions import Fraction

import numpy
import pytest

from cuframes import Publisher, Subscriber
from cuframes.color import CODES, Color
from cuframes.framecache import SlotReader, SlotWriter, remove_slot

av = pytest.importorskip("av")
pytest.importorskip("fastapi")

from cuframes.cli import pipe, pixels  # noqa: E402
from cuframes.framecache.service.thumbnails import Thumbnails  # noqa: E402
from cuframes.media.pictures import color_of_video, convert, picture, presentation_of, reformat  # noqa: E402


def command(*arguments):
    return [sys.executable, "-m", "cuframes", *map(str, arguments)]


BARS = numpy.array(
    [(192, 32, 64), (255, 255, 255), (0, 0, 0), (20, 180, 60), (60, 90, 220), (250, 220, 30)], numpy.uint8
)
BAR = 48  # pixels
WIDTH, HEIGHT = BAR * len(BARS), 64
# Kr and Kb, primaries.
STANDARDS = {
    "smpte170m": (0.299, 0.114, "smpte170m"),
    "bt709": (0.2126, 0.0722, "bt709"),
    "bt2020nc": (0.2627, 0.0593, "bt2020"),
}
CASES = list(itertools.product(STANDARDS, ("tv", "pc"), (8, 10)))
NEAR = 3


def samples(matrix, range_, bits):
    """Y, U and V of the bars, by the formulas of the standards."""
    kr, kb, _ = STANDARDS[matrix]
    r, g, b = (BARS / 255.0).T
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    zero, luma, chroma = (0, top, top) if range_ == "pc" else (16 * unit, 219 * unit, 224 * unit)
    exact = (zero + luma * y, 128 * unit + chroma * u, 128 * unit + chroma * v)
    return [numpy.clip(numpy.rint(values), 0, top).astype(int) for values in exact]


def make_clip(path, matrix, range_, bits, frames=50):
    format = "yuv420p" if bits == 8 else "yuv420p10le"
    frame = av.VideoFrame(WIDTH, HEIGHT, format)
    for plane, values in zip(frame.planes, samples(matrix, range_, bits), strict=True):
        row = numpy.repeat(values, plane.width // len(BARS)).astype("u1" if bits == 8 else "<u2").view(numpy.uint8)
        numpy.frombuffer(plane, numpy.uint8).reshape(plane.height, -1)[:, : row.size] = row
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, format
        context.color_range, context.colorspace = CODES["range"][range_], CODES["matrix"][matrix]
        context.color_primaries, context.color_trc = CODES["primaries"][STANDARDS[matrix][2]], 1
        for number in range(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def bars(tmp_path_factory):
    """``bars(matrix, range, bits)`` is a clip, made once."""
    made = {}
    folder = tmp_path_factory.mktemp("bars")

    def get(*case):
        if case not in made:
            made[case] = make_clip(folder / ("-".join(map(str, case)) + ".mkv"), *case)
        return str(made[case])

    return get


def colors(array):
    """The colours of the bars of an RGB picture, away from their edges."""
    middle = array[HEIGHT // 4 : HEIGHT * 3 // 4].astype(float)
    return numpy.rint([middle[:, BAR * i + 12 : BAR * i + 36].mean((0, 1)) for i in range(len(BARS))])


def colors_of_file(data):
    with av.open(data) as container:
        return colors(next(container.decode(video=0)).to_ndarray(format="rgb24"))


def first(path, format):
    """The first frame of a clip, what a publisher in this format says about it, and its colours by PyAV."""
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        looks = presentation_of(container.streams.video[0], frame, format)
        return frame, looks, colors(frame.to_ndarray(format="rgb24"))


def check(found, expected, true=None):
    """With `true`, each colour may be near that instead: for pictures that were converted twice. What FFmpeg makes
    of the file is itself up to 2 beside the true colour.
    """
    off = abs(found - expected)
    if true is not None:
        off = numpy.minimum(off, abs(found - true))
    assert off.max() <= NEAR, f"{found} is not {expected}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("format", ["nv12", "p010", "i420", "yuv422p", "v210", "uyvy422", "rgb24", "bgra", "gbrp10le"])
def test_from_the_ring(key, bars, case, format):
    decoded, looks, expected = first(bars(*case), format)
    check(expected, BARS)
    assert looks["color"].primaries == STANDARDS[case[0]][2]
    y4m = io.BytesIO()
    with Publisher(key, WIDTH, HEIGHT, format, memory="host", **looks) as publisher, Subscriber(key) as subscriber:
        publisher.publish(convert(decoded, WIDTH, HEIGHT, format))
        with subscriber.next(5) as frame:
            assert frame.color == looks["color"]
            check(colors(frame.to_ndarray()), expected)
            check(colors(frame.to_ndarray("bgr24")[:, :, ::-1]), expected)
            check(colors(frame.to_video_frame().to_ndarray(format="rgb24")), expected)
            check(colors_of_file(io.BytesIO(frame._repr_png_())), expected)
            pipe.Copier(y4m, "y4m", Fraction(25), None, 1).copy(subscriber, lambda _: frame, None)
    y4m.seek(0)
    check(colors_of_file(y4m), expected, BARS)


def test_y4m_of_hd_is_bt709_unless_it_is_told(key):
    """The header cannot name the matrix, so it is the one that players assume for the size."""
    y, u, v = samples("bt2020nc", "tv", 8)
    wide = 1280 // len(BARS) // 2 * 2
    planes = [numpy.full((64 // d, 1280 // d), 128, "u1") for d in (1, 2, 2)]
    for plane, values in zip(planes, (y, u, v), strict=True):
        row = numpy.repeat(values, wide * plane.shape[1] // 1280)
        plane[:, : row.size] = row
    looks = {"memory": "host", "color": ("tv", "bt2020nc")}
    with Publisher(key, 1280, 64, "i420", **looks) as publisher, Subscriber(key) as subscriber:
        publisher.publish(planes)
        with subscriber.next(5) as frame:
            for matrix, read_as in ((None, "bt709"), ("smpte170m", "smpte170m"), ("bt2020nc", "bt2020nc")):
                y4m = io.BytesIO()
                copier = pipe.Copier(y4m, "y4m", Fraction(25), matrix, 1)
                copier.copy(subscriber, lambda _, frame=frame: Kept(frame), None)
                y4m.seek(0)
                with av.open(y4m) as container:
                    video = next(container.decode(video=0))
                video.colorspace = CODES["matrix"][read_as]
                pictures = (convert(video, 1280, 64, "rgb24").to_ndarray(), frame.to_ndarray())
                middles = [wide * i + wide // 2 for i in range(len(BARS))]
                check(*(picture[32, middles].astype(float) for picture in pictures))


@pytest.mark.parametrize("format", ["nv12", "yuvj420p", "rgb24", "gray8", "p010"])
@pytest.mark.parametrize("color", [("tv", "smpte170m"), ("pc", "bt2020nc"), ("pc", "gbr"), (None, "ictcp")], ids=str)
def test_conversion_to_the_colors_of_a_publisher(key, bars, format, color):
    """When a stream changes its colours, its frames are converted to those that the publisher has said."""
    decoded, _, expected = first(bars("bt709", "tv", 8), format)
    converted = convert(decoded, WIDTH, HEIGHT, format, Color(*color))
    said = color_of_video(converted)
    assert said.range == (color[0] or "tv" if format in ("nv12", "p010") else "pc")
    if format in ("nv12", "p010"):
        assert said.matrix == (color[1] if color[1] in STANDARDS else "bt709")
    with Publisher(key, WIDTH, HEIGHT, format, memory="host", color=said) as publisher, Subscriber(key) as subscriber:
        publisher.publish(converted)
        with subscriber.next(5) as frame:
            if format == "gray8":
                luma = expected @ (0.299, 0.587, 0.114)
                check(colors(frame.to_ndarray()), numpy.rint(luma)[:, None].repeat(3, 1))
            else:
                check(colors(frame.to_ndarray()), expected, BARS)


@pytest.mark.parametrize("format", ["yuv420p", "yuvj420p", "gray", "yuv444p10le", "rgb24"])
@pytest.mark.parametrize("range_", [0, 1, 2])
def test_a_conversion_does_not_change_what_it_is_given(format, range_):
    video = av.VideoFrame(64, 48, format)
    video.color_range, video.colorspace = range_, 1
    before = video.color_range, video.colorspace, video.format.name
    for wanted in ("yuv420p", "yuvj420p", "gray", "nv12", "rgb24", "yuv444p10le"):
        reformat(video, 64, 48, wanted)
        reformat(video, 64, 48, wanted, Color("pc", "smpte170m"))
        assert (video.color_range, video.colorspace, video.format.name) == before


@pytest.mark.parametrize("format", ["i420", "yuvj420p", "gray8"])
def test_a_picture_that_is_like_jpeg_already(key, format):
    with Publisher(key, 64, 48, format, memory="host", color=("pc", "smpte170m")) as publisher:
        with Subscriber(key) as subscriber:
            publisher.publish(numpy.full((48, 64) if format == "gray8" else (72, 64), 128, "u1"))
            with subscriber.next(5) as frame, av.open(io.BytesIO(picture(frame, "jpeg"))) as container:
                rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert abs(rgb.astype(int) - 128).max() <= 1


class Kept:
    """A frame that leaving a block does not release."""

    def __init__(self, frame):
        self.frame = frame

    def __enter__(self):
        return self.frame

    def __exit__(self, *exc):
        pass


@pytest.mark.parametrize("case", CASES, ids=str)
def test_jpeg_and_png_files(key, bars, case, tmp_path):
    decoded, looks, expected = first(bars(*case), "nv12")
    with Publisher(key, WIDTH, HEIGHT, memory="host", **looks) as publisher:
        with Subscriber(key) as subscriber:
            publisher.publish(convert(decoded, WIDTH, HEIGHT, "nv12"))
            with subscriber.next(5) as frame:
                for name in ("p.png", "p.jpg"):
                    pixels.save_picture(frame, tmp_path / name)
                    check(colors_of_file(str(tmp_path / name)), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_from_a_slot(slot_id, bars, case):
    decoded, looks, expected = first(bars(*case), "uyvy422")
    del looks["frame_rate"]
    with SlotWriter(slot_id, WIDTH, HEIGHT, ring_depth=4, **looks) as writer, SlotReader(slot_id) as reader:
        writer.write(convert(decoded, WIDTH, HEIGHT, "uyvy422"))
        frame = reader.next(5)
        check(colors(frame.to_ndarray()), expected)
        check(colors(frame.to_video_frame().to_ndarray(format="rgb24")), expected)
        check(colors_of_file(io.BytesIO(Thumbnails().get(slot_id)[1])), expected)
    remove_slot(slot_id)


@pytest.mark.parametrize("case", [("bt709", "tv", 8), ("bt2020nc", "pc", 10)], ids=str)
@pytest.mark.parametrize("format", ["nv12", "rgb24"])
def test_the_commands(key, bars, case, format, tmp_path):
    path = bars(*case)
    expected = first(path, format)[2]
    publish = command("publish", key, "--source", path, "--loop", "--memory", "host", "--format", format)
    with subprocess.Popen(publish, stderr=subprocess.DEVNULL) as publisher:
        try:
            subprocess.run(command("snapshot", key, tmp_path / "now.png"), check=True, timeout=60)
            with open(tmp_path / "now.y4m", "wb") as out:
                subprocess.run(command("pipe", key, "--frames", 2), stdout=out, check=True, timeout=60)
        finally:
            publisher.terminate()
            publisher.wait(30)
    check(colors_of_file(str(tmp_path / "now.png")), expected)
    check(colors_of_file(str(tmp_path / "now.y4m")), expected)
