"""The schedule of a run: which visits begin next, and which items are made early.

The engines of a tree decide which visit gives the next item. Where visits are made elsewhere, they
read from `Remote` visits, whose items were ordered before and arrive from a worker. A second set of
engines, the *plan*, runs ahead of them over visits that give nothing, to know which visits will
begin. Items never depend on the plan: where it was wrong, because a stream has ended earlier
than it thought, it begins anew from where the first engines are, and a visit was opened in vain.

docs/inside/parallel.rst explains it.
"""

import functools
import time

import numpy as np

from pescador import _mux
from pescador._channel.protocol import CLOSED, STATE, news
from pescador._rows import IN_PLACE as IN_PLACE_
from pescador._state import Loader, Saver
from pescador.exceptions import PescadorError, PescadorWarning

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject, PyTypeObject, traverseproc, visitproc
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.time cimport perf_counter
from libc.stdint cimport INT64_MAX, int64_t

from pescador._channel.arrivals cimport Arrivals
from pescador._core cimport (
    STEP_ONCE_MORE, STOP, UNBOUNDED, Compiled, Ending, Scope, Wrapper, path_of_visit,
)
from pescador._hooks cimport is_plain, is_stock
from pescador._native.iterators cimport next_item, steal
from pescador._native.memory cimport extended, zeros
from pescador._rows cimport BatchRows, Placed
from pescador._visits cimport Elsewhere, Run, place_of
from pescador.parallel.orders cimport BEGIN, CLOSE, MORE, MORE_INTO, WORTH, word_of


cdef enum:
    # Items that one maker is asked for at a time: orders for them have to fit into a pipe.
    MOST_ORDERS = 512
    # How far the plan goes ahead of a run in which no visit begins.
    MOST_AHEAD = 1 << 12
    # How many items are taken between two looks at the plan.
    PLAN_EVERY = 8
    # And between two looks at how fast the workers are; more often at first.
    LOOK_EVERY = 256
    # A plan that was wrong begins anew after so many times as long as it took to do so.
    SHARE = 20
    # For so many items at most, a plan that was wrong does not begin anew.
    LONGEST_REST = 1 << 10
    # Without `read_ahead`, so many items are made early of each open visit, at least.
    READ_AHEAD = 2
    # Then, more are, where they keep a worker busy for less than this, in nanoseconds.
    BUSY = 10_000_000
    # For that, such a part of the memory is used.
    SPARE = 16
    # Room for so many items of a visit that were ordered and not taken, at first: a power of 2.
    LEAST_ROOM = 4
    # An item takes this at least, in bytes, wherever it waits.
    LEAST_SIZE = 512
    # In the place of the number of an item: nothing is expected.
    NO_ITEM = -1


cdef object IN_PLACE = IN_PLACE_
# What tells that a visit was closed.
cdef tuple CLOSED_KEY = next(iter(news(CLOSED)))


cdef struct Ordered:
    # An item that was ordered and not taken.
    PyObject* item                     # NULL until it has arrived
    PyObject* placed                   # the `Placed` that it is wanted in, or NULL
    int64_t row                        # likewise
    int64_t turn                       # which item of the run it is to be there


cdef class Schedule
cdef class Visit
cdef class Remote
cdef class Ahead
cdef class Plan


cdef class Maker:
    """Where visits run; what it is told may wait until `flush`."""

    cdef public object owner           # what the pool knows it by
    cdef public int64_t outstanding    # items that were ordered and have not arrived
    cdef public int64_t most           # of these, at a time
    cdef int64_t n_visits              # that are open there
    cdef bint is_due                   # what waits is worth to be flushed
    cdef bint is_listed                # a schedule will do so

    def __cinit__(self, *args, **kwargs):
        self.most = MOST_ORDERS

    def __init__(self, owner=None):
        self.owner = owner

    cpdef object open(self, Visit visit):
        """Begin a visit, and leave out the items that were given before."""
        raise NotImplementedError

    cpdef object more(self, Visit visit):
        """Make one item more."""
        raise NotImplementedError

    cdef int more_into(self, Visit visit, Placed placed, int64_t row) except -1:
        """Make one item more, and write it to a row (see `ring.Writer.rows`)."""
        raise NotImplementedError

    cpdef object close(self, Visit visit):
        """Close a visit."""
        raise NotImplementedError

    cpdef object flush(self):
        """Have all that was asked for be done now."""

    cdef int take_in(self, Schedule schedule) except -1:
        """Take what has arrived, where that is cheap to see."""
        return 0

    cdef bint wait(self, Schedule schedule, Visit visit) except -1:
        """Wait until something of a visit has arrived; return False if the pool has to."""
        return False


