"""Batches: exactly what NumPy would make of the items, in memory that nobody else sees."""

import array
import collections
import gc
import itertools
import queue
import sys
import threading
import tracemalloc
import types
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pescador
from effort import examples
from pescador import DataError, PescadorError, Streamer
from streams import Failure, failing

# ------------------------------------------------------------------- what NumPy would give


def joined(values, axis):
    return np.array(values) if axis is None else np.concatenate(values, axis=axis)


def outcome(make):
    """The arrays that a call gives, or the type of its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    except (TypeError, DataError):
        # A TypeError of NumPy's is a DataError of ours.
        return DataError
    except Exception as error:
        return type(error)


def alike(a, b):
    """Whether two values are the same: for arrays type, dtype, shape and every element."""
    if isinstance(a, np.void) and isinstance(b, np.void):
        return alike(np.asarray(a), np.asarray(b))
    if isinstance(a, tuple | list) and type(a) is type(b):
        return len(a) == len(b) and all(map(alike, a, b))
    if not isinstance(a, np.ndarray):
        return a is b or (type(a) is type(b) and (a == b or a != a))
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    # A matrix cannot be compared where its elements are arrays.
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.names:
        return all(alike(a[name], b[name]) for name in a.dtype.names)
    if a.dtype.hasobject:
        return alike(a.ravel().tolist(), b.ravel().tolist())
    with np.errstate(invalid="ignore"):
        equal = (a == b) | ((a != a) & (b != b))
    return bool(np.all(equal))


def assert_joined_as_numpy_does(values, size, axis, **options):
    """A stream of {x: value, y: value}, in batches, is what NumPy makes of each batch."""
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    expected = outcome(lambda: [joined(group, axis) for group in groups])
    items = ({"x": value, "y": value} for value in values)

    def batches():
        return list(pescador.buffer_stream(items, size, True, axis, **options))

    found = outcome(batches)
    if isinstance(expected, type):
        assert found is expected
        return
    assert isinstance(found, list), found
    assert len(found) == len(expected)
    for batch, x in zip(found, expected, strict=True):
        assert list(batch) == ["x", "y"]
        assert alike(batch["x"], x), (batch["x"], x)
        assert alike(batch["y"], x)
        if isinstance(batch["x"], np.ndarray) and batch["x"].dtype.kind in "biufc":
            assert batch["x"].flags.writeable
            assert batch["x"].flags.aligned


LAYOUTS = {
    "as it is": lambda a: a,
    "read-only": lambda a: read_only(a.copy()),
    "Fortran": lambda a: np.asfortranarray(a).reshape(a.shape, order="A"),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim and len(a) else a,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a: unaligned(a),
    "memmap": lambda a: a.view(np.memmap) if a.ndim else a,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
    "masked": lambda a: np.ma.array(a, mask=False) if a.ndim else a,
    "a list": lambda a: a.tolist(),
    "a scalar": lambda a: a[()] if not a.ndim else a,
}


def read_only(a):
    a.flags.writeable = False
    return a


def unaligned(a):
    if a.dtype.hasobject:
        return a
    raw = np.zeros(a.nbytes + 1, np.uint8)
    result = raw[1:].view(a.dtype).reshape(a.shape) if a.nbytes else a
    if a.nbytes:
        result[...] = a
    return result


DTYPES = (
    hnp.scalar_dtypes()
    | hnp.unicode_string_dtypes(max_len=4)
    | hnp.byte_string_dtypes(max_len=4)
    | st.sampled_from(
        [
            np.dtype(object),
            np.dtype("V3"),
            np.dtype("U0"),
            np.dtype("g"),
            np.dtype([("a", "i2"), ("b", "f8")]),
            np.dtype([("a", ">i2"), ("b", "f8")], align=True),
            np.dtype([("b", "f8"), ("a", "i4", (2,))]),
            np.dtype([("a", object), ("b", "U2")]),
            np.dtype("f4", metadata={"unit": "m"}),
        ]
    )
)


@st.composite
def arrays(draw, dtype, shape):
    if dtype.kind in "biufcMm":
        return draw(hnp.arrays(dtype, shape, fill=st.nothing()))
    numbers = draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 9), fill=st.nothing()))
    result = np.zeros(shape, dtype)
    for name in dtype.names or ():
        result[name] = numbers.reshape((*shape, *(1,) * (result[name].ndim - len(shape))))
    return result if dtype.names or dtype.kind == "V" else numbers.astype(dtype)


@st.composite
def uniform(draw, shapes=None):
    """Arrays of one dtype and shape, in all layouts; sometimes with one that does not fit."""
    if shapes is None:
        shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    dtype, shape = draw(DTYPES), draw(shapes)
    n = draw(st.integers(1, 7))
    values = [draw(arrays(dtype, shape)) for _ in range(n)]
    if draw(st.booleans()):
        layouts = st.sampled_from(list(LAYOUTS))
        values = [LAYOUTS[draw(layouts)](value) for value in values]
    if draw(st.integers(0, 2)) == 0:
        other = draw(arrays(draw(DTYPES), draw(st.just(shape) | shapes)))
        values[draw(st.integers(0, n - 1))] = other
    return values


@examples(200)
@given(uniform(), st.integers(1, 4))
def test_arrays_of_any_kind_and_layout_stack_as_numpy_does(values, size):
    assert_joined_as_numpy_does(values, size, None)


@st.composite
def along(draw):
    """Arrays that differ along one axis, mostly."""
    ndim = draw(st.integers(1, 3))
    axis = draw(st.integers(-ndim, ndim - 1))
    shape = [draw(st.integers(0, 3)) for _ in range(ndim)]
    sides = [draw(st.integers(0, 4)) for _ in range(draw(st.integers(1, 7)))]
    dtype = draw(DTYPES)
    layouts = st.sampled_from(list(LAYOUTS) if draw(st.booleans()) else ["as it is"])
    values = []
    for side in sides:
        shape[axis] = side
        values.append(LAYOUTS[draw(layouts)](draw(arrays(dtype, tuple(shape)))))
    if draw(st.integers(0, 3)) == 0:
        other = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        values[draw(st.integers(0, len(values) - 1))] = draw(arrays(draw(DTYPES), other))
    return values, axis


@examples(200)
@given(along(), st.integers(1, 4))
def test_arrays_of_any_kind_and_layout_join_along_an_axis_as_numpy_does(case, size):
    values, axis = case
    assert_joined_as_numpy_does(values, size, axis)


SCALARS = {
    "float": st.floats(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "large int": st.integers(2**62, 2**65),
    "bool": st.booleans(),
    "complex": st.complex_numbers(),
    "text": st.text(max_size=4),
    "bytes": st.binary(max_size=4),
    "None": st.none(),
    "object": st.builds(object),
    "dict": st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    "list": st.lists(st.integers(0, 9), min_size=2, max_size=2),
    "ragged": st.lists(st.integers(0, 9), max_size=2),
    "tuple": st.tuples(st.integers(0, 9), st.floats()),
    "numpy": DTYPES.flatmap(lambda d: arrays(d, ())).map(lambda a: a[()]),
    "date": hnp.datetime64_dtypes(max_period="D")
    .flatmap(lambda d: arrays(d, ()))
    .map(lambda a: a[()]),
    "days": hnp.arrays("M8[D]", ()).map(lambda a: a[()]),
    "record": hnp.arrays([("a", "i4"), ("b", "S2")], ()).map(lambda a: a[()]),
    "float32": st.floats(width=32).map(np.float32),
    "long double": st.floats().map(np.longdouble),
    "string": st.text(max_size=3).map(np.str_),
}


@st.composite
def scalars(draw):
    """Values of one kind, mostly, so that plans hold; or of several."""
    kinds = st.sampled_from(list(SCALARS))
    kind, n = draw(kinds), draw(st.integers(1, 8))
    values = [draw(SCALARS[kind]) for _ in range(n)]
    for _ in range(draw(st.integers(0, 2))):
        values[draw(st.integers(0, n - 1))] = draw(SCALARS[draw(kinds)])
    return values


@examples(300)
@given(scalars(), st.integers(1, 5))
def test_scalars_and_objects_of_any_kind_stack_as_numpy_does(values, size):
    assert_joined_as_numpy_does(values, size, None)


@given(scalars(), st.integers(-2, 2))
def test_what_is_no_array_is_joined_along_an_axis_as_numpy_does(values, axis):
    assert_joined_as_numpy_does(values, 3, axis)


@pytest.mark.parametrize("dtype", sorted(set(np.sctypeDict.values()), key=str))
def test_numpys_scalars_of_every_type_stack_as_numpy_does(dtype):
    if dtype in (np.void, np.object_):
        values = [np.void(b"ab"), np.void(b"cd"), np.void(b"ef")]
    else:
        values = list(np.array([1, 0, 1]).astype(dtype))
    assert_joined_as_numpy_does(values, 3, None)
    assert_joined_as_numpy_does([*values, None], 4, None)


def test_strings_of_variable_width_stack_as_numpy_does():
    words = np.array(["a", "quite a long word, this one", "c"], dtype=np.dtypes.StringDType())
    assert_joined_as_numpy_does([words, words[::-1], words], 2, None)
    assert_joined_as_numpy_does([words, words[::-1], words], 2, 0)


def test_values_that_only_look_like_arrays_stack_as_numpy_does():
    class Like:
        def __array__(self, dtype=None, copy=None):
            return np.arange(3)

    assert_joined_as_numpy_does([Like(), Like()], 2, None)
    assert_joined_as_numpy_does([array.array("d", [1, 2]), array.array("d", [3, 4])], 2, None)
    assert_joined_as_numpy_does([range(3), range(3)], 2, None)


def test_objects_come_out_as_the_very_objects_that_went_in():
    values = [object(), object(), 10**30, 7]
    [batch] = pescador.buffer_stream([{"x": v} for v in values], 4)
    assert all(a is b for a, b in zip(batch["x"].tolist(), values, strict=True))


def test_an_array_of_too_many_dimensions_is_what_it_is_to_numpy():
    assert_joined_as_numpy_does([np.zeros((1,) * 63)] * 2, 2, None)
    assert_joined_as_numpy_does([np.zeros((1,) * 64)] * 2, 2, None)
    assert_joined_as_numpy_does([np.zeros((1,) * 64)] * 2, 2, 5)


@pytest.mark.parametrize("axis", [5, -5, 2**100])
def test_an_axis_that_is_not_there_raises_what_numpy_raises(axis):
    assert_joined_as_numpy_does([np.zeros((2, 2))] * 2, 2, axis)


@given(
    sides=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    size=st.integers(1, 40),
    axis=st.integers(0, 1),
)
def test_batches_grow_with_their_items(sides, size, axis):
    values = []
    for i, side in enumerate(sides):
        shape = [3, 3]
        shape[axis] = side
        values.append(np.full(shape, i, np.int32))
    assert_joined_as_numpy_does(values, size, axis)


def test_a_first_batch_of_unknown_size_grows_with_its_items():
    row = np.arange(2**20, dtype=np.uint8)
    items = ({"x": row + np.uint8(i), "y": i} for i in range(100))
    [batch] = pescador.buffer_stream(items, 10**15, partial=True)
    assert batch["x"].shape == (100, 2**20)
    assert all((batch["x"][i] == row + np.uint8(i)).all() for i in range(100))
    assert batch["y"].tolist() == list(range(100))


# ------------------------------------------------------------------------------ the items


def test_a_generator_may_write_into_its_arrays_after_each_item():
    def source():
        x, y = np.zeros(3, np.float32), np.zeros((), np.int64)
        names, rows = np.zeros(2, "U0"), np.zeros((1, 2))
        record = np.zeros(1, [("a", "i4")])
        item = {"x": x, "y": y, "names": names, "rows": rows, "record": record[0], "t": x.T[::2]}
        for i in range(5):
            x[:], y[...], rows[:], record["a"] = i, i, i, i
            yield item
        x = np.zeros(3, np.float64)
        item["x"] = x
        for i in range(5, 7):
            x[:], y[...], rows[:], record["a"] = i, i, i, i
            yield item

    [batch] = pescador.buffer_stream(source(), 7)
    assert batch["x"].dtype == np.float64
    assert batch["x"][:, 0].tolist() == list(range(7))
    assert batch["y"].tolist() == list(range(7))
    assert batch["rows"][:, 0, 0].tolist() == list(range(7))
    assert batch["record"]["a"].tolist() == list(range(7))
    for axis, end in ((0, (slice(None), 0)), (1, (0, slice(0, 14, 2)))):
        only = ({"rows": item["rows"]} for item in source())
        [batch] = pescador.buffer_stream(only, 7, axis=axis)
        assert batch["rows"][end].tolist() == list(range(7))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_items_are_let_go_before_the_source_goes_on(axis):
    alive = []

    class Item(dict):
        pass

    def source():
        for i in range(8):
            item = Item(x=np.full((2, 3), i), y=np.full((1, 1), i))
            alive.extend([weakref.ref(item), weakref.ref(item["x"]), weakref.ref(item["y"])])
            yield item
            del item
            assert not any(ref() is not None for ref in alive)

    assert len(list(pescador.buffer_stream(source(), 3, True, axis))) == 3


class Mapping(collections.abc.Mapping):
    """A mapping that is no dict."""

    def __init__(self, **values):
        self.values_ = values

    def __getitem__(self, key):
        return self.values_[key]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


@pytest.mark.parametrize(
    "kind", [dict, collections.OrderedDict, Mapping, lambda **kw: types.MappingProxyType(kw)]
)
def test_any_mapping_is_an_item_and_more_keys_than_the_first_has_are_ignored(kind):
    items = [kind(b=1, a=np.zeros(2)), kind(z=0, a=np.ones(2), b=2), kind(a=np.ones(2), b=3)]
    [batch] = pescador.buffer_stream(items, 3)
    assert list(batch) == ["b", "a"]
    assert batch["b"].tolist() == [1, 2, 3]
    assert batch["a"].tolist() == [[0, 0], [1, 1], [1, 1]]


def rows(n):
    """Items of an array, a number and another array, with the very same keys."""
    return [
        {"xs": np.full(3, i, np.float32), "n": i, "y": np.full((2, 2), i, np.int16)}
        for i in range(n)
    ]


# What may come among such items: each is read as NumPy would read it.
ODD = {
    "a number of another type": lambda item: item | {"n": item["n"] + 0.5},
    "a number that no int64 holds": lambda item: item | {"n": 2**70},
    "a bool": lambda item: item | {"n": True},
    "a scalar": lambda item: item | {"n": np.int64(item["n"])},
    "another dtype": lambda item: item | {"y": item["y"].astype(np.float64)},
    "the other byte order": lambda item: item | {"y": item["y"].astype(">i2")},
    "another layout": lambda item: item | {"y": np.arange(4, dtype=np.int16).reshape(2, 2).T},
    "a list": lambda item: item | {"y": item["y"].tolist()},
    "an array of objects": lambda item: item | {"y": item["y"].astype(object)},
    "a subclass": lambda item: item | {"y": item["y"].view(np.recarray)},
    "another order": lambda item: dict(reversed(item.items())),
    "one more key": lambda item: {"z": None} | item,
    "an equal key": lambda item: {"".join("xs"): None} | item,
    "another mapping": collections.OrderedDict,
    "the same": lambda item: item,
}


@examples(300)
@given(
    st.integers(1, 9),
    st.integers(1, 30),
    st.dictionaries(st.integers(0, 29), st.sampled_from(list(ODD)), max_size=3),
)
def test_an_odd_item_among_others_is_joined_as_numpy_does(size, n, odd):
    def items():
        # The first item of a batch says which keys there are.
        return [
            ODD[odd.get(i, "the same")](item) if i % size or odd.get(i) != "one more key" else item
            for i, item in enumerate(rows(n))
        ]

    batches = list(pescador.buffer_stream(iter(items()), size, partial=True))
    assert len(batches) == -(-n // size)
    for i, batch in enumerate(batches):
        whole = items()[i * size : (i + 1) * size]
        assert list(batch) == list(whole[0])
        for key, values in batch.items():
            assert alike(values, np.array([item[key] for item in whole]))


@pytest.mark.parametrize("place", range(6))
def test_a_shape_that_differs_after_other_values_were_copied_is_an_error(place):
    items = rows(6)
    items[place]["y"] = np.zeros((2, 3), np.int16)
    with pytest.raises(ValueError, match="inhomogeneous"):
        next(pescador.buffer_stream(items, 6))


def test_a_dict_that_makes_what_it_lacks_is_asked():
    items = [collections.defaultdict(int, x=1), collections.defaultdict(int)]
    [batch] = pescador.buffer_stream(items, 2)
    assert batch["x"].tolist() == [1, 0]


def test_the_keys_of_each_batch_are_those_of_its_first_item():
    items = [{"x": 1}, {"x": 2}, {"y": 3, "x": 0.5}, {"x": 1.5, "y": 4}, {1: 1}, {1: 2}, {True: 3}]
    batches = list(pescador.buffer_stream([*items, {True: 4}], 2))
    assert [list(map(repr, batch)) for batch in batches] == [
        ["'x'"],
        ["'y'", "'x'"],
        ["1"],
        ["True"],
    ]
    assert batches[1]["x"].tolist() == [0.5, 1.5]
    assert batches[3][True].tolist() == [3, 4]


def test_items_without_keys_make_batches_without_keys():
    assert list(pescador.buffer_stream([{}] * 5, 2)) == [{}, {}]
    assert list(pescador.buffer_stream([{}] * 5, 2, partial=True)) == [{}, {}, {}]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("n", "size", "full"), [(0, 2, 0), (4, 2, 2), (5, 2, 2), (1, 2, 0), (3, 1, 3)]
)
def test_what_is_left_over_makes_a_smaller_batch_or_is_dropped(n, size, full, partial):
    batches = list(pescador.buffer_stream([{"x": i} for i in range(n)], size, partial))
    rest = [n % size] if partial and n % size else []
    assert [len(batch["x"]) for batch in batches] == [size] * full + rest


def until_an_error(stream):
    """How many items a stream gives, and the error that it ends with."""
    n = 0
    try:
        for _ in stream:
            n += 1
    except Exception as error:
        return n, error
    raise AssertionError("the stream ended without an error")


@pytest.mark.parametrize("size", [2, 100])
def test_an_item_that_is_no_data_is_refused_when_it_arrives(size):
    read = []

    def source():
        for i in range(50):
            read.append(i)
            yield {"x": i} if i != 7 else [i]

    n, error = until_an_error(pescador.buffer_stream(source(), size))
    assert (n, read[-1]) == (7 // size, 7)
    assert isinstance(error, DataError)
    assert str(error).startswith("item 7 of the stream is of type list")


def test_an_item_that_lacks_a_key_is_refused_when_it_arrives():
    stream = pescador.buffer_stream(iter([{"x": 1, "y": 1}, {"x": 2}, {"x": 3}]), 3)
    n, error = until_an_error(stream)
    assert (n, type(error), error.args) == (0, KeyError, ("y",))


class Broken(dict):
    def __init__(self, error):
        super().__init__(x=1)
        self.error = error

    def __getitem__(self, key):
        raise self.error


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (Failure(1), Failure),
        (TypeError(), DataError),
        (IndexError(), DataError),
        (KeyError(), KeyError),
        (StopIteration(), RuntimeError),
    ],
)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_an_item_that_fails_ends_the_stream_with_its_error(error, seen, place):
    items = [{"x": i} for i in range(6)]
    items[place] = Broken(error)
    stream = pescador.buffer_stream(items, 3)
    n, found = until_an_error(stream)
    assert (n, type(found)) == (place // 3, seen)
    assert list(stream) == []


def test_a_source_that_fails_ends_the_stream_and_keeps_nothing():
    stream = pescador.buffer_stream(({"x": i} for i in failing(5)), 2)
    n, error = until_an_error(stream)
    assert (n, type(error)) == (2, Failure)
    assert list(stream) == []


def test_values_that_numpy_cannot_join_name_their_key_and_items():
    class Bad:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("not today")

    items = [{"x": 1}] * 4 + [{"x": Bad()}] * 2
    n, error = until_an_error(pescador.buffer_stream(items, 2))
    assert n == 2
    assert str(error) == "key 'x': the values of items 4 to 5 cannot be joined: not today"


def test_batches_of_batches_are_those_of_the_items():
    def source():
        for i in range(24):
            yield {"x": np.full((300, 500), i, np.float32), "y": i}

    small = Streamer(pescador.buffer_stream, Streamer(source), 2)
    flat, stacked = (list(pescador.buffer_stream(small, 4, axis=axis)) for axis in (0, None))
    for i in range(3):
        assert flat[i]["y"].tolist() == list(range(8 * i, 8 * i + 8))
        assert flat[i]["x"][:, 0, 0].tolist() == list(range(8 * i, 8 * i + 8))
        assert (flat[i]["x"].reshape(stacked[i]["x"].shape) == stacked[i]["x"]).all()


# ------------------------------------------------------------------------------ memory

SHAPE = (512, 1024)  # of float32: two megabytes


def large(n, size=1):
    for i in range(n * size):
        yield {"x": np.full(SHAPE, i, np.float32)}


def addresses(batches):
    return [batch["x"].ctypes.data for batch in batches]


def test_a_loop_alternates_between_two_pieces_of_memory():
    where = []
    for batch in pescador.buffer_stream(large(12), 1):
        assert (batch["x"] == len(where)).all()
        where.append(batch["x"].ctypes.data)
    assert len(set(where)) == 2


def test_without_reuse_a_batch_owns_its_memory():
    for batch in pescador.buffer_stream(large(3), 1, reuse=False):
        assert batch["x"].base is None
        assert batch["x"].flags.owndata


HOLDERS = {
    "the batch": lambda batch: batch,
    "the array": lambda batch: batch["x"],
    "a view": lambda batch: batch["x"][:],
    "a slice of a view": lambda batch: batch["x"].reshape(-1)[5:][::7],
    "a transposed view": lambda batch: batch["x"].T,
    "a view of another dtype": lambda batch: batch["x"].view(np.uint8),
    "an instance of another class": lambda batch: batch["x"].view(np.recarray),
    "an iterator": lambda batch: batch["x"].flat,
    "a memoryview": lambda batch: memoryview(batch["x"]),
    "a slice of a memoryview": lambda batch: memoryview(batch["x"])[1:],
    "an array of a memoryview": lambda batch: np.asarray(memoryview(batch["x"])),
    "a DLPack capsule": lambda batch: batch["x"].__dlpack__(),
    "an array of a DLPack capsule": lambda batch: np.from_dlpack(batch["x"]),
    "a pointer": lambda batch: batch["x"].ctypes,
    "its base": lambda batch: batch["x"].base,
    "a cycle": lambda batch: in_a_cycle(batch["x"]),
    "another thread": lambda batch: in_a_thread(batch["x"]),
    "a tensor": lambda batch: pytest.importorskip("torch").from_numpy(batch["x"][0][0]),
}


def in_a_cycle(value):
    cell = [value]
    cell.append(cell)
    return weakref.ref(value)


def in_a_thread(value):
    done = threading.Event()
    started = threading.Event()

    def hold(array):
        started.set()
        done.wait()
        del array

    thread = threading.Thread(target=hold, args=(value,))
    thread.start()
    started.wait()

    class Held:
        def __del__(self):
            done.set()
            thread.join()

    return Held()


def allocate(shape, dtype):
    """An array that does not own its memory, as allocators make them."""
    n = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(bytearray(n), dtype).reshape(shape)


@pytest.mark.parametrize("allocator", [None, allocate])
@pytest.mark.parametrize("how", HOLDERS)
def test_memory_that_anything_refers_to_is_not_touched(how, allocator):
    stream = pescador.buffer_stream(large(8), 1, allocator=allocator)
    batch = next(stream)
    # A cycle that nobody else refers to is garbage from the start.
    gc.disable()
    try:
        held, where = HOLDERS[how](batch), batch["x"].ctypes.data
        del batch
        for i in range(1, 5):
            batch = next(stream)
            assert (batch["x"] == i).all()
            assert batch["x"].ctypes.data != where
    finally:
        gc.enable()
    del held


@pytest.mark.parametrize("allocator", [None, allocate])
def test_memory_that_nobody_holds_any_more_serves_again(allocator):
    stream = pescador.buffer_stream(large(8), 1, allocator=allocator)
    held = [memoryview(next(stream)["x"]) for _ in range(3)]
    where = {np.asarray(view).ctypes.data for view in held}
    assert len(where) == 3
    held.clear()
    for i in range(3, 6):
        assert next(stream)["x"].ctypes.data in where, i


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
def test_what_is_done_to_an_array_in_place_stays_with_it():
    stream = pescador.buffer_stream(large(6), 1)
    for i in range(6):
        array = next(stream)["x"]
        assert array.shape == (1, *SHAPE)
        assert array.dtype == np.float32
        assert array.flags.writeable
        assert (array == i).all()
        array.shape = (-1,)
        array.dtype = np.uint8
        array.flags.writeable = False
        del array


def test_a_weak_reference_to_an_array_ends_with_it():
    stream = pescador.buffer_stream(large(4), 1)
    ref = weakref.ref(next(stream)["x"])
    assert ref() is None
    assert (next(stream)["x"] == 1).all()


@examples(60)
@given(st.data())
def test_batches_that_are_held_keep_their_values_whatever_is_let_go(data):
    size, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 14))
    axis = data.draw(st.sampled_from([None, 0, 1]))
    same = data.draw(st.booleans())

    def source():
        for i in range(n * size + 1):
            rows = 700 if same else data.draw(st.integers(1, 1400))
            yield {"x": np.full((rows if axis == 0 else 700, 500), i, np.float32)}

    held = {}
    for i, batch in enumerate(pescador.buffer_stream(source(), size, True, axis)):
        view = batch["x"][..., ::100]
        held[i] = (view, view.copy())
        for j in list(held):
            if data.draw(st.booleans()):
                del held[j]
        assert all((view == copy).all() for view, copy in held.values())
        del view
    values = sorted(held)
    assert values == list(held)


def test_batches_that_pass_through_a_queue_keep_their_values():
    passing = queue.Queue(maxsize=3)

    def work():
        for batch in pescador.buffer_stream(large(40), 1):
            passing.put(batch["x"])
            del batch

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(40):
        assert (passing.get() == i).all()
    thread.join()


def peak_of(batches):
    tracemalloc.start()
    try:
        for batch in batches:
            del batch
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("axis", [None, 0])
def test_no_more_memory_is_used_than_a_batch_and_two_items(reuse, axis):
    item = 4 * SHAPE[0] * SHAPE[1]
    batches = pescador.buffer_stream(large(4, 8), 8, axis=axis, reuse=reuse)
    assert peak_of(batches) < (8 + 2.1) * item


@pytest.mark.parametrize("reuse", [True, False])
def test_an_array_that_has_grown_is_laid_out_as_any_other(reuse):
    items = [np.full((1, 300_000), i, np.float32) for i in range(5)]
    stream = pescador.buffer_stream([{"x": item} for item in items], 100, True, reuse=reuse)
    [batch] = stream
    expected = np.array(items)
    assert (batch["x"] == expected).all()
    assert batch["x"].strides == expected.strides
    assert batch["x"].flags.c_contiguous
    assert not batch["x"].flags.f_contiguous


def test_little_more_memory_is_held_than_the_batch_has():
    def source():
        yield {"x": np.zeros((100_000, 2))}
        for _ in range(19):
            yield {"x": np.zeros((10, 2))}

    tracemalloc.start()
    try:
        [batch] = pescador.buffer_stream(source(), 20, axis=0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch["x"].shape == (100_190, 2)
    assert held < 1.4 * batch["x"].nbytes


@pytest.mark.parametrize("size", [2047, 2048, 2111, 5000])
@pytest.mark.parametrize("further", [0, 1, 16, 31, 63, 64, 2048, 4095])
def test_long_values_are_copied_whole_wherever_they_lie(size, further):
    def lying_at(n, place):
        room = np.zeros(n + 4096, np.uint8)
        start = (place - room.ctypes.data) % 4096
        return room[start : start + n]

    items = []
    for i in range(3):
        item = lying_at(size, 5 + i * size)
        item[:] = np.random.default_rng(i).integers(256, size=size)
        items.append({"x": item})
    [batch] = pescador.buffer_stream(
        items, 3, allocator=lambda shape, _: lying_at(3 * size, 5 + further).reshape(shape)
    )
    assert (batch["x"] == [item["x"] for item in items]).all()


# ------------------------------------------------------------------------------ allocator


class Recording:
    """An allocator that notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, shape, dtype):
        self.asked.append((shape, dtype))
        return allocate(shape, dtype)


