"""The lock file of a name: ``<runtime directory>/<name>.lock``.

Containers that share the runtime directory need not share /dev/shm, so what says who has a key has to be where the
socket is. The rule: *whoever holds the lock of a name, and nobody else, creates, replaces or removes the socket and the
segment of that name.*

Two bytes of the file are locked for writing: OWNER by the publisher for life, MOMENT by whoever starts, or cleans up
after a dead one, while it does so. A start that meets ``cuframes gc`` waits for it; for an
owner it does not.
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
from cuframes.host.names import check_directory, make_directory

__all__ = ["KeyLock", "cleaning", "lock_path", "owner_pid"]

log = logging.getLogger("cuframes")

OWNER = (0, 1)
MOMENT = (1, 1)
MOMENT_SECONDS = 2.0  # whoever is stopped in its moment does not stop us for longer


def lock_path(directory: Path, name: str) -> Path:
    """Where the lock file of a name is."""
    return directory / f"{name}.lock"


class KeyLock:
    """The lock of a name, held until closed.

    Raises
    ------
    AlreadyExists
        A living publisher holds it.
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
        """Whether it is ours; a file that somebody has removed is made again, with its directory."""
        with self._guard:
            if self._file.closed or same_file(self.path, self._file.fileno()):
                return not self._file.closed
            try:
                make_directory(self.path.parent)
                self._check_directory()
                file = _take(self.path, self._name, 0.0)
            except (OSError, ProtocolError) as problem:
                if not self._lost:
                    log.warning("%s was removed, and cannot be made again: %s", self.path, problem)
                self._lost = True
                return False
            if self._file.closed:  # on this very thread, by a collection
                self.path.unlink(missing_ok=True)
                file.close()
                return False
            self._file, self._lost = file, False  # the old one is closed, as it is collected
            log.warning("%s was removed; it is there again", self.path)
            return True

    def _check_directory(self) -> None:
        """Refuse a directory that somebody else has made in place of ours."""
        check_directory(self.path.parent)
        if os.stat(self.path.parent).st_uid not in self._trusted:
            raise PermissionError(errno.EPERM, f"{self.path.parent} is another user's by now")

    def close(self) -> None:
        """Remove the file, if it is still ours, and let the lock go."""
        lifetime.make_all([self._unlink, self._close_file])

    def _unlink(self) -> None:
        with self._guard:
            if not self._file.closed and same_file(self.path, self._file.fileno()):
                self.path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        with self._guard:
            self._file.close()

    def forget(self) -> None:
        """Close the descriptor only: what a forked child does with its parent's lock."""
        self._file.close()


@contextlib.contextmanager
def cleaning(directory: Path, name: str) -> Iterator[bool]:
    """Keep others from starting under a name while what a dead owner left is removed; the lock file goes at last.

    False: somebody owns the name, or is just starting or cleaning up, or the file is another user's; then nothing may
    be touched.
    """
    path = lock_path(directory, name)
    with contextlib.ExitStack() as closing:
        try:
            file, _ = _open(path)
            closing.enter_context(file)
            fd = file.fileno()
            free = not is_locked(fd, *OWNER) and lock(fd, *MOMENT)
            # Looked at again: now nobody can become the owner, and the file must still have its name.
            free = free and not is_locked(fd, *OWNER) and same_file(path, fd)
        except (OSError, ProtocolError):
            free = False
        yield free
        if free and same_file(path, fd):  # a cleaner may have removed it, and a publisher have made another
            with contextlib.suppress(OSError):
                path.unlink()


def owner_pid(path: Path) -> int | None:
    """The process that holds a lock file, as its own namespace counts; 0 when not known; None: nobody holds it."""
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
    """The file, owned, and whether it was made just now. O_CREAT alone is refused for other users' files."""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path, os.O_RDWR, owned=True), False
        with contextlib.suppress(FileExistsError):
            file = Descriptor.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, owned=True)
            break
    else:
        raise AlreadyExists(f"others keep making and removing {path}")
    try:
        os.fchmod(file.fileno(), 0o600)  # the mode given at creation is subject to umask
    except BaseException:
        _discard(path, file)
        raise
    return file, True


def _discard(path: Path, file: Descriptor) -> None:
    """Remove and close a file that we have made, unless somebody has become its owner meanwhile."""
    with file, contextlib.suppress(OSError):
        fd = file.fileno()
        if lock(fd, *MOMENT) and not is_locked(fd, *OWNER) and same_file(path, fd):
            path.unlink(missing_ok=True)


def _take(path: Path, name: str, seconds: float = MOMENT_SECONDS) -> Descriptor:
    """Become the owner; returns the locked file. Waits so long for whoever is in his moment."""
    begun = time.monotonic()
    deadline = begun + seconds
    while True:
        try:
            file, made = _open(path)
        except PermissionError as problem:
            raise PermissionError(
                problem.errno,
                f"{path} belongs to another user: another publisher of {name!r}, or what is left of a dead one "
                "(cuframes gc as that user or root); use another key",
            ) from None
        try:
            fd = file.fileno()
            owned = is_locked(fd, *OWNER)
            if owned and time.monotonic() >= begun + min(seconds, INHERITED_SECONDS):
                raise AlreadyExists(
                    f"a publisher of {name!r} is running (pid {owner_pid(path) or 'unknown'}, {path} is locked); stop "
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
