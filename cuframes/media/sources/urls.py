"""What a source's name says: its kind, and how to open it."""

import os
import re
import shutil
import stat
from enum import Enum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cuframes.errors import SourceError

__all__ = ["Kind", "Place", "find", "hide_password"]

TEST_PICTURE = "testsrc"
LIVE_FORMATS = ("v4l2", "video4linux2", "x11grab", "kmsgrab", "fbdev", "dshow", "iec61883", "decklink")
# FFmpeg's protocols around a file; whatever else has an address is somewhere else.
FILES = ("file", "concat", "concatf", "cache", "crypto", "subfile", "data", "async", "md5")
DOWNLOADS = ("http", "https", "hls", "ftp", "sftp", "smb")
VIA_FFMPEG = ("srt", "rist")
FILE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mxf", ".gif", ".png", ".jpg", ".jpeg", ".webp")
PASSWORD = re.compile(r"(://[^/@:\s]*):[^/\s]*@")
SECRET = re.compile(r"([?&](?:passphrase|password|passwd|pwd|token)=)[^&\s]*", re.IGNORECASE)
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


class Kind(Enum):
    """How a source behaves."""

    FILE = "file"  # ends, and plays at its own rate
    DOWNLOAD = "download"  # a file if its length is known, otherwise a stream
    PIPE = "pipe"  # comes at its own pace, ends, and cannot be opened again
    STREAM = "stream"  # comes at its own pace, and comes back


class Place(NamedTuple):
    """A source: ``url`` for FFmpeg, ``format`` of its demuxer if it must be named, and ``shown`` for people."""

    url: str
    kind: Kind
    format: str | None
    shown: str
    via: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the name is that of a file."""
        return Path(urlsplit(self.url).path).suffix.lower() in FILE_SUFFIXES


def find(
    url: str, format: str | None = None, via: str | None = None, *, size: str = "1280x720", fps: str = "25"
) -> Place:
    """The place of a source, from what a user gave.

    Raises
    ------
    SourceError
        The source needs the command ``ffmpeg``, which is not installed.
    """
    shown = hide_password(url)
    if url == TEST_PICTURE:
        return Place(f"testsrc2=size={size}:rate={fps}", Kind.FILE, "lavfi", shown)
    if url == "-":
        url = "pipe:0"
    scheme = "" if os.path.exists(url) else ((SCHEME.match(url) or [""])[0].lower().rstrip(":"))
    if via is None and scheme in VIA_FFMPEG and not _knows(scheme):
        via = "ffmpeg"
    if via == "ffmpeg" and url == "pipe:0":
        raise ValueError("standard input is read without --via ffmpeg; leave it out")
    if via == "ffmpeg" and shutil.which("ffmpeg") is None:
        raise SourceError(
            f"cannot open {shown!r}: PyAV's FFmpeg has no {scheme or 'such protocol'}, and there is no ffmpeg command; "
            "install ffmpeg, or build PyAV with an FFmpeg that has it (pip install --no-binary av av)"
        )
    if format is None and url.startswith("/dev/video"):
        format = "v4l2"
    if ":" in url and not scheme:  # a file whose name looks like an address
        url = f"file:{url}"
    return Place(url, _kind(url, scheme, format), format, shown, via)


def _kind(url: str, scheme: str, format: str | None) -> Kind:
    if format in LIVE_FORMATS:
        return Kind.STREAM
    if format == "lavfi":
        return Kind.FILE
    if scheme in ("pipe", "fd"):
        return Kind.FILE if _is_regular(0) and url in ("pipe:0", "pipe:", "fd:0", "fd:") else Kind.PIPE
    if scheme in DOWNLOADS:
        return Kind.DOWNLOAD
    if scheme and scheme not in FILES:
        return Kind.STREAM
    try:
        mode = os.stat(url.removeprefix("file://").removeprefix("file:")).st_mode
    except (OSError, ValueError):
        return Kind.FILE
    return Kind.PIPE if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else Kind.FILE


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _knows(scheme: str) -> bool:
    """Whether PyAV's FFmpeg has a protocol. It refuses an unknown one before it looks at the rest of the address."""
    import av

    try:
        av.open(f"{scheme}://", timeout=1.0)
    except av.error.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, OSError, ValueError):
        pass
    return True


def hide_password(text: str) -> str:
    """A text without the passwords of addresses in it, for logs and lists."""
    return SECRET.sub(r"\1***", PASSWORD.sub(r"\1:***@", text))
