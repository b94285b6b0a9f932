"""Copies of arrays, for many that start from the same values; it knows no streams.

A small array is copied. So is a large one that one stream at a time uses. Where several use one, it
is written once into a file in memory, the snapshot, and each stream gets a private map of it: all
read the same pages, and who writes gets copies of the pages that it writes to, from the system. To
its user, such an array is a copy as ``copy.deepcopy`` makes it, but that the memory is a map's
(``array.base``), so that ``ndarray.resize`` refuses it. (In pescador 3.0, ``resize`` refuses as
well, since a streamer holds its arguments, unless it is told not to look.)

Where there can be no snapshot (another system than Linux, no descriptor or no memory left), or
where streams write all over their arrays, each gets a copy.

docs/inside/activation.rst explains it.
"""

import mmap
import weakref

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t

from pescador._native.files cimport pescador_is_file, pescador_stamp, pescador_stamp_file
from pescador._native.snapshots cimport (
    PESCADOR_MAPS, close_file, is_overwritten, new_file, new_map, unmap,
)

cdef extern from "numpy/arrayobject.h":
    bint PyDataType_REFCHK(cnp.PyArray_Descr* dtype)

cnp.import_array()
cdef type ndarray = np.ndarray, memmap = np.memmap, file_map = mmap.mmap
cdef object empty_like = np.empty_like

# From this many bytes on, mapping a file and reading it takes less time than a copy.
cdef Py_ssize_t large = 2**18

cdef enum:
    # An array gets a snapshot when it has been asked for again this many times in a row, each time
    # while its last copy was in use or among the next SOON arrays. To write a snapshot takes as
    # long as two copies, and in a pool whose streamers hold an array each, few are asked for again.
    AGAIN = 2
    SOON = 2
    # A snapshot that nobody uses is kept if its array was among the last RECENT that were asked
    # for, and if all such together have no more bytes than those in use, or than KEPT.
    RECENT = 8
    KEPT = 1 << 25
    # How many maps of a snapshot are compared with it when they are given back.
    LOOKS = 8


def set_large(Py_ssize_t n_bytes):
    """Take arrays of this size or more for large; return what the bound was. For tests."""
    global large
    before, large = large, n_bytes
    return before


cdef bint is_plain_array(object value) noexcept:
    """Whether a value is an array (or exactly a memmap) of a type that NumPy has always had,
    with all values in its own memory.
    """
    return ((type(value) is ndarray or type(value) is memmap)
            and cnp.PyArray_TYPE(<cnp.ndarray>value) >= 0
            and not PyDataType_REFCHK(cnp.PyArray_DESCR(<cnp.ndarray>value)))


cdef bint is_large(cnp.ndarray array) noexcept:
    """Whether a plain array may be worth a snapshot."""
    return PESCADOR_MAPS and cnp.PyArray_NBYTES(array) >= large


cdef object copy_array(cnp.ndarray array):
    """What copy.deepcopy makes of a plain array."""
    return cnp.PyArray_NewCopy(array, cnp.NPY_KEEPORDER)


cdef object view_of_constant(cnp.ndarray array):
    """A view of a plain array that nobody can write into: of bytes, or a file opened for reading.

    None for any other array: one that owns its memory can be made writeable again.
    """
    if cnp.PyArray_ISWRITEABLE(array):
        return None
    base = array
    while isinstance(base, ndarray):
        base = base.base
    if type(base) is bytes or (type(base) is file_map and memoryview(base).readonly):
        return array.view()
    return None


@cython.final
@cython.no_gc
cdef class Snapshot:
    """The values of an array in a file, and how they are laid out. Its maps hold it."""

    cdef int file                      # descriptor; -1 if there is none (any more)
    cdef pescador_stamp stamp          # of it
    cdef size_t n_bytes
    cdef Py_ssize_t maps
    cdef int overwritten, spared       # how many maps that were looked at were written all over
    cdef object dtype
    cdef tuple shape, strides

    def __cinit__(self, array):
        self.file = -1
        # Large memory that nobody touches costs next to nothing.
        laid_out = empty_like(array, order="K", subok=False)
        self.dtype, self.shape, self.strides = array.dtype, laid_out.shape, laid_out.strides
        if any([n > 1 and a != b for n, a, b in zip(self.shape, self.strides, array.strides)]):
            laid_out[...] = array
            array = laid_out
        cdef const char* values = cnp.PyArray_BYTES(array)
        self.n_bytes = cnp.PyArray_NBYTES(array)
        with nogil:
            self.file = new_file(values, self.n_bytes)
        if self.file >= 0 and pescador_stamp_file(self.file, &self.stamp):
            self.close()

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        """Make no more maps; those that there are go on."""
        if self.file >= 0:
            close_file(self.file, self.is_open())
            self.file = -1

    cdef bint is_open(self) noexcept:
        """Whether the file is there; other code may have closed the descriptor."""
        return self.file >= 0 and pescador_is_file(self.file, &self.stamp)

    cdef object array_like(self, array):
        """A copy of the array, over a map; None if there can be none, or it would be slower."""
        # A page that is copied when it is first written to takes several times as long as one that
        # is copied with all others.
        if self.overwritten > self.spared or not self.is_open():
            self.close()
        if self.file < 0:
            return None
        cdef Map map = Map(self)
        if map.address is NULL:
            return None
        return ndarray.__new__(type(array), self.shape, self.dtype, map, 0, self.strides)


