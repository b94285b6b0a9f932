"""A worker's stream whose state is known to its consumer.

The worker is ahead of its consumer, so it is no use to ask it where it is. It puts its state among
the items that it sends: the consumer keeps the last one, and counts the items since. A restored
worker starts from that state and leaves out as many items.
"""

import pickle
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from .. import _core, _visits
from .._state import Loader, Saver
from ..exceptions import StateError

# The key of an item that is a report; no item of a stream has it.
STATE_KEY = ("pescador", "state")

# A worker may spend this part of its time on reports.
_SHARE = 0.01


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
    state : dict or None
        Where to go on.
    skip : int
        How many items to leave out then.
    """

    def __init__(
        self, streamer: Any, sequence: Any, governs: tuple[str, ...], tracks: bool
    ) -> None:
        self.streamer = streamer
        self.sequence = sequence
        self.governs = governs
        self.tracks = tracks
        self.state: dict[str, Any] | None = None
        self.skip = 0

    def __repr__(self) -> str:
        return repr(self.streamer)

    def __call__(self, max_iter: float | None = None) -> Generator[Any, None, None]:
        from ..stream import Stream

        run = _visits.Run(self.tracks, self.sequence, self.governs)
        stream: Any = Stream(self.streamer, max_iter)
        stream._given_run = run
        if self.state is not None:
            stream.load_state_dict(self.state)
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

    def report(self, stream: Any) -> dict[Any, Any]:
        """Return the state of a stream, or why it has none, as an item."""
        try:
            told: Any = stream.state_dict(), stream.replay_cost
        except StateError as error:
            told = str(error), 0
        return {STATE_KEY: np.frombuffer(pickle.dumps(told), np.uint8)}


class RemoteStream(_core.Compiled):
    """A visit to a ZMQStreamer in a run: the items of its worker.

    Parameters
    ----------
    streamer : ZMQStreamer
        Whose worker it is.
    scope : Scope
        In which it starts.
    """

    def __init__(self, streamer: Any, scope: _core.Scope) -> None:
        self.streamer = streamer
        self.path = _visits.states_of_visit(scope, only_path=True)
        run: Any = scope.run
        sequence = run.sequence
        if sequence is not None:
            key = (*sequence.spawn_key, *self.path)
            sequence = np.random.SeedSequence(sequence.entropy, spawn_key=key)
        self.work = Reporting(streamer.streamer, sequence, run.governs, run.tracks)
        self.items: Generator[Any, None, None] | None = None
        self.report: bytes | None = None
        self.since = 0
        self.given = 0

    def __next__(self) -> Any:
        if self.items is None:
            bound = self.left + self.work.skip if self.is_bounded else None
            self.items = self.streamer.__pescador_items__(self.work, bound)
        while True:
            item = next(self.items)
            if STATE_KEY not in item:
                self.since += 1
                self.given += 1
                self.left -= 1
                return item
            self.report = item[STATE_KEY].tobytes()
            self.since = 0

    @property
    def recipe(self) -> str:
        """What the state is a state of."""
        return f"{type(self.streamer).__module__}.{type(self.streamer).__qualname__}"

    def save(self, saver: Saver) -> dict[str, Any]:
        """Return where the iteration is, in plain values."""
        state: Any = self.work.state
        if self.report is not None:
            state, _ = pickle.loads(self.report)
        if isinstance(state, str):
            saver.refuse(f"{self.streamer!r}", f"in its worker, {state}")
            state = None
        return {
            "left": self.left,
            "given": self.given,
            "worker": state,
            "since": self.since + (self.work.skip if self.report is None else 0),
        }

    def restore(self, state: dict[str, Any], loader: Loader) -> None:
        """Go on from where another iteration of the same streamer was."""
        self.left, self.given = state["left"], state["given"]
        self.work.state, self.work.skip = state["worker"], state["since"]

    def replay_cost(self) -> int:
        """Return how many samples restoring would make again."""
        cost = 0 if self.report is None else pickle.loads(self.report)[1]
        return self.since + int(cost)

    def close_streams(self) -> None:
        """Close what is open."""
        if self.items is not None:
            self.items.close()

    def shown(self) -> tuple[Any, int, list[Any]]:
        """Return what an open stream shows of it."""
        return self.streamer, self.given, []
