cimport numpy as cnp


cdef extern from "_native/arrays.h":
    cnp.ndarray new_array "pescador_new_array" (
        int ndim, const cnp.npy_intp* shape, cnp.dtype dtype)
    # The array keeps nothing alive: see cnp.set_array_base.
    cnp.ndarray array_at "pescador_array_at" (
        void* data, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides,
        cnp.dtype dtype, int flags)
    int pescador_resize(
        cnp.ndarray array, int axis, cnp.npy_intp rows, unsigned int domain) except -1
