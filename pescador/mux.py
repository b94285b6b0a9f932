"""The muxes: streamers that mix the streams of other streamers into one.

A mux is itself a `Streamer`, so muxes nest. At each step it chooses one stream of its *active
set* and yields the next sample of that; it differs from the others in which streams are active,
how it chooses, and what becomes of a stream that ends.

================  ====================  ======================  =============================
mux               active                chooses                 when a stream ends
================  ====================  ======================  =============================
`StochasticMux`   `n_active` at a time  at random, by weight    another takes its place
`ShuffledMux`     all                   at random, by weight    it is restarted
`RoundRobinMux`   all                   in turn                 it is skipped until the round
                                                                is over
`ChainMux`        one                   that one                the next takes its place
================  ====================  ======================  =============================

What all of them promise:

* **Isolation.** Each iteration works on a copy of the mux's random generator, so that two
  iterations of a seeded mux are equal. (``random_state=None`` draws from the global state of
  ``np.random``, live.) Muxes that share a ``RandomState`` share the copy.
* **Order of draws.** For the same seed and the same streams, the samples are the same.
* **Ends.** A stream that has given its last sample is found exhausted when it is chosen again.
  A stream without any samples is left out where the mux says so. Where it is not, a mux ends
  when all its streams were empty 256 times in a row, and so does ``cycle``.
* **Cost.** A stream is started when its first sample is due. Streams that are not started cost
  nothing; their arguments are read, and copied, when they start. A large array that several
  streams are given is read once for all of them, when the second one starts; each writes into
  pages of its own. (What the caller writes into it later is seen by the next iteration.)

Mixing is compiled (``_mux.pyx``). A subclass that overrides one of the hooks ``_activate``,
``_streamers_available``, ``_next_sample_index``, ``_on_stream_exhausted``, ``_new_stream``,
``_replace_stream`` or ``iterate`` gets a loop in Python instead, which calls them as
`BaseMux.iterate` describes. The methods of these names below say in NumPy what the compiled
engines do.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from . import _core, _draws, _mux
from .core import Streamer
from .exceptions import PescadorError
from .util import Seed, as_bool, as_choice, as_count, get_rng, is_number

__all__ = ["BaseMux", "ChainMux", "Mux", "RoundRobinMux", "ShuffledMux", "StochasticMux"]

T = TypeVar("T")
Weights = Sequence[float] | npt.NDArray[Any] | None

_HOOKS = (
    "__enter__",
    "__exit__",
    "__copy__",
    "__deepcopy__",
    "is_activated_copy",
    "iterate",
    "n_streams",
    "_activate",
    "_streamers_available",
    "_next_sample_index",
    "_on_stream_exhausted",
    "_new_stream",
    "_replace_stream",
)


_DISTS = ("constant", "binomial", "poisson")
# (with_replacement, revive) -> mode
_AS_MODE = {
    (True, False): "with_replacement",
    (True, True): "with_replacement",
    (False, True): "single_active",
    (False, False): "exhaustive",
}


class _State:
    """An attribute that a running engine owns; a plain attribute where there is no engine."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, mux: Any, owner: type | None = None) -> Any:
        if mux is None:
            return self
        engine = mux.__dict__.get("__pescador_engine__")
        if engine is not None:
            return getattr(engine, self.name)
        try:
            return mux.__dict__[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(mux).__name__!r} object has no attribute {self.name!r}"
            ) from None

    def __set__(self, mux: Any, value: Any) -> None:
        if "__pescador_engine__" in mux.__dict__:
            raise AttributeError(
                f"{self.name} belongs to the running mux and cannot be set; "
                "to steer a mux, override one of its hooks"
            )
        mux.__dict__[self.name] = value


# What follows is asked when a mux is made, and again when it is activated: attributes may have been
# assigned, and arrays written to, in between.


