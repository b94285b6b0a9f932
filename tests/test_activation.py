"""Activation isolates: what a stream is given of its arguments, and what activations share."""

import collections
import copy
import csv
import dataclasses
import datetime
import functools
import gc
import io
import itertools
import pathlib
import types
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pescador
from pescador import Streamer, _snapshots
from streams import (
    assert_alike,
    copies_of,
    data,
    forever,
    given_to_a_stream,
    lone_copies_of,
    read_only,
    write_into,
)

DTYPES = ["i1", ">i4", "f8", [("a", "u2"), ("b", ">f4")]]


@st.composite
def arrays(draw):
    base = np.arange(24).astype(np.dtype(draw(st.sampled_from(DTYPES))))
    base = base.reshape(2, 3, 4, order=draw(st.sampled_from("CF")))
    view = draw(
        st.sampled_from(
            [
                lambda a: a,
                lambda a: a.T,
                lambda a: a[::-1],
                lambda a: a[:, 1:, ::2],
                lambda a: a.transpose(1, 0, 2),
                lambda a: a[..., 0],
                lambda a: a[1, 1, 1:1],
                lambda a: np.broadcast_to(a[0], (3, 3, 4)),
                lambda a: a[0, 0, 0, ...],
            ]
        )
    )
    return base, view(base)


@st.composite
def nests(draw):
    """A list of values that hold each other, views of arrays among them."""
    things = [draw(st.integers()), draw(st.text()), (1, "a"), b"b", None]
    for _ in range(draw(st.integers(1, 3))):
        things += draw(arrays())
    for _ in range(draw(st.integers(0, 6))):
        pick = st.sampled_from(things)
        things.append(
            draw(
                st.one_of(
                    st.lists(pick, max_size=4),
                    st.dictionaries(st.text(max_size=2), pick, max_size=3),
                    st.tuples(pick, pick),
                    st.sets(st.integers(), max_size=3),
                    st.builds(bytearray, st.binary(max_size=3)),
                )
            )
        )
    return things


def write(nest, place, number):
    """Change one thing inside a nest; `place` and `number` say which, and how."""
    thing = nest[place % len(nest)]
    if isinstance(thing, np.ndarray) and thing.flags.writeable and thing.size:
        if number % 3 == 0:
            thing.reshape(-1)[number % thing.size] = thing.flat[0]
        elif number % 3 == 1:
            np.random.default_rng(number).shuffle(thing if thing.ndim else thing[None])
        else:
            thing.view(np.uint8 if thing.itemsize == 1 else thing.dtype)[...] = thing.flat[-1]
    elif isinstance(thing, list):
        thing.append(number)
    elif isinstance(thing, dict):
        thing["new"] = number
    elif isinstance(thing, set):
        thing.add(number)
    elif isinstance(thing, bytearray):
        thing.append(number % 256)


@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
@given(
    nest=nests(),
    writes=st.lists(
        st.tuples(st.integers(-1, 3), st.integers(0, 20), st.integers(0, 100)), max_size=12
    ),
)
def test_each_activation_sees_what_a_deep_copy_would(start, nest, writes):
    before = _snapshots.set_large(1)
    try:
        pristine = copy.deepcopy(nest)
        ours, theirs = start(nest, 4), [copy.deepcopy(nest) for _ in range(4)]
    finally:
        _snapshots.set_large(before)
    assert_alike(copy.deepcopy(nest), pristine)
    for which, place, number in writes:
        if which < 0:
            # By the caller, which none of them sees.
            write(nest, place, number)
        else:
            write(ours[which], place, number)
            write(theirs[which], place, number)
    for pair in zip(ours, theirs, strict=True):
        assert_alike(*pair)


# ----------------------------------------------------------------------------------- memmaps


