"""What becomes of a ParallelStreamer when a stream, a worker or the consumer fails."""

import collections
import contextlib
import gc
import itertools
import multiprocessing
import os
import pathlib
import pickle
import random
import re
import signal
import struct
import sys
import threading
import time
import weakref

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_trees import Resumable, plain
from scripts import run

import effort
import pescador
from pescador import ParallelStreamer, PescadorError, Seeded, Streamer, _rows, _schedule, _visits
from pescador._channel import process, protocol
from pescador.parallel.production import Production
from pescador.sources import Rows
from streams import Failure, data, failing, forever

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")

KINDS = ("process", "thread")


def counted(i, n=10**9):
    for value in range(n):
        yield i, value


def noise(scale, n=10**9):
    for _ in range(n):
        yield {"x": scale * np.random.rand(3)}


def drawn(i):
    for j in range(np.random.randint(1, 7)):
        yield {"x": np.full(30, 100 * i + j)}


def pids(i):
    while True:
        yield i, os.getpid()


def workers():
    gc.collect()
    return multiprocessing.active_children()


def kill_one(pause):
    """Kill a worker, unless all are dead already, and what they have made is taken meanwhile."""
    if alive := workers():
        os.kill(pause.choice(alive).pid, signal.SIGKILL)


def read(items):
    """Return all items, plain, and what was raised after them."""
    given = []
    try:
        for item in items:
            given.append(plain(item))
    except Exception as error:
        return given, error
    return given, None


def in_turn(*streams, **kwargs):
    """Streams that give an item each in turn, made in two workers."""
    mux = pescador.RoundRobinMux(streams, "exhaustive")
    return ParallelStreamer(Seeded(mux, 1, states=()), 2, **kwargs)


# ------------------------------------------------------------------------------ streams that raise


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stream_raises_is_raised_where_its_item_would_have_come(kind):
    parallel = in_turn(Streamer(counted, 0), Streamer(failing, 3), kind=kind)
    items, error = read(parallel)
    assert items == [[0, 0], 0, [0, 1], 1, [0, 2], 2, [0, 3]]
    assert type(error) is Failure
    assert error.args == (3,)
    if kind == "process":
        assert "raise Failure(n)" in str(error.__cause__)
        assert "failing, 3" in str(error.__cause__) or "failing(3)" in str(error.__cause__)
    assert not workers()
    assert parallel.active == 0


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.lock = threading.Lock()


def raising(make):
    yield 1
    raise make()


def test_an_exception_that_cannot_be_sent_is_an_error_with_its_text():
    items, error = read(in_turn(Streamer(raising, lambda: Unpicklable("lost", 2))))
    assert items == [1]
    assert type(error) is PescadorError
    assert "Unpicklable: lost" in str(error)
    assert "raise make()" in str(error.__cause__)


def leaving(how):
    yield 1
    how()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_calls_sys_exit_does_not_end_well(kind):
    stream = in_turn(Streamer(leaving, sys.exit), Streamer(counted, 0), kind=kind).iterate()
    assert [next(stream), next(stream)] == [1, (0, 0)]
    # Here, it is what would be raised without workers.
    with pytest.raises(PescadorError if kind == "process" else SystemExit, match=r"SystemExit|^$"):
        next(stream)
    assert not workers()


