from libc.stdint cimport uint32_t, uint64_t

from pescador._native.bitgen cimport bitgen_t


cdef extern from "_native/seeds.h" nogil:
    ctypedef struct Seed "pescador_seed":
        pass
    ctypedef struct Pcg "pescador_pcg":
        uint64_t high, low, step_high, step_low
        uint32_t half
        int has_half
    void seed_begin "pescador_seed_begin" (Seed* seed, const uint32_t* words) noexcept
    void seed_add "pescador_seed_add" (Seed* seed, uint32_t word) noexcept
    void seed_key "pescador_seed_key" (Seed* seed, uint64_t number) noexcept
    void seed_words "pescador_seed_words" (const Seed* seed, uint32_t* words) noexcept
    void pcg_start "pescador_pcg_start" (Pcg* pcg, const Seed* seed) noexcept
    uint64_t pcg_below "pescador_pcg_below" (Pcg* pcg, uint64_t n) noexcept
    uint64_t bits_below "pescador_bits_below" (bitgen_t* bits, uint64_t n) noexcept
    uint64_t bits_masked "pescador_bits_masked" (bitgen_t* bits, uint64_t n) noexcept