def _checked_weights(weights: Any, n: int, dtype: Any = None) -> Any:
    """Return weights of n streamers as a vector in `dtype`, or in the caller's if it is a float."""
    if _draws.are_weights(weights, n):
        return weights
    if isinstance(weights, np.ma.MaskedArray):
        raise PescadorError(
            f"weights={weights!r} is a masked array; fill in what is masked, as "
            "weights.filled(0) does"
        )
    try:
        array = np.array(weights, ndmin=1)
        if np.issubdtype(array.dtype, np.complexfloating):
            raise TypeError("complex numbers have no order")
        if dtype is not None or not np.issubdtype(array.dtype, np.floating) or array.itemsize > 8:
            array = array.astype(dtype or np.float64)
    except (TypeError, ValueError) as error:
        raise PescadorError(f"weights={weights!r} must be a vector of numbers: {error}") from error
    if array.ndim != 1 or len(array) != n:
        raise PescadorError(
            f"weights has shape {array.shape}; it must have one number for each of the {n} "
            "streamers"
        )
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise PescadorError(f"weights[{i}]={array[i]!r} must be a finite number, 0 or more")
    with np.errstate(over="ignore"):
        total = np.sum(array)
    if not 0 < total < np.inf:
        raise PescadorError(
            f"weights add up to {total!r}; they must have a positive, finite sum, and so need at "
            "least one positive value"
        )
    return array


def _as_weights(weights: Weights, n: int, dtype: Any = None) -> npt.NDArray[Any]:
    """Return the same normalised, as an array of our own; all the same for None."""
    if weights is None:
        # Normalised below, too: six sixths do not add up to one.
        weights = 1.0 / n * np.ones(n)
    array = np.array(_checked_weights(weights, n, dtype))
    array /= np.sum(array)
    return array


def _check_rate(rate: Any, least: float) -> None:
    # Counts are drawn as 64-bit integers.
    most = 2.0**63 if least else np.inf
    if rate is None or (
        is_number(rate) and rate > 0 and rate >= least and (rate < most or not least)
    ):
        return
    bound = "a number from 1 to 2**63" if least else "a number above 0"
    raise PescadorError(f"rate={rate!r} must be None or {bound}")


def _check_sampling(mux: "StochasticMux[Any]") -> None:
    """Check what a StochasticMux samples by, but for its weights."""
    exact = isinstance(mux, Mux)
    if isinstance(mux, Mux):
        mux.n_active = as_count("k", mux.k)
        switches = (
            as_bool("with_replacement", mux.with_replacement),
            as_bool("revive", mux.revive),
        )
        mux.mode = _AS_MODE[switches]
    n_active = as_count("n_active", mux.n_active)
    as_choice("mode", mux.mode, _modes(mux))
    as_choice("dist", mux.dist, _DISTS)
    _check_rate(mux.rate, least=0.0 if exact or mux.dist == "constant" else 1.0)
    as_bool("prune_empty_streams", mux.prune_empty_streams)
    # Without replacement, a pool smaller than the active set left slots empty in 2.0.
    if not exact and mux.mode != "with_replacement" and n_active > mux.n_streams:
        raise PescadorError(
            f"n_active={n_active} must be at most the number of streamers, "
            f"{mux.n_streams}, with mode={mux.mode!r}"
        )


def _not_plain(mux: "BaseMux[Any]") -> list[Any]:
    """Return those in the pool that are no plain Streamers; refuse what can be made none."""
    pool = mux.streamers if isinstance(mux.streamers, list) else []
    others = _core.not_plain(pool)
    if not all(isinstance(streamer, Streamer) for streamer in others):
        _pool_of(mux, pool)
    return others


def _check(mux: "BaseMux[Any]") -> None:
    """Check all that may have been assigned since a mux was made, but for what is in its pool."""
    if isinstance(mux, ChainMux):
        if not isinstance(mux.streamers, Iterable):
            _pool_of(mux, mux.streamers)
    elif not isinstance(mux.streamers, Sized) or not isinstance(mux.streamers, Iterable):
        raise PescadorError(f"streamers={mux.streamers!r} must be a list of streamers or iterables")
    if isinstance(mux, StochasticMux):
        _check_sampling(mux)
    elif isinstance(mux, RoundRobinMux | ChainMux):
        as_choice("mode", mux.mode, _modes(mux))
    drawn_by = "shuffle" if getattr(mux, "mode", "") == "permuted_cycle" else ""
    if isinstance(mux, StochasticMux | ShuffledMux):
        dtype = np.float64 if isinstance(mux, ShuffledMux) else None
        _checked_weights(mux.weights, mux.n_streams, dtype)
        drawn_by = "choice"
    if drawn_by and not callable(getattr(mux.rng, drawn_by, None)):
        raise PescadorError(
            f"rng={mux.rng!r} must be a random generator, such as util.get_rng(seed)"
        )


