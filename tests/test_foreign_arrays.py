"""Arrays of any shape, stride, order, sign, type and owner, given to everything that publishes, against NumPy.

Either what arrives is what NumPy says the array holds, or ValueError, TypeError or BufferError is raised and nothing
was published. ``tools/asan`` runs the same under the address sanitizer.
"""

import array
import contextlib
import ctypes
import io
import itertools
import mmap
import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes.formats import FORMATS, FrameShape
from cuframes.framecache import SlotReader, SlotWriter, create_slot, remove_slot

MAX_PACKET = 1 << 16
REFUSALS = (ValueError, TypeError, BufferError)
SIZES = {
    "gray8": [(1, 1), (60, 3), (320, 256)],  # the last is copied without the GIL
    "gray16": [(5, 4), (64, 2)],
    "rgb24": [(7, 5)],
    "yuyv422": [(6, 4)],
    "nv12": [(8, 4), (60, 40)],
    "i420": [(8, 4)],
    "p010": [(8, 4)],
    "rgbp": [(4, 3)],
    "nv16": [(8, 3)],
    "nv24": [(5, 3)],
    "yuv422p10le": [(8, 3)],
    "yuva444p12le": [(5, 3)],
    "v210": [(50, 3)],
}
EXAMPLES = int(os.environ.get("CUFRAMES_TEST_EXAMPLES", "200"))
tries = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.timeout(600)  # for all examples of one test


# ---- arrays --------------------------------------------------------------------------------------------------------


@st.composite
def strided(draw, content):
    """An array with this content, which lies in memory in some other way."""
    order = draw(st.permutations(range(content.ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, -1, -2]), min_size=content.ndim, max_size=content.ndim))
    margins = draw(st.lists(st.sampled_from([0, 0, 1, 4]), min_size=content.ndim, max_size=content.ndim))
    extents = [n * abs(step) + margin for n, step, margin in zip(content.shape, steps, margins, strict=True)]
    memory = numpy.zeros([extents[axis] for axis in order], content.dtype).transpose(numpy.argsort(order))
    ends = [n * abs(step) for n, step in zip(content.shape, steps, strict=True)]
    view = memory[tuple(slice(0, end, abs(step)) for end, step in zip(ends, steps, strict=True))]
    view = view[tuple(slice(None, None, 1 if step > 0 else -1) for step in steps)]
    view[...] = content
    return view


class Subclass(numpy.ndarray):
    pass


class Only:
    """An object that offers its array by one protocol alone."""

    def __init__(self, content, *names):
        self.content = content
        self.names = names

    def __getattr__(self, name):
        if name in self.__dict__.get("names", ()):
            return getattr(self.content, name)
        raise AttributeError(name)


class OnlyArray:
    def __init__(self, content):
        self.content = content

    def __array__(self, dtype=None, copy=None):
        return self.content


def in_mmap(content):
    block = mmap.mmap(-1, max(content.nbytes, 1))
    block[: content.nbytes] = content.tobytes()
    return numpy.frombuffer(block, content.dtype, content.size).reshape(content.shape)


def in_ctypes(content):
    kind = {"u1": ctypes.c_ubyte, "i1": ctypes.c_byte, "u2": ctypes.c_ushort, "i2": ctypes.c_short}[
        content.dtype.str[1:]
    ]
    for extent in reversed(content.shape):
        kind = kind * extent
    return kind.from_buffer_copy(content.tobytes())


def read_only(content):
    content = content.view()
    content.flags.writeable = False
    return content


# Owners take the array as it lies, or copy it into memory of their own.
OWNERS = {
    "numpy": lambda a: a,
    "subclass": lambda a: a.view(Subclass),
    "read-only": read_only,
    "signed": lambda a: a.view(a.dtype.str.replace("u", "i")),
    "memoryview": memoryview,
    "array interface": lambda a: Only(a, "__array_interface__"),
    "__array__": OnlyArray,
    "dlpack": lambda a: Only(a, "__dlpack__", "__dlpack_device__"),
    "mmap": in_mmap,
    "ctypes": in_ctypes,
    "cast": lambda a: memoryview(a.tobytes()).cast("B").cast("BH"[a.itemsize - 1], a.shape),
}
# Owners of flat arrays of samples.
FLAT = {
    "array": lambda a: array.array("BH"[a.itemsize - 1], a.tobytes()),
    "bytes": lambda a: a.tobytes(),
    "bytearray": lambda a: bytearray(a.tobytes()),
    "characters": lambda a: ctypes.create_string_buffer(a.tobytes(), a.nbytes),
    "backwards": lambda a: memoryview(a.tobytes()[::-1])[::-1],
}


