"""What an item may be that goes to another process, and how it is written down.

An item is ``{key: ndarray}``. Its keys and dtypes, the schema, are written as JSON, its arrays as
their bytes: in the frames of a message here, many items to a message by `remote.values`, and in
shared memory by `ring`.
"""

import importlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._checks import is_masked
from ..exceptions import DataError

#: Values that are no arrays, and may be sent as one where that is asked for: their kinds, and the
#: dtypes that they are sent with.
NUMBERS: dict[type, tuple[int, np.dtype[Any]]] = {
    int: (2, np.dtype(np.int64)),
    float: (3, np.dtype(np.float64)),
    bool: (4, np.dtype(np.bool_)),
    str: (5, np.dtype(np.uint8)),
    **{
        scalar: (1, np.dtype(scalar))
        for scalar in np.sctypeDict.values()
        if np.dtype(scalar).kind in "biufc"
    },
}


def encode_key(key: Any) -> Any:
    """Return a key as JSON can hold it: strings as they are, others as [type, value]."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return [type(key).__name__, key]
    if isinstance(key, bytes):
        return ["bytes", key.hex()]
    if isinstance(key, tuple):
        return ["tuple", [encode_key(part) for part in key]]
    raise DataError(
        f"key {key!r} is of type {type(key).__name__}; only strings, numbers, bytes, None and "
        "tuples of them can be sent to another process"
    )


def decode_key(code: Any) -> Any:
    """Return the key that `encode_key` wrote."""
    if isinstance(code, str):
        return code
    kind, value = code
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "tuple":
        return tuple(decode_key(part) for part in value)
    return value


def encode_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as JSON can hold it, with the layout of structures to the byte."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": encode_dtype(base), "shape": shape}
    if dtype.names is None:
        if dtype.type.__module__ == "ml_dtypes":
            return {"ml_dtypes": dtype.name}
        if np.dtype(dtype.str) != dtype:
            raise DataError(
                f"dtype {dtype} is not NumPy's own, nor of ml_dtypes, and cannot be sent"
            )
        return dtype.str
    fields: list[Any] = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return {
        "names": dtype.names,
        "formats": [encode_dtype(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "align": dtype.isalignedstruct,
    }


def decode_dtype(code: Any) -> np.dtype[Any]:
    """Return the dtype that `encode_dtype` wrote."""
    if isinstance(code, str):
        return np.dtype(code)
    if "base" in code:
        return np.dtype((decode_dtype(code["base"]), tuple(code["shape"])))
    dtype: np.dtype[Any]
    if "ml_dtypes" in code:
        # No other module is imported because somebody else has named it.
        dtype = np.dtype(getattr(importlib.import_module("ml_dtypes"), code["ml_dtypes"]))
        if dtype.name != code["ml_dtypes"]:
            raise ValueError(f"ml_dtypes has no dtype {code['ml_dtypes']!r}")
        return dtype
    align = code.pop("align")
    layout: Any = {**code, "formats": [decode_dtype(f) for f in code["formats"]]}
    dtype = np.dtype(layout, align=align)
    return dtype


def schema_of(
    data: Any, numbers: bool = False
) -> tuple[bytes, list[Any], list[np.dtype[Any]], list[int]]:
    """Return the schema of a data object, as written and as lists of keys, dtypes and kinds.

    Values are arrays, of kind 0, or with `numbers` what `NUMBERS` has.

    Raises
    ------
    DataError
        If it is something else, or cannot be sent.
    """
    if not isinstance(data, Mapping):
        raise DataError(
            f"an item of type {type(data).__name__} cannot be sent to another process; "
            "it must be a mapping of keys to arrays"
        )
    code: list[Any] = []
    dtypes, kinds = [], []
    for key, array in data.items():
        if numbers and type(array) in NUMBERS:
            kind, dtype = NUMBERS[type(array)]
        elif not isinstance(array, np.ndarray):
            raise DataError(
                f"key {key!r} holds a {type(array).__name__}; only arrays can be sent to another "
                "process"
            )
        elif is_masked(array):
            raise DataError(f"key {key!r} holds a masked array, whose mask would be lost")
        elif array.dtype.hasobject:
            raise DataError(
                f"key {key!r} holds an array of dtype {array.dtype}; arrays that refer to Python "
                "objects cannot be sent to another process"
            )
        else:
            kind, dtype = 0, array.dtype
        code.append((encode_key(key), encode_dtype(dtype), kind))
        dtypes.append(dtype)
        kinds.append(kind)
    return json.dumps(code).encode(), list(data), dtypes, kinds


def schema_from(code: bytes) -> tuple[list[Any], list[np.dtype[Any]], list[int]]:
    """Return the keys, dtypes and kinds that `schema_of` wrote down as ``code``."""
    columns = json.loads(code)
    return (
        [decode_key(key) for key, _, _ in columns],
        [decode_dtype(dtype) for _, dtype, _ in columns],
        [kind for _, _, kind in columns],
    )


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], order: Any) -> npt.NDArray[Any]:
    """Return an array; unlike `numpy.empty`, of exactly this dtype if that is of no size."""
    if dtype.itemsize == 0:
        array: npt.NDArray[Any] = np.empty(shape, np.dtype([("", dtype)]), order)["f0"]
        return array
    return np.empty(shape, dtype, order)


def layout_of(array: npt.NDArray[Any]) -> list[Any]:
    """Return dtype, shape and order of an array, for JSON."""
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return [encode_dtype(array.dtype), array.shape, order]


def raw(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose copies are all of its bytes, also those between fields."""
    dtype = array.dtype
    if dtype.kind != "V" or not array.nbytes:
        return array
    return array.view(np.dtype((np.void, dtype.itemsize)))


