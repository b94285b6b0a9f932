"""`Mux`: the mux of pescador 2.0, and its names of parameters."""

import warnings
from collections.abc import Iterable
from typing import Any

from .._checks import Weights, as_bool, as_count
from ..util import Seed
from .base import T, register
from .stochastic import StochasticMux


def _mode(with_replacement: Any, revive: Any) -> str:
    """Return what 3.0 calls these two switches together."""
    without = "single_active" if as_bool("revive", revive) else "exhaustive"
    return "with_replacement" if as_bool("with_replacement", with_replacement) else without


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
    ArgumentError
        If an argument is invalid.

    Warns
    -----
    DeprecationWarning
        Always.
    """

    def __init__(
        self,
        streamers: Iterable[Iterable[T]],
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
            n_active=as_count("k", k),
            rate=rate,
            weights=weights,
            mode=_mode(with_replacement, revive),
            prune_empty_streams=prune_empty_streams,
            dist="poisson",
            random_state=random_state,
        )
        self.k = self.n_active

    __pescador_is_2_0__ = True

    def __pescador_check__(self) -> None:
        self.n_active = as_count("k", self.k)
        self.mode = _mode(self.with_replacement, self.revive)
        super().__pescador_check__()


register(Mux, "_activate_stream")
