"""The schedule of a run: which visits begin next, and which items are made early.

The engines of a tree decide which visit gives the next item. Where visits are made elsewhere, these
engines read from `Remote` visits, whose items were ordered before and arrive from a worker. A second
set of engines, the *plan*, runs ahead of them over visits that give nothing, to know which visits
will begin. Items never depend on the plan: where it was wrong, because a stream has ended earlier
than it thought, it begins anew from where the first engines are, and a visit was opened in vain.

docs/inside/parallel.rst explains it.
"""

import time

import numpy as np

from pescador import _mux

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t

from pescador._core cimport UNBOUNDED, Compiled, Scope, path_of_visit
from pescador._hooks cimport is_plain, is_stock
from pescador._native.iterators cimport next_item, steal
from pescador._visits cimport Elsewhere, Run, place_of


cdef enum:
    # Items that one maker is asked for at a time: orders for them have to fit into a pipe.
    MOST_ORDERS = 512
    # How far the plan goes ahead of a run in which no visit begins.
    MOST_AHEAD = 1 << 12
    # How many items are taken between two looks at the plan.
    PLAN_EVERY = 8
    # For so many items at most, a plan that was wrong does not begin anew.
    LONGEST_REST = 1 << 10
    # An item takes this at least, in bytes, wherever it waits.
    LEAST_SIZE = 512


cdef class Visit
cdef class Remote
cdef class Plan


cdef class Maker:
    """Where visits run; what it is told may wait until `flush`."""

    cdef public object owner           # what the pool knows it by
    cdef public int64_t outstanding    # items that were ordered and have not arrived

    def __init__(self, owner=None):
        self.owner = owner

    cpdef object open(self, Visit visit):
        """Begin a visit, and leave out the items that were given before."""
        raise NotImplementedError

    cpdef object more(self, Visit visit):
        """Make one item more."""
        raise NotImplementedError

    cpdef object close(self, Visit visit, bint finishes):
        """Close a visit; one that `finishes` has given all that it may."""
        raise NotImplementedError

    cpdef object flush(self):
        """Have all that was asked for be done now."""


@cython.final
cdef class Visit:
    """A visit that is made elsewhere: what of it has arrived, and what was asked for."""

    cdef readonly object streamer
    cdef readonly tuple path
    cdef readonly int64_t bound        # how many items it may give
    cdef readonly int64_t given        # how many were taken
    cdef readonly int64_t arrived      # how many were made
    cdef readonly int64_t ordered      # how many were asked for
    cdef readonly int64_t length       # how many there are, once that is known; else -1
    cdef readonly object error         # what was raised in the place of item number `arrived`
    cdef readonly Maker maker          # where it runs, or None before it was begun
    cdef readonly int64_t number       # what it is called there
    cdef readonly object base          # the state that it began from, or has reached meanwhile
    cdef readonly int64_t base_at      # how many items were given there
    cdef list items                    # those that arrived; the next is at `at`
    cdef Py_ssize_t at
    cdef int64_t size                  # of these, in bytes
    cdef bint is_attached              # it is a part of the run, not only expected to be
    cdef bint is_expected              # it begins within the plan
    cdef bint is_over                  # nobody wants more of it
    cdef int64_t planned               # how many items the plan takes from it

    def __cinit__(self, streamer, tuple path, int64_t bound):
        self.streamer = streamer
        self.path = path
        self.bound = bound
        self.length = -1
        self.items = []

    @property
    def name(self):
        """What to call it in an error."""
        return f"{place_of(self.path)}{self.streamer!r}"

    @property
    def is_ready(self):
        """Whether the next step needs to wait for nothing."""
        return self.at < len(self.items) or self.length >= 0 or self.error is not None

    @property
    def skip(self):
        """How many items after `base` have arrived."""
        return self.arrived - self.base_at