def pil_image(content):
    Image = pytest.importorskip("PIL.Image")
    return Image.fromarray(numpy.ascontiguousarray(content))


def indirect(content):
    testbuffer = pytest.importorskip("_testbuffer")
    code = "BH"[content.itemsize - 1]
    return testbuffer.ndarray(content.ravel().tolist(), shape=list(content.shape), format=code, flags=testbuffer.ND_PIL)


DEFECTS = {
    "bool": lambda a: a.astype(bool),
    "float": lambda a: a.astype(numpy.float32),
    "half": lambda a: (a >> 8).astype(numpy.float16),  # it ends at 65504
    "wide": lambda a: a.astype(numpy.uint32),
    "other size": lambda a: a.astype(numpy.uint16 if a.itemsize == 1 else numpy.uint8),
    "big-endian": lambda a: a.astype(">u2"),
    "object": lambda a: a.astype(object),
    "structured": lambda a: a.view([("value", a.dtype)]),
    "characters": lambda a: a.astype("S1"),
    "void": lambda a: a.view(f"V{a.itemsize}"),
    "time": lambda a: a.astype("M8[s]"),
    "masked": numpy.ma.array,
    "masked here": lambda a: numpy.ma.masked_greater(a, 3),
    "indirect": indirect,
    "union": lambda a: (type("U", (ctypes.Union,), {"_fields_": [("a", ctypes.c_ubyte * (a.nbytes + 1))]}) * 1)(),
    "ctypes big-endian": lambda a: (ctypes.c_ushort.__ctype_be__ * a.size)(),
    "a row less": lambda a: a[:-1],
    "an element more": lambda a: numpy.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]),
    "another axis": lambda a: a[numpy.newaxis],
    "many axes": lambda a: a.reshape((1,) * 6 + a.shape),
    "empty": lambda a: a[:0],
    "empty rows": lambda a: a[..., :0],
    "no axes": lambda a: a.ravel()[0].reshape(()),
    "scalar": lambda a: a.ravel()[0],
    "ctypes scalar": lambda a: ctypes.c_ubyte(1),
    "number": lambda a: 5,
    "text": lambda a: "pixels",
    "nothing": lambda a: None,
    "closed": lambda a: (lambda m: (m.release(), m)[1])(memoryview(a.tobytes())),
}


class Lines(bytearray):
    """A plane as PyAV has them: bytes, and how many of them a line is; negative when the picture lies upside down."""

    line_size = 0


@st.composite
def lines(draw, content):
    rows = content.reshape(len(content), -1).view(numpy.uint8)
    pitch = rows.shape[1] + draw(st.sampled_from([0, 2, 31]))
    memory = numpy.zeros((len(rows), pitch), numpy.uint8)
    memory[:, : rows.shape[1]] = rows
    plane = Lines((memory[::-1] if (upside_down := draw(st.booleans())) else memory).tobytes())
    plane.line_size = -pitch if upside_down else pitch
    return plane


class Case(NamedTuple):
    """Something to publish."""

    format: str
    size: tuple[int, int]
    src: object
    planes: list  # what it holds; None when that makes no frame
    how: str


@st.composite
def owned(draw, content):
    """Some object that holds `content`, and in which way."""
    owner = draw(st.sampled_from(sorted(OWNERS)))
    return OWNERS[owner](draw(strided(content))), owner


