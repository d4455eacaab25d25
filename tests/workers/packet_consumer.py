"""Reads packets and checks each: its bytes follow from its pts. Ends when the publisher does."""

import argparse
import json
import time
import zlib

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--start", default="next")
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--wait", default="block")
parser.add_argument("--without-copy", action="store_true")
options = parser.parse_args()

with cuframes.PacketReader(options.key, options.start, wait=options.wait) as reader:
    print(json.dumps("ready"), flush=True)
    torn = overrun = invalid = first = last = 0
    while True:
        try:
            packet = reader.next(copy=not options.without_copy)
        except cuframes.PacketOverrun as problem:
            overrun += problem.lost
            continue
        except cuframes.Disconnected:
            break
        good = zlib.crc32(packet.data) == packet.pts_ns
        if packet.valid:
            torn += not good
        else:
            invalid += 1
        if not first:
            first = packet.seq
            print(json.dumps("begun"), flush=True)
        last = packet.seq
        if reader.stats().received == 101:
            print(json.dumps("more than 100"), flush=True)
        if options.delay:
            time.sleep(options.delay)
    received, lost = reader.stats()
    print(json.dumps({
        "received": received, "lost": lost, "overrun": overrun, "torn": torn, "invalid": invalid,
        "first": first, "last": last,
    }))  # fmt: skip
