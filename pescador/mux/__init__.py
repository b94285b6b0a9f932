"""The muxes: streamers that mix the streams of other streamers into one.

A mux is itself a `Streamer`, so muxes nest. At each step it chooses one stream of its *active
set* and yields the next sample of that; it differs from the others in which streams are active,
how it chooses, and what becomes of a stream that ends.

================  ====================  ======================  =============================
mux               active                chooses                 when a stream ends
================  ====================  ======================  =============================
`StochasticMux`   `n_active` at a time  at random, by weight    another takes its place
`ShuffledMux`     all                   at random, by weight    it is restarted
`RoundRobinMux`   all                   in turn                 it is skipped until the round
                                                                is over
`ChainMux`        one                   that one                the next takes its place
================  ====================  ======================  =============================

What all of them promise:

* **Isolation.** Each iteration works on a copy of the mux's random generator, so that two
  iterations of a seeded mux are equal. (``random_state=None`` draws from the global state of
  ``np.random``, live.) Muxes that share a ``RandomState`` share the copy.
* **Order of draws.** For the same seed and the same streams, the samples are the same.
* **Ends.** A stream that has given its last sample is found exhausted when it is chosen again.
  A stream without any samples is left out where the mux says so. Where it is started again,
  and all others are empty as well, 256 times in a row, the mux raises, and so does ``cycle``.
* **Cost.** A stream is started when its first sample is due. Streams that are not started cost
  nothing; their arguments are read, and copied, when they start. A large array that several
  streams are given is read once for all of them, when the second one starts; each writes into
  pages of its own. (What the caller writes into it later is seen by the next iteration.)

Mixing is compiled (``_mux.pyx``). A subclass that overrides one of the hooks ``_activate``,
``_streamers_available``, ``_next_sample_index``, ``_on_stream_exhausted``, ``_new_stream``,
``_replace_stream`` or ``iterate`` gets a loop in Python instead, which calls them as
`BaseMux.iterate` describes. The methods of these names below say in NumPy what the compiled
engines do.
"""

# As in every release, these are found here, too.
from ..core import Streamer as Streamer
from ..exceptions import PescadorError as PescadorError
from ..util import get_rng as get_rng
from .base import BaseMux
from .chain import ChainMux
from .legacy import Mux
from .round_robin import RoundRobinMux
from .shuffled import ShuffledMux
from .stochastic import StochasticMux

__all__ = ["BaseMux", "ChainMux", "Mux", "RoundRobinMux", "ShuffledMux", "StochasticMux"]

# Pickles name a class by its module: by the one that it has in every release, in whichever file.
for _class in (BaseMux, ChainMux, Mux, RoundRobinMux, ShuffledMux, StochasticMux):
    _class.__module__ = __name__
