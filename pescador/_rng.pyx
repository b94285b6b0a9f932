"""Random numbers, bit for bit as NumPy draws them, and sums rounded as NumPy rounds them.

It knows no other room.

docs/inside/draws.rst explains it.
"""

import operator
import types

import numpy as np
from numpy.random import mtrand

from pescador.exceptions import PescadorError

cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.math cimport INFINITY, exp, floor, frexp, ldexp, log, sqrt
from libc.stdint cimport INT64_MAX, int64_t

from pescador._native.bounds cimport AT
from pescador._native.memory cimport zeros
from pescador._native.seeds cimport bits_masked

cnp.import_array()


# ------------------------------------------------------------------------------------- sums


# np.sum adds up pairwise within parts of this size, and the parts in order. Up to NumPy 2.2, that
# is 8192, the size of its buffer; from 2.3 on, there is one part.
cdef Py_ssize_t SUM_PART = PY_SSIZE_T_MAX


cdef double pairwise_part(const double* values, Py_ssize_t n) noexcept nogil:
    cdef double lanes[8]
    cdef double total
    cdef Py_ssize_t i, j, half
    if n < 8:
        total = 0.0
        for i in range(n):
            total += values[i]
        return total
    if n <= 128:
        for j in range(8):
            lanes[j] = values[j]
        for i in range(8, n - n % 8, 8):
            for j in range(8):
                lanes[j] += values[i + j]
        total = (((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]))
                 + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7])))
        for i in range(n - n % 8, n):
            total += values[i]
        return total
    half = first_half(n)
    return pairwise_part(values, half) + pairwise_part(values + half, n - half)


