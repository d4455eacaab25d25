"""The socket's messages as bytes: packs and unpacks the structures of ``messages.h``. Values are not checked here."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cuframes._shm cimport CF_MAX_MSG_PAYLOAD, CF_MAX_NAME_LEN, cf_frame_meta


cdef extern from "cuframes/messages.h" nogil:
    enum:
        CF_MAX_DESCRIPTORS
        CF_MSG_HELLO_REQ
        CF_MSG_HELLO_RESP
        CF_MSG_SUBSCRIBE_REQ
        CF_MSG_SUBSCRIBE_RESP
        CF_MSG_UNSUBSCRIBE
        CF_MSG_EVENT_FD
        CF_MSG_SHUTDOWN
        CF_MSG_PING
        CF_MSG_PONG
        CF_MSG_ERROR
        CF_ERR_MALFORMED
        CF_ERR_OUT_OF_ORDER
        CF_ERR_TOO_SLOW
        CF_ERR_VERSION
        CF_ERR_NAME_IN_USE
        CF_ERR_NO_PLACE
        CF_ERR_DEVICE
        CF_ERR_NOT_ALLOWED
        CF_ERR_RESOURCES

    ctypedef struct cf_message:
        uint32_t type
        uint32_t length

    ctypedef struct cf_hello_head:
        uint32_t version
        uint32_t name_length

    ctypedef struct cf_hello_tail:
        int32_t device
        uint32_t mode
        uint32_t features
        uint64_t reserved

    ctypedef struct cf_welcome_head:
        int32_t result
        uint32_t version
        uint32_t ring_size
        uint32_t ownership
        cf_frame_meta meta
        uint32_t path_length

    ctypedef struct cf_welcome_tail:
        uint32_t features
        uint32_t packets_path_length
        uint32_t reserved

    ctypedef struct cf_subscribed:
        int32_t result
        uint32_t bit
        uint64_t initial_seq
        uint64_t initial_frame_no
        uint32_t reserved

    ctypedef struct cf_error_head:
        int32_t code
        uint32_t text_length


HELLO_REQ = CF_MSG_HELLO_REQ
HELLO_RESP = CF_MSG_HELLO_RESP
SUBSCRIBE_REQ = CF_MSG_SUBSCRIBE_REQ
SUBSCRIBE_RESP = CF_MSG_SUBSCRIBE_RESP
UNSUBSCRIBE = CF_MSG_UNSUBSCRIBE
EVENT_FD = CF_MSG_EVENT_FD
SHUTDOWN = CF_MSG_SHUTDOWN
PING = CF_MSG_PING
PONG = CF_MSG_PONG
ERROR = CF_MSG_ERROR

ERR_MALFORMED = CF_ERR_MALFORMED
ERR_OUT_OF_ORDER = CF_ERR_OUT_OF_ORDER
ERR_TOO_SLOW = CF_ERR_TOO_SLOW
ERR_VERSION = CF_ERR_VERSION
ERR_NAME_IN_USE = CF_ERR_NAME_IN_USE
ERR_NO_PLACE = CF_ERR_NO_PLACE
ERR_DEVICE = CF_ERR_DEVICE
ERR_NOT_ALLOWED = CF_ERR_NOT_ALLOWED
ERR_RESOURCES = CF_ERR_RESOURCES

MAX_PAYLOAD = CF_MAX_MSG_PAYLOAD
MAX_NAME = CF_MAX_NAME_LEN
MAX_DESCRIPTORS = CF_MAX_DESCRIPTORS
META_BYTES = sizeof(cf_frame_meta)
HEADER_BYTES = sizeof(cf_message)
ERROR_HEAD_BYTES = sizeof(cf_error_head)


cdef bytes bytes_of(const void* part, size_t size):
    return (<const char*>part)[:size]


cdef int take(bytes payload, Py_ssize_t offset, void* part, Py_ssize_t size) except -1:
    """Copy `size` bytes at `offset` of a payload. Raises ValueError if the payload is too short."""
    if len(payload) < offset + size:
        raise ValueError(f"the payload is too short, with {len(payload)} bytes instead of {offset + size}")
    memcpy(part, <const char*>payload + offset, size)
    return 0


def pack_message(uint32_t kind, bytes payload not None):
    """One message: its header and payload."""
    cdef cf_message head
    head.type, head.length = kind, len(payload)
    return bytes_of(&head, sizeof(head)) + payload


def unpack_message(bytes data not None):
    """(type, length of the payload) of the message at the beginning of `data`."""
    cdef cf_message head
    take(data, 0, &head, sizeof(head))
    return head.type, head.length


def pack_hello(uint32_t version, bytes name not None, int32_t device, uint32_t mode, uint32_t features):
    """The payload of HELLO_REQ."""
    cdef cf_hello_head head
    cdef cf_hello_tail tail
    memset(&tail, 0, sizeof(tail))
    head.version, head.name_length = version, len(name)
    tail.device, tail.mode, tail.features = device, mode, features
    return bytes_of(&head, sizeof(head)) + name + bytes_of(&tail, sizeof(tail))


def unpack_hello(bytes payload not None):
    """(version, name, device, mode, features). Raises ValueError if the payload's size does not match its contents."""
    cdef cf_hello_head head
    cdef cf_hello_tail tail
    cdef Py_ssize_t end
    take(payload, 0, &head, sizeof(head))
    end = <Py_ssize_t>sizeof(head) + head.name_length
    if len(payload) != end + <Py_ssize_t>sizeof(tail):
        raise ValueError(f"a payload of {len(payload)} bytes does not match its name of {head.name_length} bytes")
    take(payload, end, &tail, sizeof(tail))
    name = payload[sizeof(head):end]
    return head.version, name, tail.device, tail.mode, tail.features


