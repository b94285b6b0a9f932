# Fields and C entry points of bell.pyx.

from pescador._native.files cimport pescador_stamp


cdef class Bell:
    cdef int pipe
    cdef pescador_stamp stamp          # of its file

    cdef bint is_open(self) noexcept
    cpdef object ring(self)
    cdef int hear(self, int milliseconds) except -1
