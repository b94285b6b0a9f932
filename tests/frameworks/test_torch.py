"""Streams in the training loops of PyTorch, and of what is built on it."""

import contextlib
import copy
import functools
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import scripts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.data import DataLoader  # noqa: E402

import pescador  # noqa: E402
import pescador.torch  # noqa: E402
import runs  # noqa: E402
from pescador.torch import Dataset, to_arrays, to_tensors  # noqa: E402

HERE = pathlib.Path(__file__).parent

pytestmark = [
    # torchdata calls it.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    # Of DataLoader, about machines with fewer processors.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(autouse=True)
def ended_workers():
    """The traceback of an error keeps the iterator of a loader, and so its workers."""
    yield
    gc.collect()
    # A loader waits for each of them for five seconds, and then leaves it to its end.
    for child in multiprocessing.active_children():
        child.join(30)


def shares_memory(tensor, array):
    return tensor.data_ptr() == array.__array_interface__["data"][0]


def rows(batches):
    """The samples of batches, as tuples in order."""
    return [tuple(row) for batch in batches for row in batch["x"].tolist()]


# ------------------------------------------------------------------------------------- tensors


def test_importing_the_package_does_not_import_torch():
    script = "import pescador, sys; assert 'torch' not in sys.modules; import pescador.torch"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_tensors_share_the_memory_of_nested_arrays():
    a, b, c = np.arange(3), np.ones((2, 2), np.float32), np.zeros((), np.uint16)
    item = to_tensors({"a": a, "deep": [(b, "name"), {"c": c}], 3: None})
    assert shares_memory(item["a"], a)
    assert shares_memory(item["deep"][0][0], b)
    assert shares_memory(item["deep"][1]["c"], c)
    assert item["deep"][0][1] == "name"
    assert item[3] is None


def test_named_tuples_stay_what_they_are():
    pair = runs.Pair(np.zeros(2), np.ones(2))
    assert type(to_tensors(pair)) is runs.Pair
    assert torch.equal(to_tensors(pair).y, torch.ones(2, dtype=torch.float64))


def test_a_tensor_over_a_read_only_array_shares_its_memory_and_keeps_it():
    array = np.arange(1000)
    array.flags.writeable = False
    tensor = to_tensors(array)
    assert shares_memory(tensor, array)
    del array
    gc.collect()
    assert tensor.tolist() == list(range(1000))


@pytest.mark.parametrize("is_writable", [True, False])
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_types_of_ml_dtypes_are_those_of_torch(name, is_writable):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    array = np.array([[1, 2], [4, 0.5]]).astype(getattr(ml_dtypes, name))
    array.flags.writeable = is_writable
    tensor = to_tensors({"x": array})["x"]
    assert tensor.dtype is getattr(torch, name)
    assert shares_memory(tensor, array)
    assert tensor.to(torch.float32).tolist() == [[1, 2], [4, 0.5]]
    back = to_arrays(tensor)
    assert back.dtype == array.dtype
    assert np.shares_memory(back, array)


def brain_floats(i):
    import ml_dtypes

    while True:
        numbers = np.random.randint(100, size=3).astype(np.float32)
        yield {"deep": numbers.astype(ml_dtypes.bfloat16), "i": ml_dtypes.bfloat16(i)}


@pytest.mark.parametrize("name", ["here", "ParallelStreamer", "ZMQStreamer"])
def test_batches_of_bfloat16_come_from_workers_as_tensors_of_it(name):
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    mux = pescador.ShuffledMux([pescador.Streamer(brain_floats, i) for i in range(3)])
    run = pescador.Seeded(pescador.Streamer(pescador.buffer_stream, mux, 4), 0)
    stream = run if name == "here" else getattr(pescador, name)(run)
    items = iter(Dataset(stream))
    for expected in run.iterate(3):
        batch = next(items)
        for key, value in batch.items():
            assert value.dtype is torch.bfloat16
            assert value.float().tolist() == expected[key].astype(np.float32).tolist()


@given(
    npst.arrays(
        st.one_of(
            npst.boolean_dtypes(),
            npst.integer_dtypes(endianness="?"),
            npst.unsigned_integer_dtypes(endianness="?"),
            npst.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
            npst.complex_number_dtypes(sizes=(64, 128), endianness="?"),
        ),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.booleans(),
    st.booleans(),
)
def test_arrays_come_back_from_tensors_with_the_same_values(array, is_flipped, is_writable):
    array = np.asarray(np.flip(array)) if is_flipped else array
    array.flags.writeable = is_writable
    back = to_arrays(to_tensors(array))
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "b"]),
        np.array([None, {}]),
        np.array(["2020-01-01"], "datetime64[s]"),
        np.ma.masked_array([1, 2], [True, False]),
        np.broadcast_to(np.longdouble(1), 3),
        np.array([(1, 2.0)], "i4,f8"),
        np.array([(1, 2.0)], "i4,f8")[0],
        np.longdouble(1),
        np.str_("a"),
        "a",
        1.5,
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_what_torch_has_no_type_for_stays_as_it_is(value):
    assert to_tensors([value])[0] is value


