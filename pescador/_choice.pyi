from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

def exact_decisions() -> int: ...
def nodes_summed() -> int: ...
def sums_of(
    values: npt.ArrayLike, changes: Iterable[tuple[int, float]], draws: Sequence[float]
) -> list[tuple[float, list[int]]]: ...
def pool_after(
    n: int,
    changes: Iterable[tuple[int, bool, int, Sequence[float]]],
    restored_after: int | None = None,
) -> tuple[list[list[int]], npt.NDArray[np.float64]]: ...