cdef class Schedule(Elsewhere):
    """Has the visits of a run be made elsewhere, early.

    Parameters
    ----------
    run : Run
        Of which it is to be a part.
    pool : object
        Has ``place(visit)``, which returns the `Maker` that a visit is to run at; ``wait(visit)``,
        which returns when something of a visit has arrived; and ``raise_error(visit)``.
    stays : function
        Tells of a streamer why its visits have to run here; None where they need not.
    length_of : function
        Tells of a streamer how many items each of its visits has; None where that is not known.
    read_ahead : int
        How many items are made early, of each visit.
    open_ahead : int
        How many visits begin early.
    max_bytes : int
        How much memory they may take.
    """

    cdef readonly Run run
    cdef object pool                   # of makers
    cdef object stays                  # streamer -> why it has to run here, or None
    cdef object length_of              # streamer -> how many items it has, or None
    cdef Py_ssize_t read_ahead, open_ahead
    cdef int64_t max_bytes
    cdef dict visits                   # path -> Visit, of those that are not over
    cdef dict numbers                  # number -> Visit, of those that were begun
    cdef int64_t n_numbers
    cdef int64_t waiting               # bytes of items that wait to be taken
    cdef int64_t outstanding           # items that are being made
    cdef int64_t item_size             # in bytes, of the larger ones
    cdef bint is_held_up               # an order was put off for want of room
    cdef Plan plan                     # or None
    cdef dict lengths                  # places -> how many items the last visit there had
    cdef public int64_t n_restarts
    cdef readonly int64_t n_taken, n_opened, n_in_vain, n_wrong, n_waits
    cdef readonly double seconds_waited

    def __init__(self, Run run, pool, stays, length_of, read_ahead, open_ahead, max_bytes):
        self.run = run
        self.pool = pool
        self.stays = stays
        self.length_of = length_of
        self.read_ahead = read_ahead
        self.open_ahead = open_ahead
        self.max_bytes = max_bytes
        self.visits = {}
        self.numbers = {}
        self.lengths = {}
        self.item_size = LEAST_SIZE
        run.elsewhere = self

    # ---- what the engines ask

    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope):
        if self.stays(streamer) is not None:
            return None
        return self.remote(streamer, bound, scope)

    cdef Remote remote(self, object streamer, int64_t bound, Scope scope):
        """What gives the items of the visit that begins now in a scope."""
        cdef Remote node = Remote.__new__(Remote)
        cdef Visit visit
        cdef tuple path = path_of_visit(scope)
        visit = self.visits.get(path)
        if visit is not None and visit.is_expected:
            visit.is_expected = False
            self.plan.n_ahead -= 1
            self.plan.rest //= 2
        if visit is not None and visit.bound != bound and not is_plain(streamer):
            # It was begun with another bound in mind.
            self.n_in_vain += visit.maker is not None
            self.finish(visit, False)
            visit = None
        if visit is None:
            visit = self.visits[path] = Visit(streamer, path, bound)
        visit.bound = bound
        visit.is_attached = True
        node.visit = visit
        node.schedule = self
        return node

    def root(self, streamer, Scope scope):
        """Return what gives the items of a streamer that is no mux."""
        return self.remote(streamer, UNBOUNDED, scope)

    cdef Visit expected(self, object streamer, int64_t bound, tuple path):
        """The visit that is to begin."""
        cdef Visit visit = self.visits.get(path)
        if visit is None:
            visit = self.visits[path] = Visit(streamer, path, bound)
        return visit

    # ---- orders

    cdef int begin(self, Visit visit) except -1:
        """Have a maker begin a visit."""
        self.n_numbers += 1
        visit.number = self.n_numbers
        visit.maker = self.pool.place(visit)
        self.numbers[visit.number] = visit
        self.n_opened += 1
        visit.maker.open(visit)
        return 0

    cdef int order(self, Visit visit, int64_t limit) except -1:
        """Order items of a visit until so many were asked for in all."""
        if visit.length >= 0 or visit.error is not None or visit.is_over:
            return 0
        limit = min(limit, visit.bound)
        while visit.ordered < limit:
            if visit.maker is None:
                self.begin(visit)
            visit.maker.more(visit)
            visit.ordered += 1
            visit.maker.outstanding += 1
            self.outstanding += 1
        return 0

    cdef int order_early(self, Visit visit, int64_t given) except -1:
        """Order what may be made early of a visit that has given so many, where there is room."""
        cdef int64_t limit = given + self.read_ahead
        if not visit.is_attached:
            limit = min(visit.planned, max(self.read_ahead, 1))
        while visit.ordered < min(limit, visit.bound):
            if not self.has_room(visit):
                self.is_held_up = True
                return 0
            if visit.length >= 0 or visit.error is not None or visit.is_over:
                return 0
            self.order(visit, visit.ordered + 1)
        return 0

    cdef bint has_room(self, Visit visit) noexcept:
        """Whether one item more may be made early."""
        if visit.maker is not None and visit.maker.outstanding >= MOST_ORDERS:
            return False
        return self.waiting + (self.outstanding + 1) * self.item_size <= self.max_bytes

    cdef int catch_up(self) except -1:
        """Order what was put off."""
        cdef Visit visit
        self.is_held_up = False
        for visit in list(self.visits.values()):
            self.order_early(visit, visit.given)
            if self.is_held_up:
                return 0
        return 0

    cdef int finish(self, Visit visit, bint finishes) except -1:
        """Have no more of a visit be made."""
        if visit.is_over:
            return 0
        visit.is_over = True
        if self.visits.get(visit.path) is visit:
            del self.visits[visit.path]
        self.waiting -= visit.size
        visit.size = 0
        visit.items = []
        visit.at = 0
        if visit.maker is None:
            return 0
        self.settle(visit)
        self.numbers.pop(visit.number, None)
        if visit.length < 0 and visit.error is None:
            visit.maker.close(visit, finishes)
        return 0

    cdef int settle(self, Visit visit) except -1:
        """Note that nothing more arrives of what was ordered."""
        cdef int64_t missing = visit.ordered - visit.arrived
        visit.maker.outstanding -= missing
        self.outstanding -= missing
        visit.ordered = visit.arrived
        return 0

    # ---- what arrives

    cpdef object receive(self, int64_t number, object item, int64_t size):
        """Take an item of the visit of this number, of about so many bytes."""
        cdef Visit visit = self.numbers.get(number)
        if visit is None:
            return None
        size = max(size, LEAST_SIZE)
        visit.items.append(item)
        visit.arrived += 1
        visit.maker.outstanding -= 1
        self.outstanding -= 1
        visit.size += size
        self.waiting += size
        # The larger ones count: slowly forgotten, at once remembered.
        self.item_size = size if size > self.item_size else (
            self.item_size - (self.item_size - size) // 16)
        return visit

    def receive_end(self, int64_t number, error=None):
        """Note that the visit of this number has ended, or failed, after the items that arrived."""
        cdef Visit visit = self.numbers.get(number)
        if visit is None:
            return
        self.settle(visit)
        if error is not None:
            visit.error = error
            return
        visit.length = visit.arrived
        if self.plan is not None:
            self.lengths[visit.path[::2]] = visit.length
            if visit.planned > visit.length:
                self.plan.note_wrong()

    def receive_state(self, int64_t number, state):
        """Take the state of a visit after the items that have arrived."""
        cdef Visit visit = self.numbers.get(number)
        if visit is not None:
            visit.base = state
            visit.base_at = visit.arrived

    def visits_at(self, Maker maker):
        """Return the visits that run at a maker."""
        return [visit for visit in self.numbers.values() if (<Visit>visit).maker is maker]

    def begin_again(self, list visits):
        """Have visits whose maker is gone go on at others, after the items that have arrived."""
        cdef Visit visit
        cdef int64_t ordered
        for visit in visits:
            ordered = visit.ordered
            self.settle(visit)
            del self.numbers[visit.number]
            if visit.length < 0 and visit.error is None:
                self.begin(visit)
                self.order(visit, ordered)

    # ---- what is taken

    cdef PyObject* take(self, Visit visit) except? NULL:
        """The next item of a visit, or NULL at its end."""
        cdef PyObject* item
        cdef Py_ssize_t left
        if visit.is_over:
            return NULL
        while visit.at == len(visit.items):
            if visit.error is not None:
                try:
                    self.pool.raise_error(visit)
                finally:
                    self.finish(visit, False)
            if visit.length >= 0:
                self.end(visit)
                return NULL
            self.wait_for(visit)
        # Before the item is taken: who is interrupted here has it yet.
        if visit.given + 1 < visit.bound:
            self.order_early(visit, visit.given + 1)
            if self.is_held_up and self.n_taken % 16 == 0:
                self.catch_up()
        left = len(visit.items) - visit.at
        self.waiting -= visit.size // left
        visit.size -= visit.size // left
        item = PyList_GET_ITEM(visit.items, visit.at)
        Py_INCREF(<object>item)
        if left == 1:
            visit.items.clear()
            visit.at = 0
        else:
            visit.items[visit.at] = None
            visit.at += 1
        visit.given += 1
        self.n_taken += 1
        if self.plan is not None and visit.given > visit.planned and self.plan.lead >= 0:
            self.plan.note_unforeseen(visit)
        if visit.given == visit.bound:
            self.finish(visit, True)
        return item

    cdef int end(self, Visit visit) except -1:
        """Note that a visit has ended before its bound."""
        self.finish(visit, False)
        return 0

    cdef int wait_for(self, Visit visit) except -1:
        """Wait for the next item of a visit."""
        cdef double before
        self.order(visit, visit.given + 1)
        self.n_waits += 1
        before = time.perf_counter()
        try:
            self.pool.wait(visit)
        finally:
            self.seconds_waited += time.perf_counter() - before
        return 0

    # ---- the plan

    def plan_ahead(self, Run run, start):
        """Plan ahead of the engine at the root: ``start()`` returns one that runs in `run`."""
        cdef Plan plan = Plan()
        plan.schedule = self
        plan.start = start
        plan.is_wrong = True
        run.elsewhere = plan
        self.plan = plan

    cdef Compiled ahead_of(self, Compiled engine):
        cdef Ahead node
        if self.plan is None or self.plan.here is not None:
            return engine
        self.plan.here = engine
        node = Ahead.__new__(Ahead)
        node.engine = engine
        node.schedule = self
        return node

    cdef int give_up(self) except -1:
        """Close visits that began early, and that no plan expects any more, but for a few."""
        cdef Visit visit
        cdef list unused = [
            visit for visit in self.visits.values()
            if not ((<Visit>visit).is_attached or (<Visit>visit).is_expected)]
        for visit in unused[:max(0, len(unused) - 2 * self.open_ahead)]:
            if visit.maker is not None:
                self.n_in_vain += 1
            self.finish(visit, False)
        return 0

    def close(self):
        """Close all visits."""
        cdef Visit visit
        for visit in list(self.visits.values()):
            if not visit.is_attached and visit.maker is not None:
                self.n_in_vain += 1
            self.finish(visit, False)

    def stats(self):
        """Return what was counted."""
        return {
            "taken": self.n_taken, "opened": self.n_opened, "opened_in_vain": self.n_in_vain,
            "wrong_plans": self.n_wrong, "waits": self.n_waits,
            "seconds_waited": self.seconds_waited, "restarts": self.n_restarts,
        }


cdef class Remote(Compiled):
    """A visit as the engines read it, which is made elsewhere."""

    cdef Visit visit
    cdef Schedule schedule

    is_elsewhere = True

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        if self.left > 0:
            item = self.schedule.take(self.visit)
        elif self.visit is not None:
            self.schedule.finish(self.visit, True)
        if item is NULL:
            raise StopIteration
        self.left -= 1
        return steal(item)

    def __del__(self):
        # The engine around it has ended, or was dropped.
        if self.schedule is not None and self.visit is not None:
            self.schedule.finish(self.visit, False)

    @property
    def path(self):
        """Which visit this is."""
        return self.visit.path

    cpdef dict save(self, saver):
        if isinstance(self.visit.base, str):
            saver.refuse(self.visit.name, self.visit.base)
        return {"left": self.left, "from": self.visit.base,
                "skip": self.visit.given - self.visit.base_at}

    cpdef object restore(self, dict state, loader):
        # A state that was taken here, or where it was not made elsewhere.
        if "skip" in state:
            self.left = state["left"]
            self.visit.base, skip = state["from"], loader.whole(state, "skip", 0)
        else:
            self.visit.base, skip = state, 0
        self.visit.given = self.visit.arrived = self.visit.ordered = skip
        if self.visit.bound != UNBOUNDED:
            self.visit.bound += skip

    cpdef object replay_cost(self):
        return self.visit.given - self.visit.base_at

    cpdef object close_streams(self):
        self.schedule.finish(self.visit, False)

    def shown(self):
        """Return what an open stream shows of it."""
        return self.visit.streamer, self.visit.given, []


cdef class Begun(Compiled):
    """What is begun at the first item, by `begin` of a subclass."""

    cdef public Compiled node          # what it reads from; None before
    cdef public tuple path             # which visit this is

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        if self.node is None:
            self.node = self.begin()
        # Whoever has set our bound knows nothing of what is inside.
        self.node.left = self.left
        item = next_item(self.node)
        self.left = self.node.left
        if item is NULL:
            raise StopIteration
        return steal(item)


cdef class Ahead(Compiled):
    """An engine, ahead of which a plan runs; it is asked between two items."""

    cdef Compiled engine
    cdef Schedule schedule
    cdef int64_t n                     # items so far

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        cdef Plan plan = self.schedule.plan
        if plan is not None:
            if plan.is_wrong or plan.lead <= 0 or self.n % PLAN_EVERY == 0:
                plan.go_on()
            plan.lead -= 1
        self.n += 1
        self.engine.left = self.left
        item = next_item(self.engine)
        self.left = self.engine.left
        if item is NULL:
            raise StopIteration
        return steal(item)

    @property
    def kind(self):
        """What a state of it is a state of."""
        return type(self.engine).__name__

    @property
    def path(self):
        """Which visit this is."""
        return self.engine.path

    @property
    def recipe(self):
        """What the state is a state of."""
        return self.engine.recipe

    cpdef dict save(self, saver):
        return self.engine.save(saver)

    cpdef object restore(self, dict state, loader):
        self.engine.restore(state, loader)
        self.left = self.engine.left

    cpdef object replay_cost(self):
        return self.engine.replay_cost()

    cpdef object close_streams(self):
        self.schedule.plan = None
        self.engine.close_streams()

    def shown(self):
        """Return what an open stream shows of it."""
        return self.engine.shown()


# ------------------------------------------------------------------------------------ the plan


cdef class Planned(Compiled):
    """A visit in a plan: it gives itself, as often as it is thought to give an item."""

    cdef Visit visit                   # None where it runs here
    cdef Schedule schedule
    cdef tuple places                  # where it is in the tree
    cdef readonly tuple path
    cdef int64_t count                 # items so far
    cdef int64_t length                # how many it is thought to have

    def __iter__(self):
        return self

    def __next__(self):
        cdef int64_t length = self.length
        if self.visit is not None and self.visit.length >= 0:
            length = self.visit.length
        if self.count >= length:
            raise StopIteration
        self.count += 1
        return self

    cpdef object restore(self, dict state, loader):
        self.count = state["given"]
        if self.count >= self.length:
            # It had more than was thought.
            self.length = UNBOUNDED


cdef class Plan(Elsewhere):
    """The engines of a run once more, ahead of those that items are taken from."""

    cdef Schedule schedule
    cdef object start                  # () -> the engine that runs ahead
    cdef object ahead                  # that engine, or None
    cdef Compiled here                 # the one that it runs ahead of
    cdef bint is_wrong                 # it is to begin anew from that
    cdef bint is_over
    cdef Py_ssize_t n_ahead            # visits that it has begun and the other one has not
    cdef int64_t lead                  # items that it has taken and the other one has not
    cdef int64_t rests_until           # number of the item before which it does not begin anew
    cdef int64_t rest                  # how long it rested the last time

    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope):
        cdef Planned node
        if may_plan(streamer):
            return None
        node = Planned.__new__(Planned)
        node.schedule = self.schedule
        node.path = path_of_visit(scope)
        node.places = node.path[::2]
        node.length = UNBOUNDED
        known = self.schedule.length_of(streamer)
        if known is None:
            known = self.schedule.lengths.get(node.places)
        if known is not None:
            node.length = known
        if self.schedule.stays(streamer) is None:
            node.visit = self.schedule.expected(streamer, bound, node.path)
            if not (node.visit.is_attached or node.visit.is_expected):
                node.visit.is_expected = True
                self.n_ahead += 1
        return node

    cdef int note_wrong(self) except -1:
        """Note that it has gone past the end of a visit."""
        if not self.is_wrong:
            self.is_wrong = True
            self.schedule.n_wrong += 1
            self.rest = min(max(2 * self.rest, 8), LONGEST_REST)
            self.rests_until = self.schedule.n_taken + self.rest // 8
        return 0

    cdef int note_unforeseen(self, Visit visit) except -1:
        """Note that an item was taken which was not in the plan."""
        if self.ahead is not None and not self.is_wrong:
            self.schedule.lengths.pop(visit.path[::2], None)
            self.note_wrong()
        return 0

    cdef int go_on(self) except -1:
        """Plan until enough visits have begun early."""
        cdef PyObject* item
        cdef Planned node
        if self.lead < 0 and self.n_ahead > 0:
            # It has begun visits that the run has not come to.
            self.note_wrong()
        if self.is_over and not self.is_wrong:
            return 0
        if self.is_wrong:
            if self.schedule.n_taken < self.rests_until:
                return 0
            self.begin_anew()
        while self.n_ahead < self.schedule.open_ahead and self.lead < MOST_AHEAD:
            try:
                item = next_item(self.ahead)
            except Exception:
                # So will the run.
                item = NULL
            except BaseException:
                self.is_wrong = True
                raise
            if item is NULL:
                self.is_over = True
                break
            self.lead += 1
            node = <Planned?>steal(item)
            if node.visit is not None:
                if node.visit.planned < node.count:
                    node.visit.planned = node.count
                self.schedule.order_early(node.visit, node.visit.given)
            if self.lead % 1024 == 0:
                PyErr_CheckSignals()
        self.schedule.give_up()
        return 0

    cdef int begin_anew(self) except -1:
        """Be where the run is."""
        cdef Visit visit
        for visit in self.schedule.visits.values():
            visit.planned = visit.given
            visit.is_expected = False
        self.n_ahead = 0
        self.lead = 0
        self.is_wrong = self.is_over = False
        self.ahead = self.start()
        (<Compiled?>self.ahead).restore(self.here.save(PLAN_STATE), PLAN_STATE)
        (<Compiled>self.ahead).left = UNBOUNDED
        return 0


