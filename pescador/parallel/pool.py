"""What a place where visits run has to be: a `Kind` says which place, and its `Pool` runs them.

`processes.py`, `threads.py` and `remote.py` are such places. A schedule and the visit of a
`ParallelStreamer` call what is here, and nothing else.
"""

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from .._channel.consumer import raise_from_worker
from .._channel.process import usable_processors
from ..exceptions import ArgumentError

if TYPE_CHECKING:
    from . import ParallelStreamer


class Kind:
    """Where visits run: what the `kind` of a `ParallelStreamer` names, or is.

    Attributes
    ----------
    worker : str
        What one of the workers is called.
    refuses : tuple of str
        Options that it has no use for: whatever else than their default is an error.
    shares_states : bool
        Whether workers and consumer have the same global random states.
    """

    worker = "worker"
    refuses: tuple[str, ...] = ()
    shares_states = False

    def usual_workers(self) -> int | None:
        """Return how many workers there are if nobody says; None if `new_pool` finds out."""
        return max(usable_processors() - 1, 1)

    def new_pool(
        self,
        parallel: "ParallelStreamer[Any]",
        tree: Any,
        workers: int | None,
        stays: Callable[[Any], str | None],
        watched: Any,
    ) -> "Pool":
        """Return a pool that has not begun.

        Parameters
        ----------
        parallel : ParallelStreamer
            Whose options it has.
        tree : Streamer
            Whose visits it runs.
        workers : int or None
            How many there are; None as for `usual_workers`.
        stays : function
            Tells of a streamer why its visits run here; None where they do not.
        watched : Run
            What visits are part of that run in this process.
        """
        raise NotImplementedError

    def check(self, parallel: "ParallelStreamer[Any]") -> None:
        """Refuse options that it does not have."""
        for name in self.refuses:
            if value := getattr(parallel, name):
                raise ArgumentError(
                    f"{name}={value!r} is for processes; kind={parallel.kind!r} has none"
                )


class Pool:
    """Workers that visits run in, and what is on its way from them.

    Parameters
    ----------
    parallel : ParallelStreamer
        Whose options they have.
    tree : Streamer
        Whose visits they run.
    workers : int
        How many there are.
    """

    # Options that workers are started with: others need others.
    started_with: ClassVar[tuple[str, ...]] = ("workers", "kind", "max_bytes", "start_method")

    def __init__(self, parallel: "ParallelStreamer[Any]", tree: Any, workers: int) -> None:
        # Not the original, which may keep these workers: nobody would end them before a collection.
        self.parallel: Any = copy.copy(parallel)
        self.tree = tree
        self.workers = workers
        self.owner = os.getpid()
        self.schedule: Any = None
        # Visits that were closed while a worker might write into rows of batches:
        # number -> (its maker, the rows where it may write).
        self.written_until_closed: dict[int, tuple[Any, list[Any]]] = {}

    # ----------------------------------------------------------- begin and end, called by a `Guard`

    def begin(self) -> None:
        """Start the workers; signals wait meanwhile."""
        raise NotImplementedError

    def wait_for_end(self) -> None:
        """Tell the workers to end, and wait for that for some time; signals are handled."""
        raise NotImplementedError

    def end(self) -> None:
        """End the workers that have not ended; signals wait meanwhile."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------- one run each

    def join(self, schedule: Any, run: tuple[Any, ...]) -> None:
        """Work for this schedule from now on, whose `Run` is made of these."""
        self.schedule = schedule

    def leave(self) -> None:
        """Work for no schedule."""
        self.schedule = None

    def is_usable(self, parallel: "ParallelStreamer[Any]", tree: Any) -> bool:
        """Tell whether the workers can be kept, and serve another iteration."""
        fields, others = self.parallel.__dict__, parallel.__dict__
        return (
            self.owner == os.getpid()
            and self.tree is tree
            and all(fields[name] == others[name] for name in self.started_with)
        )

    # ------------------------------------------------------------------- what a schedule asks it to

    def place(self, visit: Any) -> Any:
        """Return the `Maker` that a visit is to run at."""
        raise NotImplementedError

    def reach(self) -> int:
        """Return how many items keep all workers busy for a while; 0 if that gains nothing."""
        return 0

    def wait(self, visit: Any) -> None:
        """Wait until something of a visit has arrived; its items are handed to the schedule."""
        raise NotImplementedError

    def raise_error(self, visit: Any) -> None:
        """Raise what a visit has raised, as its worker has told it."""
        raise_from_worker(visit.error, visit.name)

    def new_rows(self, begins: int, size: int, columns: list[Any]) -> Any:
        """Return batches that workers write to; None where nothing is gained by that."""
        return None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Take what arrives until something holds that is to be said of these rows."""
        raise NotImplementedError
