/* Surviving a file that another process truncates.
 *
 * A mapping of a file is usable only up to the end of the file: touching memory behind it raises SIGBUS, which ends the
 * process. A memfd can be sealed against truncation, but a file with a name cannot. Every process that may write to it
 * may truncate it at any time, even in the middle of a copy, so checking its size first does not help.
 *
 * Therefore SIGBUS is handled here, as libwayland does for the buffers of its clients. If the address lies in one of
 * our ranges, that range is marked as cut and replaced by memory of our own, all zeros. The interrupted access is then
 * repeated there and succeeds. Code that has read or written a range checks the mark afterwards (check_whole in
 * mapping.pxd) and raises.
 *
 * THE WHOLE RANGE is replaced, not only the missing pages:
 *   - every seqlock then fails its check (a slot's seq and write_cursor are 0), so zeros never pass for a packet or a
 *     frame, no matter which thread touched them first;
 *   - later writes do not mix with memory that others still see. Futexes in the range work, but nobody wakes them, so
 *     sleepers return after their slice and find the mark;
 *   - one mapping takes the place of one, so the kernel's limit on the number of mappings is not reached.
 * The range stays cut when the file grows again.
 *
 * THE HANDLER takes no lock and allocates nothing, so it may interrupt any code, on any thread, on several at a time.
 * The ranges are in a list whose nodes are never freed, only reused. The rest of this file takes no lock either, so a
 * fork finds nothing locked; the child inherits the handler, the list and the ranges.
 *
 * OTHER SIGNALS. We handle only faults (BUS_ADRERR) in our ranges. All other signals (other addresses, broken memory,
 * signals that were sent) are passed to the handler of SIGBUS that was installed before ours, with its mask and flags,
 * or to the kernel. A handler that is installed after ours runs first and decides what to pass on to us.
 *
 * Only one module may include this file, since there must be only one list. */
#ifndef CUFRAMES_GUARD_H
#define CUFRAMES_GUARD_H

#include "gnu.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "debug.h"

/* A range of memory. Fields marked atomic are read by the handler while others change them. */
typedef struct cf_guard {
    struct cf_guard *next; /* never changes once the node is in the list */
    uint32_t taken;        /* atomic; the node is in use */
    uint32_t cut;          /* atomic; the range has been replaced by zeros of our own */
    uintptr_t start;       /* atomic */
    size_t size;           /* atomic; 0: nothing to guard. Stored after `start`, and set to 0 before `start` changes */
    int protection;
} cf_guard;

static cf_guard *cf_guards;                 /* atomic */
static struct sigaction *cf_guard_previous; /* atomic; the structure that it points to never changes */

/* Whether a file can be truncated. */
static inline bool cf_guard_needed(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);
    return seals < 0 || !(seals & F_SEAL_SHRINK);
}

/* ---- the handler ------------------------------------------------------------------------------------------------- */

/* Replace the range that contains `address`. False: the address is in none of our ranges. */
static inline bool cf_guard_mend(uintptr_t address) {
    for (cf_guard *g = __atomic_load_n(&cf_guards, __ATOMIC_ACQUIRE); g; g = g->next) {
        /* The range with the fault does not change, since it is in use. Another range may be changing: then start and
         * size may not belong together, and the second load of the size differs. */
        size_t size = __atomic_load_n(&g->size, __ATOMIC_SEQ_CST);
        uintptr_t start = __atomic_load_n(&g->start, __ATOMIC_SEQ_CST);
        if (address - start >= size || __atomic_load_n(&g->size, __ATOMIC_SEQ_CST) != size) continue;
        /* Set the mark first, so that code that has read a zero finds it. PAIRS WITH: check_whole in mapping.pxd.
         * Several threads may get here for one range. Each replaces it, so that none has to wait for another. */
        __atomic_store_n(&g->cut, 1, __ATOMIC_SEQ_CST);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        /* The bare system call, since a C library's mmap need not be safe in a signal handler. */
        return syscall(SYS_mmap, start, size, g->protection, flags, -1, 0) != -1;
    }
    return false;
}

