"""The items that a worker process makes, in the order in which they were ordered.

docs/inside/parallel.rst explains it.
"""

import pickle

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.time cimport perf_counter
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t
from libc.string cimport strchr

from pescador._channel import protocol, schema
from pescador.exceptions import PescadorError
from pescador._native.iterators cimport next_item, steal
from pescador.parallel.orders cimport (
    BEGIN, MORE, MORE_INTO, ORDER_BITS, WORTH, order_in,
)

cnp.import_array()

# How often (in seconds) a worker that is busy looks for messages.
cdef double LOOK = 0.005
# How long an item took counts for so many seconds.
cdef double MEMORY = 0.25
cdef enum:
    # So many orders that were carried out are forgotten at a time.
    FORGET = 1 << 10
    # How long items take is told after so many.
    TELL_EVERY = 16

cdef bytes ORDERS = protocol.ORDERS
cdef dict CLOSED = protocol.news(protocol.CLOSED)
cdef frozenset NUMBERS = frozenset(schema.NUMBERS)


@cython.final
cdef class Visit:
    """A visit that runs here."""

    cdef object running                # a `Running`
    cdef object items                  # the iterator
    cdef double due                    # when its state is to be told; infinity for never


@cython.final
cdef class Production:
    """An iterator over the items that were ordered; it stops where none is, and goes on later.

    Parameters
    ----------
    consumer : object
        Has ``messages``, and ``wait(timeout)``, which tells whether anything is wanted.
    begin : function
        ``begin(path, bound, base, skip)`` returns the `Running` of a visit.
    start_run : function
        Called with what `protocol.RUN` came with; all visits of the run before are closed.
    describe : function
        Returns what is told of an exception.
    is_forked : function
        Whether this is a copy, in a process that a stream has forked.

    Attributes
    ----------
    tag : int
        The number of the visit that the last item is of.
    writer : Writer or None
        Is told the same, and how long items take.
    memory : SharedMemory or None
        Likewise.
    orders : OrderReader or None
        What was ordered in memory.
    """

    cdef object consumer, begin, start_run, describe, is_forked
    cdef public object writer, memory, orders
    cdef readonly int64_t tag
    cdef dict visits                   # number -> Visit
    cdef dict beginning                # number -> (path, bound, base, skip) of those to begin
    cdef list due                      # numbers of which an item is to be made
    cdef list rows                     # where each of these items is wanted (bytes), or None
    cdef Py_ssize_t first              # of these
    cdef set into                      # numbers of visits whose items are wanted somewhere
    cdef list telling                  # (number, item) that come before the next item
    cdef double look_at
    cdef double seconds, items         # how long items took lately, and how many these were
    cdef int64_t n_made

    def __init__(self, consumer, begin, start_run, describe, is_forked):
        self.consumer = consumer
        self.begin = begin
        self.start_run = start_run
        self.describe = describe
        self.is_forked = is_forked
        self.visits = {}
        self.beginning = {}
        self.due = []
        self.rows = []
        self.into = set()
        self.telling = []

    def __iter__(self):
        return self

    def __next__(self):
        cdef double before = perf_counter()
        if self.telling:
            number, item = self.telling.pop(0)
            self.name(number)
            return item
        if before > self.look_at:
            self.look_at = before + LOOK
            if not self.consumer.wait(0):
                raise StopIteration
            self.read()
        number = self.next_due()
        self.name(number)
        item = self.make(number, self.rows[self.first - 1], before)
        # How long items take. Of a visit, it is often the first one that takes longest: so many are
        # looked at that the number of visits among them hardly counts.
        cdef double took = perf_counter() - before, kept = MEMORY / (MEMORY + took)
        self.seconds = kept * self.seconds + took
        self.items = kept * self.items + 1
        self.n_made += 1
        if self.memory is not None and (self.n_made < TELL_EVERY or self.n_made % TELL_EVERY == 0):
            self.memory.cost = <int64_t>(1e9 * self.seconds / self.items)
            self.writer.worth = <int64_t>(1e-9 * WORTH * self.items / max(self.seconds, 1e-9))
        return item

    cdef object next_due(self):
        """The number of the visit of which an item is to be made."""
        while self.first < len(self.due) or self.read():
            if self.first == FORGET:
                # A worker that is never done would keep all that was ever ordered.
                del self.due[:FORGET], self.rows[:FORGET]
                self.first = 0
                continue
            number = self.due[self.first]
            self.first += 1
            # Otherwise it has ended, or is not wanted any more.
            if number in self.visits or number in self.beginning:
                return number
        self.due.clear()
        self.rows.clear()
        self.first = 0
        raise StopIteration

    cdef int name(self, object number) except -1:
        self.tag = number
        if self.writer is not None:
            self.writer.tag = number
        return 0

    cdef object make(self, object number, object rows, double now):
        """The next item of a visit, or what became of it."""
        cdef Visit visit
        cdef PyObject* item
        try:
            found = self.visits.get(number)
            if found is None:
                visit = Visit.__new__(Visit)
                visit.running = self.begin(*self.beginning.pop(number))
                visit.items = visit.running.node
                visit.due = visit.running.due
                self.visits[number] = visit
            else:
                visit = <Visit>found
            item = next_item(visit.items)
            if item is NULL:
                self.close(number)
                self.into.discard(number)
                return protocol.news(protocol.ENDED)
            result = steal(item)
            if now >= visit.due:
                state = visit.running.state()
                visit.due = visit.running.due
                if state is not None:
                    self.telling.append((number, protocol.news(protocol.STATE, state)))
            if not is_plain(result):
                return visit.running.pickled(result)
            if rows is not None and self.writer is not None:
                self.writer.rows = rows
            return result
        except BaseException as error:
            if self.is_forked():
                raise
            self.visits.pop(number, None)
            self.into.discard(number)
            return protocol.news(protocol.FAILED, self.describe(error))

    def wait(self):
        """Wait for orders; tell whether anything is wanted."""
        # It is also said on the pipe, at which nobody looks while there are orders.
        if self.orders is not None and self.orders.is_stopped():
            return False
        while not self.consumer.messages and (self.orders is None or self.orders.is_empty()):
            busy = self.first < len(self.due) or self.telling
            if not self.consumer.wait(0 if busy else None):
                return False
            if busy:
                break
        return True

    cdef bint read(self) except -1:
        """Take note of what was ordered; tell whether an item is due."""
        while True:
            if self.orders is not None:
                self.take_orders(self.orders.take())
                if self.orders.awaits_message() and not self.consumer.messages:
                    if not self.consumer.wait(None):
                        return False
                    continue
            if not self.consumer.messages:
                return self.first < len(self.due)
            self.take_message(self.consumer.messages.popleft())

    cdef int take_message(self, bytes message) except -1:
        kind, what = message[:1], message[9:]
        if self.orders is not None:
            self.take_orders(self.orders.take_until(int.from_bytes(message[1:9], "little")))
        if kind == ORDERS:
            self.take_orders(what)
        elif kind == protocol.VISIT:
            number, *what = pickle.loads(what)
            self.beginning[number] = tuple(what)
        else:
            self.close_all()
            self.start_run(pickle.loads(what))
        return 0

    cdef int take_orders(self, bytes orders) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(orders) // sizeof(int64_t), at = 0, length
        cdef int64_t* order = <int64_t*>PyBytes_AS_STRING(orders)
        cdef int64_t word
        while at < n:
            word = order[at]
            at += 1
            number = word >> ORDER_BITS
            if order_in(word) == MORE:
                self.due.append(number)
                self.rows.append(None)
            elif order_in(word) == MORE_INTO:
                check_words(1, n - at)
                length = order[at]
                at += 1
                check_words(length, n - at)
                self.due.append(number)
                self.rows.append(PyBytes_FromStringAndSize(
                    <char*>&order[at], length * sizeof(int64_t)))
                if number in self.visits or number in self.beginning:
                    self.into.add(number)
                at += length
            elif order_in(word) == BEGIN:
                check_words(3, n - at)
                bound, skip, length = order[at], order[at + 1], order[at + 2]
                at += 3
                check_words(length, n - at)
                path = tuple([order[i] for i in range(at, at + length)])
                at += length
                self.beginning[number] = (path, bound, None, skip)
            else:
                # Whatever was ordered before: nobody wants it.
                self.close(number)
                if number in self.into:
                    self.into.discard(number)
                    self.telling.append((number, CLOSED))
        return 0

    cdef int close(self, object number) except -1:
        self.beginning.pop(number, None)
        visit = self.visits.pop(number, None)
        if visit is not None:
            (<Visit>visit).running.close()
        return 0

    def close_all(self):
        """Close all visits."""
        for number in list(self.visits):
            self.close(number)
        self.beginning.clear()
        self.due.clear()
        self.rows.clear()
        self.first = 0


cdef int check_words(Py_ssize_t length, Py_ssize_t room) except -1:
    """Raise an error if an order is to have more words than there are."""
    if not 0 <= length <= room:
        raise PescadorError(
            f"an order of the consumer is damaged: {length} words should follow, and {room} do")
    return 0


cdef bint is_plain(object item) except -1:
    """Whether an item is sent as it is: a dict of names and arrays, numbers or strings."""
    cdef cnp.dtype dtype
    cdef int overflow = 0
    if type(item) is not dict or not <dict>item:
        return False
    for key, value in (<dict>item).items():
        if not PyUnicode_CheckExact(key):
            return False
        if cnp.PyArray_CheckExact(value):
            dtype = <cnp.dtype>cnp.PyArray_DESCR(value)
            # Numbers, strings and times: not objects, structures, or types of other libraries.
            if strchr(b"biufcSUmM", dtype.kind) is NULL or dtype.metadata is not None:
                return False
        elif type(value) is int:
            PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                return False
        elif type(value) is str:
            if not (<str>value).isascii():
                return False
        elif type(value) not in NUMBERS:
            return False
    return True
