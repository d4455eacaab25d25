"""What a publisher says about its pictures: in the ring, in slots, to plain version 3 peers, and from anybody."""

import mmap
import os
import pickle
from fractions import Fraction
from types import SimpleNamespace

import numpy
import pytest

import cuframes
from cuframes import Color, Publisher, Subscriber
from cuframes._native.control import describe
from cuframes.color import FIELD_ORDERS, MATRICES, PRIMARIES, RANGES, ROTATIONS, TRANSFERS, Presentation, presentation
from cuframes.framecache import SlotReader, SlotWriter, create_slot, find_slot
from cuframes.framecache.slots import slots_dir
from cuframes.host.names import SEGMENT_DIR

NV12 = numpy.zeros((72, 64), numpy.uint8)
LOOKS = {
    "color": Color("tv", "bt709", "bt709", "smpte2084"),
    "sample_aspect_ratio": Fraction(64, 45),
    "field_order": "tt",
    "rotation": 90,
}


def looks(thing):
    return {name: getattr(thing, name) for name in LOOKS}


@pytest.fixture
def slot(slot_id):
    return create_slot(slot_id, 64, 48, "nv12", ring_depth=4).slot_id


def test_publisher_subscriber_and_frames_have_it(key):
    with Publisher(key, 64, 48, memory="host", frame_rate=59.94, **LOOKS) as publisher:
        assert looks(publisher) == LOOKS
        assert publisher.frame_rate == Fraction(60000, 1001)
        with Subscriber(key) as subscriber:
            assert looks(subscriber) == LOOKS
            assert subscriber.frame_rate == Fraction(60000, 1001)
            with publisher.acquire() as writable:
                assert looks(writable) == LOOKS
            with subscriber.next(5) as frame:
                assert looks(frame) == LOOKS


def test_nothing_said_is_none(key):
    with Publisher(key, 64, 48, memory="host") as publisher, Subscriber(key) as subscriber:
        publisher.publish(NV12)
        with subscriber.next(5) as frame:
            for thing in (publisher, subscriber, frame):
                assert looks(thing) == {
                    "color": Color(None, None, None, None),
                    "sample_aspect_ratio": None,
                    "field_order": None,
                    "rotation": None,
                }
        assert publisher.frame_rate is None
        assert subscriber.frame_rate is None


def test_the_next_publisher_of_the_key_says_its_own(key):
    first = Publisher(key, 64, 48, memory="host", color="bt601")
    with Subscriber(key, reconnect=True, start="oldest") as subscriber:
        first.publish(NV12)
        old = subscriber.next(5)
        first.close()
        with Publisher(key, 64, 48, memory="host", color="bt709") as publisher:
            publisher.publish(NV12)
            with subscriber.next(5) as frame:
                assert frame.color.matrix == subscriber.color.matrix == "bt709"
        assert old.color.matrix == "smpte170m"
        old.release()


def test_a_slot_has_it(slot):
    with SlotReader(slot) as reader:
        with SlotWriter(slot, **LOOKS) as writer:
            assert looks(writer) == LOOKS
            writer.write(NV12)
        frame = reader.next(5)
        assert looks(frame) == looks(reader) == looks(pickle.loads(pickle.dumps(frame))) == LOOKS
        info = find_slot(slot)
        assert (info.color_range, info.color_matrix, info.color_transfer) == ("tv", "bt709", "smpte2084")
        assert (info.sample_aspect_ratio, info.field_order, info.rotation) == ("64:45", "tt", 90)
        with SlotWriter(slot, color="bt601") as writer:  # the next writer says something else about colour only
            writer.write(NV12)
        assert looks(reader.next(5)) == LOOKS | {"color": Color(None, "smpte170m", "smpte170m", "smpte170m")}
        assert looks(frame) == LOOKS


def test_c_clients_of_a_slot_find_zeros_where_nothing_was_said(slot):
    assert (slots_dir() / slot).read_bytes()[160:176] == bytes(16)
    with SlotWriter(slot, **LOOKS):
        header = (slots_dir() / slot).read_bytes()[:4096]
    # range, matrix, primaries, transfer, field order, rotation, u16 64, u16 45; the rate is fps_num and fps_den
    assert header[160:176] == bytes([1, 1, 1, 16, 2, 2, 64, 0, 45, 0, 0, 0, 0, 0, 0, 0])
    assert header[176:] == bytes(4096 - 176)


