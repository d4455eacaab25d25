/* The packet ring: encoded packets of any size, one writer, any number of readers.
 *
 * Plain C over mapped bytes, without Python. Readers map the segment read-only and leave no trace in it. The writer
 * never waits for readers: a slow reader loses the oldest packets, and learns how many.
 *
 * HOW A READER KNOWS THAT A COPY IS WHOLE
 *
 * Slot s % ring_slots describes packet s. The packet's bytes lie in a data area, which is a ring of its own. Slot and
 * bytes may each be reused while a reader copies; with large packets, the data area wraps long before the slots do. So
 * the writer announces the reuse of both before it touches a byte, and the reader checks both after it has copied.
 * (Each is a seqlock: Lameter 2005, Boehm 2012.)
 *
 *     writer put                                    reader
 *     P1  slot seq = INVALID                        G1  slot seq is s? read the slot
 *     P2  write_offset += size                      G2  copy the bytes
 *         full fence                                    acquire fence
 *     P3  write the bytes and the slot              G3  slot seq is still s, and
 *     P4  slot seq = s                              G4  write_offset - data_offset <= data_size
 *
 * A reader that copied a byte of P3 sees P1 in G3 or P2 in G4.
 *
 * A reader never uses a value from the segment as a length or an offset before checking it against the size of the
 * mapping. */
#ifndef CUFRAMES_PACKETS_H
#define CUFRAMES_PACKETS_H

#include "gnu.h"

#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "copy.h"
#include "debug.h"
#include "gate.h"
#include "shm.h"
#include "status.h"
#include "wait.h"

static inline uint64_t cf_packet_segment_size(uint32_t ring_slots, uint32_t data_size) {
    return sizeof(cf_packet_header) + (uint64_t)ring_slots * sizeof(cf_packet_slot) + data_size;
}

/* ---- the writer -------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_packet_header *shared;
    cf_gate gate; /* closed by close() */
    cf_packet_slot *slots;
    char *data;
    uint32_t ring_slots;
    uint32_t data_size;
    uint32_t max_packet;
    uint32_t busy; /* atomic; a thread is writing */
    uint64_t seq;  /* of the newest packet */
    uint64_t offset;
} cf_packet_writer;

static inline void cf_packet_writer_extradata(cf_packet_writer *w, const char *bytes, uint32_t size) {
    cf_packet_header *h = w->shared;
    uint32_t *changes = &w->slots[0].extradata_changes, before = cf_load_relaxed_u32(changes);
    cf_store_relaxed_u32(changes, before + 1); /* X1, odd: being changed. PAIRS WITH: reader extradata, X4 */
    cf_store_relaxed_u32(&h->codec_extradata_size, 0);
    cf_fence_full();
    cf_copy_racing((char *)h->codec_extradata, bytes, size);
    cf_store_release_u32(&h->codec_extradata_size, size);
    cf_store_release_u32(changes, before + 2); /* X2. PAIRS WITH: reader extradata, X3 */
}

/* `segment` is zero-filled, cf_packet_segment_size() bytes long, and not yet visible to others. */
static inline void cf_packet_writer_init(cf_packet_writer *w, void *segment, uint32_t ring_slots, uint32_t data_size,
                                         uint32_t max_packet, uint32_t codec_id, uint64_t pid) {
    cf_packet_header *h = (cf_packet_header *)segment;
    memset(w, 0, sizeof *w);
    w->shared = h;
    w->slots = (cf_packet_slot *)(h + 1);
    w->data = (char *)(w->slots + ring_slots);
    w->ring_slots = ring_slots;
    w->data_size = data_size;
    w->max_packet = max_packet;
    h->proto_version = CF_PROTOCOL_V2;
    h->ring_slots = ring_slots;
    h->data_size = data_size;
    h->codec_id = codec_id;
    h->producer_pid = pid;
    for (uint32_t k = 0; k < ring_slots; k++) {
        w->slots[k].ext_flags = CF_EXT_OWNER_LOCK | CF_EXT_EXTRADATA_CHANGES;
        cf_store_release(&w->slots[k].seq, CF_SEQ_INVALID);
    }
}

/* To be called when everything else that a reader needs is written: a segment with its magic is complete. */
static inline void cf_packet_writer_open(cf_packet_writer *w) {
    cf_store_release_u32(&w->shared->magic, CF_PACKET_MAGIC);
}