def pack_welcome(int32_t result, uint32_t version, uint32_t ring_size, uint32_t ownership, bytes meta not None,
                 bytes path not None, uint32_t features, bytes packets_path not None):
    """The payload of HELLO_RESP."""
    cdef cf_welcome_head head
    cdef cf_welcome_tail tail
    memset(&tail, 0, sizeof(tail))
    head.result, head.version, head.ring_size, head.ownership = result, version, ring_size, ownership
    take(meta, 0, &head.meta, sizeof(head.meta))
    head.path_length = len(path)
    tail.features, tail.packets_path_length = features, len(packets_path)
    return bytes_of(&head, sizeof(head)) + path + bytes_of(&tail, sizeof(tail)) + packets_path


def unpack_welcome(bytes payload not None):
    """(result, version, ring_size, ownership, meta, path, features, packets_path). Raises ValueError if the payload is
    shorter than the lengths in it require.
    """
    cdef cf_welcome_head head
    cdef cf_welcome_tail tail
    cdef Py_ssize_t end
    take(payload, 0, &head, sizeof(head))
    end = <Py_ssize_t>sizeof(head) + head.path_length
    take(payload, end, &tail, sizeof(tail))
    path = payload[sizeof(head):end]
    packets_path = payload[end + sizeof(tail):][:tail.packets_path_length]
    meta = bytes_of(&head.meta, sizeof(head.meta))
    return (head.result, head.version, head.ring_size, head.ownership, meta, path, tail.features, packets_path)


def pack_subscribed(int32_t result, uint32_t bit, uint64_t initial_seq, uint64_t initial_frame_no):
    """The payload of SUBSCRIBE_RESP."""
    cdef cf_subscribed body
    memset(&body, 0, sizeof(body))
    body.result, body.bit = result, bit
    body.initial_seq, body.initial_frame_no = initial_seq, initial_frame_no
    return bytes_of(&body, sizeof(body))


def unpack_subscribed(bytes payload not None):
    """(result, bit, initial_seq, initial_frame_no). Raises ValueError for a payload of another size."""
    cdef cf_subscribed body
    if len(payload) != sizeof(body):
        raise ValueError(f"the payload has {len(payload)} bytes, not {sizeof(body)}")
    take(payload, 0, &body, sizeof(body))
    return body.result, body.bit, body.initial_seq, body.initial_frame_no


def pack_error(int32_t code, bytes text not None):
    """The payload of ERROR."""
    cdef cf_error_head head
    head.code, head.text_length = code, len(text)
    return bytes_of(&head, sizeof(head)) + text


def unpack_error(bytes payload not None):
    """(code, text). Raises ValueError if the payload is too short."""
    cdef cf_error_head head
    take(payload, 0, &head, sizeof(head))
    return head.code, payload[sizeof(head):][:head.text_length]
