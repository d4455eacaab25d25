/* One writer and several readers hammer a small packet ring, as threads of one process.
 *
 * Packets are up to a third of the data area, so that the data area wraps before the slots do. Every word of a packet
 * is a function of the packet's number and the word's position, so a reader notices any overwritten byte.
 *
 *   packet_race READERS PACKETS LARGEST      prints what was read; exit status 1 if anything was torn or miscounted */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuframes/packet_ring.h"

#define SLOTS 8

static cf_packet_writer writer;
static char *segment;
static uint64_t size;
static uint64_t packets;
static uint32_t largest; /* words */

static uint64_t word(uint64_t seq, uint64_t at) { return (seq * 0x9E3779B97F4A7C15u) ^ (at * 0xC2B2AE3D27D4EB4Fu); }
static uint32_t length(uint64_t seq) { return (uint32_t)(word(seq, 1u << 30) >> 33) % (largest + 1); }

typedef struct {
    pthread_t thread;
    uint32_t index;
    uint64_t torn;
    uint64_t first;
    uint64_t overruns;
    uint64_t refused; /* copies that were found to be torn, and discarded */
    cf_packet_reader reader;
} reader_task;

static void *read_all(void *argument) {
    reader_task *task = argument;
    cf_packet_reader *r = &task->reader;
    uint64_t *copy = malloc(largest * 8 + 8);
    for (;;) {
        cf_packet p;
        int rc = cf_packets_next(r, INT64_MAX, &p);
        if (rc == CF_AGAIN) continue;
        if (rc == CF_ENDED) break;
        if (rc != CF_OK || p.size > largest * 8) abort();
        if (!cf_packet_read(r, &p, (char *)copy)) {
            task->refused++;
            cf_packets_resync(r);
            continue;
        }
        task->overruns += cf_packets_advance(r, &p) != 0;
        task->torn += p.size != length(p.seq) * 8 || p.pts_ns != (int64_t)p.seq;
        for (uint32_t i = 0; i < p.size / 8; i++) task->torn += copy[i] != word(p.seq, i);
        if (!task->first) task->first = p.seq;
        if (task->index % 2 && r->received % 1000 == 0) usleep(200);
    }
    free(copy);
    return NULL;
}

static void *write_all(void *unused) {
    (void)unused;
    uint64_t *data = malloc(largest * 8 + 8);
    for (uint64_t seq = 1; seq <= packets; seq++) {
        uint32_t words = length(seq);
        for (uint32_t i = 0; i < words; i++) data[i] = word(seq, i);
        if (cf_packet_writer_put(&writer, (char *)data, words * 8, (int64_t)seq, CF_NO_TIME, seq % 5 == 1) != CF_OK)
            abort();
        cf_packet_writer_wake(&writer);
    }
    free(data);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    uint32_t readers = (uint32_t)atoi(argv[1]);
    packets = (uint64_t)atoll(argv[2]);
    largest = (uint32_t)atoi(argv[3]) / 8;
    uint32_t data_size = largest * 24 + 5; /* an odd size, so that most packets begin at odd offsets */
    size = cf_packet_segment_size(SLOTS, data_size);
    segment = aligned_alloc(64, (size + 63) / 64 * 64);
    memset(segment, 0, size);
    cf_packet_writer_init(&writer, segment, SLOTS, data_size, largest * 8, 27, 0);
    cf_packet_writer_open(&writer);
    reader_task *tasks = calloc(readers, sizeof *tasks);
    for (uint32_t i = 0; i < readers; i++) {
        tasks[i].index = i;
        if (cf_packet_reader_init(&tasks[i].reader, segment, size, -1) != CF_OK) return 2;
        tasks[i].reader.spin = i % 3 == 2;
        cf_packets_start(&tasks[i].reader, (int)(i % 3));
        tasks[i].first = tasks[i].reader.expected; /* it starts live: all packets from here on count */
        pthread_create(&tasks[i].thread, NULL, read_all, &tasks[i]);
    }
    pthread_t producer;
    pthread_create(&producer, NULL, write_all, NULL);
    pthread_join(producer, NULL);
    cf_packet_writer_shutdown(&writer);
    int bad = 0;
    for (uint32_t i = 0; i < readers; i++) {
        reader_task *task = &tasks[i];
        cf_packet_reader *r = &task->reader;
        pthread_join(task->thread, NULL);
        printf("reader %u: received %llu lost %llu in %llu overruns, refused %llu copies, torn %llu\n", i,
               (unsigned long long)r->received, (unsigned long long)r->lost, (unsigned long long)task->overruns,
               (unsigned long long)task->refused, (unsigned long long)task->torn);
        bad |= task->torn != 0 || r->received == 0;
        /* Every packet is one or the other, also those after the last one that was taken. */
        bad |= r->at != packets + 1 || r->received + r->lost != r->at - task->first;
    }
    free(tasks);
    free(segment);
    return bad;
}
