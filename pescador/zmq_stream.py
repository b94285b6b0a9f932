"""Streams that run in a background process.

A `ZMQStreamer` starts one worker process per iteration.

* Items travel through memory that both processes map and nobody else can (`_transport`). Where the
  system has none to give, or an item does not fit, they travel as messages over a ZeroMQ socket,
  which listens on the loopback interface, and only to who knows a key made for the occasion. Its
  port is taken when the worker starts, the socket is opened when the worker asks for it.
* Less than `max_bytes` are on their way at a time.
* What is said about the stream (wake up, where messages go, how it ended) goes over a pipe that
  only the two hold. The worker's last word is how many items there were, and the exception if there
  was one.
* The consumer yields items until it has that many. A worker that is gone without a last word has
  been killed, which is an error: a short stream never looks like a whole one.
* A consumer that wants no more says so. One that is gone takes its worker with it.
"""

import math
import multiprocessing
import os
import pickle
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import zmq

from . import _core, _randomness, _transport
from ._items import encode, receive, schema_from
from ._worker import ASK, HEARTBEAT, OVERHEAD, STOP, connected, nbytes, work
from .core import Streamer
from .exceptions import PescadorError
from .util import as_count

__all__ = ["ZMQStreamer"]

T = TypeVar("T")

# More bytes than any machine has, and fewer than it has addresses for.
_MOST = 2**40


def zmq_send_data(
    socket: Any, data: Any, flags: int = 0, copy: bool = True, track: bool = False
) -> Any:
    """Send a data object over a socket.

    Parameters
    ----------
    socket : zmq.Socket
        Where to.
    data : dict of {key: ndarray}
        Keys are strings, numbers, bytes, None or tuples of them; arrays have any layout and any
        dtype without Python objects.
    flags, copy, track
        See ``zmq.Socket.send_multipart``.

    Raises
    ------
    DataError
        If `data` is something else; the message names the key.
    """
    return socket.send_multipart(encode(data), flags, copy=copy, track=track)


def zmq_recv_data(
    socket: Any, flags: int = 0, copy: bool = True, track: bool = False
) -> dict[Any, npt.NDArray[Any]]:
    """Receive a data object that `zmq_send_data` sent.

    Parameters
    ----------
    socket : zmq.Socket
        Where from.
    flags, copy, track
        See ``zmq.Socket.recv_multipart``.

    Returns
    -------
    data : dict of {key: ndarray}
        The arrays are aligned, writable and own their memory.

    Raises
    ------
    StopIteration
        If `data` was empty: over a plain socket, that is how a stream ends.
    """
    data = receive(socket, flags, copy, track)
    if not data:
        raise StopIteration
    return data


def zmq_worker(
    port: int,
    streamer: Any,
    terminate: Any,
    copy: bool = False,
    max_iter: float | None = None,
    *,
    server_key: bytes | None = None,
) -> None:
    """Send what a streamer yields to a consumer that listens on a port of this machine.

    The stream ends with an empty data object.

    Parameters
    ----------
    port : int
        Where the consumer listens, with a PAIR socket.
    streamer : Streamer
        Called with `max_iter`, and iterated.
    terminate : threading.Event or multiprocessing.Event
        Set by the consumer when it wants no more.
    copy : bool
        Accepted for the sake of the interface. Items are always copied, because the streamer may
        reuse their memory.
    max_iter : number or None
        Passed to `streamer`.
    server_key : bytes or None
        The consumer's public CURVE key, if it wants one.
    """
    with connected(port, server_key) as socket:
        try:
            for data in streamer(max_iter=max_iter):
                zmq_send_data(socket, data)
                if terminate.is_set():
                    break
        finally:
            zmq_send_data(socket, {})
            socket.close(linger=-1)


