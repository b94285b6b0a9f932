"""What workers draw: what the script would have drawn itself, and nothing twice."""

import multiprocessing
import random

import numpy as np
import peers
import pytest

import pescador
from pescador import Streamer, ZMQStreamer
from pescador._channel import random_states
from streams import data, draws

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(autouse=True)
def nothing_started(monkeypatch):
    """As in a process that has not started any worker."""
    monkeypatch.setattr(random_states, "_started", type(random_states._started)())


def seed(number):
    np.random.seed(number)
    random.seed(number)


def drawn(stream):
    return [(item["numpy"].tolist(), float(item["python"])) for item in stream]


def epochs(n, **kwargs):
    """What n workers draw that are started one after the other from one seed."""
    random_states._started.clear()
    seed(7)
    np.random.standard_normal()  # leaves a second one to be given out next time
    streamer = ZMQStreamer(Streamer(draws, 3), **kwargs)
    return [drawn(streamer) for _ in range(n)]


@pytest.fixture(scope="module")
def reference():
    """Three epochs under fork."""
    return epochs(3, start_method="fork")


@pytest.mark.parametrize("method", METHODS)
def test_epochs_differ_the_first_is_that_of_the_script_and_all_are_repeatable(method, reference):
    ours = epochs(3, start_method=method)
    seed(7)
    np.random.standard_normal()
    assert ours[0] == drawn(Streamer(draws, 3))
    # No number is drawn twice, and every start method draws the same.
    assert len({number for epoch in ours for numbers, _ in epoch for number in numbers}) == 18
    assert len({number for epoch in ours for _, number in epoch}) == 9
    assert ours == reference


def test_starting_a_worker_draws_nothing_here():
    seed(1)
    expected = np.random.rand(), random.random()
    seed(1)
    list(ZMQStreamer(Streamer(draws, 2)))
    assert (np.random.rand(), random.random()) == expected


def test_siblings_of_one_state_differ():
    seed(2)
    streams = [iter(ZMQStreamer(Streamer(draws, 2))) for _ in range(3)]
    first = [next(stream) for stream in streams]
    assert len({item["numpy"].tobytes() for item in first}) == 3
    for stream in streams:
        stream.close()


def test_workers_of_a_worker_count_by_themselves():
    seed(3)
    expected = drawn(Streamer(draws, 2))
    seed(3)
    # The inner worker is the first that is started from its worker's state, which is ours.
    assert drawn(ZMQStreamer(ZMQStreamer(Streamer(draws, 2)))) == expected


def test_another_bit_generator_is_inherited_too():
    before = np.random.mtrand.get_bit_generator()
    try:
        np.random.mtrand.set_bit_generator(np.random.PCG64(5))
        for method in ("fork", "spawn"):
            random_states._started.clear()
            np.random.mtrand.get_bit_generator().state = np.random.PCG64(5).state
            streamer = ZMQStreamer(Streamer(draws, 2), start_method=method)
            first, second = drawn(streamer), drawn(streamer)
            assert first != second
            expected = np.random.Generator(np.random.PCG64(5)).random(2).tolist()
            assert first[0][0] == expected
    finally:
        np.random.mtrand.set_bit_generator(before)


def test_a_mux_with_a_state_of_its_own_draws_the_same_in_each_epoch():
    mux = pescador.StochasticMux([Streamer(data, 9) for _ in range(5)], 3, 4, random_state=0)
    here = [float(item["X"][0]) for item in mux.iterate(30)]
    for _ in range(2):
        assert [float(item["X"][0]) for item in ZMQStreamer(mux).iterate(30)] == here


def test_only_the_states_seen_last_are_remembered(monkeypatch):
    monkeypatch.setattr(random_states, "_LIMIT", 3 * 2)

    def is_first(number):
        seed(number)
        return random_states.for_next_worker().python == random.getstate()

    assert all(map(is_first, range(10)))
    assert not is_first(9)
    assert is_first(0)


def test_one_state_that_moves_on_does_not_take_the_other_back():
    seed(4)
    streamer = ZMQStreamer(Streamer(draws, 2))
    first = drawn(streamer)
    random.random()
    second = drawn(streamer)
    assert {number for numbers, _ in first for number in numbers}.isdisjoint(
        number for numbers, _ in second for number in numbers
    )


# The reference sets the shape of arrays, which NumPy 2.5 warns of.
@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_a_seeded_script_gets_the_samples_of_the_reference(monkeypatch):
    # Its worker finds nothing to work on where it is not forked, as by default from Python 3.14 on.
    monkeypatch.setattr(multiprocessing, "Process", multiprocessing.get_context("fork").Process)
    peer = peers.load("3.0.0")
    seed(5)
    theirs = [
        item["numpy"].tolist() for item in peer.ZMQStreamer(peer.Streamer(draws, 4)).iterate()
    ]
    seed(5)
    assert [item["numpy"].tolist() for item in ZMQStreamer(Streamer(draws, 4))] == theirs
