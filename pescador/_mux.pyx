"""The sampling loops: one engine per mux, over a common active set.

An engine is one activation of a mux. It holds the active set as plain arrays (which streamer is
in each slot, how many samples it gave and may give, its weight) and, apart from them, the
iterators that the samples come from. Arguments were checked in mux/.

docs/inside/draws.rst explains it.
"""

import sys

import numpy as np

from pescador import _empty
from pescador.core import Streamer
from pescador.exceptions import ArgumentError

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.math cimport INFINITY, isnan
from libc.stdint cimport int64_t

from pescador._choice cimport Categorical, Pool, choose, pick_by_sums
from pescador._core cimport (
    EMPTY_PASSES, ENDS_ITSELF, STEP_ONCE_MORE, STOP, UNBOUNDED, Compiled, Ending, Scope, as_bound,
    bare_scope, ends_empty, fuse, hooked_copy, start,
)
from pescador._hooks cimport is_plain, plain_fields
from pescador._native.bounds cimport AT
from pescador._native.iterators cimport next_item, steal
from pescador._native.memory cimport zeros
from pescador._native.prefetch cimport PREFETCH, items_of, prefetch_values
from pescador._rng cimport Counts, Sums, Uniform, draw, peek
from pescador._visits cimport (
    Run, attributes_of, place_of, restore_generators, restore_late, root_scope, save_generators,
    save_late, set_visits, visits_of,
)


cdef enum:
    # A chooser is set anew, by a pass over the weights, when these are expected to last for
    # as many draws: this, and a sixteenth of the number of slots.
    LASTING_DRAWS = 16
    # Changes of a pool that are carried out together, where states may be asked for.
    TRACKED_JOURNAL = 1 << 12
    # The digest of so many weights takes as long as all else that is saved of a mux.
    MANY_WEIGHTS = 1 << 14


cdef struct Slot:
    int64_t count                      # samples that the stream in this slot has given
    int64_t bound                      # how many it may give


# Prefetching. Where streams are in no cache, most of a sample's time is waiting for memory. The
# processor loads it meanwhile if it is told the address some samples before; a wrong address costs
# nothing but the load. Two things are known so early: the next draws, and which streams start soon.
#
# Medians of alternating blocks, ns a sample, with and without prefetching:
#     ShuffledMux of 10,000                        87     204
#     ShuffledMux of 100,000                      191     516
#     StochasticMux, 10,000 of 20,000 open        290     428
#     StochasticMux, 100 of 1,000,000 open        191     255


cdef enum:
    # Of so many open streams, most are in no cache. What is prefetched for one that starts has left
    # the cache again before its first sample is due.
    MANY_SLOTS = 1 << 11
    # Of so many streamers, most are in no cache.
    MANY_STREAMERS = 1 << 14


cdef inline Py_ssize_t likely_slot(Categorical chooser, double u) noexcept:
    """The slot that a draw of about u will pick; -1 where that takes long to find."""
    return choose(chooser, u) if u >= 0.0 and (chooser.equal or chooser.indexed) else -1


cdef void prefetch_turns(Uniform uniform, Categorical chooser, list streams, Slot* slots) noexcept:
    """Prefetch for the draws to come: a slot four samples before its turn, its stream two before.
    """
    cdef Py_ssize_t slot = likely_slot(chooser, peek(uniform, 3))
    cdef int line
    if slot >= 0:
        PREFETCH(<char*>items_of(streams) + slot * sizeof(void*))
        PREFETCH(&slots[slot])
    slot = likely_slot(chooser, peek(uniform, 1))
    if slot >= 0:
        # A generator and its frame.
        for line in range(4):
            PREFETCH(<char*>PyList_GET_ITEM(streams, slot) + 64 * line)


cdef int prefetch_start(list pool, Py_ssize_t* picked, Py_ssize_t i) except -1:
    """Prefetch what streamer i of a pool starts from; `picked` keeps the two before it, or -1.

    Each address is read from what was prefetched before, so one step is taken whenever a stream is
    picked: for the last one the reference to its streamer, for the one before it the streamer, for
    the third its attributes.
    """
    cdef dict fields
    cdef char* streamer
    PREFETCH(<char*>items_of(pool) + i * sizeof(void*))
    if picked[0] >= 0:
        # The GC header and the dict pointer precede the object.
        streamer = <char*>PyList_GET_ITEM(pool, picked[0])
        PREFETCH(streamer - 32)
        PREFETCH(streamer)
    if picked[1] >= 0:
        fields = plain_fields(<object>PyList_GET_ITEM(pool, picked[1]))
        if fields is not None:
            prefetch_values(fields)
    picked[1] = picked[0]
    picked[0] = i
    return 0


cdef class ReadOnlyMemory:
    """Shows NumPy the memory of an array as read-only: no view of it can be made writable."""

    cdef object array

    def __cinit__(self, array):
        self.array = array

    @property
    def __array_interface__(self):
        interface = self.array.__array_interface__
        return {**interface, "data": (interface["data"][0], True)}


