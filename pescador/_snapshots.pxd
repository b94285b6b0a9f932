# C entry points of _snapshots.pyx.

from libc.stdint cimport int64_t


cdef bint is_plain(object value) noexcept
cdef bint is_large(object array) noexcept
cdef object copied(object array)
cdef object fixed(object array)


cdef class Snapshots:
    cdef dict known                    # id of an array -> what is known of it
    cdef list with_files               # those that have a file
    cdef list first_handlers           # of a few files, to learn from
    cdef int64_t now                   # how many arrays were asked for
    cdef Py_ssize_t enough             # more than so many known ones are looked through

    cdef object take(self, object array)
    cdef int let_go(self) except -1
    cdef bint all_are_written_to(self)
