"""Visits to sources: row numbers are drawn, and rows are found where they lie.

A `Plan` is a source's options, made ready once. A `Table` is opened data: for each key, where the
items are and how they lie. A `Visit` is one activation. It gives items ``{key: array}``, or itself,
to those who copy its rows from where they are (see Compiled in _core). Arguments were checked in
rows.py and windows.py.

docs/inside/sources.rst explains it.
"""

import weakref

import numpy as np

from pescador._isolation import isolate
from pescador.exceptions import DataError

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Size
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint64_t

from pescador._core cimport path_of_visit
from pescador._global_rng cimport set_bits
from pescador._native.arrays cimport array_at, new_array
from pescador._native.bounds cimport AT
from pescador._native.seeds cimport (
    Pcg, Seed, bits_below, bits_masked, pcg_below, pcg_start, seed_key,
)
from pescador._native.threads cimport pescador_threaded
from pescador._seeds cimport take_entropy
from pescador._stores cimport Stamp
from pescador._visits cimport Run, seed_of_visit

cnp.import_array()

cdef type ndarray = np.ndarray
cdef type RandomState = np.random.RandomState
cdef dict ORDERS = {"random": RANDOM, "shuffled": SHUFFLED, "sequential": SEQUENTIAL}

cdef enum:
    # What is read at once from a store that reads in blocks, without a bound of its own: rows,
    BLOCK_BYTES = 1 << 22
    BLOCK_ROWS = 1 << 12
    # and windows, each of which may lie in chunks that no other one needs.
    SLICES_BYTES = 1 << 20
    SLICES = 1 << 6
    # So much of the next row is fetched into the cache.
    FETCHED = 256


# ------------------------------------------------------------------------------ permutations


cdef inline uint64_t scrambled(uint64_t x) noexcept nogil:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    return x ^ (x >> 31)


cdef void permute(Permutation* order, uint64_t n, uint64_t key) noexcept nogil:
    """Choose one of the permutations of the numbers below n."""
    cdef int i
    order.n = n
    order.n_rounds = MANY_ROUNDS if n < FEW else ROUNDS
    # The least even a whose square is at least n; the root may be rounded. With an odd one, all
    # permutations would be even.
    order.a = <uint64_t>sqrt(<double>n) + 2
    while order.a > 1 and (order.a - 1) * (order.a - 1) >= n:
        order.a -= 1
    order.a += order.a & 1
    order.b = (n + order.a - 1) // order.a
    for i in range(order.n_rounds):
        key += <uint64_t>0x9e3779b97f4a7c15
        order.keys[i] = scrambled(key)


cdef inline uint64_t permuted(const Permutation* order, uint64_t i) noexcept nogil:
    """Where a permutation takes number i, which is below n.

    Each round adds to one half of the pair (i // b, i % b) a random function of the other: that can
    be undone, so it is a permutation of the numbers below a * b. Those from n on are walked past.
    """
    cdef uint64_t left, right
    cdef int j
    while True:
        left = i // order.b
        right = i - left * order.b
        for j in range(0, order.n_rounds, 2):
            left += ((scrambled(order.keys[j] + right) >> 32) * order.a) >> 32
            if left >= order.a:
                left -= order.a
            right += ((scrambled(order.keys[j + 1] + left) >> 32) * order.b) >> 32
            if right >= order.b:
                right -= order.b
        i = left * order.b + right
        if i < order.n:
            return i


def permutation_of(n, key):
    """Return where the permutation of a key takes each number below n, for tests."""
    cdef Permutation order
    permute(&order, n, key)
    return [permuted(&order, i) for i in range(n)]


# ------------------------------------------------------------------------------------ tables


