/* The Mersenne Twister [1] as NumPy and Python seed it, by init_by_array of the authors' code, and the
 * doubles that they make of it.
 *
 * [1] Matsumoto, M. and Nishimura, T. (1998). Mersenne Twister: a 623-dimensionally equidistributed
 *     uniform pseudo-random number generator. ACM TOMACS 8, 3-30. */
#pragma once

#include <stdint.h>
#include <string.h>

#define PESCADOR_MERSENNE_WORDS 624

/* The double that two words of a state make: random_sample, or genrand_res53 of the authors' code. Both
 * words are tempered at once; what a shift moves from one into the other is masked. */
static inline double
pescador_mersenne_double(const uint32_t *words)
{
    uint64_t pair = (uint64_t)words[0] | (uint64_t)words[1] << 32;
    pair ^= pair >> 11 & 0x001fffff001fffffu;
    pair ^= pair << 7 & 0x9d2c56809d2c5680u;
    pair ^= pair << 15 & 0xefc60000efc60000u;
    pair ^= pair >> 18 & 0x00003fff00003fffu;
    /* 27 bits of the first and 26 of the second. */
    return (double)(int64_t)((pair & 0xffffffe0u) << 21 | pair >> 38) / 9007199254740992.0;
}

/* What both start from before a seed is mixed in; filled by pescador_mersenne_prepare. */
static uint32_t pescador_mersenne_base[PESCADOR_MERSENNE_WORDS];

static inline void
pescador_mersenne_prepare(void)
{
    uint32_t *base = pescador_mersenne_base;
    uint32_t i;
    base[0] = 19650218u;
    for (i = 1; i < PESCADOR_MERSENNE_WORDS; i++) {
        base[i] = 1812433253u * (base[i - 1] ^ (base[i - 1] >> 30)) + i;
    }
}

/* Seed two states, each from the words of a key. Each word waits for the one before it, so that two
 * states take about as long as one. */
static inline void
pescador_mersenne_seed(uint32_t *a, const uint32_t *key_a, uint32_t n_a,
                       uint32_t *b, const uint32_t *key_b, uint32_t n_b)
{
    uint32_t i = 1, j_a = 0, j_b = 0, step, last_a, last_b;
    memcpy(a, pescador_mersenne_base, sizeof(pescador_mersenne_base));
    memcpy(b, pescador_mersenne_base, sizeof(pescador_mersenne_base));
    last_a = a[0];
    last_b = b[0];
    for (step = 0; step < PESCADOR_MERSENNE_WORDS; step++) {
        a[i] = last_a = (a[i] ^ ((last_a ^ (last_a >> 30)) * 1664525u)) + key_a[j_a] + j_a;
        b[i] = last_b = (b[i] ^ ((last_b ^ (last_b >> 30)) * 1664525u)) + key_b[j_b] + j_b;
        j_a = j_a + 1 < n_a ? j_a + 1 : 0;
        j_b = j_b + 1 < n_b ? j_b + 1 : 0;
        if (++i == PESCADOR_MERSENNE_WORDS) {
            a[0] = last_a;
            b[0] = last_b;
            i = 1;
        }
    }
    for (step = 1; step < PESCADOR_MERSENNE_WORDS; step++) {
        a[i] = last_a = (a[i] ^ ((last_a ^ (last_a >> 30)) * 1566083941u)) - i;
        b[i] = last_b = (b[i] ^ ((last_b ^ (last_b >> 30)) * 1566083941u)) - i;
        if (++i == PESCADOR_MERSENNE_WORDS) {
            a[0] = last_a;
            b[0] = last_b;
            i = 1;
        }
    }
    a[0] = b[0] = 0x80000000u;
}
