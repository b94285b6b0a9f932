"""Shared memory between a worker and its consumer, here with both ends in one process."""

import contextlib
import gc
import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pescador import DataError, PescadorError, _transport
from pescador._channel import protocol, schema

pytestmark = pytest.mark.skipif(not _transport.AVAILABLE, reason="there is no shared memory here")

MEGA = 2**20
# Where the records begin: behind the words of both ends, and the ring of blocks given back.
RECORDS_AT = 2**16 + 4 * 2**14


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


class Pair:
    """Both ends of a memory. The reader runs when the writer has to wait, and at the end."""

    def __init__(self, max_bytes=MEGA, copy=False):
        memory = _transport.Memory(max_bytes)
        self.descriptor = os.dup(memory.fileno())
        memory.close()
        self.loans = _transport.Loans(memory)
        self.reader = _transport.Reader(
            self.loans,
            schema.schema_from,
            lambda: None,
            copy,
        )
        self.writer = _transport.Writer(
            _transport.Memory(max_bytes, os.dup(self.descriptor)),
            schema.schema_of,
            self.read,
            lambda: None,
            self.send_elsewhere,
        )
        self.n_elsewhere = 0
        self.received = []

    def send_elsewhere(self, item):
        # All that was sent before has been read.
        assert next(self.reader, None) is None
        self.received.append(protocol.item_from(protocol.write_item(item)))
        self.n_elsewhere += 1
        return True

    def read(self):
        """Read one item; the writer waits only if there is one."""
        self.received.append(next(self.reader))
        return True

    def send(self, items):
        self.writer.send_all(iter(items))

    def through(self, items):
        """What comes out."""
        self.send(items)
        self.received += self.reader
        return self.received

    def pages(self):
        """How many bytes of memory the system has given."""
        return os.fstat(self.descriptor).st_blocks * 512


@pytest.fixture
def pair():
    made = Pair()
    yield made
    os.close(made.descriptor)


# -------------------------------------------------------------------------------------- heap


@settings(max_examples=60, deadline=None)
@given(
    st.integers(64, 5_000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6_000), st.integers(0, 99)), max_size=200),
)
def test_blocks_never_overlap_and_free_neighbours_are_one_piece(size, steps):
    heap = _transport.Heap(size)
    taken = []
    for take, n, which in steps:
        if take:
            number = heap.take(n)
            if number < 0:
                wanted = max(64, -(-n // 64) * 64)
                assert all(s < wanted or used is not None for _, s, used in heap.pieces())
            else:
                taken.append(number)
        elif taken:
            heap.give(taken.pop(which % len(taken)))
        end = 0
        was_free = False
        for start, length, used in heap.pieces():
            assert start == end
            assert start % 64 == 0
            end = start + length
            assert not (was_free and used is None)
            was_free = used is None
        assert end == heap.size == size // 64 * 64
        assert sorted(u for *_, u in heap.pieces() if u is not None) == sorted(taken)
        assert heap.used == sum(length for _, length, u in heap.pieces() if u is not None)
        assert heap.blocks == len(taken)
    for number in taken:
        heap.give(number)
    assert heap.pieces() == [(0, heap.size, None)]


# ------------------------------------------------------------------------------------- items

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


ITEMS = st.lists(st.dictionaries(KEYS, layouts(), max_size=3), max_size=8)


@settings(max_examples=150, deadline=None)
@given(ITEMS, st.sampled_from([1, 2_000, 20_000, MEGA]), st.booleans())
def test_items_come_out_as_they_went_in(items, max_bytes, copy):
    items = [{key: build(*how) for key, how in item.items()} for item in items]
    pair = Pair(max_bytes, copy)
    with contextlib.closing(os.fdopen(pair.descriptor)):
        received = pair.through(items)
        assert len(received) == len(items) == pair.writer.sent
        assert pair.reader.received == len(items) - pair.n_elsewhere
        for ours, theirs in zip(received, items, strict=True):
            same(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), max_size=60),
    st.sampled_from([1, 10_000, 100_000]),
)
def test_a_consumer_may_keep_what_it_likes_and_memory_stays_bounded(plan, max_bytes):
    pair = Pair(max_bytes)
    sizes = []

    def source():
        for i, (n, _) in enumerate(plan):
            on_their_way = sizes[len(received) :]
            # What is lent counts as well, as long as it is less than half.
            assert sum(on_their_way) <= max_bytes or len(on_their_way) <= 1
            assert pair.loans.held <= max_bytes / 2 + 64
            sizes.append(n)
            yield {"i": np.array(i), "x": np.full(n, i, np.uint8)}

    received = pair.received
    with contextlib.closing(os.fdopen(pair.descriptor)):

        def read():
            item = next(pair.reader)
            i = len(received)
            # Of some, only what is no view of the memory.
            received.append(item if plan[i][1] else {"i": item["i"], "x": item["x"].copy()})
            return True

        writer = _transport.Writer(
            _transport.Memory(max_bytes, os.dup(pair.descriptor)),
            schema.schema_of, read, lambda: None, pair.send_elsewhere,
        )  # fmt: skip
        writer.send_all(source())
        while len(received) < len(plan):
            read()
        for i, ((n, _), item) in enumerate(zip(plan, received, strict=True)):
            assert item["i"] == i
            assert item["x"].tolist() == [i] * n


