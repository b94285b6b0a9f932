# NumPy's own description of a random bit stream (numpy/random/bitgen.h), and the state of one kind.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "numpy/random/bitgen.h" nogil:
    ctypedef struct bitgen_t:
        void *state
        uint64_t (*next_uint64)(void *st) noexcept nogil
        uint32_t (*next_uint32)(void *st) noexcept nogil
        double (*next_double)(void *st) noexcept nogil
        uint64_t (*next_raw)(void *st) noexcept nogil

cdef struct Mersenne:
    # What `state` is for NumPy's MT19937; that it is so is checked (mersenne_is_known).
    uint32_t key[624]
    int pos
