"""The global random states of the process, ``np.random`` and `random`: watched, or exchanged.

Both are Mersenne Twisters. A visit that is seeded has states of its own; while its code runs, they
are in the place of the caller's. Copying memory does that in a fraction of a microsecond. Where the
states lie in memory is private to NumPy and Python: it is looked for once and tried out, and where
it is not as expected, their public functions are called instead.

docs/inside/states.rst explains it.
"""

import os
import random
import sys
import zlib

import numpy as np
from numpy.random import mtrand

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pescador._native.bitgen cimport bitgen_t
from pescador._native.iterators cimport next_item
from pescador._native.mersenne cimport mersenne_prepare, mersenne_seed
from pescador._native.seeds cimport Seed, seed_words
from pescador._rng cimport Mersenne
from pescador._seeds cimport take_entropy

cdef extern from "Python.h":
    ctypedef void* PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait) nogil
    void PyThread_release_lock(PyThread_type_lock lock) nogil
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds,
                                    int intr_flag) nogil
    unsigned long PyThread_get_thread_ident() nogil

mersenne_prepare()


# ------------------------------------------------------------------------------- the layouts


cdef object RANDOM = random._inst      # the generator behind the functions of the module
RANDOM_FIELDS = RANDOM.__dict__
cdef object NUMPY = mtrand._rand       # that behind the functions of np.random


cdef Legacy* legacy_of(object state) except? NULL:
    """Where a RandomState keeps the deviate that is left over; NULL if it cannot be found."""
    cdef char* memory = <char*><PyObject*>state
    cdef Py_ssize_t size = type(state).__basicsize__, i
    cdef Legacy* found
    # It begins with a pointer to a bitgen_t in the same object.
    for i in range(0, size - <Py_ssize_t>sizeof(Legacy), sizeof(void*)):
        found = <Legacy*>(memory + i)
        if memory <= <char*>found.bits < memory + size - <Py_ssize_t>sizeof(bitgen_t):
            return found
    return NULL


cdef bint numpy_is_known() except -1:
    """Whether a RandomState's parts lie in memory as is said here."""
    cdef object trial = np.random.RandomState(np.random.MT19937(7))
    cdef Legacy* found = legacy_of(trial)
    cdef bitgen_t* bits
    global twister
    if found is NULL:
        return False
    bits = <bitgen_t*>PyCapsule_GetPointer(trial._bit_generator.capsule, "BitGenerator")
    if found.bits.state != bits.state or found.bits.next_double != bits.next_double:
        return False
    for _ in range(3):
        _, key, pos, has_gauss, gauss = trial.get_state(legacy=True)
        if (found.has_gauss != has_gauss or found.gauss != gauss
                or (<Mersenne*>bits.state).pos != pos
                or (<char*>(<Mersenne*>bits.state).key)[:624 * 4] != key.tobytes()):
            return False
        trial.standard_normal()
    twister = <void*>bits.next_double
    return True


cdef Python* python_of(object state) except NULL:
    cdef Py_ssize_t head = object.__basicsize__
    return <Python*>(<char*><PyObject*>state + head)


cdef bint python_is_known() except -1:
    """Whether a random.Random's parts lie in memory as is said here."""
    cdef object trial = random.Random(7)
    cdef Python* found = python_of(trial)
    if sys.implementation.name != "cpython" or (
            random.Random.__base__.__basicsize__ < object.__basicsize__ + <int>sizeof(Python)):
        return False
    for _ in range(3):
        words = trial.getstate()[1]
        if found.index != words[624] or tuple([found.state[i] for i in range(624)]) != words[:624]:
            return False
        trial.random()
    return True


def use_layouts(bint wanted=True):
    """Exchange states by copying memory where that is known to be right; return whether it is.

    With False, public functions do it: for tests of the slow way.
    """
    global legacy, python
    legacy = NULL
    python = NULL
    if wanted and numpy_is_known() and python_is_known():
        legacy = legacy_of(NUMPY)
        python = python_of(RANDOM)
    return legacy is not NULL


use_layouts()


# -------------------------------------------------------------------------------- one at a time


cdef PyThread_type_lock lock = PyThread_allocate_lock()
cdef unsigned long owner = 0           # the thread that has the lock
cdef Py_ssize_t depth = 0              # how many times


