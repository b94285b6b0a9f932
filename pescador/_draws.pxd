# Random draws and the choices made from them: fields and C entry points of _draws.pyx.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pescador._bitgen cimport Mersenne, bitgen_t


cdef extern from "_native.h":
    Py_ssize_t AT(Py_ssize_t index, Py_ssize_t length) noexcept nogil
    bint pescador_threaded() noexcept nogil


@cython.final
cdef class Sums:
    cdef const double* values          # the weights; the caller keeps them
    cdef Py_ssize_t n
    cdef Py_ssize_t part, n_parts      # in which np.sum takes them
    cdef double* cells                 # of each part: root at 1, children of node i at 2 i, 2 i + 1
    cdef Py_ssize_t width              # cells of a part

    cdef double take(self, const double* values) noexcept nogil
    cdef Py_ssize_t size_of(self, Py_ssize_t j) noexcept nogil
    cdef double fill(self, double* cells, Py_ssize_t node, const double* values,
                     Py_ssize_t size) noexcept nogil
    cdef double total(self) noexcept nogil
    cdef double update(self, Py_ssize_t i) noexcept nogil
    cdef Py_ssize_t find(self, double u) noexcept nogil


@cython.final
cdef class Uniform:
    cdef readonly object generator     # what it draws for: np.random, a RandomState or a Generator
    cdef object owner                  # a RandomState that others hold, too; None for one of ours
    cdef object bit_generator          # owns `bits`
    cdef object lock                   # None where nobody else can hold the generator
    cdef bitgen_t* bits
    cdef Mersenne* words               # what they are made from, where that is known; or NULL
    cdef bint is_known                 # whether the bit generator is NumPy's own
    cdef bint needs_care               # whether a draw is more than a call of `bits`

    cdef int take(self, bit_generator) except -1
    cdef int look(self) except -1


cdef double draw_with_care(Uniform uniform) except? -1.0


cdef inline double draw(Uniform uniform) except? -1.0:
    """The next double in [0, 1)."""
    if uniform.needs_care:
        return draw_with_care(uniform)
    return uniform.bits.next_double(uniform.bits.state)


cdef inline bint is_known(Uniform uniform) except -1:
    """Whether the next draws come from a bit generator of NumPy's own."""
    if uniform.owner is not None:
        uniform.look()
    return uniform.is_known


cpdef Py_ssize_t as_index(value, Py_ssize_t n, method) except -1
cpdef int64_t drawn_count(method, tuple args) except -1


cdef inline double glance(Uniform uniform, int later) noexcept nogil:
    """About what the draw after `later` others will be, to 27 bits; -1 where it is not known."""
    cdef int place
    cdef uint32_t word
    if uniform.words is NULL or (uniform.lock is not None and pescador_threaded()):
        return -1.0
    place = uniform.words.pos + 2 * later
    if place >= 624:
        return -1.0
    # As MT19937 does: a double has 27 bits of one word and 26 of the next.
    word = uniform.words.key[place]
    word ^= word >> 11
    word ^= (word << 7) & 0x9d2c5680U
    word ^= (word << 15) & 0xefc60000U
    word ^= word >> 18
    return (word >> 5) / 134217728.0


@cython.final
cdef class Counts:
    cdef Uniform uniform
    cdef object poisson_method, binomial_method
    cdef bint own_binomial             # whether `binomial` may draw by itself
    cdef double mean, least            # of the Poisson distribution; exp(-mean)
    cdef int64_t n                     # the binomial distribution that `terms` is for
    cdef double p
    cdef bint flipped
    cdef int64_t most                  # a count above this is drawn again
    cdef double[100] terms             # the probabilities of 0, 1, ... as they are subtracted

    cdef int set_binomial(self, int64_t n, double p) except -1
    cdef int64_t binomial(self, double n, double p) except -1
    cdef int64_t poisson(self) except -1


cdef double repeated_sum(double v, int64_t n) noexcept nogil
cdef Py_ssize_t exact_rank(double u, Py_ssize_t m, double low, double high) noexcept nogil
cdef Py_ssize_t edges_below(double u, Py_ssize_t m, double v, double w) noexcept nogil


cdef inline Py_ssize_t quick_rank(double u, Py_ssize_t m) noexcept nogil:
    """Which of m equally likely choices a draw picks, or -1 where rounding may decide it.

    The exact edges are sums of m equal terms, added in order and divided by the last: each is
    within (2 m + 3) units of 2**-53 of its place j / m.
    """
    cdef double x = u * m
    cdef Py_ssize_t rank = <Py_ssize_t>x
    cdef double fraction = x - rank
    cdef double slack = (m + 8.0) * m * 2.220446049250313e-16
    if slack < fraction < 1.0 - slack:
        return rank
    return -1


@cython.final
cdef class Categorical:
    cdef Py_ssize_t k
    cdef bint equal                    # all weights are alike: no table is needed
    cdef double share                  # of each of them
    cdef double* edges                 # k: cumulative probabilities
    cdef int32_t* guide                # n_cells: the first candidate in each part of [0, 1)
    cdef Py_ssize_t n_cells            # a power of two
    cdef Py_ssize_t uses               # look-ups since the weights last changed
    cdef bint indexed                  # whether `guide` is up to date

    cdef int set_weights(self, const double* weights, double norm) except -1
    cdef Py_ssize_t look_up(self, double u) noexcept nogil
    cdef void index(self) noexcept nogil


