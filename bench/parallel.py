"""Streams that run ahead in workers: what they gain, what they cost the consumer, and others.

What each case is to reach is said in it, and is a goal in `goals.py`. Every job opens its streams
anew for each round and takes what it calls `first` untimed: workers have been started by then, and
are as far ahead of the consumer as they will be.
"""

import functools
import itertools
import mmap
import multiprocessing
import random
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing

import data
import numpy as np
from case import case, over
from cases import BATCH, FILES, OPEN, ROW, from_process
from jobs import Calls, Fresh, Skip, Waits


def ahead_of(pescador, tree, workers, states=("numpy", "random"), **options):
    """The streamer that runs the streams of a tree in workers; the same items for any number."""
    if not hasattr(pescador, "ParallelStreamer"):
        raise Skip("has no ParallelStreamer")
    tree = pescador.Seeded(tree, 0, states=states)
    return pescador.ParallelStreamer(tree, workers, **options)


def mux_of(pescador, streams, n_active=OPEN, rate=16):
    """Some open, each for 16 samples on average, as in the pipelines."""
    return pescador.StochasticMux(streams, min(n_active, len(streams)), rate, mode="single_active")


def in_batches(stream, size, pause):
    """Lists of so many items, for a consumer that does something else for a while after each."""
    with closing(stream):
        while batch := list(itertools.islice(stream, size)):
            yield batch
            time.sleep(pause)


# --------------------------------------------------------------------- computing and waiting


def computing(i, ms):
    """Take so much processor time for each sample; on a clock, two would share one processor."""
    item = {"x": np.full(16, i, np.float32)}
    while True:
        until = time.thread_time() + ms / 1000
        while time.thread_time() < until:
            pass
        yield item


@case(
    "sample",
    "Workers",
    short=over("workers", 0, 2),
    tiny={"workers": 2, "ms": 0.01},
    parallel=True,
    warm=lambda **params: 1,
)
def parallel_compute(pescador, workers, ms=1):
    """Streams that compute for 1 ms a sample; two workers are to give 1.8 times as many as none."""
    streams = [pescador.Streamer(computing, i, ms) for i in range(100)]
    parallel = ahead_of(pescador, mux_of(pescador, streams), workers)
    return Fresh(parallel.iterate, first=256, round=1_000)


def sleeping(i, opening, pause):
    """Wait for what is opened, and for each sample, in seconds."""
    item = {"x": np.full(16, i, np.float32)}
    time.sleep(opening)
    while True:
        time.sleep(pause)
        yield item


# The consumer takes 64 samples, and then has a model compute for 20 ms elsewhere. As fast as it
# could, it would take what 32 open streams give, 2,000 samples a second each; but 8 that open at a
# time for 20 ms, and give 16 samples each, cannot be more than 6,400 samples a second, so that the
# figure would be that of these numbers. Here, some 3,000 samples a second are asked for: 190 visits
# begin in a second, and 4 of the 8 are opening at a time on average. They and the open ones sleep
# for 1.75 ms a sample, which takes 5 threads; with 16, none waits for another to wake up.
STEP, THREADS = 0.02, 16


def opening_ahead(pescador, opening, pause):
    streams = [pescador.Streamer(sleeping, i, opening / 1000, pause / 1000) for i in range(1_000)]
    # Nothing is drawn in these functions, which need not take turns, therefore.
    return ahead_of(
        pescador, mux_of(pescador, streams), THREADS, states=(), kind="thread", open_ahead=8
    )


@case(
    "sample",
    "Workers",
    short=over("opening", 0, 20),
    tiny={"opening": 1, "pause": 0},
    parallel=True,
    warm=lambda **params: 1,
    patience=60,
)
def parallel_opening(pescador, opening, pause=0.5):
    """Threads, 8 openings of 20 ms ahead, a model step of 20 ms: at least 0.9 of the rate of 0."""
    parallel = opening_ahead(pescador, opening, pause)
    return Fresh(
        lambda: in_batches(parallel.iterate(), BATCH, STEP), per=BATCH, first=20, round=40 * BATCH
    )


