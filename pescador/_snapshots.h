/* Private copies of large arrays that cost no copy: files in memory, mapped copy-on-write.
 *
 * An array over such a map owns its memory as any other does. NumPy hands it back to the functions
 * below, together with the context of its snapshot: maps begin at a page, and ordinary memory, which
 * a resized array moves to, never does. */
#ifndef PESCADOR_SNAPSHOTS_H
#define PESCADOR_SNAPSHOTS_H

#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

#if defined(__linux__)
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__linux__) && defined(SYS_memfd_create)
#define PESCADOR_MAPS 1
#else
#define PESCADOR_MAPS 0
#endif

/* What the arrays of one snapshot have in common. */
typedef struct {
    PyDataMem_Handler handler;
    size_t size;            /* bytes of an array */
    Py_ssize_t users;       /* the descriptor of the file, while it is open, and each map of it */
    int written, spared;    /* how many arrays, of those looked at, were written all over or not */
} pescador_context;

#if PESCADOR_MAPS

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1u
#endif
#ifndef MFD_ALLOW_SEALING
#define MFD_ALLOW_SEALING 2u
#endif
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#define F_SEAL_WRITE 8
#endif

/* What this process has open; the rest of each allowance is left to others. */
static Py_ssize_t pescador_maps, pescador_files;
/* What the files hold that have a user. */
static Py_ssize_t pescador_bytes;

static inline Py_ssize_t
pescador_count(Py_ssize_t *counter, Py_ssize_t by)
{
    return __atomic_add_fetch(counter, by, __ATOMIC_RELAXED);
}

static inline void
pescador_use(pescador_context *context)
{
    if (pescador_count(&context->users, 1) == 1) {
        pescador_count(&pescador_bytes, (Py_ssize_t)context->size);
    }
}

static inline Py_ssize_t
pescador_users(pescador_context *context)
{
    return pescador_count(&context->users, 0);
}

static inline void
pescador_disuse(pescador_context *context)
{
    if (pescador_count(&context->users, -1) == 0) {
        pescador_count(&pescador_bytes, -(Py_ssize_t)context->size);
    }
}

static inline Py_ssize_t
pescador_most_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return 0;
    }
    return limit.rlim_cur > 1 << 18 ? 1 << 16 : (Py_ssize_t)(limit.rlim_cur / 4);
}

static inline Py_ssize_t
pescador_most_maps(void)
{
    /* The kernel's default, unless it tells. */
    long most = 65530;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    if (file != NULL) {
        if (fscanf(file, "%ld", &most) != 1) {
            most = 65530;
        }
        fclose(file);
    }
    return most / 4;
}

static inline int
pescador_write(int file, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(file, bytes, n);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return -1;
        }
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* A file of these bytes that nobody can change; -1 if there can be none. Its pages are there once
 * they are written: reading them cannot fail later. */
static inline int
pescador_open(pescador_context *context, const char *bytes)
{
    size_t n = context->size;
    int file = -1, high;
    if (pescador_count(&pescador_files, 1) > pescador_most_files()) {
        goto failed;
    }
    file = (int)syscall(SYS_memfd_create, "pescador", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* The low numbers are for those who call select(), which knows no others. */
    high = file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, FD_SETSIZE);
    if (high >= 0) {
        close(file);
        file = high;
    }
    if (file < 0 || pescador_write(file, bytes, n) < 0
            || fcntl(file, F_ADD_SEALS,
                     F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) {
        goto failed;
    }
    pescador_use(context);
    return file;
failed:
    if (file >= 0) {
        close(file);
    }
    pescador_count(&pescador_files, -1);
    return -1;
}

static inline void
pescador_close(pescador_context *context, int file)
{
    close(file);
    pescador_count(&pescador_files, -1);
    pescador_disuse(context);
}

/* A new private map of a file; NULL if there can be none. */
static inline void *
pescador_map(int file, size_t size, Py_ssize_t most)
{
    void *map;
    if (pescador_count(&pescador_maps, 1) > most) {
        map = MAP_FAILED;
    }
    else {
        map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    }
    if (map == MAP_FAILED) {
        pescador_count(&pescador_maps, -1);
        return NULL;
    }
    return map;
}

static inline int
pescador_is_map(const void *bytes)
{
    return (size_t)bytes % (size_t)sysconf(_SC_PAGESIZE) == 0;
}

/* Note whether a map was written all over: a page that is copied when it is first written to takes
 * several times as long as one that is copied with many others. */
static inline void
pescador_look_at(pescador_context *context, char *map)
{
    enum { LOOKS = 8, SAMPLES = 16 };
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int i, changed = 0, file;
    if (context->written + context->spared >= LOOKS) {
        return;
    }
    file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return;
    }
    for (i = 0; i < SAMPLES; i++) {
        uint64_t entry = 0;
        size_t at = (size_t)map / page + (2 * (size_t)i + 1) * (context->size / page) / (2 * SAMPLES);
        if (pread(file, &entry, sizeof entry, (off_t)(at * sizeof entry)) == sizeof entry) {
            /* In memory or swapped out, and no longer the file's. */
            changed += (entry >> 62) != 0 && !(entry >> 61 & 1);
        }
    }
    close(file);
    if (changed >= SAMPLES / 4) {
        context->written++;
    }
    else {
        context->spared++;
    }
}

