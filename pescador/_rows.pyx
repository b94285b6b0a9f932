"""Batches whose rows are written by the workers that make the items.

The schedule says which item is the how-manieth, so its place in a batch is known before it is made.
Where that was wrong, the item is copied to where it belongs, as any other.

docs/inside/parallel.rst explains it.
"""

import numpy as np

from pescador._channel.schema import schema_of

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Free
from libc.stdint cimport INT64_MAX, int64_t, uintptr_t

from pescador._native.arrays cimport array_at
from pescador._native.memory cimport zeros

cnp.import_array()

# What arrives in the place of an item that was written to its row.
IN_PLACE = object()

cdef enum:
    # So many batches in a row are made elsewhere before that is no exception.
    MOST_UNUSED = 2
    # In bytes, what a block may take besides.
    LINE = 64
    # Batches that take memory besides early ones: the reader has one, and one is being filled.
    BESIDES = 2


@cython.final
cdef class Placed:
    """The rows of one batch; and, given as an item, the one that lies in row number `row`."""

    def __cinit__(self, BatchRows rows not None, list leases not None):
        cdef Py_ssize_t i
        self.rows = rows
        self.leases = leases
        self.blocks = <Block*>zeros(rows.n_columns, sizeof(Block))
        self.held = <Row*>zeros(rows.size, sizeof(Row))
        for i, lease in enumerate(leases):
            self.blocks[i].number = lease.number
            self.blocks[i].start = lease.start
            self.blocks[i].data = <char*><uintptr_t>lease.address

    def __dealloc__(self):
        PyMem_Free(self.blocks)
        PyMem_Free(self.held)

    cpdef int expect(self, int64_t row) except -1:
        """Note that a worker is about to write a row."""
        if self.n_expected == 0:
            for lease in self.leases:
                self.rows.arena.expect(lease)
        self.held[row].is_expected = True
        self.n_expected += 1
        return 0

    cpdef int forget(self, int64_t row) except -1:
        """Note that it has done so, or will not."""
        self.held[row].is_expected = False
        self.n_expected -= 1
        if self.n_expected == 0:
            for lease in self.leases:
                self.rows.arena.forget(lease)
        return 0

    cdef object item(self, int64_t row):
        """The item in a row, as views of it."""
        cdef cnp.npy_intp[64] dims
        cdef Py_ssize_t i, j
        cdef dict item = {}
        cdef tuple shape
        for i in range(self.rows.n_columns):
            shape = self.rows.shapes[i]
            for j in range(len(shape)):
                dims[j] = shape[j]
            array = array_at(
                self.blocks[i].data + row * self.rows.row_bytes[i], <int>len(shape), dims, NULL,
                self.rows.dtypes[i], cnp.NPY_ARRAY_CARRAY)
            cnp.set_array_base(array, self.leases[i])
            own = self.rows.types[i]
            item[self.rows.keys[i]] = array if own is np.ndarray else own(array[()])
        return item


