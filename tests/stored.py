"""What tests of files share: comparing to the byte, and files of another time."""

import os
import pathlib
import time

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pescador.sources import files

DTYPES = st.one_of(
    arrays.scalar_dtypes(),
    arrays.array_dtypes(arrays.scalar_dtypes(), min_size=1, max_size=3),
)
LAYOUTS = (
    lambda a: a,
    np.asfortranarray,
    lambda a: a.T,
    lambda a: a[::-1, ..., ::2] if a.ndim > 1 else a,
)


@st.composite
def values(draw):
    """Arrays of any kind, shape and layout."""
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = draw(arrays.arrays(draw(DTYPES), shape))
    return draw(st.sampled_from(LAYOUTS))(array)


def same(ours, theirs):
    ours = np.asarray(ours)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


def whole(array):
    """All values of what a store holds."""
    return array if isinstance(array, np.ndarray) else array.read_slice(0, array.shape[0])


def aged(path):
    """A file, or all of a folder, that was last changed a while ago."""
    then = time.time_ns() - 10 * files.TICK
    for each in [pathlib.Path(path), *pathlib.Path(path).rglob("*")]:
        os.utime(each, ns=(then, then))
    return str(path)


def check_parts(ours, theirs, data):
    """Parts of an array are those that NumPy gives."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if isinstance(ours, np.ndarray):
        same(ours, theirs)
        return
    n = theirs.shape[0]
    rows = data.draw(st.lists(st.integers(0, n - 1), unique=True)) if n else []
    rows = np.array(sorted(rows), np.int64)
    got = ours.read(rows)
    same(got, theirs[rows])
    assert got.flags.c_contiguous
    assert got.flags.writeable
    axis = data.draw(st.integers(0, theirs.ndim - 1))
    ends = sorted(data.draw(st.tuples(*[st.integers(0, theirs.shape[axis])] * 2)))
    got = ours.read_slice(*ends, axis)
    same(got, theirs[(slice(None),) * axis + (slice(*ends),)])
    assert got.flags.c_contiguous
    length = theirs.shape[axis]
    if length and hasattr(ours, "read_slices"):
        length = data.draw(st.integers(1, length))
        starts = data.draw(st.lists(st.integers(0, theirs.shape[axis] - length), unique=True))
        starts = np.array(sorted(starts), np.int64)
        parts = [theirs[(slice(None),) * axis + (slice(i, i + length),)] for i in starts]
        shape = (*theirs.shape[:axis], length, *theirs.shape[axis + 1 :])
        same(
            ours.read_slices(starts, length, axis),
            np.array(parts, theirs.dtype).reshape(len(starts), *shape),
        )
