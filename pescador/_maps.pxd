# C entry points of _maps.pyx.

cdef object describe(object item)
cdef object not_data(object item, Py_ssize_t position)
cdef object stopped(Py_ssize_t position)


cdef inline bint same_key(object a, object b) except -1:
    """Whether nobody could tell one key of an item from the other."""
    if a is b:
        return True
    # Equal keys of other types may still differ: 1 and True, say.
    if (type(a) is str and type(b) is str) or (type(a) is int and type(b) is int):
        return a == b
    return False
