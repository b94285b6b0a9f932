from typing import Any, final

@final
class Snapshots:
    def __init__(self) -> None: ...

@final
class Snapshot:
    def __init__(self, array: Any) -> None: ...

@final
class Map:
    def __init__(self, snapshot: Snapshot) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Usage:
    def __init__(self, array: Any) -> None: ...

def set_large(n_bytes: int) -> int: ...
