"""Streams over data sets of Hugging Face, and streams as such data sets.

The Trainer is in test_torch.py, with the other loops that are stopped and resumed.
"""

import datetime
import gc
import itertools
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

import pescador  # noqa: E402
import runs  # noqa: E402
from pescador.sources import Rows, Windows  # noqa: E402
from pescador.sources.stores import open_store  # noqa: E402

pytestmark = [
    # Of datasets, about a later release of pyarrow.
    pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions:FutureWarning"),
    # Of DataLoader, about machines with fewer processors.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # torchdata calls it.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

N = 40
KEYS = ["vector", "nested", "image", "frames", "empty", "label", "flag", "amount"]


def rows():
    """Rows of all kinds of features."""
    for i in range(N):
        yield {
            "vector": np.arange(4, dtype=np.float32) + i,
            "nested": [[i, 1], [2, i], [3, 4]],
            "image": np.arange(6.0).reshape(2, 3) - i,
            "frames": [np.arange(6.0).reshape(2, 3) - i] * 2,
            "empty": [[], []],
            "label": i % 3,
            "flag": i % 5 == 0,
            "amount": i / 4,
            "text": f"row {i}",
            "ragged": list(range(i % 2 + 1)),
        }


FEATURES = datasets.Features(
    {
        "vector": datasets.Sequence(datasets.Value("float32"), 4),
        "nested": datasets.Sequence(datasets.Sequence(datasets.Value("int16"))),
        "image": datasets.Array2D((2, 3), "float64"),
        "frames": datasets.Sequence(datasets.Array2D((2, 3), "float16")),
        "empty": datasets.Sequence(datasets.Sequence(datasets.Value("int16"))),
        "label": datasets.ClassLabel(3),
        "flag": datasets.Value("bool"),
        "amount": datasets.Value("float64"),
        "text": datasets.Value("string"),
        "ragged": datasets.Sequence(datasets.Value("int64")),
    }
)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A data set in a file that is mapped, in several batches of Arrow."""
    path = tmp_path_factory.mktemp("data") / "rows.arrow"
    writer = datasets.arrow_writer.ArrowWriter(
        path=str(path), features=FEATURES, writer_batch_size=16
    )
    with writer:
        for row in rows():
            writer.write(row)
        writer.finalize()
    data = datasets.Dataset.from_file(str(path))
    assert data.data.column("label").num_chunks == 3
    assert data.cache_files
    return data


DERIVED = {
    "as it is": lambda data: data,
    "a range": lambda data: data.select(range(5, 30)),
    "some rows": lambda data: data.select([7, 3, 3, 38]),
    "shuffled": lambda data: data.shuffle(seed=0),
    "a shuffled part": lambda data: data.shuffle(seed=0).select(range(20)).shuffle(seed=1),
    "filtered": lambda data: data.filter(lambda row: row["label"] == 1, keep_in_memory=True),
    "sorted": lambda data: data.sort("amount", reverse=True),
    "a split": lambda data: data.train_test_split(0.3, seed=0)["test"],
    "joined": lambda data: datasets.concatenate_datasets([data.select([3, 1]), data.shuffle(7)]),
    "renamed": lambda data: data.rename_column("label", "y").rename_column("y", "label"),
    "in memory": lambda data: datasets.Dataset.from_list(data.to_list(), features=FEATURES),
    "one batch": lambda data: data.flatten_indices(keep_in_memory=True),
    "pickled": lambda data: pickle.loads(pickle.dumps(data.shuffle(seed=3))),
}


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_rows_are_those_of_the_data_set(mapped, derive, form):
    if form == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    data = derive(mapped)
    data = data if form is None else data.with_format(form)
    items = list(Rows(data, KEYS, order="sequential"))
    assert len(items) == len(data)
    columns = data.select_columns(KEYS)[:]
    for i, item in enumerate(items):
        assert list(item) == KEYS
        for key, value in item.items():
            expected = np.asarray(columns[key])[i, ...]
            assert np.array_equal(value, expected)
            assert value.shape == expected.shape
            assert form is None or value.dtype == expected.dtype
            assert value.flags.writeable


def test_without_a_format_dtypes_are_those_that_are_stored(mapped):
    item = next(Rows(mapped, KEYS).iterate())
    dtypes = [value.dtype.name for value in item.values()]
    assert dtypes == [
        "float32", "int16", "float64", "float16", "int16", "int64", "bool", "float64",
    ]  # fmt: skip


def test_a_format_says_which_columns_are_taken_and_of_which_dtype(mapped):
    data = mapped.with_format("numpy", columns=["label", "image"], dtype=np.float16)
    item = next(Rows(data).iterate())
    assert {key: value.dtype.name for key, value in item.items()} == {
        "label": "float16",
        "image": "float16",
    }
    # Others that are asked for by name are as they are stored.
    item = next(Rows(data, ["flag", "label"]).iterate())
    assert [value.dtype.name for value in item.values()] == ["bool", "float16"]


def test_a_format_that_is_set_later_holds_from_the_next_visit_on(mapped):
    data = mapped.select(range(10)).with_format("numpy", columns=["label"])
    source = Rows(data)
    assert list(next(source.iterate())) == ["label"]
    data.set_format("numpy", columns=["amount"])
    assert list(next(source.iterate())) == ["amount"]


def test_a_data_set_is_opened_once_for_many_visits(mapped):
    data = mapped.shuffle(seed=0)
    assert open_store(data, ["label"]) is open_store(data, ["label"])
    gone = weakref.ref(data)
    del data
    gc.collect()
    assert gone() is None


@given(st.integers(1, 12), st.integers(0, 5))
def test_windows_go_over_the_rows_in_their_order(mapped, length, seed):
    data = mapped.shuffle(seed=seed)
    windows = Windows(data, length, keys=["label", "vector"], order="sequential")
    found = list(windows)
    assert len(found) == N - length + 1
    labels, vectors = list(data["label"]), np.array(data["vector"], np.float32)
    for i, window in enumerate(found):
        assert window["label"].tolist() == labels[i : i + length]
        assert np.array_equal(window["vector"], vectors[i : i + length])


def mux_of_classes(data):
    labels = np.array(data["label"])
    classes = [data.select(np.flatnonzero(labels == label)) for label in range(3)]
    mux = pescador.StochasticMux([Rows(one, KEYS) for one in classes], 2, 8)
    return pescador.Seeded(pescador.Streamer(pescador.buffer_stream, mux, 6), 0)


@pytest.mark.parametrize("options", [{}, {"start_method": "spawn"}, {"kind": "thread"}])
def test_workers_read_data_sets_too(mapped, options):
    run = mux_of_classes(mapped)
    parallel = pescador.ParallelStreamer(run, 2, **options)
    expected = list(run.iterate(10))
    assert {int(label) for batch in expected for label in batch["label"]} == {0, 1, 2}
    for ours, theirs in zip(parallel.iterate(10), expected, strict=True):
        for key in KEYS:
            assert np.array_equal(ours[key], theirs[key])


def test_a_stream_of_a_data_set_is_saved_and_restored(mapped):
    run = mux_of_classes(mapped)
    with run.open() as stream:
        for _ in range(5):
            next(stream)
        state = stream.state_dict()
        expected = next(stream)
    with run.open(state=state) as stream:
        assert np.array_equal(next(stream)["image"], expected["image"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["text"], "data: key 'text' holds .* text of any length"),
        (["ragged"], "data: key 'ragged' has rows of different lengths: 1 and 2"),
        (["other"], "data has no key 'other'; it has 'vector', "),
        (None, "data: key 'text' holds"),
    ],
)
def test_columns_that_are_no_arrays_are_named(mapped, keys, message):
    with pytest.raises(pescador.DataError, match=message):
        list(Rows(mapped, keys, order="sequential"))


def test_rows_that_are_null_are_named_where_they_are_read():
    data = datasets.Dataset.from_dict({"x": [1, 2, None], "v": [[1, 2], None, [3, 4]]})
    items = Rows(data.select([0]), order="sequential")
    assert [{k: v.tolist() for k, v in item.items()} for item in items] == [{"x": 1, "v": [1, 2]}]
    with pytest.raises(pescador.DataError, match="key 'x' has values that are null"):
        list(Rows(data, ["x"], order="sequential"))
    with pytest.raises(pescador.DataError, match="key 'v' has rows that are null"):
        list(Rows(data, ["v"], order="sequential"))


@pytest.mark.parametrize("form", [None, "numpy"])
@pytest.mark.parametrize("first", [[], None, [1]])
def test_the_shape_is_that_of_the_rows_that_are_left(first, form):
    data = datasets.Dataset.from_dict({"x": [first, [1, 2], [3, 4]]})
    data = data.filter(lambda row: len(row["x"] or ()) == 2, keep_in_memory=True)
    items = Rows(data.with_format(form), order="sequential")
    assert [item["x"].tolist() for item in items] == [[1, 2], [3, 4]]


def test_a_column_that_its_format_cannot_convert_is_named():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    days = [datetime.datetime(2020, 1, day) for day in (1, 2)]
    data = datasets.Dataset.from_dict({"day": days, "x": [1, 2], "deep": [[[1], [2, 3]]] * 2})
    for key, options in ("day", {}), ("x", {"dtype": torch.bfloat16}), ("deep", {}):
        message = f"data: key '{key}' cannot be converted to its format, 'torch': "
        with pytest.raises(pescador.DataError, match=message):
            next(Rows(data.with_format("torch", **options), [key]).iterate())
    item = next(Rows(data, ["day"], order="sequential").iterate())
    assert item["day"] == np.datetime64("2020-01-01")


def test_an_empty_data_set_has_nothing_to_draw_from(mapped):
    data = mapped.filter(lambda row: False, keep_in_memory=True).with_format("numpy")
    with pytest.raises(pescador.DataError, match="data has no rows"):
        next(Rows(data, ["vector"]).iterate())


def test_a_transform_and_what_is_no_single_data_set_are_refused(mapped):
    with pytest.raises(pescador.ArgumentError, match=r"pescador\.transform"):
        Rows(mapped.with_transform(lambda batch: batch))
    source = Rows(mapped.select(range(3)), ["label"])
    source.data.set_transform(lambda batch: batch)
    with pytest.raises(pescador.ArgumentError, match=r"pescador\.transform"):
        next(source.iterate())
    splits = datasets.DatasetDict({"train": mapped})
    with pytest.raises(pescador.DataError, match="key 'train' is a data set"):
        next(Rows(splits).iterate())
    with pytest.raises(pescador.ArgumentError, match="must be a mapping"):
        Rows(mapped.to_iterable_dataset())


def test_a_description_of_a_source_does_not_print_its_data_set(mapped):
    assert repr(Rows(mapped, ["label"])) == "Rows(<Dataset>, keys=['label'])"


# ---------------------------------------------------------------- streams as iterable data sets


def parts(ranks, n):
    """A stream for each rank, one after the other: what workers share."""
    for rank in ranks:
        yield from samples().at(rank=rank).iterate(n)


def samples():
    pool = [pescador.Streamer(runs.noise, i) for i in range(12)]
    return pescador.Seeded(pescador.StochasticMux(pool, 4, 5), 7)


def iterable(n_ranks=4, n=10):
    return datasets.IterableDataset.from_generator(
        parts, gen_kwargs={"ranks": list(range(n_ranks)), "n": n}
    )


def of(ranks, n=10):
    return [item["x"].tolist() for rank in ranks for item in samples().at(rank=rank).iterate(n)]


@pytest.mark.parametrize("wrap", [lambda run: run, lambda run: pescador.ParallelStreamer(run, 1)])
def test_an_iterable_data_set_gives_the_items_of_a_streamer(wrap):
    data = datasets.IterableDataset.from_generator(
        wrap(samples()).iterate, gen_kwargs={"max_iter": 20}
    )
    for _ in range(2):
        items = list(data)
        assert all(type(item["x"]) is np.ndarray for item in items)
        assert [item["x"].tolist() for item in items] == of([0], 20)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_the_ranks_of_an_iterable_data_set(context):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    data = iterable()
    assert data.num_shards == 4
    loader = torch.utils.data.DataLoader(
        data.with_format("torch"), batch_size=5, num_workers=2, multiprocessing_context=context
    )
    found = [row for batch in loader for row in batch["x"].tolist()]
    # By turns, a batch of each.
    both = [of([0, 2]), of([1, 3])]
    expected = [both[w][i : i + 5] for i in range(0, 20, 5) for w in range(2)]
    assert found == list(itertools.chain.from_iterable(expected))


def test_an_iterable_data_set_goes_on_from_its_state():
    data = iterable()
    items = iter(data)
    for _ in range(13):
        next(items)
    state = pickle.loads(pickle.dumps(data.state_dict()))
    resumed = iterable()
    resumed.load_state_dict(state)
    assert [item["x"].tolist() for item in resumed] == [item["x"].tolist() for item in items]


def test_a_loader_of_an_iterable_data_set_goes_on_from_its_state():
    package = pytest.importorskip("torchdata.stateful_dataloader", reason="no torchdata")

    def loader():
        return package.StatefulDataLoader(
            iterable().with_format("torch"), batch_size=5, num_workers=2
        )

    first, second = loader(), loader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second.load_state_dict(first.state_dict())
    assert [b["x"].tolist() for b in second] == [b["x"].tolist() for b in batches]


def test_importing_the_package_does_not_import_datasets():
    script = "import sys, numpy, pescador; pescador.sources.Rows({'x': numpy.ones(3)})"
    script += "; assert not {'datasets', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)
