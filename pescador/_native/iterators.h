/* Starting and stepping an iterator, without raising where it ends. */
#pragma once

#include <Python.h>

/* The next item of an iterator (a new reference); NULL without an exception at its end,
 * NULL with one when it failed. */
static inline PyObject *
pescador_next(PyObject *iterator)
{
    PyObject *item = Py_TYPE(iterator)->tp_iternext(iterator);
    if (item == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyErr_Clear();
    }
    return item;
}

/* An owned pointer as an object, without counting references up and down. */
static inline PyObject *
pescador_steal(PyObject *owned)
{
    return owned;
}

/* iter(function(*args)), without the detour of a call by tuple; NULL with an exception if it fails. */
static inline PyObject *
pescador_stream(PyObject *function, PyObject *args)
{
    PyObject *iterator, *result = PyObject_Vectorcall(
        function, ((PyTupleObject *)args)->ob_item, (size_t)PyTuple_GET_SIZE(args), NULL);
    if (result == NULL || PyGen_CheckExact(result)) {
        return result;
    }
    iterator = PyObject_GetIter(result);
    Py_DECREF(result);
    return iterator;
}

/* Have Cython raise the exception that there is. */
static inline int
pescador_raise(void)
{
    return -1;
}
