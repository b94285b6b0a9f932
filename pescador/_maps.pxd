# C entry points of _maps.pyx.

cdef object describe(object item)
cdef object not_data(object item, Py_ssize_t position)
cdef object stopped(Py_ssize_t position)
