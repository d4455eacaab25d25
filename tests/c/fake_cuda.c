/* A CUDA driver without a GPU, for tests only: enough of libcuda.so.1 for cuframes' device path.
 *
 * Device memory is a memfd. A device address is the address of its mapping, an exported descriptor is a plain
 * descriptor, and setting access is mprotect. Streams and events are immediate, unless fake_busy(1) makes every event
 * recorded from then on wait for fake_busy(0). Any number is a valid stream, with one exception: using a stream after
 * cuStreamDestroy ends the process, as with the real driver. So does any call in a forked child. Graph captures follow
 * the rules of the real driver (measured with driver 580): in a thread that is not in relaxed mode, some calls fail and
 * end every global capture; cuCtxRecordEvent and cuCtxSynchronize do so in any thread. Legacy IPC handles contain (pid,
 * descriptor) and are opened through /proc; as with the real driver, a process cannot open its own.
 *
 * It shows whether handshake, lifetime, refusals and crash handling are right. It cannot show whether the order of work
 * on a GPU is right. */
#include <dlfcn.h>
#include <stdbool.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907
};

#define DEVICES 2
#define TOTAL ((size_t)8 << 30)
#define MAX_BLOCKS 4096

typedef struct {
    void *base;
    size_t size;
    int fd;
    int kind; /* 0 cuMemAlloc, 1 managed, 2 stream-ordered, 3 opened by IPC */
    int device;
} block;

typedef struct {
    uint64_t recorded;
    bool captured;
} event;

typedef struct {
    bool blocking, dead, capturing, invalid;
} stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block blocks[MAX_BLOCKS];
static size_t used;
static int started, events_alive, mappings_alive;
static pid_t started_by;
static uint64_t clock_now = 1, clock_done = UINT64_MAX;
static char contexts[DEVICES];
static __thread void *stack[64];
static __thread int depth;

static stream streams[64]; /* handles are their addresses */
static int streams_made;
static __thread int capture_mode; /* 0 global, 1 thread-local, 2 relaxed */
static int steps_until_failure, queries, lost, slow_copies;
static char failing[64];
static int failure;

/* ---- switches and counters for tests ---- */
void fake_busy(int busy) { clock_done = busy ? clock_now++ : UINT64_MAX; }
int fake_events(void) { return events_alive; }
int fake_mappings(void) { return mappings_alive; }
int fake_queries(void) { return __atomic_load_n(&queries, __ATOMIC_RELAXED); }
/* Every call of this function fails from now on. "" turns this off. */
void fake_fail(const char *name, int result) { snprintf(failing, sizeof failing, "%s", name), failure = result; }
/* The n-th call that creates or opens something fails with "out of memory", once. 0: none. */
void fake_fail_step(int n) { steps_until_failure = n; }
int fake_steps_left(void) { return steps_until_failure; }
/* The context has had an illegal address. */
void fake_lost(int is) { lost = is; }
/* Copies to the host wait until the GPU is no longer busy, as copies to pageable memory do. */
void fake_slow_copies(int slow) { slow_copies = slow; }

static int begin_call(const char *name, bool makes) {
    if (started && started_by != getpid()) {
        fprintf(stderr, "fake driver: %s in a forked child\n", name);
        abort();
    }
    if (lost) return ILLEGAL_ADDRESS;
    if (!strcmp(failing, name)) return failure;
    return makes && steps_until_failure > 0 && --steps_until_failure == 0 ? OUT_OF_MEMORY : OK;
}
#define CALL()                                   \
    do {                                         \
        int wrong = begin_call(__func__, false); \
        if (wrong) return wrong;                 \
    } while (0)
#define STEP()                                  \
    do {                                        \
        int wrong = begin_call(__func__, true); \
        if (wrong) return wrong;                \
    } while (0)

