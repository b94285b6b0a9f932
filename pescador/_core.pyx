"""Streams as the compiled code sees them; it knows no mux.

First activation: what is copied when a stream starts, and for whom. Then the iterators that a
started stream is read through.

docs/inside/activation.rst explains it.
"""

import copy
import datetime
import decimal
import fractions
import io
import math
import numbers
import operator
import pathlib
import re
import types
import uuid
import warnings

import numpy as np

from pescador import _empty, _rng
from pescador.exceptions import ArgumentError, PescadorError, PescadorWarning

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM
from cpython.type cimport PyType_Check
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from pescador._global_rng cimport (
    GlobalStates, Marks, has_moved, mark, seeded_states, set_bits,
)
from pescador._native.dicts cimport pescador_field
from pescador._native.iterators cimport next_item, pescador_raise, pescador_stream, steal
from pescador._native.seeds cimport Seed, seed_key, seed_words
from pescador._rng cimport Mersenne, mersenne_of
from pescador._seeds cimport take_entropy
from pescador._snapshots cimport (
    Snapshots, copy_array, is_large, is_plain_array, view_of_constant,
)

cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char* where) except -1
    void Py_LeaveRecursiveCall()

    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag
    dict PyObject_GenericGetDict(object, void* context)
    PyTypeObject* Py_TYPE(PyObject* value)

cdef extern from *:
    """
    #if defined(_MSC_VER)
    static __declspec(thread) PyObject* pescador_around;
    #else
    static _Thread_local PyObject* pescador_around;
    #endif
    """
    PyObject* pescador_around          # the scope of a mux whose hooks run in this thread, or NULL


UNBOUNDED = INT64_MAX


# ------------------------------------------------------------------------------- activation


# Values of exactly these types cannot change: all activations share them. (copy.deepcopy shares
# functions and classes as well, and refuses modules.)
cdef frozenset IMMUTABLE = frozenset({
    type(None), type(Ellipsis), type(NotImplemented), bool, int, float, complex, str, bytes, range,
    type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType, property,
    datetime.date, datetime.timedelta, datetime.timezone,
    decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    np.ufunc,
    *(scalar for scalar in np.sctypeDict.values() if scalar not in (np.void, np.object_)),
})

cdef type Function = types.FunctionType

# The most frequent types of those that can change, to be told from the others at once.
cdef frozenset MUTABLE = frozenset({list, dict, set, bytearray, np.ndarray})

# A memo has this key once it has met an iterator or a file that activations share; all other keys
# are ids.
cdef str SHARED = "pescador.shared"

cdef object np_dtype = np.dtype
cdef type RandomState = np.random.RandomState, Generator = np.random.Generator
cdef type MT19937 = np.random.MT19937
cdef frozenset BIT_GENERATORS = _rng.BIT_GENERATORS


