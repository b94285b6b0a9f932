# Fields and C entry points of _visits.pyx.

from libc.stdint cimport int64_t

from pescador._core cimport BaseRun, Compiled, Ending, Scope
from pescador._native.seeds cimport Seed


cdef class Run(BaseRun):
    cdef Seed seed                     # what the keys of visits are appended to
    cdef readonly object sequence      # the same as NumPy has it, with the key of the root
    cdef readonly tuple governs        # the global states that are each visit's own
    cdef readonly bint watches         # whether drawing from others can be noticed
    cdef public Elsewhere elsewhere    # asked for each visit in a pool, or None


cdef class Elsewhere:
    # Has visits be made somewhere else.
    cdef Compiled visit(self, object streamer, int64_t bound, Scope scope, Ending* ending)
    cdef Compiled ahead_of(self, Compiled engine)


cdef Seed seed_of_visit(Run run, tuple path) except *
cpdef Scope root_scope(run, path=*)
cpdef Compiled start_visit(object streamer, int64_t bound, Scope scope)
cpdef object stream_of(object streamer)
cpdef Compiled open_visit(object streamer, Scope scope, dict copies)

# States.
cpdef str place_of(path)
cpdef dict attributes_of(object streamer)
cpdef object state_of_generator(object generator)
cpdef object set_generator(object generator, object state)
cdef list save_generators(Scope scope)
cdef int restore_generators(Scope scope, states, loader, name) except -1
cdef list save_late(Scope scope)
cdef int restore_late(Scope scope, states, mux, loader) except -1
cpdef dict visits_of(Scope scope)
cpdef int set_visits(Scope scope, dict state, Py_ssize_t most) except -1
