"""Messages of the socket: their types and contents. ``messages.h`` defines their bytes."""

import array
import socket
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from cuframes._native import messages
from cuframes._native.messages import MAX_DESCRIPTORS, MAX_NAME, MAX_PAYLOAD, META_BYTES
from cuframes._native.ring_end import Descriptor
from cuframes.errors import ProtocolError, printable

__all__ = [
    "MAX_DESCRIPTORS",
    "MAX_PAYLOAD",
    "ErrorCode",
    "Hello",
    "Message",
    "MessageType",
    "Parser",
    "Subscribed",
    "Welcome",
    "error",
    "pack",
]

VERSIONS = (1, 2, 3)


class MessageType(IntEnum):
    """Message types of protocol version 3."""

    HELLO_REQ = messages.HELLO_REQ
    HELLO_RESP = messages.HELLO_RESP
    SUBSCRIBE_REQ = messages.SUBSCRIBE_REQ
    SUBSCRIBE_RESP = messages.SUBSCRIBE_RESP
    UNSUBSCRIBE = messages.UNSUBSCRIBE
    EVENT_FD = messages.EVENT_FD
    SHUTDOWN = messages.SHUTDOWN
    PING = messages.PING
    PONG = messages.PONG
    ERROR = messages.ERROR


class ErrorCode(IntEnum):
    """Why a publisher refuses. ``result`` in a response is the negated code."""

    MALFORMED = messages.ERR_MALFORMED
    OUT_OF_ORDER = messages.ERR_OUT_OF_ORDER
    TOO_SLOW = messages.ERR_TOO_SLOW
    VERSION = messages.ERR_VERSION
    NAME_IN_USE = messages.ERR_NAME_IN_USE
    NO_PLACE = messages.ERR_NO_PLACE
    DEVICE = messages.ERR_DEVICE
    NOT_ALLOWED = messages.ERR_NOT_ALLOWED
    RESOURCES = messages.ERR_RESOURCES


class Message(NamedTuple):
    """One message as received."""

    type: int
    payload: bytes


def pack(kind: MessageType, payload: bytes = b"") -> bytes:
    """One message as bytes."""
    return messages.pack_message(kind, payload)


def error(code: ErrorCode, text: str) -> bytes:
    """An ERROR message."""
    room = MAX_PAYLOAD - messages.ERROR_HEAD_BYTES
    return pack(MessageType.ERROR, messages.pack_error(code, text.encode()[:room]))


def error_text(payload: bytes) -> tuple[int, str]:
    """Code and text of an ERROR message."""
    try:
        code, raw = messages.unpack_error(payload)
    except ValueError:
        return 0, "no reason given"
    return code, printable(raw.decode("utf-8", "replace"))


# socket.send_fds and recv_fds would be the obvious choice, but Python 3.11 drops the flags that they are given.


def send(sock: socket.SocketType, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send bytes, with descriptors beside them. Returns the number of bytes sent. Never raises SIGPIPE."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.SocketType, limit: int, arrived: list[Descriptor]) -> tuple[bytes, bool]:
    """Receive up to `limit` bytes. Descriptors sent with them are appended; they are close-on-exec from the start.

    The second value says whether descriptors were lost, because there were too many or this process has no room for
    them.
    """
    space = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, flags = Descriptor.receive(sock, limit, space, socket.MSG_CMSG_CLOEXEC, arrived)
    return data, bool(flags & socket.MSG_CTRUNC)


class Parser:
    """Cuts a byte stream into messages. It never holds more than one message and the bytes received with it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._bytes += data

    def next(self) -> Message | None:
        """The next complete message, or None. Raises ProtocolError if a payload length exceeds the limit."""
        if len(self._bytes) < messages.HEADER_BYTES:
            return None
        kind, length = messages.unpack_message(bytes(self._bytes[: messages.HEADER_BYTES]))
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a message of type {kind} announces {length} bytes; the limit is {MAX_PAYLOAD}")
        end = messages.HEADER_BYTES + length
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[messages.HEADER_BYTES : end])
        del self._bytes[:end]
        return Message(kind, payload)


class Hello(NamedTuple):
    """HELLO_REQ: the subscriber's name, and the features that it supports."""

    version: int
    name: str
    device: int
    ordered: bool
    features: int = 0

    def pack(self) -> bytes:
        """As a message."""
        payload = messages.pack_hello(self.version, self.name.encode(), self.device, self.ordered, self.features)
        return pack(MessageType.HELLO_REQ, payload)

    @classmethod
    def unpack(cls, payload: bytes) -> "Hello":
        """From a payload. Raises ProtocolError unless the payload is exactly one well-formed request."""
        try:
            version, raw, device, mode, features = messages.unpack_hello(payload)
        except ValueError as problem:
            raise ProtocolError(f"HELLO_REQ is malformed: {problem}") from None
        if not 0 < len(raw) <= MAX_NAME:
            raise ProtocolError(f"the subscriber's name has {len(raw)} bytes, not 1 to {MAX_NAME}")
        try:
            name = raw.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise ProtocolError("the subscriber's name is not UTF-8") from None
        if not name or not name.isprintable():
            raise ProtocolError("the subscriber's name is empty or not printable")
        return cls(version, name, device, mode == 1, features)


class Welcome(NamedTuple):
    """HELLO_RESP: what the publisher shares. Descriptors travel beside it."""

    result: int
    version: int = 3
    ring_size: int = 0
    ownership: int = 0
    meta: bytes = bytes(META_BYTES)
    path: str = ""
    features: int = 0
    packets_path: str = ""

    def pack(self) -> bytes:
        """As a message."""
        payload = messages.pack_welcome(
            self.result,
            self.version,
            self.ring_size,
            self.ownership,
            self.meta,
            self.path.encode(),
            self.features,
            self.packets_path.encode(),
        )
        return pack(MessageType.HELLO_RESP, payload)

    @classmethod
    def unpack(cls, payload: bytes) -> "Welcome":
        """From a payload."""
        try:
            *numbers, meta, path, features, packets = messages.unpack_welcome(payload)
            result, version, ring_size, ownership = numbers
            return cls(result, version, ring_size, ownership, meta, path.decode(), features, packets.decode())
        except ValueError as problem:
            raise ProtocolError(f"the publisher's HELLO_RESP is malformed ({problem})") from None


class Subscribed(NamedTuple):
    """SUBSCRIBE_RESP: the place in the ring. ``initial_frame_no`` is the frame number of ``initial_seq`` (not in
    plain version 3).
    """

    result: int
    bit: int = 0
    initial_seq: int = 0
    initial_frame_no: int = 0

    def pack(self) -> bytes:
        """As a message."""
        return pack(MessageType.SUBSCRIBE_RESP, messages.pack_subscribed(*self))

    @classmethod
    def unpack(cls, payload: bytes) -> "Subscribed":
        """From a payload."""
        try:
            return cls(*messages.unpack_subscribed(payload))
        except ValueError as problem:
            raise ProtocolError(f"SUBSCRIBE_RESP is malformed: {problem}") from None
