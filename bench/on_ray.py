"""Streams that run in actors of Ray: what they cost the consumer, and what a second node gains.

The nodes are simulated on this machine: each has a processor and an object store of its own.
"""

import itertools
import os
import time

import numpy as np
from case import case, over
from cases import OPEN
from jobs import Fresh, Items
from parallel import ahead_of, computing, mux_of, sleeping

STORE = 500 * 2**20
SILENT = {"log_to_driver": False, "logging_level": "ERROR"}


def in_actors(tree, workers):
    """The streamer that runs the streams of a tree in actors of one processor each."""
    import pescador.ray

    return ahead_of(pescador, tree, workers, states=(), kind=pescador.ray.Executor())


def started(nodes=None):
    """Start Ray with a node of two processors, or with so many of one; return what ends it."""
    import ray

    # Where actors find the streams; and not, as they look in the current folder first, a package
    # that is not the installed one.
    folder = os.path.dirname(os.path.abspath(__file__))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    how = {"object_store_memory": STORE, "include_dashboard": False}
    if nodes is None:
        # Not in a cluster that runs here already.
        ray.init("local", num_cpus=2, **how, **SILENT)
        return ray.shutdown
    from ray.cluster_utils import Cluster

    # The consumer is on a node without room for an actor.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **how})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, **SILENT)

    def close():
        ray.shutdown()
        cluster.shutdown()

    return close


def large_or_small(i, size):
    item = {"x": np.full(size // 4, i, np.float32)}
    while True:
        yield item


def streams_of(pescador, size):
    return mux_of(pescador, [pescador.Streamer(large_or_small, i, size) for i in range(100)])


def read(parallel, size, **options):
    """Time the consumer, after so many items as make workers run as far ahead as they will."""
    n = min(2**28 // size, 10_000)
    return Fresh(parallel.iterate, first=2 * n, round=5 * n, clock=time.process_time, **options)


@case(
    "sample",
    "On Ray: time of the consumer",
    short=over("size", 1_000, 1_000_000),
    tiny={"size": 1_000},
    n_bytes=lambda size: size,
    parallel=True,
    warm=lambda **params: 1,
    patience=90,
)
def ray_consumer(pescador, size):
    """Arrays from two workers: 5 µs for 1 KB and 1.2 of memcpy for 1 MB; ours are processes."""
    return read(ahead_of(pescador, streams_of(pescador, size), 2, states=()), size)


@ray_consumer.by("ours-ray", way="pescador.ray.Executor, two actors on this node")
def _(size):
    import pescador

    return read(in_actors(streams_of(pescador, size), 2), size, close=started())


@ray_consumer.by("limit")
def _(size):
    # As what comes from elsewhere, the source is not in a cache; nor is it the one page of zeros.
    sources = [np.full(size, 1, np.uint8) for _ in range(max(2**28 // size, 1))]
    target = np.zeros(size, np.uint8)

    def copies():
        for source in itertools.cycle(sources):
            target[:] = source
            yield target

    return Items(copies())


# The function of the streams of a kind, and its arguments: 1 ms a sample.
KINDS = {"sleeping": (sleeping, 0, 0.001), "computing": (computing, 1)}


def kind_of(pescador, kind):
    function, *args = KINDS[kind]
    return mux_of(pescador, [pescador.Streamer(function, i, *args) for i in range(100)], OPEN)


@case(
    "sample",
    "On Ray: nodes",
    short=[{"kind": kind, "workers": n} for kind in KINDS for n in (1, 2)],
    tiny={"kind": "sleeping", "workers": 1},
    parallel=True,
    warm=lambda **params: 1,
    patience=90,
)
def ray_nodes(pescador, kind, workers):
    """Streams that sleep or compute for 1 ms a sample, an actor a node; ours are processes."""
    parallel = ahead_of(pescador, kind_of(pescador, kind), workers, states=())
    return Fresh(parallel.iterate, first=500, round=2_000)


@ray_nodes.by("ours-ray", way="pescador.ray.Executor, nodes simulated on this machine")
def _(kind, workers):
    import pescador

    parallel = in_actors(kind_of(pescador, kind), workers)
    return Fresh(parallel.iterate, first=500, round=2_000, close=started(workers))
