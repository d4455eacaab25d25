"""The socket of a key in the runtime directory. It belongs to the holder of the key's lock."""

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
from cuframes.host.files import naming, same_file, unlink_stale

__all__ = ["Listener", "is_abandoned", "is_socket"]

log = logging.getLogger("cuframes")

BACKLOG = 128


class Listener:
    """A listening, non-blocking socket. Closing it removes its file, unless another file has replaced that file.

    Parameters
    ----------
    path : Path
        An existing socket of a dead publisher is replaced, since the caller holds the key's lock.
    gid : int or None
        A group whose members may connect too.

    Raises
    ------
    AlreadyExists
        Another process listens there (a publisher of an older version, which uses no lock file).
    FileExistsError
        The path exists and is not a socket.
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
                raise AlreadyExists(f"another process listens on {path}; stop that publisher or use another key")
            unlink_stale(path)
        self.sock, self._file = self._bind()

    def _bind(self) -> tuple[socket.SocketType, Descriptor]:
        """The socket, and its file. The file is held open so that its inode number is not reused."""
        sock = lifetime.open_socket()
        bound, file = False, None
        try:
            with naming(self.path):
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
        except BaseException:
            lifetime.close_owned(sock)
            if file is not None:
                file.close()
            if bound:
                self.path.unlink(missing_ok=True)
            raise
        return sock, file

    def look(self) -> socket.SocketType | None:
        """Bind again if the file is gone. Returns the replaced socket, which the caller must close."""
        with self._guard:  # not held while logging: a log handler may wait for a thread that closes
            if self._file.closed or same_file(self.path, self._file.fileno()):
                return None
        try:
            # Not over what somebody else has put there: it is not ours to remove.
            new = self._bind()
        except OSError as problem:
            if not self._lost:
                log.warning("%s was removed, and cannot be created again: %s", self.path, problem)
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
        log.warning("%s was removed; it has been created again", self.path)
        return old

    def close(self) -> None:
        """Remove the file and stop listening. It may be called twice."""
        lifetime.make_all([self._unlink, self._close])

    def _unlink(self) -> None:
        with self._guard:
            if not self._file.closed and same_file(self.path, self._file.fileno()):
                self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._guard:
            self.forget()

    def forget(self) -> None:
        """In a forked child: only close the descriptors."""
        self._file.close()
        lifetime.close_owned(self.sock)


def is_socket(path: os.PathLike[str]) -> bool:
    """Whether `path` exists and is a socket."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def is_abandoned(path: Path) -> bool:
    """Whether no process listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)  # a full backlog is an answer too: somebody listens
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            return True
    return False
