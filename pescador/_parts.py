"""What each of several processes gets of one tree: streams of its own, or a seed of its own."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ._checks import as_weights
from ._repr import read_by
from .core import Streamer
from .exceptions import ArgumentError
from .mux import BaseMux, ChainMux, RoundRobinMux
from .seeded import Seeded
from .sharded import Sharded
from .sources.source import Source

_GENERATORS = (np.random.RandomState, np.random.Generator, np.random.BitGenerator)


class Part(NamedTuple):
    """Who asks for items: a process that trains, or a worker of its loader."""

    rank: int
    world_size: int
    worker: int
    num_workers: int

    @property
    def n(self) -> int:
        """How many there are."""
        return self.world_size * max(self.num_workers, 1)

    @property
    def number(self) -> int:
        """Which one of them this is."""
        return self.rank * max(self.num_workers, 1) + self.worker

    def __str__(self) -> str:
        worker = f"worker {self.worker} of {self.num_workers}" if self.num_workers else "no workers"
        return f"rank {self.rank} of {self.world_size} with {worker}"


def _copied_below(streamer: Any) -> Any:
    """Have a streamer read a copy of the stream that it changes; return that, or None."""
    if isinstance(streamer, BaseMux | Sharded | Source):
        return None
    inner = streamer.__dict__.get("streamer")
    if isinstance(inner, Streamer):
        streamer.streamer = copy.copy(inner)
        return streamer.streamer
    if not callable(inner):
        return None
    # Of a map, the stream is an argument.
    values = {**dict(enumerate(streamer.args)), **streamer.kwargs}
    places = [place for place, value in values.items() if isinstance(value, Streamer)]
    if len(places) != 1:
        return None
    [place] = places
    values[place] = copy.copy(values[place])
    streamer.args = tuple(values[i] for i in range(len(streamer.args)))
    streamer.kwargs = {name: values[name] for name in streamer.kwargs}
    return values[place]


class Tree:
    """A copy of a tree of streamers, as far as parts of it differ: the maps above its mux."""

    def __init__(self, streamer: Streamer[Any]) -> None:
        # What is iterated; what is at the root, below maps; and all on the way there.
        self.root = self.top = copy.copy(streamer)
        self.way: list[Streamer[Any]] = []
        # The one that governs it.
        self.seeded: Seeded[Any] | None = None
        inner: Any = self.root
        while inner is not None:
            self.root = inner
            self.way.append(inner)
            inner.active_count_ = 0
            inner.__dict__.pop("__pescador_kept__", None)
            if isinstance(inner, Seeded) and self.seeded is None:
                self.seeded = inner
            inner = _copied_below(inner)
        # What is at the root, if it is one.
        self.mux: BaseMux[Any] | None = self.root if isinstance(self.root, BaseMux) else None
        self.sharded: Sharded[Any] | None = self.root if isinstance(self.root, Sharded) else None

    @property
    def epoch(self) -> int:
        """Which epoch it is of."""
        source = self.sharded or self.seeded
        return 0 if source is None else int(source.epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if self.sharded is not None:
            _become(self.sharded, self.sharded.rank, self.sharded.world_size, epoch)
            for streamer in self.way:
                # Workers know the shards as they were.
                streamer.__dict__.pop("__pescador_kept__", None)
        if self.seeded is not None:
            self.seeded.epoch = epoch

    def default_split(self) -> str | None:
        """Return how the tree is divided unless it is said; None where it cannot be."""
        if self.mux is not None:
            mode = getattr(self.mux, "mode", None)
            return "streams" if mode in ("exhaustive", "cycle", "permuted_cycle") else "seed"
        if isinstance(self.root, Source):
            return "seed" if self.root.order == "random" else None
        return "seed" if callable(self.root.streamer) else None

    def split(self, split: str | None, part: Part) -> None:
        """Leave what one part is to give."""
        if part.n == 1:
            return
        if self.sharded is not None:
            self._take_shards(self.sharded, split, part)
            return
        name = f"{split!r}" if split else "None"
        split = split or self.default_split()
        if split is None or (split == "streams" and self.mux is None):
            raise ArgumentError(
                f"split={name}: {self.root!r} is one stream, which {part.n} parts ({part}) cannot "
                "share: give a mux of several streams"
            )
        if split == "streams":
            self._take_streams(part)
        elif self.seeded is None:
            raise ArgumentError(
                f"split={name}: each of {part.n} parts ({part}) needs a seed of its own: "
                "pass pescador.Seeded(streamer, seed)"
            )
        else:
            fixed = _with_own_seed(self.top, self.seeded)
            if fixed is not None:
                raise ArgumentError(
                    f"split={name}: {fixed!r} has a seed of its own, by which each of {part.n} "
                    f"parts ({part}) would draw the same: leave it to the pescador.Seeded above"
                )
        if self.seeded is not None:
            self.seeded.rank = self.seeded.rank * part.n + part.number

    def _take_shards(self, sharded: Sharded[Any], split: str | None, part: Part) -> None:
        if split is not None:
            raise ArgumentError(f"split={split!r}: {sharded!r} is divided by its shards: pass None")
        if part.num_workers > 1:
            raise ArgumentError(
                f"num_workers={part.num_workers}: {sharded!r} is divided among ranks, not among "
                "workers, who would make other batches of its items: have at most one, or none "
                "and a pescador.ParallelStreamer"
            )
        if self.seeded is not None:
            raise ArgumentError(
                f"{self.seeded!r} is above {sharded!r}, which has seeds of its own: what draws "
                "belongs in what `make` returns"
            )
        mine = (part.rank, part.world_size)
        if sharded.world_size != 1 and (sharded.rank, sharded.world_size) != mine:
            raise ArgumentError(
                f"this is {part}, and {sharded!r} is the part of another: pass the whole"
            )
        _become(sharded, *mine, sharded.epoch)

    def _take_streams(self, part: Part) -> None:
        mux: Any = self.mux
        if callable(mux.streamers):
            mux.streamers = functools.partial(_every_nth, mux.streamers, part.number, part.n)
            return
        if len(mux.streamers) < part.n:
            raise ArgumentError(
                f"split='streams': a pool of {len(mux.streamers)} has no stream for each of "
                f"{part.n} parts ({part})"
            )
        mux.streamers = mux.streamers[part.number :: part.n]
        weights = mux.__dict__.get("weights")
        if weights is not None:
            weights = weights[part.number :: part.n]
            mux.weights = as_weights(weights, len(weights), weights.dtype)
        if mux.__dict__.get("mode") in ("exhaustive", "single_active"):
            mux.n_active = min(mux.n_active, len(mux.streamers))


def _become(sharded: Sharded[Any], rank: int, world_size: int, epoch: int) -> None:
    """Have a copy be another part."""
    sharded.__dict__.update(sharded.at(rank, world_size, epoch=epoch).__dict__)


def _every_nth(make: Callable[[], Iterable[Any]], index: int, n: int) -> Iterator[Any]:
    """Make the streamers of one part, of those that a generator function makes."""
    yield from itertools.islice(make(), index, None, n)


def _with_own_seed(root: Any, governing: Any) -> Any:
    """Return a streamer in a tree, but the governing one, that was given a seed; None without."""
    seen: set[int] = set()
    ahead = [root]
    while ahead:
        streamer = ahead.pop()
        # What was assigned to a pool may be an iterable.
        if id(streamer) in seen or not isinstance(streamer, Streamer):
            continue
        seen.add(id(streamer))
        if streamer is not governing and _has_own_seed(streamer):
            return streamer
        ahead += read_by(streamer)
    return None


def _has_own_seed(streamer: Any) -> bool:
    """Tell whether a streamer draws, and was given what it draws by."""
    if isinstance(streamer, BaseMux):
        in_turn = isinstance(streamer, ChainMux | RoundRobinMux)
        draws = not in_turn or getattr(streamer, "mode", "") == "permuted_cycle"
        return draws and streamer.rng is not np.random
    if isinstance(streamer, Source):
        return streamer.random_state is not None and streamer.order != "sequential"
    if isinstance(streamer, Seeded | Sharded):
        return True
    if streamer.kwargs.get("random_state") is not None:
        return True
    values = (*streamer.args, *streamer.kwargs.values())
    return any(isinstance(value, _GENERATORS) for value in values)
