"""Windows: stretches of fixed length, cut out of arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._checks import as_choice, as_count, as_index
from ..exceptions import ArgumentError, DataError
from ..util import Seed
from .files import advise
from .source import Cut, Source, register
from .stores import Store

__all__ = ["Windows"]

_SHORT = ("raise", "skip", "pad")


def _as_where(where: Any) -> Any:
    """Return a mask or an array of starts as int64 or bool; None and keys as they are."""
    if not isinstance(where, np.ndarray | list | range):
        try:
            hash(where)
        except TypeError:
            raise ArgumentError(
                f"where={where!r} must be a mask, an array of ints, a key of the data or None"
            ) from None
        return where
    array = np.array(where)
    if array.ndim != 1 or array.dtype.kind not in "bui":
        raise ArgumentError(
            f"where has shape {array.shape} and dtype {array.dtype}; it must be a vector of bools "
            "or of ints"
        )
    return array


def _padded(array: npt.NDArray[Any], axis: int, length: int) -> npt.NDArray[Any]:
    """Return an array with zeros at the end of an axis."""
    shape = list(array.shape)
    shape[axis] = max(length, shape[axis])
    result = np.zeros(shape, array.dtype)
    result[tuple(slice(0, n) for n in array.shape)] = array
    return result


class Windows(Source):
    """A stream of windows of fixed length, as ``{key: array}``: the same stretch of each array.

    Parameters
    ----------
    data : mapping, path, callable, array or datasets.Dataset
        As for `Rows`.
    length : int > 0 or mapping of {key: int}
        How long a window is along its axis. With a mapping, keys may be sampled at different
        rates: ``{"X": 128, "y": 16}`` cuts 16 of y out of where 128 of X are. Keys that it lacks
        are passed whole.
    axis : int or mapping of {key: int}
        Which axis to cut along. Keys that a mapping lacks are passed whole.
    keys : list or None
        Which keys to take, in this order. None takes all but the one of `where`.
    hop : int > 0
        How far apart starts are, along the key with the longest window: 0, hop, 2 hop, ... Where
        lengths differ, only starts are taken that are whole numbers for every key.
    order : {'random', 'shuffled', 'sequential'}
        random
            Any start, with replacement, for ever.
        shuffled
            Each start once, in random order. It takes no memory, however many there are.
        sequential
            Each start once, in order.
    short : {'raise', 'skip', 'pad'}
        What becomes of arrays that are shorter than a window: a DataError, a stream without
        items (also where `where` leaves no start), or one window with zeros at its end.
    where : array_like of bool or int, key, or None
        Which starts may be drawn, along the key with the longest window: a mask with an entry for
        each place (or for each start), the starts themselves, or the key of such an array in the
        data. What is not on the grid of `hop` is left out.
    mmap : bool
        As for `Rows`.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        As for `Rows`: numbers below the number of starts are drawn, and the n-th start is taken.

    Yields
    ------
    item : dict of {key: ndarray}
        Windows of arrays that were passed are views of them. Windows of files, and padded ones,
        are arrays of their own.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    DataError
        While iterating: if a key or an axis is missing, if arrays are not equally long for their
        lengths of windows, if they are too short, or if there is no start to draw.

    Examples
    --------
    >>> data = {"X": np.arange(20).reshape(10, 2), "y": np.arange(5)}
    >>> windows = Windows(data, {"X": 4, "y": 2}, hop=4, order="sequential")
    >>> for item in windows:
    ...     print(item["X"][:, 0], item["y"])
    [0 2 4 6] [0 1]
    [ 8 10 12 14] [2 3]
    """

    length: int | dict[Any, int]
    axis: int | dict[Any, int]
    hop: int
    short: str
    where: Any

    def __init__(
        self,
        data: Any,
        length: Any,
        *,
        axis: Any = 0,
        keys: Any = None,
        hop: int = 1,
        order: str = "random",
        short: str = "raise",
        where: Any = None,
        mmap: bool = True,
        random_state: Seed = None,
    ) -> None:
        self.length = length
        self.axis = axis
        self.hop = hop
        self.short = short
        self.where = where
        super().__init__(data, keys, order, mmap, random_state)

    def _check(self) -> None:
        super()._check()
        length, axis = self.length, self.axis
        if isinstance(length, Mapping):
            if not length:
                raise ArgumentError("length={} names no key to cut windows of")
            self.length = {key: as_count(f"length[{key!r}]", n) for key, n in length.items()}
        else:
            self.length = as_count("length", length, ", or a mapping from keys to such")
        if isinstance(axis, Mapping):
            if not axis:
                raise ArgumentError("axis={} names no key to cut windows of")
            self.axis = {key: as_index(f"axis[{key!r}]", value) for key, value in axis.items()}
        else:
            self.axis = as_index("axis", axis, ", or a mapping from keys to ints")
        self.hop = as_count("hop", self.hop)
        as_choice("short", self.short, _SHORT)
        self.where = _as_where(self.where)

    @property
    def _where_key(self) -> Any:
        return None if isinstance(self.where, np.ndarray) else self.where

    def _wanted(self) -> list[Any] | None:
        key = self._where_key
        if self.keys is None or key is None or key in self.keys:
            return self.keys
        return [*self.keys, key]

    def _lengths(self, store: Store, keys: list[Any]) -> dict[Any, tuple[int, int]]:
        """Return the axis and the length of the windows of each key that is cut."""
        for name, value in (("length", self.length), ("axis", self.axis)):
            missing = [key for key in value if key not in keys] if isinstance(value, dict) else []
            if missing:
                raise DataError(f"{store.name} has no key {missing[0]!r}, which {name} names")
        found = {}
        for key in keys:
            axis = self.axis.get(key) if isinstance(self.axis, dict) else self.axis
            length = self.length.get(key) if isinstance(self.length, dict) else self.length
            if axis is None or length is None:
                continue
            ndim = len(store.arrays[key].shape)
            if not -ndim <= axis < ndim:
                raise DataError(
                    f"{store.name}: key {key!r} has shape {store.arrays[key].shape}, and no axis "
                    f"{axis} to cut windows along"
                )
            found[key] = (axis % ndim, length)
        if not found:
            raise DataError(f"{store.name}: length and axis have no key in common to be cut")
        return found

    def _cut(self, store: Store) -> tuple[list[Cut], int, npt.NDArray[np.int64] | None]:
        # Each is large, or next to others.
        advise(store.arrays.values(), 0)
        keys = self.keys
        if keys is None:
            keys = [key for key in store.arrays if self._where_key is None or key != self.where]
        lengths = self._lengths(store, keys)
        longest = max(lengths, key=lambda key: lengths[key][1])
        unit = math.gcd(*(length for _, length in lengths.values()))
        # The longest window's share of what all of them are made of, and what others have of it.
        share = lengths[longest][1] // unit
        step = math.lcm(self.hop, share)
        sizes = {key: store.arrays[key].shape[axis] for key, (axis, _) in lengths.items()}
        self._check_sizes(store, lengths, sizes, longest, unit)
        short = [key for key, (_, length) in lengths.items() if sizes[key] < length]
        n = 1
        if short and self.short == "raise":
            raise DataError(
                f"{store.name}: key {short[0]!r} has a length of {sizes[short[0]]} along axis "
                f"{lengths[short[0]][0]}, and a window one of {lengths[short[0]][1]}; short='skip' "
                "or short='pad' would do"
            )
        if short and self.short == "skip":
            n = 0
        elif not short:
            n = min(
                (sizes[key] - length) // (step // share * (length // unit)) + 1
                for key, (_, length) in lengths.items()
            )
        starts = None
        if self.where is not None and n:
            starts = self._starts(store, sizes[longest], lengths[longest][1], step, n)
            n = len(starts)
            if n == 0 and self.short != "skip":
                raise DataError(
                    f"{store.name}: where={self.where!r:.200} and hop={self.hop} leave nothing to "
                    "draw from"
                )
        cuts: list[Cut] = []
        for key in keys:
            array, copies = store.arrays[key], store.is_file
            axis, length = lengths.get(key, (0, 0))
            if (key not in lengths or short) and not isinstance(array, np.ndarray):
                array = array.read_slice(0, array.shape[0])
            if key in lengths and short:
                array, copies = _padded(array, axis, length), True
            jump = step // share * (length // unit)
            cuts.append((key, array, axis, jump, length, copies))
        return cuts, n, starts

    def _check_sizes(
        self,
        store: Store,
        lengths: dict[Any, tuple[int, int]],
        sizes: dict[Any, int],
        longest: Any,
        unit: int,
    ) -> None:
        """Refuse arrays that do not cover the same stretch, but for rounding."""
        share = lengths[longest][1] // unit
        for key, (_, length) in lengths.items():
            off = abs(sizes[key] * share - sizes[longest] * (length // unit))
            if off >= max(share, length // unit):
                raise DataError(
                    f"{store.name}: key {longest!r} has a length of {sizes[longest]} for windows "
                    f"of {lengths[longest][1]}, and key {key!r} one of {sizes[key]} for windows "
                    f"of {length}; they must be in proportion"
                )

    def _starts(
        self, store: Store, size: int, length: int, step: int, n: int
    ) -> npt.NDArray[np.int64]:
        """Return the numbers of the starts that may be drawn, of n that are `step` apart."""
        where = self.where
        if not isinstance(where, np.ndarray):
            if where not in store.arrays:
                raise DataError(f"{store.name} has no key {where!r}, which where names")
            where = store.arrays[where]
            if not isinstance(where, np.ndarray):
                where = where.read_slice(0, where.shape[0])
            if where.ndim != 1 or where.dtype.kind not in "bui":
                raise DataError(
                    f"{store.name}: key {self.where!r} has shape {where.shape} and dtype "
                    f"{where.dtype}; for where, it must be a vector of bools or of ints"
                )
        last = max(size - length, 0)
        if where.dtype.kind == "b":
            if len(where) not in (size, last + 1):
                raise DataError(
                    f"{store.name}: the mask of where has {len(where)} entries; it must have "
                    f"{size}, one for each place, or {last + 1}, one for each start"
                )
            starts = np.flatnonzero(where[: last + 1])
        else:
            bad = (where < 0) | (where > last)
            if bad.any():
                raise DataError(
                    f"{store.name}: where has the start {where[bad][0]}; starts must be at least 0 "
                    f"and at most {last}"
                )
            starts = where
        starts = starts[starts % step == 0] // step
        return np.array(starts[starts < n], np.int64)


register(Windows)
