"""`Streamer.open`: an iteration that can be held, and what it refuses."""

import contextlib
import copy
import ctypes
import gc
import io
import itertools
import pathlib
import pickle
import random
import signal
import types

import numpy as np
import pytest
from open_trees import Resumable, Trouble, plain, quiet

import pescador
from conftest import MUXES, with_hooks
from pescador import (
    SPAWN,
    ArgumentError,
    PescadorError,
    PescadorWarning,
    Seeded,
    StateError,
    Stream,
    Streamer,
)
from streams import Failure, count, data, failing, forever

DATA = pathlib.Path(__file__).parent / "data" / "states"


def after(streamer, n, max_iter=None):
    """The state of a stream that has given n items."""
    stream = streamer.open(max_iter)
    for _ in range(n):
        next(stream)
    return stream.state_dict()


# ------------------------------------------------------------------------------- open and close


def test_a_stream_gives_what_iterate_yields_and_counts():
    streamer = Streamer(count, 3)
    stream = streamer.open()
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stream[int].__origin__)
    assert iter(stream) is stream
    assert stream.index == 0
    assert next(stream) == 0
    assert stream.index == 1
    assert list(stream) == [1, 2]
    assert list(stream) == []
    assert stream.index == 3


def test_iterate_stays_a_generator():
    assert isinstance(Streamer(count, 3).iterate(), types.GeneratorType)
    assert isinstance(Seeded(Streamer(count, 3), 1).iterate(), types.GeneratorType)


def test_nothing_is_started_before_the_first_item():
    started = []

    class Source:
        def __iter__(self):
            started.append(1)
            return iter("abc")

    streamer = Streamer(Source())
    stream = streamer.open()
    assert not started
    assert not streamer.active
    next(stream)
    assert started
    assert streamer.active == 1


@pytest.mark.parametrize("way", ["end", "bound", "close", "with", "error"])
def test_an_open_stream_counts_as_active_until_it_is_over(way):
    streamer = Streamer(failing, 3) if way == "error" else Streamer(count, 3)
    stream = streamer.open(2 if way == "bound" else None)
    next(stream)
    assert streamer.active == 1
    if way in ("end", "bound"):
        list(stream)
    elif way == "close":
        stream.close()
        stream.close()
    elif way == "with":
        with stream as entered:
            assert entered is stream
            next(stream)
    else:
        with pytest.raises(Failure):
            list(stream)
    assert not streamer.active
    assert list(stream) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda leaf: leaf,
        lambda leaf: pescador.StochasticMux([leaf], 1, None),
        lambda leaf: pescador.ShuffledMux([leaf]),
        lambda leaf: pescador.RoundRobinMux([leaf]),
        lambda leaf: pescador.ChainMux([leaf]),
        lambda leaf: pescador.ChainMux([pescador.RoundRobinMux([leaf])]),
        lambda leaf: Streamer(pescador.transform, leaf, str),
        lambda leaf: Seeded(leaf, 1),
        lambda leaf: pescador.RoundRobinMux([Seeded(leaf, 1)]),
    ],
)
def test_what_generators_do_at_their_end_is_run_by_close_and_at_a_bound(wrap):
    ended = []

    def source():
        try:
            while True:
                yield 1
        finally:
            ended.append(1)

    with wrap(Streamer(source)).open() as stream:
        next(stream)
        assert not ended
    assert ended == [1]
    stream = wrap(Streamer(source)).open(2)
    assert len(list(stream)) == 2
    assert ended == [1, 1]
    assert stream.state_dict()["index"] == 2


def test_an_open_stream_that_fails_closes_the_streams_beside_the_one_that_failed():
    ended = []

    def source():
        try:
            while True:
                yield 1
        finally:
            ended.append(1)

    stream = pescador.RoundRobinMux([Streamer(source), Streamer(failing, 1)]).open()
    with pytest.raises(Failure):
        list(stream)
    assert ended == [1]


def test_a_stream_that_is_dropped_is_closed():
    ended = []

    def source():
        try:
            while True:
                yield 1
        finally:
            ended.append(1)

    stream = pescador.ShuffledMux([Streamer(source)]).open()
    next(stream)
    del stream
    gc.collect()
    assert ended == [1]


def test_after_close_the_state_is_that_of_the_last_item():
    streamer = pescador.ShuffledMux(["abcdefgh", Streamer(count, 9)], random_state=1)
    items = list(streamer.iterate(12))
    with streamer.open(12) as stream:
        assert [next(stream) for _ in range(5)] == items[:5]
    assert list(streamer.open(state=stream.state_dict())) == items[5:]
    unread = streamer.open(12)
    unread.close()
    assert list(streamer.open(state=unread.state_dict())) == items


def test_two_streams_of_one_streamer_know_nothing_of_each_other():
    streamer = pescador.ShuffledMux(["abc", "xyz"], random_state=3)
    items = list(streamer.iterate(9))
    first, second = streamer.open(9), streamer.open(9)
    assert list(zip(first, second, strict=True)) == [(item, item) for item in items]
    assert streamer.active == 0


# ---------------------------------------------------------------------------------- the bound


def test_max_iter_counts_from_this_open_and_none_is_what_was_left():
    streamer = Streamer(range(20))
    state = after(streamer, 3, max_iter=7)
    assert list(streamer.open(state=state)) == [3, 4, 5, 6]
    assert list(streamer.open(2, state=state)) == [3, 4]
    assert list(streamer.open(9, state=state)) == list(range(3, 12))
    assert list(streamer.open(0, state=state)) == []
    assert list(streamer.open(state=after(streamer, 3))) == list(range(3, 20))


