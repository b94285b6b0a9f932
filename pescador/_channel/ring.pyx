"""The ring of records between a worker and its consumer, in memory that both map.

A record is an item: where its schema is, the shape of each array, and the arrays, large ones in
blocks of the heap. A schema (keys and dtypes) is a record of its own, which items refer to by
number. The worker copies an item into free places and then moves `head`. What lies between `tail`
and `head` is the consumer's to read, with the worker asleep, busy or dead.

Neither end waits. `Writer.fill` writes items until it cannot, and says why; `Reader` is an iterator
over the items that are there. The callers wait, and carry what finds no place here. Linux only.

docs/inside/channel.rst explains it.
"""

from collections.abc import Mapping

import numpy as np

from pescador._channel.protocol import HEARTBEAT
from pescador._channel.schema import NUMBERS, empty, schema_from, schema_of
from pescador._checks import is_masked
from pescador.exceptions import PescadorError

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from numpy cimport (
    NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_F_CONTIGUOUS, NPY_ARRAY_WRITEABLE,
    NPY_DATETIME, NPY_MAXDIMS, NPY_NTYPES_LEGACY, NPY_TIMEDELTA, NPY_VOID, PyArray_Check,
    PyArray_CheckExact, PyArray_CopyInto, PyArray_DATA, PyArray_DESCR, PyArray_DIMS, PyArray_FLAGS,
    PyArray_NBYTES, PyArray_NDIM, PyDataType_ELSIZE, dtype as Dtype, import_array, ndarray,
    npy_intp, set_array_base,
)

from pescador._channel.arrivals cimport Arrivals
from pescador._channel.bell cimport Bell
from pescador._channel.memory cimport (
    BLOCKS, HEAP_AT, LINE, RECORDS, RECORDS_AT, Arena, Control, Heap, Lease, SharedMemory, damaged,
    round_up,
)
from pescador._native.arrays cimport array_at
from pescador._native.bell cimport WOKEN
from pescador._native.copy cimport pescador_copy
from pescador._native.dicts cimport same_key
from pescador._native.iterators cimport next_item, steal
from pescador._native.shared cimport exchange, load, lock, shared_reserve, store, unlock


cdef extern from "numpy/arrayobject.h":
    ndarray PyArray_FromScalar(object scalar, void* dtype)
    object PyArray_Scalar(void* data, Dtype dtype, object base)

import_array()

cdef object INT64 = np.dtype(np.int64), FLOAT64 = np.dtype(np.float64)
cdef object BOOLEAN = np.dtype(np.bool_), UINT8 = np.dtype(np.uint8)
cdef frozenset SCALARS = frozenset(kind for kind in NUMBERS if issubclass(kind, np.generic))

# How long (in milliseconds) a reader waits before somebody looks what became of the worker.
cdef int BEAT = <int>(1000 * <double>HEARTBEAT)
# More bytes than there are addresses for.
cdef uint64_t MOST = <uint64_t>1 << 48

cdef enum:
    # In bytes. Arrays below this size travel inside the record and are copied out of it.
    INLINE = 4096
    # How much of the heap gets its pages at a time, at least.
    STEP = 1 << 20
    # A copy of this size lets other threads run meanwhile.
    LONG = 1 << 18
    # How many schemas both ends remember.
    SCHEMAS = 64
    # A consumer that is patient waits for so many times as much as is worth to wake it.
    MUCH = 10
    # The tag of an item is in the bits from this one on; its schema is in those below.
    TAG = 16

cdef enum:
    # Of an array that is in no block: inside its record, or where the consumer wants it.
    INLINED = -1
    IN_ROWS = -2

cdef enum Kind:
    # What a value is that is sent as an array, and comes back as what it was.
    ARRAY
    SCALAR                             # of NumPy
    INT
    FLOAT
    BOOL
    TEXT                               # a str of ASCII characters

cdef enum RecordType:
    PADDING                            # nothing until the end of the ring
    ITEM
    SCHEMA

cdef enum Room:
    DONE
    FULL                               # there will be room when the consumer has read on
    TOO_LARGE                          # it has read everything, and there is no room


cdef object as_dict(object item):
    """Return an item as a dict, read once: some mappings make their values anew for each look."""
    if type(item) is dict or not isinstance(item, Mapping):
        return item
    return dict(item.items())


