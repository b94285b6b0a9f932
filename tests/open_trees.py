"""Random trees of everything that can be opened: those of tests/parity, and what only we have.

A description is made of nested tuples, so that hypothesis can shrink it and another process can
build it again.
"""

import pathlib
import random
import tempfile
import time
import zlib

import numpy as np
import trees
from hypothesis import strategies as st
from numpy.random import randint

import pescador
from pescador import SKIP, SPAWN, Streamer
from streams import ITEMS, Failure, every_item


class Trouble:
    """An error that one of the next items meets, whichever stream it comes from."""

    left = None
    kind = Failure
    # How long (in seconds) a stream sleeps at most before each item.
    longest_sleep = 0.0

    @classmethod
    def after(cls, n, kind=Failure):
        cls.left, cls.kind = n, kind

    @classmethod
    def meet(cls):
        if cls.longest_sleep:
            # Drawn from the system: the states that streams draw from stay as they are.
            time.sleep(random.SystemRandom().random() * cls.longest_sleep)
        if cls.left is None:
            return
        cls.left -= 1
        if cls.left < 0:
            cls.left = None
            raise cls.kind("it fails once")


# ------------------------------------------------------------------------------------- leaves


def quiet(i, n):
    trees.Starts.note()
    for value in range(n):
        trees.Starts.clear()
        Trouble.meet()
        yield i, value


def randn(i, n):
    for _ in range(n):
        value = np.random.randn()
        Trouble.meet()
        yield i, value


def gauss(i, n):
    Trouble.meet()
    for _ in range(n):
        yield i, random.gauss(0, 1)
        Trouble.meet()


def bound(i, n):
    for _ in range(n):
        yield i, randint(1000), random.randrange(1000)


def reseeding(i, n):
    for value in range(n):
        if value % 3 == 1:
            np.random.seed(value)
            random.seed(value)
        yield i, np.random.standard_normal(), random.random()
        Trouble.meet()


def spawned(i, *, rng):
    while True:
        value = rng.integers(1000)
        Trouble.meet()
        yield i, value


def given(i, rng):
    while True:
        value = rng.integers(1000)
        Trouble.meet()
        yield i, value


def opening(i, n):
    """Fail when it is opened, or not at all."""
    Trouble.meet()
    return iter([(i, value) for value in range(n)])


class Once:
    """An iterable whose iterator is a generator."""

    def __init__(self, i, n):
        self.i, self.n = i, n

    def __iter__(self):
        for value in range(self.n):
            yield self.i, value


class Resumable:
    """An iterable whose iterator can tell where it is."""

    def __init__(self, i, n):
        self.i, self.n = i, n

    def __iter__(self):
        return ResumableIterator(self.i, self.n)