cdef class Scope:
    """What belongs to one activation of a mux: copies of random generators, snapshots, a path.

    An activation draws from copies of the generators, so that it can be repeated. Muxes and streams
    of one tree that share a generator share its copy. A mux inside the tree copies the copy again
    when it is activated, from the state that this has reached by then.

    The path leads from the outermost mux to this one: for each level, the place of the streamer in
    the pool, and how often it was visited before in that activation. Seeds are made from it.

    Parameters
    ----------
    parent : Scope or None
        The activation around this one.
    own : generator or None
        What the mux draws from; None for the global state, which is never copied.
    shared : list of generators
        Those of the muxes in its tree that somebody else may draw from, too.
    seen : dict of {id: mux}
        The muxes that were looked at for these.
    """

    def __cinit__(self, Scope parent, own, list shared, dict seen):
        self.number = -1
        self.path = ()
        if parent is not None:
            self.run = parent.run
            self.path = path_of_visit(parent)
            if parent.bare:
                parent = None
        self.parent = parent
        self.seen = seen
        self.copies = {}
        self.drawn_from = []
        if parent is None:
            self.snapshots = Snapshots()
        else:
            self.snapshots = parent.snapshots
            # The mux around us will have drawn on before our streams start.
            self.drawn_from += parent.drawn_from
        for generator in shared:
            # The scope around knows them, unless our mux is the argument of a map.
            if parent is None or parent.find(id(generator)) is None:
                self.add_copy(generator)
        for generator in self.drawn_from:
            self.add_copy(generator)
        if own is not None:
            self.add_copy(own)
            if own in shared:
                self.drawn_from.append(own)
        elif self.run is not None and self.run.is_seeded:
            self.seeded = seeded_random_state(self.run, self.path)

    def __dealloc__(self):
        PyMem_Free(self.visits)

    def __deepcopy__(self, memo):
        return self

    cdef int64_t count(self) except -1:
        """The number of this visit to the streamer that is started now; a start counts once."""
        if self.number >= 0:
            return self.number
        self.make_room(self.place + 1)
        self.visits[self.place] += 1
        return self.visits[self.place] - 1

    cdef int make_room(self, Py_ssize_t n) except -1:
        """Have a count of visits for each of n places."""
        cdef Py_ssize_t more, i
        cdef int64_t* visits
        if n > self.n_visits:
            more = n + self.n_visits // 2 + 7
            visits = <int64_t*>PyMem_Realloc(self.visits, more * sizeof(int64_t))
            if visits is NULL:
                raise MemoryError()
            for i in range(self.n_visits, more):
                visits[i] = 0
            self.visits = visits
            self.n_visits = more
        return 0

    def save_generators(self):
        """Return the states of the copies, in the order in which they were made."""
        return [state_of_generator(copied) for copied in self.early_copies()]

    def early_copies(self):
        """Return the generators that were copied when the activation began."""
        late = {id(generator) for generator, _ in self.late or ()}
        return ([] if self.seeded is None else [self.seeded]) + [
            copied for key, (_, copied) in self.copies.items() if key not in late]

    def save_late(self, saver):
        """Return the places of sources whose generators were copied later, and their states."""
        return [[list(places), state_of_generator(self.find(id(generator)))]
                for generator, places in self.late or ()]

    def restore_late(self, states, mux, loader):
        """Copy the generators of the sources at these places, as their visits would."""
        for places, state in states:
            generator = generator_at(mux, places)
            if generator is None:
                raise loader.error(repr(mux), f"there is no source with a random generator at the "
                                   f"places {places} any more")
            self.add_late(generator, tuple(places))
            set_generator(self.find(id(generator)), state)

    cdef int add_late(self, object generator, tuple places) except -1:
        """Have a copy stand for the generator of a source, from its first visit on."""
        self.add_copy(generator)
        if self.late is None:
            self.late = []
        self.late.append((generator, places))
        return 0

    def restore_generators(self, states, loader, name):
        """Have the copies go on from such states."""
        copies = self.early_copies()
        if len(copies) != len(states):
            raise loader.error(name, f"its tree has {len(copies)} random generators, and had "
                               f"{len(states)} when its state was taken")
        for copied, state in zip(copies, states):
            set_generator(copied, state)

    cdef int add_copy(self, object generator) except -1:
        """Have a copy stand for a generator here: of its copy further out, if there is one."""
        if id(generator) not in self.copies:
            found = self.find(id(generator))
            copied = isolate(generator if found is None else found, {})
            self.copies[id(generator)] = (generator, copied)
        return 0

    def has_seen(self, mux):
        """Tell whether a mux was looked at for its generators, here or further out."""
        cdef Scope scope = self
        while scope is not None:
            if id(mux) in scope.seen:
                return True
            scope = scope.parent
        return False

    def next(self, stream):
        """Return ``next(stream)``; a streamer of the pool that starts for it starts in this scope.
        """
        global pescador_around
        cdef PyObject* before = pescador_around
        pescador_around = <PyObject*>self
        self.stepped = stream
        try:
            return next(stream)
        finally:
            pescador_around = before
            # Who keeps an error keeps this scope, and would keep the stream.
            self.stepped = None

    def visit_of(self, stream):
        """Return the visit that an iterator of the hooks reads from; None before its first item."""
        found = None if self.nodes is None else self.nodes.get(id(stream))
        return found[1] if found is not None and found[0] is stream else None

    def note(self, stream, visit, keep=()):
        """Note the visit that an iterator of the hooks reads from; `keep` are those in use."""
        if self.nodes is None or len(self.nodes) > 2 * len(keep) + 64:
            kept = [] if self.nodes is None else [self.nodes.get(id(one)) for one in keep]
            self.nodes = {id(entry[0]): entry for entry in kept if entry is not None}
        self.nodes[id(stream)] = (stream, visit)

    def place_of(self, streamer):
        """Return the place of a streamer in the pool of the hooks; None for another."""
        # A chain makes its streamers as it goes.
        if self.places is not None and id(streamer) in self.places:
            return self.places[id(streamer)]
        started = self.mux.__dict__.get("__pescador_started__")
        return started[1] if started is not None and started[0] is streamer else None

    def at(self, Py_ssize_t place, int64_t number=-1):
        """Have what is started next be at this place, and its visit have this number."""
        self.place = place
        self.number = number

    cpdef object find(self, object key):
        """Return the copy of the generator of this id, here or further out; or None."""
        cdef Scope scope = self
        while scope is not None:
            entry = scope.copies.get(key)
            if entry is not None:
                return entry[1]
            scope = scope.parent
        return None


cdef Scope bare_scope(Scope scope):
    """A scope that has the path of another, None for the root, and nothing else.

    It is for streams that share no generator with the mux.
    """
    cdef Scope bare = Scope(None, None, [], {})
    bare.path = ()
    bare.bare = True
    if scope is not None:
        bare.path = scope.path
        bare.run = scope.run
    return bare


cdef tuple path_of_visit(Scope scope):
    """The path of what is started now in a scope."""
    return scope.path if scope.is_root else scope.path + (scope.place, scope.count())


cdef Seed seed_of_visit(Run run, tuple path) except *:
    """The seed of a visit in a seeded run."""
    cdef Seed seed = run.seed
    for number in path:
        seed_key(&seed, number)
    return seed


cdef class Run:
    """One iteration of a tree of streamers that can be saved, or draws from one seed, or both.

    Parameters
    ----------
    tracks : bool
        Whether states can be taken.
    sequence : SeedSequence or None
        The seed of the root: those of visits append their paths to its ``spawn_key``.
    governs : tuple of str
        The global states that are each visit's own while its code runs.
    """

    def __cinit__(self, bint tracks, sequence=None, tuple governs=()):
        self.tracks = tracks
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
    if n == 0:
        return {"n": 0, "least": 0, "bits": 0, "packed": b""}
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


cpdef Scope root_scope(run, path=()):
    """Return the scope that the root of a run starts in."""
    cdef Scope root = bare_scope(None)
    root.run = run
    root.is_root = True
    root.path = path
    return root


def hook_scope(mux, Scope scope=None, path=None):
    """Return the scope of the loop over the hooks of an activated mux, which began in `scope`."""
    cdef Scope here = bare_scope(scope)
    if scope is not None:
        here.path = path_of_visit(scope) if path is None else path
    here.mux = mux
    if type(mux.streamers) is list:
        here.places = {id(streamer): i for i, streamer in enumerate(mux.streamers)}
    return here


def note_started(Scope scope, visit):
    """Note a visit that hooks have started in a scope, if states may be asked for."""
    if scope is not None and scope.mux is not None and scope.run is not None and scope.run.tracks:
        scope.note(scope.stepped, visit, scope.mux.streams_)
    return visit


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


