"""Visits in a run: an open stream, or one under a seed.

A visit is one activation of a streamer. Outside of a run nobody needs to know which one it is. In a
run it has a path, a seed of its own where there is one, and can be saved and restored.

docs/inside/states.rst explains it.
"""

import operator
import types
import warnings

import numpy as np

from pescador._core import iterate_hooked
from pescador.exceptions import ArgumentError, PescadorError, PescadorWarning

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.function cimport PyFunction_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from pescador._core cimport (
    STEP_ONCE_MORE, STOP, UNBOUNDED, BaseRun, Compiled, Ending, Scope, Wrapper,
    asks_for_generator, bare_scope, failed_start, fresh_sequence, give_generator, hooked_copy,
    map_of, new_memo, opened, path_of_visit, split_stream, start as start_stream, stopped_start,
)
from pescador._global_rng cimport (
    GlobalStates, Marks, has_moved, mark, seeded_states, set_bits,
)
from pescador._hooks cimport Family, family_of, is_plain, plain_fields
from pescador._isolation cimport Memo, all_simple, is_shared, isolate
from pescador._native.iterators cimport next_item, pescador_stream, steal
from pescador._native.python cimport Py_EnterRecursiveCall, Py_LeaveRecursiveCall
from pescador._native.seeds cimport Seed, seed_key, seed_words
from pescador._seeds cimport take_entropy

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        void* tp_iternext

cdef type RandomState = np.random.RandomState


cdef class Run(BaseRun):
    """One iteration of a tree of streamers that can be saved, or draws from one seed, or both.

    Parameters
    ----------
    tracks : bool
        Whether states can be taken.
    sequence : SeedSequence or None
        The seed of the root: those of visits append their paths to its ``spawn_key``.
    governs : tuple of str
        The global states that are each visit's own while its code runs.
    watches : bool
        Whether it can be noticed that a stream draws from those that are not; in a thread beside
        others, it cannot.
    """

    def __cinit__(self, bint tracks, sequence=None, tuple governs=(), bint watches=True):
        self.tracks = tracks
        self.watches = watches
        self.sequence = sequence
        self.governs = governs
        self.is_seeded = sequence is not None
        if self.is_seeded:
            take_entropy(&self.seed, sequence)

    @property
    def recipe(self):
        """What a state of the run is a state of: its seed, and what is drawn from it."""
        if not self.is_seeded:
            return None
        return {"entropy": self.sequence.entropy, "spawn_key": tuple(self.sequence.spawn_key),
                "states": self.governs}

    def alone(self):
        """Return the same run, of which nothing is made elsewhere."""
        return Run(self.tracks, self.sequence, self.governs, self.watches)

    cdef object random_state(self, tuple path):
        cdef Seed seed = seed_of_visit(self, path)
        cdef uint32_t[8] words
        seed_words(&seed, words)
        return RandomState([words[0], words[1], words[2], words[3]])

    cdef Compiled start(self, object streamer, dict fields, Scope scope, Ending* ending):
        cdef Leaf leaf = Leaf.__new__(Leaf)
        try:
            leaf.begin(streamer, fields["streamer"], fields["args"], fields["kwargs"], scope)
        except StopIteration as error:
            raise stopped_start() from error
        ending[0] = STOP if leaf.is_shared else STEP_ONCE_MORE
        return leaf

    cdef Compiled start_hooked(self, object streamer, int64_t bound, Scope scope, dict copies):
        cdef Leaf leaf = Leaf.__new__(Leaf)
        cdef Compiled node
        cdef Family family = family_of(type(streamer))
        copied = hooked_copy(streamer, scope, copies)
        if family.hooked is not None:
            node = family.hooked(copied, scope)
            if node is not None:
                node.left = bound
                return node
        leaf.take(streamer, scope)
        leaf.govern(scope)
        leaf.copied = copied
        leaf.bound = bound
        leaf.fields = attributes_of(leaf.copied)
        leaf.start_hooked()
        return leaf


cdef Seed seed_of_visit(Run run, tuple path) except *:
    """The seed of a visit in a seeded run."""
    cdef Seed seed = run.seed
    for number in path:
        seed_key(&seed, number)
    return seed


