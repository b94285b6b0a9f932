"""Helpers: random generators from seeds, batch lengths, and marks for old names."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sized
from types import ModuleType
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from .exceptions import ArgumentError
from .exceptions import PescadorError as PescadorError

__all__ = ["Deprecated", "batch_length", "deprecated", "get_rng", "moved", "rename_kw"]

P = ParamSpec("P")
R = TypeVar("R")

#: What every ``random_state`` argument takes.
Seed: TypeAlias = (
    int
    | np.integer[Any]
    | np.random.RandomState
    | np.random.Generator
    | np.random.BitGenerator
    | np.random.SeedSequence
    | None
)
#: What `get_rng` makes of it.
Rng: TypeAlias = np.random.RandomState | np.random.Generator | ModuleType


class Deprecated:
    """The default of a keyword argument that has another name now."""

    def __repr__(self) -> str:
        return "<DEPRECATED parameter>"


def rename_kw(
    old_name: str,
    old_value: Any,
    new_name: str,
    new_value: Any,
    version_deprecated: str,
    version_removed: str,
) -> Any:
    """Choose between the old and the new name of a keyword argument.

    Parameters
    ----------
    old_name, new_name : str
        The names.
    old_value, new_value : object
        What was passed under each; `Deprecated` marks that the old one was not used.
    version_deprecated, version_removed : str
        When the old name became deprecated, and when it will go.

    Returns
    -------
    value : object
        `old_value` if it was given, else `new_value`.

    Warns
    -----
    DeprecationWarning
        If the old name was used; attributed to the caller of the function that asks.
    """
    if isinstance(old_value, Deprecated):
        return new_value
    asking = sys._getframe(1)
    warnings.warn(
        f"{asking.f_code.co_name}(): the keyword argument {old_name!r} was renamed to {new_name!r} "
        f"in version {version_deprecated}; the old name will go in version {version_removed}.",
        DeprecationWarning,
        stacklevel=3,
    )
    return old_value


def _warns(
    message: Callable[[Callable[P, R]], str],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator whose functions warn, at their definition, whenever they are called."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warning(*args: P.args, **kwargs: P.kwargs) -> R:
            code = function.__code__
            warnings.warn_explicit(
                message(function), DeprecationWarning, code.co_filename, code.co_firstlineno + 1
            )
            return function(*args, **kwargs)

        return warning

    return mark


def moved(
    moved_from: str, version: str, version_removed: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as moved: it warns whenever it is called under its old name.

    Parameters
    ----------
    moved_from : str
        The full old name.
    version, version_removed : str
        When it moved, and when the old name will go.
    """
    return _warns(
        lambda function: (
            f"{moved_from} moved to {function.__module__}.{function.__name__} in "
            f"version {version}; the old name will go in version {version_removed}."
        )
    )


def deprecated(version: str, version_removed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as deprecated: it warns whenever it is called.

    Parameters
    ----------
    version, version_removed : str
        When it became deprecated, and when it will go.
    """
    return _warns(
        lambda function: (
            f"{function.__module__}.{function.__name__} is deprecated since version "
            f"{version} and will go in version {version_removed}."
        )
    )


def batch_length(batch: Mapping[Any, Sized]) -> int | None:
    """Return the number of samples in a batch.

    Parameters
    ----------
    batch : dict of {key: sized}
        A batch, whose values all have the same length.

    Returns
    -------
    n : int or None
        The common length; None for a batch without keys.

    Raises
    ------
    ArgumentError
        If two values differ in length.

    Examples
    --------
    >>> batch_length({"X": np.zeros((3, 2)), "Y": np.zeros(3)})
    3
    """
    lengths = {key: len(value) for key, value in batch.items()}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"the values of a batch must have one length; these have {lengths}")
    return next(iter(lengths.values()), None)


def get_rng(random_state: Seed) -> Rng:
    """Return the random generator that a ``random_state`` argument stands for.

    Parameters
    ----------
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        None is the global state behind ``np.random``, an int (NumPy's integers included) the
        seed of a new ``RandomState``. A ``RandomState`` or ``Generator`` is used as it is; a
        ``BitGenerator`` or ``SeedSequence`` gets a ``Generator`` of its own.

    Returns
    -------
    rng : RandomState, Generator or the module np.random
        Something that draws.

    Raises
    ------
    ArgumentError
        If it is none of these, or no valid seed.

    Examples
    --------
    >>> get_rng(0).randint(10)
    5
    """
    if random_state is None:
        return np.random
    if isinstance(random_state, np.random.RandomState | np.random.Generator):
        return random_state
    if isinstance(random_state, int | np.integer):
        try:
            return np.random.RandomState(seed=int(random_state))
        except ValueError as error:
            raise ArgumentError(f"random_state={random_state!r} is no seed: {error}") from error
    if isinstance(random_state, np.random.BitGenerator):
        return np.random.Generator(random_state)
    if isinstance(random_state, np.random.SeedSequence):
        return np.random.default_rng(random_state)
    raise ArgumentError(
        f"random_state={random_state!r} must be None, an int, or a RandomState, Generator, "
        "BitGenerator or SeedSequence of numpy.random"
    )
