"""Streams for other machines: a server, and the streamer that reads from one."""

import copy
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .. import _core, _hooks
from .._channel import process
from .._channel.signals import Guard
from .._checks import as_bool, as_choice, as_count, as_whole, check_seconds, is_number
from ..core import Streamer
from ..exceptions import ArgumentError, PescadorError
from . import keys
from .consumer import Connection, RemoteVisit, Wanted, as_left
from .server import Loop

__all__ = ["RemoteStreamer", "Server", "serve"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # Nothing here says what the items are.
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")


def _check_timeout(value: Any) -> None:
    if not (is_number(value) and value > 0):
        raise ArgumentError(f"timeout={value!r} must be a number of seconds, above 0")


class Server:
    """A server of streams to other machines, while a ``with`` block runs.

    Each iteration of a `RemoteStreamer` is an iteration of its own over `streamer`, in a worker
    process of its own on this machine.

    Parameters
    ----------
    streamer : Streamer or iterable
        What is served.
    address : str
        Where to listen: ``"tcp://0.0.0.0:5555"`` on all networks, ``"tcp://127.0.0.1:*"`` on a free
        port of this machine alone, ``"ipc://path"``.
    key : path or (bytes, bytes) or None
        The key of this server, public and secret: the file ``NAME.key_secret`` that
        ``zmq.auth.create_certificates`` makes, or what ``zmq.curve_keypair`` returns. All is
        encrypted then.
    clients : path or iterable of paths and bytes, or None
        The public keys of those who may connect, or files of them, or a folder whose ``*.key`` are
        such files. Needed with a `key`; read when the server starts.
    insecure : bool
        Whether to serve everybody who reaches the address, in clear text. Without keys this has to
        be said.
    timeout : float > 0
        Seconds after which the stream of a consumer is closed whose connection is gone.
    max_bytes : int > 0
        How much may be on its way to each consumer; one item always may.
    max_consumers : int > 0
        How many streams may be open. Further consumers are refused.
    max_per_client : int > 0 or None
        How many of them may belong to one key; None is as many as there are.
    start_method : {"fork", "spawn", "forkserver"} or None
        How to start workers; see `ZMQStreamer`.
    start_timeout : float > 0 or None
        Seconds that may pass from the start of a worker to its first item or its end; see
        `ZMQStreamer`.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    PescadorError
        On entering, if it cannot listen there; on leaving, if it has failed.

    See Also
    --------
    serve : the same until Ctrl-C.

    Examples
    --------
    >>> from pescador import RemoteStreamer, Server
    >>> with Server(range(5), "tcp://127.0.0.1:*", insecure=True) as server:
    ...     print(list(RemoteStreamer(server.address, insecure=True)))
    [0, 1, 2, 3, 4]
    """

    # As a channel to a worker asks for: arrays may be views.
    copy = False

    def __init__(
        self,
        streamer: Any,
        address: str,
        *,
        key: Any = None,
        clients: Any = None,
        insecure: bool = False,
        timeout: float = 30,
        max_bytes: int = 64 * 2**20,
        max_consumers: int = 64,
        max_per_client: int | None = None,
        start_method: str | None = None,
        start_timeout: float | None = None,
    ) -> None:
        self.streamer = streamer if isinstance(streamer, Streamer) else Streamer(streamer)
        self._given_address = keys.check_address(address)
        self.key = key
        self.clients = clients
        self.insecure = as_bool("insecure", insecure)
        _check_timeout(timeout)
        self.timeout = timeout
        self.max_bytes = as_count("max_bytes", max_bytes)
        self.max_consumers = as_count("max_consumers", max_consumers)
        if max_per_client is not None:
            max_per_client = as_count("max_per_client", max_per_client)
            if key is None:
                raise ArgumentError("max_per_client needs a key: clients are told apart by theirs")
        self.max_per_client = max_per_client
        check_seconds("start_timeout", start_timeout, "above 0")
        if start_method is not None:
            as_choice("start_method", start_method, process.METHODS)
        self.start_method = start_method
        self.start_timeout = start_timeout
        self._loop: Loop | None = None
        self._guard: Guard | None = None
        self._keys()

    def _keys(self) -> Any:
        """Return the pair of keys and the public keys of clients, or None."""
        keys.check_clear("key, clients", self.key is not None, self.insecure)
        if self.key is None:
            if self.clients is not None:
                raise ArgumentError("clients are checked by a server that has a key; pass key, too")
            return None
        if self.clients is None:
            raise ArgumentError("key without clients: pass the public keys that may connect")
        return keys.pair_of("key", self.key), keys.clients_of("clients", self.clients)

    @property
    def address(self) -> str:
        """Where it listens: as it was given, and the port that was found, once it does."""
        return self._given_address if self._loop is None else self._loop.address

    @property
    def consumers(self) -> int:
        """How many streams are open."""
        return 0 if self._loop is None else len(self._loop.sessions)

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise PescadorError(f"{self!r} is listening already")
        loop = Loop(self, self._given_address)
        self._guard = Guard(loop.begin, loop.stop, loop.end)
        self._guard.__enter__()
        self._loop = loop
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        guard, loop = self._guard, self._loop
        self._guard = self._loop = None
        if guard is not None:
            guard.__exit__(None, None, None)
        if loop is not None and error is None:
            loop.raise_error()

    def wait(self) -> None:
        """Wait for as long as it serves: until an exception, such as Ctrl-C, ends the block."""
        if self._loop is None:
            raise PescadorError(f"{self!r} does not listen; wait in a `with` block of it")
        self._loop.wait()

    def __repr__(self) -> str:
        return f"<Server of {self.streamer!r} at {self.address}>"


def serve(streamer: Any, address: str, **options: Any) -> None:
    """Serve a streamer to other machines, until Ctrl-C.

    Parameters
    ----------
    streamer : Streamer or iterable
        What is served.
    address : str
        Where to listen.
    **options : object
        Those of `Server`; ``key`` and ``clients``, or ``insecure=True``, are needed.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    PescadorError
        If it cannot listen there.

    See Also
    --------
    RemoteStreamer : what reads from it.
    """
    with Server(streamer, address, **options) as server:
        server.wait()


class RemoteStreamer(Streamer[T]):
    """A streamer whose items come from a `Server`, as a rule on another machine.

    Each iteration gets one of its own from the server: the items that the streamer gives there, in
    the same order, or an error.

    Parameters
    ----------
    address : str
        Where the server listens: ``"tcp://host:5555"`` or ``"ipc://path"``.
    server_key : path or bytes or None
        The public key of the server: its file ``NAME.key``, or the key. No other server is read
        from.
    key : path or (bytes, bytes) or None
        The key of this end, public and secret, as `Server` takes it. Needed with `server_key`.
    insecure : bool
        Whether to read in clear text, from whoever is there. Without keys this has to be said.
    timeout : float > 0
        Seconds after which a server that cannot be reached, or gives no answer, is an error.
    max_bytes : int > 0
        How much may be on its way; one item always may. The smaller one of both ends counts.
    epoch, rank, world_size : int >= 0 or None
        Which part is read of what is served, if that has parts; see `at`.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    DataError
        While iterating, if an item cannot be sent.
    PescadorError
        While iterating: if there is no connection, or none any more, for `timeout`; if the server
        refuses, or was started again and the stream cannot go on; for what the stream has raised,
        if that cannot be pickled, or was not because there are no keys.
    Exception
        While iterating, whatever the stream has raised, after the items before it. Its
        ``__cause__`` carries the traceback of the worker.

    See Also
    --------
    ZMQStreamer : a worker process of this machine.

    Notes
    -----
    **Items** are mappings of keys to arrays, or made of numbers, strings, bytes, lists, tuples,
    dicts and arrays. With keys anything else that can be pickled is an item, too: the server is
    trusted then. Without, nothing is pickled. Arrays are writable, and have memory of their own or
    that of one item.

    **After a cut** the connection is made again, and the stream goes on at its item. A server that
    was started again meanwhile, or one that has closed the stream because it heard nothing for its
    ``timeout``, goes on from the state that it had sent last; where the stream has no exact state
    (see `Stream.state_dict`), that is an error.

    **State.** `open` gives a `Stream` whose ``state_dict()`` holds the state of the stream at the
    server. With keys, the server takes a state back only if one with its key has written it.

    **Random states.** Each iteration is one at the server, with random states as `ZMQStreamer` has
    them: two consumers of a streamer that draws from ``np.random``, or of a mux without a
    ``random_state``, get different items, and two of a `Seeded` the same, unless `rank` tells them
    apart. In a tree under a `Seeded` here, the stream runs under the seed of its visit.

    **Pickles and copies** hold what was passed as `key`: a path, which is read where the stream is
    opened, or the secret key itself.

    An iteration belongs to the process that began it.

    Examples
    --------
    >>> from pescador import RemoteStreamer, Server
    >>> with Server("abcd", "tcp://127.0.0.1:*", insecure=True) as server:
    ...     remote = RemoteStreamer(server.address, insecure=True)
    ...     with remote.open() as stream:
    ...         first = next(stream), next(stream)
    ...         state = stream.state_dict()
    ...     print(first, list(remote.open(state=state)))
    ('a', 'b') ['c', 'd']
    """

    def __init__(
        self,
        address: str,
        *,
        server_key: Any = None,
        key: Any = None,
        insecure: bool = False,
        timeout: float = 30,
        max_bytes: int = 64 * 2**20,
        epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.streamer: Any = address
        self.args, self.kwargs = (), {}
        self.active_count_ = 0
        self.stream_ = None
        self.server_key = server_key
        self.key = key
        self.insecure = insecure
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.place = {"epoch": epoch, "rank": rank, "world_size": world_size}
        self._check()

    def _check(self) -> None:
        """Refuse options that are invalid: passed, or assigned since."""
        keys.check_address(self.address)
        _check_timeout(self.timeout)
        as_bool("insecure", self.insecure)
        self.max_bytes = as_count("max_bytes", self.max_bytes)
        for name, value in self.place.items():
            if value is not None:
                # No server is asked for a part of none.
                check = as_count if name == "world_size" else as_whole
                self.place[name] = check(name, value)
        self._keys()

    @property
    def address(self) -> str:
        """Where the server listens."""
        return str(self.streamer)

    def _keys(self) -> Any:
        """Return the pair of keys and the server's public key, or None."""
        keys.check_clear("server_key, key", self.server_key is not None, self.insecure)
        if self.server_key is None:
            if self.key is not None:
                raise ArgumentError("key is for a server with a known server_key; pass that, too")
            return None
        if self.key is None:
            raise ArgumentError("server_key without key: the server knows its clients by theirs")
        server_key = keys.public_of("server_key", self.server_key)
        return keys.pair_of("key", self.key), server_key

    def at(
        self, *, epoch: int | None = None, rank: int | None = None, world_size: int | None = None
    ) -> Self:
        """Return a streamer of another part of what is served.

        Parameters
        ----------
        epoch, rank, world_size : int >= 0 or None
            What ``at`` of the served streamer is called with (that of `Seeded` has `epoch` and
            `rank`); None leaves it as it is.

        Returns
        -------
        remote : RemoteStreamer
        """
        result = copy.copy(self)
        result.active_count_ = 0
        asked = {"epoch": epoch, "rank": rank, "world_size": world_size}
        result.place = {
            name: self.place[name] if value is None else value for name, value in asked.items()
        }
        result._check()
        return result

    def iterate(self, max_iter: float | None = None) -> Generator[T, None, None]:
        """Iterate over the stream once.

        Parameters
        ----------
        max_iter : number >= 0 or None
            How many items to yield at most.

        Yields
        ------
        item : object
            What the served streamer gives.

        Raises
        ------
        PescadorError, DataError, Exception
            See the class.
        """
        scope = _core.around(self)
        visit = RemoteVisit.in_run(self, scope)
        if visit is None:
            yield from self.__pescador_items__(Wanted(as_left(max_iter)))
        else:
            yield from visit.started_by_hooks(scope, max_iter)

    def __pescador_items__(self, position: Wanted) -> Generator[T, None, None]:
        """Return the items of a stream from a position on, which is kept up to date."""
        self._check()
        connection = Connection(self, position)
        with (
            _core.Opened(self, iter(())),
            Guard(connection.begin, connection.stop, connection.end),
        ):
            yield from connection.items()

    def _activate(self) -> None:
        self.stream_ = self.iterate()


_hooks.register(RemoteStreamer, opener=RemoteVisit.opened)
