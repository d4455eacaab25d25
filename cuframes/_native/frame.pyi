from collections.abc import Callable
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy.typing

from cuframes._core import FrameReader, FrameWriter
from cuframes._native.layout import FrameLayout
from cuframes._native.views import Plane, View
from cuframes.color import Color

if TYPE_CHECKING:
    import av
    import PIL.Image

class FrameView(View):
    """A whole frame in a slot of the ring: the common part of :class:`Frame` and :class:`WritableFrame`."""
    @property
    def format(self) -> str:
        """Name of the pixel format, as in ``cuframes.formats.FORMATS``."""
    @property
    def width(self) -> int:
        """Pixels."""
    @property
    def height(self) -> int:
        """Pixels."""
    @property
    def color(self) -> Color:
        """The samples' :class:`Color`: range, matrix, primaries and transfer, as far as the publisher has said them."""
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
    def planes(self) -> tuple[Plane, ...]:
        """The planes as a tuple of :class:`Plane`, without a copy. Those of a frame that is being written are writable:
        ``frame.planes[0][...] = luma``.
        """

class Frame(FrameView):
    """A frame in the ring, read-only, in place.

    The frame cannot be overwritten as long as this object, one of its planes, or an array or tensor made from either is
    alive. :meth:`release` (or leaving a ``with`` block) gives the frame up earlier; its slot goes back to the ring when
    the last array made from it is gone too.
    """
    @property
    def seq(self) -> int:
        """Sequence number: unique and growing for the life of one publisher, with gaps where held slots were passed
        over.
        """
    @property
    def frame_no(self) -> int:
        """Consecutive number of the frame, starting at 1 and without gaps. The difference between two numbers is how
        many frames apart they were published.
        """
    @property
    def epoch(self) -> int:
        """Random number of this run of the publisher. When it changes, ``seq`` and ``frame_no`` have started anew."""
    @property
    def pts_ns(self) -> int:
        """Presentation time in nanoseconds, as the publisher gave it; otherwise CLOCK_MONOTONIC at publishing."""
    @property
    def published_ns(self) -> int:
        """Time of publishing: CLOCK_MONOTONIC of this host, in nanoseconds. 0 if the publisher does not report it."""
    @property
    def lost(self) -> int:
        """Number of frames that were overwritten between the frame taken before and this one (mode ``ordered``)."""
    @property
    def skipped(self) -> int:
        """Number of frames that were passed over between the frame taken before and this one (mode ``newest``)."""
    @property
    def valid(self) -> bool:
        """Whether the slot still contains this frame. If the publisher honours pins, always true while the frame is
        held.
        """
    def to_ndarray(
        self, format: str = "rgb24", width: int | None = None, height: int | None = None
    ) -> numpy.typing.NDArray[Any]:
        """A copy of the picture as a NumPy array, in another pixel format or size.

        The colours are right: the conversion uses the frame's :attr:`color`, and for what that leaves open what players
        assume. FFmpeg converts, without the GIL. A frame on a GPU is copied to the host first. Needs PyAV.

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
            The format or the size is not possible, or the frame was released.
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
    def release(self, stream: Any = None) -> None:
        """Give the frame up, without blocking. Arrays made from it stay valid and keep its slot while they are alive.

        Parameters
        ----------
        stream : int or stream object, optional
            For a frame on a GPU: a stream whose work uses the frame in a way that cuframes cannot see, such as your own
            kernel that was given its raw address. The slot goes back when the work now queued on the stream is done.

        Raises
        ------
        Overwritten
            The publisher does not honour pins and has overwritten the frame while it was held.
        DeviceError
            A CUDA graph is being captured on `stream`. The frame stays held.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class WritableFrame(FrameView):
    """A slot of the ring that the publisher fills in place.

    Use it as a context manager: the frame is published when the block ends normally and abandoned when the block
    raises. Write to the frame inside the block only; afterwards subscribers read the same memory.

    Attributes
    ----------
    pts_ns : int or None
        Presentation time in nanoseconds; None means the time of publishing (CLOCK_MONOTONIC).
    seq : int or None
        Sequence number; None until the frame is published.
    slot : int or None
        Index of the slot; with :meth:`Publisher.external`, index of the buffer.

    On a GPU, write on the stream that was given to ``acquire``, or take the planes by DLPack on a stream of your own.
    The frame's event is recorded after the work of both.
    """

    pts_ns: int | None
    seq: int | None
    slot: int | None
    def __new__(
        cls, writer: FrameWriter, layout: FrameLayout, stream: Any, timeout: float | None, wanted: int = -1
    ) -> Self: ...
    def copy_from(self, src: Any) -> None:
        """Copy a whole frame into the slot. `src` is anything that ``Publisher.publish`` accepts."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

def take(reader: FrameReader, timeout: float | None, warm_up: Callable[[Frame], object]) -> Frame:
    """The reader's next frame, read-only. Waits without the GIL and raises what ``Subscriber.next`` raises.

    Calls ``warm_up`` with an empty frame: shortly before a frame is due when waiting predictively, and from time to
    time when spinning.
    """

def publish(
    writer: FrameWriter, layout: FrameLayout, src: Any, pts_ns: int | None, stream: Any, timeout: float | None
) -> int:
    """Copy `src` into a slot and publish it. The copy runs without the GIL.

    The arguments are checked completely before a slot is claimed.
    """
