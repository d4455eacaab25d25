/* The frame ring: publish, take, release, wait.
 *
 * Plain C over mapped bytes, without Python, so that it runs without the GIL and under a thread sanitizer. Every
 * function returns a CF_* status; turning one into an exception is the caller's business.
 *
 * One process owns a cf_writer (the publisher); every subscriber has a cf_reader. They meet in cf_frame_header only.
 *
 * THE HANDSHAKE THAT KEEPS FRAMES WHOLE
 *
 * A reader must never see a slot change under it, a writer must never wait for a reader. Both sides store their own
 * intention and then look at the other's, all four accesses sequentially consistent (Dekker's idea, used for memory
 * reclamation as "hazard pointers", M. Michael, 2004):
 *
 *     reader take                                   writer claim
 *     R1  set own bit in pin_bitmap                 W1  seq = INVALID
 *     R2  read seq: still s? the frame is ours      W2  read pin_bitmap: empty? the slot is ours
 *
 * In the single order of these four, R1 precedes W2 or W1 precedes R2 (or both), so at most one side goes ahead.
 * A reader that lost clears its bit and looks again; a writer that lost puts the old seq back and tries another slot.
 *
 * WHO IS BELIEVED
 *
 * The writer keeps what it depends on (sequence numbers, what each slot holds, who is alive) in its own memory. From
 * shared bytes it takes pin and acknowledge bits only, masked by the bits of subscribers it knows to be alive.
 */
#ifndef CUFRAMES_RING_H
#define CUFRAMES_RING_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "debug.h"
#include "gate.h"
#include "pace.h"
#include "shm.h"
#include "status.h"

enum { CF_NEWEST = 0, CF_ORDERED = 1 };
enum { CF_BLOCK = 0, CF_SPIN = 1, CF_PREDICT = 2 };

#define CF_LOOK_NS 1000000         /* a sleeping reader looks this often where the publisher wakes nobody */
#define CF_WARM_NS 1000000         /* who spins keeps the rest of the way to a frame in the caches, this often */
#define CF_STRICT_SLICE_NS 5000000 /* a waiting writer looks again this often: plain version 3 readers wake nobody */
#define CF_FIRST_BIT 1u        /* bit 0 is never given out */

/* ---- the writer --------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_frame_header *shared;
    cf_gate gate;                    /* closed by close() */
    uint32_t ring_size;
    uint32_t policy;
    uint64_t seq;                    /* newest published */
    uint64_t frames;                 /* published so far; the newest frame's frame_no */
    uint64_t dropped;
    uint64_t slot_seq[CF_MAX_RING];  /* what each slot holds */
    uint64_t pending_seq;            /* the frame between begin and commit, 0 when there is none */
    uint32_t busy;                   /* atomic; a thread is between begin and commit */
    uint64_t live;                   /* atomic; bits of the subscribers that are alive */
    /* `lock` orders commits against joins and departures, so that "who was active when this frame was published" and
     * "the newest frame at the moment of joining" have one answer. Only this process takes it. */
    pthread_mutex_t lock;
    uint64_t owed[CF_MAX_RING];      /* lock; subscribers active when the slot's frame was published */
    int event_fd[CF_MAX_SUBSCRIBERS]; /* lock; fed at every commit, -1 = not asked for */
    uint64_t event_mask;             /* changed under lock */
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
    /* Last: a segment that has its magic is a whole one. */
    cf_store_release_u32(&shared->magic, CF_FRAME_MAGIC);
}

/* Take slot k for writing unless a live subscriber reads it. */
static inline int cf_writer_claim(cf_writer *w, uint32_t k) {
    cf_slot *slot = &w->shared->slots[k];
    /* A look before the handshake: a slot that is plainly pinned keeps its seq, so that other readers can still take
     * it without noticing us. */
    if (cf_load_acquire(&slot->pin_bitmap) & cf_load_acquire(&w->live)) return CF_HELD;
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
            if (owed & ~cf_load_acquire(&w->shared->slots[k].ack_bitmap)) return CF_HELD;
        }
        if (cf_writer_claim(w, k) == CF_OK) {
            w->pending_seq = seq;
            return CF_OK;
        }
    }
    return CF_HELD;
}

