"""From files to batches in one call."""

import functools
from typing import Any

from .core import Streamer
from .maps import Allocator, buffer_stream
from .mux import StochasticMux
from .sources import Rows, Windows
from .sources.pool import files
from .util import Seed, as_count

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
    data : str, PathLike, mapping, or iterable
        A pattern such as ``"features/*.npz"``, whose files are taken in natural order; a list of
        paths; a mapping of arrays, or a list of them, as `pescador.sources.Rows` reads.
    batch_size : int > 0
        How many samples make a batch.
    n_active : int > 0 or None
        How many files are open at a time. None is 32, or all if they are fewer.
    rate : float > 0 or None
        How many samples a file gives, on average, before another takes its place. None takes each
        to its end; rows in random order have none.
    mode : {'single_active', 'with_replacement', 'exhaustive'}
        See `StochasticMux`.
    length : int, mapping or None
        The length of windows, see `pescador.sources.Windows`; None for rows.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        What the mux and the sources draw with. With a seed, two iterations are equal.
    partial : bool
        Whether what is left over at the end, if there is one, makes a smaller batch.
    reuse, allocator
        See `buffer_stream`.
    **options
        Of `pescador.sources.Rows` or, with `length`, of `pescador.sources.Windows`: ``keys``,
        ``order``, ``mmap``, ...

    Returns
    -------
    streamer : Streamer of dict of {key: ndarray}
        Batches of shape ``(batch_size, *shape)`` for samples of shape ``shape``.

    Raises
    ------
    PescadorError
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
    source: Any = Rows
    if length is not None:
        source = functools.partial(Windows, length=length)
    if _is_mapping(data):
        data = [data]
    elif not (isinstance(data, list | tuple) and any(map(_is_mapping, data))):
        data = files(data)
    pool = [source(one, random_state=random_state, **options) for one in data]
    if n_active is None:
        n_active = min(32, len(pool))
    mux: StochasticMux[Any] = StochasticMux(
        pool, n_active, rate, mode=mode, random_state=random_state
    )
    # Only what was chosen, as the tree that is printed shows it.
    chosen: dict[str, Any] = {}
    if partial:
        chosen["partial"] = True
    if not reuse:
        chosen["reuse"] = False
    if allocator is not None:
        chosen["allocator"] = allocator
    return Streamer(buffer_stream, mux, batch_size, **chosen)


def _is_mapping(data: Any) -> bool:
    return hasattr(data, "keys")
