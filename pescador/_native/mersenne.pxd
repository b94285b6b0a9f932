from libc.stdint cimport uint32_t

cdef extern from "_native/mersenne.h" nogil:
    double mersenne_double "pescador_mersenne_double" (const uint32_t* words) noexcept
    void mersenne_prepare "pescador_mersenne_prepare" () noexcept
    void mersenne_seed "pescador_mersenne_seed" (
        uint32_t* a, const uint32_t* key_a, uint32_t n_a,
        uint32_t* b, const uint32_t* key_b, uint32_t n_b) noexcept
