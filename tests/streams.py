"""Sources that tests draw from; at module level, so that they can be pickled."""

import collections
import contextlib
import dataclasses
import os
import random
import sys
import types

import numpy as np

import pescador


def count(n, start=0):
    """n integers."""
    yield from range(start, start + n)


def forever(value):
    """The same value for ever."""
    while True:
        yield value


def nothing():
    """No item at all."""
    yield from ()


def callers(*args, **kwargs):
    """The names of the files whose functions are running, from here outwards."""
    frame = sys._getframe()
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def write_into(array, n):
    """Show what is in an array, then write into it."""
    for i in range(n):
        yield array.tolist()
        array[:] = i + 1


def data(n, shape=(3,), dtype=np.float32):
    """n data objects {X, Y}."""
    for i in range(n):
        yield {"X": np.full(shape, i, dtype), "Y": np.array(i)}


def letters(text):
    """One endless streamer per letter."""
    return [pescador.Streamer(forever, letter) for letter in text]


class Failure(Exception):
    """Raised by sources that fail."""


def failing(n):
    """n integers, then an error."""
    yield from range(n)
    raise Failure(n)


def draws(n):
    """n data objects of numbers from the global random states."""
    for _ in range(n):
        yield {"numpy": np.random.rand(2), "python": np.array(random.random())}


@dataclasses.dataclass
class Sample:
    name: str
    values: list


Point = collections.namedtuple("Point", "x y")

#: Items of any kind, which come from workers as they were.
ITEMS = {
    "none": None,
    "numbers": (1, 2.5, 3 + 4j, True, 2**100),
    "text": "пескадор",
    "bytes": b"\0\1",
    "tuple": (np.arange(3), "label", None),
    "list": [np.arange(3, dtype=">i4"), [np.float32(2)]],
    "empty dict": {},
    "empty tuple": (),
    "arrays": {"x": np.arange(6.0).reshape(2, 3), "y": np.array(3)},
    "alike": {"x": np.arange(6.0).reshape(2, 3) + 1, "y": np.array(4)},
    "fortran": {"x": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
    "strided": {"x": np.arange(12).reshape(3, 4)[::2, ::-1]},
    "no elements": {"x": np.zeros((0, 3), np.float32)},
    "dtypes": {
        "half": np.ones(2, np.float16),
        "complex": np.ones(2, np.complex64),
        "bool": np.array([True, False]),
        "text": np.array(["a", "bcd"]),
        "letter": np.array("a"),
        "bytes": np.array([b"a", b"bcd"]),
        "dates": np.array(["2020-01-01", "NaT"], "datetime64[D]"),
        "big endian": np.arange(3, dtype=">i4"),
        "big endian number": np.array(3, dtype=">i4"),
    },
    "structured": {"x": np.zeros(2, [("a", "i1"), ("b", "f8", (2,))])},
    "objects": {"x": np.array([None, "a", 3], object)},
    "nested": {"x": {"y": [{"z": np.arange(2)}, ()]}, "n": 1},
    "other keys": {3: np.arange(2), None: np.arange(2), (1, "a"): np.arange(2)},
    "a key like ours": {("pescador", "ended"): np.arange(2, dtype=np.uint8)},
    "scalars": {"x": np.float64(3), "y": 2, "name": "a"},
    "numbers by key": {"x": np.float64(3), "y": 2},
    "scalars beside a large array": {"x": np.zeros(2**20), "y": 2, "z": True, "name": "a"},
    "a number beside a large array": {"x": np.zeros(2**18), "y": 2},
    "large array": {"x": np.arange(2.0**18)},
    "a tuple of a large array": (np.arange(2**18), "label"),
    "a long text": {"x": "a" * 2**20},
    "array": np.arange(12).reshape(3, 4)[::2, ::-1],
    "scalar": np.float32(1),
    "ordered": collections.OrderedDict(b=np.arange(2), a=np.arange(3)),
    "dataclass": Sample("a", [np.arange(2)]),
    "namedtuple": Point(1, np.arange(2)),
    "masked": np.ma.masked_array([1, 2, 3], [0, 1, 0]),
    "set": {1, 2},
    "function": len,
    "dtype": np.dtype(">f4"),
}


def every_item():
    """One of each kind."""
    yield from ITEMS.values()


def copies_of(value, n=5):
    """What n streams of one activation of a mux are given for one value."""
    return list(pescador.RoundRobinMux([pescador.Streamer(forever, value)] * n).iterate(n))


def lone_copies_of(value, n=3):
    """What n iterations of a streamer are given."""
    return [given_to_a_stream(value) for _ in range(n)]


def given_to_a_stream(value):
    """What an iteration of a streamer is given."""
    return next(pescador.Streamer(forever, value).iterate())


def read_only(array):
    array.flags.writeable = False
    return array


def flags_of(array):
    """All that an array says of its memory, but whether it is its own."""
    return {name: array.flags[name] for name in ("C", "F", "W", "A", "X")}


def assert_alike(ours, theirs, seen=None):
    """Assert that two values are equal, laid out alike, and hold the same things twice."""
    seen = {} if seen is None else seen
    assert type(ours) is type(theirs)
    if isinstance(ours, list | dict | set | bytearray | np.ndarray):
        assert seen.setdefault(id(ours), id(theirs)) == id(theirs)
        assert seen.setdefault(id(theirs), id(ours)) == id(ours)
    if isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert (ours.shape, ours.strides) == (theirs.shape, theirs.strides)
        assert flags_of(ours) == flags_of(theirs)
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_alike(*pair, seen)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_alike(ours[key], theirs[key], seen)
    else:
        assert ours == theirs


def snapshots():
    """What the system knows of snapshots in this process: their maps, descriptors and bytes."""
    maps, files, sizes = 0, 0, {}
    with open("/proc/self/maps") as listed:
        for line in listed:
            if "/memfd:pescador" in line:
                first, last = line.split()[0].split("-")
                maps += 1
                sizes[line.split()[4]] = int(last, 16) - int(first, 16)
    for name in os.listdir("/proc/self/fd"):
        path = os.path.join("/proc/self/fd", name)
        with contextlib.suppress(OSError):
            if "/memfd:pescador" in os.readlink(path):
                files += 1
                sizes[str(os.stat(path).st_ino)] = os.stat(path).st_size
    return types.SimpleNamespace(maps=maps, files=files, bytes=sum(sizes.values()))
