"""Rows and windows of arrays: what NumPy's indexing gives, drawn with NumPy's numbers."""

import collections
import copy
import itertools
import json
import math
import os
import pathlib
import pickle
import re
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pescador
from conftest import Classes, with_hooks
from effort import examples
from pescador import ArgumentError, DataError, Streamer, _sources
from pescador.sources import Rows, Windows

FROZEN = pathlib.Path(__file__).with_name("frozen_sources.json")


def table(n=10, start=0):
    return {"X": np.arange(start, start + 2.0 * n).reshape(n, 2), "y": np.arange(start, start + n)}


def labels(stream, max_iter=None):
    """What `table` says of the rows of a stream."""
    return [int(item["y"]) for item in stream.iterate(max_iter)]


def numbers_of(seed, path, n):
    """Row numbers as the documentation of `Rows` says that they are drawn."""
    sequence = np.random.SeedSequence(seed, spawn_key=(0, 0, *path))
    generator = np.random.Generator(np.random.PCG64(sequence))
    while True:
        yield int(generator.integers(n))


def first(iterator, n):
    return [next(iterator) for _ in range(n)]


def equal(a, b):
    """Whether two items hold the same arrays under the same keys in the same order."""
    return list(a) == list(b) and all(
        type(a[key]) is type(b[key]) is np.ndarray
        and a[key].dtype == b[key].dtype
        and a[key].shape == b[key].shape
        and a[key].tobytes() == b[key].tobytes()
        for key in a
    )


