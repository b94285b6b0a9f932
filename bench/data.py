"""Files that cases read: written once in a run, where all contestants find them."""

import contextlib
import functools
import importlib
import os
import pathlib
import struct
import tempfile
import time
import zipfile

import numpy as np
from contestants import FILES
from jobs import Skip


@functools.cache
def _own():
    return tempfile.TemporaryDirectory(prefix="pescador-bench-")


@contextlib.contextmanager
def folder_of_files():
    """A folder for the files of all cases, of which workers are told."""
    with tempfile.TemporaryDirectory(prefix="pescador-bench-") as folder:
        os.environ[FILES] = folder
        yield


def write_files(case, params):
    """Write the files of a case, so that no contestant has to while it is timed."""
    if case.files is not None:
        # What takes packages that are not here is left to the environment of ours.
        with contextlib.suppress(Skip):
            case.files(**params)


def written(name, write):
    """Return the folder `name`; ``write(folder)`` fills it if it is not there."""
    root = pathlib.Path(os.environ.get(FILES) or _own().name)
    folder = root / name
    if not folder.exists():
        new = pathlib.Path(tempfile.mkdtemp(dir=root))
        write(new)
        # Whole or not there, whoever else is looking.
        new.rename(folder)
        # A file that was changed a moment ago is not remembered by who opens it.
        time.sleep(0.1)
    return folder


def paths_in(folder):
    return sorted(map(str, folder.iterdir()))


def arrays_like_recordings(n_rows, seed):
    rng = np.random.default_rng(seed)
    return {
        "X": rng.random((n_rows, 64), np.float32),
        "y": rng.integers(10, size=n_rows),
    }


def recordings(n, n_rows=500, compressed=False):
    """The paths of n `.npz` files: 500 rows of float32[64], and a label each."""
    save = np.savez_compressed if compressed else np.savez

    def write(folder):
        arrays = arrays_like_recordings(n_rows, 0)
        for i in range(n):
            arrays["y"][:] = i
            save(folder / f"{i:04d}.npz", **arrays)

    return paths_in(written(f"recordings-{n}{'-compressed' * compressed}", write))


def spectrograms(n, n_frames=1_000, n_bands=128):
    """The paths of n `.npy` files of float32[1000, 128]."""

    def write(folder):
        frames = np.random.default_rng(0).random((n_frames, n_bands), np.float32)
        for i in range(n):
            frames[0] = i
            np.save(folder / f"{i:04d}.npy", frames)

    return paths_in(written(f"spectrograms-{n}", write))


def module_of(kind):
    """The package that reads stores of a kind."""
    try:
        return importlib.import_module({"hdf5": "h5py", "zarr": "zarr"}[kind])
    except ImportError as error:
        raise Skip(f"needs {error.name}") from error


def stores(kind, n, n_rows, chunk=64):
    """The paths of n HDF5 or Zarr stores of rows like those of recordings, in chunks of 64."""
    module = module_of(kind)

    def write(folder):
        for i in range(n):
            arrays = arrays_like_recordings(n_rows, i)
            if kind == "hdf5":
                with module.File(folder / f"{i:04d}.h5", "w") as file:
                    for key, array in arrays.items():
                        chunks = (chunk, *array.shape[1:])
                        file.create_dataset(key, data=array, chunks=chunks)
            else:
                group = module.open_group(folder / f"{i:04d}.zarr", mode="w")
                for key, array in arrays.items():
                    chunks = (chunk, *array.shape[1:])
                    to = group.create_array(
                        key, shape=array.shape, dtype=array.dtype, chunks=chunks
                    )
                    to[:] = array

    return paths_in(written(f"{kind}-{n}-{n_rows}", write))


def mapped(path):
    """The arrays of an `.npz` file, mapped where they lie."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            # The local header: 26 bytes, two lengths, a name, extras.
            file.seek(info.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            array = np.memmap(path, dtype, "r", file.tell(), shape)
            arrays[info.filename.removesuffix(".npy")] = np.asarray(array)
    return arrays
