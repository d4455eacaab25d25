/* The packet ring: encoded packets of any size, one writer, any number of readers.
 *
 * Plain C over mapped bytes, without Python. Readers map the segment read-only and leave no trace in it; the writer
 * never waits for them: a slow reader loses the oldest packets, and is told how many.
 *
 * HOW A READER KNOWS THAT A COPY IS WHOLE
 *
 * Packet s is described in slot s % ring_slots; its bytes lie in a data area that is a ring of its own. Either may be
 * reused while a reader copies, and large packets lap the data area long before the slots are. The writer announces
 * both before it touches a byte, the reader looks at both after it has copied (a seqlock for each, Lameter 2005,
 * Boehm 2012):
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
 * Nothing that a reader finds in the segment is used as a length or an offset before it was compared with the
 * mapping. */
#ifndef CUFRAMES_PACKETS_H
#define CUFRAMES_PACKETS_H

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "copy.h"
#include "debug.h"
#include "gate.h"
#include "shm.h"
#include "status.h"

static inline uint64_t cf_packet_segment_size(uint32_t ring_slots, uint32_t data_size) {
    return sizeof(cf_packet_header) + (uint64_t)ring_slots * sizeof(cf_packet_slot) + data_size;
}

/* ---- the writer --------------------------------------------------------------------------------------------------- */

