"""Forks subscribers and kills each at a random moment. Single-threaded, and without a subscriber of its own."""

import json
import os
import random
import signal
import sys
import time

import numpy

import cuframes

key, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)


def child(number):
    subscriber = cuframes.Subscriber(
        key, mode="ordered" if number % 2 else "newest", wait="spin" if number % 3 else "block"
    )
    held = []
    for frame in subscriber:
        held.append(frame)  # up to max_held at a time, so that a kill always finds some
        del held[:-2]
        numpy.asarray(frame).sum()


print(json.dumps("ready"), flush=True)
for number in range(rounds):
    pid = os.fork()
    if pid == 0:
        try:
            child(number)
        finally:
            os._exit(1)  # it was to be killed
    time.sleep(chance.random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), status
print(json.dumps("done"))
