"""The server's end: one thread, which waits for consumers and for the workers of their streams.

No code of a stream runs here: each consumer's stream has a worker process of its own, by the
channel of a `ZMQStreamer`. What a consumer sends is read as JSON, checked, and never unpickled.
"""

import copy
import errno
import hashlib
import hmac
import itertools
import os
import socket as sockets
import stat
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
import zmq
from zmq.utils import z85

from .._channel.consumer import Channel
from .._channel.protocol import HEARTBEAT, NAP, Report
from .._channel.reporting import STATE_KEY
from .._channel.worker import describe
from .._checks import as_whole
from ..exceptions import ArgumentError, PescadorError, StateError
from ..version import version
from . import protocol
from .protocol import keep_memory, message, read_question
from .values import Batch
from .work import Work

_DOMAIN = b"pescador"
# Bytes of the seal of a state.
_SEAL = 32
# Messages of consumers that are read in a row, and connections that wait to be accepted.
_AT_ONCE = 64
# Messages of one connection that wait to be read: the rest waits at the other end.
_WAITING = 4
_BACKLOG = 128
# Milliseconds until there is a look at workers that say nothing. On Windows, none can be heard.
_PAUSE = int((NAP if sys.platform == "win32" else HEARTBEAT) * 1000)
# Seconds for which one worker is read from, while others wait.
_MOMENT = 0.01
# Seconds that a worker has to end whose stream nobody wants.
_GRACE = 5.0
# Seconds that the main thread waits at a time.
_LOOK = 0.25

# The addresses of the servers of this process.
_listening: set[str] = set()


