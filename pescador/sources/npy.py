"""`.npy` and `.npz` files: where the values of each array lie, and how to get at them."""

import ast
import contextlib
import functools
import io
import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .._stores import Stamp
from ..exceptions import DataError
from .archives import START, ZipMember, plain_members, read_at
from .files import (
    MOST_LAYOUTS,
    File,
    Recent,
    map_file,
    open_regular,
    read_from,
    reading,
    shows_changes,
)
from .inflate import inflater

__all__ = ["FileArray", "open_npy", "select"]


class Packed(NamedTuple):
    """Where a compressed member of a `.npz` lies."""

    offset: int
    n_bytes: int
    n_unpacked: int
    crc: int


class Member(NamedTuple):
    """Where the values of an array lie: in the file or, if it is compressed, in what it holds."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int
    packed: Packed | None

    @property
    def n_bytes(self) -> int:
        """The bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def can_be_read_in_parts(self) -> bool:
        """Whether rows, or stretches of an axis, are few runs of bytes in the file."""
        n_dims = len(self.shape)
        return self.packed is None and (n_dims == 1 or (n_dims > 1 and self.order == "C"))


# What is in a file; a text in place of a member says why it cannot be had.
Layout = dict[str, Member | str]

_layouts: Recent[tuple[Stamp, Layout]] = Recent(MOST_LAYOUTS)

_MAGIC = np.lib.format.MAGIC_PREFIX

# As NumPy has it, and for the same reason: literals of any size are not safe to evaluate.
MOST_HEADER = 10_000

# Deflate cannot make more out of less.
MOST_DEFLATED = 1100


def _header_size(start: bytes) -> int:
    """Return how many bytes precede the values of an array, from what these begin with."""
    size = 10 if start[6:7] == b"\x01" else 12
    n = int.from_bytes(start[8:size], "little")
    if n > MOST_HEADER:
        raise ValueError(f"a header of {n} bytes; at most {MOST_HEADER} were expected")
    return size + n


