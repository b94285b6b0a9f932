/* Making arrays over memory of one's own, and giving more room to one that nobody else has seen. */
#pragma once

#include <Python.h>
#include <numpy/arrayobject.h>

/* An array over memory that exists; NULL for strides means C order. NumPy takes over a reference to
 * the dtype. */
static inline PyObject *
pescador_array_at(void *data, int ndim, const npy_intp *shape, const npy_intp *strides,
                  PyArray_Descr *dtype, int flags)
{
    Py_INCREF(dtype);
    return PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, strides, data, flags, NULL);
}

/* A new array in C order, with nothing written to it; not of objects. */
static inline PyObject *
pescador_new_array(int ndim, const npy_intp *shape, PyArray_Descr *dtype)
{
    return pescador_array_at(NULL, ndim, shape, NULL, dtype, 0);
}

/* Change how many rows an array has along an axis, and its memory with it. The array owns that, is
 * contiguous in C order, and nothing else refers to either. ndarray.resize would write zeros all over
 * what is new: pages that may never be needed, or will be written anyway. `domain` is NumPy's in
 * tracemalloc. If memory runs out: -1 with an exception, and the array as it was. */
static inline int
pescador_resize(PyArrayObject *array, int axis, npy_intp rows, unsigned int domain)
{
    PyArrayObject_fields *fields = (PyArrayObject_fields *)array;
    PyDataMem_Handler *handler = PyCapsule_GetPointer(PyArray_HANDLER(array), "mem_handler");
    npy_intp before = PyArray_DIM(array, axis), stride = PyArray_ITEMSIZE(array);
    size_t size, new_size;
    void *data;
    int i;
    if (handler == NULL) {
        return -1;
    }
    size = (size_t)PyArray_NBYTES(array);
    fields->dimensions[axis] = rows;
    new_size = (size_t)PyArray_NBYTES(array);
    /* First: handlers may be traced themselves, and the new memory be counted beside the old. */
    PyTraceMalloc_Untrack(domain, (uintptr_t)fields->data);
    data = handler->allocator.realloc(
        handler->allocator.ctx, fields->data, new_size > 0 ? new_size : 1);
    if (data == NULL) {
        fields->dimensions[axis] = before;
        PyTraceMalloc_Track(domain, (uintptr_t)fields->data, size);
        PyErr_NoMemory();
        return -1;
    }
    PyTraceMalloc_Track(domain, (uintptr_t)data, new_size);
    fields->data = data;
    for (i = PyArray_NDIM(array) - 1; i >= 0; i--) {
        fields->strides[i] = stride;
        stride *= fields->dimensions[i] > 0 ? fields->dimensions[i] : 1;
    }
    PyArray_UpdateFlags(array, NPY_ARRAY_UPDATE_ALL);
    return 0;
}
