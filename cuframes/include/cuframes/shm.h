/* Shared layouts, atomics and futex of cuframes.
 *
 * Everything in this file describes bytes that several processes map at the same time. Only this file and
 * messages.h know byte offsets; the rest of the library uses the names declared here.
 *
 * FORMAT
 *
 * All integers are little-endian and at their natural alignment. There are three kinds of segment:
 *
 *   frame ring       "/cuframes-<key>"          cf_frame_header, nothing behind it. The pixels are elsewhere (in a
 *                                               memfd or device memory); slot k of the pool belongs to slots[k].
 *   packet ring      "/cuframes-<key>-packets"  cf_packet_header, ring_slots x cf_packet_slot, data_size bytes.
 *   framecache slot  framecache/<slot_id>       cf_cache_header, ring_depth x (cf_cache_entry, frame_size bytes).
 *
 * Sequence numbers start at 1; 0 means "none yet". Frame s is in slot s % ring_size. A slot whose seq is CF_SEQ_INVALID
 * is being written or was never used.
 *
 * Fields that later versions of this library added are in bytes that protocol version 3 calls reserved. They are valid
 * only if the matching bit of ext_flags is set. A publisher that does not know these fields leaves zeros there.
 * cf_presentation needs no bit: in each of its fields 0, and any value that is not defined, means "not said".
 *
 * MEMORY ORDER
 *
 * Fields shared between processes are read and written only through the cf_load_* / cf_store_* / cf_fetch_* helpers
 * (a plain read in a loop may be hoisted out of it). The three orders used:
 *
 *   relaxed   only the value matters, or another access orders it.
 *   acquire / release   everything that the other side wrote before its release is visible after our acquire.
 *   seq_cst   for the two handshakes in which each side stores its own word and then reads the other's (pins and
 *             sleepers): there is one total order of all such accesses, so at least one side sees the other.
 */
#ifndef CUFRAMES_SHM_H
#define CUFRAMES_SHM_H

#include "gnu.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cuframes segments are little-endian"
#endif

/* ---- constants ------------------------------------------------------------------------------------------------ */

#define CF_FRAME_MAGIC 0xCC7C1DCCu
#define CF_PACKET_MAGIC 0xCC7C1DCDu
#define CF_CACHE_MAGIC 0x46524D43u

#define CF_PROTOCOL_V1 1u
#define CF_PROTOCOL_V2 2u
#define CF_PROTOCOL_V3 3u

#define CF_SEQ_INVALID UINT64_MAX
#define CF_MAX_RING 16u
#define CF_MIN_RING 2u
#define CF_MAX_SUBSCRIBERS 32u
#define CF_MAX_KEY_LEN 63u
#define CF_MAX_NAME_LEN 31u
#define CF_HANDLE_BYTES 64u /* of the driver, for memory and events of another process */
#define CF_MAX_MSG_PAYLOAD 4096u

#define CF_PKT_EXTRADATA_MAX 4096u
#define CF_PKT_MAX_SLOTS 1024u
#define CF_NO_TIME INT64_MIN /* FFmpeg's AV_NOPTS_VALUE */

#define CF_CACHE_VERSION 1u
#define CF_CACHE_HEADER_SIZE 4096u
#define CF_CACHE_DEFAULT_DEPTH 120u /* the depth that C clients assume */
#define CF_CACHE_MIN_DEPTH 2u       /* with one entry, a frame would be overwritten as soon as it is published */

/* cf_frame_header.ext_flags; the same bits travel in the handshake */
#define CF_EXT_PINS 1u                 /* readers pin slots, and the publisher honours the pins */
#define CF_EXT_FUTEX 2u                /* the publisher wakes sleepers on global_seq */
#define CF_EXT_HOST_MEMORY 4u          /* the pool is host memory, passed by descriptor */
#define CF_EXT_VMM_MEMORY 8u           /* the pool is one device allocation, passed by descriptor */
#define CF_EXT_OWNER_LOCK 16u          /* the publisher holds a file lock on the segment as long as it lives */
#define CF_EXT_PASS_FD 256u            /* handshake only: "I can receive descriptors" */
#define CF_EXT_EXTRADATA_CHANGES 1024u /* packet rings: extradata_changes of slot 0 is valid */

/* cf_packet_slot.flags */
#define CF_PKT_KEY 1u /* decoding can begin at this packet */
#define CF_PKT_CORRUPT 2u
#define CF_PKT_DISCONTINUITY 4u /* packets are missing before this one */
#define CF_PKT_LAST_IN_ACCESS_UNIT 8u

enum { CF_POLICY_DROP_OLDEST = 0, CF_POLICY_STRICT_WAIT = 1 };
enum { CF_OWNERSHIP_LIBRARY = 0, CF_OWNERSHIP_EXTERNAL = 1 };
enum { CF_SUB_FREE = 0, CF_SUB_CONNECTING = 1, CF_SUB_ACTIVE = 2, CF_SUB_DRAINING = 3 };

/* ---- what the pictures look like -------------------------------------------------------------------------------- */

#define CF_MATRIX_RGB 255u /* the matrix of RGB, whose code is 0 */

/* Written once, before others see it (or in a framecache slot, by a new writer). The codes are those of ITU-T H.273 and
 * FFmpeg. */
typedef struct {
    uint8_t range;  /* 1 limited ("tv"), 2 full ("pc") */
    uint8_t matrix; /* 255 for RGB */
    uint8_t primaries;
    uint8_t transfer;
    uint8_t field_order; /* 1 progressive, 2 tt, 3 bb, 4 tb, 5 bt */
    uint8_t rotation;    /* 1 + quarter turns, clockwise, that bring the picture upright */
    uint16_t aspect_num; /* of a sample: its width to its height */
    uint16_t aspect_den;
    uint16_t rate_den; /* nominal frames per second; before its numerator, so that both are aligned */
    uint32_t rate_num;
} cf_presentation;

/* ---- frame ring ----------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t format;
    int32_t width;
    int32_t height;
    int32_t pitch_y;  /* bytes from one row of the first plane to the next */
    int32_t pitch_uv; /* the same, for the other planes */
    uint32_t bits_per_pixel;
    uint64_t frame_size_bytes;
    /* reserved */
    uint8_t device_uuid[16]; /* the GPU of the pool; zero for host memory */
    cf_presentation presentation;
} cf_frame_meta;

typedef struct {
    uint64_t seq; /* atomic */
    int64_t pts_ns;
    uint64_t ack_bitmap; /* atomic; bit i: subscriber i is done with this frame */
    uint64_t written_bytes;
    uint8_t mem_handle[CF_HANDLE_BYTES];
    uint8_t cuda_ptr_external[32];
    /* reserved_a */
    uint64_t pin_bitmap; /* atomic; bit i: subscriber i is reading this slot now */
    uint64_t frame_no;   /* consecutive number of this frame, from 1 */
    /* reserved_b */
    int64_t published_ns; /* CLOCK_MONOTONIC */
    uint64_t base_offset; /* where the frame begins: this many bytes into the memory of mem_handle */
    uint8_t reserved_b[32];
} cf_slot;

typedef struct {
    uint64_t state; /* atomic; CF_SUB_* */
    uint64_t consumer_pid;
    uint64_t last_seen_seq;
    int64_t last_ack_ns;
    char consumer_name[CF_MAX_NAME_LEN + 1];
    /* reserved: counters that can be read without joining */
    uint64_t received;
    uint64_t lost;
    uint64_t skipped;
    uint64_t held;
    uint8_t reserved[32];
} cf_subscriber;

typedef struct {
    uint32_t magic;
    uint32_t proto_version;
    uint32_t lib_version_major;
    uint32_t lib_version_minor;
    uint32_t lib_version_patch;
    uint32_t ext_flags; /* reserved_a */
    uint64_t producer_pid;
    uint64_t ring_size;
    uint64_t ownership_mode;
    uint64_t policy;
    uint64_t max_subscribers;
    cf_frame_meta meta;
    uint8_t ipc_event_handle[CF_HANDLE_BYTES];
    uint64_t global_seq;        /* atomic; its low half is the futex word that subscribers sleep on */
    uint64_t subscriber_bitmap; /* atomic */
    uint64_t shutdown_flag;     /* atomic */
    /* reserved_b */
    uint32_t waiters;     /* atomic; subscribers asleep on global_seq */
    uint32_t writer_wait; /* atomic; 1: the publisher sleeps on this word until a frame is released (strict_wait) */
    uint64_t epoch;
    uint64_t frames_published; /* atomic */
    uint64_t frames_dropped;   /* atomic */
    uint8_t reserved_b[8];
    cf_slot slots[CF_MAX_RING];
    cf_subscriber subscribers[CF_MAX_SUBSCRIBERS];
    uint8_t slot_event_handles[CF_MAX_RING][CF_HANDLE_BYTES];
} cf_frame_header;

/* ---- packet ring ---------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t seq;         /* atomic */
    int64_t pts_ns;       /* CF_NO_TIME: not known */
    int64_t dts_ns;       /* the same */
    uint64_t data_offset; /* absolute; the bytes start at data_offset % data_size */
    uint32_t data_size;
    uint32_t flags; /* CF_PKT_* */
    /* reserved */
    int64_t published_ns;       /* CLOCK_MONOTONIC */
    uint32_t ext_flags;         /* CF_EXT_*; the same in every slot, since the header has no spare byte */
    uint32_t extradata_changes; /* atomic; in slot 0 only: odd while the codec's extradata are being changed */
    uint8_t reserved[8];
} cf_packet_slot;

typedef struct {
    uint32_t magic;
    uint32_t proto_version;
    uint32_t ring_slots;
    uint32_t data_size;
    uint32_t codec_id;
    uint32_t codec_extradata_size; /* atomic; 0 while the extradata are being changed */
    uint64_t producer_pid;
    uint64_t global_seq;        /* atomic; its low half is the futex word that readers sleep on */
    uint64_t last_keyframe_seq; /* atomic */
    uint64_t write_offset;      /* atomic; total bytes written; advanced before the bytes are written */
    uint64_t shutdown_flag;     /* atomic */
    uint8_t codec_extradata[CF_PKT_EXTRADATA_MAX];
} cf_packet_header;

/* ---- framecache slot ------------------------------------------------------------------------------------------ */

typedef struct {
    uint32_t magic;
    uint32_t version;
    uint32_t width;
    uint32_t height;
    uint32_t fps_num;
    uint32_t fps_den;
    uint32_t pixel_format;
    uint32_t frame_size;
    uint32_t ring_depth;
    uint32_t futex;          /* reserved; atomic; 1: the writer also wakes the low half of write_cursor */
    uint64_t write_cursor;   /* atomic; number of frames written so far, and so the number of the next frame */
    uint64_t dropped_frames; /* atomic; frames that the writer's source lost */
    char source_type[32];
    char slot_id[64];
    /* not part of the format: the bytes up to the first entry */
    uint64_t writer_pid;          /* the process that holds the writer's lock; meaningless if the lock is free */
    cf_presentation presentation; /* its rate is not used: fps_num and fps_den are the slot's */
    uint8_t pad[CF_CACHE_HEADER_SIZE - 176];
} cf_cache_header;

/* Not always aligned, since entries are 24 + frame_size bytes apart. */

typedef struct {
    uint64_t pts_us;
    uint64_t wall_us;
    uint32_t size;
    uint32_t pad;
} cf_cache_entry;

/* The file of a slot's semaphore, in the form that glibc's sem_open creates on 64-bit machines. */
#define CF_SEMAPHORE_SHARED 128u

typedef struct {
    uint64_t data;   /* atomic; low half: the value, which is the futex word; high half: the number of waiters */
    uint32_t shared; /* CF_SEMAPHORE_SHARED: waiters may be in other processes */
    uint8_t pad[20];
} cf_semaphore;