@pytest.fixture
def file_of_floats(tmp_path):
    np.arange(1000.0).tofile(tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
def test_a_read_only_memory_map_is_shared_and_not_read(file_of_floats, start):
    mapped = np.memmap(file_of_floats, np.float64, mode="r")
    for value in (mapped, mapped[3:], np.asarray(mapped), np.asarray(mapped).reshape(10, 100).T):
        for inside in start(value):
            assert type(inside) is type(value)
            assert np.shares_memory(inside, mapped)
            assert not inside.flags.writeable
            assert (inside.shape, inside.strides) == (value.shape, value.strides)
            # Its shape is its own, as are its other attributes.
            assert inside is not value
    assert mapped.mode == start(mapped)[0].mode == "r"


@pytest.mark.parametrize("mode", ["c", "r+", "w+"])
@pytest.mark.parametrize("start", [copies_of, lone_copies_of])
def test_a_memory_map_that_can_be_written_is_copied_with_what_was_written(
    file_of_floats, start, mode, all_large
):
    mapped = np.memmap(file_of_floats, np.float64, mode=mode, shape=(10, 100))
    mapped[3, 5] = -1
    expected = copy.deepcopy(mapped)
    for inside in start(mapped):
        assert_alike(inside, expected)
        assert (inside.mode, inside.filename) == (expected.mode, expected.filename)
        inside[:] = 7
    assert_alike(copy.deepcopy(mapped), expected)


# ------------------------------------------------------------------------------ what is shared


class Point(typing.NamedTuple):
    x: object
    y: object = None

    def total(self):
        return self.x


@dataclasses.dataclass(frozen=True)
class Setting:
    name: str

    @functools.cached_property
    def seen(self):
        return []


class Hooked(collections.namedtuple("Pair", "x y")):
    __slots__ = ()

    def __deepcopy__(self, memo):
        return "hook"


class Zone(datetime.tzinfo):
    offset = datetime.timedelta(0)

    def __repr__(self):
        return "Zone()"

    def utcoffset(self, when):
        return self.offset


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        3,
        2.5,
        1j,
        True,
        None,
        ...,
        range(3),
        (1, ("a", frozenset({2}))),
        Point(1, Point("a", ())),
        len,
        forever,
        np.float32(1),
        np.dtype("f4"),
        np.dtype(("f4", (2, 3))),
        pathlib.Path("x"),
        datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
        int,
        np,
        np.float64,
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_what_cannot_change_is_shared(value):
    assert given_to_a_stream(value) is value
    assert given_to_a_stream([value])[0] is value


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.dtype([("a", "f4")]),
        lambda: np.dtype("f4", metadata={"note": []}),
        lambda: np.dtype(([("a", "f4")], 2)),
        lambda: Setting("a"),
        lambda: Point([1]),
        lambda: (1, [2]),
        lambda: frozenset({Setting("a")}),
        lambda: datetime.datetime(2000, 1, 1, tzinfo=Zone()),
        lambda: types.SimpleNamespace(a=1),
        lambda: collections.deque([1]),
        lambda: {1},
        lambda: bytearray(b"a"),
        lambda: np.zeros(2),
        lambda: read_only(np.zeros(2)),
    ],
)
def test_what_somebody_could_change_is_not_shared(make):
    value = make()
    ours = given_to_a_stream(value)
    assert ours is not value
    assert type(ours) is type(value)
    if not isinstance(value, types.SimpleNamespace | np.ndarray):
        assert repr(ours) == repr(copy.deepcopy(value))


def test_a_named_tuple_with_a_hook_has_it_called():
    assert given_to_a_stream(Hooked(1, 2)) == "hook"


def test_an_array_of_bytes_shares_them_and_one_that_owns_its_memory_is_copied():
    text = b"12345678" * 8
    fixed = np.frombuffer(text, np.int64)
    for value in (fixed, fixed[2:], fixed.reshape(2, 4).T):
        for inside in copies_of(value):
            assert inside is not value
            assert np.shares_memory(inside, fixed)
            assert not inside.flags.writeable
    for value in (
        read_only(np.arange(4)),
        read_only(np.arange(4)[:]),
        np.frombuffer(bytearray(text)),
        read_only(np.frombuffer(bytearray(text))),
        np.broadcast_to(np.arange(4), (3, 4)),
    ):
        for inside in copies_of(value):
            assert not np.shares_memory(inside, value)
            assert inside.flags.writeable