/* Write one packet. CF_OVERSIZED and CF_BUSY: nothing was changed. Sleeping readers may see the packet only after
 * cf_packet_writer_wake. */
static inline int cf_packet_writer_put(cf_packet_writer *w, const char *bytes, uint64_t size, int64_t pts_ns,
                                       int64_t dts_ns, uint32_t flags) {
    if (size > w->max_packet) return CF_OVERSIZED;
    if (cf_exchange_u32(&w->busy, 1)) return CF_BUSY;
    cf_packet_header *h = w->shared;
    uint64_t seq = w->seq + 1, offset = w->offset;
    cf_packet_slot *slot = &w->slots[seq % w->ring_slots];
    size_t at = offset % w->data_size;
    size_t first = size < w->data_size - at ? size : w->data_size - at;
    CF_ASSERT(size <= w->data_size && at + first <= w->data_size);

    cf_store_relaxed(&slot->seq, CF_SEQ_INVALID);      /* P1. PAIRS WITH: reader, G3 */
    cf_store_relaxed(&h->write_offset, offset + size); /* P2. PAIRS WITH: reader, G4 */
    cf_fence_full();
    cf_copy_racing(w->data + at, bytes, first); /* P3 */
    cf_copy_racing(w->data, bytes + first, size - first);
    cf_store_relaxed_i64(&slot->pts_ns, pts_ns);
    cf_store_relaxed_i64(&slot->dts_ns, dts_ns);
    cf_store_relaxed(&slot->data_offset, offset);
    cf_store_relaxed_u32(&slot->data_size, (uint32_t)size);
    cf_store_relaxed_u32(&slot->flags, flags);
    cf_store_relaxed_i64(&slot->published_ns, cf_now_ns());
    cf_store_release(&slot->seq, seq); /* P4. PAIRS WITH: reader, G1 */
    if (flags & CF_PKT_KEY) cf_store_release(&h->last_keyframe_seq, seq);
    cf_store_seq_cst(&h->global_seq, seq); /* PAIRS WITH: reader look; and reader wait, its look before it sleeps */
    w->seq = seq;
    w->offset = offset + size;
    cf_store_seq_cst_u32(&w->busy, 0);
    return CF_OK;
}

/* Readers have no write access and cannot announce that they sleep, so this is a system call for every packet. */
static inline void cf_packet_writer_wake(cf_packet_writer *w) {
    cf_futex_wake_all(cf_low_half(&w->shared->global_seq));
}

static inline void cf_packet_writer_shutdown(cf_packet_writer *w) {
    cf_store_seq_cst(&w->shared->shutdown_flag, 1);
    cf_packet_writer_wake(w);
}

/* ---- the reader -------------------------------------------------------------------------------------------------- */

enum { CF_START_KEYFRAME = 0, CF_START_OLDEST = 1, CF_START_NEXT = 2, CF_START_LATEST = 3 };

typedef struct {
    const cf_packet_header *shared;
    const cf_packet_slot *slots;
    const char *data;
    uint32_t ring_slots; /* the values that were checked; never read from the segment again */
    uint32_t data_size;
    uint64_t pid;
    bool locks;          /* the writer holds the owner lock as long as it lives */
    bool counts_changes; /* the writer counts changes of the extradata */
    bool spin;
    bool scanning;     /* no keyframe was found at the start: take the first keyframe from `at` on, not `at` itself */
    int start;         /* as given to cf_packets_start */
    bool seeking;      /* after an overrun: take the newest keyframe from `at` on */
    int fd;            /* the segment */
    int event_fd;      /* or -1 */
    cf_gate gate;      /* closed by close() */
    uint64_t at;       /* the next packet to take */
    uint64_t expected; /* packets missing from here on count as lost; 0: before the first packet none do */
    uint64_t seen;     /* look again only when a packet newer than this was published */
    int64_t looked_ns; /* when wait_any last checked whether the publisher is alive */
    uint64_t received;
    uint64_t lost;
} cf_packet_reader;

typedef struct {
    uint64_t seq;
    int64_t pts_ns;
    int64_t dts_ns;
    int64_t published_ns;
    uint64_t offset;
    uint32_t size;
    uint32_t flags;
} cf_packet;

