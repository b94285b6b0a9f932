"""From files to batches in one call."""

import functools
import inspect
import os
from typing import Any

from ._checks import as_count
from .core import Streamer
from .exceptions import ArgumentError
from .maps import Allocator, buffer_stream
from .mux import StochasticMux
from .util import Seed

__all__ = ["batches"]


def batches(
    data: Any,
    batch_size: int,
    *,
    n_active: int | None = None,
    rate: float | None = 16,
    mode: str = "single_active",
    length: Any = None,
    random_state: Seed = None,
    partial: bool = False,
    reuse: bool = True,
    allocator: Allocator | None = None,
    **options: Any,
) -> Streamer[dict[Any, Any]]:
    """Stream batches of random rows, or random windows, of many files.

    A few files are open at a time. Each gives some samples, and another takes its place. It is ::

        sources = from_files(data, Rows, random_state=random_state)
        mux = StochasticMux(
            sources, n_active, rate, mode=mode, random_state=random_state
        )
        Streamer(buffer_stream, mux, batch_size)

    and goes on for ever, unless `mode` or an `order` among the options says otherwise.

    Parameters
    ----------
    data : str, PathLike, mapping, array, callable, or iterable of them
        A pattern such as ``"features/*.npz"``, whose files are taken in natural order; a list of
        paths; or what `pescador.sources.Rows` reads, a mapping of arrays say, or a list of such.
    batch_size : int > 0
        How many samples make a batch.
    n_active : int > 0 or None
        How many files are open at a time. None is 32, or all if they are fewer.
    rate : float > 0 or None
        How many samples a file gives, on average, before another takes its place. None reads each
        to its end, which ``order="sequential"`` needs. Random rows have no end.
    mode : {'single_active', 'with_replacement', 'exhaustive'}
        See `StochasticMux`. With ``exhaustive``, each file is opened once, for `rate` samples. For
        each row once, pass ``rate=None`` and ``order="shuffled"``.
    length : int, mapping or None
        The length of windows, see `pescador.sources.Windows`; None for rows.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        What the mux and the sources draw with. With a seed, two iterations are equal.
    partial : bool
        Whether the samples left over at the end, if there is an end, make a smaller batch.
    reuse, allocator
        See `buffer_stream`.
    **options
        As `pescador.sources.Rows` takes them or, with `length`, `Windows`: ``keys``,
        ``order``, ``mmap``, ...

    Returns
    -------
    streamer : Streamer of dict of {key: ndarray}
        Batches of shape ``(batch_size, *shape)`` for samples of shape ``shape``.

    Raises
    ------
    ArgumentError
        If there is no such file, or an argument is invalid.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> for i in range(3):
    ...     X, y = np.full((9, 4), i), np.full(9, i)
    ...     np.savez(f"{folder}/{i}.npz", X=X, y=y)
    >>> stream = batches(f"{folder}/*.npz", 8, rate=4, random_state=0)
    >>> for batch in stream(max_iter=2):
    ...     print(batch["X"].shape, batch["y"])
    (8, 4) [2 0 0 2 1 1 1 2]
    (8, 4) [2 0 0 1 2 0 0 1]
    """
    batch_size = as_count("batch_size", batch_size)
    source = _source(length, options)
    pool = [source(one, random_state=random_state, **options) for one in _pieces(data)]
    if n_active is None:
        n_active = min(32, len(pool))
    order = options.get("order", "random")
    if rate is None and order == "random" and n_active < len(pool):
        raise ArgumentError(
            f"rate=None would draw from {n_active} of {len(pool)} files for ever: random rows have "
            "no end; give a rate, or order='shuffled'"
        )
    if rate is not None and order == "sequential":
        raise ArgumentError(
            f"rate={rate!r} with order='sequential' would begin each file at its first row again "
            "and never reach its last; rate=None takes files to their end"
        )
    mux: StochasticMux[Any] = StochasticMux(
        pool, n_active, rate, mode=mode, random_state=random_state
    )
    chosen = {"partial": bool(partial), "reuse": bool(reuse), "allocator": allocator}
    defaults = inspect.signature(buffer_stream).parameters
    # They are left out, so that the printed tree is short.
    chosen = {name: value for name, value in chosen.items() if value is not defaults[name].default}
    return Streamer(buffer_stream, mux, batch_size, **chosen)


def _source(length: Any, options: dict[str, Any]) -> Any:
    """Return what makes a source; refuse options that it does not have, before it does."""
    # Not at the top: who makes no batches of files needs nothing of it.
    from .sources import Rows, Windows

    rows, windows = (
        set(inspect.signature(source).parameters) - {"data"} for source in (Rows, Windows)
    )
    for name, value in options.items():
        if name not in rows | windows:
            raise TypeError(f"batches() got an unexpected keyword argument {name!r}")
        if length is None and name not in rows:
            raise ArgumentError(f"{name}={value!r:.100} is of windows, which need a length")
    return Rows if length is None else functools.partial(Windows, length=length)


def _pieces(data: Any) -> list[Any]:
    """Return what each source is to read."""
    if isinstance(data, str | os.PathLike):
        from .sources.pool import files

        return list(files(data))
    if callable(data) or any(hasattr(data, name) for name in ("keys", "dtype")):
        return [data]
    try:
        if isinstance(data, bytes):
            raise TypeError("a path of text is needed")
        pieces = list(data)
    except TypeError:
        raise ArgumentError(
            f"data={data!r:.200} must be a pattern of paths, what a source reads, or a list of such"
        ) from None
    if not pieces:
        raise ArgumentError("data=[] is empty: there is nothing to read")
    return pieces
