"""The compiler's layout against the published figures."""

import json
import re
from pathlib import Path

import pytest

import cuframes
from cuframes._native.control import layout_rows

FIGURES = json.loads((Path(__file__).parent / "data" / "layout.json").read_text())
ROWS = {(kind, field): (offset, size) for kind, field, offset, size in layout_rows()}
# Those of messages.h, where the compiler checks them.
MESSAGES = (Path(cuframes.get_include()) / "cuframes" / "messages.h").read_text()
for kind, field, offset, size in re.findall(r"X\((\w+), (?:(\w+), (\d+), )?(\d+)\)", MESSAGES):
    ROWS[kind, field or None] = (int(offset or 0), int(size))
TYPES = {
    "frame_meta": "cf_frame_meta",
    "slot": "cf_slot",
    "subscriber": "cf_subscriber",
    "frame_header": "cf_frame_header",
    "packet_slot": "cf_packet_slot",
    "packet_header": "cf_packet_header",
    "msg_header": "cf_message",
    "hello_req_head": "cf_hello_head",
    "hello_resp_head": "cf_welcome_head",
    "subscribe_resp": "cf_subscribed",
    "framecache_slot_header": "cf_cache_header",
    "framecache_frame_header": "cf_cache_entry",
}
# Reserved bytes in which this library keeps fields of its own.
SPLIT = {
    ("slot", "reserved_a"): ["pin_bitmap", "frame_no"],
    ("slot", "reserved_b"): ["published_ns", "base_offset", "reserved_b"],
    ("frame_meta", "reserved"): ["device_uuid", "presentation"],
    ("subscriber", "reserved"): ["received", "lost", "skipped", "held", "reserved"],
    ("frame_header", "reserved_a"): ["ext_flags"],
    ("frame_header", "reserved_b"): [
        "waiters",
        "writer_wait",
        "epoch",
        "frames_published",
        "frames_dropped",
        "reserved_b",
    ],
    ("packet_slot", "reserved"): ["published_ns", "ext_flags", "extradata_changes", "reserved"],
    ("framecache_slot_header", "reserved"): ["futex"],
    # The names of messages.h.
    ("msg_header", "msg_type"): ["type"],
    ("msg_header", "payload_length"): ["length"],
    ("hello_req_head", "proto_version"): ["version"],
    ("hello_req_head", "consumer_name_len"): ["name_length"],
    ("hello_resp_head", "proto_version_actual"): ["version"],
    ("hello_resp_head", "ownership_mode"): ["ownership"],
    ("hello_resp_head", "shm_path_len"): ["path_length"],
    ("subscribe_resp", "assigned_bit"): ["bit"],
    ("subscribe_resp", "reserved"): ["initial_frame_no", "reserved"],
}


def test_every_structure_is_known():
    assert set(TYPES) == {name for name in FIGURES if name != "constants"}


@pytest.mark.parametrize("name", TYPES)
def test_size_and_fields(name):
    kind = TYPES[name]
    assert ROWS[kind, None] == (0, FIGURES[name]["size"])
    for field in FIGURES[name]["fields"]:
        parts = SPLIT.get((name, field["field"]), [field["field"]])
        offset = field["offset"]
        for part in parts:
            assert ROWS[kind, part][0] == offset, f"{kind}.{part}"
            offset += ROWS[kind, part][1]
        assert offset == field["offset"] + field["size"], f"{kind}.{field['field']}"


def test_additions_lie_where_other_programs_look_for_them():
    assert ROWS["cf_frame_header", "ext_flags"] == (20, 4)
    assert ROWS["cf_frame_header", "waiters"] == (216, 4)
    assert ROWS["cf_frame_header", "epoch"] == (224, 8)
    assert ROWS["cf_frame_header", "frames_published"] == (232, 8)
    assert ROWS["cf_frame_header", "frames_dropped"] == (240, 8)
    assert ROWS["cf_slot", "pin_bitmap"] == (128, 8)
    assert ROWS["cf_slot", "frame_no"] == (136, 8)
    assert ROWS["cf_slot", "published_ns"] == (144, 8)
    assert ROWS["cf_cache_header", "writer_pid"] == (152, 8)
    assert ROWS["cf_frame_meta", "presentation"] == (48, 16)
    assert ROWS["cf_cache_header", "presentation"] == (160, 16)
    fields = ("range", "matrix", "primaries", "transfer", "field_order", "rotation")
    assert [ROWS["cf_presentation", f] for f in fields] == [(at, 1) for at in range(6)]
    assert [ROWS["cf_presentation", f] for f in ("aspect_num", "aspect_den", "rate_den", "rate_num")] == [
        (6, 2),
        (8, 2),
        (10, 2),
        (12, 4),
    ]
    assert [ROWS["cf_subscriber", f][0] for f in ("received", "lost", "skipped", "held")] == [64, 72, 80, 88]


def test_message_types():
    from cuframes.session.wire import MAX_NAME, MAX_PAYLOAD, MessageType

    assert {m.name: m.value for m in MessageType} == FIGURES["constants"]["MSG"]
    assert FIGURES["constants"]["MAX_MSG_PAYLOAD"] == MAX_PAYLOAD
    assert FIGURES["constants"]["MAX_NAME_LEN"] == MAX_NAME
