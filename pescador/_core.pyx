"""Streams as the compiled code sees them; it knows no mux, and no run but as `BaseRun`.

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
import pathlib
import re
import types
import uuid

import numpy as np

from pescador import _empty, _rng
from pescador.exceptions import ArgumentError

from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_Check
from cpython.type cimport PyType_Check
from libc.stdint cimport INT64_MAX, int64_t

from pescador._global_rng cimport GlobalStates
from pescador._native.dicts cimport pescador_field
from pescador._native.iterators cimport next_item, pescador_raise, pescador_stream, steal
from pescador._rng cimport Mersenne, mersenne_of
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
            self.seeded = self.run.random_state(self.path)

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

    cdef int add_late(self, object generator, tuple places) except -1:
        """Have a copy stand for the generator of a source, from its first visit on."""
        self.add_copy(generator)
        if self.late is None:
            self.late = []
        self.late.append((generator, places))
        return 0

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


cdef class BaseRun:
    """A run, as its activations know it; _visits.Run says what it is."""

    cdef object random_state(self, tuple path):
        """What a mux at this path draws from that has no generator, in a seeded run."""
        raise NotImplementedError

    cdef Compiled start(self, object streamer, dict fields, Scope scope, Ending* ending):
        """Start a visit to a plain Streamer that has these attributes."""
        raise NotImplementedError

    cdef Compiled start_hooked(self, object streamer, int64_t bound, Scope scope, dict copies):
        """Start a visit to a streamer that overrides hooks."""
        raise NotImplementedError


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


cpdef bint is_shared(object memo) except? True:
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
        return scope.run.start(streamer, fields, scope, ending)
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
            if map_of(source) is not None:
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

    cdef int take_states(self, GlobalStates states, BaseRun run) except -1:
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
    """The first argument of a map, its stream, and the others by place and by name; or None."""
    if type(args) is tuple and args:
        return (<tuple>args)[0], (<tuple>args)[1:], kwargs
    if type(kwargs) is dict and "stream" in <dict>kwargs:
        return (<dict>kwargs)["stream"], args, {
            name: value for name, value in (<dict>kwargs).items() if name != "stream"}
    return None


cdef fresh_sequence():
    """A seed from the global state, which governs what has none of its own."""
    words = np.random.randint(0, 1 << 32, 4, np.uint64)
    return np.random.SeedSequence([int(word) for word in words])


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
        return note_started(scope, (<Compiled>source).bounded(max_iter))
    return Bounded(source, max_iter, ending == STEP_ONCE_MORE)


# Functions that do nothing with their first argument, `stream`, but iterate over it.
cdef dict maps = {}                    # function -> (items, *args, **kwargs) -> Compiled


def register_map(function, make):
    """Note a generator function that iterates over its first argument and does nothing else to it.

    A streamer that it is given need not be copied for it: the iteration isolates by itself.
    ``make(items, *args, **kwargs)`` returns the compiled iterator that it reads from.
    """
    maps[function] = make


cdef object map_of(object function):
    """What makes the compiled iterator of a map; None for other functions and values."""
    return maps.get(function) if type(function) is Function else None


cdef tuple isolate_for_map(object args, object kwargs, Scope scope, object memo):
    """The arguments of a map, of which a stream of ours is not copied but activated."""
    parts = split_stream(args, kwargs)
    if parts is not None:
        stream, rest, named = parts
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
        return scope.run.start_hooked(streamer, bound, scope, copies)
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
