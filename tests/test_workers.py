"""How worker processes start and end: in any script, whatever signals, forks and limits do."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Mapping

import numpy as np
import psutil
import pytest
from scripts import run

import effort
import pescador
from pescador import PescadorError, Streamer, ZMQStreamer
from pescador._channel import consumer, process
from streams import data

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")

METHODS = process.METHODS


# --------------------------------------------------------------------------------- any script

WITHOUT_GUARD = """
    import multiprocessing
    print("run")
    class Damaged(Exception):
        pass
    scale = 2
    def numbers(n):
        for i in range(n):
            yield {"x": np.array(scale * i)}
        raise Damaged("of the script")
    def closure(n):
        return lambda: (yield from numbers(n))
    multiprocessing.set_start_method(sys.argv[1])
    for source in (pescador.Streamer(numbers, 3), pescador.Streamer(closure(2))):
        try:
            for item in pescador.ZMQStreamer(source):
                print(int(item["x"]))
        except Damaged as error:
            print(error, "raise Damaged" in str(error.__cause__) or stdin)
"""


@pytest.mark.parametrize("way", ["file", "stdin", "command"])
@pytest.mark.parametrize("method", METHODS)
def test_a_script_needs_no_guard_and_is_run_once(method, way, tmp_path):
    body = f"stdin = {way != 'file'}\n" + textwrap.dedent(WITHOUT_GUARD)
    path = tmp_path / "script.py" if way == "file" else None
    done = run(body, method, stdin=way == "stdin", path=path)
    expected = ["run", "0", "2", "4", "of the script True", "0", "2", "of the script True"]
    assert done.stdout.split("\n")[:-1] == expected, done.stderr
    assert done.stderr == ""


def test_the_default_is_fork_on_linux_unless_the_program_has_chosen():
    body = """
        import multiprocessing
        from pescador._channel.process import default_method
        for method in sys.argv[1:]:
            multiprocessing.set_start_method(method, force=True)
        print(default_method())
    """
    own = process.multiprocessing.get_all_start_methods()[0]
    assert run(body).stdout.strip() == ("fork" if sys.platform == "linux" else own)
    for method in set(METHODS) - {own}:
        assert run(body, method).stdout.strip() == method


def shown(n, array):
    kind = np.array(type(array).__name__)
    yield {"kind": kind, "sum": np.array(array.sum()), "x": np.array(array[:n])}


@pytest.mark.parametrize("method", METHODS)
def test_a_memmap_goes_to_a_worker_as_a_memmap(method, tmp_path):
    values = np.arange(4000.0).reshape(40, 100)
    np.save(tmp_path / "x.npy", values)
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    written = np.memmap(tmp_path / "w", np.float32, "w+", 400, (30, 7), "F")
    written[:] = np.arange(7)
    for array in (whole, whole[3:30:2, ::-1], whole.T, written, written[5:]):
        [item] = ZMQStreamer(Streamer(shown, 2, array), start_method=method)
        assert item["kind"] == "memmap"
        assert np.array_equal(item["x"], array[:2])
        assert item["sum"] == array.sum()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_memmap_shows_is_sent_if_its_file_is_another_now(method, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(5000))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[:] = 3
    np.save(tmp_path / "y.npy", np.zeros(5000))
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    for mapped, value in ((array, 5000), (private, 15000)):
        [item] = ZMQStreamer(Streamer(shown, 2, mapped), start_method=method)
        assert item["sum"] == value


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_can_be_started_in_a_worker_of_joblib(method):
    body = """
        from joblib import Parallel, delayed
        def numbers(n):
            for i in range(n):
                yield {"x": np.array(i)}
        def job(method):
            source = pescador.Streamer(numbers, 5)
            return len(list(pescador.ZMQStreamer(source, start_method=method)))
        print(Parallel(n_jobs=2)(delayed(job)(method) for method in (sys.argv[1], None)))
    """
    done = run(body, method)
    assert done.stdout == "[5, 5]\n", done.stderr


# -------------------------------------------------------------------------------------- silence


def silent(seconds):
    time.sleep(seconds)
    yield from data(2)


def test_a_worker_from_which_nothing_is_heard_is_an_error_that_says_so():
    lock = threading.Lock()

    def source():
        with lock:
            yield from data(2)

    stream = ZMQStreamer(Streamer(source), start_method="fork", start_timeout=0.5, timeout=0)
    with lock, pytest.raises(PescadorError, match=r"start_timeout=0.5 .*forked.* held a lock"):
        next(iter(stream))
    assert len(list(stream)) == 2


def test_without_a_limit_silence_is_waited_for_with_a_warning(monkeypatch):
    monkeypatch.setattr(consumer, "_SUSPICIOUS", 0.3)
    with pytest.warns(RuntimeWarning, match="nothing was heard") as caught:
        assert len(list(ZMQStreamer(Streamer(silent, 1)))) == 2
    # Python's own warning of a fork beside threads is no RuntimeWarning.
    [ours] = [warning for warning in caught if warning.category is RuntimeWarning]
    assert ours.filename == __file__


def test_a_lock_of_numpy_that_is_held_at_a_fork_stops_no_worker():
    busy = True

    def draw():
        while busy:
            np.random.standard_normal(300_000)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        stream = ZMQStreamer(Streamer(data, 3), start_method="fork", start_timeout=20)
        for _ in range(20):
            assert len(list(stream)) == 3
    finally:
        busy = False
        thread.join()


def test_a_forked_worker_can_compute_with_openmp_after_its_parent_has():
    body = """
        from sklearn.ensemble import HistGradientBoostingRegressor
        X = np.random.rand(2000, 4)
        def fit():
            model = HistGradientBoostingRegressor(max_iter=3).fit(X, X[:, 0])
            yield {"y": model.predict(X[:2])}
        fit = pescador.Streamer(fit)
        next(fit.iterate())
        stream = pescador.ZMQStreamer(fit, start_method="fork", start_timeout=30, timeout=0)
        print(len(list(stream)))
    """
    done = run(body, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.stdout == "1\n", done.stderr


# ---------------------------------------------------------------------------------------- forks


def forking(how):
    for i in range(30):
        if i == 10 and os.fork() == 0:
            if how == "exit":
                sys.exit(0)
            if how == "raise":
                raise ValueError("in the worker's child")
            if how == "return":
                return
        yield {"x": np.full(2000, i)}
        time.sleep(0.002)


@pytest.mark.parametrize("max_bytes", [1, 2**20])
@pytest.mark.parametrize("how", ["return", "exit", "raise", "go on"])
def test_a_process_that_the_stream_forks_says_nothing(how, max_bytes, capfd):
    items = list(ZMQStreamer(Streamer(forking, how), max_bytes=max_bytes))
    assert [int(item["x"][0]) for item in items] == list(range(30))
    assert [int(item["x"][-1]) for item in items] == list(range(30))


def test_a_child_of_the_consumer_that_ends_leaves_its_workers_alone():
    body = """
        def source():
            for i in range(100):
                time.sleep(0.005)
                yield {"x": np.full(3, i)}
        stream = pescador.ZMQStreamer(pescador.Streamer(source)).iterate()
        next(stream)
        child = os.fork()
        if child == 0:
            del stream
            sys.exit(0)
        os.waitpid(child, 0)
        print(1 + sum(1 for _ in stream))
    """
    assert run(body).stdout == "100\n"


@pytest.mark.parametrize("writer", ["parent", "child"])
def test_after_a_fork_each_process_has_its_own_arrays(writer):
    stream = iter(ZMQStreamer(Streamer(data, 9, (50_000,))))
    held = [next(stream) for _ in range(3)]
    go, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        verdict = 1
        with contextlib.suppress(BaseException):
            if writer == "child":
                for item in held:
                    item["X"][:] = -1
            else:
                os.read(go[0], 1)
                verdict = int(any((item["X"] != i).any() for i, item in enumerate(held)))
            os.write(done[1], b"x")
        os._exit(verdict)
    if writer == "child":
        os.read(done[0], 1)
        assert all((item["X"] == i).all() for i, item in enumerate(held))
        os.waitpid(child, 0)
    else:
        for item in held:
            item["X"][:] = -1
        held.clear()
        # What they were in serves again.
        assert [int(item["Y"]) for item in stream] == list(range(3, 9))
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stream.close()
    for end in (*go, *done):
        os.close(end)


def test_a_child_that_is_forked_while_an_item_is_waited_for_gets_an_error():
    body = """
        def source():
            for i in range(5):
                time.sleep(0.2)
                yield {"x": np.arange(3)}
        child = None
        def fork(*_):
            global child
            child = os.fork()
        signal.signal(signal.SIGALRM, fork)
        stream = pescador.ZMQStreamer(pescador.Streamer(source)).iterate()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            n = len(list(stream))
        except pescador.PescadorError as error:
            os._exit(42 if child == 0 and "belongs to the process" in str(error) else 1)
        print(n, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run(body)
    assert done.stdout == "5 42\n", done.stderr


# -------------------------------------------------------------------------------------- signals


class Timeout(Exception):
    """Raised by the handler of an alarm."""


@pytest.fixture
def alarm():
    """Have a function called when an alarm rings, at random moments while others run."""

    def at_random(handler, rounds, longest, body):
        is_set = False

        def ring(*args):
            # It may come late: another thread may get the signal, and pass it on.
            if is_set:
                handler(*args)

        signal.signal(signal.SIGALRM, ring)
        pause = random.Random(1)
        for _ in range(rounds * effort.TIMES):
            # It may ring when the body is over, too.
            with contextlib.suppress(Timeout, KeyboardInterrupt):
                try:
                    is_set = True
                    signal.setitimer(signal.ITIMER_REAL, pause.random() * longest + 1e-6)
                    body()
                finally:
                    is_set = False
                    signal.setitimer(signal.ITIMER_REAL, 0)

    yield at_random
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.mark.usefixtures("start_method")
def test_a_handler_that_raises_anywhere_leaves_nothing_behind(alarm):
    streamer = ZMQStreamer(Streamer(data, 3), timeout=1)
    list(streamer)
    before = psutil.Process().num_fds(), signal.getsignal(signal.SIGINT)

    def ring(*_):
        raise Timeout

    def epoch():
        for _ in streamer:
            pass

    alarm(ring, 60, 0.02, epoch)
    list(streamer)
    assert not process.multiprocessing.active_children()
    assert (psutil.Process().num_fds(), signal.getsignal(signal.SIGINT)) == before
    assert streamer.active == 0


def test_a_handler_may_start_a_worker_itself(alarm):
    streamer = ZMQStreamer(Streamer(data, 3), start_method="fork")
    counts = []

    def evaluate(*_):
        counts.append(len(list(streamer)))

    alarm(evaluate, 30, 0.01, lambda: counts.append(len(list(streamer))))
    assert len(counts) > 30
    assert set(counts) == {3}


def test_ctrl_c_while_a_worker_is_started_is_raised_and_leaves_nothing(alarm):
    streamer = ZMQStreamer(Streamer(data, 3), start_method="fork")
    list(streamer)
    before = psutil.Process().num_fds()

    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    alarm(interrupt, 30, 0.01, lambda: list(streamer))
    assert psutil.Process().num_fds() == before
    assert not process.multiprocessing.active_children()


def test_a_worker_runs_no_handler_of_the_script():
    body = """
        import multiprocessing
        def handler(*_):
            print("handled by the", "script" if os.getpid() == script else "worker", flush=True)
        script = os.getpid()
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGUSR1, handler)
        signal.set_wakeup_fd(wakeup := os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        busy, says_so = os.pipe()
        def slow():
            for i in range(2):
                yield {"fd": np.array(signal.set_wakeup_fd(-1))}
            os.write(says_so, b"x")
            time.sleep(1000)
        stream = pescador.ZMQStreamer(pescador.Streamer(slow), timeout=0.1, start_method="fork")
        stream = stream.iterate()
        print(int(next(stream)["fd"]))
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGUSR1)
        next(stream)
        os.read(busy, 1)
        popen = worker._popen
        stream.close()
        print(popen.returncode)
    """
    done = run(body)
    assert done.stdout.split() == ["-1", str(-signal.SIGTERM)], done.stderr


def test_where_somebody_else_takes_the_exit_status_nothing_is_kept():
    body = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        def source():
            for i in range(5):
                yield {"x": np.arange(3)}
        streamer = pescador.ZMQStreamer(pescador.Streamer(source), start_method="fork")
        list(streamer)
        def kept():
            return len(os.listdir("/dev/fd")), len(pescador._channel.process.mp_process._children)
        before = kept()
        for _ in range(10):
            assert len(list(streamer)) == 5
        print(before == kept())
    """
    done = run(body)
    assert done.stdout == "True\n", done.stderr


# --------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("extra", [250, 300, 520])
def test_where_addresses_are_scarce_workers_share_less_memory(extra):
    body = """
        import resource
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20),) * 2)
        def numbers(n, size):
            for i in range(n):
                yield {"x": np.full(size, i, np.float32)}
        for size in (4, 1 << 20, 10 << 20):
            print(len(list(pescador.ZMQStreamer(pescador.Streamer(numbers, 3, size)))))
        workers = [pescador.ZMQStreamer(pescador.Streamer(numbers, 5, 1 << 18)) for _ in range(6)]
        print(len(list(pescador.RoundRobinMux(workers, mode="exhaustive"))))
    """
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    done = run(body, str(extra))
    assert done.stdout.split() == ["3", "3", "3", "30"], done.stderr


# ---------------------------------------------------------------------------------------- items


class Lazy(Mapping):
    """Makes its arrays anew for each look, and each time others."""

    looks = 0

    def __iter__(self):
        return iter(["x", "y"])

    def __len__(self):
        return 2

    def __getitem__(self, key):
        Lazy.looks += 1
        return np.full(Lazy.looks, Lazy.looks, "u1" if Lazy.looks > 2 else "f8")


def lazy():
    yield Lazy()
    yield {"looks": np.array(Lazy.looks)}


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_an_item_is_read_once(max_bytes):
    item, looks = ZMQStreamer(Streamer(lazy), max_bytes=max_bytes, start_method="fork")
    assert {key: array.tolist() for key, array in item.items()} == {"x": [1.0], "y": [2.0, 2.0]}
    assert looks["looks"] == 2


# ------------------------------------------------------------------------------- random states


class Unseedable(np.random.PCG64):
    """A bit generator that takes no seed and cannot be copied."""

    def __init__(self):
        super().__init__(7)

    def __reduce__(self):
        raise TypeError("not to be copied")


@pytest.mark.parametrize("kind", [np.random.Philox, Unseedable])
def test_a_global_bit_generator_of_any_kind_keeps_no_worker_from_starting(kind):
    before = np.random.mtrand.get_bit_generator()
    np.random.mtrand.set_bit_generator(kind())
    try:
        epochs = [[item["x"].tolist() for item in ZMQStreamer(Streamer(uniform))] for _ in "ab"]
    finally:
        np.random.mtrand.set_bit_generator(before)
    assert epochs[0] != epochs[1]


def uniform():
    for _ in range(2):
        yield {"x": np.random.rand(3)}


def test_draws_of_torch_differ_from_worker_to_worker():
    torch = pytest.importorskip("torch")

    def source():
        yield {"x": torch.rand(3).numpy()}

    def epochs():
        torch.manual_seed(1)
        return [next(iter(ZMQStreamer(Streamer(source))))["x"].tolist() for _ in range(3)]

    first = epochs()
    assert len({number for epoch in first for number in epoch}) == 9
    torch.manual_seed(1)
    assert torch.rand(3).tolist() == first[0]


def test_nothing_is_mapped_after_the_last_array_has_died():
    stream = iter(ZMQStreamer(Streamer(data, 2, (50_000,))))
    held = next(stream)
    stream.close()
    assert (held["X"] == 0).all()

    def maps():
        return sum("memfd:pescador" in m.path for m in psutil.Process().memory_maps(grouped=False))

    before = maps()
    del held
    assert maps() == before - 1


@pescador.streamable
def numbers(n):
    yield from data(n)


@pytest.mark.parametrize("method", METHODS)
def test_streamers_of_decorated_functions_go_to_workers(method):
    assert len(list(ZMQStreamer(numbers(4), start_method=method))) == 4


# ------------------------------------------------------- what sources and others do to processes


@pytest.mark.parametrize("method", METHODS)
def test_a_source_that_runs_another_program_is_an_error_before_that_ends(method):
    body = """
        def source():
            yield {"pid": np.array(os.getpid())}
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execvp("sleep", ["sleep", "300"])
        source = pescador.Streamer(source)
        stream = pescador.ZMQStreamer(source, start_method=sys.argv[1], timeout=0)
        try:
            for item in stream:
                pid = int(item["pid"])
        except pescador.PescadorError as error:
            print(error)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("ended")
    """
    done = run(body, method)
    assert "closed the pipe to its consumer" in done.stdout, done.stderr
    assert "after 1 items\nended\n" in done.stdout


@pytest.mark.parametrize("size", [3, 2**20])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_source_opens_in_place_of_the_channel_is_not_written_to(method, size, tmp_path):
    def source():
        yield from data(3)
        # Without what the watch on the parent waits for, the worker would end at some time.
        parent = multiprocessing.parent_process().sentinel
        os.closerange(3, parent)
        os.closerange(parent + 1, 100)
        files = [open(tmp_path / str(i), "w+b") for i in range(60)]  # noqa: SIM115
        for _ in range(9):
            yield {"x": np.zeros(size)}
        del files

    with pytest.raises(PescadorError):
        list(ZMQStreamer(Streamer(source), start_method=method))
    files = list(tmp_path.iterdir())
    assert files
    assert not any(file.stat().st_size for file in files)


def test_a_worker_that_is_killed_by_a_signal_without_a_name_is_an_error_too():
    def source():
        yield from data(2)
        os.kill(os.getpid(), signal.SIGRTMIN + 3)

    with pytest.raises(PescadorError, match=f"signal {signal.SIGRTMIN + 3}, .* after 2 items"):
        list(ZMQStreamer(Streamer(source)))


WITHOUT_DESCRIPTORS = """
    import gc, resource
    def numbers():
        for i in range(3):
            yield {"x": np.array(i)}
    def descriptors():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))
    stream = pescador.ZMQStreamer(pescador.Streamer(numbers), start_method=sys.argv[1])
    other = iter(stream)
    next(other)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    refused = 0
    # To list descriptors takes one.
    os.close(held.pop())
    before = descriptors()
    received = 0
    while not received:
        try:
            received = len(list(stream))
        except pescador.PescadorError as error:
            refused += 1
            assert "could not be started" in str(error) and "pickled" not in str(error), error
        assert descriptors() == before, (descriptors(), before)
        os.close(held.pop())
        before -= 1
    print(refused > 0, len(list(other)), received)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("method", METHODS)
