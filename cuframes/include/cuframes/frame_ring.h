/* The frame ring: publish, take, release, wait.
 *
 * Plain C over mapped bytes, without Python, so that it runs without the GIL and under a thread sanitizer. Functions
 * that can fail return a CF_* status, which the caller turns into an exception.
 *
 * The publisher owns the cf_writer, and every subscriber owns a cf_reader. They share only the cf_frame_header.
 *
 * THE HANDSHAKE THAT KEEPS FRAMES WHOLE
 *
 * A held slot must never change, and a writer must never wait for a reader. Therefore each side first stores its own
 * intention and then reads the other side's. All four accesses are sequentially consistent. (The idea is Dekker's; as
 * "hazard pointers" it is used for memory reclamation, M. Michael, 2004.)
 *
 *     reader take                                   writer claim
 *     R1  set own bit in pin_bitmap                 W1  seq = INVALID
 *     R2  read seq: still s? the frame is ours      W2  read pin_bitmap: empty? the slot is ours
 *
 * In the single total order of these four accesses, R1 precedes W2 or W1 precedes R2 (or both), so at most one side
 * proceeds. A reader that lost clears its bit and looks again. A writer that lost restores the old seq and tries
 * another slot.
 *
 * WHAT THE WRITER TRUSTS
 *
 * The writer keeps everything that it depends on in its own memory: sequence numbers, the contents of each slot, and
 * which subscribers are alive. From shared memory it reads only pin bits and acknowledge bits, masked by the bits of
 * subscribers that it knows to be alive.
 */
#ifndef CUFRAMES_RING_H
#define CUFRAMES_RING_H

#include "gnu.h"

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "debug.h"
#include "gate.h"
#include "pace.h"
#include "shm.h"
#include "status.h"
#include "wait.h"

enum { CF_NEWEST = 0, CF_ORDERED = 1 };
enum { CF_BLOCK = 0, CF_SPIN = 1, CF_PREDICT = 2 };

#define CF_LOOK_NS 1000000         /* a sleeping reader looks this often if the publisher wakes nobody */
#define CF_WARM_NS 1000000         /* a spinning reader warms up this often, to keep the code in the caches */
#define CF_STRICT_SLICE_NS 5000000 /* a waiting writer looks this often: plain version 3 readers wake nobody */
#define CF_FIRST_BIT 1u            /* bit 0 is never assigned */

/* ---- the writer -------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_frame_header *shared;
    cf_gate gate; /* closed by close() */
    uint32_t ring_size;
    uint32_t policy;
    uint64_t seq;    /* of the newest published frame */
    uint64_t frames; /* published so far; the newest frame's frame_no */
    uint64_t dropped;
    uint64_t slot_seq[CF_MAX_RING]; /* seq of the frame in each slot */
    uint64_t pending_seq;           /* seq of the frame between begin and commit; 0: none */
    uint32_t busy;                  /* atomic; a thread is between begin and commit */
    uint64_t live;                  /* atomic; bits of the subscribers that are alive */
    /* `lock` orders commits against subscribers that join and leave. So it is defined which subscribers were active
     * when a frame was published, and which frame was the newest when a subscriber joined. Private to this process. */
    pthread_mutex_t lock;
    uint64_t owed[CF_MAX_RING];       /* lock; subscribers that were active when the slot's frame was published */
    int event_fd[CF_MAX_SUBSCRIBERS]; /* lock; signalled at every commit; -1: not requested */
    uint64_t event_mask;              /* changed under lock */
} cf_writer;

/* The caller has filled in the constant fields of `shared`, which nobody else can see yet. */
static inline void cf_writer_init(cf_writer *w, cf_frame_header *shared, uint32_t ring_size, uint32_t policy) {
    memset(w, 0, sizeof *w);
    w->shared = shared;
    w->ring_size = ring_size;
    w->policy = policy;
    pthread_mutex_init(&w->lock, NULL);
    for (uint32_t k = 0; k < CF_MAX_RING; k++) {
        w->slot_seq[k] = CF_SEQ_INVALID;
        cf_store_release(&shared->slots[k].seq, CF_SEQ_INVALID);
    }
    for (uint32_t bit = 0; bit < CF_MAX_SUBSCRIBERS; bit++) w->event_fd[bit] = -1;
    /* Last: a segment with its magic is complete. */
    cf_store_release_u32(&shared->magic, CF_FRAME_MAGIC);
}