def close_badly():
    try:
        while True:
            yield 1
    finally:
        sys.exit(3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_exits_while_it_is_closed_stops_nobody(kind):
    streams = [Streamer(close_badly)] * 6
    run = Seeded(pescador.StochasticMux(streams, 2, rate=2, dist="constant"), 1, states=())
    with contextlib.closing(ParallelStreamer(run, 2, kind=kind).iterate(60)) as items:
        assert list(items) == [1] * 60


def end_process(code):
    return lambda: os._exit(code)


def test_a_stream_that_ends_its_process_is_an_error_that_says_how():
    # Buffered items may be lost with the process: all before it come in their order.
    items, error = read(in_turn(Streamer(leaving, end_process(7)), Streamer(counted, 0)))
    assert type(error) is PescadorError
    named = r"exited with code 7, while it ran streamers\[0\], visit 0: .*leaving.*; with restart="
    assert re.search(named, str(error))
    assert items == [1, [0, 0], *([1], [0, 1])][: len(items)]
    assert not workers()


def test_a_stream_that_ends_its_process_each_time_is_an_error_with_restart_too():
    parallel = in_turn(Streamer(leaving, end_process(7)), Streamer(counted, 0), restart=True)
    items, error = read(parallel)
    assert items == [1, [0, 0]]
    assert "exited with code 7" in str(error)
    assert "the 3 that were lost before it gave no item either" in str(error)
    assert parallel.stats()["restarts"] < 20
    assert not workers()


# -------------------------------------------------------------------------- workers that are killed


def test_a_killed_worker_is_an_error_within_a_second_after_what_has_arrived():
    parallel = ParallelStreamer(pescador.ShuffledMux([Streamer(pids, i) for i in range(4)]), 2)
    items = parallel.iterate()
    _, pid = next(items)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PescadorError, match=r"SIGKILL.*pids.*; with restart=True, another one"):
        for _ in items:
            pass
    assert not workers()


def slow_noise(scale, n):
    for _ in range(n):
        time.sleep(0.0005)
        yield scale * np.random.rand()


LEAVES = {
    "generators": lambda i: Streamer(slow_noise, 10**i, 30),
    "sources": lambda i: Rows({"x": np.arange(50.0)}, order="shuffled"),
    "own state": lambda i: Streamer(Resumable(i, 40)),
    "maps": lambda i: Streamer(pescador.transform, Streamer(slow_noise, i, 40), str),
}


@pytest.mark.parametrize("tracks", [False, True])
@pytest.mark.parametrize("leaf", LEAVES)
def test_with_restart_not_an_item_changes_however_many_workers_are_killed(leaf, tracks):
    streams = [LEAVES[leaf](i) for i in range(6)]
    run = Seeded(pescador.StochasticMux(streams, 4, rate=20), 3)
    expected = plain(list(run(max_iter=400)))
    pause = random.Random(1)
    for _ in range(effort.TIMES):
        parallel = ParallelStreamer(run, 2, restart=True)
        stream = parallel.open(400) if tracks else parallel.iterate(400)
        kill_at = sorted(pause.sample(range(1, 400), 6))
        items = []
        with contextlib.closing(stream):
            for item in stream:
                items.append(plain(item))
                if len(items) in kill_at:
                    time.sleep(pause.random() * 0.01)
                    kill_one(pause)
        assert items == expected
        assert 1 <= parallel.stats()["restarts"] <= 6
    assert not workers()


def images(i, n):
    for j in range(n):
        yield {"x": np.random.rand(40, 40), "y": np.array(100 * i + j)}


@pytest.mark.parametrize("lengths", [(10**6,), (5, 23, 40)])
def test_batches_that_killed_workers_were_writing_into_come_whole(lengths):
    # Of other lengths than the rate says, plans are wrong, and rows are wanted by other items.
    streams = [Streamer(images, i, lengths[i % len(lengths)]) for i in range(12)]
    run = Seeded(pescador.StochasticMux(streams, 4, rate=20), 3)
    expected = plain(list(pescador.buffer_stream(run(max_iter=480), 8)))
    pause = random.Random(1)
    for _ in range(effort.TIMES):
        tree = ParallelStreamer(run, 2, restart=True)
        stream = Streamer(pescador.buffer_stream, tree, 8).iterate(60)
        kill_at = sorted(pause.sample(range(1, 60), 6))
        found, held = [], []
        for batch in stream:
            found.append(plain(batch))
            held.append(batch)
            if len(found) in kill_at:
                time.sleep(pause.random() * 0.01)
                kill_one(pause)
        assert found == expected
        assert plain(held) == expected
        assert tree.stats()["restarts"] >= 1
    assert not workers()


def test_batches_of_a_forked_child_and_its_parent_are_their_own():
    run = Seeded(pescador.ShuffledMux([Streamer(images, i, 10**6) for i in range(4)]), 3)
    expected = plain(list(pescador.buffer_stream(run(max_iter=160), 8)))
    stream = Streamer(pescador.buffer_stream, ParallelStreamer(run, 2), 8).iterate(20)
    held = [next(stream) for _ in range(3)]
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            verdict = int(plain(held) != expected[:3])
            for batch in held:
                batch["x"][:] = -1
            del stream, held
            gc.collect()
        os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert plain(held) == expected[:3]
    assert plain(list(stream)) == expected[3:]


