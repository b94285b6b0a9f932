"""Items from a worker process to its consumer, through memory that both map.

The memory holds, one after the other,

* words that both read: how far each of them is, and who of them sleeps;
* the numbers of blocks that the consumer gives back, in a ring;
* records, in a ring: what an item is made of, small arrays included. A schema (keys and dtypes) is
  a record of its own, which items refer to;
* a heap of blocks, one for each large array.

The worker copies an item into free places and then moves `head`. What lies between `tail` and
`head` is the consumer's to read, at once, with the worker asleep, busy or dead. Nothing is sent,
except to wake who sleeps. Large arrays are views of their blocks, which are given back when the
last view dies. An item that finds no place here goes another way, once the consumer has read all
that is here.

A process that is forked from the consumer gets copies of the blocks that are in use, and reads
nothing else; one that is forked from the worker writes nothing.

Nothing here knows of processes or pipes: waiting, waking and the other way are functions that the
caller brings.

docs/inside/channel.rst explains it.
"""

import os
import sys
from collections.abc import Mapping

import numpy as np

from pescador.exceptions import PescadorError

cimport cython
from cpython.dict cimport PyDict_Next
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pescador._native.copy cimport pescador_copy
from pescador._native.dicts cimport same_key
from pescador._native.iterators cimport next_item, steal


cdef extern from "_shared.h":
    bint HAS_SHARED "PESCADOR_HAS_SHARED"
    int shared_create "pescador_shared_create" () nogil
    char* shared_map "pescador_shared_map" (int fd, size_t size) nogil
    void shared_unmap "pescador_shared_unmap" (char* base, size_t size) noexcept nogil
    int shared_reserve "pescador_shared_reserve" (
        int fd, char* base, size_t start, size_t size) noexcept nogil
    void shared_drop "pescador_shared_drop" (char* base, size_t start, size_t stop) noexcept nogil
    void shared_close "pescador_shared_close" (int fd) noexcept nogil
    char* private_map "pescador_private_map" (size_t size) noexcept nogil
    void private_cover "pescador_private_cover" (char* base, size_t size, bint gone) noexcept nogil
    void private_move "pescador_private_move" (char* source, size_t size, char* to) noexcept nogil
    size_t page_size "pescador_page_size" () noexcept nogil
    uint64_t load "pescador_load" (uint64_t* word) noexcept nogil
    void store "pescador_store" (uint64_t* word, uint64_t value) noexcept nogil
    uint64_t exchange "pescador_exchange" (uint64_t* word, uint64_t value) noexcept nogil
    void lock "pescador_lock" (char* flag) noexcept nogil
    void unlock "pescador_unlock" (char* flag) noexcept nogil
    int log2 "pescador_log2" (uint64_t word) noexcept nogil


cdef extern from "numpy/arrayobject.h":
    ctypedef Py_ssize_t npy_intp
    ctypedef struct PyArrayObject:
        pass
    ctypedef struct PyArray_Descr:
        int type_num
        char byteorder
    PyTypeObject PyArray_Type
    enum:
        NPY_ARRAY_C_CONTIGUOUS
        NPY_ARRAY_F_CONTIGUOUS
        NPY_ARRAY_ALIGNED
        NPY_ARRAY_WRITEABLE
        NPY_VOID
        NPY_DATETIME
        NPY_TIMEDELTA
        NPY_NTYPES_LEGACY
        NPY_MAXDIMS
    int _import_array() except -1
    bint PyArray_Check(object value)
    bint PyArray_CheckExact(object value)
    void* PyArray_DATA(PyArrayObject* array) noexcept nogil
    int PyArray_NDIM(PyArrayObject* array) noexcept nogil
    npy_intp* PyArray_DIMS(PyArrayObject* array) noexcept nogil
    npy_intp PyArray_NBYTES(PyArrayObject* array) noexcept nogil
    int PyArray_FLAGS(PyArrayObject* array) noexcept nogil
    PyArray_Descr* PyArray_DESCR(PyArrayObject* array) noexcept nogil
    npy_intp PyDataType_ELSIZE(PyArray_Descr* dtype) noexcept nogil
    object PyArray_NewFromDescr(PyTypeObject* subtype, PyArray_Descr* dtype, int ndim,
                                npy_intp* shape, npy_intp* strides, void* data, int flags,
                                PyObject* owner)
    # Takes over the reference to the dtype.
    object PyArray_View(PyArrayObject* array, PyArray_Descr* dtype, PyTypeObject* subtype)
    int PyArray_SetBaseObject(PyArrayObject* array, PyObject* base) except -1
    int PyArray_CopyInto(PyArrayObject* into, PyArrayObject* values) except -1


_import_array()

# Whether this system has memory that two processes can map and that has no name.
AVAILABLE = bool(HAS_SHARED)

FORKED = ("a stream from a worker belongs to the process that started the worker; start an "
          "iteration of its own in this one")

cdef enum:
    # In bytes, and multiples of any size of page there is.
    CONTROL = 1 << 16
    RECORDS = 1 << 18
    # Arrays below this size travel inside the record and are copied out of it.
    INLINE = 4096
    # How many blocks may be in use at once.
    BLOCKS = 1 << 14
    RETURNS_AT = CONTROL
    RECORDS_AT = RETURNS_AT + 4 * BLOCKS
    HEAP_AT = RECORDS_AT + RECORDS
    # Blocks begin at cache lines, whatever they hold.
    LINE = 64
    # How much of the heap gets its pages at a time, at least.
    STEP = 1 << 20
    # A copy of this size lets other threads run meanwhile.
    LONG = 1 << 18
    # How many schemas a stream may have before they are all forgotten.
    SCHEMAS = 1024
    RECENT = 8

