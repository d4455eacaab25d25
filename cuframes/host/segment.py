"""Shared memory files: create, size, lock, map, clean up.

A control segment and a packet ring are POSIX shared memory with a name. Their publisher holds an open-file-description
write lock on them for life; the kernel frees that lock when the process dies, which is how a successor (or ``cuframes
gc``) knows that the name is up for grabs. The lock of the name itself (:mod:`cuframes.host.keylock`) is taken before. A
pool is a memfd without a name, sealed against resizing.

What others have put into /dev/shm is never mapped to be looked at: its owner could cut it off under us.
"""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import stat
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from cuframes._native.control import FRAME_MAGIC, HEADER_BYTES, OWNER_LOCK, describe
from cuframes._native.mapping import Mapping
from cuframes._native.packets import PACKET_HEADER_BYTES, PACKET_LOOK_BYTES, PACKET_MAGIC, describe_packets
from cuframes._native.ring_end import Descriptor
from cuframes.errors import AlreadyExists, NotFound, OutOfSharedMemory, ProtocolError
from cuframes.host import lifetime
from cuframes.host.files import is_locked as is_owned
from cuframes.host.files import lock as lock_owner
from cuframes.host.files import lock_attempts, open_regular, same_file, unlink_stale
from cuframes.host.keylock import KeyLock
from cuframes.host.names import SEGMENT_DIR, SEGMENT_PREFIX, check_owner, named_owner

__all__ = [
    "OwnedSegment",
    "SegmentState",
    "create_memfd",
    "inspect",
    "is_owned",
    "lock_owner",
    "open_entrusted",
    "open_segment",
    "remove_dead",
    "segment_path",
]

log = logging.getLogger("cuframes")

SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; Linux 5.1
PAGE = 4096
RESERVE_BYTES = 64 << 20  # at a time


def segment_path(name: str) -> Path:
    """The file of a segment, given its POSIX name.

    Raises
    ------
    ProtocolError
        It is no such name. (It may come from a publisher.)
    """
    file = name[1:]
    if name[:1] != "/" or "/" in file or "\0" in file or file in ("", ".", ".."):
        raise ProtocolError(f"{name!r} is not the name of a segment")
    return SEGMENT_DIR / file


def reserve(fd: int, size: int, what: str) -> None:
    """Give an empty file its size, and the memory with it.

    ``ftruncate`` would succeed on a full file system and end the process with SIGBUS at the first write.
    """
    try:
        for start in range(0, size, RESERVE_BYTES):
            # A signal undoes a reservation that is under way, and a profiler's timer would undo each that is tried. So
            # they wait, for a part of it at a time.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                os.posix_fallocate(fd, start, min(RESERVE_BYTES, size - start))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError as error:
        # EFBIG: more than any file of this file system can have.
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        os.ftruncate(fd, 0)  # what was reserved is free again
        free = free_bytes(fd)
        where = "" if free is None else f"; {free} bytes are free there"
        raise OutOfSharedMemory(
            f"{what} needs {size} bytes of shared memory{where}. Free some (cuframes gc), use a smaller ring, or give "
            "the container more (docker run --shm-size)",
            size,
            free,
        ) from error


def free_bytes(fd: int) -> int | None:
    """Bytes that are free on the file system of an open file; None where it has no limit of its own."""
    there = os.fstatvfs(fd)
    return there.f_bavail * there.f_frsize if there.f_blocks else None


def create_memfd(name: str, size: int) -> tuple[Descriptor, Mapping]:
    """An anonymous pool: its file, and our writable mapping with every page touched.

    The seals make every other mapping read-only and the size final, so that no holder of the descriptor can damage a
    frame or end us with SIGBUS.
    """
    file = Descriptor.memfd(name, os.MFD_ALLOW_SEALING)
    try:
        fd = file.fileno()
        reserve(fd, size, f"the frame pool {name}")
        mapping = Mapping(fd, size, writable=True, populate=True, guarded=False)  # nobody else has it yet
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        file.close()
        raise
    return file, mapping


def open_entrusted(name: str, *, writable: bool, entrusted: Collection[int] = ()) -> Descriptor:
    """Open a segment to use what is in it: as :func:`open_segment`, and refuse a stranger's (check_owner).

    Parameters
    ----------
    entrusted : collection of int
        Users who may have made it besides us, root, and the owner of CUFRAMES_RUNTIME_DIR.
    """
    file = open_segment(name, writable=writable)
    try:
        remedy = "its publisher can share it with group=; or remove it, or set CUFRAMES_RUNTIME_DIR to its publisher's"
        check_owner(os.fstat(file.fileno()), segment_path(name), {*entrusted, *named_owner()}, remedy)
    except BaseException:
        file.close()
        raise
    return file


