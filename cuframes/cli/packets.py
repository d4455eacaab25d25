"""Readers of packets for commands: their errors name the options of commands."""

from typing import Literal

from cuframes.errors import NoPacketRing
from cuframes.packets import PacketReader

__all__ = ["open_reader"]


def open_reader(key: str, start: Literal["keyframe", "oldest"], timeout: float) -> PacketReader:
    """A reader of the packets of a key, waiting up to `timeout` seconds for its publisher.

    Raises
    ------
    NotFound, NoPacketRing, Timeout, ProtocolError, PermissionError
    """
    try:
        return PacketReader(key, start, connect_timeout=timeout)
    except NoPacketRing:
        raise NoPacketRing(
            f"the publisher of {key!r} shares no packets; start it with `cuframes publish {key} --packets …`, "
            "or let it call enable_packets()"
        ) from None