@pytest.mark.parametrize("bad", [-1, float("nan"), "3"])
def test_a_bad_max_iter_is_refused_at_once(bad):
    with pytest.raises(ArgumentError, match="max_iter"):
        Streamer("abc").open(bad)


class Asked:
    """Counts how often its iterator was asked for an item."""

    times = 0

    def __iter__(self):
        return self.Iterator()

    class Iterator:
        def __iter__(self):
            return self

        def __next__(self):
            Asked.times += 1
            return Asked.times

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass


def test_a_state_at_the_bound_has_the_extra_step_before_it():
    streamer = Streamer(Asked())
    Asked.times = 0
    list(streamer.iterate(3))
    assert Asked.times == 4
    Asked.times = 0
    state = after(streamer, 3, max_iter=3)
    assert Asked.times == 3
    assert list(streamer.open(state=state)) == []
    assert Asked.times == 4
    assert next(streamer.open(1, state=state)) == 5


def test_a_final_partial_batch_is_the_end():
    batched = Streamer(pescador.buffer_stream, Streamer(data, 5), 2, partial=True)
    stream = batched.open()
    sizes = [len(next(stream)["Y"]) for _ in range(3)]
    assert sizes == [2, 2, 1]
    assert list(batched.open(state=stream.state_dict())) == []
    assert list(batched.open(4, state=stream.state_dict())) == []


# ------------------------------------------------------------------------------ wrong moments


def test_a_state_is_loaded_before_the_first_item():
    streamer = Streamer("abc")
    state = after(streamer, 1)
    stream = streamer.open()
    next(stream)
    with pytest.raises(PescadorError, match="before the first item"):
        stream.load_state_dict(state)
    assert next(stream) == "b"
    fresh = streamer.open()
    fresh.load_state_dict(state)
    assert list(fresh) == ["b", "c"]


def test_a_state_may_be_taken_before_another_is_loaded():
    streamer = Streamer("abc")
    stream = streamer.open()
    stream.state_dict()
    stream.load_state_dict(after(streamer, 1))
    assert list(stream) == ["b", "c"]


def test_an_activated_copy_is_not_opened():
    with Streamer("abc") as active, pytest.raises(PescadorError, match="activated copy"):
        active.open()


@pytest.mark.parametrize("seeded", [False, True])
def test_a_state_is_not_taken_from_inside_next(seeded):
    def source():
        yield 1
        for call in (stream.state_dict, lambda: next(stream), stream.close):
            with pytest.raises((PescadorError, ValueError), match=r"while|already"):
                call()
        yield 2

    streamer = Seeded(Streamer(source), 1) if seeded else Streamer(source)
    stream = streamer.open()
    assert list(stream) == [1, 2]


# ------------------------------------------------------------------------- states that do not fit


@pytest.mark.parametrize("state", [None, {}, [], "state", {"index": 3}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ArgumentError, match="state="):
        Streamer("abc").open().load_state_dict(state)


def test_a_state_of_another_version_is_refused():
    state = after(Streamer("abc"), 1)
    with pytest.raises(StateError, match="format 99"):
        Streamer("abc").open(state={**state, "pescador": 99})


def stochastic(**kwargs):
    kwargs = {"n_active": 2, "rate": 5, "random_state": 1, **kwargs}
    return pescador.StochasticMux(kwargs.pop("streamers", ["abc", "def", "ghi"]), **kwargs)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: stochastic(mode="exhaustive"), "mode"),
        (lambda: stochastic(n_active=3), "n_active"),
        (lambda: stochastic(rate=6), "rate"),
        (lambda: stochastic(dist="poisson"), "dist"),
        (lambda: stochastic(prune_empty_streams=False), "prune_empty_streams"),
        (lambda: stochastic(weights=[1, 2, 3]), "weights"),
        (lambda: stochastic(streamers=["abc", "def"]), "n_streams"),
        (lambda: pescador.ShuffledMux(["abc", "def", "ghi"], random_state=1), "ShuffledMux"),
        (lambda: Streamer("abc"), "Streamer|Leaf"),
        (lambda: Streamer(pescador.transform, stochastic(), str), "transform|Leaf"),
        (lambda: Seeded(stochastic(), 1), "generator|Seeded|seed"),
    ],
)
def test_a_recipe_that_differs_is_named(other, message):
    state = after(stochastic(), 4)
    with pytest.raises(StateError, match=message):
        other().open(state=state)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (stochastic(), Streamer("abc"), "is 'pescador.core.Streamer.*was 'pescador.mux.Stochast"),
        (Streamer("abc"), stochastic(), "is 'pescador.mux.Stochast.*was 'pescador.core.Streamer"),
        (Seeded("abc", 10**300), Seeded("abc", 1), r"entropy is 1, and was 1000*\.\.\.000* when"),
        (Streamer("abc"), Seeded("abc", 1), "of 'pescador.core.Streamer.*, and this is a Seeded"),
        (stochastic(), stochastic(weights=[1, 2, 3]), r"weights differ \(strict=False lets them\)"),
        (stochastic(), stochastic(streamers="abcd"), "is 4, and was 3 .*strict=False lets streams"),
        (stochastic(streamers="abcd"), stochastic(), r"is 3, and was 4 when the state was taken:"),
    ],
)
def test_what_differs_is_said_in_short_with_what_to_do(one, other, message):
    with pytest.raises(StateError, match=message) as found:
        other.open(state=after(one, 2))
    assert "open the streamer that it was taken of" in str(found.value)
    assert len(str(found.value)) < 320


