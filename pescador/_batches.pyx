"""Batches: the values of many items, key by key, joined into arrays as they arrive.

The first item of a batch says what the batch will be: its keys and, for each, the type and the
shape of the values. Each later value is copied to its place and let go. What does not fit this
plan is kept, and NumPy joins it at the end. Either way the result is what ``np.array`` (or
``np.concatenate``) makes of the values.

docs/inside/batches.rst explains it.
"""

import os

import numpy as np

from pescador._stores import physical_memory
from pescador.exceptions import ArgumentError, DataError

cimport cython
cimport numpy as cnp
from cpython.complex cimport PyComplex_ImagAsDouble, PyComplex_RealAsDouble
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.list cimport PyList_GET_ITEM
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport Py_TYPE, PyObject, PyTypeObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy, memmove

from pescador._core cimport Compiled, fuse
from pescador._maps cimport StreamMap, not_a_mapping, raised_stop_iteration, type_name
from pescador._native.arrays cimport array_at, new_array, pescador_resize
from pescador._native.bounds cimport AT
from pescador._native.copy cimport pescador_copy
from pescador._native.dicts cimport next_value, same_key
from pescador._native.iterators cimport next_item, steal
from pescador._native.memory cimport resized
from pescador._native.threads cimport pescador_add, pescador_is_unshared
from pescador._rows cimport Placed
from pescador._sources cimport Field, Table, Visit, copy_item

cnp.import_array()

cdef unsigned int TRACEMALLOC_DOMAIN = np.lib.tracemalloc_domain


cdef enum Kind:
    # What the values of a key are, and how they get into their place.
    HELD                               # anything: kept, and joined by NumPy
    ARRAYS
    FLOATS                             # Python's numbers
    INTS
    BOOLS
    COMPLEXES
    SCALARS                            # NumPy's numbers and times

cdef enum:
    MAX_NDIM = 62                      # of an item: its batch has one dimension more
    MAX_EARLIER = 4                    # arrays of earlier batches that are remembered, per key
    # Below this many bytes, memory that was just freed is as good as memory of our own.
    LARGE = 1 << 20
    # What a first batch starts with: `buffer_size` may be a way to say "all".
    FIRST = 1 << 20
    # A batch of this size is not in the cache any more when it is complete.
    PAST_CACHE = 1 << 24
    # From here on, a copy takes longer than another thread takes to start.
    WITHOUT_GIL = 1 << 18
    # Sources in C look for no signals. Items may be large, so this is not seldom.
    SIGNALS_EVERY = 64

cdef PyTypeObject* NDARRAY = <PyTypeObject*>np.ndarray
cdef PyTypeObject* DICT = <PyTypeObject*>dict
cdef PyTypeObject* VISIT = <PyTypeObject*>Visit
cdef type np_ndarray = np.ndarray
cdef object MEMMAP = np.memmap
cdef object VOID = np.void
cdef dict NUMBERS = {float: FLOATS, int: INTS, bool: BOOLS, complex: COMPLEXES}
# NumPy's scalars that are a header, as that of any object, and the value.
cdef frozenset SIMPLE_SCALARS = frozenset(
    kind for kind in np.sctypeDict.values() if np.dtype(kind).kind in "biufcMm")


@cython.final
@cython.no_gc
cdef class Memory:
    """What the array of a batch stands on, so that any view of it keeps this alive."""

    cdef cnp.ndarray array

    def __cinit__(self, cnp.ndarray array):
        self.array = array


cdef bint is_free(PyObject* memory):
    """Whether nobody holds the memory but the list that it is in."""
    return (pescador_is_unshared(memory)
            and pescador_is_unshared(<PyObject*>(<Memory>memory).array))


cdef int64_t n_stamps = 0              # given so far, to all batches of this process


