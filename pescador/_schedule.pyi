from collections.abc import Callable
from typing import Any, Self, final

from ._core import Compiled, Scope
from ._visits import Elsewhere, Run

class Maker:
    owner: Any
    outstanding: int
    def __init__(self, owner: Any = None) -> None: ...
    def open(self, visit: Visit) -> object: ...
    def more(self, visit: Visit) -> object: ...
    def close(self, visit: Visit, finishes: bool) -> object: ...
    def flush(self) -> object: ...

@final
class Visit:
    streamer: Any
    path: tuple[int, ...]
    bound: int
    given: int
    arrived: int
    ordered: int
    length: int
    error: Any
    maker: Any
    number: int
    base: Any
    base_at: int
    def __new__(cls, streamer: Any, path: tuple[int, ...], bound: int) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def skip(self) -> int: ...

class Schedule(Elsewhere):
    run: Run
    n_restarts: int
    n_taken: int
    n_opened: int
    n_in_vain: int
    n_wrong: int
    n_waits: int
    seconds_waited: float
    def __init__(
        self,
        run: Run,
        pool: Any,
        stays: Callable[[Any], str | None],
        length_of: Callable[[Any], int | None],
        read_ahead: int,
        open_ahead: int,
        max_bytes: int,
    ) -> None: ...
    def root(self, streamer: Any, scope: Scope) -> Compiled: ...
    def receive(self, number: int, item: Any, size: int) -> Visit | None: ...
    def receive_end(self, number: int, error: Any = None) -> None: ...
    def receive_state(self, number: int, state: Any) -> None: ...
    def visits_at(self, maker: Maker) -> list[Visit]: ...
    def begin_again(self, visits: list[Visit]) -> None: ...
    def plan_ahead(self, run: Run, start: Callable[[], Compiled]) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...

class Begun(Compiled):
    node: Any
    path: tuple[int, ...]
    def __next__(self) -> Any: ...

class Orders(Maker):
    cost: int
    def __init__(
        self,
        owner: Any,
        send: Callable[[bytes], object],
        send_visit: Callable[[Visit], object],
    ) -> None: ...

def is_mux(streamer: Any) -> bool: ...
def receive_all(schedule: Schedule, reader: Any, tell: Callable[..., object]) -> int: ...
