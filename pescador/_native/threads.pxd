from cpython.object cimport PyObject
from libc.stdint cimport int64_t


cdef extern from "_native/threads.h":
    int64_t pescador_add(int64_t* counter, int64_t by) noexcept nogil
    bint pescador_threaded() noexcept nogil
    bint pescador_is_unshared(PyObject* value) noexcept