def test_tensors_that_are_views_of_conjugates_become_arrays():
    tensor = torch.tensor([1 + 2j]).conj()
    assert to_arrays(tensor).tolist() == [1 - 2j]
    assert to_arrays(tensor.imag).tolist() == [-2]


def test_scalars_of_numpy_become_tensors_without_axes():
    tensor = to_tensors({"y": np.float32(2.5)})["y"]
    assert tensor.dtype is torch.float32
    assert tensor.shape == ()
    assert tensor.item() == 2.5


def test_pinned_memory_is_ordinary_memory_without_cuda():
    if torch.cuda.is_available():
        array = pescador.torch.pinned((2, 3), np.dtype(np.float32))
        assert torch.from_numpy(array).is_pinned()
    else:
        array = pescador.torch.pinned((2, 3), np.dtype("datetime64[s]"))
        assert array.shape == (2, 3)
        assert array.flags.c_contiguous


# ------------------------------------------------------------------------------------- items


def test_a_data_set_gives_the_items_of_its_streamer_as_tensors():
    expected = rows(runs.endless_tree()(max_iter=20))
    batches = list(itertools.islice(Dataset(runs.endless_tree()), 20))
    assert all(isinstance(batch["x"], torch.Tensor) for batch in batches)
    assert rows(batches) == expected


def test_a_transform_is_given_tensors():
    dataset = Dataset(runs.endless_tree(), transform=lambda batch: batch["x"].float().mean(0))
    plain = next(iter(Dataset(runs.endless_tree())))
    assert torch.equal(next(iter(dataset)), plain["x"].float().mean(0))


def test_items_that_are_no_batches_are_collated_by_a_loader():
    pool = [pescador.Streamer(runs.finite, i, 10) for i in range(2)]
    loader = DataLoader(Dataset(pescador.Seeded(pescador.ChainMux(pool), 0)), batch_size=5)
    assert [tuple(batch["x"].shape) for batch in loader] == [(5, 2)] * 4


def test_the_streams_of_a_pass_are_closed_when_its_iterator_goes():
    closed = []

    def stream():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    dataset = Dataset(pescador.Streamer(stream))
    items = iter(dataset)
    assert [next(items), next(items)] == [0, 1]
    assert not closed
    del items
    assert closed
    assert dataset.state_dict()["stream"]["index"] == 2


# ------------------------------------------------------------------------------------- parts


