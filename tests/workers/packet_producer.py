"""Publishes packets whose pts is the checksum of their bytes. Runs until killed, or for a given number."""

import argparse
import itertools
import json
import random
import select
import sys
import time
import zlib

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--count", type=int, default=10**9)
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--largest", type=int, default=1000)
parser.add_argument("--slots", type=int, default=64)
parser.add_argument("--data-size", type=int, default=8 << 20)
parser.add_argument("--wait", action="store_true", help="begin when a line comes in, and go on until the next one does")
options = parser.parse_args()

numbers = random.Random(1)
bodies = [numbers.randbytes(numbers.randint(0, options.largest)) for _ in range(200)]
stamped = [(body, zlib.crc32(body)) for body in bodies]
sizes = {"slots": options.slots, "data_size": options.data_size, "max_packet_size": options.largest}
with cuframes.PacketPublisher(options.key, "h264", **sizes) as publisher:
    print(json.dumps("ready"), flush=True)
    if options.wait:
        sys.stdin.readline()
    for number in itertools.count():
        if number >= options.count and (not options.wait or select.select([sys.stdin], [], [], 0)[0]):
            break
        body, checksum = stamped[number * 7 % 200]
        publisher.publish_packet(body, pts_ns=checksum, keyframe=number % 10 == 0)
        if options.delay:
            time.sleep(options.delay)
    print(json.dumps(publisher.packets_published))
