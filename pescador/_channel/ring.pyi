from collections.abc import Callable, Iterator
from typing import Any, Literal, Self, final

from .arrivals import Arrivals
from .bell import Bell
from .memory import Arena, SharedMemory

@final
class Schema: ...

@final
class Writer:
    tag: int
    worth: int
    takes_numbers: bool
    arena: SharedMemory | None
    rows: list[int] | None
    def __new__(cls, memory: SharedMemory, wake: Callable[[], object]) -> Self: ...
    def fill(self, iterator: Iterator[Any]) -> Literal["ended", "full", "too large"]: ...
    def take_pending(self) -> Any: ...

@final
class Reader(Arrivals, Iterator[dict[Any, Any]]):
    arena: Arena | None
    layout: tuple[bytes, list[tuple[int, ...]], object] | None
    by_pipe: int
    received: int
    def __new__(cls, memory: SharedMemory, bell: Bell | None, copy: bool) -> Self: ...
    def __next__(self) -> dict[Any, Any]: ...
    def is_empty(self, awaited: int = 0, patience: int = 0) -> bool: ...
    def stop(self) -> None: ...