/* Attach to a mapped segment of `size` bytes. CF_CORRUPT: the header is invalid, or does not fit this size. */
static inline int cf_packet_reader_init(cf_packet_reader *r, const void *segment, uint64_t size, int fd) {
    const cf_packet_header *h = (const cf_packet_header *)segment;
    memset(r, 0, sizeof *r);
    r->event_fd = -1;
    if (size < sizeof *h || cf_load_acquire_u32(&h->magic) != CF_PACKET_MAGIC || h->proto_version != CF_PROTOCOL_V2)
        return CF_CORRUPT;
    r->ring_slots = cf_load_relaxed_u32(&h->ring_slots);
    r->data_size = cf_load_relaxed_u32(&h->data_size);
    if (r->ring_slots < 1 || r->ring_slots > CF_PKT_MAX_SLOTS || r->data_size < 1) return CF_CORRUPT;
    if (size < cf_packet_segment_size(r->ring_slots, r->data_size)) return CF_CORRUPT;
    r->shared = h;
    r->slots = (const cf_packet_slot *)(h + 1);
    r->data = (const char *)(r->slots + r->ring_slots);
    r->pid = h->producer_pid;
    r->locks = r->slots[0].ext_flags & CF_EXT_OWNER_LOCK;
    r->counts_changes = r->slots[0].ext_flags & CF_EXT_EXTRADATA_CHANGES;
    r->fd = fd;
    return CF_OK;
}

/* Whether the bytes that were read belong to the packet. To be asked after reading them. */
static inline bool cf_packet_whole(const cf_packet_reader *r, const cf_packet *p) {
    cf_fence_acquire();
    bool described = cf_load_acquire(&r->slots[p->seq % r->ring_slots].seq) == p->seq;         /* G3 */
    return described && cf_load_acquire(&r->shared->write_offset) - p->offset <= r->data_size; /* G4 */
}

/* Read the slot of packet `seq`: CF_OK, CF_EMPTY (not published yet), CF_OVERRUN (already overwritten), CF_CORRUPT. */
static inline int cf_packets_look(const cf_packet_reader *r, uint64_t seq, cf_packet *p) {
    /* Load global_seq first: if it is already `seq` or more, the packet was published before we look at its slot. If
     * the slot then does not contain it, it has been overwritten. */
    uint64_t newest = cf_load_acquire(&r->shared->global_seq);
    const cf_packet_slot *slot = &r->slots[seq % r->ring_slots];
    if (cf_load_acquire(&slot->seq) != seq) return newest >= seq ? CF_OVERRUN : CF_EMPTY; /* G1 */
    p->seq = seq;
    p->pts_ns = cf_load_relaxed_i64(&slot->pts_ns);
    p->dts_ns = cf_load_relaxed_i64(&slot->dts_ns);
    p->published_ns = cf_load_relaxed_i64(&slot->published_ns);
    p->offset = cf_load_relaxed(&slot->data_offset);
    p->size = cf_load_relaxed_u32(&slot->data_size);
    p->flags = cf_load_relaxed_u32(&slot->flags);
    if (!cf_packet_whole(r, p)) {
        bool absurd = p->offset > cf_load_acquire(&r->shared->write_offset);
        return absurd && cf_load_acquire(&slot->seq) == seq ? CF_CORRUPT : CF_OVERRUN;
    }
    /* Here it is certain that the writer stored these values together with this seq. */
    if (p->size > r->data_size || p->size > cf_load_acquire(&r->shared->write_offset) - p->offset) return CF_CORRUPT;
    return CF_OK;
}

/* The address of the packet's bytes, or NULL if they wrap around the end of the data area. */
static inline const char *cf_packet_bytes(const cf_packet_reader *r, const cf_packet *p) {
    size_t at = p->offset % r->data_size;
    return p->size <= r->data_size - at ? r->data + at : NULL;
}

/* Copy the packet's bytes (G2). True: the copy is whole. */
static inline bool cf_packet_read(const cf_packet_reader *r, const cf_packet *p, char *out) {
    size_t at = p->offset % r->data_size;
    size_t first = p->size < r->data_size - at ? p->size : r->data_size - at;
    cf_copy_racing(out, r->data + at, first);
    cf_copy_racing(out + first, r->data, p->size - first);
    return cf_packet_whole(r, p);
}

