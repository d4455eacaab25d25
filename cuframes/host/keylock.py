"""The lock file of a name: ``<runtime directory>/<name>.lock``.

Containers that share the runtime directory need not share /dev/shm, so the lock of a key has to be where the socket is.
The rule: *only the holder of a name's lock creates, replaces or removes the socket and the segment of that name.*

Two bytes of the file are locked for writing. The publisher locks OWNER while it lives. A process that starts, or cleans
up after a dead publisher, locks MOMENT while it does so. A starting publisher waits for ``cuframes gc``, but not for an
owner.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cuframes._native.ring_end import Descriptor
from cuframes.errors import AlreadyExists, ProtocolError
from cuframes.host import lifetime
from cuframes.host.files import INHERITED_SECONDS, is_locked, lock, open_regular, same_file, unlink_stale, unlock
from cuframes.host.names import check_directory, make_directory, publisher_of

__all__ = ["KeyLock", "cleaning", "lock_path"]

log = logging.getLogger("cuframes")

OWNER = (0, 1)
MOMENT = (1, 1)
MOMENT_SECONDS = 2.0  # how long to wait for a process that is stopped while it holds MOMENT


def lock_path(directory: Path, name: str) -> Path:
    """Path of the lock file of a name."""
    return directory / f"{name}.lock"


class KeyLock:
    """The lock of a name, held until closed.

    Raises
    ------
    AlreadyExists
        A living publisher holds the lock.
    PermissionError
        The file belongs to another user.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.path = lock_path(directory, name)
        self._name = name
        self._guard = threading.RLock()  # the session thread looks, another thread closes
        self._lost = False
        self._trusted = {0, os.geteuid(), os.stat(directory).st_uid}
        self._file: Descriptor = _take(self.path, name)

    def look(self) -> bool:
        """Whether the name is still ours. A removed file is created again, with its directory."""
        with self._guard:
            if self._file.closed or same_file(self.path, self._file.fileno()):
                return not self._file.closed
            try:
                make_directory(self.path.parent)
                self._check_directory()
                file = _take(self.path, self._name, 0.0)
            except (OSError, ProtocolError) as problem:
                if not self._lost:
                    log.warning("%s was removed, and cannot be created again: %s", self.path, problem)
                self._lost = True
                return False
            if self._file.closed:  # on this very thread, by a collection
                self.path.unlink(missing_ok=True)
                file.close()
                return False
            self._file, self._lost = file, False  # the old one is closed, as it is collected
            log.warning("%s was removed; it has been created again", self.path)
            return True

    def _check_directory(self) -> None:
        """Refuse a directory that somebody else has made in place of ours."""
        check_directory(self.path.parent)
        if os.stat(self.path.parent).st_uid not in self._trusted:
            raise PermissionError(errno.EPERM, f"{self.path.parent} belongs to another user now")

    def close(self) -> None:
        """Remove the file, if it is still ours, and release the lock."""
        lifetime.make_all([self._unlink, self._close_file])

    def _unlink(self) -> None:
        with self._guard:
            if not self._file.closed and same_file(self.path, self._file.fileno()):
                self.path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        with self._guard:
            self._file.close()

    def forget(self) -> None:
        """In a forked child: only close the descriptor of the parent's lock."""
        self._file.close()


@contextlib.contextmanager
def cleaning(directory: Path, name: str, *, dry_run: bool = False) -> Iterator[bool]:
    """Keep publishers from starting under a name while a dead owner's files are removed; removes the lock file last. In
    a dry run an existing lock file stays.

    Yields False if the name has an owner, if another process is starting or cleaning up, or if the file is another
    user's. Then nothing may be touched.
    """
    path = lock_path(directory, name)
    made = False
    with contextlib.ExitStack() as closing:
        try:
            file, made = _open(path)
            closing.enter_context(file)
            fd = file.fileno()
            free = not is_locked(fd, *OWNER) and lock(fd, *MOMENT)
            # Looked at again: now nobody can become the owner, and the file must still have its name.
            free = free and not is_locked(fd, *OWNER) and same_file(path, fd)
        except (OSError, ProtocolError):
            free = False
        yield free
        # A cleaner may have removed the file, and a publisher may have created another.
        if free and (made or not dry_run) and same_file(path, fd):
            with contextlib.suppress(OSError):
                path.unlink()


def owner_pid(path: Path) -> int | None:
    """Pid of the process that holds a lock file, in its own namespace; 0 if not known; None if it is not held."""
    try:
        file = open_regular(path, os.O_RDONLY)
    except (OSError, ProtocolError):
        return None
    with file:
        if not is_locked(file.fileno(), *OWNER):
            return None
        said = os.pread(file.fileno(), 20, 0)
    return int(said) if said.strip().isdigit() else 0


def _open(path: Path) -> tuple[Descriptor, bool]:
    """The open file, owned, and whether it was created just now. (The kernel refuses O_CREAT for others' files.)"""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path, os.O_RDWR, owned=True), False
        with contextlib.suppress(FileExistsError):
            file = Descriptor.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, owned=True)
            break
    else:
        raise AlreadyExists(f"other processes keep creating and removing {path}; stop them or use another key")
    try:
        os.fchmod(file.fileno(), 0o600)  # the mode given at creation is subject to umask
    except BaseException:
        _discard(path, file)
        raise
    return file, True


def _discard(path: Path, file: Descriptor) -> None:
    """Remove and close a file that we have created, unless another process has become its owner meanwhile."""
    with file, contextlib.suppress(OSError):
        fd = file.fileno()
        if lock(fd, *MOMENT) and not is_locked(fd, *OWNER) and same_file(path, fd):
            path.unlink(missing_ok=True)


def _take(path: Path, name: str, seconds: float = MOMENT_SECONDS) -> Descriptor:
    """Become the owner; returns the locked file. Waits up to `seconds` for a process that holds MOMENT."""
    begun = time.monotonic()
    deadline = begun + seconds
    while True:
        try:
            file, made = _open(path)
        except PermissionError as problem:
            raise PermissionError(
                problem.errno,
                f"{path} belongs to another user, whose {publisher_of(name)} is running or has died; use another key, "
                "or run cuframes gc as that user or root",
            ) from None
        try:
            fd = file.fileno()
            owned = is_locked(fd, *OWNER)
            if owned and time.monotonic() >= begun + min(seconds, INHERITED_SECONDS):
                raise AlreadyExists(
                    f"a {publisher_of(name)} is running (pid {owner_pid(path) or 'unknown'}, {path} is locked); stop "
                    "it or use another key"
                )
            if not owned and lock(fd, *MOMENT) and lock(fd, *OWNER) and same_file(path, fd):
                if made or os.fstat(fd).st_uid == os.geteuid():
                    _sign(fd)
                    return file
                unlink_stale(path)  # another user's, who could remove it under us
        except BaseException:
            if made:
                _discard(path, file)
            file.close()
            raise
        file.close()
        if time.monotonic() > deadline:
            raise AlreadyExists(
                f"another process has been starting or cleaning up under {name!r} for {seconds:.0f} s "
                f"({path} is locked); end it or use another key"
            )
        time.sleep(0.001)


def _sign(fd: int) -> None:
    with contextlib.suppress(OSError):  # a full file system: it is for people
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    unlock(fd, *MOMENT)
