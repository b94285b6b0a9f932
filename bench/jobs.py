"""How work is taken and timed. The same code runs for every contestant."""

import gc
from contextlib import suppress
from itertools import islice
from time import perf_counter


class Skip(Exception):
    """A contestant cannot do a case; the message says why."""


class Ended(Exception):
    """A stream that should be endless has ended: its figures would mean nothing."""


def seconds_of(iterator, n):
    """How long the next n items take; one more must follow."""
    start = perf_counter()
    for _ in islice(iterator, n):
        pass
    seconds = perf_counter() - start
    for _ in islice(iterator, 1):
        return seconds
    raise Ended("the stream ended during a round")


class Items:
    """An endless iterator; taking one is asking for its next item.

    A round takes a whole number of blocks of `block` items, however long that is: as many as it
    needs to have its share of those that take long.
    """

    def __init__(self, iterator, per=1, block=1):
        self.iterator = iterator
        self.per, self.block = per, block

    def take(self, count):
        """Take `count` units of work or a few more; return how many, and the seconds."""
        n = -(-count // self.per)
        return n * self.per, seconds_of(self.iterator, n)

    def settling(self, count):
        """How much to take before a round of `count`, untimed."""
        return count // 3

    def samples(self, count):
        """Return the next `count` results, for tests."""
        return list(islice(self.iterator, count))

    def close(self):
        with suppress(AttributeError):
            self.iterator.close()


class Calls:
    """A function that is called again and again; ``setup`` gives its argument, untimed."""

    block = 1

    def __init__(self, run, setup=lambda: None, per=1):
        self.run, self.setup, self.per = run, setup, per

    def take(self, count):
        n = -(-count // self.per)
        run, setup, total = self.run, self.setup, 0.0
        for _ in range(n):
            argument = setup()
            start = perf_counter()
            result = run(argument)
            total += perf_counter() - start
            # Freed here, and so not timed: what a call leaves is still in use by its caller.
            del result, argument
        return n * self.per, total

    def settling(self, count):
        return 0

    def samples(self, count):
        return [self.run(self.setup()) for _ in range(count)]

    def close(self):
        pass


class Fresh:
    """A stream made by other processes, opened anew for each round.

    Left open between rounds, they would work ahead: the next round would find items ready, and
    the rounds of other contestants would find the processors busy. The first item waits for the
    start of a process, which is a case of its own; `first` are not timed. A round is whole blocks.
    """

    def __init__(self, opener, per=1, close=lambda: None, first=1, block=1):
        self.opener, self.per, self.close, self.first = opener, per, close, first
        self.block = block

    def take(self, count):
        n = -(-count // self.per)
        stream = self.opener()
        try:
            seconds_of(stream, self.first - 1)
            return n * self.per, seconds_of(stream, n)
        finally:
            stream.close()

    def settling(self, count):
        return 0

    def samples(self, count):
        stream = self.opener()
        try:
            return list(islice(stream, count))
        finally:
            stream.close()


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