/* Do what would have happened without our handler. */
static inline void cf_guard_pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction *previous = __atomic_load_n(&cf_guard_previous, __ATOMIC_ACQUIRE);
    if (previous->sa_flags & SA_SIGINFO) {
        previous->sa_sigaction(number, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(number);
    } else if (previous->sa_handler == SIG_DFL || info->si_code > 0) { /* a fault cannot be ignored */
        /* End the process: send the same signal again, which arrives as soon as this handler returns. */
        struct sigaction ending;
        memset(&ending, 0, sizeof ending);
        ending.sa_handler = SIG_DFL;
        sigaction(number, &ending, NULL);
        if (syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), number, info)) raise(number);
    }
}

static void cf_guard_handler(int number, siginfo_t *info, void *context) {
    int before = errno;
    /* A signal that was sent has no address. */
    if (info->si_code != BUS_ADRERR || !cf_guard_mend((uintptr_t)info->si_addr)) {
        errno = before;
        cf_guard_pass_on(number, info, context);
    }
    errno = before;
}

/* Handle SIGBUS from now on. Further calls change nothing, with one exception: if the default action was restored after
 * our handler was installed, it is replaced again. Another handler that was installed after ours is left alone, since
 * it may pass signals on to us. Returns 0 or an errno. */
static inline int cf_guard_install(void) {
    struct sigaction now, ours;
    if (sigaction(SIGBUS, NULL, &now)) return errno;
    bool nobody = !(now.sa_flags & SA_SIGINFO) && (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN);
    if (__atomic_load_n(&cf_guard_previous, __ATOMIC_ACQUIRE) && !nobody) return 0;
    struct sigaction *previous = (struct sigaction *)malloc(sizeof *previous);
    if (!previous) return ENOMEM;
    *previous = now;
    __atomic_store_n(&cf_guard_previous, previous, __ATOMIC_RELEASE);
    /* With the mask and flags that the previous handler expects, and on the alternate stack, if the thread has one. */
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = cf_guard_handler;
    ours.sa_mask = now.sa_mask;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & (SA_RESTART | SA_NODEFER));
    return sigaction(SIGBUS, &ours, NULL) ? errno : 0;
}

/* ---- ranges ------------------------------------------------------------------------------------------------------ */

/* Guard a new mapping before it is touched. NULL: no memory. cf_guard_unmap ends the guard. */
static inline cf_guard *cf_guard_watch(void *start, size_t size, int protection) {
    cf_guard *g = __atomic_load_n(&cf_guards, __ATOMIC_ACQUIRE);
    while (g && __atomic_exchange_n(&g->taken, 1, __ATOMIC_ACQUIRE)) g = g->next;
    if (!g) {
        if (!(g = (cf_guard *)calloc(1, sizeof *g))) return NULL;
        g->taken = 1;
        do g->next = __atomic_load_n(&cf_guards, __ATOMIC_ACQUIRE);
        while (!__atomic_compare_exchange_n(&cf_guards, &g->next, g, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    }
    __atomic_store_n(&g->cut, 0, __ATOMIC_RELAXED);
    g->protection = protection;
    __atomic_store_n(&g->start, (uintptr_t)start, __ATOMIC_SEQ_CST);
    __atomic_store_n(&g->size, size, __ATOMIC_SEQ_CST);
    return g;
}

/* Cut a range whose file was found to be truncated, although no missing page was touched. Otherwise the part before the
 * end of the file would still be used from time to time. */
static inline void cf_guard_cut(cf_guard *g) { cf_guard_mend(__atomic_load_n(&g->start, __ATOMIC_RELAXED)); }

/* Unmap a range that is no longer used. */
static inline void cf_guard_unmap(cf_guard *g) {
    size_t size = __atomic_load_n(&g->size, __ATOMIC_RELAXED);
    CF_ASSERT(size && __atomic_load_n(&g->taken, __ATOMIC_RELAXED)); /* once for each range */
    /* In this order: as soon as the range is unmapped, the kernel may map something else there. */
    __atomic_store_n(&g->size, 0, __ATOMIC_SEQ_CST);
    munmap((void *)__atomic_load_n(&g->start, __ATOMIC_RELAXED), size);
    __atomic_store_n(&g->taken, 0, __ATOMIC_RELEASE);
}

#endif