cdef inline Py_ssize_t choose(Categorical chooser, double u) noexcept nogil:
    """The category that a draw picks."""
    cdef Py_ssize_t i
    if chooser.equal:
        i = quick_rank(u, chooser.k)
        return i if i >= 0 else exact_rank(u, chooser.k, chooser.share, chooser.share)
    if chooser.indexed:
        i = chooser.guide[AT(<Py_ssize_t>(u * chooser.n_cells), chooser.n_cells)]
        while chooser.edges[AT(i, chooser.k)] <= u:
            i += 1
        return i
    return chooser.look_up(u)


cdef enum:
    # v goes round among some ten values, as streams are left out and come back.
    N_LEDGERS = 8
    # Events at the end of a journal that are carried out when it is long: v nearly always forgets
    # what came before within some tens.
    TAIL = 256
    # Events of a journal, and as many as streams, after which it is carried out.
    JOURNAL = 1024


cdef struct Node:
    # A part of the pool, as the pairwise sum splits it.
    Py_ssize_t start, size
    Py_ssize_t missing                 # how many of its streams cannot be picked
    int32_t left, right, parent        # -1 for none
    int32_t kind                       # index of its size among all sizes
    uint64_t lanes                     # of a leaf: streams left in each of eight lanes, a byte each
    int32_t rest                       # of a leaf: streams left behind the last of each lane
    uint64_t[N_LEDGERS] stamps         # of the ledgers that its totals are up to date for
    double[N_LEDGERS] totals           # its sum, for the v of each ledger


cdef struct Kind:
    # The sum of a part from which nothing is missing: the same for all parts of one size.
    Py_ssize_t size
    int32_t left, right                # kinds of its halves; -1 for a leaf
    double[N_LEDGERS] totals


cdef struct Ledger:
    # The sums that are known for one value of v.
    double v
    uint64_t stamp                     # what nodes bear whose total is known; 0 if unused
    uint64_t used                      # when, for the one that was used longest ago to go
    double[17] sums                    # of 0, 1, ... times v


cdef struct Event:
    # What happened to the pool.
    int64_t stream                     # i + 1: stream i was put back; -i - 1: it was left out; or 0
    int64_t times                      # normalisations after that


@cython.final
cdef class Pool:
    cdef Py_ssize_t n
    cdef Py_ssize_t m                  # how many can be picked
    cdef double v                      # the probability of each, before what is in the journal
    cdef Event* journal
    cdef Py_ssize_t length, room       # events in it; how many there is memory for
    cdef Py_ssize_t at                 # events that have been carried out, in the nodes ...
    cdef Py_ssize_t present            # ... where so many streams can be picked
    cdef double* values                # what v may be there
    cdef Py_ssize_t n_values           # how many; 0 where that is left open, -1 on the way back
    cdef bint is_thorough              # whether all events are needed
    cdef Py_ssize_t n_roundings        # v is 1 / m but for these, after a normalisation
    cdef Kind* kinds                   # by falling size
    cdef int32_t n_kinds
    cdef int32_t part_kind, last_kind
    cdef Py_ssize_t n_parts            # in which np.sum takes the pool
    cdef Node* nodes                   # NULL as long as nothing has been missing
    cdef int32_t n_nodes
    cdef int32_t* roots                # of each part
    cdef int32_t* leaf_of              # the leaf of each eight streams
    cdef uint64_t* bits                # which can be picked
    cdef int32_t* counts               # Fenwick tree over the words of `bits`
    cdef Py_ssize_t n_words
    cdef Ledger[N_LEDGERS] ledgers
    cdef uint64_t last_stamp, clock

    cdef int add_kinds(self, Py_ssize_t size) except -1
    cdef int32_t kind_of(self, Py_ssize_t size) noexcept nogil
    cdef int32_t add_node(self, Py_ssize_t start, Py_ssize_t size, int32_t parent) noexcept
    cdef int track(self) except -1
    cdef bint has(self, Py_ssize_t i) noexcept nogil
    cdef int set(self, Py_ssize_t i, bint on) except -1
    cdef int note(self, int64_t stream) except -1
    cdef void turn(self, int64_t stream) noexcept nogil
    cdef int open_ledger(self, double v) noexcept nogil
    cdef double total(self, double v) noexcept nogil
    cdef double node_total(self, int32_t node, int book) noexcept nogil
    cdef double normalised(self, double v, int64_t times) noexcept nogil
    cdef void step(self) noexcept nogil
    cdef int settle(self) except -1
    cdef int renormalise(self) except -1
    cdef Py_ssize_t close_rank(self, double u) except -1
    cdef Py_ssize_t find(self, double u) except -1
    cdef int take(self, Py_ssize_t i) except -1
    cdef int drop(self, Py_ssize_t i) except -1
    cdef int put_back(self, Py_ssize_t i) except -1


cdef void* address(object array) except NULL
