"""The subscriber's side of the socket: find the publisher, shake hands, notice its end."""

import contextlib
import errno
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cuframes import _mapped
from cuframes.errors import (
    AlreadyExists,
    CuframesError,
    DeviceError,
    Disconnected,
    NoPacketRing,
    NotFound,
    ProtocolError,
    Timeout,
)
from cuframes.names import check_directory, check_peer, runtime_dirs, socket_path
from cuframes.segment import open_segment
from cuframes.session import wire
from cuframes.session.wire import ErrorCode, MessageType

__all__ = ["FEATURES", "POLL_SECONDS", "Connection", "connect", "default_name", "fetch_packets"]

log = logging.getLogger("cuframes")

FEATURES = (
    _mapped.PINS | _mapped.FUTEX | _mapped.HOST_MEMORY | _mapped.VMM_MEMORY | _mapped.OWNER_LOCK | _mapped.PASS_FD
)
POLL_SECONDS = 0.02  # how often a publisher that is not there yet is looked for
HANDSHAKE_SECONDS = 2.0
_ERRORS: dict[int, type[CuframesError]] = {
    ErrorCode.NAME_IN_USE: AlreadyExists,
    ErrorCode.DEVICE: DeviceError,
    ErrorCode.VERSION: ProtocolError,
}


