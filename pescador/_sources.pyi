from collections.abc import Iterator
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from ._core import Scope

@final
class Table:
    def __new__(
        cls,
        store: Any,
        cuts: list[tuple[Any, Any, int, int, int, bool]],
        n: int,
        starts: npt.NDArray[np.int64] | None,
    ) -> Self: ...

@final
class Visit(Iterator[Any]):
    def bounded(self, max_iter: float | None) -> Self: ...
    def __next__(self) -> Any: ...

@final
class Plan:
    def __new__(cls, source: Any, rng: Any) -> Self: ...
    def remember(self, table: Table, stamp: Any) -> Self: ...
    def start(self, scope: Scope | None) -> Visit: ...

def permutation_of(n: int, key: int) -> list[int]: ...
