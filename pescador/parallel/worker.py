"""What a worker process does: visits, as they are ordered."""

import os
import pickle
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np

from .. import _visits
from .._channel import protocol, worker
from .._channel.protocol import BITS, ORDERS, VISIT, news
from ..exceptions import PescadorError
from .running import Running, streamer_at

__all__ = ["Production"]

# How often (in seconds) a worker that is busy looks for messages.
_LOOK = 0.005

# So much work (in seconds) is worth that the consumer wakes.
_WORTH = 5e-5

# What items of numbers are made of: dtypes that are sent as they are.
_KINDS = frozenset("biufcSUmM")


class Production:
    """What a worker runs in the place of a streamer.

    Parameters
    ----------
    tree : Streamer
        Whose visits it runs.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def __repr__(self) -> str:
        return repr(self.tree)

    def __pescador_serve__(self, consumer: Any, memory: Any, max_bytes: int) -> None:
        orders = _Orders(self.tree, consumer, memory)
        if memory is None:
            _serve_pipe(orders, consumer, max_bytes)
        else:
            _serve_memory(orders, consumer, memory)
        orders.close_all()


def _serve_memory(orders: "_Orders", consumer: Any, memory: Any) -> None:
    from .._channel.ring import Writer

    orders.writer = writer = Writer(memory, consumer.wake)
    wanted = True
    while wanted:
        why = writer.fill(orders)
        if why == "full":
            wanted = consumer.wait()
        elif why == "too large":
            wanted = consumer.send(writer.take_pending(), writer.tag)
        else:
            wanted = not orders.is_forked and orders.wait()


def _serve_pipe(orders: "_Orders", consumer: Any, max_bytes: int) -> None:
    queue = worker._Queue(consumer, max_bytes)
    try:
        while not consumer.stopped:
            for item in orders:
                if orders.is_forked or not queue.put(protocol.write_item(item), orders.writer.tag):
                    return
            if not orders.wait():
                return
    finally:
        if not orders.is_forked:
            queue.flush()


class _Tag:
    """What there is of a writer where there is no memory to write to."""

    tag = 0


class _Orders:
    """The items that were ordered, as an iterator that stops where none is."""

    def __init__(self, tree: Any, consumer: Any, memory: Any) -> None:
        self.tree = tree
        self.consumer = consumer
        self.memory = memory
        self.owner = os.getpid()
        self.writer: Any = _Tag()
        self.run: Any = None
        self.visits: dict[int, Running] = {}
        # Those that are to begin, and the numbers of which an item is to be made.
        self.beginning: dict[int, tuple[Any, ...]] = {}
        self.due: deque[int] = deque()
        # What is to be told before the next item.
        self.telling: deque[tuple[int, Any]] = deque()
        self.look_at = 0.0
        self.cost = 0.0

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy, in a process that a stream has forked."""
        return os.getpid() != self.owner

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.telling:
            self.writer.tag, item = self.telling.popleft()
            return item
        while True:
            if (before := time.perf_counter()) > self.look_at:
                self.look_at = before + _LOOK
                if not self.consumer.wait(0):
                    raise StopIteration
            if self.consumer.messages:
                self._read()
            if not self.due:
                raise StopIteration
            number = self.due.popleft()
            if number not in self.visits and number not in self.beginning:
                # It has ended, or is not wanted any more.
                continue
            self.writer.tag = number
            item = self._make(number)
            # How long items take, the last ones count more.
            self.cost += 0.1 * (time.perf_counter() - before - self.cost)
            if self.memory is not None:
                self.memory.cost = int(1e9 * self.cost)
                self.writer.worth = _WORTH / max(self.cost, 1e-9)
            return item

    def _make(self, number: int) -> Any:
        """Return the next item of a visit, or what became of it."""
        try:
            visit = self.visits.get(number)
            if visit is None:
                visit = self.visits[number] = self._begin(number)
            item = _as_sent(next(visit))
            if (state := visit.state()) is not None:
                self.telling.append((number, news(protocol.STATE, state)))
            return item
        except StopIteration:
            self._close(number)
            return news(protocol.ENDED)
        except BaseException as error:
            if self.is_forked:
                raise
            self.visits.pop(number, None)
            return news(protocol.FAILED, worker.describe(error, by_value=True))

    def _begin(self, number: int) -> Running:
        path, *rest = self.beginning.pop(number)
        return Running(self.run, streamer_at(self.tree, path), path, *rest)

    def wait(self) -> bool:
        """Wait for orders; tell whether anything is wanted."""
        while not self.consumer.messages:
            if not self.consumer.wait(0 if self.due or self.telling else None):
                return False
            if self.due or self.telling:
                break
        return True

    def _read(self) -> None:
        """Take note of what was ordered."""
        while self.consumer.messages:
            message = self.consumer.messages.popleft()
            kind, body = message[:1], message[1:]
            if kind == ORDERS:
                self._take_orders(np.frombuffer(body, np.int64).tolist())
            elif kind == VISIT:
                number, *visit = pickle.loads(body)
                self.beginning[number] = tuple(visit)
            else:
                self.close_all()
                self.run = _visits.Run(*pickle.loads(body))

    def _take_orders(self, words: list[int]) -> None:
        at = 0
        while at < len(words):
            number, order = words[at] >> BITS, words[at] & ((1 << BITS) - 1)
            at += 1
            if order == protocol.MORE:
                self.due.append(number)
            elif order == protocol.BEGIN:
                bound, skip, n = words[at : at + 3]
                at += 3
                self.beginning[number] = (tuple(words[at : at + n]), bound, None, skip)
                at += n
            else:
                # Whatever was ordered before: nobody wants it.
                self._close(number)

    def _close(self, number: int) -> None:
        self.beginning.pop(number, None)
        visit = self.visits.pop(number, None)
        if visit is not None:
            # What a source raises while it is closed has no item to be raised at.
            with suppress(Exception):
                visit.close()

    def close_all(self) -> None:
        """Close all visits."""
        for number in list(self.visits):
            self._close(number)
        self.beginning.clear()
        self.due.clear()
        self.telling.clear()


def _as_sent(item: Any) -> Any:
    """Return an item as it is sent: mappings of keys to arrays as they are, others pickled."""
    if type(item) is dict and item:
        for key, value in item.items():
            if type(key) is not str or type(value) is not np.ndarray:
                break
            dtype = value.dtype
            if dtype.kind not in _KINDS or dtype.metadata is not None:
                break
        else:
            return item
    try:
        return news(protocol.PICKLED, item)
    except Exception as error:
        with suppress(Exception):
            return {("pescador", protocol.PICKLED): np.frombuffer(cloudpickle.dumps(item), "u1")}
        raise PescadorError(
            f"an item of type {type(item).__qualname__} cannot be sent from a worker process "
            f"({error}); kind='thread' sends nothing"
        ) from error