def test_an_allocator_is_asked_for_each_array_until_one_can_serve_again():
    allocator = Recording()
    items = ({"x": np.full(3, i, np.float32), "y": i} for i in range(40))
    for i, batch in enumerate(pescador.buffer_stream(items, 4, allocator=allocator)):
        assert batch["x"][:, 0].tolist() == batch["y"].tolist() == list(range(4 * i, 4 * i + 4))
        assert batch["x"].base is not None
    assert allocator.asked == [((4, 3), np.float32), ((4,), np.int64)] * 2


def test_an_allocator_is_asked_for_every_array_without_reuse():
    allocator = Recording()
    items = ({"x": np.full(3, i, np.float32)} for i in range(40))
    assert len(list(pescador.buffer_stream(items, 4, reuse=False, allocator=allocator))) == 10
    assert len(allocator.asked) == 10


@given(uniform() | scalars(), st.integers(1, 4))
def test_with_an_allocator_batches_stack_as_numpy_does(values, size):
    assert_joined_as_numpy_does(values, size, None, allocator=np.empty)


@given(along(), st.integers(1, 4))
def test_with_an_allocator_batches_join_along_an_axis_as_numpy_does(case, size):
    values, axis = case
    assert_joined_as_numpy_does(values, size, axis, allocator=np.empty)


