"""Slots as files: naming, creating, opening, describing, listing and removing them.

A slot is a file in the slots' directory, and a semaphore that C programs wait on. The file outlives its writers: it
exists from creation to removal, with or without a writer or readers. A new file is sized and formatted before it gets
its name: no process ever sees an unfinished slot, and a process that dies while creating a slot leaves nothing behind.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cuframes._native.layout import FrameLayout
from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor
from cuframes._native.slot import (
    DEFAULT_DEPTH,
    HEADER_BYTES,
    MAGIC,
    SEMAPHORE_BYTES,
    START_NEXT,
    CacheRing,
    create_semaphore,
    format_slot,
    measure_slot,
)
from cuframes.color import Presentation
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory, ProtocolError
from cuframes.formats import FrameShape, pixel_format
from cuframes.framecache.parameters import CODES, NAMES, SlotParameters, check_slot_id, is_slot_id
from cuframes.host.files import naming
from cuframes.host.names import SEGMENT_DIR, check_owner, group_id, named_directory
from cuframes.host.segment import NO_ROOM, PAGE, lock_owner, no_room, reserve
from cuframes.rates import Rate, rate

__all__ = [
    "SlotInfo",
    "create_slot",
    "find_slot",
    "list_slots",
    "remove_slot",
    "slots_dir",
]

MEASURED_SECONDS = 2  # fps is measured over this long
CLOCK_DIFFERENCE_US = 500_000  # how far the clock of a writer, such as a capture card's, may be ahead of this one
# The errors of opening a path that is not a regular file (a link, a directory, a socket, a device), or a file on which
# another process holds a lease.
NO_PLAIN_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EAGAIN)
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def slots_dir() -> Path:
    """Directory of the slots: ``CUFRAMES_FRAMECACHE_DIR`` if it is set, else ``/dev/shm/framecache``."""
    named = os.environ.get("CUFRAMES_FRAMECACHE_DIR")
    return named_directory(named) if named else SEGMENT_DIR / "framecache"


def semaphore_name(slot_id: str) -> str:
    """POSIX name of the semaphore that C programs wait on."""
    return f"/framecache-{check_slot_id(slot_id)}-write"


def semaphore_path(slot_id: str) -> Path:
    """Path of the file in which the C library keeps that semaphore."""
    return SEGMENT_DIR / f"sem.{semaphore_name(slot_id)[1:]}"


class SlotInfo(NamedTuple):
    """State of a slot, read from its file.

    Attributes
    ----------
    slot_id, width, height, fps_num, fps_den, pixel_format, source_type, ring_depth
        See :func:`create_slot`. A pixel format that this library does not know is ``"unknown (code)"``.
    frame_size, size : int
        Bytes of a frame, and of the whole file.
    write_cursor : int
        Frames ever written. The next frame has this number.
    fps : float or None
        Frame rate measured over the last 2 seconds; 0 if no frame came in that time. None if it is unknown, because
        there were never two frames, or because their age is unknown.
    last_frame_age_s : float or None
        Seconds since the newest frame was captured. None if that is unknown: there is no frame, its writer does not say
        when it was captured, or that time lies in the future because the clock was set back since.
    writer_pid : int or None
        The writer's pid in its own pid namespace, 0 if it is unknown; None if no process holds the slot's lock. (A C
        program that does not use the lock may be writing all the same: look at ``last_frame_age_s``.)
    dropped_frames : int
        Frames that the source lost, as counted by the writer.
    color_range, color_matrix, color_primaries, color_transfer, sample_aspect_ratio, field_order : str or None
    rotation : int or None
        What the pictures look like, as far as a writer has said it; see :class:`SlotFrame`. The aspect ratio is like
        ``"64:45"``.
    """

    slot_id: str
    width: int
    height: int
    fps_num: int
    fps_den: int
    pixel_format: str
    source_type: str
    ring_depth: int
    frame_size: int
    size: int
    write_cursor: int
    fps: float | None
    last_frame_age_s: float | None
    writer_pid: int | None
    dropped_frames: int
    color_range: str | None = None
    color_matrix: str | None = None
    color_primaries: str | None = None
    color_transfer: str | None = None
    sample_aspect_ratio: str | None = None
    field_order: str | None = None
    rotation: int | None = None

    @property
    def parameters(self) -> SlotParameters:
        """The parameters that the slot was created with."""
        return SlotParameters(*(getattr(self, name) for name in SlotParameters._fields))


@contextlib.contextmanager
def directory(*, create: bool = False) -> Iterator[int]:
    """Open the slots' directory. With `create`, make it if it is missing, and refuse it if its owner is neither this
    user nor root: links in it could lead anywhere.

    Raises
    ------
    NotFound
        The directory does not exist, so there are no slots.
    OutOfSharedMemory, PermissionError
    """
    path = slots_dir()
    made = False
    if create:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir(mode=0o700)
            except OSError as problem:
                if problem.errno not in NO_ROOM:
                    raise
                raise no_room(f"the slots' directory {path}", PAGE, path.parent) from None
            made = True
    try:
        folder = Descriptor.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(f"there are no slots on this host: {path} does not exist") from None
    except OSError as problem:
        if problem.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise PermissionError(
            f"{path} is a link or not a directory; remove it, or set CUFRAMES_FRAMECACHE_DIR"
        ) from None
    with folder:
        fd = folder.fileno()
        owner = os.fstat(fd).st_uid
        if create and owner not in (0, os.getuid()):
            raise PermissionError(
                f"{path} belongs to uid {owner}; create slots as that user, or set CUFRAMES_FRAMECACHE_DIR"
            )
        if made:
            os.fchmod(fd, 0o755)  # whatever the umask is: readers may be other users
        yield fd


def open_slot(slot_id: str, *, writable: bool = False, owned: bool = False, entrusted: bool = False) -> Descriptor:
    """Open a slot's file. With `entrusted`, its contents will be used, so the file of an unrelated user is refused
    (check_owner); otherwise it will only be examined.

    Raises
    ------
    NotFound, ProtocolError, PermissionError
    """
    path = slots_dir() / check_slot_id(slot_id)
    with directory() as folder:
        mode = os.O_RDWR if writable else os.O_RDONLY
        try:
            with naming(path):
                file = Descriptor.open(slot_id, mode | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder, owned=owned)
        except FileNotFoundError:
            raise NotFound(f"there is no slot {slot_id!r} on this host; see cuframes framecache ls") from None
        except PermissionError:
            raise PermissionError(
                f"the slot {path} belongs to another user; to share it with a group, create it with group="
            ) from None
        except OSError as problem:
            if problem.errno not in NO_PLAIN_FILE:
                raise
            raise ProtocolError(f"{path} is not a regular file; remove it") from None
        try:
            there = os.fstat(file.fileno())
            if not stat.S_ISREG(there.st_mode):
                raise ProtocolError(f"{path} is not a regular file; remove it")
            if entrusted:
                _check_entrusted(there, path, folder)
        except BaseException:
            file.close()
            raise
    return file


def _check_entrusted(there: os.stat_result, path: Path, folder: int) -> None:
    """Refuse the slot of an unrelated user. A file in the directory is trusted like those who may create files there:
    the directory's owner, and its group, if that may write. The owner must be this user or root; or the directory must
    be named in CUFRAMES_FRAMECACHE_DIR, or lie where only trusted users can create directories. Where every user may
    write, the owner of each file is checked.
    """
    place = os.fstat(folder)
    named = bool(os.environ.get("CUFRAMES_FRAMECACHE_DIR"))
    trusted = place.st_uid in (os.geteuid(), 0) or named or not os.stat(path.parent.parent).st_mode & stat.S_IWOTH
    if not trusted or place.st_mode & stat.S_IWOTH:
        remedy = (
            "its owner can share it with group=; remove it, or set CUFRAMES_FRAMECACHE_DIR to say that the owner of "
            f"{path.parent} (uid {place.st_uid}) is trusted"
        )
        check_owner(there, path, [place.st_uid] if trusted else [], remedy)


def attach(slot_id: str, *, start: int = START_NEXT, newest: bool = False, entrusted: bool = False) -> CacheRing:
    """Open a reader's end of a slot. It maps the slot read-only and leaves no trace in it. `entrusted`: see
    :func:`open_slot`.

    Raises
    ------
    NotFound, ProtocolError, PermissionError
    """
    path = slots_dir() / slot_id
    with open_slot(slot_id, entrusted=entrusted) as file:  # the ring takes it over
        # The header is read before anything is mapped, and only the slot is mapped: the file may have any size.
        fd = file.fileno()
        size = os.fstat(fd).st_size
        if size == 0:
            raise ProtocolError(f"{path} is empty, so it is not a framecache slot; remove it")
        try:
            with naming(path):
                ring = CacheRing(file, measure_slot(os.pread(fd, HEADER_BYTES, 0), size), start=start, newest=newest)
        except OverflowError:
            raise ProtocolError(f"{path} is too large to be mapped; remove it") from None
    ring.set_layout(layout_of(info(slot_id, ring)))
    return ring


def layout_of(slot: SlotInfo | SlotParameters) -> FrameLayout | None:
    """Memory layout of a slot's frames; None if its pixel format is not known."""
    try:
        return FrameLayout(FrameShape(pixel_format(slot.pixel_format), slot.width, slot.height, align=1))
    except ValueError:
        return None


