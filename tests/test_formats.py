"""Pixel formats: their geometry, their names, and the bytes that FFmpeg (PyAV) has for them, on every path."""

import io
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from cuframes import Color, Publisher, Subscriber
from cuframes.formats import ALIASES, FORMATS, FULL_RANGE, FrameShape, pixel_format
from cuframes.framecache import SlotReader, SlotWriter, remove_slot
from cuframes.framecache.parameters import CODES

DOCS = Path(__file__).parents[1] / "docs"
# Rows with a padded pitch; without; an odd picture; one block of v210 and a bit; as small as can be.
SIZES = [(60, 40), (64, 48), (61, 37), (50, 6), (1, 1), (2, 2)]


def fits(name, size):
    return all(side % multiple == 0 for side, multiple in zip(size, FORMATS[name].divisors, strict=True))


CASES = [(name, size) for name in FORMATS for size in SIZES if fits(name, size)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [(2, 2), (64, 48), (1280, 720), (854, 480), (1918, 1078)])
def test_planes_do_not_overlap_and_fill_the_frame(name, size):
    shape = FrameShape(FORMATS[name], *size)
    end = 0
    for plane in shape.planes:
        assert plane.offset == end
        row_bytes = plane.shape[1] * plane.strides[1]
        assert plane.strides[0] >= row_bytes
        assert plane.strides[0] % 64 == 0
        end += plane.shape[0] * plane.strides[0]
    assert end == shape.nbytes


@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_one_array_holds_the_planes(name, size):
    for align in (1, 64):
        shape = FrameShape(FORMATS[name], *size, align=align)
        samples = sum(numpy.prod(plane.shape) for plane in shape.planes)
        assert numpy.prod(shape.array_shape) == samples
        if align == 1:
            assert shape.nbytes == samples * shape.format.itemsize
            assert shape.matrix is not None
        if shape.matrix is None:
            continue
        memory = numpy.random.default_rng(1).integers(0, 255, shape.nbytes, numpy.uint8)
        dtype = f"u{shape.format.itemsize}"
        arrays = [numpy.ndarray(p.shape, dtype, memory, p.offset, p.strides) for p in (*shape.planes, shape.matrix)]
        assert (arrays[-1].ravel() == numpy.concatenate([plane.ravel() for plane in arrays[:-1]])).all()


@pytest.mark.parametrize(
    ("name", "planes"),
    [
        ("nv12", [(48, 64), (24, 32, 2)]),
        ("p010", [(48, 64), (24, 32, 2)]),
        ("i420", [(48, 64), (24, 32), (24, 32)]),
        ("gray8", [(48, 64)]),
        ("gray16", [(48, 64)]),
        ("rgb24", [(48, 64, 3)]),
        ("bgr24", [(48, 64, 3)]),
        ("rgba", [(48, 64, 4)]),
        ("bgra", [(48, 64, 4)]),
        ("uyvy422", [(48, 64, 2)]),
        ("yuyv422", [(48, 64, 2)]),
        ("rgbp", [(48, 64)] * 3),
        ("nv16", [(48, 64), (48, 32, 2)]),
        ("nv24", [(48, 64), (48, 64, 2)]),
        ("yuv422p10le", [(48, 64), (48, 32), (48, 32)]),
        ("yuv440p", [(48, 64), (24, 64), (24, 64)]),
        ("gbrap", [(48, 64)] * 4),
        ("v210", [(48, 256)]),
    ],
)
def test_plane_shapes(name, planes):
    assert [plane.shape for plane in FrameShape(FORMATS[name], 64, 48).planes] == planes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("nv12", (72, 64)),
        ("yuv420p10le", (72, 64)),
        ("nv16", (96, 64)),
        ("yuv422p", (96, 64)),
        ("nv24", (144, 64)),
        ("yuv444p", (3, 48, 64)),
        ("yuva444p12le", (4, 48, 64)),
        ("bgr0", (48, 64, 4)),
        ("v210", (48, 256)),
    ],
)
def test_array_shapes(name, shape):
    assert FrameShape(FORMATS[name], 64, 48).array_shape == shape


