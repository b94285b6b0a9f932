"""The global random states that a worker starts from.

The first worker that is started from a given state of this process inherits that state, as if the
stream ran here. Each further one gets a state derived from it and from a running number, so that
workers differ from each other and from epoch to epoch, in the same way in each run of a script.
"""

import hashlib
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import mtrand

__all__ = ["Randomness", "for_next_worker"]

# How many workers were started from each state, by digest; the states seen last, at most these.
_LIMIT = 4096
_started: OrderedDict[bytes, int] = OrderedDict()


@dataclass
class Randomness:
    """The states of ``np.random`` and `random`, and what to make of them.

    Attributes
    ----------
    legacy : dict
        The state of ``np.random``.
    bit_generator : BitGenerator
        What is behind it.
    python : tuple
        The state of `random`.
    entropy : tuple of int
        What to derive others from; empty to take them as they are.
    """

    legacy: dict[str, Any]
    bit_generator: Any
    python: tuple[Any, ...]
    entropy: tuple[int, ...]

    def install(self) -> None:
        """Set the global states of this process."""
        # Workers of this worker count by themselves, whatever was inherited.
        _started.clear()
        kind = type(self.bit_generator)
        if type(mtrand.get_bit_generator()) is not kind:
            mtrand.set_bit_generator(self.bit_generator)
        legacy = self.legacy
        if self.entropy:
            sequence = np.random.SeedSequence(self.entropy)
            for_numpy, for_python = sequence.spawn(2)
            legacy = {**legacy, **kind(for_numpy).state, "has_gauss": 0, "gauss": 0.0}
            random.seed(int.from_bytes(for_python.generate_state(8).tobytes(), "little"))
        else:
            random.setstate(self.python)
        np.random.set_state(legacy)


def for_next_worker() -> Randomness:
    """Return what the next worker that this process starts is to begin with."""
    legacy: Any = np.random.get_state(legacy=False)
    python = random.getstate()
    known = _plain(legacy), python[0], np.array(python[1]).tobytes(), python[2]
    key = hashlib.blake2b(repr(known).encode(), digest_size=32).digest()
    number = _started.pop(key, 0)
    _started[key] = number + 1
    if len(_started) > _LIMIT:
        _started.popitem(last=False)
    entropy: tuple[int, ...] = ()
    if number:
        words = (int.from_bytes(key[i : i + 4], "little") for i in range(0, len(key), 4))
        entropy = (*words, number)
    return Randomness(legacy, mtrand.get_bit_generator(), python, entropy)


def _plain(state: Any) -> Any:
    """Return a state such that ``repr`` shows all of it."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
