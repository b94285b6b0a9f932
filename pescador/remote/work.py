"""What a worker of a server runs: a stream, whose items and states become arrays."""

import warnings
from collections.abc import Generator
from typing import Any

from .._channel.reporting import Report, Reporting
from ..exceptions import PescadorWarning, StateError
from .values import as_arrays, dumps, loads


class Work(Reporting):
    """What is run for one consumer.

    Parameters
    ----------
    may_pickle : bool
        Whether items that are no plain values may be pickled. The others are those of `Reporting`.
    """

    dumps = staticmethod(dumps)

    def __init__(
        self, streamer: Any, sequence: Any, governs: tuple[str, ...], may_pickle: bool
    ) -> None:
        super().__init__(streamer, sequence, governs, True)
        self.may_pickle = may_pickle

    @staticmethod
    def loads(written: bytes) -> Any:
        """Return what `dumps` wrote, as a consumer has sent it."""
        try:
            return loads(written)
        except Exception as error:
            raise StateError(f"the state is damaged: {error}") from error

    def __call__(self, max_iter: float | None = None) -> Generator[Any, None, None]:
        """Yield items and reports as mappings of keys to arrays."""
        # That is a word for those who ask for states themselves.
        warnings.filterwarnings("ignore", ".* would be made again", PescadorWarning)
        for item in super().__call__(max_iter):
            yield item if isinstance(item, Report) else as_arrays(item, self.may_pickle)
