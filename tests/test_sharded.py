"""`Sharded`: one sequence, whatever the number of ranks, and however often that changes."""

import collections
import concurrent.futures
import contextlib
import copy
import functools
import itertools
import multiprocessing
import os
import pathlib
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import scripts
import trees
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from open_trees import build, plain, read, to_open

import pescador
from conftest import MUXES
from pescador import (
    ArgumentError,
    DataError,
    ParallelStreamer,
    Seeded,
    Sharded,
    StateError,
    Streamer,
)
from pescador.sources import Rows

TREES = int(os.environ.get("PARITY_TREES", "200"))

pytestmark = pytest.mark.timeout(max(TREES, 120))

SHARDS = 8


def noise(shard, i=0):
    """Numbers that follow from the visit alone."""
    while True:
        yield {"shard": np.array(shard), "x": np.array([i, np.random.randint(1000)])}


def make(shard):
    """A mux of streams that draw."""
    return pescador.StochasticMux([Streamer(noise, shard, i) for i in range(5)], 2, 4)


def numbers(shard, n):
    for i in range(n):
        yield shard, i


def from_shard(shard):
    yield from itertools.count(shard)


def counting(shard):
    return Streamer(from_shard, shard)


def finite(lengths, shard):
    return Streamer(numbers, shard, lengths[shard])


def items_of(sharded, n):
    return [plain(item) for item in sharded(max_iter=n)]


def states_of(streams):
    return pickle.loads(pickle.dumps([stream.state_dict() for stream in streams]))


def in_turn(streams, n, step=0):
    """The next items of all ranks, of which the first is at a step of the global sequence."""
    return [plain(next(streams[t % len(streams)])) for t in range(step, step + n)]


def opened(sharded, world_size, state=None, wrap=lambda part: part):
    parts = [wrap(sharded.at(rank, world_size)) for rank in range(world_size)]
    return [part.open(state=state) for part in parts]


# ------------------------------------------------------------------------------- the sequence


def test_a_shard_is_what_make_returns_for_it_under_the_seed_of_its_epoch_and_number():
    seed = np.random.SeedSequence(5, spawn_key=(9,))
    sharded = Sharded(make, SHARDS, seed, epoch=3)
    by_hand = [Seeded(make(shard), seed, epoch=3, rank=shard).iterate() for shard in range(SHARDS)]
    assert items_of(sharded, 100) == in_turn(by_hand, 100)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_items_of_the_ranks_are_those_of_the_whole_in_turn(world_size):
    sharded = Sharded(make, SHARDS)
    whole = items_of(sharded, 160)
    for rank in range(world_size):
        part = sharded.at(rank, world_size)
        assert items_of(part, 160 // world_size) == whole[rank::world_size]
        assert {item["shard"] % world_size for item in part(max_iter=99)} == {rank}


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_ranks_batches_are_the_same_global_batches(world_size):
    sharded = Sharded(make, SHARDS)
    whole = items_of(sharded, 32 * 5)
    ranks = [
        Streamer(pescador.buffer_stream, sharded.at(rank, world_size), 32 // world_size).iterate()
        for rank in range(world_size)
    ]
    for first in range(0, len(whole), 32):
        rows = [row.tolist() for rank in ranks for row in next(rank)["x"]]
        expected = [np.frombuffer(item["x"][2], int).tolist() for item in whole[first : first + 32]]
        assert sorted(rows) == sorted(expected)


def test_another_epoch_is_independent_and_its_own():
    sharded = Sharded(make, SHARDS)
    other = sharded.at(epoch=2)
    assert items_of(other, 50) == items_of(Sharded(make, SHARDS, epoch=2), 50)
    assert items_of(other, 50) != items_of(sharded, 50)
    part = sharded.at(1, 2).at(epoch=2)
    assert (part.rank, part.world_size) == (1, 2)
    assert items_of(part, 20) == items_of(other.at(1, 2), 20) == items_of(other, 40)[1::2]


def test_only_shards_of_the_rank_are_made_and_opened_when_due_and_once_for_all_passes():
    made = []

    def noted(shard):
        made.append(shard)
        return counting(shard)

    sharded = Sharded(noted, SHARDS)
    part = sharded.at(1, 4)
    assert made == []
    stream = part.open()
    next(stream)
    assert made == [1]
    assert sharded.streamers[1].active == 0
    list(part(max_iter=9))
    list(part.at(1, 4, epoch=1)(max_iter=9))
    assert made == [1, 5]
    list(sharded(max_iter=20))
    assert sorted(made) == list(range(SHARDS))


def test_a_part_of_a_million_shards_makes_none_but_its_own():
    tracemalloc.start()
    try:
        sharded = Sharded(counting, 10**6)
        part = sharded.at(7, 10**5)
        whole, few = sharded.open(), part.open()
        assert [next(few) for _ in range(11)] == [*range(7, 10**6, 10**5), 8]
        assert [next(whole) for _ in range(3)] == [0, 1, 2]
        few.state_dict(), whole.state_dict()
        # The active set of the whole has 40 bytes for each shard.
        assert tracemalloc.get_traced_memory()[0] < 60 * 10**6
    finally:
        tracemalloc.stop()
    assert len(sharded.streamers) == 10**6
    assert part.streamers[3] is part.streamers[-7]
    assert [repr(shard) for shard in part.streamers[8:]] == [
        "Shard(counting, 800007)",
        "Shard(counting, 900007)",
    ]
    with pytest.raises(IndexError):
        part.streamers[10]


def test_threads_that_open_a_shard_at_once_make_it_once():
    made = []

    def slow(shard):
        made.append(shard)
        time.sleep(0.01)
        return Streamer(noise, shard)

    sharded = Sharded(slow, 4)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: items_of(sharded, 40), range(4)))
    assert found == [items_of(Sharded(functools.partial(Streamer, noise), 4), 40)] * 4
    assert made == [0, 1, 2, 3]