cpdef object as_streamer(object streamer):
    """Return a member of a pool as a Streamer."""
    return streamer if isinstance(streamer, Streamer) else Streamer(streamer)


def read_only(array):
    """Return a view that follows the engine's array and cannot be written."""
    return np.asarray(ReadOnlyMemory(array))


cpdef list vacant(n):
    """Return a list of n vacant slots."""
    try:
        return [None] * n
    except (MemoryError, OverflowError):
        raise ArgumentError(f"n_active={n} open streams are more than memory can hold") from None


cdef class Engine(Compiled):
    """An active set of `k` slots, and how a slot is filled, pulled from and emptied."""

    # What is activated.
    cdef object mux                    # the loop reads nothing of it
    cdef list pool                     # its streamers
    cdef Py_ssize_t n                  # how many
    cdef Py_ssize_t k                  # slots in the active set
    cdef Scope scope                   # of this activation
    cdef Scope inner                   # of the streams: `scope`, or a bare one
    cdef Py_ssize_t depth              # how many engines this one is nested in
    # The active set.
    cdef object indices                # int64[k], the memory of `which`
    cdef int64_t* which                # place in the pool of the streamer in each slot, or -1
    cdef object table                  # int64[k, 2], the memory of `slots`
    cdef Slot* slots
    cdef list streams                  # k: the iterator in each slot, None before its first sample
    cdef Ending* endings               # k: who keeps to the bound of each
    cdef dict copies                   # id of a streamer with hooks -> its copy, see _core.start
    cdef Py_ssize_t passed             # of a chain, how many streamers came before this one
    cdef bint running
    # For the state of an open stream.
    cdef object known_recipe           # what a state of it is a state of
    cdef Py_ssize_t turn               # the slot that the next sample is to come from
    cdef bint failed                   # pulling from it has raised; the next state starts there
    cdef bint resumes                  # the next sample comes from `turn`, as a state says
    cdef bint torn                     # it was interrupted while it chose a stream
    cdef public bint is_shown          # an activated copy shows it, and may go on after an error

    def __cinit__(self, mux, Scope scope, Py_ssize_t k, *args):
        self.mux = mux
        self.k = k
        self.scope = self.inner = scope
        self.copies = {}
        self.streams = vacant(k)
        self.table = np.zeros((k, 2), dtype=np.int64)
        self.slots = <Slot*>cnp.PyArray_DATA(self.table)
        self.indices = np.full(k, -1, dtype=np.int64)
        self.which = <int64_t*>cnp.PyArray_DATA(self.indices)
        self.endings = <Ending*>zeros(k, sizeof(Ending))

    def __init__(self, mux, Scope scope, Py_ssize_t k):
        self.pool = list(mux.streamers)
        self.n = len(self.pool)
        if self.n >= MANY_WEIGHTS and self.is_tracked():
            self.known_recipe = mux.__pescador_recipe__()

    def __dealloc__(self):
        PyMem_Free(self.endings)

    def __next__(self):
        cdef PyObject* item
        cdef bint failed = True
        Engine.begin_steps(self)
        try:
            item = Engine.step(self)
            failed = False
        finally:
            Engine.end_steps(self, failed)
        if item is NULL:
            raise StopIteration
        return steal(item)

    cdef int begin_steps(self) except -1:
        if self.running:
            raise ValueError("mux already executing")
        self.running = True
        return 0

    cdef PyObject* step(self) except? NULL:
        cdef PyObject* item = NULL
        if self.left > 0:
            item = self.advance()
            self.left -= item is not NULL
        return item

    cdef int end_steps(self, bint failed) except -1:
        self.failed = failed
        # Whoever keeps the error keeps the engine, by way of the traceback.
        if failed and not (self.is_shown or self.is_tracked()):
            self.left = 0
            self.let_go()
        self.running = False
        return 0

    cdef PyObject* advance(self) except? NULL:
        """The next sample of the mux, or NULL when it is over."""
        raise NotImplementedError

    cdef bint is_tracked(self):
        """Whether states may be asked for, after an error as well."""
        return self.scope.run is not None and self.scope.run.tracks

    # ---- the state of an open stream

    cdef str name(self):
        """What to call it in an error."""
        return f"{place_of(self.path)}{self.mux!r}"

    cpdef dict save(self, saver):
        if self.torn:
            saver.refuse(self.name(), "it was interrupted while it chose a stream")
        state = {
            "left": self.left,
            "which": self.indices.copy(),
            "slots": self.table.copy(),
            "streams": [None if stream is None else saver.save_visit(stream)
                        for stream in self.streams],
            "visits": visits_of(self.scope),
            "turn": self.turn if self.failed or self.resumes else -1,
            "generators": save_generators(self.scope),
            "late": save_late(self.scope),
            "hooked": {str(place): saver.attributes(
                attributes_of(copied), f"{place_of(self.path)}streamers[{place}]: {streamer!r}")
                       for streamer, copied, place in self.copies.values()
                       if self.member(place) is streamer},
        }
        if not self.scope.run.is_seeded:
            # Streams that are not open yet may draw from it, as muxes and sources.
            saver.uses_global_state()
        self.save_choice(state, saver)
        return state

    cdef object member(self, Py_ssize_t place):
        """The streamer at a place, if it is the same each time that it is started."""
        if not 0 <= place < len(self.pool):
            raise IndexError(f"there is no streamer {place}")
        return self.pool[place]

    cdef int save_choice(self, dict state, saver) except -1:
        """Add what decides which stream is next."""
        return 0

    cpdef object restore(self, dict state, loader):
        cdef Py_ssize_t k = len(state["which"])
        if k > self.k or (k < self.k and loader.strict):
            raise loader.error(self.name(), f"it has {self.k} streams open, and had {k} when its "
                               "state was taken; streams may only be added, at the end")
        self.left = loader.whole(state, "left", 0)
        self.indices[:k] = loader.numbers(state, "which", (k,), -1, len(self.pool) - 1)
        self.table[:k] = loader.numbers(state, "slots", (k, 2))
        self.turn = loader.whole(state, "turn", -1, k - 1)
        self.resumes = self.turn >= 0
        restore_generators(self.scope, state["generators"], loader, self.name())
        restore_late(self.scope, state["late"], self.mux, loader)
        set_visits(self.scope, state["visits"], len(self.pool))
        self.restore_choice(state, loader)
        for place, attributes in state["hooked"].items():
            self.inner.place = int(place)
            loader.set_attributes(
                hooked_copy(self.member(int(place)), self.inner, self.copies), attributes)
        if len(state["streams"]) != k:
            raise ValueError(f"there are {k} slots, and {len(state['streams'])} streams")
        for slot, saved in enumerate(state["streams"]):
            self.streams[slot] = None
            if saved is not None:
                if self.which[slot] < 0:
                    raise ValueError(f"slot {slot} is vacant, and has a stream")
                number, stream = saved
                self.restore_stream(slot, number, stream, loader)

    cdef int restore_choice(self, dict state, loader) except -1:
        return 0

    cdef Py_ssize_t resumed(self) noexcept:
        """The slot that was drawn already when the state was taken."""
        self.resumes = False
        return self.turn

    cdef int restore_stream(self, Py_ssize_t slot, number, dict state, loader) except -1:
        """Start the stream of a slot as the visit that it was, and have it go on from there."""
        cdef int64_t before = self.inner.number
        self.inner.number = number
        try:
            self.begin(slot)
        finally:
            self.inner.number = before
        loader.restore(self.streams[slot], state)
        return 0

    cpdef object replay_cost(self):
        return sum([stream.replay_cost() for stream in self.streams
                    if isinstance(stream, Compiled)])

    cpdef object close_streams(self):
        for stream in self.streams:
            if isinstance(stream, Compiled):
                (<Compiled>stream).close_streams()

    def shown(self):
        return self.mux, None, [stream for stream in self.streams if isinstance(stream, Compiled)]

    @property
    def path(self):
        """Which visit this is."""
        return self.scope.path

    @property
    def recipe(self):
        """What the state is a state of."""
        if self.known_recipe is None:
            self.known_recipe = self.mux.__pescador_recipe__()
        return self.known_recipe

    cdef int let_go(self) except -1:
        """Drop all streams; there will be no other sample."""
        cdef Py_ssize_t slot
        self.copies = {}
        for slot in range(self.k):
            self.vacate(slot)
        return 0

    cdef inline PyObject* pull(self, Py_ssize_t slot) except? NULL:
        """The next sample of the stream in a slot, or NULL when that stream is over."""
        cdef Slot* row = &self.slots[AT(slot, self.k)]
        if PyList_GET_ITEM(self.streams, slot) is <PyObject*>None:
            self.begin(slot)
        cdef PyObject* item
        if row.count == row.bound:
            if self.endings[slot] == STEP_ONCE_MORE:
                Py_XDECREF(next_item(<object>PyList_GET_ITEM(self.streams, slot)))
            return NULL
        item = next_item(<object>PyList_GET_ITEM(self.streams, slot))
        if item is not NULL:
            row.count += 1
        return item

    cdef inline int begin(self, Py_ssize_t slot) except -1:
        """Start the stream of a slot: nothing of a streamer is touched before its first sample."""
        cdef Py_ssize_t i = self.which[slot]
        if not 0 <= i < len(self.pool):
            raise SystemError(f"slot {slot} of a mux of {self.n} streams has stream {i}")
        streamer = self.pool[i]
        if not is_plain(streamer):
            # It may have been put into the pool after construction.
            streamer = as_streamer(streamer)
        self.inner.place = self.passed + i
        if self.scope.run is None:
            self.streams[slot] = start(streamer, self.slots[slot].bound, self.inner,
                                       &self.endings[slot], self.copies)
        else:
            self.streams[slot] = self.start_in_run(streamer, slot)
        if self.fused and self.endings[slot] == STOP:
            fuse(self.streams[slot])
        if self.endings[slot] == ENDS_ITSELF:
            self.slots[slot].bound = UNBOUNDED
        elif self.endings[slot] == STOP and isinstance(self.streams[slot], Engine):
            (<Engine>self.streams[slot]).depth = self.depth + 1
            # Engines call each other in C, where nothing else would stop them in time.
            if self.depth >= sys.getrecursionlimit():
                raise RecursionError("muxes are nested more deeply than Python's recursion limit, "
                                     f"{sys.getrecursionlimit()}")
        return 0

    cdef object start_in_run(self, object streamer, Py_ssize_t slot):
        """Start the stream of a slot; one that fails to start is the same visit when it does."""
        cdef int64_t n_visits = 0
        if self.inner.place < self.inner.n_visits:
            n_visits = self.inner.visits[self.inner.place]
        try:
            if (<Run>self.inner.run).elsewhere is not None:
                stream = (<Run>self.inner.run).elsewhere.visit(
                    streamer, self.slots[slot].bound - self.slots[slot].count, self.inner,
                    &self.endings[slot])
                if stream is not None:
                    return stream
            return start(streamer, self.slots[slot].bound, self.inner, &self.endings[slot],
                         self.copies)
        except BaseException:
            if self.inner.place < self.inner.n_visits:
                self.inner.visits[self.inner.place] = n_visits
            raise

    cdef inline int assign(self, Py_ssize_t slot, Py_ssize_t i, int64_t bound) except -1:
        self.which[AT(slot, self.k)] = i
        self.slots[slot].count = 0
        self.slots[slot].bound = bound
        self.streams[slot] = None
        return 0

    cdef inline int vacate(self, Py_ssize_t slot) except -1:
        self.which[AT(slot, self.k)] = -1
        self.streams[slot] = None
        return 0

    # Attributes of an activated copy.

    @property
    def rng(self):
        if self.scope.seeded is not None:
            return self.scope.seeded
        found = self.scope.find(id(self.mux.rng))
        return self.mux.rng if found is None else found

    @property
    def streams_(self):
        return [None if i < 0 else SlotStream(self, slot) for slot, i in enumerate(self.indices)]

    @property
    def stream_counts_(self):
        return read_only(self.table[:, 0])

    @property
    def stream_idxs_(self):
        return read_only(self.indices)


