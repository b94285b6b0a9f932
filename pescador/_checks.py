"""Checks of arguments that several modules share."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _rng
from .exceptions import ArgumentError

Weights = Sequence[float] | npt.NDArray[Any] | None


def check_weights(weights: Any, n: int, dtype: Any = None) -> Any:
    """Return weights of n streamers as a vector in `dtype`, or in the caller's if it is a float."""
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
    """Return the same normalised, as an array of our own; all the same for None."""
    if weights is None:
        # Normalised below, too: six sixths do not add up to one.
        weights = 1.0 / n * np.ones(n)
    array = np.array(check_weights(weights, n, dtype))
    array /= np.sum(array)
    return array


def is_masked(value: Any) -> bool:
    """Return whether an array is a masked one, without importing ``numpy.ma``."""
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))