def info(slot_id: str, ring: CacheRing) -> SlotInfo:
    """State of a slot. ``slot_id`` is the name of the file: a C program may have put another name into the header."""
    header = ring.describe() | {"slot_id": slot_id}
    code = header.pop("pixel_format")
    writer_pid = header.pop("writer_pid")
    header |= Presentation.of_stored(header.pop("presentation")).named
    header["pixel_format"] = NAMES.get(code, f"unknown ({code})")
    header["writer_pid"] = writer_pid if ring.check()[1] else None
    header["fps"], header["last_frame_age_s"] = _measured(ring, header)
    return SlotInfo(**{name: header[name] for name in SlotInfo._fields})


def age_us(wall_us: int) -> int | None:
    """Microseconds since a frame was captured, from the time of capture that its writer gave. None: unknown.

    People and services set this clock. A time in the future therefore says nothing (the clock was set back since). In
    particular it does not mean that the frame is new: a dead slot would look alive until the clock reaches that time
    again. Every age and latency of a slot's frame is computed here.
    """
    now = time.time_ns() // 1000
    if not wall_us or wall_us > now + CLOCK_DIFFERENCE_US:
        return None
    return max(0, now - wall_us)


def _measured(ring: CacheRing, header: dict[str, int]) -> tuple[float | None, float | None]:
    """Frames per second, and the newest frame's age in seconds, computed from the capture times in the slot."""
    cursor, depth = header["write_cursor"], header["ring_depth"]
    if not cursor or (newest := ring.entry(cursor - 1)) is None or (since := age_us(newest[1])) is None:
        return None, None
    age = round(since / 1e6, 3)
    nominal = header["fps_num"] / max(header["fps_den"], 1)
    # The oldest entry is about to be overwritten. The one after it may be overwritten before it is read here.
    back = min(cursor - 1, depth - 3, max(1, int(nominal * MEASURED_SECONDS)))
    older = ring.entry(cursor - 1 - back) if back > 0 else None
    if older is None or not older[1] or newest[1] <= older[1]:
        return None, age
    return (0.0 if age > MEASURED_SECONDS else round(back * 1e6 / (newest[1] - older[1]), 2)), age


