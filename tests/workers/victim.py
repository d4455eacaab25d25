"""Uses a ring or a slot in one role until its memory is cut off, or until it is told to stop.

Prints what several calls said of that, and how many descriptors are left.
"""

import argparse
import gc
import json
import os
import select
import sys
import threading
import time

import numpy

import cuframes
from cuframes import PacketPublisher, PacketReader, Publisher, Subscriber
from cuframes.framecache import SlotReader, SlotWriter

parser = argparse.ArgumentParser()
parser.add_argument("role")
parser.add_argument("name")
parser.add_argument("--wait", default="block")
options = parser.parse_args()
name = options.name

PIXELS = numpy.full((48, 64), 7, numpy.uint8)
PACKET = bytes(range(256)) * 64
descriptors = len(os.listdir("/proc/self/fd"))


def told():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def kind(call):
    """The name of the exception that a call raises, or None."""
    try:
        call()
    except Exception as problem:
        return type(problem).__name__
    return None


def until_it_fails(step):
    """The exception that ends the work; None when we were told to stop."""
    print(json.dumps("ready"), flush=True)
    while not told():
        failed = kind(step)
        if failed not in (None, "Timeout"):
            return failed
    return None


def slowly(call):
    call()
    time.sleep(0.002)


def publisher():
    with Publisher(name, 64, 48, "gray8", memory="host") as it:
        failed = until_it_fails(lambda: slowly(lambda: it.publish(PIXELS)))
        again = kind(lambda: it.publish(PIXELS))
        stats = it.stats()
    return {"failed": failed, "again": again, "published": stats.published, "subscribers": stats.subscribers}


def acquiring():
    with Publisher(name, 64, 48, "gray8", memory="host", policy="strict_wait") as it:

        def fill():
            with it.acquire(timeout=1) as frame:
                frame.copy_from(PIXELS)

        failed = until_it_fails(lambda: slowly(fill))
        return {"failed": failed, "again": kind(fill)}


def idle():
    """A publisher that publishes nothing: its session thread alone touches the segment."""
    with Publisher(name, 64, 48, "gray8", memory="host") as it:
        it.publish(PIXELS)
        until_it_fails(lambda: time.sleep(0.002))
        return {"threads": threading.active_count(), "again": kind(lambda: it.publish(PIXELS))}


def subscriber():
    with Subscriber(name, start="oldest", wait=options.wait, max_held=2) as it:
        held = it.next(10)
        pixels = numpy.asarray(held)
        failed = until_it_fails(lambda: it.next(None).release())
        result = {"failed": failed, "again": kind(lambda: it.next(0.5)), "pixels": int(pixels[47, 63])}
        result["released"], result["valid"] = kind(held.release), held.valid
        del held, pixels
        result["received"] = it.stats().received > 0
    return result


def polling():
    """One that never waits."""
    with Subscriber(name) as it:
        failed = until_it_fails(lambda: it.next(0).release())
        return {"failed": failed, "again": kind(lambda: it.next(0))}


def any_of_two():
    """The first of two publishers is cut; the second is served all the time."""
    other, packets = f"{name}-b", f"{name}-c"
    with (
        Publisher(other, 64, 48, "gray8", memory="host") as served,
        PacketPublisher(packets, "h264") as put,
        Subscriber(name) as cut,
        Subscriber(other) as whole,
        PacketReader(packets) as reader,
    ):
        taken = 0

        def step():
            nonlocal taken
            served.publish(PIXELS)
            for one in cuframes.wait_any([cut, whole, reader], 5):
                taken += one is whole
                one.next(0)

        step()
        failed = until_it_fails(step)
        put.publish_packet(b"x", pts_ns=0, keyframe=True)
        later = cuframes.wait_any([whole, reader], 5)
        alone = cuframes.wait_any([cut], 5)
        return {"failed": failed, "taken": taken > 0, "later": reader in later, "alone": alone == [cut]}


def packets_writer():
    with PacketPublisher(name, "h264", extradata=b"x") as it:
        failed = until_it_fails(lambda: slowly(lambda: it.publish_packet(PACKET, pts_ns=0, keyframe=True)))
        return {"failed": failed, "again": kind(lambda: it.publish_packets([(PACKET, 0, 0, 1)]))}


def packets_reader():
    with PacketReader(name, wait=options.wait if options.wait == "spin" else "block") as it:
        bad = 0

        def step():
            nonlocal bad
            bad += it.next(None).data != PACKET

        failed = until_it_fails(step)
        again = kind(lambda: it.next(0.5)), kind(lambda: it.extradata)
        return {"failed": failed, "bad": bad, "again": again}


def packets_view():
    """Touches nothing but the bytes of packets that it was given without a copy."""
    with PacketReader(name, "oldest") as it:
        while isinstance((packet := it.next(10, copy=False)).data, bytes):  # the first one, and where the ring ends
            pass
        it.fileno()  # a thread sleeps on the ring
        before = bytes(packet.data) == PACKET
        until_it_fails(lambda: time.sleep(0.002))
        zeros = bytes(packet.data) == bytes(len(PACKET))
        result = {"before": before, "zeros": zeros, "valid": packet.valid, "again": kind(lambda: it.next(0.5))}
        pid = os.fork()
        if pid == 0:
            os._exit(bytes(packet.data) != bytes(len(PACKET)))
        return result | {"child": os.waitpid(pid, 0)[1]}


def slot_writer():
    with SlotWriter(name, 64, 48, "gray8", ring_depth=8) as it:

        def step():
            it.write(PIXELS)
            with it.acquire() as frame:
                frame.data[...] = 7

        failed = until_it_fails(lambda: slowly(step))
        return {"failed": failed, "again": kind(lambda: it.write(PIXELS)), "drop": kind(it.drop)}


def slot_reader():
    with SlotReader(name) as it:
        bad = 0

        def step():
            nonlocal bad
            bad += not (it.read(None).data == 7).all()

        failed = until_it_fails(step)
        return {"failed": failed, "bad": bad, "again": kind(lambda: it.read(0.5)), "info": kind(it.info)}


def slot_view():
    with SlotReader(name, start="latest") as it:
        frame = it.read(10, copy=False)
        it.fileno()
        before = bool((frame.data == 7).all())
        until_it_fails(lambda: time.sleep(0.002))
        zeros = not frame.data.any()
        return {"before": before, "zeros": zeros, "valid": frame.valid, "again": kind(lambda: it.read(0.5))}


result = globals()[options.role]()
gc.collect()
end = time.monotonic() + 10
while len(os.listdir("/proc/self/fd")) > descriptors and time.monotonic() < end:  # threads that are just ending
    time.sleep(0.01)
result["left"] = len(os.listdir("/proc/self/fd")) - descriptors
print(json.dumps(result))
