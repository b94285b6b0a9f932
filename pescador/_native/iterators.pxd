from cpython.object cimport PyObject


cdef extern from "_native/iterators.h":
    # The next item, a new reference; NULL without an exception at the end.
    PyObject* next_item "pescador_next" (object iterator) except? NULL
    object steal "pescador_steal" (PyObject* owned)
    PyObject* pescador_stream(object function, tuple args) noexcept
    int pescador_raise() except -1
