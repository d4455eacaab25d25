"""Lines of a log that would come again and again."""

import logging
import time

__all__ = ["Limiter"]

log = logging.getLogger("cuframes")

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 600.0


class Limiter:
    """Logs the first line of each kind at once, and counts the next ones: "… (506874 more in 8 s)".

    While they go on, a line is logged after 10 s, then after twice as long, up to 10 minutes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: dict[str, _Kind] = {}

    def warning(self, kind: str, text: object) -> None:
        """Log a line of a kind, or count it."""
        now = time.monotonic()
        known = self._kinds.get(kind)
        if known is None or (now - known.last >= 2 * known.pause and not known.more):
            self._kinds[kind] = _Kind(now)
            log.warning("%s: %s", self._name, text)
            return
        known.more += 1
        known.text, known.last = text, now
        if now - known.said >= known.pause:
            self._say(known, now)

    def flush(self) -> None:
        """Log the counts that have not been logged yet."""
        for known in self._kinds.values():
            if known.more:
                self._say(known, time.monotonic())

    def _say(self, known: "_Kind", now: float) -> None:
        log.warning("%s: %s (%d more in %.0f s)", self._name, known.text, known.more, max(1.0, now - known.said))
        known.said, known.more = now, 0
        known.pause = min(2 * known.pause, LONGEST_SECONDS)


class _Kind:
    def __init__(self, now: float) -> None:
        self.said = self.last = now
        self.pause = FIRST_SECONDS
        self.more = 0
        self.text: object = ""
