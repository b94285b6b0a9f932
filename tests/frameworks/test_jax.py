"""Batches on the devices of JAX, of which there are eight on the CPU."""

import collections
import gc
import itertools
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

jax = pytest.importorskip("jax", reason="jax is not installed")

from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import pescador  # noqa: E402
import pescador.jax  # noqa: E402
from pescador.jax import prefetch  # noqa: E402

Pair = collections.namedtuple("Pair", ["x", "y"])

# Where alignment lets JAX use the memory of NumPy.
LARGE = (1 << 18, 2)


def aligned(shape, dtype=np.float32, by=64):
    """An array at an address that JAX can use as it is."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + by, np.uint8)
    start = -memory.ctypes.data % by
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def rewriting(n, shape=LARGE):
    """Batches that are all written to one array."""
    array = aligned(shape)
    for i in range(n):
        array[...] = i
        yield {"x": array}


def eight():
    devices = jax.devices()
    assert len(devices) == 8
    return devices


def over_two_axes():
    mesh = Mesh(np.array(eight()).reshape(4, 2), ("rows", "columns"))
    return NamedSharding(mesh, PartitionSpec("rows", "columns"))


def test_importing_the_package_imports_neither_jax_nor_keras():
    script = "import pescador, sys; assert not {'jax', 'keras'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_jax_would_use_the_memory_of_an_array():
    # Else the tests below could not fail.
    array = aligned(LARGE)
    for where in (None, NamedSharding(Mesh(np.array(eight()), ("x",)), PartitionSpec("x"))):
        array[...] = 1
        put = jax.block_until_ready(jax.device_put(array, where))
        array[...] = 2
        assert float(put.max()) == 2


@pytest.mark.parametrize("where", ["default", "one", "eight", "two axes"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_keep_their_values_where_their_memory_is_written_again(where, size):
    options = {
        "default": {},
        "one": {"devices": [eight()[3]]},
        "eight": {"devices": eight()},
        "two axes": {"sharding": over_two_axes()},
    }[where]
    batches = list(prefetch(rewriting(4), size, **options))
    assert [(float(b["x"].min()), float(b["x"].max())) for b in batches] == [
        (i, i) for i in range(4)
    ]


@pytest.mark.parametrize("reuse", [True, False])
def test_batches_of_buffer_stream_keep_their_values(reuse):
    items = [{"x": np.full(LARGE[0] // 4, i, np.float32)} for i in range(32)]
    batches = pescador.Streamer(pescador.buffer_stream, items, 8, reuse=reuse)
    expected = [np.array(batch["x"]) for batch in batches]
    got = list(prefetch(batches, devices=eight()))
    assert len(got) == len(expected) == 4
    for batch, array in zip(got, expected, strict=True):
        assert np.array_equal(batch["x"], array)


def noise():
    while True:
        yield {"x": np.random.standard_normal(1 << 14).astype(np.float32)}


@pytest.mark.parametrize("kind", ["ZMQStreamer", "ParallelStreamer"])
def test_views_of_shared_memory_keep_their_values(kind):
    run = pescador.Seeded(
        pescador.Streamer(
            pescador.buffer_stream, pescador.ShuffledMux([pescador.Streamer(noise)] * 3), 16
        ),
        0,
    )
    # JAX has threads, which a fork would not have.
    options = {"start_method": "spawn"}
    if kind == "ZMQStreamer":
        stream = pescador.ZMQStreamer(run, **options)
    else:
        stream = pescador.ParallelStreamer(run, workers=2, **options)
    expected = [np.array(batch["x"]) for batch in run.iterate(12)]
    got = [batch["x"] for batch in prefetch(stream.iterate(12), 3, devices=eight())]
    assert len(got) == 12
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_each_device_has_an_equal_part_of_the_first_axis_in_order():
    (batch,) = prefetch([{"x": np.arange(48).reshape(16, 3)}], devices=eight()[::-1])
    shards = {shard.device: np.asarray(shard.data) for shard in batch["x"].addressable_shards}
    for i, device in enumerate(eight()[::-1]):
        assert np.array_equal(shards[device], np.arange(6 * i, 6 * i + 6).reshape(2, 3))


def test_a_compiled_step_runs_on_all_devices():
    weights = jax.numpy.ones(3)
    step = jax.jit(lambda weights, batch: batch["x"] @ weights)
    for batch in prefetch([{"x": np.ones((16, 3))}], devices=eight()):
        result = step(weights, batch)
    assert result.sharding.device_set == set(eight())
    assert result.tolist() == [3] * 16


def test_nested_batches_stay_what_they_are_and_so_does_what_jax_has_no_type_for():
    masked, names = np.ma.masked_array([1, 2], [True, False]), np.array(["a", "b"])
    long = np.ones(8, np.longdouble)
    item = {
        "deep": [(np.zeros(8), None), Pair(np.int16(3), 4)],
        "rest": (masked, names, "text", long, np.ones(8, np.clongdouble)),
    }
    (batch,) = prefetch([item], devices=eight())
    (zeros, none), pair = batch["deep"]
    assert isinstance(zeros, jax.Array)
    assert none is None
    assert type(pair) is Pair
    assert (pair.x.dtype, int(pair.x), pair.y) == (np.int16, 3, 4)
    assert pair.x.sharding.is_fully_replicated
    assert batch["rest"][0] is masked
    assert batch["rest"][1] is names
    assert batch["rest"][2] == "text"
    assert batch["rest"][3] is long
    assert type(batch["rest"][4]) is np.ndarray


@given(
    npst.arrays(
        st.one_of(
            npst.boolean_dtypes(),
            npst.integer_dtypes(endianness="?", sizes=(8, 16, 32)),
            npst.unsigned_integer_dtypes(endianness="?", sizes=(8, 16, 32)),
            npst.floating_dtypes(sizes=(16, 32), endianness="?"),
            npst.complex_number_dtypes(sizes=64, endianness="?"),
        ),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_values_are_the_same_on_the_device(array, is_flipped):
    array = np.asarray(np.flip(array)) if is_flipped else array
    (put,) = prefetch([array])
    assert put.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(put, array, equal_nan=array.dtype.kind in "fc")


def test_64_bits_become_32_as_jax_has_it():
    (batch,) = prefetch([(np.arange(3), np.arange(3.0), jax.numpy.ones(3))])
    assert [array.dtype.name for array in batch] == ["int32", "float32", "float32"]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_types_of_ml_dtypes_are_those_of_jax(name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    array = np.arange(8).reshape(8, 1)[:6].astype(getattr(ml_dtypes, name))
    (put,) = prefetch([array])
    assert put.dtype == array.dtype
    assert np.array_equal(np.asarray(put), array)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_size_is_how_many_batches_are_made_when_one_is_given(size):
    made = []

    def batches():
        for i in range(8):
            made.append(i)
            yield np.full(2, i)

    for i, batch in enumerate(prefetch(batches(), size)):
        assert batch.tolist() == [i, i]
        assert len(made) == min(i + size, 8)
    assert i == 7


def test_a_batch_that_was_given_is_not_kept():
    batches = prefetch([np.zeros(8), np.ones(8)])
    given = weakref.ref(next(batches))
    gc.collect()
    assert given() is None


def test_the_stream_is_closed_with_the_generator_and_at_its_end():
    closed = []

    def samples():
        try:
            yield from (np.zeros(2) for _ in range(6))
        finally:
            closed.append(True)

    streamer = pescador.Streamer(samples)
    batches = prefetch(streamer)
    next(batches)
    assert streamer.active == 1
    batches.close()
    assert (streamer.active, closed) == (0, [True])
    assert len(list(prefetch(streamer))) == 6
    assert (streamer.active, closed) == (0, [True, True])


def test_nothing_is_read_past_a_slice_of_a_stream_so_that_it_can_be_saved():
    streamer = pescador.Streamer(np.arange(20).reshape(10, 2))
    stream = streamer.open()
    list(prefetch(itertools.islice(stream, 4), 3))
    state = stream.state_dict()
    rest = [batch.tolist() for batch in prefetch(streamer.open(state=state))]
    assert rest == np.arange(8, 20).reshape(6, 2).tolist()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_error_comes_after_the_batches_before_it(size):
    def broken():
        yield from ([np.full(1, i) for i in range(3)])
        raise OSError("no such disk")

    streamer = pescador.Streamer(broken)
    batches = prefetch(streamer, size)
    assert [int(next(batches)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no such disk"):
        next(batches)
    assert streamer.active == 0


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (lambda: {"devices": eight()}, (15, 2)),
        (lambda: {"sharding": over_two_axes()}, (15, 2)),
        (lambda: {"sharding": over_two_axes()}, (16,)),
    ],
    ids=["devices", "sharding", "too few axes"],
)
def test_a_batch_that_devices_cannot_share_is_named(options, shape):
    batches = [{"a": [np.zeros((16, 2)), np.zeros(last)]} for last in ((16, 2), shape)]
    items = prefetch(batches, **options())
    next(items)
    with pytest.raises(pescador.DataError) as caught:
        next(items)
    expected = f"batch['a'][1] has the shape {shape}, which 8 devices cannot share"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 1.5}, "size=1.5"),
        ({"devices": []}, "devices="),
        ({"devices": 8}, "devices=8"),
        ({"devices": ["cpu"]}, "devices="),
        ({"devices": [jax.devices()[0]] * 2}, "must be different ones"),
        ({"sharding": "batch"}, "sharding='batch'"),
        ({"devices": [], "sharding": []}, "both"),
    ],
)
def test_an_invalid_argument_is_named_at_once(options, name):
    with pytest.raises(pescador.ArgumentError, match=name):
        prefetch([], **options)
    with pytest.raises(pescador.ArgumentError, match="stream="):
        next(prefetch(3))
