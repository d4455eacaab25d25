import numpy
import pytest

from cuframes.formats import FORMATS, FrameShape, pixel_format


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
    ],
)
def test_plane_shapes(name, planes):
    assert [plane.shape for plane in FrameShape(FORMATS[name], 64, 48).planes] == planes


def test_codes_are_fixed():
    # They are in other programs' segments: a number never changes its meaning.
    assert [(f.code, f.name) for f in FORMATS.values()] == list(
        enumerate(
            ["nv12", "p010", "i420", "gray8", "gray16", "rgb24", "bgr24", "rgba", "bgra", "uyvy422", "yuyv422", "rgbp"]
        )
    )


def test_ffmpeg_names_are_accepted():
    assert pixel_format("yuv420p") is FORMATS["i420"]
    assert pixel_format("gray") is FORMATS["gray8"]


def test_semi_planar_frame_is_a_matrix():
    shape = FrameShape(FORMATS["nv12"], 854, 480)
    assert shape.array_shape == (720, 854)
    assert shape.matrix.shape == (720, 854)
    assert shape.matrix.strides == (896, 1)


def test_bits_per_pixel_match_the_planes():
    for f in FORMATS.values():
        shape = FrameShape(f, 64, 64)
        samples = sum(int(numpy.prod(plane.shape)) for plane in shape.planes)
        assert samples * f.itemsize * 8 == f.bits_per_pixel * 64 * 64


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("nv12", (63, 48), "width must be 1 to 32768 and a multiple of 2 for nv12, not 63"),
        ("nv12", (64, 47), "height"),
        ("uyvy422", (63, 48), "width"),
        ("gray8", (0, 48), "width must be 1 to 32768"),
        ("gray8", (64, -1), "height"),
        ("gray8", (40000, 1), "width"),
    ],
)
def test_bad_sizes(name, size, said):
    with pytest.raises(ValueError, match=said):
        FrameShape(FORMATS[name], *size)


def test_unknown_format_lists_the_known():
    with pytest.raises(ValueError, match="unknown pixel format 'h264'; the known formats are nv12, p010"):
        pixel_format("h264")
