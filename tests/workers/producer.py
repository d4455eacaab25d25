"""Publishes frames of one colour each: that of their dense number. Runs until killed, or for a given number."""

import argparse
import json
import time

import numpy

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--size", default="64x48")
parser.add_argument("--count", type=int, default=10**9)
parser.add_argument("--delay", type=float, default=0.001)
parser.add_argument("--ring-size", type=int, default=8)
options = parser.parse_args()
width, height = map(int, options.size.split("x"))

with cuframes.Publisher(options.key, width, height, "gray8", ring_size=options.ring_size) as publisher:
    print(json.dumps("ready"), flush=True)
    for number in range(1, options.count + 1):
        publisher.publish(numpy.full((height, width), number % 251, numpy.uint8), pts_ns=number)
        time.sleep(options.delay)
