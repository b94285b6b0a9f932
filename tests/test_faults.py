"""What becomes of a stream when its worker, its consumer or the system fails."""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest

import pescador
from pescador import PescadorError, Streamer, ZMQStreamer
from streams import Failure, data, forever

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals and forks"),
    pytest.mark.usefixtures("start_method"),
]


def numbers(n=10**9, size=3):
    for i in range(n):
        yield {"x": np.full(size, i)}


def workers():
    gc.collect()
    return multiprocessing.active_children()


def test_an_item_does_not_wait_for_the_next():
    end, worker_end = multiprocessing.Pipe()

    def source():
        for i in range(50):
            yield {"x": np.array(i)}
            assert worker_end.recv() == i

    for i, item in enumerate(ZMQStreamer(Streamer(source))):
        assert item["x"] == i
        # Only now may the source go on.
        end.send(i)
    end.close()
    worker_end.close()


def test_all_that_was_sent_before_a_worker_was_killed_arrives():
    def source():
        yield from numbers(1000)
        os.kill(os.getpid(), signal.SIGKILL)

    stream = iter(ZMQStreamer(Streamer(source)))
    assert [int(next(stream)["x"][0]) for _ in range(1000)] == list(range(1000))
    with pytest.raises(PescadorError, match=r"SIGKILL.* after 1000 items"):
        next(stream)


def test_a_stopped_worker_is_waited_for_and_can_be_closed():
    with contextlib.closing(iter(ZMQStreamer(Streamer(numbers, size=4096)))) as stream:
        received = [next(stream)]
        [worker] = workers()
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGCONT)).start()
        # More than can have been on its way.
        received = [int(next(stream)["x"][0]) for _ in range(20_000)]
        assert received == list(range(1, 20_001))
    stream = iter(ZMQStreamer(Streamer(numbers), timeout=0.1))
    next(stream)
    [worker] = workers()
    os.kill(worker.pid, signal.SIGSTOP)
    process = psutil.Process(worker.pid)
    stream.close()
    assert not process.is_running()


def test_a_worker_that_somebody_else_waited_for_is_gone():
    # In a process of its own: Python's list of children is wrong from then on.
    script = """
        import multiprocessing, os, signal
        import numpy as np, pescador
        def source():
            while True:
                yield {"x": np.zeros(3)}
        stream = iter(pescador.ZMQStreamer(pescador.Streamer(source)))
        next(stream)
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)
        try:
            for _ in stream:
                pass
        except pescador.PescadorError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30
    )
    assert "is gone, before the end of its stream, after" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_that_cannot_be_pickled_is_refused_and_leaves_nothing(method):
    with contextlib.suppress(PescadorError):
        list(ZMQStreamer(data(3), start_method=method))
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(PescadorError, match=r'could not be started: .*"fork" nothing has to'):
            list(ZMQStreamer(data(3), start_method=method))
    assert psutil.Process().num_fds() <= before + 2  # of Python's resource tracker


def test_a_consumer_that_raises_leaves_no_worker():
    def train():
        for _ in ZMQStreamer(Streamer(numbers)):
            raise Failure

    with pytest.raises(Failure):
        train()
    assert not workers()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ctrl_c_ends_consumer_and_worker_without_noise(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys
            import numpy as np
            import pescador

            def source():
                while True:
                    yield {{"pid": np.array(os.getpid())}}

            if __name__ == "__main__":
                try:
                    streamer = pescador.Streamer(source)
                    for item in pescador.ZMQStreamer(streamer, start_method={method!r}):
                        print(int(item["pid"]), flush=True)
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            """
        )
    )
    consumer = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    worker = psutil.Process(int(consumer.stdout.readline()))
    os.killpg(consumer.pid, signal.SIGINT)
    out, err = consumer.communicate(timeout=30)
    assert out.endswith("interrupted\n")
    assert err == ""
    worker.wait(timeout=5)


def test_an_iteration_belongs_to_the_process_that_began_it():
    stream = iter(ZMQStreamer(Streamer(numbers, 100, 10_000)))
    held = next(stream)
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            try:
                next(stream)
            except PescadorError as error:
                verdict = int("belongs to the process" not in str(error))
            verdict += int(not (held["x"] == 0).all())
        os._exit(verdict)
    assert os.waitpid(child, 0)[1] == 0
    assert [int(item["x"][-1]) for item in stream] == list(range(1, 100))


def in_a_daemonic_process(pipe):
    try:
        pipe.send([int(item["x"][0]) for item in ZMQStreamer(Streamer(numbers, 5))])
    except BaseException as error:
        pipe.send(repr(error))


def test_a_daemonic_process_may_have_workers():
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=in_a_daemonic_process, args=(theirs,), daemon=True)
    process.start()
    assert ours.recv() == list(range(5))
    process.join()
    ours.close()
    theirs.close()


