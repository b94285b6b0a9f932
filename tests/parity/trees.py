"""Random trees of muxes, described as plain data and built for any release.

A description is made of nested tuples, so that hypothesis can print and shrink it. Leaves yield
``(id, value)``; a leaf without samples counts its starts, so that a loop that will never yield
again is caught instead of waited for.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

# After so many starts of empty streams without a sample, the reference is not going to give one.
HOPELESS = 1_500


class NeverEnds(Exception):
    """The tree restarts empty streams for ever."""


class Starts:
    """How many streams were started since the last sample; shared by all copies of a leaf."""

    count = 0
    limit = HOPELESS

    @classmethod
    def note(cls, cost=1):
        cls.count += cost
        if cls.count > cls.limit:
            raise NeverEnds

    @classmethod
    def clear(cls):
        cls.count = 0


def forever(i):
    """An endless stream."""
    Starts.clear()
    for value in itertools.count():
        yield i, value


def finite(i, n):
    """A stream of n samples."""
    Starts.note()
    for value in range(n):
        Starts.clear()
        yield i, value


def seeded(i, seed):
    """An endless stream that draws from a generator of its own."""
    Starts.clear()
    rng = np.random.RandomState(seed)
    while True:
        yield i, rng.randint(1000)


def drawing(i, n):
    """A stream that draws from the global state, as the muxes may do."""
    Starts.clear()
    for _ in range(n):
        yield i, np.random.randint(1000)


def stateful(i, seen):
    """A stream that writes into its argument."""
    Starts.clear()
    while True:
        seen.append(len(seen))
        yield i, sum(seen)


def borrowing(i, rng):
    """An endless stream that draws from a generator that it was passed."""
    Starts.clear()
    while True:
        yield i, rng.randint(1000)


@dataclass
class Context:
    """What the nodes of one tree share."""

    module: object
    states: list = field(default_factory=list)
    more: object = None
    ids: itertools.count = field(default_factory=itertools.count)


def build(description, module, seeds=(11, 12), more=None):
    """Build a tree for a release of pescador.

    ``more(description, i, context)`` builds what is of no kind that all releases have, or returns
    None.
    """
    states = [np.random.RandomState(s) for s in seeds]
    return build_node(description, Context(module, states, more))


def build_node(description, context):
    """Build a part of a tree."""
    kind, *rest = description
    i = next(context.ids)
    built = None if context.more is None else context.more(description, i, context)
    if built is not None:
        return built
    Streamer = context.module.Streamer
    if kind == "forever":
        return Streamer(forever, i)
    if kind == "finite":
        return Streamer(finite, i, rest[0])
    if kind == "items":
        return Streamer([(i, j) for j in range(rest[0])])
    if kind == "seeded":
        return Streamer(seeded, i, rest[0])
    if kind == "drawing":
        return Streamer(drawing, i, rest[0])
    if kind == "stateful":
        return Streamer(stateful, i, [])
    if kind == "borrowing":
        return Streamer(borrowing, i, context.states[rest[0]])
    if kind == "wrapped":
        child, max_iter = rest
        return Streamer(build_node(child, context), max_iter)
    children, options, seed = rest
    streamers = [build_node(child, context) for child in children]
    options = dict(options) | {"random_state": _seed(seed, context)}
    if options.get("weights") is not None:
        options["weights"] = np.array(options["weights"])
    return getattr(context.module, kind)(streamers, **options)


def _seed(seed, context):
    kind, value = seed
    if kind == "global":
        return None
    if kind == "int":
        return value
    if kind == "state":
        return np.random.RandomState(value)
    return context.states[value]


# ------------------------------------------------------------------------------- strategies

seeds = st.one_of(
    st.just(("global", 0)),
    st.tuples(st.just("int"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("state"), st.integers(0, 1000)),
    st.tuples(st.just("shared"), st.integers(0, 1)),
)

leaves = st.one_of(
    st.just(("forever",)),
    st.tuples(st.just("finite"), st.integers(0, 6)),
    st.tuples(st.just("items"), st.integers(1, 6)),
    st.tuples(st.just("seeded"), st.integers(0, 5)),
    st.tuples(st.just("drawing"), st.integers(1, 6)),
    st.just(("stateful",)),
    st.tuples(st.just("borrowing"), st.integers(0, 1)),
)

rates = st.one_of(
    st.none(), st.just(1), st.integers(1, 30), st.floats(1, 40), st.sampled_from([1e3, 1e6])
)


def weights_for(children, draw, zeros):
    """Weights of some streams: none, alike, mixed, or skewed by up to 18 orders of magnitude."""
    # Where a heavy stream is empty, a stream 1e18 times lighter is due after 1e18 steps.
    n = len(children)
    may_be_empty = any(child[0] == "finite" or len(child) > 2 for child in children)
    skewed = "mixed" if may_be_empty else "skewed"
    kind = draw(st.sampled_from(["none", "none", "alike", "mixed", skewed]))
    if kind == "none":
        return None
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    weights = {
        "alike": lambda: np.full(n, rng.uniform(0.1, 10)),
        "mixed": lambda: rng.uniform(0.1, 1, n),
        "skewed": lambda: 10 ** rng.uniform(-18, 0, n),
    }[kind]()
    if zeros and n > 1 and draw(st.booleans()):
        weights[rng.permutation(n)[: rng.integers(1, n)]] = 0
    return tuple(weights.tolist())


@st.composite
def pools(draw, depth, sizes, leaves):
    """The children of a mux: many of one kind, or a few of any."""
    if depth > 1:
        return tuple(draw(st.lists(nodes(depth - 1, leaves), min_size=1, max_size=4)))
    n = draw(sizes)
    if n > 12:
        return (draw(leaves.filter(lambda leaf: leaf != ("finite", 0))),) * n
    return tuple(draw(st.lists(leaves, min_size=n, max_size=n)))


@st.composite
def muxes(draw, depth=1, top=True, legacy=False, leaves=leaves):
    """A mux over leaves, or over muxes `depth` - 1 deep."""
    large = st.sampled_from([20, 130, 500, 2000] if top and depth == 1 else [15])
    sizes = st.one_of(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), large)
    children = draw(pools(depth, sizes, leaves))
    n = len(children)
    kind = draw(
        st.sampled_from(
            ["Mux"]
            if legacy
            else ["StochasticMux", "StochasticMux", "ShuffledMux", "RoundRobinMux", "ChainMux"]
        )
    )
    options = {}
    if kind in ("StochasticMux", "Mux"):
        mode = draw(st.sampled_from(["with_replacement", "single_active", "exhaustive"]))
        most = n + 3 if mode == "with_replacement" or legacy else n
        k = draw(st.one_of(st.integers(1, min(most, 8)), st.integers(1, most)))
        # A nested mux whose open streams all have weight zero is empty by chance, and a loop over
        # it is one that we may refuse and the reference does not.
        options["weights"] = weights_for(children, draw, zeros=top)
        options["prune_empty_streams"] = draw(st.booleans())
        options["rate"] = draw(rates)
        if legacy:
            options |= {
                "k": k,
                "with_replacement": mode == "with_replacement",
                "revive": mode == "single_active",
            }
        else:
            options |= {
                "n_active": k,
                "mode": mode,
                "dist": draw(st.sampled_from(["binomial", "poisson", "constant"])),
            }
    elif kind == "ShuffledMux":
        options["weights"] = weights_for(children, draw, zeros=True)
    elif kind == "RoundRobinMux":
        options["mode"] = draw(st.sampled_from(["exhaustive", "cycle", "permuted_cycle"]))
    else:
        options["mode"] = draw(st.sampled_from(["exhaustive", "cycle"]))
    return kind, children, tuple(options.items()), draw(seeds)


@st.composite
def nodes(draw, depth, leaves=leaves):
    """A child of a mux: a leaf, another mux, or a bounded mux in a streamer."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(leaves)
    mux = draw(muxes(depth, top=False, leaves=leaves))
    if draw(st.integers(0, 5)) == 0:
        return "wrapped", mux, draw(st.integers(1, 10))
    return mux


