"""Timestamps of a file or stream of packets: they begin at zero and grow, whatever the clocks of its sources do."""

from typing import Any

__all__ = ["Timeline"]

DEFAULT_STEP_NS = 40_000_000
TICK_NS = 11_112  # a little more than 1/90000 s, so that two times that must differ do so in every container
# Without dts, a pts that is this much earlier than the decoder's time belongs to another clock; less is reordering.
REORDER_NS = 1_000_000_000
REORDER_MAX = 16  # pictures that H.264 and HEVC allow a decoder to hold back


class Timeline:
    """Places the packets of a file in time.

    Parameters
    ----------
    reorder : int
        How many pictures a decoder of the stream holds back to bring them into order. It matters only for packets
        without dts: theirs are made from the pts.
    """

    def __init__(self, reorder: int = 0) -> None:
        self.end_ns = 0
        self.reorder = reorder
        self._shift_ns: int | None = None
        self._seq = self._published_ns = self._dts_ns = 0  # of the packet before
        self._step_ns = DEFAULT_STEP_NS
        self._waiting: tuple[int, ...] = ()  # pts that have not yet been used as dts, in order
        self._restarted = False

    @property
    def step_ns(self) -> int:
        """The time between the two newest packets that follow each other."""
        return self._step_ns

    def restart(self) -> None:
        """The next packet has a different clock."""
        self._restarted = True

    def place(self, packet: Any) -> tuple[int, int]:
        """(pts, dts) of a packet in the file, in nanoseconds."""
        dts_ns = packet.dts_ns
        pts_ns = packet.pts_ns if packet.pts_ns is not None else dts_ns
        if pts_ns is None:
            pts_ns = packet.published_ns
        if self._shift_ns is None:
            self._shift_ns = -pts_ns
        elif self._restarted or packet.seq <= self._seq or self._went_back(pts_ns, dts_ns):
            # The clock is another one. What lies between is the time that passed for real.
            first_ns = pts_ns - self.reorder * self._step_ns if dts_ns is None else dts_ns
            passed_ns = packet.published_ns - self._published_ns
            self._shift_ns = self._dts_ns + max(self._step_ns, passed_ns) - first_ns
            self._waiting = ()
        elif dts_ns is not None and packet.seq == self._seq + 1:
            self._step_ns = dts_ns + self._shift_ns - self._dts_ns
        pts_ns += self._shift_ns
        made_ns = self._make_dts(pts_ns)
        dts_ns = made_ns if dts_ns is None else dts_ns + self._shift_ns
        self._restarted = False
        self._seq, self._published_ns, self._dts_ns = packet.seq, packet.published_ns, dts_ns
        self.end_ns = max(self.end_ns, pts_ns)
        return max(pts_ns, dts_ns), dts_ns

    def _went_back(self, pts_ns: int, dts_ns: int | None) -> bool:
        assert self._shift_ns is not None
        if dts_ns is not None:
            return dts_ns + self._shift_ns <= self._dts_ns
        return pts_ns + self._shift_ns < self._dts_ns - REORDER_NS

    def _make_dts(self, pts_ns: int) -> int:
        """The dts of a packet that has none: the pts in order, as many packets later as pictures are held back."""
        first = not self._seq
        waiting = sorted((*self._waiting, pts_ns))
        if len(waiting) > self.reorder:
            dts_ns, *waiting = waiting
        else:
            dts_ns = waiting[0] - (self.reorder + 1 - len(waiting)) * self._step_ns
        self._waiting = tuple(waiting)
        if not first and dts_ns <= self._dts_ns:
            dts_ns = self._dts_ns + TICK_NS
            if pts_ns < dts_ns:  # more is held back than the stream says
                self.reorder = min(self.reorder + 1, REORDER_MAX)
        return dts_ns
