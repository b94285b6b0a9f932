"""Private copies of arrays, for many that start from the same one; it knows no streams.

The first to ask gets a copy. For those that follow, a large array is written into a file in
memory, once, and each gets a map of it: pages are shared until somebody writes into one. To its
user, such an array is like any other: writeable, the owner of its memory, and laid out as
``copy.deepcopy`` lays out a copy. Where a map cannot be had (another system than Linux, no
descriptor or no memory left), or arrays like it were written all over, it is a copy after all.
"""

import mmap

import numpy as np

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

cdef extern from "_snapshots.h":
    enum: PESCADOR_MAPS
    ctypedef struct pescador_layout:
        int n
    Py_ssize_t pescador_maps, pescador_files
    int _import_array() except -1
    object pescador_handler_for(size_t n)
    int pescador_written(PyObject* handler) noexcept
    int pescador_spared(PyObject* handler) noexcept
    bint pescador_holds_values(PyObject* array) noexcept
    bint pescador_is_writeable(PyObject* array) noexcept
    Py_ssize_t pescador_size(PyObject* array) noexcept
    bint pescador_is_own_memory() noexcept
    object pescador_copied(PyObject* array)
    const char* pescador_laid_out(
        PyObject* array, pescador_layout* layout, PyObject** kept) except NULL
    Py_ssize_t pescador_most_maps() noexcept
    int pescador_open(const char* values, size_t n) noexcept nogil
    void pescador_close(int file) noexcept
    void* pescador_map(int file, size_t n, Py_ssize_t most) noexcept
    object pescador_array_over(
        void* map, PyObject* array, PyObject* dtype, pescador_layout* layout, PyObject* handler)

_import_array()
cdef type ndarray = np.ndarray, memmap = np.memmap, file_map = mmap.mmap
cdef Py_ssize_t most_maps = pescador_most_maps()

# From this many bytes on, mapping a file and reading it takes less time than a copy.
cdef Py_ssize_t large = 2**18


def set_large(Py_ssize_t n_bytes):
    """Take arrays of this size or more for large; return what the bound was. For tests."""
    global large
    before, large = large, n_bytes
    return before


def in_use():
    """Return how many maps and how many files of ours this process has open. For tests."""
    return pescador_maps, pescador_files


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


cdef class File:
    """The values of an array, where nobody can change them, and how they are laid out."""

    cdef int descriptor                # -1 if there could be none
    cdef size_t n_bytes
    cdef object handler                # NumPy's way to the memory of the arrays over it
    cdef object dtype
    cdef pescador_layout layout

    def __cinit__(self, array):
        cdef PyObject* kept = NULL
        cdef const char* values
        self.descriptor = -1
        self.n_bytes = pescador_size(<PyObject*>array)
        self.handler = pescador_handler_for(self.n_bytes)
        self.dtype = array.dtype
        try:
            values = pescador_laid_out(<PyObject*>array, &self.layout, &kept)
            with nogil:
                self.descriptor = pescador_open(values, self.n_bytes)
        finally:
            Py_XDECREF(kept)

    def __dealloc__(self):
        self.close()

    cdef void close(self):
        if self.descriptor >= 0:
            pescador_close(self.descriptor)
            self.descriptor = -1

    cdef object map_for(self, object array):
        """A copy of the array, over a map; None if there can be none, or it would be slower."""
        cdef void* map = NULL
        cdef PyObject* handler = <PyObject*>self.handler
        if pescador_written(handler) > pescador_spared(handler):
            self.close()
        if self.descriptor >= 0:
            map = pescador_map(self.descriptor, self.n_bytes, most_maps)
        if map is NULL:
            return None
        return pescador_array_over(map, <PyObject*>array, <PyObject*>self.dtype, &self.layout,
                                   handler)


cdef class Known:
    """An array that was asked for."""

    cdef object array                  # held, so that its id stays its own
    cdef File file                     # None until it is asked for again

    def __cinit__(self, array):
        self.array = array


cdef class Snapshots:
    """The values of large arrays, each at the time when it was asked for the second time."""

    def __cinit__(self):
        self.known = {}
        self.first_files = []

    cdef object take(self, object array):
        """A private copy of an array."""
        cdef Known known = self.known.get(id(array))
        if known is None:
            # This copy is given back when its user is done, and most arrays have no second.
            self.known[id(array)] = Known(array)
            return copied(array)
        if known.file is None:
            if self.all_are_written_to():
                return copied(array)
            known.file = File(array)
            if len(self.first_files) < 8:
                self.first_files.append(known.file)
        result = known.file.map_for(array)
        return copied(array) if result is None else result

    cdef bint all_are_written_to(self):
        """Whether arrays were looked at before they were given back, and none had been spared."""
        cdef int written = 0
        for file in self.first_files:
            if pescador_spared(<PyObject*>(<File>file).handler):
                return False
            written += pescador_written(<PyObject*>(<File>file).handler)
        return written > 2