def _flat(array: npt.NDArray[Any]) -> Any:
    """Return the bytes of an array in memory order: those that are there, if it is contiguous."""
    if not array.nbytes:
        return b""
    return raw(np.asarray(array)).ravel("A").view(np.uint8)


class Column:
    """Arrays of one layout, one after the other.

    Parameters
    ----------
    layout : list
        Of `layout_of`. It may come from anybody.
    """

    def __init__(self, layout: Any) -> None:
        code, shape, order = layout
        self.dtype = decode_dtype(code)
        if self.dtype.hasobject:
            raise DataError(f"dtype {self.dtype} refers to Python objects")
        self.shape = tuple(int(n) for n in shape)
        if min(self.shape, default=0) < 0 or order not in ("C", "F"):
            raise DataError(f"no array has the shape {self.shape} and order {order!r}")
        self.order: Any = order
        #: Bytes of one array.
        self.size = self.dtype.itemsize
        for n in self.shape:
            self.size *= n

    def array(self, written: Any, copy: bool = False) -> npt.NDArray[Any]:
        """Return the only array that is in a buffer: a view of it, if it is aligned and ours."""
        if len(written) != self.size:
            raise DataError(f"an array of {self.size} bytes has come in {len(written)}")
        if not self.size:
            return empty(self.shape, self.dtype, self.order)
        array = np.frombuffer(written, self.dtype).reshape(self.shape, order=self.order)
        if not copy and array.flags.aligned and array.flags.writeable:
            return array
        return raw(array).copy(self.order).view(self.dtype)

    def rows(self, written: Any, n: int) -> list[npt.NDArray[Any]]:
        """Return the `n` arrays that are in a buffer, each with memory of its own."""
        if len(written) != n * self.size:
            raise DataError(f"{n} arrays of {self.size} bytes have come in {len(written)}")
        if not self.size:
            return [empty(self.shape, self.dtype, self.order) for _ in range(n)]
        every = raw(np.frombuffer(written, self.dtype))
        if not self.shape:
            rows = [every[i, ...].copy() for i in range(n)]
        elif self.order == "F":
            rows = [row.T.copy("F") for row in every.reshape(n, *self.shape[::-1])]
        else:
            rows = [row.copy() for row in every.reshape(n, *self.shape)]
        return rows if every.dtype == self.dtype else [row.view(self.dtype) for row in rows]


def encode(data: Any) -> list[Any]:
    """Return the frames of a message that carries a data object: a header, then the arrays."""
    if isinstance(data, Mapping):
        # Read once: some make their values anew for each look.
        data = dict(data.items())
    schema_of(data)
    return frames_of(data)


def frames_of(data: Mapping[Any, npt.NDArray[Any]]) -> list[Any]:
    """Return the frames of a data object that can be sent."""
    code = [(encode_key(key), *layout_of(array)) for key, array in data.items()]
    return [json.dumps(code).encode(), *map(_flat, data.values())]


def columns_of(code: bytes) -> tuple[list[Any], list[Column]]:
    """Return keys and columns of the header that `frames_of` wrote."""
    schema = json.loads(code)
    return [decode_key(key) for key, *_ in schema], [Column(layout) for _, *layout in schema]


def decode(frames: list[Any]) -> dict[Any, npt.NDArray[Any]]:
    """Return the data object of a message, in writable arrays of their own."""
    keys, columns = columns_of(bytes(frames[0]))
    arrays = [c.array(frame, copy=True) for c, frame in zip(columns, frames[1:], strict=True)]
    return dict(zip(keys, arrays, strict=True))
