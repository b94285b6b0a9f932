"""The state of a ParallelStreamer: of the last item given, whoever makes the next."""

import itertools
import multiprocessing
import pickle
import sys
import time

import numpy as np
import pytest
import trees
from hypothesis import assume, given
from hypothesis import strategies as st
from open_trees import Resumable, Trouble, build, plain, read, to_open

import pescador
from conftest import with_hooks
from effort import explore
from pescador import ParallelStreamer, Seeded, StateError, Streamer
from pescador.sources import Rows, Windows
from streams import count

# How a run goes on: in how many workers, of which kind.
WAYS = [(4, "process"), (1, "process"), (0, "process"), (2, "process"), (3, "thread")]


def through_pickle(state):
    return pickle.loads(pickle.dumps(state))


def in_parts(tree, ways, n_each, n=None):
    """Return the items of a run that is cut every few items, and goes on in other ways."""
    items, state = [], None
    for workers, kind in ways:
        parallel = ParallelStreamer(tree(), workers, kind=kind)
        stream = parallel.open(n) if state is None else parallel.open(state=state)
        assert stream.index == len(items)
        part, failure = read(stream, n_each)
        items += part
        assert failure is None
        state = through_pickle(stream.state_dict())
        stream.close()
    rest, failure = read(ParallelStreamer(tree(), 2).open(state=state))
    return items + rest, failure


@pytest.fixture
def sleepy(monkeypatch):
    """Streams of random trees sleep for random times, and may be restarted for ever."""
    monkeypatch.setattr(Trouble, "longest_sleep", 0.001)
    monkeypatch.setattr(trees.Starts, "limit", float("inf"))


@pytest.mark.usefixtures("sleepy")
@pytest.mark.filterwarnings("ignore::pescador.exceptions.PescadorWarning")
@explore(25)
@given(
    to_open(draws=True),
    st.integers(0, 60),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WAYS)), min_size=2, max_size=4),
)
def test_any_tree_goes_on_from_any_item_with_any_workers(description, n, places):
    def tree():
        try:
            return build(description)
        except pescador.ArgumentError:
            assume(False)

    items, failure = read(tree().iterate(n))
    state, done = None, 0
    for place, (workers, kind) in sorted(places):
        parallel = ParallelStreamer(tree(), workers, kind=kind)
        stream = parallel.open(n) if state is None else parallel.open(state=state)
        cut = round(place * len(items))
        assert read(stream, cut - done) == (items[done:cut], None)
        state, done = through_pickle(stream.state_dict()), cut
        stream.close()
        assert plain(stream.state_dict()) == plain(state)
    assert read(ParallelStreamer(tree(), 0).open(state=state)) == (items[done:], failure)


ARRAYS = {"x": np.arange(60.0).reshape(20, 3), "y": np.arange(20)}


def noise(scale, n=10**9):
    for _ in range(n):
        yield {"x": scale * np.random.rand(3), "y": np.random.randint(9)}


def number(item):
    return {"x": item["x"] + np.random.rand(), "y": item["y"]}


LEAVES = {
    "rows": lambda i: Rows(ARRAYS, order=("random", "shuffled", "sequential")[i % 3]),
    "windows": lambda i: Windows(ARRAYS, 4),
    "own state": lambda i: Streamer(Resumable(i, 10 + i)),
    "generator": lambda i: Streamer(noise, i, 12),
    "endless": lambda i: Streamer(noise, i),
    "range": lambda i: Streamer(range(9 + i)),
    "transform": lambda i: Streamer(pescador.transform, Streamer(noise, i), number),
    "tuples": lambda i: Streamer(pescador.tuples, Streamer(noise, i), "x", "y"),
    "cache": lambda i: Streamer(pescador.cache, Streamer(noise, i), 4),
    "batches": lambda i: Streamer(pescador.buffer_stream, Streamer(noise, i), 3),
}
ABOVE = {
    "nothing": lambda tree: tree,
    "transform": lambda tree: Streamer(pescador.transform, tree, str),
    "cache": lambda tree: Streamer(pescador.cache, tree, 5, random_state=3),
}


