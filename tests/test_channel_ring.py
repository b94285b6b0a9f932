"""The ring of records between a worker and its consumer, here with both ends in one process."""

import contextlib
import gc
import os
import sys

import numpy as np
import numpy.ma
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel import MEGA, Pair
from effort import examples
from items import ITEM, made, same
from pescador import DataError, PescadorError

# Where the records begin: behind the words of both ends, and the ring of blocks given back.
RECORDS_AT = 2**16 + 4 * 2**14


@examples(100)
@given(st.lists(ITEM, max_size=8), st.sampled_from([1, 2_000, 20_000, MEGA]), st.booleans())
def test_items_come_out_as_they_went_in(items, max_bytes, copy):
    items = [made(item) for item in items]
    with contextlib.closing(Pair(max_bytes, copy)) as pair:
        received = pair.through(items)
        assert len(received) == len(items)
        for ours, theirs in zip(received, items, strict=True):
            same(ours, theirs)


@examples(60)
@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), max_size=60),
    st.sampled_from([1, 10_000, 100_000]),
)
def test_a_consumer_may_keep_what_it_likes_and_memory_stays_bounded(plan, max_bytes):
    with contextlib.closing(Pair(max_bytes)) as pair:
        sizes = []

        def source():
            for i, (n, _) in enumerate(plan):
                on_their_way = sizes[len(pair.received) :]
                # What is held counts as well, as long as it is less than half.
                assert sum(on_their_way) <= max_bytes or len(on_their_way) <= 1
                assert pair.memory.held <= max_bytes / 2 + 64
                sizes.append(n)
                yield {"i": np.array(i), "x": np.full(n, i, np.uint8)}

        def receive():
            item = next(pair.reader)
            # Of some, only what is no view of the memory.
            kept = plan[len(pair.received)][1]
            pair.received.append(item if kept else {"i": item["i"], "x": item["x"].copy()})

        pair.receive = receive
        pair.send(source())
        while len(pair.received) < len(plan):
            receive()
        for i, ((n, _), item) in enumerate(zip(plan, pair.received, strict=True)):
            assert item["i"] == i
            assert item["x"].tolist() == [i] * n


def test_a_writer_says_why_it_stops(pair):
    numbers = iter([{"x": np.zeros(2000)}] * 200 + [{"x": np.zeros(2 * MEGA)}])
    assert pair.writer.fill(numbers) == "full"
    # Nothing was read since.
    assert pair.writer.fill(numbers) == "full"
    n = 0
    while (why := pair.writer.fill(numbers)) == "full":
        n += sum(1 for _ in pair.reader)
    n += sum(1 for _ in pair.reader)
    assert pair.writer.fill(numbers) == why == "too large"
    assert pair.writer.take_pending()["x"].shape == (2 * MEGA,)
    assert n == 200
    assert pair.writer.fill(numbers) == "ended"
    pair.reader.stop()
    assert pair.writer.fill(iter([{"x": np.zeros(3)}])) == "ended"
    assert pair.reader.is_empty()


def test_nothing_is_read_before_an_item_on_the_pipe_that_it_was_written_after(pair):
    numbers = iter([{"x": np.zeros(1)}, {"x": np.zeros(2 * MEGA)}, {"x": np.ones(1)}])
    assert pair.writer.fill(numbers) == "full"
    assert next(pair.reader)["x"] == [0]
    assert pair.writer.fill(numbers) == "too large"
    pair.writer.take_pending()
    assert pair.writer.fill(numbers) == "ended"
    assert pair.reader.is_empty()
    assert next(pair.reader, None) is None
    pair.reader.by_pipe += 1
    assert not pair.reader.is_empty()
    assert next(pair.reader)["x"] == [1]


def test_the_same_schema_under_other_keys_and_dtypes_is_not_mixed_up(pair):
    x = np.zeros(2, np.int64)
    items = [
        {1: x}, {True: x}, {1.0: x}, {(1,): x}, {(True,): x}, {"1": x}, {0.0: x}, {-0.0: x},
        {1: x.view("M8[s]")}, {1: x.view("M8[ms]")}, {1: x.view("m8[s]")}, {1: x.view(">i8")},
        {"a": x, "b": x}, {"b": x, "a": x}, {},
    ] * 3  # fmt: skip
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)


def test_more_schemas_than_are_remembered(pair):
    items = [{f"key {i % 2500}": np.array(i)} for i in range(6_000)]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)


def test_ten_thousand_keys_and_an_item_that_is_too_large_go_over_the_pipe(pair):
    items = [
        {"before": np.arange(5)},
        {f"a rather long key, {i}": np.array(i) for i in range(10_000)},
        {"large": np.ones(2 * MEGA, np.uint8)},
        {"after": np.arange(5)},
    ]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        same(ours, theirs)
    assert pair.by_pipe == 2


def test_what_is_no_item_is_refused_after_the_items_before_it(pair):
    with pytest.raises(DataError, match="key 'y'"):
        pair.send([{"x": np.zeros(3)}, {"x": np.zeros(3), "y": 3}])
    same(next(pair.reader), {"x": np.zeros(3)})


def test_subclasses_of_arrays_and_of_dictionaries_arrive_as_plain_ones(pair, tmp_path):
    class Item(dict):
        pass

    memmap = np.memmap(tmp_path / "file", np.float32, "w+", shape=(4, 4))
    items = [Item(x=memmap), {"x": memmap[::2]}, {"x": np.zeros(2, "i4,f4").view(np.recarray)}]
    for ours, theirs in zip(pair.through(items), items, strict=True):
        assert type(ours) is dict
        same(ours, theirs)


class Changing(np.ndarray):
    """An array that changes its item while it is looked at, as threads of the source may.

    Whether it is a masked one is asked where `numpy.ma` is loaded.
    """

    change = staticmethod(lambda: None)

    @property
    def __class__(self):
        self.change()
        return np.ndarray

    @property
    def dtype(self):
        self.change()
        return super().dtype


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.clear(),
        lambda item: item.update(a="text"),
        lambda item: item.update(b="text"),
        lambda item: item.update({str(i): np.zeros(3) for i in range(100)}),
        lambda item: (item.pop("a"), item.update(a=np.zeros(2**14))),
    ],
)
def test_an_item_that_changes_while_it_is_sent_arrives_as_one_that_it_was(pair, change, is_known):
    def items():
        if is_known:
            yield {"a": np.ones(3), "b": np.ones(2**10), "c": np.ones(4)}
        item = {"a": np.ones(3), "b": np.ones(2**10).view(Changing), "c": np.ones(4)}
        # Nobody else holds what is in it.
        item["b"].change = lambda: change(item)
        yield item

    *_, received = pair.through(items())
    assert set(map(type, received.values())) <= {np.ndarray}
    if "b" in received:
        assert received["b"].tolist() == [1.0] * 2**10


@examples(150)
@given(st.data())
def test_damaged_memory_is_an_error_and_no_crash(data):
    items = [{"x": np.arange(5), "large": np.ones((80, 80))}, {"y": np.zeros((2, 3), "S3")}] * 2
    with contextlib.closing(Pair()) as pair:
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
    assert pair.memory.n_leases == pair.memory.held == 0