class Loop:
    """The thread of a `Server`, between `begin` and `end`; it listens at an address."""

    def __init__(self, server: Any, address: str) -> None:
        self.server = server
        self.owner = os.getpid()
        self.context = zmq.Context()
        self.tick = protocol.tick(server.timeout)
        self.sessions: dict[tuple[str, str], Session] = {}
        # Of streams that nobody wants any more: the channels to their workers, with a time each.
        self.ending: list[tuple[Channel, float]] = []
        self.sockets: list[Any] = []
        self.bell: Any = None
        self.thread: threading.Thread | None = None
        # Not `join`: Python before 3.13 takes a thread for ended if Ctrl-C interrupts that.
        self.has_finished = threading.Event()
        self.error: BaseException | None = None
        self.address = address

    # ------------------------------------------------------------------------- life of a server

    def begin(self) -> None:
        """Listen, and start the thread."""
        server = self.server
        if self.address.startswith("ipc://") and (why := _why_taken(self.address[6:])):
            raise PescadorError(f"{server!r} cannot listen: {why}")
        try:
            self._listen()
        except zmq.ZMQError as error:
            raise PescadorError(f"{server!r} cannot listen: {error}") from error
        self.address = self.socket.last_endpoint.rstrip(b"\0").decode()
        _listening.add(self.address)
        self.thread = threading.Thread(target=self._run, name="pescador server", daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        keys, timeout = self.server._keys(), self.server.timeout
        if keys is not None:
            (_, secret), self.clients = keys
            # Before anybody can connect: without it, ZeroMQ would let them.
            self.door = self._new_socket(zmq.REP)
            self.door.bind("inproc://zeromq.zap.01")
            self.seal_key = hashlib.blake2b(secret, person=b"state").digest()
        # What wakes the thread, and this end of it.
        self.alarm = self._new_socket(zmq.PAIR)
        self.alarm.bind("inproc://alarm")
        self.bell = self.context.socket(zmq.PAIR)
        self.bell.linger = 0
        self.bell.connect("inproc://alarm")
        self.socket = socket = self._new_socket(zmq.ROUTER)
        socket.router_mandatory = 1
        socket.maxmsgsize = protocol.LARGEST
        socket.rcvhwm = _WAITING
        socket.backlog = _BACKLOG
        socket.ipv6 = "[" in self.address
        protocol.set_heartbeats(socket, timeout)
        if keys is not None:
            socket.curve_server = True
            socket.curve_secretkey = secret
            socket.zap_domain = _DOMAIN
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self.has_keys = keys is not None
        socket.bind(self.address)

    def _new_socket(self, kind: int) -> Any:
        socket = self.context.socket(kind)
        socket.linger = 0
        self.sockets.append(socket)
        return socket

    def stop(self) -> None:
        """Have the thread end, and wait for that."""
        if os.getpid() == self.owner and self.thread is not None:
            with suppress(zmq.Again):
                self.bell.send(b"", zmq.NOBLOCK)
            self._wait_for_thread()

    def wait(self) -> None:
        """Wait until the thread ends."""
        self._wait_for_thread()
        self.raise_error()

    def _wait_for_thread(self) -> None:
        # Not once for all: a signal that comes just before Python begins to wait interrupts
        # nothing, and its handler runs when the wait is over.
        while not self.has_finished.wait(_LOOK):
            pass

    def raise_error(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self.error is not None:
            raise PescadorError(f"{self.server!r} has failed: {self.error}") from self.error

    def end(self) -> None:
        """Let go of everything."""
        if os.getpid() == self.owner:
            self.stop()
            if self.thread is not None:
                self.thread.join()
            _listening.discard(self.address)
            for socket in (self.bell, *reversed(self.sockets)):
                if socket is not None:
                    socket.close()
            self.context.term()

    # ----------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self.error = error
        finally:
            self.has_finished.set()

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for socket in reversed(self.sockets):
                socket.close()
            for session in list(self.sessions.values()):
                self._close(session)
            while self.ending:
                time.sleep(HEARTBEAT / 10)
                self._end_workers()

    def _turn(self) -> bool:
        """Wait until there is something to do, and do it; tell whether to go on."""
        poller = zmq.Poller()
        for socket in self.sockets:
            poller.register(socket, zmq.POLLIN)
        for session in self.sessions.values():
            if session.has_room() and (descriptor := session.descriptor()) is not None:
                poller.register(descriptor, zmq.POLLIN)
        is_behind = any(session.is_behind for session in self.sessions.values())
        ready = dict(poller.poll(0 if is_behind else _PAUSE))
        if self.alarm in ready:
            return False
        if self.has_keys and self.door in ready:
            self._answer_door()
        if self.socket in ready:
            self._hear()
        now = time.monotonic()
        for session in list(self.sessions.values()):
            if session.due <= now or session.descriptor() in ready:
                self._advance(session)
        self._end_workers()
        return True

    def _answer_door(self) -> None:
        """Tell ZeroMQ whether a key may connect, by the protocol of its RFC 27."""
        frames = self.door.recv_multipart()
        request, domain, mechanism = frames[1], frames[2], frames[5]
        known = b""
        if domain == _DOMAIN and mechanism == b"CURVE" and len(frames) == 7:
            public = z85.encode(frames[6])
            known = public if public in self.clients else b""
        status = [b"200", b"OK"] if known else [b"400", b"unknown key"]
        self.door.send_multipart([b"1.0", request, *status, known, b""])

    def _hear(self) -> None:
        """Read what consumers have sent, up to one that begins: others do not wait for many."""
        n_open = len(self.sessions)
        for _ in range(_AT_ONCE):
            if len(self.sessions) > n_open:
                return
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            # Strangers are not here, where there are keys; others may still send anything.
            with suppress(LookupError, TypeError, ValueError, AttributeError, RecursionError):
                route, said = frames
                word, head, rest = read_question(said.bytes)
                user = said.get("User-Id") if self.has_keys else ""
                name = head["stream"]
                if isinstance(name, str) and len(name) <= 64:
                    self._answer(route.bytes, (user, name), word, head, rest)

    def _answer(
        self, route: bytes, key: tuple[str, str], word: bytes, head: Any, rest: bytes
    ) -> None:
        """Do what a consumer says."""
        session = self.sessions.get(key)
        if session is None and word == protocol.OPEN:
            try:
                session = self._open(key, head, rest)
            except Exception as error:
                self._say(route, message(protocol.REFUSED, key[1], why=str(error)))
                return
            self.sessions[key] = session
        elif session is None:
            if word == protocol.ASK:
                self._say(route, message(protocol.GONE, key[1]))
            return
        session.heard = time.monotonic()
        session.offline_since = None
        session.due = 0.0
        if route != session.route:
            # Another connection: what was on its way on the one before is sent again. Not to one
            # that only asks again.
            session.route = route
            session.sent = 0
        if word == protocol.CLOSE:
            self._close(session)
            return
        if word == protocol.ASK:
            session.acknowledge(as_whole("at", head["at"]))
        self.tell(session, message(protocol.ALIVE, key[1], window=session.max_bytes))

    def _open(self, key: tuple[str, str], head: dict[str, Any], state: bytes) -> "Session":
        """Start a worker for a consumer; errors are what it is told."""
        server = self.server
        if head["protocol"] != protocol.PROTOCOL:
            raise PescadorError(
                f"it speaks protocol {protocol.PROTOCOL} (pescador {version}), and the consumer "
                f"protocol {head['protocol']!r:.20}: use the same version at both ends"
            )
        if len(self.sessions) >= server.max_consumers:
            raise PescadorError(f"max_consumers={server.max_consumers} streams are open")
        limit = server.max_per_client
        if limit is not None and sum(user == key[0] for user, _ in self.sessions) >= limit:
            raise PescadorError(f"max_per_client={limit} streams with this key are open")
        sequence = None
        if head["seed"] is not None:
            entropy, spawn_key = head["seed"]
            words = entropy if isinstance(entropy, list) else [entropy]
            words = [as_whole("a word of entropy", word) for word in words]
            sequence = np.random.SeedSequence(
                words if isinstance(entropy, list) else words[0],
                spawn_key=tuple(as_whole("a word of the spawn key", word) for word in spawn_key),
            )
        governs = tuple(name for name in ("numpy", "random", "torch") if name in head["governs"])
        streamer = part_of(server.streamer, head["place"])
        work = Work(streamer, sequence, governs, self.has_keys)
        work.skip = as_whole("skip", head["skip"])
        if state:
            work.state = self._unseal(state)
        left = head["max_iter"]
        max_bytes = min(server.max_bytes, max(as_whole("max_bytes", head["max_bytes"]), 1))
        channel = Channel(
            server, work, None if left is None else as_whole("max_iter", left), max_bytes // 2 or 1
        )
        try:
            channel.begin()
        except BaseException:
            channel.end()
            raise
        return Session(self, key, channel, max_bytes - max_bytes // 2)

    def _advance(self, session: "Session") -> None:
        """Take what a worker has written, and send it on; look whether its consumer is there."""
        now = time.monotonic()
        session.read()
        session.send()
        session.due = 0.0 if session.is_behind else now + _PAUSE / 1000
        if now >= session.probe_at:
            # More seldom in a long pause: these words wait at the consumer.
            session.probe_at = now + max(self.tick, (now - session.heard) / 8)
            self.tell(session, message(protocol.ALIVE, session.key[1], window=session.max_bytes))
        offline = session.offline_since
        if offline is not None and now > offline + self.server.timeout:
            self._close(session)

    def tell(self, session: "Session", frames: list[Any]) -> bool:
        """Send a message to a consumer; tell whether there was room for it."""
        try:
            self.socket.send_multipart([session.route, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            if session.offline_since is None:
                session.offline_since = time.monotonic()
            return False
        return True

    def _close(self, session: "Session") -> None:
        """Forget a stream, and have its worker end."""
        del self.sessions[session.key]
        session.channel.stop()
        self.ending.append((session.channel, time.monotonic() + _GRACE))
        # Who opens and closes streams all the time is not to have more workers than that.
        for i in range(len(self.ending) - self.server.max_consumers):
            self.ending[i] = self.ending[i][0], 0.0

    def _end_workers(self) -> None:
        """Let go of workers that have ended, and kill those that have had their time."""
        now = time.monotonic()
        for entry in list(self.ending):
            channel, deadline = entry
            channel.drain()
            if not channel.is_gone():
                if now < deadline:
                    continue
                if channel.worker is not None:
                    channel.worker.kill()
            self.ending.remove(entry)
            channel.end()

    def _say(self, route: bytes, frames: list[Any]) -> None:
        """Answer somebody who has no stream."""
        with suppress(zmq.Again, zmq.ZMQError):
            self.socket.send_multipart([route, *frames], zmq.NOBLOCK)

    # ----------------------------------------------------------------------------- states

    def seal(self, state: bytes) -> bytes:
        """Return a state that `_unseal` will take for one of ours."""
        return self._seal_of(state) + state

    def _seal_of(self, state: bytes) -> bytes:
        if not self.has_keys:
            return bytes(_SEAL)
        return hashlib.blake2b(state, key=self.seal_key, digest_size=_SEAL).digest()

    def _unseal(self, sealed: bytes) -> bytes:
        seal, state = sealed[:_SEAL], sealed[_SEAL:]
        if self.has_keys and not hmac.compare_digest(seal, self._seal_of(state)):
            raise StateError(
                "the state was not taken of a server with this key; open the stream without it"
            )
        return state


class Session:
    """The stream of one consumer.

    Parameters
    ----------
    loop : Loop
        Of the server.
    key : (str, str)
        The consumer's public key, and the number that it has given to the stream.
    channel : Channel
        To the worker.
    max_bytes : int
        How many bytes wait for the consumer's word that they have come.
    """

    def __init__(self, loop: Loop, key: tuple[str, str], channel: Channel, max_bytes: int) -> None:
        self.loop = loop
        self.key = key
        self.channel = channel
        self.max_bytes = max_bytes
        self.route = b""
        self.heard = time.monotonic()
        self.probe_at = self.heard
        # When there is something to do or to look at, but for what the worker says before.
        self.due = 0.0
        # When its connection was found to be gone; None where there is one.
        self.offline_since: float | None = None
        # Messages that the consumer has not confirmed: the number after the last record, bytes,
        # frames. The first `sent` of them are on their way.
        self.window: deque[tuple[int, int, list[Any]]] = deque()
        self.sent = 0
        self.size = 0
        # The number of the next record, and those that are not in a message yet.
        self.at = 0
        self.batch = Batch()
        self.has_ended = False
        self.keeps_memory = False
        # Whether there is more to read than there was time for.
        self.is_behind = False

    def has_room(self) -> bool:
        """Tell whether more may wait for the consumer."""
        return not self.has_ended and (self.size + self.batch.size < self.max_bytes)

    def descriptor(self) -> int | None:
        """Return what becomes readable when the worker has something to say."""
        pipe = self.channel.pipe
        if sys.platform == "win32" or pipe is None or pipe.closed:
            return None
        return pipe.fileno()

    def acknowledge(self, number: int) -> None:
        """Let go of what has come."""
        while self.window and self.sent and self.window[0][0] <= number:
            _, size, _ = self.window.popleft()
            self.size -= size
            self.sent -= 1

    def read(self) -> None:
        """Take records from the worker, while there is room, for a moment."""
        self.is_behind = False
        until = time.monotonic() + _MOMENT
        try:
            while self.has_room() and not self.is_behind:
                is_over = self.channel.is_over()
                self._take(until)
                if self.is_behind or not self.has_room():
                    return
                if is_over:
                    if self.channel.error is None:
                        self.channel.raise_error()
                    self._end(self.channel.error)
                elif not self.channel.listen(0) and not self.channel.is_over():
                    return
        except Exception as error:
            self._end(describe(error, by_value=False))

    def _take(self, until: float) -> None:
        """Make messages of the records that are there, until some time."""
        while self.has_room() and not self.is_behind and self.channel.has_items():
            for item in self.channel.items():
                if self._add(item) and time.monotonic() > until:
                    self.is_behind = True
                if self.is_behind or not self.has_room():
                    break
        self._cut()

    def _add(self, item: Any) -> bool:
        """Add a record; tell whether that has made a message of those before."""
        if STATE_KEY in item and len(item[STATE_KEY]):
            sealed = self.loop.seal(item[STATE_KEY].tobytes())
            item = {**item, STATE_KEY: np.frombuffer(sealed, np.uint8)}
        if self.batch.takes(item):
            return False
        self._cut()
        self.batch.takes(item)
        return True

    def _cut(self) -> None:
        """Make a message of the records so far, and send it."""
        n = len(self.batch.items)
        if not n:
            return
        size = self.batch.size
        self.keeps_memory = self.keeps_memory or keep_memory(size, self.max_bytes)
        # Copies: the memory of the worker serves again.
        columns = [zmq.Frame(column, copy=True) for column in self.batch.frames()]
        frames = message(protocol.ITEMS, self.key[1], *columns, at=self.at, n=n, size=size)
        self._append(frames, n, size)
        self.batch = Batch()

    def _end(self, error: Report | None) -> None:
        """Make the last message, of the worker's error or of none."""
        self._cut()
        pickled, summary, text = error or (None, "", "")
        said = ((pickled or b"") if self.loop.has_keys else b"", summary.encode(), text.encode())
        frames = message(protocol.END, self.key[1], *said, at=self.at, failed=error is not None)
        self._append(frames, 1, sum(map(len, said)))
        self.has_ended = True

    def _append(self, frames: list[Any], n: int, size: int) -> None:
        self.at += n
        self.size += size
        self.window.append((self.at, size, frames))
        self.send()

    def send(self) -> None:
        """Send what was not sent."""
        for _, _, frames in itertools.islice(self.window, self.sent, None):
            if not self.loop.tell(self, frames):
                return
            self.sent += 1


def part_of(streamer: Any, place: dict[str, Any]) -> Any:
    """Return the part of a streamer that a consumer asks for, by `at` of it."""
    place = {name: as_whole(name, value) for name, value in place.items() if value is not None}
    if not place:
        return streamer
    if not set(place) <= {"epoch", "rank", "world_size"}:
        raise ArgumentError(f"place={place!r:.100} must have epoch, rank and world_size only")
    if hasattr(streamer, "at"):
        return streamer.at(**place)
    inner: Any = getattr(streamer, "streamer", None)
    if hasattr(inner, "at"):
        # A ParallelStreamer over such a one, say.
        result = copy.copy(streamer)
        result.streamer = inner.at(**place)
        return result
    asked = ", ".join(f"{name}={value}" for name, value in place.items())
    raise ArgumentError(f"{asked}: {streamer!r} has no such parts; pescador.Seeded has")


def _why_taken(path: str) -> str:
    """Return why a server cannot have this path, or nothing: ZeroMQ removes whatever is there."""
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return ""
    if not stat.S_ISSOCK(kind):
        return f"{path!r} is there, and no socket"
    with sockets.socket(sockets.AF_UNIX) as socket:
        socket.setblocking(False)
        is_taken = socket.connect_ex(path) in (0, errno.EAGAIN)
    return f"another server listens at {path!r}" if is_taken else ""


def _close_sockets() -> None:
    """Close what a forked process has of its parent's connections.

    They would stay open with it: a peer would not see them closed, and the port stay taken.
    """
    addresses = set(_listening)
    _listening.clear()
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    with suppress(OSError):
        for name in os.listdir(folder) if addresses else ():
            with suppress(OSError):
                _close_if_at(int(name), addresses)


def _close_if_at(descriptor: int, addresses: set[str]) -> None:
    """Close a descriptor, if it is a socket of a server's address."""
    found = sockets.socket(fileno=descriptor)
    try:
        name: Any = found.getsockname()
        is_stream = found.type == sockets.SOCK_STREAM
    finally:
        found.detach()
    if isinstance(name, tuple):
        is_here = any(address.endswith(f":{name[1]}") for address in addresses)
    else:
        is_here = f"ipc://{name}" in addresses
    if is_stream and is_here:
        os.close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_sockets)
