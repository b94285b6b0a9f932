"""`Seeded`: one seed for all, by the derivation that its documentation gives."""

import gc
import os
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_trees import plain

import pescador
from conftest import MUXES, with_hooks
from pescador import SPAWN, PescadorError, Seeded, Streamer, _global_rng
from streams import Failure

SEED = 2024


@pytest.fixture(params=["memory", "public functions"], autouse=True)
def exchange(request):
    """What holds where states are copied holds where NumPy's or Python's layout is not known."""
    if request.param == "memory":
        assert _global_rng.use_layouts(), "the layouts of this NumPy and Python are known"
    else:
        _global_rng.use_layouts(False)
    yield
    _global_rng.use_layouts()


def sequence_of(path=(), seed=SEED, epoch=0, rank=0):
    return np.random.SeedSequence(seed, spawn_key=(epoch, rank, *path))


class Visit:
    """What NumPy and Python draw from the seed of a visit."""

    def __init__(self, path=(), **kwargs):
        self.sequence = sequence_of(path, **kwargs)
        self.words = self.sequence.generate_state(8)

    @property
    def numpy(self):
        return np.random.RandomState(self.words[:4])

    @property
    def python(self):
        number = int.from_bytes(self.words[4:].astype("<u4").tobytes(), "little")
        return random.Random(number)


def draw(n=5):
    for _ in range(n):
        yield np.random.randint(1 << 30), random.random(), np.random.randn(), random.gauss(0, 1)


def drawn(visit, n=5):
    """What `draw` gives in a visit."""
    numpy, python = visit.numpy, visit.python
    return [
        (numpy.randint(1 << 30), python.random(), numpy.randn(), python.gauss(0, 1))
        for _ in range(n)
    ]


def rest(n, i=None):
    """n items that tell where they come from."""
    for j in range(n):
        yield i, j, np.random.randint(1 << 30), random.random()


def spawning(n, *, rng):
    for _ in range(n):
        yield rng.integers(1 << 60)


# ------------------------------------------------------------------------------ the derivation


@given(
    st.integers(0, 2**200),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
    st.integers(0, 2**70),
    st.integers(0, 9),
)
def test_the_global_states_start_from_the_eight_words_of_the_seed(entropy, key, epoch, rank):
    seed = np.random.SeedSequence(entropy, spawn_key=tuple(key))
    words = np.random.SeedSequence(entropy, spawn_key=(*key, epoch, rank)).generate_state(8)

    def states():
        yield plain(np.random.get_state()), random.getstate()

    found = list(Seeded(Streamer(states), seed, epoch=epoch, rank=rank))
    number = sum(int(word) << 32 * i for i, word in enumerate(words[4:]))
    assert found == [
        (plain(np.random.RandomState(words[:4]).get_state()), random.Random(number).getstate())
    ]


def test_a_stream_draws_what_numpy_and_random_do_from_its_seed():
    assert list(Seeded(Streamer(draw), SEED)) == drawn(Visit())
    assert list(Seeded(Streamer(draw), SEED, epoch=3, rank=5)) == drawn(Visit(epoch=3, rank=5))


def test_a_mux_draws_from_a_random_state_of_the_first_four_words():
    streamers = [Streamer(range(i, 100, 7)) for i in range(5)]
    kwargs = {"n_active": 3, "rate": 4}
    ours = Seeded(pescador.StochasticMux(streamers, **kwargs), SEED).iterate(50)
    state = Visit().numpy
    assert list(ours) == list(
        pescador.StochasticMux(streamers, **kwargs, random_state=state).iterate(50)
    )


