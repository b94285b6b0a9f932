# Fields and C entry points of _maps.pyx.

from pescador._core cimport Compiled


cdef class StreamMap(Compiled):
    cdef object source                 # iterator over the items
    cdef Py_ssize_t position           # of the next of them


cdef object type_name(object item)
cdef object not_a_mapping(object item, Py_ssize_t position)
cdef object raised_stop_iteration(Py_ssize_t position)
