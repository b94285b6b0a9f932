"""Break ParallelStreamer at random moments: make soak-parallel, or soak_parallel.py --help.

Each case is a random tree with random options, and is read in one or more parts, each with other
options. While it is read, workers are killed or stopped, and the consumer is interrupted, closes
the stream, drops it, saves its state and goes on from there, or forks. Whatever happens, the items
must be those of ``workers=0``, in order and whole; an error must be one that was to be expected;
and nothing may be left: processes, threads, descriptors, mappings of shared memory.

A process of its own does what has to be done from outside. It also watches: after a minute without
progress it has all processes write their tracebacks, and ends them.
"""

import argparse
import collections
import contextlib
import faulthandler
import functools
import gc
import mmap
import os
import pathlib
import random
import signal
import struct
import sys
import tempfile
import threading
import time
import warnings
from multiprocessing import Pipe

import numpy as np
import psutil

import pescador

ME = psutil.Process()
# How many seconds without an item are too many.
PATIENCE = 60
# So many losses in a row are made good, see pescador.parallel.processes.
ATTEMPTS = 3


class Boom(Exception):
    """What a stream raises."""


# ------------------------------------------------------------------------------------- streams


def explain():
    """Have this process, a worker maybe, write its tracebacks when it is asked to."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def item_of(i, j, size, form, value=0.0):
    """An item that can be told from all others, and that is whole if it is like another."""
    if form == "array":
        return {"i": np.array([i, j]), "v": np.array(value), "x": np.full(size, j, np.float32)}
    if form == "ragged":
        return {"i": np.array([i, j]), "x": np.full(size * (j % 3), j, np.int16)}
    return ("item", i, j, value, "x" * (size % 1000))


def counting(i, n, size, form, pace):
    """Items that follow from nothing but their numbers."""
    explain()
    j = 0
    while n is None or j < n:
        if pace and j % 5 == 2:
            time.sleep(pace)
        yield item_of(i, j, size, form)
        j += 1


def drawing(i, most, size, form, pace):
    """As many items as are drawn, with values that are drawn."""
    explain()
    for j in range(np.random.randint(1, most + 1)):
        if pace and j % 5 == 2:
            time.sleep(pace)
        yield item_of(i, j, size, form, np.random.rand())


def spawned(i, most, size, form, pace, *, rng):
    """The same, from a generator of its own."""
    explain()
    for j in range(rng.integers(1, most + 1)):
        if pace and j % 5 == 2:
            time.sleep(pace)
        yield item_of(i, j, size, form, rng.random())


class Resumable:
    """Items whose iterator tells where it is, or says that it cannot."""

    def __init__(self, i, n, size, form, pace, cannot):
        self.what = i, n, size, form, pace
        self.cannot = cannot

    def __iter__(self):
        return ResumableIterator(self.what, self.cannot)


class ResumableIterator:
    def __init__(self, what, cannot):
        self.what = what
        self.cannot = cannot
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        explain()
        i, n, size, form, pace = self.what
        if self.at == n:
            raise StopIteration
        time.sleep(pace)
        self.at += 1
        return item_of(i, self.at, size, form)

    def state_dict(self):
        if self.cannot == "raise":
            raise ValueError("there is no state")
        return {"at": self if self.cannot else self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


# What reading may raise: where an item has other keys than the batch that it comes to, KeyError.
FAILURES = (Boom, pescador.PescadorError, KeyError)


def failing(i, at, size, form):
    """Fail after some items."""
    explain()
    for j in range(at):
        yield item_of(i, j, size, form)
    raise Boom(f"stream {i} fails after {at} items")


def nothing():
    """Have no items."""
    yield from ()


def doubled(item):
    """A map of items of any form."""
    if isinstance(item, dict):
        return {key: value + value for key, value in item.items()}
    return item + item


@functools.cache
def folder():
    """Where the files are; they go with this process."""
    made = tempfile.TemporaryDirectory(prefix="pescador-soak-")
    return made, pathlib.Path(made.name)


def file(kind, n, size):
    """A file of n rows."""
    path = folder()[1] / f"{n}-{size}.{kind}"
    if not path.exists():
        x = np.arange(float(n * size)).reshape(n, size)
        if kind == "npy":
            np.save(path, x)
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(path, x=x, y=np.arange(n))
    return path


class Trees:
    """Makes random trees, the same ones from the same random numbers."""

    def __init__(self, rng):
        self.rng = rng
        self.n = 0
        self.size = rng.choice([1, 1, 16, 16, 16, 1_000, 5_000, 50_000, 500_000])
        self.form = rng.choice(["array", "array", "ragged", "object"])
        self.pace = rng.choice([0, 0, 0, 0.0005, 0.003])
        # Whether something can be read once, and whether something has no state.
        self.has_generators = self.has_refusals = False
        self.may_fail = rng.random() < 0.1
        self.depth = rng.choice([0, 1, 1, 1, 1, 2, 2, 3])

    def tree(self):
        return self.leaf() if self.depth == 0 else self.mux(self.depth)

    def leaf(self):
        rng = self.rng
        self.n += 1
        how = self.size, self.form
        kind = rng.random()
        if kind < 0.3:
            n = rng.choice([None, 1, 2, 3, 7, 20])
            return pescador.Streamer(counting, self.n, n, *how, self.pace)
        if kind < 0.5:
            return pescador.Streamer(drawing, self.n, rng.choice([1, 4, 30]), *how, self.pace)
        if kind < 0.65:
            most = rng.choice([1, 4, 30])
            return pescador.Streamer(spawned, self.n, most, *how, self.pace, rng=pescador.SPAWN)
        if kind < 0.75:
            return self.source()
        if kind < 0.78:
            n = rng.choice([None, 7, 50])
            cannot = rng.choice(["", "", "", "raise", "object"])
            self.has_refusals |= bool(cannot)
            return pescador.Streamer(Resumable(self.n, n, *how, rng.choice([0, 0.005]), cannot))
        if kind < 0.82:
            return pescador.Streamer(pescador.transform, self.leaf(), doubled)
        if kind < 0.87:
            n = rng.randint(1, 9)
            return pescador.Streamer([item_of(self.n, j, *how) for j in range(n)])
        if kind < 0.88:
            # Runs here: it can be read once.
            self.has_generators = self.has_refusals = True
            return pescador.Streamer(counting(self.n, 5, *how, 0))
        if kind < 0.92:
            return pescador.ParallelStreamer(self.leaf(), rng.choice([0, 1]), restart=True)
        if self.may_fail and kind < 0.95:
            return pescador.Streamer(failing, self.n, rng.choice([0, 1, 5, 50]), *how)
        return pescador.Streamer(counting, self.n, None, *how, self.pace)

    def source(self):
        rng = self.rng
        n = rng.choice([1, 4, 30])
        store = file(rng.choice(["npy", "npz", "compressed.npz"]), n, rng.choice([1, 50, 2_000]))
        options = {
            "order": rng.choice(["random", "shuffled", "sequential"]),
            "random_state": rng.choice([None, 7]),
        }
        if rng.random() < 0.3:
            return pescador.sources.Windows(store, 1, **options)
        return pescador.sources.Rows(store, **options)

    def mux(self, depth):
        rng = self.rng
        n = rng.choice([1, 2, 3, 5, 8, 30] if depth == 1 else [1, 2, 3])
        below = [
            self.leaf() if depth == 1 or rng.random() < 0.3 else self.mux(depth - 1)
            for _ in range(n)
        ]
        if rng.random() < 0.05:
            below.insert(rng.randrange(n + 1), pescador.Streamer(nothing))
        if rng.random() < 0.1:
            below = [pescador.Streamer(mux, rng.randint(1, 20)) for mux in below]
        seed = rng.choice([None, rng.randrange(1000)])
        kind = rng.random()
        if kind < 0.5:
            return pescador.StochasticMux(
                below,
                rng.randint(1, len(below)),
                rng.choice([None, 1, 3, 10, 100]),
                mode=rng.choice(["with_replacement", "single_active", "exhaustive"]),
                dist=rng.choice(["binomial", "poisson", "constant"]),
                random_state=seed,
            )
        if kind < 0.65:
            return pescador.ShuffledMux(below, random_state=seed)
        if kind < 0.85:
            mode = rng.choice(["exhaustive", "cycle", "permuted_cycle"])
            return pescador.RoundRobinMux(below, mode=mode, random_state=seed)
        return pescador.ChainMux(below, mode=rng.choice(["exhaustive", "cycle"]))


# ------------------------------------------------------------------------ the process outside


class Board:
    """Numbers that the consumer writes, and the process outside reads."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 8)

    @property
    def progress(self):
        return struct.unpack("q", self.memory[:])[0]

    def note(self):
        self.memory[:] = struct.pack("q", self.progress + 1)


