# C entry points of _snapshots.pyx.


cdef bint is_plain(object value) noexcept
cdef bint is_large(object array) noexcept
cdef object copied(object array)
cdef object fixed(object array)


cdef class Snapshot:
    cdef object array                  # whose values these are; held, so that its id stays its own
    cdef bint asked                    # whether the first copy was given
    cdef object file                   # where the values are for those that follow

    cdef object take(self)
