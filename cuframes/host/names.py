"""Names on this host, and which users to trust: keys, segments, sockets, the runtime directory, groups, texts.

A subscriber looks for a publisher's socket in the runtime directory, so a user who can create files there can pose as a
publisher. The rules are: A runtime directory is used only if no other user can replace files in it
(:func:`check_directory`). A publisher creates its files only in a directory of its own user or root
(:func:`runtime_dir`). A subscriber checks the user that answers (:func:`check_peer`), and the owner of a file that it
opens by name (:func:`check_owner`). Owner, group and mode of a directory that cuframes did not create are not changed.
"""

import contextlib
import errno
import functools
import grp
import logging
import operator
import os
import re
import socket
import stat
import struct
from collections.abc import Collection
from pathlib import Path

from cuframes._native.control import MAX_KEY

__all__ = [
    "check_directory",
    "check_key",
    "check_owner",
    "check_peer",
    "group_id",
    "is_name",
    "make_directory",
    "named_directory",
    "named_owner",
    "packets_name",
    "peer_credentials",
    "peer_groups",
    "publisher_of",
    "runtime_dir",
    "runtime_dirs",
    "segment_name",
    "socket_path",
]

log = logging.getLogger("cuframes")


SEGMENT_DIR = Path("/dev/shm")
SEGMENT_PREFIX = "cuframes-"
PACKETS_SUFFIX = "-packets"
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}", re.ASCII)
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY + len(PACKETS_SUFFIX)}}}", re.ASCII)
SO_PEERGROUPS = 59

_made: set[tuple[int, int]] = set()  # directories that this process has made


def check_key(key: str) -> str:
    """Return `key`, or raise before it becomes part of a path.

    Raises
    ------
    ValueError
        Unless it is 1 to 63 characters of ``A-Z a-z 0-9 _ -``.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, not {type(key).__name__}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key must be 1 to {MAX_KEY} characters of A-Z a-z 0-9 _ -, not {key!r}")
    return key


def is_name(name: str) -> bool:
    """Whether this is a valid name of a publisher's files: a key, or a key with the suffix of packet rings."""
    return _NAME.fullmatch(name) is not None


def segment_name(key: str) -> str:
    """POSIX name of the control segment."""
    return f"/{SEGMENT_PREFIX}{check_key(key)}"


def packets_name(key: str) -> str:
    """POSIX name of the packet ring."""
    return segment_name(key) + PACKETS_SUFFIX


def publisher_of(name: str) -> str:
    """The publisher that owns a name (a key, or a key with :data:`PACKETS_SUFFIX`), for messages."""
    if name.endswith(PACKETS_SUFFIX):
        return f"publisher of packets of {name.removesuffix(PACKETS_SUFFIX)!r}"
    return f"publisher of {name!r}"


def runtime_dirs() -> list[Path]:
    """Directories where sockets may be, in order of preference."""
    dirs = _own_dirs()
    if not os.environ.get("CUFRAMES_RUNTIME_DIR"):
        # A subscriber from cron or su finds the publisher of a login session too.
        dirs.insert(1, Path(f"/run/user/{os.getuid()}/cuframes"))
    return list(dict.fromkeys(dirs))


def _own_dirs() -> list[Path]:
    """Directories where a publisher may create its socket."""
    explicit = os.environ.get("CUFRAMES_RUNTIME_DIR")
    if explicit:
        return [named_directory(explicit)]
    session = os.environ.get("XDG_RUNTIME_DIR")
    private = Path(f"/tmp/cuframes-{os.getuid()}")
    return [Path("/run/cuframes"), *([named_directory(session) / "cuframes"] if session else []), private]


@functools.cache
def named_directory(path: str) -> Path:
    """A directory that an environment variable names, as an absolute path. A relative one begins in the directory in
    which this process was when it first asked: a program may go elsewhere (as daemons do), its files may not.
    """
    return Path(path).absolute()


