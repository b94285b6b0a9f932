# Random numbers, and sums as NumPy rounds them: fields and C entry points of _rng.pyx.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pescador._native.bitgen cimport bitgen_t
from pescador._native.mersenne cimport mersenne_double
from pescador._native.threads cimport pescador_threaded


cdef Py_ssize_t SUM_PART               # terms that np.sum adds up pairwise, part by part


cdef inline Py_ssize_t first_half(Py_ssize_t n) noexcept nogil:
    """How many of n > 128 terms np.sum adds up first."""
    return n // 2 - n // 2 % 8


cdef double repeated_sum(double v, int64_t n) noexcept nogil


@cython.final
cdef class Sums:
    cdef const double* values          # the caller keeps them
    cdef Py_ssize_t n
    cdef Py_ssize_t part, n_parts      # terms of a part; how many parts
    cdef double* cells                 # of a part: root at 1, children of node i at 2 i and 2 i + 1
    cdef Py_ssize_t width              # cells of a part

    cdef double sum_up(self, const double* values) noexcept nogil
    cdef Py_ssize_t size_of(self, Py_ssize_t j) noexcept nogil
    cdef double fill(self, double* cells, Py_ssize_t node, const double* values,
                     Py_ssize_t size) noexcept nogil
    cdef double total(self) noexcept nogil
    cdef double update(self, Py_ssize_t i) noexcept nogil


cdef struct Mersenne:
    # The state of NumPy's MT19937: the words of `key` from `pos` on make the next draws.
    uint32_t key[624]
    int pos


cdef Mersenne* mersenne_of(object bit_generator) except? NULL


@cython.final
cdef class Uniform:
    cdef readonly object generator     # what it draws for: np.random, a RandomState or a Generator
    cdef object owner                  # a RandomState that others hold, too; None for one of ours
    cdef object bit_generator          # owns `bits`
    cdef object lock                   # None where nobody else can hold the generator
    cdef bitgen_t* bits
    cdef Mersenne* words               # see mersenne_of
    cdef bint is_known                 # whether the bit generator is NumPy's own
    cdef bint needs_care               # whether others may draw from it, or draws are checked

    cdef int use(self, bit_generator) except -1
    cdef int refresh(self) except -1


cdef double draw_with_care(Uniform uniform) except? -1.0


cdef inline double draw(Uniform uniform) except? -1.0:
    """The next double in [0, 1)."""
    if uniform.needs_care:
        return draw_with_care(uniform)
    cdef Mersenne* words = uniform.words
    cdef int place
    if words is not NULL:
        place = words.pos
        if place <= 622:
            # What the bit generator would do, without a call of it.
            words.pos = place + 2
            return mersenne_double(&words.key[place])
    return uniform.bits.next_double(uniform.bits.state)


cdef inline bint is_known(Uniform uniform) except -1:
    """Whether the next draws come from a bit generator of NumPy's own."""
    if uniform.owner is not None:
        uniform.refresh()
    return uniform.is_known


cdef int64_t draw_below(Uniform uniform, int64_t n) except -1
cpdef Py_ssize_t as_index(value, Py_ssize_t n, method) except -1
cpdef int64_t drawn_count(method, tuple args) except -1


cdef inline double peek(Uniform uniform, int later) noexcept nogil:
    """The draw after `later` others, for prefetching; -1 if it cannot be known."""
    cdef int place
    if uniform.words is NULL or (uniform.lock is not None and pescador_threaded()):
        return -1.0
    place = uniform.words.pos + 2 * later
    return mersenne_double(&uniform.words.key[place]) if place <= 622 else -1.0


@cython.final
cdef class Counts:
    cdef Uniform uniform
    cdef object poisson_method, binomial_method
    cdef bint own_binomial             # whether `binomial` may draw by inversion
    cdef double mean, least            # of the Poisson distribution; exp(-mean)
    cdef int64_t n                     # the binomial distribution that `terms` is for
    cdef double p
    cdef bint flipped                  # `terms` is for 1 - p: what does not happen is counted
    cdef int64_t most                  # a count above this is drawn again
    cdef double[100] terms             # the probabilities of 0, 1, ...

    cdef int set_binomial(self, int64_t n, double p) except -1
    cdef int64_t binomial(self, double n, double p) except -1
    cdef int64_t poisson(self) except -1
