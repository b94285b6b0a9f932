"""Choices made from random draws: which category, and which stream of a pool; knows no stream.

Every choice here equals NumPy's to the last bit: ``choice(n, p=p)`` is one double of the generator,
looked up in the cumulative sum of p divided by its last entry. What makes it fast is to know the
answer without the sums. Where a draw comes so close to an edge that rounding decides, the exact
sums are taken.
"""

import numpy as np

from pescador.exceptions import PescadorError

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.math cimport ceil, floor, nextafter
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from pescador._native.bits cimport pescador_nth_bit, pescador_popcount
from pescador._native.bounds cimport AT
from pescador._rng cimport PART, Sums, first_half, repeated_sum

cnp.import_array()


# How often rounding had to decide, so that tests can see that it did.
cdef int64_t n_close_calls = 0


def close_calls():
    """Return how often exact sums have decided since the module was loaded."""
    return n_close_calls


# How many parts of pools have been summed, so that tests can see that they were few.
cdef int64_t n_parts_summed = 0


def parts_summed():
    """Return how many parts of pools have been summed since the module was loaded."""
    return n_parts_summed


cdef Py_ssize_t exact_rank(double u, Py_ssize_t m, double low, double high) noexcept nogil:
    """Which of m choices a draw picks, of a probability from low to high; -1 where that decides it.
    """
    global n_close_calls
    cdef Py_ssize_t rank = edges_below(u, m, high, low)
    n_close_calls += 1
    # Rounded sums grow with their terms.
    return rank if low == high or rank == edges_below(u, m, low, high) else -1


cdef Py_ssize_t edges_below(double u, Py_ssize_t m, double v, double w) noexcept nogil:
    """How many edges are at most u: sums of shares v, divided by that of m shares w.

    The shares are 1 / m, but for a few roundings.
    """
    cdef double total = repeated_sum(w, m)
    cdef double slack = (m + 8.0) * m * 2.220446049250313e-16
    cdef double x = u * m
    cdef Py_ssize_t low, high, middle
    # Edges further from u than rounding reaches need no look. edge(low) <= u < edge(high + 1)
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
    """The weight that a draw picks, or -1 where rounding may decide it.

    The exact edges are sums of n rounded shares, added in order and divided by the last: each
    is within (2 n + 3) units of 2**-53 of its place. The sums of the tree are closer to theirs.
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
    sums.take(<double*>cnp.PyArray_DATA(values))
    result = []
    for i, value in changes:
        values[i] = value
        result.append((sums.update(i), [pick_by_sums(sums, u) for u in draws]))
    return result


# ---------------------------------------------------------------------------------- choices


cdef class Categorical:
    """``generator.choice(k, p=weights / norm)``, given the uniform draw behind it.

    The category is the first whose cumulative probability exceeds the draw. Once the weights
    have served a while, a guide table [1]_ leads each look-up to its place in constant expected
    time; equal weights need no table.

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
        if self.edges is NULL:
            self.edges = <double*>PyMem_Malloc(self.k * sizeof(double))
            self.guide = <int32_t*>PyMem_Malloc(self.n_cells * sizeof(int32_t))
            if self.edges is NULL or self.guide is NULL:
                raise MemoryError()
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
        # A table takes about as long as a few dozen look-ups: worth it where the weights stay.
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
        # u * n_cells is exact for a power of two, so the cell of a draw never lies.
        cdef Py_ssize_t cell, i = 0
        for cell in range(self.n_cells):
            while self.edges[AT(i, self.k)] <= <double>cell / <double>self.n_cells:
                i += 1
            self.guide[AT(cell, self.n_cells)] = <int32_t>i
        self.indexed = True


