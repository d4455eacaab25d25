/* The floors of host memory, from C: a futex hand-over and a spinning one between two processes, and memcpy of a frame.
 * Prints JSON, microseconds.
 *
 *   floor_host RATE_HZ COUNT FRAME_BYTES [CORE CORE]    the two processes on a core each
 *   floor_host ping COUNT                               there and back, as fast as it goes: one way of it
 *   floor_host wake SLEEPERS COUNT WORK_US              what waking so many processes with one futex broadcast costs,
 * and when the last of them is awake; work after each broadcast */
#define _GNU_SOURCE /* CPU_SET */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "cuframes/copy.h"
#include "cuframes/shm.h"

typedef struct {
    uint64_t seq;
    int64_t sent;
    int64_t took[1 << 16];
} shared;

static int order(const void *a, const void *b) {
    return (*(const int64_t *)a > *(const int64_t *)b) - (*(const int64_t *)a < *(const int64_t *)b);
}

static void stay_on(int core) {
    cpu_set_t set;
    if (core < 0) return;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set)) exit(3);
}

static void hand_over(const char *name, int spin, int64_t interval_ns, int count, int core, int other) {
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    pid_t child = fork();
    stay_on(child ? core : other);
    if (child == 0) {
        for (uint64_t n = 1; n <= (uint64_t)count; n++) {
            uint64_t seen;
            while ((seen = cf_load_seq_cst(&s->seq)) < n) {
                if (spin) cf_cpu_relax();
                else cf_futex_wait(cf_low_half(&s->seq), (uint32_t)seen, 1000000000);
            }
            s->took[n - 1] = cf_now_ns() - cf_load_relaxed_i64(&s->sent);
        }
        _exit(0);
    }
    cf_sleep_ns(50000000);
    for (uint64_t n = 1; n <= (uint64_t)count; n++) {
        cf_store_relaxed_i64(&s->sent, cf_now_ns());
        cf_store_seq_cst(&s->seq, n);
        if (!spin) cf_futex_wake_all(cf_low_half(&s->seq));
        cf_sleep_ns(interval_ns);
    }
    waitpid(child, NULL, 0);
    qsort(s->took, (size_t)count, sizeof s->took[0], order);
    printf("\"%s_p50_us\": %.2f, \"%s_p99_us\": %.2f, ", name, (double)s->took[count / 2] / 1e3, name,
           (double)s->took[count * 99 / 100] / 1e3);
    munmap(s, sizeof *s);
}

