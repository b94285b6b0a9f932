"""HDF5 and Zarr, whose chunks are read where they lie."""

import os
import pathlib
import shutil
import tempfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stored import aged, check_parts, same, whole

import pescador
from pescador import DataError
from pescador._chunks import copy_slices
from pescador.sources import chunks
from pescador.sources.chunks import Chunked, Decoded, MappedChunks
from pescador.sources.formats import Sliced
from pescador.sources.stores import open_store

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr", minversion="3")


@st.composite
def stored(draw, dtypes):
    """An array, the shape of its chunks, and the corner of it that is written."""
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    array = draw(arrays.arrays(draw(st.sampled_from(dtypes)), shape))
    chunk_shape = tuple(draw(st.integers(1, n)) for n in shape)
    if draw(st.booleans()):
        # Rows that are stored in one piece.
        chunk_shape = chunk_shape[:1] + shape[1:]
    written = tuple(slice(0, draw(st.integers(0, n))) for n in shape)
    if draw(st.booleans()):
        written = tuple(slice(0, n) for n in shape)
    return array, chunk_shape, written


FILTERS = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "both": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "checksum": {"compression": "gzip", "fletcher32": True},
    "offset": {"scaleoffset": 0},
}


@given(
    content=stored(["<f4", ">i2", "?", "<c16", "S3", "<u8", "i1", ">f8"]),
    filters=st.sampled_from(list(FILTERS)),
    fill=st.sampled_from([None, 1]),
    userblock=st.sampled_from([0, 512]),
    libver=st.sampled_from(["earliest", "latest"]),
    is_resized=st.booleans(),
    mmap=st.booleans(),
    data=st.data(),
)
def test_chunks_of_hdf5_give_what_h5py_gives(
    content, filters, fill, userblock, libver, is_resized, mmap, data
):
    array, chunk_shape, written = content
    options = dict(FILTERS[filters])
    if "scaleoffset" in options and array.dtype.kind not in "iu":
        options = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.h5")
        with h5py.File(path, "w", userblock_size=userblock, libver=libver) as file:
            to = file.create_dataset(
                "X",
                array.shape,
                array.dtype,
                chunks=chunk_shape,
                maxshape=(None,) * array.ndim,
                fillvalue=None if fill is None else np.array(fill).astype(array.dtype)[()],
                **options,
            )
            to[written] = array[written]
            if is_resized:
                to.resize(1 + array.shape[0] // 2, axis=0)
        # Large enough for so many chunks.
        os.truncate(path, 2**20)
        aged(path)
        with h5py.File(path) as file:
            expected = file["X"][()]
        for _ in range(2):
            with open_store(path, mmap=mmap) as store:
                check_parts(store.arrays["X"], expected, data)


@pytest.mark.parametrize("filters", FILTERS)
def test_what_is_plain_in_hdf5_is_read_without_h5py(tmp_path, filters):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for key, shape in ("rows", (7, 9)), ("tiles", (7, 4)):
            file.create_dataset(
                key, data=np.arange(180).reshape(20, 9), chunks=shape, **FILTERS[filters]
            )
    aged(path)
    is_plain = filters in ("none", "gzip", "shuffle", "both")
    with open_store(path) as store:
        if filters == "none":
            assert type(store.arrays["rows"]) is np.ndarray
            assert not store.arrays["rows"].flags.writeable
        else:
            assert type(store.arrays["rows"]) is (MappedChunks if is_plain else Sliced)
        assert type(store.arrays["tiles"]) is (MappedChunks if is_plain else Sliced)
    # And opened once.
    assert (open_store(path) is store) == is_plain


def test_rows_of_hdf5_are_found_between_other_things(tmp_path):
    path = tmp_path / "a.h5"
    array = np.arange(3000).reshape(1000, 3)
    with h5py.File(path, "w") as file:
        # More chunks than one node of the index holds.
        file.create_dataset("X", data=array, chunks=(4, 3))
        for key in "ab":
            file.create_dataset(key, (8, 2), "i4", chunks=(4, 2))
        for rows in slice(0, 4), slice(4, 8):
            for key in "ab":
                file[key][rows] = 1
                file.flush()
    os.truncate(path, 2**20)
    with open_store(aged(path)) as store:
        assert type(store.arrays["X"]) is MappedChunks
        for rows in [0, 3, 4, 500, 999], [], list(range(1000)):
            same(store.arrays["X"].read(np.array(rows, np.int64)), array[rows])
        with pytest.raises(IndexError, match="has 1000 rows"):
            store.arrays["X"].read(np.array([1000]))
        for key in "ab":
            same(whole(store.arrays[key]), np.ones((8, 2), "i4"))


def test_links_and_external_files_are_left_to_h5py(tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["there"] = np.arange(5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "there")
        layout = h5py.VirtualLayout((5,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "there", (5,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", data=np.arange(5), external=str(tmp_path / "raw"))
        file.create_dataset("nothing", (5,), "i8", fillvalue=7)
        file.attrs["padding"] = np.zeros(1000)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("no chunk", (5,), "i8", chunks=(5,), fillvalue=7)
    aged(tmp_path)
    for key in "link", "virtual", "raw":
        with open_store(tmp_path / "a.h5", [key]) as store:
            same(whole(store.arrays[key]), np.arange(5))
    for key in "nothing", "no chunk":
        with open_store(tmp_path / "a.h5", [key]) as store:
            same(whole(store.arrays[key]), np.full(5, 7))


def test_what_this_process_is_writing_is_left_to_h5py(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        X = file.create_dataset("X", data=np.zeros(2000))
        file.flush()
        aged(tmp_path)
        # HDF5 has it in memory only.
        X[3:5] = 1
        with open_store(tmp_path / "a.h5") as store:
            same(whole(store.arrays["X"]), X[()])


def test_chunks_that_were_written_without_a_filter_are_read_without_it(tmp_path):
    array = np.arange(8, dtype="<i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        X = file.create_dataset("X", (16,), "<i4", chunks=(8,), **FILTERS["both"])
        X[8:] = array
        X.id.write_direct_chunk((0,), array.tobytes(), filter_mask=0b11)
    with open_store(aged(tmp_path / "a.h5")) as store:
        assert type(store.arrays["X"]) is MappedChunks
        same(whole(store.arrays["X"]), np.tile(array, 2))


def test_small_and_compact_datasets_are_read_whole(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"] = 3.0
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file.id, b"few", h5py.h5t.NATIVE_INT64, space, plist)
        h5py.Dataset(made)[:] = np.arange(4)
        made = None
    with open_store(aged(tmp_path / "a.h5")) as store:
        same(store.arrays["one"], np.array(3.0))
        same(store.arrays["few"], np.arange(4))


CODECS = {
    "none": None,
    "zstd": zarr.codecs.ZstdCodec(),
    "checked": zarr.codecs.ZstdCodec(checksum=True),
    "gzip": zarr.codecs.GzipCodec(),
    "blosc": zarr.codecs.BloscCodec(),
    "crc": zarr.codecs.Crc32cCodec(),
    "two": [zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()],
}
NAMES = {"default": "/", "v2": "."}


@given(
    content=stored(["<f4", ">i2", "?", "<c16", "<u8", "i1", ">f8"]),
    codecs=st.sampled_from(list(CODECS)),
    fill=st.sampled_from([0, 1]),
    names=st.sampled_from(list(NAMES)),
    separator=st.sampled_from("/."),
    kind=st.sampled_from(["plain", "plain", "plain", "sharded", "version 2"]),
    data=st.data(),
)
def test_chunks_of_zarr_give_what_zarr_gives(content, codecs, fill, names, separator, kind, data):
    array, chunk_shape, written = content
    options = {
        "compressors": CODECS[codecs],
        "serializer": zarr.codecs.BytesCodec(
            endian="big" if array.dtype.byteorder == ">" else "little"
        ),
        "chunk_key_encoding": {"name": names, "separator": separator},
    }
    if kind == "version 2":
        options = {}
    elif kind == "sharded":
        options["shards"] = tuple(2 * n for n in chunk_shape)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.zarr")
        to = zarr.create_group(path, zarr_format=3 if options else 2).create_array(
            "X",
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunk_shape,
            fill_value=np.array(fill).astype(array.dtype)[()],
            **options,
        )
        to[written] = array[written]
        aged(path)
        expected = zarr.open_group(path, mode="r")["X"][...]
        for _ in range(2):
            with open_store(path) as store:
                if kind == "plain" and codecs != "crc":
                    assert isinstance(store.arrays["X"], Chunked)
                check_parts(store.arrays["X"], expected, data)


# Changes between visits


def write_hdf5(path, value, keys=("X",), **options):
    with h5py.File(path, "w") as file:
        for key in keys:
            file.create_dataset(key, data=np.full((20, 3), value), chunks=(4, 2), **options)


def write_gzip(path, value, keys=("X",)):
    write_hdf5(path, value, keys, compression="gzip")


def write_zarr(path, value, keys=("X",)):
    root = zarr.open_group(path, mode="w")
    for key in keys:
        root.create_array(key, shape=(20, 3), dtype="i8", chunks=(4, 2))[:] = value


WRITERS = {
    "mapped": ("a.h5", write_hdf5),
    "decoded": ("a.h5", write_gzip),
    "zarr": ("a.zarr", write_zarr),
}
each_writer = pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)


@each_writer
def test_a_store_that_was_opened_before_serves_again(tmp_path, name, write):
    write(tmp_path / name, 1)
    path = aged(tmp_path / name)
    first = open_store(path)
    rows = first.arrays["X"].read(np.arange(20))
    first.close()
    assert open_store(path) is first
    # Tables hold the block that was read last.
    assert first.tables is None
    # What was read is the caller's.
    rows[:] = 5
    same(open_store(path).arrays["X"].read(np.arange(20)), np.full((20, 3), 1))
    os.utime(pathlib.Path(path, "zarr.json") if name == "a.zarr" else path)
    assert open_store(path) is not first


@each_writer
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_store_that_changes_between_visits_is_read_anew(tmp_path, name, write, how):
    path = tmp_path / name
    for value in 1, 2, 3:
        to = path if how == "in place" else tmp_path / f"new-{name}"
        write(to, value, "XYZ"[:value])
        aged(to)
        if to != path:
            shutil.rmtree(path, ignore_errors=True) if name == "a.zarr" else None
            os.replace(to, path)
        with open_store(path) as store:
            assert list(store.arrays) == list("XYZ"[:value])
            same(store.arrays["X"].read(np.arange(20)), np.full((20, 3), value))


def test_a_chunk_that_is_written_between_requests_is_read_anew(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, 1)
    aged(path)
    with open_store(path) as store:
        same(whole(store.arrays["X"]), np.full((20, 3), 1))
        zarr.open_group(path)["X"][4:8] = 2
        expected = np.full((20, 3), 1)
        expected[4:8] = 2
        same(whole(store.arrays["X"]), expected)
    zarr.open_group(path).create_array("new", shape=(20,), dtype="i4")
    assert list(open_store(path).arrays) == ["X", "new"]


def test_a_zarr_store_that_vanishes_is_an_error_and_no_fill_values(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, 1)
    with open_store(aged(path)) as store:
        shutil.rmtree(path)
        with pytest.raises(DataError, match=r"a\.zarr: key 'X' was changed while it was read"):
            store.arrays["X"].read(np.array([0]))
    with pytest.raises(DataError, match=r"a\.zarr does not exist"):
        open_store(path)


@pytest.mark.parametrize("seed", [None, 3, np.random.RandomState(3)], ids=str)
@pytest.mark.parametrize("order", ["random", "shuffled", "sequential"])
@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_windows_of_chunks_are_those_of_arrays_in_memory(tmp_path, kind, order, seed):
    memory = {"X": np.random.rand(4, 300), "y": np.arange(300)}
    path = str(tmp_path / f"data.{kind}")
    root = h5py.File(path, "w") if kind == "hdf5" else zarr.open_group(path, mode="w")
    for key, array in memory.items():
        # Of X, each window lies in two halves; some lie in several chunks.
        options = {"compression": "gzip"} if kind == "hdf5" else {}
        size = {"X": (2, 16), "y": (13,)}[key]
        create = root.create_dataset if kind == "hdf5" else root.create_array
        create(key, shape=array.shape, chunks=size, dtype=array.dtype, **options)
        root[key][...] = array
    if kind == "hdf5":
        root.close()
    aged(path)

    def items(data):
        where = np.flatnonzero(np.arange(280) % 3)
        windows = pescador.sources.Windows(
            data, 20, axis={"X": 1, "y": 0}, order=order, where=where, random_state=seed
        )
        np.random.seed(5)
        items = [(item["X"].tolist(), item["y"].tolist()) for item in windows(max_iter=150)]
        stream = windows.open()
        for _ in range(37):
            next(stream)
        state = stream.state_dict()
        rest = [item["y"].tolist() for _, item in zip(range(50), stream, strict=False)]
        again = windows.open(state=state)
        assert [item["y"].tolist() for _, item in zip(range(50), again, strict=False)] == rest
        batch = next(pescador.buffer_stream(windows.iterate(), 40))
        return items, rest, batch["X"].tolist(), np.random.rand()

    assert items(path) == items(memory)


def test_slices_are_not_copied_to_what_is_read_only_nor_of_objects():
    begins = np.arange(2)
    read_only = np.zeros((2, 2))
    read_only.flags.writeable = False
    objects = np.array([{}, {}, {}])
    for to, chunk in (read_only, np.ones(3)), (np.empty((2, 2), object), objects):
        with pytest.raises(ValueError, match=r"slices of \(2, 2\) \w+ do not fit 2 of a chunk"):
            copy_slices(to, chunk, begins, 0)
    assert not read_only.any()


def test_damaged_chunks_are_errors(tmp_path):
    write_zarr(tmp_path / "a.zarr", 1)
    chunk = tmp_path / "a.zarr/X/c/0/0"
    chunk.write_bytes(b"nothing of the kind")
    with (
        open_store(tmp_path / "a.zarr") as store,
        pytest.raises(DataError, match=r"a\.zarr: key 'X' cannot be read; is it damaged\?"),
    ):
        store.arrays["X"].read(np.array([0]))
    import numcodecs

    chunk.write_bytes(numcodecs.Zstd().encode(bytes(8)))
    with (
        open_store(tmp_path / "a.zarr") as store,
        pytest.raises(DataError, match="0 is damaged: it holds 8 bytes, where 64 were expected"),
    ):
        store.arrays["X"].read(np.array([0]))
    write_gzip(tmp_path / "a.h5", 1)
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["X"].id.get_chunk_info(0).byte_offset
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(place)
        file.write(b"nothing")
    aged(tmp_path)
    with (
        open_store(tmp_path / "a.h5") as store,
        pytest.raises(DataError, match=r"a\.h5: key 'X' cannot be read; is it damaged\?"),
    ):
        store.arrays["X"].read(np.array([0]))


def test_a_chunk_that_is_cut_before_its_checksum_is_an_error(tmp_path):
    values = np.random.default_rng(0).standard_normal((100, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        written = file.create_dataset(
            "X", values.shape, values.dtype, chunks=(100, 8), compression=4
        )
        written.id.write_direct_chunk((0, 0), zlib.compress(values)[:-4])
    aged(tmp_path)
    with (
        open_store(tmp_path / "a.h5") as store,
        pytest.raises(DataError, match="is damaged: a chunk has no end"),
    ):
        store.arrays["X"].read(np.array([0]))


def test_decoded_chunks_stay_within_a_bound():
    decoded = Decoded(100)
    for key in range(5):
        decoded.put(key, (None, np.zeros(40, np.uint8)))
    assert [key for key in range(5) if decoded.get(key)] == [3, 4]
    decoded.put(4, (None, np.zeros(60, np.uint8)))
    assert [key for key in range(5) if decoded.get(key)] == [3, 4]
    # One that is larger than all is held alone.
    decoded.put("large", (None, np.zeros(1000, np.uint8)))
    assert len(decoded) == 1
    decoded.put("small", (None, np.zeros(1, np.uint8)))
    assert len(decoded) == 1
    assert decoded.get("small")
    decoded.clear()
    assert not len(decoded)


@pytest.mark.parametrize("write", [write_gzip, write_zarr])
def test_a_chunk_is_decoded_once_while_it_is_held(tmp_path, write):
    path = tmp_path / ("a.zarr" if write is write_zarr else "a.h5")
    write(path, 1)
    aged(path)
    before = len(chunks._decoded)
    with open_store(path) as store:
        for start in range(17):
            store.arrays["X"].read_slice(start, start + 3)
    assert len(chunks._decoded) == before + 10


@each_writer
@pytest.mark.parametrize("make", [pescador.sources.Rows, pescador.sources.Windows])
def test_visits_of_one_store_at_once_do_not_meet(tmp_path, name, write, make):
    path = tmp_path / name
    if name == "a.zarr":
        root = zarr.open_group(path, mode="w")
        root.create_array("X", shape=(50, 3), dtype="i8", chunks=(4, 2))[:] = np.arange(
            150
        ).reshape(50, 3)
    else:
        filters = {"compression": "gzip"} if write is write_gzip else {}
        with h5py.File(path, "w") as file:
            file.create_dataset("X", data=np.arange(150).reshape(50, 3), chunks=(4, 2), **filters)
    aged(path)
    options = (5,) if make is pescador.sources.Windows else ()
    source = make(path, *options, order="shuffled")
    array = np.arange(150).reshape(50, 3)
    pairs = zip(source.iterate(), source.iterate(), strict=True)
    given = [item["X"] for pair in pairs for item in pair]
    given.sort(key=lambda item: item.flat[0])
    n = 46 if options else 50
    assert len(given) == 2 * n
    for i, item in enumerate(given):
        same(item, array[i // 2 : i // 2 + 5] if options else array[i // 2])