cdef class Rows:
    """An array that grows along one axis, and the memory of earlier ones."""

    cdef object allocator              # (shape, dtype) -> ndarray, or None
    cdef bint reuses
    cdef list earlier                  # of Memory that batches stood on
    cdef cnp.ndarray array             # room for `capacity` rows
    cdef Memory memory                 # that of `array`, where it may serve again
    cdef cnp.dtype dtype
    cdef int ndim, axis
    cdef cnp.npy_intp[64] shape        # of `array`
    cdef char* data
    cdef Py_ssize_t count, capacity    # rows along `axis`
    cdef Py_ssize_t row_bytes          # in one block; there is one for each index before `axis`
    cdef Py_ssize_t blocks
    cdef Py_ssize_t whole              # rows that there will be, as far as one can tell
    cdef bint past_cache

    cdef int start(self, Py_ssize_t capacity) except -1:
        """Begin with room for `capacity` rows."""
        self.count = 0
        self.memory = None
        self.shape[self.axis] = capacity
        if self.allocator is not None or (
                self.reuses and capacity * self.blocks * self.row_bytes >= LARGE):
            self.memory = self.take_earlier(capacity)
            if self.memory is None:
                self.memory = Memory(self.allocate())
            return self.use(self.memory.array)
        return self.use(self.allocate())

    cdef int use(self, cnp.ndarray array) except -1:
        """Have rows go into this array."""
        self.array = array
        self.data = cnp.PyArray_BYTES(array)
        self.capacity = cnp.PyArray_DIM(array, self.axis)
        self.past_cache = self.capacity * self.blocks * self.row_bytes >= PAST_CACHE
        return 0

    cdef cnp.ndarray allocate(self):
        """A new array of `shape`."""
        if self.allocator is None:
            return new_array(self.ndim, self.shape, self.dtype)
        shape = self.shape_of()
        array = self.allocator(shape, self.dtype)
        # What a subclass says of itself may differ from what it is.
        plain = np.asarray(array) if isinstance(array, np.ndarray) else None
        if plain is None:
            problem = f"an object of type {type_name(array)}"
        elif plain.shape != shape or plain.dtype != self.dtype:
            problem = f"an array of shape {plain.shape} and dtype {plain.dtype}"
        elif not (plain.flags.c_contiguous and plain.flags.aligned and plain.flags.writeable):
            problem = "one that is read-only, or not aligned, or not contiguous in C order"
        else:
            return array
        raise ArgumentError(
            f"allocator={self.allocator!r} was asked for an array of shape {shape} and dtype "
            f"{self.dtype}, and returned {problem}; it must return a writeable, C-contiguous "
            "ndarray of that shape and dtype")

    cdef tuple shape_of(self):
        return tuple([self.shape[j] for j in range(self.ndim)])

    cdef Memory take_earlier(self, Py_ssize_t capacity):
        """Memory for at least `capacity` rows in which nobody can see a batch any more."""
        cdef list in_use = []
        cdef Memory found = None
        cdef Py_ssize_t i
        for i in range(len(self.earlier)):
            if not is_free(PyList_GET_ITEM(self.earlier, i)):
                in_use.append(self.earlier[i])
            elif found is None and self.fits(self.earlier[i], capacity):
                found = self.earlier[i]
        # What is free and was not taken was for other batches than those that come now.
        self.earlier = in_use
        return found

    cdef bint fits(self, Memory memory, Py_ssize_t capacity):
        cdef cnp.ndarray array = memory.array
        cdef int j
        if cnp.PyArray_NDIM(array) != self.ndim or array.dtype != self.dtype:
            return False
        for j in range(self.ndim):
            if j != self.axis and cnp.PyArray_DIM(array, j) != self.shape[j]:
                return False
        cdef Py_ssize_t n = cnp.PyArray_DIM(array, self.axis)
        return capacity <= n and n - capacity <= capacity

    cdef object part(self, Py_ssize_t start, Py_ssize_t stop):
        """A view of some rows."""
        return self.plain()[(slice(None),) * self.axis + (slice(start, stop),)]

    cdef cnp.ndarray plain(self):
        """The array, or a view of it where an allocator has given one of a subclass."""
        return np.asarray(self.array)

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Make room for n more rows, and for some that are still to come."""
        cdef Py_ssize_t more = self.capacity
        if n > PY_SSIZE_T_MAX - self.count:
            raise DataError(f"a batch of more than {PY_SSIZE_T_MAX} rows cannot be joined")
        more += min(more // 2, PY_SSIZE_T_MAX - more)
        if self.capacity < self.whole:
            more = min(more, self.whole)
        return self.resize(max(self.count + n, more))

    cdef int resize(self, Py_ssize_t capacity) except -1:
        """Change the room for rows, in place if it is our own."""
        cdef Py_ssize_t before = self.capacity
        self.shape[self.axis] = capacity
        if self.allocator is not None:
            rows = self.part(0, self.count)
            self.memory = Memory(self.allocate())
            self.use(self.memory.array)
            cnp.PyArray_CopyInto(self.part(0, self.count), rows)
            return 0
        if capacity < before:
            self.move_blocks(before, capacity)
        pescador_resize(self.array, self.axis, capacity, TRACEMALLOC_DOMAIN)
        self.use(self.array)
        if capacity > before:
            self.move_blocks(before, capacity)
        return 0

    cdef void move_blocks(self, Py_ssize_t before, Py_ssize_t after) noexcept nogil:
        """Move the rows of each block to where it starts with another capacity."""
        cdef Py_ssize_t i, block
        if self.count * self.row_bytes == 0:
            # There may be more blocks than anybody can count.
            return
        for i in range(1, self.blocks):
            # Those that move up make way for each other from the last on.
            block = i if after < before else self.blocks - i
            memmove(self.data + block * after * self.row_bytes,
                    self.data + block * before * self.row_bytes, self.count * self.row_bytes)

    cdef cnp.ndarray finish(self):
        """Hand out the rows that there are, as an array of their own."""
        if self.count < self.capacity:
            if self.memory is None or (self.allocator is None
                                       and self.count < self.capacity - self.capacity // 4):
                self.resize(self.count)
            else:
                self.move_blocks(self.capacity, self.count)
        cdef Memory memory = self.memory
        cdef cnp.ndarray array = self.array
        self.shape[self.axis] = self.count
        self.array = None
        self.memory = None
        if memory is None:
            return array
        cdef cnp.ndarray result = array_at(
            cnp.PyArray_DATA(array), self.ndim, self.shape, NULL, self.dtype, cnp.NPY_ARRAY_CARRAY)
        cnp.set_array_base(result, memory)
        if self.reuses:
            self.earlier.append(memory)
            if len(self.earlier) > MAX_EARLIER:
                del self.earlier[0]
        return result


@cython.final
cdef class Column(Rows):
    """The values of one key in a batch."""

    cdef object key
    cdef object along                  # the axis to join along, or None to stack
    cdef bint joins
    cdef Py_ssize_t size               # items in a batch

    # The plan, which holds from one batch to the next as long as it fits.
    cdef Kind kind
    cdef object type                   # of the values; None before there is a plan
    cdef cnp.dtype given               # that of the arrays that arrive
    cdef cnp.dtype alone               # that of a batch of one item
    cdef bint direct                   # rows are the bytes of the values
    cdef int value_ndim
    cdef cnp.npy_intp[64] value_shape
    cdef Py_ssize_t offset             # of the number in a NumPy scalar
    cdef bint is_time
    cdef cnp.PyArray_DatetimeMetaData unit
    cdef Py_ssize_t most               # rows that a batch has had

    cdef int64_t changes               # how often the plan was made anew, or given up
    cdef int64_t laid                  # likewise, when rows were asked for

    # The batch that is being made.
    cdef bint begun
    cdef PyTypeObject* expected        # the type of values that the quick way is for
    cdef list held                     # the values, where NumPy is to join them
    cdef Py_ssize_t n                  # values so far
    cdef Py_ssize_t* ends              # of each value that is joined to others: where its rows end
    cdef Py_ssize_t ends_room

    def __cinit__(self, key, Py_ssize_t size, along, bint reuses, allocator):
        self.key = key
        self.size = size
        self.along = along
        self.joins = along is not None
        self.reuses = reuses
        self.allocator = allocator
        self.earlier = []

    def __dealloc__(self):
        PyMem_Free(self.ends)

    # ---- the plan

    cdef bint is_planned_for(self, object value) except? True:
        """Whether the plan of the batch before is what this value would give."""
        if type(value) is not self.type:
            return False
        if self.given is not None:
            return (cnp.PyArray_Check(value) and self.has_dtype(value)
                    and self.has_shape(
                        cnp.PyArray_NDIM(<cnp.ndarray>value), cnp.PyArray_DIMS(<cnp.ndarray>value)))
        return self.kind != SCALARS or self.has_unit(value)

    cdef inline bint has_dtype(self, object array) noexcept:
        """Whether an array has the very dtype that is planned."""
        # `array.dtype` would look the attribute up.
        return <PyObject*>cnp.PyArray_DESCR(<cnp.ndarray>array) == <PyObject*>self.given

    cdef bint has_shape(self, int ndim, const cnp.npy_intp* shape) noexcept:
        """Whether a value has the planned shape, but for the axis of a join."""
        cdef int j
        if ndim != self.value_ndim:
            return False
        for j in range(ndim):
            if shape[j] != self.value_shape[j] and not (self.joins and j == self.axis):
                return False
        return True

    cdef bint has_unit(self, object value) noexcept:
        """Whether a scalar of the planned type counts in the planned unit, if it is a time."""
        return not self.is_time or memcmp(
            &(<cnp.PyDatetimeScalarObject*>value).obmeta, &self.unit, sizeof(self.unit)) == 0

    cdef int plan(self, object value) except -1:
        """Decide from the first value of a batch what the batch will be."""
        self.changes += 1
        self.type = type(value)
        self.kind = HELD
        self.given = self.dtype = self.alone = None
        self.most = 0
        if self.type is np.ndarray or self.type is MEMMAP:
            self.plan_arrays(value)
        elif self.joins:
            pass
        elif self.type is VOID:
            self.plan_arrays(np.asarray(value))
        elif self.type in SIMPLE_SCALARS:
            self.plan_numbers(SCALARS, value)
        elif self.type in NUMBERS:
            # Not the value: of a large int, NumPy makes another dtype.
            self.plan_numbers(NUMBERS[self.type], self.type())
        return 0

    cdef int plan_arrays(self, cnp.ndarray value) except -1:
        cdef int j
        self.given = value.dtype
        self.value_ndim = cnp.PyArray_NDIM(value)
        self.axis = 0
        if self.value_ndim > MAX_NDIM or self.given.hasobject or self.given.itemsize == 0:
            return 0
        for j in range(self.value_ndim):
            self.value_shape[j] = cnp.PyArray_DIM(value, j)
        if self.joins:
            axis = self.along if self.along >= 0 else self.along + self.value_ndim
            if not 0 <= axis < self.value_ndim:
                return 0
            self.axis = axis
        self.dtype = self.alone = self.given
        self.direct = self.axis == 0
        if not is_common(self.given):
            # NumPy settles the dtype of what it joins, and makes exceptions for a single array.
            empty = np.empty(0, self.given)
            join = np.concatenate if self.joins else np.array
            self.dtype, self.alone = join([empty, empty]).dtype, join([empty]).dtype
            if self.size == 1:
                self.dtype = self.alone
            if not cnp.PyArray_EquivTypes(self.dtype, self.given):
                self.direct = False
                if not cnp.PyArray_EquivTypes(self.dtype, self.given.newbyteorder("=")):
                    return 0
        self.kind = ARRAYS
        self.ndim = self.value_ndim + (not self.joins)
        self.row_bytes = self.dtype.itemsize
        self.blocks = 1
        for j in range(self.value_ndim):
            self.shape[j + (not self.joins)] = self.value_shape[j]
            if j < self.axis:
                self.blocks *= self.value_shape[j]
            elif j > self.axis or not self.joins:
                self.row_bytes *= self.value_shape[j]
        return 0

    cdef int plan_numbers(self, Kind kind, object value) except -1:
        cdef cnp.dtype dtype = np.array([value, value]).dtype
        cdef Py_ssize_t alignment = dtype.alignment
        if kind == SCALARS:
            if dtype != value.dtype:
                return 0
            # As numpy/arrayscalars.h lays it out.
            self.offset = (sizeof(PyObject) + alignment - 1) // alignment * alignment
            self.is_time = dtype.kind in "Mm"
            if self.is_time:
                self.unit = (<cnp.PyDatetimeScalarObject*>value).obmeta
        elif kind == INTS and dtype.itemsize != sizeof(int64_t):
            return 0
        self.kind = kind
        self.dtype = self.alone = dtype
        self.axis = 0
        self.ndim = self.blocks = 1
        self.row_bytes = dtype.itemsize
        return 0

    cdef Py_ssize_t first_capacity(self):
        cdef Py_ssize_t few, each = 1
        self.whole = self.size
        if self.joins:
            each = self.value_shape[self.axis]
            if self.size > PY_SSIZE_T_MAX // max(each, 1):
                self.whole = PY_SSIZE_T_MAX
            else:
                self.whole *= each
            if self.most:
                return self.most
        if self.allocator is not None or self.most >= self.whole:
            return self.whole
        few = FIRST // max(self.blocks * self.row_bytes, 1)
        return min(self.whole, max(self.most, each, few))

    # ---- a batch

    cdef void clear(self) noexcept:
        """Forget the batch before; the next value begins another."""
        self.n = 0
        self.begun = False
        self.expected = NULL
        self.held = None

    cdef int begin(self, object value) except -1:
        """Start a batch with its first value."""
        if not self.is_planned_for(value):
            self.plan(value)
        self.begin_as_before()
        return self.add(value)

    cdef tuple row_shape(self):
        if self.kind != ARRAYS:
            return ()
        return tuple([self.value_shape[j] for j in range(self.value_ndim)])

    cdef bint begins_with(self, cnp.ndarray array) noexcept:
        """Whether an item of a source that this takes would give the plan that there is."""
        return self.type is np_ndarray and self.has_dtype(array)

    cdef int begin_as_before(self) except -1:
        """Start a batch with the plan that there is."""
        self.clear()
        self.begun = True
        if self.kind == HELD:
            self.held = []
            return 0
        self.start(self.first_capacity())
        if self.kind != ARRAYS:
            self.expected = <PyTypeObject*>self.type
        elif self.direct and self.type is not VOID:
            self.expected = NDARRAY
        return 0

    cdef inline bint is_as_planned(self, object value) noexcept:
        """Whether an array has the planned layout, so that its rows are its bytes."""
        cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(<cnp.ndarray>value)
        cdef int j
        if (not self.has_dtype(value)
                or cnp.PyArray_NDIM(<cnp.ndarray>value) != self.value_ndim
                or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>value)):
            return False
        for j in range(self.joins, self.value_ndim):
            if shape[j] != self.value_shape[j]:
                return False
        return True

    cdef inline bint put(self, PyObject* value, char* row) noexcept:
        """Copy a small value to a row, if it is just as planned."""
        cdef const char* source
        if Py_TYPE(<object>value) != self.expected:
            return False
        if self.kind != ARRAYS:
            return self.put_number(<object>value, row)
        if not self.is_as_planned(<object>value):
            return False
        source = cnp.PyArray_BYTES(<cnp.ndarray>value)
        if source != row:
            pescador_copy(row, source, self.row_bytes, False)
        return True

    cdef inline bint put_number(self, object value, char* row) noexcept:
        """Likewise of a value of the expected type."""
        cdef int overflow = 0
        if self.kind == INTS:
            (<int64_t*>row)[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
            return not overflow
        if self.kind == FLOATS:
            (<double*>row)[0] = PyFloat_AS_DOUBLE(value)
        elif self.kind == SCALARS:
            if not self.has_unit(value):
                return False
            memcpy(row, <char*><PyObject*>value + self.offset, self.row_bytes)
        elif self.kind == BOOLS:
            row[0] = value is True
        else:
            (<double*>row)[0] = PyComplex_RealAsDouble(value)
            (<double*>row)[1] = PyComplex_ImagAsDouble(value)
        return True

    cdef int add(self, object value) except -1:
        """Copy a value to its place."""
        cdef Py_ssize_t rows = 1
        if Py_TYPE(value) != self.expected or (
                self.kind == ARRAYS and not self.is_as_planned(value)):
            return self.add_other(value)
        if self.joins:
            rows = cnp.PyArray_DIM(<cnp.ndarray>value, 0)
        if rows > self.capacity - self.count:
            return self.add_after_reserve(value, rows)
        if self.joins:
            self.note_end(self.count + rows)
        if self.kind == ARRAYS:
            copy(self.data + self.count * self.row_bytes, <cnp.ndarray>value,
                 rows * self.row_bytes, self.past_cache)
        elif not self.put_number(
                value, self.data + AT(self.count, self.capacity) * self.row_bytes):
            return self.add_other(value)
        self.count += rows
        self.n += 1
        return 0

    cdef int add_after_reserve(self, object value, Py_ssize_t rows) except -1:
        """Make room for the rows of a value, and begin again with it.

        An allocator may do anything: take the value out of its item, or change its shape.
        """
        held = value
        self.reserve(rows)
        return self.add(held)

    cdef bint takes(self, const Field* field, cnp.ndarray array) except -1:
        """Whether the items of a source can be copied to their place without more ado."""
        return (self.expected == NDARRAY and field.direct
                and self.has_shape(field.ndim, field.shape)
                and cnp.PyArray_EquivTypes(array.dtype, self.given))

    cdef int add_from(self, Visit visit, Py_ssize_t i) except -1:
        """Copy an item that this takes from where it lies to its place."""
        cdef Py_ssize_t rows = 1
        if self.joins:
            rows = visit.table.fields[AT(i, visit.table.n_fields)].shape[0]
        if rows > self.capacity - self.count:
            self.reserve(rows)
        if self.joins:
            self.note_end(self.count + rows)
        copy_item(visit, i, self.data + self.count * self.row_bytes, self.past_cache)
        self.count += rows
        self.n += 1
        return 0

    cdef int note_end(self, Py_ssize_t end) except -1:
        cdef Py_ssize_t room
        cdef Py_ssize_t* ends
        if self.n == self.ends_room:
            # Not by `extended`: the compiler inlines this then no more.
            room = 2 * self.n + 64
            ends = <Py_ssize_t*>PyMem_Realloc(self.ends, room * sizeof(Py_ssize_t))
            if ends is NULL:
                raise MemoryError()
            self.ends = ends
            self.ends_room = room
        self.ends[AT(self.n, self.ends_room)] = end
        return 0

    cdef int add_other(self, object value) except -1:
        """Add a value that is not just as planned, or the first."""
        # An allocator may take the value out of its item.
        held = value
        if not self.begun:
            return self.begin(held)
        if self.held is None and not self.place(held):
            self.hand_over()
        if self.held is not None:
            self.held.append(kept(held))
            self.n += 1
        return 0

    cdef bint place(self, object value) except? True:
        """Copy an array of any layout to its place, if it is one of the planned shape and dtype."""
        if self.kind != ARRAYS:
            return False
        if type(value) is VOID and self.type is VOID:
            value = np.asarray(value)
        elif self.type is VOID or not (type(value) is np.ndarray or type(value) is MEMMAP):
            return False
        cdef cnp.ndarray array = value
        if not (self.has_shape(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array))
                and cnp.PyArray_EquivTypes(array.dtype, self.given)):
            return False
        cdef Py_ssize_t rows = cnp.PyArray_DIM(array, self.axis) if self.joins else 1
        if rows > self.capacity - self.count:
            self.reserve(rows)
        if self.joins:
            self.note_end(self.count + rows)
            cnp.PyArray_CopyInto(self.part(self.count, self.count + rows), array)
        else:
            cnp.PyArray_CopyInto(self.plain()[self.count, ...], array)
        self.count += rows
        self.n += 1
        return True

    cdef int hand_over(self) except -1:
        """Give up the plan: the values so far are to be joined by NumPy, with those that follow."""
        self.held = self.values()
        self.changes += 1
        self.expected = NULL
        self.array = None
        self.memory = None
        return 0

    cdef list values(self):
        """The values so far, one by one; arrays are views of the batch."""
        if self.held is not None:
            return self.held
        if self.allocator is None:
            self.resize(self.count)
        rows = self.part(0, self.count)
        if self.kind == ARRAYS and not cnp.PyArray_EquivTypes(self.dtype, self.given):
            rows = rows.astype(self.given)
        if self.kind == SCALARS or self.type is VOID:
            return list(rows)
        if self.kind != ARRAYS:
            return rows.tolist()
        if self.joins:
            ends = [self.ends[AT(i, self.ends_room)] for i in range(self.n)]
            # What is behind the last end is empty.
            return np.split(rows, ends, self.axis)[:self.n]
        return [rows[i, ...] for i in range(self.n)]

    cdef object end(self):
        """Return the array of the batch."""
        self.most = max(self.most, self.count)
        return self.finish()

    cdef object join(self, Py_ssize_t first):
        """Return the array of a batch that NumPy makes of the values that are held, else None.

        Its first item is item `first` of the stream.
        """
        if self.held is None and self.n == 1 and self.alone is not self.dtype:
            self.hand_over()
        if self.held is None:
            return None
        try:
            if self.joins:
                result = np.concatenate(self.held, axis=self.along)
            else:
                result = np.array(self.held)
        except TypeError as error:
            raise DataError(
                f"key {self.key!r}: the values of items {first} to {first + self.n - 1} cannot be "
                f"joined: {error}") from error
        return self.as_allocated(result)

    cdef object as_allocated(self, object result):
        """Move what NumPy has made to where the allocator says."""
        cdef int j
        if self.allocator is None or type(result) is not np.ndarray or result.dtype.hasobject:
            return result
        self.type = None
        self.dtype = result.dtype
        self.ndim = result.ndim
        self.axis = 0
        self.blocks = 1
        self.row_bytes = 0
        for j in range(self.ndim):
            self.shape[j] = result.shape[j]
        self.start(self.shape[0])
        cnp.PyArray_CopyInto(self.part(0, len(result)), result)
        self.count = len(result)
        return self.finish()


cdef bint is_common(cnp.dtype dtype):
    """Whether this is NumPy's own number type, in the machine's byte order."""
    cdef int number = dtype.type_num
    return ((cnp.PyTypeNum_ISNUMBER(number) or cnp.PyTypeNum_ISBOOL(number))
            and dtype is cnp.PyArray_DescrFromType(number))


cdef object kept(object value):
    """What to keep of a value: the source may write into its arrays as soon as we go on."""
    if type(value) is np.ndarray or type(value) is MEMMAP:
        return np.array(value, order="K")
    return value.copy() if type(value) is VOID else value


cdef inline void copy(char* to, cnp.ndarray value, size_t n, bint past_cache) noexcept:
    cdef const char* source = cnp.PyArray_BYTES(value)
    if source == to:
        # It was written there.
        return
    if n < WITHOUT_GIL:
        pescador_copy(to, source, n, False)
        return
    # Another thread may take the value out of its item meanwhile.
    Py_INCREF(value)
    with nogil:
        pescador_copy(to, source, n, past_cache)
    Py_DECREF(value)


cdef struct Place:
    # Where the next row of a column goes.
    char* row
    PyObject* column


@cython.final
cdef class Batches(StreamMap):
    """The items of a source, `size` at a time, as one {key: array}.

    Parameters
    ----------
    source : iterable of mapping
        The first item of a batch says which keys there are.
    size : int > 0
        How many items make a batch.
    partial : bool
        Whether fewer may, at the end.
    axis : int or None
        None stacks along a new first axis, as ``np.array``; a number joins along it, as
        ``np.concatenate``.
    reuse : bool
        Whether a batch may stand on the memory of one that nobody holds any more.
    allocator : callable or None
        ``(shape, dtype) -> ndarray``, where arrays come from.
    """

    cdef Py_ssize_t size
    cdef bint partial, reuse
    cdef bint running                  # guards the columns against an allocator that asks for more
    cdef object axis, allocator
    cdef list columns
    cdef object began                  # the source whose item began the batch, if it was one
    cdef bint is_stale                 # items were added in the usual way since
    cdef int64_t changes               # of the columns and their plans, when `stamp` was given
    cdef int64_t stamp                 # what tables bear whose items all columns take
    cdef bint has_asked                # whether the source can write into batches
    cdef list laid                     # `columns`, when it was asked to
    cdef list unfinished               # items of a batch that an error has ended
    # While each column takes values as they lie, without a look at the batch:
    cdef Place* places                 # one for each column
    cdef Py_ssize_t n_places
    cdef Py_ssize_t room               # rows that all of them have room for; 0 at other times
    cdef bint has_visits               # it is rows of sources that come, not dicts
    cdef Py_ssize_t n_copied           # rows that the columns have not counted yet

    def __cinit__(self, source, Py_ssize_t size, bint partial=False, axis=None, *,
                  bint reuse=False, allocator=None):
        self.source = iter(source)
        fuse(self.source)
        self.size = size
        self.partial = partial
        self.axis = axis
        self.reuse = reuse
        self.allocator = allocator
        self.columns = []

    def __dealloc__(self):
        PyMem_Free(self.places)

    def __next__(self):
        if self.running:
            raise ValueError("buffer_stream already executing")
        self.running = True
        try:
            return self.batch()
        finally:
            self.running = False

    cdef dict batch(self):
        """The next batch, which may be shorter than others at the end."""
        cdef PyObject* pointer
        cdef Column column
        cdef Py_ssize_t i, n = 0, first = self.position
        cdef bint is_over, is_quick = self.axis is None
        self.room = 0
        item = None
        if self.columns and not self.has_asked:
            # Not at the end of the batch before: who is interrupted here would lose it.
            self.ask_for_rows()
        try:
            if self.unfinished is not None:
                n = self.add_unfinished()
            while n < self.size:
                pointer = NULL
                if self.room > 0:
                    is_over = self.copy_rows(self.size - n, &pointer)
                    n += self.count_copied()
                    self.position = first + n
                    if pointer is NULL and not is_over:
                        continue
                    is_quick = False
                else:
                    pointer = next_item(self.source)
                if pointer is NULL:
                    break
                item = steal(pointer)
                if type(item) is Visit:
                    if n > 0:
                        self.add_from(item)
                    else:
                        self.add_first(item)
                elif type(item) is not Placed:
                    self.add_item(item, n)
                    is_quick = is_quick and self.find_places(False)
                elif not self.take_placed(<Placed>item, n):
                    self.add_item((<Placed>item).item((<Placed>item).row), n)
                # Let go before the source goes on.
                item = None
                n += 1
                self.position = first + n
                if n % SIGNALS_EVERY == 0:
                    PyErr_CheckSignals()
        except BaseException as error:
            n += self.count_copied()
            self.position = first + n
            self.keep_unfinished(n, first, item)
            if isinstance(error, StopIteration):
                raise raised_stop_iteration(self.position) from error
            raise
        if n < self.size and (n == 0 or not self.partial):
            raise StopIteration
        cdef list joined = [None] * len(self.columns)
        cdef dict result = {}
        try:
            # NumPy may refuse to join these, before any of the others is handed out.
            for i in range(len(joined)):
                joined[i] = (<Column>PyList_GET_ITEM(self.columns, i)).join(first)
        except BaseException:
            self.keep_unfinished(n, first, None)
            raise
        for i in range(len(joined)):
            column = <Column>PyList_GET_ITEM(self.columns, i)
            values = joined[i]
            column.held = None
            result[column.key] = column.end() if values is None else values
        return result

    cdef int ask_for_rows(self) except -1:
        """Ask a source that runs elsewhere to write its items into the next batches."""
        cdef Column column
        self.has_asked = True
        if self.axis is not None or self.allocator is not None or not self.columns or not (
                hasattr(self.source, "lay_out")):
            return 0
        for column in self.columns:
            if column.kind == ARRAYS:
                if (not column.direct or column.type is not np_ndarray
                        or column.dtype is not column.given):
                    return 0
            elif column.kind == HELD or column.is_time or column.alone is not column.dtype:
                return 0
        allocators = self.source.lay_out(self.size, [
            ((<Column>column).key, (<Column>column).dtype, (<Column>column).row_shape(),
             (<Column>column).type)
            for column in self.columns])
        if allocators is not None:
            self.laid = self.columns
            for column, allocator in zip(self.columns, allocators):
                column.laid = column.changes
                column.allocator = allocator
                column.reuses = False
                column.earlier = []
        return 0

    cdef bint take_placed(self, Placed item, Py_ssize_t n) except -1:
        """Count an item that was written to its row, in a batch in which n came before it.

        False if it is not where it belongs.
        """
        cdef Py_ssize_t i
        cdef Column column
        if self.laid is not self.columns:
            return False
        for column in self.columns:
            if column.changes != column.laid:
                return False
        if n == 0:
            self.began = None
            self.is_stale = True
            for column in self.columns:
                column.begin_as_before()
        for i in range(len(self.columns)):
            column = <Column>PyList_GET_ITEM(self.columns, i)
            if column.held is not None or column.count != item.row or (
                    column.data != item.blocks[i].data):
                return False
        for i in range(len(self.columns)):
            column = <Column>PyList_GET_ITEM(self.columns, i)
            column.count += 1
            column.n += 1
        return True

    cdef int keep_unfinished(self, Py_ssize_t n, Py_ssize_t first, object item) except -1:
        """Keep the items of a batch that cannot be completed, for the state of an open stream."""
        cdef list values = []
        if not isinstance(self.source, Compiled):
            return 0
        if self.unfinished is not None:
            # It is one of them that failed.
            self.position = first
            return 0
        for column in self.columns if n else ():
            values.append((<Column>column).values())
        self.unfinished = [{(<Column>column).key: values[j][i]
                            for j, column in enumerate(self.columns)} for i in range(n)]
        if type(item) is Visit:
            item = (<Visit>item).item()
        elif type(item) is Placed:
            item = (<Placed>item).item((<Placed>item).row)
        if item is not None:
            self.unfinished.append(item)
        self.position = first
        return 0

    cdef Py_ssize_t add_unfinished(self) except -1:
        """Begin with the items of a batch that an error has ended; return how many."""
        cdef list items = self.unfinished
        for n, item in enumerate(items):
            self.add_item(item, n)
            self.position += 1
        self.unfinished = None
        return len(items)

    cpdef dict save(self, saver):
        return {
            "position": self.position,
            "unfinished": saver.plain(self.unfinished, "an item of an unfinished batch"),
            "stream": saver.save(self.source),
        }

    cpdef object restore(self, dict state, loader):
        self.position = state["position"]
        self.unfinished = loader.own(state["unfinished"]) or None
        if len(self.unfinished or ()) > self.size:
            raise ValueError(f"'unfinished' has {len(self.unfinished)} items, and a batch "
                             f"{self.size}")
        loader.restore(self.source, state["stream"])

    cdef int begin(self, object item) except -1:
        """Prepare for a batch, of which this is the first item."""
        if not self.has_keys(item):
            self.take_keys(item)
        cdef Py_ssize_t i
        for i in range(len(self.columns)):
            (<Column>PyList_GET_ITEM(self.columns, i)).clear()
        return 0

    cdef bint has_keys(self, object item):
        """Whether an item has the very keys of the batch before, in their order."""
        cdef PyObject* column
        cdef Py_ssize_t i, at = 0
        if type(item) is not dict or len(<dict>item) != len(self.columns):
            return False
        for i in range(len(self.columns)):
            column = PyList_GET_ITEM(self.columns, i)
            if next_value(<PyObject*>item, &at, <PyObject*>(<Column>column).key) is NULL:
                return False
        return True

    cdef int take_keys(self, object item) except -1:
        """Have a column for each key of an item."""
        cdef list columns = []
        cdef Column column
        try:
            keys = list(item.keys())
        except (TypeError, AttributeError) as error:
            raise not_a_mapping(item, self.position) from error
        for i, key in enumerate(keys):
            column = self.columns[i] if i < len(self.columns) else None
            if column is None or not same_key(column.key, key):
                column = Column(key, self.size, self.axis, self.reuse, self.allocator)
            columns.append(column)
        self.columns = columns
        self.changes = -1
        return 0

    cdef int add_item(self, object item, Py_ssize_t n) except -1:
        """Add an item, before which n were added, in the usual way."""
        self.is_stale = True
        if n == 0:
            self.began = None
            self.begin(item)
        return self.add(item)

    cdef int add(self, object item) except -1:
        """Add the values of an item to the batch."""
        cdef list columns = self.columns
        cdef Py_ssize_t n = len(columns), i = 0, at = 0
        cdef PyObject* column
        cdef PyObject* value
        # Items are mostly made in one place, with their keys in one order.
        if type(item) is dict:
            while i < n:
                column = PyList_GET_ITEM(columns, i)
                value = next_value(<PyObject*>item, &at, <PyObject*>(<Column>column).key)
                if value is NULL:
                    break
                (<Column>column).add(<object>value)
                i += 1
        while i < n:
            column = PyList_GET_ITEM(columns, i)
            (<Column>column).add(self.value_of(item, (<Column>column).key))
            i += 1
        return 0

    cdef int add_first(self, Visit visit) except -1:
        """Begin a batch with the item of a source."""
        cdef Py_ssize_t i
        self.began = visit.plan.source
        if self.begins_with(visit):
            for i in range(len(self.columns)):
                (<Column>PyList_GET_ITEM(self.columns, i)).begin_as_before()
            return self.add_from(visit)
        self.refuse_more_than_memory(visit)
        item = visit.item()
        self.is_stale = True
        self.begin(item)
        return self.add(item)

    cdef int refuse_more_than_memory(self, Visit visit) except -1:
        """Raise an error where no whole batch of rows like this one could be in memory."""
        cdef Py_ssize_t i
        each = 0
        if self.partial or self.allocator is not None:
            return 0
        for i in range(visit.table.n_fields):
            each += visit.table.fields[i].n_bytes
        if each * self.size > physical_memory():
            raise ArgumentError(
                f"a batch of {self.size:,} samples (batch_size of batches, buffer_size of "
                f"buffer_stream) takes {each * self.size:,} bytes, {each:,} for each, and this "
                f"machine has a memory of {physical_memory():,}: choose a smaller number, or "
                "partial=True, which ends with what there is")
        return 0

    cdef bint begins_with(self, Visit visit) except -1:
        """Whether a batch that a visit begins has the plan of the batch before."""
        cdef Table table = visit.table
        cdef Column column
        cdef Py_ssize_t i
        if len(self.columns) != table.n_fields:
            return False
        if self.is_stale:
            self.look_for_changes()
        if table.stamp != self.stamp and not self.takes(visit):
            return False
        for i in range(table.n_fields):
            column = <Column>PyList_GET_ITEM(self.columns, i)
            if not column.begins_with(<cnp.ndarray>PyList_GET_ITEM(table.arrays, i)):
                return False
        return True

    cdef int look_for_changes(self) except -1:
        """Have no visit take the quick way on the word of a plan that is no more."""
        cdef int64_t changes = 0
        cdef Py_ssize_t i
        for i in range(len(self.columns)):
            changes += (<Column>PyList_GET_ITEM(self.columns, i)).changes
        if changes != self.changes:
            self.changes = changes
            self.stamp = pescador_add(&n_stamps, 1)
        self.is_stale = False
        return 0

    cdef int add_from(self, Visit visit) except -1:
        """Add the item that a visit stands at."""
        cdef Py_ssize_t i
        if self.is_stale:
            self.look_for_changes()
        if visit.table.stamp != self.stamp and not self.takes(visit):
            self.refuse_misfit(visit)
            self.is_stale = True
            return self.add(visit.item())
        for i in range(len(self.columns)):
            (<Column>PyList_GET_ITEM(self.columns, i)).add_from(visit, i)
        if self.axis is None and visit.table.is_plain:
            self.find_places(True)
        return 0

    cdef bint find_places(self, bint has_visits) except -1:
        """Note where the next rows go, and for how many there is room without a look at columns.

        Return whether all columns take values as they lie.
        """
        cdef Py_ssize_t i, room = self.size, n = len(self.columns)
        cdef Column column
        if n != self.n_places:
            self.places = <Place*>resized(self.places, n, sizeof(Place))
            self.n_places = n
        self.room = 0
        for i in range(n):
            column = <Column>PyList_GET_ITEM(self.columns, i)
            if column.expected is NULL or column.row_bytes >= WITHOUT_GIL:
                return False
            self.places[i].column = <PyObject*>column
            self.places[i].row = column.data + column.count * column.row_bytes
            room = min(room, column.capacity - column.count)
        if self.is_stale:
            self.look_for_changes()
        self.room = room
        self.has_visits = has_visits
        return True

    cdef bint copy_rows(self, Py_ssize_t most, PyObject** other) except -1:
        """Copy rows for as long as items come that the columns take as they lie, and there is room.

        Return whether the source is over; `other` becomes an item that is not so, if one came.
        """
        source = self.source
        cdef Compiled compiled = source if isinstance(source, Compiled) else None
        cdef PyObject* item = NULL
        cdef Py_ssize_t stop
        cdef bint failed
        most = min(most, self.room)
        while self.n_copied < most:
            stop = min(most, self.n_copied + SIGNALS_EVERY)
            failed = True
            if compiled is not None:
                compiled.begin_steps()
            try:
                if self.has_visits:
                    item = self.copy_visits(<Compiled?>source, stop)
                else:
                    item = self.copy_items(source, compiled, stop)
                failed = False
            finally:
                if compiled is not None:
                    compiled.end_steps(failed)
            if self.n_copied < stop:
                other[0] = item
                return item is NULL
            PyErr_CheckSignals()
        return False

    cdef PyObject* copy_visits(self, Compiled source, Py_ssize_t stop) except? NULL:
        """Copy rows of visits; return what comes before `stop` that is no such row, or NULL."""
        cdef PyObject* item
        while self.n_copied < stop:
            item = source.step()
            if item is NULL or not self.has_place_for(item):
                return item
            self.copy_visit(<Visit>item)
            Py_DECREF(<object>item)
            self.n_copied += 1
        return NULL

    cdef inline bint has_place_for(self, PyObject* item) noexcept:
        """Whether an item is the row of a source that the columns take as it lies."""
        return (Py_TYPE(<object>item) is VISIT and (<Visit>item).table.stamp == self.stamp
                and (<Visit>item).table.is_plain)

    cdef inline void copy_visit(self, Visit visit) noexcept:
        """Copy the row that a visit stands at to where the next ones go. There must be room."""
        cdef const Field* field = visit.table.fields
        cdef Place* place = self.places
        cdef Place* end = place + self.n_places
        cdef Py_ssize_t row = visit.row
        while place != end:
            pescador_copy(place.row, field.base + row * field.step, field.run_bytes, False)
            place.row += field.run_bytes
            field += 1
            place += 1

    cdef PyObject* copy_items(self, object source, Compiled compiled,
                              Py_ssize_t stop) except? NULL:
        """Copy the values of dicts; return what comes before `stop` that is none, or NULL."""
        cdef PyObject* item
        cdef Py_ssize_t n = self.n_copied
        while n < stop:
            item = next_item(source) if compiled is None else compiled.step()
            if item is NULL or Py_TYPE(<object>item) != DICT or not self.copy_values(item, n):
                return item
            Py_DECREF(<object>item)
            n += 1
            self.n_copied = n
        return NULL

    cdef inline bint copy_values(self, PyObject* item, Py_ssize_t n) noexcept:
        """Copy the values of a dict to row n from now, if the columns take them as they lie.

        The keys must be in the order of the columns.
        """
        cdef const Place* place = self.places
        cdef const Place* end = place + self.n_places
        cdef Py_ssize_t at = 0
        cdef PyObject* value
        while place != end:
            value = next_value(item, &at, <PyObject*>(<Column>place.column).key)
            if value is NULL or not (<Column>place.column).put(
                    value, place.row + AT(n, self.room) * (<Column>place.column).row_bytes):
                return False
            place += 1
        return True

    cdef Py_ssize_t count_copied(self) except -1:
        """Have the columns count the rows that were copied past them; return how many."""
        cdef Py_ssize_t i, n = self.n_copied
        for i in range(len(self.columns) if n else 0):
            (<Column>PyList_GET_ITEM(self.columns, i)).count += n
            (<Column>PyList_GET_ITEM(self.columns, i)).n += n
        self.room = self.n_copied = 0
        return n

    cdef bint takes(self, Visit visit) except -1:
        """Whether the columns take the items of a visit, from now on."""
        cdef Table table = visit.table
        cdef Column column
        cdef Py_ssize_t i
        if len(self.columns) > table.n_fields:
            return False
        for i in range(len(self.columns)):
            column = self.columns[i]
            if not (same_key(column.key, table.keys[i])
                    and column.takes(&table.fields[i], table.arrays[i])):
                return False
        table.stamp = self.stamp
        return True

    cdef int refuse_misfit(self, Visit visit) except -1:
        """Raise an error that names the source whose items no batch can have with those before."""
        cdef Table table = visit.table
        cdef Column column
        cdef const Field* field
        for column in self.columns:
            if column.key not in table.keys:
                problem = f"has no key {column.key!r}, as the first item of the batch has"
                remedy = "keys= chooses those that all sources have"
            else:
                field = &table.fields[AT(table.keys.index(column.key), table.n_fields)]
                if not column.begun or column.kind != ARRAYS or (
                        column.has_shape(field.ndim, field.shape)):
                    continue
                here = tuple([field.shape[j] for j in range(field.ndim)])
                problem = (f"has items of shape {here} of key {column.key!r}, the batch of "
                           f"{column.row_shape()}")
                if column.joins:
                    problem += f", which differ along another axis than {column.along}"
                remedy = "keys= leaves a key out"
            began = "" if self.began is None else f" (begun by {self.began!r})"
            if isinstance(visit.plan.data, (str, os.PathLike)):
                remedy += ", and `python -m pescador describe` lists the files that differ"
            raise DataError(f"{visit.plan.source!r} {problem}{began}; {remedy}")
        return 0

    cdef object value_of(self, object item, object key):
        try:
            return item[key]
        except (TypeError, IndexError) as error:
            raise not_a_mapping(item, self.position) from error