def test_what_make_draws_follows_from_the_seed_and_the_shard_alone():
    def shuffled(shard):
        return pescador.RoundRobinMux([[(random.random(), np.random.rand(), shard)]], "cycle")

    np.random.seed(1)
    random.seed(1)
    whole = list(Sharded(shuffled, 4, 7)(max_iter=12))
    before = np.random.get_state()[1].tolist(), random.getstate()
    part = Sharded(shuffled, 4, 7).at(3, 4)
    assert list(part(max_iter=3)) == whole[3::4]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert list(Sharded(shuffled, 4, 8)(max_iter=12)) != whole
    words = np.random.SeedSequence(7, spawn_key=(3,)).generate_state(8)
    python = random.Random(int.from_bytes(words[4:].astype("<u4").tobytes(), "little"))
    numpy = np.random.RandomState(words[:4])
    assert whole[3] == (python.random(), numpy.rand(), 3)


def test_shards_that_are_one_streamer_have_their_own_items():
    one = Streamer(noise, 0)
    sharded = Sharded(lambda shard: one, 4)
    by_hand = [Seeded(one, 0, rank=shard).iterate() for shard in range(4)]
    assert items_of(sharded, 40) == in_turn(by_hand, 40)
    parts = [sharded.at(rank, 4).iterate() for rank in range(4)]
    assert items_of(sharded, 40) == in_turn(parts, 40)
    assert one.active == 0