@pytest.mark.parametrize("order", ["random", "shuffled"])
def test_a_source_draws_from_a_pcg64_of_its_seed(order):
    arrays = {"x": np.arange(1000)}
    path = (1, 0)
    mux = pescador.ChainMux([[{"x": np.array(0)}], pescador.sources.Rows(arrays, order=order)])
    ours = [int(item["x"]) for item in Seeded(mux, SEED).iterate(1 + 20)][1:]
    given = np.random.Generator(np.random.PCG64(sequence_of(path)))
    if order == "random":
        expected = given.integers(0, 1000, size=20).tolist()
    else:
        source = pescador.sources.Rows(arrays, order=order, random_state=given)
        expected = [int(item["x"]) for item in source.iterate(20)]
    assert ours == expected


def test_a_function_that_is_given_spawn_gets_default_rng_of_its_seed():
    mux = pescador.ChainMux([Streamer(spawning, 2, rng=SPAWN)] * 2)
    expected = [
        np.random.default_rng(sequence_of((i, 0))).integers(1 << 60, size=2) for i in (0, 1)
    ]
    assert list(Seeded(mux, SEED)) == np.concatenate(expected).tolist()


def test_a_cache_without_a_random_state_draws_as_a_mux_does():
    cached = Streamer(pescador.cache, Streamer(range(50)), 4)
    expected = Streamer(pescador.cache, Streamer(range(50)), 4, random_state=Visit().numpy)
    assert list(Seeded(cached, SEED)) == list(expected)


def test_todays_numbers_stay():
    mux = pescador.ShuffledMux([Streamer(draw, 3), Streamer(draw, 3)])
    assert [item[0] for item in Seeded(mux, 7).iterate(6)] == FROZEN
    assert Visit((0, 0), seed=7).words.tolist() == FROZEN_WORDS


FROZEN = [508453807, 438254880, 461969640, 861642399, 304038288, 264356331]
FROZEN_WORDS = [
    3713417366,
    1058500329,
    4124336720,
    2060713316,
    3400725634,
    1244798268,
    4144701215,
    3908458913,
]


@pytest.mark.parametrize("hooks", [False, True])
def test_only_pools_add_a_level_to_the_path(hooks):
    wrap = with_hooks if hooks else lambda cls: cls
    inner = wrap(pescador.ChainMux)([Streamer(draw, 1), Streamer(draw, 2)], mode="cycle")
    mapped = Streamer(pescador.transform, inner, lambda item: item)
    outer = wrap(pescador.RoundRobinMux)([Streamer(draw, 4), mapped])
    items = list(Seeded(outer, SEED).iterate(12))
    assert items[0:8:2] == drawn(Visit((0, 0)), 4)
    firsts = drawn(Visit((1, 0, 0, 0)), 1) + drawn(Visit((1, 0, 1, 0)), 2)
    seconds = drawn(Visit((1, 0, 0, 1)), 1) + drawn(Visit((1, 0, 1, 1)), 2)
    assert (items[1:8:2] + items[8:])[:6] == firsts + seconds


def test_visits_are_counted_within_one_activation_of_the_mux_around_them():
    inner = pescador.RoundRobinMux([Streamer(draw, 1)])
    outer = pescador.ChainMux([inner, inner], mode="cycle")
    paths = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0)]
    assert list(Seeded(outer, SEED).iterate(4)) == [
        item for path in paths for item in drawn(Visit(path), 1)
    ]


def test_one_object_in_two_places_is_two():
    leaf = Streamer(draw, 2)
    items = list(Seeded(pescador.RoundRobinMux([leaf, leaf]), SEED))
    assert items[::2] == drawn(Visit((0, 0)), 2)
    assert items[1::2] == drawn(Visit((1, 0)), 2)


def test_a_streamer_that_is_iterated_by_a_streams_own_code_is_no_visit():
    def code():
        yield from Streamer(draw, 2)
        yield from pescador.ShuffledMux([Streamer(draw, 2)]).iterate(1)

    items = list(Seeded(Streamer(code), SEED))
    numpy, python = Visit().numpy, Visit().python
    assert items[:2] == drawn(Visit(), 2)
    for _ in range(2):
        numpy.randint(1 << 30), python.random(), numpy.randn(), python.gauss(0, 1)
    numpy.rand()
    assert items[2][0] == numpy.randint(1 << 30)


