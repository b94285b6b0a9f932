"""The consumer's end of a connection: ask for records, and go on at the same one after a cut."""

import json
import math
import os
import secrets
import socket as sockets
import struct
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import zmq

from .. import _core
from .._channel import process
from .._channel.consumer import raise_from_worker
from .._channel.protocol import HEARTBEAT, Report
from .._channel.reporting import STATE_KEY, Position, RemoteStream
from ..exceptions import PescadorError
from . import protocol
from .protocol import keep_memory, question
from .values import Schemas, value_of

# How often in a row a server may break off the first handshake: after that, keys do not fit.
_HANDSHAKES = 3
# What reading may raise that anybody has written.
_DAMAGED = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError),
    *(RecursionError, SyntaxError),
)
# How many milliseconds the last word may take to leave.
_LINGER = 500


class Wanted(Position):
    """What a consumer wants of a server: its stream, from a position on.

    Attributes
    ----------
    left : int or None
        How many items are to be given yet; None is to the end.
    seed : list or None
        Entropy and spawn key of the root, where the stream is part of a seeded run.
    governs : tuple of str
        The global states that are each visit's own there.
    """

    def __init__(self, left: int | None, sequence: Any = None, governs: tuple[str, ...] = ()):
        super().__init__()
        self.left = left
        self.seed: Any = None
        self.governs = governs
        if sequence is not None:
            entropy = sequence.entropy
            entropy = [int(word) for word in entropy] if hasattr(entropy, "__len__") else entropy
            self.seed = [entropy, [int(word) for word in sequence.spawn_key]]


