from typing import Any, final

import numpy.typing as npt

from .._channel.memory import Arena

@final
class BatchRows:
    def __init__(
        self, arena: Arena, begins: int, size: int, columns: list[tuple[Any, tuple[int, ...]]]
    ) -> None: ...
    def place(self, number: int) -> list[int] | None: ...
    def forget(self, places: list[int]) -> None: ...
    def plan_anew(self, number: int) -> None: ...
    def array(
        self, column: int, shape: tuple[int, ...], dtype: Any, number: int
    ) -> npt.NDArray[Any]: ...
