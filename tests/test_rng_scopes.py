"""Random generators among the arguments of streams: which copies go on together."""

import copy
import pickle

import numpy as np
import pytest

import pescador
from pescador import Streamer
from streams import given_to_a_stream

BITS = [
    np.random.MT19937,
    np.random.PCG64,
    np.random.PCG64DXSM,
    np.random.Philox,
    np.random.SFC64,
]


def legacy(seed):
    return np.random.RandomState(seed)


def drawn(generator):
    return (
        generator.standard_normal(3).tolist(),
        generator.permutation(9).tolist(),
        generator.bytes(9),
    )


@pytest.mark.parametrize("wrap", [np.random.RandomState, np.random.Generator])
@pytest.mark.parametrize("bits", [*BITS, lambda seed: legacy(seed)._bit_generator])
@pytest.mark.parametrize("normals", [0, 1, 2, 700])
def test_a_copy_of_a_generator_goes_on_as_a_deep_copy(wrap, bits, normals):
    original = wrap(bits(3))
    original.standard_normal(normals)
    original.bytes(4)
    before = pickle.dumps(original)
    ours, theirs = given_to_a_stream(original), copy.deepcopy(original)
    assert type(ours) is wrap
    assert pickle.dumps(ours) == pickle.dumps(theirs) == before
    assert drawn(ours) == drawn(theirs)
    assert pickle.dumps(original) == before


def test_a_copy_of_a_generator_spawns_as_a_deep_copy():
    original = np.random.default_rng(3)
    original.spawn(2)
    ours, theirs = given_to_a_stream(original), copy.deepcopy(original)
    assert ours.spawn(1)[0].random() == theirs.spawn(1)[0].random()
    assert original.bit_generator.seed_seq.n_children_spawned == 2


def test_a_generator_and_its_bits_stay_together():
    state = np.random.RandomState(0)
    ours, bits = given_to_a_stream([state, state._bit_generator])
    assert ours._bit_generator is bits
    assert bits is not state._bit_generator
    assert bits.lock is not state._bit_generator.lock


def test_a_subclass_of_a_generator_is_left_to_copy():
    class Mine(np.random.RandomState):
        pass

    assert type(given_to_a_stream(Mine(0))) is type(copy.deepcopy(Mine(0)))


def test_a_mux_hands_its_streams_generators_that_go_on_together():
    def draws(state):
        while True:
            yield state.randint(1000)

    state = np.random.RandomState(0)
    mux = pescador.RoundRobinMux([Streamer(draws, state)] * 2)
    expected = np.random.RandomState(0).randint(1000, size=3).repeat(2).tolist()
    assert list(mux.iterate(6)) == list(mux.iterate(6)) == expected