@st.composite
def cases(draw):
    name = draw(st.sampled_from(sorted(SIZES)))
    size = draw(st.sampled_from(SIZES[name]))
    shape = FrameShape(FORMATS[name], *size, align=1)
    dtype = numpy.dtype(f"u{shape.format.itemsize}")
    random = numpy.random.default_rng(draw(st.integers(0, 2**32)))
    planes = [random.integers(0, 2 ** (8 * dtype.itemsize), p.shape, dtype) for p in shape.planes]
    if draw(st.integers(0, 9)) == 0:
        axis = draw(st.integers(0, planes[0].ndim - 1))
        planes = [numpy.broadcast_to(p.take([0], axis), p.shape) for p in planes]  # steps of 0
        return Case(name, size, planes, planes, "broadcast")
    flat = numpy.concatenate([p.ravel() for p in planes])
    form = draw(st.sampled_from(["whole", "flat", "planes", "video", "image"]))
    if form == "image" and name in ("gray8", "rgb24"):
        return Case(name, size, pil_image(planes[0]), planes, form)
    if form == "flat":
        owner = draw(st.sampled_from(sorted(FLAT) + sorted(OWNERS)))
        src = FLAT[owner](flat) if owner in FLAT else OWNERS[owner](draw(strided(flat)))
        if owner == "backwards" and dtype.itemsize == 2:
            src = FLAT["bytes"](flat)
        return Case(name, size, src, planes, f"flat {owner}")
    if form == "planes":
        parts = [draw(lines(p)) if draw(st.integers(0, 5)) == 0 else draw(owned(p))[0] for p in planes]
        return Case(name, size, tuple(parts) if draw(st.booleans()) else parts, planes, form)
    if form == "video":
        parts = [draw(lines(p)) for p in planes]
        return Case(name, size, SimpleNamespace(planes=parts, format=name, width=size[0], height=size[1]), planes, form)
    src, owner = draw(owned(flat.reshape(shape.array_shape)))
    return Case(name, size, src, planes, f"whole {owner}")


@st.composite
def bad_cases(draw):
    case = draw(cases())
    shape = FrameShape(FORMATS[case.format], *case.size, align=1)
    whole = numpy.concatenate([p.ravel() for p in case.planes]).reshape(shape.array_shape)
    defect = draw(st.sampled_from(sorted(DEFECTS)))
    if draw(st.booleans()):
        parts = list(case.planes)
        where = draw(st.integers(0, len(parts) - 1))
        parts[where] = DEFECTS[defect](numpy.ascontiguousarray(parts[where]))
        return Case(case.format, case.size, parts, None, f"plane {where}: {defect}")
    return Case(case.format, case.size, DEFECTS[defect](whole), None, defect)


# ---- everything that publishes -----------------------------------------------------------------------------------


class FrameRing:
    def __init__(self, case):
        key = f"fa{os.getpid()}-{next(_numbers)}"
        self.publisher = Publisher(key, *case.size, case.format, ring_size=3, memory="host")
        self.subscriber = Subscriber(key, mode="ordered")

    def publish(self, src):
        self.publisher.publish(src)

    def copy_from(self, src):
        with self.publisher.acquire() as frame:
            frame.copy_from(src)

    def assign(self, planes):
        with self.publisher.acquire() as frame:
            for plane, src in zip(frame.planes, planes, strict=True):
                plane[...] = src

    def take(self):
        """The planes of the next frame, or None."""
        with contextlib.suppress(cuframes.Timeout), self.subscriber.next(0) as frame:
            return [numpy.array(plane) for plane in frame.planes]

    def close(self):
        self.subscriber.close()
        self.publisher.close()


class Slot:
    def __init__(self, case):
        slot = f"fa{os.getpid()}-{next(_numbers)}"
        self.writer = SlotWriter(slot, *case.size, case.format, ring_depth=3)
        self.reader = SlotReader(slot)

    def write(self, src):
        self.writer.write(src)

    def fill(self, src):
        with self.writer.acquire() as frame:
            frame.copy_from(src)

    def take(self):
        with contextlib.suppress(cuframes.Timeout):
            frame = self.reader.read(0)
            return list(frame.planes)

    def close(self):
        self.reader.close()
        self.writer.close()


_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def rings():
    """One of each kind for each format and size, for all examples."""
    made = {}
    path = Path(f"/dev/shm/framecache-foreign-{os.getpid()}")
    before = os.environ.get("CUFRAMES_FRAMECACHE_DIR")
    os.environ["CUFRAMES_FRAMECACHE_DIR"] = str(path)

    def ring(kind, case):
        if (kind, case.format, case.size) not in made:
            made[kind, case.format, case.size] = kind(case)
        found = made[kind, case.format, case.size]
        while found.take() is not None:
            pass  # what an example that failed has left
        return found

    yield ring
    for each in made.values():
        each.close()
        if isinstance(each, Slot):
            remove_slot(each.writer.slot_id)
    shutil.rmtree(path, ignore_errors=True)
    if before is None:
        del os.environ["CUFRAMES_FRAMECACHE_DIR"]
    else:
        os.environ["CUFRAMES_FRAMECACHE_DIR"] = before


PATHS = [(FrameRing, "publish"), (FrameRing, "copy_from"), (Slot, "write"), (Slot, "fill")]


