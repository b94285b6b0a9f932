"""Chunked stores, HDF5 and Zarr: chunks are read where they lie, and decoded here.

What is not plain (rare filters, shards, links, files that are being written) is read by h5py or
zarr. Openers are as in formats.py.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._chunks import copy_slices
from .._stores import Stamp
from ..exceptions import DataError, PescadorError
from .files import TICK, Recent, map_file, open_regular, read_from, reading, shows_changes
from .formats import Opened, Rowwise, Sliced, check_dtype, opening, package, sliced
from .inflate import inflater
from .npy import select

__all__ = ["Chunked", "Decoded", "open_hdf5", "open_zarr"]

# Bytes of decoded chunks that are kept, of all files together.
MOST_DECODED = 2**26
# An HDF5 file of more chunks than these, or of smaller ones, is read by h5py: where chunks lie
# would take long to read, or much memory to keep.
MOST_CHUNKS = 2**16
LEAST_CHUNK = 2**8

# One may be followed by the next: the bytes of values side by side, then deflate.
SHUFFLE, DEFLATE = 2, 1

Array = npt.NDArray[Any]


class Decoded(Recent[tuple[Stamp | None, Array]]):
    """Decoded chunks, with what their files were.

    Parameters
    ----------
    most : int
        How many bytes to hold; the last chunk is held in any case.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        # Threads that meet here may leave it wrong by a chunk.
        self._n_bytes = 0

    def put(self, key: Any, value: tuple[Stamp | None, Array]) -> None:
        """Hold a chunk."""
        last = self.pop(key)
        self._values[key] = value
        self._n_bytes += value[1].nbytes - (0 if last is None else last[1].nbytes)
        while self._n_bytes > self.most and len(self._values) > 1:
            self.drop()

    def drop(self) -> bool:
        """Let go of the chunk that was asked for longest ago; return whether there was one."""
        try:
            _, (_, chunk) = self._values.popitem(last=False)
        except KeyError:
            return False
        self._n_bytes -= chunk.nbytes
        return True

    def clear(self) -> None:
        """Let go of all."""
        while self.drop():
            pass


_decoded = Decoded(MOST_DECODED)