@pytest.mark.parametrize(("width", "row_bytes"), [(2, 128), (48, 128), (50, 256), (1280, 3456), (1920, 5120)])
def test_rows_of_v210_are_whole_blocks(width, row_bytes):
    assert FrameShape(FORMATS["v210"], width, 2, align=1).pitch_y == row_bytes


def test_codes_are_fixed():
    # They are in other programs' segments: a number never changes its meaning.
    names = """
        nv12 p010 i420 gray8 gray16 rgb24 bgr24 rgba bgra uyvy422 yuyv422 rgbp nv21 nv16 nv24 p016le p210le yuv422p
        yuv440p yuv444p yuv420p10le yuv422p10le yuv444p10le yuv420p12le yuv422p12le yuv444p12le yuv444p16le yuva444p10le
        yuva444p12le gbrp gbrp10le gbrp12le gbrap gray10le gray12le rgb0 bgr0 0rgb 0bgr argb abgr yvyu422 v210
    """.split()  # noqa: SIM905
    assert [(f.code, f.name) for f in FORMATS.values()] == list(enumerate(names))
    slots = "uyvy422 yuyv422 nv12 p010 i420 gray8 gray16 rgb24 bgr24 rgba bgra rgbp".split()  # noqa: SIM905
    assert list(CODES.items()) == [(name, code) for code, name in enumerate([*slots, *names[12:]])]


def test_the_documents_list_all_formats():
    written = (DOCS / "protocol.md").read_text()
    for begin, end, codes in (
        ("Format codes:", "[Pixel formats]", {f.name: f.code for f in FORMATS.values()}),
        (
            "0 uyvy422; extensions of this library:",
            "; from 12 on the codes of `meta`",
            {name: CODES[name] for name in list(CODES)[:12]},
        ),
    ):
        found = written[written.index(begin) :]
        found = found[: found.index(end)]
        assert {name: int(code) for code, name in re.findall(r"(\d+)\s(\w+)", found)} == codes
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|(.*)\|$", (DOCS / "formats.md").read_text(), re.MULTILINE)
    listed = {name: [re.findall(r"`(\w+)`", cell) for cell in cells] for name, *cells in rows}
    assert list(listed) == sorted(listed, key=list(listed).index)
    assert listed.keys() == FORMATS.keys()
    others = {alias: name for name, (_, *cells) in listed.items() for cell in cells for alias in cell}
    implied = {name.removesuffix("le") for name in FORMATS if name.endswith("le")}
    # Names that GStreamer and V4L2 share are in both columns.
    assert others.keys() | implied == ALIASES.keys()
    assert all(pixel_format(alias).name == name for alias, name in others.items())


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("yuv420p", "i420"),
        ("gray", "gray8"),
        ("p010", "p010"),
        ("p010le", "p010"),
        ("yuv422p10", "yuv422p10le"),
        ("NV12", "nv12"),
        ("YUY2", "yuyv422"),
        ("YUYV", "yuyv422"),
        ("P010_10LE", "p010"),
        ("Y42B", "yuv422p"),
        ("YU12", "i420"),
        ("Y16 ", "gray16"),
        ("XR24", "bgr0"),
        ("yuvj420p", "i420"),
        (0, "nv12"),
        (numpy.uint32(3), "gray8"),
    ],
)
def test_other_names(given, name):
    assert pixel_format(given) is FORMATS[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nv13", r"'nv13'; close to it are .*nv12.*; list\(cuframes.formats.FORMATS\) has them all"),
        ("Nv12", r"close to it are nv12"),
        ("yuyv", r"close to it are YUYV"),
        ("YV12", r"'YV12', which is i420 with U and V exchanged"),
        ("h264", r"unknown pixel format 'h264'; list\(cuframes.formats.FORMATS\) has them all"),
        ("", "unknown pixel format"),
        (99, "unknown pixel format 99; a newer cuframes may know it"),
    ],
)
def test_unknown_names(given, said):
    with pytest.raises(ValueError, match=said):
        pixel_format(given)


