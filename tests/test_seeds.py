"""Random numbers of a seed and a key: NumPy's, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pescador
from pescador import _seeds

WORDS = st.integers(0, 2**64 - 1)
ENTROPY = (
    st.integers(0, 2**200)
    | st.lists(st.integers(0, 2**70), min_size=1, max_size=6)
    | st.just(["17", "0xffffffffff"])
)
BOUNDS = (
    st.integers(1, 10)
    | st.integers(1, 2**32 + 1)
    | st.integers(1, 2**63 - 1)
    | st.sampled_from([2**32 - 1, 2**32, 2**32 + 1, 2**31 + 1, 3 * 2**61, 2**63 - 1])
)


def in_numpy(sequence, key):
    spawn_key = (*sequence.spawn_key, *key)
    return np.random.PCG64(np.random.SeedSequence(sequence.entropy, spawn_key=spawn_key))


@given(entropy=ENTROPY, parents=st.lists(WORDS, max_size=3), key=st.lists(WORDS, min_size=1))
def test_the_state_is_that_of_numpys_pcg64_of_the_spawned_sequence(entropy, parents, key):
    sequence = np.random.SeedSequence(entropy, spawn_key=tuple(parents))
    state = in_numpy(sequence, key).state["state"]
    assert _seeds.state_of(sequence, key) == (state["state"], state["inc"])


@given(seed=WORDS, bounds=st.lists(BOUNDS, max_size=200))
def test_integers_below_any_bounds_are_those_of_numpys_generator(seed, bounds):
    sequence = np.random.SeedSequence(seed)
    generator = np.random.Generator(in_numpy(sequence, (0, 0)))
    expected = [int(generator.integers(bound)) for bound in bounds]
    assert _seeds.integers_of(sequence, (0, 0), bounds) == expected


def test_a_seed_sequence_of_another_pool_size_is_refused():
    with pytest.raises(pescador.PescadorError, match="pool_size of 4"):
        _seeds.state_of(np.random.SeedSequence(1, pool_size=8), (0,))
