from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy
from numpy.typing import NDArray

from cuframes._native.layout import FrameLayout
from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor, ReaderEnd, RingEnd
from cuframes.color import Color, Presentation

if TYPE_CHECKING:
    import av
    import PIL.Image

MAGIC: int
VERSION: int
HEADER_BYTES: int
SEMAPHORE_BYTES: int
DEFAULT_DEPTH: int
MIN_DEPTH: int
MAX_SOURCE_TYPE: int
MAX_SLOT_ID: int
START_NEXT: int
START_LATEST: int
START_OLDEST: int

def slot_size(frame_size: int, depth: int) -> int:
    """Size of a slot's file in bytes."""

def create_semaphore(name: str, mode: int) -> None:
    """Create a POSIX semaphore with the value 0. Raises FileExistsError, PermissionError or another OSError."""

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
    """Write the header of a new slot. `mapping` is writable, zero-filled, and not yet visible to others."""

def measure_slot(header: bytes, size: int) -> int:
    """Number of bytes that a slot occupies, computed from the first bytes of its file of `size` bytes.

    Raises
    ------
    ProtocolError
        The file is not a slot of this version, or its header does not fit the file.
    """

def describe_slot(mapping: Mapping) -> dict[str, Any]:
    """A snapshot of a slot's header as a dict, for reports. ``frame_size``, ``ring_depth`` and ``size`` (bytes of the
    slot) are consistent and fit the mapping; the other values are not checked.

    Raises
    ------
    ProtocolError
        The mapping is not (or no longer) a slot, or the header does not fit the mapping.
    """

class CacheWriter(RingEnd):
    """The writer's end of a slot. It closes what it is given.

    Parameters
    ----------
    mapping : Mapping
        The slot, writable.
    lock : Descriptor
        The open file that holds the writer's lock, owned. This object closes it, which releases the lock.
    layout : FrameLayout or None
        None if the pixel format is unknown; frames are then plain bytes.
    pid : int
    semaphore : Mapping
        The semaphore's file, writable.
    semaphore_path : str
        For log messages.

    Raises
    ------
    ProtocolError
        The mapping is not a slot, or its entries are too small for its pictures. `lock` then stays open.
    """
    def __new__(
        cls,
        mapping: Mapping,
        lock: Descriptor,
        layout: FrameLayout | None,
        pid: int,
        semaphore: Mapping,
        semaphore_path: str,
    ) -> Self: ...
    def write(self, src: Any, pts_us: int | None, wall_us: int | None) -> int:
        """Copy a frame into the slot and publish it. The copy runs without the GIL. A failure publishes nothing."""
    def add_semaphore(self, semaphore: Mapping) -> None:
        """Post this semaphore too, which has the name by now. Those before it are still posted, up to a number of them:
        programs may be waiting on them.
        """
    def drop(self, count: int) -> None:
        """Add to the count of frames that the source lost."""
    presentation: Presentation
    @property
    def cursor(self) -> int:
        """Number that the next frame will have."""

class WritableSlotFrame:
    """The slot's next entry, which the writer fills in place.

    Use it as a context manager: the frame is published when the block ends normally and abandoned when the block
    raises. A normal end raises ValueError if there is nothing to publish: the frame was never entered, its block has
    ended before, or its writer was closed.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, writable, in the shape of :attr:`SlotFrame.data`. At first they are those of an earlier frame.
        Write to them inside the block only; afterwards readers read the same memory.
    pts_us, wall_us : int or None
        Presentation time, and time of capture since 1970, in microseconds. None means now.
    seq : int or None
        Number of the frame; None until the frame is published.
    """

    pts_us: int | None
    wall_us: int | None
    def __new__(cls, writer: CacheWriter) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def copy_from(self, src: Any) -> None:
        """Copy a whole frame into the slot. `src` is anything that :meth:`SlotWriter.write` accepts."""
    @property
    def data(self) -> NDArray[Any]: ...
    @property
    def planes(self) -> tuple[NDArray[Any], ...]:
        """The planes as a tuple of writable arrays: ``frame.planes[0][...] = luma``."""
    @property
    def seq(self) -> int | None: ...

class CacheRing(ReaderEnd):
    """A reader's end of a slot.

    Parameters
    ----------
    file : Descriptor
        The slot, open for reading. This object takes it over.
    size : int
        Size of the file in bytes.
    start : int
        START_NEXT, START_LATEST or START_OLDEST.
    newest : bool
        Always take the newest frame, passing over older ones.

    Raises
    ------
    ProtocolError
        The file is not a slot of this version, or its header does not fit the file.
    """
    def __new__(cls, file: Descriptor, size: int, *, start: int, newest: bool) -> Self: ...
    def set_layout(self, layout: FrameLayout | None) -> None:
        """Set how the pixels of a whole frame lie in memory. None: frames are plain bytes."""
    def next(self, timeout: float | None, copy: bool, out: Any) -> SlotFrame:
        """See :meth:`take`; `timeout` is in seconds or None."""
    def entry(self, seq: int) -> tuple[int, int, int] | None:
        """(pts_us, wall_us, size) of frame `seq`, or None if the slot does not contain that frame."""
    def describe(self) -> dict[str, Any]:
        """See :func:`describe_slot`."""
    def check(self) -> tuple[bool, bool]:
        """(whether the slot still exists, whether a writer holds its lock)."""
    @property
    def presentation(self) -> Presentation:
        """What the slot says about its pictures."""
    @property
    def abandoned(self) -> bool:
        """Whether the slot was removed. Some of its frames may not have been read yet."""
    @property
    def over(self) -> bool:
        """Whether the slot was removed."""
    @property
    def counters(self) -> tuple[int, int, int, int]:
        """(received, lost, skipped, lapped)"""