@cython.final
cdef class Visit:
    """A visit that is made elsewhere: what of it has arrived, and what was asked for."""

    # What is read for each item comes first: a consumer that was woken has none of it in its cache.
    cdef readonly int64_t given        # how many were taken
    cdef readonly int64_t arrived      # how many were made
    cdef readonly int64_t ordered      # how many were asked for
    cdef Ordered* items                # these, but for those that were taken, in a ring
    cdef int64_t room                  # in it: a power of 2, or 0
    cdef readonly int64_t number       # what it is called where it runs
    cdef readonly Maker maker          # where it runs, or None before it was begun
    cdef readonly int64_t length       # how many there are, once that is known; else -1
    cdef readonly object error         # what was raised in the place of item number `arrived`
    cdef int64_t size                  # of those that wait to be taken, in bytes
    cdef readonly int64_t bound        # how many items it may give
    cdef int64_t limit                 # likewise, and one if its source is asked once more then
    cdef int64_t planned               # how many items the plan takes from it
    cdef int64_t allowed               # how many of these may be ordered
    cdef bint is_attached              # it is a part of the run, not only expected to be
    cdef bint is_expected              # it begins within the plan
    cdef bint is_over                  # nobody wants more of it
    cdef readonly object streamer
    cdef readonly tuple path
    cdef readonly object base          # the last state that is known, among items that were given
    cdef readonly int64_t base_at      # how many items were given there
    cdef object later                  # a state that is known, after items that were made, or None
    cdef int64_t later_at              # how many

    def __cinit__(self, streamer, tuple path, int64_t bound):
        self.streamer = streamer
        self.path = path
        self.set_bound(bound)
        self.length = -1

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self.room):
            Py_XDECREF(self.items[i].item)
            Py_XDECREF(self.items[i].placed)
        PyMem_Free(self.items)

    cdef Ordered* item(self, int64_t i) noexcept:
        """Item number `i`, one of those that were ordered and not taken."""
        return &self.items[i & (self.room - 1)]

    cdef int reserve(self) except -1:
        """Make room for one item more that is ordered."""
        cdef Ordered* before = self.items
        cdef int64_t i, room = self.room
        if self.ordered - self.given >= room:
            self.items = <Ordered*>zeros(max(2 * room, LEAST_ROOM), sizeof(Ordered))
            self.room = max(2 * room, LEAST_ROOM)
            for i in range(self.given, self.ordered):
                self.item(i)[0] = before[i & (room - 1)]
            PyMem_Free(before)
        return 0

    cdef void want(self, int64_t i, Placed placed, int64_t row, int64_t turn) noexcept:
        """Note where an item is wanted."""
        cdef Ordered* item = self.item(i)
        Py_INCREF(placed)
        item.placed, item.row, item.turn = <PyObject*>placed, row, turn

    cdef Placed take_wanted(self, int64_t i, int64_t* row, int64_t* turn):
        """Where an item is wanted, and forget that; None if nowhere."""
        cdef Ordered* item = self.item(i)
        cdef PyObject* placed = item.placed
        if placed is NULL:
            return None
        row[0], turn[0], item.placed = item.row, item.turn, NULL
        return <Placed>steal(placed)

    cdef PyObject* take(self, int64_t i) noexcept:
        """An item that has arrived, whose reference is the caller's."""
        cdef Ordered* item = self.item(i)
        cdef PyObject* taken = item.item
        item.item = NULL
        return taken

    cdef int replace(self, int64_t i, object value) except -1:
        """Put something in the place of an item that has arrived."""
        cdef PyObject* before = self.take(i)
        Py_INCREF(value)
        self.item(i).item = <PyObject*>value
        Py_XDECREF(before)
        return 0

    cdef list take_missing(self):
        """The rows of items that have not arrived, and forget them."""
        cdef int64_t i, row = 0, turn = 0
        cdef list missing = []
        for i in range(self.arrived, self.ordered):
            placed = self.take_wanted(i, &row, &turn)
            if placed is not None:
                missing.append((placed, row))
        return missing

    cdef int rename_rows(self) except -1:
        """Have the rows of items that have arrived bear its number."""
        cdef int64_t i
        cdef Ordered* item
        for i in range(self.given, self.arrived):
            item = self.item(i)
            if item.placed is not NULL:
                (<Placed>item.placed).held[item.row].visit = self.number
        return 0

    cdef int leave_items(self) except -1:
        """Forget the items that have arrived, and nobody takes any more."""
        cdef int64_t i, row = 0, turn = 0
        cdef Placed placed
        for i in range(self.given, self.arrived):
            placed = self.take_wanted(i, &row, &turn)
            if placed is not None:
                placed.held[row].visit = 0
            Py_XDECREF(self.take(i))
        return 0

    cdef void set_bound(self, int64_t bound) noexcept:
        self.bound = self.limit = bound
        # As the streams of a mux are that are no sources or muxes.
        if bound != UNBOUNDED and is_plain(self.streamer):
            self.limit = bound + 1

    @property
    def name(self):
        """What to call it in an error."""
        return f"{place_of(self.path)}{self.streamer!r}"

    @property
    def is_ready(self):
        """Whether the next step needs to wait for nothing."""
        return self.has_next()

    cdef bint has_next(self) noexcept:
        return self.given < self.arrived or self.length >= 0 or self.error is not None

    @property
    def skip(self):
        """How many items after `base` have arrived."""
        return self.arrived - self.base_at

    cdef int move_base(self) except -1:
        """Go on from a later state, if its items were given meanwhile."""
        if self.later is not None and self.given >= self.later_at:
            self.base, self.base_at, self.later = self.later, self.later_at, None
        return 0


# What Cython has made for the other fields of a Visit.
cdef traverseproc traverse_fields = (<PyTypeObject*>Visit).tp_traverse


