/* What must hold of this process's own state, whatever other processes write into a segment: looked at in debug builds
 * (CUFRAMES_DEBUG), and nothing otherwise. Shared bytes are never asserted, since anybody may have written them. */
#ifndef CUFRAMES_DEBUG_H
#define CUFRAMES_DEBUG_H

#include <stdio.h>
#include <stdlib.h>

static inline void cf_assert(int holds, const char *what, const char *file, int line) {
    if (holds) return;
    fprintf(stderr, "%s:%d: this must hold: %s\n", file, line, what);
    abort();
}

#ifdef CUFRAMES_DEBUG
#define CF_ASSERT(condition) cf_assert(!!(condition), #condition, __FILE__, __LINE__)
#else
#define CF_ASSERT(condition) ((void)sizeof(!(condition))) /* compiled, and never evaluated */
#endif

#endif
