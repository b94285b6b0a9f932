import sys
from typing import Any, Self, final

@final
class Snapshots:
    def __new__(cls) -> Self: ...

@final
class Snapshot:
    def __new__(cls, array: Any) -> Self: ...

@final
class Map:
    def __new__(cls, snapshot: Snapshot) -> Self: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Usage:
    def __new__(cls, array: Any) -> Self: ...

def set_large(n_bytes: int) -> int: ...
