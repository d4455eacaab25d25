/* The framecache slot: raw frames in a file, one writer, any number of readers.
 *
 * Plain C over mapped bytes, without Python. Readers map the file read-only and leave no trace in it, and the writer
 * never waits for them. A slot outlives its writers: the next writer continues where the last one stopped.
 *
 * HOW A READER KNOWS THAT A COPY IS WHOLE
 *
 * Frame n is in entry n % ring_depth. write_cursor is the number of frames written so far, so frame n has been written
 * once write_cursor > n. Its entry is overwritten by frame n + ring_depth, and while that frame is being written,
 * write_cursor still is n + ring_depth. Therefore at most ring_depth - 1 frames are whole.
 *
 *     writer                                        reader
 *     W1  write_cursor = m                          R1  write_cursor > n? read the entry
 *         full fence                                R2  copy the pixels
 *     W2  write frame m into entry m % ring_depth       acquire fence
 *     W3  write_cursor = m + 1                      R3  write_cursor < n + ring_depth
 *
 * A reader that copied a byte of W2 sees W1 in R3. (A writer in C without the fence is safe on machines that do not
 * reorder stores, such as x86-64.)
 *
 * HOW A READER SLEEPS
 *
 * A reader sleeps on the low half of write_cursor as a futex. Our writers wake all sleepers on it. Other writers only
 * post a semaphore, which wakes just one of many readers. That is left to readers in C; our readers poll the cursor of
 * such a writer. */
#ifndef CUFRAMES_CACHE_H
#define CUFRAMES_CACHE_H

#include "gnu.h"

#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "copy.h"
#include "debug.h"
#include "gate.h"
#include "shm.h"
#include "status.h"
#include "wait.h"

/* Polling the cursor of a writer that does not wake the futex: the shortest and the longest time between two looks. In
 * between, it is the time waited so far, divided by CF_CACHE_POLL_PART. */
#define CF_CACHE_POLL_NS 500000
#define CF_CACHE_POLL_MAX_NS 20000000
#define CF_CACHE_POLL_PART 16

/* The dimensions of the slot, for both ends. Read from the header once, checked against the file's size, and never read
 * again. */
typedef struct {
    uint64_t stride; /* bytes from one entry to the next */
    uint32_t frame_size;
    uint32_t depth;
} cf_cache_shape;

static inline uint64_t cf_cache_size(uint32_t frame_size, uint32_t depth) {
    return CF_CACHE_HEADER_SIZE + (uint64_t)depth * (sizeof(cf_cache_entry) + frame_size);
}

/* Read and check the dimensions. CF_CORRUPT: not a slot of version 1, or it does not fit its file of `size` bytes. The
 * header may contain any values. The depth is checked with a division, since a product could overflow 64 bits. */
static inline int cf_cache_measure(const void *segment, uint64_t size, cf_cache_shape *s) {
    const cf_cache_header *h = (const cf_cache_header *)segment;
    if (size < sizeof *h || cf_load_acquire_u32(&h->magic) != CF_CACHE_MAGIC ||
        cf_load_relaxed_u32(&h->version) != CF_CACHE_VERSION)
        return CF_CORRUPT;
    s->frame_size = cf_load_relaxed_u32(&h->frame_size);
    s->depth = cf_load_relaxed_u32(&h->ring_depth);
    s->stride = sizeof(cf_cache_entry) + (uint64_t)s->frame_size;
    bool sound =
        s->frame_size && s->depth >= CF_CACHE_MIN_DEPTH && s->depth <= (size - CF_CACHE_HEADER_SIZE) / s->stride;
    return sound ? CF_OK : CF_CORRUPT;
}

/* ---- the writer -------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_cache_header *shared;
    uint64_t size; /* bytes of the mapping */
    cf_cache_shape shape;
    int fd;
    cf_gate gate;    /* closed by close() */
    uint32_t busy;   /* atomic; a frame is being written, by a call or in place by the caller */
    uint64_t cursor; /* number of the next frame */
} cf_cache_writer;

/* Make a slot out of zero-filled bytes that are not yet visible to others. The caller fills in the descriptive
 * fields. */
static inline void cf_cache_format(cf_cache_header *h, uint32_t frame_size, uint32_t depth) {
    h->version = CF_CACHE_VERSION;
    h->frame_size = frame_size;
    h->ring_depth = depth;
    cf_store_release_u32(&h->magic, CF_CACHE_MAGIC);
}

