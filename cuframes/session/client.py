"""The subscriber's side of the socket: find the publisher, do the handshake, notice the publisher's end.

Nothing here blocks: joining is a generator of steps (:mod:`cuframes.host.steps`).
"""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cuframes._native.control import (
    FUTEX,
    HOST_MEMORY,
    OWNER_LOCK,
    PASS_FD,
    PINS,
    VMM_MEMORY,
)
from cuframes._native.ring_end import Descriptor
from cuframes.errors import (
    AlreadyExists,
    CuframesError,
    DeviceError,
    Disconnected,
    NoPacketRing,
    NoPlace,
    NotFound,
    ProtocolError,
    Timeout,
    Unavailable,
)
from cuframes.host import lifetime
from cuframes.host.names import check_directory, check_peer, peer_credentials, runtime_dirs, socket_path
from cuframes.host.segment import open_entrusted
from cuframes.host.steps import ANSWER_SECONDS, Expired, Pause, Steps, deadline_after, repeat, run
from cuframes.session import wire
from cuframes.session.wire import ErrorCode, MessageType

__all__ = [
    "FEATURES",
    "Connection",
    "connect",
    "default_name",
    "fetch_packets",
    "join",
]

log = logging.getLogger("cuframes")

FEATURES = PINS | FUTEX | HOST_MEMORY | VMM_MEMORY | OWNER_LOCK | PASS_FD
HANDSHAKE_SECONDS = 2.0
MESSAGES_AT_ONCE = 64
ASK_SECONDS = 0.1  # how often to ask again for an eventfd for which this process had no descriptor


_ERRORS: dict[int, type[CuframesError]] = {
    ErrorCode.NAME_IN_USE: AlreadyExists,
    ErrorCode.DEVICE: DeviceError,
    ErrorCode.VERSION: ProtocolError,
    ErrorCode.TOO_SLOW: Timeout,
    ErrorCode.NO_PLACE: NoPlace,
    ErrorCode.RESOURCES: Unavailable,
}