def test_a_reason_that_many_streams_share_is_said_once():
    stream = pescador.RoundRobinMux([Streamer(once(3)) for _ in range(1_200)]).open()
    for _ in range(1_200):
        next(stream)
    with pytest.raises(StateError) as found:
        stream.state_dict()
    assert str(found.value).count("give Streamer a generator function") == 1
    assert "streamers[2], visit 0: Streamer(generator once); and 1,197 more: it" in str(found.value)
    assert len(stream.state_dict(allow_inexact=True)["inexact"]) == 1_200


def test_what_differs_deep_in_a_tree_is_named_with_its_place():
    def tree(mode):
        inner = pescador.RoundRobinMux(["abc", "def"], mode=mode)
        return pescador.ChainMux([Streamer(count, 2), inner])

    state = after(tree("cycle"), 4)
    with pytest.raises(StateError, match=r"streamers\[1\].*mode.*exhaustive.*cycle"):
        tree("exhaustive").open(state=state)


def test_a_stream_that_has_become_shorter_is_an_error():
    length = [5]

    def source():
        yield from range(length[0])

    mux = pescador.RoundRobinMux([Streamer(source), "abcdef"])
    state = after(mux, 7)
    length[0] = 2
    with pytest.raises(StateError, match=r"streamers\[0\].*4 items.*only 2"):
        mux.open(state=state)


def test_a_list_that_has_become_shorter_is_an_error():
    state = after(Streamer([1, 2, 3, 4]), 3)
    with pytest.raises(StateError, match="3 items"):
        Streamer([1, 2]).open(state=state)


def test_a_source_that_has_become_shorter_is_an_error():
    def rows(n):
        return pescador.sources.Rows({"x": np.arange(n)}, order="sequential")

    state = after(rows(9), 3)
    with pytest.raises(StateError, match="8 items, and had 9"):
        rows(8).open(state=state)


def test_a_replay_that_draws_otherwise_is_an_error():
    extra = [0]

    def source():
        while True:
            yield np.random.rand()
            np.random.rand(extra[0])

    seeded = Seeded(pescador.RoundRobinMux([Streamer(source)]), 1)
    state = after(seeded, 4)
    extra[0] = 1
    with pytest.raises(StateError, match=r"streamers\[0\].*other random numbers"):
        seeded.open(state=state)


def test_a_replay_that_draws_what_it_did_not_before_is_an_error():
    draws = [False]

    def source():
        while True:
            if draws[0]:
                np.random.rand()
            yield 1

    state = after(Streamer(source), 4)
    draws[0] = True
    with pytest.raises(StateError, match="draws from the global random state now"):
        Streamer(source).open(state=state)


# ------------------------------------------------------------------------------------ refusals


def numbers():
    while True:
        yield np.random.rand()


def python_numbers():
    while True:
        yield random.random()


def once(n):
    yield from range(n)


class Hooked(Streamer):
    """It keeps something that is no plain value."""

    def iterate(self, max_iter=None):
        self.kept = object()
        yield from super().iterate(max_iter)


@pytest.fixture
def opened_file(monkeypatch):
    """A file to read from."""
    with open(__file__) as file:
        monkeypatch.setitem(globals(), "FILE", file)
        yield


FILE = None
REFUSED = {
    "a generator object": (lambda: Streamer(once(9)), "generator object or an open file"),
    "a generator object among arguments": (
        lambda: Streamer(pescador.transform, once(9), str),
        "generator object or an open file",
    ),
    "an open file": (lambda: Streamer(FILE), "generator object or an open file"),
    "numpy": (lambda: Streamer(numbers), "np.random or random.*pescador.Seeded"),
    "random": (lambda: Streamer(python_numbers), "np.random or random.*pescador.Seeded"),
}


@pytest.mark.usefixtures("opened_file")
@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_its_place_and_name(name, among):
    make, message = REFUSED[name]
    streamer = make()
    shown = repr(streamer)
    if among:
        streamer = pescador.RoundRobinMux(["abcdefgh", streamer])
    stream = streamer.open()
    for _ in range(4):
        next(stream)
    with pytest.raises(StateError, match=message) as caught:
        stream.state_dict()
    assert shown.split("(")[0] in str(caught.value)
    if among:
        assert "streamers[1]" in str(caught.value)
    state = stream.state_dict(allow_inexact=True)
    assert len(state["inexact"]) >= 1
    assert state["inexact"][0] in str(caught.value)
    assert stream.state_dict.__self__ is stream
    # Whatever it is, the stream itself goes on.
    next(stream)


def test_attributes_of_hooks_that_are_not_plain_are_refused():
    stream = pescador.RoundRobinMux(["abc", Hooked(count, 9)]).open()
    for _ in range(2):
        next(stream)
    with pytest.raises(StateError, match=r"streamers\[1\].*attribute kept.*type object"):
        stream.state_dict()


def in_its_own_way(kind):
    """A class of the user's, whose iterations keep what no visit knows."""

    class Own(kind):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield item
                yield item

    return Own


ITERATE_IN_THEIR_OWN_WAY = {
    "plain": lambda: in_its_own_way(Streamer)(range(9)),
    "seeded": lambda: in_its_own_way(Seeded)(range(9), 3),
    "source": lambda: in_its_own_way(pescador.sources.Rows)({"x": np.arange(9)}),
    "mux": lambda: in_its_own_way(pescador.ShuffledMux)([range(9)], random_state=1),
    "sharded": lambda: in_its_own_way(pescador.Sharded)(lambda shard: Streamer(forever, shard), 2),
    "parallel": lambda: in_its_own_way(pescador.ParallelStreamer)(range(9), 0),
    "worker": lambda: in_its_own_way(pescador.ZMQStreamer)(Streamer(data, 9)),
}