def is_short_frame(path, src, frame_bytes):
    """Slots take bytes of another size as they are."""
    try:
        view = memoryview(src)
    except REFUSALS:
        return False
    return path == "write" and view.ndim == 1 and view.format.lstrip("<") in "Bbc" and view.nbytes != frame_bytes


@given(case=cases(), path=st.sampled_from(PATHS))
@tries
def test_what_arrives_is_what_numpy_sees(rings, case, path):
    kind, name = path
    ring = rings(kind, case)
    getattr(ring, name)(case.src)
    seen = ring.take()
    assert [p.tolist() for p in seen] == [p.tolist() for p in case.planes]


@given(case=bad_cases(), path=st.sampled_from(PATHS))
@tries
def test_what_makes_no_frame_is_refused_and_nothing_is_published(rings, case, path):
    kind, name = path
    ring = rings(kind, case)
    shape = FrameShape(FORMATS[case.format], *case.size, align=1)
    if is_short_frame(name, case.src, shape.nbytes):
        return
    with pytest.raises(REFUSALS):
        getattr(ring, name)(case.src)
    assert ring.take() is None
    # Its slot is not left behind, claimed.
    plain = numpy.zeros(shape.array_shape, f"u{shape.format.itemsize}")
    getattr(ring, name)(plain)
    assert not any(p.any() for p in ring.take())


@given(case=st.one_of(cases(), bad_cases()))
@tries
def test_assigning_to_planes_does_what_numpy_does(rings, case):
    ring = rings(FrameRing, case)
    if not isinstance(case.src, (list, tuple)):
        return
    shape = FrameShape(FORMATS[case.format], *case.size, align=1)
    model = [numpy.zeros(p.shape, f"u{shape.format.itemsize}") for p in shape.planes]
    try:
        for plane, src in zip(model, case.src, strict=True):
            plane[...] = src
        assert not any(isinstance(src, numpy.ma.MaskedArray) for src in case.src)  # NumPy takes what is masked
    except Exception as problem:
        with pytest.raises(TypeError if isinstance(problem, AssertionError) else type(problem)):
            ring.assign(case.src)
        assert ring.take() is None
    else:
        ring.assign(case.src)
        assert [p.tolist() for p in ring.take()] == [p.tolist() for p in model]


@given(case=st.one_of(cases(), bad_cases()))
@tries
def test_packets_are_the_bytes_that_a_file_would_get(packets, case):
    publisher, reader = packets
    model = io.BytesIO()
    try:
        model.write(case.src)
        assert len(model.getvalue()) <= MAX_PACKET
    except (*REFUSALS, AssertionError):
        with pytest.raises((*REFUSALS, cuframes.PacketOversized)):
            publisher.publish_packet(case.src, pts_ns=0, keyframe=True)
        with pytest.raises(cuframes.Timeout):
            reader.next(0)
    else:
        publisher.publish_packet(case.src, pts_ns=0, keyframe=True)
        assert reader.next(0).data == model.getvalue()


@pytest.fixture(scope="module")
def packets():
    key = f"fa{os.getpid()}-packets"
    with PacketPublisher(key, "h264", data_size=2 * MAX_PACKET, max_packet_size=MAX_PACKET) as publisher:
        with PacketReader(key, start="next") as reader:
            yield publisher, reader


@given(
    data=st.data(), name=st.sampled_from(sorted(SIZES)), path=st.sampled_from([(FrameRing, "frame"), (Slot, "slot")])
)
@tries
def test_a_frame_can_be_filled_from_its_own_memory(rings, data, name, path):
    """Turned upside down in place, say."""
    kind, what = path
    ring = rings(kind, SimpleNamespace(format=name, size=SIZES[name][-1]))
    random = numpy.random.default_rng(1)
    with (ring.publisher if what == "frame" else ring.writer).acquire() as frame:
        for plane in frame.planes:
            view = numpy.asarray(plane)
            view[...] = random.integers(0, 250, view.shape)
        flips = [data.draw(st.sets(st.sampled_from([0, 1]))) for _ in frame.planes]
        turned = [numpy.flip(numpy.asarray(p), tuple(axes)) for p, axes in zip(frame.planes, flips, strict=True)]
        expected = [p.tolist() for p in turned]
        frame.copy_from(turned)
    assert [p.tolist() for p in ring.take()] == expected


class Fickle:
    """Another array at every look."""

    def __init__(self, *arrays):
        self.arrays = itertools.cycle(arrays)

    def __array__(self, dtype=None, copy=None):
        return next(self.arrays)


