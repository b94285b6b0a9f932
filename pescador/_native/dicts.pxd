from cpython.object cimport PyObject


cdef extern from "_native/dicts.h":
    PyObject* next_value "pescador_next_value" (
        PyObject* items, Py_ssize_t* position, PyObject* key) noexcept
    object pescador_field(dict fields, Py_ssize_t* position, object name)


cdef inline bint same_key(object a, object b) except -1:
    """Whether nobody could tell one key of an item from the other."""
    if a is b:
        return True
    # Equal keys of other types may still differ: 1 and True, say.
    if (type(a) is str and type(b) is str) or (type(a) is int and type(b) is int):
        return a == b
    return False
