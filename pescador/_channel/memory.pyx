"""Memory that a worker and its consumer share: its layout, its blocks, and who holds them.

The memory holds, one after the other,

* words that both ends read: how far each of them is, and which of them sleeps (`Control`);
* the numbers of blocks that the consumer gives back;
* orders of the consumer (see `orders`);
* records (see `ring`);
* a heap of blocks, one for each large array.

Large arrays of the consumer are views of their blocks. All views of a block refer to one `Lease`;
when the last of them dies, the block goes back to the worker. A process that is forked from the
consumer gets copies of the blocks that are held, and can do nothing to the rest.

Linux only.

docs/inside/channel.rst explains it.
"""

import os
import threading
import weakref
from multiprocessing import reduction

from pescador.exceptions import PescadorError

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free as libc_free, malloc
from libc.string cimport memcpy, memmove
from posix.mman cimport munmap
from posix.unistd cimport _SC_PAGESIZE, close, sysconf

from pescador._native.files cimport pescador_is_file, pescador_stamp_file
from pescador._native.shared cimport (
    load, lock, private_cover, private_map, private_move, shared_create, shared_drop, shared_map,
    shared_reserve, store, unlock,
)


# id -> weak reference of each memory that belongs to this process, for the hooks of a fork.
cdef dict claimed = {}
# Held from before a fork until after it: several threads may fork.
cdef object forking = threading.RLock()


cdef object damaged(str what, uint64_t value):
    """What to raise where a word in the memory cannot be."""
    return PescadorError(f"the memory shared with a worker is damaged: {what} is {value}")


