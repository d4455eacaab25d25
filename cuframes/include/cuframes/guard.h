/* Surviving a file that somebody else shrinks.
 *
 * Memory mapped from a file ends where the file ends: touching what lies behind is SIGBUS, which ends the process. A
 * memfd can be sealed against that. A file with a name cannot: whoever may write it may shorten it at any time, also in
 * the middle of a copy, so looking at its size first does not help.
 *
 * Therefore SIGBUS is handled here, as libwayland does for the buffers of its clients. When the address lies in one of
 * our ranges, that range is marked as cut and becomes memory of our own, all zeros; the interrupted access is repeated
 * there, and goes on. Whoever reads or writes a range looks at the mark afterwards (check_whole in mapping.pxd) and raises.
 *
 * THE WHOLE RANGE, not only the pages that are missing:
 *   - every seqlock then says "not what you looked for" (a slot's seq and write_cursor are 0), so that zeros never pass
 *     for a packet or a frame, whoever touched them first;
 *   - what is written from then on is not mixed with what others still see. Futexes work there and are woken by nobody,
 *     so sleepers come back after their slice, and find the mark;
 *   - one mapping takes the place of one, so the kernel's limit on their number cannot stand in the way.
 * It stays cut when the file grows again.
 *
 * THE HANDLER takes no lock and allocates nothing, so it may interrupt anything, on any thread, on several at a time:
 * the ranges are in a list whose nodes are never freed, only used again. Nothing else here takes a lock either, so a
 * fork finds nothing locked; the child inherits the handler, the list and the ranges.
 *
 * WHOSE SIGNAL IT IS. Ours are faults (BUS_ADRERR) in our ranges. All others (other addresses, broken memory, signals
 * that were sent) go to whoever handled SIGBUS before us, with that handler's mask and flags, or to the kernel. A
 * handler that is installed after ours stands before it, and decides what reaches us.
 *
 * To be included by one module only, since there is one list. */
#ifndef CUFRAMES_GUARD_H
#define CUFRAMES_GUARD_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "debug.h"

/* A range of memory. Fields marked atomic are read by the handler while others change them. */
typedef struct cf_guard {
    struct cf_guard *next; /* never changes once the node is in the list */
    uint32_t taken;        /* atomic; the node is in use */
    uint32_t cut;          /* atomic; the range is zeros of our own by now */
    uintptr_t start;       /* atomic */
    size_t size;           /* atomic; 0: nothing to guard. Stored after `start`, and set to 0 before that changes */
    int protection;
} cf_guard;

static cf_guard *cf_guards;                 /* atomic */
static struct sigaction *cf_guard_previous; /* atomic; what it points to never changes */

/* Whether a file may become shorter than it is. */
static inline bool cf_guard_needed(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);
    return seals < 0 || !(seals & F_SEAL_SHRINK);
}

/* ---- the handler -------------------------------------------------------------------------------------------------- */

/* Replace the range around `address`. False: it is none of ours. */
static inline bool cf_guard_mend(uintptr_t address) {
    for (cf_guard *g = __atomic_load_n(&cf_guards, __ATOMIC_ACQUIRE); g; g = g->next) {
        /* The range that we are in stays as it is, since it is in use. Another may be changing: then its two fields may
         * not belong together, and its size is no longer what it was. */
        size_t size = __atomic_load_n(&g->size, __ATOMIC_SEQ_CST);
        uintptr_t start = __atomic_load_n(&g->start, __ATOMIC_SEQ_CST);
        if (address - start >= size || __atomic_load_n(&g->size, __ATOMIC_SEQ_CST) != size) continue;
        /* First the mark: whoever has read a zero finds it. PAIRS WITH: check_whole in mapping.pxd. Several threads may come
         * here for one range; each replaces it, so that none has to wait for another. */
        __atomic_store_n(&g->cut, 1, __ATOMIC_SEQ_CST);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        /* The bare system call: a C library's mmap need not be fit for a signal handler. */
        return syscall(SYS_mmap, start, size, g->protection, flags, -1, 0) != -1;
    }
    return false;
}

/* What would have happened without us. */
static inline void cf_guard_pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction *previous = __atomic_load_n(&cf_guard_previous, __ATOMIC_ACQUIRE);
    if (previous->sa_flags & SA_SIGINFO) {
        previous->sa_sigaction(number, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(number);
    } else if (previous->sa_handler == SIG_DFL || info->si_code > 0) { /* a fault cannot be ignored */
        /* The end: once more the same signal, which comes as soon as this handler returns. */
        struct sigaction ending = {.sa_handler = SIG_DFL};
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

/* Handle SIGBUS from now on; once is enough. A handler that was installed after ours is left alone, since it may pass on
 * to us. The default action does not, and is replaced again. 0 or an errno. */
static inline int cf_guard_install(void) {
    struct sigaction now, ours = {.sa_sigaction = cf_guard_handler};
    if (sigaction(SIGBUS, NULL, &now)) return errno;
    bool nobody = !(now.sa_flags & SA_SIGINFO) && (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN);
    if (__atomic_load_n(&cf_guard_previous, __ATOMIC_ACQUIRE) && !nobody) return 0;
    struct sigaction *previous = malloc(sizeof *previous);
    if (!previous) return ENOMEM;
    *previous = now;
    __atomic_store_n(&cf_guard_previous, previous, __ATOMIC_RELEASE);
    /* The mask and the flags that the previous handler expects; and the alternate stack, if the thread has one. */
    ours.sa_mask = now.sa_mask;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & (SA_RESTART | SA_NODEFER));
    return sigaction(SIGBUS, &ours, NULL) ? errno : 0;
}

/* ---- ranges ------------------------------------------------------------------------------------------------------- */

/* Guard what was just mapped, before anybody touches it; NULL: no memory. Ends with cf_guard_unmap. */
static inline cf_guard *cf_guard_watch(void *start, size_t size, int protection) {
    cf_guard *g = __atomic_load_n(&cf_guards, __ATOMIC_ACQUIRE);
    while (g && __atomic_exchange_n(&g->taken, 1, __ATOMIC_ACQUIRE)) g = g->next;
    if (!g) {
        if (!(g = calloc(1, sizeof *g))) return NULL;
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

/* Somebody has seen that the file is shorter, and touched nothing of what is missing: cut the range all the same. What
 * lies before the cut would still be found there, now and then. */
static inline void cf_guard_cut(cf_guard *g) { cf_guard_mend(__atomic_load_n(&g->start, __ATOMIC_RELAXED)); }

/* Unmap a range, which nobody uses any more. */
static inline void cf_guard_unmap(cf_guard *g) {
    size_t size = __atomic_load_n(&g->size, __ATOMIC_RELAXED);
    CF_ASSERT(size && __atomic_load_n(&g->taken, __ATOMIC_RELAXED)); /* once for each range */
    /* In this order: as soon as it is unmapped, the kernel may put something else there. */
    __atomic_store_n(&g->size, 0, __ATOMIC_SEQ_CST);
    munmap((void *)__atomic_load_n(&g->start, __ATOMIC_RELAXED), size);
    __atomic_store_n(&g->taken, 0, __ATOMIC_RELEASE);
}

#endif
