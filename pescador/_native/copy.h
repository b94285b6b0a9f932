/* Copying many bytes. */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#define PESCADOR_SSE2
#include <emmintrin.h>
#endif

/* memcpy of many bytes.
 *
 * With `past_cache`, to where nobody will read soon: that saves reading what is there. Without, it
 * is memcpy's own work, but for where the target is a few bytes further into its page than the
 * source. There, `rep movsb`, which C libraries use for such sizes, takes twenty times as long on
 * processors of the Zen line (glibc bug 30994). Large arrays often lie so: after headers of 16 bytes
 * and of 32. */
static inline void
pescador_copy_many(char *to, const char *from, size_t n, int past_cache)
{
#ifdef PESCADOR_SSE2
    if (past_cache || (((uintptr_t)to - (uintptr_t)from) & 4095) - 1 < 63) {
        size_t head = (size_t)(-(intptr_t)to & 63);
        memcpy(to, from, head);
        to += head;
        from += head;
        n -= head;
        for (; n >= 64; n -= 64, to += 64, from += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)from);
            __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
            __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
            if (past_cache) {
                _mm_stream_si128((__m128i *)to, a);
                _mm_stream_si128((__m128i *)(to + 16), b);
                _mm_stream_si128((__m128i *)(to + 32), c);
                _mm_stream_si128((__m128i *)(to + 48), d);
            }
            else {
                _mm_store_si128((__m128i *)to, a);
                _mm_store_si128((__m128i *)(to + 16), b);
                _mm_store_si128((__m128i *)(to + 32), c);
                _mm_store_si128((__m128i *)(to + 48), d);
            }
        }
        if (past_cache) {
            _mm_sfence();
        }
    }
#else
    (void)past_cache;
#endif
    memcpy(to, from, n);
}

static inline void
pescador_copy(char *to, const char *from, size_t n, int past_cache)
{
    if (n == 8) {
        memcpy(to, from, 8);    /* a number: no call */
    }
    else if (n > 64) {
        if (n < 2048) {
            memcpy(to, from, n);
        }
        else {
            pescador_copy_many(to, from, n, past_cache);
        }
    }
    else if (n >= 16) {
        /* From both ends, which may meet in the middle: no call either. */
        memcpy(to, from, 16);
        if (n > 32) {
            memcpy(to + 16, from + 16, 16);
            memcpy(to + n - 32, from + n - 32, 16);
        }
        memcpy(to + n - 16, from + n - 16, 16);
    }
    else {
        memcpy(to, from, n);
    }
}