cdef class Sums:
    """The sum of n values as np.sum rounds it, kept up to date as single values change.

    It is a binary tree that is split where np.sum splits. After a change, one leaf of at most 128
    values is summed again, and the nodes above it.
    """

    def __cinit__(self, Py_ssize_t n):
        cdef Py_ssize_t size
        self.n = n
        self.part = max(min(n, SUM_PART), 1)
        self.n_parts = max((n - 1) // self.part + 1, 1)
        # The second half is at least as large as the first, so it leads to the deepest leaf.
        self.width = 2
        size = self.part
        while size > 128:
            size -= first_half(size)
            self.width *= 2
        self.cells = <double*>zeros(self.n_parts * self.width, sizeof(double))

    def __dealloc__(self):
        PyMem_Free(self.cells)

    cdef double sum_up(self, const double* values) noexcept nogil:
        """Return the sum of these values, which `update` reads again."""
        cdef Py_ssize_t j
        self.values = values
        for j in range(self.n_parts):
            self.fill(self.cells + j * self.width, 1, values + j * self.part, self.size_of(j))
        return self.total()

    cdef inline Py_ssize_t size_of(self, Py_ssize_t j) noexcept nogil:
        return min(self.part, self.n - j * self.part)

    cdef double fill(self, double* cells, Py_ssize_t node, const double* values,
                     Py_ssize_t size) noexcept nogil:
        cdef Py_ssize_t half
        if size > 128:
            half = first_half(size)
            cells[node] = (self.fill(cells, 2 * node, values, half)
                           + self.fill(cells, 2 * node + 1, values + half, size - half))
        else:
            cells[node] = pairwise_part(values, size)
        return cells[node]

    cdef double total(self) noexcept nogil:
        cdef double total = 0.0
        cdef Py_ssize_t j
        for j in range(self.n_parts):
            total += self.cells[j * self.width + 1]
        return total

    cdef double update(self, Py_ssize_t i) noexcept nogil:
        """Return the sum after value i has changed."""
        cdef Py_ssize_t j = i // self.part, node = 1, half
        cdef Py_ssize_t start = j * self.part, size = self.size_of(j)
        cdef double* cells = self.cells + j * self.width
        while size > 128:
            half = first_half(size)
            node *= 2
            if i < start + half:
                size = half
            else:
                node += 1
                start += half
                size -= half
        cells[node] = pairwise_part(self.values + start, size)
        while node > 1:
            node //= 2
            cells[node] = cells[2 * node] + cells[2 * node + 1]
        return self.total()


cdef double repeated_sum(double v, int64_t n) noexcept nogil:
    """``v + v + ... + v``, n terms added one after the other, with all of its rounding.

    Between two powers of two, doubles are equally spaced, so that each further term adds the same
    rounded amount: the steps up to the next power of two are one multiplication. (Only a first
    step may differ: of a term that ends in half a unit, it is rounded to even.)
    """
    cdef double s = v, top, step, steps
    cdef int exponent = 0
    if n <= 0:
        return 0.0
    n -= 1
    while n > 0:
        s += v
        n -= 1
        frexp(s, &exponent)
        top = ldexp(1.0, exponent)
        if n == 0 or s + v >= top:
            continue
        s += v
        n -= 1
        if n == 0 or s + v >= top:
            continue
        step = (s + v) - s
        steps = floor((top - v - s) / step) - 1.0
        if steps > n:
            steps = <double>n
        if steps > 0.0:
            s += steps * step
            n -= <int64_t>steps
    return s


def find_part():
    """Find out in which parts the installed NumPy takes its sums."""
    global SUM_PART
    samples = [10.0 ** np.random.RandomState(seed).uniform(-18, 0, 20_011) for seed in range(4)]
    for part in (PY_SSIZE_T_MAX, 8192):
        SUM_PART = part
        if all([sum_of(values) == np.sum(values) for values in samples]):
            return
    raise ImportError("np.sum rounds in a way that this build of pescador does not know; "
                      f"please report it with the version of NumPy, {np.__version__}")


def sum_of(values):
    """Return the pairwise sum of a float64 vector, for tests that hold it against np.sum."""
    values = np.require(values, np.float64, "C")
    return Sums(len(values)).sum_up(<const double*>cnp.PyArray_DATA(values)) if len(values) else 0.0


def are_weights(values, Py_ssize_t n):
    """Tell whether this is a float64[n] of finite numbers, 0 or more, of a positive, finite sum.

    False may also mean that it is not an array in C order, and has to be looked at in Python.
    """
    cdef Py_buffer view
    cdef Py_ssize_t i
    cdef double total = 0.0
    cdef bint good = True
    if not (type(values) is np.ndarray and values.dtype == np.float64 and values.shape == (n,)
            and values.flags.c_contiguous):
        return False
    PyObject_GetBuffer(values, &view, PyBUF_SIMPLE)
    for i in range(n):
        # False for NaN, too.
        good = good and 0.0 <= (<double*>view.buf)[i]
        total += (<double*>view.buf)[i]
    PyBuffer_Release(&view)
    return good and 0.0 < total < INFINITY


def repeated_sum_of(double v, int64_t n):
    """Return the sum of n times v added in order, for tests that hold it against a loop."""
    return repeated_sum(v, n)


find_part()


# ------------------------------------------------------------------------------------ draws


cdef extern from "Python.h":
    ctypedef struct PyGetSetDef:
        object (*get)(object instance, void* closure)
        void* closure
    ctypedef struct PyGetSetDescrObject:
        PyGetSetDef* d_getset


# NumPy's own. They draw doubles from 0 to below 1, and do not give the same one for ever.
BIT_GENERATORS = frozenset({
    np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64,
})
cdef frozenset KNOWN = BIT_GENERATORS
cdef type MT19937 = np.random.MT19937

# Reads the bit generator of a RandomState without looking up the name.
cdef PyGetSetDef* BIT_GENERATOR = NULL
if type(np.random.RandomState._bit_generator) is types.GetSetDescriptorType:
    BIT_GENERATOR = (<PyGetSetDescrObject*><PyObject*>np.random.RandomState._bit_generator).d_getset


cdef inline bitgen_t* bits_of(object bit_generator) except NULL:
    return <bitgen_t*>PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")


cdef bint mersenne_is_known() except *:
    """Whether the state of this NumPy's MT19937 is laid out as `Mersenne`."""
    bits = MT19937(1)
    bits.random_raw(7)
    cdef Mersenne* here = <Mersenne*>bits_of(bits).state
    state = bits.state["state"]
    return (here.pos == state["pos"] != 624
            and (<char*>here.key)[:sizeof(here.key)] == state["key"].tobytes())


cdef bint MERSENNE_IS_KNOWN = mersenne_is_known()


cdef Mersenne* mersenne_of(object bit_generator) except? NULL:
    """The state of an MT19937; NULL of others, and if this NumPy's is not laid out as declared."""
    if MERSENNE_IS_KNOWN and type(bit_generator) is MT19937:
        return <Mersenne*>bits_of(bit_generator).state
    return NULL


cdef class Uniform:
    """The doubles in [0, 1) that ``generator.random_sample()`` would give, in its order.

    Parameters
    ----------
    generator : np.random, RandomState or Generator
        What to draw for.
    shared : bool
        Whether others hold this RandomState. They may draw from it in another thread, or give it
        another bit generator. ``np.random`` is always shared.
    """

    def __cinit__(self, generator, bint shared=False):
        self.generator = generator
        if generator is np.random or shared:
            self.owner = mtrand._rand if generator is np.random else generator
            self.use(self.owner._bit_generator)
        elif isinstance(generator, np.random.RandomState):
            self.use(generator._bit_generator)
        else:
            self.use(generator.bit_generator)

    cdef int use(self, bit_generator) except -1:
        """Draw from a bit generator from now on."""
        self.bits = bits_of(bit_generator)
        self.bit_generator = bit_generator
        self.lock = None if self.owner is None else bit_generator.lock
        self.is_known = type(bit_generator) in KNOWN
        self.words = mersenne_of(bit_generator)
        self.needs_care = self.owner is not None or not self.is_known
        return 0

    cdef int refresh(self) except -1:
        """Use the bit generator that the owner has now."""
        if BIT_GENERATOR is NULL:
            bit_generator = self.owner._bit_generator
        else:
            bit_generator = BIT_GENERATOR.get(self.owner, BIT_GENERATOR.closure)
        if bit_generator is not self.bit_generator:
            self.use(bit_generator)
        return 0


def peeks_at(generator, n_draws, later):
    """Return what `peek` says before each of `n_draws` draws, for tests."""
    uniform = Uniform(generator)
    result = []
    for _ in range(n_draws):
        result.append(peek(uniform, later))
        draw(uniform)
    return result


cdef double draw_with_care(Uniform uniform) except? -1.0:
    cdef double u = 0.0
    if uniform.owner is not None:
        uniform.refresh()
    # Another thread may be filling an array from the same generator, without the GIL but with its
    # lock. If there is only this thread, none is.
    if uniform.lock is not None and pescador_threaded():
        with uniform.lock:
            u = uniform.bits.next_double(uniform.bits.state)
    else:
        u = uniform.bits.next_double(uniform.bits.state)
    if not (uniform.is_known or 0.0 <= u < 1.0):
        raise PescadorError(f"the bit generator {uniform.bit_generator!r} gave the double {u!r}; "
                            "it must be at least 0 and below 1")
    return u


cdef int64_t draw_below(Uniform uniform, int64_t n) except -1:
    """``randint(n)`` of a RandomState with a bit generator of NumPy's own."""
    if uniform.lock is not None and pescador_threaded():
        with uniform.lock:
            return bits_masked(uniform.bits, n)
    return bits_masked(uniform.bits, n)


cpdef Py_ssize_t as_index(value, Py_ssize_t n, method) except -1:
    """Return what a generator's method drew from n choices, if it is an index below n."""
    try:
        i = operator.index(value)
    except TypeError:
        i = -1
    if 0 <= i < n:
        return i
    raise PescadorError(f"{method!r} of a random generator gave {value!r} where it had to choose a "
                        f"whole number from 0 to {n - 1}")


cpdef int64_t drawn_count(method, tuple args) except -1:
    """Return what a generator's method draws, if it is a count."""
    try:
        count = method(*args)
    except (ValueError, OverflowError) as error:
        raise PescadorError(f"rate is too large, or a weight no share: {method!r}{args} cannot be "
                            f"drawn: {error}") from error
    if isinstance(count, (int, np.integer)) and 0 <= count < INT64_MAX:
        return count
    raise PescadorError(f"{method!r} of a random generator gave {count!r} where it had to draw a "
                        "whole number, 0 or more")


cdef class Counts:
    """``generator.poisson(mean)`` and ``generator.binomial(n, p)``, draw by draw.

    A call of these methods takes longer than opening a stream. Two of NumPy's algorithms are
    repeated here: multiplying uniform draws [1]_ (for a Poisson mean below 10), and inversion [2]_
    (for a binomial n p of at most 30; frozen in RandomState). Otherwise, the methods are called.

    .. [1] Knuth, D. E. (1981). The Art of Computer Programming, volume 2, 3.4.1.
    .. [2] Kachitvichyanukul, V. and Schmeiser, B. W. (1988). Binomial random variate generation.
       Communications of the ACM 31, 216-222.
    """

    def __cinit__(self, Uniform uniform, double mean):
        self.uniform = uniform
        generator = uniform.generator
        self.poisson_method = generator.poisson
        self.binomial_method = generator.binomial
        self.own_binomial = not isinstance(generator, np.random.Generator)
        self.mean = mean
        self.least = exp(-mean)
        self.n = -1

    cdef int64_t poisson(self) except -1:
        cdef int64_t count = 0
        cdef double product
        if self.mean >= 10.0 or not is_known(self.uniform):
            return drawn_count(self.poisson_method, (self.mean,))
        if self.mean == 0.0:
            return 0
        product = draw(self.uniform)
        while product > self.least:
            count += 1
            product *= draw(self.uniform)
        return count

    cdef int64_t binomial(self, double n, double p) except -1:
        """A binomial count; n is rounded down."""
        cdef int64_t count = 0
        cdef double u
        if not (self.own_binomial and 0.0 <= p <= 1.0 and 0.0 <= n <= 1e15
                and n * min(p, 1.0 - p) <= 29.0 and is_known(self.uniform)):
            return drawn_count(self.binomial_method, (int(n), p))
        if self.n != <int64_t>n or self.p != p:
            self.set_binomial(<int64_t>n, p)
        u = draw(self.uniform)
        while u > self.terms[AT(count, 100)]:
            u -= self.terms[count]
            count += 1
            if count > self.most:
                count = 0
                u = draw(self.uniform)
        return self.n - count if self.flipped else count

    cdef int set_binomial(self, int64_t n, double p) except -1:
        cdef double q, mean
        cdef int64_t i
        self.n = n
        self.p = p
        self.flipped = p > 0.5
        if self.flipped:
            p = 1.0 - p
        q = 1.0 - p
        mean = n * p
        self.most = <int64_t>min(<double>n, mean + 10.0 * sqrt(mean * q + 1.0))
        self.terms[0] = exp(n * log(q))
        for i in range(1, self.most + 1):
            self.terms[AT(i, 100)] = ((n - i + 1) * p * self.terms[i - 1]) / (i * q)
        return 0


def counts_of(generator, n_draws, mean=None, n=None, p=None):
    """Return `n_draws` counts, for tests that hold them against the generator's own."""
    counts = Counts(Uniform(generator), 0.0 if mean is None else mean)
    if mean is None:
        return [counts.binomial(n, p) for _ in range(n_draws)]
    return [counts.poisson() for _ in range(n_draws)]
