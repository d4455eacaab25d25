"""Telling systemd how a command stands (sd_notify)."""

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(text: str) -> None:
    """Send lines such as ``READY=1`` to the service manager, if there is one that listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        sock.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
