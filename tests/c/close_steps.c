/* close() at every step of a take, that is before every atomic access of cf_reader_next. A frame that was taken must
 * stay intact, and afterwards the place in the ring must have been given up, once. Uses no threads: it counts the
 * steps. */
#include <stdio.h>
#include <stdlib.h>

#include "cuframes/gate.h"

static void step(void);
static inline uint64_t stepped_or(uint64_t *p, uint64_t v) { return step(), cf_fetch_or(p, v); }
static inline uint64_t stepped_and(uint64_t *p, uint64_t v) { return step(), cf_fetch_and(p, v); }
static inline uint64_t stepped_load(const uint64_t *p) { return step(), cf_load_seq_cst(p); }
static inline uint64_t stepped_acquire(const uint64_t *p) { return step(), cf_load_acquire(p); }
static inline uint32_t stepped_load_u32(const uint32_t *p) { return step(), cf_load_seq_cst_u32(p); }
static inline uint32_t stepped_add_u32(uint32_t *p, uint32_t v) { return step(), cf_fetch_add_u32(p, v); }
static inline void stepped_store_u32(uint32_t *p, uint32_t v) { step(), cf_store_seq_cst_u32(p, v); }
#define cf_fetch_or stepped_or
#define cf_fetch_and stepped_and
#define cf_load_seq_cst stepped_load
#define cf_load_acquire stepped_acquire
#define cf_load_seq_cst_u32 stepped_load_u32
#define cf_fetch_add_u32 stepped_add_u32
#define cf_store_seq_cst_u32 stepped_store_u32
#include "cuframes/frame_ring.h"

#define RING 4

static cf_frame_header header;
static cf_writer writer;
static cf_reader reader;
static int pixels[RING];
static int steps = -1, close_at, left;

static void hang_up_if_idle(void) {
    if (!left && cf_gate_is_empty(&reader.gate) && reader.held == 0) left = 1, cf_writer_leave(&writer, reader.bit);
}

static void step(void) {
    if (steps < 0 || steps++ != close_at) return;
    steps = -1;
    cf_gate_shut(&reader.gate); /* like close() on another thread */
    hang_up_if_idle();
}

static void publish(int value) {
    if (cf_writer_begin(&writer, -1, 0)) abort();
    pixels[cf_writer_slot(&writer)] = value;
    cf_writer_commit(&writer, 1, 0, 0);
}

int main(void) {
    int taken = 0, refused = 0, bad = 0;
    for (close_at = 0;; close_at++) {
        uint32_t bit;
        uint64_t seq, frame_no;
        cf_taken frame = {0};
        int last;
        memset(&header, 0, sizeof header);
        cf_writer_init(&writer, &header, RING, CF_POLICY_DROP_OLDEST);
        if (cf_writer_join(&writer, "reader", 1, &bit, &seq, &frame_no) != CF_OK) return 2;
        reader = (cf_reader){.shared = &header,
                             .ring_size = RING,
                             .bit = bit,
                             .max_held = 2,
                             .mode = CF_ORDERED,
                             .pins = true,
                             .wakes = true,
                             .counted = true,
                             .sock = -1,
                             .event_fd = -1};
        left = 0;
        publish(1);
        if (cf_gate_enter(&reader.gate, &last) != CF_OK) abort();
        steps = 0;
        int rc = cf_reader_next(&reader, 0, &frame);
        bool closed = steps < 0;
        steps = -1;
        cf_gate_leave(&reader.gate);
        hang_up_if_idle();
        if (rc == CF_OK) {
            taken++;
            for (int i = 0; i < RING; i++) publish(2);
            bad += pixels[frame.slot] != 1;
            cf_reader_release(&reader, frame.slot, frame.seq);
            hang_up_if_idle();
        } else if (rc == CF_CLOSED) {
            refused++;
        } else {
            abort();
        }
        bad += closed != left;
        for (int k = 0; k < RING; k++) bad += header.slots[k].pin_bitmap != 0;
        if (!closed) break; /* the take has fewer steps */
    }
    printf("%d steps: %d taken, %d refused, %d wrong\n", close_at, taken, refused, bad);
    return bad || !taken || !refused;
}
