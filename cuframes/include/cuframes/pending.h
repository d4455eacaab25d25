/* Frames in device memory that were released while the GPU may still read them.
 *
 * When the last view of a frame is gone, an event is recorded on every stream that used it, and the frame is *pending*.
 * It goes back to the ring when all these events are over. Every call that takes or releases a frame first checks the
 * pending frames of its reader. But a subscriber may do neither for a long time (wait in wait_any, await a frame, poll
 * its fileno). If every slot is pending then, nothing is published, so nothing would ever wake the subscriber.
 * Therefore the process has one thread, the reaper. It checks all pending frames every millisecond, and sleeps while
 * there are none.
 *
 * The alternatives have drawbacks:
 *   - a callback in the consumer's stream (cuLaunchHostFunc) stops the stream until a CPU thread has run it. It may not
 *     call CUDA, is not called after an error, becomes a node of a graph that is being captured, and needs a stream,
 *     which some consumers do not tell;
 *   - cuEventSynchronize in the thread: the oldest event would hide all others, even those of another GPU, and a thread
 *     that sleeps in the driver cannot be stopped when the process ends;
 *   - a check before every kind of wait would have to be in every function that waits, even in the user's own select().
 *
 * THE RULES
 *   - A frame never goes back while the GPU may read it. If an event cannot be recorded now (a graph is being
 *     captured), it is recorded later. If a stream is unknown or can no longer be used, the event covers all work that
 *     the context has queued. Only two things count as an event that is over: a lost context, in which nothing runs,
 * and the end of the process.
 *   - One lock guards the table. No driver call is made under it, since that call may wait for work that waits for a
 *     thread that wants the lock or the GIL. The lock is taken without the GIL.
 *   - The reaper never runs Python code. Objects that must be dropped with the GIL are left for cf_pending_collect.
 *   - A forked child has no reaper and an empty table. */
#ifndef CUFRAMES_PENDING_H
#define CUFRAMES_PENDING_H

#include "gnu.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "cuda.h"
#include "debug.h"
#include "frame_ring.h"

#define CF_MAX_STREAMS 4      /* most streams to follow per frame; with more, the whole context is followed */
#define CF_REAPER_NS 1000000  /* between two looks */
#define CF_RETRY_NS 100000000 /* between two tries to record a context: each ends a graph capture in progress */
#define CF_SPARE_EVENTS 64

/* One use of a frame: by a stream, or by unknown work of the context. */
typedef struct {
    void *event;
    void *stream; /* NULL: the whole context */
    bool recorded;
    bool drain; /* the driver cannot record a context; the reaper waits until all its work is over */
} cf_pending_use;

typedef struct {
    uint64_t seq;
    cf_pending_use use[CF_MAX_STREAMS];
    int uses;
    int64_t retry_ns; /* when to try again to record the context */
    void *keep;       /* a Python object that keeps the streams alive until all are recorded */
} cf_pending_frame;

/* The pending frames of one reader. */
typedef struct cf_pending {
    cf_gpu gpu;
    cf_reader *ring;
    cf_pending_frame frame[CF_MAX_RING]; /* by slot; the thread that claimed a frame may access it without the lock */
    uint32_t mask;                       /* changed under the lock; the frames that are pending */
    uint32_t claimed;                    /* lock; frames that some thread is asking the driver about */
    uint32_t busy;                /* lock; number of threads (the reaper, or calls) that are using this structure */
    void *spare[CF_SPARE_EVENTS]; /* lock; events for reuse */
    int spares;
    void *outlive; /* lock; a Python callable, to be called when nothing is pending; keeps the reader alive */
    bool hang_up;  /* lock; the reader is closed: end the connection when nothing is held */
    struct cf_pending *next;
} cf_pending;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t work; /* for the reaper: something is pending, or the reaper must stop */
    pthread_cond_t idle; /* for threads that take a reader out of the table: its `busy` is 0 */
    cf_pending *first;
    pthread_t thread;
    bool running;
    bool asleep; /* nothing is pending */
    bool stop;
    uint32_t ready;      /* atomic; there may be something to collect */
    bool notified;       /* Python has been asked to collect */
    int (*notify)(void); /* asks for a collection, from a thread without the GIL; NULL when Python has ended */
} cf_pending_table;

