"""Streams as the compiled code sees them; it knows no mux, and no run but as `BaseRun`.

First activation: how a stream starts. Then the iterators that a started stream is read through.

docs/inside/activation.rst explains it.
"""

import math
import numbers

import numpy as np

from pescador import _empty
from pescador.exceptions import ArgumentError

from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_CheckSignals
from cpython.function cimport PyFunction_Check
from cpython.mem cimport PyMem_Free
from cpython.object cimport Py_TYPE, PyObject, PyObject_GenericGetDict, PyTypeObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport INT64_MAX, int64_t

from pescador._global_rng cimport GlobalStates
from pescador._hooks cimport (
    Family, family_of, has_state_of_visit, is_iterated_plainly, is_stock, plain_fields,
)
from pescador._isolation cimport (
    Copies, Memo, all_simple, is_immutable, is_shared, isolate, note_shared, reads_shared,
)
from pescador._native.dicts cimport pescador_field
from pescador._native.iterators cimport next_item, pescador_raise, pescador_stream, steal
from pescador._native.memory cimport resized
from pescador._native.python cimport Py_EnterRecursiveCall, Py_LeaveRecursiveCall
from pescador._snapshots cimport Snapshots

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


cdef class Scope(Copies):
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
        if n > self.n_visits:
            more = n + self.n_visits // 2 + 7
            self.visits = <int64_t*>resized(self.visits, more, sizeof(int64_t))
            for i in range(self.n_visits, more):
                self.visits[i] = 0
            self.n_visits = more
        return 0

    cdef int add_late(self, object generator, tuple places) except -1:
        """Have a copy stand for the generator of a source, from its first visit on."""
        self.add_copy(generator)
        if self.late is None:
            self.late = []
        self.late.append((generator, places))
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


def note_started(Scope scope, streamer, visit):
    """Note a visit to a streamer that hooks have started in a scope, if it may be saved."""
    if (scope is not None and scope.mux is not None and scope.run is not None
            and scope.run.tracks and has_state_of_visit(streamer)):
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


cdef object opened(object streamer, Scope scope):
    """The compiled iterator of one activation of a streamer, or None if it has none."""
    cdef PyTypeObject* kind = Py_TYPE(streamer)
    cdef unsigned int tag = kind.tp_version_tag
    cdef dict fields
    cdef Opener kept = None
    cdef Family family
    if tag != 0:
        fields = <dict>PyObject_GenericGetDict(streamer, NULL)
        kept = opener_of(fields)
        # It goes when an attribute is set: what was seen of the hooks holds while it is there.
        if kept is not None and kept.tag == tag and kept.n_fields == len(fields):
            return kept.open(scope)
    family = family_of(type(streamer))
    if family is None or family.opener is None:
        return None
    stream = family.opener(streamer, scope)
    if stream is not None and tag != 0 and kind.tp_version_tag == tag:
        fields = <dict>PyObject_GenericGetDict(streamer, NULL)
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


cdef object activate(object streamer, dict fields, Scope scope, Ending* ending):
    """The iterator of one activation of a plain Streamer."""
    cdef Py_ssize_t position = 0
    cdef PyObject* stream
    if scope is not None and scope.run is not None:
        return scope.run.start(streamer, fields, scope, ending)
    source = pescador_field(fields, &position, "streamer")
    args = pescador_field(fields, &position, "args")
    kwargs = pescador_field(fields, &position, "kwargs")
    if (PyFunction_Check(source) and type(args) is tuple and all_simple(<tuple>args)
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
    tracks = scope.run is not None and scope.run.tracks
    return Memo(scope, again, [] if tracks else None)


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
        if is_shared(memo):
            ending[0] = STOP
    return iter(source(*args, **kwargs) if callable(source) else source)


cdef class Compiled:
    """An iterator that compiled code reads from without a Python frame in between."""

    def __cinit__(self, *args, **kwargs):
        self.left = UNBOUNDED

    def __iter__(self):
        return self

    def bounded(self, max_iter):
        """Return the iterator, which ends after `max_iter` samples from now on."""
        self.left = as_bound(max_iter)
        return self

    @property
    def is_bounded(self):
        """Whether there is a bound to how many samples it may give."""
        return self.left != UNBOUNDED

    # Many items at a time: what `next` does for each is done once.

    cdef int begin_steps(self) except -1:
        """Prepare for steps; until `end_steps`, nobody else may read."""
        return 0

    cdef PyObject* step(self) except? NULL:
        """The next item, or NULL at the end."""
        return next_item(self)

    cdef int end_steps(self, bint failed) except -1:
        """Let others read; a step may have failed."""
        return 0

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


cdef class Wrapper(Compiled):
    """An iterator around another one, whose items it gives."""

    def __next__(self):
        cdef PyObject* item = self.read()
        if item is NULL:
            raise StopIteration
        return steal(item)

    cdef PyObject* read(self) except? NULL:
        """The next item, or NULL at the end."""
        # Whoever has set our bound knows nothing of what is inside.
        self.node.left = self.left
        cdef PyObject* item = next_item(self.node)
        self.left = self.node.left
        return item

    cpdef object replay_cost(self):
        return self.node.replay_cost()

    cpdef object close_streams(self):
        self.node.close_streams()

    @property
    def given(self):
        """How many items it has given, where what it reads from knows."""
        return self.node.given

    def shown(self):
        return self.node.shown()


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
        return note_started(scope, streamer, (<Compiled>source).bounded(max_iter))
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
    return maps.get(function) if PyFunction_Check(function) else None


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
    if not is_stock(stream) or not is_iterated_plainly(stream) or stream.is_activated_copy:
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
        note_shared(memo)
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