def part(tree, number, n):
    """What a part of a tree gives that is split by streams, in the words of others."""
    mux = pescador.StochasticMux(
        [pescador.Streamer(runs.finite, i, 10) for i in range(number, 12, n)],
        3, None, mode="exhaustive",
    )  # fmt: skip
    batches = pescador.Streamer(pescador.buffer_stream, mux, 4, partial=True)
    return rows(pescador.Seeded(batches, 7, rank=number))


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_share_the_streams_of_an_exhaustive_tree(num_workers, context):
    loader = DataLoader(
        Dataset(runs.finite_tree()),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    found = rows(loader)
    assert sorted(i for i, _ in found) == sorted([*range(12)] * 10)
    for number in range(num_workers):
        own = set(range(number, 12, num_workers))
        expected = part(runs.finite_tree(), number, num_workers)
        assert [row for row in found if row[0] in own] == expected


def test_workers_of_an_endless_tree_have_a_seed_each():
    loader = DataLoader(Dataset(runs.endless_tree()), batch_size=None, num_workers=2)
    found = rows(itertools.islice(loader, 10))
    streams = [rows(runs.endless_tree().at(rank=rank)(max_iter=5)) for rank in range(2)]
    batches = [[stream[i : i + 4] for i in range(0, 20, 4)] for stream in streams]
    assert found == [row for pair in zip(*batches, strict=True) for batch in pair for row in batch]


def test_a_rank_that_was_given_stays_apart_from_the_parts_of_others():
    loaders = [
        DataLoader(Dataset(runs.endless_tree().at(rank=rank)), batch_size=None, num_workers=2)
        for rank in range(2)
    ]
    found = [rows([batch]) for loader in loaders for batch in itertools.islice(loader, 2)]
    ranks = [rows(runs.endless_tree().at(rank=rank)(max_iter=1)) for rank in range(4)]
    assert found == ranks


@pytest.mark.parametrize(("num_workers", "context"), [(0, "fork"), (2, "fork"), (2, "spawn")])
def test_ranks_share_the_streams_of_an_exhaustive_tree(num_workers, context, tmp_path):
    found = run_ranks("finite", num_workers, context, 100, tmp_path)
    both = [tuple(row) for batches in found for batch in batches for row in batch]
    assert sorted(i for i, _ in both) == sorted([*range(12)] * 10)
    assert len(set(both)) > 110  # of a thousand numbers each, a few are drawn twice


def test_ranks_of_an_endless_tree_have_a_seed_each(tmp_path):
    found = run_ranks("endless", 0, "fork", 5, tmp_path)
    for rank, batches in enumerate(found):
        expected = runs.endless_tree().at(rank=rank)(max_iter=5)
        assert batches == [batch["x"].tolist() for batch in expected]


def run_ranks(tree, num_workers, context, steps, folder, load="-", save="-"):
    """What each of two processes of a group is given."""
    return runs.printed_by_all(
        [
            *(sys.executable, HERE / "runs.py", "distributed", tree, str(num_workers)),
            *(str(steps), load, save, str(rank), str(folder / "store"), context),
        ]
        for rank in range(2)
    )


def noise_pool(**options):
    return [pescador.Streamer(runs.noise, i) for i in range(4)]


def sharded_noise():
    return pescador.Sharded(lambda shard: pescador.Streamer(runs.noise, shard), 4)


def with_an_iterable_in_its_pool():
    mux = pescador.ShuffledMux(noise_pool())
    mux.streamers[1] = [{"x": np.arange(2)}]
    return pescador.Seeded(mux, 1)


rows_of = {"x": np.arange(20)}


@pytest.mark.parametrize(
    ("tree", "split", "message"),
    [
        (lambda: pescador.ShuffledMux(noise_pool()), None, r"pass pescador\.Seeded"),
        (
            lambda: pescador.Seeded(pescador.ShuffledMux(noise_pool(), random_state=0), 1),
            None,
            "ShuffledMux.* has a seed of its own",
        ),
        (
            lambda: pescador.Seeded(
                pescador.ShuffledMux([pescador.sources.Rows(rows_of, random_state=0)] * 3), 1
            ),
            "seed",
            "Rows.* has a seed of its own",
        ),
        (
            lambda: pescador.Seeded(
                pescador.Streamer(pescador.cache, runs.endless_tree(), 4, random_state=1), 1
            ),
            "seed",
            "cache.* has a seed of its own",
        ),
        (
            lambda: pescador.Seeded(pescador.ShuffledMux([*noise_pool(), sharded_noise()]), 1),
            "seed",
            "Sharded.* has a seed of its own",
        ),
        (with_an_iterable_in_its_pool, "seed", None),
        (lambda: range(5), None, "is one stream, which 2 parts"),
        (lambda: pescador.sources.Rows(rows_of, order="shuffled"), None, "is one stream"),
        (runs.endless_tree, "streams", None),
        (lambda: pescador.Streamer(runs.noise, 1), "streams", "is one stream"),
        (lambda: pescador.RoundRobinMux(noise_pool()[:1]), None, "a pool of 1 has no stream"),
    ],
)
def test_parts_that_would_give_the_same_are_refused(tree, split, message):
    loader = DataLoader(Dataset(tree(), split=split), batch_size=None, num_workers=2)
    if message is None:
        next(iter(loader))
        return
    with pytest.raises(pescador.ArgumentError, match=message):
        next(iter(loader))


def weighted_tree():
    pool = [pescador.Streamer(runs.noise, i) for i in range(6)]
    return pescador.Seeded(pescador.ShuffledMux(pool, weights=[0, 1, 2, 3, 0, 5]), 0)


def test_weights_and_the_active_set_go_with_the_streams():
    loader = DataLoader(Dataset(weighted_tree(), split="streams"), batch_size=None, num_workers=3)
    seen = [{int(item["x"][0]) for item in itertools.islice(loader, w, 900, 3)} for w in range(3)]
    assert seen == [{3}, {1}, {2, 5}]
    pool = [pescador.Streamer(runs.finite, i, 3) for i in range(5)]
    mux = pescador.StochasticMux(pool, 4, None, mode="exhaustive")
    loader = DataLoader(Dataset(pescador.Seeded(mux, 0)), batch_size=None, num_workers=2)
    assert sorted(int(item["x"][0]) for item in loader) == sorted([*range(5)] * 3)


def test_the_streams_that_a_function_makes_are_shared_too():
    loader = DataLoader(Dataset(runs.chain_tree()), batch_size=None, num_workers=2)
    assert sorted(int(item["x"][0]) for item in loader) == sorted([*range(7)] * 3)


def test_a_tree_is_not_changed_by_what_is_taken_of_it():
    tree = runs.finite_tree()
    before = rows(tree)
    assert len(rows(DataLoader(Dataset(tree), batch_size=None, num_workers=2))) == 120
    dataset = Dataset(tree)
    dataset.set_epoch(4)
    next(iter(dataset))
    assert tree.epoch == 0
    assert rows(tree) == before


# ------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 1},
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
    ids=["here", "workers", "kept workers", "spawned workers"],
)
@pytest.mark.parametrize("kind", ["torch", "torchdata"])
def test_each_pass_is_another_epoch(kind, options):
    if kind == "torchdata":
        package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")
        loader_of = package.StatefulDataLoader
    else:
        loader_of = DataLoader
    tree = runs.finite_tree().at(epoch=2)
    dataset = Dataset(tree)
    loader = loader_of(dataset, batch_size=None, **options)
    for epoch in (2, 3):
        assert rows(loader) == rows(tree.at(epoch=epoch))
    dataset.set_epoch(9)
    for epoch in (9, 10):
        assert rows(loader) == rows(tree.at(epoch=epoch))


