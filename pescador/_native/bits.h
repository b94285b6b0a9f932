/* Bits of a word: how many are set, and where. */
#pragma once

#include <stdint.h>

static inline int
pescador_popcount(uint64_t word)
{
    word = word - ((word >> 1) & 0x5555555555555555u);
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (int)((word * 0x0101010101010101u) >> 56);
}

/* Where the bit of a given rank is, of those that are set. */
static inline int
pescador_nth_bit(uint64_t word, int rank)
{
    int place = 0, half, count;
    for (half = 32; half > 0; half /= 2) {
        count = pescador_popcount(word & (((uint64_t)1 << half) - 1));
        if (rank >= count) {
            rank -= count;
            word >>= half;
            place += half;
        }
    }
    return place;
}