cdef Py_ssize_t acquire() except -1:
    """Wait until no other thread runs code under exchanged states; return how deep this one is."""
    global owner, depth
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef int got
    if depth and owner == me:
        depth += 1
        return depth
    if not PyThread_acquire_lock(lock, 0):
        while True:
            with nogil:
                got = PyThread_acquire_lock_timed(lock, 50000, 1)
            if got == 1:
                break
            PyErr_CheckSignals()
    owner = me
    depth = 1
    return 1


cdef void release() noexcept:
    global depth
    depth -= 1
    if depth == 0:
        PyThread_release_lock(lock)


def _after_fork():
    """In a child process: only the thread that forked is there, whoever had the lock before."""
    global lock, depth
    if depth and owner != PyThread_get_thread_ident():
        # The states in place are those of another thread's visit. They are no less random.
        lock = PyThread_allocate_lock()
        depth = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ------------------------------------------------------------------------------------ watching


cdef int mark_slowly(Marks* marks) except -1:
    """Note where both states are, by public functions."""
    state = np.random.get_state(legacy=False)
    marks.numpy = zlib.crc32(repr(state["state"]).encode())
    if type(state["state"].get("key")) is np.ndarray:
        marks.numpy = zlib.crc32(state["state"]["key"].tobytes()) << 32 | state["state"]["pos"]
    marks.has_gauss = state["has_gauss"]
    words = RANDOM.getstate()[1]
    marks.python = <uint64_t>words[1] << 32 | <uint32_t>words[624]
    marks.gauss_next = python_gauss()
    return 0


# ---------------------------------------------------------------------------------- exchanging


cdef Twisters outermost                # the caller's, as they were last


cdef inline Twisters* place_for_callers(Twisters* nested) except NULL:
    """Where to keep the states that are in place now, until they are put back."""
    if acquire() == 1:
        return &outermost
    # A visit's own code runs another.
    memset(nested, 0, sizeof(Twisters))
    return nested


cdef inline void copy_words(uint32_t* to, const uint32_t* source) noexcept nogil:
    """Copy the words of a state, unless they are there already.

    A generator makes all of its words anew, or none: a few of them tell.
    """
    if (to[0] != source[0] or to[1] != source[1] or to[397] != source[397]
            or to[623] != source[623]):
        memcpy(to, source, 624 * sizeof(uint32_t))


cdef object BITS = None                # np.random's bit generator when it was last looked at
cdef void* BITS_STATE = NULL           # its state


cdef object numpy_bits(Mersenne* words):
    """The bit generator behind np.random, whose state is known to be at `words`."""
    global BITS, BITS_STATE
    if words is NULL or BITS_STATE != words:
        BITS = mtrand.get_bit_generator()
        BITS_STATE = words
    return BITS


cdef object numpy_gauss():
    """The deviate that np.random has left over, or None."""
    state = np.random.get_state(legacy=False)
    return state["gauss"] if state["has_gauss"] else None


cpdef int put_numpy(bits, gauss) except -1:
    """Have np.random draw from a bit generator, with this deviate left over."""
    mtrand.set_bit_generator(bits)
    if gauss is not None:
        state = np.random.get_state(legacy=False)
        np.random.set_state({**state, "has_gauss": 1, "gauss": gauss})
    return 0


cdef GlobalStates seeded_states(Seed* seed, tuple governed):
    """The states that a visit starts from: the eight words of its seed, four for each."""
    cdef GlobalStates states = GlobalStates.__new__(GlobalStates)
    cdef uint32_t[8] words
    cdef uint32_t n = 4
    states.governs_numpy = "numpy" in governed
    states.governs_python = "random" in governed
    seed_words(seed, words)
    # Python takes a number, which has no leading zeros.
    while n > 1 and words[3 + n] == 0:
        n -= 1
    mersenne_seed(states.own.numpy.key, words, 4, states.own.python.key, words + 4, n)
    states.own.numpy.pos = states.own.python.pos = 624
    if "torch" in governed:
        generator = torch_module().Generator()
        generator.manual_seed(words[0] | <unsigned long long>words[1] << 32)
        states.torch = generator.get_state()
    return states


cdef object TORCH = None


cdef object torch_module():
    """The module torch, which a worker has not imported yet.

    It is kept: at the end of the process, generators are closed when modules are gone.
    """
    global TORCH
    if TORCH is None:
        import torch
        TORCH = torch
    return TORCH


