/* The framecache slot: raw frames in a file, one writer, any number of readers.
 *
 * Plain C over mapped bytes, without Python. Readers map the file read-only and leave no trace in it; the writer never
 * waits for them. A slot outlives its writers: the next one goes on where the last one stopped.
 *
 * HOW A READER KNOWS THAT A COPY IS WHOLE
 *
 * Frame n lies in entry n % ring_depth. write_cursor says how many frames were written, so n is there once it is above n,
 * and n's entry is being overwritten as soon as frame n + ring_depth is being written: while write_cursor still says
 * n + ring_depth. Therefore ring_depth - 1 frames at most are whole.
 *
 *     writer                                        reader
 *     W1  write_cursor = m                          R1  write_cursor > n? read the entry
 *         full fence                                R2  copy the pixels
 *     W2  write frame m into entry m % ring_depth       acquire fence
 *     W3  write_cursor = m + 1                      R3  write_cursor < n + ring_depth
 *
 * A reader that copied a byte of W2 sees W1 in R3. (A writer in C that lacks the fence is safe where stores are not
 * reordered, as on x86-64.)
 *
 * HOW A READER SLEEPS
 *
 * On the low half of write_cursor, which our writers wake for everybody. Other writers post a semaphore, which wakes one
 * reader of many: it is left to the C programs, and readers of ours look at the cursor every so often instead. */
#ifndef CUFRAMES_CACHE_H
#define CUFRAMES_CACHE_H

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "copy.h"
#include "debug.h"
#include "gate.h"
#include "shm.h"
#include "status.h"

/* Without a futex: the shortest and the longest time between two looks at the cursor, and in between which part of the
 * time waited so far. */
#define CF_CACHE_POLL_NS 500000
#define CF_CACHE_POLL_MAX_NS 20000000
#define CF_CACHE_POLL_PART 16

/* What both ends know of the file. Taken from the header once, compared with the file's size, and never read again. */
typedef struct {
    uint64_t stride; /* bytes from one entry to the next */
    uint32_t frame_size;
    uint32_t depth;
} cf_cache_shape;

static inline uint64_t cf_cache_size(uint32_t frame_size, uint32_t depth) {
    return CF_CACHE_HEADER_SIZE + (uint64_t)depth * (sizeof(cf_cache_entry) + frame_size);
}

/* CF_CORRUPT: no slot of version 1, or one that does not fit its file of `size` bytes. Whoever wrote the header may have
 * written anything: the depth is compared by division, since the product of two such numbers can be beyond 64 bits. */
static inline int cf_cache_measure(const void *segment, uint64_t size, cf_cache_shape *s) {
    const cf_cache_header *h = segment;
    if (size < sizeof *h || cf_load_acquire_u32(&h->magic) != CF_CACHE_MAGIC ||
        cf_load_relaxed_u32(&h->version) != CF_CACHE_VERSION)
        return CF_CORRUPT;
    s->frame_size = cf_load_relaxed_u32(&h->frame_size);
    s->depth = cf_load_relaxed_u32(&h->ring_depth);
    s->stride = sizeof(cf_cache_entry) + (uint64_t)s->frame_size;
    bool sound = s->frame_size && s->depth >= CF_CACHE_MIN_DEPTH && s->depth <= (size - CF_CACHE_HEADER_SIZE) / s->stride;
    return sound ? CF_OK : CF_CORRUPT;
}

/* ---- the writer --------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_cache_header *shared;
    uint64_t size; /* bytes of the mapping */
    cf_cache_shape shape;
    int fd;
    cf_gate gate;    /* closed by close() */
    uint32_t busy;   /* atomic; a frame is being written, by a call or by a caller who fills it */
    uint64_t cursor; /* the frame to be written next */
} cf_cache_writer;

/* Make a slot out of zero bytes that nobody else can see yet; the caller fills in what only people read. */
static inline void cf_cache_format(cf_cache_header *h, uint32_t frame_size, uint32_t depth) {
    h->version = CF_CACHE_VERSION;
    h->frame_size = frame_size;
    h->ring_depth = depth;
    cf_store_release_u32(&h->magic, CF_CACHE_MAGIC);
}

