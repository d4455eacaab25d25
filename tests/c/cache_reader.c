/* A framecache consumer written from the format's description, without this library: offsets are literal numbers.
 *
 *   cache_reader FILE SEMAPHORE FRAMES [PAUSE_US]
 *
 * Maps the slot read-only, keeps its own cursor, drains the semaphore, waits with a timeout, copies a frame, and checks
 * the cursor again. Every 8 bytes of a frame must be the frame's number. Prints "ready" as JSON, then the numbers of
 * frames read, dropped, and found torn after copying. Exit status 1: a frame was wrong; 3: no frame came for 10 s. */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define U32(at) (*(const uint32_t *)(slot + (at)))
#define CURSOR __atomic_load_n((const uint64_t *)(slot + 40), __ATOMIC_ACQUIRE)

enum { OK, TIMEOUT, DROPPED, LAPPED };

static const char *slot;
static sem_t *semaphore;
static uint64_t next, dropped;

/* Read the next frame into `out`. */
static int read_frame(char *out, uint64_t *seq, uint32_t *size) {
    uint32_t depth = U32(32), frame_size = U32(28);
    while (sem_trywait(semaphore) == 0) { /* earlier posts say nothing about coming frames */
    }
    for (int waits = 0; CURSOR == next; waits++) {
        struct timespec until;
        if (waits == 100) return TIMEOUT;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        sem_timedwait(semaphore, &until);
    }
    int status = OK;
    uint64_t cursor = CURSOR;
    if (cursor - next >= depth) { /* the entry of frame cursor - depth is being overwritten now */
        dropped += cursor - depth + 1 - next;
        next = cursor - depth + 1;
        status = DROPPED;
    }
    const char *entry = slot + 4096 + next % depth * (24 + (uint64_t)frame_size);
    memcpy(size, entry + 16, 4);
    if (*size > frame_size) *size = frame_size;
    memcpy(out, entry + 24, *size);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (CURSOR - next >= depth) return LAPPED;
    *seq = next++;
    return status;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int fd = open(argv[1], O_RDONLY);
    struct stat file;
    if (fd < 0 || fstat(fd, &file)) return 2;
    slot = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_SHARED, fd, 0);
    semaphore = sem_open(argv[2], 0);
    if (slot == MAP_FAILED || semaphore == SEM_FAILED) return 2;
    if (U32(0) != 0x46524D43 || U32(4) != 1) return 2;
    uint64_t wanted = strtoull(argv[3], NULL, 10), seen = 0, lapped = 0;
    useconds_t pause = argc > 4 ? (useconds_t)atoi(argv[4]) : 0;
    uint64_t *copy = malloc(U32(28) + 8);
    next = CURSOR;
    puts("\"ready\"");
    fflush(stdout);
    while (seen < wanted) {
        uint64_t seq;
        uint32_t size;
        int status = read_frame((char *)copy, &seq, &size);
        if (status == TIMEOUT) return 3;
        if (status == LAPPED) {
            lapped++;
            continue;
        }
        for (uint32_t i = 0; i < size / 8; i++)
            if (copy[i] != seq) return 1;
        seen++;
        if (pause) usleep(pause);
    }
    printf("{\"read\": %llu, \"dropped\": %llu, \"lapped\": %llu}\n", (unsigned long long)seen,
           (unsigned long long)dropped, (unsigned long long)lapped);
    return 0;
}