def test_the_bytes_of_the_segment(key):
    path = SEGMENT_DIR / f"cuframes-{key}"
    with Publisher(key, 64, 48, memory="host", frame_rate=(60000, 1001), **LOOKS):
        meta = path.read_bytes()[64:128]
    rate = (1001).to_bytes(2, "little") + (60000).to_bytes(4, "little")
    assert meta[48:] == bytes([1, 1, 1, 16, 2, 2, 64, 0, 45, 0]) + rate
    with Publisher(key, 64, 48, "rgb24", memory="host", color="srgb"):
        assert path.read_bytes()[64 + 48 : 64 + 54] == bytes([2, 255, 1, 13, 0, 0])  # RGB's own code, 0, is "not said"


def test_what_others_write_there_is_no_danger(slot, key):
    """Undefined values are "not said"; each field on its own."""
    with SlotReader(slot) as reader, SlotWriter(slot) as writer, (slots_dir() / slot).open("r+b") as file:
        with mmap.mmap(file.fileno(), 4096) as header:
            header[160:176] = b"\xff" * 16
            writer.write(NV12)
            found = looks(reader.next(5))
            assert found["color"] == Color(None, "gbr", None, None)  # 255 is RGB
            assert found["sample_aspect_ratio"] == 1
            assert found["field_order"] is found["rotation"] is None
            header[160:176] = bytes([9, 3, 13, 2, 6, 5, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
            writer.write(NV12)
            assert set(looks(reader.next(5)).values()) == {Color(), None}
    with Publisher(key, 64, 48, memory="host"):
        raw = bytearray((SEGMENT_DIR / f"cuframes-{key}").read_bytes())
    raw[64 + 48 : 64 + 64] = os.urandom(16)
    assert isinstance(Presentation.of_stored(describe(bytes(raw))["presentation"]), Presentation)


@pytest.mark.parametrize(
    "said",
    [
        *(Presentation(Color(range=name)) for name in RANGES),
        *(Presentation(Color(matrix=name)) for name in MATRICES),
        *(Presentation(Color(primaries=name)) for name in PRIMARIES),
        *(Presentation(Color(transfer=name)) for name in TRANSFERS),
        *(Presentation(field_order=name) for name in FIELD_ORDERS),
        *(Presentation(rotation=degrees) for degrees in ROTATIONS),
        Presentation(sample_aspect_ratio=Fraction(65535, 65534), frame_rate=Fraction(2**32 - 1, 65535)),
        Presentation(),
    ],
    ids=str,
)
def test_every_value_survives_storing(said):
    assert Presentation.of_stored(said.stored) == said


def test_names_are_those_of_ffmpeg():
    av = pytest.importorskip("av")
    frame = av.VideoFrame(2, 2, "yuv420p")
    for name, code in (("smpte240m", 7), ("bt2020nc", 9), ("bt470bg", 5)):
        frame.colorspace = code
        assert presentation({"matrix": frame.colorspace}).color.matrix == name
    from av.video.reformatter import ColorRange

    assert presentation(Color(ColorRange.JPEG, 2, None, 2)).color == Color("pc")
    assert presentation(("limited", "rgb", "bt601", "hlg")).color == Color("tv", "gbr", "smpte170m", "arib-std-b67")
    assert presentation({"matrix": "BT2020", "range": "unknown"}).color == Color(None, "bt2020nc")


def test_a_full_range_name_says_the_range(key):
    with Publisher(key, 64, 48, "yuvj420p", memory="host") as publisher:
        assert publisher.format == "i420"
        assert publisher.color == Color("pc")
    with Publisher(key, 64, 48, "yuvj420p", memory="host", color=Color("tv")) as publisher:
        assert publisher.color == Color("tv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color": "bt710"}, "unknown colour 'bt710'; give bt601, bt709"),
        ({"color": Color("wide")}, "unknown range 'wide'; known are tv, pc"),
        ({"color": Color(matrix=99)}, "unknown matrix 99"),
        ({"color": {"space": "bt709"}}, "no 'space'"),
        ({"field_order": "both"}, "unknown field order 'both'"),
        ({"rotation": 45}, "rotation must be 0, 90, 180 or 270 degrees, not 45"),
        ({"sample_aspect_ratio": "wide"}, "sample_aspect_ratio must be a fraction"),
        ({"sample_aspect_ratio": -1}, "sample_aspect_ratio must be 1:65535 to 65535:1"),
        ({"sample_aspect_ratio": float("inf")}, "sample_aspect_ratio must be a fraction"),
        ({"frame_rate": 0}, "a frame rate must be above 0"),
        ({"frame_rate": 1e-9}, "frame_rate must be"),
    ],
    ids=str,
)
def test_values_that_are_refused(key, arguments, message):
    with pytest.raises(ValueError, match=message):
        Publisher(key, 64, 48, memory="host", **arguments)
    assert not cuframes.list_publishers()