static void end_captures(void) {
    for (int i = 0; i < streams_made; i++) streams[i].invalid |= streams[i].capturing;
}
static bool is_captured(bool blocking_only) {
    bool found = false;
    for (int i = 0; i < streams_made; i++) found |= streams[i].capturing && (streams[i].blocking || !blocking_only);
    return found;
}
/* A call that a capture in global mode forbids. */
#define UNSAFE()                                                                                 \
    do {                                                                                         \
        CALL();                                                                                  \
        if (capture_mode == 0 && is_captured(false)) return end_captures(), CAPTURE_UNSUPPORTED; \
    } while (0)

static stream *stream_of(void *handle) {
    if ((char *)handle < (char *)streams || (char *)handle >= (char *)(streams + 64)) return NULL;
    stream *s = handle;
    if (s->dead) {
        fprintf(stderr, "fake driver: a destroyed stream is used\n");
        abort();
    }
    return s;
}
/* Before something is queued on a stream. */
static int queue(void *handle, bool *captured) {
    stream *s = stream_of(handle);
    if (captured) *captured = s && s->capturing;
    if (!depth && (uintptr_t)handle < 3) return INVALID_CONTEXT;
    if ((uintptr_t)handle == 0xdead) return INVALID_HANDLE;
    if ((uintptr_t)handle < 2 && is_captured(true)) return end_captures(), CAPTURE_IMPLICIT;
    return OK;
}
static bool is_over(uint64_t recorded) { return recorded <= *(volatile uint64_t *)&clock_done; }

static block *add_block(void *base, size_t size, int fd, int kind) {
    block *found = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS && !found; i++)
        if (!blocks[i].base) found = &blocks[i];
    if (found) *found = (block){base, size, fd, kind, depth ? (int)((char *)stack[depth - 1] - contexts) : 0};
    if (found && kind != 3) used += size;
    pthread_mutex_unlock(&lock);
    return found;
}

static block *find_block(uintptr_t p) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].base && p >= (uintptr_t)blocks[i].base && p < (uintptr_t)blocks[i].base + blocks[i].size)
            return &blocks[i];
    return NULL;
}

static int drop_block(uintptr_t p) {
    block *b = find_block(p);
    if (!b || (uintptr_t)b->base != p) return INVALID_VALUE;
    munmap(b->base, b->size);
    if (b->fd >= 0) close(b->fd);
    if (b->kind != 3) used -= b->size;
    memset(b, 0, sizeof *b);
    return OK;
}

/* ---- devices and contexts ---- */
int cuInit(unsigned flags) {
    (void)flags;
    if (started && started_by != getpid()) return NOT_INITIALIZED;
    started = 1;
    started_by = getpid();
    return OK;
}
int cuDriverGetVersion(int *v) { return *v = 13000, OK; }
int cuDeviceGetCount(int *n) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *n = visible && strlen(visible) == 1 ? 1 : DEVICES;
    return OK;
}
static int physical(int device) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && strlen(visible) == 1 ? visible[0] - '0' : device;
}
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
int cuDeviceGetName(char *name, int length, int device) {
    return snprintf(name, (size_t)length, "Fake %d", physical(device)), OK;
}
int cuDeviceGetUuid(char *uuid, int device) {
    memset(uuid, 0xfa, 16);
    uuid[15] = (char)physical(device);
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &contexts[device], OK; }
int cuDevicePrimaryCtxRelease(int device) { return (void)device, OK; }
int cuCtxGetCurrent(void **context) { return *context = depth ? stack[depth - 1] : NULL, OK; }
int cuCtxGetDevice(int *device) {
    if (!depth) return INVALID_CONTEXT;
    *device = (int)((char *)stack[depth - 1] - contexts);
    return OK;
}
int cuCtxPushCurrent(void *context) {
    CALL();
    return stack[depth++] = context, OK;
}
int cuCtxPopCurrent(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return OK;
}
int cuCtxSetCurrent(void *context) {
    if (!depth) depth = 1;
    stack[depth - 1] = context;
    return OK;
}
int cuMemGetInfo(size_t *free_bytes, size_t *total) { return *total = TOTAL, *free_bytes = TOTAL - used, OK; }

