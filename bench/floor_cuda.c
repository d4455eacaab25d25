/* The floor of the device path: what the driver's own calls cost, called from C. Prints JSON: medians in nanoseconds.
 * Needs libcuda.so.1 at run time only. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static int order(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

#define ROUNDS 200
#define CALLS 50
#define MEASURE(name, call)                                          \
    {                                                                \
        double took[ROUNDS];                                         \
        for (int r = 0; r < ROUNDS; r++) {                           \
            int64_t t = now_ns();                                    \
            for (int i = 0; i < CALLS; i++) call;                    \
            took[r] = (double)(now_ns() - t) / CALLS;                \
            sync(stream);                                            \
        }                                                            \
        qsort(took, ROUNDS, sizeof *took, order);                    \
        printf("%s\"%s\": %.0f", separator, name, took[ROUNDS / 2]); \
        separator = ", ";                                            \
    }

int main(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) return 1;
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    int (*set)(void *) = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    int (*create)(void **, unsigned) = (int (*)(void **, unsigned))dlsym(cuda, "cuEventCreate");
    int (*record)(void *, void *) = (int (*)(void *, void *))dlsym(cuda, "cuEventRecord");
    int (*query)(void *) = (int (*)(void *))dlsym(cuda, "cuEventQuery");
    int (*wait)(void *, void *, unsigned) = (int (*)(void *, void *, unsigned))dlsym(cuda, "cuStreamWaitEvent");
    int (*sync)(void *) = (int (*)(void *))dlsym(cuda, "cuStreamSynchronize");
    void *context, *interprocess, *local, *stream = (void *)1;
    const char *separator = "";
    if (init(0) || retain(&context, 0) || set(context) || create(&interprocess, 6) || create(&local, 2)) return 1;
    printf("{");
    MEASURE("record_interprocess", record(interprocess, stream));
    MEASURE("record", record(local, stream));
    MEASURE("wait", wait(stream, interprocess, 0));
    MEASURE("query", query(local));
    printf("}\n");
    return 0;
}
