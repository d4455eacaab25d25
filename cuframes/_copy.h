/* Copying bytes of video.
 *
 * For blocks of some KiB glibc's memcpy uses `rep movsb`, and for very large ones stores past the cache; both are
 * slower on the machines we measured than storing whole aligned vectors, and `rep movsb` much so where the
 * destination is not aligned to a cache line, as the inside of a Python object never is. docs/benchmarks.md has the
 * figures. */
#ifndef CUFRAMES_COPY_H
#define CUFRAMES_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CF_COPY_SMALL 2048 /* below this, memcpy is as good */

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

/* Copy rows of pixels from one pitch to another. */
static inline void cf_copy_rows(char *dst, ptrdiff_t dst_pitch, const char *src, ptrdiff_t src_pitch, size_t row_bytes,
                                size_t rows) {
    if (dst_pitch == src_pitch && (size_t)dst_pitch == row_bytes) row_bytes *= rows, rows = 1;
    for (size_t i = 0; i < rows; i++) cf_copy(dst + (ptrdiff_t)i * dst_pitch, src + (ptrdiff_t)i * src_pitch, row_bytes);
}

#endif
