"""For ``Model.fit`` of Keras 3: streams in epochs of a fixed length.

``import pescador.keras`` imports keras; ``import pescador`` does not.
"""

from collections.abc import Iterable
from typing import Any

import keras

from ._checks import as_bool, as_count, is_number
from ._parts import Tree
from ._state import check_format
from .core import Streamer
from .exceptions import DataError, StateError

__all__ = ["Dataset"]

#: How many batches Keras takes to look at one: one more where it copies to a device ahead.
_LOOKED_AT = 2


class Dataset(keras.utils.PyDataset):
    """A stream as a data set of Keras: what ``fit``, ``evaluate`` and ``predict`` take.

    Parameters
    ----------
    streamer : Streamer or iterable
        Batches as Keras takes them: tuples ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, as
        `keras_tuples` makes them, or dicts by the names of inputs.
    steps_per_epoch : int > 0 or None
        How many batches make an epoch. None leaves it to ``fit``, whose ``steps_per_epoch`` must be
        given then.
    restart : bool
        Whether each epoch begins the stream anew, for validation: the same batches each time, if
        the streamer has a seed. Otherwise an epoch goes on where the one before has ended.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    DataError
        When a batch is asked for, if the stream is empty or cannot begin again; or, with `restart`,
        if it has fewer batches than an epoch.

    See Also
    --------
    keras_tuples : what makes pairs of batches.

    Notes
    -----
    **A stream that ends begins again**, in the middle of an epoch if need be: as the next epoch of
    its `Seeded` or `Sharded`, if there is one. With `restart`, it is always the same epoch.

    **Batches come in order**, whatever ``shuffle`` says: shuffling is the business of muxes. To
    make them in the background, use `ParallelStreamer` or `ZMQStreamer`; the workers of Keras would
    ask one stream for several batches at a time.

    **Leave** ``steps_per_epoch`` **of** ``fit`` **alone** where this has one: on TensorFlow, Keras
    reads ahead of epochs that are shorter, and drops what it has read.

    **Before it trains**, Keras looks at a batch or two to build a model. They come again in the
    first epoch, unless they are all of it.

    Examples
    --------
    >>> import numpy as np
    >>> rows = [(np.full((4, 1), i), np.full(4, i)) for i in range(3)]
    >>> dataset = Dataset(rows, 2)
    >>> len(dataset)
    2
    >>> [int(y[0]) for x, y in dataset], [int(y[0]) for x, y in dataset]
    ([0, 1], [2, 0])
    """

    def __init__(
        self,
        streamer: Iterable[Any],
        steps_per_epoch: int | None = None,
        *,
        restart: bool = False,
    ) -> None:
        super().__init__()
        self.streamer = streamer if isinstance(streamer, Streamer) else Streamer(streamer)
        if steps_per_epoch is not None:
            steps_per_epoch = as_count("steps_per_epoch", steps_per_epoch, " or None")
        self.steps_per_epoch = steps_per_epoch
        self.restart = as_bool("restart", restart)
        self._tree = Tree(self.streamer)
        self._first = self._tree.epoch
        self._passes = 0
        self._stream: Any = None
        # Whether an epoch is under way, how many batches it has given, and the first of them.
        self._is_within = False
        self._given = 0
        self._begun: list[Any] = []
        # Whether the next batch is the first of an iterator; batches that were given before, which
        # Keras has only looked at if it is; and batches to be given again.
        self._is_first = False
        self._looked_at: list[Any] = []
        self._again: list[Any] = []

    def __len__(self) -> int:
        if self.steps_per_epoch is None:
            raise TypeError("a data set without steps_per_epoch has no length")
        return self.steps_per_epoch

    @property
    def num_batches(self) -> int | None:
        """How many batches Keras makes an epoch of, or None."""
        # Keras asks whenever it begins an iterator.
        self._is_first = True
        return self.steps_per_epoch

    def _open(self, state: Any = None) -> None:
        self._tree.epoch = self._first + self._passes
        self._stream = self._tree.top.open(state=state)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __getitem__(self, index: int) -> Any:
        """Return the next batch."""
        if self._is_first:
            self._again = self._looked_at + self._again
        self._is_first, self._looked_at = False, []
        batch = self._again.pop(0) if self._again else self._next()
        self._given += 1
        if self._given <= _LOOKED_AT:
            self._begun.append(batch)
        else:
            self._begun.clear()
        return batch

    def _next(self) -> Any:
        for _ in range(2):
            if self._stream is None:
                self._open()
            try:
                return next(self._stream)
            except StopIteration:
                n = self._stream.index
                self._close()
                if self.restart and n:
                    raise DataError(
                        f"{self.streamer!r} has ended after {n} batches, before the end of the "
                        f"epoch: steps_per_epoch={self.steps_per_epoch!r} must be at most {n}"
                    ) from None
                self._passes += 1
        raise DataError(
            f"{self.streamer!r} has no batch to give: it is empty, or it has ended and, as an "
            "iterator, cannot begin again"
        )

    def on_epoch_begin(self) -> None:
        """Begin an epoch; called by Keras."""
        # On TensorFlow, Keras has looked at batches before it begins one.
        self._end(only_looked=True)
        self._is_within = True
        if self.restart:
            self._close()

    def on_epoch_end(self) -> None:
        """End an epoch, or a look at its first batch; called by Keras."""
        if not self._is_within and not self._given:
            # Of a model that is built, there is no look before the first epoch.
            self._looked_at = []
        self._end(only_looked=self._given != self.steps_per_epoch)
        self._is_within = False

    def _end(self, only_looked: bool) -> None:
        if only_looked and not self.restart:
            self._looked_at += self._begun
        self._given, self._begun = 0, []

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is: as of the last batch that it has given.

        Take it at the end of an epoch: in the middle of one, or without `steps_per_epoch`, Keras
        may be some batches ahead.

        Returns
        -------
        state : dict
            Numbers, strings, bytes, lists, tuples, dicts and NumPy arrays.

        Raises
        ------
        StateError
            If the stream cannot be restored exactly; or between the look at the first batch, to
            build a model, and the first epoch.
        """
        if self._again or self._looked_at:
            raise StateError(
                "Keras has looked at a batch and not trained on it: take the state after an epoch"
            )
        stream = None if self._stream is None else self._stream.state_dict()
        return {"pescador.keras": 1, "passes": self._passes, "stream": stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next epoch go on from where another data set of the same streamer was.

        Parameters
        ----------
        state : dict
            As `state_dict` has returned it.

        Raises
        ------
        StateError
            If the state is of another streamer, or of a version that is not known.
        """
        check_format(state, "pescador.keras", (1,))
        passes = state["passes"]
        if not (is_number(passes, int) and passes >= 0):
            raise StateError(f"the state has counted {passes!r} passes, which is no count")
        self._close()
        self._passes, self._again, self._looked_at = passes, [], []
        if state["stream"] is not None:
            self._open(state["stream"])