/* Begin a frame: on CF_OK slot cf_writer_slot(w) is the caller's until commit or abandon. `wanted` asks for one slot in
 * particular, -1 for the next.
 *
 * drop_oldest: never waits; CF_HELD when every slot is being read (the frame is counted as dropped).
 * strict_wait: waits for the oldest slot until `deadline` (CLOCK_MONOTONIC); CF_TIMED_OUT, or CF_AGAIN after a slice. */
static inline int cf_writer_begin(cf_writer *w, int wanted, int64_t deadline) {
    if (cf_exchange_u32(&w->busy, 1)) return CF_BUSY;
    int rc = cf_writer_try(w, wanted);
    if (rc == CF_HELD && w->policy == CF_POLICY_DROP_OLDEST)
        cf_store_relaxed(&w->shared->frames_dropped, ++w->dropped);
    if (rc == CF_HELD && w->policy == CF_POLICY_STRICT_WAIT) {
        int64_t slice_end = cf_now_ns() + CF_SLICE_NS;
        uint32_t *word = &w->shared->writer_wait;
        do {
            cf_store_seq_cst_u32(word, 1); /* store mine, then read yours. PAIRS WITH: reader release, its last step */
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

/* Publish the frame that was begun; returns its sequence number. `now_ns` is CLOCK_MONOTONIC. */
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
    cf_store_release(&slot->seq, seq);       /* PAIRS WITH: reader take, its reads of seq */
    cf_store_seq_cst(&h->global_seq, seq);   /* PAIRS WITH: reader pick; and reader wait, "sleepers" */
    w->slot_seq[k] = w->seq = seq;
    w->owed[k] = cf_load_relaxed(&w->live);
    cf_store_release(&h->frames_published, ++w->frames);
    for (uint64_t mask = w->event_mask; mask; mask &= mask - 1) {
        uint64_t one = 1;
        struct pollfd event = {.fd = w->event_fd[__builtin_ctzll(mask)], .events = POLLOUT};
        /* A full counter: the subscriber has been told. The look comes first because the subscriber, who has the same
         * open file, may have made it blocking; one who fills it between look and write is found by the session thread,
         * which empties it and hangs up. */
        if (poll(&event, 1, 0) != 1 || !(event.revents & POLLOUT)) continue;
        ssize_t ignored = write(event.fd, &one, sizeof one);
        (void)ignored;
    }
    pthread_mutex_unlock(&w->lock);

    w->pending_seq = 0;
    cf_store_seq_cst_u32(&w->busy, 0);
    /* Sleepers: store mine (global_seq), then read yours. PAIRS WITH: reader wait */
    if (cf_load_seq_cst_u32(&h->waiters)) cf_futex_wake_all(cf_low_half(&h->global_seq));
    return seq;
}

/* Whether a commit now would wake nobody: it then makes no system call. A glance, not a promise. */
static inline bool cf_writer_quiet(const cf_writer *w) {
    return !cf_load_seq_cst_u32(&w->shared->waiters) && !cf_load_relaxed(&w->event_mask);
}

/* Give the begun frame up: nothing is published, the slot stays invalid. */
static inline void cf_writer_abandon(cf_writer *w) {
    CF_ASSERT(w->pending_seq && cf_load_seq_cst_u32(&w->busy));
    w->pending_seq = 0;
    cf_store_seq_cst_u32(&w->busy, 0);
}

/* Give the begun frame up and count it as dropped. */
static inline void cf_writer_drop(cf_writer *w) {
    cf_store_relaxed(&w->shared->frames_dropped, ++w->dropped);
    cf_writer_abandon(w);
}

/* Admit a subscriber. On CF_OK: its bit, the newest sequence number and that frame's dense number. Frames after that
 * one are the subscriber's to lose. */
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

/* Forget a subscriber that said goodbye or died: its pins, what it owed, its event. Its memory accesses are over (the
 * kernel closes a dead process's sockets after its address space is gone), so the slots it held are free again. */
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
    /* Who was killed asleep is still counted. Nobody is left who could be asleep; under the lock nobody joins either. */
    if (!cf_load_relaxed(&w->live)) cf_store_seq_cst_u32(&w->shared->waiters, 0);
    pthread_mutex_unlock(&w->lock);
    if (cf_exchange_u32(&w->shared->writer_wait, 0)) cf_futex_wake_all(&w->shared->writer_wait);
}

/* Feed `fd` at every commit from now on; none with -1. Frames already there are not announced: the subscriber looks
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

/* ---- the reader --------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_frame_header *shared;
    uint32_t ring_size;
    uint32_t bit;
    uint32_t max_held;
    int mode;            /* CF_NEWEST or CF_ORDERED */
    int wait;            /* CF_BLOCK, CF_SPIN or CF_PREDICT */
    bool pins;           /* the publisher honours pins; without them a frame is checked when it is released */
    bool wakes;          /* the publisher wakes sleepers */
    bool strict;         /* the publisher waits for acknowledgements, also of frames that were passed over */
    bool counted;        /* last_frame_no is known, so what is missing between it and the next frame can be counted */
    int sock;            /* the connection, watched while waiting */
    int event_fd;        /* or -1 */
    cf_gate gate;        /* closed by close() */
    uint32_t busy;       /* atomic; a thread is taking */
    uint32_t gone;       /* atomic; the connection ended */
    uint32_t held;       /* atomic */
    uint64_t last_seq;
    uint64_t last_frame_no;
    uint64_t received;
    uint64_t lost;
    uint64_t skipped;
    uint64_t overwritten; /* atomic */
    int64_t looked_ns;   /* when wait_any, or who spins, last asked whether the publisher is alive */
    cf_pace pace;        /* CF_PREDICT */
    int64_t warm_ns;     /* CF_SPIN; when the caller last got warm */
    int64_t lookout_ns;  /* CF_PREDICT; when the sleep before the look-out was to end, until the look-out begins */
} cf_reader;