@pytest.mark.parametrize("name", ITERATE_IN_THEIR_OWN_WAY)
def test_what_iterates_in_its_own_way_in_a_mux_with_hooks_is_refused(name):
    streamer = ITERATE_IN_THEIR_OWN_WAY[name]()
    with with_hooks(pescador.RoundRobinMux)([streamer], "cycle").open() as stream:
        next(stream)
        with pytest.raises(StateError, match=r"streams_\[0\]: it is no iteration of a streamer"):
            stream.state_dict()


def test_inexact_states_restore_the_rest_exactly():
    mux = pescador.RoundRobinMux(["abcdefgh", Streamer(numbers)])
    stream = mux.open()
    for _ in range(4):
        next(stream)
    state = stream.state_dict(allow_inexact=True)
    restored = mux.open(state=state)
    assert [next(restored) for _ in range(4)][::2] == ["c", "d"]


def test_an_exact_state_lists_nothing():
    assert after(Streamer("abc"), 1)["inexact"] == []


def test_a_function_that_draws_when_it_is_called_is_noticed():
    class Drawing:
        def __iter__(self):
            np.random.rand()
            return iter("abc")

    stream = pescador.RoundRobinMux([Streamer(Drawing())]).open()
    next(stream)
    with pytest.raises(StateError, match="global random state"):
        stream.state_dict()


def test_a_stream_that_draws_and_fails_is_noticed():
    def source():
        yield 1
        np.random.rand()
        raise Failure

    stream = Streamer(source).open()
    next(stream)
    with pytest.raises(Failure):
        next(stream)
    with pytest.raises(StateError, match="global random state"):
        stream.state_dict()


def drawing_mux():
    return pescador.ShuffledMux(["abc", "def"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: pescador.ChainMux(["abc", drawing_mux()]),
        lambda: pescador.ShuffledMux([drawing_mux()], random_state=0),
        lambda: pescador.ChainMux(["ab", Streamer(pescador.transform, drawing_mux(), str)]),
        lambda: pescador.ChainMux(["ab", pescador.sources.Rows({"x": np.arange(5)})]),
    ],
)
def test_the_global_state_is_saved_before_the_mux_is_open_that_draws_from_it(make):
    np.random.seed(1)
    items = plain(list(make().iterate(9)))
    np.random.seed(1)
    state = after(make(), 0, 9)
    np.random.seed(2)
    assert plain(list(make().open(state=state))) == items


# --------------------------------------------------------------------------- what a state is


def all_kinds():
    leaves = [
        "abc",
        [1, 2, 3],
        Streamer(count, 5),
        Streamer(Resumable(1, 9)),
        pescador.sources.Rows({"x": np.arange(9)}, random_state=1),
        pescador.sources.Rows({"x": np.arange(9)}, order="shuffled"),
        Streamer(numbers),
        Streamer(pescador.cache, "defg", 2),
        Streamer(spawned, rng=SPAWN),
        Streamer(given, np.random.RandomState(2)),
        pescador.StochasticMux(["ab", "cd"], 1, 2),
        pescador.RoundRobinMux(["ab", "cd"], mode="permuted_cycle"),
        pescador.ChainMux(["ab", "cd"], mode="cycle"),
    ]
    return Seeded(pescador.ShuffledMux(leaves), 7)


def spawned(*, rng):
    while True:
        yield rng.integers(99)


def given(rng):
    while True:
        yield rng.randint(99)


PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray)


def check_plain(value):
    assert type(value) in PLAIN, type(value)
    if isinstance(value, np.ndarray):
        assert not value.dtype.hasobject
    for part in (
        value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    ):
        check_plain(part)
    for key in value if type(value) is dict else ():
        check_plain(key)


def test_a_state_is_plain():
    check_plain(after(all_kinds(), 50))


@pytest.mark.parametrize("through", [pickle.dumps, copy.deepcopy, "torch"])
def test_a_state_goes_through_pickle_deepcopy_and_torch(through):
    state = after(all_kinds(), 50)
    rest = plain(list(all_kinds().open(40, state=state)))
    if through == "torch":
        torch = pytest.importorskip("torch")
        file = io.BytesIO()
        torch.save(state, file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        state = through(state)
        state = pickle.loads(state) if isinstance(state, bytes) else state
    assert plain(list(all_kinds().open(40, state=state))) == rest


def test_the_size_of_a_state_goes_with_what_is_open():
    def mux(mode, n=100_000):
        return pescador.StochasticMux(
            [Streamer(forever, i) for i in range(n)], 100, 5, mode=mode, random_state=1
        )

    for mode in ("with_replacement", "single_active", "exhaustive"):
        state = after(mux(mode), 3000)
        assert len(pickle.dumps(state)) < 100_000


def test_replay_cost_is_how_many_samples_are_made_again():
    stream = pescador.RoundRobinMux(
        ["abcdef", Streamer(count, 9), Streamer(Resumable(1, 9))]
    ).open()
    assert stream.replay_cost == 0
    for _ in range(9):
        next(stream)
    assert stream.replay_cost == 3
    rows = pescador.sources.Rows({"x": np.arange(9)}).open()
    next(rows)
    assert rows.replay_cost == 0


def test_states_never_refer_to_the_memory_of_batches():
    def batched(**kwargs):
        return Streamer(pescador.buffer_stream, Streamer(data, 40), 4, **kwargs)

    expected = plain(list(batched()))
    for before, then in (({"reuse": False}, {}), ({}, {"allocator": np.empty})):
        state = after(batched(**before), 3)
        assert plain(list(batched(**then).open(state=state))) == expected[3:]


# ----------------------------------------------------------------------------- failures in maps


@pytest.mark.parametrize(
    "make",
    [
        lambda source: Streamer(pescador.buffer_stream, source, 3),
        lambda source: Streamer(pescador.tuples, source, "X"),
        lambda source: Streamer(pescador.keras_tuples, source, "X", "Y"),
        lambda source: Streamer(pescador.cache, source, 2, 0.3, 1),
        lambda source: Streamer(pescador.transform, source, lambda item: item["Y"]),
    ],
)
@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt])
def test_a_map_whose_stream_fails_loses_nothing(make, error):
    def source():
        for item in data(9):
            Trouble.meet()
            yield item

    streamer = make(Streamer(source))
    expected = plain(list(streamer))
    for trouble in range(9):
        Trouble.after(trouble, error)
        stream = streamer.open()
        given = []
        with pytest.raises(error):
            given.extend(map(plain, stream))
        state = pickle.loads(pickle.dumps(stream.state_dict()))
        assert given + plain(list(streamer.open(state=state))) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("axis", [None, 0])