def test_open_iterations_are_counted_and_their_streams_closed():
    closed = []

    def until_closed(shard):
        try:
            while True:
                yield shard
        finally:
            closed.append(shard)

    sharded = Sharded(functools.partial(Streamer, until_closed), 4)
    items = sharded.iterate()
    assert [next(items) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert sharded.active == 1
    items.close()
    assert (sharded.active, sorted(closed)) == (0, [0, 1, 2, 3])
    with sharded as active:
        assert list(active(max_iter=5)) == [0, 1, 2, 3, 0]
    assert list(sharded.cycle(max_iter=3)) == [0, 1, 2]
    assert sharded.active == 0


@pytest.mark.parametrize("kind", MUXES)
def test_a_part_may_be_in_a_mux(kind):
    part = Sharded(make, SHARDS).at(1, 2)
    args = (1, None) if kind == "StochasticMux" else ()
    mux = getattr(pescador, kind)([part], *args)
    assert [plain(item) for item in mux(max_iter=5)] == items_of(part, 5)


# ------------------------------------------------------------------------------- going on


def test_eight_ranks_become_four_and_two_in_the_middle_and_not_an_item_changes():
    sharded = Sharded(make, SHARDS, 11)
    whole = items_of(sharded, 320)
    given, state = [], None
    for world_size, n in (8, 37), (4, 83), (2, 100), (8, 60), (1, 40):
        streams = opened(sharded, world_size, state)
        given += in_turn(streams, n, len(given))
        state = Sharded.merge(states_of(streams))
    assert given == whole


@settings(
    max_examples=TREES // 4,
    phases=set(Phase) - {Phase.explain},
    derandomize="PARITY_TREES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(
    to_open(draws=True),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 30)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_any_tree_goes_on_under_any_number_of_ranks(description, ways, epoch):
    """To its end: a shard that ends or fails does so at the same step."""

    def made(shard):
        return build(description).streamer

    try:
        build(description)
    except ArgumentError:
        assume(False)
    trees.Starts.limit = float("inf")
    sharded = Sharded(made, SHARDS, 3, epoch=epoch)
    whole, failure = read(sharded.open(100))
    done, state = 0, None
    for world_size, n in ways:
        streams = opened(sharded, world_size, state)
        n = min(n, len(whole) - done)
        assert in_turn(streams, n, done) == whole[done : done + n]
        done += n
        state = Sharded.merge(states_of(streams))
        assert all(
            stream.index == -((rank - done) // world_size) for rank, stream in enumerate(streams)
        )
        sharded = Sharded(made, SHARDS, 3, epoch=epoch)
    assert read(sharded.open(len(whole) - done, state=state)) == (whole[done:], None)
    if failure is not None:
        assert read(sharded.open(state=state)) == (whole[done:], failure)


@pytest.mark.parametrize("n", [0, 3, 8, 45])
def test_merged_states_are_the_state_of_the_whole(n):
    sharded = Sharded(make, SHARDS)
    streams = opened(sharded, 4)
    in_turn(streams, n)
    whole = sharded.open()
    in_turn([whole], n)
    merged = Sharded.merge(reversed(states_of(streams)))
    assert plain(merged) == plain(whole.state_dict())
    assert plain(Sharded.merge([merged])) == plain(merged)


def test_batches_go_on_under_other_ranks():
    sharded = Sharded(make, SHARDS)

    def batches(world_size):
        return lambda part: Streamer(pescador.buffer_stream, part, 16 // world_size)

    def rows(streams, n):
        steps = [
            [row.tolist() for stream in streams for row in next(stream)["x"]] for _ in range(n)
        ]
        return [sorted(step) for step in steps]

    expected = rows(opened(sharded, 1, wrap=batches(1)), 12)
    streams = opened(sharded, 8, wrap=batches(8))
    given = rows(streams, 5)
    state = Sharded.merge(states_of(streams))
    streams = opened(sharded, 2, state, batches(2))
    assert [stream.index for stream in streams] == [5, 5]
    given += rows(streams, 7)
    assert given == expected


def test_a_bound_stays_where_it_was_in_the_global_sequence():
    sharded = Sharded(make, SHARDS)
    whole = items_of(sharded, 40)
    streams = [sharded.at(rank, 4).open(10) for rank in range(4)]
    given = in_turn(streams, 20)
    state = Sharded.merge(states_of(streams))
    streams = opened(sharded, 2, state)
    given += in_turn(streams, 20, 20)
    assert given == whole
    assert [list(stream) for stream in streams] == [[], []]
    assert len(list(sharded.at(0, 2).open(3, state=state))) == 3


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_part_runs_in_a_parallel_streamer_and_goes_on_there(kind):
    sharded = Sharded(make, SHARDS)
    whole = items_of(sharded, 120)
    given, state = [], None
    for world_size, n in (2, 50), (4, 40), (1, 30):
        streams = opened(
            sharded, world_size, state, lambda part: ParallelStreamer(part, 1, kind=kind)
        )
        given += in_turn(streams, n, len(given))
        assert [s.index for s in streams] == [
            -((rank - len(given)) // world_size) for rank in range(world_size)
        ]
        state = Sharded.merge(states_of(streams))
        for stream in streams:
            stream.close()
    assert given == whole


class Handle:
    """What cannot be pickled, as an open data base."""

    def __init__(self):
        self.lock = threading.Lock()

    def __deepcopy__(self, memo):
        return self


def held(handle, shard):
    yield from itertools.count(shard)


def holding(shard):
    return Streamer(held, Handle(), shard)


def test_workers_make_their_shards_also_where_they_were_made_here_before():
    sharded = Sharded(holding, 2)
    assert list(sharded(max_iter=3)) == [0, 1, 1]
    parallel = ParallelStreamer(sharded, 1, start_method="forkserver")
    assert list(parallel(max_iter=3)) == [0, 1, 1]


def test_batches_of_a_part_are_made_by_workers():
    part = Sharded(make, SHARDS).at(1, 2)
    batches = Streamer(pescador.buffer_stream, part, 6)
    with ParallelStreamer(batches, 2).open(5) as stream:
        assert [plain(batch) for batch in stream] == items_of(batches, 5)


def test_a_shard_may_have_workers():
    sharded = Sharded(lambda shard: ParallelStreamer(make(shard), 1), 2)
    items = sharded.iterate(12)
    assert [plain(item) for item in items] == items_of(Sharded(make, 2), 12)


def test_another_epoch_of_a_part_is_not_that_of_workers_that_were_kept():
    sharded = Sharded(make, 2)
    for epoch in range(3):
        part = sharded.at(epoch=epoch)
        parallel = ParallelStreamer(part, 1, keep_workers=True)
        assert items_of(parallel, 8) == items_of(part, 8)


# Ranks as plain processes, each of which saves its items and its state at each step.

PER_STEP = 4 * SHARDS


def rank_main(folder, rank, world_size, state, steps):
    stream = Sharded(make, SHARDS).at(rank, world_size).open(state=state)
    for step in steps:
        rows = [plain(item) for item in itertools.islice(stream, PER_STEP // world_size)]
        path = pathlib.Path(folder, f"{step}-{rank}-of-{world_size}")
        path.with_suffix(".new").write_bytes(pickle.dumps((rows, stream.state_dict())))
        path.with_suffix(".new").rename(path)
        if rank == world_size - 1 and step == steps[-2]:
            os.kill(os.getpid(), signal.SIGKILL)


def saved_by_all(folder, world_size, steps):
    """What all ranks have saved, at each step that all of them have come to."""
    for step in steps:
        paths = [folder / f"{step}-{rank}-of-{world_size}" for rank in range(world_size)]
        if all(path.exists() for path in paths):
            yield [pickle.loads(path.read_bytes()) for path in paths]


def test_ranks_are_killed_and_fewer_processes_go_on(tmp_path):
    context = multiprocessing.get_context("fork")
    given, state = [], None
    for world_size, steps in (8, range(5)), (4, range(4, 8)), (2, range(7, 11)):
        args = [(tmp_path, rank, world_size, state, steps) for rank in range(world_size)]
        processes = [context.Process(target=rank_main, args=each) for each in args]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert processes[-1].exitcode == -signal.SIGKILL
        for saved in saved_by_all(tmp_path, world_size, steps):
            ranks = [iter(rows) for rows, _ in saved]
            given += [next(ranks[t % world_size]) for t in range(PER_STEP)]
        state = Sharded.merge([state for _, state in saved])
        # The others have gone on, and what they have given is given again.
        assert (tmp_path / f"{steps[-1]}-0-of-{world_size}").exists()
    assert len(given) == 10 * PER_STEP
    assert given == items_of(Sharded(make, SHARDS), len(given))


def steps_of_script(folder, world_size, steps):
    """What the script on the page prints of each step, summed over its ranks."""
    command = [sys.executable, "plain.py", str(world_size), str(steps)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    sums = collections.Counter()
    for step, value in re.findall(r"step (\d+): (\d+)\n", done.stdout):
        sums[int(step)] += int(value)
    return sums


def test_the_script_on_the_page_saves_with_eight_processes_and_goes_on_with_four(tmp_path):
    for name in "ranks", "one":
        (tmp_path / name).mkdir()
        (tmp_path / name / "plain.py").write_text(scripts.on_page("how-to/ranks.rst", "plain.py"))
    whole = steps_of_script(tmp_path / "one", 1, 30)
    assert list(whole) == list(range(1, 31))
    assert steps_of_script(tmp_path / "ranks", 8, 15) == {n: whole[n] for n in range(1, 16)}
    assert steps_of_script(tmp_path / "ranks", 4, 30) == {n: whole[n] for n in range(11, 31)}


# ------------------------------------------------------------------------------- ends


def test_a_shard_that_ends_is_an_error_that_names_it_and_the_step():
    lengths = [5, 4, 3, 4]
    sharded = Sharded(functools.partial(finite, lengths), 4)
    for world_size in 1, 2, 4:
        rank = 2 % world_size
        stream = sharded.at(rank, world_size).open()
        items, failure = read(stream)
        assert failure is DataError
        assert items == read(sharded.open())[0][rank::world_size]
        with pytest.raises(
            DataError,
            match="shard 2 has ended at step 14 of the global sequence, "
            "after 3 items: pass on_end='stop'",
        ):
            list(sharded.at(rank, world_size))
        # It is tried again.
        assert read(sharded.at(rank, world_size).open(state=stream.state_dict())) == ([], DataError)


@pytest.mark.parametrize("told", ["all", "function", "shortest", "known"])
def test_all_ranks_stop_after_as_many_rounds_as_the_shortest_shard_has(told):
    lengths = [5, 4, 3, 4]
    make = functools.partial(finite, lengths)
    if told == "known":

        def make(shard):
            chain = pescador.ChainMux(
                [[(shard, 0)], [(shard, i) for i in range(1, lengths[shard])]]
            )
            return chain if shard % 2 else pescador.RoundRobinMux([Seeded(chain, 0)])

    lengths_are = {"all": lengths, "function": lengths.__getitem__, "shortest": 3, "known": None}
    sharded = Sharded(make, 4, on_end="stop", lengths=lengths_are[told])
    whole = list(sharded)
    assert whole == [(shard, i) for i in range(3) for shard in range(4)]
    for world_size in 1, 2, 4:
        for rank in range(world_size):
            stream = sharded.at(rank, world_size).open()
            assert list(stream) == whole[rank::world_size]
            assert stream.has_ended


def test_ranks_that_stop_go_on_as_others_and_stop_at_the_same_step():
    sharded = Sharded(functools.partial(finite, [5, 4, 3, 4]), 4, on_end="stop", lengths=3)
    streams = opened(sharded, 4)
    given = in_turn(streams, 8)
    ranks = opened(sharded, 2, Sharded.merge(states_of(streams)))
    assert given + in_turn(ranks, 4, 8) == [list(item) for item in sharded]
    assert [list(stream) for stream in ranks] == [[], []]
    ended = Sharded.merge(states_of(ranks))
    assert ended["ended"]
    assert list(sharded.open(state=ended)) == []


@pytest.mark.parametrize("partial", [None, True])
def test_ranks_of_which_some_have_found_the_end_have_ended_together(partial):
    def wrap(part):
        return part if partial is None else in_batches(part, 4, partial=partial)

    sharded = Sharded(rows_of_five, 4, on_end="stop")
    streams = opened(sharded, 2, wrap=wrap)
    n = len(list(streams[0]))
    read(streams[1], n)
    assert [stream.has_ended for stream in streams] == [True, False]
    state = Sharded.merge(states_of(streams))
    assert [list(stream) for stream in opened(sharded, 4, state, wrap)] == [[]] * 4


def test_a_rank_that_has_looked_for_another_batch_in_vain_is_named():
    streams = opened(Sharded(rows_of_five, 4, on_end="stop"), 2, wrap=lambda p: in_batches(p, 4))
    n = len(list(streams[0]))
    read(streams[1], n)
    with pytest.raises(StateError, match=r"the ranks \[0\] have found that there is no other"):
        Sharded.merge(states_of(streams))
    assert list(streams[1]) == []
    assert Sharded.merge(states_of(streams))["ended"]


def rows_of_five(shard):
    return Streamer([{"x": np.array([shard, i])} for i in range(5)])


def in_batches(part, n, **options):
    return Streamer(pescador.buffer_stream, part, n, **options)


def test_a_shard_that_is_shorter_than_it_was_told_is_an_error():
    sharded = Sharded(functools.partial(finite, [5, 4, 3, 4]), 4, on_end="stop", lengths=4)
    with pytest.raises(
        DataError, match=r"shard 2 has ended at step 14 .* it was to have 4 at least"
    ):
        list(sharded)


def test_a_length_that_nobody_knows_is_refused_before_the_first_item():
    sharded = Sharded(functools.partial(finite, [5, 4, 3, 4]), 4, on_end="stop")
    for rank in range(2):
        with pytest.raises(ArgumentError, match=r"how many items shard 0 has.*pass lengths"):
            next(sharded.at(rank, 2).iterate())


# ------------------------------------------------------------------------------- refusals


def test_states_of_other_parts_are_refused_and_merge_is_named():
    sharded = Sharded(make, SHARDS)
    streams = opened(sharded, 4)
    in_turn(streams, 20)
    state = streams[1].state_dict()
    for part in sharded.at(0, 4), sharded.at(1, 2), sharded:
        with pytest.raises(StateError, match=r"that of rank 1 of 4, and this is rank .*merge"):
            part.open(state=state)


def test_states_that_are_not_those_of_all_ranks_at_one_step_are_refused():
    sharded = Sharded(make, SHARDS)
    streams = opened(sharded, 4)
    in_turn(streams, 20)
    states = states_of(streams)
    with pytest.raises(StateError, match=r"of 4 ranks, the states of these are missing: \[1, 3\]"):
        Sharded.merge(states[::2])
    with pytest.raises(StateError, match=r"twice: .*\[0, 0, 1, 2, 3\]"):
        Sharded.merge([states[0], *states])
    with pytest.raises(StateError, match=r"different numbers of ranks: \[2, 4\]"):
        Sharded.merge([*states[1:], sharded.at(0, 2).open().state_dict()])
    next(streams[3])
    states = states_of(streams)
    lag = "rank 0 has given 5, rank 1 has given 5, rank 2 has given 5, and others 6 items"
    with pytest.raises(StateError, match=lag):
        Sharded.merge(states)
    other = sharded.at(3, 4, epoch=1).open()
    read(other, 5)
    with pytest.raises(
        StateError, match=r"ranks 0 and 3 differ beside their shards: tree, .*epoch"
    ):
        Sharded.merge([*states[:3], other.state_dict()])


def test_states_of_parts_with_other_maps_above_them_are_refused():
    sharded = Sharded(make, SHARDS)
    streams = [sharded.at(0, 2).open(), in_batches(sharded.at(1, 2), 4).open()]
    with pytest.raises(StateError, match=r"of different streamers: .* other maps"):
        Sharded.merge(states_of(streams))


def test_what_is_no_state_of_a_part_is_refused():
    for states in 3, [], [3], [make(0).open().state_dict()], [{"tree": None}], [{}]:
        with pytest.raises(ArgumentError, match="states of"):
            Sharded.merge(states)
    inside = Seeded(pescador.ChainMux([Sharded(make, 2)]), 0).open()
    next(inside)
    with pytest.raises(ArgumentError, match="no states of parts of a Sharded"):
        Sharded.merge([inside.state_dict()])


def doubled(stream):
    for item in stream:
        yield item
        yield item


def without_some(item):
    return pescador.SKIP if item["x"][1] % 3 == 0 else item


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda p: Streamer(doubled, p), r"found .*Streamer of doubled.*pescador\.transform"),
        (lambda p: in_batches(Streamer(doubled, p), 4), "Streamer of doubled"),
        (Streamer, r"found .*Streamer of Sharded.*pescador\.transform"),
        (lambda p: ParallelStreamer(Streamer(doubled, p), 1), r"run other code.*in `make`"),
        (lambda p: pescador.ChainMux([p], "cycle"), "found .*ChainMux.*let `make` return the mux"),
        (pescador.ZMQStreamer, r"found .*ZMQStreamer.*pescador\.ParallelStreamer"),
        (
            lambda p: Streamer(pescador.transform, p, without_some),
            "drops or repeats .*SKIP.* in what `make`",
        ),
        (
            lambda p: Streamer(pescador.cache, p, 3, 0.5, 1),
            "ranks 0 and 1 differ .* kept.*belongs in what",
        ),
    ],
)
def test_what_above_a_part_cannot_be_merged_is_named_and_what_would_do(wrap, message):
    streams = opened(Sharded(make, SHARDS), 2, wrap=wrap)
    for stream in streams:
        read(stream, 10)
    states = states_of(streams)
    for stream in streams:
        stream.close()
    with pytest.raises((ArgumentError, StateError), match=message):
        Sharded.merge(states)


def test_maps_of_pescador_above_a_part_are_merged():
    def wrap(part):
        moved = Streamer(pescador.transform, part, lambda item: {"y": item["x"] + 1})
        return Streamer(pescador.tuples, moved, "y")

    sharded = Sharded(make, SHARDS)
    whole = items_of(wrap(sharded), 60)
    streams = opened(sharded, 4, wrap=wrap)
    given = in_turn(streams, 28)
    state = Sharded.merge(states_of(streams))
    assert given + in_turn(opened(sharded, 2, state, wrap), 32, 28) == whole


def test_shards_that_come_from_other_processes_are_merged():
    sharded = Sharded(lambda shard: pescador.ZMQStreamer(make(shard)), 2)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(sharded.at(rank, 2).open()) for rank in range(2)]
        given = in_turn(streams, 10)
        state = Sharded.merge(states_of(streams))
        whole = stack.enter_context(sharded.open(state=state))
        given += in_turn([whole], 10)
    assert given == items_of(Sharded(make, 2), 20)


@pytest.mark.parametrize("field", ["rank", "world_size", "given", "left", "shards", "recipe"])
def test_damaged_states_are_not_merged(field):
    states = states_of(opened(Sharded(make, SHARDS), 2))
    for state in states:
        del state["tree"][field]
    with pytest.raises(StateError, match=r"one is damaged .*KeyError"):
        Sharded.merge(states)
    for state in states:
        state["tree"][field] = "x" if field != "world_size" else 10**12
    with pytest.raises((StateError, ArgumentError)):
        Sharded(make, SHARDS).open(state=Sharded.merge(states))


def test_a_function_of_lengths_that_raises_stop_iteration_leaves_no_shard_out():
    def length(shard):
        return 3 if shard < 2 else next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Sharded(counting, 4, on_end="stop", lengths=length))


def test_what_is_inexact_in_a_state_is_in_the_merged_one():
    sharded = Sharded(lambda shard: Streamer(numbers(shard, 9)), 4)
    streams = opened(sharded, 2)
    in_turn(streams, 4)
    with pytest.raises(StateError, match="generator object"):
        streams[0].state_dict()
    merged = Sharded.merge([stream.state_dict(allow_inexact=True) for stream in streams])
    assert len(merged["inexact"]) == 1
    assert "generator object" in merged["inexact"][0]


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Sharded(make, 4), "shards is 4, and was 8"),
        (Sharded(make, SHARDS, 1), "entropy is 1, and was 0"),
        (Sharded(make, SHARDS, epoch=1), "epoch is 1, and was 0"),
        (Sharded(make, SHARDS, on_end="stop", lengths=9), "rounds is 9, and was None"),
    ],
)
def test_the_state_of_another_sharded_is_refused(other, field):
    with pytest.raises(StateError, match=field):
        other.open(state=Sharded(make, SHARDS).open().state_dict())


