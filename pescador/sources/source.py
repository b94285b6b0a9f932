"""What the sources have in common: options, seeds, and how a visit starts.

A *source* is a `Streamer` over data that are there already: arrays, or files of them. A *visit* is
one activation of it. Visits are compiled (``_sources.pyx``), and a mux reads them without any
Python in between. A subclass that overrides a hook of `Streamer` gets it called.
"""

from collections.abc import Generator
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _sources
from .._checks import as_bool, as_choice, as_distinct_keys
from .._core import Opened, Scope, around, note_started
from .._hooks import is_stock
from .._hooks import register as register_hooks
from ..core import Streamer
from ..exceptions import ArgumentError
from ..util import Rng, Seed, get_rng
from .stores import Store, check_data, open_store

# Key, array, axis, how far it is from one start to the next, length of a window or -1 for rows,
# whether items are copies.
Cut: TypeAlias = tuple[Any, Any, int, int, int, bool]

_ORDERS = ("random", "shuffled", "sequential")


def _as_generator(random_state: Seed) -> Rng | np.random.SeedSequence:
    """Return what visits draw from: a SeedSequence where each is to have a seed of its own."""
    if isinstance(random_state, np.random.SeedSequence):
        if random_state.pool_size != 4:
            raise ArgumentError(f"random_state={random_state!r} must have a pool_size of 4")
        return random_state
    if isinstance(random_state, int | np.integer):
        if random_state < 0:
            raise ArgumentError(f"random_state={random_state!r} is no seed: it is negative")
        return np.random.SeedSequence(int(random_state))
    return get_rng(random_state)


class Source(Streamer[dict[Any, npt.NDArray[Any]]]):
    """What `Rows` and `Windows` have in common."""

    # Attributes that are none of the options.
    _STATE: ClassVar = frozenset({"active_count_", "stream_", "_plan"})

    data: Any
    keys: list[Any] | None
    order: str
    mmap: bool
    random_state: Seed

    def __init__(self, data: Any, keys: Any, order: Any, mmap: Any, random_state: Any) -> None:
        self.data = data
        self.keys = keys
        self.order = order
        self.mmap = mmap
        self.random_state = random_state
        self.active_count_ = 0
        self.stream_ = None
        self._check()

    def _check(self) -> None:
        """Refuse options that are invalid: passed, or assigned since."""
        if isinstance(self.data, Streamer):
            raise ArgumentError(f"data={self.data!r} is a stream already; a source reads arrays")
        check_data(self.data)
        self.keys = as_distinct_keys(self.keys)
        as_choice("order", self.order, _ORDERS)
        self.mmap = as_bool("mmap", self.mmap)
        if type(self.random_state) is not int or self.random_state < 0:
            _as_generator(self.random_state)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self._STATE:
            self.__dict__.pop("_plan", None)

    __pescador_own__ = frozenset({"_plan", "__pescador_around__"})
    # What is only read is never copied, however large.
    __pescador_same__ = frozenset({"data"})

    def _visit(self, scope: Scope | None) -> _sources.Visit:
        plan = self.__dict__.get("_plan")
        if plan is None:
            self._check()
            plan = self._plan = _sources.Plan(self, _as_generator(self.random_state))
        return plan.start(scope)

    def iterate(
        self, max_iter: float | None = None
    ) -> Generator[dict[Any, npt.NDArray[Any]], None, None]:
        """Iterate over the stream once, to its end or for `max_iter` items.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most; a fraction counts as the next whole number.

        Yields
        ------
        item : dict of {key: ndarray}

        Raises
        ------
        ArgumentError
            At the first ``next``, if `max_iter` is negative, NaN or not a number.
        DataError
            If the data are not what they should be.
        """
        scope = around(self)
        if self.is_activated_copy or type(self)._activate is not Source._activate:
            yield from super().iterate(max_iter)
            return
        with Opened(self, note_started(scope, self, self._visit(scope).bounded(max_iter))) as items:
            yield from items

    def _activate(self) -> None:
        self.stream_ = self._visit(None)

    def _wanted(self) -> list[Any] | None:
        """Return the keys to open."""
        return self.keys

    def _cut(self, store: Store) -> tuple[list[Cut], int, npt.NDArray[np.int64] | None]:
        """Return what `Table` is made of: what is cut from where, how often, and which of those."""
        raise NotImplementedError

    def _open_table(self, plan: _sources.Plan) -> _sources.Table:
        """Open the data, and find where the items lie."""
        store = open_store(self.data, self._wanted(), mmap=self.mmap)
        try:
            if store.tables is None:
                return _sources.Table(store if store.is_file else None, *self._cut(store))
            # Kept with the file and the plan: it goes when either goes.
            table = _sources.Table(None, *self._cut(store))
            store.tables[plan] = table
            plan.remember(table, store.stamp)
            return table
        except BaseException:
            store.close()
            raise


def _open(source: Source, scope: Scope | None) -> _sources.Visit | None:
    """Return a visit, or None if the hooks of a source are to be called."""
    return source._visit(scope) if is_stock(source) else None


def register(cls: type[Source]) -> None:
    """Have the compiled code know a source."""
    register_hooks(cls, "_visit", opener=_open)
