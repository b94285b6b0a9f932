from typing import Any, final

import numpy as np
import numpy.typing as npt

@final
class Uniform:
    generator: Any
    def __init__(self, generator: Any) -> None: ...

@final
class Categorical:
    def __init__(self, k: int) -> None: ...

@final
class Pool:
    def __init__(self, n: int) -> None: ...
    @property
    def distribution(self) -> npt.NDArray[np.float64]: ...

@final
class Counts:
    def __init__(self, uniform: Uniform, mean: float) -> None: ...

def glances_at(generator: Any, n_draws: int, later: int) -> list[float]: ...
def counts_of(
    generator: Any,
    n_draws: int,
    mean: float | None = None,
    n: float | None = None,
    p: float | None = None,
) -> list[int]: ...
def close_calls() -> int: ...
def sum_of(values: npt.ArrayLike) -> float: ...
def repeated_sum_of(v: float, n: int) -> float: ...
