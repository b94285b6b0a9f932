"""The worker of visits that run on another machine: called with orders, it returns items.

Calls are what engines such as Ray have, and what each of them costs is some hundred times what an
item costs here. So a call takes many orders, and returns a packet of what it has made of them.
"""

import os
import pickle
import time
from collections import deque
from contextlib import suppress
from typing import Any

from .._channel import worker
from ..exceptions import PescadorError
from . import packets
from .production import Production
from .running import Beginner, Running

__all__ = ["RemoteWorker"]


class _Running(Running):
    def pickled(self, item: Any) -> dict[Any, Any]:
        try:
            return packets.pickled(item)
        except Exception as error:
            with suppress(Exception):
                return packets.pickled_by_value(item)
            raise PescadorError(
                f"an item of type {type(item).__qualname__} cannot be sent from a worker "
                f"({error}); kind='thread' sends nothing"
            ) from error


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
        owner = os.getpid()
        self.production = Production(
            self,
            self.begin,
            self.start_run,
            lambda error: worker.describe(error, by_value=True),
            lambda: os.getpid() != owner,
        )
        self.production.writer = self.production.memory = self

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
        for item in self.production:
            packing.add(self.production.tag, item)
            if packing.size >= self.batch or time.perf_counter() > until:
                break
        return packing.write(), packing.size, self.cost

    def close(self) -> None:
        """Close all visits."""
        self.production.close_all()
