"""Who decompresses values."""

import os
import tempfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import whole

from pescador import DataError
from pescador.sources import chunks, npy
from pescador.sources.inflate import inflater
from pescador.sources.stores import open_store

isal_zlib = pytest.importorskip("isal.isal_zlib")
h5py = pytest.importorskip("h5py")


def test_isal_decompresses_where_it_is_installed():
    assert inflater() is isal_zlib


def write_npz(path, array):
    """Return where compressed values lie, of which any may be damaged."""
    np.savez_compressed(path, X=array)
    with zipfile.ZipFile(path) as archive:
        [info] = archive.infolist()
    return info.header_offset + 100, info.compress_size - 100


def write_hdf5(path, array):
    """Likewise."""
    with h5py.File(path, "w") as file:
        chunks = (min(100, len(array)), *array.shape[1:])
        written = file.create_dataset("X", data=array, chunks=chunks, compression="gzip").id
        info = written.get_chunk_info(written.get_num_chunks() // 2)
    return info.byte_offset, info.size


def read_by(library, path):
    """What is in a file; None if it is damaged."""
    with pytest.MonkeyPatch.context() as patch:
        for module in npy, chunks:
            patch.setattr(module, "inflater", lambda: library)
        # Nothing that is remembered of one before, at the same path.
        chunks._decoded.clear()
        try:
            with open_store(path, ["X"]) as store:
                return whole(store.arrays["X"])
        except DataError:
            return None


@pytest.mark.parametrize(
    ("suffix", "write"), [("npz", write_npz), ("h5", write_hdf5)], ids=["npz", "hdf5"]
)
@given(
    n=st.sampled_from([90, 400]),
    scale=st.sampled_from([0, 1, 1000]),
    change=st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
)
def test_either_gives_the_values_or_says_that_they_are_damaged(suffix, write, n, scale, change):
    array = (scale * np.random.default_rng(n).standard_normal((n, 7))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"a.{suffix}")
        begin, n_bytes = write(path, array)
        if change is not None and n_bytes > 0:
            with open(path, "r+b") as file:
                file.seek(begin + int(change[0] * n_bytes))
                [byte] = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ change[1]]))
        for library in isal_zlib, zlib:
            found = read_by(library, path)
            if found is None:
                assert change is not None
            else:
                np.testing.assert_array_equal(found, array)