/* There and back, as fast as it goes: half of it, in microseconds. */
static void ping(const char *name, int spin, int count, const char *end) {
    shared *s = mmap(NULL, 2 * sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    shared *back = s + 1;
    pid_t child = fork();
    shared *mine = child ? s : back, *theirs = child ? back : s;
    for (uint64_t n = 1; n <= (uint64_t)count; n++) {
        int64_t began = cf_now_ns();
        if (child) {
            cf_store_seq_cst(&mine->seq, n);
            if (!spin) cf_futex_wake_all(cf_low_half(&mine->seq));
        }
        uint64_t seen;
        while ((seen = cf_load_seq_cst(&theirs->seq)) < n) {
            if (spin) cf_cpu_relax();
            else cf_futex_wait(cf_low_half(&theirs->seq), (uint32_t)seen, 1000000000);
        }
        if (!child) {
            cf_store_seq_cst(&mine->seq, n);
            if (!spin) cf_futex_wake_all(cf_low_half(&mine->seq));
        }
        if (child) s->took[n - 1] = cf_now_ns() - began;
    }
    if (child == 0) _exit(0);
    waitpid(child, NULL, 0);
    qsort(s->took, (size_t)count, sizeof s->took[0], order);
    printf("\"%s_p50_us\": %.2f, \"%s_p99_us\": %.2f%s", name, (double)s->took[count / 2] / 2e3, name,
           (double)s->took[count * 99 / 100] / 2e3, end);
    munmap(s, 2 * sizeof *s);
}

/* One broadcast to processes that note when they are awake, and sleep on it again. */
static void wake(int sleepers, int count, int64_t work_ns) {
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int64_t *awake = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int64_t *slowest = calloc((size_t)count, sizeof *slowest);
    pid_t child[64];
    for (int i = 0; i < sleepers; i++) {
        if ((child[i] = fork()) == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL); /* it ends by a signal only, also when the benchmark is interrupted */
            for (uint64_t last = 0, seen;; last = seen) {
                while ((seen = cf_load_seq_cst(&s->seq)) == last)
                    cf_futex_wait(cf_low_half(&s->seq), (uint32_t)seen, 1000000000);
                cf_store_relaxed_i64(&awake[i], cf_now_ns());
            }
        }
    }
    for (int i = 0; i < count; i++) {
        cf_sleep_ns(10000000); /* until all of them sleep again */
        int64_t began = cf_now_ns(), last = began;
        cf_store_seq_cst(&s->seq, (uint64_t)i + 1);
        cf_futex_wake_all(cf_low_half(&s->seq));
        s->took[i] = cf_now_ns() - began;
        while (cf_now_ns() < began + work_ns) {}
        cf_sleep_ns(5000000);
        for (int k = 0; k < sleepers; k++) {
            int64_t at = cf_load_relaxed_i64(&awake[k]);
            if (at > last) last = at;
        }
        slowest[i] = last - began;
    }
    for (int i = 0; i < sleepers; i++) {
        kill(child[i], SIGKILL);
        waitpid(child[i], NULL, 0);
    }
    qsort(s->took, (size_t)count, sizeof s->took[0], order);
    qsort(slowest, (size_t)count, sizeof slowest[0], order);
    printf("{\"publish_p50_us\": %.2f, \"publish_p99_us\": %.2f, \"slowest_p50_us\": %.2f, \"slowest_p99_us\": %.2f}\n",
           (double)s->took[count / 2] / 1e3, (double)s->took[count * 99 / 100] / 1e3, (double)slowest[count / 2] / 1e3,
           (double)slowest[count * 99 / 100] / 1e3);
    munmap(s, sizeof *s);
}

typedef void (*copy)(char *, const char *, size_t);
static void with_memcpy(char *to, const char *from, size_t size) { memcpy(to, from, size); }
static void with_ours(char *to, const char *from, size_t size) { cf_copy(to, from, size); }
static void past_the_cache(char *to, const char *from, size_t size) {
#if defined(__SSE2__)
    for (; size >= 16; size -= 16, to += 16, from += 16)
        _mm_stream_si128((__m128i *)(void *)to, _mm_loadu_si128((const __m128i *)(const void *)from));
    _mm_sfence();
#endif
    memcpy(to, from, size);
}

static void measure_copy(const char *name, copy function, size_t size, const char *end) {
    size_t stride = (size + 4095) / 4096 * 4096, slots = 8;
    char *pool = mmap(NULL, stride * slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    char *source = malloc(size);
    memset(source, 1, size);
    int64_t took[120];
    for (int i = 0; i < 120; i++) {
        int64_t begin = cf_now_ns();
        function(pool + (size_t)i % slots * stride, source, size);
        took[i] = cf_now_ns() - begin;
    }
    qsort(took, 120, sizeof took[0], order);
    printf("\"%s_us\": %.1f%s", name, (double)took[60] / 1e3, end);
    free(source);
    munmap(pool, stride * slots);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "ping") == 0) {
        printf("{");
        ping("spin", 1, atoi(argv[2]), ", ");
        ping("futex", 0, atoi(argv[2]), "}\n");
        return 0;
    }
    if (argc == 5 && strcmp(argv[1], "wake") == 0) {
        int sleepers = atoi(argv[2]);
        if (sleepers > 64) return 2;
        wake(sleepers, atoi(argv[3]), 1000 * atoll(argv[4]));
        return 0;
    }
    if (argc != 4 && argc != 6) return 2;
    int core = argc == 6 ? atoi(argv[4]) : -1, other = argc == 6 ? atoi(argv[5]) : -1;
    int64_t interval = 1000000000 / atoll(argv[1]);
    int count = atoi(argv[2]);
    size_t size = (size_t)atoll(argv[3]);
    printf("{");
    hand_over("spin", 1, interval, count, core, other);
    hand_over("futex", 0, interval, count, core, other);
    measure_copy("memcpy", with_memcpy, size, ", ");
    measure_copy("vectors", with_ours, size, ", ");
    measure_copy("past_the_cache", past_the_cache, size, "}\n");
    return 0;
}