def test_a_pass_that_was_not_begun_counts_for_nothing():
    dataset = Dataset(runs.endless_tree())
    iter(dataset)
    assert rows([next(iter(dataset))]) == rows(runs.endless_tree()(max_iter=1))


def refuse(number, worker):
    """Have one worker not begin."""
    if worker == number:
        raise RuntimeError


def test_a_worker_that_has_not_begun_a_pass_is_not_an_epoch_behind_in_the_next():
    """A loop that is left early leaves it to chance which workers have begun."""
    dataset = Dataset(runs.endless_tree())
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    for late in (1, None):
        first = DataLoader(dataset, **options, worker_init_fn=functools.partial(refuse, late))
        batches = []
        with contextlib.suppress(RuntimeError):
            batches += itertools.islice(first, 2)
    for worker, batch in enumerate(batches):
        expected = runs.endless_tree().at(rank=worker, epoch=1)(max_iter=1)
        assert rows([batch]) == rows(expected)


class Held(Dataset):
    """One whose second worker begins no pass before it may."""

    def __init__(self, *args):
        super().__init__(*args)
        self.may_begin = multiprocessing.Event()

    def __iter__(self):
        items, worker = super().__iter__(), torch.utils.data.get_worker_info()
        return self.held(items) if worker is not None and worker.id == 1 else items

    def held(self, items):
        assert self.may_begin.wait(60)
        yield from items


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("kind", ["torch", "torchdata"])
def test_an_epoch_is_that_of_the_passes_that_a_loader_is_asked_for_after_it_was_set(
    kind, is_kept, is_resumed
):
    loader_of = DataLoader
    if kind == "torchdata" or is_resumed:
        package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")
        loader_of = package.StatefulDataLoader
    dataset = Held(runs.endless_tree())
    options = {"batch_size": None, "num_workers": 2, "persistent_workers": is_kept}
    loader = loader_of(dataset, **options)
    whole = [
        [rows([batch]) for batch in runs.endless_tree().at(rank=worker, epoch=epoch)(max_iter=2)]
        for epoch in range(2)
        for worker in range(2)
    ]
    given, epoch = 0, 1
    if is_resumed:
        dataset.may_begin.set()
        items = iter(loader)
        next(items), next(items)
        loader.load_state_dict(loader.state_dict())
        given, epoch = 1, 0
    for expected in (0, epoch):
        dataset.may_begin.clear()
        items = iter(loader)
        batches = [rows([next(items)])]
        # The other worker begins this pass when the epoch of the next one was set.
        dataset.set_epoch(epoch)
        dataset.may_begin.set()
        batches.append(rows([next(items)]))
        assert batches == [whole[2 * expected + worker][given] for worker in range(2)]
        given = 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_goes_on_counts_though_nothing_is_asked_for(num_workers):
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")
    dataset = Dataset(runs.endless_tree())
    loader = dataset
    if num_workers:
        loader = package.StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    assert list(itertools.islice(loader, 0)) == []
    assert rows([next(iter(loader))]) == rows(runs.endless_tree().at(epoch=1)(max_iter=1))


def test_two_passes_at_once_are_of_two_epochs():
    dataset = Dataset(runs.endless_tree())
    pairs = list(itertools.islice(zip(dataset, dataset, strict=True), 3))
    for epoch, batches in enumerate(zip(*pairs, strict=True)):
        assert rows(batches) == rows(runs.endless_tree().at(epoch=epoch)(max_iter=3))


