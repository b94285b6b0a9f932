"""What an item may be that goes to another process, and how it is written down."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from items import DTYPES, ITEM, KEYS, made, same
from pescador import DataError
from pescador._channel import protocol, schema

NESTED = st.recursive(KEYS, lambda keys: st.lists(keys, max_size=3).map(tuple), max_leaves=6)


@given(st.dictionaries(NESTED, DTYPES, max_size=4))
def test_a_schema_comes_back_as_it_was_written(dtypes):
    code, keys, *_ = schema.schema_of({key: schema.empty((), d, "C") for key, d in dtypes.items()})
    # Text that nothing but the two ends has to understand, but anybody can read.
    json.loads(code)
    read_keys, read_dtypes, _ = schema.schema_from(code)
    assert list(map(repr, read_keys)) == list(map(repr, keys)) == list(map(repr, dtypes))
    assert read_dtypes == list(dtypes.values())
    for ours, theirs in zip(read_dtypes, dtypes.values(), strict=True):
        assert (ours.itemsize, ours.isalignedstruct) == (theirs.itemsize, theirs.isalignedstruct)


@given(ITEM)
def test_a_written_item_is_read_as_it_was(item):
    item = made(item)
    same(protocol.item_from(protocol.write_item(item)), item)


@pytest.mark.parametrize("inside", [lambda x: {"a": x}, lambda x: [x], lambda x: (x, x)])
def test_an_item_is_flat(inside):
    with pytest.raises(DataError, match=r"key 'x' holds a (dict|list|tuple)"):
        schema.encode({"x": inside(np.zeros(3))})


def test_a_key_inside_a_tuple_is_refused_by_its_own_name():
    with pytest.raises(DataError, match="frozenset"):
        schema.schema_of({("a", (1, frozenset())): np.zeros(3)})


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy has none")
def test_a_dtype_that_is_not_written_in_its_name_is_refused():
    with pytest.raises(DataError, match=r"StringDType|objects"):
        schema.schema_of({"x": np.array(["a"], np.dtypes.StringDType())})


def test_dtypes_of_ml_dtypes_are_known_by_their_names():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    inner = np.zeros(2, [("a", array.dtype), ("b", ml_dtypes.float8_e5m2, 2)])
    item = protocol.item_from(protocol.write_item({"x": array, "inner": inner}))
    assert item["x"].dtype == array.dtype
    assert item["x"].tolist() == array.tolist()
    assert item["inner"].dtype == inner.dtype


def test_a_dtype_of_any_other_package_is_refused():
    # NumPy has one for its tests, made as those of ml_dtypes are.
    rational = pytest.importorskip("numpy._core._rational_tests").rational
    with pytest.raises(DataError, match="rational is not NumPy's own, nor of ml_dtypes"):
        schema.schema_of({"x": np.array([rational(1, 3)])})
