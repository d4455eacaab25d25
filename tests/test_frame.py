"""Views of a frame: what other libraries get, and for how long."""

import gc
import zlib

import numpy
import pytest

import cuframes
from cuframes import Publisher, Subscriber
from cuframes.formats import FORMATS, FrameShape


def pattern(name, width, height):
    """Planes of a format with every sample different from its neighbours."""
    shape = FrameShape(FORMATS[name], width, height)
    dtype = numpy.uint8 if FORMATS[name].itemsize == 1 else numpy.uint16
    planes = []
    for index, plane in enumerate(shape.planes):
        count = int(numpy.prod(plane.shape))
        planes.append(((numpy.arange(count) * 7 + index * 31) % (250 if dtype == numpy.uint8 else 65000)).astype(dtype))
        planes[-1] = planes[-1].reshape(plane.shape)
    return planes


@pytest.fixture
def pair(key):
    """A publisher of nv12 60x40 (rows of 60 bytes, a pitch of 64) and a subscriber."""
    with Publisher(key, 60, 40, "nv12", ring_size=4) as publisher, Subscriber(key, mode="ordered") as subscriber:
        yield publisher, subscriber


@pytest.fixture
def frame(pair):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40), pts_ns=1)
    return subscriber.next(1)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_arrives_as_it_was_sent(key, name):
    planes = pattern(name, 60, 40)
    with Publisher(key, 60, 40, name) as publisher, Subscriber(key) as subscriber:
        publisher.publish(planes)
        with subscriber.next(1) as frame:
            assert (frame.format, frame.width, frame.height, frame.device) == (name, 60, 40, "cpu")
            for sent, plane in zip(planes, frame.planes, strict=True):
                for seen in (numpy.asarray(plane), numpy.from_dlpack(plane), numpy.array(memoryview(plane))):
                    assert seen.dtype == sent.dtype
                    assert (seen == sent).all()
                assert plane.shape == sent.shape
                assert plane.dtype == str(sent.dtype)
                assert plane.nbytes == sent.nbytes


def test_numpy_sees_the_frame_in_place_and_read_only(frame):
    luma = numpy.asarray(frame.planes[0])
    assert luma.strides == (64, 1)
    assert luma.ctypes.data == frame.planes[0].__array_interface__["data"][0]
    assert not luma.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        luma[0, 0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        luma.flags.writeable = True


def test_semi_planar_frame_is_one_matrix(frame):
    matrix = numpy.asarray(frame)
    assert matrix.shape == frame.shape == (60, 60)
    assert (matrix[:40] == numpy.asarray(frame.planes[0])).all()
    assert (matrix[40:] == numpy.asarray(frame.planes[1]).reshape(20, 60)).all()


def test_frame_that_is_no_matrix_says_so(key):
    with Publisher(key, 60, 40, "i420") as publisher, Subscriber(key) as subscriber:
        publisher.publish(pattern("i420", 60, 40))
        frame = subscriber.next(1)
        for export in (memoryview, numpy.from_dlpack):
            with pytest.raises(BufferError, match="use its planes"):
                export(frame)


def test_buffer_protocol(frame):
    view = memoryview(frame.planes[1])
    assert (view.shape, view.strides, view.format, view.readonly) == ((20, 30, 2), (64, 2, 1), "B", True)
    with pytest.raises(BufferError, match="strides"):
        zlib.crc32(frame.planes[0])  # asks for plain bytes


def test_contiguous_rows_are_plain_bytes(key):
    with Publisher(key, 64, 4, "gray8") as publisher, Subscriber(key) as subscriber:
        publisher.publish(bytes(range(256)))
        with subscriber.next(1) as frame:
            assert bytes(frame.planes[0]) == bytes(range(256))
            assert frame.planes[0].is_contiguous()


def test_array_interface_alone(frame):
    class Only:
        __array_interface__ = frame.planes[0].__array_interface__

    assert (numpy.asarray(Only()) == numpy.asarray(frame.planes[0])).all()


def test_dlpack_versions(frame):
    plane = frame.planes[0]
    assert plane.__dlpack_device__() == (1, 0)
    assert 'capsule object "dltensor_versioned"' in repr(plane.__dlpack__(max_version=(1, 0)))
    assert 'capsule object "dltensor"' in repr(plane.__dlpack__())
    assert 'capsule object "dltensor"' in repr(plane.__dlpack__(max_version=(0, 8)))
    seen = numpy.from_dlpack(plane)
    assert not seen.flags.writeable
    assert (seen == numpy.asarray(plane)).all()


def test_dlpack_refusals(frame):
    plane = frame.planes[0]
    with pytest.raises(ValueError, match="no stream"):
        plane.__dlpack__(stream=1)
    with pytest.raises(BufferError, match="not copied"):
        plane.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="do not copy"):
        plane.__dlpack__(copy=True)