cdef class SlotStream:
    """The stream in a slot of an engine, as an iterator; samples taken here are counted there."""

    cdef Engine engine
    cdef Py_ssize_t slot

    def __cinit__(self, Engine engine, Py_ssize_t slot):
        if not 0 <= slot < engine.k:
            raise IndexError(f"slot={slot} must be from 0 to {engine.k - 1}")
        self.engine = engine
        self.slot = slot

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        self.engine.begin_steps()
        try:
            if self.engine.which[self.slot] >= 0:
                item = self.engine.pull(self.slot)
        finally:
            self.engine.running = False
        if item is NULL:
            raise StopIteration
        return steal(item)


cdef class WeightedEngine(Engine):
    """Slots chosen at random, in proportion to their weights."""

    cdef Uniform uniform
    cdef object weights                # float64[k], the memory of `w`
    cdef double* w                     # the weight of each slot, 0 where no sample can come from
    cdef Sums sums                     # of parts of them
    cdef double norm                   # of all of them
    cdef Categorical chooser           # made from them
    cdef bint is_stale                 # weights have changed since then
    cdef Py_ssize_t since              # draws since the last change

    def __cinit__(self, mux, Scope scope, Py_ssize_t k, *args):
        self.weights = np.zeros(k)
        self.w = <double*>cnp.PyArray_DATA(self.weights)
        self.sums = Sums(k)
        self.sums.sum_up(self.w)
        self.chooser = Categorical(k)

    cdef int save_choice(self, dict state, saver) except -1:
        state["weights"] = self.weights.copy()
        return 0

    cdef int restore_choice(self, dict state, loader) except -1:
        cdef Py_ssize_t slot, k = len(state["which"])
        self.weights[:k] = np.asarray(state["weights"]).reshape(k)
        for slot in range(k):
            if not (0.0 <= self.w[slot] < INFINITY) or (self.w[slot] and self.which[slot] < 0):
                raise ValueError(f"slot {slot} has stream {self.which[slot]} and the weight "
                                 f"{self.w[slot]}")
        if self.resumes and self.which[self.turn] < 0:
            raise ValueError(f"'turn' is {self.turn}, a slot that is vacant")
        if not loader.strict:
            # A slot of weight 0 is out.
            for slot in range(k):
                if self.w[slot] != 0.0 and self.which[slot] >= 0:
                    self.w[slot] = self.mux.weights[self.which[slot]]
        self.take_weights()
        return 0

    cdef void take_weights(self) noexcept:
        """Note that all weights were set, and are expected to stay a while."""
        self.norm = self.sums.sum_up(self.w)
        self.is_stale = True
        self.since = self.k + LASTING_DRAWS

    cdef inline void set_weight(self, Py_ssize_t slot, double weight) noexcept:
        if self.w[AT(slot, self.k)] != weight:
            self.w[slot] = weight
            self.norm = self.sums.update(slot)
            self.is_stale = True
            self.since = 0

    cdef inline Py_ssize_t next_slot(self) except -1:
        """The slot that the next sample comes from."""
        cdef double u = draw(self.uniform)
        if self.is_stale:
            return self.choose_anew(u)
        cdef Py_ssize_t slot = choose(self.chooser, u)
        if self.k > MANY_SLOTS:
            prefetch_turns(self.uniform, self.chooser, self.streams, self.slots)
        return slot

    cdef Py_ssize_t choose_anew(self, double u) except -1:
        """The slot that a draw picks when weights have changed since the chooser was set.

        While they change every few draws, the sums are searched instead, which give the same slot
        or, where rounding may decide, none.
        """
        cdef Py_ssize_t slot
        if self.k > 128 and self.since < LASTING_DRAWS + self.k // 16:
            self.since += 1
            slot = pick_by_sums(self.sums, u)
            if slot >= 0:
                return slot
        self.chooser.set_weights(self.w, self.norm)
        self.is_stale = False
        return choose(self.chooser, u)

    @property
    def stream_weights_(self):
        return read_only(self.weights)

    @property
    def weight_norm_(self):
        return np.sum(self.weights)


