"""The words on a pipe that wake its other end."""

import os
import signal
import sys
from multiprocessing import Pipe

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("on Linux only", allow_module_level=True)

from pescador._channel import protocol, worker
from pescador._channel.bell import Bell


@pytest.fixture
def ends():
    ours, other = Pipe()
    with ours, other:
        yield ours, other


def test_it_says_what_multiprocessing_reads_as_that_word(ends):
    ours, other = ends
    Bell(ours).ring()
    assert other.recv_bytes() == protocol.WAKE
    assert not other.poll(0)


@given(st.lists(st.sampled_from([protocol.WAKE, protocol.STOP, b"", b"w" * 400]), max_size=200))
def test_whoever_listens_gets_all_messages_but_those_that_wake(said):
    ours, other = Pipe()
    with ours, other:
        bell = Bell(ours)
        for message in said:
            other.send_bytes(message)
        heard, woken = [], False
        while (what := bell.listen(0)) != "silence":
            woken |= what == "woken"
            if what == "message":
                heard.append(ours.recv_bytes())
        assert heard == [message for message in said if message != protocol.WAKE]
        assert woken or said[-1:] != [protocol.WAKE]


def test_a_worker_that_waits_for_room_takes_them_for_no_orders(ends):
    ours, other = ends
    consumer = worker._Consumer(ours)
    Bell(other).ring()
    assert consumer.send({"x": np.zeros(3)})
    assert not consumer.messages


def test_an_end_that_is_closed_is_a_message(ends):
    ours, other = ends
    other.close()
    assert Bell(ours).listen(None) == "message"
    Bell(ours).ring()


def test_a_pipe_that_is_full_holds_nobody_up(ends):
    ours, other = ends
    bell = Bell(ours)
    for _ in range(10_000):
        bell.ring()
    assert Bell(other).listen(0) == "woken"


def test_another_file_in_the_place_of_the_pipe_is_left_alone(ends, tmp_path):
    ours, other = ends
    bell = Bell(ours)
    before = os.dup(ours.fileno())
    with open(tmp_path / "file", "wb") as file:
        os.dup2(file.fileno(), ours.fileno())
        bell.ring()
        assert bell.listen(None) == "message"
    os.dup2(before, ours.fileno())
    os.close(before)
    assert (tmp_path / "file").read_bytes() == b""
    assert not other.poll(0)


def test_an_interrupt_ends_the_waiting(ends):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            Bell(ends[0]).listen(20)
    finally:
        signal.signal(signal.SIGALRM, before)