/* Claim slot k for writing, unless a live subscriber holds it. */
static inline int cf_writer_claim(cf_writer *w, uint32_t k) {
    cf_slot *slot = &w->shared->slots[k];
    /* Look before the handshake: a slot that is already pinned keeps its seq, so other readers can take it without
     * interference. */
    if (cf_load_seq_cst(&slot->pin_bitmap) & cf_load_acquire(&w->live)) return CF_HELD; /* PAIRS WITH: reader release */
    cf_store_seq_cst(&slot->seq, CF_SEQ_INVALID); /* W1. PAIRS WITH: reader take, R2 */
    /* W2. PAIRS WITH: reader take, R1; its acquire half PAIRS WITH: reader release (the reads of the frame are done) */
    if (cf_load_seq_cst(&slot->pin_bitmap) & cf_load_seq_cst(&w->live)) {
        cf_store_seq_cst(&slot->seq, w->slot_seq[k]);
        return CF_HELD;
    }
    w->slot_seq[k] = CF_SEQ_INVALID;
    return CF_OK;
}

static inline int cf_writer_try(cf_writer *w, int wanted) {
    uint32_t tries = w->policy == CF_POLICY_STRICT_WAIT && wanted < 0 ? 1 : w->ring_size;
    for (uint32_t i = 1; i <= tries; i++) {
        uint64_t seq = w->seq + i;
        uint32_t k = (uint32_t)(seq % w->ring_size);
        if (wanted >= 0 && k != (uint32_t)wanted) continue;
        if (w->policy == CF_POLICY_STRICT_WAIT) {
            pthread_mutex_lock(&w->lock);
            uint64_t owed = w->owed[k];
            pthread_mutex_unlock(&w->lock);
            /* PAIRS WITH: reader release, the acknowledgement */
            if (owed & ~cf_load_seq_cst(&w->shared->slots[k].ack_bitmap)) return CF_HELD;
        }
        if (cf_writer_claim(w, k) == CF_OK) {
            w->pending_seq = seq;
            return CF_OK;
        }
    }
    return CF_HELD;
}

/* Begin a frame. On CF_OK the caller owns slot cf_writer_slot(w) until commit or abandon. `wanted` is a particular
 * slot, or -1 for the next one.
 *
 * drop_oldest: never waits. CF_HELD: every slot is held; the frame is counted as dropped.
 * strict_wait: waits for the oldest slot until `deadline` (CLOCK_MONOTONIC). CF_TIMED_OUT; CF_AGAIN after a slice. */
static inline int cf_writer_begin(cf_writer *w, int wanted, int64_t deadline) {
    if (cf_exchange_u32(&w->busy, 1)) return CF_BUSY;
    int rc = cf_writer_try(w, wanted);
    if (rc == CF_HELD && w->policy == CF_POLICY_DROP_OLDEST) cf_store_relaxed(&w->shared->frames_dropped, ++w->dropped);
    if (rc == CF_HELD && w->policy == CF_POLICY_STRICT_WAIT) {
        int64_t slice_end = cf_now_ns() + CF_SLICE_NS;
        uint32_t *word = &w->shared->writer_wait;
        do {
            /* Store ours, then read the readers': with sequentially consistent loads, since a load-acquire may pass an
             * earlier store on ARM (LDAPR). PAIRS WITH: reader release, its last step */
            cf_store_seq_cst_u32(word, 1);
            rc = cf_writer_try(w, wanted);
            if (rc == CF_OK) break;
            int64_t now = cf_now_ns();
            if (now >= deadline) rc = CF_TIMED_OUT;
            else if (now >= slice_end || cf_gate_is_shut(&w->gate)) rc = CF_AGAIN;
            else if (cf_futex_wait(word, 1, cf_min_i64(CF_STRICT_SLICE_NS, deadline - now)) == EINTR) rc = CF_AGAIN;
        } while (rc == CF_HELD);
        cf_store_seq_cst_u32(word, 0);
    }
    if (rc != CF_OK) cf_store_seq_cst_u32(&w->busy, 0);
    return rc;
}

