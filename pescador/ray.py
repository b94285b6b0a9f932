"""Visits in actors of Ray, on any machine of its cluster; ``import pescador.ray`` imports no Ray.

A `ParallelStreamer` whose `kind` is an `Executor` runs its engines and its schedule here, as with
processes, and its visits in actors. docs/inside/ray.rst explains it.
"""

import functools
import os
import pickle
import time
import warnings
from collections import deque
from contextlib import suppress
from typing import Any

from . import _schedule
from ._channel import process, protocol
from ._channel.signals import whole
from ._checks import as_bool, as_count, is_number
from .exceptions import ArgumentError, PescadorError
from .parallel import packets
from .parallel.placement import without_those_that_stay
from .parallel.pool import Kind, Pool
from .parallel.remote import RemoteWorker

__all__ = ["Executor"]

# How many bytes an object has.
_BATCH = 64 * 2**20
# How long (in seconds) a call makes items, at least; and for each worker: so the consumer takes
# some hundred packets a second at most.
_CALL = 0.04
_CALL_PER_WORKER = 0.004
# More items than that in an object save the consumer nothing.
_MOST_IN_PACKET = 512
# Of what a worker makes in a call, so much is on its way: it makes one part, another one is sent,
# and the consumer takes the third.
_PARTS = 3
# Items that are made early at most, of one worker and of all.
_MOST_AHEAD = 1 << 14
# How long (in seconds) to wait for workers that start, where others have: visits stay where they
# have begun.
_PATIENCE = 5
# After how many seconds without any worker to say so.
_SUSPICIOUS = 60
# How many workers may be lost in a row that gave no item.
_ATTEMPTS = 3
# How long (in seconds) handlers of signals wait for a call of Ray, which may make a SystemError of
# what they raise.
_HEARTBEAT = 0.1
# What Ray takes for actors, and would have ours called, named or begun anew by somebody else.
_OURS = frozenset(
    [
        "allow_out_of_order_execution",
        "concurrency_groups",
        "get_if_exists",
        "lifetime",
        "max_concurrency",
        "max_pending_calls",
        "max_restarts",
        "max_task_retries",
        "name",
        "namespace",
    ]
)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "pescador.ray.Executor needs Ray: pip install 'pescador[ray]'", name="ray"
        ) from error
    return ray


