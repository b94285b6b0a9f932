# Fields and C entry points of _core.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t


cdef extern from "_native.h":
    object steal "pescador_steal" (PyObject* owned)


cdef int64_t UNBOUNDED                 # a bound that no stream reaches

cdef enum:
    # A loop over streams ends after so many passes in a row without a sample. One is not enough:
    # streams may be empty by chance, those that reject most of what they read, say.
    EMPTY_PASSES = 256


cdef enum Ending:
    # What happens when a started stream has given as many samples as it may.
    STEP_ONCE_MORE                     # its source is asked once more, as by a for loop
    STOP                               # nothing is read past what was given
    ENDS_ITSELF                        # it was told its bound and counts for itself


cdef class Scope:
    cdef readonly Scope parent         # the activation that this one happened in, or None
    cdef dict copies                   # id of a generator -> (it, the copy that stands for it here)
    cdef bint shares                   # whether any generator here or further out is shared
    cdef list live                     # shared generators that a mux here or further out draws from

    cdef int hold(self, object generator) except -1
    cpdef object find(self, object key)


cdef PyObject* next_item(object iterator) except? NULL
cdef object start(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies)
cpdef int64_t as_bound(object max_iter, bint round_up=*) except -1
