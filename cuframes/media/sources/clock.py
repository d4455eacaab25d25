"""Timestamps that only grow, whatever a stream's clock does."""

from fractions import Fraction
from typing import Any

from cuframes.rates import Rate, rate

__all__ = ["ContinuousClock", "Thinner"]

DEFAULT_LENGTH = Fraction(1, 25)
JITTER = 1  # seconds; a smaller step back is a disorder of single packets, a larger one is another clock
JUMP = 10  # seconds; a larger step forward is another clock, in formats whose clock may jump
LATEST = 16  # pictures by which a completed decoding time may be before the presentation time
REORDERING = 5  # seconds; without decoding times, only a step back by more than this is a jump


class ContinuousClock:
    """Shifts the timestamps of packets so that a stream goes on where it was, after its clock has jumped.

    Clocks jump when a file begins again, when a camera was restarted or its clock was set, when recordings were joined,
    and when 33 bits are over. Decoding times grow in any valid stream, so they show a jump. A packet is shifted before
    it is decoded, so its picture is shifted as well. All values are seconds.
    """

    def __init__(self) -> None:
        self._shift = Fraction(0)
        self._last: Fraction | None = None  # decoding time of the newest packet
        self._newest: Fraction | None = None  # presentation time of the newest picture
        self._length = DEFAULT_LENGTH
        self._gap: Fraction | None = None

    def restart(self, passed: float = 0.0) -> None:
        """The next packet has another clock. `passed` is the time since the last packet; 0: it follows directly."""
        if self._last is not None or self._newest is not None:
            self._gap = Fraction(passed)

    def place(
        self, packet: Any, *, length: Fraction | None, passed: float | None, may_jump: bool, depth: int = 0
    ) -> None:
        """Shift one packet.

        Parameters
        ----------
        packet : av.Packet
        length : Fraction, optional
            Nominal time from one picture to the next. A packet without any timestamp is given one by it.
        passed : float, optional
            For live streams, the time since the last packet came; a jump becomes as long as that.
        may_jump : bool
            Whether a long step forward is a jump. In a file of single pictures it may be meant.
        depth : int
            By how many pictures the decoding order differs. Matroska has no decoding times, and FFmpeg does not know
            the first ones; they are completed.
        """
        base = packet.time_base
        if base is None:
            return
        nominal, length = length, packet.duration * base if packet.duration else length or self._length
        gap, self._gap = self._gap, None
        if packet.dts is None and packet.pts is None:
            after = Fraction(0) if self._last is None else self._last + max(length, gap or 0)
            packet.dts = round(after / base)
        else:
            self._shift += self._jump(packet, gap, length, Fraction(passed or 0), may_jump)
            ticks = round(self._shift / base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            if packet.dts is None:
                packet.dts = packet.pts - round(depth * length / base)
                if self._last is not None:
                    late = packet.pts - round(LATEST * length / base)
                    packet.dts = min(packet.pts, max(late, round((self._last + length) / base)))
            else:
                packet.dts += ticks
            if self._last is not None:
                # A packet out of order must not disturb the others.
                packet.dts = max(packet.dts, int(self._last / base) + 1)
        if self._last is not None and nominal is None and not packet.duration:
            length = packet.dts * base - self._last
        self._last = packet.dts * base
        if packet.pts is not None:
            self._newest = max(packet.pts * base, self._newest or packet.pts * base)
        self._length = length

    def _jump(self, packet: Any, gap: Fraction | None, length: Fraction, passed: Fraction, may_jump: bool) -> Fraction:
        """How much the clock has to be shifted now: 0 unless it has jumped."""
        decoding = packet.dts is not None
        before = self._last if decoding else self._newest
        if before is None and gap is not None:
            before = self._newest if decoding else self._last
        if before is None:
            return Fraction(0)
        given: Fraction = (packet.dts if decoding else packet.pts) * packet.time_base
        advance = given + self._shift - before
        if gap is not None:
            return max(length, gap) - advance
        back = advance <= -(JITTER if decoding else REORDERING)
        if back or (may_jump and advance > JUMP + passed):
            return max(length, passed) - advance
        return Fraction(0)


class Thinner:
    """Picks pictures at a lower rate, evenly by their pts."""

    def __init__(self, fps: Rate) -> None:
        self._rate = rate(fps)
        self._first: int | None = None
        self._last = -1

    def wants(self, pts_ns: int) -> bool:
        """Whether the picture is one of those to take. Must be asked for every picture, in order."""
        if self._first is None:
            self._first = pts_ns
        # The millionth: a time that was rounded to whole ticks still counts for the place that is meant.
        place = int((pts_ns - self._first) * self._rate / 1_000_000_000 + Fraction(1, 20))
        if place <= self._last:
            return False
        self._last = place
        return True