class Connection:
    """One iteration of a `RemoteStreamer`, between `begin` and `end`; it moves a position on."""

    def __init__(self, remote: Any, position: Wanted) -> None:
        self.remote = remote
        self.position = position
        self.owner = os.getpid()
        self.keys = remote._keys()
        self.context: Any = None
        self.socket: Any = None
        self.monitor: Any = None
        # What the stream has raised at the server.
        self.error: Report | None = None
        self.tick = protocol.tick(remote.timeout)
        self.schemas = Schemas()
        self.keeps_memory = False
        self.is_connected = False
        self.was_connected = False
        # How often in a row a handshake was broken off.
        self.handshakes = 0
        self.failure = "nobody answers there"
        # When the first question was asked that has no answer.
        self.unanswered_since = math.inf
        self._new_stream()

    def _new_stream(self) -> None:
        """Be about to ask the server for a stream."""
        self.stream = secrets.token_hex(16)
        self.is_open = False
        # The record that is next, bytes since the server was last told, and how many it waits for.
        self.next = 0
        self.untold = 0
        self.window = 0

    # ------------------------------------------------------------------------ life of a connection

    def begin(self) -> None:
        """Connect, which goes on in the background."""
        self.context = zmq.Context()
        self.socket = socket = self.context.socket(zmq.DEALER)
        timeout = self.remote.timeout
        socket.linger = 0
        socket.rcvhwm = 0
        # Not `immediate`: with it, a cut in the middle of a message aborts the process.
        socket.reconnect_ivl = 50
        socket.reconnect_ivl_max = 500
        socket.connect_timeout = max(int(self.tick * 1000), 1)
        socket.ipv6 = "[" in self.remote.address
        protocol.set_heartbeats(socket, timeout)
        if self.keys is not None:
            (socket.curve_publickey, socket.curve_secretkey), socket.curve_serverkey = self.keys
        self.monitor = socket.get_monitor_socket()
        try:
            socket.connect(self.remote.address)
        except zmq.ZMQError as error:
            raise PescadorError(f"{self.remote!r} cannot connect: {error}") from error
        self.poller = zmq.Poller()
        self.poller.register(socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)
        self.offline_since = self.asked = time.monotonic()

    def stop(self) -> None:
        """Tell the server that no more is wanted."""
        if os.getpid() == self.owner and self.socket is not None and self.is_connected:
            self.socket.linger = _LINGER
            self._say(protocol.CLOSE)

    def end(self) -> None:
        """Let go of everything but the arrays."""
        context, self.context = self.context, None
        # What a forked process has of all this is not its to end.
        if os.getpid() != self.owner or context is None:
            return
        with suppress(zmq.ZMQError):
            self.socket.disable_monitor()
        for socket in (self.monitor, self.socket):
            if socket is not None:
                socket.close()
        context.term()

    # ------------------------------------------------------------------------------------ items

    def items(self) -> Generator[Any, None, None]:
        """Yield the items of the stream, and keep the position."""
        position = self.position
        while (records := self._records()) is not None:
            for record in records:
                try:
                    if STATE_KEY in record:
                        position.note(record)
                        continue
                    item = value_of(record, self.keys is not None)
                except _DAMAGED as error:
                    raise self._cannot_read(error) from error
                position.skip += 1
                if position.left is not None:
                    position.left -= 1
                yield item

    def _records(self) -> Any:
        """Return the records of the next message; None at the end of the stream."""
        while True:
            process.check_owner(self.owner)
            if not self.socket.events & zmq.POLLIN:
                self._wait()
                continue
            frames = self.socket.recv_multipart(copy=False)
            self.unanswered_since = math.inf
            try:
                found = self._read(frames)
            except _DAMAGED as error:
                raise self._cannot_read(error) from error
            if self.error is not None:
                raise_from_worker(self.error, repr(self.remote))
            if found is not _NOTHING:
                return found

    def _cannot_read(self, error: Exception) -> PescadorError:
        return PescadorError(
            f"{self.remote!r} has sent what cannot be read here ({type(error).__name__}: {error})"
        )

    def _read(self, frames: list[Any]) -> Any:
        """Return the records of a message, None of the last one, or that it has none."""
        word, head = frames[0].bytes, json.loads(frames[1].bytes)
        if head["stream"] != self.stream:
            return _NOTHING
        if word == protocol.REFUSED:
            raise PescadorError(f"{self.remote!r} is refused by the server: {head['why']}")
        if word == protocol.ALIVE:
            self.is_open = True
            self.window = head["window"]
        elif word == protocol.GONE:
            self._open_again()
        elif word == protocol.ITEMS and head["at"] == self.next:
            self.next += head["n"]
            self.untold += head["size"]
            self.keeps_memory = self.keeps_memory or keep_memory(head["size"], self.window)
            if self.untold >= self.window / 4:
                self._ask()
            columns = [frame.buffer for frame in frames[3:]]
            return self.schemas.items(head["n"], frames[2].bytes, columns)
        elif word == protocol.END and head["at"] == self.next:
            if head["failed"]:
                pickled, summary, text = (frame.bytes for frame in frames[2:])
                # In clear text, nothing is unpickled.
                pickled = pickled if pickled and self.keys is not None else None
                self.error = pickled, summary.decode(), text.decode()
            return None
        return _NOTHING

    def _open_again(self) -> None:
        """Have a server go on that does not know our stream: it was started anew, or we away."""
        position = self.position
        if position.refused:
            raise PescadorError(
                f"{self.remote!r} has lost its stream: the server was started again, or has not "
                f"heard from here for its `timeout`. The stream cannot go on: {position.refused}"
            )
        self._new_stream()
        self._open()

    # ----------------------------------------------------------------------------- words

    def _say(self, word: bytes, rest: bytes = b"", **head: Any) -> None:
        # What cannot be said now is said again.
        with suppress(zmq.Again):
            self.socket.send(question(word, self.stream, rest, **head), zmq.NOBLOCK)

    def _open(self) -> None:
        position = self.position
        left = position.left
        self.asked = time.monotonic()
        self._say(
            protocol.OPEN,
            position.state or b"",
            protocol=protocol.PROTOCOL,
            max_iter=None if left is None else left + position.skip,
            skip=position.skip,
            seed=position.seed,
            governs=position.governs,
            place=self.remote.place,
            max_bytes=self.remote.max_bytes,
        )

    def _ask_or_open(self) -> None:
        if self.is_open:
            self._ask()
        else:
            self._open()

    def _ask(self) -> None:
        """Say what has come, which is asking for more."""
        self.asked = time.monotonic()
        self.untold = 0
        self._say(protocol.ASK, at=self.next)

    # ----------------------------------------------------------------------------- waiting

    def _wait(self) -> None:
        """Wait until something has come, for a moment; look whether the server is there."""
        now = time.monotonic()
        if self.is_connected and now >= self.asked + self.tick:
            self.unanswered_since = min(self.unanswered_since, now)
            self._ask_or_open()
        self.poller.poll(int(HEARTBEAT * 1000))
        while self.monitor.events & zmq.POLLIN:
            self._note_event()
        process.check_owner(self.owner)
        now, timeout = time.monotonic(), self.remote.timeout
        if not self.is_connected and now > self.offline_since + timeout:
            what = "was lost" if self.was_connected else "could not be made"
            raise PescadorError(
                f"{self.remote!r}: the connection {what}, for timeout={timeout} seconds: "
                f"{_why_unresolved(self.remote.address) or self.failure}"
            )
        if self.is_connected and now > self.unanswered_since + timeout:
            raise PescadorError(
                f"{self.remote!r} is connected, but has no answer for timeout={timeout} seconds: "
                "the server hangs, or is none of pescador"
            )

    def _note_event(self) -> None:
        """Read what ZeroMQ tells of the connection."""
        # Not by `zmq.utils.monitor`, which imports asyncio: more to copy for each worker's fork.
        event, _ = self.monitor.recv_multipart()
        kind, value = struct.unpack("=Hi", event)
        now = time.monotonic()
        if kind == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.is_connected = self.was_connected = True
            self.unanswered_since = now
            # On a new connection, all that was on its way is sent again.
            self._ask_or_open()
        elif kind == zmq.Event.DISCONNECTED:
            if self.is_connected:
                self.failure = "it was closed, or nothing was heard on it"
                self.offline_since = now
            self.is_connected = False
        elif kind == zmq.Event.HANDSHAKE_FAILED_AUTH:
            raise PescadorError(
                f"{self.remote!r} is refused by the server ({value}): the public key of `key` is "
                "not among its `clients`"
            )
        elif kind in (zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.HANDSHAKE_FAILED_PROTOCOL):
            self.failure = self._why_no_handshake()
            self.handshakes += 1
            # After an error of the protocol, ZeroMQ does not try again.
            is_final = kind == zmq.Event.HANDSHAKE_FAILED_PROTOCOL
            if is_final or (self.handshakes >= _HANDSHAKES and not self.was_connected):
                raise PescadorError(f"{self.remote!r}: no connection: {self.failure}")

    def _why_no_handshake(self) -> str:
        if self.keys is None:
            return (
                "the handshake was broken off; the server has keys, and takes no clear text "
                "(pass server_key and key), or is no ZeroMQ"
            )
        return (
            "the handshake was broken off; the server's key is not `server_key`, or it was started "
            "with insecure=True, or is no ZeroMQ"
        )