static cf_pending_table cf_table = {PTHREAD_MUTEX_INITIALIZER,
                                    PTHREAD_COND_INITIALIZER,
                                    PTHREAD_COND_INITIALIZER,
                                    NULL,
                                    0,
                                    false,
                                    false,
                                    false,
                                    0,
                                    false,
                                    NULL};

/* Record the event of `use`. 0, or the driver's error; recording is then repeated later. */
static inline int cf_pending_record(cf_pending *p, cf_pending_frame *f, cf_pending_use *use, int64_t now) {
    int result = use->event ? CF_CUDA_SUCCESS : cf_gpu_new_event(&p->gpu, &use->event);
    if (result) return result;
    if (use->stream) {
        result = cf_gpu_record(&p->gpu, use->event, use->stream);
        if (result && !cf_cuda_is_capture(result)) use->stream = NULL; /* unusable, but its work may not be over */
    }
    if (!use->stream) {
        if (now < f->retry_ns) return CF_CUDA_NOT_READY;
        result = cf_gpu_record_all(&p->gpu, use->event);
        if (result == CF_CUDA_NOT_SUPPORTED) {
            use->drain = true;
            result = CF_CUDA_SUCCESS;
        }
        if (result) f->retry_ns = now + CF_RETRY_NS;
    }
    use->recorded = !result;
    return result;
}

/* Whether the work of `use` is over. */
static inline bool cf_pending_use_over(cf_pending *p, cf_pending_frame *f, cf_pending_use *use, bool may_block) {
    int64_t now = cf_now_ns();
    if (!use->recorded) {
        int result = cf_pending_record(p, f, use, now);
        if (result) return cf_cuda_is_lost(result);
    }
    if (use->drain) {
        if (!may_block || now < f->retry_ns) return false;
        int result = cf_gpu_drain(&p->gpu);
        f->retry_ns = now + CF_RETRY_NS;
        return !result || cf_cuda_is_lost(result);
    }
    int result = cf_gpu_query(&p->gpu, use->event);
    if (!result || cf_cuda_is_lost(result)) return true;
    if (result != CF_CUDA_NOT_READY) use->recorded = false; /* captured after all, or invalid: record again */
    return false;
}

/* Give back those pending frames of a reader whose work is over. `may_block`: the call may wait for the GPU. */
static inline void cf_pending_look(cf_pending *p, bool may_block) {
    uint32_t over = 0;
    pthread_mutex_lock(&cf_table.lock);
    uint32_t mine = p->mask & ~p->claimed;
    p->claimed |= mine;
    p->busy++;
    pthread_mutex_unlock(&cf_table.lock);
    for (uint32_t left = mine; left; left &= left - 1) {
        uint32_t k = (uint32_t)__builtin_ctz(left);
        cf_pending_frame *f = &p->frame[k];
        int i = 0;
        while (i < f->uses && cf_pending_use_over(p, f, &f->use[i], may_block)) i++;
        if (i == f->uses) over |= 1u << k;
    }
    pthread_mutex_lock(&cf_table.lock);
    for (uint32_t left = over; left; left &= left - 1) {
        uint32_t k = (uint32_t)__builtin_ctz(left);
        cf_pending_frame *f = &p->frame[k];
        /* There is room: a slot has at most CF_MAX_STREAMS events. */
        for (int i = 0; i < f->uses; i++)
            if (f->use[i].event) p->spare[p->spares++] = f->use[i].event;
        CF_ASSERT(p->spares <= CF_SPARE_EVENTS);
        if (f->keep) cf_store_seq_cst_u32(&cf_table.ready, 1);
        cf_reader_release(p->ring, k, f->seq);
    }
    cf_store_seq_cst_u32(&p->mask, p->mask & ~over);
    p->claimed &= ~mine;
    if (!p->mask && p->hang_up && !cf_reader_held(p->ring)) {
        /* Under the lock, since after cf_pending_stay the descriptor may belong to another file. */
        shutdown(p->ring->sock, SHUT_RDWR);
        p->hang_up = false;
    }
    if (!p->mask && p->outlive) cf_store_seq_cst_u32(&cf_table.ready, 1);
    if (!--p->busy) pthread_cond_broadcast(&cf_table.idle);
    pthread_mutex_unlock(&cf_table.lock);
}