def test_a_run_that_has_lost_workers_can_be_saved():
    streams = [LEAVES[leaf](i) for i, leaf in enumerate(LEAVES)] * 2
    run = Seeded(pescador.StochasticMux(streams, 4, rate=20), 3)
    expected = plain(list(run(max_iter=300)))
    with ParallelStreamer(run, 2, restart=True).open(300) as stream:
        items = [plain(next(stream)) for _ in range(50)]
        for worker in workers():
            os.kill(worker.pid, signal.SIGKILL)
        items += [plain(next(stream)) for _ in range(50)]
        state = pickle.loads(pickle.dumps(stream.state_dict()))
    assert items == expected[:100]
    assert plain(list(ParallelStreamer(run, 1).open(state=state))) == expected[100:]


def test_a_state_that_was_loaded_survives_the_loss_of_workers():
    streams = [LEAVES[leaf](i) for i, leaf in enumerate(LEAVES)] * 2
    run = Seeded(pescador.StochasticMux(streams, 4, rate=20), 3)
    expected = plain(list(run(max_iter=300)))
    with run.open(300) as stream:
        for _ in range(100):
            next(stream)
        state = stream.state_dict()
    with ParallelStreamer(run, 0).open(300) as stream:
        for _ in range(100):
            next(stream)
        state = stream.state_dict()
    with ParallelStreamer(run, 2, restart=True).open(state=state) as stream:
        items = [plain(next(stream))]
        for worker in workers():
            os.kill(worker.pid, signal.SIGKILL)
        assert items + plain(list(stream)) == expected[100:]


def test_a_stopped_worker_is_waited_for_and_can_be_closed():
    run = Seeded(pescador.ShuffledMux([Streamer(noise, i) for i in range(4)]), 1)
    expected = plain(list(run(max_iter=3000)))
    with contextlib.closing(ParallelStreamer(run, 2).iterate(3000)) as items:
        found = [plain(next(items))]
        for worker in workers():
            os.kill(worker.pid, signal.SIGSTOP)
            threading.Timer(0.3, os.kill, (worker.pid, signal.SIGCONT)).start()
        assert found + plain(list(items)) == expected
    parallel = ParallelStreamer(run, 2)
    parallel.timeout = 0.1
    items = parallel.iterate()
    next(items)
    stopped = [psutil.Process(worker.pid) for worker in workers()]
    for worker in stopped:
        worker.suspend()
    items.close()
    assert not any(worker.is_running() for worker in stopped)


def test_a_killed_worker_that_was_kept_is_replaced_in_the_next_iteration():
    mux = pescador.ShuffledMux([Streamer(pids, i) for i in range(4)])
    parallel = ParallelStreamer(mux, 2, keep_workers=True)
    list(parallel(max_iter=9))
    before = {worker.pid for worker in workers()}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for pid in before:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(5)
    assert not before & {pid for _, pid in parallel(max_iter=30)}
    del parallel
    assert not workers()


# ------------------------------------------------------------------------------------- the consumer


@pytest.mark.parametrize(
    "options", [{"kind": "thread"}, {"kind": "process"}, {"keep_workers": True}], ids=str
)
@pytest.mark.parametrize("size", [2, 2**18])
def test_nothing_is_left_behind(size, options):
    consumer = psutil.Process()
    shared = pathlib.Path("/dev/shm")

    def streams():
        return pescador.ShuffledMux([Streamer(data, 20, (size,)) for _ in range(4)])

    def left():
        gc.collect()
        # Semaphores and joblib's folders come and go with the processes of others.
        files = [path for path in shared.glob("*") if not path.name.startswith(("sem.", "joblib"))]
        maps = [m for m in consumer.memory_maps(grouped=False) if "memfd" in m.path]
        return consumer.num_fds(), consumer.num_threads(), sorted(files), len(maps), workers()

    def use():
        run = Seeded(streams(), 1, states=())
        parallel = ParallelStreamer(run, 2, **options)
        list(parallel(max_iter=10))
        # Dropped, and closed early.
        next(iter(parallel))
        items = parallel.iterate()
        next(items)
        items.close()
        with parallel.open() as stream:
            next(stream)

    use()
    before = left()
    for _ in range(2 * effort.TIMES):
        use()
    assert left() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["end", "close", "drop", "error"])