static inline uint32_t cf_writer_slot(const cf_writer *w) { return (uint32_t)(w->pending_seq % w->ring_size); }

/* Publish the begun frame and return its sequence number. `now_ns` is the time of CLOCK_MONOTONIC. */
static inline uint64_t cf_writer_commit(cf_writer *w, int64_t now_ns, int64_t pts_ns, uint64_t written_bytes) {
    cf_frame_header *h = w->shared;
    uint64_t seq = w->pending_seq;
    uint32_t k = cf_writer_slot(w);
    cf_slot *slot = &h->slots[k];
    CF_ASSERT(seq > w->seq && cf_load_seq_cst_u32(&w->busy)); /* begun, and numbers only grow */
    CF_ASSERT(w->slot_seq[k] == CF_SEQ_INVALID);              /* claimed: no reader can take what it held */
    cf_store_relaxed_i64(&slot->pts_ns, pts_ns);
    cf_store_relaxed(&slot->written_bytes, written_bytes);
    cf_store_relaxed(&slot->frame_no, w->frames + 1);
    cf_store_relaxed_i64(&slot->published_ns, now_ns);
    cf_store_relaxed(&slot->ack_bitmap, 0);

    pthread_mutex_lock(&w->lock);
    cf_store_release(&slot->seq, seq);     /* PAIRS WITH: reader take, its reads of seq */
    cf_store_seq_cst(&h->global_seq, seq); /* PAIRS WITH: reader pick; and reader wait, "sleepers" */
    w->slot_seq[k] = w->seq = seq;
    w->owed[k] = cf_load_relaxed(&w->live);
    cf_store_release(&h->frames_published, ++w->frames);
    for (uint64_t mask = w->event_mask; mask; mask &= mask - 1) cf_event_signal(w->event_fd[__builtin_ctzll(mask)]);
    pthread_mutex_unlock(&w->lock);

    w->pending_seq = 0;
    cf_store_seq_cst_u32(&w->busy, 0);
    /* Sleepers: our store (global_seq) came before; now read the readers'. PAIRS WITH: reader wait */
    if (cf_load_seq_cst_u32(&h->waiters)) cf_futex_wake_all(cf_low_half(&h->global_seq));
    return seq;
}

/* Whether a commit would wake nobody, and so make no system call. Only a guess: it may change at any time. */
static inline bool cf_writer_has_no_sleepers(const cf_writer *w) {
    return !cf_load_seq_cst_u32(&w->shared->waiters) && !cf_load_relaxed(&w->event_mask);
}

/* Abandon the begun frame: nothing is published, and the slot stays invalid. */
static inline void cf_writer_abandon(cf_writer *w) {
    CF_ASSERT(w->pending_seq && cf_load_seq_cst_u32(&w->busy));
    w->pending_seq = 0;
    cf_store_seq_cst_u32(&w->busy, 0);
}

/* Abandon the begun frame and count it as dropped. */
static inline void cf_writer_drop(cf_writer *w) {
    cf_store_relaxed(&w->shared->frames_dropped, ++w->dropped);
    cf_writer_abandon(w);
}

/* Admit a subscriber. On CF_OK: its bit, and seq and frame_no of the newest frame. Later frames that the subscriber
 * misses count as its losses. */