def runtime_dir(gid: int | None = None) -> Path:
    """The first runtime directory in which this process may create files; created with mode 0700 if necessary.

    With `gid`, a directory that is created here gets mode 0711, so members of that group can pass through it. They
    cannot list it, and each socket has its own group.

    Raises
    ------
    OSError
        There is no such directory; the message says which were tried.
    """
    reasons = []
    for path in _own_dirs():
        try:
            make_directory(path)
            check_directory(path)
            there = path.stat()
            # Its owner could replace our socket.
            if there.st_uid not in (os.geteuid(), 0):
                reasons.append(f"{path}: belongs to uid {there.st_uid}")
            elif not os.access(path, os.W_OK | os.X_OK):
                reasons.append(f"{path}: not writable")
            else:
                if gid is not None:
                    _let_through(path, there, gid)
                return path
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
    raise PermissionError(
        f"no directory for sockets ({'; '.join(reasons)}); set CUFRAMES_RUNTIME_DIR to a directory that you can write"
    )


def make_directory(path: Path) -> None:
    """Create a runtime directory, unless it exists, private under any umask; an explicit one with its parents."""
    if os.path.lexists(path):
        return
    if os.environ.get("CUFRAMES_RUNTIME_DIR"):
        for parent in reversed(path.parents):
            with contextlib.suppress(FileExistsError):
                parent.mkdir(0o755)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        there = _set_mode(path, 0o700)
        _made.add((there.st_dev, there.st_ino))


