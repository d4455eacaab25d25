/* The floor of the packet ring: memcpy into a ring of bytes, and out of it into a buffer, as a program that trusts
 * everybody would do it. Prints JSON: medians in nanoseconds per packet.
 *
 *   floor_packets PACKET_BYTES RING_BYTES BATCH ROUNDS */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int order(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    size_t packet = (size_t)atoll(argv[1]), size = (size_t)atoll(argv[2]), offset = 0;
    int batch = atoi(argv[3]), rounds = atoi(argv[4]);
    char *ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    char *source = malloc(packet), *out = malloc(packet);
    double *in_ns = calloc((size_t)rounds, sizeof *in_ns), *out_ns = calloc((size_t)rounds, sizeof *out_ns);
    memset(source, 1, packet);
    for (int r = 0; r < rounds; r++) {
        size_t at = offset;
        int64_t a = now_ns();
        for (int i = 0; i < batch; i++) {
            if (at + packet > size) at = 0;
            memcpy(ring + at, source, packet);
            __asm__ volatile("" ::: "memory");
            at += packet;
        }
        int64_t b = now_ns();
        at = offset;
        for (int i = 0; i < batch; i++) {
            if (at + packet > size) at = 0;
            memcpy(out, ring + at, packet);
            __asm__ volatile("" ::: "memory");
            at += packet;
        }
        int64_t c = now_ns();
        offset = at;
        in_ns[r] = (double)(b - a) / batch;
        out_ns[r] = (double)(c - b) / batch;
    }
    qsort(in_ns, (size_t)rounds, sizeof *in_ns, order);
    qsort(out_ns, (size_t)rounds, sizeof *out_ns, order);
    printf("{\"in_ns\": %.1f, \"out_ns\": %.1f}\n", in_ns[rounds / 2], out_ns[rounds / 2]);
    return 0;
}
