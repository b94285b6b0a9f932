"""ParallelStreamer: what one process gives, whoever makes it, how far ahead and how fast."""

import contextlib
import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import struct
import sys
import threading
import time

import numpy as np
import pytest
import trees
from hypothesis import assume, given
from hypothesis import strategies as st
from open_trees import Trouble, assert_as_they_were, build, plain, to_open

import pescador
import pescador.ray
from effort import explore
from pescador import (
    SPAWN,
    ArgumentError,
    ParallelStreamer,
    PescadorError,
    Seeded,
    Streamer,
    _schedule,
)
from pescador._channel import process
from streams import count, data, every_item, letters

KINDS = ("process", "thread")


def read(items):
    """Return all items, plain, and what was raised after them."""
    given = []
    try:
        for item in items:
            given.append(plain(item))
    except Exception as error:
        return given, type(error)
    return given, None


def noise(scale, n=10**9):
    for _ in range(n):
        yield {"x": scale * np.random.rand(3)}


def counted(i, n=10**9):
    for value in range(n):
        yield i, value


def drawing(i, *, rng):
    while True:
        yield i, rng.integers(1000)


def pids(i):
    while True:
        yield i, os.getpid()


# ------------------------------------------------------------------------ the items and their order


@pytest.fixture
def sleepy(monkeypatch):
    """Streams of random trees sleep for random times, and may be restarted for ever."""
    monkeypatch.setattr(Trouble, "longest_sleep", 0.001)
    monkeypatch.setattr(trees.Starts, "limit", float("inf"))


options = st.fixed_dictionaries(
    {
        "workers": st.sampled_from([0, 1, 1, 2, 2, 7]),
        "kind": st.sampled_from(KINDS),
        "read_ahead": st.sampled_from([None, None, 0, 1, 2, 9]),
        "open_ahead": st.sampled_from([None, 0, 1, 8]),
        "max_bytes": st.sampled_from([1, 5000, 2**28]),
    }
)