def test_no_garbage_is_left_that_a_collection_has_to_find(way, kind):
    lengths = [20, 20, 20, "so many" if way == "error" else 20]
    streams = [Streamer(images, i, length) for i, length in enumerate(lengths)]
    mux = pescador.StochasticMux(streams, 3, 6, mode="exhaustive", random_state=0)
    parallel = ParallelStreamer(mux, 2, kind=kind)

    def use():
        stream = Streamer(pescador.buffer_stream, parallel, 4).iterate()
        if way in ("end", "error"):
            read(stream)
            return
        next(stream)
        if way == "close":
            stream.close()

    def left():
        of_a_run = (_visits.Run, _rows.BatchRows, _rows.Placed, _schedule.Plan, _schedule.Visit)
        return sum(isinstance(found, of_a_run) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = left()
        use()
        assert left() == before
    finally:
        gc.enable()


class Trainer:
    """Holds a stream, whose items hold it."""


def holding(kind):
    while True:
        yield kind([Trainer.now])


@pytest.mark.parametrize("kind", [list, tuple])
def test_an_item_that_refers_to_its_run_does_not_keep_it(kind):
    before = set(threading.enumerate())
    trainer = Trainer.now = Trainer()
    run = Seeded(pescador.ShuffledMux([Streamer(holding, kind)] * 3), 0, states=())
    trainer.stream = ParallelStreamer(run, 2, kind="thread", read_ahead=5).open()
    assert next(trainer.stream) == kind([trainer])
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    left = weakref.ref(trainer)
    del trainer, Trainer.now
    deadline = time.monotonic() + 20
    while left() is not None:
        # A thread may be at an item.
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.02)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def collecting():
    yield 0
    Trainer.goes_on.wait()
    gc.collect()
    Trainer.has_collected.set()


def test_an_iteration_may_be_collected_as_garbage_in_one_of_its_threads(monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    Trainer.goes_on, Trainer.has_collected = threading.Event(), threading.Event()
    before = set(threading.enumerate())
    gc.collect()
    gc.disable()
    try:
        trainer = Trainer()
        run = Seeded(pescador.ChainMux([Streamer(collecting)]), 0, states=())
        trainer.stream = ParallelStreamer(run, 2, kind="thread", read_ahead=2).open()
        trainer.itself = trainer
        assert next(trainer.stream) == 0
        threads = set(threading.enumerate()) - before
        left = weakref.ref(trainer)
        del trainer
        Trainer.goes_on.set()
        assert Trainer.has_collected.wait(20)
    finally:
        gc.enable()
    assert left() is None
    assert not unraisable
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["end", "bound", "error"])
def test_workers_end_with_an_open_stream_though_it_is_held(way, kind):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("pescador-")]

    last = Streamer(failing, 3) if way == "error" else Streamer(counted, 1, 3)
    parallel = in_turn(Streamer(counted, 0, 3), last, kind=kind)
    stream = parallel.open(4 if way == "bound" else None)
    assert next(stream) == (0, 0)
    assert workers() or threads()
    items, error = read(stream)
    assert (len(items), type(error)) == {"end": (5, type(None)), "bound": (3, type(None))}.get(
        way, (5, Failure)
    )
    assert not workers()
    assert not threads()
    assert parallel.stats()["taken"] >= len(items)
    state = stream.state_dict()
    if way == "bound":
        assert plain(list(parallel.open(9, state=state))) == [[0, 2], [1, 2]]


def test_the_ends_of_streams_of_equal_length_are_known_before_they_are_due():
    mux = pescador.ShuffledMux([Streamer(counted, i, 5) for i in range(6)])
    parallel = ParallelStreamer(Seeded(mux, 0), 2)
    for _ in parallel(max_iter=150):
        time.sleep(0.003)
    stats = parallel.stats()
    # Of the first two, nobody knows yet.
    assert stats["waits"] < (stats["opened"] - stats["opened_in_vain"]) / 3


