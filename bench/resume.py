"""Runs that are saved and resumed, and what one seed for all of their streams costs.

Of a state: its size, the time to save it and to go on from it.
Each contestant mixes many small streams, 100 of them open, and is saved after as many samples as
`samples` says. Restoring ends with the next sample, which has to be the one that was to come.

Of a seed: the time of a sample with it, and without.
"""

import itertools
import pickle
import random

import numpy as np
from case import case, over
from jobs import Calls, Items, Skip

OPEN, LENGTH, SEEDED = 100, 100, 32


def some(i):
    """One of the small streams; each starts anew when it ends."""
    for j in range(LENGTH):
        yield {"x": i * LENGTH + j}


def job(step, samples, start, save):
    """Return the job of one step.

    start: return an iterator from a state, or from the beginning if the state is None. save:
    return the state of an iterator.
    """
    stream = start(None)
    for _ in itertools.islice(stream, samples):
        pass
    state = save(stream)
    size = len(pickle.dumps(state))
    if step == "save":
        return Calls(lambda _: save(stream), setup=lambda: next(stream), size=size)
    expected, found = next(stream), next(start(state))
    if found != expected:
        raise ValueError(f"goes on with {found}, not with {expected}")
    return Calls(lambda _: next(start(state)), size=size)


@case(
    "call",
    "Saving and restoring",
    short=[*over("step", "save", "restore", samples=10_000)],
    full=[*over("step", "save", "restore", samples=1_000_000)],
    tiny={"step": "restore", "samples": 150},
    warm=lambda **params: 1,
    patience=900,
)
def resume(pescador, step, samples):
    """100 small streams open, of 1,000: save the state, or go on from it to the next sample."""
    if not hasattr(pescador.Streamer, "open"):
        raise Skip("has no Streamer.open()")
    streams = [pescador.Streamer(some, i) for i in range(10 * OPEN)]
    mux = pescador.StochasticMux(streams, OPEN, 8, random_state=0)
    return job(step, samples, lambda state: mux.open(state=state), lambda it: it.state_dict())


class Mixed:
    """Lists that are drawn from at random, with the positions in each."""

    def __init__(self, state):
        self.streams = [list(some(i)) for i in range(OPEN)]
        self.random, self.positions = random.Random(0), [0] * OPEN
        if state is not None:
            generator, self.positions = pickle.loads(state)
            self.random.setstate(generator)

    def __iter__(self):
        return self

    def __next__(self):
        i = int(self.random.random() * OPEN)
        j = self.positions[i]
        self.positions[i] = (j + 1) % LENGTH
        return self.streams[i][j]

    def state(self):
        return pickle.dumps((self.random.getstate(), self.positions))


@resume.by("hand", way="lists, a position in each, and a random.Random")
def _(step, samples):
    return job(step, samples, Mixed, Mixed.state)


@resume.by("torchdata", way="StatefulDataLoader over MultiNodeWeightedSampler over IterableWrapper")
def _(step, samples):
    from torch.utils.data import IterableDataset
    from torchdata.nodes import IterableWrapper, MultiNodeWeightedSampler, StopCriteria
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Nodes(IterableDataset):
        def __init__(self):
            nodes = {str(i): IterableWrapper(list(some(i))) for i in range(OPEN)}
            criterion = StopCriteria.CYCLE_FOREVER
            weights = dict.fromkeys(nodes, 1.0)
            self.node = MultiNodeWeightedSampler(nodes, weights, stop_criteria=criterion, seed=0)
            self.restored = None

        def __iter__(self):
            self.node.reset(self.restored)
            return self.node

        def state_dict(self):
            return self.node.state_dict()

        def load_state_dict(self, state):
            self.restored = state

    loaders = {}

    def start(state):
        loader = StatefulDataLoader(Nodes(), batch_size=None)
        if state is not None:
            loader.load_state_dict(state)
        stream = iter(loader)
        loaders[id(stream)] = loader
        return stream

    return job(step, samples, start, lambda stream: loaders[id(stream)].state_dict())


def grain_job(step, samples, dataset):
    def start(state):
        stream = iter(dataset)
        if state is not None:
            stream.set_state(state)
        return stream

    return job(step, samples, start, lambda stream: stream.get_state())


def grain_tables():
    import grain

    return [grain.MapDataset.source(list(some(i))).repeat() for i in range(OPEN)]


@resume.by("grain", way="IterDataset.mix of tables, each with its position")
def _(step, samples):
    import grain

    options = grain.ReadOptions(num_threads=0)
    streams = [table.to_iter_dataset(options) for table in grain_tables()]
    return grain_job(step, samples, grain.IterDataset.mix(streams))


@resume.by("grain-select", way="MapDataset.mix of tables, of which one position is the state")
def _(step, samples):
    import grain

    mixed = grain.MapDataset.mix(grain_tables())
    return grain_job(step, samples, mixed.to_iter_dataset(grain.ReadOptions(num_threads=0)))


@resume.by("datasets", way="interleave_datasets of IterableDatasets")
def _(step, samples):
    from datasets import IterableDataset, interleave_datasets

    streams = [IterableDataset.from_generator(some, gen_kwargs={"i": i}) for i in range(OPEN)]
    streams = [stream.repeat(None) for stream in streams]
    datasets = {}

    def start(state):
        mixed = interleave_datasets(streams, probabilities=[1 / OPEN] * OPEN, seed=0)
        if state is not None:
            mixed.load_state_dict(state)
        stream = iter(mixed)
        datasets[id(stream)] = mixed
        return stream

    return job(step, samples, start, lambda stream: datasets[id(stream)].state_dict())


def drawing():
    """A stream that draws from the global state, which governing it exchanges."""
    while True:
        yield np.random.random()


def drawing_from(*, rng):
    """The same, from a generator that it is given."""
    while True:
        yield rng.random()


@case(
    "sample",
    "One seed for all",
    short=[{}, *over("seeded", True), *over("spawn", True), *over("spawn", True, seeded=True)],
    tiny={"seeded": True},
    warm=lambda **params: 10 * SEEDED,
)
def seeds(pescador, seeded=False, spawn=False):
    """ShuffledMux of 32 streams that draw from np.random, or `spawn`ed generators; under Seeded."""
    if not hasattr(pescador, "Seeded"):
        raise Skip("has no Seeded")
    rng = pescador.SPAWN if seeded else np.random.default_rng(0)
    stream = pescador.Streamer(drawing_from, rng=rng) if spawn else pescador.Streamer(drawing)
    mux = pescador.ShuffledMux([stream] * SEEDED, random_state=0)
    return Items((pescador.Seeded(mux, 0) if seeded else mux).iterate())


@seeds.by("hand", way="np.random.set_state and random.setstate around each step")
def _(seeded=False, spawn=False):
    streams = [
        drawing_from(rng=np.random.default_rng(i)) if spawn else drawing() for i in range(SEEDED)
    ]
    states = [
        (np.random.RandomState(i).get_state(), random.Random(i).getstate()) for i in range(SEEDED)
    ]
    choice = random.Random(0)

    def mixed():
        while True:
            i = int(choice.random() * SEEDED)
            if not seeded or spawn:
                yield next(streams[i])
                continue
            callers = np.random.get_state(), random.getstate()
            np.random.set_state(states[i][0])
            random.setstate(states[i][1])
            item = next(streams[i])
            states[i] = np.random.get_state(), random.getstate()
            np.random.set_state(callers[0])
            random.setstate(callers[1])
            yield item

    return Items(mixed())
