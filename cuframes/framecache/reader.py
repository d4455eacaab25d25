"""Reading a slot."""

from fractions import Fraction
from typing import Any, Literal, NamedTuple

from cuframes._native.slot import START_LATEST, START_NEXT, START_OLDEST, CacheRing, SlotFrame
from cuframes.color import Presentation, Presented
from cuframes.errors import ProtocolError
from cuframes.framecache.parameters import check_slot_id
from cuframes.framecache.slots import SlotInfo, attach, info
from cuframes.host.receiver import WatchedReceiver
from cuframes.host.steps import InTheWay, Steps

__all__ = ["SlotReader", "SlotReaderStats"]

STARTS = {"next": START_NEXT, "latest": START_LATEST, "oldest": START_OLDEST}


class SlotReaderStats(NamedTuple):
    """Counters of one reader.

    Attributes
    ----------
    received : int
        Frames that the reader returned.
    lost : int
        Frames that were overwritten before they were read (mode ``ordered``).
    skipped : int
        Frames that were passed over for a newer one (mode ``newest``).
    lapped : int
        Copies that the writer tore. They were thrown away and made again.

    Notes
    -----
    ``received``, ``lost`` and ``skipped`` add up to the frames that went by. With ``reconnect=True`` the counters
    include every slot of that name.
    """

    received: int
    lost: int
    skipped: int
    lapped: int

    @property
    def read(self) -> int:
        """``received``, under the slot format's name."""
        return self.received

    @property
    def dropped(self) -> int:
        """``lost`` and ``skipped`` together, under the slot format's name."""
        return self.lost + self.skipped

    def plus(self, other: tuple[int, ...]) -> "SlotReaderStats":
        """The sum of these and other counters."""
        return SlotReaderStats(*(a + b for a, b in zip(self, other, strict=True)))


class SlotReader(WatchedReceiver[SlotFrame, CacheRing, SlotReaderStats], Presented):
    """Reads the frames of a slot at its own pace.

    Parameters
    ----------
    slot_id : str
    start : {"next", "latest", "oldest"}
        The first frame to read: the next one to be written, the newest in the slot (if there is one), or the oldest
        that is still whole.
    mode : {"ordered", "newest"}
        ``ordered``: every frame in order, as long as the slot still has it. ``newest``: always the newest frame;
        frames that were passed over are counted as ``skipped``.
    connect_timeout : float, optional
        Seconds to wait for the slot to appear; None waits for ever.
    reconnect : bool
        When the slot is removed, wait for a new slot of the same name and read it from its oldest frame on, instead of
        raising :class:`Disconnected`.

    Attributes
    ----------
    slot_id : str
    width, height : int
        Pixels.
    format : str
        Name of the pixel format, as in ``cuframes.formats.FORMATS``.
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
    A reader maps the slot read-only and leaves no trace in it. Any number of readers may read one slot. ``for`` and
    ``async for`` end when the slot is removed. A slot outlives its writer: without one, :meth:`next` waits for the next
    writer's frames.
    """

    _what = "reader"
    _reader = "cuframes.framecache.SlotReader"
    _source = "slot"

    def __init__(
        self,
        slot_id: str,
        *,
        start: Literal["next", "latest", "oldest"] = "next",
        mode: Literal["ordered", "newest"] = "ordered",
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

    def next(self, timeout: float | None = None, *, copy: bool = True, out: Any = None) -> SlotFrame:
        """Return the next frame. Waits without the GIL. (:meth:`read` is another name for this method.)

        Parameters
        ----------
        timeout : float, optional
            Seconds; 0 looks once, None waits as long as it takes.
        copy : bool
            False leaves the pixels in the slot: ``frame.data`` is a read-only view of the slot. The writer may
            overwrite them at any time; look at ``frame.valid`` after use to see whether they were still the frame's.
        out : writable buffer, optional
            Copy the pixels into this buffer instead of a new array. It must be contiguous and have the frame's size in
            bytes; ``frame.data`` is then this buffer.

        Returns
        -------
        SlotFrame
            Its ``lost`` and ``skipped`` say how many frames were missed before it.

        Raises
        ------
        Timeout
            No frame came in time.
        Disconnected
            The slot was removed and all its frames have been read (never with ``reconnect=True``).
        ProtocolError
            The slot is damaged.
        ValueError
            The reader is closed, or `out` does not fit. In the latter case the frame is not lost: read it with another
            buffer.
        """
        if out is not None and not copy:
            raise ValueError("out= makes a copy; leave copy=False out")
        return self._next(lambda ring, left: ring.next(left, copy, out), timeout)

    read = next

    def _take(self, ring: CacheRing, timeout: float | None) -> SlotFrame:
        return ring.next(timeout, True, None)

    @property
    def _presentation(self) -> Presentation:
        return self._joined().presentation

    def info(self) -> SlotInfo:
        """State of the slot now: frames written, measured rate, writer."""
        return info(self.slot_id, self._joined())

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<SlotReader {self.slot_id!r}, {self.format} {self.width}x{self.height}{state}>"