def test_what_numpy_has_joined_is_moved_to_where_the_allocator_says():
    allocator = Recording()
    [batch] = pescador.buffer_stream([{"x": "a"}, {"x": "bcd"}], 2, allocator=allocator)
    assert batch["x"].tolist() == ["a", "bcd"]
    assert allocator.asked == [((2,), np.dtype("U3"))]


def frozen(shape, dtype):
    result = np.empty(shape, dtype)
    result.flags.writeable = False
    return result


@pytest.mark.parametrize(
    ("allocator", "problem"),
    [
        (lambda shape, dtype: None, "NoneType"),
        (lambda shape, dtype: [0] * 8, "list"),
        (lambda shape, dtype: np.empty((3, 4), dtype), r"shape \(3, 4\)"),
        (lambda shape, dtype: np.empty(shape, np.float64), "float64"),
        (lambda shape, dtype: np.empty(shape, dtype.newbyteorder()), ">f4|<f4"),
        (lambda shape, dtype: np.empty(shape, dtype, order="F"), "not contiguous"),
        (frozen, "read-only"),
        (lambda shape, dtype: unaligned(np.zeros(shape, dtype)), "not aligned"),
    ],
)
def test_what_an_allocator_returns_is_checked(allocator, problem):
    items = [{"x": np.zeros(4, np.float32)}] * 2
    with pytest.raises(PescadorError, match=rf"allocator=.*\(2, 4\).*float32.*{problem}"):
        next(pescador.buffer_stream(items, 2, allocator=allocator))