static void *cf_reaper(void *unused) {
    pthread_mutex_lock(&cf_table.lock);
    while (!cf_table.stop) {
        bool any = false;
        for (cf_pending *p = cf_table.first; p && !cf_table.stop; p = p->next) {
            if (!p->mask) continue;
            any = true;
            p->busy++; /* keeps it in the table, and its `next` valid */
            pthread_mutex_unlock(&cf_table.lock);
            cf_pending_look(p, true);
            pthread_mutex_lock(&cf_table.lock);
            if (!--p->busy) pthread_cond_broadcast(&cf_table.idle);
        }
        if (cf_load_seq_cst_u32(&cf_table.ready) && !cf_table.notified && cf_table.notify) {
            /* Under the lock, so that Python does not end meanwhile. If its queue is full, ask again later. */
            cf_table.notified = !cf_table.notify();
            any |= !cf_table.notified;
        }
        if (cf_table.stop) break;
        if (any) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += CF_REAPER_NS;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            pthread_cond_timedwait(&cf_table.work, &cf_table.lock, &until);
        } else {
            cf_table.asleep = true;
            pthread_cond_wait(&cf_table.work, &cf_table.lock);
            cf_table.asleep = false;
        }
    }
    pthread_mutex_unlock(&cf_table.lock);
    return unused;
}

/* The process ends, and the driver will end after this function: make no driver call from now on. */
static void cf_reaper_stop(void) {
    struct timespec until;
    pthread_mutex_lock(&cf_table.lock);
    bool running = cf_table.running;
    cf_table.stop = true;
    cf_table.running = false;
    if (running) pthread_cond_signal(&cf_table.work);
    pthread_mutex_unlock(&cf_table.lock);
    if (!running) return;
    /* The reaper may be waiting for work that never ends, so wait for the thread only for a limited time. */
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 2;
    pthread_timedjoin_np(cf_table.thread, NULL, &until);
}

/* lock. Wake the reaper, or start it. If no thread can be created, frames go back when others are taken or released,
 * and the next pending frame tries to start it again. */
static inline void cf_reaper_wake(void) {
    static bool registered;
    if (cf_table.running || cf_table.stop) {
        if (cf_table.asleep) pthread_cond_signal(&cf_table.work);
        return;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&cf_table.work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    /* Signals are for the program's own threads, except that a fault in this thread must reach its handler. */
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGTRAP);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    cf_table.running = !pthread_create(&cf_table.thread, NULL, cf_reaper, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!cf_table.running) return;
    pthread_setname_np(cf_table.thread, "cuframes-gpu");
    /* Register it now, after the driver was initialised: handlers run in reverse order of registration. */
    if (!registered) registered = !atexit(cf_reaper_stop);
}

/* In the child of a fork: readers, streams and the thread belong to the parent. */
static inline void cf_pending_forked(void) {
    pthread_mutex_init(&cf_table.lock, NULL);
    pthread_cond_init(&cf_table.idle, NULL);
    cf_table.first = NULL;
    cf_table.running = cf_table.asleep = cf_table.notified = false;
    cf_table.ready = 0;
}

static inline void cf_pending_join(cf_pending *p) {
    pthread_mutex_lock(&cf_table.lock);
    p->next = cf_table.first;
    cf_table.first = p;
    pthread_mutex_unlock(&cf_table.lock);
}

/* Take a reader out of the table before it is freed. If frames are still pending (the reader was dropped, not closed),
 * wait until the context has finished all work: the reader's place in the ring ends with it, and then the publisher
 * would overwrite those frames. */
static inline void cf_pending_leave(cf_pending *p) {
    if (cf_load_seq_cst_u32(&p->mask)) cf_gpu_drain(&p->gpu);
    pthread_mutex_lock(&cf_table.lock);
    while (p->busy) pthread_cond_wait(&cf_table.idle, &cf_table.lock);
    cf_pending **link = &cf_table.first;
    while (*link && *link != p) link = &(*link)->next;
    if (*link) *link = p->next;
    pthread_mutex_unlock(&cf_table.lock);
    for (uint32_t k = 0; k < CF_MAX_RING; k++)
        for (int i = 0; p->mask >> k & 1 && i < p->frame[k].uses; i++)
            if (p->frame[k].use[i].event) p->gpu.calls->event_destroy(p->frame[k].use[i].event);
    cf_store_seq_cst_u32(&p->mask, 0);
    for (int i = 0; i < p->spares; i++) p->gpu.calls->event_destroy(p->spare[i]);
}

