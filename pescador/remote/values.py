"""Items and states as bytes, without pickle: whoever reads them runs nothing that was written.

A value is split into a code, which is JSON, and arrays. Items travel as mappings of keys to arrays;
one that is something else becomes a mapping that has its code under a key of its own.

docs/inside/remote.rst explains it.
"""

import json
import pickle
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from .._channel.reporting import STATE_KEY
from .._channel.schema import (
    Column,
    columns_of,
    encode_dtype,
    frames_of,
    layout_of,
    raw,
    schema_of,
)
from .._checks import is_masked
from ..exceptions import DataError

# The keys of mappings that stand for something else.
VALUE = ("pescador", "value")
PICKLED = ("pescador", "item")
_OURS = {VALUE, PICKLED, STATE_KEY}

# Bytes of records that go in one message; one record may be larger.
_BATCH = 128 * 1024
# What a record counts for beside its arrays, and how many there are in a message at most.
_RECORD = 64
_MOST = _BATCH // _RECORD + 1

_PLAIN = (type(None), bool, int, float, str)


# ------------------------------------------------------------------------------------- one value


def _split(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return the code of a value; append its arrays."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (list, tuple):
        return [kind.__name__, *(_split(each, arrays) for each in value)]
    if kind is dict:
        parts = [_split(part, arrays) for pair in value.items() for part in pair]
        return ["dict", *parts]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if isinstance(value, np.ndarray | np.generic) and not is_masked(value):
        array = np.asarray(value)
        if not array.dtype.hasobject:
            encode_dtype(array.dtype)
            arrays.append(array)
            return ["scalar" if isinstance(value, np.generic) else "array", len(arrays) - 1]
    raise DataError(
        f"an item is, or holds, a {kind.__name__}: {value!r:.80}; without keys only numbers, "
        "strings, bytes, lists, tuples, dicts and arrays without objects are sent"
    )


def _join(code: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return the value that `_split` has taken apart."""
    if not isinstance(code, list):
        return code
    kind, *rest = code
    if kind in ("array", "scalar"):
        [place] = rest
        return arrays[place] if kind == "array" else arrays[place][()]
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind == "complex":
        return complex(*rest)
    parts = [_join(each, arrays) for each in rest]
    if kind == "dict":
        return dict(zip(parts[::2], parts[1::2], strict=True))
    return {"list": list, "tuple": tuple}[kind](parts)


def dumps(value: Any) -> bytes:
    """Return a plain value as bytes."""
    arrays: list[npt.NDArray[Any]] = []
    code = _split(value, arrays)
    layout = [layout_of(array) for array in arrays]
    head = json.dumps([code, layout]).encode()
    parts = [len(head).to_bytes(8, "little"), head, *(raw(array).tobytes("A") for array in arrays)]
    return b"".join(parts)


def loads(written: bytes) -> Any:
    """Return the value that `dumps` wrote."""
    start = 8 + int.from_bytes(written[:8], "little")
    code, layout = json.loads(written[8:start])
    arrays = []
    for each in layout:
        column = Column(each)
        arrays.append(column.array(written[start : start + column.size]))
        start += column.size
    return _join(code, arrays)


def _is_record(item: Any) -> TypeGuard[Mapping[Any, npt.NDArray[Any]]]:
    """Tell whether an item is a mapping of keys to arrays that a channel takes as it is."""
    if not isinstance(item, Mapping):
        return False
    arrays = item.values()
    if not all(type(array) is np.ndarray for array in arrays):
        return False
    # Those that most are: no schema is made to find out.
    if all(type(key) is str for key in item) and all(
        array.dtype.isbuiltin == 1 and not array.dtype.hasobject for array in arrays
    ):
        return True
    try:
        schema_of(item)
    except DataError:
        return False
    return _OURS.isdisjoint(item)


def as_arrays(item: Any, may_pickle: bool) -> Mapping[Any, npt.NDArray[Any]]:
    """Return an item as a mapping of keys to arrays, which `value_of` turns back."""
    if _is_record(item):
        return item
    arrays: list[npt.NDArray[Any]] = []
    try:
        code = json.dumps(_split(item, arrays)).encode()
    except (DataError, RecursionError, ValueError) as error:
        if not may_pickle:
            if isinstance(error, DataError):
                raise
            raise DataError(f"an item of type {type(item).__name__}: {error}") from error
        return {PICKLED: np.frombuffer(pickle.dumps(item, pickle.HIGHEST_PROTOCOL), np.uint8)}
    return {VALUE: np.frombuffer(code, np.uint8), **dict(enumerate(arrays))}


def value_of(item: dict[Any, npt.NDArray[Any]], may_unpickle: bool) -> Any:
    """Return what `as_arrays` was given."""
    if VALUE in item:
        code = json.loads(item.pop(VALUE).tobytes())
        return _join(code, list(item.values()))
    if PICKLED in item:
        if not may_unpickle:
            raise DataError("the server has sent a pickle in clear text, which is not read")
        return pickle.loads(item[PICKLED].data)
    return item


# ------------------------------------------------------------------------------------- messages


class Batch:
    """Records that are alike, on their way into a message.

    Attributes
    ----------
    size : int
        How many bytes they have.
    """

    def __init__(self) -> None:
        self.kind: Any = None
        self.items: list[Mapping[Any, npt.NDArray[Any]]] = []
        self.size = 0

    def takes(self, item: Mapping[Any, npt.NDArray[Any]]) -> bool:
        """Add a record, unless the message is full or of another kind."""
        arrays = item.values()
        kind = list(item), [(array.dtype, array.shape, array.strides) for array in arrays]
        size = sum(array.nbytes for array in arrays)
        if self.items and (kind != self.kind or self.size + size > _BATCH):
            return False
        self.kind = kind
        self.items.append(item)
        # A record of nothing takes some room, too.
        self.size += size + _RECORD
        return True

    def frames(self) -> list[Any]:
        """Return schema and columns; the arrays are not needed any more."""
        code, *columns = frames_of(self.items[0])
        if len(self.items) > 1:
            pairs = zip(*(item.values() for item in self.items), strict=True)
            columns = [b"".join([raw(array).tobytes("A") for array in column]) for column in pairs]
        return [code, *columns]


class Schemas:
    """Reads messages of records; those that are alike have their schema read once."""

    def __init__(self) -> None:
        self.code: bytes | None = None
        self.keys: list[Any] = []
        self.columns: list[Column] = []

    def items(self, n: int, code: bytes, frames: list[Any]) -> Iterable[dict[Any, Any]]:
        """Return the records of a message."""
        if not 0 < n <= _MOST:
            raise DataError(f"a message of {n} records")
        if code != self.code:
            self.keys, self.columns = columns_of(code)
            self.code = code
        if len(frames) != len(self.columns):
            raise DataError(f"{len(frames)} columns have come for {len(self.columns)} keys")
        pairs = zip(self.columns, frames, strict=True)
        if n == 1:
            arrays = [column.array(frame) for column, frame in pairs]
            return (dict(zip(self.keys, arrays, strict=True)),)
        if not frames:
            return ({} for _ in range(n))
        rows = zip(*[column.rows(frame, n) for column, frame in pairs], strict=True)
        keys = self.keys
        return (dict(zip(keys, row, strict=True)) for row in rows)
