"""Exit status 4 instead of 3: the publisher that a command wanted to join was there, and has died."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from cuframes.cli import EXIT_STALE, fail
from cuframes.errors import CuframesError, NotFound
from cuframes.session.listing import PacketRingInfo, PublisherInfo, find_packet_ring, find_publisher

__all__ = ["reports_stale"]


def reports_stale(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command with the parameter `key` end with status 4 if the publisher of this key has died."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            command(**arguments)
        except NotFound:
            key = arguments["key"]
            found: PublisherInfo | PacketRingInfo | None = None
            if not arguments.get("slot"):
                with contextlib.suppress(CuframesError, OSError):
                    found = find_packet_ring(key)
                    found = find_publisher(key)
            if found is None or found.alive:
                raise
            fail(EXIT_STALE, f"the publisher of {key!r} has died (pid {found.pid}); start it again, or see cuframes gc")

    return run