cdef enum Kind:
    PADDING                            # nothing until the end of the ring
    ITEM
    SCHEMA

cdef enum Outcome:
    DONE
    FULL                               # there will be room when the consumer has read on
    ALONE                              # it has read everything, and there is no room


cdef struct Control:
    # Each on a cache line of its own. Positions count bytes from the start of the stream.
    uint64_t head                      # written up to here
    uint64_t[7] _1
    uint64_t tail                      # read up to here
    uint64_t[7] _2
    uint64_t returned                  # how many blocks were given back
    uint64_t[7] _3
    uint64_t asleep                    # 1 if the consumer wants to be woken at the next record
    uint64_t[7] _4
    uint64_t wake_at                   # the tail at which the worker wants to be woken, or 0
    uint64_t[7] _5
    uint64_t stop                      # 1 if the consumer wants no more
    uint64_t[7] _6


cdef inline uint64_t round_up(uint64_t size, uint64_t unit) noexcept nogil:
    return (size + unit - 1) // unit * unit


# ------------------------------------------------------------------------------------ memory


@cython.final
cdef class Memory:
    """A mapping of memory that has no name.

    Parameters
    ----------
    max_bytes : int
        The size of the heap, but for rounding.
    descriptor : int
        Of the memory, which is this object's to close; -1 makes new memory.

    Raises
    ------
    OSError
        If it is not to be had.
    """

    cdef char* base
    cdef size_t size
    cdef int descriptor
    cdef readonly int64_t max_bytes

    def __cinit__(self, int64_t max_bytes, int descriptor=-1):
        cdef int error
        cdef bint new = descriptor < 0
        self.max_bytes = max_bytes
        # An item of many arrays needs a little more, for the alignment of each.
        self.size = HEAP_AT + round_up(<uint64_t>max_bytes + CONTROL, CONTROL)
        self.descriptor = shared_create() if new else descriptor
        if self.descriptor < 0:
            raise OSError(errno, os.strerror(errno))
        self.base = shared_map(self.descriptor, self.size)
        if self.base is NULL:
            raise OSError(errno, os.strerror(errno))
        if new:
            error = shared_reserve(self.descriptor, NULL, 0, HEAP_AT)
            if error:
                raise OSError(error, os.strerror(error))

    def __dealloc__(self):
        self.unmap()
        self.close()

    cdef void unmap(self) noexcept:
        if self.base is not NULL:
            shared_unmap(self.base, self.size)
            self.base = NULL

    def fileno(self):
        """Return the descriptor, -1 if it was closed."""
        return self.descriptor

    def close(self):
        """Close the descriptor; the mapping stays."""
        if self.descriptor >= 0:
            shared_close(self.descriptor)
            self.descriptor = -1


# -------------------------------------------------------------------------------------- heap


cdef struct Node:
    # A piece of the heap. Pieces are linked in the order of their addresses, and the free ones of
    # about the same size with each other. -1 ends a list.
    uint64_t start
    uint64_t size
    int32_t before
    int32_t after
    int32_t previous
    int32_t next
    bint used


