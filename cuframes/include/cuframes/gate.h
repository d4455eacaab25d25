/* Closing one end of a ring.
 *
 * THE RULE
 *
 * Every call that uses an end of a ring (its mapping, its connection, its descriptors) is inside the gate: between
 * cf_gate_enter and cf_gate_leave. close() shuts the gate, wakes the calls that sleep inside, waits until no call is
 * inside, and only then releases what the calls use. Later calls are refused with CF_CLOSED.
 *
 *     call                                          close
 *     E1  count one more call inside                S1  set CF_GATE_SHUT
 *     E2  CF_GATE_SHUT set? leave: CF_CLOSED        S2  no call inside?
 *
 * E1 and S1 change the same word, so either the call sees that the gate is shut, or close() sees the call.
 *
 * If the thread that calls close() is itself inside some ring (in a signal handler, or in a destructor that the garbage
 * collector runs), close() does not wait: it could wait for itself, or for a thread that waits for it. It marks the
 * gate, and the last call to leave finishes the close.
 *
 * The word is private to the process that owns the end. It is not in shared memory. */
#ifndef CUFRAMES_GATE_H
#define CUFRAMES_GATE_H

#include <stdbool.h>

#include "debug.h"
#include "shm.h"
#include "status.h"

#define CF_GATE_SHUT 0x80000000u      /* close() has begun */
#define CF_GATE_HANDED_ON 0x40000000u /* close() did not wait: the last call to leave finishes it */
#define CF_GATE_DONE 0x20000000u      /* close() is over */
#define CF_GATE_CALLS 0x1fffffffu     /* number of calls inside */
#define CF_GATE_LOOK_NS 1000000       /* close() wakes sleepers this often: one may just be going to sleep */

typedef struct {
    uint32_t state; /* atomic; the bits above */
} cf_gate;

static inline bool cf_gate_is_shut(const cf_gate *g) { return cf_load_seq_cst_u32(&g->state) & CF_GATE_SHUT; }

/* Whether the gate is shut and all calls have left. */
static inline bool cf_gate_is_empty(const cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    return (state & CF_GATE_SHUT) && !(state & CF_GATE_CALLS);
}

/* True: this was the last call inside, and the caller must finish a close() that did not wait for it. */
static inline bool cf_gate_leave(cf_gate *g) {
    uint32_t state = cf_fetch_add_u32(&g->state, (uint32_t)-1) - 1;
    CF_ASSERT((state & CF_GATE_CALLS) != CF_GATE_CALLS); /* somebody was inside */
    if (!(state & CF_GATE_SHUT) || state & CF_GATE_CALLS) return false;
    cf_futex_wake_all(&g->state); /* PAIRS WITH: gate wait */
    return state & CF_GATE_HANDED_ON && cf_fetch_and_u32(&g->state, ~CF_GATE_HANDED_ON) & CF_GATE_HANDED_ON;
}

/* CF_OK: the caller is inside. CF_CLOSED: it is not; `*last` is then the result of cf_gate_leave. */
static inline int cf_gate_enter(cf_gate *g, int *last) {
    *last = false;
    if (!(cf_fetch_add_u32(&g->state, 1) & CF_GATE_SHUT)) return CF_OK; /* E1, E2. PAIRS WITH: gate shut, S1 */
    *last = cf_gate_leave(g);
    return CF_CLOSED;
}

/* False: another close() has begun already. */
static inline bool cf_gate_shut(cf_gate *g) {
    return !(cf_fetch_or_u32(&g->state, CF_GATE_SHUT) & CF_GATE_SHUT); /* S1. PAIRS WITH: gate enter, E1 */
}

/* Let the last call inside finish the close. False: no call is inside, so the caller must finish it. */
static inline bool cf_gate_hand_on(cf_gate *g) {
    if (cf_fetch_or_u32(&g->state, CF_GATE_HANDED_ON) & CF_GATE_CALLS) return true;
    return !(cf_fetch_and_u32(&g->state, ~CF_GATE_HANDED_ON) & CF_GATE_HANDED_ON);
}

/* Wait a moment for the calls inside. True: no call is inside (S2). */
static inline bool cf_gate_wait(cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    if (state & CF_GATE_CALLS) cf_futex_wait(&g->state, state, CF_GATE_LOOK_NS);
    return cf_gate_is_empty(g);
}

/* Wait a moment for the close() of another thread. True: it is over. */
static inline bool cf_gate_wait_done(cf_gate *g) {
    uint32_t state = cf_load_seq_cst_u32(&g->state);
    if (!(state & CF_GATE_DONE)) cf_futex_wait(&g->state, state, CF_GATE_LOOK_NS);
    return state & CF_GATE_DONE;
}

/* The close is over: other calls of close() that wait for it may return. */
static inline void cf_gate_done(cf_gate *g) {
    uint32_t before = cf_fetch_or_u32(&g->state, CF_GATE_DONE);
    CF_ASSERT(before & CF_GATE_SHUT && !(before & CF_GATE_DONE));
    cf_futex_wake_all(&g->state);
}

#endif
