"""Batches whose rows are written by the workers that make the items.

The schedule says which item is the how-manieth, so its place in a batch is known before it is made.
Where that was wrong, the item is copied to where it belongs, as any other.

docs/inside/parallel.rst explains it.
"""

import numpy as np

cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t

from pescador._channel.memory cimport Arena, Lease
from pescador._native.arrays cimport array_at

cnp.import_array()

# So many batches in a row are made elsewhere before that is no exception.
cdef enum:
    MOST_UNUSED = 2


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
    columns : list of (key, dtype, tuple of int)
        The rows of each column.
    """

    cdef Arena arena
    cdef int64_t begins, size
    cdef list keys, columns, row_bytes
    cdef dict batches                  # number of a batch -> blocks of its columns, or None
    cdef set pending                   # where rows are about to be written, by their first columns
    cdef int64_t earliest              # the first batch that may be written to
    cdef int64_t last                  # the last batch that was begun

    def __init__(self, Arena arena not None, begins, size, columns):
        self.arena = arena
        self.begins = begins
        self.size = size
        self.keys = [key for key, *_ in columns]
        self.columns = [row for _, *row in columns]
        self.row_bytes = [
            dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for _, dtype, shape in columns]
        self.batches = {}
        self.pending = set()
        self.last = -1

    cdef list blocks_of(self, int64_t batch):
        """The blocks of a batch; None where there is no room for them."""
        cdef list blocks = []
        cdef uint64_t size
        if batch in self.batches:
            return self.batches[batch]
        for size in self.row_bytes:
            block = self.arena.allocate(max(size * <uint64_t>self.size, <uint64_t>1))
            if block is None:
                blocks = None
                break
            blocks.append(block)
        self.batches[batch] = blocks
        return blocks

    def place(self, int64_t number, int64_t given):
        """Return where the item of this number is wanted, as a list: block, place, size of each.

        None while batches are made elsewhere, as of items of other keys: so many items were given.
        """
        cdef int64_t batch = (number - self.begins) // self.size
        cdef int64_t row = (number - self.begins) % self.size
        cdef list blocks, places = []
        cdef Lease block
        cdef uint64_t size
        if number < self.begins or batch < self.earliest:
            return None
        if (given - self.begins) // self.size > self.last + MOST_UNUSED:
            self.batches.clear()
            return None
        blocks = self.blocks_of(batch)
        if blocks is None or self.place_of(number) in self.pending:
            return None
        for block, size in zip(blocks, self.row_bytes):
            self.arena.expect(block)
            places += (block.number, block.start + row * size, size)
        self.pending.add(places[1])
        return places

    def forget(self, list places):
        """Note that an item was written, or will not be."""
        self.pending.discard(places[1])
        for number in places[::3]:
            self.arena.forget(number)

    def plan_anew(self, int64_t number):
        """Have no item written to where another one may be that was ordered before.

        Parameters
        ----------
        number : int
            Of the item that is next.
        """
        cdef int64_t batch = max(number - self.begins, 0) // self.size
        self.earliest = batch + (batch == self.last)
        self.batches = {key: blocks for key, blocks in self.batches.items() if key < self.earliest}

    def is_free(self, int64_t number):
        """Tell whether no worker is about to write the row of the item of this number."""
        return self.place_of(number) not in self.pending

    def has_keys(self, item):
        """Tell whether the values of an item are each in its own column, if it was written there.

        A worker knows the places of an item, not the keys.
        """
        return type(item) is dict and list(item) == self.keys

    def place_of(self, int64_t number):
        """Return the place of the row of an item, in its first column; None where it has none."""
        cdef int64_t batch = (number - self.begins) // self.size
        cdef list blocks = self.batches.get(batch)
        cdef Lease block
        if number < self.begins or blocks is None:
            return None
        block = blocks[0]
        return block.start + (number - self.begins) % self.size * <uint64_t>self.row_bytes[0]

    def array(self, Py_ssize_t column, shape, dtype, int64_t number):
        """Return the array of a column, for the batch that begins with the item of this number."""
        cdef int64_t batch = (number - self.begins) // self.size
        cdef cnp.npy_intp[64] dims
        cdef Lease block
        cdef int i
        cdef list blocks = None
        own, row = self.columns[column]
        if dtype == own and shape == (self.size, *row) and (number - self.begins) % self.size == 0:
            blocks = self.blocks_of(batch)
            if batch != self.last:
                self.last = batch
                self.batches = {key: held for key, held in self.batches.items() if key >= batch}
        if blocks is None:
            return np.empty(shape, dtype)
        block = blocks[column]
        for i in range(len(shape)):
            dims[i] = shape[i]
        array = array_at(self.arena.memory.base + block.start, len(shape), dims, NULL, dtype,
                         cnp.NPY_ARRAY_CARRAY)
        cnp.set_array_base(array, block)
        return array
