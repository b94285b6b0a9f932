"""A visit that runs for somebody else: in a worker process, or in a thread.

What it gives is what the same visit would give where it belongs, because all of it follows from
its path: the seed, and which streamer of the tree it is.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cloudpickle

from .. import _visits
from .._channel.protocol import PICKLED, news
from .._channel.worker import describe
from .._state import Loader, Saver
from ..exceptions import PescadorError
from .production import Production

# A part of the time that may go into states.
_SHARE = 0.01
# How long (in seconds) a visit has run before its first state is worth something.
_SOON = 0.05


def streamer_at(tree: Any, path: tuple[int, ...]) -> Any:
    """Return the streamer whose visits have a path that begins like this."""
    for place in path[::2]:
        tree = _visits.stream_of(tree).streamers[place]
    return tree


class Running:
    """One visit.

    Parameters
    ----------
    run : Run
        Of which it is a part.
    streamer : Streamer
        What is visited.
    path : tuple of int
        Which visit it is.
    bound : int
        How many items it is asked for at most.
    base : dict or None
        The state to go on from; None for the start.
    skip : int
        How many items to leave out after that.
    """

    def __init__(
        self,
        run: _visits.Run,
        streamer: Any,
        path: tuple[int, ...],
        bound: int,
        base: dict[str, Any] | None,
        skip: int,
    ) -> None:
        self.owner = os.getpid()
        self.node = _visits.start_visit(streamer, bound, _visits.root_scope(run, path))
        if base is not None or skip:
            name = f"{_visits.place_of(path)}{streamer!r}"
            Loader().restore_and_skip(self.node, {"from": base, "skip": skip}, name)
        # When its state is worth something: a visit of a few items is soon made again.
        self.due = time.perf_counter() + _SOON if run.tracks else math.inf

    def __next__(self) -> Any:
        return next(self.node)

    def state(self) -> dict[str, Any] | None:
        """Return the state after the last item; None where there is none that is worth something.

        `due` says when to ask next.
        """
        now = time.perf_counter()
        saver = Saver()
        state: dict[str, Any] | None = None
        # Never again where items are made again whatever state there is, nor where it cannot be
        # taken: a source that fails to tell its state has not failed to give an item.
        self.due = math.inf
        with suppress(Exception):
            if not self.node.replay_cost():
                state = saver.save(self.node)
        if state is None or saver.refused:
            return None
        self.due = time.perf_counter() + (time.perf_counter() - now) / _SHARE
        return state

    def close(self) -> None:
        """Close the visit; what a source raises then has no item to be raised at."""
        try:
            self.node.close_streams()
        except BaseException:
            # A process that the source has forked ends by it.
            if os.getpid() != self.owner:
                raise

    # What is sent of an item that is no dict of arrays; pickled by `dumps`, if that is passed.
    written: Callable[..., dict[Any, Any]] = staticmethod(functools.partial(news, PICKLED))

    def pickled(self, item: Any) -> dict[Any, Any]:
        """Return what is sent to another process for an item that is no dict of arrays."""
        try:
            return self.written(item)
        except Exception as error:
            # Of a class or function that the consumer cannot import.
            with suppress(Exception):
                return self.written(item, cloudpickle.dumps)
            raise PescadorError(
                f"an item of type {type(item).__qualname__} cannot be sent from a worker process "
                f"({error}); kind='thread' sends nothing"
            ) from error


class Beginner:
    """Begins visits in a worker, as they are ordered.

    Parameters
    ----------
    tree : Streamer or Pool
        Whose visits they are; see `placement.without_those_that_stay`.
    """

    running = Running

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.run: Any = None
        self.owner = 0

    def production(self, consumer: Any) -> Production:
        """Return an iterator over the items that a consumer orders of this process."""
        self.owner = os.getpid()
        return Production(
            consumer,
            self.begin,
            self.start_run,
            lambda error: describe(error, by_value=True),
            self.is_forked,
        )

    def is_forked(self) -> bool:
        """Tell whether this is a copy, in a process that a stream has forked."""
        return os.getpid() != self.owner

    def start_run(self, run: tuple[Any, ...]) -> None:
        """Have visits be part of the run that is made of these, from now on."""
        self.run = _visits.Run(*run)

    def begin(self, path: tuple[int, ...], bound: int, base: Any, skip: int) -> Running:
        """Begin a visit; the arguments are those of `Running`."""
        streamer = streamer_at(self.tree, path)
        if streamer is None:
            raise PescadorError(
                f"{_visits.place_of(path)}the stream was changed after the workers were started, "
                "which could not run it then: leave keep_workers at False to start others"
            )
        return self.running(self.run, streamer, path, bound, base, skip)
