"""Whole training scripts give the same minibatches and the same fitted weights under both."""

import numpy as np
import pytest
from peers import load
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import SGDClassifier

import pescador

peer = load("3.0.0")


def noisy(X, y, scale, n):
    """Draw n samples, some with noise, from the global state that the muxes draw from, too."""
    for _ in range(n):
        i = np.random.randint(len(X))
        yield {"X": X[i] + scale * np.random.randn(X.shape[1]), "y": y[i]}


def noisy_samples(module):
    """A mixture of clean and noisy samples; everything draws from np.random."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    clean = module.Streamer(noisy, X, y, 0.0, 50)
    streams = [clean] + [module.Streamer(noisy, X, y, scale, 7) for scale in (0.5, 1.0, 2.0)]
    mux = module.StochasticMux(streams, 2, 10, weights=np.array([0.4, 0.2, 0.2, 0.2]))
    batches = module.Streamer(module.maps.buffer_stream, mux, 16)
    model = SGDClassifier(random_state=0)
    seen = []
    for x, target in module.maps.tuples(batches.iterate(40), "X", "y"):
        model.partial_fit(x, target, classes=[0, 1])
        seen.append((x, target))
    return model, seen


def shard(folder, i):
    """Give the samples of one file in random order."""
    with np.load(folder / f"{i}.npz") as data:
        X, y = data["X"], data["y"]
    for j in np.random.permutation(len(X)):
        yield {"X": X[j], "y": y[j]}


def digits_out_of_core(module, folder):
    """Files of digits, a few open at a time, in minibatches; bounded epochs, and a cache."""
    streams = [module.Streamer(shard, folder, i) for i in range(60)]
    mux = module.StochasticMux(streams, 8, 12, mode="single_active")
    inner = module.ShuffledMux([mux, module.RoundRobinMux(streams[:10], "permuted_cycle")])
    model = SGDClassifier(random_state=0)
    seen = []
    for epoch in range(3):
        stream = inner(max_iter=320)
        if epoch == 2:
            stream = module.maps.cache(stream, 50)
        for batch in module.maps.buffer_stream(stream, 32):
            model.partial_fit(batch["X"], batch["y"], classes=range(10))
            seen.append((batch["X"], batch["y"]))
    return model, seen


@pytest.fixture
def shards(tmp_path):
    X, y = load_digits(return_X_y=True)
    for i, rows in enumerate(np.array_split(np.argsort(y, kind="stable"), 60)):
        np.savez(tmp_path / f"{i}.npz", X=X[rows] / 16, y=y[rows])
    return tmp_path


def assert_same_run(run, *args):
    results = []
    for module in (peer, pescador):
        np.random.seed(0)
        model, seen = run(module, *args)
        results.append((model.coef_, model.intercept_, seen, np.random.random_sample()))
    (coef, intercept, theirs, after), (our_coef, our_intercept, ours, our_after) = results
    assert len(theirs) == len(ours) > 10
    for (x, y), (our_x, our_y) in zip(theirs, ours, strict=True):
        assert x.dtype == our_x.dtype
        assert np.array_equal(x, our_x)
        assert np.array_equal(y, our_y)
    assert np.array_equal(coef, our_coef)
    assert np.array_equal(intercept, our_intercept)
    assert after == our_after


def test_the_noisy_samples_run_is_the_same():
    assert_same_run(noisy_samples)


def test_the_out_of_core_digits_run_is_the_same(shards):
    assert_same_run(digits_out_of_core, shards)
