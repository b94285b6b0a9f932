/* Array indices, which a checked build verifies. */
#pragma once

#include <Python.h>
#include <stdio.h>

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