/* Become the writer of a mapped slot. The caller holds the slot's lock. */
static inline int cf_cache_writer_init(cf_cache_writer *w, void *segment, uint64_t size, int fd, uint64_t pid) {
    memset(w, 0, sizeof *w);
    int rc = cf_cache_measure(segment, size, &w->shape);
    if (rc != CF_OK) return rc;
    w->shared = (cf_cache_header *)segment;
    w->size = size;
    w->fd = fd;
    w->cursor = cf_load_acquire(&w->shared->write_cursor);
    cf_store_relaxed(&w->shared->writer_pid, pid);
    cf_store_release_u32(&w->shared->futex, 1); /* PAIRS WITH: reader sleep */
    return CF_OK;
}

static inline char *cf_cache_entry_at(const cf_cache_shape *s, const void *segment, uint64_t n) {
    return (char *)segment + CF_CACHE_HEADER_SIZE + n % s->depth * s->stride;
}

/* Begin a frame: `pixels` is where its pixels go. CF_BUSY: another frame is being written. CF_ENDED: the slot was
 * removed. cf_cache_end must follow. */
static inline int cf_cache_begin(cf_cache_writer *w, char **pixels) {
    struct stat file;
    if (cf_exchange_u32(&w->busy, 1)) return CF_BUSY;
    if (fstat(w->fd, &file) == 0 && file.st_nlink == 0) {
        cf_store_seq_cst_u32(&w->busy, 0);
        return CF_ENDED;
    }
    cf_fence_full(); /* W1 before W2. PAIRS WITH: reader whole */
    *pixels = cf_cache_entry_at(&w->shape, w->shared, w->cursor) + sizeof(cf_cache_entry);
    return CF_OK;
}

/* End the begun frame, whether it was published or not. */
static inline void cf_cache_end(cf_cache_writer *w) {
    CF_ASSERT(cf_load_seq_cst_u32(&w->busy));
    cf_store_seq_cst_u32(&w->busy, 0);
}

/* Publish the frame, whose pixels are written, and wake sleeping readers. Readers cannot announce that they sleep, so
 * this is a system call for every frame. */
static inline void cf_cache_commit(cf_cache_writer *w, uint32_t size, uint64_t pts_us, uint64_t wall_us) {
    cf_cache_entry entry = {pts_us, wall_us, size, 0};
    CF_ASSERT(size <= w->shape.frame_size && cf_load_seq_cst_u32(&w->busy));
    cf_copy_racing(cf_cache_entry_at(&w->shape, w->shared, w->cursor), (const char *)&entry, sizeof entry);
    cf_store_seq_cst(&w->shared->write_cursor, ++w->cursor); /* W3. PAIRS WITH: reader look; reader sleep */
    cf_futex_wake_all(cf_low_half(&w->shared->write_cursor));
}

/* Count frames that the source lost before they reached the writer. */
static inline void cf_cache_drop(cf_cache_writer *w, uint64_t count) {
    cf_fetch_add(&w->shared->dropped_frames, count);
}

/* Leave the slot to the next writer. If the caller is still filling a frame in place, call cf_cache_revoke before
 * giving up the lock. */
static inline void cf_cache_writer_leave(cf_cache_writer *w) {
    cf_store_release_u32(&w->shared->futex, 0);
    cf_futex_wake_all(cf_low_half(&w->shared->write_cursor)); /* from now on sleepers have to poll */
}

/* Replace the mapping by private memory: a caller that is still filling a frame in place then no longer writes to the
 * slot. Afterwards the lock may be given up. False: the mapping could not be replaced. */
