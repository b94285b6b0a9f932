"""Sources that tests draw from; at module level, so that they can be pickled."""

import random
import sys

import numpy as np

import pescador


def count(n, start=0):
    """n integers."""
    yield from range(start, start + n)


def forever(value):
    """The same value for ever."""
    while True:
        yield value


def nothing():
    """No item at all."""
    yield from ()


def callers(*args, **kwargs):
    """The names of the files whose functions are running, from here outwards."""
    frame = sys._getframe()
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def write_into(array, n):
    """Show what is in an array, then write into it."""
    for i in range(n):
        yield array.tolist()
        array[:] = i + 1


def data(n, shape=(3,), dtype=np.float32):
    """n data objects {X, Y}."""
    for i in range(n):
        yield {"X": np.full(shape, i, dtype), "Y": np.array(i)}


def letters(text):
    """One endless streamer per letter."""
    return [pescador.Streamer(forever, letter) for letter in text]


class Failure(Exception):
    """Raised by sources that fail."""


def failing(n):
    """n integers, then an error."""
    yield from range(n)
    raise Failure(n)


def draws(n):
    """n data objects of numbers from the global random states."""
    for _ in range(n):
        yield {"numpy": np.random.rand(2), "python": np.array(random.random())}