def test_a_batch_that_an_allocator_makes_no_room_for_is_not_lost(size, reuse, axis):
    # The dtype of a batch of one is another than that of two; texts are joined by NumPy.
    items = [{"x": np.full(3, i, ">f4"), "y": np.array([i])} for i in range(5)]
    if axis is None:
        items = [item | {"z": "z" * i} for i, item in enumerate(items)]

    def allocate(shape, dtype):
        Trouble.meet()
        return np.empty(shape, dtype)

    streamer = Streamer(
        pescador.buffer_stream, items, size, True, axis, reuse=reuse, allocator=allocate
    )
    expected = plain(list(streamer))
    for trouble in itertools.count():
        Trouble.after(trouble)
        stream = streamer.open()
        given = []
        with contextlib.suppress(Failure):
            given.extend(map(plain, stream))
        if Trouble.left is not None:
            break
        assert given + plain(list(streamer.open(state=stream.state_dict()))) == expected
    Trouble.left = None
    assert trouble > 1


@pytest.mark.parametrize("map_", ["buffer_stream", "tuples"])
def test_an_item_that_a_map_refuses_is_the_next_after_resuming(map_):
    items = [{"X": np.array(i)} for i in range(4)]
    items[2] = {"Z": np.array(2)}
    rest = (3,) if map_ == "buffer_stream" else ("X",)
    streamer = Streamer(getattr(pescador, map_), items, *rest)
    stream = streamer.open()
    with pytest.raises((KeyError, pescador.DataError)):
        list(stream)
    state = stream.state_dict()
    with pytest.raises((KeyError, pescador.DataError)):
        list(streamer.open(state=state))


def test_a_source_that_fails_to_open_is_opened_when_it_works_again(tmp_path):
    path = tmp_path / "x.npz"
    mux = pescador.RoundRobinMux(["abcd", pescador.sources.Rows(path, order="sequential")])
    stream = mux.open()
    assert next(stream) == "a"
    with pytest.raises((OSError, PescadorError)):
        next(stream)
    state = stream.state_dict()
    np.savez(path, x=np.arange(3))
    assert plain(list(mux.open(state=state)))[:3] == plain(
        [{"x": np.array(0)}, "b", {"x": np.array(1)}]
    )


# ------------------------------------------------------------------------- hooks, and old states


class Growing(Streamer):
    """A streamer whose hook keeps a state in public attributes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []
        self.state = np.random.RandomState(3)

    def iterate(self, max_iter=None):
        for item in super().iterate(max_iter):
            self.seen.append(item)
            yield item, len(self.seen), self.state.randint(1 << 30)


@pytest.mark.parametrize("among", [False, True])
def test_hooks_keep_their_state_in_attributes(among):
    def make():
        if not among:
            return Growing(count, 3)
        streamers = [Growing(count, 3), Growing(count, 4)]
        return pescador.StochasticMux(streamers, 1, 2, random_state=1)

    # Without a mux around it, a streamer with hooks is not copied.
    items = list(make().iterate(20))
    for n in range(len(items) + 1):
        assert list(make().open(state=after(make(), n, 20))) == items[n:]


class Meeting(np.random.RandomState):
    """A generator that may meet trouble when it is asked; its copies are of its own class."""

    def __reduce__(self):
        return met, (self.get_state(),)

    def choice(self, *args, **kwargs):
        Trouble.meet()
        return super().choice(*args, **kwargs)

    def binomial(self, *args, **kwargs):
        Trouble.meet()
        return super().binomial(*args, **kwargs)

    def shuffle(self, values):
        Trouble.meet()
        super().shuffle(values)


def met(state):
    generator = Meeting()
    generator.set_state(state)
    return generator


class Doubling(np.random.MT19937):
    """A bit generator that gives 2.0 in place of the double at which it meets trouble."""

    def __init__(self, seed=None):
        super().__init__(seed)
        kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)
        # It follows the state and two functions.
        place = self.ctypes.bit_generator.value + 3 * ctypes.sizeof(ctypes.c_void_p)
        pointer = ctypes.c_void_p.from_address(place)
        draw = kind(pointer.value)

        def next_double(state):
            try:
                Trouble.meet()
            except Failure:
                return 2.0
            return draw(state)

        self.kept = kind(next_double)
        pointer.value = ctypes.cast(self.kept, ctypes.c_void_p).value


@pytest.mark.parametrize("generator", [Meeting, lambda seed: np.random.Generator(Doubling(seed))])
@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("StochasticMux", {"n_active": 3, "rate": 4}),
        ("StochasticMux", {"n_active": 3, "rate": 4, "mode": "single_active"}),
        ("ShuffledMux", {}),
        ("RoundRobinMux", {"mode": "permuted_cycle"}),
    ],
)
def test_a_mux_that_fails_to_draw_goes_on_as_it_would_have_or_is_refused(kind, kwargs, generator):
    def make():
        pool = [range(10 * i, 10 * i + 5) for i in range(6)]
        return getattr(pescador, kind)(pool, **kwargs, random_state=generator(1))

    items = list(make().iterate(40))
    for trouble in range(60):
        Trouble.after(trouble)
        stream = make().open(40)
        given = []
        try:
            for item in stream:
                given.append(item)
        except (Failure, PescadorError):
            pass
        finally:
            Trouble.left = None
        try:
            state = stream.state_dict()
        except StateError:
            continue
        assert given + list(make().open(state=state)) == items


class Derived(np.random.RandomState):
    """A generator whose copies are NumPy's own."""


