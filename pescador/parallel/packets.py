"""Items of many visits in one object, for workers whose objects cost more than items.

A worker packs what it makes into a `Packing`, and sends what `write` returns; the consumer reads it
by `unpack`. What it consists of are lists, numbers, bytes and arrays, of which the arrays hold
nearly all of the bytes: what pickles it with protocol 5 copies none of them.

Dicts of arrays that are alike, as those of a stream are, become columns: an array of all small ones
under a key, or a few arrays of large ones. For what pickles and reads a packet, each array costs.
"""

import itertools
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .._channel.protocol import PICKLED

# Arrays of so many bytes are copied once, to where they stay.
_LARGE = 1 << 16
# Buffers of fewer bytes stay within the pickle that they are part of.
_LEAST_BUFFER = 1 << 12


class Packing:
    """A packet that is being made.

    Attributes
    ----------
    size : int
        How many bytes are in it.
    """

    def __init__(self) -> None:
        self.size = 0
        # Of each item: the visit; its group, or the word of what is told; what belongs to the word.
        self.numbers: list[int] = []
        self.words: list[int | str] = []
        self.told: list[Any] = []
        # Keys, dtypes, shapes and layouts -> the number of the group; and the columns of each.
        self.groups: dict[tuple[Any, ...], int] = {}
        self.columns: list[list[Any]] = []

    def add(self, number: int, item: dict[Any, Any]) -> None:
        """Add an item of a visit, or what is told of it (see `protocol.news`)."""
        self.numbers.append(number)
        key = next(iter(item))
        if type(key) is tuple:
            _, word = key
            value = item[key]
            self.size += value[2] if word == PICKLED else value.nbytes
            self.words.append(word)
            self.told.append(value if word == PICKLED else value.tobytes())
            return
        spec: list[Any] = []
        for key, value in item.items():
            if type(value) is np.ndarray:
                spec += key, value.dtype, value.shape, value.flags.fnc
                self.size += value.nbytes
            else:
                spec += key, None, None, None
        group = self.groups.setdefault(tuple(spec), len(self.columns))
        if group == len(self.columns):
            self.columns.append([_new_column(value) for value in item.values()])
        for column, value in zip(self.columns[group], item.values(), strict=True):
            if type(column) is list and type(value) is np.ndarray:
                # The source may write to it again.
                value = np.array(value, order="F" if value.flags.fnc else "C")
            column.append(value)
        self.words.append(group)

    def write(self) -> tuple[Any, ...]:
        """Return the packet."""
        groups = []
        for spec, columns in zip(self.groups, self.columns, strict=True):
            parts = zip(spec[1::4], spec[3::4], columns, strict=True)
            groups.append((spec[::4], [_written(*part) for part in parts]))
        return self.numbers, self.words, groups, self.told


class _Blocks:
    """A column of large arrays: each block has room for as many as all blocks before it.

    So none is copied twice, and there are few blocks.
    """

    def __init__(self) -> None:
        self.blocks: list[Any] = []
        self.n = self.room = 0

    def append(self, value: Any) -> None:
        if self.n == self.room:
            self.blocks.append(np.empty((max(self.n, 1), *value.shape), value.dtype))
            self.room += len(self.blocks[-1])
        self.blocks[-1][self.n - self.room] = value
        self.n += 1

    def written(self) -> tuple[Any, ...]:
        last = self.blocks[-1]
        return (*self.blocks[:-1], last[: len(last) + self.n - self.room])


def _new_column(value: Any) -> Any:
    is_large = type(value) is np.ndarray and value.nbytes >= _LARGE and not value.flags.fnc
    return _Blocks() if is_large else []


def _written(dtype: Any, is_fortran: bool | None, column: Any) -> Any:
    """Return a column as it is sent: a list of values, an array of rows, or a tuple of those."""
    if type(column) is _Blocks:
        return column.written()
    return column if dtype is None or is_fortran else np.array(column, dtype)


def pickled(item: Any, dumps: Any = pickle.dumps) -> dict[Any, Any]:
    """Return what `Packing.add` takes for an item that is no dict of arrays."""
    buffers: list[Any] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LEAST_BUFFER:
            return True
        buffers.append(np.array(raw))
        return False

    head = dumps(item, protocol=5, buffer_callback=is_small)
    size = len(head) + sum(buffer.nbytes for buffer in buffers)
    return {("pescador", PICKLED): (head, buffers, size)}


def unpack(
    packet: tuple[Any, ...], copy: bool
) -> tuple[list[int], Iterable[int | str], Iterable[Any]]:
    """Return what `receive_packet` takes.

    Parameters
    ----------
    packet : tuple
        What `Packing.write` returned.
    copy : bool
        Whether arrays are copied out of it.
    """
    numbers, words, groups, told = packet
    sizes = [_size_of(columns) for _, columns in groups]
    items = [_items(keys, columns, copy) for keys, columns in groups]
    if len(groups) == 1 and not told:
        return numbers, itertools.repeat(sizes[0]), items[0]
    news = iter(told)
    values: list[Any] = []
    for i, word in enumerate(words):
        if type(word) is int:
            values.append(next(items[word]))
            words[i] = sizes[word]
        elif word == PICKLED:
            head, buffers, words[i] = next(news)
            values.append(pickle.loads(head, buffers=map(bytearray, buffers) if copy else buffers))
        else:
            values.append(pickle.loads(next(news)))
    return numbers, words, values


def _size_of(columns: list[Any]) -> int:
    """Return how many bytes the arrays of each item have."""
    firsts = (column[0][0] if isinstance(column, tuple) else column[0] for column in columns)
    return sum(value.nbytes for value in firsts if hasattr(value, "nbytes"))


def _items(keys: tuple[str, ...], columns: list[Any], copy: bool) -> Iterator[dict[str, Any]]:
    """Yield the items of a group."""
    values = [_values(column, copy) for column in columns]
    return (dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True))


def _values(column: Any, copy: bool) -> list[Any]:
    """Return what is in a column."""
    if isinstance(column, tuple):
        return [value for block in column for value in _values(block, copy)]
    if isinstance(column, list):
        values = column
    elif column.ndim == 1:
        # As arrays without a dimension, not as numbers.
        values = [column[i, ...] for i in range(len(column))]
    else:
        values = list(column)
    if copy and isinstance(values[0], np.ndarray):
        # Each by itself: one that is held holds no other.
        return [value.copy("K") for value in values]
    return values