@pytest.mark.usefixtures("sleepy")
@pytest.mark.filterwarnings("ignore::pescador.exceptions.PescadorWarning")
@explore(50)
@given(to_open(draws=True), options, st.integers(0, 100))
def test_any_tree_gives_what_it_gives_under_its_seed_for_any_workers(description, how, n):
    try:
        expected = read(build(description).iterate(n))
    except ArgumentError:
        assume(False)
    assert read(ParallelStreamer(build(description), **how).iterate(n)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_seeded_is_governed_by_the_global_state(kind):
    def items(workers):
        np.random.seed(5)
        mux = pescador.StochasticMux([Streamer(noise, s) for s in (1, 10, 100)], 2, 4)
        found = [
            plain(list(ParallelStreamer(mux, workers, kind=kind)(max_iter=20))) for _ in range(2)
        ]
        return found, np.random.rand()

    here = items(0)
    assert here[0][0] != here[0][1]
    assert items(2) == here
    np.random.seed(5)
    for _ in range(2):
        np.random.randint(0, 2**32, 4, np.uint64)
    assert np.random.rand() == here[1]


def test_a_mux_of_many_short_streams_is_opened_ahead_and_gives_the_same():
    streams = [Streamer(counted, i, i % 5 + 1) for i in range(60)]
    run = Seeded(pescador.StochasticMux(streams, 7, rate=3), 1)
    expected = list(run(max_iter=3000))
    for kind in KINDS:
        parallel = ParallelStreamer(
            Seeded(run.streamer, 1, states=()), 3, kind=kind, open_ahead=8, max_bytes=2**20
        )
        assert list(parallel(max_iter=3000)) == expected
        stats = parallel.stats()
        assert stats["taken"] >= 3000
        assert stats["opened"] > 600
        assert stats["restarts"] == 0


def test_a_stream_that_ends_before_its_bound_leads_to_a_new_plan():
    streams = [Streamer(counted, i, 3) for i in range(4)]
    run = Seeded(pescador.ShuffledMux(streams), 2)
    parallel = ParallelStreamer(run, 2, open_ahead=4)
    assert list(parallel(max_iter=200)) == list(run(max_iter=200))
    assert parallel.stats()["wrong_plans"] > 0


# ------------------------------------------------------------------------------- items of any kind


@pytest.mark.parametrize("max_bytes", [1, 2**20])
@pytest.mark.parametrize("kind", KINDS)
def test_items_of_any_kind_come_as_they_were(kind, max_bytes):
    mux = pescador.ChainMux([Streamer(every_item)] * 2)
    parallel = ParallelStreamer(Seeded(mux, 1, states=()), 2, kind=kind, max_bytes=max_bytes)
    received = list(parallel)
    assert parallel.stats()["taken"] == len(received)
    assert_as_they_were(received, 2)


def unpicklable():
    yield 1
    yield threading.Lock()


def test_an_item_that_cannot_be_sent_is_an_error_that_says_what_would_do():
    mux = pescador.ChainMux([Streamer(unpicklable)])
    items = iter(ParallelStreamer(mux, 1))
    assert next(items) == 1
    with pytest.raises(PescadorError, match=r"type lock cannot be sent.*kind='thread'"):
        next(items)
    parallel = ParallelStreamer(Seeded(mux, 1, states=()), 1, kind="thread")
    assert type(list(parallel)[1]) is type(threading.Lock())


def test_a_lambda_is_sent_as_well():
    def source():
        yield lambda: 3

    [item] = ParallelStreamer(pescador.ChainMux([Streamer(source)]), 1)
    assert item() == 3


@pytest.mark.parametrize("kind", KINDS)
def test_items_larger_than_max_bytes_pass_alone(kind):
    mux = pescador.RoundRobinMux([Streamer(data, 5, (300_000,)) for _ in range(3)], "exhaustive")
    run = Seeded(mux, 3, states=())
    parallel = ParallelStreamer(run, 2, kind=kind, read_ahead=3, max_bytes=2**20)
    assert plain(list(parallel)) == plain(list(run))
    parallel = ParallelStreamer(run, 2, kind=kind, read_ahead=3, max_bytes=1000)
    assert plain(list(parallel)) == plain(list(run))


def large(made, i):
    def source():
        while True:
            with made.get_lock():
                made.value += 1
            yield i, np.zeros(2**16)

    return Streamer(source)


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_not_more_is_made_early_than_max_bytes_holds(kind, wraps):
    made = multiprocessing.Value("q", 0)
    streams = [large(made, i) for i in range(8)]
    if wraps:
        streams = [Streamer(pescador.transform, stream, in_a_list) for stream in streams]
    run = Seeded(pescador.RoundRobinMux(streams), 1, states=())
    # Eight items of 2**19 bytes.
    with contextlib.closing(
        ParallelStreamer(run, 2, kind=kind, read_ahead=20, max_bytes=2**22).iterate()
    ) as items:
        taken = 99
        for _ in range(taken):
            next(items)
        time.sleep(0.2)
        # One for each of the streams may have been ordered before it was known how large they are.
        assert made.value - taken <= 8 + 8


def in_a_list(item):
    return [{"x": item}]


# ------------------------------------------------------------------------------- many kinds of use


def tree(n=6):
    return pescador.ShuffledMux([Streamer(noise, 10**i) for i in range(n)])


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterations_at_once_give_the_same(kind):
    parallel = ParallelStreamer(Seeded(tree(), 4), 2, kind=kind)
    first, second = parallel(max_iter=30), parallel(max_iter=30)
    pairs = list(zip(first, second, strict=True))
    assert [plain(a) for a, _ in pairs] == [plain(b) for _, b in pairs]
    assert [plain(a) for a, _ in pairs] == plain(list(Seeded(tree(), 4)(max_iter=30)))
    assert parallel.active == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_cycled_activated_copied_and_pickled(kind):
    run = Seeded(pescador.ChainMux([Streamer(data, 3), Streamer(data, 2)]), 4)
    parallel = ParallelStreamer(run, 2, kind=kind)
    expected = plain(list(run))
    assert plain(list(parallel.cycle(10))) == expected * 2
    for copied in (copy.copy(parallel), copy.deepcopy(parallel), through_pickle(parallel)):
        assert plain(list(copied)) == expected
    with parallel as active:
        assert plain(list(itertools.islice(active, 4))) == expected[:4]
    assert parallel.active == 0


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
def test_among_other_streams_it_gives_what_its_own_seed_says(kind):
    def nested(workers):
        streams = [ParallelStreamer(Seeded(tree(2), i), workers, kind=kind) for i in range(3)]
        return pescador.StochasticMux(streams, 2, rate=4, random_state=0)

    assert plain(list(nested(2)(max_iter=40))) == plain(list(nested(0)(max_iter=40)))


@pytest.mark.parametrize("kind", KINDS)
def test_inside_a_seeded_tree_it_draws_from_the_seed_of_its_visit(kind):
    def nested(workers):
        streams = [ParallelStreamer(tree(2), workers, kind=kind) for _ in range(3)]
        return Seeded(pescador.StochasticMux(streams, 2, rate=4), 8)

    expected = plain(list(nested(0)(max_iter=40)))
    assert plain(list(nested(2)(max_iter=40))) == expected
    assert len({repr(item) for item in expected}) == 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_parallel_streamer_inside_another_runs_in_the_consumer(kind):
    inner = ParallelStreamer(Seeded(tree(2), 1), 1)
    run = Seeded(pescador.RoundRobinMux([inner, Streamer(noise, 1000)]), 5)
    assert plain(list(ParallelStreamer(run, 2, kind=kind)(max_iter=20))) == plain(
        list(run(max_iter=20))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_worker_of_a_zmq_streamer_it_gives_the_same(kind):
    run = Seeded(tree(2), 1)
    background = pescador.ZMQStreamer(ParallelStreamer(run, 2, kind=kind))
    assert plain(list(background(max_iter=20))) == plain(list(run(max_iter=20)))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_above_it_and_below_the_mux_give_the_same(kind):
    def stream(workers):
        streams = [Streamer(pescador.transform, Streamer(noise, i), doubled) for i in range(4)]
        streams += [Streamer(pescador.cache, Streamer(noise, 9), 4)]
        run = Seeded(pescador.ShuffledMux(streams), 3)
        tree = run if workers is None else ParallelStreamer(run, workers, kind=kind)
        return plain(list(itertools.islice(pescador.buffer_stream(tree, 8), 5)))

    assert stream(2) == stream(None)


def doubled(item):
    return {"x": 2 * item["x"] + np.random.rand()}


def test_a_tree_that_is_no_mux_runs_in_one_worker():
    run = Seeded(Streamer(pids, 0), 1)
    parallel = ParallelStreamer(run, 2)
    seen = {pid for _, pid in parallel(max_iter=10)}
    assert len(seen) == 1
    assert os.getpid() not in seen
    assert {pid for _, pid in ParallelStreamer(run, 0)(max_iter=10)} == {os.getpid()}


@pytest.mark.parametrize("method", process.METHODS)
def test_each_start_method_gives_the_same(method):
    run = Seeded(pescador.ShuffledMux([Streamer(noise, 1), Streamer(drawing, 2, rng=SPAWN)]), 6)
    parallel = ParallelStreamer(run, 2, start_method=method)
    assert plain(list(parallel(max_iter=20))) == plain(list(run(max_iter=20)))


@pytest.mark.parametrize("method", process.METHODS)
def test_with_each_start_method_streams_that_stay_may_be_what_cannot_be_pickled(method):
    def tree():
        mapped = Streamer(pescador.transform, pescador.ChainMux(["ab", count(3)]), repr)
        shared = pescador.RoundRobinMux([count(2), "cde"], "exhaustive")
        mux = pescador.ChainMux([count(9), mapped, shared, pescador.ChainMux([shared, "fg"]), "hi"])
        return Seeded(Streamer(pescador.transform, mux, str), 1)

    parallel = ParallelStreamer(tree(), 2, start_method=method)
    assert list(parallel(max_iter=60)) == list(tree()(max_iter=60))
    assert parallel.stats()["taken"] > 9


# -------------------------------------------------------------------------------- workers that stay


def test_workers_that_are_kept_serve_the_next_iterations_and_epochs():
    mux = pescador.ShuffledMux([Streamer(pids, i) for i in range(6)])
    parallel = ParallelStreamer(Seeded(mux, 1), 2, keep_workers=True)
    seen = set()
    for epoch in range(4):
        parallel.streamer = Seeded(mux, 1).at(epoch=epoch)
        items = list(parallel(max_iter=30))
        seen |= {pid for _, pid in items}
        assert [i for i, _ in items] == [i for i, _ in parallel.streamer(max_iter=30)]
    assert len(seen) == 2
    del parallel
    assert not multiprocessing.active_children()


def test_workers_that_are_kept_remember_nothing_of_an_iteration_that_was_dropped():
    mux = pescador.StochasticMux([Streamer(noise, 10**i) for i in range(6)], 3, 5)
    parallel = ParallelStreamer(Seeded(mux, 1), 2, keep_workers=True, read_ahead=9, open_ahead=6)
    for seed in range(20):
        parallel.streamer = Seeded(mux, seed)
        n = 7 * seed % 20
        with contextlib.closing(parallel(max_iter=40)) as items:
            found = [plain(item) for item in itertools.islice(items, n)]
        assert found == plain(list(parallel.streamer(max_iter=n)))


def test_two_iterations_at_once_do_not_share_workers_that_are_kept():
    mux = pescador.ShuffledMux([Streamer(pids, i) for i in range(6)])
    parallel = ParallelStreamer(Seeded(mux, 1), 1, keep_workers=True)
    for _ in range(3):
        pairs = list(zip(parallel(max_iter=9), parallel(max_iter=9), strict=True))
        assert len({pid for pair in pairs for _, pid in pair}) == 2
        assert len(multiprocessing.active_children()) == 1
    del parallel
    assert not multiprocessing.active_children()


def test_another_number_of_workers_is_started_anew():
    mux = pescador.ShuffledMux([Streamer(pids, i) for i in range(6)])
    parallel = ParallelStreamer(Seeded(mux, 1), 1, keep_workers=True)
    list(parallel(max_iter=9))
    parallel.workers = 3
    assert len({pid for _, pid in parallel(max_iter=200)}) == 3
    parallel.workers = 0
    assert {pid for _, pid in parallel(max_iter=9)} == {os.getpid()}


@pytest.mark.skipif("forkserver" not in process.METHODS, reason="forked workers know all streams")
def test_a_stream_that_stayed_when_kept_workers_were_started_is_not_theirs_later():
    stream = Streamer(count(3))
    mux = pescador.ChainMux([stream, "abc"])
    parallel = ParallelStreamer(mux, 1, start_method="forkserver", keep_workers=True)
    assert list(parallel) == [0, 1, 2, *"abc"]
    stream.streamer = [7, 8]
    parallel.keep_workers = False
    with pytest.raises(PescadorError, match=r"streamers\[0\], visit 0: .* keep_workers"):
        list(parallel)


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", -1),
        ("workers", 1.5),
        ("workers", "2"),
        ("workers", True),
        ("kind", "fork"),
        ("read_ahead", -1),
        ("open_ahead", -1),
        ("open_ahead", 0.5),
        ("max_bytes", 0),
        ("max_bytes", None),
        ("start_method", "spoon"),
        ("restart", 1),
        ("keep_workers", "yes"),
    ],
)
def test_a_bad_argument_is_refused_by_its_name_passed_or_assigned(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}={value!r}"):
        ParallelStreamer("abc", **{name: value})
    parallel = ParallelStreamer("abc", 0)
    setattr(parallel, name, value)
    with pytest.raises(ArgumentError, match=rf"{name}={value!r}"):
        next(parallel.iterate())