cpdef Scope around(streamer):
    """Return the scope in which hooks start a streamer of their mux's pool; None elsewhere."""
    cdef Scope scope = streamer.__dict__.pop("__pescador_around__", None)
    if scope is not None or pescador_around is NULL:
        return scope
    scope = <Scope>pescador_around
    place = scope.place_of(streamer)
    if place is None:
        return None
    scope.place = place
    return scope


cdef class Memo(dict):
    """A memo for copying inside a scope: it has the scope's copies of generators.

    With `again` it has copies of these, as they are now: what a stream that starts draws from.
    Without, it has them themselves, for a streamer that will be activated and copy them then.
    """

    cdef Scope scope
    cdef bint again
    cdef list generators               # copies that were made, where a run keeps track of them

    def __init__(self, Scope scope, bint again):
        self.scope = scope
        self.again = again
        if scope is not None and scope.run is not None and scope.run.tracks:
            self.generators = []

    def get(self, key, default=None):
        """Return the copy of the object of this id."""
        if key not in self:
            found = self.scope.find(key)
            if found is None:
                return default
            self[key] = isolate(found, {}) if self.again else found
            if self.generators is not None:
                self.generators.append(self[key])
        return self[key]


cdef object MISSING = object()


cdef object known_copy(object memo, object value):
    """The copy of a value that the memo has, or MISSING."""
    if type(memo) is dict:
        return (<dict>memo).get(id(value), MISSING)
    return memo.get(id(value), MISSING)


cdef int add_to_memo(object memo, object value, object result) except -1:
    """Note the copy of a value, and keep the value: while it is there, nothing else has its id."""
    cdef PyObject* found
    memo[id(value)] = result
    key = id(memo)
    if type(memo) is dict or type(memo) is Memo:
        # setdefault would make a list each time: 500 instructions a value.
        found = PyDict_GetItemWithError(memo, key)
        if found is not NULL:
            kept = <object>found
            kept.append(value)
            return 0
    memo.setdefault(key, []).append(value)
    return 0


cdef inline bint is_simple(object value) noexcept:
    """Whether this is immutable, and of a type that nearly all arguments of streams have."""
    cdef type kind = type(value)
    return kind is int or kind is str or kind is float or kind is Function or value is None


cdef inline bint all_simple(tuple values) noexcept:
    cdef Py_ssize_t i
    for i in range(len(values)):
        if not is_simple(<object>PyTuple_GET_ITEM(values, i)):
            return False
    return True


cdef inline int is_immutable(object value) except -1:
    """Whether a value cannot change, nor anything in it."""
    return is_simple(value) or cannot_change(value, None)


cdef int cannot_change(object value, set seen) except -1:
    """is_immutable, inside a tuple: those whose ids are in `seen` were looked at."""
    cdef type kind = type(value)
    if kind is tuple:
        return all_simple(<tuple>value) or all_immutable(value, seen)
    if kind in IMMUTABLE:
        return True
    if kind in MUTABLE:
        return False
    if kind is frozenset or (PyTuple_Check(value) and is_named_tuple(kind)):
        return all_immutable(value, seen)
    if PyType_Check(value):
        return True
    if kind is datetime.datetime or kind is datetime.time:
        return value.tzinfo is None or type(value.tzinfo) is datetime.timezone
    if issubclass(kind, np_dtype):
        # The names of fields can be assigned, and metadata hold anything.
        return value.names is None and value.metadata is None and (
            value.subdtype is None or is_immutable(value.base))
    return False


cdef bint is_named_tuple(type kind) except? True:
    """Whether this is a class as collections.namedtuple makes them: a tuple and nothing more."""
    if type(kind) is not type or kind.__bases__ != (tuple,) or kind.__dictoffset__ != 0:
        return False
    own = kind.__dict__
    return "_fields" in own and not (
        "__deepcopy__" in own or "__reduce_ex__" in own or "__reduce__" in own
        or "__iter__" in own)


cdef Py_ssize_t first_mutable(list values) except -1:
    """The place of the first item that can change; the length if there is none."""
    cdef Py_ssize_t i = 0
    cdef PyObject* item
    cdef PyTypeObject* known = NULL
    while i < len(values):
        item = PyList_GET_ITEM(values, i)
        # Items of one type are the rule.
        if Py_TYPE(item) != known:
            value = <object>item
            if type(value) in IMMUTABLE:
                known = Py_TYPE(item)
            elif not is_immutable(value):
                break
        i += 1
    return i


cdef bint holds_immutable(dict values) except? True:
    for key, item in values.items():
        if not (is_immutable(key) and is_immutable(item)):
            return False
    return True


cdef int all_immutable(object values, set seen) except -1:
    # Tuples may share tuples: thirty levels of (t, t) lead to one value in a billion ways.
    if seen is None:
        seen = set()
    elif id(values) in seen:
        return True
    seen.add(id(values))
    Py_EnterRecursiveCall(" while copying what a stream starts from")
    try:
        for item in values:
            if not (is_simple(item) or cannot_change(item, seen)):
                return False
        return True
    finally:
        Py_LeaveRecursiveCall()


cpdef object isolate(object value, object memo):
    """Return what ``copy.deepcopy(value, memo)`` would, faster; what cannot change is shared.

    So are generator objects and open files, which cannot be copied; the memo says so then.
    """
    if is_immutable(value):
        return value
    found = known_copy(memo, value)
    if found is not MISSING:
        return found
    Py_EnterRecursiveCall(" while copying what a stream starts from")
    try:
        return isolate_mutable(value, memo)
    finally:
        Py_LeaveRecursiveCall()