def states_of_visit(Scope scope, *, bint only_path=False):
    """Return the global states of a visit in a seeded run, None in others, and its path."""
    cdef tuple path = path_of_visit(scope)
    cdef Seed seed
    if only_path:
        return path
    if not scope.run.is_seeded:
        return None, path
    seed = seed_of_visit(scope.run, path)
    return seeded_states(&seed, ("numpy", "random")), path


cpdef Scope root_scope(run, path=()):
    """Return the scope that the root of a run starts in."""
    cdef Scope root = bare_scope(None)
    root.run = run
    root.is_root = True
    root.path = path
    return root


# Iterators that can be set to a place: those of types that cannot change but by iterating.
cdef frozenset INDEXED = frozenset(
    type(iter(value))
    for value in ([], (), "", "\u20ac", b"", bytearray(), range(1), range(1 << 70)))


# Iterators that go over what they hold and do nothing else: to go on, they step quickly.
cdef frozenset STEPPED = frozenset(
    type(iter(value)) for value in ({}, {}.values(), {}.items(), set(), np.empty(0)))


# To iterate over these runs no code that could draw.
cdef frozenset WITHOUT_CODE = frozenset(
    {list, tuple, str, bytes, bytearray, range, dict, set, frozenset, np.ndarray})


# Items after which a map of the user's is expensive to restore.
cdef enum:
    COSTLY_REPLAY = 100000


