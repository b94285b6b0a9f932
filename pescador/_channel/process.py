"""How a worker process is started, and how it ends.

multiprocessing does the work, on each system and with each start method. What differs for workers:

* The user's script is not run again, so it needs no ``if __name__ == "__main__":``. What pickle
  cannot find by its name (functions of the script, closures, lambdas) travels by value, as
  cloudpickle writes it.
* A process that is daemonic itself may have workers, which watch their parent and end with it.
* A process that was forked from the consumer does not take the consumer's workers for its own.
"""

import io
import math
import mmap
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, reduction, spawn
from multiprocessing import process as mp_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, ClassVar, cast

import cloudpickle
import numpy as np

from ..exceptions import PescadorError
from . import watch
from .protocol import HEARTBEAT

# The start methods that this system has.
METHODS = tuple(
    method
    for method in ("fork", "spawn", "forkserver")
    if method in multiprocessing.get_all_start_methods()
)


def usable_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_method() -> str:
    """Return the start method of workers where none is named.

    On Linux it is ``fork``, with every Python: all that a script has made is there, also what
    cannot be pickled. Elsewhere it is Python's own. A program that has chosen another method than
    Python's own, by ``multiprocessing.set_start_method``, gets that.
    """
    own = multiprocessing.get_all_start_methods()[0]
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen in METHODS and chosen != own:
        return chosen
    return "fork" if sys.platform == "linux" else own


# ------------------------------------------------------------------------------------- start


def _rebound(function: Any, **names: Any) -> Any:
    """Return a function that is the same, but finds other things under some global names."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _preparation_data(name: str) -> dict[str, Any]:
    """Return what a new process has to know, without the script that it is to run first."""
    data = spawn.get_preparation_data(name)
    # joblib's processes have a start method of their own, which others do not know.
    if data.get("start_method") not in METHODS:
        data.pop("start_method", None)
    return {key: value for key, value in data.items() if not key.startswith("init_main_from_")}


# multiprocessing asks this module what a new process has to do.
_spawn = SimpleNamespace(**{**vars(spawn), "get_preparation_data": _preparation_data})
# A worker starts while this is held, a plain lock would not do: other code of this thread (a
# finalizer, what is called at a fork) may start another meanwhile.
_starting = threading.RLock()
# Found before there are workers: a new process is slow in whatever it does first.
_SIGNALS = tuple(signal.valid_signals())
# Workers of this process that have not ended.
_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


@contextmanager
def _may_have_children() -> Iterator[None]:
    """Let a daemonic process start a worker.

    Python refuses it because the children of a daemonic process would survive its end. Workers
    watch their parent, and do not.
    """
    current = multiprocessing.current_process()
    with _starting:
        daemon = current.daemon
        try:
            if daemon:
                current.daemon = False
            yield
        finally:
            if daemon:
                current.daemon = True


def _after_fork_in_child() -> None:
    """Leave the workers to the process that started them."""
    global _starting, _server
    # Another thread may have held it.
    _starting = threading.RLock()
    if "forkserver" in METHODS:
        _server = forkserver.ForkServer()
    for worker in _workers:
        # multiprocessing would end its own children with the process.
        mp_process._children.discard(worker)  # type: ignore[attr-defined]
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# Classes with a name in this module: an instance is pickled on its way to the new process.

if "fork" in METHODS:
    from multiprocessing import popen_fork

    class _PopenFork(popen_fork.Popen):
        def _launch(self, process_obj: BaseProcess) -> None:
            made: list[int] = []

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                made.extend(ends)
                return ends

            noted = SimpleNamespace(**{**vars(os), "pipe": pipe})
            launch = popen_fork.Popen._launch  # type: ignore[attr-defined]
            try:
                _rebound(launch, os=noted)(self, process_obj)
            except OSError:
                # multiprocessing leaves the pipes open if there is no process to be had.
                for descriptor in made:
                    os.close(descriptor)
                raise

    class Forked(multiprocessing.context.ForkProcess):
        """A worker that begins as a copy of this process."""

        def _bootstrap(self, *args: Any, **named: Any) -> int:
            # multiprocessing closes the standard input. A thread that reads it, in `input` say, had
            # its lock at the fork, for which this process would wait for ever. It closes this one.
            self._stdin = sys.stdin
            if sys.stdin is not None:
                sys.stdin = io.StringIO()
            code: int = super()._bootstrap(*args, **named)  # type: ignore[misc]
            return code

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            return _PopenFork(process_obj)


if "spawn" in METHODS:
    if sys.platform == "win32":
        from multiprocessing import popen_spawn_win32

        class _PopenSpawn(popen_spawn_win32.Popen):
            __init__ = _rebound(popen_spawn_win32.Popen.__init__, spawn=_spawn)
    else:
        from multiprocessing import popen_spawn_posix

        class _PopenSpawn(popen_spawn_posix.Popen):
            _launch = _rebound(
                popen_spawn_posix.Popen._launch,  # type: ignore[attr-defined]
                spawn=_spawn,
            )

    class Spawned(multiprocessing.context.SpawnProcess):
        """A worker in a new Python."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            return _PopenSpawn(process_obj)


