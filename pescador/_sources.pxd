# Fields and C entry points of _sources.pyx.

cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t

from pescador._core cimport Compiled, Opener, Scope
from pescador._native.bitgen cimport bitgen_t
from pescador._native.bounds cimport AT
from pescador._native.copy cimport pescador_copy
from pescador._native.prefetch cimport PREFETCH
from pescador._native.seeds cimport Pcg, Seed


cdef enum:
    # From here on, a copy takes longer than another thread takes to start.
    WITHOUT_GIL = 1 << 18
    # Rounds of a permutation: with few numbers, each mixes little.
    ROUNDS = 8
    MANY_ROUNDS = 24
    FEW = 256


cdef enum Order:
    RANDOM, SHUFFLED, SEQUENTIAL

cdef enum Bits:
    # What row numbers are made from.
    OWN                                # PCG64, of a seed and the path to the visit
    MASKED                             # bits of a RandomState, as its randint takes them
    SCALED                             # bits of a Generator, as its integers takes them


cdef struct Permutation:
    # Numbers below n in random order: a Feistel network over pairs (i // b, i % b).
    uint64_t n
    uint64_t a, b                      # a * b is at least n, and little more
    int n_rounds
    uint64_t[MANY_ROUNDS] keys


cdef struct Field:
    # How the items of one key lie in memory. What every item needs comes first, here and below: it
    # is in few lines of the cache then, of which there is one set for each open stream.
    char* base                         # of item 0
    Py_ssize_t step                    # bytes from one item to the next
    Py_ssize_t run_bytes               # an item is `runs` runs of so many, if `direct`
    bint direct
    Py_ssize_t runs, run_step
    int ndim                           # of an item
    cnp.npy_intp* shape
    cnp.npy_intp* strides
    Py_ssize_t fetched                 # of a run, bytes that are fetched ahead
    Py_ssize_t n_bytes                 # of an item
    bint is_plain                      # an item is one small run in memory
    bint copies                        # items are new arrays, not views
    bint is_read                       # from a store that is no memory, in blocks
    # Of windows: where they are cut, from start to start, how long; -1 for rows, without that axis.
    Py_ssize_t axis, jump, length
    int array_ndim                     # of the array that items are cut from
    cnp.npy_intp size                  # along `axis`


@cython.final
cdef class Table:
    cdef Field* fields                 # and, behind them, their shapes and strides
    cdef Py_ssize_t n_fields
    cdef int64_t n                     # rows, or starts of windows
    cdef int64_t* starts               # those that may be drawn, where not all may; or NULL
    cdef int64_t stamp                 # of the plan of batches that its items were found to fit
    cdef bint is_plain                 # whether each item of each is one small run in memory
    cdef bint reads                    # whether any field is read in blocks
    cdef bint slices                   # of windows
    cdef Py_ssize_t block              # how many items are read together
    cdef readonly list keys, arrays    # of each field
    cdef list readers                  # of each field: its array, or what its blocks are read by
    cdef object chosen                 # int64, the memory behind `starts`
    cdef object store                  # closed at the end
    cdef object __weakref__

    cdef int lay_out(self, Field* field, cnp.ndarray array) except -1
    cdef object checked(self, object numbers, str field)


@cython.final
cdef class Plan(Opener):
    cdef object __weakref__
    cdef object source                 # what it is the plan of: asked for its checks and its words
    cdef object data
    cdef Order order
    cdef bint is_seeded
    cdef Seed seed
    cdef readonly object rng           # where it is not seeded
    cdef Table table                   # of the last visit, where the data lie in memory
    # Where they are in a file that is kept: a weak reference to the table, and what tells whether
    # the file has changed.
    cdef object last, stamp

    cdef Visit visit(self, Scope scope)
    cdef Table table_for(self, Visit visit)
    cdef bint is_current(self, Table table) except? True


@cython.final
cdef class Visit(Compiled):
    cdef Table table                   # None before the first sample, and after the last
    cdef int64_t row                   # of the present sample
    cdef bint looks_ahead              # nobody else sees its draws, so rows are drawn one ahead
    cdef bint begun
    cdef int64_t ahead                 # the next row then
    cdef Pcg pcg

    cdef Plan plan
    cdef readonly tuple path           # which visit this is, in a run
    cdef Bits bits
    cdef object owner                  # of `words`
    cdef object lock                   # of the global state
    cdef bitgen_t* words
    cdef int64_t done                  # rows drawn, where each is drawn once
    cdef Permutation order
    cdef uint64_t key                  # what it was made from

    # Of the block that was read, where a store is no memory:
    cdef object drawn, places          # int64, the memory behind `rows` and `slots`
    cdef int64_t* rows                 # what was drawn
    cdef int64_t* slots                # where in the block each of them lies
    cdef int64_t slot                  # of the present sample
    cdef Py_ssize_t at, n_block

    cdef int begin(self) except -1
    cdef int64_t below(self, int64_t n) except -1
    cdef int64_t draw(self) except -1
    cdef void look_ahead(self) noexcept
    cdef void look_ahead_in(self, Table table) noexcept
    cdef bint advance(self) except -1
    cdef int read_block(self) except -1
    cdef int read_rows(self, object drawn) except -1
    cdef int end(self) except -1
    cdef object value(self, Py_ssize_t i)
    cdef dict item(self)


cdef inline char* place_of(Visit visit, const Field* field) noexcept:
    """Where the present item of a field lies."""
    return field.base + (visit.slot if field.is_read else visit.row) * field.step


cdef inline void fetch(const char* start, Py_ssize_t n) noexcept nogil:
    """Have n bytes on their way to the cache: 0 is none. Any address may be fetched."""
    cdef Py_ssize_t i
    for i in range(0, n, 64):
        PREFETCH(<char*>(<size_t>start + i))
    # They seldom begin where a line of the cache does, and so end in one line more.
    if n > 0:
        PREFETCH(<char*>(<size_t>start + n - 1))


cdef inline void copy_runs(
        char* to, const char* start, const Field* field, bint past_cache) noexcept nogil:
    for _ in range(field.runs):
        # The processor does not foresee steps from page to page.
        fetch(<char*>(<size_t>start + 8 * field.run_step), field.fetched)
        pescador_copy(to, start, field.run_bytes, past_cache)
        to += field.run_bytes
        start += field.run_step


cdef inline int copy_item(Visit visit, Py_ssize_t i, char* to, bint past_cache) except -1:
    """Copy the present item of field i, in C order."""
    cdef Field* field = &visit.table.fields[AT(i, visit.table.n_fields)]
    cdef char* start = place_of(visit, field)
    if field.n_bytes < WITHOUT_GIL:
        copy_runs(to, start, field, False)
    else:
        # Whoever reads from a visit holds it, and moves it on when the copy is made.
        with nogil:
            copy_runs(to, start, field, past_cache)
    return 0