def open_semaphore(slot_id: str, fd: int) -> Descriptor:
    """Open the file of a slot's semaphore, and create it if it is missing. The semaphore is for the same users as the
    slot's file, `fd`.

    This library maps and posts the semaphore itself (slot_ring.h): the C library would trust the contents of the file.

    Raises
    ------
    PermissionError
        The semaphore belongs to a user who may not use the slot, or the file is not a semaphore.
    OutOfSharedMemory, OSError
    """
    name, path = semaphore_name(slot_id), semaphore_path(slot_id)
    like = os.fstat(fd)
    for _ in range(10):
        # Creating comes second: it needs room even if the semaphore exists.
        with contextlib.suppress(FileNotFoundError):
            return _open_semaphore(path, like)
        # A new semaphore's mode depends on the umask, and its owner on us: the next turn checks it like an old one.
        try:
            with naming(path):
                create_semaphore(name, stat.S_IMODE(like.st_mode))
        except FileExistsError:
            continue
        except PermissionError:
            raise PermissionError(
                f"the semaphore {path} cannot be created: this user may not write to {SEGMENT_DIR}"
            ) from None
        except OSError as problem:
            if problem.errno not in NO_ROOM:
                raise
            raise no_room(f"the semaphore {path}", PAGE, SEGMENT_DIR) from None
    raise AlreadyExists(f"other processes keep creating and removing the semaphore {path}")