def test_an_allocator_that_fails_ends_the_stream_with_its_error():
    def allocator(shape, dtype):
        raise Failure(shape)

    n, error = until_an_error(pescador.buffer_stream([{"x": 1}], 1, allocator=allocator))
    assert (n, type(error), error.args) == (0, Failure, ((1,),))


def test_memory_that_the_allocators_owner_still_holds_does_not_serve_again():
    made = []

    def allocator(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    for _ in pescador.buffer_stream(large(5), 1, allocator=allocator):
        pass
    assert len(made) == 5
    assert [array[0, 0, 0] for array in made] == list(range(5))


def test_an_allocator_that_is_none_is_refused():
    with pytest.raises(PescadorError, match="allocator=3 "):
        next(pescador.buffer_stream([{"x": 1}], 1, allocator=3))


class Greedy:
    """An allocator that does something to the item that is being added, from the second on."""

    def __init__(self, act):
        self.act = act
        self.item = None

    def __call__(self, shape, dtype):
        if self.item is not None:
            self.act(self.item)
            # What was freed is overwritten.
            self.junk = [np.full(500 * n, 7) for n in (1, 2, 4, 8) for _ in range(20)]
        return np.zeros(shape, dtype)

    def over(self, values):
        yield {"x": next(values)}
        while True:
            try:
                # Held by nobody else.
                self.item = {"x": next(values)}
            except StopIteration:
                return
            yield self.item


def test_a_value_that_the_allocator_takes_out_of_its_item_is_added_all_the_same():
    greedy = Greedy(dict.clear)
    # Each is larger than there is room for.
    made = (np.full(500 * i, i) for i in (1, 2, 4, 8))
    [batch] = pescador.buffer_stream(greedy.over(made), 4, axis=0, allocator=greedy)
    assert batch["x"].tolist() == np.repeat([1, 2, 4, 8], [500, 1000, 2000, 4000]).tolist()


class Dying(np.ndarray):
    """An array that does something when it is let go."""

    def __del__(self):
        if self.base is None and to_do:
            to_do.pop()()


to_do = []


def test_a_value_that_is_taken_away_when_the_memory_of_its_batch_is_let_go_is_added_all_the_same():
    item = {}

    def act():
        item.clear()
        act.junk = [complex(7, 7) for _ in range(100)]

    def source():
        yield {"x": 0.5}
        to_do.append(act)
        # Numbers of another kind: the memory for floats is not needed any more.
        item["x"] = complex(1, float("2"))
        yield item

    stream = pescador.buffer_stream(source(), 2, allocator=lambda *args: Dying(*args))
    assert next(stream)["x"].tolist() == [0.5, 1 + 2j]
    assert not to_do


def test_a_value_that_the_allocator_makes_smaller_is_read_as_it_is_then():
    greedy = Greedy(lambda item: item["x"].resize(1, refcheck=False))
    made = (np.full(n, n) for n in (1, 500))
    [batch] = pescador.buffer_stream(greedy.over(made), 2, axis=0, allocator=greedy)
    assert batch["x"].tolist() == [1, 500]


def test_an_allocator_that_asks_for_the_batch_itself_gets_an_error():
    def allocator(shape, dtype):
        return next(within) if within else np.empty(shape, dtype)

    within = None
    items = ({"x": i} for i in range(9))
    stream = pescador.buffer_stream(items, 3, reuse=False, allocator=allocator)
    next(stream)
    within = stream.gi_yieldfrom
    with pytest.raises(ValueError, match="already executing"):
        next(stream)


class Lying(np.ndarray):
    """An array that says what it is asked to be."""

    claims: tuple

    shape = property(lambda self: self.claims)

    def __getitem__(self, index):
        raise Failure


def test_what_an_array_of_a_subclass_says_of_itself_is_not_believed():
    def allocator(shape, dtype):
        result = np.zeros(2 if len(asked) > 1 else shape, dtype).view(Lying)
        result.claims = shape
        asked.append(shape)
        return result

    asked = [None]
    items = [{"x": np.arange(10**5)[::2]} for _ in range(4)]
    [batch] = pescador.buffer_stream(items[:2], 2, allocator=allocator)
    assert batch["x"][1].tolist() == items[0]["x"].tolist()
    with pytest.raises(PescadorError, match=r"returned an array of shape \(2,\)"):
        next(pescador.buffer_stream(items, 2, allocator=allocator))


# ------------------------------------------------------------------------- extreme shapes


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize(
    "value",
    [
        np.empty((2**59, 0)),
        np.empty((0, 2**59)),
        np.empty((3, 0, 2)),
        np.empty((0, 0)),
        np.zeros((2, 2), "V0"),
        np.zeros((2, 2), []),
        np.zeros((1,) * 62),
        np.zeros((1,) * 64),
        np.eye(2).view(np.matrix),
        np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [1, 1]]),
        np.ma.masked,
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}-{value.ndim}-{value.size}",
)
def test_arrays_without_bytes_or_of_other_kinds_are_joined_as_numpy_does(value, axis):
    for size, allocator in itertools.product((1, 2, 3, 7), (None, np.empty)):
        assert_joined_as_numpy_does([value] * 8, size, axis, allocator=allocator)
    assert next(pescador.tuples([{"x": value}], "x")) == (value,)


