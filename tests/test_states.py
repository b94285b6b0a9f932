"""The state of any tree: restored, here or in another process, it gives what was to come."""

import copy
import os
import pathlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import trees
from hypothesis import assume, given
from hypothesis import strategies as st
from open_trees import Trouble, build, plain, read, to_open

import pescador
from effort import explore
from streams import Failure

places = st.lists(st.floats(0, 1), min_size=1, max_size=3)
descriptions = {
    "outside Seeded": to_open(draws=False),
    "under Seeded": to_open(draws=True),
}


@pytest.fixture(autouse=True)
def no_limit_no_trouble():
    trees.Starts.limit = float("inf")
    Trouble.left = None
    yield
    Trouble.left = None


def seed(number):
    np.random.seed(number)
    random.seed(number)


def built(description):
    """The tree; hypothesis passes over what no mux accepts."""
    try:
        return build(description)
    except pescador.ArgumentError:
        assume(False)


def through_pickle(state):
    return pickle.loads(pickle.dumps(state))


def reference(description, n):
    """What `iterate` gives, which is what `open` gives."""
    seed(5)
    # Not trees that start millions of empty streams.
    trees.Starts.clear()
    trees.Starts.limit = 10_000
    whole = read(built(description).iterate(n))
    trees.Starts.limit = float("inf")
    assume(whole[1] is not trees.NeverEnds)
    drawn = np.random.rand(), random.random()
    seed(5)
    opened = built(description).open(n)
    assert read(opened) == whole
    assert (np.random.rand(), random.random()) == drawn
    assert opened.index == len(whole[0])
    return whole


def go_on(description, n, cuts, closes):
    """Cut a tree at some items; return how to go on from the last of them, and what is to come."""
    items, failure = reference(description, n)
    seed(5)
    tree = built(description)
    stream = tree.open(n)
    done = 0
    for cut in sorted(round(cut * len(items)) for cut in cuts):
        assert read(stream, cut - done) == (items[done:cut], None)
        if closes:
            stream.close()
        state = through_pickle(stream.state_dict())
        done = cut
        # Whatever the caller draws meanwhile.
        seed(6)
        if not closes:
            tree = built(description)
        stream = tree.open(state=state)
        assert stream.index == done
    assert read(stream) == (items[done:], failure)
    if failure is None:
        assert list(built(description).open(state=stream.state_dict())) == []
    return description, state, items[done:], failure


def try_again(description, n, troubles, error):
    """Have a tree fail again and again; each time go on from the state."""
    items, failure = reference(description, n)
    seed(5)
    stream = built(description).open(n)
    given = []
    for trouble in troubles:
        Trouble.after(trouble, error)
        try:
            for item in stream:
                given.append(plain(item))
        except error:
            assert list(stream) == []
        except Exception as other:
            if type(other) is not failure:
                raise
            break
        finally:
            Trouble.left = None
        assert given == items[: len(given)]
        state = through_pickle(stream.state_dict())
        seed(6)
        stream = built(description).open(state=state)
    else:
        rest, failed = read(stream)
        given += rest
        assert failed is failure
    assert given == items


@pytest.mark.parametrize("kind", descriptions)
def test_any_tree_goes_on_from_any_item(kind, tmp_path):
    cases = []

    @explore(150)
    @given(descriptions[kind], st.integers(0, 60), places, st.booleans())
    def check(description, n, cuts, closes):
        case = go_on(description, n, cuts, closes)
        if len(cases) < 300:
            cases.append(case)

    check()
    path = tmp_path / "cases"
    path.write_bytes(pickle.dumps(cases))
    here = pathlib.Path(__file__).parent
    found = subprocess.run(
        [sys.executable, here / "restore_states.py", path],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here / 'parity'}"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("kind", descriptions)
@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt])
def test_a_stream_that_fails_is_tried_again_nothing_is_lost_and_nothing_comes_twice(kind, error):
    @explore(50)
    @given(descriptions[kind], st.integers(1, 40), st.lists(st.integers(0, 20), min_size=1))
    def check(description, n, troubles):
        try_again(description, n, troubles, error)

    check()


@pytest.mark.parametrize("n_given", [0, 1, 999, 2500])
@pytest.mark.parametrize(
    "leaf",
    [
        ("forever",),
        ("rows", "dict", 20, "random", ("int", 3)),
        ("spawned",),
        ("randn", 8),
        ("given", 3),
        ("range", 4),
    ],
    ids=lambda leaf: leaf[0],
)
def test_a_thousand_open_streams_go_on(leaf, n_given):
    mux = ("ShuffledMux", (leaf,) * 1000, (), ("global", 0))
    tree = build(("seeded tree", mux, 3))
    items = read(tree.iterate(4000))
    stream = tree.open(4000)
    assert read(stream, n_given)[0] == items[0][:n_given]
    state = through_pickle(stream.state_dict())
    assert read(tree.open(state=state)) == (items[0][n_given:], None)


@explore(50)
@given(descriptions["under Seeded"], st.integers(1, 40), st.floats(0, 1))
def test_taking_and_loading_a_state_changes_neither_it_nor_the_stream(description, n, cut):
    tree = built(description)
    items, failure = read(tree.iterate(n))
    stream = tree.open(n)
    place = round(cut * len(items))
    read(stream, place)
    states = [stream.state_dict() for _ in range(2)]
    assert plain(states[0]) == plain(states[1])
    before = copy.deepcopy(states[0])
    assert read(tree.open(state=states[0])) == (items[place:], failure)
    assert read(tree.open(state=states[0])) == (items[place:], failure)
    assert read(stream) == (items[place:], failure)
    assert plain(states[0]) == plain(before)
    restored = tree.open(state=states[1])
    scramble(states[1])
    assert read(restored) == (items[place:], failure)


def scramble(value):
    """Write into whatever can be written to."""
    if isinstance(value, np.ndarray):
        value[...] = 1
    elif isinstance(value, list):
        for item in value:
            scramble(item)
        value.clear()
    elif isinstance(value, dict):
        for item in value.values():
            scramble(item)
        value.clear()


@explore(50)
@given(descriptions["under Seeded"], st.integers(1, 40), st.floats(0, 1))
def test_a_restored_stream_has_the_state_that_it_was_restored_from(description, n, cut):
    stream = built(description).open(n)
    _, failure = read(stream, round(cut * n))
    assume(failure is None)
    state = stream.state_dict()
    assert plain(built(description).open(state=state).state_dict()) == plain(state)


@pytest.mark.parametrize("kind", [np.ma.masked_array, lambda a: a.view(np.recarray)])
def test_arrays_of_a_kind_that_a_state_would_change_are_refused_by_name(kind):
    items = [kind(np.array([(i,)], "i4")) for i in range(8)]
    name = type(items[0]).__name__
    stream = pescador.Streamer(pescador.cache, items, 4, random_state=0).open()
    next(stream)
    with pytest.raises(pescador.StateError, match=f"an object of type .*{name}"):
        stream.state_dict()