cdef object isolate_mutable(object value, object memo):
    cdef type kind = type(value)
    cdef dict fields
    if kind is list:
        return isolate_list(value, memo)
    if kind is dict:
        return isolate_dict(value, memo)
    if kind is tuple:
        return isolate_tuple(value, memo)
    if is_plain_array(value):
        result = view_of_constant(value)
        if result is None:
            if type(memo) is Memo and is_large(value):
                result = (<Memo>memo).scope.snapshots.take(value)
            else:
                result = copy_array(value)
    elif kind is set and first_mutable(list(value)) == len(value):
        # By way of a list, as deepcopy goes: set.copy may give another order.
        result = set(list(value))
    elif kind is bytearray:
        result = bytearray(value)
    elif kind is RandomState or kind is Generator or kind in BIT_GENERATORS:
        result = copy_generator(value, memo)
        if (type(memo) is Memo and (<Memo>memo).generators is not None
                and kind not in BIT_GENERATORS):
            (<Memo>memo).generators.append(result)
    else:
        fields = plain_fields(value)
        if fields is not None:
            return copy_streamer(value, fields, memo)
        if is_read_by_iterating(value):
            return copy_or_share(value, memo)
        return copy.deepcopy(value, memo)
    add_to_memo(memo, value, result)
    return result


cdef list isolate_list(list value, object memo):
    cdef Py_ssize_t n = first_mutable(value)
    cdef list result = value[:n]
    add_to_memo(memo, value, result)
    cdef Py_ssize_t i = n
    while i < len(value):
        result.append(isolate(value[i], memo))
        i += 1
    return result


cdef dict isolate_dict(dict value, object memo):
    cdef dict result
    if holds_immutable(value):
        result = value.copy()
        add_to_memo(memo, value, result)
        return result
    result = {}
    add_to_memo(memo, value, result)
    for key, item in value.items():
        item = isolate(item, memo)
        result[isolate(key, memo)] = item
    return result


cdef object isolate_tuple(tuple value, object memo):
    cdef list items = [isolate(item, memo) for item in value]
    # It was copied on the way if it holds itself, by way of a list.
    found = known_copy(memo, value)
    if found is not MISSING:
        return found
    cdef Py_ssize_t i
    for i in range(len(items)):
        if items[i] is not value[i]:
            result = tuple(items)
            add_to_memo(memo, value, result)
            return result
    # Others that hold it need not look at it again.
    add_to_memo(memo, value, value)
    return value


cdef object copy_streamer(object streamer, dict fields, object memo):
    """What Streamer.__deepcopy__ makes of a plain Streamer."""
    cdef dict own = {}
    result = plain_streamer.__new__(plain_streamer)
    result.__dict__ = own
    add_to_memo(memo, streamer, result)
    for name, item in fields.items():
        own[name] = isolate(item, memo)
    return result


cdef bint is_read_by_iterating(object value) except? True:
    """Whether a value is an iterator or a file, which may refuse to be copied."""
    return hasattr(type(value), "__next__") or isinstance(value, io.IOBase)


cdef object copy_or_share(object value, object memo):
    """A copy of an iterator or a file; itself, where it cannot be copied."""
    # On a copy of the memo: who fails halfway has made copies that nobody is to find.
    if type(memo) is Memo:
        trial = Memo((<Memo>memo).scope, (<Memo>memo).again)
        trial.update(memo)
        (<Memo>trial).generators = (<Memo>memo).generators
    else:
        trial = copy.copy(memo)
    try:
        result = copy.deepcopy(value, trial)
    except TypeError:
        memo[SHARED] = True
        add_to_memo(memo, value, value)
        return value
    kept = trial.pop(id(trial), [])
    memo.update(trial)
    memo.setdefault(id(memo), []).extend(kept)
    return result


def is_shared(memo):
    """Tell whether isolating with this memo met a value that activations share."""
    return SHARED in memo


def reads_shared(value, set seen=None):
    """Tell whether an activation would read from a generator or file that others read too."""
    cdef dict fields = plain_fields(value)
    if fields is not None and not fields["kwargs"] and (
            is_immutable(fields["streamer"]) and is_immutable(fields["args"])):
        return False
    if seen is None:
        seen = set()
    if id(value) in seen or is_immutable(value):
        return False
    seen.add(id(value))
    if is_read_by_iterating(value):
        memo = {}
        copy_or_share(value, memo)
        return SHARED in memo
    if family_of(type(value)) is not None:
        value = value.__dict__
    if type(value) is dict:
        value = value.values()
    elif type(value) is list:
        value = value[first_mutable(value):]
    elif type(value) is not tuple:
        return False
    Py_EnterRecursiveCall(" while looking for what cannot be iterated twice")
    try:
        for item in value:
            if reads_shared(item, seen):
                return True
    finally:
        Py_LeaveRecursiveCall()
    return False


class Zeros(np.random.bit_generator.ISeedSequence):
    """A seed that takes no time, for bit generators whose state is set right after."""

    words = [0] * 624                  # as many as MT19937 asks for; any sequence will do

    def generate_state(self, n_words, dtype=np.uint32):
        """Return zeros."""
        return self.words if n_words == 624 else np.zeros(n_words, dtype)


cdef object ZEROS = Zeros()


cdef object copy_generator(object generator, object memo):
    """What copy.deepcopy makes of a generator or bit generator of NumPy's own types."""
    cdef type kind = type(generator)
    if kind is Generator:
        return Generator(isolate(generator.bit_generator, memo))
    if kind is RandomState:
        result = RandomState(isolate(generator._bit_generator, memo))
        # Of two normal deviates that are drawn at once, the second waits outside the bits' state.
        state = generator.get_state(legacy=False)
        if state["has_gauss"]:
            result.set_state(state)
        return result
    sequence = generator.seed_seq
    if sequence is not None:
        sequence = isolate(sequence, memo)
    cdef Mersenne* words = mersenne_of(generator) if sequence is None else NULL
    if words is not NULL:
        result = MT19937(ZEROS)
        result._legacy_seeding(0)
        with generator.lock:
            mersenne_of(result)[0] = words[0]
    else:
        result = kind(ZEROS)
        result.__setstate__((generator.state, sequence))
    return result


cdef class Family:
    """A class whose behaviour the compiled code stands for."""

    cdef tuple hooks                   # ((name, what it is on that class), ...)
    cdef object opener, hooked         # see register