@pytest.mark.parametrize("axis", [None, 0])
def test_more_than_there_can_be_is_an_error(axis):
    for value in (np.broadcast_to(1.0, 2**58), np.broadcast_to(np.uint8(1), 2**62)):
        with pytest.raises((MemoryError, ValueError)):
            next(pescador.buffer_stream([{"x": value}] * 4, 4, axis=axis))
    value = np.empty((2**62, 0), np.uint8)
    with pytest.raises((DataError, ValueError), match="rows" if axis == 0 else "too big"):
        next(pescador.buffer_stream([{"x": value}] * 4, 4, axis=axis))


@pytest.mark.parametrize("size", [2**62, 2**63 - 1, 2**63, 2**100, 1e300])
def test_a_batch_size_that_no_stream_reaches_takes_all(size):
    [batch] = pescador.buffer_stream([{"x": i} for i in range(3)], size, partial=True)
    assert batch["x"].tolist() == [0, 1, 2]
    assert list(pescador.cache(range(3), int(size))) == [0, 1, 2]


# -------------------------------------------------------------------------- over streamers


def sample(i):
    while True:
        yield {"x": np.full(4, i), "y": i}


@pytest.fixture(params=["Streamer", "StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux"])
def stream(request, muxes):
    sources = [Streamer([{"x": np.full(4, i), "y": i}] * 5) for i in range(4)]
    return {
        "Streamer": lambda: Streamer([item for source in sources for item in source]),
        "StochasticMux": lambda: muxes.StochasticMux(
            sources, 2, 4, mode="exhaustive", random_state=0
        ),
        "ShuffledMux": lambda: Streamer(muxes.ShuffledMux(sources, random_state=0).iterate(20)),
        "RoundRobinMux": lambda: muxes.RoundRobinMux(sources, "exhaustive"),
        "ChainMux": lambda: muxes.ChainMux(sources),
    }[request.param]()


