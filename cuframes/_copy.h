/* Copying bytes of video.
 *
 * For blocks of some KiB glibc's memcpy uses `rep movsb`, which is slow on many processors when the destination is not
 * aligned to a cache line, as the inside of a Python object never is; and it reads every line of the destination before
 * overwriting it. Both functions here store whole aligned vectors instead. docs/benchmarks.md has what that brings. */
#ifndef CUFRAMES_COPY_H
#define CUFRAMES_COPY_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CF_COPY_SMALL 2048 /* below this, memcpy is as good */

/* Copy bytes that somebody will read soon, so that they should stay in the cache. */
static inline void cf_copy(char *dst, const char *src, size_t size) {
#if defined(__SSE2__)
    if (size >= CF_COPY_SMALL) {
        size_t head = -(uintptr_t)dst & 63;
        memcpy(dst, src, head);
        dst += head, src += head, size -= head;
        for (; size >= 64; size -= 64, dst += 64, src += 64) {
            const __m128i *from = (const __m128i *)(const void *)src;
            __m128i *to = (__m128i *)(void *)dst;
            __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
            __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
            _mm_store_si128(to, a);
            _mm_store_si128(to + 1, b);
            _mm_store_si128(to + 2, c);
            _mm_store_si128(to + 3, d);
        }
    }
#endif
    memcpy(dst, src, size);
}

#endif
