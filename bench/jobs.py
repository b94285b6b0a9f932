"""Jobs: the work of a case as one contestant does it, taken in rounds and timed.

The same code runs for every contestant.
"""

import gc
from contextlib import closing, suppress
from itertools import islice
from time import perf_counter


class Skip(Exception):
    """A contestant cannot do a case; the message says why."""


class Ended(Exception):
    """A stream that should be endless has ended: its figures would mean nothing."""


class Job:
    """Work that can be taken in any amount.

    per: units of work that one item or call has. block: a round takes a multiple of this. size:
    bytes of what the work makes, where they differ between contestants.
    """

    per = block = 1
    size = None

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
    start of a process, which is a case of its own; `first` are not timed.
    """

    def __init__(self, opener, per=1, close=lambda: None, first=1, block=1):
        self.opener, self.per, self.close = opener, per, close
        self.first, self.block = first, block

    def seconds(self, n):
        with closing(self.opener()) as stream:
            seconds_of(stream, self.first - 1)
            return seconds_of(stream, n)

    def samples(self, count):
        with closing(self.opener()) as stream:
            return list(islice(stream, count))


def seconds_of(iterator, n):
    """How long the next n items take; one more must follow."""
    start = perf_counter()
    for _ in islice(iterator, n):
        pass
    seconds = perf_counter() - start
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
