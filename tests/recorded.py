"""Packets of real video, and what is in a recording of them."""

import contextlib
import json
import pickle
import random
import subprocess
import sys
from fractions import Fraction

import av

from cuframes import PacketPublisher
from cuframes.codecs import nanoseconds


class Source:
    """The packets of a file, and a publisher of them."""

    def __init__(self, path):
        with av.open(path) as container:
            stream = container.streams.video[0]
            self.codec, self.extradata = stream.codec_context.codec.id, stream.codec_context.extradata
            self.packets = [
                (bytes(p), nanoseconds(p.pts, p.time_base), nanoseconds(p.dts, p.time_base), p.is_keyframe)
                for p in container.demux(stream)
                if p.size
            ]

    def publisher(self, key, **more):
        return PacketPublisher(key, self.codec, extradata=self.extradata, **{"slots": 1024} | more)

    def damage(self, *numbers):
        """Replace packets by noise, as a lossy network does to a camera's."""
        for number in numbers:
            data, *rest = self.packets[number]
            self.packets[number] = (random.Random(number).randbytes(len(data)), *rest)
        return self

    def publish(self, publisher, begin=0, end=None, shift_ns=0):
        for data, pts, dts, key in self.packets[begin:end]:
            publisher.publish_packet(data, pts_ns=pts + shift_ns, dts_ns=dts + shift_ns, keyframe=key)


def probe(path):
    """(bytes, pts, dts, keyframe) of a file's packets, times in nanoseconds from the first pts; and frames decoded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.start_time * stream.time_base <= Fraction(1, 10)
        found = [
            (bytes(p), nanoseconds(p.pts, p.time_base), nanoseconds(p.dts, p.time_base), p.is_keyframe)
            for p in container.demux(stream)
            if p.size
        ]
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        frames = sum(1 for _ in container.decode(video=0))
    return relative(found), frames


def probe_packets(path):
    """What a file that is still being written has so far."""
    try:
        with av.open(path if hasattr(path, "read") else str(path)) as container:
            return [packet for packet in container.demux(video=0) if packet.size]
    except av.FFmpegError:
        return []


def relative(packets):
    """Times from the first pts on, in whole milliseconds."""
    first = packets[0][1]

    def since(time_ns):
        return None if time_ns is None else round((time_ns - first) / 1e6)

    return [(data, since(pts), since(dts), key) for data, pts, dts, key in packets]


def command(*arguments):
    return [sys.executable, "-m", "cuframes", *map(str, arguments)]


def start_recording(key, path, *options):
    """A recorder that has joined."""
    child = subprocess.Popen(command("record", key, path, *options), stderr=subprocess.PIPE, text=True)
    assert "recording" in child.stderr.readline()
    return child


def finish(child, expect=0):
    _, rest = child.communicate(timeout=60)
    assert child.returncode == expect, rest
    return rest


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def steady(source, key, seconds=60):
    """A process that publishes the packets of `source` again and again, 25 a second."""
    program = (
        "import pickle, signal, sys, time, cuframes\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "codec, extradata, packets = pickle.load(sys.stdin.buffer)\n"
        "with cuframes.PacketPublisher(sys.argv[1], codec, extradata=extradata, slots=1024) as publisher:\n"
        "    print('ready', flush=True)\n"
        "    for turn in range(int(sys.argv[2])):\n"
        "        for data, pts, dts, key in packets:\n"
        "            shift = turn * len(packets) * 40_000_000\n"
        "            publisher.publish_packet(data, pts_ns=pts + shift, dts_ns=dts + shift, keyframe=key)\n"
        "            time.sleep(0.04)\n"
    )
    turns = int(seconds * 25 / len(source.packets)) + 1
    child = subprocess.Popen(
        [sys.executable, "-c", program, key, str(turns)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdin.write(pickle.dumps((source.codec, source.extradata, source.packets)))
        child.stdin.close()
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.terminate()
        child.wait(20)
        child.stdout.close()
