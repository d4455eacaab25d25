"""Detect on decoded frames, record the camera's own packets: one session at the camera for both.

    cuframes publish cam0 --source rtsp://camera/stream --packets    # in one terminal
    python examples/record_events.py cam0 events                     # in another

The detector here is simple: something moved when enough of the picture differs from the picture before. Every event
becomes an MP4 that begins some seconds before it, since the packet ring goes back that far, and ends some seconds
after the last movement. Nothing is encoded again.
"""

import argparse
import contextlib
import time
from pathlib import Path

import numpy

import cuframes
from cuframes.media.recording import Recording, backlog


class Motion:
    """How much of the picture changed, looked at in every tenth row and column."""

    def __init__(self) -> None:
        self._before: numpy.ndarray | None = None

    def changed(self, frame: cuframes.Frame) -> float:
        """Part of the picture, 0 to 1, whose brightness changed by more than 8 %."""
        luma = frame.planes[0] if frame.device == "cpu" else frame.planes[0].copy_to_host()
        now = numpy.asarray(luma)[::10, ::10].astype(numpy.int16)
        before, self._before = self._before, now
        return 0.0 if before is None else float((abs(now - before) > 20).mean())


class Event:
    """A file with the packets from some seconds ago until it is closed."""

    def __init__(self, key: str, folder: Path, pre_seconds: float) -> None:
        self.path = folder / f"{key}-{time.strftime('%Y-%m-%d-%H%M%S')}.mp4"
        self._reader = cuframes.PacketReader(key, "oldest")
        self._recording = Recording(self.path, self._reader)
        for packet in backlog(self._reader, pre_seconds):
            self._recording.write(packet)
        print(f"{self.path.name}: something moved")

    def go_on(self) -> None:
        """Move the packets that have come since the last call into the file."""
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
    parser.add_argument("--pre", type=float, default=2.0, help="seconds before the event")
    parser.add_argument("--post", type=float, default=3.0, help="seconds after the last movement")
    parser.add_argument("--threshold", type=float, default=0.02, help="part of the picture that has to change")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    motion, event, quiet_at = Motion(), None, 0.0
    try:
        with cuframes.Subscriber(options.key) as subscriber:  # the newest frame is what a detector wants
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
