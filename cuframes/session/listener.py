"""The socket of a key in the runtime directory. It belongs to whoever holds the key's lock."""

import contextlib
import logging
import os
import socket
import stat
import threading
from pathlib import Path

from cuframes._native.ring_end import Descriptor
from cuframes.errors import AlreadyExists
from cuframes.host import lifetime
from cuframes.host.files import same_file, unlink_stale

__all__ = ["Listener", "is_abandoned", "is_socket"]

log = logging.getLogger("cuframes")

BACKLOG = 128


class Listener:
    """A listening socket, non-blocking. Its file is removed when it is closed, if it is still the one that was made.

    Parameters
    ----------
    path : Path
        What a dead publisher left there is replaced: the caller holds the key's lock.
    gid : int or None
        A group that may connect too.

    Raises
    ------
    AlreadyExists
        Somebody listens there (an older version, which knows no lock file).
    FileExistsError
        Something else is there.
    """

    def __init__(self, path: Path, gid: int | None) -> None:
        self.path = path
        self._gid = gid
        self._lost = False
        self._guard = threading.RLock()  # the session thread looks, and closes at its end; another closes as well
        if os.path.lexists(path):
            if not is_socket(path):
                raise FileExistsError(f"{path} exists and is not a socket; remove it")
            if not is_abandoned(path):
                raise AlreadyExists(f"somebody listens on {path}; stop that publisher or use another key")
            unlink_stale(path)
        self.sock, self._file = self._bind()

    def _bind(self) -> tuple[socket.socket, Descriptor]:
        """The socket, and its file, held open so that its inode number is not given to another."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        lifetime.own(sock)
        bound, file = False, None
        try:
            sock.bind(os.fsencode(self.path))
            bound = True
            file = Descriptor.open(self.path, os.O_PATH | os.O_NOFOLLOW)
            # Through the open file: others who may write to the directory can put something else under the name.
            found, made = os.fstat(file.fileno()), f"/proc/self/fd/{file.fileno()}"
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
                bound = False
                raise FileExistsError(f"{self.path} was replaced while it was made; see who may write to its directory")
            if self._gid is not None:
                os.chown(made, -1, self._gid)
            os.chmod(made, 0o600 if self._gid is None else 0o660)
            sock.listen(BACKLOG)  # nobody can connect before
            sock.setblocking(False)
        except BaseException:
            lifetime.close_owned(sock)
            if file is not None:
                file.close()
            if bound:
                self.path.unlink(missing_ok=True)
            raise
        return sock, file

    def look(self) -> socket.socket | None:
        """Bind again if the file is gone; returns the socket that was replaced, the caller's to close."""
        with self._guard:  # never while something is logged: a log handler may wait for whoever closes
            if self._file.closed or same_file(self.path, self._file.fileno()):
                return None
        try:
            # Not over what somebody else has put there: it is not ours to remove.
            new = self._bind()
        except OSError as problem:
            if not self._lost:
                log.warning("%s was removed, and cannot be made again: %s", self.path, problem)
            self._lost = True
            return None
        with self._guard:
            if self._file.closed:  # meanwhile
                self.path.unlink(missing_ok=True)
                new[1].close()
                return new[0]
            old = self.sock
            self._file.close()
            self.sock, self._file = new
        self._lost = False
        log.warning("%s was removed; it is there again", self.path)
        return old

    def close(self) -> None:
        """Remove the file and stop listening. Twice is fine."""
        lifetime.make_all([self._unlink, self._close])

    def _unlink(self) -> None:
        with self._guard:
            if not self._file.closed and same_file(self.path, self._file.fileno()):
                self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._guard:
            self.forget()

    def forget(self) -> None:
        """Close the descriptors only: what a forked child does."""
        self._file.close()
        lifetime.close_owned(self.sock)


def is_socket(path: os.PathLike[str]) -> bool:
    """Whether `path` exists and is a socket."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def is_abandoned(path: Path) -> bool:
    """Whether nobody listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)  # a full backlog is an answer too: somebody listens
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            return True
    return False
