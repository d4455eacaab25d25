"""From a frame in the ring to RGB: ``frame.to_ndarray()`` beside PyAV's own conversion of the same picture.

    python bench/pictures.py

Both convert with FFmpeg's scaler, in the same run and in turns. ``beside`` is how much of its speed a thread of Python
keeps while another one converts: near 1 only if the conversion does not hold the GIL (and a core is free).

The C library keeps freed memory here. By default it may give it back to the kernel after each call, depending on what
else is in the heap, and page faults then take longer than the conversion.
"""

import argparse
import ctypes
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy
from measure import alternate, conditions, percentiles

from cuframes import Publisher, Subscriber

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
SIZES = ((1280, 720), (1920, 1080), (854, 480))
FORMATS = ("nv12", "yuv420p", "p010le")


def picture(width: int, height: int, format: str) -> Any:
    """A PyAV frame of noise, which is tagged as cameras tag theirs."""
    video = av.VideoFrame(width, height, format)
    noise = numpy.random.default_rng(1)
    for plane in video.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, numpy.uint8).tobytes())
    video.colorspace, video.color_range = 1, 1
    return video


def timed(convert: Callable[[], Any], times: int) -> dict[str, Any]:
    """Milliseconds of one conversion."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        convert()
        spent.append(time.perf_counter_ns() - begin)
    figures = percentiles(spent)
    return {"p50_ms": figures["p50_us"] / 1000, "p99_ms": figures["p99_us"] / 1000}


def beside(convert: Callable[[], Any], seconds: float) -> float:
    """The speed of counting while another thread converts, over the speed of counting alone."""

    def count() -> int:
        end, counted = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            counted += 1
        return counted

    over = threading.Event()

    def keep_converting() -> None:
        while not over.is_set():
            convert()

    alone = count()
    thread = threading.Thread(target=keep_converting)
    thread.start()
    try:
        return round(count() / alone, 2)
    finally:
        over.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, 2**25)
    rounds, times, seconds = (1, 2, 0.05) if options.quick else (9, 30, 1.0)
    result: dict[str, Any] = {"conditions": conditions("numpy", "av")}
    for width, height in SIZES:
        for format in FORMATS:
            video = picture(width, height, format)
            looks: dict[str, Any] = {"color": ("tv", "bt709"), "memory": "host"}
            with (
                Publisher("bench-pictures", width, height, format, **looks) as publisher,
                Subscriber("bench-pictures") as subscriber,
            ):
                publisher.publish(video)
                with subscriber.next(5) as frame:
                    threads = {} if width % 128 == 0 else {"threads": 1}  # as many as cuframes uses
                    cases = {
                        "cuframes": frame.to_ndarray,
                        "pyav_to_ndarray": lambda video=video: video.to_ndarray(format="rgb24"),
                        "pyav_reformat": lambda video=video, threads=threads: video.reformat(format="rgb24", **threads),
                    }
                    found = alternate(rounds, **{n: lambda c=c: timed(c, times) for n, c in cases.items()})
                    found["cuframes"]["over_pyav_to_ndarray"] = round(
                        found["cuframes"]["p50_ms"] / found["pyav_to_ndarray"]["p50_ms"], 2
                    )
                    found["cuframes"]["beside"] = beside(frame.to_ndarray, seconds)
            result[f"{format} {width}x{height} to rgb24"] = found
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