def _open_semaphore(path: Path, like: os.stat_result) -> Descriptor:
    """Open a semaphore that exists. Refuse one of an unrelated user; give our own the owner, the group and the mode of
    the slot, which are in `like`.
    """
    # O_PATH opens no more than the path: a FIFO cannot block it, and neither a link nor the mode can make it fail.
    with Descriptor.open(path, os.O_PATH | os.O_NOFOLLOW) as place:
        pin = place.fileno()
        try:
            with naming(path):
                _check_semaphore(path, pin, like)
                # Open the file that was checked, whatever has its name by now.
                return Descriptor.open(f"/proc/self/fd/{pin}", os.O_RDWR | os.O_NONBLOCK)
        except PermissionError as problem:
            if problem.errno is None:
                raise
            raise PermissionError(
                f"the semaphore {path} belongs to uid {os.fstat(pin).st_uid}, and this user may not use it; remove it "
                "as that user or as root"
            ) from None


def _check_semaphore(path: Path, pin: int, like: os.stat_result) -> None:
    there = os.fstat(pin)
    of_group = like.st_mode & stat.S_IWGRP and there.st_gid == like.st_gid  # only a member can have given it this group
    if there.st_uid not in (0, os.geteuid(), like.st_uid) and not of_group:
        raise PermissionError(
            f"the semaphore {path} belongs to uid {there.st_uid}, who may not use the slot; remove it as that user or "
            "as root"
        )
    if not stat.S_ISREG(there.st_mode) or there.st_size < SEMAPHORE_BYTES:
        raise PermissionError(f"{path} is not a semaphore; remove it")
    mode = stat.S_IMODE(like.st_mode)
    here = f"/proc/self/fd/{pin}"
    if os.geteuid() in (0, there.st_uid):
        owner = like.st_uid if os.geteuid() == 0 else there.st_uid
        if (there.st_uid, there.st_gid) != (owner, like.st_gid):
            os.chown(here, owner, like.st_gid)
        if stat.S_IMODE(there.st_mode) != mode:
            os.chmod(here, mode)
    elif stat.S_IMODE(there.st_mode) & ~mode:
        raise PermissionError(f"the semaphore {path} is open to more users than its slot; remove it, or chmod it")


def ensure_semaphore(slot_id: str, fd: int) -> None:
    """Create a slot's semaphore if it is missing."""
    open_semaphore(slot_id, fd).close()


def make_slot(wanted: SlotParameters, gid: int | None = None, *, lock: bool = False) -> Descriptor | None:
    """Create a slot, and return it open. Return None if the name is taken.

    With `lock`, the descriptor holds the writer's lock before any other process can see the slot, and is owned.

    Raises
    ------
    OutOfSharedMemory, PermissionError
        Nothing was created.
    """
    path = slots_dir() / wanted.slot_id
    # Before the check of the directory's owner: members of a slot's group may write a slot in another user's directory.
    with contextlib.suppress(NotFound), directory() as folder:
        if os.access(wanted.slot_id, os.F_OK, dir_fd=folder, follow_symlinks=False):
            return None
    with directory(create=True) as folder:
        try:
            # The file has no name until it is complete. If this process dies before, the kernel frees it.
            file = Descriptor.open(f"/proc/self/fd/{folder}", os.O_TMPFILE | os.O_RDWR, 0o600, owned=lock)
        except OSError as problem:
            raise _not_created(problem, wanted, folder) from None
        try:
            fd = file.fileno()
            if gid is not None:
                _give(fd, gid, path)
            with naming(path):
                os.fchmod(fd, 0o600 if gid is None else 0o660)
                reserve(fd, wanted.size, f"the slot {wanted.slot_id}")
                header = Mapping(fd, HEADER_BYTES, writable=True)
            format_slot(
                header,
                width=wanted.width,
                height=wanted.height,
                fps_num=wanted.fps_num,
                fps_den=wanted.fps_den,
                pixel_format=CODES[wanted.pixel_format],
                frame_size=wanted.frame_size,
                depth=wanted.ring_depth,
                source_type=wanted.source_type.encode(),
                slot_id=wanted.slot_id.encode(),
            )
            if lock:
                lock_owner(fd)
            try:
                # A directory descriptor, so that this is linkat, which can follow the link to the nameless file.
                os.link(f"/proc/self/fd/{fd}", wanted.slot_id, dst_dir_fd=folder, follow_symlinks=True)
            except FileExistsError:
                file.close()
                return None
            except OSError as problem:
                raise _not_created(problem, wanted, folder) from None
            try:
                ensure_semaphore(wanted.slot_id, fd)
            except BaseException as problem:
                discard(wanted.slot_id, fd)
                if isinstance(problem, OutOfSharedMemory):
                    os.ftruncate(fd, 0)
                    raise _not_created(problem, wanted, folder) from None
                raise
        except BaseException:
            file.close()
            raise
    return file