def _session(ray: Any) -> Any:
    """Return what tells this session of Ray from others; None without one."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_job_id(), context.get_node_id()


def _check_session(owner: int, session: Any) -> None:
    """Raise where actors of a session cannot be called: Ray would start another session."""
    process.check_owner(owner)
    if _session(_import_ray()) != session:
        raise PescadorError(
            "Ray was shut down while its actors were read from; begin another iteration, or "
            "open the state that the stream had before"
        )


def _last_line(error: BaseException) -> str:
    """Return what an error of Ray says after where it was and whose."""
    return str(error).strip().rpartition("\n")[2]


class Executor(Kind):
    """Has the visits of a `ParallelStreamer` run in actors of Ray.

    Pass it as `kind`: ``ParallelStreamer(streamer, workers, kind=Executor())``. It starts as many
    actors as there are `workers`; without a number, as many as the cluster has processors for when
    the iteration begins. They run wherever the cluster has room. Those for which it has none yet
    are waited for by Ray, and take part as soon as it has. If Ray is not initialised,
    ``ray.init()`` is called, as Ray's own libraries do.

    Parameters
    ----------
    num_cpus : number >= 0
        How many processors Ray reserves for each actor.
    max_visits : int > 0 or None
        How many visits may be open in all actors, before one more begins early. None is no limit
        but how far items are made early.
    batch : int > 0
        How many bytes an object has. Many small items share one; an item that is larger has one of
        its own. An actor also ends an object after it has made items for a while (40 ms, or 4 ms
        times the number of actors).
    copy : bool
        Whether each array is copied out of Ray's object store. Otherwise they are views of it, and
        read-only, as all that Ray gives; and an array that is held holds its whole object.
    **options : object
        What else ``ray.remote`` takes for an actor: ``resources``, ``memory``, ``num_gpus``,
        ``runtime_env``, ``scheduling_strategy``. Not how actors are named, replaced or called.

    Raises
    ------
    ArgumentError
        If an argument is invalid; while iterating, if it is one that Ray refuses.
    ImportError
        While iterating, if there is no Ray.

    Notes
    -----
    **Loss.** An actor that is lost, alone or with its node, is replaced, and its visits are made
    again by their seeds: not an item changes. ``stats()["restarts"]`` says how often. With
    ``restart=False`` it is an error. So are several that are lost one after another without having
    given an item.

    **What travels.** The tree is pickled once, and functions of a script travel by value; what they
    import has to be there on each node, and so do paths.

    **Memory.** `max_bytes` bounds what is made early, wherever it is. In the object store there
    are at most two objects or three of each actor at a time, and what the consumer holds.

    Examples
    --------
    >>> import pescador.ray
    >>> pescador.ray.Executor(num_cpus=0.5, resources={"disk": 1})
    Executor(num_cpus=0.5, resources={'disk': 1})
    """

    worker = "Ray actor"
    refuses = ("start_method",)

    def usual_workers(self) -> None:
        return None

    def __init__(
        self,
        num_cpus: float = 1,
        max_visits: int | None = None,
        batch: int = _BATCH,
        *,
        copy: bool = False,
        **options: Any,
    ) -> None:
        if not is_number(num_cpus) or not 0 <= num_cpus < float("inf"):
            raise ArgumentError(f"num_cpus={num_cpus!r} must be a number, 0 or more")
        # Ray takes no numbers of NumPy.
        self.num_cpus = int(num_cpus) if num_cpus == int(num_cpus) else float(num_cpus)
        self.max_visits = None if max_visits is None else as_count("max_visits", max_visits)
        self.batch = as_count("batch", batch)
        self.copy = as_bool("copy", copy)
        for name in sorted(_OURS & options.keys()):
            raise ArgumentError(
                f"{name}={options[name]!r} cannot be chosen: the executor begins its actors, "
                "replaces them and calls them one call at a time"
            )
        self.options = options

    def __repr__(self) -> str:
        usual = {"num_cpus": 1, "max_visits": None, "batch": _BATCH, "copy": False}
        said = {name: self.__dict__[name] for name in usual}
        said = {name: value for name, value in said.items() if value != usual[name]}
        return f"Executor({', '.join(f'{n}={v!r}' for n, v in {**said, **self.options}.items())})"

    def new_pool(
        self, parallel: Any, tree: Any, workers: int | None, stays: Any, watched: Any
    ) -> Pool:
        ray = _import_ray()
        if not ray.is_initialized():
            ray.init()
        if workers is None:
            room = ray.cluster_resources().get("CPU", 0) / self.num_cpus if self.num_cpus else 1
            workers = max(int(room), 1)
        return _Actors(parallel, tree, workers, stays, self)


class _Actor:
    """A worker, as the consumer knows it."""

    def __init__(self, handle: Any, seconds: float) -> None:
        self.handle = handle
        self.seconds = seconds
        self.loaded = handle.load.remote()
        # What the next call takes, and the objects that calls are to give, in order.
        self.messages: list[bytes] = []
        self.calls: deque[Any] = deque()
        # Whether it has given an item.
        self.gave = False
        # How many items make a packet.
        self.lump = 1

    def call(self) -> None:
        self.calls.append(self.handle.work.remote(self.messages, self.seconds))
        self.messages = []

    def send(self, words: bytes) -> None:
        self.messages.append(protocol.order(protocol.ORDERS, words))
        self.call()

    def send_visit(self, visit: Any) -> None:
        what = (visit.number, visit.path, visit.bound, visit.base, visit.skip)
        self.messages.append(protocol.order(protocol.VISIT, pickle.dumps(what)))


class _Actors(Pool):
    """Actors, and what is on its way from them; `stays` is that of `Kind.new_pool`."""

    started_with = ("workers", "kind")

    def __init__(
        self, parallel: Any, tree: Any, workers: int, stays: Any, executor: Executor
    ) -> None:
        super().__init__(parallel, tree, workers)
        self.sent = without_those_that_stay(tree, stays)
        self.executor = executor
        self.ray = _import_ray()
        self.session = _session(self.ray)
        self.seconds = max(_CALL, _CALL_PER_WORKER * workers)
        self.tree_object: Any = None
        self.run = b""
        self.makers: list[Any] = []
        # Those for which Ray may have no room yet.
        self.starting: list[_Actor] = []
        # Those that were lost, whose visits are to begin again.
        self.lost: list[Any] = []
        # Workers that were lost in a row, and gave no item.
        self.n_lost = 0

    # ---------------------------------------------------------------------------------- begin, end

    def begin(self) -> None:
        # As bytes: what cannot be pickled is our error, not one of `put`.
        self.tree_object = self.ray.put(pickle.dumps(process.Parcel(self.sent)))
        for _ in range(self.workers):
            self._start()

    def _start(self) -> None:
        options = {"num_cpus": self.executor.num_cpus, "max_restarts": 0, **self.executor.options}
        try:
            actor = self.ray.remote(RemoteWorker).options(**options)
            handle = actor.remote(self.tree_object, self.executor.batch)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"Ray refuses {self.executor!r}: {error}") from error
        self.starting.append(_Actor(handle, self.seconds))

    def _actors(self) -> list[_Actor]:
        """Return those that are this process's to end."""
        if self.owner != os.getpid() or self.session != _session(self.ray):
            return []
        return [*self.starting, *(maker.owner for maker in self.makers)]

    def _kill(self, actor: _Actor) -> None:
        """End a worker, and let go of the objects that it has made, or is to make."""
        self.ray.kill(actor.handle)
        # Now: what refers to it may be left to a collection of garbage.
        actor.calls.clear()

    def wait_for_end(self) -> None:
        # Sources are closed; what is still starting has none.
        if not self._actors():
            return
        until = time.monotonic() + self.parallel.timeout
        ends = whole(lambda: [maker.owner.handle.close.remote() for maker in self.makers])
        while ends and time.monotonic() < until:
            _, ends = whole(self.ray.wait, ends, timeout=_HEARTBEAT)

    def end(self) -> None:
        for actor in self._actors():
            self._kill(actor)
        self.makers.clear()
        self.starting.clear()
        self.lost.clear()
        self.tree_object = None

    # --------------------------------------------------------------------------------------- a run

    def join(self, schedule: Any, run: tuple[Any, ...]) -> None:
        super().join(schedule, run)
        schedule.spare = 1
        if self.executor.max_visits is not None:
            schedule.max_visits = self.executor.max_visits
        self.n_lost = 0
        self.run = protocol.order(protocol.RUN, pickle.dumps(run))
        for maker in self.makers:
            maker.owner.messages.append(self.run)

    def leave(self) -> None:
        super().leave()
        for maker in self.makers:
            # What is left to say is of no visit that anybody wants, and so are the answers.
            maker.flush()
            maker.owner.calls.clear()

    def is_usable(self, parallel: Any, tree: Any) -> bool:
        return (
            super().is_usable(parallel, tree)
            and self.session == _session(self.ray)
            and bool(self.makers or self.starting)
        )

    # ------------------------------------------------------------------------------------- workers

    def reach(self) -> int:
        lumps: list[int] = [maker.owner.lump for maker in self.makers]
        return _PARTS * sum(lumps)

    def place(self, visit: Any) -> Any:
        if not self.makers:
            self._wait_for_workers()
        return _schedule.least_busy(self.makers)

    def _wait_for_workers(self) -> None:
        """Wait until a worker has started, and then a moment for the others."""
        suspicious, until = time.monotonic() + _SUSPICIOUS, None
        while self.starting and (until is None or time.monotonic() < until):
            whole(self._look)
            now = time.monotonic()
            if self.makers and until is None:
                until = now + _PATIENCE
            elif not self.makers and now > suspicious:
                suspicious = float("inf")
                warnings.warn(
                    f"none of the {self.workers} actors of {self.executor!r} has started for "
                    f"{_SUSPICIOUS} seconds; waiting on. Ray's status says what it has no room for",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _admit(self, actor: _Actor) -> None:
        """Have a worker that has started, or has failed to, take part."""
        self.starting.remove(actor)
        try:
            self.ray.get(actor.loaded)
        except self.ray.exceptions.RayTaskError as error:
            raise PescadorError(
                f"{self.tree!r} could not be loaded in an actor: {_last_line(error)}"
            ) from error
        except self.ray.exceptions.RayError as error:
            self._count_loss(actor, error)
            self._start()
            return
        actor.messages.append(self.run)
        # They call the actor as a whole, and have no reference to us.
        maker = _schedule.Orders(
            actor,
            functools.partial(_check_session, self.owner, self.session),
            None,
            functools.partial(whole, actor.send),
            functools.partial(whole, actor.send_visit),
        )
        # Nothing is worth a message, until it is known what an item costs.
        maker.cost = 1
        maker.most = _MOST_AHEAD
        self.makers.append(maker)

    def _count_loss(self, actor: _Actor, error: BaseException) -> None:
        """Count a worker that was lost, or raise what became of it."""
        self.n_lost = 0 if actor.gave else self.n_lost + 1
        name = f"an actor of {self.tree!r} was lost: {_last_line(error)}"
        if self.parallel.restart is False:
            raise PescadorError(
                f"{name}; with restart=True, another one would take its place"
            ) from error
        if self.n_lost > _ATTEMPTS:
            raise PescadorError(
                f"{name}; the {_ATTEMPTS} that were lost before it gave no item either"
            ) from error
        self.schedule.n_restarts += 1

    def _lose(self, maker: Any, error: BaseException) -> None:
        """Have another worker in the place of one."""
        self._count_loss(maker.owner, error)
        self.makers.remove(maker)
        self.lost.append(maker)
        with suppress(Exception):
            self._kill(maker.owner)
        self._start()

    def _begin_again(self) -> None:
        """Have the visits of workers that were lost go on at others."""
        while self.lost:
            self.schedule.begin_again(self.schedule.visits_at(self.lost[-1]))
            self.lost.pop()

    # --------------------------------------------------------------------------------------- items

    def wait(self, visit: Any) -> None:
        while not visit.is_ready:
            _check_session(self.owner, self.session)
            if self.lost:
                self._wait_for_workers()
                whole(self._begin_again)
            whole(self._work)

    def _work(self) -> None:
        """Have workers make what they were asked for, and take what arrives first."""
        for maker in self.makers:
            self._call(maker)
        self._look()

    def _call(self, maker: Any) -> None:
        """Have a worker make what it was asked for."""
        actor = maker.owner
        # What it has left of one call is part of the next one.
        if not actor.calls:
            maker.flush()
        if maker.outstanding and not actor.calls:
            actor.call()

    def _look(self) -> None:
        """Wait a moment for what arrives first, and take it."""
        waiting: dict[Any, Any] = {actor.loaded: actor for actor in self.starting}
        waiting.update((maker.owner.calls[0], maker) for maker in self.makers if maker.owner.calls)
        # Objects on other nodes are fetched meanwhile.
        ready, _ = self.ray.wait(list(waiting), timeout=_HEARTBEAT)
        for reference in ready:
            arrived = waiting[reference]
            (self._admit if isinstance(arrived, _Actor) else self._take)(arrived)

    def _take(self, maker: Any) -> None:
        """Take what a worker has made."""
        actor = maker.owner
        try:
            packet, size, cost = self.ray.get(actor.calls[0])
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            self._lose(maker, error)
            return
        numbers, words, values = packets.unpack(packet, self.executor.copy)
        _schedule.receive_packet(self.schedule, actor.calls, numbers, words, values)
        if numbers:
            actor.gave = True
            self.n_lost = 0
            maker.cost = max(cost, 1)
            self._tune(maker, max(size // len(numbers), 1))

    def _tune(self, maker: Any, item_size: int) -> None:
        """Have as many items ordered at once as make a packet, and some packets be on their way."""
        actor, parts = maker.owner, _PARTS * len(self.makers)
        actor.lump = max(
            min(
                _MOST_IN_PACKET,
                self.executor.batch // item_size,
                int(1e9 * self.seconds) // maker.cost,
                self.parallel.max_bytes // item_size // (parts - len(self.makers)),
                _MOST_AHEAD // parts,
            ),
            1,
        )
        maker.worth = maker.cost * actor.lump
