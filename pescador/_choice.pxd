# Choices made from random draws: fields and C entry points of _choice.pyx.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t

from pescador._native.bounds cimport AT
from pescador._rng cimport Sums


cdef Py_ssize_t pick_by_sums(Sums sums, double u) noexcept nogil
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


cdef inline Py_ssize_t guess(Categorical chooser, double u) noexcept nogil:
    """The category that a draw of about u is likely to pick; -1 where it takes long to find."""
    if u < 0.0:
        return -1
    if chooser.equal:
        return <Py_ssize_t>(u * chooser.k)
    return choose(chooser, u) if chooser.indexed else -1


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