def test_a_damaged_state_is_refused():
    stream = Sharded(make, 2).open()
    read(stream, 5)
    state = stream.state_dict()
    far = [[shard, *state["tree"]["shards"][0][1:]] for shard in (2, -2, 10**8)]
    others = [{"shards": [*state["tree"]["shards"], shard]} for shard in far]
    for damage in {"shards": []}, {"given": -1}, {"rank": "x"}, {"shards": [[0, 0]]}, *others:
        with pytest.raises(StateError):
            Sharded(make, 2).open(state={**state, "tree": {**state["tree"], **damage}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"make": 3}, "make=3 must be a function"),
        ({"shards": 0}, "shards=0 must be a positive"),
        ({"seed": -1}, "seed=-1"),
        ({"epoch": 1.5}, "epoch=1.5"),
        ({"on_end": "go"}, "on_end='go' must be one of 'error', 'stop'"),
        ({"lengths": 3}, "lengths=3 is for on_end='stop'"),
        ({"on_end": "stop", "lengths": 0}, "lengths=0"),
        ({"on_end": "stop", "lengths": [1]}, "a number for each of the 64 shards"),
        ({"on_end": "stop", "lengths": np.array(5)}, "a number for each of the 64 shards"),
        ({"on_end": "stop", "lengths": [1, -1] * 32}, r"lengths\[1\]=-1 must be a whole"),
        ({"on_end": "stop", "lengths": np.ones(64)}, r"lengths\[0\]=.*1.0.* must be a whole"),
        ({"on_end": "stop", "lengths": {1}}, "lengths=... must be None, a whole"),
        ({"states": "numpy"}, "states='numpy'"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Sharded(**{"make": make, **arguments})


def test_a_number_of_ranks_that_does_not_divide_the_shards_is_refused():
    sharded = Sharded(make, SHARDS)
    with pytest.raises(ValueError, match="world_size=3 does not divide shards=8"):
        sharded.at(0, 3)
    for rank in 2, -1, 0.5:
        with pytest.raises(ArgumentError, match=f"rank={rank}"):
            sharded.at(rank, 2)
    with pytest.raises(ArgumentError, match="world_size=0"):
        sharded.at(0, 0)
    with pytest.raises(ArgumentError, match="epoch=-1"):
        sharded.at(0, 2, epoch=-1)


@pytest.mark.parametrize("value", [[1, 2], numbers(0, 1), None])
def test_make_has_to_return_a_streamer(value):
    with pytest.raises(ArgumentError, match=r"make\(1\) has returned .* must return a Streamer"):
        next(Sharded(lambda shard: value, 2).at(1, 2).iterate())


def test_what_make_raises_comes_where_the_first_item_of_the_shard_would():
    def failing(shard):
        if shard == 2:
            raise OSError("no such file")
        return counting(shard)

    items = Sharded(failing, 4).iterate()
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="no such file"):
        next(items)