@case(
    "99th percentile",
    "Workers",
    short=over("opening", 0, 20),
    tiny={"opening": 1, "pause": 0},
    parallel=True,
    warm=lambda **params: 1,
    patience=60,
)
def parallel_waits(pescador, opening, pause=0.5):
    """The same: how long the consumer waits for a sample; at most 2 ms longer than with 0."""
    parallel = opening_ahead(pescador, opening, pause)
    return Waits(parallel.iterate, BATCH, STEP, first=20 * BATCH, round=40 * BATCH)


# -------------------------------------------------------------- what the consumer itself pays


def small(i):
    item = {"x": np.full(16, i, np.float32)}
    while True:
        yield item


def small_ones(pescador, mux, n=1_000):
    streams = [pescador.Streamer(small, i) for i in range(n if mux == "stochastic" else 100)]
    return mux_of(pescador, streams) if mux == "stochastic" else pescador.ShuffledMux(streams)


@case(
    "sample",
    "Workers: time of the consumer",
    short=over("mux", "stochastic", "shuffled"),
    tiny={"mux": "stochastic", "n": 5},
    parallel=True,
    warm=lambda **params: 1,
    patience=60,
)
def parallel_consumer(pescador, mux, n=1_000):
    """Items of float32[16] of trivial streams, two workers: at most 1 µs of processor time."""
    parallel = ahead_of(pescador, small_ones(pescador, mux, n), 2)
    return Fresh(parallel.iterate, first=5_000, round=100_000, clock=time.process_time)


# Two processors cannot run 64 workers, so these sleep. All of them together make 5,000 samples a
# second, whatever their number, and the consumer takes two thirds of that: it finds 64 samples that
# are there, and then sleeps itself. What it pays is that of taking and ordering, seldom of waiting.
SUPPLY = 5_000
AHEAD = {"read_ahead": 8, "open_ahead": 16}


@case(
    "sample",
    "Workers: time of the consumer",
    short=over("workers", 2, 64),
    tiny={"workers": 3},
    parallel=True,
    warm=lambda **params: 1,
    patience=60,
)
def parallel_many(pescador, workers):
    """Items of float32[16] of workers that sleep: 64 are to cost as much per sample as two."""
    streams = [pescador.Streamer(sleeping, i, 0, workers / SUPPLY) for i in range(1_000)]
    parallel = ahead_of(pescador, mux_of(pescador, streams, 128), workers, **AHEAD)
    return Fresh(
        lambda: in_batches(parallel.iterate(), BATCH, 1.5 * BATCH / SUPPLY),
        per=BATCH,
        first=20,
        round=80 * BATCH,
        clock=time.process_time,
    )


def sleep_for_nobody(i, workers):
    for _ in sleeping(i, 0, workers / SUPPLY):
        pass


def chosen_here(n):
    streams = [small(i) for i in range(n)]
    while True:
        yield next(random.choice(streams))


@parallel_many.by("hand", way="its samples made here, beside as many processes that sleep")
def _(workers):
    def batches():
        fork = multiprocessing.get_context("fork")
        with ExitStack() as cleanup:
            for i in range(workers):
                process = fork.Process(target=sleep_for_nobody, args=(i, workers), daemon=True)
                process.start()
                cleanup.callback(process.join)
                cleanup.callback(process.kill)
            yield from in_batches(chosen_here(128), BATCH, 1.5 * BATCH / SUPPLY)

    return Fresh(batches, per=BATCH, first=20, round=80 * BATCH, clock=time.process_time)


IMAGE = (3, 224, 224)
# So many streams, of one image each.
IMAGES = 100


def images(i, shape):
    item = {"x": np.full(shape, i, np.float32)}
    while True:
        yield item