def _drawn_index(rng: Any, n: int, p: npt.NDArray[Any]) -> int:
    """Draw one of n with these probabilities."""
    return _draws.as_index(rng.choice(n, p=p), n, rng.choice)


# Functions, not methods: every name on a class may be a subclass's own.


def _as_streamer(streamer: Any) -> Streamer[Any]:
    return streamer if isinstance(streamer, Streamer) else Streamer(streamer)


def _as_pool(streamers: Any) -> Any:
    try:
        iter(streamers)
    except TypeError:
        raise PescadorError(
            f"streamers={streamers!r} must be an iterable of streamers or iterables"
        ) from None
    pool = []
    for i, streamer in enumerate(streamers):
        try:
            pool.append(_as_streamer(streamer))
        except PescadorError as error:
            raise PescadorError(f"streamers[{i}] is no stream: {error}") from error
    return pool


def _as_chain(streamers: Any) -> Any:
    if isinstance(streamers, Iterable):
        return _as_pool(streamers)
    try:
        Streamer(streamers)
    except PescadorError:
        raise PescadorError(
            f"streamers={streamers!r} must be an iterable of streamers or iterables, or a "
            "generator function of such"
        ) from None
    return streamers


def _pool_of(mux: "BaseMux[Any]", streamers: Any) -> Any:
    """Return what a mux is to have for its pool, if it is given these."""
    return _as_chain(streamers) if isinstance(mux, ChainMux) else _as_pool(streamers)


def _require_streams(mux: "BaseMux[Any]") -> None:
    if not mux.n_streams:
        raise PescadorError(f"streamers={mux.streamers!r} is empty; a mux needs a stream")


def _modes(mux: "BaseMux[Any]") -> tuple[str, ...]:
    """Return the modes that a mux can have."""
    if isinstance(mux, StochasticMux):
        return ("with_replacement", "single_active", "exhaustive")
    if isinstance(mux, RoundRobinMux):
        return ("exhaustive", "cycle", "permuted_cycle")
    return ("exhaustive", "cycle")


def _is_compiled(mux: "BaseMux[Any]") -> bool:
    """Tell whether an engine does all that a mux does; if not, its hooks are called."""
    return (
        _core.is_stock(mux)
        and isinstance(mux, StochasticMux | ShuffledMux | RoundRobinMux | ChainMux)
        and (mux.rng is np.random or type(mux.rng) in (np.random.RandomState, np.random.Generator))
        # Other types round sums of weights in their own way, which is NumPy's to know.
        and (
            not isinstance(mux, StochasticMux) or getattr(mux.weights, "dtype", None) == np.float64
        )
    )