@pytest.mark.parametrize(
    ("name", "value"), [("start_method", "fork"), ("restart", True), ("keep_workers", True)]
)
def test_what_only_processes_can_do_is_refused_with_threads(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}={value!r} .* kind='thread'"):
        ParallelStreamer("abc", 1, kind="thread", **{name: value})
    parallel = ParallelStreamer("abc", 1, **{name: value})
    parallel.kind = "thread"
    with pytest.raises(ArgumentError, match=rf"{name}={value!r} .* kind='thread'"):
        next(parallel.iterate())


@pytest.mark.parametrize(
    ("name", "value"), [("num_cpus", -1), ("max_visits", 0), ("batch", 1.5), ("copy", 1)]
)
def test_an_executor_of_ray_refuses_a_bad_argument_by_its_name(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}={value!r}"):
        pescador.ray.Executor(**{name: value})
    with pytest.raises(ArgumentError, match=r"start_method='spawn' is for processes"):
        ParallelStreamer("abc", kind=pescador.ray.Executor(), start_method="spawn")


def test_without_ray_an_executor_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    parallel = ParallelStreamer(pescador.ShuffledMux(letters("ab")), kind=pescador.ray.Executor())
    assert str(parallel).endswith("2 streams run in Ray actors")
    with pytest.raises(ImportError, match=r"pip install 'pescador\[ray\]'"):
        next(parallel.iterate())


