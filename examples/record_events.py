"""Detect motion in decoded frames and record the camera's own packets, over a single connection to the camera.

    cuframes publish cam0 --source rtsp://camera/stream --packets    # in one terminal
    python examples/record_events.py cam0 events                     # in another

The detector is simple: it reports motion when enough of the picture differs from the previous picture. Every event
becomes an MP4 file. The file begins some seconds before the event, because the packet ring still has those packets,
and ends some seconds after the last motion. Nothing is encoded again.
"""

import argparse
import contextlib
import time
from pathlib import Path

import numpy

import cuframes
from cuframes.media.recording import Recording, backlog


class Motion:
    """Measures how much of the picture changed, from every tenth row and column."""

    def __init__(self) -> None:
        self._before: numpy.ndarray | None = None

    def changed(self, frame: cuframes.Frame) -> float:
        """The fraction of the picture, 0 to 1, whose brightness changed by more than 8 %."""
        luma = frame.planes[0] if frame.device == "cpu" else frame.planes[0].copy_to_host()
        now = numpy.asarray(luma)[::10, ::10].astype(numpy.int16)
        before, self._before = self._before, now
        return 0.0 if before is None else float((abs(now - before) > 20).mean())


class Event:
    """A file with the packets from some seconds before it was created until it is closed."""

    def __init__(self, key: str, folder: Path, pre_seconds: float) -> None:
        self.path = folder / f"{key}-{time.strftime('%Y-%m-%d-%H%M%S')}.mp4"
        self._reader = cuframes.PacketReader(key, "oldest")
        self._recording = Recording(self.path, self._reader)
        for packet in backlog(self._reader, pre_seconds):
            self._recording.write(packet)
        print(f"{self.path.name}: motion")

    def go_on(self) -> None:
        """Write the packets that have come since the last call to the file."""
        with contextlib.suppress(cuframes.Timeout, cuframes.Disconnected):
            while True:
                try:
                    self._recording.write(self._reader.next(timeout=0))
                except cuframes.PacketOverrun as problem:
                    print(f"{self.path.name}: {problem.lost} packets are missing")

    def close(self) -> None:
        """Finish the file."""
        self.go_on()
        self._recording.close()
        self._reader.close()
        print(f"{self.path.name}: {self._recording.packets} packets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pre", type=float, default=2.0, help="seconds to record before the event")
    parser.add_argument("--post", type=float, default=3.0, help="seconds to record after the last motion")
    parser.add_argument("--threshold", type=float, default=0.02, help="fraction of the picture that must change")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    motion, event, quiet_at = Motion(), None, 0.0
    try:
        with cuframes.Subscriber(options.key) as subscriber:  # a detector needs only the newest frame
            for frame in subscriber:
                with frame:
                    moved = motion.changed(frame) >= options.threshold
                if moved:
                    quiet_at = time.monotonic() + options.post
                    event = event or Event(options.key, options.folder, options.pre)
                if event is not None:
                    event.go_on()
                    if time.monotonic() >= quiet_at:
                        event.close()
                        event = None
    except KeyboardInterrupt:
        pass
    finally:
        if event is not None:
            event.close()


if __name__ == "__main__":
    main()