@cython.final
cdef class ShuffledEngine(WeightedEngine):
    """Every stream has a slot; one that ends is restarted, one without samples is left out."""

    def __init__(self, mux, Scope scope, Py_ssize_t k):
        super().__init__(mux, scope, k)
        self.uniform = Uniform(self.rng)
        self.weights[:] = mux.weights
        self.take_weights()
        cdef Py_ssize_t slot
        for slot in range(k):
            if self.w[slot] != 0.0:
                self.which[slot] = slot
                self.slots[slot].bound = UNBOUNDED

    cdef PyObject* advance(self) except? NULL:
        cdef Py_ssize_t slot
        cdef PyObject* item
        while self.norm > 0.0:
            if self.resumes:
                slot = self.resumed()
            else:
                # Who fails to draw is to draw again.
                self.turn = -1
                slot = self.turn = self.next_slot()
            item = self.pull(slot)
            if item is not NULL:
                return item
            if self.slots[slot].count == 0:
                PyErr_CheckSignals()
                self.set_weight(slot, 0.0)
                self.vacate(slot)
            else:
                self.assign(slot, slot, UNBOUNDED)
        return NULL


@cython.final
cdef class StochasticEngine(WeightedEngine):
    """A random few of many streams at a time, each replaced after a random number of samples."""

    cdef object pool_weights           # float64[n], the memory of `pool_w`
    cdef double* pool_w
    cdef Pool available
    cdef object valid                  # uint8[n], the memory of `is_valid`
    cdef unsigned char* is_valid       # streams that were not found empty
    cdef Py_ssize_t n_valid
    cdef bint prune
    cdef bint replaces                 # picks with replacement: a stream may be in several slots
    cdef bint revives                  # a stream that ended may come back
    cdef object constant               # the bound of every stream, or None where it is drawn
    cdef bint binomial
    cdef double rate
    cdef Counts counts
    cdef bint alike                    # all pool weights are equal
    cdef bint prefetches               # whether what streams start from is prefetched
    cdef Py_ssize_t[2] picked          # see prefetch_start
    cdef bint restarts                 # a stream that was found empty may come back
    cdef set found                     # streams that were found empty since the last sample
    cdef int64_t visits                # how often, in all
    cdef int64_t before                # what `left` was then
    cdef bint warned                   # whether that was often enough for a warning

    def __init__(self, mux, Scope scope, Py_ssize_t k, poisson_mean, draw_initial):
        super().__init__(mux, scope, k)
        self.uniform = Uniform(self.rng)
        self.pool_weights = np.array(mux.weights, dtype=np.float64)
        self.pool_w = <double*>cnp.PyArray_DATA(self.pool_weights)
        self.alike = bool((self.pool_weights == self.pool_weights[0]).all())
        self.prefetches = self.n >= MANY_STREAMERS and k <= MANY_SLOTS
        self.picked[:] = [-1, -1]
        self.available = Pool(self.n)
        if self.is_tracked():
            # It is a part of states.
            self.available.longest = min(self.available.longest, TRACKED_JOURNAL)
        self.valid = np.ones(self.n, dtype=np.uint8)
        self.is_valid = <unsigned char*>cnp.PyArray_DATA(self.valid)
        self.n_valid = self.n
        self.prune = mux.prune_empty_streams
        self.replaces = mux.mode == "with_replacement"
        self.revives = mux.mode == "single_active"
        self.restarts = self.revives or (self.replaces and not self.prune)
        self.found = set()

        self.constant = None
        if mux.rate is None:
            self.constant = UNBOUNDED
        elif mux.dist == "constant":
            self.constant = as_bound(mux.rate)
        else:
            self.rate = mux.rate
            self.counts = Counts(self.uniform, poisson_mean)
            self.binomial = mux.dist == "binomial"

        initial = draw_initial(self.rng)
        if initial is not None:
            self.weights[:] = initial
            self.take_weights()
        cdef Py_ssize_t slot
        for slot in range(k):
            if self.available.m == 0:
                break
            self.new_stream(slot)
            if slot % MANY_SLOTS == 0:
                PyErr_CheckSignals()
        self.take_weights()

    cdef PyObject* advance(self) except? NULL:
        cdef Py_ssize_t slot
        cdef PyObject* item
        while self.n_valid > 0 and self.norm > 0.0:
            if self.resumes:
                slot = self.resumed()
            else:
                # Who fails to draw is to draw again.
                self.turn = -1
                slot = self.turn = self.next_slot()
            item = self.pull(slot)
            if item is not NULL:
                return item
            if self.slots[slot].count == 0:
                self.note_empty(self.which[slot])
            self.replace(slot)
        return NULL

    cdef int save_choice(self, dict state, saver) except -1:
        WeightedEngine.save_choice(self, state, saver)
        state["pool"] = self.available.save()
        state["pruned"] = np.flatnonzero(self.valid == 0)
        return 0

    cdef int restore_choice(self, dict state, loader) except -1:
        WeightedEngine.restore_choice(self, state, loader)
        cdef Py_ssize_t longest = self.available.longest
        self.available = Pool(self.n)
        self.available.longest = longest
        self.available.restore(state["pool"])
        self.valid[:] = 1
        self.valid[loader.numbers(state, "pruned", None, 0, self.n - 1)] = 0
        self.n_valid = np.count_nonzero(self.valid)
        return 0

    cdef int replace(self, Py_ssize_t slot) except -1:
        """Retire the stream of a slot and bring another in, if any is left."""
        cdef Py_ssize_t i = self.which[slot]
        # What is raised before the end leaves it so.
        self.torn = True
        if self.prune and self.slots[slot].count == 0:
            self.available.set(i, False)
            self.n_valid -= self.is_valid[AT(i, self.n)]
            self.is_valid[i] = False
        if self.revives:
            self.available.set(i, True)
        if self.available.m > 0:
            self.available.renormalise()
            self.new_stream(slot)
        else:
            self.set_weight(slot, 0.0)
            self.vacate(slot)
        self.torn = False
        return 0

    cdef int new_stream(self, Py_ssize_t slot) except -1:
        """Pick a stream and its number of samples. The order of the two draws is a promise."""
        cdef Py_ssize_t i = self.available.find(draw(self.uniform))
        cdef double weight = self.pool_w[0] if self.alike else self.pool_w[AT(i, self.n)]
        cdef int64_t bound = self.draw_bound(slot, weight)
        if not self.replaces:
            self.available.set(i, False)
            self.available.renormalise()
        self.set_weight(slot, weight)
        if self.prefetches:
            prefetch_start(self.pool, self.picked, i)
        return self.assign(slot, i, bound)

    cdef int64_t draw_bound(self, Py_ssize_t slot, double weight) except -1:
        cdef double others, p
        if self.constant is not None:
            return self.constant
        if self.binomial:
            # The chance that a sample comes from this stream, once it is in the active set.
            others = self.norm - self.w[slot] + weight
            p = weight / others
            if not (isnan(p) or p > 0.9999):
                return 1 + self.counts.binomial((self.rate - 1.0) / (1.0 - p), 1.0 - p)
        return 1 + self.counts.poisson()

    cdef int note_empty(self, Py_ssize_t i) except -1:
        """Note a visit to stream i, which gave nothing."""
        PyErr_CheckSignals()
        if not self.restarts:
            return 0
        if self.left != self.before:
            self.before = self.left
            self.visits = 0
            self.found.clear()
        self.visits += 1
        self.found.add(i)
        if self.visits % (EMPTY_PASSES * self.n) == 0:
            self.warned = _empty.check_visits(
                self.mux, self, self.pool, self.visits, self.found, self.warned)
        return 0

    @property
    def distribution_(self):
        return read_only(self.available.distribution)

    @property
    def valid_streams_(self):
        return read_only(self.valid.view(np.bool_))