static inline bool cf_cache_revoke(cf_cache_writer *w) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap(w->shared, w->size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* ---- the semaphore ------------------------------------------------------------------------------------------------
 *
 * Does the same as sem_post, but without the C library: members of the slot's group may write to the file, and invalid
 * values make sem_post fail or abort. Here an invalid number of waiters only costs a system call. */

/* Post the semaphore, unless its value is already `enough`. False: the file is not a semaphore any more. (If it was
 * truncated, it reads as zeros.) */
static inline bool cf_semaphore_post(cf_semaphore *s, uint32_t enough) {
    uint32_t value = cf_load_relaxed_u32(cf_low_half(&s->data));
    if (value > INT_MAX || cf_load_relaxed_u32(&s->shared) != CF_SEMAPHORE_SHARED) return false;
    if (value >= enough) return true;
    /* No compare-and-swap loop, which another process could keep from succeeding. PAIRS WITH: sem_wait */
    uint64_t before = cf_fetch_add(&s->data, 1);
    if (before >> 32) cf_futex_wake_one(cf_low_half(&s->data));
    return true;
}

/* ---- the reader -------------------------------------------------------------------------------------------------- */

enum { CF_CACHE_NEXT = 0, CF_CACHE_LATEST = 1, CF_CACHE_OLDEST = 2 };

typedef struct {
    const cf_cache_header *shared;
    cf_cache_shape shape;
    bool newest;         /* always take the newest frame */
    bool unlocked;       /* no writer holds the lock, whatever the header says */
    int fd;              /* the file */
    int event_fd;        /* or -1 */
    cf_gate gate;        /* closed by close() */
    uint32_t skip_ahead; /* skip this many of the oldest whole frames: 0, or more after torn copies */
    uint64_t at;         /* the next frame to read */
    int64_t looked_ns;   /* when the file was last checked */
    int64_t since_ns;    /* when waiting for frame `waiting_for` began */
    uint64_t waiting_for;
    uint64_t received;
    uint64_t dropped;
    uint64_t lapped;
} cf_cache_reader;

typedef struct {
    uint64_t seq;
    uint64_t pts_us;
    uint64_t wall_us;
    uint32_t size;
    const char *pixels;
} cf_cache_frame;

static inline uint64_t cf_cache_cursor(const cf_cache_reader *r) { return cf_load_acquire(&r->shared->write_cursor); }

/* The oldest frame that is whole as long as the cursor has this value. */
static inline uint64_t cf_cache_oldest(const cf_cache_reader *r, uint64_t cursor) {
    return cursor < r->shape.depth ? 0 : cursor - r->shape.depth + 1;
}

static inline int cf_cache_reader_init(cf_cache_reader *r, const void *segment, uint64_t size, int fd, int start) {
    memset(r, 0, sizeof *r);
    r->event_fd = -1;
    int rc = cf_cache_measure(segment, size, &r->shape);
    if (rc != CF_OK) return rc;
    r->shared = (const cf_cache_header *)segment;
    r->fd = fd;
    r->at = cf_cache_cursor(r);
    if (start == CF_CACHE_LATEST && r->at) r->at--;
    if (start == CF_CACHE_OLDEST) r->at = cf_cache_oldest(r, r->at);
    return CF_OK;
}

/* Whether everything read so far belongs to frame `seq` (R3). To be asked after reading. */
static inline bool cf_cache_whole(const cf_cache_reader *r, uint64_t seq) {
    cf_fence_acquire(); /* PAIRS WITH: writer begin, W1 before W2 */
    uint64_t cursor = cf_cache_cursor(r);
    return cursor > seq && cursor - seq < r->shape.depth;
}

/* Read the entry of frame `seq`: CF_OK, CF_EMPTY (not written yet), CF_OVERRUN (already overwritten), CF_CORRUPT. */
static inline int cf_cache_look(const cf_cache_reader *r, uint64_t seq, cf_cache_frame *f) {
    if (cf_cache_cursor(r) <= seq) return CF_EMPTY; /* R1. PAIRS WITH: writer commit, W3 */
    const char *at = cf_cache_entry_at(&r->shape, r->shared, seq);
    cf_cache_entry entry;
    cf_copy_racing((char *)&entry, at, sizeof entry);
    if (!cf_cache_whole(r, seq)) return CF_OVERRUN;
    if (entry.size > r->shape.frame_size) return CF_CORRUPT;
    f->seq = seq;
    f->pts_us = entry.pts_us;
    f->wall_us = entry.wall_us;
    f->size = entry.size;
    f->pixels = at + sizeof entry;
    return CF_OK;
}

/* Find the next frame to read, without waiting. CF_AGAIN: the writer overwrote every frame that was tried; call
 * again. */
static inline int cf_cache_find(cf_cache_reader *r, cf_cache_frame *f) {
    for (int tries = 0; tries < CF_SPIN_BATCH; tries++) {
        uint64_t cursor = cf_cache_cursor(r);
        if (cursor < r->at) r->at = cursor; /* the slot was started again */
        if (cursor == r->at) return CF_EMPTY;
        uint64_t seq = r->at, oldest = cf_cache_oldest(r, cursor);
        if (seq < oldest + r->skip_ahead) seq = oldest + r->skip_ahead;
        if (r->newest || seq >= cursor) seq = cursor - 1;
        int rc = cf_cache_look(r, seq, f);
        if (rc != CF_OVERRUN) return rc;
    }
    return CF_AGAIN;
}

/* Copy the pixels (R2). True: the copy is whole. */
static inline bool cf_cache_read(const cf_cache_reader *r, const cf_cache_frame *f, char *out) {
    cf_copy_racing(out, f->pixels, f->size);
    return cf_cache_whole(r, f->seq);
}

/* The frame was read whole: advance to the next one. Returns how many frames were missed before it. */
static inline uint64_t cf_cache_advance(cf_cache_reader *r, const cf_cache_frame *f) {
    uint64_t dropped = f->seq - r->at;
    r->at = f->seq + 1;
    r->skip_ahead = 0;
    r->received += 1;
    r->dropped += dropped;
    return dropped;
}

/* The frame was overwritten while it was copied. The oldest frame is always about to be overwritten, so continue at a
 * later one, and skip more frames each time. */
static inline void cf_cache_resync(cf_cache_reader *r) {
    r->lapped += 1;
    r->skip_ahead = r->skip_ahead * 2 + 1 < r->shape.depth ? r->skip_ahead * 2 + 1 : r->shape.depth;
}

/* CF_OK: more frames may come. CF_ENDED: the slot was removed. CF_CUT: the file was truncated. */
static inline int cf_cache_check(cf_cache_reader *r) {
    struct stat file;
    r->unlocked = cf_is_unlocked(r->fd);
    if (fstat(r->fd, &file)) return CF_OK;
    if ((uint64_t)file.st_size < cf_cache_size(r->shape.frame_size, r->shape.depth)) return CF_CUT;
    return file.st_nlink == 0 ? CF_ENDED : CF_OK;
}

/* Whether the writer wakes sleepers on the cursor. The flag alone is not enough: a killed writer leaves it set, and the
 * next writer may not know it. PAIRS WITH: writer init */
static inline bool cf_cache_wakes(const cf_cache_reader *r) {
    return !r->unlocked && cf_load_acquire_u32(&r->shared->futex);
}

/* Sleep until the cursor differs from `seen`, for at most `timeout`. `waited` is how long this wait has lasted so
 * far. */
static inline int cf_cache_sleep(const cf_cache_reader *r, uint64_t seen, int64_t timeout, int64_t waited) {
    if (!cf_cache_wakes(r)) {
        int64_t look = cf_min_i64(waited / CF_CACHE_POLL_PART, CF_CACHE_POLL_MAX_NS);
        timeout = cf_min_i64(timeout, look < CF_CACHE_POLL_NS ? CF_CACHE_POLL_NS : look);
    }
    return cf_futex_wait(cf_low_half(&r->shared->write_cursor), (uint32_t)seen, timeout);
}

/* Wait for a frame until `deadline`. CF_OK: look for it. CF_AGAIN: a slice of waiting is over; call again. CF_ENDED:
 * the slot was removed, and nothing is left. */
static inline int cf_cache_wait(cf_cache_reader *r, int64_t deadline) {
    cf_wait w = cf_wait_until(deadline, CF_SLICE_NS);
    for (;;) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        uint64_t cursor = cf_load_seq_cst(&r->shared->write_cursor);
        if (cursor != r->at) return CF_OK;
        int rc = cf_wait_turn(&w, r->event_fd, false);
        if (rc == CF_OK) continue;
        if (!r->since_ns || r->waiting_for != r->at) r->since_ns = w.now_ns, r->waiting_for = r->at;
        if (rc != CF_EMPTY || w.now_ns - r->looked_ns >= CF_SLICE_NS) {
            r->looked_ns = w.now_ns;
            int there = cf_cache_check(r);
            if (cf_cache_cursor(r) != r->at) return CF_OK;
            if (there != CF_OK) return there;
        }
        if (rc != CF_EMPTY) return rc;
        if (cf_cache_sleep(r, cursor, cf_wait_left(&w), w.now_ns - r->since_ns) == EINTR) return CF_AGAIN;
    }
}

/* Signal `event_fd` whenever a frame is published, and at the end. Returns when the slot is removed or the reader is
 * closed. Runs in a thread of its own, on a copy of the reader. */
static inline void cf_cache_watch(const cf_cache_reader *watched, int event_fd) {
    cf_cache_reader r = *watched;
    uint64_t signalled = UINT64_MAX;
    int64_t since = cf_now_ns();
    bool ended = false;
    while (!ended && !cf_gate_is_shut(&watched->gate)) {
        uint64_t cursor = cf_load_seq_cst(&r.shared->write_cursor);
        int64_t now = cf_now_ns();
        if (now - r.looked_ns >= CF_SLICE_NS) {
            r.looked_ns = now;
            ended = cf_cache_check(&r) != CF_OK;
        }
        if (ended || cursor != signalled) {
            cf_event_signal(event_fd);
            signalled = cursor;
            since = now;
        }
        if (!ended) cf_cache_sleep(&r, cursor, CF_SLICE_NS, now - since);
    }
}

#endif
