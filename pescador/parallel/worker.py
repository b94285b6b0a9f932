"""What a worker process of a `ParallelStreamer` does: visits, as they are ordered."""

from typing import Any

import numpy as np

from .._channel import protocol, worker
from .running import Beginner


class VisitsOf(Beginner):
    """What a worker runs in the place of a streamer: visits to the streams of a tree.

    Parameters
    ----------
    tree : Streamer or Pool
        That of `Beginner`.
    arena : SharedMemory or None
        Where the consumer may want items to be written to.
    """

    def __init__(self, tree: Any, arena: Any) -> None:
        super().__init__(tree)
        self.arena = arena

    def __pescador_serve__(self, consumer: Any, memory: Any, max_bytes: int) -> None:
        if self.arena is not None:
            self.arena.leave_blocks()
        items = self.production(consumer)
        if memory is None:
            self._serve_pipe(items, consumer, max_bytes)
        else:
            self._serve_memory(items, consumer, memory)
        items.close_all()

    def _serve_memory(self, items: Any, consumer: Any, memory: Any) -> None:
        from .._channel.orders import OrderReader
        from .._channel.ring import Writer

        items.memory = memory
        items.orders = OrderReader(memory)
        items.writer = writer = Writer(memory, consumer.wake)
        writer.arena = self.arena
        writer.takes_numbers = True
        wanted = True
        while wanted:
            why = writer.fill(items)
            if why == "full":
                wanted = consumer.wait()
            elif why == "too large":
                wanted = consumer.send(_as_arrays(writer.take_pending()), writer.tag)
            else:
                wanted = not self.is_forked() and items.wait()

    def _serve_pipe(self, items: Any, consumer: Any, max_bytes: int) -> None:
        queue = worker.Queue(consumer, max_bytes)
        try:
            while items.wait():
                for item in items:
                    written = protocol.write_item(_as_arrays(item))
                    if self.is_forked() or not queue.put(written, items.tag):
                        return
        finally:
            if not self.is_forked():
                queue.flush()


def _as_arrays(item: Any) -> Any:
    """Return what goes over the pipe, which takes arrays only, for what the memory takes."""
    if all(isinstance(value, np.ndarray) for value in item.values()):
        return item
    return protocol.news(protocol.PICKLED, item)
