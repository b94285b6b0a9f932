"""Helpers."""

import warnings

import numpy as np
import pytest

from pescador import ArgumentError, PescadorError, util


def test_get_rng_takes_seeds_generators_and_none():
    state = np.random.RandomState(1)
    generator = np.random.default_rng(1)
    bits = np.random.PCG64(5)
    assert util.get_rng(None) is np.random
    assert util.get_rng(state) is state
    assert util.get_rng(generator) is generator
    for seed in (7, np.int64(7), np.uint8(7)):
        assert util.get_rng(seed).randint(1000) == np.random.RandomState(7).randint(1000)
    assert util.get_rng(bits).bit_generator is bits
    sequence = np.random.SeedSequence(3)
    assert util.get_rng(sequence).random() == np.random.default_rng(3).random()


@pytest.mark.parametrize("state", ["0", 1.0, [1], -1, 2**32, object(), np.float64(1)])
def test_get_rng_refuses_what_is_no_seed(state):
    with pytest.raises(ArgumentError, match="random_state="):
        util.get_rng(state)


def test_a_bad_argument_is_a_value_error_too():
    for kind in (PescadorError, ValueError):
        with pytest.raises(kind, match="random_state="):
            util.get_rng("seed")


def test_batch_length_is_the_common_length():
    assert util.batch_length({"x": [1, 2], "y": np.zeros((2, 3))}) == 2
    assert util.batch_length({}) is None
    with pytest.raises(ArgumentError, match="'y': 3"):
        util.batch_length({"x": [1, 2], "y": [1, 2, 3]})


def test_a_renamed_keyword_warns_where_it_was_used():
    unused = util.Deprecated()

    def function(new=1, old=unused):
        return util.rename_kw("old", old, "new", new, "1.0", "2.0")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(new=2) == 2
    with pytest.warns(DeprecationWarning, match=r"function\(\).*'old'.*'new'.*2\.0") as caught:
        assert function(old=3) == 3
    assert caught[0].filename == __file__
    assert repr(util.Deprecated()) == "<DEPRECATED parameter>"


def test_moved_and_deprecated_functions_warn_and_work():
    @util.moved("old.place", "1.0", "2.0")
    def one():
        """One."""
        return 1

    @util.deprecated("1.0", "2.0")
    def two():
        return 2

    with pytest.warns(DeprecationWarning, match=r"old\.place"):
        assert one() == 1
    with pytest.warns(DeprecationWarning, match=r"two.* 2\.0"):
        assert two() == 2
    assert one.__doc__ == "One."