@cython.final
cdef class Leaf(Compiled):
    """A visit to a streamer that is no mux, in a run: its items, and how many it has given."""

    cdef Scope scope                   # in which it started
    cdef Py_ssize_t place              # in the pool there
    cdef int64_t number                # of this visit
    cdef object streamer               # the recipe
    cdef object iterator
    cdef Compiled inner                # the iterator, if it is a map of ours
    cdef GlobalStates states           # in place while its code runs, where they are governed
    cdef bint watches                  # whether drawing from the global states is noticed
    cdef bint has_drawn                # it did
    cdef bint is_shared                # it reads from what other activations read, too
    cdef bint steps                    # at its bound, the source is asked once more
    cdef list generators               # random generators that it was given, copies of the recipe's
    cdef list at_start                 # their states when it started
    cdef object copied                 # of a streamer with hooks: what it is iterated on
    cdef object fields                 # its attributes when this visit started
    cdef int64_t bound                 # how many items it was asked for
    cdef int64_t given
    cdef object drawn                  # what its states were when it was closed
    cdef bint is_past                  # its last step gave no item, and may have drawn for that

    def __next__(self):
        cdef PyObject* item
        if self.left > 0:
            item = self.pull()
            if item is not NULL:
                self.left -= 1
                self.given += 1
                result = steal(item)
                if self.given == COSTLY_REPLAY:
                    self.warn_of_replay()
                return result
        elif self.steps:
            self.steps = False
            Py_XDECREF(self.pull())
            self.is_past = True
        raise StopIteration

    cdef int warn_of_replay(self) except -1:
        """Say that a map of the user's makes the whole run again when a state is restored."""
        if self.scope.run.tracks and self.inner is None and self.is_replayed():
            args = getattr(self.streamer, "args", ())
            for value in (*args, *getattr(self.streamer, "kwargs", {}).values()):
                if family_of(type(value)) is not None:
                    warnings.warn(
                        f"{self.name()} has given {self.given:,} items, all of which would be made "
                        "again to restore its state: what it does to each item can be a function "
                        "for pescador.transform, whose state is that of its stream",
                        PescadorWarning, stacklevel=2)
                    return 0
        return 0

    cdef PyObject* pull(self) except? NULL:
        """The next item, or NULL."""
        cdef Marks marks
        cdef PyObject* item
        if self.inner is not None:
            return next_item(self.inner)
        if self.states is not None:
            self.is_past = True
            item = self.states.step(self.iterator)
            self.is_past = item is NULL
            return item
        if not self.watches:
            return next_item(self.iterator)
        mark(&marks)
        try:
            item = next_item(self.iterator)
        except BaseException:
            self.has_drawn = self.has_drawn or has_moved(&marks)
            raise
        if has_moved(&marks):
            self.note_drawing()
        return item

    cdef int note_drawing(self) except -1:
        self.has_drawn = True
        self.scope.run.has_drawn = True
        if self.scope.run.is_seeded:
            raise PescadorError(
                f"{self.name()} has drawn from the global random state, which its Seeded does not "
                "govern: leave `states` at its default, or draw from the generator that "
                "pescador.SPAWN stands for")
        return 0

    cdef int begin(self, object streamer, object source, object args, object kwargs,
                   Scope scope) except -1:
        """Start the visit: copy what it starts from, and call the function."""
        self.take(streamer, scope)
        make = map_of(source)
        if (make is None and PyFunction_Check(source) and type(args) is tuple
                and all_simple(<tuple>args) and type(kwargs) is dict and not <dict>kwargs):
            # As most are: nothing to isolate.
            self.govern(scope)
            return self.start(source, args)
        memo = new_memo(scope, again=True)
        parts = None if make is None else split_stream(args, kwargs)
        if parts is not None:
            stream, rest, named = parts
            make = make(*isolate(rest, memo), **isolate(named, memo))
            # A map adds nothing to the path: its stream is the same visit.
            number = scope.number
            if not scope.is_root:
                scope.number = self.number
            try:
                self.inner = make(open_visit(stream, scope, {}))
            finally:
                scope.number = number
            self.iterator = self.inner
            self.take_generators(memo)
            if self.inner.runs_code:
                self.govern(scope)
                self.inner.take_states(self.states, scope.run)
            if scope.run.is_seeded and self.inner.draws_globally:
                self.inner.take_rng(scope.run.random_state(self.path))
        else:
            if type(source) not in WITHOUT_CODE:
                self.govern(scope)
            source = isolate(source, memo)
            if callable(source) and args is not None:
                args, kwargs = isolate(args, memo), isolate(kwargs, memo)
                if asks_for_generator(kwargs):
                    self.spawn(kwargs, memo)
            self.take_generators(memo)
            self.start(start_iterator, (source, args, kwargs))
        self.is_shared = is_shared(memo)
        self.steps = not self.is_shared
        return 0

    cdef int take(self, object streamer, Scope scope) except -1:
        """Note which visit this is."""
        self.streamer = streamer
        self.scope = scope
        self.steps = True
        if not scope.is_root:
            self.place = scope.place
            self.number = scope.count()
        return 0

    @property
    def path(self):
        """Which visit this is."""
        if self.scope.is_root:
            return self.scope.path
        return self.scope.path + (self.place, self.number)

    cdef int govern(self, Scope scope) except -1:
        """Have its code draw from states of its own, or have it noticed."""
        cdef Seed seed
        cdef Run run = scope.run
        if run.is_seeded and run.governs:
            seed = seed_of_visit(run, self.path)
            self.states = seeded_states(&seed, run.governs)
        else:
            self.watches = run.watches and (run.tracks or run.is_seeded)
        return 0

    cdef int start(self, object function, tuple args) except -1:
        """Have a function return the iterator."""
        cdef Marks marks
        cdef PyObject* stream
        if self.states is not None:
            self.iterator = iter(self.states.call(function, args))
            return 0
        mark(&marks)
        stream = pescador_stream(function, args)
        self.iterator = failed_start() if stream is NULL else steal(stream)
        if self.watches and has_moved(&marks):
            self.note_drawing()
        return 0

    cdef int start_hooked(self) except -1:
        """Iterate over a copy whose hooks are to be called."""
        cdef Scope here
        if (<Family?>family_of(type(self.copied))).opener is not None:
            # What the hooks start is in this visit, and is not saved by itself.
            here = bare_scope(self.scope)
            here.path = self.path
            here.is_root = True
            if self.scope.run.is_seeded:
                here.run = Run(False, self.scope.run.sequence, self.scope.run.governs)
            else:
                here.run = None
            self.copied.__dict__["__pescador_around__"] = here
        self.start(iterate_hooked, (self.copied, None if self.bound == UNBOUNDED else self.bound))
        return 0

    cdef int spawn(self, dict kwargs, object memo) except -1:
        """Give the function the random generator of this visit, and no global states."""
        cdef Run run = self.scope.run
        if run.is_seeded:
            sequence = run.sequence
            sequence = np.random.SeedSequence(
                sequence.entropy, spawn_key=(*sequence.spawn_key, *self.path))
            self.states = None
            self.watches = run.watches
        else:
            sequence = fresh_sequence()
        generator = np.random.default_rng(sequence)
        give_generator(kwargs, generator)
        if not run.is_seeded and type(memo) is Memo:
            (<Memo>memo).generators.append(generator)
        return 0

    cdef int take_generators(self, object memo) except -1:
        if type(memo) is Memo and (<Memo>memo).generators:
            self.generators = (<Memo>memo).generators
            self.at_start = [state_of_generator(generator) for generator in self.generators]
        return 0

    cdef str name(self):
        """What to call it in an error."""
        return f"{place_of(self.path)}{self.streamer!r}"

    cdef bint has_own_state(self) except -1:
        """Whether the iterator can tell where it is, and be told."""
        return hasattr(self.iterator, "state_dict") and hasattr(self.iterator, "load_state_dict")

    cdef bint is_replayed(self) except -1:
        """Whether its items have to be made again to get where it is."""
        return not (self.inner is not None or type(self.iterator) in INDEXED
                    or type(self.iterator) in STEPPED or self.has_own_state())

    cpdef dict save(self, saver):
        cdef dict state = {"given": self.given, "left": self.left, "steps": self.steps}
        cdef bint replayed = self.is_replayed()
        if self.is_shared and not (self.inner is not None):
            saver.refuse(self.name(), "it reads from a generator object or an open file, which "
                         "nobody can read again: give Streamer a generator function or a list")
        if self.has_drawn:
            saver.refuse(self.name(), "it draws from the global random state of np.random or "
                         "random, which nobody else can repeat: iterate over pescador.Seeded(...), "
                         "or have it draw from a generator among its arguments")
        if self.inner is not None:
            state["map"] = self.inner.save(saver)
        elif self.has_own_state():
            state["position"] = saver.plain(
                self.iterator.state_dict(), f"the state_dict() of {self.name()}")
        if self.copied is not None:
            state["fields"] = saver.attributes(self.fields, self.name())
            state["bound"] = self.bound
        if self.generators is not None:
            state["generators"] = self.at_start if replayed else [
                state_of_generator(generator) for generator in self.generators]
        if self.states is not None:
            state["states"] = self.digest() if replayed else self.states.as_plain()
        return state

    cdef object digest(self):
        """What the states were after the last item, in a few words; None where it is not known."""
        if self.is_past:
            return None
        return self.states.digest() if self.drawn is None else self.drawn

    cpdef object restore(self, dict state, loader):
        cdef int64_t given = state["given"]
        cdef PyObject* item
        self.left = state["left"]
        self.steps = state["steps"]
        if self.inner is not None:
            self.set_generators(state, loader)
            self.given = given
            if "states" in state:
                self.states.take_plain(state["states"])
            self.inner.restore(state["map"], loader)
            return
        if self.copied is not None:
            loader.set_attributes(self.copied, state["fields"])
            self.fields = attributes_of(self.copied)
            self.bound = state["bound"]
            self.start_hooked()
        self.set_generators(state, loader)
        if "position" in state:
            self.iterator.load_state_dict(loader.own(state["position"]))
        elif type(self.iterator) in INDEXED:
            if given > operator.length_hint(self.iterator):
                raise loader.error(self.name(), f"it has given {given} items when its state was "
                                   f"taken, and has only {operator.length_hint(self.iterator)} now")
            self.iterator.__setstate__(given)
        else:
            while self.given < given:
                item = self.pull()
                if item is NULL:
                    raise loader.error(self.name(), f"it has given {given} items when its state "
                                       f"was taken, and has only {self.given} now")
                Py_XDECREF(item)
                self.given += 1
                if self.given % 1024 == 0:
                    PyErr_CheckSignals()
            if self.has_drawn and not loader.is_inexact:
                raise loader.error(self.name(), "it draws from the global random state now, and "
                                   "did not when its state was taken")
        self.given = given
        if self.states is not None:
            if not self.is_replayed():
                self.states.take_plain(state["states"])
            elif state["states"] is None:
                # So it was past its end; whoever saves this again says the same.
                self.is_past = True
            # Format 1 leaves out that of torch, which comes last.
            elif self.states.digest()[:len(state["states"])] != state["states"]:
                raise loader.error(self.name(), "it has drawn other random numbers up to here than "
                                   "when its state was taken")

    cdef int set_generators(self, dict state, loader) except -1:
        """Have the generators that it was given be where they were."""
        saved = state.get("generators", [])
        if len(saved) != len(self.generators or ()):
            raise loader.error(self.name(), f"it is given {len(self.generators or ())} random "
                               f"generators, and was given {len(saved)} when its state was taken")
        for generator, before in zip(self.generators or (), saved):
            set_generator(generator, before)
        if saved:
            self.at_start = saved
        return 0

    cpdef object replay_cost(self):
        if self.inner is not None:
            return self.inner.replay_cost()
        return self.given if self.is_replayed() else 0

    cpdef object close_streams(self):
        if self.inner is not None:
            self.inner.close_streams()
        elif not self.is_shared and hasattr(self.iterator, "close"):
            if self.states is None:
                self.iterator.close()
            else:
                if self.drawn is None:
                    self.drawn = self.states.digest()
                self.states.call(self.iterator.close, ())

    def __del__(self):
        # The code that a generator runs when it is closed may draw, too.
        if self.states is not None and self.iterator is not None and self.inner is None:
            self.close_streams()

    def shown(self):
        return self.streamer, self.given, [] if self.inner is None else self.inner.shown()[2]

    @property
    def recipe(self):
        """What the state is a state of."""
        return name_of(self.streamer)


