HELLO_REQ: int
HELLO_RESP: int
SUBSCRIBE_REQ: int
SUBSCRIBE_RESP: int
UNSUBSCRIBE: int
EVENT_FD: int
SHUTDOWN: int
PING: int
PONG: int
ERROR: int
ERR_MALFORMED: int
ERR_OUT_OF_ORDER: int
ERR_TOO_SLOW: int
ERR_VERSION: int
ERR_NAME_IN_USE: int
ERR_NO_PLACE: int
ERR_DEVICE: int
ERR_NOT_ALLOWED: int
ERR_RESOURCES: int
MAX_PAYLOAD: int
MAX_NAME: int
MAX_DESCRIPTORS: int
META_BYTES: int
HEADER_BYTES: int
ERROR_HEAD_BYTES: int

def pack_message(kind: int, payload: bytes) -> bytes:
    """One message: its header and payload."""

def unpack_message(data: bytes) -> tuple[int, int]:
    """(type, length of the payload) of the message at the beginning of `data`."""

def pack_hello(version: int, name: bytes, device: int, mode: int, features: int) -> bytes:
    """The payload of HELLO_REQ."""

def unpack_hello(payload: bytes) -> tuple[int, bytes, int, int, int]:
    """(version, name, device, mode, features). Raises ValueError if the payload's size does not match its contents."""

def pack_welcome(
    result: int,
    version: int,
    ring_size: int,
    ownership: int,
    meta: bytes,
    path: bytes,
    features: int,
    packets_path: bytes,
) -> bytes:
    """The payload of HELLO_RESP."""

def unpack_welcome(payload: bytes) -> tuple[int, int, int, int, bytes, bytes, int, bytes]:
    """(result, version, ring_size, ownership, meta, path, features, packets_path). Raises ValueError if the payload is
    shorter than the lengths in it require.
    """

def pack_subscribed(result: int, bit: int, initial_seq: int, initial_frame_no: int) -> bytes:
    """The payload of SUBSCRIBE_RESP."""

def unpack_subscribed(payload: bytes) -> tuple[int, int, int, int]:
    """(result, bit, initial_seq, initial_frame_no). Raises ValueError for a payload of another size."""

def pack_error(code: int, text: bytes) -> bytes:
    """The payload of ERROR."""

def unpack_error(payload: bytes) -> tuple[int, bytes]:
    """(code, text). Raises ValueError if the payload is too short."""