def test_a_pass_by_workers_after_one_that_was_made_here_is_one_epoch():
    dataset = Dataset(runs.endless_tree())
    next(iter(dataset))
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    for worker, batch in enumerate(itertools.islice(loader, 2)):
        expected = runs.endless_tree().at(rank=worker, epoch=1)(max_iter=1)
        assert rows([batch]) == rows(expected)


def test_a_copy_in_another_process_counts_by_itself():
    dataset = Dataset(runs.endless_tree())
    other = pickle.loads(pickle.dumps(dataset))
    dataset.set_epoch(5)
    loader = DataLoader(other, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        expected = rows(runs.endless_tree().at(epoch=epoch)(max_iter=3))
        assert rows(itertools.islice(loader, 3)) == expected


def test_a_pickle_of_a_version_that_had_fewer_fields_is_read():
    dataset = Dataset(runs.endless_tree())
    state = copy.deepcopy(dataset).__getstate__()
    del state["steps_per_epoch"]
    for name in ("base", "setter", "own"):
        del state["_epochs"].__dict__[name]
    other = Dataset.__new__(Dataset)
    other.__dict__.update(pickle.loads(pickle.dumps(state)))
    assert rows(itertools.islice(other, 3)) == rows(itertools.islice(dataset, 3))


def stepped(steps, tree=runs.endless_tree):
    return Dataset(tree(), steps_per_epoch=steps)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("num_workers", "context"), [(0, None), (1, "fork"), (2, "spawn"), (3, "fork")]
)
def test_a_pass_ends_after_the_steps_of_an_epoch(steps, num_workers, context):
    options = {"batch_size": None, "num_workers": num_workers}
    loader = DataLoader(stepped(steps), multiprocessing_context=context, **options)
    unbounded = DataLoader(Dataset(runs.endless_tree()), **options)
    # torch warns of a length that is wrong.
    assert len(loader) == steps
    for epoch in range(2):
        unbounded.dataset.set_epoch(epoch)
        assert rows(loader) == rows(itertools.islice(unbounded, steps))


def test_a_data_set_without_steps_has_no_length():
    with pytest.raises(TypeError, match="without steps_per_epoch has no length"):
        len(Dataset(runs.endless_tree()))


def test_a_data_set_without_a_length_is_true():
    assert Dataset(runs.endless_tree())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_that_ends_before_its_epoch_is_an_error(num_workers):
    loader = DataLoader(stepped(31, runs.finite_tree), batch_size=None, num_workers=num_workers)
    message = "has ended after 30 items, before the end of .* steps_per_epoch=31 must be at most 30"
    found = []
    with pytest.raises(pescador.DataError, match=message):
        found.extend(loader)
    assert len(found) == 30


def test_an_empty_stream_is_an_error_in_an_epoch_of_steps():
    with pytest.raises(pescador.DataError, match="has no item to give: it is empty"):
        next(iter(Dataset([], steps_per_epoch=2)))


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", None, True])
def test_a_bad_epoch_is_refused(epoch):
    with pytest.raises(pescador.ArgumentError, match="epoch="):
        Dataset(runs.endless_tree()).set_epoch(epoch)


# ------------------------------------------------------------------------------------- states