# Many files have the same few headers, which take longer to understand than to read.
@functools.lru_cache(1024)
def _parse(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    content = io.BytesIO(header)
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(content)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(content)
    elif version == (3, 0):
        # As 2.0, with names of fields in UTF-8; NumPy has no public function for it.
        text = ast.literal_eval(header[12:].decode())
        shape, is_fortran = text["shape"], text["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(text["descr"])
    else:
        raise ValueError(f"version {version} of the format is not known")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape {shape} is not one of an array")
    return shape, "F" if is_fortran else "C", dtype


def _member(start: bytes, size: int, offset: int, packed: Packed | None) -> Member | str:
    """Return an array whose content begins so, with all of its header, and has ``size`` bytes."""
    begin = _header_size(start)
    shape, order, dtype = _parse(start[:begin])
    member = Member(shape, dtype, order, offset + begin, packed)
    if dtype.hasobject:
        return f"holds Python objects (dtype {dtype}), which are never unpickled"
    if begin + member.n_bytes > size:
        return (
            f"is truncated: {dtype} of shape {shape} takes {member.n_bytes} bytes, and "
            f"{max(0, size - begin)} are there"
        )
    return member


def _zipped(member: ZipMember, size: int) -> Member | str | None:
    """Return the array that is a member of a `.npz` of so many bytes; None if it is none."""
    if not (member.start.startswith(_MAGIC) or member.name.endswith(".npy")):
        return None
    if member.offset + member.n_bytes > size:
        return f"is truncated: it ends at byte {member.offset + member.n_bytes} of {size}"
    if not member.is_packed:
        return _member(member.start, member.n_bytes, member.offset, None)
    if member.n_unpacked > MOST_DEFLATED * member.n_bytes:
        return f"is damaged: {member.n_bytes} bytes cannot hold {member.n_unpacked}"
    packed = Packed(member.offset, member.n_bytes, member.n_unpacked, member.crc)
    return _member(member.start, member.n_unpacked, 0, packed)


def _read_by_zipfile(
    archive: zipfile.ZipFile, descriptor: int, size: int, info: zipfile.ZipInfo
) -> Member | str | None:
    """Read the header of a member of an archive of any kind; None if it is no array."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type} of zip; deflate was expected"
    with archive.open(info) as content:
        start = content.read(START)
        if start.startswith(_MAGIC):
            start += content.read(max(0, _header_size(start) - len(start)))
    # The local header, which `open` has compared with the directory: 30 bytes, a name, extras.
    lengths = struct.unpack("<HH", read_at(descriptor, 4, info.header_offset + 26))
    offset = info.header_offset + 30 + sum(lengths)
    is_packed = info.compress_type == zipfile.ZIP_DEFLATED
    sizes = info.compress_size, info.file_size, info.CRC
    return _zipped(ZipMember(info.filename, offset, *sizes, is_packed, start), size)


def _read_layout(path: str, descriptor: int, size: int) -> Layout:
    """Read what is in a file."""
    with reading(path):
        if path.lower().endswith(".npy"):
            start = read_at(descriptor, START, 0)
            start += read_at(descriptor, max(0, _header_size(start) - len(start)), len(start))
            return {"data": _member(start, size, 0, None)}
        plain = plain_members(descriptor, size)
        if plain is not None and not any(map(_is_cut, plain)):
            return _layout_of({it.name: it for it in plain}, lambda it: _zipped(it, size))
        with open(descriptor, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
            read = functools.partial(_read_by_zipfile, archive, descriptor, size)
            return _layout_of({info.filename: info for info in archive.infolist()}, read)


def _is_cut(member: ZipMember) -> bool:
    """Tell whether the header of an array is longer than what was read of it."""
    start = member.start
    n = member.n_unpacked if member.is_packed else member.n_bytes
    if len(start) < 12:
        return len(start) < n
    # Of one that is too long, `_zipped` tells.
    with contextlib.suppress(ValueError):
        return start.startswith(_MAGIC) and len(start) < min(n, _header_size(start))
    return False


def _layout_of(members: dict[str, Any], read: Callable[[Any], Member | str | None]) -> Layout:
    """Return what is in an archive; of members of one name, the last one counts."""
    layout: Layout = {}
    for name, found in members.items():
        key = sys.intern(name.removesuffix(".npy"))
        if name.endswith("/") or (key in layout and key != name):
            continue
        try:
            member = read(found)
        except (MemoryError, OSError):
            # These are of the moment, and not to be remembered.
            raise
        except Exception as error:
            member = f"is damaged: {type(error).__name__}: {error}"
        if member is not None:
            layout[key] = member
    return layout


def select(name: str, there: Any, keys: tuple[Any, ...] | None) -> Iterable[Any]:
    """Return the keys that are asked for, of those that are there.

    Raises
    ------
    DataError
        If one of them is missing, or there is none.
    """
    for key in keys or ():
        if key not in there:
            known = list(there)
            listed = ", ".join(map(repr, known[:20])) + (", ..." if len(known) > 20 else "")
            raise DataError(f"{name} has no key {key!r}; it has {listed or 'none'}")
    chosen = list(there) if keys is None else keys
    if not chosen:
        raise DataError(f"{name} holds no arrays: nothing to draw from")
    return chosen


class FileArray:
    """An array in a file in C order, of which what is asked for is read.

    Parameters
    ----------
    file : File
        The file.
    what : str
        What errors call the array.
    member : Member
        Where it lies.
    """

    __slots__ = ("_offset", "_what", "dtype", "file", "shape")

    chunk_rows = None

    def __init__(self, file: File, what: str, member: Member) -> None:
        self.file = file
        self.shape = member.shape
        self.dtype = member.dtype
        self._what = what
        self._offset = member.offset

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return rows."""
        n = math.prod(self.shape[1:]) * self.dtype.itemsize
        if len(indices) and not 0 <= indices[0] <= indices[-1] < self.shape[0]:
            raise IndexError(f"{self._what} has {self.shape[0]} rows; asked for {indices}")
        places = self._offset + np.asarray(indices, np.int64) * n
        return self._get((len(indices), *self.shape[1:]), places, n)

    def read_slice(self, start: int, stop: int, axis: int = 0) -> npt.NDArray[Any]:
        """Return what lies between two indices of an axis."""
        start, stop, _ = slice(start, stop).indices(self.shape[axis])
        shape = (*self.shape[:axis], max(0, stop - start), *self.shape[axis + 1 :])
        inner = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        outer = np.arange(math.prod(self.shape[:axis]), dtype=np.int64)
        places = self._offset + inner * (start + outer * self.shape[axis])
        return self._get(shape, places, inner * shape[axis])

    def _get(
        self, shape: tuple[int, ...], places: npt.NDArray[np.int64], n: int
    ) -> npt.NDArray[Any]:
        values = self.file.read(self._what, places, n) if n * len(places) else bytearray()
        return np.ndarray(shape, self.dtype, values)


def _read_whole(descriptor: int, what: str, member: Member) -> npt.NDArray[Any]:
    """Read all values of an array."""
    offset, n_bytes = member.packed[:2] if member.packed else (member.offset, member.n_bytes)
    values: Any = read_from(descriptor, what, np.array([offset], np.int64), n_bytes)
    if member.packed is None:
        return np.ndarray(member.shape, member.dtype, values, order=member.order)
    with reading(what):
        values = inflater().decompress(values, -zlib.MAX_WBITS, max(1, member.packed.n_unpacked))
    if len(values) != member.packed.n_unpacked or inflater().crc32(values) != member.packed.crc:
        raise DataError(f"{what} is damaged: its checksum is not that of its content")
    return _view(what, member, values)


def _view(what: str, member: Member, values: Any) -> npt.NDArray[Any]:
    with reading(what):
        return np.ndarray(member.shape, member.dtype, values, member.offset, order=member.order)


def open_npy(
    path: str, keys: tuple[Any, ...] | None, mmap: bool, kept: Recent[Any]
) -> tuple[dict[Any, Any], Callable[[], object] | None, Stamp | None]:
    """Open a `.npy` or `.npz` file.

    Returns
    -------
    arrays : dict
        Arrays over a map of the file, in memory, or of `FileArray`.
    close : callable or None
        To be called at the end.
    stamp : Stamp or None
        What tells whether the arrays serve again.
    """
    descriptor, stamp = open_regular(path)
    try:
        known = _layouts.get(path)
        if known is not None and known[0] == stamp:
            layout = known[1]
        else:
            layout = _read_layout(path, descriptor, stamp.size)
            if shows_changes(stamp):
                _layouts.put(path, (stamp, layout))
        members = {}
        for key in select(path, layout, keys):
            member = layout[key]
            if isinstance(member, str):
                raise DataError(f"{path}: key {key!r} {member}")
            members[key] = member
        file = File(path, stamp)
        lie_there = [member for member in members.values() if member.n_bytes and not member.packed]
        whole = map_file(descriptor, stamp.size, kept) if mmap and lie_there else None
        may_be_kept = shows_changes(stamp) and (whole is not None or not (mmap and lie_there))
        arrays: dict[Any, Any] = {}
        for key, member in members.items():
            what = f"{path}: key {key!r}"
            if not member.n_bytes:
                arrays[key] = _view(what, member._replace(offset=0), b"")
            elif member.packed is None and whole is not None:
                arrays[key] = _view(what, member, whole)
            elif member.can_be_read_in_parts:
                arrays[key] = FileArray(file, what, member)
            else:
                arrays[key] = _read_whole(descriptor, what, member)
                may_be_kept = False
        if not may_be_kept:
            return arrays, file.close, None
        return arrays, None if mmap else file.close, stamp
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