class ResumableIterator:
    def __init__(self, i, n):
        self.i, self.n, self.seen = i, n, []

    def __iter__(self):
        return self

    def __next__(self):
        Trouble.meet()
        if len(self.seen) == self.n:
            raise StopIteration
        self.seen.append(len(self.seen))
        return self.i, sum(self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Counted(Streamer):
    """A streamer with a hook, which counts its items over all visits."""

    count = 0

    def iterate(self, max_iter=None):
        for item in super().iterate(max_iter):
            self.count += 1
            yield item, self.count


ITERABLES = {
    "tuple": lambda n: tuple(range(n)),
    "range": range,
    "string": lambda n: "pescador"[:n],
    "wide string": lambda n: "pe\u017fcador"[:n],
    "bytes": lambda n: b"pescador"[:n],
    "bytearray": lambda n: bytearray(range(n)),
    "dict": lambda n: dict.fromkeys(range(n)),
    "set": lambda n: set(range(n)),
    "frozenset": lambda n: frozenset(range(n)),
    "array": np.arange,
    "nested": lambda n: [[i, [i]] for i in range(n)],
}

DRAWING = {"randn": randn, "gauss": gauss, "bound": bound, "reseeding": reseeding}


# ------------------------------------------------------------------------------------ sources


def store(kind, n):
    """A few arrays in memory, or in a file."""
    arrays = {"x": np.arange(2.0 * n, dtype=np.float32).reshape(n, 2), "y": np.arange(n)}
    if kind == "dict":
        return arrays
    path = pathlib.Path(tempfile.gettempdir(), "pescador-tests", f"{n}.{kind}")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{random.SystemRandom().random()}.{kind}")
        if kind == "npz":
            np.savez(new, **arrays)
        else:
            np.save(new, arrays["x"])
        new.replace(path)
    return path


def source(kind, data, n, order, seed):
    seed = np.random.RandomState(seed[1]) if seed[0] == "state" else seed[1]
    if kind == "rows":
        return pescador.sources.Rows(store(data, n), order=order, random_state=seed)
    return pescador.sources.Windows(store(data, n), 2, order=order, random_state=seed)


# --------------------------------------------------------------------------------------- maps


def plain(item):
    """What two items are compared by."""
    if isinstance(item, np.ndarray):
        return item.dtype.str, item.shape, item.tobytes()
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [plain(value) for value in item]
    return item


def assert_as_they_were(received, n):
    """Assert that these are what n streams of every item give, one after the other."""
    expected = [pair for _ in range(n) for pair in zip(ITEMS, every_item(), strict=True)]
    for (name, here), there in zip(expected, received, strict=True):
        assert type(here) is type(there), name
        if name in ("masked", "dataclass", "objects"):
            # Their bytes are not what they mean.
            assert repr(here) == repr(there), name
        else:
            assert plain(here) == plain(there), name
        if isinstance(here, dict):
            assert list(map(type, here.values())) == list(map(type, there.values())), name
        if name == "fortran":
            assert there["x"].flags.f_contiguous


def read(stream, n=None):
    """Return the next items of a stream, plain, and how it failed if so."""
    items = []
    try:
        while n is None or len(items) < n:
            item = next(stream, stream)
            if item is stream:
                break
            items.append(plain(item))
    except Exception as error:
        return items, type(error)
    return items, None


def number(item):
    return zlib.crc32(repr(plain(item)).encode())


def to_data(item):
    """An item that every map takes."""
    Trouble.meet()
    return {"x": np.full(2, number(item), np.float64), "y": np.array(number(item) % 97)}


def mapped(item):
    Trouble.meet()
    return number(item)


def some(item):
    """Of what is not the same for ever."""
    return SKIP if number(item) % 3 == 0 else item


def gives_data(description):
    """Whether the items are {x, y} of the same shapes."""
    kind, *rest = description
    if kind == "rows":
        return rest[0] != "npy"
    return kind[0].isupper() and all(map(gives_data, rest[0]))


# -------------------------------------------------------------------------------------- trees


def build(description):
    """Build a tree, whose generators are new."""
    return trees.build(description, pescador, more=more)


def more(description, i, context):
    kind, *rest = description
    child = None
    if kind in ("batched", "tuples", "keras", "cached", "mapped", "some", "reseeded", "made"):
        child = trees.build_node(rest[0], context)
    if kind in ITERABLES:
        return Streamer(ITERABLES[kind](rest[0]))
    if kind in DRAWING:
        return Streamer(DRAWING[kind], i, rest[0])
    if kind == "quiet":
        return Streamer(quiet, i, rest[0])
    if kind == "spawned":
        return Streamer(spawned, i, rng=SPAWN)
    if kind == "given":
        return Streamer(given, i, np.random.default_rng(rest[0]))
    if kind == "opening":
        return Streamer(opening, i, rest[0])
    if kind == "once":
        return Streamer(Once(i, rest[0]))
    if kind == "resumable":
        return Streamer(Resumable(i, rest[0]))
    if kind == "counted":
        return Counted(quiet, i, rest[0])
    if kind in ("rows", "windows"):
        return source(kind, *rest)
    if kind in ("batched", "tuples", "keras") and not gives_data(rest[0]):
        child = Streamer(pescador.transform, child, to_data)
    if kind == "batched":
        return Streamer(pescador.buffer_stream, child, rest[1], partial=rest[2])
    if kind == "tuples":
        return Streamer(pescador.tuples, child, "y", "x")
    if kind == "keras":
        return Streamer(pescador.keras_tuples, child, inputs="x", outputs=["y"])
    if kind == "cached":
        seed = rest[2]
        state = context.states[seed[1]] if seed[0] == "shared" else seed[1]
        return Streamer(pescador.cache, child, rest[1], 0.4, state)
    if kind == "mapped":
        return Streamer(pescador.transform, child, mapped)
    if kind == "some":
        return Streamer(pescador.transform, child, some)
    if kind == "reseeded":
        return pescador.Seeded(child, rest[1], epoch=rest[2])
    if kind == "made":
        return pescador.ChainMux(lambda: (Streamer(child, 3) for _ in range(rest[1])), mode=rest[2])
    if kind == "seeded tree":
        return pescador.Seeded(trees.build_node(rest[0], context), rest[1])
    return None


counts = st.integers(1, 8)
#: Seeds that are not shared.
alone = st.one_of(st.just(("none", None)), st.tuples(st.just("int"), st.integers(0, 99)))

quiet_leaves = st.one_of(
    trees.leaves.filter(lambda leaf: leaf[0] != "drawing"),
    st.tuples(st.just("quiet"), st.integers(0, 8)),
    st.tuples(st.sampled_from(sorted(ITERABLES)), counts),
    st.tuples(st.just("given"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["once", "resumable", "opening", "counted"]), counts),
    st.tuples(
        st.sampled_from(["rows", "rows", "windows"]),
        st.sampled_from(["dict", "npz", "npy"]),
        st.sampled_from([2, 5, 20]),
        st.sampled_from(["random", "shuffled", "sequential"]),
        alone,
    ),
)
drawing_leaves = st.one_of(
    quiet_leaves,
    st.tuples(st.just("drawing"), st.integers(1, 6)),
    st.tuples(st.sampled_from(sorted(DRAWING)), counts),
    st.just(("spawned",)),
)


def maps_of(children, draws):
    """A map of a child, or another streamer that wraps it."""
    seeds = [alone, st.tuples(st.just("shared"), st.integers(0, 1))]
    more = [st.tuples(st.just("reseeded"), children, st.integers(0, 9), st.integers(0, 2))]
    return st.one_of(
        st.tuples(st.just("batched"), children, st.integers(1, 5), st.booleans()),
        st.tuples(st.sampled_from(["tuples", "keras", "mapped"]), children),
        st.tuples(st.just("cached"), children, st.integers(1, 6), st.one_of(*seeds)),
        *(more if draws else []),
    )


def with_seeds(description, inside=False):
    """A tree in which whatever is only replayed draws from no global state, nor what is in it."""
    if not isinstance(description, tuple):
        return description
    if inside and description in (("global", 0), ("none", None)):
        return "int", 7
    inside = inside or description[:1] == ("wrapped",)
    return tuple(with_seeds(part, inside) for part in description)


@st.composite
def to_open(draw, draws):
    """A tree; with `draws`, of streams that draw from the global states as well, under Seeded."""
    leaves = drawing_leaves if draws else quiet_leaves
    ends = leaves.filter(lambda leaf: leaf[0] in ("quiet", "rows", "windows", "range"))
    inside = st.one_of(
        leaves,
        leaves,
        leaves,
        maps_of(leaves, draws),
        st.tuples(st.just("some"), ends),
        st.tuples(
            st.just("made"), leaves, st.integers(1, 3), st.sampled_from(["exhaustive", "cycle"])
        ),
    )
    kind = draw(st.integers(0, 7))
    if kind == 0:
        tree = draw(inside)
    elif kind == 1:
        row = draw(leaves.filter(lambda leaf: leaf[0] == "rows" and leaf[1] != "npy"))
        tree = draw(trees.muxes(1, leaves=st.just(row)))
    else:
        tree = draw(trees.muxes(draw(st.integers(1, 3)), leaves=inside))
    if draw(st.integers(0, 2)) == 0:
        tree = draw(maps_of(st.just(tree), draws))
    if draws:
        return "seeded tree", tree, draw(st.integers(0, 2**70))
    return with_seeds(tree)
