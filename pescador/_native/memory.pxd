# Memory of our own; MemoryError where there is no more.

from cpython.mem cimport PyMem_Calloc, PyMem_Realloc


cdef inline void* zeros(size_t n, size_t size) except NULL:
    """Memory for n values of so many bytes, all of them 0."""
    cdef void* memory = PyMem_Calloc(n, size)
    if memory is NULL:
        raise MemoryError()
    return memory


cdef inline void* resized(void* memory, size_t n, size_t size) except NULL:
    """The same memory with room for n values; it stays as it was where there is no more."""
    cdef void* result = PyMem_Realloc(memory, n * size)
    if result is NULL:
        raise MemoryError()
    return result


cdef inline void* extended(void* memory, Py_ssize_t* room, size_t size) except NULL:
    """The same memory with room for more than twice as many values."""
    memory = resized(memory, 2 * room[0] + 64, size)
    room[0] = 2 * room[0] + 64
    return memory
