"""The work that is measured, each case written once.

A case is a function of the package under test and of parameters; it returns a job (``jobs.py``).
That one function serves every contestant that has pescador's API. How others do the same work is
said below it, by contestant. Sources are trivial, so that what is measured is everything else.

The identifier of a case is its name and the parameters that it is run with:
``shuffled/n=1000``. Parameters with defaults are left out where the default is meant.
"""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
from collections import deque

import data
import numpy as np
from case import case, over
from jobs import Calls, Fresh, Items, Skip
from limit import batches_in_c

# ----------------------------------------------------------------------------------- sources


def forever(i):
    while True:
        yield i


def some(i, length):
    for _ in range(length):
        yield i


def reads(array):
    first = array[0]
    while True:
        yield first


def writes(array):
    array += 1
    yield from reads(array)


def items(argument):
    item = {"x": np.zeros(16, np.float32)}
    while True:
        yield item


def bare(**params):
    """The limit of any stream: asking a generator for its next item."""
    return Items(forever(0))


# -------------------------------------------------------------------------------- one stream


@case("sample", "One stream", same=True)
def streamer(pescador):
    """Streamer.iterate on an endless generator."""
    return Items(pescador.Streamer(forever, 0).iterate())


streamer.by("hand", "limit")(bare)


@case("sample", "One stream", same=True)
def bound(pescador, length=100_000):
    """A Streamer bounded by max_iter, run to its end; by hand, itertools.islice."""
    stream = pescador.Streamer(forever, 0)
    return Calls(lambda _: drain(stream.iterate(max_iter=length)), per=length)


@bound.by("hand")
def _(length=100_000):
    return Calls(lambda _: drain(itertools.islice(forever(0), length)), per=length)


bound.by("limit")(bare)


def drain(iterator):
    """Run an iterator to its end; return its last item."""
    item = None
    for item in iterator:  # noqa: B007
        pass
    return item


@case("sample", "One stream", short=over("length", 10), full=over("length", 1, 100), same=True)
def cycle(pescador, length):
    """Streamer.cycle over a stream that is restarted every `length` samples."""
    return Items(pescador.Streamer(some, 0, length).cycle())


@cycle.by("hand")
def _(length):
    return Items(item for _ in itertools.repeat(None) for item in some(0, length))


cycle.by("limit")(bare)


# ------------------------------------------------------------------------- mixing all streams


def weights_of(n):
    return [1.0 + i % 10 for i in range(n)]


def touched(n, **params):
    """Enough samples that nearly all of n streams have started."""
    return 3 * n


