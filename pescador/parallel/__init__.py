"""`ParallelStreamer`: streams that run ahead, in an order that does not depend on it.

The engines of a tree run here, and decide which stream gives the next item (`pescador._schedule`).
The streams run in worker processes or threads, a few items ahead. Everything that is drawn comes
from one seed (`pescador.Seeded`), by which stream it is and how often it was visited, and so is the
same wherever it is drawn.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from .. import _core, _hooks, _schedule, _visits
from .._channel import process
from .._channel.signals import Guard
from .._checks import as_bool, as_choice, as_count, as_whole
from .._state import Loader, Saver
from ..core import Visited, visit_of
from ..exceptions import ArgumentError
from ..seeded import Seeded, sequence_of
from .placement import Placement, length_of, notes_on
from .pool import Kind, Pool
from .processes import ProcessKind
from .threads import ThreadKind

__all__ = ["ParallelStreamer"]

T = TypeVar("T")

_KINDS: dict[str, Kind] = {"process": ProcessKind(), "thread": ThreadKind()}

# As `Schedule.stats` names them.
_COUNTED = (
    *("taken", "opened", "opened_in_vain", "wrong_plans"),
    *("waits", "seconds_waited", "restarts"),
)


def kind_of(kind: Any) -> Kind:
    """Return where visits run that a name says, or that an object is."""
    if isinstance(kind, Kind):
        return kind
    hint = ", or an object such as pescador.ray.Executor()"
    return _KINDS[as_choice("kind", kind, tuple(_KINDS), hint)]


def _check(parallel: "ParallelStreamer[Any]") -> None:
    """Refuse options that are invalid: passed, or assigned since."""
    kind = kind_of(parallel.kind)
    if parallel.workers is None:
        parallel.workers = kind.usual_workers()
    for name in ("workers", "read_ahead", "open_ahead"):
        if getattr(parallel, name) is not None:
            setattr(parallel, name, as_whole(name, getattr(parallel, name), 1 << 31))
    parallel.max_bytes = as_count("max_bytes", parallel.max_bytes)
    if parallel.restart is not None:
        as_bool("restart", parallel.restart)
    as_bool("keep_workers", parallel.keep_workers)
    if parallel.start_method is not None:
        as_choice("start_method", parallel.start_method, process.METHODS)
    kind.check(parallel)


class ParallelStreamer(Visited[T]):
    """A streamer whose streams run in several workers, ahead of the consumer.

    It yields what ``Seeded(streamer, seed)`` yields: the same items in the same order, for any
    number of workers, of either kind, however far they run ahead and whatever their timing.

    Parameters
    ----------
    streamer : Streamer or iterable
        The tree. Given a `Seeded`, its seed governs. Otherwise four words are drawn from
        ``np.random`` at the first item, as ``np.random.randint(0, 2**32, 4, np.uint64)`` would, and
        ``SeedSequence(words)`` is the seed.
    workers : int >= 0 or None
        How many processes or threads. 0 is none: all runs here, and no other option has an
        effect. None is the number of processors that this process may use, less one, and at least
        one.
    kind : {'process', 'thread'} or pescador.ray.Executor
        Threads help where streams wait, or leave the interpreter to others (files, decompression,
        networks), and copy nothing. An executor has them run on other machines.
    read_ahead : int >= 0 or None
        How many items are made early, of each open stream. None is 2, and more where processes make
        them so fast that handing them over counts: as many as keep each one busy for 10 ms.
    open_ahead : int >= 0 or None
        How many visits begin before they are due, besides those of which `read_ahead` has items
        made early. None is the number of workers.
    max_bytes : int > 0
        How much memory may be taken by items that are made early, or are held as views by the
        consumer. Batches that processes write, and the consumer holds, may take as much again. One
        item above it passes alone.
    start_method : {'fork', 'spawn', 'forkserver'} or None
        How to start processes; see `ZMQStreamer`. With threads, this and the next two are refused.
    restart : bool or None
        Whether the visits of a process that was killed are made again by another one. Not an item
        changes. Without, it is an error. None is what the kind does: True on other machines, else
        False.
    keep_workers : bool
        Whether processes wait for the next iteration, instead of being started anew for each. They
        know the tree as it was when they were started; another one gets new processes, and so do
        other options. Another seed or epoch of the same tree does not.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    PescadorError
        While iterating: if workers cannot be started, if one dies, or an item cannot be sent.
        With processes, it stands for an exception that cannot be pickled or is no `Exception`
        (``sys.exit`` raises `SystemExit`), and quotes it.
    Exception
        While iterating, whatever a stream raised, where its item would have come. Its
        ``__cause__`` carries the traceback of a worker process.

    See Also
    --------
    ZMQStreamer : one worker that runs the whole streamer.

    Notes
    -----
    **What runs where.** A *visit* is one activation of a stream by a mux: the unit of work. Muxes
    run here, and so do maps above them; maps below a mux run with their stream. What cannot run
    apart from the rest runs here too, in its place in the order: streams with hooks of their own,
    generator objects and open files, streams that share a random generator with others, and, with
    threads, functions that may draw from the global random states (unless they are given `SPAWN`,
    or ``Seeded(states=())`` promises that they do not). ``print(parallel)`` says which.

    **Items** may be anything that can be pickled; mappings of keys to arrays go through shared
    memory, as those of a `ZMQStreamer`. Threads hand over what was made, whatever it is.

    **The tree** is what it was when the iteration began: workers do not see what is changed later.

    Examples
    --------
    >>> import numpy as np
    >>> from pescador import ShuffledMux, Streamer
    >>> def noise(scale):
    ...     while True:
    ...         yield {"x": scale * np.random.rand(3)}
    >>> mux = ShuffledMux([Streamer(noise, s) for s in (1, 10, 100)])
    >>> run = Seeded(mux, 7)
    >>> here = list(run(max_iter=20))
    >>> there = list(ParallelStreamer(run, 2)(max_iter=20))
    >>> all(np.array_equal(a["x"], b["x"]) for a, b in zip(here, there))
    True
    """

    # As a channel to a worker asks for: arrays may be views, and how long to wait for its end.
    copy = False
    timeout = 5
    start_timeout = None

    def __init__(
        self,
        streamer: Iterable[T],
        workers: int | None = None,
        *,
        kind: str | Kind = "process",
        read_ahead: int | None = None,
        open_ahead: int | None = None,
        max_bytes: int = 256 * 2**20,
        start_method: str | None = None,
        restart: bool | None = None,
        keep_workers: bool = False,
    ) -> None:
        super().__init__(streamer)
        self.workers: Any = workers
        self.kind = kind
        self.read_ahead = read_ahead
        self.open_ahead = open_ahead
        self.max_bytes = max_bytes
        self.start_method = start_method
        self.restart = restart
        self.keep_workers = keep_workers
        _check(self)

    # Its workers that wait, its last iteration, and what is around it.
    __pescador_own__ = frozenset({"__pescador_kept__", "__pescador_last__", "__pescador_around__"})

    def __pescador_visit__(self, scope: _core.Scope | None) -> "ParallelVisit":
        return ParallelVisit(self, scope)

    # What `print` says beneath the tree.
    @staticmethod
    def __pescador_notes__(parallel: Any) -> Iterator[tuple[str, Any]]:
        fields = parallel.__dict__
        # It may be half built, or have been assigned what will be refused.
        with suppress(ArgumentError, KeyError):
            yield from notes_on(fields["streamer"], fields["workers"], kind_of(fields["kind"]))

    def stats(self) -> dict[str, Any]:
        """Return what was counted in the iteration that began last.

        Returns
        -------
        stats : dict of {str: number}
            ``taken``: items of visits that were made elsewhere. Some of them are dropped: a mux
            takes one more than the rate of a visit, and batches with `max_iter` one more batch.
            ``opened``, ``opened_in_vain``: such visits, and those of them that were never due.
            ``wrong_plans``: how often a stream ended before it was thought to. ``waits``,
            ``seconds_waited``: how often, and for how long in all, an item was not there when it
            was due. ``restarts``: workers that were replaced. All are 0 where everything runs here.
        """
        last = self.__dict__.get("__pescador_last__")
        return dict.fromkeys(_COUNTED, 0) if last is None else last.stats()


class ParallelVisit(_schedule.Begun):
    """One iteration of a `ParallelStreamer`, which starts in a scope."""

    # What is only half made is closed, too.
    pool: Any = None
    guard: Guard | None = None
    schedule: Any = None

    def __init__(self, parallel: ParallelStreamer[Any], scope: _core.Scope | None) -> None:
        _check(parallel)
        self.parallel = parallel
        outer: Any = None if scope is None else scope.run
        self.path: Any = ()
        if scope is not None and outer is not None:
            self.path = _visits.states_of_visit(scope, only_path=True)
        self.tracks = outer is not None and outer.tracks
        self.tree = parallel.streamer
        # The entropy that was drawn, if it was.
        self.words: list[int] | None = None
        self.sequence: Any = None
        self.governs: tuple[str, ...] = ("numpy", "random")
        if type(self.tree) is Seeded and _hooks.is_stock(self.tree):
            run = self.tree.__pescador_run__(self.tracks)
            self.sequence, self.governs, self.tree = run.sequence, run.governs, self.tree.streamer
        elif outer is not None and outer.is_seeded:
            self.sequence = sequence_of(outer.sequence, *self.path)
            self.governs = outer.governs

    def begin(self) -> Any:
        """Start the workers; return what the items are read from."""
        self.parallel.__dict__["__pescador_last__"] = None
        sequence = self.sequence
        if sequence is None:
            if self.words is None:
                self.words = [int(w) for w in np.random.randint(0, 1 << 32, 4, np.uint64)]
            # As `Seeded` derives it, of epoch 0 and rank 0.
            sequence = sequence_of(self.words, 0, 0)
        run = _visits.Run(self.tracks, sequence, self.governs)
        root = _visits.root_scope(run)
        placement = Placement(kind_of(self.parallel.kind), self.governs)
        stream = _visits.stream_of(self.tree)
        is_mux = _schedule.has_pool(stream)
        if self.parallel.workers == 0 or (not is_mux and placement.stays(self.tree)):
            return _visits.open_visit(self.tree, root, {})
        # A visit is run by one worker.
        self._begin_pool(run, self.parallel.workers if is_mux else 1, placement.stays)
        self.schedule = _schedule.Schedule(
            run,
            self.pool,
            placement.stays,
            length_of,
            self.parallel.read_ahead,
            self.pool.workers if self.parallel.open_ahead is None else self.parallel.open_ahead,
            self.parallel.max_bytes,
        )
        self.parallel.__dict__["__pescador_last__"] = self.schedule
        self.pool.join(self.schedule, (self.tracks, sequence, self.governs))
        if is_mux:
            ahead = _visits.Run(False, sequence)
            self.schedule.plan_ahead(
                ahead, lambda: _visits.open_visit(stream, _visits.root_scope(ahead), {})
            )
            return _visits.open_visit(self.tree, root, {})
        return self.schedule.root(self.tree, root)

    def _begin_pool(
        self, run: _visits.Run, workers: int | None, stays: Callable[[Any], str | None]
    ) -> None:
        """Have workers: those that were kept, or new ones."""
        kept = self.parallel.__dict__.pop("__pescador_kept__", None)
        if kept is not None and kept[0].is_usable(self.parallel, self.tree):
            self.pool, self.guard = kept
            return
        watched = _visits.Run(self.tracks, run.sequence, self.governs, False)
        kind = kind_of(self.parallel.kind)
        pool: Pool = kind.new_pool(self.parallel, self.tree, workers, stays, watched)
        self.pool = pool
        self.guard = Guard(self.pool.begin, self.pool.wait_for_end, self.pool.end)
        self.guard.__enter__()

    def close_streams(self) -> None:
        """Close what is open, and end the workers or keep them."""
        schedule, self.schedule = self.schedule, None
        guard, self.guard = self.guard, None
        pool, self.pool = self.pool, None
        if guard is None:
            return
        try:
            try:
                if self.node is not None:
                    self.node.close_streams()
            finally:
                # Kept workers owe nothing to this iteration, whatever a source raised.
                if schedule is not None:
                    schedule.close()
        finally:
            if (
                schedule is not None
                and self.parallel.keep_workers
                and pool.is_usable(self.parallel, self.tree)
            ):
                pool.leave()
                self.parallel.__dict__["__pescador_kept__"] = pool, guard
            else:
                guard.__exit__(None, None, None)

    def __del__(self) -> None:
        self.close_streams()

    @property
    def recipe(self) -> dict[str, Any]:
        """What the state is a state of."""
        recipe: dict[str, Any] = {"class": f"{ParallelStreamer.__module__}.ParallelStreamer"}
        if self.sequence is not None:
            recipe["seed"] = _visits.Run(False, self.sequence, self.governs).recipe
        return recipe

    def save(self, saver: Saver) -> dict[str, Any]:
        """Return where the iteration is, in plain values."""
        if self.node is None:
            self.node = self.begin()
        return {"left": self.left, "words": self.words, "stream": saver.save(self.node)}

    def restore(self, state: dict[str, Any], loader: Loader) -> None:
        """Go on from where another iteration of the same streamer was."""
        self.left = state["left"]
        self.words = loader.own(state["words"])
        self.node = self.begin()
        loader.restore(self.node, state["stream"])

    def replay_cost(self) -> int:
        """Return how many samples restoring would make again."""
        return 0 if self.node is None else int(self.node.replay_cost())

    def shown(self) -> tuple[Any, None, list[Any]]:
        """Return what an open stream shows of it."""
        return self.parallel, None, [] if self.node is None else self.node.shown()[2]


_hooks.register(ParallelStreamer, opener=visit_of)
