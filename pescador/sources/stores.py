"""What a source reads from, opened for one visit."""

import os
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._checks import is_masked
from ..exceptions import ArgumentError, DataError
from . import formats
from .chunks import open_hdf5, open_zarr
from .files import MOST_KEPT, Recent, trim
from .huggingface import Fingerprint, check_dataset, is_dataset, open_dataset
from .npy import open_npy, select

__all__ = ["Store", "check_data", "count_rows", "open_store"]

PATHS = (str, os.PathLike)

FORMATS: dict[str, formats.Opener] = {
    **dict.fromkeys((".npz", ".npy"), open_npy),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), open_hdf5),
    ".zarr": open_zarr,
    **dict.fromkeys((".parquet", ".pq"), formats.open_parquet),
    **dict.fromkeys((".arrow", ".feather"), formats.open_arrow),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), formats.open_audio),
}


class Store:
    """What one visit of a source reads from.

    Several visits may have the same store at once.

    Parameters
    ----------
    name : str
        What errors call it.
    arrays : dict
        By key, arrays of NumPy, or objects with `shape`, `dtype`, `chunk_rows`, ``read(indices)``
        and ``read_slice(start, stop, axis)``.
    is_file : bool
        Whether items must be copies.
    close : callable, optional
        Called at the end.
    stamp : object with `holds`, optional
        What tells whether the file is what it was, if the store serves again while it stays that.
    """

    __slots__ = ("_close", "arrays", "is_file", "n_rows", "name", "stamp", "tables")

    def __init__(
        self,
        name: str,
        arrays: dict[Any, Any],
        is_file: bool,
        close: Callable[[], object] | None = None,
        stamp: formats.Lasting | None = None,
    ) -> None:
        self.name = name
        self.arrays = arrays
        self.is_file = is_file
        # How many rows each array has, once they were counted; see `count_rows`.
        self.n_rows = -1
        self.stamp = stamp
        # What each plan of a source has made of it, where it serves again as it is.
        # Where blocks are read, a table holds the last one, which is not to stay.
        serves_again = stamp is not None and close is None
        in_memory = all(type(array) is np.ndarray for array in arrays.values())
        self.tables: weakref.WeakKeyDictionary[Any, Any] | None = (
            weakref.WeakKeyDictionary() if serves_again and in_memory else None
        )
        self._close = close

    def close(self) -> None:
        """Let go of files."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


# Stores of files that were opened before, by path, keys and `mmap`.
_kept: Recent[Store] = Recent(MOST_KEPT)

# Stores of data sets that were opened before, by keys.
_of_datasets: weakref.WeakKeyDictionary[Any, dict[Any, Store]] = weakref.WeakKeyDictionary()


def open_store(data: Any, keys: Iterable[Any] | None = None, *, mmap: bool = True) -> Store:
    """Open what a source reads from.

    Parameters
    ----------
    data : mapping, path, callable, array or datasets.Dataset
        See `check_data`.
    keys : iterable, optional
        Which arrays; all of them if None.
    mmap : bool
        Whether files may be mapped. If not, or if no more can be, they are read.

    Returns
    -------
    store : Store
        To be closed when the visit ends.

    Raises
    ------
    DataError
        If a file or a key is missing, damaged, changed, or not an array.
    ArgumentError
        If data is none of these.
    PescadorError
        If a package that reads it is missing.
    """
    if keys is not None and type(keys) is not tuple:
        keys = tuple(keys)
    if type(data) is str or isinstance(data, PATHS):
        path = data if type(data) is str else os.fspath(data)
        request = (path, keys, mmap)
        store = _kept.get(request)
        if store is not None:
            if store.stamp.holds():  # type: ignore[union-attr]
                return store
            _kept.pop(request)
        return _open_path(request)
    if _is_mapping(data):
        return _open_mapping(data, keys, mmap)
    if _is_array(data):
        return _open_mapping({"data": data}, keys, mmap)
    if is_dataset(data):
        return _open_dataset(data, keys)
    if callable(data):
        return _open_call(data, keys, mmap)
    raise ArgumentError(_unfit(data))


def check_data(data: Any) -> None:
    """Refuse what no visit could open. Nothing is read.

    Parameters
    ----------
    data : mapping, path, callable, array or datasets.Dataset
        A mapping of keys to arrays, or to paths of files that hold one array each; a path to a
        file; a function that returns one of these when a visit begins; a single array, whose
        key is "data"; or a data set of Hugging Face.

    Raises
    ------
    ArgumentError
        If it is none of these, or the name of a file tells of no format that can be read.
    """
    if isinstance(data, PATHS):
        _suffix(os.fspath(data))
    elif _is_mapping(data):
        for value in data.values() if isinstance(data, Mapping) else ():
            if isinstance(value, PATHS):
                _suffix(os.fspath(value))
    elif is_dataset(data):
        check_dataset(data)
    elif not (_is_array(data) or callable(data)):
        raise ArgumentError(_unfit(data))


def count_rows(store: Store) -> int:
    """Return how many rows the arrays of a store have along axis 0, all alike.

    Raises
    ------
    DataError
        If they differ, there are none, or an array is a single value.
    """
    if store.n_rows < 0:
        lengths = {}
        for key, array in store.arrays.items():
            if not array.shape:
                raise DataError(
                    f"{store.name}: key {key!r} is a single value, which has no rows; choose "
                    "others with keys="
                )
            lengths[key] = array.shape[0]
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{n} of {key!r}" for key, n in lengths.items())
            raise DataError(
                f"{store.name} has keys of different lengths: {listed}; one number of rows was "
                "expected"
            )
        n_rows = next(iter(lengths.values()), 0)
        if not n_rows:
            raise DataError(f"{store.name} has no rows: nothing to draw from")
        store.n_rows = n_rows
    return store.n_rows


def _unfit(data: Any) -> str:
    return (
        f"data={data!r:.200} must be a mapping of keys to arrays or paths, a path, an array, a "
        "datasets.Dataset, or a function that returns one of these"
    )


def _is_mapping(data: Any) -> bool:
    return isinstance(data, Mapping) or (hasattr(data, "keys") and hasattr(data, "__getitem__"))


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")


def _suffix(path: str | bytes) -> str:
    if isinstance(path, bytes):
        raise ArgumentError(f"data={path!r} must be a path of text, not of bytes")
    if any(mark in path for mark in "*?") and not os.path.exists(path):
        raise ArgumentError(
            f"data={path!r} must be the path of one file; pescador.sources.from_files and "
            "pescador.batches take patterns"
        )
    suffix = os.path.splitext(path.rstrip(os.sep))[1].lower()
    if suffix not in FORMATS:
        hint = ""
        if os.path.isdir(path):
            hint = f"; from_files({os.path.join(path, '*.npz')!r}) reads the files of a folder"
        raise ArgumentError(
            f"data={path!r} must be a path that ends with one of {', '.join(FORMATS)}{hint}"
        )
    return suffix


def _open_path(request: tuple[str, tuple[Any, ...] | None, bool]) -> Store:
    path, keys, mmap = request
    arrays, close, stamp = FORMATS[_suffix(path)](path, keys, mmap, _kept)
    store = Store(path, arrays, True, close, stamp)
    if store.stamp is not None:
        _kept.put(request, store)
        trim(_kept)
    return store


def _open_mapping(data: Any, keys: tuple[Any, ...] | None, mmap: bool) -> Store:
    arrays = {}
    opened: list[Store] = []

    def close() -> None:
        for store in opened:
            store.close()

    try:
        for key in select("data", data, keys):
            value = data[key]
            if type(value) is np.ndarray and not value.dtype.hasobject:
                arrays[key] = value
            elif isinstance(value, PATHS):
                store = open_store(value, None, mmap=mmap)
                opened.append(store)
                if len(store.arrays) != 1:
                    raise DataError(
                        f"data: key {key!r} is to be the array of {store.name}, which holds "
                        f"{len(store.arrays)}; one was expected"
                    )
                [arrays[key]] = store.arrays.values()
            else:
                arrays[key] = _as_array(f"data: key {key!r}", value)
    except BaseException:
        close()
        raise
    return Store("data", arrays, bool(opened), close if opened else None)


def _open_dataset(data: Any, keys: tuple[Any, ...] | None) -> Store:
    opened = _of_datasets.setdefault(data, {})
    store = opened.get(keys)
    if store is None or not store.stamp.holds():  # type: ignore[union-attr]
        stamp = Fingerprint(data)
        store = opened[keys] = Store("data", open_dataset(data, keys), True, None, stamp)
    return store


def _as_array(what: str, value: Any) -> Any:
    """Return an array of a mapping as a store holds it; not a copy."""
    if type(value) is not np.ndarray:
        if isinstance(value, np.ndarray):
            if is_masked(value):
                raise DataError(f"{what} is a masked array, whose mask would be lost")
        elif _is_array(value):
            if not _in_memory(value):
                return formats.sliced(what, value)
        elif is_dataset(value):
            raise DataError(f"{what} is a data set: pass one alone, with columns as keys=")
        elif not isinstance(value, list | tuple | np.generic | int | float | complex):
            raise DataError(f"{what} is a {type(value).__name__}; an array was expected")
        value = _as_numpy(what, value)
    if value.dtype.hasobject:
        formats.check_dtype(what, value.dtype)
    return value


def _in_memory(value: Any) -> bool:
    """Whether NumPy can have the values where they are: tensors of torch, series of pandas."""
    return any(hasattr(value, name) for name in ("__array_interface__", "__dlpack__", "to_numpy"))


def _as_numpy(what: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:
        raise DataError(f"{what} is not an array that NumPy can read: {error}") from error


def _open_call(data: Any, keys: tuple[Any, ...] | None, mmap: bool) -> Store:
    opened = data()
    close = getattr(opened, "close", None)
    try:
        check_data(opened)
        store = open_store(opened, keys, mmap=mmap)
    except BaseException:
        if close is not None:
            close()
        raise
    if close is None and store.is_file:
        return store

    def close_both() -> None:
        store.close()
        if close is not None:
            close()

    return Store(store.name, store.arrays, True, close_both)
