/* The few things that Cython cannot say: stepping an iterator without raising, calling without a
 * tuple, reading a dict in order, handing over an owned reference, and array indices that a checked
 * build verifies. */
#ifndef PESCADOR_NATIVE_H
#define PESCADOR_NATIVE_H

#include <Python.h>
#include <stdint.h>
#include <stdio.h>

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

/* function(*args), without the detour of a call by tuple. */
static inline PyObject *
pescador_call(PyObject *function, PyObject *args)
{
    return PyObject_Vectorcall(function, ((PyTupleObject *)args)->ob_item,
                               (size_t)PyTuple_GET_SIZE(args), NULL);
}

/* The value of a name in a dict (a new reference), found without a search where the names are asked
 * for in the order in which they were set. */
static inline PyObject *
pescador_field(PyObject *fields, Py_ssize_t *position, PyObject *name)
{
#ifndef Py_GIL_DISABLED
    PyObject *key, *value;
    if (PyDict_Next(fields, position, &key, &value) && key == name) {
        return Py_NewRef(value);
    }
#endif
    return PyObject_GetItem(fields, name);
}

/* Have memory on its way to the cache before it is needed; any address will do. */
#if defined(__GNUC__) || defined(__clang__)
#define PESCADOR_PREFETCH(address) __builtin_prefetch(address)
#else
#define PESCADOR_PREFETCH(address) ((void)(address))
#endif

static inline void *
pescador_items(PyObject *list)
{
    return ((PyListObject *)list)->ob_item;
}

/* Prefetch what the attributes of an instance refer to: where their values are (step 1), the values
 * (step 2), and what is in those that are tuples (step 3). */
static inline void
pescador_fetch(PyObject *fields, int step)
{
#ifndef Py_GIL_DISABLED
    Py_ssize_t position = 0, i;
    PyObject *key, *value;
    if (step == 1) {
        PESCADOR_PREFETCH(((PyDictObject *)fields)->ma_values);
        return;
    }
    while (PyDict_Next(fields, &position, &key, &value)) {
        if (step == 2) {
            PESCADOR_PREFETCH(value);
        }
        else if (PyTuple_CheckExact(value)) {
            for (i = 0; i < PyTuple_GET_SIZE(value) && i < 4; i++) {
                PESCADOR_PREFETCH(PyTuple_GET_ITEM(value, i));
            }
        }
    }
#endif
}

/* How many bits are set, and where the one of a given rank is. */
static inline int
pescador_popcount(uint64_t word)
{
    word = word - ((word >> 1) & 0x5555555555555555u);
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (int)((word * 0x0101010101010101u) >> 56);
}

static inline int
pescador_nth_bit(uint64_t word, int rank)
{
    int place = 0, half, count;
    for (half = 32; half > 0; half /= 2) {
        count = pescador_popcount(word & (((uint64_t)1 << half) - 1));
        if (rank >= count) {
            rank -= count;
            word >>= half;
            place += half;
        }
    }
    return place;
}

/* Whether this interpreter runs more than one Python thread. */
static inline int
pescador_threaded(void)
{
    PyThreadState *head = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    return PyThreadState_Next(head) != NULL;
}

#ifdef PESCADOR_BOUNDSCHECK
static inline Py_ssize_t
pescador_at(Py_ssize_t index, Py_ssize_t length, const char *file, int line)
{
    if (index < 0 || index >= length) {
        fprintf(stderr, "%s:%d: index %zd is out of bounds for length %zd\n",
                file, line, index, length);
        abort();
    }
    return index;
}
#define AT(index, length) pescador_at((index), (length), __FILE__, __LINE__)
#else
#define AT(index, length) (index)
#endif

#endif
