"""Which visits are made elsewhere, and which stay where their items are taken."""

import functools
import threading

import numpy as np
import pytest
from open_trees import plain

import pescador
from pescador import SPAWN, ParallelStreamer, Seeded, Streamer
from pescador.parallel.placement import Placement, length_of
from pescador.parallel.processes import ProcessKind
from pescador.parallel.threads import ThreadKind
from pescador.sources import Rows
from streams import count, data

RNG = np.random.default_rng(3)
LINES = iter(range(1000))


class Hooked(Streamer):
    def iterate(self, max_iter=None):
        yield from super().iterate(max_iter)


class Drawer:
    def __init__(self, rng):
        self.rng = rng

    def stream(self):
        while True:
            yield self.rng.integers(9)


def of_an_argument(rng):
    while True:
        yield rng.integers(9)


def of_the_last(values):
    yield from values[-1]


def of_a_dict(values):
    yield from of_an_argument(values["a"][0])


def of_bits(bits):
    yield from of_an_argument(np.random.Generator(bits))


def of_a_default(rng=RNG):
    yield from of_an_argument(rng)


def of_a_name():
    while True:
        yield RNG.integers(9)


def of_a_name_within():
    yield from (RNG.integers(9) for _ in range(100))


def helper():
    return RNG.integers(9)


def of_a_helper():
    while True:
        yield helper()


def lines_of_a_name():
    yield from LINES


def closed_over(rng):
    def source():
        while True:
            yield rng.integers(9)

    return source


def add(item, rng):
    return item + rng.integers(9)


def from_a_mux():
    mux = pescador.ShuffledMux("ab", random_state=np.random.RandomState(1))
    return Streamer(pescador.transform, mux, str)


DRAWS = "draws from a random generator that others may share"
STAYS = {
    "hook": (lambda: Hooked(count, 3), "overrides a hook"),
    "generator": (lambda: Streamer(count(9)), "generator object or an open file"),
    "generator in a list": (lambda: Streamer(of_the_last, [1, count(9)]), "generator object"),
    "iterator of a name": (lambda: Streamer(lines_of_a_name), "generator object"),
    "argument": (lambda: Streamer(of_an_argument, RNG), DRAWS),
    "keyword": (lambda: Streamer(of_an_argument, rng=RNG), DRAWS),
    "in a dict": (lambda: Streamer(of_a_dict, {"a": [RNG]}), DRAWS),
    "bit generator": (lambda: Streamer(of_bits, RNG.bit_generator), DRAWS),
    "default": (lambda: Streamer(of_a_default), DRAWS),
    "name": (lambda: Streamer(of_a_name), DRAWS),
    "name in an inner function": (lambda: Streamer(of_a_name_within), DRAWS),
    "name in a function that it calls": (lambda: Streamer(of_a_helper), DRAWS),
    "closure": (lambda: Streamer(closed_over(RNG)), DRAWS),
    "method": (lambda: Streamer(Drawer(RNG).stream), DRAWS),
    "partial": (lambda: Streamer(functools.partial(of_an_argument, RNG)), DRAWS),
    "map": (lambda: Streamer(pescador.transform, Streamer(of_a_name), str), DRAWS),
    "function of a map": (
        lambda: Streamer(pescador.transform, range(9), functools.partial(add, rng=RNG)),
        DRAWS,
    ),
    "source": (lambda: Rows({"x": np.arange(9)}, random_state=RNG), DRAWS),
    "mux under a map": (from_a_mux, DRAWS),
    "workers": (lambda: pescador.ZMQStreamer(Streamer(data, 3)), "workers of its own"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_visits_share_stays_here_and_gives_what_it_gives_without_workers(name):
    make, reason = STAYS[name]
    assert reason in Placement(ProcessKind(), ()).stays(make())

    def items(workers):
        global RNG, LINES
        RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state
        LINES = iter(range(1000))
        run = Seeded(pescador.ChainMux([make(), "abc", make()]), 1)
        tree = run if workers is None else ParallelStreamer(run, workers)
        return [plain(item) for item in tree(max_iter=40)]

    assert items(2) == items(None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Streamer(count, 3),
        lambda: Streamer("abc"),
        lambda: Streamer(closed_over(3)),
        lambda: Streamer(of_an_argument, rng=SPAWN),
        lambda: Streamer(pescador.cache, Streamer(count, 9), 3),
        lambda: Rows({"x": np.arange(9)}),
        lambda: Rows({"x": np.arange(9)}, random_state=3),
        lambda: Streamer(pescador.transform, pescador.ShuffledMux("ab", random_state=2), str),
    ],
)
def test_what_is_a_visits_own_is_made_elsewhere(make):
    assert Placement(ProcessKind(), ("numpy", "random")).stays(make()) is None


def test_in_threads_what_may_draw_from_global_states_stays():
    with_states = Placement(ThreadKind(), ("numpy", "random"))
    assert "global random states" in with_states.stays(Streamer(count, 3))
    assert with_states.stays(Streamer(of_an_argument, rng=SPAWN)) is None
    assert with_states.stays(Rows({"x": np.arange(9)})) is None
    assert Placement(ThreadKind(), ()).stays(Streamer(count, 3)) is None


def where():
    while True:
        yield threading.current_thread() is threading.main_thread(), np.random.randint(1000)


def test_a_function_that_may_draw_runs_in_the_thread_of_the_consumer():
    mux = pescador.ShuffledMux([Streamer(where)] * 3)
    run = Seeded(mux, 1)
    items = list(ParallelStreamer(run, 2, kind="thread")(max_iter=30))
    assert items == list(run(max_iter=30))
    assert {is_main for is_main, _ in items} == {True}


def test_a_stream_is_as_long_as_what_it_goes_over():
    assert length_of(Streamer("abc")) == 3
    assert length_of(Streamer(np.zeros((4, 2)))) == 4
    assert length_of(Streamer(count, 3)) is None
