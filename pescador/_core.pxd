# Fields and C entry points of _core.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from pescador._global_rng cimport GlobalStates
from pescador._isolation cimport Copies


cdef int64_t UNBOUNDED                 # a bound that no stream reaches
cdef int EMPTY_PASSES                  # in a row, after which a loop raises

cdef enum Ending:
    # What happens when a started stream has given as many samples as it may.
    STEP_ONCE_MORE                     # its source is asked once more, as by a for loop
    STOP                               # nothing is read past what was given
    ENDS_ITSELF                        # it was told its bound and counts for itself


cdef class BaseRun:
    # A run, as activation knows it: it starts what is started in its scopes. _visits.Run says what
    # it is; that room uses this one.
    cdef readonly bint tracks          # whether states can be taken
    cdef readonly bint is_seeded       # whether all draw from one seed
    cdef readonly bint has_drawn       # a stream has drawn from global states that are not its own

    cdef object random_state(self, tuple path)
    cdef Compiled start(self, object streamer, dict fields, Scope scope, Ending* ending)
    cdef Compiled start_hooked(self, object streamer, int64_t bound, Scope scope, dict copies)


cdef class Scope(Copies):
    cdef readonly BaseRun run          # that this is a part of, or None
    cdef bint is_root                  # what starts in it is no member of a pool
    cdef object seeded                 # what a mux of a seeded run draws from that has no generator
    cdef dict seen                     # id of a mux -> it: those that were looked at for generators
    cdef list late                     # (generator, places) of those that were copied at a visit
    cdef list drawn_from               # shared generators that a mux here or further out draws from
    cdef bint bare                     # it has a path and nothing else
    cdef readonly tuple path           # (place, number of the visit) of each level, from the root
    cdef Py_ssize_t place              # in the pool: of the streamer that is started now
    cdef int64_t number                # of the visit to it, where the mux knows; else -1
    cdef int64_t* visits               # how many there were to each place below `n_visits`
    cdef Py_ssize_t n_visits
    cdef object mux                    # whose hooks are called here; None where an engine runs
    cdef dict places                   # id of a streamer of its pool -> its place
    cdef public object slot            # of the active set, that hooks read from now
    cdef object stepped                # the iterator that hooks read from now
    cdef dict nodes                    # id of such an iterator -> (it, its visit), in a run

    cdef int add_late(self, object generator, tuple places) except -1
    cdef int64_t count(self) except -1
    cdef int make_room(self, Py_ssize_t n) except -1


cdef class Compiled:
    # An iterator that compiled code reads from: the engine of a mux, or a visit to a source.
    cdef public int64_t left           # how many samples it may give yet
    cdef bint fused                    # it gives visits, which know where their row lies, not items
    cdef bint runs_code                # it is a map that calls a function of the user's
    cdef bint draws_globally           # it draws from np.random, unless it is given another

    cdef int begin_steps(self) except -1
    cdef PyObject* step(self) except? NULL
    cdef int end_steps(self, bint failed) except -1
    cpdef dict save(self, saver)
    cpdef object restore(self, dict state, loader)
    cpdef object replay_cost(self)
    cpdef object take_rng(self, rng)
    cdef int take_states(self, GlobalStates states, BaseRun run) except -1
    cpdef object close_streams(self)


cdef class Wrapper(Compiled):
    cdef public Compiled node          # what it reads from; None before that has begun

    cdef PyObject* read(self) except? NULL


cdef class Opener:
    # What a streamer keeps as its `_plan`, if it is to start without Python in between.
    cdef unsigned int tag              # of the streamer's class when its hooks were last looked at
    cdef Py_ssize_t n_fields           # how many attributes the streamer had then

    cdef Compiled open(self, Scope scope)


cdef object new_memo(Scope scope, bint again)

# Where a visit is.
cdef Scope bare_scope(Scope scope)
cdef tuple path_of_visit(Scope scope)

# Starting.
cdef object start(object streamer, int64_t bound, Scope scope, Ending* ending, dict copies)
cdef object opened(object streamer, Scope scope)
cdef object failed_start()
cdef object stopped_start()
cdef object hooked_copy(object streamer, Scope scope, dict copies)
cdef object map_of(object function)
cdef tuple split_stream(object args, object kwargs)
cdef bint asks_for_generator(object kwargs) except -1
cdef int give_generator(dict kwargs, object generator) except -1
cdef object fresh_sequence()

# Iterating.
cpdef int64_t as_bound(object max_iter, bint round_up=*) except -1
cdef bint ends_empty(int* passes, bint gave) except? True
cdef bint fuse(object stream) noexcept
