"""Threads that visits run in."""

import os
import queue
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

from .. import _schedule, _visits
from .._channel.process import check_owner
from .._channel.protocol import HEARTBEAT
from .pool import Kind, Pool
from .running import Running

# So many parts of an item say how large the others are.
_FEW = 32


class _Job:
    """A visit, and what is to be done for it; one thread at a time does it."""

    def __init__(self, visit: Any, run: _visits.Run) -> None:
        self.number = visit.number
        self.what = (run, visit.streamer, visit.path, visit.bound, visit.base, visit.skip)
        self.running: Running | None = None
        # A collection of garbage may close the visit while this very thread holds it.
        self.lock = threading.RLock()
        self.wanted = 0
        self.busy = False
        self.over = False
        self.closes = False


class _Maker(_schedule.Maker):
    """All threads together."""

    def __init__(self, pool: "Threads") -> None:
        super().__init__()
        self.jobs: dict[int, _Job] = {}
        self.run = pool.run
        self.ready = pool.ready
        self.owner = pool.owner

    def open(self, visit: Any) -> None:
        self.jobs[visit.number] = _Job(visit, self.run)

    def more(self, visit: Any) -> None:
        check_owner(self.owner)
        self._have(self.jobs[visit.number], more=1)

    def close(self, visit: Any) -> None:
        job = self.jobs.pop(visit.number, None)
        if job is None or os.getpid() != self.owner:
            return
        self._have(job, closes=True)

    def _have(self, job: _Job, more: int = 0, closes: bool = False) -> None:
        """Have a thread make more items of a visit, or close it."""
        with job.lock:
            job.wanted += more
            job.closes = closes
            is_idle, job.busy = not job.busy, True
        if is_idle:
            self.ready.put(job)

    def flush(self) -> None:
        """Orders do not wait."""


class ThreadKind(Kind):
    """Threads of this process."""

    worker = "thread"
    shares_states = True
    refuses = ("start_method", "restart", "keep_workers")

    def new_pool(
        self, parallel: Any, tree: Any, workers: int | None, stays: Any, watched: Any
    ) -> Pool:
        return Threads(parallel, tree, watched, workers or 1)


class Threads(Pool):
    """Threads of this process, and what they have made; they cost nothing to start."""

    def __init__(self, parallel: Any, tree: Any, run: _visits.Run, workers: int) -> None:
        super().__init__(parallel, tree, workers)
        self.run = run
        # In the order in which items were ordered.
        self.ready: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.made: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.maker = _Maker(self)
        self.threads: list[threading.Thread] = []

    def begin(self) -> None:
        for i in range(self.workers):
            # Not the items themselves: of an iteration that nobody closes, who waits for orders
            # would keep them, and they may refer to it.
            thread = threading.Thread(
                target=_work,
                args=(self.ready, weakref.ref(self.made)),
                daemon=True,
                name=f"pescador-{i}",
            )
            thread.start()
            self.threads.append(thread)

    def wait_for_end(self) -> None:
        # Not for ever: one that is busy ends after its item.
        for _ in self.threads:
            self.ready.put(None)
        if threading.current_thread() in self.threads:
            # One of them collects it as garbage, and the others may wait for what this one holds.
            return
        deadline = time.monotonic() + self.parallel.timeout
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))

    def end(self) -> None:
        self.threads.clear()
        self.maker.jobs.clear()

    def place(self, visit: Any) -> Any:
        return self.maker

    def wait(self, visit: Any) -> None:
        while True:
            check_owner(self.owner)
            with suppress(queue.Empty):
                while True:
                    self._take(*self.made.get(block=not visit.is_ready, timeout=HEARTBEAT))
            if visit.is_ready:
                return

    def _take(self, what: str, number: int, value: Any) -> None:
        if what == "item":
            self.schedule.receive(number, value, _size_of(value))
        elif what == "state":
            self.schedule.receive_state(number, value)
        else:
            self.maker.jobs.pop(number, None)
            self.schedule.receive_end(number, value)

    def raise_error(self, visit: Any) -> None:
        raise visit.error


def _work(ready: Any, made: Any) -> None:
    """Be one of the threads."""
    # The job is gone from here when the next one is waited for.
    while _do(ready.get(), ready, made()):
        pass


def _do(job: _Job | None, ready: Any, made: Any) -> bool:
    """Do what is next for a visit; None is to end."""
    if job is None:
        return False
    if job.closes:
        _close(job)
        return True
    if not job.over and made is not None:
        _make(job, made)
    with job.lock:
        job.wanted -= 1
        job.busy = goes_on = job.wanted > 0 or job.closes
    if goes_on:
        ready.put(job)
    return True


def _make(job: _Job, made: Any) -> None:
    """Make an item."""
    try:
        if job.running is None:
            job.running = Running(*job.what)
        item = next(job.running)
    except StopIteration:
        job.over = True
        _close(job)
        made.put(("end", job.number, None))
    except BaseException as error:
        job.over = True
        made.put(("end", job.number, error))
    else:
        made.put(("item", job.number, item))
        if time.perf_counter() >= job.running.due:
            state = job.running.state()
            if state is not None:
                made.put(("state", job.number, state))


def _close(job: _Job) -> None:
    running, job.running = job.running, None
    if running is not None:
        running.close()


def _size_of(item: Any, depth: int = 4) -> int:
    """Return about how many bytes an item takes: those of its arrays and texts."""
    if isinstance(item, dict):
        item = list(item.values())
    if isinstance(item, list | tuple):
        few = item[:_FEW]
        size = sum(_size_of(value, depth - 1) for value in few) if depth else 0
        return size * len(item) // max(len(few), 1)
    if isinstance(item, str | bytes | bytearray):
        return len(item)
    return int(getattr(item, "nbytes", 0))