def _set_mode(path: Path, mode: int, wanted: os.stat_result | None = None) -> os.stat_result:
    """Set the mode of a directory of ours; returns what it is. Only of the one that is `wanted`, or, by default, of the
    very directory at `path`: whoever may write to its parent can put something else there at any moment.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if wanted is None else 0))
    try:
        there = os.fstat(fd)
        same = wanted is None or (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
        if there.st_uid != os.geteuid() or not same:
            raise PermissionError(errno.EPERM, f"{path} was replaced while it was made")
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)
    return there


def _let_through(path: Path, there: os.stat_result, gid: int) -> None:
    if there.st_mode & stat.S_IXOTH or (there.st_gid == gid and there.st_mode & stat.S_IXGRP):
        return
    # A directory of a default name that looks as we make them is ours, whichever process made it.
    ours = not os.environ.get("CUFRAMES_RUNTIME_DIR") and stat.S_IMODE(there.st_mode) == 0o700
    if there.st_uid == os.geteuid() and (ours or (there.st_dev, there.st_ino) in _made):
        _set_mode(path, 0o711, there)
    else:
        log.warning(
            "members of group %d cannot pass through %s (mode %04o), so they cannot subscribe; chmod o+x it, or change "
            "its group",
            gid,
            path,
            stat.S_IMODE(there.st_mode),
        )


def check_directory(path: Path) -> None:
    """Refuse a runtime directory in which another user could replace a socket, or that another user may have created.

    Raises
    ------
    PermissionError
        The directory is a link of another user, or is world-writable without the sticky bit. Or it belongs neither to
        this user nor to root, in a place where every user can create directories (this does not apply to the directory
        that CUFRAMES_RUNTIME_DIR names). Or CUFRAMES_RUNTIME_DIR names it and this process cannot enter it.
    FileNotFoundError, NotADirectoryError
        The directory does not exist. A default directory that this process cannot enter is treated the same way.
    """
    explicit = bool(os.environ.get("CUFRAMES_RUNTIME_DIR"))
    trusted = (os.geteuid(), 0)
    try:
        link = path.lstat()
        there = path.stat()
        above = path.parent.stat()
    except PermissionError as problem:
        if explicit:
            raise
        raise FileNotFoundError(problem.errno, "it cannot be examined", str(path)) from None
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in trusted:
        raise PermissionError(errno.EPERM, f"{path} is a link created by uid {link.st_uid}; remove it")
    if not stat.S_ISDIR(there.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
    if there.st_mode & stat.S_IWOTH and not there.st_mode & stat.S_ISVTX:
        raise PermissionError(errno.EPERM, f"{path} is world-writable without the sticky bit; chmod o-w or +t it")
    if not explicit and above.st_mode & stat.S_IWOTH and there.st_uid not in trusted:
        raise PermissionError(
            errno.EPERM, f"{path} belongs to uid {there.st_uid}; remove it, or set CUFRAMES_RUNTIME_DIR"
        )
    if not os.access(path, os.X_OK):
        if not explicit:
            raise FileNotFoundError(errno.EACCES, "it cannot be entered", str(path))
        raise PermissionError(errno.EPERM, f"{path} belongs to another user; its publisher can share it with group=")


def check_peer(sock: socket.SocketType, path: Path) -> None:
    """Refuse a listener of an untrusted user: every user who can create a socket there can pose as a publisher.

    Trusted are this process's user, root, the directory's owner, a member of its group if the group may write there,
    and the owner of a socket that is shared only with a group of this process (``group=``).

    Raises
    ------
    PermissionError
    FileNotFoundError
        The socket was removed meanwhile.
    """
    _, uid, _ = peer_credentials(sock)
    directory = path.parent.stat()
    if uid in (os.geteuid(), 0, directory.st_uid):
        return
    if directory.st_mode & stat.S_IWGRP and directory.st_gid in peer_groups(sock):
        return
    there = path.lstat()
    ours = {os.getegid(), *os.getgroups()}
    if there.st_uid == uid and there.st_gid in ours and there.st_mode & 0o066 == 0o060:
        return
    raise PermissionError(
        errno.EPERM,
        f"uid {uid} listens on {path} and is not trusted there; its publisher can share the socket with group=",
    )


def check_owner(there: os.stat_result, path: Path, entrusted: Collection[int], remedy: str) -> None:
    """Refuse a file of another user, as :func:`check_peer` does a listener: it must be ours, root's, of somebody who is
    `entrusted`, or shared with a group of ours alone (``group=``).

    Raises
    ------
    PermissionError
    """
    ours = {os.getegid(), *os.getgroups()}
    shared = there.st_gid in ours and there.st_mode & stat.S_IRGRP and not there.st_mode & stat.S_IRWXO
    if there.st_uid not in (os.geteuid(), 0, *entrusted) and not shared:
        raise PermissionError(
            errno.EPERM, f"{path} belongs to uid {there.st_uid}, which is not entrusted with it; {remedy}"
        )


def named_owner() -> set[int]:
    """The owner of the runtime directory that CUFRAMES_RUNTIME_DIR names: whoever names it trusts him."""
    explicit = os.environ.get("CUFRAMES_RUNTIME_DIR")
    if explicit:
        with contextlib.suppress(OSError):
            path = named_directory(explicit)
            check_directory(path)
            return {path.stat().st_uid}
    return set()


def peer_credentials(sock: socket.SocketType) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process at the other end; for a listener, those at the time when it began to listen."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("iII", raw)
    return pid, uid, gid


def peer_groups(sock: socket.SocketType) -> set[int]:
    """The peer's groups, including supplementary groups unless there are more than 256 (Python reads 1 KiB)."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        raw = b""
    return {peer_credentials(sock)[2], *struct.unpack(f"{len(raw) // 4}I", raw)}


def socket_path(directory: Path, key: str) -> Path:
    """Path of the publisher's socket. Unix limits it to 107 bytes."""
    path = directory / f"{check_key(key)}.sock"
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"the socket path {path} is longer than 107 bytes; set CUFRAMES_RUNTIME_DIR to a shorter one")
    return path


def group_id(group: str | int | None) -> int | None:
    """The number of a group of users.

    Raises
    ------
    ValueError
        There is no group of this name, or the number is out of range.
    TypeError
    """
    if group is None:
        return None
    if isinstance(group, str):
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {group!r} on this host") from None
    if isinstance(group, bool) or not hasattr(group, "__index__"):
        raise TypeError(f"group must be a name or a number, not {type(group).__name__}")
    number = operator.index(group)
    # The largest one means "leave it as it is" to chown.
    if not 0 <= number < 2**32 - 1:
        raise ValueError(f"a group's number must be 0 to {2**32 - 2}, not {number}")
    return number