def _give(fd: int, gid: int, path: Path) -> None:
    try:
        os.fchown(fd, -1, gid)
    except PermissionError:
        raise PermissionError(
            f"{path} cannot be given to group {gid}, since this user is not a member; create it as a member or as root"
        ) from None


def _not_created(problem: OSError, wanted: SlotParameters, folder: int) -> OSError:
    """The error to raise when `problem` kept a slot from being created."""
    if problem.errno == errno.EACCES:
        return PermissionError(
            f"{slots_dir()} belongs to uid {os.fstat(folder).st_uid}, and this user may not write to it; create slots "
            "as that user or through the service, or set CUFRAMES_FRAMECACHE_DIR"
        )
    if problem.errno not in NO_ROOM:
        return OSError(
            problem.errno, f"the slot cannot be created: {problem.strerror}", str(slots_dir() / wanted.slot_id)
        )
    if isinstance(problem, OutOfSharedMemory) and os.fstat(folder).st_dev != os.stat(SEGMENT_DIR).st_dev:
        return problem  # it is about the semaphore alone
    return no_room(f"the slot {wanted.slot_id!r} with its semaphore", wanted.size + PAGE, folder)


def discard(slot_id: str, fd: int) -> None:
    """Remove the slot that was just created with the descriptor `fd`, unless its name means another file by now."""
    path = slots_dir() / slot_id  # not through a descriptor: perhaps there is none left
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            with contextlib.suppress(OSError):
                _open_semaphore(semaphore_path(slot_id), os.fstat(fd)).close()  # a stranger's is not ours to remove
                semaphore_path(slot_id).unlink()
            path.unlink()


def compare(slot: SlotInfo, wanted: dict[str, Any]) -> None:
    """Raise AlreadyExists if a slot's parameters differ from those in `wanted`, which may be only some of them."""
    there = slot.parameters._asdict()
    differing = [f"{name} is {there[name]!r}, not {value!r}" for name, value in wanted.items() if there[name] != value]
    if differing:
        raise AlreadyExists(
            f"the slot {slot.slot_id!r} exists with other parameters ({', '.join(differing)}); use those, or remove it "
            "first"
        )


def create_slot(
    slot_id: str,
    width: int,
    height: int,
    format: str = "uyvy422",
    *,
    fps: Rate = 25,
    ring_depth: int = DEFAULT_DEPTH,
    source_type: str = "",
    group: str | int | None = None,
) -> SlotInfo:
    """Create a slot, without the service.

    Parameters
    ----------
    slot_id : str
        1 to 63 characters of ``A-Z a-z 0-9 . _ -``, not beginning with a dot.
    width, height : int
        Pixels.
    format : str
        Pixel format, by FFmpeg's name or another of those in ``cuframes.formats``: uyvy422, nv12, rgb24, …
    fps : number, str or (int, int)
        Nominal frames per second: ``25``, ``59.94``, ``(60000, 1001)``.
    ring_depth : int
        Frames that the slot holds, 2 to 4096. C clients assume 120; another depth is an extension of this library.
    source_type : str
        Kind of source, shown to people: ``"sdi"``, ``"srt"``. At most 31 bytes.
    group : str or int, optional
        Members of this group may read and write the slot. Default: only this user and root may.

    Raises
    ------
    AlreadyExists
        The name is taken.
    OutOfSharedMemory
        There is too little memory. The exception's ``needed`` and ``free`` are in bytes.
    ValueError, TypeError, PermissionError
    """
    per_second = rate(fps)
    wanted = SlotParameters(
        slot_id, width, height, per_second.numerator, per_second.denominator, format, source_type, ring_depth
    ).checked()
    made = make_slot(wanted, group_id(group))
    if made is None:
        raise AlreadyExists(f"the slot {slot_id!r} exists already; remove it first, or use it")
    made.close()
    return find_slot(slot_id)