_NOTHING = object()


def _why_unresolved(address: str) -> str:
    """Return that the host of an address has a name that nobody knows, if that is so."""
    host = address[6:].rpartition(":")[0].strip("[]")
    try:
        if address.startswith("tcp://"):
            sockets.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return f"the name {host!r} cannot be resolved ({error})"
    return ""


class RemoteVisit(RemoteStream):
    """A visit in a run to a RemoteStreamer: the items of its server."""

    where = "server"
    # What the server has sealed stays as it is.
    dumps = loads = staticmethod(lambda state: state)

    def __init__(self, remote: Any, scope: _core.Scope) -> None:
        super().__init__(remote, scope)
        self.position: Wanted = Wanted(None, self.sequence, self.run.governs)

    def begin(self) -> Generator[Any, None, None]:
        """Return the items from the position on."""
        self.position.left = self.left if self.is_bounded else None
        items: Generator[Any, None, None] = self.streamer.__pescador_items__(self.position)
        return items

    def __next__(self) -> Any:
        if self.items is None:
            self.items = self.begin()
        item = next(self.items)
        self.given += 1
        self.left -= 1
        return item


def as_left(max_iter: float | None) -> int | None:
    """Return how many items are to be given; None is to the end."""
    return None if max_iter is None or max_iter == math.inf else _core.as_bound(max_iter)
