"""The maps: arguments and errors of all, items of all but `buffer_stream` (test_batches.py)."""

import itertools
import signal
import sys

import numpy as np
import pytest

import pescador
from pescador import ArgumentError, DataError, Streamer
from streams import data


def same(a, b):
    """Whether two arrays agree in type, shape and every byte."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("bad", [3, "text", [1, 2], None, np.zeros(3), (1, 2), object()])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_item_that_is_no_data_is_named_by_type_and_position(bad, place):
    items = [{"x": np.zeros(10**6)} for _ in range(4)]
    items[place] = bad
    with pytest.raises(DataError, match=f"item {place} .*{type(bad).__name__}") as caught:
        list(pescador.buffer_stream(items, 2))
    assert len(str(caught.value)) < 200
    for stream in (pescador.tuples(items, "x"), pescador.keras_tuples(items, "x")):
        with pytest.raises(DataError, match=f"item {place} "):
            list(stream)


def test_a_missing_key_is_a_key_error():
    items = [{"x": 1, "y": 2}, {"x": 1}]
    for stream in (
        pescador.buffer_stream(items, 2),
        pescador.tuples(items, "y"),
        pescador.keras_tuples(items, "x", "y"),
    ):
        with pytest.raises(KeyError, match="y"):
            list(stream)


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", None, True])
def test_a_bad_buffer_size_is_refused(size):
    with pytest.raises(ArgumentError, match="buffer_size="):
        next(pescador.buffer_stream([{"x": 1}], size))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: pescador.buffer_stream([{"x": 1}], 1, axis="0"), "axis="),
        (lambda: pescador.buffer_stream([{"x": 1}], 1, axis=True), "axis="),
        (lambda: pescador.buffer_stream(3, 1), "stream="),
        (lambda: pescador.tuples([{"x": 1}]), "keys="),
        (lambda: pescador.keras_tuples([{"x": 1}]), "inputs="),
        (lambda: pescador.keras_tuples([{"x": 1}], inputs=3), "inputs="),
        (lambda: pescador.cache([1], 0), "n_cache="),
        (lambda: pescador.cache([1], 1, prob=0), "prob="),
        (lambda: pescador.cache([1], 1, prob=1.5), "prob="),
        (lambda: pescador.cache([1], 1, prob=float("nan")), "prob="),
        (lambda: pescador.cache([1], 1, prob="1"), "prob="),
        (lambda: pescador.cache([1], 1, random_state="x"), "random_state="),
        (lambda: pescador.cache(3, 1), "stream="),
    ],
)
def test_bad_arguments_are_refused_by_name(call, name):
    with pytest.raises(ArgumentError, match=name):
        next(call())


class Dataset:
    """A sequence by the old protocol, as datasets of torch are."""

    def __getitem__(self, i):
        if i == 4:
            raise IndexError
        return {"x": np.array(i)}


def test_batches_of_even_divisions_and_of_old_sequences_are_made():
    assert len(list(pescador.buffer_stream(Dataset(), 4 / 2))) == 2
    assert len(list(pescador.tuples(Dataset(), "x"))) == 4


class Stopping:
    def keys(self):
        return ["x"]

    def __getitem__(self, key):
        raise StopIteration


def test_an_item_that_raises_stopiteration_does_not_end_the_stream():
    for stream in (
        pescador.buffer_stream([Stopping()] * 2, 2),
        pescador.tuples([Stopping()], "x"),
        pescador.keras_tuples([Stopping()], "x"),
    ):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(stream)


def test_tuples_take_values_in_the_order_of_keys():
    items = [{"x": i, "y": -i, ("k", 1): 10 * i} for i in range(3)]
    assert list(pescador.tuples(items, "y", "x")) == [(0, 0), (-1, 1), (-2, 2)]
    assert list(pescador.tuples(items, ("k", 1))) == [(0,), (10,), (20,)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ("x", "y", (1, 2)),
        (["x"], "y", ([1], 2)),
        ("x", None, (1, None)),
        (None, ["y", "x"], (None, [2, 1])),
        (("x", "y"), "", ([1, 2], None)),
        (iter(["x", "y"]), None, ([1, 2], None)),
    ],
)
def test_keras_tuples_are_single_lists_or_none(inputs, outputs, expected):
    items = [{"x": 1, "y": 2}] * 2
    assert list(pescador.keras_tuples(items, inputs, outputs)) == [expected] * 2


def test_maps_compose_over_muxes_and_restart_in_a_streamer():
    mux = pescador.ShuffledMux([Streamer(data, 5), Streamer(data, 7)], random_state=0)
    batches = Streamer(pescador.buffer_stream, mux, buffer_size=4, partial=True)
    epoch = Streamer(pescador.tuples, Streamer(batches, max_iter=3), "X", "Y")
    first, second = list(epoch), list(epoch)
    assert len(first) == len(second) == 3
    for (x, y), (again_x, again_y) in zip(first, second, strict=True):
        assert x.shape == (4, 3)
        assert same(x, again_x)
        assert same(y, again_y)


def test_a_cache_gives_its_first_items_in_order_then_repeats_some():
    items = list(pescador.cache(range(1000), 10, prob=0.5, random_state=0))
    assert items[:10] == list(range(10))
    assert len(items) > 1000
    assert sorted(set(items)) == list(range(max(items) + 1))


def test_a_cache_with_probability_one_repeats_nothing():
    assert list(pescador.cache(range(100), 10, prob=1)) == list(range(100))


def test_a_cache_takes_any_iterable_and_any_generator_of_numbers():
    for stream in (Streamer(range(50)), list(range(50)), iter(range(50)), (i for i in range(50))):
        items = list(pescador.cache(stream, 4, random_state=np.random.default_rng(1)))
        assert items[:4] == [0, 1, 2, 3]


def test_an_endless_stream_is_cached_lazily():
    taken = list(itertools.islice(pescador.cache(itertools.count(), 5, random_state=1), 20))
    assert len(taken) == 20


@pytest.mark.parametrize("count", [2**63 - 1, 2**63, 10**30, 1e300])
def test_more_items_than_there_can_be_may_be_asked_for(count):
    [batch] = pescador.buffer_stream([{"x": i} for i in range(3)], count, partial=True)
    assert batch["x"].tolist() == [0, 1, 2]
    if isinstance(count, int):
        assert list(pescador.cache("abc", count)) == ["a", "b", "c"]


@pytest.mark.parametrize("prob", [1j, np.complex128(0.5), np.timedelta64(1, "s"), "1", None, True])
def test_a_probability_that_is_no_number_is_refused(prob):
    with pytest.raises(ArgumentError, match="prob="):
        next(pescador.cache("abc", 2, prob))


class Alarm(Exception):
    pass


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("item", [{"x": 1.0}, {"x": [1, 2]}, {}], ids=["number", "list", "nothing"])
def test_a_batch_of_items_that_run_no_python_can_be_interrupted(item):
    def on_alarm(*_):
        raise Alarm

    source = itertools.repeat(item, 100_000_000)
    before = signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
    try:
        with pytest.raises(Alarm):
            list(pescador.buffer_stream(source, 10**9))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert source.__length_hint__() > 0
