"""Takes frames and checks that each is one colour: that of its dense number. Ends when the publisher does."""

import argparse
import json
import sys
import time
from itertools import pairwise

import numpy

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--mode", default="ordered")
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--wait", default="block")
parser.add_argument("--hold-first", action="store_true", help="keep the first frame until a line comes in")
options = parser.parse_args()


def whole(frame):
    pixels = numpy.asarray(frame)
    return bool((pixels == frame.frame_no % 251).all())


with cuframes.Subscriber(options.key, mode=options.mode, wait=options.wait) as subscriber:
    print(json.dumps("ready"), flush=True)
    torn = 0
    numbers = []
    first = None
    for frame in subscriber:
        if first is None and options.hold_first:
            first = frame
            print(json.dumps("holding"), flush=True)
            sys.stdin.readline()
        if options.delay:
            time.sleep(options.delay)
        torn += not whole(frame)
        numbers.append(frame.frame_no)
    first_whole = whole(first) if first is not None else None
    received, lost, skipped, held, overwritten = subscriber.stats()
    print(json.dumps({
        "received": received, "lost": lost, "skipped": skipped, "torn": torn, "held": held, "first_whole": first_whole,
        "first": numbers[0] if numbers else None, "last": numbers[-1] if numbers else None,
        "growing": all(a < b for a, b in pairwise(numbers)),
    }))  # fmt: skip