class _WorkerTraceback(PescadorError):
    """Where in the worker an exception came from; the cause of the one raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class ZMQStreamer(Streamer[T]):
    """A streamer that runs in a background process.

    Each iteration starts a worker process, which iterates over the wrapped streamer and sends
    what it yields. The items are the same, in the same order, or there is an error.

    Parameters
    ----------
    streamer : Streamer or iterable
        Yields data objects ``{key: ndarray}``. It must suit the start method: with ``spawn`` and
        ``forkserver`` it is pickled.
    min_port, max_port : int, 1 to 65535
        The range of ports to use, on the loopback interface only.
    max_tries : int > 0
        How many ports of that range to try.
    copy : bool
        Whether arrays always own their memory. By default, large ones are views of memory that is
        shared with the worker, where the system has such memory.
    timeout : float >= 0 or None
        Seconds to wait at the end of an iteration before a worker that has not ended is
        terminated. None waits for as long as it takes.
    max_bytes : int > 0
        How many bytes may be on their way, or in views that the consumer holds, before the worker
        waits. There is always room for one item. One that is larger goes alone, and slower.
    start_method : {"fork", "spawn", "forkserver"} or None
        How to start the worker, where Python has it. None is Python's default.

    Raises
    ------
    PescadorError
        If an argument is invalid. While iterating: if the worker cannot be started, or dies.
    DataError
        While iterating, if an item is not ``{key: ndarray}`` or an array holds Python objects.
    Exception
        While iterating, whatever the streamer raised, after the items before it. Its
        ``__cause__`` carries the worker's traceback.

    Notes
    -----
    **Items.** Arrays arrive aligned, writable, in Fortran order if they were sent so and in C order
    otherwise. Large ones are views of shared memory, which is used again when the last view of it
    dies. They stay valid for as long as anybody holds them, whatever becomes of the stream; what
    they cannot do is ``resize`` in place. Once the views that are held make up half of `max_bytes`,
    further arrays are copied, so that a consumer may keep all that it gets.

    **Shared memory** is to be had on Linux. It has no name, so that nothing can be left behind, and
    ``/dev/shm`` may be full or missing. Elsewhere, and for an item that finds no room, payloads are
    ZeroMQ messages, bounded by `max_bytes` as well.

    **Random states.** The first worker that is started from a given state of the global
    ``np.random`` and `random` inherits that state. Each further one starts from a state derived
    from it and from a running number: the same in each run of a script, but another one for each
    worker and epoch. This process's own states are not changed.

    **What may go wrong**, and what comes of it after the items that were sent before:

    - The streamer raises: the same exception here. If it cannot be pickled, or is no `Exception`
      (``sys.exit`` raises `SystemExit`): a `PescadorError` that quotes it.
    - The worker is killed by a signal or calls ``os._exit``: a `PescadorError` that says so, within
      a second. (Messages that it had not got rid of are lost, what is in shared memory is not.)
    - The worker is stopped (SIGSTOP): the consumer waits until it is continued. Closing the
      iteration kills it after `timeout`, as it hears nothing else.
    - The streamer cannot be pickled where that is needed, or no port is free: a `PescadorError` at
      the first ``next``.
    - No memory can be shared, or no more of it: messages, as above.
    - The consumer closes the iteration, raises, or drops it: the worker's generator is closed and
      the worker ends. One that is busy for longer than `timeout` is terminated, and one that
      ignores this for a second killed.
    - Ctrl-C: workers ignore it. It is up to the consumer, whose end is theirs.
    - The consumer is killed: the worker ends within a second.

    A worker may have workers of its own, and so may other daemonic processes. An iteration belongs
    to the process that began it: one that is forked meanwhile gets an error from it.

    Examples
    --------
    >>> import numpy as np
    >>> def count(n):
    ...     for i in range(n):
    ...         yield {"x": np.array(i)}
    >>> [int(item["x"]) for item in ZMQStreamer(Streamer(count, 3))]
    [0, 1, 2]
    """

    def __init__(
        self,
        streamer: Any,
        min_port: int = 49152,
        max_port: int = 65535,
        max_tries: int = 100,
        copy: bool = False,
        timeout: float | None = 5,
        *,
        max_bytes: int = 256 * 2**20,
        start_method: str | None = None,
    ) -> None:
        super().__init__(streamer)
        if not isinstance(streamer, Streamer):
            self.streamer = Streamer(streamer)
        self.min_port = as_count("min_port", min_port)
        self.max_port = as_count("max_port", max_port)
        if not min_port < max_port <= 65535:
            raise PescadorError(
                f"min_port={min_port} must be less than max_port={max_port}, and that at most 65535"
            )
        self.max_tries = as_count("max_tries", max_tries)
        if not isinstance(copy, bool | np.bool_):
            raise PescadorError(f"copy={copy!r} must be a bool")
        self.copy = copy
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise PescadorError(f"timeout={timeout!r} must be None or a number of seconds")
        self.timeout = timeout
        self.max_bytes = as_count("max_bytes", max_bytes)
        known = multiprocessing.get_all_start_methods()
        if start_method is not None and start_method not in known:
            raise PescadorError(
                f"start_method={start_method!r} must be None or one of {', '.join(known)}"
            )
        self.start_method = start_method

    def iterate(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the stream once, in a process of its own.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most.

        Yields
        ------
        data : dict of {key: ndarray}
            What ``streamer(max_iter)`` gives.

        Raises
        ------
        PescadorError, DataError, Exception
            See the class.
        """
        _core.as_bound(max_iter)
        self.active_count_ += 1
        try:
            with self._working(max_iter) as link:
                link.watch()
                yield from link.items()
        finally:
            self.active_count_ -= 1

    @contextmanager
    def _working(self, max_iter: float | None) -> Iterator["_Link"]:
        """Run the worker process; end it, and leave nothing of it, on the way out."""
        owner = os.getpid()
        context = multiprocessing.get_context(self.start_method)
        forks = context.get_start_method() == "fork"
        max_bytes = min(self.max_bytes, _MOST)
        memory = _new_memory(max_bytes)
        pipe, worker_end = context.Pipe()
        link = _Link(self, pipe)
        worker = context.Process(  # type: ignore[attr-defined]
            target=work,
            args=(
                self.streamer,
                max_iter,
                worker_end,
                pipe if forks else None,
                memory,
                max_bytes,
                _randomness.for_next_worker(),
            ),
            daemon=True,
        )
        try:
            with _Undisturbed():
                try:
                    with _as_parent():
                        worker.start()
                except Exception as error:
                    raise PescadorError(
                        f"the worker of {self.streamer!r} could not be started: {error}"
                    ) from error
                finally:
                    worker_end.close()
                    if memory is not None:
                        memory.close()
                # While it begins to run.
                link.accept(worker, memory)
            yield link
        finally:
            # A process that was forked meanwhile holds a copy of all this; it is not its to end.
            if os.getpid() == owner:
                try:
                    link.stop()
                    if worker.pid is not None:
                        _wait_for_end(worker, self.timeout)
                finally:
                    with _Undisturbed():
                        _end(worker)
                        link.close()