@pytest.mark.parametrize("path", PATHS)
def test_an_array_that_changes_between_two_looks(rings, path):
    kind, name = path
    ring = rings(kind, SimpleNamespace(format="gray8", size=(60, 3)))
    good = numpy.asfortranarray(numpy.arange(180, dtype=numpy.uint8).reshape(3, 60))
    for arrays in ([good, numpy.zeros((2, 2), numpy.uint8)], [numpy.zeros((0, 60), numpy.uint8), good]):
        src = Fickle(*arrays)
        for _ in range(4):
            try:
                getattr(ring, name)(src)
            except ValueError:
                assert ring.take() is None
            else:
                assert (ring.take()[0] == good).all()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_refused_says_what_to_do(rings, path):
    kind, name = path
    send = getattr(rings(kind, SimpleNamespace(format="gray16", size=(5, 4))), name)
    samples = numpy.zeros((4, 5), numpy.uint16)
    for src, error, said in [
        (numpy.ma.array(samples), TypeError, r"array.filled\(0\)"),
        ([numpy.ma.array(samples)], TypeError, r"array.filled\(0\)"),
        (samples.astype(">u2"), TypeError, r"format '>H', 2 bytes each; convert it first \(.astype\('uint16'\)\)"),
        (samples.astype(numpy.uint8), TypeError, "elements of uint8; convert it first"),
        (samples[:3], ValueError, r"array of shape \(4, 5\), 40 bytes, or 1 planes, not an array of shape \(3, 5\)"),
        (Only(numpy.zeros((4, 5), "u2"), "__dlpack__"), TypeError, "elements of format 'O'"),
    ]:
        with pytest.raises(error, match=said):
            send(src)
    with pytest.raises(ValueError, match="too few for 4 rows of 10 bytes"):
        plane = Lines(30)
        plane.line_size = -10
        send([plane])
    with pytest.raises(ValueError, match="too few for 4 rows of 10 bytes"):
        plane = Lines(400)
        plane.line_size = 0
        send([plane])


@pytest.mark.parametrize(("pixels", "name"), [("gray", "gray8"), ("yuv420p", "i420"), ("rgb24", "rgb24")])
@pytest.mark.parametrize("path", PATHS)
def test_a_picture_that_ffmpeg_turned_upside_down(rings, path, pixels, name):
    """Its vflip filter copies nothing: lines have a negative size, and the first is the last in memory."""
    av = pytest.importorskip("av")
    width, height = SIZES[name][-1]
    random = numpy.random.default_rng(1)
    video = av.VideoFrame.from_ndarray(random.integers(0, 255, (height, width, 3), numpy.uint8), "rgb24")
    video = video.reformat(format=pixels)
    graph = av.filter.Graph()
    begin = graph.add_buffer(width=width, height=height, format=pixels, time_base=Fraction(1, 25))
    flip, end = graph.add("vflip"), graph.add("buffersink")
    begin.link_to(flip)
    flip.link_to(end)
    graph.configure()
    graph.push(video)
    turned = graph.pull()
    assert turned.planes[0].line_size < 0
    kind, send = path
    ring = rings(kind, SimpleNamespace(format=name, size=(width, height)))
    getattr(ring, send)(video)
    upright = ring.take()
    getattr(ring, send)(turned)
    for plane, seen in zip(upright, ring.take(), strict=True):
        assert (plane[::-1] == seen).all()


def test_a_slot_of_unknown_format_takes_bytes_without_padding_only(slot_id, slots):
    """A padded plane once went in with its padding as pixels."""
    create_slot(slot_id, 60, 48, "gray8", ring_depth=4)
    with (slots / slot_id).open("r+b") as file:
        file.seek(24)
        file.write(struct.pack("<I", 99))
    pixels = (numpy.arange(60 * 48) % 251).astype(numpy.uint8).reshape(48, 60)
    with Publisher(slot_id, 60, 48, "gray8", memory="host") as publisher, Subscriber(slot_id) as subscriber:
        publisher.publish(pixels)
        with SlotWriter(slot_id) as writer, SlotReader(slot_id) as reader, subscriber.next(1) as frame:
            for src, error in (
                (frame.planes[0], BufferError),
                (frame, BufferError),
                (numpy.ma.array(pixels), TypeError),
            ):
                with pytest.raises(error):
                    writer.write(src)
            writer.write(pixels)
            assert reader.read(1).data.tobytes() == pixels.tobytes()
    remove_slot(slot_id)