cdef bint may_plan(object streamer) except -1:
    """Whether a streamer is a mux whose engine can run twice."""
    return is_mux(streamer) and not callable(streamer.streamers)


def is_mux(streamer):
    """Tell whether a streamer is a mux that an engine runs."""
    return hasattr(streamer, "streamers") and is_stock(streamer) and (
        streamer.__pescador_has_engine__)


class PlanState:
    """Saver and loader at once, for engines of one tree: of a visit, only how far it is."""

    strict = True

    def save(self, node):
        """Return the state of an engine, or how many items a visit has given."""
        if isinstance(node, Remote):
            return {"given": (<Remote>node).visit.given}
        if isinstance(node, _mux.Engine):
            return node.save(self)
        return {"given": node.shown()[1] or 0}

    def save_visit(self, node):
        """Return the number of the visit that an iterator is, and its state."""
        return [node.path[len(node.path) - 1], self.save(node)]

    def refuse(self, name, reason):
        """Everything may be planned."""

    def uses_global_state(self):
        """Nothing does."""

    def attributes(self, fields, name):
        """No hooks are called in a plan."""
        return {}

    def set_attributes(self, streamer, fields):
        """See `attributes`."""

    def restore(self, node, state):
        """Have an engine or a visit of the plan be where the other one is."""
        node.restore(state, self)

    def whole(self, state, field, least, most=INT64_MAX):
        """Return a number of a state."""
        return state[field]

    def numbers(self, state, field, shape, least=0, most=INT64_MAX):
        """Return an array of numbers of a state."""
        return state[field]


