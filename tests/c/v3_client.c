/* A subscriber for plain protocol version 3, without any of our headers: offsets are literal numbers.
 *
 *   v3_client SOCKET FRAMES
 *
 * Joins. For each frame, waits for its slot's event, copies the frame to the host, and checks that it has one colour,
 * that of its sequence number. Prints "ok FRAMES". */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DIE(what) (fprintf(stderr, "v3_client: %s\n", what), exit(1))

typedef struct {
    char bytes[64];
} handle;

static void *cuda;
static void *need(const char *name) {
    void *f = dlsym(cuda, name);
    if (!f) DIE(name);
    return f;
}

static void exactly(int sock, void *into, size_t count) {
    for (char *p = into; count;) {
        ssize_t n = read(sock, p, count);
        if (n <= 0) DIE("the publisher hung up");
        p += n;
        count -= (size_t)n;
    }
}

/* The payload of the next message, which must have this type. */
static uint32_t receive(int sock, uint32_t type, char *payload) {
    uint32_t head[2];
    exactly(sock, head, sizeof head);
    if (head[0] != type || head[1] > 4096) DIE("unexpected message");
    exactly(sock, payload, head[1]);
    return head[1];
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    strncpy(where.sun_path, argv[1], sizeof where.sun_path - 1);
    if (connect(sock, (struct sockaddr *)&where, sizeof where)) DIE("cannot connect");

    /* HELLO_REQ: version 3, name "plain", device 0, newest, 12 reserved bytes */
    uint32_t hello[] = {1, 8 + 8 + 8 + 12, 3, 8};
    char rest[8 + 8 + 12] = "plain-c";
    char payload[4096];
    if (write(sock, hello, sizeof hello) < 0 || write(sock, rest, sizeof rest) < 0) DIE("write");
    receive(sock, 2, payload);
    int32_t result;
    uint32_t ring_size, path_length;
    uint64_t frame_bytes;
    memcpy(&result, payload, 4);
    memcpy(&ring_size, payload + 8, 4);
    memcpy(&frame_bytes, payload + 16 + 24, 8);
    memcpy(&path_length, payload + 80, 4);
    if (result) DIE("refused");
    char path[256] = {0};
    memcpy(path, payload + 84, path_length < 255 ? path_length : 255);
    uint32_t subscribe[] = {3, 0};
    if (write(sock, subscribe, sizeof subscribe) < 0) DIE("write");
    receive(sock, 4, payload);
    uint32_t bit;
    memcpy(&bit, payload + 4, 4);

    int fd = shm_open(path, O_RDWR, 0);
    char *ring = mmap(NULL, 8448, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || ring == MAP_FAILED) DIE("cannot map the control segment");
    if (*(uint32_t *)ring != 0xCC7C1DCC || *(uint32_t *)(ring + 4) != 3) DIE("not a ring of version 3");

    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) DIE("no CUDA driver");
    int (*init)(unsigned) = (int (*)(unsigned))need("cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))need("cuDevicePrimaryCtxRetain");
    int (*current)(void *) = (int (*)(void *))need("cuCtxSetCurrent");
    int (*open_memory)(uintptr_t *, handle, unsigned) =
        (int (*)(uintptr_t *, handle, unsigned))need("cuIpcOpenMemHandle_v2");
    int (*open_event)(void **, handle) = (int (*)(void **, handle))need("cuIpcOpenEventHandle");
    int (*wait_event)(void *, void *, unsigned) = (int (*)(void *, void *, unsigned))need("cuStreamWaitEvent");
    int (*copy)(void *, uintptr_t, size_t, void *) =
        (int (*)(void *, uintptr_t, size_t, void *))need("cuMemcpyDtoHAsync_v2");
    int (*synchronize)(void *) = (int (*)(void *))need("cuStreamSynchronize");
    void *context, *event[16], *stream = (void *)1;
    uintptr_t frame[16];
    if (init(0) || retain(&context, 0) || current(context)) DIE("no context");
    for (uint32_t k = 0; k < ring_size; k++) {
        handle memory, signal;
        memcpy(&memory, ring + 256 + 192 * k + 32, 64);
        memcpy(&signal, ring + 7424 + 64 * k, 64);
        if (open_memory(&frame[k], memory, 1) || open_event(&event[k], signal)) DIE("cannot open a handle");
    }
    puts("ready");
    fflush(stdout);

    unsigned char *host = malloc(frame_bytes);
    uint64_t last = 0;
    for (int taken = 0; taken < atoi(argv[2]);) {
        uint64_t seq = __atomic_load_n((uint64_t *)(ring + 192), __ATOMIC_ACQUIRE);
        if (seq == last) {
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
            continue;
        }
        uint32_t k = (uint32_t)(seq % ring_size);
        uint64_t *slot_seq = (uint64_t *)(ring + 256 + 192 * k);
        if (wait_event(stream, event[k], 0) || copy(host, frame[k], frame_bytes, stream) || synchronize(stream))
            DIE("copy");
        if (__atomic_load_n(slot_seq, __ATOMIC_ACQUIRE) != seq) continue; /* overwritten: version 3 can only notice */
        for (uint64_t i = 0; i < frame_bytes; i++)
            if (host[i] != seq % 251) DIE("the frame is not what its number says");
        __atomic_fetch_or((uint64_t *)(ring + 256 + 192 * k + 16), 1ull << bit, __ATOMIC_RELEASE);
        last = seq;
        taken++;
    }
    printf("ok %s\n", argv[2]);
    return 0;
}