cdef bint is_empty(uint64_t* shape, int ndim) noexcept:
    cdef int axis
    for axis in range(ndim):
        if shape[axis] == 0:
            return True
    return False


cdef inline void write_head(char* record, uint64_t length, uint64_t record_type) noexcept:
    (<uint64_t*>record)[0] = length | record_type << 32


cdef inline void copy(char* into, char* source, uint64_t size, bint past_cache) noexcept:
    """Copy bytes; with `past_cache`, many of them to where nobody reads them soon."""
    if size >= LONG:
        with nogil:
            pescador_copy(into, source, size, past_cache)
    else:
        pescador_copy(into, source, size, False)


cdef inline object make_array(Dtype dtype, int ndim, npy_intp* shape, void* data, bint fortran):
    """Return an array; without data, one with memory of its own."""
    cdef int flags = NPY_ARRAY_F_CONTIGUOUS if fortran else 0
    if data is not NULL:
        flags = NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE | (
            NPY_ARRAY_F_CONTIGUOUS if fortran else NPY_ARRAY_C_CONTIGUOUS)
    return array_at(data, ndim, shape, NULL, dtype, flags)


cdef int copy_strided(char* into, ndarray array) except -1:
    cdef object dtype = array.dtype
    if (<Dtype>dtype).type_num == NPY_VOID:
        # All of each element: NumPy would leave out what is between the fields.
        dtype = np.dtype((np.void, PyDataType_ELSIZE(<Dtype>dtype)))
        array = array.view(dtype)
    return PyArray_CopyInto(
        make_array(dtype, PyArray_NDIM(array), PyArray_DIMS(array), into, False), array)


# ----------------------------------------------------------------------------------- schemas


@cython.final
cdef class Schema:
    """The keys and dtypes of an item, and their number in the ring."""

    cdef bytes code                    # what the other end makes the same schema of
    cdef list keys
    cdef list dtypes
    cdef list kinds                    # see Kind
    cdef Py_ssize_t n
    cdef int64_t number                # -1 until it was written
    cdef tuple layout                  # that it was compared with the last time
    cdef bint has_layout

    def __cinit__(self, bytes code, list keys, list dtypes, list kinds):
        self.code = code
        self.keys = keys
        self.dtypes = dtypes
        self.kinds = kinds
        self.n = len(keys)
        self.number = -1

    cdef bint fits(self, dict item, list arrays) except -1:
        """Fill `arrays` with those of an item; tell whether it certainly has this schema."""
        cdef PyObject* found = NULL
        cdef PyObject* held = NULL
        cdef Py_ssize_t position = 0, i = 0
        cdef int kind
        if len(item) != self.n:
            return False
        arrays.clear()
        # Threads of the source run during what is called here, and may change the item.
        with cython.critical_section(item):
            while PyDict_Next(item, &position, &found, &held):
                key, value = <object>found, <object>held
                if i == self.n or not same_key(key, self.keys[i]):
                    return False
                kind = self.kinds[i]
                if kind != ARRAY:
                    value = array_of_number(value, kind)
                    if value is None or (kind == SCALAR
                                         and not same_dtype(<ndarray>value, self.dtypes[i])):
                        return False
                elif not (is_array(value) and same_dtype(<ndarray>value, self.dtypes[i])):
                    return False
                arrays.append(value)
                i += 1
        return i == self.n


cdef object array_of_number(object value, int kind):
    """What a value that is no array is sent as; None if it is not of this kind."""
    cdef int overflow = 0
    cdef int64_t number
    cdef npy_intp length
    if kind == SCALAR:
        return PyArray_FromScalar(value, NULL) if type(value) in SCALARS else None
    if kind == INT and type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return None
        array = make_array(INT64, 0, NULL, NULL, False)
        (<int64_t*>PyArray_DATA(<ndarray>array))[0] = number
    elif kind == FLOAT and type(value) is float:
        array = make_array(FLOAT64, 0, NULL, NULL, False)
        (<double*>PyArray_DATA(<ndarray>array))[0] = value
    elif kind == BOOL and type(value) is bool:
        array = make_array(BOOLEAN, 0, NULL, NULL, False)
        (<char*>PyArray_DATA(<ndarray>array))[0] = value is True
    elif kind == TEXT and type(value) is str and (<str>value).isascii():
        text = (<str>value).encode()
        length = len(text)
        array = make_array(UINT8, 1, &length, NULL, False)
        memcpy(PyArray_DATA(<ndarray>array), <char*>text, length)
    else:
        return None
    return array


