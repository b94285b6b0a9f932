"""`ChainMux`: one stream after the other."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import _core, _mux
from .._checks import as_choice
from .._empty import end_pass
from ..core import Streamer
from ..exceptions import ArgumentError, PescadorError
from ..util import Seed
from . import base
from .base import BaseMux, EngineAttribute, T

_MODES = ("exhaustive", "cycle")


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
    ArgumentError
        If an argument is invalid; while iterating, if a generator function gives something that
        is no stream.
    PescadorError
        While iterating, if no stream of a cycle gave a sample in 256 passes in a row.

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

    chain_streamer_ = EngineAttribute()
    stream_generator_ = EngineAttribute()
    # Of 3.0, where it is always None.
    chain_generator_ = None

    def __init__(
        self,
        streamers: Iterable[Iterable[T]] | Callable[[], Iterable[Iterable[T]]],
        mode: str = "exhaustive",
        random_state: Seed = None,
    ) -> None:
        self.mode = as_choice("mode", mode, _MODES)
        super().__init__(streamers, random_state=random_state)

    def _activate(self) -> None:
        base.check(self)
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
        started = self.__dict__.get("__pescador_started__")
        _, place, gave = started or (None, -1, False)
        gave = gave or self.stream_counts_[0] > 0
        streamer = next(self.stream_generator_, None)
        while streamer is None and self.mode == "cycle":
            made = [self.chain_streamer_] if callable(self.streamers) else self.streamers
            end_pass(self, made, gave)
            place, gave = -1, False
            self.stream_generator_ = self.chain_streamer_.iterate()
            streamer = next(self.stream_generator_, None)
        if streamer is not None:
            streamer = _mux.as_streamer(streamer)
            # Its place in the pass, which seeds are made from; whether others of the pass gave any.
            self.__pescador_started__ = (streamer, place + 1, gave)
            self.streams_[0] = streamer.iterate()
            self.stream_counts_[0] = 0

    __pescador_has_engine__ = True

    def __pescador_new_engine__(self, scope: _core.Scope) -> _mux.Engine:
        return _mux.ChainEngine(self, scope, 1)

    def __pescador_pool__(self, streamers: Any) -> Any:
        if isinstance(streamers, Iterable):
            return base.as_pool(streamers)
        try:
            Streamer(streamers)
        except PescadorError:
            raise ArgumentError(
                f"streamers={streamers!r} must be an iterable of streamers or iterables, or a "
                "generator function of such"
            ) from None
        return streamers

    def __pescador_check__(self) -> None:
        if not isinstance(self.streamers, Iterable):
            self.__pescador_pool__(self.streamers)
        as_choice("mode", self.mode, _MODES)


base.register(ChainMux)
