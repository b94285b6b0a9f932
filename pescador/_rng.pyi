from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

BIT_GENERATORS: frozenset[type[np.random.BitGenerator]]

@final
@final
class Uniform:
    generator: Any
    def __new__(cls, generator: Any, shared: bool = False) -> Self: ...

@final
@final
class Sums:
    def __new__(cls, n: int) -> Self: ...

@final
@final
class Counts:
    def __new__(cls, uniform: Uniform, mean: float) -> Self: ...

def peeks_at(generator: Any, n_draws: int, later: int) -> list[float]: ...
def counts_of(
    generator: Any,
    n_draws: int,
    mean: float | None = None,
    n: float | None = None,
    p: float | None = None,
) -> list[int]: ...
def as_index(value: Any, n: int, method: Any) -> int: ...
def drawn_count(method: Any, args: tuple[Any, ...]) -> int: ...
def are_weights(values: Any, n: int) -> bool: ...
def sum_of(values: npt.ArrayLike) -> float: ...
def repeated_sum_of(v: float, n: int) -> float: ...
