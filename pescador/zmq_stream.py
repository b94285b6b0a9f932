"""Streams that run in a background process.

A `ZMQStreamer` starts one worker process per iteration. Items travel over a ZeroMQ socket,
what is said about the stream (where to connect, how it ended) over a pipe that only the two
processes hold:

* The worker sends items as it makes them, as long as fewer than `_IN_FLIGHT` bytes are on their
  way, and at last says on the pipe how many there were, and the exception if there was one.
* The consumer yields items until it has that many. A worker that is gone without a last word has
  been killed, which is an error: a short stream never looks like a whole one.
* The socket listens on the loopback interface, and only to who knows a key made for the occasion.
* A consumer that wants no more says so on the pipe. One that is gone takes its worker with it.
"""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import zmq

from . import _core
from .core import Streamer
from .exceptions import DataError, PescadorError
from .util import as_count

__all__ = ["ZMQStreamer"]

T = TypeVar("T")

# How much may be on its way to a consumer that does not keep up. Each item counts for at least
# _OVERHEAD, which is about what ZeroMQ spends on it.
_IN_FLIGHT = 256 * 2**20
_OVERHEAD = 1024

# How often (in seconds) a process that waits looks whether the other one is still there.
_HEARTBEAT = 0.2


class _WorkerTraceback(PescadorError):
    """Where in the worker an exception came from; the cause of the one raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


# ------------------------------------------------------------------------------------- items


def _encode_key(key: Any) -> Any:
    """Return a key as JSON can hold it: strings as they are, others as [type, value]."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return [type(key).__name__, key]
    if isinstance(key, bytes):
        return ["bytes", key.hex()]
    if isinstance(key, tuple):
        return ["tuple", [_encode_key(part) for part in key]]
    raise DataError(
        f"key {key!r} is of type {type(key).__name__}; only strings, numbers, bytes, None and "
        "tuples of them can be sent to another process"
    )


def _decode_key(code: Any) -> Any:
    if isinstance(code, str):
        return code
    kind, value = code
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "tuple":
        return tuple(_decode_key(part) for part in value)
    return value


