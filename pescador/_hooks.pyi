from collections.abc import Callable, Iterator
from typing import Any

from ._core import Compiled, Scope

def register(
    cls: type,
    *more: str,
    model: Any = None,
    opener: Callable[[Any, Scope | None], Iterator[Any] | None] | None = None,
    hooked: Callable[[Any, Scope], Compiled | None] | None = None,
) -> None: ...
def is_stock(streamer: Any) -> bool: ...
def not_plain(streamers: list[Any]) -> list[Any]: ...