def test_without_a_number_one_processor_is_left_to_the_consumer():
    assert ParallelStreamer("abc").workers == max(len(os.sched_getaffinity(0)) - 1, 1)


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(PescadorError):
        ParallelStreamer(3)
    parallel = ParallelStreamer(pescador.ShuffledMux(letters("ab")), 1)
    with pytest.raises(ArgumentError, match="max_iter=-1"):
        next(parallel.iterate(-1))


# ------------------------------------------------------------ batches that workers write items into


def images(i, n, side=40):
    for j in range(n):
        yield {"x": np.random.rand(side, side), "y": np.array(100 * i + j)}


def ragged(i, n):
    for j in range(n):
        yield {"x": np.random.rand(40, 40 + (j == 5 and i == 2)), "y": np.array(j)}


def batches(tree, size, **options):
    return Streamer(pescador.buffer_stream, tree, size, **options)


POOLS = {
    "short": lambda: [Streamer(images, i, i % 4 + 1) for i in range(9)],
    "long": lambda: [Streamer(images, i, 10**6) for i in range(9)],
}


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 2**18, 2**28])
@pytest.mark.parametrize("pool", ["short", "long"])
def test_batches_are_what_they_are_without_workers(pool, max_bytes, hold):
    def run():
        return Seeded(pescador.StochasticMux(POOLS[pool](), 4, rate=6), 5)

    expected = plain(list(batches(run(), 8)(max_iter=12)))
    parallel = ParallelStreamer(run(), 2, max_bytes=max_bytes, keep_workers=True)
    for _ in range(3):
        found, held = [], []
        for batch in batches(parallel, 8)(max_iter=12):
            found.append(plain(batch))
            # What the consumer does to a batch is nobody else's.
            batch["x"][...] = -1
            if hold:
                held.append(batch)
        assert found == expected
        assert all((batch["x"] == -1).all() for batch in held)


