"""Shared memory files: create, size, lock, map, clean up.

A control segment and a packet ring are POSIX shared memory with a name. Their publisher holds an open-file-description
write lock on them while it lives. The kernel frees that lock when the process dies, so a successor (or ``cuframes gc``)
can tell that the name is free. The lock of the name itself (:mod:`cuframes.host.keylock`) is taken before. A pool is a
memfd without a name, sealed against resizing.

Files of other processes in /dev/shm are never mapped for examination, since their owner could truncate them meanwhile.
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
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory, ProtocolError
from cuframes.host import lifetime
from cuframes.host.files import is_locked as is_owned
from cuframes.host.files import lock as lock_owner
from cuframes.host.files import lock_attempts, open_regular, same_file, unlink_stale
from cuframes.host.keylock import KeyLock
from cuframes.host.names import SEGMENT_DIR, SEGMENT_PREFIX, check_owner, named_owner, publisher_of

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
SPARE_INODES = 2  # one file may need this many: glibc creates a semaphore under another name, and links it
# Of cgroups, by version: where they are, and the files with the limit and with what is used.
CGROUP_FILES = {
    1: (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
}
# EFBIG: more than any file of this file system can have.
NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG)


def segment_path(name: str) -> Path:
    """The file of a segment, given its POSIX name.

    Raises
    ------
    ProtocolError
        The name is not that of a segment. (It may come from a publisher.)
    """
    file = name[1:]
    if name[:1] != "/" or "/" in file or "\0" in file or file in ("", ".", ".."):
        raise ProtocolError(f"{name!r} is not a valid segment name")
    return SEGMENT_DIR / file


def reserve(fd: int, size: int, what: str) -> None:
    """Give an empty file its size, and reserve its memory.

    ``ftruncate`` would succeed on a full file system, and the first write would kill the process with SIGBUS. More than
    is available would make the kernel kill a process, perhaps another one.

    Raises
    ------
    OutOfSharedMemory
    """
    available = available_memory()
    if available is not None and size > available:
        raise OutOfSharedMemory(
            f"{what} needs {size} bytes of memory, and {available} bytes are available to this process on this host. "
            "Use a smaller ring, or give the host or the container more memory",
            size,
            available,
        )
    try:
        _allocate(fd, size)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        os.ftruncate(fd, 0)  # what was reserved is free again
        raise no_room(what, size, fd) from error


def available_memory() -> int | None:
    """Bytes that this process can still use, by the kernel's estimate and by the limits of its cgroups (containers).
    None if neither is known.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        if "MemAvailable" in fields:
            found.append(fields["MemAvailable"] + fields.get("SwapFree", 0))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, limit, used = CGROUP_FILES[1 if controllers else 2]
            for group in (Path(own), *Path(own).parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    directory = root / group.relative_to("/")
                    most, taken = (int((directory / name).read_text()) for name in (limit, used))
                    found.append(most - taken + _reclaimable(directory))
    return max(0, min(found)) if found else None


def _reclaimable(cgroup: Path) -> int:
    """Bytes of cached files, which the kernel drops for others."""
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def fill_holes(fd: int, size: int, what: str) -> None:
    """Reserve the memory of a file that already has its size: ``ftruncate``, as C programs may call it, reserves none.

    Raises
    ------
    OutOfSharedMemory
        There is not enough. Then nothing is reserved: writing until all is used would take it from everybody.
    """
    taken = os.fstat(fd).st_blocks * 512
    missing, free = size - taken, free_bytes(fd)
    if missing <= 0:
        return
    if free is None or missing <= free:
        try:
            _allocate(fd, size)
            return
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
    raise OutOfSharedMemory(
        f"{what} is sparse: of its {size} bytes {taken} are in memory, and for the rest there is no room ({free} bytes "
        "are free there). Remove it and create it again, smaller if necessary",
        missing,
        free,
    )


def _allocate(fd: int, size: int) -> None:
    for start in range(0, size, RESERVE_BYTES):
        # A signal undoes a reservation that is under way, and a profiler's timer would undo each that is tried. So
        # they wait, for a part of it at a time.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            os.posix_fallocate(fd, start, min(RESERVE_BYTES, size - start))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def no_room(what: str, needed: int, where: int | Path) -> OutOfSharedMemory:
    """The error when `what` does not fit into the file system of `where`, a path or an open file. The file system lacks
    memory, or inodes although memory is free.
    """
    there = os.statvfs(where)
    free = there.f_bavail * there.f_frsize if there.f_blocks else None
    if there.f_files and there.f_favail < SPARE_INODES:
        return OutOfSharedMemory(
            f"{what} needs a file, and the file system has no inodes left for another, though {free} bytes are free. "
            f"Remove files there (cuframes gc, cuframes framecache rm), or mount it with more than nr_inodes="
            f"{there.f_files}",
            needed,
            free,
        )
    are_free = "" if free is None else f"; {free} bytes are free there"
    return OutOfSharedMemory(
        f"{what} needs {needed} bytes of shared memory{are_free}. Free some (cuframes gc, cuframes framecache rm), use "
        "a smaller ring, or give the container more (docker run --shm-size)",
        needed,
        free,
    )


def free_bytes(fd: int) -> int | None:
    """Free bytes on the file system of an open file; None if the file system has no limit of its own."""
    there = os.fstatvfs(fd)
    return there.f_bavail * there.f_frsize if there.f_blocks else None


def create_memfd(name: str, size: int) -> tuple[Descriptor, Mapping]:
    """An anonymous pool: its file, and our writable mapping with every page touched.

    The seals make every other mapping read-only and the size final. So no holder of the descriptor can damage a frame,
    or kill this process with SIGBUS.
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
        The name refers to something else: a link, a FIFO, a directory.
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
    """The state of a segment, as seen from another process.

    ``state`` is ``"alive"``, ``"dead"`` (its owner has ended) or ``"foreign"`` (neither a frame ring of version 3 nor a
    packet ring). ``header`` is None for a foreign or unfinished segment. ``kind`` is ``"frames"``, ``"packets"`` or
    ``"unknown"``.
    """

    state: str
    kind: str
    header: dict[str, Any] | None


def inspect(fd: int) -> SegmentState:
    """Examine an open segment without changing it. The values are unchecked, and the file may change meanwhile."""
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


def remove_dead(name: str, *, dry_run: bool = False) -> bool:
    """Unlink segment `name` if its owner is dead; in a dry run, only check. Returns False if the segment is alive or
    foreign.

    Two processes may try this at once. Therefore the lock is taken first, and the name is unlinked only if it still
    refers to the locked file. Read locks of readers have no meaning here, and are ignored.
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
        if not dry_run and same_file(segment_path(name), fd):
            unlink_stale(segment_path(name))
        return True


class OwnedSegment:
    """A named segment of this process, with the lock of its name. It is created, locked, sized, zeroed and mapped.

    A segment that a dead publisher left under the same name is replaced. With `gid`, members of that group may use it
    as `group_mode` allows.

    Parameters
    ----------
    directory : Path
        The runtime directory, for the lock file.
    name : str
    size : int
    what : str
        The kind of segment, for messages.
    gid : int, optional
        A group that may use the segment too.
    group_mode : int
        The file's mode if `gid` is given.

    Raises
    ------
    AlreadyExists
        A living publisher owns the name.
    OutOfSharedMemory
    ProtocolError
        The name belongs to a file that is not a segment of this library.
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
            try:
                self._file = self._create(name)
            except OSError as problem:
                if problem.errno not in NO_ROOM or isinstance(problem, CuframesError):
                    raise
                raise no_room(f"the {what} {name}", size, SEGMENT_DIR) from None
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
        raise AlreadyExists(f"other publishers keep creating {name}; stop them or use another key")

    @staticmethod
    def _taken(name: str) -> Exception:
        key = name.removeprefix(f"/{SEGMENT_PREFIX}")
        try:
            file = open_segment(name, writable=False)
        except NotFound:
            return AlreadyExists(f"another {publisher_of(key)} has just started or ended; try again")
        except ProtocolError as problem:
            return problem
        with file:
            state, _, header = inspect(file.fileno())
        if state == "foreign":
            return ProtocolError(
                f"{SEGMENT_DIR}{name} exists and is not a frame ring of version 3 or a packet ring; remove this file "
                "or use another key"
            )
        pid = header["producer_pid"] if header else "unknown"
        return AlreadyExists(f"a {publisher_of(key)} is running (pid {pid}); stop it or use another key")

    def descriptor(self, *, writable: bool) -> Descriptor:
        """A descriptor for another process. It is not a duplicate, since a duplicate would also hold the owner lock."""
        if self._file is None:
            raise ValueError(f"the {self._what} is closed")
        with contextlib.suppress(FileNotFoundError):  # no /proc
            return Descriptor.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDWR if writable else os.O_RDONLY)
        return open_segment(self.name, writable=writable)

    def look(self) -> bool:
        """Notice files that were removed from outside. A lock file is created again; if that fails, this returns False,
        and the name may belong to another process. A segment cannot get its name back, so this is logged.
        """
        with self._guard:
            gone = self._file is not None and not self._file.closed and not self._is_there(self._file)
        if gone and not self._missed:
            self._missed = True
            log.warning(
                "%s%s was removed by another process (logind's RemoveIPC?); this %s is no longer listed, and only "
                "subscribers of this library can join, until its publisher is restarted",
                SEGMENT_DIR,
                self.name,
                self._what,
            )
        return self.key_lock.look()

    def close(self) -> None:
        """Remove the name if it is still ours, then release the locks. The mapping lives as long as it is used."""
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
        """In a forked child: only close the descriptors of the parent's segment."""
        if self._file is not None:
            self._file.close()
        self.key_lock.forget()

    def _is_there(self, file: Descriptor) -> bool:
        return same_file(segment_path(self.name), file.fileno())