def test_an_inner_seeded_keeps_its_seed():
    inner = Seeded(Streamer(draw, 3), 99, epoch=2)
    items = list(Seeded(pescador.RoundRobinMux([inner, Streamer(draw, 3)]), SEED))
    assert items[::2] == drawn(Visit(seed=99, epoch=2), 3)
    assert items[1::2] == drawn(Visit((1, 0)), 3)


def test_explicit_seeds_stay_what_they_are():
    streamers = ["abc", "xyz"]
    mux = pescador.ShuffledMux(streamers, random_state=3)
    rows = pescador.sources.Rows({"x": np.arange(9)}, random_state=4)
    assert list(Seeded(mux, SEED).iterate(9)) == list(mux.iterate(9))
    assert plain(list(Seeded(rows, SEED).iterate(9))) == plain(list(rows.iterate(9)))


# --------------------------------------------------------------------------------- epochs, ways


@pytest.mark.parametrize("name", MUXES)
def test_all_ways_of_iterating_give_the_same_and_passes_are_equal(name):
    kwargs = {"n_active": 2, "rate": 2} if name == "StochasticMux" else {}
    if name in ("RoundRobinMux", "ChainMux"):
        kwargs["mode"] = "cycle"
    mux = getattr(pescador, name)([Streamer(draw, 3), Streamer(draw, 2)], **kwargs)
    seeded = Seeded(mux, SEED)
    first = list(seeded.iterate(20))
    assert list(seeded.iterate(20)) == first
    assert list(seeded.open(20)) == first
    assert list(seeded(max_iter=20)) == first
    assert list(Seeded(with_hooks(type(mux))(mux.streamers, **kwargs), SEED).iterate(20)) == first
    with seeded as active:
        assert list(active.iterate(20)) == first
    short = Seeded(Streamer(draw, 2), SEED)
    assert list(short.cycle(4)) == drawn(Visit(), 2) * 2


def test_at_is_the_same_tree_at_another_epoch_or_rank():
    seeded = Seeded(Streamer(draw), SEED, epoch=1, rank=2, states=("random", "numpy"))
    other = seeded.at(epoch=5)
    assert (other.epoch, other.rank, other.seed, other.states) == (5, 2, SEED, ("numpy", "random"))
    assert other.streamer is seeded.streamer
    assert list(other) == drawn(Visit(epoch=5, rank=2))
    assert list(seeded.at(rank=0)) == drawn(Visit(epoch=1))
    assert list(seeded) == drawn(Visit(epoch=1, rank=2))


def test_what_a_stream_draws_does_not_depend_on_others():
    alone = Seeded(pescador.RoundRobinMux([Streamer(rest, 5, 0)]), SEED)
    among = Seeded(pescador.RoundRobinMux([Streamer(rest, 5, i) for i in range(4)]), SEED)
    assert list(alone) == [item for item in among if item[0] == 0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": None}, "seed=None"),
        ({"seed": True}, "seed=True"),
        ({"seed": np.random.SeedSequence(1, pool_size=8)}, "pool_size of 4"),
        ({"epoch": -1}, "epoch=-1"),
        ({"rank": 0.5}, "rank=0.5"),
        ({"states": "numpy"}, "states='numpy'"),
        ({"states": ("jax",)}, "jax"),
    ],
)
def test_arguments_that_are_invalid_are_refused(kwargs, message):
    with pytest.raises(pescador.ArgumentError, match=message):
        Seeded("abc", **{"seed": 1, **kwargs})


# --------------------------------------------------------------------------- the caller's states


@pytest.fixture
def callers():
    """What tells the caller's states, with a deviate left over in both."""
    np.random.seed(1)
    random.seed(1)
    np.random.standard_normal()
    random.gauss(0, 1)

    def state():
        return plain(np.random.get_state()), random.getstate()

    assert state()[0][3] == 1
    assert state()[1][2] is not None
    return state