if "forkserver" in METHODS:
    from multiprocessing import forkserver, popen_forkserver

    # Not multiprocessing's own server, which may have run the script. This one has loaded what each
    # worker needs.
    _server = forkserver.ForkServer()

    def _connect(descriptors: list[int]) -> tuple[int, int]:
        _need_descriptors()
        _server.set_forkserver_preload([f"{__package__}.worker"])
        return _server.connect_to_new_process(descriptors)

    def _need_descriptors() -> None:
        """Raise OSError where a start would fail halfway, which would end the server."""
        room: list[int] = []
        try:
            for _ in range(4):
                room.extend(os.pipe())
        finally:
            for descriptor in room:
                os.close(descriptor)

    _launch_by_server = _rebound(
        popen_forkserver.Popen._launch,  # type: ignore[attr-defined]
        spawn=_spawn,
        forkserver=SimpleNamespace(
            connect_to_new_process=_connect,
            read_signed=forkserver.read_signed,
        ),
    )

    class _PopenForkserver(popen_forkserver.Popen):
        def _launch(self, process_obj: BaseProcess) -> None:
            global _server
            try:
                _launch_by_server(self, process_obj)
            except (ChildProcessError, ConnectionError, EOFError):
                # The server was killed, and multiprocessing does not know: it happened just now, or
                # somebody else has taken the exit status.
                if self.finalizer is not None:
                    self.finalizer()
                with suppress(ChildProcessError):
                    _server._stop()  # type: ignore[attr-defined]
                _server = forkserver.ForkServer()
                self._fds: list[int] = []
                _launch_by_server(self, process_obj)

    class FromServer(multiprocessing.context.ForkServerProcess):
        """A worker that begins as a copy of a server process."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            return _PopenForkserver(process_obj)


def new_process(method: str, target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
    """Return a worker process that is not started yet."""
    kind: Any = {"fork": "Forked", "spawn": "Spawned", "forkserver": "FromServer"}[method]
    return cast(BaseProcess, globals()[kind](target=target, args=args, daemon=True))


if sys.platform == "win32":
    _Connection = connection.PipeConnection
else:
    _Connection = connection.Connection


class _End(_Connection):
    """An end of a pipe that is closed once, by its owner or by itself.

    Of what is garbage together, the collector may finalize the pipe first. One of multiprocessing
    closes its descriptor then, but keeps the number, and its owner would close it again, or another
    file that has got it meanwhile.
    """

    def __del__(self) -> None:
        self.close()


def pipe(method: str) -> Any:
    """Return the two ends of a pipe; the first one is for this process."""
    context: BaseContext = multiprocessing.get_context(method)
    ours, other = context.Pipe()
    ours.__class__ = _End
    return ours, other


@contextmanager
def _without_ctrl_c(has_tracker: bool) -> Iterator[None]:
    """Have processes begin with SIGINT blocked, until they do as workers do with signals.

    Ctrl-C reaches them, too, and a new Python would end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    if has_tracker:
        # multiprocessing starts it before other processes, and unblocks the signal then.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(worker: BaseProcess) -> None:
    """Start a worker process."""
    forks = worker._start_method == "fork"  # type: ignore[attr-defined]
    with _may_have_children(), _without_ctrl_c(has_tracker=not forks):
        worker.start()
        _workers.add(worker)


