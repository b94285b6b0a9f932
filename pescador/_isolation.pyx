"""Isolation: what is copied when a stream starts, what is shared, and for whom.

docs/inside/activation.rst explains it.
"""

import copy
import datetime
import decimal
import fractions
import io
import pathlib
import re
import types
import uuid

import numpy as np

from pescador import _rng

from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport Py_TYPE, PyObject, PyTypeObject
from cpython.tuple cimport PyTuple_Check
from cpython.type cimport PyType_Check

from pescador._hooks cimport family_of, plain_fields
from pescador._native.python cimport Py_EnterRecursiveCall, Py_LeaveRecursiveCall
from pescador._rng cimport Mersenne, mersenne_of
from pescador._snapshots cimport copy_array, is_large, is_plain_array, view_of_constant


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

# The most frequent types of those that can change, to be told from the others at once.
cdef frozenset MUTABLE = frozenset({list, dict, set, bytearray, np.ndarray})

# A memo has this key once it has met an iterator or a file that activations share; all other keys
# are ids.
cdef str SHARED = "pescador.shared"

cdef object np_dtype = np.dtype
cdef type RandomState = np.random.RandomState, Generator = np.random.Generator
cdef type MT19937 = np.random.MT19937
cdef frozenset BIT_GENERATORS = _rng.BIT_GENERATORS


cdef class Copies:
    """The copies of random generators that an activation draws from, and its snapshots of arrays.
    """

    cdef int add_copy(self, object generator) except -1:
        """Have a copy stand for a generator here: of its copy further out, if there is one."""
        if id(generator) not in self.copies:
            found = self.find(id(generator))
            copied = isolate(generator if found is None else found, {})
            self.copies[id(generator)] = (generator, copied)
        return 0

    cpdef object find(self, object key):
        """Return the copy of the generator of this id, here or further out; or None."""
        cdef Copies scope = self
        while scope is not None:
            entry = scope.copies.get(key)
            if entry is not None:
                return entry[1]
            scope = scope.parent
        return None


cdef class Memo(dict):
    """A memo for copying inside a scope: it has the scope's copies of generators.

    With `again` it has copies of these, as they are now: what a stream that starts draws from.
    Without, it has them themselves, for a streamer that will be activated and copy them then.
    """

    def __init__(self, Copies scope, bint again, list generators):
        self.scope = scope
        self.again = again
        self.generators = generators

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
        if Py_TYPE(<object>item) != known:
            value = <object>item
            if type(value) in IMMUTABLE:
                known = Py_TYPE(<object>item)
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
    cdef bint is_constant = holds_immutable(value)
    cdef dict result = value.copy() if is_constant else {}
    add_to_memo(memo, value, result)
    if not is_constant:
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
    result = type(streamer).__new__(type(streamer))
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
        trial = Memo((<Memo>memo).scope, (<Memo>memo).again, (<Memo>memo).generators)
        trial.update(memo)
    else:
        trial = copy.copy(memo)
    try:
        result = copy.deepcopy(value, trial)
    except TypeError:
        note_shared(memo)
        add_to_memo(memo, value, value)
        return value
    kept = trial.pop(id(trial), [])
    memo.update(trial)
    memo.setdefault(id(memo), []).extend(kept)
    return result


cdef int note_shared(object memo) except -1:
    """Have a memo say that it met a value that activations share."""
    memo[SHARED] = True
    return 0


cpdef bint is_shared(object memo) except? True:
    """Tell whether isolating with this memo met a value that activations share."""
    return SHARED in memo


cpdef bint reads_shared(object value, set seen=None) except? True:
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
        return is_shared(memo)
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
