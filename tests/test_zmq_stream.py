"""ZMQStreamer: the same items in the same order, or an error that says why."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import numpy as np
import psutil
import pytest
import zmq

import pescador
from pescador import ArgumentError, DataError, PescadorError, Streamer, ZMQStreamer, zmq_stream
from streams import data

pytestmark = pytest.mark.usefixtures("start_method")


def same_items(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert a[key].shape == b[key].shape
            assert a[key].tobytes() == b[key].tobytes()


ARRAYS = {
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3), np.float32),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(24).reshape(4, 6)[::2, ::3],
    "reversed": np.arange(5)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "big endian": np.arange(3, dtype=">i4"),
    "half": np.ones(3, np.float16),
    "complex": np.ones(2, np.complex64),
    "bool": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "no text": np.array([""]),
    "dates": np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    "spans": np.array([1, 2], "timedelta64[25s]"),
    "packed": np.zeros(2, [("a", "i1"), ("b", "f8", (2,)), ("c", [("d", "S3")])]),
    "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "offsets": np.zeros(
        2,
        np.dtype({"names": ["b", "a"], "formats": ["f4", "i2"], "offsets": [8, 2], "itemsize": 16}),
    ),
    "void": np.zeros(2, "V5"),
    "read only": np.frombuffer(b"12345678", np.int32),
    "ключ": np.arange(2),
    3: np.arange(2),
    2.5: np.arange(2),
    None: np.arange(2),
    (1, ("a", b"b")): np.arange(2),
    b"key": np.arange(2),
}


def every_kind():
    yield ARRAYS
    yield {}
    yield {"x": np.arange(3)}
    yield {}


@contextlib.contextmanager
def files_of_at_most(size):
    """Let this process and its workers have no larger file, and no more memory to share."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The ways that items take: shared memory, messages, and messages where shared memory runs out.
TRANSPORTS = {
    "shared": contextlib.nullcontext,
    "messages": lambda: files_of_at_most(4096),
    "both": lambda: files_of_at_most(450_000),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_items_arrive_in_order_with_every_dtype_layout_and_key(transport):
    with TRANSPORTS[transport]():
        received = list(ZMQStreamer(Streamer(every_kind)))
    same_items(received, list(every_kind()))
    for array in received[0].values():
        assert array.flags.aligned
        assert array.flags.writeable
    assert received[0]["fortran"].flags.f_contiguous


def test_a_stream_can_be_iterated_again_and_bounded():
    streamer = ZMQStreamer(Streamer(data, 6))
    for max_iter in (None, 3, 0, 100):
        same_items(list(streamer.iterate(max_iter)), list(Streamer(data, 6).iterate(max_iter)))
    same_items(list(streamer.cycle(10)), list(Streamer(data, 6).cycle(10)))
    assert streamer.active == 0


def test_an_iterable_is_streamed_too():
    items = [{"x": np.arange(3)}] * 2
    same_items(list(ZMQStreamer(items)), items)


def test_a_seeded_mux_gives_the_same_samples_in_a_worker():
    mux = pescador.StochasticMux([Streamer(data, 9) for _ in range(5)], 3, 4, random_state=0)
    batches = Streamer(pescador.buffer_stream, Streamer(mux, max_iter=40), 8)
    same_items(list(ZMQStreamer(batches)), list(batches))


def test_a_mux_over_background_streams_stops_its_workers():
    mux = pescador.ShuffledMux([ZMQStreamer(Streamer(data, 5)) for _ in range(3)], random_state=0)
    reference = pescador.ShuffledMux([Streamer(data, 5)] * 3, random_state=0)
    same_items(list(mux.iterate(40)), list(reference.iterate(40)))


def test_an_exception_in_the_worker_is_raised_after_the_items_before_it():
    def source():
        yield from data(3)
        raise KeyError("lost")

    iteration = iter(ZMQStreamer(Streamer(source)))
    received = [next(iteration) for _ in range(3)]
    same_items(received, list(data(3)))
    with pytest.raises(KeyError, match="lost") as caught:
        next(iteration)
    assert isinstance(caught.value.__cause__, PescadorError)
    assert 'raise KeyError("lost")' in str(caught.value.__cause__)


class Unpicklable(Exception):
    """Comes through pickle as something else, or not at all."""

    def __init__(self, a, b):
        super().__init__(a)


def test_an_exception_that_cannot_be_pickled_is_described():
    def source():
        yield from data(1)
        raise Unpicklable("no way", 2)

    with pytest.raises(PescadorError, match="Unpicklable: no way"):
        list(ZMQStreamer(Streamer(source)))


def test_leaving_the_worker_by_sys_exit_is_an_error():
    def source():
        yield from data(1)
        sys.exit(0)

    with pytest.raises(PescadorError, match="SystemExit"):
        list(ZMQStreamer(Streamer(source)))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: os._exit(0), "exited with code 0"),
        (lambda: os._exit(3), "exited with code 3"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_says_how(end, message):
    def source():
        yield from data(2)
        # Long enough for the items to have left the process.
        time.sleep(0.3)
        faulthandler.disable()
        end()
        yield from data(2)

    iteration = iter(ZMQStreamer(Streamer(source)))
    next(iteration), next(iteration)
    with pytest.raises(PescadorError, match=message):
        next(iteration)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"x": [1, 2]}, "key 'x' holds a list"),
        ({"x": np.array([None])}, "dtype object"),
        ({"x": np.zeros(2, [("a", object)])}, "key 'x'"),
        ({"x": np.ma.masked_array([1, 2], [True, False])}, "masked"),
        ({frozenset(): np.zeros(2)}, "frozenset"),
        (np.zeros(3), "ndarray"),
        ([1, 2], "list"),
    ],
)
def test_an_item_that_cannot_be_sent_is_a_data_error_that_says_what(item, message):
    with pytest.raises(DataError, match=message):
        list(ZMQStreamer([{"x": np.zeros(1)}, item]))


