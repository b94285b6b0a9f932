"""What has arrived from a worker, as those see it who know nothing of memory.

docs/inside/channel.rst explains it.
"""


cdef class Arrivals:
    """An iterator over the items that are there now; it goes on when there are some again."""

    cdef bint wait(self, uint64_t awaited, uint64_t patience) except -1:
        """Wait for an item with this tag, and perhaps so many more; tell whether one is there.

        If none is, another one than this has to look what became of the worker.
        """
        raise NotImplementedError