def _encode_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as JSON can hold it, with the layout of structures to the byte."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _encode_dtype(base), "shape": shape}
    if dtype.names is None:
        if np.dtype(dtype.str) != dtype:
            raise DataError(f"dtype {dtype} is not NumPy's own and cannot be sent")
        return dtype.str
    fields: list[Any] = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return {
        "names": dtype.names,
        "formats": [_encode_dtype(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "align": dtype.isalignedstruct,
    }


def _decode_dtype(code: Any) -> np.dtype[Any]:
    if isinstance(code, str):
        return np.dtype(code)
    if "base" in code:
        return np.dtype((_decode_dtype(code["base"]), tuple(code["shape"])))
    align = code.pop("align")
    layout: Any = {**code, "formats": [_decode_dtype(f) for f in code["formats"]]}
    dtype: np.dtype[Any] = np.dtype(layout, align=align)
    return dtype


def _encode(data: Any) -> list[Any]:
    """Return the frames of a message that carries a data object: a header, then the arrays."""
    if not isinstance(data, Mapping):
        raise DataError(
            f"an item of type {type(data).__name__} cannot be sent to another process; "
            "it must be a mapping of keys to arrays"
        )
    header, payload = [], []
    for key, array in data.items():
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"key {key!r} holds a {type(array).__name__}; only arrays can be sent to another "
                "process"
            )
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(f"key {key!r} holds a masked array, whose mask would be lost")
        if array.dtype.hasobject:
            raise DataError(
                f"key {key!r} holds an array of dtype {array.dtype}; arrays that refer to Python "
                "objects cannot be sent to another process"
            )
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        header.append((_encode_key(key), _encode_dtype(array.dtype), array.shape, order))
        # The bytes in memory order. Not ascontiguousarray: it gives scalars a dimension.
        flat = np.asarray(array, order="C").reshape(-1) if order == "C" else array.T.reshape(-1)
        payload.append(flat.view(np.uint8) if flat.itemsize and flat.size else b"")
    return [json.dumps(header).encode(), *payload]


def _decode(frames: list[Any]) -> dict[Any, npt.NDArray[Any]]:
    """Return the data object of a message, in writable arrays of their own."""
    data = {}
    header = json.loads(bytes(frames[0]))
    for (code, dtype, shape, order), frame in zip(header, frames[1:], strict=True):
        array: npt.NDArray[Any] = np.empty(shape, _decode_dtype(dtype), order=order)
        if array.nbytes:
            # A message may start anywhere, so it is copied to where its type is aligned.
            flat = array.reshape(-1, order="A").view(np.uint8)
            flat[:] = np.frombuffer(frame, np.uint8)
        data[_decode_key(code)] = array
    return data


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
    return socket.send_multipart(_encode(data), flags, copy=copy, track=track)


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
    data = _receive_one(socket, flags, copy, track)
    if not data:
        raise StopIteration
    return data


def _receive_one(
    socket: Any, flags: int = 0, copy: bool = False, track: bool = False
) -> dict[Any, npt.NDArray[Any]]:
    frames = socket.recv_multipart(flags=flags, copy=copy, track=track)
    return _decode([frame if copy else frame.buffer for frame in frames])


def _nbytes(data: Mapping[Any, Any]) -> int:
    return _OVERHEAD + sum(int(array.nbytes) for array in data.values())


# ------------------------------------------------------------------------------------ worker


class _Stop:
    """Whether the consumer wants no more: it has written to the pipe, or is gone.

    A pipe and not a `multiprocessing.Event`: an Event is never free of a process that was killed
    while it waited.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def is_set(self) -> bool:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return self.pipe.poll(timeout)
        except OSError:
            return True


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
    with _connected(port, server_key) as socket:
        try:
            for data in streamer(max_iter=max_iter):
                zmq_send_data(socket, data)
                if terminate.is_set():
                    break
        finally:
            zmq_send_data(socket, {})
            socket.close(linger=-1)


@contextmanager
def _connected(port: int, server_key: bytes | None) -> Iterator[Any]:
    """Connect a socket to a consumer; close it on the way out, without waiting."""
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    try:
        socket.set_hwm(0)
        if server_key is not None:
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_serverkey = server_key
        socket.connect(f"tcp://127.0.0.1:{port:d}")
        yield socket
    finally:
        # Not context.destroy: when garbage is collected, it may not know its sockets any more.
        socket.close(linger=0)
        context.term()


def _work(
    port: int,
    streamer: Any,
    max_iter: float | None,
    server_key: bytes,
    pipe: Connection,
    consumer_end: Connection | None,
) -> None:
    """Be the worker process: stream, say on the pipe how it ended, and wait to be let go.

    Parameters
    ----------
    pipe : Connection
        To the consumer. ``(number of items, error or None)`` goes one way; anything that comes
        the other way means stop.
    consumer_end : Connection or None
        The other end of it, where this process inherited that.
    """
    # Ctrl-C reaches the whole process group. The consumer decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if consumer_end is not None:
        consumer_end.close()
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    stop = _Stop(pipe)
    with _connected(port, server_key) as socket:
        sent = 0
        error = None
        try:
            for sent in _send_all(socket, streamer(max_iter=max_iter), stop):  # noqa: B007
                pass
        except BaseException as raised:
            error = _describe(raised)
        if not stop.is_set():
            # A consumer that has gone will not read it.
            with suppress(OSError):
                pipe.send((sent, error))
            # What was sent and not received yet is still ours to deliver.
            stop.wait()


def _send_all(socket: Any, stream: Iterator[Any], stop: _Stop) -> Iterator[int]:
    """Send the items of a stream; yield how many were sent so far."""
    in_flight = 0
    for count, data in enumerate(stream, 1):
        if stop.is_set():
            return
        zmq_send_data(socket, data)
        yield count
        in_flight += _nbytes(data)
        while in_flight >= _IN_FLIGHT or socket.poll(0):
            if socket.poll(int(_HEARTBEAT * 1000)):
                in_flight -= int(socket.recv())
            elif stop.is_set():
                return


def _describe(error: BaseException) -> tuple[bytes | None, str, str]:
    """Return an exception as (pickle or None, summary, traceback), for another process."""
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()
    pickled = None
    if isinstance(error, Exception):
        with suppress(Exception):
            candidate = pickle.dumps(error)
            # Some exceptions can be pickled, but not loaded again.
            if type(pickle.loads(candidate)) is type(error):
                pickled = candidate
    return pickled, summary, text


def _exit_with_parent() -> None:
    """End this process when the one that started it is gone, whatever it is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Processes that were forked later may keep its sentinel open; then its number tells. (Under
    # forkserver it is not our parent, but there they inherit nothing either.)
    is_parent = os.getppid() == parent.pid
    while not wait([parent.sentinel], _HEARTBEAT):
        if is_parent and os.getppid() != parent.pid:
            break
    os._exit(1)


# ---------------------------------------------------------------------------------- consumer


class ZMQStreamer(Streamer[T]):
    """A streamer that runs in a background process.

    Each iteration starts a worker process, which iterates over the wrapped streamer and sends
    what it yields. The items are the same, in the same order.

    Parameters
    ----------
    streamer : Streamer or iterable
        Yields data objects ``{key: ndarray}``. It must suit the start method of
        `multiprocessing`: with ``spawn`` and ``forkserver`` it is pickled.
    min_port, max_port : int, 1 to 65535
        The range of ports to use, on the loopback interface only.
    max_tries : int > 0
        How many ports of that range to try.
    copy : bool
        Accepted, and without effect: items are always copied, as the streamer may reuse their
        memory.
    timeout : float >= 0 or None
        Seconds to wait at the end of an iteration before a worker that has not ended is
        terminated. None waits for as long as it takes.

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
    Arrays arrive aligned, writable, in Fortran order if they were sent so and in C order
    otherwise.

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
            with (
                self._channel() as (socket, port, server_key),
                self._worker(port, server_key, max_iter) as (worker, pipe),
            ):
                yield from _receive(socket, worker, pipe, self)
        finally:
            self.active_count_ -= 1

    @contextmanager
    def _channel(self) -> Iterator[tuple[Any, int, bytes]]:
        """Listen on a free port, to nobody who does not know the key."""
        owner = os.getpid()
        context = zmq.Context()
        socket = context.socket(zmq.PAIR)
        try:
            socket.set_hwm(0)
            public_key, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_publickey = public_key
            socket.curve_server = True
            try:
                port = socket.bind_to_random_port(
                    "tcp://127.0.0.1",
                    min_port=self.min_port,
                    max_port=self.max_port,
                    max_tries=self.max_tries,
                )
            except (zmq.ZMQError, zmq.ZMQBindError) as error:
                raise PescadorError(
                    f"no free port found between min_port={self.min_port} and "
                    f"max_port={self.max_port} in max_tries={self.max_tries} tries: {error}"
                ) from error
            yield socket, port, public_key
        finally:
            # A process that was forked meanwhile holds a copy of all this; it is not its to end.
            if os.getpid() == owner:
                socket.close(linger=0)
                context.term()

    @contextmanager
    def _worker(
        self, port: int, server_key: bytes, max_iter: float | None
    ) -> Iterator[tuple[BaseProcess, Connection]]:
        """Run the worker process; end it, and leave nothing of it, on the way out."""
        owner = os.getpid()
        pipe, worker_end = multiprocessing.Pipe()
        inherits = multiprocessing.get_start_method() == "fork"
        worker = multiprocessing.Process(
            target=_work,
            args=(
                port,
                self.streamer,
                max_iter,
                server_key,
                worker_end,
                pipe if inherits else None,
            ),
            daemon=True,
        )
        try:
            try:
                worker.start()
            except Exception as error:
                raise PescadorError(
                    f"the worker of {self.streamer!r} could not be started: {error}"
                ) from error
            finally:
                worker_end.close()
            yield worker, pipe
        finally:
            if os.getpid() == owner:
                # The worker stops when it can read from the pipe, or when that is closed.
                with suppress(OSError):
                    pipe.send(None)
                if worker.pid is not None:
                    worker.join(self.timeout)
                    for end in (worker.terminate, worker.kill):
                        if worker.is_alive():
                            end()
                            worker.join(1)
                    worker.close()
                pipe.close()


def _receive(
    socket: Any, worker: BaseProcess, pipe: Connection, streamer: ZMQStreamer[Any]
) -> Iterator[Any]:
    """Yield the items of a worker until the last; raise what it raised, or what became of it."""
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    if sys.platform != "win32":
        poller.register(pipe.fileno(), zmq.POLLIN)
        poller.register(worker.sentinel, zmq.POLLIN)
    received = unacknowledged = 0
    total: int | None = None
    error = None
    gone = False
    while total is None or received < total:
        try:
            data = _receive_one(socket, zmq.NOBLOCK)
        except zmq.Again:
            if gone:
                # Nothing has come since, and nothing will.
                _raise_death(worker, streamer, received)
            poller.poll(int(_HEARTBEAT * 1000))
            gone = not worker.is_alive()
            if total is None and pipe.poll():
                with suppress(EOFError, OSError):
                    total, error = pipe.recv()
            if gone:
                # Items may still be on their way from the socket's buffers.
                socket.poll(int(_HEARTBEAT * 1000))
            continue
        received += 1
        unacknowledged += _nbytes(data)
        yield data
        del data
        if unacknowledged >= _IN_FLIGHT // 4:
            socket.send(b"%d" % unacknowledged)
            unacknowledged = 0
    if error is not None:
        _raise_from_worker(error, streamer)


def _raise_from_worker(
    error: tuple[bytes | None, str, str], streamer: ZMQStreamer[Any]
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


def _raise_death(worker: BaseProcess, streamer: ZMQStreamer[Any], received: int) -> NoReturn:
    code = worker.exitcode
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        how = f"exited with code {code} before the end of its stream"
    raise PescadorError(f"the worker of {streamer.streamer!r} {how}, after {received} items")
