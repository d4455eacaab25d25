"""Reads a slot and checks each frame: every 8 bytes are its number. Ends when the slot is removed, or at a number."""

import argparse
import json
import time

from cuframes import Disconnected
from cuframes.framecache import SlotReader

parser = argparse.ArgumentParser()
parser.add_argument("slot_id")
parser.add_argument("--until", type=int, default=10**12, help="end with the frame of this number")
parser.add_argument("--start", default="next")
parser.add_argument("--mode", default="ordered")
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--without-copy", action="store_true")
options = parser.parse_args()

with SlotReader(options.slot_id, start=options.start, mode=options.mode) as reader:
    print(json.dumps("ready"), flush=True)
    torn = invalid = reported = late = 0
    first = last = None
    while last is None or last < options.until:
        try:
            frame = reader.read(copy=not options.without_copy)
        except Disconnected:
            break
        good = bool((frame.data.reshape(-1).view("<u8") == frame.seq).all())
        if frame.valid:
            torn += not good or frame.pts_us not in (frame.seq, frame.seq * 40000)
        else:
            invalid += 1
        reported += frame.dropped
        late += last is not None and frame.seq != last + 1 + frame.dropped
        first = frame.seq if first is None else first
        last = frame.seq
        if options.delay:
            time.sleep(options.delay)
    stats = reader.stats()
    read, dropped, lapped = stats.read, stats.dropped, stats.lapped
    print(json.dumps({
        "read": read, "dropped": dropped, "lapped": lapped, "reported": reported, "torn": torn, "invalid": invalid,
        "late": late, "first": first, "last": last,
    }))  # fmt: skip