@cython.final
cdef class BatchRows:
    """Where in memory that is shared with all workers the rows of batches are.

    Parameters
    ----------
    arena : Arena
        The memory.
    begins : int
        The number of the first item of the first of these batches.
    size : int
        How many rows a batch has.
    columns : list of (key, dtype, tuple of int, type)
        The rows of each column, and the type of the values.
    """

    def __init__(self, arena not None, begins, size, list columns not None):
        cdef Py_ssize_t i
        cdef int64_t n_bytes = 0
        self.arena = arena
        self.begins = begins
        self.size = size
        self.n_columns = len(columns)
        self.keys = [key for key, *_ in columns]
        self.dtypes = [dtype for _, dtype, *_ in columns]
        self.shapes = [shape for _, _, shape, _ in columns]
        self.types = [of for *_, of in columns]
        self.row_bytes = <int64_t*>zeros(self.n_columns, sizeof(int64_t))
        for i in range(self.n_columns):
            self.row_bytes[i] = self.dtypes[i].itemsize * int(
                np.prod(self.shapes[i], dtype=np.int64))
            n_bytes += self.row_bytes[i] * self.size + LINE
        self.room = self.arena.size // n_bytes
        example = {key: np.empty(shape, dtype) if of is np.ndarray else of()
                   for key, dtype, shape, of in columns}
        self.code = schema_of(example, True)[0]
        self.batches = {}
        self.recent_batch = self.last = -1

    def __dealloc__(self):
        PyMem_Free(self.row_bytes)

    @property
    def layout(self):
        """The schema of the items, the shape of each value, and what stands for an item."""
        return self.code, self.shapes, IN_PLACE

    cdef int64_t row_of(self, int64_t number) noexcept:
        """The row that an item belongs to, in its batch."""
        return (number - self.begins) % self.size

    cdef Placed of_batch(self, int64_t batch):
        """The rows of a batch, made if there are none yet; None where there is no room for them."""
        cdef Py_ssize_t i
        cdef list leases = []
        cdef Placed placed = None
        if batch == self.recent_batch:
            return self.recent
        if batch in self.batches:
            placed = self.batches[batch]
        else:
            for i in range(self.n_columns):
                lease = self.arena.allocate(max(self.row_bytes[i] * self.size, 1))
                if lease is None:
                    # There may be when the next item is ordered.
                    return None
                leases.append(lease)
            placed = self.batches[batch] = Placed(self, leases)
        self.recent_batch, self.recent = batch, placed
        return placed

    cdef Placed of_item(self, int64_t number):
        """The rows of the batch of an item; None where there are none yet."""
        cdef int64_t batch = (number - self.begins) // self.size
        if number < self.begins:
            return None
        return self.recent if batch == self.recent_batch else self.batches.get(batch)

    cpdef Placed place(self, int64_t number, int64_t given):
        """The rows of the batch of an item, if it can be written there; so many items were given.

        None while batches are made elsewhere, as of items of other keys.
        """
        cdef Placed placed
        if not self.is_wanted(number, given) or self.is_far(number, given):
            return None
        placed = self.of_batch((number - self.begins) // self.size)
        if placed is None or placed.held[self.row_of(number)].is_expected:
            return None
        return placed

    cdef bint is_wanted(self, int64_t number, int64_t given) except -1:
        """Whether an item is to be written to its row."""
        if number < self.begins or (number - self.begins) // self.size < self.earliest:
            return False
        if (given - self.begins) // self.size > self.last + MOST_UNUSED:
            self.keep_batches(0, 0)
            return False
        return True

    cdef bint is_far(self, int64_t number, int64_t given) noexcept:
        """Whether memory has no room for all batches up to that of an item.

        The first item of a visit that begins much later would keep it from those that come before.
        """
        cdef int64_t ahead = (number - self.begins) // self.size - (
            (given - self.begins) // self.size)
        return ahead > max(self.room - BESIDES, 1)

    cpdef bint waits(self, int64_t number, int64_t given) except -1:
        """Whether an item is better ordered later, when there is memory for its batch.

        Otherwise it would be sent, and copied to its row: that takes longer than to make it late.
        Not where the reader holds so many batches that there was none for the last one.
        """
        cdef int64_t batch = (number - self.begins) // self.size
        if self.is_full or batch <= (given - self.begins) // self.size or (
                not self.is_wanted(number, given)):
            return False
        return self.is_far(number, given) or self.of_batch(batch) is None

    cdef int keep_batches(self, int64_t first, int64_t stop) except -1:
        """Forget all batches but those from one on, before another one."""
        self.batches = {
            batch: placed for batch, placed in self.batches.items() if first <= batch < stop}
        self.recent_batch, self.recent = -1, None
        return 0

    cdef int forget_before(self, int64_t batch) except -1:
        """Forget the batches before one that begins now."""
        cdef int64_t earlier
        if batch > self.last + MOST_UNUSED:
            self.keep_batches(batch, INT64_MAX)
        else:
            # Not a new dict: of small batches, hundreds may be early. Others went before.
            for earlier in range(self.last, batch):
                self.batches.pop(earlier, None)
            if self.recent_batch < batch:
                self.recent_batch, self.recent = -1, None
        self.last = batch
        return 0

    cdef int plan_anew(self, int64_t number) except -1:
        """Have no item written to where another one may be that was ordered before.

        The item of this number is next.
        """
        cdef int64_t batch = max(number - self.begins, 0) // self.size
        self.earliest = batch + (batch == self.last)
        self.keep_batches(0, self.earliest)
        return 0

    def is_free(self, int64_t number):
        """Tell whether no worker is about to write the row of the item of this number."""
        cdef Placed placed = self.of_item(number)
        return placed is None or not placed.held[self.row_of(number)].is_expected

    cdef bint has_keys(self, object item) except -1:
        """Whether the values of an item are each in its own column, if it was written there.

        A worker knows the places of an item, not the keys.
        """
        return type(item) is dict and list(item) == self.keys

    def array(self, Py_ssize_t column, shape, dtype, int64_t number):
        """Return the array of a column, for the batch that begins with the item of this number."""
        cdef int64_t batch = (number - self.begins) // self.size
        cdef cnp.npy_intp[64] dims
        cdef int i
        cdef Placed placed = None
        if (dtype == self.dtypes[column] and shape == (self.size, *self.shapes[column])
                and self.row_of(number) == 0):
            placed = self.of_batch(batch)
            if batch != self.last:
                self.forget_before(batch)
            self.is_full = placed is None
        if placed is None:
            # Nor are its later rows wanted there.
            self.earliest = max(self.earliest, batch + 1)
            return np.empty(shape, dtype)
        for i in range(len(shape)):
            dims[i] = shape[i]
        array = array_at(
            placed.blocks[column].data, len(shape), dims, NULL, dtype, cnp.NPY_ARRAY_CARRAY)
        cnp.set_array_base(array, placed.leases[column])
        return array
