/* One writer and several readers hammer a ring, as threads of one process over one header, under a thread sanitizer.
 *
 * The pixels are plain memory, accessed without atomics. If pins failed to separate writer and readers, the sanitizer
 * would report a race, and readers would see two values in one frame.
 *
 *   ring_race POLICY READERS FRAMES       prints what was taken; exit status 1 if anything was torn or miscounted */
#include <stdio.h>
#include <stdlib.h>

#include "cuframes/frame_ring.h"

#define RING 4
#define WORDS 64

static cf_frame_header header;
static uint64_t pixels[RING][WORDS];
static cf_writer writer;
static uint64_t frames;
static uint32_t strict;

typedef struct {
    pthread_t thread;
    uint32_t index;
    uint32_t bit;
    uint64_t start_no;
    uint64_t torn;
    cf_reader reader;
} reader_task;

static void *read_all(void *argument) {
    reader_task *task = argument;
    cf_reader *r = &task->reader;
    cf_taken taken[2];
    uint32_t out = 0;
    for (;;) {
        int rc = cf_reader_next(r, INT64_MAX, &taken[out]);
        if (rc == CF_AGAIN || rc == CF_WARM_UP || rc == CF_SOCKET) continue;
        if (rc == CF_ENDED) break;
        if (rc != CF_OK) abort();
        const uint64_t *p = pixels[taken[out].slot];
        for (uint32_t i = 0; i < WORDS; i++) task->torn += p[i] != taken[out].frame_no;
        /* Every other reader holds two frames at a time. */
        if (task->index % 2 == 0) {
            cf_reader_release(r, taken[out].slot, taken[out].seq);
        } else if (out == 0) {
            out = 1;
        } else {
            cf_reader_release(r, taken[0].slot, taken[0].seq);
            taken[0] = taken[1];
        }
        if (task->index == 3 && r->received % 1000 == 0) usleep(100);
    }
    if (out) cf_reader_release(r, taken[0].slot, taken[0].seq);
    return NULL;
}

static void *write_all(void *unused) {
    (void)unused;
    while (frames) {
        int rc = cf_writer_begin(&writer, -1, INT64_MAX);
        if (rc == CF_AGAIN || rc == CF_HELD) continue;
        if (rc != CF_OK) abort();
        uint64_t *p = pixels[cf_writer_slot(&writer)];
        for (uint32_t i = 0; i < WORDS; i++) p[i] = writer.frames + 1;
        if (frames % 97 == 0) {
            cf_writer_abandon(&writer);
        } else {
            cf_writer_commit(&writer, cf_now_ns(), 0, sizeof pixels[0]);
        }
        frames--;
    }
    return NULL;
}

/* A subscriber that joins and leaves all the time, like subscribers that crash. */
static int stop_joining;
static void *join_and_leave(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&stop_joining, __ATOMIC_RELAXED)) {
        uint32_t bit;
        uint64_t seq, frame_no;
        if (cf_writer_join(&writer, "passer-by", 1, &bit, &seq, &frame_no) != CF_OK) abort();
        cf_writer_leave(&writer, bit);
        usleep(50);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    strict = (uint32_t)atoi(argv[1]);
    uint32_t readers = (uint32_t)atoi(argv[2]);
    frames = (uint64_t)atoll(argv[3]);
    cf_writer_init(&writer, &header, RING, strict);
    reader_task *tasks = calloc(readers, sizeof *tasks);
    for (uint32_t i = 0; i < readers; i++) {
        reader_task *task = &tasks[i];
        uint64_t seq, frame_no;
        task->index = i;
        if (cf_writer_join(&writer, "reader", i, &task->bit, &seq, &frame_no) != CF_OK) return 2;
        task->reader = (cf_reader){.shared = &header,
                                   .ring_size = RING,
                                   .bit = task->bit,
                                   .max_held = 2,
                                   .mode = i % 3 == 2 ? CF_NEWEST : CF_ORDERED,
                                   .wait = (int)(i % 3),
                                   .pins = true,
                                   .wakes = true,
                                   .strict = strict,
                                   .counted = true,
                                   .sock = -1,
                                   .event_fd = -1,
                                   .last_seq = seq,
                                   .last_frame_no = frame_no};
    }
    for (uint32_t i = 0; i < readers; i++) pthread_create(&tasks[i].thread, NULL, read_all, &tasks[i]);
    pthread_t producer, neighbour;
    pthread_create(&producer, NULL, write_all, NULL);
    pthread_create(&neighbour, NULL, join_and_leave, NULL);
    pthread_join(producer, NULL);
    __atomic_store_n(&stop_joining, 1, __ATOMIC_RELAXED);
    pthread_join(neighbour, NULL);
    cf_writer_shutdown(&writer);
    int bad = 0;
    for (uint32_t i = 0; i < readers; i++) {
        cf_reader *r = &tasks[i].reader;
        pthread_join(tasks[i].thread, NULL);
        printf("reader %u: received %llu lost %llu skipped %llu torn %llu held %u\n", i,
               (unsigned long long)r->received, (unsigned long long)r->lost, (unsigned long long)r->skipped,
               (unsigned long long)tasks[i].torn, r->held);
        bad |= tasks[i].torn != 0 || r->held != 0 || r->received == 0;
        bad |= r->received + r->lost + r->skipped != r->last_frame_no;
        bad |= strict && r->mode == CF_ORDERED && (r->lost != 0 || r->received != writer.frames);
    }
    for (uint32_t k = 0; k < RING; k++) bad |= cf_load_acquire(&header.slots[k].pin_bitmap) != 0;
    printf("published %llu dropped %llu\n", (unsigned long long)writer.frames, (unsigned long long)writer.dropped);
    free(tasks);
    return bad;
}
