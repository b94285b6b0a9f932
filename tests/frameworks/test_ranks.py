"""`Sharded` under torch.distributed, and in the loaders of PyTorch."""

import gc
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import scripts  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import pescador  # noqa: E402
import pescador.torch  # noqa: E402
import ranks  # noqa: E402
import runs  # noqa: E402
from pescador import ArgumentError, Seeded, Sharded, StateError, Streamer  # noqa: E402
from pescador._parts import Part, Tree  # noqa: E402
from pescador.torch import Dataset  # noqa: E402

HERE = pathlib.Path(__file__).parent

pytestmark = pytest.mark.filterwarnings(
    # Of DataLoader, about machines with fewer processors.
    "ignore:This DataLoader will create:UserWarning"
)


@pytest.fixture(autouse=True)
def ended_workers():
    """The traceback of an error keeps the iterator of a loader, and so its workers."""
    yield
    gc.collect()


def global_batches(n, **options):
    """The rows of the batches of one process, sorted in each."""
    return [sorted(batch["x"].tolist()) for batch in ranks.batches(**options)(max_iter=n)]


def train(world_size, steps, folder, load, save):
    """What all ranks of a group of processes were given, step by step."""
    command = [sys.executable, HERE / "ranks.py"]
    shared = [str(world_size), folder / f"store-{world_size}", str(steps), load, save]
    parts = runs.printed_by_all([*command, str(rank), *shared] for rank in range(world_size))
    return [sorted(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def test_eight_processes_become_four_and_two_and_the_global_batches_stay(tmp_path):
    given, load = [], "-"
    for world_size, steps in (8, 3), (4, 5), (2, 4):
        save = tmp_path / f"state-{world_size}"
        given += train(world_size, steps, tmp_path, load, save)
        load = save
    assert given == global_batches(12)


def trained(world_size, steps, folder):
    """The model after so many steps; it goes on from what is in the folder."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", str(world_size), "train.py"],
        cwd=folder,
        env={**os.environ, "STEPS": str(steps), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "checkpoint.pt")


def test_the_script_on_the_page_trains_the_same_model_in_four_processes_and_then_two(tmp_path):
    for name in "ranks", "one":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(scripts.on_page("how-to/ranks.rst", "train.py"))
    trained(4, 40, tmp_path / "ranks")
    changed, whole = trained(2, 60, tmp_path / "ranks"), trained(1, 60, tmp_path / "one")
    assert changed["step"] == whole["step"] == 60
    assert len(whole["data"]["stream"]["tree"]["map"]["stream"]["shards"]) == 16
    torch.testing.assert_close(changed["model"], whole["model"])


def test_a_pass_is_another_epoch_in_a_worker_too():
    dataset = Dataset(ranks.batches(epoch=2))
    loader = DataLoader(dataset, batch_size=None, num_workers=1)

    def next_pass(loader):
        return [sorted(batch["x"].tolist()) for batch in itertools.islice(loader, 3)]

    assert next_pass(dataset) == global_batches(3, epoch=2)
    assert next_pass(loader) == global_batches(3, epoch=3)
    dataset.set_epoch(7)
    assert next_pass(loader) == global_batches(3, epoch=7)


def test_workers_that_are_kept_are_not_those_of_the_epoch_before():
    dataset = Dataset(pescador.ParallelStreamer(ranks.batches(), 1, keep_workers=True))
    for epoch in range(3):
        found = [sorted(batch["x"].tolist()) for batch in itertools.islice(dataset, 3)]
        assert found == global_batches(3, epoch=epoch)


def test_a_pass_is_resumed():
    dataset = Dataset(ranks.batches())
    items = iter(dataset)
    before = [sorted(next(items)["x"].tolist()) for _ in range(3)]
    other = Dataset(ranks.batches())
    other.load_state_dict(dataset.state_dict())
    after = [sorted(batch["x"].tolist()) for batch in itertools.islice(other, 3)]
    assert before + after == global_batches(6)


def test_several_workers_are_refused_and_what_would_do_is_named():
    loader = DataLoader(Dataset(ranks.batches()), batch_size=None, num_workers=2)
    with pytest.raises(ArgumentError, match=r"num_workers=2: .*among ranks, .*ParallelStreamer"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("streamer", "split", "message"),
    [
        (ranks.batches(), "seed", "split='seed': .* is divided by its shards"),
        (Seeded(ranks.batches(), 0), None, "Seeded.* is above Sharded.*seeds of its own"),
        (Sharded(ranks.make, 8).at(0, 4), None, "is the part of another"),
        (Sharded(ranks.make, 3), None, "world_size=2 does not divide shards=3"),
    ],
)
def test_what_cannot_be_divided_is_refused(streamer, split, message):
    with pytest.raises(ArgumentError, match=message):
        Tree(streamer).split(split, Part(1, 2, 0, 0))


def test_the_part_of_a_rank_may_be_passed_to_it():
    tree = Tree(Sharded(ranks.make, 8).at(1, 2))
    tree.split(None, Part(1, 2, 0, 0))
    assert (tree.sharded.rank, tree.sharded.world_size) == (1, 2)


def state_of(rank, steps=2, epoch=0, wrap=lambda batches: batches, steps_per_epoch=None):
    """The state of one of two ranks."""
    part = Sharded(ranks.make, 8, 3).at(rank, 2)
    batches = wrap(Streamer(pescador.buffer_stream, part, ranks.BATCH // 2))
    dataset = Dataset(batches, steps_per_epoch=steps_per_epoch)
    dataset.set_epoch(epoch)
    items = iter(dataset)
    for _ in range(steps):
        next(items)
    return {**dataset.state_dict(), "rank": rank, "world_size": 2}


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([state_of(0)], r"of 2 ranks, the states of these are missing: \[1\]"),
        ([state_of(0), state_of(1, epoch=1)], "different epochs: {0: 0, 1: 1}"),
        ([state_of(0), state_of(1, 3)], "rank 0 has given 16, and others 24 items"),
        ([state_of(0), state_of(1, 0)], r"not of one step: no pass has begun in the ranks \[1\]"),
    ],
)
def test_states_of_ranks_that_are_not_at_one_step_are_refused(states, message):
    with pytest.raises(StateError, match=message):
        Sharded.merge(states)


def test_states_of_workers_of_the_ranks_are_merged():
    def wrap(batches):
        return pescador.ParallelStreamer(batches, 1)

    merged = Sharded.merge([state_of(rank, wrap=wrap) for rank in range(2)])
    dataset = Dataset(wrap(ranks.batches()))
    dataset.load_state_dict(merged)
    found = [sorted(batch["x"].tolist()) for batch in itertools.islice(dataset, 2)]
    assert found == global_batches(4)[2:]


@pytest.mark.parametrize("steps", [2, 3])
def test_merged_states_go_on_to_the_rest_of_the_steps_and_the_next_pass(steps):
    merged = Sharded.merge([state_of(rank, steps, steps_per_epoch=3) for rank in range(2)])
    dataset = Dataset(ranks.batches(), steps_per_epoch=3)
    dataset.load_state_dict(merged)
    if steps == 2:
        found = [sorted(batch["x"].tolist()) for batch in dataset]
        # Two ranks make one global batch together, as does one by itself.
        assert found == global_batches(3)[2:]
    assert [sorted(batch["x"].tolist()) for batch in dataset] == global_batches(3, epoch=1)


def test_states_from_before_the_first_item_are_merged_too():
    merged = Sharded.merge([state_of(0, 0, epoch=4), state_of(1, 0, epoch=4)])
    dataset = Dataset(ranks.batches())
    dataset.load_state_dict(merged)
    found = [sorted(batch["x"].tolist()) for batch in itertools.islice(dataset, 2)]
    assert found == global_batches(2, epoch=4)


def test_what_is_no_state_of_a_data_set_is_refused():
    with pytest.raises(ArgumentError, match="must all be what"):
        Sharded.merge([state_of(0), {"pescador": 2}])


def test_the_state_of_one_rank_is_refused_by_others_and_merge_is_named():
    dataset = Dataset(ranks.batches())
    with pytest.raises(StateError, match=r"rank 1 of 2 .*pescador\.Sharded\.merge"):
        dataset.load_state_dict(state_of(1))
