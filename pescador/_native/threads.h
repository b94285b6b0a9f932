/* What depends on other threads: counters that they share, references that they may hold. */
#pragma once

#include <Python.h>
#include <stdint.h>

/* Add to a counter that all threads share; returns what it is then. */
#if defined(_MSC_VER)
#include <intrin.h>
#define pescador_add(counter, by) ((int64_t)_InterlockedExchangeAdd64(counter, by) + (by))
#else
#define pescador_add(counter, by) __atomic_add_fetch(counter, by, __ATOMIC_RELAXED)
#endif

/* Whether this interpreter runs more than one Python thread. */
static inline int
pescador_threaded(void)
{
    PyThreadState *head = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    return PyThreadState_Next(head) != NULL;
}

/* Whether the reference that is asked with is the only one. Where threads count references without
 * a lock, this cannot always be told: then, no. */
static inline int
pescador_is_unshared(PyObject *value)
{
#if !defined(Py_GIL_DISABLED)
    return Py_REFCNT(value) == 1;
#elif PY_VERSION_HEX >= 0x030E0000
    return PyUnstable_Object_IsUniquelyReferenced(value);
#else
    (void)value;
    return 0;
#endif
}
