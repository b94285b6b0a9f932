"""Files as a source needs them: a stamp that tells of changes, read-only maps, reads at places.

It knows no format and no stream.

docs/inside/stores.rst explains it.
"""

import os
import sys

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer)
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t

from pescador._native.files cimport (
    pescador_advise, pescador_is_file, pescador_map_file, pescador_read, pescador_stamp,
    pescador_stamp_file, pescador_stamp_path, pescador_unmap_file,
)
from pescador._native.threads cimport pescador_add, pescador_threaded

# What is mapped at present, in all of this process.
cdef int64_t n_maps = 0, n_mapped = 0


def mapped():
    """Return how many files are mapped, and how many bytes they have in all."""
    return pescador_add(&n_maps, 0), pescador_add(&n_mapped, 0)


def physical_memory():
    """Return the bytes of this machine's memory; all that there could be if it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


cdef class Stamp:
    """What a file was when it was opened.

    Parameters
    ----------
    path : str
        Where it is.
    file : int
        A descriptor of it.
    """

    def __cinit__(self, str path not None, int file):
        self.path = os.fsencode(path)
        cdef int error = pescador_stamp_file(file, &self.stamp)
        if error:
            raise OSError(error, os.strerror(error), path)

    @property
    def size(self):
        """Its bytes."""
        return self.stamp.size

    @property
    def changed(self):
        """When it was changed last, in nanoseconds since 1970."""
        return self.stamp.seconds * 1_000_000_000 + self.stamp.nanoseconds

    @property
    def is_regular(self):
        """Whether it is a file, not a folder, a pipe or a device."""
        return self.stamp.is_regular

    def __eq__(self, other):
        return isinstance(other, Stamp) and are_equal(&self.stamp, &(<Stamp>other).stamp)

    __hash__ = None

    cpdef bint is_of(self, int file) noexcept:
        """Whether a descriptor is that of this file."""
        return pescador_is_file(file, &self.stamp)

    cpdef bint holds(self) except -1:
        """Whether the file at the path is still this one, unchanged."""
        cdef pescador_stamp now
        cdef int error
        cdef const char* path = self.path
        # With one thread nobody waits for the GIL, and to let go of it costs a tenth of the call.
        if pescador_threaded():
            with nogil:
                error = pescador_stamp_path(path, &now)
        else:
            error = pescador_stamp_path(path, &now)
        return not error and are_equal(&self.stamp, &now)


cdef bint are_equal(const pescador_stamp* a, const pescador_stamp* b) noexcept nogil:
    return (a.size == b.size and a.seconds == b.seconds and a.nanoseconds == b.nanoseconds
            and a.inode == b.inode and a.device == b.device)


cdef class Map:
    """A file in memory, for reading. It keeps no descriptor.

    Parameters
    ----------
    file : int
        A descriptor of the file.
    size : int
        Its bytes.
    """

    cdef void* address
    cdef readonly int64_t size
    cdef bint at_random                # what the system was told last

    def __cinit__(self, int file, int64_t size):
        if size <= 0:
            raise ValueError(f"size={size} is not positive")
        self.address = pescador_map_file(file, <size_t>size)
        if self.address is NULL:
            raise OSError(errno, os.strerror(errno))
        self.size = size
        pescador_add(&n_maps, 1)
        pescador_add(&n_mapped, size)

    def __dealloc__(self):
        if self.address is not NULL:
            pescador_unmap_file(self.address, <size_t>self.size)
            pescador_add(&n_maps, -1)
            pescador_add(&n_mapped, -self.size)

    def advise(self, bint at_random):
        """Tell the system whether places will be read at random: then it reads nothing ahead."""
        if at_random != self.at_random:
            self.at_random = at_random
            with nogil:
                pescador_advise(self.address, <size_t>self.size, at_random)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 1, flags)


def read_runs(int file, places not None, int64_t n, to not None):
    """Read runs of bytes of equal length, one behind the other; those that touch in one request.

    Parameters
    ----------
    file : int
        A descriptor of the file.
    places : array of int64
        Where in the file each run begins.
    n : int
        The bytes of a run, one or more.
    to : writable buffer
        Room for all of them.

    Raises
    ------
    EOFError
        If the file ends before a run does.
    OSError
        If it cannot be read.
    """
    cdef Py_buffer begins, room
    PyObject_GetBuffer(places, &begins, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(to, &room, PyBUF_WRITABLE)
        try:
            if n < 1 or begins.len % 8 or room.len != begins.len // 8 * n:
                raise ValueError(f"{room.len} bytes are not room for {begins.len / 8} runs of {n}")
            read_all(file, <const int64_t*>begins.buf, begins.len // 8, n, <char*>room.buf)
        finally:
            PyBuffer_Release(&room)
    finally:
        PyBuffer_Release(&begins)


cdef int read_all(
    int file, const int64_t* begins, Py_ssize_t n_runs, int64_t n, char* to
) except -1:
    cdef Py_ssize_t i = 0, j
    cdef int64_t length, done, got = 0
    while i < n_runs:
        j = i + 1
        while j < n_runs and begins[j] == begins[j - 1] + n:
            j += 1
        length = n * (j - i)
        done = 0
        while True:
            with nogil:
                got = pescador_read(file, to + n * i, length, begins[i], &done)
            PyErr_CheckSignals()
            if got != -EINTR:
                break
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        if got < length:
            raise EOFError(f"the file ends at byte {begins[i] + got}")
        i = j
    return 0
