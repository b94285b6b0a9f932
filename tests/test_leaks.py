"""Ten thousand streams iterated, abandoned, closed and failed leave nothing behind."""

import gc
import itertools
import sys
import tracemalloc

import numpy as np
import pytest

import pescador
from pescador import Streamer
from pescador.sources import Rows, Windows
from streams import Failure, count, data, failing, forever, nothing

ONES = np.ones(3, np.float32)
# A batch of its own, and worth a snapshot.
LARGE = np.ones(2**20, np.uint8)
# To seed one takes longer than all else that is done here.
STATE = np.random.RandomState(0)


def iterate_to_the_end():
    mux = pescador.StochasticMux(
        [Streamer(count, 2), Streamer(nothing), Streamer([1])], 2, None, mode="exhaustive"
    )
    assert len(list(mux)) == 3


def abandon():
    inner = pescador.ShuffledMux([Streamer(forever, [0]), Streamer(forever, {})])
    next(pescador.RoundRobinMux([inner, "ab"], "cycle").iterate())


def close():
    iteration = pescador.StochasticMux([Streamer(count, 9)] * 3, 2, 4).iterate(100)
    for _ in range(10):
        next(iteration)
    iteration.close()


def fail():
    with pytest.raises(Failure):
        list(pescador.ChainMux([Streamer(count, 1), Streamer(failing, 1)]))


def refuse():
    for bad in ("weights", "random_state"):
        with pytest.raises(pescador.PescadorError):
            pescador.ShuffledMux("abc", **{bad: "no"})


def batch():
    stream = pescador.buffer_stream(Streamer(data, 5), 2, partial=True)
    assert len(list(pescador.tuples(stream, "X"))) == 3
    with pytest.raises(pescador.DataError):
        list(pescador.buffer_stream([{"x": 1}, 2], 2))


def batch_what_does_not_fit():
    column = np.ones((3, 1))[:, 0]
    items = [{"x": ONES, "y": 1.0}, {"x": column, "y": 2}, {"x": ONES, "y": "a"}]
    [batch] = pescador.buffer_stream(items, 3)
    assert batch["y"].dtype == "U32"
    [batch] = pescador.buffer_stream([{"x": ONES}, {"x": ONES[1:]}], 2, axis=0, allocator=np.empty)
    assert batch["x"].shape == (5,)
    with pytest.raises(ValueError, match="inhomogeneous"):
        list(pescador.buffer_stream([{"x": ONES}, {"x": ONES[1:]}], 2))


def batch_in_memory_that_serves_again():
    for batch in pescador.buffer_stream([{"x": LARGE}] * 3, 1):
        assert batch["x"].base is not None


def look_inside():
    with pescador.StochasticMux(["abc", "de"], 2, 4) as active:
        next(active.iterate())
        assert len(active.streams_) == len(active.stream_counts_) == 2


def fill_the_cache():
    assert len(list(pescador.cache(Streamer(count, 8), 3, random_state=STATE))) >= 8


KINDS = [[1], {"a": {2}}, bytearray(3), np.zeros(3), np.random.RandomState(0), iter([1, 2])]


def share_a_large_array():
    mux = pescador.RoundRobinMux([Streamer(forever, LARGE)] * 3)
    for array in mux.iterate(3):
        # So that memory is given back in another way than it came.
        array.resize(9, refcheck=False)


def start_from_all_kinds():
    next(Streamer(forever, KINDS).iterate())
    next(pescador.ChainMux([Streamer(KINDS)]).iterate())


def map_a_mux():
    mux = pescador.ChainMux([Streamer(data, 3), Streamer(data, 3)])
    stream = Streamer(pescador.buffer_stream, mux, 2)
    assert len(list(stream)) == len(list(pescador.ChainMux([stream]))) == 3


def draw_from_sources():
    data = {"x": np.ones((4, 3), np.float32), "y": np.arange(4)}
    sources = [
        Rows(data, random_state=1),
        Rows(data, order="shuffled", random_state=STATE),
    ]
    mux = pescador.StochasticMux(sources, 2, 3, random_state=STATE)
    next(mux.iterate())
    next(pescador.buffer_stream(mux, 20))
    windows = Windows(data, {"x": 2, "y": 2}, where=[0, 1], order="sequential")
    assert len(list(pescador.buffer_stream(windows, 1, axis=0))) == 2
    with pytest.raises(pescador.DataError):
        next(Rows(data, ["z"]).iterate())


ACTIONS = [
    draw_from_sources,
    iterate_to_the_end,
    abandon,
    close,
    fail,
    refuse,
    batch,
    batch_what_does_not_fit,
    batch_in_memory_that_serves_again,
    look_inside,
    fill_the_cache,
    start_from_all_kinds,
    map_a_mux,
]


def in_use():
    gc.collect()
    return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_nothing_grows(action):
    windows = 5
    rounds = 250
    tracemalloc.start()
    try:
        for _ in range(100):
            action()
        measured = [in_use()]
        for _ in range(windows):
            for _ in range(rounds):
                action()
            measured.append(in_use())
    finally:
        tracemalloc.stop()
    # A leak grows in every window; NumPy's caches of small blocks grow in some, up to their size.
    blocks, traced = (
        min(after - before for before, after in itertools.pairwise(of_one_kind))
        for of_one_kind in zip(*measured, strict=True)
    )
    assert blocks < rounds / 2
    assert traced < 10 * rounds
