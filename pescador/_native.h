/* The few things that Cython cannot say: stepping an iterator without raising, calling without a
 * tuple, reading a dict in order, handing over an owned reference, and array indices that a checked
 * build verifies. */
#ifndef PESCADOR_NATIVE_H
#define PESCADOR_NATIVE_H

#include <Python.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#define PESCADOR_SSE2
#include <emmintrin.h>
#endif

/* Add to a counter that all threads share; returns what it is then. */
#if defined(_MSC_VER)
#include <intrin.h>
#define pescador_add(counter, by) ((int64_t)_InterlockedExchangeAdd64(counter, by) + (by))
#else
#define pescador_add(counter, by) __atomic_add_fetch(counter, by, __ATOMIC_RELAXED)
#endif

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

/* memcpy of many bytes.
 *
 * With `past_cache`, to where nobody will read soon: that saves reading what is there. Without, it
 * is memcpy's own work, but for where the target is a few bytes further into its page than the
 * source. There, `rep movsb`, which C libraries use for such sizes, takes twenty times as long on
 * processors of the Zen line (glibc bug 30994). Large arrays often lie so: after headers of 16 bytes
 * and of 32. */
static inline void
pescador_copy_many(char *to, const char *from, size_t n, int past_cache)
{
#ifdef PESCADOR_SSE2
    if (past_cache || (((uintptr_t)to - (uintptr_t)from) & 4095) - 1 < 63) {
        size_t head = (size_t)(-(intptr_t)to & 63);
        memcpy(to, from, head);
        to += head;
        from += head;
        n -= head;
        for (; n >= 64; n -= 64, to += 64, from += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)from);
            __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
            __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
            if (past_cache) {
                _mm_stream_si128((__m128i *)to, a);
                _mm_stream_si128((__m128i *)(to + 16), b);
                _mm_stream_si128((__m128i *)(to + 32), c);
                _mm_stream_si128((__m128i *)(to + 48), d);
            }
            else {
                _mm_store_si128((__m128i *)to, a);
                _mm_store_si128((__m128i *)(to + 16), b);
                _mm_store_si128((__m128i *)(to + 32), c);
                _mm_store_si128((__m128i *)(to + 48), d);
            }
        }
        if (past_cache) {
            _mm_sfence();
        }
    }
#else
    (void)past_cache;
#endif
    memcpy(to, from, n);
}

static inline void
pescador_copy(char *to, const char *from, size_t n, int past_cache)
{
    if (n < 2048) {
        memcpy(to, from, n);
    }
    else {
        pescador_copy_many(to, from, n, past_cache);
    }
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
