"""Streams of training data: restartable, mixed by weight, batched, in other processes."""

import importlib
from typing import TYPE_CHECKING, Any

try:
    importlib.import_module("pescador._core")
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

from . import core, exceptions, maps, mux, util
from .batches import batches
from .core import Streamer, streamable
from .exceptions import ArgumentError, DataError, PescadorError, PescadorWarning, StateError
from .maps import SKIP, buffer_stream, cache, keras_tuples, transform, tuples
from .mux import BaseMux, ChainMux, Mux, RoundRobinMux, ShuffledMux, StochasticMux
from .seeded import SPAWN, Seeded
from .stream import Stream
from .version import version as __version__

if TYPE_CHECKING:
    from . import sources, zmq_stream
    from .parallel import ParallelStreamer
    from .remote import RemoteStreamer, Server, serve
    from .sharded import Sharded
    from .zmq_stream import ZMQStreamer
else:
    # What not every script needs is imported when it is first asked for: a worker is a copy of its
    # process, and made the faster, the smaller that is.
    _LATER = {
        "parallel": ["ParallelStreamer"],
        "remote": ["RemoteStreamer", "Server", "serve"],
        "sharded": ["Sharded"],
        "sources": [],
        "zmq_stream": ["ZMQStreamer"],
    }

    def __getattr__(name: str) -> Any:
        for room, names in _LATER.items():
            if name == room or name in names:
                try:
                    module = importlib.import_module(f"{__name__}.{room}")
                except AttributeError as error:
                    # Else it would seem that there is no such name.
                    raise ImportError(f"pescador.{room} cannot be imported: {error}") from error
                # Not the others: somebody may have set them.
                globals()[name] = module if name == room else getattr(module, name)
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER, *__all__})


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
