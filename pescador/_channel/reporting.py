"""A worker's stream whose state is known to its consumer.

The worker is ahead of its consumer, so it is no use to ask it where it is. It puts its state among
the items that it sends: the consumer keeps the last one, and counts the items since. A restored
worker starts from that state and leaves out as many items.
"""

import pickle
import time
from collections.abc import Generator
from typing import Any, Self

import numpy as np

from .. import _core, _hooks, _visits
from .._state import Loader, Saver
from ..exceptions import StateError
from ..seeded import sequence_of

# The key of an item that is a report; no item of a stream has it.
STATE_KEY = ("pescador", "state")

# A worker may spend this part of its time on reports.
_SHARE = 0.01


class Position:
    """Where a stream that runs elsewhere is, as of the last item that was given.

    Attributes
    ----------
    state : bytes or None
        The last state that was reported.
    skip : int
        How many items were given since.
    refused : str
        Why there is no such state, if there is none.
    cost : int
        How many samples would have to be made again to restore it.
    """

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.skip = 0
        self.refused = ""
        self.cost = 0

    def note(self, report: dict[Any, Any]) -> None:
        """Take a report."""
        self.state = report[STATE_KEY].tobytes() or None
        self.cost = int(report["cost"])
        self.refused = report["refused"].tobytes().decode()
        self.skip = 0


class Report(dict[Any, Any]):
    """A report among items."""


class Reporting:
    """What a worker runs in the place of a streamer: its items, and reports of its state.

    Parameters
    ----------
    streamer : Streamer
        What is to be run.
    sequence : SeedSequence or None
        The seed of its root, if it runs under one.
    governs : tuple of str
        The global states that are each visit's own.
    tracks : bool
        Whether states are wanted.

    Attributes
    ----------
    state : bytes or None
        Where to go on, as `dumps` wrote it.
    skip : int
        How many items to leave out then.
    """

    dumps: Any = staticmethod(pickle.dumps)
    loads: Any = staticmethod(pickle.loads)

    def __init__(
        self, streamer: Any, sequence: Any, governs: tuple[str, ...], tracks: bool
    ) -> None:
        self.streamer = streamer
        self.sequence = sequence
        self.governs = governs
        self.tracks = tracks
        self.state: bytes | None = None
        self.skip = 0

    def __repr__(self) -> str:
        return repr(self.streamer)

    def __call__(self, max_iter: float | None = None) -> Generator[Any, None, None]:
        from ..stream import Stream

        run = _visits.Run(self.tracks, self.sequence, self.governs)
        stream: Any = Stream(self.streamer, max_iter)
        stream._given_run = run
        if self.state is not None:
            stream.load_state_dict(self.loads(self.state))
            for _ in range(self.skip):
                next(stream, None)
        with stream:
            if self.tracks:
                yield self.report(stream)
            due, told = 0.0, False
            for item in stream:
                if run.has_drawn and self.tracks and not told:
                    # An earlier state is none either: who starts from there draws otherwise.
                    told = True
                    yield self.report(stream)
                yield item
                if self.tracks and not told and time.perf_counter() >= due:
                    before = time.perf_counter()
                    yield self.report(stream)
                    now = time.perf_counter()
                    due = now + (now - before) / _SHARE

    def report(self, stream: Any) -> Report:
        """Return the state of a stream, or why it has none, as an item."""
        written, cost, refused = b"", 0, b""
        try:
            written, cost = self.dumps(stream.state_dict()), stream.replay_cost
        except StateError as error:
            refused = str(error).encode()
        return Report(
            {
                STATE_KEY: np.frombuffer(written, np.uint8),
                "cost": np.array(cost),
                "refused": np.frombuffer(refused, np.uint8),
            }
        )


class RemoteStream(_core.Compiled):
    """A visit in a run to a streamer that runs elsewhere: a ZMQStreamer, in its worker."""

    # Where that is; the state of the stream has this name in ours.
    where = "worker"
    dumps: Any = staticmethod(pickle.dumps)
    loads: Any = staticmethod(pickle.loads)

    @classmethod
    def in_run(cls, streamer: Any, scope: _core.Scope | None) -> Self | None:
        """Return a visit in a run; None elsewhere."""
        return None if scope is None or scope.run is None else cls(streamer, scope)

    @classmethod
    def opened(cls, streamer: Any, scope: _core.Scope | None) -> Self | None:
        """Return a visit in a run; None elsewhere, and where hooks are to be called."""
        return cls.in_run(streamer, scope) if _hooks.is_stock(streamer) else None

    def __init__(self, streamer: Any, scope: _core.Scope) -> None:
        self.streamer = streamer
        self.path = _visits.states_of_visit(scope, only_path=True)
        run: Any = scope.run
        self.run = run
        self.sequence = None if run.sequence is None else sequence_of(run.sequence, *self.path)
        self.position = Position()
        self.items: Generator[Any, None, None] | None = None
        self.given = 0

    def started_by_hooks(
        self, scope: _core.Scope | None, max_iter: float | None
    ) -> Generator[Any, None, None]:
        """Yield the items of a visit that no engine has started."""
        try:
            yield from _core.note_started(scope, self.streamer, self.bounded(max_iter))
        finally:
            self.close_streams()

    def begin(self) -> Generator[Any, None, None]:
        """Return the items from the position on, and reports among them."""
        position = self.position
        work = Reporting(self.streamer.streamer, self.sequence, self.run.governs, self.run.tracks)
        work.state, work.skip = position.state, position.skip
        bound = self.left + position.skip if self.is_bounded else None
        items: Generator[Any, None, None] = self.streamer.__pescador_items__(work, bound)
        return items

    def __next__(self) -> Any:
        if self.items is None:
            self.items = self.begin()
        while True:
            item = next(self.items)
            if STATE_KEY not in item:
                self.position.skip += 1
                self.given += 1
                self.left -= 1
                return item
            self.position.note(item)

    @property
    def recipe(self) -> str:
        """What the state is a state of."""
        return f"{type(self.streamer).__module__}.{type(self.streamer).__qualname__}"

    def save(self, saver: Saver) -> dict[str, Any]:
        """Return where the iteration is, in plain values."""
        position = self.position
        if position.refused:
            saver.refuse(f"{self.streamer!r}", f"at its {self.where}, {position.refused}")
        return {
            "left": self.left,
            "given": self.given,
            self.where: None if position.state is None else self.loads(position.state),
            "since": position.skip,
        }

    def restore(self, state: dict[str, Any], loader: Loader) -> None:
        """Go on from where another iteration of the same streamer was."""
        self.left, self.given = state["left"], state["given"]
        if state[self.where] is not None:
            self.position.state = self.dumps(state[self.where])
            self.position.skip = state["since"]

    def replay_cost(self) -> int:
        """Return how many samples restoring would make again."""
        return self.position.skip + self.position.cost

    def close_streams(self) -> None:
        """Close what is open."""
        if self.items is not None:
            self.items.close()

    def shown(self) -> tuple[Any, int, list[Any]]:
        """Return what an open stream shows of it."""
        return self.streamer, self.given, []