def run(loop, tree, num_workers, steps, load="-", save="-"):
    """The batches that a loop in a process of its own was given."""
    command = [sys.executable, HERE / "runs.py", loop, tree, str(num_workers), str(steps)]
    done = subprocess.run([*command, load, save], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def unbroken(tree, num_workers):
    """The first 20 batches of a pass, by a loader that has nothing to do with states."""
    dataset = Dataset(runs.TREES[tree]())
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    return [batch["x"].tolist() for batch in itertools.islice(loader, 20)]


def needs(loop):
    needing = ("stateful", "lightning_loader", "lightning_epochs")
    names = ["torchdata" if loop in needing else None]
    names += ["transformers", "accelerate"] if "trainer" in loop else []
    names += ["torchdata"] if loop == "trainer_stateful" else []
    names += ["lightning"] if "lightning" in loop else []
    names += ["accelerate", "torchdata"] if loop == "accelerated" else []
    for name in filter(None, names):
        pytest.importorskip(name, reason=f"{name} is not installed")


VALUES = {
    "text": lambda i: np.array([f"row {i}", ""]),
    "a string": lambda i: np.str_(i),
    "times": lambda i: np.array([f"2020-01-{i + 1:02}"], "datetime64[D]"),
    "records": lambda i: np.array([(i, f"{i}")], [("number", "i4"), ("name", "U3")]),
    "long numbers": lambda i: np.full(2, i, np.longdouble),
    "unsigned numbers": lambda i: np.full(2, i, np.uint64),
    "a number": lambda i: np.uint8(i),
    "bytes": lambda i: b"\0" * i,
}


def valued(name):
    for i in range(28):
        yield {"x": VALUES[name](i)}


@pytest.mark.parametrize("name", VALUES)
def test_a_state_with_items_of_any_plain_type_is_loaded_by_torch(name, tmp_path):
    values = pescador.Streamer(valued, name)
    tree = pescador.Seeded(pescador.Streamer(pescador.cache, values, 4), 1)
    dataset = Dataset(tree)
    items = iter(dataset)
    for _ in range(5):
        next(items)
    torch.save(dataset.state_dict(), tmp_path / "state")
    resumed = Dataset(tree)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for ours, theirs in itertools.islice(zip(resumed, items, strict=True), 10):
        assert type(ours["x"]) is type(theirs["x"])
        assert getattr(ours["x"], "dtype", None) == getattr(theirs["x"], "dtype", None)
        assert str(ours["x"]) == str(theirs["x"])


def test_an_array_that_no_file_can_hold_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    items = [np.arange(2).astype(ml_dtypes.int4)] * 9
    dataset = Dataset(pescador.Seeded(pescador.Streamer(pescador.cache, items, 4), 1))
    next(iter(dataset))
    with pytest.raises(pescador.StateError, match="dtype int4"):
        dataset.state_dict()


def test_a_state_goes_through_pickle_as_between_ranks():
    """Not all types of torch do."""
    dataset = Dataset(pescador.Seeded(pescador.Streamer(pescador.cache, runs.endless_tree(), 4), 1))
    items = iter(dataset)
    for _ in range(9):
        next(items)
    resumed = Dataset(dataset.streamer)
    resumed.load_state_dict(pickle.loads(pickle.dumps(dataset.state_dict())))
    expected = [next(items)["x"].tolist() for _ in range(5)]
    assert [batch["x"].tolist() for batch in itertools.islice(resumed, 5)] == expected


@pytest.mark.parametrize(
    ("loop", "num_workers"),
    [
        ("plain", 0),
        ("stateful", 0),
        ("stateful", 2),
        ("lightning_itself", 0),
        ("lightning_loader", 0),
        ("lightning_loader", 2),
        ("accelerated", 0),
        ("accelerated", 2),
        ("trainer", 0),
        ("trainer_stateful", 2),
    ],
)
@pytest.mark.parametrize("tree", ["endless", "finite"])
# Two processes import a large package, while others may do so too.
@pytest.mark.timeout(300)
def test_a_pass_that_is_resumed_in_a_new_process_goes_on_as_an_unbroken_one(
    loop, num_workers, tree, tmp_path
):
    needs(loop)
    path = str(tmp_path / "state")
    first = run(loop, tree, num_workers, 9, save=path)
    assert first + run(loop, tree, num_workers, 11, load=path) == unbroken(tree, num_workers)


@pytest.mark.parametrize(
    ("loop", "length"),
    [
        ("plain", 30),
        ("stateful", 30),
        ("lightning_itself", 25),
        ("lightning_loader", 25),
        ("accelerated", 30),
        ("trainer_stateful", 30),
    ],
)
@pytest.mark.timeout(300)
def test_a_run_that_is_resumed_in_its_second_pass_goes_on_to_the_third(loop, length, tmp_path):
    needs(loop)
    path = str(tmp_path / "state")
    first = run(loop, "finite", 0, length + 4, save=path)
    rest = run(loop, "finite", 0, length, load=path)
    tree = runs.finite_tree()
    whole = [tree.at(epoch=epoch)(max_iter=length) for epoch in range(3)]
    expected = [batch["x"].tolist() for batch in itertools.chain(*whole)]
    assert first + rest == expected[: 2 * length + 4]


@pytest.mark.parametrize(
    ("tree", "num_workers", "stop_at"),
    [("parallel", 0, 14), ("parallel", 0, 20), ("endless", 2, 14), ("endless", 2, 20)],
)
@pytest.mark.timeout(300)
def test_epochs_of_lightning_that_are_resumed_are_those_of_an_unbroken_run(
    tree, num_workers, stop_at, tmp_path
):
    needs("lightning_epochs")
    path = str(tmp_path / "state")
    first = run("lightning_epochs", tree, num_workers, stop_at, save=path)
    rest = run("lightning_epochs", tree, num_workers, 30 - stop_at, load=path)
    loader = DataLoader(stepped(10), batch_size=None, num_workers=num_workers)
    assert first + rest == [batch["x"].tolist() for _ in range(3) for batch in loader]


def trained_by_lightning(folder):
    return torch.load(folder / "checkpoints/last.ckpt")["state_dict"]


def trained_by_accelerate(folder):
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints/80/model.safetensors")


@pytest.mark.parametrize(
    ("name", "packages", "trained"),
    [
        ("lightning_loop.py", ["lightning", "torchdata"], trained_by_lightning),
        ("accelerate_loop.py", ["accelerate", "torchdata"], trained_by_accelerate),
    ],
)
@pytest.mark.timeout(300)
def test_a_script_on_the_page_that_is_resumed_trains_the_model_of_an_unbroken_run(
    name, packages, trained, tmp_path
):
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    script = scripts.on_page("how-to/pytorch.rst", name)
    # Where the model of a run that is resumed began does not matter.
    resumed = script.replace("manual_seed(0)", "manual_seed(1)")
    assert resumed != script
    models = []
    for runs_of in ([(50, script), (80, resumed)], [(80, script)]):
        folder = tmp_path / str(len(runs_of))
        folder.mkdir()
        for steps, body in runs_of:
            (folder / name).write_text(body)
            environment = {**os.environ, "STEPS": str(steps)}
            command = [sys.executable, name]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        models.append(trained(folder))
    torch.testing.assert_close(*models, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("every", [4, 100])
def test_a_loader_that_takes_few_states_goes_on_as_well(num_workers, every):
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")

    def loader():
        return package.StatefulDataLoader(
            Dataset(runs.endless_tree()),
            batch_size=None,
            num_workers=num_workers,
            snapshot_every_n_steps=every,
        )

    first, second = loader(), loader()
    found = [batch["x"].tolist() for batch in itertools.islice(first, 9)]
    second.load_state_dict(first.state_dict())
    found += [batch["x"].tolist() for batch in itertools.islice(second, 11)]
    assert found == unbroken("endless", num_workers)


# What a killed worker was about to send.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:Warning")
def test_after_a_pass_whose_worker_was_killed_comes_the_next_epoch():
    loader = DataLoader(Dataset(runs.endless_tree()), batch_size=None, num_workers=2)
    items = iter(loader)
    next(items)
    items._workers[1].kill()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(items)
    del items
    for worker, batch in enumerate(itertools.islice(loader, 2)):
        expected = runs.endless_tree().at(rank=worker, epoch=1)(max_iter=1)
        assert rows([batch]) == rows(expected)


@pytest.mark.parametrize("seconds", [0.0005, 0.001, 0.002, 0.004])
def test_a_loop_that_is_interrupted_goes_on_from_its_state(seconds):
    dataset, given = Dataset(runs.endless_tree()), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for _ in dataset:
            given += 1
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    state = dataset.state_dict()
    resumed = Dataset(runs.endless_tree())
    resumed.load_state_dict(state)
    # The last batch may have been made, and not have come to the loop.
    index = 0 if state["stream"] is None else state["stream"]["index"]
    assert index - given in (0, 1)
    whole = itertools.islice(Dataset(runs.endless_tree()), index, index + 3)
    assert rows(itertools.islice(resumed, 3)) == rows(whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_may_run_in_workers_of_their_own(num_workers, tmp_path):
    needs("stateful")
    path = str(tmp_path / "state")
    first = run("stateful", "parallel", num_workers, 9, save=path)
    rest = run("stateful", "parallel", num_workers, 11, load=path)
    assert first + rest == unbroken("endless", num_workers)


def test_ranks_that_are_resumed_go_on_as_unbroken_ones(tmp_path):
    whole = run_ranks("finite", 0, "fork", 12, tmp_path)
    path = str(tmp_path / "state")
    first = run_ranks("finite", 0, "fork", 5, tmp_path, save=path)
    rest = run_ranks("finite", 0, "fork", 7, tmp_path, load=path)
    assert [a + b for a, b in zip(first, rest, strict=True)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_the_state_of_an_ended_pass_comes_the_next_one(num_workers):
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")

    def loader():
        dataset = Dataset(runs.finite_tree())
        return package.StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    unbroken = loader()
    passes = [rows(unbroken) for _ in range(3)]
    first = loader()
    assert rows(first) == passes[0]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert [rows(second), rows(second)] == passes[1:]


def test_the_pass_after_a_restored_one_is_the_next_epoch():
    dataset = Dataset(runs.finite_tree().at(epoch=3))
    items = iter(dataset)
    for _ in range(4):
        next(items)
    other = Dataset(runs.finite_tree())
    other.load_state_dict(dataset.state_dict())
    assert rows(other) == rows(items)
    assert rows(other) == rows(runs.finite_tree().at(epoch=4))
    ended = Dataset(runs.finite_tree())
    ended.load_state_dict(other.state_dict())
    assert rows(ended) == rows(runs.finite_tree().at(epoch=5))


@given(steps=st.none() | st.integers(1, 6), given_=st.integers(1, 6), steps_after=st.integers(1, 6))
def test_a_state_is_followed_by_the_rest_of_its_steps_or_by_the_next_pass(
    steps, given_, steps_after
):
    first, second = stepped(steps), stepped(steps_after)
    given_ = min(given_, steps or given_)
    items = iter(first)
    for _ in range(given_):
        next(items)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    whole = [rows(runs.endless_tree().at(epoch=epoch)(max_iter=6)) for epoch in range(3)]
    if given_ != steps:
        assert rows(second) == whole[0][4 * given_ : 4 * steps_after]
    for epoch in (1, 2):
        assert rows(second) == whole[epoch][: 4 * steps_after]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_loader_goes_on_to_exactly_the_rest_of_the_steps(num_workers, steps):
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")

    def loader():
        return package.StatefulDataLoader(stepped(steps), batch_size=None, num_workers=num_workers)

    unbroken = loader()
    first, second = [batch["x"].tolist() for batch in unbroken], rows(unbroken)
    saved = loader()
    states = [copy.deepcopy(saved.state_dict()) for _ in saved]
    for given_, state in enumerate([*states, saved.state_dict()], 1):
        resumed = loader()
        resumed.load_state_dict(state)
        # One that was told of its end is done with its pass.
        if given_ <= steps:
            assert [batch["x"].tolist() for batch in resumed] == first[given_:]
        assert rows(resumed) == second


def test_a_state_can_be_taken_before_the_first_item_and_after_it_was_loaded():
    expected = rows(Dataset(runs.finite_tree()))
    state = Dataset(runs.finite_tree()).state_dict()
    for _ in range(2):
        dataset = Dataset(runs.finite_tree())
        dataset.load_state_dict(state)
        state = dataset.state_dict()
        iter(dataset)
        state = dataset.state_dict()
    dataset.load_state_dict(state)
    assert rows(dataset) == expected


def test_a_state_of_another_number_of_workers_is_refused_by_name():
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")
    loader = package.StatefulDataLoader(
        Dataset(runs.endless_tree()), batch_size=None, num_workers=2
    )
    next(iter(loader))
    workers = loader.state_dict()["_snapshot"]["_worker_snapshots"]
    state = workers["worker_1"]["dataset_state"]
    message = "of rank 0 of 1 with worker 1 of 2; this is rank 0 of 1 with no workers"
    with pytest.raises(pescador.StateError, match=message):
        Dataset(runs.endless_tree()).load_state_dict(state)


def test_a_state_that_workers_cannot_go_on_from_is_refused_by_name():
    dataset = Dataset(runs.endless_tree())
    next(iter(dataset))
    other = Dataset(runs.endless_tree())
    other.load_state_dict(dataset.state_dict())
    with pytest.raises(pescador.StateError, match=r"with no workers; this is .* worker 0 of 1"):
        next(iter(DataLoader(other, batch_size=None, num_workers=1)))


def test_a_state_of_another_number_of_ranks_is_refused_by_name(tmp_path):
    path = str(tmp_path / "state")
    run_ranks("endless", 0, "fork", 5, tmp_path, save=path)
    dataset = Dataset(runs.endless_tree())
    with pytest.raises(pescador.StateError, match=r"is that of rank 1 of 2 .* this is rank 0 of 1"):
        dataset.load_state_dict(torch.load(path + "1"))


def test_a_state_of_another_tree_is_refused_when_the_pass_begins():
    dataset = Dataset(runs.endless_tree())
    next(iter(dataset))
    other = Dataset(runs.finite_tree())
    other.load_state_dict(dataset.state_dict())
    with pytest.raises(pescador.StateError, match="does not fit"):
        next(iter(other))


@pytest.mark.parametrize(
    "damage",
    [
        {"rank": None},
        {"epoch": -1},
        {"epoch": 1 << 70},
        {"num_workers": "0"},
        {"stream": 3},
        {"stream": {}},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(damage):
    dataset = Dataset(runs.endless_tree())
    with pytest.raises(pescador.StateError, match="the state is damaged"):
        dataset.load_state_dict({**dataset.state_dict(), **damage})


@pytest.mark.parametrize("state", [None, {}, {"pescador": 1}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(pescador.ArgumentError, match="state_dict="):
        Dataset(runs.endless_tree()).load_state_dict(state)


def test_the_state_of_a_pass_that_workers_made_is_not_taken_here():
    dataset = Dataset(runs.endless_tree())
    next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    with pytest.raises(pescador.StateError, match="StatefulDataLoader"):
        dataset.state_dict()
    next(iter(dataset))
    dataset.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "rows"}, "split='rows'"),
        ({"transform": 3}, "transform=3"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch=2.5"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(pescador.ArgumentError, match=message):
        Dataset(runs.endless_tree(), **options)
