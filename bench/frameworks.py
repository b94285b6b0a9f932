"""Streams in the loops of frameworks: what they add to a batch; pipelines that end in tensors."""

import functools
from contextlib import closing

import data
import numpy as np
from case import case, over
from cases import BATCH, FILES, FRAMES, OPEN, WINDOWS, in_memory_files, stored_arrays
from jobs import Fresh, Items
from parallel import ahead_of, chosen, compressed, mixed, rows_visited, torch_batches


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


# ------------------------------------------------------------------------------- pipelines

WORKERS, RATE = 2, 16


def rows_drawn(arrays, rate, rng):
    """What one visit to arrays in memory gives."""
    rows = rng.integers(len(arrays["y"]), size=rate)
    return arrays["X"][rows], arrays["y"][rows]


def rows_stored(path, rate, rng):
    """What one visit to a chunked store gives."""
    with stored_arrays(path) as (X, y):
        rows, inverse = np.unique(rng.integers(y.shape[0], size=rate), return_inverse=True)
        return tuple(getattr(array, "oindex", array)[rows][inverse] for array in (X, y))


def windows_cut(path, rate, rng):
    """What one visit to a spectrogram gives."""
    frames = np.load(path, mmap_mode="r")
    starts = rng.integers(len(frames) - FRAMES + 1, size=rate)
    return (np.stack([frames[i : i + FRAMES] for i in starts]),)


# Of each pipeline: where the data are, how many are open, how a visit is made by hand, how many
# items a batch has.
PIPELINES = {
    "npz": (data.recordings, FILES, OPEN, rows_visited, BATCH),
    "compressed": (compressed, FILES, OPEN, rows_visited, BATCH),
    "memory": (in_memory_files, 100, 100, rows_drawn, BATCH),
    "windows": (data.spectrograms, FILES, OPEN, windows_cut, WINDOWS),
    "hdf5": (functools.partial(data.stores, "hdf5", n_rows=512), 16, 8, rows_stored, BATCH),
    "zarr": (functools.partial(data.stores, "zarr", n_rows=512), 16, 8, rows_stored, BATCH),
}


def files_of(kind, n=None):
    find, most = PIPELINES[kind][:2]
    return find(n or most)


def pipeline(pescador, kind, n=None):
    """The batches of a pipeline, in two workers."""
    files = files_of(kind, n)
    n_open, _, size = PIPELINES[kind][2:]
    if kind == "memory":
        mux = pescador.ShuffledMux([pescador.sources.Rows(one) for one in files])
        batches = pescador.Streamer(pescador.buffer_stream, mux, size)
    else:
        length = FRAMES if kind == "windows" else None
        batches = pescador.batches(
            files, size, length=length, n_active=min(n_open, len(files)), rate=RATE
        )
    return ahead_of(pescador, batches, WORKERS)


def opened_anew(kind, open_batches):
    """The job of who opens batches so; whole blocks of theirs are taken."""
    size = PIPELINES[kind][-1]
    return Fresh(open_batches, per=size, first=OPEN, round=256 * size)


@case(
    "sample",
    "In frameworks",
    short=over("kind", *PIPELINES),
    tiny={"kind": "npz", "n": 5},
    parallel=True,
    files=files_of,
    warm=lambda **params: 1,
    patience=60,
)
def torch_pipeline(pescador, kind, n=None):
    """The batches of the pipelines from two workers: as they are, or as tensors for a loop."""
    stream = pipeline(pescador, kind, n)
    return opened_anew(kind, stream.iterate)


@torch_pipeline.by("ours-torch", way="pescador.torch.Dataset over a ParallelStreamer")
def _(kind, n=None):
    import pescador.torch

    stream = pipeline(pescador, kind, n)
    return opened_anew(kind, lambda: closed_early(iter(pescador.torch.Dataset(stream))))


def closed_early(items):
    """The items of an iterator that has no `close`, but ends with its last reference."""
    yield from items


@torch_pipeline.by(
    "torch",
    way="DataLoader over an IterableDataset, two workers with half of the files each; blocks of 32 "
    "visits, windows as tensors and rows as NumPy arrays, cut into batches of tensors by the "
    "consumer",
)
def _(kind, n=None):
    import torch

    files = files_of(kind, n)
    _, visit, size = PIPELINES[kind][2:]

    class Blocks(torch.utils.data.IterableDataset):
        def __iter__(self):
            own = torch.utils.data.get_worker_info()
            for number, found in chosen(files[own.id :: own.num_workers], own.id):
                rng = np.random.default_rng(number)
                arrays = mixed([visit(one, RATE, rng) for one in found], rng)
                # Through shared memory, which pays for large ones only.
                yield tensors(arrays) if kind == "windows" else arrays

    def tensors(arrays):
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    def opened():
        how = {"batch_size": None, "collate_fn": lambda block: block}
        with closing(torch_batches(Blocks(), WORKERS, size, **how)) as batches:
            yield from batches if kind == "windows" else map(tensors, batches)

    return opened_anew(kind, opened)
