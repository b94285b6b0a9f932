# Fields of the engines in _mux.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from pescador._core cimport Ending, Patience, Scope
from pescador._draws cimport Categorical, Counts, Pool, Uniform


cdef struct Slot:
    # A place in the active set.
    int64_t count                      # samples given by the stream that is there now
    int64_t bound                      # how many it may give


cdef class Engine:
    cdef object mux                    # whose streams these are; asked for nothing in the loop
    cdef list pool                     # the mux's streamers, read as their streams start
    cdef Py_ssize_t n                  # how many
    cdef Scope scope
    cdef Scope inner                   # what streams start in: `scope`, or None
    cdef dict copies                   # of the streamers that are copied once: see start
    cdef Py_ssize_t k                  # slots in the active set
    cdef list streams                  # k: the iterator in each slot, None before it has started
    cdef object table                  # int64[k, 2], the memory behind `slots`
    cdef Slot* slots
    cdef object indices                # int64[k], the memory behind `which`
    cdef int64_t* which                # the streamer in each slot; -1 for none
    cdef Ending* endings               # who keeps to the bound of each slot
    cdef Py_ssize_t depth              # how many engines this one is nested in
    cdef int64_t left                  # how many samples it may give yet
    cdef bint running
    cdef bint barren                   # it ended because no stream gave a sample any more

    cdef bint ended_barren(self, Py_ssize_t slot)
    cdef PyObject* advance(self) except? NULL
    cdef PyObject* pull(self, Py_ssize_t slot) except? NULL
    cdef int begin(self, Py_ssize_t slot) except -1
    cdef int assign(self, Py_ssize_t slot, Py_ssize_t i, int64_t bound) except -1
    cdef int vacate(self, Py_ssize_t slot) except -1


cdef class WeightedEngine(Engine):
    cdef Uniform uniform
    cdef object weights                # float64[k], the memory behind `w`
    cdef double* w                     # the weight of each slot, 0 where it is out
    cdef double norm                   # their sum
    cdef Categorical chooser
    cdef bint norm_is_stale            # weights have changed since norm was taken
    cdef bint chooser_is_stale         # weights have changed since the chooser saw them

    cdef int set_weight(self, Py_ssize_t slot, double weight) except -1
    cdef double weight_norm(self) noexcept nogil
    cdef Py_ssize_t next_slot(self) except -1


cdef class ShuffledEngine(WeightedEngine):
    pass


cdef class StochasticEngine(WeightedEngine):
    cdef object pool_weights           # float64[n], the memory behind `pool_w`
    cdef double* pool_w
    cdef Pool available
    cdef object valid                  # uint8[n], the memory behind `is_valid`
    cdef unsigned char* is_valid       # streams that were not found empty
    cdef Py_ssize_t n_valid
    cdef bint prune
    cdef bint replaces                 # with replacement: a stream may be in several slots
    cdef bint revives                  # a stream that ended may come back
    cdef object constant               # the bound of every stream, or None where it is drawn
    cdef bint binomial
    cdef double rate
    cdef Counts counts
    cdef bint alike                    # all pool weights are equal
    cdef bint looks_ahead              # whether streams are fetched into the cache early
    cdef Py_ssize_t[5] picked          # the streams that were picked last, -1 for none
    cdef set empty                     # streams found empty since the last sample
    cdef Patience patience

    cdef int new_stream(self, Py_ssize_t slot) except -1
    cdef int look_ahead(self, Py_ssize_t i) except -1
    cdef int replace(self, Py_ssize_t slot) except -1
    cdef int64_t draw_bound(self, Py_ssize_t slot, double weight) except -1
    cdef bint is_hopeless(self, Py_ssize_t i) except? True


cdef class RoundRobinEngine(Engine):
    cdef object generator
    cdef bint cycles, permutes
    cdef Py_ssize_t* following         # n: the next slot that is not exhausted, round and round
    cdef Py_ssize_t at, before
    cdef Py_ssize_t alive
    cdef unsigned char* out            # n: streams that are not started again
    cdef Py_ssize_t n_out
    cdef Patience patience
    cdef bint gave                     # whether this round gave a sample

    cdef int begin_round(self, bint permute) except -1


cdef class ChainEngine(Engine):
    cdef object streamers              # the list, or the generator function of them
    cdef bint is_made                  # whether it is a function
    cdef object source                 # iterator over the streamers
    cdef object coerce                 # makes a Streamer of what is none
    cdef bint cycles
    cdef bint vacant
    cdef bint ended                    # the last pass was begun
    cdef Patience patience
    cdef bint gave                     # whether this pass gave a sample
    cdef set out                       # ids of streamers that are not started again

    cdef bint next_streamer(self) except? True
