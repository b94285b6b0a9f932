"""Runs one case for one contestant, in the contestant's environment.

    python bench/worker.py CONTESTANT CASE SECONDS TARGET DESCRIPTOR     one round for each request
    python bench/worker.py CONTESTANT CASE COUNT                         one round, for callgrind

SECONDS: the most that warming up takes. TARGET: how long a round takes, in seconds. DESCRIPTOR: a
connection, on which each request is answered; see `answers`.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import os
import platform
import sys
from multiprocessing.connection import Connection

import jobs
import suite
from contestants import API, CONTESTANTS


def job_of(case, params, contestant):
    """Build a job. One processor for all contestants alike; all for jobs of several processes."""
    if hasattr(os, "sched_setaffinity") and not case.parallel:
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    package = importlib.import_module("pescador") if contestant in API else None
    return suite.build(case.name, params, contestant, package)


def versions_of(distributions):
    found = {name: importlib.metadata.version(name) for name in distributions}
    return found | {"python": platform.python_version()}


def peak_memory():
    """The most memory that this process has used, in bytes; 0 if the system does not say."""
    # Unlike ru_maxrss, this does not start at what the parent process had.
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return 0


def answers(contestant, identifier, seconds, target):
    """Yield the versions, the size of what the job makes once it is ready, and then rounds."""
    for name in CONTESTANTS[contestant].imports:
        importlib.import_module(name)
    case, params = suite.find(identifier)
    before = peak_memory()
    yield versions_of(CONTESTANTS[contestant].distributions)
    with contextlib.closing(job_of(case, params, contestant)) as job:
        last = jobs.warm_up(job, case.warm(**params), seconds)
        # What is there now stays: no need to look through it before each round.
        gc.collect()
        gc.freeze()
        count = job.round or jobs.calibrate(job, target, *last)
        yield job.size
        while True:
            # The contestant before this one has left its own work in the caches.
            if settling := job.settling(count):
                jobs.timed(job, settling)
            done, taken = jobs.timed(job, count)
            yield done, taken, peak_memory() - before, job.cpu


def serve(connection, *task):
    """Answer each request; an exception is the last answer."""
    with contextlib.suppress(EOFError), contextlib.closing(answers(*task)) as steps:
        while True:
            connection.recv()
            try:
                answer = next(steps)
            except jobs.Skip as skip:
                return connection.send(Exception(str(skip)))
            except Exception as error:
                return connection.send(Exception(f"{type(error).__name__}: {error}"[:300]))
            connection.send(answer)


def run_once(contestant, identifier, count):
    """Build, warm up and take one round, so that callgrind counts it alone."""
    case, params = suite.find(identifier)
    job = job_of(case, params, contestant)
    # By number, never by time: the same work each time.
    warm = case.warm(**params)
    jobs.timed(job, job.settling(warm))
    jobs.timed(job, warm)
    gc.collect()
    gc.disable()
    # By way of a C function that nothing else here calls: callgrind counts while it runs, and so
    # leaves out what starting Python costs, which varies.
    taken = []
    ctypes.PYFUNCTYPE(None)(lambda: taken.append(job.take(count)))()
    if not taken:
        sys.exit("the round failed")


if __name__ == "__main__":
    contestant, identifier, *numbers = sys.argv[1:]
    if len(numbers) == 1:
        run_once(contestant, identifier, int(numbers[0]))
    else:
        seconds, target, descriptor = map(float, numbers)
        serve(Connection(int(descriptor)), contestant, identifier, seconds, target)
