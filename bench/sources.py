"""What publishing costs beside decoding: ``cuframes publish`` and a program that only decodes the same H.264 clip.

    python bench/sources.py

Both play a clip at 25 frames per second, in a process of their own, in the same run and in turns, with as many decoder
threads. CPU time is user and system time of the process. Each is run for a shorter and a longer time: the difference is
what a second of video costs (as a share of a core), the rest is what starting costs (in seconds of CPU). For comparison
there is a program that imports PyAV and ends.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
from measure import alternate, conditions

FPS = 25
SIZES = ((1280, 720), (1920, 1080))
# Decodes in frame threads, as `cuframes publish` does with files, and keeps time.
DECODER = """
import sys, time, av
path, seconds = sys.argv[1], float(sys.argv[2])
container = av.open(path)
container.streams.video[0].thread_type = "AUTO"
begin = time.monotonic()
for frame in container.decode(video=0):
    if frame.time >= seconds:
        break
    time.sleep(max(0.0, begin + frame.time - time.monotonic()))
"""
IMPORT = "import av"


def make_clip(path: Path, width: int, height: int, seconds: float) -> None:
    """A moving picture with some noise, as H.264 at a camera's bit rate."""
    noise = numpy.random.default_rng(1).integers(0, 24, (height, width), numpy.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "bf": "0", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2 * width * height
        stream.time_base = Fraction(1, FPS)
        ramp = numpy.add.outer(numpy.arange(height), numpy.arange(width)) // 8
        for number in range(round(seconds * FPS)):
            video = av.VideoFrame(width, height, "yuv420p")
            luma = ((ramp + 3 * number) % 200 + numpy.roll(noise, 7 * number, 1)).astype(numpy.uint8)
            video.planes[0].update(_padded(luma, video.planes[0].line_size))
            for plane in video.planes[1:]:
                plane.update(bytes([100 + number % 50]) * plane.buffer_size)
            video.pts = number
            container.mux(stream.encode(video))
        container.mux(stream.encode(None))


def _padded(rows: Any, line_size: int) -> bytes:
    return numpy.pad(rows, ((0, 0), (0, line_size - rows.shape[1]))).tobytes()


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a process and its children, from its start to its end."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command} ended with {child.returncode}: {errors.decode()}")
    return usage.ru_utime + usage.ru_stime


def measured(command: list[str], short: float, long: float) -> dict[str, Any]:
    """Run a command, whose last argument is its duration, for both durations."""
    less, more = (cpu_seconds([*command, str(seconds)]) for seconds in (short, long))
    share = (more - less) / (long - short)
    return {"share_of_a_core": share, "start_s": less - share * short}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds, short, long = (1, 0.5, 1.0) if options.quick else (3, 2.0, 10.0)
    result: dict[str, Any] = {"conditions": conditions("av")}
    with tempfile.TemporaryDirectory() as directory:
        for width, height in SIZES[:1] if options.quick else SIZES:
            path = Path(directory) / f"{height}.mp4"
            make_clip(path, width, height, long + 1)
            publish = [sys.executable, "-m", "cuframes", "publish", f"bench-{uuid.uuid4().hex[:8]}"]
            publish += ["--source", str(path), "--memory", "host"]
            cases = {
                "decoder alone": [sys.executable, "-c", DECODER, str(path)],
                "publish": [*publish, "--seconds"],
                "publish --packets": [*publish, "--packets", "--seconds"],
                "publish --format nv12": [*publish, "--format", "nv12", "--seconds"],
            }
            found = alternate(rounds, **{n: lambda c=c: measured(c, short, long) for n, c in cases.items()})
            for figures in found.values():
                figures["over_decoder"] = round(
                    figures["share_of_a_core"] / found["decoder alone"]["share_of_a_core"], 2
                )
            result[f"H.264 {width}x{height}, {FPS} fps"] = found
    imports = alternate(rounds, av=lambda: {"start_s": cpu_seconds([sys.executable, "-c", IMPORT])})
    result["import av"] = imports["av"]
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
