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
    cdef bint equal                    # whether all weights are equal: no table is needed
    cdef double share                  # the probability of each, then
    cdef double* edges                 # k: cumulative probabilities
    cdef int32_t* guide                # n_cells: the first candidate in each part of [0, 1)
    cdef Py_ssize_t n_cells            # a power of two, so that u * n_cells is exact
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
    # As streams are left out and come back, v goes round among some ten values.
    N_MEMOS = 8
    # How many of the last events of a long journal are replayed first: what v is after some tens
    # of events nearly never depends on what it was before.
    TAIL = 256
    # A journal of as many events as there are streams, and this many more, is replayed.
    MAX_JOURNAL = 1024


cdef struct SumNode:
    # A node of the tree by which np.sum adds up the pool.
    Py_ssize_t start, size             # its streams
    Py_ssize_t missing                 # how many of them cannot be picked
    int32_t left, right, parent        # -1 for none
    int32_t full                       # index of the FullSum of its size
    uint64_t lanes                     # of a leaf: streams left in each of eight lanes, a byte each
    int32_t rest                       # of a leaf: streams left behind the last of each lane
    uint64_t[N_MEMOS] stamps           # of the memos that `totals` are up to date for
    double[N_MEMOS] totals             # its sum, for the v of each memo


cdef struct FullSum:
    # The sum of a node from which no stream is missing: the same for all nodes of one size.
    Py_ssize_t size
    int32_t left, right                # indices of those of its children; -1 for a leaf
    double[N_MEMOS] totals


cdef struct Memo:
    # A value of v for which sums are kept.
    double v
    uint64_t stamp                     # of nodes whose sums are known for it; 0 if unused
    uint64_t used                      # when it was used last: the oldest makes room
    double[17] sums                    # of 0, 1, ... times v


cdef struct Event:
    # A stream came or went, and the probabilities were normalised some times.
    int64_t stream                     # i + 1: stream i was put back; -i - 1: left out; 0: neither
    int64_t times


@cython.final
cdef class Pool:
    cdef Py_ssize_t n                  # streams
    cdef Py_ssize_t m                  # of them that can be picked
    cdef double v                      # the probability of each, before the events of the journal
    cdef Event* journal
    cdef Py_ssize_t length, room       # events in it; how many there is memory for
    cdef Py_ssize_t longest            # with so many it is replayed
    cdef Py_ssize_t n_replayed         # events that the nodes know of ...
    cdef Py_ssize_t n_present          # ... and how many streams can be picked after those
    cdef double* candidates            # what v may be after those
    cdef Py_ssize_t n_candidates       # 0: not limited yet; -1: events are being undone
    cdef bint from_start               # whether the journal is replayed from its start
    cdef Py_ssize_t n_roundings        # a normalised v is at most so many roundings from 1 / m
    cdef FullSum* full_sums            # sorted by falling size: children follow parents
    cdef int32_t n_full_sums
    cdef Py_ssize_t n_parts            # in which np.sum takes the pool
    cdef SumNode* nodes
    cdef int32_t n_nodes               # 0 as long as no stream has been left out
    cdef int32_t* roots                # of each part
    cdef int32_t* leaf_of              # the leaf of each eight streams
    cdef uint64_t* bits                # whether each stream can be picked
    cdef int32_t* counts               # Fenwick tree over the words of `bits`
    cdef Py_ssize_t n_words
    cdef Memo[N_MEMOS] memos
    cdef uint64_t last_stamp, clock

    cdef int32_t add_node(self, Py_ssize_t start, Py_ssize_t size, int32_t parent) noexcept
    cdef int build_tree(self) except -1
    cdef bint has(self, Py_ssize_t i) noexcept nogil
    cdef int set(self, Py_ssize_t i, bint on) except -1
    cdef void flip(self, int64_t stream) noexcept nogil
    cdef int restore_journal(self, list events, list times) except -1
    cdef int log(self, int64_t stream) except -1
    cdef void apply(self, int64_t stream) noexcept nogil
    cdef int memo_of(self, double v) noexcept nogil
    cdef double total(self, double v) noexcept nogil
    cdef double node_total(self, int32_t node, int index) noexcept nogil
    cdef double renormalised(self, double v, int64_t times) noexcept nogil
    cdef void replay_next(self) noexcept nogil
    cdef int replay(self) except -1
    cdef int renormalise(self) except -1
    cdef Py_ssize_t rank_near_edge(self, double u) except -1
    cdef Py_ssize_t find(self, double u) except -1
