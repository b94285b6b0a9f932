"""The loops of the maps but buffer_stream: what is done to each item.

docs/inside/batches.rst explains it.
"""

import numpy as np

from pescador.exceptions import DataError

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject

from pescador._core cimport BaseRun
from pescador._global_rng cimport GlobalStates, Marks, has_moved, mark
from pescador._native.iterators cimport next_item, steal
from pescador._rng cimport Uniform, as_index, draw, draw_below, is_known
from pescador._visits cimport set_generator, state_of_generator


cdef object type_name(object item):
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")


cdef object not_a_mapping(object item, Py_ssize_t position):
    return DataError(f"item {position} of the stream is of type {type_name(item)}; "
                     "it must be a mapping of keys to arrays, such as dict(X=...)")


cdef object raised_stop_iteration(Py_ssize_t position):
    # StopIteration itself would look like the end of the stream.
    return RuntimeError(f"item {position} of the stream raised StopIteration")


cdef class StreamMap(Compiled):
    """What is made of the items of a source."""

    cpdef object replay_cost(self):
        return self.source.replay_cost()

    cpdef object close_streams(self):
        self.source.close_streams()

    def shown(self):
        return self, None, [self.source]


cdef class Mapped(StreamMap):
    """What is made of the items of a source, one by one."""

    cdef list failed                   # of an item that was taken from the source and not given on
    cdef object skip                   # the result that is not given on

    def __next__(self):
        cdef PyObject* pointer
        while True:
            if self.failed is None:
                pointer = next_item(self.source)
                if pointer is NULL:
                    raise StopIteration
                item = steal(pointer)
            else:
                item = self.failed[0]
                self.failed = None
            try:
                result = self.apply(item)
            except BaseException as error:
                self.failed = [item]
                if isinstance(error, StopIteration):
                    raise raised_stop_iteration(self.position) from error
                raise
            self.position += 1
            if result is not self.skip:
                return result
            PyErr_CheckSignals()

    cdef object apply(self, object item):
        """What is made of an item."""
        raise NotImplementedError

    cpdef dict save(self, saver):
        return {"position": self.position, "stream": saver.save(self.source),
                "failed": None if self.failed is None else saver.plain(
                    self.failed[0], "an item that could not be mapped"),
                "has_failed": self.failed is not None}

    cpdef object restore(self, dict state, loader):
        self.position = state["position"]
        # Older states do not tell an item that is None from none.
        if state.get("has_failed", state["failed"] is not None):
            self.failed = [loader.own(state["failed"])]
        loader.restore(self.source, state["stream"])


cdef class Tuples(Mapped):
    """The values of `keys`, in order, of each item."""

    cdef tuple keys

    def __cinit__(self, source, tuple keys):
        self.source = iter(source)
        self.keys = keys

    cdef object apply(self, object item):
        return tuple(select(item, self.keys, self.position))


cdef list select(object item, tuple keys, Py_ssize_t position):
    try:
        return [item[key] for key in keys]
    except (TypeError, IndexError) as error:
        raise not_a_mapping(item, position) from error


cdef class InputsOutputs(Mapped):
    """Pairs (x, y) of each item; `inputs` and `outputs` are a key, a tuple of keys or None."""

    cdef tuple inputs, outputs
    cdef bint one_input, one_output

    def __cinit__(self, source, inputs, outputs):
        self.source = iter(source)
        self.one_input = isinstance(inputs, str)
        self.one_output = isinstance(outputs, str)
        self.inputs = (inputs,) if self.one_input else inputs
        self.outputs = (outputs,) if self.one_output else outputs

    cdef object apply(self, object item):
        x = select(item, self.inputs, self.position) if self.inputs else None
        y = select(item, self.outputs, self.position) if self.outputs else None
        return x[0] if self.one_input else x, y[0] if self.one_output else y


cdef class Transformed(Mapped):
    """What a function returns for each item, but for `skip`."""

    cdef object function
    cdef GlobalStates states           # in place while the function runs, where they are governed
    cdef BaseRun run                   # that notices whether it draws, where they are not
    cdef bint has_drawn

    def __cinit__(self, source, function, skip):
        self.source = iter(source)
        self.function = function
        self.skip = skip
        self.runs_code = True

    cdef int take_states(self, GlobalStates states, BaseRun run) except -1:
        self.states = states
        self.run = run
        return 0

    cpdef dict save(self, saver):
        if self.has_drawn:
            saver.refuse(f"transform by {self.function!r}", "it draws from the global random state "
                         "of np.random or random: iterate over pescador.Seeded(...)")
        return Mapped.save(self, saver)

    cdef object apply(self, object item):
        cdef Marks marks
        if self.states is not None:
            return self.states.call(self.function, (item,))
        if self.run is None:
            return self.function(item)
        mark(&marks)
        result = self.function(item)
        if has_moved(&marks):
            self.has_drawn = self.run.has_drawn = True
        return result


cdef class Cached(Mapped):
    """A new item with probability `prob`, else one of the `size` items that are kept.

    Parameters
    ----------
    rng : RandomState, Generator or the module np.random
        For each item, ``rng.randint(size)`` (of a Generator, ``integers``) picks one of those that
        are kept, and then a uniform draw decides whether a new one replaces it.
    """

    cdef Py_ssize_t size
    cdef double prob
    cdef object rng
    cdef Uniform uniform               # what draws, for np.random and RandomState; else None
    cdef object pick, toss             # the generator's methods, where its bits are not NumPy's own
    cdef list kept
    cdef Py_ssize_t due                # the place that a new item was drawn for, and -1 for none

    def __cinit__(self, source, Py_ssize_t size, double prob, rng):
        self.source = iter(source)
        self.size = size
        self.prob = prob
        self.kept = []
        self.due = -1
        self.draws_globally = rng is np.random
        self.take_rng(rng)

    cpdef object take_rng(self, rng):
        self.rng = rng
        self.uniform = None
        if rng is np.random or type(rng) is np.random.RandomState:
            # A cache draws from the caller's own generator, not from a copy.
            self.uniform = Uniform(rng, shared=True)
        if isinstance(rng, np.random.Generator):
            self.pick, self.toss = rng.integers, rng.random
        else:
            self.pick, self.toss = rng.randint, rng.rand

    cpdef dict save(self, saver):
        cdef dict state = Mapped.save(self, saver)
        state["kept"] = [saver.plain(item, "an item in the cache") for item in self.kept]
        state["due"] = self.due
        if self.rng is np.random:
            saver.uses_global_state()
        else:
            state["rng"] = state_of_generator(self.rng)
        return state

    cpdef object restore(self, dict state, loader):
        Mapped.restore(self, state, loader)
        self.kept = loader.own(state["kept"])
        self.due = loader.whole(state, "due", -1, len(self.kept) - 1)
        if "rng" in state:
            set_generator(self.rng, state["rng"])

    def __next__(self):
        cdef PyObject* item
        cdef Py_ssize_t i
        cdef double toss
        if len(self.kept) < self.size:
            item = next_item(self.source)
            if item is NULL:
                raise StopIteration
            result = steal(item)
            self.kept.append(result)
            return result
        if self.due >= 0:
            i = self.due
            toss = 0.0
        elif self.uniform is not None and is_known(self.uniform):
            i = draw_below(self.uniform, self.size)
            toss = draw(self.uniform)
        else:
            i = as_index(self.pick(0, self.size), self.size, self.pick)
            toss = self.toss()
        if toss <= self.prob:
            self.due = i
            item = next_item(self.source)
            if item is NULL:
                raise StopIteration
            self.kept[i] = steal(item)
            self.due = -1
        return self.kept[i]
