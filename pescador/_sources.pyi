from collections.abc import Iterator
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from ._core import Scope

@final
class Table:
    def __init__(
        self,
        store: Any,
        cuts: list[tuple[Any, Any, int, int, int, bool]],
        n: int,
        starts: npt.NDArray[np.int64] | None,
    ) -> None: ...

@final
class Visit(Iterator[Any]):
    def bounded(self, max_iter: float | None) -> Self: ...
    def __next__(self) -> Any: ...

@final
class Plan:
    def __init__(self, source: Any, rng: Any) -> None: ...
    def remember(self, table: Table, stamp: Any) -> None: ...
    def start(self, scope: Scope | None) -> Visit: ...

def permutation_of(n: int, key: int) -> list[int]: ...