def test_the_worker_of_a_killed_worker_ends_too():
    def source():
        for item in ZMQStreamer(Streamer(pids)):
            yield {"outer": np.array(os.getpid()), **item}

    stream = iter(ZMQStreamer(Streamer(source)))
    item = next(stream)
    inner = psutil.Process(int(item["pid"]))
    os.kill(int(item["outer"]), signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        inner.wait(timeout=5)
    with pytest.raises(PescadorError, match="SIGKILL"):
        for _ in stream:
            pass


def pids():
    while True:
        yield {"pid": np.array(os.getpid())}


def test_muxes_start_and_stop_workers_and_keep_their_order():
    def mux(wrap):
        streams = [wrap(Streamer(numbers, 30, 1000 * i + 1)) for i in range(6)]
        return pescador.StochasticMux(streams, 2, rate=4, random_state=0)

    def seen(stream):
        return [(item["x"].size, int(item["x"][0])) for item in stream.iterate(60)]

    assert seen(mux(ZMQStreamer)) == seen(mux(lambda streamer: streamer))
    assert not workers()


class Listing(Streamer):
    """Overrides a documented hook, and gives something that is no generator."""

    def __call__(self, max_iter=None, cycle=False):
        return list(self.iterate(max_iter))


def test_a_subclass_may_give_any_iterable():
    items = list(ZMQStreamer(Listing(numbers, 9)))
    assert [item["x"].tolist() for item in items] == [[i] * 3 for i in range(9)]


def test_a_streamer_may_be_iterated_twice_at_once():
    streamer = ZMQStreamer(Streamer(data, 50))
    pairs = list(zip(streamer, streamer, strict=True))
    assert [(int(a["Y"]), int(b["Y"])) for a, b in pairs] == [(i, i) for i in range(50)]


def test_a_consumer_may_keep_everything():
    # Four times what may be on its way or lent.
    items = list(ZMQStreamer(Streamer(numbers, 64, 2**13), max_bytes=2**20))
    assert [item["x"].tolist() for item in items] == [[i] * 2**13 for i in range(64)]
    for item in items:
        item["x"][:] = 0


def test_arrays_outlive_stream_and_worker():
    arrays = [next(iter(ZMQStreamer(Streamer(numbers, 9, 50_000))))["x"] for _ in range(5)]
    gc.collect()
    for array in arrays:
        array += 1
        assert (array == 1).all()


@pytest.mark.parametrize("size", [2, 2**20])
def test_nothing_is_left_behind(size):
    streamer = ZMQStreamer(Streamer(numbers, 5, size))
    process = psutil.Process()
    shared = pathlib.Path("/dev/shm")

    def left():
        gc.collect()
        # Semaphores and joblib's folders come and go with the processes of others.
        files = [path for path in shared.glob("*") if not path.name.startswith(("sem.", "joblib"))]
        maps = [m for m in process.memory_maps(grouped=False) if "memfd" in m.path]
        return process.num_fds(), process.num_threads(), sorted(files), len(maps)

    list(streamer)
    before = left()
    for _ in range(5):
        list(streamer)
        next(iter(streamer))
    assert left() == before


@pytest.mark.parametrize("who", ["consumer", "worker"])
def test_either_may_end_while_the_worker_sends_what_does_not_fit(who):
    ours, theirs = multiprocessing.Pipe()

    def source():
        yield from numbers(1)
        theirs.send("next")
        yield from numbers(1, 2_000_000)

    # What starts with the first worker stays: a fork server, Python's resource tracker.
    list(ZMQStreamer(Streamer(numbers, 1)))
    before = psutil.Process().num_fds()
    stream = iter(ZMQStreamer(Streamer(source), max_bytes=1000, timeout=None))
    next(stream)
    ours.recv()
    time.sleep(0.3)
    if who == "worker":
        [worker] = workers()
        worker.kill()
        with pytest.raises(PescadorError, match=r"SIGKILL.* after 1 items"):
            next(stream)
    stream.close()
    assert not workers()
    assert psutil.Process().num_fds() == before
    ours.close()
    theirs.close()


def test_an_endless_stream_does_not_grow():
    stream = iter(ZMQStreamer(Streamer(forever, {"x": np.zeros(10_000)}), max_bytes=2**22))
    process = psutil.Process()
    for _ in range(2_000):
        next(stream)
    [worker] = map(psutil.Process, (w.pid for w in workers()))
    before = process.memory_info().rss, worker.memory_info().rss
    for _ in range(10_000):
        next(stream)
    after = process.memory_info().rss, worker.memory_info().rss
    assert max(b - a for a, b in zip(before, after, strict=True)) < 2**22
    stream.close()