def _shared_generators(
    mux: "BaseMux[Any]", scope: _core.Scope | None, seen: dict[int, Any]
) -> list[Any]:
    """Return the generators in this tree of muxes that others may hold, each once.

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
        to_do += [below for below in _not_plain(mux) if isinstance(below, BaseMux)]
    return list(found.values())


def _poisson_mean(mux: "StochasticMux[Any]") -> float | None:
    """Return the mean of the Poisson part of a sample count, which starts at 1."""
    if mux.rate is None:
        return None
    return mux.rate if isinstance(mux, Mux) else mux.rate - 1


def _initial_weights(mux: "StochasticMux[Any]", rng: Any) -> npt.NDArray[Any] | None:
    """Draw the weights that the binomial counts of the first streams are based on."""
    if isinstance(mux, Mux):
        return None
    try:
        drawn: npt.NDArray[Any] = rng.choice(
            mux.weights,
            size=mux.n_active,
            p=mux.weights / np.sum(mux.weights),
            replace=mux.mode == "with_replacement",
        )
    except ValueError:
        # Fewer streams have a weight than are to be open.
        return np.zeros(mux.n_active)
    except IndexError as error:
        raise PescadorError(f"the random generator {rng!r} gave no index: {error}") from error
    return drawn


def _draw_count(mux: "StochasticMux[Any]", weight: float, idx: int) -> float | None:
    """Draw how many samples a stream may give that enters slot `idx` with this weight."""
    if mux.rate is None or mux.dist == "constant":
        return mux.rate
    if mux.dist == "binomial":
        others = np.sum(mux.stream_weights_) - mux.stream_weights_[idx]
        with np.errstate(invalid="ignore"):
            p = weight / (others + weight)
        # Close to 1 (or 0 / 0), the Poisson distribution is the limit.
        if p <= 0.9999:
            n = int((mux.rate - 1) / (1 - p))
            return 1 + _draws.drawn_count(mux.rng.binomial, (n, 1 - p))
    return 1 + _draws.drawn_count(mux.rng.poisson, (_poisson_mean(mux),))


def _engine(mux: "BaseMux[Any]", parent: _core.Scope | None) -> _mux.Engine:
    """Return a new engine for one activation of a mux, inside that of `parent` if any."""
    _check(mux)
    own = None if mux.rng is np.random else mux.rng
    seen: dict[int, Any] = {}
    shared = _shared_generators(mux, parent, seen)
    scope = _core.Scope(parent, own, shared, seen)
    if isinstance(mux, StochasticMux):
        draw_initial = functools.partial(_initial_weights, mux)
        return _mux.StochasticEngine(mux, scope, mux.n_active, _poisson_mean(mux), draw_initial)
    if isinstance(mux, ShuffledMux):
        return _mux.ShuffledEngine(mux, scope, mux.n_streams)
    if isinstance(mux, RoundRobinMux):
        return _mux.RoundRobinEngine(mux, scope, mux.n_streams)
    return _mux.ChainEngine(mux, scope, 1)


def _open(mux: "BaseMux[Any]", parent: _core.Scope | None) -> _mux.Engine | None:
    """Return the engine of one activation of a mux, or None if its hooks are to be called."""
    return _engine(mux, parent) if _is_compiled(mux) else None


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
    PescadorError
        If an argument is invalid.
    """

    streamers: Any
    rng: Any
    weights: Any
    # On an activated copy, the engine that runs it, or what hooks of a chain started last.
    __pescador_engine__: Any
    __pescador_started__: Any

    def __init__(
        self,
        streamers: Iterable[Any] | Callable[[], Iterable[Any]],
        random_state: Seed = None,
    ) -> None:
        self.streamers = _pool_of(self, streamers)
        self.rng = get_rng(random_state)
        # A generator that was not made here may be held, and drawn from, by others.
        made_here = isinstance(random_state, int | np.integer | np.random.SeedSequence)
        self.__pescador_rng__: Any = self.rng if made_here else None
        self._reset()
        self.active_count_ = 0

    def __copy__(self) -> Self:
        # From now on, two hold the generator.
        self.__pescador_rng__ = None
        return super().__copy__()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("rng") is np.random:
            # A module cannot be pickled; its name can.
            state["rng"] = "numpy.random"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("rng") == "numpy.random":
            state = {**state, "rng": np.random}
        self.__dict__.update(state)

    def __enter__(self, *args: Any, **kwargs: Any) -> Self:
        """Activate: return a copy with an active set, ready to be read from."""
        if self.is_activated_copy:
            return self
        if not _is_compiled(self):
            return super().__enter__()
        engine = _engine(self, None)
        active = copy.copy(self)
        active.rng = engine.rng
        engine.is_shown = True
        active.__pescador_engine__ = engine
        self.active_count_ += 1
        return active

    @property
    def is_activated_copy(self) -> bool:
        """Whether this is the copy that an iteration works on, rather than the original."""
        return "__pescador_engine__" in self.__dict__ or getattr(self, "streams_", None) is not None

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
        PescadorError
            At the first ``next``, if `max_iter` is no such number.

        Notes
        -----
        With hooks, this is the loop, on an activated copy ``mux``::

            while given < max_iter and mux._streamers_available():
                slot = mux._next_sample_index()
                try:
                    yield next(mux.streams_[slot])
                    mux.stream_counts_[slot] += 1
                except StopIteration:
                    mux._on_stream_exhausted(slot)
                    mux._replace_stream(slot)
        """
        scope = _core.around(self)
        if _is_compiled(self) and not self.is_activated_copy:
            # As below, without the copy that nobody would see.
            samples = _engine(self, scope).bounded(max_iter)
            self.active_count_ += 1
            try:
                yield from samples
            finally:
                # Whoever keeps an error keeps this frame, by way of the traceback.
                del samples
                self.active_count_ -= 1
            return
        with self as active:
            try:
                if "__pescador_engine__" in active.__dict__:
                    yield from _core.Bounded(active.__pescador_engine__, max_iter, False)
                else:
                    yield from _mux.HookLoop(active, max_iter, scope)
            finally:
                if active is not self:
                    for name in (
                        "__pescador_engine__",
                        "__pescador_started__",
                        "streams_",
                        "stream_generator_",
                    ):
                        active.__dict__.pop(name, None)

    def _reset(self) -> None:
        """Set the attributes of an activation to what they are before one."""

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


class StochasticMux(BaseMux[T]):
    """Sample from a random few of many streams, replaced now and then.

    `n_active` streams are open at a time. Each is picked uniformly from the pool and gives a
    random number of samples, `rate` on average; then another takes its place. Among the open
    ones, each sample comes from one chosen by weight.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable
        The pool.
    n_active : int > 0
        How many streams are open at a time.
    rate : float > 0 or None
        The expected number of samples that an active stream gives before it is replaced. None
        takes each to its end. The random distributions need 1 or more.
    weights : array_like of float, shape (n_streams,), or None
        How often an open stream is sampled, relative to the other open ones; any positive
        scale. They do not act on which streams are opened: one of weight 0 may be, and then keeps
        its place without a sample until the mux ends. None weighs all the same.
    mode : {'with_replacement', 'single_active', 'exhaustive'}
        with_replacement
            A stream may be open several times at once.
        single_active
            A stream is open once at most, and may come back when it was replaced.
        exhaustive
            A stream is opened once and never again.
    prune_empty_streams : bool
        Whether a stream that gave no sample is left out from then on.
    dist : {'binomial', 'constant', 'poisson'}
        How the number of samples of a stream is distributed: ``1 + Binomial((rate - 1) / (1 - p),
        1 - p)`` where p is the chance of the stream within the active set, always `rate`, or
        ``1 + Poisson(rate - 1)``. The binomial's first parameter is rounded down, so its mean may
        be up to ``1 - p`` below `rate`.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`.

    Raises
    ------
    PescadorError
        If an argument is invalid.

    Examples
    --------
    >>> a, b, c = Streamer("a"), Streamer("b"), Streamer("c")
    >>> mux = StochasticMux([a, b, c], 2, rate=5, random_state=0)
    >>> "".join(mux(max_iter=12))
    'bbbcacbbbbbc'
    """

    distribution_ = _State()
    valid_streams_ = _State()
    streams_ = _State()
    stream_idxs_ = _State()
    stream_counts_ = _State()
    stream_weights_ = _State()
    weight_norm_ = _State()

    def __init__(
        self,
        streamers: Iterable[Any],
        n_active: int,
        rate: float | None,
        weights: Weights = None,
        mode: str = "with_replacement",
        prune_empty_streams: bool = True,
        dist: str = "binomial",
        random_state: Seed = None,
    ) -> None:
        super().__init__(streamers, random_state=random_state)
        _require_streams(self)
        self.mode = mode
        self.n_active = n_active
        self.rate = rate
        self.prune_empty_streams = prune_empty_streams
        self.dist = dist
        _check_sampling(self)
        self.n_active = as_count("n_active", n_active)
        self.prune_empty_streams = bool(prune_empty_streams)
        self.weights = _as_weights(weights, self.n_streams)

    def _reset(self) -> None:
        self.distribution_ = np.zeros(self.n_streams)
        self.valid_streams_ = np.zeros(self.n_streams)
        self.streams_ = None
        self.stream_idxs_ = None
        self.stream_counts_ = None
        self.stream_weights_ = None
        self.weight_norm_ = None

    def _activate(self) -> None:
        _check(self)
        _not_plain(self)
        self.distribution_ = 1.0 / self.n_streams * np.ones(self.n_streams)
        self.valid_streams_ = np.ones(self.n_streams, dtype=bool)
        self.streams_ = _mux.vacant(self.n_active)
        initial = _initial_weights(self, self.rng)
        if initial is not None and not (
            np.shape(initial) == (self.n_active,) and np.all(np.asarray(initial) >= 0)
        ):
            raise PescadorError(
                f"{self.rng.choice!r} of a random generator gave {initial!r} where it had to "
                f"choose {self.n_active} of the weights"
            )
        self.stream_weights_ = np.zeros(self.n_active) if initial is None else initial
        self.stream_counts_ = np.zeros(self.n_active, dtype=int)
        self.stream_idxs_ = np.zeros(self.n_active, dtype=int)
        for idx in range(self.n_active):
            if not self.distribution_.any():
                break
            self._new_stream(idx)
        self.weight_norm_ = np.sum(self.stream_weights_)

    def _streamers_available(self) -> bool:
        return bool(self.weight_norm_ > 0.0 and self.valid_streams_.any())

    def _next_sample_index(self) -> int:
        shares = self.stream_weights_ / self.weight_norm_
        return _drawn_index(self.rng, self.n_active, shares)

    def _on_stream_exhausted(self, idx: int) -> None:
        i = self.stream_idxs_[idx]
        if self.prune_empty_streams and self.stream_counts_[idx] == 0:
            self.distribution_[i] = 0.0
            self.valid_streams_[i] = False
        if self.mode == "single_active":
            # It may come back, as likely as the likeliest of the others.
            self.distribution_[i] = self.distribution_.max() or 1.0

    def _activate_stream(self, idx: int, old_idx: int) -> tuple[Iterator[T], float]:
        """Start streamer `idx` for slot `old_idx`; return its stream and its weight."""
        weight = self.weights[idx]
        streamer = _as_streamer(self.streamers[idx])
        stream = streamer.iterate(max_iter=_draw_count(self, weight, old_idx))
        if self.mode != "with_replacement":
            self.distribution_[idx] = 0.0
            if self.distribution_.any():
                self.distribution_ /= np.sum(self.distribution_)
        return stream, weight

    def _new_stream(self, idx: int) -> None:
        i = _drawn_index(self.rng, self.n_streams, self.distribution_)
        self.stream_idxs_[idx] = i
        self.streams_[idx], self.stream_weights_[idx] = self._activate_stream(i, idx)
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int) -> None:
        if self.distribution_.any():
            self.distribution_ /= np.sum(self.distribution_)
            self._new_stream(idx)
        else:
            self.stream_weights_[idx] = 0.0
        self.weight_norm_ = np.sum(self.stream_weights_)


class ShuffledMux(BaseMux[T]):
    """Sample from all streams at random; a stream that ends is restarted.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable
        The streams, all of them open.
    weights : array_like of float, shape (n_streams,), or None
        The share of samples that comes from each stream, on any positive scale. None weighs all
        the same; a stream of weight 0 is never started.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`.

    Raises
    ------
    PescadorError
        If an argument is invalid.

    Notes
    -----
    A stream that gives no sample between its start and its end is left out from then on. The
    mux ends when all are.

    Examples
    --------
    >>> a, b, c = Streamer("a"), Streamer("b"), Streamer("c")
    >>> "".join(ShuffledMux([a, b, c], random_state=0)(max_iter=12))
    'bcbbcbbcaacc'
    >>> mux = ShuffledMux([a, b, c], weights=[2, 1, 1], random_state=0)
    >>> "".join(mux(max_iter=12))
    'bbabcacbaccc'
    """

    streams_ = _State()
    stream_counts_ = _State()
    stream_weights_ = _State()
    weight_norm_ = _State()

    def __init__(
        self, streamers: Iterable[Any], weights: Weights = None, random_state: Seed = None
    ) -> None:
        super().__init__(streamers, random_state=random_state)
        _require_streams(self)
        self.weights = _as_weights(weights, self.n_streams, np.float64)

    def _reset(self) -> None:
        self.streams_ = None
        self.stream_counts_ = None
        self.stream_weights_ = None
        self.weight_norm_ = None

    def _activate(self) -> None:
        _check(self)
        _not_plain(self)
        self.streams_ = [None] * self.n_streams
        self.stream_weights_ = np.array(self.weights, dtype=float)
        self.stream_counts_ = np.zeros(self.n_streams, dtype=int)
        for idx in range(self.n_streams):
            self._new_stream(idx)
        self.weight_norm_ = np.sum(self.stream_weights_)

    def _streamers_available(self) -> bool:
        return bool(self.weight_norm_ > 0.0)

    def _next_sample_index(self) -> int:
        shares = self.stream_weights_ / self.weight_norm_
        return _drawn_index(self.rng, self.n_streams, shares)

    def _on_stream_exhausted(self, idx: int) -> None:
        if self.stream_counts_[idx] == 0:
            self.stream_weights_[idx] = 0.0

    def _new_stream(self, idx: int) -> None:
        weighs = self.stream_weights_[idx] != 0.0
        streamer = _as_streamer(self.streamers[idx])
        self.streams_[idx] = streamer.iterate() if weighs else None
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int) -> None:
        self._new_stream(idx)
        self.weight_norm_ = np.sum(self.stream_weights_)


class RoundRobinMux(BaseMux[T]):
    """Take one sample of each stream in turn.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable
        The streams, all of them open.
    mode : {'exhaustive', 'cycle', 'permuted_cycle'}
        exhaustive
            Skip streams that have ended; end when all have.
        cycle
            When all have ended, start all of them again.
        permuted_cycle
            The same, in a new random order each time but the first.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`; drawn from in ``permuted_cycle`` only.

    Raises
    ------
    PescadorError
        If an argument is invalid.

    Notes
    -----
    A cycle ends after 256 rounds in a row in which no stream has given a sample.

    Examples
    --------
    >>> streams = [Streamer("abc"), Streamer("d"), Streamer("ef")]
    >>> "".join(RoundRobinMux(streams))
    'adebfc'
    >>> "".join(RoundRobinMux(streams, "cycle")(max_iter=9))
    'adebfcade'
    """

    active_index_ = _State()
    streams_ = _State()
    stream_idxs_ = _State()
    stream_counts_ = _State()

    def __init__(
        self, streamers: Iterable[Any], mode: str = "exhaustive", random_state: Seed = None
    ) -> None:
        self.mode = as_choice("mode", mode, _modes(self))
        super().__init__(streamers, random_state=random_state)
        _require_streams(self)

    def _reset(self) -> None:
        self.active_index_ = None
        self.streams_ = None
        self.stream_idxs_ = None
        self.stream_counts_ = None

    def _activate(self) -> None:
        _check(self)
        _not_plain(self)
        self._setup_streams(permute=False)

    def _setup_streams(self, permute: bool = False) -> None:
        """Begin a round: open all streams, in random order if asked."""
        self.active_index_ = 0
        self.streams_ = [None] * self.n_streams
        self.stream_idxs_ = np.arange(self.n_streams)
        if permute:
            self.rng.shuffle(self.stream_idxs_)
            if not np.array_equal(np.sort(self.stream_idxs_), np.arange(self.n_streams)):
                raise PescadorError(
                    f"{self.rng.shuffle!r} of a random generator did not permute what it was given"
                )
        self.stream_counts_ = np.zeros(self.n_streams, dtype=int)
        for idx in range(self.n_streams):
            self._new_stream(idx)

    def _streamers_available(self) -> bool:
        return any(stream is not None for stream in self.streams_)

    def _next_sample_index(self) -> int:
        while True:
            idx: int = self.active_index_
            self.active_index_ = (idx + 1) % len(self.streams_)
            if self.streams_[idx] is not None:
                return idx

    def _new_stream(self, idx: int) -> None:
        streamer = _as_streamer(self.streamers[self.stream_idxs_[idx]])
        self.streams_[idx] = streamer.iterate()
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int | None = None) -> None:
        self.streams_[idx] = None
        if self.mode != "exhaustive" and not self._streamers_available():
            self._setup_streams(permute=self.mode == "permuted_cycle")


class ChainMux(BaseMux[T]):
    """Run one stream to its end, then the next, as ``itertools.chain`` does.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable, or generator function of such
        The streams in order. A generator function is called at each pass, so that streamers may
        be made as they are needed. May be empty.
    mode : {'exhaustive', 'cycle'}
        exhaustive
            End after the last stream.
        cycle
            Start with the first again.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        Accepted for the sake of one interface; nothing is drawn.

    Raises
    ------
    PescadorError
        If an argument is invalid; while iterating, if a generator function gives something that
        is no stream.

    Notes
    -----
    A cycle ends after 256 passes in a row in which no stream has given a sample.

    Examples
    --------
    >>> "".join(ChainMux(["abc", "de"]))
    'abcde'
    >>> "".join(ChainMux(["abc", "de"], mode="cycle")(max_iter=8))
    'abcdeabc'
    >>> def repeats():
    ...     for letter in "abc":
    ...         yield Streamer(letter * 3)
    >>> "".join(ChainMux(repeats))
    'aaabbbccc'
    """

    chain_streamer_ = _State()
    stream_generator_ = _State()
    streams_ = _State()
    stream_counts_ = _State()

    def __init__(
        self,
        streamers: Iterable[Any] | Callable[[], Iterable[Any]],
        mode: str = "exhaustive",
        random_state: Seed = None,
    ) -> None:
        self.mode = as_choice("mode", mode, _modes(self))
        super().__init__(streamers, random_state=random_state)

    def _reset(self) -> None:
        self.chain_streamer_ = None
        self.chain_generator_ = None
        self.streams_ = None
        self.stream_counts_ = None

    def _activate(self) -> None:
        _check(self)
        _not_plain(self)
        self.chain_streamer_ = Streamer(self.streamers)
        self.stream_generator_ = self.chain_streamer_.iterate()
        self.streams_ = [iter(())]
        self.stream_counts_ = np.zeros(1, dtype=int)
        self._new_stream()

    def _streamers_available(self) -> bool:
        return bool(self.chain_streamer_.active)

    def _next_sample_index(self) -> int:
        return 0

    def _replace_stream(self, idx: int | None = None) -> None:
        self._new_stream()

    def _new_stream(self, idx: int | None = None) -> None:
        streamer = next(self.stream_generator_, None)
        started = self.__dict__.get("__pescador_started__")
        if streamer is None and self.mode == "cycle":
            self.stream_generator_ = self.chain_streamer_.iterate()
            streamer = next(self.stream_generator_, None)
            started = None
        if streamer is not None:
            streamer = _as_streamer(streamer)
            # Which one it is, and its place in the pass: seeds are made from it.
            self.__pescador_started__ = (streamer, started[1] + 1 if started else 0)
            self.streams_[0] = streamer.iterate()
            self.stream_counts_[0] = 0


class Mux(StochasticMux[T]):
    """The mux of pescador 2.0 and before; use `StochasticMux` with ``dist="poisson"``.

    .. deprecated:: 2.0

    It draws ``1 + Poisson(rate)`` samples from each stream, so `rate` is one less than there.

    Parameters
    ----------
    streamers : iterable of Streamer or iterable
        The pool.
    k : int > 0
        How many streams are open at a time; ``n_active`` there.
    rate : float > 0 or None
        The mean of the Poisson distribution.
    weights : array_like of float, shape (n_streams,), or None
        See `StochasticMux`.
    with_replacement : bool
        Whether a stream may be open several times at once.
    prune_empty_streams : bool
        Whether a stream that gave no sample is left out from then on.
    revive : bool
        Without replacement, whether a stream that was replaced may come back.
    random_state : None, int, RandomState, Generator, BitGenerator or SeedSequence
        See `pescador.util.get_rng`.

    Raises
    ------
    PescadorError
        If an argument is invalid.

    Warns
    -----
    DeprecationWarning
        Always.
    """

    def __init__(
        self,
        streamers: Iterable[Any],
        k: int,
        rate: float | None = 256.0,
        weights: Weights = None,
        with_replacement: bool = True,
        prune_empty_streams: bool = True,
        revive: bool = False,
        random_state: Seed = None,
    ) -> None:
        warnings.warn(
            'Mux is deprecated since pescador 2.0: use StochasticMux, with dist="poisson", '
            "rate + 1, and a mode instead of with_replacement and revive",
            DeprecationWarning,
            stacklevel=2,
        )
        self.k = k
        self.with_replacement = with_replacement
        self.revive = revive
        super().__init__(
            streamers,
            n_active=k,
            rate=rate,
            weights=weights,
            prune_empty_streams=prune_empty_streams,
            dist="poisson",
            random_state=random_state,
        )
        self.k = self.n_active


for _class, _more in (
    (BaseMux, ()),
    (StochasticMux, ("_activate_stream",)),
    (ShuffledMux, ()),
    (RoundRobinMux, ("_setup_streams",)),
    (ChainMux, ()),
    (Mux, ("_activate_stream",)),
):
    _core.register(_class, (*_HOOKS, *_more), opener=_open)