trees = st.integers(1, 3).flatmap(lambda depth: muxes(depth))
legacy_trees = muxes(1, legacy=True)

ways = st.sampled_from(
    ["bounded", "cycled", "cycled fraction", "closed early", "twice", "interleaved", "fraction"]
)


def size(streamer):
    """How many streamers a tree is made of."""
    below = getattr(streamer, "streamers", None) or [getattr(streamer, "streamer", None)]
    return 1 + sum(size(child) for child in below if hasattr(child, "iterate"))


def watched(tree):
    """Count the activations of a tree, too: one without samples may start no stream at all."""
    iterate = tree.iterate
    # The reference copies all of it at each activation.
    cost = 1 + size(tree) // 5

    def counting(max_iter=None):
        Starts.note(cost)
        for sample in iterate(max_iter):
            Starts.clear()
            yield sample

    tree.iterate = counting
    return tree


def run(way, tree, n):
    """Iterate over a tree in one of several ways; return the samples, and how it failed if so."""
    Starts.clear()
    samples = []
    failure = None
    try:
        if way == "bounded":
            samples.extend(tree.iterate(n))
            samples.append(np.random.randint(2**30))
        elif way == "fraction":
            samples.extend(tree(max_iter=n - 0.5))
        elif way == "cycled":
            samples.extend(tree.cycle(n))
        elif way == "cycled fraction":
            samples.extend(tree(max_iter=n - 0.5, cycle=True))
        elif way == "closed early":
            iteration = tree.iterate()
            samples.extend(itertools.islice(iteration, n // 2))
            iteration.close()
            samples.append(tree.active)
        elif way == "twice":
            samples.extend(tree.iterate(n // 2))
            samples.extend(tree.iterate(n // 2))
        else:
            first, second = tree.iterate(n // 2), tree.iterate(n // 2)
            for pair in itertools.zip_longest(first, second):
                samples.append(pair)
    except Exception as error:
        failure = type(error)
    return samples, failure
