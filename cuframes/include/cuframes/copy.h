/* Copying bytes of video.
 *
 * For blocks of some KiB glibc's memcpy uses `rep movsb`. On many processors that is slow if the destination is not
 * aligned to a cache line, and the inside of a Python object never is. Whole aligned vectors are stored here instead.
 *
 * A frame so large that it would push everything else out of the cache may be stored past the cache (non-temporal
 * stores). That avoids reading every line before it is overwritten; on one of our machines it is half as slow again, on
 * another twice as fast. So cf_copier measures both ways as it goes, and uses the faster one. docs/benchmarks.md has
 * the figures. */
#ifndef CUFRAMES_COPY_H
#define CUFRAMES_COPY_H

#include "gnu.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CF_COPY_SMALL 2048      /* below this size, memcpy is as good */
#define CF_COPY_LARGE (1 << 20) /* frames of at least this size may be stored past the cache */
#define CF_COPY_TRIALS 8        /* this many first frames are copied both ways in turn */
#define CF_COPY_REVISIT 256     /* the slower way is tried again after this many frames */

static inline void cf_copy_vectors(char *dst, const char *src, size_t size, bool past) {
#if defined(__SSE2__)
    if (size >= CF_COPY_SMALL) {
        size_t head = -(uintptr_t)dst & 63;
        memcpy(dst, src, head);
        dst += head, src += head, size -= head;
        for (; size >= 64; size -= 64, dst += 64, src += 64) {
            for (int i = 0; i < 4; i++) {
                __m128i v = _mm_loadu_si128((const __m128i *)(const void *)src + i);
                if (past) _mm_stream_si128((__m128i *)(void *)dst + i, v);
                else _mm_store_si128((__m128i *)(void *)dst + i, v);
            }
        }
    }
#else
    (void)past;
#endif
    memcpy(dst, src, size);
}

/* Copy bytes through the cache. */
static inline void cf_copy(char *dst, const char *src, size_t size) { cf_copy_vectors(dst, src, size, false); }

/* Copy bytes that the other side may be writing or reading at the same time. The copy may be torn, which is detected
 * afterwards. The thread sanitizer is told to ignore it. */
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread"), noinline, unused)) static void cf_copy_racing(char *dst, const char *src,
                                                                                    size_t size) {
    for (size_t i = 0; i < size; i++) ((volatile char *)dst)[i] = ((const volatile char *)src)[i];
}
#else
static inline void cf_copy_racing(char *dst, const char *src, size_t size) { cf_copy(dst, src, size); }
#endif

/* Copy bytes past the cache. cf_copy_fence() must follow before the bytes are announced to others. */
static inline void cf_copy_past(char *dst, const char *src, size_t size) { cf_copy_vectors(dst, src, size, true); }

/* Order earlier non-temporal stores before all later accesses. Release stores alone do not. */
static inline void cf_copy_fence(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Copy rows of pixels from one pitch to another. */
static inline void cf_copy_rows(char *dst, ptrdiff_t dst_pitch, const char *src, ptrdiff_t src_pitch, size_t row_bytes,
                                size_t rows, bool past) {
    if (dst_pitch == src_pitch && (size_t)dst_pitch == row_bytes) row_bytes *= rows, rows = 1;
    for (size_t i = 0; i < rows; i++, dst += dst_pitch, src += src_pitch) {
        if (past) cf_copy_past(dst, src, row_bytes);
        else cf_copy(dst, src, row_bytes);
    }
    if (past) cf_copy_fence();
}

/* Copy the elements of an array of up to four dimensions to contiguous memory, in C order. The array may have any
 * strides (in bytes). */
static inline void cf_gather(char *out, const char *src, int ndim, const ptrdiff_t *extent, const ptrdiff_t *step,
                             size_t item_bytes) {
    ptrdiff_t n[4] = {1, 1, 1, 1}, s[4] = {0, 0, 0, 0};
    for (int i = 0; i < ndim; i++) n[4 - ndim + i] = extent[i], s[4 - ndim + i] = step[i];
    for (ptrdiff_t a = 0; a < n[0]; a++)
        for (ptrdiff_t b = 0; b < n[1]; b++)
            for (ptrdiff_t c = 0; c < n[2]; c++) {
                const char *from = src + a * s[0] + b * s[1] + c * s[2];
                if (item_bytes == 1)
                    for (ptrdiff_t d = 0; d < n[3]; d++) out[d] = from[d * s[3]];
                else
                    for (ptrdiff_t d = 0; d < n[3]; d++) memcpy(out + 2 * d, from + d * s[3], 2);
                out += n[3] * (ptrdiff_t)item_bytes;
            }
}

/* Measures which way of copying large frames is faster on this machine. */
typedef struct {
    int64_t mean_ns[2]; /* through the cache, past it */
    uint32_t copies;
} cf_copier;

static inline bool cf_copier_choose(const cf_copier *c) {
    bool faster = c->mean_ns[1] < c->mean_ns[0];
    if (c->copies < CF_COPY_TRIALS) return c->copies & 1;
    return c->copies % CF_COPY_REVISIT ? faster : !faster;
}

static inline void cf_copier_note(cf_copier *c, bool past, int64_t took_ns) {
    int64_t *mean = &c->mean_ns[past];
    *mean += *mean ? (took_ns - *mean) / 4 : took_ns;
    c->copies++;
}

#endif
