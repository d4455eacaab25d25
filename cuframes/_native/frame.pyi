from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from cuframes._core import FrameReader, FrameWriter
from cuframes._native.layout import FrameLayout
from cuframes._native.views import Plane, View

class Frame(View):
    """A frame in the ring, read-only, in place.

    It cannot be overwritten while this object, one of its planes, or any array or tensor made from them lives.
    ``release`` (or leaving a ``with`` block) gives it up early; the slot goes back when the last array of it has died
    as well.
    """
    @property
    def seq(self) -> int:
        """Sequence number: unique in one publisher's life, growing, with gaps where slots were held."""
    @property
    def frame_no(self) -> int:
        """Dense number of this frame, from 1: its distance to another frame's counts the frames between them."""
    @property
    def epoch(self) -> int:
        """Random number of the publisher's incarnation; ``seq`` and ``frame_no`` start anew with it."""
    @property
    def pts_ns(self) -> int:
        """Presentation time in nanoseconds, as the publisher gave it (CLOCK_MONOTONIC at publish when it gave none)."""
    @property
    def published_ns(self) -> int:
        """When it was published: CLOCK_MONOTONIC of this host, nanoseconds. 0 if the publisher does not say."""
    @property
    def lost(self) -> int:
        """Frames overwritten between the previously taken one and this (mode ``ordered``)."""
    @property
    def skipped(self) -> int:
        """Frames passed over between the previously taken one and this (mode ``newest``)."""
    @property
    def format(self) -> str:
        """Pixel format, FFmpeg's name."""
    @property
    def width(self) -> int:
        """Pixels."""
    @property
    def height(self) -> int:
        """Pixels."""
    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes, zero copy, as a tuple of :class:`Plane`."""
    @property
    def valid(self) -> bool:
        """Whether the slot still holds this frame. Always true while it is held, if the publisher honours pins."""
    def release(self, stream: Any = None) -> None:
        """Give the frame up. Arrays made from it stay good and keep its slot until they die. Does not block.

        Parameters
        ----------
        stream : int or stream object, optional
            On a GPU: a stream that the frame was used on without saying so otherwise (its raw address in a kernel of
            your own). The slot goes back when what is queued there now has finished.

        Raises
        ------
        Overwritten
            If the publisher does not honour pins and has overwritten the frame meanwhile.
        DeviceError
            A CUDA graph is being captured on `stream`; the frame stays held.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class WritableFrame(View):
    """A slot of the ring, to be filled in place by the publisher.

    A context manager: the frame is published on a clean exit and abandoned when the block raises. Write to it inside
    the block only; afterwards subscribers read the same memory.

    Attributes
    ----------
    pts_ns : int or None
        Presentation time in nanoseconds; None means the time of publishing (CLOCK_MONOTONIC).
    seq : int or None
        Sequence number, once published.
    slot : int or None
        Which slot it is; with :meth:`Publisher.external`, which of the buffers.

    On a GPU, write on the stream that was given to ``acquire``, or take the planes by DLPack on yours: the frame's
    event comes after both.
    """

    pts_ns: int | None
    seq: int | None
    slot: int | None
    def __new__(
        cls, writer: FrameWriter, layout: FrameLayout, stream: Any, timeout: float | None, wanted: int = -1
    ) -> Self: ...
    @property
    def format(self) -> str:
        """Pixel format, FFmpeg's name."""
    @property
    def width(self) -> int:
        """Pixels."""
    @property
    def height(self) -> int:
        """Pixels."""
    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes as a tuple of writable :class:`Plane`: ``frame.planes[0][...] = luma``."""
    def copy_from(self, src: Any) -> None:
        """Copy a whole frame in: what ``Publisher.publish`` takes."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

def take(reader: FrameReader, timeout: float | None, rehearse: Callable[[Frame], object]) -> Frame:
    """The reader's next frame, read-only. Blocks without the GIL; errors are those of ``Subscriber.next``.

    ``rehearse`` is called with a frame of nothing: in predictive waiting shortly before a frame is due, in spinning now
    and then.
    """

def publish(
    writer: FrameWriter, layout: FrameLayout, src: Any, pts_ns: int | None, stream: Any, timeout: float | None
) -> int:
    """Copy `src` into a slot and publish it; the copy runs without the GIL.

    Everything that can be wrong with the arguments is found before a slot is taken.
    """