@pytest.mark.parametrize("above", ABOVE)
@pytest.mark.parametrize("leaf", LEAVES)
def test_every_kind_of_stream_goes_on_under_any_number_of_workers(leaf, above):
    def tree():
        streams = [LEAVES[leaf](i) for i in range(5)]
        return Seeded(ABOVE[above](pescador.StochasticMux(streams, 3, rate=6)), 4)

    assert in_parts(tree, WAYS, 9, 70) == read(tree().iterate(70))


def images(scale):
    while True:
        yield {"x": scale * np.random.rand(40, 40), "y": np.array(np.random.randint(9))}


@pytest.mark.parametrize("source", [noise, images])
@pytest.mark.parametrize("above", ["tuples", "batches"])
def test_maps_of_it_go_on(above, source):
    def mapped(workers):
        run = Seeded(pescador.ShuffledMux([Streamer(source, i) for i in range(4)]), 2)
        tree = ParallelStreamer(run, workers)
        if above == "tuples":
            return Streamer(pescador.tuples, tree, "x", "y")
        return Streamer(pescador.buffer_stream, tree, 4)

    expected = read(mapped(0).iterate(20))
    stream = mapped(2).open(20)
    first, _ = read(stream, 7)
    state = through_pickle(stream.state_dict())
    second, _ = read(mapped(0).open(state=state))
    assert first + second == expected[0]
    assert read(stream) == (second, None)


def inner():
    return pescador.ShuffledMux([Streamer(images, i) for i in range(3)])


NESTED = {
    "Seeded": lambda i: Seeded(inner(), i),
    "ParallelStreamer": lambda i: ParallelStreamer(Seeded(inner(), i), 1),
    "ParallelStreamer, unseeded": lambda i: ParallelStreamer(inner(), 1),
    "ZMQStreamer": lambda i: pescador.ZMQStreamer(inner()),
}


@pytest.mark.parametrize("child", NESTED)
def test_under_hooks_a_child_with_a_seed_or_workers_is_what_it_is_and_goes_on(child):
    def tree(wrap=with_hooks):
        children = [NESTED[child](i) for i in range(2)]
        return Seeded(wrap(pescador.StochasticMux)(children, 2, 5), 3)

    items, _ = read(tree().iterate(30))
    assert read(tree(lambda cls: cls).iterate(30))[0] == items
    state = None
    # A child is saved before it has started, within its visit, and at its end.
    for n in (0, 2, 3, 7, 18):
        stream = tree().open(n, state=state)
        assert read(stream, n) == (items[:n], None)
        del items[:n]
        state = through_pickle(stream.state_dict())
        stream.close()
    assert not multiprocessing.active_children()


def test_the_words_that_were_drawn_are_part_of_the_state_and_restoring_draws_nothing():
    def tree():
        return pescador.StochasticMux([Streamer(noise, i, 8) for i in range(4)], 2, 5)

    for workers in (0, 2):
        np.random.seed(3)
        stream = ParallelStreamer(tree(), workers).open(50)
        first, _ = read(stream, 20)
        state = through_pickle(stream.state_dict())
        rest = read(stream)
        stream.close()
        np.random.seed(3)
        assert read(ParallelStreamer(tree(), 0).iterate(50)) == (first + rest[0], None)
        before = np.random.get_state(legacy=False)
        assert read(ParallelStreamer(tree(), 2).open(state=state)) == rest
        assert plain(np.random.get_state(legacy=False)) == plain(before)


