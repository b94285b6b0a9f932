from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

_T = TypeVar("_T")

class Tuples(Iterator[tuple[Any, ...]]):
    def __new__(cls, source: Iterable[Any], keys: tuple[Any, ...]) -> Self: ...
    def __next__(self) -> tuple[Any, ...]: ...

class InputsOutputs(Iterator[tuple[Any, Any]]):
    def __new__(
        cls,
        source: Iterable[Any],
        inputs: str | tuple[Any, ...] | None,
        outputs: str | tuple[Any, ...] | None,
    ) -> Self: ...
    def __next__(self) -> tuple[Any, Any]: ...

class Transformed(Iterator[Any]):
    def __new__(cls, source: Iterable[Any], function: Any, skip: Any) -> Self: ...
    def __next__(self) -> Any: ...

class Cached(Iterator[_T]):
    def __new__(
        cls,
        source: Iterable[_T],
        size: int,
        prob: float,
        rng: Any,
    ) -> Self: ...
    def __next__(self) -> _T: ...