class SlotFrame:
    """One frame of a slot: ``(seq, pts_us, wall_us, data, dropped)``.

    Attributes
    ----------
    data : numpy.ndarray
        The pixels, of ``uint8`` (``uint16`` where samples have more than 8 bits), in the array shape that OpenCV and
        FFmpeg use for the format: (height, width, 2) for UYVY, (height x 3/2, width) for 4:2:0, (height, width, 3) for
        RGB. Flat bytes if the frame is smaller than a picture of the format, or if the format is unknown. With
        ``read(copy=False)`` it is a read-only view of the slot's own memory, which may be overwritten at any time;
        check :attr:`valid` after use. With ``next(out=buffer)`` it is that buffer.
    dropped : int
        Number of frames that were missed between the frame read before and this one: ``lost`` and ``skipped`` together.
        (``dropped`` is the slot format's own word.)

    Notes
    -----
    Like a :class:`cuframes.Frame`, the frame itself can be used as an array: the buffer protocol, NumPy's array
    interface and DLPack give :attr:`data`, in the picture's shape, without another copy.
    """
    @property
    def seq(self) -> int:
        """Number of the frame since the slot was created, starting at 0."""
    @property
    def pts_us(self) -> int:
        """Presentation time in microseconds, as the writer gave it."""
    @property
    def wall_us(self) -> int:
        """Time of capture in microseconds since 1970 (CLOCK_REALTIME), as the writer gave it."""
    @property
    def data(self) -> NDArray[Any]: ...
    @property
    def dropped(self) -> int: ...
    @property
    def lost(self) -> int:
        """Number of frames between the frame read before and this one that were overwritten unread."""
    @property
    def skipped(self) -> int:
        """Number of frames between the frame read before and this one that were passed over (mode ``newest``)."""
    @property
    def pts_ns(self) -> int:
        """Presentation time in nanoseconds. The slot stores microseconds."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the frame as an array."""
    @property
    def format(self) -> str | None:
        """Name of the pixel format, as in ``cuframes.formats.FORMATS``. None if it is unknown."""
    @property
    def width(self) -> int | None:
        """Pixels. None if the format is unknown."""
    @property
    def height(self) -> int | None:
        """Pixels. None if the format is unknown."""
    @property
    def color(self) -> Color:
        """The samples' :class:`Color`: range, matrix, primaries and transfer, as far as the writer has said them."""
    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Width of a sample to its height, a Fraction. None: not said, which players take for 1."""
    @property
    def field_order(self) -> str | None:
        """``"progressive"``, or interlaced ``"tt"`` (top first), ``"bb"``, ``"tb"``, ``"bt"``. None: not said."""
    @property
    def rotation(self) -> int | None:
        """Degrees (0, 90, 180, 270) by which the picture must be turned clockwise to be upright. None: not said."""
    @property
    def planes(self) -> tuple[NDArray[Any], ...]:
        """The planes of the picture as a tuple of arrays over :attr:`data`, without a copy.

        Raises
        ------
        ValueError
            The frame is not a whole picture of its format, or the format is unknown.
        """
    @property
    def valid(self) -> bool:
        """Whether everything read from :attr:`data` so far belongs to this frame. Always true for a copy."""
    @property
    def ndim(self) -> int:
        """Number of axes of the frame as an array."""
    def tobytes(self) -> bytes:
        """The frame's bytes, copied."""
    def to_ndarray(self, format: str = "rgb24", width: int | None = None, height: int | None = None) -> NDArray[Any]:
        """A copy of the picture as a NumPy array, in another pixel format or size.

        The colours are right: the conversion uses the frame's :attr:`color`, and for what that leaves open what players
        assume. FFmpeg converts, without the GIL. Needs PyAV.

        Parameters
        ----------
        format : str
            Any pixel format of ``cuframes.formats``: ``"rgb24"``, ``"bgr24"`` (OpenCV), ``"gray8"``, ``"rgbp"`` (planes
            first), …
        width, height : int, optional
            Pixels; default: the frame's own. If only one is given, the other keeps the shape of the picture.

        Returns
        -------
        numpy.ndarray
            Of uint8 (uint16 for more than 8 bits), shape (height, width, 3) for RGB; in general ``array_shape`` of
            :class:`cuframes.formats.FrameShape`. It is the caller's own.

        Raises
        ------
        ImportError
            PyAV is not installed.
        ValueError
            The format or the size is not possible, or the frame is not a whole picture of a known format.
        """
    def to_image(self) -> PIL.Image.Image:
        """A copy of the picture as a ``PIL.Image``: RGB, RGBA if the format has alpha, L if it is gray. Neither rotated
        nor stretched: see :attr:`rotation` and :attr:`sample_aspect_ratio`. Needs PyAV and Pillow.

        Raises
        ------
        ImportError
            PyAV or Pillow is not installed.
        """
    def to_video_frame(self) -> av.VideoFrame:
        """A copy as PyAV's ``VideoFrame``, in the same pixel format, with pts, time base and colour, for PyAV's filters
        and encoders.

        Raises
        ------
        ImportError
            PyAV is not installed.
        """
    def _repr_png_(self) -> bytes | None:
        """The picture for notebooks, upright and at most 960 pixels wide; None if there is none to show."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Does nothing, since a frame of a slot is never held. It allows the same code as for a :class:`Frame`."""
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[numpy.generic]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(self, **asked: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
