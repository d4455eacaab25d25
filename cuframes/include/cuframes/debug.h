/* Assertions about this process's own state. They are checked in debug builds (CUFRAMES_DEBUG) only. Bytes in shared
 * memory are never asserted, since other processes may write anything there. */
#ifndef CUFRAMES_DEBUG_H
#define CUFRAMES_DEBUG_H

#include "gnu.h"

#include <stdio.h>
#include <stdlib.h>

static inline void cf_assert(int holds, const char *what, const char *file, int line) {
    if (holds) return;
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, what);
    abort();
}

#ifdef CUFRAMES_DEBUG
#define CF_ASSERT(condition) cf_assert(!!(condition), #condition, __FILE__, __LINE__)
#else
#define CF_ASSERT(condition) ((void)sizeof(!(condition))) /* compiled, but never evaluated */
#endif

#endif
