"""One of several processes of torch.distributed that train on the parts of a Sharded.

    python ranks.py RANK WORLD_SIZE STORE STEPS LOAD SAVE

prints its part of each batch, as JSON. LOAD and SAVE are paths of the state of all, or "-".
"""

import itertools
import json
import sys

import torch
import torch.distributed

import pescador
import pescador.torch
import runs

SHARDS, BATCH = 8, 16


def make(shard):
    pool = [pescador.Streamer(runs.noise, 10 * shard + i) for i in range(3)]
    return pescador.StochasticMux(pool, 2, 4)


def batches(world_size=1, **options):
    """The streamer that a rank gives to its data set."""
    sharded = pescador.Sharded(make, SHARDS, 3, **options)
    return pescador.Streamer(pescador.buffer_stream, sharded, BATCH // world_size)


def main(rank, world_size, store, steps, load, save):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    dataset = pescador.torch.Dataset(batches(world_size))
    if load != "-":
        dataset.load_state_dict(torch.load(load, weights_only=True))
    rows = [batch["x"].tolist() for batch in itertools.islice(dataset, steps)]
    states = [None] * world_size
    torch.distributed.all_gather_object(states, dataset.state_dict())
    if rank == 0:
        torch.save(pescador.Sharded.merge(states), save)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    print(json.dumps(rows))


if __name__ == "__main__":
    rank, world_size, store, steps, *paths = sys.argv[1:]
    main(int(rank), int(world_size), store, int(steps), *paths)