def normal():
    while True:
        yield np.random.standard_normal(), random.gauss(0, 1)


def test_the_callers_states_are_as_they_were_after_each_step(callers):
    before = callers()
    mux = pescador.StochasticMux([Streamer(normal), Streamer(draw, 3)], 2, 3)
    stream = Seeded(mux, SEED).iterate(30)
    for _ in stream:
        assert callers() == before
    assert callers() == before


def test_the_callers_states_are_as_they_were_after_an_error(callers):
    def failing():
        yield normal().__next__()
        np.random.seed(5)
        random.seed(5)
        raise Failure

    before = callers()
    stream = iter(Seeded(Streamer(failing), SEED))
    next(stream)
    with pytest.raises(Failure):
        next(stream)
    assert callers() == before


def test_the_callers_states_are_as_they_were_when_opening_has_failed(callers):
    class Source:
        def __iter__(self):
            np.random.rand()
            raise Failure

    before = callers()
    with pytest.raises(Failure):
        next(iter(Seeded(Streamer(Source()), SEED)))
    assert callers() == before


ENDS = []


def with_an_end():
    try:
        while True:
            yield np.random.standard_normal(), random.gauss(0, 1)
    finally:
        ENDS.append((np.random.randint(1 << 30), random.random()))


def in_the_end():
    """What `with_an_end` draws when it is closed after one item."""
    numpy, python = Visit((0, 0)).numpy, Visit((0, 0)).python
    numpy.standard_normal(), python.gauss(0, 1)
    return [(numpy.randint(1 << 30), python.random())]


@pytest.mark.parametrize("way", ["close", "drop", "exhaust", "close open", "drop open", "replace"])
def test_code_that_runs_when_a_stream_ends_draws_from_the_visits_states(way, callers):
    before = callers()
    ENDS.clear()
    streamers = [Streamer(with_an_end)]
    if way == "replace":
        mux = pescador.StochasticMux(streamers, 1, 1, dist="constant")
        stream = Seeded(mux, SEED).iterate(2)
        list(stream)
        gc.collect()
        del ENDS[1:]
    elif "open" in way:
        stream = Seeded(pescador.RoundRobinMux(streamers), SEED).open()
        next(stream)
    else:
        n = 1 if way == "exhaust" else None
        stream = Seeded(pescador.RoundRobinMux(streamers), SEED).iterate(n)
        next(stream)
    if "close" in way:
        stream.close()
    elif "drop" in way:
        del stream
        gc.collect()
    else:
        assert list(stream) == []
    assert in_the_end() == ENDS
    assert callers() == before


def test_a_stream_whose_bit_generator_is_replaced_is_seeded_and_the_callers_is_not(callers):
    before = callers()

    def code():
        np.random.set_state(np.random.RandomState(3).get_state())
        yield np.random.rand()
        yield np.random.rand()

    state = np.random.RandomState(3)
    assert list(Seeded(Streamer(code), SEED)) == [state.rand(), state.rand()]
    assert callers() == before


def test_states_that_are_not_governed_are_the_callers():
    np.random.seed(3)
    random.seed(3)
    items = list(Seeded(Streamer(draw), SEED, states=("numpy",)))
    after = random.getstate()
    random.seed(3)
    python = [(random.random(), random.gauss(0, 1)) for _ in range(5)]
    assert random.getstate() == after
    numpy = drawn(Visit())
    assert [item[0] for item in items] == [item[0] for item in numpy]
    assert [(item[1], item[3]) for item in items] == python


