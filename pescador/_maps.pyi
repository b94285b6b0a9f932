from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")

class Tuples(Iterator[tuple[Any, ...]]):
    def __init__(self, source: Iterable[Any], keys: tuple[Any, ...]) -> None: ...
    def __next__(self) -> tuple[Any, ...]: ...

class InputsOutputs(Iterator[tuple[Any, Any]]):
    def __init__(
        self,
        source: Iterable[Any],
        inputs: str | tuple[Any, ...] | None,
        outputs: str | tuple[Any, ...] | None,
    ) -> None: ...
    def __next__(self) -> tuple[Any, Any]: ...

class Cached(Iterator[_T]):
    def __init__(
        self,
        source: Iterable[_T],
        size: int,
        prob: float,
        rng: Any,
    ) -> None: ...
    def __next__(self) -> _T: ...