cdef dict families = {}                # class -> Family
# Streamer, and the tag that its type had when its hooks were last seen to be ours. Python gives a
# type another tag, or 0, when any of its attributes changes.
cdef type plain_streamer = None
cdef unsigned int plain_tag = 0
cdef Py_ssize_t n_plain_fields = 0     # how many attributes its instances have
cdef object plain_iter = None          # its __iter__, which maps call


def register(cls, names, *, model=None, opener=None, hooked=None):
    """Note the hooks of a class whose behaviour the compiled code stands for.

    A subclass, an instance or a patch that replaces one of them gets its own called instead.
    With `model`, an instance: those of exactly its class that have as many attributes start
    without any Python frame of pescador's.
    ``opener(streamer, scope)`` returns the compiled iterator of one activation, or None if the
    hooks are to be called. In a run, ``hooked(streamer, scope)`` returns an iterator that calls
    them and can be saved, or None if it has none either.
    """
    global plain_streamer, plain_iter, n_plain_fields
    cdef Family family = Family()
    family.hooks = tuple([(name, getattr(cls, name)) for name in names])
    family.opener = opener
    family.hooked = hooked
    families[cls] = family
    if model is not None:
        plain_streamer = cls
        n_plain_fields = len(model.__dict__)
        plain_iter = cls.__iter__


cdef Family family_of(type kind):
    """The class of ours that a type is or derives from, or None."""
    family = families.get(kind)
    if family is None:
        for base in kind.__mro__:
            family = families.get(base)
            if family is not None:
                break
    return family


cdef object opened(object streamer, Scope scope):
    """The compiled iterator of one activation of a streamer, or None if it has none."""
    cdef PyTypeObject* kind = Py_TYPE(<PyObject*>streamer)
    cdef unsigned int tag = kind.tp_version_tag
    cdef dict fields
    cdef Opener kept = None
    cdef Family family
    if tag != 0:
        fields = PyObject_GenericGetDict(streamer, NULL)
        kept = opener_of(fields)
        # It goes when an attribute is set: what was seen of the hooks holds while it is there.
        if kept is not None and kept.tag == tag and kept.n_fields == len(fields):
            return kept.open(scope)
    family = family_of(type(streamer))
    if family is None or family.opener is None:
        return None
    stream = family.opener(streamer, scope)
    if stream is not None and tag != 0 and kind.tp_version_tag == tag:
        fields = PyObject_GenericGetDict(streamer, NULL)
        kept = opener_of(fields)
        if kept is not None:
            kept.tag = tag
            kept.n_fields = len(fields)
    return stream


cdef inline Opener opener_of(dict fields):
    """What a streamer of these attributes can be started from, or None."""
    cdef PyObject* found = PyDict_GetItemWithError(fields, "_plan")
    if found is not NULL and isinstance(<object>found, Opener):
        return <Opener>found
    return None


cpdef bint is_stock(object streamer) except? True:
    """Tell whether a streamer has exactly the behaviour of the class of ours that it is."""
    cdef type kind = type(streamer)
    cdef Family family = family_of(kind)
    if family is None:
        return False
    own = streamer.__dict__
    for name, original in family.hooks:
        if getattr(kind, name) is not original or name in own:
            return False
    return True


cdef bint is_plain(object streamer) noexcept:
    """Whether this is a Streamer of exactly the plain class, as most are."""
    return type(streamer) is plain_streamer


def not_plain(list streamers):
    """Return those that are not of exactly the plain class: usually few, or none."""
    return [streamer for streamer in streamers if not is_plain(streamer)]


cdef dict plain_fields(object streamer):
    """The attributes of a plain Streamer that has only its own; None for any other."""
    global plain_tag
    if type(streamer) is not plain_streamer:
        return None
    cdef dict fields = PyObject_GenericGetDict(streamer, NULL)
    if len(fields) != n_plain_fields:
        return None
    cdef unsigned int tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    if tag == 0 or tag != plain_tag:
        if not is_stock(streamer):
            return None
        plain_tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    return fields


cdef object activate(object streamer, dict fields, Scope scope, Ending* ending):
    """The iterator of one activation of a plain Streamer."""
    cdef Py_ssize_t position = 0
    cdef PyObject* stream
    if scope is not None and scope.run is not None:
        return leaf_of(streamer, fields, scope, ending)
    source = pescador_field(fields, &position, "streamer")
    args = pescador_field(fields, &position, "args")
    kwargs = pescador_field(fields, &position, "kwargs")
    if (type(source) is Function and type(args) is tuple and all_simple(<tuple>args)
            and type(kwargs) is dict and not <dict>kwargs):
        # As most are: nothing to isolate.
        ending[0] = STEP_ONCE_MORE
        stream = pescador_stream(source, <tuple>args)
        return failed_start() if stream is NULL else steal(stream)
    try:
        return activate_any(source, args, kwargs, scope, ending)
    except StopIteration as error:
        raise stopped_start() from error


cdef object failed_start():
    """Raise what calling the function of a stream has raised."""
    try:
        pescador_raise()
    except StopIteration as error:
        raise stopped_start() from error


cdef object stopped_start():
    # Let through, it would look like the end of the stream.
    return RuntimeError("a stream raised StopIteration when it was started")


cdef object new_memo(Scope scope, bint again):
    """A memo for copying what a stream starts from in a scope."""
    if scope is None or (scope.bare and scope.run is None):
        return {}
    return Memo(scope, again)