cdef class Pool:
    """``generator.choice(n, p=distribution)``, given the uniform draw behind it.

    All streams that can be picked are equally likely, so a pick is the j-th of them. Their
    probability v is normalised again and again by NumPy's pairwise sum over the whole pool, whose
    rounding depends on who is missing; it decides close calls, so it is followed exactly:

    * Parts of the pool from which nothing is missing have the same sum if they have the same
      size: there are few sizes, and only the parts around missing streams are summed one by one.
    * v takes few values, again and again. For the last of them the sums of all parts are kept in
      a ledger each, and only those parts are summed again where a stream came or went.
    * What happens is noted in a journal, and carried out when a close call asks for v.
    * Each normalisation leaves v within a few roundings of 1 / m. In most close calls, all of
      these values pick the same stream.
    * Of a long journal, only the end is carried out, for each of these values: they soon become
      one, whatever came before. If they do not, the whole journal is carried out.
    """

    def __cinit__(self, Py_ssize_t n):
        self.n = self.m = self.present = n
        self.v = 1.0 / n
        # np.sum may take the pool in several parts: all of one size but the last.
        self.n_parts = (n - 1) // PART + 1
        cdef Py_ssize_t size = min(n, PART), half
        cdef int32_t i
        self.add_kinds(size)
        self.add_kinds(n - (self.n_parts - 1) * size)
        for i in range(self.n_kinds):
            self.kinds[i].left = self.kinds[i].right = -1
            if self.kinds[i].size > 128:
                half = first_half(self.kinds[i].size)
                self.kinds[i].left = self.kind_of(half)
                self.kinds[i].right = self.kind_of(self.kinds[i].size - half)
        # The roundings on the way from a share to a normalised one: those of a leaf, of each level
        # and part, and of the quotients.
        self.n_roundings = 32 + self.n_parts
        half = size
        while half > 128:
            half -= first_half(half)
            self.n_roundings += 1
        self.values = <double*>PyMem_Malloc((2 * self.n_roundings + 1) * sizeof(double))
        if self.values is NULL:
            raise MemoryError()
        self.part_kind = self.kind_of(size)
        self.last_kind = self.kind_of(n - (self.n_parts - 1) * size)

    def __dealloc__(self):
        PyMem_Free(self.kinds)
        PyMem_Free(self.values)
        PyMem_Free(self.journal)
        PyMem_Free(self.nodes)
        PyMem_Free(self.roots)
        PyMem_Free(self.leaf_of)
        PyMem_Free(self.bits)
        PyMem_Free(self.counts)

    cdef int add_kinds(self, Py_ssize_t size) except -1:
        """Note a size of parts, and those of its halves, by falling size."""
        cdef int32_t i = 0, j
        cdef Kind* kinds
        while i < self.n_kinds and self.kinds[i].size > size:
            i += 1
        if i < self.n_kinds and self.kinds[i].size == size:
            return 0
        kinds = <Kind*>PyMem_Realloc(self.kinds, (self.n_kinds + 1) * sizeof(Kind))
        if kinds is NULL:
            raise MemoryError()
        self.kinds = kinds
        for j in range(self.n_kinds, i, -1):
            kinds[j] = kinds[j - 1]
        kinds[i].size = size
        self.n_kinds += 1
        if size > 128:
            self.add_kinds(first_half(size))
            self.add_kinds(size - first_half(size))
        return 0

    cdef int32_t kind_of(self, Py_ssize_t size) noexcept nogil:
        cdef int32_t kind = 0
        while self.kinds[kind].size != size:
            kind += 1
        return kind

    cdef int track(self) except -1:
        """Set up what is needed once somebody may be missing."""
        cdef Py_ssize_t i, size = min(self.n, PART)
        if self.nodes is not NULL:
            return 0
        # Binary trees, whose leaves hold more than 56 streams each unless they are all there is.
        cdef Py_ssize_t most = 2 * (self.n // 56 + self.n_parts)
        self.n_words = (self.n + 63) // 64
        self.nodes = <Node*>PyMem_Calloc(most, sizeof(Node))
        self.roots = <int32_t*>PyMem_Calloc(self.n_parts, sizeof(int32_t))
        self.leaf_of = <int32_t*>PyMem_Calloc(self.n // 8 + 1, sizeof(int32_t))
        self.bits = <uint64_t*>PyMem_Calloc(self.n_words, sizeof(uint64_t))
        self.counts = <int32_t*>PyMem_Calloc(self.n_words + 1, sizeof(int32_t))
        if (self.nodes is NULL or self.roots is NULL or self.leaf_of is NULL
                or self.bits is NULL or self.counts is NULL):
            PyMem_Free(self.nodes)
            self.nodes = NULL
            raise MemoryError()
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
        cdef int32_t node = self.n_nodes
        cdef Py_ssize_t half, i
        self.n_nodes += 1
        self.nodes[node].start = start
        self.nodes[node].size = size
        self.nodes[node].parent = parent
        self.nodes[node].kind = self.kind_of(size)
        self.nodes[node].left = self.nodes[node].right = -1
        if size > 128:
            half = first_half(size)
            self.nodes[node].left = self.add_node(start, half, node)
            self.nodes[node].right = self.add_node(start + half, size - half, node)
        else:
            self.nodes[node].lanes = <uint64_t>(size // 8) * 0x0101010101010101
            self.nodes[node].rest = size % 8
            for i in range(start // 8, (start + size + 7) // 8):
                self.leaf_of[i] = node
        return node

    cdef bint has(self, Py_ssize_t i) noexcept nogil:
        return self.nodes is NULL or (self.bits[i // 64] >> (i % 64)) & 1

    cdef int set(self, Py_ssize_t i, bint on) except -1:
        """Have stream i among those that can be picked, or not."""
        cdef Py_ssize_t word
        cdef int change = 1 if on else -1
        self.track()
        if self.has(AT(i, self.n)) == on:
            return 0
        self.note(change * (i + 1))
        self.m += change
        self.bits[i // 64] ^= (<uint64_t>1) << (i % 64)
        word = i // 64 + 1
        while word <= self.n_words:
            self.counts[word] += change
            word += word & -word
        return 0

    cdef int note(self, int64_t stream) except -1:
        """Begin an event of the journal: a stream came or went."""
        cdef Py_ssize_t room
        cdef Event* journal
        if self.length >= self.n + JOURNAL:
            self.settle()
        if self.length == self.room:
            room = 2 * self.room + 16
            journal = <Event*>PyMem_Realloc(self.journal, room * sizeof(Event))
            if journal is NULL:
                raise MemoryError()
            self.journal = journal
            self.room = room
        self.journal[self.length].stream = stream
        self.journal[self.length].times = 0
        self.length += 1
        return 0

    cdef void turn(self, int64_t stream) noexcept nogil:
        """Have a stream come (i + 1) or go (-i - 1) in the sums; nobody for 0."""
        cdef int change = 1 if stream > 0 else -1
        cdef Py_ssize_t i = stream * change - 1
        cdef int32_t node
        if stream == 0:
            return
        self.present += change
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

    cdef int open_ledger(self, double v) noexcept nogil:
        """The ledger of v: one that was kept, or a new one."""
        cdef int i, book = 0
        cdef int32_t j
        cdef Kind* kind
        cdef Ledger* ledger
        cdef double total
        self.clock += 1
        for i in range(N_LEDGERS):
            ledger = &self.ledgers[i]
            if ledger.v == v and ledger.stamp:
                ledger.used = self.clock
                return i
            if ledger.used < self.ledgers[book].used:
                book = i
        ledger = &self.ledgers[book]
        self.last_stamp += 1
        ledger.v = v
        ledger.stamp = self.last_stamp
        ledger.used = self.clock
        ledger.sums[0] = 0.0
        for i in range(1, 17):
            ledger.sums[i] = ledger.sums[i - 1] + v
        # Halves are smaller, so they come after what they are halves of.
        for j in range(self.n_kinds - 1, -1, -1):
            kind = &self.kinds[j]
            if kind.left >= 0:
                total = self.kinds[kind.left].totals[book] + self.kinds[kind.right].totals[book]
            else:
                # Eight equal lanes: adding them up doubles three times, which rounds nothing.
                total = 8.0 * ledger.sums[kind.size // 8]
                for _ in range(kind.size % 8):
                    total += v
            kind.totals[book] = total
        return book

    cdef double total(self, double v) noexcept nogil:
        """The sum of the distribution, as np.sum rounds it."""
        cdef int book = self.open_ledger(v)
        cdef double total = 0.0
        cdef Py_ssize_t j
        for j in range(self.n_parts):
            if self.nodes is not NULL:
                total += self.node_total(self.roots[j], book)
            elif j < self.n_parts - 1:
                total += self.kinds[self.part_kind].totals[book]
            else:
                total += self.kinds[self.last_kind].totals[book]
        return total

    cdef double node_total(self, int32_t node, int book) noexcept nogil:
        global n_parts_summed
        cdef Node* part = &self.nodes[node]
        cdef Ledger* ledger = &self.ledgers[book]
        cdef double total
        cdef double* sums = ledger.sums
        cdef uint64_t lanes
        if part.missing == 0:
            return self.kinds[part.kind].totals[book]
        if part.missing == part.size:
            return 0.0
        if part.stamps[book] == ledger.stamp:
            return part.totals[book]
        n_parts_summed += 1
        if part.left >= 0:
            total = self.node_total(part.left, book) + self.node_total(part.right, book)
        else:
            lanes = part.lanes
            total = (((sums[lanes & 255] + sums[(lanes >> 8) & 255])
                      + (sums[(lanes >> 16) & 255] + sums[(lanes >> 24) & 255]))
                     + ((sums[(lanes >> 32) & 255] + sums[(lanes >> 40) & 255])
                        + (sums[(lanes >> 48) & 255] + sums[lanes >> 56])))
            for _ in range(part.rest):
                total += ledger.v
        part.stamps[book] = ledger.stamp
        part.totals[book] = total
        return total

    cdef double normalised(self, double v, int64_t times) noexcept nogil:
        """A share after so many normalisations in which nobody comes or goes."""
        cdef double mark = v
        cdef int64_t steps = 0, most = 1
        while times > 0:
            v /= self.total(v)
            times -= 1
            steps += 1
            # Sooner or later it stays the same, or goes round among a few values.
            if v == mark:
                times %= steps
            elif steps == most:
                mark = v
                steps = 0
                most *= 2
        return v

    cdef void step(self) noexcept nogil:
        """Carry out the next event of the journal, for each value that v may have."""
        cdef Event* event = &self.journal[self.at]
        cdef int64_t times = event.times
        cdef Py_ssize_t n = 0, i, j
        cdef double v
        self.at += 1
        self.turn(event.stream)
        if self.present == 0:
            # Whoever is put back into an empty pool has a share of 1.
            self.values[0] = 1.0
            self.n_values = 1
            return
        if times > 0 and self.n_values == 0 and self.length - self.at < TAIL:
            times -= 1
            v = 1.0 / self.present
            for _ in range(self.n_roundings):
                v = nextafter(v, 0.0)
            for _ in range(2 * self.n_roundings + 1):
                self.values[self.n_values] = v
                self.n_values += 1
                v = nextafter(v, 2.0)
        if times == 0:
            return
        for i in range(self.n_values):
            v = self.normalised(self.values[i], times)
            for j in range(n):
                if self.values[j] == v:
                    break
            else:
                self.values[n] = v
                n += 1
        self.n_values = n

    cdef int settle(self) except -1:
        """Have v as it is now.

        A handler of signals may come here, too, or end this: it goes on from the last event.
        """
        while self.length > 0:
            if self.at == 0:
                self.values[0] = self.v
                self.n_values = self.is_thorough or self.length <= 2 * TAIL
            if self.n_values < 0:
                self.at -= 1
                self.turn(-self.journal[self.at].stream)
            elif self.at < self.length:
                self.step()
            elif self.n_values == 1:
                self.v = self.values[0]
                self.at = self.length = 0
                self.is_thorough = False
            else:
                self.is_thorough = True
                self.n_values = -1
            if self.at % 16 == 0:
                PyErr_CheckSignals()
        return 0

    cdef int renormalise(self) except -1:
        """Share what is missing among the streams that can be picked."""
        if self.at == self.length:
            self.note(0)
        self.journal[self.length - 1].times += 1
        return 0

    cdef Py_ssize_t close_rank(self, double u) except -1:
        """The rank of the stream that a draw picks where rounding decides it."""
        cdef double v, reach
        cdef Py_ssize_t rank = -1
        if self.length > 0 and self.journal[self.length - 1].times > 0:
            v = 1.0 / self.m
            reach = v * (self.n_roundings * 2.220446049250313e-16)
            rank = exact_rank(u, self.m, v - reach, v + reach)
        if rank < 0:
            self.settle()
            rank = exact_rank(u, self.m, self.v, self.v)
        return rank

    cdef Py_ssize_t find(self, double u) except -1:
        """The stream that a draw picks."""
        cdef Py_ssize_t rank = quick_rank(u, self.m), word, step
        if rank < 0:
            rank = self.close_rank(u)
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

    cdef int take(self, Py_ssize_t i) except -1:
        """Leave stream i out of the picks to come, and share its probability among the rest."""
        self.drop(i)
        return self.renormalise()

    cdef int drop(self, Py_ssize_t i) except -1:
        """Leave stream i out of the picks to come."""
        return self.set(i, False)

    cdef int put_back(self, Py_ssize_t i) except -1:
        """Make stream i as likely as the others."""
        return self.set(i, True)

    @property
    def distribution(self):
        """The probability of each stream, float64[n]."""
        self.settle()
        values = np.full(self.n, self.v)
        cdef double* p = <double*>cnp.PyArray_DATA(values)
        cdef Py_ssize_t i
        for i in range(self.n):
            if not self.has(i):
                p[i] = 0.0
        return values


def pool_after(n, changes):
    """Return what a pool of n picks after each change, and its distribution in the end, for tests.

    A change is (i, on, times, draws): whether stream i can be picked, how many normalisations come
    after that, and the draws to pick for.
    """
    pool = Pool(n)
    picks = []
    for i, on, times, draws in changes:
        pool.set(i, on)
        for _ in range(times):
            pool.renormalise()
        picks.append([pool.find(u) for u in draws])
    return picks, pool.distribution