class Reader:
    """An array that is no array of NumPy's: it is read in slices, and tells how often."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.requests = 0

    def __getitem__(self, key):
        self.requests += 1
        return self.array[key].copy()


# ------------------------------------------------------------------------------------- rows


@given(
    arrays=st.integers(1, 6).flatmap(
        lambda n: st.dictionaries(
            st.sampled_from("Xyz"),
            hnp.arrays(
                hnp.scalar_dtypes() | hnp.nested_dtypes(),
                hnp.array_shapes(max_dims=3).map(lambda shape: (n, *shape[1:])),
            ),
            min_size=1,
        )
    ),
    layout=st.sampled_from(["C", "F", "reversed", "strided", "read-only"]),
)
def test_sequential_rows_are_views_of_each_row(arrays, layout):
    for key, array in arrays.items():
        if layout == "F":
            arrays[key] = np.asfortranarray(array)
        elif layout == "reversed":
            arrays[key] = array[::-1]
        elif layout == "strided":
            arrays[key] = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim > 1 else array
        elif layout == "read-only":
            array.flags.writeable = False
    items = list(Rows(arrays, order="sequential"))
    expected = [
        {key: array[i, ...] for key, array in arrays.items()}
        for i in range(len(next(iter(arrays.values()))))
    ]
    assert len(items) == len(expected)
    for item, row in zip(items, expected, strict=True):
        assert equal(item, row)
        for key, value in item.items():
            assert value.strides == row[key].strides
            assert value.flags.writeable == row[key].flags.writeable
            assert np.may_share_memory(value, arrays[key]) or not value.nbytes


def test_rows_of_files_are_arrays_of_their_own(tmp_path):
    np.savez(tmp_path / "a.npz", **table())
    for item in Rows(tmp_path / "a.npz", order="sequential"):
        for value in item.values():
            assert value.flags.owndata
            assert value.flags.writeable


@pytest.mark.parametrize("mmap", [True, False])
def test_rows_of_a_file_are_those_of_its_arrays(tmp_path, mmap):
    np.savez(tmp_path / "a.npz", **table())
    for order in ("sequential", "shuffled", "random"):
        here, there = (
            Rows(data, order=order, mmap=mmap, random_state=5)(max_iter=30)
            for data in (table(), tmp_path / "a.npz")
        )
        assert all(map(equal, here, there))
        assert next(here, None) is next(there, None) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
@pytest.mark.parametrize(
    ("shape", "options", "reads_ahead"),
    [
        ((200_000, 64), {}, False),
        ((200_000, 64), {"order": "shuffled"}, False),
        ((200_000, 64), {"order": "sequential"}, True),
        ((200_000, 64), {"length": 8}, True),
        ((2_000, 6_400), {}, True),
        ((2_000, 64), {}, True),
    ],
)
def test_only_small_rows_of_large_files_in_random_order_are_read_without_those_around_them(
    tmp_path, shape, options, reads_ahead
):
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
    os.utime(path, (1, 1))
    # What another source has said of the map is not to stay.
    other = {"order": "random"} if reads_ahead else {"order": "sequential"}
    streams = [
        Rows(path, random_state=0, **other),
        (Windows if "length" in options else Rows)(path, random_state=0, **options),
    ]
    iterators = [stream.iterate() for stream in streams]
    for iterator in iterators:
        next(iterator)
    smaps = pathlib.Path("/proc/self/smaps").read_text()
    [flags] = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?VmFlags: (.*)", smaps)
    assert ("rr" in flags.split()) is not reads_ahead


def test_keys_choose_and_order_what_an_item_has():
    assert list(next(Rows(table(), ["y", "X"]).iterate())) == ["y", "X"]
    with pytest.raises(DataError, match="'z'"):
        next(Rows(table(), ["z"]).iterate())


def test_iterations_are_true_generators_that_open_nothing_before_the_first_next(tmp_path):
    rows = Rows(tmp_path / "missing.npz")
    iteration = rows.iterate()
    assert type(iteration) is types.GeneratorType
    with pytest.raises(DataError, match=r"missing\.npz"):
        next(iteration)
    assert rows.active == 0


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("data", {"data": None}),
        ("keys", {"keys": "X"}),
        ("keys", {"keys": []}),
        ("keys", {"keys": ["X", "X"]}),
        ("keys", {"keys": [["X"]]}),
        ("order", {"order": "backwards"}),
        ("mmap", {"mmap": "yes"}),
        ("random_state", {"random_state": -1}),
        ("random_state", {"random_state": "seed"}),
    ],
)
def test_a_bad_argument_of_rows_is_refused_by_name_when_it_is_passed(argument, options):
    with pytest.raises(ArgumentError, match=argument):
        Rows(**{"data": table(), **options})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"X": np.zeros(3), "y": np.zeros(4)}, "different lengths"),
        ({"X": np.zeros(())}, "single value"),
        ({"X": np.array([{}])}, "objects"),
        ({"X": np.zeros((0, 3))}, "no rows"),
    ],
)
def test_data_that_have_no_rows_are_refused_with_their_key(data, words):
    with pytest.raises(DataError, match=words):
        next(Rows(data).iterate())


def test_what_the_caller_changes_between_visits_is_seen_by_the_next():
    data = table()
    rows = Rows(data, order="sequential")
    assert labels(rows) == list(range(10))
    data["y"] = np.arange(10) + 100
    assert labels(rows) == list(range(100, 110))
    data["X"], data["y"] = np.zeros((2, 2)), np.array([7, 8])
    assert labels(rows) == [7, 8]
    data["z"] = np.arange(2)
    assert list(next(rows.iterate())) == ["X", "y", "z"]
    rows.order = "random"
    rows.random_state = 3
    assert labels(rows, 20) == [7 + i for i in first(numbers_of(3, (), 2), 20)]


def test_a_file_that_is_replaced_is_read_anew_and_one_that_is_gone_is_an_error(tmp_path):
    path = tmp_path / "a.npz"
    rows = Rows(path, order="sequential")
    for start in (0, 100):
        np.savez(tmp_path / "b.npz", **table(10, start))
        (tmp_path / "b.npz").replace(path)
        for _ in range(3):
            assert labels(rows) == list(range(start, start + 10))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.npz"):
        next(rows.iterate())


# NumPy 2.5 warns of it.
@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_an_array_whose_shape_was_set_is_read_by_its_new_shape():
    data = {"x": np.arange(6)}
    rows = Rows(data, order="sequential")
    assert [item["x"].tolist() for item in rows] == [0, 1, 2, 3, 4, 5]
    data["x"].shape = (3, 2)
    assert [item["x"].tolist() for item in rows] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data", 3),
        ("keys", "X"),
        ("order", "any"),
        ("mmap", "no"),
        ("random_state", -1),
        ("length", 0),
        ("length", {"X": -3}),
        ("axis", "first"),
        ("hop", -1),
        ("short", "drop"),
        ("where", np.zeros((2, 2))),
    ],
)
def test_options_are_checked_when_they_were_assigned_as_when_they_were_passed(option, value):
    source = Windows({"X": np.arange(40)}, 4)
    next(source.iterate())
    setattr(source, option, value)
    mux = pescador.ShuffledMux([source], random_state=0)
    for stream in (source, mux):
        with pytest.raises(ArgumentError, match=option):
            next(stream.iterate())


def test_sources_are_copied_and_pickled_without_what_they_hold_open():
    rows = Rows(table(), order="shuffled", random_state=1)
    expected = labels(rows)
    assert labels(copy.copy(rows)) == labels(copy.deepcopy(rows)) == expected
    assert copy.deepcopy(rows).data is rows.data
    assert labels(pickle.loads(pickle.dumps(rows))) == expected


def test_a_subclass_that_overrides_a_hook_gets_it_called():
    class Doubled(Rows):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield {key: 2 * value for key, value in item.items()}

    rows = Doubled(table(), order="sequential")
    expected = [2 * i for i in range(10)]
    assert labels(rows) == expected
    mux = pescador.ChainMux([rows])
    assert labels(mux) == expected
    assert [int(b["y"][0]) for b in pescador.buffer_stream(mux, 1)] == expected


def test_a_hook_that_is_replaced_between_visits_is_called_from_then_on(monkeypatch):
    class Own(Rows):
        pass

    def twice(self, max_iter=None):
        for item in Rows.iterate(self, max_iter):
            yield {"y": 2 * item["y"]}

    rows = Own(table(3), order="sequential")
    mux = pescador.ChainMux([rows], "cycle")
    assert labels(mux, 9) == [0, 1, 2] * 3
    with monkeypatch.context() as patch:
        patch.setattr(Own, "iterate", twice)
        assert labels(mux, 3) == [0, 2, 4]
    assert labels(mux, 6) == [0, 1, 2] * 2
    rows.iterate = lambda max_iter=None: iter([{"y": 7}])
    assert labels(mux, 2) == [7, 7]
    del rows.iterate
    assert labels(mux, 6) == [0, 1, 2] * 2
    rows.__dict__["iterate"] = lambda max_iter=None: iter([{"y": 7}])
    assert labels(mux, 2) == [7, 7]


def test_a_streamer_over_rows_and_with_blocks_read_the_same():
    rows = Rows(table(), order="sequential")
    assert [int(item["y"]) for item in Streamer(rows)] == list(range(10))
    with rows as active:
        assert rows.active == 1
        assert labels(active) == list(range(10))
    assert rows.active == 0


# ------------------------------------------------------------------------------------ draws


@given(seed=st.integers(0, 2**70), n=st.integers(1, 50))
def test_seeded_rows_are_those_of_the_documented_sequence(seed, n):
    assert labels(Rows(table(n), random_state=seed), 40) == first(numbers_of(seed, (), n), 40)


def test_a_seed_sequence_seeds_as_its_entropy_and_key_do():
    parent = np.random.SeedSequence(9, spawn_key=(4,))
    sequence = np.random.SeedSequence(9, spawn_key=(4, 0, 0))
    generator = np.random.Generator(np.random.PCG64(sequence))
    expected = [int(generator.integers(10)) for _ in range(30)]
    assert labels(Rows(table(), random_state=parent), 30) == expected


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), k=st.integers(0, 30))
def test_rows_without_a_seed_are_drawn_one_by_one_from_the_global_state(seed, n, k):
    np.random.seed(seed)
    expected = [np.random.randint(n) for _ in range(k)]
    after = np.random.rand()
    np.random.seed(seed)
    assert labels(Rows(table(n)), k) == expected
    assert np.random.rand() == after


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda: np.random.RandomState(4), "randint"),
        (lambda: np.random.default_rng(4), "integers"),
        (lambda: np.random.Generator(np.random.MT19937(4)), "integers"),
    ],
)
def test_a_callers_generator_is_copied_and_drawn_from_as_by_its_own_method(make, method):
    generator = make()
    rows = Rows(table(), random_state=generator)
    draw = getattr(make(), method)
    expected = [int(draw(10)) for _ in range(40)]
    assert labels(rows, 40) == labels(rows, 40) == expected
    # In a mux, each visit goes on where the last one was.
    mux = pescador.ChainMux([pescador.ChainMux([Rounds(rows, 4)])], "cycle")
    assert labels(mux, 40) == labels(mux, 40) == expected


def Rounds(rows, n, muxes=pescador):
    """A mux that takes n rows of a visit."""
    return muxes.StochasticMux([rows], 1, n, dist="constant", mode="exhaustive")


@given(
    st.sampled_from([1, 2, 3, 7, 16, 255, 256, 257, 1000, 5000]) | st.integers(1, 3000),
    st.integers(0, 2**64 - 1),
)
def test_shuffled_order_is_the_documented_permutation(n, key):
    mask = 2**64 - 1

    def last_step(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    keys = [last_step((key + (i + 1) * 0x9E3779B97F4A7C15) & mask) for i in range(24)]
    keys = keys if n < 256 else keys[:8]
    a = math.isqrt(n - 1) + 1
    a += a % 2
    b = -(-n // a)

    def place(i):
        while True:
            left, right = divmod(i, b)
            for j in range(0, len(keys), 2):
                left = (left + (last_step(keys[j] + right & mask) // 2**32) * a // 2**32) % a
                right = (right + (last_step(keys[j + 1] + left & mask) // 2**32) * b // 2**32) % b
            i = left * b + right
            if i < n:
                return i

    found = _sources.permutation_of(n, key)
    assert sorted(found) == list(range(n))
    assert found[:50] == [place(i) for i in range(min(n, 50))]


@pytest.mark.parametrize("n", [3, 5, 6])
def test_all_permutations_are_equally_likely(n):
    each = 400
    counts = collections.Counter(
        tuple(_sources.permutation_of(n, key)) for key in range(each * math.factorial(n))
    )
    assert len(counts) == math.factorial(n)
    statistic = sum((count - each) ** 2 / each for count in counts.values())
    freedom = math.factorial(n) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("random_state", [None, 3, np.random.RandomState(3)])
def test_shuffled_rows_come_once_each_and_differ_from_visit_to_visit(random_state):
    mux = pescador.ChainMux(
        [Rows(table(100), order="shuffled", random_state=random_state)], "cycle"
    )
    np.random.seed(0)
    found = labels(mux, 300)
    visits = [found[i : i + 100] for i in (0, 100, 200)]
    assert all(sorted(visit) == list(range(100)) for visit in visits)
    assert len(set(map(tuple, visits))) == 3


# ------------------------------------------------------------------------------ seeds by path


def counted(log, i):
    """A stream of (index in the pool, number of this visit, number of the item), for ever."""

    def stream():
        visit = log[i]
        log[i] += 1
        for k in itertools.count():
            yield i, visit, k

    return stream


def pools(muxes, n):
    """The muxes that choose among n endless streams, from a list of them and a seed."""
    return st.sampled_from(
        [
            lambda streams, seed: muxes.ShuffledMux(streams, random_state=seed),
            lambda streams, seed: muxes.RoundRobinMux(streams, "permuted_cycle", seed),
            *(
                lambda streams, seed, mode=mode: muxes.StochasticMux(
                    streams, min(2, n), 3.0, mode=mode, random_state=seed
                )
                for mode in ("with_replacement", "single_active", "exhaustive")
            ),
        ]
    )


@given(data=st.data(), n=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_each_visit_draws_from_the_seed_of_its_path(data, n, seed):
    muxes = data.draw(st.sampled_from([pescador, Classes(with_hooks)]))
    make = data.draw(pools(muxes, n))
    log = collections.Counter()
    plan = list(make([Streamer(counted(log, i)) for i in range(n)], seed).iterate(60))
    rows = make([Rows(table(10), random_state=100 + i) for i in range(n)], seed)
    found = labels(rows, 60)
    assert found == labels(rows, 60)
    streams = {}
    for (i, visit, k), row in zip(plan, found, strict=True):
        numbers = streams.setdefault((i, visit), numbers_of(100 + i, (i, visit), 10))
        assert next(numbers) == row, (i, visit, k)


@pytest.mark.parametrize("inside", ["compiled", "hooks"])
def test_a_path_has_two_numbers_for_each_mux(muxes, inside):
    rows = Rows(table(), random_state=7)
    others = pescador if inside == "compiled" else Classes(with_hooks)
    inner = others.ChainMux([Streamer("ab"), Rounds(rows, 2, muxes)])
    outer = muxes.ChainMux([inner, Rounds(rows, 3, others)], "cycle")
    items = [item for item in outer.iterate(16) if not isinstance(item, str)]
    found = [int(item["y"]) for item in items]
    expected = []
    for visit in range(3):
        expected += first(numbers_of(7, (0, visit, 1, 0, 0, 0), 10), 2)
        expected += first(numbers_of(7, (1, visit, 0, 0), 10), 3)
    assert found == expected[: len(found)]
    assert len(found) >= 10


def test_a_source_inside_maps_inside_a_mux_has_the_path_of_its_place(muxes):
    rows = Rows(table(), random_state=7)
    batches = Streamer(pescador.buffer_stream, Streamer(pescador.cache, rows, 1, 1.0), 2)
    mux = muxes.StochasticMux([batches], 1, 1, dist="constant", mode="single_active")
    found = [int(y) for batch in mux.iterate(3) for y in batch["y"]]
    assert found == [y for visit in range(3) for y in first(numbers_of(7, (0, visit), 10), 2)]


def test_streams_that_a_function_makes_are_numbered_as_it_gives_them(muxes):
    def shards():
        for _ in range(3):
            yield Rounds(Rows(table(), random_state=7), 2)

    mux = muxes.ChainMux(shards, "cycle")
    expected = [
        row
        for visit in range(2)
        for i in range(3)
        for row in first(numbers_of(7, (i, visit, 0, 0), 10), 2)
    ]
    assert labels(mux, 12) == labels(mux, 12) == expected


# ---------------------------------------------------------------------------------- windows


@given(
    size=st.integers(1, 30),
    length=st.integers(1, 12),
    hop=st.integers(1, 5),
    axis=st.integers(-3, 2),
    layout=st.sampled_from("CF"),
    is_read=st.booleans(),
)
def test_sequential_windows_are_slices_at_every_hop(size, length, hop, axis, layout, is_read):
    shape = [2, 3, 4]
    shape[axis] = size
    array = np.asarray(np.arange(math.prod(shape)).reshape(shape), order=layout)
    data = {"X": Reader(array) if is_read else array}
    windows = Windows(data, length, axis=axis, hop=hop, order="sequential", short="skip")
    cut = np.moveaxis(array, axis, 0)
    expected = [np.moveaxis(cut[s : s + length], 0, axis) for s in range(0, size - length + 1, hop)]
    found = [item["X"] for item in windows]
    assert len(found) == len(expected)
    assert all(map(np.array_equal, found, expected))
    if not is_read:
        assert all(np.shares_memory(value, array) for value in found)


@given(
    n=st.integers(2, 40),
    share=st.integers(1, 4),
    length=st.integers(1, 3),
    hop=st.integers(1, 6),
    spare=st.integers(0, 3),
)
def test_windows_of_keys_at_other_rates_are_aligned(n, share, length, hop, spare):
    data = {"y": np.arange(n), "X": np.arange(n * share + min(spare, share - 1)), "z": np.arange(3)}
    windows = Windows(
        data, {"X": length * share, "y": length}, hop=hop, order="sequential", short="skip"
    )
    step = math.lcm(hop, share)
    starts = range(0, n * share - length * share + 1, step)
    items = list(windows)
    assert [int(item["X"][0]) for item in items] == list(starts)
    for start, item in zip(starts, items, strict=True):
        assert item["y"].tolist() == list(range(start // share, start // share + length))
        assert item["z"].tolist() == [0, 1, 2]


def test_windows_of_arrays_that_are_out_of_proportion_are_refused():
    with pytest.raises(DataError, match="in proportion"):
        next(Windows({"X": np.zeros(80), "y": np.zeros(11)}, {"X": 8, "y": 1}).iterate())
    with pytest.raises(DataError, match="in proportion"):
        next(Windows({"X": np.zeros(80), "y": np.zeros(81)}, 8).iterate())


def test_short_arrays_raise_are_skipped_or_padded():
    data = {"X": np.arange(1, 4)}
    with pytest.raises(DataError, match="short='skip'"):
        next(Windows(data, 5).iterate())
    assert list(Windows(data, 5, short="skip")) == []
    padded = list(Windows(data, 5, short="pad", order="sequential"))
    assert [item["X"].tolist() for item in padded] == [[1, 2, 3, 0, 0]]
    items = list(Windows(data, 5, short="pad")(max_iter=2))
    items[0]["X"][:] = 9
    assert items[1]["X"].tolist() == [1, 2, 3, 0, 0]


@given(data=st.data(), size=st.integers(3, 20), length=st.integers(1, 3), hop=st.integers(1, 3))
def test_where_says_which_starts_may_be_drawn(data, size, length, hop):
    X = np.arange(size)
    last = size - length
    mask = data.draw(hnp.arrays(bool, st.sampled_from([size, last + 1])))
    allowed = [s for s in range(last + 1) if mask[s] and s % hop == 0]
    for where in (mask, np.flatnonzero(mask[: last + 1]), mask[: last + 1].tolist()):
        for order in ("sequential", "shuffled"):
            windows = Windows(
                {"X": X}, length, hop=hop, where=where, order=order, short="skip", random_state=1
            )
            starts = [int(item["X"][0]) for item in windows]
            assert (starts if order == "sequential" else sorted(starts)) == allowed
    if allowed:
        drawn = Windows({"X": X}, length, hop=hop, where=mask, random_state=1)(max_iter=9)
        expected = [allowed[i] for i in first(numbers_of(1, (), len(allowed)), 9)]
        assert [int(item["X"][0]) for item in drawn] == expected


def test_where_may_be_a_key_that_is_stored_with_the_data(tmp_path):
    valid = np.array([False, True, False, False, True, False])
    data = {"X": np.arange(6), "valid": valid}
    np.savez(tmp_path / "a.npz", **data)
    for source in (data, tmp_path / "a.npz"):
        windows = Windows(source, 2, where="valid", order="sequential")
        assert [list(item) for item in windows] == [["X"], ["X"]]
        assert [item["X"].tolist() for item in windows] == [[1, 2], [4, 5]]
        windows.keys = ["valid", "X"]
        assert list(next(windows.iterate())) == ["valid", "X"]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("nothing to draw from", {"where": np.zeros(10, bool)}),
        ("start 8", {"where": [0, 8]}),
        ("start -1", {"where": [-1]}),
        ("5 entries", {"where": np.ones(5, bool)}),
        ("no axis 3", {"axis": 3}),
        ("'z'", {"length": {"z": 3}}),
        ("'z'", {"axis": {"z": 0}}),
        ("'z'", {"where": "z"}),
        ("must be a vector", {"where": "X"}),
        ("in common", {"length": {"X": 1}, "axis": {"y": 0}}),
    ],
)
def test_windows_that_the_data_cannot_give_are_refused(words, options):
    with pytest.raises(DataError, match=words):
        next(Windows(**{"data": table(), "length": 3, **options}).iterate())


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("length", {"length": 0}),
        ("length", {"length": {}}),
        (r"length\['X'\]", {"length": {"X": 1.5}}),
        ("axis", {"axis": None}),
        ("axis", {"axis": {}}),
        ("hop", {"hop": 0}),
        ("short", {"short": "no"}),
        ("where", {"where": [[1]]}),
        ("where", {"where": {}}),
    ],
)
def test_a_bad_argument_of_windows_is_refused_by_name_when_it_is_passed(argument, options):
    with pytest.raises(ArgumentError, match=argument):
        Windows(**{"data": table(), "length": 3, **options})


# --------------------------------------------------------------- stores that are read in blocks


@pytest.mark.parametrize("order", ["random", "shuffled", "sequential"])
@pytest.mark.parametrize("max_iter", [None, 3, 16, 5000])
def test_rows_that_are_read_in_blocks_are_the_same_rows(order, max_iter):
    n = 6000
    memory = {"X": np.arange(n * 2).reshape(n, 2), "y": np.arange(n)}
    reader = {"X": Reader(memory["X"]), "y": memory["y"]}
    for seed in (None, 3):
        found = []
        for data in (memory, reader):
            np.random.seed(1)
            stream = Rows(data, order=order, random_state=seed)
            found.append(first(stream.iterate(max_iter), min(max_iter or 5000, 5000)))
        assert all(map(equal, *found))


def test_items_that_are_read_in_blocks_share_no_memory():
    data = {"X": Reader(np.arange(12).reshape(6, 2))}
    for stream in (Rows(data, random_state=1), Windows(data, 2, random_state=1)):
        expected = [item["X"].tolist() for item in stream(max_iter=30)]
        found = []
        for item in stream(max_iter=30):
            found.append(item["X"].tolist())
            item["X"][:] = -1
        assert found == expected


def test_a_visit_with_a_bound_reads_no_more_rows_than_it_gives():
    reader = Reader(np.arange(10**4).reshape(1000, 10))
    mux = pescador.StochasticMux([Rows({"X": reader}, order="sequential")], 1, 16, dist="constant")
    first(mux.iterate(), 16)
    assert reader.requests == 1


# ----------------------------------------------------------------------- straight into batches


def generated(n):
    for i in range(n):
        yield {"X": np.full(2, i, np.float64), "y": np.array(-i)}


def odd(kind):
    """Items that do not fit those of `table`."""
    for i in range(6):
        if kind == "dtype":
            yield {"X": np.full(2, i, np.float32), "y": np.array(-i)}
        elif kind == "shape":
            yield {"X": np.full(3, i, np.float64), "y": np.array(-i)}
        elif kind == "order":
            yield {"y": np.array(-i), "X": np.full(2, i, np.float64)}
        elif kind == "extra":
            yield {"X": np.full(2, i, np.float64), "y": np.array(-i), "z": 1}
        else:
            yield {"X": np.full(2, i, np.float64)}


def other_tables():
    n = st.integers(1, 7)
    return st.one_of(
        n.map(lambda n: table(n)),
        n.map(lambda n: {"y": np.arange(n), "X": np.ones((n, 2))}),
        n.map(lambda n: {**table(n), "z": np.zeros(n)}),
        n.map(lambda n: {"X": np.ones((n, 2), np.float32), "y": np.arange(n)}),
        n.map(lambda n: {"X": np.ones((n, 2), ">f8"), "y": np.arange(n)}),
        n.map(lambda n: {"X": np.asfortranarray(np.ones((n, 2))), "y": np.arange(n)}),
        n.map(lambda n: {"X": np.ones((n, 4))[::-1, ::2], "y": np.arange(2 * n)[::2]}),
        n.map(lambda n: {"X": Reader(np.ones((n, 2))), "y": np.arange(n)}),
        n.map(lambda n: {"X": np.ones((n, 3)), "y": np.arange(n)}),
        n.map(lambda n: {"X": np.ones((n, 2))}),
    )


SHARED = np.random.default_rng(8)
SEEDS = st.none() | st.integers(0, 5) | st.just(SHARED)
ORDERS = st.sampled_from(["random", "shuffled", "sequential"])
SOURCES = st.one_of(
    st.builds(lambda d, o, s: Rows(d, order=o, random_state=s), other_tables(), ORDERS, SEEDS),
    st.builds(
        lambda order, seed, axis, where, short: Windows(
            {"X": np.arange(24.0).reshape(4, 6), "y": np.arange(36).reshape(6, 6)},
            2 if short == "raise" else 7,
            axis={"X": axis},
            order=order,
            where=where,
            short=short,
            random_state=seed,
        ),
        ORDERS,
        SEEDS,
        st.sampled_from([0, 1]),
        st.sampled_from([None, [0], [0, 2]]),
        st.sampled_from(["raise", "raise", "skip", "pad"]),
    ),
)
PLAIN = st.one_of(
    st.integers(0, 5).map(lambda n: Streamer(generated, n)),
    st.sampled_from(["dtype", "shape", "order", "extra", "missing"]).map(
        lambda kind: Streamer(odd, kind)
    ),
)


def muxes_over(children):
    pool = st.lists(children, min_size=1, max_size=4)

    def stochastic(streams, mode, rate, seed, hooks):
        cls = with_hooks(pescador.StochasticMux) if hooks else pescador.StochasticMux
        return cls(streams, min(2, len(streams)), rate, mode=mode, random_state=seed)

    return st.one_of(
        st.builds(
            stochastic,
            pool,
            st.sampled_from(["with_replacement", "single_active", "exhaustive"]),
            st.sampled_from([None, 3.0]),
            SEEDS,
            st.sampled_from([False, False, False, True]),
        ),
        st.builds(lambda p, s: pescador.ShuffledMux(p, random_state=s), pool, SEEDS),
        st.builds(
            lambda p, m, s: pescador.RoundRobinMux(p, m, s),
            pool,
            st.sampled_from(["exhaustive", "permuted_cycle"]),
            SEEDS,
        ),
        st.builds(pescador.ChainMux, pool, st.sampled_from(["exhaustive", "cycle"])),
        st.builds(lambda child: Streamer(pescador.cache, child, 2, 0.5, 3), children),
    )


TREES = st.recursive(SOURCES | PLAIN, muxes_over, max_leaves=8)


def behind_a_generator(stream):
    yield from stream.iterate()


@examples(150)
@given(
    tree=TREES,
    size=st.integers(1, 5),
    axis=st.sampled_from([None, None, 0, 1]),
    partial=st.booleans(),
    allocates=st.booleans(),
)
def test_batches_are_the_same_whether_rows_are_copied_straight_or_given_as_items(
    tree, size, axis, partial, allocates
):
    def outcome(stream):
        np.random.seed(5)
        batches = []
        allocator = (lambda shape, dtype: np.zeros(shape, dtype)) if allocates else None
        try:
            for batch in pescador.buffer_stream(stream, size, partial, axis, allocator=allocator):
                batches.append(batch)
                if len(batches) == 12:
                    break
        except Exception as error:
            return batches, type(error), str(error)
        return batches, None, None

    straight, *error = outcome(tree)
    usual, *usual_error = outcome(behind_a_generator(tree))
    if error != usual_error:
        # Where items of a source cannot be joined, it is told at once, and by name.
        assert error[0] is DataError
        assert "has no key" in error[1] or "has items of shape" in error[1]
        assert usual_error[0] in (KeyError, ValueError, None)
        assert partial <= (usual_error[0] is not None)
    else:
        assert len(straight) == len(usual)
    assert all(map(equal, straight, usual))


def test_a_batch_that_outgrows_its_first_room_is_what_indexing_gives():
    X = np.random.default_rng(0).random((5, 2**14))
    rows = Rows({"X": X, "y": np.arange(5)}, order="sequential")
    own = Streamer([{"X": X[i], "y": np.int64(i)} for i in (4, 0)])
    stream = pescador.ChainMux([rows, rows, own, rows], mode="cycle")
    batch = next(pescador.buffer_stream(stream, 30))
    order = [*range(5), *range(5), 4, 0, *range(5)] * 2
    assert equal(batch, {"X": X[order[:30]], "y": np.array(order[:30])})


def test_a_batch_that_no_memory_could_hold_is_refused_at_its_first_row(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros((3, 5)), y=np.zeros(3))
    many = pescador.batches(tmp_path / "a.npz", 10**12)
    with pytest.raises(
        ArgumentError, match=r"1,000,000,000,000 samples \(batch_size .* 48 for each"
    ):
        next(many.iterate())
    rows = Rows(tmp_path / "a.npz", order="sequential")
    [batch] = pescador.buffer_stream(rows, 10**12, partial=True)
    assert batch["X"].shape == (3, 5)


def test_sources_that_cut_one_file_differently_are_each_kept_ready(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", X=np.arange(20))
    os.utime(tmp_path / "a.npz", (1, 1))
    opened = []
    cut = Windows._cut
    monkeypatch.setattr(Windows, "_cut", lambda self, it: opened.append(self) or cut(self, it))
    streams = [Windows(tmp_path / "a.npz", n, order="sequential", hop=n) for n in (2, 5)]
    for _ in range(3):
        assert [len(list(stream.iterate())) for stream in streams] == [10, 4]
    assert opened == streams


def test_batches_that_share_a_source_are_planned_apart():
    X = np.arange(12.0).reshape(6, 2)
    source = Rows({"X": X}, order="sequential")
    single = Streamer([{"X": X[0].astype(np.float32)}])
    own = pescador.buffer_stream(pescador.ChainMux([source]), 2)
    mixed = pescador.buffer_stream(pescador.ChainMux([single, source]), 3)
    joined = pescador.buffer_stream(pescador.ChainMux([source]), 2, axis=0)
    for i in range(2):
        assert equal(next(own), {"X": X[2 * i : 2 * i + 2]})
        assert equal(next(joined), {"X": X[2 * i : 2 * i + 2].ravel()})
        assert equal(next(mixed), {"X": X[[[0, 0, 1], [2, 3, 4]][i]]})


@pytest.mark.parametrize(
    ("other", "axis", "words"),
    [
        ({"X": np.ones((4, 2))}, None, "has no key 'y'"),
        (
            {"X": np.ones((4, 3)), "y": np.ones(4)},
            None,
            r"shape \(3,\) of key 'X', the batch of \(2,",
        ),
        ({"X": np.ones((4, 2)), "y": np.ones((4, 1))}, None, r"shape \(1,\) of key 'y'"),
        ({"X": np.ones((4, 2, 5)), "y": np.ones((4, 1))}, 0, r"shape \(2, 5\) .* axis than 0"),
    ],
)
def test_files_that_cannot_share_a_batch_are_named(tmp_path, other, axis, words):
    y = np.ones(4) if axis is None else np.ones((4, 1))
    np.savez(tmp_path / "a.npz", X=np.ones((4, 2)), y=y)
    np.savez(tmp_path / "b.npz", **other)
    streams = [Rows(tmp_path / name, random_state=0) for name in ("a.npz", "b.npz")]
    batches = pescador.buffer_stream(pescador.RoundRobinMux(streams, "cycle"), 2, axis=axis)
    with pytest.raises(DataError, match=rf"b\.npz.*{words}.*a\.npz.*describe"):
        next(batches)


def test_batches_of_rows_are_what_indexing_gives(tmp_path):
    np.savez(tmp_path / "a.npz", **table(50))
    sources = [Rows(table(50), random_state=1), Rows(tmp_path / "a.npz", random_state=1)]
    for source in sources:
        batches = first(pescador.buffer_stream(source, 8), 20)
        rows = np.array(first(numbers_of(1, (), 50), 160)).reshape(20, 8)
        for batch, indices in zip(batches, rows, strict=True):
            assert equal(batch, {key: array[indices] for key, array in table(50).items()})


# ------------------------------------------------------------------------------------ frozen


CONFIGURATIONS = {
    "random": lambda: Rows(table(1000), random_state=20),
    "shuffled, few": lambda: Rows(table(100), order="shuffled", random_state=20),
    "shuffled, many": lambda: Rows(table(1000), order="shuffled", random_state=20),
    "windows": lambda: Windows(table(1000), 7, hop=3, random_state=20),
    "mux": lambda: pescador.StochasticMux(
        [
            Rows(table(1000, 1000 * i), random_state=20 + i, order=("random", "shuffled")[i % 2])
            for i in range(6)
        ],
        3,
        4,
        random_state=20,
    ),
    "tree": lambda: pescador.ShuffledMux(
        [
            pescador.StochasticMux([Rows(table(1000), random_state=20)] * 2, 1, 4, random_state=i)
            for i in range(3)
        ],
        random_state=20,
    ),
}


def sequence(name):
    return [int(np.ravel(item["y"])[0]) for item in CONFIGURATIONS[name]().iterate(80)]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_frozen_sequence_of_a_source_has_not_changed(name):
    assert sequence(name) == json.loads(FROZEN.read_text())[name]


if __name__ == "__main__":
    FROZEN.write_text(
        json.dumps({name: sequence(name) for name in CONFIGURATIONS}, indent=None) + "\n"
    )
