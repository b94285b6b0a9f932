"""Compressed files are read by isal as by zlib."""

import os
import tempfile
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
    np.savez_compressed(path, X=array)


def write_hdf5(path, array):
    with h5py.File(path, "w") as file:
        chunks = (min(10, len(array)), *array.shape[1:])
        file.create_dataset("X", data=array, chunks=chunks, compression="gzip")


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
    n=st.sampled_from([1, 10, 33, 400]),
    scale=st.sampled_from([0, 1, 1000]),
    # Where the compressed values are, most of the time, and not at the ends.
    change=st.none() | st.tuples(st.floats(0.3, 0.7), st.integers(1, 255)),
)
def test_isal_gives_what_zlib_gives_or_an_error_where_that_does(suffix, write, n, scale, change):
    array = (scale * np.random.default_rng(n).standard_normal((n, 7))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"a.{suffix}")
        write(path, array)
        if change is None:
            np.testing.assert_array_equal(read_by(isal_zlib, path), array)
            return
        place, value = change
        with open(path, "r+b") as file:
            file.seek(int(place * os.path.getsize(path)))
            [byte] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ value]))
        by_isal, by_zlib = read_by(isal_zlib, path), read_by(zlib, path)
        if by_isal is None or by_zlib is None:
            assert by_isal is by_zlib
        else:
            np.testing.assert_array_equal(by_isal, by_zlib)
