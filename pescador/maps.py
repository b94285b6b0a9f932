"""Maps: functions of a stream that give another stream, item by item or batch by batch.

A map is a generator function: it takes any iterable (a `Streamer`, a mux, a generator) and is
itself something that ``Streamer(map, stream, ...)`` can restart. As with every generator, its
arguments are checked when the first item is asked for.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from . import _batches, _core, _maps
from ._checks import as_count, as_index, as_keys, is_number
from ._repr import Mark
from .exceptions import ArgumentError
from .exceptions import DataError as DataError
from .exceptions import PescadorError as PescadorError
from .util import Seed, get_rng

__all__ = ["SKIP", "buffer_stream", "cache", "keras_tuples", "transform", "tuples"]

T = TypeVar("T")
#: Where the arrays of batches come from: ``(shape, dtype) -> ndarray``.
Allocator: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]


def __stack_data(data: list[Any], axis: int | None) -> dict[Any, Any]:
    """Join a list of data objects into one; kept for those who import it."""
    return next(_batches.Batches(data, len(data) or 1, False, axis))


def _opened(stream: Iterable[T]) -> "_core.Opened[T]":
    """Check that a stream can be iterated; the ``with`` block of the result does it.

    Callers then delete their `stream`: the traceback of an error keeps their frames, which would
    keep the stream open.
    """
    if not (isinstance(stream, Iterable) or hasattr(type(stream), "__getitem__")):
        raise ArgumentError(f"stream={stream!r} must be an iterable, such as a Streamer")
    return _core.reading(stream)


def buffer_stream(
    stream: Iterable[Any],
    buffer_size: float,
    partial: bool = False,
    axis: int | None = None,
    *,
    reuse: bool = True,
    allocator: Allocator | None = None,
) -> Generator[dict[Any, Any], None, None]:
    """Collect the items of a stream into batches.

    Each value is copied to its place in the batch when its item arrives, and released: a generator
    may write the next item into the same arrays, and no more than one batch and one item are in
    memory. The result is what NumPy makes of all the values.

    Parameters
    ----------
    stream : iterable of dict
        Items ``{key: array}``. The first item of a batch says which keys the batch has; what
        others have besides is ignored.
    buffer_size : int > 0
        How many items make a batch.
    partial : bool
        Whether the items left over at the end make a smaller batch, or are dropped.
    axis : int or None
        None stacks the values along a new first axis, as ``np.array([...])``. A number joins
        them along that axis, as ``np.concatenate``: for items that are small batches already.
    reuse : bool
        Whether a large batch (from a megabyte a key) may be written into the memory of an earlier
        one. It is only when nothing refers to that memory any more: no array, view, memoryview,
        tensor or DLPack capsule, in any thread.
    allocator : callable or None
        ``(shape, dtype) -> ndarray``, where the memory of batches comes from: pages locked for
        a GPU, huge pages, shared memory. The array must be writeable and C-contiguous, of that
        shape and dtype; batches are views of it. It is called where no earlier memory can be used.
        Arrays of Python objects are allocated by NumPy.

    Yields
    ------
    batch : dict of {key: ndarray}
        With ``axis=None``, values of shape ``(buffer_size, *shape)`` for items of shape
        ``shape``, of the type that NumPy gives to such a list: numbers beside text become text.

    Raises
    ------
    ArgumentError
        If an argument is invalid, or the allocator returns something else than it should. At the
        first row of a source, if a batch of such rows is larger than the memory of the machine.
    DataError
        If an item is not a mapping of keys to values: as soon as it arrives, with its type and
        position. If an item of a source lacks a key of its batch, or cannot be joined to the
        others for its shape: the source is named.
    KeyError
        If any other item lacks a key of the first item of its batch.

    Notes
    -----
    Code that keeps only an address is not noticed. While a copy to a GPU goes on in the background
    (``non_blocking=True``), hold the batch, or pass ``reuse=False``.

    Along an axis, the size of a batch is not known beforehand: an allocator may be asked for a
    larger array, of which the batch is a part.

    Examples
    --------
    >>> from pescador import Streamer
    >>> def squares():
    ...     for i in range(5):
    ...         yield {"x": np.array([i]), "y": np.array([i * i])}
    >>> for batch in buffer_stream(Streamer(squares), 2):
    ...     print(batch["x"].tolist(), batch["y"].tolist())
    [[0], [1]] [[0], [1]]
    [[2], [3]] [[4], [9]]

    Along the axis that is there already, with what is left at the end:

    >>> source = Streamer(squares)
    >>> for batch in buffer_stream(source, 2, partial=True, axis=0):
    ...     print(batch["x"], batch["y"])
    [0 1] [0 1]
    [2 3] [4 9]
    [4] [16]
    """
    opened, join = _opened(stream), _joining(buffer_size, partial, axis, reuse, allocator)
    del stream  # see _opened
    with opened as items:
        yield from join(items)


def _joining(
    buffer_size: float,
    partial: bool = False,
    axis: int | None = None,
    reuse: bool = True,
    allocator: Allocator | None = None,
) -> Callable[[Iterable[Any]], _batches.Batches]:
    """Check the arguments of `buffer_stream`; return what turns items into batches."""
    if isinstance(buffer_size, float) and buffer_size.is_integer():
        # A quotient, such as 1024 / 16, is a float.
        buffer_size = int(buffer_size)
    size = as_count("buffer_size", buffer_size)
    if axis is not None:
        axis = as_index("axis", axis, " or None")
    if not (allocator is None or callable(allocator)):
        raise ArgumentError(
            f"allocator={allocator!r} must be None or a callable (shape, dtype) -> ndarray"
        )
    return lambda items: _batches.Batches(
        items, size, partial, axis, reuse=bool(reuse), allocator=allocator
    )


def tuples(stream: Iterable[Any], *keys: Any) -> Generator[tuple[Any, ...], None, None]:
    """Turn data objects into tuples.

    Parameters
    ----------
    stream : iterable of dict
        Items ``{key: array}``.
    *keys : hashable
        The keys to take, in this order; at least one.

    Yields
    ------
    item : tuple of ndarray
        One value per key.

    Raises
    ------
    ArgumentError
        If there are no keys.
    DataError
        If an item is not a mapping of keys to values.
    KeyError
        If an item lacks a key.

    Examples
    --------
    >>> list(tuples([{"x": 1, "y": 2}, {"x": 3, "y": 4}], "y", "x"))
    [(2, 1), (4, 3)]
    """
    opened, select = _opened(stream), _selecting(*keys)
    del stream  # see _opened
    with opened as items:
        yield from select(items)


def _selecting(*keys: Any) -> Callable[[Iterable[Any]], _maps.Tuples]:
    """Check the arguments of `tuples`; return what turns items into tuples."""
    if not keys:
        raise ArgumentError("keys=() is empty; tuples needs at least one key")
    return lambda items: _maps.Tuples(items, keys)


def keras_tuples(
    stream: Iterable[Any],
    inputs: str | Iterable[Any] | None = None,
    outputs: str | Iterable[Any] | None = None,
) -> Generator[tuple[Any, Any], None, None]:
    """Turn data objects into the pairs ``(x, y)`` that Keras models train on.

    Parameters
    ----------
    stream : iterable of dict
        Items ``{key: array}``.
    inputs, outputs : str, iterable of keys, or None
        Which values make x and y. At least one of the two is needed.

    Yields
    ------
    x, y : ndarray, list of ndarray, or None
        A single array where a str was given, a list of arrays for an iterable of keys, None for
        None.

    Raises
    ------
    ArgumentError
        If neither `inputs` nor `outputs` names a key.
    DataError
        If an item is not a mapping of keys to values.
    KeyError
        If an item lacks a key.

    Examples
    --------
    >>> next(keras_tuples([{"X": 1, "Y": 2}], inputs="X", outputs=["Y"]))
    (1, [2])
    """
    opened, pair = _opened(stream), _pairing(inputs, outputs)
    del stream  # see _opened
    with opened as items:
        yield from pair(items)


def _pairing(
    inputs: str | Iterable[Any] | None = None, outputs: str | Iterable[Any] | None = None
) -> Callable[[Iterable[Any]], _maps.InputsOutputs]:
    """Check the arguments of `keras_tuples`; return what turns items into pairs."""
    x, y = as_keys("inputs", inputs), as_keys("outputs", outputs)
    if x is None and y is None:
        raise ArgumentError(
            f"inputs={inputs!r} and outputs={outputs!r} name no key; keras_tuples needs one"
        )
    return lambda items: _maps.InputsOutputs(items, x, y)


def cache(
    stream: Iterable[T], n_cache: int, prob: float = 0.5, random_state: Seed = None
) -> Generator[T, None, None]:
    """Mix new items of a stream with items seen before.

    The first `n_cache` items come as they are, and fill the cache. From then on, one place in it
    is picked at random for each item: with probability `prob` a new item of the stream takes
    that place, and the item that is there then is yielded. This makes streams cheaper whose
    items are costly to make; the shares of items differ from the stream's.

    Parameters
    ----------
    stream : iterable
        Where new items come from. The cached stream ends when a new item is due and there is
        none.
    n_cache : int > 0
        How many items are kept.
    prob : float in (0, 1]
        The probability of a new item. At 1, nothing is repeated.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`.

    Yields
    ------
    item : object
        Items of `stream`.

    Raises
    ------
    ArgumentError
        If an argument is invalid.

    Examples
    --------
    >>> list(cache(range(6), 2, prob=0.5, random_state=0))
    [0, 1, 0, 0, 1, 1, 2, 2, 3, 1, 4, 5, 5, 4]
    """
    opened, mix = _opened(stream), _caching(n_cache, prob, random_state)
    del stream  # see _opened
    with opened as items:
        yield from mix(items)


def _caching(
    n_cache: int, prob: float = 0.5, random_state: Seed = None
) -> Callable[[Iterable[T]], "_maps.Cached[T]"]:
    """Check the arguments of `cache`; return what mixes items with those seen before."""
    size = as_count("n_cache", n_cache)
    if not (is_number(prob) and 0 < prob <= 1):
        raise ArgumentError(f"prob={prob!r} must be a number above 0 and at most 1")
    rng = get_rng(random_state)
    return lambda items: _maps.Cached(items, size, prob, rng)


#: What the function of `transform` returns to drop an item.
SKIP = Mark("SKIP")


def transform(stream: Iterable[T], function: Callable[[T], Any]) -> Generator[Any, None, None]:
    """Apply a function to each item of a stream.

    Parameters
    ----------
    stream : iterable
        Where the items come from.
    function : callable
        It is given an item, and returns another, or `pescador.SKIP` to drop it.

    Yields
    ------
    item : object
        What `function` returns.

    Raises
    ------
    ArgumentError
        If an argument is invalid.

    Notes
    -----
    A generator function of one's own can do as much. Of this one it is known that an item that
    comes out depends on one item that went in and nothing else: the state of an open stream is
    that of its source, however long the run has been.

    Examples
    --------
    >>> list(transform(range(6), lambda i: SKIP if i % 2 else i * i))
    [0, 4, 16]
    """
    opened, apply = _opened(stream), _applying(function)
    del stream  # see _opened
    with opened as items:
        yield from apply(items)


def _applying(function: Callable[[T], Any]) -> Callable[[Iterable[T]], _maps.Transformed]:
    """Check the argument of `transform`; return what applies it to items."""
    if not callable(function):
        raise ArgumentError(f"function={function!r} must be a function of an item")
    return lambda items: _maps.Transformed(items, function, SKIP)


for _function, _make in (
    (buffer_stream, _joining),
    (tuples, _selecting),
    (keras_tuples, _pairing),
    (cache, _caching),
    (transform, _applying),
):
    _core.register_map(_function, _make)
