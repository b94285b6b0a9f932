"""Close calls: draws on the boundaries of cumulative sums, and sums that round awkwardly."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import load
from rigged import GRID, around, rigged

import pescador
from effort import explore
from pescador import _choice

peer = load("3.0.0")

MODES = ("with_replacement", "single_active", "exhaustive")


def label(i):
    while True:
        yield i


def both(make, n):
    """The samples of the reference and ours, for a mux made twice."""
    return [list(make(module).iterate(n)) for module in (peer, pescador)]


def streamers(module, n):
    return [module.Streamer(label, i) for i in range(n)]


def test_a_rigged_state_gives_the_draws_it_was_made_for():
    steps = np.random.default_rng(0).integers(0, 2**53, 312)
    assert (rigged(steps).random_sample(312) == steps / GRID).all()


def weights_of(kind, n, rng):
    return {
        "alike": lambda: np.ones(n),
        "mixed": lambda: rng.uniform(0, 1, n),
        "skewed": lambda: 10 ** rng.uniform(-18, 0, n),
        "sparse": lambda: rng.uniform(0, 1, n) * (rng.uniform(size=n) < 0.3) + 1e-9,
    }[kind]()


@explore(75)
@given(
    st.sampled_from(["alike", "mixed", "skewed", "sparse"]),
    st.one_of(st.integers(1, 40), st.integers(100, 1500)),
    st.integers(0, 2**32 - 1),
)
def test_a_draw_on_a_boundary_between_streams_falls_on_the_same_side(kind, n, seed):
    rng = np.random.default_rng(seed)
    weights = weights_of(kind, n, rng)
    normalised = weights / np.sum(weights)
    edges = np.cumsum(normalised / np.sum(normalised))
    state = rigged(around(edges / edges[-1], rng))

    def make(module):
        return module.ShuffledMux(streamers(module, n), weights.copy(), random_state=state)

    theirs, ours = both(make, 300)
    assert ours == theirs


@explore(75)
@given(
    st.sampled_from(MODES),
    st.sampled_from(["alike", "mixed", "skewed"]),
    st.one_of(st.integers(1, 12), st.integers(50, 700)),
    st.data(),
    st.integers(0, 2**32 - 1),
)
def test_a_draw_on_a_boundary_of_the_pool_opens_the_same_stream(mode, kind, n, data, seed):
    k = data.draw(st.integers(1, min(n, 12)))
    rng = np.random.default_rng(seed)
    # Streams are replaced after every sample, and the pool has n, n - k, n - k + 1 ... left.
    sizes = {n, max(n - k, 1), max(n - k + 1, 1), k}
    edges = np.concatenate([np.arange(1, size) / size for size in sizes if size > 1] or [[0.5]])
    state = rigged(around(edges, rng))
    weights = weights_of(kind, n, rng)

    def make(module):
        return module.StochasticMux(
            streamers(module, n), k, 1, weights.copy(), mode, dist="constant", random_state=state
        )

    before = _choice.exact_decisions()
    theirs, ours = both(make, 100)
    assert ours == theirs
    # The boundaries were close enough for the exact sums to decide.
    assert mode != "with_replacement" or n < 3 or _choice.exact_decisions() > before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dist", ["binomial", "poisson"])
def test_a_pool_of_a_hundred_thousand_streams_gives_the_same_samples(mode, dist):
    def make(module):
        shared = module.Streamer(label, 0)
        pool = [shared] * 100_000
        for i in range(0, 100_000, 1000):
            pool[i] = module.Streamer(label, i)
        return module.StochasticMux(pool, 300, 2, mode=mode, dist=dist, random_state=3)

    theirs, ours = both(make, 60)
    assert ours == theirs


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_active", [None, 2_500])
def test_an_active_set_larger_than_the_caches_gives_the_same_samples(n_active, weighted):
    n = 4_000
    weights = np.random.default_rng(0).uniform(0.1, 1, n) if weighted else None

    def make(module):
        pool = streamers(module, n)
        if n_active is None:
            return module.ShuffledMux(pool, weights=weights, random_state=3)
        return module.StochasticMux(pool, n_active, 4, weights=weights, random_state=3)

    theirs, ours = both(make, 1_500)
    assert ours == theirs


@pytest.mark.parametrize(
    "weights",
    [
        [5e-324] * 3,
        [5e-324, 1e-320, 1e-310],
        [1e-320, 1.0, 5e-324],
        [1e-308] * 7,
        [1e307] * 5,
        [1.0, 1e-17, 1e-17, 1e-17],
        [1e16, 1.0, 1.0, 1.0, 1.0],
        [0.1] * 10,
        [1.0] * 1001,
    ],
    ids=lambda weights: f"{len(weights)}x{weights[0]}",
)
def test_weights_at_the_edge_of_the_doubles_give_the_same_samples(weights):
    for make in (
        lambda module: module.ShuffledMux(
            streamers(module, len(weights)), np.array(weights), random_state=1
        ),
        lambda module: module.StochasticMux(
            streamers(module, len(weights)), 3, 4, np.array(weights), random_state=1
        ),
    ):
        theirs, ours = both(make, 300)
        assert ours == theirs


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["ShuffledMux", "StochasticMux"])
def test_weights_of_other_float_types_give_the_same_samples(name, dtype):
    weights = np.random.default_rng(0).uniform(0.1, 1, 50).astype(dtype)
    required = {"StochasticMux": {"n_active": 10, "rate": 3}}.get(name, {})
    for seed in range(5):

        def make(module, seed=seed):
            return getattr(module, name)(
                streamers(module, 50), weights=weights.copy(), random_state=seed, **required
            )

        theirs, ours = both(make, 500)
        assert ours == theirs


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox, np.random.SFC64])
def test_a_randomstate_over_any_bit_generator_gives_the_same_samples(bits):
    def make(module):
        state = np.random.RandomState(bits(5))
        return module.StochasticMux(streamers(module, 20), 5, 6, random_state=state)

    theirs, ours = both(make, 500)
    assert ours == theirs


def test_the_global_state_object_passed_by_hand_is_copied_as_any_other():
    np.random.seed(4)
    results = []
    for module in (peer, pescador):
        np.random.seed(4)
        inner = [
            module.ShuffledMux(streamers(module, 5), random_state=np.random.mtrand._rand)
            for _ in range(3)
        ]
        mux = module.ShuffledMux(inner, random_state=None)
        results.append(list(itertools.islice(mux.iterate(), 50)))
    assert results[0] == results[1]


@pytest.mark.parametrize("prob", [0.1, 0.5, 1.0])
def test_a_cache_gives_the_same_samples(prob):
    for seed in range(20):
        theirs = list(peer.maps.cache(iter(range(300)), 7, prob, random_state=seed))
        assert list(pescador.cache(range(300), 7, prob, random_state=seed)) == theirs


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 100])
@pytest.mark.parametrize("source", ["object", "global"])
def test_a_cache_draws_as_often_from_the_generator_that_it_is_given(size, source):
    results = []
    for cache in (peer.maps.cache, pescador.cache):
        np.random.seed(size)
        state = np.random.RandomState(size) if source == "object" else None
        items = list(cache(iter(range(500)), size, 0.7, random_state=state))
        results.append((items, (state or np.random).random_sample()))
    assert results[0] == results[1]


def test_weights_are_normalised_to_the_same_bits():
    # Sums are made of blocks of 8 and of 128.
    for n in (*range(1, 260), *range(260, 2000, 61)):
        for weights in (None, np.random.RandomState(n).uniform(size=n)):
            # The reference writes into what it is passed.
            theirs, ours = (
                module.ShuffledMux([[0]] * n, weights=None if weights is None else weights.copy())
                for module in (peer, pescador)
            )
            assert (ours.weights == theirs.weights).all()
            assert (ours.weights == pescador.StochasticMux([[0]] * n, 1, 1, weights).weights).all()


def swapping(i):
    """Numbers; twice on the way, the global state gets another bit generator."""
    for j in range(30):
        if j in (3, 17):
            np.random.set_bit_generator(np.random.MT19937(100 * i + j))
        yield 1000 * i + j


@pytest.mark.parametrize(
    "make",
    [
        lambda module, pool: module.ShuffledMux(pool),
        lambda module, pool: module.ShuffledMux(pool, np.arange(1.0, 5)),
        *[
            lambda module, pool, dist=dist, rate=rate: module.StochasticMux(
                pool, 2, rate, np.arange(1.0, 5), dist=dist
            )
            for dist in ("binomial", "poisson")
            for rate in (3, 40)
        ],
        lambda module, pool: module.RoundRobinMux(pool, "permuted_cycle"),
        lambda module, pool: module.cache(module.ShuffledMux(pool).iterate(), 5, 0.7),
    ],
)
@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_another_bit_generator_of_the_global_state_is_drawn_from_at_once(make, kind):
    before = np.random.get_bit_generator()
    samples = []
    try:
        for module in (peer, pescador):
            np.random.set_bit_generator(kind(5))
            mux = make(module, [module.Streamer(swapping, i) for i in range(4)])
            samples.append(list(itertools.islice(iter(mux), 200)))
    finally:
        np.random.set_bit_generator(before)
    assert samples[0] == samples[1]
