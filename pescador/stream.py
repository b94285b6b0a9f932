"""`Stream`: an open iteration that can be held, saved and restored."""

from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

import numpy as np

from . import _core, _hooks, _repr, _visits
from ._state import FORMAT, FORMATS, Loader, Saver, check_format
from .exceptions import PescadorError, StateError

__all__ = ["Stream"]

T = TypeVar("T")


class Stream(_visits.Reader, Iterator[T], Generic[T]):
    """An open stream, as `Streamer.open` returns it: an iterator and a context manager.

    It gives what `Streamer.iterate` yields, and can tell at any time where it is: after
    ``other.load_state_dict(stream.state_dict())``, ``other`` gives exactly the items that
    ``stream`` had still to give. What it has opened (files, generators, workers) is closed when it
    is over: at its end or bound, at an error, or by `close`.

    Parameters
    ----------
    streamer : Streamer
        What it iterates over.
    max_iter : number >= 0 or None
        How many items it gives at most, from now on.

    Attributes
    ----------
    index : int
        How many items it has given, those before its state was taken included.

    Examples
    --------
    >>> from pescador import ShuffledMux, Streamer
    >>> mux = ShuffledMux(["abcdefgh", range(8)], random_state=0)
    >>> with mux.open(max_iter=12) as stream:
    ...     first = [next(stream) for _ in range(6)]
    ...     state = stream.state_dict()
    ...     rest = list(stream)
    >>> list(mux.open(state=state)) == rest
    True
    """

    def __init__(self, streamer: Any, max_iter: float | None = None) -> None:
        if streamer.is_activated_copy:
            raise PescadorError(f"{streamer!r} is an activated copy; open the original")
        self._streamer = streamer
        self._max_iter = max_iter
        # The run that this is a part of, where a worker is given one.
        self._given_run: Any = None
        self._run: Any = None
        self._is_loaded = False
        _core.as_bound(max_iter)

    def _start(self) -> Any:
        """Start the iteration, at the first item; return its iterator."""
        tree = self._streamer
        run = self._given_run
        if run is None and hasattr(type(tree), "__pescador_run__") and _hooks.is_stock(tree):
            run, tree = tree.__pescador_run__(True), tree.streamer
        run = _visits.Run(True) if run is None else run
        node = _visits.open_visit(tree, _visits.root_scope(run), {})
        self._run = run
        self._streamer.active_count_ += 1
        return node.bounded(self._max_iter)

    def _stop(self) -> None:
        """Count one open iteration less."""
        self._streamer.active_count_ -= 1

    def state_dict(self, *, allow_inexact: bool = False) -> dict[str, Any]:
        """Return where the stream is, as of the last item that it has given.

        Parameters
        ----------
        allow_inexact : bool
            Whether to save what can be saved where not all can; ``state["inexact"]`` lists what
            could not.

        Returns
        -------
        state : dict
            Numbers, strings, bytes, lists, tuples, dicts and NumPy arrays.

        Raises
        ------
        StateError
            If a restored stream would not give exactly the items that are to come.
        """
        if self.running:
            raise PescadorError("state_dict() was called while the stream made an item")
        saver = Saver()
        node = self._root()
        tree = saver.save(node)
        if saver.refused and not allow_inexact:
            raise StateError(
                "the state cannot be taken exactly (allow_inexact=True saves what can be): "
                + saver.refusals()
            )
        state = {
            "pescador": FORMAT,
            "index": self.index,
            "ended": bool(self.has_ended),
            "seed": self._run.recipe,
            "tree": tree,
            "inexact": [f"{name}: {reason}" for name, reason in saver.refused],
        }
        if saver.needs_global_state:
            state["numpy"] = np.random.get_state(legacy=False)
        return state

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Go on from where another stream of the same streamer was.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.
        strict : bool
            False lets weights differ and streams be added at the end of a pool.

        Raises
        ------
        StateError
            If the state is of another streamer, of a version that is not known, or if a stream
            gives less or draws otherwise than when the state was taken.
        PescadorError
            If an item was given already, a state was loaded, or the stream was closed.
        """
        check_format(state, "pescador", FORMATS)
        if self.is_started or self.over or self._is_loaded:
            raise PescadorError(
                "load_state_dict() must come before the first item, and once: open another stream"
            )
        self._is_loaded = True
        try:
            node = self._root()
            loader = Loader(strict)
            with loader.refusing(repr(self)):
                loader.is_inexact = bool(state["inexact"])
                loader.compare_roots(
                    (self._run.recipe, getattr(node, "recipe", None)),
                    (state["seed"], state["tree"].get("recipe")),
                )
                index, ended = loader.whole(state, "index", 0), state["ended"]
                loader.restore(node, state["tree"])
                if "numpy" in state:
                    _visits.set_generator(np.random.mtrand._rand, state["numpy"])
        except BaseException:
            # Nobody is to go on with half of it.
            self.close()
            raise
        if self._max_iter is not None:
            node.bounded(self._max_iter)
        # A rank goes on from the state of all ranks together.
        self._resume(getattr(node, "given", index), ended)

    @property
    def replay_cost(self) -> int:
        """How many samples would have to be made again to restore the present state."""
        return int(self._root().replay_cost())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def _tree(self) -> _repr.Node:
        """Return what is open, and how far each is."""
        state = "ended" if self.has_ended else "closed" if self.over else "open"
        label = f"{state}, {self.index:,} items given"
        node = self._root() if self.is_started or self._is_loaded else None
        return _repr.Node(f"Stream: {label}", [_repr.open_tree(node, self._streamer)])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PescadorError(
            f"{self!r} cannot be pickled or copied; pickle its state_dict(), and open another"
        )

    def __repr__(self) -> str:
        return f"<Stream of {self._streamer!r}, {self.index:,} items given>"

    def __str__(self) -> str:
        return _repr.text(self._tree())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _repr_html_(self) -> str:
        return _repr.as_html(self._tree())


_visits.step_as_reader(Stream)
