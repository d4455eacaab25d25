"""Getting a publisher's control segment from its socket, for when /dev/shm does not have it, or no longer has it."""

import os
import socket
import time
from pathlib import Path

from cuframes._native.control import PASS_FD
from cuframes._native.ring_end import Descriptor
from cuframes.errors import ProtocolError, Timeout
from cuframes.host.files import OUT_OF_RESOURCES
from cuframes.host.names import check_directory, check_peer
from cuframes.session import wire
from cuframes.session.wire import MessageType

__all__ = ["ask_for_segment"]

ASK_SECONDS = 0.5


def ask_for_segment(path: Path) -> Descriptor | None:
    """The control segment, for reading. It takes no place in the ring.

    None: no publisher listens there, or it refuses this user.

    Raises
    ------
    Timeout
        A process listens there, but does not answer within half a second.
    """
    descriptors: list[Descriptor] = []
    welcome, silent = None, False
    try:
        check_directory(path.parent)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ASK_SECONDS)
            sock.connect(os.fsencode(path))
            check_peer(sock, path)
            sock.sendall(wire.Hello(3, f"info-{os.urandom(6).hex()}", -1, False, PASS_FD).pack())
            welcome = _answer(sock, descriptors)
    except (TimeoutError, BlockingIOError):  # at connecting: nobody takes connections any more
        silent = True
    except ProtocolError:
        pass
    except OSError as problem:
        if problem.errno in OUT_OF_RESOURCES:
            raise
    first = descriptors.pop(0) if welcome is not None and welcome.result == 0 and descriptors else None
    for other in descriptors:
        other.close()
    if silent:
        raise Timeout(f"the process that listens on {path} does not answer; it is stopped or very busy")
    return first


def _answer(sock: socket.socket, descriptors: list[Descriptor]) -> wire.Welcome | None:
    parser = wire.Parser()
    deadline = time.monotonic() + ASK_SECONDS
    while time.monotonic() < deadline:
        data, _ = wire.receive(sock, wire.MAX_PAYLOAD, descriptors)
        if not data or len(descriptors) > wire.MAX_DESCRIPTORS:
            return None
        parser.feed(data)
        if message := parser.next():
            return wire.Welcome.unpack(message.payload) if message.type == MessageType.HELLO_RESP else None
    raise TimeoutError
