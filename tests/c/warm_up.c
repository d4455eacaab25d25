/* In predictive waiting, a frame comes during the warm-up. The time that the reader spends on that frame afterwards
 * must not count as lateness.
 *
 * The publisher's clock is simulated: it has published every 50 ms until now. Exit status 1: the warm-up was still open
 * after the frame was taken; 2: there was no warm-up. */
#include <stdio.h>

#include "cuframes/frame_ring.h"

static cf_frame_header header;
static cf_writer writer;

static int publish(int64_t now_ns) {
    if (cf_writer_begin(&writer, -1, 0) != CF_OK) return 1;
    cf_writer_commit(&writer, now_ns, 0, 0);
    return 0;
}

int main(void) {
    const int64_t interval = 50000000;
    cf_taken taken;
    uint32_t bit;
    uint64_t seq, frame_no;
    /* A machine that stalls may sleep past the time at which the frame is due. */
    for (int tries = 0; tries < 100; tries++) {
        cf_writer_init(&writer, &header, 4, CF_POLICY_DROP_OLDEST);
        header.global_seq = 0;
        header.subscriber_bitmap = 0;
        if (cf_writer_join(&writer, "reader", 1, &bit, &seq, &frame_no) != CF_OK) return 3;
        cf_reader reader = {.shared = &header,
                            .ring_size = 4,
                            .bit = bit,
                            .max_held = 2,
                            .mode = CF_ORDERED,
                            .wait = CF_PREDICT,
                            .pins = true,
                            .wakes = true,
                            .counted = true,
                            .sock = -1,
                            .event_fd = -1};
        int64_t begin = cf_now_ns() - 39 * interval - interval / 2;
        for (int n = 0; n < 40; n++) {
            if (publish(begin + n * interval) || cf_reader_now(&reader, &taken) != CF_OK) return 3;
            cf_reader_release(&reader, taken.slot, taken.seq);
        }
        if (cf_reader_next(&reader, cf_now_ns() + interval, &taken) != CF_WARM_UP) continue;
        if (!reader.window_ns) return 3;
        if (publish(cf_now_ns()) || cf_reader_now(&reader, &taken) != CF_OK) return 3;
        printf("%s\n", reader.window_ns ? "open" : "closed");
        return reader.window_ns != 0;
    }
    return 2;
}
