"""`RoundRobinMux`: all streams open, taken in turn."""

from collections.abc import Iterable

import numpy as np

from .. import _core, _mux
from .._checks import as_choice
from .._empty import end_pass
from ..exceptions import PescadorError
from ..util import Seed
from . import base
from .base import BaseMux, EngineAttribute, T

_MODES = ("exhaustive", "cycle", "permuted_cycle")


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
    ArgumentError
        If an argument is invalid.
    PescadorError
        While iterating, if no stream of a cycle gave a sample in 256 rounds in a row.

    Examples
    --------
    >>> streams = [Streamer("abc"), Streamer("d"), Streamer("ef")]
    >>> "".join(RoundRobinMux(streams))
    'adebfc'
    >>> "".join(RoundRobinMux(streams, "cycle")(max_iter=9))
    'adebfcade'
    """

    active_index_ = EngineAttribute()
    stream_idxs_ = EngineAttribute()

    def __init__(
        self, streamers: Iterable[Iterable[T]], mode: str = "exhaustive", random_state: Seed = None
    ) -> None:
        self.mode = as_choice("mode", mode, _MODES)
        super().__init__(streamers, random_state=random_state)
        base.require_streams(self)

    def _activate(self) -> None:
        base.check(self)
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
        streamer = _mux.as_streamer(self.streamers[self.stream_idxs_[idx]])
        self.streams_[idx] = streamer.iterate()
        self.stream_counts_[idx] = 0

    def _replace_stream(self, idx: int | None = None) -> None:
        self.streams_[idx] = None
        if self.mode != "exhaustive" and not self._streamers_available():
            end_pass(self, self.streamers, bool(self.stream_counts_.any()))
            self._setup_streams(permute=self.mode == "permuted_cycle")

    __pescador_has_engine__ = True

    def __pescador_new_engine__(self, scope: _core.Scope) -> _mux.Engine:
        return _mux.RoundRobinEngine(self, scope, self.n_streams)

    def __pescador_check__(self) -> None:
        super().__pescador_check__()
        as_choice("mode", self.mode, _MODES)
        if self.mode == "permuted_cycle":
            base.check_generator(self, "shuffle")


base.register(RoundRobinMux, "_setup_streams")