cdef int traverse_visit(PyObject* self, visitproc visit, void* arg) except -1:
    """Have the cycle collector see what waits in a visit: an item may refer to its own run."""
    cdef Py_ssize_t i
    cdef PyObject* held
    cdef int stops
    for i in range(2 * (<Visit>self).room):
        held = (<Visit>self).items[i // 2].item
        if i % 2:
            held = (<Visit>self).items[i // 2].placed
        if held is not NULL:
            stops = visit(held, arg)
            if stops:
                return stops
    return traverse_fields(self, visit, arg)


(<PyTypeObject*>Visit).tp_traverse = traverse_visit


@cython.final
cdef class Known:
    """What is known of a streamer, which is looked at once."""

    cdef object streamer
    cdef bint is_mux                   # whose engine can run twice
    cdef bint stays                    # its visits run here
    cdef object length                 # how many items each of its visits has, or None


# Visits that were begun in this process; a worker may serve one schedule after another.
cdef int64_t n_numbers = 0


cdef class Schedule(Elsewhere):
    """Has the visits of a run be made elsewhere, early.

    Parameters
    ----------
    run : Run
        Of which it is to be a part.
    pool : object
        Has ``place(visit)``, which returns the `Maker` that a visit is to run at; ``wait(visit)``,
        which returns when something of a visit has arrived; ``raise_error(visit)``; and
        ``reach()``, which returns how many items keep all makers busy, 0 if that is not known.
    stays : function
        Tells of a streamer why its visits have to run here; None where they need not.
    length_of : function
        Tells of a streamer how many items each of its visits has; None where that is not known.
    read_ahead : int or None
        How many items are made early, of each visit; None for as many as keep workers busy.
    open_ahead : int
        How many visits begin early.
    max_bytes : int
        How much memory they may take.

    Attributes
    ----------
    max_visits : int
        How many visits may be open before one more begins early; a pool may say so.
    spare : int
        Likewise, which part of the memory items may take that are made early without `read_ahead`.
    max_sent : int
        Likewise, how many bytes items may take that are made early and written to no rows.
    """

    cdef object pool                   # of makers
    cdef object stays                  # streamer -> why it has to run here, or None
    cdef object length_of              # streamer -> how many items it has, or None
    cdef Py_ssize_t read_ahead, open_ahead
    cdef bint adapts                   # `read_ahead` is a least number
    cdef int64_t reach                 # how many items keep the workers busy
    cdef int64_t look_at               # after so many items, look how fast the workers are
    cdef public int64_t max_visits, spare, max_sent
    cdef int64_t max_bytes
    cdef dict streamers                # id -> Known
    cdef dict visits                   # path -> Visit, of those that are not over
    cdef dict numbers                  # number -> Visit, of those that were begun
    cdef BatchRows rows                # or None
    cdef int64_t batches_begin         # the number of the first item that goes into batches
    cdef int64_t batch_size            # of this size; 0 where nobody makes batches
    cdef bint is_batch_ahead           # there is memory to make a whole batch early
    cdef list due                      # makers that are to be flushed when all is ordered
    cdef int64_t waiting               # bytes of items that wait to be taken
    cdef int64_t outstanding           # items that are being made
    cdef int64_t wanted_at             # the number of the item that is ordered now, or -1
    cdef int64_t in_flight             # these, and those that wait to be taken
    cdef int64_t n_attached            # visits that the run reads from
    cdef int64_t item_size             # in bytes, of the larger ones
    cdef Plan plan                     # or None
    cdef dict lengths                  # places -> how many items the last visit there had
    cdef dict usual                    # places of a mux -> the last of these, how often in a row
    cdef bint is_mixed                 # some visits run here
    cdef public int64_t n_restarts
    cdef readonly int64_t n_arrived, n_taken, n_opened, n_in_vain, n_wrong, n_waits
    cdef readonly double seconds_waited

    def __init__(self, Run run, pool, stays, length_of, read_ahead, open_ahead, max_bytes):
        self.pool = pool
        self.stays = stays
        self.length_of = length_of
        self.adapts = read_ahead is None
        self.read_ahead = READ_AHEAD if self.adapts else read_ahead
        self.open_ahead = open_ahead
        self.max_bytes = max_bytes
        self.max_visits = INT64_MAX
        self.spare = SPARE
        self.max_sent = max_bytes
        self.streamers = {}
        self.visits = {}
        self.numbers = {}
        self.due = []
        self.lengths = {}
        self.usual = {}
        self.item_size = LEAST_SIZE
        self.wanted_at = -1
        run.elsewhere = self

    # ---- what the engines ask

    cdef Known known(self, object streamer):
        """What is known of a streamer."""
        cdef Known known = self.streamers.get(<size_t><void*>streamer)
        if known is None or known.streamer is not streamer:
            known = Known.__new__(Known)
            known.streamer = streamer
            known.is_mux = has_pool(streamer)
            known.stays = self.stays(streamer) is not None
            known.length = self.length_of(streamer)
            self.streamers[<size_t><void*>streamer] = known
        return known

    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope, Ending* ending):
        cdef Remote node
        if self.known(streamer).stays:
            return None
        node = self.remote(streamer, bound, scope)
        ending[0] = STEP_ONCE_MORE if is_plain(streamer) else STOP
        return node

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
            self.finish(visit)
        visit = self.expected(streamer, bound, path)
        visit.set_bound(bound)
        visit.is_attached = True
        self.n_attached += 1
        node.visit = visit
        node.schedule = self
        return node

    def root(self, streamer, Scope scope):
        """Return what gives the items of a streamer that is no mux."""
        node = self.remote(streamer, UNBOUNDED, scope)
        while hasattr(type(streamer), "__pescador_run__"):
            streamer = streamer.streamer
        node.steps = is_plain(streamer)
        return node

    cdef Visit expected(self, object streamer, int64_t bound, tuple path):
        """The visit that begins at a path, now or later."""
        cdef Visit visit = self.visits.get(path)
        if visit is None:
            visit = self.visits[path] = Visit(streamer, path, bound)
        return visit

    # ---- orders

    cdef int begin(self, Visit visit) except -1:
        """Have a maker begin a visit."""
        global n_numbers
        n_numbers += 1
        visit.number = n_numbers
        visit.maker = self.pool.place(visit)
        visit.maker.n_visits += 1
        self.numbers[visit.number] = visit
        self.n_opened += 1
        visit.maker.open(visit)
        return 0

    cdef int order(self, Visit visit, int64_t limit) except -1:
        """Order items of a visit until so many were asked for in all."""
        cdef Placed placed
        cdef int64_t row = 0
        if visit.length >= 0 or visit.error is not None or visit.is_over:
            return 0
        if limit >= visit.bound:
            limit = visit.limit
        while visit.ordered < limit:
            if visit.maker is None:
                self.begin(visit)
            placed = None
            if self.wanted_at >= 0 and self.wanted_at >= self.plan.reader.n and (
                    visit.ordered < visit.bound):
                placed = self.rows.place(self.wanted_at, self.plan.reader.n)
            visit.reserve()
            if placed is not None:
                row = self.rows.row_of(self.wanted_at)
                visit.want(visit.ordered, placed, row, self.wanted_at)
                placed.expect(row)
            self.wanted_at = -1
            visit.ordered += 1
            visit.maker.outstanding += 1
            self.outstanding += 1
            self.in_flight += 1
            # At last: it may be sent, and that be interrupted.
            if placed is None:
                visit.maker.more(visit)
            else:
                visit.maker.more_into(visit, placed, row)
            if visit.maker.is_due and not visit.maker.is_listed:
                visit.maker.is_listed = True
                self.due.append(visit.maker)
        return 0

    cdef inline int flush_due(self) except -1:
        """Have makers do now what is worth it."""
        cdef Maker maker
        while self.due:
            maker = <Maker>self.due.pop()
            maker.is_listed = False
            maker.flush()
        return 0

    cdef int order_as(self, Visit visit, int64_t limit, int64_t number) except -1:
        """Order an item of a visit, which is to be the one of this number."""
        if self.rows is not None and not self.is_mixed:
            self.wanted_at = number
        try:
            return self.order(visit, limit)
        finally:
            self.wanted_at = -1

    cdef inline int64_t wanted(self, int64_t number) noexcept:
        """How many items are to be made early, in all, when the item of this number is due."""
        cdef int64_t wanted = self.n_attached * self.read_ahead, right, most
        if self.adapts and self.reach > wanted:
            # Little in vain, and in little memory: no farther than the plan has been right.
            right = self.n_taken - (0 if self.plan is None else self.plan.wrong_at)
            most = self.max_bytes // (self.spare * self.item_size)
            if self.is_batch_ahead:
                # Whoever waits for a batch finds the workers busy with the next one.
                most = max(most, self.left_in_batch(number) + self.batch_size - self.open_ahead)
            wanted = max(wanted, min(self.reach, right, most))
        return wanted

    cdef int look(self) except -1:
        """Look now and then how fast the workers are."""
        if self.n_taken >= self.look_at:
            self.look_at = self.n_taken + min(LOOK_EVERY, max(self.n_taken, PLAN_EVERY))
            self.reach = self.pool.reach()
        return 0

    cdef inline bint may_begin(self, Visit visit) noexcept:
        """Whether a visit may be open."""
        return visit.is_attached or len(self.numbers) < self.max_visits

    cdef inline bint has_room(self, Visit visit) noexcept:
        """Whether one item more may be made early."""
        if visit.maker is None:
            if not self.may_begin(visit):
                return False
        elif visit.maker.outstanding >= visit.maker.most:
            return False
        return self.waiting + (self.outstanding + 1) * self.item_size <= (
            self.max_sent if self.rows is None or self.is_mixed else self.max_bytes)

    cdef inline bint waits_for_row(self, int64_t number) except -1:
        """Whether the item of this number is to be ordered when there is a row for it."""
        return self.rows is not None and not self.is_mixed and (
            self.rows.waits(number, self.plan.reader.n))

    cdef int order_early(self, Visit visit, int64_t given) except -1:
        """Order what may be made early, when `visit` is about to have given so many items.

        All together, it is as many items as `wanted` says: those that the plan takes next, or,
        without one, the part of this visit.
        """
        cdef int64_t wanted = self.wanted(0 if self.plan is None else self.plan.reader.n - 1)
        if self.plan is not None and not self.plan.is_wrong:
            self.plan.order_next(wanted + 1)
            return self.flush_due()
        if self.plan is None:
            self.look()
        cdef int64_t limit = given + wanted // max(self.n_attached, 1)
        while visit.ordered < min(limit, visit.bound) and self.has_room(visit):
            if visit.length >= 0 or visit.error is not None or visit.is_over:
                break
            self.order(visit, visit.ordered + 1)
        return self.flush_due()

    cdef int finish(self, Visit visit) except -1:
        """Have no more of a visit be made."""
        if visit.is_over:
            return 0
        visit.is_over = True
        self.n_attached -= visit.is_attached
        self.n_in_vain += visit.maker is not None and not visit.is_attached
        if self.visits.get(visit.path) is visit:
            del self.visits[visit.path]
        cdef list missing = visit.take_missing()
        self.waiting -= visit.size
        self.in_flight -= visit.arrived - visit.given
        visit.size = 0
        visit.leave_items()
        if visit.maker is None:
            return 0
        self.settle(visit)
        visit.maker.n_visits -= 1
        self.numbers.pop(visit.number, None)
        if visit.length < 0 and visit.error is None:
            visit.maker.close(visit)
            if missing:
                # Until it has heard of that, the worker may write there.
                self.pool.written_until_closed[visit.number] = (visit.maker, missing)
                return 0
        forget_rows(missing)
        return 0

    cdef int settle(self, Visit visit) except -1:
        """Note that nothing more arrives of what was ordered."""
        forget_rows(visit.take_missing())
        cdef int64_t missing = visit.ordered - visit.arrived
        visit.maker.outstanding -= missing
        self.outstanding -= missing
        self.in_flight -= missing
        visit.ordered = visit.arrived
        return 0

    # ---- what arrives

    cpdef object receive(self, int64_t number, object item, int64_t size):
        """Take an item of the visit of this number, of about so many bytes."""
        cdef Visit visit = self.numbers.get(number)
        cdef Ordered* ordered
        if visit is None:
            return
        if visit.arrived == visit.ordered:
            raise PescadorError(f"a worker has sent an item of {visit.name} that was not ordered")
        size = max(size, LEAST_SIZE)
        ordered = visit.item(visit.arrived)
        if ordered.placed is not NULL:
            (<Placed>ordered.placed).forget(ordered.row)
            (<Placed>ordered.placed).held[ordered.row].visit = number
            (<Placed>ordered.placed).held[ordered.row].item = visit.arrived
        Py_INCREF(item)
        ordered.item = <PyObject*>item
        visit.arrived += 1
        self.n_arrived += 1
        visit.maker.outstanding -= 1
        self.outstanding -= 1
        visit.size += size
        self.waiting += size
        # The larger ones count: slowly forgotten, at once remembered.
        self.item_size = size if size > self.item_size else (
            self.item_size - (self.item_size - size) // 16)

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
            self.learn(visit.path[::2], visit.length)
            if visit.planned > visit.length:
                self.plan.note_wrong()

    cdef int learn(self, tuple places, int64_t length) except -1:
        """Note how many items a visit had: its streamer, and the others of that mux."""
        cdef tuple mux = places[:len(places) - 1]
        self.lengths[places] = length
        before, times = self.usual.get(mux, (-1, 0))
        self.usual[mux] = (length, times + 1 if before == length else 1)
        return 0

    cdef int64_t likely_length(self, object length, tuple places) except -1:
        """How many items a visit is thought to have whose streamer says this of its length."""
        if length is None:
            length = self.lengths.get(places)
        if length is None:
            length, times = self.usual.get(places[:len(places) - 1], (-1, 0))
            if times < 2:
                return UNBOUNDED
        return length

    def receive_state(self, int64_t number, state):
        """Take the state of a visit after the items that have arrived."""
        cdef Visit visit = self.numbers.get(number)
        if visit is None:
            return
        visit.move_base()
        # One is enough to wait for; the next ones come.
        if visit.later is None:
            visit.later = state
            visit.later_at = visit.arrived

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
            if visit.length < 0 and visit.error is None:
                del self.numbers[visit.number]
                self.begin(visit)
                visit.rename_rows()
                self.order(visit, ordered)

    # ---- what is taken

    cdef PyObject* take(self, Visit visit) except? NULL:
        """The next item of a visit, or NULL at its end."""
        cdef PyObject* item
        cdef int64_t size
        if visit.is_over:
            return NULL
        if visit.given == visit.arrived and visit.maker is not None:
            visit.maker.take_in(self)
        while visit.given == visit.arrived:
            if visit.error is not None:
                try:
                    self.pool.raise_error(visit)
                finally:
                    self.finish(visit)
            if visit.length >= 0:
                self.finish(visit)
                return NULL
            self.wait_for(visit)
        # Before the item is taken: who is interrupted here has it yet.
        if self.plan is not None:
            self.check_plan(visit)
        self.order_early(visit, visit.given + 1)
        size = visit.size // (visit.arrived - visit.given)
        self.waiting -= size
        visit.size -= size
        item = visit.take(visit.given)
        visit.given += 1
        self.in_flight -= 1
        self.n_taken += 1
        if visit.given == visit.limit:
            self.finish(visit)
        return item

    cdef int check_plan(self, Visit visit) except -1:
        """Find the plan wrong if the next item of a visit is not what it has planned."""
        cdef int64_t row = 0, turn = -1, number
        cdef Placed placed = visit.take_wanted(visit.given, &row, &turn)
        if placed is not None:
            placed.held[row].visit = 0
        if visit.given >= visit.bound:
            # It is dropped, though it may have been ordered when the bound was a higher one.
            return 0
        if self.plan.lead >= 0 and visit.given >= visit.planned:
            self.plan.note_unforeseen(visit)
        if self.rows is None:
            return 0
        number = self.plan.reader.n - 1
        item = <object>visit.item(visit.given).item
        if type(item) is Placed:
            # Somebody was interrupted before it was taken.
            placed = item
            row, item = placed.row, IN_PLACE
        if turn >= 0 and turn != number:
            self.plan.note_wrong()
        if placed is not None and placed is self.rows.of_item(number) and (
                row == self.rows.row_of(number)):
            if item is IN_PLACE:
                placed.row = row
                visit.replace(visit.given, placed)
            elif not self.rows.has_keys(item):
                # Its values are in the rows of each other, and are about to be copied.
                visit.replace(visit.given, copied(item))
            return 0
        # It is copied to its row.
        if item is IN_PLACE:
            visit.replace(visit.given, placed.item(row))
        self.clear_row(number)
        return 0

    cdef int clear_row(self, int64_t number) except -1:
        """Have nothing of another item be in the row of the one of this number, now or later."""
        cdef Visit visit
        cdef int64_t i, at = 0, row = self.rows.row_of(number)
        cdef Placed placed = self.rows.of_item(number)
        if placed is None:
            return 0
        if placed.held[row].is_expected:
            self.plan.note_wrong()
            self.pool.wait_until(functools.partial(self.rows.is_free, number))
        if placed.held[row].visit == 0:
            return 0
        visit = self.numbers[placed.held[row].visit]
        placed.held[row].visit = 0
        i = placed.held[row].item
        visit.take_wanted(i, &row, &at)
        item = <object>visit.item(i).item
        visit.replace(i, copied(placed.item(row) if item is IN_PLACE else item))
        return 0

    cdef int64_t left_in_batch(self, int64_t number) noexcept:
        """How many items its batch lacks before the item of this number."""
        return self.batch_size - (number - self.batches_begin) % self.batch_size

    cdef int64_t patience(self) noexcept:
        """How many items the reader takes before it does anything with them."""
        return self.left_in_batch(self.plan.reader.n - 1) if self.batch_size else 0

    cdef int wait_for(self, Visit visit) except -1:
        """Wait for the next item of a visit."""
        cdef double before
        if visit.ordered == visit.given and self.plan is not None and not self.plan.is_wrong:
            # It may have waited for a row.
            self.plan.order_next(self.wanted(self.plan.reader.n - 1) + 1)
        self.order(visit, visit.given + 1)
        cdef Maker maker = visit.maker
        self.n_waits += 1
        before = perf_counter()
        try:
            if not maker.wait(self, visit):
                self.pool.wait(visit)
        finally:
            self.seconds_waited += perf_counter() - before
        return 0

    # ---- the plan

    def plan_ahead(self, Run run, start):
        """Plan ahead of the engine at the root: ``start()`` returns one that runs in `run`."""
        cdef Plan plan = Plan()
        plan.schedule = self
        plan.start = start
        plan.is_wrong = True
        plan.queue = []
        plan.turns = []
        run.elsewhere = plan
        self.plan = plan

    cdef Compiled ahead_of(self, Compiled engine):
        cdef Ahead node
        if self.plan is None or self.plan.here is not None:
            return engine
        self.plan.here = engine
        node = Ahead.__new__(Ahead)
        node.node = engine
        node.schedule = self
        self.plan.reader = node
        return node

    cdef int give_up(self) except -1:
        """Close visits that began early, and that no plan expects any more, but for a few."""
        cdef Visit visit
        cdef list unused = [
            visit for visit in self.visits.values()
            if not ((<Visit>visit).is_attached or (<Visit>visit).is_expected)]
        for visit in unused[:max(0, len(unused) - 2 * self.open_ahead)]:
            self.finish(visit)
        return 0

    cdef int end_plan(self) except -1:
        """Plan no more, and hold nothing that holds the schedule."""
        cdef Plan plan = self.plan
        # In a circle, all would wait for a collection, with memory of batches that a fork copies.
        self.plan = None
        if plan is not None:
            plan.start = plan.ahead = plan.here = plan.reader = None
            plan.queue.clear()
        return 0

    def close(self):
        """Close all visits."""
        cdef Visit visit
        for visit in list(self.visits.values()):
            self.finish(visit)
        self.end_plan()
        if self.rows is not None:
            self.rows.keep_batches(0, 0)
        self.pool = self.rows = None

    def lay_out(self, int64_t number, Py_ssize_t size, list columns):
        """Have workers write items into batches, from the item of this number on.

        Returns
        -------
        allocators : list of function or None
            ``(shape, dtype) -> ndarray`` for each column; None where workers share no memory.
        """
        if self.plan is None or self.plan.here is None or self.rows is not None:
            return None
        self.batches_begin, self.batch_size = number, size
        rows = self.rows = self.pool.new_rows(number, size, columns)
        if rows is None:
            return None
        # One that the reader has, one that is being filled, and one that is made early.
        self.is_batch_ahead = self.rows.room >= 3
        cdef Ahead ahead = self.plan.reader
        return [functools.partial(allocated, rows, i, ahead) for i in range(len(columns))]

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
    cdef bint steps                    # at its bound, which is ours, the source is asked once more

    is_elsewhere = True

    def __next__(self):
        cdef PyObject* item = NULL
        if self.left > 0:
            item = self.schedule.take(self.visit)
            self.left -= item is not NULL
        elif self.steps:
            self.steps = False
            Py_XDECREF(self.schedule.take(self.visit))
        if item is NULL:
            raise StopIteration
        return steal(item)

    def __del__(self):
        # The engine around it has ended, or was dropped.
        if self.schedule is not None and self.visit is not None:
            self.schedule.finish(self.visit)

    @property
    def path(self):
        """Which visit this is."""
        return self.visit.path

    cpdef dict save(self, saver):
        self.visit.move_base()
        return {"left": self.left, "steps": self.steps, "from": self.visit.base,
                "skip": self.visit.given - self.visit.base_at}

    cpdef object restore(self, dict state, loader):
        # A state that was taken here, or where it was not made elsewhere.
        if "skip" in state:
            self.left, self.steps = state["left"], state["steps"]
            self.visit.base, skip = state["from"], loader.whole(state, "skip", 0)
        else:
            self.visit.base, skip = state, 0
        self.visit.given = self.visit.arrived = self.visit.ordered = skip
        if self.visit.bound != UNBOUNDED:
            self.visit.set_bound(self.visit.bound + skip)

    cpdef object replay_cost(self):
        self.visit.move_base()
        return self.visit.given - self.visit.base_at

    cpdef object close_streams(self):
        self.schedule.finish(self.visit)

    def shown(self):
        return self.visit.streamer, self.visit.given, []


cdef int forget_rows(list missing) except -1:
    """Note that nothing is written any more to these rows."""
    cdef Placed placed
    cdef int64_t row
    for placed, row in missing:
        placed.forget(row)
    return 0


def close_rows(dict written_until_closed not None, number):
    """Note that a worker has closed a visit, and writes no row of it any more."""
    found = written_until_closed.pop(number, None)
    if found is not None:
        forget_rows(found[1])


cdef object copied(object item):
    """An item in memory of its own; what a worker can write to a row is a dict."""
    if type(item) is not dict:
        return item
    return {key: np.array(value) if type(value) is np.ndarray else value
            for key, value in (<dict>item).items()}


def allocated(rows, Py_ssize_t column, Ahead ahead, shape, dtype):
    """Return an array for the batch that the last item begins."""
    return rows.array(column, shape, dtype, ahead.n - 1)


cdef class Begun(Wrapper):
    """What is begun at the first item, by `begin` of a subclass."""

    cdef public tuple path             # which visit this is

    cdef PyObject* read(self) except? NULL:
        if self.node is None:
            self.node = self.begin()
        return Wrapper.read(self)

    def lay_out(self, Py_ssize_t size, list columns):
        """Have the next items be written into batches of this size; see `Schedule.lay_out`."""
        if isinstance(self.node, Ahead):
            return (<Ahead>self.node).lay_out(size, columns)
        return None


cdef class Ahead(Wrapper):
    """An engine, ahead of which a plan runs; it is asked between two items."""

    cdef Schedule schedule
    cdef int64_t n                     # items so far

    cdef PyObject* read(self) except? NULL:
        cdef Plan plan = self.schedule.plan
        if plan is not None:
            if plan.is_wrong or plan.lead <= 0 or self.n % PLAN_EVERY == 0:
                plan.go_on()
            plan.lead -= 1
        self.n += 1
        try:
            return Wrapper.read(self)
        except BaseException:
            # Nothing was taken.
            self.n -= 1
            if plan is not None:
                plan.lead += 1
            raise

    def lay_out(self, Py_ssize_t size, list columns):
        """Have the next items be written into batches of this size; see `Schedule.lay_out`."""
        return self.schedule.lay_out(self.n, size, columns)

    @property
    def kind(self):
        """What a state of it is a state of."""
        return type(self.node).__name__

    @property
    def path(self):
        """Which visit this is."""
        return self.node.path

    @property
    def recipe(self):
        """What the state is a state of."""
        return self.node.recipe

    cpdef dict save(self, saver):
        return self.node.save(saver)

    cpdef object restore(self, dict state, loader):
        self.node.restore(state, loader)
        self.left = self.node.left

    cpdef object close_streams(self):
        self.schedule.end_plan()
        Wrapper.close_streams(self)


# ------------------------------------------------------------------------------------ the plan


cdef class Planned(Compiled):
    """A visit in a plan: it gives itself, as often as it is thought to give an item."""

    cdef Plan plan
    cdef Visit visit                   # None where it runs here
    cdef readonly tuple path
    cdef int64_t count                 # items so far
    cdef int64_t length                # how many it is thought to have

    def __next__(self):
        cdef int64_t length = self.length
        if self.visit is not None and self.visit.length >= 0:
            length = self.visit.length
        if self.count >= length:
            if self.visit is not None and self.visit.length < 0:
                self.plan.note_end(self.visit)
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
    cdef list queue                    # visits whose items are to be ordered, one by one
    cdef Py_ssize_t first              # of it
    cdef object ahead                  # that engine, or None
    cdef Compiled here                 # the one that it runs ahead of
    cdef Ahead reader                  # what that one is read through
    cdef int64_t number                # of the item that it comes to next
    cdef list turns                    # numbers of the items in `queue`
    cdef bint is_wrong                 # it is to begin anew from that
    cdef bint is_over
    cdef Py_ssize_t n_ahead            # visits that it has begun and the other one has not
    cdef int64_t lead                  # items that it has taken and the other one has not
    cdef int64_t rests_until           # number of the item before which it does not begin anew
    cdef int64_t rest                  # how long it rested the last time
    cdef int64_t wrong_at              # how many items were taken when it was wrong the last time
    cdef double not_before             # likewise, in seconds: in large pools that takes long

    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope, Ending* ending):
        cdef Planned node
        cdef Known known = self.schedule.known(streamer)
        if known.is_mux:
            return None
        ending[0] = STOP
        node = Planned.__new__(Planned)
        node.plan = self
        node.path = path_of_visit(scope)
        node.length = self.schedule.likely_length(known.length, node.path[::2])
        if known.stays:
            # Where its items end, that nobody can tell in time, other rows would be due.
            self.schedule.is_mixed = True
        else:
            node.visit = self.schedule.expected(streamer, bound, node.path)
            if not (node.visit.is_attached or node.visit.is_expected):
                node.visit.is_expected = True
                self.n_ahead += 1
        return node

    cdef int note_end(self, Visit visit) except -1:
        """Have a visit be asked for its end, as the run will ask it: nobody waits for it then."""
        self.queue.append(visit)
        self.turns.append(NO_ITEM)
        return 0

    cdef int note_wrong(self) except -1:
        """Note that it has gone past the end of a visit."""
        if not self.is_wrong:
            self.is_wrong = True
            self.schedule.n_wrong += 1
            self.wrong_at = self.schedule.n_taken
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
        cdef Visit visit
        cdef int64_t wanted
        if self.lead < 0 and self.n_ahead > 0:
            # It has begun visits that the run has not come to.
            self.note_wrong()
        if self.is_over and not self.is_wrong:
            return 0
        self.schedule.look()
        if self.is_wrong:
            if self.schedule.n_taken < self.rests_until or time.monotonic() < self.not_before:
                return 0
            self.begin_anew()
            self.schedule.give_up()
        wanted = self.schedule.wanted(self.reader.n)
        while self.lead < wanted + PLAN_EVERY or (
                self.n_ahead < self.schedule.open_ahead and self.lead < MOST_AHEAD):
            try:
                item = next_item(self.ahead)
            except (PescadorError, PescadorWarning):
                # So will the run. Others are those of signal handlers.
                item = NULL
            except BaseException:
                self.is_wrong = True
                raise
            if item is NULL:
                self.is_over = True
                break
            self.lead += 1
            node = <Planned?>steal(item)
            visit = node.visit
            if visit is not None:
                visit.planned = node.count
                self.queue.append(visit)
                self.turns.append(self.number)
                if (node.count == 1 and not visit.is_attached and visit.ordered == 0
                        and self.n_ahead <= self.schedule.open_ahead
                        and self.schedule.may_begin(visit)):
                    # Not before it is asked for anything has it begun.
                    self.schedule.order_as(visit, 1, self.number)
            self.number += 1
            if self.lead % 1024 == 0:
                PyErr_CheckSignals()
        self.order_next(wanted)
        return self.schedule.flush_due()

    cdef int order_next(self, int64_t wanted) except -1:
        """Order the items that are taken next, until so many in all are made or wait."""
        cdef Visit visit
        # The first items of visits that began early are in flight besides.
        cdef int64_t first = min(self.n_ahead, self.schedule.open_ahead)
        cdef int64_t few = self.schedule.n_attached * READ_AHEAD
        if self.schedule.read_ahead > 0:
            wanted += first
            few += first
        # Many at a time, half of them at most: a worker that sleeps is woken once for all its own.
        if self.schedule.in_flight > max(wanted // 2, min(few, wanted - wanted // 4)):
            return 0
        while self.first < len(self.queue) and self.schedule.in_flight < wanted:
            visit = <Visit>PyList_GET_ITEM(self.queue, self.first)
            if not self.schedule.has_room(visit) or (
                    visit.allowed >= visit.ordered
                    and self.schedule.waits_for_row(self.turns[self.first])):
                return 0
            self.first += 1
            visit.allowed += 1
            if visit.allowed > visit.ordered:
                self.schedule.order_as(visit, visit.allowed, self.turns[self.first - 1])
        if self.first > MOST_AHEAD:
            del self.queue[:self.first]
            del self.turns[:self.first]
            self.first = 0
        return 0

    cdef int begin_anew(self) except -1:
        """Be where the run is."""
        cdef Visit visit
        for visit in self.schedule.visits.values():
            visit.planned = visit.allowed = visit.given
            visit.is_expected = False
        self.queue.clear()
        self.turns.clear()
        self.first = 0
        self.number = self.reader.n
        if self.schedule.rows is not None:
            self.schedule.rows.plan_anew(self.number)
        self.n_ahead = 0
        self.lead = 0
        self.is_wrong = self.is_over = False
        cdef double before = time.monotonic()
        self.ahead = self.start()
        (<Compiled?>self.ahead).restore(self.here.save(PLAN_STATE), PLAN_STATE)
        (<Compiled>self.ahead).left = UNBOUNDED
        self.not_before = time.monotonic() + SHARE * (time.monotonic() - before)
        return 0


def is_mux(streamer):
    """Tell whether a streamer is a mux that an engine runs."""
    return hasattr(streamer, "streamers") and is_stock(streamer) and (
        streamer.__pescador_has_engine__)


def has_pool(stream):
    """Tell whether this is a mux whose streams can be made elsewhere, one by one."""
    return is_mux(stream) and not callable(stream.streamers)


class PlanState(Saver, Loader):
    """Saver and loader at once, for engines of one tree: of a visit, only how far it is."""

    strict = True

    def save(self, node):
        """Return the state of an engine, or how many items a visit has given."""
        if isinstance(node, Remote):
            return {"given": (<Remote>node).visit.given}
        if isinstance(node, _mux.Engine):
            return node.save(self)
        return {"given": node.shown()[1] or 0}

    def refuse(self, name, reason):
        """Everything may be planned."""

    def attributes(self, fields, name):
        """No hooks are called in a plan."""
        return {}

    def set_attributes(self, streamer, fields):
        """See `attributes`."""

    def restore(self, node, state):
        """Have an engine or a visit of the plan be where the other one is."""
        node.restore(state, self)


PLAN_STATE = PlanState()


# ------------------------------------------------------------------------------------ processes


cdef enum:
    # How many items the beginning of a visit counts for.
    BEGINNING = 4


cdef class Orders(Maker):
    """Orders for a worker process; they are sent together.

    Parameters
    ----------
    owner : object
        What the pool knows the worker by.
    check_owner : function
        Raises in a process that is not to give orders.
    writer : OrderWriter or None
        Writes words where there is memory for that.
    send : function
        Sends words, as bytes, that there is no room for.
    send_visit : function
        ``send_visit(visit)`` has a visit begin from a state.

    Attributes
    ----------
    reader : Reader or None
        Gives what has arrived, where there is memory for that.
    tell : function
        ``tell(number, item, size)`` takes those items that are news.
    beside : list of Orders
        With a reader, those of all workers, whose owners are channels.
    cost : int
        About how many nanoseconds an item takes the worker; 0 where that is not known.
    worth : int
        How many nanoseconds of work are worth a message.
    """

    cdef object check_owner, writer, send, send_visit
    cdef public Arrivals reader
    cdef public object tell
    cdef public list beside
    cdef public int64_t cost, worth
    cdef int64_t* words
    cdef Py_ssize_t n, room
    cdef int64_t unsent                # work in them, in items

    def __init__(self, owner, check_owner, writer, send, send_visit):
        self.owner = owner
        self.check_owner = check_owner
        self.writer = writer
        self.send = send
        self.send_visit = send_visit
        self.worth = WORTH

    def __dealloc__(self):
        PyMem_Free(self.words)

    cdef int add(self, int64_t word) except -1:
        if self.n == self.room:
            self.words = <int64_t*>extended(self.words, &self.room, sizeof(int64_t))
        self.words[self.n] = word
        self.n += 1
        return 0

    cdef int count_item(self) except -1:
        """Count an item that was ordered, and notice when it is worth to wake the worker."""
        self.unsent += 1
        self.is_due |= self.unsent * self.cost >= self.worth or self.cost == 0
        return 0

    cpdef object open(self, Visit visit):
        if visit.base is not None:
            self.flush()
            self.send_visit(visit)
            return
        self.add(word_of(visit.number, BEGIN))
        self.add(visit.bound)
        self.add(visit.arrived - visit.base_at)
        self.add(len(visit.path))
        for number in visit.path:
            self.add(number)
        self.unsent += BEGINNING

    cpdef object more(self, Visit visit):
        self.add(word_of(visit.number, MORE))
        self.count_item()

    cdef int more_into(self, Visit visit, Placed placed, int64_t row) except -1:
        cdef Py_ssize_t i, n = placed.rows.n_columns
        cdef int64_t size
        self.add(word_of(visit.number, MORE_INTO))
        self.add(3 * n)
        for i in range(n):
            size = placed.rows.row_bytes[i]
            self.add(placed.blocks[i].number)
            self.add(placed.blocks[i].start + row * size)
            self.add(size)
        return self.count_item()

    cpdef object close(self, Visit visit):
        self.add(word_of(visit.number, CLOSE))

    cpdef object flush(self):
        self.is_due = False
        if self.n == 0:
            return
        words = PyBytes_FromStringAndSize(<char*>self.words, self.n * sizeof(int64_t))
        self.check_owner()
        # No signal comes in between: words are lost in a message only, that is interrupted.
        written = self.writer is not None and self.writer.put(words)
        self.n = self.unsent = 0
        if not written:
            self.send(words)

    cdef int take_in(self, Schedule schedule) except -1:
        if self.reader is not None:
            receive_all(schedule, self.reader, self.tell)
        return 0

    cdef bint wait(self, Schedule schedule, Visit visit) except -1:
        # What has come over the pipe, or is coming, comes first.
        if self.reader is None or self.owner.incoming is not None:
            return False
        flush_all(self.beside)
        # Held: a signal handler may end the worker, which has another one then, or none.
        cdef Arrivals reader = self.reader
        while self.reader is reader:
            receive_all(schedule, reader, self.tell)
            if visit.has_next():
                return True
            if not reader.wait(visit.number, schedule.patience() // max(len(self.beside), 1)):
                break
        return False


def least_busy(list makers):
    """Return the maker whose visits take the least time, if each gives as many items as others.

    Not the one that has the fewest items to make now: visits last, and those that begin together
    would all run there.
    """
    cdef Orders maker, best = None
    cdef double work, least = 0.0
    # One of which nothing is known yet is not a fast one.
    cdef bint are_known = all([(<Orders>it).cost > 0 for it in makers])
    for maker in makers:
        work = (maker.n_visits + 1) * (<double>maker.cost if are_known else 1.0)
        if best is None or work < least:
            best = maker
            least = work
    return best


def reach_of(list makers):
    """Return how many items keep makers busy for a while."""
    cdef Orders maker
    cdef int64_t n = 0
    for maker in makers:
        n += min(BUSY // maker.cost, MOST_ORDERS) if maker.cost else 0
    return n


def take_in(Schedule schedule, Maker maker):
    """Take what has arrived from a maker."""
    maker.take_in(schedule)


cpdef int flush_all(list makers) except -1:
    """Have all makers do now what they were asked for."""
    for maker in makers:
        if (<Orders>maker).n:
            (<Orders>maker).flush()


cdef int receive_all(Schedule schedule, Arrivals reader, tell) except -1:
    """Take all items that a reader has; ``tell(number, item, size)`` takes those that are news."""
    cdef PyObject* item
    while True:
        item = next_item(reader)
        if item is NULL:
            return 0
        value = steal(item)
        if value is IN_PLACE:
            schedule.receive(reader.tag, value, reader.size)
            continue
        key = next(iter(<dict?>value)) if len(<dict?>value) == 1 else None
        if type(key) is not tuple:
            schedule.receive(reader.tag, value, reader.size)
        elif key == CLOSED_KEY:
            close_rows(schedule.pool.written_until_closed, reader.tag)
        else:
            tell(reader.tag, value, reader.size)


def receive_packet(Schedule schedule, calls, numbers, words, values):
    """Take what a call to a worker gave, which is the first of `calls`, and over then.

    Parameters
    ----------
    calls : deque
    numbers : iterable of int
        The visits.
    words : iterable of {int, str}
        The size of an item in bytes; or a word that tells something of a visit.
    values : iterable of object
        The item; or what belongs to the word.
    """
    calls.popleft()
    for number, word, value in zip(numbers, words, values):
        if type(word) is int:
            schedule.receive(number, value, word)
        elif word == STATE:
            schedule.receive_state(number, value)
        else:
            schedule.receive_end(number, value)
