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
    python : tuple or int
        The state of `random`, or the seed of another.
    """

    numpy: dict[str, Any]
    bit_generator: Any
    python: tuple[Any, ...] | int

    def install(self) -> None:
        """Set the global states of this process."""
        # Workers of this worker count by themselves, whatever was inherited.
        _started.clear()
        if type(mtrand.get_bit_generator()) is not type(self.bit_generator):
            mtrand.set_bit_generator(self.bit_generator)
        np.random.set_state(self.numpy)
        # A forked process has another state there: Python sees to that.
        if isinstance(self.python, int):
            random.seed(self.python)
        else:
            random.setstate(self.python)


def for_next_worker() -> Randomness:
    """Return what the next worker that this process starts is to begin with."""
    numpy: Any = np.random.get_state(legacy=False)
    python: Any = random.getstate()
    bit_generator = mtrand.get_bit_generator()
    # Derived here and not there: a new process is slow in whatever it does first.
    if key := _count("numpy", numpy):
        numpy = {**numpy, **_derived(type(bit_generator), key), "has_gauss": 0, "gauss": 0.0}
    version, words, gauss = python
    if key := _count("python", [version, np.array(words, np.uint32), gauss]):
        python = int.from_bytes(key, "little")
    return Randomness(numpy, bit_generator, python)


def _derived(kind: type, key: bytes) -> dict[str, Any]:
    """Return the state that a new bit generator has."""
    if kind is np.random.MT19937:
        # Any words will do that are as good as random; NumPy's way to them is slow.
        words = np.frombuffer(hashlib.shake_256(key).digest(4 * 624), "<u4")
        return {"state": {"key": words, "pos": 624}}
    state: dict[str, Any] = kind(np.random.SeedSequence(int.from_bytes(key, "little"))).state
    return state


def _count(name: str, state: Any) -> bytes:
    """Count a start from a state; return what to derive another from, if it was not the first."""
    digest = hashlib.blake2b(name.encode(), digest_size=32)
    _feed(digest, state)
    key = digest.digest()
    number = _started.pop(key, 0)
    _started[key] = number + 1
    if len(_started) > _LIMIT:
        _started.popitem(last=False)
    return key + number.to_bytes(8, "little") if number else b""


def _feed(digest: Any, state: Any) -> None:
    """Put all of a state into a digest."""
    if isinstance(state, dict):
        state = [part for item in state.items() for part in item]
    if isinstance(state, list):
        for part in state:
            _feed(digest, part)
    else:
        digest.update(state.tobytes() if isinstance(state, np.ndarray) else f"{state!r},".encode())
