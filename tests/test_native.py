"""The compiled floor: sums, weighted selection, counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pescador import _draws

finite = st.floats(0, 1e300, allow_subnormal=True)


@given(hnp.arrays(np.float64, st.integers(0, 700), elements=finite))
def test_sums_round_as_those_of_numpy(values):
    assert _draws.sum_of(values) == np.sum(values)


@pytest.mark.parametrize("n", [7, 8, 127, 128, 129, 1000, 4096, 100_003, 1_000_000])
def test_sums_of_any_length_round_as_those_of_numpy(n):
    for seed in range(3):
        values = 10.0 ** np.random.default_rng(seed).uniform(-18, 0, n)
        assert _draws.sum_of(values) == np.sum(values)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 400),
    st.floats(0, 1),
    st.sampled_from([np.random.MT19937, np.random.PCG64]),
)
def test_binomial_counts_are_the_generators_own_draw_by_draw(seed, n, p, bits):
    for make in (np.random.RandomState, np.random.Generator):
        ours, theirs = make(bits(seed)), make(bits(seed))
        assert _draws.counts_of(ours, 20, n=n, p=p) == [
            theirs.binomial(int(n), p) for _ in range(20)
        ]
        assert ours.bytes(8) == theirs.bytes(8)


@given(st.integers(0, 2**32 - 1), st.floats(0, 30), st.sampled_from([np.random.MT19937]))
def test_poisson_counts_are_the_generators_own_draw_by_draw(seed, mean, bits):
    for make in (np.random.RandomState, np.random.Generator):
        ours, theirs = make(bits(seed)), make(bits(seed))
        assert _draws.counts_of(ours, 20, mean=mean) == [theirs.poisson(mean) for _ in range(20)]
        assert ours.bytes(8) == theirs.bytes(8)


@given(st.floats(1e-300, 1e300), st.integers(0, 3000))
def test_a_repeated_sum_rounds_as_a_loop_does(v, n):
    total = 0.0
    for _ in range(n):
        total += v
    assert _draws.repeated_sum_of(v, n) == total


@pytest.mark.parametrize("m", [3, 10, 1000, 65_536, 100_003, 1_000_000])
def test_a_long_repeated_sum_rounds_as_a_loop_does(m):
    # Around 1 / m, where all bits of a term matter, and with terms that end in half a unit.
    for v in [1 / m, np.nextafter(1 / m, 0), np.nextafter(1 / m, 1), 1 + 2**-40, 1.5 * 2**-30]:
        assert _draws.repeated_sum_of(v, m) == np.cumsum(np.full(m, v))[-1]


@pytest.mark.parametrize("later", [0, 1, 3])
def test_a_glance_at_a_draw_to_come_is_near_it(later):
    glances = np.array(_draws.glances_at(np.random.RandomState(5), 2_000, later))
    draws = np.random.RandomState(5).random_sample(2_000 + later)[later:]
    told = glances >= 0
    missed = (draws - glances)[told]
    assert missed.min() >= 0
    assert missed.max() < 2**-27
    # The generator makes new words once in 312 draws, and what will be in those is not told.
    assert told.sum() >= 2_000 - 8 * (later + 1)


def test_there_is_no_glance_into_other_generators():
    assert set(_draws.glances_at(np.random.default_rng(5), 100, 1)) == {-1.0}


@given(
    n=st.one_of(st.integers(1, 20), st.integers(100, 3000)),
    skew=st.sampled_from([0, 3, 18]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_of_weights_that_change_are_numpys_and_pick_what_numpy_picks(n, skew, seed):
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-skew, 0, n)
    changes = [(int(i), float(rng.choice([0, rng.uniform()]))) for i in rng.integers(0, n, 12)]
    edges = np.cumsum(weights) / np.sum(weights)
    draws = [*rng.uniform(size=20).tolist(), 0.0, 1 - 2**-53, *rng.choice(edges[:-1], 5 * (n > 1))]
    for (i, value), (total, picks) in zip(
        changes, _draws.sums_of(weights, changes, draws), strict=True
    ):
        weights[i] = value
        assert total == np.sum(weights)
        if total == 0:
            continue
        edges = np.cumsum(weights / total)
        expected = np.searchsorted(edges / edges[-1], draws, side="right")
        assert all(pick in (-1, slot) for pick, slot in zip(picks, expected, strict=True))
        # Rounding may decide the others; of these, one in millions.
        assert min(picks[:20]) >= 0


def pool_in_numpy(n, kind, steps, rng):
    """Changes of a pool of n, as pool_after takes them, what NumPy picks, and its distribution."""
    p = np.full(n, 1 / n)
    # Now and then nobody comes or goes for long; or never, where v forgets the past slowly.
    often = rng.choice([1, 1, 1, 2, 50], steps) if rng.integers(2) else np.ones(steps, int)
    changes, picks = [], []
    for step in range(steps):
        inside, outside = np.flatnonzero(p), np.flatnonzero(p == 0)
        on = {
            "shrinks": False,
            "swaps": True,
            "wanders": bool(rng.integers(2)),
        }[kind] and len(outside) > 0
        if len(inside) == 1 and not on:
            if len(outside) == 0 or kind == "shrinks":
                break
            on = True
        i = int(rng.choice(outside if on else inside))
        p[i] = p[inside[0]] if on else 0
        for _ in range(often[step]):
            p /= np.sum(p)
        edges = np.cumsum(p)
        edges /= edges[-1]
        m = np.count_nonzero(p)
        # Where rounding may decide; on an edge, it does.
        draws = rng.choice(edges, 2) + rng.uniform(-2, 2, 2) * (m + 8) * 2.0**-52
        if rng.integers(200) == 0:
            draws = np.append(draws, np.nextafter(rng.choice(edges), rng.choice([0, 0.5, 1], 5)))
        draws = np.clip(draws, 0, 1 - 2**-53)
        changes.append((i, on, int(often[step]), draws.tolist()))
        picks.append(np.searchsorted(edges, draws, side="right").tolist())
    return changes, picks, p


@given(
    n=st.one_of(st.integers(1, 20), st.integers(100, 1500), st.sampled_from([128, 1000, 1024])),
    kind=st.sampled_from(["shrinks", "swaps", "wanders"]),
    steps=st.sampled_from([3, 100, 600, 1600]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_pool_that_changes_picks_what_numpy_picks_and_has_its_distribution(n, kind, steps, seed):
    changes, expected, p = pool_in_numpy(n, kind, steps, np.random.default_rng(seed))
    picks, distribution = _draws.pool_after(n, changes)
    assert picks == expected
    assert (distribution == p).all()
    # Without close calls, nothing is summed before the end.
    silent = [(i, on, times, []) for i, on, times, _ in changes]
    assert (_draws.pool_after(n, silent)[1] == p).all()