cdef object activate_any(object source, object args, object kwargs, Scope scope, Ending* ending):
    ending[0] = STEP_ONCE_MORE
    if kwargs or not (is_immutable(source) and is_immutable(args)):
        memo = new_memo(scope, again=True)
        source = isolate(source, memo)
        if callable(source):
            if type(source) is Function and source in maps:
                args, kwargs = isolate_for_map(args, kwargs, scope, memo)
            else:
                args = isolate(args, memo)
                kwargs = isolate(kwargs, memo)
                if asks_for_generator(kwargs):
                    give_generator(kwargs, np.random.default_rng(fresh_sequence()))
        if SHARED in memo:
            ending[0] = STOP
    return iter(source(*args, **kwargs) if callable(source) else source)


cdef class Compiled:
    """An iterator that compiled code reads from without a Python frame in between."""

    def __cinit__(self, *args, **kwargs):
        self.left = UNBOUNDED

    def bounded(self, max_iter):
        """Return the iterator, which ends after `max_iter` samples from now on."""
        self.left = as_bound(max_iter)
        return self

    @property
    def is_bounded(self):
        """Whether there is a bound to how many samples it may give."""
        return self.left != UNBOUNDED

    # What an open stream asks of each iterator in its tree.

    cpdef dict save(self, saver):
        """Return where the iteration is, in plain values; `saver` is told what cannot be saved."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    cpdef object restore(self, dict state, loader):
        """Go on from where another iteration of the same streamer was; nothing was read yet."""
        raise NotImplementedError(f"{type(self).__name__} cannot be restored")

    cpdef object replay_cost(self):
        """How many samples would have to be made again to restore the state that there is."""
        return 0

    cpdef object take_rng(self, rng):
        """Draw from this generator in the place of np.random."""

    cdef int take_states(self, GlobalStates states, Run run) except -1:
        """Run the user's code under these states; without, have the run notice whether it draws."""
        return 0

    cpdef object close_streams(self):
        """Close what is open; the state is still that of the last item."""

    def shown(self):
        """Return what an open stream shows of it: streamer, items given or None, what is below."""
        return self, None, []


cdef class Opener:
    """What a streamer that is no mux is started from, visit after visit."""

    cdef Compiled open(self, Scope scope):
        """One activation."""
        raise NotImplementedError


# What is given to streams in the place of a random generator, to have that of their visit.
cdef object SPAWN = None


def register_spawn(spawn):
    """Note what stands for the random generator of a visit among the arguments of a function."""
    global SPAWN
    SPAWN = spawn


# Iterators that can be set to a place: those of types that cannot change but by iterating.
cdef frozenset INDEXED = frozenset(
    type(iter(value))
    for value in ([], (), "", "\u20ac", b"", bytearray(), range(1), range(1 << 70)))

# Items after which a map of the user's is expensive to restore.
cdef enum:
    COSTLY_REPLAY = 100000

# To iterate over these runs no code that could draw.
cdef frozenset WITHOUT_CODE = frozenset(
    {list, tuple, str, bytes, bytearray, range, dict, set, frozenset, np.ndarray})

# Iterators that go over what they hold and do nothing else: to go on, they step quickly.
cdef frozenset STEPPED = frozenset(
    type(iter(value)) for value in ({}, {}.values(), {}.items(), set(), np.empty(0)))


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

    def __iter__(self):
        return self

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
                if isinstance(value, plain_streamer):
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
        make = maps.get(source) if type(source) is Function else None
        if (make is None and type(source) is Function and type(args) is tuple
                and all_simple(<tuple>args) and type(kwargs) is dict and not <dict>kwargs):
            # As most are: nothing to isolate.
            self.govern(scope)
            return self.start(source, args)
        memo = new_memo(scope, again=True)
        stream, rest, named = split_stream(args, kwargs)
        if make is not None and stream is not MISSING:
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
                self.inner.take_rng(seeded_random_state(scope.run, self.path))
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
        self.is_shared = SHARED in memo
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
            self.watches = run.tracks or run.is_seeded
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
            self.watches = True
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
            elif state["states"] is not None and self.states.digest() != state["states"]:
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
        """Return what an open stream shows of it."""
        return self.streamer, self.given, [] if self.inner is None else self.inner.shown()[2]

    @property
    def recipe(self):
        """What the state is a state of."""
        return name_of(self.streamer)


cdef bint asks_for_generator(object kwargs) except -1:
    """Whether a function is to be given the random generator of its visit."""
    if type(kwargs) is not dict:
        return False
    for value in (<dict>kwargs).values():
        if value is SPAWN:
            return SPAWN is not None
    return False


cdef int give_generator(dict kwargs, object generator) except -1:
    for name, value in list(kwargs.items()):
        if value is SPAWN:
            kwargs[name] = generator
    return 0


cdef tuple split_stream(object args, object kwargs):
    """The first argument of a map, which is its stream, and the others by place and by name."""
    if type(args) is tuple and args:
        return (<tuple>args)[0], (<tuple>args)[1:], kwargs
    if type(kwargs) is dict and "stream" in <dict>kwargs:
        return (<dict>kwargs)["stream"], args, {
            name: value for name, value in (<dict>kwargs).items() if name != "stream"}
    return MISSING, args, kwargs


cdef object seeded_random_state(Run run, tuple path):
    """What a mux without a generator of its own draws from, in a seeded run."""
    cdef Seed seed = seed_of_visit(run, path)
    cdef uint32_t[8] words
    seed_words(&seed, words)
    return RandomState([words[0], words[1], words[2], words[3]])


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


cdef object stream_of(object streamer):
    """The stream below the maps of a streamer."""
    while type(streamer) is plain_streamer and streamer.streamer in maps:
        streamer = split_stream(streamer.args, streamer.kwargs)[0]
    return streamer


