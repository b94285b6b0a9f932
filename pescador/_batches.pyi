from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

@final
class Batches(Iterator[dict[Any, npt.NDArray[Any]]]):
    def __new__(
        cls,
        source: Iterable[Any],
        size: int,
        partial: bool = False,
        axis: int | None = None,
        *,
        reuse: bool = False,
        allocator: Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]] | None = None,
    ) -> Self: ...
    def __next__(self) -> dict[Any, npt.NDArray[Any]]: ...