def start_iterator(source, args, kwargs):
    """Return the iterator over an iterable, or over what a generator function returns."""
    return iter(source(*args, **kwargs) if callable(source) and args is not None else source)


cpdef Compiled open_visit(object streamer, Scope scope, dict copies):
    """Start one visit to a streamer, or to another iterable, in a run."""
    cdef Ending ending = STOP
    Py_EnterRecursiveCall(" while starting a stream of a stream")
    try:
        fields = plain_fields(streamer)
        if fields is not None and fields["stream_"] is None:
            return scope.run.start(streamer, fields, scope, &ending)
        if family_of(type(streamer)) is None or streamer.is_activated_copy:
            return leaf_over(streamer, scope)
        stream = opened(streamer, scope)
        if stream is None:
            return scope.run.start_hooked(streamer, UNBOUNDED, scope, copies)
        if scope.is_root and (<Run>scope.run).elsewhere is not None:
            return (<Run>scope.run).elsewhere.ahead_of(stream)
        return stream
    finally:
        Py_LeaveRecursiveCall()


cpdef Compiled start_visit(object streamer, int64_t bound, Scope scope):
    """Start one visit as a mux does, in a run; it is not asked for more than `bound` items."""
    cdef Ending ending = STOP
    return start_stream(streamer, bound, scope, &ending, {})