@cython.final
cdef class RoundRobinEngine(Engine):
    """Every stream in turn; exhausted ones are skipped until the round is over."""

    cdef object generator
    cdef bint cycles, permutes
    cdef object ring                   # int64[k], the memory of `following`
    cdef int64_t* following            # the next slot that is not exhausted, round and round
    cdef Py_ssize_t at, before
    cdef Py_ssize_t turn_before        # `before`, when `turn` was chosen
    cdef Py_ssize_t alive
    cdef int empty                     # rounds in a row that gave nothing

    def __init__(self, mux, Scope scope, Py_ssize_t k):
        super().__init__(mux, scope, k)
        self.ring = np.zeros(k, dtype=np.int64)
        self.following = <int64_t*>cnp.PyArray_DATA(self.ring)
        self.generator = self.rng
        self.cycles = mux.mode != "exhaustive"
        self.permutes = mux.mode == "permuted_cycle"
        self.begin_round(False)

    cdef int save_choice(self, dict state, saver) except -1:
        state["following"] = self.ring.copy()
        state["alive"] = self.alive
        # A stream that has failed is tried again.
        state["at"] = self.turn if self.failed else self.at
        state["before"] = self.turn_before if self.failed else self.before
        return 0

    cdef int restore_choice(self, dict state, loader) except -1:
        cdef Py_ssize_t i, slot, n = len(state["which"])
        self.ring[:n] = loader.numbers(state, "following", (n,), 0, n - 1)
        self.alive = loader.whole(state, "alive", 0, n)
        self.at = loader.whole(state, "at", 0, max(n - 1, 0))
        self.before = loader.whole(state, "before", 0, max(n - 1, 0))
        # They are a ring.
        slot = self.before
        for i in range(self.alive):
            slot = self.following[slot]
            if self.which[slot] < 0 or (i == 0) != (slot == self.at):
                break
        else:
            i = self.alive
        if i < self.alive or (self.alive and slot != self.before):
            raise ValueError(f"'following' does not lead round {self.alive} streams")
        # Those that were added since come last in this round.
        for i in range(n, self.k):
            self.assign(i, i, UNBOUNDED)
            self.following[i] = self.at if self.alive else i
            self.following[self.before if self.alive else i] = i
            if not self.alive:
                self.at = i
            self.before = i
            self.alive += 1
        return 0

    cdef int begin_round(self, bint permute) except -1:
        order = np.arange(self.k)
        if permute:
            self.generator.shuffle(order)
        cdef Py_ssize_t slot
        if self.k == 0:
            return 0
        self.indices[:] = order
        for slot in range(self.k):
            self.slots[slot].count = 0
            self.slots[slot].bound = UNBOUNDED
            self.following[slot] = slot + 1
        self.following[self.k - 1] = 0
        self.at = 0
        self.before = self.k - 1
        self.alive = self.k
        return 0

    cdef PyObject* advance(self) except? NULL:
        cdef Py_ssize_t slot, before
        cdef PyObject* item
        while self.alive > 0 or self.next_round():
            # Move on first: a stream that fails has had its turn.
            slot = self.turn = self.at
            before = self.turn_before = self.before
            self.at = self.following[AT(slot, self.k)]
            self.before = slot
            item = self.pull(slot)
            if item is not NULL:
                return item
            PyErr_CheckSignals()
            self.vacate(slot)
            self.before = before
            self.following[AT(before, self.k)] = self.at
            self.alive -= 1
        return NULL

    cdef bint next_round(self) except? True:
        """Begin another round; False when there is none."""
        if self.k == 0 or not self.cycles:
            return False
        if ends_empty(&self.empty, self.gave()):
            raise _empty.empty_mux(self.mux, self.pool)
        self.begin_round(self.permutes)
        return True

    cdef bint gave(self) noexcept:
        """Whether this round gave a sample."""
        cdef Py_ssize_t slot
        for slot in range(self.k):
            if self.slots[slot].count > 0:
                return True
        return False

    @property
    def active_index_(self):
        return self.at


