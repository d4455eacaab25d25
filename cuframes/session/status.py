"""What a publisher's source is doing, for `ls` and `info`: a small file beside the socket, ``<key>.status``.

There is no room for text in a ring, and while a camera does not answer there is no ring. The process that writes the
file holds a lock on it, which the kernel releases when the process dies. So a file that is not locked says nothing.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from cuframes._native.ring_end import Descriptor
from cuframes.errors import AlreadyExists, ProtocolError, printable
from cuframes.host.files import is_locked, lock, open_regular, same_file
from cuframes.host.names import check_directory, check_key, group_id, is_name, runtime_dir, runtime_dirs

__all__ = ["SUFFIX", "SourceStatus", "StatusFile", "find_status", "is_dead_status", "list_statuses"]

SUFFIX = ".status"
MAX_BYTES = 16_384
LATEST = 2.0**35  # seconds; a moment that every calendar has
MAX_TEXT = 500  # characters of an address or an error


class SourceStatus(NamedTuple):
    """What a publisher's source is doing.

    ``state`` is ``"opening"``, ``"live"``, ``"stalled"``, ``"reconnecting"`` or ``"ended"``, ``since`` the moment when
    that began, in seconds of ``time.time()``. ``attempt`` counts the attempts to open it since it was live last.
    ``error`` is the last problem, None if there was none for a minute.
    """

    key: str
    pid: int
    source: str
    state: str
    since: float
    attempt: int
    error: str | None


class StatusFile:
    """The status of a key, until closed.

    Raises
    ------
    AlreadyExists
        Another process publishes a source under this key.
    PermissionError
        The file is another user's.
    """

    def __init__(self, key: str, group: str | int | None = None) -> None:
        self._key = check_key(key)
        self._gid = group_id(group)
        self._path = runtime_dir(self._gid) / f"{key}{SUFFIX}"
        self._file = self._open()
        self._said = b""
        self._closed = False

    def _open(self) -> Descriptor:
        mode = 0o600 if self._gid is None else 0o640
        try:
            file = Descriptor.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
        except PermissionError as problem:
            raise PermissionError(
                problem.errno,
                f"{self._path} belongs to another user; stop that publisher and remove the file as that user or root, "
                "or use another key",
            ) from None
        try:
            if not lock(file.fileno()):
                raise AlreadyExists(
                    f"another process publishes a source as {self._key!r}; stop it or use another key (see cuframes ls)"
                )
            os.ftruncate(file.fileno(), 0)
            os.fchmod(file.fileno(), mode)
            if self._gid is not None:
                os.fchown(file.fileno(), -1, self._gid)
        except BaseException:
            file.close()
            raise
        return file

    def write(self, status: SourceStatus) -> None:
        """Say how the source stands now."""
        error = None if status.error is None else status.error[:MAX_TEXT]
        said = status._replace(source=status.source[:MAX_TEXT], error=error)._asdict()
        self._said = json.dumps(said).encode().ljust(MAX_BYTES)
        self._put()

    def restore(self) -> None:
        """Write what was said last again, if the file was removed."""
        if not self._is_there():
            self._put()

    def _put(self) -> None:
        if self._closed:
            return
        if not self._is_there():
            self._file.close()
            self._file = self._open()  # if that fails, the next call tries it again
        os.pwrite(self._file.fileno(), self._said, 0)

    def _is_there(self) -> bool:
        return not self._file.closed and same_file(self._path, self._file.fileno())

    def close(self) -> None:
        """Remove the file. It may be called twice."""
        self._closed = True
        if self._is_there():
            self._path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def list_statuses() -> list[SourceStatus]:
    """The sources that living processes of this host publish, as far as this process may read that; sorted by key."""
    found: dict[str, SourceStatus] = {}
    for directory in runtime_dirs():
        try:
            check_directory(directory)
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            key = name.removesuffix(SUFFIX)
            if name.endswith(SUFFIX) and is_name(key) and (status := _read(directory / name, key)) is not None:
                found.setdefault(key, status)
    return [found[key] for key in sorted(found)]


def find_status(key: str) -> SourceStatus | None:
    """The source of one key; None if there is none, or this process may not read it."""
    check_key(key)
    for directory in runtime_dirs():
        with contextlib.suppress(OSError):
            check_directory(directory)
            if (status := _read(directory / f"{key}{SUFFIX}", key)) is not None:
                return status
    return None


def is_dead_status(path: Path) -> bool:
    """Whether a status file was left by a process that has ended."""
    try:
        with open_regular(path, os.O_RDONLY) as file:
            return not is_locked(file.fileno())
    except (OSError, ProtocolError):
        return False


def _read(path: Path, key: str) -> SourceStatus | None:
    """What a file says. Others may have written it, so it is not trusted."""
    try:
        with open_regular(path, os.O_RDONLY) as file:
            if not is_locked(file.fileno()):
                return None
            raw = os.pread(file.fileno(), MAX_BYTES, 0)
        said: Any = json.loads(raw)
        error, since = said["error"], float(said["since"])
        if not 0 <= since < LATEST:
            return None
        return SourceStatus(
            key=key,
            pid=int(said["pid"]),
            source=printable(str(said["source"])[:MAX_TEXT]),
            state=printable(str(said["state"])[:MAX_TEXT]),
            since=since,
            attempt=int(said["attempt"]),
            error=None if error is None else printable(str(error)[:MAX_TEXT]),
        )
    except (OSError, ProtocolError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