@case(
    "batch",
    "Workers: time of the consumer",
    tiny={"shape": (3, 8, 8)},
    parallel=True,
    warm=lambda **params: 1,
    patience=60,
)
def parallel_images(pescador, shape=IMAGE):
    """Batches of 64 images, float32[3, 224, 224], two workers: at most 50 µs of processor time."""
    streams = [pescador.Streamer(images, i, shape) for i in range(IMAGES)]
    parallel = ahead_of(pescador, mux_of(pescador, streams), 2)
    # After as many as have gone through all the memory that is on its way at a time.
    return Fresh(
        lambda: pescador.buffer_stream(parallel, BATCH),
        first=10,
        round=20,
        clock=time.process_time,
    )


def write_part(pipe, batches, i):
    """Write every second image of each batch that is asked for, and say so."""
    # Half of them each, in turn: one alone would stay in the cache.
    images = [np.full(batches.shape[2:], j, np.float32) for j in range(i, IMAGES, 2)]
    turns = itertools.cycle(images)
    while True:
        (number,) = asked = pipe.recv_bytes()
        for row in range(i, BATCH, 2):
            batches[number][row] = next(turns)
        pipe.send_bytes(asked)


def written_by_two(shape, n_ahead=6):
    """Batches that two processes write, by one message each: nobody chooses what is in them."""
    memory = mmap.mmap(-1, 4 * n_ahead * BATCH * int(np.prod(shape)))
    batches = np.frombuffer(memory, np.float32).reshape(n_ahead, BATCH, *shape)
    fork = multiprocessing.get_context("fork")
    with ExitStack() as cleanup:
        pipes = []
        for i in range(2):
            pipe, other = fork.Pipe()
            process = fork.Process(target=write_part, args=(other, batches, i), daemon=True)
            process.start()
            cleanup.callback(process.join)
            cleanup.callback(process.kill)
            pipes.append(pipe)
        for number in range(n_ahead - 1):
            for pipe in pipes:
                pipe.send_bytes(bytes([number]))
        for number in itertools.cycle(range(n_ahead)):
            for pipe in pipes:
                pipe.recv_bytes()
            yield {"x": batches[number]}
            for pipe in pipes:
                pipe.send_bytes(bytes([(number - 1) % n_ahead]))


@parallel_images.by("hand", way="no samples: two processes write half of each batch, and say so")
def _(shape=IMAGE):
    return Fresh(lambda: written_by_two(shape), first=10, round=20, clock=time.process_time)


PLANNED = 50_000


@case("sample", "Workers: time of the consumer", short=over("mux", "stochastic", "shuffled"))
def parallel_plan(pescador, mux):
    """The plan alone, that is the engines over visits that give nothing: at most 0.3 µs."""
    tree = small_ones(pescador, mux)
    ahead_of(pescador, tree, 2)
    from pescador import _schedule, _visits

    # That of `Seeded(tree, 0)`.
    seed = np.random.SeedSequence(0, spawn_key=(0, 0))
    take = functools.partial(deque, maxlen=0)

    def planned():
        schedule = _schedule.Schedule(
            _visits.Run(False, seed), None, lambda _: None, lambda _: None, 2, 2, 2**28
        )
        run = _visits.Run(False, seed)
        schedule.plan_ahead(run, None)
        return itertools.islice(_visits.open_visit(tree, _visits.root_scope(run), {}), PLANNED)

    return Calls(take, setup=planned, per=PLANNED)


# ------------------------------------------------------------------------------- side by side


def rows_visited(path, rate, rng):
    """What one visit to a file gives."""
    with np.load(path) as shard:
        X, y = shard["X"], shard["y"]
    rows = rng.integers(len(y), size=rate)
    return X[rows], y[rows]


def mixed(visits, rng):
    """A block: the rows of several visits in random order, for batches that are cut from it."""
    arrays = [np.concatenate(parts) for parts in zip(*visits, strict=True)]
    order = rng.permutation(len(arrays[0]))
    return {key: array[order] for key, array in zip(("X", "y"), arrays, strict=False)}


def block_of(paths, rate, rng):
    """Visit files, 32 as a rule, and mix what they give."""
    return mixed([rows_visited(path, rate, rng) for path in paths], rng)


