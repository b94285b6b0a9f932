from collections.abc import Callable, Iterator
from typing import Any, Self, final

@final
class Production(Iterator[Any]):
    tag: int
    writer: Any
    memory: Any
    def __init__(
        self,
        consumer: Any,
        begin: Callable[..., Any],
        start_run: Callable[[tuple[Any, ...]], None],
        describe: Callable[[BaseException], Any],
        is_forked: Callable[[], bool],
    ) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def wait(self) -> bool: ...
    def close_all(self) -> None: ...
