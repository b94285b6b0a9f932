"""The loops behind the maps: what is done to each item, compiled."""

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
