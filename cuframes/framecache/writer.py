"""Writing a slot."""

import contextlib
import logging
import os
import time
from fractions import Fraction
from typing import Any

from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor
from cuframes._native.slot import SEMAPHORE_BYTES, CacheWriter, WritableSlotFrame
from cuframes.color import Color, ColorLike, Presentation, Presented, presentation
from cuframes.errors import AlreadyExists, CuframesError, NotFound, ProtocolError
from cuframes.formats import pixel_format, whole_number
from cuframes.framecache.parameters import SlotParameters, check_slot_id
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
from cuframes.host.files import is_file, lock_attempts, naming
from cuframes.host.names import group_id
from cuframes.host.segment import fill_holes, lock_owner
from cuframes.rates import Rate, rate

__all__ = ["SlotWriter"]

log = logging.getLogger("cuframes")

LOOK_SECONDS = 0.5  # how often a writer looks, when there is a frame, whether its semaphore still has its name


def _map(file: Descriptor, size: int, *, populate: bool = False) -> Mapping:
    """Map a file's bytes, writable, and close its descriptor."""
    with file:
        return Mapping(file.fileno(), size, writable=True, populate=populate)


class SlotWriter(lifetime.Closing, Presented):
    """Writes the frames of a slot. A slot has one writer at a time.

    Parameters
    ----------
    slot_id : str
    width, height : int, optional
        Pixels. Needed to create the slot; without them the slot must exist.
    format, fps, ring_depth, source_type, group : optional
        See :func:`create_slot`, also for the defaults. If the slot does not exist, it is created. If it exists, writing
        continues after its last frame, and the parameters given here must be those that it was created with.
    color, sample_aspect_ratio, field_order, rotation : optional
        What the pictures look like; see :class:`cuframes.Publisher`. Readers see it as attributes of their frames. What
        is left out stays as the writer before has said it.

    Raises
    ------
    AlreadyExists
        The slot has a living writer, or was created with other parameters.
    NotFound
        There is no such slot, and width and height were not given.
    OutOfSharedMemory, ProtocolError, PermissionError, ValueError, TypeError

    Notes
    -----
    Writing never waits for readers. Only one thread at a time may write. Close the writer, or use it as a context
    manager. The slot stays for the next writer until :func:`remove_slot` or the service removes it. If a writer dies,
    the kernel releases its lock on the slot. After a fork only the parent can use the writer. If the semaphore is
    removed, the writer creates it again within a second, if there are frames. C programs that wait on the old one are
    still woken.

    :meth:`close` is final. It may be called from any thread and from a signal handler. It waits for a :meth:`write` in
    another thread, which takes as long as a copy. A frame from :meth:`acquire` that is being filled can then no longer
    be published, and its memory is no longer the slot's. A constructor that fails leaves nothing behind; if it created
    the slot, it removes it again.
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
        color: ColorLike | None = None,
        sample_aspect_ratio: Fraction | tuple[int, int] | str | int | None = None,
        field_order: str | int | None = None,
        rotation: int | None = None,
    ) -> None:
        self.slot_id = check_slot_id(slot_id)
        if (width is None) != (height is None):
            raise ValueError("give both width and height, or neither to write a slot that exists")
        per_second = None if fps is None else rate(fps)
        looks = presentation(color, sample_aspect_ratio, field_order, rotation, format=format or "")
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
        with contextlib.ExitStack() as undo:  # undo every step if one fails
            made = None
            if width is not None:
                defaults: dict[str, Any] = {"fps_num": 25, "fps_den": 1, "pixel_format": "uyvy422"}
                wanted = SlotParameters(slot_id, **(defaults | given)).checked()
                made = make_slot(wanted, group_id(group), lock=True)
            if made is not None:
                undo.enter_context(made)
                undo.callback(discard, slot_id, made.fileno())
            self._open(given, made, undo)
            said = {name: value for name, value in looks._asdict().items() if value not in (None, Color())}
            if said:
                self._writer.presentation = self._writer.presentation._replace(**said)
            self._closed = self._over = False
            undo.pop_all()
        lifetime.register(self)

    def _open(self, given: dict[str, Any], made: Descriptor | None, undo: contextlib.ExitStack) -> None:
        ring = attach(self.slot_id, entrusted=True)  # which also refuses a file that is not a slot
        found = info(self.slot_id, ring)
        self.parameters = found.parameters
        compare(found, given)
        # The lock has an open file of its own: a mapping would keep it alive, and a forked child inherits mappings.
        if made is None:
            lock = undo.enter_context(open_slot(self.slot_id, writable=True, owned=True, entrusted=True))
            if not any(lock_owner(lock.fileno()) for _ in lock_attempts()):
                pid = info(self.slot_id, ring).writer_pid or "unknown"  # by now the writer has had time to store it
                raise AlreadyExists(
                    f"the slot {self.slot_id!r} has a writer (pid {pid}), and a slot has only one; stop it first, or "
                    "use another slot_id"
                )
        else:
            lock = made
        fd = lock.fileno()
        if os.fstat(fd).st_size < found.size:
            raise ProtocolError(f"the slot {self.slot_id!r} was cut off; remove it")
        if os.fstat(fd).st_nlink == 0 or not ring.check()[0]:
            raise NotFound(f"the slot {self.slot_id!r} was just removed; try again")
        with naming(slots_dir() / self.slot_id):
            fill_holes(fd, found.size, f"the slot {self.slot_id!r}")
            mapping = _map(Descriptor.open(f"/proc/self/fd/{fd}", os.O_RDWR), found.size, populate=True)
        self._file = os.fstat(fd)
        semaphore, self._semaphore = self._map_semaphore(fd)
        self._unnamed = self._said = False
        self._next_look = time.monotonic() + LOOK_SECONDS
        path = str(semaphore_path(self.slot_id))
        self._writer = CacheWriter(mapping, lock, layout_of(found), os.getpid(), semaphore, path)

    def _map_semaphore(self, fd: int) -> tuple[Mapping, os.stat_result]:
        """The semaphore that has the name, mapped, and its file. It is made if need be. `fd` is the slot's."""
        with naming(semaphore_path(self.slot_id)):
            opened = open_semaphore(self.slot_id, fd)
            file = os.fstat(opened.fileno())
            return _map(opened, SEMAPHORE_BYTES), file

    def _look(self) -> None:
        """Now and then, before a frame: make the semaphore again that cleaners, or people, have removed.

        Whoever removes the slot removes its semaphore first, so one look must have found it gone before.
        """
        now = time.monotonic()
        if now < self._next_look or self._closed:
            return
        self._next_look = now + LOOK_SECONDS
        path = semaphore_path(self.slot_id)
        # Its number is not given to another file while we have it mapped.
        missing = not is_file(path, self._semaphore)
        before, self._unnamed = self._unnamed, missing
        if not (missing and before):
            return
        try:
            with open_slot(self.slot_id) as file:
                fd = file.fileno()
                if not os.path.samestat(os.fstat(fd), self._file):
                    return  # ours was removed, as this frame will find
                semaphore, self._semaphore = self._map_semaphore(fd)
        except NotFound:
            return
        except (CuframesError, OSError) as problem:
            if not self._said:
                log.warning("%s was removed, and cannot be made again: %s", path, problem)
            self._said = True
            return
        self._writer.add_semaphore(semaphore)
        self._unnamed = self._said = False
        log.warning("%s was removed; it is there again", path)

    def write(
        self, src: Any, *, pts_ns: int | None = None, pts_us: int | None = None, wall_us: int | None = None
    ) -> int:
        """Copy one frame into the slot and publish it. Never waits for readers; the copy runs without the GIL.

        Parameters
        ----------
        src : array-like, PyAV frame, sequence of planes, or bytes-like
            See :meth:`Publisher.publish`. Bytes of another size are written unchanged, and keep their size.
        pts_ns : int, optional
            Presentation time in nanoseconds, which a slot keeps in whole microseconds. Default: that of `src` if it is
            a frame of this library or of PyAV and has one (0 if it is negative), otherwise CLOCK_MONOTONIC.
        pts_us : int, optional
            The same in microseconds, in place of `pts_ns`.
        wall_us : int, optional
            Time of capture in microseconds since 1970; default: now.

        Returns
        -------
        int
            Number of the frame: 0, 1, 2, … since the slot was created.

        Raises
        ------
        ValueError
            The frame is larger than the slot's frames or has another shape, or the writer is closed, or both
            presentation times are given.
        TypeError, BufferError
        Disconnected
            The slot was removed.
        SegmentTruncated
            Another process truncated the slot's file. Close this writer, remove the slot and create it again.
        """
        if pts_ns is not None:
            if pts_us is not None:
                raise ValueError("pts_ns and pts_us are the same time; give one of them")
            pts_us = whole_number(pts_ns, "pts_ns", -(2**63), 2**63 - 1) // 1000
        self._look()
        return self._writer.write(src, pts_us, wall_us)

    def acquire(self) -> WritableSlotFrame:
        """Return the next frame, to be filled in place: ``with writer.acquire() as frame: frame.data[...] = pixels``.

        The frame is published when the block ends, and abandoned if the block raises. The errors are those of
        :meth:`write`.
        """
        if self._writer.closed:
            raise ValueError("the writer is closed")
        self._look()
        return WritableSlotFrame(self._writer)

    @property
    def _presentation(self) -> Presentation:
        return self._writer.presentation

    def drop(self, count: int = 1) -> None:
        """Add `count` to the slot's ``dropped_frames``: frames that the source lost before they reached the writer."""
        self._writer.drop(whole_number(count, "count", 0, 2**32 - 1))

    def info(self) -> SlotInfo:
        """State of the slot, as other processes see it."""
        return find_slot(self.slot_id)

    @property
    def frames_written(self) -> int:
        """Frames ever written to the slot, by this writer and those before it."""
        return self._writer.cursor

    def close(self) -> None:
        """Leave the slot to the next writer. May be called again, and from any thread."""
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