def open_segment(name: str, *, writable: bool, owned: bool = False) -> Descriptor:
    """Open an existing segment by its POSIX name, whoever has made it.

    Raises
    ------
    NotFound, PermissionError
    ProtocolError
        The name means something else: a link, a FIFO, a directory.
    """
    try:
        return open_regular(segment_path(name), os.O_RDWR if writable else os.O_RDONLY, owned=owned)
    except FileNotFoundError:
        raise NotFound(f"there is no segment {name} in {SEGMENT_DIR}") from None
    except PermissionError as problem:
        raise PermissionError(
            problem.errno, f"the segment {name} belongs to another user; its publisher can share it with group="
        ) from None


class SegmentState(NamedTuple):
    """What a segment looks like to a stranger.

    ``state`` is ``"alive"``, ``"dead"`` (its owner is gone) or ``"foreign"`` (neither a frame ring of version 3 nor a
    packet ring); ``header`` is None for a foreign or unfinished one. ``kind`` is ``"frames"``, ``"packets"`` or
    ``"unknown"``.
    """

    state: str
    kind: str
    header: dict[str, Any] | None


def inspect(fd: int) -> SegmentState:
    """Look at an open segment without changing anything. Values are as found; the file may change meanwhile."""
    found = os.fstat(fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not stat.S_ISREG(found.st_mode) or flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        return SegmentState("foreign", "unknown", None)  # whoever sent it is no publisher
    size = found.st_size
    owned = is_owned(fd)
    if 0 < size < PACKET_HEADER_BYTES:
        return SegmentState("foreign", "unknown", None)
    kind, header = _read_header(fd, size)
    if header is None:
        # A publisher that died between creating and sizing leaves this, and one that is just starting has it locked.
        unfinished = kind == "unfinished"
        return SegmentState(("alive" if owned else "dead") if unfinished else "foreign", "unknown", None)
    if owned:
        return SegmentState("alive", kind, header)
    locks = header["locks"] if kind == "packets" else header["ext_flags"] & OWNER_LOCK
    # For a publisher that knows no lock, its process id is all there is.
    alive = not locks and _process_exists(header["producer_pid"])
    return SegmentState("alive" if alive else "dead", kind, header)


def _read_header(fd: int, size: int) -> tuple[str, dict[str, Any] | None]:
    magic = int.from_bytes(os.pread(fd, 4, 0), "little")
    if magic == 0:
        return "unfinished", None
    try:
        if magic == PACKET_MAGIC:
            return "packets", describe_packets(os.pread(fd, PACKET_LOOK_BYTES, 0), size)
        if magic == FRAME_MAGIC:
            return "frames", describe(os.pread(fd, HEADER_BYTES, 0))
    except ProtocolError:  # cut off
        pass
    return "foreign", None


def _process_exists(pid: int) -> bool:
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_dead(name: str) -> bool:
    """Unlink segment `name` if its owner is gone. False: it is alive or foreign.

    Two processes may try at once: the lock is taken first, and the name is unlinked only while it still means the file
    that was locked. Readers may have locked what they can read; that says nothing, and stops nobody.
    """
    try:
        file = open_segment(name, writable=True, owned=True)  # it may be locked here for a moment
    except NotFound:
        return True
    except ProtocolError:
        return False
    with file:
        fd = file.fileno()
        for _ in lock_attempts():
            held = not lock_owner(fd) and is_owned(fd)
            if not held:
                break
        if held or inspect(fd).state != "dead":
            return False
        if same_file(segment_path(name), fd):
            unlink_stale(segment_path(name))
        return True


class OwnedSegment:
    """A named segment of our own: created, locked, sized and mapped; zero-filled. With it the lock of its name.

    A segment that a dead publisher left under the same name is replaced. With `gid` members of that group may use it as
    far as `mode` says.

    Parameters
    ----------
    directory : Path
        The runtime directory, for the lock file.
    name : str
    size : int
    what : str
        What it is, for messages.
    gid : int, optional
        A group that may use it too.
    group_mode : int
        What it may then do.

    Raises
    ------
    AlreadyExists
        A living publisher owns the name.
    OutOfSharedMemory
    ProtocolError
        The name belongs to something that is not ours.
    """

    mapping: Mapping | None

    def __init__(
        self, directory: Path, name: str, size: int, *, what: str, gid: int | None = None, group_mode: int = 0o660
    ) -> None:
        self.name = name
        self.directory = directory
        self._what = what
        self._missed = False
        self._guard = threading.RLock()  # one thread looks, another closes
        self._file: Descriptor | None = None
        self.key_lock = KeyLock(directory, name.removeprefix(f"/{SEGMENT_PREFIX}"))
        try:
            self._file = self._create(name)
            fd = self._file.fileno()
            if gid is not None:
                os.fchown(fd, -1, gid)
            os.fchmod(fd, 0o600 if gid is None else group_mode)  # the mode given at creation is subject to umask
            reserve(fd, size, f"the {what} {name}")
            # Not through the locked descriptor: a mapping keeps its open file, and so the lock, alive, and a forked
            # child inherits mappings.
            with self.descriptor(writable=True) as mapped:
                self.mapping = Mapping(mapped.fileno(), size, writable=True, populate=True)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _create(name: str) -> Descriptor:
        path = segment_path(name)
        for _ in range(10):
            try:
                file = Descriptor.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, owned=True)
            except FileExistsError:
                if not remove_dead(name):
                    raise OwnedSegment._taken(name) from None
                continue
            try:
                # Somebody may have taken the new, still unlocked file for a dead one; then the name is theirs.
                if lock_owner(file.fileno()) and same_file(path, file.fileno()):
                    return file
            except BaseException:
                with file:
                    if same_file(path, file.fileno()):
                        path.unlink(missing_ok=True)
                raise
            file.close()
        raise AlreadyExists(f"other publishers keep creating {name}; only one can own a key")

    @staticmethod
    def _taken(name: str) -> Exception:
        key = name.removeprefix(f"/{SEGMENT_PREFIX}")
        try:
            file = open_segment(name, writable=False)
        except NotFound:
            return AlreadyExists(f"another publisher of {key!r} was just there; try again")
        except ProtocolError as problem:
            return problem
        with file:
            state, _, header = inspect(file.fileno())
        if state == "foreign":
            return ProtocolError(
                f"{SEGMENT_DIR}{name} exists and is not a frame ring of version 3 or a packet ring; remove that file "
                "or use another key"
            )
        pid = header["producer_pid"] if header else "unknown"
        return AlreadyExists(f"a publisher of {key!r} is running (pid {pid}); stop it or use another key")

    def descriptor(self, *, writable: bool) -> Descriptor:
        """A descriptor to give away. Not a duplicate of ours: whoever holds one of those holds the owner lock."""
        if self._file is None:
            raise ValueError(f"the {self._what} is closed")
        with contextlib.suppress(FileNotFoundError):  # no /proc
            return Descriptor.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDWR if writable else os.O_RDONLY)
        return open_segment(self.name, writable=writable)

    def look(self) -> bool:
        """Notice what was removed from outside. The lock file is made again (False: it cannot be, and the name may be
        another's now); a segment cannot get its name back, so that is said.
        """
        with self._guard:
            gone = self._file is not None and not self._file.closed and not self._is_there(self._file)
        if gone and not self._missed:
            self._missed = True
            log.warning(
                "%s%s was removed by somebody else (logind's RemoveIPC?); this %s is no longer listed, and only "
                "subscribers of this library can join, until its publisher is restarted",
                SEGMENT_DIR,
                self.name,
                self._what,
            )
        return self.key_lock.look()

    def close(self) -> None:
        """Remove the name if it is still ours, then let the locks go. The mapping lives as long as it is used."""
        self.mapping = None
        lifetime.make_all([self._unlink, self._close_file, self.key_lock.close])

    def _unlink(self) -> None:
        with self._guard:
            if self._file is not None and not self._file.closed and self._is_there(self._file):
                segment_path(self.name).unlink(missing_ok=True)

    def _close_file(self) -> None:
        with self._guard:
            if self._file is not None:
                self._file.close()

    def forget(self) -> None:
        """Close the descriptors only: what a forked child does with its parent's segment."""
        if self._file is not None:
            self._file.close()
        self.key_lock.forget()

    def _is_there(self, file: Descriptor) -> bool:
        return same_file(segment_path(self.name), file.fileno())
