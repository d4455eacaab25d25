"""Where packets can be pushed to: what FFmpeg must be told for each kind of URL."""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

import av

from cuframes.errors import printable
from cuframes.media.muxing import MPEGTS_OPTIONS
from cuframes.media.sources.urls import hide_password

__all__ = ["Destination", "destination", "shown"]

# By the scheme: FFmpeg's name of the container's format.
FORMATS = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "flv",
    "rtmps": "flv",
    "http": "mpegts",
    "https": "mpegts",
    "udp": "mpegts",
    "tcp": "mpegts",
    "srt": "mpegts",
    "rist": "mpegts",
}
OPTIONS = {
    "rtsp": {"rtsp_transport": "tcp"},
    "flv": {"flush_packets": "1", "flvflags": "no_duration_filesize"},
    "mpegts": MPEGTS_OPTIONS,
}


class Destination(NamedTuple):
    """A URL, the format for it, and options of FFmpeg."""

    url: str
    format: str
    options: dict[str, str]


def destination(url: str, format: str | None = None, options: dict[str, str] | None = None) -> Destination:
    """What FFmpeg needs to know.

    Parameters
    ----------
    url : str
        ``rtsp://``, ``rtmp://``, ``http://``, ``udp://``, … A URL that ends in ``/whip`` is taken for WebRTC.
    format : str, optional
        FFmpeg's name of another format than is usual for the scheme.
    options : dict, optional
        FFmpeg's options, which come before the usual ones.

    Raises
    ------
    ValueError
        FFmpeg cannot do this.
    """
    parts = urlsplit(url)
    if parts.scheme not in FORMATS or not re.match(r"\w+://.", url):
        raise ValueError(f"packets can be pushed to URLs of {', '.join(FORMATS)}; {shown(url)!r} is none of them")
    whip = parts.scheme in ("http", "https") and parts.path.rstrip("/").endswith("/whip")
    format = format or ("whip" if whip else FORMATS[parts.scheme])
    if format not in av.formats_available:
        raise ValueError(
            f"PyAV's FFmpeg has no format {format!r}; "
            + ("a newer PyAV has: pip install -U av" if format == "whip" else "give another one with --format-name")
        )
    if parts.scheme == "udp" and "pkt_size=" not in parts.query:
        url += f"{'&' if parts.query else '?'}pkt_size=1316"  # seven packets of a transport stream
    return Destination(url, format, OPTIONS.get(format, {}) | (options or {}))


def shown(url: str) -> str:
    """A URL for logs: without its passwords, and without control characters."""
    return printable(hide_password(url))