# -------------------------------------------------------------------- what copy.deepcopy does


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary() | hnp.arrays(np.int8, 3),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    )
)
def test_isolating_gives_what_a_deep_copy_gives(value):
    ours, theirs = given_to_a_stream(value), copy.deepcopy(value)
    assert repr(ours) == repr(theirs)
    assert type(ours) is type(theirs)


@given(st.lists(st.integers() | st.text() | st.floats(allow_nan=False)), st.integers(0, 10))
def test_a_copy_of_a_set_has_the_order_of_a_deep_copy(items, n):
    value = set(items)
    for item in items[:n]:
        value.discard(item)
    assert list(given_to_a_stream(value)) == list(copy.deepcopy(value))


def test_isolating_keeps_aliases_and_cycles():
    inner = [1]
    outer = [inner, (inner, {"k": inner})]
    outer.append(outer)
    result = given_to_a_stream(outer)
    assert result is not outer
    assert result[2] is result
    assert result[1][0] is result[0] is result[1][1]["k"]
    assert result[0] is not inner
    loop = ([],)
    loop[0].append(loop)
    ours = given_to_a_stream(loop)
    assert ours[0][0] is ours
    assert ours is not loop


def test_isolating_a_subclass_of_a_container_is_left_to_copy():
    class Tagged(list):
        pass

    value = Tagged([[1]])
    value.tag = "t"
    result = given_to_a_stream(value)
    assert type(result) is Tagged
    assert result.tag == "t"
    assert result[0] is not value[0]


class Counter:
    """An argument with a copy hook."""

    copies = 0

    def __deepcopy__(self, memo):
        Counter.copies += 1
        return Counter()


def test_copy_hooks_of_arguments_are_called_at_each_activation():
    before = Counter.copies
    streamer = Streamer(forever, [Counter()])
    for _ in range(3):
        next(streamer.iterate())
    assert Counter.copies == before + 3


@pytest.mark.parametrize("make", [lambda: [1], lambda: {1: 2}, lambda: np.zeros(3), lambda: {1}])
def test_what_a_hook_takes_out_while_it_is_copied_is_not_taken_for_something_new(make):
    class Clearing:
        def __deepcopy__(self, memo):
            del around[0]
            gc.collect()
            # Were the first item gone, one of these would have its place in memory.
            return [copy.deepcopy(value, memo) for value in [make() for _ in range(50)]]

    around = [make(), Clearing(), 3]
    first, copies = given_to_a_stream(around)
    assert all(value is not first for value in copies)


def test_a_list_grows_while_it_is_copied_as_under_deepcopy():
    def result_of(copied):
        class Growing:
            def __deepcopy__(self, memo):
                around.append("new")
                return 0

        around = ["a", Growing(), "b"]
        return copied(around)

    assert result_of(given_to_a_stream) == result_of(copy.deepcopy) == ["a", 0, "b", "new"]


def test_a_copy_that_fails_halfway_leaves_nothing_to_be_found():
    inside = [1, 2, (item for item in "ab")]
    iterator = iter(inside)
    ours, again = given_to_a_stream((iterator, inside))
    assert ours is iterator
    assert again[:2] == [1, 2]
    assert again[2] is inside[2]


def test_an_argument_nested_too_deep_is_an_error_not_a_crash():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        next(Streamer(forever, deep).iterate())
    while deep:
        deep = deep.pop()


def test_iterations_see_neither_each_other_nor_the_caller():
    array = np.zeros(2)
    streamer = Streamer(write_into, array, 3)
    first, second = streamer.iterate(), streamer.iterate()
    seen = [next(first), next(second), next(first), next(second)]
    array[:] = 9
    seen += [next(first), next(second)]
    assert seen == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]
    assert array.tolist() == [9, 9]
    assert list(streamer.iterate(1)) == [[9, 9]]


def test_what_arguments_share_they_share_inside_an_iteration():
    def source(a, b, boxed):
        a.append(1)
        yield a is b, boxed["a"] is a, len(b)

    values = []
    streamer = Streamer(source, values, values, {"a": values})
    assert list(streamer) == list(streamer) == [(True, True, 1)]
    assert values == []


