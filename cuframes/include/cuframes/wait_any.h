/* Waiting for the first of several rings.
 *
 * There are two ways. One system call sleeps on all rings (futex_waitv, Linux 5.16). It costs the publishers nothing,
 * but for each sleep the kernel queues the thread on every ring and removes it again, about 0.5 us per ring. Or the
 * thread sleeps on an epoll of eventfds that the publishers signal (EVENT_FD). That costs the same for any number of
 * rings, but each publisher makes one write() per frame. */
#ifndef CUFRAMES_ANY_H
#define CUFRAMES_ANY_H

#include "gnu.h"

#include <sys/epoll.h>

#include "packet_ring.h"
#include "slot_ring.h"
#include "frame_ring.h"

#define CF_ANY_MAX 128 /* the limit of futex_waitv */
#define CF_ANSWER_SLICE_NS 20000000

/* As in linux/futex.h. Older systems have that header without this structure. */
typedef struct {
    uint64_t val;
    uint64_t uaddr;
    uint32_t flags;
    uint32_t reserved;
} cf_futex_waitv;

#define CF_FUTEX_32 2u
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* Linux 5.11 */
#endif

/* One of the rings: a frame ring, a packet ring or a slot. All NULL: the receiver is closed. */
typedef struct {
    cf_reader *frames;
    cf_packet_reader *packets;
    cf_cache_reader *slots;
} cf_any;

/* The counter that grows with every frame or packet published. */
static inline const uint64_t *cf_any_seq(const cf_any *a) {
    if (a->frames) return &a->frames->shared->global_seq;
    return a->packets ? &a->packets->shared->global_seq : &a->slots->shared->write_cursor;
}

/* CF_ANY_READY: taking without waiting would return a frame or packet, or report the end. (A newer number alone is not
 * enough: its slot may already be being written again.) CF_ANY_CONNECTION: the connection should be read. Checking
 * whether the other side is alive costs a system call, so it is done once per slice, even while other rings keep us
 * busy. */
enum { CF_ANY_NOTHING = 0, CF_ANY_READY = 1, CF_ANY_CONNECTION = 2 };

static inline int cf_any_ready(const cf_any *a, int64_t now_ns) {
    if (a->frames) {
        cf_reader *r = a->frames;
        if (cf_load_acquire(&r->shared->global_seq) != cf_load_relaxed(&r->last_seq) &&
            (cf_reader_pick(r) || cf_load_acquire(&r->shared->global_seq) < cf_load_relaxed(&r->last_seq)))
            return CF_ANY_READY;
        if (cf_load_acquire(&r->shared->shutdown_flag)) return CF_ANY_READY;
        if (cf_load_seq_cst_u32(&r->gone) || cf_gate_is_shut(&r->gate)) return CF_ANY_READY;
        if (now_ns - r->looked_ns < CF_SLICE_NS) return CF_ANY_NOTHING;
        r->looked_ns = now_ns;
        return cf_reader_socket_readable(r) ? CF_ANY_CONNECTION : CF_ANY_NOTHING;
    }
    if (a->slots) {
        cf_cache_reader *r = a->slots;
        uint64_t cursor = cf_cache_cursor(r);
        if (cursor > r->at || cf_gate_is_shut(&r->gate)) return CF_ANY_READY;
        if (cursor < r->at) r->at = cursor; /* the slot was started again */
        if (now_ns - r->looked_ns < CF_SLICE_NS) return CF_ANY_NOTHING;
        r->looked_ns = now_ns;
        return cf_cache_check(r) == CF_OK ? CF_ANY_NOTHING : CF_ANY_READY;
    }
    cf_packet_reader *r = a->packets;
    if (!r || cf_load_acquire(&r->shared->global_seq) > r->seen) return CF_ANY_READY;
    if (cf_load_acquire(&r->shared->shutdown_flag) || cf_gate_is_shut(&r->gate)) return CF_ANY_READY;
    if (now_ns - r->looked_ns < CF_SLICE_NS) return CF_ANY_NOTHING;
    r->looked_ns = now_ns;
    return cf_packets_check(r) == CF_OK ? CF_ANY_NOTHING : CF_ANY_READY;
}