def test_closing_early_ends_the_worker_and_runs_its_cleanup(tmp_path):
    mark = tmp_path / "closed"

    def source():
        try:
            while True:
                yield {"x": np.zeros(3)}
        finally:
            mark.touch()

    with contextlib.closing(iter(ZMQStreamer(Streamer(source)))) as iteration:
        next(iteration)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()
    assert mark.exists()


def test_a_worker_that_does_not_stop_in_time_is_terminated():
    def source():
        yield {"x": np.zeros(3)}
        time.sleep(1000)

    iteration = iter(ZMQStreamer(Streamer(source), timeout=0.1))
    next(iteration)
    assert multiprocessing.active_children()
    iteration.close()
    assert not multiprocessing.active_children()


def run_script(body, **kwargs):
    script = textwrap.dedent(
        """
        import gc, os, signal, time, numpy as np, pescador
        import multiprocessing
        def source(n=10**9):
            for i in range(n):
                yield {"x": np.array(i)}
        """
    ) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, **kwargs
    )


def test_an_open_iteration_may_be_garbage_or_outlive_the_script():
    done = run_script(
        """
        class Loader:
            def __init__(self):
                self.me = self
                self.stream = iter(pescador.ZMQStreamer(pescador.Streamer(source)))
        loader = Loader()
        next(loader.stream)
        del loader
        gc.collect()
        assert not multiprocessing.active_children()
        last = iter(pescador.ZMQStreamer(pescador.Streamer(source)))
        next(last)
        print("end")
        """
    )
    assert done.stdout == "end\n", done.stderr


def test_a_worker_that_has_ended_leaves_all_its_items():
    with contextlib.closing(iter(ZMQStreamer(Streamer(data, 5)))) as iteration:
        received = [next(iteration)]
        for worker in multiprocessing.active_children():
            worker.join()
        received += iteration
        same_items(received, list(data(5)))