static inline int cf_writer_join(cf_writer *w, const char *name, uint64_t pid, uint32_t *bit, uint64_t *seq,
                                 uint64_t *frame_no) {
    int rc = CF_NO_BIT;
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = CF_FIRST_BIT; i < CF_MAX_SUBSCRIBERS && rc != CF_OK; i++) {
        if (cf_load_relaxed(&w->live) >> i & 1) continue;
        cf_subscriber *s = &w->shared->subscribers[i];
        memset(s, 0, sizeof *s);
        s->consumer_pid = pid;
        strncpy(s->consumer_name, name, sizeof s->consumer_name - 1);
        cf_store_release(&s->state, CF_SUB_ACTIVE);
        cf_fetch_or(&w->shared->subscriber_bitmap, 1ull << i);
        cf_fetch_or(&w->live, 1ull << i);
        *bit = i;
        *seq = w->seq;
        *frame_no = w->frames;
        rc = CF_OK;
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

/* Remove a subscriber that left or died: its pins, its outstanding acknowledgements, its eventfd. It no longer accesses
 * the memory (the kernel closes a dead process's sockets after freeing its address space), so its slots are free. */
static inline void cf_writer_leave(cf_writer *w, uint32_t bit) {
    CF_ASSERT(bit >= CF_FIRST_BIT && bit < CF_MAX_SUBSCRIBERS);
    uint64_t mask = ~(1ull << bit);
    pthread_mutex_lock(&w->lock);
    cf_fetch_and(&w->live, mask);
    cf_fetch_and(&w->shared->subscriber_bitmap, mask);
    for (uint32_t k = 0; k < w->ring_size; k++) {
        w->owed[k] &= mask;
        cf_fetch_and(&w->shared->slots[k].pin_bitmap, mask);
    }
    cf_store_relaxed(&w->event_mask, w->event_mask & mask);
    w->event_fd[bit] = -1;
    cf_store_release(&w->shared->subscribers[bit].state, CF_SUB_FREE);
    /* A subscriber that was killed in its sleep is still counted in `waiters`. With no subscriber left, and none
     * joining while we hold the lock, the count must be 0. */
    if (!cf_load_relaxed(&w->live)) cf_store_seq_cst_u32(&w->shared->waiters, 0);
    pthread_mutex_unlock(&w->lock);
    if (cf_exchange_u32(&w->shared->writer_wait, 0)) cf_futex_wake_all(&w->shared->writer_wait);
}

/* Signal `fd` at every commit from now on; -1: stop. Earlier frames are not signalled: the subscriber looks for them
 * first. */
static inline void cf_writer_feed(cf_writer *w, uint32_t bit, int fd) {
    pthread_mutex_lock(&w->lock);
    w->event_fd[bit] = fd;
    cf_store_relaxed(&w->event_mask, fd < 0 ? w->event_mask & ~(1ull << bit) : w->event_mask | 1ull << bit);
    pthread_mutex_unlock(&w->lock);
}

static inline void cf_writer_shutdown(cf_writer *w) {
    cf_store_seq_cst(&w->shared->shutdown_flag, 1);
    cf_futex_wake_all(cf_low_half(&w->shared->global_seq));
}

/* ---- the reader -------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_frame_header *shared;
    uint32_t ring_size;
    uint32_t bit;
    uint32_t max_held;
    int mode;      /* CF_NEWEST or CF_ORDERED */
    int wait;      /* CF_BLOCK, CF_SPIN or CF_PREDICT */
    bool pins;     /* the publisher honours pins; otherwise a frame is checked when it is released */
    bool wakes;    /* the publisher wakes sleepers */
    bool strict;   /* the publisher waits for acknowledgements, even of frames that were passed over */
    bool counted;  /* last_frame_no is known, so frames missing before the next one can be counted */
    int sock;      /* the connection, watched while waiting */
    int event_fd;  /* or -1 */
    cf_gate gate;  /* closed by close() */
    uint32_t busy; /* atomic; a thread is taking */
    uint32_t gone; /* atomic; the connection ended */
    uint32_t held; /* atomic */
    uint64_t last_seq;
    uint64_t last_frame_no;
    uint64_t received;
    uint64_t lost;
    uint64_t skipped;
    uint64_t overwritten; /* atomic */
    int64_t looked_ns;    /* when wait_any or a spinning reader last checked whether the publisher is alive */
    cf_pace pace;         /* CF_PREDICT */
    int64_t warm_ns;      /* CF_SPIN; when the caller last warmed up */
    int64_t window_ns;    /* CF_PREDICT; when the sleep before the window should have ended; 0: no warm-up is open */
} cf_reader;

typedef struct {
    uint64_t seq;
    uint64_t frame_no;
    int64_t pts_ns;
    int64_t published_ns;
    uint64_t written_bytes;
    uint64_t lost;    /* frames overwritten between the frame taken before and this one */
    uint64_t skipped; /* frames passed over between the two */
    uint32_t slot;
} cf_taken;

static inline uint64_t cf_reader_mask(const cf_reader *r) { return 1ull << r->bit; }

/* Wake a writer that waits for us (strict_wait). Our store came before, now read the writer's.
 * PAIRS WITH: writer begin */