cdef object number_at(char* data, uint64_t size, int kind, Dtype dtype):
    """The value that was sent as such an array."""
    if kind == SCALAR:
        return PyArray_Scalar(data, dtype, None)
    if kind == INT:
        return (<int64_t*>data)[0]
    if kind == FLOAT:
        return (<double*>data)[0]
    if kind == BOOL:
        return data[0] != 0
    return data[:size].decode("ascii")


cdef inline bint is_array(object value) except -1:
    return PyArray_CheckExact(value) or (PyArray_Check(value) and not is_masked(value))


cdef inline bint same_dtype(ndarray array, object dtype) except -1:
    if <PyObject*>PyArray_DESCR(array) == <PyObject*>dtype:
        return True
    return equal_dtypes(<Dtype>PyArray_DESCR(array), <Dtype>dtype)


cdef bint equal_dtypes(Dtype a, Dtype b) except -1:
    if (a.type_num != b.type_num or a.byteorder != b.byteorder
            or PyDataType_ELSIZE(a) != PyDataType_ELSIZE(b)
            or a.type_num >= NPY_NTYPES_LEGACY or a.type_num == NPY_VOID):
        return False
    # Of these two, the unit counts as well.
    return a.type_num not in (NPY_DATETIME, NPY_TIMEDELTA) or a == b


# ------------------------------------------------------------------------------------ writer