@pytest.mark.parametrize("function", [np.random.rand, random.random, lambda: np.random.seed(1)])
def test_a_stream_that_draws_though_it_promised_not_to_is_an_error(function):
    def code():
        yield 1
        function()
        yield 2

    mux = pescador.RoundRobinMux(["ab", Streamer(code)])
    stream = Seeded(mux, SEED, states=()).iterate()
    assert [next(stream) for _ in range(3)] == ["a", 1, "b"]
    with pytest.raises(PescadorError, match=r"streamers\[1\].*has drawn from the global"):
        next(stream)
    quiet = Seeded(pescador.ShuffledMux(["ab", Streamer(spawning, 2, rng=SPAWN)]), SEED, states=())
    assert len(list(quiet.iterate(9))) == 9


# ----------------------------------------------------------------------------- threads and forks


def test_two_threads_iterate_at_once(callers):
    before = callers()
    expected = {seed: drawn(Visit(seed=seed), 300) for seed in (1, 2)}
    found = {}
    barrier = threading.Barrier(2)

    def slow(n):
        """Let the other thread run in the midst of an item."""
        for item in draw(n):
            threading.Event().wait(0)
            yield item

    def read(seed):
        barrier.wait()
        found[seed] = list(Seeded(Streamer(slow, 300), seed))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert callers() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_stream_that_forks_goes_on_in_both_processes(callers):
    before = callers()
    read_end, write_end = os.pipe()

    def code():
        yield np.random.rand()
        pid = os.fork()
        yield pid
        yield np.random.rand()

    stream = iter(Seeded(Streamer(code), SEED))
    numpy = Visit().numpy
    assert next(stream) == numpy.rand()
    pid = next(stream)
    here = next(stream) == numpy.rand() and callers() == before
    if pid == 0:
        os.write(write_end, b"yes" if here else b"no")
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == b"yes"
    os.waitpid(pid, 0)
    assert here


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_process_that_is_forked_while_another_thread_runs_a_stream_is_not_locked():
    inside, done = threading.Event(), threading.Event()

    def waits():
        inside.set()
        done.wait()
        yield np.random.rand()

    thread = threading.Thread(target=lambda: list(Seeded(Streamer(waits), SEED)))
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if list(Seeded(Streamer(draw), SEED)) == drawn(Visit()) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    done.set()
    thread.join()


@pytest.mark.parametrize(
    "build",
    [
        lambda x: Seeded(pescador.ZMQStreamer(x), SEED),
        lambda x: pescador.ZMQStreamer(Seeded(x, SEED)),
    ],
)
def test_in_a_worker_it_draws_the_same(build):
    def arrays():
        for item in draw():
            yield {"x": np.array(item)}

    mux = pescador.ShuffledMux([Streamer(arrays), Streamer(arrays)])
    assert plain(list(build(mux).iterate(9))) == plain(list(Seeded(mux, SEED).iterate(9)))


def test_in_the_worker_of_a_subclass_it_draws_the_same_each_time():
    class Own(pescador.ZMQStreamer):
        def iterate(self, max_iter=None):
            yield from super().iterate(max_iter)

    def arrays():
        for item in draw():
            yield {"x": np.array(item)}

    expected, own = (
        Seeded(pescador.ShuffledMux([kind(Streamer(arrays)) for _ in range(2)]), SEED)
        for kind in (pescador.ZMQStreamer, Own)
    )
    for _ in range(2):
        assert plain(list(own.iterate(9))) == plain(list(expected.iterate(9)))


# --------------------------------------------------------------------------------------- torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(n=5, more=0):
    # Where a worker imports it, too.
    import torch

    for _ in range(n):
        # Of normal deviates, torch keeps one as well.
        yield torch.rand(()).item(), torch.randn(()).item(), np.random.rand()
        torch.rand(more)


def under_torch(function, *args, seed=SEED):
    return Seeded(Streamer(function, *args), seed, states=("numpy", "random", "torch"))


def test_torch_draws_from_the_first_two_words_of_the_seed(torch):
    words, numpy, own = Visit().words, Visit().numpy, torch.Generator()
    own.manual_seed(int(words[0]) + (int(words[1]) << 32))
    assert list(under_torch(tensors)) == [
        (torch.rand((), generator=own).item(), torch.randn((), generator=own).item(), numpy.rand())
        for _ in range(5)
    ]


