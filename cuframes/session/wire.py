"""Messages of the socket: their types, and packing and unpacking them.

A message is u32 type, u32 payload length (at most 4096), payload; little-endian throughout.
"""

import array
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from cuframes.errors import ProtocolError
from cuframes.names import printable

__all__ = ["ErrorCode", "Hello", "Message", "MessageType", "Parser", "Subscribed", "Welcome", "error", "pack"]

HEADER = struct.Struct("<II")
MAX_PAYLOAD = 4096
MAX_NAME = 31
MAX_DESCRIPTORS = 4
VERSIONS = (1, 2, 3)

_HELLO_HEAD = struct.Struct("<II")
_HELLO_TAIL = struct.Struct("<iIIQ")  # device, mode; reserved: features, 8 bytes
_WELCOME_HEAD = struct.Struct("<iIII64sI")
_WELCOME_TAIL = struct.Struct("<III")  # reserved: granted features, length of the packet ring's path, 4 bytes
_SUBSCRIBED = struct.Struct("<iIQQI")  # reserved: frame number of initial_seq, 4 bytes
_ERROR = struct.Struct("<iI")


class MessageType(IntEnum):
    """Message types of protocol version 3."""

    HELLO_REQ = 1
    HELLO_RESP = 2
    SUBSCRIBE_REQ = 3
    SUBSCRIBE_RESP = 4
    UNSUBSCRIBE = 16
    EVENT_FD = 32
    SHUTDOWN = 48
    PING = 240
    PONG = 241
    ERROR = 254


class ErrorCode(IntEnum):
    """Why a publisher refuses. ``result`` in a response is the negative of it."""

    MALFORMED = 1
    OUT_OF_ORDER = 2
    TOO_SLOW = 3
    VERSION = 4
    NAME_IN_USE = 5
    NO_PLACE = 6
    DEVICE = 7
    NOT_ALLOWED = 8
    RESOURCES = 9


class Message(NamedTuple):
    """One message as received."""

    type: int
    payload: bytes


def pack(kind: MessageType, payload: bytes = b"") -> bytes:
    """One message as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def error(code: ErrorCode, text: str) -> bytes:
    """An ERROR message."""
    raw = text.encode()[: MAX_PAYLOAD - _ERROR.size]
    return pack(MessageType.ERROR, _ERROR.pack(code, len(raw)) + raw)


def error_text(payload: bytes) -> tuple[int, str]:
    """Code and text of an ERROR message."""
    if len(payload) < _ERROR.size:
        return 0, "no reason given"
    code, length = _ERROR.unpack_from(payload)
    return code, printable(payload[_ERROR.size : _ERROR.size + length].decode("utf-8", "replace"))


# socket.send_fds and recv_fds would be the obvious choice, but Python 3.11 drops the flags that they are given.


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send bytes, with descriptors beside them; returns how many bytes went. Never raises SIGPIPE."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, limit: int, descriptors: list[int]) -> tuple[bytes, bool]:
    """Receive up to `limit` bytes; descriptors that come along are appended, closed on exec from the first moment.

    The second value says whether descriptors were lost: there were too many, or this process has no room for them.
    """
    space = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(limit, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(raw[: len(raw) - len(raw) % received.itemsize])
            descriptors += received
    return data, bool(flags & socket.MSG_CTRUNC)


class Parser:
    """Cuts a byte stream into messages; never holds more than one message and what was received with it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._bytes += data

    def next(self) -> Message | None:
        """The next whole message, or None. Raises ProtocolError when a payload length is beyond the limit."""
        if len(self._bytes) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self._bytes)
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a message of type {kind} announces {length} bytes; the limit is {MAX_PAYLOAD}")
        end = HEADER.size + length
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[HEADER.size : end])
        del self._bytes[:end]
        return Message(kind, payload)


class Hello(NamedTuple):
    """HELLO_REQ: who wants to subscribe, and what it understands."""

    version: int
    name: str
    device: int
    ordered: bool
    features: int = 0

    def pack(self) -> bytes:
        """As a message."""
        name = self.name.encode()
        tail = _HELLO_TAIL.pack(self.device, self.ordered, self.features, 0)
        return pack(MessageType.HELLO_REQ, _HELLO_HEAD.pack(self.version, len(name)) + name + tail)

    @classmethod
    def unpack(cls, payload: bytes) -> "Hello":
        """From a payload. Raises ProtocolError for anything but exactly one well-formed request."""
        if len(payload) < _HELLO_HEAD.size:
            raise ProtocolError("HELLO_REQ is too short")
        version, length = _HELLO_HEAD.unpack_from(payload)
        if not 0 < length <= MAX_NAME or len(payload) != _HELLO_HEAD.size + length + _HELLO_TAIL.size:
            raise ProtocolError(f"HELLO_REQ of {len(payload)} bytes does not hold a name of {length} (1 to {MAX_NAME})")
        raw = payload[_HELLO_HEAD.size : _HELLO_HEAD.size + length]
        device, mode, features, _ = _HELLO_TAIL.unpack_from(payload, _HELLO_HEAD.size + length)
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
    meta: bytes = bytes(64)
    path: str = ""
    features: int = 0
    packets_path: str = ""

    def pack(self) -> bytes:
        """As a message."""
        path, packets = self.path.encode(), self.packets_path.encode()
        head = _WELCOME_HEAD.pack(self.result, self.version, self.ring_size, self.ownership, self.meta, len(path))
        tail = _WELCOME_TAIL.pack(self.features, len(packets), 0)
        return pack(MessageType.HELLO_RESP, head + path + tail + packets)

    @classmethod
    def unpack(cls, payload: bytes) -> "Welcome":
        """From a payload."""
        try:
            result, version, ring_size, ownership, meta, length = _WELCOME_HEAD.unpack_from(payload)
            at = _WELCOME_HEAD.size + length
            features, packets_length, _ = _WELCOME_TAIL.unpack_from(payload, at)
            path = payload[_WELCOME_HEAD.size : at].decode()
            packets = payload[at + _WELCOME_TAIL.size :][:packets_length].decode()
        except (struct.error, UnicodeDecodeError) as problem:
            raise ProtocolError(f"the publisher's HELLO_RESP is malformed ({problem})") from None
        return cls(result, version, ring_size, ownership, meta, path, features, packets)


class Subscribed(NamedTuple):
    """SUBSCRIBE_RESP: the place in the ring. ``initial_frame_no`` is the dense number of ``initial_seq`` (ours
    only).
    """

    result: int
    bit: int = 0
    initial_seq: int = 0
    initial_frame_no: int = 0

    def pack(self) -> bytes:
        """As a message."""
        body = _SUBSCRIBED.pack(self.result, self.bit, self.initial_seq, self.initial_frame_no, 0)
        return pack(MessageType.SUBSCRIBE_RESP, body)

    @classmethod
    def unpack(cls, payload: bytes) -> "Subscribed":
        """From a payload."""
        if len(payload) != _SUBSCRIBED.size:
            raise ProtocolError(f"SUBSCRIBE_RESP has {len(payload)} bytes, not {_SUBSCRIBED.size}")
        return cls(*_SUBSCRIBED.unpack(payload)[:4])
