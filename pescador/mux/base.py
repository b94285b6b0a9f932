"""What all muxes have in common: the pool, the random generator, activation and the loop of hooks.

This file names no mux. What it asks a mux for, beyond the hooks, has names of the form
``__pescador_...__``: any other name on a class may be a subclass's own.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Sized
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from .. import _core, _hooks, _mux, _rng
from .._state import digest
from ..core import Streamer
from ..exceptions import ArgumentError, PescadorError
from ..util import Seed, get_rng
from .hooked import HookedStream, hook_loop

T = TypeVar("T")

# Where an activated copy has what is open.
_STREAMS = ("__pescador_engine__", "__pescador_started__", "streams_", "stream_generator_")

# Beyond those of every streamer.
_HOOKS = (
    "is_activated_copy",
    "n_streams",
    "_streamers_available",
    "_next_sample_index",
    "_on_stream_exhausted",
    "_new_stream",
    "_replace_stream",
)


class EngineAttribute:
    """An attribute of an activated copy: the engine's there, or what hooks have set.

    On a mux that is not active it is None, or what `idle` returns for that mux.
    """

    def __init__(self, idle: Callable[[Any], Any] = lambda mux: None) -> None:
        self.idle = idle

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, mux: Any, owner: type | None = None) -> Any:
        if mux is None:
            return self
        fields = mux.__dict__
        if "__pescador_engine__" in fields:
            return getattr(fields["__pescador_engine__"], self.name)
        return fields[self.name] if self.name in fields else self.idle(mux)

    def __set__(self, mux: Any, value: Any) -> None:
        if "__pescador_engine__" in mux.__dict__:
            raise AttributeError(
                f"{self.name} belongs to the running mux and cannot be set; "
                "to steer a mux, override one of its hooks"
            )
        mux.__dict__[self.name] = value


def not_plain(mux: "BaseMux[Any]") -> list[Any]:
    """Return the members of the pool that are not of the plain class; refuse what is no stream."""
    pool = mux.streamers if isinstance(mux.streamers, list) else []
    others = _hooks.not_plain(pool)
    if not all(isinstance(streamer, Streamer) for streamer in others):
        mux.__pescador_pool__(pool)
    return others


def check(mux: "BaseMux[Any]") -> None:
    """Check all that may have been assigned since a mux was made."""
    mux.__pescador_check__()
    not_plain(mux)


def check_generator(mux: "BaseMux[Any]", method: str) -> None:
    """Refuse a random generator that lacks the method which a mux draws by."""
    if not callable(getattr(mux.rng, method, None)):
        raise ArgumentError(
            f"rng={mux.rng!r} must be a random generator, such as util.get_rng(seed)"
        )


def drawn_index(rng: Any, n: int, p: npt.NDArray[Any]) -> int:
    """Draw one of n with these probabilities."""
    return _rng.as_index(rng.choice(n, p=p), n, rng.choice)


def as_pool(streamers: Any) -> list[Streamer[Any]]:
    """Return the pool that is made of these."""
    try:
        iter(streamers)
    except TypeError:
        raise ArgumentError(
            f"streamers={streamers!r} must be an iterable of streamers or iterables"
        ) from None
    pool = []
    for i, streamer in enumerate(streamers):
        try:
            pool.append(_mux.as_streamer(streamer))
        except PescadorError as error:
            raise ArgumentError(f"streamers[{i}] is no stream: {error}") from error
    return pool


def require_streams(mux: "BaseMux[Any]") -> None:
    """Refuse an empty pool."""
    if not mux.n_streams:
        raise ArgumentError(f"streamers={mux.streamers!r} is empty; a mux needs a stream")


def _is_compiled(mux: "BaseMux[Any]") -> bool:
    """Tell whether an engine does all that a mux does; if not, its hooks are called."""
    return (
        _hooks.is_stock(mux)
        and mux.__pescador_has_engine__
        and (mux.rng is np.random or type(mux.rng) in (np.random.RandomState, np.random.Generator))
    )


def _shared_generators(
    mux: "BaseMux[Any]", scope: _core.Scope | None, seen: dict[int, Any]
) -> list[Any]:
    """Return the generators in this tree of muxes that the caller may draw from, each once.

    Muxes that were `seen` here, or in the scopes around, are not looked into again.
    """
    found = {}
    to_do: list[BaseMux[Any]] = [mux]
    for mux in to_do:
        if mux.rng is not np.random and mux.rng is not getattr(mux, "__pescador_rng__", None):
            found[id(mux.rng)] = mux.rng
        if id(mux) in seen or (scope is not None and scope.has_seen(mux)):
            continue
        seen[id(mux)] = mux
        to_do += [below for below in not_plain(mux) if isinstance(below, BaseMux)]
    return list(found.values())


def _engine(mux: "BaseMux[Any]", parent: _core.Scope | None) -> _mux.Engine:
    """Return a new engine for one activation of a mux, inside that of `parent` if any."""
    mux.__pescador_check__()
    own = None if mux.rng is np.random else mux.rng
    seen: dict[int, Any] = {}
    shared = _shared_generators(mux, parent, seen)
    return mux.__pescador_new_engine__(_core.Scope(parent, own, shared, seen))


def _open(mux: "BaseMux[Any]", parent: _core.Scope | None) -> _mux.Engine | None:
    """Return the engine of one activation of a mux, or None if its hooks are to be called."""
    return _engine(mux, parent) if _is_compiled(mux) else None


def _hooked(mux: "BaseMux[Any]", scope: _core.Scope) -> Any:
    """Return an activation that can be saved, unless a mux iterates in a way of its own."""
    if _is_compiled(mux):
        # This copy of a mux has a generator of NumPy's, and the mux one of a class of its own.
        return _engine(mux, scope)
    return HookedStream(mux, scope) if type(mux).iterate is BaseMux.iterate else None


def register(cls: type["BaseMux[Any]"], *more: str) -> None:
    """Note the hooks of a class of muxes: those of all, and `more` that only this one has."""
    _hooks.register(cls, *_HOOKS, *more, opener=_open, hooked=_hooked)


class BaseMux(Streamer[T]):
    """What all muxes have in common; subclass it to write another.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable
        The streams to mix; what is no `Streamer` is made one.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`.

    Attributes
    ----------
    streamers : list of Streamer
        The pool.
    rng : RandomState, Generator or the module np.random
        The generator that activations copy and draw from; may be assigned.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    """

    streams_ = EngineAttribute()
    stream_counts_ = EngineAttribute()
    # On an activated copy, the engine that runs it, or what hooks of a chain started last.
    __pescador_engine__: Any
    __pescador_started__: Any

    def __init__(
        self,
        streamers: Iterable[Iterable[T]] | Callable[[], Iterable[Iterable[T]]],
        random_state: Seed = None,
    ) -> None:
        self.streamers: Any = self.__pescador_pool__(streamers)
        self.rng: Any = get_rng(random_state)
        # The caller may draw from a generator that was not made here.
        made_here = isinstance(random_state, int | np.integer | np.random.SeedSequence)
        self.__pescador_rng__: Any = self.rng if made_here else None
        self._reset()
        self.active_count_ = 0

    def __copy__(self) -> Self:
        # From now on, two muxes share the generator.
        self.__pescador_rng__ = None
        return super().__copy__()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("rng") is np.random:
            # A module cannot be pickled; its name can.
            state["rng"] = "numpy.random"
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if self.__dict__.get("rng") == "numpy.random":
            self.__dict__["rng"] = np.random

    def __pescador_copy__(self) -> Self:
        if not _is_compiled(self):
            return super().__pescador_copy__()
        engine = _engine(self, None)
        active = copy.copy(self)
        active.rng = engine.rng
        engine.is_shown = True
        active.__pescador_engine__ = engine
        return active

    @property
    def is_activated_copy(self) -> bool:
        """Whether this is the copy that an iteration works on, rather than the original."""
        return "__pescador_engine__" in self.__dict__ or self.streams_ is not None

    @property
    def n_streams(self) -> int:
        """The number of streamers in the pool.

        Raises
        ------
        TypeError
            If the pool is a generator function (see `ChainMux`).
        """
        return len(self.streamers)

    def iterate(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the mixed stream once, to its end or for `max_iter` samples.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many samples to yield at most; a fraction counts as the next whole number.

        Yields
        ------
        sample : object
            What the streams give.

        Raises
        ------
        ArgumentError
            At the first ``next``, if `max_iter` is negative, NaN or not a number.

        Notes
        -----
        If a subclass overrides a hook, this is the loop, on an activated copy ``mux``::

            while given < max_iter and mux._streamers_available():
                slot = mux._next_sample_index()
                try:
                    yield next(mux.streams_[slot])
                    given += 1
                    mux.stream_counts_[slot] += 1
                except StopIteration:
                    mux._on_stream_exhausted(slot)
                    mux._replace_stream(slot)
        """
        scope = _core.around(self)
        if _is_compiled(self) and not self.is_activated_copy:
            # As below, without the copy that nobody would see.
            with _core.Opened(
                self, _core.note_started(scope, self, _engine(self, scope).bounded(max_iter))
            ) as samples:
                yield from samples
            return
        if scope is not None and scope.run is not None and not self.is_activated_copy:
            yield from _core.note_started(scope, self, HookedStream(self, scope).bounded(max_iter))
            return
        with self as active:
            try:
                if "__pescador_engine__" in active.__dict__:
                    yield from _core.Bounded(active.__pescador_engine__, max_iter, False)
                    return
                scope = _core.hook_scope(active, scope)
                yield from hook_loop(active, scope, _core.as_bound(max_iter))
            finally:
                if active is not self:
                    for name in _STREAMS:
                        active.__dict__.pop(name, None)

    def _reset(self) -> None:
        """Set what else a subclass has of an activation to what it is before one."""

    def _activate(self) -> None:
        """Fill the active set; called on the copy that an iteration works on.

        Sets ``streams_`` (a list of iterators) and ``stream_counts_`` (an integer array, the
        samples that each has given), and calls ``_new_stream`` for each slot.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _activate()")

    def _streamers_available(self) -> bool:
        """Tell whether there may be another sample."""
        return True

    def _next_sample_index(self) -> int:
        """Return the slot of ``streams_`` that the next sample comes from."""
        raise NotImplementedError(f"{type(self).__name__} must define _next_sample_index()")

    def _on_stream_exhausted(self, idx: int) -> None:
        """Take note that the stream in slot `idx` has ended; called before it is replaced."""

    def _new_stream(self, idx: int) -> None:
        """Put another stream in slot `idx`."""
        raise NotImplementedError(f"{type(self).__name__} must define _new_stream()")

    def _replace_stream(self, idx: int) -> None:
        """Replace the ended stream in slot `idx`, usually by calling ``_new_stream``."""
        raise NotImplementedError(f"{type(self).__name__} must define _replace_stream()")

    # What each mux of this package defines.

    # Whether there is an engine that does what the hooks of this class do.
    __pescador_has_engine__ = False

    def __pescador_new_engine__(self, scope: _core.Scope) -> _mux.Engine:
        raise NotImplementedError

    def __pescador_recipe__(self) -> dict[str, Any]:
        """Return what a state of this mux is a state of: what would have it draw otherwise."""
        recipe: dict[str, Any] = {"class": f"{type(self).__module__}.{type(self).__qualname__}"}
        for name in ("mode", "n_active", "rate", "dist", "prune_empty_streams"):
            if name in self.__dict__:
                recipe[name] = self.__dict__[name]
        if isinstance(self.streamers, Sized):
            recipe["n_streams"] = len(self.streamers)
        weights = getattr(self, "weights", None)
        if weights is not None:
            recipe["weights"] = digest(np.asarray(weights, np.float64))
        return recipe

    def __pescador_pool__(self, streamers: Any) -> Any:
        """Return what is to be the pool of a mux that is given these."""
        return as_pool(streamers)

    def __pescador_check__(self) -> None:
        """Check the attributes of a mux that is activated; `check` looks into its pool, too."""
        if not isinstance(self.streamers, Sized) or not isinstance(self.streamers, Iterable):
            raise ArgumentError(
                f"streamers={self.streamers!r} must be a list of streamers or iterables"
            )


register(BaseMux)
