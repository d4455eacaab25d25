"""Packets of real video, and what is in a recording of them."""

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
        with av.open(str(path)) as container:
            return [packet for packet in container.demux(video=0) if packet.size]
    except (OSError, ValueError):
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