@cython.final
cdef class Heap:
    """Which parts of a range of addresses are in use.

    Free neighbours are always one piece. Free pieces are listed by the power of two below their
    size, the last one freed first, as its pages are warm.

    Parameters
    ----------
    size : int
        The length of the range, in bytes.
    """

    cdef Node* nodes
    cdef int32_t capacity              # how many there is memory for
    cdef int32_t n_nodes               # numbers below it have stood for something
    cdef int32_t unused                # the first that stands for nothing, in a list by `next`
    cdef int32_t[64] bins              # the first free piece of each class
    cdef uint64_t filled               # which of them have any
    cdef readonly uint64_t size
    cdef readonly uint64_t used        # bytes
    cdef readonly int64_t blocks       # how many are in use

    def __cinit__(self, uint64_t size):
        cdef int i
        self.size = size // LINE * LINE
        self.unused = -1
        for i in range(64):
            self.bins[i] = -1
        if self.new_node() < 0:
            raise MemoryError
        self.nodes[0] = Node(0, self.size, -1, -1, -1, -1, False)
        self.list(0)

    def __dealloc__(self):
        PyMem_Free(self.nodes)

    cdef int32_t new_node(self) noexcept:
        """The number of a node, which may move the others; -1 if there is no memory."""
        cdef int32_t number = self.unused
        cdef int32_t capacity = 2 * self.capacity + 64
        cdef void* nodes
        if number >= 0:
            self.unused = self.nodes[number].next
            return number
        if self.n_nodes == self.capacity:
            # Not all that there may ever be: most streams need few, and a new process is slow to
            # get memory.
            nodes = PyMem_Realloc(self.nodes, capacity * sizeof(Node))
            if nodes is NULL:
                return -1
            self.nodes = <Node*>nodes
            self.capacity = capacity
        self.n_nodes += 1
        return self.n_nodes - 1

    cdef void drop_node(self, int32_t number) noexcept:
        self.nodes[number].next = self.unused
        self.unused = number

    cdef void list(self, int32_t number) noexcept:
        cdef Node* node = &self.nodes[number]
        cdef int place = log2(node.size)
        node.previous = -1
        node.next = self.bins[place]
        if node.next >= 0:
            self.nodes[node.next].previous = number
        self.bins[place] = number
        self.filled |= <uint64_t>1 << place

    cdef void unlist(self, int32_t number) noexcept:
        cdef Node* node = &self.nodes[number]
        cdef int place = log2(node.size)
        if node.next >= 0:
            self.nodes[node.next].previous = node.previous
        if node.previous >= 0:
            self.nodes[node.previous].next = node.next
        else:
            self.bins[place] = node.next
            if node.next < 0:
                self.filled &= ~(<uint64_t>1 << place)

    cdef int32_t find(self, uint64_t size) noexcept:
        """The number of a free piece that is large enough, or -1."""
        cdef int place = log2(size)
        cdef int32_t number = self.bins[place]
        while number >= 0:
            if self.nodes[number].size >= size:
                return number
            number = self.nodes[number].next
        if place == 63:
            return -1
        # Any piece of a higher class will do.
        cdef uint64_t higher = self.filled >> (place + 1) << (place + 1)
        if higher == 0:
            return -1
        return self.bins[log2(higher & (~higher + 1))]

    cpdef int32_t take(self, uint64_t size) noexcept:
        """Return the number of a new block of at least this size, or -1 if there is no room."""
        if self.blocks >= BLOCKS or size > self.size:
            return -1
        size = round_up(size if size > 0 else 1, LINE)
        cdef int32_t number = self.find(size)
        if number < 0:
            return -1
        cdef int32_t rest = -1
        if self.nodes[number].size > size:
            rest = self.new_node()
            if rest < 0:
                return -1
        self.unlist(number)
        cdef Node* node = &self.nodes[number]
        if rest >= 0:
            self.nodes[rest] = Node(node.start + size, node.size - size, number, node.after,
                                    -1, -1, False)
            if node.after >= 0:
                self.nodes[node.after].before = rest
            node.after = rest
            node.size = size
            self.list(rest)
        node.used = True
        self.used += node.size
        self.blocks += 1
        return number

    cpdef void give(self, int32_t number) noexcept:
        """Take a block back."""
        cdef Node* node = &self.nodes[number]
        cdef int32_t other
        self.used -= node.size
        self.blocks -= 1
        node.used = False
        other = node.after
        if other >= 0 and not self.nodes[other].used:
            self.unlist(other)
            self.absorb(number)
        other = node.before
        if other >= 0 and not self.nodes[other].used:
            self.unlist(other)
            self.absorb(other)
            number = other
        self.list(number)

    cdef void absorb(self, int32_t number) noexcept:
        """Join a piece with the one after it."""
        cdef Node* node = &self.nodes[number]
        cdef int32_t other = node.after
        node.size += self.nodes[other].size
        node.after = self.nodes[other].after
        if node.after >= 0:
            self.nodes[node.after].before = number
        self.drop_node(other)

    def pieces(self):
        """Return (start, size, number or None if free) of each piece, in order of addresses."""
        cdef Node node
        # The first piece never changes its node: it is split and joined in place.
        cdef int32_t number = 0
        result = []
        while number >= 0:
            node = self.nodes[number]
            result.append((node.start, node.size, number if node.used else None))
            number = node.after
        return result


# ------------------------------------------------------------------------------------- loans


# All that this process has on loan, for the hooks below: the first of a list.
cdef PyObject* first_loans = NULL
cdef char loans_busy = 0
# How often this process is a fork of another.
cdef uint64_t forks = 0


cdef struct Loan:
    uint64_t start
    uint64_t size                      # 0 if it is none
    bint kept                          # a forked process looks at it: nobody may write there


