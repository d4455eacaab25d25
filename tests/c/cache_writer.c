/* A framecache writer written from the format's description, without this library: offsets are literal numbers.
 *
 *   cache_writer FILE SEMAPHORE WIDTH HEIGHT DEPTH FRAMES INTERVAL_US [VERSION]
 *
 * Creates the slot (UYVY), prints "ready" as JSON, and waits for a line on standard input. Then writes frames, in which
 * every 8 bytes are the frame's number, and posts the semaphore for each. Waits for another line before it ends. Uses
 * neither locks nor futexes. */
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 8) return 2;
    uint32_t width = (uint32_t)atoi(argv[3]), height = (uint32_t)atoi(argv[4]), depth = (uint32_t)atoi(argv[5]);
    uint64_t frames = strtoull(argv[6], NULL, 10);
    uint32_t frame_size = width * height * 2;
    size_t total = 4096 + (size_t)depth * (24 + frame_size);
    int fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)total)) return 2;
    char *slot = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    sem_t *semaphore = sem_open(argv[2], O_CREAT, 0600, 0);
    if (slot == MAP_FAILED || semaphore == SEM_FAILED) return 2;
    uint32_t header[] = {0x46524D43, argc > 8 ? (uint32_t)atoi(argv[8]) : 1, width, height, 25, 1, 0, frame_size, depth,
                         0};
    memcpy(slot, header, sizeof header);
    strcpy(slot + 56, "test");
    const char *name = strrchr(argv[1], '/');
    strncpy(slot + 88, name ? name + 1 : argv[1], 63);
    puts("\"ready\"");
    fflush(stdout);
    if (getchar() == EOF) return 0;
    for (uint64_t n = 0; n < frames; n++) {
        char *entry = slot + 4096 + n % depth * (24 + (uint64_t)frame_size);
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t wall = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, pts = n * 40000;
        memcpy(entry, &pts, 8);
        memcpy(entry + 8, &wall, 8);
        memcpy(entry + 16, &frame_size, 4);
        for (uint32_t i = 0; i < frame_size / 8; i++) memcpy(entry + 24 + 8 * (size_t)i, &n, 8);
        __atomic_store_n((uint64_t *)(slot + 40), n + 1, __ATOMIC_RELEASE);
        sem_post(semaphore);
        usleep((useconds_t)atoi(argv[7]));
    }
    puts("\"done\"");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
