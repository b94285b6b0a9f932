# Fields and C entry points of _stores.pyx.

cimport cython

from pescador._native.files cimport pescador_stamp


@cython.final
cdef class Stamp:
    cdef bytes path
    cdef pescador_stamp stamp

    cpdef bint is_of(self, int file) noexcept
    cpdef bint holds(self) except -1
