# C entry points of _snapshots.pyx.


cdef bint is_plain(object value) noexcept
cdef bint is_large(object array) noexcept
cdef object copied(object array)
cdef object fixed(object array)


cdef class Snapshots:
    cdef dict known                    # id of an array -> what is known of it
    cdef list first_files              # a few, to learn from

    cdef object take(self, object array)
    cdef bint all_are_written_to(self)
