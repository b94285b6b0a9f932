cdef extern from "_native/bounds.h":
    Py_ssize_t AT(Py_ssize_t index, Py_ssize_t length) noexcept nogil