class Connection:
    """A place in a publisher's ring. It lasts as long as the socket is open.

    ``descriptors`` came with the handshake (the control segment, then the pool); this object closes them.
    ``event_fd`` is the eventfd to which the publisher adds 1 at every frame, or -1; it is closed with the connection.
    Any thread may call any method.
    """

    def __init__(
        self,
        sock: socket.SocketType,
        parser: wire.Parser,
        welcome: wire.Welcome,
        place: wire.Subscribed,
        descriptors: list[Descriptor],
    ) -> None:
        self.sock = sock
        self.parser = parser
        self.welcome = welcome
        self.place = place
        self.descriptors = descriptors
        self._event: Descriptor | None = None
        self._gone = False
        self._asked = False
        self._ask_after = 0.0
        self._said = False  # that descriptors were lost
        self._arrived: Callable[[int], None] | None = None
        # One thread reads the socket at a time: two would take each other's answers.
        self._reading = threading.Lock()

    @property
    def event_fd(self) -> int:
        """See above."""
        event = self._event
        return -1 if event is None or event.closed else event.fileno()

    def fileno(self) -> int:
        """The socket, for polling."""
        return self.sock.fileno()

    def read_messages(self) -> bool:
        """Read the publisher's messages, without blocking. True: the publisher has ended, or has announced its end."""
        if not self._reading.acquire(blocking=False):
            return self._gone  # another thread reads, or the one that this signal handler has interrupted
        try:
            for _ in range(MESSAGES_AT_ONCE):  # whoever sends all the time must not keep us
                if self._gone or not self._read():
                    break
        finally:
            self._reading.release()
        return self._gone

    def _read(self) -> bool:
        """Read once. False: there is nothing more to read at present."""
        descriptors: list[Descriptor] = []
        try:
            data, lost = wire.receive(self.sock, wire.MAX_PAYLOAD, descriptors)
            if lost and not self._said:
                self._said = True
                log.warning("%s", _out_of_descriptors())
            if not data:
                self._gone = True
            self.parser.feed(data)
            while message := self.parser.next():
                self._handle(message, descriptors)
        except BlockingIOError:
            return False
        except (OSError, ProtocolError) as problem:
            if not isinstance(problem, ConnectionError):
                log.warning("closing the connection to a publisher: %s", problem)
            self._gone = True
        finally:
            _close_all(descriptors)
        return not self._gone

    def _handle(self, message: wire.Message, descriptors: list[Descriptor]) -> None:
        if message.type == MessageType.SHUTDOWN:
            self._gone = True
        elif message.type == MessageType.ERROR:
            log.warning("the publisher says: %s", wire.error_text(message.payload)[1])
        elif message.type == MessageType.EVENT_FD and self.event_fd < 0:
            self._asked = False  # ask again, if the descriptor was lost
            if descriptors:
                self._asked = True
                self._event = descriptors.pop(0)
                if self._arrived is not None:
                    self._arrived(self.event_fd)
        elif message.type not in (MessageType.EVENT_FD, MessageType.PING, MessageType.PONG):
            raise ProtocolError(f"the publisher sent message type {message.type}")

    def request_event(self, arrived: Callable[[int], None] | None = None) -> None:
        """Ask for an eventfd to which the publisher adds 1 at every frame. Does not wait for it: see ``event_fd``.

        `arrived` is called with the descriptor, perhaps twice: at once if the descriptor has already come, otherwise on
        the thread that reads the answer. It is never called if the publisher does not answer. If the descriptor was
        lost, since this process had no room for it, a later call asks again.
        """
        self._arrived = arrived or self._arrived
        if not self._asked and time.monotonic() >= self._ask_after:
            self._asked = True
            self._ask_after = time.monotonic() + ASK_SECONDS
            with contextlib.suppress(OSError):  # gone, as the next look at the socket will find
                self.sock.send(wire.pack(MessageType.EVENT_FD), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        if self._arrived is not None and self.event_fd >= 0:
            self._arrived(self.event_fd)

    def close_event(self) -> None:
        """Close the eventfd."""
        self._arrived = None
        if self._event is not None:
            self._event.close()

    def close_descriptors(self) -> None:
        """Close the descriptors from the handshake; mappings made from them stay."""
        _close_all(self.descriptors)
        self.descriptors = []

    def close(self) -> None:
        """Give up the place in the ring. It may be called twice."""
        with contextlib.suppress(OSError):
            self.sock.send(wire.pack(MessageType.UNSUBSCRIBE), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self.forget()

    def forget(self) -> None:
        """In a forked child: close the descriptors without telling the publisher."""
        self._gone = True
        self.close_descriptors()
        self.close_event()
        lifetime.close_owned(self.sock)

    def __del__(self) -> None:
        # At interpreter exit this module's names may be gone.
        try:  # noqa: SIM105
            self.forget()
        except Exception:
            pass


def connect(key: str, hello: wire.Hello, timeout: float | None) -> Connection:
    """Join the publisher of `key`, waiting up to `timeout` seconds for it; errors are those of :func:`join`."""
    steps = repeat(lambda: join(key, hello))
    try:
        return run(steps, deadline_after(timeout), grace=ANSWER_SECONDS)
    except Expired as over:
        raise over.problem from None
    finally:
        steps.close()


# ---- joining ---------------------------------------------------------------------------------------------------------


def join(key: str, hello: wire.Hello) -> Steps[Connection]:
    """Join the publisher of `key`.

    Raises
    ------
    NotFound, Disconnected
        There is no publisher of `key`, or it has just ended.
    Timeout, Unavailable
        The publisher does not answer, or has no free connection.
    AlreadyExists, DeviceError, ProtocolError, CuframesError
        The publisher refused; the message is the publisher's.
    """
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    parser = wire.Parser()
    descriptors: list[Descriptor] = []
    with _ending(descriptors) as sockets:
        sock = yield from _open(key, deadline, sockets)
        welcome = yield from _say_hello(key, sock, parser, hello, deadline, descriptors)
        _send(sock, wire.pack(MessageType.SUBSCRIBE_REQ))
        payload = yield from _receive(key, sock, parser, MessageType.SUBSCRIBE_RESP, deadline, descriptors)
        place = wire.Subscribed.unpack(payload)
        if place.result:
            yield from _refused(key, sock, parser, place.result, deadline)
        return Connection(sock, parser, welcome, place, descriptors)


def fetch_packets(key: str) -> Steps[Descriptor]:
    """The packet ring of `key`, from its publisher. It takes no place in the frame ring.

    Raises
    ------
    NotFound, Disconnected
        There is no publisher of frames.
    NoPacketRing
        The publisher shares no packets.
    Timeout, Unavailable
        The publisher does not answer, or has no free connection.
    """
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    hello = wire.Hello(3, default_name(), -1, False, FEATURES)
    descriptors: list[Descriptor] = []
    with _ending(descriptors) as sockets:
        sock = yield from _open(key, deadline, sockets)
        welcome = yield from _say_hello(key, sock, wire.Parser(), hello, deadline, descriptors)
        peer = peer_credentials(sock)[1]
        lifetime.close_owned(sock)
    if not welcome.packets_path:
        _close_all(descriptors)
        raise NoPacketRing(f"the publisher of {key!r} shares no packets; it must call enable_packets() first")
    if not welcome.features & PASS_FD or not descriptors:
        return open_entrusted(welcome.packets_path, writable=False, entrusted=[peer])
    packets = descriptors.pop()  # the packet ring comes last
    _close_all(descriptors)
    return packets


def default_name() -> str:
    """A default name: program, pid, and a random part, since two containers can have equal pids."""
    program = "".join(c for c in Path(sys.argv[0] or "python").stem if c.isascii() and c.isprintable())[:14] or "python"
    return f"{program}-{os.getpid()}-{os.urandom(2).hex()}"


def _open(key: str, deadline: float, sockets: list[socket.SocketType]) -> Steps[socket.SocketType]:
    """A connected socket. Those that are made are appended to `sockets`, for the caller to close."""
    paths = [socket_path(directory, key) for directory in runtime_dirs()]
    refused = None
    for path in paths:
        sock = lifetime.open_socket()
        sockets.append(sock)
        try:
            check_directory(path.parent)
            while True:
                try:
                    sock.connect(str(path))
                    break
                except BlockingIOError:  # its backlog is full: it accepts nobody, since it is stopped or very busy
                    if time.monotonic() >= deadline:
                        raise _unanswered(key) from None
                yield Pause(-1, _unanswered(key))
            check_peer(sock, path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            lifetime.close_owned(sock)
        except PermissionError as problem:
            lifetime.close_owned(sock)
            refused = problem
            if problem.errno == errno.EACCES:  # connect's own, which names neither cause nor remedy
                text = f"{path} belongs to another user; its publisher can share it with group="
                refused = PermissionError(problem.errno, text)
        except OSError as problem:
            lifetime.close_owned(sock)
            if problem.errno not in (errno.ELOOP, errno.EPROTOTYPE):  # a link to itself, a socket of another kind
                raise
        else:
            return sock
    if refused is not None:
        raise refused
    tried = ", ".join(map(str, paths))
    raise NotFound(f"no publisher of {key!r} is running here (looked for {tried}); start one, or see `cuframes ls`")


def _unanswered(key: str) -> Timeout:
    return Timeout(f"the publisher of {key!r} is there, but does not answer: it may be stopped, or overloaded")


def _say_hello(
    key: str,
    sock: socket.SocketType,
    parser: wire.Parser,
    hello: wire.Hello,
    deadline: float,
    descriptors: list[Descriptor],
) -> Steps[wire.Welcome]:
    """The first half of the handshake: what the publisher shares."""
    with contextlib.suppress(OSError):  # it may have refused and hung up already: its reason waits to be read
        _send(sock, hello.pack())
    payload = yield from _receive(key, sock, parser, MessageType.HELLO_RESP, deadline, descriptors)
    welcome = wire.Welcome.unpack(payload)
    if welcome.result:
        yield from _refused(key, sock, parser, welcome.result, deadline)
    if welcome.version != hello.version:
        raise ProtocolError(f"the publisher speaks protocol version {welcome.version}, this library {hello.version}")
    return welcome


def _send(sock: socket.SocketType, data: bytes) -> None:
    """Send a few bytes. There is always room, since the publisher has read everything sent before."""
    if sock.send(data, socket.MSG_NOSIGNAL) != len(data):
        raise ProtocolError("the publisher does not read its messages")


@contextlib.contextmanager
def _ending(descriptors: list[Descriptor]) -> Iterator[list[socket.SocketType]]:
    """Close everything if the handshake fails or is abandoned: the descriptors, and the sockets in the list."""
    sockets: list[socket.SocketType] = []
    try:
        yield sockets
    except BaseException as problem:
        _close_all(descriptors)
        for sock in sockets:
            lifetime.close_owned(sock)
        if isinstance(problem, ConnectionError) and not isinstance(problem, CuframesError):
            raise Disconnected("the publisher went away during the handshake") from None
        raise


def _receive(
    key: str,
    sock: socket.SocketType,
    parser: wire.Parser,
    kind: MessageType,
    deadline: float,
    descriptors: list[Descriptor],
) -> Steps[bytes]:
    """The payload of the next message, which must be of type `kind`. Descriptors sent with it are appended."""
    while True:
        while message := parser.next():
            if message.type == kind:
                return message.payload
            if message.type == MessageType.ERROR:
                raise _as_exception(*wire.error_text(message.payload))
            if message.type == MessageType.SHUTDOWN:
                raise Disconnected("the publisher is closing")
            raise ProtocolError(f"the publisher sent message type {message.type} instead of {kind.name}")
        try:
            data, lost = wire.receive(sock, wire.MAX_PAYLOAD, descriptors)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _unanswered(key) from None
            yield Pause(sock.fileno(), _unanswered(key))
            continue
        except ConnectionResetError:
            data = b""
        if not data:
            raise Disconnected("the publisher hung up during the handshake")
        if lost and len(descriptors) < wire.MAX_DESCRIPTORS:
            raise _out_of_descriptors()
        if lost or len(descriptors) > wire.MAX_DESCRIPTORS:
            raise ProtocolError(f"the publisher sent more than {wire.MAX_DESCRIPTORS} descriptors")
        parser.feed(data)


def _refused(key: str, sock: socket.SocketType, parser: wire.Parser, result: int, deadline: float) -> Steps[None]:
    """Raise the error that the publisher sends after a refusal."""
    descriptors: list[Descriptor] = []
    try:
        payload = yield from _receive(key, sock, parser, MessageType.ERROR, deadline, descriptors)
    except (Disconnected, Timeout):
        payload = b""
    finally:
        _close_all(descriptors)
    code, text = wire.error_text(payload) if payload else (-result, f"the publisher refused (result {result})")
    raise _as_exception(code, text)


def _as_exception(code: int, text: str) -> Exception:
    if code == ErrorCode.NOT_ALLOWED:
        return PermissionError(text)
    return _ERRORS.get(code, CuframesError)(text)


def _out_of_descriptors() -> OSError:
    return OSError(
        errno.EMFILE,
        "descriptors from the publisher were lost: this process has as many files open as it may; close some, or raise "
        "the limit (ulimit -n)",
    )


def _close_all(descriptors: list[Descriptor]) -> None:
    for descriptor in descriptors:
        descriptor.close()