def blocks(i):
    while True:
        yield {"x": np.full(25_000, i, np.float32)}


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_no_more_is_made_early_than_arrives_without_being_copied():
    # Four of each stream would be 6 MB.
    mux = pescador.StochasticMux([Streamer(blocks, i) for i in range(32)], 16, rate=8)
    parallel = ParallelStreamer(Seeded(mux, 0), 2, read_ahead=4, max_bytes=2**22)
    copied = [item["x"].flags.owndata for item in parallel(max_iter=300)]
    # One worker may have more of it than the other for a while.
    assert sum(copied) < 90


def test_arrays_outlive_the_iteration_and_its_workers():
    mux = pescador.ShuffledMux([Streamer(data, 9, (50_000,)) for _ in range(3)])
    arrays = [item["X"] for item in ParallelStreamer(mux, 2)(max_iter=20)]
    values = [float(array[0]) for array in arrays]
    gc.collect()
    for array, value in zip(arrays, values, strict=True):
        assert (array == value).all()
        array += 1


def test_a_consumer_that_raises_leaves_nothing():
    def train():
        for _ in ParallelStreamer(pescador.ShuffledMux([Streamer(noise, 1)] * 3), 2):
            raise Failure

    with pytest.raises(Failure):
        train()
    assert not workers()


SCRIPT = """
    import threading
    def source(i):
        while True:
            yield i, os.getpid()
    mux = pescador.ShuffledMux([pescador.Streamer(source, i) for i in range(4)])
    parallel = pescador.ParallelStreamer(mux, 2, start_method=sys.argv[1])
"""


@pytest.mark.parametrize("way", ["file", "stdin", "command"])
@pytest.mark.parametrize("method", process.METHODS)
def test_a_script_needs_no_guard(method, way, tmp_path):
    body = """
    print("run")
    class Damaged(Exception):
        pass
    scale = 2
    def numbers(i):
        for j in range(2):
            yield {"x": np.array(scale * i + j)}
        raise Damaged("of the script")
    mux = pescador.RoundRobinMux([pescador.Streamer(numbers, i) for i in range(2)])
    try:
        for item in pescador.ParallelStreamer(mux, 2, start_method=sys.argv[1]):
            print(int(item["x"]))
    except Damaged as error:
        print(error)
    """
    path = tmp_path / "script.py" if way == "file" else None
    done = run(body, method, stdin=way == "stdin", path=path)
    assert done.stdout.split("\n") == ["run", "0", "2", "1", "3", "of the script", ""], done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("method", process.METHODS)
def test_ctrl_c_ends_consumer_and_workers_without_noise(method):
    body = (
        SCRIPT
        + """
    pids = set()
    try:
        for _, pid in parallel:
            if len(pids) == 1 and pid not in pids:
                threading.Timer(0.05, os.killpg, (0, signal.SIGINT)).start()
            pids.add(pid)
    except KeyboardInterrupt:
        print("interrupted", len(pids))
    import multiprocessing, psutil
    print(any(psutil.pid_exists(pid) for pid in pids), parallel.active)
    """
    )
    done = run(body, method, start_new_session=True)
    assert (done.stdout, done.stderr) == ("interrupted 2\nFalse 0\n", "")


