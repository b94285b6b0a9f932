"""`Seeded`: everything that a tree of streamers draws, from one seed."""

import copy
import importlib
from collections.abc import Iterable
from typing import Any, Self, TypeVar

import numpy as np

from . import _core, _hooks, _visits
from ._checks import as_whole
from ._repr import Mark
from .core import Visited, visit_of
from .exceptions import ArgumentError

__all__ = ["SPAWN", "Seeded"]

T = TypeVar("T")

_STATES = ("numpy", "random", "torch")


#: Given to a generator function as its keyword argument ``rng``: each visit gets a
#: ``np.random.Generator`` of its own.
SPAWN = Mark("SPAWN")
_core.register_spawn(SPAWN)


def _check(seeded: "Seeded[Any]") -> None:
    """Refuse options that are invalid: passed, or assigned since."""
    if not isinstance(seeded.seed, np.random.SeedSequence):
        seeded.seed = as_whole("seed", seeded.seed)
    elif seeded.seed.pool_size != 4:
        raise ArgumentError(f"seed={seeded.seed!r} must have a pool_size of 4")
    seeded.epoch = as_whole("epoch", seeded.epoch)
    seeded.rank = as_whole("rank", seeded.rank)
    states = seeded.states
    if isinstance(states, str) or not set(states) <= set(_STATES):
        raise ArgumentError(f"states={states!r} must be some of {_STATES}")
    seeded.states = tuple(name for name in _STATES if name in set(states))


def sequence_of(seed: Any, *key: int) -> np.random.SeedSequence:
    """Return the SeedSequence of a seed whose ``spawn_key`` goes on with these numbers."""
    if isinstance(seed, np.random.SeedSequence):
        seed, key = seed.entropy, (*seed.spawn_key, *key)
    return np.random.SeedSequence(seed, spawn_key=key)


class Seeded(Visited[T]):
    """A streamer under which everything draws from one seed.

    Each visit, which is one activation of a stream by a mux, has a seed of its own: that of
    ``np.random.SeedSequence(seed, spawn_key=(epoch, rank, *path))``. The path has two numbers for
    each mux on the way from the root: the place of the stream in the pool, and how often it had
    been visited before. So the same visit draws the same, in whatever process it runs and
    whatever else runs.

    * Muxes and `cache` without a ``random_state`` draw from ``RandomState(words[:4])``, where
      ``words`` is ``sequence.generate_state(8)``; `Rows` and `Windows` without one from
      ``Generator(PCG64(sequence))``.
    * While the code of a stream runs, the global states of ``np.random`` and `random` are that
      visit's own: they start as ``np.random.seed(words[:4])`` and as ``random.seed`` of the number
      whose 32-bit digits are ``words[4:]``, the lowest first; that of torch, if `states` has it, as
      ``torch.manual_seed(words[0] + (words[1] << 32))``. The caller's are as they were after each
      step.
    * A function that is given `pescador.SPAWN` for its keyword argument ``rng`` gets
      ``np.random.default_rng(sequence)``; nothing is exchanged for it.
    * Seeds and generators that were given explicitly stay what they are.

    Parameters
    ----------
    streamer : Streamer or iterable
        The tree.
    seed : int or SeedSequence
        The seed of all.
    epoch, rank : int >= 0
        Another of either is independent. They vary the seed and divide nothing.
    states : tuple of str
        Which global states are governed: ``"numpy"``, ``"random"``, ``"torch"`` (that of its CPU).
        ``()`` promises that no stream draws from the first two; one that does is an error.

    Raises
    ------
    ArgumentError
        If an argument is invalid.

    See Also
    --------
    Streamer.open : iterate such that the state can be saved.

    Notes
    -----
    The global states belong to the process: code of streams that may draw from them runs for one
    stream at a time. Threads of the caller that draw from them meanwhile are not protected.

    Two iterations are equal, and so are the passes of `cycle`: use `at` for another epoch.

    Examples
    --------
    >>> import numpy as np
    >>> from pescador import ShuffledMux, Streamer
    >>> def noise():
    ...     while True:
    ...         yield np.random.randint(100)
    >>> mux = ShuffledMux([Streamer(noise), Streamer(noise)])
    >>> run = Seeded(mux, 7)
    >>> list(run(max_iter=5)) == list(run(max_iter=5))
    True
    >>> list(run(max_iter=5)) == list(run.at(epoch=1)(max_iter=5))
    False
    """

    def __init__(
        self,
        streamer: Iterable[T],
        seed: int | np.integer[Any] | np.random.SeedSequence,
        *,
        epoch: int = 0,
        rank: int = 0,
        states: Iterable[str] = ("numpy", "random"),
    ) -> None:
        super().__init__(streamer)
        self.seed: Any = seed
        self.epoch = epoch
        self.rank = rank
        self.states: Any = states if isinstance(states, str) else tuple(states)
        _check(self)

    def at(self, *, epoch: int | None = None, rank: int | None = None) -> Self:
        """Return the same tree at another epoch or rank.

        Parameters
        ----------
        epoch, rank : int >= 0 or None
            None leaves it as it is.

        Returns
        -------
        seeded : Seeded
        """
        result = copy.copy(self)
        result.active_count_ = 0
        result.epoch = self.epoch if epoch is None else epoch
        result.rank = self.rank if rank is None else rank
        _check(result)
        return result

    def __pescador_run__(self, tracks: bool) -> _visits.Run:
        """Return a new run under this seed."""
        _check(self)
        if "torch" in self.states:
            importlib.import_module("torch")
        return _visits.Run(tracks, sequence_of(self.seed, self.epoch, self.rank), self.states)

    def __pescador_visit__(self, scope: _core.Scope | None) -> Any:
        """Return one visit to the tree, under its own seed whatever is around it."""
        outer = None if scope is None else scope.run
        root = _visits.root_scope(self.__pescador_run__(outer is not None and outer.tracks))
        node = _visits.open_visit(self.streamer, root, {})
        return node if scope is None else _visits.Inner(node, root.run, scope)


_hooks.register(Seeded, opener=visit_of)