def find_slot(slot_id: str) -> SlotInfo:
    """Return the state of one slot. Changes nothing.

    Raises
    ------
    NotFound, ProtocolError, PermissionError
    """
    return info(slot_id, attach(slot_id))


def slot_names() -> list[str]:
    """Names of files that may be slots."""
    try:
        with directory() as folder, naming(slots_dir()):
            names = os.listdir(folder)
    except NotFound:
        return []
    return sorted(filter(is_slot_id, names))


def list_slots() -> list[SlotInfo]:
    """Return the state of every slot on this host that this user may read, sorted by slot_id. Changes nothing, and
    needs no service.

    Anything in the directory that is not a slot is left out. OSError means a problem of this process: for example, it
    has no descriptors left.
    """
    found = []
    for name in slot_names():
        try:
            found.append(find_slot(name))
        except CuframesError:
            pass
        except OSError as problem:
            if problem.errno in NO_DESCRIPTORS:
                raise
    return found


def remove_slot(slot_id: str) -> None:
    """Remove a slot and its semaphore, without the service.

    The writer gets Disconnected with its next frame. A reader gets Disconnected after it has read the remaining frames.
    A slot that is damaged or was never finished is removed too.

    Raises
    ------
    NotFound
        There is no such slot. Anything else of that name stays.
    PermissionError
    """
    path = slots_dir() / check_slot_id(slot_id)
    with directory() as folder:
        try:
            with naming(path):
                there = os.stat(slot_id, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"there is no slot {slot_id!r} on this host; see cuframes framecache ls") from None
        not_ours = PermissionError(
            f"the slot {path} belongs to uid {there.st_uid}, and this user may not write to its directory; remove it "
            "as that user, as root, or through the service"
        )
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
            raise not_ours
        try:
            with naming(path):
                what = _what_else(slot_id, folder, there)
        except FileNotFoundError:
            raise NotFound(f"the slot {slot_id!r} was just removed by somebody else") from None
        except PermissionError:
            raise PermissionError(
                f"{path} belongs to uid {there.st_uid}, and this user may not read it to see whether it is a slot; "
                "remove it as that user or as root"
            ) from None
        if what is not None:
            raise NotFound(
                f"there is no slot {slot_id!r} on this host: {path} is {what}; if it is not needed, remove it by hand"
            )
        # In this order: the next writer gives a slot without a semaphore a new one. An unrelated user's file stays.
        with contextlib.suppress(OSError):
            semaphore_path(slot_id).unlink()
        try:
            with naming(path):
                os.unlink(slot_id, dir_fd=folder)
        except FileNotFoundError:
            raise NotFound(f"the slot {slot_id!r} was just removed by another process") from None
        except PermissionError:
            raise not_ours from None


def _what_else(slot_id: str, folder: int, there: os.stat_result) -> str | None:
    """Say what has the name of a slot, if it is not a slot; None if it is one. A slot's file begins with the magic
    number, whatever follows. The file of an unfinished slot is empty or begins with zeros, since the magic number is
    written last.
    """
    if not stat.S_ISREG(there.st_mode):
        return KINDS.get(stat.S_IFMT(there.st_mode), "a device")
    try:
        file = Descriptor.open(slot_id, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except BlockingIOError:
        return "a file that is leased to another process"
    with file:
        size, magic = os.fstat(file.fileno()).st_size, int.from_bytes(os.pread(file.fileno(), 4, 0), "little")
    if magic == MAGIC or size == 0 or (magic == 0 and size >= HEADER_BYTES):
        return None
    return f"a file of {size} bytes that does not begin like a slot"