def test_a_state_does_not_tell_in_how_many_workers_it_was_taken():
    def states(workers, kind):
        run = Seeded(pescador.ShuffledMux([LEAVES["rows"](i) for i in range(3)]), 1)
        with ParallelStreamer(run, workers, kind=kind).open(20) as stream:
            read(stream, 9)
            return stream.state_dict()

    for workers, kind in WAYS:
        state = repr(states(workers, kind))
        assert "process" not in state
        assert "thread" not in state
        assert "workers" not in state


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_another_seed_is_refused(workers):
    def tree(seed):
        return Seeded(pescador.ShuffledMux([Streamer(noise, i) for i in range(3)]), seed)

    stream = ParallelStreamer(tree(1), workers).open()
    read(stream, 5)
    state = stream.state_dict()
    stream.close()
    with pytest.raises(StateError, match="seed"):
        next(ParallelStreamer(tree(2), 1).open(state=state))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_seeded_is_not_taken_for_one_of_a_parallel_streamer_nor_the_reverse(workers):
    mux = pescador.ShuffledMux(["abc", "def"], random_state=1)
    trees = {
        "a Seeded": Seeded(mux, 1),
        "a ParallelStreamer": ParallelStreamer(Seeded(mux, 1), workers),
        "ShuffledMux": mux,
    }
    remedies = dict.fromkeys(trees, "open the streamer") | {
        "a Seeded": r"open pescador\.Seeded",
        "a ParallelStreamer": r"open pescador\.ParallelStreamer\(streamer, workers=0\)",
    }
    for (there, taken), (here, opened) in itertools.permutations(trees.items(), 2):
        with taken.open() as stream:
            next(stream)
            state = stream.state_dict()
        with pytest.raises(StateError, match=f"of .*{there}.* this is .*{here}.*{remedies[there]}"):
            opened.open(state=state)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_restored_is_refused_by_its_name(workers):
    mux = pescador.RoundRobinMux([Streamer(count(99)), Streamer(count, 99)])
    with ParallelStreamer(Seeded(mux, 1), workers).open() as stream:
        read(stream, 5)
        with pytest.raises(StateError, match="generator object"):
            stream.state_dict()


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_long_visit_whose_iterator_knows_its_place_is_not_made_again(kind):
    def tree():
        return Seeded(pescador.RoundRobinMux([Streamer(range(10**7))] * 2), 1, states=())

    with ParallelStreamer(tree(), 1, kind=kind).open() as stream:
        expected, _ = read(stream, 40_000)
        # Until a state has arrived that is of late.
        while stream._root().replay_cost() > 20_000:
            next(stream)
        index = stream.index
        state = through_pickle(stream.state_dict())
    assert read(tree().open(40), 40)[0] == expected[:40]
    with ParallelStreamer(tree(), 1).open(state=state) as stream:
        assert next(stream) == index // 2


class Slow(Resumable):
    """As one whose items take long, so that states of it are worth to be sent."""

    def __iter__(self):
        for_ever = super().__iter__()

        class Steps(type(for_ever)):
            def __next__(self):
                time.sleep(0.03)
                return super().__next__()

        return Steps(self.i, self.n)


def test_a_state_that_a_visit_has_reached_ahead_of_the_run_is_not_the_runs():
    def tree():
        return Seeded(pescador.RoundRobinMux([Streamer(Slow(i, 30)) for i in range(2)]), 1)

    items = read(tree().iterate(40))[0]
    with ParallelStreamer(tree(), 2, read_ahead=8).open(40) as stream:
        for n in range(1, 25):
            assert plain(next(stream)) == items[n - 1]
            if n % 4 == 0:
                # What was ordered early has arrived, and its state.
                time.sleep(0.3)
                state = through_pickle(stream.state_dict())
                with ParallelStreamer(tree(), 0).open(state=state) as other:
                    assert read(other, 3)[0] == items[n : n + 3]


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_who_is_interrupted_before_workers_write_into_batches_has_lost_none():
    def images(i):
        for j in range(1000):
            yield {"x": np.random.rand(1000), "i": np.array([i, j])}

    def interrupted(frame, event, arg):
        if frame.f_code.co_name == "new_rows":
            raise KeyboardInterrupt

    mux = pescador.StochasticMux([Streamer(images, i) for i in range(5)], 3, rate=9)
    parallel = ParallelStreamer(Seeded(mux, 1), 1)
    there = Streamer(pescador.buffer_stream, parallel, 4)
    expected = [batch["i"].tolist() for batch in there.iterate(9)]
    given = []
    with there.open(9) as stream:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            sys.settrace(interrupted)
            try:
                for batch in stream:
                    given.append(batch["i"].tolist())
            finally:
                sys.settrace(None)
        state = stream.state_dict()
    rest = [batch["i"].tolist() for batch in there.open(state=state)]
    assert given + rest == expected
