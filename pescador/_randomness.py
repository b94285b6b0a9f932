"""The global random states that a worker starts from.

The first worker that is started from a given state of this process inherits that state, as if the
stream ran here. Each further one gets a state derived from it and from a running number, so that
workers differ from each other and from epoch to epoch, in the same way in each run of a script.
``np.random`` and `random` count for themselves.
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
    """What ``np.random`` and `random` are to start from.

    Attributes
    ----------
    numpy : dict
        The state of ``np.random``.
    bit_generator : BitGenerator
        What is behind it.
    numpy_entropy : tuple of int
        What to derive another state from; empty to take it as it is.
    python : tuple
        The state of `random`.
    python_entropy : tuple of int
        As for ``np.random``.
    """

    numpy: dict[str, Any]
    bit_generator: Any
    numpy_entropy: tuple[int, ...]
    python: tuple[Any, ...]
    python_entropy: tuple[int, ...]

    def install(self) -> None:
        """Set the global states of this process."""
        # Workers of this worker count by themselves, whatever was inherited.
        _started.clear()
        kind = type(self.bit_generator)
        if type(mtrand.get_bit_generator()) is not kind:
            mtrand.set_bit_generator(self.bit_generator)
        numpy = self.numpy
        if self.numpy_entropy:
            derived = kind(np.random.SeedSequence(self.numpy_entropy))
            numpy = {**numpy, **derived.state, "has_gauss": 0, "gauss": 0.0}
        np.random.set_state(numpy)
        random.setstate(self.python)
        if self.python_entropy:
            words = np.random.SeedSequence(self.python_entropy).generate_state(8)
            random.seed(int.from_bytes(words.tobytes(), "little"))


def for_next_worker() -> Randomness:
    """Return what the next worker that this process starts is to begin with."""
    numpy: Any = np.random.get_state(legacy=False)
    python = random.getstate()
    return Randomness(
        numpy,
        mtrand.get_bit_generator(),
        _entropy("numpy", _plain(numpy)),
        python,
        _entropy("python", (python[0], np.array(python[1]).tobytes(), python[2])),
    )


def _entropy(name: str, state: Any) -> tuple[int, ...]:
    """Count a start from a state; return what to derive another from, if it was not the first."""
    key = hashlib.blake2b(repr((name, state)).encode(), digest_size=32).digest()
    number = _started.pop(key, 0)
    _started[key] = number + 1
    if len(_started) > _LIMIT:
        _started.popitem(last=False)
    words = (int.from_bytes(key[i : i + 4], "little") for i in range(0, len(key), 4))
    return (*words, number) if number else ()


def _plain(state: Any) -> Any:
    """Return a state such that ``repr`` shows all of it."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