def test_a_mux_over_a_generator_of_a_class_of_its_own_is_opened():
    def make():
        mux = pescador.RoundRobinMux(["ab", "cde"], "permuted_cycle", random_state=Derived(1))
        return pescador.StochasticMux([mux, "fgh", "ij"], 2, 4, random_state=Derived(2))

    items = list(make().iterate(40))
    assert list(make().open(40)) == items
    for n in (0, 1, 13, 40):
        assert list(make().open(state=after(make(), n, 40))) == items[n:]


def test_the_state_of_a_large_pool_takes_no_sums_over_it():
    mux = pescador.StochasticMux(
        [Streamer(count, 5)] * 20_000, 4, 3, mode="exhaustive", random_state=1
    )
    stream = mux.open()
    for _ in range(200):
        next(stream)
    before = pescador._choice.nodes_summed()
    stream.state_dict()
    assert pescador._choice.nodes_summed() == before


def old_trees():
    """Trees whose states are kept as files; they never change, others may be added."""
    leaves = [
        Streamer(quiet, 1, 50),
        Streamer(numbers),
        Streamer(python_numbers),
        "abcdefg",
        Streamer(given, np.random.RandomState(2)),
        Streamer(spawned, rng=SPAWN),
        pescador.sources.Rows({"x": np.arange(30)}, order="shuffled"),
        pescador.RoundRobinMux(["ab", range(5)], mode="permuted_cycle"),
        Streamer(pescador.cache, Streamer(quiet, 2, 50), 3),
        Streamer(Resumable(3, 9)),
    ]
    yield "stochastic", Seeded(pescador.StochasticMux(leaves, 4, 8), 1)
    yield "shuffled", Seeded(pescador.ShuffledMux(leaves), 2)
    yield "chain", Seeded(pescador.ChainMux(leaves[3:5] + leaves[6:7], mode="cycle"), 3)
    rows = [pescador.sources.Rows({"x": np.arange(9)}, random_state=i) for i in range(4)]
    yield "batched", Streamer(pescador.buffer_stream, pescador.ShuffledMux(rows, random_state=1), 8)
    pool = [Streamer(quiet, i, 9) for i in range(60)]
    for mode in ("single_active", "exhaustive"):
        weighted = {"mode": mode, "weights": range(1, 61), "random_state": 4}
        yield mode, pescador.StochasticMux(pool, 3, 4, **weighted)
    for rank in range(2):
        yield f"rank {rank}", batches_of_a_rank(rank, 2)


def rows_of_a_shard(shard, i):
    while True:
        yield {"x": np.array([shard, i, np.random.randint(1000)])}


def old_shard(shard):
    rows = pescador.sources.Rows({"x": np.arange(90).reshape(30, 3)}, order="shuffled")
    pool = [rows, *(Streamer(rows_of_a_shard, shard, i) for i in range(4))]
    return pescador.StochasticMux(pool, 2, 4)


def batches_of_a_rank(rank, world_size):
    part = pescador.Sharded(old_shard, 4, 5, epoch=2).at(rank, world_size)
    return Streamer(pescador.buffer_stream, part, 8 // world_size)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.pickle")), ids=lambda path: path.stem)
def test_states_of_older_versions_still_load(path):
    for name, state, digest in pickle.loads(path.read_bytes()):
        tree = dict(old_trees())[name]
        assert repr(plain(list(tree.open(20, state=state)))) == digest, name


def test_states_of_ranks_of_older_versions_still_merge():
    [path] = DATA.glob("format-2-ranks.pickle")
    state = pescador.Sharded.merge(state for _, state, _ in pickle.loads(path.read_bytes()))
    whole = [batch["x"].tolist() for batch in batches_of_a_rank(0, 1)(max_iter=37 + 20)]
    ranks = [batches_of_a_rank(rank, 4).open(20, state=state) for rank in range(4)]
    for expected in whole[37:]:
        found = [next(rank)["x"].tolist() for rank in ranks]
        assert [row for rows in zip(*found, strict=True) for row in rows] == expected


def test_there_are_states_of_older_versions():
    assert list(DATA.glob("*.pickle"))


def save_states(path, names=None):
    """Keep today's states as a file: call this when the format changes, or a tree is added."""
    cases = []
    for name, tree in old_trees():
        if not (names is None or name in names):
            continue
        state = after(tree, 37)
        cases.append((name, state, repr(plain(list(tree.open(20, state=state))))))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(cases, protocol=4))