@pytest.mark.parametrize("partial", [False, True])
def test_the_last_batch_is_what_it_is_without_workers(partial):
    run = Seeded(pescador.ChainMux([Streamer(images, i, 7) for i in range(5)]), 5)
    parallel = ParallelStreamer(run, 2)
    assert plain(list(batches(parallel, 8, partial=partial))) == plain(
        list(batches(run, 8, partial=partial))
    )


def images_of_any_number(i):
    for item in images(i, 1000):
        yield item
        if np.random.rand() < 0.1:
            return


@pytest.mark.parametrize("seed", range(4))
def test_visits_with_a_lower_bound_than_expected_leave_no_row_to_an_item_that_is_dropped(seed):
    streams = [Streamer(images_of_any_number, i) for i in range(10)]
    run = Seeded(pescador.StochasticMux(streams, 8, rate=5), seed)
    parallel = ParallelStreamer(run, 1)
    # Large ones: the row comes in the batch in which the plan was wrong.
    assert plain(list(batches(parallel, 256)(max_iter=6))) == plain(
        list(batches(run, 256)(max_iter=6))
    )


def test_two_sizes_of_batches_of_one_streamer_are_each_as_without_workers():
    run = Seeded(pescador.ShuffledMux([Streamer(images, i, 10**6) for i in range(5)]), 5)
    parallel = ParallelStreamer(run, 2)
    pairs = zip(batches(parallel, 4)(max_iter=6), batches(parallel, 6)(max_iter=6), strict=True)
    four, six = zip(*((plain(a), plain(b)) for a, b in pairs), strict=True)
    assert list(four) == plain(list(batches(run, 4)(max_iter=6)))
    assert list(six) == plain(list(batches(run, 6)(max_iter=6)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["iterate", "open"])
def test_two_streams_of_batches_may_take_turns_at_one_iteration(kind, how):
    def read_in_turn(tree):
        with contextlib.closing(getattr(tree, how)()) as items:
            sizes = [(pescador.buffer_stream(items, 4), pescador.buffer_stream(items, 7))] * 6
            return plain([next(batches) for pair in sizes for batches in pair] + [next(items)])

    run = Seeded(pescador.ShuffledMux([Streamer(data, 10**9, (2000,)) for _ in range(4)]), 3)
    parallel = ParallelStreamer(run, 2, kind=kind)
    assert read_in_turn(parallel) == read_in_turn(run)


def test_items_that_do_not_fit_together_fail_as_they_do_without_workers():
    run = Seeded(pescador.RoundRobinMux([Streamer(ragged, i, 9) for i in range(4)]), 5)
    assert read(batches(ParallelStreamer(run, 2), 8)(max_iter=9)) == read(
        batches(run, 8)(max_iter=9)
    )


def with_other_keys(i):
    for j in range(10**6):
        x = np.random.rand(1000)
        yield {"x": x, "y": -x} if j < 8 else {"y": -x, "x": x}


def test_items_with_their_keys_in_another_order_make_the_same_batches():
    streams = [Streamer(with_other_keys, i) for i in range(4)]
    run = Seeded(pescador.StochasticMux(streams, 4, rate=None), 5)
    parallel = ParallelStreamer(run, 2, max_bytes=2**20)
    assert plain(list(batches(parallel, 8)(max_iter=20))) == plain(
        list(batches(run, 8)(max_iter=20))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
@pytest.mark.parametrize("lacking", [{1}, {2}, {1, 2}])
def test_batches_are_whole_where_there_is_no_memory_to_share_with_a_worker(lacking, monkeypatch):
    from pescador._channel import consumer

    numbers, share = itertools.count(1), consumer.shared_memory
    monkeypatch.setattr(
        consumer, "shared_memory", lambda n: None if next(numbers) in lacking else share(n)
    )
    run = Seeded(pescador.StochasticMux(POOLS["short"](), 4, rate=6), 5)
    parallel = ParallelStreamer(run, 2, start_method="fork", keep_workers=True)
    expected = plain(list(batches(run, 8)(max_iter=12)))
    for _ in range(2):
        assert plain(list(batches(parallel, 8)(max_iter=12))) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_a_worker_that_always_has_orders_forgets_those_that_it_has_carried_out():
    from pescador._channel.memory import SharedMemory
    from pescador._channel.orders import OrderReader, OrderWriter
    from pescador.parallel.production import Production

    class Consumer:
        messages = ()

        def wait(self, timeout):
            return True

    class Endless:
        due = float("inf")
        node = itertools.repeat({"x": np.zeros(1)})

        def close(self):
            pass

    memory = SharedMemory(1)
    writer = OrderWriter(memory, lambda: None)
    production = Production(Consumer(), lambda *_: Endless(), None, None, lambda: False)
    production.orders = OrderReader(memory)
    begin, more = struct.pack("<5q", 5, 10**9, 0, 1, 0), struct.pack("<q", 4)
    writer.put(begin + more)
    for _ in range(10_000):
        writer.put(more)
        next(production)
    assert sum(len(kept) for kept in gc.get_referents(production) if type(kept) is list) < 5000


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_rows_of_batches_that_nobody_makes_take_the_memory_of_a_few():
    from pescador._channel.memory import Arena, SharedMemory
    from pescador._rows import BatchRows

    memory = SharedMemory(2**20)
    rows = BatchRows(Arena(memory), 0, 4, [("x", np.dtype(float), (1024,), np.ndarray)])
    for number in range(400):
        placed = rows.place(number + 1, number + 1)
        if placed is not None:
            placed.expect(number % 4)
            placed.forget(number % 4)
        assert memory.held <= 4 * 4 * 8192
    assert placed is None
    assert rows.array(0, (4, 1024), np.dtype(float), 400).base is not None
    assert rows.place(401, 401) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_a_visit_that_begins_much_later_leaves_its_memory_to_the_batches_before_it():
    from pescador._channel.memory import Arena, SharedMemory
    from pescador._rows import BatchRows

    memory = SharedMemory(2**20)
    arena = Arena(memory)
    rows = BatchRows(arena, 0, 4, [("x", np.dtype(float), (1024,), np.ndarray)])
    # Of which the reader has one, and one is being filled.
    ahead = arena.size // (4 * 8192 + 64) - 2
    assert rows.place(4 * (ahead + 1), 0) is None
    assert rows.place(4000, 0) is None
    assert memory.held == 0
    assert rows.place(4 * ahead, 0) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_early_items_wait_for_the_memory_of_their_batch_but_where_the_reader_keeps_all_of_it():
    from pescador._channel.memory import Arena, SharedMemory
    from pescador._rows import BatchRows

    arena = Arena(SharedMemory(2**20))
    rows = BatchRows(arena, 0, 4, [("x", np.dtype(float), (1024,), np.ndarray)])

    def begin(number):
        return rows.array(0, (4, 1024), np.dtype(float), number)

    kept = [begin(number) for number in range(0, 4 * rows.room, 4)]
    number = 4 * rows.room
    while (block := arena.allocate(4 * 8192)) is not None:
        kept.append(block)
    assert rows.waits(number, number - 1)
    # It is due.
    assert not rows.waits(number, number)
    del kept[0]
    assert not rows.waits(number, number - 1)
    kept += [begin(number), begin(number + 4)]
    assert not rows.waits(number + 8, number + 7)
    kept.clear()
    begin(number + 8)
    assert not rows.waits(number + 12, number + 11)


def test_a_worker_of_which_nothing_is_known_is_not_taken_for_a_fast_one():
    known, other = (_schedule.Orders(None, None, None, None, None) for _ in range(2))
    known.cost = 15_000
    assert _schedule.least_busy([known, other]) is known
    other.cost = 10_000
    assert _schedule.least_busy([known, other]) is other