typedef struct {
    uint64_t seq;
    uint64_t frame_no;
    int64_t pts_ns;
    int64_t published_ns;
    uint64_t written_bytes;
    uint64_t lost;    /* frames overwritten since the one taken before */
    uint64_t skipped; /* frames passed over since then */
    uint32_t slot;
} cf_taken;

static inline uint64_t cf_reader_mask(const cf_reader *r) { return 1ull << r->bit; }

/* Wake a writer that waits for us (strict_wait). Read yours after store mine. PAIRS WITH: writer begin */
static inline void cf_reader_let_go(cf_reader *r) {
    uint32_t *word = &r->shared->writer_wait;
    if (cf_load_seq_cst_u32(word) && cf_exchange_u32(word, 0)) cf_futex_wake_all(word);
}

/* The sequence number to aim at, or 0. Any thread may ask; only the one that takes changes last_seq. */
static inline uint64_t cf_reader_pick(const cf_reader *r) {
    /* Frames up to `newest` are visible in their slots; later ones are left for the next call, so that "the smallest
     * greater than the last" is true of one moment. PAIRS WITH: writer commit, its store of global_seq */
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

/* Whether the publisher's numbers went back, which they never do: somebody else wrote to the segment, and what was taken
 * before was perhaps no frame. Reading goes on from where the numbers are now. */
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
        /* Before the pin: whoever finds nothing held after a close gives our bit up, and with it the pin. */
        if (!held) held = cf_fetch_add_u32(&r->held, 1) + 1;
        cf_slot *slot = &r->shared->slots[seq % r->ring_size];
        if (r->pins) cf_fetch_or(&slot->pin_bitmap, cf_reader_mask(r)); /* R1. PAIRS WITH: writer claim, W2 */
        /* R2. PAIRS WITH: writer claim, W1; its acquire half PAIRS WITH: writer commit (the pixels are there) */
        if (cf_load_seq_cst(&slot->seq) == seq) break;
        if (r->pins) {
            cf_fetch_and(&slot->pin_bitmap, ~cf_reader_mask(r));
            cf_reader_let_go(r);
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
        /* The writer waits for every frame to be acknowledged, also for those we chose not to look at. A frame that we
         * owe cannot be replaced before we do, so the slot still holds it here. */
        for (uint32_t k = 0; k < r->ring_size; k++) {
            uint64_t passed = cf_load_acquire(&r->shared->slots[k].seq);
            if (passed > r->last_seq && passed < seq) cf_fetch_or(&r->shared->slots[k].ack_bitmap, cf_reader_mask(r));
        }
        cf_reader_let_go(r);
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

static inline bool cf_reader_heard(const cf_reader *r) {
    struct pollfd p = {.fd = r->sock, .events = POLLIN | POLLRDHUP};
    return r->sock >= 0 && poll(&p, 1, 0) > 0;
}

/* Sleep until global_seq is no longer `seen`, at most `ns`. */
static inline int cf_reader_sleep(cf_reader *r, uint64_t seen, int64_t ns) {
    const uint32_t *word = cf_low_half(&r->shared->global_seq);
    int rc = 0;
    if (!r->wakes) {
        cf_sleep_ns(cf_min_i64(ns, CF_LOOK_NS));
        return ns <= CF_LOOK_NS ? ETIMEDOUT : 0;
    }
    /* Sleepers: store mine (waiters), then read yours. PAIRS WITH: writer commit, its last step */
    cf_fetch_add_u32(&r->shared->waiters, 1);
    if (cf_load_seq_cst(&r->shared->global_seq) == seen && !cf_load_seq_cst(&r->shared->shutdown_flag))
        rc = cf_futex_wait(word, (uint32_t)seen, ns);
    cf_fetch_add_u32(&r->shared->waiters, (uint32_t)-1);
    return rc;
}

/* We are back from a rehearsal, which made us as late as what the kernel did before it. Whoever looks at the ring next
 * says so, also if a frame is there by now: the time until a later look has nothing to do with it. */
static inline void cf_reader_rehearsed(cf_reader *r) {
    if (!r->lookout_ns) return;
    cf_pace_woke(&r->pace, cf_now_ns() - r->lookout_ns);
    r->lookout_ns = 0;
}

static inline int cf_reader_wait(cf_reader *r, int64_t deadline, cf_taken *t) {
    int64_t slice_end = 0;
    for (uint32_t turn = 0;; turn++) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        /* The end is looked at before the ring: what was published before it is still taken. */
        bool ended = cf_load_seq_cst_u32(&r->gone) || cf_load_acquire(&r->shared->shutdown_flag);
        /* The futex word is read before the ring is looked at: a frame that arrives in between changes the word. */
        uint64_t seen = cf_load_seq_cst(&r->shared->global_seq);
        int rc = cf_reader_try(r, t);
        if (rc != CF_EMPTY) return rc;
        if (ended) return CF_ENDED;
        /* Nothing left: make the event wait for the next frame, and look once more for one that came meanwhile. */
        if (cf_event_drain(r->event_fd)) continue;
        if (r->wait == CF_SPIN && turn % CF_SPIN_BATCH) {
            cf_cpu_relax();
            continue;
        }
        int64_t now = cf_now_ns();
        if (!slice_end) slice_end = now + CF_SLICE_NS;
        if (now >= deadline) return cf_reader_heard(r) ? CF_PEER : CF_TIMED_OUT;
        if (now >= slice_end) return cf_reader_heard(r) ? CF_PEER : CF_AGAIN;
        if (r->wait == CF_SPIN) {
            if (now - r->warm_ns >= CF_WARM_NS) {
                r->warm_ns = now;
                /* The caller comes back before a slice is over, so this is where the connection is looked at. */
                if (now - r->looked_ns < CF_SLICE_NS) return CF_SOON;
                r->looked_ns = now;
                return cf_reader_heard(r) ? CF_PEER : CF_SOON;
            }
            cf_spin_yield();
            continue;
        }
        int64_t until = cf_min_i64(deadline, slice_end);
        cf_window due = {0, 0};
        if (r->wait == CF_PREDICT) {
            due = cf_pace_window(&r->pace);
            if (now >= due.from_ns && now < due.until_ns) {
                if (turn % CF_SPIN_BATCH) cf_cpu_relax();
                else cf_spin_yield();
                continue;
            }
            if (now < due.from_ns) until = cf_min_i64(until, due.from_ns);
        }
        int rest = cf_reader_sleep(r, seen, until - now);
        if (rest == EINTR) return CF_AGAIN;
        if (until == due.from_ns) {
            if (rest == ETIMEDOUT) {
                r->lookout_ns = until;
                return CF_SOON;
            }
            /* Also when a frame woke us that came before we were to: had we been awake in time, we had seen it. */
            cf_pace_woke(&r->pace, cf_now_ns() - until);
        }
    }
}

/* Take the next frame, waiting for it until `deadline`. CF_AGAIN after a slice of waiting (call again), CF_SOON just
 * before a predicted frame or now and then while spinning (call again, at once or nearly so), CF_PEER when the socket
 * should be read first, CF_ENDED when the publisher is gone and nothing is left. */
static inline int cf_reader_next(cf_reader *r, int64_t deadline, cf_taken *t) {
    if (cf_exchange_u32(&r->busy, 1)) return CF_BUSY;
    cf_reader_rehearsed(r);
    int rc = cf_load_seq_cst_u32(&r->held) >= r->max_held ? CF_TOO_MANY : cf_reader_wait(r, deadline, t);
    cf_store_seq_cst_u32(&r->busy, 0);
    return rc;
}

/* The same without waiting or a system call: a frame that is there, or CF_EMPTY. */
static inline int cf_reader_now(cf_reader *r, cf_taken *t) {
    if (cf_exchange_u32(&r->busy, 1)) return CF_BUSY;
    cf_reader_rehearsed(r);
    int rc = cf_gate_is_shut(&r->gate) ? CF_CLOSED
        : cf_load_seq_cst_u32(&r->held) >= r->max_held ? CF_TOO_MANY : cf_reader_try(r, t);
    cf_store_seq_cst_u32(&r->busy, 0);
    return rc;
}

/* Whether slot k still holds frame `seq`: to be asked after reading it. */
static inline bool cf_reader_valid(const cf_reader *r, uint32_t k, uint64_t seq) {
    cf_fence_acquire(); /* our reads of the frame come before this look at seq */
    return cf_load_acquire(&r->shared->slots[k].seq) == seq;
}

/* Give a frame back. CF_OVERWRITTEN: it changed while it was held, and what was read from it is worth nothing. */
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
    if (r->strict) cf_reader_let_go(r);
    cf_store_relaxed(&me->held, cf_load_seq_cst_u32(&r->held) - 1);
    /* Last: whoever finds nothing held after a close gives the bit up, and then it may be somebody else's. */
    cf_fetch_add_u32(&r->held, (uint32_t)-1);
    return rc;
}

/* Make threads that wait in here return CF_CLOSED; the rest of closing is the rule in gate.h. */
static inline void cf_reader_close(cf_reader *r) {
    cf_gate_shut(&r->gate);
    cf_futex_wake_all(cf_low_half(&r->shared->global_seq));
}

/* The connection has ended: what is valid is still taken, then cf_reader_next says CF_ENDED. */
static inline void cf_reader_hangup(cf_reader *r) { cf_store_seq_cst_u32(&r->gone, 1); }

static inline uint32_t cf_reader_held(const cf_reader *r) { return cf_load_seq_cst_u32(&r->held); }

#endif
