/* Feeds the predictor of pace.h with frames. For each, prints the window and when the next frame really came.
 *
 *   pace INTERVAL_NS JITTER_NS SKIP [THEN_INTERVAL_NS]
 *
 * Every SKIP-th frame is lost. 120 frames, then 120 with the interval THEN_INTERVAL_NS, if given. */
#include "cuframes/pace.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int64_t interval = atoll(argv[1]), jitter = atoll(argv[2]), skip = atoll(argv[3]), due = 1000000000;
    cf_pace pace = {0};
    srand(1);
    int frames = argc > 4 ? 240 : 120;
    int64_t at = due, next;
    for (int n = 1; n <= frames; n++) {
        due += n >= 120 && argc > 4 ? atoll(argv[4]) : interval;
        next = due + (jitter ? rand() % (2 * jitter + 1) - jitter : 0);
        if (!skip || n % skip) {
            cf_pace_note(&pace, at, (uint64_t)n);
            cf_window w = cf_pace_window(&pace);
            printf("%lld %lld %lld\n", (long long)w.from_ns, (long long)next, (long long)w.until_ns);
        }
        at = next;
    }
    return 0;
}
