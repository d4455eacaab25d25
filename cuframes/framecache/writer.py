"""Writing a slot."""

import contextlib
import os
from typing import Any

from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor
from cuframes._native.slot import SEMAPHORE_BYTES, CacheWriter, WritableSlotFrame
from cuframes.errors import AlreadyExists, NotFound, ProtocolError
from cuframes.formats import pixel_format, whole_number
from cuframes.framecache.parameters import Rate, SlotParameters, check_slot_id, rate
from cuframes.framecache.slots import (
    SlotInfo,
    attach,
    compare,
    discard,
    find_slot,
    info,
    layout_of,
    make_slot,
    open_semaphore,
    open_slot,
    semaphore_path,
    slots_dir,
)
from cuframes.host import lifetime
from cuframes.host.files import lock_attempts, naming
from cuframes.host.names import group_id
from cuframes.host.segment import lock_owner

__all__ = ["SlotWriter"]


def _map(file: Descriptor, size: int, *, populate: bool = False) -> Mapping:
    """A file's bytes, writable. It is closed."""
    with file:
        return Mapping(file.fileno(), size, writable=True, populate=populate)


class SlotWriter(lifetime.Closing):
    """Write the frames of a slot: its one writer.

    Parameters
    ----------
    slot_id : str
    width, height : int, optional
        Pixels. Needed to create the slot; without them it must exist.
    format, fps, ring_depth, source_type, group : optional
        As for :func:`create_slot`, with its defaults. A slot that is not there is created. One that is there is written
        from its last frame on; what is given here it must have been created with.

    Raises
    ------
    AlreadyExists
        The slot has a living writer, or other parameters.
    NotFound
        There is no such slot, and width and height were not given.
    OutOfSharedMemory, ProtocolError, PermissionError, ValueError, TypeError

    Notes
    -----
    Writing never waits for readers. One thread at a time may write. Close it, or use it as a context manager; the slot
    stays, for the next writer, until :func:`remove_slot` or the service removes it. The kernel frees the place of a
    writer that dies. After a fork it is usable in the parent only.

    :meth:`close` is final, from any thread and from a signal handler. It waits for a :meth:`write` of another thread,
    which is as long as a copy; a frame of :meth:`acquire` that is being filled cannot be published any more, and its
    memory is not the slot's any more. A constructor that fails leaves nothing behind, also not the slot, if it created
    that.
    """

    _reader = "cuframes.framecache.SlotReader"

    def __init__(
        self,
        slot_id: str,
        width: int | None = None,
        height: int | None = None,
        format: str | None = None,
        *,
        fps: Rate | None = None,
        ring_depth: int | None = None,
        source_type: str | None = None,
        group: str | int | None = None,
    ) -> None:
        self.slot_id = check_slot_id(slot_id)
        if (width is None) != (height is None):
            raise ValueError("give width and height, or neither to write a slot that exists")
        per_second = None if fps is None else rate(fps)
        given: dict[str, Any] = {
            "width": width,
            "height": height,
            "fps_num": None if per_second is None else per_second.numerator,
            "fps_den": None if per_second is None else per_second.denominator,
            "pixel_format": None if format is None else pixel_format(format).name,
            "source_type": source_type,
            "ring_depth": ring_depth,
        }
        given = {name: value for name, value in given.items() if value is not None}
        with contextlib.ExitStack() as undo:  # what is made is given back, unless all of it works
            made = None
            if width is not None:
                defaults: dict[str, Any] = {"fps_num": 25, "fps_den": 1, "pixel_format": "uyvy422"}
                wanted = SlotParameters(slot_id, **(defaults | given)).checked()
                made = make_slot(wanted, group_id(group), lock=True)
            if made is not None:
                undo.enter_context(made)
                undo.callback(discard, slot_id, made.fileno())
            self._open(given, made, undo)
            self._closed = self._over = False
            undo.pop_all()
        lifetime.register(self)

    def _open(self, given: dict[str, Any], made: Descriptor | None, undo: contextlib.ExitStack) -> None:
        ring = attach(self.slot_id, entrusted=True)  # which also refuses what is no slot
        found = info(self.slot_id, ring)
        self.parameters = found.parameters
        compare(found, given)
        # The lock has an open file of its own: a mapping would keep it alive, and a forked child inherits mappings.
        if made is None:
            lock = undo.enter_context(open_slot(self.slot_id, writable=True, owned=True, entrusted=True))
            if not any(lock_owner(lock.fileno()) for _ in lock_attempts()):
                pid = info(self.slot_id, ring).writer_pid or "unknown"  # by now it has had the time to say so
                raise AlreadyExists(f"the slot {self.slot_id!r} has a writer (pid {pid}); a slot has only one")
        else:
            lock = made
        fd = lock.fileno()
        if os.fstat(fd).st_size < found.size:
            raise ProtocolError(f"the slot {self.slot_id!r} was cut off; remove it")
        if os.fstat(fd).st_nlink == 0 or not ring.check()[0]:
            raise NotFound(f"the slot {self.slot_id!r} was just removed; try again")
        with naming(slots_dir() / self.slot_id):
            mapping = _map(Descriptor.open(f"/proc/self/fd/{fd}", os.O_RDWR), found.size, populate=True)
        path = str(semaphore_path(self.slot_id))
        with naming(path):
            semaphore = _map(open_semaphore(self.slot_id, fd), SEMAPHORE_BYTES)
        self._writer = CacheWriter(mapping, lock, layout_of(found), os.getpid(), semaphore, path)

    def write(self, src: Any, *, pts_us: int | None = None, wall_us: int | None = None) -> int:
        """Copy one frame in and publish it. Waits for nobody; the copy runs without the GIL.

        Parameters
        ----------
        src : array-like, PyAV frame, sequence of planes, or bytes-like
            As for :meth:`Publisher.publish`. Bytes of another size are written as they are, and keep their size.
        pts_us : int, optional
            Presentation time in microseconds; default CLOCK_MONOTONIC.
        wall_us : int, optional
            Time of capture in microseconds since 1970; default now.

        Returns
        -------
        int
            The frame's number in the life of the slot: 0, 1, 2, …

        Raises
        ------
        ValueError
            It is larger than the slot's frames, or does not have their shape, or the writer is closed.
        TypeError, BufferError
        Disconnected
            The slot was removed.
        SegmentTruncated
            Somebody cut its file off. Close this writer, remove the slot and create it anew.
        """
        return self._writer.write(src, pts_us, wall_us)

    def acquire(self) -> WritableSlotFrame:
        """The next frame, to be filled in place: ``with writer.acquire() as frame: frame.data[...] = pixels``.

        It is published on a clean exit and abandoned when the block raises. Errors are those of :meth:`write`.
        """
        if self._writer.closed:
            raise ValueError("the writer is closed")
        return WritableSlotFrame(self._writer)

    def drop(self, count: int = 1) -> None:
        """Count frames that the source lost before they came here, in the slot's ``dropped_frames``."""
        self._writer.drop(whole_number(count, "count", 0, 2**32 - 1))

    def info(self) -> SlotInfo:
        """The slot as others see it."""
        return find_slot(self.slot_id)

    @property
    def frames_written(self) -> int:
        """Frames in the life of the slot, by this writer and those before it."""
        return self._writer.cursor

    def close(self) -> None:
        """Leave the slot to the next writer. Closing twice is fine, at any time and place."""
        self._closed = True
        self._writer.close()
        lifetime.unregister(self)
        self._over = True

    def _forget(self) -> None:
        self._closed = self._over = True
        self._writer.close()

    def __repr__(self) -> str:
        p = self.parameters
        state = "closed" if self._closed else f"{self.frames_written} frames"
        return f"<SlotWriter {self.slot_id!r}, {p.pixel_format} {p.width}x{p.height}, {state}>"
