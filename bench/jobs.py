"""Jobs: the work of a case as one contestant does it, taken in rounds and timed.

The same code runs for every contestant.
"""

import gc
import os
import pathlib
from contextlib import closing, suppress
from itertools import islice
from time import perf_counter, sleep


class Skip(Exception):
    """A contestant cannot do a case; the message says why."""


class Ended(Exception):
    """A stream that should be endless has ended: its figures would mean nothing."""


class Job:
    """Work that can be taken in any amount.

    per: units of work that one item or call has. block: a round takes a multiple of this. size:
    bytes of what the work makes, where they differ between contestants. round: units of work in a
    round, where it is not found by how long they take. cpu: seconds that all processors together
    have worked in the last round, where others than this process did.
    """

    per = block = 1
    size = round = cpu = None

    def take(self, count):
        """Take `count` units of work or a few more; return how many, and the seconds."""
        n = -(-count // self.per)
        return n * self.per, self.seconds(n)

    def settling(self, count):
        """How much to take before a round of `count`, untimed."""
        return 0

    def close(self):
        """Let go of what the job holds."""


class Items(Job):
    """An endless iterator; its work is to give the next item."""

    def __init__(self, iterator, per=1, block=1):
        self.iterator, self.per, self.block = iterator, per, block

    def seconds(self, n):
        return seconds_of(self.iterator, n)

    def settling(self, count):
        return count // 3

    def samples(self, count):
        """Return the next `count` results, for tests."""
        return list(islice(self.iterator, count))

    def close(self):
        with suppress(AttributeError):
            self.iterator.close()


class Calls(Job):
    """A function that is called again and again; ``setup`` gives its argument, untimed."""

    def __init__(self, run, setup=lambda: None, per=1, size=None):
        self.run, self.setup, self.per, self.size = run, setup, per, size

    def seconds(self, n):
        run, setup, total = self.run, self.setup, 0.0
        for _ in range(n):
            argument = setup()
            start = perf_counter()
            result = run(argument)
            total += perf_counter() - start
            # Freed here, and so not timed: what a call leaves is still in use by its caller.
            del result, argument
        return total

    def samples(self, count):
        return [self.run(self.setup()) for _ in range(count)]


class Fresh(Job):
    """A stream made by other processes, opened anew for each round.

    Left open between rounds, they would work ahead: the next round would find items ready, and
    the rounds of other contestants would find the processors busy. The first item waits for the
    start of a process, which is a case of its own; `first` are not timed. Others are timed by
    `clock`.
    """

    def __init__(
        self,
        opener,
        per=1,
        close=lambda: None,
        first=1,
        block=1,
        round=None,
        clock=perf_counter,
    ):
        self.opener, self.per, self.close = opener, per, close
        self.first, self.block, self.round, self.clock = first, block, round, clock

    def seconds(self, n):
        with closing(self.opener()) as stream:
            seconds_of(stream, self.first - 1)
            before = cpu_seconds(os.getpid())
            seconds = seconds_of(stream, n, self.clock)
            self.cpu = cpu_seconds(os.getpid()) - before or None
            return seconds

    def samples(self, count):
        with closing(self.opener()) as stream:
            return list(islice(stream, count))


class Waits(Fresh):
    """A stream whose figure is the 99th percentile of the time that its consumer waits for an item.

    The consumer does something else for `pause` seconds after each `batch` items.
    """

    def __init__(self, opener, batch, pause, **options):
        super().__init__(opener, **options)
        self.batch, self.pause = batch, pause

    def seconds(self, n):
        waits = []
        with closing(paused(self.opener(), self.batch, self.pause, waits)) as stream:
            seconds_of(stream, self.first + n - 1)
        waits = sorted(waits[self.first :][:n])
        return n * waits[-(-99 * n // 100) - 1]


def paused(stream, batch, pause, waits):
    """Give what a stream gives to who does something else for a while after each batch.

    How long each item takes is added to `waits`.
    """
    with closing(stream):
        start = perf_counter()
        for i, item in enumerate(stream, 1):
            waits.append(perf_counter() - start)
            yield item
            if i % batch == 0:
                sleep(pause)
            start = perf_counter()


def cpu_seconds(pid):
    """Return how long a process and those below it have computed; 0 if the system does not say."""
    try:
        ticks = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
        below = [child for task in tasks for child in task.read_text().split()]
    except OSError:
        return 0
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, below))


def seconds_of(iterator, n, clock=perf_counter):
    """How long the next n items take; one more must follow."""
    start = clock()
    for _ in islice(iterator, n):
        pass
    seconds = clock() - start
    for _ in islice(iterator, 1):
        return seconds
    raise Ended("the stream ended during a round")


def timed(job, count):
    """Take a round with the garbage collector off; return the work done and the seconds."""
    gc.collect()
    gc.disable()
    try:
        return job.take(count)
    finally:
        gc.enable()


def warm_up(job, count, seconds):
    """Take `count` units of work, or as many as fit into `seconds`; return the last few, timed."""
    start, chunk, last = perf_counter(), min(count, 100), (0, 0.0)
    while count > 0 and perf_counter() - start < seconds:
        last = timed(job, min(chunk, count))
        count -= last[0]
        chunk *= 2
    return last


def calibrate(job, target, done=0, seconds=0.0):
    """Return how many units of work take about `target` seconds; begin from what a few took."""
    # A stream that is opened anew takes as long again; of others, the first work is no guide.
    typical = isinstance(job, Fresh)
    while not typical or seconds < target / 5:
        likely = done * target / max(seconds, 1e-9)
        done, seconds = timed(job, max(1, round(min(done * 20, likely))))
        typical = True
    return max(1, round(done * target / seconds / job.block)) * job.block