def test_a_streamer_among_the_arguments_is_copied_with_its_arguments():
    inner = Streamer(forever, [1])
    ours = given_to_a_stream([inner, inner])
    assert ours[0] is ours[1] is not inner
    assert vars(ours[0]) == vars(inner)
    assert ours[0].args[0] is not inner.args[0]
    inner.note = "mine"
    assert given_to_a_stream(inner).note == "mine"


# ---------------------------------------------------------------------------------- iterables


def test_a_list_is_copied_and_can_change_while_it_is_iterated():
    source = [1, 2, 3]
    streamer = Streamer(source)
    first = streamer.iterate()
    assert next(first) == 1
    source.clear()
    assert list(first) == [2, 3]
    assert list(streamer) == []


def test_what_is_inside_a_list_is_copied():
    source = [[1], [2]]
    for item, original in zip(Streamer(source), source, strict=True):
        item.append(0)
        assert original == item[:1]


@pytest.mark.parametrize("leaf", [1, [1], iter, "generator"])
def test_tuples_that_share_tuples_are_looked_at_once(leaf):
    # A billion ways lead to the leaf: to go them all takes minutes.
    value = ((x for x in "a") if leaf == "generator" else leaf,)
    for _ in range(30):
        value = (value, value)
    depths = []

    def source(value):
        while isinstance(value, tuple):
            depths.append(1)
            assert value[0] is value[-1]
            value = value[0]
        yield value

    assert len(list(Streamer(source, value))) == 1
    assert len(depths) == 31


def test_a_tuple_of_immutable_items_is_shared():
    source = tuple(range(1000))
    with Streamer(source) as active:
        assert active.streamer is source
    assert list(Streamer(source)) == list(Streamer(source)) == list(source)


def test_a_range_is_iterated_each_time():
    streamer = Streamer(range(3))
    assert list(streamer) == list(streamer) == [0, 1, 2]


def test_a_dict_gives_its_keys_and_can_change_while_it_is_iterated():
    source = {"a": [1], "b": 2}
    streamer = Streamer(source)
    first = streamer.iterate()
    assert next(first) == "a"
    source["c"] = 3
    assert list(first) == ["b"]
    assert list(streamer) == ["a", "b", "c"]


def test_a_generator_object_is_shared_and_loses_nothing():
    streamer = Streamer(i for i in range(6))
    assert list(streamer.iterate(2)) == [0, 1]
    assert list(streamer.cycle(2)) == [2, 3]
    assert list(streamer) == [4, 5]
    assert list(streamer) == []


def test_a_generator_object_among_the_arguments_loses_nothing():
    def pairs(source):
        while True:
            try:
                yield [next(source), next(source)]
            except StopIteration:
                return

    streamer = Streamer(pairs, (i for i in range(8)))
    assert list(streamer.iterate(2)) == [[0, 1], [2, 3]]
    assert list(streamer) == [[4, 5], [6, 7]]


def test_a_generator_object_in_a_mux_loses_nothing():
    mux = pescador.StochasticMux([(i for i in range(20))], 1, 3, dist="constant")
    assert list(mux.iterate(5)) == [0, 1, 2, 3, 4]
    assert list(mux.cycle(5)) == [5, 6, 7, 8, 9]
    assert list(mux) == list(range(10, 20))


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_an_open_file_is_read_once(tmp_path, mode):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\nc\n")
    with open(path, mode) as lines:
        streamer = Streamer(lines)
        assert [len(line) for line in streamer.iterate(1)] == [2]
        assert [line[:1] in ("b", "c", b"b", b"c") for line in streamer] == [True, True]
        assert list(streamer) == []


@pytest.mark.parametrize("file", [io.StringIO("x\ny\n"), io.BytesIO(b"x\ny\n")])
def test_a_file_in_memory_is_copied_and_read_each_time(file):
    streamer = Streamer(file)
    assert list(streamer) == list(streamer) == list(file)


def test_an_iterator_that_can_be_copied_is_copied_and_another_is_shared():
    copied = Streamer(iter([1, 2, 3]))
    assert list(copied) == list(copied) == [1, 2, 3]
    shared = Streamer(csv.reader(["a,b", "c,d"]))
    assert list(shared.iterate(1)) == [["a", "b"]]
    assert list(shared) == [["c", "d"]]
    assert list(shared) == []