PLAN_STATE = PlanState()


# ------------------------------------------------------------------------------------ processes


cdef enum:
    # The words of `_channel.protocol`.
    MORE
    BEGIN
    CLOSE
    FINISH
    # So much work (in nanoseconds) is worth a message to the worker that is to do it.
    WORTH = 50000
    # How many items the beginning of a visit counts for.
    BEGINNING = 4


cdef class Orders(Maker):
    """Orders for a worker process; they are sent together.

    Parameters
    ----------
    owner : object
        What the pool knows the worker by.
    send : function
        Sends words, as bytes.
    send_visit : function
        ``send_visit(visit)`` has a visit begin from a state.
    """

    cdef object send, send_visit
    cdef list words
    cdef int64_t unsent                # work in them, in items
    cdef public int64_t cost           # of an item, in nanoseconds; 0 where it is not known

    def __init__(self, owner, send, send_visit):
        self.owner = owner
        self.send = send
        self.send_visit = send_visit
        self.words = []

    cpdef object open(self, Visit visit):
        if visit.base is not None:
            self.flush()
            self.send_visit(visit)
            return
        self.words.append(visit.number << 2 | BEGIN)
        self.words.append(visit.bound)
        self.words.append(visit.arrived - visit.base_at)
        self.words.append(len(visit.path))
        self.words.extend(visit.path)
        self.unsent += BEGINNING

    cpdef object more(self, Visit visit):
        self.words.append(visit.number << 2 | MORE)
        self.unsent += 1
        if self.unsent * self.cost >= WORTH or self.cost == 0:
            self.flush()

    cpdef object close(self, Visit visit, bint finishes):
        self.words.append(visit.number << 2 | (FINISH if finishes else CLOSE))

    cpdef object flush(self):
        if self.words:
            words = np.array(self.words, np.int64)
            self.words.clear()
            self.unsent = 0
            self.send(words)


def receive_all(Schedule schedule, reader, tell):
    """Take all items that a reader has; ``tell(number, item)`` takes those that are news."""
    cdef PyObject* item
    cdef int64_t n = 0
    while True:
        item = next_item(reader)
        if item is NULL:
            return n
        value = steal(item)
        if len(<dict?>value) == 1 and is_news(<dict>value):
            tell(reader.tag, value, reader.size)
        else:
            schedule.receive(reader.tag, value, reader.size)
        n += 1


cdef bint is_news(dict item) except -1:
    """Whether an item may be what a worker tells of a visit."""
    for key in item:
        return type(key) is tuple
