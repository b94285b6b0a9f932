"""Private copies of arrays, for many that start from the same one; it knows no streams.

The first to ask gets a copy. For those that follow while it is in use, or soon after, a large array
is written into a file in memory, once, and each gets a map of it: pages are shared until somebody
writes into one. A file that nobody uses is kept for a while, if it is not too large. To its
user, such an array is like any other: writeable, the owner of its memory, and laid out as
``copy.deepcopy`` lays out a copy. Where a map cannot be had (another system than Linux, no
descriptor or no memory left), or arrays like it were written all over, it is a copy after all.
"""

import mmap
import weakref

import numpy as np

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t

cdef extern from "_snapshots.h":
    enum: PESCADOR_MAPS
    ctypedef struct pescador_context:
        int written, spared
    ctypedef struct pescador_layout:
        int n
    Py_ssize_t pescador_maps, pescador_files, pescador_bytes
    int _import_array() except -1
    object pescador_handler_for(size_t n)
    pescador_context* pescador_context_of(PyObject* handler) except NULL
    Py_ssize_t pescador_users(pescador_context* context) noexcept
    bint pescador_holds_values(PyObject* array) noexcept
    bint pescador_is_writeable(PyObject* array) noexcept
    Py_ssize_t pescador_size(PyObject* array) noexcept
    bint pescador_is_own_memory() noexcept
    object pescador_copied(PyObject* array)
    const char* pescador_laid_out(
        PyObject* array, pescador_layout* layout, PyObject** kept) except NULL
    Py_ssize_t pescador_most_maps() noexcept
    int pescador_open(pescador_context* context, const char* values) noexcept nogil
    void pescador_close(pescador_context* context, int file) noexcept
    void* pescador_map(int file, size_t n, Py_ssize_t most) noexcept
    object pescador_array_over(
        void* map, PyObject* array, PyObject* dtype, pescador_layout* layout, PyObject* handler)

_import_array()
cdef type ndarray = np.ndarray, memmap = np.memmap, file_map = mmap.mmap
cdef Py_ssize_t most_maps = pescador_most_maps()

# From this many bytes on, mapping a file and reading it takes less time than a copy.
cdef Py_ssize_t large = 2**18

cdef enum:
    # An array that is asked for again so soon is worth a snapshot. A pool whose streamers hold an
    # array each asks for some within a few more: to copy these takes less time.
    SOON = 2
    # A snapshot that nobody uses is kept if its array was asked for so many times ago, or fewer.
    RECENT = 8
    # How many bytes of snapshots that nobody uses are kept; more, while those in use are larger.
    KEPT = 1 << 25


def set_large(Py_ssize_t n_bytes):
    """Take arrays of this size or more for large; return what the bound was. For tests."""
    global large
    before, large = large, n_bytes
    return before


def in_use():
    """Return how many maps and how many files of ours this process has open. For tests."""
    return pescador_maps, pescador_files


def bytes_held():
    """Return the size of all files of ours that are open or mapped in this process, in bytes."""
    return pescador_bytes


cdef bint is_plain(object value) noexcept:
    """Whether a value is an array (or exactly a memmap), with all values in its own memory."""
    return ((type(value) is ndarray or type(value) is memmap)
            and pescador_holds_values(<PyObject*>value))


cdef bint is_large(object array) noexcept:
    """Whether a plain array is worth a snapshot."""
    return (PESCADOR_MAPS and pescador_size(<PyObject*>array) >= large
            and pescador_is_own_memory())


cdef object copied(object array):
    """What copy.deepcopy makes of a plain array."""
    return pescador_copied(<PyObject*>array)


cdef object fixed(object array):
    """A view of a plain array that nobody can write into: of bytes, or a file opened for reading.

    None for any other array: one that owns its memory can be made writeable again.
    """
    if pescador_is_writeable(<PyObject*>array):
        return None
    base = array
    while isinstance(base, ndarray):
        base = base.base
    if type(base) is bytes or (type(base) is file_map and memoryview(base).readonly):
        return array.view()
    return None


