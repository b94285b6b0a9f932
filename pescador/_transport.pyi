from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

AVAILABLE: bool
FORKED: str

def is_masked(value: Any) -> bool: ...

@final
class Memory:
    max_bytes: int
    def __init__(self, max_bytes: int, descriptor: int = -1) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...

@final
class Heap:
    size: int
    used: int
    blocks: int
    def __init__(self, size: int) -> None: ...
    def take(self, size: int) -> int: ...
    def give(self, number: int) -> None: ...
    def pieces(self) -> list[tuple[int, int, int | None]]: ...

@final
class Loans:
    held: int
    blocks: int
    def __init__(self, memory: Memory) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...

@final
class Schema:
    code: bytes
    keys: list[Any]
    dtypes: list[Any]
    def __init__(self, code: bytes, keys: list[Any], dtypes: list[Any]) -> None: ...

@final
class Writer:
    sent: int
    def __init__(
        self,
        memory: Memory,
        schema_of: Callable[[Any], Schema],
        wait: Callable[[], bool],
        wake: Callable[[], None],
        send_elsewhere: Callable[[Any], bool],
    ) -> None: ...
    def send_all(self, stream: Iterable[Any]) -> None: ...

@final
class Reader(Iterator[dict[Any, Any]]):
    received: int
    def __init__(
        self,
        loans: Loans,
        schema_from: Callable[[bytes], Schema],
        wake: Callable[[], None],
        copy: bool,
    ) -> None: ...
    def __next__(self) -> dict[Any, Any]: ...
    def sleep(self) -> bool: ...
