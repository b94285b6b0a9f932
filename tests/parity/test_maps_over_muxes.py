"""Maps over muxes, in muxes, that share random states: started without a copy, the same samples."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import load

import pescador
from effort import explore

peer = load("3.0.0")


def numbered(i):
    while True:
        yield {"x": np.array([i])}


def drawing(state):
    while True:
        yield {"x": np.array([state.randint(1000)])}


def unpacked(batches):
    for batch in batches:
        for x in batch["x"]:
            yield {"x": x}


def grow(module, shape, states, numbers):
    """A streamer of `module`; `shape` is a nest of lists, `states` the RandomStates to share."""
    kind, which, children = shape
    state = states[which]
    if not children:
        if kind % 3 == 0:
            return module.Streamer(drawing, states[which % 2])
        return module.Streamer(numbered, next(numbers))
    pool = [grow(module, child, states, numbers) for child in children]
    if kind % 3 == 0:
        mux = module.ShuffledMux(pool, random_state=state)
    elif kind % 3 == 1:
        mux = module.StochasticMux(pool, 2, 3, random_state=state)
    else:
        mux = module.RoundRobinMux(pool, "permuted_cycle", random_state=state)
    if kind % 2:
        return mux
    if kind % 4:
        return module.Streamer(unpacked, module.Streamer(module.buffer_stream, mux, 2))
    batches = module.Streamer(module.buffer_stream, stream=mux, buffer_size=2, axis=None)
    return module.Streamer(unpacked, batches)


shapes = st.recursive(
    st.tuples(st.integers(0, 11), st.integers(0, 3), st.just([])),
    lambda inner: st.tuples(
        st.integers(0, 11), st.integers(0, 3), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
).filter(lambda shape: shape[2])


@explore(60)
@given(shapes, st.integers(0, 2**32 - 1))
def test_maps_over_muxes_that_share_states_give_the_same_samples(shape, seed):
    results = []
    for module in (peer, pescador):
        np.random.seed(seed)
        states = [np.random.RandomState(seed), np.random.RandomState(1), 7, None]
        stream = grow(module, shape, states, itertools.count())
        drawn = []
        for _ in range(2):
            drawn.append([int(item["x"][0]) for item in stream.iterate(20)])
            # The caller draws on, and what it does shows in the next iteration.
            drawn.append(states[0].randint(1000))
        results.append(drawn)
    assert results[0] == results[1]


@pytest.mark.parametrize("interrupted", [0, 1, 5])
def test_the_caller_drawing_in_between_changes_nothing(interrupted):
    results = []
    for module in (peer, pescador):
        state = np.random.RandomState(0)
        inner = [
            module.ShuffledMux(
                [module.Streamer(numbered, 10 * i + j) for j in range(3)], random_state=state
            )
            for i in range(4)
        ]
        mux = module.ShuffledMux(
            [module.ShuffledMux(inner[:2], random_state=3), *inner[2:]], random_state=4
        )
        drawn = []
        for i, batch in enumerate(module.Streamer(module.buffer_stream, mux, 2).iterate(12)):
            drawn.append(batch["x"].ravel().tolist())
            if i == interrupted:
                state.randint(9)
        results.append(drawn)
    assert results[0] == results[1]
