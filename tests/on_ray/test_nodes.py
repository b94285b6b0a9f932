"""Several nodes of Ray, simulated on this machine; one is killed, and memory is short."""

import contextlib
import time

import numpy as np
import pytest
from open_trees import plain

import pescador
from pescador import Seeded, Streamer

ray = pytest.importorskip("ray", reason="Ray is not installed")

from ray._private.internal_api import memory_summary  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from remote_streams import (  # noqa: E402
    actors,
    images,
    in_actors,
    mixed,
    slow_noise,
    soon,
    tell_node,
)  # fmt: skip

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

STORE = 80 * 2**20


@pytest.fixture(scope="module")
def cluster():
    """A node that the consumer runs on, and that has room for no actor."""
    args = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def add_node(cluster):
    """Adds a node; those that are left are removed."""
    added = []

    def add(**how):
        added.append(cluster.add_node(num_cpus=1, object_store_memory=STORE, **how))
        return added[-1]

    yield add
    assert soon(lambda: not actors())
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def nodes_of(items):
    return {item["node"] for item in items}


def places(rate=5):
    return Seeded(pescador.StochasticMux([Streamer(tell_node, i) for i in range(20)], 4, rate), 1)


def test_visits_run_on_all_nodes_and_a_killed_node_changes_no_item(cluster, add_node):
    first, second = add_node(), add_node()
    run = mixed(slow_noise)
    expected = plain(list(run(max_iter=2000)))
    with contextlib.closing(in_actors(places(), num_cpus=1).iterate()) as places_of_items:
        found = []
        assert soon(lambda: found.append(next(places_of_items)) or len(nodes_of(found)) == 2)
    parallel = in_actors(run, num_cpus=1)
    items = []
    with contextlib.closing(parallel.iterate(2000)) as stream:
        for item in stream:
            items.append(plain(item))
            if len(items) == 700:
                cluster.remove_node(second, allow_graceful=False)
    assert items == expected
    assert parallel.stats()["restarts"] >= 1
    assert first in cluster.worker_nodes


def test_a_node_that_comes_later_takes_part(add_node):
    add_node()
    found = []
    with contextlib.closing(in_actors(places(), 2, num_cpus=1).iterate()) as items:
        found.append(next(items))
        add_node()
        assert soon(lambda: found.append(next(items)) or len(nodes_of(found)) == 2, 30)


def test_actors_run_only_where_what_they_need_is(add_node):
    add_node()
    with_disk = add_node(resources={"disk": 2})
    found = nodes_of(in_actors(places(), 1, resources={"disk": 1})(max_iter=500))
    assert found == {with_disk.node_id}


def test_as_many_actors_as_the_cluster_has_processors_for_run_without_a_number(add_node):
    for _ in range(2):
        add_node()
    parallel = in_actors(places(), None, num_cpus=0.5)
    assert len({item["pid"] for item in parallel(max_iter=2000)}) == 4
    assert parallel.workers is None


def test_items_that_spill_to_disk_come_as_they_were(add_node):
    for _ in range(2):
        add_node()
    run = mixed(images)
    parallel = in_actors(run, num_cpus=1, batch=2**25, max_bytes=2**29)
    expected, last = run.iterate(400), None
    held = []
    for item in parallel(max_iter=400):
        other = next(expected)
        assert np.array_equal(item["x"], other["x"])
        assert item["y"] == other["y"]
        if len(held) < 150:
            # More than the store of this node holds.
            held.append((item["x"], other["x"]))
        elif last is None:
            time.sleep(1)
            last = memory_summary(stats_only=True)
    assert all(np.array_equal(a, b) for a, b in held)
    assert "Spilled" in last, last