@cython.final
cdef class Writer:
    """The worker's end.

    Parameters
    ----------
    memory : SharedMemory
    wake : function
        Wake the consumer.

    Attributes
    ----------
    tag : int
        A number that goes with each item, for the consumer.
    worth : int
        How many items are worth that a consumer wakes which waits for one of them.
    takes_numbers : bool
        Whether values may be numbers and strings (see `schema.NUMBERS`), besides arrays.
    arena : SharedMemory or None
        Memory of the consumer, in which it may want an item.
    rows : bytes or None
        Where in it the arrays of the next item are wanted: the number of a block, the place and the
        size of each, in bytes, as words of 64 bits. An item that does not fit goes the usual way.
    """

    cdef public uint64_t tag
    cdef public int64_t worth
    cdef public bint takes_numbers
    cdef public SharedMemory arena
    cdef public bytes rows
    cdef int64_t n_awaited             # items since the one that it waits for, and that one
    cdef SharedMemory memory
    cdef Control* control
    cdef char* records
    cdef Heap heap
    cdef object wake
    cdef list schemas                  # that the reader knows, by number
    cdef int64_t n_written             # how many schemas were written
    cdef object pending                # the item that found no room, or None
    cdef list arrays                   # of the item that is being written
    cdef int32_t* blocks               # of each of them, or INLINED, or IN_ROWS
    cdef Py_ssize_t n_blocks
    cdef uint64_t head
    cdef uint64_t tail                 # as last seen
    cdef uint64_t returned             # how many returned blocks were freed
    cdef uint64_t reserved             # how much of the heap has its pages

    def __cinit__(self, SharedMemory memory not None, wake):
        memory.claim()
        self.memory = memory
        self.control = memory.control
        self.records = memory.base + RECORDS_AT
        self.heap = Heap(memory.size - HEAP_AT)
        self.wake = wake
        self.schemas = []
        self.arrays = []

    def __dealloc__(self):
        PyMem_Free(self.blocks)

    def fill(self, iterator):
        """Write what did not fit the last time, then items of an iterator, while there is room.

        Returns
        -------
        why : {"ended", "full", "too large"}
            There are no more items, or nobody wants them; room will come when the consumer reads
            on; `pending` has to go another way, and the consumer has read all that is before it.
        """
        cdef PyObject* pointer
        cdef Schema schema
        cdef int room
        item, self.pending = self.pending, None
        while True:
            if item is None:
                # The last item is not held here: its memory may be used for the next.
                pointer = NULL if load(&self.control.stop) else next_item(iterator)
                if pointer is NULL:
                    self.wake_up(0)
                    return "ended"
                item = as_dict(steal(pointer))
                # A process that the iterator or the item has forked writes nothing.
                if self.memory.in_child:
                    return "ended"
            schema = self.find_schema(item)
            room = self.put(schema)
            if room == FULL:
                # Half of what is there is to be read before it is worth while to go on.
                store(&self.control.wake_at, self.tail + (self.head - self.tail + 1) // 2)
                # It may have been read just before that.
                room = self.put(schema)
                if room == FULL:
                    self.pending = item
                    self.wake_up(0)
                    return "full"
            self.arrays.clear()
            if load(&self.control.wake_at):
                store(&self.control.wake_at, 0)
            if room == TOO_LARGE:
                self.pending = item
                return "too large"
            item = None
            self.rows = None
            self.wake_up(self.tag)

    cdef int wake_up(self, uint64_t tag) except -1:
        """Wake the consumer if it sleeps and waits for an item with this tag, or for any.

        With 0, in any case: it is to read what there is.
        """
        cdef uint64_t awaited
        # After the store to head: either we see that it sleeps, or it sees the record.
        if not load(&self.control.asleep):
            return 0
        if tag != 0:
            awaited = load(&self.control.awaited)
            if awaited == tag or self.n_awaited:
                self.n_awaited += 1
            if awaited != 0 and (self.n_awaited == 0 or self.n_awaited < max(
                    self.worth, min(<int64_t>load(&self.control.patience), MUCH * self.worth))):
                return 0
        self.n_awaited = 0
        if exchange(&self.control.asleep, 0):
            self.wake()
        return 0

    def take_pending(self):
        """Return `pending`, which goes over the pipe: nothing behind it is read before it."""
        store(&self.control.by_pipe, load(&self.control.by_pipe) + 1)
        item, self.pending = self.pending, None
        self.rows = None
        return item

    cdef Schema find_schema(self, object item):
        """Return the schema of an item, and put its arrays into `arrays`."""
        cdef Schema schema
        if type(item) is dict:
            for schema in self.schemas:
                if schema.fits(<dict>item, self.arrays):
                    return schema
            # Read once: a thread of the source may change it meanwhile.
            item = dict(item)
        code, keys, dtypes, kinds = schema_of(item, self.takes_numbers)
        self.arrays[:] = [value if kind == ARRAY else array_of_number(value, kind)
                          for value, kind in zip(item.values(), kinds)]
        for schema in self.schemas:
            if schema.code == code:
                return schema
        return Schema(code, keys, dtypes, kinds)

    cdef int put(self, Schema schema) except -1:
        """Write an item and, if it is new, its schema."""
        cdef Py_ssize_t n = len(self.arrays)
        cdef uint64_t in_heap = 0, announced = 0, padding, offset, total
        cdef bint alone
        if n > self.n_blocks:
            self.make_blocks(n)
        cdef uint64_t length = self.measure(INLINE, &in_heap)
        if length > RECORDS // 4:
            length = self.measure(1, &in_heap)
        if schema.number < 0:
            announced = 8 + round_up(<uint64_t>len(schema.code) + 8, 8)
        total = announced + length
        offset = self.head % RECORDS
        padding = RECORDS - offset if offset + total > RECORDS else 0
        if in_heap > 0:
            self.free_returned()
        for _ in range(2):
            # There is always room for one item.
            alone = self.tail == self.head
            if (total <= RECORDS // 2 and (alone or self.fits(padding + total, in_heap))
                    and (in_heap == 0 or self.take_blocks(n))):
                break
            self.tail = load(&self.control.tail)
            self.free_returned()
        else:
            return TOO_LARGE if self.tail == self.head else FULL
        try:
            if padding:
                write_head(self.records + offset, padding, PADDING)
                offset = 0
            if announced:
                self.write_schema(self.records + offset, announced, schema)
            self.write_item(self.records + offset + announced, length, schema.number, n)
        except BaseException:
            self.free_blocks(n)
            raise
        self.head += padding + total
        store(&self.control.head, self.head)
        return DONE

    cdef uint64_t measure(self, uint64_t inline_below, uint64_t* in_heap) noexcept:
        """Return the length of an item's record; mark which arrays are to go into the heap."""
        cdef uint64_t length = 16, size
        cdef Py_ssize_t i
        cdef PyObject* array
        cdef bint in_rows = self.rows is not None and self.fits_rows()
        in_heap[0] = 0
        for i in range(len(self.arrays)):
            # Borrowed: nobody else changes the list.
            array = PyList_GET_ITEM(self.arrays, i)
            size = PyArray_NBYTES(<ndarray>array)
            length += 8 + 8 * PyArray_NDIM(<ndarray>array)
            if in_rows:
                length += 8
                self.blocks[i] = IN_ROWS
            elif size < inline_below:
                length += round_up(size, 8)
                self.blocks[i] = INLINED
            else:
                length += 8
                in_heap[0] += round_up(size, LINE)
                self.blocks[i] = 0
        return length

    cdef inline uint64_t row_word(self, Py_ssize_t i) noexcept:
        return (<uint64_t*>PyBytes_AS_STRING(self.rows))[i]

    cdef bint fits_rows(self) noexcept:
        """Whether the arrays have the sizes of the places that are wanted for them, in C order."""
        cdef Py_ssize_t i
        cdef PyObject* array
        if self.arena is None or (
                PyBytes_GET_SIZE(self.rows) != 3 * <Py_ssize_t>sizeof(uint64_t) * len(self.arrays)):
            return False
        for i in range(len(self.arrays)):
            array = PyList_GET_ITEM(self.arrays, i)
            if (<uint64_t>PyArray_NBYTES(<ndarray>array) != self.row_word(3 * i + 2)
                    or PyArray_FLAGS(<ndarray>array) & NPY_ARRAY_F_CONTIGUOUS
                    and not PyArray_FLAGS(<ndarray>array) & NPY_ARRAY_C_CONTIGUOUS):
                return False
        return True

    cdef bint fits(self, uint64_t length, uint64_t in_heap) noexcept:
        """Tell whether the ring has room for a record, and the bound allows it."""
        cdef uint64_t unread = self.head - self.tail
        if unread + length > RECORDS:
            return False
        return unread + self.heap.used + length + in_heap <= <uint64_t>self.memory.max_bytes

    cdef void free_returned(self) noexcept:
        cdef uint64_t returned = load(&self.control.returned)
        while self.returned != returned:
            self.heap.free(<int32_t>self.memory.returns[self.returned % BLOCKS])
            self.returned += 1

    cdef int make_blocks(self, Py_ssize_t n) except -1:
        cdef void* blocks = PyMem_Realloc(self.blocks, n * sizeof(int32_t))
        if blocks is NULL:
            raise MemoryError
        self.blocks = <int32_t*>blocks
        self.n_blocks = n
        return 0

    cdef bint take_blocks(self, Py_ssize_t n) noexcept:
        """Allocate a block, and its pages, for each array that was marked; all or none."""
        cdef Py_ssize_t i
        cdef int32_t number
        for i in range(n):
            if self.blocks[i] < 0:
                continue
            number = self.heap.allocate(PyArray_NBYTES(<ndarray>PyList_GET_ITEM(self.arrays, i)))
            if number >= 0 and not self.reserve(number):
                self.heap.free(number)
                number = -1
            if number < 0:
                self.free_blocks(i)
                return False
            self.blocks[i] = number
        return True

    cdef void free_blocks(self, Py_ssize_t n) noexcept:
        """Free the blocks of the first arrays, which are marked again."""
        cdef Py_ssize_t i
        for i in range(n):
            if self.blocks[i] >= 0:
                self.heap.free(self.blocks[i])
                self.blocks[i] = 0

    cdef bint reserve(self, int32_t number) noexcept:
        """Have pages behind a block; tell whether there are any."""
        cdef uint64_t stop = self.heap.blocks[number].start + self.heap.blocks[number].size
        if stop <= self.reserved:
            return True
        stop = min(round_up(stop, STEP), self.memory.size - HEAP_AT)
        if not self.memory.is_open() or shared_reserve(
                self.memory.descriptor, self.memory.base, HEAP_AT + self.reserved,
                stop - self.reserved):
            return False
        self.reserved = stop
        return True

    cdef int write_schema(self, char* record, uint64_t length, Schema schema) except -1:
        cdef uint64_t size = len(schema.code)
        schema.number = self.n_written % SCHEMAS
        self.n_written += 1
        # The reader forgets the one before, too.
        self.schemas[schema.number : schema.number + 1] = [schema]
        write_head(record, length, SCHEMA)
        (<uint64_t*>record)[1] = <uint64_t>schema.number << 32 | size
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
        cdef PyObject* array
        cdef char* data
        write_head(record, length, ITEM)
        word[1] = schema | self.tag << TAG
        word += 2
        for i in range(n):
            array = PyList_GET_ITEM(self.arrays, i)
            ndim = PyArray_NDIM(<ndarray>array)
            flags = PyArray_FLAGS(<ndarray>array)
            size = PyArray_NBYTES(<ndarray>array)
            fortran = flags & NPY_ARRAY_F_CONTIGUOUS and not flags & NPY_ARRAY_C_CONTIGUOUS
            # Other threads run during long copies, and may give an array another shape.
            if (word + 1 + ndim + ((size + 7) // 8 if self.blocks[i] == INLINED else 1) > end
                    or self.blocks[i] >= 0 and size > self.heap.blocks[self.blocks[i]].size
                    or self.blocks[i] == IN_ROWS and size != self.row_word(3 * i + 2)):
                raise PescadorError("an array of an item changed its shape while it was sent")
            word[0] = ndim | <uint64_t>fortran << 8
            for axis in range(ndim):
                word[1 + axis] = PyArray_DIMS(<ndarray>array)[axis]
            if self.blocks[i] == INLINED:
                data = <char*>(word + 1 + ndim)
                word += 1 + ndim + (size + 7) // 8
            elif self.blocks[i] == IN_ROWS:
                word[0] |= <uint64_t>1 << 10 | self.row_word(3 * i) << 32
                word[1 + ndim] = self.row_word(3 * i + 1)
                if word[1 + ndim] > self.arena.size or size > self.arena.size - word[1 + ndim]:
                    raise PescadorError("an item is wanted outside of the memory that is shared")
                data = self.arena.base + word[1 + ndim]
                word += 2 + ndim
            else:
                word[0] |= <uint64_t>1 << 9 | <uint64_t>self.blocks[i] << 32
                word[1 + ndim] = HEAP_AT + self.heap.blocks[self.blocks[i]].start
                data = self.memory.base + word[1 + ndim]
                word += 2 + ndim
            if size == 0:
                continue
            if flags & (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS):
                # A batch of many such rows has left the cache when it is complete.
                copy(data, <char*>PyArray_DATA(<ndarray>array), size, self.blocks[i] == IN_ROWS)
            else:
                copy_strided(data, <ndarray>array)
        return 0


# ------------------------------------------------------------------------------------ reader


@cython.final
cdef class Reader(Arrivals):
    """The consumer's end: an iterator over the items that are there now.

    It stops when there is none, and goes on when there is one again.

    Parameters
    ----------
    memory : SharedMemory
    bell : Bell or None
        Wakes the worker, and is woken by it; None where nobody sleeps.
    copy : bool
        Whether all arrays are to own their memory.

    Attributes
    ----------
    received : int
        How many items there were.
    arena : Arena or None
        Where it wants items to be written to.
    layout : (bytes, list of tuple of int, object) or None
        The schema and the shapes of the items that it wants there, and what is given in the place
        of such an item: who has ordered it knows where it lies.
    by_pipe : int
        How many items have come over the pipe, which whoever reads it says.
    """

    cdef public Arena arena
    cdef public tuple layout
    cdef SharedMemory memory
    cdef Control* control
    cdef char* records
    cdef Bell bell
    cdef bint copy
    cdef list schemas                  # by number
    cdef uint64_t tail
    cdef uint64_t head                 # as last seen
    cdef readonly int64_t received     # items
    cdef public uint64_t by_pipe

    def __cinit__(self, SharedMemory memory not None, Bell bell, bint copy):
        memory.claim()
        self.memory = memory
        self.control = memory.control
        self.records = memory.base + RECORDS_AT
        self.bell = bell
        self.copy = copy
        self.schemas = []

    def __iter__(self):
        return self

    def __next__(self):
        cdef char* record
        cdef uint64_t record_type, length, there
        while True:
            if self.tail == self.head:
                self.look()
            if self.tail == self.head or self.memory.in_child:
                raise StopIteration
            record = self.records + self.tail % RECORDS
            length = (<uint64_t*>record)[0] & <uint64_t>0xffffffff
            record_type = (<uint64_t*>record)[0] >> 32
            there = min(self.head - self.tail, RECORDS - self.tail % RECORDS)
            if length < 8 or length > there or length % 8 or self.head - self.tail > RECORDS:
                raise damaged("a record", length)
            if record_type == ITEM:
                item = self.read_item(<uint64_t*>record, <uint64_t*>(record + length))
                self.received += 1
                self.advance(length)
                return item
            if record_type == SCHEMA:
                self.read_schema(<uint64_t*>record, length)
            elif record_type != PADDING:
                raise damaged("the type of a record", record_type)
            self.advance(length)

    cdef inline void look(self) noexcept:
        """Look for what was written, up to where an item on the pipe comes in between."""
        cdef uint64_t head = load(&self.control.head)
        # When an item is sent, all before it was read; what is written later is after this word.
        if load(&self.control.by_pipe) == self.by_pipe:
            self.head = head

    cdef int advance(self, uint64_t length) except -1:
        cdef uint64_t wake_at
        self.tail += length
        store(&self.control.tail, self.tail)
        # After the store to tail: either we see that the worker waits, or it sees the room.
        wake_at = load(&self.control.wake_at)
        if wake_at != 0 and self.tail >= wake_at and exchange(&self.control.wake_at, 0):
            self.wake_worker()
        return 0

    cdef int wake_worker(self) except -1:
        if self.bell is not None:
            self.bell.ring()
        return 0

    cpdef bint is_empty(self, uint64_t awaited=0, uint64_t patience=0) except -1:
        """Tell whether there is no record; if so, the worker wakes us at the next.

        With `awaited`, at the next with this tag and perhaps so many more, or when it can write no
        more.
        """
        store(&self.control.patience, patience)
        store(&self.control.awaited, awaited)
        store(&self.control.asleep, 1)
        if self.tail == self.head:
            self.look()
        if self.tail != self.head:
            store(&self.control.asleep, 0)
            return False
        # Blocks may have come back since the worker began to wait.
        if load(&self.control.wake_at) and exchange(&self.control.wake_at, 0):
            self.wake_worker()
        return True

    cdef bint wait(self, uint64_t awaited, uint64_t patience) except -1:
        # The words of a process that was forked are the other one's to hear.
        while not self.memory.in_child:
            if not self.is_empty(awaited, patience):
                return True
            if self.bell is None or self.bell.hear(BEAT) != WOKEN:
                break
        return False

    def stop(self):
        """Tell the worker that no more is wanted."""
        store(&self.control.stop, 1)

    cdef int read_schema(self, uint64_t* word, uint64_t length) except -1:
        cdef uint64_t size, number
        if length < 16:
            raise damaged("a schema", length)
        size = word[1] & <uint64_t>0xffffffff
        number = word[1] >> 32
        if size > length - 16:
            raise damaged("a schema", size)
        if number > <uint64_t>len(self.schemas) or number >= SCHEMAS:
            raise damaged("the number of a schema", number)
        code = (<char*>(word + 2))[:size]
        self.schemas[number : number + 1] = [Schema(code, *schema_from(code))]
        return 0

    cdef object read_item(self, uint64_t* word, uint64_t* end):
        """Return the item of a record; nothing in it is used before it was checked."""
        cdef npy_intp[NPY_MAXDIMS] shape
        cdef uint64_t size, head
        cdef Py_ssize_t i
        cdef int axis, ndim
        cdef bint fortran, in_heap, in_rows
        cdef Dtype dtype
        cdef dict item = {}
        if end - word < 2 or word[1] % (1 << TAG) >= <uint64_t>len(self.schemas):
            raise damaged("the schema of an item", 0 if end - word < 2 else word[1] % (1 << TAG))
        cdef Schema schema = self.schemas[<Py_ssize_t>(word[1] % (1 << TAG))]
        self.tag = word[1] >> TAG
        self.size = 8 * (end - word)
        word += 2
        if self.layout is not None and self.lies_in_place(schema, word, end):
            return self.layout[2]
        for i in range(schema.n):
            dtype = <Dtype>schema.dtypes[i]
            if word >= end:
                raise damaged("the number of arrays", i)
            head = word[0]
            ndim = head & 0xff
            fortran = head >> 8 & 1
            in_heap = head >> 9 & 1
            in_rows = head >> 10 & 1
            word += 1
            if ndim > NPY_MAXDIMS or end - word < ndim + (in_heap or in_rows):
                raise damaged("a number of dimensions", ndim)
            size = PyDataType_ELSIZE(dtype)
            for axis in range(ndim):
                # Only an array without elements may have a shape that no memory holds.
                if size > 0 and word[axis] > MOST // size and not is_empty(word, ndim):
                    raise damaged("the length of an axis", word[axis])
                shape[axis] = word[axis]
                size *= word[axis]
            word += ndim
            if in_heap:
                array = self.read_block(head >> 32, word[0], size, dtype, ndim, shape, fortran)
                word += 1
            elif in_rows:
                array = self.read_row(head >> 32, word[0], size, dtype, ndim, shape)
                word += 1
            elif PyDataType_ELSIZE(dtype) == 0:
                array = empty(tuple([shape[axis] for axis in range(ndim)]), dtype, "C")
            else:
                if size > <uint64_t>(<char*>end - <char*>word):
                    raise damaged("the size of an array", size)
                if <int>schema.kinds[i] != ARRAY:
                    array = number_at(<char*>word, size, schema.kinds[i], dtype)
                else:
                    array = make_array(dtype, ndim, shape, NULL, fortran)
                    pescador_copy(<char*>PyArray_DATA(<ndarray>array), <char*>word, size, False)
                word += (size + 7) // 8
            if <int>schema.kinds[i] != ARRAY and type(array) is ndarray:
                size = PyArray_NBYTES(<ndarray>array)
                array = number_at(<char*>PyArray_DATA(<ndarray>array), size, schema.kinds[i], dtype)
            item[schema.keys[i]] = array
        return item

    cdef bint lies_in_place(self, Schema schema, uint64_t* word, uint64_t* end) except -1:
        """Whether all arrays of an item were written to where they were wanted."""
        cdef Py_ssize_t i, axis
        cdef uint64_t size
        cdef tuple shape
        if schema.layout is not self.layout:
            schema.layout = self.layout
            schema.has_layout = schema.code == self.layout[0]
        if not schema.has_layout:
            return False
        for i in range(schema.n):
            shape = <tuple>(<list>self.layout[1])[i]
            # Not inlined, nor in the heap.
            if (end - word < 2 + len(shape)
                    or word[0] % (1 << 16) != <uint64_t>len(shape) | <uint64_t>1 << 10):
                return False
            size = PyDataType_ELSIZE(<Dtype>schema.dtypes[i])
            for axis in range(len(shape)):
                if word[1 + axis] != <uint64_t>shape[axis]:
                    return False
                size *= word[1 + axis]
            self.size += size
            word += 2 + len(shape)
        return True

    cdef object read_row(self, uint32_t number, uint64_t start, uint64_t size, Dtype dtype,
                         int ndim, npy_intp* shape):
        """Return an array that was written to where it was wanted."""
        cdef Lease block = None if self.arena is None else self.arena.block(number, start, size)
        if block is None:
            raise damaged("the place of a row", start)
        self.size += size
        array = make_array(dtype, ndim, shape, self.arena.memory.base + start, False)
        set_array_base(<ndarray>array, block)
        return array

    cdef object read_block(self, uint32_t number, uint64_t start, uint64_t size, Dtype dtype,
                           int ndim, npy_intp* shape, bint fortran):
        """Return an array in a block: a view of it, or a copy where too much is held already."""
        cdef SharedMemory memory = self.memory
        cdef uint64_t taken = round_up(size, LINE)
        if (start < HEAP_AT or start % LINE or start > memory.size or taken > memory.size - start
                or PyDataType_ELSIZE(dtype) == 0):
            raise damaged("the place of an array", start)
        self.size += taken
        cdef char* data = memory.base + start
        if (self.copy or memory.n_leases >= BLOCKS // 2
                or memory.held + taken > <uint64_t>memory.max_bytes // 2):
            array = make_array(dtype, ndim, shape, NULL, fortran)
            copy(<char*>PyArray_DATA(<ndarray>array), data, size, False)
            lock(&memory.busy)
            memory.give_back(number)
            unlock(&memory.busy)
        else:
            array = make_array(dtype, ndim, shape, data, fortran)
            set_array_base(<ndarray>array, memory.lease(number, start, taken))
        return array
