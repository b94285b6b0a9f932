"""A visit that runs for somebody else: in a worker process, or in a thread.

What it gives is what the same visit would give where it belongs, because all of it follows from
its path: the seed, and which streamer of the tree it is.
"""

import time
from typing import Any

from .. import _visits
from .._state import Loader, Saver
from ..exceptions import PescadorError

__all__ = ["Running", "streamer_at"]

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
        self.node = _visits.start_visit(streamer, bound, _visits.root_scope(run, path))
        if base is not None:
            Loader().restore(self.node, base)
        for i in range(skip):
            try:
                next(self.node)
            except StopIteration:
                raise PescadorError(
                    f"{_visits.place_of(path)}{streamer!r} has given {skip:,} items before, and has "
                    f"only {i:,} now"
                ) from None
        self.tracks = run.tracks
        # A visit of a few items is soon made again.
        self.due = time.perf_counter() + _SOON

    def __next__(self) -> Any:
        return next(self.node)

    def state(self) -> dict[str, Any] | str | None:
        """Return the state after the last item, where replaying would be no match for it.

        None where it would, or where the last one is not long ago; a reason where there is none.
        """
        if not self.tracks or (now := time.perf_counter()) < self.due:
            return None
        if self.node.replay_cost():
            # Its items are made again, whatever state there is.
            self.tracks = False
            return None
        saver = Saver()
        state: Any = saver.save(self.node)
        self.due = time.perf_counter() + (time.perf_counter() - now) / _SHARE
        return saver.refusals() or state

    def close(self) -> None:
        """Close the visit."""
        self.node.close_streams()
