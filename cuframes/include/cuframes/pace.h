/* Predicting when the next frame is due.
 *
 * A camera's frames come at equal intervals, give or take some microseconds. A reader that knows when the next frame is
 * due can sleep until just before that time and then poll. Waking a sleeper is most of the latency; this way it is over
 * before the frame comes.
 *
 * Due time and interval follow the publisher's timestamps as a phase-locked loop follows a clock: each frame moves the
 * due time by a part of its deviation, and the interval by a smaller part. The jitter is the mean of the deviations (as
 * TCP estimates round trips, Jacobson 1988). The lateness after a sleep is measured as well: the time that the kernel
 * takes to wake us, and that the caller takes before it looks.
 *
 * If polling before each frame would take more than 1/CF_PACE_SHARE of the time, the source counts as irregular. There
 * is then no window, and the caller sleeps as usual. */
#ifndef CUFRAMES_PACE_H
#define CUFRAMES_PACE_H

#include "gnu.h"

#include <stdbool.h>
#include <stdint.h>

#define CF_PACE_SHARE 50
#define CF_PACE_FRAMES 4 /* number of intervals to observe before predicting */

typedef struct {
    int64_t due_ns;  /* when the newest frame was due */
    int64_t last_ns; /* when the newest frame came */
    uint64_t last_no;
    int64_t interval_ns;
    int64_t jitter_ns;
    int64_t late_ns; /* mean time between the planned end of a sleep and our look */
    uint32_t intervals;
} cf_pace;

typedef struct {
    int64_t from_ns;  /* poll for the frame from this time */
    int64_t until_ns; /* until this time; 0: no prediction */
} cf_window;

static inline int64_t cf_pace_abs(int64_t v) { return v < 0 ? -v : v; }

/* A frame was taken. The difference of `frame_no` to the frame before is the number of intervals between the two. */
static inline void cf_pace_note(cf_pace *p, int64_t published_ns, uint64_t frame_no) {
    int64_t frames = (int64_t)(frame_no - p->last_no), gap = published_ns - p->last_ns;
    bool known = p->last_ns != 0 && frames > 0 && gap > 0;
    p->last_ns = published_ns;
    p->last_no = frame_no;
    if (known && p->intervals++ == 0) {
        p->interval_ns = gap / frames;
        p->jitter_ns = p->interval_ns / 1024;
        p->late_ns = 60000; /* a thread's timer slack, until lateness is measured */
    }
    int64_t off = published_ns - (p->due_ns + frames * p->interval_ns), limit = p->interval_ns / 8;
    if (!known || cf_pace_abs(off) > p->interval_ns / 2) {
        /* The first frame, a pause, or a new rate: start again here, and move the interval towards this gap. */
        p->due_ns = published_ns;
        if (known) p->interval_ns += (gap / frames - p->interval_ns) / 2;
        p->jitter_ns += (limit - p->jitter_ns) / 8;
        return;
    }
    p->due_ns = published_ns - off + off / 4;
    p->interval_ns += off / frames / 32;
    p->jitter_ns += ((cf_pace_abs(off) < limit ? cf_pace_abs(off) : limit) - p->jitter_ns) / 8;
}

/* A sleep that should have ended at from_ns ended late_ns after it. */
static inline void cf_pace_woke(cf_pace *p, int64_t late_ns) {
    if (late_ns > 0 && late_ns < 10000000) p->late_ns += (late_ns - p->late_ns) / 8;
}

static inline cf_window cf_pace_window(const cf_pace *p) {
    int64_t early = 3 * p->jitter_ns + p->late_ns / 4, due = p->due_ns + p->interval_ns;
    cf_window window = {0, 0};
    if (p->intervals >= CF_PACE_FRAMES && early <= p->interval_ns / CF_PACE_SHARE) {
        window.from_ns = due - early - p->late_ns; /* awake late_ns after that, polling `early` until due */
        window.until_ns = due + early;
    }
    return window;
}

#endif
