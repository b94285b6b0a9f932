"""Memory that a worker and its consumer share: blocks, leases, forks."""

import contextlib
import gc
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import run

from channel import MEGA, Pair, memory
from effort import examples


@examples(60)
@given(
    st.integers(64, 5_000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6_000), st.integers(0, 99)), max_size=200),
)
def test_blocks_never_overlap_and_room_is_found_where_there_is_any(size, steps):
    heap = memory.Heap(size)
    taken = {}
    for take, n, which in steps:
        edges = [
            0,
            *(edge for start, length in sorted(taken.values()) for edge in (start, start + length)),
            heap.size,
        ]
        gaps = [stop - start for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        wanted = max(64, -(-n // 64) * 64)
        if take:
            number = heap.allocate(n)
            assert (number >= 0) == (max(gaps) >= wanted)
            if number >= 0:
                assert number not in taken
                taken[number] = start, length = heap.place(number)
                assert length == wanted
                assert start % 64 == 0
                ends = [(a, a + b) for a, b in sorted(taken.values())]
                assert all(stop <= begin for (_, stop), (begin, _) in pairwise(ends))
                assert ends[-1][1] <= heap.size
        elif taken:
            number = list(taken)[which % len(taken)]
            del taken[number]
            assert heap.free(number) == 0
            assert heap.free(number) == -1
        assert heap.used == sum(length for _, length in taken.values())
    assert heap.free(len(steps)) == -1
    for number in taken:
        heap.free(number)
    assert heap.place(heap.allocate(heap.size)) == (0, heap.size)


def test_a_heap_in_a_worker_that_was_forked_takes_pages_when_they_are_used():
    done = run(
        """
        import resource
        from pescador._channel.memory import Heap

        # What the system's allocator keeps, and gives out again: it is not zeros any more.
        for _ in range(2):
            bytearray(b"x") * 2**23
        if os.fork() == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            Heap(2**28)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
            os._exit(0)
        os.wait()
        """
    )
    # It has 150 of them.
    assert int(done.stdout) < 50, done.stderr


def test_a_block_comes_back_when_the_last_view_of_it_dies(pair):
    [item] = pair.through([{"x": np.arange(10_000.0)}])
    pair.received.clear()
    part = item.pop("x")[5:].reshape(-1, 5).T
    assert pair.memory.n_leases == 1
    assert pair.memory.held >= 80_000
    assert part[0, 0] == 5
    del part
    assert pair.memory.n_leases == pair.memory.held == 0


def test_arrays_can_be_pickled_written_and_outlive_everything_else(pair):
    items = [{"x": np.full(5_000, i)} for i in range(10)]
    arrays = [item["x"] for item in pair.through(items)]
    pair.received.clear()
    pair.memory.close()
    del pair.reader, pair.writer, pair.memory
    gc.collect()
    for i, array in enumerate(arrays):
        array += 1
        assert not array.flags.owndata
        assert (pickle.loads(pickle.dumps(array)) == i + 1).all()


def test_with_copy_arrays_own_their_memory():
    pair = Pair(copy=True)
    [item] = pair.through([{"x": np.zeros(10_000)}])
    assert item["x"].flags.owndata
    assert pair.memory.n_leases == 0
    pair.close()


def test_a_closed_memory_keeps_pages_for_living_arrays_only():
    pair = Pair(64 * MEGA)
    received = pair.through([{"x": np.full(MEGA, i, np.uint8)} for i in range(20)])
    assert pair.pages() > 20 * MEGA
    kept = [received[3]["x"], received[4]["x"], received[11]["x"]]
    pair.received = received = None
    pair.memory.close()
    assert pair.pages() <= 3 * (MEGA + 4096)
    del kept[1]
    assert pair.pages() <= 2 * (MEGA + 4096)
    assert (kept[0] == 3).all()
    assert (kept[1] == 11).all()
    pair.close()


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
    pair.memory.close()
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for end in (*ready, *go):
        os.close(end)


def test_memory_that_is_not_to_be_had_is_an_error():
    with pytest.raises(OSError, match="memory"):
        memory.SharedMemory(2**60)
