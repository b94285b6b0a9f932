# Fields and C entry points of _rows.pyx.

from libc.stdint cimport int64_t


cdef struct Block:
    # The memory of a column.
    int64_t number
    int64_t start                      # where it begins
    char* data                         # likewise, in this process


cdef struct Row:
    bint is_expected                   # a worker is about to write it
    int64_t visit                      # of which visit an item is there, or 0
    int64_t item                       # which item


cdef class Placed:
    cdef BatchRows rows
    cdef list leases                   # of the blocks
    cdef Block* blocks                 # of each column
    cdef Row* held                     # what is in each row
    cdef int64_t n_expected
    cdef int64_t row                   # of the item that this stands for, where it is given as one

    cpdef int expect(self, int64_t row) except -1
    cpdef int forget(self, int64_t row) except -1
    cdef object item(self, int64_t row)


cdef class BatchRows:
    cdef object arena
    cdef bytes code                    # the schema of the items
    cdef int64_t begins, size
    cdef readonly int64_t room         # for so many batches, if nothing else is in the memory
    cdef Py_ssize_t n_columns
    cdef list keys, dtypes, shapes, types
    cdef int64_t* row_bytes
    cdef dict batches                  # number of a batch -> Placed
    cdef Placed recent                 # the one that was asked for last
    cdef int64_t recent_batch
    cdef int64_t earliest              # the first batch that may be written to
    cdef int64_t last                  # the last batch that was begun
    cdef bint is_full                  # there was no memory for it

    cdef int keep_batches(self, int64_t first, int64_t stop) except -1
    cdef int forget_before(self, int64_t batch) except -1
    cdef Placed of_batch(self, int64_t batch)
    cdef Placed of_item(self, int64_t number)
    cpdef Placed place(self, int64_t number, int64_t given)
    cdef bint is_wanted(self, int64_t number, int64_t given) except -1
    cdef bint is_far(self, int64_t number, int64_t given) noexcept
    cpdef bint waits(self, int64_t number, int64_t given) except -1
    cdef int64_t row_of(self, int64_t number) noexcept
    cdef int plan_anew(self, int64_t number) except -1
    cdef bint has_keys(self, object item) except -1