class ArrayInterface:
    """A consumer of the array interface keeps the object that it got it from, and nothing else."""

    def __init__(self, view):
        self.view = view
        self.__array_interface__ = view.__array_interface__


def test_a_plane_keeps_the_frame_held(pair):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40))
    with subscriber.next(1) as frame:
        plane = frame.planes[0]
    assert held(subscriber) == 1
    del frame, plane
    assert held(subscriber) == 0


def held(subscriber):
    gc.collect()
    return subscriber.stats().held


@pytest.mark.parametrize(
    "export",
    [
        numpy.asarray,
        lambda view: numpy.asarray(ArrayInterface(view)),
        numpy.from_dlpack,
        memoryview,
        lambda plane: numpy.asarray(plane)[3:5, ::2],
        lambda plane: plane.__dlpack__(),
        lambda plane: plane.__dlpack__(max_version=(1, 1)),
        lambda plane: plane[2:4],
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_an_export_keeps_the_frame_held(pair, export, whole):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40))
    with subscriber.next(1) as frame:
        kept = export(frame if whole else frame.planes[0])
    del frame
    assert held(subscriber) == 1
    for _ in range(20):
        publisher.publish(bytes(60 * 60))
    if not repr(kept).startswith("<capsule"):
        assert numpy.asarray(kept).max() > 0
    del kept
    assert held(subscriber) == 0


def test_the_last_array_gives_back_a_frame_that_was_released(pair):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40))
    with subscriber.next(1) as frame:
        first, second = numpy.asarray(frame), memoryview(frame)
    assert held(subscriber) == 1
    del first
    assert held(subscriber) == 1
    second.release()
    assert held(subscriber) == 0  # although we still have the frame itself
    assert "released" in repr(frame)


def test_dropping_the_frame_releases_it(pair):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40))
    frame = subscriber.next(1)
    assert held(subscriber) == 1
    del frame
    assert held(subscriber) == 0


def test_released_frame(pair):
    publisher, subscriber = pair
    publisher.publish(pattern("nv12", 60, 40), pts_ns=7)
    frame = subscriber.next(1)
    frame.release()
    frame.release()
    assert held(subscriber) == 0
    assert (frame.seq, frame.pts_ns, frame.format) == (1, 7, "nv12")
    assert "released" in repr(frame)
    for use in (
        lambda: frame.planes,
        lambda: numpy.asarray(frame),
        lambda: frame.__enter__(),
        lambda: memoryview(frame),
    ):
        with pytest.raises(ValueError, match="released"):
            use()
    with pytest.raises(ValueError, match="no stream"):
        frame.release(stream=1)


