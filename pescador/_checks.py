"""Checks of arguments: each returns the value in the form that is used, or says what would do."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _rng
from .exceptions import ArgumentError

Weights = Sequence[float] | npt.NDArray[Any] | None


def is_number(value: Any, *kinds: type) -> bool:
    """Tell whether `value` is a real number of Python or NumPy, of `kinds` if there are any."""
    return isinstance(value, kinds or (int, float, np.integer, np.floating)) and not isinstance(
        value, bool | np.timedelta64
    )


def as_count(name: str, value: Any, hint: str = "") -> int:
    """Return `value` as an int, or raise an ArgumentError unless it is a whole number above 0.

    The result is at most sys.maxsize, which no container reaches.
    """
    if is_number(value, int, np.integer) and value > 0:
        return min(int(value), sys.maxsize)
    raise ArgumentError(f"{name}={value!r} must be a positive whole number{hint}")


def as_whole(name: str, value: Any, most: int | None = None) -> int:
    """Return `value` as an int, or raise an ArgumentError unless it is a whole number, 0 or more.

    One above `most` is returned as that.
    """
    if is_number(value, int, np.integer) and value >= 0:
        return int(value) if most is None else min(int(value), most)
    raise ArgumentError(f"{name}={value!r} must be a whole number, 0 or more")


def as_bool(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise an ArgumentError unless it is one."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ArgumentError(f"{name}={value!r} must be a bool")


def as_choice(name: str, value: Any, choices: tuple[str, ...], hint: str = "") -> str:
    """Return `value`, or raise an ArgumentError unless it is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return value
    raise ArgumentError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}{hint}")


def as_index(name: str, value: Any, hint: str = "") -> int:
    """Return `value` as an int, or raise an ArgumentError unless it is a whole number."""
    if is_number(value, int, np.integer):
        return int(value)
    raise ArgumentError(f"{name}={value!r} must be an int{hint}")


def check_seconds(name: str, value: Any, least: str = "0 or more") -> None:
    """Raise an ArgumentError unless `value` is None or a number of seconds, `least` of them."""
    if value is None or (is_number(value) and (value > 0 or (value == 0 and least == "0 or more"))):
        return
    raise ArgumentError(f"{name}={value!r} must be None or a number of seconds, {least}")


def as_keys(name: str, keys: Any) -> Any:
    """Return a key that is a str as it is, an iterable of keys as a tuple, and None for neither."""
    if not keys:
        return None
    if isinstance(keys, str):
        return keys
    if isinstance(keys, Iterable):
        return tuple(keys)
    raise ArgumentError(f"{name}={keys!r} must be a key, an iterable of keys, or None")


def as_distinct_keys(keys: Any) -> list[Any] | None:
    """Return `keys` as a list, or raise an ArgumentError if it is empty or has a key twice."""
    if keys is None:
        return None
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise ArgumentError(f"keys={keys!r} must be None or a list of keys")
    result = list(keys)
    if not result:
        raise ArgumentError("keys=[] names no key; None takes all of them")
    try:
        n_distinct = len(set(result))
    except TypeError as error:
        raise ArgumentError(f"keys={keys!r} must be None or a list of keys: {error}") from None
    if n_distinct < len(result):
        raise ArgumentError(f"keys={keys!r} names a key twice")
    return result


def check_weights(weights: Any, n: int, dtype: Any = None) -> Any:
    """Return weights of n streamers as a vector, or raise an ArgumentError that says what is wrong.

    Without a `dtype`, the caller's is kept if it is a float of at most 64 bits.
    """
    if _rng.are_weights(weights, n):
        return weights
    if isinstance(weights, np.ma.MaskedArray):
        raise ArgumentError(
            f"weights={weights!r} is a masked array; fill in what is masked, as "
            "weights.filled(0) does"
        )
    try:
        array = np.array(weights, ndmin=1)
        if np.issubdtype(array.dtype, np.complexfloating):
            raise TypeError("complex numbers have no order")
        if dtype is not None or not np.issubdtype(array.dtype, np.floating) or array.itemsize > 8:
            array = array.astype(dtype or np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"weights={weights!r} must be a vector of numbers: {error}") from error
    if array.ndim != 1 or len(array) != n:
        raise ArgumentError(
            f"weights has shape {array.shape}; it must have one number for each of the {n} "
            "streamers"
        )
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ArgumentError(f"weights[{i}]={array[i]!r} must be a finite number, 0 or more")
    with np.errstate(over="ignore"):
        total = np.sum(array)
    if not 0 < total < np.inf:
        raise ArgumentError(
            f"weights add up to {total!r}; they must have a positive, finite sum, and so need at "
            "least one positive value"
        )
    return array


def as_weights(weights: Weights, n: int, dtype: Any = None) -> npt.NDArray[Any]:
    """Return a new array of weights of n streamers whose sum is 1; None means equal weights."""
    if weights is None:
        # Divided by their sum below, too: rounded, six sixths do not add up to one.
        weights = 1.0 / n * np.ones(n)
    array = np.array(check_weights(weights, n, dtype))
    array /= np.sum(array)
    return array


def is_masked(value: Any) -> bool:
    """Return whether an array is a masked one, without importing ``numpy.ma``."""
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))
