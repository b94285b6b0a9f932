from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

class Batches(Iterator[dict[Any, npt.NDArray[Any]]]):
    def __init__(
        self,
        source: Iterable[Any],
        size: int,
        partial: bool = False,
        axis: int | None = None,
        *,
        reuse: bool = False,
        allocator: Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]] | None = None,
    ) -> None: ...
    def __next__(self) -> dict[Any, npt.NDArray[Any]]: ...
