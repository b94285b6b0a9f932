"""The worker's end of a channel: stream, say how it ended, and end with the consumer."""

import errno
import os
import pickle
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from . import process
from .protocol import HEARTBEAT, NAP, STOP, WAKE, Report, send_end, send_item, write_item

if sys.platform == "linux":
    from .bell import Bell
    from .ring import Writer


def _file_of(pipe: Connection) -> object:
    """Return what tells the file of a descriptor from others."""
    # On Windows, closing all descriptors leaves pipes alone.
    return None if sys.platform == "win32" else os.fstat(pipe.fileno())[1:3]


class _Consumer:
    """What the worker knows of its consumer: the other end of a pipe.

    A pipe and not a `multiprocessing.Event`: an Event is never free of a process that was killed
    while it waited.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._file = _file_of(pipe)
        if sys.platform != "win32":
            # Another program that the source runs is not to hold it open.
            os.set_inheritable(pipe.fileno(), False)
        self.bell = Bell(pipe) if sys.platform == "linux" else None
        self.stopped = False
        # What it has said, apart from words that say nothing else.
        self.messages: deque[bytes] = deque()

    @property
    def pipe(self) -> Connection:
        """The pipe; an OSError where the source has closed it, and may have another file there."""
        if _file_of(self._pipe) != self._file:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._pipe

    def wait(self, timeout: float | None = NAP) -> bool:
        """Wait until it wakes us, or for some seconds; tell whether it still wants something."""
        try:
            while not self.stopped and self._is_to_read(timeout):
                self._read()
                timeout = 0
        except (OSError, EOFError):
            self.stopped = True
        return not self.stopped

    def _is_to_read(self, timeout: float | None) -> bool:
        """Wait likewise; tell whether there is a message, or the end of the pipe."""
        if self.bell is not None:
            return self.bell.listen(timeout) == "message"
        return process.is_ready(self.pipe, timeout)

    def _read(self) -> None:
        message = self.pipe.recv_bytes()
        self.stopped = message == STOP
        # Who waits for room reads words that wake as well.
        if message not in (STOP, WAKE):
            self.messages.append(message)

    def _wait_for_room(self) -> None:
        """Wait until a message can be sent, and read meanwhile: the consumer may wait for that."""
        poller = select.poll()
        poller.register(self.pipe.fileno(), select.POLLIN | select.POLLOUT)
        while not self.stopped:
            [(_, events)] = poller.poll()
            if not events & select.POLLIN:
                return
            self._read()
        raise BrokenPipeError

    def wake(self) -> None:
        if self.bell is not None:
            self.bell.ring()

    def send(self, item: Any, tag: int = 0) -> bool:
        """Send an item over the pipe; tell whether it still wants something."""
        try:
            send_item(self.pipe, write_item(item), tag, self._wait_for_room)
        except (OSError, EOFError):
            self.stopped = True
        return not self.stopped

    def end(self, error: Report | None) -> None:
        with suppress(OSError):
            send_end(self.pipe, error)


class Queue:
    """Items that wait for the pipe, less than `max_bytes` of them; a thread sends them.

    For systems without shared memory.
    """

    def __init__(self, consumer: _Consumer, max_bytes: int) -> None:
        self.consumer = consumer
        self.max_bytes = max_bytes
        self.size = 0
        self.items: deque[tuple[bytes, int] | None] = deque()
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._send, daemon=True)
        with process.needs_thread():
            self.thread.start()

    def put(self, written: bytes | None, tag: int = 0) -> bool:
        """Add an item, or None at the end, as soon as there is room; tell whether it is wanted."""
        size = len(written or b"")
        with self.changed:
            # There is always room for one.
            while self.size and self.size + size > self.max_bytes and self.consumer.wait(0):
                self.changed.wait(HEARTBEAT)
            self.items.append(None if written is None else (written, tag))
            self.size += size
            self.changed.notify_all()
        return self.consumer.wait(0)

    def _send(self) -> None:
        while True:
            with self.changed:
                while not self.items:
                    self.changed.wait()
                item = self.items.popleft()
            if item is None:
                return
            written, tag = item
            with suppress(OSError):
                send_item(self.consumer.pipe, written, tag)
            with self.changed:
                self.size -= len(written)
                self.changed.notify_all()

    def flush(self) -> None:
        """Wait until all items are sent, or nobody wants them."""
        self.put(None)
        while self.thread.is_alive() and self.consumer.wait(0):
            self.thread.join(HEARTBEAT)


def work(
    parcel: process.Parcel,
    max_iter: float | None,
    max_bytes: int,
    pipe: Connection,
    consumer_end: Connection | None,
) -> None:
    """Be the worker process.

    Parameters
    ----------
    parcel : Parcel
        Of the streamer, the memory to share or None, and the `random_states` to start from. In the
        place of a streamer, what serves many visits: it has ``__pescador_serve__``.
    max_iter : number or None
        What the streamer is called with.
    max_bytes : int
        How much may be on its way.
    pipe : Connection
        To the consumer; see `protocol`.
    consumer_end : Connection or None
        The other end of it, where this process inherited that.
    """
    owner = os.getpid()
    if consumer_end is not None:
        consumer_end.close()
    consumer = _Consumer(pipe)
    error = None
    try:
        process.become_worker(forked=consumer_end is not None)
        streamer, memory, states = parcel.open()
        states.install()
        serve = getattr(streamer, "__pescador_serve__", None)
        stream = () if serve is not None else streamer(max_iter=max_iter)
        if serve is not None:
            serve(consumer, memory, max_bytes)
        elif memory is not None:
            _write(stream, memory, consumer)
        else:
            _queue(stream, max_bytes, consumer)
        # That of a subclass may be any iterable.
        getattr(stream, "close", lambda: None)()
    except BaseException as raised:
        # A process that the stream has forked is none of the consumer's business.
        if os.getpid() != owner:
            raise
        error = describe(raised, by_value=consumer_end is None)
    if os.getpid() == owner:
        consumer.end(error)


def _write(stream: Iterable[Any], memory: Any, consumer: _Consumer) -> None:
    """Send the items of a stream through shared memory; over the pipe those that do not fit."""
    writer = Writer(memory, consumer.wake)
    iterator = iter(stream)
    wanted = True
    while wanted and (why := writer.fill(iterator)) != "ended":
        wanted = consumer.wait() if why == "full" else consumer.send(writer.take_pending())


def _queue(stream: Iterable[Any], max_bytes: int, consumer: _Consumer) -> None:
    """Send the items of a stream over the pipe."""
    owner = os.getpid()
    queue = Queue(consumer, max_bytes)
    try:
        for item in stream:
            if os.getpid() != owner or not queue.put(write_item(item)):
                return
    finally:
        if os.getpid() == owner:
            queue.flush()


def describe(error: BaseException, by_value: bool) -> Report:
    """Return an exception as (pickle or None, one line, traceback), for another process.

    A class of the script comes to a new Python `by_value`, and goes back as the class that it was.
    """
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, Exception):
        for dumps in (pickle.dumps, cloudpickle.dumps) if by_value else (pickle.dumps,):
            with suppress(Exception):
                pickled = dumps(error)
                # Some exceptions can be pickled, but not loaded again.
                if type(pickle.loads(pickled)) is type(error):
                    return pickled, summary, text
    return None, summary, text
