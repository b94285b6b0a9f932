"""Streams as the compiled code sees them; it knows no mux.

First activation: what is copied when a stream starts, and for whom. Then the iterators that a
started stream is read through.
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

from pescador.exceptions import PescadorError

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport INT64_MAX, int64_t

cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char* where) except -1
    void Py_LeaveRecursiveCall()

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag

cdef extern from "_native.h":
    PyObject* pescador_next(PyObject* iterator)

cdef extern from *:
    """
    #if defined(_MSC_VER)
    static __declspec(thread) int64_t pescador_fruitless;
    #else
    static _Thread_local int64_t pescador_fruitless;
    #endif
    """
    int64_t pescador_fruitless         # passes without a sample, of all loops of this thread


UNBOUNDED = INT64_MAX


# ------------------------------------------------------------------------------- activation


# Values of exactly these types cannot change, so every activation may share them. Functions,
# classes and modules are shared by copy.deepcopy as well (modules it refuses).
cdef frozenset IMMUTABLE = frozenset({
    type(None), type(Ellipsis), type(NotImplemented), bool, int, float, complex, str, bytes, range,
    type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType, property,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    np.ufunc,
    *(scalar for scalar in np.sctypeDict.values() if scalar not in (np.void, np.object_)),
})

# Where a memo notes that it met something that activations share; deepcopy's own keys are integers.
cdef str SHARED = "pescador.shared"


cdef class Scope:
    """Which copy of a random generator stands for which original in one activation of a mux.

    An activation works on copies, so that it can be repeated. Muxes and streams that share one
    generator go on sharing inside the copy: a nested activation copies again, from the state that
    the copy around it has reached at that moment.

    Parameters
    ----------
    parent : Scope or None
        The activation that this one happens in.
    own : generator or None
        What the mux draws from; None for the global state, which is never copied.
    shared : list of generators
        Those in the mux's tree that the caller may draw from, too.
    """

    def __cinit__(self, Scope parent, own, list shared):
        self.parent = parent
        self.copies = {}
        self.live = []
        self.shares = bool(shared) if parent is None else parent.shares or bool(shared)
        if parent is None:
            for generator in shared:
                self.hold(generator)
        else:
            # The mux around us will draw on before our streams start.
            self.live += parent.live
            for generator in self.live:
                self.hold(generator)
        if own is not None:
            self.hold(own)
            if own in shared:
                self.live.append(own)

    cdef int hold(self, object generator) except -1:
        if id(generator) not in self.copies:
            origin = None if self.parent is None else self.parent.find(id(generator))
            origin = generator if origin is None else origin
            self.copies[id(generator)] = (generator, copy.deepcopy(origin))
        return 0

    cpdef object find(self, object key):
        """Return the copy that stands for the generator of this id, or None."""
        cdef Scope scope = self
        while scope is not None:
            entry = scope.copies.get(key)
            if entry is not None:
                return entry[1]
            scope = scope.parent
        return None


class Memo(dict):
    """A memo for copying inside a scope: it knows the generators there.

    With `again`, a generator is replaced by a copy of the scope's copy, as a stream that starts
    needs it; without, by the scope's copy itself.
    """

    def __init__(self, scope, again):
        super().__init__()
        self.scope = scope
        self.again = again

    def get(self, key, default=None):
        """Return what stands for the object of this id."""
        if key not in self:
            found = self.scope.find(key)
            if found is None:
                return default
            self[key] = copy.deepcopy(found) if self.again else found
        return self[key]


cdef bint is_immutable(object value) except? True:
    cdef type kind = type(value)
    if kind in IMMUTABLE:
        return True
    if kind is tuple or kind is frozenset:
        Py_EnterRecursiveCall(" while copying what a stream starts from")
        try:
            for item in value:
                if not is_immutable(item):
                    return False
        finally:
            Py_LeaveRecursiveCall()
        return True
    if isinstance(value, type) or isinstance(value, np.dtype):
        return True
    # A map of a file that nobody can write through.
    return kind is np.memmap and value.mode == "r" and not value.flags.writeable


cpdef object isolate(object value, object memo):
    """Return what ``copy.deepcopy(value, memo)`` would, sharing what cannot change.

    Generators and open files cannot be copied at all: they are shared, and the memo notes it.
    """
    if is_immutable(value):
        return value
    found = memo.get(id(value))
    if found is not None:
        return found
    Py_EnterRecursiveCall(" while copying what a stream starts from")
    try:
        return isolate_mutable(value, memo)
    finally:
        Py_LeaveRecursiveCall()


cdef bint is_single_pass(object value) except? True:
    """Whether a value is read as it is iterated over, and cannot be copied."""
    if type(value) is types.GeneratorType:
        return True
    if not (hasattr(type(value), "__next__") or isinstance(value, io.IOBase)):
        return False
    try:
        copy.deepcopy(value)
    except TypeError:
        return True
    return False


cdef object isolate_mutable(object value, object memo):
    kind = type(value)
    if kind is list:
        result = []
        memo[id(value)] = result
        for item in value:
            result.append(isolate(item, memo))
    elif kind is dict:
        result = {}
        memo[id(value)] = result
        for key, item in value.items():
            result[isolate(key, memo)] = isolate(item, memo)
    elif kind is tuple:
        result = tuple([isolate(item, memo) for item in value])
        # A tuple that holds itself, through a list, was copied on the way.
        result = memo.setdefault(id(value), result)
    elif is_single_pass(value):
        memo[SHARED] = True
        memo[id(value)] = result = value
    else:
        result = copy.deepcopy(value, memo)
    return result


def is_shared(memo):
    """Tell whether isolating with this memo met a value that activations share."""
    return SHARED in memo


def reads_shared(value, set seen=None):
    """Tell whether an activation would read from a generator or file that others read too."""
    if seen is None:
        seen = set()
    if id(value) in seen or is_immutable(value):
        return False
    seen.add(id(value))
    if is_single_pass(value):
        return True
    if family(type(value)) is not None:
        value = value.__dict__
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list and type(value) is not tuple:
        return False
    Py_EnterRecursiveCall(" while looking for what cannot be iterated twice")
    try:
        for item in value:
            if reads_shared(item, seen):
                return True
    finally:
        Py_LeaveRecursiveCall()
    return False


# Class -> ((hook name, what it is on that class), ...), for classes whose hooks are compiled.
cdef dict families = {}
# Streamer, and the tag that its type had when its hooks were last seen to be ours. Python gives a
# type another tag, or 0, when any of its attributes changes.
cdef type plain_streamer = None
cdef unsigned int plain_tag = 0


def register(cls, names, *, plain=False):
    """Note the hooks of a class whose behaviour the compiled code stands for.

    A subclass, an instance or a patch that replaces one of them gets its own called instead.
    With `plain`, instances of exactly this class start without any Python frame of pescador's.
    """
    global plain_streamer, plain_iter
    families[cls] = tuple([(name, getattr(cls, name)) for name in names])
    if plain:
        plain_streamer = cls
        plain_iter = cls.__iter__


cdef tuple family(type kind):
    """The hooks of the class of ours that a type is or derives from, or None."""
    hooks = families.get(kind)
    if hooks is None:
        for base in kind.__mro__:
            hooks = families.get(base)
            if hooks is not None:
                break
    return hooks


cpdef bint is_stock(object streamer) except? True:
    """Tell whether a streamer has exactly the behaviour of the class of ours that it is."""
    cdef type kind = type(streamer)
    hooks = family(kind)
    if hooks is None:
        return False
    own = streamer.__dict__
    for name, original in hooks:
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
    cdef dict fields = streamer.__dict__
    if len(fields) != 5:
        return None
    cdef unsigned int tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    if tag == 0 or tag != plain_tag:
        if not is_stock(streamer):
            return None
        plain_tag = (<PyTypeObject*>plain_streamer).tp_version_tag
    return fields


cdef object activate(dict fields, Scope scope, Ending* ending):
    """The iterator of one activation of a plain Streamer."""
    source = fields["streamer"]
    args = fields["args"]
    kwargs = fields["kwargs"]
    ending[0] = STEP_ONCE_MORE
    if not (is_immutable(source) and is_immutable(args) and not kwargs):
        memo = {} if scope is None else Memo(scope, again=True)
        source = isolate(source, memo)
        if callable(source):
            args = isolate(args, memo)
            kwargs = isolate(kwargs, memo)
        if SHARED in memo:
            ending[0] = STOP
    if callable(source):
        source = source(*args, **kwargs) if kwargs else source(*args)
    return iter(source)


cdef object start(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies):
    """Start a stream of at most `bound` samples; `ending` says who keeps to the bound.

    A streamer with hooks of its own may change when it is iterated. It is copied once in each
    activation of the mux around it, into `copies`.
    """
    try:
        return start_in(streamer, bound, scope, ending, copies)
    except StopIteration as error:
        raise RuntimeError("a stream raised StopIteration when it was started") from error


cdef object start_in(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies):
    cdef dict fields = plain_fields(streamer)
    if fields is not None:
        return activate(fields, scope, ending)
    engine = streamer._open(scope)
    if engine is not None:
        ending[0] = STOP
        return engine
    ending[0] = ENDS_ITSELF
    if id(streamer) not in copies:
        # The generators that it shares with us are to be our copies. It copies them again.
        memo = {} if scope is None else Memo(scope, again=False)
        copies[id(streamer)] = (streamer, isolate(streamer, memo))
    streamer = copies[id(streamer)][1]
    if bound == UNBOUNDED:
        return iter(streamer.iterate())
    return iter(streamer.iterate(max_iter=bound))


# -------------------------------------------------------------------------------- iteration


cpdef int64_t as_bound(object max_iter, bint round_up=True) except -1:
    """How many samples ``while n < max_iter`` lets through; None and infinity are no bound."""
    if max_iter is None:
        return UNBOUNDED
    if isinstance(max_iter, np.ndarray) and max_iter.ndim == 0:
        max_iter = max_iter.item()
    if isinstance(max_iter, numbers.Real) and not math.isnan(max_iter) and max_iter >= 0:
        if math.isinf(max_iter):
            return UNBOUNDED
        return min(math.ceil(max_iter) if round_up else math.floor(max_iter), UNBOUNDED)
    raise PescadorError(f"max_iter={max_iter!r} must be None or a number of samples, 0 or more")


cdef enum:
    # One pass is not enough: streams may be empty by chance, those that reject most of what they
    # read, say.
    EMPTY_PASSES = 256
    # A loop inside that has given up was patient already.
    EMPTY_LOOPS = 16


cdef bint runs_out(Patience* patience, Py_ssize_t n) except? True:
    """Note a pass without a sample; tell whether a loop over n streams should end for it.

    It should after 256 times n of its own in a row. Loops inside loops would multiply that, so
    those of all loops inside it are counted, too: sixteen times as many are enough.
    """
    global pescador_fruitless
    PyErr_CheckSignals()
    if patience.passes == 0:
        patience.since = pescador_fruitless
    patience.passes += 1
    pescador_fruitless += 1
    return (patience.passes >= EMPTY_PASSES * n
            or pescador_fruitless - patience.since >= EMPTY_PASSES * max(EMPTY_LOOPS, n))


cdef bint gives(Patience* patience, bint* gave) except -1:
    """Tell, at the end of a pass that gave samples or not, whether there should be another."""
    if gave[0]:
        gave[0] = False
        patience.passes = 0
        return True
    return not runs_out(patience, 1)


cdef PyObject* next_item(object iterator) except? NULL:
    """The next item, a new reference; NULL without an exception at the end."""
    return pescador_next(<PyObject*>iterator)


# Streamer's own __iter__; a subclass may have another.
cdef object plain_iter = None


cdef class Opened:
    """A stream that is read to its end inside a ``with`` block.

    It gives the items of ``iter(stream)``, and counts as an open iteration in the same way. Where
    that would be a generator of ours, it reads from what the generator would read from.
    """

    cdef object stream
    cdef object source                 # iterator over the items, while the block lasts
    cdef object entered                # the streamer whose context is to be left
    cdef object counted                # the mux that is to count one open iteration less

    def __cinit__(self, stream):
        self.stream = stream

    def __enter__(self):
        stream = self.stream
        if (family(type(stream)) is None or not is_stock(stream)
                or type(stream).__iter__ is not plain_iter or stream.is_activated_copy):
            self.source = iter(stream)
            return self
        engine = stream._open(None)
        if engine is not None:
            stream.active_count_ += 1
            self.counted = stream
            self.source = engine
            return self
        active = stream.__enter__()
        self.entered = stream
        source = getattr(active, "stream_", None)
        self.source = iter(active if source is None else source)
        return self

    def __exit__(self, *exc):
        self.source = None
        if self.counted is not None:
            self.counted.active_count_ -= 1
            self.counted = None
        if self.entered is not None:
            entered, self.entered = self.entered, None
            entered.__exit__(*exc)
        return False

    def __iter__(self):
        return self.source


cdef class Bounded:
    """At most `max_iter` items of an iterator.

    With `step_once_more`, the source is asked for one item past the last, which is dropped:
    what a ``for`` loop that counts and breaks does. Sources that count their calls or draw from
    the global random state give the same sequence then as they do under such a loop.
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

    It ends when 256 of them in a row have given nothing.
    """

    cdef object streamer
    cdef object source
    cdef int64_t left
    cdef Patience patience
    cdef bint gave                     # whether this activation gave an item
    cdef bint over

    def __cinit__(self, streamer, max_iter):
        # ``if count > max_iter: return`` lets through no part of an item.
        self.left = as_bound(max_iter, round_up=False)
        self.streamer = streamer

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        # The loop that this stands for counts an item before it stops, so it asks for one more.
        if self.left == 0 and reads_shared(self.streamer):
            raise StopIteration
        while True:
            if self.source is None:
                if self.over:
                    raise StopIteration
                self.source = iter(self.streamer.iterate())
            item = next_item(self.source)
            if item is not NULL:
                self.gave = True
                break
            self.source = None
            self.over = not gives(&self.patience, &self.gave)
        if self.left == 0:
            Py_XDECREF(item)
            self.source = None
            self.over = True
            raise StopIteration
        self.left -= 1
        return steal(item)