def passes_over(files, seed):
    """Files without end, each once in a pass."""
    rng = np.random.default_rng(seed)
    while True:
        yield from map(files.__getitem__, rng.permutation(len(files)).tolist())


def chosen(files, seed):
    """Numbers and files of blocks."""
    files = passes_over(files, seed)
    for number in itertools.count(seed << 32):
        yield number, list(itertools.islice(files, OPEN))


def made(rate, block):
    """The block of a number and its files."""
    number, paths = block
    return block_of(paths, rate, np.random.default_rng(number))


def blocks_of(paths, rate, seed):
    """Blocks without end, by hand."""
    return map(functools.partial(made, rate), chosen(paths, seed))


def put_blocks(put, *args):
    for block in blocks_of(*args):
        put(block)


def batches_cut(blocks, close=lambda: None, size=BATCH):
    """Batches of the rows of blocks, each a multiple of their size."""
    try:
        for block in blocks:
            for i in range(0, len(block["X"]), size):
                yield {key: array[i : i + size] for key, array in block.items()}
    finally:
        close()


def from_files(open_batches):
    """The job of who opens batches so; whole blocks of theirs are taken."""

    def checked():
        with closing(open_batches()) as batches:
            for i, batch in enumerate(batches):
                if i < OPEN:
                    found = {key: (it.shape, str(it.dtype)) for key, it in batch.items()}
                    if found != {"X": ((BATCH, 64), "float32"), "y": ((BATCH,), "int64")}:
                        raise ValueError(f"batches of {found}")
                yield batch

    return Fresh(checked, per=BATCH, first=OPEN, round=256 * BATCH)


def compressed(n):
    return data.recordings(n, compressed=True)


def only_with(workers):
    if not workers:
        raise Skip("is measured with two workers")


@case(
    "sample",
    "Workers",
    short=over("workers", 0, 2),
    tiny={"workers": 2, "rate": 4, "n": 5},
    parallel=True,
    n_bytes=lambda **params: ROW,
    files=lambda workers, rate=16, n=FILES: compressed(n),
    warm=lambda **params: 1,
    patience=60,
)
def parallel_npz(pescador, workers, rate=16, n=FILES):
    """Batches of 64 rows of 1,000 compressed .npz files, 32 open: two workers give 1.6 as many."""
    sources = pescador.sources.from_files(compressed(n), pescador.sources.Rows)
    # As in a long run, and with no workers here: what is in a file has been looked up before.
    parallel = ahead_of(pescador, mux_of(pescador, sources, rate=rate), workers, keep_workers=True)
    return from_files(lambda: pescador.buffer_stream(parallel, BATCH))


@parallel_npz.by("hand", way="np.load; 32 visits mixed at a time; a multiprocessing.Queue a worker")
def _(workers, rate=16, n=FILES):
    paths = compressed(n)

    def opened():
        if not workers:
            return batches_cut(blocks_of(paths, rate, 0))
        queues = ExitStack()
        streams = [
            queues.enter_context(
                closing(from_process(put_blocks, paths[i::workers], rate, i, depth=2))
            )
            for i in range(workers)
        ]
        in_turn = itertools.chain.from_iterable(zip(*streams, strict=True))
        return batches_cut(in_turn, queues.close)

    return from_files(opened)


def torch_batches(dataset, workers, size=BATCH, **how):
    from torch.utils.data import DataLoader

    loader = iter(DataLoader(dataset, num_workers=workers, **how))
    # Closing is letting go of the loader's iterator, which ends its workers.
    return batches_cut(loader, getattr(loader, "_shutdown_workers", lambda: None), size)


@parallel_npz.by(
    "torch",
    way="DataLoader over an IterableDataset, two workers with half of the files each; blocks of "
    "32 visits, as NumPy arrays, cut into batches by the consumer",
)
def _(workers, rate=16, n=FILES):
    from torch.utils.data import IterableDataset, get_worker_info

    only_with(workers)
    paths = compressed(n)

    class Blocks(IterableDataset):
        def __iter__(self):
            own = get_worker_info()
            return blocks_of(paths[own.id :: own.num_workers], rate, own.id)

    # Arrays that `collate_fn` leaves alone; as tensors they would take a file descriptor each.
    how = {"batch_size": None, "collate_fn": lambda block: block}
    return from_files(lambda: torch_batches(Blocks(), workers, **how))


