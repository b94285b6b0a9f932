"""What a worker process of a `ParallelStreamer` does: visits, as they are ordered."""

import os
from typing import Any

import numpy as np

from .._channel import protocol, worker
from .production import Production
from .running import Beginner

__all__ = ["VisitsOf"]


class VisitsOf(Beginner):
    """What a worker runs in the place of a streamer: visits to the streams of a tree.

    Parameters
    ----------
    tree : Streamer or Pool
        Whose visits they are; see `placement.without_those_that_stay`.
    arena : SharedMemory or None
        Where the consumer may want items to be written to.
    """

    def __init__(self, tree: Any, arena: Any) -> None:
        super().__init__(tree)
        self.arena = arena

    def __pescador_serve__(self, consumer: Any, memory: Any, max_bytes: int) -> None:
        owner = os.getpid()
        if self.arena is not None:
            self.arena.leave_blocks()

        def is_forked() -> bool:
            return os.getpid() != owner

        production = Production(
            consumer,
            self.begin,
            self.start_run,
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
