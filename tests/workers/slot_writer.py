"""Writes a slot; every 8 bytes of a frame are its number. Runs until killed, or for a given number."""

import argparse
import json
import sys
import time

from cuframes.framecache import SlotWriter

parser = argparse.ArgumentParser()
parser.add_argument("slot_id")
parser.add_argument("--size", default="64x48")
parser.add_argument("--depth", type=int, default=120)
parser.add_argument("--count", type=int, default=10**9)
parser.add_argument("--delay", type=float, default=0.001)
parser.add_argument("--wait", action="store_true", help="begin when a line comes, end with another")
options = parser.parse_args()
width, height = map(int, options.size.split("x"))

with SlotWriter(options.slot_id, width, height, ring_depth=options.depth) as writer:
    print(json.dumps("ready"), flush=True)
    if options.wait:
        sys.stdin.readline()
    for _ in range(options.count):
        with writer.acquire() as frame:
            frame.data.reshape(-1).view("<u8")[:] = writer.frames_written
            frame.pts_us = writer.frames_written
        if options.delay:
            time.sleep(options.delay)
    print(json.dumps(writer.frames_written), flush=True)
    if options.wait:
        sys.stdin.readline()
