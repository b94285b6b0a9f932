"""The consumer's end of a channel: start the worker, wait for items, say what went wrong."""

import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from .. import _transport
from ..exceptions import PescadorError
from . import process, random_states
from .protocol import (
    END,
    HEARTBEAT,
    ITEM,
    STOP,
    WAKE,
    Report,
    item_from,
    read_end,
    read_item_size,
)
from .schema import schema_from
from .worker import work

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Channel"]

# More bytes than any machine has, and fewer than it has addresses for.
_MOST = 2**40
# The least memory that is worth sharing.
_LEAST = 2**20
# How many seconds a worker that has closed its pipe has to end.
_FAREWELL = 0.5
# After how many seconds of silence a worker is suspected to hang.
_SUSPICIOUS = 60


class _WorkerTraceback(PescadorError):
    """Where in the worker an exception came from; the cause of the one raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class Channel:
    """What a consumer holds of its worker, between `begin` and `end`.

    Parameters
    ----------
    streamer : ZMQStreamer
        Whose worker it is.
    max_iter : number or None
        How many items the worker is asked for.
    """

    def __init__(self, streamer: Any, max_iter: float | None) -> None:
        self.streamer = streamer
        self.max_iter = max_iter
        self.owner = os.getpid()
        self.pipe: Connection | None = None
        self.worker: BaseProcess | None = None
        self.loans: _transport.Loans | None = None
        self.reader: _transport.Reader | None = None
        # Items that came over the pipe, and what there is of the next.
        self.messages = 0
        self.incoming: bytearray | None = None
        self.missing = 0
        self.gone = False
        self.deaf_since: float | None = None
        self.doubts = 0
        # The worker's last word.
        self.total: int | None = None
        self.error: Report | None = None

    # ------------------------------------------------------------------------- life of a worker

    def begin(self) -> None:
        """Start the worker."""
        streamer = self.streamer
        method = streamer.start_method or process.default_method()
        max_bytes = min(streamer.max_bytes, _MOST)
        try:
            memory = _shared_memory(max_bytes)
            self.pipe, worker_end = process.pipe(method)
        except OSError as error:
            raise _not_started(streamer, error) from error
        self.worker = process.new_process(
            method,
            work,
            (
                process.Parcel(streamer.streamer, memory, random_states.for_next_worker()),
                self.max_iter,
                max_bytes,
                worker_end,
                self.pipe if method == "fork" else None,
            ),
        )
        try:
            process.start(self.worker)
        except Exception as error:
            hint = ""
            # A system that is short of something is short of it for any method.
            if method != "fork" and "fork" in process.METHODS and not isinstance(error, OSError):
                hint = '; with start_method="fork" nothing has to be pickled'
            raise _not_started(streamer, error, hint) from error
        finally:
            worker_end.close()
            if memory is not None:
                memory.close()
        # After the start: a process that is forked leaves all that is on loan to this one.
        if memory is not None:
            self.loans = _transport.Loans(memory)
            self.reader = _transport.Reader(self.loans, schema_from, self._wake, streamer.copy)
        self.started = time.monotonic()
        self.suspicious: float | None = self.started + _SUSPICIOUS
        if sys.platform != "win32":
            self.poller = select.poll()
            self.poller.register(self.pipe.fileno(), select.POLLIN)
            self.poller.register(self.worker.sentinel, select.POLLIN)

    def wait_for_end(self) -> None:
        """Tell the worker that no more is wanted, and wait until it has ended."""
        if os.getpid() != self.owner or self.worker is None or self.worker.pid is None:
            return
        if self.loans is not None:
            self.loans.stop()
        self._say(STOP)
        process.wait_for_end(self.worker, self.streamer.timeout, self._drain)

    def end(self) -> None:
        """End the worker, if it has not ended, and let go of everything but the arrays."""
        # What a forked process has of all this is not its to end.
        try:
            if os.getpid() == self.owner:
                if self.worker is not None and self.worker.pid is not None:
                    process.end(self.worker)
                if self.loans is not None:
                    self.loans.close()
        finally:
            if self.pipe is not None:
                self.pipe.close()
            self.pipe = self.worker = self.reader = self.loans = self.incoming = None

    # ------------------------------------------------------------------------------------ items

    def ready(self) -> Iterator[Any]:
        """Return an iterator over the items that are there now."""
        if self.incoming is not None and not self.missing:
            written, self.incoming = self.incoming, None
            self.messages += 1
            return iter((item_from(written),))
        return self.reader if self.reader is not None else iter(())

    def wait(self) -> bool:
        """Wait until an item is ready; return False at the end.

        Raises
        ------
        PescadorError
            If the worker was killed, or is silent for too long.
        Exception
            What the worker raised.
        """
        self._check_owner()
        while not self._is_ready():
            if self._is_over():
                return False
            try:
                self._listen(HEARTBEAT)
            finally:
                self._check_owner()
        return True

    def _check_owner(self) -> None:
        """Raise in a process that was forked, by a signal handler say: the pipe is not its own."""
        if os.getpid() != self.owner:
            raise PescadorError(_transport.FORKED)

    def _is_ready(self) -> bool:
        if self.incoming is not None:
            return not self.missing
        return self.reader is not None and not self.reader.sleep()

    def _received(self) -> int:
        return self.messages + (self.reader.received if self.reader is not None else 0)

    def _is_over(self) -> bool:
        """Tell whether this was all; raise what the worker raised, or what became of it."""
        if self.total is not None and self._received() >= self.total:
            if self.error is not None:
                _raise_from_worker(self.error, self.streamer)
            return True
        if self.gone and not self._can_hear():
            # Nothing has come since, and nothing will.
            assert self.worker is not None
            _raise_death(self.worker, self.streamer, self._received())
        if self.deaf_since is not None and time.monotonic() > self.deaf_since + _FAREWELL:
            assert self.worker is not None
            if process.is_gone(self.worker):
                self.gone = True
                return False
            # It lives, and can say no more: it runs another program, or has closed all descriptors.
            raise PescadorError(
                f"the worker of {self.streamer.streamer!r} closed the pipe to its consumer before "
                f"the end of its stream (by os.exec or os.closerange, say), after "
                f"{self._received()} items"
            )
        if self.suspicious is not None:
            self._suspect()
        return False

    def _suspect(self) -> None:
        """Raise, or warn, if the worker has not been heard from for too long after its start."""
        if self._received() or self.incoming is not None or self.total is not None:
            self.suspicious = None
            return
        silent = time.monotonic() - self.started
        limit = self.streamer.start_timeout
        if limit is not None:
            if silent > limit:
                raise PescadorError(
                    f"nothing was heard from the worker of {self.streamer.streamer!r} for "
                    f"start_timeout={limit} seconds. {_SILENCE}"
                )
        elif self.suspicious is not None and time.monotonic() > self.suspicious:
            self.suspicious = None
            warnings.warn(
                f"nothing was heard from the worker of {self.streamer.streamer!r} for "
                f"{_SUSPICIOUS} seconds; waiting on. {_SILENCE}",
                RuntimeWarning,
                stacklevel=5,
            )

    # ------------------------------------------------------------------------------ the pipe

    def _wake(self) -> None:
        self._say(WAKE)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):
            if self.pipe is not None:
                self.pipe.send_bytes(word)

    def _poll(self, timeout: float) -> list[str]:
        """Return which of "pipe" and "sentinel" is ready within some seconds."""
        assert self.worker is not None
        if sys.platform == "win32":
            found = wait([self.worker.sentinel, *filter(None, [self.pipe])], timeout)
            return ["pipe" if one is self.pipe else "sentinel" for one in found]
        sentinel = self.worker.sentinel
        ready = self.poller.poll(timeout * 1000)
        self._check_owner()
        return ["sentinel" if name == sentinel else "pipe" for name, _ in ready]

    def _listen(self, timeout: float) -> None:
        """Take in what there is to know of the worker; wait for some seconds at most."""
        assert self.worker is not None
        ready = self._poll(timeout)
        if "sentinel" in ready or not ready:
            self.gone = process.is_gone(self.worker)
            if "sentinel" in ready and not self.gone:
                self._doubt()
        while "pipe" in ready and self._is_hungry():
            self._hear()
            ready = self._poll(0)

    def _can_hear(self) -> bool:
        return self._is_hungry() and "pipe" in self._poll(0)

    def _is_hungry(self) -> bool:
        """Whether there is room for more of what comes over the pipe: for one item."""
        return self.incoming is None or self.missing > 0

    def _doubt(self) -> None:
        """Have patience with a sentinel that is ready though the worker lives."""
        self.doubts += 1
        time.sleep(0.001)
        # The worker has closed its end, as a source that closes all descriptors does.
        if self.doubts > 100 and sys.platform != "win32":
            assert self.worker is not None
            self.poller.unregister(self.worker.sentinel)

    def _hear(self) -> None:
        """Read one message from the pipe."""
        assert self.pipe is not None
        try:
            if self.missing:
                assert self.incoming is not None
                at = len(self.incoming) - self.missing
                self.missing -= self.pipe.recv_bytes_into(self.incoming, at)
                return
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            # Closed at the other end. That it has ended will be seen elsewhere.
            self._be_deaf()
            return
        if message[:1] == ITEM:
            self.missing = read_item_size(message)
            self.incoming = bytearray(self.missing)
        elif message[:1] == END:
            self.total, self.error = read_end(message)

    def _be_deaf(self) -> None:
        assert self.pipe is not None
        if sys.platform != "win32":
            self.poller.unregister(self.pipe.fileno())
        self.pipe.close()
        self.pipe = None
        self.deaf_since = time.monotonic()

    def _drain(self) -> None:
        """Read what the worker sends, which nobody wants: it may wait for that."""
        self.missing, self.incoming = 0, None
        with suppress(EOFError, OSError):
            while self.pipe is not None and self.pipe.poll():
                self.pipe.recv_bytes()


_SILENCE = (
    "Its source may need long for the first item. A worker that was forked while another thread "
    'held a lock waits for that lock for ever: start_method="forkserver" or "spawn" avoids it.'
)


def _shared_memory(max_bytes: int) -> _transport.Memory | None:
    """Return memory to share with a worker, of `max_bytes` or what is to be had, or None."""
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and sys.platform == "linux":
            # Addresses are scarce: others need some, too, such as further workers.
            with open("/proc/self/statm", "rb") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            max_bytes = min(max_bytes, max((limit - used) // 8, _LEAST))
    while True:
        try:
            return _transport.Memory(max_bytes)
        except (OSError, MemoryError):
            if max_bytes <= _LEAST:
                return None
            max_bytes = max(max_bytes // 2, _LEAST)


def _not_started(streamer: Any, error: Exception, hint: str = "") -> PescadorError:
    return PescadorError(f"the worker of {streamer.streamer!r} could not be started: {error}{hint}")


def _raise_from_worker(error: Report, streamer: Any) -> NoReturn:
    pickled, summary, text = error
    original = None
    cause = _WorkerTraceback(f"in the worker of {streamer.streamer!r}:\n{text}")
    if pickled is not None:
        # Its class may not be importable here.
        with suppress(Exception):
            original = pickle.loads(pickled)
        if isinstance(original, Exception):
            raise original from cause
    raise PescadorError(f"the worker of {streamer.streamer!r} raised {summary}") from cause


def _raise_death(worker: BaseProcess, streamer: Any, received: int) -> NoReturn:
    code = worker.exitcode
    if code is None:
        how = "is gone"
    elif code < 0:
        how = f"was killed by signal {-code}"
        # Real-time signals have no names.
        with suppress(ValueError):
            how += f" ({signal.Signals(-code).name})"
    else:
        how = f"exited with code {code} before the end of its stream"
        if code == 255 and worker._start_method == "forkserver":  # type: ignore[attr-defined]
            how += ", or the fork server that started it was killed"
    raise PescadorError(f"the worker of {streamer.streamer!r} {how}, after {received} items")
