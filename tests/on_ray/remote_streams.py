"""Streams that workers import, and what they give."""

import gc
import os
import time

import numpy as np

import pescador
import pescador.ray
from pescador import Seeded, Streamer
from streams import Failure


def reused(n):
    """One array, written to again and again, and one object."""
    item = {"x": np.zeros(3)}
    for i in range(n):
        item["x"][:] = i
        yield item


def noise(scale, n=10**9):
    for _ in range(n):
        yield {"x": scale * np.random.rand(3)}


def slow_noise(scale, n=10**9):
    for _ in range(n):
        time.sleep(0.001)
        yield {"x": scale * np.random.rand(3)}


def counted(i, n=10**9):
    for value in range(n):
        yield i, value


def tell_node(i):
    import ray

    node = ray.get_runtime_context().get_node_id()
    while True:
        time.sleep(0.001)
        yield {"pid": os.getpid(), "node": node}


def images(i, n=10**9):
    for j in range(n):
        yield {"x": np.full(2**18, i, np.float32), "y": np.array(100 * i + j)}


def raising(n):
    yield from range(n)
    raise Failure(n)


def dying(n, path):
    """n items, then the death of the process; once, if there is a path."""
    for i in range(n):
        yield i, i
    if path is None or not path.exists():
        if path is not None:
            path.touch()
        os._exit(7)
    while True:
        n += 1
        yield n - 1, n - 1


def closing(path):
    try:
        while True:
            yield 1
    finally:
        path.touch()


def mixed(leaf=noise, n=12, n_active=4, rate=20, seed=3):
    streams = [Streamer(leaf, i + 1) for i in range(n)]
    return Seeded(pescador.StochasticMux(streams, n_active, rate), seed)


#: How tests start Ray.
HOW = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def in_actors(tree, workers=2, *, restart=None, **options):
    """The streamer that runs the streams of a tree in actors."""
    names = ("num_cpus", "max_visits", "batch", "copy", "resources")
    of_executor = {name: options.pop(name) for name in names if name in options}
    executor = pescador.ray.Executor(**{"num_cpus": 0.5, **of_executor})
    return pescador.ParallelStreamer(tree, workers, kind=executor, restart=restart, **options)


def actors():
    """The processes of all actors that live; None for those that have none yet."""
    import ray

    states = ray._private.state.actors().values()
    return [state["Pid"] or None for state in states if state["State"] != "DEAD"]


def references():
    """The objects that this process refers to."""
    import ray

    gc.collect()
    return set(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def soon(condition, seconds=30):
    """Whether something comes to be."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


class Unloadable:
    def __reduce__(self):
        return fail_to_load, ()


def fail_to_load():
    raise ValueError("not loaded here")


def prepare():
    """Have streams of random trees be restarted for ever, in each worker as here."""
    import trees

    trees.Starts.limit = float("inf")
