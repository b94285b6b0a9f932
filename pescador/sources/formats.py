"""Parquet, Arrow and audio files, and arrays of other libraries, read in slices.

Each opener takes a path, keys (a tuple, or None for all), whether files may be mapped, and what may
be dropped if there is no room for a map. It returns arrays by key, a function that closes them or
None, and, if they serve again, what tells whether they still do.
"""

import abc
import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..exceptions import DataError, PescadorError
from .files import Recent, map_file, open_regular, reading, shows_changes
from .npy import select

__all__ = [
    "Opened",
    "Opener",
    "Rowwise",
    "Sliced",
    "as_arrays",
    "open_arrow",
    "open_audio",
    "open_parquet",
    "table_columns",
]


class Lasting(Protocol):
    """What tells whether files are still what they were."""

    def holds(self) -> bool:
        """Whether they are unchanged."""


Opened = tuple[dict[Any, Any], Callable[[], object] | None, Lasting | None]
Opener = Callable[[str, tuple[Any, ...] | None, bool, Recent[Any]], Opened]

# Frames of MP3 and blocks of Vorbis depend on those before them, which a seek leaves out.
PREROLL = 2**13
# And libsndfile misplaces a seek into the last page of Vorbis: 255 packets of up to 1024 frames.
LAST_PAGE = 2**18

# What is read at once of an array that has no chunks.
REQUEST = 2**16


