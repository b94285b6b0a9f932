# Fields and C entry points of memory.pyx, and where things lie in the memory.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pescador._native.files cimport pescador_stamp


cdef enum:
    # In bytes; places are multiples of any size of page there is.
    CONTROL = 1 << 16
    RECORDS = 1 << 18
    # How many blocks may be in use at once.
    BLOCKS = 1 << 14
    # In words.
    ORDERS = 1 << 12
    RETURNS_AT = CONTROL
    ORDERS_AT = RETURNS_AT + 4 * BLOCKS
    RECORDS_AT = ORDERS_AT + 8 * ORDERS
    HEAP_AT = RECORDS_AT + RECORDS
    # Blocks begin at cache lines.
    LINE = 64


cdef struct Control:
    # Words that both ends read, each on a cache line of its own. Positions count bytes from the
    # start of the stream.
    uint64_t head                      # written up to here
    uint64_t[7] _1
    uint64_t tail                      # read up to here
    uint64_t[7] _2
    uint64_t returned                  # how many blocks the consumer gave back
    uint64_t[7] _3
    uint64_t asleep                    # 1 if the consumer wants to be woken at the next record
    uint64_t[7] _4
    uint64_t wake_at                   # the tail at which the worker wants to be woken, or 0
    uint64_t[7] _5
    uint64_t stop                      # 1 if the consumer wants no more
    uint64_t[7] _6
    uint64_t awaited                   # the tag of the item that it is to be woken for, or 0
    uint64_t patience                  # or for so many items after it, if that is more
    uint64_t[6] _8
    uint64_t cost                      # how many nanoseconds an item takes the worker, about
    uint64_t[7] _7
    uint64_t by_pipe                   # how many items went over the pipe, or are on their way
    uint64_t[7] _9
    uint64_t ordered                   # how many words of orders were written
    uint64_t[7] _10
    uint64_t noted                     # how many of them were read
    uint64_t[7] _11
    uint64_t idle                      # 1 if the worker wants to be woken at the next of them
    uint64_t[7] _12
    uint64_t told                      # how many orders went over the pipe, or are on their way
    uint64_t[7] _13


cdef inline uint64_t round_up(uint64_t size, uint64_t unit) noexcept nogil:
    return (size + unit - 1) // unit * unit


cdef object damaged(str what, uint64_t value)


cdef class SharedMemory:
    cdef char* base
    cdef size_t size
    cdef int descriptor                # -1 if it was closed
    cdef pescador_stamp stamp          # of its file
    cdef Control* control
    cdef uint32_t* returns             # the numbers of blocks that were given back, in a ring
    cdef readonly int64_t max_bytes
    cdef readonly uint64_t held        # bytes in blocks that arrays of this process are views of
    cdef readonly int64_t n_leases
    cdef PyObject* first               # of the leases, in a list that holds no references
    cdef char busy                     # the lock of that list and of `returned`
    cdef bint closed                   # nobody writes any more
    cdef bint is_lent                  # this process writes where another one says
    cdef bint in_child                 # this is a copy, in a process that was forked
    cdef char* copies                  # of what is held, for a process that is being forked
    cdef uint64_t copies_start
    cdef uint64_t copies_size
    cdef object __weakref__

    cdef bint is_open(self) noexcept
    cpdef int claim(self, bint alone=*) except -1
    cdef Lease lease(self, uint32_t number, uint64_t start, uint64_t size)
    cdef void release(self, Lease lease) noexcept
    cdef void give_back(self, uint32_t number) noexcept
    cdef void before_fork(self) noexcept
    cdef void after_fork_in_parent(self) noexcept
    cdef void after_fork_in_child(self) noexcept


cdef class Lease:
    cdef SharedMemory memory
    cdef readonly uint32_t number
    cdef readonly uint64_t start
    cdef uint64_t size
    cdef bint pinned                   # a forked process reads the block: nobody may write there
    cdef PyObject* previous
    cdef PyObject* next


cdef struct Extent:
    uint64_t start
    uint64_t size


cdef class Heap:
    cdef Extent* blocks                # by number; of size 0 if it is not in use
    cdef Extent* gaps                  # free, in the order of addresses, none beside another
    cdef int32_t* unused               # a stack of numbers that were in use
    cdef Py_ssize_t n_blocks           # how many are in use
    cdef Py_ssize_t n_gaps
    cdef Py_ssize_t n_unused
    cdef readonly uint64_t size
    cdef readonly uint64_t used        # bytes

    cpdef int32_t allocate(self, uint64_t size) noexcept
    cpdef int free(self, int32_t number) noexcept
    cdef int32_t n_numbers(self) noexcept
    cdef void insert_gap(self, Py_ssize_t i, Extent gap) noexcept
    cdef void remove_gap(self, Py_ssize_t i) noexcept


cdef class Arena:
    cdef readonly SharedMemory memory
    cdef Heap heap
    cdef dict blocks                   # number -> Lease, of those that are to be written to
    cdef uint64_t returned             # how many returned blocks were freed
    cdef uint64_t reserved             # how much of the heap has its pages

    cdef Lease block(self, uint32_t number, uint64_t start, uint64_t size)