@pytest.mark.parametrize("given", [None, 1.0, True, ["nv12"], b"nv12"])
def test_what_is_no_name(given):
    with pytest.raises(TypeError, match="a pixel format that is not a name must be an int"):
        pixel_format(given)


# What GStreamer's documents and videodev2.h say of the bytes of a pixel, or of a pair of them, in each plane.
LAYOUTS = {
    "RGB": "RGB",
    "BGR": "BGR",
    "RGBA": "RGBA",
    "BGRA": "BGRA",
    "ARGB": "ARGB",
    "ABGR": "ABGR",
    "RGBx": "RGBx",
    "BGRx": "BGRx",
    "xRGB": "xRGB",
    "xBGR": "xBGR",
    "UYVY": "UYVY",
    "YUY2": "YUYV",
    "YUYV": "YUYV",
    "YVYU": "YVYU",
    "RGB3": "RGB",
    "BGR3": "BGR",
    "AB24": "RGBA",
    "AR24": "BGRA",
    "BA24": "ARGB",
    "RA24": "ABGR",
    "XB24": "RGBx",
    "XR24": "BGRx",
    "BX24": "xRGB",
    "RX24": "xBGR",
    "I420": "Y U V",
    "YU12": "Y U V",
    "Y42B": "Y U V",
    "422P": "Y U V",
    "Y444": "Y U V",
    "NV12": "Y UV",
    "NV16": "Y UV",
    "NV24": "Y UV",
    "NV21": "Y VU",
    "GBR": "G B R",
    "GBRA": "G B R A",
    "GRAY8": "Y",
    "GREY": "Y",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_mean_these_bytes(name):
    """A colour that FFmpeg converts lies in memory as the name's own documents say."""
    av = pytest.importorskip("av")
    from cuframes.media.pictures import ffmpeg_format

    colour = numpy.empty((2, 2, 3), numpy.uint8)
    colour[...] = 200, 100, 30
    video = av.VideoFrame.from_ndarray(colour, "rgb24")
    yuv = [int(plane[0]) for plane in map(bytes, video.reformat(format="yuv444p").planes)]
    assert len({*yuv, 200, 100, 30}) == 6
    values = dict(zip("RGBAYUV", (200, 100, 30, 255, *yuv), strict=True))
    converted = video.reformat(format=ffmpeg_format(name))
    for plane, letters in zip(converted.planes, LAYOUTS[name].split(), strict=True):
        found = bytes(plane)[: len(letters)]
        for seen, letter in zip(found, letters, strict=True):
            assert letter == "x" or abs(seen - values[letter]) <= 1, (letters, list(found))


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_semi_planar_frame_is_a_matrix():
    shape = FrameShape(FORMATS["nv12"], 854, 480)
    assert shape.array_shape == (720, 854)
    assert shape.matrix.shape == (720, 854)
    assert shape.matrix.strides == (896, 1)


def test_bits_per_pixel_match_the_planes():
    for f in FORMATS.values():
        shape = FrameShape(f, 96, 64)
        samples = sum(int(numpy.prod(plane.shape)) for plane in shape.planes)
        assert samples * f.itemsize * 8 // (96 * 64) == f.bits_per_pixel


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("nv12", (63, 48), "width must be 1 to 32768 and a multiple of 2 for nv12, not 63; crop or scale the picture"),
        ("nv12", (64, 47), "height"),
        ("uyvy422", (63, 48), "width"),
        ("yuv422p10le", (63, 48), "width"),
        ("v210", (63, 48), "width must be 1 to 32768 and a multiple of 2 for v210"),
        ("yuv440p", (64, 47), "height"),
        ("gray8", (0, 48), "width must be 1 to 32768, not 0$"),
        ("gray8", (64, -1), "height"),
        ("gray8", (40000, 1), "width"),
    ],
)
def test_bad_sizes(name, size, said):
    with pytest.raises(ValueError, match=said):
        FrameShape(FORMATS[name], *size)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pitch_must_hold_a_row(name):
    shape = FrameShape(FORMATS[name], 64, 48, align=1)
    FrameShape(FORMATS[name], 64, 48, shape.pitch_y, shape.pitch_uv)
    with pytest.raises(ValueError, match="too small for width 64"):
        FrameShape(FORMATS[name], 64, 48, shape.pitch_y - 2, shape.pitch_uv)
    if len(shape.planes) > 1:
        with pytest.raises(ValueError, match="too small for width 64"):
            FrameShape(FORMATS[name], 64, 48, shape.pitch_y, shape.pitch_uv - 2)