/* The newest packet at which reading may begin, or 0. Without any keyframe so far: the newest packet. */
static inline uint64_t cf_packets_entry(const cf_packet_reader *r) {
    uint64_t key = cf_load_acquire(&r->shared->last_keyframe_seq);
    return key || !r->expected ? key : cf_load_acquire(&r->shared->global_seq);
}

/* Choose where to begin. CF_START_OLDEST and CF_START_KEYFRAME: at the oldest or the newest keyframe that is still
 * whole; if there is none, at the next keyframe. CF_START_LATEST: at the newest packet. CF_START_NEXT: at the next
 * packet. If the chosen packet is overwritten before it was read, call this again. */
static inline void cf_packets_start(cf_packet_reader *r, int start) {
    uint64_t newest = cf_load_acquire(&r->shared->global_seq);
    uint64_t count = newest < r->ring_slots ? newest : r->ring_slots;
    r->at = newest + 1;
    if (start == CF_START_LATEST && newest) r->at = newest;
    r->scanning = start == CF_START_KEYFRAME || start == CF_START_OLDEST;
    r->expected = r->scanning ? 0 : r->at;
    r->start = start;
    r->seeking = false;
    for (uint64_t i = 1; r->scanning && i <= count; i++) {
        cf_packet p;
        uint64_t seq = start == CF_START_OLDEST ? newest - count + i : newest + 1 - i;
        int rc = cf_packets_look(r, seq, &p);
        if (rc == CF_OVERRUN || (rc == CF_OK && !(p.flags & CF_PKT_KEY))) continue;
        r->at = seq; /* a keyframe, or a corrupt packet, which the next read then reports */
        r->scanning = false;
    }
}

/* Find the next packet to read, without waiting. */
static inline int cf_packets_find(cf_packet_reader *r, cf_packet *p) {
    r->seen = cf_load_acquire(&r->shared->global_seq);
    while (!r->seeking) {
        int rc = cf_packets_look(r, r->at, p);
        if (rc == CF_OK && r->scanning && !(p->flags & CF_PKT_KEY)) r->at++;
        else if (rc == CF_OVERRUN) {
            uint64_t before = r->at;
            /* Nothing was taken yet: begin again at the packet that is the oldest keyframe by now. With absurd counters
             * that may not be a later one. */
            if (!r->expected && r->start == CF_START_OLDEST) cf_packets_start(r, r->start);
            if (r->at <= before) r->at = before, r->seeking = true;
        } else return rc;
    }
    for (uint64_t entry = cf_packets_entry(r);;) {
        if (entry < r->at) return CF_EMPTY;
        int rc = cf_packets_look(r, entry, p);
        if (rc != CF_OVERRUN) return rc;
        uint64_t later = cf_packets_entry(r);
        if (later == entry) return CF_EMPTY; /* overwritten, and the next keyframe is still to come */
        entry = later;
    }
}

/* The packet was read whole: advance to the next one. Returns how many packets were lost before it. */
static inline uint64_t cf_packets_advance(cf_packet_reader *r, const cf_packet *p) {
    uint64_t lost = r->expected ? p->seq - r->expected : 0;
    r->at = r->expected = p->seq + 1;
    r->seen = p->seq;
    r->seeking = r->scanning = false;
    r->received += 1;
    r->lost += lost;
    return lost;
}

/* The packet that was found has been overwritten while it was read. */
static inline void cf_packets_resync(cf_packet_reader *r) { r->seeking = true; }

/* Whether the writer is gone. Some of its packets may not have been taken yet. */
static inline bool cf_packets_abandoned(const cf_packet_reader *r) {
    if (!r->locks) return r->pid && kill((pid_t)r->pid, 0) && errno == ESRCH;
    return cf_is_unlocked(r->fd);
}

/* CF_OK: the writer may still write. CF_ENDED: the writer is gone. CF_CUT: the file was truncated. */
static inline int cf_packets_check(const cf_packet_reader *r) {
    struct stat file;
    if (fstat(r->fd, &file) == 0 && (uint64_t)file.st_size < cf_packet_segment_size(r->ring_slots, r->data_size))
        return CF_CUT;
    return cf_packets_abandoned(r) ? CF_ENDED : CF_OK;
}

/* Find the next packet, waiting for it until `deadline`. CF_AGAIN: a slice of waiting is over; call again. CF_ENDED:
 * the writer is gone, and nothing is left. */
