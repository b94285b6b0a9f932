"""`StochasticMux`: a random few of many streams open, replaced now and then."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core, _mux, _rng
from .._checks import Weights, as_bool, as_choice, as_count, as_weights, check_weights, is_number
from .._empty import PASSES, check_visits
from ..exceptions import ArgumentError, PescadorError
from ..util import Seed
from . import base
from .base import BaseMux, EngineAttribute, T

_MODES = ("with_replacement", "single_active", "exhaustive")
_DISTS = ("constant", "binomial", "poisson")


def _check_rate(rate: Any, dist: str | None) -> None:
    """Check a rate for counts that are drawn from `dist`; None is the Poisson of 2.0."""
    if rate is None:
        return
    is_drawn_from_1 = dist in ("binomial", "poisson")
    if is_number(rate) and rate > 0 and (not is_drawn_from_1 or 1 <= rate < 2.0**63):
        return
    bound, hint = "a number above 0", ""
    if is_drawn_from_1:
        # Counts are drawn as 64-bit integers.
        bound = "a number from 1 to 2**63"
        hint = f" with dist={dist!r}; dist='constant' takes any above 0"
    raise ArgumentError(f"rate={rate!r} must be None or {bound}{hint}")


def _check_sampling(mux: "StochasticMux[Any]") -> None:
    """Check what a mux samples by, but for its weights."""
    n_active = as_count("n_active", mux.n_active)
    as_choice("mode", mux.mode, _MODES)
    as_choice("dist", mux.dist, _DISTS)
    _check_rate(mux.rate, None if mux.__pescador_is_2_0__ else mux.dist)
    as_bool("prune_empty_streams", mux.prune_empty_streams)
    # Without replacement, a pool smaller than the active set left slots empty in 2.0.
    if not mux.__pescador_is_2_0__ and mux.mode != "with_replacement" and n_active > mux.n_streams:
        raise ArgumentError(
            f"n_active={n_active} must be at most the number of streamers, "
            f"{mux.n_streams}, with mode={mux.mode!r}"
        )


def _poisson_mean(mux: "StochasticMux[Any]") -> float | None:
    """Return the mean of the Poisson part of a sample count, which starts at 1."""
    if mux.rate is None:
        return None
    return mux.rate if mux.__pescador_is_2_0__ else mux.rate - 1


def _initial_weights(mux: "StochasticMux[Any]", rng: Any) -> npt.NDArray[Any] | None:
    """Draw the weights that the binomial counts of the first streams are based on."""
    if mux.__pescador_is_2_0__:
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
            return 1 + _rng.drawn_count(mux.rng.binomial, (n, 1 - p))
    return 1 + _rng.drawn_count(mux.rng.poisson, (_poisson_mean(mux),))


def _note_visit(mux: "StochasticMux[Any]", idx: int) -> None:
    """Note a visit to an ended stream, as the engine does, by the counts of an activated copy."""
    if mux.mode == "exhaustive" or (mux.mode == "with_replacement" and mux.prune_empty_streams):
        return
    given = int(np.sum(mux.stream_counts_))
    before, visits, found, warned = mux.__dict__.get("__pescador_visits__", (0, 0, set(), False))
    if given != before:
        visits, found = 0, set()
    if mux.stream_counts_[idx] == 0:
        visits += 1
        found.add(int(mux.stream_idxs_[idx]))
        if visits % (PASSES * mux.n_streams) == 0:
            warned = check_visits(mux, mux, mux.streamers, visits, found, warned)
    mux.__pescador_visits__ = (given - int(mux.stream_counts_[idx]), visits, found, warned)


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
    ArgumentError
        If an argument is invalid.
    PescadorError
        While iterating, if every stream that could still come was found empty, 256 times each on
        average, and none of them is left out.

    Warns
    -----
    PescadorWarning
        If it has tried a million times in a row without a sample, because an empty stream has
        nearly all of the weight. It goes on.

    Examples
    --------
    >>> a, b, c = Streamer("a"), Streamer("b"), Streamer("c")
    >>> mux = StochasticMux([a, b, c], 2, rate=5, random_state=0)
    >>> "".join(mux(max_iter=12))
    'bbbcacbbbbbc'
    """

    distribution_ = EngineAttribute(idle=lambda mux: np.zeros(mux.n_streams))
    valid_streams_ = EngineAttribute(idle=lambda mux: np.zeros(mux.n_streams))
    stream_idxs_ = EngineAttribute()
    stream_weights_ = EngineAttribute()
    weight_norm_ = EngineAttribute()

    # On an activated copy that runs by its hooks: see `_note_visit`.
    __pescador_visits__: tuple[int, int, set[int], bool]

    def __init__(
        self,
        streamers: Iterable[Iterable[T]],
        n_active: int,
        rate: float | None,
        weights: Weights = None,
        mode: str = "with_replacement",
        prune_empty_streams: bool = True,
        dist: str = "binomial",
        random_state: Seed = None,
    ) -> None:
        super().__init__(streamers, random_state=random_state)
        base.require_streams(self)
        self.mode = mode
        self.n_active = n_active
        self.rate = rate
        self.prune_empty_streams = prune_empty_streams
        self.dist = dist
        _check_sampling(self)
        self.n_active = as_count("n_active", n_active)
        self.prune_empty_streams = bool(prune_empty_streams)
        self.weights = as_weights(weights, self.n_streams)

    def _activate(self) -> None:
        base.check(self)
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
        return base.drawn_index(self.rng, self.n_active, shares)

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
        streamer = _mux.as_streamer(self.streamers[idx])
        stream = streamer.iterate(max_iter=_draw_count(self, weight, old_idx))
        if self.mode != "with_replacement":
            self.distribution_[idx] = 0.0
            if self.distribution_.any():
                self.distribution_ /= np.sum(self.distribution_)
        return stream, weight

    def _new_stream(self, idx: int) -> None:
        i = base.drawn_index(self.rng, self.n_streams, self.distribution_)
        self.stream_idxs_[idx] = i
        self.streams_[idx], self.stream_weights_[idx] = self._activate_stream(i, idx)
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int) -> None:
        _note_visit(self, idx)
        if self.distribution_.any():
            self.distribution_ /= np.sum(self.distribution_)
            self._new_stream(idx)
        else:
            self.stream_weights_[idx] = 0.0
        self.weight_norm_ = np.sum(self.stream_weights_)

    # Whether this is the `Mux` of 2.0, whose `rate` does not count the first sample of a stream.
    __pescador_is_2_0__ = False

    @property
    def __pescador_has_engine__(self) -> bool:  # type: ignore[override]
        # Other types round sums of weights in their own way, which is NumPy's to know.
        return getattr(self.weights, "dtype", None) == np.float64

    def __pescador_new_engine__(self, scope: _core.Scope) -> _mux.Engine:
        draw_initial = functools.partial(_initial_weights, self)
        return _mux.StochasticEngine(self, scope, self.n_active, _poisson_mean(self), draw_initial)

    def __pescador_check__(self) -> None:
        super().__pescador_check__()
        _check_sampling(self)
        check_weights(self.weights, self.n_streams)
        base.check_generator(self, "choice")


base.register(StochasticMux, "_activate_stream")
