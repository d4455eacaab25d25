"""Views of a frame: what other libraries get, and for how long."""

import contextlib
import copy
import ctypes
import gc
import os
import pickle
import threading
import zlib
from fractions import Fraction

import numpy
import pytest

import cuframes
from cuframes import Publisher, Subscriber
from cuframes.formats import FORMATS, FrameShape
from cuframes.host.steps import deadline_after
from cuframes.rates import rate


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
            with pytest.raises(BufferError, match=r"use frame\.planes"):
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
    with pytest.raises(BufferError, match="does not copy it"):
        plane.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="exported as a copy"):
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
        ((b"cam", 64, 48), {}, TypeError, "a key must be a str"),
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


class PyBuffer(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def buffer_of(exporter, flags):
    """What the buffer protocol answers, or None where it refuses."""
    buffer = PyBuffer()
    get = ctypes.pythonapi.PyObject_GetBuffer
    get.argtypes = [ctypes.py_object, ctypes.POINTER(PyBuffer), ctypes.c_int]
    try:
        get(exporter, buffer, flags)
    except (BufferError, ValueError, SystemError):  # Python 3.14 refuses flags of memoryviews with a SystemError
        return None
    axes = range(buffer.ndim)
    shape = tuple(buffer.shape[i] for i in axes) if buffer.shape else None
    strides = buffer.strides and tuple(buffer.strides[i] if buffer.shape[i] != 1 else None for i in axes)
    found = (
        buffer.buf,
        buffer.len,
        buffer.itemsize,
        buffer.readonly,
        buffer.ndim,
        buffer.format,
        shape,
        strides or None,
    )
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return found


@pytest.mark.parametrize("size", [(60, 40), (64, 40), (2, 2), (64, 2)])
@pytest.mark.parametrize("name", FORMATS)
def test_buffers_are_those_of_numpy_for_all_flags(key, name, size):
    """A plane with padding was once given to those who asked for contiguous memory."""
    with Publisher(key, *size, name, memory="host") as publisher, Subscriber(key) as subscriber:
        publisher.publish(pattern(name, *size))
        with subscriber.next(1) as frame, publisher.acquire() as written:
            views = [*frame.planes, *written.planes, *([frame, written] if frame.strides else [])]
            arrays = [numpy.asarray(view) for view in views]
            for view, array in zip(views, arrays, strict=True):
                for flags in range(512):
                    assert buffer_of(view, flags) == buffer_of(array, flags), hex(flags)


def test_single_rows_are_contiguous(key):
    with Publisher(key, 60, 1, "gray8", memory="host") as publisher, Subscriber(key) as subscriber:
        publisher.publish(bytes(range(60)))
        with subscriber.next(1) as frame:
            assert frame.is_contiguous()
            assert bytes(frame) == bytes(range(60))
            for flags in range(512):
                assert buffer_of(frame, flags) == buffer_of(numpy.asarray(frame), flags), hex(flags)


def test_a_frame_is_true(key):
    with Publisher(key, 60, 40, "i420", memory="host") as publisher, Subscriber(key) as subscriber:
        publisher.publish(pattern("i420", 60, 40))
        with publisher.acquire() as written:
            assert written
        frame = subscriber.next(1)
        assert frame
        plane = frame.planes[0]
        assert plane
        frame.release()
        assert frame
        assert plane
        assert written


class TestWritableFrame:
    """However its block is entered and left: it is published once, or not at all, and the ring goes on."""

    def goes_on(self, pair, published):
        publisher, subscriber = pair
        assert publisher.stats()[:2] == (published, 0)
        assert publisher.publish(bytes(3600)) >= published + 1
        for number in range(published + 1):
            assert subscriber.next(1).frame_no == number + 1

    def test_left_unentered(self, pair):
        publisher, _ = pair
        with pytest.raises(ValueError, match="never entered"):
            publisher.acquire().__exit__(None, None, None)
        with pytest.raises(ValueError, match="never entered"), contextlib.ExitStack() as stack:
            stack.push(publisher.acquire())
        publisher.acquire().__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        self.goes_on(pair, 0)

    def test_left_twice(self, pair):
        publisher, _ = pair
        for reason in (None, KeyError):
            frame = publisher.acquire()
            frame.__enter__()
            frame.__exit__(reason, None, None)
            with pytest.raises(ValueError, match="has already ended"):
                frame.__exit__(None, None, None)
            frame.__exit__(KeyError, KeyError(), None)
        self.goes_on(pair, 1)

    def test_entered_twice(self, pair):
        publisher, _ = pair
        with publisher.acquire() as frame:
            with pytest.raises(ValueError, match="used only once"):
                frame.__enter__()
            frame.copy_from(bytes(3600))
        with pytest.raises(ValueError, match="used only once"):
            frame.__enter__()
        self.goes_on(pair, 1)

    def test_two_at_once(self, pair):
        publisher, _ = pair
        with publisher.acquire() as frame:
            second = publisher.acquire()
            with pytest.raises(RuntimeError, match="one frame at a time"):
                second.__enter__()
            with pytest.raises(ValueError, match="never entered"):
                second.__exit__(None, None, None)
            frame.copy_from(bytes(3600))
        self.goes_on(pair, 1)

    def test_left_by_many_threads(self, pair):
        publisher, _ = pair
        frame = publisher.acquire()
        frame.__enter__()
        start, answers = threading.Barrier(8), []

        def leave():
            start.wait(10)
            try:
                frame.__exit__(None, None, None)
            except ValueError:
                answers.append("refused")
            else:
                answers.append("published")

        threads = [threading.Thread(target=leave) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(answers) == ["published"] + 7 * ["refused"]
        self.goes_on(pair, 1)

    @pytest.mark.parametrize("pts", ["soon", 1.5, True, 2**63])
    def test_a_bad_time(self, pair, pts):
        publisher, _ = pair
        with pytest.raises((TypeError, ValueError)), publisher.acquire() as frame:
            plane = frame.planes[0]
            frame.pts_ns = pts
        assert frame.seq is None
        for use in (lambda: frame.planes, lambda: frame.copy_from(bytes(3600)), lambda: memoryview(plane)):
            with pytest.raises(ValueError, match=r"released|with block"):
                use()
        self.goes_on(pair, 0)

    def test_left_after_the_publisher_was_closed(self, pair):
        publisher, subscriber = pair
        with pytest.raises(ValueError, match="closed"), publisher.acquire() as frame:
            publisher.close()
        assert frame.seq is None
        assert publisher.stats().published == 0
        with pytest.raises(cuframes.Disconnected):
            subscriber.next(5)
        with pytest.raises(ValueError, match="closed"):
            publisher.acquire()

    def test_ended_by_what_it_copies(self, pair):
        """Looking at an array runs its code."""
        publisher, _ = pair

        class Ending:
            def __array__(self, dtype=None, copy=None):
                frame.__exit__(None, None, None)
                return numpy.zeros((60, 60), numpy.uint8)

        frame = publisher.acquire()
        frame.__enter__()
        with pytest.raises(ValueError, match="with block"):
            frame.copy_from(Ending())
        self.goes_on(pair, 1)

    def test_in_a_forked_child_it_is_the_parents(self, pair):
        publisher, _ = pair
        with publisher.acquire() as frame:
            frame.copy_from(bytes(3600))
            child = os.fork()
            if not child:
                status = 1
                try:
                    frame.__exit__(None, None, None)
                except RuntimeError:
                    status = 0
                finally:
                    del frame
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        self.goes_on(pair, 1)


def test_release_beside_exports_on_other_threads(pair):
    publisher, subscriber = pair
    frame, over = None, threading.Event()
    seen = []

    def export():
        while not over.is_set():
            for use in (memoryview, numpy.asarray, numpy.from_dlpack, ArrayInterface, lambda f: f.planes, hash):
                with contextlib.suppress(ValueError):
                    use(frame)
        seen.append(True)

    publisher.publish(bytes(3600))
    frame = subscriber.next(1)
    threads = [threading.Thread(target=export) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        frame.__exit__(None, None, None)
        publisher.publish(bytes(3600))
        frame = subscriber.next(5)
    over.set()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 3
    frame.release()
    frame = None
    assert held(subscriber) == 0


class TestCopies:
    """What stands for a place in a ring is not copied: a second one would give the place back once more."""

    @pytest.fixture
    def things(self, pair, key, slot_id):
        publisher, subscriber = pair
        publisher.publish(pattern("nv12", 60, 40))
        with contextlib.ExitStack() as stack:
            frame = stack.enter_context(subscriber.next(1))
            packets = stack.enter_context(cuframes.PacketPublisher(key, "h264"))
            reader = stack.enter_context(cuframes.PacketReader(key))
            packets.publish_packet(b"one", pts_ns=1, keyframe=True)
            packets.publish_packet(b"two", pts_ns=2)
            writer = stack.enter_context(cuframes.framecache.SlotWriter(slot_id, 60, 40, "nv12", ring_depth=4))
            slots = stack.enter_context(cuframes.framecache.SlotReader(slot_id))
            writer.write(frame)
            writer.write(frame)
            yield {
                "Publisher": publisher,
                "Subscriber": subscriber,
                "Frame": frame,
                "Plane": frame.planes[0],
                "WritableFrame": stack.enter_context(publisher.acquire()),
                "PacketPublisher": packets,
                "PacketReader": reader,
                "packet": reader.next(1),
                "Packet": reader.next(1, copy=False),
                "SlotWriter": writer,
                "SlotReader": slots,
                "slot frame": slots.read(1),
                "SlotFrame": slots.read(1, copy=False),
                "WritableSlotFrame": stack.enter_context(writer.acquire()),
            }
        cuframes.framecache.remove_slot(slot_id)

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_refused(self, things, make):
        for name, thing in things.items():
            if not name.islower():
                with pytest.raises(TypeError, match=f"a {name} cannot be copied or pickled.*; .*(open|copy|read)"):
                    make(thing)
        assert "cuframes.Subscriber('" in self.reason(things["Publisher"])
        assert "cuframes.PacketReader('" in self.reason(things["PacketReader"])
        assert "cuframes.framecache.SlotReader('" in self.reason(things["SlotWriter"])
        assert "send a copy: numpy.array(it)" in self.reason(things["Frame"])

    @staticmethod
    def reason(thing):
        with pytest.raises(TypeError) as caught:
            copy.copy(thing)
        return str(caught.value)

    def test_copied_packets_and_slot_frames_are_values(self, things):
        for make in (copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
            packet = make(things["packet"])
            assert (packet.data, packet.pts_ns, packet.keyframe, packet.valid) == (b"one", 1, True, True)
            sent, frame = things["slot frame"], make(things["slot frame"])
            assert (frame.seq, frame.pts_us, frame.wall_us, frame.format) == (0, sent.pts_us, sent.wall_us, "nv12")
            assert (frame.data == sent.data).all()
            assert frame.valid
            assert (frame.planes[1] == sent.planes[1]).all()


class TestNumbers:
    """NumPy's integers are integers; a bool as a size is a mistake."""

    def test_numpy_integers(self, key, slot_id):
        n = numpy.int64
        with Publisher(key, numpy.uint16(60), n(40), "nv12", ring_size=numpy.int8(4), memory="host") as publisher:
            assert (type(publisher.width), type(publisher.height)) == (int, int)
            publisher.enable_packets(n(27), slots=n(8), data_size=n(4096), max_packet_size=n(100))
            with Subscriber(key, max_held=n(2)) as subscriber:
                publisher.publish(bytes(3600), pts_ns=n(7))
                with publisher.acquire(slot=n(3)) as frame:
                    frame.pts_ns = n(8)
                assert (frame.slot, subscriber.next(1).pts_ns) == (3, 8)
            publisher.publish_packet(b"x", pts_ns=n(1), dts_ns=n(0), flags=n(1))
        with cuframes.framecache.SlotWriter(slot_id, n(60), n(40), "nv12", fps=n(25), ring_depth=n(4)) as writer:
            writer.drop(n(2))
            writer.write(bytes(3600), pts_us=n(1), wall_us=n(2))
            found = writer.info()
            assert (found.dropped_frames, found.width, found.ring_depth, found.fps_num) == (2, 60, 4, 25)
        cuframes.framecache.remove_slot(slot_id)

    def test_numpy_rates_and_timeouts(self, slot_id):
        exact = Fraction(2997, 50)  # as two whole numbers it is what it is; as one it names the rate of NTSC
        for fps in ((numpy.int32(2997), numpy.int32(50)), 59.94, numpy.float64(59.94), numpy.float32(59.94)):
            found = rate(fps)
            assert found == (exact if isinstance(fps, tuple) else Fraction(60000, 1001))
            assert (type(found.numerator), type(found.denominator)) == (int, int)
        for fps in (numpy.float32("nan"), numpy.float64("inf"), numpy.zeros(2)):
            with pytest.raises(ValueError, match="a frame rate must be"):
                rate(fps)
        # Added to the clock as float32, a timeout would be rounded with it, to seconds after some months.
        assert type(deadline_after(numpy.float32(0.1))) is float
        cuframes.framecache.create_slot(slot_id, 64, 48, ring_depth=2)
        with cuframes.framecache.SlotReader(slot_id, connect_timeout=numpy.float32(1)) as reader:
            for timeout in (numpy.float32(0.01), numpy.int64(0), numpy.float64(0)):
                with pytest.raises(cuframes.Timeout):
                    reader.read(timeout)

    @pytest.mark.parametrize("wrong", [True, numpy.True_, 2.0, "2", None, numpy.float64(2)])
    def test_others_are_refused(self, key, slot_id, wrong):
        def packets(**options):
            cuframes.PacketPublisher(key, "h264", **options)

        calls = [
            lambda: Publisher(key, wrong, 40),
            lambda: Publisher(key, 60, wrong),
            lambda: Publisher(key, 60, 40, ring_size=wrong),
            lambda: packets(slots=wrong),
            lambda: packets(data_size=wrong),
            lambda: packets(max_packet_size=wrong),
            lambda: cuframes.framecache.create_slot(slot_id, 60, 40, ring_depth=wrong),
            lambda: cuframes.framecache.create_slot(slot_id, wrong, 40),
        ]
        if wrong is not None:
            calls.append(lambda: Subscriber(key, max_held=wrong, connect_timeout=0))
            calls.append(lambda: Publisher.external(key, [1, 2], 60, 40, pitch=wrong))
        for call in calls:
            with pytest.raises(TypeError, match="must be an int, not"):
                call()
        with Publisher(key, 60, 40, memory="host") as publisher:
            if wrong is not None:
                with pytest.raises(TypeError):
                    publisher.acquire(slot=wrong)
                with pytest.raises(TypeError):
                    publisher.publish(bytes(3600), pts_ns=wrong)
            assert publisher.stats().published == 0
