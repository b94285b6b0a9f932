from typing import Any, final

import numpy.typing as npt

@final
class Placed:
    def expect(self, row: int) -> int: ...
    def forget(self, row: int) -> int: ...

@final
class BatchRows:
    layout: tuple[bytes, list[tuple[int, ...]], object]
    room: int
    def __init__(
        self, arena: Any, begins: int, size: int, columns: list[tuple[Any, Any, Any, type]]
    ) -> None: ...
    def place(self, number: int, given: int) -> Placed | None: ...
    def waits(self, number: int, given: int) -> bool: ...
    def array(
        self, column: int, shape: tuple[int, ...], dtype: Any, number: int
    ) -> npt.NDArray[Any]: ...