@parallel_npz.by(
    "torch-map",
    way="DataLoader over a Dataset of which each index is a visit, two workers; batches of 32 "
    "visits, mixed as NumPy arrays by collate_fn, cut into batches by the consumer",
)
def _(workers, rate=16, n=FILES):
    from torch.utils.data import Dataset

    only_with(workers)
    paths, rng = compressed(n), np.random.default_rng(0)

    class Visits(Dataset):
        def __getitem__(self, i):
            return rows_visited(paths[i], rate, rng)

    how = {"batch_size": OPEN, "collate_fn": lambda visits: mixed(visits, rng)}
    sampled = functools.partial(passes_over, range(n), 0)
    return from_files(lambda: torch_batches(Visits(), workers, sampler=sampled(), **how))


@parallel_npz.by(
    "grain",
    way="MapDataset of files, shuffled, batch(32), random_map to a block; mp_prefetch, two "
    "workers; cut into batches by the consumer",
)
def _(workers, rate=16, n=FILES):
    import grain

    only_with(workers)
    files = grain.MapDataset.source(compressed(n)).seed(0).shuffle().repeat()
    blocks = (
        files.batch(OPEN, batch_fn=list)
        .random_map(lambda paths, rng: block_of(paths, rate, rng))
        .to_iter_dataset(grain.ReadOptions(num_threads=0))
    )
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)

    def opened():
        loader = iter(blocks.mp_prefetch(options))
        return batches_cut(loader, loader.close)

    return from_files(opened)


@parallel_npz.by(
    "tf.data",
    way="shuffle, batch(32) of files; interleave, num_parallel_calls=2, not deterministic, over a "
    "numpy_function that makes a block; cut into batches by the consumer",
)
def _(workers, rate=16, n=FILES):
    import tensorflow as tf

    only_with(workers)
    rng = np.random.default_rng(0)

    def arrays(paths):
        block = block_of([path.decode() for path in paths], rate, rng)
        return block["X"], block["y"]

    def block(paths):
        X, y = tf.numpy_function(arrays, [paths], [tf.float32, tf.int64])
        return {"X": tf.ensure_shape(X, (None, 64)), "y": tf.ensure_shape(y, (None,))}

    files = tf.data.Dataset.from_tensor_slices(compressed(n)).shuffle(n, seed=0).repeat()
    blocks = files.batch(OPEN).interleave(
        lambda paths: tf.data.Dataset.from_tensors(paths).map(block),
        cycle_length=workers,
        num_parallel_calls=workers,
        deterministic=False,
    )
    return from_files(lambda: batches_cut(blocks.prefetch(2).as_numpy_iterator()))


def spdl_job(executor, workers, rate, n):
    from spdl.pipeline import PipelineBuilder

    only_with(workers)
    paths = compressed(n)

    def opened():
        running = ExitStack()
        pipeline = (
            PipelineBuilder()
            .add_source(chosen(paths, 0))
            .pipe(
                functools.partial(made, rate),
                concurrency=workers,
                executor=running.enter_context(executor(workers)),
            )
            .add_sink(2)
            .build(num_threads=1)
        )
        running.enter_context(pipeline.auto_stop())
        return batches_cut(pipeline.get_iterator(), running.close)

    return from_files(opened)


@parallel_npz.by(
    "spdl",
    way="PipelineBuilder.pipe to blocks, concurrency=2, ThreadPoolExecutor; cut into batches by "
    "the consumer",
)
def _(workers, rate=16, n=FILES):
    return spdl_job(ThreadPoolExecutor, workers, rate, n)


@parallel_npz.by("spdl-process", way="the same with a ProcessPoolExecutor")
def _(workers, rate=16, n=FILES):
    return spdl_job(ProcessPoolExecutor, workers, rate, n)
