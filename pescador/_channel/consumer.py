"""The consumer's end of a channel: start the worker, wait for items, say what went wrong."""

import math
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from ..exceptions import PescadorError
from . import process, protocol, random_states
from .worker import work

if sys.platform == "linux":
    import resource

    from .bell import Bell
    from .memory import SharedMemory
    from .orders import OrderWriter
    from .ring import Reader

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


class Channel:
    """What a consumer holds of its worker, between `begin` and `end`.

    Parameters
    ----------
    streamer : ZMQStreamer
        Whose worker it is.
    work : callable
        What the worker runs: ``work(max_iter=...)`` returns its items.
    max_iter : number or None
        How many items the worker is asked for.
    max_bytes : int
        How much may be on its way.
    """

    def __init__(self, streamer: Any, work: Any, max_iter: float | None, max_bytes: int) -> None:
        self.streamer = streamer
        self.work = work
        self.max_iter = max_iter
        self.max_bytes = max_bytes
        self.owner = os.getpid()
        self.pipe: Connection | None = None
        self.bell: Bell | None = None
        self.worker: BaseProcess | None = None
        self.memory: SharedMemory | None = None
        self.reader: Reader | None = None
        # Of a worker of many visits, which sets it.
        self.orders: OrderWriter | None = None
        # An item that comes over the pipe, how many of its bytes are missing, and how many came.
        self.incoming: bytearray | None = None
        self.missing = 0
        self.tag = 0
        self.messages = 0
        # Whether it was told that no more is wanted.
        self.is_stopped = False
        # The worker's last word.
        self.ended = False
        self.error: protocol.Report | None = None

    # ------------------------------------------------------------------------- life of a worker

    def begin(self) -> None:
        """Start the worker."""
        streamer = self.streamer
        method = streamer.start_method or process.default_method()
        max_bytes = min(self.max_bytes, _MOST)
        try:
            self.memory = shared_memory(max_bytes)
            self.pipe, worker_end = process.pipe(method)
        except OSError as error:
            raise _not_started(streamer, error) from error
        self.worker = process.new_process(
            method,
            work,
            (
                process.Parcel(self.work, self.memory, random_states.for_next_worker()),
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
            if self.memory is not None:
                self.memory.close_descriptor()
        # After the start: what is forked from now on leaves the memory to this process.
        if self.memory is not None:
            self.bell = Bell(self.pipe)
            self.reader = Reader(self.memory, self.bell, streamer.copy)
        self.started = time.monotonic()
        self.warn_at = self.started + _SUSPICIOUS

    def wait_for_end(self) -> None:
        """Tell the worker that no more is wanted, and wait until it has ended."""
        self.stop()
        if os.getpid() != self.owner or self.worker is None or self.worker.pid is None:
            return
        process.wait_for_end(self.worker, self.streamer.timeout, self.drain)

    def stop(self) -> None:
        """Tell the worker that no more is wanted."""
        # What a forked process has of all this is not its to stop.
        if os.getpid() != self.owner:
            return
        if self.reader is not None:
            self.reader.stop()
        self._say_stop()

    def _say_stop(self) -> None:
        """Say so when there is room for it: a worker that is busy, or suspended, reads nothing."""
        if not self.is_stopped and self.is_ready(0, to_write=True):
            self.say(protocol.STOP)
            self.is_stopped = True

    def end(self) -> None:
        """End the worker, if it has not ended, and let go of everything but the arrays."""
        # What a forked process has of all this is not its to end.
        try:
            if os.getpid() == self.owner:
                if self.worker is not None and self.worker.pid is not None:
                    process.end(self.worker)
                if self.memory is not None:
                    self.memory.close()
        finally:
            if self.pipe is not None:
                self.pipe.close()
            self.pipe = self.bell = self.worker = self.incoming = None
            self.memory = self.reader = self.orders = None

    # ------------------------------------------------------------------------------------ items

    def wait(self) -> bool:
        """Wait until there are `items`; return False at the end of the stream.

        Raises
        ------
        PescadorError
            If the worker was killed, or is silent for too long.
        Exception
            What the worker raised.
        """
        self.check_owner()
        while True:
            # Asked before the look at the memory: nothing is written there after that.
            is_over = self.is_over()
            if self.has_items():
                return True
            if is_over:
                self.raise_error()
                return False
            try:
                self.listen()
            finally:
                self.check_owner()

    def items(self) -> Iterable[Any]:
        """Return an iterable of the items that are there now."""
        if self.incoming is not None:
            written, self.incoming = self.incoming, None
            self.messages += 1
            if self.reader is not None:
                self.reader.by_pipe = self.messages
            return (protocol.item_from(written),)
        return self.reader or ()

    def has_items(self) -> bool:
        """Tell whether there is one; if not, we are woken at the next."""
        if self.incoming is not None:
            return not self.missing
        return self.reader is not None and not self.reader.is_empty()

    def is_over(self) -> bool:
        """Tell whether the worker has said its last word, or can say no more."""
        return self.ended or self.pipe is None

    def is_gone(self) -> bool:
        """Tell whether the worker has ended."""
        return self.worker is None or process.is_gone(self.worker)

    def _received(self) -> int:
        return self.messages + (self.reader.received if self.reader is not None else 0)

    def check_owner(self) -> None:
        """Raise in a process that was forked, by a signal handler say: the pipe is not its own."""
        process.check_owner(self.owner)

    def raise_error(self) -> None:
        """Raise what the worker raised, or what became of it, unless its stream has ended."""
        if self.error is not None:
            raise_from_worker(self.error, repr(self.streamer.streamer))
        if not self.ended:
            raise PescadorError(
                f"the worker of {self.streamer.streamer!r} {self.how_it_ended()}, before the end "
                f"of its stream, after {self._received()} items"
            )

    def how_it_ended(self) -> str:
        """Return what became of a worker that has not said its last word."""
        assert self.worker is not None
        if not process.is_gone(self.worker):
            # It runs another program, or has closed all descriptors.
            return "closed the pipe to its consumer (by os.exec or os.closerange, say)"
        code = self.worker.exitcode
        if code is None:
            return "is gone"
        if code >= 0:
            is_of_server = self.worker._start_method == "forkserver"  # type: ignore[attr-defined]
            server = ", or the fork server that started it was killed"
            return f"exited with code {code}{server if code == 255 and is_of_server else ''}"
        # Real-time signals have no names.
        with suppress(ValueError):
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"was killed by signal {-code}"

    def _suspect(self) -> None:
        """Raise, or warn, if nothing was heard from the worker for too long after its start."""
        if self._received() or self.incoming is not None:
            return
        now = time.monotonic()
        limit = self.streamer.start_timeout
        silence = f"nothing was heard from the worker of {self.streamer.streamer!r} for"
        if limit is not None and now > self.started + limit:
            raise PescadorError(f"{silence} start_timeout={limit} seconds. {_SILENCE}")
        if limit is None and now > self.warn_at:
            self.warn_at = math.inf
            warnings.warn(
                f"{silence} {_SUSPICIOUS} seconds; waiting on. {_SILENCE}",
                RuntimeWarning,
                stacklevel=6,
            )

    # ------------------------------------------------------------------------------ the pipe

    def wake(self) -> None:
        """Have the worker look at the memory."""
        if self.bell is not None:
            self.bell.ring()

    def say(self, word: bytes) -> None:
        with suppress(OSError):
            if self.pipe is not None:
                self.pipe.send_bytes(word)

    def is_ready(self, timeout: float, *, to_write: bool = False) -> bool:
        """Wait for a message, or for room for one, for some seconds.

        Tell whether there is one, or will never be one.
        """
        if self.pipe is None or self.pipe.closed:
            return True
        ready = process.is_ready(self.pipe, timeout, to_write=to_write)
        self.check_owner()
        return ready

    def listen(self, timeout: float = protocol.HEARTBEAT) -> bool:
        """Read a message, or look what became of a worker that sends none for some seconds.

        Tell whether there was one.
        """
        assert self.worker is not None
        # What is missing of an item may look like a word.
        if self.bell is not None and not self.missing:
            # A word that is heard is taken from the pipe, which is not that of a forked process.
            self.check_owner()
            heard = self.bell.listen(timeout)
            if heard == "woken":
                return True
            is_ready = heard == "message"
            self.check_owner()
        else:
            is_ready = self.is_ready(timeout)
        if is_ready:
            self._read_message()
            return True
        if process.is_gone(self.worker) and not self.is_ready(0):
            # A process that the worker forked holds the pipe open.
            self._close_pipe()
        else:
            self._suspect()
        return False

    def _read_message(self) -> None:
        assert self.pipe is not None
        try:
            if self.missing:
                assert self.incoming is not None
                at = len(self.incoming) - self.missing
                self.missing -= self.pipe.recv_bytes_into(self.incoming, at)
                return
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            # Closed at the other end, as a rule because the worker has ended.
            self._close_pipe()
            assert self.worker is not None
            process.is_gone_within(self.worker, _FAREWELL)
            return
        if message[:1] == protocol.ITEM:
            self.missing, self.tag = protocol.read_item_head(message)
            self.incoming = bytearray(self.missing)
        elif message[:1] == protocol.END:
            self.ended = True
            self.error = protocol.read_end(message)

    def _close_pipe(self) -> None:
        assert self.pipe is not None
        self.pipe.close()
        self.pipe = None
        if self.missing:
            self.missing, self.incoming = 0, None

    def drain(self) -> None:
        """Read what the worker sends, which nobody wants: it may wait for that."""
        self._say_stop()
        self.missing, self.incoming = 0, None
        with suppress(EOFError, OSError):
            while self.pipe is not None and self.pipe.poll():
                self.pipe.recv_bytes()


_SILENCE = (
    "Its source may need long for the first item. A worker that was forked while another thread "
    'held a lock waits for that lock for ever: start_method="forkserver" or "spawn" avoids it.'
)


def shared_memory(max_bytes: int) -> "SharedMemory | None":
    """Return memory to share with a worker, of `max_bytes` or what there is, or None."""
    if sys.platform != "linux":
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        # Addresses are scarce: others need some, too, such as further workers.
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        max_bytes = min(max_bytes, max((limit - used) // 8, _LEAST))
    while True:
        try:
            return SharedMemory(max_bytes)
        except (OSError, MemoryError):
            if max_bytes <= _LEAST:
                return None
            max_bytes = max(max_bytes // 2, _LEAST)


def _not_started(streamer: Any, error: Exception, hint: str = "") -> PescadorError:
    return PescadorError(f"the worker of {streamer.streamer!r} could not be started: {error}{hint}")


def raise_from_worker(error: protocol.Report, name: str) -> NoReturn:
    """Raise what a worker has raised, of the stream with this name."""
    pickled, summary, text = error
    cause = _WorkerTraceback(f"\n\nin the worker of {name}:\n{text}")
    if pickled is not None:
        original = None
        # Its class may not be importable here.
        with suppress(Exception):
            original = pickle.loads(pickled)
        try:
            if isinstance(original, Exception):
                raise original from cause
        finally:
            # It holds this frame, which would hold it.
            del original
    raise PescadorError(f"the worker of {name} raised {summary}") from cause