@cython.final
cdef class ShardedEngine(Engine):
    """The shards of one rank in turn, again and again.

    Parameters
    ----------
    rounds : int or None
        How many items each shard gives; None has it go on for ever.
    """

    cdef Py_ssize_t at                 # the slot whose turn it is
    cdef object shards                 # of the part, each made when it is asked for

    def __init__(self, mux, Scope scope, Py_ssize_t k, rounds):
        cdef Py_ssize_t slot
        cdef int64_t bound = as_bound(rounds)
        self.shards = mux.streamers
        self.pool = [None] * k
        self.n = k
        for slot in range(k):
            self.assign(slot, slot, bound)

    cdef int take_shard(self, Py_ssize_t slot) except -1:
        """Have the shard of a slot in the pool, before its stream starts."""
        if self.pool[slot] is None:
            self.pool[slot] = self.shards[slot]
        return 0

    cdef PyObject* advance(self) except? NULL:
        if PyList_GET_ITEM(self.streams, self.at) is <PyObject*>None:
            self.take_shard(self.at)
        cdef PyObject* item = self.pull(self.at)
        if item is not NULL:
            self.at = self.at + 1 if self.at + 1 < self.k else 0
        elif self.slots[self.at].count < self.slots[self.at].bound:
            raise self.mux.__pescador_ended__(self.given)
        return item

    @property
    def given(self):
        """How many items it has given."""
        return self.slots[self.at].count * self.k + self.at

    cpdef dict save(self, saver):
        return {
            "left": self.left,
            "rank": self.mux.rank,
            "world_size": self.mux.world_size,
            "given": self.given,
            "shards": [[self.mux.rank + slot * self.mux.world_size, *saver.save_visit(stream)]
                       for slot, stream in enumerate(self.streams) if stream is not None],
        }

    cpdef object restore(self, dict state, loader):
        cdef Py_ssize_t slot
        self.left, given = self.mux.__pescador_place__(state, loader)
        self.at = given % self.k
        for slot in range(self.k):
            self.slots[slot].count = given // self.k + (slot < self.at)
        for shard, number, stream in state["shards"]:
            if not 0 <= shard < self.mux.shards:
                raise ValueError(f"there is no shard {shard}")
            if shard % self.mux.world_size == self.mux.rank:
                slot = shard // self.mux.world_size
                self.take_shard(slot)
                self.restore_stream(slot, number, stream, loader)
        for slot in range(self.k):
            if self.slots[slot].count and self.streams[slot] is None:
                raise ValueError(f"stream {slot} has given {self.slots[slot].count} items, "
                                 "and has no state")


