"""What bench/soak_parallel.py has found in ParallelStreamer, each by itself."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
import pytest

import pescador
from pescador import ParallelStreamer, PescadorError, RoundRobinMux, Seeded, Streamer
from pescador._channel import process, protocol, worker
from pescador._channel.protocol import ORDERS

KINDS = pytest.mark.parametrize("kind", ["process", "thread"])


def numbers(i, n=10**9):
    for j in range(n):
        yield i, j


def cycle(*streams):
    """A run that runs in threads as well."""
    return Seeded(RoundRobinMux(streams, mode="cycle"), 0, states=())


class Counting:
    """Its iterator can tell where it is; `tell` makes what it tells of that."""

    def __init__(self, pause, tell=int):
        self.pause, self.tell = pause, tell

    def __iter__(self):
        return CountingIterator(self.pause, self.tell)


class CountingIterator:
    def __init__(self, pause, tell):
        self.pause, self.tell, self.at = pause, tell, 0

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.pause)
        self.at += 1
        return self.at

    def state_dict(self):
        return {"at": self.tell(self.at)}

    def load_state_dict(self, state):
        self.at = state["at"]


def ends(*functions):
    """Call functions at the same time; tell whether all of them return."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return not any(thread.is_alive() for thread in threads)


def fail(at):
    raise ValueError("it cannot tell")


def test_kept_workers_give_nothing_of_the_run_before():
    parallel = ParallelStreamer(
        cycle(*(Streamer(numbers, i) for i in range(3))), 1, read_ahead=50, keep_workers=True
    )
    expected = [(i % 3, i // 3) for i in range(30)]
    for n in (1, 2, 5, 30):
        assert list(parallel(max_iter=n)) == expected[:n]
        # All that was ordered is made.
        time.sleep(0.1)


@KINDS
def test_a_state_that_was_told_early_counts_when_its_items_are_given(kind):
    parallel = ParallelStreamer(cycle(Streamer(Counting(0.002))), 1, read_ahead=100, kind=kind)
    with parallel.open() as stream:
        assert [next(stream) for _ in range(50)] == list(range(1, 51))
        time.sleep(0.3)
        assert [next(stream) for _ in range(2)] == [51, 52]
        state = stream.state_dict()
    with parallel.open(state=state) as stream:
        assert [next(stream) for _ in range(100)] == list(range(53, 153))


@KINDS
@pytest.mark.parametrize("tell", [fail, lambda at: object()])
def test_a_source_that_cannot_tell_its_state_gives_its_items_again(kind, tell):
    options = {"restart": True, "start_method": "fork"} if kind == "process" else {}
    parallel = ParallelStreamer(cycle(Streamer(Counting(0.01, tell))), 1, kind=kind, **options)
    with parallel.open() as stream:
        assert [next(stream) for _ in range(20)] == list(range(1, 21))
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        assert [next(stream) for _ in range(20)] == list(range(21, 41))


@KINDS
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_copy_of_the_consumer_leaves_the_workers_alone(kind):
    parallel = ParallelStreamer(cycle(Streamer(numbers, 0), Streamer(numbers, 1)), 2, kind=kind)
    with parallel.open() as stream:
        got = [next(stream) for _ in range(4)]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(20)
                with pytest.raises(PescadorError, match="belongs to the process"):
                    list(zip(range(1000), stream, strict=False))
                stream.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        got += [next(stream) for _ in range(1000)]
    assert got == [(i % 2, i // 2) for i in range(1004)]


def test_a_worker_that_is_suspended_is_ended_though_its_pipe_is_full():
    parallel = ParallelStreamer(cycle(Streamer(numbers, 0)), 1, start_method="fork")
    parallel.timeout = 0.2
    stream = parallel.open()
    next(stream)
    [child] = multiprocessing.active_children()
    suspended = psutil.Process(child.pid)
    suspended.suspend()
    [maker] = stream._root().pool.makers
    while maker.owner.is_ready(0, to_write=True):
        maker.owner.say(b"w")
    # Room for the last words, by poll, is a quarter of the pipe; all of it is taken.
    os.set_blocking(maker.owner.pipe.fileno(), False)
    for _ in range(10_000):
        maker.owner.say(b"w")
    os.set_blocking(maker.owner.pipe.fileno(), True)
    assert ends(stream.close)
    assert not suspended.is_running()


def test_an_item_that_nobody_has_ordered_is_an_error():
    with ParallelStreamer(cycle(Streamer(numbers, 0)), 1).open() as stream:
        next(stream)
        pool = stream._root().pool
        [visit] = pool.schedule.visits_at(pool.makers[0])
        for _ in range(visit.ordered - visit.arrived):
            pool.schedule.receive(visit.number, {}, 8)
        with pytest.raises(PescadorError, match="not ordered"):
            pool.schedule.receive(visit.number, {}, 8)


def test_a_worker_reads_while_it_sends_an_item_over_the_pipe():
    ours, other = process.pipe("spawn")
    consumer = worker._Consumer(other)
    order = ORDERS + bytes(10**6)

    def say_and_listen():
        ours.send_bytes(order)
        missing, _ = protocol.read_item_head(ours.recv_bytes())
        while missing:
            missing -= len(ours.recv_bytes())

    assert ends(say_and_listen, lambda: consumer.send({"x": np.zeros(10**6)}, 3))
    assert list(consumer.messages) == [order]
    ours.close()
    other.close()


def test_kept_workers_end_with_their_streamer_without_a_collection():
    gc.collect()
    gc.disable()
    try:
        parallel = ParallelStreamer(cycle(Streamer(numbers, 0)), 1, keep_workers=True)
        assert len(list(parallel(max_iter=3))) == 3
        assert multiprocessing.active_children()
        del parallel
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_the_end_of_a_pipe_that_was_finalized_first_is_closed_once():
    ours, other = process.pipe("spawn")
    number = ours.fileno()
    ours.__del__()
    again = [os.open(os.devnull, os.O_RDONLY)]
    while again[-1] < number:
        again.append(os.dup(again[0]))
    ours.close()
    other.close()
    for descriptor in again:
        os.close(descriptor)


def leaving(i):
    try:
        while True:
            yield i
    finally:
        raise SystemExit("closed")


@KINDS
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_source_raises_while_it_is_closed_ends_no_worker(kind):
    mux = pescador.StochasticMux(
        [Streamer(leaving, i) for i in range(3)], 1, 2, dist="constant", random_state=0
    )
    run = Seeded(mux, 0, states=())
    expected = list(ParallelStreamer(run, 0)(max_iter=50))
    assert list(ParallelStreamer(run, 1, kind=kind)(max_iter=50)) == expected
