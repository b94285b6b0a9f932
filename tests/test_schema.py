"""What an item may be that goes to another process: it is read as it was written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pescador._channel.schema import decode, encode

PLAIN_KEYS = (
    st.text(max_size=3)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.binary(max_size=3)
)
KEYS = st.recursive(PLAIN_KEYS, lambda keys: st.lists(keys, max_size=3).map(tuple), max_leaves=4)
DTYPES = (
    hnp.scalar_dtypes()
    | hnp.array_dtypes(allow_subarrays=True, max_size=3)
    | st.just(np.dtype({"names": ["a"], "formats": ["<i2"], "offsets": [3], "itemsize": 9}))
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


def memory(array):
    """The bytes of an array in their order in memory."""
    return array.reshape(-1, order="A").view(np.uint8)


@st.composite
def values(draw):
    """Arrays of any bytes, between the fields of structures too."""
    array = np.empty(draw(SHAPES), draw(DTYPES), draw(st.sampled_from("CF")))
    if array.nbytes:
        memory(array)[:] = np.frombuffer(np.random.RandomState(0).bytes(array.nbytes), np.uint8)
    return array


def kinds(key):
    """A key with the type of each part: True, 1 and 1.0 are equal."""
    return tuple(map(kinds, key)) if isinstance(key, tuple) else (type(key), key)


@given(st.dictionaries(KEYS, values(), max_size=4))
def test_an_item_is_read_with_the_keys_dtypes_layouts_and_bytes_that_it_was_written_with(item):
    found = decode(encode(item))
    assert list(map(kinds, found)) == list(map(kinds, item))
    for ours, theirs in zip(found.values(), item.values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.dtype.isalignedstruct == theirs.dtype.isalignedstruct
        assert ours.shape == theirs.shape
        assert ours.flags.c_contiguous == theirs.flags.c_contiguous
        assert ours.flags.f_contiguous == theirs.flags.f_contiguous
        assert not ours.nbytes or (memory(ours) == memory(theirs)).all()
        assert ours.flags.writeable