cdef class Elsewhere:
    """Who is asked for each visit in a pool of a run, before it is started here."""

    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope, Ending* ending):
        """What gives the items of a visit, at most `bound`; None if it is to be started here.

        `ending` says who keeps to the bound, as in `_core.start`.
        """
        raise NotImplementedError

    cdef Compiled ahead_of(self, Compiled engine):
        """What is to be read in the place of the engine at the root."""
        return engine


cdef Leaf leaf_over(object iterable, Scope scope):
    """A visit to an iterable that is no streamer, or to an activated copy, which is shared."""
    cdef Leaf leaf = Leaf.__new__(Leaf)
    if not (hasattr(type(iterable), "__iter__") or hasattr(type(iterable), "__getitem__")):
        raise ArgumentError(f"stream={iterable!r} must be an iterable, such as a Streamer")
    if family_of(type(iterable)) is None:
        leaf.begin(iterable, iterable, None, None, scope)
        return leaf
    leaf.take(iterable, scope)
    leaf.govern(scope)
    leaf.start(iter, (iterable,))
    leaf.is_shared = True
    return leaf


def step_as_reader(kind):
    """Have instances of a class be stepped as a Reader is, without a look-up of __next__.

    Python steps a subclass of a compiled class by a call of its method. A subclass of `kind`, and
    `kind` once its __next__ is assigned, are stepped so again.
    """
    (<PyTypeObject*>kind).tp_iternext = (<PyTypeObject*>Reader).tp_iternext