# ------------------------------------------------------------------------------- damaged states


@pytest.mark.parametrize("kind", MUXES)
@pytest.mark.parametrize("place", [2, -1, 10**8])
def test_attributes_of_a_streamer_that_a_mux_does_not_have_are_refused(kind, place):
    args = (2, None) if kind == "StochasticMux" else ()
    mux = getattr(pescador, kind)([[0, 1], [2, 3]], *args)
    state = mux.open().state_dict()
    state["tree"]["hooked"] = {place: {}}
    with pytest.raises(StateError, match=f"there is no streamer {place}"):
        mux.open(state=state)


def at_one_place(state, path, value):
    """A state in which one value is another."""
    if not path:
        return value
    changed = copy.copy(state)
    inside = state[path[0]] if len(path) > 1 else None
    changed[path[0]] = at_one_place(inside, path[1:], value)
    return changed


def damaged(pool):
    """What the state of a mux over `pool` streams may have in the place of each field."""
    return [
        (("which",), np.full(pool, 1 << 40)),
        (("which",), np.zeros(100, np.int64)),
        (("which",), np.zeros(pool)),
        (("slots",), np.zeros((pool, 3), np.int64)),
        (("turn",), 1 << 40),
        (("turn",), -2),
        (("left",), -1),
        (("streams",), [None] * 1000),
        (("streams", 0), [0, {}]),
        (("visits", "n"), 1 << 40),
        (("visits", "bits"), 64),
        (("visits", "packed"), b"xxxxx"),
        (("hooked",), {"1000": {}}),
        (("late",), [[[-1], {}]]),
        (("generators", 0, "state", "pos"), 1 << 30),
        (("generators", 0, "state", "key"), np.zeros(3, np.uint32)),
    ]


DAMAGED = [
    *[(("ShuffledMux", {}), *case) for case in damaged(4)],
    *[(("ShuffledMux", {}), ("weights",), value) for value in (np.ones(99), np.full(4, np.nan))],
    *[
        (("StochasticMux", {"n_active": 2, "rate": 3}), *case)
        for case in (
            (("pool", "n"), 1 << 40),
            (("pool", "share"), float("nan")),
            (("pool", "missing"), np.array([1 << 40])),
            (("pool", "missing"), np.zeros(1, np.uint8)[:0]),
            (("pool", "events"), np.array([1 << 40])),
            (("pool", "events"), np.array([1, 1, -1])),
            (("pool", "times"), np.array([-1])),
            (("pool", "times"), np.zeros(99, np.int64)),
            (("pruned",), np.array([-3])),
        )
    ],
    *[
        (("RoundRobinMux", {"mode": "permuted_cycle"}), *case)
        for case in (
            (("following",), np.full(4, 1 << 40)),
            (("following",), np.zeros(999, np.int64)),
            (("following",), np.array([1, 1, 1, 1])),
            (("alive",), 1 << 40),
            (("at",), -1),
            (("before",), 1 << 40),
        )
    ],
]


@pytest.mark.parametrize("case", DAMAGED, ids=str)
def test_a_state_that_leads_out_of_a_mux_is_refused(case):
    (kind, kwargs), path, value = case

    def make():
        return getattr(pescador, kind)(
            [Streamer(count, 5) for _ in range(4)], **kwargs, random_state=1
        )

    state = at_one_place(after(make(), 3), ("tree", *path), value)
    stream = make().open()
    with pytest.raises(StateError):
        stream.load_state_dict(state)
    assert stream.over


@pytest.mark.parametrize(
    ("field", "value"),
    [("left", -1), ("done", -1), ("ahead", 1 << 40), ("ahead", -1), ("block", np.array([1 << 40]))],
)
def test_a_state_that_leads_out_of_a_source_is_refused(field, value):
    rows = pescador.sources.Rows({"X": np.arange(9)}, random_state=1)
    state = at_one_place(after(rows, 3), ("tree", field), value)
    with pytest.raises(StateError, match=field):
        rows.open(state=state)


def test_a_state_that_leads_out_of_a_cache_is_refused():
    cache = Streamer(pescador.cache, Streamer(count, 9), 3, 0.5, 1)
    state = at_one_place(after(cache, 5), ("tree", "map", "due"), 3)
    with pytest.raises(StateError, match="due"):
        cache.open(state=state)


def test_a_state_with_more_than_a_batch_is_refused():
    batches = Streamer(pescador.buffer_stream, list(data(9)), 3)
    state = at_one_place(after(batches, 1), ("tree", "map", "unfinished"), list(data(4)))
    with pytest.raises(StateError, match="unfinished"):
        batches.open(state=state)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("python",), np.zeros(3, "u4")),
        (("python",), np.full(625, 625, "u4")),
        (("numpy", "state", "pos"), -1),
        (("numpy", "state", "key"), np.zeros(3, "u4")),
    ],
)
def test_a_state_that_leads_out_of_a_twister_is_refused(path, value):
    made = Seeded(Streamer(pescador.transform, range(9), str), 1)
    state = at_one_place(after(made, 3), ("tree", "states", *path), value)
    with pytest.raises(StateError, match="Twister"):
        made.open(state=state)


@pytest.mark.parametrize("field", ["tree", "seed", "index", "ended", "inexact"])
def test_a_state_without_one_of_its_fields_is_refused(field):
    state = after(Streamer(count, 5), 3)
    del state[field]
    with pytest.raises(StateError, match=field):
        Streamer(count, 5).open(state=state)