def test_torchs_state_is_the_callers_after_each_step_after_an_error_and_at_the_end(torch):
    def code():
        inner = under_torch(tensors, seed=1).iterate()
        try:
            for item in tensors(3):
                yield item, next(inner)
            raise Failure
        finally:
            torch.rand(3)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    items = []

    def read():
        for item in under_torch(code):
            items.append(item)
            assert torch.equal(torch.get_rng_state(), before)

    with pytest.raises(Failure):
        read()
    assert items == list(zip(under_torch(tensors, 3), under_torch(tensors, 3, seed=1), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    for _ in under_torch(code).iterate(2):
        pass
    assert torch.equal(torch.get_rng_state(), before)


class Located:
    """An iterable whose iterator draws from torch, and can tell where it is."""

    def __iter__(self):
        return LocatedIterator()


class LocatedIterator:
    def __init__(self):
        self.index = 0

    def __iter__(self):
        return self

    def __next__(self):
        import torch

        self.index += 1
        return self.index, torch.randn(()).item()

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


@pytest.mark.parametrize(
    "leaf", [Streamer(tensors, 50), Streamer(Located())], ids=["replayed", "located"]
)
def test_a_stream_that_draws_from_torch_goes_on_from_its_state(torch, leaf):
    seeded = Seeded(pescador.ShuffledMux([leaf, leaf]), SEED, states=("torch", "numpy"))
    items = list(seeded.iterate(20))
    stream = seeded.open(20)
    for n in range(20):
        torch.rand(3)
        assert list(seeded.open(state=stream.state_dict())) == items[n:]
        assert next(stream) == items[n]


def test_a_replay_that_draws_otherwise_from_torch_is_an_error(torch):
    stream = under_torch(tensors, 9).open()
    for _ in range(3):
        next(stream)
    with pytest.raises(pescador.StateError, match="other random numbers"):
        under_torch(tensors, 9, 1).open(state=stream.state_dict())
    # Format 1 did not tell.
    state = stream.state_dict()
    state["tree"]["states"].pop()
    under_torch(tensors, 9, 1).open(state={**state, "pescador": 1})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("outside", [True, False])
def test_a_worker_draws_the_same_from_torch(torch, method, outside):
    def arrays():
        for item in tensors():
            yield {"x": np.array(item)}

    states = ("numpy", "random", "torch")
    if outside:
        seeded = Seeded(pescador.ZMQStreamer(arrays, start_method=method), SEED, states=states)
    else:
        seeded = pescador.ZMQStreamer(
            Seeded(Streamer(arrays), SEED, states=states), start_method=method
        )
    assert plain(list(seeded.iterate())) == plain(list(under_torch(arrays)))


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("epoch", 0.5), ("rank", True), ("states", ("cuda",))]
)
def test_what_is_assigned_later_is_checked_when_it_is_iterated(name, value):
    run = Seeded(Streamer("abc"), SEED)
    setattr(run, name, value)
    with pytest.raises(pescador.ArgumentError, match=f"{name}="):
        next(run.iterate())
    with pytest.raises(pescador.ArgumentError, match=f"{name}="):
        next(run.open())


@pytest.mark.parametrize("kind", [Seeded, pescador.ParallelStreamer])
def test_a_subclass_that_overrides_iterate_is_asked_in_a_mux_too(kind):
    class Loud(kind):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield "item", item

    loud = Loud(Streamer(range(3)), 0)
    assert list(pescador.ChainMux([loud])) == [("item", 0), ("item", 1), ("item", 2)]
    assert list(pescador.ChainMux([loud]).open()) == [("item", 0), ("item", 1), ("item", 2)]
    run = Seeded(pescador.ShuffledMux([loud]), 0)
    assert list(run(max_iter=2)) == [("item", 0), ("item", 1)]