@cython.final
@cython.no_gc
cdef class File:
    """The values of an array, where nobody can change them, and how they are laid out."""

    cdef int descriptor                # -1 if there could be none
    cdef size_t n_bytes
    cdef object handler                # NumPy's way to the memory of the arrays over it
    cdef pescador_context* context     # the same, in C
    cdef object dtype
    cdef pescador_layout layout

    def __cinit__(self, array):
        cdef PyObject* kept = NULL
        cdef const char* values
        self.descriptor = -1
        self.n_bytes = pescador_size(<PyObject*>array)
        self.handler = pescador_handler_for(self.n_bytes)
        self.context = pescador_context_of(<PyObject*>self.handler)
        self.dtype = array.dtype
        try:
            values = pescador_laid_out(<PyObject*>array, &self.layout, &kept)
            with nogil:
                self.descriptor = pescador_open(self.context, values)
        finally:
            Py_XDECREF(kept)

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        if self.descriptor >= 0:
            pescador_close(self.context, self.descriptor)
            self.descriptor = -1

    cdef bint is_mapped(self) noexcept:
        return pescador_users(self.context) > (self.descriptor >= 0)

    cdef object map_for(self, object array):
        """A copy of the array, over a map; None if there can be none, or it would be slower."""
        cdef void* map = NULL
        if self.context.written > self.context.spared:
            self.close()
        if self.descriptor >= 0:
            map = pescador_map(self.descriptor, self.n_bytes, most_maps)
        if map is NULL:
            return None
        return pescador_array_over(map, <PyObject*>array, <PyObject*>self.dtype, &self.layout,
                                   <PyObject*>self.handler)


@cython.final
cdef class Known:
    """An array that was asked for. It is not held, nor is what was given for it."""

    cdef object array                  # weak references to it,
    cdef object copied                 # and to the copy that was given last, if one was
    cdef File file                     # None until it is asked for again
    cdef int64_t asked                 # when it was, last

    def __cinit__(self, array):
        self.array = weakref.ref(array)

    cdef bint is_recent(self, int64_t now, int64_t ago=RECENT):
        """Whether it is still there, and was asked for not long ago."""
        return now - self.asked <= ago and self.array() is not None

    cdef bint is_used(self):
        """Whether anybody has what was given for it."""
        return ((self.file is not None and self.file.is_mapped())
                or (self.copied is not None and self.copied() is not None))


cdef class Snapshots:
    """The values of large arrays that several streams are given, at the time when the second was.

    What it holds is bounded by what is in use: it keeps a file that nobody has mapped only if its
    array was asked for recently, and all such files together are no larger than those that are
    mapped, or than `KEPT`.
    """

    def __cinit__(self):
        self.known = {}
        self.with_files = []
        self.first_handlers = []
        self.enough = 64

    cdef object take(self, object array):
        """A private copy of an array."""
        cdef Known known = self.known.get(id(array))
        cdef bint again = False, is_new = False
        self.now += 1
        if known is not None and known.array() is array:
            again = known.is_recent(self.now, SOON) or known.is_used()
        else:
            # The id may have been another's.
            self.known[id(array)] = known = Known(array)
        known.asked = self.now
        if known.file is None and again and not self.all_are_written_to():
            is_new = True
            known.file = File(array)
            self.with_files.append(known)
            if len(self.first_handlers) < 8:
                self.first_handlers.append(known.file.handler)
        result = None if known.file is None else known.file.map_for(array)
        if result is None:
            # Its user gives it back when it is done, and most arrays have no other.
            result = copied(array)
            known.copied = weakref.ref(result)
        if is_new or self.now % RECENT == 0:
            self.let_go()
        return result

    cdef int let_go(self) except -1:
        """Close the files that are not in use, but for a few, and forget about their arrays."""
        cdef list kept = []
        cdef Known known
        cdef size_t mapped = 0, idle = 0
        for known in self.with_files:
            if known.file.is_mapped():
                mapped += known.file.n_bytes
        for known in reversed(self.with_files):
            if known.file.descriptor < 0:
                # It was found to be slower than copies.
                continue
            if not known.file.is_mapped():
                if not (known.is_recent(self.now)
                        and idle + known.file.n_bytes <= max(mapped, <size_t>KEPT)):
                    known.file = None
                    continue
                idle += known.file.n_bytes
            kept.append(known)
        self.with_files = kept[::-1]
        if len(self.known) > self.enough:
            self.known = {key: known for key, known in self.known.items()
                          if (<Known>known).is_used() or (<Known>known).is_recent(self.now)}
            self.enough = 2 * len(self.known) + 64
        return 0

    cdef bint all_are_written_to(self):
        """Whether arrays were looked at before they were given back, and none had been spared."""
        cdef int written = 0
        cdef pescador_context* context
        for handler in self.first_handlers:
            context = pescador_context_of(<PyObject*>handler)
            if context.spared:
                return False
            written += context.written
        return written > 2