@cython.final
cdef class Loans:
    """Which blocks of a memory a consumer holds views of.

    Parameters
    ----------
    memory : Memory
        Where they are.
    """

    cdef Memory memory
    cdef Control* control
    cdef uint32_t* returns
    cdef Loan* loans                   # by number of block
    cdef Py_ssize_t capacity           # the numbers below it have one
    cdef bint over                     # nobody allocates any more
    cdef bint foreign                  # this is a copy in a forked process
    cdef char busy
    cdef PyObject* previous            # in the list of all, which holds no references
    cdef PyObject* next
    cdef char* copies                  # of what is held, for a child that is being forked
    cdef uint64_t copies_start
    cdef uint64_t copies_size
    cdef readonly uint64_t held        # bytes that are not to be had for other arrays
    cdef readonly int64_t blocks

    def __cinit__(self, Memory memory not None):
        self.memory = memory
        self.control = <Control*>memory.base
        self.returns = <uint32_t*>(memory.base + RETURNS_AT)
        global first_loans
        lock(&loans_busy)
        self.next = first_loans
        if self.next is not NULL:
            (<Loans>self.next).previous = <PyObject*>self
        first_loans = <PyObject*>self
        unlock(&loans_busy)

    def __dealloc__(self):
        global first_loans
        lock(&loans_busy)
        if self.next is not NULL:
            (<Loans>self.next).previous = self.previous
        if self.previous is not NULL:
            (<Loans>self.previous).next = self.next
        elif first_loans == <PyObject*>self:
            first_loans = self.next
        unlock(&loans_busy)
        PyMem_Free(self.loans)

    cdef int lend(self, uint32_t number, uint64_t start, uint64_t size) except -1:
        cdef bint fits
        lock(&self.busy)
        fits = number < self.capacity or self.grow(2 * <Py_ssize_t>number + 64)
        if fits:
            self.loans[number] = Loan(start, size, False)
            self.held += size
            self.blocks += 1
        unlock(&self.busy)
        if not fits:
            raise MemoryError
        return 0

    cdef bint grow(self, Py_ssize_t capacity) noexcept:
        cdef void* loans = PyMem_Realloc(self.loans, capacity * sizeof(Loan))
        if loans is NULL:
            return False
        self.loans = <Loan*>loans
        memset(self.loans + self.capacity, 0, (capacity - self.capacity) * sizeof(Loan))
        self.capacity = capacity
        return True

    cdef void settle(self, uint32_t number) noexcept:
        """Take note that the last view of a block has died."""
        cdef Loan* loan
        lock(&self.busy)
        self.blocks -= 1
        if not self.foreign:
            loan = &self.loans[number]
            self.held -= loan.size
            if self.over:
                shared_drop(self.memory.base, loan.start, loan.start + loan.size)
            elif not loan.kept:
                self.give(number)
            loan.size = 0
        unlock(&self.busy)

    cdef void give(self, uint32_t number) noexcept:
        cdef uint64_t returned = self.control.returned
        self.returns[returned % BLOCKS] = number
        store(&self.control.returned, returned + 1)

    def stop(self):
        """Tell the worker that no more is wanted."""
        if not self.foreign:
            store(&self.control.stop, 1)

    def close(self):
        """Give all pages but those of arrays that live to the system; no worker may be left."""
        cdef uint64_t stop = 0
        if self.foreign or self.over:
            return
        lock(&self.busy)
        self.over = True
        unlock(&self.busy)
        kept = sorted([(self.loans[number].start, self.loans[number].size)
                       for number in range(self.capacity) if self.loans[number].size > 0])
        for start, size in [*kept, (self.memory.size, 0)]:
            shared_drop(self.memory.base, stop, start)
            stop = start + size

    cdef void before_fork(self) noexcept:
        """Copy what is held: a child gets the copies, as it does of all other memory."""
        cdef uint64_t page = page_size(), stop = 0
        cdef Py_ssize_t number
        cdef Loan* loan
        self.copies_start = self.memory.size
        for number in range(self.capacity):
            loan = &self.loans[number]
            if loan.size > 0:
                self.copies_start = min(self.copies_start, loan.start // page * page)
                stop = max(stop, round_up(loan.start + loan.size, page))
        if stop == 0:
            return
        self.copies_size = stop - self.copies_start
        self.copies = private_map(self.copies_size)
        for number in range(self.capacity):
            loan = &self.loans[number]
            if loan.size == 0:
                continue
            if self.copies is NULL:
                loan.kept = True
            else:
                memcpy(self.copies + (loan.start - self.copies_start),
                       self.memory.base + loan.start, loan.size)

    cdef void after_fork_in_parent(self) noexcept:
        if self.copies is not NULL:
            shared_unmap(self.copies, self.copies_size)
            self.copies = NULL

    cdef void after_fork_in_child(self) noexcept:
        """Leave everything to the process that this one was forked from."""
        self.busy = 0
        if self.foreign:
            return
        self.foreign = True
        private_cover(self.memory.base, HEAP_AT, False)
        if self.blocks == 0:
            private_cover(self.memory.base + HEAP_AT, self.memory.size - HEAP_AT, True)
        elif self.copies is not NULL:
            private_move(self.copies, self.copies_size, self.memory.base + self.copies_start)
        self.copies = NULL


def before_fork():
    cdef PyObject* loans = first_loans
    while loans is not NULL:
        if not (<Loans>loans).foreign:
            (<Loans>loans).before_fork()
        loans = (<Loans>loans).next


def after_fork_in_parent():
    cdef PyObject* loans = first_loans
    while loans is not NULL:
        (<Loans>loans).after_fork_in_parent()
        loans = (<Loans>loans).next


def after_fork_in_child():
    global loans_busy, forks
    cdef PyObject* loans = first_loans
    loans_busy = 0
    forks += 1
    while loans is not NULL:
        (<Loans>loans).after_fork_in_child()
        loans = (<Loans>loans).next


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent,
                        after_in_child=after_fork_in_child)


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """What the views of a block refer to; it settles the loan when the last of them dies."""

    cdef Loans loans
    cdef uint32_t number

    def __dealloc__(self):
        if self.loans is not None:
            self.loans.settle(self.number)


# ----------------------------------------------------------------------------------- schemas


@cython.final
cdef class Schema:
    """The keys and dtypes of an item.

    Parameters
    ----------
    code : bytes
        What the other side makes the same schema of.
    keys : list
    dtypes : list of dtype
    """

    cdef readonly bytes code
    cdef readonly list keys
    cdef readonly list dtypes
    cdef int64_t number                # what records call it, -1 if the other side has not got it
    cdef Py_ssize_t n

    def __init__(self, bytes code, list keys, list dtypes):
        self.code = code
        self.keys = keys
        self.dtypes = dtypes
        self.number = -1
        self.n = len(keys)

    cdef bint fits(self, dict item, list arrays) except -1:
        """Whether an item has this schema, in this order; if so, fill `arrays` with its arrays.

        No may mean that it is not certain.
        """
        cdef PyObject* key = NULL
        cdef PyObject* value = NULL
        cdef Py_ssize_t position = 0, i = 0
        if len(item) != self.n:
            return False
        arrays.clear()
        while PyDict_Next(item, &position, &key, &value):
            if not (same_key(<object>key, self.keys[i]) and is_array(<object>value)
                    and same_dtype(<PyArrayObject*>value, self.dtypes[i])):
                return False
            arrays.append(<object>value)
            i += 1
        return True