/* Release a frame that these streams used (`stream_unknown`: and other, unknown work). It goes back at once if that
 * work is over, otherwise when it is. `*keep` is an object that keeps the streams alive; it is set to NULL if the table
 * takes it over. `*old` is set to the object that the slot kept before. Returns 0, or the driver's error if an event
 * could not be recorded yet. */
static inline int cf_pending_defer(cf_pending *p, uint32_t k, uint64_t seq, void *const *streams, int count,
                                   bool stream_unknown, void **keep, void **old) {
    cf_pending_frame f;
    memset(&f, 0, sizeof f);
    f.seq = seq;
    f.uses = stream_unknown ? 1 : count;
    CF_ASSERT(k < CF_MAX_RING && f.uses <= (int)(sizeof f.use / sizeof *f.use));
    int result = CF_CUDA_SUCCESS;
    pthread_mutex_lock(&cf_table.lock);
    for (int i = 0; i < f.uses && p->spares; i++) f.use[i].event = p->spare[--p->spares];
    pthread_mutex_unlock(&cf_table.lock);
    for (int i = 0; i < f.uses; i++) {
        f.use[i].stream = stream_unknown ? NULL : streams[i];
        int one = cf_pending_record(p, &f, &f.use[i], cf_now_ns());
        if (one && !result) result = one;
    }
    if (result) {
        f.keep = *keep;
        *keep = NULL;
    }
    pthread_mutex_lock(&cf_table.lock);
    *old = p->frame[k].keep;
    p->frame[k] = f;
    cf_store_seq_cst_u32(&p->mask, p->mask | 1u << k);
    pthread_mutex_unlock(&cf_table.lock);
    cf_pending_look(p, false);
    if (cf_load_seq_cst_u32(&p->mask)) {
        pthread_mutex_lock(&cf_table.lock);
        cf_reaper_wake();
        pthread_mutex_unlock(&cf_table.lock);
    }
    return result;
}

/* To be called when the reader is closed: when nothing is held any more, its connection is ended and `what` is called.
 * False: nothing is pending, and the caller still owns `what`. */
static inline bool cf_pending_outlive(cf_pending *p, void *what) {
    bool kept = false;
    pthread_mutex_lock(&cf_table.lock);
    if (p->mask && !p->outlive) {
        p->outlive = what;
        p->hang_up = kept = true;
        cf_reaper_wake();
    }
    pthread_mutex_unlock(&cf_table.lock);
    return kept;
}

/* The caller is about to close the connection: do not use its descriptor any more. */
static inline void cf_pending_stay(cf_pending *p) {
    pthread_mutex_lock(&cf_table.lock);
    p->hang_up = false;
    pthread_mutex_unlock(&cf_table.lock);
}

/* Take the object that a slot kept. The reader must be out of the table. */
static inline void *cf_pending_kept(cf_pending *p, uint32_t k) {
    void *kept = p->frame[k].keep;
    p->frame[k].keep = NULL;
    return kept;
}

/* A Python object that the table no longer needs, or NULL. `*call`: call the object before dropping it. */
static inline void *cf_pending_collect(int *call) {
    void *found = NULL;
    *call = 0;
    pthread_mutex_lock(&cf_table.lock);
    for (cf_pending *p = cf_table.first; p && !found; p = p->next) {
        if (!p->mask && p->outlive) {
            found = p->outlive;
            p->outlive = NULL;
            *call = 1;
        }
        for (uint32_t k = 0; k < CF_MAX_RING && !found; k++) {
            if (p->mask >> k & 1) continue;
            found = p->frame[k].keep;
            p->frame[k].keep = NULL;
        }
    }
    if (!found) {
        cf_store_seq_cst_u32(&cf_table.ready, 0);
        cf_table.notified = false;
    }
    pthread_mutex_unlock(&cf_table.lock);
    return found;
}

static inline bool cf_pending_ready(void) { return cf_load_seq_cst_u32(&cf_table.ready); }

/* Set the function that asks Python for a collection. NULL: Python has ended. */
static inline void cf_pending_set_notify(int (*notify)(void)) {
    pthread_mutex_lock(&cf_table.lock);
    cf_table.notify = notify;
    pthread_mutex_unlock(&cf_table.lock);
}

#endif
