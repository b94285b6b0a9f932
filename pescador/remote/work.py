"""What a worker of a server runs: a stream, whose items and states become arrays."""

import warnings
from collections.abc import Generator
from typing import Any

import numpy as np

from .._channel.reporting import STATE_KEY, Reporting
from ..exceptions import PescadorWarning, StateError
from .values import as_arrays, dumps, loads

__all__ = ["Work"]


class Work(Reporting):
    """What is run for one consumer.

    Parameters
    ----------
    streamer : Streamer
        What is served.
    sequence : SeedSequence or None
        The seed of its root, if it runs under one.
    governs : tuple of str
        The global states that are each visit's own.
    may_pickle : bool
        Whether items that are no plain values may be pickled.
    """

    def __init__(
        self, streamer: Any, sequence: Any, governs: tuple[str, ...], may_pickle: bool
    ) -> None:
        super().__init__(streamer, sequence, governs, True)
        self.may_pickle = may_pickle
        # The state to go on from, as `dumps` wrote it.
        self.written: bytes | None = None

    def __call__(self, max_iter: float | None = None) -> Generator[Any, None, None]:
        """Yield items and reports as mappings of keys to arrays."""
        # That is a word for those who ask for states themselves.
        warnings.filterwarnings("ignore", ".* would be made again", PescadorWarning)
        if self.written is not None:
            try:
                self.state = loads(self.written)
            except Exception as error:
                raise StateError(f"the state is damaged: {error}") from error
        for item in super().__call__(max_iter):
            yield item if isinstance(item, _Report) else as_arrays(item, self.may_pickle)

    def report(self, stream: Any) -> dict[Any, Any]:
        """Return the state of a stream, or why it has none, as an item."""
        written, cost, refused = b"", 0, b""
        try:
            written, cost = dumps(stream.state_dict()), stream.replay_cost
        except StateError as error:
            refused = str(error).encode()
        return _Report(
            {
                STATE_KEY: np.frombuffer(written, np.uint8),
                "cost": np.array(cost),
                "refused": np.frombuffer(refused, np.uint8),
            }
        )


class _Report(dict[Any, Any]):
    """A report among items."""