def test_the_same_schema_under_other_keys_and_dtypes_is_not_mixed_up(pair):
    x = np.zeros(2, np.int64)
    items = [
        {1: x}, {True: x}, {1.0: x}, {(1,): x}, {(True,): x}, {"1": x}, {0.0: x}, {-0.0: x},
        {1: x.view("M8[s]")}, {1: x.view("M8[ms]")}, {1: x.view("m8[s]")}, {1: x.view(">i8")},
        {"a": x, "b": x}, {"b": x, "a": x}, {},
    ] * 3  # fmt: skip
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)


def test_more_schemas_than_anybody_remembers(pair):
    items = [{f"key {i % 2500}": np.array(i)} for i in range(6_000)]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)


def test_ten_thousand_keys_and_an_item_that_is_too_large_go_another_way(pair):
    items = [
        {"before": np.arange(5)},
        {f"a rather long key, {i}": np.array(i) for i in range(10_000)},
        {"large": np.ones(2 * MEGA, np.uint8)},
        {"after": np.arange(5)},
    ]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)
    assert pair.n_elsewhere == 2


def test_what_is_no_item_is_refused_after_the_items_before_it(pair):
    with pytest.raises(DataError, match="key 'y'"):
        pair.send([{"x": np.zeros(3)}, {"x": np.zeros(3), "y": 3}])
    assert pair.writer.sent == 1
    same(next(pair.reader), {"x": np.zeros(3)})


def test_subclasses_of_arrays_and_of_dictionaries_arrive_as_plain_ones(pair, tmp_path):
    class Item(dict):
        pass

    memmap = np.memmap(tmp_path / "file", np.float32, "w+", shape=(4, 4))
    items = [Item(x=memmap), {"x": memmap[::2]}, {"x": np.zeros(2, "i4,f4").view(np.recarray)}]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        assert type(ours) is dict
        same(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_memory_is_an_error_and_no_crash(data):
    pair = Pair()
    items = [{"x": np.arange(5), "large": np.ones((80, 80))}, {"y": np.zeros((2, 3), "S3")}] * 2
    with contextlib.closing(os.fdopen(pair.descriptor)):
        pair.send(items)
        # The words of the two ends, then the records: schemas, shapes, places.
        places = st.one_of(st.sampled_from([0]), st.integers(RECORDS_AT, RECORDS_AT + 900))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(places) // 8 * 8
            word = data.draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300)))
            os.pwrite(pair.descriptor, word.to_bytes(8, "little"), at)
        with contextlib.suppress(PescadorError, ValueError, MemoryError):
            for item in pair.reader:
                for array in item.values():
                    array.tobytes()


# ------------------------------------------------------------------------------------- loans


def test_a_block_comes_back_when_the_last_view_of_it_dies(pair):
    [item] = pair.through([{"x": np.arange(10_000.0)}])
    pair.received.clear()
    part = item.pop("x")[5:].reshape(-1, 5).T
    assert pair.loans.blocks == 1
    assert pair.loans.held >= 80_000
    assert part[0, 0] == 5
    del part
    assert pair.loans.blocks == pair.loans.held == 0


def test_arrays_can_be_pickled_written_and_outlive_everything_else(pair):
    items = [{"x": np.full(5_000, i)} for i in range(10)]
    arrays = [item["x"] for item in pair.through(items)]
    pair.received.clear()
    pair.loans.close()
    del pair.reader, pair.writer, pair.loans
    gc.collect()
    for i, array in enumerate(arrays):
        array += 1
        assert not array.flags.owndata
        assert (pickle.loads(pickle.dumps(array)) == i + 1).all()


def test_with_copy_arrays_own_their_memory():
    pair = Pair(copy=True)
    [item] = pair.through([{"x": np.zeros(10_000)}])
    assert item["x"].flags.owndata
    assert pair.loans.blocks == 0
    os.close(pair.descriptor)


def test_a_closed_memory_keeps_pages_for_living_arrays_only():
    pair = Pair(64 * MEGA)
    received = pair.through([{"x": np.full(MEGA, i, np.uint8)} for i in range(20)])
    assert pair.pages() > 20 * MEGA
    kept = [received[3]["x"], received[4]["x"], received[11]["x"]]
    pair.received = received = None
    pair.loans.close()
    assert pair.pages() <= 3 * (MEGA + 4096)
    del kept[1]
    assert pair.pages() <= 2 * (MEGA + 4096)
    assert (kept[0] == 3).all()
    assert (kept[1] == 11).all()
    os.close(pair.descriptor)


def test_nobody_writes_into_an_array_that_a_forked_process_still_reads(pair):
    [item] = pair.through([{"x": np.full(100_000, 1)}])
    pair.received.clear()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            os.read(go[0], 1)
            verdict = int(not (item["x"] == 1).all())
        os._exit(verdict)
    del item
    # As many as would fill the memory, were the block given back.
    pair.through([{"x": np.full(100_000, 2)} for _ in range(5)])
    pair.received.clear()
    pair.loans.close()
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for end in (*ready, *go):
        os.close(end)


def test_nothing_grows(pair):
    items = [{"small": np.arange(5), "large": np.zeros(3_000), "F": np.ones((80, 80))[::2].T}]

    def rounds(n):
        for i in range(n):
            pair.through([*items, {f"key {i % 3}": np.zeros(i % 7, f"S{i % 2 + 1}")}])
            pair.received.clear()
            with pytest.raises(DataError):
                pair.send([*items, {"x": None}])
            next(pair.reader)
        gc.collect()
        return sys.getallocatedblocks()

    rounds(50)
    assert min(-rounds(0) + rounds(200) for _ in range(3)) < 50
    assert pair.loans.blocks == pair.loans.held == 0


def test_memory_that_is_not_to_be_had_is_an_error():
    with pytest.raises(OSError, match="memory"):
        _transport.Memory(2**60)
