"""Choices are those that NumPy makes of the same draws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from pescador import _choice


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
        changes, _choice.sums_of(weights, changes, draws), strict=True
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
@examples(60)
def test_a_pool_that_changes_picks_what_numpy_picks_and_has_its_distribution(n, kind, steps, seed):
    changes, expected, p = pool_in_numpy(n, kind, steps, np.random.default_rng(seed))
    picks, distribution = _choice.pool_after(n, changes)
    assert picks == expected
    assert (distribution == p).all()
    # Without close calls, nothing is summed before the end.
    silent = [(i, on, times, []) for i, on, times, _ in changes]
    assert (_choice.pool_after(n, silent)[1] == p).all()
    # Restored, it goes on as it would have, whether or not its journal was replayed before.
    cut = seed % max(len(changes), 1)
    picks, distribution = _choice.pool_after(n, changes, restored_after=cut)
    assert picks == expected
    assert (distribution == p).all()
    assert (_choice.pool_after(n, silent, restored_after=cut)[1] == p).all()
