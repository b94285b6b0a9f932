from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, final

AVAILABLE: bool
FORKED: str

def is_masked(value: Any) -> bool: ...

@final
@final
class Memory:
    max_bytes: int
    def __new__(cls, max_bytes: int, descriptor: int = -1) -> Self: ...
    def fileno(self) -> int: ...
    def close(self) -> Self: ...

@final
@final
class Heap:
    size: int
    used: int
    blocks: int
    def __new__(cls, size: int) -> Self: ...
    def take(self, size: int) -> int: ...
    def give(self, number: int) -> Self: ...
    def pieces(self) -> list[tuple[int, int, int | None]]: ...

@final
@final
class Loans:
    held: int
    blocks: int
    def __new__(cls, memory: Memory) -> Self: ...
    def stop(self) -> Self: ...
    def close(self) -> None: ...

@final
@final
class Schema:
    code: bytes
    keys: list[Any]
    dtypes: list[Any]
    def __init__(self, code: bytes, keys: list[Any], dtypes: list[Any]) -> None: ...

@final
@final
class Writer:
    sent: int
    def __new__(
        cls,
        memory: Memory,
        schema_of: Callable[[Any], Schema],
        wait: Callable[[], bool],
        wake: Callable[[], None],
        send_elsewhere: Callable[[Any], bool],
    ) -> Self: ...
    def send_all(self, stream: Iterable[Any]) -> Self: ...

@final
@final
class Reader(Iterator[dict[Any, Any]]):
    received: int
    def __new__(
        cls,
        loans: Loans,
        schema_from: Callable[[bytes], Schema],
        wake: Callable[[], None],
        copy: bool,
    ) -> Self: ...
    def __next__(self) -> dict[Any, Any]: ...
    def sleep(self) -> bool: ...