MAPS = {
    "buffer_stream": lambda stream: pescador.buffer_stream(stream, 2),
    "tuples": lambda stream: pescador.tuples(stream, "y"),
    "keras_tuples": lambda stream: pescador.keras_tuples(stream, "y"),
    "cache": lambda stream: pescador.cache(stream, 2, random_state=0),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_over_a_streamer_gives_what_it_gives_over_its_iteration(stream, name):
    if isinstance(stream.__dict__.get("streamer"), types.GeneratorType):
        stream = Streamer(list(stream))
    direct, plain = list(MAPS[name](stream)), list(MAPS[name](stream.iterate()))
    assert repr(direct) == repr(plain)
    assert len(direct) > 2


@pytest.mark.parametrize("name", MAPS)
def test_a_map_counts_as_an_open_iteration_until_it_ends_is_closed_or_fails(muxes, name):
    def failing_later():
        yield from [{"y": 1}] * 20
        raise Failure

    for make in (
        lambda source: Streamer(source),
        lambda source: muxes.ShuffledMux([Streamer(source)], random_state=0),
        lambda source: muxes.ChainMux([Streamer(source)]),
    ):
        streamer = make([{"y": 1}] * 20)
        ending = MAPS[name](streamer)
        assert streamer.active == 0
        next(ending)
        assert streamer.active == 1
        other = MAPS[name](streamer)
        next(other)
        assert streamer.active == 2
        other.close()
        assert streamer.active == 1
        ending.close()
        assert streamer.active == 0
        streamer = make(failing_later)
        assert isinstance(until_an_error(MAPS[name](streamer))[1], Failure)
        assert streamer.active == 0


def test_a_map_closes_its_source_when_it_is_closed():
    closed = []

    def source():
        try:
            while True:
                yield {"x": 1}
        finally:
            closed.append(True)

    def mux():
        return pescador.ShuffledMux([Streamer(source)])

    for make in (source, lambda: Streamer(source), mux):
        batches = pescador.buffer_stream(make(), 2)
        next(batches)
        batches.close()
        assert closed.pop()


def test_a_map_over_an_activated_copy_goes_on_where_it_is(muxes):
    mux = muxes.ShuffledMux([Streamer(sample, i) for i in range(3)], random_state=0)
    with mux as active:
        first = [item["y"] for _, item in zip(range(6), active, strict=False)]
        [batch] = Streamer(pescador.buffer_stream(active, 6)).iterate(1)
    assert [*first, *batch["y"]] == [item["y"] for item in mux.iterate(12)]


@pytest.mark.parametrize("base", [Streamer, pescador.ShuffledMux])
@pytest.mark.parametrize("name", ["__iter__", "iterate"])
def test_a_streamer_with_an_iteration_of_its_own_is_iterated_by_it(base, name):
    def other(self, max_iter=None):
        yield from [{"x": 7}] * 2

    cls = type("Own", (base,), {name: other})
    streamer = cls([{"x": 1}]) if base is Streamer else cls([[{"x": 1}]])
    [batch] = pescador.buffer_stream(streamer, 2)
    assert batch["x"].tolist() == [7, 7]


def test_a_streamer_that_cannot_start_says_so_at_the_first_batch():
    def source(n):
        yield n

    stream = pescador.buffer_stream(Streamer(source), 2)
    with pytest.raises(TypeError, match="argument"):
        next(stream)


def test_a_source_that_is_read_while_it_is_read_refuses():
    def source():
        yield {"x": 1}
        next(stream)
        yield {"x": 2}

    stream = pescador.buffer_stream(Streamer(source), 2)
    with pytest.raises(ValueError, match="already executing"):
        next(stream)


def test_no_reference_is_lost_or_kept():
    value, key = np.zeros(3), "".join(["k", "ey"])
    item, other = {key: value}, {key: np.zeros(4)}
    for make in (
        lambda: list(pescador.buffer_stream([item] * 10, 3, True)),
        lambda: list(pescador.buffer_stream([item] * 10, 3, True, 0)),
        lambda: list(pescador.buffer_stream([item] * 10, 3, True, allocator=np.empty)),
        lambda: until_an_error(pescador.buffer_stream([item, item, other] * 2, 6)),
        lambda: until_an_error(pescador.buffer_stream([item, item, 3], 6)),
    ):
        make()
        gc.collect()
        before = [sys.getrefcount(each) for each in (item, value, key, value.dtype)]
        for _ in range(20):
            make()
        gc.collect()
        assert [sys.getrefcount(each) for each in (item, value, key, value.dtype)] == before