cdef class GlobalStates:
    """The states of ``np.random`` and `random` that one visit draws from.

    While code of the visit runs, they are in the place of the caller's.
    """

    cdef int enter(self, Twisters* callers) except -1:
        """Put these states in place; the caller's go to `callers` and to attributes."""
        cdef bint numpy = False, python = False
        try:
            if self.governs_numpy:
                self.enter_numpy(callers)
                numpy = True
            if self.governs_python:
                self.enter_python(callers)
                python = True
            if self.torch is not None:
                self.callers_torch = TORCH.get_rng_state()
                TORCH.set_rng_state(self.torch)
        except BaseException:
            # A signal has met a function of Python's or torch's.
            own, self.torch = self.torch, None
            try:
                if self.callers_torch is not None:
                    TORCH.set_rng_state(self.callers_torch)
            finally:
                self.leave_some(callers, numpy, python)
                self.torch, self.callers_torch = own, None
            raise
        return 0

    cdef int leave(self, Twisters* callers) except -1:
        """Put the caller's states back; those of the visit are kept."""
        return self.leave_some(callers, self.governs_numpy, self.governs_python)

    cdef int leave_some(self, Twisters* callers, bint numpy, bint python) except -1:
        """Put back those that were exchanged, each of them whether or not another fails."""
        try:
            if numpy:
                self.leave_numpy(callers)
        finally:
            try:
                if python:
                    self.leave_python(callers)
            finally:
                try:
                    if self.torch is not None:
                        self.leave_torch()
                finally:
                    release()
        return 0

    cdef int leave_torch(self) except -1:
        try:
            self.torch = TORCH.get_rng_state()
        finally:
            TORCH.set_rng_state(self.callers_torch)
            self.callers_torch = None
        return 0

    cdef inline int enter_numpy(self, Twisters* callers) except -1:
        cdef Mersenne* words = mersenne()
        self.callers_bits = numpy_bits(words)
        if words is NULL or self.bits is not None:
            if self.bits is None:
                self.bits = np.random.MT19937()
                self.bits.state = {"bit_generator": "MT19937", "state": numpy_words(&self.own)}
                self.gauss = self.own.gauss if self.own.has_gauss else None
            self.callers_gauss = numpy_gauss()
            put_numpy(self.bits, self.gauss)
            return 0
        copy_words(callers.numpy.key, words.key)
        callers.numpy.pos = words.pos
        callers.has_gauss = legacy.has_gauss
        callers.gauss = legacy.gauss
        copy_words(words.key, self.own.numpy.key)
        words.pos = self.own.numpy.pos
        legacy.has_gauss = self.own.has_gauss
        legacy.gauss = self.own.gauss
        return 0

    cdef inline int leave_numpy(self, Twisters* callers) except -1:
        cdef Mersenne* words = mersenne()
        if self.bits is None and words is not NULL and BITS_STATE == words:
            copy_words(self.own.numpy.key, words.key)
            self.own.numpy.pos = words.pos
            self.own.has_gauss = legacy.has_gauss
            self.own.gauss = legacy.gauss
            copy_words(words.key, callers.numpy.key)
            words.pos = callers.numpy.pos
            legacy.has_gauss = callers.has_gauss
            legacy.gauss = callers.gauss
        else:
            self.leave_replaced(callers)
        self.callers_bits = None
        return 0

    cdef int leave_replaced(self, Twisters* callers) except -1:
        """Leave where np.random has another bit generator: the visit's own, or one it was given."""
        if self.bits is None:
            # The visit's code has replaced the caller's, whose state was exchanged.
            self.callers_gauss = callers.gauss if callers.has_gauss else None
            self.callers_bits.state = {"bit_generator": "MT19937", "state": numpy_words(callers)}
        self.bits = mtrand.get_bit_generator()
        self.gauss = numpy_gauss()
        return put_numpy(self.callers_bits, self.callers_gauss)

    cdef inline int enter_python(self, Twisters* callers) except -1:
        if python is NULL:
            self.callers_python = RANDOM.getstate()
            RANDOM.setstate((3, python_words(&self.own), self.gauss_next))
            return 0
        callers.python.pos = python.index
        copy_words(callers.python.key, python.state)
        python.index = self.own.python.pos
        copy_words(python.state, self.own.python.key)
        self.exchange_gauss()
        return 0

    cdef inline int leave_python(self, Twisters* callers) except -1:
        if python is NULL:
            try:
                _, (*key, pos), self.gauss_next = RANDOM.getstate()
                take_words(&self.own.python, key, pos)
            finally:
                RANDOM.setstate(self.callers_python)
                self.callers_python = None
            return 0
        self.own.python.pos = python.index
        copy_words(self.own.python.key, python.state)
        python.index = callers.python.pos
        copy_words(python.state, callers.python.key)
        self.exchange_gauss()
        return 0

    cdef inline int exchange_gauss(self) except -1:
        """Exchange the deviates that random.gauss has left over, which are seldom there."""
        cdef PyObject* found = python_gauss()
        if found is NULL or found == <PyObject*>self.gauss_next:
            return 0
        there = <object>found
        RANDOM_FIELDS["gauss_next"] = self.gauss_next
        self.gauss_next = there
        return 0

    cdef PyObject* step(self, object iterator) except? NULL:
        """The next item of an iterator, under these states; NULL at its end."""
        cdef Twisters nested
        cdef Twisters* callers = place_for_callers(&nested)
        cdef PyObject* item
        self.enter(callers)
        try:
            item = next_item(iterator)
        finally:
            self.leave(callers)
        return item

    cpdef object call(self, object function, tuple args):
        """What a function returns, under these states."""
        cdef Twisters nested
        cdef Twisters* callers = place_for_callers(&nested)
        self.enter(callers)
        try:
            return function(*args)
        finally:
            self.leave(callers)

    # A state of these, in plain values.

    cdef object digest(self):
        """What tells whether another has drawn as much, in a few words."""
        torch = [] if self.torch is None else [zlib.crc32(self.torch.numpy())]
        if self.bits is not None:
            return [zlib.crc32(repr(self.bits.state).encode()), *torch]
        return [self.own.numpy.pos, self.own.numpy.key[0], self.own.numpy.key[623],
                self.own.has_gauss, self.own.python.pos, self.own.python.key[0],
                self.own.python.key[623], self.gauss_next, *torch]

    cpdef object as_plain(self):
        """The states of this visit as they are now."""
        if self.bits is None:
            numpy = {"bit_generator": "MT19937", "state": numpy_words(&self.own)}
            gauss = self.own.gauss if self.own.has_gauss else None
        else:
            numpy, gauss = self.bits.state, self.gauss
        return {"numpy": numpy, "gauss": gauss, "python": np.array(python_words(&self.own), "u4"),
                "gauss_next": self.gauss_next, "torch": None if self.torch is None
                else self.torch.numpy().copy()}

    cpdef int take_plain(self, dict state) except -1:
        """Go on from such states."""
        if state["numpy"]["bit_generator"] == "MT19937":
            words = state["numpy"]["state"]
            take_words(&self.own.numpy, words["key"], words["pos"])
            self.own.has_gauss = state["gauss"] is not None
            self.own.gauss = 0.0 if state["gauss"] is None else state["gauss"]
            self.bits = None
        else:
            kind = getattr(np.random, state["numpy"]["bit_generator"])
            self.bits = kind()
            set_bits(self.bits, state["numpy"])
            self.gauss = state["gauss"]
        *key, pos = state["python"]
        take_words(&self.own.python, key, pos)
        self.gauss_next = state["gauss_next"]
        if self.torch is not None and state["torch"] is not None:
            self.torch = TORCH.from_numpy(np.array(state["torch"]))
        return 0