static inline void cf_reader_wake_writer(cf_reader *r) {
    uint32_t *word = &r->shared->writer_wait;
    if (cf_load_seq_cst_u32(word) && cf_exchange_u32(word, 0)) cf_futex_wake_all(word);
}

/* The sequence number of the frame to take, or 0. Any thread may call this; only the taking thread changes last_seq. */
static inline uint64_t cf_reader_pick(const cf_reader *r) {
    /* Frames up to `newest` are visible in their slots. Later frames are left for the next call, so that the result
     * (the smallest seq greater than the last one) is right for one moment.
     * PAIRS WITH: writer commit, its store of global_seq */
    uint64_t newest = cf_load_acquire(&r->shared->global_seq);
    uint64_t last = cf_load_relaxed(&r->last_seq), best = 0;
    if (newest <= last) return 0;
    uint64_t guess = r->mode == CF_NEWEST ? newest : last + 1;
    if (cf_load_acquire(&r->shared->slots[guess % r->ring_size].seq) == guess) return guess;
    for (uint32_t k = 0; k < r->ring_size; k++) {
        uint64_t seq = cf_load_acquire(&r->shared->slots[k].seq);
        if (seq <= last || seq > newest || seq % r->ring_size != k) continue;
        if (!best || (r->mode == CF_NEWEST ? seq > best : seq < best)) best = seq;
    }
    return best;
}

/* Whether the publisher's sequence numbers went backwards. A publisher never does that: another process wrote to the
 * segment, and the frame taken before may have been invalid. Reading continues at the current number. */
static inline bool cf_reader_derailed(cf_reader *r) {
    uint64_t newest = cf_load_acquire(&r->shared->global_seq);
    if (newest >= r->last_seq) return false;
    cf_store_relaxed(&r->last_seq, newest);
    r->counted = false;
    return true;
}

static inline int cf_reader_try(cf_reader *r, cf_taken *t) {
    uint64_t seq;
    uint32_t held = 0;
    while ((seq = cf_reader_pick(r))) {
        /* Count before pinning: a close that finds nothing held gives up our bit, and with it the pin. */
        if (!held) held = cf_fetch_add_u32(&r->held, 1) + 1;
        cf_slot *slot = &r->shared->slots[seq % r->ring_size];
        if (r->pins) cf_fetch_or(&slot->pin_bitmap, cf_reader_mask(r)); /* R1. PAIRS WITH: writer claim, W2 */
        /* R2. PAIRS WITH: writer claim, W1; its acquire half PAIRS WITH: writer commit (the pixels are there) */
        if (cf_load_seq_cst(&slot->seq) == seq) break;
        if (r->pins) {
            cf_fetch_and(&slot->pin_bitmap, ~cf_reader_mask(r));
            cf_reader_wake_writer(r);
        }
    }
    if (!seq) {
        if (held) cf_fetch_add_u32(&r->held, (uint32_t)-1);
        return cf_reader_derailed(r) ? CF_CORRUPT : CF_EMPTY;
    }
    cf_slot *slot = &r->shared->slots[seq % r->ring_size];
    t->slot = (uint32_t)(seq % r->ring_size);
    t->seq = seq;
    t->pts_ns = cf_load_relaxed_i64(&slot->pts_ns);
    t->written_bytes = cf_load_relaxed(&slot->written_bytes);
    t->frame_no = r->pins ? cf_load_relaxed(&slot->frame_no) : seq;
    t->published_ns = cf_load_relaxed_i64(&slot->published_ns);

    uint64_t missed = r->counted && t->frame_no > r->last_frame_no ? t->frame_no - r->last_frame_no - 1 : 0;
    t->lost = r->mode == CF_ORDERED ? missed : 0;
    t->skipped = r->mode == CF_NEWEST ? missed : 0;
    if (r->strict && r->mode == CF_NEWEST) {
        /* The writer waits for an acknowledgement of every frame, even of those that we pass over. A frame that we have
         * not acknowledged cannot be overwritten, so it is still in its slot here. */
        for (uint32_t k = 0; k < r->ring_size; k++) {
            uint64_t passed = cf_load_acquire(&r->shared->slots[k].seq);
            if (passed > r->last_seq && passed < seq) cf_fetch_or(&r->shared->slots[k].ack_bitmap, cf_reader_mask(r));
        }
        cf_reader_wake_writer(r);
    }
    if (r->wait == CF_PREDICT) cf_pace_note(&r->pace, t->published_ns ? t->published_ns : cf_now_ns(), t->frame_no);
    cf_store_relaxed(&r->last_seq, seq);
    r->last_frame_no = t->frame_no;
    r->counted = true;
    r->received += 1;
    r->lost += t->lost;
    r->skipped += t->skipped;
    cf_subscriber *me = &r->shared->subscribers[r->bit];
    cf_store_relaxed(&me->received, r->received);
    cf_store_relaxed(&me->lost, r->lost);
    cf_store_relaxed(&me->skipped, r->skipped);
    cf_store_relaxed(&me->held, held);
    return CF_OK;
}

