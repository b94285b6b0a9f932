"""Batches use no more memory at any time than those of the reference release."""

import tracemalloc

import numpy as np
import pytest
from peers import load

import pescador

peer = load("3.0.0")

SIZE, N = 16, 100


def arrays(i):
    return np.full((40, 250), i, np.float32)


def rows(i):
    return np.full((1 + i % 7, 4_000), i, np.float32)


VALUES = {
    "arrays": (arrays, None),
    "large arrays": (lambda i: np.full((400, 250), i, np.float64), None),
    "Fortran order": (lambda i: np.asfortranarray(arrays(i)), None),
    "byte-swapped": (lambda i: arrays(i).astype(">f4"), None),
    "two dtypes": (lambda i: arrays(i).astype("f8" if i % 16 == 9 else "f4"), None),
    "a dtype of the last": (lambda i: arrays(i).astype("f8" if i % 16 == 15 else "f4"), None),
    "objects": (lambda i: np.full(10_000, None), None),
    "text": (lambda i: "word" * 1_000 + str(i), None),
    "lists": (lambda i: [float(i + j) for j in range(1_000)], None),
    "small batches": (arrays, 0),
    "small batches that differ": (rows, 0),
    "small batches of one dimension": (lambda i: np.zeros(1_000 + 100 * (i % 9)), -1),
    "along another axis": (arrays, 1),
    "along another axis and different": (lambda i: rows(i).T, 1),
}


def peak(buffer_stream, make, axis, partial, size, **options):
    items = ({"x": make(i), "y": i} if axis is None else {"x": make(i)} for i in range(N))
    tracemalloc.start()
    try:
        for _ in buffer_stream(items, size, partial, axis, **options):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("size", [SIZE, 10 * N])
@pytest.mark.parametrize("kind", VALUES)
def test_the_peak_is_not_above_that_of_the_reference(kind, size, reuse):
    make, axis = VALUES[kind]
    theirs = peak(peer.maps.buffer_stream, make, axis, True, size)
    ours = peak(pescador.buffer_stream, make, axis, True, size, reuse=reuse)
    # What an iteration itself takes: the plan of a key, a generator.
    assert ours <= theirs + 20_000