@case(
    "sample",
    "Mixing all streams",
    short=over("n", 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    + over("n", 10, 1_000, weighted=True),
    full=over("n", 30, 300, 3_000, 30_000, 300_000)
    + over("n", 100, 10_000, 100_000, 1_000_000, weighted=True),
    tiny={"n": 5},
    warm=touched,
)
def shuffled(pescador, n, weighted=False):
    """ShuffledMux over n streams."""
    streams = [pescador.Streamer(forever, i) for i in range(n)]
    weights = weights_of(n) if weighted else None
    return Items(pescador.ShuffledMux(streams, weights=weights, random_state=0).iterate())


@shuffled.by("hand")
def _(n, weighted=False):
    g = [forever(i) for i in range(n)]

    def uniform():
        random = python_uniform()
        while True:
            yield next(g[int(random() * n)])

    def by_weight():
        cumulative = list(itertools.accumulate(weights_of(n)))
        choices = random.Random(0).choices
        while True:
            yield next(choices(g, cum_weights=cumulative)[0])

    return Items(by_weight() if weighted else uniform())


def python_uniform():
    return random.Random(0).random


shuffled.by("limit")(bare)


# Others: each in the fastest way that its documentation has for mixing endless streams, found by
# measuring the candidates side by side. Libraries that pay for each item that crosses to Python
# have a way to make batches, and are asked for their samples in batches of this many.
BLOCK = 1_024


def unpacked(batches):
    """The items of batches of `BLOCK`; a round takes whole ones, as what is left of one is free."""
    return Items(itertools.chain.from_iterable(batches), block=BLOCK)


def choices_of(n, weighted=False, size=2**16):
    """Streams drawn beforehand, as a list: for those whose choices come from a table."""
    p = np.array(weights_of(n)) / sum(weights_of(n)) if weighted else None
    return np.random.default_rng(0).choice(n, size=size, p=p).tolist()


@shuffled.by("hand-blocks", way="map(next, ...) over choices that NumPy draws 1,024 at a time")
def _(n, weighted=False):
    g = [forever(i) for i in range(n)]
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(weights_of(n)) if weighted else None

    def choices():
        while True:
            if weighted:
                places = rng.random(BLOCK) * cumulative[-1]
                yield cumulative.searchsorted(places, side="right").tolist()
            else:
                yield rng.integers(n, size=BLOCK).tolist()

    drawn = itertools.chain.from_iterable(choices())
    return Items(map(next, map(g.__getitem__, drawn)), block=BLOCK)


@shuffled.by("more-itertools", way="interleave_randomly")
def _(n, weighted=False):
    from more_itertools import interleave_randomly

    if weighted:
        raise Skip("interleave_randomly has no weights")
    return Items(interleave_randomly(*[forever(i) for i in range(n)]))


@shuffled.by("torchdata", way="MultiNodeWeightedSampler, CYCLE_FOREVER, over IterableWrapper")
def _(n, weighted=False):
    from torchdata.nodes import IterableWrapper, MultiNodeWeightedSampler, StopCriteria

    nodes = {str(i): IterableWrapper(forever(i)) for i in range(n)}
    weights = dict(zip(nodes, weights_of(n) if weighted else [1.0] * n, strict=True))
    # The other criteria look through the streams that have ended, for each sample.
    criterion = StopCriteria.CYCLE_FOREVER
    return Items(iter(MultiNodeWeightedSampler(nodes, weights, stop_criteria=criterion, seed=0)))


@shuffled.by("lhotse", way="CutSet.mux")
def _(n, weighted=False):
    from lhotse import CutSet

    weights = weights_of(n) if weighted else None
    return Items(iter(CutSet.mux(*[CutSet(forever(i)) for i in range(n)], weights=weights, seed=0)))


@shuffled.by("lhotse-infinite", way="CutSet.infinite_mux, max_open_streams=n")
def _(n, weighted=False):
    from lhotse import CutSet

    weights = weights_of(n) if weighted else None
    streams = [CutSet(forever(i)) for i in range(n)]
    # As many open as elsewhere here.
    return Items(iter(CutSet.infinite_mux(*streams, weights=weights, seed=0, max_open_streams=n)))


def grain_streams(make, count):
    """Streams of grain over iterators: an IterDataset each."""
    import grain

    class Stream(grain.DatasetIterator):
        def __init__(self, iterator):
            super().__init__()
            self.iterator = iterator

        def __next__(self):
            return next(self.iterator)

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    class Source(grain.IterDataset):
        def __init__(self, i):
            super().__init__()
            self.i = i

        def __iter__(self):
            return Stream(make(self.i))

        def set_slice(self, sl, sequential_slice=False):
            """Called in a worker process: one of them reads all."""

    return [Source(i) for i in range(count)]


@shuffled.by("grain", way="IterDataset.mix over iterators, batch(1,024, batch_fn=list), unpacked")
def _(n, weighted=False):
    import grain

    weights = weights_of(n) if weighted else None
    mixed = grain.IterDataset.mix(grain_streams(forever, n), weights=weights)
    return unpacked(mixed.batch(BLOCK, batch_fn=list))


def grain_selected(n, select):
    """Samples from n tables of one row; `select` gives the table of a sample by its number."""
    import grain

    class Selected(grain.transforms.DatasetSelectionMap):
        def __len__(self):
            return sys.maxsize

        def __getitem__(self, k):
            return select(k), k

    tables = [grain.MapDataset.source([i]) for i in range(n)]
    mixed = grain.MapDataset.select_from_datasets(tables, Selected()).batch(BLOCK, batch_fn=list)
    # By index: iterated, they would go through a pool of threads.
    return unpacked(map(mixed.__getitem__, itertools.count()))


@shuffled.by(
    "grain-select",
    way="MapDataset.select_from_datasets, 65,536 choices drawn before, batch(1,024), by index",
)
def _(n, weighted=False):
    choices = choices_of(n, weighted)
    return grain_selected(n, lambda k: choices[k & 65_535])


@shuffled.by("webdataset", way="RandomMix")
def _(n, weighted=False):
    from webdataset.mix import RandomMix

    probs = weights_of(n) if weighted else None
    return Items(iter(RandomMix([forever(i) for i in range(n)], probs)))


def records(i):
    while True:
        yield {"i": i}


def datasets_streams(n):
    from datasets import IterableDataset

    return [IterableDataset.from_generator(records, gen_kwargs={"i": i}) for i in range(n)]


def probabilities(n, weighted):
    weights = np.array(weights_of(n) if weighted else [1.0] * n)
    return list(weights / weights.sum())


@shuffled.by("datasets", way="interleave_datasets of IterableDatasets")
def _(n, weighted=False):
    from datasets import interleave_datasets

    mixed = interleave_datasets(
        datasets_streams(n), probabilities=probabilities(n, weighted), seed=0
    )
    return Items(record["i"] for record in mixed)


@shuffled.by(
    "datasets-map",
    way="interleave_datasets of tables, whole order drawn before, iter(1,024), unpacked, repeated",
)
def _(n, weighted=False):
    from datasets import Dataset, interleave_datasets

    tables = [Dataset.from_dict({"i": [i] * 1_000}) for i in range(n)]
    mixed = interleave_datasets(tables, probabilities=probabilities(n, weighted), seed=0)
    passes = (batch["i"] for _ in itertools.repeat(None) for batch in mixed.iter(BLOCK))
    return unpacked(passes)


def tf_streams(n):
    from tensorflow.data import Dataset

    return [Dataset.from_tensors(i).repeat() for i in range(n)]


def tf_samples(mixed):
    import tensorflow

    # Autotuning costs ten times as much as the mix.
    options = tensorflow.data.Options()
    options.autotune.enabled = False
    batches = mixed.batch(BLOCK).with_options(options).as_numpy_iterator()
    return unpacked(batch.tolist() for batch in batches)


@shuffled.by("tf.data", way="sample_from_datasets, autotune off, batch(1,024), unpacked")
def _(n, weighted=False):
    from tensorflow.data import Dataset

    weights = weights_of(n) if weighted else None
    return tf_samples(Dataset.sample_from_datasets(tf_streams(n), weights=weights, seed=0))


@shuffled.by(
    "tf.data-choose",
    way="choose_from_datasets, choices by 1,024, autotune off, batch(1,024), unpacked",
)
def _(n, weighted=False):
    import tensorflow
    from tensorflow.data import Dataset

    if weighted:
        cumulative = tensorflow.constant(np.cumsum(weights_of(n)) / sum(weights_of(n)))

        def pick(numbers):
            numbers = tensorflow.cast(numbers, tensorflow.float64) / 2**32
            found = tensorflow.searchsorted(cumulative, numbers, side="right")
            return tensorflow.cast(found, tensorflow.int64)

    else:

        def pick(numbers):
            return numbers % n

    choices = Dataset.random(seed=0).batch(BLOCK).map(pick).unbatch()
    return tf_samples(Dataset.choose_from_datasets(tf_streams(n), choices))


def fairseq2_streams(n, native):
    from fairseq2.data.data_pipeline import read_iterator, read_sequence

    if native:
        return [read_sequence([i]).repeat().and_return() for i in range(n)]

    # A generator cannot be pickled, which only saving its state would need.
    def read(stream):
        return read_iterator(stream, lambda it: it, infinite=True, skip_pickling_check=True)

    return [read(forever(i)).and_return() for i in range(n)]


def fairseq2_sampled(n, weighted, native):
    from fairseq2.data.data_pipeline import DataPipeline

    weights = weights_of(n) if weighted else None
    mixed = DataPipeline.sample(fairseq2_streams(n, native), weights=weights, seed=0)
    return unpacked(mixed.bucket(BLOCK).and_return())


@shuffled.by("fairseq2", way="DataPipeline.sample over read_iterator, bucket(1,024), unpacked")
def _(n, weighted=False):
    return fairseq2_sampled(n, weighted, native=False)


@shuffled.by(
    "fairseq2-native",
    way="DataPipeline.sample over read_sequence([i]).repeat(), bucket(1,024), unpacked",
)
def _(n, weighted=False):
    return fairseq2_sampled(n, weighted, native=True)


@case(
    "sample",
    "Mixing all streams",
    short=over("n", 1_000),
    full=over("n", 10, 100_000),
    tiny={"n": 3},
    warm=touched,
    same=True,
)
def round_robin(pescador, n):
    """RoundRobinMux, mode cycle, over n endless streams."""
    streams = [pescador.Streamer(forever, i) for i in range(n)]
    return Items(pescador.RoundRobinMux(streams, mode="cycle").iterate())


@round_robin.by("hand")
def _(n):
    return Items(next(stream) for stream in itertools.cycle([forever(i) for i in range(n)]))


@round_robin.by("hand-blocks", way="map(next, itertools.cycle(...))")
def _(n):
    return Items(map(next, itertools.cycle([forever(i) for i in range(n)])))


@round_robin.by("more-itertools", way="roundrobin")
def _(n):
    from more_itertools import roundrobin

    return Items(roundrobin(*[forever(i) for i in range(n)]))


@round_robin.by("webdataset", way="RoundRobin")
def _(n):
    from webdataset.mix import RoundRobin

    return Items(iter(RoundRobin([forever(i) for i in range(n)])))


@round_robin.by("grain-select", way="MapDataset.select_from_datasets, batch(1,024), by index")
def _(n):
    return grain_selected(n, lambda k: k % n)


@round_robin.by("datasets", way="interleave_datasets of IterableDatasets")
def _(n):
    from datasets import interleave_datasets

    return Items(record["i"] for record in interleave_datasets(datasets_streams(n)))


@round_robin.by("tf.data-choose", way="choose_from_datasets, autotune off, batch(1,024), unpacked")
def _(n):
    from tensorflow.data import Dataset

    turns = Dataset.range(n).repeat()
    return tf_samples(Dataset.choose_from_datasets(tf_streams(n), turns))


def fairseq2_in_turn(n, native):
    from fairseq2.data.data_pipeline import DataPipeline

    mixed = DataPipeline.round_robin(fairseq2_streams(n, native))
    return unpacked(mixed.bucket(BLOCK).and_return())


@round_robin.by("fairseq2", way="DataPipeline.round_robin over read_iterator, bucket(1,024)")
def _(n):
    return fairseq2_in_turn(n, native=False)


@round_robin.by("fairseq2-native", way="DataPipeline.round_robin over read_sequence, bucket(1,024)")
def _(n):
    return fairseq2_in_turn(n, native=True)


round_robin.by("limit")(bare)


@case(
    "sample",
    "Mixing all streams",
    short=over("depth", 2),
    full=[*over("depth", 3), {"depth": 2, "outer": "stochastic"}],
    tiny={"depth": 2},
    warm=lambda depth, **params: 3 * 10**depth,
)
def tree(pescador, depth, outer="shuffled"):
    """Muxes of ten in `depth` levels; the outermost may be a StochasticMux."""
    numbers = itertools.count()

    def grow(level):
        if level == 0:
            return pescador.Streamer(forever, next(numbers))
        pool = [grow(level - 1) for _ in range(10)]
        if level == depth and outer == "stochastic":
            return pescador.StochasticMux(pool, 5, 64, random_state=level)
        return pescador.ShuffledMux(pool, random_state=level)

    return Items(grow(depth).iterate())


@tree.by("hand")
def _(depth, outer="shuffled"):
    if outer != "shuffled":
        raise Skip("not written by hand")
    numbers = itertools.count()

    def mix(g):
        pick, n = python_uniform(), len(g)
        while True:
            yield next(g[int(pick() * n)])

    def grow(level):
        if level == 0:
            return forever(next(numbers))
        return mix([grow(level - 1) for _ in range(10)])

    return Items(grow(depth))


tree.by("limit")(bare)


# ------------------------------------------------------------------ a few of many open at once


def settled(n=1_000, n_active=100, rate=8, **params):
    """Enough samples that the whole active set has been replaced, and the pool been visited."""
    return max(1000, 2 * n_active * int(rate or 1), min(n, 1_000_000))


@case(
    "sample",
    "A few of many open",
    short=[
        *over("n", 100, 1_000, 10_000, 100_000, 1_000_000),
        *over("mode", "single_active", "exhaustive"),
        *over("dist", "poisson", "constant"),
        {"weighted": True},
        *over("n_active", 1, 10, 1_000, n=20_000),
        {"n_active": 10_000, "n": 20_000},
        {"n_active": 100_000, "n": 200_000},
        {"rate": 256},
    ],
    full=[
        *over("n", 300, 3_000, 30_000, 300_000),
        *over("n", 100_000, 1_000_000, mode="single_active"),
        {"n_active": 100, "n": 20_000},
        {"n_active": 30_000, "n": 60_000},
        *over("rate", 2, 64),
        *(
            {"mode": mode, "dist": dist}
            for mode in ("single_active", "exhaustive")
            for dist in ("poisson", "constant")
        ),
        {"weighted": True, "mode": "single_active"},
        {"n_active": 10_000, "n": 20_000, "mode": "single_active"},
        {"n_active": 10_000, "n": 20_000, "weighted": True},
        {"rate": None},
    ],
    tiny={"n": 8, "n_active": 3},
    warm=settled,
)
def stochastic(
    pescador,
    n=1_000,
    n_active=100,
    rate=8,
    mode="with_replacement",
    dist="binomial",
    weighted=False,
):
    """StochasticMux over n streams with n_active open, 'rate' samples each; 1,000, 100 and 8."""
    streams = [pescador.Streamer(forever, i) for i in range(n)]
    mux = pescador.StochasticMux(
        streams,
        n_active,
        rate,
        weights=weights_of(n) if weighted else None,
        mode=mode,
        dist=dist,
        random_state=0,
    )
    return Items(mux.cycle() if mode == "exhaustive" else mux.iterate())


@stochastic.by("hand")
def _(
    n=1_000,
    n_active=100,
    rate=8,
    mode="with_replacement",
    dist="binomial",
    weighted=False,
):
    if mode != "with_replacement" or weighted or rate is None:
        raise Skip("not written by hand")

    def mix():
        pick, rng = python_uniform(), np.random.RandomState(0)
        p = 1 / n_active
        if dist == "constant":
            draw = lambda: rate  # noqa: E731
        elif dist == "poisson" or p == 1:
            draw = lambda: 1 + rng.poisson(rate - 1)  # noqa: E731
        else:
            draw = lambda: 1 + rng.binomial(int((rate - 1) / (1 - p)), 1 - p)  # noqa: E731
        streams = [forever(int(pick() * n)) for _ in range(n_active)]
        left = [draw() for _ in range(n_active)]
        while True:
            slot = int(pick() * n_active)
            if not left[slot]:
                streams[slot] = forever(int(pick() * n))
                left[slot] = draw()
            left[slot] -= 1
            yield next(streams[slot])

    return Items(mix())


stochastic.by("limit")(bare)


# -------------------------------------------------------------------------- streams that end


@case(
    "sample",
    "Streams that end",
    short=over("n", 1_000),
    full=[*over("n", 10, 100000), {"n": 1000, "length": 100}],
    tiny={"n": 4},
    same=True,
)
def chain(pescador, n, length=3):
    """ChainMux, mode cycle, over n streams of `length` samples."""
    streams = [pescador.Streamer(some, i, length) for i in range(n)]
    # At the end of a pass, some start all of their streams anew.
    return Items(pescador.ChainMux(streams, mode="cycle").iterate(), block=n * length)


@chain.by("hand")
def _(n, length=3):
    streams = (some(i, length) for i in itertools.cycle(range(n)))
    return Items(itertools.chain.from_iterable(streams), block=n * length)


chain.by("limit")(bare)


@case(
    "sample",
    "Streams that end",
    short=over("mux", "shuffled", "stochastic"),
    full=over("mux", "round_robin", "permuted")
    + over("mux", "shuffled", "stochastic", n=10_000)
    + over("mux", "shuffled", "stochastic", length=1),
    tiny={"mux": "shuffled", "n": 4},
    warm=lambda n=100, **params: 10 * n,
)
def mortal(pescador, mux, n=100, length=3):
    """Muxes over n streams that die after `length` samples; a StochasticMux opens a tenth."""
    streams = [pescador.Streamer(some, i, length) for i in range(n)]
    if mux == "shuffled":
        return Items(pescador.ShuffledMux(streams, random_state=0).iterate())
    if mux == "stochastic":
        return Items(
            pescador.StochasticMux(streams, max(1, n // 10), None, random_state=0).iterate()
        )
    mode = {"round_robin": "cycle", "permuted": "permuted_cycle"}[mux]
    return Items(pescador.RoundRobinMux(streams, mode=mode, random_state=0).iterate())


@mortal.by("hand")
def _(mux, n=100, length=3):
    if mux in ("round_robin", "permuted"):
        raise Skip("not written by hand")
    n_active = n if mux == "shuffled" else max(1, n // 10)

    def mix():
        pick = python_uniform()
        stream_of = list(range(n_active))
        g = [some(i, length) for i in stream_of]
        while True:
            slot = int(pick() * n_active)
            try:
                item = next(g[slot])
            except StopIteration:
                if mux == "stochastic":
                    stream_of[slot] = int(pick() * n)
                g[slot] = some(stream_of[slot], length)
            else:
                yield item

    return Items(mix())


mortal.by("limit")(bare)


@case(
    "sample",
    "Streams that end",
    short=over("mux", "stochastic", "round_robin"),
    full=over("mux", "pruned"),
    tiny={"mux": "stochastic"},
    warm=lambda **params: 2_000,
)
def empties(pescador, mux):
    """1,000 streams of which nine in ten have no samples, and the others eight."""
    streams = [pescador.Streamer(some, i, 0 if i % 10 else 8) for i in range(1_000)]
    if mux == "round_robin":
        return Items(pescador.RoundRobinMux(streams, mode="cycle").iterate(), block=100 * 8)
    return Items(
        pescador.StochasticMux(
            streams, 100, None, prune_empty_streams=mux == "pruned", random_state=0
        ).iterate()
    )


empties.by("limit")(bare)


# --------------------------------------------------------------------- activation, first sample


def mux_of(pescador, streams, mux):
    if mux == "shuffled":
        return pescador.ShuffledMux(streams, random_state=0)
    return pescador.StochasticMux(streams, min(100, len(streams)), 8, random_state=0)


def first_of(mux):
    stream = mux.iterate()
    # The stream is kept, so that closing it is not part of the time.
    return stream, next(stream)


@case(
    "activation",
    "Starting",
    short=over("mux", "stochastic", "shuffled"),
    full=over("mux", "stochastic", "shuffled", n=1_000),
    tiny={"mux": "shuffled", "n": 5},
    warm=lambda **params: 1,
)
def first(pescador, mux, n=30_000):
    """The time to the first sample of a new mux over n streamers, 100 of them open."""
    streams = [pescador.Streamer(forever, i) for i in range(n)]
    return Calls(first_of, setup=lambda: mux_of(pescador, streams, mux))


@case(
    "activation",
    "Starting",
    short=over("mux", "stochastic"),
    full=over("mux", "shuffled"),
    tiny={"mux": "stochastic", "n": 5},
    warm=lambda **params: 1,
)
def again(pescador, mux, n=30_000):
    """The time to the first sample of a mux that was iterated before."""
    it = mux_of(pescador, [pescador.Streamer(forever, i) for i in range(n)], mux)
    return Calls(lambda _: first_of(it))


@case(
    "activation",
    "Starting",
    short=over("kind", "array", "memmap"),
    full=over("kind", "small", "list"),
    tiny={"kind": "array", "megabytes": 1},
    warm=lambda **params: 2,
)
def argument(pescador, kind, megabytes=25):
    """Starting a Streamer that is given a large array, a read-only memmap, or something small."""
    stream = pescador.Streamer(reads, argument_of(kind, megabytes))
    return Calls(lambda _: first_of(stream))


def argument_of(kind, megabytes):
    n = megabytes * 2**20 // 4
    if kind == "small":
        return np.zeros(16, np.float32)
    if kind == "list":
        return [np.zeros(16, np.float32) for _ in range(100)]
    if kind == "memmap":
        with tempfile.NamedTemporaryFile() as file:
            np.zeros(n, np.float32).tofile(file.name)
            return np.memmap(file.name, np.float32, mode="r")
    return np.zeros(n, np.float32)


@case(
    "sample",
    "Starting",
    short=[
        {"kind": "array"},
        {"kind": "array", "n": 50, "n_active": 5},
        {"kind": "array", "n": 50, "n_active": 5, "each": True},
    ],
    full=[*over("kind", "memmap", "written"), {"kind": "array", "n": 30000}],
    tiny={"kind": "array", "n": 5, "megabytes": 1},
    # Each array has been given to three streams.
    warm=lambda n=1_000, each=False, **params: 24 * n if each else 1000,
)
def shared_argument(pescador, kind, n=1_000, n_active=100, each=False, megabytes=25):
    """StochasticMux at rate 8 over streamers that are given one large array, or one each."""
    source = writes if kind == "written" else reads
    array = argument_of(kind, megabytes)
    streams = [
        # Not zeros: those take no memory.
        pescador.Streamer(source, array + np.float32(i) if each else array)
        for i in range(n)
    ]
    mux = pescador.StochasticMux(streams, min(n_active, n), 8, random_state=0)
    # A start in eight samples, which may take all of the time.
    return Items(mux.iterate(), block=256)


@case("sample", "Starting", tiny={"n": 5})
def file_names(pescador, n=30_000):
    """StochasticMux, 100 open at rate 8, over 30,000 streamers that are given a file name each."""
    streams = [pescador.Streamer(forever, f"/data/{i:05d}.npz") for i in range(n)]
    return Items(mux_of(pescador, streams, "stochastic").iterate())


@case(
    "activation",
    "Starting",
    short=over("kind", "list"),
    full=over("kind", "tuple", "dict", "range"),
    tiny={"kind": "list", "n": 5},
    warm=lambda **params: 1,
)
def iterable(pescador, kind, n=100_000):
    """The time to the first item of a Streamer over an iterable of 100,000 numbers."""
    numbers = [float(i) for i in range(n)]
    make = {"list": list, "tuple": tuple, "dict": dict.fromkeys, "range": lambda _: range(n)}[kind]
    stream = pescador.Streamer(make(numbers))
    return Calls(lambda _: first_of(stream))


@case(
    "activation",
    "Starting",
    full=[{}, {"megabytes": 25, "n": 50}],
    tiny={"n": 5},
    warm=lambda **params: 1,
)
def epoch(pescador, n=30_000, megabytes=0):
    """The time to the first batch of a Streamer of buffer_stream over a mux of n streamers."""
    streams = [
        pescador.Streamer(items, argument_of("array", megabytes) if megabytes else i)
        for i in range(n)
    ]
    mux = pescador.StochasticMux(streams, min(n, 100), 8, random_state=0)
    stream = pescador.Streamer(pescador.buffer_stream, mux, 64)
    return Calls(lambda _: first_of(stream))


# ----------------------------------------------------------------------------------- batches

IMAGE = 3 * 224 * 224 * 4
BATCH = 64
# Of large batches, the first few find in the cache what the contestant before has left there.
ROUND = 12


def pool_of(size, keys, axis, batch=BATCH):
    """Arrays of which row i is the value of item i, one array per key."""
    shape = (batch, size // 4) if axis is None else (batch, 4, size // 16)
    rng = np.random.default_rng(0)
    return {f"key{j}": rng.random(shape, np.float32) for j in range(keys)}


def items_of(size, keys, axis, label=False):
    pool = pool_of(size, keys, axis)
    items = [{key: values[i] for key, values in pool.items()} for i in range(BATCH)]
    if label:
        for i, item in enumerate(items):
            item["label"] = i % 10
    return items


def repeated(items):
    while True:
        yield from items


def batched_by_hand(items, axis=None):
    join = np.array if axis is None else np.concatenate
    stream = repeated(items)
    while True:
        items = list(itertools.islice(stream, BATCH))
        yield {key: join([item[key] for item in items]) for key in items[0]}


@case(
    "batch",
    "Batches",
    short=[
        *over("size", 64, 512, 4_096, 65_536, IMAGE, 2**20),
        {"size": 64, "label": True},
        {"size": 64, "keys": 10},
        {"size": 64, "axis": 0},
        {"size": 65_536, "axis": 0},
    ],
    full=[
        *over("size", 256, 1_024, 16_384, 262_144),
        {"size": 64, "keys": 3},
        {"size": 65_536, "keys": 10},
        {"size": 2**20, "axis": 0},
    ],
    tiny={"size": 64, "keys": 2, "label": True},
    warm=lambda **params: 3,
    n_bytes=lambda size, keys=1, axis=None, label=False: BATCH * (size * keys + 8 * label),
    same=True,
)
def batches(pescador, size, keys=1, axis=None, label=False):
    """buffer_stream: batches of 64 items of `size` bytes a key; axis 0 joins small batches."""
    items = items_of(size, keys, axis, label)
    return Items(pescador.buffer_stream(repeated(items), BATCH, axis=axis), block=ROUND)


@batches.by("hand")
def _(size, keys=1, axis=None, label=False):
    return Items(batched_by_hand(items_of(size, keys, axis, label), axis), block=ROUND)


@batches.by("limit")
def _(size, keys=1, axis=None, label=False):
    pool = pool_of(size, keys, axis)
    pairs = [(apart(values), values) for values in pool.values()]
    if size >= 65_536:
        # Item by item, as they come; of smaller ones, the call from Python would be the limit.
        pairs = [pair for out, values in pairs for pair in zip(out, values, strict=True)]
    return Items(copied(pairs), block=ROUND)


def apart(values):
    """An array like `values`, half a page further into its page.

    Some C libraries' memcpy is slow where addresses are nearly the same within their pages.
    """
    room = np.ones(values.nbytes + 4096, np.uint8)
    start = (values.ctypes.data + 2048 - room.ctypes.data) % 4096
    return room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)


def copied(pairs):
    """The limit of whatever moves bytes: memcpy into warm buffers, of one array after another."""
    moves = [(to.ctypes.data, source.ctypes.data, source.nbytes) for to, source in pairs]
    while True:
        for move in moves:
            ctypes.memmove(*move)
        yield pairs


@case(
    "batch",
    "Batches",
    short=over("kind", "float", "float32"),
    tiny={"kind": "float"},
    warm=lambda **params: 3,
    same=True,
)
def batches_of_scalars(pescador, kind, keys=10):
    """buffer_stream: batches of 64 items of ten numbers."""
    return Items(pescador.buffer_stream(repeated(numbers(kind, keys)), BATCH))


def numbers(kind, keys):
    one = {"float": float, "float32": np.float32}[kind]
    names = [f"key{j}" for j in range(keys)]
    return [{name: one(i + j) for j, name in enumerate(names)} for i in range(BATCH)]


@batches_of_scalars.by("hand")
def _(kind, keys=10):
    return Items(batched_by_hand(numbers(kind, keys)))


@case(
    "batch",
    "Batches",
    short=over("n", 1_000),
    tiny={"n": 5},
    warm=lambda n, **params: n // 8 + 3,
    same=True,
)
def batches_of_a_mux(pescador, n, size=64):
    """buffer_stream straight over a ShuffledMux of n streams: batches of 64 samples."""
    item = {"x": np.zeros(size // 4, np.float32)}
    streams = [pescador.Streamer(forever, item) for _ in range(n)]
    return Items(pescador.buffer_stream(pescador.ShuffledMux(streams, random_state=0), BATCH))


# --------------------------------------------------------------------------- across processes


def payload(size):
    return np.arange(max(size // 4, 1), dtype=np.float32)


def sends(size):
    item = {"x": payload(size)}
    while True:
        yield item


def touching(stream, size, close=lambda: None):
    """Read a byte of each page of large items: memory that was only mapped is not there yet."""
    try:
        for item in stream:
            if size >= 65_536:
                item["x"][::1024].max()
            yield item
    finally:
        close()


def passes(size):
    """How many items have gone through all the memory that is on its way at a time."""
    return 1 + min(10, 10**8 // size)


@case(
    "item",
    "Across processes",
    short=over("size", 64, 32_768, 2**20, 40 * 10**6),
    full=over("size", 1_024, 4_096, 16_384, 65_536, 262_144, 4 * 2**20, 16 * 2**20),
    tiny={"size": 4_096},
    n_bytes=lambda size: size,
    parallel=True,
    same=True,
    warm=lambda **params: 1,
)
def transport(pescador, size):
    """ZMQStreamer; by hand, a multiprocessing.Queue."""
    background = pescador.ZMQStreamer(pescador.Streamer(sends, size))

    def opened():
        stream = background.iterate()
        return touching(stream, size, stream.close)

    return Fresh(opened, first=passes(size))


@case(
    "item",
    "Across processes",
    short=over("size", 64),
    full=over("size", 40 * 10**6),
    tiny={"size": 64},
    parallel=True,
    warm=lambda **params: 1,
)
def first_item(pescador, size):
    """The time to the first item of a process that has yet to be started."""
    return Calls(first_of, setup=lambda: pescador.ZMQStreamer(pescador.Streamer(sends, size)))


def from_process(target, *args, depth=8):
    """Yield what a process running ``target(put, *args)`` puts into a queue."""
    queue = multiprocessing.Queue(depth)
    process = multiprocessing.Process(target=target, args=(queue.put, *args), daemon=True)
    process.start()
    try:
        while True:
            yield queue.get()
    finally:
        process.kill()
        process.join()
        queue.close()


def put_all(put, size):
    for item in sends(size):
        put(item)


@transport.by("hand")
def _(size):
    depth = min(1000, max(2, 2**26 // size))

    def opened():
        stream = from_process(put_all, size, depth=depth)
        return touching(stream, size, stream.close)

    return Fresh(opened, first=passes(size))


def joined(size):
    """How many items others send as one array, to be unpacked: 512 KB, or 1,024 small ones."""
    return max(1, min(BLOCK, 2**19 // size))


def stacked(items):
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


def rows_apart(batches):
    for batch in batches:
        for row in batch["x"]:
            yield {"x": row}


def put_stacked(put, size):
    stream = sends(size)
    while True:
        put(stacked(list(itertools.islice(stream, joined(size)))))


@transport.by("hand-blocks", way="multiprocessing.Queue; up to 256 KB, items stacked to 512 KB")
def _(size):
    n = joined(size)

    def opened():
        if n == 1:
            stream = from_process(put_all, size, depth=2)
            return touching(stream, size, stream.close)
        stream = from_process(put_stacked, size)
        return touching(rows_apart(stream), size, stream.close)

    return Fresh(opened, first=max(n, passes(size)), block=n)


@transport.by(
    "torch",
    way="DataLoader, one worker; up to 256 KB, NumPy arrays stacked to 512 KB by collate_fn, "
    "else tensors in shared memory",
)
def _(size):
    from torch.utils.data import DataLoader, IterableDataset

    class Source(IterableDataset):
        def __iter__(self):
            return sends(size)

    n = joined(size)
    how = {"batch_size": n, "collate_fn": stacked} if n > 1 else {"batch_size": None}

    def opened():
        # Closing is letting go of the loader's iterator, which ends its worker.
        loader = iter(DataLoader(Source(), num_workers=1, **how))
        close = getattr(loader, "_shutdown_workers", lambda: None)
        return touching(rows_apart(loader) if n > 1 else loader, size, close)

    return Fresh(opened, first=max(n, passes(size)), block=n)


@transport.by(
    "grain", way="IterDataset.mp_prefetch, one worker; up to 256 KB, batches of 512 KB, unpacked"
)
def _(size):
    import grain

    n = joined(size)
    [source] = grain_streams(lambda _: sends(size), 1)
    batches = source.batch(n) if n > 1 else source
    options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=2)

    def opened():
        loader = iter(batches.mp_prefetch(options))
        return touching(rows_apart(loader) if n > 1 else loader, size, loader.close)

    return Fresh(opened, first=max(n, passes(size)), block=n)


@transport.by("limit")
def _(size):
    source = payload(size)
    return Items(copied([(apart(source), source)]))


# -------------------------------------------------------------------------------- pipelines

# Files, and how many of them are open; samples of a batch are BATCH, of windows WINDOWS.
FILES, OPEN = 1_000, 32
WINDOWS, FRAMES = 32, 128
# A recording's row and label, and a window of a spectrogram.
ROW, WINDOW = 64 * 4 + 8, FRAMES * 128 * 4


def rows_in(X, y, seed):
    rng = np.random.default_rng(seed)
    while True:
        i = rng.integers(X.shape[0])
        yield {"X": X[i], "y": y[i]}


def windows_of(path, seed):
    frames = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(seed)
    while True:
        i = rng.integers(len(frames) - FRAMES + 1)
        yield {"data": frames[i : i + FRAMES]}


def mixed_batches(pescador, source, paths, rate, size=BATCH, n_open=OPEN):
    """Batches of what a generator function gives of each file, as pescador's users write it."""
    streams = [pescador.Streamer(source, path, seed) for seed, path in enumerate(paths)]
    mux = pescador.StochasticMux(
        streams, min(n_open, len(paths)), rate, mode="single_active", random_state=0
    )
    return Items(pescador.buffer_stream(mux, size), per=size)


def mixed_by_hand(start, n, rate, size=BATCH, n_open=OPEN):
    """Batches of the streams that ``start(i, seed)`` opens, of which `n_open` are open."""
    pick, poisson = python_uniform(), np.random.RandomState(0).poisson
    seeds = itertools.count()
    n_open = min(n_open, n)

    def loop():
        idle = list(range(n))
        files = [idle.pop(int(pick() * len(idle))) for _ in range(n_open)]
        streams = [start(i, next(seeds)) for i in files]
        left = [rate and 1 + poisson(rate - 1) for _ in files]
        while True:
            batch = {}
            for k in range(size):
                slot = int(pick() * n_open)
                if rate:
                    if not left[slot]:
                        idle.append(files[slot])
                        place = int(pick() * len(idle))
                        files[slot], idle[place] = idle[place], idle[-1]
                        idle.pop()
                        streams[slot] = start(files[slot], next(seeds))
                        left[slot] = 1 + poisson(rate - 1)
                    left[slot] -= 1
                item = next(streams[slot])
                if not k:
                    batch = {
                        key: np.empty((size, *value.shape), value.dtype)
                        for key, value in item.items()
                    }
                for key, values in batch.items():
                    values[k] = item[key]
            yield batch

    return Items(loop(), per=size)


def rows_by_hand(files, rate, n_open=OPEN):
    """The same over arrays that are all there, without a generator for each file."""
    pick, poisson = python_uniform(), np.random.RandomState(0).poisson
    n, n_rows, n_open = len(files), len(files[0]["y"]), min(n_open, len(files))
    shape, dtype = files[0]["X"].shape[1:], files[0]["X"].dtype

    def loop():
        idle = [(arrays["X"], arrays["y"]) for arrays in files]
        open_ones = [idle.pop(int(pick() * len(idle))) for _ in range(n_open)]
        left = [rate and 1 + poisson(rate - 1) for _ in open_ones]
        while True:
            X, y = np.empty((BATCH, *shape), dtype), np.empty(BATCH, np.int64)
            for k in range(BATCH):
                slot = int(pick() * n_open)
                if rate:
                    if not left[slot]:
                        idle.append(open_ones[slot])
                        place = int(pick() * (n - n_open + 1))
                        open_ones[slot], idle[place] = idle[place], idle[-1]
                        idle.pop()
                        left[slot] = 1 + poisson(rate - 1)
                    left[slot] -= 1
                i = int(pick() * n_rows)
                from_X, from_y = open_ones[slot]
                X[k] = from_X[i]
                y[k] = from_y[i]
            yield {"X": X, "y": y}

    return Items(loop(), per=BATCH)


def some_visits(rate=16, n=FILES, **params):
    """Enough samples that nearly all files have been visited."""
    return 4 * n * rate


FUNCTION_WAY = "a generator function over np.load"
MAPS_WAY = "maps of all files kept, rows copied one by one"


@case(
    "sample",
    "Pipelines",
    short=over("rate", 16, 8, 1),
    tiny={"rate": 4, "n": 5},
    warm=some_visits,
    n_bytes=lambda **params: ROW,
    files=lambda rate, n=FILES: data.recordings(n),
)
def job(pescador, rate, n=FILES):
    """Batches of 64 rows of 1,000 .npz files, 32 open; with rate=1, each sample is a visit."""
    paths = data.recordings(n)
    return Items(pescador.batches(paths, BATCH, rate=rate, random_state=0).iterate(), per=BATCH)


@job.by("peer", "ours-function", way=FUNCTION_WAY)
def _(pescador, rate, n=FILES):
    return mixed_batches(pescador, rows_of, data.recordings(n), rate)


@job.by("hand", way=FUNCTION_WAY)
def _(rate, n=FILES):
    paths = data.recordings(n)
    return mixed_by_hand(lambda i, seed: rows_of(paths[i], seed), n, rate)


@job.by("hand-blocks", way=MAPS_WAY)
def _(rate, n=FILES):
    return rows_by_hand(list(map(data.mapped, data.recordings(n))), rate)


@job.by("limit")
def _(rate, n=FILES):
    files = list(map(data.mapped, data.recordings(n)))
    return Items(batches_in_c(files, BATCH, min(OPEN, n), rate), per=BATCH)


def never_seen(paths):
    """Other names of the same files, which nobody can know anything about, at each call."""
    for slashes in itertools.count(2):
        yield [f"{os.path.dirname(path)}{'/' * slashes}{os.path.basename(path)}" for path in paths]


def each_once(pescador, streams, rate):
    """Batches of so many samples of each stream, of which 32 are open."""
    mux = pescador.StochasticMux(
        streams, min(OPEN, len(streams)), rate, mode="exhaustive", dist="constant", random_state=0
    )
    return pescador.buffer_stream(mux, BATCH)


def last_of(batches):
    return deque(batches, maxlen=1).pop()


@case(
    "sample",
    "Pipelines",
    tiny={"rate": 64, "n": 2},
    n_bytes=lambda **params: ROW,
    files=lambda rate=16, n=FILES: data.recordings(n),
)
def job_once(pescador, rate=16, n=FILES):
    """The same, of files that were never visited before, each once: 16 rows of each."""
    names = never_seen(data.recordings(n))

    def opened():
        streams = pescador.sources.from_files(next(names), pescador.sources.Rows)
        return each_once(pescador, streams, rate)

    return Calls(last_of, setup=opened, per=n * rate)


@job_once.by("peer", "ours-function", way=FUNCTION_WAY)
def _(pescador, rate=16, n=FILES):
    paths = data.recordings(n)

    def opened():
        streams = [pescador.Streamer(rows_of, path, seed) for seed, path in enumerate(paths)]
        return each_once(pescador, streams, rate)

    return Calls(last_of, setup=opened, per=n * rate)


@job_once.by("hand", way=FUNCTION_WAY)
def _(rate=16, n=FILES):
    paths = data.recordings(n)
    stream = mixed_by_hand(lambda i, seed: rows_of(paths[i], seed), n, rate).iterator
    return Calls(last_of, setup=lambda: itertools.islice(stream, n * rate // BATCH), per=n * rate)


def in_memory_files(n):
    return [data.arrays_like_recordings(500, i) for i in range(n)]


@case(
    "sample",
    "Pipelines",
    tiny={"n": 5},
    warm=lambda n=100: some_visits(n=n),
    n_bytes=lambda n=100: ROW,
)
def in_memory(pescador, n=100):
    """Batches of 64 over a ShuffledMux of Rows of 100 pairs of arrays, of 500 rows each."""
    streams = [pescador.sources.Rows(one, random_state=0) for one in in_memory_files(n)]
    mux = pescador.ShuffledMux(streams, random_state=0)
    return Items(pescador.buffer_stream(mux, BATCH), per=BATCH)


@in_memory.by("peer", "ours-function", way="a generator function")
def _(pescador, n=100):
    streams = [
        pescador.Streamer(rows_in, one["X"], one["y"], seed)
        for seed, one in enumerate(in_memory_files(n))
    ]
    mux = pescador.ShuffledMux(streams, random_state=0)
    return Items(pescador.buffer_stream(mux, BATCH), per=BATCH)


@in_memory.by("hand", way="a generator function")
def _(n=100):
    files = in_memory_files(n)
    return mixed_by_hand(lambda i, seed: rows_in(**files[i], seed=seed), n, 0, n_open=n)


@in_memory.by("hand-blocks", way="rows copied one by one")
def _(n=100):
    return rows_by_hand(in_memory_files(n), 0, n_open=n)


@in_memory.by("limit")
def _(n=100):
    return Items(batches_in_c(in_memory_files(n), BATCH, n), per=BATCH)


@case(
    "sample",
    "Pipelines",
    tiny={"n": 5},
    warm=some_visits,
    n_bytes=lambda **params: WINDOW,
    files=lambda n=FILES: data.spectrograms(n),
)
def windows(pescador, n=FILES):
    """Batches of 32 windows of float32[128, 128] of 1,000 .npy files, 32 open, rate 16."""
    paths = data.spectrograms(n)
    stream = pescador.batches(paths, WINDOWS, length=FRAMES, random_state=0)
    return Items(stream.iterate(), per=WINDOWS)


@windows.by("peer", "ours-function", way="a generator function over np.load, mmap_mode='r'")
def _(pescador, n=FILES):
    return mixed_batches(pescador, windows_of, data.spectrograms(n), 16, WINDOWS)


@windows.by("hand", way="a generator function over np.load, mmap_mode='r'")
def _(n=FILES):
    paths = data.spectrograms(n)
    return mixed_by_hand(lambda i, seed: windows_of(paths[i], seed), n, 16, WINDOWS)


@windows.by("limit")
def _(n=FILES):
    files = [{"data": np.load(path, mmap_mode="r")} for path in data.spectrograms(n)]
    return Items(batches_in_c(files, WINDOWS, min(OPEN, n), 16, FRAMES), per=WINDOWS)


@contextlib.contextmanager
def stored_arrays(path):
    """The arrays of one chunked store."""
    kind = "zarr" if path.endswith(".zarr") else "hdf5"
    module = data.module_of(kind)
    store = module.open_group(path, mode="r") if kind == "zarr" else module.File(path)
    with contextlib.nullcontext() if kind == "zarr" else store:
        yield store["X"], store["y"]


def stored_rows(path, seed):
    """Draw rows of one chunked store, as it is written without a library."""
    with stored_arrays(path) as (X, y):
        yield from rows_in(X, y, seed)


@case(
    "sample",
    "Pipelines",
    short=over("kind", "hdf5", "zarr"),
    full=over("kind", "hdf5", "zarr", n_rows=8_192),
    tiny={"kind": "hdf5", "n": 2},
    warm=lambda n=16, **params: 16 * n,
    n_bytes=lambda **params: ROW,
    files=lambda kind, n=16, n_rows=512: data.stores(kind, n, n_rows),
)
def chunked(pescador, kind, n=16, n_rows=512):
    """Batches of 64 rows of 16 HDF5 or Zarr stores in chunks of 64 rows, 8 open, rate 16."""
    paths = data.stores(kind, n, n_rows)
    stream = pescador.batches(paths, BATCH, n_active=min(8, n), random_state=0)
    return Items(stream.iterate(), per=BATCH)


@chunked.by("ours-function", way="a generator function that reads row by row")
def _(pescador, kind, n=16, n_rows=512):
    return mixed_batches(pescador, stored_rows, data.stores(kind, n, n_rows), 16, n_open=8)


@chunked.by("peer")
def _(pescador, kind, n=16, n_rows=512):
    raise Skip("its environment reads neither HDF5 nor Zarr; see ours-function")


# ------------------------------------------------------------------------------- end to end


def rows_of(path, seed):
    """Draw rows of one file for ever, as a data set of many recordings is read."""
    with np.load(path) as shard:
        X, y = shard["X"], shard["y"]
    rng = np.random.default_rng(seed)
    while True:
        i = rng.integers(len(X))
        yield {"X": X[i], "y": y[i]}


def write_shards(folder, X, y, n):
    paths = []
    for i, rows in enumerate(np.array_split(np.argsort(y, kind="stable"), n)):
        paths.append(folder / f"{i:05d}.npz")
        np.savez(paths[-1], X=X[rows], y=y[rows])
    return paths


def digits_data():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Skip("needs scikit-learn") from error
    digits = load_digits()
    return digits.data / 16, digits.target


def random_data():
    rng = np.random.default_rng(0)
    return rng.random((1_797, 64)), rng.integers(10, size=1_797)


def put_digits(put, paths):
    """The same work in a plain loop: 32 files open, 16 samples each on average."""
    pick, poisson = python_uniform(), np.random.RandomState(0).poisson
    seeds = itertools.count()

    def opened():
        return rows_of(paths[int(pick() * len(paths))], next(seeds)), 1 + poisson(15)

    slots = [opened() for _ in range(32)]
    while True:
        items = []
        while len(items) < 32:
            slot = int(pick() * 32)
            stream, left = slots[slot]
            if not left:
                stream, left = opened()
            items.append(next(stream))
            slots[slot] = stream, left - 1
        put({key: np.stack([item[key] for item in items]) for key in items[0]})


def end_to_end(data, learn, open_batches):
    """Return a job that writes the shards, and reads batches of 32 samples from them."""
    folder = tempfile.TemporaryDirectory(prefix="pescador-bench-")
    try:
        paths = write_shards(pathlib.Path(folder.name), *data, 300)
    except BaseException:
        folder.cleanup()
        raise

    def opened():
        with contextlib.closing(open_batches(paths)) as stream:
            for batch in stream:
                learn(batch)
                yield batch

    return Fresh(opened, per=32, close=folder.cleanup)


def mixed_by(pescador):
    def open_batches(paths):
        streams = [pescador.Streamer(rows_of, path, seed) for seed, path in enumerate(paths)]
        mux = pescador.StochasticMux(streams, 32, 16, mode="single_active", random_state=0)
        batches = pescador.Streamer(pescador.buffer_stream, mux, 32)
        return pescador.ZMQStreamer(batches).iterate()

    return open_batches


def by_hand(paths):
    return from_process(put_digits, paths)


def linear_classifier():
    try:
        from sklearn.linear_model import SGDClassifier
    except ImportError as error:
        raise Skip("needs scikit-learn") from error
    model = SGDClassifier(random_state=0)
    return lambda batch: model.partial_fit(batch["X"], batch["y"], classes=range(10))


@case("sample", "End to end", parallel=True, warm=lambda: 1)
def digits(pescador):
    """Handwritten digits from 300 files, 32 open, mixed in a process; a linear classifier."""
    return end_to_end(digits_data(), linear_classifier(), mixed_by(pescador))


@digits.by("hand")
def _():
    return end_to_end(digits_data(), linear_classifier(), by_hand)


@case("sample", "End to end", parallel=True, warm=lambda: 1)
def pipeline(pescador):
    """The same with a model that costs nothing, so that the pipeline is all there is."""
    return end_to_end(random_data(), lambda batch: None, mixed_by(pescador))


@pipeline.by("hand")
def _():
    return end_to_end(random_data(), lambda batch: None, by_hand)
