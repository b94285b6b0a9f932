"""Random numbers are the generators' own, and sums are rounded as NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pescador import _rng

finite = st.floats(0, 1e300, allow_subnormal=True)


@given(hnp.arrays(np.float64, st.integers(0, 700), elements=finite))
def test_sums_round_as_those_of_numpy(values):
    assert _rng.sum_of(values) == np.sum(values)


@pytest.mark.parametrize("n", [7, 8, 127, 128, 129, 1000, 4096, 100_003, 1_000_000])
def test_sums_of_any_length_round_as_those_of_numpy(n):
    for seed in range(3):
        values = 10.0 ** np.random.default_rng(seed).uniform(-18, 0, n)
        assert _rng.sum_of(values) == np.sum(values)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 400),
    st.floats(0, 1),
    st.sampled_from([np.random.MT19937, np.random.PCG64]),
)
def test_binomial_counts_are_the_generators_own_draw_by_draw(seed, n, p, bits):
    for make in (np.random.RandomState, np.random.Generator):
        ours, theirs = make(bits(seed)), make(bits(seed))
        assert _rng.counts_of(ours, 20, n=n, p=p) == [theirs.binomial(int(n), p) for _ in range(20)]
        assert ours.bytes(8) == theirs.bytes(8)


@given(st.integers(0, 2**32 - 1), st.floats(0, 30), st.sampled_from([np.random.MT19937]))
def test_poisson_counts_are_the_generators_own_draw_by_draw(seed, mean, bits):
    for make in (np.random.RandomState, np.random.Generator):
        ours, theirs = make(bits(seed)), make(bits(seed))
        assert _rng.counts_of(ours, 20, mean=mean) == [theirs.poisson(mean) for _ in range(20)]
        assert ours.bytes(8) == theirs.bytes(8)


@given(st.floats(1e-300, 1e300), st.integers(0, 3000))
def test_a_repeated_sum_rounds_as_a_loop_does(v, n):
    total = 0.0
    for _ in range(n):
        total += v
    assert _rng.repeated_sum_of(v, n) == total


@pytest.mark.parametrize("m", [3, 10, 1000, 65_536, 100_003, 1_000_000])
def test_a_long_repeated_sum_rounds_as_a_loop_does(m):
    # Around 1 / m, where all bits of a term matter, and with terms that end in half a unit.
    for v in [1 / m, np.nextafter(1 / m, 0), np.nextafter(1 / m, 1), 1 + 2**-40, 1.5 * 2**-30]:
        assert _rng.repeated_sum_of(v, m) == np.cumsum(np.full(m, v))[-1]


@pytest.mark.parametrize("words", [0, 1])
@pytest.mark.parametrize("later", [0, 1, 3])
def test_draws_are_those_of_numpy_and_can_be_read_before(later, words):
    # A double takes two words: after one, the last of those that the generator has made is left.
    ours, numpys = np.random.RandomState(5), np.random.RandomState(5)
    for generator in (ours, numpys):
        generator.randint(1 << 32, size=words, dtype=np.uint32)
    peeks = np.array(_rng.peeks_at(ours, 2_000, later))
    draws = numpys.random_sample(2_000 + later)
    known = peeks >= 0
    assert np.array_equal(peeks[known], draws[later:][known])
    assert ours.random_sample() == (draws[2_000] if later else numpys.random_sample())
    # The generator makes new words once in 312 draws, and those are not known before.
    assert known.sum() >= 2_000 - 8 * (later + 1)


def test_draws_to_come_cannot_be_read_from_other_generators():
    assert set(_rng.peeks_at(np.random.default_rng(5), 100, 1)) == {-1.0}
