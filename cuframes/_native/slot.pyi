from types import TracebackType
from typing import Any, Self

import numpy
from numpy.typing import NDArray

from cuframes._native.layout import FrameLayout
from cuframes._native.mapping import Mapping

MAGIC: int
VERSION: int
HEADER_BYTES: int
DEFAULT_DEPTH: int
MIN_DEPTH: int
START_NEXT: int
START_LATEST: int
START_OLDEST: int

def slot_size(frame_size: int, depth: int) -> int:
    """Bytes of a slot's file."""

def format_slot(
    mapping: Mapping,
    *,
    width: int,
    height: int,
    fps_num: int,
    fps_den: int,
    pixel_format: int,
    frame_size: int,
    depth: int,
    source_type: bytes,
    slot_id: bytes,
) -> None:
    """Write the header of a new slot; `mapping` is writable, zero-filled, and nobody else sees it yet."""

def measure_slot(header: bytes, size: int) -> int:
    """Bytes that a slot takes, by the first bytes of its file of `size` bytes.

    Raises
    ------
    ProtocolError
        It is no slot of this version, or its header does not fit the file.
    """

def describe_slot(mapping: Mapping) -> dict[str, Any]:
    """A snapshot of a slot's header as a dict, for reports. ``frame_size``, ``ring_depth`` and ``size`` (bytes of the
    slot) are consistent and fit the mapping; the other values are as found.

    Raises
    ------
    ProtocolError
        It is no slot, not any more, or does not fit the mapping.
    """

class CacheWriter:
    """The writer's end of a slot. Closes what it was given.

    Parameters
    ----------
    mapping : Mapping
        The slot, writable.
    fd : int
        Holds the writer's lock; it becomes ours, and the lock goes with it.
    layout : FrameLayout or None
        None for pixel formats that are not known, whose frames are bytes.
    pid : int
    semaphore : posix_ipc.Semaphore
        Becomes ours.

    Raises
    ------
    ProtocolError
        It is no slot, or its entries are too small for its pictures. `fd` and `semaphore` stay the caller's.
    """
    def __new__(cls, mapping: Mapping, fd: int, layout: FrameLayout | None, pid: int, semaphore: Any) -> Self: ...
    def write(self, src: Any, pts_us: int | None, wall_us: int | None) -> int:
        """Copy a frame in and publish it; the copy runs without the GIL. Errors change nothing."""
    def drop(self, count: int) -> None:
        """Count frames that the source lost."""
    @property
    def cursor(self) -> int:
        """Number of the next frame."""
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    def close(self) -> None:
        """Write no more, and give up the lock.

        A frame that another thread is copying in is waited for. One that is being filled in place is not, and cannot be
        published any more: whoever fills it writes to memory that is not the slot's.
        """

class WritableSlotFrame:
    """The slot's next entry, to be filled in place.

    A context manager: the frame is published on a clean exit and abandoned when the block raises. Leaving it cleanly
    raises ValueError when there is nothing to publish: it was not entered, was left before, or its writer was closed.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, writable, in the shape of :attr:`SlotFrame.data`; what an earlier frame left is still there. Write
        to it inside the block only; afterwards readers read the same memory.
    pts_us, wall_us : int or None
        Presentation time, and time of capture since 1970, in microseconds; None means now.
    seq : int or None
        Number of the frame, once published.
    """

    pts_us: int | None
    wall_us: int | None
    def __new__(cls, writer: CacheWriter) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def check_begun(self) -> None: ...
    def copy_from(self, src: Any) -> None:
        """Copy a whole frame in: what :meth:`SlotWriter.write` takes."""
    @property
    def data(self) -> NDArray[Any]: ...
    @property
    def planes(self) -> tuple[NDArray[Any], ...]:
        """The planes as a tuple of writable arrays: ``frame.planes[0][...] = luma``."""
    @property
    def seq(self) -> int | None: ...

class CacheRing:
    """A reader's end of a slot.

    Parameters
    ----------
    fd : int
        The slot, open for reading; it becomes ours.
    size : int
        Bytes of the file.
    start : int
        START_NEXT, START_LATEST or START_OLDEST.
    newest : bool
        Always go on with the newest frame.

    Raises
    ------
    ProtocolError
        It is no slot of this version, or its header does not fit the file.
    """
    def __new__(cls, fd: int, size: int, *, start: int, newest: bool) -> Self: ...
    def set_layout(self, layout: FrameLayout | None) -> None:
        """How the pixels lie in a whole frame; None: frames are bytes."""
    def next(self, timeout: float | None, copy: bool, out: Any) -> SlotFrame:
        """See :meth:`take`; `timeout` is in seconds or None."""
    def entry(self, seq: int) -> tuple[int, int, int] | None:
        """(pts_us, wall_us, size) of frame `seq`; None when it is not there."""
    def describe(self) -> dict[str, Any]:
        """See :func:`describe_slot`."""
    def check(self) -> tuple[bool, bool]:
        """(whether the slot is still there, whether a writer holds it)."""
    def set_event(self, fd: int) -> None:
        """Tell the reader which eventfd :meth:`watch` feeds, so that it is drained when nothing is left. The descriptor
        becomes the reader's.
        """
    def watch(self, fd: int) -> None:
        """Feed an eventfd whenever there is something to read, until the end. For a thread of its own."""
    def close(self) -> bool:
        """Read no more. Threads in :meth:`next` and :meth:`watch` return.

        Returns
        -------
        bool
            Whether this call closed it, rather than an earlier one.
        """
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    @property
    def abandoned(self) -> bool:
        """Whether the slot was removed, whatever was in it."""
    @property
    def over(self) -> bool:
        """Whether the slot was removed."""
    @property
    def counters(self) -> tuple[int, int, int]:
        """(read, dropped, lapped)"""

class SlotFrame:
    """One frame of a slot: ``(seq, pts_us, wall_us, data, dropped)``.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, of ``uint8`` (``uint16`` for p010 and gray16), in the shape that one array of the format has, as in
        OpenCV and FFmpeg: (height, width, 2) for UYVY, (height x 3/2, width) for 4:2:0, (height, width, 3) for RGB.
        Flat bytes if the frame is smaller than the format's, or the format is not known. With ``read(copy=False)`` it
        is read-only and the slot's own memory, which may be overwritten at any time; look at :attr:`valid` after use.
    dropped : int
        Frames that were missed between this one and the one read before.
    """
    @property
    def seq(self) -> int:
        """Number of the frame in the slot's life, from 0."""
    @property
    def pts_us(self) -> int:
        """Presentation time in microseconds, as the writer gave it."""
    @property
    def wall_us(self) -> int:
        """When it was captured: microseconds since 1970 (CLOCK_REALTIME), as the writer gave it."""
    @property
    def data(self) -> NDArray[Any]: ...
    @property
    def dropped(self) -> int: ...
    @property
    def format(self) -> str | None:
        """Pixel format, FFmpeg's name; None when it is not known."""
    @property
    def width(self) -> int | None:
        """Pixels; None when the format is not known."""
    @property
    def height(self) -> int | None:
        """Pixels; None when the format is not known."""
    @property
    def planes(self) -> tuple[NDArray[Any], ...]:
        """The planes of the picture as a tuple of arrays over :attr:`data`, without a copy.

        Raises
        ------
        ValueError
            The frame is smaller than its format's, or the format is not known.
        """
    @property
    def valid(self) -> bool:
        """Whether what was read from :attr:`data` so far is the frame. Always true of a copy."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None:
        """Nothing: a frame of a slot is never held. It lets code take this for a :class:`Frame`."""
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[numpy.generic]: ...
