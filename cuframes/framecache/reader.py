"""Reading a slot."""

from fractions import Fraction
from typing import Any, NamedTuple

from cuframes._native.slot import START_LATEST, START_NEXT, START_OLDEST, CacheRing, SlotFrame
from cuframes.errors import ProtocolError
from cuframes.framecache.parameters import check_slot_id
from cuframes.framecache.slots import SlotInfo, attach, info
from cuframes.host.receiver import WatchedReceiver
from cuframes.host.steps import InTheWay, Steps

__all__ = ["SlotReader", "SlotReaderStats"]

STARTS = {"next": START_NEXT, "latest": START_LATEST, "oldest": START_OLDEST}


class SlotReaderStats(NamedTuple):
    """Frames ``received``, ``lost`` because they were overwritten before they were read (mode ``ordered``) and
    ``skipped`` because they were passed over (mode ``newest``): the three add up to the frames that went by. ``lapped``
    counts copies that the writer tore; they were thrown away and made again. Over all slots of the name with
    ``reconnect=True``.
    """

    received: int
    lost: int
    skipped: int
    lapped: int

    @property
    def read(self) -> int:
        """``received``, in the slot format's own word."""
        return self.received

    @property
    def dropped(self) -> int:
        """``lost`` and ``skipped`` together, in the slot format's own word."""
        return self.lost + self.skipped

    def plus(self, other: tuple[int, ...]) -> "SlotReaderStats":
        """These and other counters together."""
        return SlotReaderStats(*(a + b for a, b in zip(self, other, strict=True)))


class SlotReader(WatchedReceiver[SlotFrame, CacheRing, SlotReaderStats]):
    """Read the frames of a slot, at one's own pace.

    Parameters
    ----------
    slot_id : str
    start : {"next", "latest", "oldest"}
        The first frame: the next one to be written, the newest that is there (if any), or the oldest that is still
        whole.
    mode : {"ordered", "newest"}
        Every frame in order, as far as the slot still has them, or always the newest: what was passed over is
        ``skipped`` then.
    connect_timeout : float, optional
        Seconds to wait for the slot to appear; None waits for ever.
    reconnect : bool
        When the slot is removed, wait for one of its name instead of raising :class:`Disconnected`, and read that from
        its oldest frame on.

    Attributes
    ----------
    slot_id : str
    width, height : int
        Pixels.
    format : str
        Pixel format, FFmpeg's name.
    fps : Fraction
        Nominal frames per second.
    ring_depth : int
        Frames that the slot holds; ``ring_depth - 1`` of them can be read at any time.

    Raises
    ------
    NotFound
        There is no such slot.
    ProtocolError, PermissionError, ValueError, TypeError

    Notes
    -----
    A reader leaves no trace in the slot, which it maps read-only; any number may read. ``for`` and ``async for`` end
    when the slot is removed. A slot whose writer has gone is still a slot: :meth:`next` waits for the next writer.
    """

    _what = "reader"
    _reader = "cuframes.framecache.SlotReader"
    _source = "slot"

    def __init__(
        self,
        slot_id: str,
        *,
        start: str = "next",
        mode: str = "ordered",
        connect_timeout: float | None = 5.0,
        reconnect: bool = False,
    ) -> None:
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}; not {start!r}")
        if mode not in ("ordered", "newest"):
            raise ValueError(f"mode must be ordered or newest, not {mode!r}")
        super().__init__(check_slot_id(slot_id), reconnect, SlotReaderStats(0, 0, 0, 0))
        self.slot_id = self.key
        self._start = STARTS[start]
        self._newest = mode == "newest"
        self._join(connect_timeout)

    def _open(self, *, again: bool) -> Steps[CacheRing]:
        yield from ()  # there is nothing to wait for: the slot is a file
        start = START_OLDEST if again else self._start
        try:
            return attach(self.slot_id, start=start, newest=self._newest, entrusted=True)
        except (ProtocolError, PermissionError) as problem:
            if again:  # what is in the way can be removed
                raise InTheWay(problem) from None
            raise

    def _installing(self, ring: CacheRing) -> None:
        slot = info(self.slot_id, ring)
        self.width, self.height, self.format = slot.width, slot.height, slot.pixel_format
        self.fps = Fraction(slot.fps_num, slot.fps_den or 1)
        self.ring_depth = slot.ring_depth

    def next(self, timeout: float | None = None, copy: bool = True, *, out: Any = None) -> SlotFrame:
        """The next frame. Waits without the GIL. (:meth:`read` is the same, in the slot format's own word.)

        Parameters
        ----------
        timeout : float, optional
            Seconds; 0 looks once, None waits as long as it takes.
        copy : bool
            False leaves the pixels where they are: ``frame.data`` is a read-only view of the slot, and ``frame.valid``
            says, after use, whether what was read is the frame.
        out : writable buffer, optional
            Where to copy the pixels, instead of a new array: contiguous, of the frame's size in bytes. It is
            ``frame.data`` then.

        Returns
        -------
        SlotFrame
            ``lost`` and ``skipped`` say how many were missed before it.

        Raises
        ------
        Timeout
            No frame came in time.
        Disconnected
            The slot was removed and everything in it has been read (never with ``reconnect=True``).
        ProtocolError
            The slot is damaged.
        ValueError
            The reader is closed, or `out` does not fit; the frame can be read with another one.
        """
        if out is not None and not copy:
            raise ValueError("out= is for copies; leave copy=False out")
        return self._next(lambda ring, left: ring.next(left, copy, out), timeout)

    read = next

    def _take(self, ring: CacheRing, timeout: float | None) -> SlotFrame:
        return ring.next(timeout, True, None)

    def info(self) -> SlotInfo:
        """The slot as it is now: frames written, measured rate, its writer."""
        return info(self.slot_id, self._joined())

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<SlotReader of {self.slot_id!r}, {self.format} {self.width}x{self.height}{state}>"