def package(name: str, path: str) -> Any:
    """Import what reads a file."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise PescadorError(
            f"{path} cannot be read without the package {package!r}: pip install {package}"
        ) from error


def _check_is_file(path: str) -> None:
    os.close(open_regular(path)[0])


@contextmanager
def opening(path: str, close: Callable[[], object]) -> Iterator[None]:
    """Close what was opened if it cannot be used; tell of errors by the path."""
    try:
        with reading(path):
            yield
    except BaseException:
        close()
        raise


def check_dtype(what: str, given: Any) -> np.dtype[Any]:
    """Return a dtype that rows may be copied of.

    Raises
    ------
    DataError
        If its values are Python objects.
    """
    dtype: np.dtype[Any] = np.dtype(given)
    if dtype.hasobject:
        raise DataError(
            f"{what} holds Python objects, text of any length or ragged rows (dtype {dtype}); an "
            "array of numbers was expected"
        )
    return dtype


class Rowwise(abc.ABC):
    """An array of which rows are read that lie together, in one request for each group of them.

    Parameters
    ----------
    what : str
        What errors call it.
    shape : tuple of int
        Its shape, of at least one dimension.
    dtype : dtype
        Its dtype.
    chunk_rows : int or None
        How many rows are stored together, if that is fixed.
    """

    def __init__(
        self, what: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int | None
    ) -> None:
        self.what = what
        self.shape = shape
        self.dtype = dtype
        self.chunk_rows = chunk_rows
        row = math.prod(shape[1:]) * dtype.itemsize
        self._step = chunk_rows or max(1, REQUEST // max(1, row))

    @abc.abstractmethod
    def _rows(self, start: int, stop: int) -> Any:
        """Return all rows between two numbers."""

    def _cut(self, cuts: tuple[slice, ...]) -> Any:
        """Return what lies in a slice of each of the first axes."""
        return np.asarray(self._rows(cuts[0].start, cuts[0].stop))[(slice(None), *cuts[1:])]

    def _groups(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a number for each row that is that of its group."""
        return indices // self._step

    def _checked(self, values: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        array = np.asarray(values)
        if array.shape != shape or array.dtype != self.dtype:
            raise DataError(
                f"{self.what} gave {array.dtype} of shape {array.shape}, where {self.dtype} of "
                f"shape {shape} was expected"
            )
        return array

    def _valid(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of rows that are there."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices[0] <= indices[-1] < self.shape[0]:
            raise IndexError(f"{self.what} has {self.shape[0]} rows; asked for {indices}")
        return indices

    @staticmethod
    def _ends(groups: npt.NDArray[np.int64]) -> list[int]:
        """Return where each run of equal numbers ends."""
        if not len(groups):
            return []
        return [*(np.flatnonzero(groups[1:] != groups[:-1]) + 1).tolist(), len(groups)]

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return rows."""
        indices = self._valid(indices)
        result = np.empty((len(indices), *self.shape[1:]), self.dtype)
        begin = 0
        for end in self._ends(self._groups(indices)):
            start, stop = int(indices[begin]), int(indices[end - 1]) + 1
            with reading(self.what):
                rows = self._checked(self._rows(start, stop), (stop - start, *self.shape[1:]))
            result[begin:end] = rows[indices[begin:end] - start]
            begin = end
        return result

    def read_slice(self, start: int, stop: int, axis: int = 0) -> npt.NDArray[Any]:
        """Return what lies between two indices of an axis."""
        cuts = [slice(0, n) for n in self.shape[: axis + 1]]
        start, stop, _ = slice(start, stop).indices(self.shape[axis])
        cuts[axis] = slice(start, max(start, stop))
        shape = (*self.shape[:axis], max(0, stop - start), *self.shape[axis + 1 :])
        if not math.prod(shape):
            return np.empty(shape, self.dtype)
        with reading(self.what):
            values = self._checked(self._cut(tuple(cuts)), shape)
        # Not what the library may keep, or map.
        return np.array(values, order="C")


class Sliced(Rowwise):
    """Another library's array that takes slices.

    Parameters
    ----------
    what : str
        What errors call it.
    source : object
        The array.
    """

    def __init__(self, what: str, source: Any) -> None:
        chunks = getattr(source, "chunks", None)
        rows = chunks[0] if isinstance(chunks, tuple) and chunks else None
        super().__init__(
            what,
            tuple(map(int, source.shape)),
            check_dtype(what, source.dtype),
            rows if isinstance(rows, int) else None,
        )
        self._source = source

    def _rows(self, start: int, stop: int) -> Any:
        return self._source[start:stop]

    def _cut(self, cuts: tuple[slice, ...]) -> Any:
        return self._source[cuts]


def sliced(what: str, source: Any) -> Any:
    """Return an array that takes slices, as a store holds it."""
    if source.shape is None:
        raise DataError(f"{what} is empty; an array was expected")
    if len(source.shape) == 0:
        check_dtype(what, source.dtype)
        with reading(what):
            return np.asarray(source[()])
    return Sliced(what, source)


class Column(Rowwise):
    """A column of Arrow's: numbers, or lists of them that are equally long.

    Parameters
    ----------
    what : str
        What errors call it.
    n_rows : int
        Its length.
    kind : pyarrow.DataType
        Its type.
    first_row : callable
        Returns the arrays of its first row: of lists of any length, as most programs write them,
        it tells the length.
    chunk_rows : int or None
        How many rows are stored together, if that is fixed.
    """

    def __init__(
        self,
        what: str,
        n_rows: int,
        kind: Any,
        first_row: Callable[[], list[Any]],
        chunk_rows: int | None,
    ) -> None:
        self._sizes, shape, leaf = _inner(what, kind, first_row)
        super().__init__(what, (n_rows, *shape), leaf, chunk_rows)
        self._leaf = leaf

    def _joined(self, arrays: list[Any]) -> npt.NDArray[Any]:
        """Return the rows of arrays of pyarrow, one after the other, in memory of their own."""
        parts = [np.empty(0, self._leaf), *(self._values(array) for array in arrays)]
        return np.concatenate(parts).reshape(sum(map(len, arrays)), *self.shape[1:])

    def _values(self, array: Any, zero_copy: bool = False) -> npt.NDArray[Any]:
        """Return the values in the lists of an array of pyarrow."""
        array = getattr(array, "storage", array)
        for size in self._sizes:
            if array.null_count:
                raise DataError(f"{self.what} has rows that are null")
            if not hasattr(array.type, "list_size"):
                lengths = array.value_lengths().to_numpy()
                if (lengths != size).any():
                    raise DataError(
                        f"{self.what} has rows of different lengths: {size} and "
                        f"{lengths[lengths != size][0]}"
                    )
            array = array.flatten()
            array = getattr(array, "storage", array)
        values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=zero_copy)
        if values.dtype != self._leaf:
            raise DataError(f"{self.what} has values that are null; {self._leaf} has no such value")
        return values


class ParquetColumn(Column):
    """A column of a Parquet file.

    Parameters
    ----------
    what, n_rows, kind
        See `Column`.
    load : callable
        Returns a part of it, as pyarrow has it, that holds the rows between two numbers, and the
        number of the first row of that part.
    begins : array of int64
        Where row groups begin; rows of one are read together.
    """

    def __init__(
        self,
        what: str,
        n_rows: int,
        kind: Any,
        load: Callable[[int, int], tuple[Any, int]],
        begins: npt.NDArray[np.int64],
    ) -> None:
        self._load = load
        self._begins = begins
        super().__init__(
            what, n_rows, kind, lambda: self._parts(0, min(1, n_rows)), _common(np.diff(begins))
        )

    def _parts(self, start: int, stop: int) -> list[Any]:
        part, first = self._load(start, stop)
        parts: list[Any] = part.slice(start - first, stop - start).chunks
        return parts

    def _groups(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._begins, indices, "right")

    def _rows(self, start: int, stop: int) -> Any:
        return self._joined(self._parts(start, stop))


class TableColumn(Column):
    """A column of an Arrow table, in memory or mapped.

    Parameters
    ----------
    what : str
        What errors call it.
    column : pyarrow.ChunkedArray
        The column.
    order : array of int64, optional
        Which of its rows are the rows here.
    dtype : dtype, optional
        What values are converted to.
    """

    def __init__(
        self,
        what: str,
        column: Any,
        order: npt.NDArray[np.int64] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        n_rows = len(column) if order is None else len(order)
        first = 0 if order is None or not n_rows else int(order[0])
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        lengths = np.array([len(chunk) for chunk in chunks], np.int64)
        common = _common(lengths) if order is None else None
        super().__init__(what, n_rows, column.type, lambda: column.slice(first, 1).chunks, common)
        self._column = column
        self._order = order
        self._row_bytes = math.prod(self.shape[1:]) * self._leaf.itemsize
        # Each part of it as it lies in memory, if values lie there as NumPy has them.
        self._pieces = self._all_in_place(chunks)
        if self._pieces:
            self._stops = np.cumsum(lengths)
            starts = np.array([piece.ctypes.data for piece in self._pieces], np.int64)
            self.span = int(starts.min()), int((starts + lengths * self._row_bytes).max())
            # Rows of all parts are gathered in one go, from one array that reaches over all.
            self._rows_at = np.asarray(_Memory(*self.span, self._row_bytes))
            self._places = starts - self.span[0] - (self._stops - lengths) * self._row_bytes
        if dtype is not None:
            self.dtype = dtype

    def _all_in_place(self, chunks: list[Any]) -> list[npt.NDArray[Any]]:
        pieces = []
        if not 0 < self._row_bytes < 2**31:
            return []
        for chunk in chunks:
            try:
                values = self._values(chunk, zero_copy=True)
            except (DataError, ValueError):
                return []
            if values.nbytes != len(chunk) * self._row_bytes:
                return []
            pieces.append(values)
        return pieces

    def as_array(self) -> npt.NDArray[Any] | None:
        """Return all rows in order, where they lie, if they lie so."""
        if len(self._pieces) != 1 or self._order is not None or self.dtype != self._leaf:
            return None
        return self._pieces[0].reshape(self.shape)

    def lies_in(self, content: npt.NDArray[Any]) -> bool:
        """Tell whether all values lie in the memory of an array."""
        start = content.ctypes.data
        return bool(self._pieces) and start <= self.span[0] <= self.span[1] <= start + content.size

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return rows."""
        return self._take(self._valid(indices))

    def _rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self._take(np.arange(start, stop))

    def _take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if self._order is not None:
            rows = self._order[rows]
        if self._pieces:
            numbers = np.searchsorted(self._stops, rows, "right")
            found: Any = self._rows_at[self._places[numbers] + rows * self._row_bytes]
            values = found.view(self._leaf).reshape(len(rows), *self.shape[1:])
        else:
            with reading(self.what):
                values = self._joined(self._column.take(rows).chunks)
        converted: npt.NDArray[Any] = values.astype(self.dtype, copy=False)
        return converted


class _Memory:
    """What NumPy makes an array of, over all places between two addresses that begin a row."""

    def __init__(self, first: int, last: int, row_bytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (first, True),
            "shape": (last - first - row_bytes + 1,),
            "strides": (1,),
            "typestr": f"|V{row_bytes}",
        }


def _common(lengths: npt.NDArray[np.int64]) -> int | None:
    """Return how many rows each part has, but for the last one; None if that differs."""
    alike = len(lengths) and (lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0]
    return int(lengths[0]) if alike else None


def table_columns(
    name: str, table: Any, keys: Iterable[Any], order: Any = None, dtypes: Any = None
) -> dict[Any, TableColumn]:
    """Return columns of an Arrow table by their names; see `TableColumn`."""
    columns = {}
    for key in keys:
        what = _one_column(name, table.schema, key)
        with reading(what):
            dtype = None if dtypes is None else dtypes.get(key)
            columns[key] = TableColumn(what, table.column(key), order, dtype)
    return columns


def as_arrays(columns: dict[Any, TableColumn]) -> dict[Any, Any]:
    """Return columns as a store holds them: arrays, where they lie as such."""
    arrays = {key: column.as_array() for key, column in columns.items()}
    return {key: columns[key] if array is None else array for key, array in arrays.items()}


def _one_column(name: str, schema: Any, key: Any) -> str:
    """Return what errors call a column; refuse a name of several."""
    what = f"{name}: key {key!r}"
    if schema.names.count(key) > 1:
        raise DataError(f"{what} names more than one column")
    return what


def _inner(
    what: str, kind: Any, first_row: Callable[[], list[Any]]
) -> tuple[list[int], tuple[int, ...], np.dtype[Any]]:
    """Return the lengths of the nested lists that a row is, its shape, and the dtype of values."""
    pyarrow = importlib.import_module("pyarrow")
    sizes: list[int] = []
    shape = None
    rows = first_row()
    lists = pyarrow.types.is_list, pyarrow.types.is_large_list
    while True:
        if isinstance(kind, pyarrow.FixedShapeTensorType):
            if kind.permutation not in (None, list(range(len(kind.shape)))):
                raise DataError(f"{what} is of type {kind}; tensors in C order were expected")
            shape = (*sizes, *kind.shape)
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
            rows = [row.storage for row in rows]
        if not (pyarrow.types.is_fixed_size_list(kind) or any(is_list(kind) for is_list in lists)):
            break
        n_before, flat = sum(map(len, rows)), [row.flatten() for row in rows]
        if hasattr(kind, "list_size"):
            sizes.append(kind.list_size)
        elif any(row.null_count for row in rows):
            raise DataError(f"{what} has rows that are null")
        else:
            sizes.append(sum(map(len, flat)) // max(1, n_before))
        rows, kind = flat, kind.value_type
    if pyarrow.types.is_nested(kind) or pyarrow.types.is_null(kind):
        raise DataError(f"{what} is of type {kind}; numbers or lists of numbers were expected")
    dtype = check_dtype(what, pyarrow.array([], kind).to_numpy(zero_copy_only=False).dtype)
    return sizes, tuple(sizes) if shape is None else shape, dtype


def open_parquet(path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]) -> Opened:
    """Open a Parquet file, whose columns are keys."""
    parquet = package("pyarrow.parquet", path)
    _check_is_file(path)
    with reading(path):
        file = parquet.ParquetFile(path, memory_map=mmap)
    with opening(path, file.close):
        begins = [0]
        for group in range(file.num_row_groups):
            begins.append(begins[-1] + file.metadata.row_group(group).num_rows)

        def load(key: str) -> Callable[[int, int], tuple[Any, int]]:
            # The groups that were read last: windows follow each other in them.
            last: list[Any] = [None, 0, 0]

            def between(start: int, stop: int) -> tuple[Any, int]:
                first = int(np.searchsorted(begins, start, "right")) - 1
                end = int(np.searchsorted(begins, stop, "left"))
                if last[1:] != [first, end]:
                    table = file.read_row_groups(
                        list(range(first, end)), columns=[key], use_threads=False
                    )
                    last[:] = [table.column(0), first, end]
                return last[0], begins[first]

            return between

        schema = file.schema_arrow
        arrays = {}
        for key in select(path, schema.names, keys):
            what = _one_column(path, schema, key)
            with reading(what):
                kind = schema.field(key).type
                arrays[key] = ParquetColumn(what, begins[-1], kind, load(key), np.array(begins))
        return arrays, file.close, None


def open_arrow(path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]) -> Opened:
    """Open an Arrow or Feather file, whose columns are keys."""
    pyarrow = package("pyarrow", path)
    descriptor, stamp = open_regular(path)
    try:
        whole = map_file(descriptor, stamp.size, kept) if mmap and stamp.size else None
    finally:
        os.close(descriptor)
    with reading(path):
        if whole is None:
            file = pyarrow.OSFile(path)
        else:
            content = np.frombuffer(whole, np.uint8)  # type: ignore[call-overload]
            file = pyarrow.BufferReader(pyarrow.py_buffer(content))
    with opening(path, file.close):
        try:
            table = pyarrow.ipc.open_file(file).read_all()
        except pyarrow.ArrowInvalid:
            # The streaming format has no footer.
            file.seek(0)
            table = pyarrow.ipc.open_stream(file).read_all()
        file.close()
        columns = table_columns(path, table, select(path, table.schema.names, keys))
    # Values that were decompressed are not kept: they would take memory of their own.
    serves_again = (
        whole is not None
        and shows_changes(stamp)
        and all(column.lies_in(content) for column in columns.values())
        and stamp.holds()
    )
    return as_arrays(columns), None, stamp if serves_again else None


class Audio(Rowwise):
    """The frames of an audio file.

    Parameters
    ----------
    what : str
        What errors call it.
    file : soundfile.SoundFile
        The file.
    """

    def __init__(self, what: str, file: Any) -> None:
        super().__init__(what, (file.frames, file.channels), np.dtype(np.float32), None)
        self._file = file

    def _rows(self, start: int, stop: int) -> Any:
        skipped = 0
        if self._file.tell() != start:
            at = start
            if self._file.format == "MP3":
                at -= PREROLL
            elif self._file.subtype == "VORBIS":
                at = min(at - PREROLL, self.shape[0] - LAST_PAGE)
            skipped = start - self._file.seek(max(0, at))
        return self._file.read(skipped + stop - start, "float32", always_2d=True)[skipped:]


def open_audio(path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]) -> Opened:
    """Open an audio file, which has one key, "data", of frames of float32 and their channels."""
    soundfile = package("soundfile", path)
    _check_is_file(path)
    with reading(path):
        file = soundfile.SoundFile(path)
    with opening(path, file.close):
        arrays = {key: Audio(f"{path}: key {key!r}", file) for key in select(path, ["data"], keys)}
        return arrays, file.close, None
