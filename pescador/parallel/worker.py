"""What a worker process of a `ParallelStreamer` does: visits, as they are ordered."""

import os
from typing import Any

import numpy as np

from .. import _visits
from .._channel import protocol, worker
from ..exceptions import PescadorError
from .production import Production
from .running import Running, streamer_at

__all__ = ["VisitsOf"]


class VisitsOf:
    """What a worker runs in the place of a streamer: visits to the streams of a tree.

    Parameters
    ----------
    tree : Streamer or Pool
        Whose visits they are; see `placement.without_those_that_stay`.
    arena : SharedMemory or None
        Where the consumer may want items to be written to.
    """

    def __init__(self, tree: Any, arena: Any) -> None:
        self.tree = tree
        self.arena = arena
        self.run: Any = None

    def _start_run(self, run: tuple[Any, ...]) -> None:
        self.run = _visits.Run(*run)

    def _begin(self, path: tuple[int, ...], bound: int, base: Any, skip: int) -> Running:
        streamer = streamer_at(self.tree, path)
        if streamer is None:
            raise PescadorError(
                f"{_visits.place_of(path)}the stream was changed after the workers were started, "
                "which could not run it then: leave keep_workers at False to start others"
            )
        return Running(self.run, streamer, path, bound, base, skip)

    def __pescador_serve__(self, consumer: Any, memory: Any, max_bytes: int) -> None:
        owner = os.getpid()
        if self.arena is not None:
            self.arena.leave_blocks()

        def is_forked() -> bool:
            return os.getpid() != owner

        production = Production(
            consumer,
            self._begin,
            self._start_run,
            lambda error: worker.describe(error, by_value=True),
            is_forked,
        )
        if memory is None:
            _serve_pipe(production, consumer, max_bytes, is_forked)
        else:
            _serve_memory(production, consumer, memory, self.arena, is_forked)
        production.close_all()


def _serve_memory(production: Any, consumer: Any, memory: Any, arena: Any, is_forked: Any) -> None:
    from .._channel.orders import OrderReader
    from .._channel.ring import Writer

    production.memory = memory
    production.orders = OrderReader(memory)
    production.writer = writer = Writer(memory, consumer.wake)
    writer.arena = arena
    writer.takes_numbers = True
    wanted = True
    while wanted:
        why = writer.fill(production)
        if why == "full":
            wanted = consumer.wait()
        elif why == "too large":
            wanted = consumer.send(_as_arrays(writer.take_pending()), writer.tag)
        else:
            wanted = not is_forked() and production.wait()


def _serve_pipe(production: Any, consumer: Any, max_bytes: int, is_forked: Any) -> None:
    queue = worker.Queue(consumer, max_bytes)
    try:
        while production.wait():
            for item in production:
                written = protocol.write_item(_as_arrays(item))
                if is_forked() or not queue.put(written, production.tag):
                    return
    finally:
        if not is_forked():
            queue.flush()


def _as_arrays(item: Any) -> Any:
    """Return what goes over the pipe, which takes arrays only, for what the memory takes."""
    if all(isinstance(value, np.ndarray) for value in item.values()):
        return item
    return protocol.news(protocol.PICKLED, item)
