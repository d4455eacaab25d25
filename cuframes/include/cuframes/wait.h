/* Waiting, as all rings do it: the turns of a wait, eventfds, and whether the other side is alive.
 *
 * A wait is a loop of turns. In each turn a ring
 *   - returns if its own end was closed;
 *   - reads the word that it will sleep on; checks whether the other side has ended; then looks for a frame. In this
 *     order, whatever was published before the end is still taken;
 *   - calls cf_wait_turn if it found none;
 *   - sleeps on that word.
 * Each ring decides what counts as alive, when to check it, and what to do instead of sleeping. */
#ifndef CUFRAMES_WAIT_H
#define CUFRAMES_WAIT_H

#include "gnu.h"

#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "shm.h"
#include "status.h"

#define CF_SLICE_NS 100000000     /* a sleeper checks this often whether the other side is still alive */
#define CF_SPIN_SLICE_NS 10000000 /* a spinning call returns this often, to look at signals */
#define CF_SPIN_BATCH 64          /* looks at the ring between two looks at the clock */

/* Called after a batch of looks when spinning: gives this core to another thread. That thread may be the publisher that
 * we wait for, since the kernel tends to put threads that wake each other on one core. Without this call, a frame was
 * up to 4 ms late. */
static inline void cf_spin_yield(void) { sched_yield(); }

static inline int64_t cf_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- eventfds ---------------------------------------------------------------------------------------------------- */

/* Add 1 to an eventfd without blocking. Poll before the write, since the process that shares the open file may have
 * made it blocking. If that process fills the counter between poll and write, the session thread notices, empties it
 * and hangs up. */
static inline void cf_event_signal(int fd) {
    struct pollfd p = {fd, POLLOUT, 0};
    uint64_t one = 1;
    if (fd < 0 || poll(&p, 1, 0) <= 0 || !(p.revents & POLLOUT)) return; /* full: it is signalled already */
    ssize_t ignored = write(fd, &one, sizeof one);
    (void)ignored;
}

/* Reset an eventfd's counter to zero, without blocking. True: it was not zero before. */
static inline bool cf_event_drain(int fd) {
    struct pollfd p = {fd, POLLIN, 0};
    uint64_t count;
    return fd >= 0 && poll(&p, 1, 0) > 0 && p.revents & POLLIN && read(fd, &count, sizeof count) > 0;
}

/* ---- is the other side alive ------------------------------------------------------------------------------------- */

/* Whether no process holds a lock on the file. Writers hold one as long as they live. */
static inline bool cf_is_unlocked(int fd) {
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_RDLCK;
    lock.l_whence = SEEK_SET;
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

/* ---- a wait ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int64_t deadline; /* CLOCK_MONOTONIC */
    int64_t slice_ns; /* how long one call may take, counted from its first turn */
    int64_t now_ns;   /* at the last turn that read the clock */
    int64_t begin_ns; /* at the first one; 0: none yet */
    uint32_t turns;
} cf_wait;

static inline cf_wait cf_wait_until(int64_t deadline, int64_t slice_ns) {
    cf_wait w = {deadline, slice_ns, 0, 0, 0};
    return w;
}

/* How long to sleep at most. */
static inline int64_t cf_wait_left(const cf_wait *w) {
    return cf_min_i64(w->deadline, w->begin_ns + w->slice_ns) - w->now_ns;
}

/* What to do next, when the ring had nothing.
 *   CF_OK         look at the ring again
 *   CF_TIMED_OUT  the deadline has passed
 *   CF_AGAIN      the slice is over
 *   CF_EMPTY      sleep, for cf_wait_left at most (when spinning: cf_spin_yield)
 * The caller returns CF_TIMED_OUT and CF_AGAIN if the other side is alive. */
static inline int cf_wait_turn(cf_wait *w, int event_fd, bool spin) {
    uint32_t turn = w->turns++;
    /* Reset the eventfd; if it was set, look once more for a frame that came meanwhile. */
    if (cf_event_drain(event_fd)) return CF_OK;
    if (spin && turn % CF_SPIN_BATCH) {
        cf_cpu_relax();
        return CF_OK;
    }
    w->now_ns = cf_now_ns();
    if (!w->begin_ns) w->begin_ns = w->now_ns;
    if (w->now_ns >= w->deadline) return CF_TIMED_OUT;
    return w->now_ns - w->begin_ns >= w->slice_ns ? CF_AGAIN : CF_EMPTY;
}

#endif