static inline bool cf_reader_socket_readable(const cf_reader *r) {
    struct pollfd p = {r->sock, POLLIN | POLLRDHUP, 0};
    return r->sock >= 0 && poll(&p, 1, 0) > 0;
}

/* Sleep until global_seq differs from `seen`, at most `ns`. */
static inline int cf_reader_sleep(cf_reader *r, uint64_t seen, int64_t ns) {
    const uint32_t *word = cf_low_half(&r->shared->global_seq);
    int rc = 0;
    if (!r->wakes) {
        cf_sleep_ns(cf_min_i64(ns, CF_LOOK_NS));
        return ns <= CF_LOOK_NS ? ETIMEDOUT : 0;
    }
    /* Sleepers: store ours (waiters), then read the writer's. PAIRS WITH: writer commit, its last step */
    cf_fetch_add_u32(&r->shared->waiters, 1);
    if (cf_load_seq_cst(&r->shared->global_seq) == seen && !cf_load_seq_cst(&r->shared->shutdown_flag))
        rc = cf_futex_wait(word, (uint32_t)seen, ns);
    cf_fetch_add_u32(&r->shared->waiters, (uint32_t)-1);
    return rc;
}

/* The warm-up has returned. Book the time since the planned end of the sleep as lateness (kernel and warm-up together),
 * at the next look at the ring, even if a frame has come meanwhile. Time spent after that look is not lateness. */
static inline void cf_reader_warmed_up(cf_reader *r) {
    if (!r->window_ns) return;
    cf_pace_woke(&r->pace, cf_now_ns() - r->window_ns);
    r->window_ns = 0;
}

static inline int cf_reader_wait(cf_reader *r, int64_t deadline, cf_taken *t) {
    cf_wait w = cf_wait_until(deadline, CF_SLICE_NS);
    for (;;) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        /* Check for the end before looking at the ring, so that frames published before the end are still taken. */
        bool ended = cf_load_seq_cst_u32(&r->gone) || cf_load_acquire(&r->shared->shutdown_flag);
        /* Read the futex word before looking at the ring: a frame that arrives in between changes the word. */
        uint64_t seen = cf_load_seq_cst(&r->shared->global_seq);
        int rc = cf_reader_try(r, t);
        if (rc != CF_EMPTY) return rc;
        if (ended) return CF_ENDED;
        rc = cf_wait_turn(&w, r->event_fd, r->wait == CF_SPIN);
        if (rc == CF_OK) continue;
        if (rc != CF_EMPTY) return cf_reader_socket_readable(r) ? CF_SOCKET : rc;
        int64_t now = w.now_ns;
        if (r->wait == CF_SPIN) {
            if (now - r->warm_ns >= CF_WARM_NS) {
                r->warm_ns = now;
                /* The caller returns here before a slice is over, so the connection is checked here. */
                if (now - r->looked_ns < CF_SLICE_NS) return CF_WARM_UP;
                r->looked_ns = now;
                return cf_reader_socket_readable(r) ? CF_SOCKET : CF_WARM_UP;
            }
            cf_spin_yield();
            continue;
        }
        int64_t until = now + cf_wait_left(&w);
        cf_window due = {0, 0};
        if (r->wait == CF_PREDICT) {
            due = cf_pace_window(&r->pace);
            if (now >= due.from_ns && now < due.until_ns) {
                if (w.turns % CF_SPIN_BATCH) cf_cpu_relax();
                else cf_spin_yield();
                continue;
            }
            if (now < due.from_ns) until = cf_min_i64(until, due.from_ns);
        }
        int rest = cf_reader_sleep(r, seen, until - now);
        if (rest == EINTR) return CF_AGAIN;
        if (until == due.from_ns) {
            if (rest == ETIMEDOUT) {
                r->window_ns = until;
                return CF_WARM_UP;
            }
            /* Count it also when a frame woke us before the window: if we had been awake, we would have seen it. */
            cf_pace_woke(&r->pace, cf_now_ns() - until);
        }
    }
}

