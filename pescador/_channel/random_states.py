"""The global random states that a worker starts from.

The first worker that is started from a given state of this process inherits that state, as if the
stream ran here. Each further one gets a state derived from it and from a running number, so that
workers differ from each other and from epoch to epoch, in the same way in each run of a script.
``np.random``, `random` and torch, if it is loaded, count for themselves.
"""

import copy
import hashlib
import random
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import mtrand

from .._global_rng import put_numpy

# How many workers were started from each state, by digest; the states seen last, at most these.
_LIMIT = 4096
_started: OrderedDict[bytes, int] = OrderedDict()


@dataclass
class RandomStates:
    """What the global random generators of a worker are to start from.

    Attributes
    ----------
    bits : BitGenerator
        For ``np.random``: its own copy, with a lock of its own. A thread may have held the lock of
        the one that was there when the worker was forked, and has not come along.
    gauss : float or None
        The normal deviate that ``np.random`` has left over.
    python : tuple or int
        The state of `random`, or the seed of another.
    torch : int or None
        The seed of torch, if it is not to start from where it is.
    """

    bits: Any
    gauss: float | None
    python: tuple[Any, ...] | int
    torch: int | None

    def install(self) -> None:
        """Set the global states of this process."""
        # Workers of this worker count by themselves, whatever was inherited.
        _started.clear()
        put_numpy(self.bits, self.gauss)
        # A forked process has another state there: Python sees to that.
        if isinstance(self.python, int):
            random.seed(self.python)
        else:
            random.setstate(self.python)
        if self.torch is not None and "torch" in sys.modules:
            sys.modules["torch"].manual_seed(self.torch)


def for_next_worker() -> RandomStates:
    """Return what the next worker that this process starts is to begin with."""
    bits, gauss = _for_numpy()
    python: Any = random.getstate()
    version, words, leftover = python
    if key := _count("python", [version, np.array(words, np.uint32), leftover]):
        python = int.from_bytes(key, "little")
    torch = sys.modules.get("torch")
    state = None if torch is None else torch.get_rng_state().numpy()
    seed = None
    if key := _count("torch", state):
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return RandomStates(bits, gauss, python, seed)


def _for_numpy() -> tuple[Any, float | None]:
    """Return the bit generator of the next worker's ``np.random``, and what is left over there."""
    bits = mtrand.get_bit_generator()
    state: Any = np.random.get_state(legacy=False)
    # Derived here and not there: a new process is slow in whatever it does first.
    key = _count("numpy", state)
    if not key:
        with suppress(Exception):
            return copy.deepcopy(bits), state["gauss"] if state["has_gauss"] else None
        # One that cannot be copied.
        key = repr(state).encode()
    if type(bits) is np.random.MT19937:
        # Any words will do that are as good as random; NumPy's way to them is slow.
        words = np.frombuffer(hashlib.shake_256(key).digest(4 * 624), "<u4")
        derived: Any = np.random.MT19937(0)
        derived.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
        return derived, None
    seeds = np.random.SeedSequence(int.from_bytes(key, "little"))
    with suppress(Exception):
        return type(bits)(seeds), None
    return np.random.PCG64(seeds), None


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
