"""Files where others may put theirs: opened without being held up by what is there, compared, and locked.

The locks are open-file-description locks. Such a lock belongs to an open file: the kernel frees it when the last
descriptor and the last mapping of that open file are gone, which is when its process has died.
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

__all__ = ["is_locked", "lock", "lock_attempts", "naming", "open_regular", "same_file", "unlink_stale", "unlock"]

# A process that is killed while it starts a child leaves its locks to the child, until that runs its program: at most
# this long, in seconds.
INHERITED_SECONDS = 0.25

# A link, a socket or FIFO, a directory, a device, a file on which somebody has a lease.
_NOT_REGULAR = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EAGAIN)


def open_regular(path: str | os.PathLike[str], flags: int, *, owned: bool = False) -> Descriptor:
    """Open a regular file. Follows no link and waits for nobody, as opening a FIFO would.

    Raises
    ------
    ProtocolError
        It is something else.
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
        f"{os.fspath(path)} is not a regular file, or leased to another process; remove it or use another key"
    )


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the kernel name this file, which is used by a descriptor, or by its name in a directory."""
    try:
        yield
    except OSError as problem:
        if problem.errno is None or isinstance(problem, CuframesError):  # one of ours, which says more
            raise
        raise OSError(problem.errno, problem.strerror, os.fspath(path)) from None


def same_file(path: str | os.PathLike[str], fd: int) -> bool:
    """Whether `path` (not what a link there points to) is still the file that `fd` has open. A path that cannot be
    looked at, for whatever reason (a loop of links, a volume that is gone), is not.
    """
    try:
        there = os.lstat(path)
    except OSError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def unlink_stale(path: Path) -> None:
    """Remove what a dead process has left; it may be gone already.

    Raises
    ------
    PermissionError
        It is another user's, in a directory where only the owner may (as /dev/shm and /tmp).
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError as problem:
        raise PermissionError(
            problem.errno,
            f"{path} is what a dead process of another user has left; remove it as that user or root (cuframes gc), or "
            "use another key",
        ) from None


def _flock(kind: int, start: int, length: int) -> bytes:
    # struct flock: type, whence, start, length (0 = to the end), pid (0 for open-file-description locks)
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def lock(fd: int, start: int = 0, length: int = 0) -> bool:
    """Try to lock a range of a file for writing, without waiting. The default is all of it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, start, length))
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_attempts() -> Iterator[None]:
    """Yields whenever a lock is to be tried: at once, and then until a child would have let an inherited lock go."""
    deadline = time.monotonic() + INHERITED_SECONDS
    yield
    while time.monotonic() < deadline:
        time.sleep(0.002)
        yield


def unlock(fd: int, start: int, length: int) -> None:
    """Give a range up."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, length))


def is_locked(fd: int, start: int = 0, length: int = 0) -> bool:
    """Whether somebody else has locked any of a range. Needs a readable descriptor only, and changes nothing."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK, start, length))
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK
