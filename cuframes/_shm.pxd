# The declarations of shm.h: layouts and constants. Only the C code of the rings (frame_ring.h, packet_ring.h,
# slot_ring.h, wait_any.h) accesses shared fields. Cython code writes them before others can see the segment, or reads
# them for a report.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "cuframes/shm.h" nogil:
    enum:
        CF_PROTOCOL_V1
        CF_PROTOCOL_V3
        CF_MAX_RING
        CF_MIN_RING
        CF_MAX_SUBSCRIBERS
        CF_MAX_KEY_LEN
        CF_MAX_NAME_LEN
        CF_MAX_MSG_PAYLOAD
        CF_HANDLE_BYTES
        CF_EXT_PINS
        CF_EXT_FUTEX
        CF_EXT_HOST_MEMORY
        CF_EXT_VMM_MEMORY
        CF_EXT_OWNER_LOCK
        CF_EXT_PASS_FD
        CF_POLICY_DROP_OLDEST
        CF_POLICY_STRICT_WAIT
        CF_OWNERSHIP_EXTERNAL
        CF_SUB_ACTIVE
    # Declared as const, since Cython treats the members of an anonymous enum as int and these are unsigned.
    const uint32_t CF_FRAME_MAGIC
    const uint64_t CF_SEQ_INVALID

    ctypedef struct cf_presentation:
        uint8_t range
        uint8_t matrix
        uint8_t primaries
        uint8_t transfer
        uint8_t field_order
        uint8_t rotation
        uint16_t aspect_num
        uint16_t aspect_den
        uint16_t rate_den
        uint32_t rate_num

    ctypedef struct cf_frame_meta:
        uint32_t format
        int32_t width
        int32_t height
        int32_t pitch_y
        int32_t pitch_uv
        uint32_t bits_per_pixel
        uint64_t frame_size_bytes
        uint8_t device_uuid[16]
        cf_presentation presentation

    ctypedef struct cf_slot:
        uint8_t mem_handle[CF_HANDLE_BYTES]
        uint8_t cuda_ptr_external[32]
        uint64_t base_offset

    ctypedef struct cf_subscriber:
        uint64_t state
        uint64_t consumer_pid
        uint64_t last_seen_seq
        int64_t last_ack_ns
        char consumer_name[CF_MAX_NAME_LEN + 1]
        uint64_t received
        uint64_t lost
        uint64_t skipped
        uint64_t held

    ctypedef struct cf_frame_header:
        uint32_t magic
        uint32_t proto_version
        uint32_t lib_version_major
        uint32_t lib_version_minor
        uint32_t lib_version_patch
        uint32_t ext_flags
        uint64_t producer_pid
        uint64_t ring_size
        uint64_t ownership_mode
        uint64_t policy
        uint64_t max_subscribers
        cf_frame_meta meta
        uint8_t ipc_event_handle[CF_HANDLE_BYTES]
        uint64_t global_seq
        uint64_t subscriber_bitmap
        uint64_t shutdown_flag
        uint32_t writer_wait
        uint64_t epoch
        uint64_t frames_published
        uint64_t frames_dropped
        cf_slot slots[CF_MAX_RING]
        cf_subscriber subscribers[CF_MAX_SUBSCRIBERS]
        uint8_t slot_event_handles[CF_MAX_RING][CF_HANDLE_BYTES]

    ctypedef struct cf_layout_row:
        const char* type
        const char* field
        uint32_t offset
        uint32_t size
    const cf_layout_row* cf_layout

    uint64_t cf_load_acquire(const uint64_t* p)
    void cf_store_release_u32(uint32_t* p, uint32_t v)
    uint32_t cf_load_seq_cst_u32(const uint32_t* p)
    uint32_t cf_fetch_or_u32(uint32_t* p, uint32_t v)
    uint32_t cf_exchange_u32(uint32_t* p, uint32_t v)
    int64_t cf_load_relaxed_i64(const int64_t* p)
    void cf_futex_wake_all(const uint32_t* word)
    const uint32_t* cf_low_half(const uint64_t* p)
    uint64_t cf_fetch_or(uint64_t* p, uint64_t v)
    uint64_t cf_fetch_and(uint64_t* p, uint64_t v)
    uint32_t cf_load_relaxed_u32(const uint32_t* p)
    void cf_fence_acquire()
    int64_t cf_now_ns()
    void cf_sleep_ns(int64_t ns)


cdef extern from "cuframes/wait.h" nogil:
    void cf_event_signal(int fd)