class Connection:
    """A place in a publisher's ring. It lasts as long as the socket is open.

    ``descriptors`` came along (the control segment, then the pool) and are ours to close.
    """

    def __init__(
        self,
        sock: socket.socket,
        parser: wire.Parser,
        welcome: wire.Welcome,
        place: wire.Subscribed,
        descriptors: list[int],
    ) -> None:
        self.sock = sock
        self.parser = parser
        self.welcome = welcome
        self.place = place
        self.descriptors = descriptors

    def fileno(self) -> int:
        """The socket, for polling."""
        return self.sock.fileno()

    def heard(self) -> bool:
        """Read what the publisher has sent, without blocking. True: it is gone, or has said that it will be."""
        while True:
            try:
                data = self.sock.recv(wire.MAX_PAYLOAD, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self.parser.feed(data)
            while message := self.parser.next():
                if message.type == MessageType.SHUTDOWN:
                    return True
                if message.type == MessageType.ERROR:
                    log.warning("the publisher says: %s", wire.error_text(message.payload)[1])

    def request_event(self) -> int:
        """Ask for an eventfd that the publisher feeds at every frame; returns the descriptor, ours to close."""
        try:
            self.sock.sendall(wire.pack(MessageType.EVENT_FD))
        except (BrokenPipeError, ConnectionResetError):
            raise Disconnected("the publisher is gone") from None
        descriptors: list[int] = []
        _receive(self.sock, self.parser, MessageType.EVENT_FD, time.monotonic() + HANDSHAKE_SECONDS, descriptors)
        if len(descriptors) != 1:
            _close_all(descriptors)
            raise ProtocolError("the publisher sent no event descriptor")
        return descriptors[0]

    def close_descriptors(self) -> None:
        """Close what came along; what was mapped from it stays mapped."""
        _close_all(self.descriptors)
        self.descriptors = []

    def close(self) -> None:
        """Give the place up."""
        self.close_descriptors()
        with contextlib.suppress(OSError):
            self.sock.send(wire.pack(MessageType.UNSUBSCRIBE), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self.forget()

    def forget(self) -> None:
        """Close our copy of the socket without a word: what a forked child does."""
        self.sock.close()


def connect(key: str, hello: wire.Hello, timeout: float | None) -> Connection:
    """Join the publisher of `key`, waiting up to `timeout` seconds for it to appear.

    Raises
    ------
    NotFound
        None appeared.
    AlreadyExists, DeviceError, ProtocolError, CuframesError
        It refused; the message is its own.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        problem: Exception
        try:
            return _handshake(_open(key), hello)
        except (NotFound, Disconnected) as caught:  # not there yet, or just going
            problem = caught
        if deadline is not None and time.monotonic() >= deadline:
            raise problem
        time.sleep(POLL_SECONDS)


def fetch_packets(key: str) -> int:
    """A descriptor of the packet ring of `key`, from its publisher; ours to close. Takes no place in the frame ring.

    Raises
    ------
    NotFound, Disconnected
        There is no publisher of frames.
    NoPacketRing
        It shares no packets.
    """
    sock = _open(key)
    hello = wire.Hello(3, default_name(), -1, False, FEATURES)
    descriptors: list[int] = []
    welcome = _say_hello(sock, wire.Parser(), hello, time.monotonic() + HANDSHAKE_SECONDS, descriptors)
    sock.close()
    if not welcome.packets_path:
        _close_all(descriptors)
        raise NoPacketRing(f"the publisher of {key!r} shares no packets; it does after enable_packets()")
    if not welcome.features & _mapped.PASS_FD or not descriptors:
        _close_all(descriptors)
        return open_segment(welcome.packets_path, writable=False)
    *others, packets = descriptors  # the packet ring comes last
    _close_all(others)
    return packets


def default_name() -> str:
    """A name to join under: program, pid, and since two containers can have equal pids, something random."""
    program = "".join(c for c in Path(sys.argv[0] or "python").stem if c.isascii() and c.isprintable())[:14] or "python"
    return f"{program}-{os.getpid()}-{os.urandom(2).hex()}"


def _open(key: str) -> socket.socket:
    paths = [socket_path(directory, key) for directory in runtime_dirs()]
    refused = None
    for path in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            check_directory(path.parent)
            sock.connect(str(path))
            check_peer(sock, path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
        except PermissionError as problem:
            sock.close()
            refused = problem
            if problem.errno == errno.EACCES:  # connect's own, which names neither cause nor remedy
                text = f"{path} belongs to another user; its publisher can share it with group="
                refused = PermissionError(problem.errno, text)
    if refused is not None:
        raise refused
    tried = ", ".join(map(str, paths))
    raise NotFound(f"no publisher of {key!r} is running here (looked for {tried}); start one, or see `cuframes ls`")


def _handshake(sock: socket.socket, hello: wire.Hello) -> Connection:
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    parser = wire.Parser()
    descriptors: list[int] = []
    welcome = _say_hello(sock, parser, hello, deadline, descriptors)
    with _ending(sock, descriptors):
        sock.sendall(wire.pack(MessageType.SUBSCRIBE_REQ))
        place = wire.Subscribed.unpack(_receive(sock, parser, MessageType.SUBSCRIBE_RESP, deadline, descriptors))
        if place.result:
            _refused(sock, parser, place.result, deadline)
    sock.settimeout(None)
    return Connection(sock, parser, welcome, place, descriptors)


def _say_hello(
    sock: socket.socket, parser: wire.Parser, hello: wire.Hello, deadline: float, descriptors: list[int]
) -> wire.Welcome:
    """The first half of the handshake: what the publisher shares."""
    with _ending(sock, descriptors):
        with contextlib.suppress(OSError):  # it may have refused and hung up already: its reason waits to be read
            sock.sendall(hello.pack())
        welcome = wire.Welcome.unpack(_receive(sock, parser, MessageType.HELLO_RESP, deadline, descriptors))
        if welcome.result:
            _refused(sock, parser, welcome.result, deadline)
        if welcome.version != hello.version:
            raise ProtocolError(
                f"the publisher speaks protocol version {welcome.version}, this library {hello.version}"
            )
    return welcome


@contextlib.contextmanager
def _ending(sock: socket.socket, descriptors: list[int]) -> Iterator[None]:
    """Close everything when the handshake fails."""
    try:
        yield
    except BaseException as problem:
        _close_all(descriptors)
        sock.close()
        if isinstance(problem, ConnectionError) and not isinstance(problem, CuframesError):
            raise Disconnected("the publisher went away during the handshake") from None
        raise


def _receive(
    sock: socket.socket, parser: wire.Parser, kind: MessageType, deadline: float, descriptors: list[int]
) -> bytes:
    """The payload of the next message, which must be of type `kind`. Descriptors that come along are appended."""
    while True:
        while message := parser.next():
            if message.type == kind:
                return message.payload
            if message.type == MessageType.ERROR:
                raise _as_exception(*wire.error_text(message.payload))
            if message.type == MessageType.SHUTDOWN:
                raise Disconnected("the publisher is closing")
            if message.type != MessageType.PONG:
                raise ProtocolError(f"the publisher sent message type {message.type} instead of {kind.name}")
        poller = select.poll()  # not select.select: descriptors beyond 1023 are usual with many cameras
        poller.register(sock, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Timeout(f"the publisher did not answer within {HANDSHAKE_SECONDS:.0f} s")
        try:
            data = wire.receive(sock, wire.MAX_PAYLOAD, descriptors)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Disconnected("the publisher hung up during the handshake")
        parser.feed(data)


def _refused(sock: socket.socket, parser: wire.Parser, result: int, deadline: float) -> None:
    """Raise the reason that follows a response with a result."""
    try:
        payload = _receive(sock, parser, MessageType.ERROR, deadline, [])
    except Disconnected:
        payload = b""
    code, text = wire.error_text(payload) if payload else (-result, f"the publisher refused (result {result})")
    raise _as_exception(code, text)


def _as_exception(code: int, text: str) -> Exception:
    if code == ErrorCode.NOT_ALLOWED:
        return PermissionError(text)
    return _ERRORS.get(code, CuframesError)(text)


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
