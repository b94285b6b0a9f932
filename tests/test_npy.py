"""`.npy` and `.npz` files: arrays as NumPy saved them."""

import io
import os
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import check_parts, same, values, whole

from pescador import DataError
from pescador._stores import Map
from pescador.sources.stores import open_store

# NumPy's word on names of fields outside of ASCII.
any_fields = pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")


@any_fields
@given(
    content=st.dictionaries(st.sampled_from(["X", "y", "folder/Z", "ключ"]), values(), min_size=1),
    save=st.sampled_from([np.savez, np.savez_compressed]),
    mmap=st.booleans(),
    data=st.data(),
)
def test_a_store_gives_what_was_saved_in_an_npz(content, save, mmap, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.npz")
        save(path, **content)
        with open_store(path, mmap=mmap) as store, np.load(path) as theirs:
            assert list(store.arrays) == list(theirs)
            assert store.is_file
            for key, array in store.arrays.items():
                if array.shape:
                    same(whole(array), theirs[key])
                check_parts(array, theirs[key], data)


@any_fields
@given(array=values(), mmap=st.booleans(), data=st.data())
def test_a_store_gives_what_was_saved_in_an_npy(array, mmap, data):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.npy")
        np.save(path, array)
        with open_store(path, mmap=mmap) as store:
            [(key, ours)] = store.arrays.items()
            assert key == "data"
            check_parts(ours, np.load(path), data)


def test_uncompressed_values_are_mapped_and_nobody_can_write_into_them(npz):
    with open_store(npz) as store:
        for array in store.arrays.values():
            assert type(array) is np.ndarray
            assert type(array.base) is Map
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True


def test_a_store_has_the_keys_that_were_asked_for_in_that_order(npz):
    assert list(open_store(npz, ["y", "X"]).arrays) == ["y", "X"]
    assert list(open_store(npz, ("y",)).arrays) == ["y"]


def test_of_members_of_one_name_the_last_one_counts(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for value in 1, 2:
            content = io.BytesIO()
            np.save(content, np.array([value]))
            archive.writestr(f"X{value}.npy", content.getvalue())
    path.write_bytes(path.read_bytes().replace(b"X2", b"X1"))
    assert open_store(path).arrays["X1"].tolist() == np.load(path)["X1"].tolist() == [2]


@pytest.mark.parametrize("names", [("X", "X.npy"), ("X.npy", "X")])
def test_of_members_of_one_key_the_one_that_numpy_takes_counts(tmp_path, names):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            content = io.BytesIO()
            np.save(content, np.array([value]))
            archive.writestr(name, content.getvalue())
    assert open_store(path).arrays["X"] == np.load(path)["X"] == names.index("X")


@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_that_are_no_arrays_are_left_out(tmp_path, save, times):
    path = tmp_path / "a.npz"
    save(path, X=np.arange(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", times * "not an array", archive.infolist()[0].compress_type)
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", "")
    assert list(open_store(path).arrays) == ["X"]
    with pytest.raises(DataError, match=r"a\.npz has no key 'README.txt'; it has 'X'"):
        open_store(path, ["README.txt"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_header_that_is_too_long_is_an_error_of_its_array_alone(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, X=np.arange(3), Y=np.zeros(3, [(f"field {i}", "u1") for i in range(1000)]))
    assert list(open_store(path, ["X"]).arrays["X"]) == [0, 1, 2]
    with pytest.raises(DataError, match=r"key 'Y' is damaged: .* a header of \d+ bytes"):
        open_store(path, ["Y"])


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that a zip has the sizes of its members behind them."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


@pytest.mark.parametrize("wrap", [lambda file: file, Pipe], ids=["ahead", "behind"])
def test_members_with_64_bit_sizes_are_read_wherever_these_are(tmp_path, wrap):
    path = tmp_path / "a.npz"
    content = io.BytesIO()
    np.save(content, np.arange(5))
    with (
        open(path, "wb") as file,
        zipfile.ZipFile(wrap(file), "w") as archive,
        archive.open("X.npy", "w", force_zip64=True) as member,
    ):
        member.write(content.getvalue())
    for mmap in True, False:
        same(whole(open_store(path, mmap=mmap).arrays["X"]), np.arange(5))


@any_fields
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_format_are_read(tmp_path, version):
    array = np.zeros(4, np.dtype([("a" if version < (3, 0) else "é", ">f4"), ("b", "i2", (2,))]))
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    same(open_store(path).arrays["data"], array)
