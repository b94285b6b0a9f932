"""The loops behind the maps: what is done to each item, compiled."""

import numpy as np

from pescador.exceptions import DataError

from cpython.object cimport PyObject

from pescador._core cimport next_item, steal


cdef object describe(object item):
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")


cdef object not_data(object item, Py_ssize_t position):
    return DataError(f"item {position} of the stream is of type {describe(item)}; "
                     "it must be a mapping of keys to arrays, such as dict(X=...)")


cdef object stopped(Py_ssize_t position):
    # Let through, it would look like the end of the stream.
    return RuntimeError(f"item {position} of the stream raised StopIteration")


def stack(list items, axis, Py_ssize_t first=0):
    """Return {key: array} of the values of all `items`, as NumPy joins them.

    Parameters
    ----------
    items : list of dict
        At least one; the first says which keys there are.
    axis : int or None
        None stacks along a new first axis, as ``np.array``; a number joins along it, as
        ``np.concatenate``.
    first : int
        The position of the first item in its stream, for error messages.
    """
    batch = {}
    try:
        keys = list(items[0].keys())
    except (TypeError, AttributeError) as error:
        raise not_data(items[0], first) from error
    cdef Py_ssize_t i
    for key in keys:
        values = []
        for i, item in enumerate(items):
            try:
                values.append(item[key])
            except (TypeError, IndexError) as error:
                raise not_data(item, first + i) from error
            except StopIteration as error:
                raise stopped(first + i) from error
        try:
            batch[key] = np.array(values) if axis is None else np.concatenate(values, axis=axis)
        except TypeError as error:
            raise DataError(f"key {key!r}: the values of items {first} to {first + len(items) - 1} "
                            f"cannot be joined: {error}") from error
    return batch


cdef class Batches:
    """`size` items at a time, joined by `stack`."""

    cdef object source
    cdef Py_ssize_t size, position
    cdef bint partial
    cdef object axis

    def __cinit__(self, source, Py_ssize_t size, bint partial, axis):
        self.source = iter(source)
        self.size = size
        self.partial = partial
        self.axis = axis

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        cdef list items = []
        cdef Py_ssize_t first = self.position
        while len(items) < self.size:
            item = next_item(self.source)
            if item is NULL:
                if items and self.partial:
                    break
                raise StopIteration
            items.append(steal(item))
            self.position += 1
        return stack(items, self.axis, first)


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
        raise not_data(item, position) from error
    except StopIteration as error:
        raise stopped(position) from error


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
    """New items with probability `prob`, else one of the `size` kept ones."""

    cdef object source
    cdef Py_ssize_t size
    cdef double prob
    cdef object pick, toss             # the generator's own methods, so that draws are its own
    cdef list kept

    def __cinit__(self, source, Py_ssize_t size, double prob, pick, toss):
        self.source = iter(source)
        self.size = size
        self.prob = prob
        self.pick = pick
        self.toss = toss
        self.kept = []

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* item
        cdef Py_ssize_t i
        if len(self.kept) < self.size:
            item = next_item(self.source)
            if item is NULL:
                raise StopIteration
            result = steal(item)
            self.kept.append(result)
            return result
        i = self.pick(0, self.size)
        if self.toss() <= self.prob:
            item = next_item(self.source)
            if item is NULL:
                raise StopIteration
            self.kept[i] = steal(item)
        return self.kept[i]
