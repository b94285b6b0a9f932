"""Choices made from random draws: which category, and which of a pool of streams.

Each choice equals NumPy's to the last bit. ``choice(n, p=p)`` takes one double of the generator and
looks it up among the edges: the cumulative sums of p, divided by the last one. Here, most draws
are looked up without these sums. They are computed, with NumPy's rounding, for a draw so close to
an edge that rounding decides. It knows _rng, and no stream.

docs/inside/selection.rst explains it.
"""

import numpy as np

from pescador.exceptions import PescadorError

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free
from libc.math cimport ceil, floor, nextafter
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from pescador._native.bits cimport pescador_nth_bit, pescador_popcount
from pescador._native.bounds cimport AT
from pescador._native.memory cimport extended, zeros
from pescador._rng cimport SUM_PART, Sums, first_half, repeated_sum

cnp.import_array()


# Counted for tests, which see by these that exact sums decided, and that few nodes were summed.
cdef int64_t n_exact_decisions = 0, n_nodes_summed = 0


def exact_decisions():
    """Return how often exact sums have decided since the module was loaded."""
    return n_exact_decisions


def nodes_summed():
    """Return how many nodes of pools have been summed since the module was loaded."""
    return n_nodes_summed


cdef Py_ssize_t exact_rank(double u, Py_ssize_t m, double low, double high) noexcept nogil:
    """Which of m equally likely choices a draw picks; -1 if that depends on their probability.

    All that is known of it is that it lies between low and high.
    """
    global n_exact_decisions
    cdef Py_ssize_t rank = edges_below(u, m, high, low)
    n_exact_decisions += 1
    # Rounded sums never fall when their terms grow, so the two ends bound all edges.
    return rank if low == high or rank == edges_below(u, m, low, high) else -1


cdef Py_ssize_t edges_below(double u, Py_ssize_t m, double v, double w) noexcept nogil:
    """How many edges are at most u, if edge j is ``sum of j times v / sum of m times w``.

    v and w are 1 / m, but for a few roundings.
    """
    cdef double total = repeated_sum(w, m)
    cdef double slack = (m + 8.0) * m * 2.220446049250313e-16
    cdef double x = u * m
    cdef Py_ssize_t low, high, middle
    # Of the other edges, rounding decides nothing: edge(low) <= u < edge(high + 1).
    low = <Py_ssize_t>max(0.0, floor(x - slack) - 1.0)
    high = <Py_ssize_t>min(m - 1.0, ceil(x + slack) + 1.0)
    while low < high:
        middle = (low + high + 1) // 2
        if repeated_sum(v, middle) / total <= u:
            low = middle
        else:
            high = middle - 1
    return low


cdef Py_ssize_t pick_by_sums(Sums sums, double u) noexcept nogil:
    """The weight that a draw picks, found in the tree of their sums; -1 if rounding may decide it.

    NumPy's edges are sums of n rounded terms, added in order and divided by the last: rounding
    moves each by at most (2 n + 3) * 2**-53. It moves the sums of the tree by less.
    """
    cdef double total = sums.total(), x = u * total
    cdef double slack = (sums.n + 512.0) * 2.220446049250313e-16 * total
    cdef double* cells = sums.cells
    cdef Py_ssize_t j = 0, node = 1, half, start, size, i
    while j < sums.n_parts - 1 and x >= cells[1]:
        x -= cells[1]
        cells += sums.width
        j += 1
    start = j * sums.part
    size = sums.size_of(j)
    while size > 128:
        half = first_half(size)
        node *= 2
        if x < cells[node]:
            size = half
        else:
            x -= cells[node]
            node += 1
            start += half
            size -= half
    for i in range(start, start + size):
        if x < sums.values[AT(i, sums.n)]:
            return i if slack < x < sums.values[i] - slack else -1
        x -= sums.values[i]
    return -1


def sums_of(values, changes, draws):
    """Return ``(sum, picks)`` after each change (i, value), for tests that hold them to NumPy."""
    values = np.array(values, np.float64)
    sums = Sums(len(values))
    sums.sum_up(<double*>cnp.PyArray_DATA(values))
    result = []
    for i, value in changes:
        values[i] = value
        result.append((sums.update(i), [pick_by_sums(sums, u) for u in draws]))
    return result


