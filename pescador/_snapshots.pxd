# C entry points of _snapshots.pyx.

cimport numpy as cnp
from libc.stdint cimport int64_t


cdef bint is_plain_array(object value) noexcept
cdef bint is_large(cnp.ndarray array) noexcept
cdef object copy_array(cnp.ndarray array)
cdef object view_of_constant(cnp.ndarray array)


cdef class Snapshots:
    cdef dict usages                   # id of an array -> its Usage
    cdef list with_snapshot            # the usages that have one, the oldest first
    cdef int64_t now                   # how many arrays were asked for
    cdef Py_ssize_t enough             # more usages than this are looked through

    cdef object take(self, object array)
    cdef int let_go(self) except -1
