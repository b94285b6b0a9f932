"""The same seed gives the samples of the reference release, whatever the tree of muxes."""

import warnings

import numpy as np
from hypothesis import given, note
from hypothesis import strategies as st
from peers import load
from trees import HOPELESS, NeverEnds, Starts, build, legacy_trees, run, trees, watched, ways

import pescador
from effort import explore

peer = load("3.0.0")
legacy = load("2.0.0")


def assert_same(reference, tree, way, n, seed):
    results = []
    for module in (reference, pescador):
        np.random.seed(seed)
        Starts.limit = HOPELESS if module is reference else float("inf")
        try:
            mux = build(tree, module)
        except Exception as error:
            results.append(([], type(error)))
        else:
            results.append(run(way, watched(mux) if module is reference else mux, n))
    (theirs, their_failure), (ours, our_failure) = results
    note(f"reference: {theirs[:20]} {their_failure}; ours: {ours[:20]} {our_failure}")
    if their_failure is NeverEnds:
        # Ours ends or raises, after the same samples.
        assert ours[: len(theirs)] == theirs
        assert our_failure in (None, pescador.PescadorError)
    else:
        assert (their_failure is None) == (our_failure is None)
        assert ours == theirs


@explore(400)
@given(trees, ways, st.integers(2, 150), st.integers(0, 2**32 - 1))
def test_any_tree_gives_the_same_samples(tree, way, n, seed):
    assert_same(peer, tree, way, n, seed)


@explore(50)
@given(legacy_trees, ways, st.integers(2, 150), st.integers(0, 2**32 - 1))
def test_the_deprecated_mux_gives_the_samples_of_its_release(tree, way, n, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert_same(legacy, tree, way, n, seed)
