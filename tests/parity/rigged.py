"""RandomStates whose first draws are chosen by hand.

The Mersenne Twister hands out its 624 words in order, each scrambled by an invertible function,
and a double is made of two words. So a state can be written down that gives any 312 doubles.
"""

import numpy as np

GRID = 2.0**53


def _unshift_right(word, shift):
    result = word
    for _ in range(32 // shift + 1):
        result = word ^ (result >> shift)
    return result


def _unshift_left(word, shift, mask):
    result = word
    for _ in range(32 // shift + 1):
        result = word ^ ((result << shift) & mask)
    return result & 0xFFFFFFFF


def _untemper(word):
    """Invert the scrambling of one word (Matsumoto and Nishimura, 1998)."""
    word = _unshift_right(word, 18)
    word = _unshift_left(word, 15, 0xEFC60000)
    word = _unshift_left(word, 7, 0x9D2C5680)
    return _unshift_right(word, 11)


def rigged(steps):
    """Return a RandomState whose first doubles are ``steps / 2**53``, for up to 312 integers."""
    key = np.zeros(624, dtype=np.uint32)
    for i, step in enumerate(steps[:312]):
        step = int(step) % 2**53
        key[2 * i] = _untemper((step >> 26) << 5)
        key[2 * i + 1] = _untemper((step & (2**26 - 1)) << 6)
    state = np.random.RandomState(0)
    state.set_state(("MT19937", key, 0))
    return state


def around(values, rng, n=312):
    """Return n steps on, just below and just above the given values in [0, 1)."""
    picked = rng.choice(np.asarray(values, dtype=float), size=n)
    return np.clip(np.floor(picked * GRID) + rng.integers(-2, 3, n), 0, GRID - 1).astype(np.int64)