@cython.final
cdef class ChainEngine(Engine):
    """One stream after another, each to its end."""

    cdef object streamers              # the list, or the generator function of them
    cdef bint is_made                  # whether it is a function
    cdef object source                 # iterator over the streamers
    cdef bint cycles
    cdef bint ended                    # the last pass was begun
    cdef bint gave                     # whether an ended stream of this pass gave a sample
    cdef int empty                     # passes in a row that gave nothing
    cdef Scope maker                   # what the function of streamers runs in

    def __init__(self, mux, Scope scope, Py_ssize_t k):
        self.streamers = mux.streamers
        self.pool = [None]
        self.n = 1
        self.cycles = mux.mode == "cycle"
        self.slots[0].bound = UNBOUNDED
        self.is_made = callable(self.streamers)
        if self.is_made:
            # What a function makes is new: it holds originals, not copies of ours.
            self.inner = bare_scope(self.scope)
            self.maker = self.scope
            if self.scope.run is not None:
                # Nor would it be found from elsewhere.
                self.inner.run = (<Run>self.scope.run).alone()
                self.maker = root_scope(self.scope.run, self.scope.path)
        self.passed = self.inner.number = -1

    cdef PyObject* advance(self) except? NULL:
        cdef PyObject* item
        while self.which[0] >= 0 or self.next_streamer():
            item = self.pull(0)
            if item is not NULL:
                return item
            self.gave |= self.slots[0].count > 0
            self.vacate(0)
        return NULL

    cdef object member(self, Py_ssize_t place):
        if self.is_made:
            return None
        if not 0 <= place < len(self.streamers):
            raise IndexError(f"there is no streamer {place}")
        return self.streamers[place]

    cdef int save_choice(self, dict state, saver) except -1:
        state["passes"] = self.inner.number
        state["passed"] = self.passed
        state["in_pass"] = self.source is not None
        state["ended"] = bool(self.ended)
        state["gave"] = bool(self.gave)
        state["maker"] = saver.save(self.source) if isinstance(self.source, Compiled) else None
        return 0

    cdef int restore_choice(self, dict state, loader) except -1:
        cdef PyObject* item
        cdef Py_ssize_t n = state["passed"] + 1
        self.inner.number = state["passes"]
        self.ended = state["ended"]
        self.gave = state["gave"]
        self.passed = -1
        if not state["in_pass"]:
            return 0
        self.begin_pass()
        if state["maker"] is not None and n == 0:
            loader.restore(self.source, state["maker"])
        elif state["maker"] is not None:
            # The last of those that it has made is in the slot: it is made once more.
            maker = state["maker"]
            loader.restore(self.source, {**maker, "given": maker["given"] - 1})
            n = 1
        for _ in range(n):
            item = next_item(self.source)
            if item is NULL:
                raise loader.error(self.name(), f"it has no streamer {state['passed']} any more")
            self.pool[0] = as_streamer(steal(item))
        self.passed = state["passed"]
        return 0

    cdef int let_go(self) except -1:
        self.source = None
        self.pool[0] = None
        return Engine.let_go(self)

    cdef int begin_pass(self) except -1:
        """Have `source` iterate over the streamers."""
        cdef Ending ending = STOP
        if self.is_made:
            self.source = start(
                as_streamer(self.streamers), UNBOUNDED, self.maker, &ending, {})
        else:
            self.source = iter(self.streamers)
        return 0

    cdef int next_streamer(self) except -1:
        """Put the next streamer in the slot, which is vacant; False when there is none."""
        cdef PyObject* item
        while True:
            PyErr_CheckSignals()
            if self.source is None:
                if self.ended:
                    return False
                self.ended = not self.cycles
                self.passed = -1
                self.inner.number += 1
                self.begin_pass()
            item = next_item(self.source)
            if item is NULL:
                self.source = None
                if self.cycles and ends_empty(&self.empty, self.gave):
                    made = [self.chain_streamer_] if self.is_made else self.streamers
                    raise _empty.empty_mux(self.mux, made)
                self.gave = False
                continue
            streamer = steal(item)
            self.passed += 1
            if not is_plain(streamer):
                streamer = as_streamer(streamer)
            if self.is_made:
                self.copies.clear()
            self.pool[0] = streamer
            self.which[0] = self.slots[0].count = 0
            return True

    @property
    def chain_streamer_(self):
        return as_streamer(self.streamers)

    @property
    def stream_generator_(self):
        return self.source