typedef struct {
    cf_packet_header *shared;
    cf_gate gate; /* closed by close() */
    cf_packet_slot *slots;
    char *data;
    uint32_t ring_slots;
    uint32_t data_size;
    uint32_t max_packet;
    uint32_t busy; /* atomic; a thread is writing */
    uint64_t seq;  /* newest packet */
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

/* `segment` is zero-filled, of cf_packet_segment_size(), and nobody else can see it yet. */
static inline void cf_packet_writer_init(cf_packet_writer *w, void *segment, uint32_t ring_slots, uint32_t data_size,
                                         uint32_t max_packet, uint32_t codec_id, uint64_t pid) {
    cf_packet_header *h = segment;
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

/* After whatever has to be there before the first reader: a segment that has its magic is a whole one. */
static inline void cf_packet_writer_open(cf_packet_writer *w) { cf_store_release_u32(&w->shared->magic, CF_PACKET_MAGIC); }

/* Write one packet; CF_OVERSIZED and CF_BUSY change nothing. Readers see it after cf_packet_writer_wake at the latest. */
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

    cf_store_relaxed(&slot->seq, CF_SEQ_INVALID);  /* P1. PAIRS WITH: reader, G3 */
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

/* Readers cannot say that they sleep, since they may not write; so this is a system call for every packet. */
static inline void cf_packet_writer_wake(cf_packet_writer *w) { cf_futex_wake_all(cf_low_half(&w->shared->global_seq)); }

static inline void cf_packet_writer_shutdown(cf_packet_writer *w) {
    cf_store_seq_cst(&w->shared->shutdown_flag, 1);
    cf_packet_writer_wake(w);
}

/* ---- the reader --------------------------------------------------------------------------------------------------- */

enum { CF_START_KEYFRAME = 0, CF_START_OLDEST = 1, CF_START_LIVE = 2 };

typedef struct {
    const cf_packet_header *shared;
    const cf_packet_slot *slots;
    const char *data;
    uint32_t ring_slots; /* as they were when the segment was checked; never read again */
    uint32_t data_size;
    uint64_t pid;
    bool locks;   /* the writer holds the owner lock for life */
    bool counts_changes; /* of the extradata */
    bool spin;
    bool scanning; /* the next packet is the first keyframe from `at` on, rather than `at` itself: there was none */
    bool seeking;  /* the next packet is the newest keyframe from `at` on: there was an overrun */
    int fd;       /* the segment */
    int event_fd; /* or -1 */
    cf_gate gate; /* closed by close() */
    uint64_t at;       /* the packet wanted next */
    uint64_t expected; /* what is missing from here on counts as lost; 0: nothing does before the first packet */
    uint64_t seen;     /* newer packets than this are worth a look */
    int64_t looked_ns; /* when wait_any last asked whether the publisher is alive */
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

/* Attach to a mapped segment of `size` bytes. CF_CORRUPT: its header does not fit it. */
static inline int cf_packet_reader_init(cf_packet_reader *r, const void *segment, uint64_t size, int fd) {
    const cf_packet_header *h = segment;
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

/* Whether the bytes that were read are those of the packet: to be asked after reading them. */
static inline bool cf_packet_whole(const cf_packet_reader *r, const cf_packet *p) {
    cf_fence_acquire();
    return cf_load_acquire(&r->slots[p->seq % r->ring_slots].seq) == p->seq                   /* G3 */
        && cf_load_acquire(&r->shared->write_offset) - p->offset <= r->data_size;             /* G4 */
}

/* Packet `seq` as its slot has it: CF_OK, CF_EMPTY (not there yet), CF_OVERRUN (not there any more), CF_CORRUPT. */
static inline int cf_packets_look(const cf_packet_reader *r, uint64_t seq, cf_packet *p) {
    /* In this order: whoever sees a global_seq of s or more would have found s in its slot, so it is not to come. */
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
    /* From here on these are the values that the writer stored with this seq. */
    if (p->size > r->data_size || p->size > cf_load_acquire(&r->shared->write_offset) - p->offset) return CF_CORRUPT;
    return CF_OK;
}

/* Where the packet's bytes are, if they do not run over the end of the data area; else NULL. */
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

/* The newest packet at which reading may begin, or 0. A stream that never had a keyframe has none to wait for. */
static inline uint64_t cf_packets_entry(const cf_packet_reader *r) {
    uint64_t key = cf_load_acquire(&r->shared->last_keyframe_seq);
    return key || !r->expected ? key : cf_load_acquire(&r->shared->global_seq);
}

/* The next packet to read, without waiting. */
static inline int cf_packets_find(cf_packet_reader *r, cf_packet *p) {
    r->seen = cf_load_acquire(&r->shared->global_seq);
    while (!r->seeking) {
        int rc = cf_packets_look(r, r->at, p);
        if (rc == CF_OK && r->scanning && !(p->flags & CF_PKT_KEY)) r->at++;
        else if (rc == CF_OVERRUN) r->seeking = true;
        else return rc;
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

/* The packet was read whole: go on behind it. Returns how many were lost before it. */
static inline uint64_t cf_packets_took(cf_packet_reader *r, const cf_packet *p) {
    uint64_t lost = r->expected ? p->seq - r->expected : 0;
    r->at = r->expected = p->seq + 1;
    r->seen = p->seq;
    r->seeking = r->scanning = false;
    r->received += 1;
    r->lost += lost;
    return lost;
}

/* What was found has been overwritten while it was read. */
static inline void cf_packets_missed(cf_packet_reader *r) { r->seeking = true; }

/* Where to begin: at the oldest or the newest keyframe that is still whole, else at the first that comes. If what was found
 * is overwritten before it was read, begin again. */
static inline void cf_packets_start(cf_packet_reader *r, int start) {
    uint64_t newest = cf_load_acquire(&r->shared->global_seq);
    uint64_t count = newest < r->ring_slots ? newest : r->ring_slots;
    r->at = newest + 1;
    r->expected = start == CF_START_LIVE ? r->at : 0;
    r->scanning = start != CF_START_LIVE;
    r->seeking = false;
    for (uint64_t i = 1; r->scanning && i <= count; i++) {
        cf_packet p;
        uint64_t seq = start == CF_START_OLDEST ? newest - count + i : newest + 1 - i;
        int rc = cf_packets_look(r, seq, &p);
        if (rc == CF_OVERRUN || (rc == CF_OK && !(p.flags & CF_PKT_KEY))) continue;
        r->at = seq; /* or what is corrupt, to be found again by whoever reads */
        r->scanning = false;
    }
}

/* Whether the writer is gone, whatever it left. */
static inline bool cf_packets_abandoned(const cf_packet_reader *r) {
    if (!r->locks) return r->pid && kill((pid_t)r->pid, 0) && errno == ESRCH;
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    return fcntl(r->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

/* CF_OK: somebody may still write. CF_ENDED: the writer is gone. CF_CUT: its file was cut off. */
static inline int cf_packets_check(const cf_packet_reader *r) {
    struct stat file;
    if (fstat(r->fd, &file) == 0 && (uint64_t)file.st_size < cf_packet_segment_size(r->ring_slots, r->data_size))
        return CF_CUT;
    return cf_packets_abandoned(r) ? CF_ENDED : CF_OK;
}

/* Find the next packet, waiting for it until `deadline`. CF_AGAIN after a slice of waiting: call again. CF_ENDED: the
 * writer is gone and nothing is left. */
static inline int cf_packets_next(cf_packet_reader *r, int64_t deadline, cf_packet *p) {
    int64_t slice_end = 0;
    bool ended = false;
    for (uint32_t turn = 0;; turn++) {
        if (cf_gate_is_shut(&r->gate)) return CF_CLOSED;
        /* The end is looked at before the ring: what was published before it is still taken. */
        ended |= cf_load_acquire(&r->shared->shutdown_flag) != 0;
        uint64_t seen = cf_load_seq_cst(&r->shared->global_seq);
        int rc = cf_packets_find(r, p);
        if (rc != CF_EMPTY) return rc;
        if (ended) return CF_ENDED;
        /* Nothing left: make the event wait for the next packet, and look once more for one that came meanwhile. */
        if (cf_event_drain(r->event_fd)) continue;
        if (r->spin && turn % CF_SPIN_BATCH) {
            cf_cpu_relax();
            continue;
        }
        int64_t now = cf_now_ns();
        if (!slice_end) slice_end = now + (r->spin ? CF_SPIN_SLICE_NS : CF_SLICE_NS);
        if (now >= deadline || now >= slice_end) {
            rc = cf_packets_check(r);
            if (rc == CF_CUT) return rc;
            if (rc == CF_OK) return now >= deadline ? CF_TIMED_OUT : CF_AGAIN;
            ended = true; /* look once more */
        } else if (r->spin) {
            cf_spin_yield();
        } else {
            /* Woken by any change of the word that was read before the ring. PAIRS WITH: writer put, global_seq */
            const uint32_t *word = cf_low_half(&r->shared->global_seq);
            if (cf_futex_wait(word, (uint32_t)seen, cf_min_i64(deadline, slice_end) - now) == EINTR) return CF_AGAIN;
        }
    }
}

/* Feed `event_fd` whenever there is something to look at, until the writer is gone or the reader is closed. For a thread
 * of its own. */
static inline void cf_packets_watch(const cf_packet_reader *r, int event_fd) {
    const uint32_t *word = cf_low_half(&r->shared->global_seq);
    uint64_t told = 0;
    bool ended = false;
    while (!cf_gate_is_shut(&r->gate)) {
        uint64_t newest = cf_load_seq_cst(&r->shared->global_seq);
        ended |= cf_load_acquire(&r->shared->shutdown_flag) || (newest == told && cf_packets_check(r) != CF_OK);
        if (ended || newest != told) {
            cf_event_signal(event_fd);
            told = newest;
        }
        if (ended) return;
        cf_futex_wait(word, (uint32_t)newest, CF_SLICE_NS);
    }
}

/* The codec's extradata, up to CF_PKT_EXTRADATA_MAX bytes. 0: there is none.
 *
 * Our writers count changes. Others only make the size 0 meanwhile, and a writer that was interrupted half way may have
 * finished by the time of a second look; so from them three copies are compared, over a millisecond. */
static inline uint32_t cf_packets_extradata(const cf_packet_reader *r, char *out) {
    const cf_packet_header *h = r->shared;
    char again[CF_PKT_EXTRADATA_MAX];
    for (int tries = 0; tries < 1000; tries++) {
        uint32_t changes = cf_load_acquire_u32(&r->slots[0].extradata_changes); /* X3. PAIRS WITH: writer extradata, X2 */
        uint32_t size = cf_load_acquire_u32(&h->codec_extradata_size);
        bool whole = !(r->counts_changes && changes & 1);
        if (size > CF_PKT_EXTRADATA_MAX) return size; /* for the caller to complain about */
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
        cf_sleep_ns(1000000); /* perhaps they are just being changed */
    }
    return 0;
}

#endif
