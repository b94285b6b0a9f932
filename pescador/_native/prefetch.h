/* Having memory on its way to the cache before it is needed. */
#pragma once

#include <Python.h>

/* Any address will do. GCC takes a function that only prefetches for one without effects, and drops
 * calls of it: hence the empty asm. */
#if defined(__GNUC__) || defined(__clang__)
#define PESCADOR_PREFETCH(address)                                                     \
    (__extension__({ __builtin_prefetch(address); __asm__ volatile(""); }))
#else
#define PESCADOR_PREFETCH(address) ((void)(address))
#endif

static inline void *
pescador_items(PyObject *list)
{
    return ((PyListObject *)list)->ob_item;
}

/* Prefetch the values of a dict. */
static inline void
pescador_prefetch_values(PyObject *dict)
{
#ifndef Py_GIL_DISABLED
    Py_ssize_t position = 0;
    PyObject *value;
    while (PyDict_Next(dict, &position, NULL, &value)) {
        PESCADOR_PREFETCH(value);
    }
#else
    (void)dict;
#endif
}