cdef class Inner(Wrapper):
    """A visit that runs under another seed than what is around it."""

    cdef Run run
    cdef readonly tuple path

    def __cinit__(self, Compiled node, Run run, Scope scope):
        self.node = node
        self.run = run
        self.path = path_of_visit(scope)

    @property
    def recipe(self):
        """What the state is a state of."""
        return self.run.recipe

    cpdef dict save(self, saver):
        return {"left": self.left, "stream": saver.save(self.node)}

    cpdef object restore(self, dict state, loader):
        self.left = state["left"]
        loader.restore(self.node, state["stream"])


cdef class Reader:
    """What an open stream is read through; `pescador.Stream` says how it starts and stops."""

    cdef Compiled node
    cdef readonly int64_t index        # items given
    cdef readonly bint running
    cdef readonly bint is_started      # an item was asked for
    cdef readonly bint over            # it has ended, has failed or was closed
    cdef readonly bint has_ended       # there is no item after the last one
    cdef bint counted                  # the streamer counts it as an open iteration

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        if self.running:
            raise ValueError("stream already executing")
        if self.over:
            raise StopIteration
        self.is_started = self.running = True
        try:
            if self.node is None:
                self._root()
            # list(stream) is a loop in C. A signal must not come between an item and its reader.
            if self.index % 1024 == 0:
                PyErr_CheckSignals()
            item = next_item(self.node)
        except BaseException:
            self.finish()
            raise
        finally:
            self.running = False
        if item is NULL:
            # At a bound, a state may be given another.
            self.has_ended = self.node.left > 0
            self.finish()
            raise StopIteration
        self.index += 1
        return steal(item)

    def __del__(self):
        self.end()

    def _root(self):
        """Return the iterator of the root; start it if need be."""
        if self.node is None:
            self.node = self._start()
            self.counted = True
            if self.over:
                self.end()
        return self.node

    def _resume(self, int64_t index, bint has_ended):
        """Have given so many items already."""
        self.index = index
        self.over = self.has_ended = has_ended

    cdef int end(self) except -1:
        self.over = True
        if self.counted:
            self.counted = False
            self._stop()
        return 0

    def close(self):
        """End the iteration and close what is open; the state is still that of the last item."""
        if self.running:
            raise ValueError("stream already executing")
        self.finish()

    cdef int finish(self) except -1:
        """End the iteration, and close what is open: workers, files, generators."""
        if not self.over:
            self.end()
        if self.node is not None:
            self.node.close_streams()
        return 0


