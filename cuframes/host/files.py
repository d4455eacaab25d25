"""Files in directories that other users can write: opening them without blocking, comparing and locking them.

The locks are open-file-description locks. Such a lock belongs to an open file. The kernel frees it when the last
descriptor and the last mapping of that open file are gone, at the latest when its process has ended.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from cuframes._native.ring_end import Descriptor
from cuframes.errors import CuframesError, ProtocolError

__all__ = [
    "OUT_OF_RESOURCES",
    "is_file",
    "is_locked",
    "lock",
    "lock_attempts",
    "may_unlink",
    "naming",
    "open_regular",
    "same_file",
    "unlink_stale",
    "unlock",
]

# A process that is killed while it starts a child leaves its locks to the child, until that runs its program: at most
# this long, in seconds.
INHERITED_SECONDS = 0.25

# This process, or the machine, lacks descriptors or memory: that says nothing about a file.
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# A link, a socket or FIFO, a directory, a device, a file on which somebody has a lease.
_NOT_REGULAR = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EAGAIN)


def open_regular(path: str | os.PathLike[str], flags: int, *, owned: bool = False) -> Descriptor:
    """Open a regular file. Does not follow links, and does not block as opening a FIFO would.

    Raises
    ------
    ProtocolError
        The path is not a regular file.
    OSError
    """
    try:
        file = Descriptor.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, owned=owned)
    except OSError as problem:
        if problem.errno not in _NOT_REGULAR:
            raise
    else:
        with contextlib.ExitStack() as refused:
            refused.enter_context(file)
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                refused.pop_all()
                return file
    raise ProtocolError(
        f"{os.fspath(path)} is not a regular file, or is leased to another process; remove it or use another key"
    )


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make kernel errors name this file, where it is used by descriptor or relative to a directory."""
    try:
        yield
    except OSError as problem:
        if problem.errno is None or isinstance(problem, CuframesError):  # one of ours, which says more
            raise
        raise OSError(problem.errno, problem.strerror, os.fspath(path)) from None


def same_file(path: str | os.PathLike[str], fd: int) -> bool:
    """Whether `path` (not the target of a link there) is still the file that `fd` has open. False for a path that
    cannot be examined, for any reason (a loop of links, a volume that is gone).
    """
    return is_file(path, os.fstat(fd))


def is_file(path: str | os.PathLike[str], file: os.stat_result) -> bool:
    """The same, for a file of which there is no descriptor, but something else that keeps its number from others."""
    try:
        return os.path.samestat(os.lstat(path), file)
    except OSError:
        return False


def may_unlink(path: str | os.PathLike[str]) -> bool:
    """Whether we may remove a file that is there, as far as that can be told without doing so: in a directory with the
    sticky bit (as /dev/shm and /tmp) only its owner may, the directory's, and root.
    """
    folder = os.path.dirname(os.fspath(path)) or "."
    try:
        owner, above = os.lstat(path).st_uid, os.stat(folder)
    except OSError:
        return False
    if above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, owner, above.st_uid):
        return False
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def unlink_stale(path: Path) -> None:
    """Remove a file that a dead process has left; it may be gone already.

    Raises
    ------
    PermissionError
        The file is another user's, in a directory where only the owner may remove files (such as /dev/shm and /tmp).
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError as problem:
        raise PermissionError(
            problem.errno,
            f"{path} was left by a dead process of another user; remove it as that user or root (cuframes gc), or "
            "use another key",
        ) from None


def _flock(kind: int, start: int, length: int) -> bytes:
    # struct flock: type, whence, start, length (0 = to the end), pid (0 for open-file-description locks)
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def lock(fd: int, start: int = 0, length: int = 0) -> bool:
    """Try to lock a range of a file for writing, without waiting. The default is the whole file."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, start, length))
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_attempts() -> Iterator[None]:
    """Yield whenever to try for a held lock: at once, and until a child that inherited it would have released it."""
    deadline = time.monotonic() + INHERITED_SECONDS
    yield
    while time.monotonic() < deadline:
        time.sleep(0.002)
        yield


def unlock(fd: int, start: int, length: int) -> None:
    """Unlock a range."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, length))


def is_locked(fd: int, start: int = 0, length: int = 0) -> bool:
    """Whether another open file has locked any part of a range. Needs only a readable descriptor."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK, start, length))
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK
