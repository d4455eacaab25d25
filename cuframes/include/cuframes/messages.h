/* The messages that publisher and subscriber exchange over the publisher's Unix socket, protocol versions 1 to 3.
 *
 * Every message is a cf_message and `length` bytes of payload. Integers are little-endian, and nothing is aligned. A
 * text has no final 0; the structure before it in the payload gives its length.
 *
 *     HELLO_REQ       cf_hello_head, name, cf_hello_tail
 *     HELLO_RESP      cf_welcome_head, name of the control segment, cf_welcome_tail, name of the packet ring's segment
 *     SUBSCRIBE_REQ   nothing
 *     SUBSCRIBE_RESP  cf_subscribed
 *     ERROR           cf_error_head, text in UTF-8
 *     PING, PONG      anything; PONG returns the payload of PING
 *     UNSUBSCRIBE, EVENT_FD, SHUTDOWN   nothing
 *
 * docs/protocol.md says which answers carry descriptors. Only a subscriber that announces CF_EXT_PASS_FD gets them. */
#ifndef CUFRAMES_MESSAGES_H
#define CUFRAMES_MESSAGES_H

#include "gnu.h"

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "shm.h"

#define CF_MAX_DESCRIPTORS 4u /* in one answer */

enum {
    CF_MSG_HELLO_REQ = 1,
    CF_MSG_HELLO_RESP = 2,
    CF_MSG_SUBSCRIBE_REQ = 3,
    CF_MSG_SUBSCRIBE_RESP = 4,
    CF_MSG_UNSUBSCRIBE = 16,
    CF_MSG_EVENT_FD = 32,
    CF_MSG_SHUTDOWN = 48,
    CF_MSG_PING = 240,
    CF_MSG_PONG = 241,
    CF_MSG_ERROR = 254,
};

/* Reasons for which a publisher refuses. The `result` of an answer is 0, or one of these values negated. */
enum {
    CF_ERR_MALFORMED = 1,
    CF_ERR_OUT_OF_ORDER = 2,
    CF_ERR_TOO_SLOW = 3,
    CF_ERR_VERSION = 4,
    CF_ERR_NAME_IN_USE = 5,
    CF_ERR_NO_PLACE = 6,
    CF_ERR_DEVICE = 7,
    CF_ERR_NOT_ALLOWED = 8,
    CF_ERR_RESOURCES = 9,
};

#pragma pack(push, 1)

typedef struct {
    uint32_t type;
    uint32_t length; /* of the payload, at most CF_MAX_MSG_PAYLOAD */
} cf_message;

typedef struct {
    uint32_t version;
    uint32_t name_length; /* 1 to CF_MAX_NAME_LEN; some peers include a final 0 in the count */
} cf_hello_head;

typedef struct {
    int32_t device;
    uint32_t mode;     /* 1: every frame in order */
    uint32_t features; /* CF_EXT_*; 0 from plain version 3 programs */
    uint64_t reserved;
} cf_hello_tail;

typedef struct {
    int32_t result;
    uint32_t version;
    uint32_t ring_size;
    uint32_t ownership; /* CF_OWNERSHIP_* */
    cf_frame_meta meta;
    uint32_t path_length;
} cf_welcome_head;

typedef struct {
    uint32_t features; /* the features of HELLO_REQ that the publisher grants */
    uint32_t packets_path_length;
    uint32_t reserved;
} cf_welcome_tail;

typedef struct {
    int32_t result;
    uint32_t bit; /* the subscriber's bit in every bitmap, 1 to 31 */
    uint64_t initial_seq;
    uint64_t initial_frame_no; /* frame_no of frame initial_seq; 0 for plain version 3 programs */
    uint32_t reserved;
} cf_subscribed;

typedef struct {
    int32_t code;
    uint32_t text_length;
} cf_error_head;

#pragma pack(pop)

/* Every field: structure, field, offset, size. */
#define CF_MESSAGE_FIELDS(X)                      \
    X(cf_message, type, 0, 4)                     \
    X(cf_message, length, 4, 4)                   \
    X(cf_hello_head, version, 0, 4)               \
    X(cf_hello_head, name_length, 4, 4)           \
    X(cf_hello_tail, device, 0, 4)                \
    X(cf_hello_tail, mode, 4, 4)                  \
    X(cf_hello_tail, features, 8, 4)              \
    X(cf_hello_tail, reserved, 12, 8)             \
    X(cf_welcome_head, result, 0, 4)              \
    X(cf_welcome_head, version, 4, 4)             \
    X(cf_welcome_head, ring_size, 8, 4)           \
    X(cf_welcome_head, ownership, 12, 4)          \
    X(cf_welcome_head, meta, 16, 64)              \
    X(cf_welcome_head, path_length, 80, 4)        \
    X(cf_welcome_tail, features, 0, 4)            \
    X(cf_welcome_tail, packets_path_length, 4, 4) \
    X(cf_welcome_tail, reserved, 8, 4)            \
    X(cf_subscribed, result, 0, 4)                \
    X(cf_subscribed, bit, 4, 4)                   \
    X(cf_subscribed, initial_seq, 8, 8)           \
    X(cf_subscribed, initial_frame_no, 16, 8)     \
    X(cf_subscribed, reserved, 24, 4)             \
    X(cf_error_head, code, 0, 4)                  \
    X(cf_error_head, text_length, 4, 4)

#define CF_MESSAGE_SIZES(X) \
    X(cf_message, 8)        \
    X(cf_hello_head, 8)     \
    X(cf_hello_tail, 20)    \
    X(cf_welcome_head, 84)  \
    X(cf_welcome_tail, 12)  \
    X(cf_subscribed, 28)    \
    X(cf_error_head, 8)

#define CF_ASSERT_FIELD(type, field, offset, size)                                           \
    static_assert(offsetof(type, field) == (offset) && sizeof(((type *)0)->field) == (size), \
                  #type "." #field " is not where it belongs");
#define CF_ASSERT_SIZE(type, size) static_assert(sizeof(type) == (size), #type " is not " #size " bytes");
CF_MESSAGE_FIELDS(CF_ASSERT_FIELD)
CF_MESSAGE_SIZES(CF_ASSERT_SIZE)
#undef CF_ASSERT_FIELD
#undef CF_ASSERT_SIZE

#endif