@pytest.mark.parametrize("method", process.METHODS)
def test_the_workers_of_a_killed_consumer_end(method):
    body = (
        SCRIPT
        + """
    pids = {pid for _, pid in parallel(max_iter=50)}
    pids = set()
    for _, pid in parallel:
        pids.add(pid)
        if len(pids) == 2:
            print(*pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    )
    done = run(body, method)
    for pid in map(int, done.stdout.split()):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_of_the_consumer_gets_an_error_and_harms_nothing(kind):
    mux = pescador.ShuffledMux([Streamer(noise, 10**i) for i in range(4)])
    run = Seeded(mux, 1, states=("numpy",) if kind == "process" else ())
    if kind == "thread":
        run.streamer = pescador.ShuffledMux([Rows({"x": np.arange(99)}) for _ in range(4)])
    items = ParallelStreamer(run, 2, kind=kind).iterate(300)
    found = [plain(next(items))]
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            signal.alarm(20)
            try:
                # What had arrived before the fork may be given.
                for _ in items:
                    pass
            except PescadorError as error:
                verdict = int("belongs to the process" not in str(error))
            del items
            gc.collect()
        os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found + plain(list(items)) == plain(list(run(max_iter=300)))


@pytest.mark.parametrize("before", [1, 3])
def test_a_forked_child_that_goes_on_with_batches_gets_an_error(before):
    mux = pescador.StochasticMux([Streamer(drawn, i) for i in range(3)], 1, rate=1)
    parallel = ParallelStreamer(
        Seeded(mux, 0), 2, start_method="fork", read_ahead=100, open_ahead=20
    )
    stream = Streamer(pescador.buffer_stream, parallel, 16).iterate(60)
    for _ in range(before):
        next(stream)
    # Much has arrived that the child can take.
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            # That of the tests' time limit would wait for compiled code.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            try:
                # Of these, the memory of the first may be there.
                for _ in stream:
                    pass
            except PescadorError as error:
                verdict = int("belongs to the process" not in str(error))
        os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(stream)) == 60 - before


@pytest.mark.parametrize("keep_workers", [False, True])
def test_a_forked_child_that_ends_leaves_the_workers_alone(keep_workers):
    body = f"""
        def source(i):
            for j in range(100):
                time.sleep(0.001)
                yield j
        mux = pescador.ChainMux([pescador.Streamer(source, i) for i in range(3)])
        parallel = pescador.ParallelStreamer(mux, 2, keep_workers={keep_workers})
        items = parallel.iterate()
        next(items)
        if (child := os.fork()) == 0:
            del items, parallel
            sys.exit(0)
        os.waitpid(child, 0)
        time.sleep(0.3)
        print(1 + sum(1 for _ in items), len(list(parallel)))
        if (child := os.fork()) == 0:
            # Workers that are kept belong to its parent.
            n = len(list(parallel))
            sys.exit(n != 300)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(parallel)))
    """
    done = run(body)
    assert done.stdout == "300 300\n0 300\n", done.stderr


def test_closing_does_not_wait_long_for_threads_that_are_busy():
    entered, leave = threading.Event(), threading.Event()

    def source():
        yield 1
        entered.set()
        leave.wait(60)
        yield 2

    mux = pescador.ShuffledMux([Streamer(source)] * 4)
    parallel = ParallelStreamer(Seeded(mux, 1, states=()), 4, kind="thread")
    parallel.timeout = 0.2
    items = parallel.iterate()
    assert next(items) == 1
    assert entered.wait(20)
    items.close()
    # They go on to the end of their items.
    assert not leave.is_set()
    leave.set()
    for thread in threading.enumerate():
        if thread.name.startswith("pescador-"):
            thread.join(20)
            assert not thread.is_alive()


def test_threads_close_what_they_have_opened():
    events = []

    def source(i):
        events.append(1)
        try:
            for j in range(10**6):
                yield i, j
        finally:
            events.append(-1)

    streams = [Streamer(source, i) for i in range(6)]
    run = Seeded(pescador.StochasticMux(streams, 3, rate=5), 1, states=())
    parallel = ParallelStreamer(run, 2, kind="thread")
    list(parallel(max_iter=60))
    assert len(events) > 20
    assert sum(events) == 0


# ------------------------------------------------------------------------------- damaged orders


class Saying:
    """A consumer that has said something, and says no more."""

    def __init__(self, *messages):
        self.messages = collections.deque(messages)

    def wait(self, timeout):
        return True


# Whole orders, as words: an item, an item into places, a visit to begin, one to close.
NUMBERS, WORDS = st.integers(0, 2**60), st.lists(st.integers(0, 2**60), max_size=4)
WHOLE = st.one_of(
    st.builds(lambda number: [4 * number], NUMBERS),
    st.builds(lambda number, places: [4 * number + 3, len(places), *places], NUMBERS, WORDS),
    st.builds(lambda number, path: [4 * number + 1, 9, 0, len(path), *path], NUMBERS, WORDS),
    st.builds(lambda number: [4 * number + 2], NUMBERS),
)


@effort.examples(300)
@given(st.lists(WHOLE, max_size=3), WHOLE.filter(lambda order: len(order) > 1), st.data())
def test_an_order_that_says_that_it_has_other_words_than_there_are_is_refused(before, last, data):
    if data.draw(st.booleans()):
        # It ends before its last word.
        last = last[: data.draw(st.integers(1, len(last) - 1))]
    else:
        # Or says that it has more of them, or fewer than none.
        at = 1 if last[0] % 4 == 3 else 3
        last[at] = data.draw(st.integers(-(2**63), -1) | st.integers(len(last) - at, 2**63 - 1))
    words = [word for order in [*before, last] for word in order]
    message = protocol.ORDERS + struct.pack(f"<{1 + len(words)}q", 0, *words)
    worker = Production(Saying(message), None, None, None, None)
    with pytest.raises(PescadorError, match="order of the consumer is damaged"):
        next(worker)


# -------------------------------------------------------------------------------------- leaks


@pytest.mark.parametrize("kind", KINDS)
def test_iterations_with_workers_do_not_grow(kind):
    def iterate():
        streams = [Streamer(forever, 1), Streamer(data, 3), Streamer(failing, 3)]
        run = Seeded(pescador.ShuffledMux(streams), 1, states=())
        parallel = ParallelStreamer(run, 1, kind=kind)
        with contextlib.suppress(Failure):
            list(parallel(max_iter=30))
        next(parallel.iterate())
        with parallel.open() as stream:
            next(stream)
            state = stream.state_dict()
        with parallel.open(state=state) as stream:
            next(stream)

    # The interpreter keeps names that were looked up in types, and pickle makes new ones each time.
    clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def in_use():
        gc.collect()
        clear_caches()
        return sys.getallocatedblocks()

    rounds = 5
    for _ in range(rounds):
        iterate()
    measured = [in_use()]
    for _ in range(3):
        for _ in range(rounds):
            iterate()
        measured.append(in_use())
    assert min(b - a for a, b in itertools.pairwise(measured)) < rounds


HELD = []


def letting_go(i):
    # In a worker that was forked meanwhile, a collection would do the same.
    HELD.clear()
    for j in range(5):
        yield {"x": np.random.rand(1000), "i": np.array([i, j])}


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory")
def test_batches_stay_the_consumers_in_a_worker_that_was_forked_while_they_were_held():
    run = Seeded(pescador.StochasticMux([Streamer(letting_go, i) for i in range(9)], 4, rate=4), 1)
    parallel = ParallelStreamer(run, 1, restart=True, start_method="fork", max_bytes=2**21)
    expected = [batch["i"].tolist() for batch in pescador.buffer_stream(run.iterate(800), 4)]
    given, kept = [], []
    HELD.clear()
    for batch in Streamer(pescador.buffer_stream, parallel, 4).iterate(200):
        given.append(batch["i"].tolist())
        HELD.append(batch)
        kept.append(batch["x"].copy())
        if len(given) % 20 == 0:
            assert all((a["x"] == b).all() for a, b in zip(HELD[-20:], kept[-20:], strict=True))
            kill_one(random)
            del HELD[:-10]
    assert given == expected


class TookTooLong(Exception):
    pass


def test_an_exception_of_a_signal_handler_is_not_taken_for_the_end_of_the_plan():
    def end(signum, frame):
        raise TookTooLong

    # An item comes after millions of visits that are known to be empty.
    streams = [Streamer([]), Streamer(noise, 1)]
    how = {"weights": [1, 1e-12], "mode": "single_active", "prune_empty_streams": False}
    mux = pescador.StochasticMux(streams, 2, 9, **how)
    stream = ParallelStreamer(Seeded(mux, 0), 1, kind="thread").open()
    before = signal.signal(signal.SIGVTALRM, end)
    try:
        # After so many seconds of this process's own work.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
        with pytest.raises(TookTooLong):
            next(stream)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        stream.close()
