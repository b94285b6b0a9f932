"""Orders in memory: words of a consumer for a worker of many visits."""

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("the memory is Linux's", allow_module_level=True)

from pescador._channel.memory import SharedMemory
from pescador._channel.orders import OrderReader, OrderWriter

# How many words there is room for.
ROOM = 4096


def words(first, n):
    return struct.pack(f"<{n}q", *range(first, first + n))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, ROOM + 1)),
        st.tuples(st.just("send"), st.integers(1, 9)),
        st.tuples(st.just("read"), st.just(0)),
    ),
    max_size=40,
)


@given(actions)
def test_orders_are_read_in_the_order_in_which_they_were_written_or_sent(actions):
    """What the ring has no room for is sent, as the consumer does."""
    memory = SharedMemory(1)
    writer, reader = OrderWriter(memory, lambda: None), OrderReader(memory)
    pipe: list[tuple[int, bytes]] = []
    written, read = 0, b""

    def read_all():
        nonlocal read
        while True:
            read += reader.take()
            if not reader.awaits_message():
                return
            position, message = pipe.pop(0)
            read += reader.take_until(position) + message

    for what, n in actions:
        if what == "read":
            read_all()
        else:
            if what == "send" or not writer.put(words(written, n)):
                pipe.append((writer.before_message(), words(written, n)))
            written += n
    read_all()
    assert read == words(0, written)


def test_words_that_follow_a_message_wait_for_it():
    memory = SharedMemory(1)
    writer, reader = OrderWriter(memory, lambda: None), OrderReader(memory)
    assert writer.put(words(0, 2))
    position = writer.before_message()
    assert writer.put(words(2, 1))
    assert reader.awaits_message()
    assert not reader.is_empty()
    assert reader.take() == b""
    assert reader.take_until(position) == words(0, 2)
    assert reader.take() == words(2, 1)


def test_a_reader_that_finds_nothing_is_woken_once():
    memory = SharedMemory(1)
    wakes: list[str] = []
    writer, reader = OrderWriter(memory, lambda: wakes.append("now")), OrderReader(memory)
    writer.put(words(0, 1))
    assert not wakes
    assert not reader.is_empty()
    reader.take()
    assert reader.is_empty()
    writer.put(words(1, 1))
    writer.put(words(2, 1))
    assert wakes == ["now"]
    assert not reader.is_empty()
    writer.put(words(3, 1))
    assert wakes == ["now"]
