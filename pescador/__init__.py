"""Streams of training data: restartable, mixed by weight, batched, in other processes."""

try:
    import pescador._core as _core  # noqa: F401
except ModuleNotFoundError as error:  # pragma: no cover - seen only where nothing was compiled
    if error.name != "pescador._core":
        raise
    raise ImportError(
        "pescador's compiled modules are missing here. Install the package with "
        "`pip install .` from its source folder (a C compiler is needed), and import it from "
        f"another folder than the source's. ({error})"
    ) from error
except ImportError as error:
    raise ImportError(
        f"pescador's compiled modules could not be loaded: {error} (They and NumPy can be used in "
        "the main interpreter only: not in a subinterpreter.)"
    ) from error

from . import core, exceptions, maps, mux, sources, util, zmq_stream
from .batches import batches
from .core import Streamer, streamable
from .exceptions import ArgumentError, DataError, PescadorError, PescadorWarning, StateError
from .maps import SKIP, buffer_stream, cache, keras_tuples, transform, tuples
from .mux import BaseMux, ChainMux, Mux, RoundRobinMux, ShuffledMux, StochasticMux
from .parallel import ParallelStreamer
from .remote import RemoteStreamer, Server, serve
from .seeded import SPAWN, Seeded
from .sharded import Sharded
from .stream import Stream
from .version import version as __version__
from .zmq_stream import ZMQStreamer

__all__ = [
    "SKIP",
    "SPAWN",
    "ArgumentError",
    "BaseMux",
    "ChainMux",
    "DataError",
    "Mux",
    "ParallelStreamer",
    "PescadorError",
    "PescadorWarning",
    "RemoteStreamer",
    "RoundRobinMux",
    "Seeded",
    "Server",
    "Sharded",
    "ShuffledMux",
    "StateError",
    "StochasticMux",
    "Stream",
    "Streamer",
    "ZMQStreamer",
    "__version__",
    "batches",
    "buffer_stream",
    "cache",
    "core",
    "exceptions",
    "keras_tuples",
    "maps",
    "mux",
    "serve",
    "sources",
    "streamable",
    "transform",
    "tuples",
    "util",
    "zmq_stream",
]
