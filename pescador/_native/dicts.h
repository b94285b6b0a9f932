/* Reading a dict in the order in which it was filled. */
#pragma once

#include <Python.h>

/* The value after a position in a dict, borrowed, if it is that of this very key; otherwise NULL. */
static inline PyObject *
pescador_next_value(PyObject *dict, Py_ssize_t *position, PyObject *key)
{
#if !defined(Py_GIL_DISABLED)
    PyObject *found, *value;
    if (PyDict_Next(dict, position, &found, &value) && found == key) {
        return value;
    }
#else
    (void)dict, (void)position, (void)key;
#endif
    return NULL;
}

/* The value of a name in a dict (a new reference), found without a search where the names are asked
 * for in the order in which they were set. */
static inline PyObject *
pescador_field(PyObject *fields, Py_ssize_t *position, PyObject *name)
{
    PyObject *value = pescador_next_value(fields, position, name);
    if (value != NULL) {
        return Py_NewRef(value);
    }
    value = PyObject_GetItem(fields, name);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Format(PyExc_AttributeError, "'Streamer' object has no attribute '%U'", name);
    }
    return value;
}
