"""A mux whose hooks are called, in an open stream: its loop, and its state.

What hooks keep, they keep in attributes of the activated copy: those are part of the state. The
iterators in ``streams_`` are saved as the visits to streamers of the pool that they are.
"""

import inspect
from collections.abc import Generator
from typing import Any

import numpy as np

from .. import _core, _mux, _visits
from .._state import Loader, Saver


def hook_loop(
    mux: Any, scope: _core.Scope, max_iter: float, slot: int | None = None
) -> Generator[Any, None, None]:
    """Run an activated mux by its hooks; with a `slot`, the first sample is due from there."""
    given = 0
    while given < max_iter and (slot is not None or mux._streamers_available()):
        scope.slot = slot = mux._next_sample_index() if slot is None else slot
        try:
            yield scope.next(mux.streams_[slot])
            given += 1
            mux.stream_counts_[slot] += 1
            scope.slot = None
        except StopIteration:
            scope.slot = None
            mux._on_stream_exhausted(slot)
            mux._replace_stream(slot)
        slot = None


class HookedStream(_core.Compiled):
    """One activation of a mux with hooks, which starts in `scope`."""

    def __init__(self, mux: Any, scope: _core.Scope) -> None:
        self.mux = mux
        # What the state is a state of.
        self.recipe: dict[str, Any] = mux.__pescador_recipe__()
        # Hooks that draw from the global states draw from those of this visit.
        self.states, self.path = _visits.states_of_visit(scope)
        self.active = self._call(mux.__enter__)
        self.scope = _core.hook_scope(self.active, scope, self.path)
        self.due: int | None = None
        self.loop: Any = None
        self.failed = False

    def _call(self, function: Any, *args: Any) -> Any:
        return function(*args) if self.states is None else self.states.call(function, args)

    def __next__(self) -> Any:
        if self.loop is None:
            self.loop = hook_loop(self.active, self.scope, self.left, self.due)
            self.due = None
        self.failed = True
        try:
            sample = self._call(next, self.loop)
        except StopIteration:
            self.failed = False
            raise
        self.failed = False
        self.left -= 1
        return sample

    def save(self, saver: Saver) -> dict[str, Any]:
        """Return where the iteration is, in plain values."""
        active, name = self.active, f"{_visits.place_of(self.path)}{self.mux!r}"
        counts = np.array(active.stream_counts_)
        due = self.due
        started = active.__dict__.get("__pescador_started__")
        if self.loop is not None and self.failed:
            # A chain draws nothing: its stream has ended and ends again, and it tries again.
            due = 0 if started is not None else self.scope.slot
            if due is None:
                saver.refuse(name, "it has failed or was interrupted while it chose a stream")
        elif self.loop is not None and self.loop.gi_frame is not None:
            # The loop counts a sample when it goes on.
            counts[self.scope.slot] += 1
        fields = {**_visits.attributes_of(active), "stream_counts_": counts}
        if getattr(active, "rng", None) is np.random and self.states is None:
            saver.uses_global_state()
        return {
            "left": self.left,
            "due": due,
            "fields": saver.attributes(fields, name),
            "streams": [
                self._save_slot(saver, slot, stream) for slot, stream in enumerate(active.streams_)
            ],
            "visits": _visits.visits_of(self.scope),
            "chain": None if started is None else [started[1], started[2]],
            "states": None if self.states is None else self.states.as_plain(),
        }

    def _save_slot(self, saver: Saver, slot: int, stream: Any) -> list[Any] | None:
        """Return the place, the bound, the number of the visit and the state of a stream."""
        if stream is None:
            return None
        visit: Any = self.scope.visit_of(stream)
        if visit is not None:
            *_, place, number = visit.path
            return [place, None, number, saver.save(visit)]
        # An iteration of ours that is yet to start.
        values: dict[str, Any] = {}
        if _generator_state(stream) == "GEN_CREATED":
            values = inspect.getgeneratorlocals(stream)
        place = self.scope.place_of(values.get("self"))
        if place is None or stream.__name__ != "iterate":
            saver.refuse(
                f"{self.mux!r}, streams_[{slot}]",
                "it is no iteration of a streamer of the pool, as streamer.iterate() gives it",
            )
            return None
        return [place, values.get("max_iter"), None, None]

    def restore(self, state: dict[str, Any], loader: Loader) -> None:
        """Go on from where another iteration of the same streamer was."""
        active = self.active
        self.left, self.due = state["left"], state["due"]
        loader.set_attributes(active, state["fields"])
        pool = active.streamers
        _visits.set_visits(
            self.scope, state["visits"], len(pool) if isinstance(pool, list) else 1 << 32
        )
        if state["chain"] is not None:
            self._restore_chain(loader, *state["chain"])
        active.streams_ = [
            None if saved is None else self._restored(loader, *saved) for saved in state["streams"]
        ]
        if state["states"] is not None and self.states is not None:
            self.states.take_plain(state["states"])

    def _restored(
        self, loader: Loader, place: int, max_iter: Any, number: int | None, state: Any
    ) -> Any:
        """Return the iterator of a slot."""
        started = self.active.__dict__.get("__pescador_started__")
        streamer = self.active.streamers[place] if started is None else started[0]
        if number is None:
            return streamer.iterate() if max_iter is None else streamer.iterate(max_iter=max_iter)
        self.scope.at(place, number)
        copies = {id(streamer): (streamer, streamer, place)}
        visit = _visits.open_visit(streamer, self.scope, copies)
        self.scope.at(place)
        loader.restore(visit, state)
        stream = _items(visit)
        self.scope.note(stream, visit, self.active.streams_)
        return stream

    def _restore_chain(self, loader: Loader, place: int, gave: bool) -> None:
        """Have a chain be at the streamer of this place."""
        active = self.active
        active.stream_generator_ = active.chain_streamer_.iterate()
        for _ in range(place + 1):
            streamer = next(active.stream_generator_, None)
            if streamer is None:
                raise loader.error(repr(self.mux), f"it has no streamer {place} any more")
        active.__pescador_started__ = (_mux.as_streamer(streamer), place, gave)

    def replay_cost(self) -> int:
        """Return how many samples restoring would make again."""
        visits = [self.scope.visit_of(stream) for stream in self.active.streams_]
        return sum(visit.replay_cost() for visit in visits if visit is not None)

    def close_streams(self) -> None:
        """Close what is open."""
        for stream in self.active.streams_ or ():
            visit = self.scope.visit_of(stream)
            if visit is not None:
                visit.close_streams()
            elif _generator_state(stream) == "GEN_SUSPENDED":
                # Of a run that notes no visits, or the hooks' own. What has not begun has a state.
                self._call(stream.close)

    def shown(self) -> tuple[Any, None, list[Any]]:
        """Return what an open stream shows of it."""
        visits = [self.scope.visit_of(stream) for stream in self.active.streams_ or ()]
        return self.mux, None, [visit for visit in visits if visit is not None]


def _generator_state(stream: Any) -> str | None:
    return inspect.getgeneratorstate(stream) if inspect.isgenerator(stream) else None


def _items(visit: Any) -> Generator[Any, None, None]:
    """Return the items of a visit, as the iteration gives them that it stands for."""
    try:
        yield from visit
    finally:
        visit.close_streams()