def _new_memory(max_bytes: int) -> _transport.Memory | None:
    """Return memory to share with a worker, or None if there is none to be had."""
    try:
        return _transport.Memory(max_bytes)
    except (OSError, MemoryError):
        return None


class _Undisturbed:
    """Put off Ctrl-C while something is begun or ended that has to be whole.

    Only the main thread is ever interrupted. A process that is forked meanwhile is not ready for
    Ctrl-C either.

    Parameters
    ----------
    deaf : bool
        Whether to put off all signals, for calls that do not begin again where one interrupts them.
        Not while a process is started, which would inherit that.
    """

    def __init__(self, deaf: bool = False) -> None:
        self.deaf = deaf and hasattr(signal, "pthread_sigmask")
        self.mask: Any = None
        self.before: Any = None
        self.frame: FrameType | None = None
        self.interrupted = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            # Not if it is ignored, or handled by somebody who is not Python.
            if callable(before):
                self.before = before
                signal.signal(signal.SIGINT, self._note)
        if self.deaf:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _note(self, _: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.frame = frame

    def __exit__(self, *_: object) -> None:
        try:
            if self.mask is not None:
                # Handlers of others may raise here.
                signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        finally:
            self._restore()

    def _restore(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            if self.interrupted:
                self.before(signal.SIGINT, self.frame)


class _Starting:
    """One process at a time may be made to look as if it was not daemonic."""

    lock = threading.Lock()

    @classmethod
    def renew(cls) -> None:
        # A process that was forked while this was held would wait for ever.
        cls.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Starting.renew)


@contextmanager
def _as_parent() -> Iterator[None]:
    """Let a daemonic process start a worker.

    Python refuses it because the children of a daemonic process would survive its end. Workers
    watch their parent, and do not.
    """
    process = multiprocessing.current_process()
    with _Starting.lock:
        daemon = process.daemon
        try:
            if daemon:
                process.daemon = False
            yield
        finally:
            if daemon:
                process.daemon = True


def _wait_for_end(worker: BaseProcess, timeout: float | None) -> None:
    """Wait until a worker has ended, at most for some seconds."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    # In small steps: its own children may keep the sentinel open.
    while not wait([worker.sentinel], max(0, min(HEARTBEAT, deadline - time.monotonic()))):
        if time.monotonic() >= deadline or _is_gone(worker, patient=False):
            return


def _end(worker: BaseProcess) -> None:
    """Make a worker end, if it has not, and forget it."""
    if worker.pid is None:
        return
    if wait([worker.sentinel], 0):
        worker.join(1)
    if worker.is_alive():
        worker.terminate()
        worker.join(1)
    # A stopped process is beyond the reach of anything else.
    if worker.is_alive():
        worker.kill()
        worker.join(1)
    if not worker.is_alive():
        worker.close()


class _Port:
    """A port of the loopback interface, and the ZeroMQ socket that listens there if need be."""

    def __init__(self) -> None:
        self.number = 0
        self.descriptor = -1
        self.context: Any = None
        self.socket: Any = None

    def take(self, streamer: "ZMQStreamer[Any]") -> None:
        """Find a free port that a streamer may use, and keep it from others."""
        lowest, end, tries = streamer.min_port, streamer.max_port, streamer.max_tries
        failure: Exception | None = None
        for _ in range(tries):
            # Not from the global random state, which is not ours to draw from.
            number = lowest + secrets.randbelow(end - lowest)
            try:
                server = socket.create_server(("127.0.0.1", number))
            except OSError as error:
                failure = error
            else:
                server.setblocking(False)
                self.number = number
                self.descriptor = server.detach()
                return
        raise PescadorError(
            f"no free port found between min_port={lowest} and max_port={end} in "
            f"max_tries={tries} tries: {failure}"
        ) from failure

    def open(self) -> tuple[int, bytes]:
        """Listen there to nobody who does not know the key; return the number and the key."""
        with _Undisturbed(deaf=True):
            self.context = zmq.Context()
            self.socket = self.context.socket(zmq.PAIR)
            self.socket.set_hwm(0)
            key, self.socket.curve_secretkey = zmq.curve_keypair()
            self.socket.curve_publickey = key
            self.socket.curve_server = True
            # It takes over what listens already: there is no moment for others to come first.
            self.socket.use_fd = self.descriptor
            self.socket.bind(f"tcp://127.0.0.1:{self.number:d}")
            self.descriptor = -1
        return self.number, key

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            socket.close(self.descriptor)
        if self.context is not None:
            with _Undisturbed(deaf=True):
                if self.socket is not None:
                    self.socket.close(linger=0)
                self.context.term()


# ---------------------------------------------------------------------------------- consumer


class _Link:
    """What a consumer holds of its worker.

    Parameters
    ----------
    streamer : ZMQStreamer
        Whose worker it is.
    pipe : Connection
        To the worker.
    """

    def __init__(self, streamer: "ZMQStreamer[Any]", pipe: Connection) -> None:
        self.streamer = streamer
        self.pipe = pipe
        self.owner = os.getpid()
        self.loans: _transport.Loans | None = None
        self.worker: BaseProcess
        self.port = _Port()
        self.socket: Any = None
        self.poller: Any = None
        self.unacknowledged = 0
        self.deaf = False
        self.gone = False
        # The worker's last word.
        self.total: int | None = None
        self.error: tuple[bytes | None, str, str] | None = None

    def accept(self, worker: BaseProcess, memory: _transport.Memory | None) -> None:
        """Take note of the worker, which was started, and of the memory shared with it, if any."""
        self.worker = worker
        # Not before the start: a process that is forked leaves all that is on loan to this one.
        if memory is not None:
            self.loans = _transport.Loans(memory)
        self.port.take(self.streamer)

    def watch(self) -> None:
        """Begin to watch the worker."""
        if self.loans is None:
            self._open()
            self.poller = zmq.Poller()
            self.poller.register(self.socket, zmq.POLLIN)
        else:
            self.poller = select.poll()
        if sys.platform != "win32":
            self.poller.register(self.pipe.fileno(), select.POLLIN)
            self.poller.register(self.worker.sentinel, select.POLLIN)

    def _open(self) -> None:
        """Be ready for messages, and tell the worker where, once."""
        if self.socket is None:
            address = self.port.open()
            self.socket = self.port.socket
            with suppress(OSError):
                self.pipe.send_bytes(pickle.dumps(address))

    def items(self) -> Iterator[Any]:
        """Return an iterator over what the worker sends."""
        if self.loans is None:
            return self._messages()
        return _transport.Reader(
            self.loans, schema_from, self._wait, self._ring, self._message, self.streamer.copy
        )

    def stop(self) -> None:
        """Tell the worker that no more is wanted."""
        if self.loans is not None:
            self.loans.stop()
        with suppress(OSError):
            self.pipe.send_bytes(STOP)

    def close(self) -> None:
        """Let go of everything but the arrays; the worker has ended."""
        self.pipe.close()
        if self.loans is not None:
            self.loans.close()
        self.port.close()

    def _ring(self) -> None:
        with suppress(OSError):
            self.pipe.send_bytes(b"")

    def _wait(self, reader: _transport.Reader) -> bool:
        """Wait for a record in shared memory; return whether there is one, or it is the end."""
        while reader.sleep():
            if self._is_over(reader.received):
                return False
            self._listen(self.poller.poll(HEARTBEAT * 1000))
        return True

    def _message(self, reader: _transport.Reader) -> Any:
        """Return the item that comes as a message, next in the order of the records."""
        return self._next_message(reader.received)

    def _messages(self) -> Iterator[Any]:
        """Yield the items of a worker that sends them all as messages."""
        received = 0
        while (item := self._next_message(received)) is not None:
            received += 1
            self.unacknowledged += OVERHEAD + nbytes(item)
            yield item
            del item
            if self.unacknowledged >= self.streamer.max_bytes // 4:
                self._acknowledge()

    def _acknowledge(self) -> None:
        """Tell a worker that sends messages how much was received since it was told last."""
        if self.unacknowledged:
            self.socket.send(b"%d" % self.unacknowledged)
            self.unacknowledged = 0

    def _next_message(self, received: int) -> Any:
        """Return the item of the next message, or None at the end."""
        if os.getpid() != self.owner:
            raise PescadorError(_transport.FORKED)
        while True:
            try:
                return receive(self.socket, zmq.NOBLOCK)
            except zmq.Again:
                if self._is_over(received):
                    return None
            # A worker that waits for room may need all that there is.
            self._acknowledge()
            if self.loans is None:
                self._listen(self.poller.poll(HEARTBEAT * 1000))
            elif not self.socket.poll(HEARTBEAT * 100):
                self._listen([])
            if self.gone:
                # It may still be on its way from the socket's buffers.
                self.socket.poll(HEARTBEAT * 1000)

    def _listen(self, ready: list[tuple[Any, int]]) -> None:
        """Take in what there is to know of the worker: what is readable, nothing after a while."""
        names = [name for name, _ in ready]
        if self.socket in names and len(names) == 1:
            return
        if self.pipe.fileno() in names:
            self._hear()
        if not ready or self.worker.sentinel in names:
            self.gone = _is_gone(self.worker, patient=bool(ready))
            if ready and not self.gone:
                # Its end of the sentinel is closed, but it lives.
                self.poller.unregister(self.worker.sentinel)
            while (self.gone or not ready) and self._is_heard():
                self._hear()

    def _is_heard(self) -> bool:
        try:
            return not self.deaf and self.pipe.poll()
        except OSError:
            return False

    def _hear(self) -> None:
        """Read one message from the pipe."""
        try:
            word = self.pipe.recv_bytes()
        except (EOFError, OSError):
            # Closed at the other end. That it has ended will be seen elsewhere.
            self.poller.unregister(self.pipe.fileno())
            self.deaf = True
            return
        if word == ASK:
            self._open()
        elif word:
            self.total, self.error = pickle.loads(word)

    def _is_over(self, received: int) -> bool:
        """Tell whether this was all; raise what the worker raised, or what became of it."""
        if self.total is not None and received >= self.total:
            if self.error is not None:
                _raise_from_worker(self.error, self.streamer)
            return True
        if self.gone:
            # Nothing has come since, and nothing will.
            _raise_death(self.worker, self.streamer, received)
        return False


def _is_gone(worker: BaseProcess, patient: bool) -> bool:
    """Tell whether a process has ended; if it seems so, be patient until the system says so."""
    for _ in range(100 if patient else 1):
        if not worker.is_alive():
            return True
        if sys.platform != "win32":
            # If somebody else has waited for it, Python does not know.
            try:
                os.kill(worker.pid or 0, 0)
            except ProcessLookupError:
                return True
        if patient:
            time.sleep(0.001)
    return False


def _raise_from_worker(
    error: tuple[bytes | None, str, str], streamer: "ZMQStreamer[Any]"
) -> NoReturn:
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


def _raise_death(worker: BaseProcess, streamer: "ZMQStreamer[Any]", received: int) -> NoReturn:
    code = worker.exitcode
    if code is None:
        how = "is gone"
    elif code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        how = f"exited with code {code} before the end of its stream"
    raise PescadorError(f"the worker of {streamer.streamer!r} {how}, after {received} items")
