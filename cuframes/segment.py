"""Shared memory files: create, size, lock, map, clean up.

A control segment and a packet ring are POSIX shared memory with a name. Their publisher holds an open-file-description
write lock on them for life; the kernel frees that lock when the process dies, which is how a successor (or ``cuframes
gc``) knows that the name is up for grabs. A pool is a memfd without a name, sealed against resizing.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import Any, NamedTuple

import posix_ipc

from cuframes._mapped import FRAME_MAGIC, HEADER_BYTES, OWNER_LOCK, Mapping, describe
from cuframes._packets import PACKET_HEADER_BYTES, PACKET_MAGIC, describe_packets
from cuframes.errors import AlreadyExists, NotFound, OutOfSharedMemory, ProtocolError, SegmentTruncated
from cuframes.names import SEGMENT_DIR

__all__ = ["OwnedSegment", "SegmentState", "create_memfd", "inspect", "open_segment", "remove_dead"]

SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; Linux 5.1
PAGE = 4096


def _flock(kind: int) -> bytes:
    # struct flock: type, whence, start, length (0 = to the end), pid (0 for open-file-description locks)
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def lock_owner(fd: int) -> bool:
    """Try to become the owner of an open segment. The lock goes with the last descriptor of this open file."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_owned(fd: int) -> bool:
    """Whether somebody else holds the owner lock. Needs a readable descriptor only, and changes nothing."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK))
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK


def reserve(fd: int, size: int, what: str) -> None:
    """Give an empty file its size, and the memory with it.

    ``ftruncate`` would succeed on a full file system and end the process with SIGBUS at the first write.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        # EFBIG: more than any file of this file system can have.
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
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


def create_memfd(name: str, size: int) -> tuple[int, Mapping]:
    """An anonymous pool: its descriptor, and our writable mapping with every page touched.

    The seals make every other mapping read-only and the size final, so that no holder of the descriptor can damage a
    frame or end us with SIGBUS.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        reserve(fd, size, f"the frame pool {name}")
        mapping = Mapping(fd, size, writable=True, populate=True, guarded=False)  # nobody else has it yet
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd, mapping


def open_segment(name: str, *, writable: bool) -> int:
    """Open an existing segment by its POSIX name; returns a descriptor."""
    try:
        memory = posix_ipc.SharedMemory(name, flags=0, read_only=not writable)
    except posix_ipc.ExistentialError:
        raise NotFound(f"there is no segment {name} in {SEGMENT_DIR}") from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise PermissionError(
            f"the segment {name} belongs to another user; its publisher can share it with group="
        ) from None
    fd: int = memory.fd
    return fd


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
    """Look at an open segment without changing anything."""
    size = os.fstat(fd).st_size
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
    with contextlib.suppress(SegmentTruncated):  # it got shorter just now
        if magic == PACKET_MAGIC and size >= PACKET_HEADER_BYTES:
            return "packets", describe_packets(Mapping(fd, size))
        if magic == FRAME_MAGIC and size >= HEADER_BYTES:
            return "frames", describe(Mapping(fd, HEADER_BYTES))
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
    that was locked.
    """
    try:
        fd = open_segment(name, writable=True)
    except NotFound:
        return True
    try:
        if not lock_owner(fd) or inspect(fd).state != "dead":
            return False
        if _same_file(name, fd):
            unlink(name)
        return True
    finally:
        os.close(fd)


def unlink(name: str) -> None:
    """Remove the name; mappings live on."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def _same_file(name: str, fd: int) -> bool:
    try:
        there = os.stat(SEGMENT_DIR / name[1:])
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


class OwnedSegment:
    """A named segment of our own: created, locked, sized and mapped; zero-filled.

    A segment that a dead publisher left under the same name is replaced. With `gid` members of that group may use it as
    far as `mode` says.

    Raises
    ------
    AlreadyExists
        A living publisher owns the name.
    OutOfSharedMemory
    ProtocolError
        The name belongs to something that is not ours.
    """

    def __init__(self, name: str, size: int, *, what: str, gid: int | None = None, mode: int = 0o660) -> None:
        self.name = name
        self.fd = self._create(name)
        try:
            if gid is not None:
                os.fchown(self.fd, -1, gid)
                os.fchmod(self.fd, mode)  # the mode given at creation is subject to umask
            reserve(self.fd, size, f"the {what} {name}")
            # Not through the locked descriptor: a mapping keeps its open file, and so the lock, alive, and a forked
            # child inherits mappings.
            fd = self.descriptor(writable=True)
            try:
                self.mapping = Mapping(fd, size, writable=True, populate=True)
            finally:
                os.close(fd)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _create(name: str) -> int:
        for _ in range(10):
            try:
                fd: int = posix_ipc.SharedMemory(name, flags=posix_ipc.O_CREX, mode=0o600, size=0).fd
            except posix_ipc.ExistentialError:
                if not remove_dead(name):
                    raise OwnedSegment._taken(name) from None
                continue
            # Somebody may have taken the new, still unlocked file for a dead one; then the name is theirs.
            if lock_owner(fd) and _same_file(name, fd):
                return fd
            os.close(fd)
        raise AlreadyExists(f"other publishers keep creating {name}; only one can own a key")

    @staticmethod
    def _taken(name: str) -> Exception:
        key = name.removeprefix("/cuframes-")
        try:
            fd = open_segment(name, writable=False)
        except NotFound:
            return AlreadyExists(f"another publisher of {key!r} was just there; try again")
        try:
            state, _, header = inspect(fd)
        finally:
            os.close(fd)
        if state == "foreign":
            return ProtocolError(
                f"{SEGMENT_DIR}{name} exists and is not a frame ring of version 3 or a packet ring; remove that file "
                "or use another key"
            )
        pid = header["producer_pid"] if header else "unknown"
        return AlreadyExists(f"a publisher of {key!r} is running (pid {pid}); stop it or use another key")

    def descriptor(self, *, writable: bool) -> int:
        """A descriptor to give away. Not a duplicate of ours: whoever holds one of those holds the owner lock."""
        return open_segment(self.name, writable=writable)

    def close(self) -> None:
        """Remove the name if it is still ours, then let the lock go. The mapping lives as long as it is used."""
        if self.fd < 0:
            return
        if _same_file(self.name, self.fd):
            unlink(self.name)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor only: what a forked child does with its parent's segment."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def is_socket(path: os.PathLike[str]) -> bool:
    """Whether `path` exists and is a socket."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
