"""The items that have arrived from a worker, for readers that need not know where they lie.

docs/inside/channel.rst explains it.
"""


cdef class Arrivals:
    """An iterator over the items that are there now; it goes on when there are some again."""

    cdef bint wait(self, uint64_t awaited, uint64_t patience) except -1:
        """Wait for an item with this tag, and perhaps so many more; tell whether one is there.

        If none is, the caller has to look what became of the worker.
        """
        raise NotImplementedError
