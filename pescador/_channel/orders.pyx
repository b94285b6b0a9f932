"""Orders: words of 8 bytes, in memory, that a consumer writes for a worker of many visits.

They are written in a ring, as records are in the other direction (see `ring`). What does not fit,
and what is no words, goes over the pipe: such a message begins with the number of words that were
written before it, and the reader takes none of the later ones before it.

docs/inside/channel.rst explains it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from pescador._channel.memory cimport ORDERS, ORDERS_AT, Control, SharedMemory, damaged
from pescador._native.shared cimport exchange, load, store


cdef class Orders:
    """The words, as either end sees them."""

    cdef SharedMemory memory
    cdef Control* control
    cdef char* words
    cdef uint64_t n                    # words that this end has written, or read

    def __cinit__(self, SharedMemory memory not None, *args):
        self.memory = memory
        self.control = memory.control
        self.words = memory.base + ORDERS_AT


@cython.final
cdef class OrderWriter(Orders):
    """The consumer's end.

    Parameters
    ----------
    memory : SharedMemory
    wake : function
        Wake the worker.
    """

    cdef object wake

    def __init__(self, memory, wake):
        self.wake = wake

    def put(self, bytes words not None):
        """Write words, and wake a worker that waits for them; tell whether there was room."""
        cdef uint64_t length = PyBytes_GET_SIZE(words) // 8, at = self.n % ORDERS, first
        if self.n - load(&self.control.noted) + length > ORDERS:
            return False
        first = min(length, ORDERS - at)
        memcpy(self.words + 8 * at, PyBytes_AS_STRING(words), 8 * first)
        memcpy(self.words, PyBytes_AS_STRING(words) + 8 * first, 8 * (length - first))
        self.n += length
        store(&self.control.ordered, self.n)
        # After the store to ordered: either we see that it waits, or it sees the words.
        if load(&self.control.idle) != 0 and exchange(&self.control.idle, 0) != 0:
            self.wake()
        return True

    def before_message(self):
        """Return how many words were written; those after them are read after the next message."""
        store(&self.control.told, load(&self.control.told) + 1)
        return self.n


@cython.final
cdef class OrderReader(Orders):
    """The worker's end.

    Parameters
    ----------
    memory : SharedMemory

    Attributes
    ----------
    n_messages : int
        How many messages were read.
    """

    cdef readonly uint64_t n_messages

    def take(self):
        """Return the words that are there; none while a message comes before them."""
        cdef uint64_t stop = load(&self.control.ordered)
        # What was written after a message was is not seen without it.
        return b"" if self.awaits_message() else self.words_until(stop)

    def take_until(self, uint64_t stop):
        """Take a message, which was sent after so many words; return those that are not read."""
        self.n_messages += 1
        return self.words_until(stop)

    def awaits_message(self):
        """Tell whether the next order is a message, which is there or on its way."""
        return load(&self.control.told) != self.n_messages

    def is_stopped(self):
        """Tell whether the consumer wants no more."""
        return load(&self.control.stop) != 0

    def is_empty(self):
        """Tell whether there are no orders; if so, the consumer wakes us at the next."""
        store(&self.control.idle, 1)
        if load(&self.control.ordered) == self.n and not self.awaits_message():
            return True
        store(&self.control.idle, 0)
        return False

    cdef bytes words_until(self, uint64_t stop):
        cdef uint64_t length = stop - self.n, at = self.n % ORDERS, first = min(length, ORDERS - at)
        if length > ORDERS:
            raise damaged("the number of words of orders", length)
        cdef bytes words = PyBytes_FromStringAndSize(NULL, 8 * length)
        memcpy(PyBytes_AS_STRING(words), self.words + 8 * at, 8 * first)
        memcpy(PyBytes_AS_STRING(words) + 8 * first, self.words, 8 * (length - first))
        self.n = stop
        store(&self.control.noted, stop)
        return words
