"""What is sampled is not only reproducible, but distributed as the documentation says.

Seeds are fixed, so no test fails by chance. Each test also shows that it would notice: the same
statistic rejects a neighbouring hypothesis.
"""

import collections

import numpy as np
import pytest
from scipy import stats

import pescador
from streams import forever

# A peer-compatible generator and two new ones.
GENERATORS = [
    pytest.param(lambda: 11, id="RandomState"),
    pytest.param(lambda: np.random.default_rng(11), id="Generator"),
    pytest.param(lambda: np.random.Philox(11), id="BitGenerator"),
]

SURE = 1e-4  # a p-value above this is no surprise
NEVER = 1e-9  # one below this is


def numbered(n):
    return [pescador.Streamer(forever, i) for i in range(n)]


def lifetimes(mux, n_samples, slots):
    """How many samples the mux gives from one replacement of a slot to the next, for all slots."""
    lives = []
    with mux as active:
        since = [None] * slots
        counts = active.stream_counts_
        before = counts.copy()
        for t, _ in enumerate(active.iterate(n_samples)):
            # A count that did not grow by one where it changed was set back: a new stream.
            for slot in np.flatnonzero(counts < before):
                if since[slot] is not None:
                    lives.append(t - since[slot])
                since[slot] = t
            # A stream that was replaced and sampled at once shows the count 1.
            before = counts.copy()
    return np.array(lives)


@pytest.mark.parametrize("seed", GENERATORS)
def test_a_shuffled_mux_gives_each_stream_its_share(seed):
    weights = np.array([5, 3, 1, 0.5, 0.5])
    samples = collections.Counter(
        pescador.ShuffledMux(numbered(5), weights, random_state=seed()).iterate(20_000)
    )
    observed = [samples[i] for i in range(5)]
    assert stats.chisquare(observed, 20_000 * weights / weights.sum()).pvalue > SURE
    # Shares that are off by a tenth would show.
    other = weights * [1.1, 1, 0.9, 1, 1]
    assert stats.chisquare(observed, 20_000 * other / other.sum()).pvalue < NEVER


@pytest.mark.parametrize("seed", GENERATORS)
def test_a_stochastic_mux_gives_weights_their_share_within_the_active_set(seed):
    weights = np.array([4, 2, 1, 1])
    mux = pescador.StochasticMux(
        numbered(4), 4, None, weights, mode="single_active", random_state=seed()
    )
    samples = collections.Counter(mux.iterate(20_000))
    observed = [samples[i] for i in range(4)]
    assert stats.chisquare(observed, 20_000 * weights / 8).pvalue > SURE
    assert stats.chisquare(observed, np.full(4, 5000.0)).pvalue < NEVER


@pytest.mark.parametrize("seed", GENERATORS)
@pytest.mark.parametrize("mode", ["with_replacement", "single_active"])
def test_streams_are_opened_uniformly_whatever_their_weights(seed, mode):
    opened = collections.Counter()

    def source(i):
        opened[i] += 1
        while True:
            yield i

    weights = np.linspace(1, 3, 12)
    mux = pescador.StochasticMux(
        [pescador.Streamer(source, i) for i in range(12)],
        2,
        1,
        weights,
        mode,
        dist="constant",
        random_state=seed(),
    )
    list(mux.iterate(6000))
    observed = [opened[i] for i in range(12)]
    assert stats.chisquare(observed).pvalue > SURE
    by_weight = sum(observed) * weights / weights.sum()
    assert stats.chisquare(observed, by_weight).pvalue < NEVER


def counts_per_activation(dist, rate, k, seed, n=4000):
    """The samples of each of n streams that are opened once."""
    mux = pescador.StochasticMux(
        numbered(n), k, rate, mode="exhaustive", dist=dist, random_state=seed
    )
    samples = collections.Counter(mux)
    return np.array([samples[i] for i in range(n)])


THEORY = {
    "constant": lambda rate, k: stats.randint(rate, rate + 1),
    "poisson": lambda rate, k: stats.poisson(rate - 1, loc=1),
    "binomial": lambda rate, k: stats.binom(int((rate - 1) / (1 - 1 / k)), 1 - 1 / k, loc=1),
}


@pytest.mark.parametrize("seed", GENERATORS)
@pytest.mark.parametrize("dist", THEORY)
@pytest.mark.parametrize(("rate", "k"), [(8, 2), (8, 16), (33, 5)])
def test_the_number_of_samples_of_a_stream_has_its_distribution(seed, dist, rate, k):
    counts = counts_per_activation(dist, rate, k, seed())
    theory = THEORY[dist](rate, k)
    n = len(counts)
    assert counts.min() >= 1
    if dist == "constant":
        assert (counts == rate).all()
        return
    values, observed = np.unique(counts, return_counts=True)
    expected = n * theory.pmf(values)
    usual = expected >= 5
    observed = np.append(observed[usual], n - observed[usual].sum())
    expected = np.append(expected[usual], n - expected[usual].sum())
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > SURE
    # An eighth of a sample more or less on average would show.
    error = np.sqrt(theory.var() / n)
    assert abs(counts.mean() - theory.mean()) < 4.5 * error
    assert error < 0.12


def simulate_lives(dist, rate, k, n, rng):
    """How long a slot keeps its stream, in samples of the mux, drawn from the definition.

    Each sample comes from the slot with probability 1 / k; after the last of its count, the slot
    is found exhausted when it is chosen again, before the sample that then comes instead.
    """
    counts = THEORY[dist](rate, k).rvs(n, random_state=rng)
    return counts + rng.negative_binomial(counts + 1, 1 / k)


@pytest.mark.parametrize("seed", GENERATORS)
@pytest.mark.parametrize("dist", THEORY)
def test_a_stream_is_kept_for_as_long_as_theory_says(seed, dist):
    # With this rate, no part of a sample is lost where the binomial's n is rounded down.
    rate, k = 13, 4
    rng = np.random.default_rng(3)
    mux = pescador.StochasticMux(numbered(3), k, rate, dist=dist, random_state=seed())
    lives = lifetimes(mux, 40_000, k)
    reference = simulate_lives(dist, rate, k, 20_000, rng)
    # Slots take turns by chance, so the mean is a full count of samples from each.
    assert abs(lives.mean() - rate * k) < 4.5 * lives.std() / np.sqrt(len(lives))
    assert lives.std() == pytest.approx(reference.std(), rel=0.1)
    # A mux that kept streams for one sample more would show.
    assert abs(lives.mean() - (rate + 1) * k) > 4.5 * lives.std() / np.sqrt(len(lives))


@pytest.mark.parametrize("seed", GENERATORS)
def test_a_permuted_cycle_gives_all_orders_alike(seed):
    mux = pescador.RoundRobinMux([[i] for i in range(3)], "permuted_cycle", random_state=seed())
    samples = list(mux.iterate(3 * 6001))[3:]
    orders = collections.Counter(zip(*[iter(samples)] * 3, strict=True))
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > SURE