# -------------------------------------------------------------------------- what loses nothing


@pytest.mark.parametrize("over", ["loaded", "refused", "closed"])
def test_a_state_is_loaded_once_and_not_after_close(over):
    streamer = Streamer(count, 9)
    stream = streamer.open()
    if over == "loaded":
        stream.load_state_dict(after(streamer, 7))
    elif over == "closed":
        stream.close()
    else:
        with pytest.raises(StateError):
            stream.load_state_dict(after(Streamer(range(9)), 3))
    with pytest.raises(PescadorError, match="open another"):
        stream.load_state_dict(after(streamer, 5))


def test_the_state_of_a_stream_that_was_closed_unread_leaves_nothing_open():
    streamer = Streamer(count, 9)
    stream = streamer.open()
    stream.close()
    state = stream.state_dict()
    assert streamer.active == 0
    assert list(streamer.open(state=state)) == list(range(9))


def test_a_signal_does_not_come_between_an_item_and_its_reader():
    streamer = Streamer(range(1 << 40))
    given = []
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        stream = streamer.open()
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        with pytest.raises(KeyboardInterrupt):
            given.extend(stream)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stream.index == len(given)
    assert next(streamer.open(state=stream.state_dict())) == len(given)


@pytest.mark.parametrize(
    "make",
    [
        pescador.ShuffledMux,
        lambda pool: pescador.RoundRobinMux(pool, "cycle"),
        lambda pool: pescador.StochasticMux(pool, 2, 3),
        lambda pool: pescador.ChainMux(pool, "cycle"),
    ],
)
def test_a_stream_that_fails_to_start_is_the_same_visit_when_it_does(make):
    class Source:
        fails = False

        def __iter__(self):
            if Source.fails:
                Source.fails = False
                raise Failure
            return iter(np.random.rand(5).tolist())

    mux = Seeded(make([Source(), Source()]), 3)
    expected = list(mux.iterate(20))
    Source.fails = True
    stream = mux.open(20)
    with pytest.raises(Failure):
        next(stream)
    assert list(mux.open(state=stream.state_dict())) == expected


def test_an_item_that_is_none_is_tried_again_too():
    fails = [True]

    def function(item):
        if fails and item is None:
            fails.clear()
            raise Failure
        return str(item)

    streamer = Streamer(pescador.transform, [1, None, 3], function)
    stream = streamer.open()
    with pytest.raises(Failure):
        list(stream)
    assert list(streamer.open(state=stream.state_dict())) == ["None", "3"]


@pytest.mark.parametrize("last", [{"X": np.zeros(4)}, {}])
def test_a_batch_that_cannot_be_made_is_tried_again_and_again(last):
    items = [{"X": np.zeros(3)}, {"X": np.zeros(3)}, last, *data(9)]
    streamer = Streamer(pescador.buffer_stream, items, 3)
    state = None
    for _ in range(3):
        stream = streamer.open(state=state)
        with pytest.raises((ValueError, KeyError)):
            next(stream)
        state = stream.state_dict()


def test_a_stream_that_has_failed_to_open_may_be_resumed():
    fails = [True]

    class Source:
        def __iter__(self):
            if fails:
                fails.clear()
                raise Failure
            return iter(np.random.rand(5).tolist())

    seeded = Seeded(Streamer(Source()), 3)
    stream = seeded.open()
    with pytest.raises(Failure):
        next(stream)
    assert list(seeded.open(state=stream.state_dict())) == list(seeded)


@pytest.mark.parametrize("order", ["random", "shuffled", "sequential"])
def test_rows_that_could_not_be_read_are_the_next_after_resuming(order):
    class Reader:
        fails = False
        shape, dtype = (20,), np.dtype(np.int64)

        def __getitem__(self, key):
            if Reader.fails:
                Reader.fails = False
                raise OSError("the disk is away")
            return np.arange(20)[key]

    def make():
        return pescador.sources.Rows({"X": Reader()}, order=order, random_state=1)

    expected = plain(list(make().open(8)))
    Reader.fails = True
    stream = make().open(8)
    with pytest.raises(pescador.DataError, match="disk"):
        next(stream)
    assert plain(list(make().open(state=stream.state_dict()))) == expected


def test_a_chain_whose_function_fails_before_its_first_streamer_skips_none():
    fails = []

    def make():
        if fails:
            fails.clear()
            raise Failure
        for i in range(3):
            yield Streamer(count, 2, 2 * i)

    chain = pescador.ChainMux(make, "cycle")
    fails.append(1)
    stream = chain.open(12)
    with pytest.raises(Failure):
        next(stream)
    assert list(chain.open(state=stream.state_dict())) == 2 * list(range(6))


def doubled(stream):
    for item in stream:
        yield 2 * item


def test_a_map_of_ones_own_warns_once_when_its_state_is_expensive_to_restore():
    mapped = Streamer(doubled, pescador.ShuffledMux([Streamer(forever, 1)], random_state=0))
    with mapped.open() as stream:
        for _ in range(99_999):
            next(stream)
        with pytest.warns(PescadorWarning, match=r"doubled.*100,000 items.*pescador.transform"):
            next(stream)
        for _ in range(10):
            next(stream)
    for quiet_one in (Streamer(forever, 1), Streamer(pescador.transform, mapped.args[0], abs)):
        with quiet_one.open(100_001) as stream:
            assert sum(1 for _ in stream) == 100_001
