"""The loops of the maps but buffer_stream: what is done to each item.

docs/inside/batches.rst explains it.
"""

import numpy as np

from pescador.exceptions import DataError

from cpython.object cimport PyObject

from pescador._native.iterators cimport next_item, steal
from pescador._rng cimport Uniform, as_index, draw, draw_below, is_known


cdef object type_name(object item):
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")


cdef object not_a_mapping(object item, Py_ssize_t position):
    return DataError(f"item {position} of the stream is of type {type_name(item)}; "
                     "it must be a mapping of keys to arrays, such as dict(X=...)")


cdef object raised_stop_iteration(Py_ssize_t position):
    # StopIteration itself would look like the end of the stream.
    return RuntimeError(f"item {position} of the stream raised StopIteration")


cdef class Tuples:
    """The values of `keys`, in order, of each item."""

    cdef object source
    cdef tuple keys
    cdef Py_ssize_t position

    def __cinit__(self, source, tuple keys):
        self.source = iter(source)
        self.keys = keys

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* pointer = next_item(self.source)
        if pointer is NULL:
            raise StopIteration
        item = steal(pointer)
        result = tuple(select(item, self.keys, self.position))
        self.position += 1
        return result


cdef list select(object item, tuple keys, Py_ssize_t position):
    try:
        return [item[key] for key in keys]
    except (TypeError, IndexError) as error:
        raise not_a_mapping(item, position) from error
    except StopIteration as error:
        raise raised_stop_iteration(position) from error


cdef class InputsOutputs:
    """Pairs (x, y) of each item; `inputs` and `outputs` are a key, a tuple of keys or None."""

    cdef object source
    cdef tuple inputs, outputs
    cdef bint one_input, one_output
    cdef Py_ssize_t position

    def __cinit__(self, source, inputs, outputs):
        self.source = iter(source)
        self.one_input = isinstance(inputs, str)
        self.one_output = isinstance(outputs, str)
        self.inputs = (inputs,) if self.one_input else inputs
        self.outputs = (outputs,) if self.one_output else outputs

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* pointer = next_item(self.source)
        if pointer is NULL:
            raise StopIteration
        item = steal(pointer)
        x = select(item, self.inputs, self.position) if self.inputs else None
        y = select(item, self.outputs, self.position) if self.outputs else None
        self.position += 1
        return x[0] if self.one_input else x, y[0] if self.one_output else y


cdef class Cached:
    """A new item with probability `prob`, else one of the `size` items that are kept.

    Parameters
    ----------
    rng : RandomState, Generator or the module np.random
        For each item, ``rng.randint(size)`` (of a Generator, ``integers``) picks one of those that
        are kept, and then a uniform draw decides whether a new one replaces it.
    """

    cdef object source
    cdef Py_ssize_t size
    cdef double prob
    cdef Uniform uniform               # what draws, for np.random and RandomState; else None
    cdef object pick, toss             # the generator's methods, where its bits are not NumPy's own
    cdef list kept

    def __cinit__(self, source, Py_ssize_t size, double prob, rng):
        self.source = iter(source)
        self.size = size
        self.prob = prob
        self.kept = []
        if rng is np.random or type(rng) is np.random.RandomState:
            # A cache draws from the caller's own generator, not from a copy.
            self.uniform = Uniform(rng, shared=True)
        if isinstance(rng, np.random.Generator):
            self.pick, self.toss = rng.integers, rng.random
        else:
            self.pick, self.toss = rng.randint, rng.rand

    def __iter__(self):
        return self

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
        if self.uniform is not None and is_known(self.uniform):
            i = draw_below(self.uniform, self.size)
            toss = draw(self.uniform)
        else:
            i = as_index(self.pick(0, self.size), self.size, self.pick)
            toss = self.toss()
        if toss <= self.prob:
            item = next_item(self.source)
            if item is NULL:
                raise StopIteration
            self.kept[i] = steal(item)
        return self.kept[i]
