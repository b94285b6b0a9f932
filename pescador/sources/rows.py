"""Rows: items along the first axis of arrays."""

import math
from typing import Any

from ..util import Seed
from .files import advise
from .source import Cut, Source, register
from .stores import Store, count_rows

__all__ = ["Rows"]


class Rows(Source):
    """A stream of rows of arrays, as ``{key: array}``.

    Parameters
    ----------
    data : mapping, path, callable, array or datasets.Dataset
        Arrays of one length: row i of the stream is row i of each. A mapping of keys to arrays, or
        to paths of files that hold one array each; a path to a file; a function that returns one
        of these when a visit begins; a single array, whose key is "data"; or a data set of Hugging
        Face, whose keys are the columns of its format.
    keys : list or None
        Which to take, in this order. None takes all.
    order : {'random', 'shuffled', 'sequential'}
        random
            Any row, with replacement, for ever.
        shuffled
            Each row once, in random order. It takes no memory, however many rows there are.
        sequential
            Each row once, in order.
    mmap : bool
        Whether files are mapped. False reads them: for files that others may write to while they
        are read, and network file systems.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        What rows are drawn with. See Notes.

    Yields
    ------
    item : dict of {key: ndarray}
        Rows of arrays that were passed are views of them, like ``X[i, ...]``. Rows of files are
        arrays of their own.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    DataError
        While iterating: if a key is missing, if arrays differ in length, have no first axis or
        hold objects, or if there is no row to draw.

    Notes
    -----
    **Seeds.** With ``random_state=s``, an int or a SeedSequence, two iterations are equal, and
    inside a mux each visit draws anew: rows are those of ::

        sequence = np.random.SeedSequence(s, spawn_key=(0, 0, *path))
        np.random.Generator(np.random.PCG64(sequence)).integers(n_rows)

    called again and again. The path has two numbers for each mux around the source, the outermost
    first: the index of the streamer in its pool, and how many visits to it came before in this
    activation of the mux. It is empty for a source that is iterated by itself.

    None draws from the global state of ``np.random`` as ``np.random.randint(n_rows)`` would. A
    RandomState or Generator is copied when the outermost mux is activated; the visits in it draw
    from the copy, one after the other, as its ``randint`` or ``integers`` would. Where a store is
    read in blocks (HDF5, Zarr, Parquet, files that are not mapped), the numbers of a block are
    drawn together.

    **Shuffled order.** Two numbers below 2**32 are drawn as above: the first plus 2**32 times the
    second is the key of a permutation. Its round keys are the first outputs of SplitMix64 seeded
    with that: 24 of them for fewer than 256 rows, else 8. Let a be the least even number whose
    square is at least the number of rows n, and b = ceil(n / a). Number i comes from the pair ``(i
    // b, i % b)``: each round adds ``(f(key + other) // 2**32) * m // 2**32``, modulo m, to the
    first and to the second of the two in turn, where m is a or b, and f the last step of
    SplitMix64, from the state to the output. A result of n or more is put through again.

    Examples
    --------
    >>> import numpy as np
    >>> data = {"X": np.arange(6).reshape(3, 2), "y": np.array([0, 1, 0])}
    >>> for item in Rows(data, order="sequential"):
    ...     print(item["X"], item["y"])
    [0 1] 0
    [2 3] 1
    [4 5] 0
    >>> labels = Rows(data, ["y"], random_state=0)
    >>> [int(item["y"]) for item in labels(max_iter=5)]
    [0, 1, 0, 0, 0]
    """

    def __init__(
        self,
        data: Any,
        keys: Any = None,
        *,
        order: str = "random",
        mmap: bool = True,
        random_state: Seed = None,
    ) -> None:
        super().__init__(data, keys, order, mmap, random_state)

    def _cut(self, store: Store) -> tuple[list[Cut], int, None]:
        n = count_rows(store)
        arrays = store.arrays.values()
        row_bytes = max(math.prod(a.shape[1:]) * a.dtype.itemsize for a in arrays)
        advise(arrays, 0 if self.order == "sequential" else row_bytes)
        cuts = [(key, array, 0, 1, -1, store.is_file) for key, array in store.arrays.items()]
        return cuts, n, None


register(Rows)
