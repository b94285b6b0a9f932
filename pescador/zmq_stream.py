"""Streams that run in a background process; the channel to it is in `pescador._channel`."""

from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import numpy.typing as npt

from . import _core, _hooks
from ._channel import process
from ._channel.consumer import Channel
from ._channel.reporting import RemoteStream
from ._channel.schema import decode, encode
from ._channel.signals import Guard
from ._checks import as_bool, as_choice, as_count, check_seconds
from .core import Streamer
from .exceptions import ArgumentError
from .exceptions import DataError as DataError

__all__ = ["ZMQStreamer"]

T = TypeVar("T")


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
    frames = socket.recv_multipart(flags=flags, copy=copy, track=track)
    data = decode([frame if copy else frame.buffer for frame in frames])
    if not data:
        raise StopIteration
    return data


def zmq_worker(
    port: int,
    streamer: Any,
    terminate: Any,
    copy: bool = False,
    max_iter: float | None = None,
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
    """
    # Not at the top: nothing else here needs it.
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.connect(f"tcp://127.0.0.1:{port:d}")
        try:
            for data in streamer(max_iter=max_iter):
                zmq_send_data(socket, data)
                if terminate.is_set():
                    break
        finally:
            zmq_send_data(socket, {})


def _check(streamer: Any) -> None:
    """Refuse options that are invalid: passed, or assigned since."""
    for name in ("min_port", "max_port", "max_tries", "max_bytes"):
        setattr(streamer, name, as_count(name, getattr(streamer, name)))
    if not streamer.min_port < streamer.max_port <= 65535:
        raise ArgumentError(
            f"min_port={streamer.min_port} must be less than max_port={streamer.max_port}, and "
            "that at most 65535"
        )
    as_bool("copy", streamer.copy)
    check_seconds("timeout", streamer.timeout)
    check_seconds("start_timeout", streamer.start_timeout, "above 0")
    if streamer.start_method is not None:
        as_choice("start_method", streamer.start_method, process.METHODS)


class ZMQStreamer(Streamer[T]):
    """A streamer that runs in a background process.

    Each iteration starts a worker process, which iterates over the wrapped streamer and sends
    what it yields. The items are the same, in the same order, or there is an error.

    Parameters
    ----------
    streamer : Streamer or iterable
        Yields data objects ``{key: ndarray}``.
    min_port, max_port : int, 1 to 65535
        Accepted and checked for the sake of the interface: no port is taken.
    max_tries : int > 0
        Likewise.
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
        How to start the worker, where the system has it. None is ``fork`` on Linux, and Python's
        own default elsewhere, if the program has not chosen another by
        ``multiprocessing.set_start_method``.
    start_timeout : float > 0 or None
        Seconds that may pass from the start of a worker to its first item or its end; more is an
        error. None waits on, with a warning after a minute.

    Raises
    ------
    ArgumentError
        If an argument is invalid. While iterating: if the worker cannot be started, or dies.
    DataError
        While iterating, if an item is not ``{key: ndarray}`` or an array holds Python objects.
    Exception
        While iterating, whatever the streamer raised, after the items before it. Its
        ``__cause__`` carries the worker's traceback.

    See Also
    --------
    ParallelStreamer : several workers, each of which runs some of the streams.
    RemoteStreamer : a worker on another machine.

    Notes
    -----
    **Items.** Arrays arrive aligned, writable, in Fortran order if they were sent so and in C order
    otherwise. Large ones are views of shared memory, which is used again when the last view of it
    dies. They stay valid for as long as anybody holds them, whatever becomes of the stream; what
    they cannot do is ``resize`` in place. Once the views that are held make up half of `max_bytes`,
    further arrays are copied, so that a consumer may keep all that it gets.

    **Shared memory** is to be had on Linux. It has no name, so that nothing can be left behind, and
    ``/dev/shm`` may be full or missing. Where there is less than `max_bytes` of it, less is used.
    Elsewhere, and for an item that finds no room, items travel over a pipe.

    **The streamer travels** by ``fork`` as it is. With ``spawn`` and ``forkserver`` it is pickled;
    functions of the script, closures and lambdas go along by value, as cloudpickle writes them, and
    a ``np.memmap`` as its file. The script is not run again in the worker, so it needs no
    ``if __name__ == "__main__":``.

    **Random states.** The first worker that is started from a given state of the global
    ``np.random`` and `random` inherits that state. Each further one starts from a state derived
    from it and from a running number: the same in each run of a script, but another one for each
    worker and epoch. So does torch, if it is loaded. This process's own states are not changed.
    (To set a state again that was there before is not seen: the count of workers goes on.)

    **What may go wrong**, and what comes of it after the items that were sent before:

    - The streamer raises: the same exception here. If it cannot be pickled, or is no `Exception`
      (``sys.exit`` raises `SystemExit`): a `PescadorError` that quotes it.
    - The worker is killed by a signal or calls ``os._exit``: a `PescadorError` that says so, within
      a second.
    - The worker becomes another program, or closes all descriptors: likewise.
    - The fork server is killed: likewise for each worker that it started; the next start makes
      another.
    - The worker is stopped (SIGSTOP): the consumer waits until it is continued. Closing the
      iteration kills it after `timeout`, as it hears nothing else.
    - The streamer cannot be pickled where that is needed: a `PescadorError` at the first ``next``.
    - Nothing is heard from the worker: see `start_timeout`.
    - No memory can be shared, or no more of it: a pipe, as above.
    - The consumer closes the iteration, raises, or drops it: the worker's generator is closed and
      the worker ends. One that is busy for longer than `timeout` is terminated, and one that
      ignores this for a second killed.
    - Ctrl-C: workers ignore it. It is up to the consumer, whose end is theirs. They ignore whatever
      the script has set a handler in Python for, except SIGTERM, which ends them.
    - The consumer is killed: the worker ends within a second.

    A worker may have workers of its own, and so may other daemonic processes. An iteration belongs
    to the process that began it: one that is forked meanwhile gets an error from it, and its own
    copies of the arrays. What a process sends that the streamer forks is ignored.

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
        streamer: Iterable[T],
        min_port: int = 49152,
        max_port: int = 65535,
        max_tries: int = 100,
        copy: bool = False,
        timeout: float | None = 5,
        *,
        max_bytes: int = 256 * 2**20,
        start_method: str | None = None,
        start_timeout: float | None = None,
    ) -> None:
        super().__init__(streamer)
        if not isinstance(streamer, Streamer):
            self.streamer = Streamer(streamer)
        self.min_port = min_port
        self.max_port = max_port
        self.max_tries = max_tries
        self.copy = copy
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.start_method = start_method
        self.start_timeout = start_timeout
        _check(self)

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
        scope = _core.around(self)
        visit = RemoteStream.in_run(self, scope)
        if visit is None:
            yield from self.__pescador_items__(self.streamer, max_iter)
        else:
            yield from visit.started_by_hooks(scope, max_iter)

    def __pescador_items__(self, streamer: Any, max_iter: float | None) -> Generator[T, None, None]:
        """Return what a worker sends that runs a streamer."""
        _core.as_bound(max_iter)
        _check(self)
        channel = Channel(self, streamer, max_iter, self.max_bytes)
        with (
            _core.Opened(self, iter(())),
            Guard(channel.begin, channel.wait_for_end, channel.end),
        ):
            while channel.wait():
                yield from channel.items()


_hooks.register(ZMQStreamer, opener=RemoteStream.opened)