cdef int reserve(void** memory, size_t n, size_t size) except -1:
    """Allocate memory for n zeros, unless that was done before."""
    if memory[0] is NULL:
        memory[0] = zeros(n, size)
    return 0


cdef object narrowed(object values):
    """An array of whole numbers in the smallest type that has room for them."""
    return values.astype(np.min_scalar_type(-1 - int(np.abs(values).max(initial=0))))


cdef class Categorical:
    """``generator.choice(k, p=weights / norm)``, given the uniform draw behind it.

    The category is the first whose cumulative probability exceeds the draw. After some look-ups
    with the same weights, a guide table [1]_ is made, with which a look-up takes constant expected
    time. Equal weights need no table.

    .. [1] Chen, H.-C. and Asau, Y. (1974). On generating random variates from an empirical
       distribution. AIIE Transactions 6, 163-166.
    """

    def __cinit__(self, Py_ssize_t k):
        self.k = k
        self.n_cells = 1
        while self.n_cells < k:
            self.n_cells *= 2

    def __dealloc__(self):
        PyMem_Free(self.edges)
        PyMem_Free(self.guide)

    cdef int set_weights(self, const double* weights, double norm) except -1:
        cdef double total
        cdef Py_ssize_t i
        self.share = weights[0] / norm
        self.equal = self.share > 0.0
        for i in range(self.k):
            if not weights[i] >= 0.0:
                raise PescadorError(f"the weight {weights[i]!r} of an active stream must be 0 or "
                                    "more")
            if weights[i] != weights[0]:
                self.equal = False
        if self.equal:
            return 0
        reserve(<void**>&self.edges, self.k, sizeof(double))
        reserve(<void**>&self.guide, self.n_cells, sizeof(int32_t))
        total = weights[0] / norm
        self.edges[0] = total
        for i in range(1, self.k):
            total += weights[i] / norm
            self.edges[AT(i, self.k)] = total
        if not total > 0.0:
            raise PescadorError(f"the weights of the active streams add up to {norm!r}; "
                                "they need a positive, finite sum")
        for i in range(self.k):
            self.edges[i] /= total
        self.uses = 0
        self.indexed = False
        return 0

    cdef Py_ssize_t look_up(self, double u) noexcept nogil:
        cdef Py_ssize_t low = 0, high = self.k - 1, middle
        # The table costs a few dozen look-ups, so it is made when weights seem to stay.
        self.uses += 1
        if self.uses > 16 + self.k // 16:
            self.index()
        while low < high:
            middle = (low + high) // 2
            if self.edges[AT(middle, self.k)] <= u:
                low = middle + 1
            else:
                high = middle
        return low

    cdef void index(self) noexcept nogil:
        cdef Py_ssize_t cell, i = 0
        for cell in range(self.n_cells):
            while self.edges[AT(i, self.k)] <= <double>cell / <double>self.n_cells:
                i += 1
            self.guide[AT(cell, self.n_cells)] = <int32_t>i
        self.indexed = True