def test_an_open_part_tries_a_shard_again_that_could_not_be_made():
    broken = True

    def failing(shard):
        if shard == 2 and broken:
            raise OSError("no such file")
        return counting(shard)

    stream = Sharded(failing, 4).open()
    assert read(stream) == ([0, 1], OSError)
    broken = False
    resumed = Sharded(failing, 4).open(state=stream.state_dict())
    assert read(resumed, 6) == ([2, 3, 1, 2, 3, 4], None)


def test_attributes_cannot_be_assigned():
    part = Sharded(make, SHARDS).at(1, 2)
    for name in "make", "shards", "seed", "epoch", "rank", "world_size", "streamers", "on_end":
        with pytest.raises(AttributeError, match=f"{name} cannot be assigned: .*at()"):
            setattr(part, name, 1)


# ------------------------------------------------------------------------------- as an object


@pytest.mark.parametrize(
    "other",
    [copy.copy, copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_give_the_same(other):
    part = Sharded(make, SHARDS, 3, epoch=2).at(1, 4)
    expected = items_of(part, 30)
    assert items_of(other(part), 30) == expected
    assert items_of(other(part).at(3, 4), 30) == items_of(part.at(3, 4), 30)


def test_a_pickle_holds_no_streamers_that_were_made():
    sharded = Sharded(make, SHARDS)
    before = pickle.dumps(sharded)
    list(sharded(max_iter=30))
    assert pickle.dumps(sharded) == before


def test_a_part_tells_which_it_is_and_what_is_open_in_it():
    part = Sharded(make, SHARDS, 3).at(1, 2)
    assert repr(part) == "Sharded(4 streams, make=make, shards=8, seed=3, rank=1, world_size=2)"
    assert repr(part.streamers[1]) == "Shard(make, 3)"
    assert str(part).splitlines()[1:] == [f"    Shard(make, {shard})" for shard in (1, 3, 5, 7)]
    stream = part.open()
    read(stream, 2)
    assert str(stream).splitlines()[:3] == [
        "Stream: open, 2 items given",
        f"    {part!r}",
        "        StochasticMux(5 streams, n_active=2, rate=4)",
    ]


def test_a_subclass_that_overrides_iterate_is_asked():
    class Loud(Sharded):
        def iterate(self, max_iter=None):
            for item in super().iterate(max_iter):
                yield "item", item

    part = Loud(counting, 4).at(1, 2)
    assert type(part) is Loud
    assert list(part(max_iter=3)) == [("item", 1), ("item", 3), ("item", 2)]
    assert list(pescador.ChainMux([part])(max_iter=1)) == [("item", 1)]


def test_a_source_may_be_a_shard():
    data = {"x": np.arange(40)}
    sharded = Sharded(lambda shard: Rows({"x": data["x"][shard::4]}), 4)
    whole = [int(item["x"]) for item in sharded(max_iter=40)]
    assert [x % 4 for x in whole] == [0, 1, 2, 3] * 10
    batch = next(Streamer(pescador.buffer_stream, sharded.at(1, 2), 8).iterate())
    assert batch["x"].tolist() == whole[1:16:2]
