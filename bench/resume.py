"""Runs that are saved and resumed: the size of a state, the time to save it and to go on from it.

Each contestant mixes many small streams, 100 of them open, and is saved after as many samples as
`samples` says. Restoring ends with the next sample, which has to be the one that was to come.
"""

import itertools
import pickle
import random

from case import case, over
from jobs import Calls, Skip

OPEN, LENGTH = 100, 100


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
