# Fields and C entry points of _isolation.pyx.

from cpython.function cimport PyFunction_Check
from cpython.tuple cimport PyTuple_GET_ITEM

from pescador._snapshots cimport Snapshots


cdef class Copies:
    cdef readonly Copies parent        # those of the activation that this one happened in, or None
    cdef dict copies                   # id of a generator -> (it, the copy that stands for it here)
    cdef Snapshots snapshots           # of large arrays; the outermost activation's

    cdef int add_copy(self, object generator) except -1
    cpdef object find(self, object key)


cdef class Memo(dict):
    cdef Copies scope
    cdef bint again
    cdef list generators               # copies that were made, where a run keeps track of them


cdef inline bint is_simple(object value) noexcept:
    # Whether this is immutable, and of a type that nearly all arguments of streams have.
    cdef type kind = type(value)
    return (kind is int or kind is str or kind is float or PyFunction_Check(value)
            or value is None)


cdef inline bint all_simple(tuple values) noexcept:
    cdef Py_ssize_t i
    for i in range(len(values)):
        if not is_simple(<object>PyTuple_GET_ITEM(values, i)):
            return False
    return True


cdef inline int is_immutable(object value) except -1:
    # Whether a value cannot change, nor anything in it.
    return is_simple(value) or cannot_change(value, None)


cdef int cannot_change(object value, set seen) except -1
cpdef object isolate(object value, object memo)
cpdef bint is_shared(object memo) except? True
cdef int note_shared(object memo) except -1
cpdef bint reads_shared(object value, set seen=*) except? True
