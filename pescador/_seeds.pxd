# Random numbers of a seed and a key: NumPy's SeedSequence and PCG64 in C.

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "_seeds.h" nogil:
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


cdef int take_entropy(Seed* seed, object sequence) except -1