static inline void
pescador_unmap(pescador_context *context, void *map)
{
    pescador_look_at(context, (char *)map);
    munmap(map, context->size);
    pescador_count(&pescador_maps, -1);
    pescador_disuse(context);
}

#else

static Py_ssize_t pescador_maps, pescador_files, pescador_bytes;

static inline void
pescador_use(pescador_context *context)
{
}

static inline Py_ssize_t
pescador_users(pescador_context *context)
{
    return 0;
}

static inline void
pescador_disuse(pescador_context *context)
{
}

static inline Py_ssize_t
pescador_most_maps(void)
{
    return 0;
}

static inline int
pescador_open(pescador_context *context, const char *bytes)
{
    return -1;
}

static inline void
pescador_close(pescador_context *context, int file)
{
}

static inline void *
pescador_map(int file, size_t size, Py_ssize_t most)
{
    return NULL;
}

static inline int
pescador_is_map(const void *bytes)
{
    return 0;
}

static inline void
pescador_unmap(pescador_context *context, void *map)
{
}

#endif

/* Ordinary memory, at an odd multiple of 64, with its size before it. */

#define PESCADOR_MARGIN 64

static inline void *
pescador_block_of(void *bytes)
{
    return ((void **)bytes)[-1];
}

static inline size_t
pescador_size_of(const pescador_context *context, void *bytes)
{
    return pescador_is_map(bytes) ? context->size : ((size_t *)bytes)[-2];
}

static void *
pescador_malloc(void *context, size_t size)
{
    char *block, *bytes;
    if (size > (size_t)PY_SSIZE_T_MAX - 3 * PESCADOR_MARGIN) {
        return NULL;
    }
    block = malloc(size + 3 * PESCADOR_MARGIN);
    if (block == NULL) {
        return NULL;
    }
    bytes = block + PESCADOR_MARGIN;
    bytes += (3 * PESCADOR_MARGIN - (size_t)bytes % (2 * PESCADOR_MARGIN)) % (2 * PESCADOR_MARGIN);
    ((void **)bytes)[-1] = block;
    ((size_t *)bytes)[-2] = size;
    return bytes;
}

static void *
pescador_calloc(void *context, size_t n, size_t each)
{
    void *bytes;
    if (each != 0 && n > (size_t)PY_SSIZE_T_MAX / each) {
        return NULL;
    }
    bytes = pescador_malloc(context, n * each);
    return bytes == NULL ? NULL : memset(bytes, 0, n * each);
}

static void
pescador_free(void *context, void *bytes, size_t size)
{
    if (bytes == NULL) {
        return;
    }
    if (pescador_is_map(bytes)) {
        pescador_unmap(context, bytes);
    }
    else {
        free(pescador_block_of(bytes));
    }
}

static void *
pescador_realloc(void *context, void *bytes, size_t size)
{
    size_t before = bytes == NULL ? 0 : pescador_size_of(context, bytes);
    void *moved = pescador_malloc(context, size);
    if (moved != NULL && bytes != NULL) {
        memcpy(moved, bytes, before < size ? before : size);
        pescador_free(context, bytes, before);
    }
    return moved;
}

static void
pescador_forget(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, "mem_handler"));
}

