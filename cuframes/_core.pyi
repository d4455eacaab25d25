from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from cuframes._native.mapping import Mapping
from cuframes._native.slot_table import SlotTable

_T = TypeVar("_T")

class _Connection(Protocol):
    def fileno(self) -> int: ...
    @property
    def event_fd(self) -> int: ...
    def heard(self) -> bool: ...
    def close_event(self) -> None: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...

BLOCK: int
SPIN: int
PREDICT: int

class FrameWriter:
    """The publisher's end of a frame ring.

    One frame is written at a time. `header` and the memory of `slots` stay as long as this object lives.

    Parameters
    ----------
    header : Mapping
        The control segment, writable, zero-filled; it is initialised here.
    slots : SlotTable
    meta : tuple
        (format code, width, height, pitch_y, pitch_uv, bits per pixel, frame bytes)
    exports : tuple, optional
        For device memory: (memory handles or None, offsets, pointers to announce or None, event handles, handle of the
        ring's event).
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
    ) -> Self: ...
    def join(self, name: bytes, pid: int) -> tuple[int, int, int] | None:
        """Admit a subscriber: (bit, newest seq, its frame_no), or None when all 31 places are taken."""
    def leave(self, bit: int) -> None:
        """Forget a subscriber: its pins, what it owed, its event."""
    def feed(self, bit: int, fd: int) -> None:
        """Add 1 to this eventfd at every publish, until the subscriber leaves or -1 is given. The caller closes it."""
    def fail(self, reason: str) -> None:
        """End the ring for everybody: subscribers drain it, and publishing raises CuframesError with this reason.
        Called by the session thread when it can no longer tell the living from the dead.
        """
    def close(self) -> None:
        """Tell every subscriber that nothing will come. Frames they hold stay as they are.

        A frame that another thread is publishing is waited for; one that it writes in place can no longer be published.
        """
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    @property
    def counters(self) -> tuple[int, int, int]:
        """(newest seq, frames published, frames dropped), from this process's own memory."""

class FrameReader:
    """A subscriber's end of a frame ring, for one connection.

    On a GPU a frame goes back in two steps. When its last view dies, an event is recorded on every stream that used it,
    and the frame is *pending*; when the events are over its slot is given back (``pending.h``). The host waits for the
    GPU only when every frame that may be held is pending, and in nothing else: a reader that is closed or dropped goes
    when its last pending frame has gone back.

    Parameters
    ----------
    header : Mapping
        The control segment, writable (pins and counters are written there).
    slots : SlotTable
        The frames.
    connection
        Whatever keeps the place in the ring: its ``fileno()`` is watched while waiting, ``heard()`` is called when it
        has something to say (true: the publisher is gone), ``close()`` when the reader is closed and its last frame
        released, ``forget()`` instead in a forked child.
    layout : FrameLayout
        Where the samples of a frame lie.
    ring : tuple
        (bit, max_held, ordered, wait, pins, wakes, strict); wait is BLOCK, SPIN or PREDICT, the last three say what the
        publisher does
    position : tuple
        (last seq, its frame_no or None when what lies before the first frame is not to be counted)
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
    def set_event(self, fd: int) -> None:
        """Tell the reader which eventfd the publisher feeds for it, so that it is drained when nothing is left."""
    def given_back(self) -> None:
        """The last pending frame of a closed reader is back in the ring."""
    def heard(self) -> bool:
        """Read what the publisher has sent, without waiting. True: it is gone; what is valid can still be taken."""
    def inside(self, function: Callable[[], _T]) -> _T:
        """What `function()` gives, while close() waits for it: for all that uses the connection's descriptors."""
    def close(self) -> bool:
        """Take no more frames. The connection ends when the last held frame is released.

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
        """Whether the publisher is gone, whatever it left."""
    @property
    def over(self) -> bool:
        """Whether the publisher is gone, and everything that it left was taken."""
    @property
    def counters(self) -> tuple[int, int, int, int, int]:
        """(received, lost, skipped, held, overwritten)"""

class Owner:
    """What keeps a frame's memory, and on a GPU the streams on which that memory is used."""

class WriteLease(Owner):
    """The begun slot of a writer, as the owner of views of it. `main` is the stream the frame is published on."""

class Hold(Owner):
    """A place in the ring that cannot be overwritten while this object lives.

    Frames, planes and everything exported from them keep a reference to it, so "the last array of this frame died" is
    its deallocation. That may happen on any thread, or at interpreter exit, and must therefore not raise.
    """