/* Sleep until one of the rings changes, at most until `end`. Returns 0 or an errno. `now` is as for cf_any_ready. */
static inline int cf_any_sleep(const cf_any *rings, uint32_t count, int64_t end, int64_t now) {
    cf_futex_waitv waits[CF_ANY_MAX];
    uint32_t asleep = 0;
    bool news = false;
    for (; asleep < count && !news; asleep++) {
        const cf_any *a = &rings[asleep];
        /* Sleepers: store ours (waiters), then read the writer's. PAIRS WITH: writer commit, its last step */
        if (a->frames && a->frames->wakes) cf_fetch_add_u32(&a->frames->shared->waiters, 1);
        bool silent = a->frames ? !a->frames->wakes : a->slots && !cf_cache_wakes(a->slots);
        if (silent) end = cf_min_i64(end, now + CF_LOOK_NS);
        uint64_t seen = cf_load_seq_cst(cf_any_seq(a));
        cf_futex_waitv wait = {(uint32_t)seen, (uint64_t)(uintptr_t)cf_low_half(cf_any_seq(a)), CF_FUTEX_32, 0};
        waits[asleep] = wait;
        news = cf_any_ready(a, now) != CF_ANY_NOTHING;
    }
    struct timespec until = cf_timespec(end);
    long rc = news ? 0 : syscall(SYS_futex_waitv, waits, count, 0, &until, CLOCK_MONOTONIC);
    int problem = rc < 0 ? errno : 0;
    for (uint32_t i = 0; i < asleep; i++)
        if (rings[i].frames && rings[i].frames->wakes)
            cf_fetch_add_u32(&rings[i].frames->shared->waiters, (uint32_t)-1);
    return problem;
}

/* The same on an epoll to which every ring's eventfd was added, edge-triggered. A frame that is published after the
 * look at its ring causes an edge after that look, and so ends this sleep. Earlier edges end it needlessly, once. */
static inline int cf_any_poll(int epoll, int64_t ns) {
    struct epoll_event news[64];
    struct timespec left = cf_timespec(ns);
    long rc = syscall(SYS_epoll_pwait2, epoll, news, 64, &left, NULL, 0);
    if (rc < 0 && (errno == ENOSYS || errno == EPERM)) rc = epoll_wait(epoll, news, 64, (int)((ns + 999999) / 1000000));
    return rc < 0 ? errno : 0;
}

/* Wait until one of the rings is ready, at most until `deadline`: on `epoll` or, if that is -1, with futex_waitv.
 * CF_OK: `ready` has the state of each ring. CF_TIMED_OUT. CF_AGAIN: a slice is over; look at signals and call again.
 * CF_NO_WAITV: the kernel does not have futex_waitv. `unanswered`: some publishers have yet to send their eventfds, so
 * CF_AGAIN is returned soon after anything happens. */
static inline int cf_any_wait(const cf_any *rings, uint32_t count, int epoll, bool unanswered, int *ready,
                              int64_t deadline) {
    int64_t now = cf_now_ns(), slice_end = now + (unanswered ? CF_ANSWER_SLICE_NS : CF_SLICE_NS);
    for (;;) {
        bool found = false;
        for (uint32_t i = 0; i < count; i++) found |= (ready[i] = cf_any_ready(&rings[i], now)) != CF_ANY_NOTHING;
        if (found) return CF_OK;
        if (now >= deadline) return CF_TIMED_OUT;
        if (now >= slice_end) return CF_AGAIN;
        int64_t end = cf_min_i64(deadline, slice_end);
        int problem = epoll < 0 ? cf_any_sleep(rings, count, end, now) : cf_any_poll(epoll, end - now);
        if (problem == ENOSYS || problem == EPERM) return CF_NO_WAITV;
        if (problem == EINTR) return CF_AGAIN;
        now = cf_now_ns();
        if (unanswered) slice_end = now;
    }
}

#endif