def name_of(streamer):
    """Return what a streamer is, by its class and the name of its function."""
    kind = type(streamer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    source = getattr(streamer, "streamer", None)
    if isinstance(source, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{name} of {source.__qualname__}"
    return name if source is None else f"{name} of {type(source).__qualname__}"


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


cdef fresh_sequence():
    """A seed from the global state, which governs what has none of its own."""
    words = np.random.randint(0, 1 << 32, 4, np.uint64)
    return np.random.SeedSequence([int(word) for word in words])


def start_iterator(source, args, kwargs):
    """Return the iterator over an iterable, or over what a generator function returns."""
    return iter(source(*args, **kwargs) if callable(source) and args is not None else source)


cpdef str place_of(path):
    """Return where in the tree a visit is, in words."""
    return "".join([f"streamers[{path[i]}], visit {path[i + 1]}: " for i in range(0, len(path), 2)])


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


cpdef Compiled open_visit(object streamer, Scope scope, dict copies):
    """Start one visit to a streamer, or to another iterable, in a run."""
    cdef Ending ending = STOP
    Py_EnterRecursiveCall(" while starting a stream of a stream")
    try:
        fields = plain_fields(streamer)
        if fields is not None and fields["stream_"] is None:
            return leaf_of(streamer, fields, scope, &ending)
        if family_of(type(streamer)) is None or streamer.is_activated_copy:
            return leaf_over(streamer, scope)
        stream = opened(streamer, scope)
        return hooked_visit(streamer, UNBOUNDED, scope, copies) if stream is None else stream
    finally:
        Py_LeaveRecursiveCall()


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


cdef Compiled hooked_visit(object streamer, int64_t bound, Scope scope, dict copies):
    """A visit to a streamer that overrides hooks."""
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


cdef object hooked_copy(object streamer, Scope scope, dict copies):
    """The copy of a streamer with hooks that an activation of the mux around it works on."""
    if id(streamer) not in copies:
        # The generators that it shares with us are to be our copies. It copies them again.
        copies[id(streamer)] = (streamer, isolate(streamer, new_memo(scope, again=False)),
                                scope.place)
    return copies[id(streamer)][1]


def iterate_hooked(streamer, bound):
    """What a streamer with hooks gives, as a mux asks for it."""
    return iter(streamer.iterate() if bound is None else streamer.iterate(max_iter=bound))


cdef object leaf_of(object streamer, dict fields, Scope scope, Ending* ending):
    """A visit to a plain Streamer, in a run."""
    cdef Leaf leaf = Leaf.__new__(Leaf)
    try:
        leaf.begin(streamer, fields["streamer"], fields["args"], fields["kwargs"], scope)
    except StopIteration as error:
        raise stopped_start() from error
    ending[0] = STOP if leaf.is_shared else STEP_ONCE_MORE
    return leaf


cdef bint fuse(object stream) noexcept:
    """Have a stream give visits in place of items where it can; whoever reads it must know."""
    if isinstance(stream, Compiled):
        (<Compiled>stream).fused = True
        return True
    return False


def activated(streamer, max_iter):
    """Return up to `max_iter` items of one activation of a plain, idle Streamer; None for another.

    They are those of the copy that ``with streamer`` gives, without that copy.
    """
    cdef Scope scope = None if pescador_around is NULL else around(streamer)
    cdef dict fields = plain_fields(streamer)
    cdef Ending ending = STEP_ONCE_MORE
    if fields is None or fields["stream_"] is not None:
        return None
    source = activate(streamer, fields, scope, &ending)
    if scope is not None and scope.run is not None:
        return note_started(scope, (<Leaf>source).bounded(max_iter))
    return Bounded(source, max_iter, ending == STEP_ONCE_MORE)


# Functions that do nothing with their first argument, `stream`, but iterate over it.
cdef dict maps = {}                    # function -> (items, *args, **kwargs) -> Compiled


def register_map(function, make):
    """Note a generator function that iterates over its first argument and does nothing else to it.

    A streamer that it is given need not be copied for it: the iteration isolates by itself.
    ``make(items, *args, **kwargs)`` returns the compiled iterator that it reads from.
    """
    maps[function] = make


cdef tuple isolate_for_map(object args, object kwargs, Scope scope, object memo):
    """The arguments of a map, of which a stream of ours is not copied but activated."""
    stream, rest, named = split_stream(args, kwargs)
    if stream is not MISSING:
        opened = open_stream(stream, scope, memo)
        if opened is not None:
            return (opened, *isolate(rest, memo)), isolate(named, memo)
    return isolate(args, memo), isolate(kwargs, memo)


cdef object open_stream(object stream, Scope scope, object memo):
    """The iterator of one activation of a stock streamer that is idle; None for other values."""
    cdef dict fields
    cdef Ending ending = STEP_ONCE_MORE
    if not is_stock(stream) or type(stream).__iter__ is not plain_iter or stream.is_activated_copy:
        return None
    Py_EnterRecursiveCall(" while starting a stream of a stream")
    try:
        fields = plain_fields(stream)
        if fields is not None:
            source = activate(stream, fields, scope, &ending)
        else:
            source = opened(stream, scope)
            if source is not None and reads_shared(stream):
                ending = STOP
    finally:
        Py_LeaveRecursiveCall()
    if ending == STOP:
        memo[SHARED] = True
    return source


cdef object start(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies):
    """Start a stream of at most `bound` samples; `ending` says who keeps to the bound.

    A streamer with hooks of its own may change when it is iterated. It is copied once in each
    activation of the mux around it, into `copies`.
    """
    cdef dict fields = plain_fields(streamer)
    if fields is not None:
        return activate(streamer, fields, scope, ending)
    try:
        return start_any(streamer, bound, scope, ending, copies)
    except StopIteration as error:
        raise stopped_start() from error


cdef object start_any(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies):
    stream = opened(streamer, scope)
    if stream is not None:
        (<Compiled?>stream).left = bound
        ending[0] = STOP
        return stream
    ending[0] = ENDS_ITSELF
    if scope is not None and scope.run is not None:
        return hooked_visit(streamer, bound, scope, copies)
    streamer = hooked_copy(streamer, scope, copies)
    if scope is not None and (<Family?>family_of(type(streamer))).opener is not None:
        # It starts with the next call, which asks for it.
        here = bare_scope(scope)
        here.place = scope.place
        here.number = scope.count()
        streamer.__dict__["__pescador_around__"] = here
    return iterate_hooked(streamer, None if bound == UNBOUNDED else bound)


# -------------------------------------------------------------------------------- iteration


cpdef int64_t as_bound(object max_iter, bint round_up=True) except -1:
    """How many samples ``while n < max_iter`` lets through; None and infinity are no bound."""
    if max_iter is None:
        return UNBOUNDED
    if isinstance(max_iter, np.ndarray) and max_iter.ndim == 0:
        max_iter = max_iter.item()
    # NaN fails the comparison. math.isinf would convert to a float, which a large int overflows.
    if isinstance(max_iter, numbers.Real) and max_iter >= 0:
        if max_iter >= UNBOUNDED:
            return UNBOUNDED
        return min(math.ceil(max_iter) if round_up else math.floor(max_iter), UNBOUNDED)
    raise ArgumentError(f"max_iter={max_iter!r} must be None or a number of samples, 0 or more")


cdef int EMPTY_PASSES = _empty.PASSES


cdef bint ends_empty(int* passes, bint gave) except? True:
    """Note the end of a pass; tell whether so many in a row gave nothing that the loop ends."""
    if gave:
        passes[0] = 0
        return False
    PyErr_CheckSignals()
    passes[0] += 1
    return passes[0] == EMPTY_PASSES


cdef class Opened:
    """An iterator, and the streamer that counts it as open while a ``with`` block lasts."""

    cdef object streamer               # None for other iterables
    cdef object source                 # the iterator, until the end of the block

    def __cinit__(self, streamer, source):
        self.streamer = streamer
        self.source = source

    def __enter__(self):
        if self.streamer is not None:
            self.streamer.active_count_ += 1
        return self

    def __exit__(self, kind, error, traceback):
        # Whoever keeps an error keeps us, by way of its traceback.
        self.source = None
        if self.streamer is not None:
            self.streamer.active_count_ -= 1
        return False

    def __iter__(self):
        return self.source


def reading(stream):
    """Return one open iteration over any iterable.

    Where ``iter(stream)`` would be a generator of ours, it reads from what that would read from.
    """
    source = open_stream(stream, None, {})
    return Opened(None, iter(stream)) if source is None else Opened(stream, source)


cdef class Bounded:
    """At most `max_iter` items of an iterator.

    With `step_once_more`, the source is asked for one item past the last, which is dropped, as by
    a ``for`` loop that counts and breaks. A source that counts its calls, or draws from the global
    random state, then gives the same sequence as under such a loop.
    """

    cdef object source
    cdef int64_t left
    cdef bint step_once_more

    def __cinit__(self, source, max_iter, bint step_once_more):
        self.left = as_bound(max_iter)
        self.source = iter(source)
        self.step_once_more = step_once_more

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        if self.left > 0:
            item = next_item(self.source)
            if item is not NULL:
                self.left -= 1
                return steal(item)
        elif self.step_once_more:
            self.step_once_more = False
            Py_XDECREF(next_item(self.source))
        raise StopIteration


cdef class Cycle:
    """Up to `max_iter` items of one activation of a streamer after another.

    It raises when 256 of them in a row have given nothing.
    """

    cdef object streamer
    cdef object source                 # iterator over the items of this activation
    cdef int64_t left                  # how many items it may give yet
    cdef int64_t before                # what `left` was when this activation began
    cdef int empty                     # activations in a row that gave nothing
    cdef bint over

    def __cinit__(self, streamer, max_iter):
        # Rounded down: pescador 3.0 stops by ``if count > max_iter``.
        self.left = as_bound(max_iter, round_up=False)
        self.streamer = streamer

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        cdef object source
        # pescador 3.0 reads one item more before it stops. Of a source that others read, too, that
        # item would be lost to them.
        if self.left == 0 and reads_shared(self.streamer):
            raise StopIteration
        while True:
            if self.source is None:
                if self.over:
                    raise StopIteration
                self.before = self.left
                self.source = iter(self.streamer.iterate())
            # A reference of our own: the source may step this iterator, which drops self.source.
            source = self.source
            item = next_item(source)
            if item is not NULL:
                break
            self.source = None
            if ends_empty(&self.empty, self.left != self.before):
                self.over = True
                if self.left == 0:
                    raise StopIteration
                raise _empty.empty_loop("cycle()", [self.streamer], "iterate()")
        if self.left == 0:
            Py_XDECREF(item)
            self.source = None
            self.over = True
            raise StopIteration
        self.left -= 1
        return steal(item)


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
            self.end()
            raise
        finally:
            self.running = False
        if item is NULL:
            # At a bound, a state may be given another.
            self.has_ended = self.node.left > 0
            self.end()
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
        if not self.over:
            self.end()
        if self.node is not None:
            self.node.close_streams()


cdef class Inner(Compiled):
    """A visit that runs under another seed than what is around it."""

    cdef Compiled node
    cdef Run run
    cdef readonly tuple path

    def __cinit__(self, Compiled node, Run run, Scope scope):
        self.node = node
        self.run = run
        self.path = path_of_visit(scope)

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        # Whoever has set our bound knows nothing of what is inside.
        self.node.left = self.left
        item = next_item(self.node)
        self.left = self.node.left
        if item is NULL:
            raise StopIteration
        return steal(item)

    @property
    def recipe(self):
        """What the state is a state of."""
        return self.run.recipe

    cpdef dict save(self, saver):
        return {"left": self.left, "stream": saver.save(self.node)}

    cpdef object restore(self, dict state, loader):
        self.left = state["left"]
        loader.restore(self.node, state["stream"])

    cpdef object replay_cost(self):
        return self.node.replay_cost()

    cpdef object close_streams(self):
        self.node.close_streams()

    def shown(self):
        """Return what an open stream shows of it."""
        return self.node.shown()