cdef inline bint is_array(object value) except -1:
    return PyArray_CheckExact(value) or (
        PyArray_Check(value) and not is_masked(value))


def is_masked(value):
    """Return whether an array is a masked one, without loading NumPy's part that makes them."""
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


cdef inline bint same_dtype(PyArrayObject* array, object dtype) except -1:
    cdef PyArray_Descr* a = PyArray_DESCR(array)
    cdef PyArray_Descr* b = <PyArray_Descr*>dtype
    if a == b:
        return True
    if (a.type_num != b.type_num or a.byteorder != b.byteorder
            or PyDataType_ELSIZE(a) != PyDataType_ELSIZE(b)
            or a.type_num >= NPY_NTYPES_LEGACY or a.type_num == NPY_VOID):
        return False
    if a.type_num == NPY_DATETIME or a.type_num == NPY_TIMEDELTA:
        return <object>a == dtype
    return True


# ------------------------------------------------------------------------------------ writer


@cython.final
cdef class Writer:
    """The worker's end.

    Parameters
    ----------
    memory : Memory
    schema_of : function of an item
        Return the `Schema` of an item; raise DataError if it cannot be sent.
    wait : function
        Wait until the consumer wakes us, or a moment; return whether it wants more.
    wake : function
        Wake the consumer.
    send_elsewhere : function of an item
        Send an item another way; return whether the consumer wanted it. Called when nothing else is
        on its way.
    """

    cdef Memory memory
    cdef Control* control
    cdef char* records
    cdef Heap heap
    cdef object schema_of, wait, wake, send_elsewhere
    cdef uint64_t forks                # in the process that writes
    cdef dict known                    # code -> Schema, of those that the consumer has got
    cdef int64_t n_known
    cdef list recent                   # some of them, the last one first
    cdef list arrays                   # of the item that is being sent
    cdef int32_t* blocks               # of each of them, -1 if it is inside the record
    cdef Py_ssize_t n_blocks
    cdef uint64_t head
    cdef uint64_t tail                 # as last seen
    cdef uint64_t returned             # how many returned blocks were taken back
    cdef uint64_t reserved             # how much of the heap has its pages
    cdef readonly int64_t sent         # items

    def __cinit__(self, Memory memory not None, schema_of, wait, wake, send_elsewhere):
        self.memory = memory
        self.forks = forks
        self.control = <Control*>memory.base
        self.records = memory.base + RECORDS_AT
        self.heap = Heap(memory.size - HEAP_AT)
        self.schema_of = schema_of
        self.wait = wait
        self.wake = wake
        self.send_elsewhere = send_elsewhere
        self.known = {}
        self.recent = []
        self.arrays = []

    def __dealloc__(self):
        PyMem_Free(self.blocks)

    def send_all(self, stream):
        """Send the items of an iterable, until its end or until the consumer wants no more.

        In a process that the iterable has forked, nothing is sent.
        """
        cdef PyObject* item
        stream = iter(stream)
        while not load(&self.control.stop):
            item = next_item(stream)
            # The item is let go before the next is made: its memory may be used again.
            if item is NULL or not self.send(steal(item)):
                return

    cdef bint send(self, object item) except -1:
        """Send an item, as soon as there is room; tell whether the consumer wanted it."""
        if self.forks != forks:
            return False
        item = as_dict(item)
        cdef Schema schema = self.find_schema(item)
        cdef int outcome = FULL
        cdef bint waits = False, armed = False
        while True:
            outcome = self.put(schema)
            if outcome != FULL:
                break
            # Half of what is there is to be read before it is worth while to go on.
            store(&self.control.wake_at, self.tail + (self.head - self.tail + 1) // 2)
            waits = True
            armed = not armed
            # It may have read on just before that, so look again before each wait.
            if not armed and not self.wait():
                return False
        self.arrays.clear()
        if waits:
            store(&self.control.wake_at, 0)
        if outcome == ALONE and not self.send_elsewhere(item):
            return False
        self.sent += 1
        # After the store to head: either we see that it sleeps, or it sees the record.
        if load(&self.control.asleep) and exchange(&self.control.asleep, 0):
            self.wake()
        return True

    cdef Schema find_schema(self, object item):
        """The schema of an item, its arrays in `arrays`."""
        cdef Schema schema
        if type(item) is dict:
            for schema in self.recent:
                if schema.fits(<dict>item, self.arrays):
                    return schema
        schema = self.schema_of(item)
        schema = self.known.get(schema.code, schema)
        self.recent.insert(0, schema)
        del self.recent[RECENT:]
        self.arrays[:] = item.values()
        return schema

    cdef uint64_t measure(self, uint64_t inline_below, uint64_t* in_heap) noexcept:
        """The length of the record of an item; mark which arrays are to go into the heap."""
        cdef uint64_t length = 16, size
        cdef Py_ssize_t i
        cdef PyArrayObject* array
        in_heap[0] = 0
        for i in range(len(self.arrays)):
            array = <PyArrayObject*>self.arrays[i]
            size = PyArray_NBYTES(array)
            length += 8 + 8 * PyArray_NDIM(array)
            if size < inline_below:
                length += round_up(size, 8)
                self.blocks[i] = -1
            else:
                length += 8
                in_heap[0] += round_up(size, LINE)
                self.blocks[i] = 0
        return length

    cdef int put(self, Schema schema) except -1:
        cdef Py_ssize_t n = len(self.arrays)
        cdef uint64_t in_heap = 0, announcement = 0, padding, offset
        if n > self.n_blocks:
            self.make_blocks(n)
        cdef uint64_t length = self.measure(INLINE, &in_heap)
        if length > RECORDS // 4:
            length = self.measure(1, &in_heap)
        if schema.number < 0:
            announcement = 8 + round_up(<uint64_t>len(schema.code) + 8, 8)
        if length + announcement > RECORDS // 2:
            return self.no_room()
        offset = self.head % RECORDS
        padding = RECORDS - offset if offset + announcement + length > RECORDS else 0
        if in_heap > 0:
            self.take_back()
        if not self.fits(padding + announcement + length, in_heap):
            self.look()
            if not self.fits(padding + announcement + length, in_heap):
                if self.head != self.tail:
                    return FULL
        if in_heap > 0 and not self.take_blocks(n):
            return self.no_room()
        try:
            if padding:
                write_head(self.records + offset, padding, PADDING)
                offset = 0
            if announcement:
                self.write_schema(self.records + offset, announcement, schema)
            self.write_item(self.records + offset + announcement, length, schema.number, n)
        except BaseException:
            self.give_blocks(n)
            raise
        self.head += padding + announcement + length
        store(&self.control.head, self.head)
        return DONE

    cdef bint fits(self, uint64_t length, uint64_t in_heap) noexcept:
        """Whether there is room for a record, and the bound allows it."""
        cdef uint64_t pending = self.head - self.tail
        if pending + length > RECORDS:
            return False
        return pending + self.heap.used + length + in_heap <= <uint64_t>self.memory.max_bytes

    cdef void look(self) noexcept:
        """See how far the consumer is."""
        self.tail = load(&self.control.tail)
        self.take_back()

    cdef void take_back(self) noexcept:
        cdef uint32_t* returns = <uint32_t*>(self.memory.base + RETURNS_AT)
        cdef uint64_t returned = load(&self.control.returned)
        cdef uint32_t number
        while self.returned != returned:
            number = returns[self.returned % BLOCKS]
            if number < <uint32_t>self.heap.n_nodes and self.heap.nodes[number].used:
                self.heap.give(<int32_t>number)
            self.returned += 1

    cdef int no_room(self) noexcept:
        self.look()
        return ALONE if self.tail == self.head else FULL

    cdef int make_blocks(self, Py_ssize_t n) except -1:
        cdef void* blocks = PyMem_Realloc(self.blocks, n * sizeof(int32_t))
        if blocks is NULL:
            raise MemoryError
        self.blocks = <int32_t*>blocks
        self.n_blocks = n
        return 0

    cdef bint take_blocks(self, Py_ssize_t n) noexcept:
        """Get a block with pages behind it for each array that needs one; all or none."""
        cdef Py_ssize_t i
        cdef int32_t number
        for i in range(n):
            if self.blocks[i] < 0:
                continue
            number = self.heap.take(PyArray_NBYTES(<PyArrayObject*>self.arrays[i]))
            if number >= 0 and not self.reserve(number):
                self.heap.give(number)
                number = -1
            if number < 0:
                self.give_blocks(i)
                return False
            self.blocks[i] = number
        return True

    cdef void give_blocks(self, Py_ssize_t n) noexcept:
        cdef Py_ssize_t i
        for i in range(n):
            if self.blocks[i] >= 0:
                self.heap.give(self.blocks[i])

    cdef bint reserve(self, int32_t number) noexcept:
        cdef uint64_t stop = self.heap.nodes[number].start + self.heap.nodes[number].size
        if stop <= self.reserved:
            return True
        stop = min(round_up(stop, STEP), self.memory.size - HEAP_AT)
        if shared_reserve(self.memory.descriptor, self.memory.base, HEAP_AT + self.reserved,
                          stop - self.reserved):
            return False
        self.reserved = stop
        return True

    cdef int write_schema(self, char* record, uint64_t length, Schema schema) except -1:
        cdef Py_ssize_t size = len(schema.code)
        if self.n_known == SCHEMAS:
            # The consumer forgets them, too, when it sees number 0.
            self.n_known = 0
            self.known.clear()
            self.recent[:] = [schema]
        schema.number = self.n_known
        self.n_known += 1
        self.known[schema.code] = schema
        write_head(record, length, SCHEMA)
        (<uint64_t*>record)[1] = <uint64_t>schema.number << 32 | <uint64_t>size
        memcpy(record + 16, <char*>schema.code, size)
        return 0

    cdef int write_item(self, char* record, uint64_t length, int64_t schema,
                        Py_ssize_t n) except -1:
        cdef uint64_t* word = <uint64_t*>record
        cdef uint64_t* end = <uint64_t*>(record + length)
        cdef uint64_t size
        cdef Py_ssize_t i
        cdef int axis, ndim, flags
        cdef bint fortran
        cdef PyArrayObject* array
        cdef char* data
        write_head(record, length, ITEM)
        word[1] = schema
        word += 2
        for i in range(n):
            array = <PyArrayObject*>self.arrays[i]
            ndim = PyArray_NDIM(array)
            flags = PyArray_FLAGS(array)
            size = PyArray_NBYTES(array)
            fortran = flags & NPY_ARRAY_F_CONTIGUOUS and not flags & NPY_ARRAY_C_CONTIGUOUS
            # Other threads run during long copies, and may give an array another shape.
            if (word + 1 + ndim + (1 if self.blocks[i] >= 0 else (size + 7) // 8) > end
                    or self.blocks[i] >= 0 and size > self.heap.nodes[self.blocks[i]].size):
                raise PescadorError("an array of an item changed its shape while it was sent")
            word[0] = ndim | <uint64_t>fortran << 8
            for axis in range(ndim):
                word[1 + axis] = PyArray_DIMS(array)[axis]
            if self.blocks[i] < 0:
                data = <char*>(word + 1 + ndim)
                word += 1 + ndim + (size + 7) // 8
            else:
                word[0] |= <uint64_t>1 << 9 | <uint64_t>self.blocks[i] << 32
                word[1 + ndim] = HEAP_AT + self.heap.nodes[self.blocks[i]].start
                data = self.memory.base + word[1 + ndim]
                word += 2 + ndim
            if size == 0:
                continue
            if flags & (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS):
                copy(data, <char*>PyArray_DATA(array), size)
            else:
                copy_strided(data, array)
        return 0


cdef object as_dict(object item):
    """The item, read once: some make their values anew for each look."""
    if type(item) is dict or not isinstance(item, Mapping):
        return item
    return dict(item.items())


# More bytes than there are addresses for.
cdef uint64_t MOST = <uint64_t>1 << 48


cdef object damaged(str what, uint64_t value):
    return PescadorError(f"the memory shared with a worker is damaged: {what} is {value}")


cdef bint is_empty(uint64_t* shape, int ndim) noexcept:
    cdef int axis
    for axis in range(ndim):
        if shape[axis] == 0:
            return True
    return False


cdef inline void write_head(char* record, uint64_t length, uint64_t kind) noexcept:
    (<uint64_t*>record)[0] = length | kind << 32


cdef inline void copy(char* into, char* source, uint64_t size) noexcept:
    if size >= LONG:
        with nogil:
            pescador_copy(into, source, size, False)
    else:
        pescador_copy(into, source, size, False)


cdef inline object new_array(PyArray_Descr* dtype, int ndim, npy_intp* shape, void* data,
                             bint fortran):
    """An array; without data, one with memory of its own."""
    cdef int flags = NPY_ARRAY_F_CONTIGUOUS if fortran else 0
    if data is not NULL:
        flags = NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE | (
            NPY_ARRAY_F_CONTIGUOUS if fortran else NPY_ARRAY_C_CONTIGUOUS)
    Py_INCREF(<object>dtype)
    return PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, NULL, data, flags, NULL)


cdef int copy_strided(char* into, PyArrayObject* array) except -1:
    cdef PyArray_Descr* dtype = PyArray_DESCR(array)
    cdef object values = <object>array
    if dtype.type_num == NPY_VOID:
        # All of each element: NumPy would leave out what is between the fields.
        raw = np.dtype((np.void, PyDataType_ELSIZE(dtype)))
        dtype = <PyArray_Descr*>raw
        Py_INCREF(raw)
        values = PyArray_View(array, dtype, NULL)
    view = new_array(dtype, PyArray_NDIM(array), PyArray_DIMS(array), into, False)
    return PyArray_CopyInto(<PyArrayObject*>view, <PyArrayObject*>values)


# ------------------------------------------------------------------------------------ reader


@cython.final
cdef class Reader:
    """The consumer's end: an iterator over the items that are there now.

    It stops when there is none, and goes on when there is one again.

    Parameters
    ----------
    loans : Loans
        Of the memory to read from.
    schema_from : function of bytes
        Return the `Schema` that a code stands for.
    wake : function
        Wake the worker.
    copy : bool
        Whether all arrays are to own their memory.
    """

    cdef Memory memory
    cdef Loans loans
    cdef Control* control
    cdef char* records
    cdef object schema_from, wake
    cdef bint copy
    cdef list schemas
    cdef uint64_t tail
    cdef uint64_t head                 # as last seen
    cdef readonly int64_t received     # items

    def __cinit__(self, Loans loans not None, schema_from, wake, bint copy):
        self.memory = loans.memory
        self.loans = loans
        self.control = loans.control
        self.records = self.memory.base + RECORDS_AT
        self.schema_from = schema_from
        self.wake = wake
        self.copy = copy
        self.schemas = []

    def __iter__(self):
        return self

    def __next__(self):
        cdef char* record
        cdef uint64_t kind, length, there
        if self.loans.foreign:
            raise PescadorError(FORKED)
        while True:
            if self.tail == self.head:
                self.head = load(&self.control.head)
                if self.tail == self.head:
                    raise StopIteration
            record = self.records + self.tail % RECORDS
            kind = (<uint64_t*>record)[0]
            length = kind & <uint64_t>0xffffffff
            kind >>= 32
            there = min(self.head - self.tail, RECORDS - self.tail % RECORDS)
            if length < 8 or length > there or length % 8 or self.head - self.tail > RECORDS:
                raise damaged("a record", length)
            if kind == ITEM:
                item = self.read_item(<uint64_t*>record, <uint64_t*>(record + length))
                self.received += 1
                self.advance(length)
                return item
            if kind == SCHEMA:
                self.read_schema(<uint64_t*>record, length)
            elif kind != PADDING:
                raise damaged("the kind of a record", kind)
            self.advance(length)

    cdef int advance(self, uint64_t length) except -1:
        cdef uint64_t wake_at
        self.tail += length
        store(&self.control.tail, self.tail)
        # After the store to tail: either we see that the worker waits, or it sees the room.
        wake_at = load(&self.control.wake_at)
        if wake_at != 0 and self.tail >= wake_at:
            self.wake_worker()
        return 0

    cdef int wake_worker(self) except -1:
        if exchange(&self.control.wake_at, 0):
            self.wake()
        return 0

    def sleep(self):
        """Ask to be woken at the next record; tell whether there is none yet."""
        if self.loans.foreign:
            raise PescadorError(FORKED)
        store(&self.control.asleep, 1)
        if load(&self.control.head) != self.tail:
            store(&self.control.asleep, 0)
            return False
        # Blocks may have come back since it began to wait.
        if load(&self.control.wake_at):
            self.wake_worker()
        return True

    cdef int read_schema(self, uint64_t* word, uint64_t length) except -1:
        cdef uint64_t size, number
        if length < 16:
            raise damaged("a schema", length)
        size = word[1] & <uint64_t>0xffffffff
        number = word[1] >> 32
        if size > length - 16:
            raise damaged("a schema", size)
        schema = self.schema_from((<char*>(word + 2))[:size])
        if number == 0:
            self.schemas.clear()
        if number != <uint64_t>len(self.schemas):
            raise damaged("the number of a schema", number)
        self.schemas.append(schema)
        return 0

    cdef dict read_item(self, uint64_t* word, uint64_t* end):
        """The item of a record; nothing in it is used before it was checked."""
        cdef npy_intp[NPY_MAXDIMS] shape
        cdef uint64_t size, head, element
        cdef Py_ssize_t i
        cdef int axis, ndim
        cdef bint fortran, is_large
        cdef PyArray_Descr* dtype
        cdef dict item = {}
        if end - word < 2 or word[1] >= <uint64_t>len(self.schemas):
            raise damaged("the schema of an item", 0 if end - word < 2 else word[1])
        cdef Schema schema = self.schemas[<Py_ssize_t>word[1]]
        word += 2
        for i in range(schema.n):
            dtype = <PyArray_Descr*>schema.dtypes[i]
            if word >= end:
                raise damaged("the number of arrays", i)
            head = word[0]
            ndim = head & 0xff
            fortran = head >> 8 & 1
            is_large = head >> 9 & 1
            word += 1
            if ndim > NPY_MAXDIMS or end - word < ndim + is_large:
                raise damaged("a number of dimensions", ndim)
            element = size = PyDataType_ELSIZE(dtype)
            for axis in range(ndim):
                # Only an array without elements may have a shape that no memory holds.
                if size > 0 and word[axis] > MOST // size and not is_empty(word, ndim):
                    raise damaged("the length of an axis", word[axis])
                shape[axis] = word[axis]
                size *= word[axis]
            word += ndim
            if is_large:
                array = self.large(head >> 32, word[0], size, dtype, ndim, shape, fortran)
                word += 1
            elif element == 0:
                # Of itself, NumPy would make room for one character.
                field = np.dtype([("", <object>dtype)])
                array = np.empty([shape[axis] for axis in range(ndim)], field)["f0"]
            else:
                if size > <uint64_t>(<char*>end - <char*>word):
                    raise damaged("the size of an array", size)
                array = new_array(dtype, ndim, shape, NULL, fortran)
                pescador_copy(<char*>PyArray_DATA(<PyArrayObject*>array), <char*>word, size, False)
                word += (size + 7) // 8
            item[schema.keys[i]] = array
        return item

    cdef object large(self, uint32_t number, uint64_t start, uint64_t size, PyArray_Descr* dtype,
                      int ndim, npy_intp* shape, bint fortran):
        """An array in a block: a view of it, or a copy where too much is held already."""
        cdef Loans loans = self.loans
        cdef uint64_t taken = round_up(size, LINE)
        cdef Block block
        if (start < HEAP_AT or start % LINE or start > self.memory.size
                or taken > self.memory.size - start or number > 2 * BLOCKS + 1
                or PyDataType_ELSIZE(dtype) == 0):
            raise damaged("the place of an array", start)
        cdef char* data = self.memory.base + start
        if (self.copy or loans.blocks >= BLOCKS // 2
                or loans.held + taken > <uint64_t>self.memory.max_bytes // 2):
            array = new_array(dtype, ndim, shape, NULL, fortran)
            copy(<char*>PyArray_DATA(<PyArrayObject*>array), data, size)
            lock(&loans.busy)
            loans.give(number)
            unlock(&loans.busy)
            return array
        array = new_array(dtype, ndim, shape, data, fortran)
        block = Block.__new__(Block)
        block.number = number
        loans.lend(number, start, taken)
        block.loans = loans
        Py_INCREF(block)
        PyArray_SetBaseObject(<PyArrayObject*>array, <PyObject*>block)
        return array
