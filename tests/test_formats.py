"""Parquet, Arrow, audio, HDF5 and Zarr files: rows and slices as their own libraries give them."""

import contextlib
import itertools
import math
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from stored import aged, check_parts, same, whole

import pescador
from pescador import DataError, PescadorError
from pescador.sources import Rows, formats
from pescador.sources.stores import count_rows, open_store

X = np.arange(200 * 3, dtype=">i2").reshape(200, 3)
Y = np.linspace(0, 1, 200)


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=X, chunks=(16, 3), compression="gzip")
        file.create_dataset("group/y", data=Y)


def write_zarr(path):
    zarr = pytest.importorskip("zarr", minversion="3")
    root = zarr.open_group(path, mode="w")
    root.create_array("X", shape=X.shape, dtype=X.dtype, chunks=(16, 3))[:] = X
    root.create_group("group").create_array("y", shape=Y.shape, dtype=Y.dtype)[:] = Y


def table():
    pyarrow = pytest.importorskip("pyarrow")
    flat = pyarrow.array(X.ravel().astype("i2"))
    return pyarrow.table(
        {"X": pyarrow.FixedSizeListArray.from_arrays(flat, 3), "group/y": pyarrow.array(Y)}
    )


def write_parquet(path):
    pytest.importorskip("pyarrow.parquet").write_table(table(), path, row_group_size=16)


def write_feather(path):
    pytest.importorskip("pyarrow.feather").write_feather(table(), path, chunksize=16)