/* ---- every offset and size, asserted (name, type, field, offset, size) ------------------------------------------ */

#define CF_LAYOUT_FIELDS(X)                            \
    X(cf_presentation, range, 0, 1)                    \
    X(cf_presentation, matrix, 1, 1)                   \
    X(cf_presentation, primaries, 2, 1)                \
    X(cf_presentation, transfer, 3, 1)                 \
    X(cf_presentation, field_order, 4, 1)              \
    X(cf_presentation, rotation, 5, 1)                 \
    X(cf_presentation, aspect_num, 6, 2)               \
    X(cf_presentation, aspect_den, 8, 2)               \
    X(cf_presentation, rate_den, 10, 2)                \
    X(cf_presentation, rate_num, 12, 4)                \
    X(cf_frame_meta, format, 0, 4)                     \
    X(cf_frame_meta, width, 4, 4)                      \
    X(cf_frame_meta, height, 8, 4)                     \
    X(cf_frame_meta, pitch_y, 12, 4)                   \
    X(cf_frame_meta, pitch_uv, 16, 4)                  \
    X(cf_frame_meta, bits_per_pixel, 20, 4)            \
    X(cf_frame_meta, frame_size_bytes, 24, 8)          \
    X(cf_frame_meta, device_uuid, 32, 16)              \
    X(cf_frame_meta, presentation, 48, 16)             \
    X(cf_slot, seq, 0, 8)                              \
    X(cf_slot, pts_ns, 8, 8)                           \
    X(cf_slot, ack_bitmap, 16, 8)                      \
    X(cf_slot, written_bytes, 24, 8)                   \
    X(cf_slot, mem_handle, 32, 64)                     \
    X(cf_slot, cuda_ptr_external, 96, 32)              \
    X(cf_slot, pin_bitmap, 128, 8)                     \
    X(cf_slot, frame_no, 136, 8)                       \
    X(cf_slot, published_ns, 144, 8)                   \
    X(cf_slot, base_offset, 152, 8)                    \
    X(cf_slot, reserved_b, 160, 32)                    \
    X(cf_subscriber, state, 0, 8)                      \
    X(cf_subscriber, consumer_pid, 8, 8)               \
    X(cf_subscriber, last_seen_seq, 16, 8)             \
    X(cf_subscriber, last_ack_ns, 24, 8)               \
    X(cf_subscriber, consumer_name, 32, 32)            \
    X(cf_subscriber, received, 64, 8)                  \
    X(cf_subscriber, lost, 72, 8)                      \
    X(cf_subscriber, skipped, 80, 8)                   \
    X(cf_subscriber, held, 88, 8)                      \
    X(cf_subscriber, reserved, 96, 32)                 \
    X(cf_frame_header, magic, 0, 4)                    \
    X(cf_frame_header, proto_version, 4, 4)            \
    X(cf_frame_header, lib_version_major, 8, 4)        \
    X(cf_frame_header, lib_version_minor, 12, 4)       \
    X(cf_frame_header, lib_version_patch, 16, 4)       \
    X(cf_frame_header, ext_flags, 20, 4)               \
    X(cf_frame_header, producer_pid, 24, 8)            \
    X(cf_frame_header, ring_size, 32, 8)               \
    X(cf_frame_header, ownership_mode, 40, 8)          \
    X(cf_frame_header, policy, 48, 8)                  \
    X(cf_frame_header, max_subscribers, 56, 8)         \
    X(cf_frame_header, meta, 64, 64)                   \
    X(cf_frame_header, ipc_event_handle, 128, 64)      \
    X(cf_frame_header, global_seq, 192, 8)             \
    X(cf_frame_header, subscriber_bitmap, 200, 8)      \
    X(cf_frame_header, shutdown_flag, 208, 8)          \
    X(cf_frame_header, waiters, 216, 4)                \
    X(cf_frame_header, writer_wait, 220, 4)            \
    X(cf_frame_header, epoch, 224, 8)                  \
    X(cf_frame_header, frames_published, 232, 8)       \
    X(cf_frame_header, frames_dropped, 240, 8)         \
    X(cf_frame_header, reserved_b, 248, 8)             \
    X(cf_frame_header, slots, 256, 3072)               \
    X(cf_frame_header, subscribers, 3328, 4096)        \
    X(cf_frame_header, slot_event_handles, 7424, 1024) \
    X(cf_packet_slot, seq, 0, 8)                       \
    X(cf_packet_slot, pts_ns, 8, 8)                    \
    X(cf_packet_slot, dts_ns, 16, 8)                   \
    X(cf_packet_slot, data_offset, 24, 8)              \
    X(cf_packet_slot, data_size, 32, 4)                \
    X(cf_packet_slot, flags, 36, 4)                    \
    X(cf_packet_slot, published_ns, 40, 8)             \
    X(cf_packet_slot, ext_flags, 48, 4)                \
    X(cf_packet_slot, extradata_changes, 52, 4)        \
    X(cf_packet_slot, reserved, 56, 8)                 \
    X(cf_packet_header, magic, 0, 4)                   \
    X(cf_packet_header, proto_version, 4, 4)           \
    X(cf_packet_header, ring_slots, 8, 4)              \
    X(cf_packet_header, data_size, 12, 4)              \
    X(cf_packet_header, codec_id, 16, 4)               \
    X(cf_packet_header, codec_extradata_size, 20, 4)   \
    X(cf_packet_header, producer_pid, 24, 8)           \
    X(cf_packet_header, global_seq, 32, 8)             \
    X(cf_packet_header, last_keyframe_seq, 40, 8)      \
    X(cf_packet_header, write_offset, 48, 8)           \
    X(cf_packet_header, shutdown_flag, 56, 8)          \
    X(cf_packet_header, codec_extradata, 64, 4096)     \
    X(cf_cache_header, magic, 0, 4)                    \
    X(cf_cache_header, version, 4, 4)                  \
    X(cf_cache_header, width, 8, 4)                    \
    X(cf_cache_header, height, 12, 4)                  \
    X(cf_cache_header, fps_num, 16, 4)                 \
    X(cf_cache_header, fps_den, 20, 4)                 \
    X(cf_cache_header, pixel_format, 24, 4)            \
    X(cf_cache_header, frame_size, 28, 4)              \
    X(cf_cache_header, ring_depth, 32, 4)              \
    X(cf_cache_header, futex, 36, 4)                   \
    X(cf_cache_header, write_cursor, 40, 8)            \
    X(cf_cache_header, dropped_frames, 48, 8)          \
    X(cf_cache_header, source_type, 56, 32)            \
    X(cf_cache_header, slot_id, 88, 64)                \
    X(cf_cache_header, writer_pid, 152, 8)             \
    X(cf_cache_header, presentation, 160, 16)          \
    X(cf_cache_entry, pts_us, 0, 8)                    \
    X(cf_cache_entry, wall_us, 8, 8)                   \
    X(cf_cache_entry, size, 16, 4)                     \
    X(cf_cache_entry, pad, 20, 4)                      \
    X(cf_semaphore, data, 0, 8)                        \
    X(cf_semaphore, shared, 8, 4)

