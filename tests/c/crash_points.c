/* Kills or stops a process at every statement of the rings' functions. The other processes must continue.
 *
 * Compiled with -fsanitize-coverage=trace-pc and -O0, where every access to shared memory is a call of a function in
 * shm.h and therefore has a crash point before it. A child does one thing to a ring. At its n-th crash point it kills
 * itself, or stops until it is told to continue. Then the parent, which has the other end, must get only whole frames,
 * must not wait for ever, and must be able to use every slot again. n grows until the child completes without reaching
 * point n.
 *
 *   crash_points RING WHAT HOW BEFORE FILE
 *     RING WHAT    frames publish|strict|take|sleep, packets publish|take, slot publish|take
 *     HOW          kill or stop
 *     BEFORE       number of frames published before, so that another slot is next
 *     FILE         path to create, for rings that need a file with a name
 * Prints the number of crash points. If something was wrong: prints where, with exit status 1. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "cuframes/slot_ring.h"
#include "cuframes/packet_ring.h"
#include "cuframes/frame_ring.h"

#if defined(__clang__)
#define UNTRACED __attribute__((no_sanitize("coverage")))
#else
#define UNTRACED __attribute__((no_sanitize_coverage))
#endif

#define RING 4
#define WORDS 40
#define PATIENCE_NS 3000000
#define TRIES 2000 /* of PATIENCE_NS or a slice each; more counts as "for ever" */

static long crash_at = -1; /* in the child */
static long passed;
static int crash_signal;

void __sanitizer_cov_trace_pc(void);
UNTRACED void __sanitizer_cov_trace_pc(void) {
    if (crash_at >= 0 && passed++ == crash_at) syscall(SYS_kill, syscall(SYS_getpid), crash_signal);
}

static const char *doing;
static long point;
static bool stopping;

