from libc.stdint cimport uint64_t


cdef extern from "_native/bits.h":
    int pescador_popcount(uint64_t word) noexcept nogil
    int pescador_nth_bit(uint64_t word, int rank) noexcept nogil