#define CF_LAYOUT_SIZES(X)    \
    X(cf_presentation, 16)    \
    X(cf_frame_meta, 64)      \
    X(cf_slot, 192)           \
    X(cf_subscriber, 128)     \
    X(cf_frame_header, 8448)  \
    X(cf_packet_slot, 64)     \
    X(cf_packet_header, 4160) \
    X(cf_cache_header, 4096)  \
    X(cf_cache_entry, 24)     \
    X(cf_semaphore, 32)

#define CF_ASSERT_FIELD(type, field, off, size)                                              \
    static_assert(offsetof(type, field) == (off), #type "." #field " is not at byte " #off); \
    static_assert(sizeof(((type *)0)->field) == (size), #type "." #field " is not " #size " bytes");
#define CF_ASSERT_SIZE(type, size) static_assert(sizeof(type) == (size), #type " is not " #size " bytes");
CF_LAYOUT_FIELDS(CF_ASSERT_FIELD)
CF_LAYOUT_SIZES(CF_ASSERT_SIZE)
#undef CF_ASSERT_FIELD
#undef CF_ASSERT_SIZE

/* The same table as data, so that a test can compare the compiler's layout with the documented figures. */
typedef struct {
    const char *type;
    const char *field; /* NULL: the row gives the size of the type */
    uint32_t offset;
    uint32_t size;
} cf_layout_row;

#define CF_ROW_FIELD(t, f, off, sz) {#t, #f, (uint32_t)offsetof(t, f), (uint32_t)sizeof(((t *)0)->f)},
#define CF_ROW_SIZE(t, sz) {#t, NULL, 0, (uint32_t)sizeof(t)},
/* clang-format off */
__attribute__((unused)) static const cf_layout_row cf_layout[] = {
    CF_LAYOUT_FIELDS(CF_ROW_FIELD)
    CF_LAYOUT_SIZES(CF_ROW_SIZE)
    {NULL, NULL, 0, 0},
};
/* clang-format on */
#undef CF_ROW_FIELD
#undef CF_ROW_SIZE

/* ---- atomics: see MEMORY ORDER above ---------------------------------------------------------------------------- */

static inline uint64_t cf_load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t cf_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t cf_load_seq_cst(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void cf_store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void cf_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void cf_store_seq_cst(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t cf_fetch_or(uint64_t *p, uint64_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t cf_fetch_and(uint64_t *p, uint64_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }

static inline uint64_t cf_fetch_add(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }

static inline int64_t cf_load_relaxed_i64(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void cf_store_relaxed_i64(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }

static inline uint32_t cf_load_relaxed_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t cf_load_acquire_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void cf_store_relaxed_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void cf_store_release_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t cf_load_seq_cst_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void cf_store_seq_cst_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t cf_fetch_add_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t cf_fetch_or_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t cf_fetch_and_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t cf_exchange_u32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
/* Orders earlier reads before later reads and writes. gcc's thread sanitizer does not support fences, so it is omitted
 * there. Nothing is lost: the accesses that it orders are not atomic on the other side either, so the sanitizer could
 * not check them. */
static inline void cf_fence_acquire(void) {
#if !defined(__SANITIZE_THREAD__)
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
}

/* Orders all earlier accesses before all later ones, including non-temporal stores, which memcpy may use. */
static inline void cf_fence_full(void) {
#if !defined(__SANITIZE_THREAD__)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

static inline void cf_cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

/* ---- time and futex --------------------------------------------------------------------------------------------- */

static inline int64_t cf_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static inline struct timespec cf_timespec(int64_t ns) {
    struct timespec ts;
    ts.tv_sec = ns / 1000000000;
    ts.tv_nsec = ns % 1000000000;
    return ts;
}

static inline void cf_sleep_ns(int64_t ns) {
    struct timespec ts = cf_timespec(ns);
    nanosleep(&ts, NULL);
}

/* Shared futexes (no PRIVATE flag), since the waiters are in other processes, perhaps in other pid namespaces.
 * Returns 0 if woken or if *word is not `expected`, otherwise ETIMEDOUT or EINTR. */
static inline int cf_futex_wait(const uint32_t *word, uint32_t expected, int64_t timeout_ns) {
    struct timespec ts = cf_timespec(timeout_ns);
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, &ts, NULL, 0) == 0 || errno == EAGAIN) return 0;
    return errno;
}

static inline void cf_futex_wake_all(const uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static inline void cf_futex_wake_one(const uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

/* The low half of a 64-bit counter, as a futex word. */
static inline const uint32_t *cf_low_half(const uint64_t *p) { return (const uint32_t *)(const void *)p; }

#endif
