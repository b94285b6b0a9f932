"""Items of any keys, dtypes and layouts, and what it means that one arrived."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pescador._channel import schema

KEYS = st.one_of(
    st.text(max_size=3), st.integers(-2, 2), st.booleans(), st.none(), st.binary(max_size=2),
    st.floats(allow_nan=False), st.tuples(st.integers(0, 1), st.booleans()),
)  # fmt: skip
DTYPES = st.one_of(
    arrays.scalar_dtypes(),
    arrays.byte_string_dtypes(),
    arrays.unicode_string_dtypes(),
    arrays.array_dtypes(subtype_strategy=arrays.scalar_dtypes(), max_size=3),
    st.sampled_from(
        [
            np.dtype("U0"),
            np.dtype("V0"),
            np.dtype("V5"),
            np.dtype([("a", "i1"), ("b", ">f8", (2,))], align=True),
            np.dtype({"names": ["b"], "formats": ["f4"], "offsets": [8], "itemsize": 16}),
        ]
    ),
)


@st.composite
def layouts(draw):
    """How to build an array of any dtype, shape and layout, now and then one of some size."""
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if draw(st.integers(0, 3)) == 0:
        shape = (draw(st.integers(0, 3_000)), *shape[:1])
    steps = draw(st.lists(st.sampled_from([1, 1, 2, -1]), min_size=4, max_size=4))
    order, transposed = draw(st.sampled_from("CF")), draw(st.booleans())
    return draw(DTYPES), shape, order, transposed, steps


def build(dtype, shape, order, transposed, steps):
    array = schema.empty(shape, dtype, order)
    if array.nbytes:
        raw = array.reshape(-1, order="A").view(np.uint8)
        raw[:] = 0 if dtype.kind == "U" else np.arange(raw.size) % 127
    if transposed:
        array = array.T
    return array[(..., *(slice(None, None, step) for step in steps[: array.ndim]))]


ITEM = st.dictionaries(KEYS, layouts(), max_size=3)


def made(item):
    return {key: build(*how) for key, how in item.items()}


def content(array):
    """All bytes, with those between the fields of structures, which `tobytes` may leave out."""
    if array.dtype.kind == "V" and array.itemsize:
        array = array.view(np.dtype((np.void, array.itemsize)))
    return array.tobytes()


def same(ours, theirs):
    """Whether two items are equal to the byte, in order, with keys of the same types."""
    assert list(map(repr, ours)) == list(map(repr, theirs))
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == b.dtype
        assert a.dtype.isalignedstruct == b.dtype.isalignedstruct
        assert a.shape == b.shape
        assert content(a) == content(b)
        assert a.flags.aligned
        assert a.flags.writeable
        if b.flags.forc and not b.flags.c_contiguous:
            assert a.flags.f_contiguous
        else:
            assert a.flags.c_contiguous
