# Fields and C entry points of arrivals.pyx.

from libc.stdint cimport uint64_t


cdef class Arrivals:
    cdef readonly uint64_t tag         # a number that came with the last item
    cdef readonly uint64_t size        # how many bytes that takes

    cdef bint wait(self, uint64_t awaited, uint64_t patience) except -1
