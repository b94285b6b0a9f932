# NumPy's bit generator. It is declared here, as `cimport numpy.random` has each module look up some
# twenty classes of NumPy when it is imported, private ones among them.

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "numpy/random/bitgen.h" nogil:
    ctypedef struct bitgen_t:
        void *state
        uint64_t (*next_uint64)(void *st) noexcept nogil
        uint32_t (*next_uint32)(void *st) noexcept nogil
        double (*next_double)(void *st) noexcept nogil
        uint64_t (*next_raw)(void *st) noexcept nogil
