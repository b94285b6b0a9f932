/* Having memory on its way to the cache before it is needed. */
#pragma once

#include <Python.h>

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

/* Prefetch the dict of an instance, if it has one yet. */
static inline void
pescador_fetch_dict(PyObject *instance)
{
#ifndef Py_GIL_DISABLED
    PyObject **dict = _PyObject_GetDictPtr(instance);
    if (dict != NULL && *dict != NULL) {
        PESCADOR_PREFETCH(*dict);
    }
#else
    (void)instance;
#endif
}

/* Prefetch what the attributes of an instance refer to: where their values are (step 2), the values
 * (step 3), and what is in those that are tuples (step 4). */
static inline void
pescador_fetch(PyObject *fields, int step)
{
#ifndef Py_GIL_DISABLED
    Py_ssize_t position = 0, i;
    PyObject *key, *value;
    if (step == 2) {
        PESCADOR_PREFETCH(((PyDictObject *)fields)->ma_values);
        return;
    }
    while (PyDict_Next(fields, &position, &key, &value)) {
        if (step == 3) {
            PESCADOR_PREFETCH(value);
        }
        else if (PyTuple_CheckExact(value)) {
            for (i = 0; i < PyTuple_GET_SIZE(value) && i < 4; i++) {
                PESCADOR_PREFETCH(PyTuple_GET_ITEM(value, i));
            }
        }
    }
#else
    (void)fields, (void)step;
#endif
}
