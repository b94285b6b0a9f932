from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")

def use_layouts(wanted: bool = True) -> bool: ...
def put_numpy(bits: object, gauss: float | None) -> int: ...
def runs_under(
    sequence: np.random.SeedSequence,
    function: Callable[[], _T],
    governed: tuple[str, ...] = ("numpy", "random"),
) -> Iterator[_T]: ...