def test_a_forked_child_that_drops_the_iteration_leaves_it_to_its_parent():
    done = run_script(
        """
        stream = iter(pescador.ZMQStreamer(pescador.Streamer(source, 1000)))
        next(stream)
        child = os.fork()
        if child == 0:
            try:
                stream.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print(1 + sum(1 for _ in stream))
        """
    )
    assert done.stdout == "1000\n", done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_consumer_takes_its_worker_with_it_whatever_that_is_busy_with(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import itertools, multiprocessing, os, time
            import numpy as np
            import pescador

            def source():
                yield {{"pid": np.array(os.getpid())}}
                # Lets no other thread run Python, and never ends.
                sum(itertools.repeat(0))

            if __name__ == "__main__":
                multiprocessing.set_start_method({method!r})
                stream = iter(pescador.ZMQStreamer(pescador.Streamer(source)))
                print(int(next(stream)["pid"]), flush=True)
                time.sleep(1000)
            """
        )
    )
    consumer = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(consumer.stdout.readline()))
    consumer.kill()
    consumer.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(timeout=10)


def test_an_exception_of_a_class_that_is_not_known_here_is_described():
    def source():
        yield from data(1)
        module = types.ModuleType("only_there")
        sys.modules["only_there"] = module
        exec("class Boom(Exception): pass", module.__dict__)
        raise module.Boom("the real cause")

    with pytest.raises(PescadorError, match="the real cause"):
        list(ZMQStreamer(Streamer(source)))


def test_the_worker_function_speaks_to_a_consumer_of_its_own():
    with zmq.Context() as context, context.socket(zmq.PAIR) as consumer:
        port = consumer.bind_to_random_port("tcp://127.0.0.1")
        worker = threading.Thread(
            target=zmq_stream.zmq_worker, args=(port, Streamer(data, 3), threading.Event())
        )
        worker.start()
        received = []
        with contextlib.suppress(StopIteration):
            while True:
                received.append(zmq_stream.zmq_recv_data(consumer))
        worker.join()
        same_items(received, list(data(3)))


def test_iterating_leaves_no_descriptor_behind():
    streamer = ZMQStreamer(Streamer(data, 2))
    list(streamer)
    before = psutil.Process().num_fds()
    for _ in range(5):
        list(streamer)
        next(iter(streamer))
    assert psutil.Process().num_fds() <= before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_consumer_holds_the_worker_back(transport):
    def source():
        for i in range(100):
            yield {"x": np.zeros(2**17), "made": np.array(i), "at": np.array(time.monotonic())}

    with TRANSPORTS[transport]():
        iteration = iter(ZMQStreamer(Streamer(source), max_bytes=10 * 2**20))
        first = next(iteration)
        time.sleep(0.5)
        resumed = time.monotonic()
        items = [first, *iteration]
    assert [int(item["made"]) for item in items] == list(range(100))
    # 1 MiB each: the worker could make no more than about ten while nobody took any.
    assert sum(item["at"] < resumed for item in items) <= 12


def test_no_port_is_taken_and_no_thread_of_zeromq_started():
    def connections():
        return set(psutil.Process().net_connections("tcp"))

    def threads():
        return {thread.id for thread in psutil.Process().threads()}

    before = connections(), threads()
    # The second and the fourth find no room in the memory.
    sizes = [3, 200_000, 3, 300_000, 5]
    items = [{"x": np.full(size, i)} for i, size in enumerate(sizes)]
    # None of these ports is to be had: they belong to the system.
    stream = iter(ZMQStreamer(items, min_port=1, max_port=2, max_tries=1, max_bytes=2**16))
    for item in items:
        same_items([next(stream)], [item])
        assert (connections(), threads()) == before
    stream.close()


def test_a_worker_may_have_a_worker():
    same_items(list(ZMQStreamer(ZMQStreamer(Streamer(data, 4)))), list(data(4)))
    mux = pescador.RoundRobinMux([ZMQStreamer(Streamer(data, 3)) for _ in range(2)], "exhaustive")
    same_items(list(ZMQStreamer(mux)), list(mux))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("streamer", 3),
        ("min_port", 0),
        ("min_port", "80"),
        ("max_port", 70000),
        ("max_port", 1000),
        ("max_tries", 0),
        ("copy", "yes"),
        ("timeout", -1),
        ("timeout", "5"),
        ("timeout", True),
        ("timeout", float("nan")),
        ("max_bytes", 0),
        ("start_method", "thread"),
        ("start_timeout", 0),
    ],
)
def test_bad_arguments_are_refused_by_name(argument, value):
    arguments = {"streamer": Streamer(data, 1)} | {argument: value}
    with pytest.raises(ArgumentError, match=f"{argument}="):
        ZMQStreamer(**arguments)
    if argument != "streamer":
        streamer = ZMQStreamer(Streamer(data, 1))
        setattr(streamer, argument, value)
        with pytest.raises(ArgumentError, match=f"{argument}="):
            next(iter(streamer))
        assert streamer.active == 0
    with pytest.raises(ArgumentError, match="max_iter="):
        next(ZMQStreamer(Streamer(data, 1)).iterate(-1))


def test_a_number_of_seconds_may_be_one_of_numpy():
    times = {"timeout": np.int64(5), "start_timeout": np.float32(30)}
    assert len(list(ZMQStreamer(Streamer(data, 3), **times))) == 3


def test_the_streamer_itself_can_be_pickled_and_copied():
    streamer = pickle.loads(pickle.dumps(ZMQStreamer(Streamer(data, 2), timeout=3)))
    assert streamer.timeout == 3
    same_items(list(streamer), list(data(2)))


# Whether a script has chosen Python's own method, forkserver from 3.14 on, cannot be told.
@pytest.mark.parametrize(
    "method", sorted({"spawn", "forkserver"} - {multiprocessing.get_all_start_methods()[0]})
)
def test_other_start_methods_work(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            import numpy as np
            import pescador

            def source(n):
                for i in range(n):
                    yield {{"x": np.array(i)}}

            if __name__ == "__main__":
                multiprocessing.set_start_method({method!r})
                stream = pescador.ZMQStreamer(pescador.Streamer(source, 3))
                print([int(item["x"]) for item in stream])
                try:
                    list(pescador.ZMQStreamer(pescador.Streamer(i for i in range(3))))
                except pescador.PescadorError as error:
                    print("refused:", error)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("[0, 1, 2]\nrefused: the worker of")
    assert done.stderr == ""


def test_messages_can_be_sent_and_received_over_any_socket():
    context = zmq.Context()
    a, b = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    a.bind("inproc://test")
    b.connect("inproc://test")
    for copy in (True, False):
        for item in every_kind():
            zmq_stream.zmq_send_data(a, item, copy=copy)
            if item:
                same_items([zmq_stream.zmq_recv_data(b, copy=copy)], [item])
            else:
                with pytest.raises(StopIteration):
                    zmq_stream.zmq_recv_data(b, copy=copy)
    context.destroy(linger=0)
