# The global random states of the process, np.random and random.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from pescador._bitgen cimport Mersenne
from pescador._seeds cimport Seed


cdef struct Twisters:
    # What both generators would go on from.
    Mersenne numpy
    int has_gauss                      # whether np.random has a normal deviate left over
    double gauss
    Mersenne python


cdef struct Marks:
    # Enough of both states to tell whether anybody drew from them.
    int pos
    uint32_t[2] key
    int has_gauss
    int python_pos
    uint32_t[2] python_key
    PyObject* gauss_next


cdef class GlobalStates:
    cdef bint governs_numpy, governs_python
    cdef Twisters own                  # of this visit, while its code does not run
    cdef object gauss_next             # as random.gauss keeps it
    cdef object bits, gauss            # of np.random, where it is no MT19937 in a known layout
    cdef object torch                  # the state of its CPU generator, or None
    cdef object callers_bits, callers_gauss, callers_python, callers_torch

    cdef int enter(self, Twisters* callers) except -1
    cdef int leave(self, Twisters* callers) except -1
    cdef int enter_numpy(self, Twisters* callers) except -1
    cdef int leave_numpy(self, Twisters* callers) except -1
    cdef int leave_replaced(self, Twisters* callers) except -1
    cdef int enter_python(self, Twisters* callers) except -1
    cdef int leave_python(self, Twisters* callers) except -1
    cdef int exchange_gauss(self) except -1
    cdef PyObject* step(self, object iterator) except? NULL
    cdef object call(self, object function, tuple args)
    cdef object digest(self)
    cdef object as_plain(self)
    cdef int take_plain(self, dict state) except -1


cdef GlobalStates seeded_states(Seed* seed, tuple governed)
cdef int mark(Marks* marks) except -1
cdef bint has_moved(Marks* marks) except -1
