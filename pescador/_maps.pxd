# C entry points of _maps.pyx.

cdef object type_name(object item)
cdef object not_a_mapping(object item, Py_ssize_t position)
cdef object raised_stop_iteration(Py_ssize_t position)
