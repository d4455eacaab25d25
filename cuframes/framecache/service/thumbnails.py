"""Small pictures of the newest frames, made on request."""

import threading
import time

from av.error import FFmpegError

from cuframes._native.slot import START_LATEST
from cuframes.errors import CuframesError, NotFound, Timeout
from cuframes.framecache.slots import attach
from cuframes.media.pictures import picture

__all__ = ["Thumbnails"]

WIDTH = 320
HEIGHT = 1280  # at most, for frames that are narrow and high
SECONDS = 1.0  # between two pictures of a slot, however many clients ask


class Thumbnails:
    """JPEG pictures of slots: at most one per slot and second, and one at a time."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, int, bytes]] = {}
        self._making = threading.Lock()

    def get(self, slot_id: str) -> tuple[int, bytes]:
        """Return the number and the picture of the newest frame, or of the one that was newest up to a second ago. The
        picture is at most 320 pixels wide.

        Raises
        ------
        NotFound
            There is no such slot, it has no frame yet, or no picture can be made from its newest frame.
        """
        with self._making:
            made = self._made.get(slot_id)
            if made is not None and time.monotonic() - made[0] < SECONDS:
                return made[1:]
            self._made = {name: entry for name, entry in self._made.items() if time.monotonic() - entry[0] < 60}
            number, picture = _picture(slot_id)
            self._made[slot_id] = time.monotonic(), number, picture
            return number, picture


def _picture(slot_id: str) -> tuple[int, bytes]:
    """Make a picture of a slot's newest frame. A slot may hold anything: NotFound if no picture can be made from it."""
    try:
        ring = attach(slot_id, start=START_LATEST, newest=True)
        frame = ring.next(0, True, None)
        return frame.seq, picture(frame, "jpeg", WIDTH, HEIGHT)
    except NotFound:
        raise
    except Timeout:
        raise NotFound(f"the slot {slot_id!r} has no frame yet") from None
    except (ValueError, MemoryError, CuframesError, PermissionError, FFmpegError) as problem:
        raise NotFound(f"no picture of the slot {slot_id!r} can be made: {problem or 'it is too large'}") from None