def name_of(streamer):
    """Return what a streamer is, by its class and the name of its function."""
    kind = type(streamer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    source = getattr(streamer, "streamer", None)
    if isinstance(source, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{name} of {source.__qualname__}"
    return name if source is None else f"{name} of {type(source).__qualname__}"


cpdef str place_of(path):
    """Return where in the tree a visit is, in words."""
    return "".join([f"streamers[{path[i]}], visit {path[i + 1]}: " for i in range(0, len(path), 2)])


# Attributes of a streamer that are no state of its hooks.
cdef frozenset RECIPE = frozenset({
    "streamer", "args", "kwargs", "stream_", "active_count_", "streamers", "streams_",
    "stream_generator_", "chain_streamer_",
})


cpdef dict attributes_of(object streamer):
    """The attributes that hooks may have changed, by name; lists and the like are copied."""
    cdef dict fields = {}
    for name, value in streamer.__dict__.items():
        if not (name in RECIPE or name.startswith("__pescador_")
                or type(value) is types.ModuleType):
            try:
                fields[name] = isolate(value, {})
            except Exception:
                # What cannot be copied is refused by name when a state is taken.
                fields[name] = value
    return fields


cpdef object state_of_generator(object generator):
    """The state of a RandomState or Generator, in plain values."""
    if isinstance(generator, RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


cpdef object set_generator(object generator, object state):
    """Have a RandomState or Generator go on from a state."""
    if isinstance(generator, RandomState):
        # It has a deviate left over, too.
        set_bits(generator._bit_generator, state)
        generator.set_state(state)
    else:
        set_bits(generator.bit_generator, state)


cdef object generator_at(object streamer, places):
    """The random generator of the source at some places in a tree; None where there is none."""
    for place in places:
        pool = getattr(stream_of(streamer), "streamers", None)
        if type(pool) is not list or not 0 <= place < len(pool):
            return None
        streamer = (<list>pool)[<Py_ssize_t>place]
    source = stream_of(streamer)
    if not hasattr(source, "random_state"):
        return None
    source._visit(None)
    return source._plan.rng


cpdef object stream_of(object streamer):
    """The stream below the maps of a streamer."""
    while is_plain(streamer) and map_of(streamer.streamer) is not None:
        parts = split_stream(streamer.args, streamer.kwargs)
        streamer = None if parts is None else parts[0]
    return streamer


cdef list early_copies(Scope scope):
    """The generators that were copied when the activation began."""
    late = {id(generator) for generator, _ in scope.late or ()}
    return ([] if scope.seeded is None else [scope.seeded]) + [
        copied for key, (_, copied) in scope.copies.items() if key not in late]


cdef list save_generators(Scope scope):
    """The states of the copies in a scope, in the order in which they were made."""
    return [state_of_generator(copied) for copied in early_copies(scope)]


cdef int restore_generators(Scope scope, states, loader, name) except -1:
    """Have the copies go on from such states."""
    copies = early_copies(scope)
    if len(copies) != len(states):
        raise loader.error(name, f"its tree has {len(copies)} random generators, and had "
                           f"{len(states)} when its state was taken")
    for copied, state in zip(copies, states):
        set_generator(copied, state)
    return 0


cdef list save_late(Scope scope):
    """The places of sources whose generators were copied at a visit, and the copies' states."""
    return [[list(places), state_of_generator(scope.find(id(generator)))]
            for generator, places in scope.late or ()]


cdef int restore_late(Scope scope, states, mux, loader) except -1:
    """Copy the generators of the sources at these places, as their visits would."""
    for places, state in states:
        generator = generator_at(mux, places)
        if generator is None:
            raise loader.error(repr(mux), f"there is no source with a random generator at the "
                               f"places {places} any more")
        scope.add_late(generator, tuple(places))
        set_generator(scope.find(id(generator)), state)
    return 0


cpdef dict visits_of(Scope scope):
    """How often each place was visited, as {first, bits, n, packed}: few bits each."""
    cdef Py_ssize_t i, n = scope.n_visits, at = 0
    cdef int64_t least = INT64_MAX, most = 0, value
    cdef int bits = 0, j
    while n > 0 and scope.visits[n - 1] == 0:
        n -= 1
    for i in range(n):
        least = min(least, scope.visits[i])
        most = max(most, scope.visits[i])
    # Of no places, both are 0.
    least = min(least, most)
    while (most - least) >> bits:
        bits += 1
    packed = bytearray((n * bits + 7) // 8)
    cdef unsigned char[::1] view = packed
    if bits:
        for i in range(n):
            value = scope.visits[i] - least
            for j in range(bits):
                if (value >> j) & 1:
                    view[at // 8] |= 1 << (at % 8)
                at += 1
    return {"n": n, "least": least, "bits": bits, "packed": bytes(packed)}


cpdef int set_visits(Scope scope, dict state, Py_ssize_t most) except -1:
    """Have as many visits noted as such a state says, of `most` places."""
    cdef Py_ssize_t i, n = state["n"], at = 0
    cdef int64_t least = state["least"]
    cdef int bits = state["bits"], j
    cdef const unsigned char[:] view = state["packed"]
    if not (0 <= n <= most and 0 <= bits < 63 and len(view) == (n * bits + 7) // 8):
        raise ValueError(f"'visits' has {len(view)} bytes for the {n} places that were visited, "
                         f"{bits} bits for each; there are {most} places")
    scope.make_room(n)
    for i in range(scope.n_visits):
        scope.visits[i] = 0
    for i in range(n):
        scope.visits[i] = least
        for j in range(bits):
            scope.visits[i] += <int64_t>((view[at // 8] >> (at % 8)) & 1) << j
            at += 1
    return 0
