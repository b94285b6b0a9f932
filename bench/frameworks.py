"""Streams in the loops of frameworks: what they add to a batch that is there already."""

import numpy as np
from case import case
from jobs import Items


def batches():
    """A batch of two keys, again and again."""
    batch = {"x": np.zeros((64, 128), np.float32), "y": np.zeros(64, np.int64)}
    while True:
        yield batch


@case("batch", "In frameworks")
def torch_items(pescador):
    """Batches of two keys that are there already: as they are, or as tensors."""
    return Items(pescador.Streamer(batches).iterate())


@torch_items.by("ours-torch", way="pescador.torch.Dataset")
def _():
    import pescador.torch

    return Items(iter(pescador.torch.Dataset(pescador.Streamer(batches))))


@torch_items.by("torch", way="an IterableDataset with torch.from_numpy, and no state")
def _():
    import torch

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            for item in batches():
                yield {key: torch.from_numpy(value) for key, value in item.items()}

    return Items(iter(Batches()))
