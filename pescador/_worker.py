"""What a worker process does: stream, say how it ended, and end with its consumer."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import zmq

from . import _randomness, _watch
from ._items import encode, schema_of
from ._transport import Memory, Writer

__all__ = ["ASK", "HEARTBEAT", "OVERHEAD", "STOP", "connected", "nbytes", "work"]

# How often (in seconds) a process that waits looks whether the other one is still there.
HEARTBEAT = 0.2

# How long (in seconds) a worker that waits for room sleeps before it looks for itself. The consumer
# wakes it when it asks for items, but memory may come back while it does something else.
NAP = 0.01

# What the worker says when it wants to know where to send messages.
ASK = b"where"

# What the consumer says at the end.
STOP = b"stop"

# What a message costs ZeroMQ at least, in bytes.
OVERHEAD = 1024


@contextmanager
def connected(port: int, server_key: bytes | None) -> Iterator[Any]:
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


def _reduce(memory: Memory) -> tuple[Any, ...]:
    """Have a process that does not inherit a memory take it along when it starts."""
    return _map, (memory.max_bytes, reduction.DupFd(memory.fileno()))


def _map(max_bytes: int, descriptor: Any) -> Memory:
    return Memory(max_bytes, descriptor.detach())


reduction.register(Memory, _reduce)


class _Consumer:
    """What the worker knows of its consumer: a pipe, on which it rings, or says where it listens.

    A pipe and not a `multiprocessing.Event`: an Event is never free of a process that was killed
    while it waited.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.stopped = False
        self.address: tuple[int, bytes] | None = None

    def wait(self, timeout: float | None = NAP) -> bool:
        """Wait until it rings, or for some seconds; tell whether it still wants something."""
        try:
            while not self.stopped and self.pipe.poll(timeout):
                word = self.pipe.recv_bytes()
                if word == STOP:
                    self.stopped = True
                elif word:
                    self.address = pickle.loads(word)
                timeout = 0
        except (OSError, EOFError):
            self.stopped = True
        return not self.stopped

    def ring(self) -> None:
        self.send(b"")

    def send(self, message: bytes) -> None:
        # A consumer that has gone will not read it.
        with suppress(OSError):
            self.pipe.send_bytes(message)


class _Messages:
    """The way of items that do not go through shared memory: ZeroMQ messages.

    Parameters
    ----------
    consumer : _Consumer
    """

    def __init__(self, consumer: _Consumer) -> None:
        self.consumer = consumer
        self.opened: Any = None
        self.socket: Any = None
        self.sent = 0

    def send(self, item: Any) -> bool:
        """Send an item; tell whether the consumer still wants something."""
        if self.socket is None:
            self.consumer.send(ASK)
            while self.consumer.address is None:
                if not self.consumer.wait(None):
                    return False
            self.opened = connected(*self.consumer.address)
            self.socket = self.opened.__enter__()
        self.socket.send_multipart(encode(item))
        self.sent += 1
        return True

    def send_all(self, stream: Iterable[Any], max_bytes: int) -> None:
        """Send the items of a stream, with less than about `max_bytes` on their way at a time."""
        in_flight = 0
        for item in stream:
            size = OVERHEAD + nbytes(item)
            # There is always room for one.
            while (in_flight and in_flight + size > max_bytes) or (
                self.sent and self.socket.poll(0)
            ):
                if self.socket.poll(int(HEARTBEAT * 1000)):
                    in_flight -= int(self.socket.recv())
                elif not self.consumer.wait(0):
                    return
            if not (self.consumer.wait(0) and self.send(item)):
                return
            in_flight += size

    def close(self) -> None:
        """Close the socket; what was not received is lost."""
        if self.opened is not None:
            self.opened.__exit__(None, None, None)


def nbytes(item: Any) -> int:
    """Return the size of the arrays of a data object (0 if it is none)."""
    if not isinstance(item, Mapping):
        return 0
    return sum(int(getattr(array, "nbytes", 0)) for array in item.values())


def work(
    streamer: Any,
    max_iter: float | None,
    pipe: Connection,
    consumer_end: Connection | None,
    memory: Memory | None,
    max_bytes: int,
    randomness: _randomness.Randomness,
) -> None:
    """Be the worker process.

    Parameters
    ----------
    streamer, max_iter
        What to stream.
    pipe : Connection
        To the consumer. It gets an empty message when there is something to read for it that it
        waits for, `ASK` when there is a message for it, and at last a pickled ``(number of items,
        error or None)``. From it come a pickled ``(port, key)`` where it listens, an empty message
        when there is room, and `STOP`.
    consumer_end : Connection or None
        The other end of it, where this process inherited that.
    memory : Memory or None
        The memory to share, if there is any.
    max_bytes : int
        How much may be on its way.
    randomness : Randomness
        What the global random states start from.
    """
    # Ctrl-C reaches the whole process group. The consumer decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if consumer_end is not None:
        consumer_end.close()
    _end_with_parent()

    consumer = _Consumer(pipe)
    with closing(_Messages(consumer)) as messages:
        count: Callable[[], int] = lambda: messages.sent  # noqa: E731
        error = None
        try:
            randomness.install()
            writer = None
            if memory is not None:
                writer = Writer(memory, schema_of, consumer.wait, consumer.ring, messages.send)
            stream = streamer(max_iter=max_iter)
            if writer is None:
                messages.send_all(stream, max_bytes)
            else:
                count = lambda: writer.sent  # noqa: E731
                writer.send_all(stream)
            # That of a subclass may be any iterable.
            getattr(stream, "close", lambda: None)()
        except BaseException as raised:
            error = describe(raised)
        consumer.send(pickle.dumps((count(), error)))
        # A message may still be ours to deliver.
        while consumer.wait(None):
            pass


def describe(error: BaseException) -> tuple[bytes | None, str, str]:
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


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, whatever it is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Processes that were forked later may keep its sentinel open; then its number tells. (Under
    # forkserver it is not our parent, but there they inherit nothing either.)
    number = os.getppid()
    _watch.end_with(parent.sentinel, number if number == parent.pid else 0, int(HEARTBEAT * 1000))
