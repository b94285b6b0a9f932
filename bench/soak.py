"""Run ZMQStreamer for as long as it takes to believe it: make soak, or python bench/soak.py --help.

Three parts. Small items and large ones go through for a long time while memory, descriptors and
mappings must stay flat. Then hundreds of streams are killed, stopped, closed, dropped or
interrupted at random moments, on either side: what arrived must be the first items, in order and
whole; the end must be the right error; and nothing may be left behind.
"""

import argparse
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import psutil

import pescador

ME = psutil.Process()


class Boom(Exception):
    pass


def items(n, size, end=None, at=None):
    """Items that can be checked; `end` happens before item `at`."""
    for i in range(n):
        if i == at and end is not None:
            end()
        yield {"i": np.array(i), "x": np.full(size, i, np.int32)}


def same(size):
    """Endless, and as fast as can be."""
    item = {"x": np.arange(size, dtype=np.float32)}
    while True:
        yield item


def check(item, i):
    x = item["x"]
    if int(item["i"]) != i or (x.size and (int(x[0]), int(x[-1])) != (i, i)):
        raise AssertionError(f"item {i} is wrong: {item}")


def left():
    """What this process holds: descriptors, threads, mappings of shared memory."""
    gc.collect()
    with open("/proc/self/maps") as lines:
        maps = sum("memfd" in line for line in lines)
    return ME.num_fds(), ME.num_threads(), maps


# --------------------------------------------------------------------------------- endurance


