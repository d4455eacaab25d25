"""Publishes device frames of one colour each, uploaded from the host, until it is killed."""

import json
import sys
import time

import numpy

import cuframes

key, memory, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
with cuframes.Publisher(key, 64, 48, "gray8", memory=memory) as publisher:
    print(json.dumps("ready"), flush=True)
    for number in range(1, 10**9):
        publisher.publish(numpy.full((48, 64), number % 251, numpy.uint8), pts_ns=number)
        time.sleep(delay)
