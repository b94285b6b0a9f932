"""The global random states: exchanged, kept apart and watched, whatever is called on them."""

import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_trees import plain

import pescador
from pescador import StateError, Streamer, _global_rng

SEQUENCE = np.random.SeedSequence(3, spawn_key=(1, 2))

# What is called on a RandomState and a Random, or on the modules, which have the same functions.
CALLS = {
    "nothing": lambda numpy, python: None,
    "rand": lambda numpy, python: numpy.rand(3).tolist(),
    "randn": lambda numpy, python: numpy.randn(),
    "normal": lambda numpy, python: numpy.normal(1, 2, 3).tolist(),
    "gamma": lambda numpy, python: numpy.gamma(0.5),
    "integers": lambda numpy, python: numpy.randint(1 << 20, size=700).tolist(),
    "bytes": lambda numpy, python: numpy.bytes(3),
    "permutation": lambda numpy, python: numpy.permutation(9).tolist(),
    "seed": lambda numpy, python: numpy.seed(7),
    "set_state": lambda numpy, python: numpy.set_state(np.random.RandomState(8).get_state()),
    "random": lambda numpy, python: python.random(),
    "gauss": lambda numpy, python: python.gauss(0, 1),
    "normalvariate": lambda numpy, python: python.normalvariate(0, 1),
    "getrandbits": lambda numpy, python: python.getrandbits(40),
    "shuffle": lambda numpy, python: python.sample(range(900), 900),
    "reseed": lambda numpy, python: python.seed(9),
    "setstate": lambda numpy, python: python.setstate(random.Random(5).getstate()),
}
# Neither draws nor seeds, or puts back what was there.
QUIET = ("nothing",)

calls = st.lists(st.sampled_from(sorted(CALLS)), max_size=6)


@pytest.fixture(params=["memory", "public functions"], autouse=True)
def exchange(request):
    """Copying memory, and what is done where the layouts are not known."""
    assert _global_rng.use_layouts(request.param == "memory") is (request.param == "memory")
    yield
    _global_rng.use_layouts()


def generators(words):
    number = int.from_bytes(words[4:].astype("<u4").tobytes(), "little")
    return np.random.RandomState(words[:4]), random.Random(number)


def run(names, numpy, python):
    return [CALLS[name](numpy, python) for name in names]


@given(st.lists(st.tuples(calls, calls), min_size=1, max_size=5))
def test_a_visit_and_its_caller_draw_as_if_they_were_alone(steps):
    ours = generators(SEQUENCE.generate_state(8))
    callers = np.random.RandomState(1), random.Random(2)
    np.random.seed(1)
    random.seed(2)
    names = []
    visit = _global_rng.runs_under(SEQUENCE, lambda: run(names, np.random, random))
    for inside, outside in steps:
        names[:] = inside
        assert next(visit) == run(inside, *ours)
        assert run(outside, np.random, random) == run(outside, *callers)
        assert plain(np.random.get_state()) == plain(callers[0].get_state())
        assert random.getstate() == callers[1].getstate()


@given(calls)
def test_visits_inside_visits_are_kept_apart(names):
    inner = _global_rng.runs_under(np.random.SeedSequence(4), lambda: run(names, np.random, random))
    outer = _global_rng.runs_under(
        SEQUENCE,
        lambda: (run(names, np.random, random), next(inner), run(names, np.random, random)),
    )
    ours = generators(SEQUENCE.generate_state(8))
    theirs = generators(np.random.SeedSequence(4).generate_state(8))
    assert next(outer) == (run(names, *ours), run(names, *theirs), run(names, *ours))


@pytest.mark.parametrize("governed", ["numpy", "random"])
def test_only_what_is_governed_is_exchanged(governed):
    np.random.seed(1)
    random.seed(1)
    visit = _global_rng.runs_under(
        SEQUENCE, lambda: (np.random.rand(), random.random()), (governed,)
    )
    numpy, python = generators(SEQUENCE.generate_state(8))
    callers = np.random.RandomState(1), random.Random(1)
    for _ in range(3):
        assert next(visit) == (
            numpy.rand() if governed == "numpy" else callers[0].rand(),
            python.random() if governed == "random" else callers[1].random(),
        )


def test_a_caller_with_another_bit_generator_keeps_it():
    before = np.random.get_bit_generator()
    mine = np.random.PCG64(3)
    np.random.set_bit_generator(mine)
    try:
        expected = np.random.RandomState(np.random.PCG64(3))
        visit = _global_rng.runs_under(SEQUENCE, lambda: np.random.standard_normal())
        numpy, _ = generators(SEQUENCE.generate_state(8))
        for _ in range(3):
            assert np.random.standard_normal() == expected.standard_normal()
            assert next(visit) == numpy.standard_normal()
            assert np.random.get_bit_generator() is mine
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("name", CALLS)
def test_whatever_moves_a_global_state_is_noticed(name):
    def source():
        while True:
            CALLS[name](np.random, random)
            yield 1

    np.random.seed([1, 2])
    random.seed(1)
    stream = Streamer(source).open()
    next(stream)
    if name in QUIET:
        stream.state_dict()
    else:
        with pytest.raises(StateError, match="global random state"):
            stream.state_dict()


def test_a_state_that_is_put_back_has_not_moved():
    def source():
        while True:
            states = np.random.get_state(), random.getstate()
            np.random.rand(700)
            random.random()
            np.random.set_state(states[0])
            random.setstate(states[1])
            yield 1

    streamer = Streamer(source)
    stream = streamer.open()
    next(stream)
    assert next(streamer.open(state=stream.state_dict())) == 1


def test_an_error_inside_leaves_the_callers_states():
    def fail():
        np.random.standard_normal()
        random.gauss(0, 1)
        raise KeyboardInterrupt

    np.random.seed(1)
    before = plain(np.random.get_state()), random.getstate()
    with pytest.raises(KeyboardInterrupt):
        next(_global_rng.runs_under(SEQUENCE, fail))
    assert (plain(np.random.get_state()), random.getstate()) == before


@pytest.mark.parametrize("name", ["getstate", "setstate"])
@pytest.mark.parametrize("call", range(2))
def test_an_interrupt_while_states_are_exchanged_leaves_the_callers(name, call, monkeypatch):
    _global_rng.use_layouts(False)
    twister = random._inst
    function, calls = getattr(twister, name), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        return function(*args)

    np.random.seed(1)
    before = plain(np.random.get_state())
    visit = _global_rng.runs_under(SEQUENCE, np.random.rand)
    monkeypatch.setattr(twister, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(visit)
    assert plain(np.random.get_state()) == before
    # Nor is the lock kept.
    done = threading.Thread(target=next, args=(_global_rng.runs_under(SEQUENCE, int),), daemon=True)
    done.start()
    done.join(60)
    assert not done.is_alive()


def test_a_mux_leaves_what_its_streams_draw_alone():
    """What is seeded does not depend on how states are exchanged."""

    def source():
        while True:
            yield np.random.randn(), random.gauss(0, 1)

    mux = pescador.ShuffledMux([Streamer(source)] * 3)
    here = list(pescador.Seeded(mux, 5).iterate(20))
    _global_rng.use_layouts()
    assert list(pescador.Seeded(mux, 5).iterate(20)) == here