def write_arrow(path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_file(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=16)


def write_arrow_stream(path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_stream(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=16)


FORMATS = {
    "hdf5": ("a.h5", write_hdf5),
    "zarr": ("a.zarr", write_zarr),
    "parquet": ("a.parquet", write_parquet),
    "feather": ("a.feather", write_feather),
    "arrow": ("a.arrow", write_arrow),
    "arrow stream": ("a.arrow", write_arrow_stream),
}


def batched(items, n):
    return (items[i : i + n] for i in range(0, len(items), n))


def part(array, rows):
    return array[rows] if isinstance(array, np.ndarray) else array.read(rows)


each_format = pytest.mark.parametrize(("name", "write"), FORMATS.values(), ids=FORMATS)


@each_format
@pytest.mark.parametrize("mmap", [True, False])
def test_files_of_other_formats_give_rows_and_slices(tmp_path, name, write, mmap):
    path = tmp_path / name
    write(path)
    rng = np.random.default_rng(0)
    # HDF5 keeps the order of bytes.
    x = X if name == "a.h5" else X.astype("i2")
    with open_store(path, mmap=mmap) as store:
        assert set(store.arrays) == {"X", "group/y"}
        assert store.is_file
        assert count_rows(store) == 200
        assert store.arrays["X"].chunk_rows == 16
        for _ in range(20):
            rows = np.unique(rng.integers(200, size=20))
            same(store.arrays["X"].read(rows), x[rows])
            same(part(store.arrays["group/y"], rows), Y[rows])
        for start, stop in (0, 200), (5, 37), (16, 32), (7, 7), (199, 200):
            same(store.arrays["X"].read_slice(start, stop), x[start:stop])
            assert store.arrays["X"].read_slice(start, stop).flags.writeable
        same(store.arrays["X"].read_slice(1, 3, axis=1), x[:, 1:3])
        same(store.arrays["X"].read(np.array([], np.int64)), x[:0])
    with open_store(path, ["group/y"]) as store:
        assert list(store.arrays) == ["group/y"]


@each_format
def test_batches_of_other_formats_hold_the_rows_that_were_drawn(tmp_path, name, write):
    write(tmp_path / name)

    def mux():
        rows = Rows(tmp_path / name, random_state=1)
        return pescador.StochasticMux([rows, rows], 2, 16, random_state=2)

    # A mux hands on where rows lie; a generator gives them as items.
    items = [*mux()(max_iter=96)]
    for _ in range(5):
        # What is allocated next lies where something else was.
        dirt = [b"\xff" * size for size in range(64, 2048, 8) for _ in range(9)]
        del dirt
        for batch, own in zip(pescador.buffer_stream(mux(), 32), batched(items, 32), strict=False):
            for key in "X", "group/y":
                same(batch[key], np.array([item[key] for item in own]))


@each_format
def test_files_of_other_formats_tell_what_is_wrong(tmp_path, name, write):
    path = tmp_path / name
    # Skips where the package is missing.
    write(tmp_path / f"other{path.suffix}")
    with pytest.raises(DataError, match=f"{name} does not exist"):
        open_store(path)
    write(path)
    with pytest.raises(DataError, match=f"{name} has no key 'Z'; it has .*'X'"):
        open_store(path, ["Z"])
    if path.is_file():
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            open_store(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(DataError, match=f"{name} is a folder; a file was expected"):
            open_store(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here")
@each_format
def test_files_of_other_formats_are_closed_when_the_visit_ends(tmp_path, name, write):
    path = tmp_path / name
    write(path)

    def descriptors():
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return [link for link in found if link.startswith(str(path))]

    with open_store(path) as store:
        store.arrays["X"].read(np.array([3]))
    assert not descriptors()
    with pytest.raises(DataError) as caught:
        open_store(path, ["Z"])
    # The error holds what its frames hold.
    assert caught.tb is not None
    assert not descriptors()


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.h5", "h5py"), ("a.zarr", "zarr"), ("a.parquet", "pyarrow"), ("a.feather", "pyarrow"),
     ("a.wav", "soundfile")],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path, name, package, monkeypatch):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(PescadorError, match=f"{name} cannot be .* {package!r}: pip install"):
        open_store(tmp_path / name)


def test_hdf5_text_groups_and_empty_datasets_are_errors(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = ["a", "bc"]
        file["one"] = 3.0
        file.create_group("group")
        file["empty"] = h5py.Empty("f4")
    for key, expected in [
        ("text", "holds Python objects, text of any length or ragged rows"),
        ("group", "is a group; an array was expected"),
        ("empty", "is empty; an array was expected"),
    ]:
        with pytest.raises(DataError, match=rf"a\.h5: key '{key}' {expected}"):
            open_store(path, [key])
    assert open_store(path, ["one"]).arrays["one"] == 3


def test_a_zarr_array_by_itself_has_the_key_data(tmp_path):
    zarr = pytest.importorskip("zarr", minversion="3")
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(10,), dtype="f4", chunks=(4,))[:] = np.arange(10)
    with open_store(path) as store:
        same(store.arrays["data"].read(np.array([1, 9])), np.array([1, 9], "f4"))


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_columns_that_are_no_arrays_are_errors(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    columns = {
        "text": ["a", "b", "c"],
        "ragged": [[1], [1, 2], []],
        "fields": [{"a": 1}] * 3,
        "no list": [[1], None, [3]],
        "no first list": [None, [1], [3]],
        "null": [1, None, 3],
        "nan": [1.0, None, 3.0],
        "flag": [True, False, True],
        "day": np.array(["2020-01-01"] * 3, "M8[ms]"),
    }
    data = pyarrow.table(columns)
    if name.endswith("r"):
        pytest.importorskip("pyarrow.feather").write_feather(data, path)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(data, path)
    with pytest.raises(DataError, match=f"{name}: key 'text' holds .* text"):
        open_store(path)
    with pytest.raises(DataError, match=f"{name}: key 'fields' is of type struct"):
        open_store(path, ["fields"])
    with pytest.raises(DataError, match=f"{name}: key 'no first list' has rows that are null"):
        open_store(path, ["no first list"])
    with open_store(path, ["ragged", "no list"]) as store:
        with pytest.raises(DataError, match="key 'ragged' has rows of different lengths: 1 and 2"):
            store.arrays["ragged"].read_slice(0, 3)
        with pytest.raises(DataError, match="key 'no list' has rows that are null"):
            store.arrays["no list"].read_slice(0, 3)
    with open_store(path, ["null", "nan", "flag", "day"]) as store:
        with pytest.raises(DataError, match=f"{name}: key 'null' has values that are null"):
            store.arrays["null"].read_slice(0, 3)
        same(whole(store.arrays["nan"]), np.array([1, np.nan, 3]))
        same(store.arrays["flag"].read_slice(0, 3), np.array([True, False, True]))
        same(whole(store.arrays["day"]), columns["day"])


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_lists_of_one_length_are_rows(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    array = np.arange(24.0).reshape(4, 2, 3)
    path = tmp_path / name
    fixed = pyarrow.list_(pyarrow.list_(pyarrow.float64()), 2)
    data = pyarrow.table(
        {
            "X": array.tolist(),
            "fixed": pyarrow.array(array.tolist(), fixed),
            "empty": pyarrow.array([[]] * 4, pyarrow.list_(pyarrow.float64())),
        }
    )
    if name.endswith("r"):
        pytest.importorskip("pyarrow.feather").write_feather(data, path)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(data, path, row_group_size=3)
    with open_store(path) as store:
        for key, ours in store.arrays.items():
            expected = np.empty((4, 0)) if key == "empty" else array
            same(part(ours, np.array([1, 3])), expected[[1, 3]])
            same(whole(ours), expected)


def arrow_of(data, path, **options):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_file(str(path), data.schema, **options) as writer:
        writer.write_table(data, max_chunksize=16)
    return aged(path)


def test_an_arrow_file_that_is_not_compressed_stays_mapped(tmp_path):
    path = arrow_of(table(), tmp_path / "a.arrow")
    first = open_store(path)
    assert open_store(path) is first
    arrow_of(table().slice(8), path)
    with open_store(path) as store:
        assert store is not first
        same(whole(store.arrays["X"]), X[8:].astype("i2"))
    compressed = arrow_of(
        table(),
        tmp_path / "b.arrow",
        options=pytest.importorskip("pyarrow").ipc.IpcWriteOptions(compression="lz4"),
    )
    assert open_store(compressed) is not open_store(compressed)


@given(st.data())
def test_parts_of_a_table_in_memory_are_those_of_its_values(data):
    pyarrow = pytest.importorskip("pyarrow")
    n = data.draw(st.integers(1, 12))
    dtype = data.draw(st.sampled_from(["i1", "u8", "f2", "f4", "f8", "?", "M8[ms]"]))
    shape = (n, *data.draw(st.sampled_from([(), (3,), (2, 3), (2, 1), (0,), (2, 0)])))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    array = (numbers % 3).astype(dtype) if dtype == "?" else numbers.astype(dtype)
    column = pyarrow.array(array.ravel())
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        if size and data.draw(st.booleans()):
            column = pyarrow.FixedSizeListArray.from_arrays(column, size)
        else:
            ends = np.arange(math.prod(shape[:axis]) + 1, dtype=np.int32) * size
            column = pyarrow.ListArray.from_arrays(ends, column)
    ends = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = [column[a:b] for a, b in itertools.pairwise([0, *ends, n])]
    order = data.draw(
        st.none() | npst.arrays(np.int64, st.integers(1, 9), elements=st.integers(0, n - 1))
    )
    to = data.draw(st.sampled_from([None, np.dtype("f4")])) if dtype != "M8[ms]" else None
    table = pyarrow.table({"x": pyarrow.chunked_array(parts, column.type)})
    columns = formats.table_columns("table", table, ["x"], order, {"x": to})
    expected = array if order is None else array[order]
    check_parts(formats.as_arrays(columns)["x"], expected.astype(to or dtype), data)


def test_tensors_of_arrow_keep_their_shape(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    array = np.arange(24.0).reshape(4, 2, 3)
    tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(array)
    lists = pyarrow.ListArray.from_arrays([0, 2, 4], tensors)
    for column, expected in (tensors, array), (lists, array.reshape(2, 2, 2, 3)):
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.table({"X": column}), tmp_path / "a.parquet", row_group_size=3
        )
        with open_store(tmp_path / "a.parquet") as store:
            same(store.arrays["X"].read(np.array([0, 1])), expected[[0, 1]])
            same(store.arrays["X"].read_slice(0, len(expected)), expected)


AUDIO = {
    "wav": ("wav", None),
    "flac": ("flac", None),
    "vorbis": ("ogg", "VORBIS"),
    "opus": ("ogg", "OPUS"),
    "mp3": ("mp3", None),
}


@pytest.mark.parametrize(("suffix", "subtype"), AUDIO.values(), ids=AUDIO)
@pytest.mark.parametrize("n", [20_000, 400_000])
def test_windows_of_audio_are_those_of_the_whole_file(tmp_path, suffix, subtype, n):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 48_000, 2, subtype) as file:
        for _ in range(0, n, 20_000):
            file.write(rng.uniform(-0.5, 0.5, (20_000, 2)))
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

    with open_store(path) as store:
        [array] = store.arrays.values()
        assert list(store.arrays) == ["data"]
        assert (array.shape, array.dtype) == (expected.shape, np.float32)
        for start in (0, 100, 228, n - 128, *rng.integers(n - 128, size=100).tolist()):
            close(array.read_slice(start, start + 128), expected[start : start + 128])
        assert array.read_slice(3, 3).shape == (0, 2)
        close(array.read(np.array([7, n // 2])), expected[[7, n // 2]])
        close(array.read_slice(1, 2, axis=1), expected[:, 1:])