static inline int cf_packets_next(cf_packet_reader *r, int64_t deadline, cf_packet *p) {
    cf_wait w = cf_wait_until(deadline, r->spin ? CF_SPIN_SLICE_NS : CF_SLICE_NS);
    bool ended = false;
    for (;;) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        /* Check for the end before looking at the ring, so that packets published before the end are still taken. */
        ended |= cf_load_acquire(&r->shared->shutdown_flag) != 0;
        uint64_t seen = cf_load_seq_cst(&r->shared->global_seq);
        int rc = cf_packets_find(r, p);
        if (rc != CF_EMPTY) return rc;
        if (ended) {
            /* What was overwritten, or lies before a keyframe that will not come any more, is lost. */
            if (r->expected && seen >= r->expected) {
                r->lost += seen + 1 - r->expected;
                r->at = r->expected = seen + 1;
            }
            return CF_ENDED;
        }
        rc = cf_wait_turn(&w, r->event_fd, r->spin);
        if (rc == CF_TIMED_OUT || rc == CF_AGAIN) {
            int alive = cf_packets_check(r);
            if (alive == CF_CUT) return alive;
            if (alive == CF_OK) return rc;
            ended = true; /* look once more */
        } else if (rc == CF_EMPTY && r->spin) {
            cf_spin_yield();
        } else if (rc == CF_EMPTY) {
            /* The word was read before the ring, so any later change wakes us. PAIRS WITH: writer put, global_seq */
            const uint32_t *word = cf_low_half(&r->shared->global_seq);
            if (cf_futex_wait(word, (uint32_t)seen, cf_wait_left(&w)) == EINTR) return CF_AGAIN;
        }
    }
}

/* Signal `event_fd` whenever a packet is published, and at the end. Returns when the writer is gone or the reader is
 * closed. Runs in a thread of its own. */
static inline void cf_packets_watch(const cf_packet_reader *r, int event_fd) {
    const uint32_t *word = cf_low_half(&r->shared->global_seq);
    uint64_t signalled = 0;
    bool ended = false;
    while (!cf_gate_is_shut(&r->gate)) {
        uint64_t newest = cf_load_seq_cst(&r->shared->global_seq);
        ended |= cf_load_acquire(&r->shared->shutdown_flag) || (newest == signalled && cf_packets_check(r) != CF_OK);
        if (ended || newest != signalled) {
            cf_event_signal(event_fd);
            signalled = newest;
        }
        if (ended) return;
        cf_futex_wait(word, (uint32_t)newest, CF_SLICE_NS);
    }
}

/* Copy the codec's extradata, up to CF_PKT_EXTRADATA_MAX bytes, and return their size. 0: there are none.
 *
 * Our writers count changes. Other writers only set the size to 0 during a change, and one that was interrupted half
 * way may have finished by the time of a second look. Their extradata are therefore copied three times, over a
 * millisecond or more, and the copies compared. */
static inline uint32_t cf_packets_extradata(const cf_packet_reader *r, char *out) {
    const cf_packet_header *h = r->shared;
    char again[CF_PKT_EXTRADATA_MAX];
    for (int tries = 0; tries < 1000; tries++) {
        /* X3. PAIRS WITH: writer extradata, X2 */
        uint32_t changes = cf_load_acquire_u32(&r->slots[0].extradata_changes);
        uint32_t size = cf_load_acquire_u32(&h->codec_extradata_size);
        bool whole = !(r->counts_changes && changes & 1);
        if (size > CF_PKT_EXTRADATA_MAX) return size; /* the caller reports the error */
        cf_copy_racing(out, (const char *)h->codec_extradata, size);
        for (int look = 0; look < 2 && whole; look++) {
            cf_fence_acquire();
            if (look && !r->counts_changes) cf_sleep_ns(1000000);
            cf_copy_racing(again, (const char *)h->codec_extradata, size);
            cf_fence_acquire();
            whole = cf_load_acquire_u32(&h->codec_extradata_size) == size && memcmp(out, again, size) == 0;
        }
        /* X4. PAIRS WITH: writer extradata, X1 */
        if (!whole || cf_load_acquire_u32(&r->slots[0].extradata_changes) != changes) continue;
        if (size || r->counts_changes || tries >= 3 || !cf_load_acquire(&h->global_seq)) return size;
        cf_sleep_ns(1000000); /* the extradata may just be changing */
    }
    return 0;
}

#endif