def _pieces(
    cuts: Iterable[slice], chunks: Iterable[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Yield the numbers of each chunk that cuts meet, its place in them, and the part they take."""
    axes = []
    for cut, n in zip(cuts, chunks, strict=True):
        axis = []
        for i in range(cut.start // n, -(-cut.stop // n)):
            start, stop = max(cut.start, i * n), min(cut.stop, (i + 1) * n)
            place = slice(start - cut.start, stop - cut.start)
            axis.append((i, place, slice(start - i * n, stop - i * n)))
        axes.append(axis)
    for piece in itertools.product(*axes):
        yield (
            tuple(axis[0] for axis in piece),
            tuple(axis[1] for axis in piece),
            tuple(axis[2] for axis in piece),
        )


class Chunked(Rowwise):
    """An array in chunks of one shape, of which each is read once for what is asked for.

    Parameters
    ----------
    what : str
        What errors call it.
    shape : tuple of int
        Its shape, of at least one value.
    dtype : dtype
        Its dtype.
    chunks : tuple of int
        The shape of its chunks, also of those at the end, which may go beyond it.
    fill : scalar
        The value of chunks that are not stored.
    """

    def __init__(
        self,
        what: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        fill: Any,
    ) -> None:
        super().__init__(what, shape, dtype, chunks[0])
        self._chunks = chunks
        self._chunk_bytes = math.prod(chunks) * dtype.itemsize
        # What decoded chunks are known by: not the array, which would stay with them.
        self._name = object()
        self._empty = np.broadcast_to(np.asarray(fill, dtype), chunks)

    def _chunk(self, at: tuple[int, ...]) -> Array:
        """Return a chunk by its number along each axis; not to be changed."""
        raise NotImplementedError

    def _rows(self, start: int, stop: int) -> Array:
        return self._cut((slice(start, stop),))

    def _cut(self, cuts: tuple[slice, ...]) -> Array:
        cuts += tuple(slice(0, n) for n in self.shape[len(cuts) :])
        pieces = list(_pieces(cuts, self._chunks))
        if len(pieces) == 1:
            [(at, _, part)] = pieces
            return self._chunk(at)[part]
        result = np.empty([cut.stop - cut.start for cut in cuts], self.dtype)
        for at, place, part in pieces:
            result[place] = self._chunk(at)[part]
        return result

    def read(self, indices: npt.NDArray[np.int64]) -> Array:
        """Return rows."""
        indices = self._valid(indices)
        result = np.empty((len(indices), *self.shape[1:]), self.dtype)
        numbers, rows = np.divmod(indices, self._chunks[0])
        pieces = list(_pieces((slice(0, n) for n in self.shape[1:]), self._chunks[1:]))
        begin = 0
        with reading(self.what):
            for end in self._ends(numbers):
                for at, place, part in pieces:
                    chunk = self._chunk((int(numbers[begin]), *at))
                    of: tuple[Any, ...] = (rows[begin:end], *part)
                    result[(slice(begin, end), *place)] = chunk[of]
                begin = end
        return result

    def read_slices(self, starts: npt.NDArray[np.int64], length: int, axis: int = 0) -> Array:
        """Return slices of one length along an axis, which begin at these places, in order."""
        n = self._chunks[axis]
        result = np.empty(
            (len(starts), *self.shape[:axis], length, *self.shape[axis + 1 :]), self.dtype
        )
        firsts, lasts = starts // n, (starts + (length - 1)) // n
        most = int((lasts - firsts).max(initial=0)) + 1
        numbers = np.unique(np.minimum(firsts[:, None] + np.arange(most), lasts[:, None]))
        # Those that meet each chunk are next to each other.
        begins = np.searchsorted(starts, numbers * n - length, "right").tolist()
        ends = np.searchsorted(starts, numbers * n + n).tolist()
        cuts = [slice(0, size) for size in self.shape]
        chunks = list(self._chunks)
        # A chunk of the axis is taken as a whole.
        cuts[axis], chunks[axis] = slice(0, n), n
        pieces = list(_pieces(cuts, chunks))
        with reading(self.what):
            for number, begin, end in zip(numbers.tolist(), begins, ends, strict=True):
                places = starts[begin:end] - number * n
                for at, place, part in pieces:
                    chunk = self._chunk((*at[:axis], number, *at[axis + 1 :]))[part]
                    to = (slice(begin, end), *place[:axis], slice(None), *place[axis + 1 :])
                    copy_slices(result[to], chunk, places, axis)
        return result


def _choose(
    path: str, keys: tuple[Any, ...] | None, root: Any, kind: Any, names: Callable[[], list[str]]
) -> dict[Any, Any]:
    """Return arrays of nested groups, as their library has them; a key is the path to one."""
    chosen = {}
    for key in select(path, names(), None) if keys is None else keys:
        try:
            found = root[key]
        except (KeyError, ValueError):
            select(path, names(), (key,))
            raise
        if not isinstance(found, kind):
            raise DataError(f"{path}: key {key!r} is a group; an array was expected")
        if found.shape is None:
            raise DataError(f"{path}: key {key!r} is empty; an array was expected")
        check_dtype(f"{path}: key {key!r}", found.dtype)
        chosen[key] = found
    return chosen


# HDF5


class MappedChunks(Chunked):
    """A dataset in chunks, in a map of its file.

    Parameters
    ----------
    what, shape, dtype, chunks, fill
        See `Chunked`.
    content : array of uint8
        The file.
    places, sizes, masks : array of int64
        For each chunk, in C order, where it begins (negative if it is not stored), how many bytes
        it has there, and which filters were left out (bits).
    filters : sequence of int
        What chunks are encoded by: none, SHUFFLE, DEFLATE, or both in this order.
    """

    def __init__(
        self,
        what: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        fill: Any,
        content: npt.NDArray[np.uint8],
        places: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        masks: npt.NDArray[np.int64],
        filters: Sequence[int],
    ) -> None:
        super().__init__(what, shape, dtype, chunks, fill)
        self._grid = tuple(-(-n // m) for n, m in zip(shape, chunks, strict=True))
        self._content = content
        self._places, self._sizes, self._masks = places, sizes, masks
        self._filters = filters
        self._row_bytes = self._chunk_bytes // chunks[0]
        # Rows that are stored as they are, in one piece, are gathered in one go.
        self._rows_at: Array | None = None
        if not filters and chunks[1:] == shape[1:] and places.min() >= 0:
            n = self._row_bytes
            if n < 2**31:
                self._rows_at = np.ndarray(len(content) - n + 1, f"V{n}", content, strides=(1,))

    def read(self, indices: npt.NDArray[np.int64]) -> Array:
        """Return rows."""
        if self._rows_at is None:
            return super().read(indices)
        return self._gather(self._rows_at, self._valid(indices))

    def read_slice(self, start: int, stop: int, axis: int = 0) -> Array:
        """Return what lies between two indices of an axis."""
        if self._rows_at is None or axis:
            return super().read_slice(start, stop, axis)
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return self._gather(self._rows_at, np.arange(start, stop))

    def _gather(self, rows_at: Array, indices: npt.NDArray[np.int64]) -> Array:
        numbers, rows = np.divmod(indices, self._chunks[0])
        values: Array = rows_at[self._places[numbers] + rows * self._row_bytes]
        return values.view(self.dtype).reshape(len(rows), *self.shape[1:])

    def _chunk(self, at: tuple[int, ...]) -> Array:
        number = 0
        for i, n in zip(at, self._grid, strict=True):
            number = number * n + i
        place = int(self._places[number])
        if place < 0:
            return self._empty
        if not self._filters:
            return np.ndarray(self._chunks, self.dtype, self._content, place)
        key = self._name, number
        held = _decoded.get(key)
        if held is None:
            content = self._content[place : place + int(self._sizes[number])]
            held = None, self._decode(content, int(self._masks[number]))
            _decoded.put(key, held)
        return held[1]

    def _decode(self, content: Any, mask: int) -> Array:
        for i in reversed(range(len(self._filters))):
            if mask >> i & 1:
                continue
            if self._filters[i] == DEFLATE:
                inflating = inflater().decompressobj()
                content = inflating.decompress(content, self._chunk_bytes + 1)
                if not inflating.eof:
                    # Nor was its checksum looked at.
                    raise DataError(f"{self.what} is damaged: a chunk has no end")
            else:
                by_byte = np.frombuffer(content, np.uint8).reshape(self.dtype.itemsize, -1)
                content = np.empty(by_byte.shape[::-1], np.uint8)
                # Byte by byte is twice as fast as all at once.
                for byte, to in zip(by_byte, content.T, strict=True):
                    to[:] = byte
        if memoryview(content).nbytes != self._chunk_bytes:
            raise DataError(
                f"{self.what} is damaged: a chunk is {memoryview(content).nbytes} bytes, where "
                f"{self._chunk_bytes} were expected"
            )
        return np.frombuffer(content, self.dtype).reshape(self._chunks)


def _from_map(h5py: Any, what: str, found: Any, content: npt.NDArray[np.uint8]) -> Any:
    """Return the values of a dataset out of a map of its file; None if h5py is to read them."""
    shape, dtype, dataset = tuple(map(int, found.shape)), found.dtype, found.id
    h5d = h5py.h5d
    # As they are stored, values must be those of NumPy.
    if dtype.subdtype or dataset.get_type() != h5py.h5t.py_create(dtype, logical=True):
        return None
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    n_bytes = math.prod(shape) * dtype.itemsize
    if not shape or not n_bytes or layout == h5d.COMPACT:
        return np.asarray(found[()])
    if layout == h5d.CONTIGUOUS:
        place = dataset.get_offset()
        # None of those in other files.
        if place is None or place + n_bytes > len(content):
            return None
        return np.ndarray(shape, dtype, content, place)
    if layout != h5d.CHUNKED or not hasattr(dataset, "chunk_iter"):
        return None
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    codes = [code for code, *_ in filters]
    if codes not in ([], [SHUFFLE], [DEFLATE], [SHUFFLE, DEFLATE]):
        return None
    if SHUFFLE in codes and filters[0][2][:1] != (dtype.itemsize,):
        return None
    chunks = found.chunks
    grid = [-(-n // m) for n, m in zip(shape, chunks, strict=True)]
    count = math.prod(grid)
    if count > MOST_CHUNKS or count * LEAST_CHUNK > len(content):
        return None
    stored: list[Any] = []
    dataset.chunk_iter(stored.append)
    places, sizes, masks = np.full(count, -1), np.zeros(count, np.int64), np.zeros(count, np.int64)
    if stored:
        begins = np.array([chunk.chunk_offset for chunk in stored]) // chunks
        numbers = np.ravel_multi_index(tuple(begins.T), grid)
        places[numbers] = [chunk.byte_offset for chunk in stored]
        sizes[numbers] = [chunk.size for chunk in stored]
        masks[numbers] = [chunk.filter_mask for chunk in stored]
    chunk_bytes = math.prod(chunks) * dtype.itemsize
    is_whole = sizes == chunk_bytes
    if (places + sizes > len(content)).any():
        return None
    # Only deflate changes the size; where it did not, it may have been left out without a word.
    if DEFLATE in codes:
        if (is_whole & (masks == 0)).any():
            return None
    elif not is_whole[places >= 0].all():
        return None
    if (
        not codes
        and chunks[1:] == shape[1:]
        and places[0] >= 0
        and (places == places[0] + np.arange(count) * chunk_bytes).all()
    ):
        return np.ndarray(shape, dtype, content, int(places[0]))
    return MappedChunks(
        what, shape, dtype, chunks, found.fillvalue, content, places, sizes, masks, codes
    )


def _all_from_map(
    h5py: Any, path: str, file: Any, chosen: dict[Any, Any], content: npt.NDArray[np.uint8]
) -> dict[Any, Any] | None:
    """Return all datasets out of a map of the file; None if h5py is to read them."""
    # What this process writes may not be there yet. HDF5 did not always count a user block in.
    if file.mode != "r" or file.userblock_size:
        return None
    arrays = {}
    for key, found in chosen.items():
        # Links lead to other files.
        values = None
        if found.file == file:
            values = _from_map(h5py, f"{path}: key {key!r}", found, content)
        if values is None:
            return None
        arrays[key] = values
    return arrays


def open_hdf5(path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]) -> Opened:
    """Open an HDF5 file, whose datasets are keys."""
    h5py = package("h5py", path)
    descriptor, stamp = open_regular(path)
    try:
        with reading(path):
            file = h5py.File(path, "r")
        with opening(path, file.close):

            def names() -> list[str]:
                found: list[str] = []
                file.visititems(
                    lambda name, item: (
                        found.append(name) if isinstance(item, h5py.Dataset) else None
                    )
                )
                return found

            chosen = _choose(path, keys, file, h5py.Dataset, names)
            # Where chunks lie takes long to read, for a file that changes again and again.
            is_mapped = mmap and shows_changes(stamp)
            whole = map_file(descriptor, stamp.size, kept) if is_mapped else None
            if whole is not None:
                content: Any = np.frombuffer(whole, np.uint8)  # type: ignore[call-overload]
                arrays = _all_from_map(h5py, path, file, chosen, content)
                if arrays is not None and stamp.holds():
                    file.close()
                    return arrays, None, stamp
            arrays = {key: sliced(f"{path}: key {key!r}", found) for key, found in chosen.items()}
            return arrays, file.close, None
    finally:
        os.close(descriptor)


# Zarr


class ZarrArray(Sliced):
    """An array that zarr reads. All chunks are one request, for they are read side by side."""

    def read(self, indices: npt.NDArray[np.int64]) -> Array:
        """Return rows."""
        indices = self._valid(indices)
        shape = len(indices), *self.shape[1:]
        if not math.prod(shape):
            return np.empty(shape, self.dtype)
        with reading(self.what):
            return np.array(self._checked(self._source.oindex[indices], shape), order="C")


class Stamps:
    """What several files and folders were.

    Parameters
    ----------
    paths : iterable of str
        Where they are.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._stamps = [_stamp(path) for path in paths]

    @property
    def changed(self) -> int:
        """When one of them was changed last, in nanoseconds since 1970."""
        return max(stamp.changed for stamp in self._stamps)

    def holds(self) -> bool:
        """Whether all are unchanged."""
        return all(stamp.holds() for stamp in self._stamps)


def _stamp(path: str) -> Stamp:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return Stamp(path, descriptor)
    finally:
        os.close(descriptor)


class ChunkFiles(Chunked):
    """An array of Zarr of which each chunk is a file.

    Parameters
    ----------
    what, shape, dtype, chunks, fill
        See `Chunked`.
    stored : dtype
        The dtype of values in files.
    prefix, separator : str
        What a file's path begins with, and what stands between the numbers in it.
    decoders : list of callable
        What a file's bytes go through.
    stamp : Stamp
        Of the file that describes the array.
    """

    def __init__(
        self,
        what: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        fill: Any,
        stored: np.dtype[Any],
        prefix: str,
        separator: str,
        decoders: list[Callable[[Any], Any]],
        stamp: Stamp,
    ) -> None:
        super().__init__(what, shape, dtype, chunks, fill)
        self._stored = stored
        self._prefix, self._separator = prefix, separator
        self._decoders = decoders
        self._stamp = stamp

    def _chunk(self, at: tuple[int, ...]) -> Array:
        key = self._name, at
        held = _decoded.get(key)
        if held is not None and held[0].holds():  # type: ignore[union-attr]
            return held[1]
        path = self._prefix + self._separator.join(map(str, at))
        try:
            descriptor, stamp = open_regular(path)
        except DataError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
            if not self._stamp.holds():
                raise DataError(f"{self.what} was changed while it was read") from error
            return self._empty
        try:
            content: Any = read_from(descriptor, path, np.zeros(1, np.int64), stamp.size)
        finally:
            os.close(descriptor)
        for decode in self._decoders:
            content = decode(content)
        n = memoryview(content).nbytes
        if n != self._chunk_bytes:
            raise DataError(
                f"{path} is damaged: it holds {n} bytes, where {self._chunk_bytes} were expected"
            )
        chunk = np.frombuffer(content, self._stored).reshape(self._chunks)
        chunk = chunk.astype(self.dtype, copy=False)
        if shows_changes(stamp):
            _decoded.put(key, (stamp, chunk))
        return chunk


def _chunk_files(what: str, found: Any, folder: str) -> ChunkFiles | None:
    """Return an array of Zarr that is read from its files; None if zarr is to read it."""
    shape, dtype = tuple(map(int, found.shape)), np.dtype(found.dtype)
    if (
        found.metadata.zarr_format != 3
        or not shape
        or not math.prod(shape)
        or dtype.kind not in "biufc"
    ):
        return None
    metadata = found.metadata.to_dict()
    grid, names = metadata["chunk_grid"], metadata["chunk_key_encoding"]
    first, *rest = metadata["codecs"]
    if (
        metadata.get("storage_transformers")
        or grid["name"] != "regular"
        or names["name"] not in ("default", "v2")
        or first["name"] != "bytes"
    ):
        return None
    try:
        numcodecs = package("numcodecs", folder)
        known = {"zstd": numcodecs.Zstd, "gzip": numcodecs.GZip, "blosc": numcodecs.Blosc}
        decoders = [known[codec["name"]]().decode for codec in reversed(rest)]
        stamp = _stamp(os.path.join(folder, "zarr.json"))
    except (PescadorError, AttributeError, KeyError, OSError):
        return None
    is_big = first.get("configuration", {}).get("endian") == "big"
    separator = names["configuration"]["separator"]
    return ChunkFiles(
        what,
        shape,
        dtype,
        tuple(grid["configuration"]["chunk_shape"]),
        found.fill_value,
        dtype.newbyteorder(">" if is_big else "<"),
        os.path.join(folder, f"c{separator}" if names["name"] == "default" else ""),
        separator,
        decoders,
        stamp,
    )


def open_zarr(path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]) -> Opened:
    """Open a Zarr store, whose arrays are keys; a single one has the key "data"."""
    zarr = package("zarr", path)
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise PescadorError(
            f"{path} cannot be read by zarr {zarr.__version__}: pip install 'zarr>=3'"
        )
    began = time.time_ns()
    groups = [""]
    with reading(path):
        os.stat(path)
        root = zarr.open(path, mode="r")
    with opening(path, root.store.close):
        if isinstance(root, zarr.Array):
            groups = []
            chosen = dict.fromkeys(select(path, ["data"], keys), root)
            check_dtype(f"{path}: key 'data'", root.dtype)
        else:

            def names() -> list[str]:
                members = list(root.members(max_depth=None))
                groups.extend(name for name, item in members if isinstance(item, zarr.Group))
                return sorted(name for name, item in members if isinstance(item, zarr.Array))

            chosen = _choose(path, keys, root, zarr.Array, names)
        arrays: dict[Any, Any] = {}
        # A path that is relative leads elsewhere from another folder.
        whole = os.path.abspath(path)
        if type(root.store) is zarr.storage.LocalStore:
            for key, found in chosen.items():
                array = _chunk_files(f"{path}: key {key!r}", found, os.path.join(whole, found.path))
                if array is not None:
                    arrays[key] = array
        if len(arrays) < len(chosen):
            for key, found in chosen.items():
                what = f"{path}: key {key!r}"
                arrays[key] = ZarrArray(what, found) if found.shape else sliced(what, found)
            return arrays, root.store.close, None
        root.store.close()
        stamps = _stamp_all(path, groups, [found.path for found in chosen.values()])
        is_settled = stamps is not None and began - stamps.changed > TICK
        return arrays, None, stamps if is_settled else None


def _stamp_all(path: str, groups: list[str], names: list[str]) -> Stamps | None:
    """Return what tells whether a store has other arrays, or describes them in another way."""
    files = {os.path.join(path, name, "zarr.json") for name in groups + names}
    for name in names:
        # A group that an array lies in may describe it as well.
        while name := os.path.dirname(name):
            files.add(os.path.join(path, name, "zarr.json"))
    try:
        return Stamps([*files, *(os.path.join(path, name) for name in groups)])
    except OSError:
        # Folders cannot be opened everywhere.
        return None
