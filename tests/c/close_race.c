/* close() of a reader's end while other threads take frames from it. A frame that was taken keeps its pin. When close()
 * has returned, no call is inside, and nothing is pinned that is not held. Argument: number of rounds. */
#include <stdio.h>
#include <stdlib.h>

#include "cuframes/frame_ring.h"

#define RING 4
#define WORDS 64

static cf_frame_header header;
static cf_writer writer;
static uint64_t pixels[RING][WORDS];
static int stop;

static void *write_all(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        if (cf_writer_begin(&writer, -1, 0) != CF_OK) continue;
        uint64_t *p = pixels[cf_writer_slot(&writer)];
        for (uint32_t i = 0; i < WORDS; i++) p[i] = writer.frames + 1;
        cf_writer_commit(&writer, cf_now_ns(), 0, sizeof pixels[0]);
    }
    return NULL;
}

typedef struct {
    cf_reader reader;
    uint64_t torn, taken;
} task;

/* The same as the Cython wrapper after every call: leave, and hang up if the end is closed and holds nothing. */
static void hang_up(cf_reader *r, uint32_t *hung_up) {
    if (cf_gate_is_empty(&r->gate) && cf_reader_held(r) == 0 && !cf_exchange_u32(hung_up, 1))
        cf_writer_leave(&writer, r->bit);
}

static uint32_t hung_up;

static void *take_all(void *argument) {
    task *t = argument;
    for (;;) {
        cf_taken frame = {0};
        int last;
        if (cf_gate_enter(&t->reader.gate, &last) != CF_OK) return NULL;
        int rc = cf_reader_next(&t->reader, INT64_MAX, &frame);
        cf_gate_leave(&t->reader.gate);
        if (rc == CF_CLOSED) return NULL;
        if (rc == CF_BUSY || rc == CF_AGAIN || rc == CF_TOO_MANY) continue;
        if (rc != CF_OK) abort();
        cf_fetch_add(&t->taken, 1);
        for (int look = 0; look < 3; look++) {
            if (look) usleep(20); /* time for several frames, unless the slot is held */
            for (uint32_t i = 0; i < WORDS; i++)
                if (pixels[frame.slot][i] != frame.frame_no) cf_fetch_add(&t->torn, 1);
        }
        cf_reader_release(&t->reader, frame.slot, frame.seq);
        hang_up(&t->reader, &hung_up);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    cf_writer_init(&writer, &header, RING, CF_POLICY_DROP_OLDEST);
    pthread_t producer, takers[2];
    pthread_create(&producer, NULL, write_all, NULL);
    uint64_t torn = 0, taken = 0, wrong = 0;
    for (int round = 0; round < atoi(argv[1]); round++) {
        task t = {0};
        uint32_t bit;
        uint64_t seq, frame_no;
        if (cf_writer_join(&writer, "reader", 1, &bit, &seq, &frame_no) != CF_OK) return 3;
        wrong += bit != 1; /* the subscriber before must have given it up */
        t.reader = (cf_reader){.shared = &header,
                               .ring_size = RING,
                               .bit = bit,
                               .max_held = 2,
                               .mode = CF_ORDERED,
                               .pins = true,
                               .wakes = true,
                               .counted = true,
                               .sock = -1,
                               .event_fd = -1,
                               .last_seq = seq,
                               .last_frame_no = frame_no};
        hung_up = 0;
        for (int i = 0; i < 2; i++) pthread_create(&takers[i], NULL, take_all, &t);
        usleep((useconds_t)(rand() % 200));
        cf_gate_shut(&t.reader.gate);
        do cf_futex_wake_all(cf_low_half(&header.global_seq));
        while (!cf_gate_wait(&t.reader.gate));
        hang_up(&t.reader, &hung_up);
        for (int i = 0; i < 2; i++) pthread_join(takers[i], NULL);
        hang_up(&t.reader, &hung_up);
        torn += t.torn, taken += t.taken;
        for (uint32_t k = 0; k < RING; k++) wrong += cf_load_acquire(&header.slots[k].pin_bitmap) != 0;
        wrong += cf_reader_held(&t.reader) != 0;
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(producer, NULL);
    printf("taken %llu torn %llu wrong %llu\n", (unsigned long long)taken, (unsigned long long)torn,
           (unsigned long long)wrong);
    return torn || wrong;
}