/* What the arrays of a snapshot tell NumPy about their memory. */
static inline PyObject *
pescador_handler_for(size_t size)
{
    PyObject *capsule;
    pescador_context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        return PyErr_NoMemory();
    }
    strcpy(context->handler.name, "pescador");
    context->handler.version = 1;
    context->handler.allocator.ctx = context;
    context->handler.allocator.malloc = pescador_malloc;
    context->handler.allocator.calloc = pescador_calloc;
    context->handler.allocator.realloc = pescador_realloc;
    context->handler.allocator.free = pescador_free;
    context->size = size;
    /* The handler is where its context is. */
    capsule = PyCapsule_New(&context->handler, "mem_handler", pescador_forget);
    if (capsule == NULL) {
        free(context);
    }
    return capsule;
}

static inline pescador_context *
pescador_context_of(PyObject *handler)
{
    return PyCapsule_GetPointer(handler, "mem_handler");
}

/* Whether an array has all of its values in its own memory, in a type that NumPy has always had. */
static inline int
pescador_holds_values(PyObject *array)
{
    PyArray_Descr *descr = PyArray_DESCR((PyArrayObject *)array);
    return PyDataType_ISLEGACY(descr) && !PyDataType_REFCHK(descr)
        && !PyDataType_FLAGCHK(descr, NPY_LIST_PICKLE);
}

static inline int
pescador_is_writeable(PyObject *array)
{
    return PyArray_ISWRITEABLE((PyArrayObject *)array);
}

static inline Py_ssize_t
pescador_size(PyObject *array)
{
    return PyArray_NBYTES((PyArrayObject *)array);
}

/* Whether copies are made in NumPy's own memory, not in that of somebody who wants them elsewhere. */
static inline int
pescador_is_own_memory(void)
{
    PyObject *handler = PyDataMem_GetHandler();
    int own = handler == PyDataMem_DefaultHandler;
    if (handler == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(handler);
    return own;
}

/* What ndarray.__deepcopy__ makes of an array that holds its values. */
static inline PyObject *
pescador_copied(PyObject *array)
{
    return PyArray_NewCopy((PyArrayObject *)array, NPY_KEEPORDER);
}

/* How the axes of an array lie in its memory. */
typedef struct {
    int n;
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
} pescador_layout;

/* Where the bytes of a copy of the array are, laid out as copy.deepcopy does. They are the array's
 * own if it is laid out like that; else those of `*kept`, a new reference. NULL with an error set. */
static inline const char *
pescador_laid_out(PyObject *value, pescador_layout *layout, PyObject **kept)
{
    PyArrayObject *array = (PyArrayObject *)value, *copy;
    int i, same = 1;
    /* Large memory costs next to nothing until it is touched. */
    *kept = PyArray_NewLikeArray(array, NPY_KEEPORDER, NULL, 0);
    if (*kept == NULL) {
        return NULL;
    }
    copy = (PyArrayObject *)*kept;
    layout->n = PyArray_NDIM(copy);
    for (i = 0; i < layout->n; i++) {
        layout->shape[i] = PyArray_DIM(copy, i);
        layout->strides[i] = PyArray_STRIDE(copy, i);
        same &= layout->shape[i] == 1 || layout->strides[i] == PyArray_STRIDE(array, i);
    }
    if (!same && PyArray_CopyInto(copy, array) < 0) {
        return NULL;
    }
    return PyArray_BYTES(same ? array : copy);
}

/* A copy of an array over a map of its values, which it owns from now on; NULL with an error set. */
static inline PyObject *
pescador_array_over(void *map, PyObject *array, PyObject *dtype, pescador_layout *layout,
                    PyObject *handler)
{
    PyObject *result;
    pescador_use(pescador_context_of(handler));
    Py_INCREF(dtype);
    result = PyArray_NewFromDescr(Py_TYPE(array), (PyArray_Descr *)dtype, layout->n, layout->shape,
                                  layout->strides, map, NPY_ARRAY_WRITEABLE, array);
    if (result == NULL) {
        pescador_unmap(pescador_context_of(handler), map);
        return NULL;
    }
    Py_INCREF(handler);
    Py_XSETREF(((PyArrayObject_fields *)result)->mem_handler, handler);
    PyArray_ENABLEFLAGS((PyArrayObject *)result, NPY_ARRAY_OWNDATA);
    return result;
}

#endif