def test_without_descriptors_no_worker_starts_and_nothing_is_lost(method):
    done = run(WITHOUT_DESCRIPTORS, method)
    assert done.stdout == "True 2 3\n", done.stderr


@pytest.mark.skipif("forkserver" not in METHODS, reason="has no fork server")
@pytest.mark.parametrize("taken", [False, True])
def test_a_fork_server_that_was_killed_is_started_again(taken):
    body = """
        from pescador._channel import process
        def numbers():
            for i in range(3):
                yield {"x": np.array(i)}
        stream = pescador.ZMQStreamer(pescador.Streamer(numbers), start_method="forkserver")
        for _ in range(10):
            assert len(list(stream)) == 3
            server = process._server._forkserver_pid
            os.kill(server, signal.SIGKILL)
            if sys.argv[1] == "True":
                os.waitpid(server, 0)
        print(len(os.listdir("/proc/self/fd")) < 12)
    """
    done = run(body, str(taken))
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_children_that_threads_fork_at_the_same_time_have_arrays_of_their_own():
    body = """
        import threading
        sys.setswitchinterval(1e-6)
        def numbers():
            for i in range(8):
                yield {"x": np.full(2**18, i)}
        stream = pescador.ZMQStreamer(pescador.Streamer(numbers)).iterate()
        arrays = [next(stream)["x"] for _ in range(8)]
        def fork():
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    for array in arrays:
                        array[:] = -1
                    os._exit(0)
                os.waitpid(child, 0)
        threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.close()
        print(all((array == i).all() for i, array in enumerate(arrays)))
    """
    assert run(body).stdout == "True\n"


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_while_a_new_process_begins_is_for_the_consumer_alone(method):
    body = """
        import threading
        caught = []
        signal.signal(signal.SIGINT, lambda *_: caught.append(1))
        starting = True
        def press():
            while starting:
                os.killpg(0, signal.SIGINT)
                time.sleep(0.01)
        def numbers():
            for i in range(3):
                yield {"x": np.array(i)}
        thread = threading.Thread(target=press, daemon=True)
        thread.start()
        stream = pescador.ZMQStreamer(pescador.Streamer(numbers), start_method=sys.argv[1])
        print(len(list(stream)))
        starting = False
        thread.join()
        print(len(caught) > 0)
    """
    done = run(body, method, start_new_session=True)
    assert (done.stdout, done.stderr) == ("3\nTrue\n", "")