/* Become the writer of a mapped slot, whose lock the caller holds. */
static inline int cf_cache_writer_init(cf_cache_writer *w, void *segment, uint64_t size, int fd, uint64_t pid) {
    memset(w, 0, sizeof *w);
    int rc = cf_cache_measure(segment, size, &w->shape);
    if (rc != CF_OK) return rc;
    w->shared = segment;
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

/* Where the next frame's pixels go. CF_BUSY: another frame is being written. CF_ENDED: the slot was removed. Ends with
 * cf_cache_end. */
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

/* What was begun is over, published or not. */
static inline void cf_cache_end(cf_cache_writer *w) {
    CF_ASSERT(cf_load_seq_cst_u32(&w->busy));
    cf_store_seq_cst_u32(&w->busy, 0);
}

/* The pixels are there: publish them, and wake who sleeps. Readers cannot say that they do, so this is a system call. */
static inline void cf_cache_commit(cf_cache_writer *w, uint32_t size, uint64_t pts_us, uint64_t wall_us) {
    cf_cache_entry entry = {.pts_us = pts_us, .wall_us = wall_us, .size = size};
    CF_ASSERT(size <= w->shape.frame_size && cf_load_seq_cst_u32(&w->busy));
    cf_copy_racing(cf_cache_entry_at(&w->shape, w->shared, w->cursor), (const char *)&entry, sizeof entry);
    cf_store_seq_cst(&w->shared->write_cursor, ++w->cursor); /* W3. PAIRS WITH: reader look; reader sleep */
    cf_futex_wake_all(cf_low_half(&w->shared->write_cursor));
}

/* Note frames that the source lost before they came here. */
static inline void cf_cache_drop(cf_cache_writer *w, uint64_t count) { cf_fetch_add(&w->shared->dropped_frames, count); }

/* Leave the slot to the next writer, whoever that is. A frame that is still being filled is taken out of it first: see
 * cf_cache_revoke. */
static inline void cf_cache_writer_leave(cf_cache_writer *w) {
    cf_store_release_u32(&w->shared->futex, 0);
    cf_futex_wake_all(cf_low_half(&w->shared->write_cursor)); /* sleepers have to look by themselves from here on */
}

/* Take the mapping out of the slot: whoever still fills a frame of it writes to memory of his own. Afterwards the lock may
 * be given up. */
static inline bool cf_cache_revoke(cf_cache_writer *w) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap(w->shared, w->size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* ---- the reader --------------------------------------------------------------------------------------------------- */

enum { CF_CACHE_NEXT = 0, CF_CACHE_LATEST = 1, CF_CACHE_OLDEST = 2 };

typedef struct {
    const cf_cache_header *shared;
    cf_cache_shape shape;
    bool newest;       /* always go on with the newest frame */
    bool unlocked;     /* no writer of ours is there, whatever the header says */
    int fd;            /* the file */
    int event_fd;      /* or -1 */
    cf_gate gate;      /* closed by close() */
    uint32_t hurry;    /* how far behind the oldest whole frame to go on: 0, or more after torn copies */
    uint64_t at;       /* the frame wanted next */
    int64_t looked_ns; /* when the file was last looked at */
    int64_t since_ns;  /* when waiting for frame `waiting_for` began */
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

/* The oldest frame that is whole while the cursor says so. */
static inline uint64_t cf_cache_oldest(const cf_cache_reader *r, uint64_t cursor) {
    return cursor < r->shape.depth ? 0 : cursor - r->shape.depth + 1;
}

static inline int cf_cache_reader_init(cf_cache_reader *r, const void *segment, uint64_t size, int fd, int start) {
    memset(r, 0, sizeof *r);
    r->event_fd = -1;
    int rc = cf_cache_measure(segment, size, &r->shape);
    if (rc != CF_OK) return rc;
    r->shared = segment;
    r->fd = fd;
    r->at = cf_cache_cursor(r);
    if (start == CF_CACHE_LATEST && r->at) r->at--;
    if (start == CF_CACHE_OLDEST) r->at = cf_cache_oldest(r, r->at);
    return CF_OK;
}

/* Whether what was read of frame `seq` is that frame (R3): to be asked after reading. */
static inline bool cf_cache_whole(const cf_cache_reader *r, uint64_t seq) {
    cf_fence_acquire(); /* PAIRS WITH: writer begin, W1 before W2 */
    uint64_t cursor = cf_cache_cursor(r);
    return cursor > seq && cursor - seq < r->shape.depth;
}

/* Frame `seq` as its entry has it: CF_OK, CF_EMPTY (not there yet), CF_OVERRUN (not there any more), CF_CORRUPT. */
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

/* The next frame to read, without waiting. CF_AGAIN: the writer is so fast that none stays for long enough; try again. */
static inline int cf_cache_find(cf_cache_reader *r, cf_cache_frame *f) {
    for (int tries = 0; tries < CF_SPIN_BATCH; tries++) {
        uint64_t cursor = cf_cache_cursor(r);
        if (cursor < r->at) r->at = cursor; /* the slot was begun anew */
        if (cursor == r->at) return CF_EMPTY;
        uint64_t seq = r->at, oldest = cf_cache_oldest(r, cursor);
        if (seq < oldest + r->hurry) seq = oldest + r->hurry;
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

/* The frame was read whole: go on behind it. Returns how many were missed before it. */
static inline uint64_t cf_cache_took(cf_cache_reader *r, const cf_cache_frame *f) {
    uint64_t dropped = f->seq - r->at;
    r->at = f->seq + 1;
    r->hurry = 0;
    r->received += 1;
    r->dropped += dropped;
    return dropped;
}

/* The writer came round while the frame was copied. The oldest one is always about to be overwritten, so go on at a
 * later one each time. */
static inline void cf_cache_lapped(cf_cache_reader *r) {
    r->lapped += 1;
    r->hurry = r->hurry * 2 + 1 < r->shape.depth ? r->hurry * 2 + 1 : r->shape.depth;
}

/* CF_OK: there may be more. CF_ENDED: the slot was removed. CF_CUT: its file was cut off. */
static inline int cf_cache_check(cf_cache_reader *r) {
    struct stat file;
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    r->unlocked = fcntl(r->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
    if (fstat(r->fd, &file)) return CF_OK;
    if ((uint64_t)file.st_size < cf_cache_size(r->shape.frame_size, r->shape.depth)) return CF_CUT;
    return file.st_nlink == 0 ? CF_ENDED : CF_OK;
}

/* Sleep until the cursor is no longer `seen`, or for `patience`; `waited` is how long this wait has lasted. */
static inline int cf_cache_sleep(const cf_cache_reader *r, uint64_t seen, int64_t patience, int64_t waited) {
    /* A writer that was killed has left the flag behind, and the one after it may know nothing of it. */
    if (r->unlocked || !cf_load_acquire_u32(&r->shared->futex)) { /* PAIRS WITH: writer init */
        int64_t look = cf_min_i64(waited / CF_CACHE_POLL_PART, CF_CACHE_POLL_MAX_NS);
        patience = cf_min_i64(patience, look < CF_CACHE_POLL_NS ? CF_CACHE_POLL_NS : look);
    }
    return cf_futex_wait(cf_low_half(&r->shared->write_cursor), (uint32_t)seen, patience);
}

/* Wait for a frame until `deadline`. CF_OK: look. CF_AGAIN after a slice of waiting: call again. CF_ENDED: the slot was
 * removed and nothing is left. */
static inline int cf_cache_wait(cf_cache_reader *r, int64_t deadline) {
    int64_t begin = 0;
    for (;;) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        uint64_t cursor = cf_load_seq_cst(&r->shared->write_cursor);
        if (cursor != r->at) return CF_OK;
        /* Nothing left: make the event wait for the next frame, and look once more for one that came meanwhile. */
        if (cf_event_drain(r->event_fd)) continue;
        int64_t now = cf_now_ns();
        if (!begin) begin = now;
        if (!r->since_ns || r->waiting_for != r->at) r->since_ns = now, r->waiting_for = r->at;
        bool over = now >= deadline || now - begin >= CF_SLICE_NS;
        if (over || now - r->looked_ns >= CF_SLICE_NS) {
            r->looked_ns = now;
            int rc = cf_cache_check(r);
            if (cf_cache_cursor(r) != r->at) return CF_OK;
            if (rc != CF_OK) return rc;
        }
        if (over) return now >= deadline ? CF_TIMED_OUT : CF_AGAIN;
        int64_t patience = cf_min_i64(deadline - now, begin + CF_SLICE_NS - now);
        if (cf_cache_sleep(r, cursor, patience, now - r->since_ns) == EINTR) return CF_AGAIN;
    }
}

/* Feed `event_fd` whenever there is something to look at, until the slot is removed or the reader is closed. For a thread
 * of its own, with a reader of its own. */
static inline void cf_cache_watch(const cf_cache_reader *watched, int event_fd) {
    cf_cache_reader r = *watched;
    uint64_t told = UINT64_MAX;
    int64_t since = cf_now_ns();
    bool ended = false;
    while (!ended && !cf_gate_is_shut(&watched->gate)) {
        uint64_t cursor = cf_load_seq_cst(&r.shared->write_cursor);
        int64_t now = cf_now_ns();
        if (now - r.looked_ns >= CF_SLICE_NS) {
            r.looked_ns = now;
            ended = cf_cache_check(&r) != CF_OK;
        }
        if (ended || cursor != told) {
            cf_event_signal(event_fd);
            told = cursor;
            since = now;
        }
        if (!ended) cf_cache_sleep(&r, cursor, CF_SLICE_NS, now - since);
    }
}

#endif