cdef class Table:
    """Opened data: where the items of each key lie.

    Parameters
    ----------
    store : Store
        Closed at the end.
    cuts : list of (key, array, axis, jump, length, copies)
        What is cut from the array of a key: its items along `axis`, from one start to the next
        `jump` further. An item has `length` of them; -1 stands for one, without the axis. A
        `jump` of 0 with a length gives the whole array each time.
    n : int
        How many items there are.
    starts : ndarray of int64 or None
        The numbers of those that may be drawn.
    """

    def __cinit__(self, store, list cuts, int64_t n, starts):
        cdef Field* field
        cdef cnp.npy_intp* dims
        cdef Py_ssize_t i, j, most = 1, n_dims = 0
        cdef bint at_once = True
        for cut in cuts:
            n_dims += len(cut[1].shape)
        self.store = store
        self.keys = []
        self.arrays = []
        self.readers = []
        self.n = n
        if starts is not None:
            self.chosen = starts
            self.starts = <int64_t*>cnp.PyArray_DATA(starts) if len(starts) else NULL
            self.n = len(starts)
        self.n_fields = len(cuts)
        # Zeros: what is read has no layout before its first block.
        self.fields = <Field*>PyMem_Calloc(
            1, max(self.n_fields, 1) * sizeof(Field) + 2 * n_dims * sizeof(cnp.npy_intp))
        if self.fields is NULL:
            raise MemoryError()
        dims = <cnp.npy_intp*>(self.fields + self.n_fields)
        for i in range(self.n_fields):
            key, array, axis, jump, length, copies = cuts[i]
            self.keys.append(key)
            self.arrays.append(array)
            self.readers.append(array)
            field = &self.fields[i]
            field.axis = axis
            field.jump = jump
            field.length = length
            field.is_read = type(array) is not ndarray
            field.copies = copies
            field.shape = dims
            field.strides = dims + len(array.shape)
            dims += 2 * len(array.shape)
            if not field.is_read:
                self.lay_out(field, array)
                continue
            self.reads = True
            self.slices = self.slices or length >= 0
            at_once = at_once and (length < 0 or hasattr(array, "read_slices"))
            field.n_bytes = array.dtype.itemsize
            for j in range(len(array.shape)):
                if j != axis:
                    field.n_bytes *= <Py_ssize_t>array.shape[j]
            most = max(most, field.n_bytes * max(length, 1))
        self.block = min(BLOCK_ROWS, max(1, BLOCK_BYTES // most))
        if self.slices:
            self.block = min(SLICES, max(1, SLICES_BYTES // most)) if at_once else 1
        self.is_plain = not self.reads
        for i in range(self.n_fields):
            self.is_plain = self.is_plain and self.fields[i].is_plain

    cdef object checked(self, object numbers, str field):
        """A copy of the numbers of items in a state, all of which there are."""
        result = np.array(numbers)
        if result.dtype != np.int64 or result.ndim != 1 or not (
                np.isin(result, self.chosen) if self.starts is not NULL
                else (result >= 0) & (result < self.n)).all():
            raise ValueError(f"{field!r} is {numbers!r:.200} and must be numbers of its {self.n} "
                             "items")
        return result

    def __dealloc__(self):
        PyMem_Free(self.fields)

    def __del__(self):
        if self.store is not None:
            self.store.close()

    cdef int lay_out(self, Field* field, cnp.ndarray array) except -1:
        """Note how the items of an array lie."""
        self.stamp = 0
        cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(array)
        cdef cnp.npy_intp* strides = cnp.PyArray_STRIDES(array)
        cdef int ndim = cnp.PyArray_NDIM(array), j, k = 0
        cdef Py_ssize_t run = cnp.PyArray_ITEMSIZE(array), runs = 1, run_step = 0
        # Those of a block lie one behind the other along its first axis.
        cdef Py_ssize_t axis = 0 if field.is_read else field.axis
        cdef bint is_row = field.is_read or field.length < 0
        cdef bint is_cut = not is_row and field.jump > 0
        field.base = cnp.PyArray_BYTES(array)
        field.array_ndim = ndim
        field.size = shape[axis] if ndim else 0
        field.step = 0
        if is_row or is_cut:
            field.step = (1 if is_row else field.jump) * strides[AT(axis, ndim)]
        for j in range(ndim):
            if is_row and j == axis:
                continue
            field.shape[k] = shape[j]
            field.strides[k] = strides[j]
            if is_cut and j == axis:
                field.shape[k] = field.length
            k += 1
        field.ndim = k
        # As few runs as there can be: what is next to each other is one.
        field.n_bytes = run
        field.direct = True
        for j in range(k - 1, -1, -1):
            field.n_bytes *= field.shape[j]
            if field.shape[j] == 1:
                continue
            if runs == 1 and field.strides[j] == run:
                run *= field.shape[j]
            elif runs == 1 or field.strides[j] == runs * run_step:
                if runs == 1:
                    run_step = field.strides[j]
                runs *= field.shape[j]
            else:
                field.direct = False
        field.runs = runs
        field.run_bytes = run
        field.run_step = run_step
        field.fetched = run if 8 < runs and 64 <= run < 2048 else 0
        if run < 16 and runs > 1:
            # Element by element, NumPy is faster.
            field.direct = False
        field.is_plain = runs == 1 and run < WITHOUT_GIL and not field.is_read
        return 0


cdef class Plan:
    """What a source starts its visits from.

    Parameters
    ----------
    source : Source
        Opens the data (``_open_table``).
    rng : SeedSequence, RandomState, Generator or the module np.random
        A sequence seeds each visit by its path.
    """

    def __cinit__(self, source, rng):
        self.source = source
        self.data = source.data
        self.order = ORDERS[source.order]
        self.is_seeded = isinstance(rng, np.random.SeedSequence)
        if self.is_seeded:
            take_entropy(&self.seed, rng)
            # The key (0, 0, *path).
            seed_key(&self.seed, 0)
            seed_key(&self.seed, 0)
        else:
            self.rng = rng

    def start(self, Scope scope):
        """Return one visit, inside the activation of `scope` if any."""
        return self.visit(scope)

    cdef Compiled open(self, Scope scope):
        return self.visit(scope)

    def remember(self, Table table, stamp):
        """Note the table of a file that is kept, for as long as it is."""
        last = weakref.ref(table)
        if not table.reads:
            with cython.critical_section(self):
                self.last = last
                self.stamp = stamp

    cdef Visit visit(self, Scope scope):
        cdef Visit visit = Visit.__new__(Visit)
        cdef Seed seed
        cdef Run run = None if scope is None else scope.run
        visit.plan = self
        if self.is_seeded or run is not None:
            visit.path = () if scope is None else path_of_visit(scope)
        if self.order == SEQUENTIAL:
            return visit
        rng = self.rng
        if self.is_seeded:
            visit.bits = OWN
            seed = self.seed
            for number in visit.path:
                seed_key(&seed, number)
            pcg_start(&visit.pcg, &seed)
            return visit
        if rng is np.random and run is not None and run.is_seeded:
            visit.bits = OWN
            seed = seed_of_visit(run, visit.path)
            pcg_start(&visit.pcg, &seed)
            return visit
        if rng is np.random:
            visit.bits = MASKED
            visit.owner = np.random.get_bit_generator()
            visit.lock = visit.owner.lock
        else:
            rng = own_copy(rng, scope, visit.path)
            visit.bits = MASKED if isinstance(rng, RandomState) else SCALED
            visit.owner = rng._bit_generator if visit.bits == MASKED else rng.bit_generator
        visit.words = <bitgen_t*>PyCapsule_GetPointer(visit.owner.capsule, "BitGenerator")
        return visit

    cdef Table table_for(self, Visit visit):
        """The data, opened; what lies in memory and has not changed is open already."""
        cdef Table table
        with cython.critical_section(self):
            table = self.table
            last = self.last
            stamp = self.stamp
        if table is not None and self.is_current(table):
            return table
        if last is not None:
            table = last()
            if table is not None:
                # While the system looks at the file.
                visit.look_ahead_in(table)
                if (<Stamp>stamp).holds() if type(stamp) is Stamp else stamp.holds():
                    return table
        table = self.source._open_table(self)
        if type(self.data) is dict and table.store is None and not table.reads:
            with cython.critical_section(self):
                self.table = table
        return table

    cdef bint is_current(self, Table table) except? True:
        """Whether the caller's arrays are those that a table was made of, and lie as they did."""
        cdef Py_ssize_t i
        cdef PyObject* found
        cdef cnp.ndarray array
        cdef Field* field
        if table.chosen is not None:
            # A mask may have been written into.
            return False
        for i in range(table.n_fields):
            array = table.arrays[i]
            field = &table.fields[i]
            found = PyDict_GetItemWithError(self.data, table.keys[i])
            if (found != <PyObject*>array or cnp.PyArray_BYTES(array) != field.base
                    or cnp.PyArray_NDIM(array) != field.array_ndim
                    or (field.array_ndim and cnp.PyArray_DIM(array, field.axis) != field.size)):
                return False
        return self.source.keys is not None or PyDict_Size(self.data) == table.n_fields


cdef tuple window_shape(object array, const Field* field, Py_ssize_t n):
    """The shape of n windows of an array that is read."""
    cdef tuple shape = tuple(array.shape)
    return (n, *shape[:field.axis], field.length, *shape[field.axis + 1:])


cdef object own_copy(object rng, Scope scope, tuple path):
    """The copy of a caller's generator that an activation draws from, visit after visit."""
    if scope is None or scope.bare:
        return isolate(rng, {})
    found = scope.find(id(rng))
    if found is None:
        while scope.parent is not None:
            scope = scope.parent
        if path is None:
            scope.add_copy(rng)
        else:
            # The places below the outermost mux; a state finds the source by them.
            scope.add_late(rng, path[len(scope.path)::2])
        found = scope.find(id(rng))
    return found


# ------------------------------------------------------------------------------------ visits


cdef inline int64_t number_of(const int64_t* starts, int64_t n, int64_t i) noexcept nogil:
    """The number of the i-th item that may be drawn: `starts` has the n of them, or is NULL."""
    return i if starts is NULL else starts[AT(i, n)]


cdef inline void fetch_row(const Field* fields, Py_ssize_t n, int64_t row) noexcept nogil:
    """Have a row of n fields on its way to the cache."""
    cdef Py_ssize_t i
    for i in range(n):
        fetch(fields[i].base + row * fields[i].step, min(fields[i].run_bytes, FETCHED))


cdef class Visit(Compiled):
    """One activation of a source."""

    def __next__(self):
        if self.looks_ahead and self.left > 0:
            self.left -= 1
            self.look_ahead()
        elif not self.advance():
            raise StopIteration
        return self if self.fused else self.item()

    cdef int begin(self) except -1:
        cdef Table table = self.plan.table_for(self)
        cdef uint64_t key
        if self.plan.order == SHUFFLED:
            # Bound by bound, as anybody could draw it.
            key = self.below(1 << 32)
            key |= <uint64_t>self.below(1 << 32) << 32
            self.key = key
            permute(&self.order, table.n, key)
        self.table = table
        self.begun = True
        if table.n == 0:
            self.left = 0
        elif self.plan.order == RANDOM and self.bits == OWN and not table.reads:
            self.looks_ahead = True
            self.ahead = self.draw()
        return 0

    cdef int64_t below(self, int64_t n) except -1:
        """The next number below n."""
        if self.bits == OWN:
            return pcg_below(&self.pcg, n)
        # Others may be drawing from the global state, as in draw_with_care.
        if self.lock is not None and pescador_threaded():
            with self.lock:
                return bits_masked(self.words, n)
        return bits_masked(self.words, n) if self.bits == MASKED else bits_below(self.words, n)

    cdef inline int64_t draw(self) except -1:
        """The number of the next item."""
        cdef int64_t i
        if self.plan.order == RANDOM:
            i = self.below(self.table.n)
        else:
            i = self.done
            self.done += 1
            if self.plan.order == SHUFFLED:
                i = permuted(&self.order, i)
        return number_of(self.table.starts, self.table.n, i)

    cdef inline void look_ahead(self) noexcept:
        """Draw the row after this one, and have it on its way to the cache."""
        cdef int64_t i = pcg_below(&self.pcg, self.table.n)
        self.row = self.ahead
        self.ahead = number_of(self.table.starts, self.table.n, i)
        fetch_row(self.table.fields, self.table.n_fields, self.ahead)

    cdef void look_ahead_in(self, Table table) noexcept:
        """Fetch the first row, which is that of this table unless the file has changed."""
        cdef Pcg pcg = self.pcg
        cdef int64_t i
        if self.plan.order == RANDOM and self.bits == OWN and table.n > 0:
            i = number_of(table.starts, table.n, pcg_below(&pcg, table.n))
            fetch_row(table.fields, table.n_fields, i)

    cdef bint advance(self) except -1:
        """Go on to the next sample; tell whether there is one."""
        if self.table is None and self.left:
            self.begin()
        if self.left == 0:
            return self.end()
        if self.looks_ahead:
            self.look_ahead()
        elif self.table.reads:
            if self.at == self.n_block:
                self.read_block()
                if self.n_block == 0:
                    return self.end()
            self.row = self.rows[AT(self.at, self.n_block)]
            self.slot = self.slots[self.at]
            self.at += 1
        elif self.plan.order != RANDOM:
            if self.done == self.table.n:
                return self.end()
            self.row = self.draw()
        else:
            self.row = self.draw()
        self.left -= 1
        return True

    cdef int end(self) except -1:
        """Let go of the data; return False."""
        self.left = 0
        self.looks_ahead = False
        self.table = None
        self.drawn = self.places = None
        return False

    cdef int read_block(self) except -1:
        """Draw as many rows as are read together, and read them."""
        cdef Table table = self.table
        cdef int64_t n = min(self.left, table.block), i
        if self.plan.order != RANDOM:
            n = min(n, table.n - self.done)
        elif table.slices and self.bits != OWN:
            # Somebody else may draw from the same state between two of them.
            n = min(n, 1)
        self.at = self.n_block = 0
        self.drawn = None
        if n == 0:
            return 0
        drawn = np.empty(n, np.int64)
        self.rows = <int64_t*>cnp.PyArray_DATA(drawn)
        for i in range(n):
            self.rows[i] = self.draw()
        return self.read_rows(drawn)

    cdef int read_rows(self, object drawn) except -1:
        """Read the rows of a block."""
        cdef Table table = self.table
        cdef Py_ssize_t i
        cdef Field* field
        self.drawn = drawn
        self.rows = <int64_t*>cnp.PyArray_DATA(drawn)
        if len(drawn) == 1:
            unique, self.places = self.drawn, np.zeros(1, np.int64)
        else:
            unique, self.places = np.unique(self.drawn, return_inverse=True)
        self.slots = <int64_t*>cnp.PyArray_DATA(self.places)
        for i in range(table.n_fields):
            field = &table.fields[i]
            if not field.is_read:
                continue
            reader = table.readers[i]
            # Items of a block would keep all of it, and some may be one.
            field.copies = field.length < 0 or len(drawn) > 1
            if field.length < 0:
                block = reader.read(unique)
                shape = (len(unique), *reader.shape[1:])
            elif len(unique) == 1:
                start = unique[0] * field.jump
                block = reader.read_slice(start, start + field.length, field.axis)
                block = block[np.newaxis] if type(block) is ndarray else block
                shape = window_shape(reader, field, 1)
            else:
                block = reader.read_slices(unique * field.jump, field.length, field.axis)
                shape = window_shape(reader, field, len(unique))
            if type(block) is not ndarray or block.shape != shape or block.dtype != reader.dtype:
                raise DataError(
                    f"key {table.keys[i]!r}: {reader!r} was to give an array of shape {shape} and "
                    f"dtype {reader.dtype}, and gave {block!r:.200}")
            table.arrays[i] = block
            table.lay_out(field, block)
        self.n_block = len(drawn)
        return 0

    # ---- the state of an open stream

    cpdef dict save(self, saver):
        cdef dict state = {"left": self.left, "begun": bool(self.begun), "done": self.done,
                           "n": -1 if self.table is None else self.table.n}
        if self.plan.order == SHUFFLED:
            state["key"] = self.key
        if self.looks_ahead:
            state["ahead"] = self.ahead
        if self.n_block > self.at:
            state["block"] = self.drawn[self.at:].copy()
        elif self.n_block == 0 and self.drawn is not None:
            # They could not be read.
            state["block"] = self.drawn.copy()
        if self.plan.order == SEQUENTIAL:
            pass
        elif self.bits == OWN:
            state["pcg"] = [self.pcg.high, self.pcg.low, self.pcg.half, self.pcg.has_half]
        elif self.plan.rng is np.random:
            saver.uses_global_state()
        else:
            state["bits"] = self.owner.state
        return state

    cpdef object restore(self, dict state, loader):
        cdef Table table
        self.left = loader.whole(state, "left", 0)
        self.begun = state["begun"]
        if self.left > 0:
            # Before the first item there is no table.
            self.done = loader.whole(state, "done", 0, max(state["n"], 0))
        else:
            self.done = state["done"]
        if "pcg" in state:
            self.pcg.high, self.pcg.low, self.pcg.half, self.pcg.has_half = state["pcg"]
        if "bits" in state:
            set_bits(self.owner, state["bits"])
        if state["n"] < 0:
            return
        table = self.table = self.plan.table_for(self)
        if table.n != state["n"]:
            raise loader.error(repr(self.plan.source), f"it has {table.n} items, and had "
                               f"{state['n']} when its state was taken")
        if "key" in state:
            self.key = state["key"]
            permute(&self.order, table.n, self.key)
        if "ahead" in state:
            self.looks_ahead = True
            self.ahead = table.checked(np.array([state["ahead"]]), "ahead")[0]
        if "block" in state:
            self.read_rows(table.checked(state["block"], "block"))

    def shown(self):
        """Return what an open stream shows of it."""
        return self.plan.source, None, []

    @property
    def recipe(self):
        """What the state is a state of."""
        kind = type(self.plan.source)
        return f"{kind.__module__}.{kind.__qualname__}, {self.plan.source.order}"

    cdef object value(self, Py_ssize_t i):
        """The item of field i."""
        cdef Field* field = &self.table.fields[AT(i, self.table.n_fields)]
        cdef cnp.ndarray array = <cnp.ndarray>PyList_GET_ITEM(self.table.arrays, i)
        cdef cnp.ndarray view, result
        # `array.dtype` would look the attribute up.
        cdef cnp.dtype dtype = <cnp.dtype>cnp.PyArray_DESCR(array)
        cdef int flags = cnp.PyArray_FLAGS(array) & cnp.NPY_ARRAY_WRITEABLE
        if field.copies and field.direct:
            result = new_array(field.ndim, field.shape, dtype)
            copy_item(self, i, cnp.PyArray_BYTES(result), False)
            return result
        view = array_at(
            place_of(self, field), field.ndim, field.shape, field.strides, dtype, flags)
        cnp.set_array_base(view, array)
        return np.array(view, order="C") if field.copies else view

    cdef dict item(self):
        cdef dict result = {}
        cdef Py_ssize_t i
        for i in range(self.table.n_fields):
            result[<object>PyList_GET_ITEM(self.table.keys, i)] = self.value(i)
        return result