cpdef int set_bits(object bits, dict state) except -1:
    """Have a bit generator go on from a state; NumPy takes any place in its words."""
    if not 0 <= state.get("buffer_pos", 0) <= 4:
        raise ValueError(f"buffer_pos={state['buffer_pos']} of a bit generator must be 0 to 4")
    if state["bit_generator"] == "MT19937" and not 0 <= state["state"]["pos"] <= 624:
        raise ValueError(f"pos={state['state']['pos']} of a Mersenne Twister must be 0 to 624")
    bits.state = state
    return 0


cdef dict numpy_words(Twisters* own):
    return {"key": np.array(<uint32_t[:624]>own.numpy.key), "pos": own.numpy.pos}


cdef int take_words(Mersenne* to, key, pos) except -1:
    cdef const uint32_t[::1] words = np.ascontiguousarray(key, np.uint32)
    if len(words) != 624 or not 0 <= pos <= 624:
        raise ValueError("a Mersenne Twister has 624 words and is at one of them, or at the end")
    memcpy(to.key, &words[0], sizeof(to.key))
    to.pos = pos
    return 0


cdef tuple python_words(Twisters* own):
    return (*[own.python.key[i] for i in range(624)], own.python.pos)


def runs_under(sequence, function, governed=("numpy", "random")):
    """Call a function again and again under the states of a seed; yield what it returns."""
    cdef Seed seed
    take_entropy(&seed, sequence)
    cdef GlobalStates states = seeded_states(&seed, governed)
    while True:
        yield states.call(function, ())