@cython.final
cdef class SharedMemory:
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
        If there is no such memory, or not so much.
    """

    def __cinit__(self, int64_t max_bytes, int descriptor=-1):
        cdef int error
        cdef bint is_new = descriptor < 0
        self.max_bytes = max_bytes
        # An item of many arrays needs a little more, for the alignment of each.
        self.size = HEAP_AT + round_up(<uint64_t>max_bytes + CONTROL, CONTROL)
        self.descriptor = shared_create() if is_new else descriptor
        if self.descriptor < 0:
            raise OSError(errno, os.strerror(errno))
        error = pescador_stamp_file(self.descriptor, &self.stamp)
        if error:
            raise OSError(error, os.strerror(error))
        self.base = shared_map(self.descriptor, self.size)
        if self.base is NULL:
            raise OSError(errno, os.strerror(errno))
        error = shared_reserve(self.descriptor, self.base, 0, HEAP_AT) if is_new else 0
        if error:
            raise OSError(error, os.strerror(error))
        self.control = <Control*>self.base
        self.returns = <uint32_t*>(self.base + RETURNS_AT)

    def __dealloc__(self):
        claimed.pop(<size_t><void*>self, None)
        if self.base is not NULL:
            munmap(self.base, self.size)
        self.close_descriptor()

    def __reduce__(self):
        return _received, (self.max_bytes, reduction.DupFd(self.descriptor))

    @property
    def cost(self):
        """About how many nanoseconds an item takes the worker, which says so."""
        return load(&self.control.cost)

    @cost.setter
    def cost(self, nanoseconds):
        store(&self.control.cost, nanoseconds)

    def fileno(self):
        """Return the descriptor, -1 if it was closed."""
        return self.descriptor

    def close_descriptor(self):
        """Close the descriptor; the mapping stays."""
        if self.is_open():
            close(self.descriptor)
        self.descriptor = -1

    def leave_blocks(self):
        """Give no block back from here: a worker has leases as well, of what was held at its fork.

        Their blocks are the consumer's, which gives them back.
        """
        self.is_lent = True

    cdef bint is_open(self) noexcept:
        """Whether the descriptor is there; the code of a stream may have closed it."""
        return self.descriptor >= 0 and pescador_is_file(self.descriptor, &self.stamp)

    cpdef int claim(self, bint alone=True) except -1:
        """Have processes that are forked from now on get copies; with False, they are workers."""
        if alone:
            claimed[<size_t><void*>self] = weakref.ref(self)
        else:
            claimed.pop(<size_t><void*>self, None)
        return 0

    cdef Lease lease(self, uint32_t number, uint64_t start, uint64_t size):
        """Return what views of a block are to refer to."""
        cdef Lease lease = Lease.__new__(Lease)
        lease.memory = self
        lease.number = number
        lease.start = start
        lease.size = size
        lock(&self.busy)
        lease.next = self.first
        if lease.next is not NULL:
            (<Lease>lease.next).previous = <PyObject*>lease
        self.first = <PyObject*>lease
        self.held += size
        self.n_leases += 1
        unlock(&self.busy)
        return lease

    cdef void release(self, Lease lease) noexcept:
        lock(&self.busy)
        if lease.next is not NULL:
            (<Lease>lease.next).previous = lease.previous
        if lease.previous is not NULL:
            (<Lease>lease.previous).next = lease.next
        else:
            self.first = lease.next
        self.held -= lease.size
        self.n_leases -= 1
        if self.closed and not self.in_child:
            shared_drop(self.base, lease.start, lease.start + lease.size)
        elif not (self.in_child or self.is_lent or lease.pinned):
            self.give_back(lease.number)
        unlock(&self.busy)

    cdef void give_back(self, uint32_t number) noexcept:
        """Let the worker use a block again; the lock is held."""
        cdef uint64_t returned = self.control.returned
        self.returns[returned % BLOCKS] = number
        store(&self.control.returned, returned + 1)

    def close(self):
        """Free all pages but those of arrays that live; no worker may be left."""
        cdef uint64_t stop = 0
        cdef uint64_t* spans
        cdef PyObject* lease
        cdef Py_ssize_t n = 0
        if self.in_child or self.closed:
            return
        # Nothing is leased any more, but leases may end meanwhile: those free their pages.
        spans = <uint64_t*>PyMem_Malloc((2 * self.n_leases + 1) * sizeof(uint64_t))
        if spans is NULL:
            raise MemoryError
        lock(&self.busy)
        self.closed = True
        lease = self.first
        while lease is not NULL:
            spans[2 * n] = (<Lease>lease).start
            spans[2 * n + 1] = (<Lease>lease).size
            n += 1
            lease = (<Lease>lease).next
        unlock(&self.busy)
        kept = sorted([(spans[2 * i], spans[2 * i + 1]) for i in range(n)])
        PyMem_Free(spans)
        for start, size in [*kept, (self.size, 0)]:
            shared_drop(self.base, stop, start)
            stop = start + size

    cdef void before_fork(self) noexcept:
        """Copy what is held: a child gets the copies, as it does of all other memory."""
        cdef uint64_t page = sysconf(_SC_PAGESIZE), stop = 0
        cdef PyObject* lease
        if self.in_child or self.first is NULL:
            return
        lock(&self.busy)
        self.copies_start = self.size
        lease = self.first
        while lease is not NULL:
            self.copies_start = min(self.copies_start, (<Lease>lease).start // page * page)
            stop = max(stop, round_up((<Lease>lease).start + (<Lease>lease).size, page))
            lease = (<Lease>lease).next
        self.copies_size = stop - self.copies_start
        self.copies = private_map(self.copies_size)
        lease = self.first
        while lease is not NULL:
            if self.copies is NULL:
                (<Lease>lease).pinned = True
            else:
                memcpy(self.copies + ((<Lease>lease).start - self.copies_start),
                       self.base + (<Lease>lease).start, (<Lease>lease).size)
            lease = (<Lease>lease).next
        unlock(&self.busy)

    cdef void after_fork_in_parent(self) noexcept:
        if self.copies is not NULL:
            munmap(self.copies, self.copies_size)
            self.copies = NULL

    cdef void after_fork_in_child(self) noexcept:
        # Another thread may have held it.
        self.busy = 0
        if self.in_child:
            return
        self.in_child = True
        private_cover(self.base, HEAP_AT, True)
        if self.first is NULL or self.copies is not NULL:
            private_cover(self.base + HEAP_AT, self.size - HEAP_AT, False)
        if self.copies is not NULL:
            private_move(self.copies, self.copies_size, self.base + self.copies_start)
            self.copies = NULL


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Lease:
    """What the views of a block refer to; it is released when the last of them dies."""

    @property
    def address(self):
        """Where it begins, in this process."""
        return <uint64_t><uintptr_t>(self.memory.base + self.start)

    def __dealloc__(self):
        if self.memory is not None:
            self.memory.release(self)


def _received(max_bytes, descriptor):
    """Return a memory in a process that did not inherit it, but was started with it."""
    number = descriptor.detach()
    os.set_inheritable(number, False)
    return SharedMemory(max_bytes, number)


cdef list all_claimed():
    return [memory for ref in list(claimed.values()) if (memory := ref()) is not None]


def _before_fork():
    forking.acquire()
    for memory in all_claimed():
        (<SharedMemory>memory).before_fork()


def _after_fork_in_parent():
    for memory in all_claimed():
        (<SharedMemory>memory).after_fork_in_parent()
    forking.release()


def _after_fork_in_child():
    global forking
    forking = threading.RLock()
    for memory in all_claimed():
        (<SharedMemory>memory).after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent,
                    after_in_child=_after_fork_in_child)


@cython.final
cdef class Heap:
    """Which parts of a range of addresses are in use.

    The first gap that is large enough is used: low addresses have pages, and are warm. There are
    few gaps, because most consumers let go of blocks in the order in which they get them.

    Parameters
    ----------
    size : int
        The length of the range, in bytes.
    """

    def __cinit__(self, uint64_t size):
        self.size = size // LINE * LINE
        # As many as there may be; pages come when they are used. Not cleared: that would take them
        # all, one by one in a worker that was forked.
        self.blocks = <Extent*>malloc(BLOCKS * sizeof(Extent))
        self.gaps = <Extent*>malloc((BLOCKS + 1) * sizeof(Extent))
        self.unused = <int32_t*>malloc(BLOCKS * sizeof(int32_t))
        if self.blocks is NULL or self.gaps is NULL or self.unused is NULL:
            raise MemoryError
        self.insert_gap(0, Extent(0, self.size))

    def __dealloc__(self):
        libc_free(self.blocks)
        libc_free(self.gaps)
        libc_free(self.unused)

    cpdef int32_t allocate(self, uint64_t size) noexcept:
        """Return the number of a new block of at least this size, or -1 if there is no room."""
        cdef Py_ssize_t i
        cdef int32_t number
        if self.n_blocks >= BLOCKS or size > self.size:
            return -1
        size = round_up(max(size, <uint64_t>1), LINE)
        for i in range(self.n_gaps):
            if self.gaps[i].size >= size:
                break
        else:
            return -1
        number = self.n_numbers()
        if self.n_unused > 0:
            self.n_unused -= 1
            number = self.unused[self.n_unused]
        self.blocks[number] = Extent(self.gaps[i].start, size)
        self.n_blocks += 1
        self.used += size
        self.gaps[i].start += size
        self.gaps[i].size -= size
        if self.gaps[i].size == 0:
            self.remove_gap(i)
        return number

    cpdef int free(self, int32_t number) noexcept:
        """Free a block; return -1 if there is no such block."""
        if number < 0 or number >= self.n_numbers() or self.blocks[number].size == 0:
            return -1
        cdef Extent block = self.blocks[number]
        cdef Py_ssize_t i = 0, stop = self.n_gaps, middle
        self.blocks[number].size = 0
        self.unused[self.n_unused] = number
        self.n_unused += 1
        self.n_blocks -= 1
        self.used -= block.size
        # Find the gap after it; gaps beside it become one with it.
        while i < stop:
            middle = (i + stop) // 2
            if self.gaps[middle].start < block.start:
                i = middle + 1
            else:
                stop = middle
        if i < self.n_gaps and block.start + block.size == self.gaps[i].start:
            block.size += self.gaps[i].size
            self.remove_gap(i)
        if i > 0 and self.gaps[i - 1].start + self.gaps[i - 1].size == block.start:
            self.gaps[i - 1].size += block.size
        else:
            self.insert_gap(i, block)
        return 0

    cdef int32_t n_numbers(self) noexcept:
        """How many blocks there have been at a time: their numbers are those below that."""
        return <int32_t>(self.n_blocks + self.n_unused)

    cdef void insert_gap(self, Py_ssize_t i, Extent gap) noexcept:
        memmove(self.gaps + i + 1, self.gaps + i, (self.n_gaps - i) * sizeof(Extent))
        self.gaps[i] = gap
        self.n_gaps += 1

    cdef void remove_gap(self, Py_ssize_t i) noexcept:
        self.n_gaps -= 1
        memmove(self.gaps + i, self.gaps + i + 1, (self.n_gaps - i) * sizeof(Extent))

    def place(self, int32_t number):
        """Return the start and the size of a block."""
        return self.blocks[number].start, self.blocks[number].size


@cython.final
cdef class Arena:
    """Blocks of a memory that is shared with several workers, which write where they are told.

    Parameters
    ----------
    memory : SharedMemory
        Its heap is this object's.
    """

    def __cinit__(self, SharedMemory memory not None):
        self.memory = memory
        self.heap = Heap(memory.size - HEAP_AT)
        self.blocks = {}

    @property
    def size(self):
        """How many bytes all blocks may take together."""
        return self.heap.size

    def allocate(self, uint64_t size):
        """Return a new block of so many bytes, with pages behind it; None if there is no room."""
        cdef uint64_t returned = load(&self.memory.control.returned), stop
        cdef int32_t number
        # The words of the memory, and its heap, are not those of a forked process.
        if self.memory.in_child:
            return None
        while self.returned != returned:
            self.heap.free(<int32_t>self.memory.returns[self.returned % BLOCKS])
            self.returned += 1
        number = self.heap.allocate(size)
        if number < 0:
            return None
        stop = self.heap.blocks[number].start + self.heap.blocks[number].size
        if stop > self.reserved:
            if not self.memory.is_open() or shared_reserve(
                    self.memory.descriptor, self.memory.base, HEAP_AT + self.reserved,
                    stop - self.reserved):
                self.heap.free(number)
                return None
            self.reserved = stop
        return self.memory.lease(
            number, HEAP_AT + self.heap.blocks[number].start, self.heap.blocks[number].size)

    def expect(self, Lease block not None):
        """Note that workers are about to write to a block."""
        self.blocks[block.number] = block

    def forget(self, Lease block not None):
        """Note that none is any more."""
        del self.blocks[block.number]

    cdef Lease block(self, uint32_t number, uint64_t start, uint64_t size):
        """The block that so many bytes lie in, which a worker was about to write; or None."""
        cdef Lease block = self.blocks.get(number)
        if block is None:
            return None
        if start < block.start or size > block.size or start - block.start > block.size - size:
            return None
        return block