class TestInput:
    """What publish() takes, and what it says about the rest."""

    @pytest.fixture
    def roundtrip(self, pair):
        publisher, subscriber = pair

        def send(src):
            publisher.publish(src)
            with subscriber.next(1) as frame:
                return [numpy.array(plane) for plane in frame.planes]

        return send

    @pytest.mark.parametrize(
        "form",
        [
            lambda planes: planes,
            tuple,
            lambda planes: numpy.concatenate([p.reshape(-1, 60) for p in planes]),
            lambda planes: b"".join(p.tobytes() for p in planes),
            lambda planes: bytearray(b"".join(p.tobytes() for p in planes)),
            lambda planes: memoryview(b"".join(p.tobytes() for p in planes)),
            lambda planes: numpy.pad(numpy.concatenate([p.reshape(-1, 60) for p in planes]), ((0, 0), (0, 9)))[:, :60],
            lambda planes: numpy.asfortranarray(numpy.concatenate([p.reshape(-1, 60) for p in planes])),
            lambda planes: [numpy.asfortranarray(planes[0]), numpy.flip(numpy.flip(planes[1], 1).copy(), 1)],
            lambda planes: [p.tolist() for p in planes] and [numpy.array(p.tolist(), numpy.uint8) for p in planes],
        ],
    )
    def test_forms(self, roundtrip, form):
        planes = pattern("nv12", 60, 40)
        for sent, seen in zip(planes, roundtrip(form(planes)), strict=True):
            assert (sent == seen).all()

    def test_array_protocol_without_buffer(self, roundtrip):
        whole = numpy.concatenate([p.reshape(-1, 60) for p in pattern("nv12", 60, 40)])

        class Tensor:
            def __array__(self, dtype=None, copy=None):
                return whole

        assert (roundtrip(Tensor())[0] == whole[:40]).all()

    def test_a_frame_of_another_publisher(self, pair, key):
        publisher, subscriber = pair
        planes = pattern("nv12", 60, 40)
        publisher.publish(planes)
        with Publisher(f"{key}-b", 60, 40, "nv12") as second, Subscriber(f"{key}-b") as reader:
            second.publish(subscriber.next(1))
            assert (numpy.asarray(reader.next(1).planes[1]) == planes[1]).all()

    def test_pyav_frame(self, roundtrip):
        av = pytest.importorskip("av")
        planes = pattern("nv12", 60, 40)
        video = av.VideoFrame(60, 40, "nv12")
        for plane, rows in zip(video.planes, planes, strict=True):
            lines = numpy.frombuffer(plane, numpy.uint8).reshape(-1, plane.line_size)
            lines[: len(rows), :60] = rows.reshape(len(rows), 60)
        for sent, seen in zip(planes, roundtrip(video), strict=True):
            assert (sent == seen).all()
        with pytest.raises(ValueError, match=r"the frame is yuv420p 60x40; convert it first \(PyAV: frame.reformat\)"):
            roundtrip(video.reformat(format="yuv420p"))

    @pytest.mark.parametrize(
        ("src", "error", "said"),
        [
            (numpy.zeros((40, 60), numpy.uint8), ValueError, r"array of shape \(60, 60\), 3600 bytes, or 2 planes"),
            (numpy.zeros((60, 60), numpy.float32), TypeError, "uint8"),
            (numpy.zeros((60, 60), numpy.uint16), TypeError, "uint8"),
            (b"short", ValueError, "3600 bytes"),
            ([numpy.zeros((40, 60), numpy.uint8)], ValueError, "2 planes, not 1"),
            ([numpy.zeros((40, 60), numpy.uint8)] * 2, ValueError, r"plane 1 of nv12 has shape \(20, 30, 2\)"),
            (None, TypeError, "uint8"),
        ],
    )
    def test_bad_input_publishes_nothing(self, pair, src, error, said):
        publisher, _ = pair
        with pytest.raises(error, match=said):
            publisher.publish(src)
        assert publisher.stats() == (0, 0, 0, 1)
        assert publisher.publish(bytes(3600)) == 1

    def test_16_bit_and_planar_arrays(self, key):
        p010 = numpy.arange(60 * 60, dtype=numpy.uint16).reshape(60, 60)
        with Publisher(f"{key}-a", 60, 40, "p010") as publisher, Subscriber(f"{key}-a") as subscriber:
            publisher.publish(p010)
            assert (numpy.asarray(subscriber.next(1)) == p010).all()
            with pytest.raises(TypeError, match="uint16"):
                publisher.publish(p010.astype(numpy.uint8))
        rgbp = numpy.arange(3 * 40 * 60, dtype=numpy.uint32).astype(numpy.uint8).reshape(3, 40, 60)
        with Publisher(f"{key}-b", 60, 40, "rgbp") as publisher, Subscriber(f"{key}-b") as subscriber:
            publisher.publish(rgbp)
            assert (numpy.asarray(subscriber.next(1)) == rgbp).all()
        i420 = numpy.arange(60 * 60, dtype=numpy.uint32).astype(numpy.uint8).reshape(60, 60)
        with Publisher(f"{key}-c", 60, 40, "yuv420p") as publisher, Subscriber(f"{key}-c") as subscriber:
            publisher.publish(i420)
            got = b"".join(numpy.array(plane).tobytes() for plane in subscriber.next(1).planes)
            assert got == i420.tobytes()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (("a/b", 64, 48), {}, ValueError, "key must be 1 to 63 characters"),
        (("", 64, 48), {}, ValueError, "key"),
        (("x" * 64, 64, 48), {}, ValueError, "key"),
        ((b"cam", 64, 48), {}, TypeError, "a key is a str"),
        (("cam", 63, 48), {}, ValueError, "multiple of 2"),
        (("cam", 64.0, 48), {}, TypeError, "width must be an int"),
        (("cam", 64, 48, "h264"), {}, ValueError, "unknown pixel format"),
        (("cam", 64, 48), {"ring_size": 1}, ValueError, "ring_size must be 2 to 16"),
        (("cam", 64, 48), {"ring_size": 17}, ValueError, "ring_size"),
        (("cam", 64, 48), {"policy": "block"}, ValueError, "drop_oldest"),
        (("cam", 64, 48), {"memory": "gpu"}, ValueError, "memory must be"),
        (("cam", 64, 48), {"memory": "cuda", "device": 77}, cuframes.DeviceError, "driver|cuda-python|no GPU cuda:77"),
        (("cam", 64, 48), {"memory": "host", "device": 0}, ValueError, "device"),
        (("cam", 64, 48), {"group": "no-such-group-here"}, ValueError, "no group"),
    ],
)
def test_bad_publishers_leave_nothing_behind(arguments, options, error, said, runtime_dir):
    with pytest.raises(error, match=said):
        Publisher(*arguments, **options)
    assert not list(runtime_dir.iterdir())
    assert not [p for p in cuframes.list_publishers() if p.key == "cam"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mode": "fast"}, ValueError, "mode must be one of newest, ordered"),
        ({"start": "now"}, ValueError, "start"),
        ({"wait": "sleep"}, ValueError, "wait"),
        ({"max_held": 0}, ValueError, "max_held"),
        ({"name": ""}, ValueError, "name"),
        ({"name": "x" * 32}, ValueError, "1 to 31"),
        ({"connect_timeout": 0}, cuframes.NotFound, "no publisher of 'cam' is running here .looked for .*cam.sock"),
    ],
)
def test_bad_subscribers(options, error, said):
    with pytest.raises(error, match=said):
        Subscriber("cam", **{"connect_timeout": 0, **options})


@pytest.mark.parametrize(
    ("kind", "width", "height"), [("nv12", 1922, 1080), ("i420", 1926, 1082), ("rgb24", 1001, 700)]
)
def test_large_frames_are_whole_whichever_way_they_are_copied(key, kind, width, height):
    """Publishers measure two ways of copying, and go on with the faster."""
    random = numpy.random.default_rng(1)
    with Publisher(key, width, height, kind) as publisher, Subscriber(key, mode="ordered") as subscriber:
        for number in range(20):
            size = sum(int(numpy.prod(plane.shape)) for plane in subscriber._layout.shape.planes)
            tight = random.integers(0, 256, size + 64, dtype=numpy.uint8)[number : number + size]  # at any alignment
            publisher.publish(tight)
            with subscriber.next(1) as frame:
                found = b"".join(numpy.ascontiguousarray(plane).tobytes() for plane in frame.planes)
            assert found == tight.tobytes()
