"""What an item may be that goes to another process, and how it is written down.

An item is ``{key: ndarray}``. Its keys and dtypes, the schema, are written as JSON, its arrays as
their bytes: in the frames of a message here, in shared memory by `ring`.
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
            code.append((encode_key(key), encode_dtype(dtype), kind))
            dtypes.append(dtype)
            kinds.append(kind)
            continue
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"key {key!r} holds a {type(array).__name__}; only arrays can be sent to another "
                "process"
            )
        if is_masked(array):
            raise DataError(f"key {key!r} holds a masked array, whose mask would be lost")
        if array.dtype.hasobject:
            raise DataError(
                f"key {key!r} holds an array of dtype {array.dtype}; arrays that refer to Python "
                "objects cannot be sent to another process"
            )
        code.append((encode_key(key), encode_dtype(array.dtype)))
        dtypes.append(array.dtype)
        kinds.append(0)
    return json.dumps(code).encode(), list(data), dtypes, kinds


def schema_from(code: bytes) -> tuple[list[Any], list[np.dtype[Any]], list[int]]:
    """Return the keys, dtypes and kinds that `schema_of` wrote down as ``code``."""
    columns = json.loads(code)
    return (
        [decode_key(key) for key, *_ in columns],
        [decode_dtype(dtype) for _, dtype, *_ in columns],
        [kind[0] if kind else 0 for _, _, *kind in columns],
    )


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], order: Any) -> npt.NDArray[Any]:
    """Return an array; unlike `numpy.empty`, of exactly this dtype if that is of no size."""
    if dtype.itemsize == 0:
        array: npt.NDArray[Any] = np.empty(shape, np.dtype([("", dtype)]), order)["f0"]
        return array
    return np.empty(shape, dtype, order)


def encode(data: Any) -> list[Any]:
    """Return the frames of a message that carries a data object: two headers, then the arrays."""
    if isinstance(data, Mapping):
        # Read once: some make their values anew for each look.
        data = dict(data.items())
    code, *_ = schema_of(data)
    layout, payload = [], []
    for array in data.values():
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        layout.append((array.shape, order))
        if array.dtype.kind == "V" and array.itemsize:
            # All of each element: a copy of fields would leave out what is between them.
            array = array.view(np.dtype((np.void, array.itemsize)))
        # The bytes in memory order. Not ascontiguousarray: it gives scalars a dimension.
        flat = np.asarray(array, order="C").reshape(-1) if order == "C" else array.T.reshape(-1)
        payload.append(flat.view(np.uint8) if flat.itemsize and flat.size else b"")
    return [code, json.dumps(layout).encode(), *payload]


def decode(frames: list[Any]) -> dict[Any, npt.NDArray[Any]]:
    """Return the data object of a message, in writable arrays of their own."""
    keys, dtypes, _ = schema_from(bytes(frames[0]))
    layout = json.loads(bytes(frames[1]))
    data = {}
    for key, dtype, (shape, order), frame in zip(keys, dtypes, layout, frames[2:], strict=True):
        array = empty(shape, dtype, order)
        if array.nbytes:
            # A message may start anywhere, so it is copied to where its type is aligned.
            flat = array.reshape(-1, order="A").view(np.uint8)
            flat[:] = np.frombuffer(frame, np.uint8)
        data[key] = array
    return data


def receive(
    socket: Any, flags: int = 0, copy: bool = False, track: bool = False
) -> dict[Any, npt.NDArray[Any]]:
    """Receive a data object, which may be empty."""
    frames = socket.recv_multipart(flags=flags, copy=copy, track=track)
    return decode([frame if copy else frame.buffer for frame in frames])
