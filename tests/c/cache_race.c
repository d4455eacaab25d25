/* One writer and several readers hammer a tiny framecache slot, as threads of one process.
 *
 * Every word of a frame is a function of the frame's number and the word's position, so a reader notices any
 * overwritten byte. That includes bytes of the entry that is being overwritten while the cursor still counts it as
 * whole.
 *
 *   cache_race READERS FRAMES FRAME_SIZE DEPTH     prints what was read; exit status 1: torn or miscounted frames */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuframes/slot_ring.h"

static cf_cache_writer writer;
static char *segment;
static uint64_t frames;
static uint32_t frame_size;

static uint64_t word(uint64_t seq, uint64_t at) { return (seq * 0x9E3779B97F4A7C15u) ^ (at * 0xC2B2AE3D27D4EB4Fu); }

typedef struct {
    pthread_t thread;
    uint32_t index;
    uint64_t torn;
    cf_cache_reader reader;
} reader_task;

static void *read_all(void *argument) {
    reader_task *task = argument;
    cf_cache_reader *r = &task->reader;
    uint64_t *copy = malloc(frame_size);
    while (r->at < frames) {
        cf_cache_frame f;
        int rc = cf_cache_find(r, &f);
        if (rc == CF_EMPTY || rc == CF_AGAIN) {
            rc = cf_cache_wait(r, INT64_MAX);
            if (rc == CF_OK || rc == CF_AGAIN) continue;
        }
        if (rc != CF_OK) abort();
        if (!cf_cache_read(r, &f, (char *)copy)) {
            cf_cache_resync(r);
            continue;
        }
        cf_cache_advance(r, &f);
        task->torn += f.size != frame_size || f.pts_us != f.seq || f.wall_us != word(f.seq, 0);
        for (uint32_t i = 0; i < frame_size / 8; i++) task->torn += copy[i] != word(f.seq, i);
        if (task->index % 2 && r->received % 1000 == 0) usleep(200);
    }
    free(copy);
    return NULL;
}

static void *write_all(void *unused) {
    (void)unused;
    uint64_t *data = malloc(frame_size);
    for (uint64_t seq = 0; seq < frames; seq++) {
        char *pixels;
        for (uint32_t i = 0; i < frame_size / 8; i++) data[i] = word(seq, i);
        if (cf_cache_begin(&writer, &pixels) != CF_OK) abort();
        if (seq % 7 == 3) { /* the writer abandons the frame half way */
            cf_copy_racing(pixels, (char *)data, frame_size / 2);
            cf_cache_end(&writer);
            if (cf_cache_begin(&writer, &pixels) != CF_OK) abort();
        }
        cf_copy_racing(pixels, (char *)data, frame_size);
        cf_cache_commit(&writer, frame_size, seq, word(seq, 0));
        cf_cache_end(&writer);
    }
    free(data);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    uint32_t readers = (uint32_t)atoi(argv[1]);
    frames = (uint64_t)atoll(argv[2]);
    frame_size = (uint32_t)atoi(argv[3]) / 8 * 8;
    uint32_t depth = (uint32_t)atoi(argv[4]);
    uint64_t size = cf_cache_size(frame_size, depth);
    segment = aligned_alloc(64, (size + 63) / 64 * 64);
    memset(segment, 0, size);
    cf_cache_format((cf_cache_header *)segment, frame_size, depth);
    if (cf_cache_writer_init(&writer, segment, size, -1, 0) != CF_OK) return 2;
    reader_task *tasks = calloc(readers, sizeof *tasks);
    for (uint32_t i = 0; i < readers; i++) {
        tasks[i].index = i;
        if (cf_cache_reader_init(&tasks[i].reader, segment, size, -1, CF_CACHE_NEXT) != CF_OK) return 2;
        tasks[i].reader.newest = i % 4 == 3;
        pthread_create(&tasks[i].thread, NULL, read_all, &tasks[i]);
    }
    pthread_t producer;
    pthread_create(&producer, NULL, write_all, NULL);
    pthread_join(producer, NULL);
    int bad = 0;
    for (uint32_t i = 0; i < readers; i++) {
        reader_task *task = &tasks[i];
        cf_cache_reader *r = &task->reader;
        pthread_join(task->thread, NULL);
        printf("reader %u: read %llu dropped %llu lapped %llu torn %llu\n", i, (unsigned long long)r->received,
               (unsigned long long)r->dropped, (unsigned long long)r->lapped, (unsigned long long)task->torn);
        bad |= task->torn != 0 || r->received == 0;
        bad |= r->received + r->dropped != frames;
    }
    free(tasks);
    free(segment);
    return bad;
}
