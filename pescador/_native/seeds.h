/* NumPy's SeedSequence, and PCG64 with its bounded integers, bit for bit.
 *
 * SeedSequence [1] mixes words of 32 bits, one after the other, into a pool of four. So a sequence can
 * be extended: what a key appends to it is mixed into a copy of the pool. PCG64 [2] is the generator
 * PCG XSL RR 128/64; integers below a bound are Lemire's [3].
 *
 * [1] O'Neill, M. E. (2015). Developing a seed_seq alternative. https://www.pcg-random.org/posts
 * [2] O'Neill, M. E. (2014). PCG: A family of simple fast space-efficient statistically good
 *     algorithms for random number generation. HMC-CS-2014-0905.
 * [3] Lemire, D. (2019). Fast random integer generation in an interval. ACM TOMACS 29, 1-12. */
#pragma once

#include <Python.h>
#include <stdint.h>
#include <numpy/random/bitgen.h>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

/* The upper 64 bits of a product; the lower ones go to `low`. */
static inline uint64_t
pescador_multiply(uint64_t a, uint64_t b, uint64_t *low)
{
#if defined(__SIZEOF_INT128__)
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    *low = (uint64_t)product;
    return (uint64_t)(product >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t high;
    *low = _umul128(a, b, &high);
    return high;
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
    uint64_t other = a0 * b1 + (uint32_t)middle;
    *low = a * b;
    return a1 * b1 + (middle >> 32) + (other >> 32);
#endif
}

/* ---- SeedSequence */

typedef struct {
    uint32_t pool[4];
    uint32_t factor;                   /* what the next word is multiplied by */
} pescador_seed;

static inline uint32_t
pescador_hash(uint32_t value, uint32_t *factor)
{
    value ^= *factor;
    *factor *= 0x931e8875u;
    value *= *factor;
    return value ^ (value >> 16);
}

static inline uint32_t
pescador_mix(uint32_t x, uint32_t y)
{
    uint32_t result = 0xca01f9ddu * x - 0x4973f715u * y;
    return result ^ (result >> 16);
}

/* Begin with the first four words of the entropy. */
static inline void
pescador_seed_begin(pescador_seed *seed, const uint32_t words[4])
{
    int i, j;
    seed->factor = 0x43b0d7e5u;
    for (i = 0; i < 4; i++) {
        seed->pool[i] = pescador_hash(words[i], &seed->factor);
    }
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 4; j++) {
            if (i != j) {
                seed->pool[j] = pescador_mix(
                    seed->pool[j], pescador_hash(seed->pool[i], &seed->factor));
            }
        }
    }
}

static inline void
pescador_seed_add(pescador_seed *seed, uint32_t word)
{
    int i;
    for (i = 0; i < 4; i++) {
        seed->pool[i] = pescador_mix(seed->pool[i], pescador_hash(word, &seed->factor));
    }
}

/* Add a number of a spawn key: it has as many words as it needs, at least one. */
static inline void
pescador_seed_key(pescador_seed *seed, uint64_t number)
{
    pescador_seed_add(seed, (uint32_t)number);
    if (number >> 32) {
        pescador_seed_add(seed, (uint32_t)(number >> 32));
    }
}

/* SeedSequence.generate_state(8) */
static inline void
pescador_seed_words(const pescador_seed *seed, uint32_t words[8])
{
    uint32_t value, factor = 0x8b51f9ddu;
    int i;
    for (i = 0; i < 8; i++) {
        value = seed->pool[i % 4] ^ factor;
        factor *= 0x58f38dedu;
        value *= factor;
        words[i] = value ^ (value >> 16);
    }
}

/* ---- PCG64 */

typedef struct {
    uint64_t high, low;                /* of the state */
    uint64_t step_high, step_low;      /* of the increment, which is odd */
    uint32_t half;                     /* the upper half of the last 64 bits, not given yet */
    int has_half;
} pescador_pcg;

static inline void
pescador_pcg_step(pescador_pcg *pcg)
{
    const uint64_t factor_high = 0x2360ed051fc65da4u, factor_low = 0x4385df649fccf645u;
    uint64_t low, high = pescador_multiply(pcg->low, factor_low, &low);
    high += pcg->high * factor_low + pcg->low * factor_high;
    pcg->low = low + pcg->step_low;
    pcg->high = high + pcg->step_high + (pcg->low < low);
}

