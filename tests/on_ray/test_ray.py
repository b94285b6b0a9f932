"""Visits in actors of Ray: what workers=0 gives, whatever is lost, and nothing is left behind."""

import contextlib
import gc
import itertools
import math
import os
import pickle
import random
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from open_trees import Resumable, assert_as_they_were, build, plain, read, to_open
from scripts import run as run_script

import pescador
from pescador import ArgumentError, ParallelStreamer, PescadorError, Seeded, Streamer
from pescador.parallel import packets
from pescador.ray import Executor
from pescador.sources import Rows
from streams import ITEMS, Failure, every_item

ray = pytest.importorskip("ray", reason="Ray is not installed")

from ray._private.internal_api import memory_summary  # noqa: E402

from remote_streams import (  # noqa: E402
    HOW,
    Unloadable,
    actors,
    closing,
    counted,
    dying,
    images,
    in_actors,
    mixed,
    noise,
    prepare,
    raising,
    references,
    reused,
    slow_noise,
    soon,
    tell_node,
)  # fmt: skip

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

TREES = 10


@pytest.fixture(scope="module", autouse=True)
def cluster():
    prepare()
    ray.init(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        runtime_env={"worker_process_setup_hook": prepare},
        **HOW,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_in_ray():
    before = references()
    yield
    assert soon(lambda: not actors())
    assert soon(lambda: references() <= before)


class Alarm(Exception):
    """Raised by a handler of a signal, as KeyboardInterrupt is."""


@pytest.fixture
def alarms():
    def ring(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)


def in_turn(*streams, **how):
    """Streams that give an item each in turn."""
    return in_actors(Seeded(pescador.RoundRobinMux(streams, "exhaustive"), 1), **how)


# ------------------------------------------------------------------------ the items and their order


@pytest.mark.filterwarnings("ignore::pescador.exceptions.PescadorWarning")
@settings(
    max_examples=TREES,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    # Several at a time, as actors take long to start.
    st.lists(to_open(draws=True), min_size=4, max_size=4),
    st.sampled_from([None, 0, 1, 2, 9]),
    st.sampled_from([None, 0, 8]),
    st.sampled_from([1, 5000, 2**28]),
    st.sampled_from([1, 1000, 2**24]),
    st.sampled_from([None, 1, 5]),
)
def test_any_tree_gives_what_it_gives_under_its_seed(
    descriptions, read_ahead, open_ahead, max_bytes, batch, max_visits
):
    def together():
        streams = [build(description) for description in descriptions]
        return Seeded(pescador.RoundRobinMux(streams, "exhaustive"), 1)

    try:
        expected = read(together().iterate(200))
    except ArgumentError:
        assume(False)
    how = {"read_ahead": read_ahead, "open_ahead": open_ahead, "max_bytes": max_bytes}
    parallel = in_actors(together(), batch=batch, max_visits=max_visits, **how)
    assert read(parallel.iterate(200)) == expected


def test_ten_thousand_visits_give_the_same():
    run = mixed(counted, n=200, n_active=32, rate=3)
    parallel = in_actors(run)
    assert list(parallel(max_iter=30_000)) == list(run(max_iter=30_000))
    stats = parallel.stats()
    assert stats["opened"] > 10_000
    assert stats["restarts"] == 0


def test_streams_without_end_are_read_ahead_by_both_actors():
    parallel = in_actors(
        Seeded(pescador.ShuffledMux([Streamer(tell_node, i) for i in range(8)]), 1)
    )
    assert len({item["pid"] for item in parallel(max_iter=200)}) == 2
    assert parallel.stats()["waits"] < 100


def test_a_stream_that_is_no_mux_runs_in_one_actor():
    streamer = Seeded(Streamer(noise, 3), 5)
    assert plain(list(in_actors(streamer)(max_iter=500))) == plain(list(streamer(max_iter=500)))


@pytest.mark.parametrize("max_bytes", [1, 2**20, 2**28])
@pytest.mark.parametrize("copy", [False, True])
def test_items_of_any_kind_come_as_they_were(max_bytes, copy):
    mux = pescador.ChainMux([Streamer(every_item)] * 2)
    received = list(in_actors(Seeded(mux, 1), max_bytes=max_bytes, copy=copy))
    assert_as_they_were(received, 2)


def test_large_arrays_are_views_of_the_store_unless_copies_are_asked_for():
    for copy in (False, True):
        parallel = in_actors(pescador.ChainMux([Streamer(every_item)]), 1, copy=copy)
        found = dict(zip(ITEMS, parallel, strict=True))
        in_dict, in_tuple = found["large array"]["x"], found["a tuple of a large array"][0]
        for array in (in_dict, in_tuple, found["arrays"]["x"], found["arrays"]["y"]):
            assert array.flags.writeable == copy


def test_a_copy_that_is_held_holds_no_other_item():
    item = next(in_actors(mixed(noise), 1, copy=True).iterate())
    assert item["x"].base is None


@given(st.integers(1, 70), st.sampled_from([2, 2**13, 2**14]), st.booleans())
def test_arrays_that_are_alike_are_sent_as_few_arrays(n, length, copy):
    packing, buffers = packets.Packing(), []
    for i in range(n):
        packing.add(7, {"x": np.full(length, i, np.float64), "y": np.array(i)})
    head = pickle.dumps(packing.write(), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) <= math.log2(n) + 3
    assert sum(buffer.raw().nbytes for buffer in buffers) == packing.size
    numbers, sizes, items = packets.unpack(pickle.loads(head, buffers=buffers), copy)
    assert numbers == [7] * n
    assert list(itertools.islice(sizes, n)) == [8 * length + 8] * n
    for i, item in enumerate(items):
        assert item["x"].tolist() == [i] * length
        assert item["y"].shape == ()
        assert item["y"] == i


def test_an_object_that_a_stream_changes_after_it_was_given_comes_as_it_was_then():
    run = Seeded(pescador.ChainMux([Streamer(reused, 100)]), 1)
    items = list(in_actors(run))
    assert [item["x"].tolist() for item in items] == [[i, i, i] for i in range(100)]


def unpicklable():
    yield 1
    yield threading.Lock()


def test_an_item_that_cannot_be_sent_is_an_error_where_it_would_have_come():
    # Sent by value, as it is in no module that an actor could import.
    items = iter(in_actors(pescador.ChainMux([Streamer(unpicklable)]), 1))
    assert next(items) == 1
    with pytest.raises(PescadorError, match=r"type lock cannot be sent.*kind='thread'"):
        next(items)


def test_not_more_is_made_early_than_max_bytes_holds(tmp_path):
    def marking(i):
        for j in range(200):
            (tmp_path / f"{i}-{j}").touch()
            yield np.zeros(2**17)

    run = Seeded(pescador.RoundRobinMux([Streamer(marking, i) for i in range(4)]), 1)
    with contextlib.closing(in_actors(run, max_bytes=8 * 2**20, read_ahead=50).iterate()) as items:
        for n in range(1, 60):
            next(items)
            if n > 20:
                # Those of 1 MiB that were ordered before the first one had come do not count.
                assert len(list(tmp_path.iterdir())) - n <= 8 + 1


def test_no_more_visits_are_open_than_max_visits_says(tmp_path):
    def marking(i):
        path = tmp_path / str(random.SystemRandom().random())
        path.touch()
        try:
            yield from range(8)
        finally:
            path.unlink()

    streams = [Streamer(marking, i) for i in range(40)]
    run = Seeded(pescador.StochasticMux(streams, 3, rate=None, mode="exhaustive"), 1)
    # Two that are begun to be looked at, and those that wait for their next item.
    open_at_once = [len(list(tmp_path.iterdir())) for _ in in_actors(run, max_visits=6)]
    assert 0 < max(open_at_once) <= 6


# -------------------------------------------------------------------------------- what goes wrong


def test_what_a_stream_raises_is_raised_where_its_item_would_have_come():
    parallel = in_turn(Streamer(counted, 0), Streamer(raising, 3))
    stream = iter(parallel)
    items = [plain(next(stream)) for _ in range(7)]
    with pytest.raises(Failure) as raised:
        next(stream)
    assert items == [[0, 0], 0, [0, 1], 1, [0, 2], 2, [0, 3]]
    assert raised.value.args == (3,)
    assert "raise Failure(n)" in str(raised.value.__cause__)
    assert "streamers[1]" in str(raised.value.__cause__)


@pytest.mark.parametrize("tracks", [False, True])
def test_not_an_item_changes_however_many_actors_are_killed(tracks):
    leaves = [
        *(Streamer(slow_noise, 10**i, 30) for i in range(3)),
        Rows({"x": np.arange(50.0)}, order="shuffled"),
        Streamer(Resumable(3, 40)),
        Streamer(pescador.transform, Streamer(slow_noise, 3, 40), str),
    ]
    run = Seeded(pescador.StochasticMux(leaves, 4, rate=20), 3)
    expected = plain(list(run(max_iter=800)))
    pause = random.Random(1)
    parallel = in_actors(run)
    items = []
    with contextlib.closing(parallel.open(800) if tracks else parallel.iterate(800)) as stream:
        for item in stream:
            items.append(plain(item))
            if len(items) in (1, 150, 350, 600):
                time.sleep(pause.random() * 0.02)
                os.kill(pause.choice([pid for pid in actors() if pid]), signal.SIGKILL)
    assert items == expected
    assert 1 <= parallel.stats()["restarts"] <= 4


def test_without_restart_an_actor_that_is_killed_is_an_error_that_says_so(tmp_path):
    parallel = in_turn(Streamer(dying, 30, None), Streamer(counted, 0), restart=False)
    with pytest.raises(
        PescadorError, match=r"actor of .* was lost: .*; with restart=True, another"
    ):
        list(parallel)


def test_a_stream_that_ends_its_actor_once_is_made_again(tmp_path):
    run = in_turn(Streamer(dying, 30, tmp_path / "died"), Streamer(counted, 0))
    assert [i for i, _ in run(max_iter=200)][::2] == list(range(100))
    assert run.stats()["restarts"] == 1


def test_a_stream_that_ends_each_actor_is_an_error():
    parallel = in_turn(Streamer(dying, 3, None), Streamer(counted, 0))
    with pytest.raises(PescadorError, match=r"the 3 that were lost before it gave no item either"):
        list(parallel)


def test_a_tree_that_cannot_be_pickled_is_the_error_that_it_is_with_processes():
    tree = pescador.ChainMux([Streamer(counted, threading.Lock())])
    with pytest.raises(TypeError, match=r"^cannot pickle '_thread.lock' object$"):
        list(in_actors(tree, 1))


def test_a_tree_that_cannot_be_loaded_is_an_error_that_says_why():
    parallel = in_actors(pescador.ChainMux([Streamer(range(3), Unloadable())]), 1)
    with pytest.raises(PescadorError, match=r"could not be loaded in an actor: ValueError: no"):
        list(parallel)


def test_how_actors_are_begun_and_called_cannot_be_chosen():
    for name, value in (("max_concurrency", 4), ("lifetime", "detached"), ("name", "x")):
        with pytest.raises(ArgumentError, match=f"{name}={value!r} cannot be chosen"):
            Executor(**{name: value})


@pytest.mark.parametrize("options", [{"max_visit": 3}, {"resources": 3}, {"memory": "1 GB"}])
def test_an_option_that_ray_refuses_is_an_error_that_names_the_executor(options):
    kind = Executor(**options)
    with pytest.raises(ArgumentError, match=rf"Ray refuses Executor\({next(iter(options))}="):
        list(ParallelStreamer(mixed(), 1, kind=kind)(max_iter=1))


def test_processors_may_be_a_number_of_numpy():
    run = mixed(counted)
    for n in (np.float32(0.5), np.int64(1)):
        assert list(in_actors(run, 1, num_cpus=n)(max_iter=50)) == list(run(max_iter=50))


# ---------------------------------------------------------------------------------- begin and end


@pytest.fixture
def no_collection():
    """Nothing is freed that waits for a collection of garbage."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_what_is_closed_early_leaves_no_actor_and_no_object(tmp_path, no_collection):
    pool = [Streamer(closing, tmp_path / str(i)) for i in range(3)]
    items = in_actors(pescador.RoundRobinMux(pool)).iterate()
    assert [next(items) for _ in range(9)] == [1] * 9
    items.close()
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}
    assert soon(lambda: not actors())
    # While actors are still starting, while objects are on their way, and after they have come.
    for n, seconds in (0, 0), (1, 0), (50, 1):
        with contextlib.closing(in_actors(mixed(images)).iterate()) as items:
            assert len(list(itertools.islice(items, n))) == n
            time.sleep(seconds)
        assert soon(lambda: not actors())
    # What nobody needs stays in the store until there is need for its room.
    assert soon(lambda: " 0.0% needed" in memory_summary(stats_only=True)), memory_summary()


def test_arrays_outlive_the_iteration_and_its_actors():
    held = [item["x"] for item in in_actors(mixed(images))(max_iter=50)]
    expected = [item["x"][0] for item in mixed(images)(max_iter=50)]
    assert soon(lambda: not actors())
    assert [float(array[-1]) for array in held] == expected


def test_actors_that_are_kept_serve_the_next_iterations_and_epochs():
    run = mixed(counted)
    parallel = in_actors(run, keep_workers=True)
    pids = []
    for epoch in range(4):
        parallel.streamer.seed, parallel.keep_workers = epoch, epoch < 3
        expected = list(parallel.streamer(max_iter=100 + epoch))
        assert list(parallel(max_iter=100 + epoch)) == expected
        pids.append(sorted(filter(None, actors())))
    assert pids[0] == pids[1] == pids[2]
    assert len(pids[0]) == 2


def test_two_iterations_at_once_give_the_same():
    run = mixed(counted)
    parallel = in_actors(run, 1)
    pairs = list(zip(parallel(max_iter=300), parallel(max_iter=300), strict=True))
    assert pairs == [(item, item) for item in run(max_iter=300)]


def test_a_state_goes_on_with_and_without_ray():
    run = mixed(noise)
    expected = plain(list(run(max_iter=400)))
    with in_actors(run).open(400) as stream:
        items = [plain(next(stream)) for _ in range(100)]
        state = pickle.loads(pickle.dumps(stream.state_dict()))
    with ParallelStreamer(run, 0).open(state=state) as stream:
        items += [plain(next(stream)) for _ in range(100)]
        state = stream.state_dict()
    with ParallelStreamer(run, 1).open(state=state) as stream:
        items += [plain(next(stream)) for _ in range(100)]
        state = stream.state_dict()
    assert "Executor" not in repr(state)
    with in_actors(run, 1).open(state=state) as stream:
        assert items + plain(list(stream)) == expected


@pytest.mark.usefixtures("alarms")
def test_who_is_interrupted_at_any_moment_goes_on_from_there():
    run = mixed(slow_noise)
    expected = plain(list(run(max_iter=600)))
    pause = random.Random(1)
    parallel = in_actors(run, keep_workers=True)
    list(parallel(max_iter=1))
    items, state, interrupted = [], None, 0
    while len(items) < 600:
        with parallel.open(*([600] if state is None else []), state=state) as stream:
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.2 * pause.random())
                    for item in stream:
                        items.append(plain(item))
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                interrupted += 1
            state = stream.state_dict()
            # The loop may have been left before it had what it was given.
            items += [None] * (state["index"] - len(items))
    assert [item or e for item, e in zip(items, expected, strict=True)] == expected
    assert interrupted > 5
    assert len(actors()) == 2
    parallel.keep_workers = False
    list(parallel(max_iter=1))


def script(body, **how):
    """Run a script in this cluster."""
    address = ray.get_runtime_context().gcs_address
    return run_script(body, env={**os.environ, "RAY_ADDRESS": address}, **how)


def test_ctrl_c_ends_a_script_and_its_actors():
    done = script(
        """
        import threading, pescador.ray
        def sleeping():
            yield 1
            time.sleep(100)
        parallel = pescador.ParallelStreamer(
            pescador.ChainMux([pescador.Streamer(sleeping)]), 1, kind=pescador.ray.Executor()
        )
        parallel.timeout = 0.1
        try:
            for item in parallel:
                print(item)
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert done.stdout.split("\n") == ["1", "interrupted", ""], done.stderr
    assert soon(lambda: not actors())


def test_actors_are_those_of_the_session_of_ray_in_which_an_iteration_begins():
    done = run_script(
        f"""
        import pescador.ray, ray
        def start():
            ray.init("local", num_cpus=1, **{HOW})
        def numbers():
            yield from range(10**9)
        mux = pescador.ChainMux([pescador.Streamer(numbers)])
        parallel = pescador.ParallelStreamer(
            mux, 1, kind=pescador.ray.Executor(), keep_workers=True
        )
        start()
        print(list(parallel(max_iter=3)))
        items = parallel.iterate()
        print(next(items))
        ray.shutdown()
        for begin in (lambda: None, start):
            begin()
            try:
                for item in items:
                    pass
            except pescador.PescadorError as error:
                print(error)
            print(ray.is_initialized())
        print(list(parallel(max_iter=3)))
        """
    )
    shut_down = (
        "Ray was shut down while its actors were read from; begin another iteration, or open the "
        "state that the stream had before"
    )
    expected = ["[0, 1, 2]", "0", shut_down, "False", "True", "[0, 1, 2]", ""]
    assert done.stdout.split("\n") == expected, done.stderr


def test_a_script_that_does_not_start_ray_has_it_started(tmp_path):
    done = script(
        """
        import pescador.ray
        class Damaged(Exception):
            pass
        scale = 2
        def numbers(i):
            for j in range(2):
                yield {"x": np.array(scale * i + j)}
            raise Damaged("of the script")
        if __name__ == "__main__":
            mux = pescador.RoundRobinMux([pescador.Streamer(numbers, i) for i in range(2)])
            try:
                for item in pescador.ParallelStreamer(mux, 1, kind=pescador.ray.Executor()):
                    print(int(item["x"]))
            except Damaged as error:
                print(error)
        """,
        path=tmp_path / "script.py",
    )
    assert done.stdout.split("\n") == ["0", "2", "1", "3", "of the script", ""], done.stderr