/* ---- memory ---- */
static int allocate(uintptr_t *p, size_t size, int kind) {
    int fd = memfd_create("fake-cuda", MFD_CLOEXEC);
    if (!depth) return INVALID_CONTEXT;
    if (size > TOTAL - used || fd < 0 || ftruncate(fd, (off_t)size)) return OUT_OF_MEMORY;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED || !add_block(base, size, fd, kind)) return OUT_OF_MEMORY;
    *p = (uintptr_t)base;
    return OK;
}
int cuMemAlloc(uintptr_t *p, size_t size) {
    STEP();
    UNSAFE();
    return allocate(p, size, 0);
}
int cuMemAllocManaged(uintptr_t *p, size_t size, unsigned flags) { return (void)flags, allocate(p, size, 1); }
int cuMemAllocAsync(uintptr_t *p, size_t size, void *stream) { return (void)stream, allocate(p, size, 2); }
int cuMemFree(uintptr_t p) {
    UNSAFE();
    while (slow_copies && !is_over(clock_now)) usleep(100); /* the real one waits as well */
    return drop_block(p);
}
int cuMemHostAlloc(void **p, size_t size, unsigned flags) {
    STEP();
    return (void)flags, *p = malloc(size), *p ? OK : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *p) { return free(p), OK; }
int cuMemGetAddressRange(uintptr_t *base, size_t *size, uintptr_t p) {
    STEP();
    block *b = find_block(p);
    if (!b) return INVALID_VALUE;
    if (base) *base = (uintptr_t)b->base;
    if (size) *size = b->size;
    return OK;
}
int cuPointerGetAttribute(void *out, int attribute, uintptr_t p) {
    CALL();
    block *b = find_block(p);
    if (!b) return INVALID_VALUE;
    switch (attribute) {
        case 2: return *(unsigned *)out = 2, OK;                             /* memory type: device */
        case 8: return *(unsigned *)out = b->kind == 1, OK;                  /* managed */
        case 9: return *(int *)out = b->device, OK;                          /* ordinal */
        case 10: return *(unsigned char *)out = b->kind == 0, OK;            /* legacy IPC */
        case 17: return *(void **)out = b->kind == 2 ? (void *)b : NULL, OK; /* pool */
        default: return INVALID_VALUE;
    }
}

typedef struct {
    size_t src_x, src_y;
    int src_type;
    const char *src_host;
    const char *src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    char *dst_host;
    char *dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} copy_2d;
int cuMemcpy2DAsync(const copy_2d *c, void *stream) {
    CALL();
    (void)stream;
    if (c->src_pitch < c->width || c->dst_pitch < c->width) return INVALID_VALUE;
    while (slow_copies && c->dst_type == 1 && !is_over(clock_now)) usleep(100);
    const char *src = c->src_type == 1 ? c->src_host : c->src_device;
    char *dst = c->dst_type == 1 ? c->dst_host : c->dst_device;
    for (size_t i = 0; i < c->height; i++) memcpy(dst + i * c->dst_pitch, src + i * c->src_pitch, c->width);
    return OK;
}

int cuMemcpyDtoHAsync_v2(void *dst, const void *src, size_t size, void *stream) {
    return (void)stream, memcpy(dst, src, size), OK;
}

