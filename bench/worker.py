"""Runs in a contestant's environment: builds jobs, and takes rounds of them when told to.

Orders come as lines of JSON on standard input, and each is answered by one on what was standard
output (libraries that print write to standard error instead). For ``bench/run.py``.
"""

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import traceback

import cases
import jobs
from contestants import API, CONTESTANTS


def peak_memory():
    """The most memory that this process, and the largest of its children, have used, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    try:
        # Unlike ru_maxrss, this does not start at what the parent process had.
        with open("/proc/self/status") as status:
            [line] = [line for line in status if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024, children
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, children


def set_processors(parallel, processors):
    """One processor for all contestants alike; all of them for jobs of several processes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors if parallel else processors[-1:])


class Worker:
    def __init__(self, contestant):
        self.contestant = contestant
        self.pescador = None
        self.job = None
        self.processors = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        )

    def hello(self):
        it = CONTESTANTS[self.contestant]
        modules = [importlib.import_module(name) for name in it.imports]
        if self.contestant in API:
            self.pescador = modules[0]
        versions = {}
        for name in it.distributions:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        return {"versions": versions, "python": platform.python_version()}

    def build(self, case, params):
        self.drop()
        set_processors(cases.CASES[case].parallel, self.processors)
        before = peak_memory()[0]
        self.job = cases.build(case, params, self.contestant, self.pescador)
        return {"before": before}

    def warm(self, count, seconds):
        done, seconds = jobs.warm_up(self.job, count, seconds)
        # What is there now stays: no need to look through it before each round.
        gc.collect()
        gc.freeze()
        return {"done": done, "seconds": seconds}

    def calibrate(self, target, done, seconds):
        return {"count": jobs.calibrate(self.job, target, done, seconds)}

    def round(self, count):
        # The contestant before this one has left its own work in the caches.
        jobs.timed(self.job, self.job.settling(count))
        done, seconds = jobs.timed(self.job, count)
        return {"count": done, "seconds": seconds}

    def memory(self, case, params, seconds):
        """Build and warm up; to be asked of a process that has done nothing else."""
        before = self.build(case, params)["before"]
        it = cases.CASES[case]
        self.warm(it.warm(**params), seconds)
        self.round(1)
        self.drop()
        peak, children = peak_memory()
        return {"before": before, "peak": peak, "children": children if it.parallel else 0}

    def drop(self):
        job, self.job = self.job, None
        gc.unfreeze()
        if job is not None:
            job.close()
        return {}


def serve(contestant):
    orders, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(contestant)
    for line in orders:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except jobs.Skip as skip:
            answer = {"skip": str(skip)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)
    worker.drop()


def run_once(contestant, identifier, count):
    """Build, warm up and take one round, for ``bench/instructions.py``."""
    worker = Worker(contestant)
    worker.hello()
    it, params = cases.find(identifier)
    worker.build(it.name, params)
    # By number, never by time: the same work each time.
    worker.round(it.warm(**params))
    gc.collect()
    gc.disable()
    job = worker.job
    # By way of a C function that nothing else here calls: callgrind counts while it runs, and so
    # leaves out what starting Python costs, which varies.
    taken = []
    ctypes.PYFUNCTYPE(None)(lambda: taken.append(job.take(count)))()
    if not taken:
        sys.exit("the round failed")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        run_once(sys.argv[1], sys.argv[2], int(sys.argv[3]))