#define CHECK(what)                                                                               \
    do {                                                                                          \
        if (!(what)) {                                                                            \
            fprintf(stderr, "%s at point %ld, line %d: not %s\n", doing, point, __LINE__, #what); \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

static void *shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static uint64_t word(uint64_t n, uint64_t at) { return (n * 0x9E3779B97F4A7C15u) ^ (at * 0xC2B2AE3D27D4EB4Fu); }

static void fill(uint64_t *out, uint64_t n, uint32_t words) {
    for (uint32_t i = 0; i < words; i++) out[i] = word(n, i);
}

static bool whole(const uint64_t *in, uint64_t n, uint32_t words) {
    for (uint32_t i = 0; i < words; i++)
        if (in[i] != word(n, i)) return false;
    return true;
}

/* Run `act` in a child up to crash point `point`. True: it died or stopped there; false: it completed. */
static pid_t child;
static bool run_child(void (*act)(void)) {
    fflush(stdout);
    child = fork();
    if (child < 0) abort();
    if (child == 0) {
        crash_signal = stopping ? SIGSTOP : SIGKILL;
        crash_at = point;
        act();
        crash_at = -1;
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, WUNTRACED) != child) abort();
    if (WIFSTOPPED(status)) return true;
    if (WIFSIGNALED(status)) {
        CHECK(WTERMSIG(status) == SIGKILL);
        return true;
    }
    CHECK(WEXITSTATUS(status) == 0);
    return false;
}

/* Let a stopped child continue to its end, and check its result. */
static void go_on(void) {
    int status;
    kill(child, SIGCONT);
    if (waitpid(child, &status, 0) != child) abort();
    if (!WIFEXITED(status) || WEXITSTATUS(status)) fprintf(stderr, "the child ended with status %#x\n", status);
    CHECK(status == 0);
}

/* ---- the frame ring */

static cf_frame_header *header;
static uint64_t (*pixels)[WORDS];
static cf_writer *writer; /* shared too: a child that publishes continues with it */
static cf_reader reader, other;

static void join(cf_reader *r, int mode) {
    uint32_t bit;
    uint64_t seq, frame_no;
    CHECK(cf_writer_join(writer, "reader", 1, &bit, &seq, &frame_no) == CF_OK);
    *r = (cf_reader){.shared = header,
                     .ring_size = RING,
                     .bit = bit,
                     .max_held = 2,
                     .mode = mode,
                     .pins = true,
                     .wakes = true,
                     .strict = writer->policy,
                     .counted = true,
                     .sock = -1,
                     .event_fd = -1,
                     .last_seq = seq,
                     .last_frame_no = frame_no};
}

static int publish(int64_t timeout) {
    int rc = cf_writer_begin(writer, -1, cf_now_ns() + timeout);
    if (rc != CF_OK) return rc;
    fill(pixels[cf_writer_slot(writer)], writer->frames + 1, WORDS);
    cf_writer_commit(writer, cf_now_ns(), 0, sizeof pixels[0]);
    return CF_OK;
}

static int take(cf_reader *r, int64_t timeout) {
    cf_taken t;
    int rc, tries = 0;
    do {
        CHECK(tries++ < TRIES);
        rc = cf_reader_next(r, cf_now_ns() + timeout, &t);
    } while (rc == CF_AGAIN || rc == CF_WARM_UP);
    if (rc != CF_OK) return rc;
    CHECK(whole(pixels[t.slot], t.frame_no, WORDS));
    CHECK(cf_reader_release(r, t.slot, t.seq) == CF_OK);
    return CF_OK;
}

static void frames_begin(uint32_t policy, int before) {
    memset(header, 0, sizeof *header);
    memset(pixels, 0, RING * sizeof pixels[0]);
    cf_writer_init(writer, header, RING, policy);
    join(&reader, CF_ORDERED);
    join(&other, CF_NEWEST);
    for (int i = 0; i < before; i++) {
        CHECK(publish(0) == CF_OK);
        CHECK(take(&reader, 0) == CF_OK);
        CHECK(take(&other, 0) == CF_OK);
    }
}

static void act_publish(void) {
    if (publish(0) != CF_OK) _exit(1);
}

/* Take one frame after another. Each must still be whole when it is released. */
static void act_take(void) {
    cf_taken t[2];
    int rc, tries = 0;
    /* A reader that was stopped while looking may find that all frames it saw are gone, and must look again. */
    while ((rc = cf_reader_next(&reader, cf_now_ns(), &t[0])) == CF_TIMED_OUT && tries++ < 2) {}
    if (rc != CF_OK) _exit(1);
    bool second = cf_reader_next(&reader, cf_now_ns(), &t[1]) == CF_OK;
    if (!whole(pixels[t[0].slot], t[0].frame_no, WORDS)) _exit(2);
    if (cf_reader_release(&reader, t[0].slot, t[0].seq) != CF_OK) _exit(3);
    if (second && !whole(pixels[t[1].slot], t[1].frame_no, WORDS)) _exit(4);
    if (second && cf_reader_release(&reader, t[1].slot, t[1].seq) != CF_OK) _exit(5);
}

static void act_sleep(void) {
    cf_taken t;
    int rc = cf_reader_next(&reader, cf_now_ns() + 1000000, &t);
    if (rc == CF_OK && !whole(pixels[t.slot], t.frame_no, WORDS)) _exit(2);
    if (rc != CF_OK && rc != CF_TIMED_OUT && rc != CF_AGAIN) _exit(3);
}

static bool frames_publisher(uint32_t policy, int before) {
    frames_begin(policy, before);
    CHECK(publish(0) == CF_OK); /* not yet taken when the publisher dies */
    cf_reader late;
    cf_taken oldest;
    join(&late, CF_ORDERED);
    late.last_seq = 0;
    late.counted = false;
    if (!run_child(act_publish)) return false;
    /* One reader takes the oldest frame, whose slot will be written next, and holds it. */
    CHECK(cf_reader_now(&late, &oldest) == CF_OK);
    CHECK(whole(pixels[oldest.slot], oldest.frame_no, WORDS));
    if (stopping) {
        /* The other readers take the available frames, and wait no longer than their deadline. */
        while (take(&reader, 0) == CF_OK) {}
        while (take(&other, 0) == CF_OK) {}
        go_on();
        CHECK(whole(pixels[oldest.slot], oldest.frame_no, WORDS));
        while (take(&reader, 0) == CF_OK) {}
        CHECK(reader.last_seq == header->global_seq && reader.lost == 0);
        for (int i = 0; i < 2 * RING; i++) {
            CHECK(publish(PATIENCE_NS) == CF_OK);
            CHECK(take(&reader, 0) == CF_OK);
            while (take(&other, 0) == CF_OK) {}
        }
    }
    CHECK(whole(pixels[oldest.slot], oldest.frame_no, WORDS));
    CHECK(cf_reader_release(&late, oldest.slot, oldest.seq) == CF_OK);
    cf_reader_hangup(&reader);
    cf_reader_hangup(&other);
    int got = 0;
    while (take(&reader, PATIENCE_NS) == CF_OK) got++;
    CHECK(take(&reader, PATIENCE_NS) == CF_ENDED);
    while (take(&other, PATIENCE_NS) == CF_OK) got++;
    CHECK(take(&other, PATIENCE_NS) == CF_ENDED);
    CHECK(stopping || (got >= 2 && got <= 4)); /* the available frame, and perhaps the one after it */
    for (int k = 0; k < RING; k++) CHECK(header->slots[k].pin_bitmap == 0);
    return true;
}

static bool frames_reader(uint32_t policy, int before, void (*act)(void), int ready) {
    frames_begin(policy, before);
    for (int i = 0; i < ready; i++) CHECK(publish(0) == CF_OK);
    if (!run_child(act)) return false;
    /* While it holds its frame, the others continue until the slot of that frame is next. */
    for (int i = 0; i <= 3 * RING && policy == CF_POLICY_DROP_OLDEST; i++) {
        CHECK(publish(0) == CF_OK);
        CHECK(take(&other, 0) == CF_OK);
    }
    if (stopping && policy == CF_POLICY_DROP_OLDEST) {
        /* It continues while a frame is half written. */
        CHECK(cf_writer_begin(writer, -1, 0) == CF_OK);
        fill(pixels[cf_writer_slot(writer)], writer->frames + 1, WORDS / 2);
        go_on();
        fill(pixels[cf_writer_slot(writer)], writer->frames + 1, WORDS);
        cf_writer_commit(writer, cf_now_ns(), 0, sizeof pixels[0]);
    } else if (stopping) {
        go_on();
    }
    cf_writer_leave(writer, reader.bit); /* like the session thread when a connection has ended */
    for (int i = 0; i < 3 * RING; i++) {
        CHECK(publish(PATIENCE_NS) == CF_OK);
        CHECK(take(&other, 0) == CF_OK);
    }
    for (int k = 0; k < RING; k++) CHECK(header->slots[k].pin_bitmap == 0);
    /* Its place can be used again. */
    uint32_t bit = reader.bit;
    join(&reader, CF_ORDERED);
    CHECK(reader.bit == bit && publish(0) == CF_OK && take(&reader, 0) == CF_OK);
    return true;
}

/* ---- the packet ring */

#define PACKET_SLOTS 4
#define PACKET_WORDS (3 * WORDS)

static char *segment;
static uint64_t segment_size;
static int file;
static cf_packet_writer *packet_writer;
static cf_packet_reader packet_reader;

static uint32_t length(uint64_t seq) { return (uint32_t)(word(seq, 7) >> 33) % WORDS + 1; }

static void put(void) {
    uint64_t data[WORDS], seq = packet_writer->seq + 1;
    fill(data, seq, length(seq));
    if (cf_packet_writer_put(packet_writer, (char *)data, length(seq) * 8, (int64_t)seq, CF_NO_TIME, CF_PKT_KEY))
        _exit(1);
    cf_packet_writer_wake(packet_writer);
}

/* CF_OK: a whole packet; CF_OVERRUN: its copy was found to be torn. */
static int read_packet(cf_packet_reader *r, int64_t timeout) {
    uint64_t copy[WORDS];
    cf_packet p;
    int rc, tries = 0;
    do {
        if (tries++ >= TRIES) return CF_CORRUPT;
        rc = cf_packets_next(r, cf_now_ns() + timeout, &p);
    } while (rc == CF_AGAIN);
    if (rc != CF_OK) return rc;
    if (p.size > sizeof copy) return CF_CORRUPT;
    if (!cf_packet_read(r, &p, (char *)copy)) {
        cf_packets_resync(r);
        return CF_OVERRUN;
    }
    if (p.size != length(p.seq) * 8 || p.pts_ns != (int64_t)p.seq || !whole(copy, p.seq, length(p.seq)))
        return CF_CORRUPT;
    cf_packets_advance(r, &p);
    return CF_OK;
}

static void act_read_packets(void) {
    for (int i = 0; i < 3; i++) {
        int rc = read_packet(&packet_reader, 0);
        if (rc != CF_OK && rc != CF_OVERRUN && rc != CF_ENDED) _exit(2); /* nobody holds the file's lock */
    }
}

static void packets_begin(int before) {
    memset(segment, 0, segment_size);
    cf_packet_writer_init(packet_writer, segment, PACKET_SLOTS, PACKET_WORDS * 8 + 5, WORDS * 8, 27, 1);
    cf_packet_writer_open(packet_writer);
    CHECK(cf_packet_reader_init(&packet_reader, segment, segment_size, file) == CF_OK);
    cf_packets_start(&packet_reader, CF_START_KEYFRAME);
    for (int i = 0; i < before; i++) {
        put();
        CHECK(read_packet(&packet_reader, 0) == CF_OK);
    }
}

static bool packets_publisher(int before) {
    packets_begin(before);
    put();
    if (!run_child(put)) return false;
    cf_packet_reader oldest;
    CHECK(cf_packet_reader_init(&oldest, segment, segment_size, file) == CF_OK);
    cf_packets_start(&oldest, CF_START_OLDEST);
    for (int rc = CF_OK; rc == CF_OK || rc == CF_OVERRUN;) CHECK((rc = read_packet(&oldest, 0)) != CF_CORRUPT);
    for (int rc = CF_OK; rc == CF_OK || rc == CF_OVERRUN;) CHECK((rc = read_packet(&packet_reader, 0)) != CF_CORRUPT);
    if (stopping) {
        go_on();
        for (int i = 0; i < 2 * PACKET_SLOTS; i++) {
            put();
            CHECK(read_packet(&packet_reader, 0) == CF_OK);
        }
    }
    /* Nobody holds the file's lock. */
    int rc, tries = 0;
    while ((rc = read_packet(&packet_reader, PATIENCE_NS)) == CF_OK || rc == CF_OVERRUN) CHECK(tries++ < TRIES);
    CHECK(rc == CF_ENDED);
    return true;
}

static bool packets_reader(int before) {
    packets_begin(before);
    for (int i = 0; i < 3; i++) put();
    if (!run_child(act_read_packets)) return false;
    for (int i = 0; i < 2 * PACKET_SLOTS; i++) put();
    if (stopping) go_on();
    return true;
}

/* ---- the framecache slot */

#define DEPTH 3

static cf_cache_writer *cache_writer;
static cf_cache_reader cache_reader;

static void write_frame(void) {
    char *at;
    uint64_t data[WORDS];
    fill(data, cache_writer->cursor, WORDS);
    if (cf_cache_begin(cache_writer, &at) != CF_OK) _exit(1);
    cf_copy_racing(at, (char *)data, sizeof data);
    cf_cache_commit(cache_writer, sizeof data, cache_writer->cursor, 1);
    cf_cache_end(cache_writer);
}

static int read_frame(cf_cache_reader *r, int64_t timeout) {
    uint64_t copy[WORDS];
    cf_cache_frame f;
    for (int tries = 0; tries < TRIES; tries++) {
        int rc = cf_cache_find(r, &f);
        if (rc == CF_EMPTY) {
            rc = cf_cache_wait(r, cf_now_ns() + timeout);
            if (rc == CF_OK || rc == CF_AGAIN) continue;
            return rc;
        }
        if (rc == CF_AGAIN) continue;
        if (rc != CF_OK) return rc;
        if (!cf_cache_read(r, &f, (char *)copy)) {
            cf_cache_resync(r);
            continue;
        }
        cf_cache_advance(r, &f);
        return f.size == sizeof copy && f.pts_us == f.seq && whole(copy, f.seq, WORDS) ? CF_OK : CF_CORRUPT;
    }
    return CF_CORRUPT;
}

static void act_read_frames(void) {
    for (int i = 0; i < 2; i++) {
        int rc = read_frame(&cache_reader, 0);
        if (rc != CF_OK && rc != CF_TIMED_OUT) _exit(2);
    }
}

static void slot_begin(int before) {
    memset(segment, 0, segment_size);
    cf_cache_format((cf_cache_header *)segment, WORDS * 8, DEPTH);
    CHECK(cf_cache_writer_init(cache_writer, segment, segment_size, file, 1) == CF_OK);
    CHECK(cf_cache_reader_init(&cache_reader, segment, segment_size, file, CF_CACHE_NEXT) == CF_OK);
    for (int i = 0; i < before; i++) {
        write_frame();
        CHECK(read_frame(&cache_reader, 0) == CF_OK);
    }
}

static bool slot_publisher(int before) {
    slot_begin(before);
    write_frame();
    if (!run_child(write_frame)) return false;
    int rc;
    cf_cache_reader oldest;
    CHECK(cf_cache_reader_init(&oldest, segment, segment_size, file, CF_CACHE_OLDEST) == CF_OK);
    while ((rc = read_frame(&oldest, 0)) == CF_OK) {}
    CHECK(rc == CF_TIMED_OUT);
    while ((rc = read_frame(&cache_reader, PATIENCE_NS)) == CF_OK) {}
    CHECK(rc == CF_TIMED_OUT);
    uint64_t at = cache_reader.at;
    if (stopping) go_on();
    /* The next writer continues where the last one stopped. */
    else CHECK(cf_cache_writer_init(cache_writer, segment, segment_size, file, 2) == CF_OK);
    for (int i = 0; i < 2 * DEPTH; i++) {
        write_frame();
        CHECK(read_frame(&cache_reader, 0) == CF_OK);
    }
    CHECK(cache_reader.at >= at + 2 * DEPTH);
    return true;
}

static bool slot_reader(int before) {
    slot_begin(before);
    for (int i = 0; i < DEPTH; i++) write_frame();
    if (!run_child(act_read_frames)) return false;
    for (int i = 0; i < 2 * DEPTH; i++) write_frame();
    if (stopping) go_on();
    return true;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const char *ring = argv[1], *what = argv[2];
    stopping = strcmp(argv[3], "stop") == 0;
    int before = atoi(argv[4]);
    char text[100];
    snprintf(text, sizeof text, "%s %s, %s", ring, what, argv[3]);
    doing = text;
    header = shared(sizeof *header);
    pixels = shared(RING * sizeof pixels[0]);
    writer = shared(sizeof *writer);
    packet_writer = shared(sizeof *packet_writer);
    cache_writer = shared(sizeof *cache_writer);
    uint64_t a = cf_packet_segment_size(PACKET_SLOTS, PACKET_WORDS * 8 + 5), b = cf_cache_size(WORDS * 8, DEPTH);
    segment_size = a > b ? a : b;
    file = open(argv[5], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, (off_t)segment_size)) abort();
    segment = mmap(NULL, segment_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (segment == MAP_FAILED) abort();

    for (bool died = true; died; point++) {
        CHECK(point < 100000);
        if (!strcmp(ring, "frames") && !strcmp(what, "publish")) died = frames_publisher(CF_POLICY_DROP_OLDEST, before);
        else if (!strcmp(ring, "frames") && !strcmp(what, "strict"))
            died = frames_reader(CF_POLICY_STRICT_WAIT, before, act_take, 2);
        else if (!strcmp(ring, "frames") && !strcmp(what, "take"))
            died = frames_reader(CF_POLICY_DROP_OLDEST, before, act_take, 3);
        else if (!strcmp(ring, "frames") && !strcmp(what, "sleep"))
            died = frames_reader(CF_POLICY_DROP_OLDEST, before, act_sleep, 0);
        else if (!strcmp(ring, "packets") && !strcmp(what, "publish")) died = packets_publisher(before);
        else if (!strcmp(ring, "packets") && !strcmp(what, "take")) died = packets_reader(before);
        else if (!strcmp(ring, "slot") && !strcmp(what, "publish")) died = slot_publisher(before);
        else if (!strcmp(ring, "slot") && !strcmp(what, "take")) died = slot_reader(before);
        else return 2;
    }
    printf("%ld\n", point - 1);
    return 0;
}