# ---- every format on every path -------------------------------------------------------------------------------------


def picture(width, height):
    """A smooth picture in colour, as PyAV's frame; smooth, since conversions average chroma."""
    av = pytest.importorskip("av")
    y, x = numpy.mgrid[0:height, 0:width]
    colours = numpy.stack([x * 200 // width + 30, y * 200 // height + 30, (x + y) * 200 // (width + height) + 30], 2)
    return av.VideoFrame.from_ndarray(colours.astype(numpy.uint8), "rgb24")


def converted(video, format):
    """By FFmpeg, and always the same: with threads, pixels can get lost (`test_conversions_lose_no_pixels`)."""
    from cuframes.media.pictures import reformat

    return reformat(video, video.width, video.height, format)


def ffmpeg_bytes(video, name):
    """The samples of a PyAV frame without padding, from FFmpeg's own encoder of raw video."""
    import av

    codec = "v210" if name == "v210" else "rawvideo"
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = video.width, video.height, video.format.name
    encoder.time_base = Fraction(1, 25)
    video.pts = 0
    data = b"".join(bytes(packet) for packet in [*encoder.encode(video), *encoder.encode(None)])
    if name == "rgbp":  # FFmpeg has the planes in the order G, B, R
        plane = len(data) // 3
        data = data[2 * plane :] + data[: 2 * plane]
    return data


def rows_of(planes):
    """The same of a frame of ours, row by row."""
    return b"".join(numpy.asarray(row).tobytes() for plane in planes for row in numpy.asarray(plane))


@pytest.fixture(params=CASES, ids=str)
def video(request):
    """A PyAV frame of every format and size: the format, the frame, what to publish for it, and its bytes."""
    from cuframes.cli.pixels import convert
    from cuframes.media.pictures import ffmpeg_format

    name, size = request.param
    frame = converted(picture(*size), ffmpeg_format(name))
    return SimpleNamespace(
        name=name, size=size, frame=frame, src=convert(frame, *size, name), data=ffmpeg_bytes(frame, name)
    )


def test_frames_of_ffmpeg_through_the_ring(key, video):
    shape = FrameShape(FORMATS[video.name], *video.size, align=1)
    whole = numpy.frombuffer(video.data, f"<u{shape.format.itemsize}").reshape(shape.array_shape)
    with Publisher(key, *video.size, video.name) as publisher, Subscriber(key) as subscriber:
        sources = [video.src, video.data, whole]
        if video.name != "v210":
            sources.append(video.frame)
        if video.name in ("nv12", "i420", "gray8", "gray16", "rgb24", "bgra", "yuyv422", "yuv444p"):
            sources.append(video.frame.to_ndarray())
        for src in sources:
            publisher.publish(src)
            with subscriber.next(1) as frame:
                assert rows_of(frame.planes) == video.data
                assert [p.shape for p in frame.planes] == [p.shape for p in shape.planes]
                if frame.strides:
                    assert (numpy.asarray(frame) == whole).all()
                publisher.publish([numpy.array(plane) for plane in frame.planes])
            with subscriber.next(1) as frame:
                assert rows_of(frame.planes) == video.data
                publisher.publish(frame)
            with publisher.acquire() as slot:
                slot.copy_from(src)
                assert rows_of(slot.planes) == video.data
                for plane in slot.planes:
                    plane[...] = plane[...]


def test_frames_of_ffmpeg_through_a_slot(slot_id, video):
    shape = FrameShape(FORMATS[video.name], *video.size, align=1)
    with SlotWriter(slot_id, *video.size, video.name, ring_depth=4) as writer, SlotReader(slot_id) as reader:
        assert writer.parameters.frame_size == len(video.data)
        for src in (video.src, video.data):
            writer.write(src)
            frame = reader.read(1)
            assert frame.data.tobytes() == video.data
            assert frame.data.shape == shape.array_shape
            assert rows_of(frame.planes) == video.data
            writer.write(list(frame.planes))
            assert rows_of(reader.read(1, copy=False).planes) == video.data
    remove_slot(slot_id)


def test_pictures_of_frames(key, tmp_path, video):
    """``snapshot``, thumbnails and ``pipe`` show what was published."""
    av = pytest.importorskip("av")
    from cuframes.cli import pipe, pixels
    from cuframes.media import pictures

    y4m = io.BytesIO()
    with Publisher(key, *video.size, video.name) as publisher, Subscriber(key) as subscriber:
        publisher.publish(video.src)
        with subscriber.next(1) as frame:
            copy = pictures.to_video(frame)
            pixels.save_picture(frame, tmp_path / "now.png")
            assert pictures.encode(copy, "jpeg").startswith(b"\xff\xd8")
            pipe.Copier(y4m, "y4m", Fraction(25), None, 1).copy(subscriber, lambda _: frame, None)
    assert ffmpeg_bytes(copy, video.name) == video.data
    with av.open(str(tmp_path / "now.png")) as container:
        saved = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert (saved == converted(video.frame, "rgb24").to_ndarray().astype(int)).all()
    if not video.name.startswith("gray") and video.size in SIZES[:3]:
        assert abs(saved - picture(*video.size).to_ndarray()).max() < 12
    y4m.seek(0)
    with av.open(y4m, format="yuv4mpegpipe") as container:
        piped = next(container.decode(video=0))
    assert (piped.width, piped.height) == video.size
    wanted = converted(video.frame, piped.format.name)
    assert ffmpeg_bytes(piped, "") == ffmpeg_bytes(wanted, "")
    # Nothing of a sample is lost on the way, and no chroma where Y4M can hold it.
    bits = min(component.bits for component in video.frame.format.components)
    assert piped.format.components[0].bits >= bits


@pytest.mark.parametrize("name", ["i420", "v210", "gbrp10le", "gbrap"])
def test_thumbnails(slot_id, name):
    av = pytest.importorskip("av")
    from cuframes.cli.pixels import convert
    from cuframes.framecache.service.thumbnails import Thumbnails

    with SlotWriter(slot_id, 64, 48, name, ring_depth=4) as writer:
        writer.write(convert(picture(64, 48), 64, 48, name))
        _, jpeg = Thumbnails().get(slot_id)
    remove_slot(slot_id)
    with av.open(io.BytesIO(jpeg)) as container:
        seen = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert abs(seen - picture(64, 48).to_ndarray()).mean() < 6


def test_conversions_lose_no_pixels():
    """FFmpeg's threads once wrote beyond their rows, over the first pixels of each other's."""
    from cuframes.media.pictures import reformat

    video = picture(850, 480)
    first = ffmpeg_bytes(reformat(video, 850, 480, "gray16le"), "")
    for _ in range(100):
        assert ffmpeg_bytes(reformat(video, 850, 480, "gray16le"), "") == first


# What is encoded, so that a decoder gives its formats.
ENCODED = {
    "libx264": "yuv420p yuvj420p yuv422p yuvj422p yuv444p yuvj444p yuv420p10le yuv422p10le yuv444p10le",
    "libx265": "gray gray10le gray12le gbrp gbrp10le gbrp12le yuv420p12le yuv422p12le yuv444p12le",
    "libvpx-vp9": "yuv420p yuv440p yuv444p gbrp",
    "mjpeg": "yuvj420p yuvj422p yuvj444p",
    "mpeg2video": "yuv420p yuv422p",
    "prores_ks": "yuv422p10le yuv444p10le yuva444p10le",
    "dnxhd": "yuv422p yuv422p10le yuv444p10le",
    "ffv1": "bgr0 bgra yuv440p yuv444p16le gray16le gray12le gbrp12le yuva444p12le",
    "utvideo": "gbrp gbrap yuv422p",
    "huffyuv": "rgb24 bgra",
    "png": "rgb24 rgba gray",
    "qtrle": "argb",
    "v210": "yuv422p10le",
}


@pytest.mark.parametrize(("codec", "pixels"), [(codec, p) for codec, names in ENCODED.items() for p in names.split()])
def test_what_decoders_give_can_be_published(key, codec, pixels):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    profile = {"yuv422p": "dnxhr_sq", "yuv422p10le": "dnxhr_hqx", "yuv444p10le": "dnxhr_444"}.get(pixels, "")
    options = {"dnxhd": {"profile": profile}, "libx265": {"x265-params": "log-level=error"}}.get(codec, {})
    width, height = (256, 128) if codec == "dnxhd" else (100, 96)
    file = io.BytesIO()
    kind = "mov" if codec in ("prores_ks", "qtrle", "dnxhd") else "nut"
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        source = picture(width, height).reformat(format=pixels)
        source.pts = 0
        container.mux([*stream.encode(source), *stream.encode(None)])
    file.seek(0)
    with av.open(file) as container:
        decoded = next(container.decode(video=0))
    given = decoded.format.name
    with Publisher(key, width, height, given) as publisher, Subscriber(key) as subscriber:
        publisher.publish(decoded)
        with subscriber.next(1) as frame:
            assert frame.format == ALIASES.get(given, given)
            assert rows_of(frame.planes) == ffmpeg_bytes(decoded, frame.format)


def test_full_range_stays_full_range(key):
    """A conversion does not change the range, and publishers say which it is."""
    from cuframes.media.pictures import convert

    white = picture(64, 48)
    numpy.frombuffer(white.planes[0], numpy.uint8)[:] = 255
    decoded = white.reformat(format="yuvj420p")
    assert bytes(decoded.planes[0])[0] == 255
    for wanted in ("i420", "I420", "yuvj420p", "nv12"):
        with Publisher(key, 64, 48, wanted, color={"range": "pc"}) as publisher, Subscriber(key) as subscriber:
            publisher.publish(convert(decoded, 64, 48, wanted))
            with subscriber.next(1) as frame:
                assert numpy.asarray(frame.planes[0])[0, 0] == 255
                assert frame.color.range == "pc"
    limited = convert(decoded, 64, 48, "nv12", Color("tv"))
    assert abs(bytes(limited.planes[0])[0] - 235) <= 1
    assert all(full.replace("yuvj", "yuv") in (ours, *ALIASES) for full, ours in FULL_RANGE.items())


def test_frames_of_other_formats_are_refused_with_a_remedy(key):
    video = picture(64, 48).reformat(format="yuv422p10le")
    for name, remedy in (
        ("nv12", r"\(PyAV: frame.reformat\)"),
        ("v210", "then the encoder v210, whose packet is a frame"),
    ):
        with Publisher(key, 64, 48, name) as publisher:
            with pytest.raises(ValueError, match=f"but the frame is yuv422p10le 64x48; convert it first .*{remedy}"):
                publisher.publish(video)
            assert publisher.stats().published == 0
