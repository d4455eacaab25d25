"""What things are called on this host: keys, segments, sockets, the runtime directory, groups."""

import grp
import os
import re
from pathlib import Path

__all__ = ["check_key", "group_id", "packets_name", "runtime_dir", "runtime_dirs", "segment_name", "socket_path"]

_KEY = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)

SEGMENT_DIR = Path("/dev/shm")
SEGMENT_PREFIX = "cuframes-"
PACKETS_SUFFIX = "-packets"


def check_key(key: str) -> str:
    """Return `key`, or raise before it becomes part of a path.

    Raises
    ------
    ValueError
        Unless it is 1 to 63 characters of ``A-Z a-z 0-9 _ -``.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key must be 1 to 63 characters of A-Z a-z 0-9 _ -, not {key!r}")
    return key


def segment_name(key: str) -> str:
    """POSIX name of the control segment."""
    return f"/{SEGMENT_PREFIX}{check_key(key)}"


def packets_name(key: str) -> str:
    """POSIX name of the packet ring."""
    return segment_name(key) + PACKETS_SUFFIX


def runtime_dirs() -> list[Path]:
    """Where sockets may be, the preferred place first."""
    explicit = os.environ.get("CUFRAMES_RUNTIME_DIR")
    if explicit:
        return [Path(explicit)]
    dirs = [Path("/run/cuframes")]
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        dirs.append(Path(session) / "cuframes")
    dirs.append(Path(f"/tmp/cuframes-{os.getuid()}"))
    return dirs


def runtime_dir() -> Path:
    """The first runtime directory that we may create files in; created with mode 0700 if need be.

    Raises
    ------
    OSError
        When there is none; the message says which were tried.
    """
    reasons = []
    for path in runtime_dirs():
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Somebody else's directory in /tmp would let its owner replace our socket.
            if path.stat().st_uid not in (os.getuid(), 0):
                reasons.append(f"{path}: belongs to uid {path.stat().st_uid}")
            elif not os.access(path, os.W_OK | os.X_OK):
                reasons.append(f"{path}: not writable")
            else:
                return path
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
    raise PermissionError(
        f"no directory for sockets ({'; '.join(reasons)}); set CUFRAMES_RUNTIME_DIR to one that you can write"
    )


def socket_path(directory: Path, key: str) -> Path:
    """Path of the publisher's socket. Unix limits it to 107 bytes."""
    path = directory / f"{check_key(key)}.sock"
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"the socket path {path} is longer than 107 bytes; set CUFRAMES_RUNTIME_DIR to a shorter one")
    return path


def group_id(group: str | int | None) -> int | None:
    """The number of a group of users."""
    if group is None or isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {group!r} on this host") from None
