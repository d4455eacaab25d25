/* Closing one end of a ring.
 *
 * THE RULE
 *
 * Every call that uses an end of a ring (its mapping, its connection, its descriptors) is inside: between cf_gate_enter and
 * cf_gate_leave. close() shuts the gate, wakes whoever sleeps inside, waits until nobody is inside, and only then ends
 * what the calls use. Whoever comes later is refused with CF_CLOSED.
 *
 *     call                                          close
 *     E1  one more is inside                        S1  CF_GATE_SHUT is set
 *     E2  CF_GATE_SHUT set? leave: CF_CLOSED        S2  nobody is inside?
 *
 * Both are changes of one word, so either the call sees that the gate is shut, or close() sees the call.
 *
 * A close() that is made by a thread which is inside some ring (a signal handler, a destructor that the garbage
 * collector runs) does not wait: it could wait for itself, or for a thread that waits for it. It marks the gate, and the
 * last call to leave finishes the close.
 *
 * Only the process that owns the end knows this word; nothing of it is shared. */
#ifndef CUFRAMES_GATE_H
#define CUFRAMES_GATE_H

#include <stdbool.h>

#include "debug.h"
#include "shm.h"
#include "status.h"

#define CF_GATE_SHUT 0x80000000u      /* close() has begun */
#define CF_GATE_HANDED_ON 0x40000000u /* close() did not wait: the last call to leave finishes it */
#define CF_GATE_DONE 0x20000000u      /* close() is over */
#define CF_GATE_CALLS 0x1fffffffu     /* how many calls are inside */
#define CF_GATE_LOOK_NS 1000000       /* close() wakes sleepers this often: one may have been just about to sleep */

typedef struct {
    uint32_t state; /* atomic; the bits above */
} cf_gate;

static inline bool cf_gate_is_shut(const cf_gate *g) { return cf_load_seq_cst_u32(&g->state) & CF_GATE_SHUT; }

/* Whether the gate is shut and everybody has gone. */
static inline bool cf_gate_is_empty(const cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    return (state & CF_GATE_SHUT) && !(state & CF_GATE_CALLS);
}

/* True: the caller was the last one inside, and finishes the close() that did not wait for it. */
static inline bool cf_gate_leave(cf_gate *g) {
    uint32_t state = cf_fetch_add_u32(&g->state, (uint32_t)-1) - 1;
    CF_ASSERT((state & CF_GATE_CALLS) != CF_GATE_CALLS); /* somebody was inside */
    if (!(state & CF_GATE_SHUT) || state & CF_GATE_CALLS) return false;
    cf_futex_wake_all(&g->state); /* PAIRS WITH: gate wait */
    return state & CF_GATE_HANDED_ON && cf_fetch_and_u32(&g->state, ~CF_GATE_HANDED_ON) & CF_GATE_HANDED_ON;
}

/* CF_OK: the caller is inside. CF_CLOSED: it is not; `*last` then says what cf_gate_leave would. */
static inline int cf_gate_enter(cf_gate *g, int *last) {
    *last = false;
    if (!(cf_fetch_add_u32(&g->state, 1) & CF_GATE_SHUT)) return CF_OK; /* E1, E2. PAIRS WITH: gate shut, S1 */
    *last = cf_gate_leave(g);
    return CF_CLOSED;
}

/* False: somebody else has begun to close. */
static inline bool cf_gate_shut(cf_gate *g) {
    return !(cf_fetch_or_u32(&g->state, CF_GATE_SHUT) & CF_GATE_SHUT); /* S1. PAIRS WITH: gate enter, E1 */
}

/* Leave the end of the close to the last call inside. False: nobody is inside, so the caller finishes it. */
static inline bool cf_gate_hand_on(cf_gate *g) {
    if (cf_fetch_or_u32(&g->state, CF_GATE_HANDED_ON) & CF_GATE_CALLS) return true;
    return !(cf_fetch_and_u32(&g->state, ~CF_GATE_HANDED_ON) & CF_GATE_HANDED_ON);
}

/* Wait a moment for those inside. True: nobody is (S2). */
static inline bool cf_gate_wait(cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    if (state & CF_GATE_CALLS) cf_futex_wait(&g->state, state, CF_GATE_LOOK_NS);
    return cf_gate_is_empty(g);
}

/* Wait a moment for somebody else's close. True: it is over. */
static inline bool cf_gate_wait_done(cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    if (!(state & CF_GATE_DONE)) cf_futex_wait(&g->state, state, CF_GATE_LOOK_NS);
    return state & CF_GATE_DONE;
}

/* The close is over: whoever called close() a second time meanwhile may return. */
static inline void cf_gate_done(cf_gate *g) {
    uint32_t before = cf_fetch_or_u32(&g->state, CF_GATE_DONE);
    CF_ASSERT(before & CF_GATE_SHUT && !(before & CF_GATE_DONE));
    cf_futex_wake_all(&g->state);
}

#endif