/* np.random.PCG64(seed) */
static inline void
pescador_pcg_start(pescador_pcg *pcg, const pescador_seed *seed)
{
    uint32_t words[8];
    uint64_t state[4];
    int i;
    pescador_seed_words(seed, words);
    /* SeedSequence.generate_state(4, np.uint64) */
    for (i = 0; i < 4; i++) {
        state[i] = words[2 * i] | (uint64_t)words[2 * i + 1] << 32;
    }
    pcg->step_high = state[2] << 1 | state[3] >> 63;
    pcg->step_low = state[3] << 1 | 1;
    /* One step from 0 leads to the increment. */
    pcg->low = pcg->step_low + state[1];
    pcg->high = pcg->step_high + state[0] + (pcg->low < state[1]);
    pescador_pcg_step(pcg);
    pcg->half = 0;
    pcg->has_half = 0;
}

static inline uint64_t
pescador_pcg_word(const pescador_pcg *pcg)
{
    uint64_t word = pcg->high ^ pcg->low;
    int turn = (int)(pcg->high >> 58);
    return word >> turn | word << (-turn & 63);
}

static inline uint64_t
pescador_pcg_next64(pescador_pcg *pcg)
{
    pescador_pcg_step(pcg);
    return pescador_pcg_word(pcg);
}

/* Without a branch: where many generators take turns, a processor cannot foresee which of them has a
 * half, and a wrong guess takes longer than a step that is not needed. */
static inline uint32_t
pescador_pcg_next32(pescador_pcg *pcg)
{
    pescador_pcg next = *pcg;
    uint64_t word, kept = (uint64_t)0 - (uint64_t)pcg->has_half;
    uint32_t result;
    pescador_pcg_step(&next);
    word = pescador_pcg_word(&next);
    pcg->high ^= (pcg->high ^ next.high) & ~kept;
    pcg->low ^= (pcg->low ^ next.low) & ~kept;
    result = (uint32_t)(word ^ ((word ^ pcg->half) & kept));
    pcg->half ^= (pcg->half ^ (uint32_t)(word >> 32)) & (uint32_t)~kept;
    pcg->has_half = !pcg->has_half;
    return result;
}

/* Generator.integers(n) for 0 < n < 2**63: NEXT32 and NEXT64 draw bits, of whatever generator. */
#define PESCADOR_BELOW(n, NEXT32, NEXT64)                                              \
    if (n <= 1) {                                                                      \
        return 0;                                                                      \
    }                                                                                  \
    if (n < (uint64_t)1 << 32) {                                                       \
        uint32_t bound = (uint32_t)n, least;                                           \
        uint64_t product = (uint64_t)(NEXT32) * bound;                                 \
        if ((uint32_t)product < bound) {                                               \
            least = (0u - bound) % bound;                                              \
            while ((uint32_t)product < least) {                                        \
                product = (uint64_t)(NEXT32) * bound;                                  \
            }                                                                          \
        }                                                                              \
        return product >> 32;                                                          \
    }                                                                                  \
    if (n == (uint64_t)1 << 32) {                                                      \
        return NEXT32;                                                                 \
    }                                                                                  \
    else {                                                                             \
        uint64_t low, least, high = pescador_multiply(NEXT64, n, &low);                \
        if (low < n) {                                                                 \
            least = ((uint64_t)0 - n) % n;                                             \
            while (low < least) {                                                      \
                high = pescador_multiply(NEXT64, n, &low);                             \
            }                                                                          \
        }                                                                              \
        return high;                                                                   \
    }

static inline uint64_t
pescador_pcg_below(pescador_pcg *pcg, uint64_t n)
{
    PESCADOR_BELOW(n, pescador_pcg_next32(pcg), pescador_pcg_next64(pcg))
}

/* ---- Numbers from a generator of NumPy's: Generator.integers(n), RandomState.randint(n) */

static inline uint64_t
pescador_bits_below(bitgen_t *bits, uint64_t n)
{
    PESCADOR_BELOW(n, bits->next_uint32(bits->state), bits->next_uint64(bits->state))
}

static inline uint64_t
pescador_bits_masked(bitgen_t *bits, uint64_t n)
{
    uint64_t most = n - 1, mask = most, value;
    int shift;
    if (n <= 1) {
        return 0;
    }
    for (shift = 1; shift < 64; shift *= 2) {
        mask |= mask >> shift;
    }
    do {
        value = mask & (most >> 32 ? bits->next_uint64(bits->state)
                                   : bits->next_uint32(bits->state));
    } while (value > most);
    return value;
}
