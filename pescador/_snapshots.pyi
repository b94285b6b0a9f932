from typing import Any, Self, final

@final
class Snapshots:
    def __new__(cls) -> Self: ...

@final
@final
class Snapshot:
    def __new__(cls, array: Any) -> Self: ...

@final
@final
class Map:
    def __new__(cls, snapshot: Snapshot) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
@final
class Usage:
    def __new__(cls, array: Any) -> Self: ...

def set_large(n_bytes: int) -> int: ...