/* ---- legacy IPC ---- */
typedef struct {
    int pid, fd;
    size_t size;
    char zero[48];
} ipc_handle;
int cuIpcGetMemHandle(ipc_handle *h, uintptr_t p) {
    STEP();
    block *b = find_block(p);
    if (!b || b->kind) return INVALID_VALUE;
    *h = (ipc_handle){.pid = getpid(), .fd = b->fd, .size = b->size};
    return OK;
}
int cuIpcOpenMemHandle(uintptr_t *p, ipc_handle h, unsigned flags) {
    STEP();
    char path[64];
    (void)flags;
    if (h.pid == getpid()) return INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return INVALID_HANDLE;
    void *base = mmap(NULL, h.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (base == MAP_FAILED || !add_block(base, h.size, -1, 3)) return OUT_OF_MEMORY;
    mappings_alive++;
    *p = (uintptr_t)base;
    return OK;
}
int cuIpcOpenMemHandle_v2(uintptr_t *p, ipc_handle h, unsigned flags) { return cuIpcOpenMemHandle(p, h, flags); }
int cuIpcCloseMemHandle(uintptr_t p) {
    CALL();
    return mappings_alive--, drop_block(p);
}

/* ---- virtual memory ---- */
int cuMemGetAllocationGranularity(size_t *size, const void *properties, int which) {
    return (void)properties, (void)which, *size = 2 << 20, OK;
}
int cuMemCreate(uint64_t *handle, size_t size, const void *properties, uint64_t flags) {
    STEP();
    (void)properties;
    (void)flags;
    if (getenv("FAKE_CUDA_NO_VMM")) return NOT_SUPPORTED;
    if (size % (2 << 20) || size > TOTAL - used) return size % (2 << 20) ? INVALID_VALUE : OUT_OF_MEMORY;
    int fd = memfd_create("fake-cuda-vmm", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size)) return OUT_OF_MEMORY;
    used += size;
    *handle = (uint64_t)fd | (uint64_t)size << 16;
    return OK;
}
int cuMemExportToShareableHandle(int *out, uint64_t handle, int kind, uint64_t flags) {
    STEP();
    return (void)kind, (void)flags, *out = fcntl((int)(handle & 0xffff), F_DUPFD_CLOEXEC, 0),
                                    *out < 0 ? INVALID_HANDLE : OK;
}
int cuMemImportFromShareableHandle(uint64_t *handle, void *os_handle, int kind) {
    STEP();
    struct stat s;
    (void)kind;
    int fd = fcntl((int)(intptr_t)os_handle, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &s)) return INVALID_HANDLE;
    *handle = (uint64_t)fd;
    return OK;
}
int cuMemRelease(uint64_t handle) {
    CALL();
    return used -= handle >> 16, close((int)(handle & 0xffff)), OK;
}
int cuMemAddressReserve(uintptr_t *p, size_t size, size_t alignment, uintptr_t where, uint64_t flags) {
    STEP();
    (void)alignment, (void)where, (void)flags;
    void *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *p = (uintptr_t)base;
    return base == MAP_FAILED ? OUT_OF_MEMORY : OK;
}
int cuMemAddressFree(uintptr_t p, size_t size) {
    CALL();
    return munmap((void *)p, size) ? INVALID_VALUE : OK;
}
int cuMemMap(uintptr_t p, size_t size, size_t offset, uint64_t handle, uint64_t flags) {
    STEP();
    (void)offset, (void)flags;
    struct stat s;
    int fd = (int)(handle & 0xffff);
    if (fstat(fd, &s) || (size_t)s.st_size < size) return INVALID_VALUE;
    mappings_alive++;
    return mmap((void *)p, size, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? INVALID_VALUE : OK;
}
int cuMemUnmap(uintptr_t p, size_t size) {
    CALL();
    mappings_alive--;
    return mmap((void *)p, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED
               ? INVALID_VALUE
               : OK;
}
int cuMemSetAccess(uintptr_t p, size_t size, const int *access, size_t count) {
    STEP();
    (void)count;
    return mprotect((void *)p, size, access[2] == 3 ? PROT_READ | PROT_WRITE : PROT_READ) ? INVALID_VALUE : OK;
}

/* ---- events and streams ---- */
int cuEventCreate(event **e, unsigned flags) {
    STEP();
    (void)flags;
    if (!depth) return INVALID_CONTEXT;
    *e = calloc(1, sizeof **e);
    __atomic_fetch_add(&events_alive, 1, __ATOMIC_RELAXED);
    return OK;
}
int cuEventDestroy(event *e) {
    CALL();
    return __atomic_fetch_sub(&events_alive, 1, __ATOMIC_RELAXED), free(e), OK;
}
int cuEventRecord(event *e, void *handle) {
    CALL();
    bool captured;
    int wrong = queue(handle, &captured);
    if (wrong) return wrong;
    return e->recorded = clock_now, e->captured = captured, OK;
}
int cuCtxRecordEvent(void *context, event *e) {
    (void)context;
    CALL();
    if (is_captured(false)) return end_captures(), CAPTURE_UNSUPPORTED;
    return e->recorded = clock_now, e->captured = false, OK;
}
int cuCtxSynchronize(void) {
    CALL();
    if (!depth) return INVALID_CONTEXT;
    if (is_captured(false)) return end_captures(), CAPTURE_UNSUPPORTED;
    for (uint64_t now = clock_now; !is_over(now);) usleep(100);
    return OK;
}
int cuEventQuery(event *e) {
    __atomic_fetch_add(&queries, 1, __ATOMIC_RELAXED);
    UNSAFE();
    if (e->captured) return end_captures(), CAPTURED_EVENT;
    return is_over(e->recorded) ? OK : NOT_READY;
}
int cuEventSynchronize(event *e) {
    UNSAFE();
    while (!is_over(e->recorded)) usleep(100);
    return OK;
}
int cuStreamWaitEvent(void *handle, event *e, unsigned flags) {
    (void)e, (void)flags;
    CALL();
    return queue(handle, NULL);
}
int cuStreamSynchronize(void *handle) {
    UNSAFE();
    return queue(handle, NULL);
}
int cuStreamIsCapturing(void *handle, int *status) {
    CALL();
    if ((uintptr_t)handle < 2 && is_captured(true)) return CAPTURE_IMPLICIT;
    stream *s = stream_of(handle);
    return *status = s && s->capturing, OK;
}
int cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = capture_mode;
    capture_mode = *mode;
    return *mode = before, OK;
}
int cuStreamCreate(void **handle, unsigned flags) {
    CALL();
    if (streams_made == 64) return OUT_OF_MEMORY;
    streams[streams_made].blocking = flags != 1;
    return *handle = &streams[streams_made++], OK;
}
int cuStreamDestroy(void *handle) { return stream_of(handle)->dead = true, OK; }
int cuStreamBeginCapture(void *handle, int mode) { return (void)mode, stream_of(handle)->capturing = true, OK; }
int cuStreamEndCapture(void *handle, void **graph) {
    stream *s = stream_of(handle);
    bool invalid = s->invalid;
    *graph = NULL;
    s->capturing = s->invalid = false;
    return invalid ? CAPTURE_INVALIDATED : OK;
}
int cuIpcGetEventHandle(ipc_handle *h, event *e) {
    STEP();
    return (void)e, *h = (ipc_handle){.pid = getpid(), .fd = 7}, OK;
}
int cuIpcOpenEventHandle(event **e, ipc_handle h) {
    STEP();
    return h.fd != 7 ? INVALID_HANDLE : cuEventCreate(e, 0);
}

/* ---- errors and look-up ---- */
int cuGetErrorName(int error, const char **name) {
    *name = error == OK                    ? "CUDA_SUCCESS"
            : error == OUT_OF_MEMORY       ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == INVALID_CONTEXT     ? "CUDA_ERROR_INVALID_CONTEXT"
            : error == NOT_SUPPORTED       ? "CUDA_ERROR_NOT_SUPPORTED"
            : error == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
            : error == CAPTURE_IMPLICIT    ? "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"
            : error == ILLEGAL_ADDRESS     ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : error == INVALID_HANDLE      ? "CUDA_ERROR_INVALID_HANDLE"
                                           : "CUDA_ERROR_FAKE";
    return OK;
}
int cuGetErrorString(int error, const char **text) { return (void)error, *text = "as the fake driver says", OK; }
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    (void)version, (void)flags;
    Dl_info self;
    dladdr((void *)&cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    bool missing = getenv("FAKE_CUDA_OLD") && !strcmp(symbol, "cuCtxRecordEvent"); /* a driver before CUDA 12.5 */
    *function = missing ? NULL : dlsym(library, symbol);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    return cuGetProcAddress(symbol, function, version, flags, status);
}
