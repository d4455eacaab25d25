from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import RingEnd
from cuframes._native.slot_table import SlotTable

_T = TypeVar("_T")

class _Connection(Protocol):
    def fileno(self) -> int: ...
    @property
    def event_fd(self) -> int: ...
    def read_messages(self) -> bool: ...
    def close_event(self) -> None: ...
    def forget(self) -> None: ...

BLOCK: int
SPIN: int
PREDICT: int

class FrameWriter(RingEnd):
    """The publisher's end of a frame ring.

    Only one frame is written at a time. This object keeps `header` and the memory of `slots` alive.

    Parameters
    ----------
    header : Mapping
        The control segment, writable and zero-filled. It is initialised here.
    slots : SlotTable
    meta : tuple
        (format code, width, height, pitch_y, pitch_uv, bits per pixel, frame bytes)
    presentation : tuple
        What the pictures look like: ``Presentation.stored``.
    exports : tuple, optional
        For device memory: (memory handles or None, offsets, pointers to announce or None, event handles, handle of the
        ring's own event).
    """
    def __new__(
        cls,
        header: Mapping,
        slots: SlotTable,
        *,
        meta: tuple[int, int, int, int, int, int, int],
        policy: int,
        ext_flags: int,
        epoch: int,
        version: tuple[int, ...],
        pid: int,
        exports: tuple[Any, ...] | None = None,
        presentation: tuple[int, ...] | None = None,
    ) -> Self: ...
    def join(self, name: bytes, pid: int) -> tuple[int, int, int] | None:
        """Admit a subscriber: returns (bit, newest seq, its frame_no), or None if all 31 places are taken."""
    def remove(self, bit: int) -> None:
        """Remove a subscriber: its pins, its outstanding acknowledgements and its eventfd."""
    def feed(self, bit: int, fd: int) -> None:
        """Add 1 to this eventfd whenever a frame is published, until the subscriber leaves or `fd` is set to -1. The
        caller closes the eventfd.
        """
    def fail(self, reason: str) -> None:
        """End the ring for everybody: subscribers take the remaining frames, and publishing raises CuframesError with
        this reason. Called by the session thread when it can no longer tell which subscribers are alive.
        """
    @property
    def counters(self) -> tuple[int, int, int]:
        """(newest seq, frames published, frames dropped), from this process's own memory."""

class FrameReader(RingEnd):
    """A subscriber's end of a frame ring, for one connection.

    On a GPU a frame goes back in two steps. When its last view is gone, an event is recorded on every stream that used
    the frame, and the frame is *pending*. When the events are over, the slot is given back (``pending.h``). The host
    waits for the GPU only if all max_held frames are pending. Closing does not wait: a reader that is closed or dropped
    goes away when its last pending frame has gone back.

    Parameters
    ----------
    header : Mapping
        The control segment, writable: it contains the pins and counters.
    slots : SlotTable
        The frames.
    connection
        An object that keeps the reader's place in the ring. Its ``fileno()`` is watched while waiting, and
        ``read_messages()`` is called when the descriptor is readable (true: the publisher is gone). ``close()`` is
        called when the reader is closed and its last frame released; in a forked child, ``forget()`` instead.
    layout : FrameLayout
        Where the samples of a frame lie.
    ring : tuple
        (bit, max_held, ordered, wait, pins, wakes, strict). `wait` is BLOCK, SPIN or PREDICT; the last three describe
        the publisher.
    position : tuple
        (last seq, its frame_no). frame_no is None if frames missing before the first one are not to be counted.
    stream
        The stream that waits for each frame, for device memory.
    """

    epoch: int
    connection: Any
    layout: Any
    def __new__(
        cls,
        header: Mapping,
        slots: SlotTable,
        connection: _Connection,
        layout: Any,
        *,
        ring: tuple[int, int, bool, int, bool, bool, bool],
        position: tuple[int, int | None],
        stream: Any = None,
    ) -> Self: ...
    def given_back(self) -> None:
        """Called when the last pending frame of a closed reader is back in the ring."""
    def read_messages(self) -> bool:
        """Read the publisher's messages, without waiting. True: the publisher is gone; valid frames may remain."""
    def inside(self, function: Callable[[], _T]) -> _T:
        """Call `function()` inside the gate, so that close() waits for it, and return its result. For functions that
        use the connection's descriptors.
        """
    def set_event(self, fd: int) -> None:
        """Set the eventfd that the publisher signals for this reader. The reader drains it when no frame is left."""
    @property
    def abandoned(self) -> bool:
        """Whether the publisher is gone. Some of its frames may not have been taken yet."""
    @property
    def over(self) -> bool:
        """Whether the publisher is gone and all its frames have been taken."""
    @property
    def counters(self) -> tuple[int, int, int, int, int]:
        """(received, lost, skipped, held, overwritten)"""

class Owner:
    """Keeps a frame's memory alive. On a GPU it also records the streams on which that memory is used."""

class Hold(Owner):
    """A held slot of the ring: it cannot be overwritten while this object is alive.

    Frames, planes and everything exported from them keep a reference to it, so it is deallocated when the last array of
    the frame is gone. That may happen on any thread, or at interpreter exit, and must therefore not raise.
    """

class WriteLease(Owner):
    """Owner of the views of a writer's begun slot, with the stream on which the frame is published."""
