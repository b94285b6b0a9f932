# Fields and C entry points of _hooks.pyx.


cdef class Family:
    cdef tuple hooks                   # ((name, what it is on that class), ...)
    cdef object opener, hooked         # see register


cdef Family family_of(type kind)
cpdef bint is_stock(object streamer) except? True
cdef bint is_plain(object streamer) noexcept
cdef bint has_state_of_visit(object streamer) except? True
cdef bint is_iterated_plainly(object streamer) except? True
cdef dict plain_fields(object streamer)
