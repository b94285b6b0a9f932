"""Slices that lie in several chunks, put together from what each chunk has of them.

It knows no format and no file.

docs/inside/sources.rst explains it.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t

from pescador._native.arrays cimport array_at
from pescador._native.copy cimport pescador_copy

cnp.import_array()


def copy_slices(cnp.ndarray to not None, cnp.ndarray chunk not None, const int64_t[::1] begins,
                int axis):
    """Copy what a chunk has of slices along an axis.

    Parameters
    ----------
    to : ndarray, shape=(n, ...)
        The slices, of one length; writeable, and not of objects.
    chunk : ndarray
        Of their dtype and, along the other axes, of their shape.
    begins : array of int64, shape=(n,)
        Where in the chunk each slice begins: before it, if negative. Those that do not meet it, and
        what is beyond it, are left out.
    axis : int >= 0
        Of the chunk.
    """
    cdef int ndim = cnp.PyArray_NDIM(chunk), j
    if not 0 <= axis < ndim or cnp.PyArray_NDIM(to) != ndim + 1 or (
            to.dtype != chunk.dtype or cnp.PyArray_DIM(to, 0) != begins.shape[0]) or (
            # Bytes are copied, without references.
            to.dtype.hasobject or not cnp.PyArray_ISWRITEABLE(to)):
        raise ValueError(
            f"slices of {(<object>to).shape} {to.dtype} do not fit {len(begins)} of a chunk of "
            f"{(<object>chunk).shape} {chunk.dtype} along axis {axis}")
    cdef cnp.npy_intp[cnp.NPY_MAXDIMS] shape
    cdef cnp.npy_intp* strides = cnp.PyArray_STRIDES(chunk)
    cdef cnp.npy_intp* to_strides = cnp.PyArray_STRIDES(to)
    cdef cnp.npy_intp size = cnp.PyArray_DIM(chunk, axis)
    cdef cnp.npy_intp length = cnp.PyArray_DIM(to, axis + 1)
    cdef cnp.npy_intp step = to_strides[axis + 1], row = cnp.PyArray_ITEMSIZE(chunk)
    cdef int64_t begin, first, stop
    cdef Py_ssize_t i
    cdef char* source
    cdef char* target
    # Whether what lies between two numbers of the axis is one piece of memory in both.
    cdef bint is_whole = True
    for j in range(ndim - 1, -1, -1):
        shape[j] = cnp.PyArray_DIM(chunk, j)
        if j == axis:
            is_whole = is_whole and strides[j] == step == row
        elif cnp.PyArray_DIM(to, j + 1) != shape[j]:
            raise ValueError(f"slices of shape {(<object>to).shape} do not fit a chunk of "
                             f"{(<object>chunk).shape} along axis {axis}")
        elif shape[j] != 1:
            is_whole = is_whole and j > axis and strides[j] == to_strides[j + 1] == row
            row *= shape[j]
    for i in range(begins.shape[0]):
        begin = begins[i]
        first = max(begin, 0)
        stop = min(begin + length, size)
        if stop <= first:
            continue
        source = cnp.PyArray_BYTES(chunk) + first * strides[axis]
        target = cnp.PyArray_BYTES(to) + i * to_strides[0] + (first - begin) * step
        if is_whole:
            pescador_copy(target, source, (stop - first) * row, False)
            continue
        shape[axis] = stop - first
        # Neither outlives the arrays that they are parts of.
        cnp.PyArray_CopyInto(
            array_at(target, ndim, shape, to_strides + 1, to.dtype, cnp.NPY_ARRAY_WRITEABLE),
            array_at(source, ndim, shape, strides, chunk.dtype, 0))