class Outside:
    """The consumer's view of the process outside."""

    def __init__(self):
        self.board = Board()
        self.pipe, other = Pipe()
        consumer = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self.pipe.close()
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                Troubles(consumer, other, self.board).run()
                status = 0
            finally:
                os._exit(status)
        other.close()

    def do(self, what, delay, stopped=0.0):
        """Have something happen after some seconds."""
        self.pipe.send((what, delay, stopped))

    def say(self, what):
        """Note what goes on, for a report."""
        self.pipe.send((what, None, None))

    def halt(self):
        """Have nothing happen any more; return how often it did."""
        self.pipe.send(("halt", None, None))
        return self.pipe.recv()


class Troubles:
    """What happens to workers and consumers, and the watch over them."""

    def __init__(self, consumer, pipe, board):
        self.consumer = psutil.Process(consumer)
        self.pipe = pipe
        self.board = board
        self.rng = random.Random(0)
        self.due = []
        self.stopped = {}
        self.done = collections.Counter()
        self.what = ""

    def run(self):
        seen, since = None, time.monotonic()
        while True:
            now = time.monotonic()
            times = [at for at, *_ in self.due] + list(self.stopped.values())
            try:
                if self.pipe.poll(max(0, min([*times, now + 1]) - now)):
                    self.listen(*self.pipe.recv())
            except (EOFError, OSError):
                return
            now = time.monotonic()
            for event in [event for event in self.due if event[0] <= now]:
                self.due.remove(event)
                self.act(*event[1:])
            for pid in [pid for pid, at in self.stopped.items() if at <= now]:
                del self.stopped[pid]
                self.kill(pid, signal.SIGCONT)
            if (progress := self.board.progress) != seen:
                seen, since = progress, now
            elif now > since + PATIENCE:
                self.give_up()

    def listen(self, what, delay, stopped):
        if what == "halt":
            for pid in self.stopped:
                self.kill(pid, signal.SIGCONT)
            self.due.clear()
            self.stopped.clear()
            self.pipe.send(self.done)
            self.done = collections.Counter()
        elif delay is None:
            self.what = what
        else:
            self.due.append((time.monotonic() + delay, what, stopped))

    def act(self, what, stopped):
        if what == "SIGINT":
            self.done[what] += 1
            self.consumer.send_signal(signal.SIGINT)
            return
        workers = workers_of(self.consumer)
        if not workers:
            return
        pid = self.rng.choice(workers)
        if self.kill(pid, getattr(signal, what)):
            self.done[what] += 1
            if what == "SIGSTOP":
                self.stopped[pid] = time.monotonic() + stopped

    def kill(self, pid, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def give_up(self):
        print(f"no item for {PATIENCE} seconds: {self.what}", file=sys.stderr, flush=True)
        everyone = [self.consumer, *self.consumer.children(recursive=True)]
        for process in everyone:
            if process.pid == os.getpid() or is_helper(process):
                continue
            with contextlib.suppress(psutil.Error, OSError):
                print(f"\nprocess {process.pid}, {process.status()}:", file=sys.stderr, flush=True)
                os.kill(process.pid, signal.SIGCONT)
                os.kill(process.pid, signal.SIGUSR1)
            time.sleep(0.5)
        for process in everyone:
            if process.pid != os.getpid():
                self.kill(process.pid, signal.SIGKILL)
        os._exit(1)


def is_helper(process):
    """Whether a process is one that multiprocessing keeps."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "resource_tracker" in command or "forkserver" in command


def workers_of(consumer):
    """The processes that somebody else than the consumer may kill."""
    workers = []
    with contextlib.suppress(psutil.Error):
        for child in consumer.children():
            if child.pid == os.getpid():
                continue
            if not is_helper(child):
                workers.append(child.pid)
                continue
            # Workers from a server have its command, and are its children.
            with contextlib.suppress(psutil.Error):
                workers.extend(worker.pid for worker in child.children())
    return workers


# --------------------------------------------------------------------------------------- cases


def plain(item):
    """What two items are compared by."""
    if isinstance(item, np.ndarray):
        return item.dtype.str, item.shape, item.tobytes()
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item), [plain(value) for value in item]
    return item


class Interrupts:
    """Ctrl-C, where it is awaited."""

    is_awaited = False

    @classmethod
    def handle(cls, number, frame):
        if cls.is_awaited:
            cls.is_awaited = False
            raise KeyboardInterrupt


class Case:
    """One tree, and all that happens to it."""

    def __init__(self, rng, outside):
        self.rng = rng
        self.outside = outside
        self.done = collections.Counter()
        self.tree_seed = rng.randrange(1 << 30)
        trees = self.trees = Trees(random.Random(self.tree_seed))
        self.tree = trees.tree()
        self.seed = rng.choice([None, rng.randrange(100)])
        self.n = rng.choice([1, 10, 50, 50, 200, 200, 1_000])
        if trees.size >= 50_000:
            self.n = min(self.n, 50)
        self.batch = rng.choice([None, None, 1, 5, 5, 16]) if self.is_uniform() else None
        self.options = {}
        self.part = None

    def __repr__(self):
        return (
            f"part {self.part} of {self.tree}, seed {self.seed}, {self.n} items, "
            f"batch {self.batch}, {self.options}"
        )

    def new_tree(self):
        return Trees(random.Random(self.tree_seed)).tree()

    def is_uniform(self):
        """Whether batches can be made of the items."""
        return (
            "Rows" not in str(self.tree)
            and "Windows" not in str(self.tree)
            and (self.trees.form == "array")
        )

    def streamer(self, options):
        """What is read, and the ParallelStreamer in it."""
        tree = self.new_tree()
        if self.seed is not None:
            tree = pescador.Seeded(tree, self.seed)
        parallel = pescador.ParallelStreamer(tree, **options)
        parallel.timeout = 0.3
        if self.batch:
            return pescador.Streamer(
                pescador.buffer_stream, parallel, self.batch, partial=True
            ), parallel
        return parallel, parallel

    def new_options(self):
        rng = self.rng
        kind = rng.choices(["process", "thread"], [3, 1])[0]
        workers = rng.choice([1, 1, 2, 2, 2, 3, 4])
        options = {
            "workers": 0 if rng.random() < 0.05 else workers,
            "kind": kind,
            "read_ahead": rng.choice([None, None, 0, 1, 2, 5, 100]),
            "open_ahead": rng.choice([None, 0, 1, 3, 20]),
            "max_bytes": rng.choice([1, 10_000, 1_000_000, 10_000_000, 1 << 28, 1 << 28]),
            "start_method": rng.choices(["fork", "forkserver", "spawn"], [30, 2, 1])[0],
            "restart": rng.random() < 0.75,
            "keep_workers": rng.random() < 0.2,
        }
        if kind == "thread":
            options |= {"start_method": None, "restart": False, "keep_workers": False}
        return options

    # ---- what there is to see

    def look(self):
        """Read everything here."""
        self.part = "here"
        streamer, _ = self.streamer({"workers": 0})
        self.expected, self.failure = self.look_at(streamer)
        # Generator objects and generators of the caller's go on where they are.
        self.is_repeatable = (self.expected, self.failure) == self.look_at(streamer)

    def look_at(self, streamer):
        items = []
        np.random.seed(self.tree_seed)
        try:
            for item in streamer.iterate(self.n):
                items.append(plain(item))
                self.outside.board.note()
        except FAILURES as error:
            return items, str(error)
        return items, None

    def run(self):
        """Read everything in parts."""
        self.look()
        at, state, parts = 0, None, 0
        while True:
            self.part = f"{parts} from item {at}"
            parts += 1
            options = self.options = self.new_options()
            self.losses = 0
            self.outside.say(repr(self))
            streamer, parallel = self.streamer(options)
            rounds = 1 + (options["keep_workers"] and state is None and self.is_repeatable)
            for left in range(rounds, 0, -1):
                at, state, is_over = self.read(streamer, parallel, at if state else 0, state)
                if left > 1:
                    at, state = 0, None
            if is_over:
                return
            if parts == 6 or self.rng.random() < 0.2:
                return

    def read(self, streamer, parallel, at, state):
        """Read a part; return at which item to go on, from which state, if at all."""
        rng, outside = self.rng, self.outside
        if state is None:
            np.random.seed(self.tree_seed)
        left = len(self.expected) - at
        way = rng.choice(["whole", "whole", "close", "drop", "save", "save", "save", "iterate"])
        may_interrupt = rng.random() < 0.3
        until = rng.randint(0, left) if way in ("close", "drop", "save") else None
        events = collections.defaultdict(list)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            kinds = ["SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGSEGV", "SIGSTOP", "SIGSTOP"]
            if rng.random() < 0.05:
                kinds = ["fork"]
            what = rng.choice([*kinds, "SIGINT"] if may_interrupt else kinds)
            delay = rng.choice([0, rng.random() * 0.002, rng.random() * 0.03])
            events[rng.randint(0, max(left, 1))].append(
                (what, delay, rng.choice([0.01, 0.1, 0.5, 2]))
            )
        self.part += f", {way} until {until}, {dict(events)}"
        outside.say(repr(self))
        if way == "iterate" and state is None:
            stream = streamer.iterate(self.n)
        else:
            stream = streamer.open(max_iter=self.n - at, state=state)
        got, kept, error = at, [], None
        try:
            Interrupts.is_awaited = True
            while True:
                for what, *how in events.pop(got - at, ()):
                    if what == "fork":
                        self.fork(stream)
                    else:
                        outside.do(what, *how)
                if until is not None and got - at == until:
                    break
                item = next(stream)
                outside.board.note()
                self.compare(got, item)
                if rng.random() < 0.02:
                    kept.append((got, item))
                got += 1
            Interrupts.is_awaited = False
        except StopIteration:
            Interrupts.is_awaited = False
        except KeyboardInterrupt as raised:
            error = raised
        except FAILURES as raised:
            Interrupts.is_awaited = False
            error = raised
        item = None
        faults = self.outside.halt()
        self.done.update(faults)
        self.done[way] += 1
        is_over = self.judge(got, error, faults, until is not None and got - at == until)
        error = None
        for number, item in kept:
            self.compare(number, item)
        kept.clear()
        item = None
        # One that was read once stays so, and a new tree has a new one.
        ends = way in ("close", "drop") or self.trees.has_generators
        if is_over or ends or not hasattr(stream, "state_dict"):
            if way != "drop":
                stream.close()
            return got, None, True
        closes_first = rng.random() < 0.3
        if closes_first:
            stream.close()
        try:
            index, state = stream.index, stream.state_dict()
        except (pescador.StateError, ValueError):
            # What a source says of itself, where it runs here.
            assert self.trees.has_refusals
            stream.close()
            return got, None, True
        # An item that was given may not have come here.
        assert index in (got, got + 1), (index, got)
        if not closes_first:
            # What it gives after that is no different.
            with contextlib.suppress(*FAILURES):
                for number, item in zip(range(index, index + 5), stream, strict=False):
                    self.compare(number, item)
            item = None
            stream.close()
        self.done["resumed"] += 1
        return index, state, False

    def compare(self, number, item):
        assert number < len(self.expected), f"item {number} is one too many: {item!r:.300}"
        if plain(item) != self.expected[number]:
            raise AssertionError(
                f"item {number} is {item!r:.300}, not {self.expected[number]!r:.300}"
            )

    def judge(self, got, error, faults, was_left):
        """Whether that was the end; raise where it was a wrong one."""
        # A worker that is suspended, and kept, may end by them later.
        self.losses += faults["SIGKILL"] + faults["SIGTERM"] + faults["SIGSEGV"]
        if error is None:
            assert was_left or (got == len(self.expected) and not self.failure), (
                f"it ended after {got} items of {len(self.expected)}, {self.failure}"
            )
            return got == len(self.expected)
        if isinstance(error, KeyboardInterrupt):
            assert faults["SIGINT"], "nobody has interrupted it"
            return False
        if str(error) == self.failure:
            assert got == len(self.expected), (got, len(self.expected))
            return True
        is_due = self.losses > (ATTEMPTS if self.options["restart"] else 0)
        if not (is_due and "was killed by signal" in str(error)):
            raise AssertionError(f"an error was not to be expected, with {faults}") from error
        self.done["died"] += 1
        return False

    def fork(self, stream):
        """Have a copy of this process ask for an item, and end."""
        self.done["fork"] += 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                Interrupts.is_awaited = False
                with contextlib.suppress(pescador.PescadorError):
                    for _ in range(50):
                        next(stream)
                stream.close()
                del stream
                status = 0
            finally:
                os._exit(status)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)


def kill_consumer(rng, outside):
    """Have a process of its own be the consumer, and kill it; its workers must end."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            while True:
                case = Case(rng, outside)
                streamer, _ = case.streamer(case.new_options() | {"start_method": "fork"})
                list(streamer.iterate(case.n))
        os._exit(0)
    outside.say(f"a consumer is killed, process {child}")
    time.sleep(0.02 + rng.random() * 0.3)
    consumer = psutil.Process(child)
    workers = consumer.children(recursive=True)
    consumer.kill()
    os.waitpid(child, 0)
    _, alive = psutil.wait_procs([w for w in workers if w.is_running()], timeout=10)
    alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"workers have survived their consumer: {alive}"


# ---------------------------------------------------------------------------------------- left


def left(persistent):
    """What this process holds: descriptors, threads, mappings of shared memory, processes."""
    gc.collect()
    descriptors = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            descriptors[target.split(":")[0].split(" ")[0]] += 1
    with open("/proc/self/maps") as lines:
        maps = sum("memfd" in line for line in lines)
    children = [child.pid for child in ME.children(recursive=True) if child.pid not in persistent]
    return {
        "descriptors": dict(descriptors),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "n_threads": ME.num_threads(),
        "maps": maps,
        "children": children,
    }


def wait_until_left(before, persistent):
    """Wait for a while until there is left what was there before."""
    deadline = time.monotonic() + 5
    while (now := left(persistent)) != before:
        if time.monotonic() > deadline:
            raise AssertionError(f"{now} is left, not {before}")
        time.sleep(0.01)


def soak(args):
    """Break one tree after the other until the time is over."""
    signal.signal(signal.SIGINT, Interrupts.handle)
    explain()
    warnings.simplefilter("ignore")
    outside = Outside()
    # What stays from now on is there before we look.
    for method in ("forkserver", "spawn", "fork"):
        list(pescador.ParallelStreamer(["ab"], 1, start_method=method))
    file("npy", 1, 1)
    time.sleep(0.5)
    persistent = frozenset(child.pid for child in ME.children(recursive=True))
    before = left(persistent)
    done = collections.Counter()
    start = told = time.monotonic()
    number = args.first
    while time.monotonic() < start + args.seconds and number != args.first + args.cases:
        rng = random.Random(f"{args.seed}/{number}")
        case = what = None
        try:
            if rng.random() < 0.05:
                kill_consumer(rng, outside)
                done["consumers"] += 1
            else:
                case = Case(rng, outside)
                case.run()
                done += case.done
                what, case = repr(case), None
            wait_until_left(before, persistent)
        except BaseException:
            print(f"case {number} of seed {args.seed}: {case or what}", flush=True)
            raise
        outside.board.note()
        done["cases"] += 1
        number += 1
        if time.monotonic() > told + 30:
            told = time.monotonic()
            print(f"{told - start:.0f} s: {dict(done)}", flush=True)
    print(f"{time.monotonic() - start:.0f} s: {dict(done)}; left {before}", flush=True)
    outside.pipe.close()
    os.waitpid(outside.pid, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--cases", type=int, default=-1, help="how many; -1: as time allows")
    soak(parser.parse_args())


if __name__ == "__main__":
    main()