cdef class Pool:
    """``generator.choice(n, p=distribution)``, given the uniform draw behind it.

    All m streams that can be picked have the same probability v, so a draw picks the one of rank
    ``u * m``. v is normalised whenever a stream is left out: divided by NumPy's pairwise sum over
    the pool, whose rounding depends on which streams are missing. v matters only for draws near
    an edge, but there it must be exact:

    * Streams that come and go and normalisations are events of a journal. It is replayed when a
      draw near an edge asks for v.
    * A normalised v is within a few roundings of 1 / m. For most draws near an edge, all values in
      this range pick the same stream, and nothing is replayed.
    * Of a long journal, only the end is replayed, for each value in this range: some ten events
      leave one value, whatever v was before. If they do not, the whole journal is replayed.
    * The sum is taken over a tree that is split where NumPy splits its sum. Nodes from which no
      stream is missing have the same sum if they have the same size (`full_sums`), so that only
      nodes with missing streams are summed.
    * v takes few values, again and again. Sums are kept for the last ones (`memos`), and only the
      nodes above a stream that came or went are summed again.
    """

    def __cinit__(self, Py_ssize_t n):
        self.n = self.m = self.n_present = n
        self.longest = n + MAX_JOURNAL
        self.v = 1.0 / n

    def __dealloc__(self):
        PyMem_Free(self.full_sums)
        PyMem_Free(self.candidates)
        PyMem_Free(self.journal)
        PyMem_Free(self.nodes)
        PyMem_Free(self.roots)
        PyMem_Free(self.leaf_of)
        PyMem_Free(self.bits)
        PyMem_Free(self.counts)

    cdef int build_tree(self) except -1:
        """Set up what is needed once a stream is left out."""
        cdef Py_ssize_t i, half, size = min(self.n, SUM_PART)
        # np.sum may take the pool in several parts: all of one size but the last.
        self.n_parts = (self.n - 1) // SUM_PART + 1
        cdef list sizes = [size, self.n - (self.n_parts - 1) * size]
        for whole in sizes:
            if whole > 128:
                half = first_half(whole)
                sizes += {half, whole - half}.difference(sizes)
        sizes = sorted(set(sizes), reverse=True)
        # Those of the sum (in a leaf, at each level of the tree, of each part) and of quotients.
        self.n_roundings = 32 + self.n_parts + len(sizes)
        self.n_full_sums = len(sizes)
        self.n_words = (self.n + 63) // 64
        reserve(<void**>&self.full_sums, self.n_full_sums, sizeof(FullSum))
        reserve(<void**>&self.candidates, 2 * self.n_roundings + 1, sizeof(double))
        # Binary trees, each leaf of which has more than 56 streams or is the only node.
        reserve(<void**>&self.nodes, 2 * (self.n // 56 + self.n_parts), sizeof(SumNode))
        reserve(<void**>&self.roots, self.n_parts, sizeof(int32_t))
        reserve(<void**>&self.leaf_of, self.n // 8 + 1, sizeof(int32_t))
        reserve(<void**>&self.bits, self.n_words, sizeof(uint64_t))
        reserve(<void**>&self.counts, self.n_words + 1, sizeof(int32_t))
        for i in range(self.n_full_sums):
            self.full_sums[i].size = sizes[i]
        for i in range(self.n_parts):
            self.roots[i] = self.add_node(i * size, min(size, self.n - i * size), -1)
        memset(self.bits, 0xff, self.n_words * sizeof(uint64_t))
        if self.n % 64:
            self.bits[self.n_words - 1] = ((<uint64_t>1) << (self.n % 64)) - 1
        for i in range(1, self.n_words + 1):
            self.counts[i] += pescador_popcount(self.bits[i - 1])
            if i + (i & -i) <= self.n_words:
                self.counts[i + (i & -i)] += self.counts[i]
        return 0

    cdef int32_t add_node(self, Py_ssize_t start, Py_ssize_t size, int32_t parent) noexcept:
        cdef int32_t node = self.n_nodes, full = 0
        cdef SumNode* at = &self.nodes[node]
        cdef Py_ssize_t half, i
        while self.full_sums[full].size != size:
            full += 1
        self.n_nodes += 1
        at.start, at.size, at.parent, at.full = start, size, parent, full
        at.left = at.right = self.full_sums[full].left = self.full_sums[full].right = -1
        if size > 128:
            half = first_half(size)
            at.left = self.add_node(start, half, node)
            at.right = self.add_node(start + half, size - half, node)
            self.full_sums[full].left = self.nodes[at.left].full
            self.full_sums[full].right = self.nodes[at.right].full
        else:
            at.lanes = <uint64_t>(size // 8) * <uint64_t>0x0101010101010101
            at.rest = size % 8
            for i in range(start // 8, (start + size + 7) // 8):
                self.leaf_of[i] = node
        return node

    cdef bint has(self, Py_ssize_t i) noexcept nogil:
        return self.n_nodes == 0 or (self.bits[i // 64] >> (i % 64)) & 1

    cdef int set(self, Py_ssize_t i, bint on) except -1:
        """Make stream i one that can be picked (as likely as the others), or one that cannot."""
        cdef Py_ssize_t word
        cdef int change = 1 if on else -1
        if self.n_nodes == 0:
            self.build_tree()
        if self.has(AT(i, self.n)) == on:
            return 0
        self.log(change * (i + 1))
        self.m += change
        self.flip(i + 1)
        word = i // 64 + 1
        while word <= self.n_words:
            self.counts[word] += change
            word += word & -word
        return 0

    cdef int log(self, int64_t stream) except -1:
        """Add an event to the journal."""
        if self.length >= self.longest:
            self.replay()
        if self.length == self.room:
            self.journal = <Event*>extended(self.journal, &self.room, sizeof(Event))
        self.journal[self.length].stream = stream
        self.journal[self.length].times = 0
        self.length += 1
        return 0

    cdef void apply(self, int64_t stream) noexcept nogil:
        """Have the nodes know of an event."""
        cdef int change = 1 if stream > 0 else -1
        cdef Py_ssize_t i = stream * change - 1
        cdef int32_t node
        if stream == 0:
            return
        self.n_present += change
        node = self.leaf_of[AT(i, self.n) // 8]
        if i >= self.nodes[node].start + self.nodes[node].size // 8 * 8:
            self.nodes[node].rest += change
        elif change > 0:
            self.nodes[node].lanes += (<uint64_t>1) << (8 * (i % 8))
        else:
            self.nodes[node].lanes -= (<uint64_t>1) << (8 * (i % 8))
        while node >= 0:
            self.nodes[node].missing -= change
            memset(self.nodes[node].stamps, 0, sizeof(self.nodes[node].stamps))
            node = self.nodes[node].parent

    cdef int memo_of(self, double v) noexcept nogil:
        """The index of the memo of v, which may be a new one."""
        cdef int i, index = 0
        cdef int32_t j
        cdef FullSum* full
        cdef Memo* memo
        cdef double total
        self.clock += 1
        for i in range(N_MEMOS):
            memo = &self.memos[i]
            if memo.v == v and memo.stamp:
                memo.used = self.clock
                return i
            if memo.used < self.memos[index].used:
                index = i
        memo = &self.memos[index]
        self.last_stamp += 1
        memo.v = v
        memo.stamp = self.last_stamp
        memo.used = self.clock
        memo.sums[0] = 0.0
        for i in range(1, 17):
            memo.sums[i] = memo.sums[i - 1] + v
        # Children first: they follow their parents.
        for j in range(self.n_full_sums - 1, -1, -1):
            full = &self.full_sums[j]
            if full.left >= 0:
                total = (self.full_sums[full.left].totals[index]
                         + self.full_sums[full.right].totals[index])
            else:
                # Adding up eight equal lanes is exact: it doubles three times.
                total = 8.0 * memo.sums[full.size // 8]
                for _ in range(full.size % 8):
                    total += v
            full.totals[index] = total
        return index

    cdef double total(self, double v) noexcept nogil:
        """The sum of the distribution, as np.sum rounds it."""
        cdef int index = self.memo_of(v)
        cdef double total = 0.0
        cdef Py_ssize_t j
        for j in range(self.n_parts):
            total += self.node_total(self.roots[j], index)
        return total

    cdef double node_total(self, int32_t node, int index) noexcept nogil:
        global n_nodes_summed
        cdef SumNode* at = &self.nodes[node]
        cdef Memo* memo = &self.memos[index]
        cdef double total
        cdef double* sums = memo.sums
        cdef uint64_t lanes
        if at.missing == 0:
            return self.full_sums[at.full].totals[index]
        if at.missing == at.size:
            return 0.0
        if at.stamps[index] == memo.stamp:
            return at.totals[index]
        n_nodes_summed += 1
        if at.left >= 0:
            total = self.node_total(at.left, index) + self.node_total(at.right, index)
        else:
            lanes = at.lanes
            total = (((sums[lanes & 255] + sums[(lanes >> 8) & 255])
                      + (sums[(lanes >> 16) & 255] + sums[(lanes >> 24) & 255]))
                     + ((sums[(lanes >> 32) & 255] + sums[(lanes >> 40) & 255])
                        + (sums[(lanes >> 48) & 255] + sums[lanes >> 56])))
            for _ in range(at.rest):
                total += memo.v
        at.stamps[index] = memo.stamp
        at.totals[index] = total
        return total

    cdef double renormalised(self, double v, int64_t times) noexcept nogil:
        """What v is after so many normalisations between which no stream comes or goes."""
        cdef double mark = v
        cdef int64_t steps = 0, most = 1
        while times > 0:
            v /= self.total(v)
            times -= 1
            steps += 1
            # It soon goes round in a cycle of a few values, which Brent's algorithm finds.
            if v == mark:
                times %= steps
            elif steps == most:
                mark = v
                steps = 0
                most *= 2
        return v

    cdef void replay_next(self) noexcept nogil:
        """Replay the next event of the journal, for each value that v may have."""
        cdef Event* event = &self.journal[self.n_replayed]
        cdef int64_t times = event.times
        cdef Py_ssize_t n = 0, i, j
        cdef double v
        self.n_replayed += 1
        self.apply(event.stream)
        if self.n_present == 0:
            # A stream that is put back into an empty pool has a probability of 1.
            self.candidates[0] = 1.0
            self.n_candidates = 1
            return
        if times > 0 and self.n_candidates == 0 and self.length - self.n_replayed < TAIL:
            times -= 1
            v = 1.0 / self.n_present
            for _ in range(self.n_roundings):
                v = nextafter(v, 0.0)
            for _ in range(2 * self.n_roundings + 1):
                self.candidates[self.n_candidates] = v
                self.n_candidates += 1
                v = nextafter(v, 2.0)
        if times == 0:
            return
        for i in range(self.n_candidates):
            v = self.renormalised(self.candidates[i], times)
            for j in range(n):
                if self.candidates[j] == v:
                    break
            else:
                self.candidates[n] = v
                n += 1
        self.n_candidates = n

    cdef int replay(self) except -1:
        """Replay the journal, so that v is up to date.

        A signal handler may call this as well, or raise: the next call goes on from here.
        """
        while self.length > 0:
            if self.n_replayed == 0:
                self.candidates[0] = self.v
                self.n_candidates = self.from_start or self.length <= 2 * TAIL
            if self.n_candidates < 0:
                self.n_replayed -= 1
                self.apply(-self.journal[self.n_replayed].stream)
            elif self.n_replayed < self.length:
                self.replay_next()
            elif self.n_candidates == 1:
                self.v = self.candidates[0]
                self.n_replayed = self.length = 0
                self.from_start = False
            else:
                self.from_start = True
                self.n_candidates = -1
            if self.n_replayed % 16 == 0:
                PyErr_CheckSignals()
        return 0

    cdef int renormalise(self) except -1:
        """Divide the probabilities by their sum."""
        if self.n_nodes == 0:
            self.build_tree()
        if self.n_replayed == self.length:
            self.log(0)
        self.journal[self.length - 1].times += 1
        return 0

    cdef Py_ssize_t rank_near_edge(self, double u) except -1:
        """The rank of the stream that a draw picks, if rounding decides it."""
        cdef double v, reach
        cdef Py_ssize_t rank = -1
        if self.length > 0 and self.journal[self.length - 1].times > 0:
            v = 1.0 / self.m
            reach = v * (self.n_roundings * 2.220446049250313e-16)
            rank = exact_rank(u, self.m, v - reach, v + reach)
        if rank < 0:
            self.replay()
            rank = exact_rank(u, self.m, self.v, self.v)
        return rank

    cdef Py_ssize_t find(self, double u) except -1:
        """The stream that a draw picks."""
        cdef Py_ssize_t rank = quick_rank(u, self.m), word, step
        if rank < 0:
            rank = self.rank_near_edge(u)
        if self.m == self.n:
            return rank
        word = 0
        step = 1
        while 2 * step <= self.n_words:
            step *= 2
        while step > 0:
            if word + step <= self.n_words and self.counts[word + step] <= rank:
                word += step
                rank -= self.counts[word]
            step //= 2
        return 64 * word + pescador_nth_bit(self.bits[AT(word, self.n_words)], <int>rank)

    def save(self):
        """Return which streams cannot be picked, and the probability of each that can.

        The probability is that before the journal, which comes with it: replaying takes longer
        than all else that is saved of a mux.
        """
        bits = None
        missing = np.zeros(0, np.int64)
        if self.m < self.n:
            bits = np.unpackbits(
                np.asarray(<uint64_t[:self.n_words]>self.bits).view(np.uint8), bitorder="little")
            missing = np.flatnonzero(bits[:self.n] == 0)
        # As places, or as a bit for each stream: whatever is shorter.
        if 64 * len(missing) > self.n:
            missing = np.packbits(bits, bitorder="little")
        journal = np.zeros((2, self.length), np.int64)
        cdef int64_t* to = <int64_t*>cnp.PyArray_DATA(journal)
        cdef Py_ssize_t i
        for i in range(self.length):
            to[i] = self.journal[i].stream
            to[self.length + i] = self.journal[i].times
        return {"n": self.n, "share": self.v, "missing": missing,
                "events": narrowed(journal[0]), "times": narrowed(journal[1])}

    def restore(self, dict state):
        """Have such a probability, and such streams that cannot be picked; none was picked yet."""
        cdef Py_ssize_t i, n = state["n"]
        cdef double share = state["share"]
        missing = state["missing"]
        if missing.dtype == np.uint8 and 0 <= n <= 8 * len(missing):
            missing = np.flatnonzero(np.unpackbits(missing, bitorder="little")[:n] == 0)
        if not (0 <= n <= self.n and 0.0 < share <= 1.0 and missing.dtype == np.int64
                and missing.ndim == 1 and (len(missing) == 0 or (
                    missing.min() >= 0 and missing.max() < n))):
            raise ValueError(f"'pool' has {n} streams, a probability of {share} for each, and "
                             f"misses {missing!r:.100}; there are {self.n} streams")
        for i in missing:
            if self.has(i):
                self.set(i, False)
        while self.n_replayed < self.length:
            self.apply(self.journal[self.n_replayed].stream)
            self.n_replayed += 1
        self.n_replayed = self.length = 0
        if self.n == n:
            self.v = share
            # Format 1 has no journal.
            if "events" in state:
                self.restore_journal(state["events"].tolist(), state["times"].tolist())
        else:
            # Those that were added since are as likely as the others.
            self.v = 1.0 / max(self.m, 1)

    cdef int restore_journal(self, list events, list times) except -1:
        """Have such a journal, and nodes that do not know of its events."""
        cdef int64_t stream
        cdef Py_ssize_t i
        if len(events) != len(times):
            raise ValueError(f"'pool' has {len(events)} events, and {len(times)} 'times'")
        if self.n_nodes == 0 and events:
            self.build_tree()
        for i in range(len(events) - 1, -1, -1):
            stream = events[i]
            if not (-self.n <= stream <= self.n and times[i] >= 0
                    and (stream == 0 or self.has(max(stream, -stream) - 1) == (stream > 0))):
                raise ValueError(f"'pool' cannot have the event {stream}, {times[i]} times")
            self.apply(-stream)
            self.flip(stream)
        for stream, number in zip(events, times):
            self.flip(stream)
            self.log(stream)
            self.journal[self.length - 1].times = number
        return 0

    cdef void flip(self, int64_t stream) noexcept nogil:
        """Have the bit of a stream that came or went be what it was not."""
        cdef Py_ssize_t i = max(stream, -stream) - 1
        if i >= 0:
            self.bits[AT(i, self.n) // 64] ^= (<uint64_t>1) << (i % 64)

    @property
    def distribution(self):
        """The probability of each stream, float64[n]."""
        self.replay()
        values = np.full(self.n, self.v)
        cdef double* p = <double*>cnp.PyArray_DATA(values)
        cdef Py_ssize_t i
        for i in range(self.n):
            if not self.has(i):
                p[i] = 0.0
        return values


def pool_after(n, changes, restored_after=None):
    """Return what a pool of n picks after each change, and its distribution in the end, for tests.

    A change is (i, on, times, draws): whether stream i can be picked, how many normalisations come
    after that, and the draws to pick for. After so many changes, another pool goes on from the
    state of the first.
    """
    pool = Pool(n)
    picks = []
    for step, (i, on, times, draws) in enumerate(changes):
        if step == restored_after:
            state = pool.save()
            pool = Pool(n)
            pool.restore(state)
        pool.set(i, on)
        for _ in range(times):
            pool.renormalise()
        picks.append([pool.find(u) for u in draws])
    return picks, pool.distribution