def endure(name, size, count, report=10):
    """Take `count` items; memory of both sides must not grow after the first tenth."""
    stream = pescador.ZMQStreamer(pescador.Streamer(same, size)).iterate()
    next(stream)
    [worker] = multiprocessing.active_children()
    worker = psutil.Process(worker.pid)
    seen = []
    start = time.perf_counter()
    for _ in range(report):
        for _ in range(count // report):
            next(stream)
        seen.append((ME.memory_info().rss, worker.memory_info().rss, left(), worker.num_fds()))
    seconds = time.perf_counter() - start
    stream.close()
    for after in seen[1:]:
        # Shared pages count as soon as they were touched; the heap may fill up once.
        assert after[0] - seen[0][0] < 300 * 2**20, seen
        assert after[1] - seen[0][1] < 300 * 2**20, seen
        assert after[2:] == seen[0][2:], seen
    growth = [(b - a) / 2**20 for a, b in zip(seen[0][:2], seen[-1][:2], strict=True)]
    print(
        f"{name}: {count:,} items, {count * size * 4 / 1e9:.1f} GB in {seconds:.1f} s; "
        f"{1e6 * seconds / count:.2f} us an item, {count * size * 4 / 1e9 / seconds:.2f} GB/s; "
        f"grown by {growth[0]:.1f} MiB here and {growth[1]:.1f} MiB in the worker; "
        f"descriptors, threads, mappings {seen[-1][2]}",
        flush=True,
    )


# ------------------------------------------------------------------------------------ faults


def kill_self(number):
    return lambda: os.kill(os.getpid(), number)


def boom():
    raise Boom


def leave():
    os._exit(5)


def quit_politely():
    sys.exit(1)


class Fault:
    """One stream, and what happens to it at a random moment."""

    def __init__(self, rng):
        self.rng = rng
        self.n = rng.choice([0, 1, 10, 1_000, 5_000])
        self.size = rng.choice([0, 1, 16, 1_000, 5_000, 100_000])
        if self.size > 10_000:
            self.n = min(self.n, 200)
        self.at = rng.randrange(self.n + 1)
        self.max_bytes = rng.choice([1, 10_000, 2**20, 2**28])
        if self.max_bytes < 2**20:
            self.n, self.at = min(self.n, 300), min(self.at, 300)
        self.method = rng.choices(["fork", "forkserver", "spawn"], [40, 1, 1])[0]
        self.keep = rng.random() < 0.2

    def streamer(self, end=None, timeout=0.5):
        return pescador.ZMQStreamer(
            pescador.Streamer(items, self.n, self.size, end, self.at),
            timeout=timeout,
            max_bytes=self.max_bytes,
            start_method=self.method if end is None or end in (boom, leave) else "fork",
        )

    def take(self, stream, count=None):
        """Take items, in order and whole; return how many there were, and the error at the end."""
        got, kept = 0, []
        try:
            for item in stream:
                check(item, got)
                got += 1
                if self.keep:
                    kept.append(item)
                if got == count:
                    break
        except (pescador.PescadorError, Boom) as error:
            return got, error
        finally:
            for i, item in enumerate(kept):
                check(item, i)
        return got, None

    def in_the_generator(self):
        end, expected = self.rng.choice(
            [
                (kill_self(signal.SIGKILL), "SIGKILL"),
                (kill_self(signal.SIGTERM), "SIGTERM"),
                (kill_self(signal.SIGSEGV), "SIGSEGV"),
                (leave, "code 5"),
                (quit_politely, "SystemExit"),
                (boom, ""),
            ]
        )
        got, error = self.take(iter(self.streamer(end)))
        if self.at >= self.n:
            assert (got, error) == (self.n, None), (got, error)
        else:
            # A message that a killed worker had not got rid of is lost, and the error says so.
            by_message = self.max_bytes < 4 * self.size + 100 and end not in (boom, quit_politely)
            assert got == self.at or (by_message and got < self.at), (got, self.at, error)
            assert type(error) is (Boom if end is boom else pescador.PescadorError), error
            assert expected in str(error), error

    def from_outside(self):
        """The worker is killed at a moment of its own."""
        number = self.rng.choice([signal.SIGKILL, signal.SIGTERM])
        stream = iter(self.streamer())
        before, _ = self.take_some(stream)
        for worker in multiprocessing.active_children():
            time.sleep(self.rng.random() * 0.01)
            os.kill(worker.pid, number)
        got, error = self.take_rest(stream, before)
        # It may have sent everything before.
        assert got == self.n if error is None else number.name in str(error), (got, error)

    def take_some(self, stream):
        got = 0
        for item in stream:
            check(item, got)
            got += 1
            if got > self.at // 2:
                break
        return got, None

    def take_rest(self, stream, got):
        try:
            for item in stream:
                check(item, got)
                got += 1
        except pescador.PescadorError as error:
            return got, error
        return got, None

    def stopped(self):
        stream = iter(self.streamer(timeout=0.05))
        got, _ = self.take_some(stream)
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        if self.rng.random() < 0.5:
            stream.close()
        else:
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
            got, error = self.take_rest(stream, got)
            assert (got, error) == (self.n, None), (got, error)

    def closed(self):
        stream = iter(self.streamer())
        got, error = self.take(stream, self.at)
        assert error is None
        assert got == min(self.at or self.n, self.n)
        if self.rng.random() < 0.5:
            stream.close()

    def interrupted(self):
        """Ctrl-C in the middle."""
        stream = iter(self.streamer())
        with contextlib.suppress(KeyboardInterrupt):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 + self.rng.random() * 0.03)
                got, error = self.take(stream)
                assert (got, error) == (self.n, None), (got, error)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        stream.close()

    def consumer_killed(self):
        """A process of its own is the consumer, and is killed."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                while True:
                    self.take(iter(self.streamer()))
            os._exit(0)
        time.sleep(0.01 + self.rng.random() * 0.1)
        consumer = psutil.Process(child)
        workers = consumer.children(recursive=True)
        consumer.kill()
        os.waitpid(child, 0)
        _, alive = psutil.wait_procs([w for w in workers if w.is_running()], timeout=5)
        alive = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        assert not alive, alive

    KINDS = (in_the_generator, from_outside, stopped, closed, interrupted, consumer_killed)


def faults(count, seed):
    # What the terminal does, at a time of our choice.
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    faulthandler.disable()
    # Before we look: helpers that stay are started, and the threads of a BLAS end at a fork.
    for method in ("forkserver", "spawn", "fork"):
        list(pescador.ZMQStreamer(pescador.Streamer(items, 1, 1), start_method=method))
    # Its thread counts, so it has one from now on.
    faulthandler.dump_traceback_later(60, exit=True)
    time.sleep(0.2)
    before = left()
    done = dict.fromkeys((kind.__name__ for kind in Fault.KINDS), 0)
    start = time.perf_counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choice(Fault.KINDS)
        fault = Fault(rng)
        what = f"fault {number} of seed {seed}, {kind.__name__}: {vars(fault)}"
        # A hang ends in a traceback of all threads.
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            kind(fault)
            # The system takes a moment to forget a thread that has ended; and an interrupt between
            # two lines may leave it to a worker to see that it is alone.
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and (
                left() != before
                or (kind is Fault.interrupted and multiprocessing.active_children())
            ):
                time.sleep(0.01)
            assert not multiprocessing.active_children(), "a worker is left"
            assert left() == before, f"{left()} is left, not {before}"
        except BaseException:
            print(what, flush=True)
            raise
        done[kind.__name__] += 1
    print(
        f"{count} faults in {time.perf_counter() - start:.1f} s: {done}; left {before}", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=float, default=10e6, help="how many items of float32[16]")
    parser.add_argument("--large", type=float, default=200, help="how many GB in items of 38 MB")
    parser.add_argument("--faults", type=int, default=500, help="how many streams to break")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    args = parser.parse_args()
    if args.small:
        endure("small", 16, int(args.small))
    if args.large:
        endure("large", 9_500_000, int(args.large * 1e9 / 38e6))
    if args.faults:
        faults(args.faults, args.seed)


if __name__ == "__main__":
    main()