/* Take the next frame, waiting for it until `deadline`.
 * CF_AGAIN: a slice of waiting is over; call again.
 * CF_WARM_UP: just before a predicted frame, or from time to time while spinning. Warm up, and call again (nearly) at
 * once.
 * CF_SOCKET: read the socket first.
 * CF_ENDED: the publisher is gone, and nothing is left. */
static inline int cf_reader_next(cf_reader *r, int64_t deadline, cf_taken *t) {
    if (cf_exchange_u32(&r->busy, 1)) return CF_BUSY;
    cf_reader_warmed_up(r);
    int rc = cf_load_seq_cst_u32(&r->held) >= r->max_held ? CF_TOO_MANY : cf_reader_wait(r, deadline, t);
    cf_store_seq_cst_u32(&r->busy, 0);
    return rc;
}

/* Take the next frame without waiting and without a system call. CF_EMPTY: there is none. */
static inline int cf_reader_now(cf_reader *r, cf_taken *t) {
    if (cf_exchange_u32(&r->busy, 1)) return CF_BUSY;
    cf_reader_warmed_up(r);
    int rc = CF_CLOSED;
    if (!cf_gate_is_shut(&r->gate))
        rc = cf_load_seq_cst_u32(&r->held) >= r->max_held ? CF_TOO_MANY : cf_reader_try(r, t);
    cf_store_seq_cst_u32(&r->busy, 0);
    return rc;
}

/* Whether slot k still contains frame `seq`. To be asked after reading the frame. */
static inline bool cf_reader_valid(const cf_reader *r, uint32_t k, uint64_t seq) {
    cf_fence_acquire(); /* our reads of the frame come before this load of seq */
    return cf_load_acquire(&r->shared->slots[k].seq) == seq;
}

/* Release a frame. CF_OVERWRITTEN: it changed while it was held; discard what was read from it. */
static inline int cf_reader_release(cf_reader *r, uint32_t k, uint64_t seq) {
    cf_slot *slot = &r->shared->slots[k];
    cf_subscriber *me = &r->shared->subscribers[r->bit];
    int rc = CF_OK;
    CF_ASSERT(k < r->ring_size && cf_load_seq_cst_u32(&r->held)); /* what was taken is given back once */
    if (!r->pins && !cf_reader_valid(r, k, seq)) rc = CF_OVERWRITTEN;
    if (rc == CF_OK) cf_fetch_or(&slot->ack_bitmap, cf_reader_mask(r));
    else cf_fetch_add(&r->overwritten, 1);
    cf_store_relaxed(&me->last_seen_seq, seq);
    cf_store_relaxed_i64(&me->last_ack_ns, cf_now_ns());
    /* With release: our reads of the frame are done. PAIRS WITH: writer claim, W2 */
    if (r->pins) cf_fetch_and(&slot->pin_bitmap, ~cf_reader_mask(r));
    if (r->strict) cf_reader_wake_writer(r);
    cf_store_relaxed(&me->held, cf_load_seq_cst_u32(&r->held) - 1);
    /* Last: a close that finds nothing held gives up the bit, which may then be assigned to another subscriber. */
    cf_fetch_add_u32(&r->held, (uint32_t)-1);
    return rc;
}

/* Make threads that wait in cf_reader_next return CF_CLOSED. gate.h describes the rest of closing. */
static inline void cf_reader_close(cf_reader *r) {
    cf_gate_shut(&r->gate);
    cf_futex_wake_all(cf_low_half(&r->shared->global_seq));
}

/* The connection has ended: valid frames can still be taken, then cf_reader_next returns CF_ENDED. */
static inline void cf_reader_hangup(cf_reader *r) { cf_store_seq_cst_u32(&r->gone, 1); }

static inline uint32_t cf_reader_held(const cf_reader *r) { return cf_load_seq_cst_u32(&r->held); }

#endif