class Parcel:
    """What a worker gets to work with; pickled by value where it goes to another Python.

    Parameters
    ----------
    *contents : object
        What `open` returns there.
    """

    def __init__(self, *contents: Any) -> None:
        self.contents = contents
        self.written: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        _Pickler(buffer).dump(self.contents)
        return Parcel, (), {"written": buffer.getvalue()}

    def open(self) -> tuple[Any, ...]:
        """Return the contents, once. Errors in loading them are raised here."""
        if self.written is not None:
            self.contents = cloudpickle.loads(self.written)
            self.written = None
        return self.contents


def _reduce_memmap(array: Any) -> tuple[Any, ...]:
    """Have a memmap mapped again in another process, if its file can be found there."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if not _is_of_its_file(base) or array.dtype.hasobject:
        return cast("tuple[Any, ...]", np.array(array, subok=False).__reduce_ex__(5))
    start = array.ctypes.data - base.ctypes.data
    layout = (array.shape, array.dtype, start, array.strides, array.flags.writeable)
    mode = "r" if base.mode == "r" else "r+"
    return _remap, ((base.filename, np.uint8, mode, base.offset, (base.nbytes,)), layout)


def _remap(file: Any, layout: tuple[Any, ...]) -> Any:
    shape, dtype, start, strides, writeable = layout
    base = np.memmap(*file)
    array: Any = np.ndarray.__new__(np.memmap, shape, dtype, base, start, strides)
    array.__array_finalize__(base)
    array.flags.writeable = writeable
    return array


def _is_of_its_file(base: Any) -> bool:
    """Tell whether an array maps the file that has its name now."""
    # What was written with mode "c" is in no file.
    if not isinstance(base, np.memmap) or base.filename is None or base.mode == "c":
        return False
    try:
        again = np.memmap(base.filename, np.uint8, "r", base.offset, (base.nbytes,))
    except (OSError, ValueError):
        return False
    try:
        with open("/proc/self/maps", "rb") as file:
            maps = file.read()
    except OSError:
        return True
    before, now = _mapped(maps, base), _mapped(maps, again)
    return before == now and before is not None


def _mapped(maps: bytes, array: Any) -> list[bytes] | None:
    """Return offset, device and inode of what an array maps, of the system's list of maps."""
    page = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    found = maps.find(b"%08x-" % page)
    return None if found < 0 else maps[found:].split(maxsplit=5)[2:5]


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    """Keep the name of the file, for tracebacks; cloudpickle writes another instead."""
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)[:2]
    return make, tuple(code.co_filename if a == "<dynamic-code>" else a for a in arguments)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, that knows what multiprocessing sends to processes as well."""

    dispatch_table: ClassVar = ChainMap(
        {np.memmap: _reduce_memmap, CodeType: _reduce_code},
        reduction.ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        cloudpickle.Pickler.dispatch_table,
    )


# ------------------------------------------------------------------------------- in the worker


def become_worker(forked: bool) -> None:
    """Free a worker process of what it has from the process that started it."""
    # The script's handlers are for the process that it runs in. What it handles there is not to
    # end its workers, but for SIGTERM, by which they are ended.
    for number in _SIGNALS:
        if callable(signal.getsignal(number)):
            ends = number in (signal.SIGTERM, getattr(signal, "SIGCHLD", None))
            signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
    # Ctrl-C reaches the whole process group. The consumer decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if forked:
        _use_one_thread()
    _end_with_parent()


def _use_one_thread() -> None:
    """Have libraries that use OpenMP run without threads, which did not survive the fork.

    As torch does in the workers of its own loaders. One that has started threads in the parent
    would wait for them for ever.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    threadpoolctl = sys.modules.get("threadpoolctl")
    if threadpoolctl is not None:
        threadpoolctl.threadpool_limits(1, user_api="openmp")


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, whatever it is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Processes that were forked later may keep its sentinel open; then its number tells. (Under
    # forkserver it is not our parent, but there they inherit nothing either.)
    number = os.getppid()
    if sys.platform != "win32":
        os.set_inheritable(parent.sentinel, False)
    with needs_thread():
        watch.exit_with(
            parent.sentinel, number if number == parent.pid else 0, int(HEARTBEAT * 1000)
        )


@contextmanager
def needs_thread() -> Iterator[None]:
    """Say what is missing where a worker gets no thread."""
    try:
        yield
    except RuntimeError as error:
        raise PescadorError(
            f"the worker {error}: its memory, or the number of threads, is limited"
        ) from error


# --------------------------------------------------------------------------------------- end


def is_ready(pipe: Connection, timeout: float | None, *, to_write: bool = False) -> bool:
    """Wait until a pipe can be read, or written to, for some seconds; tell whether it can."""
    if sys.platform == "win32":
        return to_write or pipe.poll(timeout)
    # Connection.poll makes a selector, which takes ten times as long.
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLOUT if to_write else select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def check_owner(owner: int) -> None:
    """Raise in another process than the one that began a stream, such as one that it forked."""
    if os.getpid() != owner:
        raise PescadorError(
            "a stream from a worker or a server belongs to the process that began it; start an "
            "iteration of its own in this one"
        )


def is_gone(worker: BaseProcess) -> bool:
    """Tell whether a worker has ended, whoever took its exit status."""
    if not worker.is_alive():
        return True
    if sys.platform == "win32" or worker._start_method == "forkserver":  # type: ignore[attr-defined]
        return False
    # Our own child. Where SIGCHLD is ignored, or somebody waits for any child, multiprocessing does
    # not know.
    try:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        else:
            os.kill(worker.pid or 0, 0)
    except (ChildProcessError, ProcessLookupError):
        return True
    return False


def wait_for_end(worker: BaseProcess, timeout: float | None, drain: Callable[[], object]) -> None:
    """Wait until a worker has ended, at most for some seconds; call `drain` all the while."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    pause = 0.0
    # In steps: its own children may keep the sentinel open, and it may wait for us to read.
    while not wait([worker.sentinel], max(0, min(pause, deadline - time.monotonic()))):
        if time.monotonic() >= deadline or is_gone(worker):
            return
        drain()
        pause = min(pause + 0.002, HEARTBEAT)


def is_gone_within(worker: BaseProcess, seconds: float) -> bool:
    """Wait for the end of a worker for some seconds; tell whether it has ended.

    Not by `join`, which would wait for ever for a process that has closed its sentinel and lives.
    """
    deadline = time.monotonic() + seconds
    wait([worker.sentinel], seconds)
    pause = 0.0
    while not is_gone(worker):
        if time.monotonic() >= deadline:
            return False
        pause = min(pause + 0.0005, 0.05)
        time.sleep(pause)
    return True


def end(worker: BaseProcess) -> None:
    """Make a worker end, if it has not, and forget it."""
    gone = is_gone_within(worker, 1 if wait([worker.sentinel], 0) else 0)
    # A stopped process is beyond the reach of anything but the last.
    for stop in (worker.terminate, worker.kill):
        if gone:
            break
        stop()
        gone = is_gone_within(worker, 1)
    _workers.discard(worker)
    if not gone:
        return
    if worker.is_alive():
        # Somebody else has its exit status. Python would wait for it for ever.
        worker._popen.returncode = 0  # type: ignore[attr-defined]
    with suppress(ValueError):
        worker.close()