@cython.final
@cython.no_gc
cdef class Map:
    """The memory of one array."""

    cdef Snapshot snapshot
    cdef void* address                 # NULL if there could be no map

    def __cinit__(self, Snapshot snapshot not None):
        self.snapshot = snapshot
        self.address = new_map(snapshot.file, snapshot.n_bytes, &snapshot.maps)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.address is NULL:
            raise BufferError("there is no map")
        PyBuffer_FillInfo(buffer, self, self.address, self.snapshot.n_bytes, False, flags)

    def __dealloc__(self):
        cdef Snapshot snapshot = self.snapshot
        if self.address is NULL:
            return
        if snapshot.file >= 0 and snapshot.overwritten + snapshot.spared < LOOKS:
            if is_overwritten(<char*>self.address, snapshot.n_bytes, snapshot.file):
                snapshot.overwritten += 1
            else:
                snapshot.spared += 1
        unmap(self.address, snapshot.n_bytes, &snapshot.maps)


@cython.final
@cython.no_gc
cdef class Usage:
    """How often an array is asked for. Neither it nor its copies are held."""

    cdef object array                  # weak reference to it
    cdef object copied                 # weak reference to the copy that was given last, or None
    cdef Snapshot snapshot             # None until it is worth one
    cdef int64_t asked                 # number of the last request for it
    cdef int again                     # how many requests in a row came early

    def __cinit__(self, array):
        self.array = weakref.ref(array)

    def __dealloc__(self):
        if self.snapshot is not None:
            self.snapshot.close()

    cdef bint is_recent(self, int64_t now):
        """Whether the array is still there, and was asked for not long ago."""
        return now - self.asked <= RECENT and self.array() is not None

    cdef bint is_used(self):
        """Whether anybody has what was given for the array."""
        return ((self.snapshot is not None and self.snapshot.maps > 0)
                or (self.copied is not None and self.copied() is not None))


cdef class Snapshots:
    """Snapshots of the large arrays that the streams of one activation are given.

    What it holds is bounded by what is in use: see `KEPT`.
    """

    def __cinit__(self):
        self.usages = {}
        self.with_snapshot = []
        self.enough = 64

    cdef object take(self, object array):
        """A private copy of an array."""
        cdef Usage usage = self.usages.get(id(array))
        cdef bint is_new = False
        self.now += 1
        if usage is None or usage.array() is not array:
            # The id may have been another's.
            self.usages[id(array)] = usage = Usage(array)
        elif self.now - usage.asked <= SOON or usage.is_used():
            usage.again += 1
        else:
            usage.again = 0
        usage.asked = self.now
        if usage.snapshot is None and usage.again >= AGAIN:
            is_new = True
            usage.snapshot = Snapshot(array)
            self.with_snapshot.append(usage)
        result = None if usage.snapshot is None else usage.snapshot.array_like(array)
        if result is None:
            result = copy_array(array)
            usage.copied = weakref.ref(result)
        if is_new or self.now % RECENT == 0:
            self.let_go()
        return result

    cdef int let_go(self) except -1:
        """Drop the snapshots that are not in use, but for a few, and forget about their arrays."""
        cdef list kept = []
        cdef Usage usage
        cdef Snapshot snapshot
        cdef size_t mapped = 0, idle = 0
        for usage in self.with_snapshot:
            mapped += usage.snapshot.n_bytes if usage.snapshot.maps else 0
        for usage in reversed(self.with_snapshot):
            snapshot = usage.snapshot
            if snapshot.file < 0:
                # It stays as it is, so that its array is copied from now on.
                continue
            if not snapshot.maps:
                idle += snapshot.n_bytes
                if idle > max(mapped, <size_t>KEPT) or not usage.is_recent(self.now):
                    idle -= snapshot.n_bytes
                    usage.snapshot = None
                    continue
            kept.append(usage)
        self.with_snapshot = kept[::-1]
        if len(self.usages) > self.enough:
            self.usages = {key: usage for key, usage in self.usages.items()
                           if (<Usage>usage).is_used() or (<Usage>usage).is_recent(self.now)}
            self.enough = 2 * len(self.usages) + 64
        return 0
