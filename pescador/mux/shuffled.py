"""`ShuffledMux`: all streams open, chosen at random."""

from collections.abc import Iterable

import numpy as np

from .. import _core, _mux
from .._checks import Weights, as_weights, check_weights
from ..util import Seed
from . import base
from .base import BaseMux, EngineAttribute, T


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
    ArgumentError
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

    stream_weights_ = EngineAttribute()
    weight_norm_ = EngineAttribute()

    def __init__(
        self, streamers: Iterable[Iterable[T]], weights: Weights = None, random_state: Seed = None
    ) -> None:
        super().__init__(streamers, random_state=random_state)
        base.require_streams(self)
        self.weights = as_weights(weights, self.n_streams, np.float64)

    def _activate(self) -> None:
        base.check(self)
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
        return base.drawn_index(self.rng, self.n_streams, shares)

    def _on_stream_exhausted(self, idx: int) -> None:
        if self.stream_counts_[idx] == 0:
            self.stream_weights_[idx] = 0.0

    def _new_stream(self, idx: int) -> None:
        weighs = self.stream_weights_[idx] != 0.0
        streamer = _mux.as_streamer(self.streamers[idx])
        self.streams_[idx] = streamer.iterate() if weighs else None
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int) -> None:
        self._new_stream(idx)
        self.weight_norm_ = np.sum(self.stream_weights_)

    __pescador_has_engine__ = True

    def __pescador_new_engine__(self, scope: _core.Scope) -> _mux.Engine:
        return _mux.ShuffledEngine(self, scope, self.n_streams)

    def __pescador_check__(self) -> None:
        super().__pescador_check__()
        check_weights(self.weights, self.n_streams, np.float64)
        base.check_generator(self, "choice")


base.register(ShuffledMux)
