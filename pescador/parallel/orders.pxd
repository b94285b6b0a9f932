# The words that a consumer orders by, and a worker reads: 8 bytes each.

from libc.stdint cimport int64_t


cdef enum Order:
    # In the low bits of a word; the number of the visit is in the others.
    MORE                               # an item more
    BEGIN                              # its bound, how many items to leave out, its path follow
    CLOSE
    MORE_INTO                          # an item more, to be written to places (`ring.Writer.rows`)

cdef enum:
    ORDER_BITS = 2
    # So much work (in nanoseconds) is worth a message, of either end.
    WORTH = 200000


cdef inline int64_t word_of(int64_t number, Order order) noexcept:
    return number << ORDER_BITS | order


cdef inline int order_in(int64_t word) noexcept:
    return word & ((1 << ORDER_BITS) - 1)