def test_an_aspect_that_is_not_said():
    for value in (None, 0, (0, 1), "0:1", (1, 0)):
        assert presentation(sample_aspect_ratio=value).sample_aspect_ratio is None


def stream(**values):
    """PyAV's stream, as far as it is looked at."""
    unknown = {"color_range": 0, "colorspace": 2, "color_primaries": 2, "color_trc": 2, "field_order": 0}
    context = {"pix_fmt": "yuv420p", "width": 1920, "height": 1080, "sample_aspect_ratio": None} | unknown
    context |= {name: value for name, value in values.items() if name in context}
    of_stream = {"average_rate": None, "guessed_rate": None, "sample_aspect_ratio": None}
    of_stream |= {name: value for name, value in values.items() if name not in context or name in of_stream}
    return SimpleNamespace(codec_context=SimpleNamespace(**context), **of_stream)


@pytest.mark.parametrize(
    ("known", "format", "size", "expected"),
    [
        ({}, None, None, {"color": Color()}),
        ({"colorspace": 1, "color_range": 1}, "p010", None, {"color": Color("tv", "bt709")}),
        ({"colorspace": 1, "color_range": 1}, "rgb24", None, {"color": Color("pc", "gbr")}),
        ({"pix_fmt": "yuvj422p"}, "nv12", None, {"color": Color("pc", "bt709")}),
        ({"pix_fmt": "yuvj420p"}, None, None, {"color": Color("pc")}),
        ({"pix_fmt": "rgb24", "colorspace": 0}, "nv12", None, {"color": Color("tv", "bt709")}),
        ({"color_primaries": 9, "color_trc": 16}, None, None, {"color": Color(None, None, "bt2020", "smpte2084")}),
        # Scaled down, HD that does not say its matrix would be taken for SD.
        ({}, None, (640, 360), {"color": Color(None, "bt709")}),
        ({}, None, (1280, 720), {"color": Color()}),
        ({"colorspace": 99, "color_trc": 256}, None, None, {"color": Color()}),
        ({"average_rate": Fraction(2997, 100)}, None, None, {"frame_rate": Fraction(30000, 1001)}),
        ({"average_rate": Fraction(90000), "guessed_rate": Fraction(25)}, None, None, {"frame_rate": 25}),
        ({"average_rate": Fraction(0)}, None, None, {"frame_rate": None}),
        ({"field_order": 2}, None, None, {"field_order": "tt"}),
        ({"field_order": 77}, None, None, {"field_order": None}),
        ({"sample_aspect_ratio": Fraction(64, 45)}, None, None, {"sample_aspect_ratio": Fraction(64, 45)}),
        ({"sample_aspect_ratio": Fraction(0)}, None, None, {"sample_aspect_ratio": None}),
    ],
    ids=str,
)
def test_what_a_decoder_knows(key, known, format, size, expected):
    pytest.importorskip("av")
    from cuframes.media.pictures import presentation_of

    found = presentation_of(stream(**known), format=format, size=size)
    assert {name: found[name] for name in expected} == expected
    with Publisher(key, 64, 48, memory="host", **found) as publisher:
        assert publisher.color == found["color"]


@pytest.mark.parametrize(
    ("said", "size", "format", "expected"),
    [
        (Color(), (1920, 1080), "nv12", Color("tv", "bt709", "bt709", "bt709")),
        (Color(), (3840, 2160), "p010", Color("tv", "bt709", "bt709", "bt709")),
        (Color(), (1280, 534), "nv12", Color("tv", "bt709", "bt709", "bt709")),
        (Color(), (720, 576), "nv12", Color("tv", "smpte170m", "bt470bg", "bt709")),
        (Color(), (640, 480), "uyvy422", Color("tv", "smpte170m", "smpte170m", "bt709")),
        (Color(), (640, 480), "yuvj420p", Color("pc", "smpte170m", "smpte170m", "bt709")),
        (Color(), (640, 480), "bgr0", Color("pc", "gbr", "bt709", "iec61966-2-1")),
        (Color(), (640, 480), "gray8", Color("pc", "smpte170m", "smpte170m", "bt709")),
        (Color(matrix="bt2020nc"), (640, 480), "p010", Color("tv", "bt2020nc", "bt2020", "bt709")),
        (Color("pc", "fcc", "film", "log100"), (64, 64), "nv12", Color("pc", "fcc", "film", "log100")),
    ],
)
def test_what_is_assumed(said, size, format, expected):
    assert said.assumed(*size, format) == expected
