# The global random states of the process, np.random and random.

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from pescador._native.bitgen cimport bitgen_t
from pescador._native.dicts cimport next_value
from pescador._native.seeds cimport Seed
from pescador._rng cimport Mersenne

cdef struct Twisters:
    # What both generators would go on from.
    Mersenne numpy
    int has_gauss                      # whether np.random has a normal deviate left over
    double gauss
    Mersenne python


cdef struct Legacy:
    # Of a RandomState, NumPy's aug_bitgen_t: where it draws bits, and the deviate left over.
    bitgen_t* bits
    int has_gauss
    double gauss


cdef struct Python:
    # Of a random.Random, behind the head that all objects have.
    int index
    uint32_t[624] state


cdef Legacy* legacy                    # np.random's; NULL where the layout is not known
cdef Python* python                    # random's
cdef void* twister                     # how NumPy draws a double from MT19937, to know it by
cdef dict RANDOM_FIELDS                # attributes of the generator behind random's functions


cdef inline Mersenne* mersenne() noexcept:
    """The state behind np.random, or NULL: its bit generator may have been replaced."""
    if legacy is NULL or <void*>legacy.bits.next_double != twister:
        return NULL
    return <Mersenne*>legacy.bits.state


cdef struct Marks:
    # Enough of both states to tell whether anybody drew from them.
    uint64_t numpy, python
    int has_gauss
    PyObject* gauss_next


cdef int mark_slowly(Marks* marks) except -1


cdef inline PyObject* python_gauss() except? NULL:
    """The deviate that random.gauss has left over, or None; it is the first attribute."""
    cdef Py_ssize_t position = 0
    cdef PyObject* found = next_value(
        <PyObject*>RANDOM_FIELDS, &position, <PyObject*>"gauss_next")
    return found if found is not NULL else PyDict_GetItemWithError(RANDOM_FIELDS, "gauss_next")


cdef inline int mark(Marks* marks) except -1:
    """Note where both states are."""
    cdef Mersenne* words = mersenne()
    if words is NULL:
        return mark_slowly(marks)
    # A generator makes all of its words anew, or none. The first is the same for many seeds.
    marks.numpy = <uint64_t>words.key[1] << 32 | <uint32_t>words.pos
    marks.python = <uint64_t>python.state[1] << 32 | <uint32_t>python.index
    marks.has_gauss = legacy.has_gauss
    marks.gauss_next = python_gauss()
    return 0


cdef inline bint has_moved(const Marks* marks) except -1:
    """Whether anybody has drawn from either state, or seeded it, since it was marked."""
    cdef Marks now
    mark(&now)
    return (now.numpy != marks.numpy or now.python != marks.python
            or now.has_gauss != marks.has_gauss or now.gauss_next != marks.gauss_next)


cdef class GlobalStates:
    cdef bint governs_numpy, governs_python
    cdef Twisters own                  # of this visit, while its code does not run
    cdef object gauss_next             # as random.gauss keeps it
    cdef object bits, gauss            # of np.random, where it is no MT19937 in a known layout
    cdef object torch                  # the state of its CPU generator, or None
    cdef object callers_bits, callers_gauss, callers_python, callers_torch

    cdef int enter(self, Twisters* callers) except -1
    cdef int leave(self, Twisters* callers) except -1
    cdef int leave_some(self, Twisters* callers, bint numpy, bint python) except -1
    cdef int leave_torch(self) except -1
    cdef int enter_numpy(self, Twisters* callers) except -1
    cdef int leave_numpy(self, Twisters* callers) except -1
    cdef int leave_replaced(self, Twisters* callers) except -1
    cdef int enter_python(self, Twisters* callers) except -1
    cdef int leave_python(self, Twisters* callers) except -1
    cdef int exchange_gauss(self) except -1
    cdef PyObject* step(self, object iterator) except? NULL
    cpdef object call(self, object function, tuple args)
    cdef object digest(self)
    cpdef object as_plain(self)
    cpdef int take_plain(self, dict state) except -1


cdef GlobalStates seeded_states(Seed* seed, tuple governed)
cpdef int set_bits(object bits, dict state) except -1
