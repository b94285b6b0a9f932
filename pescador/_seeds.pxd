# C entry points of _seeds.pyx.

from pescador._native.seeds cimport Seed


cdef int take_entropy(Seed* seed, object sequence) except -1