def test_an_iterator_is_copied_once_in_an_activation():
    class Items:
        copies = 0

        def __iter__(self):
            return self

        def __next__(self):
            return 1

        def __deepcopy__(self, memo):
            Items.copies += 1
            return Items()

    assert list(Streamer(Items()).iterate(2)) == [1, 1]
    assert Items.copies == 1


def test_two_arguments_that_are_one_iterator_stay_one():
    def pairs(a, b):
        yield from itertools.islice(zip(a, b, strict=False), 2)

    iterator = iter([1, 2, 3, 4])
    streamer = Streamer(pairs, iterator, iterator)
    assert list(streamer) == list(streamer) == [(1, 2), (3, 4)]


# ---------------------------------------------------------------------------- streams of streams


def batches_of(stream, by_name):
    if by_name:
        return Streamer(pescador.buffer_stream, buffer_size=2, stream=stream)
    return Streamer(pescador.buffer_stream, stream, 2)


def firsts(batches):
    return [batch["X"][:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_map_copies_only_the_arguments_of_streams_that_start(by_name):
    def source(counter):
        while True:
            yield {"X": np.zeros(1)}

    counters = [Counter() for _ in range(20)]
    mux = pescador.ChainMux([Streamer(source, counter) for counter in counters])
    batches = batches_of(mux, by_name)
    for start in (batches.iterate, pescador.ShuffledMux([batches] * 3).iterate):
        before = Counter.copies
        next(start())
        assert Counter.copies == before + 1
    assert mux.active == batches.active == 0


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("wrap", [Streamer, lambda s: pescador.ChainMux([s])])
def test_a_map_over_a_generator_object_loses_nothing(by_name, wrap):
    items = data(8, (1,))
    batches = batches_of(wrap(items), by_name)
    assert firsts(batches.iterate(1)) == [[0, 1]]
    assert firsts(pescador.ChainMux([batches]).iterate(1)) == [[2, 3]]
    assert firsts(pescador.StochasticMux([batches], 1, 1, dist="constant").iterate(1)) == [[4, 5]]
    assert firsts(batches) == [[6, 7]]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_map_over_an_activated_copy_goes_on_with_a_copy_of_it(by_name):
    with Streamer(data(6, (1,))) as active:
        next(active.stream_)
        assert firsts(batches_of(active, by_name)) == [[1, 2], [3, 4]]


def test_a_map_over_a_streamer_with_hooks_calls_them():
    class Twice(Streamer):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield {"X": 2 * item["X"]}

    assert firsts(batches_of(Twice(data, 4), False)) == [[0, 2], [4, 6]]
    assert firsts(batches_of(pescador.ChainMux([Twice(data, 4)]), True)) == [[0, 2], [4, 6]]


def test_a_map_over_a_mux_with_an_iter_of_its_own_calls_it():
    class Reversed(pescador.ChainMux):
        def __iter__(self):
            return iter(list(self.iterate())[::-1])

    assert firsts(batches_of(Reversed([data(4)]), False)) == [[3, 2], [1, 0]]


def test_maps_of_maps_start_from_one_activation():
    array = np.zeros((4, 1))

    def source(array):
        for row in array:
            yield {"X": row.copy()}
            array += 1

    pairs = Streamer(pescador.tuples, batches_of(Streamer(source, array), False), "X")
    assert [x.ravel().tolist() for (x,) in pairs] == [[0, 1], [2, 3]]
    assert [x.ravel().tolist() for (x,) in pairs] == [[0, 1], [2, 3]]
    assert not array.any()


def test_what_a_streamer_is_given_by_name_is_isolated_too():
    values = []
    streamer = Streamer(write_into, array=np.zeros(2), n=2)
    assert list(streamer) == list(streamer) == [[0, 0], [1, 1]]
    assert next(iter(Streamer(forever, value=values))) is not values


def test_a_streamer_that_fails_to_start_is_not_active():
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise RuntimeError("no")

    streamer = Streamer(forever, Uncopyable())
    with pytest.raises(RuntimeError, match="no"):
        next(streamer.iterate())
    assert streamer.active == 0
