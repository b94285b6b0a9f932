"""The worker of visits that run on another machine: called with orders, it returns items.

Calls are what engines such as Ray have, and what each of them costs is some hundred times what an
item costs here. So a call takes many orders, and returns a packet of what it has made of them.
"""

import pickle
import time
from collections import deque
from typing import Any

from . import packets
from .running import Beginner, Running


class _Running(Running):
    written = staticmethod(packets.pickled)


class RemoteWorker(Beginner):
    """Visits to the streams of a tree, as they are ordered.

    Parameters
    ----------
    parcel : bytes
        A `Parcel` of the tree, pickled.
    batch : int
        How many bytes a packet has, as soon as it has one item.
    """

    # What `Production` tells a writer to memory; we read `cost`.
    tag = cost = worth = 0
    running = _Running

    def __init__(self, parcel: bytes, batch: int) -> None:
        super().__init__(None)
        self.parcel = parcel
        self.batch = batch
        self.messages: deque[bytes] = deque()
        self.items = self.production(self)
        self.items.writer = self.items.memory = self

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once: messages come with the next call."""
        return True

    def load(self) -> None:
        """Load the tree: the first call. What fails here would fail in any worker."""
        [self.tree] = pickle.loads(self.parcel).open()

    def work(self, messages: list[bytes], seconds: float) -> tuple[tuple[Any, ...], int, int]:
        """Make what was ordered, until there are enough bytes, or it has taken so long.

        Parameters
        ----------
        messages : list of bytes
            Each a word of `protocol`: `RUN`, `ORDERS` or `VISIT`, and what belongs to it.
        seconds : float
            How long to go on after the first item.

        Returns
        -------
        packet : tuple
            What `packets.unpack` reads.
        size : int
            How many bytes are in it.
        cost : int
            How many nanoseconds an item takes.
        """
        self.messages.extend(messages)
        packing = packets.Packing()
        until = time.perf_counter() + seconds
        for item in self.items:
            packing.add(self.items.tag, item)
            if packing.size >= self.batch or time.perf_counter() > until:
                break
        return packing.write(), packing.size, self.cost

    def close(self) -> None:
        """Close all visits."""
        self.items.close_all()
